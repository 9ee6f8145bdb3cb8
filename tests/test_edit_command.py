"""``limner edit`` on a tiny model, and the films it writes."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner import checkpoints, editing, media, zoo
from limner.app import cli
from limner.app.commands import edit
from limner.app.console import Console
from limner.app.edited import SequenceOptions, write_sequence
from limner.checkpoints.detail import read_detail, save_detail
from limner.errors import MediaError, MissingExtraError, OptionError
from limner.latent import Latent, load_latent, render, save_latent
from limner.nn import deltas
from limner.nn.detail import Detail
from limner.nn.encoders import Encoder
from limner.nn.stylegan2 import Generator
from limner.training.gan.training import start_from

CELL = 36


@pytest.fixture
def model(tmp_path, generator) -> Path:
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoints.Checkpoint(generator=generator), path)
    return path


@pytest.fixture
def codes(tmp_path, generator) -> list[Path]:
    """Three latent files, the first with noise maps and a change of the generator."""
    files = []
    for n in range(3):
        latent = Latent(
            "w+", torch.randn(1, generator.num_rows, 16, generator=torch.Generator().manual_seed(n))
        )
        base = {"base": {"name": "tiny", "digest": deltas.digest(generator)}}
        extra = {}
        if n == 0:
            maps = [
                torch.randn(1, 1, *layer.get_buffer("noise").shape) for layer in generator.synthesis.layers
            ]
            change = {"synthesis.to_rgb.3.bias": torch.full_like(generator.synthesis.to_rgb[3].bias, 0.5)}
            extra = {"noise": maps, "delta": deltas.compress(change).tensors}
        files.append(save_latent(tmp_path / f"face{n}.safetensors", latent, metadata=base, **extra))
    return files


@pytest.fixture
def photo(tmp_path, generator) -> Path:
    """An aligned picture that the model painted."""
    z = torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(2))
    return media.write(tmp_path / "photo.png", media.to_pixels(generator(z, psi=0.5))[0])


@pytest.fixture
def detail(generator, tmp_path) -> Detail:
    """Layers above the tiny generator, to 64 px, installed as ``limner models pull`` does."""
    config = generator.config()
    torch.manual_seed(3)
    whole = Generator(**config | {"resolution": 64, "channels": config["channels"] | {64: 4}})
    start_from(whole, generator)
    torch.nn.init.normal_(whole.synthesis.to_rgb[-1].weight)
    whole.w_avg.copy_(generator.w_avg)
    cache = tmp_path / "limner-cache"
    cache.mkdir()
    save_detail(whole, generator, cache / "tiny-64.safetensors", base_name="tiny")
    file = cache / "tiny-64.safetensors"
    zoo.install(zoo.Download("tiny-64", "detail", "https://example.org/tiny-64.safetensors", "CC0-1.0"), file)
    return read_detail(file).detail


def run(*words: object) -> tuple[int, str, str]:
    """Run ``limner edit`` and return exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["edit", *map(str, words), "--device", "cpu"])
    return status, out.getvalue(), err.getvalue()


def shown(generator, file: Path, detail: Detail | None = None) -> np.ndarray:
    """What a latent file paints."""
    portrait = editing.Portrait.of(load_latent(file))
    return media.to_pixels(editing.paint(generator, portrait, detail=detail))[0]


def cells(path: Path, side: int = 32) -> list[np.ndarray]:
    """The pictures of a sheet's last row."""
    sheet = media.read(path).pixels
    cell = side + CELL - 32
    row = sheet[-cell:][:side]
    return [row[:, left : left + side] for left in range(4, sheet.shape[1] - side, cell)]


