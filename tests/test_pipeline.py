"""Whole jobs on tiny networks: restyle faces of a photo, learn a style from pictures, and the two commands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import W_DIM, make_generator
from PIL import Image

from limner import checkpoints, media, zoo
from limner.app.cli import main
from limner.app.commands.stylize import portrait_paths
from limner.errors import CheckpointError, FaceNotFoundError, KeyMismatchError, OptionError
from limner.faces import Face
from limner.nn.compact import CompactCore, CompactEncoder
from limner.nn.detail import Detail
from limner.nn.encoders import Encoder
from limner.nn.features import Lite0
from limner.nn.stylegan2 import Discriminator, Generator
from limner.pipeline import LearnOptions, Models, StylizeOptions, compare_sheet, learn_style, stylize
from limner.pipeline.photos import PipelineStep, embed_faces, suit_inverter
from limner.stylization import Style, load_style, merge, save_style
from limner.stylization.style import style_between

LANDMARKS = (42.0, 50.0, 66.0, 50.0, 54.0, 64.0, 44.0, 76.0, 64.0, 76.0)
FAST = {"invert_steps": 2, "tune_steps": 2}


@pytest.fixture(scope="module")
def trunk() -> Lite0:
    """The bundled perceptual trunk."""
    return zoo.load("lite0")


@pytest.fixture
def models(generator: Generator, discriminator: Discriminator, trunk: Lite0) -> Models:
    """Tiny networks, and a detector that finds two faces in wide pictures and none in others."""

    def detect(pixels: np.ndarray) -> list[Face]:
        if pixels.shape[1] <= pixels.shape[0]:
            return []
        points = np.array(LANDMARKS, np.float32).reshape(5, 2)
        box = np.array([30, 30, 80, 95], np.float32)
        return [Face(box, 0.99, points), Face(box * 0.9 + 60, 0.98, points + np.float32([110, 0]))]

    return Models(generator=generator, trunk=trunk, discriminator=discriminator, detector=detect, base="tiny")


@pytest.fixture
def style(generator: Generator) -> Style:
    """A style that turns faces dark."""
    dark = Generator(**generator.config())
    dark.load_state_dict(generator.state_dict())
    with torch.no_grad():
        dark.synthesis.to_rgb[-1].bias.sub_(1.5)
    return style_between(generator, dark, method="jojogan", options={}, provenance={"base": "tiny"})


def make_photo(height: int = 140, width: int = 240) -> np.ndarray:
    """A smooth synthetic photo."""
    y, x = np.mgrid[:height, :width]
    return np.stack([128 + 90 * np.sin(x / 17), 128 + 90 * np.cos(y / 13), 64 + (x + y) / 4], -1).astype(
        np.uint8
    )


def test_every_face_is_restyled_and_the_rest_stays(models: Models, style: Style) -> None:
    """Two faces, both changed; pixels away from them are bit-identical; progress is reported per face."""
    photo, steps = make_photo(), []
    result = stylize(photo, style, StylizeOptions(**FAST), models=models, on_step=steps.append)
    assert len(result.faces) == len(result.portraits) == 2
    changed = (result.pixels != photo).any(-1)
    for face in result.faces:
        x, y = face.alignment.quad.mean(0).round().astype(int)
        assert changed[y - 3 : y + 3, x - 3 : x + 3].all()
        assert face.styled.mean() < face.embedded.mean() - 20
    quads = np.concatenate([face.alignment.quad for face in result.faces])
    assert not changed[:, : max(0, int(quads[:, 0].min()) - 1)].any()
    outside = np.ones_like(changed)
    for face in result.faces:
        low, high = (
            np.floor(face.alignment.quad.min(0)).astype(int),
            np.ceil(face.alignment.quad.max(0)).astype(int),
        )
        outside[max(0, low[1]) : high[1] + 1, max(0, low[0]) : high[0] + 1] = False
    assert not (changed & outside).any()
    assert [step.item for step in steps] == [1, 1, 2, 2]
    assert steps[0] == dataclasses.replace(PipelineStep("embed", 1, 2, 1, 2, 0.0), loss=steps[0].loss)


def test_identity_is_measured_when_asked_for(models: Models, style: Style) -> None:
    """Both figures are squared distances of embeddings; without the argument the embedder is not even loaded."""
    photo, options = make_photo(), StylizeOptions(face="largest", **FAST)
    embedded = embed_faces(photo, options, models=models)
    plain = stylize(photo, style, options, models=models, embedded=embedded).faces[0]
    assert (plain.identity_embedded, plain.identity_styled) == (None, None)
    assert "embedder" not in vars(models)
    face = stylize(
        photo, style, options, models=models, embedded=embedded, identity=models.identity_distance
    ).faces[0]
    assert np.array_equal(face.styled, plain.styled)
    crop, near, far = (
        models.embedder(media.to_image(pixels)) for pixels in (face.crop, face.embedded, face.styled)
    )
    assert face.identity_embedded == pytest.approx(float((near - crop).norm() ** 2), abs=5e-3)
    assert face.identity_styled == pytest.approx(float((far - crop).norm() ** 2), abs=5e-3)
    assert face.identity_styled != pytest.approx(face.identity_embedded, abs=1e-2)


def test_results_repeat(models: Models, style: Style) -> None:
    """Two runs are bit-identical."""
    first, second = (
        stylize(make_photo(), style, StylizeOptions(**FAST), models=models).pixels for _ in range(2)
    )
    assert np.array_equal(first, second)


def test_faces_are_finished_by_detail_unless_told_otherwise(models: Models, style: Style) -> None:
    """Layers grown above the generator double the faces; the photo's other pixels and its size stay."""
    config = models.generator.config()
    whole = config | {"resolution": 64, "channels": config["channels"] | {64: 4}}
    models.__dict__["detail"] = Detail(config=whole, below=32).requires_grad_(False)
    photo = make_photo()
    large = stylize(photo, style, StylizeOptions(**FAST), models=models)
    small = stylize(photo, style, StylizeOptions(**FAST, detail=False), models=models)
    assert large.pixels.shape == small.pixels.shape == photo.shape
    for one, other in zip(large.faces, small.faces, strict=True):
        assert one.styled.shape == one.embedded.shape == (64, 64, 3)
        assert other.styled.shape == other.embedded.shape == (32, 32, 3)
        assert one.report.psnr == other.report.psnr, "the search is the small generator's"


