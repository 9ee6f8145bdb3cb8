"""Destylisation on tiny generators, where the face behind a portrait is known."""

from __future__ import annotations

import pytest
import torch
from conftest import make_generator
from torch import Tensor

from limner.errors import DivergedError, ShapeError
from limner.nn.stylegan2 import Generator
from limner.stylization.destylize import destylize, lock_colors, row_spread
from limner.stylization.options import DestylizeOptions

FAST = DestylizeOptions(steps=60, learning_rate=0.05, spread=0.02, truncation=1.0)


def pixels(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean((1, 2, 3))


@pytest.fixture
def base() -> Generator:
    return make_generator()


@pytest.fixture
def tuned(base: Generator) -> Generator:
    """The base with other colours and strokes."""
    tuned = Generator(**base.config())
    tuned.load_state_dict(base.state_dict())
    torch.manual_seed(9)
    for layer in tuned.synthesis.layers:
        layer.weight.data = layer.weight.data + 0.3 * torch.randn_like(layer.weight)
    return tuned.eval().requires_grad_(False)


class Encoder:
    """Gives the known codes with an error: what an encoder would."""

    def __init__(self, truth: Tensor):
        self.codes, self.seen = truth + 0.5 * torch.randn_like(truth), []

    def __call__(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        return self.codes.clone()


@pytest.fixture
def truth(base: Generator) -> Tensor:
    return torch.randn(2, 1, base.z_dim).expand(-1, base.num_rows, -1).clone()


def portraits(tuned: Generator, truth: Tensor) -> Tensor:
    return tuned.synthesis(tuned.map_z_plus(truth))


def test_the_search_comes_nearer_to_portrait_and_truth(base, tuned, truth) -> None:
    encode, steps = Encoder(truth), []
    target = portraits(tuned, truth)
    found = destylize(
        base, tuned, target, FAST, encode=encode, perceptual=pixels, on_step=lambda *step: steps.append(step)
    )
    start = portraits(tuned, encode.codes)
    assert (
        pixels(found.stylized, target.clamp(-1, 1)) < 0.5 * pixels(start.clamp(-1, 1), target.clamp(-1, 1))
    ).all()
    assert steps[-1][:2] == (60, 60)
    assert steps[-1][2]["loss"] < steps[0][2]["loss"]
    assert set(found.figures) == {"perceptual", "spread"}
    assert len(found.figures["perceptual"]) == 2
    real = base.synthesis(base.map_z_plus(truth)).clamp(-1, 1)
    guessed = base.synthesis(base.map_z_plus(encode.codes)).clamp(-1, 1)
    assert pixels(found.face, real).mean() < pixels(guessed, real).mean()


def test_what_the_encoder_sees_and_what_comes_back(base, tuned, truth) -> None:
    encode = Encoder(truth)
    target = portraits(tuned, truth)
    options = DestylizeOptions(steps=2, truncation=0.5)
    found = destylize(base, tuned, target, options, encode=encode, perceptual=pixels)
    assert torch.equal(encode.seen[0], target)
    assert torch.equal(encode.seen[1], found.face)
    assert torch.equal(found.extrinsic, encode.codes)
    w_plus = base.map_z_plus(found.fitted)
    expected = base.synthesis(base.w_avg + 0.5 * (w_plus - base.w_avg)).clamp(-1, 1)
    torch.testing.assert_close(found.face, expected, atol=1e-5, rtol=1e-5)


def test_portraits_do_not_depend_on_their_batch(base, tuned, truth) -> None:
    encode = Encoder(truth)
    target = portraits(tuned, truth)
    options = DestylizeOptions(steps=5)
    both = destylize(base, tuned, target, options, encode=encode, perceptual=pixels)
    alone = destylize(
        base, tuned, target[1:], options, encode=lambda _: encode.codes[1:].clone(), perceptual=pixels
    )
    torch.testing.assert_close(both.fitted[1:], alone.fitted, atol=1e-3, rtol=1e-3)


def test_without_steps_the_encoders_code_stays(base, tuned, truth) -> None:
    encode = Encoder(truth)
    found = destylize(
        base, tuned, portraits(tuned, truth), DestylizeOptions(steps=0), encode=encode, perceptual=pixels
    )
    assert torch.equal(found.fitted, encode.codes)


def test_identity_takes_part(base, tuned, truth) -> None:
    encode, target = Encoder(truth), portraits(tuned, truth)
    options = DestylizeOptions(steps=3, identity=5.0)
    plain = destylize(base, tuned, target, options, encode=encode, perceptual=pixels)
    found = destylize(
        base,
        tuned,
        target,
        options,
        encode=encode,
        perceptual=pixels,
        identity=lambda a, b: pixels(a.abs(), b.abs()),
    )
    assert "identity" in found.figures
    assert not torch.equal(found.fitted, plain.fitted)


def test_spread_is_the_deviation_over_rows() -> None:
    code = torch.randn(3, 5, 7)
    expected = ((code - code.mean(1, keepdim=True)).square().sum(1) / 4).sqrt().mean(1)
    torch.testing.assert_close(row_spread(code), expected)
    assert row_spread(code[:, :1].expand(-1, 5, -1)).abs().max() == 0


def test_color_lock() -> None:
    a, b = torch.randn(2, 1, 18, 4)
    locked = lock_colors(a, b)
    assert torch.equal(locked[:, :8], a[:, :8])
    assert torch.equal(locked[:, 8:], b[:, 8:])


def test_generators_weights_get_no_gradient(base, tuned, truth) -> None:
    tuned.requires_grad_(True)
    destylize(
        base,
        tuned,
        portraits(tuned, truth).detach(),
        DestylizeOptions(steps=1),
        encode=Encoder(truth),
        perceptual=pixels,
    )
    assert all(value.grad is None for value in tuned.parameters())


def test_errors(base, tuned, truth) -> None:
    target = portraits(tuned, truth)
    with pytest.raises(ShapeError, match="portraits have shape"):
        destylize(base, tuned, target[:, :, :16], encode=Encoder(truth), perceptual=pixels)
    with pytest.raises(ShapeError, match=r"encoder gave codes \(2, 3, 16\)"):
        destylize(base, tuned, target, encode=lambda _: truth[:, :3], perceptual=pixels)
    with pytest.raises(DivergedError, match="step 1"):
        destylize(base, tuned, target, encode=Encoder(truth), perceptual=lambda a, b: pixels(a, b) / 0)
