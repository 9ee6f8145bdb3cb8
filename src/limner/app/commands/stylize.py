"""``limner stylize``: restyle every face of a photo."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import zoo
from limner.app.console import Console, format_seconds
from limner.errors import FaceNotFoundError, LimnerError, MediaError, OptionError
from limner.faces.options import ReadOptions
from limner.files import check_writable
from limner.options import knob, to_mapping
from limner.pipeline.options import (
    EncoderOptions,
    LearnOptions,
    StylizeOptions,
    TrunkOptions,
    check_encoder,
)
from limner.stylization.options import StyleOptions

if TYPE_CHECKING:
    from limner.pipeline import Models, StylizeResult
    from limner.stylization.dual import DualStyle
    from limner.stylization.style import Style

STYLE_SUFFIX = ".limner"
DUAL_SUFFIXES = (".safetensors", ".pt", ".pth")
MODEL_SUFFIXES = (*DUAL_SUFFIXES, ".pkl")
KEPT_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
UNRECORDED = ("photos", "out", "compare", "overwrite", "max_megapixels")  # they change no pixel
LEARNED_ONLY = ("layers", "pull", "blend", "hold")  # of no meaning to a DualStyleGAN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StylizeOptions, EncoderOptions, TrunkOptions, ReadOptions):
    """Options of ``limner stylize``."""

    photos: tuple[Path, ...] = knob()
    """photos to restyle"""
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
    """replace files that exist; otherwise they are an error, before any work is done"""


def run(options: Options, console: Console) -> int:
    """Restyle the photos; a photo that fails is reported and the others go on."""
    if not options.photos:
        raise OptionError("limner stylize: name at least one photo")
    outputs = plan_outputs(options)
    check_free(outputs, options)
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
    for photo, output in zip(options.photos, outputs, strict=True):
        try:
            written.append(_restyle(photo, output, style, models, options, console))
        except (FaceNotFoundError, MediaError, OptionError) as error:
            if len(options.photos) == 1:
                raise
            console.error(str(error))
            failed.append({"photo": photo, "error": type(error).__name__, "message": str(error)})
    console.result(photos=written, failed=failed)
    return 2 if failed else 0


def plan_outputs(options: Options) -> list[Path]:
    """Return one file per photo, all different.

    Raises:
        OptionError: several photos for one file.
    """
    model, key = split_dual(options.style)
    out, style = options.out, Path(model or options.style).stem + (f"-{Path(key).stem}" if key else "")
    if out is not None and out.suffix and not out.is_dir():
        if len(options.photos) > 1:
            raise OptionError(
                f"out is the file {out}, but there are {len(options.photos)} photos; name a folder"
            )
        return [out]
    names: list[Path] = []
    for photo in options.photos:
        suffix = photo.suffix.lower() if photo.suffix.lower() in KEPT_SUFFIXES else ".png"
        folder = out or photo.parent
        path, number = folder / f"{photo.stem}-{style}{suffix}", 2
        while path in names:
            path, number = folder / f"{photo.stem}-{style}-{number}{suffix}", number + 1
        names.append(path)
    return names


def check_free(outputs: list[Path], options: Options) -> None:
    """Raise `OptionError` for files that exist already, unless they may be replaced, and for the photos themselves."""
    sources = {photo.resolve() for photo in options.photos}
    for path in outputs:
        if path.resolve() in sources:
            raise OptionError(f"out is {path}, which is the photo itself; choose another name")
        beside = [path, compare_path(path)] if options.compare else [path]
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


def find_styles(options: Options, folder: Path, models: Models, console: Console) -> Style:
    """Return the style and those that come on top as one; arguments as `find_style`.

    Raises:
        OptionError: not one strength per further style.
    """
    if options.also_strength and not options.also:
        raise OptionError("also_strength is given, but no further styles are; name them with --also")
    first = find_style(options, folder, models, console)
    if not options.also:
        return first
    from limner.stylization.merging import merge

    shares = options.also_strength or (0.5,) * len(options.also)
    if len(shares) != len(options.also):
        raise OptionError(
            f"also_strength has {len(shares)} numbers, but also names {len(options.also)} styles"
        )
    others = [
        find_style(dataclasses.replace(options, style=name), folder, models, console) for name in options.also
    ]
    return merge([first, *others], [1.0, *shares], names=[options.style, *options.also])


def find_dual(options: Options, models: Models) -> DualStyle | None:
    """Return the style that ``MODEL`` or ``MODEL:STYLE`` stands for, None where no DualStyleGAN is called so.

    Raises:
        OptionError: it has no such style, others are to come on top, or options are given that learned styles alone have.
        CheckpointError: a file that holds no DualStyleGAN.
    """
    model, key = split_dual(options.style)
    if not model or (not key and holds_generator(model)):
        return None
    if options.also:
        raise OptionError(f"{model} is a DualStyleGAN, which no other style can be added to; leave also out")
    usual = StyleOptions()
    odd = [name for name in LEARNED_ONLY if getattr(options, name) != getattr(usual, name)]
    if odd:
        raise OptionError(
            f"{model} is a DualStyleGAN, which has no {', '.join(odd)}; leave out --{' --'.join(odd)}, or see limner dual "
            "--help for what it has"
        )
    from limner.checkpoints.dual import style_codes
    from limner.pipeline.dual import read_dual
    from limner.stylization.dual import DualStyle, at_strength, find_code, to_extrinsic

    found = read_dual(model, device=models.device)
    assert found.dual is not None
    name, code = find_code(style_codes(found.codes), key or "0")
    weights = at_strength(options.strength, keep_color=options.keep_color)
    return DualStyle(found.dual, to_extrinsic(found.dual, code), weights, f"{model}:{name}")


def split_dual(style: str) -> tuple[str, str]:
    """Return model and style of ``MODEL:STYLE``, a DualStyleGAN's name or file; two empty ones for anything else."""
    model, _, key = style.rpartition(":") if ":" in style else (style, "", "")
    named = model in zoo.names("dual")
    return (model, key) if named or Path(model).suffix in DUAL_SUFFIXES else ("", "")


