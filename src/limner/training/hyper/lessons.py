"""Train the small HyperInverter: networks of a run, one step, figures with and without the change of the generator.

The loop, its state on disk and its log are `limner.training.cores.EncoderTraining`.

Source: Dinh et al. 2022, "HyperInverter" (arXiv 2112.00719), section 3.3: squared error, perceptual distance, identity.
Differs: no adversarial term, which the published training adds after 200,000 steps; see also `limner.nn.compact_hyper`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limner import media
from limner.errors import OptionError
from limner.inversion import Distance
from limner.inversion.report import measure
from limner.losses import Embedder, maps_distance
from limner.nn.compact import CompactEncoder, resize
from limner.nn.compact_hyper import CompactHyper, HyperCore, rgb_layers
from limner.nn.hyperinverter import paint
from limner.nn.stylegan2 import Generator
from limner.training.data import PictureSet
from limner.training.hyper.options import HyperOptions
from limner.training.lessons import CoreLessons, CoreRun, jitter_colours, person_loss, weighted_sum
from limner.training.run import Runtime, StepRandom

FIGURES = ("psnr", "ssim", "perceptual", "identity")
PROBES = 32
AT_A_TIME, SHOWN = 8, 10


@dataclass
class HyperRun(CoreRun[HyperOptions, CompactHyper]):
    """The networks of a run and how far it is; see also `CoreRun`. The first stage of ``encoder`` is frozen.

    Args:
        pictures: training pictures.
        embedder: identity embedder; None leaves its loss out.
    """

    pictures: PictureSet
    embedder: Embedder | None = None


def build_run(
    options: HyperOptions,
    runtime: Runtime,
    *,
    generator: Generator,
    encoder: CompactEncoder,
    embedder: Embedder | None = None,
) -> HyperRun:
    """Make the networks of a new run.

    Args:
        options: settings.
        runtime: device and processes.
        generator: frozen base, on the runtime's device, as the other networks.
        encoder: its compact encoder, frozen.
        embedder: identity embedder for the loss.

    Raises:
        OptionError: no pictures, or a batch that the processes cannot share.
        KeyMismatchError: the encoder belongs to another generator.
        ShapeError: no StyleGAN2 generator, or one whose colours are limited.
    """
    if not options.data:
        raise OptionError("data must be given: a folder or a zip of square, aligned pictures")
    if options.batch_size % runtime.world:
        raise OptionError(f"batch_size {options.batch_size} cannot be shared by {runtime.world} processes")
    encoder.check_base(generator)
    pictures = PictureSet(options.data, generator.resolution, select=options.select)
    old = encoder.core
    torch.manual_seed(options.seed)
    core = HyperCore(
        targets=rgb_layers(generator),
        num_rows=old.num_rows,
        w_dim=old.w_dim,
        channels=encoder.trunk.channels[1:],
        input_px=old.input_px,
        width=options.width,
        hidden=options.hidden,
    ).to(runtime.device)
    generator.requires_grad_(False)
    encoder.requires_grad_(False).eval()
    network = CompactHyper(encoder=encoder, core=core, refinements=options.refinements)
    rng = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        probe = pictures.draw(min(PROBES, len(pictures)), rng, mirror=False, device=runtime.device)
        core.calibrate(network.views(probe))
    average = CompactHyper(
        encoder=encoder,
        core=copy.deepcopy(core).requires_grad_(False).eval(),
        refinements=options.refinements,
    )
    return HyperRun(options, runtime, generator, network, average, pictures, embedder)


class HyperLessons(CoreLessons[HyperRun]):
    """One step of training."""

    def step(self, random: StepRandom) -> dict[str, float]:
        """Learn from one batch; return the figures for the log."""
        run, network, options = self.run, self.run.encoder, self.run.options
        size = options.batch_size // run.runtime.world
        with run.runtime.autocast():
            with torch.no_grad():
                image = run.pictures.draw(size, random.cpu, mirror=options.mirror, device=run.runtime.device)
                image = jitter_colours(image, options.jitter, random.cpu)
                first = network.first(run.generator, image)
                maps, views = network.encoder.look(resize(image, network.core.input_px))
            changes, painted = network.residuals(image, views, first)
            losses = self._losses(image, painted.float(), maps)
            if options.size:
                squares = [value.square().mean() for value in changes.values()]
                losses["size"] = (options.size, torch.stack(squares).mean())
        weighted_sum(losses).backward()
        self.update()
        before = float((first.painted.float().clamp(-1, 1) - image).square().mean())
        return {"l2_before": before, **{name: value.item() for name, (_, value) in losses.items()}}

    def _losses(
        self, image: Tensor, painted: Tensor, maps: Sequence[Tensor]
    ) -> dict[str, tuple[float, Tensor]]:
        """Return the paper's terms with their weights."""
        run, options = self.run, self.run.options
        encoder = run.encoder.encoder
        losses = {"l2": (options.l2, (painted - image).square().mean())}
        if options.perceptual:
            seen = encoder.trunk(resize(painted, run.encoder.core.input_px))
            losses["perceptual"] = (options.perceptual, maps_distance(seen, maps).mean())
        if options.identity and run.embedder is not None:
            losses["identity"] = (options.identity, person_loss(run.embedder, painted, image))
        return losses


class HyperExam:
    """Measures on held-out pictures what the change of the generator adds to the encoder's codes.

    Args:
        image: pictures (N, 3, R, R).
        names: one per picture.
        perceptual, identity: distances.
    """

    def __init__(
        self, image: Tensor, names: Sequence[str], *, perceptual: Distance, identity: Distance | None
    ):
        self.image, self.names = image, tuple(names)
        self.perceptual, self.identity = perceptual, identity

    def _figures(self, image: Tensor, suffix: str) -> dict[str, float]:
        reports = measure(
            image,
            self.image,
            method="hyper",
            perceptual=self.perceptual,
            identity=self.identity,
            steps=[1] * len(image),
            seconds=0,
        )
        figures = {}
        for name in FIGURES:
            values = [value for one in reports if (value := getattr(one, name)) is not None]
            if values:
                figures[name + suffix] = sum(values) / len(values)
        return figures

    @torch.no_grad()
    def measure(self, run: HyperRun, sheet: Path | None = None) -> dict[str, float]:
        """Return the figures with the change and, with ``_encoder`` behind their names, without; write a sheet."""
        first, with_change, sizes = [], [], []
        for image in self.image.split(AT_A_TIME):
            found = run.average(run.generator, image)
            first.append(found.w_image)
            with_change.append(paint(run.generator, found.w, found.residuals).clamp(-1, 1))
            sizes.append(
                torch.stack([x.flatten(1).square().mean(1).sqrt() for x in found.residuals.values()])
            )
        encoded, painted = torch.cat(first), torch.cat(with_change)
        if sheet is not None:
            rows = [media.to_pixels(image[:SHOWN]) for image in (self.image, encoded, painted)]
            labels = ["picture", "encoder", "with the change"]
            page = media.make_sheet(rows, column_labels=self.names[:SHOWN], row_labels=labels)
            kind = "compositeWithTrainedAlgorithmicMedia"
            media.write(sheet, page, options={"command": "train hyper"}, source_type=kind)
        figures = self._figures(painted, "") | self._figures(encoded, "_encoder")
        return figures | {"change": float(torch.cat(sizes, 1).mean())}
