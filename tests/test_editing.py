"""Editing on tiny networks: ends, identities, what must stay, and that searches reach what they search."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from conftest import make_generator

from limner import editing
from limner.editing import (
    CrossoverOptions,
    Direction,
    DirectionOptions,
    ExpressionOptions,
    InpaintOptions,
    MixOptions,
    MorphOptions,
    Portrait,
    TransferOptions,
)
from limner.editing.mix import ease, upper_half
from limner.editing.portrait import noise_maps, shift
from limner.editing.region import NAMES, region_from_pixels
from limner.editing.search import masked_l2
from limner.editing.transfer import gram
from limner.errors import CheckpointError, DivergedError, KeyMismatchError, OptionError, ShapeError
from limner.inversion import InversionOptions, PivotalOptions, invert
from limner.latent import Latent, LayerMask, load_latent, render, save_latent
from limner.nn import deltas
from limner.nn.detail import Detail
from limner.nn.layers import upsample2
from limner.nn.stylegan1 import Generator as Stylegan1


def face(generator, seed: int, space: str = "w+", *, noise: bool = False, tuned: bool = False) -> Portrait:
    """A random face, on demand with noise maps and a change of the generator of its own."""
    rng = torch.Generator().manual_seed(seed)
    rows, width = generator.num_rows, len(generator.w_avg)
    shape = {"w+": (1, rows, width), "z+": (1, rows, generator.z_dim), "w": (1, width)}.get(
        space, (1, generator.z_dim)
    )
    latent = Latent("z" if space == "s" else space, torch.randn(*shape, generator=rng))  # type: ignore[arg-type]
    latent = latent.to_space("s", generator) if space == "s" else latent
    maps = tuple(torch.randn(one.shape, generator=rng) for one in noise_maps(generator, Portrait(latent)))
    change = {
        name: 0.1 * torch.randn(value.shape, generator=rng)
        for name, value in generator.state_dict().items()
        if name.startswith("synthesis.") and name.endswith("weight")
    }
    return Portrait(latent, maps if noise else None, ((change, 1.0),) if tuned else ())


def plain(generator, portrait: Portrait) -> torch.Tensor:
    """Paint by hand: the generator's tensors changed one by one."""
    own = make_generator()
    own.load_state_dict(generator.state_dict())
    with torch.no_grad():
        for delta, strength in portrait.changes:
            for name, change in delta.items():
                own.state_dict()[name].add_(strength * change)
    return render(own, portrait.latent, portrait.noise or "constant").clamp(-1, 1)


def same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance


# ---- portraits


def test_a_portrait_comes_from_whatever_has_codes(generator, tmp_path):
    image = render(generator, face(generator, 3).latent).clamp(-1, 1)
    options = InversionOptions(method="pivotal", steps=3, mean_samples=50)
    tuned = invert(
        generator,
        image,
        options,
        perceptual=None,
        pivotal=PivotalOptions(tune_steps=3, tune_learning_rate=0.01, pivot="w+"),
    )
    portrait = Portrait.of(tuned)
    assert portrait.changes
    assert same(editing.paint(generator, portrait), tuned.image)
    file = save_latent(
        tmp_path / "x.safetensors",
        tuned.latent,
        noise=tuned.noise,
        delta=deltas.compress(tuned.delta or {}).tensors,
    )
    assert same(editing.paint(generator, Portrait.of(load_latent(file))), tuned.image, 0.01)  # float16
    assert Portrait.of(portrait) is portrait
    two = Latent.cat([face(generator, 1).latent, face(generator, 2).latent])
    assert torch.equal(Portrait.of(two, 1).latent.tensor, face(generator, 2).latent.tensor)
    assert torch.equal(Portrait.of(two, -1).latent.tensor, face(generator, 2).latent.tensor)
    with pytest.raises(ShapeError, match="face 2 was asked for, but there are 2"):
        Portrait.of(two, 2)
    with pytest.raises(ShapeError, match="one face"):
        Portrait(two)


def test_all_changes_as_one_delta(generator):
    a, b = face(generator, 1, tuned=True), face(generator, 2, tuned=True)
    half = editing.blend(generator, a, b, 0.25)
    delta = half.delta(generator)
    assert delta is not None
    name = "synthesis.layers.1.weight"
    assert same(delta[name], 0.75 * a.changes[0][0][name] + 0.25 * b.changes[0][0][name])
    again = Portrait(half.latent, half.noise, ((delta, 1.0),))
    assert same(editing.paint(generator, again), editing.paint(generator, half))
    assert face(generator, 1).delta(generator) is None


# ---- morph


@pytest.mark.parametrize("space", ["z", "z+", "w", "w+", "s"])
def test_a_morph_begins_and_ends_with_its_faces(generator, space):
    a = face(generator, 1, space, noise=True, tuned=True)
    b = face(generator, 2, "w+")
    frames = editing.morph(generator, [a, b, a], MorphOptions(frames=4))
    assert len(frames) == 7 == len(list(frames))
    for number, wanted in ((0, a), (3, b), (6, a), (-1, a)):
        assert same(editing.paint(generator, frames[number]), plain(generator, wanted))
    assert len(frames[1:3]) == 2
    with pytest.raises(IndexError):
        frames[7]


