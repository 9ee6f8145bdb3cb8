"""Restyle the faces of a photo; learn a style from pictures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from limner import faces, media
from limner.errors import CheckpointError, FaceNotFoundError, OptionError
from limner.faces import Alignment, AlignOptions
from limner.inversion import Distance, FitReport, Inversion, InversionOptions, PivotalOptions, invert
from limner.inversion.options import SEARCHED
from limner.latent import Latent, render
from limner.nn import deltas
from limner.nn.compact import CompactEncoder, resize
from limner.nn.lpips import Lpips
from limner.nn.stylegan2 import Generator
from limner.options import to_mapping
from limner.pipeline.models import TRUNK, Models
from limner.pipeline.options import LearnOptions, PhotoOptions, StylizeOptions
from limner.stylization.blend_style import METHOD as BLEND
from limner.stylization.choices import check_choices
from limner.stylization.dual import DualStyle
from limner.stylization.jojogan import LearningStep, learn
from limner.stylization.options import StyleOptions
from limner.stylization.style import Style, paint

THUMBNAIL_PX = 96
# Fitting noise maps would put the photo's grain where the style wants its own strokes.
SEARCH: dict[str, Any] = {"fit_noise": False}


@dataclasses.dataclass(frozen=True)
class PipelineStep:
    """What a job reports while it works.

    Attributes:
        stage: ``embed`` or ``learn``.
        item, items: which face or picture, from 1, and how many.
        step, steps: steps of this stage done for it, and in all.
        loss: of the step.
        tuned: the generator as tuned so far, while a style is learned.
    """

    stage: Literal["embed", "learn"]
    item: int
    items: int
    step: int
    steps: int
    loss: float
    tuned: Generator | None = None


Suited = TypeVar("Suited", bound=PhotoOptions)
OnStep = Callable[[PipelineStep], bool | None]
"""Told of every step; where it returns True, the learning of a style stops and keeps what it has."""


@dataclasses.dataclass(frozen=True, eq=False)
class FaceResult:
    """One restyled face.

    Attributes:
        alignment: where it lies in the photo, at the generator's size.
        crop, embedded, styled: the photo's face, as embedded, and restyled, uint8 (R, R, 3) each; the last two larger
            where layers above the generator's resolution finished them.
        report: how close the embedding came.
        distance_embedded, distance_styled: perceptual distance from the photo's face.
        identity_embedded, identity_styled: squared identity distance from the photo's face, None where it was not
            measured.
        seconds: wall time of this face.
    """

    alignment: Alignment
    crop: np.ndarray
    embedded: np.ndarray
    styled: np.ndarray
    report: FitReport
    distance_embedded: float
    distance_styled: float
    identity_embedded: float | None
    identity_styled: float | None
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class StylizeResult:
    """A restyled photo.

    Attributes:
        pixels: the photo with its faces restyled, uint8 (H, W, 3); with ``crop`` the portraits instead, see
            ``portraits``, and the photo as it was.
        portraits: every restyled face alone, uint8 (size, size, 3).
        faces: the details, in the same order.
    """

    pixels: np.ndarray
    portraits: list[np.ndarray]
    faces: list[FaceResult]


@dataclasses.dataclass(frozen=True, eq=False)
class LearnResult:
    """A learned style.

    Attributes:
        style: the style, not yet packed.
        references: the pictures as they were used, uint8 (R, R, 3).
        embedded: what the base makes of their codes.
        notes: what a person should know, one sentence each.
    """

    style: Style
    references: list[np.ndarray]
    embedded: list[np.ndarray]
    notes: list[str]


def stylize(
    pixels: np.ndarray,
    style: Style | DualStyle,
    options: PhotoOptions | None = None,
    *,
    models: Models,
    where: str = "the photo",
    embedded: Sequence[tuple[Alignment, Inversion]] | None = None,
    identity: Distance | None = None,
    on_step: OnStep | None = None,
) -> StylizeResult:
    """Restyle the faces of a photo.

    Args:
        pixels: the photo, uint8 (H, W, 3).
        style: of the base model.
        options: see `StylizeOptions`; for a `DualStyle`, which has options of its own, `PhotoOptions` are enough.
        models: see `load_models`.
        where: the photo's name, for messages.
        embedded: what `embed_faces` returned, to put another style on the same faces without searching again.
        identity: (image, image) -> (B,), for the figures only, such as ``models.identity_distance``.
        on_step: called after every step of the search.

    Raises:
        FaceNotFoundError: no face is there.
        KeyMismatchError: the style belongs to another base.
        OptionError, DivergedError: see `limner.inversion.invert`.
    """
    options = options or StylizeOptions()
    style.check_base(models.generator)
    if embedded is None:
        suited = suit_inverter(options, style, models)
        embedded = embed_faces(pixels, suited, models=models, where=where, on_step=on_step)
    results = [_restyle(pixels, style, options, models, identity, *face) for face in embedded]
    portraits = [media.resize_pixels(face.styled, options.size) for face in results]
    if not options.crop:
        pixels = faces.paste_faces(
            pixels, [face.styled for face in results], [face.alignment for face in results], options
        )
    return StylizeResult(pixels=pixels, portraits=portraits, faces=results)


def suit_inverter(options: Suited, style: Style | DualStyle, models: Models) -> Suited:
    """Return the options with the inverter ``auto`` settled for a style.

    A blend hands the codes to another generator, which has only met codes near its mean: those of a search, which are
    far from it, burn out there, so a blend takes the encoder's where there is one.
    """
    blend = isinstance(style, Style) and style.method == BLEND
    if options.inverter == "auto" and blend and isinstance(models.encoder_for("encoder"), CompactEncoder):
        return dataclasses.replace(options, inverter="encoder")
    return options


def embed_faces(
    pixels: np.ndarray,
    options: PhotoOptions,
    *,
    models: Models,
    where: str = "the photo",
    on_step: OnStep | None = None,
) -> list[tuple[Alignment, Inversion]]:
    """Find, align and embed the faces of a photo; arguments as `stylize`."""
    align = dataclasses.replace(options, size=models.generator.resolution)
    alignments = faces.find_alignments(pixels, align, options, detector=models.detector, where=where)
    found = []
    for number, alignment in enumerate(alignments, 1):

        def report(step: int, steps: int, figures: Mapping[str, float], _: Any, number: int = number) -> None:
            if on_step is not None:
                on_step(PipelineStep("embed", number, len(alignments), step, steps, figures.get("loss", 0.0)))

        image = media.to_image(faces.crop_face(pixels, alignment)).to(models.device)
        found.append((alignment, _embed(image, options, models, report)))
    return found


def _embed(image: Tensor, options: PhotoOptions, models: Models, on_step: Any) -> Inversion:
    search = InversionOptions(
        method=options.inverter,
        steps=options.invert_steps,
        w_norm=options.closeness,
        seed=options.seed,
        **SEARCH,
    )
    encoder = models.encoder_for(options.inverter)
    pivotal = PivotalOptions(pivot="w+" if encoder is None else "hybrid", tune_steps=options.tune_steps)
    return invert(
        models.generator,
        image,
        search,
        perceptual=models.make_distance(),
        pivotal=pivotal if options.inverter == "pivotal" else None,
        encoder=encoder,
        on_step=on_step,
    )


def _restyle(
    pixels: np.ndarray,
    style: Style | DualStyle,
    options: PhotoOptions,
    models: Models,
    identity: Distance | None,
    alignment: Alignment,
    inversion: Inversion,
) -> FaceResult:
    start = time.perf_counter()
    generator, latent, noise = models.generator, inversion.latent, inversion.noise_maps
    if inversion.delta is not None:
        generator = deltas.apply(generator, [(inversion.delta, 1.0)])
    embedded, detail = inversion.image, models.detail if options.detail else None
    painter, code, maps = generator, latent, noise
    if detail is not None:
        painter, code, maps = models.finish(generator, latent, noise)
        with torch.no_grad():
            embedded = render(painter, code, maps).clamp(-1, 1)
    if isinstance(style, DualStyle):
        styled = style.paint(generator, latent, noise, detail=detail if style.detail else None)
    else:
        shown = options if isinstance(options, StyleOptions) else StyleOptions()
        plain = None if style.detail else paint(generator, style, latent, shown, noise=noise)
        if plain is not None and (detail is None or shown.strength == 1):
            styled = plain
        else:
            styled = paint(painter, style, code, shown, noise=maps)
            if plain is not None:  # the finish goes as the style comes
                styled = torch.lerp(styled, media.resize_image(plain, styled.shape[2]), shown.strength)
    crop = faces.crop_face(pixels, alignment)
    target = media.to_image(crop).to(models.device)
    distance = models.make_distance()
    with torch.no_grad():
        compared = [resize(image, target.shape[2]) for image in (inversion.image, styled)]
        near, far = (float(distance(image, target)) for image in compared)
        persons = [None if identity is None else float(identity(image, target)) for image in compared]
    return FaceResult(
        alignment=alignment,
        crop=crop,
        embedded=media.to_pixels(embedded)[0],
        styled=media.to_pixels(styled)[0],
        report=inversion.report[0],
        distance_embedded=near,
        distance_styled=far,
        identity_embedded=persons[0],
        identity_styled=persons[1],
        seconds=inversion.report[0].seconds + time.perf_counter() - start,
    )


def compare_sheet(pixels: np.ndarray, result: StylizeResult, size: int = 512) -> np.ndarray:
    """Return a sheet with one row per face: as in the photo, as embedded, restyled."""
    rows = [
        [
            faces.crop_face(pixels, face.alignment.resized(size)),
            media.resize_pixels(face.embedded, size),
            media.resize_pixels(face.styled, size),
        ]
        for face in result.faces
    ]
    return media.make_sheet(rows, column_labels=("photo", "embedded", "restyled"), cell_px=size)


def learn_style(
    pictures: Sequence[np.ndarray],
    options: LearnOptions | None = None,
    *,
    models: Models,
    sources: Sequence[np.ndarray | Latent] = (),
    names: Sequence[str] = (),
    start: Style | None = None,
    on_step: OnStep | None = None,
) -> LearnResult:
    """Learn a style from one or more pictures.

    Args:
        pictures: uint8 (H, W, 3) each.  The largest face is taken; where none is found, as in many drawings, the
            middle square is taken for an aligned face.
        options: see `LearnOptions`.
        models: with a discriminator.
        sources: a photo of the same head in the same pose for every picture, if there are such: its code is used,
            which is truer than the code of a drawing.  Or the code itself, one, of any space that leads to w+.
        names: of the pictures, for messages and provenance.
        start: a style to go on from; the pictures' codes are taken from it where it has one for each of them.
        on_step: called after every step.

    Raises:
        CheckpointError: the base has no discriminator.
        KeyMismatchError: ``start`` belongs to another base.
        OptionError: as many sources as pictures, or none; see also `limner.stylization.jojogan.learn`.
    """
    options = options or LearnOptions()
    if models.discriminator is None:
        raise CheckpointError(
            f"{models.base or 'this base'} has no discriminator, which learning a style needs; "
            "take a checkpoint that holds one (a training file, or a converted one made with its discriminator)"
        )
    if sources and len(sources) != len(pictures):
        raise OptionError(f"{len(sources)} sources for {len(pictures)} pictures, expected one each or none")
    if start is not None:
        start.check_base(models.generator)
    names = list(names) or [f"picture {number}" for number in range(1, len(pictures) + 1)]
    notes = stand_in_notes(options, models)
    check_choices(options, models.generator, models.discriminator, len(pictures))
    references, targets, given = [], [], []
    for number, picture in enumerate(pictures):
        other = sources[number] if sources else None
        code = other if isinstance(other, Latent) else None
        given.append(None if code is None else code.to(models.generator.w_avg).w_plus(models.generator))
        photo = other if isinstance(other, np.ndarray) else None
        reference, target = _prepare(picture, photo, options, models, names[number], notes)
        references.append(reference)
        targets += [target] if code is None else []
    begun = time.perf_counter()
    w_plus = _codes_of(start, len(pictures), models)
    if w_plus is None and targets:
        images = media.to_image(*targets).to(models.device)
        found = iter(_embed_references(images, options, models, on_step).latent.w_plus(models.generator))
        given = [next(found)[None] if code is None else code for code in given]
    if w_plus is None:
        w_plus = torch.cat([code for code in given if code is not None])
    embed_seconds = time.perf_counter() - begun

    def report(step: LearningStep) -> bool | None:
        if on_step is None:
            return None
        return on_step(PipelineStep("learn", 1, 1, step.number, step.steps, step.loss, step.tuned))

    image = media.to_image(*references).to(models.device)
    style = learn(
        models.generator,
        models.discriminator,
        image,
        w_plus,
        options,
        perceptual=models.make_distance(),
        identity=_person_distance(models) if options.identity else None,
        trunk=models.trunk.trunk if isinstance(models.trunk, Lpips) else models.trunk,
        start=start,
        on_step=report,
    )
    with torch.no_grad():
        plain = render(models.generator, Latent("w+", w_plus)).clamp(-1, 1)
        painted = render(style.apply(models.generator), Latent("w+", w_plus)).clamp(-1, 1)
    thumbnail = torch.from_numpy(media.resize_pixels(references[0], THUMBNAIL_PX))
    provenance = {**style.provenance, "base": models.base, "trunk": models.trunk_name}
    provenance |= {"names": names, "paired": bool(sources), "embed_seconds": round(embed_seconds, 3)}
    provenance["figures"] = learning_figures(image, plain, painted, models)
    style = dataclasses.replace(
        style,
        options=to_mapping(options) | dict(style.options),
        provenance=provenance,
        thumbnail=thumbnail,
        codes=w_plus.detach() if options.keep_codes else None,
    )
    return LearnResult(style, references, media.to_pixels(plain), notes)


def stand_in_notes(options: LearnOptions, models: Models) -> list[str]:
    """Say where the bundled trunk stands in for the one that the loss is named after."""
    if options.loss == "discriminator" or models.trunk_name != TRUNK:
        return []
    return [
        f"the loss {options.loss} works on the bundled trunk {TRUNK}, which stands in for VGG16; fetch and name another "
        "with limner models pull and --trunk"
    ]


def learning_figures(image: Tensor, plain: Tensor, painted: Tensor, models: Models) -> dict[str, float]:
    """Return how close a style came to its pictures, and how far persons keep, as means over the pictures.

    Args:
        image: the style pictures.
        plain, painted: what the base makes of their codes, without and with the style.
        models: whose trunk and embedder measure.
    """
    distance = models.make_distance()
    with torch.no_grad():
        return {
            "embedded_distance": round(float(distance(plain, image).mean()), 4),
            "styled_distance": round(float(distance(painted, image).mean()), 4),
            "identity": round(float(models.identity_distance(painted, plain).mean()), 4),
        }


def _person_distance(models: Models) -> Distance:
    models.embedder.requires_grad_(False)
    return models.identity_distance


def _codes_of(start: Style | None, pictures: int, models: Models) -> Tensor | None:
    if start is None or start.codes is None or len(start.codes) != pictures:
        return None
    return start.codes.to(models.device)


def _embed_references(
    image: Tensor, options: LearnOptions, models: Models, on_step: OnStep | None
) -> Inversion:
    def report(step: int, steps: int, figures: Mapping[str, float], _: Any) -> None:
        if on_step is not None:
            on_step(PipelineStep("embed", 1, 1, step, steps, figures.get("loss", 0.0)))

    search = InversionOptions(
        method=options.inverter,
        steps=options.invert_steps,
        w_norm=options.closeness,
        seed=options.seed,
        **SEARCH,
    )
    return invert(
        models.generator,
        image,
        search,
        perceptual=models.make_distance(),
        encoder=None if options.inverter in SEARCHED else models.encoder_for(options.inverter),
        on_step=report,
    )


def _prepare(
    picture: np.ndarray,
    source: np.ndarray | None,
    options: LearnOptions,
    models: Models,
    name: str,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Return a style picture and the picture whose code is searched, both aligned at the generator's size."""
    size = models.generator.resolution
    twin = source is not None and source.shape == picture.shape
    # A photo shows its face to a detector more readily than a drawing does.
    alignment = _align(source if twin and source is not None else picture, options, models, size)
    if alignment is None:
        notes.append(f"{name}: no face found, so its middle square is taken for an aligned face")
        alignment = faces.whole_picture(picture, size)
    reference = faces.crop_face(picture, alignment)
    if source is None:
        return reference, reference
    if twin:
        return reference, faces.crop_face(source, alignment)
    own = _align(source, options, models, size) or faces.whole_picture(source, size)
    return reference, faces.crop_face(source, own)


def _align(pixels: np.ndarray, options: LearnOptions, models: Models, size: int) -> Alignment | None:
    align = AlignOptions(size=size, face="largest", aligned=options.aligned)
    try:
        return faces.find_alignments(pixels, align, detector=models.detector)[0]
    except FaceNotFoundError:
        return None
