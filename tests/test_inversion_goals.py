"""What a search can want besides one picture: masks, goals, persons, P_N, layers that stay; noise; starts; batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_compact import make_encoder
from torch import Tensor

from limner import losses
from limner.errors import OptionError, ShapeError
from limner.inversion import (
    Goal,
    IdentityDistance,
    InversionOptions,
    PivotalOptions,
    TrunkDistance,
    invert,
    preset,
)
from limner.inversion.distances import STAND_INS, stand_in
from limner.inversion.optimize import Projector
from limner.inversion.options import METHODS, PRESET_TRUNKS, PRESETS
from limner.inversion.statistics import draw_codes, unbend, whitening_from_w
from limner.latent import Latent, render
from limner.nn.features import Lite0, Vgg16
from limner.nn.stylegan2 import Generator
from limner.pipeline.models import VGG16_TAPS, Models

SHORT = InversionOptions(steps=40, perceptual=0.0, mean_samples=200, learning_rate=0.05, fit_noise=False)


@pytest.fixture
def generator(generator) -> Generator:
    """The tiny generator, its colours made faint enough to fit [-1, 1]."""
    for layer in generator.synthesis.to_rgb:
        layer.weight.mul_(0.15)
    return generator


def paint(generator: Generator, seed: int = 11, count: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return generator(torch.randn(count, generator.z_dim, generator=rng), psi=0.7).clamp(-1, 1)


@pytest.fixture
def target(generator) -> Tensor:
    return paint(generator)


def half(left: bool = True) -> Tensor:
    """A mask of one half of the picture."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., slice(0, 16) if left else slice(16, 32)] = 1
    return mask


def pools(image: Tensor) -> list[Tensor]:
    return [image, F.avg_pool2d(image, 2)]


@pytest.fixture
def perceptual() -> TrunkDistance:
    return TrunkDistance(pools, name="pools", least_px=32, weights=(0.5, 0.5))


# Spaces


def test_s_holds_every_style_vector_those_of_rgb_too(generator, target):
    found = invert(generator, target, dataclasses.replace(SHORT, method="s", steps=5), perceptual=None)
    names = generator.synthesis.style_names
    assert len(found.latent.parts) == len(names) == 11
    start = generator.synthesis.styles(generator.broadcast(generator.w_avg[None]))
    moved = {
        name
        for name, part, mean in zip(names, found.latent.parts, start, strict=True)
        if (part - mean).abs().max() > 0.02
    }
    assert moved == set(names)


def test_noise_alone_leaves_the_codes(generator, target):
    code = Latent("w+", generator.broadcast(generator.w_avg[None])).to_space("s", generator)
    options = dataclasses.replace(
        SHORT, method="noise", init="given", fit_noise=True, noise_scaled=False, noise_reg=0.0
    )
    found = invert(generator, target, options, perceptual=None, init=code)
    assert found.latent.space == "s"
    assert all(torch.equal(a, b.expand_as(a)) for a, b in zip(found.latent.parts, code.parts, strict=True))
    before = (render(generator, code).clamp(-1, 1) - target).square().mean((1, 2, 3))
    after = (found.image - target).square().mean((1, 2, 3))
    assert (after < 0.8 * before).all()
    assert found.noise is not None
    assert found.noise[-1].std((2, 3)).sub(1).abs().max() > 1e-3
    assert [fit.method for fit in found.report] == ["noise"] * 2
    with pytest.raises(OptionError, match="fit_noise is off"):
        invert(generator, target, dataclasses.replace(options, fit_noise=False), perceptual=None, init=code)


def test_a_second_stage_fits_the_noise_around_the_codes(generator, target):
    seen = []
    one = invert(generator, target, SHORT, perceptual=None)
    two = invert(
        generator,
        target,
        dataclasses.replace(SHORT, noise_steps=20, noise_learning_rate=0.05),
        perceptual=None,
        on_step=lambda step, total, record, preview: seen.append((step, total)),
    )
    assert torch.equal(one.latent.tensor, two.latent.tensor)
    assert one.noise is None
    assert two.noise is not None
    assert all(b.psnr > a.psnr + 0.3 for a, b in zip(one.report, two.report, strict=True))
    assert [fit.steps for fit in two.report] == [fit.steps + 20 for fit in one.report]
    assert seen[-1] == (60, 60)
    assert torch.allclose(render(generator, two.latent, two.noise).clamp(-1, 1), two.image, atol=1e-6)


# Starts


def test_uniform_start(generator, target):
    options = dataclasses.replace(SHORT, init="uniform")
    start = Projector(generator, target, options, perceptual=None).latent().tensor
    assert start.abs().max() <= 1
    assert start.std() == pytest.approx(3**-0.5, rel=0.15)
    assert torch.equal(start[0], start[1])
    other = Projector(generator, target, dataclasses.replace(options, seed=1), perceptual=None)
    assert not torch.equal(other.latent().tensor, start)


