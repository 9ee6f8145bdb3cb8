"""Files of small HyperInverters: the core alone, with the digests of the generator and of the encoder it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.checkpoints.cores import CoreFiles, plain_words, stored_tensors
from limner.errors import KeyMismatchError
from limner.nn.compact import CompactEncoder
from limner.nn.compact_hyper import CompactHyper, HyperCore

FILES = CoreFiles("encoder", "CompactHyper", "core", "HyperInverter", "limner train hyper")


def save_hyper(
    network: CompactHyper,
    path: str | Path,
    *,
    provenance: Mapping[str, Any],
    encoder: str = "",
    licence: str = "unknown",
    packed: bool = True,
) -> None:
    """Write the core, all at once; encoder and trunk are not stored.

    Args:
        network: its encoder's ``base`` must say which generator it belongs to.
        path, provenance, licence, packed: see `limner.checkpoints.compact.save_encoder`.
        encoder: name or file of the encoder, to look for first.

    Raises:
        CheckpointError: the encoder belongs to no generator, or has values that are not finite.
    """
    FILES.write(
        path,
        stored_tensors(network.core, packed=packed),
        config=network.core.config(),
        base=network.base,
        provenance=provenance,
        licence=licence,
        more={"first": {"name": encoder, **network.stamp()}},
    )


def read_first(path: str | Path) -> dict[str, str] | None:
    """Return name and digest of the encoder that a small HyperInverter belongs to; None for any other file."""
    about = FILES.read_about(path)
    return None if about is None else plain_words(about.get("first"))


def load_hyper(path: str | Path, *, encoder: CompactEncoder) -> CompactHyper:
    """Read a small HyperInverter; float32 in memory, frozen, on the CPU.

    Args:
        path: what `save_hyper` wrote.
        encoder: the compact encoder that it was trained with.

    Raises:
        ZooError: there is no such file.
        UnknownFormatError: not such a file.
        KeyMismatchError: its tensors are not those that its header describes, or it was trained with another encoder.
    """
    core, about = FILES.read(path, HyperCore)
    try:
        first = dict(about["first"])
        network = CompactHyper(encoder=encoder, core=core, refinements=int(first["refinements"]))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise FILES.mismatch(path, error) from None
    if first.get("digest") != network.stamp()["digest"]:
        raise KeyMismatchError(
            f"{path} was trained on the codes of another encoder; train one for this encoder with limner train hyper"
        )
    return network
