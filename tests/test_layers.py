from __future__ import annotations

import math

import naive_stylegan2 as naive
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from limner.errors import ShapeError
from limner.nn import layers
from limner.nn.layers import (
    EqualConv2d,
    EqualLinear,
    bias_lrelu,
    colours,
    demodulation,
    fir,
    minibatch_std,
    modulated_conv2d,
    modulated_layer,
    upsample2,
)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


@pytest.fixture
def scaled(request, monkeypatch) -> str:
    """Scale either side; weights can only be scaled for one image."""
    monkeypatch.setattr(layers, "scales_weights", lambda x, weight, up=False: request.param == "weights")
    return request.param


@pytest.mark.parametrize(("pad", "stride", "gain"), [(1, 1, 4.0), (2, 1, 1.0), (1, 2, 1.0)])
def test_fir_equals_explicit_filter(pad, stride, gain):
    x = numbers(2, 3, 6, 7)
    expected = naive.upfirdn(x, up=1, down=stride, pad=(pad, pad), gain=gain)
    assert torch.allclose(fir(x, pad=pad, stride=stride, gain=gain), expected)
    assert gradgradcheck(lambda x: fir(x, pad=pad, stride=stride), x)


def test_upsample2_equals_zero_insertion():
    x = numbers(2, 3, 4, 5)
    assert torch.allclose(upsample2(x), naive.upfirdn(x, up=2, down=1, pad=(2, 1), gain=4.0))
    assert upsample2(x).shape == (2, 3, 8, 10)
    assert gradcheck(upsample2, x)


def test_bias_lrelu_clamps_after_the_gain():
    x = torch.tensor([-100.0, -1.0, 0.0, 1.0, 100.0]).view(1, 1, 1, 5)
    expected = (torch.tensor([-19.8, 0.0, 1.0, 2.0, 101.0]) * math.sqrt(2)).clamp(-10, 10)
    assert torch.allclose(bias_lrelu(x, torch.ones(1), clamp=10.0).flatten(), expected)


