"""Regions of an aligned face: by name, by numbers, or from a picture; soft edges."""

from __future__ import annotations

import difflib
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import OptionError, ShapeError

# Ellipses (centre x, centre y, half width, half height) as shares of an aligned face's side, around where the FFHQ
# alignment puts these parts of an upright head.
PARTS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "face": ((0.5, 0.56, 0.27, 0.34),),
    "mouth": ((0.5, 0.72, 0.17, 0.09),),
    "nose": ((0.5, 0.58, 0.09, 0.13),),
    "eyes": ((0.38, 0.47, 0.11, 0.075), (0.62, 0.47, 0.11, 0.075)),
    "left-eye": ((0.38, 0.47, 0.11, 0.075),),
    "right-eye": ((0.62, 0.47, 0.11, 0.075),),
}
# Boxes (left, top, right, bottom).
HALVES: dict[str, tuple[float, float, float, float]] = {
    "all": (0.0, 0.0, 1.0, 1.0),
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "upper": (0.0, 0.0, 1.0, 0.5),
    "lower": (0.0, 0.5, 1.0, 1.0),
}
NAMES = (*PARTS, *HALVES)


def make_region(text: str, size: int, *, feather: float = 0.0) -> Tensor:
    """Draw a region.

    Args:
        text: parts joined by ``+``, each a name (face, mouth, nose, eyes, left-eye, right-eye, all, left, right, upper,
            lower; as seen in the picture), ``box:LEFT:TOP:RIGHT:BOTTOM`` or ``ellipse:X:Y:HALF_WIDTH:HALF_HEIGHT`` in
            shares of the side; ``not`` and a space in front of it all inverts it.
        size: side in px.
        feather: see `soften`.

    Returns:
        (1, 1, size, size), 0 to 1.

    Raises:
        OptionError: the text cannot be read, or covers nothing.
    """
    words = text.strip()
    invert = words.startswith("not ")
    region = torch.zeros(size, size)
    for part in words.removeprefix("not ").split("+"):
        region = torch.maximum(region, _draw(part.strip(), size, text))
    region = 1 - region if invert else region
    if not region.any():
        raise OptionError(f"region {text!r} covers nothing of {size} px")
    return soften(region[None, None], feather)


def region_from_pixels(pixels: np.ndarray, size: int, *, feather: float = 0.0) -> Tensor:
    """Turn a picture, uint8 (H, W, 3), white being the region, into (1, 1, size, size).

    Raises:
        ShapeError: the picture is black.
    """
    grey = torch.from_numpy(np.ascontiguousarray(pixels)).float().mean(2)[None, None] / 255  # (1, 1, H, W)
    if grey.shape[2:] != (size, size):
        grey = F.interpolate(grey, (size, size), mode="area")
    if not (grey > 0.5).any():
        raise ShapeError("the mask is black; its white pixels are the region")
    return soften((grey > 0.5).float(), feather)


def soften(region: Tensor, feather: float) -> Tensor:
    """Give a region (1, 1, R, R) a soft edge by a box filter, applied twice.

    Args:
        region: 0 to 1.
        feather: width of the edge as a share of the side; 0 leaves it hard.
    """
    reach = math.floor(feather * region.shape[-1] / 2)
    if reach < 1:
        return region
    for _ in range(2):
        region = F.pad(region, (reach, reach, reach, reach), mode="replicate")
        region = F.avg_pool2d(region, 2 * reach + 1, stride=1)
    return region


def _draw(part: str, size: int, text: str) -> Tensor:
    centres = (torch.arange(size) + 0.5) / size
    y, x = centres[:, None], centres[None, :]
    kind, _, rest = part.partition(":")
    numbers: list[float] = []
    if kind in ("box", "ellipse"):
        try:
            numbers = [float(number) for number in rest.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers):
            raise OptionError(f"region {text!r}: {part!r} needs four numbers, such as {kind}:0.3:0.6:0.7:0.9")
    ellipses = (tuple(numbers),) if kind == "ellipse" else PARTS.get(part, ())
    box = tuple(numbers) if kind == "box" else HALVES.get(part)
    if box is not None:
        left, top, right, bottom = box
        return ((x >= left) & (x < right) & (y >= top) & (y < bottom)).float()
    if not ellipses:
        close = difflib.get_close_matches(part, NAMES, 1)
        hint = (
            f"did you mean {close[0]!r}?" if close else f"expected {', '.join(NAMES)}, box:... or ellipse:..."
        )
        raise OptionError(f"region {text!r}: cannot read {part!r}; {hint}")
    region = torch.zeros(size, size)
    for cx, cy, rx, ry in ellipses:
        inside = ((x - cx) / max(rx, 1e-6)).square() + ((y - cy) / max(ry, 1e-6)).square() <= 1
        region = torch.maximum(region, inside.float())
    return region