def test_flat_looks_are_not_finished(models: Models, style: Style) -> None:
    """A style whose file says so comes without the layers above, which go as the strength comes."""
    config = models.generator.config()
    whole = config | {"resolution": 64, "channels": config["channels"] | {64: 4}}
    detail = Detail(config=whole, below=32).requires_grad_(False)
    with torch.no_grad():
        detail.to_rgb[0].bias.fill_(0.2)  # type: ignore[operator]
    models.__dict__["detail"] = detail
    flat = dataclasses.replace(style, options={"detail": False})
    photo, options = make_photo(), StylizeOptions(face="largest", blend="weights", **FAST)
    embedded = embed_faces(photo, options, models=models)

    def face(one: Style, **more: object) -> np.ndarray:
        how = dataclasses.replace(options, **more)  # type: ignore[arg-type]
        return stylize(photo, one, how, models=models, embedded=embedded).faces[0].styled

    assert np.array_equal(face(flat), face(style, detail=False))
    assert face(flat).shape == (32, 32, 3)
    assert face(style).shape == face(flat, strength=0.5).shape == (64, 64, 3)
    assert np.array_equal(face(flat, strength=0.0), face(style, strength=0.0)), "nothing of the style yet"
    merged = merge([flat, style], [1.0, 0.5])
    assert (merged.detail, merge([flat, style], [0.5, 1.0]).detail) == (False, True)


def test_strength_zero_is_the_embedding(models: Models, style: Style) -> None:
    """And searching once serves several styles and strengths."""
    photo, options = make_photo(), StylizeOptions(strength=0.0, face="largest", **FAST)
    embedded = embed_faces(photo, options, models=models)
    assert len(embedded) == 1
    result = stylize(photo, style, options, models=models, embedded=embedded)
    assert np.array_equal(result.faces[0].styled, result.faces[0].embedded)
    assert result.faces[0].distance_styled == pytest.approx(result.faces[0].distance_embedded, abs=1e-6)
    whole = stylize(
        photo, style, dataclasses.replace(options, strength=1.0), models=models, embedded=embedded
    )
    half = stylize(photo, style, dataclasses.replace(options, strength=0.5), models=models, embedded=embedded)
    means = [result.faces[0].styled.mean() for result in (whole, half, result)]
    assert means == sorted(means)


