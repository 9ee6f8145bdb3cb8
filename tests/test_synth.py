"""Synthetic heads: what needs no OpenGL (scenes, meshes, filters, data sets)."""

from __future__ import annotations

import colorsys
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial
from PIL import Image

from limner.errors import OptionError
from limner.synth import filters, geometry, strands
from limner.synth.assets import Assets, Proxy, read_assets
from limner.synth.backdrop import KINDS, paint_backdrop
from limner.synth.dataset import Dataset, Sample, read_records, render, write_picture
from limner.synth.faceshape import gaze_units
from limner.synth.film import develop
from limner.synth.hairstyles import CROPPED, LONG, STYLES
from limner.synth.lighting import direction, frontal_twin
from limner.synth.lively import enliven
from limner.synth.options import DOMAINS, LOOKS, SynthOptions
from limner.synth.parts import LABELS, Assembler
from limner.synth.plain import read_plain_assets
from limner.synth.sample import age_in_years, sample_scene, skin_tone

# Lines of the published data set's meta.jsonl (heads-256), which the prototype of this renderer wrote.
PUBLISHED = {
    0: {
        "female": False,
        "gender": 0.854,
        "age": 0.242,
        "ancestry": (0.677, 0.191, 0.132),
        "yaw": 18.08,
        "pitch": -6.41,
        "roll": -1.76,
        "expression": "neutral",
        "hair_name": "brown",
        "iris": 2,
    },
    1: {
        "female": False,
        "gender": 0.99,
        "age": 0.553,
        "ancestry": (0.034, 0.588, 0.378),
        "yaw": 6.03,
        "pitch": -5.33,
        "roll": 5.49,
        "expression": "gentle",
        "hair_name": "black",
        "iris": 2,
    },
}


@pytest.fixture(scope="module")
def plain() -> Assets:
    """The heads that come with Limner."""
    return read_plain_assets()


@pytest.fixture(scope="module")
def assembler(plain) -> Assembler:
    """Builds parts of plain heads."""
    return Assembler(plain)


@pytest.mark.parametrize("seed", PUBLISHED)
def test_a_seed_is_the_person_of_the_published_data(plain, seed):
    scene = sample_scene(seed, plain.opposites())
    for name, value in PUBLISHED[seed].items():
        found = getattr(scene, name)
        assert found == value if isinstance(value, (str, bool)) else found == pytest.approx(value, abs=0.006)


def test_scenes_vary_and_repeat(plain):
    scenes = [sample_scene(seed, plain.opposites()) for seed in range(300)]
    assert scenes[7] == sample_scene(7, plain.opposites())
    assert {scene.hair.name for scene in scenes} >= {"long", "bob", "buzz", "crop", "bald", "afro_short"}
    assert 0.4 < np.mean([scene.female for scene in scenes]) < 0.6
    assert all(-40 <= scene.yaw <= 40 and 0 <= scene.skin.melanin <= 1 for scene in scenes)
    assert not any(scene.beard.count for scene in scenes if scene.female or scene.age < 0.4)
    assert any(scene.glasses for scene in scenes)


def test_every_hair_style_can_be_made():
    named = {name for shares in STYLES.values() for name in shares}
    assert named == {*CROPPED, *LONG, "buzz", "bald"}
    for shares in STYLES.values():
        assert sum(shares.values()) == pytest.approx(1, abs=0.03)


def test_ages_and_tones():
    assert age_in_years(0.5) == 25
    assert age_in_years(2) == 82
    light, dark = skin_tone(0), skin_tone(1)
    assert light == pytest.approx((np.array([231, 186, 165]) / 255) ** 2.2)
    assert dark == pytest.approx((np.array([74, 46, 35]) / 255) ** 2.2)
    assert (skin_tone(0.5) < light).all()


def test_gaze_turns_both_eyes_one_way():
    units = gaze_units(0.2, -0.1)
    assert units == {
        "eyeLookOutLeft": 0.2,
        "eyeLookInRight": 0.2,
        "eyeLookDownLeft": 0.1,
        "eyeLookDownRight": 0.1,
    }


