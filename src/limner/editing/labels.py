"""Labels of faces from a table of attributes: which faces have something, which have not, and which count for neither.

A table is JSON lines, one object per picture, with the picture's number as ``seed``, ``number``, ``name`` or ``file``.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.errors import MediaError, OptionError

KEYS = ("seed", "number", "name", "file")
RULE = re.compile(r"(?:(?P<name>[^:=<>!]+):)?(?P<column>[^:=<>!]+)(?:(?P<op>!=|=|<|>)(?P<values>.+))?")
EXTREMES = 0.25
"""Share of the faces at either end of a number that count, where a rule names no limit."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What makes a label: a column and what its values must be.

    Attributes:
        name: of the direction that is found with it.
        column: of the table.
        op: ``=``, ``!=``, ``<``, ``>``; empty for the upper against the lower quarter of a number, or a yes or no.
        values: what is compared with.
    """

    name: str
    column: str
    op: str = ""
    values: tuple[str, ...] = ()


def parse_rule(text: str) -> Rule:
    """Read ``[NAME:]COLUMN``, ``[NAME:]COLUMN=A|B``, ``...!=A|B``, ``...>NUMBER`` or ``...<NUMBER``.

    Raises:
        OptionError: written in another way.
    """
    match = RULE.fullmatch(text.strip())
    if match is None or (match["op"] in ("<", ">") and not _is_number(match["values"])):
        raise OptionError(
            f"attribute {text!r}: expected [NAME:]COLUMN, alone or with =A|B, !=A|B, >NUMBER or <NUMBER"
        )
    column = match["column"].strip()
    values = tuple(value.strip() for value in (match["values"] or "").split("|")) if match["op"] else ()
    return Rule((match["name"] or column).strip(), column, match["op"] or "", values)


def read_table(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read a table; returns picture -> its attributes, pictures by number (``17``) or by name without ending.

    Raises:
        MediaError: the file cannot be read, or holds no such table.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"{path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise MediaError(f"{path}, line {number} is not JSON: {error}") from None
        key = next((str(row[name]) for name in KEYS if name in row), None) if isinstance(row, dict) else None
        if key is None:
            raise MediaError(f"{path}, line {number}: expected an object with one of {', '.join(KEYS)}")
        found[picture_key(key)] = row
    return found


def picture_key(name: str) -> str:
    """Return how a picture is called in a table: its number without zeros, or its name without folder and ending."""
    stem = Path(name).stem
    return str(int(stem)) if stem.isdecimal() else stem


def label(rows: Sequence[Mapping[str, Any]], rule: Rule) -> Tensor:
    """Return 1 where a face has the attribute, 0 where it has not, -1 where it counts for neither, (N,).

    Raises:
        OptionError: no such column or value, or a column of words without values to compare with.
    """
    known = sorted({key for row in rows for key in row})
    if rule.column not in known:
        close = difflib.get_close_matches(rule.column, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise OptionError(f"the table has no column {rule.column!r}; {hint}")
    values = [row.get(rule.column) for row in rows]
    there = [value for value in values if value is not None]
    if rule.op in ("=", "!="):
        words = {str(value) for value in there}
        if unknown := [value for value in rule.values if value not in words]:
            raise OptionError(
                f"column {rule.column!r} has no value {unknown[0]!r} among these faces; "
                f"there are {', '.join(sorted(words)[:20])}"
            )
        return _fill(values, lambda value: (str(value) in rule.values) == (rule.op == "="))
    if there and all(isinstance(value, bool) for value in there):
        return _fill(values, bool)
    if not all(_is_number(value) for value in there):
        words = sorted({str(value) for value in there})[:20]
        raise OptionError(
            f"column {rule.column!r} holds words; say which ones with = or !=, such as {rule.column}={words[0]}"
        )
    if rule.op:
        limit, sign = float(rule.values[0]), 1 if rule.op == ">" else -1
        return _fill(values, lambda value: sign * (float(value) - limit) > 0)
    numbers = torch.tensor([float(value) for value in there], dtype=torch.float64)
    low, high = numbers.quantile(EXTREMES).item(), numbers.quantile(1 - EXTREMES).item()
    labels = [
        -1 if value is None or low < float(value) < high else int(float(value) >= high > low)
        for value in values
    ]
    return torch.tensor(labels)


def _fill(values: Sequence[Any], test: Any) -> Tensor:
    return torch.tensor([-1 if value is None else int(test(value)) for value in values])


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and abs(float(value)) < float("inf")
    except (TypeError, ValueError):
        return False
