"""Cartoon domains: the crop against marks painted into a drawing, the runner of facesjs, files, licences, what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from limner.errors import MissingExtraError, OptionError
from limner.synth import cartoon
from limner.synth.cartoon import (
    STYLES,
    CartoonPainter,
    Place,
    align_drawing,
    draw_facesjs,
    find_crop,
    ground_color,
)
from limner.synth.dataset import Dataset, open_painter, read_records, render
from limner.synth.options import DOMAINS, SynthOptions

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
needs_extra = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("dicebear", "resvg_py")),
    reason="the extra cartoons is not installed",
)
GROUND = (90, 140, 200)
# What stands in for the npm package: it draws the numbers that it gets from Math.random.
FACESJS = """
export const generate = (fixed, options) => ({ fixed, options, random: [Math.random(), Math.random()] });
export const faceToSvgString = (face) => JSON.stringify(face);
"""


def paint_marks(place: Place, size: tuple[int, int]) -> Image.Image:
    """A clear drawing with a disc at each landmark: red right eye, green left eye, blue mouth."""
    drawing = Image.new("RGBA", size)
    draw = ImageDraw.Draw(drawing)
    colors = ((255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255))
    for mark, color in zip((place.right_eye, place.left_eye, place.mouth), colors, strict=True):
        x, y = mark[0] * size[0], mark[1] * size[1]
        draw.ellipse((x - 12, y - 12, x + 12, y + 12), fill=color)
    return drawing


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [(300, 300), (300, 450)])
def test_marks_of_the_drawing_lie_where_the_landmarks_say(style, size):
    pixels, landmarks = align_drawing(paint_marks(STYLES[style], size), STYLES[style], 64, GROUND)
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    for name, channel in (("eye_right", 0), ("eye_left", 1), ("mouth", 2)):
        painted = np.zeros(3, int)
        painted[channel] = 255
        rows, columns = np.nonzero(np.abs(pixels.astype(int) - painted).max(-1) < 60)
        centre = columns.mean() + 0.5, rows.mean() + 0.5
        assert centre == pytest.approx(landmarks[name], abs=0.6)


def test_crop_is_ffhqs():
    """Eyes far apart decide the side, else the long face does; the numbers are worked out by hand."""
    wide = find_crop(Place((0.3, 0.5), (0.7, 0.5), (0.5, 0.7)), (100, 100))
    assert (wide.left, wide.top, wide.side) == pytest.approx((50 - 80, 52 - 80, 160))
    long = find_crop(Place((0.4, 0.3), (0.6, 0.3), (0.5, 0.8)), (100, 100))
    assert (long.left, long.top, long.side) == pytest.approx((50 - 90, 35 - 90, 180))
    # Shares are of the width and of the height.
    tall = find_crop(Place((0.3, 0.25), (0.7, 0.25), (0.5, 0.35)), (100, 200))
    assert (tall.left, tall.top, tall.side) == pytest.approx((wide.left, wide.top, wide.side))


def test_clear_drawing_shows_the_ground():
    pixels, _ = align_drawing(Image.new("RGBA", (60, 60)), STYLES["lorelei"], 32, GROUND)
    assert (pixels == GROUND).all()


def test_grounds_are_muted_and_belong_to_seed_and_style():
    colors = [ground_color(style, seed) for style in STYLES for seed in range(20)]
    assert colors == [ground_color(style, seed) for style in STYLES for seed in range(20)]
    assert len(set(colors)) == len(colors)
    assert all(max(color) >= 157 and min(color) >= 0.69 * max(color) for color in colors)


def install_facesjs(folder: Path) -> None:
    """Put a package that stands in for facesjs where npm would."""
    package = folder / "node_modules/facesjs"
    package.mkdir(parents=True)
    (package / "index.js").write_text(FACESJS)
    about = {"name": "facesjs", "version": "0.1.2", "type": "module", "main": "index.js"}
    (package / "package.json").write_text(json.dumps(about))


def mulberry32(state: int) -> list[float]:
    """The first four numbers of the generator, in Python."""
    mask, numbers = 0xFFFFFFFF, []
    for _ in range(4):
        state = (state + 0x6D2B79F5) & mask
        mixed = ((state ^ (state >> 15)) * (1 | state)) & mask
        mixed ^= (mixed + ((mixed ^ (mixed >> 7)) * (61 | mixed) & mask)) & mask
        numbers.append((mixed ^ (mixed >> 14)) / 2**32)
    return numbers


@needs_node
def test_runner_seeds_every_face(tmp_path, monkeypatch):
    """Any seeds in any order; the numbers that facesjs gets are those of the generator, worked out in Python."""
    install_facesjs(tmp_path)
    monkeypatch.setenv(cartoon.NODE_DIR, str(tmp_path))
    seeds = [7, 0, 12345, 7, 2**31 - 1]
    version, drawings = draw_facesjs(seeds)
    assert version == "0.1.2"
    faces = [json.loads(text) for text in drawings]
    assert faces[0] == faces[3] != faces[1]
    for seed, face in zip(seeds, faces, strict=True):
        expected = mulberry32((seed + 1) * 2654435761 & 0xFFFFFFFF)
        assert face["options"]["gender"] == ("female" if seed % 2 else "male")
        assert ("accessory" in face["fixed"]) == (expected[1] < 0.9)
        assert face["random"] == expected[2:]


@needs_node
def test_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv(cartoon.NODE_DIR, str(tmp_path))
    monkeypatch.delenv("NODE_PATH", raising=False)
    with pytest.raises(MissingExtraError, match=r"npm install facesjs@.*LIMNER_NODE_DIR"):
        draw_facesjs([0])


@needs_node
def test_failing_package_says_why(tmp_path, monkeypatch):
    install_facesjs(tmp_path)
    (tmp_path / "node_modules/facesjs/index.js").write_text("throw new Error('out of ink');")
    monkeypatch.setenv(cartoon.NODE_DIR, str(tmp_path))
    with pytest.raises(cartoon.MediaError, match="out of ink"):
        draw_facesjs([0])


def test_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="node, which was not found"):
        draw_facesjs([0])


@pytest.mark.parametrize(("module", "package"), [("resvg_py", "resvg_py"), ("dicebear", "dicebear-core")])
def test_missing_extra_is_named(monkeypatch, module, package):
    if module != "resvg_py":
        pytest.importorskip("resvg_py")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*limner\[cartoons\]"):
        CartoonPainter(SynthOptions(domain="lorelei", seeds=(0,)))


@pytest.mark.parametrize(
    ("name", "value"), [("looks", ("toon",)), ("labels", True), ("frontal", True), ("assets", Path("pack"))]
)
def test_what_only_heads_have_is_refused(name, value):
    with pytest.raises(OptionError, match=f"{name} is for heads; lorelei are drawings"):
        CartoonPainter(SynthOptions(domain="lorelei", **{name: value}))


def test_every_style_is_a_domain():
    found = {name for name, where in DOMAINS.items() if where.endswith(":CartoonPainter")}
    assert found == {cartoon.ALL, *STYLES}


@needs_extra
def test_folder_holds_pictures_records_and_licence_and_is_continued(tmp_path):
    options = SynthOptions(domain="lorelei", out=tmp_path / "set", seeds=(0, 1), size=48)
    painter = open_painter(options)
    assert len(list(render(options, Dataset(options, painter.folders), painter))) == 2
    first = (tmp_path / "set/lorelei/000000.jpg").read_bytes()
    text = (tmp_path / "set/ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "CC0 1.0" in text
    assert "Lisa Wischofsky" in text

    more = SynthOptions(domain="lorelei", out=tmp_path / "set", seeds=(0, 1, 5), size=48)
    dataset = Dataset(more, painter.folders)
    assert dataset.missing() == [5]
    assert [record["seed"] for record in render(more, dataset, open_painter(more))] == [5]
    assert (tmp_path / "set/lorelei/000000.jpg").read_bytes() == first
    records = read_records(tmp_path / "set/meta.jsonl")
    assert sorted(records) == [0, 1, 5]
    # FFHQ's crop puts the eyes a quarter of the side apart where they decide; here the long face does.
    eyes = [np.array(records[5]["landmarks"][name]) for name in ("eye_right", "eye_left")]
    assert 0.2 * 48 < np.hypot(*(eyes[1] - eyes[0])) <= 0.2501 * 48


@needs_extra
@pytest.mark.parametrize("style", [style for style in STYLES if style != cartoon.FACESJS])
def test_seed_decides_the_drawing(style):
    painter = CartoonPainter(SynthOptions(domain=style, size=32))
    one, two, again = (sample.pictures[style].astype(int) for sample in painter.paint([3, 4, 3]))
    assert (one == again).all()
    assert np.abs(one - two).mean() > 4
    assert one.std() > 20
    licence = {"lorelei": "CC0", "pixel-art": "CC0", "toon-head": "CC BY 4.0", "personas": "CC BY 4.0"}[style]
    assert licence in painter.attribution


@needs_node
@needs_extra
@pytest.mark.skipif(
    not Path(os.environ.get(cartoon.NODE_DIR) or ".", "node_modules/facesjs").is_dir(),
    reason="facesjs is not installed",
)
def test_all_styles_together():
    painter = CartoonPainter(SynthOptions(domain=cartoon.ALL, size=32))
    (sample,) = painter.paint([11])
    assert tuple(sample.pictures) == painter.folders == tuple(STYLES)
    assert set(sample.record["landmarks"]) == set(STYLES)
    assert "Apache License 2.0" in painter.attribution
    assert sample.pictures[cartoon.FACESJS].std() > 20
