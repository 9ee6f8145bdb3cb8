"""Put faces back into their photo: soft mask, colours matched at the seam, everything else bit-identical.

Convention: as in `limner.faces.align`.  Inside a crop, x and y also run from -1 to 1, and the radius of a pixel is
(\\|x\\|^p + \\|y\\|^p)^(1/p): 0 in the middle, 1 on the rim of the mask, p = 2 for an ellipse, 6 for a soft square.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import ShapeError
from limner.faces.align import Alignment, crop_face, warp
from limner.faces.options import PasteOptions
from limner.media import check_pixels

POWER = {"ellipse": 2, "soft-square": 6}
STATISTICS_PX = 64  # side of the copies that colours are compared on
SHIFT_PX = 256  # side of the copy that the colour shift is worked out on
RING = 0.7  # colours are compared from this radius to the rim
REACH = (0.4, 0.9)  # the colour shift begins at the first radius and is complete at the second
SPREAD_LIMIT = 2.0  # largest change of contrast
# sRGB (linear) -> XYZ relative to the white point D65.
RGB_TO_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)
XYZ_TO_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))  # before the shift of L by -16
LAB_KNEE = 6 / 29


@dataclasses.dataclass
class _Patch:
    """One face on its way into the photo: where (x0, y0, x1, y1), its mask (h, w), its colours (3, h, w)."""

    box: tuple[int, int, int, int]
    mask: Tensor
    colors: Tensor

    def overlap(self, other: _Patch) -> tuple[int, int, int, int] | None:
        """Return the rectangle that both cover."""
        x0, y0 = max(self.box[0], other.box[0]), max(self.box[1], other.box[1])
        x1, y1 = min(self.box[2], other.box[2]), min(self.box[3], other.box[3])
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def view(self, values: Tensor, box: tuple[int, int, int, int]) -> Tensor:
        """Return the part of ``values`` (..., h, w) that lies in ``box``."""
        x, y = self.box[:2]
        return values[..., box[1] - y : box[3] - y, box[0] - x : box[2] - x]


def paste_face(
    photo: np.ndarray, face: np.ndarray, alignment: Alignment, options: PasteOptions | None = None
) -> np.ndarray:
    """Put one face back; see `paste_faces`."""
    return paste_faces(photo, [face], [alignment], options)


@torch.no_grad()
def paste_faces(
    photo: np.ndarray,
    faces: Sequence[np.ndarray],
    alignments: Sequence[Alignment],
    options: PasteOptions | None = None,
) -> np.ndarray:
    """Put faces back into their photo.

    Where masks overlap, the face whose mask is stronger prevails, so the order does not matter.

    Args:
        photo: uint8 (H, W, 3); it is not changed.
        faces: each uint8 (S, S, 3), of any size: it covers the square of its alignment.
        alignments: one per face.
        options: mask and colours.

    Returns:
        The photo, uint8 (H, W, 3); pixels outside every mask are bit-identical.

    Raises:
        ShapeError: a face is not square, or their number is not that of the alignments.
    """
    options = options or PasteOptions()
    check_pixels(photo)
    if len(faces) != len(alignments):
        raise ShapeError(f"{len(faces)} faces but {len(alignments)} alignments")
    patches = []
    for face, alignment in zip(faces, alignments, strict=True):
        check_pixels(face)
        if face.shape[0] != face.shape[1]:
            raise ShapeError(f"a face is {face.shape[1]} x {face.shape[0]} px, expected a square crop")
        patch = _make_patch(photo, face, alignment.resized(face.shape[0]), options)
        if patch is not None:
            patches.append(patch)
    changes = [_weigh(patch, patches) * (patch.colors - _part(photo, patch.box)) for patch in patches]
    result = photo.copy()
    for i, patch in enumerate(patches):
        total = changes[i].clone()
        for j, other in enumerate(patches):
            if j != i and (box := patch.overlap(other)):
                patch.view(total, box).add_(other.view(changes[j], box))
        x0, y0, x1, y1 = patch.box
        values = (_part(photo, patch.box) + total).round_().clamp_(0, 255).to(torch.uint8)
        result[y0:y1, x0:x1] = values.permute(1, 2, 0).numpy()
    return result


def _part(photo: np.ndarray, box: tuple[int, int, int, int]) -> Tensor:
    """Return a rectangle of the photo, float (3, h, w)."""
    x0, y0, x1, y1 = box
    return torch.from_numpy(np.ascontiguousarray(photo[y0:y1, x0:x1])).permute(2, 0, 1).float()


def _weigh(patch: _Patch, patches: Sequence[_Patch]) -> Tensor:
    """Return a patch's share of every pixel, (h, w); all shares add up to the strongest mask."""
    others = [(other, box) for other in patches if other is not patch and (box := patch.overlap(other))]
    if not others:
        return patch.mask
    strongest, total = patch.mask.clone(), patch.mask**4
    for other, box in others:
        mask = other.view(other.mask, box)
        patch.view(total, box).add_(mask**4)
        part = patch.view(strongest, box)
        part.copy_(torch.maximum(part, mask))
    return strongest * patch.mask**4 / total.clamp(min=1e-12)


