"""Children: a fine-tuned generator kept as the compressed difference to the model it came from.

The file is a safetensors file whose header says ``kind: child``, names the base and carries the digest of its
generator.  Tensors are named ``delta.*``, packed by `limner.nn.packing`.  Read, it is a whole model: the base is
looked up by its name among the models of this machine, then beside the file, and the difference is added.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from limner import zoo
from limner.checkpoints.checkpoint import Checkpoint, Format, PathLike, ReadOptions, plain_values
from limner.checkpoints.native import ENTRY, VERSION, is_kind, read_header
from limner.checkpoints.source import Source, open_source, replace_file
from limner.errors import CheckpointError, KeyMismatchError, ShapeError, UnknownFormatError, ZooError
from limner.latent import Latent, render
from limner.nn import deltas
from limner.nn.layer_use import measure_use
from limner.nn.packing import pack, unpack
from limner.nn.stylegan2 import Generator

KIND = "child"
DELTA = "delta."
BUDGET_BYTES = 980_000
PSI = 0.7


@dataclasses.dataclass(frozen=True, eq=False)
class Child:
    """What a child's file holds.

    Attributes:
        delta: change of every tensor of the base's generator.
        base: name of the base.
        digest: of the base's generator (`limner.nn.deltas.digest`).
        config: arguments of the `Generator`.
        metadata: provenance, licence, ``compression``.
    """

    delta: Mapping[str, Tensor]
    base: str
    digest: str
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]

    def check_base(self, generator: Generator, where: str) -> None:
        """Raise `KeyMismatchError` unless ``generator``, read from ``where``, is the base this belongs to."""
        found = deltas.digest(generator)
        if found != self.digest:
            raise KeyMismatchError(
                f"the base differs: this child belongs to {self.base} with digest {self.digest[:12]}, but {where} has "
                f"{found[:12]}; take the base it was made from, or make the child again (scripts/pack_child.py)"
            )


def detect(source: Source) -> bool:
    """Recognise a safetensors file whose header says that it is a child."""
    return is_kind(source, KIND)


def read_child(path: PathLike | Source) -> Child:
    """Read a child's file without its base.

    Raises:
        CheckpointError: no such file, damaged, or of another kind.
    """
    source = path if isinstance(path, Source) else open_source(path)
    if not detect(source):
        raise UnknownFormatError(f"{source.path} is no child (a model kept as its difference to a base)")
    header = read_header(source, KIND)
    try:
        base, digest, config = header["base"]["name"], header["base"]["digest"], header["generator"]
        packed = {name.removeprefix(DELTA): value for name, value in source.state.items()}
        delta = unpack(packed)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{source.path}: the header is broken ({error!r}); fetch it again") from None
    except (KeyMismatchError, ShapeError) as error:
        raise CheckpointError(f"{source.path} is damaged: {error}") from None
    metadata = dict(header.get("metadata") or {})
    metadata |= {key: header[key] for key in ("provenance", "licence", "compression") if key in header}
    return Child(delta, base, digest, config, metadata)


def find_base(name: str, beside: Path) -> Path:
    """Return the file of a base: the model of that name on this machine, else a file beside the child or above it.

    Raises:
        CheckpointError: neither is there.
    """
    if name in zoo.names("model") or name in zoo.names("child"):
        try:
            return zoo.path(name)
        except ZooError as error:
            raise CheckpointError(f"{beside} is a child of {name}: {error}") from None
    for folder in (beside.parent, beside.parent.parent):
        for path in (folder / name, folder / f"{name}.safetensors"):
            if path.is_file() and path != beside:
                return path
    raise CheckpointError(
        f"{beside} is a child of {name!r}, which is no model of this machine (limner models list shows them), nor a "
        "file beside it; put the base's file there, or give it as `base`"
    )


def base_path(name: str, source: Source, options: ReadOptions) -> Path:
    """Return the file of a base: the one that was given, else what `find_base` finds.

    Raises:
        CheckpointError: there is none, or it is the file itself.
    """
    path = Path(options.base) if options.base else find_base(name, source.path)
    if path.resolve() == source.path.resolve():
        raise CheckpointError(f"{source.path} names itself as its base; it is damaged")
    return path


def load(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a child together with its base.

    The discriminator, where it is asked for, is the base's: the child was not made with one of its own.

    Raises:
        CheckpointError: the base is not there, or is itself no model with a generator.
        KeyMismatchError: the base is not the one that the child was made from.
    """
    from limner.checkpoints import load as load_any  # the base may come in any format

    child = read_child(source)
    path = base_path(child.base, source, options)
    parts = {"generator"} | ({"discriminator"} & set(options.parts))
    base = load_any(path, parts=parts)
    if base.generator is None:
        raise CheckpointError(f"{path}, the base of {source.path}, holds no generator")
    child.check_base(base.generator, str(path))
    metadata = {**child.metadata, "base": child.base}
    if base.discriminator is not None:
        metadata["discriminator"] = f"of the base, {child.base}"
    checkpoint = Checkpoint(KIND, discriminator=base.discriminator, metadata=metadata)
    if options.wants("generator"):
        deltas.add_(base.generator, [(child.delta, 1.0)])
        checkpoint.generator = base.generator
    return checkpoint


