"""The operators of StyleGAN2: FIR resampling, modulated convolution, equalised layers.

Convention: images are (B, C, H, W); convolutions work channels-last.  The FIR filter is [1, 3, 3, 1] in both
directions.  Pixel centres lie at half-integers, outside is zero.

Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958),
section 2.2 (weight demodulation), appendix B (resampling, equalised learning rate).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import ShapeError

SQRT2 = math.sqrt(2.0)
FIR_TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel(channels: int, gain: float, like: Tensor) -> Tensor:
    """Return the 2-D filter as a depthwise weight, (channels, 1, 4, 4), its sum being ``gain``."""
    taps = torch.tensor(FIR_TAPS, dtype=like.dtype, device=like.device)
    kernel = torch.outer(taps, taps) * (gain / taps.sum().square())
    return kernel.expand(channels, 1, 4, 4)


def fir(x: Tensor, *, pad: int, gain: float = 1.0, stride: int = 1) -> Tensor:
    """Filter every channel; the result has (H + 2 pad - 3) // stride rows (rounded up)."""
    channels = x.shape[1]
    return F.conv2d(x, fir_kernel(channels, gain, x), stride=stride, padding=pad, groups=channels)


def upsample2(image: Tensor) -> Tensor:
    """Enlarge (B, C, H, W) twice with the FIR filter, to (B, C, 2H, 2W).

    The polyphase form of zero insertion, padding (2, 1) and the filter [1, 3, 3, 1] / 4 is bilinear interpolation
    with zeros outside the image.
    """
    larger = F.interpolate(F.pad(image, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return larger[:, :, 2:-2, 2:-2]


def bias_lrelu(x: Tensor, bias: Tensor, clamp: float | None = None) -> Tensor:
    """Add a bias per channel, apply Leaky ReLU with slope 0.2, multiply by sqrt(2), then limit to ±clamp."""
    x = F.leaky_relu(x + bias.to(x.dtype).view(1, -1, 1, 1), 0.2) * SQRT2
    return x if clamp is None else x.clamp(-clamp, clamp)


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Return 1 / sqrt(sum of squared modulated weights), (B, O), for weight (O, I, k, k) and styles (B, I)."""
    return torch.rsqrt(styles.square() @ weight.square().sum((2, 3)).t() + 1e-8)


def modulated_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, *, demodulate: bool = True, up: bool = False
) -> Tensor:
    """Convolve with weights scaled per image and input channel.

    Args:
        x: (B, I, H, W).
        weight: (O, I, k, k), already equalised.
        styles: (B, I), the scale of every input channel.
        demodulate: bring every output channel's weights to unit norm.
        up: enlarge twice: transposed convolution, then FIR.

    Returns:
        (B, O, H, W), or twice as large with ``up``.
    """
    styles = styles.to(x.dtype)
    weight = weight.to(x.dtype)
    scale = demodulation(weight, styles) if demodulate else None
    if x.shape[0] == 1 and x.shape[2] * x.shape[3] > weight.shape[0]:
        # One image with many pixels: scaling the weights is cheaper than scaling the activations.
        weight = weight * styles.view(1, -1, 1, 1)
        if scale is not None:
            weight, scale = weight * scale.view(-1, 1, 1, 1), None
    else:
        x = x * styles[:, :, None, None]
    if up:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        x = fir(x, pad=1, gain=4.0)
    else:
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    return x if scale is None else x * scale[:, :, None, None]


class EqualLinear(nn.Module):
    """Fully connected layer with equalised learning rate.

    Args:
        in_features, out_features: widths.
        bias_init: initial (effective) bias.
        lr_multiplier: the stored weight is divided and the used weight multiplied by it, likewise the bias.
        activate: Leaky ReLU with slope 0.2 and gain sqrt(2) afterwards.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
        activate: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.lr_multiplier, self.activate = lr_multiplier, activate

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        gain = self.lr_multiplier / math.sqrt(self.weight.shape[1])
        x = F.linear(x, (self.weight * gain).to(x.dtype), (self.bias * self.lr_multiplier).to(x.dtype))
        return F.leaky_relu(x, 0.2) * SQRT2 if self.activate else x


class EqualConv2d(nn.Module):
    """Convolution with equalised learning rate, bias and Leaky ReLU optional, optionally halving the size.

    Args:
        in_channels, out_channels, kernel_size: as in `torch.nn.Conv2d`.
        down: FIR filter, then stride 2.
        activate: bias and Leaky ReLU; without it there is no bias.
        clamp: largest magnitude of the output, the gain of sqrt(2) included; None for no limit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        down: bool = False,
        activate: bool = True,
        clamp: float | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if activate else None
        self.down, self.clamp = down, clamp

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W), or half as large with ``down``."""
        size = self.weight.shape[-1]
        weight = (self.weight * (1 / math.sqrt(self.weight[0].numel()))).to(x.dtype)
        if not self.down:
            x = F.conv2d(x, weight, padding=size // 2)
        elif size == 1:
            # A 1x1 convolution with stride 2 reads every other filtered pixel: filter only those.
            x = F.conv2d(fir(x, pad=1, stride=2), weight)
        else:
            x = F.conv2d(fir(x, pad=2), weight, stride=2)
        return x if self.bias is None else bias_lrelu(x, self.bias, self.clamp)


def minibatch_std(x: Tensor, *, group: int = 4, channels: int = 1) -> Tensor:
    """Append the standard deviation over groups of images as ``channels`` extra channels.

    Differs: a batch that ``group`` does not divide uses the largest group that does; the original fails.
    Source: Karras et al. 2018, "Progressive Growing of GANs" (arXiv 1710.10196), section 3.
    """
    batch, width, height, breadth = x.shape
    if width % channels:
        raise ShapeError(f"{width} channels cannot be split into {channels} groups of statistics")
    size = max(n for n in range(1, min(batch, group) + 1) if batch % n == 0)
    y = x.reshape(size, -1, channels, width // channels, height, breadth)  # (g, n, F, c, H, W)
    y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((2, 3, 4))  # (n, F)
    y = y.repeat(size, 1)[:, :, None, None].expand(-1, -1, height, breadth)  # (B, F, H, W)
    return torch.cat([x, y.to(x.dtype)], 1)