def test_directions_of_lights():
    assert direction(0, 0) == pytest.approx([0, 0, 1])
    assert direction(90, 0) == pytest.approx([1, 0, 0])
    assert direction(45, 90) == pytest.approx([0, 1, 0], abs=1e-9)


def test_a_twin_is_the_same_person_from_the_front(plain):
    scene = sample_scene(3, plain.opposites())
    twin = frontal_twin(scene)
    assert (twin.yaw, twin.pitch, twin.roll, twin.expression) == (0, 0, 0, "neutral")
    assert (twin.shape, twin.hair, twin.skin) == (scene.shape, scene.hair, scene.skin)


def test_version_2_is_the_same_person_in_other_clothes(plain):
    scenes = [sample_scene(seed, plain.opposites()) for seed in range(200)]
    lively = [enliven(scene) for scene in scenes]
    for one, other in zip(scenes, lively, strict=True):
        kept = ("shape", "skin", "yaw", "light", "backdrop", "hair_color", "expression", "glasses")
        assert all(getattr(one, name) == getattr(other, name) for name in kept)
        assert other.face_units["browInnerUp"] >= one.face_units["browInnerUp"]
    assert lively[0] == enliven(scenes[0])
    assert len({scene.garment for scene in lively}) == 9
    # Colours spread wider than before.
    assert np.std([scene.garment_color for scene in lively]) > np.std(
        [scene.garment_color for scene in scenes]
    )


def test_opposites_pair_falling_with_rising_targets(plain):
    pairs = plain.opposites()
    assert pairs["nose-hump"] == ("nose-hump-decr", "nose-hump-incr")
    assert all(f"det/{name}" in plain.targets for pair in pairs.values() for name in pair)


def test_a_proxy_follows_its_vertices():
    proxy = Proxy(
        source=np.array([[0, 1, 2]]),
        weights=np.array([[0.5, 0.25, 0.25]]),
        offsets=np.array([[0.0, 0.0, 1.0]]),
        vertex_of=np.array([0]),
        uv=np.zeros((1, 2)),
        triangles=np.zeros((0, 3), int),
        scale={"z": (0, 1, 2.0)},
    )
    head = np.array([[0, 0, 0], [4, 0, 3], [0, 4, 1]], np.float32)
    # Offsets along z grow with the distance of vertices 0 and 1 along z, 3 where 2 is the unit.
    assert proxy.fit(head, head) == pytest.approx(np.array([[1, 1, 1 + 1.5]]))


def test_a_folder_without_a_pack_is_refused(tmp_path):
    with pytest.raises(OptionError, match="docs/synth.md"):
        read_assets(tmp_path)
    (tmp_path / "heads.json").write_text("{}")
    with pytest.raises(OptionError, match="cannot be used"):
        read_assets(tmp_path)


def test_rotations_are_right_handed():
    for axis in "xyz":
        turn = geometry.rotation(axis, 33)
        assert turn @ turn.T == pytest.approx(np.eye(3), abs=1e-6)
        assert np.linalg.det(turn) == pytest.approx(1, abs=1e-6)
    assert geometry.rotation("y", 90) @ [0, 0, 1] == pytest.approx([1, 0, 0], abs=1e-6)


def test_normals_of_a_sphere_point_outwards():
    directions = np.random.default_rng(0).normal(size=(200, 3))
    points = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    hull = scipy.spatial.ConvexHull(points)
    triangles = hull.simplices.copy()
    inward = np.einsum("ij,ij->i", np.cross(*(points[triangles[:, k]] - points[triangles[:, 0]] for k in (1, 2))),
                       points[triangles[:, 0]]) < 0  # fmt: skip
    triangles[inward] = triangles[inward][:, ::-1]
    normals = geometry.vertex_normals(points, triangles)
    assert (normals * points).sum(1).min() > 0.9


def test_macro_shares_sum_to_one_per_group(plain):
    amounts = geometry.macro_amounts(sample_scene(5, plain.opposites()))
    universal = sum(value for name, value in amounts.items() if name.startswith("universal"))
    others = sum(value for name, value in amounts.items() if not name.startswith("universal"))
    assert universal == pytest.approx(1)
    assert others == pytest.approx(1, abs=1e-6)


