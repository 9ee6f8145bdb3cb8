"""Encoders of the pSp family: from a picture to the codes of a StyleGAN2 generator in one pass, or in several.

=========  ==========================================================  =========================================
head       what it reads                                               codes
=========  ==========================================================  =========================================
pyramid    a feature pyramid of three maps, one head per row of w+      pSp; e4e with ``deltas``
single     the smallest map, one head per row                          ReStyle; on e4e with ``deltas``
w          the mean of the smallest map                                one w; e4e's single style code
w+         the smallest map, flattened                                 all rows of w+ at once
=========  ==========================================================  =========================================

With ``deltas`` the first row's head gives w, and every other row's what is added to it.  With ``feedback`` the encoder
sees the picture and what its previous codes paint (`refine`), and its codes are added to those.

Convention: what an encoder predicts is relative to `Encoder.mean`; images are (B, C, S, S) with S = ``in_size``,
[-1, 1] for photos, [0, 1] for sketches and label maps.

Source: Richardson et al. 2021, "Encoding in Style" (arXiv 2008.00951), sections 3 and 4; Tov et al. 2021, "Designing
an Encoder for StyleGAN Image Manipulation" (arXiv 2102.02766), section 4; Alaluf et al. 2021, "ReStyle"
(arXiv 2104.02699), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import ShapeError
from limner.nn.fused import convolve, mix_channels
from limner.nn.irse import (
    ALIGNED_PX,
    IR_SE50_DEPTHS,
    RESNET34_DEPTHS,
    WIDTHS,
    BatchNorm,
    Body,
    IrSeBody,
    ResNetBody,
    face_pool,
    keep_channels_last,
)
from limner.nn.layers import EqualLinear
from limner.nn.stylegan2 import Generator, Noise

HEADS = ("pyramid", "single", "w", "w+")
SPACES = ("w", "w+", "z+")
BODIES: dict[str, tuple[type[IrSeBody] | type[ResNetBody], tuple[int, ...]]] = {
    "ir-se50": (IrSeBody, IR_SE50_DEPTHS),
    "resnet34": (ResNetBody, RESNET34_DEPTHS),
}
COARSE_ROWS, MIDDLE_ROWS = 3, 7
"""Rows below the first are read from the smallest map, rows below the second from the middle one."""
SLOPE = 0.01
FLAT_SIDE = 7


def strided_convolution(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """3x3 convolution with stride 2 and padding 1, then Leaky ReLU, (B, I, H, W) -> (B, O, H / 2, W / 2)."""
    bias = conv.bias
    assert bias is not None
    if torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad):
        y = convolve(x, conv.weight, padding=1, stride=2) + bias.to(x.dtype).view(1, -1, 1, 1)
        return F.leaky_relu(y, SLOPE)
    return F.leaky_relu_(F.conv2d(x, conv.weight, bias, stride=2, padding=1), SLOPE)


class StyleHead(nn.Module):
    """Stride-2 convolutions down to one pixel, then a linear layer: map (B, C, side, side) -> code (B, w_dim).

    Args:
        channels: C.
        w_dim: width of the code.
        side: of the map, a power of two from 2 up.
    """

    def __init__(self, channels: int, w_dim: int, *, side: int):
        super().__init__()
        count = int(math.log2(side))
        inputs = [channels] + [w_dim] * (count - 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, w_dim, 3, 2, 1) for width in inputs)
        self.linear = EqualLinear(w_dim, w_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, side, side) -> (B, w_dim)."""
        for conv in self.convs:
            x = strided_convolution(x, conv)  # type: ignore[arg-type]
        return self.linear(x.flatten(1))


