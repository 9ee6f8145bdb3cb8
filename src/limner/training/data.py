"""Training pictures: a folder or a zip, resized once and kept as one array."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner import zoo
from limner.errors import MediaError, OptionError
from limner.files import replacing

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def list_pictures(source: Path, select: str = "") -> list[str]:
    """Return the picture names of a folder or zip in order, those numbered outside ``select`` left out.

    Args:
        source: folder (searched with its subfolders) or ``.zip``.
        select: ``FIRST-LAST``; the number is the last run of digits in a file's name.

    Raises:
        OptionError: no such place, no pictures, a bad range, or a picture without a number while selecting.
    """
    if source == Path():
        raise OptionError("data must be given: a folder or a zip of square, aligned pictures")
    if source.is_dir():
        names = [str(path.relative_to(source)) for path in source.rglob("*")]
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    else:
        raise OptionError(f"data {source}: expected a folder or a zip of pictures")
    names = sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES)
    if select:
        match = re.fullmatch(r"(\d+)-(\d+)", select)
        if not match:
            raise OptionError(f"select is {select!r}, expected FIRST-LAST such as 0-10999")
        first, last = int(match[1]), int(match[2])
        names = [name for name in names if first <= _number(name) <= last]
    if not names:
        raise OptionError(f"data {source}: no pictures ({', '.join(sorted(SUFFIXES))}) found")
    return names


def _number(name: str) -> int:
    digits = re.findall(r"\d+", Path(name).stem)
    if not digits:
        raise OptionError(f"select needs numbered pictures, but {name!r} has no number")
    return int(digits[-1])


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


class PictureSet:
    """All training pictures in memory as uint8 (N, 3, R, R).

    Args:
        source: folder or zip.
        resolution: side in px.
        select: see `list_pictures`.
        cache: keep the resized array on disk, so that the next start takes no time.
    """

    def __init__(self, source: str | Path, resolution: int, *, select: str = "", cache: bool = True):
        path = Path(source)
        self.names = list_pictures(path, select)
        stamp = f"{path.resolve()}|{resolution}|{len(self.names)}|{path.stat().st_mtime_ns}|" + "|".join(
            self.names
        )
        file = (
            zoo.cache_dir()
            / "datasets"
            / f"{hashlib.sha256(stamp.encode()).hexdigest()[:16]}-{resolution}.npy"
        )
        if cache and file.exists():
            self.pixels = torch.from_numpy(np.load(file))
            return
        array = np.stack(list(read_pictures(path, self.names, resolution)))
        self.pixels = torch.from_numpy(array)
        if cache:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary, temporary.open("wb") as out:
                np.save(out, array)

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
