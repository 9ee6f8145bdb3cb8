"""Inversion by search and pivotal tuning, on images that the tiny generator painted itself."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limner import inversion
from limner.errors import DivergedError, OptionError, ShapeError
from limner.inversion import InversionOptions, PivotalOptions, TrunkDistance, invert, preset
from limner.inversion.goals import compare
from limner.inversion.optimize import Projector, frozen, lr_ramp, normalize_noise, perturbation_ramp
from limner.inversion.options import METHODS, PRESETS
from limner.inversion.pivotal import tune
from limner.latent import Latent, render
from limner.nn import deltas
from limner.nn.stylegan2 import Generator

SHORT = InversionOptions(steps=40, perceptual=0.0, mean_samples=200, learning_rate=0.05)


@pytest.fixture
def generator(generator) -> Generator:
    """The tiny generator, its colours made faint enough to fit [-1, 1]."""
    for layer in generator.synthesis.to_rgb:
        layer.weight.mul_(0.15)
    return generator


@pytest.fixture
def target(generator) -> Tensor:
    """Two images that the generator can paint."""
    rng = torch.Generator().manual_seed(11)
    image = generator(torch.randn(2, generator.z_dim, generator=rng), psi=0.7)
    assert image.abs().max() < 1
    return image


def pools(image: Tensor) -> list[Tensor]:
    """A small honest trunk: the image at three sizes."""
    return [image, F.avg_pool2d(image, 2), F.avg_pool2d(image, 4)]


@pytest.fixture
def perceptual() -> TrunkDistance:
    return TrunkDistance(pools, name="pools", least_px=32, weights=(0.2, 0.2, 0.2))


def start_psnr(generator, target) -> Tensor:
    mean = render(generator, Latent("w", generator.w_avg[None]))
    return -10 * torch.log10((mean.clamp(-1, 1) - target).square().mean((1, 2, 3)) / 4)


# The search


@pytest.mark.parametrize(("method", "gain"), [("z", 3), ("z+", 4), ("w", 4), ("w+", 6), ("s", 6)])
def test_every_space_comes_closer(generator, target, method, gain):
    found = invert(generator, target, dataclasses.replace(SHORT, method=method), perceptual=None)
    before = start_psnr(generator, target)
    assert found.latent.space == method
    for fit, first in zip(found.report, before.tolist(), strict=True):
        assert fit.psnr > first + gain
    assert torch.allclose(
        render(generator, found.latent, found.noise_maps).clamp(-1, 1), found.image, atol=1e-5
    )
    assert found.delta is None


def test_a_batch_gives_what_its_images_give_alone(generator, target):
    options = dataclasses.replace(SHORT, steps=25, perturbation=0.05)
    both = invert(generator, target, options, perceptual=None)
    for i in range(2):
        alone = invert(generator, target[i : i + 1], options, perceptual=None)
        assert both.report[i].psnr == pytest.approx(alone.report[0].psnr, abs=0.02)
        # Adam's first steps are signs, so a gradient near zero may differ; nearly all codes agree.
        apart = (both.latent[i].tensor - alone.latent.tensor).abs()
        assert apart.quantile(0.9) < 1e-3


def test_runs_repeat_bit_for_bit(generator, target):
    options = dataclasses.replace(SHORT, steps=10, perturbation=0.05)
    first, second = (invert(generator, target, options, perceptual=None) for _ in range(2))
    assert torch.equal(first.image, second.image)
    other = invert(generator, target, dataclasses.replace(options, seed=1), perceptual=None)
    assert not torch.equal(first.image, other.image)


def test_the_generator_is_left_as_it_was(generator, target):
    generator.requires_grad_(True)
    before = deltas.digest(generator)
    invert(generator, target, dataclasses.replace(SHORT, steps=3), perceptual=None)
    assert deltas.digest(generator) == before
    assert all(weight.requires_grad and weight.grad is None for weight in generator.parameters())


def test_noise_maps_stay_normal_and_can_be_left_alone(generator, target):
    found = invert(generator, target, dataclasses.replace(SHORT, steps=8), perceptual=None)
    assert found.noise is not None
    assert [tuple(values.shape) for values in found.noise] == [
        (2, 1, n, n) for n in (4, 8, 8, 16, 16, 32, 32)
    ]
    for values in found.noise:
        assert values.mean((2, 3)).abs().max() < 1e-5
        assert torch.allclose(values.std((2, 3)), torch.ones(2, 1), atol=1e-4)
    assert not torch.equal(found.noise[0][0], found.noise[0][1])
    fixed = invert(generator, target, dataclasses.replace(SHORT, steps=8, fit_noise=False), perceptual=None)
    assert fixed.noise is None
    assert torch.allclose(render(generator, fixed.latent).clamp(-1, 1), fixed.image, atol=1e-6)


def test_a_mask_fits_only_what_it_covers(generator, target):
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    spoiled = target.clone()
    spoiled[..., 16:] = 1.0
    clean, masked = (
        invert(generator, image, SHORT, perceptual=None, mask=mask).image for image in (target, spoiled)
    )
    assert torch.equal(clean, masked)
    plain = invert(generator, spoiled, SHORT, perceptual=None).image
    near = [(image - target)[..., :16].square().mean() for image in (masked, plain)]
    assert near[0] < 0.5 * near[1]


def test_compare_weighs_by_the_mask(perceptual):
    a, b = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    b[..., :8] = 1.0
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    found = compare(a, b, l2=True, perceptual=perceptual, mask=mask)
    assert found["l2"].item() == pytest.approx(0.5)
    assert found["perceptual"] > 0
    outside = compare(a, b, l2=True, perceptual=perceptual, mask=1 - mask)
    assert outside["l2"].item() == outside["perceptual"].item() == 0


def test_the_search_goes_on_from_given_codes(generator, target):
    first = invert(generator, target, SHORT, perceptual=None)
    options = dataclasses.replace(SHORT, init="given", steps=1, rampup=1.0, fit_noise=False)
    same = invert(generator, target, options, perceptual=None, init=first.latent)
    # The step size of the first step is zero.
    assert torch.equal(same.latent.tensor, first.latent.tensor)
    wider = invert(generator, target, options, perceptual=None, init=Latent("w", generator.w_avg[None]))
    assert wider.latent.space == "w+"
    assert torch.allclose(wider.latent.tensor, generator.w_avg.expand(2, 8, -1))


def test_an_image_without_progress_ends_early_and_alone(generator, target):
    painted = render(generator, Latent("w", generator.w_avg[None])).clamp(-1, 1)
    batch = torch.cat([painted, target[:1]])
    options = dataclasses.replace(
        SHORT, init="given", patience=5, tolerance=0.0, perturbation=0.0, fit_noise=False, learning_rate=0.02
    )
    found = invert(generator, batch, options, perceptual=None, init=Latent("w", generator.w_avg[None]))
    ramp = math.ceil(options.rampdown * options.steps)
    assert found.report[0].steps <= 5 + 2 + ramp
    assert found.report[1].steps == options.steps
    assert found.report[0].psnr > 35
    patient = invert(
        generator,
        batch,
        dataclasses.replace(options, patience=0),
        perceptual=None,
        init=Latent("w", generator.w_avg[None]),
    )
    assert [fit.steps for fit in patient.report] == [options.steps] * 2


def test_w_norm_keeps_codes_near_the_mean(generator, target):
    far = []
    for weight in (0.0, 1.0):
        found = invert(generator, target, dataclasses.replace(SHORT, w_norm=weight), perceptual=None)
        far.append(float((found.latent.tensor - generator.w_avg).norm()))
    assert far[1] < 0.7 * far[0]


def test_steps_are_reported(generator, target, perceptual):
    seen = []

    def on_step(step, total, record, preview):
        seen.append((step, total, dict(record)))
        if step == 4:
            assert preview().shape == target.shape

    options = dataclasses.replace(SHORT, steps=4, perceptual=1.0, w_norm=0.1)
    found = invert(generator, target, options, perceptual=perceptual, identity=perceptual, on_step=on_step)
    assert [(step, total) for step, total, _ in seen] == [(n, 4) for n in (1, 2, 3, 4)]
    assert set(seen[0][2]) == {"loss", "l2", "perceptual", "w_norm", "noise_reg", "lr"}
    record = seen[0][2]
    assert record["loss"] == pytest.approx(
        record["l2"] + record["perceptual"] + 0.1 * record["w_norm"], rel=1e-5
    )
    fit = found.report[0]
    assert fit.trunk == "pools"
    assert (
        fit.identity == fit.perceptual == pytest.approx(float(perceptual(found.image, target)[0]), rel=1e-5)
    )
    assert fit.psnr == pytest.approx(
        float(-10 * torch.log10((found.image - target)[0].square().mean() / 4)), rel=1e-5
    )
    assert fit.seconds > 0
    assert set(fit.to_dict()) == {field.name for field in dataclasses.fields(fit)}


def test_the_trunk_distance_keeps_the_targets_features_while_it_stays_the_same():
    calls = []

    def trunk(image: Tensor) -> list[Tensor]:
        calls.append(image.shape[2])
        return [image]

    distance = TrunkDistance(trunk, name="t", least_px=64, most_px=64, weights=(1.0,))
    a, b = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    first = distance(a, b)
    assert torch.equal(distance(a, b), first)
    assert calls == [64] * 3
    b.add_(0.5)
    assert not torch.equal(distance(a, b), first)
    assert distance(a, a.clone()).item() == pytest.approx(0, abs=1e-6)
    assert distance(torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)).shape == (1,)
    assert calls[-1] == 64
    with pytest.raises(ShapeError, match="expected equal"):
        distance(a, torch.rand(1, 3, 16, 16))


# Its parts


def test_schedules():
    assert [lr_ramp(t) for t in (0.0, 0.025, 0.05, 0.5, 0.75)] == [0, 0.5, 1, 1, 1]
    assert lr_ramp(0.875) == pytest.approx(0.5)
    assert lr_ramp(1.0) == 0
    assert lr_ramp(0.0, rampup=0, rampdown=0) == lr_ramp(1.0, rampup=0, rampdown=0) == 1
    assert [perturbation_ramp(t) for t in (0.0, 0.375, 0.75, 1.0)] == [1, 0.25, 0, 0]
    assert perturbation_ramp(0.0, ramp=0) == 0


@pytest.mark.parametrize("scale", ["std", "rms"])
def test_noise_is_normalised_per_map(scale):
    maps = [3 + 2 * torch.randn(2, 1, 8, 8)]
    normalize_noise(maps, scale=scale)
    assert maps[0].mean((2, 3)).abs().max() < 1e-6
    assert torch.allclose(maps[0].var((2, 3), unbiased=scale == "std"), torch.ones(2, 1), atol=1e-5)


def test_frozen_gives_the_gradients_back(generator):
    generator.requires_grad_(True)
    generator.w_avg.requires_grad_(False)
    generator.synthesis.const.requires_grad_(False)

    def fail() -> None:
        with frozen(generator):
            assert not any(weight.requires_grad for weight in generator.parameters())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    off = [name for name, weight in generator.named_parameters() if not weight.requires_grad]
    assert off == ["synthesis.const"]


# Pivotal tuning


def test_pivotal_tuning_comes_closer_than_its_pivot(generator, target, perceptual):
    options = dataclasses.replace(SHORT, steps=20, perceptual=1.0)
    before = deltas.digest(generator)
    pivot = invert(generator, target[:1], dataclasses.replace(options, method="w"), perceptual=perceptual)
    pivotal = PivotalOptions(tune_steps=60, tune_stop=0.0, tune_learning_rate=3e-3)
    steps = []
    found = invert(
        generator,
        target[:1],
        dataclasses.replace(options, method="pivotal"),
        perceptual=perceptual,
        pivotal=pivotal,
        on_step=lambda step, total, record, preview: steps.append((step, total)),
    )
    assert found.report[0].psnr > pivot.report[0].psnr + 3
    assert found.report[0].method == "pivotal"
    assert found.report[0].steps == 80
    assert steps == [(n, 80) for n in range(1, 81)]
    assert torch.equal(found.latent.tensor, pivot.latent.tensor)
    assert deltas.digest(generator) == before
    # The change, put on the base, paints the picture.
    assert found.delta is not None
    assert not any(name.startswith(("mapping.", "w_avg")) for name in found.delta)
    person = deltas.apply(generator, [(found.delta, 1.0)])
    assert torch.allclose(render(person, found.latent, found.noise_maps).clamp(-1, 1), found.image, atol=1e-4)


def test_a_style_adds_to_a_person(generator, target):
    found = invert(
        generator,
        target[:1],
        dataclasses.replace(SHORT, method="pivotal", steps=10),
        perceptual=None,
        pivotal=PivotalOptions(tune_steps=5, tune_learning_rate=1e-3),
    )
    assert found.delta is not None
    style = {"synthesis.to_rgb.3.bias": torch.tensor([0.1, 0.0, -0.1])}
    both = deltas.apply(generator, [(found.delta, 1.0), (style, 1.0)])
    plain = deltas.apply(generator, [(found.delta, 1.0)])
    apart = render(both, found.latent) - render(plain, found.latent)
    assert torch.allclose(apart.mean((0, 2, 3)), torch.tensor([0.1, 0.0, -0.1]), atol=1e-4)


def test_tuning_stops_when_it_is_close_enough(generator, target, perceptual):
    pivot = Latent("w", generator.w_avg[None])
    painted = render(generator, pivot).clamp(-1, 1)
    done = tune(generator, painted, pivot, PivotalOptions(tune_stop=0.5), perceptual=perceptual)
    assert done.steps == 0
    assert done.delta == {}


def test_tuned_layers_follow_the_mask(generator, target):
    options = PivotalOptions(tune_steps=2, tune_layers="16px-,no-rgb")
    done = tune(generator, target[:1], Latent("w", generator.w_avg[None]), options, perceptual=None)
    assert {name.split(".")[1] + name.split(".")[2] for name in done.delta} == {
        "layers3",
        "layers4",
        "layers5",
        "layers6",
    }
    for layers, message in (("none", "is no layer"), ("all=0.5", "either tuned or not"), ("9", "names 9")):
        with pytest.raises(OptionError, match=message):
            tune(
                generator,
                target[:1],
                Latent("w", generator.w_avg[None]),
                dataclasses.replace(options, tune_layers=layers),
                perceptual=None,
            )


def test_locality_keeps_other_faces_as_they_were(generator, target, perceptual):
    rng = torch.Generator().manual_seed(4)
    others = Latent("w", generator.mapping(torch.randn(16, generator.z_dim, generator=rng)))
    before, moved = render(generator, others), []
    length = float((others.tensor - generator.w_avg).norm(dim=1).mean())
    pivot = Latent("w", generator.w_avg[None])
    for weight in (0.0, 30.0):
        options = PivotalOptions(
            tune_steps=30, tune_learning_rate=3e-3, tune_stop=0.0, locality=weight, locality_distance=length
        )
        done = tune(generator, target[:1], pivot, options, perceptual=perceptual)
        after = render(deltas.apply(generator, [(done.delta, 1.0)]), others)
        moved.append(float((after - before).square().mean()))
    assert moved[1] < 0.6 * moved[0]
    with pytest.raises(OptionError, match="pivot lies in s"):
        tune(generator, target[:1], pivot.to_space("s", generator), options, perceptual=None)


# Errors and options


def test_wrong_input_is_refused(generator, target):
    with pytest.raises(ShapeError, match=r"expected \(B, 3, 32, 32\)"):
        invert(generator, torch.zeros(1, 3, 16, 16), SHORT, perceptual=None)
    with pytest.raises(ShapeError, match=r"outside \[-1, 1\]"):
        invert(generator, target + 2, SHORT, perceptual=None)
    with pytest.raises(ShapeError, match=r"outside \[-1, 1\]"):
        invert(generator, target * math.nan, SHORT, perceptual=None)
    with pytest.raises(ShapeError, match="mask has shape"):
        invert(generator, target, SHORT, perceptual=None, mask=torch.ones(3, 1, 32, 32))
    with pytest.raises(ShapeError, match="cover some pixels"):
        invert(generator, target, SHORT, perceptual=None, mask=torch.zeros(1, 1, 32, 32))
    with pytest.raises(OptionError, match="nothing to fit"):
        invert(generator, target, dataclasses.replace(SHORT, l2=0.0), perceptual=None)
    with pytest.raises(OptionError, match="nothing to fit"):
        tune(
            generator, target, Latent("w", generator.w_avg[None]), PivotalOptions(tune_l2=0), perceptual=None
        )
    with pytest.raises(OptionError, match="no codes to start from"):
        invert(generator, target, dataclasses.replace(SHORT, init="given"), perceptual=None)
    with pytest.raises(OptionError, match="codes to start from were handed over"):
        invert(generator, target, SHORT, perceptual=None, init=Latent("w", generator.w_avg[None]))
    start = Latent("w", generator.w_avg.expand(3, -1))
    with pytest.raises(ShapeError, match="expected 1 or 2"):
        invert(generator, target, dataclasses.replace(SHORT, init="given"), perceptual=None, init=start)
    with pytest.raises(OptionError, match="expected one of z, z"):
        Projector(generator, target, dataclasses.replace(SHORT, method="pivotal"), perceptual=None)


def test_a_search_that_diverges_says_so(generator, target):
    def explode(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().sum((1, 2, 3)) * math.inf

    options = dataclasses.replace(SHORT, perceptual=1.0)
    with pytest.raises(DivergedError, match="step 1; lower learning_rate"):
        invert(generator, target, options, perceptual=explode)
    with pytest.raises(DivergedError, match="step 1; lower tune_learning_rate"):
        tune(generator, target, Latent("w", generator.w_avg[None]), PivotalOptions(), perceptual=explode)


def test_presets_are_valid_and_published():
    for name in PRESETS:
        assert isinstance(preset(name), InversionOptions)
    assert preset("rosinality", steps=10) == dataclasses.replace(preset("rosinality"), steps=10)
    assert (preset("pti").method, preset("pti").steps, preset("ii2s").steps) == ("pivotal", 450, 1300)
    with pytest.raises(OptionError, match="expected one of fast"):
        preset("slow")
    assert tuple(inversion.METHODS) == METHODS


def test_options_need_no_torch():
    code = "import sys, limner.inversion, limner.inversion.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
