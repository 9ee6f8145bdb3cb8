"""``limner inspect``: say what is in a model file.  Nothing in the file is executed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from limner.app.console import Console, format_bytes
from limner.options import Options as BaseOptions
from limner.options import knob

SHOWN_VALUE = 160


@dataclasses.dataclass(frozen=True)
class Options(BaseOptions):
    """Options of ``limner inspect``."""

    file: Path = knob()
    """file to look into, or a model's name"""
    tensors: bool = False
    """list every tensor: name, shape, type"""


def run(options: Options, console: Console) -> int:
    """Print what the file is, its networks, its notes, and its tensors if asked for."""
    from limner import checkpoints, zoo

    found = checkpoints.inspect(Path(zoo.resolve(str(options.file))))
    console.print(
        f"{found.path}: {format_bytes(found.size_bytes)}, {found.container}, {len(found.tensors)} tensors"
    )
    console.print(f"{'format: ' if found.format else 'no known format: '}{found.title}")
    for part, facts in found.parts.items():
        console.print(f"{part}:")
        for name, value in facts.items():
            console.print(f"  {name.replace('_', ' ')}: {describe(name, value)}")
    for name, value in found.metadata.items():
        console.print(f"{name.replace('_', ' ')}: {shorten(value)}")
    if options.tensors:
        console.table(
            ("tensor", "shape", "type"),
            [(name, "x".join(map(str, shape)) or "scalar", kind) for name, shape, kind in found.tensors],
        )
    console.result(
        path=found.path,
        bytes=found.size_bytes,
        container=found.container,
        format=found.format,
        title=found.title,
        parts=found.parts,
        metadata=found.metadata,
        tensors=found.tensors if options.tensors else len(found.tensors),
    )
    return 0 if found.format else 2


def describe(name: str, value: Any) -> str:
    """Return one fact about a network for people."""
    if name == "parameters":
        return f"{value / 1e6:.2f} million" if value >= 100_000 else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} px {entry}" for key, entry in value.items())
    return "none" if value is None else shorten(value)


def shorten(value: Any) -> str:
    """Return a value on one line, cut where it grows long."""
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_VALUE else f"{text[:SHOWN_VALUE]}..."
