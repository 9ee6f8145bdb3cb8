"""``limner stylize``: restyle every face of a photo."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import zoo
from limner.app.console import Console, format_seconds
from limner.app.styles import find_dual, find_styles, split_dual
from limner.errors import (
    CheckpointError,
    FaceNotFoundError,
    LimnerError,
    MediaError,
    OptionError,
    ShapeError,
)
from limner.faces.options import ReadOptions
from limner.files import check_writable
from limner.options import knob, to_mapping
from limner.pipeline.options import (
    LATENT_FILES,
    EncoderOptions,
    StylizeOptions,
    TrunkOptions,
    check_encoder,
)

if TYPE_CHECKING:
    import numpy as np

    from limner.media import Photo
    from limner.pipeline import Models, StylizeResult
    from limner.stylization.dual import DualStyle
    from limner.stylization.style import Style

KEPT_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
FAILURES = (
    FaceNotFoundError,
    MediaError,
    OptionError,
    CheckpointError,
    ShapeError,
)  # of one source, not of all
UNRECORDED = ("photos", "photo", "out", "compare", "overwrite", "max_megapixels")  # they change no pixel


@dataclasses.dataclass(frozen=True)
class Source:
    """What one output is made from: a photo, or latent files of one photo's faces.

    Attributes:
        photo: None where latent files have none; then portraits are written.
        latents: empty for a photo whose faces are yet to be embedded.
        error: why its latent file cannot be read; None where it can.
    """

    photo: Path | None
    latents: tuple[Path, ...] = ()
    error: LimnerError | None = None

    @property
    def first(self) -> Path:
        """The file that names the output."""
        return self.photo or self.latents[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StylizeOptions, EncoderOptions, TrunkOptions, ReadOptions):
    """Options of ``limner stylize``."""

    photos: tuple[Path, ...] = knob()
    """photos to restyle, or latent files of faces (limner invert writes them; .npz, .npy and .pt of other programs do, too):
    their codes, noise maps and the generator's change are taken as they are, and nothing is searched"""
    photo: Path | None = None
    """photo that the faces of latent files go back into; by default the one that a file says it is from, where that is
    still there, else portraits are written"""
    style: str = knob("toon")
    """name of a style (limner models list), a .limner file, a picture: then its style is learned first and kept beside
    the output; a whole generator that was made from the base, name or file, such as toon-child, or a checkpoint of
    JoJoGAN; or a DualStyleGAN, name or file, and a style of its, such as dual-toon:12 (limner dual has more to set
    there)"""
    style_aligned: bool = False
    """a picture given as style is an aligned face already, or no face at all: take it as a whole"""
    also: tuple[str, ...] = knob(())
    """further styles on top, learned or blended: all changes add up in one forward pass, the person's too (inverter
    pivotal)"""
    also_strength: tuple[float, ...] = knob(())
    """how much of every further style, beside the first one's 1; by default 0.5 each"""
    out: Path | None = None
    """file to write, or folder for several photos; by default PHOTO-STYLE beside the photo"""
    model: str = zoo.DEFAULT_GENERATOR
    """base model, name or file"""
    compare: bool = False
    """also write a picture of every face before and after, beside the output"""
    overwrite: bool = False
    """replace files that exist; otherwise they are an error, before one would be replaced"""


def run(options: Options, console: Console) -> int:
    """Restyle the photos; a photo that fails is reported and the others go on."""
    if not options.photos:
        raise OptionError("limner stylize: name at least one photo")
    sources = find_sources(options)
    outputs = plan_outputs(options, sources)
    check_free(outputs, options, sources)
    for output in outputs:
        check_writable(output)
    check_encoder(options.inverter, options.encoder)
    from limner.app.device import load_for
    from limner.stylization.style import Style, check_layers

    models = load_for(options, console.settings)
    style = find_dual(options, models) or find_styles(options, outputs[0].parent, models, console)
    if isinstance(style, Style):
        check_layers(options, models.generator)
    written, failed = [], []
    for source, output in zip(sources, outputs, strict=True):
        try:
            if source.error is not None:
                raise source.error
            written.append(_restyle(source, output, style, models, options, console))
        except FAILURES as error:
            if len(sources) == 1:
                raise
            console.error(str(error))
            failed.append({"photo": source.first, "error": type(error).__name__, "message": str(error)})
    console.result(photos=written, failed=failed)
    return 2 if failed else 0


