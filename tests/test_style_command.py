"""``limner learn`` going on and previewing, ``limner style``: merging, export, sheets; several styles in one pass."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import W_DIM
from PIL import Image

from limner import checkpoints, media
from limner.app.cli import main
from limner.nn import deltas
from limner.nn.stylegan2 import Discriminator, Generator
from limner.stylization import Style, load_style, merge, save_style


@pytest.fixture
def base(generator: Generator, discriminator: Discriminator, tmp_path: Path) -> Path:
    """A base model's file."""
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoints.Checkpoint("limner", generator=generator, discriminator=discriminator), path)
    return path


def make_style(generator: Generator, amount: float) -> Style:
    """A style that moves the colours of the last toRGB."""
    delta = {
        "synthesis.to_rgb.3.bias": torch.full_like(generator.state_dict()["synthesis.to_rgb.3.bias"], amount)
    }
    return Style(delta=delta, base=deltas.digest(generator), method="test", options={})


def test_learning_resumes_and_previews(base: Path, capsys: pytest.CaptureFixture) -> None:
    """Steps add up, the pictures are not embedded again, the growing sheet is there."""
    picture = base.with_name("art.png")
    y, x = np.mgrid[:32, :32]
    Image.fromarray(np.stack([x * 8, y * 8, 255 - x * 8], -1).astype(np.uint8)).save(picture)
    words = [
        "learn",
        str(picture),
        "--aligned",
        "--model",
        str(base),
        "--no-preview",
        "--device",
        "cpu",
        "--quiet",
    ]
    first, second = base.with_name("a.limner"), base.with_name("b.limner")
    fast = ["--invert-steps", "2", "--preview-every", "1"]
    assert main([*words, *fast, "--steps", "2", "--out", str(first)]) == 0
    assert media.read(base.with_name("a-steps.png")).pixels.shape[0] > 3 * 128
    assert main([*words, "--resume", str(first), "--steps", "1", "--out", str(second), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == 3
    assert set(result["figures"]) == {"embedded_distance", "styled_distance", "identity"}
    a, b = load_style(first), load_style(second)
    assert a.codes is not None
    assert b.codes is not None
    torch.testing.assert_close(a.codes, b.codes, rtol=0, atol=0)


def test_styles_merge_export_and_show(
    base: Path, generator: Generator, capsys: pytest.CaptureFixture
) -> None:
    """Weighted sums as style and as model; a sheet; descriptions; nothing is replaced unasked."""
    names = []
    for name, amount in (("one", 1.0), ("two", -0.5)):
        names.append(str(base.with_name(f"{name}.limner")))
        save_style(make_style(generator, amount), names[-1], generator)
    words = ["style", *names, "--weights", "0.5,1.5", "--model", str(base), "--device", "cpu"]
    for ending in (".limner", ".safetensors", ".png"):
        assert main([*words, "--out", str(base.with_name("both" + ending))]) == 0
    change = load_style(base.with_name("both.limner")).delta["synthesis.to_rgb.3.bias"]
    torch.testing.assert_close(change, torch.full_like(change, 0.5 - 0.75), atol=1e-3, rtol=1e-2)
    exported = checkpoints.load(base.with_name("both.safetensors")).generator
    assert isinstance(exported, Generator)
    w = torch.randn(1, W_DIM)
    with torch.no_grad():
        moved = exported.synthesis(exported.broadcast(w)) - generator.synthesis(generator.broadcast(w))
    torch.testing.assert_close(moved, torch.full_like(moved, -0.25), atol=1e-3, rtol=1e-2)
    assert media.read(base.with_name("both.png")).pixels.shape[1] >= 6 * 128
    assert main([*words, "--out", str(base.with_name("both.png"))]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["style", names[0]]) == 0
    assert "one.limner: test" in capsys.readouterr().out


def test_person_style_and_blend_add_up_in_one_pass(generator: Generator) -> None:
    """Deltas of the person, a style and a second one give what adding them one after the other gives."""
    first, second = make_style(generator, 0.5), make_style(generator, -0.2)
    second = dataclasses.replace(
        second,
        delta={"synthesis.layers.3.weight": 0.1 * torch.randn_like(generator.synthesis.layers[3].weight)},
    )
    person = deltas.apply(
        generator, [({"synthesis.const": torch.full_like(generator.synthesis.const, 0.3)}, 1.0)]
    )
    once = merge([first, second], [1.0, 0.5]).apply(person)
    later = second.apply(first.apply(person), strength=0.5)
    for name, value in once.state_dict().items():
        torch.testing.assert_close(value, later.state_dict()[name])
    assert not torch.equal(once.synthesis.const, generator.synthesis.const)