def test_pivotal_tuning_carries_the_style(models: Models, style: Style) -> None:
    """The tuned person's picture is nearer than the search's, and the style comes on top."""
    options = StylizeOptions(face="largest", **FAST)
    plain = stylize(make_photo(), style, options, models=models).faces[0]
    tuned = stylize(
        make_photo(), style, dataclasses.replace(options, inverter="pivotal", tune_steps=6), models=models
    )
    assert tuned.faces[0].report.psnr > plain.report.psnr
    assert tuned.faces[0].styled.mean() < tuned.faces[0].embedded.mean() - 20


def test_a_blend_takes_the_encoders_codes_unless_told_otherwise(
    models: Models, style: Style, trunk: Lite0
) -> None:
    generator = models.generator
    core = CompactCore(num_rows=generator.num_rows, w_dim=W_DIM, input_px=32, width=16, hidden=16, rank=8)
    with_encoder = dataclasses.replace(models, encoder=CompactEncoder(trunk=trunk, core=core))
    blend = dataclasses.replace(style, method="blend")
    options = StylizeOptions(**FAST)
    for given, method, wanted in (
        (with_encoder, blend, "encoder"),
        (with_encoder, style, "hybrid"),
        (models, blend, "w+"),
    ):
        result = stylize(make_photo(), method, options, models=given)
        assert [face.report.method for face in result.faces] == [wanted, wanted]
    asked = dataclasses.replace(options, inverter="w+")
    assert suit_inverter(asked, blend, with_encoder) is asked


def test_closeness_keeps_the_code_near_the_mean(models: Models) -> None:
    """It is a weight of the search, so a large one leaves the code nearer to faces that the generator knows."""
    options = StylizeOptions(face="largest", invert_steps=12)
    far = []
    for closeness in (0.0, 5.0):
        chosen = dataclasses.replace(options, closeness=closeness)
        ((_, found),) = embed_faces(make_photo(), chosen, models=models)
        far.append(float((found.latent.tensor - models.generator.w_avg).norm()))
    assert far[1] < 0.7 * far[0]


def test_crop_gives_portraits_and_leaves_the_photo(models: Models, style: Style) -> None:
    """Portraits have the size that was asked for."""
    photo = make_photo()
    result = stylize(photo, style, StylizeOptions(crop=True, size=80, **FAST), models=models)
    assert [portrait.shape for portrait in result.portraits] == [(80, 80, 3)] * 2
    assert np.array_equal(result.pixels, photo)
    sheet = compare_sheet(photo, result, 64)
    assert sheet.shape[1] > 3 * 64
    assert sheet.shape[0] > 2 * 64


def test_landmarks_and_aligned_pictures_need_no_detector(models: Models, style: Style) -> None:
    """A square picture, in which the detector finds nothing, works both ways; without them it is a clear error."""
    photo = make_photo(120, 120)
    by_hand = stylize(photo, style, StylizeOptions(landmarks=LANDMARKS, **FAST), models=models)
    assert len(by_hand.faces) == 1
    aligned = stylize(photo, style, StylizeOptions(aligned=True, **FAST), models=models)
    assert aligned.faces[0].alignment.scale == pytest.approx(120 / 32)
    with pytest.raises(FaceNotFoundError, match="me.png: no face found"):
        stylize(photo, style, StylizeOptions(**FAST), models=models, where="me.png")


def test_a_style_of_another_base_is_refused_before_any_search(models: Models, style: Style) -> None:
    """The message names both."""
    with pytest.raises(KeyMismatchError, match="learned on"):
        stylize(make_photo(), dataclasses.replace(style, base="0" * 64), models=models)


def test_learning_from_pictures_with_and_without_a_face(models: Models) -> None:
    """A drawing without a face is taken as aligned, with a note; the style knows where it comes from."""
    options = LearnOptions(steps=3, invert_steps=2)
    steps: list[PipelineStep] = []
    result = learn_style(
        [make_photo(), make_photo(100, 90)],
        options,
        models=models,
        names=["photo.png", "drawing.png"],
        on_step=steps.append,
    )
    assert result.notes == ["drawing.png: no face found, so its middle square is taken for an aligned face"]
    assert [(step.stage, step.step) for step in steps] == [("embed", 1), ("embed", 2)] + [
        ("learn", n) for n in (1, 2, 3)
    ]
    assert result.style.provenance["names"] == ["photo.png", "drawing.png"]
    assert result.style.options["steps"] == 3
    assert result.style.thumbnail is not None
    result.style.check_base(models.generator)


