"""Stylisation: do style and person both arrive?  Measured on scenes of which the true render in the look exists."""

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
from limner.errors import OptionError
from limner.evaluation.data import Portraits, Track, crop_photo, untracked
from limner.evaluation.inversion import Method, encoder_stamp
from limner.evaluation.options import EvaluationOptions
from limner.evaluation.report import Chart, Checks, Picture, Row, Section, Table
from limner.evaluation.scale import Contender, Scale, find_contenders
from limner.evaluation.store import Part, Store, stamp
from limner.faces import whole_picture
from limner.inversion import Inversion
from limner.inversion.report import measure
from limner.latent import Latent
from limner.nn import deltas
from limner.options import to_mapping
from limner.pipeline import Models, StylizeOptions
from limner.pipeline.photos import embed_faces, stylize

FIGURES = ("to_truth", "gram_truth", "identity_kept", "recognised", "right_style", "apart", "seconds")
SHOWN, CELL_PX = 6, 96
BATCH = 10
PHOTO = "photo"


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
    how = dataclasses.replace(how or StylizeOptions(), aligned=True, seed=options.seed)
    if options.inverter:
        how = dataclasses.replace(how, inverter=options.inverter)
    if options.quick:
        how = dataclasses.replace(how, invert_steps=min(how.invert_steps, options.steps))
    pairs, resolution = options.find("pairs"), models.generator.resolution
    scenes = Portraits(pairs / PHOTO, options.held_out_pairs, most=options.scenes)
    photos = scenes.pixels(resolution)
    contenders, skipped = find_contenders(models, options, scenes, pairs)
    if len(contenders) < 2:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise OptionError(
            f"{len(contenders)} style(s) can be compared, at least 2 are needed"
            + f" ({reasons})" * bool(reasons)
        )
    base = {
        "model": deltas.digest(models.generator),
        "trunk": models.trunk_name,
        "trunk_weights": deltas.digest(models.trunk),
        "how": {name: value for name, value in to_mapping(how).items() if name not in _THAT_PAINT},
        "encoder": encoder_stamp(Method(how.inverter, how.inverter), models),
    }
    work = _Work(models, how, store, base, track)
    embedded = [work.embed(pixels) for pixels in track(photos, "embedding")]
    strengths = sorted({*options.strengths, how.strength})
    outputs, seconds = work.restyle_all(contenders, photos, embedded, strengths)
    whole = torch.cat([_image(part.tensors["image"]) for part in embedded])
    scale = Scale(models, photos, contenders)
    embedding_s = sum(part.values["seconds"] for part in embedded) / len(embedded)
    curves = {
        one.name: {0.0: scale.figures(whole, one)}
        | {strength: scale.figures(image, one) for strength, image in outputs[one.name].items() if strength}
        for one in contenders
    }
    per_style = [
        Row(one.name, curves[one.name][how.strength] | {"seconds": embedding_s + seconds[one.name]})
        for one in contenders
    ]
    summary = _summary(scale, outputs, whole, how.strength)
    values = {row.name: dict(row.values) for row in summary}
    unmeasured = [Row(name, {}, "skipped", why) for name, why in skipped.items()]
    blocks: list[Any] = [
        Table("All styles together", FIGURES[:-1], summary, note=_CHEATS, rivals=False),
        Table(f"Every style, strength {how.strength:g}", FIGURES, [*per_style, *unmeasured], rivals=False),
        Checks("Goals", _goals(values)),
        *_charts(curves),
        Picture("styles", _sheet(photos, outputs, contenders, how.strength), _CAPTION),
        Picture("strengths", _strength_sheet(photos, whole, outputs, strengths), _STRENGTH_CAPTION),
        *work.photo_sheet(options.photos, contenders),
    ]
    text = _TEXT.format(
        count=len(photos), inverter=how.inverter, steps=how.invert_steps, strength=f"{how.strength:g}"
    )
    data = {
        "scenes": len(photos),
        "how": to_mapping(how),
        "summary": values,
        "styles": {row.name: dict(row.values) for row in per_style},
        "strengths": {
            name: {f"{at:g}": found for at, found in curve.items()} for name, curve in curves.items()
        },
        "skipped": skipped,
    }
    return Section("stylization", "Stylisation", text, blocks, data)


