"""The Image2StyleGAN study: moves, holes, cells that are kept, statements that are judged, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import RESOLUTION, W_DIM, make_generator
from PIL import Image
from test_evaluation import TinyEmbedder

from limner import media
from limner.app.commands import study as command
from limner.errors import OptionError
from limner.evaluation import Store, write_report
from limner.evaluation.report import Checks, Table
from limner.evaluation.study import Setting, Study, make_settings, randomize, run_study
from limner.evaluation.study_claims import judge, psnr_where
from limner.evaluation.study_options import EXPERIMENTS, StudyOptions
from limner.evaluation.study_targets import FACES, OTHERS, Targets, move_image, read_other, read_targets
from limner.inversion import TrunkDistance
from limner.pipeline import Models


class TinyTrunk(torch.nn.Module):
    """Four real feature maps of random, fixed convolutions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(3 if not i else 6, 6, 3, stride=2, padding=1) for i in range(4)
        )
        self.requires_grad_(False)

    def forward(self, image):
        maps = []
        for conv in self.convs:
            image = torch.nn.functional.leaky_relu(conv(image))
            maps.append(image)
        return maps


@pytest.fixture
def models(generator) -> Models:
    models = Models(generator=generator, trunk=TinyTrunk(), base="tiny", trunk_name="tiny")  # type: ignore[arg-type]
    models.__dict__["embedder"] = TinyEmbedder()  # where `cached_property` keeps it
    return models


@pytest.fixture
def options(tmp_path, generator) -> StudyOptions:
    folder = tmp_path / "heads"
    folder.mkdir()
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        image = generator(torch.randn(3, W_DIM, generator=rng)).clamp(-1, 1)
    for number, pixels in enumerate(media.to_pixels(image)):
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
    Image.fromarray(np.tile(np.arange(48, dtype=np.uint8)[:, None, None] * 5, (1, 64, 3))).save(
        tmp_path / "ramp.png"
    )
    return StudyOptions(
        heads=folder, held_out="0-2", faces=2, others=(f"ramp={tmp_path / 'ramp.png'}",), steps=2
    )


def run(models, options, store, on_progress=lambda steps, name: None):
    targets = read_targets(options, RESOLUTION)
    judge_distance = TrunkDistance(TinyTrunk(), name="tiny", weights=[0.25] * 4)
    return run_study(models, targets, options, store, judge_distance=judge_distance, on_progress=on_progress)


def test_moves_are_those_that_are_named():
    image = torch.rand(1, 3, 16, 16)
    moved = move_image(image, shift=0.25, turn_deg=0, zoom=1)
    torch.testing.assert_close(moved[..., 4:], image[..., :-4])
    torch.testing.assert_close(moved[..., :4], image[..., :1].expand(-1, -1, -1, 4))  # the edge, repeated
    torch.testing.assert_close(move_image(image, shift=0, turn_deg=90, zoom=1), image.rot90(1, (2, 3)))
    torch.testing.assert_close(move_image(image, shift=0, turn_deg=180, zoom=1), image.flip(2, 3))


def test_magnified_pictures_show_the_middle_and_shrunk_ones_show_all():
    x = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    twice = move_image(x, shift=0, turn_deg=0, zoom=2)
    torch.testing.assert_close(twice[..., 1:-1], (x / 2)[..., 1:-1], atol=0.02, rtol=0)
    half = move_image(x, shift=0, turn_deg=0, zoom=0.5)
    torch.testing.assert_close(half[..., 20:44], (x * 2)[..., 20:44], atol=0.05, rtol=0)


def test_other_pictures_are_cut_square(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30] = 200
    Image.fromarray(pixels).save(tmp_path / "bar.png")
    kind, found = read_other(f"bar={tmp_path / 'bar.png'}", 16)
    assert kind == "bar"
    assert found.shape == (16, 16, 3)
    assert (found == 200).all()
    _, left = read_other(f"bar={tmp_path / 'bar.png'}@0:5:10", 10)
    assert (left == 0).all()
    with pytest.raises(OptionError, match="only 40 x 20 px"):
        read_other(f"bar={tmp_path / 'bar.png'}@35:0:10", 16)
    with pytest.raises(OptionError, match="KIND=FILE"):
        read_other("bar", 16)


