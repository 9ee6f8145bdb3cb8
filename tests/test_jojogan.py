"""JoJoGAN: which rows and stages, the mixing, the loss, and that only the generator's copy is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import W_DIM
from torch import Tensor

from limner.errors import DivergedError, OptionError, ShapeError
from limner.nn.stylegan2 import Discriminator, Generator
from limner.stylization.choices import compared_stages, row_weights
from limner.stylization.codes import mixed_rows
from limner.stylization.jojogan import JojoganTraining, feature_distances, learn, mix_codes
from limner.stylization.options import JojoganOptions
from limner.stylization.style import Style


@pytest.fixture
def images(generator: Generator) -> Tensor:
    """Two style pictures: faces of the generator with their colours turned around."""
    with torch.no_grad():
        return -generator(torch.randn(2, W_DIM)).clamp(-1, 1)


@pytest.fixture
def w_plus(generator: Generator) -> Tensor:
    """Codes of the two pictures."""
    return generator.broadcast(generator.mapping(torch.randn(2, W_DIM))).clone()


def test_rows_are_the_published_ones_where_they_exist() -> None:
    """At 1024 px rows 7-17, with colours kept 9, 11, 15, 16, 17; at 256 px what exists of 7 and up."""
    assert mixed_rows(1024) == tuple(range(7, 18))
    assert mixed_rows(1024, keep_color=True) == (9, 11, 15, 16, 17)
    assert mixed_rows(256) == tuple(range(7, 14))
    assert mixed_rows(128) == tuple(range(7, 12))
    assert mixed_rows(64) == tuple(range(5, 10))
    assert compared_stages(1024) == compared_stages(256) == (1, 3, 4, 5)


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("keep_color", [False, True])
def test_every_size_mixes_something_and_keeps_the_pose(resolution: int, keep_color: bool) -> None:
    """The first row is never mixed, the last always; keeping colours mixes fewer rows, all of them existing."""
    count = (resolution.bit_length() - 1) * 2 - 2
    rows = mixed_rows(resolution, keep_color=keep_color)
    assert rows
    assert 0 not in rows
    assert count - 1 in rows
    assert max(rows) < count
    assert set(rows) <= set(mixed_rows(resolution))
    if resolution >= 64:
        assert keep_color == (len(rows) < len(mixed_rows(resolution)))


def test_mixing_replaces_exactly_the_masked_rows(generator: Generator, w_plus: Tensor) -> None:
    """Weight 1 takes the random code bit for bit, 0 keeps the picture's, between lies between."""
    w_random = torch.randn(2, W_DIM)
    weights = torch.tensor([0.0, 0.0, 0.0, 0.25, 0.0, 1.0, 1.0, 1.0])
    mixed = mix_codes(w_plus, w_random, weights)
    torch.testing.assert_close(mixed[:, :3], w_plus[:, :3], rtol=0, atol=0)
    torch.testing.assert_close(mixed[:, 5:], w_random[:, None].expand(-1, 3, -1), rtol=0, atol=0)
    torch.testing.assert_close(mixed[:, 3], 0.75 * w_plus[:, 3] + 0.25 * w_random)


def test_a_mask_overrides_the_rows(generator: Generator) -> None:
    """Masks by row, by resolution and with weights are taken as they are written."""
    rows = row_weights(JojoganOptions(mask="7-"), generator)
    assert rows.tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    rows = row_weights(JojoganOptions(mask="32px-=0.5"), generator)
    assert rows.tolist() == [0, 0, 0, 0, 0, 0.5, 0.5, 0.5]


def test_feature_distances_are_mean_absolute_differences() -> None:
    """Against plain Python sums."""
    a, b = (
        [torch.randn(2, 3, 2, 2), torch.randn(1, 2, 1, 1)],
        [torch.randn(2, 3, 2, 2), torch.randn(1, 2, 1, 1)],
    )
    expected = [
        sum(abs(x - y) for x, y in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)) / p.numel()
        for p, q in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(feature_distances(a, b), torch.tensor(expected))


def test_learning_lowers_the_loss_and_touches_only_its_copy(
    generator: Generator, discriminator: Discriminator, images: Tensor, w_plus: Tensor
) -> None:
    """The base and the discriminator stay bit-identical; the discriminator's weights never get a gradient."""
    before, judge = copy.deepcopy(generator.state_dict()), copy.deepcopy(discriminator.state_dict())
    discriminator.requires_grad_(True)
    steps = []
    style = learn(
        generator,
        discriminator,
        images,
        w_plus,
        JojoganOptions(steps=25, learning_rate=0.01),
        on_step=steps.append,
    )
    assert [step.number for step in steps] == list(range(1, 26))
    losses = [step.loss for step in steps]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for state, module in ((before, generator), (judge, discriminator)):
        assert all(torch.equal(value, module.state_dict()[name]) for name, value in state.items())
    assert all(weight.grad is None and weight.requires_grad for weight in discriminator.parameters())
    assert not any(name.startswith("mapping.") for name in style.delta)
    assert style.provenance["last_loss"] == losses[-1]