def _make_patch(
    photo: np.ndarray, face: np.ndarray, alignment: Alignment, options: PasteOptions
) -> _Patch | None:
    """Bring a face to the photo's grid; None where it lies outside the photo."""
    height, width = photo.shape[:2]
    quad = alignment.quad
    x0, y0 = (max(0, math.floor(value)) for value in quad.min(0))
    x1, y1 = (min(limit, math.ceil(value)) for value, limit in zip(quad.max(0), (width, height), strict=True))
    if x0 >= x1 or y0 >= y1:
        return None
    source = torch.from_numpy(np.ascontiguousarray(face)).permute(2, 0, 1)[None].float()  # (1, 3, S, S)
    if options.color_match != "none" and options.color_strength > 0:
        source = _match_colors(source, photo, alignment, options)
    # Where the crop has many more pixels than the photo: average whole blocks first.
    factor = max(1, math.floor(0.5 / alignment.scale))
    if factor > 1:
        pad = -face.shape[0] % factor
        source = F.avg_pool2d(F.pad(source, (0, pad, 0, pad), mode="replicate"), factor)
    shift = np.eye(3)
    shift[:2, 2] = x0, y0
    box_to_crop = alignment.photo_to_crop @ shift
    colors = warp(source, np.diag([1 / factor, 1 / factor, 1.0]) @ box_to_crop, (y1 - y0, x1 - x0))
    # The mask is computed, not resampled: the radius of every pixel of the box.
    to_unit = np.diag([2 / alignment.size, 2 / alignment.size, 1.0])
    to_unit[:2, 2] = -1
    matrix = torch.from_numpy((to_unit @ box_to_crop)[:2]).float()
    columns, rows = torch.arange(x1 - x0) + 0.5, torch.arange(y1 - y0)[:, None] + 0.5
    x, y = (line[0] * columns + (line[1] * rows + line[2]) for line in matrix)
    edge = max(2 * options.feather, 2 / (alignment.size * alignment.scale))  # never harder than one photo px
    mask = _smoothstep((1 - _radius(x, y, options)) / edge)
    return _Patch((x0, y0, x1, y1), mask, colors[0].clamp_(0, 255))


def _radius(x: Tensor, y: Tensor, options: PasteOptions) -> Tensor:
    """Return the radius of crop coordinates in [-1, 1]; see the module."""
    x, y = x.square(), y.square()
    if options.mask == "ellipse":
        return (x + y).sqrt()
    return (x * x * x + y * y * y).pow(1 / POWER[options.mask])