@pytest.mark.parametrize("method", ["w+", "s"])
def test_encoder_start(generator, target, method):
    encoder = make_encoder(generator)
    codes = Latent("w+", encoder.encode(generator, target, steps=2)[-1]).to_space(method, generator)
    options = dataclasses.replace(SHORT, method=method, init="encoder", steps=1, rampup=1.0, refinements=2)
    found = invert(generator, target, options, perceptual=None, encoder=encoder)
    assert all(torch.allclose(a, b) for a, b in zip(found.latent.parts, codes.parts, strict=True))


def test_encoder_start_needs_an_encoder_and_a_space_that_it_reaches(generator, target):
    options = dataclasses.replace(SHORT, init="encoder")
    with pytest.raises(OptionError, match="needs a compact encoder"):
        invert(generator, target, options, perceptual=None)
    encoder, code = make_encoder(generator), Latent("w", generator.w_avg[None])
    with pytest.raises(OptionError, match="handed over"):
        invert(generator, target, options, perceptual=None, encoder=encoder, init=code)
    narrow = dataclasses.replace(options, method="w")
    with pytest.raises(OptionError, match=r"w\+ cannot be brought to w"):
        invert(generator, target, narrow, perceptual=None, encoder=encoder)


# Losses


def test_whitened_codes_are_standard_normal(generator):
    _, w = draw_codes(generator, 4000, rng=torch.Generator().manual_seed(3))
    space = whitening_from_w(w)
    values = space(w)
    assert torch.allclose(values.mean(0), torch.zeros(values.shape[1]), atol=1e-3)
    assert torch.allclose(values.T @ values / len(values), torch.eye(values.shape[1]), atol=1e-2)
    assert space.norm(w).mean() == pytest.approx(1, abs=1e-3)
    # Undoing the Leaky ReLU is exact, and w+ is the mean over its rows.
    assert torch.allclose(F.leaky_relu(unbend(w), 0.2), w, atol=1e-6)
    assert torch.allclose(space.norm(generator.broadcast(w[:3])), space.norm(w[:3]), rtol=1e-5)
    few = whitening_from_w(w[:5])
    assert few.std.numel() == 4
    assert few(w).isfinite().all()


def test_ii2s_stays_near_the_codes_of_the_mapping_network(generator, target):
    _, w = draw_codes(generator, 2000, rng=torch.Generator().manual_seed(3))
    space = whitening_from_w(w)
    free, held, firm = (
        invert(generator, target, dataclasses.replace(SHORT, **extra), perceptual=None)
        for extra in ({}, {"method": "ii2s"}, {"method": "ii2s", "p_norm": 0.1})
    )
    norms = [float(space.norm(found.latent.tensor).mean()) for found in (free, held, firm)]
    assert norms[2] < norms[1] < norms[0]
    assert norms[2] < 0.5 * norms[0]
    assert held.latent.space == "w+"
    assert held.noise is None
    assert held.report[0].method == "ii2s"
    with pytest.raises(OptionError, match="p_norm measures codes in w"):
        invert(generator, target, dataclasses.replace(SHORT, method="s", p_norm=1.0), perceptual=None)


def test_identity_is_a_loss(generator, target):
    def embed(image: Tensor) -> Tensor:
        return F.normalize(F.avg_pool2d(image, 16).flatten(1), dim=1)

    identity = IdentityDistance(embed, name="means", stands_for="arcface")
    records: list[dict[str, float]] = []
    options = dataclasses.replace(SHORT, l2=0.0, identity=2.0)
    found = invert(
        generator,
        target,
        options,
        perceptual=None,
        identity=identity,
        on_step=lambda step, total, record, preview: records.append(dict(record)),
    )
    assert records[0]["loss"] == pytest.approx(2 * records[0]["identity"], rel=1e-5)
    assert "l2" not in records[0]
    fits = found.report
    assert sum(fit.identity or 0 for fit in fits) / 2 < 0.3 * records[0]["identity"]
    assert {(fit.embedder, fit.embedder_stands_for) for fit in fits} == {("means", "arcface")}
    with pytest.raises(OptionError, match="no identity embedder"):
        invert(generator, target, options, perceptual=None)


