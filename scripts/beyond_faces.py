"""Run the commands of docs/beyond-faces.md, with the looking for faces turned off, and show what came out on one sheet.

    python scripts/beyond_faces.py ../shared/data/cartoon-256/facesjs [--model facesjs-child] [--base heads]
        [--style ink.jpg] [--work beyond] [--out docs/pictures/beyond-faces.jpg]

The drawings are the first two that no training has seen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from plain_errors import run_script

from limner import media, zoo
from limner.app.cli import main as limner
from limner.evaluation.data import Portraits

HELD_OUT = "550-599"
CELL_PX, QUALITY = 128, 82
SEEDS = "0-3"
COLUMNS = 7


def run(*words: object) -> None:
    """Run a command, which replaces what an earlier run wrote; stop with its status where it fails."""
    words = (*words, "--overwrite")
    print("limner", *words, flush=True)
    status = limner([str(word) for word in words])
    if status:
        sys.exit(status)


def main() -> None:
    """Run the commands and write the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("drawings", type=Path, help="folder of numbered drawings")
    parser.add_argument("--model", default="facesjs-child", help="generator of drawings")
    parser.add_argument("--base", default=zoo.DEFAULT_GENERATOR, help="its relative, to blend with")
    parser.add_argument("--style", type=Path, default=zoo.BUNDLED_DIR / "style_pictures/ink.jpg")
    parser.add_argument("--steps", type=int, default=200, help="of learning the style, and of the inversion")
    parser.add_argument(
        "--work", type=Path, default=Path("beyond"), help="folder for what the commands write"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/beyond-faces.jpg"))
    arguments = parser.parse_args()
    work, model = arguments.work, ("--model", arguments.model)
    work.mkdir(parents=True, exist_ok=True)
    drawings = []
    for name, pixels in zip("ab", Portraits(arguments.drawings, HELD_OUT, most=2).pixels(256), strict=True):
        drawings.append(media.write(work / f"{name}.png", pixels))
    seeds = ("--seeds", SEEDS)
    style = work / f"{arguments.style.stem}.limner"
    run("sample", arguments.model, *seeds, "-o", work / "samples")
    run("invert", *drawings, "--aligned", *model, "--method", "w+", "--steps", arguments.steps, "-o", work)
    codes = [work / f"{drawing.stem}_01.safetensors" for drawing in drawings]
    run("edit", "morph", *codes, *model, "--frames", 4, "-o", work / "morph")
    blend = work / "blend.safetensors"
    run("blend", arguments.base, arguments.model, "--swap", 16, "-o", blend)
    run("sample", blend, *seeds, "-o", work / "blended")
    words = ("--aligned", *model, "--steps", arguments.steps, "--no-preview", "-o", style)
    run("learn", arguments.style, *words)
    run("sample", arguments.model, "--style", style, *seeds, "-o", work / "styled")
    words = ("--aligned", *model, "--style", style, "--inverter", "w+", "--crop", "-o", work)
    run("stylize", *drawings, *words)

    def pictures(folder: str) -> list[np.ndarray]:
        return [media.read(path).pixels for path in sorted((work / folder).glob("*.png"))][:COLUMNS]

    read = [media.read(drawing).pixels for drawing in drawings]
    inverted = [media.read(work / f"{drawing.stem}_01.png").pixels for drawing in drawings]
    restyled = [media.read(work / f"{drawing.stem}-{style.stem}.png").pixels for drawing in drawings]
    rows = {
        "drawings": read,
        "inverted": inverted,
        "morph": pictures("morph"),
        "samples": pictures("samples"),
        f"blended with {arguments.base}": pictures("blended"),
        "style": [media.read(arguments.style).pixels, *pictures("styled")],
        "restyled": restyled,
    }
    sheet = media.make_sheet(list(rows.values()), list(rows), cell_px=CELL_PX)
    about = {"command": "scripts/beyond_faces.py", "model": arguments.model}
    media.write(arguments.out, sheet, options=about, source_type="trainedAlgorithmicMedia", quality=QUALITY)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_script(main)
