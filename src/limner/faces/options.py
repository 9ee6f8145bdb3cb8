"""Options of finding faces, cutting them out and putting them back; no torch here."""

from __future__ import annotations

import dataclasses
import math

from limner.errors import OptionError
from limner.options import Options, knob


@dataclasses.dataclass(frozen=True)
class DetectOptions(Options):
    """Which faces are looked for."""

    min_face: float = knob(0.04, lo=0.005, hi=1.0, step=0.005)
    """smallest face that is looked for, as a share of the photo's shorter side; half the share takes about 4 times as long"""
    min_score: float = knob(0.8, lo=0.0, hi=1.0, step=0.01)
    """lowest confidence of a face"""
    quarter_turns: bool = knob(False)
    """where no face is found, look again with the photo turned by 90, 270 and 180 degrees"""


@dataclasses.dataclass(frozen=True)
class AlignOptions(Options):
    """Which faces of a photo are cut out, and how large."""

    size: int = knob(1024, lo=16, hi=4096)
    """side of the aligned face in px"""
    face: str = knob("all")
    """all, largest, or the number of one face, 1 being the largest"""
    landmarks: tuple[float, ...] = knob(())
    """ten numbers x,y,...: left eye, right eye, nose, left and right mouth corner of one face, as seen in the photo, in px; \
    nothing is detected then"""
    aligned: bool = knob(False)
    """the pictures are aligned faces already: take each as a whole"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.landmarks and len(self.landmarks) != 10:
            raise OptionError(f"landmarks has {len(self.landmarks)} numbers, expected 10: x,y of five points")
        if not all(math.isfinite(value) for value in self.landmarks):
            raise OptionError("landmarks must be finite numbers")
        if self.landmarks and self.aligned:
            raise OptionError("landmarks and aligned exclude each other: an aligned face needs no landmarks")
        if self.face not in ("all", "largest") and not (self.face.isdecimal() and int(self.face) >= 1):
            raise OptionError(f"face is {self.face!r}, expected all, largest or a number from 1")


@dataclasses.dataclass(frozen=True)
class PasteOptions(Options):
    """How an aligned face is put back into its photo."""

    mask: str = knob("soft-square", choices=("ellipse", "soft-square"))
    """shape of the part that is pasted: an ellipse (the head) or a square with round corners (nearly the whole crop)"""
    feather: float = knob(0.15, lo=0.0, hi=0.5, step=0.01)
    """width of the soft edge, as a share of the crop's side"""
    color_match: str = knob("lab", choices=("none", "lab", "linear"))
    """shift the face's colours towards the photo's near the seam: mean and spread in Lab, in linear RGB, or not at all"""
    color_strength: float = knob(1.0, lo=0.0, hi=1.0, step=0.05)
    """how far the colours are shifted"""


@dataclasses.dataclass(frozen=True)
class ReadOptions(Options):
    """What may be read."""

    max_megapixels: float | None = knob(None, lo=0.01)
    """largest photo that is opened, in megapixels; left out, the limit of `limner.media`"""
