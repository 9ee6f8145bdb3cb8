"""Inversion: how close does every method bring the generator to held-out portraits and to real photos?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import media
from limner.errors import LimnerError
from limner.evaluation.data import Portraits, Track, crop_photo, untracked
from limner.evaluation.inversion_methods import check_order, chosen_methods, explain_order
from limner.evaluation.inversion_runs import BATCH, Inverter
from limner.evaluation.options import EvaluationOptions
from limner.evaluation.report import Checks, Picture, Row, Section, Table
from limner.evaluation.store import Part, Store
from limner.inversion.report import measure
from limner.nn.identity import SAME_PERSON
from limner.pipeline import Models

SHOWN, CELL_PX = 6, 96
FIGURES = ("psnr", "ssim", "perceptual", "identity", "same_person", "recognised", "seconds")
Found = dict[str, tuple[dict[str, Tensor], Tensor]]
"""Method -> figure -> (N,), and what was painted, (N, 3, R, R)."""


def evaluate_inversion(
    models: Models, options: EvaluationOptions, store: Store, *, track: Track = untracked
) -> Section:
    """Invert the first held-out portraits and the real photos by every method; arguments as `evaluate_generation`.

    Rows stand in the order in which the literature expects them, the closest last; below the table stands which
    neighbours differ from it, and why a method is not there.
    """
    options = options.scaled()
    methods = chosen_methods(options.methods)
    resolution = models.generator.resolution
    renders = media.to_image(
        *Portraits(options.find("heads"), options.held_out, most=options.faces).pixels(resolution)
    )
    photos = [crop_photo(photo, resolution, models.detector) for photo in options.photos]
    images = torch.cat([renders, *(media.to_image(one) for one in photos)])
    count = len(renders)
    inverter = Inverter(images, models, store, steps=options.steps, seed=options.seed, track=track)
    found: Found = {}
    skipped: dict[str, str] = {}
    for method in methods:
        try:
            found[method.name] = _measure(inverter.run(method), images, models)
        except LimnerError as error:
            skipped[method.name] = " ".join(str(error).split()) or type(error).__name__
    mean_face = models.generator.synthesis(models.generator.broadcast(models.generator.w_avg[None]))
    bounds = {
        ("the portrait itself", "floor"): images,
        ("another portrait", "ceiling"): images.roll(1, 0),
        ("the mean face", "ceiling"): mean_face.clamp(-1, 1).cpu().expand_as(images),
    }
    bound_figures = {key: _compare(painted, images, models) for key, painted in bounds.items()}

    def table(title: str, figures: Sequence[str], chosen: slice, absent: Sequence[str] = ()) -> Table:
        """Return the rows of some pictures, and below them which neighbours are not as expected."""
        rows = [Row(name, _means(values, chosen)) for name, (values, _) in found.items()]
        edges = [Row(name, _means(values, chosen), kind) for (name, kind), values in bound_figures.items()]
        some = {
            name: {key: one[chosen] for key, one in values.items()} for name, (values, _) in found.items()
        }
        notes = [*explain_order(methods, some, steps=options.steps), *absent]
        return Table(title, figures, [edges[0], *rows, *edges[1:]], note="\n".join(notes))

    absent = [f"{name} is not in the table: {reason}." for name, reason in skipped.items()]
    on_renders = table(f"{count} held-out renders", FIGURES, slice(0, count), absent)
    blocks: list[Any] = [on_renders]
    on_photos = None
    if photos:
        figures = ("psnr", "ssim", "perceptual", "identity", "seconds")
        names = ", ".join(photo.stem for photo in options.photos)
        on_photos = table(f"Real photos ({names})", figures, slice(count, None))
        blocks.append(on_photos)
    checks = check_order({row.name: row.values for row in on_renders.rows if row.kind == "result"})
    if checks:
        blocks.append(Checks("Does the order agree with the literature?", checks))
    if found:
        blocks.append(Picture("inversion", _sheet(images, count, found), _CAPTION))
    data = {
        "faces": count,
        "photos": [photo.name for photo in options.photos],
        "renders": {row.name: dict(row.values) for row in on_renders.rows},
        "real_photos": {row.name: dict(row.values) for row in on_photos.rows} if on_photos else {},
        "notes": {one.title: one.note.splitlines() for one in (on_renders, on_photos) if one},
        "skipped": skipped,
    }
    text = (
        f"The first {count} held-out portraits"
        + (f" and {len(photos)} real photos" if photos else "")
        + f", brought to the generator's {resolution} px. A method is a space that is searched, a network that answers at "
        f"once, or both (encoder-pivotal starts from the encoder's code); rows stand in the order in which the literature "
        "expects them, the closest last. Without a number behind it, a search takes "
        f"{options.steps} steps, and pivotal tuning and the noise maps of image2stylegan++ as many again. Seconds are per "
        f"picture in batches of {BATCH}; pivotal tuning takes one at a time. Perceptual distances by {models.trunk_name}, which the "
        "searches also minimise: they flatter them; PSNR, SSIM and identity are the fairer judges."
    )
    return Section("inversion", "Inversion", text, blocks, data)


_CAPTION = (
    "Top row: the first held-out portraits, then the real photos. Below, what every method makes of them."
)


def _measure(parts: Sequence[Part], images: Tensor, models: Models) -> tuple[dict[str, Tensor], Tensor]:
    """Return the figures of every picture, name -> (N,), and what was painted, (N, 3, R, R)."""
    painted = torch.cat([part.tensors["painted"] for part in parts]).float() / 127.5 - 1
    figures = _compare(painted, images, models)
    figures["seconds"] = torch.tensor([part.values["seconds"] for part in parts])
    return figures, painted


@torch.no_grad()
def _compare(painted: Tensor, images: Tensor, models: Models) -> dict[str, Tensor]:
    """Return figure -> (N,); which input a result is recognised as is decided among all of them."""
    rows: dict[str, list[float]] = {name: [] for name in ("psnr", "ssim", "perceptual", "identity")}
    for a, b in zip(painted.split(BATCH), images.split(BATCH), strict=True):
        a, b = a.to(models.device).contiguous(), b.to(models.device)
        reports = measure(
            a,
            b,
            method="",
            perceptual=models.make_distance(),
            identity=models.identity_distance,
            steps=[0] * len(a),
            seconds=0.0,
        )
        for name in rows:
            rows[name] += [float("nan") if (v := getattr(one, name)) is None else v for one in reports]
    figures = {name: torch.tensor(values) for name, values in rows.items()}
    figures["same_person"] = (figures["identity"] < SAME_PERSON).float()
    figures["recognised"] = recognised(_persons(painted, models), _persons(images, models))
    return figures


@torch.no_grad()
def _persons(images: Tensor, models: Models) -> Tensor:
    return torch.cat([models.embedder(part.to(models.device)).cpu() for part in images.split(BATCH)])


def recognised(results: Tensor, inputs: Tensor) -> Tensor:
    """Return 1 for every result that is nearest to its own input, else 0; two (N, D) -> (N,)."""
    return (torch.cdist(results.double(), inputs.double()).argmin(1) == torch.arange(len(inputs))).float()


def _means(figures: dict[str, Tensor], chosen: slice) -> dict[str, float]:
    return {name: float(values[chosen].mean()) for name, values in figures.items() if len(values[chosen])}


def _sheet(images: Tensor, count: int, found: Found) -> np.ndarray:
    chosen = [*range(min(SHOWN, count)), *range(count, len(images))]
    rows: list[Sequence[np.ndarray]] = [media.to_pixels(images[chosen])]
    rows += [media.to_pixels(painted[chosen]) for _, painted in found.values()]
    return media.make_sheet(rows, ["portrait", *found], cell_px=CELL_PX)
