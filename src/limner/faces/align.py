"""The FFHQ crop of a face: geometry from five landmarks, and the resampling that cuts it out.

Convention: coordinates are (x, y) in px, continuous: the pixel in column j covers [j, j + 1], its centre is j + 0.5.
``crop_to_photo`` maps crop coordinates (0 to ``size``) to photo coordinates; matrices act on (x, y, 1).  Corners are
listed top-left, bottom-left, bottom-right, top-right.

Source: Karras et al. 2019 (arXiv 1812.04948), the FFHQ data set's alignment.
Differs: the centres of the eyes and the corners of the mouth come from five landmarks, not from 68, which moves
them by a few hundredths of the eye distance.  Pixels are averaged over their true area (integer area reduction,
then several bicubic samples a pixel) where the original shrinks and samples bilinearly.  Only the needed part of the
photo is touched; what lies outside is mirrored, blurred and faded to the median colour as in the original.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import MediaError, OptionError, ShapeError
from limner.faces.detect import Detector, Face, choose_faces, detect_faces
from limner.faces.options import AlignOptions, DetectOptions
from limner.media import check_pixels

EYE_SPAN, EYE_TO_MOUTH_SPAN = 2.0, 1.8  # half the crop's side, in eye distances and in eye-to-mouth distances
CENTRE_SHIFT = 0.1  # the crop's centre lies this share of the way from the eyes to the mouth
BORDER, PAD, BLUR = 0.1, 0.3, 0.02  # margin, fade and blur, as shares of the crop's side in the photo


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """Where a crop lies in its photo.

    Attributes:
        crop_to_photo: float64 (3, 3), a similarity.
        size: side of the crop in px.
        face: the face it was made from; None for an already aligned picture.
    """

    crop_to_photo: np.ndarray
    size: int
    face: Face | None = None

    @property
    def photo_to_crop(self) -> np.ndarray:
        """The inverse of ``crop_to_photo``."""
        return np.linalg.inv(self.crop_to_photo)

    @property
    def quad(self) -> np.ndarray:
        """The crop's corners in the photo, (4, 2)."""
        side = float(self.size)
        return map_points(self.crop_to_photo, np.array([[0, 0], [0, side], [side, side], [side, 0]]))

    @property
    def scale(self) -> float:
        """Photo px per crop px."""
        return math.sqrt(abs(np.linalg.det(self.crop_to_photo[:2, :2])))

    def resized(self, size: int) -> Alignment:
        """Return the same square of the photo as a crop of another size."""
        zoom = np.diag([self.size / size, self.size / size, 1.0])
        return Alignment(self.crop_to_photo @ zoom, size, self.face)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain JSON values; `from_mapping` reads them."""
        values: dict[str, Any] = {"size": self.size, "crop_to_photo": self.crop_to_photo.tolist()}
        values["quad"] = self.quad.tolist()
        if self.face is not None:
            values["face"] = {
                "box": self.face.box.tolist(),
                "score": self.face.score,
                "landmarks": self.face.landmarks.tolist(),
            }
        return values

    @classmethod
    def from_mapping(cls, values: Any) -> Alignment:
        """Read what `to_mapping` made.

        Raises:
            MediaError: something is missing, misshapen or no similarity.
        """
        try:
            matrix = np.array(values["crop_to_photo"], np.float64)
            size = int(values["size"])
            face = None
            if "face" in values:
                found = values["face"]
                points = np.array(found["landmarks"], np.float32).reshape(5, 2)
                face = Face(np.array(found["box"], np.float32).reshape(4), float(found["score"]), points)
        except (KeyError, TypeError, ValueError) as error:
            raise MediaError(f"not an alignment: {type(error).__name__} {error}") from None
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or size < 1:
            raise MediaError(f"not an alignment: crop_to_photo {matrix.tolist()}, size {size}")
        (a, b), (c, d) = matrix[:2, :2]
        span = math.hypot(a, c)
        if span == 0 or not np.allclose([a, b, 0, 0, 1], [d, -c, *matrix[2]], atol=1e-6 * span):
            raise MediaError("not an alignment: crop_to_photo is not a rotation, scale and shift")
        return cls(matrix, size, face)


def map_points(a_to_b: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map (N, 2) points by a 3x3 matrix."""
    return points @ a_to_b[:2, :2].T + a_to_b[:2, 2]


