"""Half precision: which devices it is chosen for, and every trainer in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import test_train_encoder as encoder_tests
import test_train_hyper as hyper_tests
import test_train_translator as translator_tests
import torch
from conftest import CHANNELS, W_DIM, make_generator
from PIL import Image
from test_train_dual import make_players, start_codes
from test_train_dual import make_training as make_dual
from test_train_translator import pairs  # noqa: F401

from limner import zoo
from limner.training import games
from limner.training.dual_transfer import StructureStage, StyleStage
from limner.training.encoder_lessons import EncoderLessons
from limner.training.gan import GanTraining, build_run
from limner.training.hyper import HyperLessons
from limner.training.options import CHANNEL_TABLES, GanOptions
from limner.training.run import Runtime, StepRandom
from limner.training.translator_lessons import TranslatorLessons

CPU = torch.device("cpu")
STEPS = 3
GANS = {
    "projected": {"frechet_weight": 50.0},
    "embedding": {"reconstruct": 0.5, "embed_kimg": 0.0},
    "stylegan2": {"discriminator": "stylegan2", "augment": "ada", "augment_p": 0.2, "pl_weight": 2.0}
    | {"d_reg_interval": 2, "g_reg_interval": 2},
}
DUALS = {"structure": {}, "style": {}, "published": {"discriminator": "stylegan2", "d_reg_interval": 1}}
KINDS = [*GANS, "encoder", "translator", "hyper", *DUALS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve numbered pictures that a tiny generator can paint."""
    where = tmp_path_factory.mktemp("pictures")
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        image = make_generator(seed=7)(torch.randn(12, W_DIM, generator=rng)).clamp(-1, 1)
    for number, one in enumerate(((image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(np.ascontiguousarray(one)).save(where / f"{number:06d}.png")
    return where


@pytest.fixture(scope="module")
def trunk():
    return zoo.load("lite0")


@pytest.fixture
def play(folder, trunk, pairs, tmp_path, monkeypatch):  # noqa: F811
    """Return a function (kind, precision) -> what takes steps, and its `step(number)`."""
    monkeypatch.setitem(CHANNEL_TABLES, "slim", dict(CHANNELS))
    monkeypatch.setattr(games, "MEASURED_FAKES", 64)

    def start(kind: str, precision: str):
        out, runtime = tmp_path / f"{kind}-{precision}", Runtime(CPU, precision)
        torch.manual_seed(0)
        out.mkdir(exist_ok=True)
        if kind in GANS:
            options = GanOptions(
                data=str(folder),
                out=str(out),
                resolution=32,
                w_dim=W_DIM,
                batch_size=4,
                feature_resolution=32,
                precision=precision,
                **GANS[kind],
            )
            return GanTraining(build_run(options, runtime, trunk=trunk)).game
        if kind in DUALS:
            dual = make_dual(folder, out, **DUALS[kind])
            dual.setting.runtime.precision = precision
            model, average, judge = make_players(dual)
            if kind == "style":
                codes = start_codes(dual.setting)
                return StyleStage(dual.setting, model, average, judge, codes=codes, key="")
            return StructureStage(dual.setting, model, average, judge, key="")
        if kind == "encoder":
            options = encoder_tests.make_options(folder, out, identity=0.1, shown_share=0.5, critic=0.1)
            run, lessons = encoder_tests.make_run(options), EncoderLessons
        elif kind == "hyper":
            run, lessons = hyper_tests.make_run(folder, out, size=0.1), HyperLessons
            hyper_tests.shake(run.encoder.core)
        else:
            options = translator_tests.make_options(out, task=("toon", "sketch"), shown_share=0.5)
            run, lessons = translator_tests.make_run(options, pairs, out), TranslatorLessons
        run.runtime = runtime
        return lessons(run)

    return start


def take(player, number: int) -> dict[str, float]:
    random = StepRandom(0, number, 0, CPU)
    own = hasattr(player, "number")  # a stage of a DualStyleGAN
    return player.step(number, random) if own else player.step(random)


def tensors(tree):
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else []:
        if torch.is_tensor(value):
            yield value
        else:
            yield from tensors(value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainer_learns_in_half_precision_as_in_single(play, kind):
    found = {}
    for precision in ("fp32", "bf16"):
        player = play(kind, precision)
        found[precision] = [take(player, number) for number in range(1, STEPS + 1)]
        kept = [value.dtype for value in tensors(player.state()) if value.is_floating_point()]
        assert kept
        assert not {torch.bfloat16, torch.float16} & set(kept), "state, statistics and codes stay whole"
    assert found["fp32"] != found["bf16"], "nothing was computed in half precision"
    for whole, half in zip(found["fp32"], found["bf16"], strict=True):
        assert whole.keys() == half.keys()
        for name, value in whole.items():
            assert math.isfinite(half[name]), name
            assert half[name] == pytest.approx(value, rel=0.2, abs=0.1), name
