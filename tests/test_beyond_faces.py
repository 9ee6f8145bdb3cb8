"""Generators of other things than human faces: every command that looks for faces works with the looking turned off.

The drawing has no face that the bundled detector would find; where a command looks for one, it fails or says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner import checkpoints, media, zoo
from limner.app import cli
from limner.app.styles import was_learned_so
from limner.checkpoints.translator import save_translator
from limner.latent import load_latent, render
from limner.nn import deltas
from limner.nn.stylegan2 import Discriminator, Generator
from limner.nn.translator import Translator, TranslatorCore
from limner.pipeline import LearnOptions
from limner.stylization import Style, load_style, save_style
from limner.translation import TASKS

SIDE = 48


@pytest.fixture
def model(tmp_path: Path, generator: Generator, discriminator: Discriminator) -> Path:
    """A generator of anything but faces."""
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoints.Checkpoint(generator=generator, discriminator=discriminator), path)
    return path


@pytest.fixture
def relative(tmp_path: Path, generator: Generator) -> Path:
    """The same family, other colours."""
    other = Generator(**generator.config())
    other.load_state_dict(generator.state_dict())
    with torch.no_grad():
        other.synthesis.to_rgb[-1].bias.add_(0.7)
    path = tmp_path / "relative.safetensors"
    about = {"provenance": {"parent": "tiny"}}
    checkpoints.save(checkpoints.Checkpoint(generator=other, metadata=about), path)
    return path


@pytest.fixture
def drawing(tmp_path: Path) -> Path:
    """Stripes and a disc."""
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = np.stack([(x // 6 % 2) * 200, (y // 6 % 2) * 200, np.full_like(x, 60)], -1).astype(np.uint8)
    pixels[(x - 24) ** 2 + (y - 24) ** 2 < 100] = (250, 240, 20)
    path = tmp_path / "drawing.png"
    Image.fromarray(pixels).save(path)
    return path


def limner(*words: object) -> tuple[int, str, str]:
    """Run a command and return exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([*map(str, words), "--device", "cpu"])
    return status, out.getvalue(), err.getvalue()


def test_samples_and_blends_look_for_no_face(model: Path, relative: Path, tmp_path: Path) -> None:
    sheet, blend = tmp_path / "samples.png", tmp_path / "blend.safetensors"
    status, _, err = limner("sample", model, "--seeds", "0-3", "--grid", "-o", sheet)
    assert (status, media.read(sheet).pixels.shape[1] >= 64) == (0, True), err
    words = ("--swap", 16, "--unrelated", "-o", blend)
    status, _, err = limner("blend", model, relative, *words)
    assert status == 0, err
    assert checkpoints.load(blend).generator is not None


def test_a_drawing_is_inverted_as_a_whole(
    model: Path, drawing: Path, generator: Generator, tmp_path: Path
) -> None:
    """The code paints the whole drawing's colours; looked for, a face is not found and the command says so."""
    words = ("--model", model, "--method", "w+", "--steps", 30, "--mean-samples", 50, "-o", tmp_path / "out")
    status, _, err = limner("invert", drawing, *words)
    assert status == 2
    assert "no face" in err
    status, _, err = limner("invert", drawing, *words, "--aligned")
    assert status == 0, err
    found = load_latent(tmp_path / "out/drawing_01.safetensors")
    painted = render(generator, found.latent, found.noise or "constant")
    target = media.to_image(media.resize_pixels(media.read(drawing).pixels, generator.resolution))
    far = (generator(torch.randn(1, generator.z_dim)).clamp(-1, 1) - target).square().mean()
    assert (painted.clamp(-1, 1) - target).square().mean() < 0.8 * far


