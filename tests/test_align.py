"""The FFHQ crop and the way back: geometry against closed forms, pixels against plain re-computation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_detect import canvas_of_twelve

from limner import media
from limner.app.cli import main
from limner.errors import FaceNotFoundError, MediaError, OptionError, ShapeError
from limner.faces import (
    Alignment,
    AlignOptions,
    PasteOptions,
    align_face,
    crop_face,
    detect_faces,
    find_alignments,
    paste_face,
    paste_faces,
    whole_picture,
)
from limner.faces.align import make_face, map_points, warp
from limner.faces.paste import _lab_to_rgb, _rgb_to_lab

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"


@pytest.fixture(scope="module")
def photos() -> dict[str, np.ndarray]:
    return {name: media.read(PHOTOS / name).pixels for name in ("astronaut.jpg", "hopper.jpg")}


def upright_face(eye_distance: float, eye_to_mouth: float) -> np.ndarray:
    """Five landmarks of a symmetric upright face, its eyes' middle at the origin."""
    half, mouth = eye_distance / 2, eye_distance / 3
    return np.array(
        [(-half, 0), (half, 0), (0, eye_to_mouth / 2), (-mouth, eye_to_mouth), (mouth, eye_to_mouth)]
    )


def similarity(angle_deg: float, scale: float, x: float, y: float) -> np.ndarray:
    angle = math.radians(angle_deg)
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[a, -b, x], [b, a, y], [0, 0, 1]])


def smooth_photo(height: int = 300, width: int = 400) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 31) + np.cos(y / 23), np.sin((x + y) / 37), np.cos((x - y) / 41)]
    return np.stack([128 + 55 * wave for wave in waves], 2).round().clip(0, 255).astype(np.uint8)


def random_alignment(seed: int, size: int = 64) -> Alignment:
    rng = np.random.default_rng(seed)
    return Alignment(
        similarity(rng.uniform(-180, 180), rng.uniform(0.4, 2.5), *rng.uniform(100, 200, 2)), size
    )


@pytest.mark.parametrize(("eye_distance", "eye_to_mouth"), [(50.0, 45.0), (50.0, 70.0), (20.0, 60.0)])
@pytest.mark.parametrize("angle", [0.0, 30.0, -100.0, 180.0])
def test_landmarks_land_where_the_recipe_puts_them(eye_distance, eye_to_mouth, angle):
    pose = similarity(angle, 1.7, 300, 200)
    alignment = align_face(make_face(map_points(pose, upright_face(eye_distance, eye_to_mouth))), 256)
    # Half the side is the longer of 2 eye distances and 1.8 eye-to-mouth distances; the middle of the crop lies a
    # tenth of the way from the eyes to the mouth.  So, for an upright face, in shares of the side:
    side = 2 * max(2 * eye_distance, 1.8 * eye_to_mouth)
    expected = 0.5 + (upright_face(eye_distance, eye_to_mouth) - [0, 0.1 * eye_to_mouth]) / side
    landmarks = map_points(alignment.photo_to_crop, alignment.face.landmarks.astype(np.float64)) / 256
    np.testing.assert_allclose(landmarks, expected, atol=1e-5)
    assert alignment.scale == pytest.approx(1.7 * side / 256, rel=1e-5)


def test_eyes_of_real_photos(photos):
    for pixels in photos.values():
        (alignment,) = find_alignments(pixels, AlignOptions(size=256))
        left, right, _, mouth_left, mouth_right = map_points(
            alignment.photo_to_crop, alignment.face.landmarks
        )
        assert right[0] - left[0] <= 64 + 1e-3  # a quarter of the side, or less where the face is long
        assert abs(right[1] - left[1]) < 12  # upright
        np.testing.assert_allclose((left + right + mouth_left + mouth_right)[0] / 4, 128, atol=6)
        assert 0.4 < left[1] / 256 < 0.5


def test_a_turned_head_uses_the_mouth_for_its_size():
    landmarks = upright_face(10, 60)  # in profile the eyes come close together
    assert align_face(make_face(landmarks), 100).scale == pytest.approx(2 * 1.8 * 60 / 100, rel=1e-5)


