"""Checkpoints of pSp, e4e, ReStyle and ArcFace against the codes and images of the original code."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import foreign
from parity.recipe import FOLDER, Fixture, difference, find_fixtures, is_stored
from torch import Tensor

from limner import checkpoints
from limner.checkpoints.psp import load_arcface
from limner.nn.encoders import Encoder, codes_to_w_plus, decode, mix_rows, refine
from limner.nn.irse import face_pool
from limner.nn.stylegan2 import Generator

TOLERANCE = 1e-4  # of an output's standard deviation; the fixtures' README allows 1e-3
LATE_TOLERANCE = 5e-4  # after five passes with random weights, each of which enlarges rounding errors
LATE = ("latents_by_iteration", "image.iter5")
SMALL = "into_w_256"  # the others hold half a gigabyte and more of weights


def params(group: str) -> list[Any]:
    """Return a group's fixtures; the large ones are marked slow."""
    found = []
    for path in find_fixtures(group):
        slow = group == "encoders" and SMALL not in path.stem
        found.append(pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if slow else []))
    missing = pytest.mark.skip(
        reason=f"no {group} fixtures in {FOLDER}; name their folder in LIMNER_PARITY_DIR"
    )
    return found or [pytest.param(Path(), id="none", marks=missing)]


def finish(fixture: Fixture, outputs: dict[str, Tensor], spread: dict[str, float] | None = None) -> None:
    """Fail if an output is off, or if one that the fixture has was not computed."""
    expected = fixture.expected()
    worst = {
        name: difference(name, value.numpy(), expected, (spread or {}).get(name))
        for name, value in outputs.items()
        if is_stored(name, expected)
    }
    print(fixture.path.stem, {name: f"{value:.1e}" for name, value in worst.items()})
    forms = (".box64", ".rows", ".cmean", ".cabs", ".grid")
    stored, checked = (
        {functools.reduce(str.removesuffix, forms, name) for name in names} for names in (expected, worst)
    )
    assert stored == checked
    allowed = {name: LATE_TOLERANCE if name in LATE else TOLERANCE for name in worst}
    assert {name: value for name, value in worst.items() if not value < allowed[name]} == {}


def one_pass(fixture: Fixture, encoder: Encoder, generator: Generator) -> dict[str, Tensor]:
    """Return what pSp's and e4e's fixtures hold."""
    inputs = {name: torch.from_numpy(value) for name, value in fixture.inputs().items()}
    image, expected = inputs["image"], fixture.expected()
    raw, codes = encoder.predict(image), encoder(image)
    w_plus = codes_to_w_plus(generator, encoder, codes)
    if raw.ndim == 2 and expected["encoder"].ndim == 3:  # e4e repeats its single code
        raw = raw[:, None].expand(-1, encoder.rows, -1)
    full = decode(encoder, generator, codes)
    outputs = {"encoder": raw, "latent": w_plus, "image.full": full, "image.resized": face_pool(full)}
    stages = {"WTraining": 0} | {f"Delta{row}Training": row for row in range(1, encoder.rows)}
    for name, stage in stages.items():
        if f"stage.{name}" in expected:
            outputs[f"stage.{name}"] = encoder.predict(image, stage=stage)
    if "inject" in inputs:
        rows, alpha = fixture.text["latent_mask"], fixture.text["mix_alpha"]
        mixed = mix_rows(w_plus, rows, inputs["inject"], alpha=alpha)
        outputs["mix.image"] = face_pool(generator.synthesis(mixed))
        outputs["mask_zero.image"] = face_pool(generator.synthesis(mix_rows(w_plus, rows)))
    return outputs


def many_passes(fixture: Fixture, encoder: Encoder, generator: Generator) -> dict[str, Tensor]:
    """Return what ReStyle's fixtures hold."""
    image = torch.from_numpy(fixture.inputs()["image"])
    assert encoder.iterations == fixture.text["config"]["n_iters_per_batch"]
    passes = refine(encoder, generator, image)
    average = decode(encoder, generator, encoder.average_codes(1), side=encoder.in_size)
    outputs = {"avg_image": average, "latents_by_iteration": torch.cat(passes)}
    for step in (1, len(passes)):
        outputs[f"image.iter{step}"] = decode(encoder, generator, passes[step - 1])
    return outputs


@pytest.mark.parametrize("path", params("encoders"))
def test_encoders(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    file = tmp_path / "model.pt"
    torch.save(foreign.tensors(fixture.weights()), file)
    checkpoint = checkpoints.load(file)
    encoder, generator = checkpoint.encoder, checkpoint.generator
    assert checkpoint.format == "psp"
    assert isinstance(encoder, Encoder)
    assert generator is not None
    assert encoder.family in path.stem
    with torch.no_grad():
        run = many_passes if encoder.feedback else one_pass
        finish(fixture, run(fixture, encoder, generator))


@pytest.mark.parametrize("path", params("arcface"))
def test_arcface(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    inputs = {name: torch.from_numpy(value) for name, value in fixture.inputs().items()}
    torch.save(foreign.tensors(fixture.weights()), tmp_path / "model_ir_se50.pth")
    network = load_arcface(tmp_path / "model_ir_se50.pth")
    with torch.no_grad():
        face = network.crop(inputs["images256"])
        features = network(inputs["images256"])
        finish(
            fixture,
            {
                "crop_pool_112.grid": face[:, :, ::7, ::7],  # from pixel 0, unlike other grids
                "features256": features,
                "features112": network.embed_crop(inputs["images112"]),
                "body": network.body(face)[-1],
                "unnormalised256": network.unnormalised(face),
                "id_loss_of_the_pair": 1 - (features[0] * features[1]).sum().reshape(1),
            },
            {"id_loss_of_the_pair": 1.0},
        )
