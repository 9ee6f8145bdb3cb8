"""Evaluation: figures at their floor and ceiling, parts that are kept, a page that can be read."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import RESOLUTION, make_generator
from PIL import Image

from limner import checkpoints, media, zoo
from limner.app import cli
from limner.app.commands import eval as command
from limner.errors import OptionError
from limner.evaluation import EvaluationOptions, Portraits, Section, Store, describe, write_report
from limner.evaluation.comparisons import ALONE, PERSON
from limner.evaluation.data import Eyes, attributes, colour_spread, earth_movers, pairwise_identity
from limner.evaluation.figures import FIGURES
from limner.evaluation.generation import (
    ATTRIBUTES,
    _spreads,
    evaluate_generation,
    nearest,
    nearest_pixels,
    paint_seeds,
    rows_by_number,
    set_figures,
)
from limner.evaluation.report import Chart, Checks, Picture, Row, Table, markdown, page
from limner.evaluation.scale import Contender, Scale, read_truth
from limner.evaluation.store import Part, stamp
from limner.evaluation.stylization import evaluate_stylization
from limner.faces import Face
from limner.latent import Latent, render
from limner.metrics import gram_differences, gram_matrices
from limner.nn import deltas
from limner.nn.dualstylegan import DualGenerator
from limner.pipeline import Models, StylizeOptions
from limner.stylization import save_style
from limner.stylization.style import Style


class TinyTrunk(torch.nn.Module):
    """Two real feature maps of random, fixed convolutions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.first = torch.nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.second = torch.nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.requires_grad_(False)

    def forward(self, image):
        x = torch.nn.functional.leaky_relu(self.first(image))
        return [x, self.second(x)]


class TinyEmbedder(torch.nn.Module):
    """A linear embedding of a 4 px copy."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.linear = torch.nn.Linear(48, 12).requires_grad_(False)

    def forward(self, image):
        return self.linear(torch.nn.functional.adaptive_avg_pool2d(image, 4).flatten(1))


def find_bright(pixels: np.ndarray) -> list[Face]:
    """A detector that finds its landmarks in pictures that are not black, moved by their brightness."""
    brightness = float(pixels.mean())
    if brightness < 5:
        return []
    points = np.array(
        [[90, 120], [160, 120], [125 + brightness / 9, 160], [100, 190], [150, 190]], np.float32
    )
    return [Face(np.array([60, 60, 200, 220], np.float32), 0.9, points)]


@pytest.fixture
def eyes() -> Eyes:
    return Eyes(TinyTrunk(), TinyEmbedder(), find_bright)


@pytest.fixture
def models(generator) -> Models:
    models = Models(
        generator=generator, trunk=TinyTrunk(), detector=find_bright, base="tiny", trunk_name="tiny"
    )
    models.__dict__["embedder"] = TinyEmbedder()  # where `cached_property` keeps it
    return models


def write_heads(folder, generator, seeds, first=0):
    """Write random heads as numbered pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(media.to_pixels(paint_seeds(generator, seeds)), first):
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
    return folder


def options_for(heads, **changes) -> EvaluationOptions:
    given = {"heads": heads, "trained_on": "0-39", "held_out": "40-79", "samples": 40, "found_in": 20}
    return EvaluationOptions(**{**given, **changes})


# Parts


def test_parts_are_made_once_and_again_when_an_input_changes(tmp_path):
    store, calls = Store(tmp_path), []

    def make():
        calls.append(1)
        return Part({"a": 1.5}, {"x": torch.arange(6).view(2, 3)})

    for digest in ("one", "one", "two", "one"):
        part = store.part("thing", {"model": digest}, make)
        assert part.values == {"a": 1.5}
        assert torch.equal(part.tensors["x"], torch.arange(6).view(2, 3))
    assert len(calls) == 2
    assert (store.made, store.found) == (2, 2)


