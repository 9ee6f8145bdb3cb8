"""``limner edit``: morph, mix, transfer, expression, crossover, inpaint, direction.

Faces are photos (aligned and embedded first), latent files, films as driving sequences, or ``seed:N``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import editing
from limner.app.console import Console
from limner.app.edit_options import (
    CrossoverOptions,
    DirectionOptions,
    ExpressionOptions,
    InpaintOptions,
    MixOptions,
    MorphOptions,
    TransferOptions,
)
from limner.app.edited import check_out, frame_names, is_file_name, write_picture, write_sequence
from limner.app.outputs import OutputOptions, recorded, refuse_taken
from limner.errors import OptionError
from limner.files import check_writable
from limner.options import Options
from limner.pipeline.options import PortraitOptions, check_encoder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from limner.editing import Portrait
    from limner.pipeline import Models
    from limner.pipeline.portraits import Sitter

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
CODES = ".safetensors"


def run_morph(options: MorphOptions, console: Console) -> int:
    """Turn faces into each other."""
    # A word stands for one face or more.
    names = frame_names(options.count_pictures(len(options.faces)))
    _check_outputs(options, *options.faces, film=True, names=names)
    models = _load(options, console)
    sitters = [sitter for word in options.faces for sitter in _read(word, options, models, console)]
    morph = editing.morph(
        models.generator, [one.portrait for one in sitters], _part(options, editing.MorphOptions)
    )
    files = write_sequence(
        options.out,
        len(morph),
        lambda i: _show(options, models, morph[i]),
        options,
        _about("edit morph", options, models),
        console,
    )
    return _done(files, console, frames=len(morph))


def run_mix(options: MixOptions, console: Console) -> int:
    """Mix faces with styles."""
    if not options.styles:
        raise OptionError("limner edit mix: name the faces that the layers are taken from with --styles")
    names = ["mixed"] if options.grid else []
    _check_outputs(options, *options.faces, *options.styles, names=names)
    apart = not options.grid and not is_file_name(options.out)  # a picture for every pair, in a folder
    if apart:
        known = [
            [name for word in words for name in _expect_names(word, options)]
            for words in (options.faces, options.styles)
        ]
        refuse_taken(_pair_files(options.out, *known), options)
    models = _load(options, console)
    faces = [one for word in options.faces for one in _read(word, options, models, console)]
    styles = [one for word in options.styles for one in _read(word, options, models, console)]
    about, how = _about("edit mix", options, models), _part(options, editing.MixOptions)
    single = len(faces) == len(styles) == 1
    if options.grid or not (apart or single):
        sheet = editing.mix_sheet(
            models.generator,
            [one.portrait for one in faces],
            [one.portrait for one in styles],
            how,
            names=[one.name for one in faces],
            style_names=[one.name for one in styles],
            detail=models.detail if options.detail else None,
        )
        return _done([write_picture(options.out, "mixed", sheet, about)], console)
    files = []
    pairs = [(face, style) for face in faces for style in styles]
    if apart:
        names, style_names = ([one.name for one in part] for part in (faces, styles))
        refuse_taken(_pair_files(options.out, names, style_names), options)
    for face, style in console.track(pairs, "Mixing"):
        mixed = editing.mix_styles(models.generator, face.portrait, style.portrait, how)
        pixels = _show(options, models, mixed)
        files.append(write_picture(options.out, f"{face.name}+{style.name}", pixels, about))
    return _done(files, console)


def run_transfer(options: TransferOptions, console: Console) -> int:
    """Put a style on a face."""
    from limner import media
    from limner.pipeline.portraits import painted_px, square_picture

    _check_outputs(options, options.portrait, options.style, options.region, names=["transfer"])
    if options.region and options.way == "layers":
        raise OptionError("a region needs --way gram: the way of layers changes the whole picture")
    models = _load(options, console)
    (face,) = _read(options.portrait, options, models, console, one=True)
    style: Any
    if options.way == "gram" and Path(options.style).suffix.lower() in PICTURES:
        picture = media.read(options.style).pixels
        style = media.to_image(square_picture(picture, models.generator.resolution)).to(models.device)
        shown = square_picture(picture, painted_px(options, models))
    else:
        (sitter,) = _read(options.style, options, models, console, one=True)
        style, shown = sitter.portrait, _show(options, models, sitter.portrait)
    region = (
        _region(options.region, options.feather, models, models.generator.resolution)
        if options.region
        else None
    )
    trunk = getattr(models.trunk, "trunk", models.trunk)
    with console.progress(_steps(options), "Searching") as progress:
        found = editing.transfer_style(
            models.generator,
            face.portrait,
            style,
            _part(options, editing.TransferOptions),
            trunk=trunk,
            perceptual=models.make_distance(),
            region=region,
            on_step=lambda step, _, record, __: progress.set(step, f"loss {record['loss']:.3f}"),
        )
    given, labels = [_show(options, models, face.portrait), shown], ("face", "style", "result")
    image = _picture(options, models, found.portrait)
    return _finish(options, console, models, found.portrait, image, given, labels, "transfer")


def run_expression(options: ExpressionOptions, console: Console) -> int:
    """Carry an expression over, or those of a driving sequence."""
    if bool(options.driving) == bool(options.expressive):
        raise OptionError(
            "limner edit expression: name a neutral and an expressive face, or a sequence with --driving"
        )
    words = (options.portrait, options.neutral, options.expressive, options.region, *options.driving)
    names = frame_names(len(options.driving)) if options.driving else ["expression"]
    _check_outputs(options, *words, film=bool(options.driving), names=names)
    models = _load(options, console)
    (face,) = _read(options.portrait, options, models, console, one=True)
    how = _part(options, editing.ExpressionOptions)
    region = _shown_region(options, models)
    neutral = (
        _read(options.neutral, options, models, console, one=True)[0].portrait if options.neutral else None
    )
    if options.driving:
        driving = [one.portrait for word in options.driving for one in _read(word, options, models, console)]
        driven = list(
            editing.drive_expression(models.generator, face.portrait, driving, how, neutral=neutral)
        )
        files = write_sequence(
            options.out,
            len(driven),
            lambda i: _show(options, models, driven[i], face.portrait, region),
            options,
            _about("edit expression", options, models),
            console,
        )
        return _done(files, console, frames=len(driven))
    assert neutral is not None  # positionals come in order
    (expressive,) = _read(options.expressive, options, models, console, one=True)
    edited = editing.transfer_expression(models.generator, face.portrait, neutral, expressive.portrait, how)
    image = _picture(options, models, edited, face.portrait, region)
    given = [_show(options, models, one) for one in (face.portrait, neutral, expressive.portrait)]
    labels = ("face", "neutral", "expressive", "result")
    return _finish(options, console, models, edited, image, given, labels, "expression")


def run_crossover(options: CrossoverOptions, console: Console) -> int:
    """Put a region of one face into another."""
    _check_outputs(options, options.portrait, options.other, options.region, names=["crossover"])
    models = _load(options, console)
    (face,) = _read(options.portrait, options, models, console, one=True)
    (other,) = _read(options.other, options, models, console, one=True)
    with console.progress(_steps(options), "Searching") as progress:
        found = editing.crossover(
            models.generator,
            face.portrait,
            other.portrait,
            _region(options.region, options.feather, models, models.generator.resolution),
            _part(options, editing.CrossoverOptions),
            perceptual=models.make_distance(),
            on_step=lambda step, _, record, __: progress.set(step, f"loss {record['loss']:.3f}"),
        )
    given = [_show(options, models, one.portrait) for one in (face, other)]
    labels, image = ("face", "other", "result"), _picture(options, models, found.portrait)
    return _finish(options, console, models, found.portrait, image, given, labels, "crossover")


def run_inpaint(options: InpaintOptions, console: Console) -> int:
    """Fill the hole of a photo's face."""
    from limner import media
    from limner.faces import AlignOptions, crop_face, find_alignments
    from limner.pipeline.portraits import embed_filled, painted_px

    _check_outputs(options, str(options.photo), options.hole, names=["inpaint"])
    models = _load(options, console)
    pixels = media.read(options.photo).pixels
    side = models.generator.resolution
    align = AlignOptions(
        size=side, face="largest" if options.face == "all" else options.face, aligned=options.aligned
    )
    (alignment,) = find_alignments(pixels, align, options, detector=models.detector, where=str(options.photo))
    mask = media.read(options.hole).pixels if _is_picture(options.hole) else None

    def look(size: int) -> tuple[Tensor, Tensor]:
        """Return the face and its hole at a size."""
        crop, given = alignment.resized(size), mask
        if given is not None and given.shape == pixels.shape:
            given = crop_face(given, crop)
        hole = _region(options.hole, options.feather, models, size, given)
        return media.to_image(crop_face(pixels, crop)).to(models.device), hole

    image, hole = look(side)
    with console.progress(_steps(options), "Searching") as progress:
        found = editing.inpaint(
            models.generator,
            image,
            hole,
            _part(options, editing.InpaintOptions),
            perceptual=models.make_distance(),
            start=embed_filled(image, hole, models),
            on_step=lambda step, _, record, __: progress.set(step, f"loss {record['loss']:.3f}"),
        )
    # What is known comes from the photo at the size of the painting, which may be larger than what was searched.
    image, hole = look(painted_px(options, models))
    painted = _picture(options, models, found.portrait)
    given = media.to_pixels(image * (1 - hole)) + media.to_pixels(painted)
    result = editing.fill(image, painted, hole, seamless=options.seamless) if options.keep else painted
    labels = ("photo", "painted", "result")
    return _finish(
        options, console, models, found.portrait, result, given, labels, "inpaint", mixed=options.keep
    )


