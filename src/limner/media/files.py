"""Photos in, pictures out: every readable format as 8-bit RGB, and files that say how they were made.

Orientation is applied, 16-bit scaled (not clipped), alpha kept aside, CMYK, Lab, palette and grey converted.  Of an
animation the first frame is read, with a note.  The header is checked before anything is decoded, so a small file
cannot ask for gigabytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import json
import logging
import re
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from limner.errors import MediaError
from limner.files import replacing
from limner.media.pixels import check_pixels

logger = logging.getLogger(__name__)

MAX_MEGAPIXELS = 128.0
READABLE = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
WRITABLE = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
}
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SourceType = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
EXIF_ORIENTATION, TIFF_XMP = 0x0112, 700
# What Pillow's decoders raise on broken files, beside its own UnidentifiedImageError (an OSError).
BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError),
    *(EOFError, ZeroDivisionError, NotImplementedError, RuntimeError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError, ImageCms.PyCMSError),
)
_header_lock = threading.Lock()


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """A picture as it was read, with what is needed to write it back.

    Attributes:
        pixels: uint8 (H, W, 3) RGB, upright.
        alpha: uint8 (H, W), 255 opaque; None where the file has none.
        icc: RGB colour profile of the pixels; None for sRGB.
        exif: EXIF block without orientation and thumbnail.
        mode: Pillow's name of the file's pixel type, such as ``RGB``, ``CMYK``, ``I;16``.
        path: where it was read from.
        source_type: IPTC digital source type that the file carried, without its address.
        notes: what was changed or left out in reading, one sentence each.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    mode: str = "RGB"
    path: Path | None = None
    source_type: str | None = None
    notes: tuple[str, ...] = ()


