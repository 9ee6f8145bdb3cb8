"""The networks against a plain re-computation in float64, their spaces, noise, sizes and second derivatives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import CHANNELS, RESOLUTION, W_DIM
from torch import Tensor

from limner.errors import ShapeError
from limner.nn import layers
from limner.nn.stylegan2 import Discriminator, Generator, default_channels, resolutions

ROWS = 2 * int(math.log2(RESOLUTION)) - 2


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Seeded standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain_fir(x: Tensor, gain: float) -> Tensor:
    """Filter [1, 3, 3, 1] in both directions, nothing padded, by four shifted sums per direction."""
    for axis in (2, 3):
        length = x.shape[axis] - 3
        taps = (1, 3, 3, 1)
        x = sum(tap * x.narrow(axis, i, length) for i, tap in enumerate(taps)) / 8  # type: ignore[assignment]
    return x * gain


def plain_upsample(x: Tensor) -> Tensor:
    """Insert zeros behind every pixel, pad by 2 before and 1 after, filter with gain 4."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, 2 * height, 2 * width)
    spread[:, :, ::2, ::2] = x
    return plain_fir(F.pad(spread, (2, 1, 2, 1)), 4.0)


def plain_modulated(x: Tensor, weight: Tensor, styles: Tensor, *, demodulate: bool, up: bool) -> Tensor:
    """Image by image, with its own weights, by the formulas of the paper."""
    results = []
    for image, style in zip(x, styles, strict=True):
        own = weight * style[None, :, None, None]
        if demodulate:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        image = image[None]
        if up:
            height, width = image.shape[2:]
            spread = image.new_zeros(1, image.shape[1], 2 * height - 1, 2 * width - 1)
            spread[:, :, ::2, ::2] = image
            # A transposed convolution is a convolution of the spread image with the flipped kernel.
            y = F.conv2d(F.pad(spread, (2, 2, 2, 2)), own.flip(2, 3))
            results.append(plain_fir(F.pad(y, (1, 1, 1, 1)), 4.0))
        else:
            results.append(F.conv2d(image, own, padding=own.shape[-1] // 2))
    return torch.cat(results)


@pytest.mark.parametrize(
    ("batch", "side", "up", "demodulate"),
    [*itertools.product((1, 3), (4, 9), (False, True), (True,)), (1, 5, False, False), (2, 5, False, False)],
)
def test_modulated_convolution(batch, side, up, demodulate):
    x, weight, styles = normal(batch, 5, side, side), normal(7, 5, 3, 3, seed=1), normal(batch, 5, seed=2) + 1
    found = layers.modulated_conv2d(x, weight, styles, demodulate=demodulate, up=up)
    expected = plain_modulated(x, weight, styles, demodulate=demodulate, up=up)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-10)


def test_upsampling():
    x = normal(2, 3, 5, 4)
    assert torch.allclose(layers.upsample2(x), plain_upsample(x), atol=1e-12)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_layers_can_be_differentiated_twice(batch, up):
    """As R1 and path length need."""
    weight, noise = normal(2, 3, 3, 3, seed=1), normal(batch, 1, 6 if up else 3, 6 if up else 3, seed=3)
    inputs = (
        normal(batch, 3, 3, 3),
        weight,
        normal(batch, 3, seed=2) + 2,
        normal(2, seed=4),
        normal(1, seed=5)[0],
    )
    inputs = tuple(value.requires_grad_() for value in inputs)

    def run(x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, strength: Tensor) -> Tensor:
        return layers.modulated_layer(x, weight, styles, bias, noise, strength, up=up)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def plain_generator(generator: Generator, z: Tensor) -> Tensor:
    """The whole generator with stored noise, from its `state_dict` and the papers' formulas."""
    state = generator.state_dict()

    def linear(x: Tensor, name: str, lr: float = 1.0) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return x @ weight.t() * (lr / math.sqrt(weight.shape[1])) + bias * lr

    def conv(x: Tensor, w: Tensor, name: str, *, up: bool = False, rgb: bool = False) -> Tensor:
        weight = state[f"{name}.weight"]
        weight = weight / math.sqrt(weight[0].numel())
        x = plain_modulated(x, weight, linear(w, f"{name}.affine"), demodulate=not rgb, up=up)
        bias = state[f"{name}.bias"].view(1, -1, 1, 1)
        if rgb:
            return x + bias
        x = x + state[f"{name}.noise"] * state[f"{name}.noise_strength"] + bias
        return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)

    w = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(len(generator.mapping.layers)):
        w = linear(w, f"mapping.layers.{i}", 0.01)
        w = torch.where(w > 0, w, 0.2 * w) * math.sqrt(2)
    x = conv(state["synthesis.const"].expand(len(z), -1, -1, -1), w, "synthesis.layers.0")
    image = conv(x, w, "synthesis.to_rgb.0", rgb=True)
    for j in range(1, len(generator.synthesis.to_rgb)):
        x = conv(x, w, f"synthesis.layers.{2 * j - 1}", up=True)
        x = conv(x, w, f"synthesis.layers.{2 * j}")
        image = plain_upsample(image) + conv(x, w, f"synthesis.to_rgb.{j}", rgb=True)
    return image


