"""Data, loop and both games; resuming must continue exactly."""

import json
import os
import signal
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from limner import zoo
from limner.errors import (
    CheckpointError,
    DivergedError,
    KeyMismatchError,
    MediaError,
    MissingExtraError,
    OptionError,
)
from limner.nn.layers import upsample2
from limner.nn.projected import MomentMatcher, ProjectedDiscriminator, augment_lightly, cut_windows
from limner.nn.stylegan2 import Generator
from limner.training import run as surroundings
from limner.training.data import PictureSet, list_pictures
from limner.training.gan import games
from limner.training.gan.games import StyleGan2Game, draw_w_plus
from limner.training.gan.options import CHANNEL_TABLES, GanOptions
from limner.training.gan.training import GanTraining, build_generator, build_run, start_from
from limner.training.run import Clock, Journal, Runtime, StepRandom, load_state, save_state, update_average

CPU = torch.device("cpu")
TINY = {4: 16, 8: 16, 16: 8, 32: 8}


@pytest.fixture(autouse=True)
def _tiny_and_private(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(CHANNEL_TABLES, "slim", TINY)
    monkeypatch.setattr(games, "MEASURED_FAKES", 64)


@pytest.fixture(scope="module")
def trunk():
    return zoo.load("lite0")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        blocks = rng.integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(blocks).resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{i:06d}.png")
    return place


def options(folder, **changes):
    base = {
        "data": str(folder),
        "out": str(folder.parent / "run"),
        "resolution": 16,
        "w_dim": 16,
        "batch_size": 4,
        "kimg": 0.016,
        "feature_resolution": 32,
        "metric_samples": 0,
        "w_samples": 100,
        "sheet_kimg": 1000,
    }
    return GanOptions(**base | changes)


STYLEGAN2 = {"discriminator": "stylegan2", "augment": "ada", "augment_p": 0.2, "pl_weight": 2.0}
STYLEGAN2 |= {"d_reg_interval": 2, "g_reg_interval": 2}


EMBEDDING = {"reconstruct": 0.5, "embed_kimg": 0.004, "batch_per_device": 4}
PULL = {"frechet_weight": 50.0, "batch_per_device": 4}
WINDOWS = {"resolution": 32, "crop": 16, "frechet_weight": 50.0}
KINDS = pytest.mark.parametrize(
    "kind",
    [{}, PULL, STYLEGAN2, EMBEDDING, WINDOWS],
    ids=["projected", "frechet", "stylegan2", "embedding", "windows"],
)


def training(opts, trunk, **kwargs):
    result = GanTraining(build_run(opts, Runtime(CPU), trunk=trunk, **kwargs))
    result.setup()
    return result


def flat(tree, prefix=""):
    """(path, leaf) of nested dicts, lists and tuples."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in pairs:
        if isinstance(value, (dict, list, tuple)):
            yield from flat(value, f"{prefix}/{key}")
        else:
            yield f"{prefix}/{key}", value


def assert_same_state(a, b):
    left, right = dict(flat(a)), dict(flat(b))
    assert left.keys() == right.keys()
    different = [
        k for k, v in left.items() if not (v.equal(right[k]) if torch.is_tensor(v) else v == right[k])
    ]
    assert different == []


# Data


def test_a_folder_and_a_zip_of_it_are_the_same(folder, tmp_path):
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    assert torch.equal(PictureSet(folder, 16).pixels, PictureSet(archive, 16).pixels)


def test_pictures_are_area_averages_of_the_files(folder):
    pixels = PictureSet(folder, 16, cache=False).pixels[3]
    array = np.asarray(Image.open(folder / "000003.png")).astype(float).reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(pixels.permute(1, 2, 0).numpy() - array).max() <= 1.0  # Pillow rounds after each direction


def test_the_cache_is_used_and_follows_the_selection(folder):
    first = PictureSet(folder, 8)
    for path in folder.iterdir():
        size = path.stat().st_size
        path.write_bytes(b"\0" * size)  # unreadable now, so only the cache can answer
    assert torch.equal(PictureSet(folder, 8).pixels, first.pixels)
    with pytest.raises(MediaError, match="000002"):
        PictureSet(folder, 8, select="2-5")


def test_select_keeps_numbers_in_range(folder):
    assert [int(name[:6]) for name in list_pictures(folder, "3-5")] == [3, 4, 5]
    assert [int(name[:6]) for name in list_pictures(folder, "8-9,0-1, 11-20")] == [0, 1, 8, 9, 11]
    for wrong in ("5", "a-b", "5-3", "0-3,", "0-3;5-6"):
        with pytest.raises(OptionError, match="expected FIRST-LAST"):
            list_pictures(folder, wrong)
    with pytest.raises(OptionError, match="none of its 12 pictures, numbered 0 to 11, is selected by 20-30"):
        list_pictures(folder, "20-30")


def test_several_places_are_one_set(folder, tmp_path):
    """A folder and a zip with equal names: their pictures stay apart, also in the cache."""
    other = tmp_path / "others.zip"
    with zipfile.ZipFile(other, "w") as file:
        for number in (0, 1, 40):
            file.write(folder / f"{number + 2 if number < 2 else 9:06d}.png", f"{number:06d}.png")
    alone = PictureSet(folder, 16).pixels
    for _ in range(2):  # the second time from the cache
        both = PictureSet([folder, other], 16, select="0-1,40-41")
        assert torch.equal(both.pixels, alone[[0, 1, 2, 3, 9]])
    assert both.counts == {str(folder): 2, str(other): 3}
    assert both.names[1] == str(folder / "000001.png")
    assert both.names[3] == str(other / "000001.png")
    assert both.pixels.is_contiguous()
    with pytest.raises(OptionError, match=r"others.zip: none of its 3 pictures, numbered 0 to 40"):
        PictureSet([folder, other], 16, select="5-6")
    held_out = PictureSet([folder, other], 16, select="5-6", every=False)
    assert held_out.counts == {str(folder): 2}
    with pytest.raises(OptionError, match="no picture is selected by 70-80"):
        PictureSet([folder, other], 16, select="70-80", every=False)


def test_places_that_cannot_be_are_named(folder, tmp_path):
    (tmp_path / "bare").mkdir()
    for places, message in (
        (
            [folder, tmp_path / "nowhere"],
            "images .*nowhere: there is no such place; expected a folder or a zip",
        ),
        ([folder, tmp_path / "bare"], "images .*bare: no pictures"),
        ([folder, folder.parent / "." / "pictures"], "images names .*pictures twice"),
        ([], "images must be given"),
        ("", "images must be given"),
    ):
        with pytest.raises(OptionError, match=message):
            PictureSet(places, 8, what="images")


def test_pictures_are_held_once(folder):
    """Reading needs the array and little more, from files and from the cache."""
    for number in range(12, 400):
        os.link(folder / "000000.png", folder / f"{number:06d}.png")
    for _ in range(2):
        tracemalloc.start()
        pictures = PictureSet([folder], 32)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        size = pictures.pixels.numel()
        assert size == 400 * 3 * 32 * 32
        assert peak < 1.5 * size


def test_data_errors_say_what_is_wrong(tmp_path, folder):
    with pytest.raises(OptionError, match="folder or a zip"):
        list_pictures(tmp_path / "nowhere")
    Image.new("RGB", (8, 4)).save(folder / "000099.png")
    with pytest.raises(MediaError, match="8 x 4"):
        PictureSet(folder, 8)


def test_draw_repeats_and_mirrors(folder):
    pictures = PictureSet(folder, 8)
    a, b = (pictures.draw(64, torch.Generator().manual_seed(5), mirror=True, device=CPU) for _ in range(2))
    assert torch.equal(a, b)
    assert a.min() >= -1
    assert a.max() <= 1
    known = torch.cat([pictures.pixels, pictures.pixels.flip(3)]).float() / 127.5 - 1
    assert all((known == image).flatten(1).all(1).any() for image in a)


# Starting and growing


def test_growing_begins_as_the_parents_enlarged_image(folder):
    parent = build_generator(options(folder, resolution=16))
    grown = build_generator(options(folder, resolution=32))
    new = start_from(grown, parent)
    assert {name.rsplit(".", 1)[0] for name in new} == {
        "synthesis.layers.5",
        "synthesis.layers.5.affine",
        "synthesis.layers.6",
        "synthesis.layers.6.affine",
        "synthesis.to_rgb.3",
        "synthesis.to_rgb.3.affine",
    }
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(grown(z), upsample2(parent(z)), atol=1e-5)


def test_a_parent_of_other_widths_is_refused(folder):
    parent = Generator(resolution=16, channels=TINY, z_dim=16, w_dim=16, mapping_depth=3)
    with pytest.raises(KeyMismatchError, match="mapping depth 3"):
        start_from(build_generator(options(folder)), parent)


def test_growing_trains_only_the_new_layers_first(folder, trunk):
    parent = build_generator(options(folder, resolution=16))
    opts = options(folder, resolution=32, kimg=0.008, grow_kimg=0.004)
    run = build_run(opts, Runtime(CPU), trunk=trunk, parent=parent)
    grown = GanTraining(run)
    grown.setup()
    before = {name: p.clone() for name, p in run.G.named_parameters()}
    grown.game.step(StepRandom(0, 1, 0, CPU))
    changed = {name for name, p in run.G.named_parameters() if not p.equal(before[name])}
    assert changed
    assert changed <= run.new_parameters
    run.images = 4
    grown.game.step(StepRandom(0, 2, 0, CPU))
    assert not run.G.synthesis.const.equal(before["synthesis.const"])


# The games


@KINDS
def test_a_killed_run_continues_exactly(folder, trunk, kind):
    whole = training(options(folder, out=str(folder.parent / "whole"), **kind), trunk)
    assert whole.fit()

    first = training(options(folder, kimg=0.008, **kind), trunk)
    first.fit()  # saved after two steps
    lost = training(options(folder, kimg=0.012, **kind), trunk)
    lost._save = lambda: None  # killed after the third step, before anything was saved
    lost.fit()
    second = training(options(folder, **kind), trunk)
    assert second.run.step == 2
    assert second.fit()
    ends = whole.state(), second.state()
    assert all(end.pop("seconds") > 0 for end in ends), "of training: no two runs take the same"
    assert_same_state(*ends)


@KINDS
def test_accumulation_trains_every_network(folder, trunk, kind):
    sizes = {"batch_size": 8, "batch_per_device": 4, "kimg": 0.016}
    run = training(options(folder, **kind | sizes), trunk)
    g, d = ({n: p.clone() for n, p in net.named_parameters()} for net in (run.run.G, run.run.D))
    run.fit()
    assert not run.run.G.synthesis.const.equal(g["synthesis.const"])
    moved = [n for n, p in run.run.D.named_parameters() if not p.equal(d[n])]
    assert moved
    assert not [n for n in moved if n.startswith(("trunk.", "projection."))]


def test_embedded_pictures_come_back(tmp_path, trunk):
    folder = tmp_path / "flags"
    folder.mkdir()
    for i, colours in enumerate([("red", "lime"), ("blue", "yellow"), ("black", "white")]):
        flag = Image.new("RGB", (16, 16), colours[0])
        flag.paste(colours[1], (0, 0, 16, 8))
        flag.save(folder / f"{i}.png")
    settings = {"reconstruct": 0.75, "embed_kimg": 0.0, "batch_size": 8, "kimg": 0.7, "augment": "none"}
    settings |= {"lr_e": 0.003, "lr_g": 0.01, "reconstruct_weight": 30.0, "mirror": False}
    run = training(options(folder, **settings), trunk)
    run.fit()
    pictures = run.run.pictures.pixels.float() / 127.5 - 1
    with torch.no_grad():
        again = run.run.G.synthesis(run.run.G.broadcast(run.game.embed(pictures)), "constant")
    distance = (again[:, None] - pictures[None]).abs().mean((2, 3, 4))
    assert distance.argmin(1).tolist() == [0, 1, 2]


def test_a_share_must_leave_two_images_on_each_side(folder, trunk):
    with pytest.raises(OptionError, match="at least 2 of each"):
        training(options(folder, batch_per_device=2, reconstruct=0.5), trunk)


def test_the_embedder_learns_alone_first(folder, trunk):
    run = training(options(folder, kimg=0.008, reconstruct=0.5, embed_kimg=0.008), trunk)
    before = {name: p.clone() for name, p in run.run.G.named_parameters()}
    embedder = {name: p.clone() for name, p in run.game.embedder.named_parameters()}
    run.fit()
    assert all(p.equal(before[name]) for name, p in run.run.G.named_parameters())
    assert not any(p.equal(embedder[name]) for name, p in run.game.embedder.named_parameters())


def test_reconstruction_can_be_added_to_a_run_without_it(folder, trunk):
    training(options(folder, kimg=0.008), trunk).fit()
    later = training(options(folder, **EMBEDDING), trunk)
    assert later.run.step == 2
    assert later.fit()


def test_the_frechet_loss_can_be_added_to_a_run_without_it(folder, trunk):
    training(options(folder, kimg=0.008), trunk).fit()
    later = training(options(folder, **PULL), trunk)
    assert later.run.step == 2
    assert later.fit()
    assert later.game.pull.ready


def test_batches_that_cannot_be_shared_are_refused(folder, trunk):
    game = training(options(folder, batch_per_device=2, **STYLEGAN2), trunk).game
    assert game.micro == [2, 2]
    with pytest.raises(OptionError, match="does not divide"):
        training(options(folder, batch_per_device=3), trunk)


def test_warm_up_trains_the_discriminator_first(folder, trunk):
    run = training(options(folder, warmup_kimg=0.008), trunk)
    before = run.run.G.synthesis.const.clone()
    for step in range(1, 3):
        run.game.step(StepRandom(0, step, 0, CPU))
        run.run.images += 4
        assert run.run.G.synthesis.const.equal(before)
    run.run.images = 12
    assert run.run.generator_share() == pytest.approx(0.5)
    run.game.step(StepRandom(0, 3, 0, CPU))
    assert not run.run.G.synthesis.const.equal(before)


def test_freeze_d_keeps_the_first_blocks(folder):
    run = training(options(folder, freeze_d=2, **STYLEGAN2), None)
    before = {name: p.clone() for name, p in run.run.D.named_parameters()}
    run.fit()
    still = {
        name.split(".")[0] + name.split(".")[1]
        for name, p in run.run.D.named_parameters()
        if p.equal(before[name])
    }
    moved = {name for name, p in run.run.D.named_parameters() if not p.equal(before[name])}
    assert "from_rgbweight" in still
    assert not [name for name in moved if name.startswith(("from_rgb", "blocks.0"))]
    assert [name for name in moved if name.startswith("blocks.1")]


def test_only_discriminator_leaves_the_generator_alone(folder):
    run = training(options(folder, only_discriminator=True, **STYLEGAN2), None)
    g, ema = ({n: v.clone() for n, v in net.state_dict().items()} for net in (run.run.G, run.run.ema))
    d = run.run.D.out.weight.clone()
    run.fit()
    assert_same_state(g, run.run.G.state_dict())
    assert_same_state(ema, run.run.ema.state_dict())
    assert not run.run.D.out.weight.equal(d)


def test_ada_rises_on_a_small_set_and_not_without_learning(folder):
    run = training(
        options(folder, **STYLEGAN2 | {"augment_p": 0.0}, ada_kimg=0.2, only_discriminator=True, kimg=0.16),
        None,
    )
    assert isinstance(run.game, StyleGan2Game)
    run.fit()  # twelve pictures against untrained noise: the discriminator soon knows them all
    assert run.game.ada.p > 0.1
    calm = training(
        options(
            folder,
            out=str(folder.parent / "calm"),
            **STYLEGAN2 | {"augment_p": 0.0},
            lr_d=0,
            kimg=0.04,
            seed=1,
        ),
        None,
    )
    calm.fit()  # a discriminator that cannot learn is sure of nothing
    assert calm.game.ada.p < 0.01


def test_style_mixing_shares_rows(folder):
    G = build_generator(options(folder))
    w_plus = draw_w_plus(G, 16, 1.0, StepRandom(0, 1, 0, CPU))
    kinds = [len({tuple(row.tolist()) for row in image}) for image in w_plus]
    assert kinds == [2] * 16
    plain = draw_w_plus(G, 16, 0.0, StepRandom(0, 1, 0, CPU))
    assert torch.equal(plain, plain[:, :1].expand_as(plain))


def test_bf16_runs_and_stays_finite(folder, trunk):
    run = GanTraining(build_run(options(folder, kimg=0.008), Runtime(CPU, "bf16"), trunk=trunk))
    run.setup()
    run.fit()
    assert all(p.isfinite().all() for p in run.run.G.parameters())


# The projected discriminator


def test_moments_vanish_on_the_real_distribution_and_not_elsewhere():
    matcher = MomentMatcher(shapes=[(8, 4, 4), (3, 16, 16)])
    rng = torch.Generator().manual_seed(0)

    def batch(shift=0.0, scale=1.0):
        return [torch.randn(64, *s, generator=rng) * scale + shift for s in ((8, 4, 4), (3, 32, 32))]

    for _ in range(200):
        matcher.update(batch())
    same, moved, narrow = matcher(batch()), matcher(batch(shift=0.5)), matcher(batch(scale=0.3))
    assert same < 0.1
    assert moved > 3 * same
    assert narrow > 3 * same


def test_heads_judge_every_map_and_see_the_spread(trunk):
    D = ProjectedDiscriminator(trunk=trunk, resolution=16, feature_resolution=32)
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(4, 3, 16, 16, generator=rng) * 2 - 1
    D.calibrate(image)
    maps = D.features(image)
    assert all(abs(x.std().item() - 1) < 1e-4 for x in maps[:-1])
    assert [x.shape for x in D.judge(maps)] == [(4,)] * 5
    alone = D.judge([x[:1].expand_as(x) for x in maps])[0][0]
    among = D.judge([torch.cat([x[:1], x[1:]]) for x in maps])[0][0]
    assert alone != among  # the same image is judged differently in a batch without spread


def test_light_augmentation_is_the_identity_at_zero_and_differentiable():
    image = torch.rand(4, 3, 16, 16) * 2 - 1
    assert augment_lightly(image, 0.0, torch.Generator()) is image
    image.requires_grad_()
    changed = augment_lightly(image, 1.0, torch.Generator().manual_seed(0))
    assert not torch.equal(changed, image)
    changed.sum().backward()
    assert image.grad.abs().sum() > 0


def test_windows_are_parts_of_their_images_and_the_same_from_the_same_state():
    image = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    rng = torch.Generator().manual_seed(0)
    state, seen = rng.get_state(), set()
    for _ in range(60):
        for number, window in enumerate(cut_windows(image, 5, rng)):
            top, left = divmod(int(window[0, 0, 0]) - number * 192, 8)
            assert window.equal(image[number, :, top : top + 5, left : left + 5])
            seen.add((top, left))
    assert seen == {(top, left) for top in range(4) for left in range(4)}
    rng.set_state(state)
    first = cut_windows(image, 5, rng)
    rng.set_state(state)
    assert first.equal(cut_windows(image, 5, rng))


def test_the_heads_see_windows_at_full_resolution(folder, trunk):
    run = training(options(folder, **WINDOWS), trunk)
    assert run.run.D.resolution == 16
    random = StepRandom(0, 1, 0, CPU)
    assert run.game.augment(run.game.draw_pictures(3, random), random).shape == (3, 3, 16, 16)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"crop": 32}, "at most the resolution"),
        (STYLEGAN2 | {"crop": 8}, "projected"),
        (EMBEDDING | {"crop": 8}, "crop"),
        (STYLEGAN2 | {"below_weight": 1.0}, "below_weight"),
        (EMBEDDING | {"below_weight": 1.0}, "below_weight"),
    ],
)
def test_windows_that_make_no_sense_are_refused(folder, trunk, wrong, words):
    with pytest.raises(OptionError, match=words):
        training(options(folder, **wrong), trunk)


# What surrounds the loop


def test_new_layers_leave_the_colours_below_them_alone(folder, trunk):
    """With below_weight, averages over squares of 4 px stay nearer to the smaller picture's than without."""
    torch.manual_seed(1)
    parent = build_generator(options(folder, resolution=16))
    moved = {}
    for weight in (0.0, 1000.0):
        opts = options(folder, **WINDOWS, grow_kimg=1000.0, lr_g=0.01, below_weight=weight)
        grown = training(opts, trunk, parent=parent)
        grown.setup()
        for step in range(1, 9):
            record = grown.game.step(StepRandom(0, step, 0, CPU))
        assert ("below" in record) == bool(weight)
        generator = grown.run.G
        w_plus = draw_w_plus(generator, 8, 0.0, StepRandom(0, 99, 0, CPU))
        with torch.no_grad():
            fine = generator.synthesis(w_plus)
            coarse = upsample2(parent.synthesis(w_plus[:, : parent.num_rows]), continued=True)
        moved[weight] = float(torch.nn.functional.avg_pool2d(fine - coarse, 4).abs().mean())
    assert 0 < moved[1000.0] < 0.5 * moved[0.0]


def test_average_halves_the_distance_in_its_half_life():
    old, new = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(old.weight)
    torch.nn.init.ones_(new.weight)
    for _ in range(10):
        update_average(old, new, images=10_000, batch=100, half_kimg=1.0, ramp=0)
    assert old.weight.item() == pytest.approx(0.5, abs=1e-5)


def test_saved_state_survives_a_broken_write(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})
    monkeypatch.setattr(surroundings.torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_state(path, {"step": 2})
    assert load_state(path, CPU) == {"step": 1}
    path.write_bytes(b"PK garbage")
    with pytest.raises(CheckpointError, match="remove it"):
        load_state(path, CPU)


def test_a_state_of_other_options_is_refused(folder, trunk):
    training(options(folder, kimg=0.004), trunk).fit()
    with pytest.raises(KeyMismatchError, match="other options"):
        training(options(folder, w_dim=8), trunk)


def test_journal_cuts_what_a_resumed_run_writes_again(tmp_path):
    journal = Journal(tmp_path / "log.jsonl")
    for kimg in (1.0, 2.0, 3.0):
        journal.write({"kimg": kimg, "loss_d": kimg})
    with journal.path.open("a") as file:
        file.write('{"kimg": 4.0, "lo')  # killed while writing
    journal.cut(2.0)
    assert [line["kimg"] for line in journal.read()] == [1.0, 2.0]
    with pytest.raises(DivergedError, match="loss_g became nan at 5"):
        journal.write({"kimg": 5, "loss_g": float("nan")})


def test_a_signal_and_the_time_limit_end_the_loop(folder, trunk):
    clock = Clock(limit_s=0, save_s=100)
    with clock.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert clock.should_stop()
    run = training(options(folder, seconds=1e-6, kimg=100), trunk)
    assert run.fit() is False
    assert (run.out / "state.pt").exists()


def test_log_sheet_and_options_are_written(folder, trunk):
    run = training(options(folder, kimg=0.084, sheet_kimg=0.04), trunk)
    lines = []
    run.fit(lines.append)
    run.validate()
    assert len(lines) == 21
    assert [record["kimg"] for record in run.journal.read()] == [0.08]
    with Image.open(run.out / "sheets" / "000000.png") as sheet:
        assert sheet.size == (128, 128)
    assert json.loads((run.out / "options.json").read_text())["batch_size"] == 4
    pytest.importorskip("matplotlib")
    from limner.training.plots import plot_log

    with Image.open(plot_log(run.journal.read(), run.out / "log.png")) as picture:
        assert picture.width > 500


def test_randomness_has_no_history():
    a, b = StepRandom(3, 7, 0, CPU), StepRandom(3, 7, 0, CPU)
    assert torch.equal(a.normal(4), b.normal(4))
    others = [StepRandom(3, 8, 0, CPU), StepRandom(3, 7, 1, CPU), StepRandom(4, 7, 0, CPU)]
    first = StepRandom(3, 7, 0, CPU).normal(4)
    assert not any(torch.equal(first, other.normal(4)) for other in others)


def test_learning_rates_decay_and_ramp(folder, trunk):
    run = training(options(folder, kimg=1.0, decay_kimg=0.5, warmup_kimg=0.1), trunk).run
    rates = []
    for run.images in (0, 500, 750, 1000):
        rates.append(run.learning_rate(1.0))
    assert rates == pytest.approx([1.0, 1.0, 0.55, 0.1])
    shares = []
    for run.images in (0, 100, 150, 300):
        shares.append(run.generator_share())
    assert shares == pytest.approx([0, 0, 0.5, 1])


def test_several_processes_need_fabric(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lightning_fabric", None)
    with pytest.raises(MissingExtraError, match=r"limner\[train\]"):
        Runtime.launch(lambda runtime: None, processes=2, device=CPU)


def test_yardstick_tells_a_copy_from_noise(folder, trunk):
    from limner.training.gan.yardstick import Yardstick

    pictures = PictureSet(folder, 16)
    stick = Yardstick(trunk, pictures, samples=6, device=CPU)
    figures = stick.measure(build_generator(options(folder)))
    assert set(figures) == {
        n + s for n in ("frechet", "kernel", "precision", "recall") for s in ("", "_floor")
    }
    assert figures["frechet"] > figures["frechet_floor"]
    same = stick._compare(stick.real)
    assert same["frechet"] == pytest.approx(0, abs=1e-3 * figures["frechet"])
    assert same["precision"] == same["recall"] == 1
