"""Evaluation of translation: ranks, floor and ceiling, inputs of every task, the section of the report."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner import checkpoints, losses, media, zoo
from limner.app import cli
from limner.checkpoints import Checkpoint
from limner.checkpoints.translator import save_translator
from limner.errors import OptionError
from limner.evaluation import EvaluationOptions, Store, evaluate_translation
from limner.evaluation.report import Checks, Picture, Table
from limner.evaluation.translation import compare, distances, make_cases, ranks
from limner.nn import deltas
from limner.nn.translator import Translator, TranslatorCore
from limner.pipeline import Models, TranslationModels
from limner.synth.looks import PALETTE
from limner.translation import TASKS
from limner.translation.classes import OURS
from limner.translation.tasks import one_hot

COUNT = 3
SIDE = 32


class Mosaic(torch.nn.Module):
    """Tells pictures by a 4 px copy."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(image, 4).flatten(1)


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Scenes 7 to 9 in all the folders, and one more photo that is not asked for."""
    rng = np.random.default_rng(2)
    for number in range(6, 7 + COUNT):
        for folder in ("photo", "frontal", "toon", "pencil"):
            pixels = media.resize_pixels(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), 64)
            media.write(tmp_path / "pairs" / folder / f"{number:06d}.png", pixels)
        (tmp_path / "pairs" / "labels").mkdir(exist_ok=True)
        cells = rng.choice([one.index for one in OURS], (8, 8))
        picture = Image.fromarray(np.kron(cells, np.ones((8, 8))).astype(np.uint8))
        picture.putpalette(PALETTE.ravel().tolist())
        picture.save(tmp_path / "pairs" / "labels" / f"{number:06d}.png")
    return tmp_path / "pairs"


@pytest.fixture
def translation(generator) -> TranslationModels:
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"width": 8, "gather": 4, "hidden": 16, "rank": 8, "inner": 4, "head_rank": 4}
    tasks = {name: task.in_channels for name, task in TASKS.items()}
    core = TranslatorCore(num_rows=8, w_dim=16, tasks=tasks, input_px=SIDE, **sizes)
    base = {"name": "tiny", "digest": deltas.digest(generator)}
    network = Translator(trunk=zoo.load("lite0"), core=core, base=base).eval().requires_grad_(False)
    return TranslationModels(generator=generator, network=network, name="tiny")


@pytest.fixture
def models(generator) -> Models:
    models = Models(generator=generator, trunk=zoo.load("lite0"), base="tiny")
    models.__dict__["embedder"] = Mosaic()  # where `cached_property` keeps it
    return models


def options(pairs: Path, **changes: Any) -> EvaluationOptions:
    return EvaluationOptions(pairs=pairs, held_out_pairs="7-9", **changes)


def test_ranks_count_who_is_nearer():
    far = torch.tensor([[0.5, 0.1, 0.2], [0.3, 0.3, 0.4], [0.9, 0.8, 0.7]])
    assert ranks(far).tolist() == [3, 1, 1]


def test_distances_are_those_of_every_pair(models):
    torch.manual_seed(0)
    a, b = torch.rand(3, 3, 128, 128) * 2 - 1, torch.rand(2, 3, 128, 128) * 2 - 1
    found = distances(a, b, models.make_distance())
    trunk = models.trunk
    for i in range(3):
        for j in range(2):
            wanted = losses.maps_distance(list(trunk(a[i : i + 1])), list(trunk(b[j : j + 1])))
            torch.testing.assert_close(found[i, j], wanted[0])


def test_true_faces_are_perfect_strangers_are_not(models):
    torch.manual_seed(0)
    truth = torch.nn.functional.interpolate(
        torch.rand(4, 3, 4, 4) * 2 - 1, (SIDE, SIDE), mode="bicubic"
    ).clamp(-1, 1)
    same = compare(truth, truth, models)
    assert same["nearest_truth"] == same["recognised"] == same["mean_rank"] == 1
    assert same["perceptual"] == pytest.approx(0, abs=1e-5)
    other = compare(truth.roll(1, 0), truth, models)
    assert other["nearest_truth"] == 0
    assert other["mean_rank"] >= 2
    mean = compare(truth.mean(0, keepdim=True).expand_as(truth), truth, models)
    assert mean["nearest_truth"] == 0.25
    assert mean["mean_rank"] == 2.5  # chance


def test_inputs_come_from_their_folders(pairs, translation):
    names = [f"{number:06d}.png" for number in (7, 8, 9)]
    cases = {case.name: case for case in make_cases(pairs, names, translation, 0)}
    assert list(cases) == ["sketch", "sketch, from pencil drawings", *list(TASKS)[1:]]
    first = media.read(pairs / "toon" / "000007.png").pixels
    assert (
        np.abs(media.to_pixels(cases["toon"].x)[0].astype(int) - media.resize_pixels(first, SIDE)).max() <= 2
    )
    labels = np.asarray(Image.open(pairs / "labels" / "000008.png"))[::2, ::2]
    assert torch.equal(cases["labels"].x[1:2], one_hot(torch.from_numpy(labels.astype(np.int64))[None]))
    assert cases["frontal"].truth == "frontal"
    assert {case.truth for name, case in cases.items() if name != "frontal"} == {"photo"}
    for case in cases.values():
        assert case.x.shape == (COUNT, case.task.in_channels, SIDE, SIDE)
        assert case.shown.shape == (COUNT, 3, SIDE, SIDE)


def test_the_section_holds_every_task_floor_and_chance(pairs, translation, models, tmp_path):
    store = Store(tmp_path / "parts")
    section = evaluate_translation(models, translation, options(pairs), store)
    table = next(block for block in section.blocks if isinstance(block, Table))
    kinds = [row.kind for row in table.rows]
    assert kinds.count("result") == len(TASKS) + 1
    assert kinds.count("ceiling") == 2  # photo and frontal
    checks = next(block for block in section.blocks if isinstance(block, Checks))
    assert len(checks.items) == len(TASKS) + 1
    # A translator that was never trained paints the mean face whatever it sees: chance.
    rows = {row.name: row.values for row in table.rows}
    for name in ("sketch", "labels"):
        assert rows[name]["mean_rank"] == pytest.approx(rows["the mean face (photo)"]["mean_rank"])
        assert not {claim.split(":")[0]: holds for claim, holds, _ in checks.items}[name]
    pictures = [block for block in section.blocks if isinstance(block, Picture)]
    assert [one.name for one in pictures][:2] == ["translation-sketch", "translation-sketch-pencil-drawings"]
    json.dumps(section.data)
    made = store.made
    evaluate_translation(models, translation, options(pairs), store)
    assert store.made == made


def test_missing_folders_and_scenes_are_named(pairs, translation, models):
    (pairs / "toon" / "000008.png").unlink()
    with pytest.raises(OptionError, match=r"toon lacks 1 of the scenes, such as 000008"):
        evaluate_translation(models, translation, options(pairs), Store(None))
    for file in (pairs / "frontal").iterdir():
        file.unlink()
    (pairs / "frontal").rmdir()
    with pytest.raises(OptionError, match="has no folder frontal"):
        evaluate_translation(models, translation, options(pairs), Store(None))


def test_command_writes_the_section(pairs, translation, generator, tmp_path):
    assert isinstance(translation.network, Translator)
    save_translator(translation.network, tmp_path / "tiny.safetensors", provenance={})
    checkpoints.save(Checkpoint(generator=generator), tmp_path / "generator.safetensors")
    words = ["--translator", tmp_path / "tiny.safetensors", "--model", tmp_path / "generator.safetensors"]
    words += [
        "--pairs",
        pairs,
        "--held-out-pairs",
        "7-8",
        "-o",
        tmp_path / "report",
        "--json",
        "--device",
        "cpu",
    ]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["eval", "translate", *map(str, words)])
    assert status == 0, err.getvalue()
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["sections"]["translation"]["scenes"] == 2
    assert "own face nearest" in (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "translation-inpaint.jpg").exists()
