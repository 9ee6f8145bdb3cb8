"""Latent files of other programs, ``.pt`` and pickled ``.npy``, read as data; nothing in them is run.

=======================  ==================================================  =====
written by               contents                                            space
=======================  ==================================================  =====
e4e (``latents.pt``)     tensor (N, 18, 512)                                 w+
PTI (``0.pt``)           tensor (1, 18, 512), or (1, 512)                    w+, w
rosinality's projector   picture -> ``latent``, ``noise`` (list), ``img``    w, w+
JoJoGAN's projection     ``latent`` (18, 512) or (1, 18, 512)                w+
ReStyle (``.npy``)       picture -> list of codes (18, 512), one per pass    w+
DualStyleGAN (``.npy``)  picture -> code (1, 18, 512)                        z+
=======================  ==================================================  =====
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.checkpoints.checkpoint import PathLike
from limner.checkpoints.source import Source, open_source
from limner.errors import KeyMismatchError, OptionError, ShapeError
from limner.latent import Latent, LatentFile, Space
from limner.latent import load_latent as load_plain

CODE, NOISE = "latent", "noise"
CODE_NAMES = (CODE, "w", "latents", "w_plus", "w_pivot")


def load_latent(path: PathLike, *, space: Space | None = None, name: str | None = None) -> LatentFile:
    """Read codes from any file that `limner.latent.load_latent` reads, and from the files of other programs.

    A file with codes of several pictures gives all of them, in its order; ``metadata["names"]`` has their names.  Of
    ReStyle's passes the last one is taken.

    Args:
        path: the file.
        space: the space of the codes, where the file does not tell.
        name: only the codes of this picture: its name in the file, or the end of the path that stands there.

    Raises:
        UnsafePickleError: the file tries to do more than build arrays; nothing of it was run.
        KeyMismatchError: it holds no codes, none of that name, or codes of different shapes.
        CheckpointError, UnknownFormatError: damaged, or none of these files.
        ShapeError: a tensor that cannot be codes.
        OptionError: the space contradicts the codes.
    """
    path = Path(path)
    if not path.is_file() or path.suffix == ".npz" or _head(path)[8:9] == b"{":
        return _named(load_plain(path, space=space), name)
    source = open_source(path)
    if source.container == "numpy" and isinstance(source.state, np.ndarray):
        return _named(load_plain(path, space=space), name)
    entries = _entries(source)
    if name is not None:
        entries = {key: value for key, value in entries.items() if key == name or key.endswith(f"/{name}")}
        if not entries:
            raise KeyMismatchError(f"{path} has no codes called {name!r}")
    files = [
        _read_entry(value, space, f"{path}: {key}" if key else str(path)) for key, value in entries.items()
    ]
    shapes = {(file.latent.space, *(tuple(part.shape[1:]) for part in file.latent.parts)) for file in files}
    noisy = {tuple(tuple(values.shape[1:]) for values in file.noise or ()) for file in files}
    if len(shapes) > 1 or len(noisy) > 1:
        raise KeyMismatchError(
            f"{path} holds codes or noise maps of different shapes; name one of {list(entries)}"
        )
    noise = [torch.cat(maps) for maps in zip(*(file.noise or () for file in files), strict=True)]
    metadata = {"names": list(entries), "format": source.container} if any(entries) else {}
    return LatentFile(Latent.cat([file.latent for file in files]), noise or None, None, metadata)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(9)


def _named(file: LatentFile, name: str | None) -> LatentFile:
    if name is not None:
        raise OptionError(f"the file's codes have no names, but {name!r} was asked for")
    return file


def _entries(source: Source) -> dict[str, Any]:
    """Return name -> what the file holds for it; a single code has the empty name."""
    state = source.state
    if isinstance(state, Mapping) and not any(key in state for key in CODE_NAMES):
        if not state:
            raise KeyMismatchError(f"{source.path} holds an empty dictionary, expected codes")
        return {str(key): value for key, value in state.items()}
    return {"": state}


def _read_entry(value: Any, space: Space | None, where: str) -> LatentFile:
    if isinstance(value, Mapping):
        found = next((key for key in CODE_NAMES if key in value), None)
        if found is None:
            names = ", ".join(map(str, list(value)[:5]))
            raise KeyMismatchError(
                f"{where} has {names or 'nothing'}, expected one of {', '.join(CODE_NAMES)}"
            )
        noise = (
            [_noise(x, where) for x in value.get(NOISE, ())]
            if isinstance(value.get(NOISE), (list, tuple))
            else []
        )
        return LatentFile(_latent(value[found], space or None, where), noise or None)
    if isinstance(value, (list, tuple)) and value:
        return LatentFile(_latent(value[-1], space or "w+", where))
    # A bare array for every picture is how DualStyleGAN keeps its z+ codes.
    bare: Space | None = "z+" if isinstance(value, np.ndarray) and space is None else space
    return LatentFile(_latent(value, bare, where))


def _tensor(value: Any, where: str) -> Tensor:
    numeric = isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    found: Any = torch.from_numpy(np.ascontiguousarray(value)) if numeric else value
    if not isinstance(found, Tensor) or not found.numel():
        raise KeyMismatchError(f"{where} holds {type(value).__name__}, expected codes")
    if found.is_complex() or found.dtype == torch.bool:
        raise ShapeError(f"{where} holds {found.dtype}, expected real numbers")
    return found.detach().to(torch.float32, copy=True)


def _noise(value: Any, where: str) -> Tensor:
    values = _tensor(value, where)
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or values.shape[1] != 1:
        raise ShapeError(f"{where} has a noise map of shape {tuple(values.shape)}, expected (B, 1, h, w)")
    return values


def _latent(value: Any, space: Space | None, where: str) -> Latent:
    values = _tensor(value, where)
    if space == "s":
        raise OptionError(f"{where} is one array; s-space codes are several and come in .safetensors files")
    if values.ndim == 1:
        values = values[None]
    if space is None:
        space = "w" if values.ndim == 2 and len(values) == 1 else "w+"
    if space in ("w+", "z+") and values.ndim == 2:
        values = values[None]
    if space in ("w", "z") and values.ndim == 3 and values.shape[1] == 1:
        values = values[:, 0]
    try:
        return Latent(space, values)
    except ShapeError as error:
        raise ShapeError(f"{where}: {error}") from None