def test_quad_corners_and_round_trip():
    alignment = Alignment(similarity(0, 2, 10, 20), 50)
    np.testing.assert_allclose(alignment.quad, [[10, 20], [10, 120], [110, 120], [110, 20]])
    for seed in range(5):
        alignment = random_alignment(seed)
        points = np.random.default_rng(seed).uniform(-50, 200, (20, 2))
        np.testing.assert_allclose(
            map_points(alignment.photo_to_crop, map_points(alignment.crop_to_photo, points)),
            points,
            atol=1e-9,
        )
        np.testing.assert_allclose(alignment.resized(999).quad, alignment.quad, atol=1e-9)
        again = Alignment.from_mapping(json.loads(json.dumps(alignment.to_mapping())))
        np.testing.assert_array_equal(again.crop_to_photo, alignment.crop_to_photo)


@pytest.mark.parametrize("seed", range(6))
def test_crop_shows_what_lies_at_its_place(seed):
    # The photo is a closed form, so the crop must be that form at the mapped pixel centres.
    photo, alignment = smooth_photo(), random_alignment(seed)
    crop = crop_face(photo, alignment).astype(float)
    middle = np.arange(64) + 0.5
    x, y = (
        map_points(alignment.crop_to_photo, np.stack(np.meshgrid(middle, middle), 2).reshape(-1, 2)).T - 0.5
    )
    waves = [np.sin(x / 31) + np.cos(y / 23), np.sin((x + y) / 37), np.cos((x - y) / 41)]
    expected = (128 + 55 * np.stack(waves, 1)).reshape(64, 64, 3)
    x, y = x.reshape(64, 64), y.reshape(64, 64)
    # Away from the border, whose neighbourhood is blurred on purpose where the crop reaches beyond it.
    fade = 0.12 * 64 * alignment.scale + 2
    inside = (x > fade) & (y > fade) & (x < 399 - fade) & (y < 299 - fade)
    assert inside.sum() > 400
    assert np.abs(crop - expected)[inside].max() < 1.6


def test_shrinking_averages_instead_of_skipping():
    photo = np.zeros((512, 512, 3), np.uint8)
    photo[::2] = 255  # lines one px wide: sampling without averaging would show stripes
    for scale in (2.5, 4.0, 7.3):
        crop = crop_face(photo, Alignment(similarity(0, scale, 20.3, 20.7), 48))
        assert np.abs(crop.astype(int) - 128).max() < 40
        assert abs(crop.mean() - 127.5) < 2


def test_warp_against_a_plain_loop():
    source = torch.rand(1, 1, 12, 12)
    matrix = similarity(0, 1, 2, 3)
    torch.testing.assert_close(warp(source, matrix, (5, 6)), source[:, :, 3:8, 2:8])
    turned = warp(source, similarity(90, 1, 12, 0), (12, 12))
    torch.testing.assert_close(turned, torch.rot90(source, 1, (2, 3)), atol=1e-5, rtol=0)


def test_an_aligned_picture_is_taken_as_it_is():
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (alignment,) = find_alignments(photo, AlignOptions(size=64, aligned=True))
    np.testing.assert_array_equal(alignment.crop_to_photo, np.eye(3))
    np.testing.assert_array_equal(crop_face(photo, alignment), photo)
    wide = whole_picture(np.zeros((50, 90, 3), np.uint8), 50)
    np.testing.assert_allclose(wide.quad, [[20, 0], [20, 50], [70, 50], [70, 0]])


def test_landmarks_by_hand(photos):
    landmarks = detect_faces(photos["astronaut.jpg"])[0].landmarks
    (by_hand,) = find_alignments(
        photos["astronaut.jpg"], AlignOptions(landmarks=tuple(landmarks.ravel().tolist()))
    )
    (found,) = find_alignments(photos["astronaut.jpg"])
    np.testing.assert_allclose(by_hand.crop_to_photo, found.crop_to_photo)
    with pytest.raises(OptionError, match="8 numbers, expected 10"):
        AlignOptions(landmarks=(1.0,) * 8)
    with pytest.raises(OptionError, match="no upright direction"):
        align_face(make_face([5.0] * 10), 64)
    with pytest.raises(OptionError, match="finite"):
        AlignOptions(landmarks=(float("inf"),) * 10)


