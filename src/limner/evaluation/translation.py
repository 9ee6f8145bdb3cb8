"""Translation: is each face that comes out nearer to its own true face than to everybody else's?"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner import losses, media
from limner.errors import OptionError
from limner.evaluation.data import Portraits, Track, untracked
from limner.evaluation.inversion import recognised
from limner.evaluation.options import EvaluationOptions
from limner.evaluation.report import Checks, Picture, Row, Section, Table
from limner.evaluation.store import Part, Store, stamp
from limner.inversion import TrunkDistance
from limner.inversion.report import measure
from limner.latent import Latent, render
from limner.nn import deltas
from limner.pipeline.models import Models
from limner.pipeline.translation import TranslationModels
from limner.translation.classes import CELEBA, SCHEMES
from limner.translation.labels import paint, planes, read_labels, square
from limner.translation.networks import input_side, scheme_of
from limner.translation.tasks import TASKS, Task, make_input, show_input

BATCH = 10
SHOWN, CELL_PX = 8, 96
LEAST_PX = 128
AIM = 0.8
FIGURES = ("nearest_truth", "mean_rank", "perceptual", "psnr", "ssim", "identity", "recognised", "seconds")
PENCIL = "pencil"


@dataclass(frozen=True, eq=False)
class Case:
    """One way of asking for the true faces.

    Attributes:
        name: of the task, with what it was made of where that is not the usual.
        task: what the network does.
        x: inputs, (N, C, S, S).
        shown: the same as pictures, (N, 3, S, S).
        truth: folder of the true faces.
    """

    name: str
    task: Task
    x: Tensor
    shown: Tensor
    truth: str


def evaluate_translation(
    models: Models,
    translation: TranslationModels,
    options: EvaluationOptions,
    store: Store,
    *,
    track: Track = untracked,
) -> Section:
    """Translate held-out scenes by every task of a model and compare the faces with the true ones.

    Args:
        models: with the generator of ``translation``; its trunk and embedder measure, its encoder sets the floor.
        translation: what is measured.
        options: ``pairs``, ``held_out_pairs``, ``translated`` and ``seed`` count.
        store: keeps what was painted.
        track: shows progress.

    Raises:
        OptionError: the pictures are not there, or not in every folder.
    """
    options = options.scaled()
    pairs = options.find("pairs")
    resolution = models.generator.resolution
    names = Portraits(pairs / "photo", options.held_out_pairs, most=options.translated).names
    truths = {
        folder: read_folder(pairs, folder, names, resolution)
        for folder in dict.fromkeys(TASKS[name].truth for name in translation.network.tasks)
    }
    cases = make_cases(pairs, names, translation, options.seed)
    network = translation.network
    assert isinstance(network, nn.Module)
    base = {
        "generator": deltas.digest(models.generator),
        "network": deltas.digest(network),
        "trunk": [models.trunk_name, deltas.digest(models.trunk)],
        "identity": deltas.digest(models.embedder),
    }
    rows, data, blocks = [], {}, []
    for case in cases:
        truth = truths[case.truth]
        part = store.part(
            f"translation-{case.task.name}",
            base | {"task": case.task.name, "x": stamp(case.x), "truth": stamp(truth)},
            lambda case=case, truth=truth: _measured(paint_case(case, translation, track), truth, models),
        )
        rows.append(Row(case.name, part.values))
        blocks.append(_picture(case, _image(part), truth))
    for folder, truth in truths.items():
        rows += _bounds(folder, truth, models, store, base, several=len(truths) > 1)
    for row in rows:
        data[row.name] = dict(row.values) | {"kind": row.kind}
    checks = [
        (
            f"{row.name}: nearer to their own true face than to the others' in at least {AIM:.0%}",
            row.values["nearest_truth"] >= AIM,
            f"{row.values['nearest_truth']:.0%}, mean rank {row.values['mean_rank']:.1f} of {len(names)}",
        )
        for row in rows
        if row.kind == "result"
    ]
    text = (
        f"{len(names)} held-out scenes, painted by {translation.name or 'the translator'} at {resolution} px: every result is "
        f"compared with all {len(names)} true faces by {models.trunk_name}. Sketches are made of the true photo by the "
        "built-in filter, or are the pencil drawings of the data set; small faces are 4, 8 or 16 times smaller; missing parts "
        "are rectangles and strokes, and results are judged as the network paints them, without the known pixels put back. "
        "The floor is what the encoder makes of the true photo itself. The mean face, the same for everybody, is what chance "
        "gives."
    )
    table = Table(f"{len(names)} held-out scenes", FIGURES, rows, rivals=False)
    found = [table, Checks("Does every picture find its face?", checks), *blocks]
    return Section("translation", "Translation", text, found, {"scenes": len(names), "cases": data})


def read_folder(pairs: Path, folder: str, names: Sequence[str], side: int) -> Tensor:
    """Return the pictures of a folder that belong to scenes, (N, 3, side, side), [-1, 1].

    Raises:
        OptionError: there is no such folder, or a scene is missing in it.
    """
    if not (pairs / folder).is_dir():
        raise OptionError(f"pairs: {pairs} has no folder {folder}, which this task is measured with")
    found = Portraits(pairs / folder)
    stems = {Path(one).stem: one for one in found.names}
    missing = [Path(one).stem for one in names if Path(one).stem not in stems]
    if missing:
        raise OptionError(f"pairs: {pairs / folder} lacks {len(missing)} of the scenes, such as {missing[0]}")
    found.names = [stems[Path(one).stem] for one in names]
    return media.to_image(*found.pixels(side))


def make_cases(pairs: Path, names: Sequence[str], translation: TranslationModels, seed: int) -> list[Case]:
    """Return the inputs of every task of a model."""
    network = translation.network
    side = input_side(network, translation.generator)
    photo = read_folder(pairs, "photo", names, side)
    cases = []
    for name in network.tasks:
        task = TASKS[name]
        if name == "labels":
            cases.append(_label_case(pairs, names, task, scheme_of(network) is CELEBA, side))
            continue
        sources = [None if task.source == "photo" and task.truth == "photo" else task.source]
        if name == "sketch" and (pairs / PENCIL).is_dir():
            sources.append(PENCIL)
        for source in sources:
            paired = None if source is None else read_folder(pairs, source, names, side)
            rng = (
                torch.Generator().manual_seed(seed) if task.name in ("super-resolution", "inpaint") else None
            )
            x = make_input(task, photo, rng, paired=paired)
            full = f"{name}, from pencil drawings" if source == PENCIL else name
            cases.append(Case(full, task, x, show_input(task, x), task.truth))
    return cases


def _label_case(pairs: Path, names: Sequence[str], task: Task, celeba: bool, side: int) -> Case:
    to = "celeba" if celeba else "limner"
    maps = []
    for name in names:
        file = pairs / task.source / f"{Path(name).stem}.png"
        if not file.is_file():
            raise OptionError(f"pairs: there is no label map {file}")
        maps.append(square(read_labels(file, to=to), side))
    classes = SCHEMES[to]
    x = torch.cat([planes(one, classes) for one in maps])
    return Case(task.name, task, x, media.to_image(*(paint(one, classes) for one in maps)), task.truth)


@torch.no_grad()
def paint_case(case: Case, translation: TranslationModels, track: Track = untracked) -> Part:
    """Translate the inputs of a case: ``painted`` uint8 (N, 3, R, R), and seconds per face."""
    device = translation.generator.w_avg.device
    found, begun = [], time.perf_counter()
    for x in track(case.x.split(BATCH), case.name):
        w_plus = translation.network(case.task.name, x.to(device))
        image = render(translation.generator, Latent("w+", w_plus)).clamp(-1, 1)
        found.append(image.add(1).mul(127.5).round().to(torch.uint8).cpu())
    return Part({"seconds": (time.perf_counter() - begun) / len(case.x)}, {"painted": torch.cat(found)})


@torch.no_grad()
def distances(images: Tensor, truths: Tensor, distance: TrunkDistance) -> Tensor:
    """Return the perceptual distance of every image to every true face, (N, M)."""
    sides = [max(LEAST_PX, min(distance.most_px, one.shape[2])) for one in (images, truths)]
    ours, theirs = (
        [
            torch.cat(part)
            for part in zip(
                *(distance.trunk(media.resize_image(x, side, "bilinear")) for x in one.split(BATCH)),
                strict=True,
            )
        ]
        for one, side in zip((images, truths), sides, strict=True)
    )
    compare = distance.compare
    if isinstance(compare, functools.partial) and compare.func is losses.maps_distance:
        weights = compare.keywords.get("weights")
        vectors = [losses.maps_vectors(maps, weights=weights) for maps in (ours, theirs)]
        return losses.squared_distances(*vectors).cpu()
    rows = [
        compare([x[i : i + 1].expand_as(y) for x, y in zip(ours, theirs, strict=True)], theirs)
        for i in range(len(images))
    ]
    return torch.stack(rows).cpu()


def ranks(distance: Tensor) -> Tensor:
    """Return the place of every image's own truth among all truths, 1 being the nearest; (N, N) -> (N,)."""
    return 1 + (distance < distance.diag()[:, None]).sum(1)


