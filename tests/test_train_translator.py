"""Training of the translator: data, the teacher's codes, lessons, resume, figures, command."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import W_DIM, make_generator
from PIL import Image

from limner.app.commands.train_translator import check_held_out
from limner.errors import KeyMismatchError, MediaError, OptionError
from limner.losses import maps_distance
from limner.nn import deltas
from limner.nn.compact import CompactCore, CompactEncoder
from limner.nn.features import Lite0
from limner.options import from_mapping, read_recipe
from limner.training.cores import EncoderTraining
from limner.training.run import Runtime, StepRandom, save_state
from limner.training.translator.data import Scenes, find_codes, find_tasks, read_labels, shift_inputs
from limner.training.translator.figures import TranslatorExam, TruthIndex, nearest_share
from limner.training.translator.lessons import Lesson, TranslatorLessons, build_run
from limner.training.translator.options import TranslatorOptions
from limner.translation import TASKS, mirror_input
from limner.translation.tasks import show_input

TINY = {"width": 8, "hidden": 16, "rank": 4, "inner": 4, "head_rank": 2, "batch_size": 12, "warmup_kimg": 0.0}
CPU = torch.device("cpu")
COUNT = 8


def paint(seed: int) -> torch.Tensor:
    """Return pictures that the tiny generator can paint, uint8 (COUNT, 3, 32, 32)."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        image = make_generator()(torch.randn(COUNT, W_DIM, generator=rng)).clamp(-1, 1)
    return ((image + 1) * 127.5).round().byte()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Eight scenes: photo, frontal twin, toon picture, label map."""
    root = tmp_path_factory.mktemp("pairs")
    for seed, kind in enumerate(("photo", "frontal", "toon")):
        (root / kind).mkdir()
        for number, pixels in enumerate(paint(seed)):
            Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0))).save(
                root / kind / f"{number:06d}.png"
            )
    (root / "labels").mkdir()
    for number in range(COUNT):
        labels = np.zeros((64, 64), dtype=np.uint8)
        labels[8:56, 8:56] = 1
        labels[20:28, 12:28] = 5  # the right eye lies on the left
        labels[20:28, 36:52] = 4
        labels[: 4 + number] = 10
        picture = Image.fromarray(labels)
        picture.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
        picture.save(root / "labels" / f"{number:06d}.png")
    return root


def make_options(tmp_path, **changes) -> TranslatorOptions:
    return TranslatorOptions(**({"out": str(tmp_path / "run"), "codes_kimg": 0.0} | TINY | changes))


def make_teacher(generator, *, seed: int = 3) -> CompactEncoder:
    torch.manual_seed(5)
    trunk = Lite0().eval()
    torch.manual_seed(seed)
    core = CompactCore(num_rows=8, w_dim=W_DIM, input_px=32, width=8, hidden=16, rank=4)
    for last in (core.base[-1], *core.decode):
        torch.nn.init.normal_(last.get_parameter("weight"), std=0.2)
    core.w_avg.copy_(generator.w_avg)
    base = {"name": "tiny", "digest": deltas.digest(generator)}
    return CompactEncoder(trunk=trunk, core=core, base=base).requires_grad_(False)


def make_lesson(options: TranslatorOptions, pairs, keep) -> Lesson:
    generator = make_generator()
    teacher = make_teacher(generator)
    tasks = {name: task for name, task in find_tasks(options.task).items() if not task.made}
    lesson = Lesson(photos=paint(9), scene_codes={})

    def codes(pixels, what, mirror=False):
        return find_codes(
            pixels,
            teacher=teacher,
            generator=generator,
            steps=1,
            mirror=mirror,
            keep=keep,
            what=what,
            device=CPU,
        )

    lesson.photo_codes = codes(lesson.photos, "photos")
    if tasks:
        lesson.scenes = Scenes(pairs, 32, tasks)
        for kind in {task.truth for task in tasks.values()}:
            lesson.scene_codes[kind] = codes(lesson.scenes.pixels[kind], kind)
            lesson.scene_codes[f"{kind}-mirrored"] = codes(lesson.scenes.pixels[kind], kind, mirror=True)
    return lesson


def embed(image: torch.Tensor) -> torch.Tensor:
    """Return an "identity" of 12 numbers: the colours of the four quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(1)


