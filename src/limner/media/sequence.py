"""Moving pictures: a sequence of frames as GIF or MP4, and back; how it was made goes into the file.

MP4 needs the package PyAV, the extra ``video``; it is imported when it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from limner.errors import MediaError, MissingExtraError
from limner.files import replacing
from limner.media.files import SOURCE_TYPES, SourceType, read
from limner.media.pixels import check_pixels

FILMS = (".gif", ".mp4")
READABLE_FILMS = (*FILMS, ".mov", ".mkv", ".webm", ".avi", ".m4v")


def is_film(path: str | Path) -> bool:
    """Say whether a file's name ends as a moving picture's does that `write_film` writes."""
    return Path(path).suffix.lower() in FILMS


def check_film(path: str | Path) -> None:
    """Raise `MissingExtraError`, before long work, where a film cannot be written because PyAV is missing."""
    if Path(path).suffix.lower() != ".gif":
        _need_av()


def write_film(
    path: str | Path,
    frames: Iterable[np.ndarray],
    *,
    fps: float = 20.0,
    loop: bool = True,
    options: Mapping[str, Any] | None = None,
    source_type: SourceType | None = None,
) -> Path:
    """Write frames as a film; the file appears whole or not at all.

    Args:
        path: ends in .gif or .mp4.
        frames: uint8 (H, W, 3) each, all of one size; MP4 drops an odd last row or column.
        fps: frames per second, 1 to 100; a GIF counts in hundredths of a second.
        loop: a GIF repeats for ever.
        options: what made it, as plain values that JSON can hold; they stand in the file's comment.
        source_type: see `limner.media.write`.

    Raises:
        MediaError: another ending, no frames, a file that cannot be written.
        MissingExtraError: MP4, and PyAV is not installed.
        ShapeError: a frame is not uint8 (H, W, 3).
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in FILMS:
        raise MediaError(
            f"{path}: cannot write {kind or 'a file without extension'}; possible are {', '.join(FILMS)}"
        )
    if not 1 <= fps <= 100:
        raise MediaError(f"fps is {fps}, expected 1 to 100")
    note: dict[str, Any] = {"software": "limner", "options": dict(options or {})}
    if source_type:
        note["digital_source_type"] = f"{SOURCE_TYPES}{source_type}"
    comment = json.dumps(note, default=str, ensure_ascii=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            if kind == ".gif":
                _write_gif(partial, _checked(frames, path), fps, loop, comment)
            else:
                _write_mp4(partial, _checked(frames, path), fps, comment)
    except OSError as error:
        raise MediaError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def read_film(path: str | Path, *, most: int = 10_000) -> Iterator[np.ndarray]:
    """Read the frames of a film, one by one.

    Args:
        path: a GIF, or a film that PyAV reads.
        most: frames that are read at most.

    Yields:
        uint8 (H, W, 3).

    Raises:
        MediaError: no such file, or one that cannot be read.
        MissingExtraError: no GIF, and PyAV is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise MediaError(f"{path}: no such file")
    if path.suffix.lower() == ".gif":
        read(path)  # says what is wrong with it
        with Image.open(path) as film:
            for number, frame in enumerate(ImageSequence.Iterator(film)):
                if number >= most:
                    return
                yield np.array(frame.convert("RGB"))
        return
    av = _need_av()
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number >= most:
                    return
                yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{path} is no film that can be read: {error}") from None


def _checked(frames: Iterable[np.ndarray], path: Path) -> Iterator[np.ndarray]:
    size = None
    for number, frame in enumerate(frames, 1):
        check_pixels(frame)
        size = size or frame.shape
        if frame.shape != size:
            raise MediaError(
                f"{path}: frame {number} is {frame.shape[:2]}, the first one {size[:2]}; expected one size"
            )
        yield frame
    if size is None:
        raise MediaError(f"{path}: a film needs one frame or more")


def _write_gif(path: Path, frames: Iterator[np.ndarray], fps: float, loop: bool, comment: str) -> None:
    # One table of colours per frame: a common one would show bands in skin.
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    duration_ms = max(2, round(100 / fps)) * 10  # viewers slow down what claims to be faster
    repeat: dict[str, Any] = {"loop": 0} if loop else {}
    pictures[0].save(
        path,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=duration_ms,
        comment=comment.encode(),
        optimize=False,
        disposal=1,
        **repeat,
    )


def _write_mp4(path: Path, frames: Iterator[np.ndarray], fps: float, comment: str) -> None:
    av = _need_av()
    first = next(frames)
    height, width = (length - length % 2 for length in first.shape[:2])
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            container.metadata["comment"] = comment
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": "16"}
            for frame in (one for group in ([first], frames) for one in group):
                pixels = np.ascontiguousarray(frame[:height, :width])
                for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    except av.FFmpegError as error:
        raise MediaError(f"{path} cannot be written: {error}") from None


def _need_av() -> Any:
    try:
        import av
        import av.error
    except ImportError:
        raise MissingExtraError(
            "films other than GIF need the package PyAV: pip install 'limner[video]', or write a GIF or a strip"
        ) from None
    return av
