"""Train a generator: build or resume a run, play it, keep averaged weights, sheets, figures and log.

All state is one dict in ``OUT/state.pt``; a run that was killed continues from it exactly as if it had not been.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner import media
from limner.errors import CheckpointError, KeyMismatchError, OptionError
from limner.nn.projected import ProjectedDiscriminator
from limner.nn.stylegan2 import Discriminator, Generator
from limner.options import to_mapping
from limner.training.data import PictureSet
from limner.training.embedding_game import EmbeddingGame
from limner.training.games import Game, GanRun, ProjectedGame, StyleGan2Game
from limner.training.options import CHANNEL_TABLES, DISCRIMINATOR_TABLE, GanOptions
from limner.training.run import Clock, Journal, Runtime, StepRandom, load_state, save_state, update_average

OnStep = Callable[[dict[str, Any]], None]
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
    if options.crop > options.resolution:
        raise OptionError(
            f"crop is {options.crop} px, expected at most the resolution, {options.resolution} px"
        )
    torch.manual_seed(options.seed)
    G = build_generator(options)
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


class GanTraining:
    """A run on disk: ``state.pt``, ``log.jsonl``, ``options.json``, ``sheets/``, ``model.safetensors``.

    Args:
        run: its networks.
        figures: measures the averaged generator, for the log.
        export: writes the averaged generator as a model file.
    """

    def __init__(self, run: GanRun, *, figures: Figures | None = None, export: Export | None = None):
        self.run, self.figures, self.export = run, figures, export
        self.out = Path(run.options.out)
        self.game: Game = make_game(run)
        self.journal = Journal(self.out / "log.jsonl")
        self.seconds = 0.0  # of training, measuring included, over all calls up to the last saved state

    @property
    def hours(self) -> float:
        """Hours of training so far, over all calls; what was lost with a killed one does not count."""
        return self.seconds / 3600

    def state(self) -> dict[str, Any]:
        """Return everything that decides how the run goes on."""
        run = self.run
        return {
            "step": run.step,
            "images": run.images,
            "seconds": self.seconds,
            "G": run.G.state_dict(),
            "ema": run.ema.state_dict(),
            "D": run.D.own_state() if isinstance(run.D, ProjectedDiscriminator) else run.D.state_dict(),
            "new_parameters": sorted(run.new_parameters),
            "game": self.game.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned.

        Raises:
            KeyMismatchError: the state belongs to a run with other options.
        """
        run = self.run
        try:
            run.G.load_state_dict(state["G"])
            run.ema.load_state_dict(state["ema"])
            if isinstance(run.D, ProjectedDiscriminator):
                run.D.load_own_state(state["D"])
            else:
                run.D.load_state_dict(state["D"])
            run.new_parameters = frozenset(state["new_parameters"])
            run.step, run.images = state["step"], state["images"]
            self.seconds = state.get("seconds", 0.0)  # runs begun before hours were kept have none
            self.game.load_state(state["game"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise KeyMismatchError(
                f"{self.out}/state.pt belongs to a run with other options ({str(error).splitlines()[0]}); "
                f"give another out folder or the options in {self.out}/options.json"
            ) from error

    def setup(self) -> None:
        """Make the folder, resume what lies there."""
        run = self.run
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "sheets").mkdir(exist_ok=True)
        if (self.out / "state.pt").exists():
            self.load_state(load_state(self.out / "state.pt", run.runtime.device))
        if run.runtime.is_main:
            self.journal.cut(run.kimg)
            (self.out / "options.json").write_text(json.dumps(to_mapping(run.options), indent=1) + "\n")

    def fit(self, on_step: OnStep | None = None) -> bool:
        """Train to the end, or until the time limit or a signal; return whether the end was reached."""
        run, options = self.run, self.run.options
        clock = Clock(limit_s=options.seconds, save_s=options.save_seconds)
        start, earlier = run.images, self.seconds
        with clock.signals():
            while run.kimg < options.kimg and not run.runtime.agree(clock.should_stop()):
                random = StepRandom(options.seed, run.step + 1, run.runtime.rank, run.runtime.device)
                record = self.game.step(random)
                before = run.images
                run.step += 1
                run.images += options.batch_size
                if not options.only_discriminator and run.generator_share() > 0:
                    update_average(
                        run.ema,
                        run.G,
                        images=run.images,
                        batch=options.batch_size,
                        half_kimg=options.ema_kimg,
                        ramp=options.ema_rampup,
                    )
                record |= {"kimg": run.kimg, "img_per_s": (run.images - start) / max(clock.seconds, 1e-9)}
                self.seconds = earlier + clock.seconds
                self._after_step(record, before, clock)
                if on_step and run.runtime.is_main:
                    on_step(record)
            self._save()
        return run.kimg >= options.kimg

    def _after_step(self, record: dict[str, Any], before: int, clock: Clock) -> None:
        run, options = self.run, self.run.options
        if not run.runtime.is_main:
            return

        def passed(kimg: float) -> bool:
            return kimg > 0 and int(run.kimg / kimg) > int(before / 1000 / kimg)

        if passed(options.metric_kimg) and self.figures and options.metric_samples:
            record |= self.figures(run)
        record["hours"] = self.hours
        if run.step % 20 == 0 or "frechet" in record:
            self.journal.write(record)
        if passed(options.sheet_kimg):
            self.write_sheet()
        if clock.should_save():
            self._save()

    def validate(self) -> dict[str, float]:
        """Measure the averaged generator, write the last sheet and the model; return the figures."""
        run = self.run
        if not run.runtime.is_main:
            return {}
        if not run.options.only_discriminator:
            run.ema.w_avg.copy_(run.ema.mean_w(run.options.w_samples, rng=torch.Generator().manual_seed(0)))
        self.write_sheet()
        figures = self.figures(run) if self.figures and run.options.metric_samples else {}
        if figures:
            self.journal.write({"kimg": run.kimg, "hours": self.hours, **figures})
        figures = {**figures, "hours": self.hours}
        if self.export:
            self.export(run, self.out / "model.safetensors", figures)
        return figures

    def _save(self) -> None:
        self.run.runtime.barrier()
        if self.run.runtime.is_main:
            save_state(self.out / "state.pt", self.state())

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