def run_direction(options: DirectionOptions, console: Console) -> int:
    """Move a face along directions."""
    sweep = _parse_moves(options.move)
    moving = any(start != end for start, end in sweep.values())
    words = (options.portrait, str(options.directions), options.region)
    names = frame_names(options.frames) if moving else ["direction"]
    _check_outputs(options, *words, film=moving, names=names)
    models = _load(options, console)
    directions = _read_directions(options.directions, models)
    (face,) = _read(options.portrait, options, models, console, one=True)
    how = _part(options, editing.DirectionOptions)
    region = _shown_region(options, models)

    def moved(share: float) -> Portrait:
        amounts = {name: start + share * (end - start) for name, (start, end) in sweep.items()}
        return editing.move(models.generator, face.portrait, directions, amounts, how)

    if moving:
        shares = [i / (options.frames - 1) for i in range(options.frames)]
        labels = []
        if len(sweep) == 1:
            ((start, end),) = sweep.values()
            labels = [f"{start + share * (end - start):+.2g}" for share in shares]
        files = write_sequence(
            options.out,
            options.frames,
            lambda i: _show(options, models, moved(shares[i]), face.portrait, region),
            options,
            _about("edit direction", options, models),
            console,
            labels=labels,
        )
        return _done(files, console, frames=options.frames)
    image = _picture(options, models, moved(0.0), face.portrait, region)
    given = [_show(options, models, face.portrait)]
    return _finish(options, console, models, moved(0.0), image, given, ("face", "result"), "direction")


