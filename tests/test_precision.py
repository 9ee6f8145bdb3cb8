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
from test_encoders import make_encoder
from test_train_dual import Small, make_players, start_codes
from test_train_dual import make_training as make_dual
from test_train_translator import pairs  # noqa: F401

from limner import losses, zoo
from limner.errors import OptionError
from limner.inversion import InversionOptions, PivotalOptions, TrunkDistance, invert
from limner.inversion.encode import encode_latents
from limner.nn.precision import bf16_units, choose_precision
from limner.nn.projected import augment_lightly
from limner.training.cores import EncoderTraining
from limner.training.dual.transfer import StructureStage, StyleStage
from limner.training.encoder.lessons import EncoderLessons
from limner.training.gan import games
from limner.training.gan.options import CHANNEL_TABLES, GanOptions
from limner.training.gan.training import GanTraining, build_run
from limner.training.hyper.lessons import HyperLessons
from limner.training.run import Runtime, StepRandom, settle
from limner.training.translator.lessons import TranslatorLessons

CPU = torch.device("cpu")
STEPS = 3
GANS = {
    "projected": {"frechet_weight": 50.0},
    "embedding": {"reconstruct": 0.5, "embed_kimg": 0.0},
    "stylegan2": {"discriminator": "stylegan2", "augment": "ada", "augment_p": 0.2, "pl_weight": 2.0}
    | {"d_reg_interval": 2, "g_reg_interval": 2},
}
SLOW = {"lr": 1e-4, "lr_d": 1e-4}  # Adam's first steps are as long for noise as for gradients
DUALS = {"structure": SLOW, "style": SLOW}
DUALS["published"] = SLOW | {"discriminator": "stylegan2", "d_reg_interval": 1}
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
                lr_g=1e-4,
                lr_d=1e-4,
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


@pytest.mark.parametrize("kind", ["projected", "encoder"])
def test_a_run_in_half_precision_goes_on_exactly(folder, trunk, tmp_path, monkeypatch, kind):
    monkeypatch.setitem(CHANNEL_TABLES, "slim", dict(CHANNELS))

    def train(out: str, kimg: float):
        if kind == "encoder":
            options = encoder_tests.make_options(folder, tmp_path / out, kimg=kimg, precision="bf16")
            run = encoder_tests.make_run(options)
            run.runtime = Runtime(CPU, options.precision)
            training = EncoderTraining(run, EncoderLessons(run))
        else:
            options = GanOptions(
                data=str(folder),
                out=str(tmp_path / out),
                kimg=kimg,
                resolution=32,
                w_dim=W_DIM,
                batch_size=4,
                feature_resolution=32,
                precision="bf16",
            )
            training = GanTraining(build_run(options, Runtime(CPU, options.precision), trunk=trunk))
        training.setup()
        training.fit()
        return training.state()

    whole = train("whole", 0.012)
    train("parts", 0.004)
    parts = train("parts", 0.012)
    both = list(zip(tensors(whole), tensors(parts), strict=True))
    assert len(both) > 20
    assert all(torch.equal(a, b) for a, b in both)


def test_auto_takes_half_precision_only_where_the_processor_has_units(monkeypatch):
    found = {"avx512_bf16": True, "amx_bf16": False}
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert bf16_units(CPU) == "AVX512_BF16"
    assert choose_precision("auto", CPU) == "bf16"
    found["amx_bf16"] = True
    assert bf16_units(CPU) == "AMX-BF16"
    found.clear()
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16", "who asks for it gets it"
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    with pytest.raises(OptionError, match="'half', expected fp32, bf16 or auto"):
        choose_precision("half", CPU)
    # Versions of PyTorch without the table, with single queries and without any.
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert bf16_units(CPU) == "AVX512_BF16"
    for query in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, query)
    assert bf16_units(CPU) == ""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert bf16_units(CPU) == "", "without oneDNN nothing uses the units"


@pytest.mark.parametrize("units", [True, False])
def test_what_a_run_leaves_says_what_it_used(monkeypatch, units):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units}, raising=False)
    used = "bf16" if units else "fp32"
    assert settle(GanOptions(precision="auto"), CPU).precision == used
    runtime = Runtime(CPU, "auto")
    assert (runtime.precision, str(runtime)) == (used, f"cpu in {used}")
    with runtime.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if units else torch.float32)


def test_what_half_precision_would_spoil_is_computed_in_single(generator):
    rng = torch.Generator().manual_seed(3)
    image, other = (torch.rand(2, 3, 32, 32, generator=rng) * 2 - 1 for _ in range(2))
    z, codes = torch.randn(2, 2, W_DIM, generator=rng)
    numbers = {
        "mapping": lambda: generator.mapping(z),
        "contextual": lambda: losses.contextual_distance([image], [other]),
        "gram": lambda: losses.gram_distance([image], [other]),
        "energy": lambda: losses.energy_distance(z, codes),
        "changes": lambda: augment_lightly(image, 1.0, torch.Generator().manual_seed(1)),
    }
    for name, compute in numbers.items():
        whole = compute()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(compute(), whole), name
    close = losses.maps_distance([image.bfloat16()], [(image + 0.01).bfloat16()], weights=[1.0])
    assert close.dtype == torch.float32


def test_the_generator_is_judged_by_heads_that_have_just_learned(folder, tmp_path):
    """In one context of autocast, which keeps half copies of weights."""
    training = make_dual(folder, tmp_path / "out", lr_d=0.1, augment_p=0.0)
    judge = training.start_adversary()
    fake, real = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own, _ = judge.judge(fake, real, StepRandom(0, 1, 0, CPU), 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = judge.network.eval().judge(judge.network.features(fake))
        now = torch.stack([losses.hinge_g_loss(x) for x in logits]).mean()
    assert own.item() == pytest.approx(now.item(), abs=0.05)


@pytest.mark.parametrize("method", ["w+", "pivotal"])
def test_inversion_in_half_precision_finds_what_single_finds(generator, method):
    z = torch.randn(2, W_DIM, generator=torch.Generator().manual_seed(5))
    image = generator(z, psi=0.7).clamp(-1, 1)
    pivotal = PivotalOptions(tune_steps=10, tune_stop=0.0)

    def search(precision: str):
        options = InversionOptions(method=method, steps=30, mean_samples=200, precision=precision)
        return invert(
            generator, image, options, perceptual=TrunkDistance(Small(), name="small"), pivotal=pivotal
        )

    whole, half, again = search("fp32"), search("bf16"), search("bf16")
    assert half.latent.tensor.dtype == half.image.dtype == torch.float32
    assert torch.equal(half.latent.tensor, again.latent.tensor)
    assert torch.equal(half.image, again.image)
    assert not torch.equal(half.latent.tensor, whole.latent.tensor)
    for a, b in zip(half.report, whole.report, strict=True):
        assert a.psnr == pytest.approx(b.psnr, abs=1.0)


@pytest.mark.parametrize(
    "changes", [{}, {"head": "single", "body": "resnet34", "feedback": True, "in_channels": 6}]
)
def test_an_encoder_in_half_precision_gives_nearly_the_same_codes(generator, changes):
    encoder = make_encoder(**changes)
    image = generator(torch.randn(3, W_DIM, generator=torch.Generator().manual_seed(6))).clamp(-1, 1)
    whole, half = (
        encode_latents(generator, encoder, image, precision=precision)[-1].tensor
        for precision in ("fp32", "bf16")
    )
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    assert (half - whole).square().mean().sqrt() < 0.05 * whole.std()
