"""Expression transfer: the difference of two faces, added to a third."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from limner.editing.options import ExpressionOptions
from limner.editing.portrait import Portrait, shift
from limner.errors import OptionError
from limner.latent import Latent, LayerMask
from limner.nn.stylegan2 import Generator


def transfer_expression(
    generator: Generator,
    portrait: Portrait,
    neutral: Portrait,
    expressive: Portrait,
    options: ExpressionOptions | None = None,
) -> Portrait:
    """Carry an expression over: w = w1 + strength (w3 - w2).

    Args:
        generator: the base.
        portrait: w1, the face that changes; its noise maps and its change of the generator stay.
        neutral, expressive: w2 and w3, one face without and with the expression.
        options: see `ExpressionOptions`.

    Returns:
        The face with the expression; `limner.editing.paint_inside` limits it to a region.

    Raises:
        OptionError: codes in s beside codes elsewhere for the pair, or a layer mask that does not fit.
        ShapeError: codes that do not fit the generator.

    Source: Abdal et al. 2019, "Image2StyleGAN" (arXiv 1904.03189), section 4.3.
    Differs: layers can be left out.
    """
    options = options or ExpressionOptions()
    mask = LayerMask(options.layers)
    return _add(generator, portrait, neutral.latent, expressive.latent, options.strength, mask)


def drive_expression(
    generator: Generator,
    portrait: Portrait,
    frames: Sequence[Portrait],
    options: ExpressionOptions | None = None,
    *,
    neutral: Portrait | None = None,
) -> Iterator[Portrait]:
    """Let a sequence of faces drive another: every frame's difference from the neutral face is carried over.

    Args:
        generator: the base.
        portrait: the face that is driven.
        frames: the driving face, embedded frame by frame.
        options: ``smooth`` averages neighbouring frames' codes.
        neutral: the driving face without expression; None takes the first frame.

    Yields:
        One portrait per frame.

    Raises:
        OptionError: no frames, or see `transfer_expression`.

    Source: Abdal et al. 2019 (arXiv 1904.03189), section 4.3, face reenactment.
    """
    options = options or ExpressionOptions()
    if not frames:
        raise OptionError("a driving sequence needs one frame or more")
    mask = LayerMask(options.layers)
    still = (neutral or frames[0]).latent
    reach = options.smooth // 2
    for i in range(len(frames)):
        # Near the ends the window shrinks on both sides alike, so that the first frame stays what it is.
        near = min(reach, i, len(frames) - 1 - i)
        codes = _mean([frame.latent for frame in frames[i - near : i + near + 1]], generator)
        yield _add(generator, portrait, still, codes, options.strength, mask)


@torch.no_grad()
def _add(
    generator: Generator, portrait: Portrait, start: Latent, end: Latent, strength: float, mask: LayerMask
) -> Portrait:
    start, end = start.to(generator.w_avg), end.to(generator.w_avg)
    if "s" not in (start.space, end.space):
        offset = strength * (end.w_plus(generator) - start.w_plus(generator))
        return shift(generator, portrait, offset, mask)
    own = portrait.latent.to(generator.w_avg).styles(generator)
    weights = (strength * mask.styles(generator)).tolist()
    codes = zip(own, end.styles(generator), start.styles(generator), weights, strict=True)
    values: tuple[Tensor, ...] = tuple(x + share * (there - here) for x, there, here, share in codes)
    return Portrait(Latent("s", values), portrait.noise, portrait.changes)


@torch.no_grad()
def _mean(codes: Sequence[Latent], generator: Generator) -> Latent:
    if len(codes) == 1:
        return codes[0]
    if any(code.space == "s" for code in codes):
        vectors = zip(*(code.styles(generator) for code in codes), strict=True)
        return Latent("s", tuple(torch.cat(parts).mean(0, keepdim=True) for parts in vectors))
    return Latent("w+", torch.cat([code.w_plus(generator) for code in codes]).mean(0, keepdim=True))
