"""Convolution and the end of a layer as single autograd nodes that save little and can be differentiated twice.

Two facts about CPUs shape them.  Large tensors cost page faults when they are made, several times what a pass over
existing memory costs: so work in place, save one tensor per layer, compute again what is cheap.  And oneDNN's
weight gradients are slow channels-last (up to four times with AVX2, three times for stride 2 with AVX-512), while
everything else is fast channels-last: so the backward pass copies to channels-first for these alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

SLOPE = 0.2
HAS_AVX512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
POLYPHASE_NUMBERS = 2**22
POLYPHASE_INPUTS = 128
SMALL_WEIGHT = 64 * 128
MANY_IMAGES = 8


def _lower_precision(x: Tensor) -> Tensor:
    """Cast as autocast would; inside of our own functions the dtypes must agree, forward and backward."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))


def convolve(
    x: Tensor,
    weight: Tensor,
    styles: Tensor | None = None,
    *,
    padding: int = 0,
    stride: int = 1,
    up: bool = False,
) -> Tensor:
    """Convolve x (B, I, H, W), its channels scaled by ``styles`` (B, I), with weight (O, I, k, k).

    Args:
        x, weight, styles: see above; without ``styles`` nothing is scaled.
        padding, stride: as in `torch.nn.functional.conv2d`.
        up: transposed convolution with stride 2 and the same weight, (B, O, 2H + k - 2, 2W + k - 2) less ``padding``
            on every side.
    """
    x, weight = _lower_precision(x), _lower_precision(weight)
    styles = None if styles is None else _lower_precision(styles)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (styles is not None and styles.requires_grad)
    ):
        return _Convolve.apply(x, weight, styles, padding, stride, up)  # type: ignore[no-any-return]
    return _convolve(_scaled(x, styles), weight, padding, stride, up)


def mix_channels(x: Tensor, weight: Tensor) -> Tensor:
    """1x1 convolution as a matrix product, x (B, I, H, W), weight (O, I) or one per image (B, O, I)."""
    weight = weight if weight.ndim == 3 else weight[None]
    return _MixChannels.apply(_lower_precision(x), _lower_precision(weight))  # type: ignore[no-any-return]


def finish(
    y: Tensor,
    scale: Tensor | None,
    bias: Tensor,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
) -> Tensor:
    """Return leaky_relu(y * scale + noise * strength + bias), overwriting ``y``.

    Args:
        y: (B, O, H, W), a fresh result that nobody else needs.
        scale: (B, O), without zeros, or None.
        bias: (O,).
        noise: broadcastable to (B, 1, H, W), or None.
        strength: scalar; needed with noise.
    """
    bias = bias.to(y.dtype)
    if noise is None or strength is None:
        noise, strength = None, None
    else:
        noise, strength = noise.to(y.dtype)[(None,) * (4 - noise.ndim)], strength.to(y.dtype)
    inputs = (y, scale, bias, noise, strength)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _Finish.apply(*inputs)  # type: ignore[no-any-return]
    return _finish(*inputs)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _scaled(x: Tensor, styles: Tensor | None) -> Tensor:
    return x if styles is None else x * styles[:, :, None, None]


def _convolve(x: Tensor, weight: Tensor, padding: int, stride: int, up: bool) -> Tensor:
    if up:
        return _transposed(x, weight.transpose(0, 1), padding)
    return F.conv2d(x, weight, stride=stride, padding=padding)


def _transposed(x: Tensor, weight: Tensor, padding: int = 0) -> Tensor:
    """Transposed convolution with stride 2, weight (I, O, k, k)."""
    if padding or not _wants_polyphase(x, weight):
        return F.conv_transpose2d(x, weight, stride=2, padding=padding)
    # Four dense convolutions, one for each parity of row and column of the result.
    batch, _, height, width = x.shape
    weight = weight.transpose(0, 1).flip(2, 3)  # (O, I, 3, 3)
    y = _empty(x, batch, weight.shape[0], 2 * height + 1, 2 * width + 1)
    even, odd = slice(0, None, 2), slice(1, None, 2)
    taps = weight[:, :, even, even], weight[:, :, even, odd], weight[:, :, odd, even], weight[:, :, odd, odd]
    y[:, :, even, even] = F.conv2d(x, taps[0], padding=1)
    y[:, :, even, odd] = F.conv2d(x, taps[1], padding=(1, 0))
    y[:, :, odd, even] = F.conv2d(x, taps[2], padding=(0, 1))
    # One tap alone is a matrix product.
    y[:, :, odd, odd] = (x.permute(0, 2, 3, 1) @ taps[3][:, :, 0, 0].t()).permute(0, 3, 1, 2)
    return y


def _wants_polyphase(x: Tensor, weight: Tensor) -> bool:
    """Tell where oneDNN's transposed convolution is slower than four dense ones: up to twice, for large images."""
    inputs, _, size, _ = weight.shape
    if x.device.type != "cpu" or size != 3 or x[0].numel() < POLYPHASE_NUMBERS:
        return False
    return not HAS_AVX512 or inputs >= POLYPHASE_INPUTS


def _channels_first(x: Tensor) -> Tensor:
    """Copy to channels-first; a two-dimensional transpose per image is four times as fast as `contiguous`."""
    y = x.new_empty(x.shape)
    for image, source in zip(y, x, strict=True):
        image.flatten(1).copy_(source.permute(1, 2, 0).flatten(0, 1).t())
    return y