def test_a_morph_as_strip_frames_and_film(model, codes, generator, tmp_path):
    words = ("morph", *codes, "--model", model, "--frames", 3)
    status, text, err = run(*words, "-o", tmp_path / "strip.png", "--json")
    assert status == 0, err
    assert json.loads(text)["frames"] == 5
    strip = cells(tmp_path / "strip.png")
    assert len(strip) == 5
    for place, file in ((0, codes[0]), (2, codes[1]), (4, codes[2])):
        assert np.array_equal(strip[place], shown(generator, file))
    provenance = media.read_provenance(tmp_path / "strip.png")
    assert provenance is not None
    assert provenance["options"]["command"] == "edit morph"
    assert provenance["options"]["frames"] == 3
    assert run(*words, "-o", tmp_path / "frames")[0] == 0
    frames = sorted((tmp_path / "frames").glob("*.png"))
    assert [file.name for file in frames] == [f"{n:04d}.png" for n in range(5)]
    assert all(np.array_equal(media.read(f).pixels, cell) for f, cell in zip(frames, strip, strict=True))
    assert run(*words, "-o", tmp_path / "film.gif", "--fps", 10)[0] == 0
    film = list(media.read_film(tmp_path / "film.gif"))
    assert len(film) == 5
    assert all(np.abs(x.astype(int) - y).mean() < 8 for x, y in zip(film, strip, strict=True))
    with Image.open(tmp_path / "film.gif") as picture:
        assert picture.info["duration"] == 100
        note = json.loads(picture.info["comment"])
    assert note["options"]["command"] == "edit morph"
    assert note["digital_source_type"].endswith("/trainedAlgorithmicMedia")


def test_a_morph_as_mp4(model, codes, tmp_path):
    av = pytest.importorskip("av")
    status, _, err = run("morph", *codes[:2], "--model", model, "--frames", 4, "-o", tmp_path / "film.mp4")
    assert status == 0, err
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert json.loads(container.metadata["comment"])["options"]["command"] == "edit morph"
        assert container.streams.video[0].average_rate == 20
    frames = list(media.read_film(tmp_path / "film.mp4"))
    assert len(frames) == 4
    assert frames[0].shape == (32, 32, 3)


def test_a_sheet_of_mixtures(model, codes, generator, tmp_path):
    words = ("mix", codes[1], "--styles", codes[2], "--model", model, "--layers", "4-")
    assert run(*words, "-o", tmp_path / "one.png")[0] == 0
    a, b = (load_latent(file).latent.tensor for file in codes[1:])
    mixed = torch.cat([a[:, :4], b[:, 4:]], 1)
    wanted = media.to_pixels(render(generator, Latent("w+", mixed)))[0]
    assert np.array_equal(media.read(tmp_path / "one.png").pixels, wanted)
    status, _, err = run(*words, "--styles", "seed:3-4", "--grid", "-o", tmp_path / "grid.png")
    assert status == 0, err
    sheet = media.read(tmp_path / "grid.png").pixels[-CELL:][:32]  # labels stand left of it and above
    assert np.array_equal(sheet[:, -3 * CELL :][:, :32], wanted)
    assert run(*words, "--styles", "seed:3", "-o", tmp_path / "folder")[0] == 0
    names = {file.name for file in (tmp_path / "folder").iterdir()}
    assert names == {"face1+face2.png", "face1+seed3.png"}
    assert "--styles" in run("mix", codes[1], "--model", model)[2]


def test_expression_without_strength_is_the_face(model, codes, generator, tmp_path):
    words = ("expression", *codes, "--model", model, "--strength", 0, "--compare")
    status, _, err = run(*words, "-o", tmp_path / "x.png", "--save-latent", tmp_path / "kept.safetensors")
    assert status == 0, err
    face, _, _, result = cells(tmp_path / "x.png")
    assert np.array_equal(face, result)
    # The codes that are kept have the noise maps and the change of the generator still.
    kept = load_latent(tmp_path / "kept.safetensors")
    assert kept.noise is not None
    assert kept.delta is not None
    assert np.array_equal(shown(generator, tmp_path / "kept.safetensors"), face)


