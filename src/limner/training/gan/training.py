"""Train a generator: build the networks of a run; what is played, averaged, saved and drawn in the loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner import media
from limner.errors import CheckpointError, KeyMismatchError, OptionError
from limner.nn.projected import ProjectedDiscriminator
from limner.nn.stylegan2 import Discriminator, Generator
from limner.training.data import PictureSet
from limner.training.gan.embedding_game import EmbeddingGame
from limner.training.gan.games import Game, GanRun, ProjectedGame, StyleGan2Game
from limner.training.gan.options import CHANNEL_TABLES, DISCRIMINATOR_TABLE, GanOptions
from limner.training.loop import Training
from limner.training.run import Runtime, StepRandom, update_average

Figures = Callable[[GanRun], dict[str, float]]
Export = Callable[[GanRun, Path, dict[str, Any]], None]


def copy_matching(target: nn.Module, source: dict[str, Tensor]) -> list[str]:
    """Copy every tensor whose name and shape agree; return the names of the target's parameters that stay new."""
    own = target.state_dict()
    fits = {name: value for name, value in source.items() if name in own and own[name].shape == value.shape}
    target.load_state_dict(own | fits)
    return [name for name, _ in target.named_parameters() if name not in fits]


def build_generator(options: GanOptions) -> Generator:
    """Return a fresh generator of the options' size."""
    table = CHANNEL_TABLES[options.channels]
    return Generator(
        resolution=options.resolution,
        channels={size: width for size, width in table.items() if size <= options.resolution},
        z_dim=options.w_dim,
        w_dim=options.w_dim,
        mapping_depth=options.mapping_depth,
    )


def start_from(G: Generator, parent: Generator) -> frozenset[str]:
    """Copy a parent's weights; a smaller parent is grown.  Return the names of the new parameters.

    The new toRGB layers start at zero, so that the grown generator begins as its parent's enlarged image.

    Raises:
        KeyMismatchError: the parent is no smaller or equal generator of the same widths.
    """
    own, given = G.state_dict(), parent.state_dict()
    unused = [name for name, value in given.items() if name not in own or own[name].shape != value.shape]
    new = copy_matching(G, given)
    sizes = set(G.synthesis.channels) - set(parent.synthesis.channels)
    first_new = 2 * len(parent.synthesis.channels) - 1
    allowed = [f"synthesis.layers.{i}." for i in range(first_new, len(G.synthesis.layers))]
    allowed += [
        f"synthesis.to_rgb.{j}." for j in range(len(parent.synthesis.channels), len(G.synthesis.channels))
    ]
    wrong = [name for name in new if not name.startswith(tuple(allowed))] + unused
    if wrong:
        raise KeyMismatchError(
            f"init does not fit: it has channels {parent.synthesis.channels}, w_dim {parent.w_dim}, mapping depth "
            f"{len(parent.mapping.layers)}; this run has {G.synthesis.channels}, {G.w_dim}, {len(G.mapping.layers)} "
            f"(first difference: {wrong[0]}); set channels, w_dim and mapping_depth to the parent's"
        )
    with torch.no_grad():
        for j in range(len(parent.synthesis.channels), len(G.synthesis.channels)):
            G.synthesis.to_rgb[j].get_parameter("weight").zero_()
    return frozenset(new) if sizes else frozenset()


def build_run(
    options: GanOptions,
    runtime: Runtime,
    *,
    trunk: nn.Module | None,
    parent: Generator | None = None,
    parent_discriminator: dict[str, Tensor] | None = None,
) -> GanRun:
    """Make the networks of a new run.

    Args:
        trunk: frozen feature trunk, needed by the projected discriminator.
        parent: generator to start from or to grow.
        parent_discriminator: state whose fitting tensors the discriminator starts from.

    Raises:
        OptionError: options that contradict each other.
    """
    if options.crop and (options.discriminator != "projected" or options.reconstruct):
        raise OptionError("crop goes with the projected discriminator and without reconstruct; set it to 0")
    if options.below_weight and (options.discriminator != "projected" or options.reconstruct):
        raise OptionError(
            "below_weight goes with the projected discriminator and without reconstruct; set it to 0"
        )
    if options.crop > options.resolution:
        raise OptionError(
            f"crop is {options.crop} px, expected at most the resolution, {options.resolution} px"
        )
    torch.manual_seed(options.seed)
    G = build_generator(options)
    G.synthesis.whole_px = options.crop or options.resolution
    new = start_from(G, parent) if parent else frozenset()
    if options.discriminator == "projected":
        if trunk is None:
            raise CheckpointError(
                "the projected discriminator needs the trunk lite0; see `limner models verify`"
            )
        D: nn.Module = ProjectedDiscriminator(
            trunk=trunk,
            resolution=options.crop or options.resolution,
            feature_resolution=options.feature_resolution,
            seed=options.seed,
        )
    else:
        table = {size: width for size, width in DISCRIMINATOR_TABLE.items() if size <= options.resolution}
        if options.channels in ("half", "config-f"):
            table = dict(G.synthesis.channels)
        D = Discriminator(resolution=options.resolution, channels=table)
        for block in [D.from_rgb, *D.blocks][: options.freeze_d]:
            block.requires_grad_(False)
    if parent_discriminator:
        copy_matching(D, parent_discriminator)
    layout: Any = {"memory_format": torch.channels_last}  # torch's stubs do not know it
    for network in (G, D):
        network.to(runtime.device, **layout)
    pictures = PictureSet(options.data, options.resolution, select=options.select)
    ema = copy.deepcopy(G).requires_grad_(False).eval()
    return GanRun(options=options, runtime=runtime, pictures=pictures, G=G, ema=ema, D=D, new_parameters=new)


