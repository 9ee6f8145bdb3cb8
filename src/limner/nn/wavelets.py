"""Moving and filtering images with orthogonal wavelet filters, in a way that can be differentiated twice.

Convention: x to the right, y downwards, pixel centres on integers; matrices (B, 3, 3) map input to output in px, with
the origin in the image's centre; outside the image lies its mirror image.

Source: Karras et al. 2020 (arXiv 2006.06676), appendix B.2 and B.4, whose filters and oversampling these are;
Daubechies 1992, "Ten Lectures on Wavelets", chapters 5 and 6.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SYM2 = torch.tensor([1 + 3**0.5, 3 + 3**0.5, 3 - 3**0.5, 1 - 3**0.5], dtype=torch.float64) / (4 * 2**0.5)
"""Orthogonal lowpass filter with two vanishing moments, in closed form."""
SYM6 = torch.tensor(
    [
        0.015404109327027373,
        0.0034907120842174702,
        -0.11799011114819057,
        -0.048311742585633,
        0.4910559419267466,
        0.787641141030194,
        0.3379294217276218,
        -0.07263752278646252,
        -0.021060292512300564,
        0.04472490177066578,
        0.0017677118642428036,
        -0.007800708325034148,
    ],
    dtype=torch.float64,
)
"""Orthogonal lowpass filter with six vanishing moments, nearly symmetric (Daubechies 1992, table 6.3)."""


def _fold(position: Tensor, size: int) -> Tensor:
    """Bring positions into [0, size - 1] by mirroring at the outermost pixel centres."""
    if size == 1:
        return torch.zeros_like(position)
    period = 2 * (size - 1)
    position = position.remainder(period)
    return torch.minimum(position, period - position)


def blit_exactly(image: Tensor, matrix: Tensor) -> Tensor:
    """Flip, turn and shift by whole pixels without resampling.

    Args:
        image: (B, C, S, S).
        matrix: (B, 3, 3), input to output, origin in the image's centre; a signed permutation and a whole shift.
    """
    batch, channels, size, _ = image.shape
    steps = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    target = torch.stack([x, y, torch.ones_like(x)]).flatten(1)  # (3, S S)
    source = (torch.linalg.inv(matrix) @ target)[:, :2] + (size - 1) / 2
    column, row = _fold(source.round(), size).long().unbind(1)
    index = (row * size + column).to(image.device)  # (B, S S)
    flat = image.flatten(2).gather(2, index[:, None].expand(-1, channels, -1))
    return flat.view(batch, channels, size, size)


def resample(image: Tensor, matrix: Tensor) -> Tensor:
    """Transform images with twofold oversampling between orthogonal filters; the identity is exact.

    The image is enlarged twice with the time-reversed lowpass filter of sym6, looked up bilinearly, and brought back
    with the filter itself.

    Args:
        image: (B, C, S, S).
        matrix: (B, 3, 3), float64.

    Differs: the mirror image outside is infinite; the paper's padding is limited.
    """
    size, taps = image.shape[2], SYM6.numel()
    up = _upsampling(size).to(image)
    large = up @ image @ up.t()
    # Low frequencies of pixel i sit at 2 i + delay in the large image, and 2 margin further with its margin.
    delay = taps - 1 - float((SYM6 * torch.arange(taps)).sum() / SYM6.sum())
    # The pixels of the large result that the downsampling filter reads, as pixels of the small one.
    count = 2 * size + taps - 2
    centre = (size - 1) / 2
    steps = (torch.arange(count, dtype=torch.float64) - delay) / 2 - centre
    steps = steps.to(image)
    back = torch.linalg.inv(matrix).to(image)[:, :2, :, None, None]  # (B, 2, 3, 1, 1)
    source = back[:, :, 0] * steps + back[:, :, 1] * steps[:, None] + back[:, :, 2] + centre  # (B, 2, n, n)
    # The margin is a mirror image already; fold only what lies beyond it.
    outside = (source < -delay / 2 - 0.25) | (source > (count - 1 - delay) / 2 + 0.25)
    source = torch.where(outside, _fold(source, size), source)
    position = 2 * (source + taps // 2) + delay
    grid = (2 * position + 1) / large.shape[2] - 1
    moved = sample_bilinear(large, grid.permute(0, 2, 3, 1))
    down = _downsampling(size).to(image)
    return down @ moved @ down.t()


@functools.lru_cache(maxsize=8)
def _upsampling(size: int) -> Tensor:
    """Return the matrix (2 S + 34, S) that adds a margin of mirror image and enlarges twice.

    As matrices both steps are one product per axis, which beats narrow convolutions on a CPU.
    """
    margin = SYM6.numel() // 2
    padding = F.one_hot(_fold(torch.arange(-margin, size + margin), size), size).double()  # (S + 12, S)
    return _downsampling(size + 2 * margin).t() @ padding


@functools.lru_cache(maxsize=8)
def _downsampling(size: int) -> Tensor:
    """Return the matrix (S, 2 S + 10) of the time-reversed filter at every other pixel; its rows are orthonormal."""
    taps = SYM6.numel()
    matrix = torch.zeros(size, 2 * size + taps - 2, dtype=torch.float64)
    for row in range(size):
        matrix[row, 2 * row : 2 * row + taps] = SYM6.flip(0)
    return matrix


class _Sample(torch.autograd.Function):
    """Bilinear lookup whose gradient can be differentiated again; torch's own cannot.

    The lookup is linear in the image, so that the gradient of its gradient is the lookup itself.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = image.shape
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        (grid,) = ctx.saved_tensors
        return _SampleAdjoint.apply(grads[0], grid, ctx.shape), None