@torch.no_grad()
def compare(painted: Tensor, truth: Tensor, models: Models) -> dict[str, float]:
    """Return the figures of painted faces (N, 3, R, R) against the true ones."""
    device = models.device
    far = distances(painted.to(device), truth.to(device), models.make_distance())
    place = ranks(far)
    reports = measure(
        painted,
        truth,
        method="",
        perceptual=None,
        identity=None,
        steps=[0] * len(truth),
        seconds=0.0,
    )
    persons, wanted = (
        torch.cat([models.embedder(part.to(device)).cpu() for part in one.split(BATCH)])
        for one in (painted, truth)
    )
    likeness = [one.ssim for one in reports if one.ssim is not None]
    return {
        "nearest_truth": float((place == 1).float().mean()),
        "mean_rank": float(place.float().mean()),
        "perceptual": float(far.diag().mean()),
        "psnr": sum(one.psnr for one in reports) / len(reports),
        "ssim": sum(likeness) / len(likeness) if likeness else float("nan"),
        "identity": float((persons - wanted).square().sum(1).mean()),
        "recognised": float(recognised(persons, wanted).mean()),
    }


def _image(part: Part) -> Tensor:
    return part.tensors["painted"].float() / 127.5 - 1


def _measured(part: Part, truth: Tensor, models: Models) -> Part:
    """Return a part with the figures of what it painted."""
    return Part(part.values | compare(_image(part), truth, models), part.tensors)


