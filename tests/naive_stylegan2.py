"""StyleGAN2's operators written out: zeros inserted, one image and one output pixel rule at a time, float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])).double() / 64


def upfirdn(x: Tensor, *, up: int, down: int, pad: tuple[int, int], gain: float) -> Tensor:
    """Insert zeros, pad, filter, thin out."""
    batch, channels, height, width = x.shape
    spread = torch.zeros(batch, channels, height * up, width * up, dtype=x.dtype)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, (*pad, *pad))
    rows, columns = spread.shape[2] - 3, spread.shape[3] - 3
    y = torch.zeros(batch, channels, rows, columns, dtype=x.dtype)
    for i in range(4):
        for j in range(4):
            y = y + KERNEL[i, j].to(x.dtype) * gain * spread[:, :, i : i + rows, j : j + columns]
    return y[:, :, ::down, ::down]


def correlate(x: Tensor, weight: Tensor, *, pad: int) -> Tensor:
    """Convolve one image (I, H, W), tap by tap."""
    size = weight.shape[-1]
    x = F.pad(x, (pad,) * 4)
    rows, columns = x.shape[1] - size + 1, x.shape[2] - size + 1
    y = torch.zeros(weight.shape[0], rows, columns, dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            y = y + torch.einsum("oi,ihw->ohw", weight[:, :, i, j], x[:, i : i + rows, j : j + columns])
    return y


def modulated(x: Tensor, weight: Tensor, styles: Tensor, *, demodulate: bool, up: bool) -> Tensor:
    """Modulated convolution, image by image with its own weights."""
    images = []
    for image, style in zip(x, styles, strict=True):
        own = weight * style[None, :, None, None]
        if demodulate:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            # The transposed convolution: zeros between the pixels, the kernel turned round.
            spread = torch.zeros(x.shape[1], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1, dtype=x.dtype)
            spread[:, ::2, ::2] = image
            wide = correlate(spread, own.flip(2, 3), pad=2)
            images.append(upfirdn(wide[None], up=1, down=1, pad=(1, 1), gain=4.0)[0])
        else:
            images.append(correlate(image, own, pad=weight.shape[-1] // 2))
    return torch.stack(images)


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU with its gain."""
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
