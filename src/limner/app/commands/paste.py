"""``limner paste``: put aligned faces, as ``limner align`` cut them out, back into their photos."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from limner.app.commands.align import unique_names
from limner.app.console import Console
from limner.app.outputs import OutputOptions, recorded, refuse_taken
from limner.errors import LimnerError, MediaError
from limner.faces.options import PasteOptions, ReadOptions
from limner.options import knob

if TYPE_CHECKING:
    from limner.faces import Alignment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(PasteOptions, ReadOptions, OutputOptions):
    """Options of ``limner paste``."""

    faces: tuple[Path, ...] = knob()
    """face pictures, of any size; NAME_01.png and NAME_01_toon.png belong to NAME_01.json"""
    transforms: Path | None = None
    """folder of the JSON files; left out, each face's own folder"""
    photo: Path | None = None
    """the photo, where it no longer lies where the JSON files say"""
    out: Path = Path("pasted")
    """folder for the photos, in the format of each; or one file: NAME.png keeps every pixel outside the faces exactly, \
    which JPEG cannot"""


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """A face picture and where it belongs."""

    face: Path
    photo: Path
    photo_size: tuple[int, int]
    alignment: Alignment


def run(options: Options, console: Console) -> int:
    """Paste the faces, photo by photo; what fails is reported and the rest goes on."""
    from limner import media

    groups: dict[Path, list[Placed]] = {}
    failed: list[Path] = []
    files = []
    for face in options.faces:
        try:
            placed = read_sidecar(find_sidecar(face, options.transforms), face, options.photo)
            groups.setdefault(placed.photo, []).append(placed)
        except LimnerError as error:
            console.error(str(error))
            failed.append(face)
    names = unique_names(tuple(groups))
    for (photo, group), name in console.track(list(zip(groups.items(), names, strict=True)), "Pasting"):
        target = options.out
        if not target.suffix:
            target /= name + (photo.suffix if photo.suffix.lower() in media.WRITABLE else ".png")
        elif len(groups) > 1:
            raise MediaError(
                f"the faces belong to {len(groups)} photos: --out must be a folder, not {target}"
            )
        try:
            files.append(paste_group(photo, group, target, options, console))
            console.print(f"{target}: {len(group)} {'face' if len(group) == 1 else 'faces'}")
        except LimnerError as error:
            console.error(str(error))
            failed.extend(placed.face for placed in group)
    console.result(files=files, failed=failed)
    return 2 if failed else 0


def paste_group(
    photo_path: Path, group: list[Placed], target: Path, options: Options, console: Console
) -> Path:
    """Paste all faces of one photo and write it.

    Raises:
        MediaError: a picture cannot be read or written, or the photo is not the one the faces were cut from.
        OptionError: a file would be replaced unasked.
    """
    from limner import media
    from limner.faces import paste_faces

    if target.resolve() == photo_path.resolve():
        raise MediaError(f"{target} would overwrite the photo itself; choose another --out")
    refuse_taken([target], options)
    limit = options.max_megapixels or media.MAX_MEGAPIXELS
    photo = media.read(photo_path, max_megapixels=limit)
    height, width = photo.pixels.shape[:2]
    for placed in group:
        if placed.photo_size != (width, height):
            was = " x ".join(map(str, placed.photo_size))
            raise MediaError(
                f"{photo_path} has {width} x {height} px, but {placed.face} was cut from {was} px"
            )
    faces = []
    for placed in group:
        face = media.read(placed.face, max_megapixels=limit)
        if face.pixels.shape[0] != face.pixels.shape[1]:
            size = f"{face.pixels.shape[1]} x {face.pixels.shape[0]}"
            raise MediaError(f"{placed.face} has {size} px, expected a square, as limner align made it")
        faces.append(face.pixels)
    for note in photo.notes:
        console.warn(f"{photo_path}: {note}")
    pixels = paste_faces(photo.pixels, faces, [placed.alignment for placed in group], options)
    about = {"command": "paste", **recorded(options), "faces": [str(placed.face) for placed in group]}
    return media.write(
        target,
        dataclasses.replace(photo, pixels=pixels),
        options=about,
        source_type="compositeWithTrainedAlgorithmicMedia",
    )


def find_sidecar(face: Path, folder: Path | None) -> Path:
    """Return the JSON file of a face: the one of its name, else the longest that its name begins with.

    Raises:
        MediaError: there is none.
    """
    place = folder or face.parent
    name = face.stem
    while name:
        path = place / f"{name}.json"
        if path.is_file():
            return path
        name = (
            name[: max(name.rfind(mark) for mark in "_-. ")] if any(mark in name for mark in "_-. ") else ""
        )
    raise MediaError(
        f"{face}: no {face.stem}.json in {place}, so its place in the photo is unknown; limner align writes it, "
        "--transforms names its folder"
    )


def read_sidecar(path: Path, face: Path, photo: Path | None) -> Placed:
    """Read a JSON file that `limner align` wrote.

    Args:
        path: the file.
        face: the picture that goes with it.
        photo: overrides the photo it names.

    Raises:
        MediaError: unreadable, or not such a file; the photo is gone.
    """
    from limner.faces import Alignment

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = photo or Path(values["photo"])
        width, height = (int(value) for value in values["photo_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MediaError(f"{path} is not a file of limner align: {error}") from None
    if not found.exists() and (path.parent / found.name).exists():
        found = path.parent / found.name
    if not found.exists():
        raise MediaError(f"{found}, from which {face} was cut, is gone; --photo says where it is now")
    try:
        alignment = Alignment.from_mapping(values)
    except MediaError as error:
        raise MediaError(f"{path}: {error}") from None
    return Placed(face, found, (width, height), alignment)
