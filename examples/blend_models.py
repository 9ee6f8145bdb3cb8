"""Blend a model and its fine-tuned child, and paint the same faces with all three.

python examples/blend_models.py heads toon-child blended.png 16
"""

import sys
from pathlib import Path

import torch

from limner import Latent, load_models, media
from limner.latent import render
from limner.stylization import BlendOptions
from limner.stylization.blend import blend


def main(base: str, child: str, out: str = "blended.png", swap: int = 16, count: int = 4) -> Path:
    """Take the child's layers from ``swap`` px up; the columns are the base, the blend and the child."""
    parents = [load_models(name).generator for name in (base, child)]
    blended = blend(parents, BlendOptions(swap=(int(swap),)), names=(base, child))
    z = torch.randn(int(count), blended.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        columns = [
            media.to_pixels(render(generator, Latent("z", z), psi=0.7))
            for generator in (parents[0], blended, parents[1])
        ]
    rows = [list(row) for row in zip(*columns, strict=True)]
    sheet = media.make_sheet(rows, column_labels=(Path(base).stem, f"from {swap} px", Path(child).stem))
    return media.write(out, sheet, source_type="trainedAlgorithmicMedia")


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
