from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from limner.nn import fused
from limner.nn.fused import convolve, finish, mix_channels


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


@pytest.fixture(params=["avx512", "avx2"])
def isa(request, monkeypatch) -> str:
    """Take the paths of both kinds of machine; the first also copies for every small batch."""
    monkeypatch.setattr(fused, "HAS_AVX512", request.param == "avx512")
    monkeypatch.setattr(fused, "SMALL_WEIGHT", 1)
    return request.param


@pytest.mark.parametrize("polyphase", [False, True])
@pytest.mark.parametrize("styled", [False, True])
@pytest.mark.parametrize("how", [{"padding": 1}, {"stride": 2}, {"up": True}])
def test_convolve_equals_autograd_twice(isa, how, styled, polyphase, monkeypatch):
    if polyphase:
        monkeypatch.setattr(fused, "POLYPHASE_NUMBERS", 1)
        monkeypatch.setattr(fused, "POLYPHASE_INPUTS", 1)
    x, weight, styles = numbers(2, 2, 5, 3), numbers(3, 2, 3, 3), numbers(2, 2)
    scaled = x * styles[:, :, None, None] if styled else x
    if "up" in how:
        expected = F.conv_transpose2d(scaled, weight.transpose(0, 1), stride=2)
    else:
        expected = F.conv2d(scaled, weight, **how)
    given = styles if styled else None
    assert torch.allclose(convolve(x, weight, given, **how), expected)
    with torch.no_grad():
        assert torch.allclose(convolve(x, weight, given, **how), expected)
    inputs = (x, weight, styles) if styled else (x, weight)
    assert gradcheck(lambda *t: convolve(*t, **how), inputs)
    assert gradgradcheck(lambda *t: convolve(*t, **how), inputs)
    # The gradient without a second one takes the fast, in-place path: compare it with autograd's.
    g = torch.randn_like(expected)
    fast = torch.autograd.grad(convolve(x, weight, given, **how), inputs, g)
    for mine, theirs in zip(fast, torch.autograd.grad(expected, inputs, g), strict=True):
        assert torch.allclose(mine, theirs)


def test_convolve_stride_two_on_an_even_side():
    x, weight = numbers(1, 2, 6, 6), numbers(2, 2, 3, 3)
    grad, expected = (
        torch.autograd.grad(y.square().sum(), x)[0]
        for y in (convolve(x, weight, stride=2), F.conv2d(x, weight, stride=2))
    )
    assert torch.allclose(grad, expected)


def test_no_weight_gradient_for_frozen_weights():
    x, weight = numbers(1, 2, 4, 4), numbers(2, 2, 3, 3).detach()
    convolve(x, weight, padding=1).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("outputs", [2, 5])
def test_mix_channels(outputs, own):
    x = numbers(2, 3, 2, 4)
    weight = numbers(2, outputs, 3) if own else numbers(outputs, 3)
    rule = "bihw,boi->bohw" if own else "bihw,oi->bohw"
    y = mix_channels(x, weight)
    assert torch.allclose(y, torch.einsum(rule, x, weight))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gradcheck(mix_channels, (x, weight))
    assert gradgradcheck(mix_channels, (x, weight))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("noise_shape", [None, (4, 3), (1, 1, 4, 3), (2, 1, 4, 3)])
def test_finish(scaled, noise_shape):
    y, bias, strength = numbers(2, 2, 4, 3), numbers(2), numbers()
    scale = (torch.rand(2, 2, dtype=torch.float64) + 0.5).requires_grad_() if scaled else None
    noise = numbers(*noise_shape) if noise_shape else None
    inputs = (y, scale, bias, noise, strength if noise_shape else None)

    def run(y, scale, bias, noise, strength):
        return finish(y * 1, scale, bias, noise, strength)  # the product is fresh, so it may be overwritten

    def naive(y, scale, bias, noise, strength):
        y = y if scale is None else y * scale[:, :, None, None]
        y = y if noise is None else y + noise * strength
        return F.leaky_relu(y + bias[:, None, None], 0.2)

    assert torch.allclose(run(*inputs), naive(*inputs))
    with torch.no_grad():
        assert torch.allclose(run(*inputs), naive(*inputs))
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)
    g = torch.randn_like(y)
    leaves = [t for t in inputs if t is not None]
    for mine, theirs in zip(
        torch.autograd.grad(run(*inputs), leaves, g),
        torch.autograd.grad(naive(*inputs), leaves, g),
        strict=True,
    ):
        assert torch.allclose(mine, theirs)


def test_finish_works_in_place():
    y = torch.randn(1, 2, 3, 3)
    assert finish(y, None, torch.ones(2)).data_ptr() == y.data_ptr()


def test_strength_alone_can_be_learned():
    y, strength = torch.randn(1, 2, 3, 3), torch.tensor(0.5, requires_grad=True)
    noise = torch.randn(3, 3)
    expected = F.leaky_relu(y + noise * strength, 0.2).sum()
    (grad,) = torch.autograd.grad(finish(y.clone(), None, torch.zeros(2), noise, strength).sum(), strength)
    assert torch.allclose(grad, torch.autograd.grad(expected, strength)[0])
