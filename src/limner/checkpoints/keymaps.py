"""How every format calls every tensor of a StyleGAN2, in tables, and what that says about the architecture.

A row names one tensor in four programs: Limner, rosinality's, NVIDIA's PyTorch and NVIDIA's TensorFlow code,
each with the operation that leads to Limner's layout.  mmgeneration's names are rosinality's after a few
replacements. All values are the same up to reshaping, except that TensorFlow keeps kernels as (k, k, in,
out), mirrors those of the up-sampling layers and leaves the 1 out of modulation biases.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

MAX_RESOLUTION = 4096
MAX_MAPPING = 64


class Operation(NamedTuple):
    """A change of layout and the way back."""

    to_limner: Callable[[Tensor], Tensor]
    from_limner: Callable[[Tensor], Tensor]


SAME = Operation(lambda x: x, lambda x: x)
LEAD = Operation(lambda x: x[0], lambda x: x[None])  # (1, ...) <-> (...)
LEAD2 = Operation(lambda x: x[0, 0], lambda x: x[None, None])  # (1, 1, r, r) <-> (r, r)
SCALAR = Operation(lambda x: x.reshape(()), lambda x: x.reshape(1))  # (1,) <-> ()
COLOUR = Operation(lambda x: x[0, :, 0, 0], lambda x: x[None, :, None, None])  # (1, C, 1, 1) <-> (C,)
DENSE = Operation(lambda x: x.permute(1, 0), lambda x: x.permute(1, 0))  # (in, out) <-> (out, in)
KERNEL = Operation(lambda x: x.permute(3, 2, 0, 1), lambda x: x.permute(2, 3, 1, 0))  # (k, k, in, out)
MIRRORED = Operation(lambda x: x.permute(3, 2, 0, 1).flip(2, 3), lambda x: x.flip(2, 3).permute(2, 3, 1, 0))
PLUS_ONE = Operation(lambda x: x + 1, lambda x: x - 1)

Name = tuple[str, Operation]


class Row(NamedTuple):
    """One tensor: Limner's name, and (name, operation) in each layout that has it."""

    limner: str
    rosinality: Name | None
    nvlabs: Name | None
    tensorflow: Name | None


class LimnerRow(Protocol):
    """A row of any table: its other fields are layouts, each None or (name, operation)."""

    @property
    def limner(self) -> str: ...


def _row(limner: str, rosinality: str, nvlabs: str, tensorflow: str, *operations: Operation) -> Row:
    first, third = operations or (SAME, SAME)
    return Row(limner, (rosinality, first), (nvlabs, SAME), (tensorflow, third))


# What follows a layer's own name, `{}`.  rosinality and TensorFlow number the noise maps separately.
MODULATION = (
    ("{}.affine.weight", "{}.conv.modulation.weight", "{}.affine.weight", "{}/mod_weight", SAME, DENSE),
    ("{}.affine.bias", "{}.conv.modulation.bias", "{}.affine.bias", "{}/mod_bias", SAME, PLUS_ONE),
)
CONVOLUTION = (
    *MODULATION,
    ("{}.bias", "{}.activate.bias", "{}.bias", "{}/bias", SAME, SAME),
    ("{}.noise_strength", "{}.noise.weight", "{}.noise_strength", "{}/noise_strength", SCALAR, SAME),
)
TO_RGB = (
    *MODULATION,
    ("{}.weight", "{}.conv.weight", "{}.weight", "{}/weight", LEAD, KERNEL),
    ("{}.bias", "{}.bias", "{}.bias", "{}/bias", COLOUR, SAME),
)


def _sizes(resolution: int) -> Iterator[tuple[int, int]]:
    """Yield (j, 4 * 2**j) from 4 px up."""
    for j in range(resolution.bit_length() - 2):
        yield j, 4 << j


def _mapping_rows(depth: int) -> Iterator[Row]:
    for i in range(depth):
        limner, ros, nv, tf = f"mapping.layers.{i}", f"style.{i + 1}", f"mapping.fc{i}", f"G_mapping/Dense{i}"
        yield _row(f"{limner}.weight", f"{ros}.weight", f"{nv}.weight", f"{tf}/weight", SAME, DENSE)
        yield _row(f"{limner}.bias", f"{ros}.bias", f"{nv}.bias", f"{tf}/bias")