def test_heads_have_one_eye_distance(plain):
    scene = sample_scene(4, plain.opposites())
    neutral, expressive = geometry.Morpher(plain).shape(scene)
    left, right = neutral[plain.left_eye].mean(0), neutral[plain.right_eye].mean(0)
    assert np.linalg.norm(left - right) == pytest.approx(geometry.EYE_DISTANCE, rel=1e-3)
    assert not np.allclose(neutral, expressive)


def test_the_camera_crops_as_ffhq():
    """Recomputed from the definition, in the pixels of an uncropped picture."""
    eyes = np.array([-0.3, 7.2, 1.2]), np.array([0.31, 7.35, 1.1])
    mouth = np.array([-0.2, 6.6, 1.3]), np.array([0.22, 6.7, 1.25])
    camera = geometry.frame(eyes, mouth, 14.0)
    center = (eyes[0] + eyes[1]) / 2 * 0.6 + (mouth[0] + mouth[1]) / 2 * 0.4

    def pinhole(point):
        x, y, z = point - center
        return np.array([x, y]) / (14.0 - z)

    e0, e1, m0, m1 = (pinhole(point) for point in (*eyes, *mouth))
    eye_to_eye, eye_to_mouth = e1 - e0, (m0 + m1) / 2 - (e0 + e1) / 2
    half = max(2.0 * np.linalg.norm(eye_to_eye), 1.8 * np.linalg.norm(eye_to_mouth))
    middle = (e0 + e1) / 2 + 0.1 * eye_to_mouth
    x = eye_to_eye + np.array([-eye_to_mouth[1], eye_to_mouth[0]])
    x *= half / np.linalg.norm(x)
    y = np.array([-x[1], x[0]])
    found = camera.to_pixels(np.stack([*eyes, *mouth]), 100)
    for point, pixel in zip((e0, e1, m0, m1), found, strict=True):
        offset = point - middle
        expected = 50 * (1 + offset @ x / half**2), 50 * (1 - offset @ y / half**2)
        assert pixel == pytest.approx(expected, abs=1e-3)


def test_a_tube_has_its_radius():
    path = np.column_stack([np.linspace(0, 3, 7), np.zeros(7), np.zeros(7)])
    vertices, triangles = geometry.tube(path, 0.1, sides=6, closed=False)
    assert np.hypot(vertices[:, 1], vertices[:, 2]) == pytest.approx(0.1)
    assert triangles.shape == (6 * 6 * 2, 3)
    assert triangles.max() == len(vertices) - 1


def test_the_head_map_knows_a_ball():
    directions = np.random.default_rng(1).normal(size=(4000, 3))
    points = (strands.CENTER + 0.8 * directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(
        "f4"
    )
    head = strands.HeadMap(points, np.arange(3999).reshape(-1, 3)[:, [0, 0, 0]])
    assert head.radius(np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]])) == pytest.approx(0.8, abs=0.03)
    inside = strands.CENTER + np.array([[0.1, 0.2, 0.3]], np.float32)
    pushed = head.push(inside, np.array([0.05]))
    assert np.linalg.norm(pushed - strands.CENTER) == pytest.approx(0.85, abs=0.03)


def test_cut_curves_stop_before_the_mark():
    curve = np.zeros((1, 6, 3), np.float32)
    curve[0, :, 0] = np.arange(6)
    cut = strands.cut_curves(curve, curve[..., 0] > 3.5)
    assert cut[0, 0, 0] == 0
    assert cut[0, -1, 0] == 3
    assert strands.cut_curves(curve, curve[..., 0] > 9) == pytest.approx(curve)


