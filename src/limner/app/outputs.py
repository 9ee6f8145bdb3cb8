"""Files that a command writes: those that exist already are replaced only when asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from limner.errors import OptionError
from limner.options import Options, to_mapping


@dataclasses.dataclass(frozen=True)
class OutputOptions(Options):
    """What commands that write files have."""

    overwrite: bool = False
    """replace files that exist; otherwise they are an error, before one would be replaced"""


def refuse_taken(paths: Iterable[Path], options: OutputOptions) -> None:
    """Raise `OptionError` where a file would be replaced unasked."""
    taken = [] if options.overwrite else [path for path in paths if path.exists()]
    if taken:
        more = f" and {len(taken) - 1} more exist" if len(taken) > 1 else " exists"
        raise OptionError(f"{taken[0]}{more} already; give --overwrite or another --out")


def recorded(options: OutputOptions) -> dict[str, Any]:
    """Return the options that a file says it was made with; whether it replaced another is none of them."""
    return {name: value for name, value in to_mapping(options).items() if name != "overwrite"}