def test_expression_within_a_region_and_from_a_sequence(model, codes, generator, tmp_path):
    assert (
        run(
            "expression",
            *codes,
            "--model",
            model,
            "--region",
            "lower",
            "--feather",
            0,
            "-o",
            tmp_path / "x.png",
        )[0]
        == 0
    )
    pixels, before = media.read(tmp_path / "x.png").pixels, shown(generator, codes[0])
    assert np.array_equal(pixels[:16], before[:16])
    assert not np.array_equal(pixels[16:], before[16:])
    words = ("expression", codes[0], "--driving", f"{codes[1]},{codes[2]}", "--model", model)
    status, _, err = run(*words, "-o", tmp_path / "strip.png")
    assert status == 0, err
    still, moved = cells(tmp_path / "strip.png")
    assert np.array_equal(still, before)
    assert not np.array_equal(moved, before)
    status, _, err = run("expression", codes[0], "--model", model)
    assert status == 2
    assert "--driving" in err


def test_inpainting_keeps_what_is_known(model, photo, tmp_path):
    words = ("inpaint", photo, "right", "--model", model, "--aligned", "--steps", 2, "--feather", 0)
    status, _, err = run(*words, "-o", tmp_path / "x.png")
    assert status == 0, err
    pixels, known = media.read(tmp_path / "x.png"), media.read(photo).pixels
    assert np.abs(pixels.pixels[:, :16].astype(int) - known[:, :16]).max() <= 1
    assert not np.array_equal(pixels.pixels[:, 16:], known[:, 16:])
    assert pixels.source_type == "compositeWithTrainedAlgorithmicMedia"
    mask = np.zeros((32, 32, 3), np.uint8)
    mask[:, 16:] = 255
    words = ("inpaint", photo, media.write(tmp_path / "mask.png", mask), *words[3:])
    assert run(*words, "-o", tmp_path / "y.png")[0] == 0
    assert np.array_equal(media.read(tmp_path / "y.png").pixels, pixels.pixels)
    assert run(*words, "--no-keep", "-o", tmp_path / "z.png")[0] == 0
    assert media.read(tmp_path / "z.png").source_type == "trainedAlgorithmicMedia"


def test_crossover_and_transfer_of_photos(model, codes, photo, tmp_path):
    common = ("--model", model, "--aligned", "--steps", 2, "--invert-steps", 2)
    for words in (
        ("crossover", photo, codes[0], "--region", "mouth"),
        ("transfer", codes[0], photo, "--way", "gram", "--region", "face"),
        ("transfer", photo, codes[0]),
    ):
        out = tmp_path / "-".join(str(word) for word in words[::2] if "/" not in str(word))
        status, _, err = run(*words, *common, "-o", out.with_suffix(".png"), "--compare")
        assert status == 0, err
        assert len(cells(out.with_suffix(".png"))) == 3
    assert "--way gram" in run("transfer", codes[0], codes[1], "--region", "face", *common)[2]


def test_sliders(model, codes, generator, tmp_path):
    base = {"base": {"name": "tiny", "digest": deltas.digest(generator)}}
    found = [editing.Direction("smile", torch.ones(16)), editing.Direction("age", -torch.ones(16))]
    file = editing.save_directions(tmp_path / "d.safetensors", found, metadata=base)
    words = ("direction", codes[1], file, "--model", model)
    assert run(*words, "--move", "smile=1,age=1", "-o", tmp_path / "x.png")[0] == 0
    assert np.array_equal(media.read(tmp_path / "x.png").pixels, shown(generator, codes[1]))
    status, _, err = run(*words, "--move", "smile=-1:1", "--frames", 3, "-o", tmp_path / "y.png")
    assert status == 0, err
    low, middle, high = cells(tmp_path / "y.png")
    assert np.array_equal(middle, shown(generator, codes[1]))
    assert not np.array_equal(low, high)
    for move, message in (
        ("simle=1", "did you mean 'smile'"),
        ("smile", "NAME=AMOUNT"),
        ("smile=nan", "NAME=AMOUNT"),
    ):
        assert message in run(*words, "--move", move)[2]
    other = editing.save_directions(
        tmp_path / "o.safetensors", found, metadata={"base": {"name": "x", "digest": "y"}}
    )
    assert (
        "another generator (x)" in run("direction", codes[1], other, "--model", model, "--move", "age=1")[2]
    )