class RowHeads(nn.Module):
    """One `StyleHead` per row.

    Args:
        rows: of w+.
        widths: channels of the body's maps, from the largest map to the smallest.
        w_dim: width of w.
        side: of the smallest map.
        pyramid: enlarge the smallest map and add the larger ones to it, level by level; else all read the smallest.
        deltas: codes of later rows are added to the first row's.
    """

    def __init__(
        self, *, rows: int, widths: Sequence[int], w_dim: int, side: int, pyramid: bool, deltas: bool
    ):
        super().__init__()
        channels = widths[2]
        self.pyramid, self.deltas = pyramid, deltas
        self.levels = [
            0 if not pyramid or row < COARSE_ROWS else 1 if row < MIDDLE_ROWS else 2 for row in range(rows)
        ]
        self.rows = nn.ModuleList(StyleHead(channels, w_dim, side=side << level) for level in self.levels)
        lateral = [widths[1], widths[0]] if pyramid else []
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in lateral)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor], stage: int | None = None) -> Tensor:
        """Maps of a body -> (B, rows, w_dim).

        Args:
            maps: from the largest to the smallest.
            stage: with ``deltas``, the last row that has a difference of its own; None for all.
        """
        large, middle, x = maps
        last = len(self.rows) - 1 if stage is None or not self.deltas else min(stage, len(self.rows) - 1)
        codes: list[Tensor] = []
        for row, (level, head) in enumerate(zip(self.levels, self.rows, strict=True)):
            if row > last:
                codes.append(codes[0])
                continue
            if row and level != self.levels[row - 1]:
                x = self._climb(x, (middle, large)[level - 1], level)
            code = head(x)
            codes.append(codes[0] + code if self.deltas and row else code)
        return torch.stack(codes, 1)

    def _climb(self, x: Tensor, larger: Tensor, level: int) -> Tensor:
        conv: Any = self.lateral[level - 1]
        up = F.interpolate(x, size=larger.shape[2:], mode="bilinear", align_corners=True)
        side = mix_channels(larger, conv.weight[:, :, 0, 0])
        return up + side + conv.bias.to(up.dtype).view(1, -1, 1, 1)


class MeanHead(nn.Module):
    """Mean of the smallest map, then a linear layer -> (B, w_dim)."""

    def __init__(self, channels: int, w_dim: int):
        super().__init__()
        self.linear = EqualLinear(channels, w_dim)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor], stage: int | None = None) -> Tensor:
        """Maps of a body -> (B, w_dim)."""
        return self.linear(maps[2].mean((2, 3)))


class FlatHead(nn.Module):
    """The smallest map, normalised, pooled to 7x7 and flattened, through two linear layers -> (B, rows, w_dim)."""

    def __init__(self, channels: int, w_dim: int, *, rows: int):
        super().__init__()
        self.norm = BatchNorm(channels)
        self.reduce = nn.Linear(channels * FLAT_SIDE**2, w_dim)
        self.linear = EqualLinear(w_dim, w_dim * rows)
        self.w_dim = w_dim

    def forward(self, maps: tuple[Tensor, Tensor, Tensor], stage: int | None = None) -> Tensor:
        """Maps of a body -> (B, rows, w_dim)."""
        x = F.adaptive_avg_pool2d(self.norm(maps[2]), FLAT_SIDE)
        return self.linear(self.reduce(x.flatten(1))).unflatten(1, (-1, self.w_dim))


