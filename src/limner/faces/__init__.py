"""Faces out of photos and back: detection, FFHQ alignment, paste-back.

Names are loaded when first used, so that the options can be read without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.faces.align import Alignment, align_face, crop_face, find_alignments, whole_picture
    from limner.faces.detect import Detector, Face, MtcnnDetector, choose_faces, detect_faces
    from limner.faces.options import AlignOptions, DetectOptions, PasteOptions, ReadOptions
    from limner.faces.paste import paste_face, paste_faces

_HOMES = {
    "align": ("Alignment", "align_face", "crop_face", "find_alignments", "whole_picture"),
    "detect": ("Detector", "Face", "MtcnnDetector", "choose_faces", "detect_faces"),
    "options": ("AlignOptions", "DetectOptions", "PasteOptions", "ReadOptions"),
    "paste": ("paste_face", "paste_faces"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AlignOptions",
    "Alignment",
    "DetectOptions",
    "Detector",
    "Face",
    "MtcnnDetector",
    "PasteOptions",
    "ReadOptions",
    "align_face",
    "choose_faces",
    "crop_face",
    "detect_faces",
    "find_alignments",
    "paste_face",
    "paste_faces",
    "whole_picture",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
