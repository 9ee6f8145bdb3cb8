"""``limner blend`` on tiny models, and what it makes used by other commands."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_generator

from limner import checkpoints, media
from limner.app import cli
from limner.checkpoints import Checkpoint
from limner.checkpoints.child import save_child
from limner.stylization.blend import blend
from limner.stylization.blend_options import BlendOptions
from limner.stylization.blend_style import blend_style
from limner.stylization.style import load_style, save_style

CELL = 32 + 4


def limner(*words: object) -> tuple[int, str, str]:
    """Run a command and return exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([*map(str, words), "--device", "cpu"])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def folder(tmp_path, generator, discriminator) -> Path:
    """A folder with a base, a whole child model, the same as a child file, and a stranger."""
    child, other = copy.deepcopy(generator), copy.deepcopy(discriminator)
    with torch.no_grad():
        for parameter in child.synthesis.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        other.fc.bias.add_(1.0)
    base = Checkpoint(generator=generator, discriminator=discriminator, metadata={"licence": "CC0-1.0"})
    checkpoints.save(base, tmp_path / "tiny.safetensors")
    whole = Checkpoint(generator=child, discriminator=other, raw_generator=child, metadata={"licence": "MIT"})
    checkpoints.save(whole, tmp_path / "whole.safetensors")
    save_child(child, generator, tmp_path / "toon.safetensors", base_name="tiny")
    checkpoints.save(Checkpoint(generator=make_generator(8)), tmp_path / "stranger.safetensors")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*the original programs cannot load")  # such small networks
@pytest.mark.parametrize("name", ["blend.safetensors", "blend.pt"])
def test_blend_writes_a_model_in_every_format(folder, name):
    status, out, err = limner(
        "blend",
        folder / "tiny.safetensors",
        folder / "whole.safetensors",
        "--swap",
        16,
        "-o",
        folder / name,
        "--json",
    )
    assert status == 0, err
    assert json.loads(out)["files"] == [str(folder / name)]
    parents = [checkpoints.load(folder / f"{stem}.safetensors") for stem in ("tiny", "whole")]
    found = checkpoints.load(folder / name)
    expected = blend([parent.generator for parent in parents], BlendOptions(swap=(16,)))
    for tensor, value in expected.state_dict().items():
        torch.testing.assert_close(found.generator.state_dict()[tensor], value, msg=tensor)
    # 4 px, where the discriminator's last layers lie, are the base's
    assert torch.equal(found.discriminator.fc.bias, parents[0].discriminator.fc.bias)
    assert found.raw_generator is None  # only one parent has one


def test_a_blend_tells_where_it_comes_from(folder):
    target = folder / "blend.safetensors"
    status, _, err = limner(
        "blend",
        folder / "tiny.safetensors",
        folder / "toon.safetensors",
        "--layers",
        "all=0.5",
        "-o",
        target,
        "--half",
    )
    assert status == 0, err
    metadata = checkpoints.load(target).metadata
    about = metadata["provenance"]
    assert metadata["licence"] == "CC0-1.0; unknown"
    assert about["options"]["layers"] == "all=0.5"
    assert [Path(parent["name"]).stem for parent in about["parents"]] == ["tiny", "toon"]
    assert len({parent["digest"] for parent in about["parents"]}) == 2
    assert "blended alike" in about["discriminator"]
    status, _, err = limner("blend", folder / "tiny.safetensors", folder / "toon.safetensors", "-o", target)
    assert status == 2
    assert "--overwrite replaces it" in err