def test_no_face_says_what_to_try():
    with pytest.raises(FaceNotFoundError, match="--landmarks"):
        find_alignments(smooth_photo())


def test_beyond_the_border_is_mirrored_blurred_and_faded(photos):
    photo = photos["astronaut.jpg"][60:300, 205:400]  # the left eye lies on the border
    landmarks = [204 - 205, 41, 246 - 205, 43, 226 - 205, 69, 203 - 205, 79, 246 - 205, 81]
    (alignment,) = find_alignments(photo, AlignOptions(size=128, landmarks=tuple(map(float, landmarks))))
    crop = crop_face(photo, alignment).astype(float)
    assert crop.min() >= 0
    outside = crop[20:100, :20]
    inside = crop[20:100, 80:100]
    assert np.abs(np.diff(outside, axis=0)).mean() < 0.4 * np.abs(np.diff(inside, axis=0)).mean()
    far = crop_face(
        photo, Alignment(similarity(0, 1, -5000, -5000), 32)
    )  # nothing of the photo: a flat colour
    assert np.ptp(far.reshape(-1, 3), axis=0).max() <= 1


@pytest.mark.parametrize("mask", ["ellipse", "soft-square"])
@pytest.mark.parametrize("color_match", ["none", "lab", "linear"])
def test_outside_the_mask_is_bit_identical(mask, color_match):
    photo = np.random.default_rng(0).integers(0, 256, (200, 240, 3), dtype=np.uint8)
    face = np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    alignment = Alignment(similarity(25, 2.0, 110, 50), 48)
    before = photo.copy()
    result = paste_face(photo, face, alignment, PasteOptions(mask=mask, color_match=color_match))
    np.testing.assert_array_equal(photo, before)
    y, x = np.mgrid[:200, :240] + 0.5
    u, v = (map_points(alignment.photo_to_crop, np.stack([x, y], 2).reshape(-1, 2)).T / 24 - 1).reshape(
        2, 200, 240
    )
    power = 2 if mask == "ellipse" else 6
    radius = (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)
    np.testing.assert_array_equal(result[radius >= 1.0001], photo[radius >= 1.0001])
    changed = (result != photo).any(2)
    assert changed[radius < 0.6].mean() > 0.95
    if color_match == "none":  # in the middle only the face is left
        crop = warp(
            torch.from_numpy(face).permute(2, 0, 1)[None].float(), alignment.photo_to_crop, (200, 240)
        )
        pure = radius < 0.69
        expected = crop[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
        assert np.abs(result[pure].astype(float) - expected[pure]).max() <= 1


@pytest.mark.parametrize("size", [256, 700])
@pytest.mark.parametrize("color_match", ["none", "lab", "linear"])
def test_pasting_the_crop_back_changes_almost_nothing(photos, size, color_match):
    photo = photos["astronaut.jpg"]
    (alignment,) = find_alignments(photo, AlignOptions(size=size))
    result = paste_face(photo, crop_face(photo, alignment), alignment, PasteOptions(color_match=color_match))
    difference = result.astype(float) - photo
    touched = np.abs(difference).max(2) > 0
    assert touched.any()
    assert np.abs(difference[touched]).mean() < 2.5  # fine grain only ...
    assert np.abs(difference[touched].mean(0)).max() < 0.3  # ... no shift of colours
    smooth = smooth_photo()
    place = Alignment(similarity(20, 0.9, 120, 60), 128)
    again = paste_face(smooth, crop_face(smooth, place), place, PasteOptions(color_match=color_match))
    assert np.abs(again.astype(int) - smooth).max() <= 3


def test_pasting_has_no_shift():
    # A blob's centre of mass must stay where it is, whatever the sizes of photo and crop.
    y, x = np.mgrid[:240, :240]
    blob = 200 * np.exp(-((x - 120.0) ** 2 + (y - 110.0) ** 2) / 128)
    photo = np.repeat(blob[:, :, None], 3, 2).round().astype(np.uint8)
    for size in (50, 128, 500):
        place = Alignment(similarity(15, 150 / size, 70, 30), size)
        result = paste_face(photo, crop_face(photo, place), place, PasteOptions(color_match="none"))[
            ..., 0
        ].astype(float)
        centre = np.array([(result * x).sum(), (result * y).sum()]) / result.sum()
        np.testing.assert_allclose(centre, (120, 110), atol=0.05)


def test_colors_are_matched_at_the_seam_and_kept_in_the_middle():
    photo = smooth_photo()
    place = Alignment(similarity(0, 1, 120, 80), 128)
    face = (crop_face(photo, place) * 0.7 + 60).clip(0, 255).astype(np.uint8)
    plain, lab, linear = (
        paste_face(photo, face, place, PasteOptions(color_match=match)).astype(float)
        for match in ("none", "lab", "linear")
    )
    y, x = np.mgrid[:300, :400] + 0.5
    radius = np.maximum(np.abs(x - 184), np.abs(y - 144)) / 64
    seam = (radius > 0.75) & (radius < 0.9)
    for matched in (lab, linear):
        assert np.abs(matched - photo)[seam].mean() < 0.6 * np.abs(plain - photo)[seam].mean()
        np.testing.assert_allclose(matched[radius < 0.25], plain[radius < 0.25], atol=1)
    half = paste_face(photo, face, place, PasteOptions(color_strength=0.5)).astype(float)
    np.testing.assert_allclose(half[seam], (plain + lab)[seam] / 2, atol=3)


def test_lab_there_and_back():
    rgb = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(_lab_to_rgb(_rgb_to_lab(rgb)), rgb, atol=2e-4, rtol=0)
    # White, mid grey and red in D65, from CIE tables.
    known = torch.tensor([[1.0, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0]]).t().view(1, 3, 3, 1)
    expected = torch.tensor([[100.0, 0, 0], [53.389, 0, 0], [53.24, 80.09, 67.20]]).t().view(1, 3, 3, 1)
    torch.testing.assert_close(_rgb_to_lab(known), expected, atol=0.02, rtol=0)


def test_overlapping_faces_do_not_depend_on_their_order():
    photo = smooth_photo()
    places = [Alignment(similarity(0, 1, 60 + 70 * i, 80), 128) for i in range(3)]
    faces = [np.full((128, 128, 3), value, np.uint8) for value in (0, 128, 255)]
    options = PasteOptions(color_match="none")
    forth = paste_faces(photo, faces, places, options)
    back = paste_faces(photo, faces[::-1], places[::-1], options)
    assert np.abs(forth.astype(int) - back).max() <= 1
    for i, value in enumerate((0, 128, 255)):  # each prevails in its own middle
        assert np.abs(forth[144, 124 + 70 * i].astype(int) - value).max() <= 3
    alone = paste_faces(photo, faces[:1], places[:1], options)
    np.testing.assert_array_equal(forth[:, :120], alone[:, :120])


def test_twelve_faces_go_back(photos):
    canvas, _ = canvas_of_twelve(photos)
    alignments = find_alignments(canvas, AlignOptions(size=128))
    assert len(alignments) == 12
    faces = [255 - crop_face(canvas, alignment) for alignment in alignments]
    result = paste_faces(canvas, faces, alignments, PasteOptions(color_match="none"))
    touched = np.zeros(canvas.shape[:2], bool)
    for alignment in alignments:
        centre = alignment.quad.mean(0).astype(int)
        spot = np.s_[centre[1] - 2 : centre[1] + 3, centre[0] - 2 : centre[0] + 3]
        assert np.abs(result[spot].astype(float) + canvas[spot] - 255).mean() < 25  # the negative is there
        (x0, y0), (x1, y1) = (
            np.floor(alignment.quad.min(0)).astype(int),
            np.ceil(alignment.quad.max(0)).astype(int),
        )
        touched[max(0, y0) : y1, max(0, x0) : x1] = True
    assert not touched.all()
    np.testing.assert_array_equal(result[~touched], canvas[~touched])


def test_faces_partly_or_wholly_outside_the_photo():
    photo = smooth_photo()
    face = np.zeros((64, 64, 3), np.uint8)
    result = paste_face(photo, face, Alignment(similarity(10, 2, -70, -60), 64))
    assert (result != photo).any()
    np.testing.assert_array_equal(result[100:], photo[100:])
    np.testing.assert_array_equal(paste_face(photo, face, Alignment(similarity(0, 1, 900, 900), 64)), photo)


def test_wrong_faces_are_refused():
    photo, place = smooth_photo(), Alignment(np.eye(3), 64)
    with pytest.raises(ShapeError, match="square"):
        paste_face(photo, np.zeros((64, 32, 3), np.uint8), place)
    with pytest.raises(ShapeError, match="1 faces but 2 alignments"):
        paste_faces(photo, [np.zeros((64, 64, 3), np.uint8)], [place, place])
    for broken in (
        {},
        {"size": 4, "crop_to_photo": [[1, 0, 0], [0, 2, 0], [0, 0, 1]]},
        {"size": 4, "crop_to_photo": "x"},
    ):
        with pytest.raises(MediaError, match="not an alignment"):
            Alignment.from_mapping(broken)


def test_commands_cut_out_and_put_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.fromarray(smooth_photo()).save("faceless.png")
    photos = [str(PHOTOS / "astronaut.jpg"), str(PHOTOS / "hopper.jpg")]
    assert main(["align", *photos, "empty.jpg", "faceless.png", "--size", "128", "--out", "cut"]) == 2
    errors = capsys.readouterr().err
    assert "empty.jpg is empty" in errors
    assert "faceless.png: no face found" in errors
    names = sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert names == ["astronaut_01.json", "astronaut_01.png", "hopper_01.json", "hopper_01.png"]

    negative = 255 - media.read("cut/hopper_01.png").pixels
    media.write("cut/hopper_01_negative.png", negative)
    assert main(["paste", "cut/astronaut_01.png", "cut/hopper_01_negative.png", "--color-match", "none"]) == 0
    before, after = media.read(photos[1]).pixels, media.read("pasted/hopper.jpg")
    assert after.source_type == "compositeWithTrainedAlgorithmicMedia"
    assert after.pixels.shape == before.shape
    assert np.abs(after.pixels[230:250, 250:280].astype(float) + before[230:250, 250:280] - 255).mean() < 25
    about = media.read_provenance("pasted/hopper.jpg")
    assert about is not None
    assert about["options"]["faces"] == ["cut/hopper_01_negative.png"]

    assert main(["paste", "cut/hopper_01.png", "-o", "exact.png"]) == 0
    exact = media.read("exact.png").pixels
    np.testing.assert_array_equal(exact[450:], before[450:])


def test_paste_explains_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(smooth_photo()).save("photo.png")
    assert main(["align", "photo.png", "--aligned", "--size", "64", "--out", "."]) == 0
    assert main(["paste", "photo.png"]) == 2
    assert "no photo.json" in capsys.readouterr().err
    assert main(["paste", "photo_01.png", "--out", "."]) == 2
    assert "would overwrite the photo" in capsys.readouterr().err
    Image.fromarray(smooth_photo(100, 100)).save("photo.png")
    assert main(["paste", "photo_01.png"]) == 2
    assert "100 x 100 px, but photo_01.png was cut from 400 x 300" in capsys.readouterr().err
    (tmp_path / "photo.png").unlink()
    assert main(["paste", "photo_01.png"]) == 2
    assert "--photo says where" in capsys.readouterr().err
    (tmp_path / "photo_01.json").write_text("{}")
    assert main(["paste", "photo_01.png"]) == 2
    assert "not a file of limner align" in capsys.readouterr().err


def test_earlier_faces_and_photos_stay_unless_told_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(smooth_photo(64, 64)).save("x.png")
    align, paste = ["align", "x.png", "--aligned", "--size", "64", "--out", "cut"], ["paste", "cut/x_01.png"]
    for words in (align, paste):
        assert main(words) == 0
    capsys.readouterr()
    for words, file in ((align, "cut/x_01.png"), (paste, "pasted/x.png")):
        assert main(words) == 2
        assert f"{file} " in (said := capsys.readouterr().err)
        assert "--overwrite" in said
        assert main([*words, "--overwrite"]) == 0


def test_same_names_do_not_overwrite_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        media.write(f"{folder}/x.png", smooth_photo(64, 64))
    assert main(["align", "a/x.png", "b/x.png", "--aligned", "--size", "64", "--out", "cut"]) == 0
    assert sorted(path.name for path in (tmp_path / "cut").glob("*.png")) == ["x-2_01.png", "x_01.png"]