def test_a_morph_is_linear_in_everything(generator):
    a, b = face(generator, 1, noise=True, tuned=True), face(generator, 2, noise=True, tuned=True)
    middle = editing.morph(generator, [a, b], MorphOptions(frames=5))[1]
    assert same(middle.latent.tensor, 0.75 * a.latent.tensor + 0.25 * b.latent.tensor)
    assert middle.noise is not None
    assert a.noise is not None
    assert b.noise is not None
    assert all(same(x, 0.75 * y + 0.25 * z) for x, y, z in zip(middle.noise, a.noise, b.noise, strict=True))
    mean = {name: 0.75 * change + 0.25 * b.changes[0][0][name] for name, change in a.changes[0][0].items()}
    by_hand = Portrait(middle.latent, middle.noise, ((mean, 1.0),))
    assert same(editing.paint(generator, middle), plain(generator, by_hand))


def test_a_loop_shows_every_face_once(generator):
    a, b = face(generator, 1), face(generator, 2)
    frames = editing.morph(generator, [a, b], MorphOptions(frames=3, loop=True))
    assert len(frames) == 4
    assert torch.equal(frames[0].latent.tensor, a.latent.tensor)
    assert torch.equal(frames[2].latent.tensor, b.latent.tensor)
    assert torch.allclose(frames[3].latent.tensor, frames[1].latent.tensor)


def test_a_morph_of_some_layers_keeps_the_others(generator):
    a, b = face(generator, 1), face(generator, 2)
    for frame in editing.morph(generator, [a, b], MorphOptions(frames=3, layers="4-")):
        assert torch.equal(frame.latent.tensor[:, :4], a.latent.tensor[:, :4])
    assert torch.equal(frame.latent.tensor[:, 4:], b.latent.tensor[:, 4:])


def test_paces_begin_at_none_and_end_at_all():
    for easing in editing.options.EASINGS:
        values = [ease(i / 10, easing) for i in range(11)]
        assert values[0] == 0
        assert values[-1] == 1
        assert values == sorted(values)
    assert ease(0.5, "smooth") == pytest.approx(0.5)
    assert ease(0.1, "smooth") < 0.1 < ease(0.1, "out")
    assert ease(0.1, "in") == pytest.approx(0.01)


def test_a_morph_needs_two_faces_and_a_mask_that_fits(generator):
    with pytest.raises(OptionError, match="two faces or more, 1 came"):
        editing.morph(generator, [face(generator, 1)])
    with pytest.raises(OptionError, match="names 40|names 30|no resolution|rows"):
        editing.morph(generator, [face(generator, 1), face(generator, 2)], MorphOptions(layers="30"))


# ---- style mixing


def test_mixing_takes_the_masked_rows_and_no_others(generator):
    a, b = face(generator, 1), face(generator, 2)
    mixed = editing.mix_styles(generator, a, b, MixOptions(layers="2-3,6=0.5"))
    values = mixed.latent.tensor
    kept = [0, 1, 4, 5, *range(7, generator.num_rows)]
    assert torch.equal(values[:, kept], a.latent.tensor[:, kept])
    assert torch.equal(values[:, 2:4], b.latent.tensor[:, 2:4])
    assert same(values[:, 6], (a.latent.tensor[:, 6] + b.latent.tensor[:, 6]) / 2)
    half = editing.mix_styles(generator, a, b, MixOptions(layers="2", strength=0.5))
    assert same(half.latent.tensor[:, 2], (a.latent.tensor[:, 2] + b.latent.tensor[:, 2]) / 2)


def test_mixing_tuned_faces_takes_their_layers_too(generator):
    a, b = (face(generator, seed, noise=True, tuned=True) for seed in (1, 2))
    mixed = editing.mix_styles(generator, a, b, MixOptions(layers="4-"))
    delta = mixed.delta(generator)
    assert delta is not None
    assert same(delta["synthesis.layers.3.weight"], a.changes[0][0]["synthesis.layers.3.weight"], 0)
    assert same(delta["synthesis.layers.4.weight"], b.changes[0][0]["synthesis.layers.4.weight"], 0)
    # toRGB of 8 px hangs on row 3, that of 16 px on row 5.
    assert same(delta["synthesis.to_rgb.1.weight"], a.changes[0][0]["synthesis.to_rgb.1.weight"], 0)
    assert same(delta["synthesis.to_rgb.2.weight"], b.changes[0][0]["synthesis.to_rgb.2.weight"], 0)
    assert mixed.noise is not None
    assert a.noise is not None
    assert b.noise is not None
    assert torch.equal(mixed.noise[3], a.noise[3])
    assert torch.equal(mixed.noise[4], b.noise[4])


