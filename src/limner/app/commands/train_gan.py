"""``limner train gan``: train a generator from a recipe, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.app.console import Console
from limner.app.training import describe_run, finish, fit, launch, tell_places
from limner.training.gan.options import GanOptions as Options

if TYPE_CHECKING:
    import torch

    from limner.training.gan.games import GanRun
    from limner.training.gan.training import GanTraining
    from limner.training.run import Runtime


def run(options: Options, console: Console) -> int:
    """Train until ``kimg``, ``seconds`` or an interrupt; the state is saved in each case."""
    return launch(_train, options, console)


def _train(options: Options, console: Console, runtime: Runtime) -> int:
    import torch

    from limner import zoo
    from limner.training.gan.training import GanTraining, build_run
    from limner.training.gan.yardstick import Yardstick

    trunk: Any = None
    if options.discriminator == "projected" or options.metric_samples:
        trunk = zoo.load("lite0").to(runtime.device, memory_format=torch.channels_last)
    parent, parent_d = _parent(options)
    gan = build_run(options, runtime, trunk=trunk, parent=parent, parent_discriminator=parent_d)
    yardsticks: list[Yardstick] = []

    def figure(run: GanRun) -> dict[str, float]:
        if not yardsticks:  # measuring the real pictures takes a while: not before it is needed
            yardsticks.append(
                Yardstick(trunk, run.pictures, samples=options.metric_samples, device=runtime.device)
            )
        return yardsticks[0].measure(run.ema)

    training = GanTraining(gan, figures=None if trunk is None else figure, export=_export)
    training.setup()
    if not runtime.is_main:
        training.fit()
        return 0
    console.print(
        f"{len(gan.pictures)} pictures at {options.resolution} px, {sum(p.numel() for p in gan.G.parameters()):,} "
        f"weights, {options.discriminator} discriminator, on {runtime}; "
        + (f"resuming at {gan.kimg:.1f} kimg" if gan.step else "starting anew")
    )
    tell_places(gan.pictures.counts, console)

    def tell(figures: dict[str, Any]) -> list[str]:
        shown = "".join(f"; {name} {value:.3g}" for name, value in figures.items())
        return [f"{gan.kimg:.1f} kimg seen{shown}"]

    return finish(training, console, _fit(training, console), tell)


def _parent(options: Options) -> tuple[Any, dict[str, torch.Tensor] | None]:
    """Return the generator and discriminator weights that ``init`` names."""
    if not options.init or (Path(options.out) / "state.pt").exists():
        return None, None
    from limner import checkpoints, zoo

    checkpoint = checkpoints.load(zoo.resolve(options.init))
    discriminator = checkpoint.discriminator
    return checkpoint.generator, discriminator.state_dict() if discriminator else None


def _fit(training: GanTraining, console: Console) -> bool:
    def shown(record: dict[str, Any]) -> list[str]:
        parts = ("loss", "moments", "pull", "augment", "rec", "cycle")
        return [f"{name} {value:.3g}" for name, value in record.items() if name.startswith(parts)]

    return fit(training, console, "train gan (images)", shown)


def _export(run: GanRun, path: Path, figures: dict[str, Any]) -> None:
    from limner.checkpoints import Checkpoint, save
    from limner.nn.stylegan2 import Discriminator

    provenance = describe_run("train gan", run, figures, counts=run.pictures.counts)
    discriminator = run.D if isinstance(run.D, Discriminator) else None
    checkpoint = Checkpoint(
        generator=run.ema,
        discriminator=discriminator,
        metadata={"provenance": provenance, "licence": "unknown"},
    )
    save(checkpoint, path, dtype="float16")
