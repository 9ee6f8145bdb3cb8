"""The experiments of Image2StyleGAN: which pictures can be embedded, where, from which start, and by which loss.

Every cell of the study embeds one set of pictures in one way; cells are kept on disk, so that a study that was stopped
goes on where it was, and experiments share the cells that they have in common.

Source: Abdal et al. 2019, "Image2StyleGAN: How to Embed Images Into the StyleGAN Latent Space?" (arXiv 1904.03189).
Differs: StyleGAN2 generators; searches of some hundred steps that rise and fall; where VGG16 is not installed, the
bundled Lite0 stands in as `limner.inversion.distances.STAND_INS` says.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import losses, media
from limner.evaluation.report import Checks, Picture, Row, Section, Table
from limner.evaluation.store import Part, Store, stamp
from limner.evaluation.study_claims import judge
from limner.evaluation.study_options import EXPERIMENTS, StudyOptions
from limner.evaluation.study_targets import FACES, MOVES, OTHERS, Targets, hole_name
from limner.inversion import InversionOptions, TrunkDistance, invert
from limner.inversion.distances import STAND_INS, stand_in
from limner.inversion.report import measure
from limner.nn import deltas
from limner.nn.features import Lite0
from limner.nn.stylegan2 import Generator
from limner.pipeline import Models

TRAINED, RANDOM = "trained", "random"
VGG16_LAYERS = ("conv1_1", "conv1_2", "conv3_2", "conv4_2")
FIGURES = ("psnr", "ssim", "perceptual", "identity", "from_mean", "seconds")
CELL_PX = 96
# (steps done since the last call, what is being embedded)
OnProgress = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way of embedding one set of pictures.

    Attributes:
        experiment, name: where it stands in the report.
        targets: name of the pictures.
        method, init: as `InversionOptions`.
        weights: trained or random synthesis weights.
        maps: numbers of the feature maps that are compared; None for the whole published loss, empty for none.
        pixels: whether pixels are compared too.
    """

    experiment: str
    name: str
    targets: str = FACES
    method: str = "w+"
    init: str = "mean"
    weights: str = TRAINED
    maps: tuple[int, ...] | None = None
    pixels: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a setting came to.

    Attributes:
        setting: the setting.
        targets: its pictures.
        image: what was painted, (N, 3, R, R).
        figures: figure -> (N,).
    """

    setting: Setting
    targets: Targets
    image: Tensor
    figures: dict[str, Tensor]

    def mean(self, figure: str, chosen: Sequence[int] | None = None) -> float:
        """Return the mean of a figure over all pictures, or over some."""
        values = self.figures[figure]
        return float((values if chosen is None else values[list(chosen)]).mean())


def make_settings(options: StudyOptions, layers: Mapping[str, tuple[int, ...]]) -> list[Setting]:
    """Return all cells of the chosen experiments.

    Args:
        options: which experiments and holes.
        layers: name -> numbers of the maps that one layer of the loss stands for.
    """
    whole = "whole loss"
    every = {
        "space": [Setting("space", space, method=space) for space in ("z", "w", "w+")],
        "weights": [
            Setting("weights", f"{space}, {weights} weights", method=space, weights=weights)
            for space in ("w", "w+")
            for weights in (TRAINED, RANDOM)
        ],
        "init": [
            Setting("init", f"{space}, {targets}, {init}", targets, method=space, init=init)
            for space, targets in (("w+", FACES), ("w", FACES), ("w+", OTHERS))
            for init in ("mean", "uniform")
        ],
        "affine": [
            Setting("affine", "as aligned"),
            *(Setting("affine", name, name) for name in MOVES),
        ],
        "defects": [
            Setting("defects", "whole"),
            *(Setting("defects", name, name) for name in map(hole_name, options.holes)),
        ],
        "classes": [Setting("classes", FACES), Setting("classes", OTHERS, OTHERS)],
        "loss": [
            Setting("loss", "pixels alone", maps=()),
            *(Setting("loss", f"{name} alone", maps=maps, pixels=False) for name, maps in layers.items()),
            Setting("loss", "all four layers, no pixels", pixels=False),
            Setting("loss", whole),
        ],
    }
    return [setting for name in options.chosen() for setting in every[name]]


def loss_layers(models: Models) -> dict[str, tuple[int, ...]]:
    """Return the layers of the published loss by name, and the maps of the trunk that stand for each."""
    if not isinstance(models.trunk, Lite0):
        return {name: (i,) for i, name in enumerate(VGG16_LAYERS)}
    named: dict[int, list[str]] = {}
    for name, number in zip(VGG16_LAYERS, STAND_INS["vgg16"], strict=True):
        named.setdefault(number, []).append(name)
    found = {f"{' and '.join(names)} (lite0 {number})": (number,) for number, names in named.items()}
    deeper = max(named) + 1
    return found | {f"one deeper (lite0 {deeper})": (deeper,)}


def make_distance(models: Models, maps: tuple[int, ...] | None) -> TrunkDistance | None:
    """Return the perceptual part of the loss: the published one, some maps alone, or none."""
    if maps is not None and not maps:
        return None
    trunk: Any = models.trunk
    if maps is None:
        if isinstance(trunk, Lite0):
            return stand_in(trunk, stands_for="vgg16", name=models.trunk_name)
        return models.make_distance()
    name = f"{models.trunk_name} {', '.join(map(str, maps))}"
    if isinstance(trunk, Lite0):
        weights = [5 * losses.LITE0_WEIGHTS[i] / len(maps) for i in maps]
        return TrunkDistance(
            lambda image: [trunk(image, maps=max(maps) + 1)[i] for i in maps], name=name, weights=weights
        )
    compare = losses.maps_squares if models.trunk_name == "vgg16" else None
    return TrunkDistance(lambda image: [trunk(image)[i] for i in maps], name=name, compare=compare)


def randomize(generator: Generator, seed: int) -> Generator:
    """Return a generator with the same mapping network and mean w, and random synthesis weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        other = type(generator)(**generator.config())
    other.mapping.load_state_dict(generator.mapping.state_dict())
    other.w_avg.copy_(generator.w_avg.cpu())
    return other.to(generator.w_avg.device).eval().requires_grad_(False)


