"""DualStyleGAN's files: the generator ``.pt``, the codes ``.npy`` and the sampler ``.pt``.

File: ``g_ema`` alone (released models), or ``g``, ``d``, ``g_ema`` and optimiser states (training, stage 2); within
them ``generator.`` (rosinality's StyleGAN2), ``style.`` (the extrinsic mapping) and ``res.`` (one entry per row).
Codes: a pickled dictionary, name of a picture -> z+ code (1, L, 512); ``refined_`` ones are the ones to use.
Sampler: ``structure`` and ``color``, two networks of three linear layers.

The three are read together: `load` of a generator takes the codes and the sampler that lie beside it under the
published names, and `save` writes them there.

Differs: the files hold no mean w; the original truncates towards zero instead.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.checkpoints.checkpoint import Checkpoint, Codes, Format, PathLike, ReadOptions, plain_values
from limner.checkpoints.keymaps import DISCRIMINATOR_KERNELS, GENERATOR_KERNELS
from limner.checkpoints.mismatch import mismatch_message
from limner.checkpoints.networks import Skeleton, adopt, as_tensor, build_discriminator, build_generator
from limner.checkpoints.rosinality import (
    NOTES,
    discriminator_state,
    generator_state,
    remarks_on,
    strip_module,
)
from limner.checkpoints.source import Source, open_source, replace_file
from limner.errors import CheckpointError, KeyMismatchError, ShapeError
from limner.nn.dualstylegan import DualGenerator, StyleSampler

MARK, INNER = "generator.conv1.conv.modulation.weight", "generator."
CODE_FILES = {
    "extrinsic": "exstyle_code.npy",
    "refined": "refined_exstyle_code.npy",
    "intrinsic": "instyle_code.npy",
}
SAMPLER_FILE = "sampler.pt"
SAMPLER_LAYERS = {"lin1": "0", "bn1": "1", "lin2": "3", "bn2": "4", "lin_out": "6"}
"""The published names of a sampler's layers -> theirs in `limner.nn.dualstylegan.StyleSampler`."""
NORMS = {"norm": "norm0", "norm2": "norm1"}
CONVOLUTIONS = {"conv": "conv0", "conv2": "conv1"}


# Generator


def _sections(source: Source) -> dict[str, Any]:
    state = source.state
    if not isinstance(state, Mapping):
        return {}
    state = strip_module(state)
    if MARK in state:
        return {"g_ema": state}
    return {str(name): strip_module(value) for name, value in state.items()}


def detect(source: Source) -> bool:
    """Recognise the layout by a tensor of the inner generator beside one of the outer network."""
    found = [state for name, state in _sections(source).items() if name in ("g_ema", "g")]
    return any(
        isinstance(state, Mapping) and MARK in state and any(str(name).startswith("res.") for name in state)
        for state in found
    )


