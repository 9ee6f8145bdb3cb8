"""Gradients, second gradients, spaces and limits of the networks against the operators of `naive_stylegan2`."""

from __future__ import annotations

import math

import naive_stylegan2 as naive
import pytest
import torch
from conftest import make_generator
from torch import Tensor

from limner.errors import ShapeError
from limner.nn.stylegan2 import Discriminator, Generator

CHANNELS = {4: 6, 8: 5, 16: 4}


def small(**changes) -> Generator:
    """Return a 16 px generator in float64 whose biases and noise strengths are not zero."""
    generator = Generator(
        resolution=16, channels=CHANNELS, z_dim=7, w_dim=5, mapping_depth=2, **changes
    ).double()
    for name, parameter in generator.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            torch.nn.init.normal_(parameter, std=0.3 if "mapping" not in name else 30.0)
    generator.w_avg.normal_()
    return generator


def naive_synthesis(generator: Generator, w_plus: Tensor) -> Tensor:
    """The synthesis network as the paper draws it, rows of w+ written out."""
    network = generator.synthesis

    def styles(layer, row):
        affine = layer.affine
        return w_plus[:, row] @ (affine.weight / math.sqrt(affine.weight.shape[1])).t() + affine.bias

    def convolve(layer, x, row):
        weight = layer.weight / math.sqrt(layer.weight[0].numel())
        x = naive.modulated(x, weight, styles(layer, row), demodulate=True, up=layer.up)
        return naive.lrelu(x + layer.noise * layer.noise_strength + layer.bias[:, None, None])

    def colours(layer, x, row):
        weight = layer.weight / math.sqrt(layer.weight.shape[1])
        y = naive.modulated(x, weight, styles(layer, row), demodulate=False, up=False)
        return y + layer.bias[:, None, None]

    x = convolve(network.layers[0], network.const.expand(len(w_plus), -1, -1, -1), 0)
    image = colours(network.to_rgb[0], x, 1)
    for j, (up, same) in enumerate(((1, 2), (3, 4))):
        x = convolve(network.layers[up], x, up)
        x = convolve(network.layers[same], x, same)
        image = naive.upfirdn(image, up=2, down=1, pad=(2, 1), gain=4.0) + colours(
            network.to_rgb[j + 1], x, same + 1
        )
    return image


@pytest.mark.parametrize("batch", [1, 3])
def test_synthesis_equals_the_naive_network(batch):
    generator = small()
    w_plus = torch.randn(batch, 6, 5, dtype=torch.float64)
    expected = naive_synthesis(generator, w_plus)
    assert torch.allclose(generator.synthesis(w_plus), expected)
    with torch.no_grad():
        assert torch.allclose(generator.synthesis(w_plus), expected)
    image = generator.float().synthesis(w_plus.float())
    assert image.dtype == torch.float32
    assert torch.allclose(image.double(), expected, atol=1e-4 * float(expected.detach().std()))


@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_of_all_parameters_equal_the_naive_network(batch):
    generator = small()
    w_plus = torch.randn(batch, 6, 5, dtype=torch.float64, requires_grad=True)
    inputs = [w_plus, *generator.synthesis.parameters()]
    mine, theirs = generator.synthesis(w_plus), naive_synthesis(generator, w_plus)
    g = torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad(mine, inputs, g), torch.autograd.grad(theirs, inputs, g), strict=True
    ):
        assert torch.allclose(a, b)


def test_path_length_gradient_equals_the_naive_network():
    """The penalty's gradient is a second derivative; every parameter but the last biases has one."""
    generator = small()
    w_plus = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    found = []
    for synthesis in (generator.synthesis, lambda w: naive_synthesis(generator, w)):
        (slope,) = torch.autograd.grad((synthesis(w_plus) * g).sum(), w_plus, create_graph=True)
        penalty = (slope.square().sum((1, 2)).sqrt() - 1).square().mean()
        found.append(torch.autograd.grad(penalty, list(generator.synthesis.parameters()), allow_unused=True))
    seen = 0
    for mine, theirs in zip(*found, strict=True):
        if mine is None or theirs is None:
            assert mine is None or not mine.any()
            assert theirs is None or not theirs.any()
            continue
        assert torch.allclose(mine, theirs)
        seen += bool(theirs.any())
    assert seen > 15