def test_demodulated_weights_have_unit_norm():
    weight, styles = numbers(4, 3, 3, 3), numbers(2, 3)
    scale = demodulation(weight, styles)
    for image in range(2):
        own = weight * styles[image, None, :, None, None] * scale[image, :, None, None, None]
        assert torch.allclose(own.square().sum((1, 2, 3)), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize(
    ("batch", "scaled"), [(1, "weights"), (1, "activations"), (3, "activations")], indirect=["scaled"]
)
def test_modulated_conv2d_equals_a_loop_over_images(scaled, batch, demodulate, up):
    x, weight, styles = numbers(batch, 4, 5, 6), numbers(3, 4, 3, 3), numbers(batch, 4)
    mine = modulated_conv2d(x, weight, styles, demodulate=demodulate, up=up, gain=1.5)
    theirs = 1.5 * naive.modulated(x, weight, styles, demodulate=demodulate, up=up)
    assert torch.allclose(mine, theirs)
    g = torch.randn_like(theirs)
    inputs = (x, weight, styles)
    for a, b in zip(
        torch.autograd.grad(mine, inputs, g), torch.autograd.grad(theirs, inputs, g), strict=True
    ):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize(
    ("batch", "scaled"), [(1, "weights"), (1, "activations"), (2, "activations")], indirect=["scaled"]
)
def test_modulated_layer(scaled, batch, up):
    x, weight, styles, bias = numbers(batch, 2, 3, 3), numbers(2, 2, 3, 3), numbers(batch, 2), numbers(2)
    side = 6 if up else 3
    noise, strength = numbers(side, side), numbers()

    def run(x, weight, styles, bias, noise, strength):
        return modulated_layer(x, weight, styles, bias, noise, strength, up=up)

    inputs = (x, weight, styles, bias, noise, strength)
    plain = naive.modulated(x, weight, styles, demodulate=True, up=up)
    assert torch.allclose(run(*inputs), naive.lrelu(plain + noise * strength + bias[:, None, None]))
    assert torch.allclose(run(*inputs[:4], None, strength), naive.lrelu(plain + bias[:, None, None]))
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def test_modulated_layer_clamps_after_the_gain():
    x, weight, styles = numbers(1, 2, 3, 3), numbers(2, 2, 3, 3), numbers(1, 2)
    bias = torch.tensor([50.0, -500.0], dtype=torch.float64)
    y = modulated_layer(x, weight, styles, bias, None, torch.tensor(0.0), clamp=7.0)
    assert torch.allclose(y[:, 0], torch.tensor(7.0, dtype=torch.float64))
    assert torch.allclose(y[:, 1], torch.tensor(-7.0, dtype=torch.float64))


def test_choice_of_what_is_scaled():
    weight = torch.zeros(64, 64, 3, 3)
    few, many = torch.zeros(1, 64, 4, 4), torch.zeros(1, 64, 64, 64)
    assert not layers.scales_weights(few, weight)
    assert layers.scales_weights(many, weight)
    assert not layers.scales_weights(many.expand(2, -1, -1, -1), weight)


def test_colours_is_a_modulated_1x1_convolution():
    x, weight, styles, bias = numbers(2, 4, 3, 3), numbers(3, 4, 1, 1), numbers(2, 4), numbers(3)
    expected = naive.modulated(x, weight, styles, demodulate=False, up=False) + bias[:, None, None]
    assert torch.allclose(colours(x, weight, styles, bias), expected)
    assert gradgradcheck(colours, (x, weight, styles, bias))


def test_equal_linear():
    layer = EqualLinear(6, 4, bias_init=1.0, lr_multiplier=0.01, activate=True).double()
    x = numbers(3, 6)
    expected = naive.lrelu(x @ (layer.weight * 0.01 / math.sqrt(6)).t() + layer.bias * 0.01)
    assert torch.allclose(layer(x), expected)
    assert torch.allclose(layer.bias * 0.01, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("size", "down", "activate"), [(3, False, True), (3, True, True), (1, False, True), (1, True, False)]
)
def test_equal_conv2d_equals_filter_then_stride(size, down, activate):
    layer = EqualConv2d(3, 4, size, down=down, activate=activate).double()
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    x = numbers(2, 3, 6, 6)
    weight = layer.weight / math.sqrt(3 * size * size)
    wide = naive.upfirdn(x, up=1, down=1, pad=(2, 2) if size == 3 else (1, 1), gain=1.0) if down else x
    pad = 0 if down else size // 2
    y = torch.stack([naive.correlate(image, weight, pad=pad) for image in wide])
    y = y[:, :, ::2, ::2] if down else y
    y = y if layer.bias is None else naive.lrelu(y + layer.bias[:, None, None])
    assert torch.allclose(layer(x), y)
    assert torch.allclose(layer(x, gain=0.5), 0.5 * y)
    assert gradgradcheck(lambda x: layer(x), x)


def test_equal_conv2d_clamps_after_its_own_gain_and_before_the_given_one():
    layer = EqualConv2d(3, 2, 3, clamp=0.1)
    peak = layer(100 * torch.randn(1, 3, 8, 8), gain=0.5).abs().max()
    assert torch.allclose(peak, torch.tensor(0.1 * 0.5))


def test_minibatch_std_written_out():
    x = numbers(4, 2, 3, 3)
    y = minibatch_std(x, group=2)
    assert y.shape == (4, 3, 3, 3)
    for first in range(2):  # images i and i + 2 form a group
        pair = x[[first, first + 2]]
        spread = ((pair - pair.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
        assert torch.allclose(y[[first, first + 2], 2], spread)
    assert torch.allclose(minibatch_std(x[:1])[:, 2], torch.tensor(1e-4, dtype=torch.float64))


def test_minibatch_std_of_a_batch_that_the_group_does_not_divide():
    x = numbers(6, 2, 3, 3)
    assert torch.allclose(minibatch_std(x, group=4), minibatch_std(x, group=3))
    with pytest.raises(ShapeError, match="2 channels cannot be split into 3 groups"):
        minibatch_std(x, channels=3)


def energies_of(weight: Tensor) -> Tensor:
    return demodulation(weight, torch.ones(1, weight.shape[1]))


@pytest.mark.parametrize("change", ["in place", "fused step", "data", "load"])
def test_sums_of_frozen_weights_follow_every_change(change):
    layer = torch.nn.Conv2d(4, 3, 3, bias=False).requires_grad_(change == "fused step")
    with torch.no_grad():
        before = energies_of(layer.weight)
        assert energies_of(layer.weight).equal(before)
        if change == "fused step":
            layer.weight.grad = -layer.weight
            torch.optim.SGD([layer.weight], 1.0, fused=True).step()
        elif change == "data":
            layer.weight.data = layer.weight.data * 2
        elif change == "load":
            layer.load_state_dict({"weight": layer.weight * 2})
        else:
            layer.weight.mul_(2)
        assert torch.allclose(energies_of(layer.weight), before / 2, rtol=1e-5)


def test_sums_of_learning_weights_have_a_gradient():
    weight = torch.randn(3, 4, 3, 3, requires_grad=True)
    with torch.no_grad():
        energies_of(weight)
    assert gradcheck(lambda w: demodulation(w, torch.ones(1, 4, dtype=torch.float64)), numbers(3, 4, 3, 3))
    energies_of(weight).sum().backward()
    assert weight.grad is not None


def test_forgotten_weights_are_let_go():
    before = len(layers._ENERGIES)
    for _ in range(3):
        energies_of(torch.randn(3, 4, 3, 3))
    assert len(layers._ENERGIES) <= before + 1
