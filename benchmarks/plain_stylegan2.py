"""StyleGAN2 as published code does it without its CUDA kernels, for comparison only.

Runs on the parameters of Limner's own modules, so that both sides compute the same images.  The operators are the
customary ones: FIR filters through a reshape to one channel, with zeros inserted and padding applied explicitly;
one set of modulated weights per image and a grouped convolution; transposed convolution; channels-first memory; noise,
bias, activation and gain one after the other.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.nn.layers import EqualConv2d, minibatch_std
from limner.nn.stylegan2 import Discriminator, Generator, SynthesisLayer, ToRgb

SQRT2 = math.sqrt(2.0)


def filter_kernel(gain: float) -> Tensor:
    """Return the 4x4 filter with sum ``gain``."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64 * gain


def upfirdn(x: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int], gain: float = 1.0) -> Tensor:
    """Insert zeros, pad, filter, keep every ``down``-th pixel."""
    batch, channels, height, width = x.shape
    if up > 1:
        x = x.reshape(batch * channels, height, 1, width, 1)
        x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1))
    x = x.reshape(batch * channels, 1, height * up, width * up)
    x = F.pad(x, (*pad, *pad))
    x = F.conv2d(x, filter_kernel(gain)[None, None])[:, :, ::down, ::down]
    return x.reshape(batch, channels, x.shape[2], x.shape[3])


def modulated(x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool, up: bool = False) -> Tensor:
    """Convolve every image with its own weights, as groups of one convolution."""
    batch, inputs, height, width = x.shape
    outputs, size = weight.shape[0], weight.shape[-1]
    scale = 1 / math.sqrt(inputs * size * size)
    weights = weight[None] * scale * style[:, None, :, None, None]  # (B, O, I, k, k)
    if demodulate:
        weights = weights * torch.rsqrt(weights.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, batch * inputs, height, width)
    if up:
        weights = weights.transpose(1, 2).reshape(batch * inputs, outputs, size, size)
        x = F.conv_transpose2d(x, weights, stride=2, groups=batch)
        x = x.reshape(batch, outputs, x.shape[2], x.shape[3])
        return upfirdn(x, pad=(1, 1), gain=4.0)
    x = F.conv2d(x, weights.reshape(batch * outputs, inputs, size, size), padding=size // 2, groups=batch)
    return x.reshape(batch, outputs, height, width)


def activate(x: Tensor, bias: Tensor) -> Tensor:
    """Bias, Leaky ReLU, gain."""
    return F.leaky_relu(x + bias.view(1, -1, 1, 1), 0.2) * SQRT2


def synthesis_layer(layer: SynthesisLayer, x: Tensor, w: Tensor) -> Tensor:
    """One 3x3 layer with its stored noise."""
    x = modulated(x, layer.weight, layer.affine(w), demodulate=True, up=layer.up)
    return activate(x + layer.noise_strength * layer.noise, layer.bias)


def to_rgb(layer: ToRgb, x: Tensor, w: Tensor, skip: Tensor | None) -> Tensor:
    """Colours, added to the enlarged image so far."""
    image = modulated(x, layer.weight, layer.affine(w), demodulate=False) + layer.bias.view(1, -1, 1, 1)
    return image if skip is None else image + upfirdn(skip, up=2, pad=(2, 1), gain=4.0)


def synthesize(generator: Generator, w_plus: Tensor) -> Tensor:
    """w+ to an image with the plain operators."""
    network = generator.synthesis
    layers, colours = list(network.layers), list(network.to_rgb)
    x = network.const[None].repeat(len(w_plus), 1, 1, 1)
    x = synthesis_layer(layers[0], x, w_plus[:, 0])  # type: ignore[arg-type]
    image = to_rgb(colours[0], x, w_plus[:, 1], None)  # type: ignore[arg-type]
    for j in range(1, len(colours)):
        x = synthesis_layer(layers[2 * j - 1], x, w_plus[:, 2 * j - 1])  # type: ignore[arg-type]
        x = synthesis_layer(layers[2 * j], x, w_plus[:, 2 * j])  # type: ignore[arg-type]
        image = to_rgb(colours[j], x, w_plus[:, 2 * j + 1], image)  # type: ignore[arg-type]
    return image


def equalised(layer: EqualConv2d, x: Tensor) -> Tensor:
    """A convolution of the discriminator."""
    size = layer.weight.shape[-1]
    weight = layer.weight * (1 / math.sqrt(layer.weight[0].numel()))
    if layer.down:
        extra = 2 + size - 1  # pixels of padding on both sides together, for size / 2 at the end
        x = upfirdn(x, pad=((extra + 1) // 2, extra // 2))
        x = F.conv2d(x, weight, stride=2)
    else:
        x = F.conv2d(x, weight, padding=size // 2)
    return x if layer.bias is None else activate(x, layer.bias)


def discriminate(discriminator: Discriminator, image: Tensor) -> Tensor:
    """Image to logits with the plain operators."""
    x = equalised(discriminator.from_rgb, image)
    for block in discriminator.blocks:
        y = equalised(block.conv1, equalised(block.conv0, x))  # type: ignore[arg-type]
        x = (y + equalised(block.skip, x)) / SQRT2  # type: ignore[arg-type]
    x = minibatch_std(x, group=discriminator.std_group, channels=discriminator.std_channels)
    x = equalised(discriminator.conv, x)
    return discriminator.out(discriminator.fc(x.flatten(1)))
