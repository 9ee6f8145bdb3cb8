"""Make the pictures that the styles bronze, sanguine, ink and pastel are learned from.

    python scripts/style_pictures.py ../shared/data

Bronze, sanguine and ink are renders of synthetic heads, their greys replaced by the colours of metal, of red chalk and
by black and white; pastel is a drawing as it is.  The pictures of the other styles are renders without a change.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

PICTURES = Path("src/limner/bundled/style_pictures")
# Grey (0-255) -> colour; between two stops the colour changes evenly.
GRADIENTS = {
    "bronze": {
        30: (22, 12, 8),
        110: (92, 48, 22),
        165: (176, 106, 48),
        205: (226, 168, 92),
        240: (255, 236, 188),
    },
    "sanguine": {40: (104, 26, 14), 130: (176, 72, 44), 210: (226, 164, 128), 246: (246, 232, 208)},
    "ink": {97: (16, 14, 20), 117: (250, 248, 240)},
}
TINTED = {"bronze": ("clay", 20305), "sanguine": ("pencil", 20402), "ink": ("comic", 20309)}
SMOOTHED = ("ink",)  # dots and thin strokes would become specks
DRAWN = {"pastel": ("personas", 32)}
QUALITY = 92


def tint(picture: Image.Image, gradient: dict[int, tuple[int, int, int]]) -> Image.Image:
    """Replace greys by the colours of a gradient."""
    grey = np.asarray(picture.convert("L"), np.float64)
    stops = sorted(gradient)
    bands = [np.interp(grey, stops, [gradient[stop][band] for stop in stops]) for band in range(3)]
    return Image.fromarray(np.stack(bands, 2).round().astype(np.uint8))


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with paired-256 and cartoon-256, see limner synth")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder")
    arguments = parser.parse_args()
    for name, (look, seed) in TINTED.items():
        folder = arguments.data / "paired-256"
        picture = Image.open(folder / look / f"{seed:06d}.jpg").convert("L")
        if name in SMOOTHED:
            picture = picture.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(1))
        tint(picture, GRADIENTS[name]).save(arguments.out / f"{name}.jpg", quality=QUALITY)
        shutil.copyfile(folder / "photo" / f"{seed:06d}.jpg", arguments.out / f"{name}-source.jpg")
    for name, (domain, number) in DRAWN.items():
        file = arguments.data / "cartoon-256" / domain / f"{number:06d}.jpg"
        shutil.copyfile(file, arguments.out / f"{name}.jpg")


if __name__ == "__main__":
    main()