def test_pictures_of_scikit_image_are_found():
    pytest.importorskip("skimage")
    assert read_other("cat=skimage:chelsea@110:20:240", 32)[1].shape == (32, 32, 3)
    with pytest.raises(OptionError, match="no picture 'dog'"):
        read_other("dog=skimage:dog", 32)


def test_holes_are_black_and_the_rest_stays(options):
    targets = read_targets(options, RESOLUTION)
    nose, faces = targets["nose blacked out"], targets[FACES]
    assert nose.hole is not None
    inside = nose.hole.bool().expand_as(nose.image)
    assert (nose.image[inside] == -1).all()
    assert torch.equal(nose.image[~inside], faces.image[~inside])


def test_random_weights_differ_only_in_the_synthesis(generator):
    other = randomize(generator, 1)
    z = torch.randn(2, W_DIM)
    torch.testing.assert_close(other.mapping(z), generator.mapping(z))
    assert torch.equal(other.w_avg, generator.w_avg)
    assert not torch.equal(other.synthesis.layers[0].weight, generator.synthesis.layers[0].weight)
    again = randomize(generator, 1)
    assert torch.equal(again.synthesis.layers[0].weight, other.synthesis.layers[0].weight)


def test_a_cell_is_what_the_search_itself_gives(models, options):
    from limner.inversion import InversionOptions, invert

    targets = read_targets(options, RESOLUTION)
    judge_distance = TrunkDistance(TinyTrunk(), name="tiny", weights=[0.25] * 4)
    study = Study(models, options, Store(None), judge_distance=judge_distance)
    found = study.embed(Setting("loss", "pixels alone", maps=()), targets[FACES])
    settings = InversionOptions(
        steps=2, perceptual=0.0, fit_noise=False, patience=0, mean_samples=4000, seed=options.seed
    )
    expected = invert(models.generator, targets[FACES].image, settings, perceptual=None)
    torch.testing.assert_close(found.image, expected.image, atol=1 / 127, rtol=0)
    torch.testing.assert_close(
        found.figures["psnr"], torch.tensor([one.psnr for one in expected.report]), atol=0.05, rtol=0
    )


def test_a_study_goes_on_where_it_was_stopped(tmp_path, models, options):
    chosen = StudyOptions(**{**vars(options), "experiments": ("space", "loss")})
    store = Store(tmp_path / "cells")
    steps = []

    def stop(count, name):
        steps.append(count)
        if sum(steps) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(models, chosen, store, stop)
    assert store.made == 3
    first = run(models, chosen, store)
    assert store.found == 4, "three of the first run, and w+ is the whole loss"
    made = store.made
    again = run(models, chosen, store)
    assert store.made == made
    assert again[0].data == first[0].data
    cells = first[0].data["cells"]
    same = [cell for cell in cells if (cell["setting"]) in ("w+", "whole loss")]
    assert len(same) == 2
    assert same[0]["psnr"] == same[1]["psnr"]


def test_every_experiment_has_figures_claims_and_a_sheet(tmp_path, models, options):
    steps = []
    sections = run(models, options, Store(None), lambda count, name: steps.append(count))
    assert [section.name for section in sections[1:]] == list(EXPERIMENTS)
    layers = {f"conv{i}": (i,) for i in range(4)}
    assert sum(steps) == options.steps * len(make_settings(options, layers))
    data = sections[0].data
    assert {cell["experiment"] for cell in data["cells"]} == set(EXPERIMENTS)
    assert all(np.isfinite(cell["psnr"]) for cell in data["cells"])
    assert {claim["experiment"] for claim in data["claims"]} == set(EXPERIMENTS)
    files = write_report(tmp_path / "out", sections, {}, command="limner study", title="T", name="study")
    assert {file.name for file in files} == {
        "study.html",
        "study.md",
        "study.json",
        *(f"study-{name}.jpg" for name in EXPERIMENTS),
    }
    written = json.loads((tmp_path / "out/study.json").read_text())
    assert len(written["sections"]["table"]["claims"]) == len(data["claims"])
    assert "# T" in (tmp_path / "out/study.md").read_text()


class Known:
    """A cell with figures that the test knows."""

    def __init__(self, targets=None, image=None, **figures):
        self.targets, self.image, self.figures = targets, image, figures

    def mean(self, figure, chosen=None):
        return self.figures[figure]