_TEXT = (
    "The first {count} held-out scenes, each rendered as a photo and in every look. The photo is embedded ({inverter}; "
    "{steps} steps, if it searches), restyled at strength {strength} and compared with the true render of the same scene. "
    "Not every look keeps the photo's geometry: toon exaggerates it on purpose."
)
_STRENGTH_CAPTION = "One scene: as a photo, as embedded (strength 0), and at growing strength."
_THAT_PAINT = (
    "strength",
    "layers",
    "pull",
    "keep_color",
    "blend",
    "size",
    "mask",
    "feather",
    "color_match",
    "crop",
)
"""Options that change nothing of how a face is embedded."""
_CAPTION = "Every row a scene: the photo, then per style the result and, right of it, the true render (if there is one)."
_CHEATS = (
    "A method that leaves the photo alone keeps the person and fails on style; one that pastes its reference has the "
    "style and fails on the person. Both stand here as ceilings; what passes must beat both."
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """Embedding and restyling, kept in the store.

    Attributes:
        models, how, store, track: as `evaluate_stylization`.
        base: what every part depends on.
    """

    models: Models
    how: StylizeOptions
    store: Store
    base: dict[str, Any]
    track: Track

    def embed(self, pixels: np.ndarray) -> Part:
        """Return an aligned face's codes, noise, change of the generator, and what it paints of them."""

        def make() -> Part:
            begun = time.perf_counter()
            _, found = embed_faces(pixels, self.how, models=self.models)[0]
            tensors = {f"latent.{i}": value for i, value in enumerate(found.latent.parts)}
            tensors |= {f"noise.{i}": value for i, value in enumerate(found.noise or [])}
            tensors |= {f"delta.{name}": value for name, value in (found.delta or {}).items()}
            tensors["image"] = found.image.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
            return Part({"space": found.latent.space, "seconds": time.perf_counter() - begun}, tensors)

        return self.store.part("embedded", self.base | {"image": stamp(pixels)}, make)

    def restyle_all(
        self,
        contenders: Sequence[Contender],
        photos: Sequence[np.ndarray],
        embedded: Sequence[Part],
        strengths: Sequence[float],
    ) -> tuple[dict[str, dict[float, Tensor]], dict[str, float]]:
        """Return style -> strength -> results, (N, 3, R, R), and style -> seconds per face at the usual strength."""
        outputs: dict[str, dict[float, Tensor]] = {one.name: {} for one in contenders}
        seconds = {}
        for one in contenders:
            for strength in strengths:
                how = dataclasses.replace(self.how, strength=strength, crop=True)
                inputs = self.base | {"how": to_mapping(how), "style": one.digest, "images": stamp(*photos)}

                def make(one: Contender = one, how: StylizeOptions = how) -> Part:
                    pairs = list(zip(photos, embedded, strict=True))
                    begun = time.perf_counter()
                    steps = self.track(pairs, f"{one.name}, strength {how.strength:g}")
                    styled = [self.restyle(one, how, *pair) for pair in steps]
                    return Part(
                        {"seconds": (time.perf_counter() - begun) / len(photos)},
                        {"styled": torch.stack(styled)},
                    )

                part = self.store.part(f"styled-{one.name}", inputs, make)
                outputs[one.name][strength] = _image(part.tensors["styled"])
                if strength == self.how.strength:
                    seconds[one.name] = part.values["seconds"]
        return outputs, seconds

    def restyle(self, one: Contender, how: StylizeOptions, pixels: np.ndarray, part: Part) -> Tensor:
        """Return an embedded face in a style, uint8 (3, R, R)."""
        target = media.to_image(pixels).to(self.models.device)
        face = (whole_picture(pixels, self.models.generator.resolution), _inversion(part, target))
        result = stylize(pixels, one.style, how, models=self.models, embedded=[face])
        return torch.from_numpy(result.faces[0].styled).permute(2, 0, 1)

    def photo_sheet(self, photos: Sequence[Path], contenders: Sequence[Contender]) -> list[Picture]:
        """Return a sheet of real photos in every style; there is no truth to compare them with."""
        rows = []
        how = dataclasses.replace(self.how, crop=True)
        for photo in photos:
            pixels = crop_photo(photo, self.models.generator.resolution, self.models.detector)
            part = self.embed(pixels)
            styled = torch.stack([self.restyle(one, how, pixels, part) for one in contenders])
            rows.append([pixels, *media.to_pixels(_image(torch.cat([part.tensors["image"], styled])))])
        if not rows:
            return []
        labels = [PHOTO, "embedded", *(one.name for one in contenders)]
        sheet = media.make_sheet(rows, column_labels=labels, cell_px=CELL_PX + 32)
        return [Picture("photos", sheet, "Real photos: as they are, as embedded, and in every style.")]


def _image(values: Tensor) -> Tensor:
    """Uint8 (B, 3, H, W) -> image, [-1, 1]."""
    return values.float() / 127.5 - 1


def _inversion(part: Part, target: Tensor) -> Inversion:
    """Return what `_Work.embed` kept, on the target's device."""

    def named(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value.to(target.device)
            for name, value in part.tensors.items()
            if name.startswith(prefix)
        }

    codes, noise = (
        [value for _, value in sorted(named(prefix).items(), key=lambda item: int(item[0]))]
        for prefix in ("latent.", "noise.")
    )
    image = _image(part.tensors["image"].to(target.device))
    space, seconds = part.values["space"], part.values["seconds"]
    report = measure(image, target, method=space, perceptual=None, identity=None, steps=[0], seconds=seconds)
    latent = Latent(space, tuple(codes) if space == "s" else codes[0])
    return Inversion(latent, noise or None, image, named("delta.") or None, report)


def _summary(
    scale: Scale, outputs: Mapping[str, Mapping[float, Tensor]], whole: Tensor, strength: float
) -> list[Row]:
    """Return means over styles of results, floor and cheats."""

    def mean(images_of: Any, which: Sequence[Contender]) -> dict[str, float]:
        found = [scale.figures(images_of(one), one) for one in which]
        names = {name for one in found for name in one}
        return {name: float(np.mean([one[name] for one in found if name in one])) for name in sorted(names)}

    everyone = scale.contenders
    known = [one for one in everyone if one.truth is not None]
    photos = scale.photos
    pasted = mean(lambda one: media.to_image(one.reference).expand_as(photos), everyone)
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
