"""Directions: named ways through w+, on disk and applied.

A file is safetensors: one tensor per direction under its name, (w_dim,) for the same step in every row or (L, w_dim).
The metadata entry ``limner`` is JSON with ``version``, ``kind: directions``, ``directions`` (name -> ``layers`` and
notes), and whatever the writer adds (how they were found, ``base``: name and digest of the generator).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from limner.editing.options import DirectionOptions
from limner.editing.portrait import Portrait, shift
from limner.errors import CheckpointError, KeyMismatchError, OptionError, ShapeError
from limner.files import replacing
from limner.latent import LayerMask
from limner.nn.stylegan2 import Generator

VERSION = 1
KIND = "directions"


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """One way through w+.

    Attributes:
        name: what it does, or ``factor-3`` where nobody has looked yet.
        values: (w_dim,), the same in every row, or (L, w_dim); as long as one unit of the slider.
        layers: rows that it moves, as a layer mask.
        notes: JSON values: how it was found, what it is worth.
    """

    name: str
    values: Tensor
    layers: str = "all"
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or any(mark in self.name for mark in "=,"):
            raise OptionError(f"a direction's name is {self.name!r}, expected a word without '=' and ','")
        if self.values.ndim not in (1, 2) or not self.values.isfinite().all():
            raise ShapeError(
                f"direction {self.name!r} has shape {tuple(self.values.shape)}, expected finite (w_dim,) or (L, w_dim)"
            )
        LayerMask(self.layers)

    def offset(self, generator: Generator, amount: float) -> Tensor:
        """Return the step in w+, (L, w_dim), for a position of the slider.

        Raises:
            ShapeError: it belongs to another generator.
        """
        rows, width = generator.num_rows, len(generator.w_avg)
        values = self.values.to(generator.w_avg)
        if values.shape[-1] != width or (values.ndim == 2 and len(values) != rows):
            raise ShapeError(
                f"direction {self.name!r} has shape {tuple(values.shape)}, expected ({width},) or ({rows}, {width}); "
                "it belongs to another generator"
            )
        weights = LayerMask(self.layers).rows(generator).to(values)
        return amount * weights[:, None] * values.expand(rows, width)


def pick(directions: Mapping[str, Direction], name: str) -> Direction:
    """Return the direction of a name.

    Raises:
        OptionError: there is none; the message names a close one.
    """
    if name not in directions:
        close = difflib.get_close_matches(name, directions, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(directions)}"
        raise OptionError(f"there is no direction {name!r}; {hint}")
    return directions[name]


def move(
    generator: Generator,
    portrait: Portrait,
    directions: Mapping[str, Direction],
    amounts: Mapping[str, float],
    options: DirectionOptions | None = None,
) -> Portrait:
    """Move a face along directions; several add up, and their order does not matter.

    Args:
        generator: the base.
        portrait: the face; its noise maps and its change of the generator stay.
        directions: name -> direction.
        amounts: name -> position of the slider, 0 leaving the face as it is.
        options: see `DirectionOptions`.

    Raises:
        OptionError: no direction of this name, or a layer mask that does not fit.
        ShapeError: a direction of another generator.
    """
    offset = torch.zeros(generator.num_rows, len(generator.w_avg), device=generator.w_avg.device)
    for name, amount in amounts.items():
        offset = offset + pick(directions, name).offset(generator, amount)
    mask = LayerMask((options or DirectionOptions()).layers)
    return shift(generator, Portrait.of(portrait), offset, mask)


def save_directions(
    path: str | Path, directions: Sequence[Direction], *, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write directions to one file, which appears whole or not at all.

    Args:
        path: the file; ``.safetensors`` is the usual ending.
        directions: with different names.
        metadata: JSON values to keep beside them.

    Raises:
        OptionError: two have one name.
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    about = {one.name: {"layers": one.layers, **one.notes} for one in directions}
    if len(about) != len(directions):
        raise OptionError(
            f"directions need names of their own, found {', '.join(one.name for one in directions)}"
        )
    notes = {**(metadata or {}), "version": VERSION, "kind": KIND, "directions": about}
    tensors = {one.name: one.values.detach().to("cpu", torch.float32).contiguous() for one in directions}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(save(tensors, {"limner": json.dumps(notes)}))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def load_directions(path: str | Path) -> tuple[dict[str, Direction], dict[str, Any]]:
    """Read a file of directions; returns them by name, and the writer's notes.

    Raises:
        CheckpointError: no such file, or a damaged one.
        KeyMismatchError: it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get("limner", "{}"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    if not isinstance(notes, dict) or notes.get("kind") != KIND:
        kind = notes.get("kind") if isinstance(notes, dict) else None
        raise KeyMismatchError(f"{path} holds no directions" + (f" but a {kind}" if kind else ""))
    if notes.get("version", 0) > VERSION:
        raise CheckpointError(
            f"{path} was written by a newer Limner (version {notes['version']}, known {VERSION})"
        )
    about = notes.get("directions")
    if not isinstance(about, dict) or set(about) != set(tensors):
        raise KeyMismatchError(f"{path}: its list of directions does not match its tensors")
    found = {}
    for name, values in about.items():  # in the writer's order
        own = dict(values) if isinstance(values, dict) else {}
        found[name] = Direction(name, tensors[name], str(own.pop("layers", "all")), own)
    return found, {key: value for key, value in notes.items() if key not in ("version", "kind", "directions")}
