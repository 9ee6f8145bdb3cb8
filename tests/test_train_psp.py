"""Training of the published encoders on tiny networks: passes, losses, stages, resume, files, command."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import W_DIM, make_generator
from PIL import Image
from test_train_encoder import flatten

from limner import checkpoints
from limner.app.commands.train_psp import _export
from limner.errors import KeyMismatchError, OptionError
from limner.losses import w_norm
from limner.nn import deltas
from limner.nn.encoders import Encoder, codes_to_w_plus, refine
from limner.synth.dataset import META_NAME
from limner.training.cores import EncoderTraining
from limner.training.optimizers import Ranger
from limner.training.psp.figures import PspExam
from limner.training.psp.lessons import (
    CodePool,
    PspLessons,
    build_run,
    crop_face,
    describe_encoder,
    draw_count,
)
from limner.training.psp.options import PspOptions, find_head, settle_weights
from limner.training.psp.sources import Sample, Source, find_task
from limner.training.run import Runtime, StepRandom, save_state
from limner.translation import PspTranslator
from limner.translation.classes import CELEBA, OURS, index_of

CPU = torch.device("cpu")
TINY = {"width": 4, "batch_size": 4, "iterations": 2, "body": "resnet34"}
ARCHITECTURES = ("psp", "e4e", "restyle-psp", "restyle-e4e")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve numbered pictures that a tiny generator can nearly paint: its own."""
    where = tmp_path_factory.mktemp("pictures")
    generator = make_generator(seed=7)
    with torch.no_grad():
        image = generator(torch.randn(12, W_DIM, generator=torch.Generator().manual_seed(7))).clamp(-1, 1)
    for number, one in enumerate(image):
        pixels = ((one.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(where / f"{number:06d}.png")
    return where


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, folder):
    """Twelve scenes: photos, their mirrored twins as frontal and toon, label maps of two classes, drawings and masks."""
    root = tmp_path_factory.mktemp("pairs")
    for kind in ("photo", "frontal", "toon", "labels", "sketch", "inpaint"):
        (root / kind).mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        with Image.open(file) as photo:
            photo.save(root / "photo" / file.name)
            for kind in ("frontal", "toon", "sketch"):
                photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / kind / file.name)
        labels = np.zeros((32, 32), np.uint8)
        labels[8:24, 8:24] = index_of("skin", OURS)
        labels[10:12, 10:22] = index_of("brows", OURS)
        Image.fromarray(labels).save(root / "labels" / file.name)
        mask = np.zeros((32, 32), np.uint8)
        mask[: number + 4] = 255
        Image.fromarray(mask).save(root / "inpaint" / file.name)
    lines = [json.dumps({"seed": number}) + "\n" for number in range(12)]
    (root / META_NAME).write_text("".join(lines))
    return root


def make_options(folder, tmp_path, **changes) -> PspOptions:
    values = {"data": (str(folder),), "out": str(tmp_path / "run")} | TINY | changes
    return settle_weights(PspOptions(**values))


