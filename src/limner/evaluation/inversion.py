"""Inversion: how close does every method bring the generator to held-out portraits and to real photos?"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import inversion, media
from limner.errors import DivergedError, LimnerError, OptionError
from limner.evaluation.data import Portraits, Track, crop_photo, untracked
from limner.evaluation.options import EvaluationOptions
from limner.evaluation.report import Checks, Picture, Row, Section, Table
from limner.evaluation.store import Part, Store, stamp
from limner.inversion import InversionOptions, PivotalOptions
from limner.inversion.options import SEARCHED
from limner.inversion.report import measure
from limner.nn import deltas
from limner.nn.identity import SAME_PERSON
from limner.pipeline import Models

BATCH = 5
SHOWN, CELL_PX = 8, 96
FIGURES = ("psnr", "ssim", "perceptual", "identity", "same_person", "recognised", "seconds")
ENCODER, HYBRID = "encoder", "hybrid"
SEARCHES = (*SEARCHED, "pivotal")
"""Methods that need no network besides the generator."""
# (better, worse, figure, what the literature says)
EXPECTED = (
    ("w", "z", "psnr", "w comes closer than z (Image2StyleGAN, StyleGAN2)"),
    ("w+", "w", "psnr", "w+ comes closer than w (Image2StyleGAN)"),
    ("pivotal", "w", "psnr", "tuning the generator around w comes closer than w alone (PTI)"),
    ("pivotal", "w+", "psnr", "tuning the generator comes closer than any code (PTI)"),
    ("w+", "noise", "psnr", "noise maps alone hold no face (Image2StyleGAN++)"),
    ("w+", "ii2s", "psnr", "staying near the mapping network's codes costs closeness (II2S)"),
    ("w+", ENCODER, "psnr", "a search comes closer than an encoder alone (pSp, ReStyle)"),
    (HYBRID, ENCODER, "psnr", "a search from the encoder's code improves on it (hybrid)"),
    (HYBRID, "w+", "perceptual", "with equal steps, starting from the encoder is better (hybrid)"),
    (ENCODER, "w+", "seconds", "an encoder is faster than a search"),
)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of inverting: a start, a method of the registry, steps; written ``[START-]METHOD[:STEPS]``."""

    name: str
    method: str
    start: str = ""
    steps: int | None = None


def parse_method(text: str) -> Method:
    """Read ``w+``, ``w+:500``, ``encoder-w+:100``.

    Raises:
        OptionError: a method that is not in `limner.inversion.METHODS`, or no number of steps.
    """
    match = re.fullmatch(r"(.+?)(?::(\d+))?", text)
    name, steps = (match[1], match[2]) if match else (text, None)
    start, method = "", name
    if name not in inversion.METHODS and "-" in name:
        start, method = name.split("-", 1)
    started = method != name
    if method not in inversion.METHODS or (started and start not in inversion.METHODS):
        raise OptionError(
            f"methods has {text!r}, expected [START-]METHOD[:STEPS] with {', '.join(inversion.METHODS)}"
        )
    return Method(text, method, start, int(steps) if steps else None)


def default_methods() -> list[str]:
    """Return every method that is built in, and pivotal tuning that starts from the encoder."""
    return [*inversion.METHODS, *([f"{ENCODER}-pivotal"] if ENCODER in inversion.METHODS else [])]


def evaluate_inversion(
    models: Models, options: EvaluationOptions, store: Store, *, track: Track = untracked
) -> Section:
    """Invert the first held-out portraits and the real photos by every method; arguments as `evaluate_generation`.

    A method that cannot run, because its weights are not there, stands in the table with the reason.
    """
    options = options.scaled()
    methods = [parse_method(text) for text in options.methods or default_methods()]
    resolution = models.generator.resolution
    renders = media.to_image(
        *Portraits(options.find("heads"), options.held_out, most=options.faces).pixels(resolution)
    )
    photos = [crop_photo(photo, resolution, models.detector) for photo in options.photos]
    images = torch.cat([renders, *(media.to_image(one) for one in photos)])
    count = len(renders)
    base = {
        "model": deltas.digest(models.generator),
        "trunk": models.trunk_name,
        "trunk_weights": deltas.digest(models.trunk),
        "identity": deltas.digest(models.embedder),
        "seed": options.seed,
    }
    found: dict[str, tuple[dict[str, Tensor], Tensor]] = {}
    skipped: dict[str, str] = {}
    for method in methods:
        try:
            found[method.name] = _run(method, images, models, options, base, store, track)
        except LimnerError as error:
            skipped[method.name] = " ".join(str(error).split()) or type(error).__name__
    mean_face = models.generator.synthesis(models.generator.broadcast(models.generator.w_avg[None]))
    bounds = {
        ("the portrait itself", "floor"): images,
        ("another portrait", "ceiling"): images.roll(1, 0),
        ("the mean face", "ceiling"): mean_face.clamp(-1, 1).cpu().expand_as(images),
    }
    bound_figures = {key: _compare(painted, images, models) for key, painted in bounds.items()}

    def rows(chosen: slice) -> list[Row]:
        mixed: list[Row] = []
        for name in [method.name for method in methods]:
            if name in skipped:
                mixed.append(Row(name, {}, "skipped", skipped[name]))
            else:
                mixed.append(Row(name, _means(found[name][0], chosen)))
        edges = [Row(name, _means(values, chosen), kind) for (name, kind), values in bound_figures.items()]
        return [edges[0], *mixed, *edges[1:]]

    on_renders, on_photos = rows(slice(0, count)), rows(slice(count, None))
    blocks: list[Any] = [Table(f"{count} held-out renders", FIGURES, on_renders)]
    if photos:
        figures = ("psnr", "ssim", "perceptual", "identity", "seconds")
        names = ", ".join(photo.stem for photo in options.photos)
        blocks.append(Table(f"Real photos ({names})", figures, on_photos))
    values = {row.name: row.values for row in on_renders if row.kind == "result"}
    checks = _check_order(values)
    if checks:
        blocks.append(Checks("Does the order agree with the literature?", checks))
    if found:
        blocks.append(Picture("inversion", _sheet(images, count, found), _CAPTION))
    data = {
        "faces": count,
        "photos": [photo.name for photo in options.photos],
        "renders": {row.name: dict(row.values) for row in on_renders if row.kind != "skipped"},
        "real_photos": {row.name: dict(row.values) for row in on_photos if row.kind != "skipped"}
        if photos
        else {},
        "skipped": skipped,
    }
    text = (
        f"The first {count} held-out portraits"
        + (f" and {len(photos)} real photos" if photos else "")
        + f", brought to the generator's {resolution} px. A method is a space that is searched, a network that answers at "
        f"once, or both (encoder-pivotal starts from the encoder's code); without a number behind it, a search takes "
        f"{options.steps} steps, and pivotal tuning as many again. Perceptual distances by {models.trunk_name}, which the "
        "searches also minimise: they flatter them; PSNR, SSIM and identity are the fairer judges."
    )
    return Section("inversion", "Inversion", text, blocks, data)