class _SampleAdjoint(torch.autograd.Function):
    """The transpose of `_Sample`: spread every value over the pixels it was looked up from."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        like = grad.new_zeros(()).expand(shape)  # only its shape matters
        bilinear, zeros = 0, 0
        return torch.ops.aten.grid_sampler_2d_backward(
            grad.contiguous(), like, grid, bilinear, zeros, False, (True, False)
        )[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(grads[0], grid), None, None


def sample_bilinear(image: Tensor, grid: Tensor) -> Tensor:
    """Look up image (B, C, h, w) at grid (B, H, W, 2), as `torch.nn.functional.grid_sample`; differentiable twice.

    Convention: grid is (x, y) with -1 and 1 at the image's outer edges (align_corners=False), zeros outside; no
    gradient to the grid.
    """
    return _Sample.apply(image, grid)


@functools.cache
def band_filters() -> Tensor:
    """Return four symmetric filters, (4, 43), that pass one octave each and add up to the identity.

    The bands are 0 to pi/8, pi/8 to pi/4, pi/4 to pi/2 and pi/2 to pi.  With P(z) = H(z) H(1/z) / 2 of sym2, whose
    mirror P(-z) = 1 - P(z) is the highpass filter, they are P(z) P(z^2) P(z^4), P(z) P(z^2) (1 - P(z^4)),
    P(z) (1 - P(z^2)) and 1 - P(z).
    """
    half = torch.zeros(43, dtype=torch.float64)

    def spread(factor: int) -> Tensor:
        """Taps of P(z^factor), 7 values ``factor`` apart around the centre."""
        taps = half.clone()
        autocorrelation = F.conv1d(SYM2.view(1, 1, -1), SYM2.view(1, 1, -1), padding=3).flatten() / 2
        taps[21 - 3 * factor : 22 + 3 * factor : factor] = autocorrelation
        return taps

    def product(a: Tensor, b: Tensor) -> Tensor:
        return F.conv1d(a.view(1, 1, -1), b.flip(0).view(1, 1, -1), padding=21).flatten()

    below2 = spread(1)
    below4 = product(below2, spread(2))
    below8 = product(below4, spread(4))
    whole = half.clone()
    whole[21] = 1
    return torch.stack([below8, below4 - below8, below2 - below4, whole - below2])


def filter_bands(image: Tensor, gains: Tensor) -> Tensor:
    """Amplify four octave bands, along either axis.

    Args:
        image: (B, C, S, S).
        gains: (B, 4), lowest band first; all ones changes nothing.
    """
    batch, channels, size, _ = image.shape
    taps = (gains @ band_filters()).repeat_interleave(channels, 0).to(image)  # (B C, 43)
    margin = taps.shape[1] // 2
    flat = pad_mirrored(image, margin).flatten(0, 1)[None]  # (1, B C, S + 42, S + 42)
    flat = F.conv2d(flat, taps[:, None, :, None], groups=batch * channels)
    flat = F.conv2d(flat, taps[:, None, None, :], groups=batch * channels)
    return flat.view(batch, channels, size, size)


def pad_mirrored(image: Tensor, margin: int) -> Tensor:
    """Add ``margin`` pixels of mirror image on every side, however small the image is."""
    size = image.shape[2]
    if margin < size:
        return F.pad(image, (margin, margin, margin, margin), mode="reflect")
    index = _fold(torch.arange(-margin, size + margin), size).to(image.device)
    return image[:, :, index][:, :, :, index]
