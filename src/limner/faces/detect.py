"""Find faces and five landmarks: MTCNN in pure PyTorch, and the protocol that other detectors follow.

Three small networks, each working on what the one before let through: proposals on an image pyramid, refinement of
24 px crops, output (boxes, landmarks) from 48 px crops.

Convention: coordinates are (x, y) in px of the picture given, continuous: the pixel in column j covers [j, j + 1].
Source: Zhang et al. 2016, "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks"
(arXiv 1604.02878).
Differs: the pyramid is built from a copy in which the smallest wanted face is 40 px wide, so the time does not grow
with the photo; boxes are padded with grey, not cut, at the photo's border.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from limner.errors import CheckpointError, FaceNotFoundError, KeyMismatchError, OptionError, ShapeError
from limner.faces.options import DetectOptions

WEIGHTS = Path(__file__).resolve().parent.parent / "bundled" / "mtcnn.safetensors"
WORKING_FACE_PX = 40  # the smallest wanted face in the copy that is searched
SMALLEST_FACE_PX = 20  # below this a face has too few pixels to be worth finding
PYRAMID_STEP = 0.709  # half the area per level
PROPOSAL_SCORE, REFINE_SCORE = 0.6, 0.7
TURNED_SCORE = 0.95  # a face found only after turning the photo must be this certain
BATCH = 256  # crops per run of the second and third network


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """One face in a picture.

    Attributes:
        box: float32 (4,): x0, y0, x1, y1 in px; may reach beyond the picture.
        score: confidence, 0 to 1.
        landmarks: float32 (5, 2), (x, y) in px: left eye, right eye, nose, mouth left, mouth right, as seen in the
            picture when the face is upright.
    """

    box: np.ndarray
    score: float
    landmarks: np.ndarray

    @property
    def side_px(self) -> float:
        """Mean of the box's width and height."""
        return float(self.box[2] - self.box[0] + self.box[3] - self.box[1]) / 2


class Detector(Protocol):
    """What a face detector is: called with pixels, uint8 (H, W, 3), it returns faces, in any order."""

    def __call__(self, pixels: np.ndarray, /) -> Sequence[Face]: ...


class ProposalNet(nn.Module):
    """Fully convolutional: every 12 px window, two px apart, gets a score and a box."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 10, 3), nn.PReLU(10), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(10, 16, 3), nn.PReLU(16), nn.Conv2d(16, 32, 3), nn.PReLU(32)),
        )
        self.box = nn.Conv2d(32, 4, 1)
        self.score = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, H, W) -> scores (B, h, w), box corrections (B, 4, h, w)."""
        x = self.trunk(x)
        return self.score(x).softmax(1)[:, 1], self.box(x)


class RefineNet(nn.Module):
    """Scores and corrects 24 px crops."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(48, 64, 2), nn.PReLU(64), nn.Flatten(), nn.Linear(576, 128), nn.PReLU(128)),
        )
        self.box = nn.Linear(128, 4)
        self.score = nn.Linear(128, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, 24, 24) -> scores (B,), box corrections (B, 4)."""
        x = self.trunk(x)
        return self.score(x).softmax(1)[:, 1], self.box(x)


class OutputNet(nn.Module):
    """Scores and corrects 48 px crops and finds their landmarks."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 32, 3), nn.PReLU(32), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(32, 64, 3), nn.PReLU(64), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(nn.Conv2d(64, 64, 3), nn.PReLU(64), nn.MaxPool2d(2, 2, ceil_mode=True)),
            *(nn.Conv2d(64, 128, 2), nn.PReLU(128), nn.Flatten(), nn.Linear(1152, 256), nn.PReLU(256)),
        )
        self.box = nn.Linear(256, 4)
        self.landmarks = nn.Linear(256, 10)
        self.score = nn.Linear(256, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, 3, 48, 48) -> scores (B,), box corrections (B, 4), landmarks (B, 5, 2) as shares of the crop."""
        x = self.trunk(x)
        landmarks = self.landmarks(x).view(-1, 2, 5).transpose(1, 2)  # (B, 5, 2)
        return self.score(x).softmax(1)[:, 1], self.box(x), landmarks


