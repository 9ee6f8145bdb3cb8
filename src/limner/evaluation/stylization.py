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

from limner import losses, media, zoo
from limner.errors import LimnerError, OptionError
from limner.evaluation.data import Portraits, Track, crop_photo, pairwise_identity, untracked
from limner.evaluation.inversion import recognised
from limner.evaluation.options import EvaluationOptions
from limner.evaluation.report import Chart, Checks, Picture, Row, Section, Table
from limner.evaluation.store import Part, Store, stamp
from limner.faces import whole_picture
from limner.inversion import Inversion
from limner.inversion.report import measure
from limner.latent import Latent
from limner.nn import deltas
from limner.options import to_mapping
from limner.pipeline import Models, StylizeOptions
from limner.pipeline.photos import embed_faces, stylize
from limner.stylization import load_style
from limner.stylization.style import Style

FIGURES = ("to_truth", "gram_truth", "identity_kept", "recognised", "right_style", "apart", "seconds")
SHOWN, CELL_PX = 6, 96
BATCH = 10
PHOTO = "photo"


@dataclasses.dataclass(frozen=True, eq=False)
class Contender:
    """A style under test.

    Attributes:
        name: its name.
        style: the style.
        reference: the picture that it was learned from (the first), uint8 (R, R, 3).
        truth: true renders of the scenes in this look, (N, 3, R, R); None where there are none.
        digest: of its file.
    """

    name: str
    style: Style
    reference: np.ndarray
    truth: Tensor | None
    digest: str


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
        "how": {name: value for name, value in to_mapping(how).items() if name in _THAT_EMBEDS},
    }
    embedded = []
    for pixels in track(photos, "embedding"):
        inputs = base | {"image": stamp(pixels)}
        embedded.append(store.part("embedded", inputs, lambda pixels=pixels: _embed(pixels, how, models)))
    scale = _Scale(models, photos, contenders)
    outputs: dict[str, dict[float, Tensor]] = {}
    seconds: dict[str, float] = {}
    strengths = sorted({*options.strengths, how.strength})
    for contender in contenders:
        outputs[contender.name] = {}
        for strength in strengths:
            with_strength = dataclasses.replace(how, strength=strength)
            inputs = base | {"how": to_mapping(with_strength), "style": contender.digest}
            inputs["images"] = stamp(*photos)
            part = store.part(
                f"styled-{contender.name}",
                inputs,
                lambda c=contender, h=with_strength: _restyle(c, h, photos, embedded, models, track),
            )
            outputs[contender.name][strength] = part.tensors["styled"].float() / 127.5 - 1
            if strength == how.strength:
                seconds[contender.name] = part.values["seconds"]
    embedding_s = sum(part.values["seconds"] for part in embedded) / len(embedded)
    whole = torch.cat([part.tensors["image"].float() / 127.5 - 1 for part in embedded])
    per_style = []
    for contender in contenders:
        values = scale.figures(outputs[contender.name][how.strength], contender)
        values["seconds"] = embedding_s + seconds[contender.name]
        per_style.append(Row(contender.name, values))
    per_style += [Row(name, {}, "skipped", why) for name, why in skipped.items()]
    summary, pasted = _summary(scale, outputs, whole, how.strength)
    curves = {
        contender.name: [(0.0, scale.figures(whole, contender))]
        + [
            (strength, scale.figures(outputs[contender.name][strength], contender))
            for strength in strengths
            if strength
        ]
        for contender in contenders
    }
    blocks: list[Any] = [
        Table("All styles together", FIGURES[:-1], summary, note=_CHEATS),
        Table(f"Every style, strength {how.strength:g}", FIGURES, per_style),
        Checks("Goals", _goals({row.name: row.values for row in summary}, pasted)),
        *_charts(curves),
        Picture("styles", _sheet(photos, outputs, contenders, how.strength), _CAPTION),
        Picture(
            "strengths",
            _strength_sheet(photos, whole, outputs, strengths),
            "One scene: as a photo, as embedded (strength 0), and at growing strength.",
        ),
    ]
    for photo_sheet in _photo_sheet(options.photos, contenders, how, models, store, base, track):
        blocks.append(photo_sheet)
    text = (
        f"The first {len(photos)} held-out scenes, each rendered as a photo and in every look. The photo is embedded "
        f"({how.inverter}, {how.invert_steps} steps), restyled at strength {how.strength:g} and compared with the true "
        "render of the same scene. Not every style's drawing keeps the photo's geometry: toon exaggerates it on purpose."
    )
    data = {
        "scenes": len(photos),
        "how": to_mapping(how),
        "summary": {row.name: dict(row.values) for row in summary},
        "styles": {row.name: dict(row.values) for row in per_style if row.kind == "result"},
        "strengths": {
            name: {f"{strength:g}": values for strength, values in curve} for name, curve in curves.items()
        },
        "skipped": skipped,
    }
    return Section("stylization", "Stylisation", text, blocks, data)


