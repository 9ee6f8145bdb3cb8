"""What the commands that train share: the start in one process or several, and the curves at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from limner.app.console import Console
from limner.errors import MissingExtraError
from limner.options import to_mapping
from limner.training.shared_options import LoopOptions

if TYPE_CHECKING:
    from limner.training.run import Journal, Runtime

TrainOptions = TypeVar("TrainOptions", bound=LoopOptions)


def launch(
    train: Callable[[TrainOptions, Console, Runtime], int], options: TrainOptions, console: Console
) -> int:
    """Pick the device, call ``train`` in every process that ``options`` asks for, and return rank 0's result."""
    from limner.app.device import pick_device
    from limner.training.run import Runtime, settle

    device = pick_device(console.settings, deterministic=False)
    options = settle(options, device)
    return Runtime.launch(
        lambda runtime: train(options, console, runtime),
        processes=options.processes,
        device=device,
        precision=options.precision,
    )


def fit(training: Any, console: Console, title: str, shown: Callable[[dict[str, Any]], list[str]]) -> bool:
    """Train with a progress bar and the time left; return whether the end was reached.

    Args:
        training: has ``run`` (its options, images seen) and ``fit``.
        console: shows the bar.
        title: what is counted, such as ``train encoder (images)``.
        shown: record of a step -> the figures that stand beside the bar.
    """
    run = training.run
    left = max(0, round(run.options.kimg * 1000) - run.images)
    start = run.images
    with console.progress(left, title) as progress:

        def show(record: dict[str, Any]) -> None:
            note = f"{record['img_per_s']:.1f} img/s  {'  '.join(shown(record))}"
            progress.set(min(left, run.images - start), note)

        return bool(training.fit(show))


def tell_places(counts: Mapping[str, int], console: Console) -> None:
    """Say how many pictures or scenes come from which place, where there are several."""
    if len(counts) > 1:
        console.print("; ".join(f"{count} from {place}" for place, count in counts.items()))


def describe_run(
    command: str, run: Any, figures: dict[str, Any], *, counts: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return the provenance of what a run has trained: command, options, pictures, images seen, rounded figures.

    Args:
        command: its name.
        run: has ``options`` and ``images``.
        figures: measured at the end.
        counts: place -> pictures or scenes that were learned from.
    """
    return {
        "command": command,
        "options": to_mapping(run.options),
        "learned_from": dict(counts or {}),
        "images": run.images,
        "figures": {name: round(value, 4) for name, value in figures.items()},
    }


def finish(
    training: Any,
    console: Console,
    finished: bool,
    tell: Callable[[dict[str, Any]], list[str]],
    **files: Path,
) -> int:
    """Measure what a run has trained, draw its curves, say what came of it and where it lies; return the exit status.

    Args:
        training: has ``run`` (options, thousands of images seen), ``validate``, ``journal`` and the folder ``out``.
        console: what the words and the result go to.
        finished: whether the end was reached, see `fit`.
        tell: figures -> lines about them.
        files: what was written beside the model and the sheets, by name.
    """
    run, out = training.run, Path(training.out)
    figures = training.validate()
    plot(training.journal, console)
    for line in tell(figures):
        console.print(line)
    files = {"model": out / "model.safetensors", **files}
    places = {**files, "sheets": out / "sheets"}
    console.print(", ".join(f"{name}: {place}" for name, place in places.items()))
    if not finished:
        console.print(
            f"stopped at {run.kimg:.2f} of {run.options.kimg:g} kimg; the same command goes on from here"
        )
    console.result(kimg=run.kimg, finished=finished, **files, **figures)
    return 0


def tell_nearness(figures: Mapping[str, float]) -> list[str]:
    """Return the figures of an encoder's exam, one line a measure, those of photos at its end."""
    measures = ("psnr", "ssim", "perceptual", "identity")
    return [
        ", ".join(f"{key} {figures[key]:.3g}" for key in figures if key.startswith((name, f"photo_{name}")))
        for name in measures
    ]


def plot(journal: Journal, console: Console) -> None:
    """Draw a run's curves beside its log, as ``log.png``, and say so."""
    from limner.training.plots import plot_log

    records: list[dict[str, Any]] = journal.read()
    if not records:
        return
    target: Path = journal.path.with_name("log.png")
    try:
        console.print(f"curves: {plot_log(records, target)}")
    except MissingExtraError as error:
        console.detail(str(error))