class Study:
    """Embeds what the settings ask for.

    Args:
        models: generator, trunk of the loss, embedder.
        judge_distance: perceptual distance of the figures.
        options: steps, step sizes.
        store: where cells are kept.
        on_progress: called with steps done since the last call and what is being embedded.
    """

    def __init__(
        self,
        models: Models,
        options: StudyOptions,
        store: Store,
        *,
        judge_distance: TrunkDistance,
        on_progress: OnProgress = lambda steps, name: None,
    ):
        self.models, self.options, self.store = models, options, store
        self.judge_distance, self.on_progress = judge_distance, on_progress
        self.generators = {TRAINED: models.generator, RANDOM: randomize(models.generator, options.seed)}
        self.stamps = {name: deltas.digest(generator) for name, generator in self.generators.items()}
        self.trunk_stamp = deltas.digest(models.trunk)

    def embed(self, setting: Setting, targets: Targets) -> Found:
        """Embed one cell, or take it from disk.

        Args:
            setting: how.
            targets: its pictures.

        Raises:
            DivergedError: the search left the finite numbers.
        """
        options = InversionOptions(
            method=setting.method,
            init=setting.init,
            steps=self.options.steps,
            learning_rate=self.options.learning_rate,
            rampup=self.options.rampup,
            rampdown=self.options.rampdown,
            l2=self.options.l2 if setting.pixels else 0.0,
            fit_noise=False,
            patience=0,
            mean_samples=4000,
            seed=self.options.seed,
        )
        inputs = {
            "generator": self.stamps[setting.weights],
            "trunk": self.trunk_stamp,
            "maps": setting.maps,
            "options": dataclasses.asdict(options),
            "images": stamp(targets.image),
        }
        before = self.store.found
        label = f"{EXPERIMENTS[setting.experiment]}: {setting.name}"
        part = self.store.part("cell", inputs, lambda: self._search(setting, targets, options, label))
        if self.store.found > before:
            self.on_progress(options.steps, label)
        image = part.tensors["painted"].float() / 127.5 - 1
        return Found(setting, targets, image, self._figures(image, targets, part))

    def _search(self, setting: Setting, targets: Targets, options: InversionOptions, label: str) -> Part:
        generator = self.generators[setting.weights]
        begun = time.perf_counter()
        found = invert(
            generator,
            targets.image.to(self.models.device),
            options,
            perceptual=make_distance(self.models, setting.maps),
            on_step=lambda step, steps, record, paint: self.on_progress(1, label),
        )
        seconds = (time.perf_counter() - begun) / len(targets.image)
        rows = found.latent.to_space("w+", generator).tensor  # (N, L, w_dim)
        far = (rows - generator.w_avg).square().sum(2).mean(1).sqrt()
        pixels = found.image.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        values = {"seconds": [seconds] * len(pixels), "from_mean": far.tolist()}
        return Part(values, {"painted": pixels})

    @torch.no_grad()
    def _figures(self, image: Tensor, targets: Targets, part: Part) -> dict[str, Tensor]:
        """Return figure -> (N,), NaN where a figure cannot be measured.

        Args:
            image: what was painted, (N, 3, R, R).
            targets: what was to be painted.
            part: what was kept of the search: seconds and distances to the mean w.
        """
        device = self.models.device
        reports = measure(
            image.to(device),
            targets.image.to(device),
            method="",
            perceptual=self.judge_distance,
            identity=self.models.identity_distance,
            steps=[0] * len(image),
            seconds=0.0,
        )
        figures = {name: torch.tensor(part.values[name]) for name in ("seconds", "from_mean")}
        for name in ("psnr", "ssim", "perceptual", "identity"):
            figures[name] = torch.tensor(
                [float("nan") if (v := getattr(r, name)) is None else v for r in reports]
            )
        return figures


