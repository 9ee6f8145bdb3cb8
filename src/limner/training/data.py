"""Training pictures: folders or zips, resized once and kept as one array."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner import zoo
from limner.errors import MediaError, OptionError
from limner.files import replacing

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
Sources = str | Path | Sequence[str | Path]
"""One folder or zip, or several."""
Parts = list[tuple[Path, list[str]]]
"""Places and the names of the pictures that are taken from each."""


def split_ranges(select: str) -> list[tuple[int, int]]:
    """Return the ranges of ``FIRST-LAST``, or of several with commas between, both ends included; empty for all.

    Raises:
        OptionError: anything else.
    """
    if not select:
        return []
    matches = [re.fullmatch(r"\s*(\d+)-(\d+)\s*", part) for part in select.split(",")]
    found = [(int(match[1]), int(match[2])) for match in matches if match]
    if len(found) < len(matches) or any(first > last for first, last in found):
        raise OptionError(
            f"select is {select!r}, expected FIRST-LAST such as 0-10999, or several such as 0-899,2000-2999"
        )
    return found


def split_sources(source: Sources, *, what: str = "data") -> list[Path]:
    """Return the places that an option names.

    Args:
        source: one or several.
        what: name of the option, for errors.

    Raises:
        OptionError: none, or one of them twice.
    """
    given = [source] if isinstance(source, (str, Path)) else source
    places = [Path(str(place).strip()) for place in given]
    places = [place for place in places if place != Path()]
    if not places:
        raise OptionError(f"{what} must be given: a folder or a zip of square, aligned pictures, or several")
    seen: set[Path] = set()
    for place in places:
        if place.resolve() in seen:
            raise OptionError(f"{what} names {place} twice")
        seen.add(place.resolve())
    return places


def list_pictures(source: Path, select: str = "", *, what: str = "data") -> list[str]:
    """Return the picture names of a folder or zip in order, those numbered outside ``select`` left out.

    Args:
        source: folder (searched with its subfolders) or ``.zip``.
        select: see `split_ranges`; the number is the last run of digits in a file's name.
        what: name of the option, for errors.

    Raises:
        OptionError: no such place, no pictures, a bad range, or a picture without a number while selecting.
    """
    names = _list_all(source, what)
    found = select_names(names, select)
    if not found:
        numbers = sorted(number_of(name) for name in names)
        raise OptionError(
            f"{what} {source}: none of its {len(names)} pictures, numbered {numbers[0]} to {numbers[-1]}, is selected "
            f"by {select}; add a range (0-899,2000-2999), or leave this place out"
        )
    return found


def _list_all(source: Path, what: str) -> list[str]:
    if source == Path():
        raise OptionError(f"{what} must be given: a folder or a zip of square, aligned pictures")
    if source.is_dir():
        names = [str(path.relative_to(source)) for path in source.rglob("*")]
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    else:
        missing = "" if source.exists() else "there is no such place; "
        raise OptionError(f"{what} {source}: {missing}expected a folder or a zip of pictures")
    names = sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES)
    if not names:
        raise OptionError(f"{what} {source}: no pictures ({', '.join(sorted(SUFFIXES))}) found")
    return names


def select_names(names: list[str], select: str) -> list[str]:
    """Return those of the names whose number lies in ``select``, see `split_ranges`.

    Raises:
        OptionError: a bad range, or a name without a number while selecting.
    """
    ranges = split_ranges(select)
    if not ranges:
        return names
    return [name for name in names if any(first <= number_of(name) <= last for first, last in ranges)]


def number_of(name: str) -> int:
    """Return the number of a picture: the last run of digits in its name.

    Raises:
        OptionError: there is none.
    """
    digits = re.findall(r"\d+", Path(name).stem)
    if not digits:
        raise OptionError(f"select needs numbered pictures, but {name!r} has no number")
    return int(digits[-1])


def list_parts(source: Sources, select: str = "", *, what: str = "data", every: bool = True) -> Parts:
    """Return places and the names of their selected pictures.

    Args:
        source: folders or zips.
        select: see `split_ranges`; it holds for all places.
        what: name of the option, for errors.
        every: each place must give pictures; else only one of them must, and the others are left out.

    Raises:
        OptionError: see `list_pictures` and `split_sources`.
    """
    places = split_sources(source, what=what)
    if every or len(places) == 1:
        return [(place, list_pictures(place, select, what=what)) for place in places]
    parts = [(place, select_names(_list_all(place, what), select)) for place in places]
    parts = [(place, names) for place, names in parts if names]
    if not parts:
        raise OptionError(f"{what} {', '.join(map(str, places))}: no picture is selected by {select}")
    return parts


def read_pictures(source: Path, names: list[str], resolution: int) -> Iterator[np.ndarray]:
    """Yield each picture as uint8 (3, resolution, resolution), RGB, area-filtered.

    Raises:
        MediaError: a picture cannot be read or is not square.
    """
    archive = zipfile.ZipFile(source) if source.is_file() else None
    try:
        for name in names:
            try:
                file = io.BytesIO(archive.read(name)) if archive else source / name
                with Image.open(file) as picture:
                    picture.draft("RGB", (resolution, resolution))
                    picture = picture.convert("RGB")
            except OSError as error:
                raise MediaError(f"{source}/{name}: {error}; remove it or leave it out with select") from None
            if picture.width != picture.height:
                raise MediaError(
                    f"{source}/{name} is {picture.width} x {picture.height}, expected a square picture"
                )
            if picture.width != resolution:
                picture = picture.resize((resolution, resolution), Image.Resampling.BOX, reducing_gap=None)
            # Contiguous, so that a run from the cache sums in the same order and repeats bit by bit.
            yield np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
    finally:
        if archive:
            archive.close()


def load_parts(parts: Parts, resolution: int, *, cache: bool = True) -> Tensor:
    """Return the pictures of all places as one array, uint8 (N, 3, R, R); nothing is held twice on the way.

    Args:
        parts: places and names.
        resolution: side in px.
        cache: keep the resized array of every place on disk, so that the next start takes no time.

    Raises:
        MediaError: see `read_pictures`.
    """
    array = np.empty((sum(len(names) for _, names in parts), 3, resolution, resolution), np.uint8)
    start = 0
    for path, names in parts:
        into = array[start : start + len(names)]
        start += len(names)
        # The place is part of the name: equal names in two folders are different pictures.
        stamp = f"{path.resolve()}|{resolution}|{len(names)}|{path.stat().st_mtime_ns}|" + "|".join(names)
        digest = hashlib.sha256(stamp.encode()).hexdigest()[:16]
        file = zoo.cache_dir() / "datasets" / f"{digest}-{resolution}.npy"
        if cache and file.exists():
            into[:] = np.load(file, mmap_mode="r")
            continue
        for place, picture in zip(into, read_pictures(path, names, resolution), strict=True):
            place[:] = picture
        if cache:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary, temporary.open("wb") as out:
                np.save(out, into)
    return torch.from_numpy(array)


class PictureSet:
    """All training pictures in memory as uint8 (N, 3, R, R).

    Args:
        source: folder or zip, or several.
        resolution: side in px.
        select: see `list_pictures`; holds for all places.
        cache: see `load_parts`.
        what: name of the option, for errors.
        every: see `list_parts`.

    Attributes:
        names: of the pictures, as in their place; with the place before them where there are several.
        counts: place -> pictures taken from it.
        pixels: uint8 (N, 3, R, R).
    """

    def __init__(
        self,
        source: Sources,
        resolution: int,
        *,
        select: str = "",
        cache: bool = True,
        what: str = "data",
        every: bool = True,
    ):
        several = len(split_sources(source, what=what)) > 1
        parts = list_parts(source, select, what=what, every=every)
        self.names = [str(place / name) if several else name for place, names in parts for name in names]
        self.counts = {str(place): len(names) for place, names in parts}
        self.pixels = load_parts(parts, resolution, cache=cache)

    def __len__(self) -> int:
        return len(self.pixels)

    def draw(self, count: int, rng: torch.Generator, *, mirror: bool, device: torch.device) -> Tensor:
        """Return ``count`` random pictures as image (count, 3, R, R) in [-1, 1], half of them flipped if ``mirror``."""
        chosen = torch.randint(len(self.pixels), (count,), generator=rng)
        image = self.pixels[chosen].to(device).float() / 127.5 - 1
        if mirror:
            flip = (torch.rand(count, generator=rng) < 0.5).to(device)
            image = torch.where(flip[:, None, None, None], image.flip(3), image)
        return image
