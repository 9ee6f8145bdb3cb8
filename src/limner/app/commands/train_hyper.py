"""``limner train hyper``: train the small HyperInverter of a generator and its compact encoder, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.app.console import Console
from limner.app.training import describe_run, finish, fit, launch, tell_places
from limner.errors import CheckpointError, OptionError
from limner.training.hyper.options import HyperOptions as Options

if TYPE_CHECKING:
    from limner.training.hyper.lessons import HyperRun
    from limner.training.run import Runtime

MOST = 200
"""Pictures that figures are made of, at most."""


def run(options: Options, console: Console) -> int:
    """Train until ``kimg``, ``seconds`` or an interrupt; the state is saved in each case."""
    if not options.data:
        raise OptionError("limner train hyper: name the pictures with --data")
    return launch(_train, options, console)


def _train(options: Options, console: Console, runtime: Runtime) -> int:
    from limner import losses
    from limner.inversion import TrunkDistance
    from limner.pipeline import load_models
    from limner.training.cores import EncoderTraining
    from limner.training.data import PictureSet
    from limner.training.hyper.lessons import HyperExam, HyperLessons, build_run

    named: dict[str, Any] = {"encoder": options.encoder} if options.encoder else {}
    models = load_models(options.base, device=runtime.device, **named)
    encoder = models.compact
    if encoder is None:
        raise CheckpointError(
            f"{options.base} has no compact encoder; train one with limner train encoder, or name one with --encoder"
        )
    hyper = build_run(options, runtime, generator=models.generator, encoder=encoder, embedder=models.embedder)
    exams: list[HyperExam] = []

    def examine(run: HyperRun, sheet: Path) -> dict[str, float]:
        if not exams:
            chosen = options.validate or options.select
            pictures = PictureSet(
                options.data, models.generator.resolution, select=chosen, every=not options.validate
            )
            exams.append(
                HyperExam(
                    (pictures.pixels[:MOST].float() / 127.5 - 1).to(runtime.device),
                    [Path(name).stem for name in pictures.names[:MOST]],
                    perceptual=TrunkDistance(encoder.trunk, name="lite0"),
                    identity=lambda a, b: losses.identity_distance(models.embedder, a, b),
                )
            )
        return exams[0].measure(run, sheet)

    training = EncoderTraining(hyper, HyperLessons(hyper), examine=examine, export=_export)
    training.setup()
    if not runtime.is_main:
        training.fit()
        return 0
    weights = sum(p.numel() for p in hyper.encoder.core.parameters())
    console.print(
        f"{len(hyper.pictures)} pictures, generator {models.base} at {models.generator.resolution} px, {weights:,} weights, "
        f"{len(hyper.encoder.core.targets)} layers change, on {runtime}; "
        + (f"resuming at {hyper.kimg:.2f} kimg" if hyper.step else "starting anew")
    )
    tell_places(hyper.pictures.counts, console)

    def shown(record: dict[str, Any]) -> list[str]:
        return [f"l2 {record['l2']:.4f} (encoder {record['l2_before']:.4f})"]

    def tell(figures: dict[str, Any]) -> list[str]:
        return [
            f"{name}: {figures[name]:.4g}, encoder alone {figures[name + '_encoder']:.4g}"
            for name in ("psnr", "ssim", "perceptual", "identity")
            if name in figures
        ]

    return finish(training, console, fit(training, console, "train hyper (images)", shown), tell)


def _export(run: HyperRun, path: Path, figures: dict[str, Any]) -> None:
    from limner.checkpoints.compact_hyper import save_hyper

    provenance = describe_run("train hyper", run, figures, counts=run.pictures.counts)
    save_hyper(run.average, path, provenance=provenance, encoder=run.options.encoder, packed=False)
