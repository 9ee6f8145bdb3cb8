"""``limner directions``: labels from tables, untangling, and the commands on a tiny model."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import W_DIM, make_generator
from PIL import Image

from limner import checkpoints, editing, media
from limner.app import cli
from limner.checkpoints.compact import save_encoder
from limner.editing.discover import find_boundary, fit_boundary, untangle
from limner.editing.labels import Rule, label, parse_rule, picture_key, read_table
from limner.errors import MediaError, OptionError, ShapeError
from limner.nn import deltas
from limner.nn.compact import CompactCore, CompactEncoder
from limner.nn.features import Lite0


def run(*words: object) -> tuple[int, str, str]:
    """Run ``limner directions`` and return exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["directions", *map(str, words)])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def model(tmp_path, generator) -> Path:
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoints.Checkpoint(generator=generator), path)
    return path


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("yaw", Rule("yaw", "yaw")),
        ("skin:melanin", Rule("skin", "melanin")),
        ("glasses!=none", Rule("glasses", "glasses", "!=", ("none",))),
        ("smile:expression=grin|laugh", Rule("smile", "expression", "=", ("grin", "laugh"))),
        ("old:age_years > 60", Rule("old", "age_years", ">", ("60",))),
    ],
)
def test_rules_are_read(text, rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["", "age>", "age>old", "a:b:c", "=x"])
def test_broken_rules(text):
    with pytest.raises(OptionError, match="expected"):
        parse_rule(text)


def test_labels_follow_the_table():
    rows = [{"age": float(n), "glasses": "sun" if n == 3 else "none", "fringe": n < 4} for n in range(8)]
    rows[5]["glasses"] = None
    assert label(rows, parse_rule("age")).tolist() == [0, 0, -1, -1, -1, -1, 1, 1]
    assert label(rows, parse_rule("age>4")).tolist() == [0] * 5 + [1] * 3
    assert label(rows, parse_rule("age<1")).tolist() == [1] + [0] * 7
    assert label(rows, parse_rule("glasses!=none")).tolist() == [0, 0, 0, 1, 0, -1, 0, 0]
    assert label(rows, parse_rule("fringe")).tolist() == [1] * 4 + [0] * 4
    assert label(rows, parse_rule("fringe=False")).tolist() == [0] * 4 + [1] * 4
    with pytest.raises(OptionError, match="did you mean 'glasses'"):
        label(rows, parse_rule("glases"))
    with pytest.raises(OptionError, match="holds words"):
        label(rows, parse_rule("glasses"))
    with pytest.raises(OptionError, match="no value 'clear'"):
        label(rows, parse_rule("glasses=clear"))


def test_tables_are_read(tmp_path):
    file = tmp_path / "meta.jsonl"
    file.write_text('{"seed": 7, "age": 1}\n\n{"name": "photo/anna.jpg", "age": 2}\n', encoding="utf-8")
    assert read_table(file) == {"7": {"seed": 7, "age": 1}, "anna": {"name": "photo/anna.jpg", "age": 2}}
    assert picture_key("photo/000007.jpg") == "7"
    file.write_text("{", encoding="utf-8")
    with pytest.raises(MediaError, match="line 1 is not JSON"):
        read_table(file)
    file.write_text("[1]", encoding="utf-8")
    with pytest.raises(MediaError, match="line 1: expected an object"):
        read_table(file)
    with pytest.raises(MediaError, match="No such file"):
        read_table(tmp_path / "none.jsonl")