@pytest.mark.parametrize("style", ["bob", "bun", "ponytail", "curly", "afro", "crop"])
def test_hair_stays_off_the_eyes(plain, assembler, style):
    scenes = (sample_scene(seed, plain.opposites()) for seed in range(400))
    scene = next(one for one in scenes if one.hair.name == style and not one.hair.over_eye)
    neutral, _ = assembler.morpher.shape(scene)
    ribbons = assembler.hair.grow_hair(scene.hair, neutral, scene.seed)
    assert ribbons is not None
    assert np.isfinite(ribbons.positions).all()
    for eye in (plain.left_eye, plain.right_eye):
        middle = neutral[eye].mean(0)
        in_front = ribbons.positions[:, 2] > middle[2] - 0.1
        near = np.linalg.norm(ribbons.positions[:, :2] - middle[:2], axis=1) < 0.12
        assert (in_front & near).mean() < 0.002


def test_parts_and_landmarks_agree(plain, assembler):
    scene = sample_scene(2, plain.opposites())
    assembly = assembler.assemble(scene)
    assert {part.label for part in assembly.parts} <= set(LABELS.values())
    for part in assembly.parts:
        assert part.triangles.max() < len(part.positions) == len(part.normals) == len(part.uv)
    marks = assembly.landmarks_px(256)
    # FFHQ's crop: eyes above the middle, mouth below, the distance as its definition says.
    assert marks["eye_right"][0] < 128 < marks["eye_left"][0]
    assert marks["eye_left"][1] < marks["nose"][1] < marks["mouth_l"][1] < marks["chin"][1]
    eyes = np.array([marks["eye_right"], marks["eye_left"]])
    mouth = np.array([marks["mouth_r"], marks["mouth_l"]]).mean(0)
    half = max(2 * math.dist(*eyes), 1.8 * math.dist(eyes.mean(0), mouth))
    assert half == pytest.approx(128, rel=0.02)


def test_blur_is_scipys():
    values = np.random.default_rng(2).random((20, 30))
    expected = scipy.ndimage.gaussian_filter(values, 1.3, mode="mirror", radius=6)
    assert filters.blur(values, 1.3) == pytest.approx(expected, abs=1e-6)
    assert filters.mean_filter(values, 5) == pytest.approx(
        scipy.ndimage.uniform_filter(values, 5, mode="mirror"), abs=1e-6
    )


def test_masks_close_and_vote():
    mask = np.ones((30, 30), bool)
    mask[:, 14:16] = False
    assert filters.close_gaps(mask, 5)[5:-5, 5:-5].all()
    speck = np.zeros((20, 20), bool)
    speck[10, 10] = True
    assert not filters.majority(speck, 5).any()
    assert filters.disc((20, 20), 10, 10, 4).sum() == pytest.approx(math.pi * 4.5**2, rel=0.1)


def test_hsv_is_colorsys():
    colors = np.random.default_rng(3).random((50, 3)).astype(np.float32)
    colors[0], colors[1] = 0.5, 0.0
    expected = np.array([colorsys.rgb_to_hsv(*map(float, color)) for color in colors])
    assert filters.rgb_to_hsv(colors) == pytest.approx(expected, abs=1e-5)
    assert filters.hsv_to_rgb(filters.rgb_to_hsv(colors)) == pytest.approx(colors, abs=1e-5)


