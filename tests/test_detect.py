"""The face detector on the two photos, and what must hold for any detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from limner import media
from limner.errors import CheckpointError, FaceNotFoundError, KeyMismatchError, OptionError, ShapeError
from limner.faces import DetectOptions, Face, MtcnnDetector, choose_faces, detect_faces
from limner.faces.detect import Mtcnn, _cut, _square, _suppress, load_mtcnn

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"
# Eyes, nose and mouth corners, read off the photos by eye; (x, y) in px.
MARKED = {
    "astronaut.jpg": [(204, 101), (246, 103), (226, 129), (203, 139), (246, 141)],
    "hopper.jpg": [(222, 190), (306, 186), (268, 239), (228, 281), (309, 279)],
}


@pytest.fixture(scope="module")
def photos() -> dict[str, np.ndarray]:
    return {name: media.read(PHOTOS / name).pixels for name in MARKED}


def canvas_of_twelve(photos: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Two photos at different sizes, half of them mirrored, on one canvas; and the eyes' middles there."""
    canvas = np.full((900, 1600, 3), 128, np.uint8)
    middles = []
    for i in range(12):
        name = list(MARKED)[i % 2]
        left, top = (100, 20) if name == "astronaut.jpg" else (120, 80)
        part = (
            photos[name][top : top + 260, left : left + 250]
            if i % 2 == 0
            else photos[name][top : top + 340, left : left + 300]
        )
        eyes = (np.array(MARKED[name][0]) + MARKED[name][1]) / 2 - (left, top)
        if i % 4 >= 2:
            part, eyes = part[:, ::-1], np.array([part.shape[1] - eyes[0], eyes[1]])
        height = 150 + 10 * i
        scale = height / part.shape[0]
        small = media.resize_pixels(np.ascontiguousarray(part), (height, round(part.shape[1] * scale)))
        x, y = 20 + 260 * (i % 6), 40 + 450 * (i // 6)
        canvas[y : y + small.shape[0], x : x + small.shape[1]] = small
        middles.append(eyes * scale + (x, y))
    return canvas, np.array(middles)


@pytest.mark.parametrize("name", MARKED)
def test_landmarks_lie_on_the_face(photos, name):
    (face,) = detect_faces(photos[name])
    truth = np.array(MARKED[name], np.float32)
    eye_distance = np.linalg.norm(truth[1] - truth[0])
    assert np.linalg.norm(face.landmarks - truth, axis=1).max() < 0.12 * eye_distance
    assert face.score > 0.95
    assert face.landmarks.dtype == face.box.dtype == np.float32
    assert (face.landmarks > face.box[:2]).all()
    assert (face.landmarks < face.box[2:]).all()


def test_landmarks_follow_the_mirror_and_the_scale(photos):
    pixels = photos["astronaut.jpg"]
    (face,) = detect_faces(pixels)
    eye_distance = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
    (mirrored,) = detect_faces(np.ascontiguousarray(pixels[:, ::-1]))
    back = (mirrored.landmarks * [-1, 1] + [pixels.shape[1], 0])[[1, 0, 2, 4, 3]]
    assert np.linalg.norm(back - face.landmarks, axis=1).mean() < 0.06 * eye_distance
    (larger,) = detect_faces(media.resize_pixels(pixels, 1536))
    assert np.linalg.norm(larger.landmarks / 3 - face.landmarks, axis=1).mean() < 0.06 * eye_distance


def test_twelve_faces_largest_first(photos):
    canvas, middles = canvas_of_twelve(photos)
    faces = detect_faces(canvas)
    assert len(faces) == 12
    sides = [face.side_px for face in faces]
    assert sides == sorted(sides, reverse=True)
    eyes = np.array([face.landmarks[:2].mean(0) for face in faces])
    distances = np.linalg.norm(middles[:, None] - eyes[None], axis=2)
    assert sorted(distances.argmin(1)) == list(range(12))
    assert distances.min(1).max() < 6


def test_tiny_faces_need_a_smaller_limit(photos):
    canvas = np.full((1800, 1800, 3), 128, np.uint8)
    canvas[400:600, 400:600] = media.resize_pixels(
        photos["astronaut.jpg"], 200
    )  # the face is about 34 px wide
    assert detect_faces(canvas) == []
    (face,) = detect_faces(canvas, DetectOptions(min_face=0.02))
    assert np.abs(face.landmarks[:2].mean(0) - (400 + 225 * 200 / 512, 400 + 102 * 200 / 512)).max() < 4


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (12, 12), (64, 64), (300, 20)])
def test_no_face_is_an_empty_list(shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert detect_faces(noise) == []
    assert detect_faces(np.zeros_like(noise)) == []


@pytest.mark.parametrize("k", [1, 2, 3])
def test_quarter_turns(photos, k):
    pixels = photos["astronaut.jpg"]
    (upright,) = detect_faces(pixels)
    turned = np.ascontiguousarray(np.rot90(pixels, k))
    assert detect_faces(turned) == []
    (face,) = detect_faces(turned, DetectOptions(quarter_turns=True))
    # The tip of the nose: the same pixel of the photo, turned.
    mark = np.zeros(pixels.shape[:2], bool)
    mark[int(upright.landmarks[2, 1]), int(upright.landmarks[2, 0])] = True
    y, x = np.argwhere(np.rot90(mark, k))[0]
    assert np.abs(face.landmarks[2] - (x + 0.5, y + 0.5)).max() < 2
    assert (face.box[2:] > face.box[:2]).all()


def test_face_partly_outside(photos):
    cut = np.ascontiguousarray(photos["astronaut.jpg"][60:300, 190:400])
    (face,) = detect_faces(cut)
    assert np.abs(face.landmarks[0] - (204 - 190, 101 - 60)).max() < 5


def test_another_detector_plugs_in(photos):
    def fixed(pixels: np.ndarray) -> list[Face]:
        small = Face(np.array([0, 0, 5, 5], np.float32), 0.5, np.zeros((5, 2), np.float32))
        large = Face(np.array([0, 0, 9, 9], np.float32), 0.4, np.zeros((5, 2), np.float32))
        return [small, large]

    assert [face.side_px for face in detect_faces(photos["hopper.jpg"], detector=fixed)] == [9, 5]


def test_choosing(photos):
    faces = [Face(np.zeros(4, np.float32), 1.0, np.zeros((5, 2), np.float32)) for _ in range(3)]
    assert choose_faces(faces) == faces
    assert choose_faces(faces, "largest") == faces[:1]
    assert choose_faces(faces, "3") == faces[2:]
    with pytest.raises(FaceNotFoundError, match="no face 4; 3 found"):
        choose_faces(faces, "4")
    with pytest.raises(
        FaceNotFoundError, match=r"a\.jpg: no face found; try --min-face .*--landmarks.*--aligned"
    ):
        choose_faces([], where="a.jpg")
    with pytest.raises(OptionError, match="expected all"):
        choose_faces(faces, "0")


def test_wrong_pixels_are_refused():
    with pytest.raises(ShapeError, match="expected uint8"):
        detect_faces(np.zeros((8, 8), np.uint8))


def test_bundled_weights_are_half_precision_of_little_effect(photos, tmp_path):
    network = load_mtcnn()
    assert next(network.parameters()).dtype == torch.float32
    detector = MtcnnDetector(DetectOptions(), network)
    np.testing.assert_array_equal(
        detector(photos["hopper.jpg"])[0].landmarks, detect_faces(photos["hopper.jpg"])[0].landmarks
    )


def test_broken_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"convert_mtcnn\.py"):
        load_mtcnn(tmp_path / "missing.safetensors")
    state = Mtcnn().state_dict()
    state.pop("refine.box.bias")
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(KeyMismatchError, match=r"refine\.box\.bias"):
        load_mtcnn(tmp_path / "a.safetensors")


