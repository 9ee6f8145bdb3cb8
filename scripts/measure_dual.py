"""Measure a DualStyleGAN on held-out pairs and paint its sheets.

    python scripts/measure_dual.py dual-toon --portraits ../shared/data/paired-256/toon \\
        --faces ../shared/data/paired-256/photo --select 20900-20999 --exemplars ../shared/data/paired-256/toon \\
        ../runs/pairs/toon \\
        --out out/dual-toon

Writes content.png (people x styles), parts.png (both, structure alone, colours alone), sweep.png (weights) and
figures.json.  ``--exemplars`` are the folders whose files the styles are named after.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from plain_errors import run_script
from torch import Tensor

from limner import media
from limner.app.commands.train_dual import load_eyes
from limner.pipeline.dual import DualModels, load_dual
from limner.stylization.dual import to_extrinsic
from limner.training.data import PictureSet
from limner.training.dual.figures import (
    content_by_style,
    measure_pairs,
    measure_selectivity,
    parts_sheet,
    sweep_sheet,
)
from limner.training.dual.options import DualTrainOptions
from limner.training.dual.pairs import ENCODER_STEPS, choose_evenly
from limner.training.run import Runtime

PEOPLE, COLUMNS = 5, 8


def to_images(pictures: PictureSet) -> Tensor:
    """Return all pictures, (N, 3, R, R)."""
    return pictures.pixels.float() / 127.5 - 1


@torch.no_grad()
def encode(models: DualModels, images: Tensor) -> Tensor:
    """Return w+ by the compact encoder."""
    encoder = models.compact
    if encoder is None:
        sys.exit("error: there is no compact encoder for the model's base")
    return torch.cat(
        [encoder.encode(models.generator, part, steps=ENCODER_STEPS)[-1] for part in images.split(10)]
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, write sheets and figures; return the figures."""
    models = load_dual(arguments.model)
    dual, side = models.dual, models.generator.resolution
    eyes = load_eyes(DualTrainOptions(), models.trunk, Runtime(torch.device("cpu"), "fp32"))
    portraits = PictureSet(str(arguments.portraits), side, select=arguments.select)
    faces = PictureSet(str(arguments.faces), side, select=arguments.select)
    if [Path(n).stem for n in faces.names] != [Path(n).stem for n in portraits.names]:
        sys.exit("error: faces and portraits are not the same scenes")
    names = list(models.codes)
    chosen = [names[place] for place in choose_evenly(len(names), arguments.styles)]
    shown = PictureSet(tuple(arguments.exemplars), side)
    places = {Path(name).stem: place for place, name in enumerate(shown.names)}
    exemplars = shown.pixels[[places[Path(name).stem] for name in chosen]].float() / 127.5 - 1
    extrinsic = torch.cat([to_extrinsic(dual, models.codes[name]) for name in chosen])
    truth, photos = to_images(portraits), to_images(faces)
    people, own = encode(models, photos), encode(models, truth)
    figures: dict[str, Any] = {"model": str(arguments.model), "pairs": len(truth), "styles": len(chosen)}
    for label, weights in (
        ("full", torch.tensor(dual.weights())),
        ("usual", torch.tensor(dual.weights(0.75, 1.0))),
    ):
        figures[label] = measure_selectivity(
            dual, people[: len(chosen)], extrinsic, exemplars, eyes=eyes, weights=weights
        )
        figures[label] |= measure_pairs(
            dual, photos, truth, people, own, extrinsic, eyes=eyes, weights=weights
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    columns = choose_evenly(len(chosen), COLUMNS)
    some, pictures = extrinsic[columns], exemplars[columns]
    sheets = {
        "content": content_by_style(dual, people[:PEOPLE], some, pictures),
        "parts": parts_sheet(dual, people[:1], some, pictures),
        "sweep": sweep_sheet(dual, people[1:2], some[:1]),
    }
    for name, sheet in sheets.items():
        about = {"command": "measure_dual", "model": str(arguments.model), "sheet": name}
        media.write(
            arguments.out / f"{name}.png", sheet, options=about, source_type="trainedAlgorithmicMedia"
        )
    (arguments.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def main() -> int:
    """Measure one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="name or file")
    parser.add_argument("--portraits", type=Path, required=True, help="true portraits, held out")
    parser.add_argument("--faces", type=Path, required=True, help="the faces of the same scenes")
    parser.add_argument("--select", default="", help="numbers of the held-out files, FIRST-LAST")
    parser.add_argument(
        "--exemplars", type=Path, nargs="+", required=True, help="folders of the style pictures"
    )
    parser.add_argument("--styles", type=int, default=20, help="styles to measure with")
    parser.add_argument("--out", type=Path, required=True, help="folder for sheets and figures")
    print(json.dumps(measure(parser.parse_args()), indent=1))
    return 0


if __name__ == "__main__":
    run_script(main)