def test_a_damaged_part_is_made_again(tmp_path):
    store = Store(tmp_path)
    store.part("thing", {}, lambda: Part({"a": 1}))
    file = store.file("thing", {})
    file.write_bytes(file.read_bytes()[:10])
    assert store.part("thing", {}, lambda: Part({"a": 2})).values == {"a": 2}
    assert Store(tmp_path).part("thing", {}, lambda: Part({"a": 3})).values == {"a": 2}


def test_stamp_tells_pictures_apart():
    a = np.zeros((2, 3, 3), np.uint8)
    assert stamp(a) == stamp(a.copy())
    assert len({stamp(a), stamp(a + 1), stamp(a.reshape(3, 2, 3)), stamp(a.astype(np.int16))}) == 4


# Sets


def test_spreads_are_those_of_formulas():
    values = torch.tensor([[0.0, 0], [3, 4], [0, 0]])
    assert pairwise_identity(values) == pytest.approx((25 + 0 + 25) / 3)
    assert earth_movers(torch.tensor([0.0, 1, 2]), torch.tensor([5.0, 6, 7])) == pytest.approx(5)
    small = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    assert colour_spread({"small": small}) == 0
    small[:2] = 255
    assert colour_spread({"small": small}) == pytest.approx(0.5)


def test_describe_takes_every_picture_and_the_first_faces(eyes):
    images = torch.rand(7, 3, 32, 32) * 2 - 1
    images[1] = -1
    found = describe([images[:4], images[4:]], eyes, faces=5)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "features": (7, 8),
        "small": (7, 3, 32, 32),
        "identity": (5, 12),
        "landmarks": (5, 5, 2),
    }
    assert found["landmarks"].isnan().any(2).any(1).tolist() == [False, True, False, False, False]
    assert torch.allclose(found["identity"][2], eyes.embedder(images[2:3])[0], atol=1e-6)
    assert len(attributes(found)["turn"]) == 4
    assert "identity" not in describe([images], eyes, faces=0)


def described_heads(turn, red, width):
    """Return what `describe` does for heads whose pose, hair and mouth are known."""
    count = len(turn)
    points = torch.tensor([[0.4, 0.4], [0.6, 0.4], [0.5, 0.5], [0.45, 0.6], [0.55, 0.6]]).repeat(count, 1, 1)
    points[:, 2, 0] += 0.2 * turn
    points[:, 3, 0], points[:, 4, 0] = 0.5 - 0.1 * width, 0.5 + 0.1 * width
    small = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    small[:, 0, 2:5, 13:19] = (255 * red).round().to(torch.uint8)[:, None, None]
    return {"landmarks": points, "small": small}


def test_spread_of_pose_hair_and_expression_is_a_share_of_the_data_s():
    rng = torch.Generator().manual_seed(0)
    turn, red, width = (torch.rand(200, generator=rng) for _ in range(3))
    real = described_heads(turn, red, width)
    values = attributes(real)
    assert torch.allclose(values["turn"], turn, atol=1e-5)
    assert torch.allclose(values["hair_tint"], red, atol=3e-3)
    assert torch.allclose(values["mouth"], width, atol=1e-5)
    # A generator with half the poses, a quarter of the hair colours, and one mouth.
    made = described_heads(0.5 * turn + 0.2, 0.25 * red, torch.full_like(width, 0.5))
    spreads = _spreads(made, real)
    assert set(spreads) == set(ATTRIBUTES) == set(values)
    assert spreads["turn"]["spread"] == pytest.approx(0.5, abs=0.01)
    assert spreads["hair_tint"]["spread"] == pytest.approx(0.25, abs=0.01)
    assert spreads["mouth"]["spread"] == pytest.approx(0, abs=1e-4)
    assert spreads["turn"]["shift"] > 0.2


