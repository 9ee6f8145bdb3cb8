"""``limner eval``: measure a generator, inversions and styles on held-out pictures and write a report."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import __version__, zoo
from limner.app.console import Console, format_bytes, format_seconds
from limner.errors import LimnerError, OptionError
from limner.evaluation.options import EvaluationOptions
from limner.files import check_writable
from limner.options import knob, to_words
from limner.pipeline.options import TrunkOptions

if TYPE_CHECKING:
    from limner.evaluation import Section, Store
    from limner.pipeline import Models

SECTIONS = ("generation", "inversion", "stylization", "translation")
OTHER_NAMES = {
    "stylize": "stylization",
    "invert": "inversion",
    "sample": "generation",
    "translate": "translation",
}
COMMITTED_BYTES = 1_500_000
"""Size below which a report may be committed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(EvaluationOptions, TrunkOptions):
    """Options of ``limner eval``."""

    sections: tuple[str, ...] = knob(("all",), positional=True)
    """generation, inversion, stylization, translation or all"""
    model: str = zoo.DEFAULT_GENERATOR
    """generator, name or file"""
    encoder: str = ""
    """encoder of that generator, name or file; by default the one that belongs to it, if there is one"""
    translator: str = "translator"
    """translation: translator of that generator, name or file"""
    out: Path = Path("evaluation")
    """folder for report.html, report.md, report.json and their pictures"""
    cache: Path | None = None
    """folder that keeps what was measured, so that a later run measures only what changed; by default in the cache of
    models"""
    fresh: bool = False
    """measure everything anew"""


def run(options: Options, console: Console) -> int:
    """Measure what is asked for and write the report."""
    chosen = chosen_sections(options.sections)
    asked = {OTHER_NAMES.get(name, name) for name in options.sections}
    check_writable(options.out / "report.html")
    if {"generation", "inversion"} & set(chosen):
        options.find("heads")
    if {"stylization", "translation"} & set(chosen):
        options.find("pairs")
    from limner.app.device import pick_device
    from limner.evaluation import Store, write_report
    from limner.pipeline import load_models

    named: dict[str, Any] = {"encoder": options.encoder} if options.encoder else {}
    models = load_models(options.model, trunk=options.trunk, device=pick_device(console.settings), **named)
    store = Store(None if options.fresh else options.cache or zoo.cache_dir() / "evaluation")
    sections, seconds, failed = [], {}, None
    for name in chosen:
        begun = time.perf_counter()
        try:
            section = measure(name, models, options, store, console)
        except LimnerError as error:  # what could be measured is still reported
            if len(chosen) == 1:
                raise
            console.warn(f"{name} was not measured: {error}")
            # Not every generator has a translator; only who asks for it by name is owed one.
            failed = failed if name == "translation" and name not in asked else error
            continue
        seconds[name] = time.perf_counter() - begun
        console.print(f"{section.title}: {format_seconds(seconds[name])}")
        sections.append(section)
    if failed is not None and not sections:
        raise LimnerError("nothing was measured, no report was written; the reasons stand above")
    files = write_report(options.out, sections, about(options, models), command=command_line(options))
    size = sum(file.stat().st_size for file in files)
    if size > COMMITTED_BYTES:
        console.warn(
            f"the report has {format_bytes(size)}; below {format_bytes(COMMITTED_BYTES)} it can be committed"
        )
    for section in sections:
        for claim, holds, figures in goals(section):
            console.print(f"  {'yes' if holds else 'NO '}  {claim}: {figures}")
    console.print(
        f"wrote {options.out / 'report.html'} and {len(files) - 1} files beside it ({format_bytes(size)}); "
        f"{store.made} parts measured, {store.found} known from before"
    )
    console.result(
        report=options.out / "report.html",
        files=files,
        sections={section.name: section.data for section in sections},
        seconds=seconds,
    )
    if failed is not None:
        raise failed
    return 0


def chosen_sections(names: tuple[str, ...]) -> list[str]:
    """Return the sections that are named, in the report's order.

    Raises:
        OptionError: an unknown one.
    """
    wanted = [OTHER_NAMES.get(name, name) for name in names or ("all",)]
    unknown = [name for name in wanted if name not in (*SECTIONS, "all")]
    if unknown:
        raise OptionError(f"limner eval {unknown[0]}: expected one of {', '.join(SECTIONS)}, all")
    return [name for name in SECTIONS if name in wanted or "all" in wanted]


def measure(name: str, models: Models, options: Options, store: Store, console: Console) -> Section:
    """Measure one section."""
    from limner import evaluation
    from limner.evaluation.data import Eyes

    if name == "generation":
        eyes = Eyes(zoo.load("lite0").to(models.device), models.embedder, models.detector, models.device)
        return evaluation.evaluate_generation(models.generator, eyes, options, store, track=console.track)
    if name == "inversion":
        return evaluation.evaluate_inversion(models, options, store, track=console.track)
    if name == "translation":
        from limner.pipeline import load_translation_models

        translation = load_translation_models(
            options.translator, generator=options.model, device=models.device
        )
        return evaluation.evaluate_translation(models, translation, options, store, track=console.track)
    return evaluation.evaluate_stylization(models, options, store, track=console.track)


def about(options: Options, models: Models) -> dict[str, str]:
    """Say what was measured with what."""
    import torch

    from limner.nn import deltas

    generator = models.generator
    device = (
        torch.cuda.get_device_name()
        if models.device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "model": f"{models.base}, {generator.resolution} px, digest {deltas.digest(generator)[:16]}",
        "perceptual distance": models.trunk_name,
        "machine": f"{device} ({models.device.type}, {torch.get_num_threads()} threads), PyTorch {torch.__version__}",
        "made by": f"Limner {__version__} on {time.strftime('%Y-%m-%d')}"
        + " (quick: rough figures)" * options.quick,
    }


def command_line(options: Options) -> str:
    """Return the command line that makes this report again."""
    words = to_words(options, leave_out=("sections", "cache", "fresh"))
    return shlex.join(["limner", "eval", *options.sections, *words])


def goals(section: Section) -> list[tuple[str, bool, str]]:
    """Return all that a section checked."""
    from limner.evaluation.report import Checks

    blocks: list[Any] = list(section.blocks)
    return [item for block in blocks if isinstance(block, Checks) for item in block.items]
