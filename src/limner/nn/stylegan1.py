"""StyleGAN: the generator with adaptive instance normalisation, as Image2StyleGAN used it.

Its interface is that of `limner.nn.stylegan2`: ``mapping(z)``, ``synthesis(w_plus)``, ``synthesis_from_styles(styles)``.
What differs: two layers at 4x4, so that layer ``i`` reads row ``i`` of w+; one S-space vector per layer and none for
toRGB; a vector holds scales and shifts, (B, 2C), the scales without their 1; noise has a strength per channel.

Stored weights are raw, as in the originals: factors of the equalised learning rate are applied when they are used.

Source: Karras et al. 2019, "A Style-Based Generator Architecture for Generative Adversarial Networks"
(arXiv 1812.04948).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from limner.errors import ShapeError
from limner.nn import stylegan2
from limner.nn.fused import SLOPE, convolve, mix_channels
from limner.nn.layers import SQRT2, EqualLinear
from limner.nn.stylegan2 import EditFeatures, Noise, default_channels, resolutions

CHANNEL_BASE = 16384
FUSED_FROM = 128
"""Output size from which up-sampling layers keep their kernels rotated by 180 degrees: there the original programs
use a transposed convolution, below it they repeat pixels and convolve."""
CHUNK_NUMBERS = 2**17


def _pixel_dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sums of a * b over the pixels, two (B, C, H, W) -> (B, C, 1, 1), without a large temporary."""
    if a.device.type != "cpu" or torch.is_grad_enabled():
        return (a * b).sum((2, 3), keepdim=True)
    step = max(1, CHUNK_NUMBERS // a.shape[1])
    left, right = (x.permute(0, 2, 3, 1).flatten(1, 2) for x in (a, b))  # (B, pixels, C)
    pairs = zip(left.split(step, 1), right.split(step, 1), strict=True)
    return torch.stack([(x * y).sum(1) for x, y in pairs]).sum(0)[:, :, None, None]


def _normalize(y: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite y with the normalised leaky_relu(y + bias); return it, 1 / deviation and mean / deviation."""
    y = F.leaky_relu_(y.add_(bias.view(1, -1, 1, 1)), SLOPE)
    mean = y.mean((2, 3), keepdim=True)
    y = y.sub_(mean)
    scale = (_pixel_dot(y, y) / (y.shape[2] * y.shape[3]) + eps).rsqrt_()  # (B, C, 1, 1)
    return y.mul_(scale), scale, mean * scale


class _Normalize(Function):
    """Bias, Leaky ReLU and instance norm in place; saves the result alone and can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        ctx.mark_dirty(y)
        ctx.set_materialize_grads(False)
        with torch.no_grad():
            y, scale, shift = _normalize(y, bias, eps)
        ctx.save_for_backward(y, scale, shift)
        return y, scale  # the scale is an output so that the second derivative knows where it came from

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_scale: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        out, scale, shift = ctx.saved_tensors
        count = out.shape[2] * out.shape[3]
        if grad is None and grad_scale is None:
            return None, None, None
        outer: Tensor = torch.zeros_like(out) if grad is None else grad
        weight = _pixel_dot(outer, out) * (scale / count)
        if grad_scale is not None:
            weight = weight + grad_scale * scale.square() / count
        mean = outer.mean((2, 3), keepdim=True) * scale
        if torch.is_grad_enabled():
            inner = outer * scale - mean - out * weight
        else:
            inner = torch.addcmul(-mean, outer, scale).addcmul_(out, weight, value=-1)
        # The sign before Leaky ReLU is that of the result before the mean was taken off.
        inner = torch.ops.aten.leaky_relu_backward(inner, out + shift, SLOPE, True)
        return inner, inner.sum((0, 2, 3)) if ctx.needs_input_grad[1] else None, None


def adain(
    y: Tensor, bias: Tensor, styles: Tensor, noise: Tensor | None, strength: Tensor, *, eps: float
) -> Tensor:
    """Add noise and bias, apply Leaky ReLU, normalise every channel of every image, then scale and shift it.

    Args:
        y: (B, C, H, W), a fresh result that nobody else needs; it is overwritten.
        bias, strength: (C,).
        styles: (B, 2C): scales less 1, then shifts.
        noise: broadcastable to (B, 1, H, W), or None.
        eps: added to the variance.
    """
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    scale, shift = (part[:, :, None, None] for part in styles.to(y.dtype).chunk(2, 1))
    if noise is not None:
        y = y.addcmul_(noise.to(y.dtype)[(None,) * (4 - noise.ndim)], strength.to(y.dtype).view(1, -1, 1, 1))
    bias = bias.to(y.dtype)
    if torch.is_grad_enabled() and (y.requires_grad or bias.requires_grad or styles.requires_grad):
        y, _ = _Normalize.apply(y, bias, eps)  # type: ignore[misc]
        return torch.addcmul(shift, y, scale + 1)
    y, _, _ = _normalize(y, bias, eps)
    return y.mul_(scale + 1).add_(shift)


def enlarge(x: Tensor, weight: Tensor, *, rotated: bool) -> Tensor:
    """Repeat pixels, convolve, blur: x (B, I, H, W), weight (O, I, 3, 3) -> (B, O, 2H, 2W).

    Repeating and convolving is one transposed convolution with the sum of the kernel's four shifts, in less than half
    the time.

    Args:
        x, weight: see above.
        rotated: the kernel is stored rotated by 180 degrees, see `FUSED_FROM`.
    """
    kernel = F.pad(weight if rotated else weight.flip(2, 3), (1, 1, 1, 1))
    kernel = kernel[:, :, 1:] + kernel[:, :, :-1]
    kernel = kernel[..., 1:] + kernel[..., :-1]  # (O, I, 4, 4)
    return blur(convolve(x, kernel.to(x.dtype), padding=1, up=True))


def blur(x: Tensor) -> Tensor:
    """Filter every channel with [1, 2, 1] x [1, 2, 1] / 16; outside is zero."""
    taps = torch.tensor((0.25, 0.5, 0.25), dtype=x.dtype, device=x.device)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


class MappingLayer(EqualLinear):
    """Fully connected layer whose bias, unlike StyleGAN2's, is not multiplied by Leaky ReLU's gain."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        gain = SQRT2 * self.lr_multiplier / math.sqrt(self.weight.shape[1])
        x = F.linear(x, (self.weight * gain).to(x.dtype), (self.bias * self.lr_multiplier).to(x.dtype))
        return F.leaky_relu(x, SLOPE)


class MappingNetwork(stylegan2.MappingNetwork):
    """z to w: normalisation and fully connected layers, the last one activated too.

    Args:
        z_dim, w_dim: widths.
        depth: number of layers.
        lr_multiplier: learning-rate multiplier of the layers.
    """

    def __init__(self, *, z_dim: int = 512, w_dim: int = 512, depth: int = 8, lr_multiplier: float = 0.01):
        super().__init__(z_dim=z_dim, w_dim=w_dim, depth=0)
        widths = [z_dim] + [w_dim] * depth
        self.layers = nn.ModuleList(
            MappingLayer(a, b, lr_multiplier=lr_multiplier) for a, b in itertools.pairwise(widths)
        )


class SynthesisLayer(nn.Module):
    """A 3x3 convolution, perhaps up-sampling, or none at all (the first layer), then `adain`."""

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        *,
        w_dim: int,
        resolution: int,
        up: bool,
        norm_eps: float,
    ):
        super().__init__()
        shape = (out_channels, in_channels or 0, 3, 3)
        self.weight = None if in_channels is None else nn.Parameter(torch.randn(*shape))
        self.affine = EqualLinear(w_dim, 2 * out_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(out_channels))
        self.noise: Tensor
        self.register_buffer("noise", torch.randn(resolution, resolution))
        self.resolution, self.up, self.norm_eps = resolution, up, norm_eps

    def forward(self, x: Tensor, styles: Tensor, noise: Tensor | None) -> Tensor:
        """x (B, I, h, w), styles (B, 2O), noise broadcastable to (B, 1, H, W) or None -> (B, O, H, W)."""
        if self.weight is not None:
            weight = self.weight * (SQRT2 / math.sqrt(self.weight[0].numel()))
            if self.up:
                x = enlarge(x, weight, rotated=self.resolution >= FUSED_FROM)
            else:
                x = convolve(x, weight.to(x.dtype), padding=1)
        return adain(x, self.bias, styles, noise, self.noise_strength, eps=self.norm_eps)


class ToRgb(nn.Module):
    """1x1 convolution to colours, without a style."""

    def __init__(self, in_channels: int, *, rgb_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rgb_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(rgb_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, rgb_channels, H, W)."""
        weight = self.weight[:, :, 0, 0] / math.sqrt(self.weight.shape[1])
        return mix_channels(x, weight.to(x.dtype)) + self.bias.to(x.dtype).view(1, -1, 1, 1)


class SynthesisNetwork(stylegan2.SynthesisNetwork):
    """w+ to an image.

    ``layers`` holds the layers in order, two per resolution, the first one without a convolution; ``to_rgb`` has one
    entry, at the full resolution.  The S space lists the layers.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: Mapping[int, int] | None = None,
        w_dim: int = 512,
        rgb_channels: int = 3,
        norm_eps: float = 1e-8,
    ):
        nn.Module.__init__(self)
        self.resolution, self.w_dim = resolution, w_dim
        self.channels = channel_table(resolution, channels)
        width: int | None = None
        self.const = nn.Parameter(torch.randn(self.channels[4], 4, 4))
        self.layers = nn.ModuleList()
        for size, out in self.channels.items():
            make: dict[str, Any] = {"w_dim": w_dim, "resolution": size, "norm_eps": norm_eps}
            self.layers.append(SynthesisLayer(width, out, up=size > 4, **make))
            self.layers.append(SynthesisLayer(out, out, up=False, **make))
            width = out
        self.to_rgb = nn.ModuleList([ToRgb(self.channels[resolution], rgb_channels=rgb_channels)])

    @property
    def num_rows(self) -> int:
        """Rows of w+: 2 log2(resolution) - 2."""
        return len(self.layers)

    @property
    def style_rows(self) -> list[int]:
        """The w+ row that every S-space vector is made from: each has its own."""
        return list(range(len(self.layers)))

    @property
    def style_names(self) -> list[str]:
        """Names of the S-space vectors: ``4.const``, ``4.conv``, ``8.up``, ``8.conv``, ..."""
        firsts = ["const", *["up"] * (len(self.channels) - 1)]
        pairs = zip(self.channels, firsts, strict=True)
        return [name for size, first in pairs for name in (f"{size}.{first}", f"{size}.conv")]

    def style_vector(self, name: str) -> int | None:
        """Return the S-space vector whose layer owns a tensor of the generator, None for the mapping network.

        The constant goes with the first layer, toRGB with the last.
        """
        if not name.startswith("synthesis."):
            return None
        kind, *rest = name.removeprefix("synthesis.").split(".")
        return {"const": 0, "to_rgb": len(self.layers) - 1}.get(kind, int(rest[0]) if rest else 0)

    def _modules_in_order(self) -> list[nn.Module]:
        return list(self.layers)

    def stages(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Raise `ShapeError`: only the full resolution has colours here."""
        raise ShapeError("a StyleGAN1 generator has no image at every resolution; take a StyleGAN2 generator")

    def from_styles(
        self,
        styles: Sequence[Tensor],
        noise: Noise = "constant",
        *,
        rng: torch.Generator | None = None,
        edit: EditFeatures | None = None,
    ) -> Tensor:
        """S-space vectors -> image (B, 3, H, W), about [-1, 1], not clipped.

        Arguments as for `limner.nn.stylegan2.SynthesisNetwork.from_styles`.
        """
        if len(styles) != len(self.layers):
            raise ShapeError(f"{len(styles)} style vectors were given, expected {len(self.layers)}")
        batch = styles[0].shape[0]
        x = self.const.expand(batch, -1, -1, -1).clone(memory_format=torch.channels_last)
        maps = self.noise_maps(noise, batch, rng)
        for i, (layer, vector, values) in enumerate(zip(self.layers, styles, maps, strict=True)):
            x = layer(x, vector, values)
            x = x if edit is None else edit(i, x)
        return self.to_rgb[0](x).contiguous()


class Generator(stylegan2.Generator):
    """Mapping network, synthesis network and the mean of w: StyleGAN's, in place of StyleGAN2's.

    Args:
        resolution: side of the image in px, 4 times a power of two.
        channels: resolution -> channels; None for the published ones, 512 up to 32 px and 16384 / size above.
        z_dim, w_dim, mapping_depth: see `MappingNetwork`.
        rgb_channels: colours of the image.
        norm_eps: what instance normalisation adds to the variance: 1e-8 in the original program, 1e-5 in
            lernapparat's; they differ by 2e-3 of the image's deviation at 1024 px.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: Mapping[int, int] | None = None,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_depth: int = 8,
        rgb_channels: int = 3,
        norm_eps: float = 1e-8,
    ):
        nn.Module.__init__(self)
        self._config = {
            "resolution": resolution,
            "channels": channel_table(resolution, channels),
            "z_dim": z_dim,
            "w_dim": w_dim,
            "mapping_depth": mapping_depth,
            "rgb_channels": rgb_channels,
            "norm_eps": norm_eps,
        }
        self.mapping = MappingNetwork(z_dim=z_dim, w_dim=w_dim, depth=mapping_depth)
        self.synthesis = SynthesisNetwork(
            resolution=resolution,
            channels=channels,
            w_dim=w_dim,
            rgb_channels=rgb_channels,
            norm_eps=norm_eps,
        )
        self.w_avg: Tensor
        self.register_buffer("w_avg", torch.zeros(w_dim))


def channel_table(resolution: int, channels: Mapping[int, int] | None) -> dict[int, int]:
    """Return resolution -> channels, the published ones if none are given.

    Raises:
        ShapeError: no such resolution, or one without an entry.
    """
    if channels is None:
        return default_channels(resolution, base=CHANNEL_BASE)
    table = {int(size): int(width) for size, width in channels.items()}
    missing = [size for size in resolutions(resolution) if size not in table]
    if missing:
        raise ShapeError(
            f"channels has no entry for {missing}; a {resolution} px network needs every size from 4 up"
        )
    return {size: table[size] for size in resolutions(resolution)}
