"""Translation: what networks see, label maps of two schemes, codes of pSp and of our own translator, style mixing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_generator
from PIL import Image

from limner.errors import CheckpointError, MediaError, OptionError, ShapeError
from limner.latent.masks import LayerMask
from limner.nn.encoders import Encoder
from limner.synth.looks import PALETTE
from limner.synth.parts import LABELS
from limner.translation import TASK_NAMES, TASKS, find_task, make_input, mirror_input, read_labels
from limner.translation.classes import CELEBA, OURS, SCHEMES, index_of, merged, swaps
from limner.translation.labels import by_color, convert, legend_of, mirror, paint, planes, read_legend, square
from limner.translation.networks import PspTranslator, check_task, default_mix, mix_styles, scheme_of
from limner.translation.tasks import FACTORS, LABEL_INDICES, blur, draw, make_masks, one_hot, resize, shrink

SIDE = 64


@pytest.fixture
def photo() -> torch.Tensor:
    """Two pictures with a dark disc and soft light."""
    at = torch.linspace(-1, 1, SIDE)
    disc = (at[:, None] ** 2 + at[None] ** 2 < 0.3).float()
    light = 0.3 * at[None].expand(SIDE, SIDE)
    first = 0.5 + light - 0.8 * disc
    return torch.stack([first.expand(3, -1, -1), first.flip(1).expand(3, -1, -1) * 0.6]).clamp(-1, 1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def class_map() -> np.ndarray:
    """A map in which every one of our classes has a block of its own."""
    cells = np.array([one.index for one in OURS]).reshape(3, 4)
    return np.kron(cells, np.ones((8, 8), int))


# Tasks


def test_options_and_tasks_name_the_same():
    assert tuple(TASKS) == TASK_NAMES
    with pytest.raises(OptionError, match=r"task is 'colour', expected one of sketch"):
        find_task("colour")


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("seed", [None, 3])
def test_every_input_has_its_channels_and_range(name, seed, photo):
    labels = torch.from_numpy(class_map())[None].expand(2, -1, -1)
    paired = {"labels": labels, "toon": photo.flip(0)}.get(name)
    x = make_input(name, photo, None if seed is None else rng(seed), paired=paired)
    assert x.shape[:2] == (2, TASKS[name].in_channels)
    assert float(x.min()) >= -1
    assert float(x.max()) <= 1
    again = make_input(name, photo, None if seed is None else rng(seed), paired=paired)
    assert torch.equal(x, again)


def test_random_inputs_differ_by_picture_and_seed(photo):
    same = photo[:1].expand(2, -1, -1, -1)
    for name in ("sketch", "inpaint"):
        x = make_input(name, same, rng(1))
        assert not torch.equal(x[0], x[1])
        assert not torch.equal(x, make_input(name, same, rng(2)))
        fixed = make_input(name, same)
        assert torch.equal(fixed[0], fixed[1])


def test_label_maps_need_a_map(photo):
    with pytest.raises(OptionError, match="needs a label map"):
        make_input("labels", photo)
    with pytest.raises(ShapeError, match=r"expected \(B, 3, H, W\)"):
        make_input("sketch", photo[:, :1])
    with pytest.raises(ShapeError, match="mask has shape"):
        make_input("inpaint", photo, paired=torch.ones(1, 1, 8, 8))


def test_a_drawing_of_flat_paper_is_empty_and_an_edge_is_ink(photo):
    assert torch.equal(draw(torch.full((1, 3, SIDE, SIDE), -0.4)), torch.ones(1, 1, SIDE, SIDE))
    ink = 1 - draw(photo)
    at = torch.linspace(-1, 1, SIDE)
    radius = (at[:, None] ** 2 + at[None] ** 2).sqrt()
    rim, inside, outside = ((radius - 0.53).abs() < 0.03), radius < 0.3, radius > 0.8
    assert float(ink[0, 0][rim].mean()) > 0.3
    assert float(ink[0, 0][inside].mean()) < 0.02
    assert float(ink[0, 0][outside].mean()) < 0.02


def test_drawings_do_not_depend_on_light_and_firmness():
    """Grey paper and a faint pencil give nearly the drawing that white paper and ink give."""
    line = torch.ones(1, 1, SIDE, SIDE)
    line[..., 20:22, 8:56] = -1
    faint = 0.5 + 0.25 * (line - 1) / 2
    firm, weak = draw(line), draw(faint)
    lines = firm < 0.5
    assert 80 < int(lines.sum()) < 200
    assert int(((weak < 0.5) != lines).sum()) < 0.1 * int(lines.sum())
    unscaled = (1 - faint) / 2  # what ink that is not scaled would be: nowhere half black
    assert float(unscaled.max()) < 0.5
    assert float(firm[..., 20:22, 12:52].max()) < 0.2
    twice = draw(2 * firm - 1)
    assert float((twice < 0.5).float().sum()) == pytest.approx(float((firm < 0.5).float().sum()), rel=0.25)


def test_a_paired_drawing_takes_the_photos_place(photo):
    pencil = photo.flip(3)
    assert torch.equal(make_input("sketch", photo, paired=pencil), draw(pencil))


def test_shrinking_keeps_the_mean_and_loses_detail(photo):
    noise = torch.rand(1, 3, SIDE, SIDE, generator=rng()) - 0.5
    small = shrink(noise, factor=8)
    assert small.shape == noise.shape
    assert float(small.mean()) == pytest.approx(float(noise.mean()), abs=0.01)
    assert float(small.std()) < 0.3 * float(noise.std())
    seen = {round(float(shrink(noise, rng(seed)).std()), 4) for seed in range(12)}
    assert len(seen) == len(FACTORS)
    blocks = resize(noise, (8, 8))
    torch.testing.assert_close(
        make_input("super-resolution", noise, paired=blocks), resize(blocks, (SIDE, SIDE))
    )


def test_masked_pixels_are_grey_and_the_others_untouched(photo):
    x = make_input("inpaint", photo, rng(4))
    mask = x[:, 3:]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert not (x[:, :3] * mask).any()
    torch.testing.assert_close(x[:, :3] * (1 - mask), photo * (1 - mask))
    middle = make_masks(photo)
    assert float(middle.mean()) == pytest.approx(0.25)
    shares = [float(make_masks(photo, rng(seed)).mean()) for seed in range(20)]
    assert min(shares) > 0
    assert max(shares) < 0.8


def test_blur_matches_scipy_like_sums():
    x = torch.zeros(1, 1, 31, 31)
    x[..., 15, 15] = 1
    y = blur(x, 2.0)
    assert float(y.sum()) == pytest.approx(1, abs=1e-5)
    at = torch.arange(31) - 15.0
    assert float((y[0, 0] * at[:, None] ** 2).sum()) == pytest.approx(
        4, rel=0.03
    )  # the variance is sigma squared


def test_mirroring_label_planes_swaps_sides(photo):
    labels = torch.from_numpy(class_map())[None]
    x = one_hot(labels)
    mirrored = mirror_input("labels", x)
    wanted = one_hot(torch.from_numpy(mirror(class_map()).copy())[None])
    assert torch.equal(mirrored, wanted)
    assert torch.equal(mirror_input("labels", mirrored), x)
    assert torch.equal(mirror_input("toon", photo), photo.flip(3))
    left = LABEL_INDICES.index(LABELS["eye_left"])
    assert torch.equal(mirrored[:, LABEL_INDICES.index(LABELS["eye_right"])], x[:, left].flip(2))


def test_one_hot_refuses_what_is_no_class():
    with pytest.raises(ShapeError, match=r"holds the indices \[77\]"):
        one_hot(torch.full((1, 4, 4), 77))
    with pytest.raises(ShapeError, match="expected integers"):
        one_hot(torch.zeros(1, 4, 4))


# Classes


def test_our_classes_are_those_of_the_renderer():
    assert {one.name: one.index for one in OURS} == LABELS
    for one in OURS:
        assert tuple(PALETTE[one.index]) == one.color


def test_the_table_is_whole():
    assert [one.index for one in CELEBA] == list(range(19))
    for scheme, other in ((OURS, CELEBA), (CELEBA, OURS)):
        names = {one.name for one in other}
        assert {one.becomes for one in scheme} <= names
        assert len({one.color for one in scheme}) == len(scheme)
        table = swaps(scheme)
        assert all(table[table[index]] == index for index in table)
    # What becomes a class comes back from it, unless it was merged.
    together = {name for names in merged(OURS).values() for name in names}
    for one in OURS:
        back = next(two for two in CELEBA if two.name == one.becomes)
        assert back.becomes == one.name or one.name in together
    assert merged(CELEBA)["skin"] == ("skin", "nose", "neck")
    assert merged(OURS) == {"skin": ("skin", "beard")}


def test_places_decide_where_one_class_is_two():
    labels = np.full((20, 20), LABELS["skin"])
    labels[4, 4:8], labels[4, 12:16] = LABELS["brows"], LABELS["brows"]
    labels[7, 4:8], labels[7, 12:16] = LABELS["eye_right"], LABELS["eye_left"]
    labels[14, 7:13], labels[15, 7:13], labels[16, 7:13] = (
        LABELS["lips"],
        LABELS["mouth_inside"],
        LABELS["lips"],
    )
    found = convert(labels, OURS, "celeba")
    for name, place in {
        "l_brow": (4, 5),
        "r_brow": (4, 13),
        "l_eye": (7, 5),
        "r_eye": (7, 13),
        "u_lip": (14, 8),
        "mouth": (15, 8),
        "l_lip": (16, 8),
        "skin": (0, 0),
    }.items():
        assert found[place] == index_of(name, CELEBA), name
    assert np.array_equal(convert(found, CELEBA, "limner"), labels)
    # The table on a mirrored face: both orders agree.
    assert np.array_equal(convert(mirror(labels), OURS, "celeba"), mirror(found, CELEBA))


# Files


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["palette", "grey", "colours", "jpeg", "noisy", "rgb-indices"])
def test_label_maps_are_read_in_every_form(kind, scheme, tmp_path):
    classes = SCHEMES[scheme]
    indices = np.kron(np.array([[one.index for one in classes]]), np.ones((16, 16), int)).astype(np.uint8)
    file = tmp_path / ("map.jpg" if kind == "jpeg" else "map.png")
    picture = Image.fromarray(indices)
    if kind == "palette":
        picture.putpalette([part for index in range(19) for part in paint(np.array(index), classes)])
    elif kind == "rgb-indices":
        picture = picture.convert("RGB")
    elif kind != "grey":
        picture = Image.fromarray(paint(indices, classes))
    if kind == "noisy":  # no pixel has the colour of a class exactly
        noise = np.random.default_rng(0).integers(1, 9, (*indices.shape, 3))
        colors = np.asarray(picture).astype(int)
        picture = Image.fromarray(np.where(colors < 128, colors + noise, colors - noise).astype(np.uint8))
    picture.save(file, **({"quality": 95, "subsampling": 0} if kind == "jpeg" else {}))
    assert np.array_equal(read_labels(file, to=scheme), indices)
    assert np.array_equal(read_labels(file, to=scheme, scheme=scheme), indices)


def test_a_map_of_the_synthetic_data_reaches_psp(tmp_path):
    file = tmp_path / "000001.png"
    picture = Image.fromarray(class_map().astype(np.uint8))
    picture.putpalette(PALETTE.ravel().tolist())
    picture.save(file)
    found = read_labels(file, to="celeba")
    assert np.array_equal(found, convert(class_map(), OURS, "celeba"))
    assert planes(found, CELEBA).shape == (1, 19, 24, 32)
    assert torch.equal(planes(class_map(), OURS), one_hot(torch.from_numpy(class_map())[None]))


def test_unknown_colours_and_indices_are_named_with_their_share(tmp_path):
    colors = paint(class_map())
    colors[:4, :16] = (18, 52, 201)
    Image.fromarray(colors).save(tmp_path / "colours.png")
    with pytest.raises(
        MediaError, match=r"colour #1234c9 on 8\.3 % of the pixels is no class; the legend has #000000"
    ):
        read_labels(tmp_path / "colours.png")
    indices = class_map().astype(np.uint8)
    indices[0, :] = 77
    Image.fromarray(indices).save(tmp_path / "indices.png")
    with pytest.raises(
        MediaError, match=r"index 77 on 4\.2 % of the pixels is no class; classes are 0 background"
    ):
        read_labels(tmp_path / "indices.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    with pytest.raises(MediaError, match="is no class"):
        read_labels(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    for name, message in (("broken.png", "cannot be read as a label map"), ("none.png", "no such file")):
        with pytest.raises(MediaError, match=message):
            read_labels(tmp_path / name)


def test_soft_edges_become_the_nearest_class():
    labels = np.full((60, 60), LABELS["skin"])
    labels[20:40, 20:40] = LABELS["hair"]
    soft = paint(labels)
    soft[20, 20:40] = (soft[20, 20:40] * 0.6 + np.linspace(0, 60, 20)[:, None]).astype(np.uint8)
    found = by_color(soft, legend_of(OURS))
    assert (found != labels).sum() <= 20
    assert np.array_equal(found[21:40], labels[21:40])


def test_a_legend_of_ones_own(tmp_path):
    legend = tmp_path / "legend.json"
    legend.write_text(json.dumps({"#ff0000": "skin", "00ff00": "hair", "#0000ff": 12}))
    colors = np.zeros((4, 3, 3), np.uint8)
    colors[:, 0, 0] = colors[:, 1, 1] = colors[:, 2, 2] = 255
    Image.fromarray(colors).save(tmp_path / "map.png")
    assert read_labels(tmp_path / "map.png", legend=legend)[0].tolist() == [1, 10, 12]
    celeba = read_labels(tmp_path / "map.png", to="celeba", scheme="limner", legend=legend)
    assert celeba[0].tolist() == [1, 13, 18]
    for text, message in (
        ('{"#ff": "skin"}', "is no colour"),
        ('{"#ff0000": "horns"}', "'horns' is no class"),
        ("{}", "empty"),
    ):
        legend.write_text(text)
        with pytest.raises(OptionError, match=message):
            read_legend(legend, OURS)


def test_squares_are_cut_from_the_middle():
    labels = np.arange(40).reshape(4, 10)
    assert np.array_equal(square(labels, 4), labels[:, 3:7])
    assert np.array_equal(square(labels, 2), labels[1::2, 4:7:2])
    assert square(labels, 8).shape == (8, 8)


# Networks


def make_psp(in_channels: int, **changes) -> Encoder:
    torch.manual_seed(5)
    settings = {"in_size": 32, "w_dim": 16, "widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "rows": 8}
    return Encoder(**{**settings, "in_channels": in_channels, **changes}).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("channels", "kind", "tasks"),
    [
        (1, "celebs_sketch_to_face", ["sketch"]),
        (19, "celebs_seg_to_face", ["labels"]),
        (3, "celebs_super_resolution", ["super-resolution"]),
        (3, "ffhq_frontalize", ["frontal"]),
        (3, "ffhq_encode", ["toon"]),
        (3, None, ["toon", "super-resolution", "frontal"]),
        (1, "ffhq_encode", ["sketch"]),
    ],
)
def test_opts_and_channels_tell_the_task(channels, kind, tasks, generator):
    network = PspTranslator(make_psp(channels), generator, {"dataset_type": kind})
    assert network.tasks == tasks
    assert scheme_of(network) is CELEBA
    if len(tasks) == 1:
        assert check_task(network, "").name == tasks[0]
    else:
        with pytest.raises(
            OptionError, match="task is not given; this model does toon, super-resolution, frontal"
        ):
            check_task(network, "")
    with pytest.raises(OptionError, match=r"task is 'inpaint', but this model does"):
        check_task(network, "inpaint")


def test_psp_gives_the_codes_of_its_encoder(generator):
    encoder = make_psp(1)
    encoder.mean.normal_(0, 0.3)
    x = torch.rand(2, 1, 64, 64)
    codes = PspTranslator(encoder, generator)("sketch", x)
    small = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(codes, encoder.predict(small) + encoder.mean)
    with pytest.raises(CheckpointError, match="sees 5 channels"):
        PspTranslator(make_psp(5), generator)
    with pytest.raises(ShapeError, match="use the generator it was trained with"):
        PspTranslator(make_psp(1, rows=6), generator)


def test_style_mixing_changes_only_its_rows(generator):
    w_plus = torch.randn(1, 8, 16)
    mixed = mix_styles(generator, w_plus, 4, mask=LayerMask("5-6,7=0.5"), rng=rng(7))
    assert torch.equal(mixed[:1], w_plus)
    assert torch.equal(mixed[:, :5], w_plus[:, :5].expand(4, -1, -1))
    random = generator.mapping(torch.randn(3, 16, generator=rng(7)))
    torch.testing.assert_close(mixed[1:, 5], random)
    torch.testing.assert_close(mixed[1:, 7], (random + w_plus[:, 7]) / 2)
    half = mix_styles(generator, w_plus, 4, mask=LayerMask("5-6"), alpha=0.25, rng=rng(7))
    torch.testing.assert_close(half[1:, 6], 0.25 * random + 0.75 * w_plus[:, 6])
    mean = mix_styles(generator, w_plus, 3, mask=LayerMask("all"), psi=0.0, rng=rng(7))
    torch.testing.assert_close(mean[1], generator.w_avg.expand(8, -1))
    assert mix_styles(generator, w_plus, 1, rng=rng()) is w_plus
    alone = mix_styles(generator, w_plus, 1, mask=LayerMask("5-6"), alpha=0.25, rng=rng(7))
    torch.testing.assert_close(alone, half[1:2], msg="who names layers wants them changed")
    assert torch.equal(alone[:, :5], w_plus[:, :5])
    with pytest.raises(OptionError, match="tells toRGB from convolutions"):
        mix_styles(generator, w_plus, 2, mask=LayerMask("5-.rgb"), rng=rng())


def test_default_layers_are_psps_at_every_size(generator):
    assert default_mix(generator).rows(generator).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]

    class Rows:
        """A generator's rows at 1024 px, as `LayerMask` counts them."""

        num_rows, resolution = 18, 1024

        class synthesis:
            style_rows = range(18)
            style_names = tuple(f"{4 * 2 ** ((row + 1) // 2)}.conv" for row in range(18))

    mask = default_mix(Rows())  # type: ignore[arg-type]
    assert mask.rows(Rows()).nonzero().flatten().tolist() == list(range(8, 18))  # type: ignore[arg-type]
    assert make_generator().num_rows == 8


# The guide


def test_the_guide_shows_the_table_as_it_is():
    text = (Path(__file__).parent.parent / "docs/translate.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| `#" in line
    ]
    assert len(rows) == len(OURS) + len(CELEBA)
    for (name, index, color, becomes), one in zip(rows, [*OURS, *CELEBA], strict=True):
        assert (name.split(" ")[0], int(index)) == (one.name, one.index)
        assert color == "`#{:02x}{:02x}{:02x}`".format(*one.color)
        assert becomes.split(",")[0] == one.becomes
