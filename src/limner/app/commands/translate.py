"""``limner translate``: sketches, label maps, small, masked, turned and toon pictures to faces."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.app.commands.stylize import KEPT_SUFFIXES, compare_path
from limner.app.console import Console, format_seconds
from limner.errors import FaceNotFoundError, LimnerError, MediaError, OptionError
from limner.faces.options import ReadOptions
from limner.files import check_writable
from limner.options import knob, to_mapping
from limner.translation.options import SCHEME_NAMES, TranslateOptions

if TYPE_CHECKING:
    import numpy as np

    from limner.media import Photo
    from limner.pipeline.translation import TranslateResult, TranslationModels

UNRECORDED = ("pictures", "out", "compare", "overwrite", "max_megapixels")  # they change no pixel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TranslateOptions, ReadOptions):
    """Options of ``limner translate``."""

    pictures: tuple[Path, ...] = knob()
    """sketches, label maps or photos, as the task says"""
    out: Path | None = None
    """file to write, or folder for several pictures; by default PICTURE-TASK beside the picture (PICTURE-translated where
    task is left out); several faces and outputs are numbered"""
    model: str = "translator"
    """a translator, name or file, or a pSp checkpoint (psp_celebs_sketch_to_face.pt, ...)"""
    generator: str = ""
    """generator of the translator, name or file; by default the one that it names, or that the checkpoint holds"""
    mask: Path | None = None
    """inpaint: picture of the photo's size, white where parts are missing; by default the photo's transparent parts"""
    classes: str = knob("auto", choices=SCHEME_NAMES)
    """labels: whose classes the map has, those of our synthetic data or CelebAMask-HQ's; auto tells by colours and numbers"""
    legend: Path | None = None
    """labels: YAML or JSON file with the map's own colours, '#cc0000': skin"""
    compare: bool = False
    """also write a sheet of photo, input and faces, beside the output"""
    overwrite: bool = False
    """replace files that exist; otherwise they are an error, before one would be replaced"""


def run(options: Options, console: Console) -> int:
    """Translate the pictures; one that fails is reported and the others go on."""
    if not options.pictures:
        raise OptionError("limner translate: name at least one picture")
    outputs = plan_outputs(options)
    check_inputs(options)
    for output in outputs:
        check_writable(output)
    from limner.app.device import pick_device
    from limner.pipeline.translation import check_options, check_task, load_translation_models

    models = load_translation_models(
        options.model, generator=options.generator or None, device=pick_device(console.settings)
    )
    task = check_task(models.network, options.task)
    check_options(task, options, models.network)
    if task.name != "labels" and (options.legend is not None or options.classes != "auto"):
        raise OptionError(f"legend and classes are for label maps, but the task is {task.name}")
    if task.name != "inpaint" and options.mask is not None:
        raise OptionError(f"mask is for inpaint, but the task is {task.name}")
    written, failed = [], []
    jobs = list(zip(options.pictures, outputs, strict=True))
    with console.progress(len(jobs), f"translating ({task.name})") as progress:
        for number, (picture, output) in enumerate(jobs):

            def show(done: int, count: int, name: str = picture.name, before: int = number) -> None:
                progress.set(before, f"{name}: face {done} of {count}")

            try:
                written.append(_translate(picture, output, task.name, models, options, console, show))
            except (FaceNotFoundError, MediaError, OptionError) as error:
                if len(jobs) == 1:
                    raise _with_hint(error, task.name, options) from None
                console.error(str(error))
                failed.append({"picture": picture, "error": type(error).__name__, "message": str(error)})
            progress.set(number + 1, picture.name)
    for entry in written:
        console.print(f"wrote {', '.join(map(str, entry['files']))} ({format_seconds(entry['seconds'])})")
    console.result(task=task.name, model=models.name, pictures=written, failed=failed)
    return 2 if failed else 0


def plan_outputs(options: Options) -> list[Path]:
    """Return one file per picture, all different; faces and outputs are numbered from it.

    Raises:
        OptionError: several pictures for one file.
    """
    out = options.out
    if out is not None and out.suffix and not out.is_dir():
        if len(options.pictures) > 1:
            raise OptionError(
                f"out is the file {out}, but there are {len(options.pictures)} pictures; name a folder"
            )
        return [out]
    names: list[Path] = []
    for picture in options.pictures:
        keep = options.paste and picture.suffix.lower() in KEPT_SUFFIXES
        end = f"-{options.task or 'translated'}{picture.suffix.lower() if keep else '.png'}"
        path, number = (out or picture.parent) / f"{picture.stem}{end}", 2
        while path in names:  # numbers of faces come last, so that no picture's faces take another's name
            path, number = path.with_name(f"{picture.stem}-{number}{end}"), number + 1
        names.append(path)
    return names


def check_inputs(options: Options) -> None:
    """Raise `OptionError` where an output would replace something, or one mask serves several pictures."""
    if options.mask is not None and len(options.pictures) > 1:
        raise OptionError(
            f"mask is one file, but there are {len(options.pictures)} pictures; translate them one by one"
        )
    if options.mask is not None and options.from_photo:
        raise OptionError(
            "mask and from_photo exclude each other: from_photo chooses the missing parts itself"
        )
    for path in plan_outputs(options):
        check_free(plan_files(path, options), options)


