"""Files of compact encoders: the core alone, with the digest of the generator that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.checkpoints.cores import CoreFiles, plain_words, stored_tensors
from limner.nn.compact import CompactCore, CompactEncoder
from limner.nn.features import Lite0

FILES = CoreFiles("encoder", "CompactEncoder", "encoder", "encoder", "limner train encoder")


def save_encoder(
    encoder: CompactEncoder,
    path: str | Path,
    *,
    provenance: Mapping[str, Any],
    licence: str = "unknown",
    packed: bool = True,
) -> None:
    """Write the core of an encoder, all at once; the trunk is not stored.

    Args:
        encoder: its ``base`` must say which generator it belongs to.
        path: safetensors file.
        provenance: plain values: how it was made.
        licence: terms of the weights.
        packed: store matrices and kernels in 8 bits, with a scale per row.

    Raises:
        CheckpointError: the encoder belongs to no generator, or has values that are not finite.
    """
    FILES.write(
        path,
        stored_tensors(encoder.core, packed=packed),
        config=encoder.core.config(),
        base=encoder.base,
        provenance=provenance,
        licence=licence,
    )


def read_base(path: str | Path) -> dict[str, str] | None:
    """Return name and digest of the generator that a compact encoder's file belongs to; None for any other file."""
    about = FILES.read_about(path)
    return None if about is None else plain_words(about.get("base"))


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
    core, about = FILES.read(path, CompactCore)
    return CompactEncoder(trunk=trunk, core=core, base=about.get("base"))
