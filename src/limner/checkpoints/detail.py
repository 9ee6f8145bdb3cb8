"""Detail files: the layers grown above a base's resolution, without the base (`limner.nn.detail`).

The file is a safetensors file whose header says ``kind: detail``, names the base and carries the digest of its
generator.  Tensors are named ``detail.*``, in half precision; fixed noise is drawn from a seed.  Read as a model, it
is the whole, grown generator: the base is looked up as a child's is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file

from limner.checkpoints.checkpoint import Checkpoint, Format, PathLike, ReadOptions, plain_values
from limner.checkpoints.child import base_path
from limner.checkpoints.native import ENTRY, VERSION, is_kind, read_about, read_header
from limner.checkpoints.source import Source, open_source, replace_file
from limner.errors import CheckpointError, KeyMismatchError, LimnerError
from limner.nn import deltas
from limner.nn.detail import Detail
from limner.nn.stylegan2 import Generator

KIND = "detail"
PREFIX = "detail."
NOISE = ".noise"


@dataclasses.dataclass(frozen=True, eq=False)
class DetailFile:
    """What a detail file holds.

    Attributes:
        detail: the layers.
        base: name of the generator below them.
        digest: of that generator (`limner.nn.deltas.digest`).
        metadata: provenance and licence.
    """

    detail: Detail
    base: str
    digest: str
    metadata: Mapping[str, Any]

    def check_base(self, generator: Generator, where: str) -> None:
        """Raise `KeyMismatchError` unless ``generator``, read from ``where``, is the base these layers belong to."""
        found = deltas.digest(generator)
        if found != self.digest:
            raise KeyMismatchError(
                f"the base differs: this detail belongs to {self.base} with digest {self.digest[:12]}, but {where} has "
                f"{found[:12]}; take the base it was grown on, or grow it again (recipes/detail-256.yaml)"
            )


def detect(source: Source) -> bool:
    """Recognise a safetensors file whose header says that it is detail."""
    return is_kind(source, KIND)


def read_digest(source: Source) -> str:
    """Return the digest of the generator that a file's layers belong to; empty for other files."""
    return str(read_about(source).get("base", {}).get("digest", "")) if detect(source) else ""


def read_detail(path: PathLike | Source) -> DetailFile:
    """Read a detail file without its base.

    Raises:
        CheckpointError: no such file, damaged, or of another kind.
    """
    source = path if isinstance(path, Source) else open_source(path)
    header = read_header(source, KIND)
    try:
        config = dict(header["detail"])
        config["config"] = dict(config["config"])
        config["config"]["channels"] = {
            int(size): width for size, width in config["config"]["channels"].items()
        }
        detail = Detail(**config)
        base, digest = str(header["base"]["name"]), str(header["base"]["digest"])
        state = {name.removeprefix(PREFIX): value.float() for name, value in source.state.items()}
        noise = {name: value for name, value in detail.state_dict().items() if name.endswith(NOISE)}
        detail.load_state_dict(state | noise)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, LimnerError) as error:
        raise CheckpointError(
            f"{source.path} is damaged ({str(error).splitlines()[0]}); fetch it again"
        ) from None
    metadata = dict(header.get("metadata") or {})
    metadata |= {key: header[key] for key in ("provenance", "licence") if key in header}
    return DetailFile(detail.eval().requires_grad_(False), base, digest, metadata)


def load(source: Source, options: ReadOptions) -> Checkpoint:
    """Read detail together with its base, as one generator.

    Raises:
        CheckpointError: the base is not there, or holds no StyleGAN2 generator.
        KeyMismatchError: the base is not the one that the layers were grown on.
    """
    from limner.checkpoints import load as load_any  # the base may come in any format

    file = read_detail(source)
    path = base_path(file.base, source, options)
    generator = load_any(path, parts=("generator",)).generator
    if not isinstance(generator, Generator):
        raise CheckpointError(f"{path}, the base of {source.path}, holds no StyleGAN2 generator")
    file.check_base(generator, str(path))
    checkpoint = Checkpoint(KIND, metadata={**file.metadata, "base": file.base})
    if options.wants("generator"):
        checkpoint.generator = file.detail.grow(generator)
    return checkpoint


@torch.no_grad()
def save_detail(
    grown: Generator,
    base: Generator,
    path: PathLike,
    *,
    base_name: str,
    metadata: Mapping[str, Any] | None = None,
    noise_seed: int = 0,
) -> None:
    """Write a grown generator as its layers above the base's; the file appears whole or not at all.

    Args:
        grown: whose layers up to the base's resolution are the base's.
        base: what it was grown on, as it will be loaded: in the precision of its file.
        path: where to.
        base_name: what the base is called in `limner.zoo`, or its file's name beside ``path``.
        metadata: ``provenance``, ``licence`` and other plain values.
        noise_seed: of the fixed noise.

    Raises:
        KeyMismatchError: the grown generator is not larger, or its lower layers are not the base's.
        CheckpointError: the file cannot be written, or half precision cannot hold a weight.
    """
    detail = Detail(config=grown.config(), below=base.resolution, noise_seed=noise_seed)
    detail.take(grown)
    ours, theirs = grown.state_dict(), base.state_dict()
    # The mean of w is measured anew by every run.
    changed = [
        name
        for name, value in theirs.items()
        if name != "w_avg" and not name.endswith(NOISE) and not torch.equal(value, ours[name])
    ]
    if changed:
        raise KeyMismatchError(
            f"the grown generator's {changed[0]} is not the base's ({len(changed)} tensors differ); train with a "
            "grow_kimg as long as the run, which leaves the base's layers alone"
        )
    state = {name: value for name, value in detail.state_dict().items() if not name.endswith(NOISE)}
    tensors = {PREFIX + name: value.half().contiguous() for name, value in state.items()}
    if not all(value.isfinite().all() for value in tensors.values()):
        raise CheckpointError(
            "a weight of the grown layers is too large for half precision; train them again"
        )
    about = dict(metadata or {})
    header = {
        "version": VERSION,
        "kind": KIND,
        "base": {"name": base_name, "digest": deltas.digest(base)},
        "detail": detail.config(),
        "provenance": plain_values(about.pop("provenance", {})),
        "licence": str(about.pop("licence", "unknown")),
        "metadata": plain_values(about),
    }
    with replace_file(path) as temporary:
        save_file(tensors, temporary, {ENTRY: json.dumps(header, sort_keys=True)})


FORMAT = Format(KIND, "detail: layers grown above a base model", detect, load)