def make_run(options: TranslatorOptions, pairs, tmp_path, *, init=None, seed: int = 0):
    generator = make_generator(seed)
    torch.manual_seed(5)
    return build_run(
        options,
        Runtime(CPU),
        generator=generator,
        trunk=Lite0().eval(),
        base={"name": "tiny", "digest": deltas.digest(generator)},
        lesson=make_lesson(options, pairs, tmp_path),
        embedder=embed,
        init=init,
    )


def make_training(options: TranslatorOptions, pairs, tmp_path, **kwargs) -> EncoderTraining:
    run = make_run(options, pairs, tmp_path)
    return EncoderTraining(run, TranslatorLessons(run), **kwargs)


def flatten(state, prefix="") -> dict:
    """Return every tensor and number of a nested state by its path."""
    if isinstance(state, dict):
        parts = [flatten(value, f"{prefix}/{key}") for key, value in state.items()]
    elif isinstance(state, (list, tuple)):
        parts = [flatten(value, f"{prefix}/{n}") for n, value in enumerate(state)]
    else:
        return {prefix: state}
    return {name: value for part in parts for name, value in part.items()}


def test_resume_gives_the_same_bits(pairs, tmp_path):
    options = make_options(
        tmp_path,
        task=("sketch", "labels"),
        batch_size=2,
        kimg=0.006,
        drop=0.2,
        shown_share=0.5,
        codes_kimg=0.002,
    )
    straight = make_training(dataclasses.replace(options, out=str(tmp_path / "straight")), pairs, tmp_path)
    straight.setup()
    assert straight.fit()
    # Of three steps, one is saved, a second is lost with the process; then the same command goes on.
    killed = make_training(options, pairs, tmp_path)
    killed.setup()

    def kill(record):
        if killed.run.step == 1:
            save_state(killed.out / "state.pt", killed.state())
        if killed.run.step == 2:
            raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        killed.fit(kill)
    second = make_training(options, pairs, tmp_path)
    second.setup()
    assert second.run.step == 1
    assert second.fit()
    assert second.run.step == straight.run.step == 3
    a, b = flatten(straight.state()), flatten(second.state())
    assert a.keys() == b.keys()
    assert len(a) > 100
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


def test_a_state_of_another_run_is_refused(pairs, tmp_path):
    options = make_options(tmp_path, kimg=0.012, task=("toon",), batch_size=4)
    training = make_training(options, pairs, tmp_path)
    training.setup()
    training.fit()
    with pytest.raises(KeyMismatchError, match="other options"):
        make_training(dataclasses.replace(options, width=16), pairs, tmp_path).setup()


@pytest.mark.parametrize("task", ["super-resolution", "labels"])
def test_a_task_can_be_learned(pairs, tmp_path, task):
    """The codes that the teacher found come nearer, for pictures as for pairs."""
    options = make_options(
        tmp_path, task=(task,), batch_size=8, lr=0.003, shown_share=0.0, drop=0.0, shift=0.0
    )
    lessons = TranslatorLessons(make_run(options, pairs, tmp_path))
    records = [lessons.step(StepRandom(9, 1, 0, CPU)) for _ in range(16)]
    assert records[-1]["codes"] < 0.5 * records[0]["codes"]
    assert set(records[0]) == {"codes", f"codes_{task}"}


def test_painted_pictures_come_near(pairs, tmp_path):
    options = make_options(
        tmp_path, task=("toon",), batch_size=4, lr=0.01, shown_share=1.0, drop=0.0, codes=0.0
    )
    lessons = TranslatorLessons(make_run(options, pairs, tmp_path))
    records = [lessons.step(StepRandom(9, 1, 0, CPU)) for _ in range(10)]
    assert records[-1]["l2"] < 0.9 * records[0]["l2"]
    assert {"l1", "perceptual", "identity"} <= set(records[0])


