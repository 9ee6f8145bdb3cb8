"""Stylisation: learned styles, and the ways to learn them.

Importing this package imports no torch; names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.stylization.blend_options import BlendOptions
    from limner.stylization.dual import DualStyle, transfer
    from limner.stylization.jojogan import LearningStep, learn
    from limner.stylization.merging import merge
    from limner.stylization.options import DualOptions, JojoganOptions, StyleOptions
    from limner.stylization.style import Style, load_style, paint, save_style

# Name -> "module:function" in this package that makes a style: learns it from pictures, or puts it together.
METHODS: dict[str, str] = {"blend": "blend_style:blend_style", "jojogan": "jojogan:learn"}

_HOMES = {
    "blend_options": ("BlendOptions",),
    "jojogan": ("LearningStep", "learn"),
    "merging": ("merge",),
    "dual": ("DualStyle", "transfer"),
    "options": ("DualOptions", "JojoganOptions", "StyleOptions"),
    "style": ("Style", "load_style", "paint", "save_style"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "BlendOptions",
    "DualOptions",
    "DualStyle",
    "JojoganOptions",
    "LearningStep",
    "Style",
    "StyleOptions",
    "learn",
    "load_style",
    "merge",
    "paint",
    "save_style",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
