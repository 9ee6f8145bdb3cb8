"""Read a pickle as a tree of plain data and call records; nothing is imported and nothing is called.

A pickle is a program for a small stack machine.  The machine here has no instruction that runs anything:
where the original would call a function it notes down a `Call`.  Every name that the program mentions is
checked against an allow-list as soon as it is read, so a refused pickle has had no effect at all.  `unpickle`
turns the tree into arrays afterwards.

Source: the opcode list of the standard library's ``pickletools``, which also decodes the arguments.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from limner.errors import CheckpointError, UnsafePickleError


class Symbol(NamedTuple):
    """A name that a pickle mentions; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(slots=True, eq=False)
class Call:
    """What a pickle asked for: ``symbol(*args)``, then a state, items and elements."""

    symbol: Symbol
    args: tuple[Any, ...]
    state: Any = None
    pairs: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)
    elements: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True, eq=False)
class Reference:
    """A persistent id: data that the container keeps outside the pickle."""

    key: Any


class ByteStream(Protocol):
    """What `read_tree` reads from: an `mmap.mmap` or an `io.BytesIO`."""

    def read(self, n: int = ..., /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


Allow = Callable[[Symbol], bool]

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
    ]
)
_SHORT_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NEW_CONTAINERS: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_BROKEN = (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, RecursionError)


def read_tree(stream: ByteStream, allow: Allow) -> Any:
    """Read one pickle and leave the stream behind it.

    Args:
        stream: stands at the first byte.
        allow: says whether a name may be mentioned.

    Raises:
        UnsafePickleError: a name that is not allowed, or a call of something that is not a plain name.
        CheckpointError: the pickle is cut off or broken.
    """
    machine = _Machine(allow)
    position = 0
    try:
        for opcode, argument, where in pickletools.genops(stream):  # type: ignore[arg-type]
            position = where or 0
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except _BROKEN as error:
        raise CheckpointError(
            f"the pickle is cut off or broken near byte {position} ({' '.join(str(error).split())}); "
            "fetch the file again"
        ) from None
    raise CheckpointError("the pickle has no end; fetch the file again")


def find_references(tree: Any) -> list[Any]:
    """Return the keys of all references in a tree."""
    found, seen, todo = [], set(), [tree]
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Reference):
            found.append(node.key)
        elif isinstance(node, dict):
            todo.extend(node.values())
        elif isinstance(node, (list, tuple)):
            todo.extend(node)
        elif isinstance(node, Call):
            todo.extend([node.args, node.state, node.elements, *(value for _, value in node.pairs)])
    return found


