"""Codes to start a search from: what the compact encoder makes of the pictures."""

from __future__ import annotations

from torch import Tensor

from limner.errors import OptionError
from limner.inversion.goals import check_image
from limner.inversion.options import InversionOptions
from limner.latent import Latent
from limner.nn.compact import CompactEncoder
from limner.nn.stylegan2 import Generator


def need_encoder(encoder: object, method: str) -> CompactEncoder:
    """Return the encoder, or raise `OptionError` where there is none."""
    if isinstance(encoder, CompactEncoder):
        return encoder
    raise OptionError(
        f"{method} needs a compact encoder of this generator, and there is none; train one with "
        "limner train encoder and name it, or take the method w+, which searches without"
    )


def encoder_codes(
    generator: Generator, image: Tensor, options: InversionOptions, encoder: object, method: str
) -> Latent:
    """Return what a compact encoder makes of the pictures, w+.

    Raises:
        OptionError: no encoder; ``method`` names in the message what needs it.
        KeyMismatchError: it belongs to another generator.
    """
    target = check_image(image, generator).to(generator.w_avg)
    found = need_encoder(encoder, method).encode(generator, target, steps=options.refinements)
    return Latent("w+", found[-1])