class Encoder(nn.Module):
    """Picture -> codes of a generator.

    Args:
        rows: of w+; 18 for a generator of 1024 px.
        body: ``ir-se50`` or ``resnet34``.
        head: one of `HEADS`.
        in_channels: of what it sees: 3 for a photo, 1 for a sketch, 19 for labels, twice as many with ``feedback``.
        in_size: side of what it sees in px.
        w_dim: width of the codes.
        widths, depths: of the body's stages, see `limner.nn.irse.Body`; None for the body's own depths.
        deltas: the rows are differences to the first, as in e4e and ReStyle on e4e.
        feedback: it corrects codes, looking at what they paint, as in ReStyle.
        iterations: how often `refine` runs it where nothing else is said.
        space: what the codes are: ``w``, ``w+`` or ``z+``.
    """

    def __init__(
        self,
        *,
        rows: int,
        body: str = "ir-se50",
        head: str = "pyramid",
        in_channels: int = 3,
        in_size: int = ALIGNED_PX,
        w_dim: int = 512,
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] | None = None,
        deltas: bool = False,
        feedback: bool = False,
        iterations: int = 1,
        space: Literal["w", "w+", "z+"] = "w+",
    ):
        super().__init__()
        if body not in BODIES or head not in HEADS or space not in SPACES:
            raise ShapeError(
                f"body {body!r}, head {head!r}, space {space!r}; expected one of {', '.join(BODIES)}, "
                f"one of {', '.join(HEADS)} and one of {', '.join(SPACES)}"
            )
        if in_size < 32 or in_size.bit_count() != 1 or rows < 1 or iterations < 1:
            raise ShapeError(
                f"in_size is {in_size}, rows {rows}, iterations {iterations}; "
                "expected a power of two from 32 up, and at least 1 of each"
            )
        if feedback and in_channels % 2:
            raise ShapeError(
                f"in_channels is {in_channels}: with feedback it is the picture's twice, so even"
            )
        if space == "w" and head != "w":
            raise ShapeError(f"the head {head!r} gives a code for every row, which are no codes in w")
        kind, own_depths = BODIES[body]
        self._config: dict[str, Any] = {
            "rows": rows,
            "body": body,
            "head": head,
            "in_channels": in_channels,
            "in_size": in_size,
            "w_dim": w_dim,
            "widths": list(widths),
            "depths": list(depths or own_depths),
            "deltas": deltas,
            "feedback": feedback,
            "iterations": iterations,
            "space": space,
        }
        self.rows, self.in_channels, self.in_size, self.w_dim = rows, in_channels, in_size, w_dim
        self.deltas, self.feedback, self.iterations = deltas, feedback, iterations
        self.space: Literal["w", "w+", "z+"] = space
        self.body: Body = kind(in_channels=in_channels, widths=widths, depths=depths or own_depths)
        self.head: RowHeads | MeanHead | FlatHead
        if head == "w":
            self.head = MeanHead(widths[3], w_dim)
        elif head == "w+":
            self.head = FlatHead(widths[3], w_dim, rows=rows)
        else:
            self.head = RowHeads(
                rows=rows,
                widths=widths[1:],
                w_dim=w_dim,
                side=in_size // 16,
                pyramid=head == "pyramid",
                deltas=deltas,
            )
        self.mean: Tensor
        """What codes are relative to, (1 or rows, w_dim); zeros where they are not."""
        self.register_buffer("mean", torch.zeros(1 if space == "w" else rows, w_dim))
        self.register_load_state_dict_post_hook(keep_channels_last)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._config)

    @property
    def family(self) -> str:
        """``psp``, ``e4e`` or ``restyle``: how its codes are to be used."""
        single = self._config["head"] == "w" and self.space == "w+"
        return "restyle" if self.feedback else "e4e" if self.deltas or single else "psp"

    def predict(self, image: Tensor, *, stage: int | None = None) -> Tensor:
        """What the network says, without the mean: (B, rows, w_dim), from a head for w (B, w_dim).

        Args:
            image: (B, in_channels, in_size, in_size).
            stage: with ``deltas``, the last row that gets a difference of its own, as in training; None for all.

        Raises:
            ShapeError: another size or another number of channels.
        """
        wanted = (self.in_channels, self.in_size, self.in_size)
        if image.ndim != 4 or image.shape[1:] != wanted:
            raise ShapeError(
                f"image has shape {tuple(image.shape)}, expected (B, {', '.join(map(str, wanted))})"
            )
        return self.head(self.body(image), stage)

    def forward(self, image: Tensor, previous: Tensor | None = None, *, stage: int | None = None) -> Tensor:
        """Image -> codes, (B, w_dim) in w, (B, rows, w_dim) in w+ and z+.

        Args:
            image, stage: see `predict`.
            previous: codes that are corrected; None for the mean.
        """
        codes = self.predict(image, stage=stage)
        if codes.ndim == 2 and self.space != "w":
            codes = codes[:, None]
        return codes + (self.mean if previous is None else previous)

    def average_codes(self, batch: int) -> Tensor:
        """Return the mean as codes."""
        return (self.mean if self.space == "w" else self.mean[None]).expand(
            batch, *([-1] * (1 if self.space == "w" else 2))
        )