def check_free(files: list[Path], options: Options) -> None:
    """Raise `OptionError` for files that exist already, unless they may be replaced, and for the pictures themselves."""
    sources = {picture.resolve() for picture in options.pictures}
    for file in files:
        if file.resolve() in sources:
            raise OptionError(f"out is {file}, which is an input itself; choose another name")
        if file.exists() and not options.overwrite:
            raise OptionError(f"{file} exists already; give --overwrite or another --out")


def plan_files(output: Path, options: Options, faces: int = 1) -> list[Path]:
    """Return all files of a picture with so many faces: its faces or, pasted, its photos, then the sheet."""
    count = options.outputs
    numbers = range(1, 1 + (1 if options.paste else faces))
    files = [
        numbered(output, face, index, count, len(numbers))
        for face in numbers
        for index in range(1, count + 1)
    ]
    return files + [compare_path(output)] * options.compare


def numbered(output: Path, face: int, index: int, outputs: int, faces: int = 1) -> Path:
    """Return the file of one of several faces and outputs, both counted from 1."""
    words = (
        [output.stem]
        + [str(face)] * (faces > 1)
        + [str(index) if faces == 1 else f"v{index}"] * (outputs > 1)
    )
    return output.with_name("-".join(words) + output.suffix)


def _with_hint(error: LimnerError, task: str, options: Options) -> LimnerError:
    if isinstance(error, FaceNotFoundError) and not options.aligned:
        return FaceNotFoundError(f"{error}; or take the whole picture for one face ({task}) with --aligned")
    return error


def _translate(
    picture: Path,
    output: Path,
    task: str,
    models: TranslationModels,
    options: Options,
    console: Console,
    on_face: Any,
) -> dict[str, Any]:
    from limner.pipeline.translation import translate
    from limner.translation.classes import CELEBA
    from limner.translation.labels import read_labels
    from limner.translation.networks import scheme_of, sees_photo
    from limner.translation.tasks import TASKS

    photo: Photo | None = None
    mask = None
    if task == "labels":
        to = "celeba" if scheme_of(models.network) is CELEBA else "limner"
        given = read_labels(picture, to=to, scheme=options.classes, legend=options.legend)
    else:
        photo = _read(picture, options)
        for note in photo.notes:
            console.warn(f"{picture}: {note}")
        given = photo.pixels
        if task == "inpaint" and not options.from_photo:
            mask = _read_mask(photo, options)
        if photo.alpha is not None and not options.from_photo and not sees_photo(models.network, TASKS[task]):
            given = _on_white(photo, photo.alpha)
    result = translate(given, options, models=models, mask=mask, where=str(picture), on_face=on_face)
    record = {name: value for name, value in to_mapping(options).items() if name not in UNRECORDED}
    record |= {"command": "translate", "task": task, "model": models.name}
    files = write_files(result, photo, output, options, record)
    if result.filled is not None and mask is not None and ((mask > 127) & ~result.filled).any():
        left = ((mask > 127) & ~result.filled).sum() / (mask > 127).sum()
        console.warn(
            f"{picture}: {left:.0%} of the missing parts lie outside the faces and were left as they are"
        )
    seconds = sum(face.seconds for face in result.faces)
    return {"picture": picture, "files": files, "faces": len(result.faces), "seconds": seconds}


def _read(path: Path, options: Options) -> Photo:
    from limner import media

    return media.read(path, max_megapixels=options.max_megapixels or media.MAX_MEGAPIXELS)


def _read_mask(photo: Photo, options: Options) -> np.ndarray | None:
    """Return what is missing, uint8 (H, W), 255 where it is: the mask's file, or else the photo's transparent parts."""
    if options.mask is not None:
        mask = _read(options.mask, options)
        opaque = 1.0 if mask.alpha is None else mask.alpha / 255.0
        return (mask.pixels.mean(2) * opaque).round().astype(mask.pixels.dtype)
    if photo.alpha is not None and (photo.alpha < 128).any():
        return 255 - photo.alpha
    return None


def _on_white(photo: Photo, alpha: np.ndarray) -> np.ndarray:
    """Return a drawing laid on white paper, uint8 (H, W, 3)."""
    share = alpha[..., None] / 255.0
    return (photo.pixels * share + 255 * (1 - share)).round().astype(photo.pixels.dtype)


def write_files(
    result: TranslateResult, photo: Photo | None, output: Path, options: Options, record: dict[str, Any]
) -> list[Path]:
    """Write all files of a picture, none if one of them exists and may not be replaced."""
    import numpy as np

    from limner import media
    from limner.pipeline.translation import compare_sheet

    files = plan_files(output, options, len(result.faces))
    check_free(files, options)
    kept = options.paste or (result.task.name == "inpaint" and options.composite)
    kind = "compositeWithTrainedAlgorithmicMedia" if kept else "trainedAlgorithmicMedia"
    pictures: list[Any] = [pixels for face in result.faces for pixels in face.outputs]
    if options.paste:
        assert photo is not None
        alpha = photo.alpha
        if alpha is not None and result.filled is not None:
            alpha = np.where(result.filled, np.uint8(255), alpha)
        pictures = [dataclasses.replace(photo, pixels=pixels, alpha=alpha) for pixels in result.pasted]
    for path, one in zip(files[: len(pictures)], pictures, strict=True):  # the sheet comes last
        media.write(path, one, options=record, source_type=kind)
    if options.compare:
        sheet = compare_sheet(result, min(options.size, 512))
        media.write(files[-1], sheet, options=record, source_type="compositeWithTrainedAlgorithmicMedia")
    return files
