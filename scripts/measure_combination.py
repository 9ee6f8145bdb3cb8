"""Measure what restyling through a generator tuned to the person brings, on paired renders.

    python scripts/measure_combination.py ../shared/data/paired-256 [--look toon] [--style toon] [--faces 3]
        [--first 20900] [--also NAME=WEIGHT ...] [--json FILE] [--sheet FILE]

Every scene has a photo and the same head in the look itself, the truth.  The photo is embedded once, by pivotal tuning;
the style is then put on the code alone, and on the code and the tuned generator, where the person's change, the style's
and those of ``--also`` (styles or blends) add up in one forward pass.  Printed: dlib's squared identity distance from
the photo (below 0.36: the same person) and the perceptual distance from the truth, both the lower the better, as means.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from plain_errors import run_script
from torch import Tensor

from limner import media, zoo
from limner.evaluation.data import Portraits
from limner.inversion import InversionOptions, PivotalOptions, invert
from limner.nn import deltas
from limner.pipeline import load_models
from limner.stylization import Style, StyleOptions, load_style, paint
from limner.stylization.merging import merge


def read_style(name: str) -> Style:
    """Read a style by name or file."""
    return load_style(zoo.path(name) if name in zoo.names("style") else name)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with photo/ and LOOK/")
    parser.add_argument("--look", default="toon", help="folder of the truth")
    parser.add_argument("--style", default="toon", help="style, name or file")
    parser.add_argument(
        "--also", nargs="*", default=[], metavar="NAME=WEIGHT", help="further styles or blends"
    )
    parser.add_argument("--model", default=zoo.DEFAULT_GENERATOR)
    parser.add_argument("--faces", type=int, default=3)
    parser.add_argument("--first", type=int, default=20900, help="first scene; those from 20900 are held out")
    parser.add_argument("--steps", type=int, default=100, help="of the search and of the tuning")
    parser.add_argument("--strengths", type=float, nargs="*", default=[0.75, 1.0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()

    models = load_models(arguments.model)
    parts = [(arguments.style, 1.0)]
    parts += [
        (name, float(weight or 1)) for name, _, weight in (one.partition("=") for one in arguments.also)
    ]
    style = merge([read_style(name) for name, _ in parts], [weight for _, weight in parts])
    style.check_base(models.generator)
    chosen = f"{arguments.first}-{arguments.first + arguments.faces - 1}"
    side = models.generator.resolution
    photo, truth = (
        torch.cat(list(Portraits(arguments.data / folder, chosen).batches(side)))
        for folder in ("photo", arguments.look)
    )
    begun = time.perf_counter()
    methods: dict[str, list[Tensor]] = {"photo": list(photo), "truth": list(truth)}
    search = InversionOptions(method="pivotal", steps=arguments.steps, fit_noise=False)
    tuning = PivotalOptions(pivot="w+", tune_steps=arguments.steps)
    for image in photo:
        found = invert(
            models.generator, image[None], search, perceptual=models.make_distance(), pivotal=tuning
        )
        assert found.delta is not None
        person = deltas.apply(models.generator, [(found.delta, 1.0)])
        for strength in arguments.strengths:
            options = StyleOptions(strength=strength)
            for name, generator in (("code", models.generator), ("code + person", person)):
                styled = paint(generator, style, found.latent, options, noise=found.noise_maps)
                methods.setdefault(f"{name}, strength {strength:g}", []).append(styled[0])
    figures = {}
    for name, pictures in methods.items():
        images = torch.stack(pictures)
        with torch.no_grad():
            figures[name] = {
                "identity": float(models.identity_distance(images, photo).mean()),
                "to_truth": float(models.make_distance()(images, truth).mean()),
            }
        print(f"{name:30} identity {figures[name]['identity']:.3f}  to truth {figures[name]['to_truth']:.3f}")
    print(f"{arguments.faces} faces, {time.perf_counter() - begun:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if arguments.sheet:
        rows = [media.to_pixels(torch.stack(pictures).clamp(-1, 1)) for pictures in methods.values()]
        media.write(arguments.sheet, media.make_sheet(rows, list(methods), cell_px=side))


if __name__ == "__main__":
    run_script(main)