def test_nearest_finds_copies_and_mirror_images():
    torch.manual_seed(2)
    among = (torch.rand(9, 3, 8, 8) * 255).to(torch.uint8)
    distance, index = nearest_pixels(torch.stack([among[3], among[7].flip(2)]), among)
    assert index.tolist() == [3, 7]
    assert distance.max() < 1e-3
    far, at = nearest(torch.tensor([[0.0, 3.0]]), torch.tensor([[4.0, 0], [9, 9]]))
    assert (far.item(), at.item()) == (5, 0)


def test_real_pictures_score_at_the_floor_and_noise_at_the_ceiling(eyes):
    torch.manual_seed(3)
    centre = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4), 32, mode="bicubic")

    def draw(count):
        layout = torch.nn.functional.interpolate(torch.randn(count, 3, 4, 4), 32, mode="bicubic")
        return (0.6 * centre + 0.3 * layout).clamp(-1, 1)

    real, again = (describe([draw(100)], eyes, faces=20) for _ in range(2))
    noise = describe([torch.rand(100, 3, 32, 32) * 2 - 1], eyes, faces=20)
    one = {name: value[:1].expand_as(value).clone() for name, value in real.items()}
    floor, bad, collapsed = (
        set_figures(found, real, torch.Generator().manual_seed(0)) for found in (again, noise, one)
    )
    assert floor["frechet"] < 0.1 * bad["frechet"]
    assert abs(floor["kernel"]) < 0.1 * bad["kernel"]
    assert floor["recall"] > 0.6 > bad["recall"]
    assert floor["precision"] > 0.6 > bad["precision"]
    assert collapsed["recall"] < 0.1
    assert floor["person_frechet"] < 0.5 * bad["person_frechet"]
    assert floor["person_recall"] > 0.5 > bad["person_recall"]
    few = {name: value[:2] for name, value in again.items()} | {"features": again["features"]}
    assert math.isnan(set_figures(few, real, torch.Generator().manual_seed(0))["person_frechet"])
    assert collapsed["identity_spread"] == pytest.approx(0, abs=1e-6)
    assert floor["identity_spread"] > 0.01


def test_generation_calls_a_memoriser_one(tmp_path, generator, eyes):
    """The generator paints exactly the training pictures (seeds 0-39): a perfect memory, and the report says so."""
    heads = write_heads(tmp_path / "heads", generator, range(40))
    write_heads(heads, generator, range(1000, 1040), first=40)
    store = Store(tmp_path / "parts")
    section = evaluate_generation(generator, eyes, options_for(heads), store)
    sets, memory = section.data["sets"], section.data["memorising"]
    floor = sets["other real pictures"]
    for figure in ("frechet", "precision", "recall", "identity_spread", "colour_spread"):
        assert sets["generator"][figure] == pytest.approx(floor[figure], rel=0.05, abs=1e-4), figure
    assert sets["generator"]["face_share"] == 1
    assert memory["generator"]["too_near"] == 1
    assert memory["copies of training pictures"]["near_features"] < 1e-3
    assert memory["held-out pictures"]["too_near"] < 0.1
    assert list(section.data["by_number"]) == ["10 pictures", "20 pictures", "40 pictures"]
    assert section.data["by_number"]["40 pictures"]["floor_ratio"] == pytest.approx(1, rel=0.05)
    made = store.made
    fresh = evaluate_generation(generator, eyes, options_for(heads, seed=2000), store)
    assert fresh.data["memorising"]["generator"]["too_near"] < 0.3
    assert store.found == 1, "the held-out pictures are known; the drawn ones and the seeds are not"
    evaluate_generation(generator, eyes, options_for(heads, seed=2000), store)
    assert (store.made, store.found) == (made + 3, 5)


