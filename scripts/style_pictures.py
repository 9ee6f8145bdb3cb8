"""Make the pictures that the bundled styles are learned from.

    python scripts/style_pictures.py ../shared/data                              # those that ship with the package
    python scripts/style_pictures.py ../shared/data --select 20000-20004 --out ../runs/style-pictures    # more of them

They are renders of synthetic heads.  Those of bronze, sanguine, ink and poster have their greys replaced by the colours of
metal, of red chalk, by black and white and by four inks (`limner.evaluation.tints`); the others are as they were rendered.
Those of the blends are the first of the pictures that their children were trained on.  With --select, every look gets a folder, and ``photo`` holds the same scenes as photos.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image
from plain_errors import run_script

from limner.evaluation.tints import TINTED, tint
from limner.training.data import split_ranges

PICTURES = Path("src/limner/bundled/style_pictures")
SEEDS = {"bronze": 20305, "sanguine": 20402, "ink": 20309, "poster": 20417}
TRAINED_ON = {"avatar": "cartoon-256/facesjs/000000.jpg", "toonify": "paired-256/toon/020000.jpg"}
"""Of the blends: the first picture that the child was trained on."""
BLEND_PX = 128
RENDERED = ("clay", "comic", "pencil", "toon")
QUALITY = 92


def paint(folder: Path, look: str, seed: int) -> Image.Image:
    """Return a scene in a look, tinted where it is not rendered."""
    picture = Image.open(folder / TINTED.get(look, look) / f"{seed:06d}.jpg")
    return tint(picture, look) if look in TINTED else picture


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with paired-256, see limner synth")
    parser.add_argument("--select", default="", help="scenes that are painted in every look, FIRST-LAST")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder")
    arguments = parser.parse_args()
    folder = arguments.data / "paired-256"
    if not arguments.select:
        for look, seed in SEEDS.items():
            paint(folder, look, seed).save(arguments.out / f"{look}.jpg", quality=QUALITY)
            shutil.copyfile(folder / "photo" / f"{seed:06d}.jpg", arguments.out / f"{look}-source.jpg")
        for name, source in TRAINED_ON.items():
            picture = Image.open(arguments.data / source).convert("RGB")
            picture = picture.resize((BLEND_PX, BLEND_PX), Image.Resampling.LANCZOS)
            picture.save(arguments.out / f"{name}.jpg", quality=QUALITY)
        return
    seeds = [seed for first, last in split_ranges(arguments.select) for seed in range(first, last + 1)]
    for look in (*RENDERED, *SEEDS, "photo"):
        (arguments.out / look).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            paint(folder, look, seed).save(arguments.out / look / f"{seed:06d}.jpg", quality=QUALITY)


if __name__ == "__main__":
    run_script(main)
