"""Children: written as a packed difference, read as a whole model, refused on another base; styles made of them."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch
from conftest import W_DIM, make_generator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from limner import checkpoints, zoo
from limner.checkpoints import Checkpoint
from limner.checkpoints.child import read_child, save_child
from limner.errors import CheckpointError, KeyMismatchError, OptionError, UnknownFormatError
from limner.latent import Latent
from limner.nn import deltas
from limner.nn.stylegan2 import Generator
from limner.stylization.blend import blend
from limner.stylization.blend_options import BlendOptions
from limner.stylization.blend_style import blend_style
from limner.stylization.options import StyleOptions
from limner.stylization.style import load_style, paint, save_style
from limner.training.bundle import build_index


@pytest.fixture
def tuned(generator: Generator) -> Generator:
    """The generator with its synthesis network shaken."""
    other = copy.deepcopy(generator)
    with torch.no_grad():
        for parameter in other.synthesis.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return other


@pytest.fixture
def folder(tmp_path, generator, discriminator, tuned) -> Path:
    """A folder with a base, ``tiny.safetensors``, and its child, ``toon.safetensors``."""
    checkpoints.save(
        Checkpoint(generator=generator, discriminator=discriminator), tmp_path / "tiny.safetensors"
    )
    about = {"provenance": {"source": "drawings"}, "licence": "CC0-1.0"}
    save_child(tuned, generator, tmp_path / "toon.safetensors", base_name="tiny", metadata=about)
    return tmp_path


def same_weights(a: Generator, b: Generator, tolerance: float = 1e-3) -> None:
    """Assert that two generators agree within float16."""
    for name, value in a.state_dict().items():
        torch.testing.assert_close(
            b.state_dict()[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_child_reads_as_a_whole_model(folder, tuned, discriminator):
    found = checkpoints.load(folder / "toon.safetensors")
    assert found.format == "child"
    assert found.generator is not None
    same_weights(tuned, found.generator)
    assert torch.equal(found.discriminator.fc.weight, discriminator.fc.weight)
    assert found.metadata["discriminator"] == "of the base, tiny"
    assert found.metadata["provenance"] == {"source": "drawings"}
    assert found.metadata["licence"] == "CC0-1.0"
    assert not found.generator.training
    assert checkpoints.load(folder / "toon.safetensors", parts=("generator",)).discriminator is None


def test_packing_costs_what_it_says(tmp_path, generator, tuned):
    """The figures are those of a fresh computation on what the file gives back."""
    checkpoints.save(Checkpoint(generator=generator), tmp_path / "tiny.safetensors")
    figures = {}
    for budget in (9_000, 12_000, 60_000):
        path = tmp_path / f"child-{budget}.safetensors"
        figures[budget] = save_child(tuned, generator, path, base_name="tiny", budget_bytes=budget)
        found = checkpoints.load(path)
        z = torch.randn(16, W_DIM, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            images = [g(z, psi=0.7).clamp(-1, 1) for g in (generator, tuned, found.generator)]
        error = (images[2] - images[1]).square().mean().sqrt()
        change = (images[1] - images[0]).square().mean().sqrt()
        assert figures[budget]["picture_error"] == pytest.approx(float(error), abs=2e-5)
        assert figures[budget]["picture_change"] == pytest.approx(float(change), abs=2e-5)
        assert path.stat().st_size < budget + 4000  # our header's JSON is beyond the budget
        assert found.metadata["compression"] == figures[budget]
    errors = [figures[budget]["picture_error"] for budget in sorted(figures)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3


def test_another_base_is_refused_by_name(folder):
    stranger = make_generator(seed=3)
    checkpoints.save(
        Checkpoint(generator=stranger), folder / "tiny.safetensors"
    )  # the base was trained again
    with pytest.raises(
        KeyMismatchError, match=r"the base differs: this child belongs to tiny .*make the child again"
    ):
        checkpoints.load(folder / "toon.safetensors")


def test_a_base_is_looked_for_and_missed(folder):
    apart = folder / "apart"
    apart.mkdir()
    child = (folder / "toon.safetensors").rename(apart / "toon.safetensors")
    assert checkpoints.load(child).generator is not None  # in the folder above
    base = (folder / "tiny.safetensors").rename(folder / "renamed.safetensors")
    with pytest.raises(CheckpointError, match="a child of 'tiny', which is no model of this machine"):
        checkpoints.load(child)
    assert checkpoints.load(child, base=base).generator is not None


def test_a_base_is_found_by_its_name_in_the_zoo(folder, tuned):
    cache = zoo.cache_dir()
    cache.mkdir(parents=True)
    (folder / "tiny.safetensors").rename(cache / "tiny.safetensors")
    download = zoo.Download(
        name="tiny", kind="model", url="https://example.org/tiny.safetensors", licence="CC0-1.0"
    )
    zoo.install(download, cache / "tiny.safetensors")
    (folder / "toon.safetensors").rename(cache / "tooned.safetensors")
    child = dataclasses.replace(
        download, name="tooned", kind="child", url="https://example.org/tooned.safetensors"
    )
    zoo.install(child, cache / "tooned.safetensors")
    same_weights(tuned, zoo.load("tooned").generator)
    assert blend_style("tooned", BlendOptions(swap=(8,))).base == deltas.digest(make_generator())


def rewrite(path: Path, change) -> Path:
    """Write a copy of a child with a changed header or tensors."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["limner"])
    tensors = load_file(path)
    change(header, tensors)
    target = path.with_name("changed.safetensors")
    save_file(tensors, target, {"limner": json.dumps(header)})
    return target


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h, t: h.pop("base"), CheckpointError, "header is broken"),
        (lambda h, t: h.update(base="tiny"), CheckpointError, "header is broken"),
        (lambda h, t: h.update(version=99), UnknownFormatError, "update Limner"),
        (
            lambda h, t: t.update({"delta.synthesis.layers.9.weight": torch.zeros(2)}),
            KeyMismatchError,
            "layers.9.weight",
        ),
        (lambda h, t: t.update({"delta.x.right": torch.zeros(2, 2)}), CheckpointError, "is damaged"),
        (lambda h, t: h["base"].update(name="changed"), CheckpointError, "a child of 'changed'"),
    ],
)
def test_damaged_children_say_so(folder, change, error, message):
    with pytest.raises(error, match=message):
        checkpoints.load(rewrite(folder / "toon.safetensors", change))