def test_sources_lend_their_codes(models: Models) -> None:
    """The code is the source's, the target the style picture."""
    picture = make_photo(96, 96)
    source = np.ascontiguousarray(picture[:, ::-1])
    options = LearnOptions(steps=1, invert_steps=3)
    own = learn_style([source], options, models=models)
    lent = learn_style([picture], options, models=models, sources=[source])
    assert np.array_equal(own.embedded[0], lent.embedded[0])
    assert not np.array_equal(own.references[0], lent.references[0])
    with pytest.raises(OptionError, match="1 sources for 2 pictures"):
        learn_style([picture, picture], options, models=models, sources=[source])


def test_learning_needs_a_discriminator(models: Models) -> None:
    """The message says where there is one."""
    with pytest.raises(CheckpointError, match="tiny has no discriminator"):
        learn_style([make_photo()], models=dataclasses.replace(models, discriminator=None))


@pytest.fixture
def base(tmp_path: Path, generator: Generator, discriminator: Discriminator) -> Path:
    """A model file with the tiny networks."""
    checkpoint = checkpoints.Checkpoint("limner", generator=generator, discriminator=discriminator)
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoint, path)
    return path


@pytest.fixture
def photo_file(tmp_path: Path) -> Path:
    """A photo, to be used with landmarks."""
    path = tmp_path / "me.png"
    Image.fromarray(make_photo()).save(path)
    return path


def stylize_words(photo: Path, base: Path, style: str | Path, *more: str) -> list[str]:
    """Return a fast command line."""
    marks = ",".join(map(str, LANDMARKS))
    words = ["stylize", str(photo), "--style", str(style), "--model", str(base), "--landmarks", marks]
    return [*words, "--invert-steps", "2", "--device", "cpu", *more]


def test_stylize_command(
    base: Path, style: Style, generator: Generator, photo_file: Path, capsys: pytest.CaptureFixture
) -> None:
    """Output beside the photo with its options inside, comparison, no overwriting unless told."""
    file = photo_file.with_name("dark.limner")
    save_style(style, file, generator)
    words = stylize_words(photo_file, base, file, "--compare", "--json")
    assert main(words) == 0
    output = photo_file.with_name("me-dark.png")
    record = json.loads(capsys.readouterr().out)
    assert record["photos"][0]["files"] == [str(output), str(output.with_name("me-dark-compare.png"))]
    figures = record["photos"][0]["faces"][0]
    assert 0 < figures["identity"] < 2
    assert 0 < figures["identity_styled"] < 2
    written = media.read(output)
    assert written.pixels.shape == make_photo().shape
    assert written.source_type == "compositeWithTrainedAlgorithmicMedia"
    provenance = media.read_provenance(output)
    assert provenance is not None
    assert provenance["options"]["command"] == "stylize"
    first = output.read_bytes()
    assert main(words) == 2
    assert "exists already; give --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert output.read_bytes() == first