def test_bilateral_keeps_edges():
    values = np.repeat([0.0, 1.0], 10)[None].repeat(20, 0)
    noisy = values + np.random.default_rng(4).normal(0, 0.03, values.shape)
    smooth = filters.bilateral(noisy, 3, sigma_value=0.2, sigma_px=3)
    assert np.abs(smooth - values).mean() < 0.4 * np.abs(noisy - values).mean()
    assert np.abs(smooth[:, 9:11] - values[:, 9:11]).max() < 0.1
    colors = np.stack([values] * 3, -1)
    assert filters.bilateral(colors, 2, sigma_value=0.1, sigma_px=2) == pytest.approx(colors, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_backdrops_are_smooth_light(kind):
    picture = paint_backdrop(kind, 5)
    assert picture.shape == (192, 192, 3)
    assert 0.001 < picture.min() < picture.max() <= 1.6
    assert np.abs(np.diff(picture, axis=0)).max() < 0.25  # out of focus
    assert not np.array_equal(picture, paint_backdrop(kind, 6))


def test_developing_is_monotonic_and_seeded():
    grey = np.repeat(np.linspace(0, 4, 64, dtype=np.float32)[None, :, None], 64, 0).repeat(3, 2)
    picture = develop(grey, 1)
    assert picture.shape == (32, 32, 3)
    assert (np.diff(picture.mean((0, 2))) > -1).all()
    assert np.array_equal(picture, develop(grey, 1))
    assert not np.array_equal(picture, develop(grey, 2))
    assert develop(np.full((4, 4, 3), np.inf, np.float32), 0).min() > 245


def test_options_name_what_is_wrong():
    with pytest.raises(OptionError, match=r"unknown look 'tone', .*did you mean 'toon'"):
        SynthOptions(looks=("tone",))
    with pytest.raises(OptionError, match=r"unknown domain 'head', .*did you mean 'heads'"):
        SynthOptions(domain="head")
    assert set(LOOKS) == {"toon", "comic", "clay", "pencil"}
    assert "heads" in DOMAINS


class Stripes:
    """A painter of stripes, for the tests of data sets."""

    folders = ("photo", "labels")
    attribution = "made up\n"
    palette = np.zeros((256, 3), np.uint8)

    def __init__(self):
        self.painted: list[int] = []

    def paint(self, seeds):
        for seed in seeds:
            self.painted.append(seed)
            labels = np.full((32, 32), seed % 256, np.uint8)
            yield Sample(
                seed, {"photo": np.dstack([labels] * 3), "labels": labels}, {"seed": seed, "name": "a"}
            )


def drain(options: SynthOptions) -> list[int]:
    """Render a data set of stripes and return the seeds that were painted."""
    painter = Stripes()
    records = list(render(options, Dataset(options, painter.folders), painter))
    assert [record["seed"] for record in records] == painter.painted
    return painter.painted


def test_a_data_set_is_continued(tmp_path):
    assert drain(SynthOptions(out=tmp_path, seeds=(0, 1, 2))) == [0, 1, 2]
    assert drain(SynthOptions(out=tmp_path, seeds=(0, 1, 2, 7))) == [7]
    assert sorted(read_records(tmp_path / "meta.jsonl")) == [0, 1, 2, 7]
    (tmp_path / "labels/000001.png").unlink()
    assert drain(SynthOptions(out=tmp_path, seeds=(0, 1, 2, 7))) == [1]
    lines = (tmp_path / "meta.jsonl").read_text().splitlines()
    assert len(lines) == 4  # a repeated seed gets no second line
    with Image.open(tmp_path / "labels/000002.png") as picture:
        assert picture.getpixel((3, 3)) == 2


def test_a_torn_line_is_rendered_again(tmp_path):
    options = SynthOptions(out=tmp_path, seeds=(0, 1, 2))
    drain(options)
    meta = tmp_path / "meta.jsonl"
    whole = meta.read_text()
    meta.write_text(whole[:-7])
    assert drain(options) == [2]
    assert meta.read_text() == whole
    assert [json.loads(line)["seed"] for line in meta.read_text().splitlines()] == [0, 1, 2]


def test_an_ending_run_leaves_whole_files(tmp_path):
    options = SynthOptions(out=tmp_path, seeds=(0, 1, 2, 3))
    painter = Stripes()
    run = render(options, Dataset(options, painter.folders), painter)
    next(run), next(run)
    run.close()
    assert not list(tmp_path.rglob("*.part"))
    assert drain(options) == [2, 3]


def test_other_options_need_another_folder(tmp_path):
    drain(SynthOptions(out=tmp_path, seeds=(0,), size=64))
    with pytest.raises(OptionError, match="holds pictures with size 64, now it is 128"):
        drain(SynthOptions(out=tmp_path, seeds=(0,), size=128))


def test_pictures_are_written_as_named(tmp_path):
    pixels = np.random.default_rng(5).integers(0, 255, (16, 16, 3), np.uint8)
    write_picture(tmp_path / "a.png", pixels, 90)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)
    write_picture(tmp_path / "a.jpg", pixels, 90)
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.format == "JPEG"
    assert sorted(file.name for file in Path(tmp_path).iterdir()) == ["a.jpg", "a.png"]
