"""Comparisons of ways to restyle: with the person's change of the generator and without, from one picture and several."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import media
from limner.errors import LimnerError, OptionError
from limner.evaluation.data import Portraits
from limner.evaluation.options import EvaluationOptions
from limner.evaluation.report import Picture, Row, Table
from limner.evaluation.restyling import CELL_PX, PHOTO, Restyler, to_inversion, unpack_image
from limner.evaluation.scale import LEARNED, Contender, Scale, read_truth
from limner.evaluation.store import Part, stamp
from limner.nn import deltas
from limner.options import to_mapping
from limner.pipeline import LearnOptions
from limner.pipeline.photos import PipelineStep, learn_style
from limner.stylization.blend_style import METHOD as BLEND
from limner.stylization.merging import merge
from limner.stylization.style import Style, paint

BLEND_SHARE = 0.5
ALONE, PERSON, BLENDED = "style on the code alone", "and the person's change", "and half of {blend}"
COMBINED = ("to_truth", "gram_truth", "identity_kept", "recognised", "right_style", "apart")
LEARNED_FROM = ("to_truth", "gram_truth", "identity_kept", "recognised", "apart", "steps", "learn_seconds")
SHOWN = 4
MANY_STEPS = 20_000


def compare_combination(
    work: Restyler,
    scale: Scale,
    photos: Sequence[np.ndarray],
    contenders: Sequence[Contender],
    options: EvaluationOptions,
) -> tuple[list[Any], dict[str, Any]]:
    """Restyle scenes with and without the change that pivotal tuning made for the person.

    Args:
        work, scale, photos: of the scenes, in their order.
        contenders: styles; those learned from a picture, with a true render, count; the first blend with one comes on top.
        options: ``tuned`` says how many scenes.

    Returns:
        Blocks of the report and figures for JSON; nothing where no scene is asked for.
    """
    count = min(options.tuned, len(photos))
    known = [one for one in contenders if one.reference is not None and one.truth is not None]
    blends = [one for one in contenders if one.method == BLEND and one.truth is not None]
    if count < 2 or not known:
        return [], {}
    how = dataclasses.replace(work.how, inverter="pivotal")
    chosen = photos[:count]
    embedded = [work.embed(pixels, how) for pixels in work.track(chosen, "pivotal tuning")]
    pictures: dict[str, dict[str, Tensor]] = {}
    for one in known:
        inputs = work.base | {"how": to_mapping(how), "images": stamp(*chosen), "style": one.digest}
        inputs["blend"] = blends[0].digest if blends else ""

        def make(one: Contender = one) -> Part:
            return Part({}, _combine(work, one, blends[:1], chosen, embedded))

        part = work.store.part(f"combined-{one.name}", inputs, make)
        pictures[one.name] = {name: unpack_image(values) for name, values in part.tensors.items()}
    names = list(pictures[known[0].name])
    figures = {
        name: mean_figures([scale.figures(pictures[one.name][name], one) for one in known]) for name in names
    }
    plain = torch.cat([unpack_image(part.tensors["image"]) for part in embedded])
    nothing = mean_figures([scale.figures(plain, one) for one in known])
    rows = [Row("embedded with the person's change, no style", nothing, "ceiling")]
    rows += [Row(name, figures[name]) for name in names]
    rows.insert(
        0,
        Row(
            "the true render",
            mean_figures([scale.figures(_truth(one, count), one) for one in known]),
            "floor",
        ),
    )
    note = (
        f"Means over {len(known)} styles and the first {count} scenes, embedded by pivotal tuning ({how.invert_steps} steps of "
        f"search, {how.tune_steps} of tuning), at strength {how.strength:g}. All changes of the generator are added up before "
        "one forward pass."
    )
    table = Table("Person and style in one generator", COMBINED, rows, note=note, rivals=False)
    sheet = _combination_sheet(chosen, pictures, known, count)
    blocks = [table, Picture("combination", sheet, _COMBINATION_CAPTION)]
    per_style = {
        one.name: {name: scale.figures(pictures[one.name][name], one) for name in names} for one in known
    }
    return blocks, {"scenes": count, "mean": figures, "styles": per_style}


_COMBINATION_CAPTION = (
    "Scenes in the rows of every style: the photo, the true render, the style on the code alone, with the person's change, "
    "and with a blend on top."
)


def _truth(one: Contender, count: int) -> Tensor:
    assert one.truth is not None
    return one.truth[:count]


def _combine(
    work: Restyler,
    one: Contender,
    blends: Sequence[Contender],
    photos: Sequence[np.ndarray],
    embedded: Sequence[Part],
) -> dict[str, Tensor]:
    """Return way -> results, uint8 (N, 3, R, R)."""
    generator, style = work.models.generator, one.style
    assert isinstance(style, Style)
    found: dict[str, list[Tensor]] = {}
    for pixels, part in zip(photos, embedded, strict=True):
        inversion = to_inversion(part, media.to_image(pixels).to(work.models.device))
        assert inversion.delta is not None
        person = deltas.apply(generator, [(inversion.delta, 1.0)])
        ways = [(ALONE, generator, style), (PERSON, person, style)]
        for blend in blends:
            assert isinstance(blend.style, Style)
            both = merge([style, blend.style], [1.0, BLEND_SHARE], names=[one.name, blend.name])
            ways.append((BLENDED.format(blend=blend.name), person, both))
        for name, base, chosen in ways:
            image = paint(base, chosen, inversion.latent, work.how, noise=inversion.noise_maps)
            found.setdefault(name, []).append(image.add(1).mul(127.5).round().to(torch.uint8).cpu())
    return {name: torch.cat(images) for name, images in found.items()}


def _combination_sheet(
    photos: Sequence[np.ndarray],
    pictures: Mapping[str, Mapping[str, Tensor]],
    known: Sequence[Contender],
    count: int,
) -> np.ndarray:
    shown = min(count, 2)
    rows, labels = [], []
    for one in known:
        ways = pictures[one.name]
        for i in range(shown):
            labels.append(one.name)
            images = torch.cat(
                [_truth(one, count)[i : i + 1], *(image[i : i + 1] for image in ways.values())]
            )
            rows.append([photos[i], *media.to_pixels(images)])
    heads = [PHOTO, "true", "code", "+ person", "+ blend"][: len(rows[0])]
    return media.make_sheet(rows, labels, heads, cell_px=CELL_PX)


def compare_references(
    work: Restyler,
    scale: Scale,
    photos: Sequence[np.ndarray],
    embedded: Sequence[Part],
    options: EvaluationOptions,
) -> tuple[list[Any], dict[str, Any]]:
    """Learn looks from one picture and from several in the same time, and compare with the true renders.

    Args:
        work, scale, photos, embedded: of the scenes, in their order.
        options: ``few_looks``, ``few_pictures``, ``few_seconds``; the pictures are the first of ``trained_pairs``.

    Returns:
        Blocks of the report and figures for JSON; nothing where no look is asked for.
    """
    if not options.few_looks:
        return [], {}
    pairs = options.find("pairs")
    scenes = Portraits(pairs / PHOTO, options.held_out_pairs, most=len(photos))
    rows: list[Row] = []
    shown: list[list[np.ndarray]] = []
    truths = {
        look: read_truth(pairs, look, scenes, work.models.generator.resolution) for look in options.few_looks
    }
    jobs = [(look, count) for look in options.few_looks for count in (1, options.few_pictures)]
    for look, count in work.track(jobs, "learning from one picture and several"):
        name, truth = f"{look}, {count} picture{'s' * (count > 1)}", truths[look]
        try:
            if truth is None:
                raise OptionError(f"{pairs} has no {look} of these scenes")
            part = _learn_and_restyle(work, pairs, look, count, photos, embedded, options)
        except LimnerError as error:
            rows.append(Row(name, {}, "skipped", " ".join(str(error).split())))
            continue
        images = unpack_image(part.tensors["styled"])
        values = _against_truth(scale, images, Contender(look, _NO_STYLE, None, truth, ""))
        rows.append(Row(name, values | {key: part.values[key] for key in ("steps", "learn_seconds")}))
        shown.append([*media.to_pixels(images[: 2 * SHOWN])])
    note = (
        f"Learned in {options.few_seconds:g} s of steps each, the search for the pictures' codes apart, from the first of the "
        f"scenes {options.trained_pairs} with their photos as sources; {len(photos)} held-out scenes at strength "
        f"{work.how.strength:g}. Every step looks at one picture, each in turn (--per-step 1)."
    )
    blocks: list[Any] = [Table("One style picture or several", LEARNED_FROM, rows, note=note, rivals=False)]
    if shown:
        labels = [row.name for row in rows if row.kind != "skipped"]
        sheet = media.make_sheet([photos[: 2 * SHOWN], *shown], [PHOTO, *labels], cell_px=CELL_PX)
        blocks.append(
            Picture("references", sheet, "The first held-out scenes, from one picture and several.")
        )
    return blocks, {row.name: dict(row.values) for row in rows if row.kind != "skipped"}


_NO_STYLE = Style({}, "", LEARNED, {})


def _against_truth(scale: Scale, images: Tensor, one: Contender) -> dict[str, float]:
    """Return the figures of a look that may not be among the scale's styles."""
    assert one.truth is not None
    known = one.name in scale.truths
    if not known:
        scale.truths[one.name] = scale.grams(one.truth)
    values = scale.figures(images, one)
    if not known:
        del scale.truths[one.name]
    return values