def test_the_ratio_is_also_measured_on_twice_the_pictures_where_training_has_enough(
    tmp_path, generator, eyes
):
    heads = write_heads(tmp_path / "heads", generator, range(2000, 2060))
    options = options_for(heads, trained_on="0-47", held_out="48-59", samples=12, found_in=12)
    section = evaluate_generation(generator, eyes, options, Store(tmp_path / "parts"))
    rows = section.data["by_number"]
    assert list(rows) == ["12 pictures", "24 training pictures"]
    assert rows["12 pictures"]["frechet"] == section.data["sets"]["generator"]["frechet"]
    goals = next(block for block in section.blocks if isinstance(block, Checks))
    assert [claim for claim, *_ in goals.items][:2] == [
        f"Fréchet distance at most 3 times the floor, {name}" for name in rows
    ]


def test_the_floor_halves_when_sets_double_and_what_is_wrong_stays():
    """Why a ratio to the floor belongs to one number of pictures."""
    rng = torch.Generator().manual_seed(0)
    real, again, made = (torch.randn(1600, 8, generator=rng) for _ in range(3))
    rows = rows_by_number(made + 0.5, again, real)
    assert [row.name for row in rows] == ["400 pictures", "800 pictures", "1600 pictures"]
    floors = [row.values["frechet_floor"] for row in rows]
    assert floors[0] == pytest.approx(4 * floors[2], rel=0.4)
    assert rows[2].values["frechet"] == pytest.approx(8 * 0.5**2, rel=0.1)
    assert rows[2].values["floor_ratio"] > 2 * rows[0].values["floor_ratio"]


# Stylisation


def look(image: torch.Tensor, name: str) -> torch.Tensor:
    """Two looks that any trunk tells apart: a photo turned to stripes, a photo turned dark and smooth."""
    stripes = torch.ones(1, 1, 1, RESOLUTION)
    stripes[..., ::2] = -1
    if name == "stripes":
        return (0.3 * image + 0.7 * stripes).clamp(-1, 1)
    return (0.3 * image - 0.6).clamp(-1, 1)


@pytest.fixture
def pairs(tmp_path, generator):
    folder = tmp_path / "pairs"
    images = paint_seeds(generator, range(8))
    for name in ("photo", "stripes", "dark"):
        (folder / name).mkdir(parents=True)
        painted = images if name == "photo" else look(images, name)
        for number, pixels in enumerate(media.to_pixels(painted)):
            Image.fromarray(pixels).save(folder / name / f"{number:06d}.png")
    return folder


def test_gram_difference_ignores_place_and_size_of_the_other():
    image = torch.rand(2, 3, 32, 32)
    here, mirrored = (gram_matrices(lambda x: [x], one) for one in (image, image.flip(3)))
    assert torch.allclose(gram_differences(here, mirrored).diag(), torch.zeros(2), atol=1e-9)
    other = gram_matrices(lambda x: [x], torch.rand(3, 3, 32, 32) * 5)
    found = gram_differences(here, other)
    assert found.shape == (2, 3)
    assert torch.allclose(found, gram_differences(other, here).T)
    assert found.min() > 0
    x, y = here[0][1], other[0][2]
    naive = (x - y).square().sum() / (x.norm() * y.norm())
    assert torch.allclose(found[1, 2], naive)


def test_cheats_fail_and_shuffled_pairs_score_worse(models, pairs):
    photos = Portraits(pairs / "photo").pixels(RESOLUTION)
    style = Style({}, deltas.digest(models.generator), "none", {})
    contenders = [
        Contender(
            name,
            style,
            Portraits(pairs / name).pixels(RESOLUTION)[7],
            media.to_image(*Portraits(pairs / name).pixels(RESOLUTION)[:6]),
            "",
        )
        for name in ("stripes", "dark")
    ]
    scale = Scale(models, photos[:6], contenders)
    alone_share = []
    for one in contenders:
        true, shuffled = scale.figures(one.truth, one), scale.figures(one.truth.roll(1, 0), one)
        pasted = scale.figures(media.to_image(one.reference).expand_as(one.truth), one)
        alone = scale.figures(media.to_image(*photos[:6]), one)
        assert true["to_truth"] == pytest.approx(0, abs=1e-6)
        assert shuffled["to_truth"] > 0
        assert shuffled["identity_kept"] > true["identity_kept"]
        assert true["right_style"] == pasted["right_style"] == 1
        assert pasted["apart"] == pytest.approx(0, abs=1e-6)
        assert true["apart"] > 0
        assert alone["identity_kept"] == pytest.approx(0, abs=1e-9)
        assert alone["apart"] == pytest.approx(1)
        alone_share.append(alone["right_style"])
    assert sum(alone_share) == pytest.approx(1), "one style at most is nearest to a photo"


