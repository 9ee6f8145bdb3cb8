"""``limner translate`` with a tiny translator and tiny checkpoints of pSp."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_generator
from PIL import Image

from limner import checkpoints, media, zoo
from limner.app import cli
from limner.app.commands.translate import Options, plan_files, plan_outputs, write_files
from limner.checkpoints import Checkpoint
from limner.checkpoints.translator import save_translator
from limner.errors import MediaError, OptionError
from limner.faces import Face
from limner.latent import Latent
from limner.nn import deltas
from limner.nn.detail import Detail
from limner.nn.encoders import Encoder
from limner.nn.features import Lite0
from limner.nn.translator import Translator, TranslatorCore
from limner.pipeline import TranslationModels, load_translation_models, translate
from limner.pipeline.translation import compare_sheet
from limner.synth.looks import PALETTE
from limner.translation import TASKS, TranslateOptions, make_input
from limner.translation.classes import CELEBA, OURS
from limner.translation.labels import convert, planes, square

KINDS = {
    "sketch": (1, "celebs_sketch_to_face"),
    "labels": (19, "celebs_seg_to_face"),
    "super-resolution": (3, "celebs_super_resolution"),
    "frontal": (3, "ffhq_frontalize"),
    "toon": (3, "ffhq_encode"),
}


def run(*words: object) -> tuple[int, str, str]:
    """Run ``limner translate`` and return exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["translate", *map(str, words), "--device", "cpu"])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def psp(tmp_path):
    """Writes a checkpoint as pSp's programs do, for a task, and returns its path."""

    def write(task: str) -> Path:
        channels, kind = KINDS[task]
        torch.manual_seed(5)
        encoder = Encoder(
            rows=8, in_channels=channels, in_size=64, w_dim=16, widths=(6, 8, 10, 12), depths=(1, 1, 1, 1)
        )
        encoder.mean.normal_(0, 0.3)
        path = tmp_path / f"psp_{kind}.pt"
        about = {"opts": {"dataset_type": kind, "label_nc": channels if channels != 3 else 0}}
        with pytest.warns(UserWarning, match="the original programs cannot load it"):
            checkpoints.save(Checkpoint(generator=make_generator(), encoder=encoder, metadata=about), path)
        return path

    return write


@pytest.fixture(scope="module")
def trunk() -> Lite0:
    return zoo.load("lite0")


