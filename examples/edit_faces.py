"""Turn one face into another, and give the first one some layers of the second.

python examples/edit_faces.py examples/photos/astronaut.jpg examples/photos/hopper.jpg morph.gif
"""

import sys
from pathlib import Path

from limner import load_models, media, zoo
from limner.editing import MixOptions, MorphOptions, mix_sheet, morph, paint
from limner.pipeline.options import PortraitOptions
from limner.pipeline.portraits import read_sitters


def main(
    first: str, second: str, out: str = "morph.gif", base: str = zoo.DEFAULT_GENERATOR, frames: int = 20
) -> Path:
    """Morph two faces (photos, latent files, or seed:N) and write a sheet of style mixing beside the film."""
    models, options = load_models(base), PortraitOptions()
    faces = [read_sitters(source, options, models=models)[0] for source in (first, second)]
    people = [face.portrait for face in faces]
    way = morph(models.generator, people, MorphOptions(frames=int(frames), easing="smooth", loop=True))
    film = (media.to_pixels(paint(models.generator, portrait))[0] for portrait in way)
    kind = "trainedAlgorithmicMedia"
    sheet = mix_sheet(models.generator, people, people, MixOptions(layers="fine"))
    media.write(Path(out).with_suffix(".png"), sheet, source_type=kind)
    return media.write_film(out, film, source_type=kind)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