def test_mixing_colours_alone_goes_through_s(generator):
    a, b = face(generator, 1), face(generator, 2)
    mixed = editing.mix_styles(generator, a, b, MixOptions(layers="none,rgb"))
    own, other = a.latent.styles(generator), b.latent.styles(generator)
    for name, x, y, z in zip(generator.synthesis.style_names, mixed.latent.parts, own, other, strict=True):
        assert torch.equal(x, z if name.endswith(".rgb") else y)


def test_auto_is_the_upper_half(generator):
    assert upper_half(generator).text == f"{generator.num_rows // 2}-"
    mixed = editing.mix_styles(generator, face(generator, 1), face(generator, 2), MixOptions(layers="auto"))
    assert torch.equal(mixed.latent.tensor[:, 3], face(generator, 1).latent.tensor[:, 3])
    assert torch.equal(mixed.latent.tensor[:, 4], face(generator, 2).latent.tensor[:, 4])


def test_the_sheet_has_faces_at_the_left_and_styles_above(generator):
    faces, styles = [face(generator, 1), face(generator, 2)], [face(generator, n) for n in (3, 4, 5)]
    sheet = editing.mix_sheet(generator, faces, styles, MixOptions(layers="4-"))
    assert sheet.shape == (3 * 36 + 4, 4 * 36 + 4, 3)

    def cell(row: int, column: int) -> torch.Tensor:
        return torch.from_numpy(sheet[4 + 36 * row :, 4 + 36 * column :][:32, :32].copy())

    def show(portrait: Portrait) -> torch.Tensor:
        from limner.media import to_pixels

        return torch.from_numpy(to_pixels(editing.paint(generator, portrait))[0])

    assert (cell(0, 0) == 255).all()
    assert torch.equal(cell(0, 2), show(styles[1]))
    assert torch.equal(cell(2, 0), show(faces[1]))
    mixed = editing.mix_styles(generator, faces[1], styles[1], MixOptions(layers="4-"))
    assert torch.equal(cell(2, 2), show(mixed))


# ---- expression


@pytest.mark.parametrize("space", ["z", "w+", "s"])
def test_no_strength_is_the_face_itself(generator, space):
    a = face(generator, 1, space, noise=True, tuned=True)
    b, c = face(generator, 2), face(generator, 3)
    still = editing.transfer_expression(generator, a, b, c, ExpressionOptions(strength=0))
    assert torch.equal(editing.paint(generator, still), editing.paint(generator, a))
    none = editing.transfer_expression(generator, a, b, b)
    assert same(editing.paint(generator, none), editing.paint(generator, a))


def test_expression_is_the_difference(generator):
    a, b, c = (face(generator, n, noise=True, tuned=True) for n in (1, 2, 3))
    moved = editing.transfer_expression(generator, a, b, c, ExpressionOptions(strength=1.5, layers="2-4"))
    x, y, z = (one.latent.tensor for one in (a, b, c))
    assert same(moved.latent.tensor[:, 2:5], (x + 1.5 * (z - y))[:, 2:5])
    kept = [0, 1, *range(5, generator.num_rows)]
    assert torch.equal(moved.latent.tensor[:, kept], x[:, kept])
    assert moved.changes == a.changes
    assert moved.noise is a.noise
    whole = editing.transfer_expression(generator, b, b, c)
    assert same(whole.latent.tensor, z)


def test_expression_in_s_equals_that_in_w_plus(generator):
    a, b, c = (face(generator, n) for n in (1, 2, 3))
    wanted = editing.transfer_expression(generator, a, b, c)
    in_s = Portrait(a.latent.to_space("s", generator))
    assert same(
        editing.paint(generator, editing.transfer_expression(generator, in_s, b, c)),
        editing.paint(generator, wanted),
    )
    pair = [Portrait(one.latent.to_space("s", generator)) for one in (b, c)]
    assert same(
        editing.paint(generator, editing.transfer_expression(generator, a, *pair)),
        editing.paint(generator, wanted),
    )


def test_a_driving_sequence_starts_from_the_face_itself(generator):
    a, frames = face(generator, 1), [face(generator, n) for n in range(2, 7)]
    driven = list(editing.drive_expression(generator, a, frames))
    assert len(driven) == 5
    assert torch.equal(driven[0].latent.tensor, a.latent.tensor)
    by_hand = editing.transfer_expression(generator, a, frames[0], frames[3])
    assert same(driven[3].latent.tensor, by_hand.latent.tensor)
    smooth = list(editing.drive_expression(generator, a, frames, ExpressionOptions(smooth=3)))
    assert torch.equal(smooth[0].latent.tensor, a.latent.tensor)
    mean = torch.stack([one.latent.tensor for one in frames[1:4]]).mean(0)
    assert same(smooth[2].latent.tensor, a.latent.tensor + mean - frames[0].latent.tensor)
    assert same(smooth[4].latent.tensor, driven[4].latent.tensor)
    other = next(editing.drive_expression(generator, a, frames, neutral=frames[1]))
    assert same(other.latent.tensor, a.latent.tensor + frames[0].latent.tensor - frames[1].latent.tensor)
    with pytest.raises(OptionError, match="one frame or more"):
        list(editing.drive_expression(generator, a, []))