@pytest.mark.parametrize("batch", [1, 3])
def test_generator_is_what_the_papers_say(generator, batch):
    for i, layer in enumerate(generator.synthesis.layers):
        layer.bias.data = normal(*layer.bias.shape, seed=i, dtype=torch.float32) * 0.1
    generator = generator.double()
    z = normal(batch, W_DIM)
    assert torch.allclose(generator(z), plain_generator(generator, z), atol=1e-9)


def test_generator_path_length_gradient_is_right(generator):
    """The gradient of the squared length of d(image)/d(w), which needs second derivatives, against differences."""
    generator = generator.double()
    direction, w = normal(1, 3, RESOLUTION, RESOLUTION, seed=1), normal(1, W_DIM, seed=2)
    affine = generator.synthesis.layers[3].affine.weight

    def length() -> Tensor:
        start = w.clone().requires_grad_()
        image = generator.synthesis(generator.broadcast(start))
        (slope,) = torch.autograd.grad((image * direction).sum(), start, create_graph=True)
        return slope.square().sum()

    affine.requires_grad_(True)
    (slope,) = torch.autograd.grad(length(), affine)
    step = normal(*affine.shape, seed=3)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            affine.add_(step, alpha=sign * 1e-6)
        values.append(length().item())
        with torch.no_grad():
            affine.sub_(step, alpha=sign * 1e-6)
    assert (values[0] - values[1]) / 2e-6 == pytest.approx((slope * step).sum().item(), rel=1e-4)


def test_discriminator_r1_gradient_is_right(discriminator):
    """The gradient of the R1 penalty for a weight, against differences (its last layers work in float32)."""
    discriminator = discriminator.double()
    image = normal(2, 3, RESOLUTION, RESOLUTION)
    weight = discriminator.blocks[1].conv1.weight

    def penalty() -> Tensor:
        real = image.clone().requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
        return slope.square().sum()

    weight.requires_grad_(True)
    (slope,) = torch.autograd.grad(penalty(), weight)
    step = normal(*weight.shape, seed=3)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(step, alpha=sign * 1e-4)
        values.append(penalty().item())
        with torch.no_grad():
            weight.sub_(step, alpha=sign * 1e-4)
    assert (values[0] - values[1]) / 2e-4 == pytest.approx((slope * step).sum().item(), rel=1e-2)


def test_discriminator_features_are_what_it_judges_by(discriminator):
    image = normal(4, 3, RESOLUTION, RESOLUTION, dtype=torch.float32)
    maps = discriminator.features(image)
    assert [tuple(x.shape) for x in maps] == [(4, 8, s, s) for s in (32, 16, 8, 4)]
    x = layers.minibatch_std(maps[-1])
    logits = discriminator.out(discriminator.fc(discriminator.conv(x).flatten(1)))
    assert torch.equal(discriminator(image), logits)
    with pytest.raises(ShapeError, match=r"expected \(B, 3, 32, 32\)"):
        discriminator.features(image[:, :, :16])