def test_batch_holds_what_belongs_together(pairs, tmp_path):
    options = make_options(tmp_path, batch_size=24, made_share=0.25, shift=0.0)
    run = make_run(options, pairs, tmp_path)
    lesson = run.lesson
    batch = TranslatorLessons(run).make_batch(StepRandom(0, 1, 0, CPU))
    assert [name for name, _ in batch.inputs] == list(TASKS)
    assert [x.shape[1] for _, x in batch.inputs] == [task.in_channels for task in TASKS.values()]
    assert batch.truth.shape == (24, 3, 32, 32)
    assert batch.w_plus.shape == (24, 8, W_DIM)
    truths = dict(zip(TASKS, batch.truth.chunk(6), strict=True))
    codes = dict(zip(TASKS, batch.w_plus.chunk(6), strict=True))
    inputs = dict(batch.inputs)
    # Frontal: input, truth and codes are those of one scene, mirrored or not.
    found = 0
    for x, truth, w_plus in zip(inputs["frontal"], truths["frontal"], codes["frontal"], strict=True):
        for number in range(COUNT):
            for name, turn in (("frontal", False), ("frontal-mirrored", True)):
                pixels = [
                    lesson.scenes.pixels[kind][number].float() / 127.5 - 1 for kind in ("photo", "frontal")
                ]
                photo, frontal = (one.flip(2) if turn else one for one in pixels)
                if torch.equal(truth, frontal) and torch.equal(x, photo):
                    assert torch.equal(w_plus, lesson.scene_codes[name][number].float())
                    found += 1
    assert found == 4
    # One in four of the tasks made of photos is generated, the same for all of them; its codes paint it.
    for name in ("super-resolution", "inpaint"):
        assert torch.equal(truths[name][3], truths["sketch"][3])
    painted = run.generator.synthesis(codes["sketch"]).clamp(-1, 1)
    difference = (painted - truths["sketch"]).abs().mean((1, 2, 3))
    assert difference[3] < 0.5 * difference[:3].mean()


def test_mirrored_label_maps_swap_their_sides(pairs, tmp_path):
    options = make_options(tmp_path, task=("labels",), batch_size=8, shift=0.0)
    run = make_run(options, pairs, tmp_path)
    batch = TranslatorLessons(run).make_batch(StepRandom(0, 1, 0, CPU))
    right, left = 4, 3  # channels of eye_right (5) and eye_left (4)
    seen = set()
    for x, w_plus in zip(batch.inputs[0][1], batch.w_plus, strict=True):
        # Mirrored or not, the subject's right eye lies on the left of the picture.
        assert x[right, :, :16].sum() > 0
        assert x[left, :, :16].sum() == 0
        own = [
            key
            for key, codes in run.lesson.scene_codes.items()
            if any(torch.equal(w_plus, one.float()) for one in codes)
        ]
        seen |= set(own)
    assert seen == {"photo", "photo-mirrored"}
    torch.testing.assert_close(mirror_input("labels", mirror_input("labels", x[None])), x[None])


def test_codes_are_the_teachers_and_are_kept(tmp_path):
    generator = make_generator()
    teacher = make_teacher(generator)
    pixels, told = paint(1), []
    settings = {"generator": generator, "mirror": True, "keep": tmp_path, "what": "photo", "device": CPU}
    settings["on_pictures"] = lambda *how_far: told.append(how_far)
    first = find_codes(pixels, teacher=teacher, steps=2, **settings)
    image = (pixels.float() / 127.5 - 1).flip(3)
    torch.testing.assert_close(
        first.float(), teacher.encode(generator, image, steps=2)[-1], atol=5e-3, rtol=1e-3
    )
    assert told == [(COUNT, COUNT, "photo")]
    assert torch.equal(find_codes(pixels, teacher=teacher, steps=2, **settings), first)
    assert len(told) == 1  # read, not found again
    other = find_codes(pixels, teacher=make_teacher(generator, seed=4), steps=2, **settings)
    assert not torch.equal(other, first)
    with pytest.raises(KeyMismatchError, match="belongs to the generator"):
        find_codes(pixels, teacher=teacher, steps=2, **(settings | {"generator": make_generator(1)}))