def _learn_and_restyle(
    work: Restyler,
    pairs: Path,
    look: str,
    count: int,
    photos: Sequence[np.ndarray],
    embedded: Sequence[Part],
    options: EvaluationOptions,
) -> Part:
    """Return the scenes in a look that was learned from its first ``count`` pictures, and how it was learned."""
    models = work.models
    size = models.generator.resolution
    pictures, sources = (
        Portraits(pairs / folder, options.trained_pairs, most=count).pixels(size) for folder in (look, PHOTO)
    )
    if len(pictures) < count:
        raise OptionError(
            f"{pairs / look} has {len(pictures)} of {count} pictures in {options.trained_pairs}"
        )
    learning = LearnOptions(steps=MANY_STEPS, aligned=True, seed=options.seed, per_step=1)
    inputs = work.base | {"how": to_mapping(work.how), "learning": to_mapping(learning)}
    inputs |= {"seconds": options.few_seconds, "pictures": stamp(*pictures), "images": stamp(*photos)}

    def make() -> Part:
        begun: list[float] = []

        def enough(step: PipelineStep) -> bool:
            if step.stage != "learn":
                return False
            begun[:] = begun or [time.perf_counter()]
            return time.perf_counter() - begun[0] > options.few_seconds

        style = learn_style(pictures, learning, models=models, sources=sources, on_step=enough).style
        one = Contender(look, style, None, None, "")
        how = dataclasses.replace(work.how, crop=True)
        restyled = [work.restyle(one, how, *pair) for pair in zip(photos, embedded, strict=True)]
        values = {"steps": style.provenance["steps"]}
        values["learn_seconds"] = style.provenance["learn_seconds"] + style.provenance["embed_seconds"]
        return Part(values, {"styled": torch.stack(restyled)})

    return work.store.part(f"few-{look}-{count}", inputs, make)


def mean_figures(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every figure over those that have it."""
    names = {name for one in figures for name in one}
    return {name: float(np.mean([one[name] for one in figures if name in one])) for name in sorted(names)}
