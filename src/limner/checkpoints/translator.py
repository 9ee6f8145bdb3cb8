"""Files of translators: the core alone, its large tensors in 8 bits, with the digest of the generator it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.errors import CheckpointError, KeyMismatchError
from limner.files import replacing
from limner.nn.features import Lite0, load_strictly, read_native
from limner.nn.translator import Translator, TranslatorCore

KIND, ARCHITECTURE = "translator", "Translator"
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
    from safetensors.torch import save_file

    if not translator.base.get("digest"):
        raise CheckpointError(f"{path}: a translator is only of use with its generator; give it a base first")
    tensors: dict[str, Tensor] = {}
    for name, value in translator.core.state_dict().items():
        value = value.detach().float().cpu().contiguous()
        if not value.isfinite().all():
            raise CheckpointError(f"{name} holds values that are not finite; nothing was written")
        if packed and value.ndim >= 2 and value.numel() >= LEAST_NUMBERS:
            tensors[name], tensors[name + SCALE] = pack(value)
        else:
            tensors[name] = value.clone()
    about = {
        "version": 1,
        "kind": KIND,
        "architecture": ARCHITECTURE,
        "translator": translator.core.config(),
        "base": translator.base,
        "provenance": dict(provenance),
        "licence": licence,
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"limner": json.dumps(about)})  # unsorted: the order of tasks counts


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
    about, state = read_native(
        path,
        kind=KIND,
        architecture=ARCHITECTURE,
        what="the translator",
        remedy="train one with limner train translator",
    )
    try:
        core = TranslatorCore(**about["translator"])
        scales = {name.removesuffix(SCALE): state.pop(name) for name in list(state) if name.endswith(SCALE)}
        values = {
            name: unpack(value, scales.pop(name)) if name in scales else value.float()
            for name, value in state.items()
        }
        if scales:
            raise KeyError(f"scales without tensors: {', '.join(scales)}")
    except (TypeError, KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise KeyMismatchError(f"{path}: its header describes no translator ({error})") from None
    load_strictly(core, values, where=str(path))
    core.requires_grad_(False).eval()
    return Translator(trunk=trunk, core=core, base=about.get("base"))
