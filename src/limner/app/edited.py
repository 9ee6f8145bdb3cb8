"""Writing what edits give: one picture, a strip, a folder of frames, a GIF or an MP4."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.app.console import Console
from limner.app.outputs import OutputOptions, refuse_taken
from limner.errors import MediaError
from limner.files import check_writable
from limner.options import Options, knob

if TYPE_CHECKING:
    import numpy as np

    from limner.media import SourceType

FIRST_FRAME = "0000"


@dataclasses.dataclass(frozen=True)
class SequenceOptions(Options):
    """How a sequence of pictures is written."""

    fps: float = knob(20.0, lo=1.0, hi=100.0)
    """frames per second of a GIF or MP4"""
    columns: int = knob(10, lo=1, hi=1000)
    """pictures side by side in a strip, before it goes on in the next row"""


def check_out(out: Path, options: OutputOptions, *, name: str, film: bool = False) -> None:
    """Raise, before long work, unless ``out`` can be written: a folder, a picture, or where ``film`` is set a film.

    Args:
        out: file or folder.
        options: say whether what exists may be replaced.
        name: of the first picture that goes into a folder; empty where that is not known yet.
        film: whether a sequence is written.
    """
    from limner import media

    suffix = out.suffix.lower()
    if suffix and not out.is_dir():
        known = [*media.WRITABLE, *(media.FILMS if film else ())]
        if suffix not in known and suffix not in media.WRITABLE:
            raise MediaError(f"{out}: cannot write {suffix}; possible are {', '.join(known)}, or a folder")
        if suffix == ".mp4":
            media.check_film(out)
        check_writable(out)
    if suffix and not out.is_dir():
        refuse_taken([out], options)
    elif name:
        refuse_taken([out / f"{name}.png"], options)


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
    """Paint frames one by one and write them as ``out`` says: film, strip, or one file each in a folder."""
    from limner import media

    kind: SourceType = "trainedAlgorithmicMedia"
    frames = (frame(i) for i in console.track(range(count), "Painting"))
    if media.is_film(out):
        return [media.write_film(out, frames, fps=options.fps, options=about, source_type=kind)]
    if out.suffix and not out.is_dir():
        pictures = list(frames)
        rows = [pictures[i : i + options.columns] for i in range(0, count, options.columns)]
        top = labels if len(rows) == 1 else ()
        return [media.write(out, media.make_sheet(rows, column_labels=top), options=about, source_type=kind)]
    return [
        media.write(out / f"{number:04d}.png", pixels, options=about | {"frame": number}, source_type=kind)
        for number, pixels in enumerate(frames)
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

    target = out if out.suffix and not out.is_dir() else out / f"{name}.png"
    return media.write(target, pixels, options=about, source_type=source_type)