def test_learning_repeats_bit_for_bit(
    generator: Generator, discriminator: Discriminator, images: Tensor, w_plus: Tensor
) -> None:
    """The seed decides; another one gives another style; random noise repeats too."""

    def run(**options: object) -> Style:
        return learn(generator, discriminator, images, w_plus, JojoganOptions(steps=2, **options))  # type: ignore[arg-type]

    for noise in ("constant", "random"):
        first, second, other = run(noise=noise), run(noise=noise), run(noise=noise, seed=1)
        assert first.delta.keys() == second.delta.keys()
        assert all(torch.equal(value, second.delta[name]) for name, value in first.delta.items())
        assert not all(torch.equal(value, other.delta[name]) for name, value in first.delta.items())


def test_without_mixing_the_random_codes_do_not_matter(
    generator: Generator, discriminator: Discriminator, images: Tensor, w_plus: Tensor
) -> None:
    """style_mix 0 memorises the pictures whatever the seed."""
    styles = [
        learn(generator, discriminator, images, w_plus, JojoganOptions(steps=2, style_mix=0.0, seed=seed))
        for seed in (0, 1)
    ]
    assert all(torch.equal(value, styles[1].delta[name]) for name, value in styles[0].delta.items())


def test_the_average_is_an_average(
    generator: Generator, discriminator: Discriminator, images: Tensor, w_plus: Tensor
) -> None:
    """After two steps the averaged weights lie where the recursion puts them."""
    options = JojoganOptions(steps=2, ema=0.25, learning_rate=0.01)
    training = JojoganTraining(
        generator=generator, discriminator=discriminator, images=images, w_plus=w_plus, options=options
    )
    expected = generator.synthesis.const.detach().clone()
    for number in (1, 2):
        training.step(torch.randn(2, W_DIM), "constant")
        decay = min(0.25, number / (number + 5))
        expected = decay * expected + (1 - decay) * training.generator.synthesis.const.detach()
    assert training.average is training.result
    torch.testing.assert_close(training.result.synthesis.const.detach(), expected)


def test_more_codes_are_the_mean_over_single_ones(
    generator: Generator, discriminator: Discriminator, images: Tensor, w_plus: Tensor
) -> None:
    """The loss of three codes per picture is the mean of the three losses."""
    z = torch.randn(6, W_DIM)

    def loss(codes: int, z: Tensor) -> Tensor:
        training = JojoganTraining(
            generator=generator,
            discriminator=discriminator,
            images=images,
            w_plus=w_plus,
            options=JojoganOptions(codes=codes),
            perceptual=lambda a, b: (a - b).square().mean((1, 2, 3)),
        )
        return training.loss(training.paint(z, "constant")).detach()

    singles = torch.stack([loss(1, part) for part in z.split(2)])
    torch.testing.assert_close(loss(3, z), singles.mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 16, 16)}, "expected \\(N, 3, 32, 32\\)"),
        ({"w_plus": torch.zeros(1, 8, W_DIM)}, "one code per style picture"),
        ({"discriminator": Discriminator(resolution=16, channels={4: 8, 8: 8, 16: 8})}, "takes 16 px"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    generator: Generator,
    discriminator: Discriminator,
    images: Tensor,
    w_plus: Tensor,
    change: dict,
    message: str,
) -> None:
    """What came and what was expected stand in the message."""
    parts = {
        "discriminator": discriminator,
        "images": images,
        "w_plus": w_plus,
        "options": JojoganOptions(),
    } | change
    with pytest.raises(ShapeError, match=message):
        learn(generator, **parts)


def test_stages_and_rows_beyond_the_model_are_refused(
    generator: Generator, discriminator: Discriminator, images: Tensor, w_plus: Tensor
) -> None:
    """The messages say what there is."""
    with pytest.raises(OptionError, match="stages 0 to 3"):
        learn(generator, discriminator, images, w_plus, JojoganOptions(feature_layers=(1, 4)))
    with pytest.raises(OptionError, match="rows 0-7"):
        learn(generator, discriminator, images, w_plus, JojoganOptions(mask="7-17"))


def test_an_infinite_loss_ends_the_learning(
    generator: Generator, discriminator: Discriminator, images: Tensor, w_plus: Tensor
) -> None:
    """With the step and what to change."""
    with pytest.raises(DivergedError, match="lower learning_rate"):
        learn(generator, discriminator, images * float("inf"), w_plus, JojoganOptions())
