"""Translation: sketches, label maps, small, masked, turned and toon pictures to faces.

Names are loaded when first used, so that the options can be read without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.translation.labels import read_labels
    from limner.translation.networks import PspTranslator, TaskNetwork, mix_styles
    from limner.translation.options import TASK_NAMES, TranslateOptions
    from limner.translation.tasks import TASKS, Task, find_task, make_input, mirror_input

_HOMES = {
    "labels": ("read_labels",),
    "networks": ("PspTranslator", "TaskNetwork", "mix_styles"),
    "options": ("TASK_NAMES", "TranslateOptions"),
    "tasks": ("TASKS", "Task", "find_task", "make_input", "mirror_input"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "TASKS",
    "TASK_NAMES",
    "PspTranslator",
    "Task",
    "TaskNetwork",
    "TranslateOptions",
    "find_task",
    "make_input",
    "mirror_input",
    "mix_styles",
    "read_labels",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