def load(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a generator file with the codes and the sampler beside it; ``g_ema`` becomes ``dual``.

    Raises:
        KeyMismatchError: names or shapes do not fit.
        CheckpointError: a file beside it is damaged.
    """
    found = _sections(source)
    has = [name for name in ("g_ema", "g") if isinstance(found.get(name), Mapping) and MARK in found[name]]
    checkpoint = Checkpoint("dualstylegan")
    for part, name in zip(("dual", "raw_dual"), has, strict=False):
        # The intrinsic part can be had without the rest of it, but is read with it all the same.
        if options.wants(part) or (part == "dual" and options.wants("generator")):
            dual, notes = _build(found[name], what=f"the DualStyleGAN `{name}` of {source.path}")
            if options.wants(part):
                setattr(checkpoint, part, dual)
            if part == "dual":
                checkpoint.generator = dual.generator
                checkpoint.metadata |= notes | {"section": name}
    if isinstance(found.get("d"), Mapping) and options.wants("discriminator"):
        what = f"the discriminator `d` of {source.path}"
        checkpoint.discriminator = build_discriminator(
            found["d"], "rosinality", what=what, kernels=DISCRIMINATOR_KERNELS
        )
    training = {name: plain_values(found[name]) for name in NOTES if name in found}
    if training:
        checkpoint.metadata["training"] = training
    _load_companions(checkpoint, source.path, options)
    return checkpoint


def _load_companions(checkpoint: Checkpoint, path: Path, options: ReadOptions) -> None:
    if checkpoint.dual is None:
        return
    rows, taken = checkpoint.dual.num_rows, []
    for kind, name in CODE_FILES.items():
        beside = path.with_name(name)
        if beside.is_file():
            codes = read_codes(open_source(beside))
            if next(iter(codes.values())).shape[0] != rows:
                raise KeyMismatchError(
                    f"the codes in {beside} have {next(iter(codes.values())).shape[0]} rows, "
                    f"expected {rows} for {path.name}"
                )
            checkpoint.codes[kind] = codes
            taken.append(name)
    beside = path.with_name(SAMPLER_FILE)
    if options.wants("sampler") and beside.is_file() and beside != path:
        checkpoint.sampler = _read_sampler(open_source(beside))
        taken.append(SAMPLER_FILE)
    if taken:
        checkpoint.metadata["read_beside"] = taken


def _build(state: Mapping[str, Any], *, what: str) -> tuple[DualGenerator, dict[str, Any]]:
    """Build a dual generator from the original's tensors."""
    inner = {name.removeprefix(INNER): value for name, value in state.items() if name.startswith(INNER)}
    generator, notes = build_generator(inner, "rosinality", what=what, kernels=GENERATOR_KERNELS)
    rest = {str(name): as_tensor(value) for name, value in state.items() if not name.startswith(INNER)}
    rows = {
        int(match[1]) for name in rest if (match := re.fullmatch(r"res\.(\d{1,3})\.conv\.0\.weight", name))
    }
    depth = {int(match[1]) for name in rest if (match := re.fullmatch(r"style\.(\d{1,3})\.weight", name))}
    config = generator.config()
    del config["label_dim"]
    try:
        with Skeleton():
            dual = DualGenerator(
                **config, style_depth=max(depth, default=0), structure_rows=max(rows, default=0) + 1
            )
    except ShapeError as error:
        raise KeyMismatchError(f"{what}: {error}") from None
    names = outer_names(dual)
    shapes = {name: tuple(value.shape) for name, value in dual.state_dict().items()}
    missing = {theirs: ours for ours, theirs in names.items() if rest.get(theirs) is None}
    unknown = [name for name, value in rest.items() if name not in names.values() or value is None]
    misshapen = {
        theirs: (tuple(value.shape), shapes[ours])
        for ours, theirs in names.items()
        if (value := rest.get(theirs)) is not None and tuple(value.shape) != shapes[ours]
    }
    if missing or unknown or misshapen:
        raise KeyMismatchError(mismatch_message(what, missing, unknown, misshapen))
    tensors = {f"{INNER}{name}": value for name, value in generator.state_dict().items()}
    for ours, theirs in names.items():
        value = rest[theirs]
        assert value is not None
        tensors[ours] = value.to(torch.float32, copy=True).contiguous()
    adopt(dual, tensors, what=what)
    return dual, notes


def outer_names(dual: DualGenerator) -> dict[str, str]:
    """Return Limner's name -> the original's for every tensor outside the inner generator; the values are the same."""
    names = {}
    for name in dual.state_dict():
        part, *words = name.split(".")
        if part == "style":  # style.layers.0.weight -> style.1.weight; entry 0 normalises and has no weights
            names[name] = f"style.{int(words[1]) + 1}.{words[2]}"
        elif part == "color":
            names[name] = f"res.{dual.structure_rows + int(words[0])}.{words[1]}"
        elif part == "structure":
            row, layer, *leaf = words
            norm = next((theirs for theirs, ours in NORMS.items() if ours == layer), None)
            if norm is not None:  # norm0.affine.weight -> norm.style.weight
                names[name] = f"res.{row}.{norm}.style.{leaf[1]}"
            else:
                convolution = next(theirs for theirs, ours in CONVOLUTIONS.items() if ours == layer)
                names[name] = f"res.{row}.{convolution}.{0 if leaf[0] == 'weight' else 1}.{leaf[0]}"
    return names


def dual_state(dual: DualGenerator) -> dict[str, Tensor]:
    """Return a dual generator's tensors under the original's names, FIR kernels included."""
    state = dual.state_dict()
    named = {f"{INNER}{name}": value for name, value in generator_state(dual.generator).items()}
    for ours, theirs in outer_names(dual).items():
        named[theirs] = state[ours].detach().cpu().contiguous().clone()
    return named


def save(checkpoint: Checkpoint, path: PathLike, *, overwrite: bool = False) -> None:
    """Write a generator file, and beside it the codes and the sampler that the checkpoint has.

    A warning says where the original programs cannot load the file as it is.

    Args:
        checkpoint: with a ``dual``.
        path: the generator's file.
        overwrite: replace codes and a sampler that lie beside it already.

    Raises:
        CheckpointError: no DualStyleGAN, files beside it that may not be replaced, no permission.
    """
    path = Path(path)
    if checkpoint.dual is None:
        raise CheckpointError(
            f"there is nothing to write to {path}: the checkpoint holds no DualStyleGAN; "
            "plain generators are written as rosinality .pt or .safetensors"
        )
    if len(checkpoint.dual.fine):
        raise CheckpointError(
            f"{path}: the model has {len(checkpoint.dual.fine)} residual blocks beyond its structure rows (fine_blocks), "
            "which the original programs do not know; write it as .safetensors"
        )
    beside = [path.with_name(CODE_FILES[kind]) for kind in checkpoint.codes if kind in CODE_FILES]
    beside += [path.with_name(SAMPLER_FILE)] if checkpoint.sampler is not None else []
    taken = [file.name for file in beside if file.exists()]
    if taken and not overwrite:
        raise CheckpointError(
            f"{path.parent} has {', '.join(taken)} already, which belong to another model; "
            "name another folder, or let them be replaced"
        )
    config = checkpoint.dual.generator.config()
    remarks = remarks_on(config, "generator")
    if checkpoint.dual.config()["style_depth"] != config["mapping_depth"] - 6:
        remarks.append(
            "the original programs give the extrinsic mapping 6 layers less than the intrinsic one"
        )
    if checkpoint.dual.structure_rows != 7:
        remarks.append(f"the original programs need res_index={checkpoint.dual.structure_rows - 1}")
    if remarks:
        warnings.warn(f"{path}: {'; '.join(dict.fromkeys(remarks))}", UserWarning, stacklevel=2)
    contents: dict[str, Any] = {"g_ema": dual_state(checkpoint.dual.merged())}
    if checkpoint.raw_dual is not None:
        contents["g"] = dual_state(checkpoint.raw_dual.merged())
    if checkpoint.discriminator is not None:
        contents["d"] = discriminator_state(checkpoint.discriminator)
    with replace_file(path) as temporary:
        torch.save(contents, temporary)
    for kind, codes in checkpoint.codes.items():
        if kind in CODE_FILES:
            write_codes(codes, path.with_name(CODE_FILES[kind]))
    if checkpoint.sampler is not None:
        with replace_file(path.with_name(SAMPLER_FILE)) as temporary:
            torch.save(sampler_state(checkpoint.sampler), temporary)


FORMAT = Format(
    "dualstylegan",
    "DualStyleGAN's generator .pt",
    detect,
    load,
    save,
    (".pt", ".pth"),
    holds=lambda checkpoint: checkpoint.dual is not None,
)


# Codes


def detect_codes(source: Source) -> bool:
    """Recognise a dictionary of arrays in a numpy file."""
    state = source.state
    return source.container == "numpy" and isinstance(state, Mapping) and bool(state)


def read_codes(source: Source) -> dict[str, Tensor]:
    """Return name -> z+ code (L, z_dim) of a codes file, in its order.

    Raises:
        KeyMismatchError: not a dictionary of codes of one shape.
    """
    if not detect_codes(source):
        raise KeyMismatchError(f"{source.path} holds no codes; expected a dictionary of arrays (1, L, 512)")
    codes: dict[str, Tensor] = {}
    for name, value in source.state.items():
        code = as_tensor(value)
        if code is not None and code.ndim == 3 and len(code) == 1:
            code = code[0]
        if code is None or code.ndim != 2:
            found = type(value).__name__ if code is None else tuple(code.shape)
            raise KeyMismatchError(f"{source.path}: {name!r} is {found}, expected a code (1, L, 512)")
        codes[str(name)] = code.to(torch.float32, copy=True)
    shapes = {tuple(code.shape) for code in codes.values()}
    if len(shapes) > 1:
        raise KeyMismatchError(f"{source.path} holds codes of different shapes: {sorted(shapes)}")
    return codes


def write_codes(codes: Mapping[str, Tensor], path: PathLike) -> None:
    """Write a codes file as the original programs do: numpy, a pickled dictionary of arrays (1, L, z_dim)."""
    values: Any = {name: code.detach().cpu().float().numpy()[None] for name, code in codes.items()}
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    with replace_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_codes(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a codes file; its name tells the kind, see `CODE_FILES`."""
    stem = source.path.stem
    kind = "refined" if "refined" in stem else "intrinsic" if "instyle" in stem else "extrinsic"
    return Checkpoint("dualstylegan-codes", codes={kind: read_codes(source)})


CODES_FORMAT = Format("dualstylegan-codes", "DualStyleGAN's codes .npy", detect_codes, load_codes)


# Sampler


def detect_sampler(source: Source) -> bool:
    """Recognise the two networks by their output layers."""
    state = source.state
    return isinstance(state, Mapping) and all(
        isinstance(state.get(name), Mapping) and "lin_out.weight" in state[name]
        for name in ("structure", "color")
    )


def _read_sampler(source: Source) -> StyleSampler:
    if not detect_sampler(source):
        raise KeyMismatchError(
            f"{source.path} is no sampler; expected the networks `structure` and `color`, each with lin_out"
        )
    tensors: dict[str, Tensor] = {}
    unknown, widths = [], {}
    for part in ("structure", "color"):
        for name, raw in strip_module(source.state[part]).items():
            layer, _, leaf = str(name).partition(".")
            value = as_tensor(raw)
            if value is None or layer not in SAMPLER_LAYERS:
                unknown.append(f"{part}.{name}")
                continue
            tensors[f"{part}.{SAMPLER_LAYERS[layer]}.{leaf}"] = value
        widths[part] = _width(tensors.get(f"{part}.6.weight"), 0)
    first = tensors.get("structure.0.weight")
    # One row is as wide as divides both; published rows have 512 numbers.
    z_dim = 512 if not any(width % 512 for width in widths.values()) else _common_width(widths)
    with Skeleton():
        sampler = StyleSampler(
            structure_rows=widths["structure"] // z_dim,
            color_rows=widths["color"] // z_dim,
            z_dim=z_dim,
            noise_dim=_width(first, 1),
            hidden=_width(first, 0),
        )
    shapes = {name: tuple(value.shape) for name, value in sampler.state_dict().items()}
    missing = {name: name for name in shapes if name not in tensors}
    misshapen = {
        name: (tuple(value.shape), shapes.get(name))
        for name, value in tensors.items()
        if tuple(value.shape) != shapes.get(name)
    }
    what = f"the sampler of {source.path}"
    if missing or unknown or misshapen:
        raise KeyMismatchError(mismatch_message(what, missing, unknown, misshapen))
    adopt(sampler, {name: value.clone() for name, value in tensors.items()}, what=what)
    return sampler


def _width(value: Tensor | None, axis: int) -> int:
    return value.shape[axis] if value is not None and value.ndim > axis else 1


def _common_width(widths: Mapping[str, int]) -> int:
    """Return the width of a row where it is not 512: rows of structure are 7 wherever there are as many."""
    return widths["structure"] // 7 if widths["structure"] % 7 == 0 else 1


def sampler_state(sampler: StyleSampler) -> dict[str, dict[str, Tensor]]:
    """Return a sampler's tensors under the original's names."""
    state, back = sampler.state_dict(), {ours: theirs for theirs, ours in SAMPLER_LAYERS.items()}
    named: dict[str, dict[str, Tensor]] = {"structure": {}, "color": {}}
    for name, value in state.items():
        part, layer, leaf = name.split(".")
        named[part][f"{back[layer]}.{leaf}"] = value.detach().cpu().clone()
    return named


def load_sampler(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a sampler by itself."""
    sampler = _read_sampler(source) if options.wants("sampler") else None
    return Checkpoint("dualstylegan-sampler", sampler=sampler)


SAMPLER_FORMAT = Format("dualstylegan-sampler", "DualStyleGAN's sampler .pt", detect_sampler, load_sampler)


def style_codes(codes: Codes) -> dict[str, Tensor]:
    """Return the codes to paint with: the refined one of every style that has one, else the extrinsic one."""
    return codes.get("extrinsic", {}) | codes.get("refined", {})