def align_face(face: Face, size: int) -> Alignment:
    """Return the FFHQ crop of a face.

    Args:
        face: only its landmarks count.
        size: side of the crop in px.

    Raises:
        OptionError: the eyes and the mouth fall together, so there is no direction.
    """
    left, right, _, mouth_left, mouth_right = face.landmarks.astype(np.float64)
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    eye_to_eye, eye_to_mouth = right - left, mouth - eyes
    # The crop's x axis: along the eyes and square to the line from eyes to mouth, half of each.
    axis = eye_to_eye - _turn(eye_to_mouth)
    length = math.hypot(*axis)
    half = max(EYE_SPAN * math.hypot(*eye_to_eye), EYE_TO_MOUTH_SPAN * math.hypot(*eye_to_mouth))
    if not length > 1e-3 * half:
        raise OptionError(f"landmarks {face.landmarks.tolist()} give no upright direction: check their order")
    x = axis / length * (2 * half / size)
    y = _turn(x)
    centre = eyes + CENTRE_SHIFT * eye_to_mouth
    corner = centre - (x + y) * (size / 2)
    matrix = np.eye(3)
    matrix[:2] = np.stack([x, y, corner], 1)
    return Alignment(matrix, size, face)


def _turn(vector: np.ndarray) -> np.ndarray:
    """Turn a vector by a quarter, from x (right) to y (down)."""
    return np.array([-vector[1], vector[0]])


def whole_picture(pixels: np.ndarray, size: int) -> Alignment:
    """Return the alignment of a picture that is an aligned face already: its largest centred square."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    matrix = np.diag([side / size, side / size, 1.0])
    matrix[:2, 2] = (width - side) / 2, (height - side) / 2
    return Alignment(matrix, size)


def make_face(landmarks: Sequence[float] | np.ndarray) -> Face:
    """Return a face from five landmarks set by hand, ten numbers x,y in px."""
    points = np.asarray(landmarks, np.float32)
    if points.size != 10:
        raise ShapeError(f"landmarks have {points.size} numbers, expected 10: x,y of five points")
    points = points.reshape(5, 2)
    centre, side = points.mean(0), 2 * np.ptp(points, 0).max()
    return Face(np.concatenate([centre - side / 2, centre + side / 2]).astype(np.float32), 1.0, points)


def find_alignments(
    pixels: np.ndarray,
    options: AlignOptions | None = None,
    detect: DetectOptions | None = None,
    *,
    detector: Detector | None = None,
    where: str = "the picture",
) -> list[Alignment]:
    """Return the crop of every face that is asked for, the largest first.

    Args:
        pixels: uint8 (H, W, 3).
        options: size, which faces, landmarks by hand, already aligned.
        detect: for the bundled detector.
        detector: another detector.
        where: the picture's name, for messages.

    Raises:
        FaceNotFoundError: there is no such face; the message says what to try.
        OptionError: the landmarks given make no face.
    """
    check_pixels(pixels)
    options = options or AlignOptions()
    if options.aligned:
        return [whole_picture(pixels, options.size)]
    if options.landmarks:
        return [align_face(make_face(options.landmarks), options.size)]
    faces = detect_faces(pixels, detect, detector=detector)
    return [align_face(face, options.size) for face in choose_faces(faces, options.face, where=where)]


@torch.no_grad()
def crop_face(pixels: np.ndarray, alignment: Alignment) -> np.ndarray:
    """Cut a face out of a photo.

    Args:
        pixels: uint8 (H, W, 3).
        alignment: where.

    Returns:
        The crop, uint8 (size, size, 3).
    """
    check_pixels(pixels)
    if _is_plain(alignment, pixels.shape):
        x, y = (round(value) for value in alignment.crop_to_photo[:2, 2])
        return pixels[y : y + alignment.size, x : x + alignment.size].copy()
    quad, side = alignment.quad, alignment.scale * alignment.size
    # Shrink by a whole factor first: what is left to resample is then less than four photo px per crop px.
    factor = max(1, math.floor(alignment.scale / 2))
    margin = max(3 * factor, math.ceil(BORDER * side))
    low = np.floor(quad.min(0)).astype(int) - margin
    blocks = np.ceil((quad.max(0) + margin - low) / factor).astype(int)
    region = _cut_mirrored(pixels, low, blocks * factor)  # (1, 3, h, w)
    if factor > 1:
        region = F.avg_pool2d(region, factor)
    outside = max(0.0, *-quad.min(0), *(quad.max(0) - (pixels.shape[1], pixels.shape[0])))
    if outside > 0:
        region = _fade(
            region, low, factor, pixels.shape, pad=max(PAD * side, outside + margin), blur=BLUR * side
        )
    # Crop px -> region px.
    shift = np.eye(3)
    shift[:2, 2] = -low
    crop_to_region = np.diag([1 / factor, 1 / factor, 1.0]) @ shift @ alignment.crop_to_photo
    crop = warp(region, crop_to_region, (alignment.size, alignment.size))
    return crop[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _is_plain(alignment: Alignment, shape: Sequence[int]) -> bool:
    """Say whether the crop's pixels are the photo's pixels, as for an aligned picture of the right size."""
    matrix, size = alignment.crop_to_photo, alignment.size
    x, y = matrix[:2, 2]
    whole = np.array_equal(matrix[:2, :2], np.eye(2)) and x == round(x) and y == round(y)
    return bool(whole and x >= 0 and y >= 0 and x + size <= shape[1] and y + size <= shape[0])


def _cut_mirrored(pixels: np.ndarray, low: np.ndarray, size: np.ndarray) -> Tensor:
    """Return the rectangle from ``low`` (x, y), ``size`` (w, h), mirrored beyond the border, float (1, 3, h, w)."""
    columns, rows = (_mirror(np.arange(low[i], low[i] + size[i]), pixels.shape[1 - i]) for i in (0, 1))
    height, width = pixels.shape[:2]
    if low.min() >= 0 and low[0] + size[0] <= width and low[1] + size[1] <= height:
        part = pixels[low[1] : low[1] + size[1], low[0] : low[0] + size[0]]
    else:
        part = pixels[rows[:, None], columns]
    return torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None].float()


def _mirror(index: np.ndarray, length: int) -> np.ndarray:
    """Reflect indices about the first and last pixel's centre, as often as needed."""
    if length == 1:
        return np.zeros_like(index)
    return length - 1 - np.abs(index % (2 * length - 2) - (length - 1))