def test_untangled_directions_leave_the_others_alone():
    torch.manual_seed(0)
    values = torch.randn(3, 16)
    found = untangle([editing.Direction(f"d{i}", one) for i, one in enumerate(values)])
    for i, one in enumerate(found):
        assert one.values.norm() == pytest.approx(float(values[i].norm()), rel=1e-5)
        for j in range(3):
            if i != j:
                assert abs(float(one.values @ values[j])) < 1e-4
        assert 0 < one.notes["kept"] <= 1
        assert float(one.values @ values[i]) > 0
    (alone,) = untangle([editing.Direction("d", values[0])])
    torch.testing.assert_close(alone.values, values[0])
    with pytest.raises(OptionError, match="made of the others"):
        untangle([editing.Direction("a", values[0]), editing.Direction("b", 2 * values[0])])
    with pytest.raises(ShapeError, match="same in every row"):
        untangle([editing.Direction("a", torch.ones(4, 16))])


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_a_boundary_is_where_the_loss_has_no_slope(noise):
    rng = torch.Generator().manual_seed(4)
    codes = torch.cat([torch.randn(60, 8, generator=rng), torch.ones(60, 1)], 1).double()
    labels = (codes[:, 0] - 0.3 + noise * torch.randn(60, generator=rng).double() > 0).double()
    found = fit_boundary(codes, labels, 0.5).requires_grad_()
    chance = torch.sigmoid(codes @ found)
    loss = -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
    (loss + 0.5 * found[:-1].square().sum() / 60).backward()
    assert found.grad is not None
    assert float(found.grad.abs().max()) < 1e-6
    assert float(found[0].detach()) > 0.3


def test_what_has_no_boundary():
    labels = torch.arange(20) % 2
    with pytest.raises(OptionError, match="hat: all 20 codes are the same"):
        find_boundary("hat", torch.ones(20, 4), labels)
    with pytest.raises(OptionError, match="hat: 8 faces, 4 of them"):
        find_boundary("hat", torch.randn(8, 4), labels[:8])
    with pytest.raises(OptionError, match="expected a number above 0"):
        find_boundary("hat", torch.randn(20, 4), labels, penalty=0)


def test_directions_are_found_named_listed_and_used(model, tmp_path, generator):
    file = tmp_path / "d.safetensors"
    status, out, err = run("find", "--model", model, "--count", 2, "-o", file)
    assert status == 0, err
    assert "factor-1" in out
    assert "component-2" in out
    status, out, err = run("name", file, "factor-1=-hair", "factor-2=", "-o", tmp_path / "n.safetensors")
    assert status == 0, err
    named, notes = editing.load_directions(tmp_path / "n.safetensors")
    old, _ = editing.load_directions(file)
    assert list(named) == ["hair", "component-1", "component-2"]
    torch.testing.assert_close(named["hair"].values, -old["factor-1"].values)
    assert named["hair"].notes["was"] == "factor-1"
    assert notes["base"]["digest"] == deltas.digest(generator)
    status, out, _ = run("list", tmp_path / "n.safetensors", "--json")
    assert [one["name"] for one in json.loads(out)["directions"]] == list(named)
    words = ("edit", "direction", "seed:1", tmp_path / "n.safetensors", "--model", model)
    assert cli.main([*map(str, words), "--move", "hair=1", "-o", str(tmp_path / "x.png"), "--quiet"]) == 0
    assert "did you mean 'hair'" in run("name", tmp_path / "n.safetensors", "hiar=x")[2]
    assert "OLD=NEW" in run("name", file, "factor-1")[2]
    assert "no direction would be left" in run("name", file, "factor-1=", "--no-keep")[2]


def test_strips_show_the_face_in_the_middle(model, tmp_path, generator):
    file = tmp_path / "d.safetensors"
    run("find", "factorize", "--model", model, "--count", 1, "-o", file)
    words = ("show", file, "--model", model, "--faces", "seed:4-5", "--frames", 3, "-o", tmp_path / "s")
    status, _, err = run(*words)
    assert status == 0, err
    pixels = media.read(tmp_path / "s/factor-1.png").pixels
    z = torch.randn(1, W_DIM, generator=torch.Generator().manual_seed(5))
    face = media.to_pixels(generator(z, psi=0.7))[0]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, face.shape)[:, :, 0]
    top, left = np.argwhere((windows == face).all((2, 3, 4)))[0]
    assert len(np.argwhere((windows == face).all((2, 3, 4)))) == 1, "moved faces are others"
    assert top > pixels.shape[0] // 2, "the second face's row"
    assert pixels.shape[1] // 3 - 8 < left < pixels.shape[1] * 2 // 3, "the middle column"
    other = tmp_path / "other.safetensors"
    checkpoints.save(checkpoints.Checkpoint(generator=make_generator(3)), other)
    assert "another generator" in run("show", file, "--model", other, "-o", tmp_path / "t")[2]
    assert "no direction 'x'" in run("show", file, "x", "--model", model)[2]


