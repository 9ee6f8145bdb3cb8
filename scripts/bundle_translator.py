"""Put a trained translator into the package, measured on held-out scenes, with its card.

    python scripts/bundle_translator.py runs/translate-128/model.safetensors

Writes src/limner/bundled/translator.safetensors (8 bits) and translator.md; afterwards run
`python scripts/index_bundled.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from bundling import add_base, describe_core, load_base, make_parser, start_provenance, write_card
from plain_errors import run_script

from limner import zoo
from limner.checkpoints.compact import load_encoder
from limner.checkpoints.translator import FILES, load_translator, save_translator
from limner.nn.translator import Translator
from limner.training.translator.data import Scenes
from limner.training.translator.figures import TranslatorExam
from limner.translation import TASKS

RECIPE = "recipes/translate-128.yaml (limner train translator --config ...)"
SOURCE = (
    "renders of synthetic heads from MakeHuman's CC0 assets (heads-256, seeds 0-3999; paired-256, seeds 20000-20899), "
    "faces of the generator heads, and the codes that the bundled encoder finds for them"
)
CARD = """# translator - sketches, label maps, small, masked, turned and toon pictures to faces of {base}

| | |
|---|---|
| file | `translator.safetensors`, {megabytes:.2f} MB, 8 bits; it needs the trunk `lite0` |
| kind | translator: {weights:,} weights (config {config}) on a frozen EfficientNet-Lite0; one pass to w+ of `{base}` (digest {digest}...) |
| tasks | {tasks}: one body, for each a stem (where the input is no photo), scales, shifts and a head |
| source | {source} |
| licence | CC0-1.0 |
| recipe | `{recipe}` |
| training | {kimg:.1f} thousand pictures over all tasks, teacher `encoder` |

{history}

Measured on the {count} scenes {validate} of paired-256, which training never saw, as stored (8 bits). "Own face" is the
share of results that are nearer to their own true face than to those of the other {others} scenes, distance the mean
perceptual distance (Lite0) to it: lower is nearer. "Mean face" is what looking at nothing would give, "teacher" what the
encoder makes of the true face itself; a translator that learns from it can hardly be better.

| task | own face | distance | mean face: distance | teacher: own face | teacher: distance | ms per face |
|---|---|---|---|---|---|---|
{table}

Sketches, small and masked pictures were made from the true photos with random strengths (`limner.translation.make_input`,
one seed); milliseconds are those of {threads} CPU thread(s) on a shared machine, painting not counted.

Limits: {limits}
"""
LIMITS = (
    "it knows what its generator and its encoder know, so results are plausible faces of `{base}` more than portraits; a "
    "sketch or label map says nothing of colours, which it guesses; label maps, frontal and toon pictures come from "
    "scenes of one renderer, and real ones were not measured."
)


def measure(translator: Translator, exam: TranslatorExam) -> tuple[dict[str, float], dict[str, float]]:
    """Return the exam's figures, and every task's seconds per face."""
    seconds = {}
    with torch.no_grad():
        for name in translator.tasks:
            x = exam.inputs[name][:8]
            translator(name, x)
            start = time.perf_counter()
            translator(name, x)
            seconds[name] = (time.perf_counter() - start) / len(x)
    return exam.measure(translator), seconds


def make_table(names: list[str], figures: dict[str, float], seconds: dict[str, float]) -> str:
    """Return the card's table."""
    lines = []
    for name in names:
        truth = TASKS[name].truth
        lines.append(
            f"| {name} | {figures[f'{name}_nearest']:.0%} | {figures[f'{name}_perceptual']:.3f} "
            f"| {figures[f'{truth}_mean_perceptual']:.3f} | {figures[f'{truth}_teacher_nearest']:.0%} "
            f"| {figures[f'{truth}_teacher_perceptual']:.3f} | {1000 * seconds[name]:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, write the translator and its card."""
    parser = make_parser(__doc__, out="translator.safetensors")
    parser.add_argument("translator", type=Path, help="what limner train translator wrote")
    add_base(parser)
    parser.add_argument("--teacher", default="encoder", help="encoder of the generator, name or file")
    parser.add_argument("--pairs", default="../shared/data/paired-256", help="scenes to measure on")
    parser.add_argument("--validate", default="20900-20999", help="which of them")
    parser.add_argument("--source", default=SOURCE, help="training pictures, for card and index")
    arguments = parser.parse_args()

    generator, base = load_base(arguments.base)
    trunk = zoo.load("lite0")
    translator = load_translator(arguments.translator, trunk=trunk)
    translator.check_base(generator)
    provenance = start_provenance(
        arguments.translator, FILES, source=arguments.source, recipe=RECIPE, parent=base["name"]
    )
    tasks = {name: TASKS[name] for name in translator.tasks}
    scenes = Scenes(arguments.pairs, generator.resolution, tasks, select=arguments.validate)
    teacher = load_encoder(zoo.resolve(arguments.teacher), trunk=trunk)
    exam = TranslatorExam(generator, trunk, scenes, tasks, count=len(scenes), teacher=teacher)
    translator.base = base
    # Measured is what ships: written, read again, measured, written with its figures.
    save_translator(translator, arguments.out, provenance=provenance, licence="CC0-1.0")
    packed = load_translator(arguments.out, trunk=trunk)
    figures, seconds = measure(packed, exam)
    provenance["figures"] = {key: round(value, 4) for key, value in figures.items()}
    save_translator(translator, arguments.out, provenance=provenance, licence="CC0-1.0")
    sizes = ("num_rows", "input_px", "width", "hidden", "rank", "inner", "head_rank")
    card = CARD.format(
        base=base["name"],
        megabytes=arguments.out.stat().st_size / 1e6,
        **describe_core(translator.core, sizes),
        digest=base["digest"][:12],
        tasks=", ".join(f"`{task}`" for task in translator.tasks),
        source=arguments.source,
        recipe=RECIPE,
        kimg=provenance["images"] / 1000,
        history=arguments.history,
        count=len(scenes),
        others=len(scenes) - 1,
        validate=arguments.validate,
        threads=torch.get_num_threads(),
        table=make_table(translator.tasks, figures, seconds),
        limits=arguments.limits or LIMITS.format(base=base["name"]),
    )
    write_card(arguments.out, card)


if __name__ == "__main__":
    run_script(main)