def _smoothstep(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, in between a cubic with level ends."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _match_colors(source: Tensor, photo: np.ndarray, alignment: Alignment, options: PasteOptions) -> Tensor:
    """Shift mean and spread of a face's colours, (1, 3, S, S), to the photo's near the rim.

    The statistics are taken on a ring inside the rim; the shift fades out towards the middle, so the style keeps its
    colours there.
    Source: Reinhard et al. 2001, "Color Transfer between Images".
    Differs: on the ring alone and fading; the change of contrast is limited and leaves the finest detail alone.
    """
    forward, backward = {"lab": (_rgb_to_lab, _lab_to_rgb), "linear": (_to_linear, _from_linear)}[
        options.color_match
    ]
    small = alignment.resized(STATISTICS_PX)
    unit = (torch.arange(STATISTICS_PX) + 0.5) * (2 / STATISTICS_PX) - 1
    radius = _radius(unit[None, :], unit[:, None], options)
    ring = (radius >= RING) & (radius <= 1) & _inside(photo, small)
    if not ring.any():
        return source
    target = torch.from_numpy(crop_face(photo, small)).permute(2, 0, 1)[None].float()
    own = F.interpolate(source, (STATISTICS_PX, STATISTICS_PX), mode="area")
    ours, theirs = (forward(image / 255)[0, :, ring] for image in (own, target))  # (3, N)
    limit = (1 / SPREAD_LIMIT, SPREAD_LIMIT)
    gain = ((theirs.std(1, correction=0) + 1e-3) / (ours.std(1, correction=0) + 1e-3)).clamp(*limit)
    # The shift is smooth: it is worked out on a small copy and enlarged.
    side = min(alignment.size, SHIFT_PX)
    copy = F.interpolate(source, (side, side), mode="area")
    colors = forward(copy / 255)
    means = ours.mean(1).view(1, 3, 1, 1), theirs.mean(1).view(1, 3, 1, 1)
    shift = backward((colors - means[0]) * gain.view(1, 3, 1, 1) + means[1]) * 255 - copy
    unit = (torch.arange(side) + 0.5) * (2 / side) - 1
    radius = _radius(unit[None, :], unit[:, None], options)
    shift *= _smoothstep((radius - REACH[0]) / (REACH[1] - REACH[0])) * options.color_strength
    return source + F.interpolate(shift, source.shape[2:], mode="bilinear", align_corners=False)


def _inside(photo: np.ndarray, alignment: Alignment) -> Tensor:
    """Return which pixels of a crop lie in the photo, bool (size, size)."""
    middle = np.arange(alignment.size) + 0.5
    matrix = alignment.crop_to_photo
    x, y = (line[0] * middle[None, :] + line[1] * middle[:, None] + line[2] for line in matrix[:2])
    return torch.from_numpy((x >= 0) & (y >= 0) & (x <= photo.shape[1]) & (y <= photo.shape[0]))


def _to_linear(rgb: Tensor) -> Tensor:
    """sRGB, 0 to 1 -> linear light."""
    return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def _from_linear(light: Tensor) -> Tensor:
    """Linear light -> sRGB, clipped to 0 to 1."""
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB (B, 3, H, W), 0 to 1 -> CIE L*a*b* (D65)."""
    xyz = torch.einsum("ij,bjhw->bihw", torch.tensor(RGB_TO_XYZ), _to_linear(rgb))
    bent = torch.where(xyz > LAB_KNEE**3, xyz.clamp(min=1e-9) ** (1 / 3), xyz / (3 * LAB_KNEE**2) + 4 / 29)
    lab = torch.einsum("ij,bjhw->bihw", torch.tensor(XYZ_TO_LAB), bent)
    return lab - torch.tensor([16.0, 0.0, 0.0]).view(1, 3, 1, 1)


def _lab_to_rgb(lab: Tensor) -> Tensor:
    """CIE L*a*b* (B, 3, H, W) -> sRGB, clipped to 0 to 1."""
    shifted = lab + torch.tensor([16.0, 0.0, 0.0]).view(1, 3, 1, 1)
    bent = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(torch.tensor(XYZ_TO_LAB)), shifted)
    xyz = torch.where(bent > LAB_KNEE, bent**3, 3 * LAB_KNEE**2 * (bent - 4 / 29))
    return _from_linear(torch.einsum("ij,bjhw->bihw", torch.linalg.inv(torch.tensor(RGB_TO_XYZ)), xyz))