def _embed_rows() -> Iterator[Row]:
    # Class labels: only NVIDIA's PyTorch code does it this way, rosinality's has no classes.
    for part in ("weight", "bias"):
        yield Row(f"mapping.embed.{part}", None, (f"mapping.embed.{part}", SAME), None)


def _expand(part: tuple, names: tuple[str, str, str, str]) -> Iterator[Row]:
    for *templates, first, third in part:
        yield _row(
            *(template.format(name) for template, name in zip(templates, names, strict=True)), first, third
        )


def _synthesis_layer(i: int, size: int) -> Iterator[Row]:
    up = i % 2 == 1
    tf = "G_synthesis/4x4/Conv" if i == 0 else f"G_synthesis/{size}x{size}/{'Conv0_up' if up else 'Conv1'}"
    ros, nv = ("conv1" if i == 0 else f"convs.{i - 1}"), f"synthesis.b{size}.conv{0 if up else 1}"
    limner = f"synthesis.layers.{i}"
    yield _row(
        f"{limner}.weight",
        f"{ros}.conv.weight",
        f"{nv}.weight",
        f"{tf}/weight",
        LEAD,
        MIRRORED if up else KERNEL,
    )
    yield from _expand(CONVOLUTION, (limner, ros, nv, tf))
    yield _row(
        f"{limner}.noise", f"noises.noise_{i}", f"{nv}.noise_const", f"G_synthesis/noise{i}", LEAD2, LEAD2
    )


@functools.cache
def generator_rows(resolution: int, depth: int, conditional: bool = False) -> tuple[Row, ...]:
    """Return the rows of a generator: mapping network, synthesis network, mean of w."""
    rows = [*_mapping_rows(depth), *(_embed_rows() if conditional else ())]
    rows.append(
        _row(
            "synthesis.const", "input.input", "synthesis.b4.const", "G_synthesis/4x4/Const/const", LEAD, LEAD
        )
    )
    for j, size in _sizes(resolution):
        for i in (0,) if j == 0 else (2 * j - 1, 2 * j):
            rows += _synthesis_layer(i, size)
        names = (
            f"synthesis.to_rgb.{j}",
            "to_rgb1" if j == 0 else f"to_rgbs.{j - 1}",
            f"synthesis.b{size}.torgb",
            f"G_synthesis/{size}x{size}/ToRGB",
        )
        rows += _expand(TO_RGB, names)
    # rosinality keeps the mean beside the network, under `latent_avg`.
    rows.append(Row("w_avg", None, ("mapping.w_avg", SAME), ("dlatent_avg", SAME)))
    return tuple(rows)


@functools.cache
def discriminator_rows(resolution: int, depth: int = 0) -> tuple[Row, ...]:
    """Return the rows of a discriminator; ``depth`` is that of its label network, 0 without classes."""
    sizes = [size for _, size in _sizes(resolution)][::-1]
    layers = [
        (
            "from_rgb",
            "convs.0.{}",
            (0, 1),
            f"b{resolution}.fromrgb",
            f"{resolution}x{resolution}/FromRGB",
            KERNEL,
        )
    ]
    rows = []
    for k, size in enumerate(sizes[:-1]):
        ours, nv, tf, ros = f"blocks.{k}", f"b{size}", f"{size}x{size}", f"convs.{k + 1}"
        layers += [
            (f"{ours}.conv0", ros + ".conv1.{}", (0, 1), f"{nv}.conv0", f"{tf}/Conv0", KERNEL),
            (f"{ours}.conv1", ros + ".conv2.{}", (1, 2), f"{nv}.conv1", f"{tf}/Conv1_down", KERNEL),
        ]
        rows.append(
            _row(
                f"{ours}.skip.weight",
                f"{ros}.skip.1.weight",
                f"{nv}.skip.weight",
                f"{tf}/Skip/weight",
                SAME,
                KERNEL,
            )
        )
    layers += [
        ("conv", "final_conv.{}", (0, 1), "b4.conv", "4x4/Conv", KERNEL),
        ("fc", "final_linear.{}", (0, 0), "b4.fc", "4x4/Dense0", DENSE),
        ("out", "final_linear.{}", (1, 1), "b4.out", "Output", DENSE),
    ]
    for ours, ros, (weight, bias), nv, tf, operation in layers:
        rows.append(
            _row(
                f"{ours}.weight",
                f"{ros.format(weight)}.weight",
                f"{nv}.weight",
                f"{tf}/weight",
                SAME,
                operation,
            )
        )
        rows.append(_row(f"{ours}.bias", f"{ros.format(bias)}.bias", f"{nv}.bias", f"{tf}/bias"))
    if depth:
        rows += [Row(row.limner, None, row.nvlabs, None) for row in (*_mapping_rows(depth), *_embed_rows())]
    return tuple(rows)


