"""The operators of StyleGAN2: FIR resampling, modulated convolution, equalised layers.

Convention: images are (B, C, H, W), kept channels-last in memory.  The FIR filter is [1, 3, 3, 1] in both
directions.  Pixel centres lie at half-integers, outside is zero.

Speed comes from `limner.nn.fused`: gains are folded into weights and biases, noise, bias and Leaky ReLU work in
place, and the backward pass keeps one tensor per layer.

Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958),
section 2.2 (weight demodulation), appendix B (resampling, equalised learning rate).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from limner.errors import ShapeError
from limner.nn.fused import convolve, finish, mix_channels

SQRT2 = math.sqrt(2.0)
FIR_TAPS = (1.0, 3.0, 3.0, 1.0)
_ENERGIES = WeakIdKeyDictionary()
"""Weight -> its state when it was summed, and the sums; see `_energy`."""


def fir_kernel(channels: int, gain: float, like: Tensor) -> Tensor:
    """Return the 2-D filter as a depthwise weight, (channels, 1, 4, 4), its sum being ``gain``."""
    taps = torch.tensor(FIR_TAPS, dtype=like.dtype, device=like.device)
    kernel = torch.outer(taps, taps) * (gain / taps.sum().square())
    return kernel.expand(channels, 1, 4, 4)


def fir(x: Tensor, *, pad: int, gain: float = 1.0, stride: int = 1) -> Tensor:
    """Filter every channel; the result has (H + 2 pad - 3) // stride rows (rounded up)."""
    channels = x.shape[1]
    return F.conv2d(x, fir_kernel(channels, gain, x), stride=stride, padding=pad, groups=channels)