def test_outside_the_region_nothing_moves(generator):
    a, b = face(generator, 1, noise=True, tuned=True), face(generator, 2, tuned=True)
    region = editing.make_region("box:0.25:0.5:0.75:1", 32)
    image = editing.paint_inside(generator, a, b, region)
    before, other = editing.paint(generator, a), editing.paint(generator, b)
    outside = (region == 0).expand_as(image)
    assert torch.equal(image[outside], before[outside])
    assert float((image - before)[~outside].abs().mean()) > 0.05
    assert float((image - other)[~outside].abs().mean()) < float((before - other)[~outside].abs().mean())
    assert same(editing.paint_inside(generator, a, b, torch.ones(1, 1, 32, 32)), other)
    assert same(editing.paint_inside(generator, a, b, torch.zeros(1, 1, 32, 32)), before)
    with pytest.raises(ShapeError, match=r"expected \(1, 1, 32, 32\)"):
        editing.paint_inside(generator, a, b, region[..., :16])


def test_finished_portraits_are_their_small_pictures_enlarged_where_nothing_is_added(generator):
    for rgb in generator.synthesis.to_rgb:
        rgb.weight.mul_(0.02)  # pale pictures
    config = generator.config()
    whole = config | {"resolution": 64, "channels": config["channels"] | {64: 4}}
    detail = Detail(config=whole, below=32).requires_grad_(False)
    a, b = face(generator, 1, noise=True), face(generator, 2)
    a = dataclasses.replace(a, changes=(({"synthesis.to_rgb.3.bias": torch.full((3,), 0.1)}, 1.0),))
    region = editing.make_region("mouth", 32, feather=0.2)
    fine = editing.make_region("mouth", 64, feather=0.2)
    ready = editing.paint(generator, a, detail=detail)
    joined = editing.paint_inside(generator, a, b, region, detail=detail)
    outside = (fine == 0) & (torch.nn.functional.interpolate(region, (64, 64), mode="bilinear") == 0)
    outside = outside.expand_as(ready)
    assert torch.equal(joined[outside], ready[outside])
    assert torch.equal(editing.paint_inside(generator, a, b, fine, detail=detail)[outside], ready[outside])
    assert not torch.equal(joined, ready)
    with pytest.raises(ShapeError, match=r"expected \(1, 1, 64, 64\)"):
        editing.paint_inside(generator, a, b, region[..., :16], detail=detail)
    for rgb in detail.to_rgb:
        rgb.weight.zero_()
        rgb.bias.zero_()
    for small, large in (
        (editing.paint(generator, a), editing.paint(generator, a, detail=detail)),
        (
            editing.paint_inside(generator, a, b, torch.ones(1, 1, 32, 32)),
            editing.paint_inside(generator, a, b, torch.ones(1, 1, 32, 32), detail=detail),
        ),
    ):
        assert small.abs().max() < 1, "nothing is clipped"
        torch.testing.assert_close(large, upsample2(small, continued=True), atol=1e-5, rtol=0)


# ---- regions


def test_regions_by_name_and_number():
    left, right = editing.make_region("left", 32), editing.make_region("right", 32)
    assert torch.equal(left + right, torch.ones(1, 1, 32, 32))
    assert torch.equal(editing.make_region("not left", 32), right)
    assert torch.equal(editing.make_region("left + right", 32), torch.ones(1, 1, 32, 32))
    assert editing.make_region("box:0:0:0.5:0.25", 32).sum() == 16 * 8
    area = float(editing.make_region("ellipse:0.5:0.5:0.3:0.2", 256).mean())
    assert area == pytest.approx(math.pi * 0.06, rel=0.01)
    eyes = editing.make_region("eyes", 64)
    assert torch.equal(eyes, eyes.flip(3))
    for name in NAMES:
        assert editing.make_region(name, 64).any()


def test_a_soft_edge_keeps_the_area_and_the_range():
    region = editing.make_region("mouth", 64, feather=0.1)
    assert 0 <= region.min() < region.max() <= 1
    assert ((region > 0.01) & (region < 0.99)).any()
    assert float(region.sum()) == pytest.approx(float(editing.make_region("mouth", 64).sum()), rel=1e-4)
    assert torch.equal(editing.make_region("mouth", 64, feather=0.01), editing.make_region("mouth", 64))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mouht", "did you mean 'mouth'"),
        ("box:1:2", "four numbers"),
        ("ellipse:a:b:c:d", "four numbers"),
        ("xyz", "expected face"),
        ("box:0.5:0.5:0.4:0.9", "covers nothing"),
        ("not all", "covers nothing"),
    ],
)
def test_wrong_regions(text, message):
    with pytest.raises(OptionError, match=message):
        editing.make_region(text, 32)


