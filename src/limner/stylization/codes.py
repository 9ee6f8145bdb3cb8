"""Codes of style pictures: how far they follow the pictures' inversions, layer by layer, and how far the mean face.

Where a picture is far from any face the generator knows, its inversion is a bad one, and a style that is learned on
it gets bad shapes.  Then a virtual inverter helps: it takes some layers from the inversion and the others from the
mean style code.

Source: Chong and Forsyth 2021, "JoJoGAN: One Shot Face Stylization" (arXiv 2112.11641), sections 3 and 4.
Differs: any layer mask with weights; the rows that stand for shape, eyes and texture are ours.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from limner.errors import OptionError
from limner.latent import Latent, LayerMask, mix
from limner.nn.stylegan2 import Generator

ASPECTS = ("shape", "eyes", "texture")
MEAN_SAMPLES = 10_000
SHAPE_ROWS = 4
PUBLISHED_ROW = 7
PUBLISHED_COLOR_ROWS = (9, 11, 15, 16, 17)


def first_texture_row(resolution: int) -> int:
    """Return the first row of w+ that decides texture: 7 as published, from the second largest resolution below 128 px."""
    return max(1, min(PUBLISHED_ROW, 2 * int(math.log2(resolution)) - 7))


def mixed_rows(resolution: int, *, keep_color: bool = False) -> tuple[int, ...]:
    """Return the rows of w+ that are mixed when no mask is given.

    These are the published ones, row 7 and up, from 128 px.  A smaller generator has few rows above 7 or none and
    decides texture at smaller maps, so there mixing starts with the second largest resolution: row 5 at 64 px.

    Args:
        resolution: side of the generator's image in px.
        keep_color: leave most rows that carry colour unmixed.
    """
    rows = 2 * int(math.log2(resolution)) - 2
    first = first_texture_row(resolution)
    if not keep_color:
        return tuple(range(first, rows))
    if rows > PUBLISHED_COLOR_ROWS[-1]:
        return PUBLISHED_COLOR_ROWS
    # The published set is two toRGB rows above the first row and everything of the last size.
    return tuple(sorted({first + 2, first + 4, *range(max(first, rows - 3), rows)} & set(range(rows))))


def follow_mask(text: str, generator: Generator) -> LayerMask:
    """Return a layer mask in which ``shape``, ``eyes`` and ``texture`` may stand for rows.

    Shape is rows 0 to 3, texture the rows that JoJoGAN mixes, eyes what lies between.

    Args:
        text: a layer mask, see `limner.latent.LayerMask`, such as ``shape,eyes=0.5``.
        generator: says which rows there are.

    Raises:
        OptionError: the mask cannot be read, or the generator is too small to tell eyes from the rest.
    """
    texture = first_texture_row(generator.resolution)
    shape = min(SHAPE_ROWS, texture)
    ranges = {
        "shape": (0, shape - 1),
        "eyes": (shape, texture - 1),
        "texture": (texture, generator.num_rows - 1),
    }

    def rows(match: re.Match[str]) -> str:
        lo, hi = ranges[match[0].lower()]
        if hi < lo:
            raise OptionError(
                f"follow is {text!r}, but a {generator.resolution} px generator has no rows between shape and texture "
                f"for {match[0]}; write rows"
            )
        return f"{lo}-{hi}"

    return LayerMask(re.sub(rf"\b({'|'.join(ASPECTS)})\b", rows, text, flags=re.IGNORECASE))


def virtual_codes(generator: Generator, w_plus: Tensor, follow: str, *, seed: int = 0) -> Latent:
    """Return the codes that a style is learned on.

    Args:
        generator: the base.
        w_plus: the pictures' inversions, (N, L, w_dim).
        follow: layers that follow the inversion, see `follow_mask`; the others take the mean of `MEAN_SAMPLES` w.
        seed: of these samples.

    Returns:
        Codes in w+; in s where the mask tells toRGB from convolutions.

    Raises:
        OptionError: see `follow_mask`.
    """
    if follow == "all":
        return Latent("w+", w_plus.detach())
    mask = follow_mask(follow, generator)
    mean = generator.mean_w(MEAN_SAMPLES, rng=torch.Generator().manual_seed(seed)).to(w_plus)
    with torch.no_grad():
        every = generator.broadcast(mean[None]).expand(len(w_plus), -1, -1)
        return mix(Latent("w+", every), Latent("w+", w_plus.detach()), mask, generator)
