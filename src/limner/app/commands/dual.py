"""``limner dual``: restyle faces after an exemplar with a DualStyleGAN, structure and colour apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import zoo
from limner.app.commands.stylize import KEPT_SUFFIXES, compare_path, portrait_paths
from limner.app.console import Console, format_seconds
from limner.errors import FaceNotFoundError, MediaError, OptionError
from limner.faces.options import ReadOptions
from limner.files import check_writable
from limner.options import knob, to_mapping
from limner.pipeline.options import DualPhotoOptions, EncoderOptions, TrunkOptions, check_encoder
from limner.stylization.options import FIXED

if TYPE_CHECKING:
    from limner.media import Photo
    from limner.pipeline.dual import DualModels
    from limner.pipeline.photos import StylizeResult
    from limner.stylization.dual import DualStyle

DEFAULT_MODEL = "dual-toon"
RANDOM = "random"
MIXED = "mix"
UNRECORDED = ("photos", "out", "compare", "sheet", "overwrite", "max_megapixels")  # they change no pixel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(DualPhotoOptions, EncoderOptions, TrunkOptions, ReadOptions):
    """Options of ``limner dual``."""

    photos: tuple[Path, ...] = knob((), positional=True)
    """photos to restyle; none, to paint random faces with samples"""
    model: str = ""
    """the DualStyleGAN, name or file; codes of its styles and its sampler are in it or beside it; empty for the bundled
    one"""
    style: tuple[str, ...] = ("0",)
    """number or name of a style of the model, a picture that it was not trained on, or random; of several, each gives an
    output, unless they are mixed"""
    mix: tuple[float, ...] = knob((), lo=-10.0, hi=10.0)
    """mix the styles into one, with one weight each (0.3,0.7)"""
    color_style: str = ""
    """take the colours of this style in place of the style's own"""
    style_steps: int = knob(150, lo=1, hi=20_000)
    """steps of the search for the code of a style picture"""
    style_aligned: bool = False
    """style pictures are aligned faces already: take each as a whole"""
    samples: int = knob(0, lo=0, hi=1000)
    """paint so many random faces, in random styles unless style says which, and write them as one sheet"""
    fix: tuple[str, ...] = ()
    """what all samples share: content, structure, color"""
    out: Path | None = None
    """file to write, or folder for several outputs; by default PHOTO-STYLE beside the photo"""
    compare: bool = False
    """also write a picture of every face before and after, beside the output"""
    sheet: Path | None = None
    """also write one sheet with a row per face and a column per style"""
    overwrite: bool = False
    """replace files that exist; otherwise they are an error, before one would be replaced"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mix and len(self.mix) != len(self.style):
            raise OptionError(
                f"mix has {len(self.mix)} weights for {len(self.style)} styles, expected one each"
            )
        if not self.style:
            raise OptionError("style is empty, expected a number, a name, a picture or random")
        unknown = sorted(set(self.fix) - set(FIXED))
        if unknown:
            raise OptionError(f"fix is {', '.join(unknown)}, expected some of {', '.join(FIXED)}")
        if self.fix and not self.samples:
            raise OptionError("fix goes with samples; photos and styles are what you name")
        for name in ("compare", "crop", "sheet"):
            if self.samples and getattr(self, name):
                raise OptionError(f"{name} goes with photos; samples are one sheet of faces already")


def run(options: Options, console: Console) -> int:
    """Restyle the photos, or paint samples; a photo that fails is reported and the others go on."""
    if bool(options.photos) == bool(options.samples):
        raise OptionError("limner dual: name photos to restyle, or give --samples N for random faces")
    plan = plan_outputs(options)
    check_free([path for paths in plan for path in paths], options)
    check_encoder(options.inverter, options.encoder)
    from limner.app.device import pick_device
    from limner.pipeline.dual import load_dual

    model = options.model or pick_model()
    device = pick_device(console.settings)
    models = load_dual(model, encoder=options.encoder, trunk=options.trunk, device=device)
    if options.samples:
        return _paint_samples(plan[0][0], models, options, console)
    styles = find_styles(options, models, console)
    written, failed, rows = [], [], []
    for photo, outputs in zip(options.photos, plan, strict=True):
        try:
            written += _restyle(photo, outputs, styles, models, options, console, rows)
        except (FaceNotFoundError, MediaError, OptionError) as error:
            if len(options.photos) == 1:
                raise
            console.error(str(error))
            failed.append({"photo": photo, "error": type(error).__name__, "message": str(error)})
    if options.sheet is not None and rows:
        _write_sheet(options.sheet, rows, styles, options)
        console.print(f"wrote {options.sheet}")
    console.result(photos=written, failed=failed, sheet=options.sheet)
    return 2 if failed else 0


def pick_model() -> str:
    """Return the name of the DualStyleGAN that is used where none is named.

    Raises:
        OptionError: none is on this machine.
    """
    known = zoo.names("dual")
    if not known:
        raise OptionError(
            "model is not given and none is bundled; name a DualStyleGAN: --model generator.pt or a .safetensors file"
        )
    return DEFAULT_MODEL if DEFAULT_MODEL in known else known[0]


def style_names(options: Options) -> list[str]:
    """Return a name per output of one photo, for its file."""
    if options.mix:
        return [MIXED]
    names = [Path(style).stem if Path(style).suffix else style for style in options.style]
    return [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names, 1)]


def plan_outputs(options: Options) -> list[list[Path]]:
    """Return, per photo, one file per style, all different; for samples one file.

    Raises:
        OptionError: several outputs for one file.
    """
    out, styles = options.out, style_names(options)
    if options.samples:
        path = out or Path("dual-samples.png")
        return [[path if path.suffix else path / "dual-samples.png"]]
    if out is not None and out.suffix and not out.is_dir():
        count = len(options.photos) * len(styles)
        if count > 1:
            raise OptionError(f"out is the file {out}, but there are {count} outputs; name a folder")
        return [[out]]
    plan: list[list[Path]] = []
    taken: set[Path] = set()
    for photo in options.photos:
        suffix = photo.suffix.lower() if photo.suffix.lower() in KEPT_SUFFIXES else ".png"
        plan.append([])
        for style in styles:
            path, number = (out or photo.parent) / f"{photo.stem}-{style}{suffix}", 2
            while path in taken:
                path, number = path.with_name(f"{photo.stem}-{style}-{number}{suffix}"), number + 1
            taken.add(path)
            plan[-1].append(path)
    return plan


def check_free(outputs: list[Path], options: Options) -> None:
    """Raise `OptionError` for files that exist already, unless they may be replaced, and for the photos themselves."""
    sources = {photo.resolve() for photo in options.photos}
    beside = [compare_path(path) for path in outputs] if options.compare and options.photos else []
    for path in [*outputs, *beside, *([options.sheet] if options.sheet else [])]:
        if path.resolve() in sources:
            raise OptionError(f"out is {path}, which is the photo itself; choose another name")
        if path.exists() and not options.overwrite:
            raise OptionError(f"{path} exists already; give --overwrite or another --out")
        check_writable(path)


def find_styles(options: Options, models: DualModels, console: Console) -> list[DualStyle]:
    """Return the styles that the options name, mixed into one where they say so.

    Raises:
        OptionError: no such style or picture.
    """
    from limner.app.device import seeded_rng
    from limner.stylization.dual import DualStyle, combine, mix_styles

    rng = seeded_rng(options.seed)
    found = [_find_code(key, options, models, rng, console) for key in options.style]
    if options.mix:
        name = " + ".join(f"{weight:g} {name}" for weight, (name, _) in zip(options.mix, found, strict=True))
        found = [(name, mix_styles([code for _, code in found], options.mix))]
    if options.color_style:
        name, color = _find_code(options.color_style, options, models, rng, console)
        found = [(f"{own}, colours of {name}", combine(models.dual, code, color)) for own, code in found]
    return [DualStyle(models.dual, code, options, name) for name, code in found]


def _find_code(key: str, options: Options, models: DualModels, rng: Any, console: Console) -> tuple[str, Any]:
    """Return name and extrinsic code of what one ``--style`` says."""
    from limner.stylization.dual import combine, find_code, sample_styles, to_extrinsic

    if key == RANDOM:
        drawn = sample_styles(models.dual, 1, sampler=models.sampler, codes=models.codes, rng=rng)
        return RANDOM, combine(models.dual, *drawn)
    path = Path(key)
    if key in models.codes or not path.is_file():
        name, code = find_code(models.codes, key)
        return name, to_extrinsic(models.dual, code)
    return path.name, _embed_picture(path, options, models, console)


def _embed_picture(path: Path, options: Options, models: DualModels, console: Console) -> Any:
    from limner import media
    from limner.pipeline.dual import embed_style

    picture = media.read(path, max_megapixels=options.max_megapixels or media.MAX_MEGAPIXELS)
    with console.progress(options.style_steps, f"{path.name}: embedding the style") as progress:
        found = embed_style(
            picture.pixels,
            models=models,
            steps=options.style_steps,
            aligned=options.style_aligned,
            seed=options.seed,
            name=str(path),
            on_step=lambda step: progress.set(step.step, f"loss {step.loss:.3f}"),
        )
    if found.note:
        console.warn(found.note)
    console.print(f"style {path.name}: embedded with PSNR {found.inversion.report[0].psnr:.1f} dB")
    return found.extrinsic


def _restyle(
    photo: Path,
    outputs: list[Path],
    styles: list[DualStyle],
    models: DualModels,
    options: Options,
    console: Console,
    rows: list[list[Any]],
) -> list[dict[str, Any]]:
    from limner import faces, media
    from limner.pipeline import compare_sheet, stylize
    from limner.pipeline.photos import embed_faces

    picture = media.read(photo, max_megapixels=options.max_megapixels or media.MAX_MEGAPIXELS)
    for note in picture.notes:
        console.warn(f"{photo}: {note}")
    with console.progress(None, f"{photo.name}: embedding") as progress:

        def show(step: Any) -> None:
            progress.total = step.items * step.steps
            done = (step.item - 1) * step.steps + step.step
            progress.set(done, f"face {step.item} of {step.items}, loss {step.loss:.3f}")

        embedded = embed_faces(picture.pixels, options, models=models, where=str(photo), on_step=show)
    results, written = [], []
    for style, output in zip(styles, outputs, strict=True):
        result = stylize(
            picture.pixels,
            style,
            options,
            models=models,
            embedded=embedded,
            identity=models.identity_distance,
        )
        results.append(result)
        record = {name: value for name, value in to_mapping(options).items() if name not in UNRECORDED}
        record |= {"command": "dual", "style_name": style.name, "base": models.base}
        paths = _write(picture, result, output, options, record)
        if options.compare:
            sheet = compare_sheet(picture.pixels, result, options.size)
            kind = "compositeWithTrainedAlgorithmicMedia"
            paths.append(media.write(compare_path(output), sheet, options=record, source_type=kind))
        for number, face in enumerate(result.faces, 1):
            console.print(
                f"{photo.name}, face {number}, style {style.name}: embedded with PSNR {face.report.psnr:.1f} dB, "
                f"identity distance (dlib, squared) embedded {face.identity_embedded:.3f}, "
                f"restyled {face.identity_styled:.3f}, {format_seconds(face.seconds)}"
            )
        console.print(f"wrote {', '.join(map(str, paths))}")
        written.append({"photo": photo, "style": style.name, "files": paths, "faces": _figures(result)})
    for number, (alignment, _) in enumerate(embedded):
        crop = faces.crop_face(picture.pixels, alignment.resized(options.size))
        rows.append([crop, *(result.portraits[number] for result in results)])
    return written


def _figures(result: StylizeResult) -> list[dict[str, Any]]:
    return [
        {
            **face.report.to_dict(),
            "distance_styled": face.distance_styled,
            "identity": face.identity_embedded,
            "identity_styled": face.identity_styled,
            "seconds": face.seconds,
        }
        for face in result.faces
    ]


def _write(
    picture: Photo, result: StylizeResult, output: Path, options: Options, record: dict[str, Any]
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


def _write_sheet(path: Path, rows: list[list[Any]], styles: list[DualStyle], options: Options) -> None:
    from limner import media

    sheet = media.make_sheet(rows, column_labels=("photo", *(style.name for style in styles)), cell_px=256)
    record = {name: value for name, value in to_mapping(options).items() if name not in UNRECORDED}
    media.write(
        path,
        sheet,
        options={"command": "dual", **record},
        source_type="compositeWithTrainedAlgorithmicMedia",
    )


def _paint_samples(path: Path, models: DualModels, options: Options, console: Console) -> int:
    """Paint random faces in random or given styles as one sheet."""
    import math

    from limner import media
    from limner.app.device import seeded_rng
    from limner.stylization.dual import paint_samples, sample_styles

    rng, dual = seeded_rng(options.seed), models.dual
    if options.style == type(options).style and not options.mix:  # nothing was asked for
        drawn = sample_styles(dual, options.samples, sampler=models.sampler, codes=models.codes, rng=rng)
        structure, color = drawn
    else:
        import torch

        codes = torch.cat([style.extrinsic for style in find_styles(options, models, console)])
        structure = color = codes[torch.arange(options.samples) % len(codes)]
    with console.progress(options.samples, "painting faces") as progress:
        images = paint_samples(
            dual, structure, color, options, fix=options.fix, rng=rng, on_faces=progress.advance
        )
    columns = max(1, math.isqrt(max(0, options.samples - 1)) + 1)
    pictures = list(media.to_pixels(images))
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    record = {name: value for name, value in to_mapping(options).items() if name not in UNRECORDED}
    media.write(
        path,
        media.make_sheet(rows),
        options={"command": "dual", **record},
        source_type="trainedAlgorithmicMedia",
    )
    console.print(f"wrote {path}")
    console.result(files=[path], samples=options.samples)
    return 0
