"""Faces that were embedded before: codes from files, with noise maps and the change of the generator, to be restyled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from limner import faces, media
from limner.checkpoints.latents import load_latent
from limner.editing.portrait import Portrait, paint
from limner.errors import KeyMismatchError, MediaError, OptionError, ShapeError
from limner.faces import Alignment, whole_picture
from limner.inversion import Distance, Inversion
from limner.inversion.report import measure
from limner.latent import Latent, LatentFile
from limner.nn import deltas
from limner.pipeline.models import Models
from limner.pipeline.options import PhotoOptions, StylizeOptions
from limner.pipeline.photos import StylizeResult, stylize
from limner.stylization.dual import DualStyle
from limner.stylization.style import Style


@dataclasses.dataclass(frozen=True, eq=False)
class KeptFace:
    """A face that was embedded before.

    Attributes:
        name: for files and messages.
        portrait: its codes, with noise maps and change of the generator.
        alignment: where it lies in its photo; None where the file does not say.
    """

    name: str
    portrait: Portrait
    alignment: Alignment | None = None


def load_codes(path: str | Path, models: Models) -> LatentFile:
    """Read a latent file whose codes fit the generator.

    Args:
        path: ends as one of `limner.pipeline.options.LATENT_FILES`.
        models: whose generator it is.

    Raises:
        KeyMismatchError: the file's codes belong to another generator, or there are none.
        ShapeError: the codes do not fit the generator.
        CheckpointError, UnsafePickleError: it cannot be read.
    """
    file = load_latent(path)
    base = file.metadata.get("base")
    if isinstance(base, dict) and base.get("digest") and base["digest"] != deltas.digest(models.generator):
        raise KeyMismatchError(
            f"{path} holds codes of another generator ({base.get('name', 'unnamed')}), not of {models.base}; name "
            "that one with --model, or embed the photo again"
        )
    check_codes(file.latent, models, path)
    return file


def check_codes(latent: Latent, models: Models, where: object) -> None:
    """Raise `ShapeError` unless codes fit the generator."""
    generator = models.generator
    width, rows = len(generator.w_avg), generator.num_rows
    wanted = {
        "z": [(generator.z_dim,)],
        "z+": [(rows, generator.z_dim)],
        "w": [(width,)],
        "w+": [(rows, width)],
        "s": [],
    }[latent.space]
    if latent.space == "s":
        like: Sequence[torch.Tensor] = generator.synthesis.styles(generator.broadcast(generator.w_avg[None]))
        wanted = [tuple(part.shape[1:]) for part in like]
    shapes = [tuple(part.shape[1:]) for part in latent.parts]
    if shapes != wanted:
        raise ShapeError(
            f"{where} holds codes in {latent.space} of shape {shapes}, expected {wanted} for {models.base or 'this'}, a "
            f"{generator.resolution} px generator"
        )


def code_names(path: Path, count: int) -> list[str]:
    """Return what the codes of a file are called."""
    return [path.stem] if count == 1 else [f"{path.stem}_{number:02d}" for number in range(1, count + 1)]


def read_kept(path: str | Path, *, models: Models) -> list[KeptFace]:
    """Read the faces of a latent file, such as ``limner invert`` writes, or another program.

    Args:
        path: ends as one of `limner.pipeline.options.LATENT_FILES`.
        models: whose generator the codes belong to.

    Raises:
        KeyMismatchError, ShapeError, CheckpointError: see `load_codes`.
        MediaError: what the file says of the face's place in its photo cannot be read.
    """
    path = Path(path)
    file = load_codes(path, models)
    about = file.metadata.get("alignment")
    place = None if about is None else Alignment.from_mapping(about)
    names = code_names(path, len(file.latent))
    return [KeptFace(name, Portrait.of(file, i), place) for i, name in enumerate(names)]


def find_photo(path: Path) -> Path | None:
    """Return the photo that the faces of a latent file are from, and can be put back into.

    It is looked for where the file says, then in the file's own folder; None where the file does not say, or it is gone.

    Raises:
        CheckpointError, UnsafePickleError: the file cannot be read.
    """
    about = load_latent(path).metadata
    options = about.get("options")
    name = options.get("photo") if isinstance(options, dict) else None
    if name is None or about.get("alignment") is None:
        return None
    return next((one for one in (Path(name), path.parent / Path(name).name) if one.is_file()), None)


def place_faces(
    kept: Sequence[KeptFace],
    pixels: np.ndarray | None,
    options: PhotoOptions | None = None,
    *,
    models: Models,
    where: str = "the photo",
) -> tuple[np.ndarray, list[tuple[Alignment, Inversion]]]:
    """Return a photo and where which face lies in it, as `stylize` takes them.

    Args:
        kept: faces of one photo.
        pixels: the photo, uint8 (H, W, 3).  None: the faces as they were embedded, side by side.
        options: how faces are found where the files do not say where they lie.
        models: see `limner.pipeline.load_models`.
        where: the photo's name, for messages.

    Raises:
        FaceNotFoundError: no face is in the photo.
        OptionError: not as many faces in the photo as there are codes.
        MediaError: a face lies outside the photo, which must be another one.
    """
    generator = models.generator
    size = generator.resolution
    images = [paint(generator, face.portrait) for face in kept]
    if pixels is None:
        pixels = np.concatenate([media.to_pixels(image)[0] for image in images], 1)
        shifts = [np.array([[1.0, 0, i * size], [0, 1, 0], [0, 0, 1]]) for i in range(len(kept))]
        places = [Alignment(shift, size) for shift in shifts]
    else:
        places = _find_places(kept, pixels, options or StylizeOptions(), models, where)
    found = []
    for face, image, place in zip(kept, images, places, strict=True):
        target = media.to_image(faces.crop_face(pixels, place)).to(models.device)
        report = measure(
            image,
            target,
            method=face.portrait.latent.space,
            perceptual=models.make_distance(),
            identity=None,
            steps=[0],
            seconds=0.0,
        )
        noise = None if face.portrait.noise is None else [m.to(models.device) for m in face.portrait.noise]
        latent, delta = face.portrait.latent.to(generator.w_avg), face.portrait.delta(generator)
        found.append((place, Inversion(latent, noise, image, delta, report)))
    return pixels, found


def _find_places(
    kept: Sequence[KeptFace], pixels: np.ndarray, options: PhotoOptions, models: Models, where: str
) -> list[Alignment]:
    size = models.generator.resolution
    if options.aligned:
        found: list[Alignment | None] = [whole_picture(pixels, size)] * len(kept)
    else:
        found = [face.alignment for face in kept]
    places = [place.resized(size) for place in found if place is not None]
    if len(places) < len(kept):
        align = dataclasses.replace(options, size=size)
        places = faces.find_alignments(pixels, align, options, detector=models.detector, where=where)
        if len(places) != len(kept):
            raise OptionError(
                f"{where} has {len(places)} faces for {len(kept)} codes; say which with --face, or leave the photo out"
            )
    height, width = pixels.shape[:2]
    for face, place in zip(kept, places, strict=True):
        x, y = place.quad.mean(0)
        if not (0 <= x <= width and 0 <= y <= height):
            raise MediaError(
                f"the face {face.name} lies at ({x:.0f}, {y:.0f}), outside {where} of {width} x {height} px; this is not "
                "the photo that it was embedded from"
            )
    return places


def stylize_kept(
    latents: Sequence[str | Path],
    style: Style | DualStyle,
    options: StylizeOptions | None = None,
    *,
    models: Models,
    pixels: np.ndarray | None = None,
    identity: Distance | None = None,
) -> StylizeResult:
    """Restyle faces that were embedded before, with all that was found for them; nothing is searched.

    What a generator was tuned to a person by (``limner invert --method pivotal``), the style and what was merged into
    it add up before one forward pass.

    Args:
        latents: latent files of one photo's faces, see `read_kept`.
        style: of the generator that the codes belong to.
        options: see `StylizeOptions`; those of embedding do not count.
        models: see `limner.pipeline.load_models`.
        pixels: the photo, uint8 (H, W, 3), into which the faces go back; None for the portraits alone, and the result's
            ``pixels`` are then the faces without the style, side by side.
        identity: see `stylize`.

    Raises:
        FaceNotFoundError, OptionError, MediaError: see `place_faces`.
        KeyMismatchError, ShapeError, CheckpointError: see `load_codes`.
    """
    options = options or StylizeOptions()
    kept = [face for path in latents for face in read_kept(path, models=models)]
    if not kept:
        raise OptionError("no latent file is named")
    if pixels is None:
        options = dataclasses.replace(options, crop=True)
    pixels, embedded = place_faces(kept, pixels, options, models=models)
    return stylize(pixels, style, options, models=models, embedded=embedded, identity=identity)