def naive_discriminator(discriminator: Discriminator, image: Tensor) -> Tensor:
    """The residual discriminator written out, without minibatch groups beyond the whole batch."""

    def convolve(layer, x):
        weight = layer.weight / math.sqrt(layer.weight[0].numel())
        size = weight.shape[-1]
        pad = 0 if layer.down else size // 2
        if layer.down:
            x = naive.upfirdn(x, up=1, down=1, pad=(2, 2) if size == 3 else (1, 1), gain=1.0)
        y = torch.stack([naive.correlate(one, weight, pad=pad) for one in x])
        y = y[:, :, ::2, ::2] if layer.down else y
        return y if layer.bias is None else naive.lrelu(y + layer.bias[:, None, None])

    x = convolve(discriminator.from_rgb, image)
    for block in discriminator.blocks:
        x = (convolve(block.conv1, convolve(block.conv0, x)) + convolve(block.skip, x)) / math.sqrt(2)
    spread = ((x - x.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
    x = torch.cat([x, spread.expand(len(x), 1, 4, 4)], 1)
    x = convolve(discriminator.conv, x).flatten(1)
    fc, out = discriminator.fc, discriminator.out
    x = naive.lrelu(x @ (fc.weight / math.sqrt(fc.weight.shape[1])).t() + fc.bias)
    return x @ (out.weight / math.sqrt(out.weight.shape[1])).t() + out.bias


@pytest.mark.parametrize("batch", [1, 3])
def test_discriminator_and_r1_equal_the_naive_network(batch):
    discriminator = Discriminator(resolution=16, channels=CHANNELS).double()
    for name, parameter in discriminator.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    image = torch.randn(batch, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    found = []
    for run in (discriminator, lambda x: naive_discriminator(discriminator, x)):
        logits = run(image)
        (slope,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
        loss = slope.square().sum() + logits.sum()
        found.append([logits, slope, *torch.autograd.grad(loss, list(discriminator.parameters()))])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs)


def test_frozen_discriminator_gets_no_gradients_but_its_input_does():
    discriminator = Discriminator(resolution=16, channels=CHANNELS).requires_grad_(False)
    image = torch.randn(2, 3, 16, 16, requires_grad=True)
    discriminator(image).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_conditional_networks_follow_their_labels():
    generator = Generator(resolution=8, channels={4: 4, 8: 4}, z_dim=6, w_dim=6, mapping_depth=2, label_dim=3)
    discriminator = Discriminator(resolution=8, channels={4: 4, 8: 4}, label_dim=3, mapping_depth=1)
    z, labels = torch.randn(1, 6).expand(3, -1), torch.eye(3)
    images = generator(z, labels)
    assert (images[0] - images[1]).abs().max() > 1e-4
    logits = discriminator(images[:1].expand(3, -1, -1, -1), labels)
    assert logits.shape == (3, 1)
    assert (logits[0] - logits[1]).abs() > 1e-6
    with pytest.raises(ShapeError, match="class-conditional"):
        generator(z)


def test_mapping_written_out():
    generator = small()
    z = torch.randn(4, 7, dtype=torch.float64)
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for layer in generator.mapping.layers:
        x = naive.lrelu(x @ (layer.weight * 0.01 / math.sqrt(layer.weight.shape[1])).t() + layer.bias * 0.01)
    assert torch.allclose(generator.mapping(z), x)
    z_plus = torch.randn(2, 6, 7, dtype=torch.float64)
    assert torch.allclose(generator.map_z_plus(z_plus)[:, 4], generator.mapping(z_plus[:, 4]))
    with pytest.raises(ShapeError, match=r"expected \(B, 7\)"):
        generator.mapping(torch.randn(1, 5, dtype=torch.float64))


def test_rows_and_names_of_a_1024_px_network():
    with torch.device("meta"):
        network = Generator(resolution=1024).synthesis
    # The tables of rosinality's code: convolution k of a resolution, then toRGB, which shares the next one's row.
    assert network.num_rows == 18
    assert len(network.style_rows) == len(network.style_names) == 26
    assert network.style_rows[:8] == [0, 1, 1, 2, 3, 3, 4, 5]
    assert network.style_rows[-4:] == [15, 15, 16, 17]
    assert network.style_names[:5] == ["4.conv", "4.rgb", "8.up", "8.conv", "8.rgb"]
    assert network.style_names[-1] == "1024.rgb"


def test_each_row_reaches_only_its_own_styles():
    generator = small()
    w_plus = torch.randn(1, 6, 5, dtype=torch.float64)
    before = generator.synthesis.styles(w_plus)
    for row in range(6):
        changed = w_plus.clone()
        changed[:, row] += 1
        after = generator.synthesis.styles(changed)
        moved = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not torch.equal(a, b)]
        assert moved == [i for i, r in enumerate(generator.synthesis.style_rows) if r == row]


def test_styles_lead_to_the_same_image():
    generator = small()
    w_plus = torch.randn(2, 6, 5, dtype=torch.float64)
    styles = generator.synthesis.styles(w_plus)
    assert torch.equal(generator.synthesis_from_styles(styles), generator.synthesis(w_plus))
    with pytest.raises(ShapeError, match="7 style vectors were given, expected 8"):
        generator.synthesis_from_styles(styles[:-1])


def test_edit_sees_every_layer_and_replaces_features():
    generator = small()
    w_plus = torch.randn(1, 6, 5, dtype=torch.float64)
    seen = []

    def edit(layer: int, features: Tensor) -> Tensor:
        seen.append((layer, tuple(features.shape)))
        return torch.zeros_like(features) if layer == 4 else features

    image = generator.synthesis(w_plus, edit=edit)
    assert seen == [
        (0, (1, 6, 4, 4)),
        *((i, (1, 5, 8, 8)) for i in (1, 2)),
        *((i, (1, 4, 16, 16)) for i in (3, 4)),
    ]
    # Features of zero give the same colours as styles of zero: the bias.
    styles = generator.synthesis.styles(w_plus)
    expected = generator.synthesis_from_styles([*styles[:-1], torch.zeros_like(styles[-1])])
    assert torch.allclose(image, expected)
    assert not torch.allclose(image, generator.synthesis(w_plus))


def test_mean_w_is_the_mean():
    generator = make_generator()
    mean = generator.mean_w(1500, rng=torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    z = torch.cat(
        [torch.randn(1000, generator.z_dim, generator=rng), torch.randn(500, generator.z_dim, generator=rng)]
    )
    assert torch.allclose(mean, generator.mapping(z).mean(0), atol=1e-6)


def test_config_rebuilds_the_network():
    generator = small(activation_clamp=2.0)
    twin = Generator(**generator.config()).double()
    twin.load_state_dict(generator.state_dict())
    z = torch.randn(1, 7, dtype=torch.float64)
    assert torch.equal(twin(z), generator(z))
    discriminator = Discriminator(resolution=16, channels=CHANNELS, std_channels=2)
    assert Discriminator(**discriminator.config()).state_dict().keys() == discriminator.state_dict().keys()


def test_clamp_limits_colours_and_features_after_the_gain():
    generator = small(activation_clamp=0.05)
    peaks = []

    def edit(_layer: int, features: Tensor) -> Tensor:
        peaks.append(float(features.detach().abs().max()))
        return features

    image = generator.synthesis(torch.randn(1, 6, 5, dtype=torch.float64), edit=edit)
    assert max(peaks) == pytest.approx(0.05)
    assert image.abs().max() <= 3 * 0.05 + 1e-9
    discriminator = Discriminator(resolution=16, channels=CHANNELS, activation_clamp=0.05)
    with torch.no_grad():
        first = discriminator.features(10 * torch.randn(1, 3, 16, 16))[0]
    assert float(first.abs().max()) == pytest.approx(0.05)