def test_layers_that_stay(generator, target):
    mean = Latent("w+", generator.broadcast(generator.w_avg[None]))
    options = dataclasses.replace(SHORT, layers="0-2,7", steps=8, init="given", perturbation=0.1)
    found = invert(generator, target, options, perceptual=None, init=mean)
    moved = (found.latent.tensor - mean.tensor).abs().amax((0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [0, 1, 2, 7]
    colours = dataclasses.replace(options, method="s", layers="rgb")
    found = invert(generator, target, colours, perceptual=None, init=mean)
    names = [
        name
        for name, part, start in zip(
            generator.synthesis.style_names, found.latent.parts, mean.styles(generator), strict=True
        )
        if not torch.equal(part, start.expand_as(part))
    ]
    assert names == [name for name in generator.synthesis.style_names if name.endswith("rgb")]
    for changes, message in (
        ({"method": "w"}, "drives all layers"),
        ({"layers": "0-2=0.5"}, "without weights"),
        ({"layers": "none"}, "expected layers"),
    ):
        with pytest.raises(OptionError, match=message):
            invert(generator, target, dataclasses.replace(options, **changes), perceptual=None, init=mean)


# Goals


def test_crossover_joins_two_pictures(generator, perceptual):
    first, second = paint(generator, 11, 2), paint(generator, 12, 1)
    options = dataclasses.replace(SHORT, perceptual=0.2)
    goals = [Goal(second, half(False))]
    found = invert(generator, first, options, perceptual=perceptual, mask=half(), goals=goals)
    for side, near, far in ((slice(0, 16), first, second), (slice(16, 32), second, first)):
        ours, theirs = ((found.image - x)[..., side].square().mean() for x in (near, far))
        assert ours < theirs
    # Neither picture alone comes as close to the two halves.
    pasted = torch.where(half() > 0, first, second)
    for picture in (first, second.expand_as(first)):
        single = invert(generator, picture, options, perceptual=perceptual)
        assert (found.image - pasted).square().mean() < 0.7 * (single.image - pasted).square().mean()
    # The same goal, painted into the picture beforehand, is the same search for pixels.
    plain = dataclasses.replace(SHORT, steps=5)
    one = invert(generator, first, plain, perceptual=None, mask=half(), goals=goals).image
    two = invert(generator, pasted, dataclasses.replace(plain, l2=2.0), perceptual=None).image
    assert torch.allclose(one, two, atol=1e-4)


def test_local_style_takes_the_texture(generator, target, perceptual):
    texture = paint(generator, 21, 1)
    right = half(False)
    distances = []
    for weight in (0.0, 3.0):
        goal = [Goal(texture, right, l2=0.0, perceptual=0.0, style=weight)] if weight else []
        found = invert(generator, target, SHORT, perceptual=perceptual, mask=half(), goals=goal)
        styles = perceptual.style(found.image, texture.expand_as(found.image), right.expand(2, -1, -1, -1))
        distances.append(float(styles.mean()))
    assert distances[1] < 0.5 * distances[0]


def test_goals_are_named_in_the_record_and_checked(generator, target, perceptual):
    records: list[dict[str, float]] = []
    goals = [Goal(target, half()), Goal(target[:1], None, l2=0.0, perceptual=0.0, style=2.0)]
    options = dataclasses.replace(SHORT, steps=1, perceptual=0.5)
    invert(
        generator,
        target,
        options,
        perceptual=perceptual,
        goals=goals,
        on_step=lambda step, total, record, preview: records.append(dict(record)),
    )
    record = records[0]
    assert record["loss"] == pytest.approx(
        record["l2"]
        + 0.5 * record["perceptual"]
        + record["l2_1"]
        + record["perceptual_1"]
        + 2 * record["style_2"],
        rel=1e-5,
    )
    bad: list[tuple[Any, type[Exception], str]] = [
        (Goal(target[:, :, :16]), ShapeError, "expected"),
        (Goal(paint(generator, 1, 3)), ShapeError, "expected 1 or 2"),
        (Goal(target, l2=0.0, perceptual=0.0), OptionError, "nothing to fit"),
        (Goal(target, torch.zeros(1, 1, 32, 32)), ShapeError, "cover some"),
    ]
    for goal, error, message in bad:
        with pytest.raises(error, match=message):
            invert(generator, target, options, perceptual=perceptual, goals=[goal])
    with pytest.raises(OptionError, match="feature trunk"):
        invert(generator, target, SHORT, perceptual=None, goals=[Goal(target, style=1.0)])
    with pytest.raises(OptionError, match="takes no goals"):
        invert(generator, target, InversionOptions(method="pivotal"), perceptual=None, goals=[Goal(target)])


def test_masked_style_sees_only_the_mask(perceptual):
    a, b = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    changed = b.clone()
    changed[..., 16:] = 0.9
    assert torch.equal(perceptual.style(a, b, half()), perceptual.style(a, changed, half()))
    assert not torch.equal(perceptual.style(a, b), perceptual.style(a, changed))
    naive = losses.gram_distance([x * half() for x in (a,)], [x * half() for x in (b,)])
    only = TrunkDistance(pools, name="pools", least_px=32, style_maps=(0,))
    assert torch.allclose(only.style(a, b, half()), naive)


# Batches


@pytest.mark.parametrize("method", ["w+", "s"])
def test_a_batch_of_eight_is_eight_single_runs(generator, method, perceptual):
    """In float64, where rounding of the batch's other layout of sums does not grow into anything."""
    generator = generator.double()
    images = paint(generator.float(), 31, 8).double()
    generator.double()
    options = dataclasses.replace(
        SHORT,
        method=method,
        steps=6,
        perceptual=0.3,
        fit_noise=True,
        perturbation=0.05,
        w_norm=0.01,
        init="uniform" if method == "w+" else "mean",
        p_norm=0.01 if method == "w+" else 0.0,
        patience=1,
        tolerance=0.15,
    )
    whole = invert(generator, images, options, perceptual=perceptual)
    if method == "s":
        assert len({fit.steps for fit in whole.report}) > 1  # every picture has its own clock
    for i in range(8):
        alone = invert(generator, images[i : i + 1], options, perceptual=perceptual)
        assert whole.report[i].steps == alone.report[0].steps
        for a, b in zip(whole.latent[i].parts, alone.latent.parts, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        assert torch.allclose(whole.image[i : i + 1], alone.image, atol=1e-6)


# Presets, and what stands in


def test_every_preset_of_the_papers_is_there():
    wanted = {"image2stylegan", "image2stylegan++", "stylegan2-projector", "ii2s", "pti"}
    assert wanted <= set(PRESETS)
    assert set(PRESET_TRUNKS) == set(PRESETS) - {"fast"}
    assert set(PRESET_TRUNKS.values()) <= set(STAND_INS)
    assert {"s", "noise", "ii2s", "hybrid", "encoder"} <= set(METHODS)
    plus = preset("image2stylegan++")
    assert (plus.method, plus.steps, plus.noise_steps, plus.rampup) == ("w+", 1500, 1500, 0.0)


@pytest.mark.parametrize("name", ["image2stylegan", "image2stylegan++", "stylegan2-projector", "ii2s", "pti"])
def test_presets_run(generator, target, perceptual, name):
    options = preset(name, steps=3, mean_samples=50, noise_steps=2 if name.endswith("++") else 0)
    found = invert(
        generator, target[:1], options, perceptual=perceptual, pivotal=PivotalOptions(tune_steps=2)
    )
    assert found.report[0].psnr > 5
    assert (found.noise is None) == (name in ("ii2s", "image2stylegan"))


def test_lite0_stands_in_map_by_map():
    trunk = Lite0()
    for values in trunk.parameters():
        torch.nn.init.normal_(values, std=0.1)
    a, b = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    distance = stand_in(trunk, stands_for="vgg16", name="lite0")
    assert (distance.name, distance.stands_for) == ("lite0", "vgg16")
    wide = [F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False) for x in (a, b)]
    maps = [trunk(x) for x in wide]
    single = [
        losses.maps_distance([maps[0][i]], [maps[1][i]], weights=[losses.LITE0_WEIGHTS[i]]) for i in range(3)
    ]
    assert torch.allclose(distance(a, b), 2 * single[0] + single[1] + single[2], rtol=1e-5)


def test_image2styleganss_loss_is_that_of_the_paper(generator):
    """Four maps of VGG16, written down naively: convolution by convolution, mean squares added up."""
    trunk = Vgg16(taps=VGG16_TAPS)
    distance = Models(generator=generator, trunk=trunk, trunk_name="vgg16").make_distance()
    a, b = torch.rand(1, 3, 128, 128) * 2 - 1, torch.rand(1, 3, 128, 128) * 2 - 1
    assert trunk.channels == (64, 64, 256, 512)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = {"1_1", "1_2", "3_2", "4_2"}

    def maps(image: Tensor) -> list[Tensor]:
        x = ((image + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        convolutions = iter([layer for layer in trunk.features if isinstance(layer, torch.nn.Conv2d)])
        found = []
        for block, count in enumerate((2, 2, 3, 2), 1):
            for number in range(1, count + 1):
                layer = next(convolutions)
                x = F.conv2d(x, layer.weight, layer.bias, padding=1).clamp_min(0)
                if f"{block}_{number}" in wanted:
                    found.append(x)
            x = F.max_pool2d(x, 2)
        return found

    expected = sum((x - y).square().mean() for x, y in zip(maps(a), maps(b), strict=True))
    assert float(distance(a, b)) == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(ShapeError, match="expected equal"):
        losses.maps_squares([a], [a, b])
