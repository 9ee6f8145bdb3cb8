"""Crossover and inpainting: one search for a picture of which each part has its own master."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.editing.options import CrossoverOptions, InpaintOptions
from limner.editing.portrait import Portrait, paint
from limner.editing.search import (
    Distance,
    OnStep,
    check_pictures,
    check_region,
    masked_distance,
    masked_l2,
    search,
)
from limner.errors import OptionError
from limner.latent import Latent
from limner.nn.stylegan2 import Generator


@dataclasses.dataclass(frozen=True, eq=False)
class Repainted:
    """A face whose parts come from different pictures.

    Attributes:
        portrait: its codes and noise maps.
        image: what they paint, (1, 3, R, R), clipped to [-1, 1].
        composite: the given pictures where they count, and the painting in between or in the hole.
        record: the losses of the last step.
    """

    portrait: Portrait
    image: Tensor
    composite: Tensor
    record: dict[str, float]


def crossover(
    generator: Generator,
    a: Portrait,
    b: Portrait | Tensor,
    region: Tensor,
    options: CrossoverOptions | None = None,
    *,
    perceptual: Distance | None,
    image: Tensor | None = None,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Repainted:
    """Find one face that looks like ``b`` within a region and like ``a`` around it.

    Args:
        generator: the base; the change that ``a`` brings stays in place.
        a: where the search starts.
        b: the other face, or its picture, (1, 3, R, R).
        region: (1, 1, R, R), 0 to 1; between 0 and 1 either face counts by its share.
        options: see `CrossoverOptions`.
        perceptual: (image, image) -> (B,); None leaves the term out.
        image: picture of ``a``; None takes what its codes paint.
        rng, on_step: see `limner.editing.search.search`.

    Raises:
        OptionError: nothing to fit.
        ShapeError: pictures, codes or region that do not fit.
        DivergedError: the search left the finite numbers.

    Source: Abdal et al. 2020, "Image2StyleGAN++" (arXiv 1911.11544), section 5, image crossover.
    """
    options = options or CrossoverOptions()
    inside = check_region(generator, region)
    _need_terms(options.l2, options.perceptual, perceptual)
    a = Portrait.of(a)
    first = paint(generator, a) if image is None else image.to(inside)
    second = paint(generator, b) if isinstance(b, Portrait) else b.to(inside)
    check_pictures(generator, first, second)
    targets, parts = torch.cat([first, second]), torch.cat([1 - inside, inside])

    def terms(picture: Tensor) -> dict[str, Tensor]:
        values = {}
        if options.l2:
            outer, inner = masked_l2(picture, first, 1 - inside), masked_l2(picture, second, inside)
            values["l2"] = options.l2 * (outer + inner)
        if options.perceptual and perceptual is not None:
            seen = torch.lerp(targets, picture.expand_as(targets), parts.expand_as(targets))
            values["perceptual"] = options.perceptual * perceptual(seen, targets).sum()
        return values

    found = search(generator, a, terms, options, rng=rng, on_step=on_step)
    # Sure of either picture where the region is hard, the search's in its soft edge.
    edge = 1 - (2 * inside - 1).abs()
    composite = torch.lerp(torch.where(inside > 0.5, second, first), found.image, edge)
    return Repainted(found.portrait, found.image, composite, found.record)


def inpaint(
    generator: Generator,
    image: Tensor,
    hole: Tensor,
    options: InpaintOptions | None = None,
    *,
    perceptual: Distance | None,
    start: Portrait | None = None,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Repainted:
    """Fill a hole of a picture: find the face that agrees with it elsewhere.

    Args:
        generator: the base.
        image: (1, 3, R, R), [-1, 1]; what stands in the hole does not matter.
        hole: (1, 1, R, R), 1 where the picture is missing, 0 where it is known, between both by its share.
        options: see `InpaintOptions`.
        perceptual: (image, image) -> (B,); None leaves the term out.
        start: where the search starts, such as an encoder's codes; None for the mean face.
        rng, on_step: see `limner.editing.search.search`.

    Raises:
        OptionError: nothing to fit.
        ShapeError: picture or hole that does not fit.
        DivergedError: the search left the finite numbers.

    Source: Abdal et al. 2020, "Image2StyleGAN++" (arXiv 1911.11544), section 5, image inpainting.
    Differs: the codes are kept near the mean, since nothing else holds the face in the hole; noise maps are searched on
    demand; the composite takes over the colours around the hole, see `fill`.
    """
    options = options or InpaintOptions()
    hole = check_region(generator, hole)
    image = image.to(hole)
    check_pictures(generator, image)
    _need_terms(options.l2, options.perceptual, perceptual)
    mean = Latent("w+", generator.broadcast(generator.w_avg[None]))
    start = Portrait(mean) if start is None else Portrait.of(start)
    # What stands in the hole must not reach the losses: a trunk sees beyond the mask's edge.
    target = torch.lerp(image, paint(generator, start), (hole > 0).to(image))

    def terms(picture: Tensor) -> dict[str, Tensor]:
        values = {}
        if options.l2:
            values["l2"] = options.l2 * masked_l2(picture, image, (1 - hole) * (hole < 1))
        if options.perceptual and perceptual is not None:
            values["perceptual"] = options.perceptual * masked_distance(perceptual, picture, target, 1 - hole)
        return values

    found = search(generator, start, terms, options, rng=rng, on_step=on_step)
    composite = fill(image, found.image, hole, seamless=options.seamless)
    return Repainted(found.portrait, found.image, composite, found.record)


def fill(image: Tensor, painted: Tensor, hole: Tensor, *, seamless: bool = True) -> Tensor:
    """Put what is painted into the hole of a picture.

    Args:
        image, painted: (B, 3, R, R).
        hole: (B or 1, 1, R, R), 1 takes what is painted.
        seamless: carry on what is known and painted differ by around the hole smoothly through it: a backdrop that the
            generator cannot paint, and only comes near, then shows no patch of another colour.

    Returns:
        (B, 3, R, R): the picture outside the hole; within it what is painted, clipped to [-1, 1] where seamless.

    Source: Pérez et al. 2003, "Poisson Image Editing", section 3, seamless cloning.
    Differs: the difference goes through the hole by averages over growing squares (Gortler et al. 1996, "The Lumigraph",
    section 3.4) in place of a solved equation, so that an edge that is a little off throws no streaks.
    """
    if seamless:
        painted = (painted + _carried_on(image - painted, 1 - hole)).clamp(-1, 1)
    return torch.lerp(image, painted, hole)


def _carried_on(values: Tensor, known: Tensor) -> Tensor:
    """Return values (B, C, H, W) that are known by shares (B, 1, H, W), and elsewhere go on smoothly."""
    if min(values.shape[2:]) == 1:
        share = known.mean((2, 3), keepdim=True)
        return (values * known).mean((2, 3), keepdim=True) / share.clamp_min(1e-6) + 0 * values
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    mean = F.avg_pool2d(values * known, 2, ceil_mode=True) / share.clamp_min(1e-6)
    # A square counts as known as soon as a quarter of it is.
    coarse = _carried_on(mean, (4 * share).clamp(max=1))
    smooth = F.interpolate(coarse, values.shape[2:], mode="bilinear", align_corners=False)
    return torch.lerp(smooth, values, known)


def _need_terms(l2: float, weight: float, perceptual: Distance | None) -> None:
    if not (l2 or (weight and perceptual is not None)):
        raise OptionError(
            "there is nothing to fit: l2 is 0 and so is perceptual, or no feature trunk is at hand"
        )