def _check_outputs(options: Any, *given: str, names: Iterable[str], film: bool = False) -> None:
    """Raise, before long work, unless the outputs can be written and are none of the files that were given.

    Raises:
        MediaError, OptionError: see `check_out`; one of the files would be replaced, or codes with a wrong ending.
    """
    codes: Path | None = getattr(options, "save_latent", None)
    sources = {Path(word).resolve() for word in given if word}
    for which, path in (("out", options.out), ("save_latent", codes)):
        if path is not None and not path.is_dir() and path.resolve() in sources:
            raise OptionError(f"{which} is {path}, which the command reads; choose another name")
    check_out(options.out, options, names=names, film=film)
    if codes is None:
        return
    if codes.suffix.lower() != CODES:
        raise OptionError(f"save_latent is {codes}, expected a file that ends in {CODES}")
    check_writable(codes)
    refuse_taken([codes], options)


def _load(options: PortraitOptions, console: Console) -> Models:
    check_encoder(options.inverter, options.encoder)
    from limner.app.device import pick_device
    from limner.pipeline import load_models

    return load_models(
        options.model,
        encoder=options.encoder or None,
        trunk=options.trunk,
        device=pick_device(console.settings),
    )


def _read(
    word: str, options: PortraitOptions, models: Models, console: Console, *, one: bool = False
) -> list[Sitter]:
    """Read the faces that a word names; with ``one``, exactly one."""
    from limner.pipeline.portraits import read_sitters

    if one and options.face == "all":
        options = dataclasses.replace(options, face="largest")
    with console.progress(None, f"Embedding {Path(word).name}") as progress:

        def show(step: Any) -> None:
            progress.total = step.steps
            progress.set(step.step, f"loss {step.loss:.3f}")

        sitters = read_sitters(word, options, models=models, on_step=show)
    if one and len(sitters) != 1:
        raise OptionError(f"{word} holds {len(sitters)} faces, expected one here")
    return sitters


def _expect_names(word: str, options: PortraitOptions) -> list[str]:
    from limner.pipeline.portraits import expect_names

    return expect_names(word, options)


def _pair_files(out: Path, faces: Sequence[str], styles: Sequence[str]) -> list[Path]:
    """Return where the mixture of every face with every style goes, by their names."""
    return [out / f"{face}+{style}.png" for face in faces for style in styles]


