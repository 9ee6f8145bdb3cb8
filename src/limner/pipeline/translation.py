"""Translate pictures to faces: find what is to be translated, make the network's input, paint, put back."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from limner import checkpoints, faces, media, zoo
from limner.checkpoints.translator import KIND, load_translator
from limner.errors import CheckpointError, MediaError, OptionError
from limner.faces import Alignment, Detector, PasteOptions
from limner.faces.align import warp
from limner.latent import Latent, render
from limner.latent.masks import LayerMask
from limner.nn import deltas
from limner.nn.detail import Detail
from limner.nn.encoders import Encoder
from limner.nn.stylegan2 import Generator
from limner.pipeline.models import find_detail, finish
from limner.translation import labels as label_maps
from limner.translation.networks import (
    PspTranslator,
    TaskNetwork,
    check_task,
    input_side,
    mix_styles,
    scheme_of,
    sees_photo,
)
from limner.translation.options import TranslateOptions
from limner.translation.tasks import Task, blur, make_input, make_masks, show_input, shrink

TRANSLATOR = "translator"
"""Name of the bundled translator."""
SEEN_WHOLE_PX = 128
"""Super-resolution takes pictures with a shorter side below this as one face; nothing is looked for in them."""
SOFT_EDGE = 0.01
"""Of the seam inside missing parts, as a share of the face's side."""
LEAST_MISSING = 0.1
"""Share of a pixel's area from which on it counts as missing: what is left of it is no colour of the photo."""
PASTEABLE = ("super-resolution", "inpaint", "sketch", "toon")


@dataclasses.dataclass(frozen=True, eq=False)
class TranslationModels:
    """What translation works with.

    Attributes:
        generator: paints; frozen.
        network: gives its codes.
        name: of the model, which goes into the files.
        detector: finds faces; None for the bundled one.
    """

    generator: Generator
    network: TaskNetwork
    name: str = ""
    detector: Detector | None = None

    @functools.cached_property
    def detail(self) -> Detail | None:
        """The layers grown above the generator, where there are such on this machine."""
        return find_detail(deltas.digest(self.generator), self.generator.w_avg.device)


@dataclasses.dataclass(frozen=True, eq=False)
class TranslatedFace:
    """One translated face.

    Attributes:
        alignment: where it lies in the input.
        photo: the face as it was, uint8 (size, size, 3); None where the input shows no photo.
        shown: what the network saw, as a picture, uint8 (S, S, 3).
        outputs: the faces that came out, uint8 (size, size, 3) each.
        w_plus: their codes, (N, L, w_dim).
        seconds: wall time.
    """

    alignment: Alignment
    photo: np.ndarray | None
    shown: np.ndarray
    outputs: list[np.ndarray]
    w_plus: Tensor
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class TranslateResult:
    """A translated picture.

    Attributes:
        task: what was done.
        faces: in order, the largest first.
        pasted: with ``paste`` the whole photo, once per output, uint8 (H, W, 3).
        filled: inpaint with ``paste``: which missing pixels lie in a face and were painted, bool (H, W); missing ones
            outside all faces stay as they were.
    """

    task: Task
    faces: list[TranslatedFace]
    pasted: list[np.ndarray]
    filled: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Input:
    alignment: Alignment
    x: Tensor  # (1, C, S, S)
    shown: np.ndarray  # uint8 (S, S, 3)
    photo: np.ndarray | None = None  # uint8 (size, size, 3)
    hole: Tensor | None = None  # (1, 1, size, size), 1 where parts are missing


