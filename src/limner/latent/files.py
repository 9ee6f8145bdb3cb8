"""Latent files: native safetensors, and the arrays that other programs write.

Native: tensors ``latent`` (in s space ``latent.00``, ``latent.01`` ...) and, where the noise was fitted too,
``noise.00`` ...; where the generator was tuned ``delta.NAME`` per changed tensor, as `limner.nn.tuned` stores
it.  The metadata entry ``limner`` is JSON with ``version``, ``kind: latent``, ``space`` and whatever the writer adds
(options, report, provenance).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from limner.errors import CheckpointError, KeyMismatchError, OptionError, ShapeError, UnknownFormatError
from limner.files import replacing
from limner.latent.spaces import SPACES, Latent, Space

VERSION = 1
DELTA = "delta."
# Names under which other programs keep codes in .npz, best first.
NPZ_KEYS = ("w", "latents", "latent", "w_plus", "w+", "codes")


@dataclass(frozen=True, eq=False)
class LatentFile:
    """What a latent file holds.

    Attributes:
        latent: the codes.
        noise: fitted noise maps, one (B, 1, h, w) per layer, or None.
        delta: change of the generator, as it was stored (`limner.nn.deltas.reconstruct` opens it), or None.
        metadata: the writer's notes.
    """

    latent: Latent
    noise: list[Tensor] | None = None
    delta: dict[str, Tensor] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def save_latent(
    path: str | Path,
    latent: Latent,
    *,
    noise: Sequence[Tensor] | None = None,
    delta: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write codes as safetensors; the file appears whole or not at all.

    Args:
        path: the file; ``.safetensors`` is the usual ending.
        latent: the codes.
        noise: fitted noise maps, one per layer.
        delta: change of the generator, as it shall be stored.
        metadata: JSON values to keep beside the codes.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    several = latent.space == "s"
    tensors = {f"latent.{i:02d}" if several else "latent": part for i, part in enumerate(latent.parts)}
    tensors |= {f"noise.{i:02d}": part for i, part in enumerate(noise or ())}
    tensors |= {f"{DELTA}{name}": value for name, value in (delta or {}).items()}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    notes = {**(metadata or {}), "version": VERSION, "kind": "latent", "space": latent.space}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"limner": json.dumps(notes)}))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def load_latent(path: str | Path, *, space: Space | None = None) -> LatentFile:
    """Read codes: native ``.safetensors``, other programs' ``.npz`` and ``.npy``.

    Args:
        path: the file.
        space: the space of a plain array, which its file does not tell.  Without it (N, L, D) and (L, D) are taken
            for w+, (1, D) and (D,) for w.

    Raises:
        UnknownFormatError: neither safetensors nor a numpy file.
        KeyMismatchError: a file without codes, or with several arrays none of which has a known name.
        CheckpointError: no such file, a broken one, or one that holds pickled objects.
        ShapeError: an array that cannot be codes.
        OptionError: ``space`` contradicts the file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with path.open("rb") as stream:
        head = stream.read(9)
    if head[:6] == b"\x93NUMPY":
        return LatentFile(_as_latent(_read_numpy(path), space, path))
    if head[:2] == b"PK" and path.suffix == ".npz":
        return LatentFile(_as_latent(_read_npz(path), space, path))
    if head[8:9] == b"{":
        return _read_native(path, space)
    hint = (
        "; PyTorch files are read by limner.checkpoints.latents.load_latent"
        if head[:2] == b"PK" or head[:1] == b"\x80"
        else ""
    )
    raise UnknownFormatError(f"{path} is no latent file; known are .safetensors, .npz and .npy{hint}")


def _read_native(path: Path, space: Space | None) -> LatentFile:
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get("limner", "{}"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    if not isinstance(notes, dict) or notes.get("kind") != "latent":
        kind = notes.get("kind") if isinstance(notes, dict) else None
        raise KeyMismatchError(f"{path} is no latent file" + (f" but a {kind}" if kind else ""))
    if notes.get("version", 0) > VERSION:
        raise CheckpointError(
            f"{path} was written by a newer Limner (version {notes['version']}, known {VERSION})"
        )
    stored = notes.get("space")
    if stored not in SPACES:
        raise KeyMismatchError(f"{path} names the space {stored!r}, expected one of {', '.join(SPACES)}")
    if space is not None and space != stored:
        raise OptionError(f"{path} holds codes in {stored}, not in {space}")
    codes = [value for name, value in tensors.items() if name == "latent" or name.startswith("latent.")]
    noise = [value for name, value in tensors.items() if name.startswith("noise.")]
    delta = {name.removeprefix(DELTA): value for name, value in tensors.items() if name.startswith(DELTA)}
    if not codes:
        raise KeyMismatchError(f"{path} has no tensor 'latent'; it has {', '.join(tensors) or 'none'}")
    notes = {key: value for key, value in notes.items() if key not in ("version", "kind", "space")}
    return LatentFile(
        Latent(stored, tuple(codes) if stored == "s" else codes[0]), noise or None, delta or None, notes
    )


def _read_numpy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            return np.load(stream, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _numpy_error(path, error) from None


def _read_npz(path: Path) -> np.ndarray:
    try:
        # numpy leaves the file open when it cannot read it.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            names = list(archive)
            name = next((key for key in NPZ_KEYS if key in names), names[0] if len(names) == 1 else None)
            if name is None:
                raise KeyMismatchError(
                    f"{path} has the arrays {', '.join(names) or 'none'}; expected one, or one called "
                    f"{', '.join(NPZ_KEYS)}"
                )
            return archive[name]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise _numpy_error(path, error) from None


def _numpy_error(path: Path, error: Exception) -> CheckpointError:
    if "allow_pickle" in str(error):
        return CheckpointError(
            f"{path} holds pickled Python objects (a dict of codes, as DualStyleGAN and ReStyle write), which Limner "
            "does not run; limner.checkpoints.latents reads them as data, or save each code as a plain array with "
            "numpy.save"
        )
    return CheckpointError(f"{path} is damaged: {error}")


def _as_latent(array: np.ndarray, space: Space | None, path: Path) -> Latent:
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise ShapeError(f"{path} holds an array of {array.dtype} and shape {array.shape}, expected codes")
    values = torch.from_numpy(np.ascontiguousarray(array)).float()
    if space == "s":
        raise OptionError(f"{path} is one array; s-space codes are several and come in .safetensors files")
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
        raise ShapeError(f"{path}: {error}") from None