def test_labels_are_not_blended_and_folders_are_checked(pairs, tmp_path):
    names = [f"{number:06d}.png" for number in range(COUNT)]
    labels = read_labels([(pairs / "labels", names)], 32)
    assert labels.shape == (COUNT, 32, 32)
    assert set(labels.unique().tolist()) == {0, 1, 4, 5, 10}
    (tmp_path / "strange").mkdir()
    Image.fromarray(np.full((8, 8), 3, np.uint8)).save(tmp_path / "strange/000001.png")
    with pytest.raises(MediaError, match=r"000001\.png: index 3 on 100\.0 % of the pixels is no class"):
        read_labels([(tmp_path / "strange", ["000001.png"])], 32)
    with pytest.raises(MediaError, match="expected a label map"):
        read_labels([(pairs / "photo", names)], 32)
    with pytest.raises(OptionError, match="no .*labels"):
        Scenes(pairs / "photo", 32, {"labels": TASKS["labels"]})
    for kind, count in (("photo", 2), ("toon", 1)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            Image.new("RGB", (32, 32)).save(tmp_path / kind / f"{number}.png")
    with pytest.raises(OptionError, match="same scenes"):
        Scenes(tmp_path, 32, {"toon": TASKS["toon"]})


def copy_pairs(pairs, root, names: dict[int, int]):
    """Copy scenes of ``pairs`` under other numbers, old -> new; return ``root``."""
    for kind in ("photo", "frontal", "toon", "labels"):
        (root / kind).mkdir(parents=True)
        for old, new in names.items():
            shutil.copyfile(pairs / kind / f"{old:06d}.png", root / kind / f"{new:06d}.png")
    return root


def test_scenes_come_from_several_folders(pairs, tmp_path):
    tasks = find_tasks(("labels", "frontal", "toon"))
    # The other folder has other people under the numbers 2 and 3, and two numbers of its own.
    other = copy_pairs(pairs, tmp_path / "other", {4: 2, 5: 3, 6: 100, 7: 101})
    alone, both = Scenes(pairs, 32, tasks), Scenes([pairs, other], 32, tasks, select="0-3,100-101")
    assert both.names == ["000000", "000001", "000002", "000003", "000002", "000003", "000100", "000101"]
    assert both.counts == {str(pairs): 4, str(other): 4}
    for kind, found in both.pixels.items():
        assert torch.equal(found, alone.pixels[kind])
    with pytest.raises(OptionError, match="other: no scene is selected by 4-7"):
        Scenes([pairs, other], 32, tasks, select="4-7")
    held_out = Scenes([pairs, other], 32, tasks, select="4-7", every=False)
    assert held_out.counts == {str(pairs): 4, str(other): 0}
    assert torch.equal(held_out.pixels["toon"], alone.pixels["toon"][4:])
    with pytest.raises(OptionError, match="no scene is selected by 500-600"):
        Scenes([pairs, other], 32, tasks, select="500-600", every=False)
    with pytest.raises(OptionError, match="there is no folder .*; make it with limner synth heads .*missing"):
        Scenes([pairs, tmp_path / "missing"], 32, tasks)
    (other / "toon" / "000100.png").rename(other / "toon" / "000102.png")
    with pytest.raises(OptionError, match="other/toon does not hold the same scenes as .*other/frontal"):
        Scenes([pairs, other], 32, tasks)


def test_scenes_that_are_being_rendered_wait(pairs, tmp_path):
    root = copy_pairs(pairs, tmp_path / "half", {0: 10, 1: 11, 2: 12})
    (root / "toon" / "000012.png").unlink()
    lines = ['{"seed":10}', '{"seed":11}', '{"seed":1']
    (root / "meta.jsonl").write_text("\n".join(lines))
    scenes = Scenes(root, 32, find_tasks(("labels", "frontal", "toon")))
    assert scenes.names == ["000010", "000011"]


def test_codes_of_equal_names_in_two_folders_stay_apart(pairs, tmp_path):
    """Folders that share most pictures, numbers and count have codes of their own."""
    tasks, generator = find_tasks(("toon",)), make_generator()
    first = copy_pairs(pairs, tmp_path / "a", {number: number for number in range(4)})
    second = copy_pairs(pairs, tmp_path / "b", {0: 0, 1: 1, 2: 2, 7: 3})
    codes = [
        find_codes(
            Scenes(root, 32, tasks).pixels["photo"],
            teacher=make_teacher(generator),
            generator=generator,
            steps=1,
            mirror=False,
            keep=tmp_path,
            what="photo",
            device=CPU,
        )
        for root in (first, second)
    ]
    assert torch.equal(codes[0][:3], codes[1][:3])
    assert not torch.equal(codes[0][3], codes[1][3])


def test_inputs_are_shifted_by_no_more_than_asked():
    x = torch.zeros(64, 1, 50, 50)
    x[:, :, 25, 25] = 1
    y = shift_inputs(x, 0.1, torch.Generator().manual_seed(0))
    mass = y.sum((1, 2, 3))
    assert (mass > 0.2).all()
    at = torch.arange(50.0)
    centre = torch.stack([(y.sum((1, 3)) * at).sum(1), (y.sum((1, 2)) * at).sum(1)], 1) / mass[:, None]
    moved = (centre - 25).abs()
    assert 4 < moved.max() < 0.1 * 50 * 1.25 + 1  # zoom by up to a fifth comes on top
    assert torch.equal(shift_inputs(x, 0.0, torch.Generator()), x)


def test_wrong_options_are_refused(pairs, tmp_path):
    with pytest.raises(OptionError, match="task is cat, expected all or some of sketch"):
        find_tasks(("cat",))
    assert list(find_tasks(("toon", "sketch"))) == ["sketch", "toon"]
    with pytest.raises(OptionError, match="cannot be shared by 6 tasks"):
        make_run(make_options(tmp_path, batch_size=8), pairs, tmp_path)
    options = make_options(tmp_path, task=("toon",))
    generator = make_generator()
    parts = {"generator": generator, "trunk": Lite0().eval(), "base": {}, "lesson": Lesson()}
    with pytest.raises(OptionError, match="pairs must be given: the task toon"):
        build_run(options, Runtime(CPU), **parts)


def test_a_run_starts_from_an_encoder_or_another_translator(pairs, tmp_path):
    """An encoder's body is taken over, all of a translator of any generator; another size is refused."""
    options = make_options(tmp_path)
    teacher = make_teacher(make_generator())
    run = make_run(options, pairs, tmp_path, init=teacher.core)
    photo = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        ours, theirs = run.encoder("toon", photo), teacher.encode(run.generator, photo, steps=1)[0]
    scale = run.encoder.core.w_std / teacher.core.w_std
    torch.testing.assert_close(
        ours, run.generator.w_avg + scale * (theirs - run.generator.w_avg), atol=1e-4, rtol=1e-4
    )
    old = run.encoder.core
    with torch.no_grad():
        for number, parameter in enumerate(old.parameters()):
            parameter.fill_(0.001 * number)
    new = make_run(options, pairs, tmp_path, init=old, seed=1)
    for mine, other in zip(new.encoder.core.parameters(), old.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(new.encoder.core.w_avg, new.generator.w_avg)
    assert not torch.equal(new.encoder.core.w_avg, old.w_avg)
    with pytest.raises(KeyMismatchError, match="width 8, here 16"):
        make_run(make_options(tmp_path, width=16), pairs, tmp_path, init=old)
    with pytest.raises(KeyMismatchError, match="hidden 16, here 8"):
        make_run(make_options(tmp_path, hidden=8), pairs, tmp_path, init=teacher.core)


def test_distances_are_those_of_the_losses():
    torch.manual_seed(5)
    trunk = Lite0().eval()
    a, b = paint(1).float() / 127.5 - 1, paint(2).float() / 127.5 - 1
    found = TruthIndex(trunk, b, side=64).distances(a[:3])
    large = [
        torch.nn.functional.interpolate(x, (64, 64), mode="bilinear", align_corners=False) for x in (a, b)
    ]
    for row in range(3):
        one = [x.expand(COUNT, -1, -1, -1) for x in trunk(large[0][row : row + 1])]
        torch.testing.assert_close(found[row], maps_distance(one, trunk(large[1])), atol=1e-5, rtol=1e-3)


def test_nearest_share_counts_own_faces_alone():
    distances = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 3.0], [9.0, 9.0, 8.0]])
    assert nearest_share(distances) == pytest.approx(2 / 3)  # a tie is not nearer
    assert nearest_share(torch.tensor([[5.0, 1.0]]), first=1) == 1


