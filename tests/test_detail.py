"""Layers grown above a generator: kept apart, put on top of relatives, read from a file."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from limner import zoo
from limner.checkpoints import load, save
from limner.checkpoints.checkpoint import Checkpoint
from limner.checkpoints.detail import read_detail, save_detail
from limner.errors import CheckpointError, KeyMismatchError, ShapeError
from limner.latent import Latent, render
from limner.nn import deltas
from limner.nn.detail import Detail
from limner.nn.dualstylegan import DualGenerator
from limner.nn.layers import upsample2
from limner.nn.stylegan2 import Generator
from limner.pipeline import Models
from limner.stylization.dual import DualStyle
from limner.stylization.options import DualOptions, StyleOptions
from limner.stylization.style import paint, style_between
from limner.training.gan.training import start_from

CHANNELS = {4: 8, 8: 8, 16: 8, 32: 4}
SIZES = {"z_dim": 8, "w_dim": 8, "mapping_depth": 2}


def small(resolution, seed=0, **changes):
    torch.manual_seed(seed)
    channels = {size: width for size, width in CHANNELS.items() if size <= resolution}
    G = Generator(resolution=resolution, channels=channels, **SIZES | changes).eval().requires_grad_(False)
    for layer in G.synthesis.layers:
        layer.noise_strength.fill_(0.1)
    return G


@pytest.fixture
def base():
    return small(16)


@pytest.fixture
def grown(base):
    """A generator whose lower layers are the base's."""
    G = small(32, seed=1)
    start_from(G, base)
    torch.nn.init.normal_(G.synthesis.to_rgb[-1].weight)
    G.w_avg.copy_(base.w_avg)
    return G


@pytest.fixture
def file(base, grown, tmp_path):
    save(Checkpoint("limner", generator=base), tmp_path / "base.safetensors")
    path = tmp_path / "more.safetensors"
    save_detail(grown, base, path, base_name="base", metadata={"licence": "CC0-1.0"})
    return path


def make(base, grown, noise_seed=0):
    detail = Detail(config=grown.config(), below=16, noise_seed=noise_seed)
    detail.take(grown)
    return detail.requires_grad_(False)


def test_the_base_with_its_detail_is_the_grown_generator(base, grown):
    whole = make(base, grown).grow(base)
    z = torch.randn(3, 8)
    assert whole.resolution == 32
    mine, theirs = (render(G, Latent("z", z), "none") for G in (whole, grown))
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(mine[inside], theirs[inside], rtol=0, atol=0)
    assert not mine.equal(theirs), "the edge is another, see below"
    whole.synthesis.whole_px = 32
    torch.testing.assert_close(
        render(whole, Latent("z", z), "none"), render(grown, Latent("z", z), "none"), rtol=0, atol=0
    )
    assert whole.synthesis.layers[0] is base.synthesis.layers[0], "nothing is copied"
    assert whole.config() == grown.config()
    assert (base.resolution, base.num_rows, len(base.synthesis.layers)) == (16, 6, 5), (
        "the base stays as it was"
    )
    assert list(whole.synthesis.channels) == [4, 8, 16, 32]
    assert {name: value.shape for name, value in whole.state_dict().items()} == {
        name: value.shape for name, value in grown.state_dict().items()
    }
    assert not any(value.is_meta for value in whole.state_dict().values())


