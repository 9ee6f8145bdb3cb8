"""Transfer fine-tuning: which parts of a generator stay as the parent has them.

A child that keeps its parent's mapping network reads the same w, so codes found with the one serve the other, and
layers of both can be blended.

Source: Pinkney and Adler 2020, "Resolution Dependent GAN Interpolation" (arXiv 2010.05334); the discriminator's part is
FreezeD, Mo et al. 2020 (arXiv 2002.10964).
"""

from __future__ import annotations

from limner.latent import LayerMask
from limner.nn import deltas
from limner.nn.stylegan2 import Generator

MAPPING = "mapping"


def frozen_parameters(generator: Generator, freeze: str) -> frozenset[str]:
    """Return the names of the parameters that stay as they are.

    Args:
        generator: the one that trains.
        freeze: ``mapping`` and parts of a layer mask, joined by commas; empty for nothing.  A layer counts as frozen
            where the mask gives it any weight; the constant input goes with the first layer.

    Raises:
        OptionError: the mask cannot be read, or names a layer that the generator does not have.
    """
    parts = [part.strip() for part in freeze.split(",") if part.strip()]
    mask = ",".join(part for part in parts if part != MAPPING)
    weights = LayerMask(mask or "none").styles(generator).tolist()
    frozen = set()
    for name, _ in generator.named_parameters():
        vector = deltas.style_vector(name)
        if weights[vector] > 0 if vector is not None else MAPPING in parts and name.startswith("mapping."):
            frozen.add(name)
    return frozenset(frozen)