def test_a_whole_generator_is_a_style(
    base: Path, style: Style, generator: Generator, photo_file: Path, capsys: pytest.CaptureFixture
) -> None:
    """A checkpoint of another program does what the style file does; the base and a stranger are refused."""
    save_style(style, photo_file.with_name("dark.limner"), generator)
    stranger = make_generator(seed=9)
    for name, network in (("whole.safetensors", style.apply(generator)), ("stranger.safetensors", stranger)):
        checkpoints.save(checkpoints.Checkpoint(generator=network), photo_file.with_name(name))
    pictures = []
    for name in ("dark.limner", "whole.safetensors"):
        out = photo_file.with_name(f"{name}.png")
        assert main(stylize_words(photo_file, base, photo_file.with_name(name), "--out", str(out))) == 0
        pictures.append(media.read(out).pixels.astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 2
    assert np.abs(pictures[0] - make_photo()).max() > 30
    capsys.readouterr()
    for file, message in (
        (base, "the base model itself"),
        (photo_file.with_name("stranger.safetensors"), "not made from one another"),
    ):
        assert main(stylize_words(photo_file, base, file, "--overwrite")) == 2
        assert message in capsys.readouterr().err


def test_stylize_command_refuses_before_it_works(
    base: Path, photo_file: Path, capsys: pytest.CaptureFixture
) -> None:
    """The photo itself as output, one file for two photos, an unknown style."""
    for more, message in (
        (["--out", str(photo_file), "--overwrite"], "which the command reads"),
        ([str(photo_file), "--out", "x.png"], "name a folder"),
        ([], "expected a known style"),
    ):
        assert main(stylize_words(photo_file, base, "nosuch", *more)) == 2
        assert message in capsys.readouterr().err


def test_what_does_not_fit_is_told_before_any_search(
    base: Path, style: Style, generator: Generator, photo_file: Path, capsys: pytest.CaptureFixture
) -> None:
    """Layers, a lone strength, an encoder that is missing or of no use; a name that is nearly right."""
    dark = photo_file.with_name("dark.limner")
    save_style(style, dark, generator)
    for more, message in (
        (["--layers", "foo"], "cannot read 'foo'"),
        (["--hold", "0-30"], "names 30"),
        (["--also-strength", "0.3"], "name them with --also"),
        (["--inverter", "psp"], "name its checkpoint with --encoder"),
        (["--inverter", "w", "--encoder", str(base)], "does not use --encoder"),
        (["--inverter", "encoder", "--encoder", str(base)], "holds no encoder"),
        (["--style", "tooon"], "did you mean toon"),
        (["--style", f"{base}:3"], "holds no DualStyleGAN"),
    ):
        assert main(stylize_words(photo_file, base, dark, *more)) == 2, more
        said = capsys.readouterr()
        assert message in said.err
        assert "embedding" not in said.out + said.err


def test_portraits_of_several_faces_replace_nothing_unasked(
    base: Path, style: Style, generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Numbered files are known once the faces are; one that exists stops its photo and no other."""
    whole = tmp_path / "whole.png"
    Image.fromarray(make_photo(64, 64)).save(whole)
    options = {"overwrite": False}
    assert portrait_paths(whole, 1, **options) == [whole]
    names = [path.name for path in portrait_paths(whole, 2, **options)]
    assert names == ["whole-1.png", "whole-2.png"]
    (tmp_path / "whole-2.png").touch()
    with pytest.raises(OptionError, match=r"whole-2.png exists already, and the photo has 2 faces"):
        portrait_paths(whole, 2, **options)
    assert len(portrait_paths(whole, 2, overwrite=True)) == 2


def test_an_encoder_finds_the_codes_of_photos_and_style_pictures(
    base: Path, photo_file: Path, capsys: pytest.CaptureFixture
) -> None:
    """A checkpoint of pSp brings a generator without a discriminator along; the model stays the base."""
    torch.manual_seed(5)
    encoder = Encoder(rows=8, in_size=64, w_dim=W_DIM, widths=(6, 8, 10, 12), depths=(1, 1, 1, 1))
    file = base.with_name("psp.pt")
    with pytest.warns(UserWarning, match="the original programs cannot load it"):
        checkpoints.save(checkpoints.Checkpoint(generator=make_generator(), encoder=encoder), file)
    family = encoder.family
    out = base.with_name("learned.limner")
    words = ["learn", str(photo_file), "--aligned", "--no-preview", "--steps", "1", "--model", str(base)]
    words += ["--inverter", family, "--encoder", str(file), "--device", "cpu", "--out", str(out)]
    assert main(words) == 0
    learned = load_style(out)
    assert learned.codes is not None
    assert learned.codes.shape == (1, 8, W_DIM)
    assert learned.provenance["base"] == "tiny"
    more = ["--inverter", family, "--encoder", str(file), "--json"]
    assert main(stylize_words(photo_file, base, out, *more)) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["photos"][0]["faces"][0]
    assert found["method"] == family


def test_a_photo_that_fails_does_not_stop_the_others(
    base: Path, style: Style, generator: Generator, photo_file: Path, capsys: pytest.CaptureFixture
) -> None:
    """The good photo is written, the broken one reported, the exit status says so."""
    save_style(style, photo_file.with_name("dark.limner"), generator)
    broken = photo_file.with_name("broken.png")
    broken.write_bytes(b"")
    words = stylize_words(
        broken, base, photo_file.with_name("dark.limner"), str(photo_file), "--crop", "--size", "40"
    )
    assert main(words) == 2
    assert "broken.png is empty" in capsys.readouterr().err
    assert media.read(photo_file.with_name("me-dark.png")).pixels.shape == (40, 40, 3)
    assert not photo_file.with_name("broken-dark.png").exists()


def test_learn_command_writes_a_style_and_a_preview(
    base: Path, photo_file: Path, generator: Generator, capsys: pytest.CaptureFixture
) -> None:
    """The file belongs to the base; a second run asks before it replaces it."""
    out = photo_file.with_name("mine.limner")
    words = [
        "learn",
        str(photo_file),
        "--aligned",
        "--steps",
        "2",
        "--invert-steps",
        "2",
        "--model",
        str(base),
    ]
    words += ["--out", str(out), "--licence", "CC0", "--device", "cpu"]
    assert main(words) == 0
    learned = load_style(out)
    learned.check_base(generator)
    assert learned.licence == "CC0"
    assert learned.options["aligned"] is True
    assert media.read(out.with_name("mine-preview.png")).source_type == "trainedAlgorithmicMedia"
    capsys.readouterr()
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_pictures_beyond_the_limit_are_refused(
    base: Path, style: Style, generator: Generator, photo_file: Path, capsys: pytest.CaptureFixture
) -> None:
    """By stylize, as photo and as style picture, and by learn."""
    limit = ["--max-megapixels", "0.01"]
    style_picture = media.write(photo_file.with_name("look.png"), make_photo())
    small = media.write(photo_file.with_name("small.png"), make_photo(90, 90))
    dark = photo_file.with_name("dark.limner")
    save_style(style, dark, generator)
    for words in (
        ["learn", str(style_picture), "--model", str(base), "--out", str(photo_file.with_name("x.limner"))],
        stylize_words(small, base, style_picture),
        stylize_words(photo_file, base, dark),
    ):
        assert main([*words, *limit]) == 2
        assert "max-megapixels" in capsys.readouterr().err.replace("_", "-")


def test_random_noise_is_never_used_when_painting(models: Models, style: Style) -> None:
    """Torch's global random state plays no part."""
    first = stylize(make_photo(), style, StylizeOptions(**FAST), models=models).pixels
    torch.randn(W_DIM)
    assert np.array_equal(first, stylize(make_photo(), style, StylizeOptions(**FAST), models=models).pixels)


def test_demo_writes_photos_comparison_and_heads(
    base: Path, style: Style, generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """On a real photo, with the bundled detector; a folder that is not there is named."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    astronaut = media.read(Path(__file__).parents[1] / "examples/photos/astronaut.jpg").pixels[:220, 110:330]
    media.write(photos / "astronaut.png", np.ascontiguousarray(astronaut))
    save_style(style, tmp_path / "dark.limner", generator)
    words = [
        "demo",
        "--photos",
        str(photos),
        "--out",
        str(out),
        "--model",
        str(base),
        "--faces",
        "2",
        "--json",
    ]
    words += ["--invert-steps", "1", "--tune-steps", "1", "--device", "cpu"]
    assert main([*words, "--styles", str(tmp_path / "dark.limner")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {path.name for path in out.iterdir()} == {
        "astronaut-dark.png",
        "comparison.png",
        "random-heads.png",
    }
    assert [(entry["photo"], entry["style"]) for entry in record["figures"]] == [("astronaut", "dark")]
    assert record["figures"][0]["identity_styled"] > 0
    assert record["figures"][0]["identity_embedded"] > 0
    restyled = media.read(out / "astronaut-dark.png").pixels
    assert restyled.shape == astronaut.shape
    assert (restyled != astronaut).any()
    assert np.array_equal(restyled[-1, 0], astronaut[-1, 0])
    words += ["--styles", str(tmp_path / "dark.limner"), "--no-detail"]
    assert main([*words, "--inverter", "s"]) == 0
    assert media.read_provenance(out / "astronaut-dark.png")["options"]["inverter"] == "s"  # type: ignore[index]
    capsys.readouterr()
    for more, message in (
        (["--photos", str(tmp_path / "nowhere")], "expected a folder"),
        (["--inverter", "psp"], "name its checkpoint with --encoder"),
        (["--inverter", "s", "--encoder", str(base)], "does not use --encoder"),
        (["--inverter", "e4e", "--encoder", str(base)], "holds no encoder"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