def test_no_line_stands_at_the_edge(base, grown):
    detail = make(base, grown)
    for rgb in detail.to_rgb:  # nothing but the smaller picture comes through
        rgb.weight.zero_()
        rgb.bias.zero_()
    base.synthesis.to_rgb[-1].bias.add_(1.0)  # far from zero, as most pictures are
    whole = detail.grow(base)
    small, large = (render(G, Latent("z", torch.ones(1, 8)), "none") for G in (base, whole))
    rows = torch.cat([small[:, :, :1], small, small[:, :, -1:]], 2)  # the outermost pixels go on
    columns = torch.cat([rows[..., :1], rows, rows[..., -1:]], 3)
    pairs = {0: (0.25, 0.75, 0.0), 1: (0.0, 0.75, 0.25)}
    for y, x in ((0, 0), (0, 17), (31, 31), (12, 31), (13, 8)):
        over, across = torch.tensor(pairs[y % 2]), torch.tensor(pairs[x % 2])
        near = columns[:, :, y // 2 : y // 2 + 3, x // 2 : x // 2 + 3]
        expected = (near * over[:, None] * across).sum((2, 3))
        torch.testing.assert_close(large[:, :, y, x], expected, atol=1e-5, rtol=0)
    tuned = deltas.apply(whole, [({"synthesis.const": torch.zeros(8, 4, 4)}, 1.0)])
    assert tuned.synthesis.whole_px == 16, "copies know it"
    assert base.synthesis.whole_px == 16
    assert grown.synthesis.whole_px == 32, "those that learned as a whole are painted as they learned"


def test_a_tuned_relative_is_finished_too(base, grown):
    tuned = deltas.apply(base, [({"synthesis.const": torch.ones(8, 4, 4)}, 1.0)])
    detail = make(base, grown)
    one, other = (render(detail.grow(G), Latent("z", torch.ones(1, 8))) for G in (base, tuned))
    assert one.shape == other.shape == (1, 3, 32, 32)
    assert (one - other).abs().max() > 0.01


def test_fixed_noise_comes_from_the_seed(base, grown):
    one, same, other = (make(base, grown, seed).noise_maps for seed in (0, 0, 1))
    assert [x.shape for x in one] == [(32, 32), (32, 32)]
    assert all(a.equal(b) for a, b in zip(one, same, strict=True))
    assert not one[0].equal(other[0])
    assert not one[0].equal(grown.synthesis.layers[-2].noise)


def test_noise_maps_are_added_where_they_are_a_list(base, grown):
    detail = make(base, grown)
    assert detail.grow_noise("constant") == "constant"
    maps = [torch.zeros(1, 1, *layer.noise.shape) for layer in base.synthesis.layers]
    found = detail.grow_noise(maps)
    assert len(found) == len(grown.synthesis.layers)
    assert found[5] is detail.noise_maps[0]
    assert render(detail.grow(base), Latent("w", torch.ones(1, 8)), found).shape[2] == 32


@pytest.mark.parametrize("space", ["z", "z+", "w", "w+", "s"])
def test_codes_of_every_space_grow(base, grown, space):
    G = make(base, grown).grow(base)
    code = Latent("z", torch.randn(2, 8)).to_space(space, base)
    longer = code.grown(G)
    assert longer.space == space
    image = render(G, longer, "none")
    assert image.shape == (2, 3, 32, 32)
    if space != "s":  # there the new vectors are the mean's
        torch.testing.assert_close(
            image, render(G, Latent("z", code.tensor), "none") if space == "z" else image
        )
        rows = longer.w_plus(G)
        assert rows[:, -1].equal(rows[:, -3])
    else:
        assert all(a.equal(b) for a, b in zip(longer.parts, code.parts, strict=False))


def test_codes_of_a_larger_generator_are_refused(base, grown):
    with pytest.raises(ShapeError, match="8 rows, more than the 6"):
        Latent("w+", torch.zeros(1, 8, 8)).grown(base)


def test_other_generators_are_refused(base, grown):
    detail = make(base, grown)
    with pytest.raises(KeyMismatchError, match="belong above"):
        detail.grow(small(8))
    with pytest.raises(KeyMismatchError, match="belong above"):
        detail.grow(small(16, mapping_depth=3))
    with pytest.raises(KeyMismatchError, match="no layers above 32"):
        Detail(config=grown.config(), below=32)
    with pytest.raises(KeyMismatchError, match="expected"):
        detail.take(base)


def test_a_file_brings_the_layers_back(file, base, grown):
    assert file.stat().st_size < 20_000
    read = read_detail(file)
    assert (read.base, read.metadata["licence"]) == ("base", "CC0-1.0")
    code = Latent("z", torch.randn(2, 8, generator=torch.Generator().manual_seed(0)))
    expected = render(make(base, grown).grow(base), code)
    torch.testing.assert_close(render(read.detail.grow(base), code), expected, atol=0.02, rtol=0.02)
    whole = load(file)
    assert whole.format == "detail"
    torch.testing.assert_close(render(whole.generator, code), expected, atol=0.02, rtol=0.02)


def test_another_base_is_refused(file, tmp_path):
    save(Checkpoint("limner", generator=small(16, seed=5)), tmp_path / "base.safetensors")
    with pytest.raises(KeyMismatchError, match="base differs"):
        load(file)
    (tmp_path / "base.safetensors").unlink()
    with pytest.raises(CheckpointError, match="child of 'base'|base"):
        load(file)


def test_a_file_is_not_its_own_base(file):
    with pytest.raises(CheckpointError, match="names itself as its base"):
        load(file, base=file)


def test_lower_layers_that_were_trained_are_refused(base, grown, tmp_path):
    grown.synthesis.const.add_(1)
    with pytest.raises(KeyMismatchError, match="synthesis.const is not the base's"):
        save_detail(grown, base, tmp_path / "more.safetensors", base_name="base")
    assert not list(tmp_path.iterdir())


def test_damaged_files_say_so(file, base):
    tensors = load_file(file)
    header = {"limner": open_header(file)}
    name = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != name}, file, header)
    with pytest.raises(CheckpointError, match="damaged"):
        read_detail(file)
    with pytest.raises(CheckpointError):
        read_detail(zoo.path("heads"))


