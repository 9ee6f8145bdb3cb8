"""Limner: portraits painted with style-based GANs.

Public names are loaded when they are first used, so ``import limner`` stays instant and needs no extras.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` finds, for editors and type checkers
    from limner import errors
    from limner.checkpoints import Checkpoint, inspect, load, save
    from limner.faces import align_face, detect_faces, paste_faces
    from limner.inversion import invert
    from limner.latent import Latent
    from limner.nn.stylegan2 import Discriminator, Generator
    from limner.pipeline import learn_style, load_models, stylize
    from limner.stylization.style import load_style

__version__ = "0.1.0"

_PUBLIC = {
    "Checkpoint": "limner.checkpoints",
    "Discriminator": "limner.nn.stylegan2",
    "Generator": "limner.nn.stylegan2",
    "Latent": "limner.latent",
    "align_face": "limner.faces",
    "detect_faces": "limner.faces",
    "errors": "limner",
    "inspect": "limner.checkpoints",
    "invert": "limner.inversion",
    "learn_style": "limner.pipeline",
    "load": "limner.checkpoints",
    "load_models": "limner.pipeline",
    "load_style": "limner.stylization.style",
    "paste_faces": "limner.faces",
    "save": "limner.checkpoints",
    "stylize": "limner.pipeline",
}

__all__ = [
    "Checkpoint",
    "Discriminator",
    "Generator",
    "Latent",
    "align_face",
    "detect_faces",
    "errors",
    "inspect",
    "invert",
    "learn_style",
    "load",
    "load_models",
    "load_style",
    "paste_faces",
    "save",
    "stylize",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'limner' has no attribute {name!r}")
    if _PUBLIC[name] == __name__:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
