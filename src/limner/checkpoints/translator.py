"""Files of translators: the core alone, its large tensors in 8 bits, with the digest of the generator it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.checkpoints.cores import CoreFiles
from limner.errors import CheckpointError
from limner.nn.features import Lite0
from limner.nn.translator import Translator, TranslatorCore

KIND = "translator"
FILES = CoreFiles(KIND, "Translator", "translator", "translator", "limner train translator")
SCALE = ".scale"
LEAST_NUMBERS = 256
"""Smaller tensors stay in float32: biases, means and deviations."""
STEPS = 127
SMALLEST = 1e-30


def save_translator(
    translator: Translator,
    path: str | Path,
    *,
    provenance: Mapping[str, Any],
    licence: str = "unknown",
    packed: bool = True,
) -> None:
    """Write the core of a translator, all at once; the trunk is not stored.

    Args:
        translator: its ``base`` must say which generator it belongs to.
        path: safetensors file.
        provenance: plain values: how it was made.
        licence: terms of the weights.
        packed: store matrices and kernels in 8 bits, with a scale per row.

    Raises:
        CheckpointError: the translator belongs to no generator, or has values that are not finite.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in translator.core.state_dict().items():
        value = value.detach().float().cpu().contiguous()
        if not value.isfinite().all():
            raise CheckpointError(f"{name} holds values that are not finite; nothing was written")
        if packed and value.ndim >= 2 and value.numel() >= LEAST_NUMBERS:
            tensors[name], tensors[name + SCALE] = pack(value)
        else:
            tensors[name] = value.clone()
    FILES.write(
        path,
        tensors,
        config=translator.core.config(),
        base=translator.base,
        provenance=provenance,
        licence=licence,
    )


def pack(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tensor in 8 bits and the scales of its rows: (..., n) -> int8 (..., n), float32 (rows,).

    A row is what belongs to one index of the first dimension; of tensors with three dimensions, to one of the first two
    (a task's own matrix).
    """
    lead = 2 if value.ndim == 3 else 1
    rows = value.flatten(0, lead - 1).flatten(1)
    scale = (rows.abs().amax(1) / STEPS).clamp_min(SMALLEST)
    return (rows / scale[:, None]).round().clamp(-STEPS, STEPS).to(torch.int8).view(value.shape), scale


def unpack(value: Tensor, scale: Tensor) -> Tensor:
    """Return what `pack` packed, in float32."""
    lead = 2 if value.ndim == 3 else 1
    rows = value.flatten(0, lead - 1).flatten(1).float()
    return (rows * scale[:, None]).view(value.shape)


def unpack_all(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a core's tensors from those that a file holds.

    Raises:
        KeyError: there are scales without tensors.
    """
    scales = {name.removesuffix(SCALE): state.pop(name) for name in list(state) if name.endswith(SCALE)}
    values = {
        name: unpack(value, scales.pop(name)) if name in scales else value.float()
        for name, value in state.items()
    }
    if scales:
        raise KeyError(f"scales without tensors: {', '.join(scales)}")
    return values


def load_translator(path: str | Path, *, trunk: Lite0) -> Translator:
    """Read a translator; float32 in memory, frozen, on the CPU.

    Args:
        path: what `save_translator` wrote.
        trunk: the frozen Lite0 that it was trained with.

    Raises:
        ZooError: there is no such file.
        UnknownFormatError: not a safetensors file of a translator.
        KeyMismatchError: its tensors are not those of the architecture it names.
    """
    core, about = FILES.read(path, TranslatorCore, unpack_all)
    return Translator(trunk=trunk, core=core, base=about.get("base"))