def write_styles(folder, models):
    """Save two styles: toRGB biases that brighten or darken everything."""
    files = []
    for name, amount in (("stripes", 0.4), ("dark", -0.6)):
        delta = {
            key: torch.full_like(value, amount)
            for key, value in models.generator.state_dict().items()
            if re.fullmatch(r"synthesis\.to_rgb\.\d+\.bias", key)
        }
        assert delta
        thumbnail = torch.full((96, 96, 3), 220 if amount > 0 else 30, dtype=torch.uint8)
        style = Style(delta, deltas.digest(models.generator), "test", {"steps": 1}, thumbnail=thumbnail)
        file = folder / f"{name}.limner"
        save_style(style, file, models.generator, samples=2)
        files.append(str(file))
    return files


def test_stylization_measures_styles_and_knows_what_changed(tmp_path, models, pairs):
    files = write_styles(tmp_path, models)
    missing = str(tmp_path / "gone.limner")
    options = EvaluationOptions(
        pairs=pairs,
        held_out_pairs="0-2",
        styles=(*files, missing),
        strengths=(0.5, 1.0),
        scenes=3,
        tuned=0,
        few_looks=(),
    )
    how = StylizeOptions(invert_steps=4, pull=0.0, strength=1.0)
    store = Store(tmp_path / "parts")
    section = evaluate_stylization(models, options, store, how=how)
    found = section.data["styles"]
    assert set(found) == {"stripes", "dark"}
    assert "gone" in section.data["skipped"]
    assert found["dark"]["to_truth"] > 0
    assert section.data["summary"]["the true render"]["to_truth"] == pytest.approx(0, abs=1e-6)
    assert section.data["summary"]["photo left alone"]["apart"] == pytest.approx(1)
    assert section.data["summary"]["reference pasted"]["apart"] == pytest.approx(0, abs=1e-6)
    assert set(section.data["strengths"]["dark"]) == {"0", "0.5", "1"}
    made = store.made
    assert made == 3 + 2 * 2, "three faces, two styles at two strengths"
    dark = Style(
        {}, deltas.digest(models.generator), "test", {}, thumbnail=torch.zeros(96, 96, 3, dtype=torch.uint8)
    )
    save_style(dark, files[1], models.generator, samples=2)
    evaluate_stylization(models, options, store, how=how)
    assert store.made == made + 2, "only the changed style is measured anew"


def test_kept_embeddings_paint_what_they_painted(tmp_path, models, pairs):
    """A part read from disk gives the pixels that it gave when it was made, pivotal tuning included."""
    files = write_styles(tmp_path, models)
    options = EvaluationOptions(
        pairs=pairs,
        held_out_pairs="0-1",
        styles=tuple(files),
        strengths=(1.0,),
        scenes=2,
        tuned=0,
        few_looks=(),
    )
    how = StylizeOptions(inverter="pivotal", invert_steps=3, tune_steps=2, strength=1.0)
    results = []
    for store in (Store(tmp_path / "a"), Store(tmp_path / "a"), Store(None)):
        if store.folder:  # the styled parts go, the embeddings stay
            for file in (tmp_path / "a").glob("styled-*"):
                file.unlink()
        results.append(evaluate_stylization(models, options, store, how=how).data["styles"])
    for name in ("stripes", "dark"):
        for figure in ("identity_kept", "to_truth"):
            assert len({round(one[name][figure], 6) for one in results}) == 1