def read(path: str | Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> Photo:
    """Read a photo.

    Args:
        path: a file that Pillow can read.
        max_megapixels: larger pictures are refused before they are decoded.

    Raises:
        MediaError: missing, a directory, unreadable, empty, no picture, broken, cut short or too large.
    """
    path = Path(path)
    with _open(path, max_megapixels) as picture:
        notes = []
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":
            notes.append(f"{frames} frames or pages: the first one is used")
        mode = picture.mode
        picture.load()
        source_type = _find_source_type(_xmp_of(picture))
        exif = picture.getexif()
        picture = ImageOps.exif_transpose(picture)
        exif.pop(EXIF_ORIENTATION, None)
        icc = picture.info.get("icc_profile")
        rgb, alpha = _to_rgb(picture, notes)
        # A profile of another colour space (grey, CMYK) does not describe the RGB pixels.
        keep_icc = icc if icc and picture.mode not in ("CMYK", "LAB") and icc[16:20] == b"RGB " else None
        return Photo(
            pixels=np.array(rgb),
            alpha=None if alpha is None else np.array(alpha),
            icc=keep_icc,
            exif=exif.tobytes() if len(exif) else None,
            mode=mode,
            path=path,
            source_type=source_type,
            notes=tuple(notes),
        )


@contextlib.contextmanager
def _open(path: Path, max_megapixels: float) -> Iterator[Image.Image]:
    """Open a picture and check its header; whatever goes wrong until the end of the block is a `MediaError`."""
    if path.is_dir():
        raise MediaError(
            f"{path} is a directory, expected a picture; name its files, for instance {path}/*.jpg"
        )
    if not path.exists():
        raise MediaError(f"{path}: no such file")
    if not path.is_file():
        raise MediaError(f"{path} is not a regular file")
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(32)
            if not start:
                raise MediaError(f"{path} is empty (0 bytes)")
            _check_size(path, _png_size(start), max_megapixels)
            file.seek(0)
            Image.init()
            with _header_lock:  # Pillow's own limit is a global; it would refuse what `max_megapixels` allows
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    picture = Image.open(file, formats=[name for name in READABLE if name in Image.OPEN])
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
            _check_size(path, picture.size, max_megapixels)
            yield picture
    except Image.UnidentifiedImageError:
        if start[4:8] == b"ftyp":
            raise MediaError(
                f"{path} is a HEIC, AVIF or video file that this Pillow cannot read; save it as JPEG or PNG"
            ) from None
        known = ", ".join(name for name in READABLE if name in Image.OPEN)
        raise MediaError(f"{path} is not a picture, or a broken one; formats tried: {known}") from None
    except PermissionError:
        raise MediaError(f"{path}: no permission to read it") from None
    except BROKEN as error:
        raise MediaError(f"{path} is broken or cut short: {error or type(error).__name__}") from error


def _png_size(start: bytes) -> tuple[int, int]:
    """Return width and height from the first 32 bytes of a PNG file; (0, 0) for anything else."""
    if start[:8] != b"\x89PNG\r\n\x1a\n" or start[12:16] != b"IHDR" or len(start) < 24:
        return 0, 0
    width, height = struct.unpack(">II", start[16:24])
    return width, height


def _check_size(path: Path, size: tuple[int, int], max_megapixels: float) -> None:
    megapixels = size[0] * size[1] / 1e6
    if megapixels > max_megapixels:
        raise MediaError(
            f"{path} has {size[0]} x {size[1]} px, {megapixels:.0f} megapixels; the limit is {max_megapixels:g}, "
            "raise it with max_megapixels (--max-megapixels) if memory allows: about 12 bytes a pixel"
        )


def _to_rgb(picture: Image.Image, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Return 8-bit RGB and the alpha channel, if there is one; what is worth knowing is added to ``notes``."""
    if picture.mode.startswith(("I", "F")):
        return _scale_deep(picture, notes).convert("RGB"), None
    if picture.mode in ("CMYK", "LAB"):
        return _convert_colors(picture, notes), None
    if picture.mode in ("RGBa", "La"):
        picture = picture.convert({"RGBa": "RGBA", "La": "LA"}[picture.mode])
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return picture.convert("RGB"), picture.getchannel("A")
    return picture.convert("RGB"), None


def _scale_deep(picture: Image.Image, notes: list[str]) -> Image.Image:
    """Bring 16-bit, 32-bit or float grey to 8 bits by its nominal range, never by clipping."""
    values = np.array(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds infinite or undefined values")
    if picture.mode == "F":
        top = next((top for top in (1.0, 255.0, 65535.0) if values.max() <= top), float(values.max()))
    else:
        top = max(65535.0, float(values.max()))
    notes.append(f"{picture.mode} values 0 to {top:g} scaled to 8 bits")
    return Image.fromarray(np.rint(values.clip(0) * (255 / top)).astype(np.uint8))


def _convert_colors(picture: Image.Image, notes: list[str]) -> Image.Image:
    """Turn CMYK or Lab into sRGB, by the embedded profile where there is a usable one."""
    profile: Any = None
    if picture.mode == "LAB":
        profile = ImageCms.createProfile("LAB")
    elif (icc := picture.info.get("icc_profile")) and icc[16:20] == b"CMYK":
        with contextlib.suppress(OSError, ImageCms.PyCMSError):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    notes.append(f"{picture.mode} converted to sRGB{'' if profile else ' without a colour profile'}")
    if profile is None:
        return picture.convert("RGB")
    converted = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    if converted is None:
        raise ValueError("its colour profile cannot be used")
    return converted


def write(
    path: str | Path,
    picture: np.ndarray | Photo,
    *,
    options: Mapping[str, Any] | None = None,
    source_type: SourceType | None = None,
    quality: int = 95,
) -> Path:
    """Write a picture, with the options that made it inside; the file appears complete or not at all.

    Args:
        path: its extension names the format: png, jpg, webp, tif or avif.  Missing directories are made.
        picture: pixels, uint8 (H, W, 3), or a `Photo`, whose alpha, profile and EXIF are kept; its own XMP packet
            is replaced.
        options: what made the picture, as plain values that JSON can hold.
        source_type: ``trainedAlgorithmicMedia`` for a picture that a model painted,
            ``compositeWithTrainedAlgorithmicMedia`` for a photo with painted parts; None for what the photo itself
            carries, usually nothing.
        quality: of JPEG, WebP and AVIF.

    Raises:
        MediaError: unknown extension, directory cannot be made or written, disk full, metadata too long.
        ShapeError: ``picture`` is not uint8 (H, W, 3).
    """
    path = Path(path)
    photo = picture if isinstance(picture, Photo) else Photo(picture)
    check_pixels(photo.pixels)
    kind = WRITABLE.get(path.suffix.lower())
    Image.init()
    if kind is None or kind not in Image.SAVE:
        known = ", ".join(suffix for suffix, name in WRITABLE.items() if name in Image.SAVE)
        raise MediaError(
            f"{path}: cannot write {path.suffix or 'a file without extension'}; possible are {known}"
        )
    xmp = _make_xmp(dict(options or {}), source_type or photo.source_type)
    image, settings = _prepare(photo, kind, xmp, quality)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            image.save(file, kind, **settings)
    except BROKEN as error:
        raise MediaError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return path


def _prepare(photo: Photo, kind: str, xmp: bytes, quality: int) -> tuple[Image.Image, dict[str, Any]]:
    """Return the Pillow image and the arguments of its `save`."""
    image = Image.fromarray(photo.pixels)
    if photo.alpha is not None and kind == "JPEG":
        logger.warning("JPEG has no transparency: the picture is laid on white")
        image = Image.composite(image, Image.new("RGB", image.size, "white"), Image.fromarray(photo.alpha))
    elif photo.alpha is not None:
        image.putalpha(Image.fromarray(photo.alpha))
    settings: dict[str, Any] = {}
    if photo.icc:
        settings["icc_profile"] = photo.icc
    if kind == "TIFF":
        directory = Image.Exif()
        if photo.exif:
            directory.load(photo.exif)
        directory[TIFF_XMP] = xmp
        return image, {**settings, "exif": directory, "compression": "tiff_deflate"}
    if photo.exif:
        settings["exif"] = photo.exif
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        text.add_itxt("limner", _find_provenance(xmp) or "{}")
        return image, {**settings, "pnginfo": text}
    settings["quality"] = quality
    if kind == "JPEG":
        segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
        if len(segment) > 65533:
            raise MediaError(f"the options take {len(xmp)} bytes, a JPEG file holds 65,000; write a PNG file")
        return image, {**settings, "extra": b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment}
    return image, {**settings, "xmp": xmp}


def _make_xmp(options: Mapping[str, Any], source_type: str | None) -> bytes:
    """Return an XMP packet with the software's name, the options as JSON, and the mark of generated media."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        software = f"limner {version('limner')}"
    except PackageNotFoundError:
        software = "limner"
    about: dict[str, Any] = {"software": software, "options": options}
    mark = ""
    if source_type:
        about["digital_source_type"] = source_type
        mark = f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPES}{html.escape(source_type)}</Iptc4xmpExt:DigitalSourceType>"
    text = html.escape(json.dumps(about, default=str, ensure_ascii=False), quote=False)
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'xmlns:limner="https://limner.invalid/ns/1.0/"><xmp:CreatorTool>{html.escape(software)}</xmp:CreatorTool>'
        f"{mark}<limner:provenance>{text}</limner:provenance></rdf:Description></rdf:RDF></x:xmpmeta>"
        '<?xpacket end="r"?>'
    ).encode()