def test_a_region_from_a_picture():
    pixels = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
    with pytest.raises(ShapeError, match="black"):
        region_from_pixels(pixels, 32)
    pixels[:, 32:] = 255
    assert torch.equal(region_from_pixels(pixels, 32), editing.make_region("right", 32))


# ---- searches


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A small perceptual distance: differences of neighbouring pixels."""
    return sum(((a - b).diff(dim=axis)).square().mean((1, 2, 3)) for axis in (2, 3))  # type: ignore[return-value]


def test_a_filled_hole_takes_over_the_colours_around_it():
    side = 32
    ramp = torch.linspace(-0.5, 0.5, side).expand(1, 3, side, side).contiguous()
    hole = torch.zeros(1, 1, side, side)
    hole[..., 8:20, 10:26] = 1
    painted = ramp + torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1)
    # A backdrop of another colour: the difference is the same everywhere, and so it is taken away whole.
    torch.testing.assert_close(editing.fill(ramp, painted, hole), ramp, atol=1e-5, rtol=0)
    plain = editing.fill(ramp, painted, hole, seamless=False)
    assert torch.equal(plain, torch.lerp(ramp, painted, hole))
    # One that changes across the picture goes on as it began, nearly.
    slanted = ramp + 0.4 * torch.linspace(-1, 1, side)[:, None]
    inside = hole.expand_as(ramp) > 0
    far = (editing.fill(ramp, slanted, hole) - ramp)[inside].abs().max()
    assert far < 0.5 * (slanted - ramp)[inside].abs().max()
    # What agrees around the hole is left alone within it, and so is what is known, bit by bit.
    other = ramp.clone()
    other[..., 12:16, 14:20] = 0.9
    found = editing.fill(ramp, other, hole)
    torch.testing.assert_close(found, other, atol=1e-5, rtol=0)
    assert torch.equal(found[~inside], ramp[~inside])


def test_inpainting_restores_what_is_known(generator):
    image = editing.paint(generator, face(generator, 5, "z"))
    hole = editing.make_region("box:0.5:0.5:1:1", 32)
    broken = torch.where(hole > 0, torch.ones_like(image), image)
    steps: list[int] = []
    options = InpaintOptions(steps=60, w_norm=0.0, noise_reg=0.0, noise="joint", seamless=False)
    found = editing.inpaint(
        generator,
        broken,
        hole,
        options,
        perceptual=distance,
        on_step=lambda step, total, record, preview: steps.append(step),
    )
    assert steps == list(range(1, 61))
    mean = editing.paint(generator, Portrait(Latent("w", generator.w_avg[None])))
    before = float(masked_l2(mean, image, 1 - hole))
    assert float(masked_l2(found.image, image, 1 - hole)) < 0.25 * before
    # What is known comes from the photo, and the hole from the painting.
    known = (hole == 0).expand_as(image)
    assert torch.equal(found.composite[known], image[known])
    assert torch.equal(found.composite[~known], found.image[~known])
    assert same(editing.paint(generator, found.portrait), found.image)


def test_the_loss_that_is_told_leaves_the_noise_maps_out(generator):
    told: list[dict[str, float]] = []
    editing.crossover(
        generator,
        face(generator, 1, "z"),
        face(generator, 2, "z"),
        editing.make_region("left", 32),
        CrossoverOptions(steps=2, noise="joint"),
        perceptual=distance,
        on_step=lambda step, total, record, preview: told.append(dict(record)),
    )
    for record in told:
        total = record.pop("loss")
        assert record.pop("noise_reg") > 0
        assert total == pytest.approx(sum(record.values()))


def test_what_stands_in_the_hole_does_not_matter(generator):
    image = editing.paint(generator, face(generator, 5))
    hole = editing.make_region("mouth", 32, feather=0.1)
    options = InpaintOptions(steps=3)
    results = []
    for filling in (-1.0, 1.0):
        broken = torch.where(hole == 1, torch.full_like(image, filling), image)
        results.append(editing.inpaint(generator, broken, hole, options, perceptual=distance).image)
    assert torch.equal(*results)


def test_a_crossover_looks_like_each_face_in_its_part(generator):
    a, b = face(generator, 1, noise=True, tuned=True), face(generator, 2, tuned=True)
    first, second = editing.paint(generator, a), editing.paint(generator, b)
    region = editing.make_region("right", 32)
    options = CrossoverOptions(steps=60, noise_reg=0.0, learning_rate=0.1)
    found = editing.crossover(generator, a, b, region, options, perceptual=distance)
    inner, outer = (masked_l2(found.image, x, m) for x, m in ((second, region), (first, 1 - region)))
    assert inner < 0.4 * masked_l2(first, second, region)
    assert outer < 0.4 * masked_l2(first, second, 1 - region)
    assert found.portrait.changes == a.changes
    assert torch.equal(found.composite[..., :16], first[..., :16])
    assert torch.equal(found.composite[..., 16:], second[..., 16:])
    again = editing.crossover(
        generator, a, second, region, CrossoverOptions(steps=2), perceptual=distance, image=first
    )
    wanted = editing.crossover(generator, a, b, region, CrossoverOptions(steps=2), perceptual=distance)
    assert torch.equal(again.image, wanted.image)


def test_a_search_leaves_rows_outside_its_mask_alone(generator):
    a, b = face(generator, 1), face(generator, 2)
    options = CrossoverOptions(steps=3, search_layers="2-3", noise="none")
    region = editing.make_region("left", 32)
    found = editing.crossover(generator, a, b, region, options, perceptual=None)
    kept = [0, 1, *range(4, generator.num_rows)]
    assert torch.equal(found.portrait.latent.tensor[:, kept], a.latent.tensor[:, kept])
    assert not torch.equal(found.portrait.latent.tensor[:, 2:4], a.latent.tensor[:, 2:4])
    assert found.portrait.noise is None


def test_noise_after_the_codes_leaves_the_codes(generator):
    a, b = face(generator, 1), face(generator, 2)
    region, counted = editing.make_region("left", 32), []
    first = editing.crossover(
        generator, a, b, region, CrossoverOptions(steps=3, noise="none"), perceptual=None
    )
    both = editing.crossover(
        generator,
        a,
        b,
        region,
        CrossoverOptions(steps=3, noise="after"),
        perceptual=None,
        on_step=lambda step, total, *_: counted.append((step, total)),
    )
    assert torch.equal(first.portrait.latent.tensor, both.portrait.latent.tensor)
    assert both.portrait.noise is not None
    assert counted == [(step, 6) for step in range(1, 7)]
    for values in both.portrait.noise:
        assert abs(float(values.mean())) < 1e-4
        assert float(values.std()) == pytest.approx(1, abs=1e-3)


def test_a_search_in_s_stays_in_s(generator):
    a = face(generator, 1, "s")
    found = editing.crossover(
        generator,
        a,
        face(generator, 2),
        editing.make_region("left", 32),
        CrossoverOptions(steps=3, search_layers="s:2-3", noise="none", w_norm=0.1),
        perceptual=None,
    )
    assert found.portrait.latent.space == "s"
    changed = [
        not torch.equal(x, y) for x, y in zip(found.portrait.latent.parts, a.latent.parts, strict=True)
    ]
    assert [i for i, moved in enumerate(changed) if moved] == [2, 3]


def test_the_prior_pulls_to_the_mean(generator):
    image = editing.paint(generator, face(generator, 5))
    hole = editing.make_region("left", 32)
    far = []
    for weight in (0.0, 1.0):
        options = InpaintOptions(steps=30, w_norm=weight, noise="none")
        codes = editing.inpaint(generator, image, hole, options, perceptual=None).portrait.latent.tensor
        far.append(float((codes - generator.w_avg).norm()))
    assert far[1] < 0.8 * far[0]


def test_searches_say_what_is_wrong(generator):
    a, b = face(generator, 1), face(generator, 2)
    region = editing.make_region("left", 32)
    with pytest.raises(OptionError, match="nothing to fit"):
        editing.crossover(generator, a, b, region, CrossoverOptions(l2=0), perceptual=None)
    nothing = CrossoverOptions(search_layers="none", noise="none")
    with pytest.raises(OptionError, match="nothing is to be searched"):
        editing.crossover(generator, a, b, region, nothing, perceptual=None)
    for wrong in (torch.ones(1, 1, 32, 32), torch.zeros(1, 1, 32, 32), 2 * region):
        with pytest.raises(ShapeError, match="not none or all"):
            editing.crossover(generator, a, b, wrong, perceptual=None)
    with pytest.raises(ShapeError, match=r"expected \(1, 3, 32, 32\)"):
        editing.inpaint(generator, torch.zeros(1, 3, 16, 16), region, perceptual=None)
    with pytest.raises(ShapeError, match="noise maps"):
        editing.crossover(
            generator, Portrait(a.latent, (torch.zeros(1, 1, 4, 4),)), b, region, perceptual=None
        )
    broken = Portrait(Latent("w+", a.latent.tensor * float("inf")))
    with pytest.raises(DivergedError, match="lower learning_rate"):
        editing.crossover(generator, broken, b, region, CrossoverOptions(steps=2), perceptual=None)


# ---- style transfer


def colours(image: torch.Tensor) -> list[torch.Tensor]:
    """A trunk of two maps: colours with a constant, and their neighbours' differences."""
    ones = torch.ones_like(image[:, :1])
    return [torch.cat([image, ones], 1), image.diff(dim=2)]