@pytest.fixture
def heads(tmp_path, generator) -> Path:
    """Two dozen numbered pictures by the generator; the table says how their w lies along its first entry."""
    folder = tmp_path / "data/photo"
    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(9)
    with torch.no_grad():
        w = generator.mapping(torch.randn(24, W_DIM, generator=rng))
        image = generator.synthesis(generator.broadcast(w)).clamp(-1, 1)
    lines = []
    for number, pixels in enumerate(media.to_pixels(image)):
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
        lines.append(json.dumps({"seed": number, "bright": float(pixels.mean()), "kind": "ab"[number % 2]}))
    (folder.parent / "meta.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def encoder(tmp_path, generator) -> Path:
    """A compact encoder of the generator whose weights are random, so that codes differ with the pictures."""
    torch.manual_seed(2)
    core = CompactCore(num_rows=generator.num_rows, w_dim=W_DIM, input_px=32, width=8, hidden=16, rank=4)
    for weight in core.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    core.w_avg.copy_(generator.w_avg)
    base = {"name": "tiny", "digest": deltas.digest(generator)}
    whole = CompactEncoder(trunk=Lite0().eval(), core=core, base=base)
    path = tmp_path / "encoder.safetensors"
    save_encoder(whole, path, provenance={}, packed=False)
    return path


def test_boundaries_are_found_from_a_table(model, heads, encoder, tmp_path):
    file = tmp_path / "l.safetensors"
    words = ("find", "labels", "--model", model, "--encoder", encoder, "--heads", heads, "--select", "0-23")
    attributes = ("--attributes", "light:bright,kind=a", "-o", file)
    status, _, err = run(*words, *attributes, "--preview", tmp_path / "strips")
    assert status == 0, err
    found, _ = editing.load_directions(file)
    assert list(found) == ["light", "kind"]
    assert found["light"].notes["faces"] == 12, "the lower and the upper quarter"
    assert found["kind"].notes["labelled"] == 12
    assert (tmp_path / "strips/light.png").is_file()
    assert "already; give --overwrite" in run(*words, *attributes)[2]
    status, _, err = run(*words, *attributes, "--untangle", "--overwrite")
    apart, _ = editing.load_directions(file)
    assert abs(float(apart["light"].values @ found["kind"].values)) < 1e-3
    assert "no column 'dark'" in run(*words, "--attributes", "dark")[2]
    assert "few: 24 faces, 0 of them" in run(*words, "--attributes", "few:seed>90")[2]
    assert "says nothing about" in run(*words[:-1], "0-23", "--table", _other_table(tmp_path))[2]


def _other_table(tmp_path) -> Path:
    path = tmp_path / "other.jsonl"
    path.write_text('{"seed": 900, "x": 1}\n', encoding="utf-8")
    return path


def test_what_cannot_be_found(model, tmp_path):
    assert "some of factorize" in run("find", "guess", "--model", model)[2]
    assert "--heads" in run("find", "labels", "--model", model)[2]
    assert "nothing at" in run("find", "labels", "--model", model, "--heads", tmp_path / "none")[2]
    assert "no such file" in run("list", tmp_path / "none.safetensors")[2]
    file = tmp_path / "d.safetensors"
    assert "expected 1 to 16" in run("find", "factorize", "--model", model, "--count", 99, "-o", file)[2]
    assert not file.exists()