def test_a_model_is_no_child_and_inspect_tells_a_child(folder):
    with pytest.raises(UnknownFormatError, match="is no child"):
        read_child(folder / "tiny.safetensors")
    found = checkpoints.inspect(folder / "toon.safetensors")
    assert found.format == "child"
    assert found.parts["generator"]["resolution"] == 32


# --- styles that name a child ------------------------------------------------------------------------------------


def test_a_blend_style_paints_the_blend(folder, generator):
    """At full strength it is the blend of base and child; the file holds no weights."""
    options = BlendOptions(swap=(16,), take="coarse")
    style = blend_style("toon", options, beside=folder)
    save_style(style, folder / "toonify.limner", generator)
    assert (folder / "toonify.limner").stat().st_size < 3000
    found = load_style(folder / "toonify.limner")
    found.check_base(generator)
    assert found.method == "blend"
    assert found.options["child"] == "toon"
    assert found.provenance["base"] == "tiny"
    assert found.provenance["source"] == "drawings"
    assert found.licence == "CC0-1.0"
    child = checkpoints.load(folder / "toon.safetensors").generator
    latent = Latent("z", torch.randn(2, W_DIM))
    painted = paint(generator, found, latent, StyleOptions(strength=1.0))
    blended = blend([generator, child], options)
    with torch.no_grad():
        torch.testing.assert_close(painted, blended(latent.tensor).clamp(-1, 1), rtol=1e-4, atol=1e-4)
        plain = generator(latent.tensor).clamp(-1, 1)
    half = paint(generator, found, latent, StyleOptions(strength=0.5))
    assert 0 < (half - plain).square().mean() < (painted - plain).square().mean()
    assert torch.equal(paint(generator, found, latent, StyleOptions(strength=0.0)), plain)


