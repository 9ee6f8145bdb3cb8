"""Files of small HyperInverters: the core alone, with the digests of the generator and of the encoder it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.checkpoints.compact import KIND, plain_words, read_about, stored_tensors
from limner.errors import CheckpointError, KeyMismatchError
from limner.files import replacing
from limner.nn.compact import CompactEncoder
from limner.nn.compact_hyper import CompactHyper, HyperCore
from limner.nn.features import load_strictly, read_native

ARCHITECTURE = "CompactHyper"


def save_hyper(
    network: CompactHyper,
    path: str | Path,
    *,
    provenance: Mapping[str, Any],
    encoder: str = "",
    licence: str = "unknown",
    half: bool = True,
) -> None:
    """Write the core, all at once; encoder and trunk are not stored.

    Args:
        network: its encoder's ``base`` must say which generator it belongs to.
        path, provenance, licence, half: see `limner.checkpoints.compact.save_encoder`.
        encoder: name or file of the encoder, to look for first.

    Raises:
        CheckpointError: the encoder belongs to no generator, or values are too large for half precision.
    """
    from safetensors.torch import save_file

    if not network.base.get("digest"):
        raise CheckpointError(
            f"{path}: a HyperInverter is only of use with its generator; give its encoder a base"
        )
    tensors = stored_tensors(network.core, half=half)
    about = {
        "version": 1,
        "kind": KIND,
        "architecture": ARCHITECTURE,
        "core": network.core.config(),
        "base": network.base,
        "first": {"name": encoder, **network.stamp()},
        "provenance": dict(provenance),
        "licence": licence,
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"limner": json.dumps(about, sort_keys=True)})


def read_first(path: str | Path) -> dict[str, str] | None:
    """Return name and digest of the encoder that a small HyperInverter belongs to; None for any other file."""
    about = read_about(path, ARCHITECTURE)
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
    about, state = read_native(
        path,
        kind=KIND,
        architecture=ARCHITECTURE,
        what="the HyperInverter",
        remedy="train one with limner train hyper",
    )
    try:
        core = HyperCore(**about["core"])
        first = dict(about["first"])
        network = CompactHyper(encoder=encoder, core=core, refinements=int(first["refinements"]))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise KeyMismatchError(f"{path}: its header describes no HyperInverter ({error})") from None
    load_strictly(core, {name: value.float() for name, value in state.items()}, where=str(path))
    if first.get("digest") != network.stamp()["digest"]:
        raise KeyMismatchError(
            f"{path} was trained on the codes of another encoder; train one for this encoder with limner train hyper"
        )
    core.requires_grad_(False).eval()
    return network