def test_gram_by_hand():
    features = torch.randn(2, 3, 4, 5)
    wanted = torch.stack(
        [sum(f[:, y, x].outer(f[:, y, x]) for y in range(4) for x in range(5)) / 20 for f in features]
    )
    assert same(gram(features), wanted)
    mask = torch.zeros(1, 1, 4, 5)
    mask[..., :2] = 1
    assert same(gram(features, mask), gram(features[..., :2]))


def test_style_does_not_know_where_things_are():
    image = torch.rand(1, 3, 128, 128) * 2 - 1
    assert float(editing.style_distance(colours, image, image, maps=[0, 1])) == pytest.approx(0, abs=1e-6)
    assert float(editing.style_distance(colours, image, image.flip(3), maps=[0, 1])) == pytest.approx(
        0, abs=1e-6
    )
    assert float(editing.style_distance(colours, image, image * 0.5, maps=[0])) > 0.01
    with pytest.raises(OptionError, match="maps 0-1"):
        editing.style_distance(colours, image, image, maps=[2])
    with pytest.raises(OptionError, match="empty"):
        editing.style_distance(colours, image, image, maps=[])


def test_transfer_by_layers_is_mixing(generator):
    a, b = face(generator, 1), face(generator, 2)
    found = editing.transfer_style(generator, a, b)
    wanted = editing.mix_styles(generator, a, b, MixOptions(layers="auto"))
    assert torch.equal(found.portrait.latent.tensor, wanted.latent.tensor)
    assert same(found.image, editing.paint(generator, wanted))
    with pytest.raises(OptionError, match="the style is a picture"):
        editing.transfer_style(generator, a, found.image)
    with pytest.raises(OptionError, match="knows no region"):
        editing.transfer_style(generator, a, b, region=editing.make_region("left", 32))
    with pytest.raises(OptionError, match="a trunk is needed"):
        editing.transfer_style(generator, a, b, TransferOptions(way="gram"))


