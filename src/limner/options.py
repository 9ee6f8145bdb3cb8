"""Options: dataclass fields that know their range, their help text and their YAML form.

A default, its range and its help stand once, on the field; command line, HTTP, web form and recipe read them here.
This module imports no torch, so that ``limner COMMAND --help`` stays instant.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from limner.errors import MissingExtraError, OptionError

T = TypeVar("T", bound="Options")
MAX_RANGE = 1_000_000
PRECISIONS = ("fp32", "bf16", "auto")


def knob(
    default: Any = dataclasses.MISSING,
    *,
    lo: float | None = None,
    hi: float | None = None,
    step: float | None = None,
    choices: tuple[str, ...] | None = None,
    factory: Any = dataclasses.MISSING,
    positional: bool = False,
    text: str = "",
) -> Any:
    """Declare one option.

    Args:
        default: value when nothing is given; left out, the option is required.
        lo, hi: smallest and largest value, both allowed.
        step: grain of a slider; also the unit that whole multiples are checked against when it is an int.
        choices: the only strings allowed.
        factory: makes the default of a mutable option.
        positional: on the command line it stands without a flag, as required options do.
        text: help, for fields that several classes share; others have it in the string below them.
    """
    metadata = {"lo": lo, "hi": hi, "step": step, "choices": choices, "positional": positional, "text": text}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def precision_knob(default: str = "fp32") -> Any:
    """Declare the option ``precision``, which everything that runs networks for long has."""
    text = """Arithmetic of the heavy layers: fp32; bf16, faster where the device has units for it (GPUs since Ampere,
    CPUs with AVX512_BF16 or AMX) and slower elsewhere; auto, bf16 where it is faster."""
    return knob(default, choices=PRECISIONS, text=" ".join(text.split()))


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of every options dataclass: ranges are checked when an object is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name))


def with_default(base: type[Options], name: str, default: Any) -> Any:
    """Declare an option of ``base`` again with another default; range, choices and help stay."""
    return dataclasses.field(default=default, metadata=base.__dataclass_fields__[name].metadata)


def check_value(field: dataclasses.Field, value: Any) -> None:
    """Raise `OptionError` unless ``value``, or each of several, lies in the field's range and choices."""
    choices, lo, hi = (field.metadata.get(key) for key in ("choices", "lo", "hi"))
    if value is None:
        return
    if isinstance(value, tuple):
        for one in value:
            check_value(field, one)
        return
    if choices and value not in choices:
        close = difflib.get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        names = ", ".join(one or "nothing" for one in choices)
        raise OptionError(f"{field.name} is {value!r}, expected one of {names}{hint}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if isinstance(value, float) and math.isnan(value):
        raise OptionError(f"{field.name} is not a number")
    if (lo is not None and value < lo) or (hi is not None and value > hi):
        wanted = f"at least {lo}" if hi is None else f"at most {hi}" if lo is None else f"{lo} to {hi}"
        raise OptionError(f"{field.name} is {value}, expected {wanted}")


@functools.cache
def help_texts(cls: type) -> dict[str, str]:
    """Return option name -> the string that stands below the field, base classes included."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base) or base is Options:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for line, after in itertools.pairwise(body):
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(line.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                texts[line.target.id] = " ".join(str(after.value.value).split())
    shared = {field.name: field.metadata.get("text") for field in dataclasses.fields(cls)}
    return texts | {name: text for name, text in shared.items() if text}


@functools.cache
def field_types(cls: type) -> dict[str, tuple[type, bool, bool]]:
    """Return option name -> (element type, is it a tuple of them, may it be None)."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        optional = False
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
            optional, hint = len(inner) < len(typing.get_args(hint)), inner[0]
        many = typing.get_origin(hint) in (tuple, list)
        element = typing.get_args(hint)[0] if many else hint
        found[name] = (typing.get_origin(element) or element, many, optional)
    return found


def convert(name: str, value: Any, element: type, many: bool, optional: bool) -> Any:
    """Turn a YAML, JSON or command-line value into the field's type, or raise `OptionError`."""
    if value is None and optional:
        return None
    if many:
        items = (
            value.split(",")
            if isinstance(value, str)
            else value
            if isinstance(value, (list, tuple))
            else [value]
        )
        if element is str and list(items) == [""]:
            items = []
        if element is int:
            items = [number for item in items for number in _expand_range(name, item)]
        return tuple(convert(name, item, element, False, False) for item in items)
    return _convert_item(name, value, element)


def _convert_item(name: str, value: Any, element: type) -> Any:
    """Turn one value into ``element``; a number written with a fraction is no whole number, a bool no number."""
    try:
        if element is bool:
            if isinstance(value, bool):
                return value
            return {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}[
                str(value).lower()
            ]
        if element in (int, float) and isinstance(value, bool):
            raise ValueError
        if element is int and float(value) != int(float(value)):
            raise ValueError
        return int(float(value)) if element is int else element(value) if callable(element) else value
    except (KeyError, ValueError, TypeError, OverflowError):
        wanted = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(
            element.__name__, element.__name__
        )
        raise OptionError(f"{name} is {value!r}, expected {wanted}") from None


def _expand_range(name: str, item: Any) -> list[Any] | range:
    """``0-3`` means 0, 1, 2, 3 where whole numbers are listed."""
    match = re.fullmatch(r"(\d+)-(\d+)", item.strip()) if isinstance(item, str) else None
    if match is None:
        return [item]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MAX_RANGE:
        raise OptionError(f"{name} is {item!r}, expected FIRST-LAST with at most {MAX_RANGE} numbers")
    return range(first, last + 1)


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "options") -> T:
    """Build an options object from plain values.

    Raises:
        OptionError: unknown name (close matches are named), wrong type, value out of range, required one missing.
    """
    known = field_types(cls)
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            raise OptionError(f"{where}: unknown option {name!r}{hint}")
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise OptionError(f"{where}: {', '.join(missing)} must be given")
    return cls(**{name: convert(name, value, *known[name]) for name, value in values.items()})


def to_mapping(options: Options) -> dict[str, Any]:
    """Return the options as plain YAML and JSON values."""
    return {
        field.name: _plain(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if field.init
    }


def to_words(options: Options, *, leave_out: Sequence[str] = ()) -> list[str]:
    """Return the options that are not at their default as words of a command line.

    Args:
        options: of a command.
        leave_out: names of fields that are not wanted, positional ones among them.
    """
    words = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        make = field.default_factory
        default = field.default if make is dataclasses.MISSING else make()
        if field.name in leave_out or value == default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [
                f"--{flag}",
                ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value),
            ]
    return words


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe, YAML or JSON, into a mapping.

    Raises:
        OptionError: no such file, not a mapping, broken YAML or JSON.
        MissingExtraError: a YAML file, and pyyaml is not installed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(f"recipe {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise OptionError(f"recipe {path} is not a text file; expected YAML or JSON") from None
    if path.suffix == ".json":
        import json

        try:
            recipe = json.loads(text)
        except json.JSONDecodeError as error:
            raise OptionError(f"recipe {path} is not valid JSON: {error}") from None
    else:
        try:
            import yaml
        except ImportError:
            raise MissingExtraError(
                f"recipe {path} is YAML, which needs the package pyyaml: pip install pyyaml, or write it as JSON"
            ) from None
        try:
            recipe = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise OptionError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise OptionError(f"recipe {path} must be a mapping of options, found {type(recipe).__name__}")
    return recipe
