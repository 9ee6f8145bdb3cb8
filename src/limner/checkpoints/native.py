"""Limner's own files: safetensors with the architecture as JSON in the metadata.

Tensors are named ``generator.*``, ``discriminator.*``, ... as in the modules' ``state_dict()``.
"""

from __future__ import annotations

import json
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from limner.checkpoints.checkpoint import (
    PARTS,
    Checkpoint,
    Codes,
    Format,
    PathLike,
    ReadOptions,
    plain_values,
)
from limner.checkpoints.mismatch import check_fit
from limner.checkpoints.networks import Skeleton, adopt
from limner.checkpoints.source import Source, replace_file
from limner.errors import CheckpointError, KeyMismatchError, LimnerError, UnknownFormatError
from limner.nn import stylegan1
from limner.nn.dualstylegan import DualGenerator, StyleSampler
from limner.nn.encoders import Encoder
from limner.nn.hyperinverter import HyperInverter
from limner.nn.stylegan2 import Discriminator, Generator

VERSION = 1
ENTRY = "limner"
CODES = "codes"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
BUILDERS: dict[str, Any] = {
    "generator": Generator,
    "discriminator": Discriminator,
    "encoder": Encoder,
    "raw_generator": Generator,
    "dual": DualGenerator,
    "raw_dual": DualGenerator,
    "sampler": StyleSampler,
}
"""Part -> class whose keyword arguments stand in the header."""
DESCRIBED = (Generator, Discriminator, Encoder, HyperInverter, DualGenerator, StyleSampler)
ARCHITECTURES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "stylegan1": (stylegan1.Generator, ("generator", "raw_generator")),
    "hyperinverter": (HyperInverter, ("encoder",)),
}
"""Entry ``architecture`` among the arguments -> class in place of the part's, and the parts it may be."""
OTHER_READERS = {
    "style": "limner.load_style",
    "encoder": "limner.checkpoints.compact.load_encoder",
    "translator": "limner.pipeline.load_translation_models",
    "trunk": "limner.nn.features.load_trunk",
    "detector": "limner.faces.detect.load_mtcnn",
    "identity": "limner.nn.identity.load_identity",
}
"""Kinds of files that are no models -> what reads them."""


def detect(source: Source) -> bool:
    """Recognise a safetensors file with Limner's header."""
    return source.container == "safetensors" and ENTRY in source.metadata


def read_about(source: Source) -> dict[str, Any]:
    """Return the header of one of Limner's files that are no models (styles, encoders, trunks), else nothing."""
    try:
        header = json.loads(source.metadata.get(ENTRY, ""))
    except ValueError:
        return {}
    return header if isinstance(header, dict) and isinstance(header.get("kind"), str) else {}


def is_kind(source: Source, kind: str) -> bool:
    """Recognise a safetensors file whose header says that it is of a kind."""
    return detect(source) and read_about(source).get("kind") == kind


def read_header(source: Source, wanted: str = "model") -> dict[str, Any]:
    """Return the header of a native file.

    Args:
        source: the file.
        wanted: the kind it must be of.

    Raises:
        UnknownFormatError: written by a newer Limner, or of another kind.
        CheckpointError: the header is broken.
    """
    try:
        header = json.loads(source.metadata[ENTRY])
        version, kind = int(header["version"]), header["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{source.path}: the header is broken ({error!r}); fetch the file again"
        ) from None
    if version > VERSION:
        raise UnknownFormatError(
            f"{source.path} has version {version}, this Limner reads up to {VERSION}; update Limner"
        )
    if kind != wanted:
        reader = OTHER_READERS.get(kind)
        raise UnknownFormatError(
            f"{source.path} is {'an' if kind[:1] in 'aeiou' else 'a'} {kind}, expected a {wanted}"
            + (f"; {reader} reads it" if reader else "")
        )
    return header


