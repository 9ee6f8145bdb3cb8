"""rosinality's StyleGAN2 ``.pt``: training files, converted files, JoJoGAN's, bare state dicts.

Training file: ``g, d, g_ema, g_optim, d_optim, args, ada_aug_p``; converted file: ``g_ema, latent_avg`` and
perhaps ``g, d``; a JoJoGAN style: ``g`` alone.  What is written is a converted file.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limner.checkpoints.checkpoint import Checkpoint, Format, PathLike, ReadOptions, plain_values
from limner.checkpoints.keymaps import (
    DISCRIMINATOR_KERNELS,
    GENERATOR_KERNELS,
    discriminator_rows,
    generator_rows,
    rosinality_discriminator_kernels,
    rosinality_generator_kernels,
)
from limner.checkpoints.networks import as_tensor, build_discriminator, build_generator
from limner.checkpoints.source import Source, replace_file
from limner.errors import CheckpointError, KeyMismatchError
from limner.nn.stylegan1 import Generator as StyleGan1Generator
from limner.nn.stylegan2 import Discriminator, Generator

GENERATOR_MARK = "conv1.conv.modulation.weight"
DISCRIMINATOR_MARK = "final_conv.0.weight"
NOTES = ("args", "ada_aug_p", "iter")


def strip_module(state: Any) -> Any:
    """Remove the ``module.`` that parallel training puts before every name."""
    if isinstance(state, Mapping) and state and all(str(name).startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def sections(source: Source) -> dict[str, Any]:
    """Return ``g``, ``d``, ``g_ema``, ... of a file; a bare state dict counts as ``g_ema`` or ``d``."""
    state = source.state
    if not isinstance(state, Mapping):
        return {}
    state = strip_module(state)
    if GENERATOR_MARK in state:
        return {"g_ema": state}
    if DISCRIMINATOR_MARK in state and "convs.0.0.weight" in state:
        return {"d": state}
    return {name: strip_module(value) for name, value in state.items()}


def detect(source: Source) -> bool:
    """Recognise the layout by a tensor of the generator or the discriminator."""
    found = sections(source)
    generators = (found.get(name) for name in ("g_ema", "g"))
    if any(isinstance(state, Mapping) and GENERATOR_MARK in state for state in generators):
        return True
    return isinstance(found.get("d"), Mapping) and DISCRIMINATOR_MARK in found["d"]


def load(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a file; ``g_ema`` becomes the generator, and ``g`` where it is alone.

    Raises:
        KeyMismatchError: names or shapes do not fit.
    """
    found = sections(source)
    return load_sections(found, source, options, format_name="rosinality")


def load_sections(
    found: dict[str, Any], source: Source, options: ReadOptions, *, format_name: str
) -> Checkpoint:
    """Build a checkpoint from ``g_ema``, ``g``, ``d``, ``latent_avg``."""
    names = {
        name
        for name, mark in (("g_ema", 1), ("g", 1), ("d", 1))
        if isinstance(found.get(name), Mapping) and mark
    }
    main = "g_ema" if "g_ema" in names else "g"
    raw = "g" if {"g", "g_ema"} <= names else None
    latent_avg = as_tensor(found.get("latent_avg"))
    checkpoint = Checkpoint(format_name)
    for part, name in (("generator", main), ("raw_generator", raw)):
        if name not in names or not options.wants(part):
            continue
        what = f"the generator `{name}` of {source.path}"
        generator, notes = build_generator(found[name], "rosinality", what=what, kernels=GENERATOR_KERNELS)
        if latent_avg is not None:
            notes["w_avg"] = _set_latent_avg(generator, latent_avg, source)
        setattr(checkpoint, part, generator)
        if part == "generator":
            checkpoint.metadata |= notes | {"section": name}
    if "d" in names and options.wants("discriminator"):
        what = f"the discriminator `d` of {source.path}"
        checkpoint.discriminator = build_discriminator(
            found["d"], "rosinality", what=what, kernels=DISCRIMINATOR_KERNELS
        )
    notes = {name: plain_values(found[name]) for name in NOTES if name in found}
    if notes:
        checkpoint.metadata["training"] = notes
    return checkpoint


def _set_latent_avg(generator: Generator, latent_avg: Tensor, source: Source) -> str:
    if latent_avg.numel() != generator.w_dim:
        raise KeyMismatchError(
            f"`latent_avg` of {source.path} has shape {tuple(latent_avg.shape)}, "
            f"expected ({generator.w_dim},)"
        )
    generator.w_avg.copy_(latent_avg.reshape(-1).float())
    return "stored"