@pytest.fixture
def translator(generator, trunk) -> Translator:
    """A tiny translator of all tasks whose codes depend on its input."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"width": 8, "gather": 4, "hidden": 16, "rank": 8, "inner": 4, "head_rank": 4}
    tasks = {name: task.in_channels for name, task in TASKS.items()}
    core = TranslatorCore(num_rows=8, w_dim=16, tasks=tasks, input_px=64, **sizes)
    for value in core.parameters():
        torch.nn.init.normal_(value, 0, 0.2)
    base = {"name": "tiny", "digest": deltas.digest(generator)}
    return Translator(trunk=trunk, core=core, base=base).eval().requires_grad_(False)


@pytest.fixture
def models(generator, translator) -> TranslationModels:
    return TranslationModels(generator=generator, network=translator, name="tiny", detector=two_faces)


def two_faces(pixels: np.ndarray) -> list[Face]:
    """A detector that finds two faces wherever it looks."""
    found = []
    for left, side in ((20, 40), (100, 30)):
        points = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.75], [0.65, 0.75]]) * side + [
            left,
            30,
        ]
        box = np.array([left, 30, left + side, 30 + side], np.float32)
        found.append(Face(box, 0.9, points.astype(np.float32)))
    return found


@pytest.fixture
def picture(tmp_path) -> Path:
    """A picture with broad shapes."""
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return media.write(tmp_path / "photo.png", media.resize_pixels(small, (120, 160)))


@pytest.fixture
def label_file(tmp_path) -> Path:
    cells = np.array([one.index for one in OURS]).reshape(3, 4)
    picture = Image.fromarray(np.kron(cells, np.ones((16, 12))).astype(np.uint8))
    picture.putpalette(PALETTE.ravel().tolist())
    picture.save(tmp_path / "labels.png")
    return tmp_path / "labels.png"


# Python


@pytest.mark.parametrize("name", ["sketch", "super-resolution", "frontal", "toon"])
def test_an_aligned_picture_gives_what_its_codes_paint(name, models, picture, generator):
    pixels = media.resize_pixels(media.read(picture).pixels, 64)
    result = translate(pixels, TranslateOptions(task=name, aligned=True, size=32), models=models)
    (face,) = result.faces
    crop = media.to_image(pixels)
    paired = crop if name == "super-resolution" else None
    x = make_input(name, crop, paired=paired)
    torch.testing.assert_close(face.w_plus, models.network(name, x))
    painted = media.to_pixels(generator.synthesis(face.w_plus))[0]
    assert np.array_equal(face.outputs[0], painted)
    assert (face.photo is not None) == (name == "frontal")  # the others show drawings, or are small


def test_faces_are_finished_unless_told_otherwise(models, picture, generator):
    config = generator.config()
    whole = config | {"resolution": 64, "channels": config["channels"] | {64: 4}}
    assert models.detail is None, "nothing was grown above this generator"
    detail = models.__dict__["detail"] = Detail(config=whole, below=32).requires_grad_(False)
    pixels = media.read(picture).pixels
    how: dict[str, Any] = {"task": "sketch", "from_photo": True, "paste": True, "size": 64, "face": "1"}
    large = translate(pixels, TranslateOptions(**how), models=models)
    small = translate(pixels, TranslateOptions(**how, detail=False), models=models)
    (one,), (other,) = large.faces, small.faces
    assert torch.equal(one.w_plus, other.w_plus)
    longer = Latent("w+", one.w_plus).grown(detail.grow(generator)).tensor
    assert np.array_equal(one.outputs[0], media.to_pixels(detail.grow(generator).synthesis(longer))[0]), (
        "at its own size it is written as it is painted"
    )
    enlarged = media.resize_pixels(media.to_pixels(generator.synthesis(one.w_plus))[0], 64)
    assert np.array_equal(other.outputs[0], enlarged)
    assert large.pasted[0].shape == small.pasted[0].shape == pixels.shape
    assert (large.pasted[0] != small.pasted[0]).any()


def test_one_face_takes_the_layers_that_are_named(models, picture):
    pixels = media.resize_pixels(media.read(picture).pixels, 64)
    how: dict[str, Any] = {"task": "sketch", "aligned": True, "size": 32, "seed": 3}
    own, second = (
        translate(pixels, TranslateOptions(**how, outputs=2, mix="5-"), models=models).faces[0].w_plus
    )
    (mixed,) = translate(pixels, TranslateOptions(**how, mix="5-"), models=models).faces[0].w_plus
    assert torch.equal(mixed, second)
    assert not torch.equal(mixed, own)
    (plain,) = translate(pixels, TranslateOptions(**how), models=models).faces[0].w_plus
    assert torch.equal(plain, own)
    for more in ({"alpha": 0.5}, {"psi": 0.5}):
        with pytest.raises(OptionError, match=r"name layers with mix, such as fine, or ask for several"):
            translate(pixels, TranslateOptions(**how, **more), models=models)
        translate(pixels, TranslateOptions(**how, **more, mix="5-"), models=models)


def test_every_face_of_a_photo_is_translated_and_put_back(models, picture):
    pixels = media.read(picture).pixels
    told = []
    options = TranslateOptions(
        task="super-resolution", from_photo=True, factor=16, paste=True, outputs=2, size=64
    )
    result = translate(pixels, options, models=models, on_face=lambda *words: told.append(words))
    assert told == [(1, 2), (2, 2)]
    assert len(result.faces) == 2
    assert result.faces[0].alignment.scale > result.faces[1].alignment.scale
    assert len(result.pasted) == 2
    changed = (result.pasted[0] != pixels).any(2)
    for face in result.faces:
        x, y = face.alignment.quad.mean(0).round().astype(int)
        assert changed[y, x]
        assert face.photo is not None
        assert face.shown.astype(float).std() < face.photo.astype(float).std()
    assert not changed[:, -5:].any()
    assert not np.array_equal(result.pasted[0], result.pasted[1])
    sheet = compare_sheet(result, 64)
    assert sheet.shape[1] > 4 * 64  # photo, input and two faces
    assert sheet.shape[0] > 2 * 64


def test_small_pictures_are_taken_whole(models, picture):
    pixels = media.resize_pixels(media.read(picture).pixels, 16)
    small = translate(pixels, TranslateOptions(task="super-resolution", size=32), models=models)
    assert len(small.faces) == 1
    large = translate(
        np.repeat(np.repeat(pixels, 10, 0), 10, 1),
        TranslateOptions(task="super-resolution", size=32),
        models=models,
    )
    assert len(large.faces) == 2


def test_known_pixels_are_kept_where_parts_are_missing(models, picture):
    pixels = media.read(picture).pixels[:64, :64]
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 10:40] = 255
    options = TranslateOptions(task="inpaint", aligned=True, size=64)
    (face,) = translate(pixels, options, models=models, mask=mask).faces
    assert np.array_equal(face.outputs[0][mask == 0], pixels[mask == 0])
    whole = translate(
        pixels,
        TranslateOptions(task="inpaint", aligned=True, size=64, composite=False),
        models=models,
        mask=mask,
    )
    painted = whole.faces[0].outputs[0]
    assert not np.array_equal(painted[mask == 0], pixels[mask == 0])
    assert np.array_equal(face.outputs[0][28:36, 20:30], painted[28:36, 20:30])
    assert np.array_equal(face.shown[mask == 255], np.full((24 * 30, 3), 128))
    with pytest.raises(OptionError, match="needs to know what is missing"):
        translate(pixels, options, models=models)
    chosen = TranslateOptions(task="inpaint", aligned=True, from_photo=True, seed=4, size=64)
    again = translate(pixels, chosen, models=models)
    assert not np.array_equal(again.faces[0].shown, face.shown)


def test_only_missing_parts_of_a_photo_change(models, picture):
    pixels = media.read(picture).pixels
    mask = np.zeros(pixels.shape[:2], bool)
    mask[40:60, 30:50] = True
    options = TranslateOptions(task="inpaint", paste=True, face="1", size=64)
    result = translate(pixels, options, models=models, mask=mask)
    changed = (result.pasted[0] != pixels).any(2)
    assert changed[45:55, 35:45].mean() > 0.9
    assert not (changed & ~mask).any()
    assert result.filled is not None
    assert np.array_equal(result.filled, mask)


def test_every_missing_pixel_is_painted_by_one_face(models, picture):
    """Two crops overlap: their pixels are painted once, the rest of the holes by nobody."""
    pixels = media.read(picture).pixels
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[50:60] = 255
    options = TranslateOptions(task="inpaint", paste=True, size=64)
    result = translate(pixels, options, models=models, mask=mask)
    inside = np.zeros_like(mask, bool)
    for face in result.faces:
        (left, top), (right, bottom) = face.alignment.quad.min(0), face.alignment.quad.max(0)
        y, x = np.mgrid[: len(mask), : mask.shape[1]] + 0.5
        inside |= (x > left) & (x < right) & (y > top) & (y < bottom)  # the landmarks are upright
    assert 0 < inside[mask > 0].mean() < 1
    assert result.filled is not None
    assert np.array_equal(result.filled, inside & (mask > 0))
    assert not (result.pasted[0] != pixels).any(2)[~result.filled].any()


def test_a_scratch_leaves_no_colour_and_detail_stays(models):
    """Thinner than the seam, it is filled from its sides; pixels that the network is too small to see stay exact."""
    pixels = np.full((192, 192, 3), (90, 120, 150), np.uint8)
    pixels[::2, ::2] += 20
    mask = np.zeros((192, 192), bool)
    mask[100:102] = True
    scratched = pixels.copy()
    scratched[mask] = (255, 0, 0)
    options = TranslateOptions(task="inpaint", aligned=True, size=192)
    (face,) = translate(scratched, options, models=models, mask=mask).faces
    assert np.array_equal(face.outputs[0][~mask], pixels[~mask])
    assert np.abs(face.outputs[0][mask].astype(int) - (95, 125, 155)).max() < 30
    assert face.photo is not None
    assert np.array_equal(face.photo, scratched)


def test_masks_and_maps_that_say_nothing_are_refused(models, picture):
    pixels = media.read(picture).pixels
    empty = np.full(pixels.shape[:2], 127, np.uint8)
    with pytest.raises(OptionError, match="marks nothing as missing"):
        translate(pixels, TranslateOptions(task="inpaint", aligned=True), models=models, mask=empty)
    with pytest.raises(MediaError, match="map: index 3 on 100.0 % of the pixels is no class"):
        translate(np.full((8, 8), 3), TranslateOptions(task="labels"), models=models, where="map")


def test_label_maps_go_in_the_networks_classes(models, label_file, psp):
    from limner.translation import read_labels

    ours = read_labels(label_file)
    (face,) = translate(ours, TranslateOptions(task="labels", size=32), models=models).faces
    torch.testing.assert_close(face.w_plus, models.network("labels", planes(square(ours, 64), OURS)))
    assert np.array_equal(face.shown, PALETTE[square(ours, 64)])
    theirs = load_translation_models(psp("labels"))
    (face,) = translate(convert(ours, OURS, "celeba"), TranslateOptions(size=32), models=theirs).faces
    x = planes(square(read_labels(label_file, to="celeba"), 64), CELEBA)
    torch.testing.assert_close(face.w_plus, theirs.network("labels", x))
    with pytest.raises(OptionError, match="expected a label map"):
        translate(np.zeros((4, 4, 3), np.uint8), TranslateOptions(task="labels"), models=models)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "task is not given; this model does sketch, labels"),
        ({"task": "toon", "from_photo": True}, "cannot be made of a photo"),
        ({"task": "frontal", "paste": True}, "there is no photo in which the face would fit"),
        ({"task": "sketch", "paste": True}, "there is no photo in which the face would fit"),
        ({"task": "sketch", "mix": "tail"}, "layer mask 'tail'"),
        ({"task": "sketch", "mix": "5-.rgb"}, "tells toRGB from convolutions"),
    ],
)
def test_what_does_not_go_together(options, message, models):
    with pytest.raises(OptionError, match=message):
        translate(np.zeros((8, 8, 3), np.uint8), TranslateOptions(**options), models=models)


# Command


@pytest.mark.parametrize("task", KINDS)
def test_checkpoints_of_psp_name_their_task(task, psp, picture, label_file, tmp_path):
    given = label_file if task == "labels" else picture
    words = ["--model", psp(task), "-o", tmp_path / "face.png", "--size", 48, "--aligned", "--json"]
    status, text, err = run(given, *words)
    assert status == 0, err
    result = json.loads(text)
    assert result["task"] == task
    assert media.read(tmp_path / "face.png").pixels.shape == (48, 48, 3)
    about = media.read_provenance(tmp_path / "face.png")
    assert about is not None
    assert about["digital_source_type"] == "trainedAlgorithmicMedia"
    assert about["options"]["task"] == task
    assert about["options"]["command"] == "translate"


def test_outputs_are_numbered_repeat_and_stand_on_a_sheet(psp, picture, tmp_path):
    words = [
        "--model",
        psp("sketch"),
        "--outputs",
        3,
        "--mix",
        "2-7",
        "--alpha",
        0.5,
        "--size",
        32,
        "--compare",
    ]
    status, _, err = run(picture, *words, "-o", tmp_path / "a.png", "--seed", 5)
    assert status == 0, err
    assert run(picture, *words, "-o", tmp_path / "b.png", "--seed", 5)[0] == 0
    assert run(picture, *words, "-o", tmp_path / "c.png", "--seed", 6)[0] == 0
    read = {name: [media.read(tmp_path / f"{name}-{i}.png").pixels for i in (1, 2, 3)] for name in "abc"}
    assert all(map(np.array_equal, read["a"], read["b"]))
    assert np.array_equal(read["a"][0], read["c"][0])
    assert not np.array_equal(read["a"][1], read["c"][1])
    assert not np.array_equal(read["a"][1], read["a"][2])
    assert media.read(tmp_path / "a-compare.png").pixels.shape[1] > 4 * 32
    status, _, err = run(picture, *words, "-o", tmp_path / "a.png")
    assert status == 2
    assert "exists already" in err


def test_our_translator_and_its_generator(translator, generator, label_file, picture, tmp_path):
    save_translator(translator, tmp_path / "tiny.safetensors", provenance={})
    checkpoints.save(Checkpoint(generator=generator), tmp_path / "generator.safetensors")
    words = [
        "--model",
        tmp_path / "tiny.safetensors",
        "--generator",
        tmp_path / "generator.safetensors",
        "--size",
        32,
    ]
    status, _, err = run(label_file, *words, "--task", "labels", "-o", tmp_path / "out")
    assert status == 0, err
    assert (tmp_path / "out" / "labels-labels.png").exists()
    mask = np.zeros((120, 160, 3), np.uint8)
    mask[30:60] = 255
    media.write(tmp_path / "mask.png", mask)
    inpaint = [*words, "--task", "inpaint", "--aligned", "--size", 120]
    status, _, err = run(picture, *inpaint, "--mask", tmp_path / "mask.png", "-o", tmp_path / "filled.png")
    assert status == 0, err
    about = media.read_provenance(tmp_path / "filled.png")
    assert about is not None
    assert about["digital_source_type"] == "compositeWithTrainedAlgorithmicMedia"
    # A photo with transparent parts brings its mask along.
    holes = media.Photo(media.read(picture).pixels, alpha=255 - mask[..., 0])
    media.write(tmp_path / "holes.png", holes)
    status, _, err = run(tmp_path / "holes.png", *inpaint, "-o", tmp_path / "again.png")
    assert status == 0, err
    assert np.array_equal(
        media.read(tmp_path / "again.png").pixels, media.read(tmp_path / "filled.png").pixels
    )


def test_a_picture_that_fails_does_not_stop_the_others(psp, picture, tmp_path):
    words = ["--model", psp("sketch"), "-o", tmp_path / "out", "--json", "--size", 32]
    status, text, _ = run(picture, tmp_path / "none.png", *words)
    assert status == 2
    result = json.loads(text)
    assert len(result["pictures"]) == 1
    assert result["failed"][0]["error"] == "MediaError"


def test_no_face_replaces_a_file(models, picture, tmp_path):
    """How many faces there are is known late; nothing is written then if one of their files exists."""
    result = translate(media.read(picture).pixels, TranslateOptions(task="frontal", size=32), models=models)
    asked = Options(pictures=(picture,), task="frontal", size=32, compare=True)
    media.write(tmp_path / "a-2.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(OptionError, match=r"a-2\.png exists already"):
        write_files(result, media.read(picture), tmp_path / "a.png", asked, {})
    assert not list(tmp_path.glob("a-1*"))
    again = dataclasses.replace(asked, overwrite=True)
    files = write_files(result, media.read(picture), tmp_path / "a.png", again, {})
    assert [file.name for file in files] == ["a-1.png", "a-2.png", "a-compare.png"]
    assert all(file.is_file() for file in files)
    with pytest.raises(OptionError, match="an input itself"):
        write_files(result, None, tmp_path / "a.png", dataclasses.replace(again, pictures=tuple(files)), {})


def test_names_of_faces_and_pictures_do_not_meet(tmp_path):
    asked = Options(pictures=tuple(tmp_path / name for name in ("a.png", "a.jpg", "b.png")), task="toon")
    outputs = plan_outputs(asked)
    assert [path.name for path in outputs] == ["a-toon.png", "a-2-toon.png", "b-toon.png"]
    files = [file for path in outputs for file in plan_files(path, asked, faces=3)]
    assert len(set(files)) == 9


def test_transparent_parts(translator, generator, picture, tmp_path):
    """Drawings and toons lie on white; what inpainting fills becomes opaque, what no face covers stays as it was."""
    save_translator(translator, tmp_path / "tiny.safetensors", provenance={})
    checkpoints.save(Checkpoint(generator=generator), tmp_path / "generator.safetensors")
    words = ["--model", tmp_path / "tiny.safetensors", "--generator", tmp_path / "generator.safetensors"]
    words += ["--size", 32, "--aligned"]
    pixels = media.read(picture).pixels
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:, :60], alpha[:, 60:70] = 0, 200  # the square in the middle begins at 20
    white = pixels.copy()
    white[:, :60] = 255
    white[:, 60:70] = (pixels[:, 60:70] * (200 / 255) + 255 * (55 / 255)).round()
    media.write(tmp_path / "clear.png", media.Photo(pixels, alpha=alpha))
    media.write(tmp_path / "white.png", white)
    for name in ("clear", "white"):
        status, _, err = run(
            tmp_path / f"{name}.png", *words, "--task", "toon", "-o", tmp_path / f"{name}-out.png"
        )
        assert status == 0, err
    first, second = (media.read(tmp_path / f"{name}-out.png").pixels for name in ("clear", "white"))
    assert np.array_equal(first, second)
    status, _, err = run(
        tmp_path / "clear.png", *words, "--task", "inpaint", "--paste", "-o", tmp_path / "in.png"
    )
    assert status == 0, err
    assert "33% of the missing parts lie outside" in err
    filled = media.read(tmp_path / "in.png")
    assert filled.alpha is not None
    wanted = alpha.copy()
    wanted[:, 20:60] = 255
    assert np.array_equal(filled.alpha, wanted)
    assert np.array_equal(filled.pixels[:, 60:], pixels[:, 60:])
    # A mask drawn on a transparent layer: only what is white and opaque is missing.
    layer = np.zeros_like(alpha)
    layer[40:60, 80:100] = 255
    media.write(tmp_path / "layer.png", media.Photo(np.full_like(pixels, 255), alpha=layer))
    masked = [*words, "--task", "inpaint", "--paste", "--mask", tmp_path / "layer.png"]
    status, _, err = run(picture, *masked, "-o", tmp_path / "layered.png")
    assert status == 0, err
    changed = (media.read(tmp_path / "layered.png").pixels != pixels).any(2)
    assert changed.any()
    assert not changed[layer == 0].any()


def test_another_generator_is_refused(translator, tmp_path, picture):
    save_translator(translator, tmp_path / "tiny.safetensors", provenance={})
    other = make_generator(4)
    checkpoints.save(Checkpoint(generator=other), tmp_path / "other.safetensors")
    words = ["--model", tmp_path / "tiny.safetensors", "--task", "sketch"]
    status, _, err = run(picture, *words, "--generator", tmp_path / "other.safetensors")
    assert status == 2
    assert "another" in err


def test_mistakes_are_named(psp, picture, generator, tmp_path):
    sketch = ["--model", psp("sketch")]
    checkpoints.save(Checkpoint(generator=generator), tmp_path / "generator.safetensors")
    for words, message in (
        ([*sketch, "--task", "labels"], "task is 'labels', but this model does sketch"),
        ([*sketch, "--classes", "celeba"], "legend and classes are for label maps"),
        ([*sketch, "--mask", picture], "mask is for inpaint"),
        ([*sketch, "--task", "labels", "--from-photo"], "cannot be made of a photo"),
        ([*sketch, picture, "-o", tmp_path / "one.png"], "there are 2 pictures; name a folder"),
        ([*sketch, "-o", picture], "an input itself"),
        ([*sketch, "--task", "sketchy"], "did you mean 'sketch'?"),
        (["--model", tmp_path / "generator.safetensors"], "is no translator"),
        (["--model", tmp_path / "nothing.pt"], "no file"),
    ):
        status, _, err = run(picture, *words)
        assert status == 2, words
        assert message in err
    status, _, err = run(picture, "--model", psp("frontal"))
    assert status == 2
    assert "--aligned" in err
