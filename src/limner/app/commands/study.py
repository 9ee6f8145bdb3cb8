"""``limner study``: the experiments of Image2StyleGAN on any generator, with figures, a table and what holds of the paper."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import time
from pathlib import Path
from typing import Any

from limner import __version__, zoo
from limner.app.console import Console, format_bytes
from limner.evaluation.study_options import StudyOptions
from limner.files import check_writable
from limner.options import to_words

INTRODUCTION = (
    "The experiments of Image2StyleGAN (Abdal et al. 2019, arXiv 1904.03189), repeated. Whether a statement of the paper "
    "holds is computed from the figures, not judged by eye; pictures are taken in order, never picked."
)
CELLS = "cells"
COMMITTED_BYTES = 700_000
"""Size below which a study may be committed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Options of ``limner study``."""

    model: str = zoo.DEFAULT_GENERATOR
    """generator, name or file"""
    out: Path = Path("study")
    """folder for study.html, study.md, study.json and the sheets"""
    cache: Path | None = None
    """folder that keeps what was embedded, so that a study that was stopped goes on; by default cells in the folder above"""
    fresh: bool = False
    """embed everything anew"""


def run(options: Options, console: Console) -> int:
    """Embed what the experiments ask for and write the report."""
    scaled = options.scaled()
    chosen = scaled.chosen()
    check_writable(options.out / "study.html")
    from limner.app.device import pick_device
    from limner.evaluation import Store, write_report
    from limner.evaluation.study import loss_layers, make_settings, run_study
    from limner.evaluation.study_targets import read_targets
    from limner.inversion import TrunkDistance
    from limner.pipeline.models import load_models, pick_trunk

    trunk, stands_for = pick_trunk("vgg16")
    device = pick_device(console.settings)
    models = load_models(options.model, trunk=trunk, stands_for=stands_for, device=device)
    targets = read_targets(scaled, models.generator.resolution, detector=models.detector)
    judge = TrunkDistance(zoo.load("lite0").to(device), name="lite0")
    store = Store(None if options.fresh else options.cache or options.out / CELLS)
    cells = make_settings(scaled, loss_layers(models))
    begun = time.perf_counter()
    with console.progress(len(cells) * scaled.steps, "Embedding (steps)") as progress:
        sections = run_study(
            models,
            targets,
            scaled,
            store,
            judge_distance=judge,
            on_progress=lambda steps, name: progress.advance(steps, name),
        )
    files = write_report(
        options.out,
        sections,
        about(options, models),
        command=command_line(options),
        title="The Image2StyleGAN study",
        introduction=INTRODUCTION,
        name="study",
    )
    claims: list[Any] = sections[0].data["claims"]
    for claim in claims:
        mark = "yes" if claim["as_in_the_paper"] else "NO "
        console.print(f"  {mark}  {claim['claim']}: {claim['figures']}")
    size = sum(file.stat().st_size for file in files)
    if size > COMMITTED_BYTES:
        console.warn(
            f"the study has {format_bytes(size)}; below {format_bytes(COMMITTED_BYTES)} it can be committed"
        )
    console.print(
        f"{sum(claim['as_in_the_paper'] for claim in claims)} of {len(claims)} statements as in the paper "
        f"({', '.join(chosen)}); wrote {options.out / 'study.html'} and {len(files) - 1} files beside it ({format_bytes(size)}); "
        f"{store.made} cells embedded, {store.found} known from before"
    )
    console.result(
        report=options.out / "study.html",
        files=files,
        claims=claims,
        cells=sections[0].data["cells"],
        seconds=time.perf_counter() - begun,
    )
    return 0


def about(options: Options, models: Any) -> dict[str, str]:
    """Say what was measured with what."""
    import torch

    from limner.nn import deltas

    generator = models.generator
    stands = f", standing for {models.stands_for}" if models.stands_for else ""
    machine = platform.processor() or platform.machine()
    return {
        "model": f"{models.base}, {generator.resolution} px, digest {deltas.digest(generator)[:16]}",
        "loss": f"{models.trunk_name}{stands}",
        "machine": f"{machine} ({models.device.type}, {torch.get_num_threads()} threads), PyTorch {torch.__version__}",
        "made by": f"Limner {__version__} on {time.strftime('%Y-%m-%d')}"
        + " (quick: rough figures)" * options.quick,
    }


def command_line(options: Options) -> str:
    """Return the command line that makes this report again."""
    return shlex.join(["limner", "study", *to_words(options, leave_out=("cache", "fresh"))])