class _Machine:
    """The stack machine.  Its stack is a list of frames, one more for every open MARK."""

    def __init__(self, allow: Allow) -> None:
        self._allow = allow
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self._stack.pop()

    def _pop_mark(self) -> list[Any]:
        frame, self._stack = self._stack, self._outer.pop()
        return frame

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _NEW_CONTAINERS:
            self._stack.append(_NEW_CONTAINERS[name]())
        elif name in _SHORT_TUPLES:
            count = _SHORT_TUPLES[name]
            items = tuple(self._stack[len(self._stack) - count :])
            if len(items) != count:
                raise IndexError("stack is empty")
            del self._stack[len(self._stack) - count :]
            self._stack.append(items)
        else:
            handler = _HANDLERS.get(name)
            if handler is None:
                raise UnsafePickleError(
                    f"the pickle uses {name}, which model files have no need for; nothing was run"
                )
            handler(self, argument)

    # Memory and marks
    def _mark(self, _: Any) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _drop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _drop_mark(self, _: Any) -> None:
        self._pop_mark()

    def _duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: Any) -> None:
        self._memo[len(self._memo) if index is None else int(index)] = self._stack[-1]

    def _get(self, index: Any) -> None:
        self._stack.append(self._memo[int(index)])

    def _skip(self, _: Any) -> None:
        pass

    # Containers
    def _tuple(self, _: Any) -> None:
        items = tuple(self._pop_mark())
        self._stack.append(items)

    def _list(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_pairs(items)

    def _frozenset(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append({_checked_key(item) for item in items})

    def _append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Call):
            target.elements.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise TypeError(f"cannot append to {type(target).__name__}")

    def _add_items(self, _: Any) -> None:
        items, target = self._pop_mark(), self._stack[-1]
        if not isinstance(target, set):
            raise TypeError(f"cannot add to {type(target).__name__}")
        target.update(_checked_key(item) for item in items)

    def _set_item(self, _: Any) -> None:
        value = self._stack.pop()
        self._set_pairs([self._stack.pop(), value])

    def _set_items(self, _: Any) -> None:
        self._set_pairs(self._pop_mark())

    def _set_pairs(self, items: list[Any]) -> None:
        pairs = [(_checked_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)]
        target = self._stack[-1]
        if isinstance(target, Call):
            target.pairs.extend(pairs)
        elif isinstance(target, dict):
            target.update(pairs)
        else:
            raise TypeError(f"cannot set items of {type(target).__name__}")

    # Names, calls, states
    def _push_symbol(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnsafePickleError("the pickle computes the name of a class; nothing was run")
        symbol = Symbol(module, name)
        if not self._allow(symbol):
            raise UnsafePickleError(
                f"the pickle asks for {symbol}, which is not among the classes of model files; "
                "nothing of it was run"
            )
        self._stack.append(symbol)

    def _global(self, argument: Any) -> None:
        self._push_symbol(*argument.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        name = self._stack.pop()
        self._push_symbol(self._stack.pop(), name)

    def _call(self, symbol: Any, args: Any) -> None:
        if not isinstance(symbol, Symbol):
            raise UnsafePickleError("the pickle calls an object that it has built itself; nothing was run")
        if not isinstance(args, tuple):
            raise TypeError(f"arguments are a {type(args).__name__}")
        self._stack.append(Call(symbol, args))

    def _reduce(self, _: Any) -> None:
        args = self._stack.pop()
        self._call(self._stack.pop(), args)

    def _new_with_keywords(self, _: Any) -> None:
        keywords = self._stack.pop()
        args = self._stack.pop()
        self._call(self._stack.pop(), args)
        self._stack[-1].state = keywords or None

    def _inst(self, argument: Any) -> None:
        args = tuple(self._pop_mark())
        self._push_symbol(*argument.split(" ", 1))
        self._call(self._stack.pop(), args)

    def _obj(self, _: Any) -> None:
        symbol, *args = self._pop_mark()
        self._call(symbol, tuple(args))

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Call):
            raise UnsafePickleError(
                f"the pickle sets the state of a {type(target).__name__}; nothing was run"
            )
        target.state = state

    def _persistent_text(self, argument: Any) -> None:
        self._stack.append(Reference(argument))

    def _persistent(self, _: Any) -> None:
        self._stack.append(Reference(self._stack.pop()))


def _checked_key(key: Any) -> Any:
    """Return a dictionary key unless it is an object of the pickle's own making."""
    if isinstance(key, tuple):
        for item in key:
            _checked_key(item)
    elif key is not None and not isinstance(key, (str, bytes, int, float)):
        raise TypeError(f"a {type(key).__name__} cannot be a key")
    return key


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._drop,
    "POP_MARK": _Machine._drop_mark,
    "DUP": _Machine._duplicate,
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._put,
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "PROTO": _Machine._skip,
    "FRAME": _Machine._skip,
    "TUPLE": _Machine._tuple,
    "LIST": _Machine._list,
    "DICT": _Machine._dict,
    "FROZENSET": _Machine._frozenset,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "ADDITEMS": _Machine._add_items,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._reduce,
    "NEWOBJ_EX": _Machine._new_with_keywords,
    "INST": _Machine._inst,
    "OBJ": _Machine._obj,
    "BUILD": _Machine._build,
    "PERSID": _Machine._persistent_text,
    "BINPERSID": _Machine._persistent,
}
