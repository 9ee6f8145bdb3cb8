"""Looks that are another look's renders in other colours: bronze, sanguine, ink and poster.

The style pictures of these looks are made so, and the true render of any scene can be made the same way.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

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
TINTED = {"bronze": "clay", "sanguine": "pencil", "ink": "comic", "poster": "comic"}
"""Look -> the look whose renders are tinted."""
SMOOTHED = ("ink", "poster")  # dots and thin strokes would become specks
TINT_PX = 256
"""Side at which renders are tinted: that of the renders."""


def tint(picture: Image.Image, look: str) -> Image.Image:
    """Return a render in one of the tinted looks.

    Args:
        picture: a render in the look `TINTED` names, of `TINT_PX`; its greys decide the colours.
        look: which of `TINTED`.
    """
    grey_picture = picture.convert("L")
    if look in SMOOTHED:
        grey_picture = grey_picture.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(1))
    grey, gradient = np.asarray(grey_picture, np.float64), GRADIENTS[look]
    stops = sorted(gradient)
    bands = [np.interp(grey, stops, [gradient[stop][band] for stop in stops]) for band in range(3)]
    return Image.fromarray(np.stack(bands, 2).round().astype(np.uint8))