def run_study(
    models: Models,
    targets: Mapping[str, Targets],
    options: StudyOptions,
    store: Store,
    *,
    judge_distance: TrunkDistance,
    on_progress: OnProgress = lambda steps, name: None,
) -> list[Section]:
    """Run the chosen experiments and return the report's sections: the table of all cells, then one per experiment.

    Args:
        models: generator, trunk of the loss (VGG16, or Lite0 in its place), embedder.
        targets: of `limner.evaluation.study_targets.read_targets`.
        options: what is embedded, and how; numbers that ``quick`` stands for are put in by the caller.
        store: where cells are kept.
        judge_distance: perceptual distance of the figures.
        on_progress: called with steps done since the last call, and what is being embedded.

    Raises:
        DivergedError: a search left the finite numbers.
    """
    study = Study(models, options, store, judge_distance=judge_distance, on_progress=on_progress)
    found = [
        study.embed(setting, targets[setting.targets])
        for setting in make_settings(options, loss_layers(models))
    ]
    mean_face = models.generator.synthesis(models.generator.broadcast(models.generator.w_avg[None]))
    judged: dict[str, list[tuple[str, bool, str]]] = {}
    sections = []
    for name in options.chosen():
        own = {one.setting.name: one for one in found if one.setting.experiment == name}
        judged[name] = judge(name, own, mean_face.detach().clamp(-1, 1).cpu())
        sections.append(_section(name, own, judged[name]))
    return [_overview(found, judged, options, models), *sections]


def _rows(name: str, own: Mapping[str, Found]) -> list[Row]:
    """Return the rows of an experiment; of `classes` one per kind of picture."""
    rows = []
    for key, one in own.items():
        groups: list[tuple[str, list[int] | None]] = [(key, None)]
        if name == "classes" and key == OTHERS:
            kinds = one.targets.names
            groups = [(kind, [i for i, k in enumerate(kinds) if k == kind]) for kind in dict.fromkeys(kinds)]
        for label, chosen in groups:
            rows.append(Row(label, {figure: one.mean(figure, chosen) for figure in FIGURES}))
    return rows


