"""Pictures of the Image2StyleGAN study: faces, faces that are moved or damaged, and pictures that show none."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from limner import media
from limner.editing.region import make_region
from limner.errors import MissingExtraError, OptionError
from limner.evaluation.data import Portraits, crop_photo
from limner.evaluation.study_options import StudyOptions
from limner.faces import Detector

FACES, OTHERS = "faces", "others"
# Name -> (shift right as a share of the side, turn counter-clockwise in degrees, magnification): table 1 of the paper,
# whose shifts are 140 and 160 px of 1024.
MOVES: dict[str, tuple[float, float, float]] = {
    "shifted right 14 %": (140 / 1024, 0, 1),
    "shifted left 16 %": (-160 / 1024, 0, 1),
    "half the size": (0, 0, 0.5),
    "twice the size": (0, 0, 2),
    "turned by 90°": (0, 90, 1),
    "turned by 180°": (0, 180, 1),
}
OTHER = re.compile(r"(?P<kind>[^=]+)=(?P<file>.+?)(@(?P<left>\d+):(?P<top>\d+):(?P<side>\d+))?")
SKIMAGE = "skimage:"


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """Pictures that are embedded together.

    Attributes:
        image: (N, 3, R, R), [-1, 1].
        names: one per picture.
        hole: (1, 1, R, R), 1 where something was blacked out; None where nothing was.
        whole: the pictures before, where something was.
    """

    image: Tensor
    names: tuple[str, ...]
    hole: Tensor | None = None
    whole: Tensor | None = None


def read_targets(
    options: StudyOptions, resolution: int, *, detector: Detector | None = None
) -> dict[str, Targets]:
    """Read and make all pictures that the chosen experiments need, by name.

    Args:
        options: which.
        resolution: of the generator.
        detector: finds the faces of photos.

    Raises:
        OptionError: no portraits are named, or a picture without a face is named in an unknown way.
        MediaError: a file cannot be read.
        FaceNotFoundError: a photo shows no face.
    """
    chosen = options.chosen()
    if options.heads is None or not options.heads.exists():
        where = f"there is nothing at {options.heads}" if options.heads else "none are named"
        raise OptionError(f"heads, the folder or zip of aligned portraits: {where}; name it with --heads")
    portraits = Portraits(options.heads, options.held_out, most=options.faces)
    pixels = [*portraits.pixels(resolution)]
    pixels += [crop_photo(photo, resolution, detector) for photo in options.photos]
    names = (*(Path(name).stem for name in portraits.names), *(photo.stem for photo in options.photos))
    faces = Targets(media.to_image(*pixels), names)
    found = {FACES: faces}
    if "affine" in chosen:
        found |= {
            name: Targets(move_image(faces.image, shift=shift, turn_deg=turn, zoom=zoom), names)
            for name, (shift, turn, zoom) in MOVES.items()
        }
    if "defects" in chosen:
        for text in options.holes:
            hole = (make_region(text, resolution) > 0.5).float()
            found[hole_name(text)] = Targets(
                torch.where(hole > 0, -1.0, faces.image), names, hole, faces.image
            )
    if {"init", "classes"} & set(chosen):
        read = [read_other(text, resolution) for text in options.others]
        found[OTHERS] = Targets(media.to_image(*(one for _, one in read)), tuple(kind for kind, _ in read))
    return found


def hole_name(text: str) -> str:
    """Return how a hole is named in the report."""
    return f"{text.replace(':', ' ')} blacked out"


def move_image(image: Tensor, *, shift: float, turn_deg: float, zoom: float) -> Tensor:
    """Move what a picture shows; what comes in at the edges repeats the edge's pixels.

    Args:
        image: (B, 3, H, H).
        shift: to the right, as a share of the side.
        turn_deg: counter-clockwise as seen, around the middle.
        zoom: magnification around the middle.

    Convention: of PyTorch's sampling grids, x to the right, y down, [-1, 1] from edge to edge (align_corners off).
    """
    angle = math.radians(turn_deg)
    # Where every new pixel comes from: moved back, turned back, shrunk.
    turn = [
        [math.cos(angle) / zoom, -math.sin(angle) / zoom],
        [math.sin(angle) / zoom, math.cos(angle) / zoom],
    ]
    matrix = torch.tensor([[*turn[0], -2 * shift * turn[0][0]], [*turn[1], -2 * shift * turn[1][0]]])
    grid = F.affine_grid(
        matrix.expand(len(image), 2, 3).to(image), list(image.shape), align_corners=False
    )  # (B, H, H, 2)
    if zoom < 1:
        # Shrink with antialiasing first, so that fine detail does not turn into noise.
        small = media.resize_image(image, round(image.shape[2] * zoom), "bilinear")
        image = media.resize_image(small, image.shape[2], "bilinear")
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def read_other(text: str, resolution: int) -> tuple[str, np.ndarray]:
    """Read KIND=FILE[@LEFT:TOP:SIDE]; return the kind and pixels, uint8 (R, R, 3).

    Raises:
        OptionError: written in another way, or the square lies outside the picture.
        MissingExtraError: a picture of scikit-image, which is not installed.
        MediaError: the file cannot be read.
    """
    match = OTHER.fullmatch(text)
    if match is None:
        raise OptionError(f"others has {text!r}, expected KIND=FILE or KIND=FILE@LEFT:TOP:SIDE")
    pixels = _read_pixels(match["file"])
    height, width = pixels.shape[:2]
    if match["side"]:
        left, top, side = int(match["left"]), int(match["top"]), int(match["side"])
    else:
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
    if side < 1 or left + side > width or top + side > height:
        raise OptionError(f"others has {text!r}, but the picture has only {width} x {height} px")
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    return match["kind"], media.resize_pixels(square, resolution)


def _read_pixels(name: str) -> np.ndarray:
    """Return the pixels of a file, or of a picture that scikit-image brings along."""
    if not name.startswith(SKIMAGE):
        return media.read(name).pixels
    try:
        import skimage.data as home
    except ImportError:
        raise MissingExtraError(
            f"{name} needs scikit-image: pip install scikit-image, or name files"
        ) from None
    folder = Path(str(home.__file__)).parent
    files = [folder / f"{name.removeprefix(SKIMAGE)}{suffix}" for suffix in (".png", ".jpg")]
    for file in files:
        if file.is_file():
            return media.read(file).pixels
    raise OptionError(
        f"scikit-image brings no picture {name.removeprefix(SKIMAGE)!r}; there are chelsea, coffee, gravel, ..."
    )
