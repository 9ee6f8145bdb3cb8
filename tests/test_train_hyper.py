"""The small HyperInverter: changes that are solved for, lessons, resume, files, the command."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import W_DIM, make_generator
from PIL import Image
from safetensors.torch import save_file

from limner import media
from limner.app import cli
from limner.checkpoints import Checkpoint, save
from limner.checkpoints.compact import save_encoder
from limner.checkpoints.compact_hyper import load_hyper, read_first, save_hyper
from limner.errors import KeyMismatchError, OptionError, ShapeError, UnknownFormatError, ZooError
from limner.inversion import InversionOptions, TrunkDistance, invert
from limner.latent import load_latent, render
from limner.nn import deltas
from limner.nn.compact import CompactCore, CompactEncoder
from limner.nn.compact_hyper import CompactHyper, HyperCore, rgb_layers, ridge
from limner.nn.features import Lite0
from limner.nn.hyperinverter import paint
from limner.pipeline.models import find_first
from limner.training.cores import EncoderTraining
from limner.training.hyper.lessons import HyperExam, HyperLessons, build_run
from limner.training.hyper.options import HyperOptions
from limner.training.run import Runtime, StepRandom

CPU = torch.device("cpu")
TINY = {"width": 8, "hidden": 4, "batch_size": 2, "warmup_kimg": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six numbered pictures by a generator that differs a little from the one whose weights change."""
    where = tmp_path_factory.mktemp("pictures")
    generator = make_generator(seed=7)
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        image = generator(torch.randn(6, W_DIM, generator=rng)).clamp(-1, 1)
    for number, one in enumerate(image):
        pixels = ((one.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(where / f"{number:06d}.png")
    return where


def make_encoder(generator) -> CompactEncoder:
    torch.manual_seed(5)
    core = CompactCore(
        num_rows=generator.num_rows, w_dim=W_DIM, input_px=32, width=8, gather=4, hidden=16, rank=4
    )
    for weight in core.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    core.w_avg.copy_(generator.w_avg)
    base = {"name": "tiny", "digest": deltas.digest(generator)}
    return CompactEncoder(trunk=Lite0().eval().requires_grad_(False), core=core, base=base)


def make_run(folder, tmp_path, *, seed: int = 0, **changes):
    generator = make_generator(seed)
    values = {"data": str(folder), "out": str(tmp_path / "run"), **TINY, **changes}
    options = HyperOptions(**values)
    return build_run(
        options, Runtime(CPU), generator=generator, encoder=make_encoder(generator), embedder=embed
    )


def embed(image: torch.Tensor) -> torch.Tensor:
    """Return an "identity" of 12 numbers: the colours of the four quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(1)


def shake(core: HyperCore, std: float = 0.2) -> None:
    """Give a core something to add to the errors; a new one takes them as they are."""
    torch.manual_seed(8)
    for colours in core.colours:
        torch.nn.init.normal_(colours.get_parameter("tell.weight"), std=std)


def test_a_new_network_comes_closer_without_training(folder, tmp_path):
    run = make_run(folder, tmp_path)
    image = run.pictures.pixels[:2].float() / 127.5 - 1
    with torch.no_grad():
        found = run.encoder(run.generator, image)
    painted = paint(run.generator, found.w, found.residuals).clamp(-1, 1)
    assert set(found.residuals) == set(rgb_layers(run.generator))
    assert (painted - image).square().mean() < 0.8 * (found.w_image - image).square().mean()


def test_painting_with_the_changed_weights_gives_the_picture_of_the_lesson(folder, tmp_path):
    run = make_run(folder, tmp_path)
    shake(run.encoder.core)
    image = run.pictures.pixels[:2].float() / 127.5 - 1
    with torch.no_grad():
        first = run.encoder.first(run.generator, image)
        changes, quick = run.encoder.residuals(image, run.encoder.views(image), first)
        torch.testing.assert_close(first.painted, run.generator.synthesis(first.w_plus))
        torch.testing.assert_close(quick, paint(run.generator, first.w_plus, changes), atol=1e-4, rtol=1e-4)
    weights = dict(run.generator.named_parameters())
    for name, value in changes.items():
        assert value.shape == (2, *weights[name].shape)
        assert not torch.allclose(value[0], value[1]), "of every picture its own"


@pytest.mark.parametrize("positions", [5, 40])
def test_ridge_regression_against_plain_least_squares(positions):
    rng = torch.Generator().manual_seed(0)
    keys = torch.randn(2, 12, positions, generator=rng, dtype=torch.float64)
    wanted = torch.randn(2, 3, positions, generator=rng, dtype=torch.float64)
    spread = torch.rand(12, generator=rng, dtype=torch.float64) + 0.5
    found = ridge(wanted, keys, spread, torch.tensor(0.3))
    for i in range(2):
        scaled = keys[i] * spread[:, None]
        penalty = 0.3 * scaled.square().sum() / 12
        # The penalty as further positions at which nothing is wanted.
        more = penalty.sqrt() * torch.diag(1 / spread)
        matrix = torch.cat([keys[i], more], 1)
        target = torch.cat([wanted[i], torch.zeros(3, 12)], 1)
        plain = torch.linalg.lstsq(matrix.T, target.T).solution.T
        torch.testing.assert_close(found[i], plain)


def test_gradients_reach_every_weight_that_is_trained(folder, tmp_path):
    run = make_run(folder, tmp_path)
    shake(run.encoder.core)
    lessons = HyperLessons(run)
    before = {name: value.clone() for name, value in run.encoder.core.state_dict().items()}
    frozen = deltas.digest(run.generator), deltas.digest(run.encoder.encoder.core)
    record = lessons.step(StepRandom(0, 1, 0, CPU))
    assert set(record) == {"l2_before", "l2", "perceptual", "identity"}
    trained = dict(run.encoder.core.named_parameters())
    still = [name for name in trained if torch.equal(trained[name], before[name])]
    assert not still
    assert (deltas.digest(run.generator), deltas.digest(run.encoder.encoder.core)) == frozen


def test_training_comes_closer_than_no_training(folder, tmp_path):
    run = make_run(folder, tmp_path, lr=0.02, jitter=0.0, identity=0.0, perceptual=0.0, mirror=False)
    lessons = HyperLessons(run)
    records = [lessons.step(StepRandom(0, step, 0, CPU)) for step in range(1, 13)]
    shares = [r["l2"] / r["l2_before"] for r in records]
    assert sum(shares[-4:]) < 0.95 * sum(shares[:4])


def test_a_resumed_run_is_bitwise_the_same(folder, tmp_path):
    def train(where, *parts):
        for kimg in parts:
            run = make_run(folder, where, kimg=kimg, optimizer="adamw")
            training = EncoderTraining(run, lessons=HyperLessons(run))  # type: ignore[arg-type]
            training.setup()
            training.fit()
        return run

    whole = train(tmp_path / "a", 0.008)
    parts = train(tmp_path / "b", 0.004, 0.008)
    assert whole.step == parts.step == 4
    for name, value in whole.average.core.state_dict().items():
        assert torch.equal(value, parts.average.core.state_dict()[name]), name
    other = make_run(folder, tmp_path / "b", hidden=5)
    with pytest.raises(KeyMismatchError, match="other options"):
        EncoderTraining(other, lessons=HyperLessons(other)).setup()  # type: ignore[arg-type]


def test_files_give_back_what_was_saved(folder, tmp_path):
    run = make_run(folder, tmp_path)
    shake(run.average.core)
    path = tmp_path / "hyper.safetensors"
    save_hyper(run.average, path, provenance={}, encoder="tiny-encoder", packed=False)
    assert read_first(path) == {
        "name": "tiny-encoder",
        "digest": deltas.digest(run.encoder.encoder.core),
        "refinements": "2",
    }
    again = load_hyper(path, encoder=run.encoder.encoder)
    image = run.pictures.pixels[:1].float() / 127.5 - 1
    ours, theirs = run.average(run.generator, image), again(run.generator, image)
    for name, value in ours.residuals.items():
        assert torch.equal(value, theirs.residuals[name])
    strange = make_encoder(run.generator)
    torch.nn.init.normal_(strange.core.base[0].weight)
    with pytest.raises(KeyMismatchError, match="another encoder"):
        load_hyper(path, encoder=strange)
    torch.save({}, tmp_path / "x.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"limner": "[1]"})
    for other in (tmp_path / "x.pt", tmp_path / "x.safetensors"):
        assert read_first(other) is None
        with pytest.raises(UnknownFormatError):
            load_hyper(other, encoder=strange)


def test_the_first_stage_is_found_by_its_digest(folder, tmp_path):
    run = make_run(folder, tmp_path)
    encoder = run.encoder.encoder
    save_encoder(encoder, tmp_path / "first.safetensors", provenance={}, packed=False)
    first = {"name": str(tmp_path / "first.safetensors"), "digest": deltas.digest(encoder.core)}
    assert deltas.digest(find_first(first, where="x").core) == first["digest"]
    with pytest.raises(ZooError, match="trained anew"):
        find_first({**first, "digest": "0"}, where="x")
    save_hyper(run.average, tmp_path / "first.safetensors", provenance={})
    with pytest.raises(ZooError, match="not on this machine"):
        find_first(first, where="x")


def test_inversion_gives_codes_and_a_change_that_paint_the_result(folder, tmp_path):
    run = make_run(folder, tmp_path)
    shake(run.average.core)
    image = run.pictures.pixels[:2].float() / 127.5 - 1
    found = invert(
        run.generator, image, InversionOptions(method="hyper"), perceptual=None, encoder=run.average
    )
    assert found.latent.space == "w+"
    assert found.deltas is not None
    for i, delta in enumerate(found.deltas):
        tuned = deltas.apply(run.generator, [(delta, 1.0)])
        picture = render(tuned, found.latent[i : i + 1]).clamp(-1, 1)
        torch.testing.assert_close(picture[0], found.image[i], atol=1e-4, rtol=1e-4)


def test_figures_with_and_without_the_change(folder, tmp_path):
    run = make_run(folder, tmp_path)
    image = run.pictures.pixels[:2].float() / 127.5 - 1
    trunk = run.encoder.encoder.trunk
    exam = HyperExam(image, ["a", "b"], perceptual=TrunkDistance(trunk, name="lite0"), identity=None)
    figures = exam.measure(run, tmp_path / "sheet.png")
    assert figures["psnr"] > figures["psnr_encoder"] + 1
    assert figures["change"] > 0
    assert (tmp_path / "sheet.png").is_file()
    shake(run.average.core)
    assert exam.measure(run)["psnr"] != pytest.approx(figures["psnr"], abs=1e-3)


def test_the_command_trains(folder, tmp_path, capsys):
    encoder = make_encoder(make_generator())
    save(Checkpoint(generator=make_generator()), tmp_path / "base.safetensors")
    save_encoder(encoder, tmp_path / "first.safetensors", provenance={}, packed=False)
    words = [
        "train",
        "hyper",
        "--base",
        tmp_path / "base.safetensors",
        "--encoder",
        tmp_path / "first.safetensors",
    ]
    words += [
        "--data",
        folder,
        "--select",
        "0-3",
        "--validate",
        "4-5",
        "--out",
        tmp_path / "run",
        "--width",
        8,
    ]
    words += ["--hidden", 4, "--batch-size", 1, "--refinements", 1, "--identity", 0]
    words += ["--kimg", "0.002", "--device", "cpu"]
    assert cli.main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    assert "4 pictures" in printed
    assert "starting anew" in printed
    network = load_hyper(tmp_path / "run/model.safetensors", encoder=encoder)
    found = network(make_generator(), torch.zeros(1, 3, 32, 32))
    assert all(value.isfinite().all() for value in found.residuals.values())
    tells = [colours.get_parameter("tell.weight") for colours in network.core.colours]
    assert any(weight.any() for weight in tells), "two steps have left the start"
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert {"psnr", "psnr_encoder", "identity", "change"} <= set(records[-1])
    assert (tmp_path / "run/sheets/000000.png").is_file()
    assert cli.main(["train", "hyper", "--quiet"]) == 2
    assert "--data" in capsys.readouterr().err


def test_the_command_inverts_with_a_small_hyperinverter(folder, tmp_path, capsys):
    run = make_run(folder, tmp_path)
    shake(run.average.core, 0.02)  # gently: latent files hold changes as float16
    model, first, hyper = (tmp_path / f"{name}.safetensors" for name in ("tiny", "first", "hyper"))
    save(Checkpoint(generator=run.generator), model)
    save_encoder(run.encoder.encoder, first, provenance={}, packed=False)
    save_hyper(run.average, hyper, provenance={}, encoder=str(first), packed=False)

    def invert_by(method: str, encoder, out: str) -> int:
        words = (folder / "000001.png", "--model", model, "--method", method, "--encoder", encoder)
        end = ("-o", tmp_path / out, "--aligned", "--device", "cpu", "--quiet")
        return cli.main(["invert", *map(str, (*words, *end))])

    assert invert_by("hyper", hyper, "out") == 0, capsys.readouterr().err
    read = load_latent(tmp_path / "out/000001_01.safetensors")
    assert read.latent.space == "w+"
    assert read.delta is not None
    person = deltas.apply(run.generator, [(deltas.reconstruct(read.delta), 1.0)])
    painted = media.to_pixels(render(person, read.latent, read.noise or "constant"))[0].astype(int)
    written = media.read(tmp_path / "out/000001_01.png").pixels.astype(int)
    assert np.abs(painted - written).max() <= 1
    plain = media.to_pixels(render(run.generator, read.latent, read.noise or "constant"))[0].astype(int)
    assert np.abs(plain - written).max() > 8, "the change is what makes the picture"
    # Its first stage alone, found through its file, and files that are no HyperInverter.
    assert invert_by("encoder", hyper, "codes") == 0, capsys.readouterr().err
    assert invert_by("hyper", first, "none") == 2
    assert "needs a HyperInverter" in capsys.readouterr().err
    first.unlink()
    assert invert_by("hyper", hyper, "lost") == 2
    assert "train hyper" in capsys.readouterr().err


def test_what_does_not_fit(folder, tmp_path):
    run = make_run(folder, tmp_path)
    with pytest.raises(KeyMismatchError, match="another"):
        run.encoder(make_generator(3), torch.zeros(1, 3, 32, 32))
    with pytest.raises(OptionError, match="data must be given"):
        make_run("", tmp_path)
    config = run.encoder.core.config()
    with pytest.raises(ShapeError, match="0 target layers"):
        HyperCore(**{**config, "targets": {}})
    again = HyperCore(**config)
    assert again.config() == config
    fewer = CompactHyper(
        encoder=run.encoder.encoder,
        core=HyperCore(**{**config, "targets": {"synthesis.to_rgb.0.weight": [3, 9, 1, 1]}}),
    )
    with pytest.raises(KeyMismatchError, match="limner train hyper"):
        fewer(run.generator, torch.zeros(1, 3, 32, 32))


def test_the_rate_rises_and_falls(folder, tmp_path):
    run = make_run(folder, tmp_path, warmup_kimg=0.1, kimg=1.0, decay_kimg=0.5)
    rates = []
    for images in (0, 200, 500, 998):
        rates.append(dataclasses.replace(run, images=images).learning_rate(1.0))
    assert rates[0] == pytest.approx(0.02)
    assert rates[1] == rates[2] == pytest.approx(1.0)
    assert rates[3] < 0.06