def test_suppression_against_a_naive_loop():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (60, 2))], 1)
    scores = rng.uniform(0, 1, 60)

    def overlap(a: np.ndarray, b: np.ndarray, smaller: bool) -> float:
        width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
        shared = max(0, width) * max(0, height)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        return shared / (min(areas) if smaller else sum(areas) - shared)

    for smaller in (False, True):
        kept: list[int] = []
        for i in np.argsort(-scores):
            if all(overlap(boxes[i], boxes[j], smaller) <= 0.4 for j in kept):
                kept.append(int(i))
        found = _suppress(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4, by_smaller=smaller)
        assert found.tolist() == kept
    assert _suppress(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def test_crops_are_area_means_and_grey_outside():
    x = torch.rand(1, 3, 40, 40)
    crops = _cut(
        [x],
        torch.tensor([[0.0, 0.0, 24.0, 24.0], [-24.0, 4.0, 24.0, 52.0], [100.0, 100.0, 110.0, 110.0]]),
        24,
    )
    torch.testing.assert_close(crops[0], x[0, :, :24, :24])
    assert (crops[1, :, :, :12] == 0).all()
    expected = x[0, :, 4:40, :24].reshape(3, 18, 2, 12, 2).mean((2, 4))
    torch.testing.assert_close(crops[1, :, :18, 12:], expected)
    assert (crops[2] == 0).all()


def test_squares_keep_the_centre():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert _square(boxes).tolist() == [[0.0, 20.0, 40.0, 60.0]]


def test_rolled_faces_are_found(photos):
    picture = Image.fromarray(photos["hopper.jpg"])
    for angle in (-45, 45):
        turned = np.array(picture.rotate(angle, Image.Resampling.BICUBIC, expand=True))
        (face,) = detect_faces(turned)
        direction = face.landmarks[1] - face.landmarks[0]
        assert np.degrees(np.arctan2(direction[1], direction[0])) == pytest.approx(-angle, abs=8)
