"""Stylisation: learned styles, and the ways to learn them.

Importing this package imports no torch; names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.stylization.jojogan import LearningStep, learn
    from limner.stylization.options import JojoganOptions, StyleOptions
    from limner.stylization.style import Style, load_style, paint, save_style

# Name -> "module:function" in this package that learns a style.
METHODS: dict[str, str] = {"jojogan": "jojogan:learn"}

_HOMES = {
    "jojogan": ("LearningStep", "learn"),
    "options": ("JojoganOptions", "StyleOptions"),
    "style": ("Style", "load_style", "paint", "save_style"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "JojoganOptions",
    "LearningStep",
    "Style",
    "StyleOptions",
    "learn",
    "load_style",
    "paint",
    "save_style",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
