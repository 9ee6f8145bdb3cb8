"""Synthetic heads as pictures: what needs OpenGL through EGL, and skips where there is none."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner import media, zoo
from limner.app.cli import main
from limner.errors import MissingExtraError
from limner.nn.identity import SAME_PERSON
from limner.synth.film import SUPERSAMPLING
from limner.synth.lighting import frontal_twin
from limner.synth.looks import (
    find_areas,
    find_outlines,
    label_map,
    make_clay,
    make_comic,
    make_pencil,
    make_toon,
)
from limner.synth.options import SynthOptions
from limner.synth.parts import LABELS
from limner.synth.plain import read_plain_assets
from limner.synth.render import Renderer, Rendering
from limner.synth.sample import sample_scene
from limner.synth.scene import Scene

SIZE = 96
SHARED = Path(__file__).parents[2] / "shared"
COMMAND = [sys.executable, "-m", "limner", "synth", "heads"]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    """Renders plain heads."""
    os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        return Renderer(read_plain_assets(), size=SIZE)
    except MissingExtraError as error:
        pytest.skip(f"no renderer on this machine: {error}")


def scene_of(renderer: Renderer, seed: int) -> Scene:
    """Return the scene of a seed."""
    return sample_scene(seed, renderer.assets.opposites())


@pytest.fixture(scope="module")
def portrait(renderer) -> Rendering:
    """One portrait with its buffers, of someone with hair and without glasses."""
    scene = next(
        scene
        for scene in (scene_of(renderer, seed) for seed in range(50))
        if scene.hair.name == "long" and scene.glasses is None and abs(scene.yaw) < 10
    )
    return renderer.render(scene, buffers=True)


def test_a_portrait_shows_what_its_labels_and_landmarks_say(portrait):
    labels = label_map(portrait.buffers)
    assert labels.shape == (SIZE, SIZE)
    for name, share in (("skin", 0.1), ("hair", 0.03), ("clothes", 0.001), ("background", 0.05)):
        assert (labels == LABELS[name]).mean() > share, name
    marks = portrait.describe()["landmarks"]
    for name in ("eye_left", "eye_right"):
        x, y = (round(value) for value in marks[name])
        assert (labels[y - 2 : y + 3, x - 2 : x + 3] == LABELS[name]).any(), name
    x, y = (round(value) for value in marks["nose"])
    assert labels[y, x] == LABELS["skin"]
    x = round((marks["mouth_l"][0] + marks["mouth_r"][0]) / 2)
    y = round((marks["lip_top"][1] + marks["lip_bot"][1]) / 2)
    around = labels[y - 4 : y + 5, x - 4 : x + 5]
    assert np.isin(around, (LABELS["lips"], LABELS["mouth_inside"])).any()


def test_a_seed_is_one_picture(renderer, portrait):
    again = renderer.render(portrait.scene)
    assert np.array_equal(again.pixels, portrait.pixels)
    assert portrait.pixels.std() > 20


def test_normals_face_the_camera(portrait):
    buffers = portrait.buffers
    skin = buffers.labels == LABELS["skin"]
    assert np.linalg.norm(buffers.normals[skin], axis=-1) == pytest.approx(1, abs=0.01)
    assert (buffers.normals[skin][:, 2] > -0.3).mean() > 0.99
    assert (buffers.normals[buffers.labels == 0] == 0).all()


def test_light_from_one_side_lights_that_side(renderer, portrait):
    scene = portrait.scene
    lights = []
    for side in (1.0, -1.0):
        dark = tuple((0.0, 0.0, 0.0) for _ in scene.light.colors[3:])
        directions = ((side, 0.1, 0.3),) * 3 + scene.light.directions[3:]
        light = type(scene.light)("test", directions, ((0.5,) * 3,) * 3 + dark, (0.0, 0.0, 0.0))
        lights.append(renderer.render(scene.but(light=light, yaw=0.0), ground=(0, 0, 0)).pixels.astype(int))
    left, right = slice(0, SIZE // 2), slice(SIZE // 2, SIZE)
    # +x is the viewer's right.
    assert lights[0][:, right].mean() > 1.5 * lights[0][:, left].mean()
    assert lights[1][:, left].mean() > 1.5 * lights[1][:, right].mean()


def test_yaw_turns_the_face_to_the_right(renderer, portrait):
    def nose_x(yaw: float) -> float:
        marks = renderer.assembler.assemble(portrait.scene.but(yaw=yaw, roll=0.0)).landmarks_px(SIZE)
        return marks["nose"][0] - (marks["eye_left"][0] + marks["eye_right"][0]) / 2

    assert nose_x(-20) < nose_x(0) < nose_x(20)


def test_a_twin_is_frontal(renderer):
    rendering = renderer.render(frontal_twin(scene_of(renderer, 0)))
    marks = rendering.describe()["landmarks"]
    assert marks["eye_left"][1] == pytest.approx(marks["eye_right"][1], abs=1.5)
    middle = (marks["eye_left"][0] + marks["eye_right"][0]) / 2
    assert marks["nose"][0] == pytest.approx(middle, abs=2)
    corners = rendering.pixels[:6, :6].reshape(-1, 3).astype(float)
    assert np.ptp(corners.mean(0)) < 6  # grey


@pytest.mark.slow
@pytest.mark.parametrize("change", ["turned", "nodding", "other light", "other expression"])
def test_the_identity_embedder_knows_a_head_again(renderer, change):
    """Eight heads as they are and changed: each is nearest to itself, at less than half the distance of two heads."""
    embedder = zoo.load("identity")
    scenes = [scene_of(renderer, seed) for seed in range(24)]
    grin = next(scene for scene in scenes if scene.expression == "grin")

    def look(people: list[Scene]) -> torch.Tensor:
        pictures = [media.to_image(renderer.render(scene).pixels) for scene in people]
        return torch.cat([embedder(picture) for picture in pictures])

    people = [scene.but(yaw=0.0, pitch=0.0, roll=0.0) for scene in scenes[:8]]
    changed = {
        "turned": [scene.but(yaw=20.0) for scene in people],
        "nodding": [scene.but(pitch=-12.0) for scene in people],
        "other light": [scene.but(light=scenes[i + 8].light) for i, scene in enumerate(people)],
        "other expression": [
            scene.but(expression=grin.expression, face_units=grin.face_units) for scene in people
        ],
    }[change]
    distances = torch.cdist(look(changed), look(people)).square()
    assert distances.argmin(1).tolist() == list(range(8))
    same, different = distances.diag(), distances[~torch.eye(8, dtype=torch.bool)]
    assert same.max() < 0.5 * SAME_PERSON
    assert same.mean() < 0.5 * different.mean()


def test_clay_has_no_colors(renderer, portrait):
    pixels = make_clay(renderer, portrait.scene)
    painted, plain = (np.ptp(one.astype(int), -1).mean() for one in (portrait.pixels, pixels))
    assert plain < 0.7 * painted
    assert np.ptp(pixels[:5, :5].reshape(-1, 3).mean(0)) < 8


def test_toon_is_flat_with_large_eyes(renderer, portrait):
    pixels = make_toon(renderer, portrait.scene)
    assert pixels.shape == (SIZE, SIZE, 3)

    def roughness(one):
        return np.median(np.abs(np.diff(one.astype(int), axis=1)))

    assert roughness(pixels) <= roughness(portrait.pixels)
    colors = [len(np.unique(one.reshape(-1, 3) // 8, axis=0)) for one in (pixels, portrait.pixels)]
    assert colors[0] < 0.7 * colors[1]


def test_comic_has_ink_and_pencil_is_grey(portrait):
    comic, pencil = make_comic(portrait), make_pencil(portrait)
    assert comic.shape == pencil.shape == (SIZE, SIZE, 3)
    assert (comic.max(-1) < 40).mean() > 0.01
    channels = pencil.astype(float).mean((0, 1))
    assert channels[0] > channels[1] > channels[2] > 0.93 * channels[0]  # on yellowish paper
    ground = label_map(portrait.buffers) == 0
    assert pencil[ground].mean() > 190


def test_outlines_lie_on_borders(portrait):
    areas = find_areas(portrait.buffers.labels)
    lines = find_outlines(portrait.buffers.normals, areas)
    border = (areas != np.roll(areas, 2, 1))[4:, 4:]
    assert lines.shape == (SIZE * SUPERSAMPLING,) * 2
    assert lines[4:, 4:][border].min() == 1
    assert 0.005 < (lines > 0.5).mean() < 0.4


def test_look_versions_differ_and_are_one_person(renderer, portrait):
    newer = Renderer(renderer.assets, size=SIZE, look_version=2)
    try:
        pixels = newer.render(portrait.scene).pixels.astype(int)
    finally:
        newer.close()
    difference = np.abs(pixels - portrait.pixels).mean()
    assert 0.3 < difference < 15
    assert np.array_equal(renderer.render(portrait.scene).pixels, portrait.pixels)  # contexts do not mix


def test_the_command_writes_and_continues(renderer, tmp_path, capsys):
    out = tmp_path / "set"
    words = ["synth", "heads", str(out), "--size", "64", "--json", "--quiet", "--labels"]
    assert main([*words, "--seeds", "3,5"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rendered"], result["folders"]) == (2, ["photo", "labels"])
    for name, mode in (("photo/000003.jpg", "RGB"), ("labels/000005.png", "P")):
        with Image.open(out / name) as picture:
            assert (picture.size, picture.mode) == ((64, 64), mode)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size[0] > 100
    assert "CC0" in (out / "ATTRIBUTION.md").read_text()
    lines = [json.loads(line) for line in (out / "meta.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [3, 5]
    assert main([*words, "--seeds", "3,5"]) == 0
    assert json.loads(capsys.readouterr().out)["rendered"] == 0
    assert main([*words, "--seeds", "3", "--assets", str(tmp_path)]) == 2
    assert "docs/synth.md" in json.loads(capsys.readouterr().out)["message"]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_without_moderngl_the_extra_is_named():
    done = run_python(
        "import sys; sys.modules['moderngl'] = None\n"
        "from limner.synth.render import open_context\nopen_context()"
    )
    assert "MissingExtraError" in done.stderr
    assert "pip install 'limner[synth]'" in done.stderr


def test_without_egl_the_packages_are_named(renderer):
    done = run_python(
        "from limner.synth.render import open_context\nopen_context()",
        __EGL_VENDOR_LIBRARY_FILENAMES="/nowhere.json",
    )
    assert "MissingExtraError" in done.stderr
    assert "apt-get install libegl1 libgl1 libgl1-mesa-dri" in done.stderr


@pytest.mark.slow
def test_a_killed_run_is_continued_to_the_same_pictures(renderer, tmp_path):
    words = ["--size", "64", "--seeds", "0-19", "--labels"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*COMMAND, str(whole), *words, "--processes", "2"], check=True, timeout=600)
    process = subprocess.Popen([*COMMAND, str(killed), *words], start_new_session=True)
    deadline = time.monotonic() + 300
    while len(list(killed.glob("photo/*.jpg"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = len(list(killed.glob("photo/*.jpg")))
    assert 5 <= there < 20
    subprocess.run([*COMMAND, str(killed), *words], check=True, timeout=600)
    for folder in ("photo", "labels"):
        names = sorted(file.name for file in (whole / folder).iterdir())
        assert len(names) == 20
        for name in names:
            assert (whole / folder / name).read_bytes() == (killed / folder / name).read_bytes()
    assert (whole / "meta.jsonl").read_text() == (killed / "meta.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "heads-assets").is_dir(), reason="needs ../shared/heads-assets and ../shared/data"
)
def test_published_portraits_are_rendered_again(renderer):
    """Seeds 0-31 as heads-256 was made: JPEG at quality 92, then again at 82, which loses most of the sensor noise."""
    from skimage.metrics import structural_similarity

    from limner.synth.heads import HeadPainter

    painter = HeadPainter(SynthOptions(assets=SHARED / "heads-assets", look_version=1))
    data = SHARED / "data/heads-256"
    records = [json.loads(line) for line in (data / "meta.jsonl").read_text().splitlines()[:32]]
    scores = []
    for sample, record in zip(painter.paint(range(32)), records, strict=True):
        assert sample.record == record
        stored = Image.fromarray(sample.pictures["photo"])
        for settings in ({"quality": 92, "subsampling": 0}, {"quality": 82}):
            buffer = io.BytesIO()
            stored.save(buffer, "JPEG", **settings)
            stored = Image.open(buffer)
        with Image.open(data / f"photo/{sample.seed:06d}.jpg") as published:
            pair = np.asarray(stored), np.asarray(published)
        scores.append(structural_similarity(*pair, channel_axis=2))
    assert min(scores) > 0.95, scores