def compare(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A distance of pictures (B,) that costs nothing: the colours of the four quarters."""
    return (F.adaptive_avg_pool2d(a, 2) - F.adaptive_avg_pool2d(b, 2)).square().sum((1, 2, 3))


def make_run(options: PspOptions, *, seed: int = 0, init: Encoder | None = None):
    generator = make_generator(seed)
    torch.manual_seed(5)
    encoder = Encoder(**describe_encoder(options, generator, find_task(options).in_channels))
    return build_run(
        options,
        Runtime(CPU, options.precision),
        generator=generator,
        source=Source(options, encoder.in_size),
        encoder=encoder,
        base={"name": "tiny", "digest": deltas.digest(generator)},
        perceptual=compare,
        identity=compare,
        init=init,
    )


def make_training(options: PspOptions, **kwargs) -> EncoderTraining:
    run = make_run(options)
    return EncoderTraining(run, PspLessons(run), **kwargs)


def train(options: PspOptions, **kwargs) -> EncoderTraining:
    training = make_training(options, **kwargs)
    training.setup()
    training.fit()
    return training


# ---- networks and steps


@pytest.mark.parametrize("body", ["ir-se50", "resnet34"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_of_every_architecture(folder, tmp_path, name, body):
    options = make_options(folder, tmp_path, architecture=name, body=body, progressive_start_kimg=0.0)
    run = make_run(options)
    before = {name: value.clone() for name, value in run.encoder.named_parameters()}
    frozen = deltas.digest(run.generator)
    record = PspLessons(run).step(StepRandom(0, 1, 0, CPU))
    wanted = {"l2", "perceptual", "identity"}
    wanted |= {"delta", "critic", "critic_loss", "free_rows"} if "e4e" in name else set()
    passes = {f"{one}_first" for one in wanted - {"critic_loss", "free_rows"}}
    assert set(record) == wanted | (passes if "restyle" in name else set())
    moved = {name.split(".")[0] for name, p in run.encoder.named_parameters() if not p.equal(before[name])}
    assert moved == {"body", "head"}
    assert deltas.digest(run.generator) == frozen
    config = run.encoder.config()
    assert (config["feedback"], config["deltas"]) == ("restyle" in name, "e4e" in name)
    assert run.encoder.in_channels == (6 if "restyle" in name else 3)
    assert torch.equal(run.encoder.mean, run.generator.w_avg.expand(8, -1))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"head": "w"}, ("w", "w", "psp")),
        ({"head": "w+"}, ("w+", "w+", "psp")),
        ({"space": "z+"}, ("pyramid", "z+", "psp")),
        ({"architecture": "e4e", "head": "w"}, ("w", "w+", "e4e")),
    ],
)
def test_other_heads_learn_too(folder, tmp_path, changes, kind):
    options = make_options(folder, tmp_path, w_norm=0.01, **changes)
    run = make_run(options)
    record = PspLessons(run).step(StepRandom(0, 1, 0, CPU))
    assert record["w_norm"] > 0
    assert (find_head(options), run.encoder.space, run.encoder.family) == kind
    assert run.stage() is None
    assert run.encoder.mean.any() == (run.encoder.space != "z+")


@pytest.mark.parametrize("body", ["ir-se50", "resnet34"])
def test_half_precision_comes_close(folder, tmp_path, body):
    records = []
    for precision in ("fp32", "bf16"):
        options = make_options(folder, tmp_path, architecture="restyle-e4e", body=body, precision=precision)
        run = make_run(options)
        records.append(PspLessons(run).step(StepRandom(0, 1, 0, CPU)))
        assert all(p.dtype == torch.float32 for p in run.encoder.parameters())
    # Fresh normalisations of four tiny pictures carry rounding on to the second pass: the first one is compared.
    first = [{name: value for name, value in one.items() if name.endswith("_first")} for one in records]
    assert first[0] == pytest.approx(first[1], rel=0.1, abs=0.02)
    assert first[0] != first[1]


def test_losses_against_plain_words(folder, tmp_path):
    """One pass, by hand: the weights, what is compared, where the mean is."""
    options = make_options(folder, tmp_path, w_norm=0.3, l2=2.0, l2_crop=0.5, perceptual_crop=0.25)
    run = make_run(options)
    lessons = PspLessons(run)
    run.encoder.eval()  # the same normalisation twice
    sample = run.source.draw(4, run.generator, StepRandom(0, 1, 0, CPU), made=0)
    codes = run.encoder(sample.x)
    w_plus = codes_to_w_plus(run.generator, run.encoder, codes)
    found = lessons._code_losses(sample, codes, w_plus, codes_alone=False)
    assert found.keys() == {"w_norm"}
    by_hand = (codes - run.generator.w_avg).flatten(1).norm(dim=1).mean()
    assert found["w_norm"][1].item() == pytest.approx(by_hand.item())
    assert w_norm(codes, run.encoder.mean).item() == pytest.approx(by_hand.item())
    image = run.generator.synthesis(w_plus)
    found = lessons._image_losses(image, sample.truth)
    assert {name: weight for name, (weight, _) in found.items()} == {
        "l2": 2.0,
        "perceptual": 0.8,
        "identity": 0.1,
        "l2_crop": 0.5,
        "perceptual_crop": 0.25,
    }
    assert found["l2"][1].item() == pytest.approx(F.mse_loss(image, sample.truth).item())
    inner = (image - sample.truth)[:, :, 4:28, 4:28]  # 35 to 223 and 32 to 220 of 256
    assert crop_face(image).shape == inner.shape
    assert found["l2_crop"][1].item() == pytest.approx(inner.square().mean().item())
    for weight, other in (("l2", "l2_crop"), ("l2_crop", "l2")):
        run.options = dataclasses.replace(options, **{weight: 0.0})
        less = lessons._image_losses(image, sample.truth)
        assert weight not in less
        assert less.keys() | {weight} == found.keys()
        assert torch.equal(less[other][1], found[other][1])


def gradients(options: PspOptions) -> tuple[float, dict[str, torch.Tensor], int]:
    """Return the loss, the gradients of one step on the first four pictures, and in how many parts they were drawn."""
    run = make_run(options)
    run.encoder.eval()  # stored normalisation, which does not depend on who is beside whom
    for layer in run.generator.synthesis.layers:
        layer.noise_strength.zero_()
    assert run.source.pictures is not None
    whole = run.source.pictures.pixels[:4].float() / 127.5 - 1
    parts = iter(whole.split(options.batch_per_device or 4))
    drawn = []

    def draw(count, *_, made):
        drawn.append(count)
        part = next(parts)
        return Sample(part, part)

    run.source.draw = draw  # type: ignore[method-assign]
    lessons = PspLessons(run)
    lessons.update = lambda: None  # type: ignore[method-assign]
    record = lessons.step(StepRandom(0, 1, 0, CPU))
    found = {name: p.grad for name, p in run.encoder.named_parameters() if p.grad is not None}
    return record["l2"], found, len(drawn)


def test_accumulated_gradients_are_those_of_the_whole_batch(folder, tmp_path):
    loss, whole, one = gradients(make_options(folder, tmp_path))
    again, parts, two = gradients(make_options(folder, tmp_path, batch_per_device=2))
    assert (one, two) == (1, 2)
    assert loss == pytest.approx(again, rel=1e-5)
    assert whole.keys() == parts.keys()
    for name, grad in whole.items():
        torch.testing.assert_close(grad, parts[name], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["psp", "restyle-psp"])
def test_training_tells_pictures_apart(folder, tmp_path, name):
    """Four pictures are learned by heart: nearer than the mean face, and nearer to their own than to the others."""
    changes = {"identity": 0.0, "perceptual": 0.0, "mirror": False, "optimizer": "adam", "lr": 0.003}
    options = make_options(folder, tmp_path, architecture=name, select="0-3", width=8, **changes)
    run = make_run(options)
    lessons = PspLessons(run)
    for step in range(1, 41):
        lessons.step(StepRandom(0, step, 0, CPU))
    sample, _ = run.source.held_out(run.generator)  # no validate: the four themselves
    with torch.no_grad():
        codes = refine(run.encoder, run.generator, sample.x)[-1]
        image = run.generator.synthesis(codes)
        floor = run.generator.synthesis(run.generator.broadcast(run.generator.w_avg[None]))
    errors = (image[:, None] - sample.truth[None]).square().mean((2, 3, 4))
    assert errors.diagonal().mean() < 0.7 * F.mse_loss(floor.expand_as(sample.truth), sample.truth)
    others = errors[~torch.eye(4, dtype=torch.bool)]
    assert errors.diagonal().mean() < 0.7 * others.mean()


def test_later_passes_see_what_the_earlier_ones_made(folder, tmp_path):
    """The training's passes are those of `refine`, which inversion runs."""
    options = make_options(folder, tmp_path, architecture="restyle-psp", iterations=3)
    run = make_run(options)
    run.encoder.eval()
    seen = []
    run.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    for layer in run.generator.synthesis.layers:
        layer.noise_strength.zero_()
    sample = run.source.draw(2, run.generator, StepRandom(0, 1, 0, CPU), made=0)
    last = PspLessons(run)._learn(sample, StepRandom(0, 1, 0, CPU), 1.0, {}, codes_alone=False)
    trained, seen[:] = list(seen), []
    with torch.no_grad():
        codes = refine(run.encoder, run.generator, sample.x, iterations=3)
    assert len(trained) == len(seen) == 3
    for a, b in zip(trained, seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, codes[-1], rtol=1e-4, atol=1e-5)


def test_progressive_deltas_grow(folder, tmp_path):
    options = make_options(
        folder, tmp_path, architecture="e4e", progressive_start_kimg=1.0, progressive_kimg=0.5
    )
    run = make_run(options)
    stages = []
    for kimg in (0, 0.9, 1.0, 1.4, 1.5, 2.1, 100):
        run.images = round(1000 * kimg)
        stages.append(run.stage())
    assert stages == [0, 0, 1, 1, 2, 3, 7]
    sample = run.source.draw(2, run.generator, StepRandom(0, 1, 0, CPU), made=0)
    for kimg, free in ((0, 0), (1.5, 2), (100, 7)):
        run.images = round(1000 * kimg)
        codes = run.encoder(sample.x, stage=run.stage()) - run.encoder.mean
        alike = [torch.equal(codes[:, row], codes[:, 0]) for row in range(8)]
        assert alike == [row == 0 or row > free for row in range(8)]
    run.images = 1500
    losses = PspLessons(run)._code_losses(sample, codes, codes + 1, codes_alone=False)
    by_hand = torch.stack([(codes[:, row] - codes[:, 0]).norm(dim=1).mean() for row in (1, 2)]).sum()
    assert losses["delta"][1].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert make_run(make_options(folder, tmp_path)).stage() is None


def test_the_pool_gives_earlier_codes_half_of_the_time():
    rng = torch.Generator().manual_seed(0)
    pool = CodePool(4)
    first = torch.arange(4.0)[:, None]
    assert torch.equal(pool.swap(first, rng), first)
    old = 0
    for n in range(1, 101):
        shown = pool.swap(torch.full((1, 1), 100.0 + n), rng)
        old += int(shown.item() != 100.0 + n)
    assert 35 < old < 65
    assert len(pool.kept) == 4
    assert CodePool(0).swap(first, rng) is first


def test_ranger_can_centre_gradients():
    """Against the same optimiser on gradients whose mean was taken off by hand; vectors are left alone."""
    weights = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    biases = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    grad, flat = torch.tensor([[1.0, 2.0, 6.0], [0.0, -3.0, 0.0]]), torch.tensor([1.0, 2.0, 3.0])
    one, two = (Ranger([w, b], centralize=c) for w, b, c in zip(weights, biases, (True, False), strict=True))
    for _ in range(8):
        weights[0].grad, weights[1].grad = grad.clone(), grad - grad.mean(1, keepdim=True)
        for bias in biases:
            bias.grad = flat.clone()
        one.step()
        two.step()
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(biases[0], biases[1])
    assert not torch.equal(weights[0], torch.ones(2, 3))


# ---- what is learned from


@pytest.mark.parametrize(
    ("task", "channels", "paired"),
    [
        ("inversion", 3, False),
        ("sketch", 1, False),
        ("sketch", 1, True),
        ("labels", 19, True),
        ("super-resolution", 3, False),
        ("inpaint", 4, False),
        ("inpaint", 4, True),
        ("frontal", 3, False),
        ("frontal", 3, True),
        ("toon", 3, True),
        ("toonify", 3, False),
    ],
)
def test_every_task_learns(folder, pairs, tmp_path, task, channels, paired):
    data = {"pairs": (str(pairs),), "scenes": "0-7", "validate": "8-11"} if paired else {}
    run = make_run(make_options(folder, tmp_path, task=task, **data))
    assert run.encoder.in_channels == channels
    record = PspLessons(run).step(StepRandom(0, 1, 0, CPU))
    assert record["l2"] > 0
    sample, names = run.source.held_out(run.generator)
    assert sample.x.shape == (len(names), channels, 32, 32)
    assert names[0] == ("000008" if paired else "000000.png"[:6])
    drawn = run.source.draw(6, run.generator, StepRandom(0, 2, 0, CPU), made=0)
    if task == "labels":
        assert torch.equal(drawn.x.sum(1), torch.ones(6, 32, 32))
        brows = [drawn.x[:, index_of(name, CELEBA)] for name in ("l_brow", "r_brow")]
        # Left and right are as seen in the picture, mirrored or not.
        assert brows[0][:, :, :16].any()
        assert not brows[0][:, :, 16:].any()
        assert brows[1][:, :, 16:].any()
    if task == "inpaint":
        missing = drawn.x[:, 3:].bool().expand(-1, 3, -1, -1)
        assert missing.any()
        assert torch.equal(drawn.x[:, :3][~missing], drawn.truth[~missing])
        assert not drawn.x[:, :3][missing].any()
    if task == "frontal" and paired:
        assert torch.equal(drawn.x.flip(3), drawn.truth)
    if task == "frontal" and not paired:
        same = [torch.equal(a, b) for a, b in zip(drawn.x, drawn.truth, strict=True)]
        turned = [torch.equal(a, b.flip(2)) for a, b in zip(drawn.x, drawn.truth, strict=True)]
        assert any(same)
        assert any(turned)
        assert all(a or b for a, b in zip(same, turned, strict=True))


def test_painted_faces_need_no_data_and_bring_their_codes(tmp_path):
    changes = {"made_share": 1.0, "codes": 1.0, "codes_kimg": 0.004}
    options = settle_weights(PspOptions(out=str(tmp_path), **changes, **TINY))
    run = make_run(options)
    lessons = PspLessons(run)
    assert lessons.step(StepRandom(0, 1, 0, CPU)).keys() == {"codes"}
    run.images = 4
    assert lessons.step(StepRandom(0, 2, 0, CPU)).keys() == {"codes", "l2", "perceptual", "identity"}
    sample, names = run.source.held_out(run.generator)
    assert sample.truth.shape == (8, 3, 32, 32)
    assert names[0] == "made 0"


def test_small_shares_are_painted_too(folder, tmp_path):
    """A tenth of four pictures is one picture in four steps out of ten, the same steps every time."""
    draws = [draw_count(2.3, StepRandom(0, step, 0, CPU)) for step in range(400)]
    assert set(draws) == {2, 3}
    assert sum(draws) / 400 == pytest.approx(2.3, abs=0.07)
    assert draws == [draw_count(2.3, StepRandom(0, step, 0, CPU)) for step in range(400)]
    random = StepRandom(0, 1, 0, CPU)
    assert [draw_count(share, random) for share in (0.0, 2.0)] == [0, 2]
    assert random.chance() == StepRandom(0, 1, 0, CPU).chance()  # whole numbers take nothing from it
    run = make_run(make_options(folder, tmp_path, made_share=0.1, codes=1.0))
    lessons = PspLessons(run)
    with_codes = ["codes" in lessons.step(StepRandom(0, step, 0, CPU)) for step in range(8)]
    assert set(with_codes) == {True, False}


def test_pictures_that_are_measured_are_not_learned_from(folder, tmp_path):
    with pytest.raises(OptionError, match=r"share 2 pictures, such as 000006\.png"):
        Source(make_options(folder, tmp_path, select="0-7", validate="6-9"), 32)
    Source(make_options(folder, tmp_path, select="0-7", validate="8-9"), 32)


# ---- runs


@pytest.mark.parametrize(
    "changes",
    [
        {
            "optimizer": "ranger",
            "architecture": "e4e",
            "progressive_start_kimg": 0.008,
            "critic_pool": 3,
            "made_share": 0.1,
            "codes": 1.0,
        },
        {"optimizer": "adam", "architecture": "restyle-psp", "train_decoder": True, "decay_kimg": 0.01},
    ],
    ids=["e4e", "restyle-decoder"],
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
    a, b = flatten(straight.state()), flatten(second.state())
    assert a.keys() == b.keys()
    assert len(a) > 200
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name
    with pytest.raises(KeyMismatchError, match="other options"):
        make_training(dataclasses.replace(options, width=8)).setup()


@pytest.mark.filterwarnings("ignore:.*original programs")
def test_notes_of_the_first_start_are_kept(folder, tmp_path):
    options = make_options(folder, tmp_path, kimg=0.004)
    first = make_training(options)
    first.run.notes = {"body": "from ArcFace", "trunk": "lite0 stands in"}
    first.setup()
    first.fit()
    again = make_training(options, export=_export)
    again.run.notes = {"trunk": "another stands in"}
    again.setup()
    assert again.run.notes == {"body": "from ArcFace", "trunk": "another stands in"}
    again.validate()
    notes = checkpoints.load(again.out / "model.safetensors").metadata["provenance"]["notes"]
    assert notes == ["from ArcFace", "another stands in"]


def test_a_trained_decoder_is_averaged_saved_and_read(folder, tmp_path):
    options = make_options(folder, tmp_path, train_decoder=True, kimg=0.012, lr=0.01, optimizer="adam")
    before = make_generator()
    training = train(options, export=_export)
    run = training.run
    for mine in (run.generator, run.painter):
        assert deltas.digest(mine) != deltas.digest(before)
    assert run.painter is not run.generator
    assert deltas.digest(run.painter) != deltas.digest(run.generator)
    with pytest.warns(UserWarning, match="original programs"):
        training.validate()
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = run.average(image)
    for name in ("model.safetensors", "model.pt"):
        found = checkpoints.load(training.out / name)
        assert isinstance(found.encoder, Encoder)
        assert found.generator is not None
        torch.testing.assert_close(found.encoder(image), codes)
        w_plus = codes_to_w_plus(found.generator, found.encoder, codes)
        torch.testing.assert_close(found.generator.synthesis(w_plus), run.painter.synthesis(w_plus))
        assert found.metadata["opts"]["dataset_type"] == "ffhq_encode"
    still = train(dataclasses.replace(options, train_decoder=False, out=str(tmp_path / "still")))
    assert deltas.digest(still.run.painter) == deltas.digest(before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_written_files_give_the_same_codes(folder, tmp_path, name):
    run = make_run(make_options(folder, tmp_path, architecture=name, body="ir-se50"))
    PspLessons(run).step(StepRandom(0, 1, 0, CPU))
    run.average.load_state_dict(run.encoder.state_dict())
    with pytest.warns(UserWarning, match="original programs"):
        _export(run, tmp_path / "model.safetensors", {})
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        wanted = refine(run.average, run.painter, image)
    for file in ("model.safetensors", "model.pt"):
        found = checkpoints.load(tmp_path / file)
        assert isinstance(found.encoder, Encoder)
        assert found.generator is not None
        assert found.encoder.family == name.split("-")[0]
        with torch.no_grad():
            codes = refine(found.encoder.eval(), found.generator, image)
        assert len(codes) == len(wanted) == (2 if "restyle" in name else 1)
        for a, b in zip(codes, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "can"),
    [
        ("sketch", ["sketch"]),
        ("labels", ["labels"]),
        ("super-resolution", ["super-resolution"]),
        ("inpaint", ["inpaint"]),
        ("frontal", ["frontal"]),
        ("toon", ["toon"]),
        ("toonify", ["toon"]),
    ],
)
def test_translate_knows_what_a_trained_encoder_does(folder, pairs, tmp_path, task, can):
    run = make_run(
        make_options(folder, tmp_path, task=task, pairs=(str(pairs),) if task in ("labels", "toon") else ())
    )
    with pytest.warns(UserWarning, match="original programs"):
        _export(run, tmp_path / "model.safetensors", {})
    for file in ("model.safetensors", "model.pt"):
        found = checkpoints.load(tmp_path / file)
        assert isinstance(found.encoder, Encoder)
        assert found.generator is not None
        network = PspTranslator(found.encoder, found.generator, found.metadata["opts"])
        assert network.tasks == can
        assert network.from_toon == (task == "toon")


def test_figures_lie_above_the_mean_face_and_a_sheet_is_drawn(folder, tmp_path):
    options = make_options(folder, tmp_path, task="sketch", validate="8-11", select="0-7")
    run = make_run(options)
    sample, names = run.source.held_out(run.generator)
    about = {
        "task": run.source.task,
        "steps": 1,
        "renders": len(names),
        "perceptual": compare,
        "identity": compare,
    }
    figures = PspExam(run.generator, sample, names, **about).measure(run, tmp_path / "sheet.png")
    assert {"psnr", "psnr_floor", "ssim", "perceptual", "identity_floor"} <= set(figures)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 4 * 128  # drawing, truth, mean face, result
    alone = PspExam(
        run.generator, dataclasses.replace(sample, x=sample.x[:1], truth=sample.truth[:1]), names[:1], **about
    )
    both = alone.rows(run)[-1]
    torch.testing.assert_close(both, PspExam(run.generator, sample, names, **about).rows(run)[-1][:1])


def test_a_run_starts_from_another_encoder(folder, tmp_path):
    """Weights are taken over, the mean w is the new generator's; another architecture is refused."""
    options = make_options(folder, tmp_path)
    old = make_run(options, seed=3).encoder
    run = make_run(options, seed=1, init=old)
    for mine, other in zip(run.encoder.parameters(), old.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(run.encoder.mean, run.generator.w_avg.expand(8, -1))
    with pytest.raises(KeyMismatchError, match="deltas False, here True"):
        make_run(dataclasses.replace(options, architecture="e4e"), init=old)
