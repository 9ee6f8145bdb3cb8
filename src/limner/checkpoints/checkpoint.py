"""What a model file is once it has been read, and what a format is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limner.checkpoints.source import Source
from limner.nn.dualstylegan import DualGenerator, StyleSampler
from limner.nn.stylegan2 import Discriminator, Generator

PARTS = ("generator", "discriminator", "encoder", "raw_generator", "dual", "raw_dual", "sampler")
Codes = dict[str, dict[str, Tensor]]
"""Kind (``extrinsic``, ``refined``, ``intrinsic``) -> name of a style -> its z+ code (L, z_dim), in the file's order."""


@dataclasses.dataclass
class Checkpoint:
    """A model: networks and what is known about them.  Absent parts are None.

    Args:
        format: name of the format it was read from.
        generator: the generator to make pictures with: where the file has both, the averaged one (EMA).
        discriminator: its discriminator.
        encoder: image -> latent.
        raw_generator: the generator as trained, not averaged; only training needs it.
        dual: a DualStyleGAN; ``generator`` is then its intrinsic part.
        raw_dual: the DualStyleGAN as trained, not averaged.
        sampler: draws extrinsic codes.
        codes: codes of the styles of a DualStyleGAN; ``refined`` ones take the place of ``extrinsic`` ones.
        metadata: plain values: where missing things came from, options of the training run, licence.
    """

    format: str = "limner"
    generator: Generator | None = None
    discriminator: Discriminator | None = None
    encoder: nn.Module | None = None
    raw_generator: Generator | None = None
    dual: DualGenerator | None = None
    raw_dual: DualGenerator | None = None
    sampler: StyleSampler | None = None
    codes: Codes = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def w_avg(self) -> Tensor | None:
        """Mean of w, (w_dim,)."""
        return None if self.generator is None else self.generator.w_avg

    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that are there; a generator that is only the inside of ``dual`` is no part of its own."""
        found = {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}
        if self.dual is not None and self.generator is self.dual.generator:
            del found["generator"]
        return found


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How a file is read; every format gets it.

    Args:
        parts: what to build; the rest of the file is not read.
        channel_order: ``rgb`` turns networks made for BGR images round, ``stored`` leaves them.
        base: file of the base model, for a child; None to look for it by its name.
    """

    parts: Collection[str] = PARTS
    channel_order: str = "rgb"
    base: str | os.PathLike[str] | None = None

    def wants(self, part: str) -> bool:
        """Say whether a part is to be built."""
        return part in self.parts


@dataclasses.dataclass(frozen=True)
class Format:
    """One file format.

    Args:
        name: short name, such as ``rosinality``.
        title: what it is, for people.
        detect: recognises an opened file.
        load: reads it.
        save: writes a checkpoint, None where Limner only reads; further arguments are the format's own.
        suffixes: endings of the file name that mean this format when writing.
        holds: says of a checkpoint whether such an ending means this format for it.
    """

    name: str
    title: str
    detect: Callable[[Source], bool]
    load: Callable[[Source, ReadOptions], Checkpoint]
    save: Callable[..., None] | None = None
    suffixes: tuple[str, ...] = ()
    holds: Callable[[Checkpoint], bool] = lambda checkpoint: True


PathLike = str | os.PathLike[str] | Path


def plain_values(value: Any, depth: int = 0) -> Any:
    """Return what JSON can hold of a value; arrays and foreign objects become short descriptions."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, dict) and depth < 4:
        return {str(key): plain_values(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)) and depth < 4 and len(value) <= 100:
        return [plain_values(item, depth + 1) for item in value]
    return f"<{type(value).__name__}>"