def _fade(
    region: Tensor, low: np.ndarray, factor: int, shape: Sequence[int], *, pad: float, blur: float
) -> Tensor:
    """Blur and fade what lies outside the photo.

    Args:
        region: (1, 3, h, w), its origin at ``low`` in the photo and ``factor`` photo px per px.
        low, factor: as just said.
        shape: the photo's height and width.
        pad: distance outside the photo, in photo px, at which only the median colour is left; the blur begins a
            third of it inside.
        blur: standard deviation in photo px.
    """
    height, width = region.shape[2:]
    depth = []
    for origin, count, length in ((low[0], width, shape[1]), (low[1], height, shape[0])):
        centre = origin + (torch.arange(count) + 0.5) * factor
        depth.append(
            torch.maximum(-centre, centre - length) / pad
        )  # 0 at the photo's edge, 1 at `pad` outside
    depth = torch.maximum(depth[0][None, :], depth[1][:, None])  # (h, w)
    region = region + (_blur(region, blur / factor) - region) * (depth * 3 + 1).clamp(0, 1)
    step = max(1, min(height, width) // 256)
    median = region[:, :, ::step, ::step].flatten(2).median(2).values[:, :, None, None]
    return region + (median - region) * depth.clamp(0, 1)


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Blur (1, 3, h, w) by a Gaussian; a wide one is applied to a smaller copy."""
    step = max(1, math.floor(sigma / 2))
    height, width = x.shape[2:]
    small = (
        F.interpolate(x, (math.ceil(height / step), math.ceil(width / step)), mode="area") if step > 1 else x
    )
    sigma = max(sigma / step, 1e-3)
    reach = min(math.ceil(3 * sigma), min(small.shape[2:]) - 1)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    small = F.conv2d(F.pad(small, (reach, reach, 0, 0), mode="reflect"), taps, groups=3)
    small = F.conv2d(F.pad(small, (0, 0, reach, reach), mode="reflect"), taps.transpose(2, 3), groups=3)
    return F.interpolate(small, (height, width), mode="bilinear", align_corners=False) if step > 1 else small


def warp(source: Tensor, target_to_source: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Resample a picture through a similarity, bicubically, as many samples a pixel as it shrinks.

    Args:
        source: (1, C, h, w); beyond its border the outermost pixels go on.
        target_to_source: 3x3.
        size: height and width of the target.

    Returns:
        (1, C, height, width), not clipped.

    Convention: see the module; sampling is `grid_sample` with align_corners=False.
    """
    height, width = size
    scale = math.sqrt(abs(np.linalg.det(target_to_source[:2, :2])))
    samples = max(1, math.ceil(scale - 0.001))
    to_unit = np.diag([2 / source.shape[3], 2 / source.shape[2], 1.0])
    to_unit[:2, 2] = -1
    finer = np.diag([1 / samples, 1 / samples, 1.0])
    matrix = torch.from_numpy((to_unit @ target_to_source @ finer)[:2]).float()
    x = torch.arange(width * samples) + 0.5
    y = torch.arange(height * samples) + 0.5
    grid = matrix[:, 0] * x[None, :, None] + (matrix[:, 1] * y[:, None, None] + matrix[:, 2])  # (h, w, 2)
    target = F.grid_sample(source, grid[None], mode="bicubic", padding_mode="border", align_corners=False)
    return F.avg_pool2d(target, samples) if samples > 1 else target