_CAPTION = (
    "Top row: the first held-out portraits, then the real photos. Below, what every method makes of them."
)


def _run(
    method: Method,
    images: Tensor,
    models: Models,
    options: EvaluationOptions,
    base: dict[str, Any],
    store: Store,
    track: Track,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the figures of every picture, name -> (N,), and what was painted, (N, 3, R, R)."""
    steps = method.steps or options.steps
    # Pivotal tuning tunes one generator for all pictures of a batch, so every picture gets its own.
    size = 1 if method.method == "pivotal" else BATCH
    values: list[dict[str, list[float]]] = []
    painted = []
    for part in track(images.split(size), method.name):
        inputs = base | {"method": dataclasses.asdict(method), "steps": steps, "image": stamp(part)}
        inputs["encoder"] = encoder_stamp(method, models)
        made = store.part(
            f"inversion-{method.name.replace(':', '-')}",
            inputs,
            lambda part=part: _invert(method, part, models, steps, options.seed),
        )
        values.append(made.values)
        painted.append(made.tensors["painted"].float() / 127.5 - 1)
    image = torch.cat(painted)
    figures = _compare(image, images, models)
    figures["seconds"] = torch.tensor([one for value in values for one in value["seconds"]])
    return figures, image


def encoder_stamp(method: Method, models: Models) -> str:
    """Return a digest of the encoder, if the method may use it."""
    alone = {method.method, method.start or method.method} <= set(SEARCHES)
    encoder = None if alone else models.encoder_for(method.start or method.method)
    return "" if encoder is None else deltas.digest(encoder)


def _invert(method: Method, image: Tensor, models: Models, steps: int, seed: int) -> Part:
    """Invert a batch, from another method's code if one is named."""

    def networks(name: str) -> dict[str, Any]:
        return {} if name in SEARCHES else {"encoder": models.encoder_for(name)}

    image = image.to(models.device)
    begun = time.perf_counter()
    init = None
    if method.start:
        first = InversionOptions(method=method.start, steps=steps, seed=seed)
        begin = inversion.invert(
            models.generator, image, first, perceptual=models.make_distance(), **networks(method.start)
        )
        init = begin.latent
    search = InversionOptions(
        method=method.method, steps=steps, seed=seed, init="mean" if init is None else "given"
    )
    space = "w" if init is None else "w+"
    found = inversion.invert(
        models.generator,
        image,
        search,
        perceptual=models.make_distance(),
        init=init,
        pivotal=PivotalOptions(pivot=space, tune_steps=steps) if method.method == "pivotal" else None,
        **networks(method.method),
    )
    seconds = (time.perf_counter() - begun) / len(image)
    if not found.image.isfinite().all():
        raise DivergedError(f"{method.name} painted undefined values")
    pixels = found.image.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return Part({"seconds": [seconds] * len(image)}, {"painted": pixels})


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


def _check_order(values: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """Return the claims of the literature about methods that were measured, and whether they hold."""
    checks = []
    for better, worse, figure, claim in EXPECTED:
        if better not in values or worse not in values:
            continue
        a, b = values[better][figure], values[worse][figure]
        holds = a > b if figure == "psnr" else a < b
        checks.append((claim, holds, f"{better} {a:.3f}, {worse} {b:.3f} ({figure})"))
    return checks


def _sheet(images: Tensor, count: int, found: dict[str, tuple[dict[str, Tensor], Tensor]]) -> np.ndarray:
    chosen = [*range(min(SHOWN, count)), *range(count, len(images))]
    rows: list[Sequence[np.ndarray]] = [media.to_pixels(images[chosen])]
    rows += [media.to_pixels(painted[chosen]) for _, painted in found.values()]
    return media.make_sheet(rows, ["portrait", *found], cell_px=CELL_PX)
