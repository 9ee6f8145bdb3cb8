"""Styles: packing, files, strength, layers, colours."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import W_DIM, make_generator
from safetensors.torch import save_file
from torch import Tensor

from limner.errors import CheckpointError, KeyMismatchError, ShapeError, UnknownFormatError
from limner.latent import Latent, render
from limner.nn import deltas
from limner.nn.packing import pack, unpack
from limner.nn.stylegan2 import Generator
from limner.stylization.merging import merge
from limner.stylization.options import StyleOptions
from limner.stylization.style import (
    Style,
    keep_colors,
    load_style,
    paint,
    pull_to_mean,
    save_style,
    style_between,
)


@pytest.fixture
def tuned(generator: Generator) -> Generator:
    """The generator with its synthesis network shaken."""
    other = copy.deepcopy(generator)
    with torch.no_grad():
        for parameter in other.synthesis.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return other


@pytest.fixture
def style(generator: Generator, tuned: Generator) -> Style:
    """The change of the shaken generator."""
    return style_between(
        generator, tuned, method="jojogan", options={"steps": 3}, provenance={"base": "tiny"}
    )


@pytest.fixture
def latent() -> Latent:
    """Two random faces."""
    return Latent("z", torch.randn(2, W_DIM))


def test_packing_without_pressure_is_half_precision() -> None:
    """With bytes to spare, every tensor comes back within float16."""
    delta = {"a": torch.randn(6, 5, 3, 3), "b": torch.randn(7), "c": torch.randn(4, 4)}
    packed = pack(delta, budget_bytes=1_000_000)
    assert packed.error < 1e-3
    assert packed.bytes_before == 4 * (270 + 7 + 16)
    for name, value in unpack(packed.tensors).items():
        torch.testing.assert_close(value, delta[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 40), (40, 64), (32, 8, 3, 3)])
def test_packing_finds_low_rank(shape: tuple[int, ...]) -> None:
    """A product of rank 2 needs two terms, and loses only the 8-bit rounding."""
    left, right = torch.randn(shape[0], 2), torch.randn(2, torch.Size(shape[1:]).numel())
    packed = pack({"x": (left @ right).view(shape)}, budget_bytes=2500)
    assert set(packed.tensors) == {"x.left", "x.right", "x.scale"}
    assert packed.tensors["x.left"].shape[1] == 2
    assert packed.error < 0.02


def test_packing_keeps_its_budget_and_takes_the_best_terms() -> None:
    """The error of one matrix equals that of the cut singular value decomposition, but for rounding."""
    matrix = torch.randn(80, 60) @ torch.diag(0.8 ** torch.arange(60.0)) @ torch.randn(60, 60)
    packed = pack({"x": matrix}, budget_bytes=2000)
    terms = packed.tensors["x.left"].shape[1]
    assert packed.bytes_after <= 2000
    assert terms == (2000 - 300) // (80 + 60 + 4)
    values = torch.linalg.svdvals(matrix)
    best = float(values[terms:].square().sum().sqrt() / values.square().sum().sqrt())
    assert best <= packed.error < best + 0.01


def test_more_bytes_lose_less(style: Style) -> None:
    """The error falls with the budget."""
    errors = [pack(style.delta, budget_bytes=size).error for size in (6_000, 12_000, 24_000, 100_000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_unpacking_refuses_parts_that_do_not_fit() -> None:
    """A missing or misshapen part is named."""
    packed = pack({"x": torch.randn(64, 1) @ torch.randn(1, 64)}, budget_bytes=600).tensors
    for part in ("left", "right", "scale"):
        with pytest.raises(KeyMismatchError, match="x"):
            unpack({name: value for name, value in packed.items() if not name.endswith(part)})
    with pytest.raises(ShapeError, match="do not fit"):
        unpack(packed | {"x.scale": torch.ones(5)})


def test_strength_runs_from_base_to_style(
    generator: Generator, tuned: Generator, style: Style, latent: Latent
) -> None:
    """0 is the base, 1 the tuned generator, one half has half-way weights."""
    with torch.no_grad():
        ends = [render(network, latent).clamp(-1, 1) for network in (generator, tuned)]
    for blend in ("weights", "features"):
        pictures = [
            paint(generator, style, latent, StyleOptions(strength=s, blend=blend)) for s in (0.0, 0.5, 1.0)
        ]
        torch.testing.assert_close(pictures[0], ends[0], rtol=0, atol=0)
        torch.testing.assert_close(pictures[2], ends[1], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(pictures[1], ends[0], atol=1e-2)
        assert not torch.allclose(pictures[1], ends[1], atol=1e-2)
    half = style.apply(generator, strength=0.5)
    for name, value in half.state_dict().items():
        middle = (generator.state_dict()[name] + tuned.state_dict()[name]) / 2
        torch.testing.assert_close(value, middle, rtol=1e-5, atol=1e-5)


def test_feature_blend_approaches_both_ends(
    generator: Generator, tuned: Generator, style: Style, latent: Latent
) -> None:
    """A strength of a thousandth lies next to the base, and one next to 1 at the style."""
    with torch.no_grad():
        ends = [render(network, latent).clamp(-1, 1) for network in (generator, tuned)]
    for strength, end in ((0.001, ends[0]), (0.999, ends[1])):
        picture = paint(generator, style, latent, StyleOptions(strength=strength, blend="features"))
        torch.testing.assert_close(picture, end, rtol=0, atol=0.05)


def test_layers_choose_what_changes(generator: Generator, style: Style) -> None:
    """Only the tensors of the masked layers move; no layers is the base."""
    part = style.apply(generator, layers="32px-")
    changed = {
        name
        for name, value in part.state_dict().items()
        if not torch.equal(value, generator.state_dict()[name])
    }
    assert changed
    assert all(
        name.split(".")[1:3] in (["layers", "5"], ["layers", "6"], ["to_rgb", "3"]) for name in changed
    )
    none = style.apply(generator, layers="none").state_dict()
    assert all(torch.equal(value, none[name]) for name, value in generator.state_dict().items())


def test_a_style_adds_to_a_tuned_person(generator: Generator, style: Style) -> None:
    """Applied to a generator with another difference, both are in the sum."""
    person = {"synthesis.const": torch.full_like(generator.synthesis.const, 0.5)}
    both = style.apply(deltas.apply(generator, [(person, 1.0)]))
    expected = generator.synthesis.const + person["synthesis.const"] + style.delta["synthesis.const"]
    torch.testing.assert_close(both.synthesis.const.detach(), expected.detach())


def brightness(image: Tensor) -> Tensor:
    """BT.601, written out."""
    return 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]


def test_kept_colors_come_from_the_source() -> None:
    """Brightness is the image's, the differences of the channels the source's; nothing leaves [-1, 1]."""
    image, source = 0.4 * torch.rand(2, 3, 4, 4) - 0.2, 0.4 * torch.rand(2, 3, 4, 4) - 0.2
    kept = keep_colors(image, source)
    torch.testing.assert_close(brightness(kept), brightness(image))
    torch.testing.assert_close(kept[:, 0] - kept[:, 2], source[:, 0] - source[:, 2])
    torch.testing.assert_close(keep_colors(source, source), source)
    extreme = keep_colors(torch.full((1, 3, 1, 1), 0.99), torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1))
    assert extreme.abs().max() <= 1
    torch.testing.assert_close(brightness(extreme), torch.full((1, 1, 1), 0.99))
    assert extreme[0, 0] > extreme[0, 1]


def test_a_grey_style_keeps_the_photos_hue(generator: Generator, style: Style, latent: Latent) -> None:
    """With keep_color the painted picture is not the plain style's."""
    plain = paint(generator, style, latent, StyleOptions())
    kept = paint(generator, style, latent, StyleOptions(keep_color=True))
    torch.testing.assert_close(brightness(kept), brightness(plain), rtol=0, atol=1e-5)
    assert not torch.allclose(kept, plain, atol=0.01)


