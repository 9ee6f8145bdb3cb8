"""An OpenGL context without a window: a GPU, or Mesa's software renderer."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from limner.errors import MissingExtraError

APT_PACKAGES = "libegl1 libgl1 libgl1-mesa-dri"


def open_context() -> Any:
    """Return an OpenGL context without a window.

    Raises:
        MissingExtraError: moderngl or the system's EGL is not installed.
    """
    moderngl = import_moderngl()
    try:
        return moderngl.create_context(standalone=True, backend="egl", require=330)
    except Exception as error:  # moderngl and glcontext raise plain Exception, ctypes OSError
        raise MissingExtraError(
            f"no OpenGL context through EGL ({' '.join(str(error).split()) or type(error).__name__}); on Debian and "
            f"Ubuntu: apt-get install {APT_PACKAGES}"
        ) from error


def import_moderngl() -> ModuleType:
    """Return the package moderngl.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("moderngl")
    except ImportError as error:
        raise MissingExtraError(
            f"rendering heads needs the package moderngl: pip install 'limner[synth]' ({error})"
        ) from error
