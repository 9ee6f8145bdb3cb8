"""Evaluation: figures of generators, inversions and styles on pictures that no training has seen, with floor and ceiling.

Names are loaded when first used, so that the options can be read without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.evaluation.data import Portraits, describe
    from limner.evaluation.generation import evaluate_generation
    from limner.evaluation.inversion import evaluate_inversion
    from limner.evaluation.options import EvaluationOptions
    from limner.evaluation.report import Section, write_report
    from limner.evaluation.store import Store
    from limner.evaluation.stylization import evaluate_stylization
    from limner.evaluation.translation import evaluate_translation

_HOMES = {
    "data": ("Portraits", "describe"),
    "generation": ("evaluate_generation",),
    "inversion": ("evaluate_inversion",),
    "options": ("EvaluationOptions",),
    "report": ("Section", "write_report"),
    "store": ("Store",),
    "stylization": ("evaluate_stylization",),
    "translation": ("evaluate_translation",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "EvaluationOptions",
    "Portraits",
    "Section",
    "Store",
    "describe",
    "evaluate_generation",
    "evaluate_inversion",
    "evaluate_stylization",
    "evaluate_translation",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
