"""Files of compact encoders: the core alone, with the digest of the generator that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limner.errors import CheckpointError, KeyMismatchError
from limner.files import replacing
from limner.nn.compact import CompactCore, CompactEncoder
from limner.nn.features import Lite0, load_strictly, read_native

KIND, ARCHITECTURE = "encoder", "CompactEncoder"


def save_encoder(
    encoder: CompactEncoder,
    path: str | Path,
    *,
    provenance: Mapping[str, Any],
    licence: str = "unknown",
    half: bool = True,
) -> None:
    """Write the core of an encoder, all at once; the trunk is not stored.

    Args:
        encoder: its ``base`` must say which generator it belongs to.
        path: safetensors file.
        provenance: plain values: how it was made.
        licence: terms of the weights.
        half: store matrices and kernels in half precision.

    Raises:
        CheckpointError: the encoder belongs to no generator, or its values are too large for half precision.
    """
    from safetensors.torch import save_file

    if not encoder.base.get("digest"):
        raise CheckpointError(f"{path}: an encoder is only of use with its generator; give it a base first")
    tensors = stored_tensors(encoder.core, half=half)
    about = {
        "version": 1,
        "kind": KIND,
        "architecture": ARCHITECTURE,
        "encoder": encoder.core.config(),
        "base": encoder.base,
        "provenance": dict(provenance),
        "licence": licence,
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"limner": json.dumps(about, sort_keys=True)})


def stored_tensors(core: nn.Module, *, half: bool) -> dict[str, Tensor]:
    """Return a core's tensors as they are written: on the CPU, matrices and kernels as float16 where ``half`` says so.

    Raises:
        CheckpointError: values are too large for half precision.
    """
    tensors = {}
    for name, value in core.state_dict().items():
        value = value.detach().cpu().contiguous()
        if half and value.ndim >= 2:
            value = value.half()
            if not value.isfinite().all():
                raise CheckpointError(f"{name} holds values too large for float16; write float32")
        tensors[name] = value.clone()
    return tensors


def read_about(path: str | Path, architecture: str) -> dict[str, Any] | None:
    """Return what a file of kind ``encoder`` and this architecture says of itself; None for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("limner", "{}"))
    except (SafetensorError, ValueError, OSError):
        return None
    ours = isinstance(about, dict) and (about.get("kind"), about.get("architecture")) == (KIND, architecture)
    return about if ours else None


def read_base(path: str | Path) -> dict[str, str] | None:
    """Return name and digest of the generator that a compact encoder's file belongs to; None for any other file."""
    about = read_about(path, ARCHITECTURE)
    return None if about is None else plain_words(about.get("base"))


def plain_words(value: Any) -> dict[str, str]:
    """Return a header's mapping with its values as text; empty where the header holds something else."""
    return {name: str(word) for name, word in value.items()} if isinstance(value, dict) else {}


def load_encoder(path: str | Path, *, trunk: Lite0) -> CompactEncoder:
    """Read an encoder; float32 in memory, frozen, on the CPU.

    Args:
        path: what `save_encoder` wrote.
        trunk: the frozen Lite0 that it was trained with.

    Raises:
        ZooError: there is no such file.
        UnknownFormatError: not a safetensors file of a compact encoder.
        KeyMismatchError: its tensors are not those of the architecture it names.
    """
    about, state = read_native(
        path,
        kind=KIND,
        architecture=ARCHITECTURE,
        what="the encoder",
        remedy="train one with limner train encoder",
    )
    try:
        core = CompactCore(**about["encoder"])
    except (TypeError, KeyError, ValueError) as error:
        raise KeyMismatchError(f"{path}: its header describes no encoder ({error})") from None
    load_strictly(core, {name: value.float() for name, value in state.items()}, where=str(path))
    core.requires_grad_(False).eval()
    return CompactEncoder(trunk=trunk, core=core, base=about.get("base"))
