"""Find the code that makes the generator paint a face, and keep it as a file.

python examples/invert_face.py examples/photos/astronaut.jpg astronaut.safetensors
"""

import sys
from pathlib import Path

from limner import align_face, detect_faces, invert, load_models, media, zoo
from limner.faces import crop_face, whole_picture
from limner.inversion import InversionOptions
from limner.latent import save_latent


def main(
    photo: str, out: str = "face.safetensors", base: str = zoo.DEFAULT_GENERATOR, steps: int = 150
) -> Path:
    """Embed the largest face of ``photo``, or all of it where no face is found; the picture goes beside ``out``."""
    models, pixels = load_models(base), media.read(photo).pixels
    size, found = models.generator.resolution, detect_faces(pixels)
    alignment = align_face(found[0], size) if found else whole_picture(pixels, size)
    image = media.to_image(crop_face(pixels, alignment))
    options = InversionOptions(method="w+", steps=int(steps))
    result = invert(models.generator, image, options, perceptual=models.make_distance())
    print(f"PSNR {result.report[0].psnr:.1f} dB, perceptual distance {result.report[0].perceptual:.3f}")
    painted = media.to_pixels(result.image)[0]
    media.write(Path(out).with_suffix(".png"), painted, source_type="trainedAlgorithmicMedia")
    return save_latent(out, result.latent, noise=result.noise, metadata={"photo": photo, "base": base})


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