def _read_directions(path: Path, models: Models) -> dict[str, editing.Direction]:
    from limner.errors import KeyMismatchError
    from limner.nn import deltas

    directions, notes = editing.load_directions(path)
    base = notes.get("base")
    if isinstance(base, dict) and base.get("digest") not in (None, deltas.digest(models.generator)):
        raise KeyMismatchError(
            f"{path} holds directions of another generator ({base.get('name', 'unnamed')}), not of {models.base}"
        )
    return directions


def _parse_moves(words: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Read NAME=AMOUNT and NAME=FROM:TO."""
    found: dict[str, tuple[float, float]] = {}
    for word in words:
        name, _, amount = word.partition("=")
        try:
            numbers = [float(number) for number in amount.split(":")]
        except ValueError:
            numbers = []
        if not name or len(numbers) not in (1, 2) or not all(abs(number) <= 100 for number in numbers):
            raise OptionError(
                f"move is {word!r}, expected NAME=AMOUNT or NAME=FROM:TO with numbers up to 100"
            )
        found[name.strip()] = (numbers[0], numbers[-1])
    if not found:
        raise OptionError("limner edit direction: say which slider moves, such as --move smile=2")
    return found


def _is_picture(text: str) -> bool:
    return Path(text).suffix.lower() in PICTURES


def _shown_region(options: ExpressionOptions | DirectionOptions, models: Models) -> Tensor | None:
    """Return where an edit shows, at the size that is painted; None for everywhere."""
    from limner.pipeline.portraits import painted_px

    if not options.region:
        return None
    return _region(options.region, options.feather, models, painted_px(options, models))


def _region(text: str, feather: float, models: Models, side: int, mask: np.ndarray | None = None) -> Tensor:
    """Return the region that the text names, or that a picture shows, (1, 1, side, side)."""
    from limner import media
    from limner.editing.region import make_region, region_from_pixels

    if mask is None and _is_picture(text):
        mask = media.read(text).pixels
    region = (
        make_region(text, side, feather=feather)
        if mask is None
        else region_from_pixels(mask, side, feather=feather)
    )
    return region.to(models.device)


def _part(options: Options, cls: type) -> Any:
    """Return the part of a command's options that a method takes."""
    return cls(**{field.name: getattr(options, field.name) for field in dataclasses.fields(cls)})


def _steps(options: Any) -> int:
    return options.steps * (2 if options.noise == "after" else 1)


def _picture(
    options: PortraitOptions,
    models: Models,
    edited: Portrait,
    face: Portrait | None = None,
    region: Tensor | None = None,
) -> Tensor:
    from limner.pipeline.portraits import paint_portrait

    return paint_portrait(edited, options, models=models, around=face, region=region)


def _show(
    options: PortraitOptions,
    models: Models,
    edited: Portrait,
    face: Portrait | None = None,
    region: Tensor | None = None,
) -> np.ndarray:
    from limner import media

    return media.to_pixels(_picture(options, models, edited, face, region))[0]


def _about(command: str, options: OutputOptions, models: Models) -> dict[str, Any]:
    return {"command": command, **recorded(options), "base": models.base}


def _finish(
    options: Any,
    console: Console,
    models: Models,
    portrait: Portrait,
    image: Tensor,
    given: list[np.ndarray],
    labels: tuple[str, ...],
    name: str,
    *,
    mixed: bool = False,
) -> int:
    """Write one result, beside what it was made of where that is asked for, and its codes."""
    from limner import media

    about = _about(f"edit {name}", options, models)
    pixels = media.to_pixels(image)[0]
    if options.compare:
        pixels = media.make_sheet([[*given, pixels]], column_labels=labels)
    kind: Any = "compositeWithTrainedAlgorithmicMedia" if mixed else "trainedAlgorithmicMedia"
    files = [write_picture(options.out, name, pixels, about, source_type=kind)]
    if options.save_latent is not None:
        from limner.latent import save_latent
        from limner.nn import deltas
        from limner.nn.tuned import pack_tuned

        delta = portrait.delta(models.generator)
        notes = {"options": about, "base": {"name": models.base, "digest": deltas.digest(models.generator)}}
        files.append(
            save_latent(
                options.save_latent,
                portrait.latent,
                noise=portrait.noise,
                delta=pack_tuned(delta).tensors if delta else None,
                metadata=notes,
            )
        )
    return _done(files, console)


def _done(files: list[Path], console: Console, **more: Any) -> int:
    where = ", ".join(map(str, files)) if len(files) <= 2 else f"{len(files)} pictures in {files[0].parent}"
    console.print(f"wrote {where}")
    console.result(files=files, **more)
    return 0
