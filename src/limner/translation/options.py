"""Options of translation (imports no torch)."""

from __future__ import annotations

import dataclasses

from limner.errors import OptionError
from limner.faces.options import AlignOptions, DetectOptions
from limner.options import knob

TASK_NAMES = ("sketch", "labels", "super-resolution", "inpaint", "frontal", "toon")
SCHEME_NAMES = ("auto", "limner", "celeba")


@dataclasses.dataclass(frozen=True)
class TranslateOptions(DetectOptions, AlignOptions):
    """What pictures are translated from, and into how many faces."""

    task: str = knob("", choices=("", *TASK_NAMES))
    """what the input is: sketch, labels, super-resolution (a small picture), inpaint (parts are missing), frontal (a
    turned face) or toon (a toon picture; with pSp's toonify a photo, which becomes a toon); a pSp checkpoint says it
    itself"""
    from_photo: bool = False
    """the input is a photo: find and align its faces, and make the sketch, the small picture or the missing parts of them"""
    factor: int = knob(8, lo=1, hi=64)
    """super-resolution from a photo: how much smaller the face is made"""
    composite: bool = True
    """inpaint: keep the pixels that are not missing as they are"""
    outputs: int = knob(1, lo=1, hi=100)
    """how many faces; of several, the first is the network's own and the others take the layers of mix from random faces"""
    mix: str = ""
    """layers that come from random faces, such as 8-11, fine or 64px-; with one output, it takes them where this is given;
    with several, the default is rows 8 and up, pSp's 8-17 at 1024 px and the same resolutions in smaller models, or the upper
    half where there are no more than 8 rows"""
    alpha: float = knob(1.0, lo=0.0, hi=1.0, step=0.05)
    """how much of these layers comes from the random face"""
    psi: float = knob(1.0, lo=0.0, hi=2.0)
    """truncation of the random faces: 0 is the mean face, 1 the full variety"""
    seed: int = knob(0, lo=0, hi=2**31 - 1)
    """seed of the random faces, and of the missing parts made by from_photo"""
    detail: bool = True
    """finish faces with the layers that were grown above the generator's resolution, where there are such (256 px with
    the bundled models)"""
    size: int = knob(512, lo=16, hi=4096)
    """side in px of the faces that are written"""
    paste: bool = False
    """put the faces back into the photo: super-resolution, inpaint, sketch from a photo, photo to toon"""
    paste_shape: str = knob("soft-square", choices=("soft-square", "ellipse"))
    """with paste: the part that is put back, nearly the whole crop or an ellipse (the head)"""
    color_match: str = knob("none", choices=("none", "lab", "linear"))
    """with paste: shift the face's colours towards the photo's near the seam: mean and spread in Lab, in linear RGB, or not
    at all"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_photo and self.task == "labels":
            raise OptionError(
                "labels: a label map cannot be made of a photo; name a label map, without from_photo"
            )