@pytest.mark.parametrize(("batch", "group"), [(4, 4), (6, 3), (5, 1), (1, 1)])
def test_spread_over_the_batch(batch, group):
    x = normal(batch, 3, 2, 2)
    found = layers.minibatch_std(x, group=4)[:, 3]
    for i in range(batch):
        members = x[i % (batch // group) :: batch // group]
        expected = (members.var(0, unbiased=False) + 1e-8).sqrt().mean()
        assert torch.allclose(found[i], expected.expand(2, 2))


def test_noise_modes(generator):
    w_plus = generator.broadcast(normal(2, W_DIM, dtype=torch.float32))

    def paint(noise: object, seed: int = 0) -> Tensor:
        return generator.synthesis(w_plus, noise, rng=torch.Generator().manual_seed(seed))

    stored = [layer.noise for layer in generator.synthesis.layers]
    assert torch.equal(paint("constant"), paint(stored))
    assert torch.equal(paint("none"), paint([torch.zeros_like(values) for values in stored]))
    assert torch.equal(paint("random", 1), paint("random", 1))
    assert not torch.equal(paint("random", 1), paint("random", 2))
    assert not torch.equal(paint("constant"), paint("none"))
    assert generator.synthesis.noise_maps("random", 2, None)[-1].shape == (2, 1, RESOLUTION, RESOLUTION)
    with pytest.raises(ShapeError, match="expected constant, random, none"):
        paint("loud")
    with pytest.raises(ShapeError, match=f"expected {len(stored)}"):
        paint(stored[1:])


def test_truncation(generator):
    w_plus = generator.broadcast(normal(2, W_DIM, dtype=torch.float32))
    near = generator.truncate(w_plus, 0.3, 2)
    expected = generator.w_avg + 0.3 * (w_plus - generator.w_avg)
    assert torch.allclose(near[:, :2], expected[:, :2], atol=1e-6)
    assert torch.equal(near[:, 2:], w_plus[:, 2:])
    assert torch.allclose(generator.truncate(w_plus, 0.0), generator.w_avg.expand_as(w_plus), atol=1e-6)
    assert torch.equal(generator.truncate(w_plus, 1.0), w_plus)


def test_spaces_have_the_published_sizes_at_1024():
    generator = Generator(resolution=1024, channels=dict.fromkeys(resolutions(1024), 2), z_dim=4, w_dim=4)
    styles = generator.synthesis.styles(generator.broadcast(normal(1, 4, dtype=torch.float32)))
    assert len(styles) == len(generator.synthesis.style_names) == 26
    assert generator.num_rows == 18
    assert len(generator.synthesis.layers) == 17
    assert len(generator.mapping.layers) == 8
    assert default_channels(1024)[1024] == 32
    assert default_channels(1024)[64] == 512


@pytest.mark.parametrize("size", [4, 8, 64])
@pytest.mark.parametrize("depth", [1, 8])
def test_sizes_and_depths(size, depth):
    config = {"resolution": size, "channels": dict.fromkeys(resolutions(size), 4), "mapping_depth": depth}
    generator = Generator(**config, z_dim=6, w_dim=5)
    assert generator(normal(2, 6, dtype=torch.float32)).shape == (2, 3, size, size)
    assert Generator(**generator.config()).config() == generator.config()
    judge = Discriminator(resolution=size, channels=config["channels"])
    assert judge(normal(2, 3, size, size, dtype=torch.float32)).shape == (2, 1)


@pytest.mark.parametrize("size", [0, 2, 3, 48, 1000])
def test_impossible_sizes_explain_themselves(size):
    with pytest.raises(ShapeError, match="not 4 times a power of two"):
        Generator(resolution=size)
    with pytest.raises(ShapeError, match="channels has no entry for"):
        Generator(resolution=32, channels={4: 8, 32: 8})


def test_wrong_codes_explain_themselves(generator):
    with pytest.raises(ShapeError, match=rf"expected \(B, {ROWS}, {W_DIM}\)"):
        generator.synthesis(torch.zeros(1, ROWS - 1, W_DIM))
    with pytest.raises(ShapeError, match=rf"expected \(B, {W_DIM}\)"):
        generator(torch.zeros(1, W_DIM + 1))
    assert set(CHANNELS) == set(resolutions(RESOLUTION))


def test_edits_see_the_features_of_every_layer(generator):
    w_plus = generator.broadcast(normal(1, W_DIM, dtype=torch.float32))
    seen = []

    def watch(i: int, x: Tensor) -> Tensor:
        seen.append((i, x.shape[-1]))
        return x

    same = generator.synthesis(w_plus, edit=watch)
    assert torch.equal(same, generator.synthesis(w_plus))
    assert seen == [(0, 4), (1, 8), (2, 8), (3, 16), (4, 16), (5, 32), (6, 32)]
    gone = generator.synthesis(w_plus, edit=lambda i, x: x * 0 if i == 6 else x)
    assert not torch.equal(gone, same)


@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_bfloat16_gradients_are_near_those_of_float32(generator, discriminator, kind):
    """What mixed precision trains with."""
    network = generator if kind == "generator" else discriminator
    network.requires_grad_(True)
    shape = (2, W_DIM) if kind == "generator" else (2, 3, RESOLUTION, RESOLUTION)
    x = normal(*shape, dtype=torch.float32)

    def gradients(context: torch.autocast) -> Tensor:
        with context:
            y = network(x)
        grads = torch.autograd.grad(y.float().square().mean(), list(network.parameters()), allow_unused=True)
        return torch.cat([grad.flatten() for grad in grads if grad is not None])

    exact, rough = (
        gradients(torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)) for enabled in (False, True)
    )
    assert F.cosine_similarity(exact, rough, dim=0) > 0.99