def test_a_blend_style_belongs_to_its_base(folder, generator, tuned):
    save_style(
        blend_style("toon", beside=folder, options=BlendOptions(swap=(8,))), folder / "a.limner", generator
    )
    with pytest.raises(KeyMismatchError, match="the style belongs to tiny"):
        load_style(folder / "a.limner").check_base(tuned)
    # The child is made again from another base; the old style notices.
    other = make_generator(seed=4)
    save_child(tuned, other, folder / "toon.safetensors", base_name="tiny")
    with pytest.raises(
        KeyMismatchError, match=r"its child .*toon.safetensors was made from tiny .*make the style again"
    ):
        load_style(folder / "a.limner")


def test_a_blend_style_without_its_child_says_so(folder, generator):
    save_style(
        blend_style("toon", beside=folder, options=BlendOptions(swap=(8,))), folder / "a.limner", generator
    )
    (folder / "toon.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the style needs the child 'toon'"):
        load_style(folder / "a.limner")
    with pytest.raises(CheckpointError, match="needs the child 'nothing'"):
        blend_style("nothing", beside=folder)


def test_a_blend_style_checks_its_options(folder):
    with pytest.raises(OptionError, match="layers of 4, 8, 16, 32 px"):
        blend_style("toon", BlendOptions(swap=(128,)), beside=folder)


def test_styles_and_children_of_one_base_add_up(folder, generator):
    """A delta for the person and a blend style, in one generator."""
    style = blend_style("toon", BlendOptions(swap=(16,)), beside=folder)
    person = {"synthesis.layers.1.bias": torch.ones(8)}
    both = style.apply(deltas.apply(generator, [(person, 1.0)]), strength=0.5)
    change = deltas.difference(both, generator)
    torch.testing.assert_close(change["synthesis.layers.1.bias"], torch.ones(8))
    torch.testing.assert_close(
        change["synthesis.layers.5.weight"],
        0.5 * style.delta["synthesis.layers.5.weight"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_script_packs_a_child_and_a_style(folder, tuned, monkeypatch, capsys):
    """Files and cards; the index describes them; the style refers to the child."""
    scripts = Path(__file__).parent.parent / "scripts"
    monkeypatch.syspath_prepend(str(scripts))
    pack_child = importlib.import_module("pack_child")
    cache = zoo.cache_dir()
    cache.mkdir(parents=True)
    (folder / "tiny.safetensors").rename(cache / "tiny.safetensors")
    tiny = zoo.Download(
        name="tiny", kind="model", url="https://example.org/tiny.safetensors", licence="CC0-1.0"
    )
    zoo.install(tiny, cache / "tiny.safetensors")
    checkpoints.save(Checkpoint(generator=tuned), folder / "trained.safetensors")
    out = folder / "bundle"
    words = [
        "--base",
        "tiny",
        "--name",
        "drawn",
        "--source",
        "drawings",
        "--recipe",
        "drawn.yaml",
        "--style",
        "draw",
        "--faces",
        "3",
    ]
    monkeypatch.setattr("sys.argv", ["x", str(folder / "trained.safetensors"), *words, "--out", str(out)])
    assert pack_child.main() == 0
    assert "packing changes pictures by" in capsys.readouterr().out
    assert "of 3 random pictures" in (out / "children/drawn.md").read_text()
    index = build_index(out, {}, out)
    assert {name: (entry["kind"], entry["parent"]) for name, entry in index.items()} == {
        "drawn": ("child", "tiny"),
        "draw": ("style", "drawn"),
    }
    assert read_child(out / "children/drawn.safetensors").base == "tiny"
    (out / "children/drawn.safetensors").rename(out / "styles/drawn.safetensors")  # as if the index knew it
    assert load_style(out / "styles/draw.limner").options["swap"] == [16]
