"""`limner train dual`: every stage on tiny networks, from the classes and from the command line."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CHANNELS, make_generator
from PIL import Image
from torch import Tensor

from limner import checkpoints, zoo
from limner.errors import KeyMismatchError, OptionError
from limner.metrics import gram_differences, gram_matrices
from limner.nn.dual_start import hashed_uniform, start_extrinsic
from limner.nn.dualstylegan import DualGenerator
from limner.nn.stylegan2 import Generator
from limner.training.dual.adversary import make_adversary
from limner.training.dual.eyes import Eyes
from limner.training.dual.figures import (
    content_by_style,
    measure_pairs,
    measure_selectivity,
    parts_sheet,
    sweep_sheet,
)
from limner.training.dual.options import STAGES, DualTrainOptions, stage_key
from limner.training.dual.pairs import DestylizeStage, RefineStage, Setting, choose_evenly, nearest_z_plus
from limner.training.dual.sampler import SamplerStage, match
from limner.training.dual.stage import Stage
from limner.training.dual.training import DualTraining, Networks, table_of
from limner.training.dual.transfer import (
    StructureStage,
    StyleStage,
    boundary,
    copy_for_average,
    residual_size,
)
from limner.training.gan import options as gan_options
from limner.training.run import Runtime, StepRandom, load_state

CPU = torch.device("cpu")
TINY = {
    "pictures": 4,
    "batch_size": 2,
    "feature_resolution": 32,
    "tune_kimg": 0.004,
    "tune_batch": 4,
    "destylize_batch": 2,
    "destylize_code_steps": 2,
    "destylize_steps": 2,
    "structure_kimg": 0.006,
    "style_kimg": 0.004,
    "refine_steps": 2,
    "refine_batch": 2,
    "sampler_epochs": 3,
    "sampler_codes": 16,
    "sampler_batch": 8,
    "ema_kimg": 0.002,
    "source": "",
    "sheet_seconds": 0.0,
    "encoder": "none",
}


class Small(torch.nn.Module):
    """A trunk of two convolutions, so that a step takes milliseconds; five maps like Lite0's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        widths = (3, 4, 6, 8, 8, 8)
        strides = (8, 1, 2, 2, 1)  # coarse, so that positions are few
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv2d(widths[i], widths[i + 1], 3, strides[i], 1) for i in range(5)
        )
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps, x = [], image
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            maps.append(x)
        return maps


def small_eyes() -> Eyes:
    def embed(image: Tensor) -> Tensor:
        return F.normalize(F.adaptive_avg_pool2d(image, 4).flatten(1), dim=1)

    return Eyes(Small(), embed, trunk_name="small", identity_name="pooled")


@pytest.fixture
def styled() -> Generator:
    """The base with other strokes: the hidden maker of the portraits."""
    generator = make_generator()
    torch.manual_seed(9)
    for layer in generator.synthesis.layers:
        layer.weight.data += 0.3 * torch.randn_like(layer.weight)
    return generator


