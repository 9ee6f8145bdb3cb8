"""Open a model file, whatever container it is in, as plain values and tensors."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from limner.checkpoints.torch_files import is_stream_file, read_stream_file, read_zip_file
from limner.checkpoints.unpickle import read_object_array, read_pickle
from limner.errors import CheckpointError, UnknownFormatError, UnsafePickleError
from limner.files import replacing

PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".tar", ".bin", ".ckpt"})
NUMPY_MAGIC = b"\x93NUMPY"
NOT_MODELS = (
    (b"<", "a web page; the download link probably led to a log-in or quota page"),
    (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull` to get the file itself"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89HDF", "an HDF5 file, which Limner cannot read"),
    (b"{", "a JSON file"),
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model file's contents.

    Args:
        path: where it was read.
        container: ``safetensors``, ``torch``, ``pickle`` or ``numpy``.
        state: what it holds: dictionaries, lists, tensors, arrays, `unpickle.Foreign` records.
        metadata: the text entries of a safetensors file.
    """

    path: Path
    container: str
    state: Any
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


def open_source(path: str | os.PathLike[str]) -> Source:
    """Read a model file.  Tensors are views of the mapped file: what is not used is not read.

    Raises:
        CheckpointError: no such file, a directory, unreadable or damaged.
        UnknownFormatError: empty, or not a container that model files come in.
        UnsafePickleError: its pickle tries to do more than build arrays; nothing of it was run.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise CheckpointError(f"{path} is a directory, expected a model file")
        head = path.read_bytes()[:64] if size < 64 else _read_head(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist{_close_names(path)}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if not size:
        raise UnknownFormatError(f"{path} is empty (0 bytes); fetch the file again")
    try:
        return _open_container(path, head)
    except UnknownFormatError:
        raise
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from None


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _close_names(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"; neither does the folder {path.parent}" if not path.parent.exists() else ""
    close = difflib.get_close_matches(path.name, names, 1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _open_container(path: Path, head: bytes) -> Source:
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        with path.open("rb") as file:
            return Source(path, "torch", read_zip_file(file, np.memmap(path, np.uint8, "c")))
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return _open_safetensors(path)
    if head[:6] == NUMPY_MAGIC:
        return Source(path, "numpy", _read_numpy(path))
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return _open_pickle(path)
    for start, what in NOT_MODELS:
        if head.lstrip().startswith(start):
            raise UnknownFormatError(f"{path} is not a model file but {what}")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        # Pickles of protocol 0 and 1 have no mark of their own.
        with contextlib.suppress(_PlainlyBroken):
            return _open_old_pickle(path)
    raise UnknownFormatError(
        f"{path} begins with {head[:8]!r}, "
        "expected a zip archive or stream of torch.save, a pickle or safetensors"
    )


class _PlainlyBroken(Exception):
    """What looked as if it might be a pickle is none."""


def _open_old_pickle(path: Path) -> Source:
    try:
        return _open_pickle(path)
    except UnsafePickleError:
        raise
    except CheckpointError:
        raise _PlainlyBroken from None


def _open_pickle(path: Path) -> Source:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        first = read_pickle(stream)
        if not is_stream_file(first):
            return Source(path, "pickle", first)
        stream.seek(0)
        return Source(path, "torch", read_stream_file(stream, np.memmap(path, np.uint8, "c")))


def _read_numpy(path: Path) -> Any:
    """Read a ``.npy`` file; one that keeps an object, such as a dictionary of codes, is read as data."""
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise CheckpointError(f"version {version} of the numpy format is not known")
            shape, _, dtype = read[version](file)
            if not dtype.hasobject:
                file.seek(0)
                return np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise CheckpointError(f"the numpy file is cut off or damaged ({error}); fetch it again") from None
        if shape != ():
            raise CheckpointError(f"an array {shape} of Python objects; expected numbers or one dictionary")
        return read_object_array(io.BytesIO(file.read()))


def _open_safetensors(path: Path) -> Source:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return Source(path, "safetensors", tensors, dict(file.metadata() or {}))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"the safetensors file is cut off or damaged ({error}); fetch it again"
        ) from None


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that takes its place once everything has been written.

    Raises:
        CheckpointError: the folder does not exist or cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory, expected a file name to write to")
    try:
        with replacing(path, sync=True) as temporary:
            yield temporary
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
