"""Turn pickles and PyTorch files into plain values, arrays and tensors without running anything of theirs.

First `pickle_tree` reads the whole pickle as data and refuses every name outside the allow-list below; then
the few calls that make arrays are carried out by the functions of this module.  Objects of foreign programs
become inert `Foreign` records: class name, arguments and state, no behaviour.

Differs: ``torch.load(weights_only=True)`` is not used.  It refuses the ``argparse.Namespace`` that training
files hold, and in PyTorch up to 2.5 it could be made to run code (CVE-2025-32434).
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.checkpoints.pickle_tree import ByteStream, Call, Reference, Symbol, read_tree
from limner.errors import CheckpointError, UnsafePickleError

MAX_NESTING = 120
"""Deepest nesting of a value; model files stay below 50."""
MAX_REPEATED = 1 << 24
"""Most elements of a tensor that repeats its storage."""

FOREIGN_PACKAGES = frozenset({"dnnlib", "torch_utils", "training", "mmcv", "mmengine", "addict"})
"""Packages of the original programs: their objects become `Foreign` records."""

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
TORCH_DTYPES = {
    name: getattr(torch, name)
    for name in [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    ]
}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """An object of another program, as data.

    Args:
        symbol: its class, or the function that would have made it.
        args: what that would have been called with.
        state: its attributes, or whatever its class would have restored itself from.
    """

    symbol: Symbol
    args: tuple[Any, ...]
    state: Any


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """The bytes that tensors are views of; dtype None for bytes without a type."""

    data: np.ndarray
    dtype: torch.dtype | None


FetchStorage = Callable[[tuple[Any, ...]], Storage]


def allow(symbol: Symbol) -> bool:
    """Say whether a pickle may mention this name."""
    if symbol in BUILDERS or symbol in INERT:
        return True
    package = symbol.module.split(".", 1)[0]
    return package in FOREIGN_PACKAGES or symbol.module.startswith("torch.nn.modules.")


def read_pickle(stream: ByteStream) -> Any:
    """Read one pickle that has no data outside itself.

    Raises:
        UnsafePickleError: it asks for more than arrays; nothing of it was run.
        CheckpointError: it is cut off or broken.
    """
    return build(read_tree(stream, allow))


def read_object_array(stream: ByteStream) -> Any:
    """Read the one object of a numpy array without dimensions, such as a dictionary of arrays.

    Raises:
        UnsafePickleError: it asks for more than arrays; nothing of it was run.
        CheckpointError: it is cut off or broken, or another array of objects.
    """
    tree = read_tree(stream, allow)
    if isinstance(tree, Call) and tree.symbol.name == "_reconstruct" and isinstance(tree.state, tuple):
        shape, contents = tree.state[-4:-3], tree.state[-1:]
        if shape == ((),) and isinstance(contents[0], list) and len(contents[0]) == 1:
            return build(contents[0][0])
    raise CheckpointError("the file holds an array of Python objects; expected one dictionary of codes")


def build(tree: Any, fetch: FetchStorage | None = None) -> Any:
    """Turn a tree from `pickle_tree.read_tree` into values.

    Args:
        tree: the tree.
        fetch: finds the storage of a persistent id of PyTorch; None where there can be none.

    Raises:
        CheckpointError: a call with arguments that make no array.
        UnsafePickleError: an array of Python objects.
    """
    try:
        return _Builder(fetch).build(tree)
    except (
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"the file holds a malformed array ({' '.join(str(error).split())})") from None


class _Builder:
    def __init__(self, fetch: FetchStorage | None) -> None:
        self._fetch = fetch
        self._done: dict[int, Any] = {}
        self._depth = 0

    def build(self, node: Any) -> Any:
        """Return the value of a node; shared nodes give shared values."""
        if not isinstance(node, (dict, list, tuple, set, Call, Reference)):
            return node
        if isinstance(node, Symbol):
            return TORCH_DTYPES.get(node.name, node) if node.module == "torch" else node
        key = id(node)
        if key in self._done:
            return self._done[key]
        if self._depth >= MAX_NESTING:
            raise CheckpointError(
                f"the pickle is nested more than {MAX_NESTING} levels deep; no model file is"
            )
        self._depth += 1
        self._done[key] = value = self._build(node)
        self._depth -= 1
        return value

    def _build(self, node: Any) -> Any:
        if isinstance(node, dict):
            self._done[id(node)] = result = {}
            result.update((key, self.build(value)) for key, value in node.items())
            return result
        if isinstance(node, list):
            self._done[id(node)] = items = []
            items.extend(self.build(item) for item in node)
            return items
        if isinstance(node, tuple):
            return tuple(self.build(item) for item in node)
        if isinstance(node, Reference):
            return self._reference(self.build(node.key))
        return self._call(node) if isinstance(node, Call) else set(node)

    def _reference(self, key: Any) -> Any:
        if not isinstance(key, tuple) or not key or self._fetch is None:
            raise CheckpointError(f"the pickle refers to data outside itself ({str(key)[:60]})")
        if (
            key[0] == "module"
        ):  # whole modules carry (class, source file, source text); the text is never read
            return key[1]
        if key[0] != "storage":
            raise CheckpointError(f"the file refers to {str(key[0])[:60]!r}, expected a storage")
        return self._fetch(key)

    def _call(self, node: Call) -> Any:
        args = self.build(node.args)
        if node.symbol in BUILDERS:
            return BUILDERS[node.symbol](node, args, self)
        if node.symbol in INERT:
            raise UnsafePickleError(
                f"the pickle calls {node.symbol}, which may only be mentioned; nothing of it was run"
            )
        if node.pairs:
            return self.mapping(node)
        if node.elements:
            return [self.build(item) for item in node.elements]
        return {} if node.symbol.name in _DICT_CLASSES else Foreign(node.symbol, args, self.build(node.state))

    def mapping(self, node: Call) -> dict[Any, Any]:
        """Return the items that were put into an object."""
        return {key: self.build(value) for key, value in node.pairs}


_DICT_CLASSES = frozenset({"EasyDict", "ConfigDict", "Dict"})
Build = Callable[[Call, tuple[Any, ...], _Builder], Any]


# Python
def _make_dict(node: Call, args: tuple[Any, ...], builder: _Builder) -> dict[Any, Any]:
    items = dict(args[0]) if args and isinstance(args[0], (dict, list)) else {}
    return items | builder.mapping(node)


def _make_namespace(node: Call, args: tuple[Any, ...], builder: _Builder) -> dict[str, Any]:
    state = builder.build(node.state)
    return dict(state) if isinstance(state, dict) else {}


def _make_set(node: Call, args: tuple[Any, ...], builder: _Builder) -> set[Any]:
    return {
        item for item in (args[0] if args else ()) if isinstance(item, (str, bytes, int, float, type(None)))
    }


def _encode(node: Call, args: tuple[Any, ...], builder: _Builder) -> bytes:
    text, encoding = args if len(args) == 2 else (args[0], "utf-8")
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise CheckpointError(f"the pickle encodes text as {encoding!r}")
    return text.encode(encoding)


def _make_bytes(node: Call, args: tuple[Any, ...], builder: _Builder) -> bytes:
    if args and not isinstance(args[0], (bytes, bytearray)):
        raise TypeError(f"bytes are made from {type(args[0]).__name__}")
    return bytes(args[0]) if args else b""


def _make_path(node: Call, args: tuple[Any, ...], builder: _Builder) -> str:
    return "/".join(str(part) for part in args)


def _reconstruct_object(node: Call, args: tuple[Any, ...], builder: _Builder) -> Any:
    symbol, state = args[0], builder.build(node.state)
    if not isinstance(symbol, Symbol):
        raise TypeError("an object without a class")
    if symbol == Symbol("argparse", "Namespace"):
        return dict(state or {})
    return builder.mapping(node) if node.pairs else Foreign(symbol, (), state)


# numpy
def _make_dtype(node: Call, args: tuple[Any, ...], builder: _Builder) -> np.dtype:
    name = args[0]
    if not isinstance(name, str) or name[:1] in ("O", "V", "M", "m"):
        raise UnsafePickleError(
            f"the pickle holds an array of Python objects ({name!r}); nothing of it was run"
        )
    dtype = np.dtype(name)
    state = builder.build(node.state)
    if dtype.kind not in "biufcSU":
        raise UnsafePickleError(
            f"the pickle holds an array of {dtype}, expected numbers; nothing of it was run"
        )
    return dtype.newbyteorder(">") if state and state[1] == ">" else dtype


def _raw(data: Any) -> bytes:
    """Return the bytes of an array; Python 2 kept them in a str."""
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise UnsafePickleError(f"an array is filled from a {type(data).__name__}; nothing of it was run")
    return bytes(data)


def _array(dtype: Any, shape: Any, data: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, np.dtype):
        raise TypeError("an array without a dtype")
    shape = tuple(int(size) for size in (shape if isinstance(shape, (tuple, list)) else (shape,)))
    data = _raw(data)
    if min(shape, default=0) < 0 or len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes cannot fill an array {shape} of {dtype}")
    values = np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")
    return np.array(values, dtype=dtype.newbyteorder("="), order="C")


def _reconstruct_array(node: Call, args: tuple[Any, ...], builder: _Builder) -> np.ndarray:
    state = builder.build(node.state)
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise ValueError("an array without contents")
    shape, dtype, fortran, data = state[-4:]
    return _array(dtype, shape, data, "F" if fortran else "C")


def _array_from_buffer(node: Call, args: tuple[Any, ...], builder: _Builder) -> np.ndarray:
    data, dtype, shape, order = args
    return _array(dtype, shape, data, order)


def _scalar(node: Call, args: tuple[Any, ...], builder: _Builder) -> Any:
    dtype, *data = args
    return _array(dtype, (), data[0] if data else bytes(dtype.itemsize), "C").item()


# PyTorch
def _rebuild_tensor(node: Call, args: tuple[Any, ...], builder: _Builder) -> Tensor:
    storage, offset, size, stride = args[:4]
    dtype = args[6] if node.symbol.name == "_rebuild_tensor_v3" else None
    if not isinstance(storage, Storage):
        raise TypeError(f"a tensor is built on a {type(storage).__name__}")
    return view_storage(storage, offset, tuple(size), tuple(stride), dtype)


def view_storage(
    storage: Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return a tensor that looks into a storage, after checking that it stays inside."""
    kind = storage.dtype if dtype is None else dtype
    kind = torch.uint8 if kind is None else kind
    length = storage.data.nbytes // kind.itemsize
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"a tensor of size {size} and stride {stride} at {offset}")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count == 0:
        return torch.empty(size, dtype=kind)
    if last >= length:
        raise ValueError(f"a tensor reads element {last} of {length}")
    if count > max(length, MAX_REPEATED):
        raise ValueError(f"a tensor of {count} elements is made from {length}")
    data = storage.data[: length * kind.itemsize]
    if not data.flags.writeable or data.ctypes.data % kind.itemsize:
        data = data.copy()
    return torch.from_numpy(data).view(kind).as_strided(size, stride, offset)