_THAT_EMBEDS = ("inverter", "invert_steps", "tune_steps", "closeness", "seed")
_CAPTION = "Every row a scene: the photo, then per style the result and, right of it, the true render (if there is one)."
_CHEATS = (
    "A method that leaves the photo alone keeps the person and fails on style; one that pastes its reference has the "
    "style and fails on the person. Both stand here as ceilings; what passes must beat both."
)


def find_contenders(
    models: Models, options: EvaluationOptions, scenes: Portraits, pairs: Path
) -> tuple[list[Contender], dict[str, str]]:
    """Return the styles that can be compared, and why others cannot."""
    found, skipped = [], {}
    resolution = models.generator.resolution
    for name in options.styles or zoo.names("style"):
        try:
            file = zoo.resolve(name)
            style = load_style(file)
            style.check_base(models.generator)
            reference = _reference(file, style)
        except LimnerError as error:
            skipped[Path(name).stem] = " ".join(str(error).split())
            continue
        look, truth = pairs / Path(name).stem, None
        if look.is_dir():
            same = Portraits(look)
            stems = {Path(one).stem: one for one in same.names}
            missing = [one for one in scenes.names if Path(one).stem not in stems]
            if not missing:
                same.names = [stems[Path(one).stem] for one in scenes.names]
                truth = media.to_image(*same.pixels(resolution))
        picture = media.resize_pixels(reference, resolution)
        found.append(Contender(Path(name).stem, style, picture, truth, zoo.file_digest(file)))
    return found, skipped


def _reference(file: Path, style: Style) -> np.ndarray:
    """Return the picture a style was learned from: of the bundled ones, else the small one inside the file."""
    for folder in (zoo.BUNDLED_DIR / "style_pictures", file.parent):
        picture = folder / f"{file.stem}.jpg"
        if picture.is_file():
            return media.read(picture).pixels
    if style.thumbnail is None:
        raise OptionError("its file holds no picture of the style")
    return style.thumbnail.numpy()


def _embed(pixels: np.ndarray, how: StylizeOptions, models: Models) -> Part:
    """Embed an aligned face; the codes, noise and change of the generator become tensors of the part."""
    begun = time.perf_counter()
    _, found = embed_faces(pixels, how, models=models)[0]
    tensors = {f"latent.{i}": value for i, value in enumerate(found.latent.parts)}
    tensors |= {f"noise.{i}": value for i, value in enumerate(found.noise or [])}
    tensors |= {f"delta.{name}": value for name, value in (found.delta or {}).items()}
    tensors["image"] = found.image.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return Part({"space": found.latent.space, "seconds": time.perf_counter() - begun}, tensors)


def _inversion(part: Part, target: Tensor, models: Models) -> Inversion:
    """Return what `_embed` kept."""

    def named(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value.to(models.device)
            for name, value in part.tensors.items()
            if name.startswith(prefix)
        }

    codes = [value for _, value in sorted(named("latent.").items(), key=lambda item: int(item[0]))]
    noise = [value for _, value in sorted(named("noise.").items(), key=lambda item: int(item[0]))]
    image = part.tensors["image"].float().to(models.device) / 127.5 - 1
    space = part.values["space"]
    report = measure(
        image, target, method=space, perceptual=None, identity=None, steps=[0], seconds=part.values["seconds"]
    )
    latent = Latent(space, tuple(codes) if space == "s" else codes[0])
    return Inversion(latent, noise or None, image, named("delta.") or None, report)


def _restyle(
    contender: Contender,
    how: StylizeOptions,
    photos: Sequence[np.ndarray],
    embedded: Sequence[Part],
    models: Models,
    track: Track,
) -> Part:
    """Put a style on all scenes: pictures (N, 3, R, R) and seconds per face, without the embedding."""
    styled, begun = [], time.perf_counter()
    for pixels, part in track(
        list(zip(photos, embedded, strict=True)), f"{contender.name}, strength {how.strength:g}"
    ):
        target = media.to_image(pixels).to(models.device)
        face = (whole_picture(pixels, models.generator.resolution), _inversion(part, target, models))
        result = stylize(
            pixels, contender.style, dataclasses.replace(how, crop=True), models=models, embedded=[face]
        )
        styled.append(torch.from_numpy(result.faces[0].styled).permute(2, 0, 1))
    return Part({"seconds": (time.perf_counter() - begun) / len(photos)}, {"styled": torch.stack(styled)})


