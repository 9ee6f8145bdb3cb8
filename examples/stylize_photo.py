"""Restyle every face of a photo.

python examples/stylize_photo.py examples/photos/astronaut.jpg toon restyled.png
"""

import sys
from pathlib import Path

from limner import load_models, load_style, media, stylize, zoo
from limner.pipeline import StylizeOptions


def main(
    photo: str, style: str = "toon", out: str = "restyled.png", base: str = zoo.DEFAULT_GENERATOR, **options
) -> Path:
    """Restyle ``photo``; options are the fields of `StylizeOptions`, such as ``strength=0.5``."""
    picture = media.read(photo)
    result = stylize(
        picture.pixels, load_style(zoo.resolve(style)), StylizeOptions(**options), models=load_models(base)
    )
    for face in result.faces:
        print(
            f"a face at {face.alignment.quad.mean(0).round()}: PSNR {face.report.psnr:.1f} dB, {face.seconds:.0f} s"
        )
    kind = "compositeWithTrainedAlgorithmicMedia"
    return media.write(out, result.pixels, options={"style": style, **options}, source_type=kind)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