def _rebuild_parameter(node: Call, args: tuple[Any, ...], builder: _Builder) -> Tensor:
    if not isinstance(args[0], Tensor):
        raise TypeError(f"a parameter is made from a {type(args[0]).__name__}")
    return args[0]


def _rebuild_from_type(node: Call, args: tuple[Any, ...], builder: _Builder) -> Tensor:
    function, _, inner, *_ = args
    if function not in _TENSOR_FUNCTIONS:
        raise CheckpointError(f"a tensor is made by {function}, which is not supported")
    return _TENSOR_FUNCTIONS[function](Call(function, inner), inner, builder)


def _load_from_bytes(node: Call, args: tuple[Any, ...], builder: _Builder) -> Any:
    from limner.checkpoints.torch_files import read_stream_file, read_zip_file

    data = np.frombuffer(_raw(args[0]), np.uint8).copy()
    return (read_zip_file if data[:4].tobytes() == b"PK\x03\x04" else read_stream_file)(
        io.BytesIO(data.data), data
    )


def _make_tuple(node: Call, args: tuple[Any, ...], builder: _Builder) -> tuple[Any, ...]:
    return tuple(args[0]) if args else ()


def _make_device(node: Call, args: tuple[Any, ...], builder: _Builder) -> str:
    return ":".join(str(part) for part in args)