class _Scale:
    """What results are measured against: the photos, the references, the true renders; features are taken once."""

    def __init__(self, models: Models, photos: Sequence[np.ndarray], contenders: Sequence[Contender]):
        self.models, self.contenders = models, list(contenders)
        self.photos = media.to_image(*photos)
        self.persons = self._persons(self.photos)
        self.apart = pairwise_identity(self.persons)
        references = media.to_image(*(one.reference for one in contenders))
        self.references = [self._grams(one[None]) for one in references]
        self.truths = {one.name: self._grams(one.truth) for one in contenders if one.truth is not None}

    @torch.no_grad()
    def _persons(self, images: Tensor) -> Tensor:
        device = self.models.device
        return torch.cat([self.models.embedder(part.to(device)).cpu() for part in images.split(BATCH)])

    @torch.no_grad()
    def _grams(self, images: Tensor) -> list[Tensor]:
        parts = [grams(self.models.trunk, part.to(self.models.device)) for part in images.split(BATCH)]
        return [torch.cat(level).cpu() for level in zip(*parts, strict=True)]

    @torch.no_grad()
    def figures(self, images: Tensor, contender: Contender) -> dict[str, float]:
        """Return the figures of results that should have a style, (N, 3, R, R) in the order of the scenes."""
        persons, textures = self._persons(images), self._grams(images)
        kept = (persons - self.persons).square().sum(1)
        to_references = torch.stack([gram_difference(textures, one) for one in self.references])
        right = to_references.argmin(0) == self.contenders.index(contender)
        values = {
            "identity_kept": float(kept.mean()),
            "recognised": float(recognised(persons, self.persons).mean()),
            "right_style": float(right.float().mean()),
            "apart": pairwise_identity(persons) / max(self.apart, 1e-12),
        }
        if contender.truth is not None:
            far = []
            for a, b in zip(images.split(BATCH), contender.truth.split(BATCH), strict=True):
                device = self.models.device
                far.append(self.models.make_distance()(a.to(device), b.to(device)).cpu())
            values["to_truth"] = float(torch.cat(far).mean())
            values["gram_truth"] = float(gram_difference(textures, self.truths[contender.name]).mean())
        return values


def grams(trunk: Any, image: Tensor) -> list[Tensor]:
    """Return the Gram matrices of a trunk's maps, one (B, C, C) per map."""
    trunk = getattr(trunk, "trunk", trunk)  # LPIPS stands on one
    return [losses.gram_matrix(level) for level in trunk(image)]


def gram_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the mean over maps of squared differences of Gram matrices, divided by the product of their norms, (B,).

    Differs: `limner.losses.gram_distance` divides by one side's norm, as a loss may; of several references it would
    prefer the one with the largest.
    """
    levels = []
    for x, y in zip(a, b, strict=True):
        norms = x.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
        levels.append((x - y).square().sum((1, 2)) / norms.clamp_min(1e-12))
    return torch.stack(levels).mean(0)


def _summary(
    scale: _Scale, outputs: Mapping[str, Mapping[float, Tensor]], whole: Tensor, strength: float
) -> tuple[list[Row], dict[str, float]]:
    """Return means over styles of results, floor and cheats, and the figures of the pasted reference."""

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
    return rows, pasted


def _passes(values: Mapping[str, float]) -> bool:
    return values["right_style"] >= 0.9 and values["apart"] >= 0.6


def _goals(
    rows: Mapping[str, Mapping[str, float]], pasted: Mapping[str, float]
) -> list[tuple[str, bool, str]]:
    ours, alone = rows["restyled"], rows["photo left alone"]

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


def _charts(curves: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]]) -> list[Chart]:
    charts = []
    titles = {
        "to_truth": ("Strength against distance to the true render", "distance to the true render"),
        "identity_kept": ("Strength against identity", "identity distance to the photo"),
    }
    for figure, (title, label) in titles.items():
        lines = {
            name: [(strength, values[figure]) for strength, values in curve if figure in values]
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


def _photo_sheet(
    photos: Sequence[Path],
    contenders: Sequence[Contender],
    how: StylizeOptions,
    models: Models,
    store: Store,
    base: dict[str, Any],
    track: Track,
) -> list[Picture]:
    """Return a sheet of real photos in every style; there is no truth to compare them with."""
    rows = []
    for photo in photos:
        pixels = crop_photo(photo, models.generator.resolution, models.detector)
        part = store.part(
            "embedded", base | {"image": stamp(pixels)}, lambda pixels=pixels: _embed(pixels, how, models)
        )
        row = [pixels, *media.to_pixels(part.tensors["image"].float() / 127.5 - 1)]
        for one in contenders:
            made = _restyle(one, how, [pixels], [part], models, untracked)
            row += media.to_pixels(made.tensors["styled"].float() / 127.5 - 1)
        rows.append(row)
    if not rows:
        return []
    labels = [PHOTO, "embedded", *(one.name for one in contenders)]
    sheet = media.make_sheet(rows, column_labels=labels, cell_px=CELL_PX + 32)
    return [Picture("photos", sheet, "Real photos: as they are, as embedded, and in every style.")]