@torch.no_grad()
def save_child(
    child: Generator,
    base: Generator,
    path: PathLike,
    *,
    base_name: str,
    budget_bytes: int = BUDGET_BYTES,
    metadata: Mapping[str, Any] | None = None,
    samples: int = 16,
    seed: int = 0,
) -> dict[str, float]:
    """Write a generator as its difference to its base; the file appears whole or not at all.

    Args:
        child: the fine-tuned generator.
        base: what it was fine-tuned from, as it will be loaded: in the precision of its file.
        path: where to.
        base_name: what the base is called in `limner.zoo`, or its file's name beside ``path``.
        budget_bytes: largest size of the difference.
        metadata: ``provenance``, ``licence`` and other plain values.
        samples, seed: random faces on which the loss from packing is measured.

    Returns:
        What packing cost: ``bytes_before``, ``bytes_after``, ``weight_error`` (root of squared error over squared
        change), ``picture_error`` (root mean square between the child's pictures before and after packing, pixels
        from -1 to 1) and ``picture_change`` (the same between base and child).

    Raises:
        KeyMismatchError, ShapeError: the two are not of one architecture.
        CheckpointError: the file cannot be written.
    """
    delta = deltas.difference(child, base)
    packed = pack(delta, budget_bytes=budget_bytes, uses=measure_use(child))
    restored = deltas.apply(base, [(unpack(packed.tensors), 1.0)])
    rng = torch.Generator().manual_seed(seed)
    latent = Latent("z", torch.randn(samples, base.z_dim, generator=rng).to(base.w_avg))
    plain, before, after = (
        render(network, latent, psi=PSI).clamp(-1, 1) for network in (base, child, restored)
    )
    compression = {
        "bytes_before": packed.bytes_before,
        "bytes_after": packed.bytes_after,
        "weight_error": round(packed.error, 5),
        "picture_error": round(_rms(after - before), 5),
        "picture_change": round(_rms(before - plain), 5),
    }
    about = dict(metadata or {})
    header = {
        "version": VERSION,
        "kind": KIND,
        "base": {"name": base_name, "digest": deltas.digest(base)},
        "generator": child.config(),
        "provenance": plain_values(about.pop("provenance", {})),
        "licence": str(about.pop("licence", "unknown")),
        "compression": compression,
        "metadata": plain_values(about),
    }
    tensors = {DELTA + name: value.contiguous() for name, value in packed.tensors.items()}
    with replace_file(path) as temporary:
        save_file(tensors, temporary, {ENTRY: json.dumps(header, sort_keys=True)})
    return compression


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


FORMAT = Format(KIND, "a child: the difference to a base model", detect, load)