def load(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a native model.

    Raises:
        KeyMismatchError: the tensors do not fit the architecture in the header.
    """
    header = read_header(source)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in source.state.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    codes = parts.pop(CODES, {})
    unknown = [part for part in parts if part not in BUILDERS or part not in header]
    if unknown:
        raise KeyMismatchError(
            f"{source.path} holds parts that its header does not describe: {', '.join(unknown)}"
        )
    checkpoint = Checkpoint("limner", metadata=dict(header.get("metadata") or {}))
    for key in ("provenance", "licence"):
        if key in header:
            checkpoint.metadata[key] = header[key]
    for part, tensors in parts.items():
        if options.wants(part):
            what = f"the {part} of {source.path}"
            kind, config = _builder(part, header[part], what)
            setattr(checkpoint, part, build_network(kind, config, tensors, what=what))
    if checkpoint.generator is None and checkpoint.dual is not None:
        checkpoint.generator = checkpoint.dual.generator
    checkpoint.codes = _named_codes(codes, header.get(CODES), source)
    return checkpoint


def _named_codes(stacked: dict[str, Tensor], names: Any, source: Source) -> Codes:
    """Return kind -> name -> code, from one tensor (N, L, z_dim) per kind and the names in the header."""
    names = names if isinstance(names, dict) else {}
    odd = [kind for kind in {*names, *stacked} if len(names.get(kind, ())) != len(stacked.get(kind, ()))]
    if odd:
        raise KeyMismatchError(f"{source.path}: codes and their names differ in number: {', '.join(odd)}")
    return {
        kind: {
            str(name): code.to(torch.float32, copy=True)
            for name, code in zip(names[kind], codes, strict=True)
        }
        for kind, codes in stacked.items()
    }


def _builder(part: str, config: Any, what: str) -> tuple[Any, dict[str, Any]]:
    """Return the class that a part's header means, and its arguments."""
    if not isinstance(config, dict):
        raise KeyMismatchError(f"{what}: its header describes no network ({config!r})")
    name = config.get("architecture")
    if name is None:
        return BUILDERS[part], config
    if part not in ARCHITECTURES.get(str(name), (None, ()))[1]:
        raise KeyMismatchError(
            f"{what} has the architecture {name!r}; this Limner knows {', '.join(ARCHITECTURES)}; update Limner"
        )
    return ARCHITECTURES[name][0], {key: value for key, value in config.items() if key != "architecture"}


def describe(
    network: Generator | Discriminator | Encoder | HyperInverter | DualGenerator | StyleSampler,
) -> dict[str, Any]:
    """Return what a header says of a network: its architecture, unless it is StyleGAN2's, and its arguments."""
    names = [name for name, (kind, _) in ARCHITECTURES.items() if type(network) is kind]
    return {**({"architecture": names[0]} if names else {}), **network.config()}


def build_network(kind: Any, config: dict[str, Any], tensors: dict[str, Tensor], *, what: str) -> nn.Module:
    """Build a module from its arguments and tensors.

    Raises:
        KeyMismatchError: the arguments or the tensors do not fit.
    """
    try:
        with Skeleton():
            network = kind(**config)
    except (TypeError, ValueError, RuntimeError, LimnerError) as error:
        raise KeyMismatchError(f"{what}: its header describes no network ({error})") from None
    check_fit(network, tensors, what=what)
    own = {
        name: value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
        for name, value in tensors.items()
    }
    adopt(network, own, what=what)
    return network


def save(checkpoint: Checkpoint, path: PathLike, *, dtype: str = "float32") -> None:
    """Write a native model, all at once.

    Args:
        checkpoint: the model.
        path: where to.
        dtype: ``float32``, or ``float16`` for half the size: matrices, kernels and maps lose precision
            (relative error 5e-4), vectors and scalars do not.

    Raises:
        CheckpointError: no networks, unknown dtype, values too large for float16, no permission.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    header: dict[str, Any] = {"version": VERSION, "kind": "model", "dtype": dtype}
    tensors: dict[str, Tensor] = {}
    for part, network in checkpoint.parts().items():
        if part not in BUILDERS:
            raise CheckpointError(
                f"the {part} ({type(network).__name__}) cannot be written to a native file yet"
            )
        header[part] = describe(cast("Generator | Discriminator", network))
        for name, value in network.state_dict().items():
            tensors[f"{part}.{name}"] = _stored(value, DTYPES[dtype], f"{part}.{name}")
    for kind, codes in checkpoint.codes.items():
        header.setdefault(CODES, {})[kind] = list(codes)
        tensors[f"{CODES}.{kind}"] = _stored(
            torch.stack(list(codes.values())), DTYPES[dtype], f"{CODES}.{kind}"
        )
    if not tensors:
        raise CheckpointError(
            f"there is nothing to write to {path}: the checkpoint has none of {', '.join(PARTS)}"
        )
    metadata = dict(checkpoint.metadata)
    header["provenance"] = plain_values(metadata.pop("provenance", {"format": checkpoint.format}))
    header["licence"] = str(metadata.pop("licence", "unknown"))
    header["metadata"] = plain_values(metadata)
    with replace_file(path) as temporary:
        save_file(tensors, temporary, {ENTRY: json.dumps(header, sort_keys=True)})


def _stored(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    value = value.detach().cpu()
    if dtype == torch.float16 and value.ndim >= 2:
        value = value.to(torch.float16)
        if not value.isfinite().all():
            raise CheckpointError(f"{name} holds values too large for float16; write float32")
    return value.contiguous().clone()


FORMAT = Format("limner", "Limner's own safetensors", detect, load, save, (".safetensors",))