def test_the_sheet_shows_every_swap_point(folder):
    """Ends are the models themselves; no two neighbouring columns are the same but where only the mapping differs."""
    target = folder / "sheet.png"
    words = (
        "blend",
        folder / "tiny.safetensors",
        folder / "whole.safetensors",
        "--seeds",
        "0-2",
        "-o",
        target,
    )
    status, out, err = limner(*words, "--json")
    assert status == 0, err
    assert json.loads(out)["files"] == [str(target)]
    sheet = media.read(target).pixels
    rows = sheet[-3 * CELL :]
    columns = [rows[:, x : x + 32] for x in range(sheet.shape[1] - 10 * CELL, sheet.shape[1], CELL)]
    z = torch.cat([torch.randn(1, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    for stem, column in (("tiny", columns[0]), ("whole", columns[-1])):
        with torch.no_grad():
            faces = media.to_pixels(checkpoints.load(folder / f"{stem}.safetensors").generator(z, psi=0.7))
        for number, face in enumerate(faces):
            assert np.array_equal(column[number * CELL : number * CELL + 32], face)
    moved = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(columns)]
    assert all(step > 0.2 for step in moved[:-1])
    assert moved[-1] == 0


def test_strangers_are_refused(folder):
    words = (
        "blend",
        folder / "tiny.safetensors",
        folder / "stranger.safetensors",
        "-o",
        folder / "x.safetensors",
    )
    status, _, err = limner(*words, "--swap", 8)
    assert status == 2
    assert "were not made from one another" in err
    assert not (folder / "x.safetensors").exists()
    assert limner(*words, "--swap", 8, "--unrelated")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny.safetensors"], "two models or more"),
        (["tiny.safetensors", "toon.safetensors", "-o", "x.onnx"], "cannot write"),
        (["tiny.safetensors", "toon.safetensors", "-o", "x.pt", "--half"], "Limner's own format only"),
        (
            ["tiny.safetensors", "toon.safetensors", "--swap", "64", "-o", "x.safetensors"],
            "layers of 4, 8, 16, 32 px",
        ),
        (["tiny.safetensors", "nothing", "-o", "x.safetensors"], "no model is called 'nothing'"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    status, _, err = limner("blend", *words)
    assert status == 2
    assert message in err
    assert sorted(folder.iterdir()) == before


def test_a_style_refers_to_a_child_and_sample_takes_it(folder, monkeypatch):
    """Blend to a style and sample in it: the same pictures as of the blended model."""
    monkeypatch.chdir(folder)
    status, out, err = limner(
        "blend", "tiny.safetensors", "toon.safetensors", "--swap", 8, "-o", "toonify.limner"
    )
    assert status == 0, err
    assert "adds layers of toon.safetensors to tiny" in out
    style = load_style("toonify.limner")
    assert style.options["child"] == "toon.safetensors"
    assert style.options["swap"] == [8]
    assert (folder / "toonify.limner").stat().st_size < 3000

    status, _, err = limner(
        "sample",
        "tiny.safetensors",
        "--style",
        "toonify.limner",
        "--seeds",
        3,
        "-o",
        "a.png",
        "--strength",
        1,
    )
    assert status == 0, err
    status, _, err = limner(
        "blend", "tiny.safetensors", "toon.safetensors", "--swap", 8, "-o", "b.safetensors"
    )
    assert status == 0, err
    assert limner("sample", "b.safetensors", "--seeds", 3, "-o", "b.png")[0] == 0
    difference = media.read("a.png").pixels.astype(int) - media.read("b.png").pixels
    assert np.abs(difference).max() <= 1


def test_stylize_takes_a_blend_style(folder, monkeypatch, generator):
    monkeypatch.chdir(folder)
    save_style(blend_style("toon", BlendOptions(swap=(8,)), beside=folder), "toonify.limner", generator)
    photo = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    media.write("photo.png", photo)
    words = ["stylize", "photo.png", "--model", "tiny.safetensors", "--aligned", "--invert-steps", 1]
    for strength in (0, 1):
        status, _, err = limner(
            *words, "--style", "toonify.limner", "--strength", strength, "-o", f"{strength}.png"
        )
        assert status == 0, err
    pictures = [media.read(f"{strength}.png").pixels.astype(int) for strength in (0, 1)]
    assert np.abs(pictures[0] - pictures[1]).mean() > 1


def test_a_style_of_models_that_are_no_children_holds_the_difference(folder, monkeypatch):
    monkeypatch.chdir(folder)
    status, out, err = limner(
        "blend", "tiny.safetensors", "whole.safetensors", "--swap", 16, "-o", "own.limner", "--take", "coarse"
    )
    assert status == 0, err
    assert "packing changes pictures by" in out
    style = load_style("own.limner")
    assert style.method == "blend"
    assert "child" not in style.options
    assert "synthesis.layers.0.weight" in style.delta
    assert "synthesis.layers.6.weight" not in style.delta
    assert style.licence == "CC0-1.0; MIT"