def test_faces_are_finished_unless_told_otherwise(model, codes, generator, detail, tmp_path):
    """Strips, sheets, films and single pictures are larger with the layers above; what is given is shown alike."""
    large, plain = (shown(generator, codes[0], layers) for layers in (detail, None))
    assert large.shape == (64, 64, 3)
    common = ("--model", model)
    morph = ("morph", *codes[:2], *common, "--frames", 2)
    assert run(*morph, "-o", tmp_path / "strip.png")[0] == 0
    first, last = cells(tmp_path / "strip.png", 64)
    assert np.array_equal(first, large)
    assert np.array_equal(last, shown(generator, codes[1], detail))
    assert run(*morph, "--no-detail", "-o", tmp_path / "plain.png")[0] == 0
    assert np.array_equal(cells(tmp_path / "plain.png")[0], plain)
    assert run(*morph, "-o", tmp_path / "film.gif")[0] == 0
    assert [one.shape for one in media.read_film(tmp_path / "film.gif")] == [(64, 64, 3)] * 2
    mix = ("mix", codes[0], "--styles", codes[0], "--grid", *common)
    assert run(*mix, "-o", tmp_path / "grid.png")[0] == 0
    assert np.array_equal(media.read(tmp_path / "grid.png").pixels[-68:-4, -68:-4], large)
    words = ("expression", *codes, *common, "--region", "lower", "--feather", 0, "--compare")
    status, _, err = run(*words, "-o", tmp_path / "x.png", "--save-latent", tmp_path / "kept.safetensors")
    assert status == 0, err
    face, _, _, result = cells(tmp_path / "x.png", 64)
    assert np.array_equal(result[:32], face[:32])
    assert not np.array_equal(result[32:], face[32:])
    kept = load_latent(tmp_path / "kept.safetensors")
    assert kept.noise is not None
    assert len(kept.noise) == len(generator.synthesis.layers), "codes stay the small generator's"


def test_searches_stay_at_the_generators_size(model, codes, photo, generator, detail, tmp_path):
    common = ("--model", model, "--aligned", "--steps", 2, "--invert-steps", 2, "--compare")
    for number, words in enumerate(
        (
            ("crossover", codes[1], codes[0], "--region", "mouth"),
            ("transfer", codes[1], photo, "--way", "gram", "--region", "face", "--noise", "joint"),
            ("inpaint", photo, "right", "--feather", 0, "--no-keep"),
        )
    ):
        out, kept = tmp_path / f"{number}.png", [tmp_path / f"{number}-{way}.safetensors" for way in "ab"]
        status, _, err = run(*words, *common, "-o", out, "--save-latent", kept[0])
        assert status == 0, err
        again = ("--no-detail", "-o", tmp_path / "p.png", "--overwrite", "--save-latent", kept[1])
        assert run(*words, *common, *again)[0] == 0
        found, same = (load_latent(file) for file in kept)
        assert torch.equal(found.latent.tensor, same.latent.tensor)
        assert np.array_equal(cells(out, 64)[2], shown(generator, kept[0], detail))
        assert np.array_equal(cells(tmp_path / "p.png")[2], shown(generator, kept[1]))


def test_known_pixels_come_from_the_photo_at_the_size_that_is_painted(model, generator, detail, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, 35:] = 255  # no edge of the small generator's pixels
    photo, hole = media.write(tmp_path / "p.png", pixels), media.write(tmp_path / "m.png", mask)
    words = ("inpaint", photo, hole, "--model", model, "--aligned", "--steps", 2, "--feather", 0)
    status, _, err = run(*words, "-o", tmp_path / "x.png")
    assert status == 0, err
    result = media.read(tmp_path / "x.png").pixels
    assert np.abs(result[:, :35].astype(int) - pixels[:, :35]).max() <= 1
    assert np.abs(result[:, 35:].astype(int) - pixels[:, 35:]).mean() > 20


