"""The two containers of ``torch.save``: a zip archive, and the older stream of pickles and raw storages.

Storages are views of the mapped file: what is not used is never read.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import IO, Any

import numpy as np
import torch

from limner.checkpoints.pickle_tree import ByteStream, Symbol, find_references, read_tree
from limner.checkpoints.unpickle import STORAGE_DTYPES, Storage, allow, build
from limner.errors import CheckpointError

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_PROTOCOL = 1001


def storage_dtype(symbol: Any) -> torch.dtype | None:
    """Return the dtype that a storage class stands for, None for bytes.

    Raises:
        CheckpointError: not a storage class.
    """
    if not isinstance(symbol, Symbol) or not symbol.name.lstrip("_").endswith("Storage"):
        raise CheckpointError(f"a storage has the class {symbol!r}")
    name = symbol.name.lstrip("_")
    if name in ("UntypedStorage", "TypedStorage"):
        return None
    if name not in STORAGE_DTYPES:
        raise CheckpointError(
            f"a storage has the class {symbol}, expected one of {', '.join(STORAGE_DTYPES)}"
        )
    return STORAGE_DTYPES[name]


def _storage(data: np.ndarray, dtype: torch.dtype | None, count: Any, key: Any) -> Storage:
    wanted = count * (dtype.itemsize if dtype else 1) if isinstance(count, int) else -1
    if wanted < 0 or wanted > data.nbytes:
        raise CheckpointError(
            f"storage {key!r} has {data.nbytes} bytes, expected {wanted}; fetch the file again"
        )
    return Storage(data[:wanted], dtype)


def read_zip_file(file: IO[bytes], data: np.ndarray) -> Any:
    """Read a zip archive written by ``torch.save``.

    Args:
        file: the archive, seekable.
        data: the same bytes as a uint8 array, for tensors to look into.

    Raises:
        UnsafePickleError: its pickle asks for more than tensors; nothing of it was run.
        CheckpointError: damaged, or not such an archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, data)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError, RuntimeError, struct.error) as error:
        raise CheckpointError(
            f"the zip archive is cut off or damaged ({error}); fetch the file again"
        ) from None


def _read_archive(archive: zipfile.ZipFile, data: np.ndarray) -> Any:
    names = {name.split("/", 1)[1]: name for name in archive.namelist() if "/" in name}
    if "data.pkl" not in names:
        raise CheckpointError("the zip archive has no data.pkl: it was not written by torch.save")
    if "constants.pkl" in names:
        raise CheckpointError("this is a compiled TorchScript program; Limner reads weights, not programs")
    if "byteorder" in names and archive.read(names["byteorder"]).strip() != b"little":
        raise CheckpointError("the file was written on a big-endian machine, which is not supported")
    _entry_bytes(archive, archive.getinfo(names["data.pkl"]), data)  # refuses a compressed one, however large
    tree = read_tree(io.BytesIO(archive.read(names["data.pkl"])), allow)
    known: dict[Any, Storage] = {}

    def fetch(key: tuple[Any, ...]) -> Storage:
        _, symbol, name, _, count, *_ = key
        if (name, symbol) not in known:
            entry = names.get(f"data/{name}")
            if entry is None:
                raise CheckpointError(f"the zip archive lacks storage {name!r}; fetch the file again")
            contents = _entry_bytes(archive, archive.getinfo(entry), data)
            known[name, symbol] = _storage(contents, storage_dtype(symbol), count, name)
        return known[name, symbol]

    return build(tree, fetch)


def _entry_bytes(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, data: np.ndarray) -> np.ndarray:
    """Return an entry's contents, without a copy where it is stored uncompressed."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise CheckpointError(f"{entry.filename} is compressed or encrypted, which torch.save never does")
    header = data[entry.header_offset : entry.header_offset + 30].tobytes()
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{entry.filename} is not where the zip directory says; fetch the file again")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    contents = data[start : start + entry.file_size]
    if contents.nbytes != entry.file_size:
        raise CheckpointError(f"{entry.filename} is cut off; fetch the file again")
    return contents


def is_stream_file(first: Any) -> bool:
    """Say whether a file's first pickle is the mark of the older format."""
    return isinstance(first, int) and first == STREAM_MAGIC


def read_stream_file(stream: ByteStream, data: np.ndarray) -> Any:
    """Read the format of ``torch.save`` before PyTorch 1.6.

    Args:
        stream: stands at the start of the file.
        data: the same bytes as a uint8 array.

    Raises:
        UnsafePickleError: a pickle asks for more than tensors; nothing of it was run.
        CheckpointError: damaged, or not such a file.
    """
    magic, protocol, system = (read_tree(stream, allow) for _ in range(3))
    if not is_stream_file(magic) or protocol != STREAM_PROTOCOL or not isinstance(system, dict):
        raise CheckpointError("this is not a file of torch.save, neither the new nor the old format")
    if system.get("little_endian") is False:
        raise CheckpointError("the file was written on a big-endian machine, which is not supported")
    tree, keys = read_tree(stream, allow), read_tree(stream, allow)
    sizes = _storage_sizes(tree)
    # Behind the pickles: for every key the number of elements (int64), then the elements.
    position, regions = stream.tell(), {}
    for key in keys if isinstance(keys, list) else ():
        if key not in sizes:
            raise CheckpointError(f"storage {key!r} belongs to no tensor; fetch the file again")
        count, dtype = sizes[key]
        (stored,) = struct.unpack("<q", data[position : position + 8].tobytes().ljust(8, b"\xff"))
        if stored != count:
            raise CheckpointError(
                f"storage {key!r} has {stored} elements, expected {count}; fetch the file again"
            )
        start = position + 8
        position = start + count * (dtype.itemsize if dtype else 1)
        regions[key] = _storage(data[start:position], dtype, count, key)

    def fetch(key: tuple[Any, ...]) -> Storage:
        name, view = key[2], key[5] if len(key) > 5 else None
        if name not in regions:
            raise CheckpointError(f"the file lacks storage {name!r}; fetch it again")
        whole: Storage = regions[name]
        if view is None:
            return whole
        item = whole.dtype.itemsize if whole.dtype else 1
        _, offset, size = view
        return _storage(whole.data[offset * item :], whole.dtype, size, name)

    return build(tree, fetch)


def _storage_sizes(tree: Any) -> dict[Any, tuple[int, torch.dtype | None]]:
    """Return storage key -> (elements, dtype) for every storage that a tree refers to."""
    sizes: dict[Any, tuple[int, torch.dtype | None]] = {}
    for key in find_references(tree):
        if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage":
            continue
        _, symbol, name, _, count, *_ = key
        if not isinstance(name, str) or not isinstance(count, int) or count < 0:
            raise CheckpointError(f"a storage has the key {name!r} and {count!r} elements")
        sizes[name] = (count, storage_dtype(symbol))
    return sizes
