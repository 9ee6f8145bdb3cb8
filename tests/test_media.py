"""Photos in, pictures out, and what hostile files do."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from limner import media
from limner.errors import DivergedError, MediaError, ShapeError

PHOTOS = Path(__file__).resolve().parent.parent / "examples" / "photos"


def random_pixels(height: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_pixels(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [x * 255 // (width - 1), y * 255 // (height - 1), 255 - x * 255 // (width - 1)], 2
    ).astype(np.uint8)


def png_header(width: int, height: int, *, data: bool) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return start + (chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"") if data else b"")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_forgotten(tmp_path, orientation):
    upright = random_pixels()
    # How a camera stores the upright picture for each value of the tag, from its definition (row 0, column 0).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = orientation, "An Artist"
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    photo = media.read(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.pixels, upright)
    media.write(tmp_path / "b.png", photo)
    with Image.open(tmp_path / "b.png") as again:
        assert again.getexif().get(0x013B) == "An Artist"
        assert 0x0112 not in again.getexif()
    np.testing.assert_array_equal(media.read(tmp_path / "b.png").pixels, upright)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    values = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    photo = media.read(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(photo.pixels, (values / 257.0)[:, :, None].repeat(3, 2), atol=0.51)
    assert photo.mode.startswith("I;16")
    assert "scaled" in photo.notes[0]


def test_sixteen_bit_color_is_scaled(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    values = np.linspace(0, 65535, 8 * 8 * 3).astype(">u2").reshape(8, 8, 3)
    body = b"".join(b"\0" + row.tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    file = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(file)
    np.testing.assert_allclose(media.read(tmp_path / "a.png").pixels, values / 257.0, atol=1)


def test_float_is_scaled(tmp_path):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_allclose(media.read(tmp_path / "a.tif").pixels[..., 0], values * 255, atol=0.51)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "LAB"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    pixels = smooth_pixels()
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        stored = ImageCms.profileToProfile(Image.fromarray(pixels), srgb, lab, outputMode="LAB")
    else:
        stored = Image.fromarray(pixels).convert(mode)
    assert stored is not None
    stored.save(tmp_path / "a.tif")
    photo = media.read(tmp_path / "a.tif")
    assert (photo.mode, photo.pixels.dtype, photo.pixels.shape) == (mode, np.uint8, pixels.shape)
    grey = pixels @ [0.299, 0.587, 0.114]
    if mode in ("L", "LA"):
        np.testing.assert_allclose(photo.pixels, grey[:, :, None].repeat(3, 2), atol=1)
    elif mode in ("1", "P"):  # dithered: right on average
        target = grey.mean() if mode == "1" else pixels.mean((0, 1))
        assert np.abs(photo.pixels.mean((0, 1)) - target).max() < 6
    else:  # 8-bit Lab cannot hold every colour exactly
        assert np.abs(photo.pixels.astype(int) - pixels).mean() < (3 if mode == "LAB" else 0.1)


def test_alpha_comes_back(tmp_path):
    pixels, alpha = random_pixels(), np.random.default_rng(1).integers(0, 256, (24, 40), dtype=np.uint8)
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "a.png")
    photo = media.read(tmp_path / "a.png")
    assert photo.alpha is not None
    np.testing.assert_array_equal(photo.alpha, alpha)
    np.testing.assert_array_equal(photo.pixels, pixels)
    for name in ("b.png", "b.tif"):
        again = media.read(media.write(tmp_path / name, photo))
        np.testing.assert_array_equal(again.alpha, alpha)
        np.testing.assert_array_equal(again.pixels, pixels)


def test_jpeg_lays_transparency_on_white(tmp_path, caplog):
    photo = media.Photo(np.zeros((16, 16, 3), np.uint8), alpha=np.zeros((16, 16), np.uint8))
    assert media.read(media.write(tmp_path / "a.jpg", photo)).pixels.min() > 250
    assert "no transparency" in caplog.text


def test_transparent_palette(tmp_path):
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.paste(1, (0, 0, 4, 8))
    picture.save(tmp_path / "a.png", transparency=0)
    photo = media.read(tmp_path / "a.png")
    assert photo.pixels[0, 0].tolist() == [200, 100, 50]
    assert photo.alpha is not None
    assert photo.alpha[0].tolist() == [255] * 4 + [0] * 4


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    photo = media.read(tmp_path / "a.gif")
    assert photo.pixels[0, 0].tolist() == [255, 0, 0]
    assert "3 frames" in photo.notes[0]


def test_profile_is_kept_only_where_it_fits(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(random_pixels()).save(tmp_path / "a.png", icc_profile=profile)
    photo = media.read(tmp_path / "a.png")
    assert photo.icc == profile
    assert media.read(media.write(tmp_path / "b.jpg", photo)).icc == profile
    grey = profile[:16] + b"GRAY" + profile[20:]
    Image.new("L", (8, 8)).save(tmp_path / "c.png", icc_profile=grey)
    assert media.read(tmp_path / "c.png").icc is None


@pytest.mark.parametrize("data", [True, False])
def test_huge_header_is_refused_before_decoding(tmp_path, data):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(30_000, 30_000, data=data))
    with pytest.raises(
        MediaError, match=r"30000 x 30000 px, 900 megapixels; the limit is 128.*max_megapixels"
    ):
        media.read(path)


def test_limit_may_be_changed(tmp_path):
    media.write(tmp_path / "a.bmp.png", random_pixels(100, 100))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(MediaError, match="limit is 0.005"):
        media.read(tmp_path / "a.bmp.png", max_megapixels=0.005)
    assert media.read(tmp_path / "a.bmp.png", max_megapixels=0.01).pixels.shape == (100, 100, 3)
    assert before == Image.MAX_IMAGE_PIXELS


def test_huge_header_of_another_format(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "BMP")
    body = bytearray(stream.getvalue())
    body[18:26] = struct.pack("<ii", 40_000, 40_000)
    (tmp_path / "a.bmp").write_bytes(body)
    with pytest.raises(MediaError, match="1600 megapixels"):
        media.read(tmp_path / "a.bmp")


def test_what_cannot_be_read_says_why(tmp_path):
    jpeg = (PHOTOS / "astronaut.jpg").read_bytes()
    files = {
        "empty.jpg": (b"", "is empty"),
        "text.png": (b"this is no picture at all, only some text", "not a picture"),
        "short.jpg": (jpeg[: len(jpeg) // 2], "broken or cut short"),
        "heic.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "HEIC"),
        "script.eps": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
            "not a picture",
        ),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=message):
            media.read(tmp_path / name)
    with pytest.raises(MediaError, match="no such file"):
        media.read(tmp_path / "missing.png")
    with pytest.raises(MediaError, match="is a directory"):
        media.read(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(MediaError, match="not a regular file"):
        media.read(tmp_path / "pipe.png")


def test_permissions(tmp_path, locked_folder):
    path = media.write(tmp_path / "a.png", random_pixels())
    path.chmod(0)
    with pytest.raises(MediaError, match="no permission"):
        media.read(path)
    with pytest.raises(MediaError, match="cannot be written"):
        media.write(locked_folder / "b.png", random_pixels())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks about the damage
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".gif", ".bmp"])
def test_damaged_files_end_in_one_error(tmp_path, suffix):
    rng = np.random.default_rng(0)
    good = tmp_path / f"good{suffix}"
    Image.fromarray(smooth_pixels()).save(good)
    content = np.frombuffer(good.read_bytes(), np.uint8)
    path = tmp_path / f"bad{suffix}"
    messages = []
    for _ in range(60):
        damaged = content.copy()
        where = rng.integers(0, min(len(content), 200), 4)
        damaged[where] = rng.integers(0, 256, 4)
        path.write_bytes(damaged[: rng.integers(len(content) // 2, len(content) + 1)].tobytes())
        try:
            assert media.read(path, max_megapixels=1).pixels.dtype == np.uint8
        except MediaError as error:
            messages.append(str(error))
    assert messages
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize(
    "source_type", ["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", None]
)
def test_provenance_comes_back(tmp_path, suffix, source_type):
    options = {"style": 'toon <&> "ünï" ]]>', "strength": 0.5, "seeds": [1, 2], "path": None}
    path = media.write(tmp_path / f"sub/a{suffix}", random_pixels(), options=options, source_type=source_type)
    about = media.read_provenance(path)
    assert about is not None
    assert about["options"] == options
    assert about["software"].startswith("limner")
    assert about.get("digital_source_type") == source_type
    mark = b"http://cv.iptc.org/newscodes/digitalsourcetype/" + (source_type or "nothing").encode()
    if suffix != ".webp" or source_type:  # what other programs look for, in plain sight
        assert (mark in path.read_bytes()) == (source_type is not None)
    assert media.read(path).source_type == source_type
    # A picture cut out of it keeps the mark.
    assert media.read(media.write(tmp_path / "b.png", media.read(path))).source_type == source_type
    assert not [file.name for file in tmp_path.rglob(".*")]


def test_photo_without_provenance():
    assert media.read_provenance(PHOTOS / "hopper.jpg") is None
    assert media.read(PHOTOS / "hopper.jpg").source_type is None


def test_xmp_is_well_formed(tmp_path):
    from xml.etree import ElementTree

    path = media.write(
        tmp_path / "a.png", random_pixels(), options={"a": "<&>\"'"}, source_type="trainedAlgorithmicMedia"
    )
    with Image.open(path) as picture:
        text = picture.info["XML:com.adobe.xmp"]
    found = ElementTree.fromstring(text.split("?>", 1)[1].rsplit("<?", 1)[0])
    names = {element.tag.rsplit("}")[-1]: element.text for element in found.iter()}
    assert names["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert names["CreatorTool"].startswith("limner")


def test_what_cannot_be_written_says_why(tmp_path):
    with pytest.raises(MediaError, match=r"cannot write \.bmp; possible are .*\.png"):
        media.write(tmp_path / "a.bmp", random_pixels())
    with pytest.raises(MediaError, match="without extension"):
        media.write(tmp_path / "a", random_pixels())
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="cannot be written"):
        media.write(tmp_path / "file" / "a.png", random_pixels())
    with pytest.raises(MediaError, match="cannot be written"):
        media.write("/proc/limner/a.png", random_pixels())
    with pytest.raises(MediaError, match="write a PNG"):
        media.write(tmp_path / "a.jpg", random_pixels(), options={"long": "x" * 70_000})
    with pytest.raises(ShapeError, match="expected uint8"):
        media.write(tmp_path / "a.png", random_pixels().astype(np.float32))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file"]


def test_failed_write_leaves_the_old_file(tmp_path):
    path = media.write(tmp_path / "a.jpg", random_pixels())
    before = path.read_bytes()
    with pytest.raises(MediaError):
        media.write(path, random_pixels(), quality="bad")  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_pixels_survive_the_way_to_an_image():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    image = media.to_image(every, 255 - every)
    assert image.shape == (2, 3, 16, 16)
    assert (image.min(), image.max()) == (-1, 1)
    first, second = media.to_pixels(image)
    np.testing.assert_array_equal(first, every)
    np.testing.assert_array_equal(second, 255 - every)
    assert media.to_pixels(torch.full((1, 3, 2, 2), 7.0))[0].max() == 255


def test_images_that_are_none():
    with pytest.raises(ShapeError, match="one size"):
        media.to_image(random_pixels(8, 8), random_pixels(8, 9))
    with pytest.raises(ShapeError, match=r"expected \(B, 3, H, W\)"):
        media.to_pixels(torch.zeros(3, 8, 8))
    with pytest.raises(DivergedError, match="NaN"):
        media.to_pixels(torch.full((1, 3, 2, 2), float("nan")))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "area"])
def test_resizing_keeps_the_mean(mode):
    image = torch.rand(1, 3, 32, 32)
    small = media.resize_image(image, (8, 16), mode)
    assert small.shape == (1, 3, 8, 16)
    assert small.mean().item() == pytest.approx(image.mean().item(), abs=0.01)
    assert media.resize_image(image, 32) is image


def test_area_is_the_mean_of_blocks():
    image = torch.rand(1, 3, 8, 8)
    expected = image.reshape(1, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(media.resize_image(image, 4, "area"), expected)


def test_sheet_holds_every_picture():
    red, green = np.full((20, 20, 3), (255, 0, 0), np.uint8), np.full((20, 10, 3), (0, 255, 0), np.uint8)
    sheet = media.make_sheet([[red, None, green], [green]], ["one", "two"], ["a", "b", "c"], gap_px=2)
    assert (sheet == (255, 0, 0)).all(2).sum() == 400
    assert (sheet == (0, 255, 0)).all(2).sum() == 400
    plain = media.make_sheet([[red, red]], gap_px=2)
    assert plain.shape == (24, 46, 3)
    assert sheet.shape[0] > 44
    assert sheet.shape[1] > 68
    with pytest.raises(ShapeError, match="at least one"):
        media.make_sheet([[None]])


def test_side_by_side_has_one_height():
    joined = media.join_side_by_side([np.zeros((10, 10, 3), np.uint8), np.zeros((40, 20, 3), np.uint8)])
    dark = (joined == 0).all(2)
    assert dark.any(1).sum() == 40
    assert dark.sum() == 40 * 40 + 40 * 20