def find_sources(options: Options) -> list[Source]:
    """Return what every output is made from; latent files of one photo come together, where the first of them stands.

    A latent file that cannot be read is a source with an error, so that the others go on.

    Raises:
        OptionError: a photo is named for latent files, but none are.
        CheckpointError, OptionError, ShapeError: the only file that is named is a latent file that cannot be read.
    """
    found: list[Source] = []
    for path in options.photos:
        if path.suffix.lower() not in LATENT_FILES:
            found.append(Source(path))
            continue
        from limner.pipeline.kept import find_photo

        try:
            photo = options.photo or find_photo(path)
        except FAILURES as error:
            if len(options.photos) == 1:
                raise
            found.append(Source(None, (path,), error))
            continue
        same = [i for i, one in enumerate(found) if one.latents and photo and one.photo == photo]
        if same:
            found[same[0]] = Source(photo, (*found[same[0]].latents, path))
        else:
            found.append(Source(photo, (path,)))
    if options.photo and not any(one.latents for one in found):
        raise OptionError(f"photo is {options.photo}, which is for latent files, but only photos are named")
    return found


def plan_outputs(options: Options, sources: Sequence[Source] | None = None) -> list[Path]:
    """Return one file per source, all different.

    Args:
        options: photos, output and style.
        sources: see `find_sources`; None for the photos themselves.

    Raises:
        OptionError: several sources for one file.
    """
    sources = [Source(photo) for photo in options.photos] if sources is None else sources
    model, key = split_dual(options.style)
    out, style = options.out, Path(model or options.style).stem + (f"-{Path(key).stem}" if key else "")
    if out is not None and out.suffix and not out.is_dir():
        if len(sources) > 1:
            raise OptionError(f"out is the file {out}, but there are {len(sources)} photos; name a folder")
        return [out]
    names: list[Path] = []
    for first in (source.first for source in sources):
        suffix = first.suffix.lower() if first.suffix.lower() in KEPT_SUFFIXES else ".png"
        folder = out or first.parent
        path, number = folder / f"{first.stem}-{style}{suffix}", 2
        while path in names:
            path, number = folder / f"{first.stem}-{style}-{number}{suffix}", number + 1
        names.append(path)
    return names


def check_free(outputs: Sequence[Path], options: Options, sources: Sequence[Source]) -> None:
    """Raise `OptionError` for files that exist already, unless they may be replaced, and for what the command reads.

    Args:
        outputs: one file per source.
        options: whether comparisons stand beside them, and what may be replaced.
        sources: see `find_sources`; their photos count too, where only a latent file names them.
    """
    read = [*options.photos, *(one.photo for one in sources if one.photo), Path(options.style)]
    inputs = {path.resolve() for path in (*read, *map(Path, options.also))}
    for path in outputs:
        beside = [path, compare_path(path)] if options.compare else [path]
        for one in beside:
            if one.resolve() in inputs:
                raise OptionError(f"out is {one}, which the command reads; choose another name")
        taken = [one for one in beside if one.exists()]
        if taken and not options.overwrite:
            raise OptionError(f"{taken[0]} exists already; give --overwrite or another --out")


def compare_path(output: Path) -> Path:
    """Return where the comparison stands beside an output."""
    return output.with_name(f"{output.stem}-compare{output.suffix}")


def portrait_paths(output: Path, count: int, *, overwrite: bool) -> list[Path]:
    """Return the files of a photo's portraits, numbered where there are several.

    Raises:
        OptionError: a numbered one exists already and may not be replaced; how many there are is known only late.
    """
    if count == 1:
        return [output]
    paths = [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(1, count + 1)]
    taken = [path for path in paths if path.exists()]
    if taken and not overwrite:
        raise OptionError(
            f"{taken[0]} exists already, and the photo has {count} faces; give --overwrite or another --out"
        )
    return paths


