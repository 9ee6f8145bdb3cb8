"""DualStyleGANs kept as differences: the extrinsic path to its start weights, the intrinsic one to a bundled base.

The file is a safetensors file whose header says ``kind: dual``; it names the base, carries the digest of its generator
and the number that the start weights are made from (`limner.nn.dual_start`).  Tensors are ``delta.*``, packed by
`limner.nn.packing`, or, of models whose weights are of low rank already, ``whole.*`` in 8 bits with a scale per row; and
``codes.*``, the styles' z+ codes in 8 bits with a scale per row; and, where there is one, ``sampler.*``, likewise.  Read, it
is a whole model.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.checkpoints.checkpoint import Checkpoint, Format, PathLike, ReadOptions, plain_values
from limner.checkpoints.child import base_path
from limner.checkpoints.native import ENTRY, VERSION, is_kind, read_header
from limner.checkpoints.source import Source, open_source, replace_file
from limner.errors import CheckpointError, KeyMismatchError, LimnerError, ShapeError
from limner.nn import deltas
from limner.nn.dual_start import start_extrinsic
from limner.nn.dualstylegan import DualGenerator, StyleSampler
from limner.nn.packing import HEADER_BYTES, pack, pack_rows, unpack, unpack_rows
from limner.nn.stylegan2 import Generator

KIND = "dual"
DELTA, WHOLE, CODES, SAMPLER, SCALE = "delta.", "whole.", "codes.", "sampler.", ".scale"
COUNTER = "num_batches_tracked"
BUDGET_BYTES = 2_400_000
HEADER_SLACK = 6_000


def detect(source: Source) -> bool:
    """Recognise a safetensors file whose header says that it is a DualStyleGAN kept as a difference."""
    return is_kind(source, KIND)


def load(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a DualStyleGAN together with its base.

    Raises:
        CheckpointError: the base is not there, or the file is damaged.
        KeyMismatchError: the base is not the one that the model was made from.
    """
    from limner.checkpoints import load as load_any  # the base may come in any format

    header = read_header(source, KIND)
    try:
        name, digest, config = header["base"]["name"], header["base"]["digest"], dict(header["dual"])
        seed, names = int(header["start_seed"]), dict(header["codes"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source.path}: the header is broken ({error!r}); fetch it again") from None
    path = base_path(name, source, options)
    generator = load_any(path, parts=("generator",)).generator
    if not isinstance(generator, Generator):
        raise CheckpointError(f"{path}, the base of {source.path}, holds no StyleGAN2 generator")
    found = deltas.digest(generator)
    if found != digest:
        raise KeyMismatchError(
            f"the base differs: this DualStyleGAN belongs to {name} with digest {digest[:12]}, but {path} has "
            f"{found[:12]}; take the base it was made from, or make it again (scripts/bundle_dual.py)"
        )
    metadata = dict(header.get("metadata") or {})
    metadata |= {key: header[key] for key in ("provenance", "licence", "compression") if key in header}
    checkpoint = Checkpoint(KIND, metadata=metadata | {"base": name})
    try:
        if options.wants("dual") or options.wants("generator"):
            dual = DualGenerator.around(generator, **config)
            dual.generator = generator
            restore(dual, source.state, seed=seed)
            dual.eval().requires_grad_(False)
            checkpoint.generator = dual.generator
            checkpoint.dual = dual if options.wants("dual") else None
        checkpoint.codes = {
            kind: dict(zip(styles, unpack_codes(source.state, kind), strict=True))
            for kind, styles in names.items()
        }
        if options.wants("sampler") and "sampler" in header:
            checkpoint.sampler = unpack_sampler(source.state, dict(header["sampler"]))
    except (LimnerError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{source.path} is damaged: {error}") from None
    return checkpoint


def restore(dual: DualGenerator, packed: Mapping[str, Tensor], *, seed: int) -> None:
    """Give a model its start weights, add a packed difference and put in the tensors that are kept whole.

    Args:
        dual: of the same sizes.
        packed: tensors of the file; those of other parts are passed over.
        seed: of the start weights.

    Raises:
        KeyMismatchError, ShapeError: the tensors do not fit.
    """
    start_extrinsic(dual, seed=seed)
    gains = weight_gains(dual)
    delta, whole = (
        {key.removeprefix(kind): value for key, value in packed.items() if key.startswith(kind)}
        for kind in (DELTA, WHOLE)
    )
    delta, whole = unpack(delta), unpack_rows(whole)
    for part in (delta, whole):
        deltas.check(dual, part)
    deltas.add_(dual, [({name: change / gains[name] for name, change in delta.items()}, 1.0)])
    state = dual.state_dict()
    with torch.no_grad():
        for name, value in whole.items():
            state[name].copy_(value)


def weight_gains(dual: DualGenerator) -> dict[str, float]:
    """Return, for every tensor of the extrinsic path, the factor that makes changes of all layers weigh alike.

    `limner.nn.packing` takes weights for equalised ones.  Those of affine layers are used as they are, and those of the
    extrinsic mapping network are stored a hundred times larger.
    """
    found = {}
    for name, value in dual.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "style":
            found[name] = float(getattr(dual.style.layers[int(rest.split(".")[1])], "lr_multiplier"))  # noqa: B009
        elif part in ("structure", "fine") and rest.endswith("affine.weight"):
            found[name] = math.sqrt(value.shape[1])
        elif part != "generator":
            found[name] = 1.0
    return found


def pack_codes(codes: Tensor) -> tuple[Tensor, Tensor]:
    """z+ (N, L, z_dim) -> numbers in 8 bits and a scale per row, (N, L)."""
    scale = codes.abs().amax(2).clamp_min(1e-12) / 127
    return (codes / scale[:, :, None]).round().to(torch.int8), scale.float()


def unpack_codes(tensors: Mapping[str, Tensor], kind: str) -> Tensor:
    """Return what `pack_codes` stored.

    Raises:
        ShapeError: numbers and scales do not fit.
    """
    numbers, scale = tensors[CODES + kind], tensors[CODES + kind + SCALE]
    if numbers.ndim != 3 or scale.shape != numbers.shape[:2]:
        raise ShapeError(f"codes {kind} have shapes {tuple(numbers.shape)} and {tuple(scale.shape)}")
    return numbers.float() * scale.float()[:, :, None]


def pack_sampler(sampler: StyleSampler) -> dict[str, Tensor]:
    """Return a sampler's tensors as they are stored, in 8 bits; its counters of batches are of no use any more."""
    state = {name: value for name, value in sampler.state_dict().items() if not name.endswith(COUNTER)}
    return {SAMPLER + name: value for name, value in pack_rows(state).items()}


def unpack_sampler(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> StyleSampler:
    """Return the sampler that `pack_sampler` stored, frozen.

    Raises:
        KeyMismatchError, ShapeError, RuntimeError: the tensors do not fit its sizes.
    """
    sampler = StyleSampler(**config)
    packed = {key.removeprefix(SAMPLER): value for key, value in tensors.items() if key.startswith(SAMPLER)}
    counters = {name: value for name, value in sampler.state_dict().items() if name.endswith(COUNTER)}
    sampler.load_state_dict(unpack_rows(packed) | counters)
    return sampler.eval().requires_grad_(False)


@torch.no_grad()
def save_dual(
    dual: DualGenerator,
    codes: Mapping[str, Tensor],
    base: Generator,
    path: PathLike,
    *,
    base_name: str,
    start_seed: int,
    sampler: StyleSampler | None = None,
    budget_bytes: int = BUDGET_BYTES,
    metadata: Mapping[str, Any] | None = None,
    samples: int = 16,
    seed: int = 0,
) -> dict[str, float]:
    """Write a DualStyleGAN as its difference; the file appears whole or not at all.

    Args:
        dual: the model, trained from start weights (`limner.nn.dual_start.start_extrinsic`) around ``base``.
        codes: name -> z+ code (L, z_dim) of the styles to paint with.
        base: its intrinsic path, as it will be loaded: in the precision of its file.
        path: where to.
        base_name: what the base is called in `limner.zoo`, or its file's name beside ``path``.
        start_seed: number of the start weights.
        sampler: draws unseen styles; None for a file without.
        budget_bytes: largest size of the file.
        metadata: ``provenance``, ``licence`` and other plain values.
        samples, seed: random faces, in as many of the styles, on which the loss from packing is measured.

    Returns:
        ``bytes_before``, ``bytes_after``, ``weight_error`` (root of squared error over squared change),
        ``picture_error`` (root mean square between the pictures before and after packing, pixels from -1 to 1),
        ``picture_change`` (the same between plain and restyled faces) and ``styles``.

    Raises:
        KeyMismatchError: the model's intrinsic path is not the base.
        CheckpointError: no codes, a budget too small for them, or the file cannot be written.
    """
    if not codes:
        raise CheckpointError("the model has no style codes; train it as far as its portraits have codes")
    own = deltas.digest(base)
    if deltas.digest(dual.generator) != own:
        raise KeyMismatchError(f"the model's intrinsic path is not {base_name} (digest {own[:12]})")
    stacked = torch.stack(list(codes.values()))
    numbers, scale = pack_codes(stacked)
    drawing = {} if sampler is None else pack_sampler(sampler)
    left = budget_bytes - numbers.numel() - 4 * scale.numel() - 2 * HEADER_BYTES
    left -= sum(value.numel() * value.element_size() + HEADER_BYTES for value in drawing.values())
    left -= HEADER_SLACK + len(json.dumps(list(codes)))
    if left <= 0:
        raise CheckpointError(f"{len(codes)} codes do not fit {budget_bytes} bytes; give a larger budget")
    start = copy.deepcopy(dual)
    start_extrinsic(start, seed=start_seed)
    before_bytes, weight_error, tensors = _pack(dual, start, left)
    restore(start, tensors, seed=start_seed)
    network_bytes = sum(value.numel() * value.element_size() for value in tensors.values())
    tensors |= {CODES + "refined": numbers.contiguous(), CODES + "refined" + SCALE: scale.contiguous()}
    plain, before, after = _pictures(dual, start, stacked, unpack_codes(tensors, "refined"), samples, seed)
    tensors |= drawing
    compression = {
        "bytes_before": before_bytes + 4 * stacked.numel(),
        "bytes_after": network_bytes + numbers.numel() + 4 * scale.numel(),
        "weight_error": round(weight_error, 5),
        "picture_error": round(_rms(after - before), 5),
        "picture_change": round(_rms(before - plain), 5),
        "styles": float(len(codes)),
    }
    about = dict(metadata or {})
    header = {
        "version": VERSION,
        "kind": KIND,
        "base": {"name": base_name, "digest": own},
        "dual": dual.extra,
        "start_seed": start_seed,
        "codes": {"refined": list(codes)},
        **({} if sampler is None else {"sampler": sampler.config()}),
        "provenance": plain_values(about.pop("provenance", {})),
        "licence": str(about.pop("licence", "unknown")),
        "compression": compression,
        "metadata": plain_values(about),
    }
    with replace_file(path) as temporary:
        save_file(tensors, temporary, {ENTRY: json.dumps(header, sort_keys=True)})
    return compression


def _pack(
    dual: DualGenerator, start: DualGenerator, budget_bytes: int
) -> tuple[int, float, dict[str, Tensor]]:
    """Return size before, error of the weights, and the tensors of the extrinsic path to be stored."""
    gains = weight_gains(dual)
    delta = deltas.difference(dual, start)
    if dual.rank is None:
        packed = pack(
            {name: change * gains[name] for name, change in delta.items()}, budget_bytes=budget_bytes
        )
        tensors = {DELTA + name: value.contiguous() for name, value in packed.tensors.items()}
        return packed.bytes_before, packed.error, tensors
    state = dual.state_dict()
    whole = {name: state[name].detach().float().cpu() for name, change in delta.items() if bool(change.any())}
    stored = pack_rows(whole)
    size = sum(value.numel() * value.element_size() for value in stored.values()) + HEADER_BYTES * len(stored)
    if size > budget_bytes:
        raise CheckpointError(
            f"the extrinsic path of rank {dual.rank} needs {size} bytes, the budget leaves {budget_bytes}; train with a "
            "lower rank, or keep fewer styles"
        )
    lost = sum(float((value - whole[name]).square().sum()) for name, value in unpack_rows(stored).items())
    total = sum(float(value.square().sum()) for value in whole.values())
    before = sum(4 * value.numel() for value in whole.values())
    return before, (lost / total) ** 0.5 if total else 0.0, {WHOLE + name: v for name, v in stored.items()}


def read_extrinsic(path: PathLike, dual: DualGenerator) -> str:
    """Give a model the extrinsic path of a packed one, whatever base that was made for; return a sentence on it.

    Args:
        path: file of kind `KIND`.
        dual: of the same sizes; its intrinsic part stays.

    Raises:
        CheckpointError: another kind of file, or a broken one.
        KeyMismatchError, ShapeError: the tensors do not fit the model.
    """
    source = open_source(Path(path))
    if not detect(source):
        raise CheckpointError(f"{path} is no DualStyleGAN kept as a difference")
    header = read_header(source, KIND)
    try:
        own, seed, digest = dict(header["dual"]), int(header["start_seed"]), header["base"]["digest"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header is broken ({error!r}); fetch it again") from None
    if own != dual.extra:
        raise KeyMismatchError(f"{path} has an extrinsic path of {own}, expected {dual.extra}")
    restore(dual, source.state, seed=seed)
    return f"{path}, made for a base with digest {str(digest)[:12]}"


def _pictures(
    dual: DualGenerator, packed: DualGenerator, codes: Tensor, packed_codes: Tensor, samples: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random faces plain, in styles, and in styles after packing."""
    rng, base = torch.Generator().manual_seed(seed), dual.generator
    w_plus = base.broadcast(base.mapping(torch.randn(samples, base.z_dim, generator=rng).to(base.w_avg)))
    chosen = (
        torch.arange(samples) * len(codes) // samples
        if samples <= len(codes)
        else torch.arange(samples) % len(codes)
    )
    images = [base.synthesis(w_plus)]
    for network, values in ((dual, codes), (packed, packed_codes)):
        images.append(network(w_plus, base.map_z_plus(values[chosen].to(base.w_avg))))
    plain, before, after = (image.clamp(-1, 1) for image in images)
    return plain, before, after


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


FORMAT = Format("dual", "DualStyleGAN as its difference to a base", detect, load)