def test_a_file_reads_back_as_saved(generator: Generator, style: Style, tmp_path: Path) -> None:
    """Delta, notes and thumbnail; the loss from packing is measured and stored."""
    thumbnail = torch.randint(0, 255, (8, 8, 3), dtype=torch.uint8)
    path = tmp_path / "folder" / "a.limner"
    saved = save_style(dataclasses.replace(style, thumbnail=thumbnail), path, generator, budget_bytes=20_000)
    back = load_style(path)
    assert path.stat().st_size < 25_000
    assert list(path.parent.iterdir()) == [path]
    assert back.delta.keys() == saved.delta.keys()
    assert all(torch.equal(value, saved.delta[name]) for name, value in back.delta.items())
    assert back.thumbnail is not None
    assert torch.equal(back.thumbnail, thumbnail)
    names = ("base", "method", "options", "provenance", "licence", "compression")
    assert all(getattr(back, name) == getattr(saved, name) for name in names)
    # The stored figure is what rendering both shows.
    latent = Latent("z", torch.randn(8, W_DIM, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        before, after = (render(s.apply(generator), latent, psi=0.7).clamp(-1, 1) for s in (style, back))
    assert back.compression["picture_error"] == pytest.approx(
        float((after - before).square().mean().sqrt()), abs=1e-5
    )
    assert back.compression["picture_error"] < back.compression["picture_change"]


def test_saving_repeats_byte_for_byte(generator: Generator, style: Style, tmp_path: Path) -> None:
    """Nothing in the file depends on when or where it was written."""
    for name in ("a", "b"):
        save_style(style, tmp_path / f"{name}.limner", generator, budget_bytes=20_000)
    assert (tmp_path / "a.limner").read_bytes() == (tmp_path / "b.limner").read_bytes()


def test_a_foreign_base_is_refused(style: Style, generator: Generator, tmp_path: Path) -> None:
    """Both digests and the remedy are named."""
    other = make_generator(seed=5)
    with pytest.raises(
        KeyMismatchError, match="tiny, a base model with digest .*, but this model \\(32 px\\) has"
    ):
        style.check_base(other)
    with pytest.raises(KeyMismatchError, match="learn it again"):
        save_style(style, tmp_path / "a.limner", other)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, -1])
