"""Make the pictures that the styles bronze, sanguine, ink and poster are learned from.

    python scripts/style_pictures.py ../shared/data

They are renders of synthetic heads, their greys replaced by the colours of metal, of red chalk, by black and white and
by four inks (`limner.evaluation.tints`).  The pictures of the other styles are renders without a change.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image

from limner.evaluation.tints import TINTED, tint

PICTURES = Path("src/limner/bundled/style_pictures")
SEEDS = {"bronze": 20305, "sanguine": 20402, "ink": 20309, "poster": 20417}
QUALITY = 92


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with paired-256, see limner synth")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder")
    arguments = parser.parse_args()
    folder = arguments.data / "paired-256"
    for name, seed in SEEDS.items():
        picture = Image.open(folder / TINTED[name] / f"{seed:06d}.jpg")
        tint(picture, name).save(arguments.out / f"{name}.jpg", quality=QUALITY)
        shutil.copyfile(folder / "photo" / f"{seed:06d}.jpg", arguments.out / f"{name}-source.jpg")


if __name__ == "__main__":
    main()
