"""Editing: what embedded faces are for.  Morph, style mixing and transfer, expression transfer, crossover, inpainting.

Every method works on `Portrait` objects: codes of any space, with the noise maps and the change of the generator that
an inversion found, so that edits survive pivotal tuning.  Importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from limner.editing.options import (
    CrossoverOptions,
    DirectionOptions,
    ExpressionOptions,
    InpaintOptions,
    MixOptions,
    MorphOptions,
    TransferOptions,
)

if TYPE_CHECKING:
    from limner.editing.directions import Direction, load_directions, move, save_directions
    from limner.editing.discover import factorize, find_boundary, find_components
    from limner.editing.expression import drive_expression, transfer_expression
    from limner.editing.mix import Morph, mix_sheet, mix_styles, morph
    from limner.editing.portrait import Portrait, blend, paint, paint_inside
    from limner.editing.region import make_region
    from limner.editing.repaint import Repainted, crossover, fill, inpaint
    from limner.editing.transfer import style_distance, transfer_style

# Name -> "module:function" in this package.
METHODS: dict[str, str] = {
    "morph": "mix:morph",
    "mix": "mix:mix_styles",
    "transfer": "transfer:transfer_style",
    "expression": "expression:transfer_expression",
    "crossover": "repaint:crossover",
    "inpaint": "repaint:inpaint",
    "direction": "directions:move",
}

_HOMES = {
    "directions": ("Direction", "load_directions", "move", "save_directions"),
    "discover": ("factorize", "find_boundary", "find_components"),
    "expression": ("drive_expression", "transfer_expression"),
    "mix": ("Morph", "mix_sheet", "mix_styles", "morph"),
    "portrait": ("Portrait", "blend", "paint", "paint_inside"),
    "region": ("make_region",),
    "repaint": ("Repainted", "crossover", "fill", "inpaint"),
    "transfer": ("style_distance", "transfer_style"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "CrossoverOptions",
    "Direction",
    "DirectionOptions",
    "ExpressionOptions",
    "InpaintOptions",
    "MixOptions",
    "Morph",
    "MorphOptions",
    "Portrait",
    "Repainted",
    "TransferOptions",
    "blend",
    "crossover",
    "drive_expression",
    "factorize",
    "fill",
    "find_boundary",
    "find_components",
    "inpaint",
    "load_directions",
    "make_region",
    "mix_sheet",
    "mix_styles",
    "morph",
    "move",
    "paint",
    "paint_inside",
    "save_directions",
    "style_distance",
    "transfer_expression",
    "transfer_style",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