def test_a_cut_file_is_refused(style: Style, generator: Generator, tmp_path: Path, keep: float) -> None:
    """Wherever it was cut."""
    path = tmp_path / "a.limner"
    save_style(style, path, generator, budget_bytes=20_000)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="truncated, damaged or no .limner file"):
        load_style(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    """No file, another kind, a newer version, a file without its notes or with half a product."""
    path = tmp_path / "a.limner"
    with pytest.raises(CheckpointError, match="no such style file"):
        load_style(path)
    some = {"delta.x": torch.ones(2)}
    save_file(some, path, metadata={"limner": '{"kind": "latent"}'})
    with pytest.raises(UnknownFormatError, match="a latent file, expected a style"):
        load_style(path)
    save_file(some, path)
    with pytest.raises(UnknownFormatError, match="a foreign file"):
        load_style(path)
    save_file(some, path, metadata={"limner": '{"kind": "style", "version": 99}'})
    with pytest.raises(UnknownFormatError, match="newer Limner"):
        load_style(path)
    save_file(some, path, metadata={"limner": '{"kind": "style", "version": 1, "base": "x"}'})
    with pytest.raises(CheckpointError, match="lacks method, options"):
        load_style(path)
    notes = '{"kind": "style", "version": 1, "base": "x", "method": "jojogan", "options": {}}'
    save_file({"delta.x.left": torch.ones(2, 2)}, path, metadata={"limner": notes})
    with pytest.raises(CheckpointError, match="damaged"):
        load_style(path)


def test_a_place_that_cannot_be_written_is_named(style: Style, generator: Generator, tmp_path: Path) -> None:
    """A file where a folder is needed."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_style(style, tmp_path / "file" / "a.limner", generator)


def test_pulling_touches_only_mixed_rows(generator: Generator, style: Style, latent: Latent) -> None:
    """By their weight; a style that says nothing about rows pulls none, and codes in s stay."""
    mixed = dataclasses.replace(style, options={"row_weights": [0, 0, 0, 0, 0, 0.5, 1, 1]})
    w_plus = latent.w_plus(generator)
    pulled = pull_to_mean(generator, mixed, latent, 1.0).tensor
    torch.testing.assert_close(pulled[:, :5], w_plus[:, :5], rtol=0, atol=0)
    torch.testing.assert_close(pulled[:, 5], (w_plus[:, 5] + generator.w_avg) / 2)
    torch.testing.assert_close(pulled[:, 6:], generator.w_avg.expand(2, 2, -1))
    assert pull_to_mean(generator, style, latent, 1.0) is latent
    assert pull_to_mean(generator, mixed, latent, 0.0) is latent
    in_s = latent.to_space("s", generator)
    assert pull_to_mean(generator, mixed, in_s, 1.0) is in_s


def test_a_style_brings_its_own_pull(
    generator: Generator, style: Style, latent: Latent, tmp_path: Path
) -> None:
    """What the file says counts where nothing is asked for; merged styles take their mean, by weight."""
    mixed = {"row_weights": [0.0] * 4 + [1.0] * (generator.num_rows - 4)}
    pulled = dataclasses.replace(style, options=mixed | {"pull": 1.0})
    usual = dataclasses.replace(style, options=mixed)
    assert (pulled.pull, usual.pull) == (1.0, 0.4)
    save_style(pulled, tmp_path / "own.limner", generator)
    assert load_style(tmp_path / "own.limner").pull == 1.0
    for one in (pulled, usual):
        asked = paint(generator, one, latent, StyleOptions(pull=one.pull))
        torch.testing.assert_close(paint(generator, one, latent, StyleOptions()), asked, rtol=0, atol=0)
    assert not torch.equal(
        paint(generator, pulled, latent, StyleOptions()), paint(generator, usual, latent, StyleOptions())
    )
    unmixed = dataclasses.replace(style, options={"pull": 0.0})
    assert merge([pulled, usual, unmixed], [1.0, 0.5, 3.0]).pull == pytest.approx(0.8)