def _table(rows: Mapping[str, Build]) -> dict[Symbol, Build]:
    """Turn ``"module.name other.name"`` -> function into one entry per name."""
    return {Symbol(*name.rsplit(".", 1)): make for names, make in rows.items() for name in names.split()}


_TENSOR_FUNCTIONS: dict[Any, Build] = _table(
    {
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2 torch._utils._rebuild_tensor_v3": _rebuild_tensor,
        "torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    }
)
BUILDERS: dict[Symbol, Build] = _TENSOR_FUNCTIONS | _table(
    {
        "collections.OrderedDict builtins.dict __builtin__.dict": _make_dict,
        "argparse.Namespace types.SimpleNamespace": _make_namespace,
        "builtins.set __builtin__.set builtins.frozenset __builtin__.frozenset": _make_set,
        "builtins.bytearray __builtin__.bytearray builtins.bytes __builtin__.bytes": _make_bytes,
        "_codecs.encode": _encode,
        "copyreg._reconstructor copy_reg._reconstructor": _reconstruct_object,
        "pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib._local.PosixPath": _make_path,
        "numpy.dtype": _make_dtype,
        "numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct": _reconstruct_array,
        "numpy.core.multiarray.scalar numpy._core.multiarray.scalar": _scalar,
        "numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer": _array_from_buffer,
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        "torch.storage._load_from_bytes": _load_from_bytes,
        "torch.Size": _make_tuple,
        "torch.device": _make_device,
    }
)
BUILDERS[Symbol("collections", "defaultdict")] = lambda node, args, builder: builder.mapping(node)

INERT = frozenset(
    [Symbol("torch", name) for name in (*STORAGE_DTYPES, *TORCH_DTYPES, "Tensor")]
    + [
        Symbol("torch.storage", name)
        for name in ("UntypedStorage", "TypedStorage", "_UntypedStorage", "_TypedStorage")
    ]
    + [Symbol("numpy", "ndarray"), Symbol("torch.nn.parameter", "Parameter")]
    + [
        Symbol(m, n)
        for m in ("builtins", "__builtin__")
        for n in ("object", "list", "int", "float", "str", "bool")
    ]
)
"""Names that may stand as values but not be called."""
