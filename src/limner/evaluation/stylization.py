"""Stylisation: do style and person both arrive?  Measured on scenes of which the true render in the look exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import media
from limner.errors import OptionError
from limner.evaluation.comparisons import compare_combination, compare_references, mean_figures
from limner.evaluation.data import Portraits, Track, untracked
from limner.evaluation.options import EvaluationOptions
from limner.evaluation.report import Chart, Checks, Picture, Row, Section, Table
from limner.evaluation.restyling import CELL_PX, PHOTO, Restyler, make_base, unpack_image
from limner.evaluation.scale import DUAL, LEARNED, Contender, Scale, find_contenders
from limner.evaluation.store import Store
from limner.options import to_mapping
from limner.pipeline import Models, StylizeOptions
from limner.stylization.blend_style import METHOD as BLEND

FIGURES = ("to_truth", "gram_truth", "identity_kept", "recognised", "right_style", "apart")
PER_STYLE = (*FIGURES, "learn_seconds", "seconds")
METHODS = {LEARNED: "JoJoGAN", BLEND: "blend", DUAL: "DualStyleGAN"}
SHOWN = 6


def evaluate_stylization(
    models: Models,
    options: EvaluationOptions,
    store: Store,
    *,
    how: StylizeOptions | None = None,
    track: Track = untracked,
) -> Section:
    """Restyle the first held-out scenes in every style; arguments as `evaluate_generation`.

    Args:
        how: how a photo is restyled; None for the defaults of ``limner stylize``.
    """
    options = options.scaled()
    how = _way(how or StylizeOptions(), options)
    pairs, resolution = options.find("pairs"), models.generator.resolution
    scenes = Portraits(pairs / PHOTO, options.held_out_pairs, most=options.scenes)
    photos = scenes.pixels(resolution)
    contenders, skipped = find_contenders(models, options, scenes, pairs)
    if sum(one.reference is not None for one in contenders) < 2:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise OptionError(
            f"{len(contenders)} style(s) can be compared, at least 2 with a picture are needed"
            + f" ({reasons})" * bool(reasons)
        )
    work = Restyler(models, how, store, make_base(models, how), track)
    embedded = [work.embed(pixels) for pixels in track(photos, "embedding")]
    strengths = sorted({*options.strengths, how.strength})
    outputs, seconds = work.restyle_all(contenders, photos, embedded, strengths)
    whole = torch.cat([unpack_image(part.tensors["image"]) for part in embedded])
    scale = Scale(models, photos, contenders)
    embedding_s = sum(part.values["seconds"] for part in embedded) / len(embedded)
    curves = {
        one.name: {0.0: scale.figures(whole, one)}
        | {strength: scale.figures(image, one) for strength, image in outputs[one.name].items() if strength}
        for one in contenders
    }
    per_style = [
        Row(one.name, _style_figures(one, curves, how.strength, embedding_s + seconds[one.name]))
        for one in contenders
    ]
    summary = _summary(scale, outputs, whole, how.strength)
    values = {row.name: dict(row.values) for row in summary}
    combined, combination = compare_combination(work, scale, photos, contenders, options)
    learned, few = compare_references(work, scale, photos, embedded, options)
    blocks: list[Any] = [
        Table("All styles together", FIGURES, summary, note=_CHEATS, rivals=False),
        _method_table(contenders, per_style, skipped, how.strength),
        Checks("Goals", _goals(values)),
        *combined[:1],
        *learned[:1],
        *_charts(curves),
        Picture("styles", _sheet(photos, outputs, contenders, how.strength), _CAPTION),
        Picture("strengths", _strength_sheet(photos, whole, outputs, strengths), _STRENGTH_CAPTION),
        *combined[1:],
        *learned[1:],
        *work.photo_sheet(options.photos, contenders),
    ]
    text = _TEXT.format(
        count=len(photos), inverter=how.inverter, steps=how.invert_steps, strength=f"{how.strength:g}"
    )
    data = {
        "scenes": len(photos),
        "how": to_mapping(how),
        "summary": values,
        "styles": {
            row.name: dict(row.values) | {"method": one.method}
            for one, row in zip(contenders, per_style, strict=True)
        },
        "strengths": {
            name: {f"{at:g}": found for at, found in curve.items()} for name, curve in curves.items()
        },
        "combination": combination,
        "references": few,
        "skipped": skipped,
    }
    return Section("stylization", "Stylisation", text, blocks, data)


def _way(how: StylizeOptions, options: EvaluationOptions) -> StylizeOptions:
    """Return how photos are restyled, as far as the options of evaluation decide it."""
    how = dataclasses.replace(how, aligned=True, seed=options.seed)
    if options.inverter:
        how = dataclasses.replace(how, inverter=options.inverter)
    if options.quick:
        how = dataclasses.replace(how, invert_steps=min(how.invert_steps, options.steps))
    return how


def _method_table(
    contenders: Sequence[Contender], rows: Sequence[Row], skipped: Mapping[str, str], strength: float
) -> Table:
    labelled = [
        Row(f"{one.name} ({METHODS.get(one.method, one.method)})", row.values)
        for one, row in zip(contenders, rows, strict=True)
    ]
    unmeasured = [Row(name, {}, "skipped", why) for name, why in skipped.items()]
    title = f"Every style and method, strength {strength:g}"
    return Table(title, PER_STYLE, [*labelled, *unmeasured], note=_METHODS, rivals=False)


_TEXT = (
    "The first {count} held-out scenes, each rendered as a photo and in every look. The photo is embedded ({inverter}; "
    "{steps} steps, if it searches), restyled at strength {strength} and compared with the true render of the same scene; "
    "bronze, sanguine, ink and poster are renders of another look in other colours, as their style pictures are. "
    "Not every look keeps the photo's geometry: toon exaggerates it on purpose."
)
_STRENGTH_CAPTION = "One scene: as a photo, as embedded (strength 0), and at growing strength."
_CAPTION = "Every row a scene: the photo, then per style the result and, right of it, the true render (if there is one)."
_CHEATS = (
    "Means over the styles that were learned from a picture. A method that leaves the photo alone keeps the person and "
    "fails on style; one that pastes its reference has the style and fails on the person. Both stand here as ceilings; what "
    "passes must beat both."
)
_METHODS = (
    "A blend counts as right where the reference of the look that its child was trained on is nearest, or, among one more, "
    "a picture of its child's own; so does a DualStyleGAN by the former, which is shown in the first of its styles. Seconds to learn are those noted in the style's file, on the "
    "machine that learned it; how long a child or a DualStyleGAN was trained stands in its card. Faces are painted as users "
    "get them; what layers above the generator's resolution finished is averaged to that resolution."
)


def _style_figures(
    one: Contender, curves: Mapping[str, Mapping[float, Mapping[str, float]]], strength: float, seconds: float
) -> dict[str, float]:
    values = {**curves[one.name][strength], "seconds": seconds}
    return values if one.learn_seconds is None else values | {"learn_seconds": one.learn_seconds}


def _summary(
    scale: Scale, outputs: Mapping[str, Mapping[float, Tensor]], whole: Tensor, strength: float
) -> list[Row]:
    """Return means over styles of results, floor and cheats."""

    def mean(images_of: Any, which: Sequence[Contender]) -> dict[str, float]:
        return mean_figures([scale.figures(images_of(one), one) for one in which])

    everyone = [one for one in scale.contenders if one.reference is not None]
    known = [one for one in everyone if one.truth is not None]
    photos = scale.photos
    rows = []
    if known:
        rows.append(Row("the true render", mean(lambda one: one.truth, known), "floor"))
    rows.append(Row("restyled", mean(lambda one: outputs[one.name][strength], everyone)))
    rows.append(Row("embedded, no style", mean(lambda one: whole, everyone), "ceiling"))
    if known:
        rows.append(
            Row("true render of another scene", mean(lambda one: one.truth.roll(1, 0), known), "ceiling")
        )
    rows.append(Row("photo left alone", mean(lambda one: photos, everyone), "ceiling"))
    pasted = mean(lambda one: media.to_image(one.reference).expand_as(photos), everyone)
    rows.append(Row("reference pasted", pasted, "ceiling"))
    return rows


def _passes(values: Mapping[str, float]) -> bool:
    return values["right_style"] >= 0.9 and values["apart"] >= 0.6


def _goals(rows: Mapping[str, Mapping[str, float]]) -> list[tuple[str, bool, str]]:
    ours, alone, pasted = (rows[name] for name in ("restyled", "photo left alone", "reference pasted"))

    def both(values: Mapping[str, float]) -> str:
        return f"right style {100 * values['right_style']:.0f} %, apart {100 * values['apart']:.0f} %"

    goals = [
        (
            "the right style is nearest in at least 90 %",
            ours["right_style"] >= 0.9,
            f"{100 * ours['right_style']:.0f} %",
        ),
        ("people stay apart, at least 60 %", ours["apart"] >= 0.6, f"{100 * ours['apart']:.0f} %"),
        ("leaving the photo alone fails these two", not _passes(alone), both(alone)),
        ("pasting the reference fails these two", not _passes(pasted), both(pasted)),
    ]
    if "to_truth" in ours and "to_truth" in alone:
        goals.append(
            (
                "restyled photos are nearer to the true render than the photo is",
                ours["to_truth"] < alone["to_truth"],
                f"{ours['to_truth']:.3f} against {alone['to_truth']:.3f}",
            )
        )
    return goals


def _charts(curves: Mapping[str, Mapping[float, Mapping[str, float]]]) -> list[Chart]:
    charts = []
    titles = {
        "to_truth": ("Strength against distance to the true render", "distance to the true render"),
        "identity_kept": ("Strength against identity", "identity distance to the photo"),
    }
    for figure, (title, label) in titles.items():
        lines = {
            name: [(strength, values[figure]) for strength, values in curve.items() if figure in values]
            for name, curve in curves.items()
        }
        lines = {name: line for name, line in lines.items() if line}
        if lines:
            charts.append(
                Chart(title, "strength (0: as embedded)", label, lines, "Less is better in either chart.")
            )
    return charts


def _sheet(
    photos: Sequence[np.ndarray],
    outputs: Mapping[str, Mapping[float, Tensor]],
    contenders: Sequence[Contender],
    strength: float,
) -> np.ndarray:
    labels = [PHOTO]
    for one in contenders:
        labels += [one.name, "true"] if one.truth is not None else [one.name]
    rows: list[list[np.ndarray]] = []
    for i in range(min(SHOWN, len(photos))):
        row = [photos[i]]
        for one in contenders:
            row += media.to_pixels(outputs[one.name][strength][i : i + 1])
            row += media.to_pixels(one.truth[i : i + 1]) if one.truth is not None else []
        rows.append(row)
    return media.make_sheet(rows, column_labels=labels, cell_px=CELL_PX)


def _strength_sheet(
    photos: Sequence[np.ndarray],
    whole: Tensor,
    outputs: Mapping[str, Mapping[float, Tensor]],
    strengths: Sequence[float],
) -> np.ndarray:
    rows = [
        [photos[0], *media.to_pixels(whole[:1]), *(media.to_pixels(by[s][:1])[0] for s in strengths)]
        for by in outputs.values()
    ]
    labels = [PHOTO, "0", *(f"{strength:g}" for strength in strengths)]
    return media.make_sheet(rows, list(outputs), labels, cell_px=CELL_PX)
