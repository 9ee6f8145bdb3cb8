"""Photos that are none, too large, empty or without a face, at the command line: one clear line each."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from limner import media
from limner.app import cli


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


@pytest.mark.slow
def test_twelve_faces_are_twelve_portraits(tmp_path):
    data = pytest.importorskip("skimage.data")
    face = data.astronaut()[:200, 150:310]
    media.write(tmp_path / "twelve.png", np.vstack([np.hstack([face] * 4)] * 3))
    status, out, _ = run("align", tmp_path / "twelve.png", "-o", tmp_path / "out", "--json")
    assert status == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 12
    assert json.loads(out)
