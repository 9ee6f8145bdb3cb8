"""Paint a grid of random faces.

python examples/random_faces.py faces.png 4
"""

import math
import sys
from pathlib import Path

import torch

from limner import Latent, load_models, media, zoo
from limner.latent import render


def main(
    out: str = "faces.png",
    count: int = 16,
    base: str = zoo.DEFAULT_GENERATOR,
    psi: float = 0.7,
    seed: int = 0,
) -> Path:
    """Paint ``count`` faces; a smaller ``psi`` keeps them nearer to the mean face."""
    generator, count = load_models(base).generator, int(count)
    rng = torch.Generator().manual_seed(int(seed))
    z = Latent("z", torch.randn(count, generator.z_dim, generator=rng))
    with torch.inference_mode():
        faces = media.to_pixels(render(generator, z, psi=float(psi)))
    columns = math.ceil(math.sqrt(count))
    rows = [faces[start : start + columns] for start in range(0, count, columns)]
    about = {"base": base, "count": count, "psi": psi, "seed": seed}
    return media.write(out, media.make_sheet(rows), options=about, source_type="trainedAlgorithmicMedia")


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