def test_claims_follow_the_figures():
    found = {"z": Known(psnr=10), "w": Known(psnr=12, identity=0.5), "w+": Known(psnr=20, identity=0.2)}
    assert [holds for _, holds, _ in judge("space", found, torch.zeros(1, 3, 8, 8))] == [True, True, True]
    found["w+"] = Known(psnr=11, identity=0.6)
    assert [holds for _, holds, _ in judge("space", found, torch.zeros(1, 3, 8, 8))] == [True, False, False]


def test_a_filled_hole_and_a_kept_one_are_told_apart():
    face, hole = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, 1, 8, 8)
    hole[..., 2:5, 2:5] = 1
    black = torch.where(hole > 0, -1.0, face)
    targets = Targets(black, ("a",), hole, face)
    whole = Known(Targets(face, ("a",)), face)
    kept = judge("defects", {"whole": whole, "hole": Known(targets, black)}, face)
    filled = judge("defects", {"whole": whole, "hole": Known(targets, face)}, face)
    assert [holds for _, holds, _ in kept] == [True, True]
    assert [holds for _, holds, _ in filled] == [True, False]
    spoilt = judge("defects", {"whole": whole, "hole": Known(targets, black * 0.5)}, face)
    assert not spoilt[0][1], "the rest of the face is worse than before"


def test_psnr_where_agrees_with_a_plain_count():
    a, b = torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 8, 8) * 2 - 1
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :3, :] = 1
    squares = ((a - b)[:, :, :3] / 2).square().flatten(1).mean(1)
    assert psnr_where(a, b, mask) == pytest.approx(float((-10 * squares.log10()).mean()), abs=1e-4)


def test_options_say_what_is_wrong(options, tmp_path):
    with pytest.raises(OptionError, match="expected some of space"):
        StudyOptions(experiments=("spaces",))
    with pytest.raises(OptionError, match="name some"):
        StudyOptions(experiments=("classes",)).chosen()
    with pytest.raises(OptionError, match="nothing at"):
        read_targets(StudyOptions(heads=tmp_path / "none", experiments=("space",)), RESOLUTION)
    assert OTHERS in read_targets(options, RESOLUTION)


def test_quick_lowers_and_never_raises():
    few = StudyOptions(quick=True, steps=5, faces=7, others=("a=b", "c=d", "e=f")).scaled()
    assert (few.steps, few.faces, len(few.others)) == (5, 2, 2)


def test_command_line_makes_the_report_again():
    options = command.Options(steps=7, quick=True, fresh=True, others=("cat=tom.jpg",))
    assert command.command_line(options) == "limner study --others cat=tom.jpg --steps 7 --quick"


def test_random_weights_of_another_seed_are_others():
    generator = make_generator()
    a, b = randomize(generator, 1), randomize(generator, 2)
    assert not torch.equal(a.synthesis.layers[1].weight, b.synthesis.layers[1].weight)


def test_what_does_not_hold_comes_first(models, options):
    overview = run(models, options, Store(None))[0]
    against, table = overview.blocks
    assert isinstance(against, Checks)
    assert isinstance(table, Table)
    wrong = [claim["claim"] for claim in overview.data["claims"] if not claim["as_in_the_paper"]]
    assert [claim for claim, holds, _ in against.items if not holds] == wrong
    assert wrong, "two steps in an untrained generator prove the paper wrong somewhere"


def test_a_blurred_face_that_comes_closer_does_not_look_closer():
    sharp = {"psnr": 13.0, "perceptual": 0.7, "from_mean": 3.0}
    blurred = {"psnr": 14.0, "perceptual": 1.0, "from_mean": 20.0}
    found = {}
    for rows in ("w+, faces", "w, faces", "w+, others"):
        found |= {f"{rows}, mean": Known(**sharp), f"{rows}, uniform": Known(**blurred)}
    verdicts = {claim: holds for claim, holds, _ in judge("init", found, torch.zeros(1, 3, 8, 8))}
    assert verdicts["and look more like the picture (w+)"]
    assert not verdicts["faces come closer from the mean w than from uniform numbers (w+)"]
    assert len(verdicts) == 6
