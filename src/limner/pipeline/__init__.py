"""Whole jobs: from a photo to the restyled photo, from pictures to a style.

Names are loaded when first used, so that the options can be read without importing torch.  A package rather than
one module for that reason alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.pipeline.kept import stylize_kept
    from limner.pipeline.models import Models, load_models
    from limner.pipeline.options import LearnOptions, StylizeOptions
    from limner.pipeline.photos import (
        FaceResult,
        LearnResult,
        PipelineStep,
        StylizeResult,
        compare_sheet,
        learn_style,
        stylize,
    )
    from limner.pipeline.translation import (
        TranslateResult,
        TranslationModels,
        load_translation_models,
        translate,
    )

_HOMES = {
    "kept": ("stylize_kept",),
    "models": ("Models", "load_models"),
    "options": ("LearnOptions", "StylizeOptions"),
    "photos": (
        "FaceResult",
        "LearnResult",
        "PipelineStep",
        "StylizeResult",
        "compare_sheet",
        "learn_style",
        "stylize",
    ),
    "translation": ("TranslateResult", "TranslationModels", "load_translation_models", "translate"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "FaceResult",
    "LearnOptions",
    "LearnResult",
    "Models",
    "PipelineStep",
    "StylizeOptions",
    "StylizeResult",
    "TranslateResult",
    "TranslationModels",
    "compare_sheet",
    "learn_style",
    "load_models",
    "load_translation_models",
    "stylize",
    "stylize_kept",
    "translate",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
