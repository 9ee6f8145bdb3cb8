"""Translate pictures to faces: find what is to be translated, make the network's input, paint, put back."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
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
from limner.nn.encoders import Encoder
from limner.nn.stylegan2 import Generator
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
from limner.translation.tasks import Task, blur, make_input, make_masks, shrink

TRANSLATOR = "translator"
"""Name of the bundled translator."""
SEEN_WHOLE_PX = 128
"""Super-resolution takes pictures with a shorter side below this as one face; nothing is looked for in them."""
SOFT_EDGE = 0.01
"""Of the seam inside missing parts, as a share of the face's side."""
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


@dataclasses.dataclass(frozen=True, eq=False)
class TranslatedFace:
    """One translated face.

    Attributes:
        alignment: where it lies in the input.
        photo: the face as it was, uint8 (S, S, 3); None where the input shows no photo.
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
    """

    task: Task
    faces: list[TranslatedFace]
    pasted: list[np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class _Input:
    alignment: Alignment
    x: Tensor  # (1, C, S, S)
    shown: np.ndarray
    photo: np.ndarray | None = None
    mask: Tensor | None = None  # (1, 1, S, S)


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
    pasted = []
    if options.paste:
        for output in range(options.outputs):
            pasted.append(_paste(picture, found, [face.outputs[output] for face in results], task, options))
    return TranslateResult(task=task, faces=results, pasted=pasted)


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
    if options.mix:
        LayerMask(options.mix)


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
        labels = label_maps.square(picture, side)
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
    looks = options.from_photo or sees_photo(network, task)
    if task.name == "super-resolution" and not options.from_photo:
        looks = min(picture.shape[:2]) >= SEEN_WHOLE_PX
    align = dataclasses.replace(
        options, size=side, aligned=options.aligned or not (looks or options.landmarks)
    )
    alignments = faces.find_alignments(picture, align, options, detector=models.detector, where=where)
    rng = torch.Generator().manual_seed(options.seed)
    return [
        _make_input(picture, alignment, task, options, mask, rng, device, looks=looks)
        for alignment in alignments
    ]


def _make_input(
    picture: np.ndarray,
    alignment: Alignment,
    task: Task,
    options: TranslateOptions,
    mask: np.ndarray | None,
    rng: torch.Generator,
    device: torch.device,
    *,
    looks: bool,
) -> _Input:
    crop = faces.crop_face(picture, alignment)
    photo = media.to_image(crop).to(device)
    hole: Tensor | None = None
    if task.name == "inpaint":
        hole = make_masks(photo, rng) if mask is None else _crop_mask(mask, alignment).to(photo)
        x = make_input(task, photo, paired=hole)
    elif task.name == "super-resolution":
        x = shrink(photo, factor=options.factor) if options.from_photo else photo
    else:
        x = make_input(task, photo)
    seen = x[:, :3] if len(x[0]) >= 3 else (2 * x - 1).expand(-1, 3, -1, -1)
    return _Input(alignment, x, media.to_pixels(seen)[0], crop if looks else None, hole)


def _crop_mask(mask: np.ndarray, alignment: Alignment) -> Tensor:
    """Return the mask of a face, (1, 1, S, S), 0 or 1."""
    values = mask.astype(np.float32) / (np.iinfo(mask.dtype).max if mask.dtype.kind in "iu" else 1)
    pixels = np.repeat(((values > 0.5) * 255).astype(np.uint8)[..., None], 3, 2)
    return (media.to_image(faces.crop_face(pixels, alignment))[:, :1] > 0).float()


def _translate(
    one: _Input, task: Task, options: TranslateOptions, models: TranslationModels
) -> TranslatedFace:
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
        image = render(models.generator, Latent("w+", row)).clamp(-1, 1)
        painted = media.resize_pixels(media.to_pixels(image)[0], options.size)
        if one.mask is not None and options.composite and one.photo is not None:
            painted = _fill(one.photo, painted, one.mask)
        outputs.append(painted)
    seconds = time.perf_counter() - start
    return TranslatedFace(one.alignment, one.photo, one.shown, outputs, w_plus, seconds)


def soft_inside(mask: Tensor) -> Tensor:
    """Soften the edge of a mask (1, 1, H, W) on its inner side: 0 stays 0."""
    sigma = max(0.5, SOFT_EDGE * mask.shape[-1])
    return (2 * blur(mask, sigma) - 1).clamp(0, 1) * mask


def _fill(photo: np.ndarray, painted: np.ndarray, mask: Tensor) -> np.ndarray:
    """Return the photo with its missing parts painted; both uint8, brought to the painting's size."""
    size = painted.shape[:2]
    known = media.to_image(media.resize_pixels(photo, size))
    hole = F.interpolate(mask.cpu(), size, mode="nearest")
    return media.to_pixels(torch.lerp(known, media.to_image(painted), soft_inside(hole)))[0]


def _paste(
    picture: np.ndarray, found: list[_Input], outputs: list[np.ndarray], task: Task, options: TranslateOptions
) -> np.ndarray:
    """Put one face per input back into the photo; of inpainted ones the missing parts alone."""
    if task.name != "inpaint" or not options.composite:
        how = PasteOptions(mask=options.paste_shape, color_match=options.color_match)
        return faces.paste_faces(picture, outputs, [one.alignment for one in found], how)
    result = media.to_image(picture)
    for one, painted in zip(found, outputs, strict=True):
        assert one.mask is not None
        to_crop = np.linalg.inv(one.alignment.resized(len(painted)).crop_to_photo)
        to_mask = np.linalg.inv(one.alignment.crop_to_photo)
        border = F.pad(one.mask.cpu()[:, :, 1:-1, 1:-1], (1, 1, 1, 1))  # beyond the crop nothing is missing
        hole = warp(border, to_mask, picture.shape[:2]).clamp(0, 1)
        hole = hole * (hole > 0.02)
        result = torch.lerp(result, warp(media.to_image(painted), to_crop, picture.shape[:2]), hole)
    return media.to_pixels(result)[0]


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