# Constant FIR kernels that rosinality's programs save along: name pattern -> sum of the kernel.
GENERATOR_KERNELS = (
    (re.compile(r"convs\.\d+\.conv\.blur\.kernel"), 4.0),
    (re.compile(r"to_rgbs\.\d+\.upsample\.kernel"), 4.0),
)
DISCRIMINATOR_KERNELS = ((re.compile(r"convs\.\d+\.(conv2|skip)\.0\.kernel"), 1.0),)
NVLABS_KERNELS = ((re.compile(r"(.*\.)?resample_filter"), 1.0),)


def fir_constant(total: float) -> Tensor:
    """Return the FIR kernel [1, 3, 3, 1] in two dimensions with the given sum, (4, 4)."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) * (total / 64)


def rosinality_generator_kernels(resolution: int) -> dict[str, Tensor]:
    """Return the constant kernels that rosinality's generator has among its tensors."""
    stages = range(resolution.bit_length() - 3)
    names = [f"convs.{2 * j}.conv.blur.kernel" for j in stages] + [
        f"to_rgbs.{j}.upsample.kernel" for j in stages
    ]
    return {name: fir_constant(4.0) for name in names}


def rosinality_discriminator_kernels(resolution: int) -> dict[str, Tensor]:
    """Return the constant kernels that rosinality's discriminator has among its tensors."""
    blocks = range(1, resolution.bit_length() - 2)
    return {f"convs.{k}.{part}.0.kernel": fir_constant(1.0) for k in blocks for part in ("conv2", "skip")}


# mmgeneration: pattern -> rosinality's name.  The first pattern that fits a whole name counts.
MMGENERATION_GENERATOR = (
    (re.compile(r"injected_noise_(\d+)"), r"noises.noise_\1"),
    (re.compile(r"style_mapping\.(\d+)\.linear\.weight_orig"), r"style.\1.weight"),
    (re.compile(r"style_mapping\.(\d+)\.bias"), r"style.\1.bias"),
    (re.compile(r"constant_input\.input"), r"input.input"),
    (re.compile(r"(.+)\.conv\.style_modulation\.linear\.weight_orig"), r"\1.conv.modulation.weight"),
    (re.compile(r"(.+)\.conv\.style_modulation\.bias"), r"\1.conv.modulation.bias"),
    (re.compile(r"(.+)\.conv\.weight_orig"), r"\1.conv.weight"),
    (re.compile(r"(.+)\.noise_injector\.weight"), r"\1.noise.weight"),
    (re.compile(r"(.+)"), r"\1"),
)
MMGENERATION_DISCRIMINATOR = (
    (re.compile(r"(.+)\.(?:conv|linear)\.weight_orig"), r"\1.weight"),
    (re.compile(r"(.+)"), r"\1"),
)


def rename(name: str, patterns: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    """Return the name that the first fitting pattern gives."""
    for pattern, replacement in patterns:
        match = pattern.fullmatch(name)
        if match:
            return match.expand(replacement)
    raise AssertionError(f"no pattern for {name}")


def layout(rows: Sequence[LimnerRow], column: str) -> dict[str, tuple[str, Operation]]:
    """Return foreign name -> (Limner's name, operation) of one layout."""
    found = {}
    for row in rows:
        entry: Name | None = getattr(row, column)
        if entry is not None:
            found[entry[0]] = (row.limner, entry[1])
    return found
