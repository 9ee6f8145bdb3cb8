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


def test_a_file_keeps_to_its_size_and_sheets_to_theirs(
    generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Picture and codes count in the size of a style; a sheet of many faces is painted row by row."""
    torch.manual_seed(3)
    noise = {
        name: torch.randn_like(value) for name, value in generator.state_dict().items() if value.ndim > 1
    }
    picture = torch.randint(0, 255, (40, 40, 3), dtype=torch.uint8)
    style = dataclasses.replace(
        make_style(generator, 1.0), delta=noise, thumbnail=picture, codes=torch.randn(2, 8, W_DIM)
    )
    for budget in (24_000, 32_000):
        save_style(style, tmp_path / "big.limner", generator, budget_bytes=budget)
        assert 0.5 * budget < (tmp_path / "big.limner").stat().st_size <= budget
    base = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoints.Checkpoint("limner", generator=generator), base)
    words = ["style", str(tmp_path / "big.limner"), "--model", str(base), "--device", "cpu"]
    for samples in ("14", "6"):
        assert main([*words, "--samples", samples, "--out", str(tmp_path / f"{samples}.png")]) == 0
    whole, first = (media.read(tmp_path / f"{samples}.png").pixels for samples in ("14", "6"))
    assert whole.shape[0] > 2.9 * 128
    assert np.array_equal(whole[: first.shape[0] - 8], first[:-8])
    capsys.readouterr()
    for asked, message in (("tooon", "did you mean toon"), (str(tmp_path / "no.limner"), "no style or file")):
        assert main(["style", asked]) == 2
        assert message in capsys.readouterr().err
    assert main([*words, "--strength", "0.5"]) == 2
    assert "strength goes with a model or a sheet" in capsys.readouterr().err


def test_learning_refuses_before_it_searches(base: Path, capsys: pytest.CaptureFixture) -> None:
    """What does not fit is told before any step; the bar counts the steps that there are."""
    picture = base.with_name("art.png")
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(picture)
    words = ["learn", str(picture), "--aligned", "--model", str(base), "--no-preview", "--device", "cpu"]
    words += ["--invert-steps", "3", "--steps", "1", "--out", str(base.with_name("x.limner"))]
    for more, message in (
        (["--mask", "foo"], "cannot read 'foo'"),
        (["--follow", "77"], "77"),
        (["--feature-layers", "9"], "feature_layers has [9]"),
        (["--feature-weights", "1,1,1,1,1,1,1"], "feature_weights has 7 numbers"),
        (["--picture-weights", "1,2"], "picture_weights has 2 numbers for 1"),
        (["--inverter", "e4e"], "name its checkpoint with --encoder"),
        (["--inverter", "z", "--encoder", str(base)], "does not use --encoder"),
        (["--inverter", "pivotal"], "expected one of"),
        (["--resume", "tooon"], "did you mean toon"),
    ):
        assert main([*words, *more]) == 2, more
        said = capsys.readouterr()
        assert message in said.err
        assert "learning the style" not in said.out + said.err
    first = base.with_name("x.limner")
    for inverter in ("z", "z+", "ii2s"):
        assert main([*words, "--inverter", inverter, "--overwrite", "--quiet"]) == 0
    assert load_style(first).options["inverter"] == "ii2s"