def holds_generator(name: str) -> bool:
    """Return whether a model is a plain generator and no DualStyleGAN.

    Raises:
        ZooError, CheckpointError: there is no such model, or it is unreadable.
    """
    from limner import checkpoints

    if name in zoo.names("dual"):
        return False
    found = checkpoints.load(zoo.resolve(name), parts=("dual", "generator"))
    return found.dual is None and found.generator is not None


def style_of_model(name: str, base: str, models: Models) -> Style:
    """Return the style that a whole generator is: all its layers in place of the base's.

    Args:
        name: the generator, a name or file.
        base: what the base is called.
        models: whose generator is the base.

    Raises:
        OptionError: it is the base itself.
        KeyMismatchError: it was not made from the base.
        ZooError, CheckpointError: it is unreadable or holds no generator.
    """
    from limner.app.commands.blend import base_name, load_parent
    from limner.nn import deltas
    from limner.stylization.blend import blend
    from limner.stylization.blend_options import BlendOptions
    from limner.stylization.blend_style import METHOD
    from limner.stylization.style import style_between

    found = load_parent(name)
    assert found.generator is not None
    whole = BlendOptions(swap=(4,))
    blended = blend([models.generator, found.generator.to(models.device)], whole, names=[base, name])
    digest = deltas.digest(found.generator)
    if digest == deltas.digest(models.generator):
        raise OptionError(f"style is {name!r}, which is the base model itself")
    about = {"base": base_name(base), "parent": base_name(name), "digest": digest}
    style = style_between(
        models.generator, blended, method=METHOD, options=to_mapping(whole), provenance=about
    )
    return dataclasses.replace(style, licence=str(found.metadata.get("licence", "unknown")))


def find_style(options: Options, folder: Path, models: Models, console: Console) -> Style:
    """Return the style that a name, a ``.limner`` file, a whole generator or a picture stands for.

    Args:
        options: whose ``style`` is looked for.
        folder: where a style that is learned from a picture is kept.
        models: to learn with.
        console: shows the progress.
    """
    name, path = options.style, Path(options.style)
    if name in zoo.names("style") or path.suffix == STYLE_SUFFIX:
        return read_style(name)
    whole = name in (*zoo.names("child"), *zoo.names("model"))
    if whole or (path.exists() and path.suffix.lower() in MODEL_SUFFIXES):
        return style_of_model(name, options.model, models)
    if not path.exists():
        raise OptionError(
            f"style is {name!r}, expected a known style, a {STYLE_SUFFIX} file, a model or a picture; {suggest(name)}"
        )
    kept = folder / f"{path.stem}{STYLE_SUFFIX}"
    return _learn_or_reuse(path, kept, options, models, console)


