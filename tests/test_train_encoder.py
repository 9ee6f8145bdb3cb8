"""Training of the compact encoder: lessons, losses, resume, figures, command."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import W_DIM, make_generator
from PIL import Image

from limner.app.cli import main
from limner.errors import KeyMismatchError, OptionError
from limner.nn import deltas
from limner.nn.features import Lite0
from limner.nn.stylegan2 import Generator
from limner.options import from_mapping, read_recipe
from limner.training.cores import EncoderTraining
from limner.training.encoder.figures import EncoderExam
from limner.training.encoder.lessons import EncoderLessons, build_run, jitter_colours
from limner.training.encoder.options import EncoderOptions
from limner.training.optimizers import Ranger, make_optimizer
from limner.training.run import Runtime, StepRandom, save_state
from limner.training.style_metric import StyleMetric

TINY = {"width": 8, "hidden": 16, "rank": 4, "batch_size": 4, "warmup_kimg": 0.0, "codes_kimg": 0.0}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve numbered pictures that a tiny generator can nearly paint: its own."""
    where = tmp_path_factory.mktemp("pictures")
    generator = make_generator(seed=7)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        image = generator(torch.randn(12, W_DIM, generator=rng)).clamp(-1, 1)
    for number, one in enumerate(image):
        pixels = ((one.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(where / f"{number:06d}.png")
    return where


def make_options(folder, tmp_path, **changes) -> EncoderOptions:
    values = {"data": str(folder), "out": str(tmp_path / "run"), "refine_kimg": 0.0} | TINY | changes
    return EncoderOptions(**values)


def embed(image: torch.Tensor) -> torch.Tensor:
    """Return an "identity" of 12 numbers: the colours of the four quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(1)


def make_run(options: EncoderOptions, *, seed: int = 0):
    generator = make_generator(seed)
    torch.manual_seed(5)
    trunk = Lite0().eval()
    base = {"name": "tiny", "digest": deltas.digest(generator)}
    return build_run(options, Runtime(CPU), generator=generator, trunk=trunk, base=base, embedder=embed)


def make_training(options: EncoderOptions, *, seed: int = 0, **kwargs) -> EncoderTraining:
    run = make_run(options, seed=seed)
    return EncoderTraining(run, EncoderLessons(run), **kwargs)


def train(options: EncoderOptions, **kwargs) -> EncoderTraining:
    training = make_training(options, **kwargs)
    training.setup()
    training.fit()
    return training


def flatten(state, prefix="") -> dict:
    """Return every tensor and number of a nested state by its path."""
    if isinstance(state, dict):
        parts = [flatten(value, f"{prefix}/{key}") for key, value in state.items()]
    elif isinstance(state, (list, tuple)):
        parts = [flatten(value, f"{prefix}/{n}") for n, value in enumerate(state)]
    else:
        return {prefix: state}
    return {name: value for part in parts for name, value in part.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw"},
        {"optimizer": "ranger", "critic": 0.1, "progressive_kimg": 0.004},
        {"optimizer": "adam", "codes_kimg": 0.008, "decay_kimg": 0.01},
    ],
    ids=["adamw", "ranger-critic-progressive", "adam-codes-decay"],
)
def test_resume_gives_the_same_bits(folder, tmp_path, changes):
    options = make_options(folder, tmp_path, kimg=0.016, **changes)
    straight = train(dataclasses.replace(options, out=str(tmp_path / "straight")))
    # Of four steps, two are saved, a third is lost with the process; then the same command goes on.
    killed = make_training(options)
    killed.setup()

    def kill(record):
        if killed.run.step == 2:
            save_state(killed.out / "state.pt", killed.state())
        if killed.run.step == 3:
            raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        killed.fit(kill)
    second = make_training(options)
    second.setup()
    assert second.run.step == 2
    assert second.fit()
    assert second.run.step == straight.run.step == 4
    a, b = flatten(straight.state()), flatten(second.state())
    assert a.keys() == b.keys()
    assert len(a) > 100
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


def test_one_batch_can_be_learned(folder, tmp_path):
    """The same batch again and again: the pictures come near."""
    options = make_options(folder, tmp_path, lr=0.01, jitter=0.0, real_share=1.0, refinements=1)
    lessons = EncoderLessons(make_run(options))
    records = [lessons.step(StepRandom(9, 1, 0, CPU)) for _ in range(8)]
    assert records[-1]["l2_1"] < 0.8 * records[0]["l2_1"]
    assert records[-1]["perceptual_1"] < records[0]["perceptual_1"]


def test_known_codes_can_be_learned(folder, tmp_path):
    options = make_options(folder, tmp_path, lr=0.01, codes_kimg=1.0, refinements=1, mixing=0.0)
    lessons = EncoderLessons(make_run(options))
    records = [lessons.step(StepRandom(9, 1, 0, CPU)) for _ in range(20)]
    assert records[-1]["codes_1"] < 0.5 * records[0]["codes_1"]


def test_codes_alone_need_no_pictures(folder, tmp_path):
    run = make_run(make_options(folder, tmp_path, codes_kimg=1.0))
    batch = EncoderLessons(run).make_batch(StepRandom(0, 1, 0, CPU))
    assert (batch.real, batch.shown, len(batch.w_plus), len(batch.image)) == (0, 0, 4, 4)
    record = EncoderLessons(run).step(StepRandom(0, 1, 0, CPU))
    assert set(record) == {"codes_1", "codes_2"}


def test_batch_has_its_shares(folder, tmp_path):
    run = make_run(make_options(folder, tmp_path, batch_size=8, real_share=0.5, shown_share=0.25))
    batch = EncoderLessons(run).make_batch(StepRandom(0, 1, 0, CPU))
    assert (batch.real, batch.shown, len(batch.w_plus)) == (4, 5, 4)
    # What is generated lies between psi_min and 1 of its w, and is what the codes paint up to the noise.
    painted = run.generator.synthesis(batch.w_plus).clamp(-1, 1)
    assert (painted - batch.image[4:]).abs().mean() < 0.5 * (painted - batch.image[4:].flip(0)).abs().mean()


def test_base_and_trunk_stay_as_they_are(folder, tmp_path):
    run = make_run(make_options(folder, tmp_path))
    before = deltas.digest(run.generator), deltas.digest(run.encoder.trunk)
    EncoderLessons(run).step(StepRandom(0, 1, 0, CPU))
    assert before == (deltas.digest(run.generator), deltas.digest(run.encoder.trunk))
    assert all(p.grad is None for p in [*run.generator.parameters(), *run.encoder.trunk.parameters()])


def test_progressive_rows(folder, tmp_path):
    run = make_run(make_options(folder, tmp_path, progressive_kimg=1.0, codes_kimg=2.0))
    found = []
    for kimg in (0, 2, 3.5, 100):
        run.images = round(1000 * kimg)
        found.append(run.free_rows())
    assert found == [0, 0, 1, 8]
    assert make_run(make_options(folder, tmp_path)).free_rows() is None


def test_style_metric_against_plain_loops(generator):
    """One is the spread of faces about their mean, and each weight is what it says."""
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(500, W_DIM, generator=rng)
    metric = StyleMetric(generator, z, rng=rng)
    w_plus = generator.broadcast(generator.mapping(z))
    mean = [x.mean(0, keepdim=True) for x in generator.synthesis.styles(w_plus)]
    total = 0.0
    for x, m, weight in zip(generator.synthesis.styles(w_plus), mean, metric.weights, strict=True):
        total += float(((x - m).square() * weight).sum(1).mean())
    assert total == pytest.approx(1.0, rel=0.01)
    a, b = w_plus[:3], w_plus[3:6]
    by_hand = [
        sum(
            float(weight[c]) * float(x[i, c] - y[i, c]) ** 2
            for x, y, weight in zip(
                generator.synthesis.styles(a), generator.synthesis.styles(b), metric.weights, strict=True
            )
            for c in range(len(weight))
        )
        for i in range(3)
    ]
    assert metric(a, b).tolist() == pytest.approx(by_hand, rel=1e-4)
    assert all((weight >= 0).all() for weight in metric.weights)


def test_jitter_keeps_the_range_and_repeats():
    image = torch.rand(6, 3, 8, 8) * 2 - 1
    out = [jitter_colours(image, 1.0, torch.Generator().manual_seed(2)) for _ in range(2)]
    assert torch.equal(*out)
    assert out[0].abs().max() <= 1
    assert not torch.equal(out[0], image)
    assert torch.equal(jitter_colours(image, 0.0, torch.Generator()), image)


def test_ranger_is_radam_with_lookahead():
    """Against plain RAdam, its weights pulled back by hand every third step."""
    target = torch.tensor([1.0, -2.0, 3.0])
    one, two = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    ranger, plain = Ranger([one], lr=0.1, every=3), torch.optim.RAdam([two], 0.1, (0.95, 0.999), 1e-5)
    slow = two.detach().clone()
    for step in range(1, 10):
        for parameter, optimizer in ((one, ranger), (two, plain)):
            optimizer.zero_grad()
            (parameter - target).square().sum().backward()
            optimizer.step()
        if step % 3 == 0:
            slow = slow + 0.5 * (two.detach() - slow)
            two.data.copy_(slow)
        assert torch.allclose(one, two), step
    assert (one - target).norm() < target.norm()


def test_optimizer_names():
    parameter = torch.nn.Parameter(torch.zeros(2))
    decay = make_optimizer("adamw", [parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.3)
    assert decay.param_groups[0]["weight_decay"] == 0.3
    with pytest.raises(OptionError, match="expected one of adam"):
        make_optimizer("sgd", [parameter], lr=0.1, betas=(0.9, 0.99))


def test_exam_lies_between_floor_and_ceiling(folder, tmp_path):
    """A search beats the mean face; a perfect encoder would reach its own picture; the sheet is there."""
    run = make_run(make_options(folder, tmp_path))
    generator: Generator = run.generator
    assert run.pictures is not None
    image = torch.cat([run.pictures.pixels[:2].float() / 127.5 - 1, torch.zeros(1, 3, 32, 32)])

    def distance(a, b):
        return (a - b).abs().mean((1, 2, 3))

    about = {"renders": 2, "perceptual": distance, "identity": distance, "steps": 2, "ceiling_steps": 20}
    exam = EncoderExam(generator, image, ["a", "b", "photo"], keep=tmp_path / "ceiling.npy", **about)
    figures = exam.measure(run.average, tmp_path / "sheet.png")
    assert figures["psnr_floor"] < figures["psnr_ceiling"]
    assert figures["perceptual_ceiling"] < figures["perceptual_floor"]
    # Fresh, an encoder stands still at the mean.
    assert figures["psnr"] == pytest.approx(figures["psnr_floor"], abs=1e-4)
    assert {"psnr", "photo_psnr", "identity", "photo_identity_ceiling", "ssim"} <= set(figures)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * 128
        assert sheet.height > 5 * 128
    again = EncoderExam(generator, image, ["a", "b", "photo"], keep=tmp_path / "ceiling.npy", **about)
    assert again.limits == exam.limits


def test_state_of_another_run_is_refused(folder, tmp_path):
    options = make_options(folder, tmp_path, kimg=0.004)
    train(options)
    with pytest.raises(KeyMismatchError, match=r"options in .*options\.json"):
        make_training(dataclasses.replace(options, width=16)).setup()
    with pytest.raises(KeyMismatchError, match="another generator"):
        make_training(options, seed=3).setup()


def test_options_that_contradict_are_refused(folder, tmp_path):
    with pytest.raises(OptionError, match="real_share set to 0"):
        make_run(make_options(folder, tmp_path, data=""))
    run = make_run(make_options(folder, tmp_path, data="", real_share=0.0))
    assert EncoderLessons(run).step(StepRandom(0, 1, 0, CPU))["l2_1"] > 0


def test_log_and_figures(folder, tmp_path):
    options = make_options(folder, tmp_path, kimg=0.016, figure_kimg=0.008)
    sheets = []

    def examine(run, sheet):
        sheets.append(sheet.name)
        return {"psnr": 10.0 + run.kimg}

    training = train(options, examine=examine)
    training.validate()
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["kimg"] for record in records if "psnr" in record] == [0.008, 0.016, 0.016]
    assert sheets == ["000000.png", "000000.png", "000000.png"]
    assert records[0]["img_per_s"] > 0
    assert "perceptual_2" in records[0]
    assert "identity" in records[0]


def test_recipe_loads():
    recipe = read_recipe("recipes/encoder-128.yaml")
    options = from_mapping(EncoderOptions, recipe)
    assert options.base == "heads"
    assert options.kimg > 0


def test_command_trains_resumes_and_exports(folder, tmp_path, capsys):
    from limner import checkpoints, zoo
    from limner.checkpoints.compact import load_encoder

    generator = make_generator()
    checkpoints.save(checkpoints.Checkpoint(generator=generator), tmp_path / "base.safetensors")
    out = tmp_path / "run"
    words = ["train", "encoder", "--base", tmp_path / "base.safetensors", "--data", folder, "--select", "0-7"]
    words += ["--validate", "8-11", "--out", out, "--batch-size", "4", "--codes-kimg", "0", "--width", "8"]
    words += ["--hidden", "16", "--rank", "4", "--ceiling-steps", "2", "--threads", "1"]
    for kimg in ("0.004", "0.008"):
        assert main([str(word) for word in [*words, "--kimg", kimg]]) == 0
    printed = capsys.readouterr().out
    assert "starting anew" in printed
    assert "resuming at 0.0 kimg" in printed
    encoder = load_encoder(out / "model.safetensors", trunk=zoo.load("lite0"))
    assert encoder.base == {"name": "base", "digest": deltas.digest(generator)}
    codes = encoder.encode(generator, torch.zeros(1, 3, 32, 32))[-1]
    assert codes.shape == (1, 8, W_DIM)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"psnr", "psnr_floor", "psnr_ceiling", "identity", "identity_floor"} <= set(records[-1])
    assert len(list((out / "sheets").glob("*.png"))) == 1


def test_pictures_for_figures_are_looked_for_before_training(folder, tmp_path, capsys):
    words = ["train", "encoder", "--data", str(folder), "--out", str(tmp_path / "run"), "--threads", "1"]
    for more, message in (
        (["--validate", "900-909"], "is selected by 900-909"),
        (["--photos", str(tmp_path / "no")], "expected a folder"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_another_encoder(folder, tmp_path):
    """Weights and scales are taken over, mean and spread of w are the new generator's; another size is refused."""
    options = make_options(folder, tmp_path)
    old = make_run(options, seed=3).encoder.core
    with torch.no_grad():
        for number, parameter in enumerate(old.parameters()):
            parameter.fill_(0.001 * number)
    generator = make_generator(1)
    torch.manual_seed(5)
    parts = {"generator": generator, "trunk": Lite0().eval(), "base": {}}
    run = build_run(options, Runtime(CPU), **parts, init=old)
    for mine, other in zip(run.encoder.core.parameters(), old.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(run.encoder.core.get_buffer("mean0"), old.get_buffer("mean0"))
    assert torch.equal(run.encoder.core.w_avg, generator.w_avg)
    assert not torch.equal(run.encoder.core.w_avg, old.w_avg)
    with pytest.raises(KeyMismatchError, match="width 8, here 16"):
        build_run(make_options(folder, tmp_path, width=16), Runtime(CPU), **parts, init=old)