def to_input(encoder: Encoder, image: Tensor) -> Tensor:
    """Bring pictures (B, C, H, W) to the encoder's size, bilinearly with antialiasing, as Pillow does."""
    if image.ndim != 4:
        raise ShapeError(f"image has shape {tuple(image.shape)}, expected (B, C, H, W)")
    size = (encoder.in_size, encoder.in_size)
    if image.shape[2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def check_pair(encoder: Encoder, generator: Generator) -> None:
    """Raise `ShapeError` unless the generator takes as many codes, as wide, as the encoder gives."""
    width = generator.z_dim if encoder.space == "z+" else generator.w_dim
    if encoder.rows != generator.num_rows or encoder.w_dim != width:
        raise ShapeError(
            f"the encoder gives {encoder.rows} rows of {encoder.w_dim}, the generator of {generator.resolution} px "
            f"takes {generator.num_rows} of {width}; use the generator it was trained with"
        )


def codes_to_w_plus(generator: Generator, encoder: Encoder, codes: Tensor) -> Tensor:
    """Codes of the encoder -> w+ (B, L, w_dim).

    Raises:
        ShapeError: the generator has another number of rows, or codes of another width.
    """
    check_pair(encoder, generator)
    if encoder.space == "w":
        return generator.broadcast(codes)
    return generator.map_z_plus(codes) if encoder.space == "z+" else codes


def refine(
    encoder: Encoder, generator: Generator, image: Tensor, *, iterations: int | None = None
) -> list[Tensor]:
    """Encode in several passes: each sees the picture and what the codes so far paint, and corrects these.

    Args:
        encoder: without ``feedback`` there is one pass, whatever ``iterations`` says.
        generator: paints; it was trained with the encoder.
        image: (B, C, S, S), see `to_input`.
        iterations: passes; None for the encoder's own number.

    Returns:
        The codes after every pass, the last ones being the result.

    Source: Alaluf et al. 2021, "ReStyle" (arXiv 2104.02699), section 3.1.
    """
    if not encoder.feedback:
        return [encoder(image)]
    count = encoder.iterations if iterations is None else iterations
    if count < 1:
        raise ShapeError(f"iterations is {count}, expected at least 1")
    # The average picture is the same for all.
    painted = _paint_small(encoder, generator, encoder.average_codes(1)).expand(len(image), -1, -1, -1)
    codes: list[Tensor] = []
    for step in range(count):
        seen = torch.cat([image, painted], 1)
        codes.append(encoder(seen, codes[-1] if codes else None))
        if step + 1 < count:
            painted = _paint_small(encoder, generator, codes[-1])
    return codes


def _paint_small(encoder: Encoder, generator: Generator, codes: Tensor) -> Tensor:
    """Codes -> picture at the encoder's size."""
    return face_pool(generator.synthesis(codes_to_w_plus(generator, encoder, codes)), encoder.in_size)


def mix_rows(
    w_plus: Tensor, rows: Sequence[int], other: Tensor | None = None, *, alpha: float | None = None
) -> Tensor:
    """Replace rows of w+, as pSp's several outputs for one sketch.

    Args:
        w_plus: (B, L, w_dim).
        rows: which; pSp's translations use 8 to 17.
        other: (B or 1, L, w_dim) that they are taken from; None for zeros.
        alpha: share of ``other``; None for all of it.

    Raises:
        ShapeError: no such row, or codes of another shape.
    """
    count = w_plus.shape[1]
    wrong = [row for row in rows if not 0 <= row < count]
    if wrong:
        raise ShapeError(f"rows {wrong} are not among the {count} of w+ (0 to {count - 1})")
    if other is not None and (other.ndim != 3 or other.shape[1:] != w_plus.shape[1:]):
        raise ShapeError(
            f"the codes to mix in have shape {tuple(other.shape)}, expected (B or 1, "
            f"{', '.join(map(str, w_plus.shape[1:]))})"
        )
    mixed, index = w_plus.clone(), list(rows)
    if other is None:
        mixed[:, index] = 0
    elif alpha is None:
        mixed[:, index] = other[:, index]
    else:
        mixed[:, index] = torch.lerp(w_plus[:, index], other[:, index].expand_as(w_plus[:, index]), alpha)
    return mixed


def decode(
    encoder: Encoder,
    generator: Generator,
    codes: Tensor,
    *,
    side: int | None = None,
    noise: Noise = "constant",
    rng: torch.Generator | None = None,
) -> Tensor:
    """Codes of the encoder -> picture (B, 3, R, R), or pooled to ``side`` px."""
    image = generator.synthesis(codes_to_w_plus(generator, encoder, codes), noise, rng=rng)
    return image if side is None else face_pool(image, side)