def _restyle(
    source: Source,
    output: Path,
    style: Style | DualStyle,
    models: Models,
    options: Options,
    console: Console,
) -> dict[str, Any]:
    from limner import media
    from limner.pipeline import compare_sheet

    name, picture = source.first.name, None
    if source.photo is not None:
        picture = media.read(source.photo, max_megapixels=options.max_megapixels or media.MAX_MEGAPIXELS)
        for note in picture.notes:
            console.warn(f"{source.photo}: {note}")
    elif not options.crop:
        console.print(f"{name}: names no photo that is still there (see --photo), so portraits are written")
        options = dataclasses.replace(options, crop=True)
    pixels, result = _paint(source, picture, style, models, options, console)
    record = {name: value for name, value in to_mapping(options).items() if name not in UNRECORDED}
    record |= {"command": "stylize", "style_provenance": dict(style.provenance), "base": models.base}
    if source.latents:
        record["latents"] = [path.name for path in source.latents]
    picture = picture or media.Photo(pixels)
    paths = _write(picture, result, output, options, record)
    if options.compare:
        sheet = compare_sheet(pixels, result, options.size)
        media.write(
            compare_path(output), sheet, options=record, source_type="compositeWithTrainedAlgorithmicMedia"
        )
        paths.append(compare_path(output))
    _print_faces(name, result, console, known=source.photo is not None)
    console.print(f"wrote {', '.join(map(str, paths))}")
    figures = [
        {
            **face.report.to_dict(),
            "distance_styled": face.distance_styled,
            "identity": face.identity_embedded,
            "identity_styled": face.identity_styled,
            "seconds": face.seconds,
        }
        for face in result.faces
    ]
    return {"photo": source.photo, "latents": source.latents, "files": paths, "faces": figures}


def _paint(
    source: Source,
    picture: Photo | None,
    style: Style | DualStyle,
    models: Models,
    options: Options,
    console: Console,
) -> tuple[np.ndarray, StylizeResult]:
    """Return the photo, or what stands in for it, and its restyled faces."""
    from limner.pipeline import stylize
    from limner.pipeline.kept import place_faces, read_kept

    where, embedded = str(source.first), None
    pixels = None if picture is None else picture.pixels
    if source.latents:
        kept = [face for path in source.latents for face in read_kept(path, models=models)]
        pixels, embedded = place_faces(kept, pixels, options, models=models, where=where)
    assert pixels is not None
    with console.progress(None, f"{source.first.name}: embedding") as progress:

        def show(step: Any) -> None:
            done, total = (step.item - 1) * step.steps + step.step, step.items * step.steps
            if progress.total is None:
                progress.total = total
            progress.set(done, f"face {step.item} of {step.items}, loss {step.loss:.3f}")

        result = stylize(
            pixels,
            style,
            options,
            models=models,
            where=where,
            embedded=embedded,
            identity=models.identity_distance,
            on_step=show,
        )
    return pixels, result


def _print_faces(name: str, result: StylizeResult, console: Console, *, known: bool) -> None:
    """Say how close every face is to the photo's, or without a photo how far the style went from the face as embedded."""
    from limner.nn.identity import SAME_PERSON

    about = f"(dlib, squared; below {SAME_PERSON} is the same person)"
    for number, face in enumerate(result.faces, 1):
        if not known:
            console.print(
                f"{name}, face {number}: restyled, perceptual distance ({face.report.trunk}) from the face as embedded "
                f"{face.distance_styled:.3f}, identity distance {about} {face.identity_styled:.3f}"
            )
            continue
        console.print(
            f"{name}, face {number}: embedded with PSNR {face.report.psnr:.1f} dB, perceptual distance "
            f"({face.report.trunk}) {face.distance_embedded:.3f}, restyled {face.distance_styled:.3f}, "
            f"{format_seconds(face.seconds)}"
        )
        console.print(
            f"  identity distance {about}: embedded {face.identity_embedded:.3f}, restyled {face.identity_styled:.3f}"
        )


def _write(
    picture: Any, result: StylizeResult, output: Path, options: Options, record: dict[str, Any]
) -> list[Path]:
    from limner import media

    if not options.crop:
        whole = dataclasses.replace(picture, pixels=result.pixels)
        kind = "compositeWithTrainedAlgorithmicMedia"
        return [media.write(output, whole, options=record, source_type=kind)]
    paths = portrait_paths(output, len(result.portraits), overwrite=options.overwrite)
    return [
        media.write(path, portrait, options=record, source_type="trainedAlgorithmicMedia")
        for path, portrait in zip(paths, result.portraits, strict=True)
    ]