def _xmp_of(picture: Image.Image) -> bytes:
    """Return the XMP packet of an opened picture, or nothing."""
    xmp = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    return xmp.encode() if isinstance(xmp, str) else bytes(xmp)


def _find_provenance(xmp: bytes) -> str | None:
    found = re.search(rb"<limner:provenance>(.*?)</limner:provenance>", xmp, re.DOTALL)
    return html.unescape(found[1].decode(errors="replace")) if found else None


def _find_source_type(xmp: bytes) -> str | None:
    found = re.search(rb"DigitalSourceType[^a-zA-Z]+" + SOURCE_TYPES.encode() + rb"([A-Za-z]+)", xmp)
    return found[1].decode() if found else None


def read_provenance(path: str | Path) -> dict[str, Any] | None:
    """Return what `write` put into a picture: ``software``, ``options`` and, if marked, ``digital_source_type``.

    Returns:
        The mapping, or None where the picture carries none of Limner's making.

    Raises:
        MediaError: as for `read`; the entry is there but broken.
    """
    path = Path(path)
    with _open(path, float("inf")) as picture:
        text = picture.info.get("limner") or _find_provenance(_xmp_of(picture))
    if text is None:
        return None
    try:
        about = json.loads(text)
    except json.JSONDecodeError as error:
        raise MediaError(f"{path}: its limner entry is broken: {error}") from None
    return about if isinstance(about, dict) else None