def test_figures_lie_between_floor_and_ceiling_and_sheets_are_written(pairs, tmp_path):
    """What repeats the truth is nearest to it each time; the mean face is nearest to nothing of its own."""
    options = make_options(tmp_path)
    run = make_run(options, pairs, tmp_path)
    scenes = Scenes(pairs, 32, run.tasks)
    teacher = make_teacher(run.generator)
    exam = TranslatorExam(run.generator, run.encoder.trunk, scenes, run.tasks, count=5, teacher=teacher)
    figures = exam.measure(run.average, tmp_path / "sheet.png")
    for name in TASKS:
        assert 0 <= figures[f"{name}_nearest"] <= 1
        assert figures[f"{name}_perceptual"] > 0
    # A new translator makes the mean face of everything.
    assert figures["toon_perceptual"] == pytest.approx(figures["photo_mean_perceptual"], rel=1e-3)
    assert figures["photo_mean_nearest"] <= 1 / 5
    assert {"frontal_mean_nearest", "frontal_teacher_nearest", "photo_teacher_perceptual"} <= set(figures)
    for kind, truth in exam.truth.items():
        assert nearest_share(exam.index[kind].distances(truth)) == 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 18 * 96
        assert sheet.width > 5 * 96


def test_shown_inputs_are_pictures():
    labels = torch.zeros(1, 12, 4, 4)
    labels[:, 9] = 1  # hair
    assert ((show_input(TASKS["labels"], labels)[0, :, 0, 0] + 1) * 127.5).round().tolist() == [120, 40, 160]
    assert show_input(TASKS["sketch"], torch.ones(1, 1, 4, 4)).min() == 1
    assert show_input(TASKS["inpaint"], torch.zeros(1, 4, 4, 4)).shape == (1, 3, 4, 4)