def test_transfer_by_gram_nears_the_style_and_keeps_what_is_outside(generator):
    a, b = face(generator, 1, noise=True, tuned=True), face(generator, 2)
    before, style = editing.paint(generator, a), editing.paint(generator, b)
    options = TransferOptions(way="gram", steps=25, style_maps=(0, 1), l2=0.0, content=0.0, style_weight=1.0)
    found = editing.transfer_style(generator, a, style, options, trunk=colours, perceptual=None)
    far, near = (
        float(editing.style_distance(colours, image, style, maps=[0, 1])) for image in (before, found.image)
    )
    assert near < 0.5 * far
    assert found.portrait.changes == a.changes
    held = dataclasses.replace(options, content=20.0, l2=20.0)
    kept = editing.transfer_style(generator, a, style, held, trunk=colours, perceptual=distance)
    assert (kept.image - before).square().mean() < 0.5 * (found.image - before).square().mean()
    region = editing.make_region("right", 32)
    local = TransferOptions(way="gram", steps=25, style_maps=(0, 1), style_weight=1.0, l2=1.0)
    part = editing.transfer_style(generator, a, style, local, trunk=colours, perceptual=None, region=region)
    moved = (part.image - before).square().mean((0, 1))
    assert float(moved[:, :16].mean()) < 0.5 * float(moved[:, 16:].mean())


# ---- directions


def test_sliders(generator, tmp_path):
    a = face(generator, 1, noise=True, tuned=True)
    one = Direction("one", torch.randn(16), layers="2-3")
    two = Direction("two", torch.randn(generator.num_rows, 16), notes={"seen": "nothing"})
    file = editing.save_directions(
        tmp_path / "d.safetensors", [two, one], metadata={"base": {"name": "tiny"}}
    )
    read, notes = editing.load_directions(file)
    assert list(read) == ["two", "one"]
    assert notes == {"base": {"name": "tiny"}}
    assert read["two"].notes == {"seen": "nothing"}
    assert read["one"].layers == "2-3"
    moved = editing.move(generator, a, read, {"one": 2.0, "two": -1.0})
    wanted = a.latent.tensor - two.values
    wanted[:, 2:4] += 2 * one.values
    assert same(moved.latent.tensor, wanted)
    assert moved.changes == a.changes
    none = editing.move(generator, a, read, {"one": 0.0})
    assert torch.equal(none.latent.tensor, a.latent.tensor)
    some = editing.move(generator, a, read, {"two": 1.0}, DirectionOptions(layers="5"))
    kept = [n for n in range(generator.num_rows) if n != 5]
    assert torch.equal(some.latent.tensor[:, kept], a.latent.tensor[:, kept])
    in_s = Portrait(a.latent.to_space("s", generator), a.noise, a.changes)
    through_s = editing.move(generator, in_s, read, {"two": 1.0}).latent.parts
    wanted_s = editing.move(generator, a, read, {"two": 1.0}).latent.styles(generator)
    assert all(same(x, y) for x, y in zip(through_s, wanted_s, strict=True))
    with pytest.raises(OptionError, match="did you mean 'two'"):
        editing.move(generator, a, read, {"tow": 1})
    with pytest.raises(ShapeError, match="belongs to another generator"):
        editing.move(generator, a, {"x": Direction("x", torch.ones(8))}, {"x": 1})