@pytest.fixture
def folder(tmp_path, styled):
    place = tmp_path / "portraits"
    place.mkdir()
    image = styled(torch.randn(6, 16, generator=torch.Generator().manual_seed(2))).clamp(-1, 1)
    for i, one in enumerate(image):
        pixels = ((one + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / f"{i:03d}.png")
    return place


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setitem(gan_options.CHANNEL_TABLES, "slim", dict(CHANNELS))


def make_training(folder, out, *, tuned: Generator | None = None, **changes) -> DualTraining:
    options = DualTrainOptions(images=str(folder), out=str(out), **{**TINY, **changes})
    networks = Networks(make_generator(), "tiny", Small(), small_eyes(), tuned=tuned)
    return DualTraining(options, Runtime(CPU), networks)


def play_steps(stage: Stage, count: int) -> list[dict[str, float]]:
    found = []
    for step in range(1, count + 1):
        found.append(stage.step(step, StepRandom(0, step, 0, CPU)))
        stage.done = step
    return found


def make_players(training: DualTraining):
    dual = training.start_model()
    return dual, copy_for_average(dual), training.start_adversary()


def start_codes(setting: Setting) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(4)
    shape = len(setting.chosen), setting.base.num_rows, setting.base.z_dim
    return {name: torch.randn(shape, generator=rng) for name in ("extrinsic", "fitted", "intrinsic")}


# Every stage lowers its own loss


def test_destylising_comes_nearer_to_the_portraits(folder, tmp_path, styled):
    training = make_training(folder, tmp_path / "out", tuned=styled)
    few = DestylizeStage(training.setting, styled, key="")
    options = dataclasses.replace(training.options, destylize_steps=30)
    many = DestylizeStage(dataclasses.replace(training.setting, options=options), styled, key="")
    before, after = (play_steps(stage, 2) for stage in (few, many))
    assert sum(r["perceptual"] for r in after) < 0.8 * sum(r["perceptual"] for r in before)
    assert many.codes["intrinsic"].shape == (4, 8, 16)
    assert not many.codes["intrinsic"].equal(many.codes["extrinsic"])
    sheet = many.preview()
    assert sheet is not None
    assert sheet.shape[2] == 3


def test_structure_transfer_comes_nearer_to_the_mixed_faces(folder, tmp_path):
    few = {
        "lr": 0.002,
        "structure_adversarial": 0.0,
        "ema_rampup": 0.0,
        "structure_short": 0.0,
        "batch_size": 4,
    }
    training = make_training(folder, tmp_path / "out", **few)
    dual, average, judge = make_players(training)
    stage = StructureStage(training.setting, dual, average, judge, key="")
    before = {name: value.clone() for name, value in dual.state_dict().items()}
    first, second = stage.draw_faces(32, StepRandom(7, 0, 0, CPU)).split(16)
    wanted = training.setting.base.synthesis(stage.mixed(first, second, 1))

    def distance() -> float:
        with torch.no_grad():
            return training.setting.eyes.perceptual(dual(first, second), wanted).mean().item()

    at_first = distance()
    found = play_steps(stage, 50)
    assert distance() < 0.93 * at_first
    assert {record["rows"] for record in found} == {5.0}
    after = dual.state_dict()
    changed = {name.partition(".")[0] for name, value in after.items() if not value.equal(before[name])}
    assert changed == {"style", "structure", "color"}
    mine, theirs = average.state_dict(), after
    assert all(
        not mine[name].equal(before[name]) and not mine[name].equal(theirs[name])
        for name in ("style.layers.0.weight", "structure.3.conv0.weight", "color.0.weight")
    )


def test_style_transfer_comes_nearer_to_the_portraits(folder, tmp_path):
    training = make_training(folder, tmp_path / "out", lr=0.01, style_residual=0.0)
    dual, average, judge = make_players(training)
    stage = StyleStage(training.setting, dual, average, judge, codes=start_codes(training.setting), key="")
    found = play_steps(stage, 40)
    near = [record["perceptual"] for record in found if "perceptual" in record]
    assert len(near) == 20
    assert np.mean(near[-6:]) < 0.9 * np.mean(near[:4])
    assert {"adversarial", "contextual", "matching", "identity", "loss_d"} <= set(found[0])


def test_the_frechet_distance_pulls_faces_to_the_look_of_all_pictures(folder, tmp_path):
    others = ("adversarial", "contextual", "matching", "identity", "residual", "perceptual")
    weights = {f"style_{name}": 0.0 for name in others}
    training = make_training(folder, tmp_path / "out", lr=0.003, batch_size=4, style_frechet=30.0, **weights)
    dual, average, judge = make_players(training)
    stage = StyleStage(training.setting, dual, average, judge, codes=start_codes(training.setting), key="")
    faces = stage.draw_faces(64, StepRandom(1, 1, 0, CPU))
    styles = training.setting.base.map_z_plus(stage.codes["extrinsic"][torch.arange(64) % 4])
    real = stage.summaries(training.setting.pictures.pixels.float() / 127.5 - 1)

    def distance() -> float:
        """Return how far mean small pictures of other faces are from those of the portraits."""
        with torch.no_grad():
            painted = stage.summaries(dual(faces, styles))[-1]
        return float((painted.mean(0) - real[-1].mean(0)).norm())

    before = distance()
    records = play_steps(stage, 50)
    assert set(records[-1]) == {"loss", "frechet"}  # without a weight nobody judges
    assert np.mean([record["frechet"] for record in records[-10:]]) < 0.5 * records[0]["frechet"]
    assert distance() < 0.9 * before
    with pytest.raises(OptionError, match="the style stage has no loss"):
        make_training(folder, tmp_path / "none", **weights)


def test_residual_weight_keeps_the_blocks_small(folder, tmp_path):
    sizes = {}
    for weight in (0.0, 1.0):
        training = make_training(folder, tmp_path / "out", lr=0.01, style_residual=weight)
        dual, average, judge = make_players(training)
        stage = StyleStage(
            training.setting, dual, average, judge, codes=start_codes(training.setting), key=""
        )
        play_steps(stage, 6)
        sizes[weight] = residual_size(dual).item()
    assert sizes[1.0] < sizes[0.0]
    total = sum(p.detach().square().sum().item() ** 0.5 for p in dual.structure.parameters())
    assert residual_size(dual).item() == pytest.approx(total, rel=1e-5)


def test_refining_lowers_the_loss_of_every_batch(folder, tmp_path):
    training = make_training(folder, tmp_path / "out", refine_steps=8)
    _, average, _ = make_players(training)
    codes = start_codes(training.setting)
    stage = RefineStage(training.setting, average, codes, key="")
    assert all(record["loss"] < record["loss_before"] for record in play_steps(stage, 2))
    assert stage.refined.shape == codes["extrinsic"].shape
    # Colours move faster than shapes.
    moved = (stage.refined - codes["extrinsic"]).abs()
    assert moved[:, 7:].mean() > moved[:, :7].mean() > 0


def test_the_sampler_learns_the_codes(folder, tmp_path):
    training = make_training(
        folder, tmp_path / "out", sampler_codes=100, sampler_epochs=30, sampler_batch=25, sampler_lr=0.01
    )
    _, average, _ = make_players(training)
    codes = start_codes(training.setting)["extrinsic"]
    stage = SamplerStage(training.setting, average, codes, key="")
    found = play_steps(stage, 30)
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    drawn = stage.average.sample(200, rng=torch.Generator().manual_seed(0))
    nearest = torch.cdist(drawn[:, :7].flatten(1), codes[:, :7].flatten(1)).argmin(1)
    assert set(nearest.tolist()) == {0, 1, 2, 3}, "a style is never drawn"


# The order, the folders, and what is resumed


def test_all_stages_in_order_and_the_model(folder, tmp_path, table):
    out, seen = tmp_path / "out", []
    training = make_training(folder, out)
    assert training.run(on_stage=lambda name, over: seen.append((name, over)))
    assert seen == [(name, False) for name in STAGES]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == [
        f"{i}-{n}" for i, n in enumerate(STAGES, 1)
    ]
    for number, name in enumerate(STAGES, 1):
        assert list((out / f"{number}-{name}" / "sheets").glob("*.png")), f"{name} shows nothing"
    model = checkpoints.load(out / "model.safetensors")
    assert model.sampler is not None
    assert model.dual is not None
    assert set(model.codes) == {"extrinsic", "intrinsic", "refined"}
    assert list(model.codes["refined"]) == ["000.png", "001.png", "003.png", "004.png"]
    base = make_generator().state_dict()
    kept = model.dual.generator.state_dict()
    assert all(
        (kept[name] - value).abs().max() < 2e-3 * value.abs().max() + 1e-6 for name, value in base.items()
    )
    assert model.metadata["provenance"]["losses"] == "perceptual small, identity pooled"

    # Once more: nothing is left to do, and the model is the same.
    seen.clear()
    before = (out / "model.safetensors").read_bytes()
    assert make_training(folder, out).run(on_stage=lambda name, over: seen.append((name, over)))
    assert seen == [(name, True) for name in STAGES]
    again = checkpoints.load(out / "model.safetensors")
    assert (out / "model.safetensors").read_bytes() == before
    assert all(v.equal(again.codes["refined"][k]) for k, v in model.codes["refined"].items())


def test_killed_and_resumed_is_the_same(folder, tmp_path, styled):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert make_training(folder, whole, tuned=styled, style_frechet=1.0).run()

    class Killed(Exception):
        pass

    def kill_at(count: int):
        steps = iter(range(1000))

        def on_step(stage, record):
            if next(steps) == count:
                raise Killed

        return on_step

    kills = 0
    while True:
        # The state is saved after every step, so that a kill loses at most the step that it hits.
        training = make_training(folder, parts, tuned=styled, style_frechet=1.0, save_seconds=1.0)
        training.clock.save_s = 0.0
        try:
            training.run(on_step=kill_at(1))
        except Killed:
            kills += 1
            assert kills < 30
            continue
        break
    assert kills >= 5
    for number, name in enumerate(STAGES[1:], 2):
        one, other = (load_state(out / f"{number}-{name}" / "state.pt", CPU) for out in (whole, parts))
        assert same(one, other), f"{name} differs"


def same(a, b) -> bool:
    if isinstance(a, Tensor):
        return a.equal(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_time_limit_stops_and_goes_on(folder, tmp_path, styled):
    training = make_training(folder, tmp_path / "out", tuned=styled)
    training.clock.limit_s = 1e-9
    assert not training.run()
    assert load_state(tmp_path / "out/2-destylize/state.pt", CPU)["step"] == 0
    assert make_training(folder, tmp_path / "out", tuned=styled, until="destylize").run()
    assert not (tmp_path / "out/3-structure").exists()


def test_other_options_are_refused(folder, tmp_path, styled):
    out = tmp_path / "out"
    make_training(folder, out, tuned=styled, until="structure").run()
    with pytest.raises(KeyMismatchError, match="2-destylize was made with other options"):
        make_training(folder, out, tuned=styled, destylize_steps=3).run()
    with pytest.raises(KeyMismatchError, match="3-structure"):
        make_training(folder, out, tuned=styled, structure_perceptual=2.0).run()
    Image.new("RGB", (32, 32)).save(folder / "006.png")
    with pytest.raises(KeyMismatchError, match="pictures"):
        make_training(folder, out, tuned=styled).run()


def test_lengthening_the_last_stage_goes_on(folder, tmp_path, styled):
    out = tmp_path / "out"
    make_training(folder, out, tuned=styled, until="style").run()
    assert make_training(folder, out, tuned=styled, until="style", style_kimg=0.008).run()
    assert load_state(out / "4-style/state.pt", CPU)["step"] == 4


def test_keys_depend_on_what_counts():
    options = DualTrainOptions()
    for change, touched in (
        ({"out": "x", "seconds": 5.0, "until": "style"}, set()),
        ({"lr": 0.5}, {"structure", "style"}),
        ({"refine_lr_color": 0.5}, {"refine"}),
        ({"style_kimg": 1.0}, set()),
        ({"seed": 3}, set(STAGES)),
    ):
        other = dataclasses.replace(options, **change)
        assert {s for s in STAGES if stage_key(options, s, "") != stage_key(other, s, "")} == touched, change
    assert len({stage_key(options, "style", before) for before in ("a", "b")}) == 2


def test_bad_pictures_and_generators(folder, tmp_path, styled):
    with pytest.raises(OptionError, match="images must be given"):
        make_training("", tmp_path)
    with pytest.raises(OptionError, match="at least two"):
        make_training(folder, tmp_path, select="0-0")
    other = Generator(resolution=16, channels={4: 8, 8: 8, 16: 8}, z_dim=16, w_dim=16, mapping_depth=2)
    with pytest.raises(KeyMismatchError, match="no fine-tuned tiny"):
        make_training(folder, tmp_path, tuned=other)
    with pytest.raises(OptionError, match="--tuned FILE"):
        table_of(other)


# Parts


def test_boundaries_are_those_published():
    dual = DualGenerator(resolution=32, channels=CHANNELS, z_dim=8, w_dim=8, mapping_depth=2)
    assert dual.structure_rows == 7
    shares = [0.0, 0.08, 0.09, 0.16, 0.17, 0.99]
    assert [boundary(dual, share, 1 / 12) for share in shares] == [7, 7, 6, 6, 5, 5]


def test_mapping_is_inverted():
    generator = make_generator()
    wanted = generator.map_z_plus(torch.randn(2, 8, 16))
    found = nearest_z_plus(generator, wanted)
    away = (generator.map_z_plus(found) - wanted).square().mean() / wanted.var()
    assert away < 0.02
    assert torch.allclose(found.square().mean(2), torch.ones(2, 8), atol=1e-4)


def test_choosing_evenly():
    assert choose_evenly(6, 4) == [0, 1, 3, 4]
    assert choose_evenly(3, 0) == choose_evenly(3, 9) == [0, 1, 2]


def test_match_finds_the_nearest():
    noise, data = torch.randn(9, 3), torch.randn(5, 3)
    found, distance = match(torch.nn.Identity(), noise, data)
    for row, chosen in zip(data, found, strict=True):
        assert chosen.equal(min(noise, key=lambda one: float((one - row).norm())))
    assert distance == pytest.approx(float((found - data).square().mean()), rel=1e-4)


def test_start_weights_come_from_the_number_alone():
    duals = [
        DualGenerator(resolution=32, channels=CHANNELS, z_dim=16, w_dim=16, mapping_depth=2) for _ in range(3)
    ]
    for dual, seed in zip(duals, (3, 3, 4), strict=True):
        start_extrinsic(dual, seed=seed)
    one, same_one, other = ({k: v for k, v in d.state_dict().items() if k[:9] != "generator"} for d in duals)
    assert all(v.equal(same_one[k]) for k, v in one.items())
    assert any(not v.equal(other[k]) for k, v in one.items())
    fresh = DualGenerator(resolution=32, channels=CHANNELS, z_dim=16, w_dim=16, mapping_depth=2).state_dict()
    for name, value in one.items():  # of the usual size
        assert value.abs().mean() == pytest.approx(float(fresh[name].abs().mean()), rel=0.35, abs=1e-6), name


def test_hashed_numbers_are_uniform_and_fixed():
    x = hashed_uniform(100_000, stream=1)
    assert x.mean().abs() < 0.01
    assert x.var().item() == pytest.approx(1, abs=0.01)
    assert x.abs().max() <= 3**0.5
    assert (x[1:] * x[:-1]).mean().abs() < 0.01
    assert (x * hashed_uniform(100_000, stream=2)).mean().abs() < 0.01

    def murmur(word: int) -> int:
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            word = ((word ^ (word >> shift)) * factor) % 2**32
        return word ^ (word >> 16)

    for i in (0, 1, 99_999):
        word = murmur((i + 0x9E3779B9) % 2**32)
        assert x[i].item() == pytest.approx(((word + 0.5) / 2**32 * 2 - 1) * 3**0.5, rel=1e-6)


def test_published_discriminator_learns_and_takes_its_penalty():
    options = DualTrainOptions(images="x", discriminator="stylegan2", d_reg_interval=2, augment_p=0.0)
    real = torch.rand(4, 3, 32, 32) * 2 - 1
    judge = make_adversary(
        options, resolution=32, trunk=Small(), pictures=real, discriminator=None, channels=dict(CHANNELS)
    )
    fake = torch.zeros(4, 3, 32, 32, requires_grad=True)
    found = [judge.judge(fake, real, StepRandom(0, step, 0, CPU), step) for step in range(1, 31)]
    assert found[-1][1]["loss_d"] < 0.7 * found[0][1]["loss_d"]
    assert ["r1" in record for _, record in found[:4]] == [False, True, False, True]
    (grad,) = torch.autograd.grad(found[-1][0], fake)
    assert grad.abs().max() > 0
    saved = copy.deepcopy(judge.state())
    judge.load_state(saved)
    assert same(saved, judge.state())


def test_eyes_with_the_bundled_trunk():
    """Equal images have no distance; a stranger's is larger than that of a slight change."""
    eyes = Eyes(zoo.load("lite0"), zoo.load("identity"), trunk_name="lite0", identity_name="dlib")
    torch.manual_seed(1)
    coarse = torch.rand(2, 3, 8, 8) * 2 - 1
    image = F.interpolate(coarse, size=128, mode="bicubic").clamp(-1, 1)
    near, far = (image[:1] + 0.02 * torch.randn(1, 3, 128, 128)), image[1:]
    first = image[:1]
    assert (
        eyes.perceptual(first, first).item()
        < 1e-6
        < eyes.perceptual(near, first)
        < eyes.perceptual(far, first)
    )
    maps = [eyes.look(x) for x in (first, near, far)]
    for distance in (eyes.contextual, eyes.matching):
        same_one, *others = [distance(m, maps[0]).item() for m in maps]
        assert same_one < min(others)
    assert str(eyes) == "perceptual lite0, identity dlib"


# The command


def test_command(folder, tmp_path, styled, capsys):
    from limner.app.cli import main
    from limner.checkpoints import Checkpoint, save

    for name, generator in (("base", make_generator()), ("tuned", styled)):
        save(Checkpoint(generator=generator), tmp_path / f"{name}.safetensors")
    words = ["train", "dual", "--json", "--images", str(folder), "--out", str(tmp_path / "out")]
    words += ["--base", str(tmp_path / "base.safetensors"), "--tuned", str(tmp_path / "tuned.safetensors")]
    tiny = {**TINY, "until": "destylize", "pictures": 2, "destylize_steps": 1, "destylize_code_steps": 1}
    del tiny["source"]
    words += [word for name, value in tiny.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(words) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result["finished"] is True
    assert result["figures"]["destylize"]["perceptual"] > 0
    assert "perceptual lite0, identity dlib" in told.err
    assert main(["train", "dual"]) == 2
    assert "--images DIR" in capsys.readouterr().err


# Low rank, warm start, lengths


def test_training_of_low_rank_leaves_the_hashed_network_alone(folder, tmp_path):
    training = make_training(folder, tmp_path / "out", rank=2, lr=0.01)
    dual, average, judge = make_players(training)
    before = {name: value.clone() for name, value in dual.state_dict().items()}
    stage = StyleStage(training.setting, dual, average, judge, codes=start_codes(training.setting), key="")
    play_steps(stage, 2)
    after = dual.state_dict()
    changed = {name.partition(".")[0] for name, value in after.items() if not value.equal(before[name])}
    assert changed == {"structure", "color"}
    whole = dual.merged()
    conv, affine = (
        sum(p.detach().norm().item() for name, p in whole.structure.named_parameters() if kind in name)
        for kind in ("conv", "affine")
    )
    assert residual_size(dual).item() == pytest.approx(conv + affine, rel=1e-4)


def test_a_run_starts_from_an_earlier_model_of_another_base(folder, tmp_path, styled):
    first = make_training(folder, tmp_path / "one", rank=2, tuned=styled, until="structure")
    assert first.run()
    earlier = checkpoints.load(tmp_path / "one" / "model.safetensors").dual
    assert earlier is not None
    options = DualTrainOptions(
        images=str(folder),
        out=str(tmp_path / "two"),
        **{**TINY, "rank": 2, "init": str(tmp_path / "one" / "model.safetensors")},
    )
    networks = Networks(make_generator(4), "other", Small(), small_eyes())
    warm = DualTraining(options, Runtime(CPU), networks).start_model()
    assert warm.structure[1].conv1.expand.equal(earlier.structure[1].conv1.expand)
    assert not warm.generator.w_avg.equal(earlier.generator.w_avg)
    other = dataclasses.replace(options, rank=3)
    with pytest.raises(KeyMismatchError, match="has an extrinsic path of"):
        DualTraining(other, Runtime(CPU), networks).start_model()


def test_one_number_scales_all_lengths():
    options = DualTrainOptions(scale=0.5, refine_steps=3, destylize_code_steps=0)
    scaled = options.scaled()
    assert scaled.scale == 1.0
    assert scaled.style_kimg == options.style_kimg / 2
    assert scaled.refine_steps == 2
    assert scaled.destylize_code_steps == 0
    assert scaled.batch_size == options.batch_size


def test_a_face_found_from_its_code_is_nearer(folder, tmp_path, styled):
    near = {}
    for way in ("image", "code"):
        training = make_training(folder, tmp_path / way, tuned=styled, destylize_embed=way)
        records = play_steps(DestylizeStage(training.setting, styled, key=""), 2)
        near[way] = sum(record["embedding"] for record in records)
    assert near["code"] < near["image"]


def test_figures_and_sheets_of_a_model(folder, tmp_path):
    training = make_training(folder, tmp_path / "out")
    dual, eyes = training.start_model().eval(), small_eyes()
    codes = start_codes(training.setting)
    base, exemplars = dual.generator, training.setting.portraits(range(4))
    people, styles = (base.map_z_plus(codes[name]) for name in ("intrinsic", "extrinsic"))
    # A model that copies the exemplar is the perfect stylist of strangers.
    same = base.synthesis(styles).clamp(-1, 1)
    found = measure_selectivity(dual, styles, styles, same, eyes=eyes, shifts=1, weights=0.0)
    assert found["person"] == 1.0
    assert found["style_gram"] == 0.0  # every person is painted in the next one's style, and stays as it is
    assert found["chance"] == 0.25
    distances = gram_differences(*[gram_matrices(eyes.look, exemplars)] * 2)
    assert distances.argmin(1).tolist() == [0, 1, 2, 3]
    faces = base.synthesis(people).clamp(-1, 1)
    pairs = measure_pairs(dual, faces, faces, people, styles, styles, eyes=eyes, weights=0.0)
    assert pairs["truth_own"] == pytest.approx(0, abs=1e-5)
    assert pairs["identity_known"] == pytest.approx(0, abs=1e-5)
    assert pairs["frechet_known"] == pytest.approx(pairs["frechet_plain"], abs=1e-4)
    for sheet in (
        content_by_style(dual, people[:2], styles, exemplars),
        parts_sheet(dual, people[:1], styles, exemplars),
        sweep_sheet(dual, people[:1], styles[:1]),
    ):
        assert sheet.ndim == 3
        assert sheet.std() > 1


def test_rates_rise_over_the_warm_up(folder, tmp_path):
    moved = {}
    for warmup in (0.0, 1.0):
        training = make_training(folder, tmp_path / "out", warmup=warmup, style_kimg=0.02)
        dual, average, judge = make_players(training)
        stage = StyleStage(
            training.setting, dual, average, judge, codes=start_codes(training.setting), key=""
        )
        before = dual.structure[0].get_parameter("conv0.weight").clone()
        play_steps(stage, 1)
        moved[warmup] = (dual.structure[0].get_parameter("conv0.weight") - before).abs().mean().item()
        assert stage.warmth(1) == pytest.approx(0.1 if warmup else 1.0)
        assert stage.warmth(10) == 1.0
    assert moved[1.0] == pytest.approx(0.1 * moved[0.0], rel=0.1)
