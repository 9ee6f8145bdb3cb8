"""Writing what edits give: one picture, a strip, a folder of frames, a GIF or an MP4."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.app.console import Console
from limner.app.outputs import OutputOptions, refuse_taken
from limner.errors import MediaError
from limner.files import check_writable
from limner.options import knob

if TYPE_CHECKING:
    import numpy as np

    from limner.media import SourceType


@dataclasses.dataclass(frozen=True)
class SequenceOptions(OutputOptions):
    """How a sequence of pictures is written."""

    fps: float = knob(20.0, lo=1.0, hi=100.0)
    """frames per second of a GIF or MP4"""
    columns: int = knob(10, lo=1, hi=1000)
    """pictures side by side in a strip, before it goes on in the next row"""


def is_file_name(out: Path) -> bool:
    """Say whether an output is one file and no folder: its name has an ending, and no folder is called so."""
    return bool(out.suffix) and not out.is_dir()


def frame_names(count: int) -> list[str]:
    """Return what the frames of a sequence are called in a folder, without the ending."""
    return [f"{number:04d}" for number in range(count)]


def check_out(out: Path, options: OutputOptions, *, names: Iterable[str], film: bool = False) -> None:
    """Raise, before long work, unless ``out`` can be written: a folder, a picture, or where ``film`` is set a film.

    Args:
        out: file or folder.
        options: say whether what exists may be replaced.
        names: of the pictures that go into a folder, as far as they are known yet.
        film: whether a sequence is written.
    """
    from limner import media

    suffix = out.suffix.lower()
    if is_file_name(out):
        known = [*media.WRITABLE, *(media.FILMS if film else ())]
        if suffix not in known and suffix not in media.WRITABLE:
            raise MediaError(f"{out}: cannot write {suffix}; possible are {', '.join(known)}, or a folder")
        if suffix == ".mp4":
            media.check_film(out)
        check_writable(out)
        refuse_taken([out], options)
    else:
        refuse_taken([out / f"{name}.png" for name in names], options)


def write_sequence(
    out: Path,
    count: int,
    frame: Callable[[int], np.ndarray],
    options: SequenceOptions,
    about: dict[str, Any],
    console: Console,
    *,
    labels: Sequence[str] = (),
) -> list[Path]:
    """Paint frames one by one and write them as ``out`` says: film, strip, or one file each in a folder.

    Raises:
        OptionError: one of those files would be replaced unasked; nothing was painted.
        MediaError: they cannot be written.
    """
    from limner import media

    kind: SourceType = "trainedAlgorithmicMedia"
    frames = (frame(i) for i in console.track(range(count), "Painting"))
    if media.is_film(out) and is_file_name(out):
        return [media.write_film(out, frames, fps=options.fps, options=about, source_type=kind)]
    if is_file_name(out):
        pictures = list(frames)
        rows = [pictures[i : i + options.columns] for i in range(0, count, options.columns)]
        top = labels if len(rows) == 1 else ()
        return [media.write(out, media.make_sheet(rows, column_labels=top), options=about, source_type=kind)]
    files = [out / f"{name}.png" for name in frame_names(count)]
    refuse_taken(files, options)
    return [
        media.write(file, pixels, options=about | {"frame": number}, source_type=kind)
        for number, (file, pixels) in enumerate(zip(files, frames, strict=True))
    ]


def write_picture(
    out: Path,
    name: str,
    pixels: np.ndarray,
    about: dict[str, Any],
    *,
    source_type: SourceType = "trainedAlgorithmicMedia",
) -> Path:
    """Write one picture as ``out``, or as NAME.png in it where it is a folder."""
    from limner import media

    target = out if is_file_name(out) else out / f"{name}.png"
    return media.write(target, pixels, options=about, source_type=source_type)
