"""``limner align``: cut the aligned faces out of photos; a JSON file beside each lets ``limner paste`` put it back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.app.console import Console
from limner.app.outputs import OutputOptions, recorded, refuse_taken
from limner.errors import LimnerError, MediaError, OptionError
from limner.faces.options import AlignOptions, DetectOptions, ReadOptions
from limner.files import replacing
from limner.options import knob

if TYPE_CHECKING:
    from limner.faces import Alignment
    from limner.media import Photo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(AlignOptions, DetectOptions, ReadOptions, OutputOptions):
    """Options of ``limner align``."""

    photos: tuple[Path, ...] = knob()
    """photos; every face of every photo is cut out"""
    out: Path = Path("aligned")
    """folder for the faces, NAME_01.png and so on, the largest first, each with NAME_01.json"""


def run(options: Options, console: Console) -> int:
    """Cut out the faces; a photo that fails is reported and the others go on."""
    if options.landmarks and len(options.photos) > 1:
        raise OptionError(f"landmarks belong to one photo, but {len(options.photos)} were named")
    files, failed = [], []
    names = unique_names(options.photos)
    for path, name in console.track(list(zip(options.photos, names, strict=True)), "Aligning"):
        try:
            written = align_photo(path, name, options, console)
        except LimnerError as error:
            console.error(str(error))
            failed.append(path)
            continue
        console.print(f"{path}: {len(written)} {'face' if len(written) == 1 else 'faces'}")
        files.extend(written)
    console.print(
        f"wrote {len(files)} faces to {options.out}" + (f", {len(failed)} photos failed" * bool(failed))
    )
    console.result(files=files, failed=failed)
    return 2 if failed else 0


def unique_names(paths: tuple[Path, ...]) -> list[str]:
    """Return the files' names without extension; the second ``x`` becomes ``x-2``, so that nothing is overwritten."""
    names: list[str] = []
    for path in paths:
        name, count = path.stem, 1
        while name in names:
            count += 1
            name = f"{path.stem}-{count}"
        names.append(name)
    return names


def align_photo(path: Path, name: str, options: Options, console: Console) -> list[Path]:
    """Cut out the faces of one photo and return the pictures written.

    Raises:
        MediaError: the photo cannot be read, or the folder not written.
        FaceNotFoundError: no such face.
        OptionError: a file would be replaced unasked.
    """
    from limner import media
    from limner.faces import crop_face, find_alignments

    photo = media.read(path, max_megapixels=options.max_megapixels or media.MAX_MEGAPIXELS)
    for note in photo.notes:
        console.warn(f"{path}: {note}")
    alignments = find_alignments(photo.pixels, options, options, where=str(path))
    first = int(options.face) if options.face.isdecimal() else 1
    about = {"command": "align", **recorded(options), "photos": [str(path)]}
    targets = [options.out / f"{name}_{number:02d}.png" for number in range(first, first + len(alignments))]
    refuse_taken([file for path in targets for file in (path, path.with_suffix(".json"))], options)
    for target, alignment in zip(targets, alignments, strict=True):
        crop = media.Photo(crop_face(photo.pixels, alignment), icc=photo.icc, source_type=photo.source_type)
        media.write(target, crop, options=about)
        write_sidecar(target.with_suffix(".json"), photo, alignment)
    return targets


def write_sidecar(path: Path, photo: Photo, alignment: Alignment) -> None:
    """Write what `limner paste` needs to know.

    Raises:
        MediaError: the folder cannot be written.
    """
    height, width = photo.pixels.shape[:2]
    values: dict[str, Any] = {"version": 1, "kind": "alignment"}
    values |= {"photo": str((photo.path or Path()).resolve()), "photo_size": [width, height]}
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(values | alignment.to_mapping(), indent=1), encoding="utf-8")
    except OSError as error:
        raise MediaError(f"{path} cannot be written: {error.strerror or error}") from None
