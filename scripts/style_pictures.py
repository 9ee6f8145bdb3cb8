"""Make the pictures that the styles bronze, sanguine, ink and poster are learned from.

    python scripts/style_pictures.py ../shared/data

They are renders of synthetic heads, their greys replaced by the colours of metal, of red chalk, by black and white and
by four inks.  The pictures of the other styles are renders without a change.
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
    "poster": {
        55: (12, 44, 82),
        75: (206, 34, 48),
        105: (206, 34, 48),
        125: (238, 140, 60),
        150: (238, 140, 60),
        172: (252, 226, 170),
    },
}
TINTED = {
    "bronze": ("clay", 20305),
    "sanguine": ("pencil", 20402),
    "ink": ("comic", 20309),
    "poster": ("comic", 20417),
}
SMOOTHED = ("ink", "poster")  # dots and thin strokes would become specks
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
    parser.add_argument("data", type=Path, help="folder with paired-256, see limner synth")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder")
    arguments = parser.parse_args()
    for name, (look, seed) in TINTED.items():
        folder = arguments.data / "paired-256"
        picture = Image.open(folder / look / f"{seed:06d}.jpg").convert("L")
        if name in SMOOTHED:
            picture = picture.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(1))
        tint(picture, GRADIENTS[name]).save(arguments.out / f"{name}.jpg", quality=QUALITY)
        shutil.copyfile(folder / "photo" / f"{seed:06d}.jpg", arguments.out / f"{name}-source.jpg")


if __name__ == "__main__":
    main()