def _wants_channels_first(x: Tensor, weight: Tensor) -> bool:
    """Tell whether the copy pays for the weight gradient; measured on Zen 3 and Zen 5 with oneDNN 3.12."""
    if x.device.type != "cpu":
        return False
    return not HAS_AVX512 or (x.shape[0] < MANY_IMAGES and weight.shape[0] * weight.shape[1] >= SMALL_WEIGHT)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int, stride: int, up: bool, mask: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of `_convolve` for x and weight."""
    if up:
        weight = weight.transpose(0, 1)
    step = 2 if up else stride
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [step] * 2, [padding] * 2, [1, 1], up, [0, 0], 1, [*mask, False]
    )
    return grads[0], grads[1].transpose(0, 1) if up and mask[1] else grads[1]


class _Convolve(Function):
    """`convolve`; saves x, styles and weight, not their product."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, styles: Tensor | None, padding: int, stride: int, up: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight, styles)
        ctx.how = (padding, stride, up)
        return _convolve(_scaled(x, styles), weight, padding, stride, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, styles = ctx.saved_tensors
        padding, stride, up = ctx.how
        needs_x, needs_weight, needs_styles = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_styles = None
        twice = torch.is_grad_enabled()
        if needs_x or needs_styles:
            height, width = grad.shape[2:]
            if stride == 2 and padding == 0 and not twice and x.shape[2:] == (2 * height + 1, 2 * width + 1):
                grad_x = _transposed(grad, weight)
            else:
                # Only shape and layout of x matter here.
                grad_x, _ = _gradients(grad, x, weight, padding, stride, up, (True, False))
            assert grad_x is not None
            if needs_styles:
                grad_styles = (grad_x * x).sum((2, 3))
            if styles is not None and needs_x:
                factor = styles[:, :, None, None]
                grad_x = grad_x * factor if twice else grad_x.mul_(factor)
        if needs_weight:
            scaled = _scaled(x, styles)
            if not twice and _wants_channels_first(x, weight):
                scaled, grad = _channels_first(scaled), _channels_first(grad)
            _, grad_weight = _gradients(grad, scaled, weight, padding, stride, up, (False, True))
        return grad_x if needs_x else None, grad_weight, grad_styles, None, None, None


def _pixels(x: Tensor, matrices: int) -> Tensor:
    """(B, C, H, W) -> (matrices, pixels, C), a view if x is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(matrices, -1, x.shape[1])


class _MixChannels(Function):
    """`mix_channels`; unlike autograd's own, its products keep the long side where BLAS is fast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        batch, _, height, width = x.shape
        # Not a view, so that what follows may overwrite it.
        y = _empty(x, batch, weight.shape[1], height, width)
        torch.bmm(_pixels(x, len(weight)), weight.transpose(1, 2), out=_pixels(y, len(weight)))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        batch, channels, height, width = x.shape
        grad = _pixels(grad, len(weight))
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.bmm(grad, weight).view(batch, height, width, channels).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            pixels = _pixels(x, len(weight))
            if weight.shape[1] <= channels:
                grad_weight = torch.bmm(grad.transpose(1, 2), pixels)
            else:
                grad_weight = torch.bmm(pixels.transpose(1, 2), grad).transpose(1, 2)
        return grad_x, grad_weight


def _finish(
    y: Tensor, scale: Tensor | None, bias: Tensor, noise: Tensor | None, strength: Tensor | None
) -> Tensor:
    if scale is not None:
        y = y.mul_(scale[:, :, None, None])
    if noise is not None and strength is not None:
        y = y.add_(noise * strength)
    return F.leaky_relu_(y.add_(bias.view(1, -1, 1, 1)), SLOPE)


class _Finish(Function):
    """`finish`; saves the result alone, from which the backward pass gets everything else."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        scale: Tensor | None,
        bias: Tensor,
        noise: Tensor | None,
        strength: Tensor | None,
    ) -> Tensor:
        ctx.mark_dirty(y)
        y = _finish(y, scale, bias, noise, strength)
        ctx.save_for_backward(y, scale, bias, noise, strength)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        out, scale, bias, noise, strength = ctx.saved_tensors
        _, needs_scale, needs_bias, needs_noise, needs_strength = ctx.needs_input_grad
        twice = torch.is_grad_enabled()
        # Before Leaky ReLU: the sum s, its gradient g.  Leaky ReLU gives s * g = out * grad.
        product = (grad * out).sum((2, 3)) if needs_scale else None  # (B, O)
        inner = torch.ops.aten.leaky_relu_backward(grad, out, SLOPE, True)
        per_channel = inner.sum((2, 3)) if needs_bias or needs_scale else None  # (B, O)
        grad_bias = per_channel.sum(0) if per_channel is not None and needs_bias else None
        grad_noise = grad_strength = weighted = None
        if noise is not None and (needs_scale or needs_strength):
            weighted = torch.einsum(
                "bohw,bhw->bo", inner, noise[:, 0].expand(inner.shape[0], *inner.shape[2:])
            )
            grad_strength = weighted.sum() if needs_strength else None
        if noise is not None and needs_noise:
            grad_noise = (inner.sum(1, keepdim=True) * strength).sum_to_size(noise.shape)
        grad_scale = None
        if product is not None:
            assert per_channel is not None
            rest = per_channel * bias
            if weighted is not None:
                rest = rest + weighted * strength
            grad_scale = (product - rest) / scale
        if scale is not None:
            factor = scale[:, :, None, None]
            inner = inner * factor if twice else inner.mul_(factor)
        return inner, grad_scale, grad_bias, grad_noise, grad_strength
