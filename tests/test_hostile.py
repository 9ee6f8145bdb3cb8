"""Photos, models and folders that cannot be used, at the command line: one clear line each."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from limner import checkpoints, media
from limner.app import cli
from limner.nn.stylegan2 import Generator
from limner.stylization.style import save_style, style_between


def run(*words: object) -> tuple[int, str, str]:
    """Run one command line and return exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([*map(str, words), "--device", "cpu"])
    return status, out.getvalue(), err.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_header(folder: Path) -> Path:
    """A PNG of 1 kB that claims 30,000 x 30,000 pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (folder / "huge.png").write_bytes(data)
    return folder / "huge.png"


def no_bytes(folder: Path) -> Path:
    (folder / "zero.jpg").write_bytes(b"")
    return folder / "zero.jpg"


def cut_short(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = media.write(folder / "cut.png", noise).read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    return folder / "cut.png"


def no_picture(folder: Path) -> Path:
    (folder / "text.jpg").write_text("This is no picture.")
    return folder / "text.jpg"


def no_face(folder: Path) -> Path:
    return media.write(folder / "grey.png", np.full((96, 96, 3), 180, np.uint8))


def folder_itself(folder: Path) -> Path:
    return folder


def nothing(folder: Path) -> Path:
    return folder / "nothing.jpg"


def errors_in(text: str) -> list[str]:
    """Return the lines of standard error that say what is wrong."""
    assert "Traceback" not in text
    return [line for line in text.splitlines() if "error: " in line]


@pytest.fixture
def model(tmp_path, generator, discriminator) -> Path:
    """A tiny model file."""
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoints.Checkpoint(generator=generator, discriminator=discriminator), path)
    return path


@pytest.fixture
def style(tmp_path, generator) -> Path:
    """A style file of the tiny model."""
    other = Generator(**generator.config())
    other.load_state_dict(generator.state_dict())
    with torch.no_grad():
        other.synthesis.to_rgb[-1].bias.sub_(1)
    path = tmp_path / "dark.limner"
    save_style(style_between(generator, other, method="jojogan", options={}), path, generator)
    return path


@pytest.fixture
def portrait(tmp_path) -> Path:
    """A picture that can be taken for an aligned face."""
    return media.write(tmp_path / "portrait.png", np.full((48, 48, 3), 120, np.uint8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (huge_header, "30000 x 30000 px"),
        (no_bytes, "is empty (0 bytes)"),
        (cut_short, "cut.png is broken or cut short"),
        (no_picture, "is not a picture"),
        (no_face, "no face found; try"),
        (folder_itself, "is a directory, expected a picture"),
        (nothing, "no such file"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_photos_that_cannot_be_used(tmp_path, make, message):
    photo = make(tmp_path)
    status, _, err = run("align", photo, "-o", tmp_path / "out")
    errors = [line for line in err.splitlines() if line.startswith("limner: error: ")]
    assert status == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert str(photo) in errors[0]
    assert "Traceback" not in err
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("command", ["stylize", "invert"])
def test_every_photo_that_cannot_be_used_is_named(tmp_path, model, style, command):
    bad = [make(tmp_path) for make in (huge_header, no_bytes, cut_short, no_picture, no_face, nothing)]
    words = [command, *bad, "--model", model, "--out", tmp_path / "out"]
    status, _, err = run(*words, *(["--style", style] if command == "stylize" else []))
    assert status == 2
    for photo in bad:
        assert sum(str(photo) in line for line in errors_in(err)) == 1, photo
    assert not [file for file in (tmp_path / "out").rglob("*") if file.suffix in (".png", ".safetensors")]


@pytest.mark.parametrize(
    "make", [huge_header, no_bytes, cut_short, no_picture], ids=lambda make: make.__name__
)
def test_pictures_that_no_style_can_be_learned_from(tmp_path, model, make):
    picture = make(tmp_path)
    status, _, err = run("learn", picture, "--model", model, "--out", tmp_path / "x.limner")
    (line,) = errors_in(err)
    assert status == 2
    assert str(picture) in line
    assert not (tmp_path / "x.limner").exists()


@pytest.mark.parametrize(
    "words",
    [
        "align {portrait} --aligned --out {locked}",
        "stylize {portrait} --aligned --invert-steps 1 --style {style} --model {model} --out {locked}/a.png",
        "invert {portrait} --aligned --steps 1 --model {model} --out {locked}",
        "learn {portrait} --aligned --steps 1 --invert-steps 1 --model {model} --out {locked}/a.limner",
        "convert {model} {locked}/a.safetensors",
        "train gan --data {pictures} --resolution 32 --metric-samples 0 --discriminator stylegan2 --out {locked}/run",
    ],
    ids=lambda words: words.split()[0],
)
def test_folder_that_cannot_be_written(tmp_path, model, style, portrait, locked_folder, words):
    (tmp_path / "pictures").mkdir()
    media.write(tmp_path / "pictures/a.png", np.zeros((32, 32, 3), np.uint8))
    places = {"portrait": portrait, "style": style, "model": model, "locked": locked_folder}
    places |= {"pictures": tmp_path / "pictures"}
    status, _, err = run(*(word.format(**places) for word in words.split()))
    (line,) = errors_in(err)
    assert status == 2
    assert "Permission denied" in line
    assert str(locked_folder) in line
    assert not list(locked_folder.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "stylize {portrait} --style {style} --model {locked}/none.pt --out {locked}/a.png",
        "invert {portrait} --model {locked}/none.pt --out {locked}/folder",
        "learn {portrait} --model {locked}/none.pt --out {locked}/a.limner",
        "demo --model {locked}/none.pt --out {locked}/folder",
    ],
    ids=lambda words: words.split()[0],
)
def test_folder_is_tried_before_any_work(portrait, style, locked_folder, words):
    """The missing model would be the next error."""
    places = {"portrait": portrait, "style": style, "locked": locked_folder}
    status, _, err = run(*(word.format(**places) for word in words.split()))
    (line,) = errors_in(err)
    assert status == 2
    assert "Permission denied" in line


class Bomb:
    """Unpickling it by the book would make a folder."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "words",
    [
        "inspect {bad}",
        "convert {bad} {out}/a.safetensors",
        "sample {bad} --out {out}/a.png",
        "stylize {portrait} --aligned --style {style} --model {bad} --out {out}/a.png",
        "stylize {portrait} --aligned --style {bad} --model {model} --out {out}/a.png",
        "invert {portrait} --aligned --model {bad} --out {out}/a",
        "learn {portrait} --aligned --model {bad} --out {out}/a.limner",
        "train gan --data {out} --init {bad} --out {out}/run --metric-samples 0",
    ],
    ids=lambda words: words.replace("{", "").replace("}", "").replace(" ", "-")[:40],
)
def test_no_command_runs_a_malicious_pickle(tmp_path, model, style, portrait, words):
    bad, out = tmp_path / "evil.pt", tmp_path / "out"
    out.mkdir()
    torch.save({"g_ema": Bomb(tmp_path / "pwned")}, bad)
    places = {"bad": bad, "out": out, "portrait": portrait, "style": style, "model": model}
    status, _, err = run(*(word.format(**places) for word in words.split()))
    (line,) = errors_in(err)
    assert status == 2
    assert str(bad) in line
    assert not (tmp_path / "pwned").exists()
    assert not [file for file in out.rglob("*") if file.is_file()]


@pytest.mark.slow
def test_twelve_faces_are_twelve_portraits(tmp_path):
    data = pytest.importorskip("skimage.data")
    face = data.astronaut()[:200, 150:310]
    media.write(tmp_path / "twelve.png", np.vstack([np.hstack([face] * 4)] * 3))
    status, out, _ = run("align", tmp_path / "twelve.png", "-o", tmp_path / "out", "--json")
    assert status == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 12
    assert json.loads(out)