def test_a_style_is_learned_from_a_drawing_and_put_on_one(model: Path, drawing: Path, tmp_path: Path) -> None:
    """With --aligned nothing is said of a face that was not found; the restyled drawing keeps its size."""
    style = tmp_path / "drawing.limner"
    fast = ("--model", model, "--invert-steps", 2, "--quiet")
    status, _, err = limner("learn", drawing, "--aligned", "--no-preview", "--steps", 2, *fast, "-o", style)
    assert status == 0, err
    assert "no face" not in err
    assert load_style(style).options["aligned"]
    out = tmp_path / "restyled.png"
    words = (drawing, "--style", style, "--inverter", "w", *fast)
    status, _, err = limner("stylize", *words, "--aligned", "-o", out)
    assert status == 0, err
    pixels, before = media.read(out).pixels, media.read(drawing).pixels
    assert pixels.shape == before.shape
    assert (pixels != before).any()
    status, _, err = limner("stylize", *words, "-o", tmp_path / "never.png")
    assert status == 2
    assert "no face" in err


def test_a_style_learned_from_the_whole_picture_is_not_taken_for_one_of_its_face(
    model: Path, drawing: Path, generator: Generator, tmp_path: Path
) -> None:
    """`stylize --style PICTURE --style-aligned` reuses what it learned before only if that was learned so, too."""
    digest = hashlib.sha256(drawing.read_bytes()).hexdigest()
    about = {"sha256": [digest], "trunk": "lite0"}
    style = Style({}, deltas.digest(generator), "jojogan", {"aligned": True}, provenance=about)
    assert was_learned_so(style, digest, LearnOptions(aligned=True), "lite0")
    assert not was_learned_so(style, digest, LearnOptions(), "lite0")
    assert not was_learned_so(style, digest[::-1], LearnOptions(aligned=True), "lite0")
    save_style(style, tmp_path / "drawing.limner", generator, samples=1)
    words = ("--style", drawing, "--style-aligned", "--aligned", "--model", model, "--inverter", "w")
    status, text, err = limner("stylize", drawing, *words, "--invert-steps", 1, "-o", tmp_path / "out.png")
    assert status == 0, err
    assert "learned from drawing.png before" in text + err


def test_drawings_are_translated_as_a_whole(
    model: Path, drawing: Path, generator: Generator, tmp_path: Path
) -> None:
    """A task that looks for faces takes the whole drawing with --aligned; lines of it need no face, nor does filling."""
    torch.manual_seed(3)
    tasks = {name: TASKS[name].in_channels for name in ("sketch", "frontal", "inpaint")}
    core = TranslatorCore(num_rows=8, w_dim=16, tasks=tasks, input_px=32, width=8, hidden=16, rank=4)
    base = {"name": "tiny", "digest": deltas.digest(generator)}
    translator = tmp_path / "translator.safetensors"
    save_translator(Translator(trunk=zoo.load("lite0"), core=core, base=base), translator, provenance={})
    words = ("--model", translator, "--generator", model, "--size", SIDE)
    status, _, err = limner("translate", drawing, "--task", "frontal", *words, "-o", tmp_path / "never.png")
    assert status == 2
    assert "no face" in err
    assert "--aligned" in err
    for task, more in (
        ("frontal", ()),
        ("sketch", ("--from-photo",)),
        ("inpaint", ("--from-photo", "--paste")),
    ):
        out = tmp_path / f"{task}.png"
        status, _, err = limner("translate", drawing, "--task", task, *more, *words, "--aligned", "-o", out)
        assert status == 0, err
        assert media.read(out).pixels.shape == (SIDE, SIDE, 3)
    filled, before = media.read(tmp_path / "inpaint.png").pixels, media.read(drawing).pixels
    assert 0 < (filled != before).any(2).mean() < 0.8


def test_drawings_are_edited_as_a_whole(model: Path, drawing: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.fromarray(media.read(drawing).pixels[:, ::-1].copy()).save(other)
    out = tmp_path / "morph.png"
    words = ("--model", model, "--inverter", "w", "--invert-steps", 2, "--json", "-o", out)
    status, text, err = limner("edit", "morph", drawing, other, "--aligned", *words)
    assert status == 0, err
    assert json.loads(text)
    assert out.is_file()