def _bounds(
    folder: str, truth: Tensor, models: Models, store: Store, base: dict[str, Any], *, several: bool
) -> list[Row]:
    """Return the floor, the true photo inverted by the encoder, and what chance gives, the mean face."""
    rows, what = [], f" ({folder})" if several else ""
    encoder = models.compact
    if encoder is not None:
        inputs = base | {"encoder": deltas.digest(encoder), "truth": stamp(truth)}
        part = store.part(
            "translation-floor", inputs, lambda: _measured(_invert(truth, models), truth, models)
        )
        rows.append(Row(f"the true photo, inverted{what}", part.values, "floor"))
    generator = models.generator
    with torch.no_grad():
        mean = generator.synthesis(generator.broadcast(generator.w_avg[None])).clamp(-1, 1).cpu()
    rows.append(Row(f"the mean face{what}", compare(mean.expand_as(truth), truth, models), "ceiling"))
    return rows


@torch.no_grad()
def _invert(truth: Tensor, models: Models) -> Part:
    assert models.compact is not None
    found = []
    for part in truth.split(BATCH):
        w_plus = models.compact.encode(models.generator, part.to(models.device))[-1]
        image = render(models.generator, Latent("w+", w_plus)).clamp(-1, 1)
        found.append(image.add(1).mul(127.5).round().to(torch.uint8).cpu())
    return Part({}, {"painted": torch.cat(found)})


def _picture(case: Case, painted: Tensor, truth: Tensor) -> Picture:
    rows = [media.to_pixels(one[:SHOWN]) for one in (case.shown, painted, truth)]
    sheet = media.make_sheet(rows, ["input", "result", "truth"], cell_px=CELL_PX)
    slug = case.name.replace(", from ", "-").replace(" ", "-")
    caption = (
        f"{case.name}: the first {len(rows[0])} scenes. What the network sees, what it paints, the true face."
    )
    return Picture(f"translation-{slug}", sheet, caption)
