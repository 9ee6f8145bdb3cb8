"""Faces to edit: from photos, films, latent files and seeds."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limner import media
from limner.checkpoints.latents import load_latent
from limner.editing.portrait import Portrait, paint, paint_inside
from limner.errors import OptionError
from limner.faces import crop_face, whole_picture
from limner.inversion import InversionOptions, invert
from limner.latent import Latent
from limner.pipeline.kept import code_names, load_codes
from limner.pipeline.models import Models
from limner.pipeline.options import LATENT_FILES, PortraitOptions, StylizeOptions
from limner.pipeline.photos import SEARCH, OnStep, embed_faces


@dataclasses.dataclass(frozen=True, eq=False)
class Sitter:
    """A face that was read.

    Attributes:
        name: for files and labels.
        portrait: its codes, with noise maps and change of the generator.
        crop: the photo's aligned face, uint8 (R, R, 3); None where no photo was named.
    """

    name: str
    portrait: Portrait
    crop: np.ndarray | None = None


def read_sitters(
    source: str | Path,
    options: PortraitOptions | None = None,
    *,
    models: Models,
    on_step: OnStep | None = None,
) -> list[Sitter]:
    """Read the faces that a word names.

    Args:
        source: a photo, a film (every frame gives a face), a latent file (every code does), or ``seed:N`` or
            ``seed:FIRST-LAST`` for random faces.
        options: how photos are embedded.
        models: see `limner.pipeline.load_models`.
        on_step: called after every step of a search.

    Raises:
        MediaError, CheckpointError: a file that cannot be read.
        KeyMismatchError: codes of another generator.
        ShapeError: codes that do not fit the generator.
        FaceNotFoundError: no face in a photo, or in a film's frame.
        OptionError, DivergedError: see `limner.inversion.invert`.
    """
    options = options or PortraitOptions()
    text, path = str(source), Path(source)
    if text.startswith("seed:"):
        return _from_seeds(text, options, models)
    if path.suffix.lower() in LATENT_FILES:
        return _from_latents(path, models)
    if path.suffix.lower() in media.READABLE_FILMS:
        sitters = []
        for number, pixels in enumerate(media.read_film(path), 1):
            where = f"{path}, frame {number}"
            frame = dataclasses.replace(options, face="largest" if options.face == "all" else options.face)
            sitters += _from_pixels(pixels, f"{path.stem}-{number:04d}", frame, models, where, on_step)
        return sitters
    return _from_pixels(media.read(path).pixels, path.stem, options, models, str(path), on_step)


def expect_names(source: str | Path, options: PortraitOptions | None = None) -> list[str]:
    """Return the names of the faces that `read_sitters` will read, as far as they are known without embedding one.

    Args:
        source: as there.
        options: say whether a photo gives more faces than one.

    Returns:
        Every name, or none where the photo has to be seen, as is so for films and where all faces are wanted.

    Raises:
        CheckpointError, ShapeError: a latent file that cannot be read.
        OptionError: no seed.
    """
    options = options or PortraitOptions()
    text, path = str(source), Path(source)
    if text.startswith("seed:"):
        return [f"seed{seed}" for seed in _read_seeds(text)]
    if path.suffix.lower() in LATENT_FILES:
        return code_names(path, len(load_latent(path).latent))
    seen = options.face == "all" or path.suffix.lower() in media.READABLE_FILMS
    return [] if seen else [path.stem]


def embed_filled(image: torch.Tensor, hole: torch.Tensor, models: Models) -> Portrait | None:
    """Return what the compact encoder makes of a picture whose hole shows the mean face; None where there is no encoder.

    Args:
        image: (1, 3, R, R).
        hole: (1, 1, R, R), 1 where it is missing.
        models: the generator, and its compact encoder if it has one.
    """
    if models.compact is None:
        return None
    mean = Portrait(Latent("w", models.generator.w_avg[None]))
    filled = torch.lerp(image, paint(models.generator, mean), hole.to(image))
    options = InversionOptions(method="encoder", **SEARCH)
    found = invert(
        models.generator, filled, options, perceptual=models.make_distance(), encoder=models.compact
    )
    return Portrait.of(found)


def painted_px(options: PortraitOptions, models: Models) -> int:
    """Return the side in px of what `paint_portrait` paints."""
    detail = models.detail if options.detail else None
    return models.generator.resolution if detail is None else detail.resolution


def paint_portrait(
    portrait: Portrait,
    options: PortraitOptions | None = None,
    *,
    models: Models,
    around: Portrait | None = None,
    region: torch.Tensor | None = None,
) -> torch.Tensor:
    """Paint a face, finished by the layers grown above the generator where there are such.

    Args:
        portrait: the face, mostly an edit.
        options: ``detail`` counts.
        models: see `limner.pipeline.load_models`.
        around, region: another face, mostly the one before the edit, and where ``portrait`` takes its place, (1, 1, S, S), S
            being the generator's size or `painted_px`; see `limner.editing.paint_inside`.

    Returns:
        The image, (1, 3, R, R), clipped to [-1, 1].

    Raises:
        ShapeError: a region of another size.
    """
    detail = models.detail if (options or PortraitOptions()).detail else None
    if around is None or region is None:
        return paint(models.generator, portrait, detail=detail)
    return paint_inside(models.generator, around, portrait, region, detail=detail)


def square_picture(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the middle square of a picture at a size in px: what a style is read from need not be a face."""
    return crop_face(pixels, whole_picture(pixels, size))


def _from_pixels(
    pixels: np.ndarray,
    name: str,
    options: PortraitOptions,
    models: Models,
    where: str,
    on_step: OnStep | None,
) -> list[Sitter]:
    names = {field.name for field in dataclasses.fields(StylizeOptions)}  # which knows every inverter
    shared: dict[str, Any] = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name in names
    }
    found = embed_faces(pixels, StylizeOptions(**shared), models=models, where=where, on_step=on_step)
    sitters = []
    for number, (alignment, inversion) in enumerate(found, 1):
        target = crop_face(pixels, alignment)
        label = name if len(found) == 1 else f"{name}_{number:02d}"
        sitters.append(Sitter(label, Portrait.of(inversion), target))
    return sitters


def _from_latents(path: Path, models: Models) -> list[Sitter]:
    file = load_codes(path, models)
    names = code_names(path, len(file.latent))
    return [Sitter(name, Portrait.of(file, i)) for i, name in enumerate(names)]


def _read_seeds(text: str) -> range:
    match = re.fullmatch(r"seed:(\d{1,9})(?:-(\d{1,9}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not 0 <= last - first < 1000:
        raise OptionError(
            f"{text!r} is no seed; expected seed:N or seed:FIRST-LAST with at most 1000 numbers"
        )
    return range(first, last + 1)


def _from_seeds(text: str, options: PortraitOptions, models: Models) -> list[Sitter]:
    generator, sitters = models.generator, []
    for seed in _read_seeds(text):
        z = torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(seed)).to(models.device)
        with torch.no_grad():
            w_plus = generator.truncate(generator.broadcast(generator.mapping(z)), options.psi)
        sitters.append(Sitter(f"seed{seed}", Portrait(Latent("w+", w_plus))))
    return sitters