def test_recipe_loads():
    options = from_mapping(TranslatorOptions, read_recipe("recipes/translate-128.yaml"))
    assert list(find_tasks(options.task)) == list(TASKS)
    assert (options.scenes, options.validate) == ("20000-20899", "20900-20999")


def test_command_trains_resumes_and_exports(pairs, tmp_path, capsys):
    from limner import checkpoints, zoo
    from limner.app.cli import main
    from limner.checkpoints.compact import save_encoder
    from limner.checkpoints.translator import load_translator

    generator = make_generator()
    checkpoints.save(checkpoints.Checkpoint(generator=generator), tmp_path / "base.safetensors")
    teacher = make_teacher(generator)
    save_encoder(teacher, tmp_path / "encoder.safetensors", provenance={})
    out = tmp_path / "run"
    words = ["train", "translator", "--base", tmp_path / "base.safetensors", "--threads", "1", "--out", out]
    words += ["--teacher", tmp_path / "encoder.safetensors", "--init", tmp_path / "encoder.safetensors"]
    words += ["--pairs", pairs, "--data", pairs / "photo", "--task", "sketch,frontal", "--scenes", "0-5"]
    words += ["--select", "0-5", "--batch-size", "2", "--width", "8", "--hidden", "16", "--rank", "4"]
    words += ["--inner", "4", "--codes-kimg", "0", "--identity", "0", "--teacher-steps", "1"]
    for more in (["--kimg", "0.002"], ["--kimg", "0.004", "--validate", "6-7"]):
        assert main([str(word) for word in [*words, *more]]) == 0
    printed = capsys.readouterr().out
    assert "starting anew" in printed
    assert "resuming at 0.0 kimg" in printed
    assert "frontal: nearest to its own face" in printed
    translator = load_translator(out / "model.safetensors", trunk=zoo.load("lite0"))
    assert translator.tasks == ["sketch", "frontal"]
    assert translator.base == {"name": "base", "digest": deltas.digest(generator)}
    assert translator("sketch", torch.ones(1, 1, 32, 32)).shape == (1, 8, W_DIM)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"sketch_nearest", "photo_mean_perceptual", "frontal_teacher_nearest"} <= set(records[-1])
    assert len(list((out / "sheets").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenes": "0-5", "validate": "5-7"}, "scenes 0-5 share 1 scenes, such as 000005"),
        ({"validate": "6-7"}, r"scenes \(all\) share 2 scenes, such as 000006"),
        (
            {"task": ("sketch",), "select": "0-5", "validate": "4-7"},
            "select 0-5 share 2 scenes, such as 000004",
        ),
        ({"task": ("sketch",), "scenes": "0-7", "select": "0-3", "validate": "4-7"}, ""),
        ({"scenes": "0-5", "select": "0-5", "validate": "6-7"}, ""),
        ({}, ""),
        ({"more": True, "scenes": "0-5,100-101", "select": "0-5", "validate": "6-7"}, ""),
        ({"more": True, "scenes": "0-5", "select": "0-5", "validate": "6-7,100-101"}, ""),
        (
            {"more": True, "scenes": "0-3,100-101", "validate": "6-7,101-105"},
            "share 1 scenes, such as 000101",
        ),
        ({"more": True, "select": "100-100", "scenes": "0-3", "validate": "100-101"}, "select 100-100 share"),
    ],
)
def test_scenes_of_figures_are_not_learned_from(pairs, tmp_path, changes, message):
    places = [str(pairs)]
    if "more" in changes:
        places.append(str(copy_pairs(pairs, tmp_path / "more", {0: 100, 1: 101})))
    photos = tuple(f"{place}/photo" for place in places)
    chosen = {name: value for name, value in changes.items() if name != "more"}
    options = make_options(tmp_path, pairs=tuple(places), data=photos, **chosen)
    with pytest.raises(OptionError, match=message) if message else contextlib.nullcontext():
        check_held_out(options, find_tasks(options.task))