def open_header(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        return opened.metadata()["limner"]


# In the jobs


def test_models_find_the_detail_of_their_generator(base, file, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    fetched = tmp_path / "cache" / "grown.safetensors"
    fetched.parent.mkdir()
    fetched.write_bytes(file.read_bytes())
    zoo.install(zoo.Download("grown", "detail", "https://example.org/grown.safetensors", "CC0-1.0"), fetched)
    trunk = zoo.load("lite0")
    found = Models(generator=base, trunk=trunk)
    code, maps = Latent("w+", torch.randn(1, 6, 8)), [layer.noise for layer in base.synthesis.layers]
    painter, longer, more = found.finish(base, code, maps)
    assert painter.resolution == 32
    assert render(painter, longer, more).shape == (1, 3, 32, 32)
    other = Models(generator=small(16, seed=3), trunk=trunk)
    assert other.detail is None, "another generator has none"
    assert other.finish(base, code, maps) == (base, code, maps)


def test_styles_are_finished(base, grown):
    tuned = deltas.apply(base, [({"synthesis.to_rgb.0.bias": torch.ones(3)}, 1.0)])
    weights = {"row_weights": [0, 0, 1, 1, 1, 1]}
    style = style_between(base, tuned, method="jojogan", options=weights)
    whole = make(base, grown).grow(base)
    code = Latent("w+", torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0)))
    for options in (StyleOptions(), StyleOptions(strength=0.5, blend="features"), StyleOptions(pull=1.0)):
        plain = paint(base, style, code, options)
        finished = paint(whole, style, code.grown(whole), options)
        assert finished.shape == (1, 3, 32, 32)
        assert plain.shape == (1, 3, 16, 16)
        assert (finished.mean() > render(whole, code.grown(whole)).clamp(-1, 1).mean()) == (
            plain.mean() > render(base, code).clamp(-1, 1).mean()
        )


def test_a_dual_style_is_finished(base, grown):
    for rgb in base.synthesis.to_rgb:
        rgb.weight.mul_(0.02)  # pale pictures, of which nothing is clipped
    dual = DualGenerator.around(base).eval().requires_grad_(False)
    code = Latent("w+", torch.randn(1, 6, 8))
    style = DualStyle(dual, torch.randn(1, 6, 8), DualOptions())
    detail = make(base, grown)
    finished = style.paint(base, code, detail=detail)
    assert finished.shape == (1, 3, 32, 32)
    # Without new features the skip connections only enlarge.
    for rgb in detail.to_rgb:
        rgb.weight.zero_()
        rgb.bias.zero_()
    torch.testing.assert_close(
        style.paint(base, code, detail=detail),
        upsample2(style.paint(base, code), continued=True),
        atol=1e-5,
        rtol=0,
    )
