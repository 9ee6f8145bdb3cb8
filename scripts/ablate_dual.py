"""Train DualStyleGANs with one part left out each, with equal budgets, and compare them on held-out pairs.

    python scripts/ablate_dual.py --seconds 900 --out out/dual-ablation

The networks are the bundled generator and its toon child as far as 64 px, so that 15 minutes order the variants.  Budgets
are CPU seconds of this process, so that a busy machine changes nothing; what is left out gives its time to the others.
The codes of the portraits are found once, for all variants, and are not counted.

full: structure 30 %, style 60 %, refinement 10 % of the budget.  no-structure: no structure transfer on faces (second
stage of progressive fine-tuning).  no-style: no style transfer on portraits (third stage).  no-destylise: a portrait's
face is taken to be the encoder's code of the portrait itself.  no-refine: codes stay as they were found.
no-fine: no residual blocks beyond the structure rows, as published.  no-frechet: no Frechet distance in the style stage, as
published.  published-residual: the residual blocks' size counts as much as published (0.015), whatever the recipe says.

Writes figures.json, table.md and sheet.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plain_errors import run_script
from torch import Tensor

from limner import checkpoints, media, zoo
from limner.app.commands.train_dual import load_networks
from limner.nn.dualstylegan import DualGenerator
from limner.nn.stylegan2 import Generator
from limner.options import from_mapping, read_recipe
from limner.training.data import PictureSet
from limner.training.dual.figures import measure_pairs, measure_selectivity, paint_all
from limner.training.dual.options import DualTrainOptions
from limner.training.dual.pairs import ENCODER_STEPS, DestylizeStage, RefineStage
from limner.training.dual.stage import Stage
from limner.training.dual.training import DualTraining, Networks
from limner.training.dual.transfer import StructureStage, StyleStage, copy_for_average
from limner.training.run import Runtime, StepRandom

CHANGES: dict[str, dict[str, float]] = {
    "no-fine": {"fine_blocks": 0},
    "no-frechet": {"style_frechet": 0.0},
    "published-residual": {"style_residual": 0.015},
}
VARIANTS = ("full", "no-structure", "no-style", "no-destylise", "no-refine", *CHANGES)
SHARES = {"structure": 0.3, "style": 0.6, "refine": 0.1}
SHOWN = ("truth_own", "frechet_known", "identity_known", "style_gram", "style_gram_color", "person")
DUAL_ROWS = 7
"""Rows of structure from 32 px on."""
CPU = torch.device("cpu")


def cut(generator: Generator, side: int) -> Generator:
    """Return the layers of a generator up to a size: its image so far is a picture."""
    config = generator.config()
    del config["label_dim"]
    table = {size: width for size, width in config["channels"].items() if size <= side}
    small = Generator(**config | {"resolution": side, "channels": table})
    state = generator.state_dict()
    small.load_state_dict({name: state[name] for name in small.state_dict()})
    return small.eval().requires_grad_(False)


class CutEncoder:
    """The encoder of the whole generator, for its first rows.

    Args:
        encoder: of ``whole``.
        whole: generator.
        rows: of the codes that are kept.
    """

    def __init__(self, encoder: Any, whole: Generator, rows: int):
        self.encoder, self.whole, self.rows, self.core = encoder, whole, rows, encoder.core

    @torch.no_grad()
    def encode(self, base: Generator, image: Tensor, *, steps: int) -> list[Tensor]:
        """Return w+ (B, rows, w_dim) after every pass."""
        side = self.whole.resolution
        large = F.interpolate(image, size=side, mode="bicubic", align_corners=False).clamp(-1, 1)
        return [w_plus[:, : self.rows] for w_plus in self.encoder.encode(self.whole, large, steps=steps)]


def load(arguments: argparse.Namespace) -> DualTraining:
    """Return the training on cut networks."""
    changes = {
        "images": [str(arguments.portraits)],
        "select": arguments.select,
        "pictures": arguments.pictures,
        "out": str(arguments.out / "unused"),
        "rank": arguments.rank,
        "destylize_batch": 10,
        "destylize_code_steps": arguments.code_steps,
        "destylize_steps": arguments.code_steps * 2,
        "feature_resolution": 64,
        "seed": arguments.seed,
        "precision": "fp32",
    }
    recipe = read_recipe(arguments.recipe)
    # A network cut to 64 px has two layers beyond the structure rows, one cut to 128 px four.
    beyond = max(0, 2 * (arguments.size.bit_length() - 1) - 3 - DUAL_ROWS)
    changes["fine_blocks"] = min(recipe.get("fine_blocks", 0), beyond)
    options = from_mapping(DualTrainOptions, recipe | changes, str(arguments.recipe))
    runtime = Runtime(CPU, "fp32")
    whole = load_networks(options, runtime)
    if whole.encoder is None:
        sys.exit("error: the base has no compact encoder")
    child = checkpoints.load(zoo.resolve("toon-child"), parts=("generator",)).generator
    assert isinstance(child, Generator)
    base = cut(whole.base, arguments.size)
    networks = Networks(
        base=base,
        base_name=f"heads at {arguments.size} px",
        trunk=whole.trunk,
        eyes=whole.eyes,
        encoder=CutEncoder(whole.encoder, whole.base, base.num_rows),
        tuned=cut(child, arguments.size),
    )
    return DualTraining(options, runtime, networks)


def play_for(stage: Stage, seconds: float, seed: int) -> None:
    """Play a stage for so many CPU seconds; its length is reckoned from its third step, since the first ones measure."""
    begun, step = time.process_time(), 0
    while step < stage.total and (step < 3 or time.process_time() - begun < seconds):
        before, step = time.process_time(), step + 1
        stage.step(step, StepRandom(seed + stage.number, step, 0, CPU))
        stage.done = step
        if step == 3:
            now = time.process_time()
            stage.total = 3 + max(1, round((seconds - (now - begun)) / (now - before)))


def find_codes(training: DualTraining) -> dict[str, Tensor]:
    """Return the codes of the portraits, for all variants."""
    tuned = training.networks.tuned
    assert tuned is not None
    stage = DestylizeStage(training.setting, tuned, key="")
    for step in range(1, stage.total + 1):
        stage.step(step, StepRandom(0, step, 0, CPU))
        print(f"codes: batch {step} of {stage.total}", flush=True)
    return stage.codes


def train(
    training: DualTraining, codes: dict[str, Tensor], variant: str, seconds: float
) -> tuple[DualGenerator, Tensor, dict[str, int]]:
    """Return a variant's averaged model, the z+ codes of its styles, and the steps that it took."""
    left_out = variant.removeprefix("no-")
    shares = {name: share for name, share in SHARES.items() if name != left_out}
    budget = {name: seconds * share / sum(shares.values()) for name, share in shares.items()}
    if left_out == "destylise":
        codes = codes | {"intrinsic": codes["extrinsic"]}
    setting, seed = training.setting, training.options.seed
    options = dataclasses.replace(setting.options, **CHANGES.get(variant, {}))  # pyright: ignore[reportArgumentType]
    setting = dataclasses.replace(setting, options=options)
    dual = training.start_model(options)
    average = copy_for_average(dual)
    steps: dict[str, int] = {}
    players = {
        "structure": lambda: StructureStage(setting, dual, average, training.start_adversary(), key=""),
        "style": lambda: StyleStage(setting, dual, average, training.start_adversary(), codes=codes, key=""),
    }
    for name, make in players.items():
        if name in budget:
            stage = make()
            stage.total = 1_000_000
            play_for(stage, budget[name], seed)
            steps[name] = stage.done
    average.requires_grad_(False).eval()
    if "refine" not in budget:
        return average, codes["extrinsic"], steps
    # All styles get as many steps as the time allows: one batch tells how long a step takes.
    trial = dataclasses.replace(setting, options=dataclasses.replace(setting.options, refine_steps=1))
    begun = time.process_time()
    batch = RefineStage(trial, average, codes, key="")
    batch.step(1, StepRandom(0, 1, 0, CPU))
    each = (time.process_time() - begun) / 2 * batch.total
    steps["refine"] = max(1, round(budget["refine"] / each))
    options = dataclasses.replace(setting.options, refine_steps=steps["refine"])
    stage = RefineStage(dataclasses.replace(setting, options=options), average, codes, key="")
    for step in range(1, stage.total + 1):
        stage.step(step, StepRandom(0, step, 0, CPU))
    return average, stage.refined, steps