@pytest.mark.parametrize("inverter", ["z", "z+", "s", "ii2s", "psp"])
def test_every_inverter_finds_faces_to_edit(inverter, model, generator, photo, tmp_path):
    torch.manual_seed(5)
    encoder = Encoder(rows=8, in_size=64, w_dim=16, widths=(6, 8, 10, 12), depths=(1, 1, 1, 1))
    with pytest.warns(UserWarning, match="the original programs cannot load it"):
        checkpoints.save(checkpoints.Checkpoint(generator=generator, encoder=encoder), tmp_path / "psp_x.pt")
    common = (
        "--model",
        model,
        "--aligned",
        "--invert-steps",
        1,
        "--frames",
        2,
        "-o",
        tmp_path / "x.png",
        "--overwrite",
    )
    words = ("morph", photo, "seed:1", *common, "--inverter", inverter)
    more = ("--encoder", tmp_path / "psp_x.pt")
    status, _, err = run(*words, *(more if inverter == "psp" else ()))
    assert status == 0, err
    assert len(cells(tmp_path / "x.png")) == 2
    wrong = run(*words, *(() if inverter == "psp" else more))
    assert wrong[0] == 2
    assert ("name its checkpoint with --encoder" if inverter == "psp" else "does not use --encoder") in wrong[
        2
    ]
    status, _, err = run(*words[:-1], "auto", *more)
    assert status == 2
    assert "the one that was named is for the inverter psp" in err


def test_earlier_results_stay_unless_told_otherwise(model, codes, tmp_path):
    morph = ("morph", *codes[:2], "--model", model, "--frames", 2)
    mix = ("mix", codes[1], "--styles", codes[2], "--model", model)
    codes_file = tmp_path / "kept.safetensors"
    expression = ("expression", *codes, "--model", model, "--save-latent", codes_file)
    for words, out, file in (
        (morph, "m.gif", "m.gif"),
        (morph, "frames", "frames/0000.png"),
        (mix, "mixed", "mixed/face1+face2.png"),
        ((*mix, "--grid"), "sheet", "sheet/mixed.png"),
        (expression, "x", "x/expression.png"),
    ):
        words = (*words, "-o", tmp_path / out)
        assert run(*words)[0] == 0
        before = (tmp_path / file).read_bytes()
        status, _, err = run(*words)
        assert status == 2
        more = " and 1 more exist" if out == "frames" else " exists"
        assert f"{tmp_path / file}{more} already; give --overwrite" in err
        assert (tmp_path / file).read_bytes() == before
        assert run(*words, "--overwrite")[0] == 0
    assert str(codes_file) in run(*expression, "-o", tmp_path / "y.png")[2], "codes too"
    assert not (tmp_path / "y.png").exists()


def test_files_in_the_way_are_found_before_any_face_is_read(model, codes, photo, tmp_path, monkeypatch):
    """A folder with a dot in its name is one; any frame counts, not the first alone."""
    folder = tmp_path / "faces.v2"
    folder.mkdir()
    mix = ("mix", photo, "--styles", f"{codes[0]},seed:3-4", "--model", model, "--aligned", "--no-detail")
    assert run(*mix, "-o", folder, "--inverter", "w", "--invert-steps", 1)[0] == 0
    made = ["photo+face0.png", "photo+seed3.png", "photo+seed4.png"]
    assert sorted(file.name for file in folder.iterdir()) == made
    monkeypatch.setattr(edit, "_load", None)
    (folder / made[0]).unlink()
    status, _, err = run(*mix, "-o", folder)
    assert status == 2
    assert f"{folder / made[1]} and 1 more exist already; give --overwrite" in err
    (folder / "0003.png").touch()
    morph = ("morph", *codes[:2], "--model", model, "--frames", 4, "-o", folder)
    assert f"{folder}/0003.png exists already" in run(*morph)[2]
    (folder / "0003.png").rename(folder / "0002.png")
    drive = ("expression", codes[0], "--driving", ",".join(map(str, codes)), "--model", model, "-o", folder)
    assert f"{folder}/0002.png exists already" in run(*drive)[2]


def test_frames_are_all_free_before_one_is_painted(tmp_path):
    """Words may stand for more faces than one, so how many frames there are shows late."""
    (tmp_path / "0005.png").touch()
    for count, free in ((5, True), (6, False)):
        painted: list[int] = []

        def paint(i: int, painted: list[int] = painted) -> np.ndarray:
            painted.append(i)
            return np.zeros((4, 4, 3), np.uint8)

        about = (SequenceOptions(), {}, Console())
        with contextlib.nullcontext() if free else pytest.raises(OptionError, match="0005.png exists"):
            write_sequence(tmp_path, count, paint, *about)
        assert len(painted) == (5 if free else 0)
        for i in range(5):
            (tmp_path / f"{i:04d}.png").unlink(missing_ok=True)