class Mtcnn(nn.Module):
    """The three networks together; `forward` searches one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.proposal, self.refine, self.output = ProposalNet(), RefineNet(), OutputNet()

    @torch.no_grad()
    def forward(self, x: Tensor, min_face_px: float, min_score: float) -> tuple[Tensor, Tensor, Tensor]:
        """Find faces.

        Args:
            x: image (1, 3, H, W) in [-1, 1].
            min_face_px: width of the smallest face.
            min_score: lowest confidence.

        Returns:
            Boxes (N, 4), scores (N,), landmarks (N, 5, 2), on the CPU.
        """
        halves = [x.contiguous(memory_format=torch.channels_last)]
        while min(halves[-1].shape[2:]) >= 48:
            halves.append(F.avg_pool2d(halves[-1], 2, ceil_mode=True, count_include_pad=False))
        boxes = self._propose(halves, 12 / min_face_px)
        boxes, _, _ = self._judge(self.refine, halves, _square(boxes), 24, REFINE_SCORE)
        boxes, scores, landmarks = self._judge(self.output, halves, _square(boxes), 48, min_score)
        return boxes, scores, landmarks

    def _propose(self, halves: Sequence[Tensor], scale: float) -> Tensor:
        """Run the first network on every level of the pyramid, the largest being ``scale`` times the picture."""
        height, width = halves[0].shape[2:]
        found, found_scores = [torch.zeros(0, 4)], [torch.zeros(0)]
        while min(height, width) * scale >= 12:
            size = (int(np.ceil(height * scale)), int(np.ceil(width * scale)))
            level = next(
                half for half in reversed(halves) if half is halves[0] or half.shape[2] >= 2 * size[0]
            )
            scores, corrections = self.proposal(F.interpolate(level, size, mode="area"))
            rows, columns = torch.nonzero(scores[0] > PROPOSAL_SCORE, as_tuple=True)
            scores, corrections = scores[0, rows, columns].cpu(), corrections[0, :, rows, columns].t().cpu()
            corner = torch.stack([columns, rows], 1).cpu() * 2.0  # (N, 2)
            unit = torch.tensor([width / size[1], height / size[0]])
            boxes = torch.cat([corner * unit, (corner + 12) * unit], 1)
            keep = _suppress(boxes, scores, 0.5)
            found.append(_correct(boxes[keep], corrections[keep]))
            found_scores.append(scores[keep])
            scale *= PYRAMID_STEP
        boxes, scores = torch.cat(found), torch.cat(found_scores)
        return boxes[_suppress(boxes, scores, 0.7)]

    def _judge(
        self, network: nn.Module, halves: Sequence[Tensor], boxes: Tensor, size: int, min_score: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the second or third network on the crops of ``boxes``; keep what is good enough, once each."""
        outputs = [network(_cut(halves, part, size)) for part in boxes.split(BATCH) if len(part)]
        if not outputs:
            return boxes[:0], torch.zeros(0), torch.zeros(0, 5, 2)
        scores, corrections, *rest = (torch.cat(parts).cpu() for parts in zip(*outputs, strict=True))
        good = scores >= min_score
        boxes, scores, corrections = boxes[good], scores[good], corrections[good]
        landmarks = torch.zeros(len(boxes), 5, 2)
        if rest:
            landmarks = boxes[:, None, :2] + rest[0][good] * (boxes[:, 2:] - boxes[:, :2])[:, None]
        boxes = _correct(boxes, corrections)
        keep = _suppress(boxes, scores, 0.7, by_smaller=bool(rest))
        return boxes[keep], scores[keep], landmarks[keep]


