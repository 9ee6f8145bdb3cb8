"""The search against the original projectors: schedule, noise, losses and codes of the first steps.

Fixtures come from the folder named by LIMNER_PARITY_DIR; any seeds, sizes and numbers of steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import foreign
from parity.recipe import FOLDER, Fixture, difference, find_fixtures
from torch import Tensor

from limner import checkpoints, losses
from limner.inversion.optimize import (
    Projector,
    frozen,
    lr_ramp,
    normalize_noise,
)
from limner.inversion.options import InversionOptions, preset
from limner.inversion.statistics import statistics_from_w
from limner.latent import Latent
from limner.latent.spaces import spread
from limner.nn.stylegan2 import Generator

TOLERANCE = 1e-4  # of an output's standard deviation; the fixtures' README allows 1e-3
LOSS_TOLERANCE = 1e-3  # relative, after Adam steps; the README allows 2e-3
# Adam's first steps are signs, and a Leaky ReLU whose input is all but zero falls to either side by rounding (at w = 0
# ours in float32 and float64 differ by 3e-4 for one such unit): nearly all numbers of a code agree, not every one.
CODE_SHARE, CODE_TOLERANCE = 0.99, 0.03


def params(pattern: str) -> list[Any]:
    """Return the fixtures of a kind, or one that is skipped with the reason."""
    found = [pytest.param(path, id=path.stem) for path in find_fixtures("inversion", pattern)]
    reason = f"no inversion fixtures in {FOLDER}; name their folder in LIMNER_PARITY_DIR"
    return found or [pytest.param(Path(), id="none", marks=pytest.mark.skip(reason=reason))]


_generators: dict[str, Generator] = {}


def load_generator(fixture: Fixture, folder: Path) -> Generator:
    """Write the fixture's checkpoint in its own layout and read it; the projectors share one."""
    digest = fixture.text["weights_sha256"]
    if digest not in _generators:
        _generators[digest] = _load_generator(fixture, folder)
    return _generators[digest]


def _load_generator(fixture: Fixture, folder: Path) -> Generator:
    weights = fixture.weights()
    path = folder / "model.pt"
    if "G_ema" not in weights:
        torch.save(foreign.tensors(weights), path)
    else:
        path = path.with_suffix(".pkl")
        options = fixture.text["G_init_kwargs"]
        foreign.write_nvlabs(path, {"G_ema": (foreign.tensors(weights["G_ema"]), options)})
    generator = checkpoints.load(path, parts=("generator",)).generator
    assert isinstance(generator, Generator)
    return generator.requires_grad_(False)


def tensor_inputs(fixture: Fixture) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in fixture.inputs().items()}