def upsample2(image: Tensor, *, continued: bool = False) -> Tensor:
    """Enlarge (B, C, H, W) twice with the FIR filter, to (B, C, 2H, 2W).

    The polyphase form of zero insertion, padding (2, 1) and the filter [1, 3, 3, 1] / 4 is bilinear interpolation
    with zeros outside the image.

    Args:
        image: what is enlarged.
        continued: let the outermost pixels go on outside instead of the zeros, which darken or pale the outermost ones.
    """
    if continued:
        return F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    larger = F.interpolate(F.pad(image, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return larger[:, :, 2:-2, 2:-2]


def bias_lrelu(x: Tensor, bias: Tensor, clamp: float | None = None) -> Tensor:
    """Add a bias per channel, apply Leaky ReLU with slope 0.2, multiply by sqrt(2), then limit to ±clamp."""
    x = F.leaky_relu(x + bias.to(x.dtype).view(1, -1, 1, 1), 0.2) * SQRT2
    return x if clamp is None else x.clamp(-clamp, clamp)


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Return 1 / sqrt(sum of squared modulated weights), (B, O), for weight (O, I, k, k) and styles (B, I)."""
    return torch.rsqrt(styles.square() @ _energy(weight).t() + 1e-8)


def _energy(weight: Tensor) -> Tensor:
    """Return the sum of squares over every kernel, (O, I); weights that do not learn are summed once."""
    # A fused optimiser changes weights without counting it, so what may learn is summed every time.
    plain = type(weight) in (Tensor, nn.Parameter) and not weight.is_inference()
    if (
        weight.requires_grad
        or not plain
        or torch.is_inference_mode_enabled()
        or torch.compiler.is_compiling()
    ):
        return weight.square().sum((2, 3))
    state = (weight._version, weight.data_ptr(), weight.dtype)
    known = _ENERGIES.get(weight)
    if known is None or known[0] != state:
        with torch.no_grad():
            known = _ENERGIES[weight] = (state, weight.square().sum((2, 3)))
    return known[1]


def scales_weights(x: Tensor, weight: Tensor, *, up: bool = False) -> bool:
    """Tell whether scaling the weights moves fewer numbers than scaling the activations (one image only)."""
    outputs, inputs = weight.shape[:2]
    pixels = x.shape[2] * x.shape[3]
    return x.shape[0] == 1 and pixels * (inputs + outputs * (4 if up else 1)) > weight.numel()


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    demodulate: bool = True,
    up: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Convolve with weights scaled per image and input channel.

    Args:
        x: (B, I, H, W).
        weight: (O, I, k, k).  The factor of the equalised learning rate may be in it or in ``styles``.
        styles: (B, I), the scale of every input channel.
        demodulate: bring every output channel's weights to unit norm.
        up: enlarge twice: transposed convolution, then FIR.
        gain: factor of the result.

    Returns:
        (B, O, H, W), or twice as large with ``up``.
    """
    y, scale = _scaled_conv2d(x, weight, styles, demodulate=demodulate, up=up, gain=gain)
    return y if scale is None else y * scale[:, :, None, None]


def modulated_layer(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    strength: Tensor,
    *,
    up: bool = False,
    clamp: float | None = None,
) -> Tensor:
    """Modulated convolution, plus noise times strength, plus bias, Leaky ReLU, times sqrt(2).

    Args:
        x, weight, styles, up: see `modulated_conv2d`.
        bias: (O,).
        noise: broadcastable to (B, 1, H, W) of the result, or None.
        strength: scalar.
        clamp: largest magnitude of the result, the factor sqrt(2) included; None for no limit.
    """
    # Leaky ReLU commutes with positive factors: sqrt(2) goes into everything that is summed.
    y, scale = _scaled_conv2d(x, weight, styles, demodulate=True, up=up, gain=SQRT2)
    y = finish(y, scale, bias * SQRT2, noise, strength * SQRT2)
    return y if clamp is None else y.clamp(-clamp, clamp)


def _scaled_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, *, demodulate: bool, up: bool, gain: float
) -> tuple[Tensor, Tensor | None]:
    """Return the convolution and, if the weights do not hold it, the factor (B, O) that is still to be applied."""
    scale = demodulation(weight, styles) * gain if demodulate else None
    scale = scale.to(x.dtype) if scale is not None else None
    padding = 0 if up else weight.shape[-1] // 2
    if scales_weights(x, weight, up=up):
        # All factors of a weight in one product; (1, I) or (O, 1) * (1, I).
        factor = styles * gain if scale is None else scale.view(-1, 1) * styles
        y = convolve(x, (weight * factor[:, :, None, None]).to(x.dtype), padding=padding, up=up)
        scale = None
    else:
        styles = styles if demodulate else styles * gain
        y = convolve(x, weight.to(x.dtype), styles.to(x.dtype), padding=padding, up=up)
    return (fir(y, pad=1, gain=4.0) if up else y), scale


def colours(x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor) -> Tensor:
    """Modulated 1x1 convolution without demodulation, plus a bias: x (B, I, H, W) -> (B, O, H, W).

    A matrix product per image: weights of so few outputs are cheaper to scale than activations, whatever the batch.
    """
    weight = (weight[None, :, :, 0, 0] * styles[:, None]).to(x.dtype)  # (B, O, I)
    return mix_channels(x, weight) + bias.to(x.dtype).view(1, -1, 1, 1)


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

    def forward(self, x: Tensor, *, gain: float = 1.0) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W), or half as large with ``down``; the result is multiplied by ``gain`` > 0."""
        size = self.weight.shape[-1]
        # Leaky ReLU commutes with positive factors: all of them go into weight and bias.
        factor = gain if self.bias is None else gain * SQRT2
        weight = (self.weight * (factor / math.sqrt(self.weight[0].numel()))).to(x.dtype)
        if size == 1:
            # A 1x1 convolution with stride 2 reads every other filtered pixel: filter only those.
            x = mix_channels(fir(x, pad=1, stride=2) if self.down else x, weight[:, :, 0, 0])
        elif not self.down:
            x = convolve(x, weight, padding=size // 2)
        else:
            x = convolve(fir(x, pad=2), weight, stride=2)
        if self.bias is None:
            return x
        x = finish(x, None, self.bias * factor)
        return x if self.clamp is None else x.clamp(-self.clamp * gain, self.clamp * gain)


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


def at_least_float(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or wider if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