def _suppress(boxes: Tensor, scores: Tensor, limit: float, *, by_smaller: bool = False) -> Tensor:
    """Return the indices of the boxes that no better box covers, best first.

    Args:
        boxes: (N, 4).
        scores: (N,).
        limit: largest overlap allowed, as a share of the union, or of the smaller box with ``by_smaller``.
    """
    order = scores.numpy().argsort(kind="stable")[::-1]
    corners = boxes.numpy().astype(np.float64)
    area = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        near = np.minimum(corners[best, 2:], corners[order, 2:]) - np.maximum(
            corners[best, :2], corners[order, :2]
        )
        shared = np.prod(near.clip(min=0), axis=1)
        whole = np.minimum(area[best], area[order]) if by_smaller else area[best] + area[order] - shared
        order = order[shared <= limit * whole]
    return torch.tensor(np.array(kept, dtype=np.int64))


def _correct(boxes: Tensor, corrections: Tensor) -> Tensor:
    """Move every corner of (N, 4) boxes by its correction, a share of the box's width or height."""
    return boxes + corrections * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def _square(boxes: Tensor) -> Tensor:
    """Widen (N, 4) boxes to squares about their centres, on whole px."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([centre - half, centre + half], 1).trunc()


def _cut(halves: Sequence[Tensor], boxes: Tensor, size: int) -> Tensor:
    """Cut boxes out of an image, grey outside, and bring them to (N, 3, size, size).

    Args:
        halves: the image (1, 3, H, W), and copies of it, each half as large as the one before.
        boxes: (N, 4), on whole px.
        size: side of the crops.
    """
    crops = halves[0].new_zeros(len(boxes), 3, size, size)
    for crop, box in zip(crops, boxes.tolist(), strict=True):
        # The smallest copy in which the box still has four px per px of the crop.
        step = min(max(0, int(np.log2(max(box[2] - box[0], 1) / (4 * size)))), len(halves) - 1)
        x0, y0, x1, y1 = (round(value / 2**step) for value in box)
        x = halves[step]
        height, width = x.shape[2:]
        inside = x[:, :, max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)]
        if inside.numel():
            pads = (max(0, -x0), max(0, x1 - width), max(0, -y0), max(0, y1 - height))
            padded = F.pad(inside, pads) if any(pads) else inside
            crop.copy_(F.interpolate(padded, (size, size), mode="area")[0])
    return crops


def load_mtcnn(path: Path = WEIGHTS) -> Mtcnn:
    """Load the detector's weights, in float32 on the CPU.

    Raises:
        CheckpointError: the file is missing or broken.
        KeyMismatchError: it holds other tensors.
    """
    network = Mtcnn()
    try:
        state = {name: value.float() for name, value in load_file(path).items()}
    except Exception as error:
        raise CheckpointError(f"{path}: {error}; scripts/convert_mtcnn.py makes this file") from error
    own = network.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or [
        name for name in own if own[name].shape != state[name].shape
    ]
    if wrong:
        raise KeyMismatchError(
            f"{path} is not an MTCNN: {', '.join(wrong[:5])} missing, unexpected or misshapen"
        )
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


@functools.cache
def _bundled_mtcnn() -> Mtcnn:
    return load_mtcnn()


@dataclasses.dataclass(frozen=True)
class MtcnnDetector:
    """MTCNN as a `Detector`.

    Attributes:
        options: see `DetectOptions`.
        network: the networks, on any device; None for the bundled ones.
    """

    options: DetectOptions = dataclasses.field(default_factory=DetectOptions)
    network: Mtcnn | None = None

    def __call__(self, pixels: np.ndarray, /) -> list[Face]:
        """Return the faces of a picture, uint8 (H, W, 3), largest first."""
        faces = self._search(pixels)
        if not faces and self.options.quarter_turns:
            turned = [_turn_back(self._search(np.rot90(pixels, k)), k, pixels.shape) for k in (1, 3, 2)]
            certain = [[face for face in found if face.score >= TURNED_SCORE] for found in turned]
            faces = max(certain, key=lambda found: sum(face.score for face in found))
        return sort_faces(faces)

    def _search(self, pixels: np.ndarray) -> list[Face]:
        network = _bundled_mtcnn() if self.network is None else self.network
        height, width = pixels.shape[:2]
        face_px = max(SMALLEST_FACE_PX, self.options.min_face * min(height, width))
        scale = min(1.0, WORKING_FACE_PX / face_px)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        copy = np.array(
            picture if scale == 1 else picture.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
        )
        weight = network.proposal.score.weight
        x = torch.from_numpy(copy).to(weight.device).permute(2, 0, 1)[None].to(weight.dtype)
        x = (x - 127.5) / 128
        found = network(x.contiguous(), face_px * scale, self.options.min_score)
        boxes, scores, landmarks = (values.float().numpy() for values in found)
        unit = np.array([width / size[0], height / size[1]], np.float32)
        return [
            Face(box * np.tile(unit, 2), float(score), points * unit)
            for box, score, points in zip(boxes, scores, landmarks, strict=True)
        ]


def _turn_back(faces: Sequence[Face], k: int, shape: Sequence[int]) -> list[Face]:
    """Map faces found in ``np.rot90(pixels, k)`` to ``pixels``, whose shape is ``shape``."""
    height, width = shape[:2]
    turn = {
        1: lambda p: np.stack([width - p[:, 1], p[:, 0]], 1),
        2: lambda p: np.stack([width - p[:, 0], height - p[:, 1]], 1),
        3: lambda p: np.stack([p[:, 1], height - p[:, 0]], 1),
    }[k]
    mapped = []
    for face in faces:
        corners = turn(face.box.reshape(2, 2))
        box = np.concatenate([corners.min(0), corners.max(0)]).astype(np.float32)
        mapped.append(Face(box, face.score, turn(face.landmarks).astype(np.float32)))
    return mapped


def sort_faces(faces: Sequence[Face]) -> list[Face]:
    """Return the faces, the largest first; of equals the one further left."""
    return sorted(faces, key=lambda face: (-face.side_px, float(face.box[0])))


def detect_faces(
    pixels: np.ndarray, options: DetectOptions | None = None, *, detector: Detector | None = None
) -> list[Face]:
    """Find the faces of a picture.

    Args:
        pixels: uint8 (H, W, 3).
        options: what is looked for; only for the bundled detector.
        detector: another detector.

    Returns:
        Faces, the largest first; an empty list where there is none.

    Raises:
        ShapeError: ``pixels`` is something else.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ShapeError(f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3)")
    return sort_faces((detector or MtcnnDetector(options or DetectOptions()))(pixels))


def choose_faces(faces: Sequence[Face], which: str = "all", *, where: str = "the picture") -> list[Face]:
    """Return the faces that are asked for.

    Args:
        faces: as `detect_faces` returns them.
        which: ``all``, ``largest``, or a number as a string, 1 being the first.
        where: the picture's name, for the message.

    Raises:
        FaceNotFoundError: there is no face, or none with this number.
        OptionError: ``which`` is something else.
    """
    if not faces:
        raise FaceNotFoundError(
            f"{where}: no face found; try --min-face 0.02 (smaller faces), --min-score 0.6 (doubtful ones), "
            "--quarter-turns (sideways photos), --landmarks x,y,... (five points by hand), or --aligned where the "
            "picture is an aligned face already"
        )
    if which == "all":
        return list(faces)
    if which == "largest":
        return [faces[0]]
    if not which.isdecimal() or which == "0":
        raise OptionError(f"face is {which!r}, expected all, largest or a number from 1")
    if int(which) > len(faces):
        raise FaceNotFoundError(f"{where}: there is no face {which}; {len(faces)} found, 1 being the largest")
    return [faces[int(which) - 1]]