def test_person_adds_to_style_and_changes_what_is_painted(tmp_path, models, pairs):
    """With the person's change, a tuned face comes nearer to its photo than the code alone does."""
    files = write_styles(tmp_path, models)
    options = EvaluationOptions(
        pairs=pairs,
        held_out_pairs="0-2",
        styles=tuple(files),
        scenes=3,
        tuned=2,
        strengths=(1.0,),
        few_looks=(),
    )
    how = StylizeOptions(inverter="w", invert_steps=5, tune_steps=25, strength=0.0)
    store = Store(tmp_path / "parts")
    found = evaluate_stylization(models, options, store, how=how).data["combination"]
    assert found["scenes"] == 2
    assert list(found["mean"]) == [ALONE, PERSON]
    assert set(found["styles"]) == {"stripes", "dark"}
    # At strength 0 nothing but the person's change sets them apart.
    assert found["mean"][PERSON]["identity_kept"] < found["mean"][ALONE]["identity_kept"]
    made = store.made
    again = evaluate_stylization(models, options, store, how=how).data["combination"]
    assert (store.made, again["mean"]) == (made, found["mean"])


def test_a_look_is_learned_from_one_and_from_several(tmp_path, models, discriminator, pairs):
    files = write_styles(tmp_path, models)
    learner = dataclasses.replace(models, discriminator=discriminator)
    learner.__dict__["embedder"] = models.embedder
    options = EvaluationOptions(
        pairs=pairs,
        held_out_pairs="0-1",
        trained_pairs="2-7",
        styles=tuple(files),
        scenes=2,
        strengths=(1.0,),
        tuned=0,
        few_looks=("dark", "gone"),
        few_pictures=2,
        few_seconds=0.15,
    )
    how = StylizeOptions(inverter="w", invert_steps=2, strength=1.0)
    store = Store(tmp_path / "parts")
    section = evaluate_stylization(learner, options, store, how=how)
    found = section.data["references"]
    assert set(found) == {"dark, 1 picture", "dark, 2 pictures"}
    for values in found.values():
        assert values["steps"] >= 1
        assert values["learn_seconds"] >= 0.15
        assert values["to_truth"] > 0
    table = next(one for one in section.blocks if isinstance(one, Table) and "several" in one.title)
    assert [row.name for row in table.rows if row.kind == "skipped"] == [
        "gone, 1 picture",
        "gone, 2 pictures",
    ]
    made = store.made
    assert evaluate_stylization(learner, options, store, how=how).data["references"] == found
    assert store.made == made, "what was learned once is known"


def test_a_dualstylegan_is_measured_at_every_strength(tmp_path, models, pairs):
    """``dual-dark`` should arrive at dark; a stronger style is farther from the photo; another base's is left out."""
    for name, seed in (("dual-dark", 0), ("dual-stranger", 1)):
        dual = DualGenerator.around(make_generator(seed)).eval().requires_grad_(False)
        with torch.no_grad():
            for block in dual.structure:
                block.conv1.bias.add_(1.0)
        codes = {"first.jpg": torch.randn(dual.num_rows, dual.generator.z_dim)}
        zoo.cache_dir().mkdir(parents=True, exist_ok=True)
        file = zoo.cache_dir() / f"{name}.safetensors"
        checkpoints.save(checkpoints.Checkpoint(dual=dual, codes={"extrinsic": codes}), file)
        zoo.install(
            zoo.Download(name=name, kind="dual", url=f"https://x.org/{file.name}", licence="CC0-1.0"), file
        )
    options = EvaluationOptions(
        pairs=pairs,
        held_out_pairs="0-1",
        styles=(*write_styles(tmp_path, models), "dual-dark", "dual-stranger"),
        strengths=(0.25, 1.0),
        scenes=2,
        tuned=0,
        few_looks=(),
    )
    how = StylizeOptions(inverter="w", invert_steps=2, strength=1.0)
    section = evaluate_stylization(models, options, Store(None), how=how)
    found = section.data["styles"]["dual-dark"]
    assert found["method"] == "dual"
    assert {"to_truth", "right_style"} <= set(found)
    curve = section.data["strengths"]["dual-dark"]
    assert curve["0"]["identity_kept"] < curve["0.25"]["identity_kept"] < curve["1"]["identity_kept"]
    assert "faces must be embedded" in section.data["skipped"]["dual-stranger"]