def generator_state(generator: Generator) -> dict[str, Tensor]:
    """Return a generator's tensors under rosinality's names, FIR kernels included."""
    config, state = generator.config(), generator.state_dict()
    kernels = rosinality_generator_kernels(generator.resolution)
    named = {}
    for row in generator_rows(generator.resolution, config["mapping_depth"], bool(config["label_dim"])):
        if row.rosinality is not None:
            name, operation = row.rosinality
            named[name] = operation.from_limner(state[row.limner].detach().cpu()).contiguous().clone()
    return named | kernels


def discriminator_state(discriminator: Discriminator) -> dict[str, Tensor]:
    """Return a discriminator's tensors under rosinality's names, FIR kernels included."""
    state = discriminator.state_dict()
    named = {}
    for row in discriminator_rows(discriminator.resolution):
        if row.rosinality is not None:
            name, operation = row.rosinality
            named[name] = operation.from_limner(state[row.limner].detach().cpu()).contiguous().clone()
    return named | rosinality_discriminator_kernels(discriminator.resolution)


def save(checkpoint: Checkpoint, path: PathLike) -> None:
    """Write a converted file: ``g_ema``, ``latent_avg``, and ``g`` and ``d`` where the checkpoint has them.

    A warning says where the original programs cannot load the file as it is.

    Raises:
        CheckpointError: no generator, a class-conditional one (the layout has no place for labels), no
            permission.
    """
    if checkpoint.generator is None and checkpoint.discriminator is None:
        raise CheckpointError(f"there is nothing to write to {path}: no generator and no discriminator")
    if isinstance(checkpoint.generator, StyleGan1Generator):
        raise CheckpointError(
            f"{path}: rosinality's layout has no place for StyleGAN1; write lernapparat's (--format lernapparat)"
        )
    contents: dict[str, Any] = {}
    remarks: list[str] = []
    for name, generator in (("g_ema", checkpoint.generator), ("g", checkpoint.raw_generator)):
        if generator is not None:
            remarks += remarks_on(generator.config(), "generator")
            contents[name] = generator_state(generator)
    if checkpoint.generator is not None:
        contents["latent_avg"] = checkpoint.generator.w_avg.detach().cpu().clone()
    if checkpoint.discriminator is not None:
        remarks += remarks_on(checkpoint.discriminator.config(), "discriminator")
        contents["d"] = discriminator_state(checkpoint.discriminator)
    if remarks:
        warnings.warn(f"{path}: {'; '.join(dict.fromkeys(remarks))}", UserWarning, stacklevel=2)
    with replace_file(path) as temporary:
        torch.save(contents, temporary)


def original_channels(resolution: int, multiplier: int) -> dict[int, int]:
    """Return the channel table that rosinality's programs compute."""
    sizes = (4 << j for j in range(resolution.bit_length() - 2))
    return {size: 512 if size <= 32 else 16384 // size * multiplier for size in sizes}


def remarks_on(config: dict[str, Any], part: str) -> list[str]:
    """Say what the original programs need to be told, or cannot do."""
    if config["label_dim"]:
        raise CheckpointError(
            f"the {part} is class-conditional; rosinality's layout has no place for class labels"
        )
    resolution, found = config["resolution"], config["channels"]
    remarks = []
    fits = [m for m in (1, 2) if original_channels(resolution, m) == found and resolution <= 1024]
    if not fits:
        remarks.append(
            f"the original programs cannot load this {part}: its channels are {found}, "
            f"theirs {original_channels(resolution, 2)}"
        )
    elif 2 not in fits:
        remarks.append("the original programs need --channel_multiplier 1")
    if config["rgb_channels"] != 3:
        remarks.append(f"the original programs expect 3 colours, the {part} has {config['rgb_channels']}")
    if part == "generator" and config["z_dim"] != config["w_dim"]:
        remarks.append(
            f"the original programs expect z and w of one width, here {config['z_dim']} and {config['w_dim']}"
        )
    if part == "generator" and config["w_dim"] != 512:
        remarks.append(f"the original programs need style_dim={config['w_dim']}")
    if part == "generator" and config["mapping_depth"] != 8:
        remarks.append(f"the original programs need n_mlp={config['mapping_depth']}")
    if part == "discriminator" and (config["std_group"], config["std_channels"]) != (4, 1):
        remarks.append(
            "the original discriminator takes its statistics over groups of 4 images and 1 channel"
        )
    if config["activation_clamp"] is not None:
        remarks.append(f"the layout has no place for the activation clamp of {config['activation_clamp']:g}")
    return remarks


FORMAT = Format(
    "rosinality",
    "rosinality's StyleGAN2 .pt (training, converted, JoJoGAN)",
    detect,
    load,
    save,
    (".pt", ".pth"),
)