def load_translation_models(
    model: str | Path = TRANSLATOR,
    *,
    generator: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> TranslationModels:
    """Load what translates, with its generator.

    Args:
        model: name or file of a translator, or a ``.pt`` of pSp.
        generator: name or file of the generator that it was trained for; None for the one that it names or brings along.
        device: where to.

    Raises:
        ZooError: no such model.
        CheckpointError: its file cannot be used, or there is no generator for it.
        KeyMismatchError: it belongs to another generator.
    """
    file = zoo.resolve(model)
    if _is_translator(file):
        translator = load_translator(file, trunk=zoo.load("lite0"))
        named = translator.base.get("name", "")
        base = generator or (named if named in zoo.cards() else zoo.DEFAULT_GENERATOR)
        painter = _read_generator(base)
        translator.check_base(painter)
        network: TaskNetwork = translator
    else:
        checkpoint = checkpoints.load(file)
        encoder = checkpoint.encoder
        painter = _read_generator(generator) if generator else checkpoint.generator
        if not isinstance(encoder, Encoder) or not isinstance(painter, Generator):
            raise CheckpointError(
                f"{model} is no translator, and holds no encoder of pSp together with its generator; expected a "
                "translator's .safetensors or a pSp .pt such as psp_celebs_sketch_to_face.pt"
            )
        network = PspTranslator(encoder, painter, checkpoint.metadata.get("opts"))
    for part in (network, painter):
        assert isinstance(part, nn.Module)
        part.to(device).eval().requires_grad_(False)
    shown = Path(str(model)).stem if Path(str(model)).suffix else str(model)
    return TranslationModels(generator=painter, network=network, name=shown)


def _read_generator(name: str | Path) -> Generator:
    found = checkpoints.load(zoo.resolve(name)).generator
    if not isinstance(found, Generator):
        raise CheckpointError(f"{name} holds no StyleGAN2 generator")
    return found


def _is_translator(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return json.loads((opened.metadata() or {}).get("limner", "{}")).get("kind") == KIND
    except (SafetensorError, OSError, ValueError):
        return False


@torch.no_grad()
def translate(
    picture: np.ndarray,
    options: TranslateOptions | None = None,
    *,
    models: TranslationModels,
    mask: np.ndarray | None = None,
    where: str = "the picture",
    on_face: Callable[[int, int], None] | None = None,
) -> TranslateResult:
    """Translate a picture to faces.

    Args:
        picture: uint8 (H, W, 3); for the task labels a label map, integers (H, W), in the network's classes (see
            `limner.translation.read_labels`).
        options: see `TranslateOptions`.
        models: see `load_translation_models`.
        mask: inpaint: what is missing, (H, W) of the picture, above half of its type's or of 1 where it is.
        where: the picture's name, for messages.
        on_face: told how many faces are done, and of how many.

    Raises:
        OptionError: the model does not do the task, or something that the task needs is missing.
        MediaError: the mask has another size than the picture, or a label map holds what is no class.
        FaceNotFoundError: no face is there.
    """
    options = options or TranslateOptions()
    task = check_task(models.network, options.task)
    check_options(task, options, models.network)
    found = _find_inputs(picture, task, options, models, mask, where)
    results = []
    for number, one in enumerate(found, 1):
        results.append(_translate(one, task, options, models))
        if on_face is not None:
            on_face(number, len(found))
    if not options.paste:
        return TranslateResult(task=task, faces=results, pasted=[])
    owners = _find_owners(picture.shape[:2], found, mask) if task.name == "inpaint" else None
    pasted = []
    for output in range(options.outputs):
        painted = [face.outputs[output] for face in results]
        if owners is not None and options.composite:
            pasted.append(_fill_photo(picture, owners, found, painted))
        else:
            how = PasteOptions(mask=options.paste_shape, color_match=options.color_match)
            pasted.append(faces.paste_faces(picture, painted, [one.alignment for one in found], how))
    filled = None if owners is None else owners >= 0
    return TranslateResult(task=task, faces=results, pasted=pasted, filled=filled)


def check_options(task: Task, options: TranslateOptions, network: TaskNetwork) -> None:
    """Raise `OptionError` for options that do not go together with the task."""
    photo = sees_photo(network, task)
    if options.from_photo and not (task.made or photo):
        raise OptionError(
            f"{task.name}: its input ({task.summary}) cannot be made of a photo; leave from_photo out"
        )
    if options.paste and (task.name not in PASTEABLE or not (options.from_photo or photo)):
        raise OptionError(
            f"{task.name}: there is no photo in which the face would fit; leave paste out (possible for super-resolution, "
            "inpaint, sketch with from_photo, and photo to toon)"
        )
    if options.outputs == 1 and not options.mix:
        for name, value in (("alpha", options.alpha), ("psi", options.psi)):
            if value != 1:
                raise OptionError(
                    f"{name} is {value}, but nothing comes from random faces: name layers with mix, such as fine, or ask for "
                    "several faces with outputs"
                )
    if options.mix and LayerMask(options.mix).separates_rgb:
        raise OptionError(
            f"mix is {options.mix}, which tells toRGB from convolutions; write it in rows, such as 8-11"
        )


def _find_inputs(
    picture: np.ndarray,
    task: Task,
    options: TranslateOptions,
    models: TranslationModels,
    mask: np.ndarray | None,
    where: str,
) -> list[_Input]:
    """Return what the network is to see, one per face."""
    network, device = models.network, models.generator.w_avg.device
    side = input_side(network, models.generator)
    if task.name == "labels":
        if picture.ndim != 2:
            raise OptionError(f"{where} is a picture, expected a label map, integers (H, W); see read_labels")
        scheme = scheme_of(network)
        labels = label_maps.square(label_maps.by_index(picture, scheme, where=where), side)
        shown = label_maps.paint(labels, scheme)
        whole = faces.whole_picture(np.zeros((*picture.shape, 3), np.uint8), side)
        return [_Input(whole, label_maps.planes(labels, scheme).to(device), shown)]
    media.check_pixels(picture)
    if task.name == "inpaint" and mask is None and not options.from_photo:
        raise OptionError(
            f"{where}: inpaint needs to know what is missing: name a mask, white where parts are missing (--mask FILE), give "
            "a picture with transparent parts, or let from_photo choose"
        )
    if mask is not None and mask.shape != picture.shape[:2]:
        raise MediaError(
            f"the mask has {mask.shape[1]} x {mask.shape[0]} px, {where} has {picture.shape[1]} x {picture.shape[0]}; "
            "expected the same size"
        )
    missing = None if mask is None or task.name != "inpaint" else _binary(mask)
    if missing is not None and not missing.any():
        raise OptionError(f"{where}: the mask marks nothing as missing; it is white where parts are missing")
    looks = options.from_photo or sees_photo(network, task)
    if task.name == "super-resolution" and not options.from_photo:
        looks = min(picture.shape[:2]) >= SEEN_WHOLE_PX
    align = dataclasses.replace(
        options, size=side, aligned=options.aligned or not (looks or options.landmarks)
    )
    alignments = faces.find_alignments(picture, align, options, detector=models.detector, where=where)
    rng = torch.Generator().manual_seed(options.seed)
    return [
        _make_input(picture, alignment, task, options, missing, rng, device, looks=looks)
        for alignment in alignments
    ]


def _make_input(
    picture: np.ndarray,
    alignment: Alignment,
    task: Task,
    options: TranslateOptions,
    missing: np.ndarray | None,
    rng: torch.Generator,
    device: torch.device,
    *,
    looks: bool,
) -> _Input:
    image = media.to_image(faces.crop_face(picture, alignment)).to(device)
    # What is kept of the photo is kept in the size of the result, which may show more than the network sees.
    whole = alignment.resized(options.size)
    photo = faces.crop_face(picture, whole) if looks else None
    hole: Tensor | None = None
    if task.name == "inpaint":
        if missing is None:
            hole = make_masks(torch.empty(1, 1, options.size, options.size), rng)
        else:
            hole = _crop_missing(missing, whole)
        seen = F.interpolate(hole, (alignment.size, alignment.size), mode="area") > LEAST_MISSING
        x = make_input(task, image, paired=seen)
    elif task.name == "super-resolution":
        x = shrink(image, factor=options.factor) if options.from_photo else image
    else:
        x = make_input(task, image)
    return _Input(alignment, x, media.to_pixels(show_input(task, x))[0], photo, hole)


def _binary(mask: np.ndarray) -> np.ndarray:
    """Return which pixels of a mask are above half of its type's range, or of 1, bool (H, W)."""
    return mask > np.iinfo(mask.dtype).max / 2 if mask.dtype.kind in "iu" else mask.astype(np.float32) > 0.5


def _crop_missing(missing: np.ndarray, alignment: Alignment) -> Tensor:
    """Return what is missing of a face, (1, 1, S, S), 0 or 1."""
    pixels = np.repeat((missing * np.uint8(255))[..., None], 3, 2)
    crop = faces.crop_face(pixels, alignment)[..., 0]
    return torch.from_numpy(crop > 255 * LEAST_MISSING)[None, None].float()


def _translate(
    one: _Input, task: Task, options: TranslateOptions, models: TranslationModels
) -> TranslatedFace:
    detail = models.detail if options.detail else None
    start = time.perf_counter()
    w_plus = mix_styles(
        models.generator,
        models.network(task.name, one.x),
        options.outputs,
        mask=LayerMask(options.mix) if options.mix else None,
        alpha=options.alpha,
        psi=options.psi,
        rng=torch.Generator().manual_seed(options.seed),
    )
    outputs = []
    for row in w_plus.split(1):
        image = render(*finish(detail, models.generator, Latent("w+", row))).clamp(-1, 1)
        painted = media.resize_pixels(media.to_pixels(image)[0], options.size)
        if one.hole is not None and options.composite and one.photo is not None:
            painted = _fill(one.photo, painted, one.hole)
        outputs.append(painted)
    seconds = time.perf_counter() - start
    return TranslatedFace(one.alignment, one.photo, one.shown, outputs, w_plus, seconds)


def _fill(photo: np.ndarray, painted: np.ndarray, hole: Tensor) -> np.ndarray:
    """Return the photo with its missing parts painted, all uint8 (S, S, 3) and (1, 1, S, S).

    Known pixels stay as they are.  Inside, the painting fades in from the colours of the known pixels nearby: what the
    photo holds where it is missing, a scratch or a blot, counts nowhere.
    """
    sigma = max(0.5, SOFT_EDGE * hole.shape[-1])
    known = media.to_image(photo)
    certain = 1 - F.max_pool2d(hole, 3, stride=1, padding=1)  # resampling mixes pixels with their neighbours
    weight = blur(certain, sigma)
    nearby = blur(known * certain, sigma) / weight.clamp_min(1e-6)
    share = torch.where(weight > 1e-3, (2 * blur(hole, sigma) - 1).clamp(0, 1), 1.0)
    inside = torch.lerp(nearby, media.to_image(painted), share)
    return media.to_pixels(torch.where(hole > 0, inside, known))[0]


def _find_owners(shape: Sequence[int], found: Sequence[_Input], mask: np.ndarray | None) -> np.ndarray:
    """Return which face paints each missing pixel of a photo, int (H, W); -1 for pixels that stay.

    A pixel that lies in several crops belongs to the one to whose middle it is nearer, measured by the crop's side.
    """
    missing = None if mask is None else _binary(mask)
    owners, nearest = np.full(shape, -1), np.ones(shape, np.float32)
    for number, one in enumerate(found):
        assert one.hole is not None
        size = one.hole.shape[-1]
        part, to_crop = _to_crop(one.alignment.resized(size), one.alignment.quad, shape)
        if not owners[part].size:
            continue
        height, width = owners[part].shape
        columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
        x, y = (line[0] * columns + line[1] * rows + line[2] for line in to_crop[:2])  # crop px, (h, w)
        radius = np.maximum(abs(2 * x / size - 1), abs(2 * y / size - 1))  # 1 on the crop's border
        if missing is None:
            row, column = (value.astype(int).clip(0, size - 1) for value in (y, x))
            hole = one.hole[0, 0].numpy()[row, column] > 0
        else:
            hole = missing[part]
        taken = hole & (radius < nearest[part])
        owners[part][taken], nearest[part][taken] = number, radius[taken]
    return owners


def _to_crop(
    alignment: Alignment, quad: np.ndarray, shape: Sequence[int]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return the rows and columns of a photo that a quad touches, and the matrix from there to a crop."""
    low = np.floor(quad.min(0)).clip(0).astype(int)
    high = np.minimum(np.ceil(quad.max(0)), [shape[1], shape[0]]).astype(int)
    shift = np.eye(3)
    shift[:2, 2] = low
    part = slice(low[1], max(low[1], high[1])), slice(low[0], max(low[0], high[0]))
    return part, alignment.photo_to_crop @ shift


def _fill_photo(
    picture: np.ndarray, owners: np.ndarray, found: Sequence[_Input], outputs: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the photo with its missing parts taken from the faces; every other pixel stays as it is."""
    result = picture.copy()
    for number, (one, painted) in enumerate(zip(found, outputs, strict=True)):
        part, to_crop = _to_crop(one.alignment.resized(len(painted)), one.alignment.quad, picture.shape)
        mine = owners[part] == number
        if mine.any():
            pixels = media.to_pixels(warp(media.to_image(painted), to_crop, mine.shape))[0]
            result[part][mine] = pixels[mine]
    return result


def compare_sheet(result: TranslateResult, size: int = 512) -> np.ndarray:
    """Return a sheet with one row per face: the photo where there is one, what the network saw, what came out."""
    rows, photo = [], result.faces[0].photo is not None
    for face in result.faces:
        first = [face.photo] if face.photo is not None else []
        row = [media.resize_pixels(one, size) for one in [*first, face.shown]]
        rows.append([*row, *(media.resize_pixels(one, size) for one in face.outputs)])
    count = len(result.faces[0].outputs)
    outputs = ["face"] if count == 1 else [f"face {number}" for number in range(1, count + 1)]
    labels = [*(["photo"] if photo else []), result.task.name, *outputs]
    return media.make_sheet(rows, column_labels=labels, cell_px=size)