def _overview(
    found: Sequence[Found],
    judged: Mapping[str, list[tuple[str, bool, str]]],
    options: StudyOptions,
    models: Models,
) -> Section:
    rows, cells = [], []
    for name in options.chosen():
        own = {one.setting.name: one for one in found if one.setting.experiment == name}
        for row in _rows(name, own):
            rows.append(dataclasses.replace(row, name=f"{EXPERIMENTS[name]}: {row.name}"))
            cells.append({"experiment": name, "setting": row.name, **row.values})
    claims = [
        {"experiment": name, "claim": claim, "as_in_the_paper": holds, "figures": figures}
        for name, items in judged.items()
        for claim, holds, figures in items
    ]
    held = sum(claim["as_in_the_paper"] for claim in claims)
    trunk = (
        "VGG16's conv1_1, conv1_2, conv3_2 and conv4_2"
        if not isinstance(models.trunk, Lite0)
        else "EfficientNet-Lite0 in place of VGG16 (its maps 0, 0, 1, 2 for conv1_1, conv1_2, conv3_2, conv4_2)"
    )
    text = (
        f"{held} of {len(claims)} statements of the paper hold here. Every cell embeds its pictures in one batch, by "
        f"{options.steps} steps of Adam at {options.learning_rate:g}, with pixels (weight {options.l2:g}) and {trunk}; noise "
        "maps stay as they are. The paper takes 5,000 steps at 0.01 with StyleGAN1 at 1024 px, so only the order of the "
        "figures can be compared. Figures are means over the pictures; perceptual is the distance on all five maps of "
        "Lite0, which the searches partly minimise; from mean is the length of the step from the mean w, per row."
    )
    against = [item for items in judged.values() for item in items if not item[1]]
    blocks: list[Checks | Table] = [Checks("What does not hold here", against)] if against else []
    blocks.append(Table("All settings", FIGURES, rows, rivals=False))
    return Section("table", "Results", text, blocks, {"cells": cells, "claims": claims})


TEXTS = {
    "space": "One code in z or w for all layers, or one row per layer, w+.",
    "weights": "The same searches in a generator whose synthesis weights are random; mapping network and mean w are kept.",
    "init": "Searches that start from the mean w, or from numbers drawn uniformly from -1 to 1.",
    "affine": "The aligned faces moved, turned and magnified; what comes in at the edges repeats the edge's pixels.",
    "defects": "Parts of the faces are black. The searches see the black parts as parts of the picture.",
    "classes": "Pictures of other things, embedded like the faces in w+ from the mean w.",
    "loss": "Pixels alone, every layer of the perceptual loss alone, all of them, and all with pixels.",
}


def _section(name: str, own: Mapping[str, Found], claims: list[tuple[str, bool, str]]) -> Section:
    data = {key: {figure: one.figures[figure].tolist() for figure in FIGURES} for key, one in own.items()}
    caption = (
        f"{EXPERIMENTS[name]}. A row named picture shows what was to be embedded; below it stands what was found: "
        f"{'; '.join(own)}."
    )
    picture = Picture(f"study-{name}", _sheet(own), caption)
    return Section(
        name, EXPERIMENTS[name], TEXTS[name], [Checks("As in the paper?", claims), picture], {"figures": data}
    )


def _sheet(own: Mapping[str, Found]) -> np.ndarray:
    """Draw a sheet: a row of targets wherever they change, and a row of results per setting."""
    rows, labels, last = [], [], None
    for name, one in own.items():
        if one.targets is not last:
            rows.append(media.to_pixels(one.targets.image))
            labels.append("picture")
            last = one.targets
        rows.append(media.to_pixels(one.image))
        labels.append(name)
    return media.make_sheet(rows, row_labels=labels, cell_px=CELL_PX)