def test_direction_files_that_are_none(tmp_path, generator):
    with pytest.raises(CheckpointError, match="no such file"):
        editing.load_directions(tmp_path / "none.safetensors")
    latent = save_latent(tmp_path / "l.safetensors", Latent("w", torch.zeros(1, 16)))
    with pytest.raises(KeyMismatchError, match="but a latent"):
        editing.load_directions(latent)
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="damaged"):
        editing.load_directions(tmp_path / "x.safetensors")
    with pytest.raises(OptionError, match="names of their own"):
        editing.save_directions(tmp_path / "y", [Direction("a", torch.ones(4))] * 2)
    with pytest.raises(OptionError, match="without '='"):
        Direction("a=b", torch.ones(4))
    with pytest.raises(ShapeError, match="finite"):
        Direction("a", torch.full((4,), math.nan))


def test_factorization_finds_what_changes_styles_most(generator):
    found = editing.factorize(generator, 16, layers="2-3")
    shares = [one.notes["share"] for one in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert found[0].layers == "2-3"
    # By hand: how much a step of length one along each changes the style vectors that hang on rows 2 and 3.
    zero = generator.synthesis.styles(torch.zeros(1, generator.num_rows, 16))
    effects = []
    for one in found:
        vector = one.values / one.values.norm()
        there = generator.synthesis.styles(vector.expand(1, generator.num_rows, 16))
        rows = generator.synthesis.style_rows
        pairs = zip(there, zero, rows, strict=True)
        effects.append(sum(float((x - y).square().sum()) for x, y, row in pairs if row in (2, 3)))
    assert effects == pytest.approx([effects[0] * share / shares[0] for share in shares], rel=1e-3)
    with pytest.raises(OptionError, match="no layer"):
        editing.factorize(generator, 1, layers="none")
    with pytest.raises(OptionError, match="expected 1 to 16"):
        editing.factorize(generator, 17)


def test_components_are_those_of_w(generator):
    found = editing.find_components(generator, 3, samples=2000)
    w = generator.mapping(torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)))
    values, vectors = torch.linalg.eigh(torch.cov(w.T.double()))
    for i, one in enumerate(found):
        along = abs(float(vectors[:, -1 - i] @ one.values.double()))
        assert along == pytest.approx(float(values[-1 - i].sqrt()), rel=1e-4)
        assert one.notes["share"] == pytest.approx(float(values[-1 - i] / values.sum()), rel=1e-4)


def test_a_boundary_parts_what_was_labelled():
    w = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    true = torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(2)), dim=0)
    found = editing.find_boundary("smile", w, w @ true > 0.3)
    assert found.notes["accuracy"] > 0.9
    assert float(found.values / found.values.norm() @ true) > 0.95
    assert float((w @ (found.values / found.values.norm())).std()) == pytest.approx(
        float(found.values.norm()), rel=1e-4
    )
    rows = editing.find_boundary("smile", w[:, None].expand(-1, 8, -1), w @ true > 0.3)
    assert same(rows.values, found.values)
    with pytest.raises(OptionError, match="of both kinds"):
        editing.find_boundary("smile", w, torch.ones(400))
    with pytest.raises(ShapeError, match="one label per code"):
        editing.find_boundary("smile", w, torch.ones(3))


# ---- all of it


def test_shifts_need_offsets_that_fit(generator):
    with pytest.raises(ShapeError, match="the offset has shape"):
        shift(generator, face(generator, 1), torch.zeros(3, 16))
    with pytest.raises(OptionError, match="amount is 1.5"):
        editing.blend(generator, face(generator, 1), face(generator, 2), 1.5)


def test_stylegan1_is_edited_alike():
    torch.manual_seed(4)
    generator = Stylegan1(
        resolution=16, channels={4: 8, 8: 8, 16: 8}, z_dim=16, w_dim=16, mapping_depth=2
    ).eval()
    a, b = face(generator, 1, noise=True), face(generator, 2)
    frames = editing.morph(generator, [a, b], MorphOptions(frames=3))  # type: ignore[arg-type]
    assert same(editing.paint(generator, frames[2]), render(generator, b.latent).detach().clamp(-1, 1))  # type: ignore[arg-type]
    mixed = editing.mix_styles(generator, a, b, MixOptions(layers="2-"))  # type: ignore[arg-type]
    assert torch.equal(mixed.latent.tensor[:, :2], a.latent.tensor[:, :2])
    region = editing.make_region("left", 16)
    image = editing.paint_inside(generator, a, b, region)  # type: ignore[arg-type]
    assert torch.equal(image[..., 8:], editing.paint(generator, a)[..., 8:])  # type: ignore[arg-type]


def test_methods_and_names_are_there():
    import importlib

    for place in editing.METHODS.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(f"limner.editing.{module}"), name))
    assert sorted(editing.__all__) == sorted(set(editing.__all__))
    for name in editing.__all__:
        assert getattr(editing, name) is not None
    assert LayerMask(MixOptions().layers)