def read_style(name: str) -> Style:
    """Read a style by its name or file.

    Raises:
        OptionError: there is neither.
        CheckpointError: the file is damaged or holds something else.
    """
    from limner.stylization import load_style

    if name in zoo.names("style"):
        return load_style(zoo.path(name))
    if not Path(name).exists():
        raise OptionError(f"there is no style or file {name!r}; {suggest(name, dual=False)}")
    return load_style(name)


def suggest(name: str, *, dual: bool = True) -> str:
    """Return what a style that does not exist may have meant: close names, else all of them.

    Args:
        name: what was asked for.
        dual: DualStyleGANs would do, too.
    """
    models = zoo.names("dual") if dual else []
    known = [*zoo.names("style"), *models]
    close = difflib.get_close_matches(name.partition(":")[0], known, 2)
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = ", ".join(f"{one}:0" if one in models else one for one in known)
    return f"known styles: {shown}" if known else "no styles are installed"


def was_learned_so(style: Style, digest: str, options: LearnOptions, trunk: str) -> bool:
    """Return whether a style was learned from the picture with this SHA-256, cut out and measured in the same way."""
    about = style.provenance
    same_trunk = about.get("trunk", trunk) == trunk
    same_crop = bool(style.options.get("aligned", False)) == options.aligned
    return same_trunk and same_crop and about.get("sha256") == [digest]


def _learn_or_reuse(picture: Path, kept: Path, options: Options, models: Models, console: Console) -> Style:
    from limner.app.commands.learn import learn_files
    from limner.stylization import load_style

    learning = LearnOptions(aligned=options.style_aligned)
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    if kept.exists():
        try:
            style = load_style(kept)
            style.check_base(models.generator)
        except LimnerError:
            style = None
        if style is not None and was_learned_so(style, digest, learning, models.trunk_name):
            console.print(f"style: {kept}, learned from {picture.name} before")
            return style
        kept = kept.with_name(f"{kept.stem}-{digest[:8]}{kept.suffix}")
    return learn_files([picture], [], kept, learning, models, console, max_megapixels=options.max_megapixels)


def _restyle(
    photo: Path, output: Path, style: Style | DualStyle, models: Models, options: Options, console: Console
) -> dict[str, Any]:
    from limner import media
    from limner.nn.identity import SAME_PERSON
    from limner.pipeline import compare_sheet, stylize

    picture = media.read(photo, max_megapixels=options.max_megapixels or media.MAX_MEGAPIXELS)
    for note in picture.notes:
        console.warn(f"{photo}: {note}")
    with console.progress(None, f"{photo.name}: embedding") as progress:

        def show(step: Any) -> None:
            done, total = (step.item - 1) * step.steps + step.step, step.items * step.steps
            if progress.total is None:
                progress.total = total
            progress.set(done, f"face {step.item} of {step.items}, loss {step.loss:.3f}")

        result = stylize(
            picture.pixels,
            style,
            options,
            models=models,
            where=str(photo),
            identity=models.identity_distance,
            on_step=show,
        )
    record = {name: value for name, value in to_mapping(options).items() if name not in UNRECORDED}
    record |= {"command": "stylize", "style_provenance": dict(style.provenance), "base": models.base}
    paths = _write(picture, result, output, options, record)
    if options.compare:
        sheet = compare_sheet(picture.pixels, result, options.size)
        media.write(
            compare_path(output), sheet, options=record, source_type="compositeWithTrainedAlgorithmicMedia"
        )
        paths.append(compare_path(output))
    for number, face in enumerate(result.faces, 1):
        console.print(
            f"{photo.name}, face {number}: embedded with PSNR {face.report.psnr:.1f} dB, perceptual distance "
            f"({face.report.trunk}) {face.distance_embedded:.3f}, restyled {face.distance_styled:.3f}, "
            f"{format_seconds(face.seconds)}"
        )
        console.print(
            f"  identity distance (dlib, squared; below {SAME_PERSON} is the same person): embedded "
            f"{face.identity_embedded:.3f}, restyled {face.identity_styled:.3f}"
        )
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
    return {"photo": photo, "files": paths, "faces": figures}


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