def make_game(run: GanRun) -> Game:
    """Return the game that the options ask for."""
    if run.options.discriminator == "stylegan2":
        return StyleGan2Game(run)
    return EmbeddingGame(run) if run.options.reconstruct else ProjectedGame(run)


class GanTraining(Training[GanRun]):
    """The training of a generator, on disk.

    Args:
        run: its networks.
        figures: measures the averaged generator, for the log.
        export: writes the averaged generator as a model file.
    """

    def __init__(self, run: GanRun, *, figures: Figures | None = None, export: Export | None = None):
        super().__init__(run, export=export)
        self.figures = figures
        self.game: Game = make_game(run)

    @property
    def hours(self) -> float:
        """Hours of training so far, over all calls; what was lost with a killed one does not count."""
        return self.seconds / 3600

    def spent(self) -> dict[str, float]:
        """Return the hours."""
        return {"hours": self.hours}

    def step(self, random: StepRandom) -> dict[str, Any]:
        """Play one step."""
        return self.game.step(random)

    def move_average(self) -> None:
        """Move the averaged generator, unless the generator is at rest."""
        run, options = self.run, self.run.options
        if options.only_discriminator or not run.generator_share():
            return
        update_average(
            run.ema,
            run.G,
            images=run.images,
            batch=options.batch_size,
            half_kimg=options.ema_kimg,
            ramp=options.ema_rampup,
        )

    def parts(self) -> dict[str, Any]:
        """Return the players, the averaged generator and what the game remembers."""
        run = self.run
        return {
            "seconds": self.seconds,
            "G": run.G.state_dict(),
            "ema": run.ema.state_dict(),
            "D": run.D.own_state() if isinstance(run.D, ProjectedDiscriminator) else run.D.state_dict(),
            "new_parameters": sorted(run.new_parameters),
            "game": self.game.state(),
        }

    def load_parts(self, state: dict[str, Any]) -> None:
        """Take back what `parts` returned."""
        run = self.run
        run.G.load_state_dict(state["G"])
        run.ema.load_state_dict(state["ema"])
        if isinstance(run.D, ProjectedDiscriminator):
            run.D.load_own_state(state["D"])
        else:
            run.D.load_state_dict(state["D"])
        run.new_parameters = frozenset(state["new_parameters"])
        self.seconds = state.get("seconds", 0.0)  # runs begun before hours were kept have none
        self.game.load_state(state["game"])

    def look(self, passed: Callable[[float], bool]) -> dict[str, float] | None:
        """Measure every ``metric_kimg``, draw every ``sheet_kimg``."""
        if passed(self.run.options.sheet_kimg):
            self.write_sheet()
        return self._measure() or None if passed(self.run.options.metric_kimg) else None

    def look_last(self) -> dict[str, float]:
        """Find the mean w, draw the last sheet, measure."""
        run = self.run
        if not run.options.only_discriminator:
            run.ema.w_avg.copy_(run.ema.mean_w(run.options.w_samples, rng=torch.Generator().manual_seed(0)))
        self.write_sheet()
        return self._measure()

    def _measure(self) -> dict[str, float]:
        return self.figures(self.run) if self.figures and self.run.options.metric_samples else {}

    @torch.no_grad()
    def write_sheet(self) -> Path:
        """Draw seeds 0-63 of the averaged generator, 8 x 8, psi 1, and return the picture's path."""
        run = self.run
        z = torch.cat(
            [torch.randn(1, run.ema.z_dim, generator=torch.Generator().manual_seed(s)) for s in range(64)]
        )
        parts = z.to(run.runtime.device).split(16)
        faces = [pixels for part in parts for pixels in media.to_pixels(run.ema(part))]
        sheet = media.make_sheet([faces[start : start + 8] for start in range(0, 64, 8)], gap_px=0)
        about = {"command": "train gan", "images": run.images, "seeds": "0-63", "psi": 1}
        path = self.out / "sheets" / f"{int(run.kimg):06d}.png"
        return media.write(path, sheet, options=about, source_type="trainedAlgorithmicMedia")