def test_what_cannot_be_edited(model, codes, tmp_path):
    foreign = save_latent(
        tmp_path / "f.safetensors",
        Latent("w", torch.zeros(1, 16)),
        metadata={"base": {"name": "x", "digest": "y"}},
    )
    small = save_latent(tmp_path / "s.safetensors", Latent("w", torch.zeros(1, 8)))
    for words, message in (
        (("morph", codes[0]), "two faces or more"),
        (("morph", codes[0], foreign), "codes of another generator (x)"),
        (("morph", codes[0], small), "expected [(16,)]"),
        (("morph", codes[0], "seed:x"), "is no seed"),
        (("morph", codes[0], codes[1], "-o", tmp_path / "x.avi"), "possible are"),
        (("crossover", codes[0], "seed:1-2"), "holds 2 faces"),
        (("crossover", codes[0], codes[1], "--region", "muoth"), "did you mean 'mouth'"),
        (("crossover", codes[0], codes[1], "-o", tmp_path / "x.gif"), "cannot write .gif"),
    ):
        status, _, err = run(*words, "--model", model)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1


# ---- films


def test_what_was_given_is_not_replaced(model, codes, photo, tmp_path):
    before = photo.read_bytes(), codes[0].read_bytes()
    plain = ("--model", model, "--aligned", "--steps", 1)
    for words in (
        ("inpaint", photo, "mouth", *plain, "-o", tmp_path / "." / "photo.png"),
        ("crossover", codes[0], codes[1], *plain, "-o", tmp_path / "a.png", "--save-latent", codes[0]),
        ("mix", photo, "--styles", codes[0], "--model", model, "--aligned", "-o", photo),
    ):
        status, _, err = run(*words)
        assert status == 2
        assert "which the command reads; choose another name" in err
    assert before == (photo.read_bytes(), codes[0].read_bytes())
    status, _, err = run("crossover", codes[0], codes[1], *plain, "--save-latent", tmp_path / "codes.png")
    assert status == 2
    assert "expected a file that ends in .safetensors" in err


def test_films_say_what_is_wrong(tmp_path, monkeypatch):
    frame = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(MediaError, match="one frame or more"):
        media.write_film(tmp_path / "x.gif", [])
    with pytest.raises(MediaError, match="frame 2 is"):
        media.write_film(tmp_path / "x.gif", [frame, frame[:4]])
    with pytest.raises(MediaError, match="possible are .gif, .mp4"):
        media.write_film(tmp_path / "x.mov", [frame])
    with pytest.raises(MediaError, match="no such file"):
        list(media.read_film(tmp_path / "none.mp4"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    with pytest.raises((MediaError, MissingExtraError)):
        list(media.read_film(tmp_path / "broken.mp4"))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match="limner\\[video\\]"):
        media.write_film(tmp_path / "x.mp4", [frame])
    with pytest.raises(MissingExtraError, match="PyAV"):
        media.check_film("x.mp4")


def test_films_come_back(tmp_path):
    rng = np.random.default_rng(0)
    frames = [np.full((9, 13, 3), rng.integers(0, 256, 3), np.uint8) for _ in range(5)]
    media.write_film(tmp_path / "x.gif", frames)
    back = list(media.read_film(tmp_path / "x.gif"))
    assert all(np.array_equal(x, y) for x, y in zip(back, frames, strict=True))
    assert len(list(media.read_film(tmp_path / "x.gif", most=2))) == 2
    pytest.importorskip("av")
    media.write_film(tmp_path / "x.mp4", frames, fps=12.5)
    back = list(media.read_film(tmp_path / "x.mp4"))
    assert [one.shape for one in back] == [(8, 12, 3)] * 5
    assert all(np.abs(x.astype(int) - y[:8, :12]).mean() < 12 for x, y in zip(back, frames, strict=True))