def test_a_blend_should_arrive_at_its_childs_look_and_is_no_reference(models, pairs):
    photos = Portraits(pairs / "photo").pixels(RESOLUTION)[:4]
    style = Style({}, deltas.digest(models.generator), "none", {})
    truths = {
        name: media.to_image(*Portraits(pairs / name).pixels(RESOLUTION)[:4]) for name in ("stripes", "dark")
    }
    learned = [
        Contender(name, style, Portraits(pairs / name).pixels(RESOLUTION)[7], truths[name], "")
        for name in ("stripes", "dark")
    ]
    blend = Contender("night", style, None, truths["dark"], "", method="blend", look="dark")
    unknown = Contender("other", style, None, None, "", method="blend", look="watercolour")
    scale = Scale(models, photos, [*learned, blend, unknown])
    assert scale.looks == ["stripes", "dark"]
    assert scale.figures(truths["dark"], blend)["right_style"] == 1
    assert scale.figures(truths["stripes"], blend)["right_style"] == 0
    assert not {"right_style", "to_truth"} & set(scale.figures(truths["dark"], unknown))
    two = scale.figures(truths["dark"][:2], blend)
    assert two["to_truth"] == pytest.approx(0, abs=1e-6), "the first scenes alone can be measured"


def test_tinted_truth_has_the_colours_and_the_scene(tmp_path):
    """Poster's true render is comic's in four inks: bright greys give the paper's colour, dark ones blue ink."""
    (tmp_path / "comic").mkdir()
    (tmp_path / "photo").mkdir()
    grey = np.full((256, 256, 3), 240, np.uint8)
    grey[:, 128:] = 20
    for folder in ("comic", "photo"):
        Image.fromarray(grey).save(tmp_path / folder / "000001.png")
    scenes = Portraits(tmp_path / "photo")
    found = read_truth(tmp_path, "poster", scenes, RESOLUTION)
    assert found is not None
    pixels = media.to_pixels(found)[0]
    assert np.abs(pixels[4, 4].astype(int) - (252, 226, 170)).max() <= 1
    assert np.abs(pixels[4, -4].astype(int) - (12, 44, 82)).max() <= 1
    assert read_truth(tmp_path, "clay", scenes, RESOLUTION) is None
    assert read_truth(tmp_path, "bronze", scenes, RESOLUTION) is None, "there is no clay to tint"


# The report


def sections() -> list[Section]:
    rows = [
        Row("real", {"frechet": 1.0, "recall": 0.9}, "floor"),
        Row("ours <b>", {"frechet": 3.25, "recall": 0.5}),
        Row("theirs", {"frechet": 9.0, "recall": float("nan")}),
        Row("absent", {}, "skipped", "no weights | at all"),
    ]
    blocks = [
        Table("Figures", ["frechet", "recall"], rows),
        Checks("Goals", [("it is good", False, "3 times")]),
        Chart("Curve", "strength", "distance", {"toon": [(0.0, 0.2), (1.0, 0.4)]}),
        Picture("sheet", np.full((16, 24, 3), 99, np.uint8), "What it shows"),
    ]
    return [Section("generation", "Generation", "A text.", blocks, {"x": float("inf"), "y": 0.123456789})]