def pairs(arguments: argparse.Namespace, training: DualTraining) -> dict[str, Tensor]:
    """Return held-out faces and portraits, and their w+ by the encoder."""
    found, side = {}, training.setting.base.resolution
    for name, folder in (("faces", arguments.faces), ("portraits", arguments.portraits)):
        images = PictureSet(str(folder), side, select=arguments.held_out).pixels.float() / 127.5 - 1
        encoder: Any = training.setting.encoder
        codes = [
            encoder.encode(training.setting.base, part, steps=ENCODER_STEPS)[-1] for part in images.split(10)
        ]
        found |= {name: images, f"{name}_codes": torch.cat(codes)}
    return found


def measure(
    training: DualTraining, dual: DualGenerator, z_plus: Tensor, held: dict[str, Tensor], count: int = 20
) -> dict[str, float]:
    """Return the figures of one variant."""
    base, eyes = dual.generator, training.setting.eyes
    extrinsic, weights = base.map_z_plus(z_plus[:count]), torch.tensor(dual.weights())
    people = held["faces_codes"]
    exemplars = training.setting.portraits(list(range(len(extrinsic))))
    figures = measure_selectivity(
        dual, people[: len(extrinsic)], extrinsic, exemplars, eyes=eyes, weights=weights
    )
    return figures | measure_pairs(
        dual,
        held["faces"],
        held["portraits"],
        people,
        held["portraits_codes"],
        extrinsic,
        eyes=eyes,
        weights=weights,
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and measure all variants."""
    training = load(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    held, codes = pairs(arguments, training), find_codes(training)
    found: dict[str, Any] = {"seconds": arguments.seconds, "pictures": arguments.pictures, "variants": {}}
    exemplars = training.setting.portraits(list(range(6)))
    sheet = [media.to_pixels(held["faces"][:6]), media.to_pixels(exemplars)]
    for variant in arguments.variants:
        begun = time.process_time()
        dual, z_plus, steps = train(training, codes, variant, arguments.seconds)
        figures = measure(training, dual, z_plus, held) | {"steps": steps}
        figures["cpu_s"] = round(time.process_time() - begun, 1)
        found["variants"][variant] = figures
        people, styles = held["faces_codes"][:6], dual.generator.map_z_plus(z_plus[:6])
        sheet.append(media.to_pixels(paint_all(dual, people, styles)))
        print(f"{variant}: {json.dumps(figures)}", flush=True)
    labels = ["face", "exemplar", *arguments.variants]
    about = {"command": "ablate_dual", "seconds": arguments.seconds}
    media.write(
        arguments.out / "sheet.png",
        media.make_sheet(sheet, labels, cell_px=128),
        options=about,
        source_type="trainedAlgorithmicMedia",
    )
    (arguments.out / "figures.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "table.md").write_text(to_table(found), encoding="utf-8")
    return found


def to_table(found: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        f"Budget {found['seconds']:g} CPU seconds per variant, {found['pictures']} styles.",
        "",
        "| variant | " + " | ".join(SHOWN) + " | steps |",
        "|---|" + "---|" * (len(SHOWN) + 1),
    ]
    for name, figures in found["variants"].items():
        steps = ", ".join(f"{stage} {count}" for stage, count in figures["steps"].items())
        lines.append(f"| {name} | " + " | ".join(f"{figures[key]:.3f}" for key in SHOWN) + f" | {steps} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the ablation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path("../shared/data/paired-256")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/dual-toon.yaml"), help="other options")
    parser.add_argument("--seconds", type=float, default=900.0, help="CPU seconds per variant")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and sheet")
    parser.add_argument("--portraits", type=Path, default=data / "toon")
    parser.add_argument("--faces", type=Path, default=data / "photo")
    parser.add_argument("--select", default="20000-20899", help="numbers of the portraits to train on")
    parser.add_argument("--held-out", default="20900-20999", help="numbers of the pairs to measure on")
    parser.add_argument("--pictures", type=int, default=20, help="portraits with a code")
    parser.add_argument(
        "--code-steps", type=int, default=30, help="steps of the search for a portrait's code"
    )
    parser.add_argument("--rank", type=int, default=24, help="of the extrinsic path")
    parser.add_argument("--size", type=int, default=64, help="px of the images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    print(to_table(run(parser.parse_args())), end="")
    return 0


if __name__ == "__main__":
    run_script(main)
