"""Parts of an evaluation, kept on disk: what was measured once is not measured again until something in it changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limner.errors import MediaError
from limner.files import replacing

VERSION = 1
"""Grows when the meaning of a stored figure changes; older parts are measured again then."""


@dataclass(frozen=True, eq=False)
class Part:
    """What one piece of the work came to.

    Attributes:
        values: plain JSON values.
        tensors: features, pictures, codes.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Store:
    """A folder of parts, each named after what it depends on.

    Args:
        folder: where they lie; None keeps nothing.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.made, self.found = 0, 0

    def part(self, name: str, inputs: Mapping[str, Any], make: Callable[[], Part]) -> Part:
        """Return a part from disk if it was made from the same inputs before, else make and keep it.

        Args:
            name: what it is, for the file's name.
            inputs: all that decides the result: digests of models and data, options, as JSON values.
            make: does the work.

        Raises:
            MediaError: the folder cannot be written.
        """
        if (kept := self.find(name, inputs)) is not None:
            return kept
        return self.keep(name, inputs, make())

    def find(self, name: str, inputs: Mapping[str, Any]) -> Part | None:
        """Return a part that was made before, None where there is none; arguments as `part`."""
        file = self.file(name, inputs)
        kept = None if file is None else _read(file)
        self.found += kept is not None
        return kept

    def keep(self, name: str, inputs: Mapping[str, Any], part: Part) -> Part:
        """Keep a part that was just made, and return it; arguments and errors as `part`."""
        self.made += 1
        if (file := self.file(name, inputs)) is not None:
            _write(file, part)
        return part

    def file(self, name: str, inputs: Mapping[str, Any]) -> Path | None:
        """Return where a part lies or would lie."""
        if self.folder is None:
            return None
        key = hashlib.sha256(json.dumps([VERSION, name, inputs], sort_keys=True, default=str).encode())
        return self.folder / f"{name}-{key.hexdigest()[:16]}.safetensors"


def _read(file: Path) -> Part | None:
    """Return a part, or None where there is none or a damaged one, which is then made anew."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            values = json.loads((opened.metadata() or {})["limner"])
            return Part(values, {name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError):
        return None


def _write(file: Path, part: Part) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in part.tensors.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            save_file(tensors, partial, metadata={"limner": json.dumps(part.values)})
    except OSError as error:
        raise MediaError(f"{file} cannot be written: {error.strerror or error}") from None


def stamp(*arrays: np.ndarray | Tensor) -> str:
    """Return a digest of arrays, such as pictures: their types, shapes and numbers."""
    total = hashlib.sha256()
    for array in arrays:
        values = array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
        total.update(f"{values.dtype}{values.shape};".encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()