class Nesting(HTMLParser):
    """Keeps the tags that are open; fails where one closes that is not the last."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed():
    parser = Nesting()
    parser.feed(page(sections(), {"model": "<tiny>"}, "limner eval"))
    assert parser.open == []


def test_page_shows_tables_definitions_and_escapes():
    text = page(sections(), {"model": "<tiny>"}, "limner eval")
    assert "&lt;tiny&gt;" in text
    assert "ours &lt;b&gt;" in text
    assert "<b>3.2</b>" in text, "the best result is bold, the floor is not"
    assert "<b>1.0</b>" not in text
    assert "not measured: no weights" in text
    assert FIGURES["recall"].meaning[:40] in text
    assert text.count("<table") == text.count("</table>") == 2
    assert 'src="sheet.jpg" width="24" height="16"' in text
    assert re.search(r"<path d=\"M[\d.]+ [\d.]+L[\d.]+ [\d.]+\"", text)


def test_markdown_has_a_row_of_equal_width_for_everything():
    lines = markdown(sections(), {"model": "tiny"}, "limner eval").splitlines()
    start = next(i for i, line in enumerate(lines) if "Fréchet" in line)
    table = lines[start : start + 6]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "**3.2**" in table[3]


def test_report_is_written_with_pictures_and_plain_json(tmp_path):
    files = write_report(tmp_path / "out", sections(), {"model": "tiny"}, command="limner eval")
    assert sorted(file.name for file in files) == ["report.html", "report.json", "report.md", "sheet.jpg"]
    told = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert told["sections"]["generation"] == {"x": None, "y": 0.123457}
    with Image.open(tmp_path / "out/sheet.jpg") as picture:
        assert picture.size == (24, 16)


def test_every_figure_shows_every_value():
    for figure in FIGURES.values():
        assert figure.meaning
        assert figure.arrow
        assert (figure.show(None), figure.show(float("nan")), figure.show(float("inf"))) == ("–", "–", "∞")
        assert re.fullmatch(r"[\d.]+( %)?", figure.show(0.5))


# The command


def test_sections_are_named():
    assert command.chosen_sections(("all",)) == ["generation", "inversion", "stylization", "translation"]
    assert command.chosen_sections(("stylize", "generation")) == ["generation", "stylization"]
    with pytest.raises(OptionError, match="expected one of generation"):
        command.chosen_sections(("everything",))


def test_quick_lowers_and_never_raises():
    small = EvaluationOptions(quick=True, faces=2).scaled()
    assert small.faces == 2
    assert small.samples == 200
    assert EvaluationOptions(faces=2).scaled().samples == 1000


def test_command_line_can_be_run_again():
    options = command.Options(quick=True, methods=("w", "w+:5"), sections=("inversion",), seed=3)
    words = command.command_line(options).split()
    assert words[:3] == ["limner", "eval", "inversion"]
    assert cli.parse_options("eval", command.Options, words[2:]) == options


def test_command_says_what_is_missing(tmp_path, capsys):
    assert cli.main(["eval", "generation", "--out", str(tmp_path / "o")]) == 2
    assert "--data DIR with heads-256/photo" in capsys.readouterr().err
    assert cli.main(["eval", "stylize", "--data", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "paired-256; name another place with --pairs" in capsys.readouterr().err


def test_a_reason_is_told_once(tmp_path, capsys):
    for name in ("heads-256/photo", "paired-256/photo"):
        (tmp_path / name).mkdir(parents=True)
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "o"), "--threads", "1"]
    assert cli.main(["eval", "inversion", *words, "--methods", "magic"]) == 2
    assert capsys.readouterr().err.count("methods has 'magic'") == 1
    assert cli.main(["eval", "inversion", "generation", *words, "--methods", "magic"]) == 2
    told = capsys.readouterr().err
    assert told.count("methods has 'magic'") == 1
    assert "nothing was measured" in told
    assert not (tmp_path / "o").exists()


def test_kept_latents_render_alike(generator):
    """What `_inversion` relies on: a w+ code through safetensors is the same picture."""
    code = Latent("w+", torch.randn(1, generator.num_rows, generator.w_dim))
    again = Latent("w+", code.tensor.clone())
    assert torch.equal(render(generator, code), render(generator, again))