def assert_same_codes(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.quantile(np.abs(found - expected) / expected.std(), CODE_SHARE) < CODE_TOLERANCE


def assert_close(found: list[float], expected: list[float]) -> None:
    assert found == pytest.approx(expected, rel=LOSS_TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize("path", params("projector_parts*.json"))
def test_schedule_and_noise(path):
    fixture = Fixture(path)
    schedule = fixture.text["learning_rate"]
    for t, rate in zip(schedule["t"], schedule["lr"], strict=True):
        ours = schedule["initial"] * lr_ramp(t, rampup=schedule["rampup"], rampdown=schedule["rampdown"])
        assert ours == pytest.approx(rate, rel=1e-6, abs=1e-12)
    expected = fixture.expected()
    names = list(fixture.inputs())
    maps = [torch.from_numpy(values) + 0.05 for values in fixture.inputs().values()]
    penalties = [losses.noise_regularizer([values]) for values in maps]
    penalties.append(losses.noise_regularizer(maps))
    assert difference("noise_regularize", torch.stack(penalties).numpy(), expected) < TOLERANCE
    normalize_noise(maps)
    for name, values in zip(names, maps, strict=True):
        assert difference(name.replace("noise_", "noise_normalized_"), values.numpy(), expected) < TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("path", params("projector_mse_*.json"))
def test_rosinality_projector(path, tmp_path):
    fixture = Fixture(path)
    text, inputs, expected = fixture.text, tensor_inputs(fixture), fixture.expected()
    generator = load_generator(fixture, tmp_path)
    method = "w+" if text["w_plus"] else "w"
    options = preset(
        "rosinality",
        method=method,
        steps=text["steps_total"],
        l2=1.0,
        perceptual=0.0,
        perturbation=text["noise"],
        perturbation_ramp=text["noise_ramp"],
        noise_reg=text["noise_regularize"],
    )
    z = inputs["z_samples"]
    w = generator.mapping(z)
    statistics = spread(w)
    assert difference("latent_mean", statistics.mean.numpy(), expected) < TOLERANCE
    assert statistics.radius == pytest.approx(float(expected["latent_std"][0]), rel=1e-5)
    search = Projector(
        generator,
        inputs["target"],
        options,
        perceptual=None,
        statistics=statistics_from_w(generator, method, statistics, w=w, z=z),
        noise=[inputs[f"noise_{i}"] for i in range(len(generator.synthesis.layers))],
    )
    records = [search.step([inputs[f"perturb_{k}"]]) for k in range(text["steps_run"])]
    assert_close([record["lr"] for record in records], text["lr"])
    assert_close([record["l2"] for record in records], text["mse"])
    assert_close([record["noise_reg"] for record in records], text["noise_reg"])
    assert_same_codes(search.latent().tensor.numpy(), expected["final_latent"])
    noise = search.noise()
    assert noise is not None
    assert difference("final_noise_4", noise[4].numpy(), expected) < TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("path", params("image2stylegan_mse_*.json"))
@pytest.mark.parametrize("start", ["zero", "avg"])
def test_image2stylegan(path, start, tmp_path):
    fixture = Fixture(path)
    generator = load_generator(fixture, tmp_path)
    average = Latent("w", generator.w_avg[None]) if start == "avg" else None
    options = preset(
        "image2stylegan", init="zeros" if average is None else "given", perceptual=0.0, mean_samples=2
    )
    with frozen(generator):
        search = Projector(
            generator, tensor_inputs(fixture)["target"], options, perceptual=None, init=average
        )
        found = [search.step()["loss"] for _ in fixture.text[f"{start}_losses"]]
    assert_close(found, fixture.text[f"{start}_losses"])
    assert_same_codes(search.latent().tensor.numpy(), fixture.expected()[f"{start}.final_latent"])


@pytest.mark.parity
@pytest.mark.parametrize("path", params("nvlabs_projector_mse_*.json"))
def test_nvlabs_projector(path, tmp_path):
    fixture = Fixture(path)
    text, inputs, expected = fixture.text, tensor_inputs(fixture), fixture.expected()
    generator = load_generator(fixture, tmp_path)
    options = InversionOptions(
        method="w",
        steps=text["num_steps"],
        learning_rate=text["initial_learning_rate"],
        rampup=text["lr_rampup_length"],
        rampdown=text["lr_rampdown_length"],
        perturbation=text["initial_noise_factor"],
        perturbation_ramp=text["noise_ramp_length"],
        noise_reg=text["regularize_noise_weight"],
        l2=0.0,
        patience=0,
    )
    z = torch.from_numpy(np.random.RandomState(123).randn(text["w_avg_samples"], generator.z_dim)).float()
    w = generator.mapping(z)
    search = Projector(
        generator,
        inputs["target"][None],
        options,
        # The original compares pixels from 0 to 255, divided by 255, summed.
        perceptual=lambda a, b: ((a - b) / 2).square().sum((1, 2, 3)),
        statistics=statistics_from_w(generator, "w", spread(w), w=w, z=z),
        noise=[inputs[f"buf_{i}"][None, None] for i in range(len(generator.synthesis.layers))],
        noise_scale="rms",
    )
    found, codes = [], []
    for k in range(text["num_steps"]):
        found.append(search.step([inputs[f"perturb_{k}"][0]])["perceptual"])
        codes.append(search.latent().tensor[0].numpy())
    assert_close(found, text["dist"])
    assert_same_codes(np.stack(codes), expected["w_by_step"])
