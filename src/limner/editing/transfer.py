"""Style transfer: by layers of the codes, or by a search for the style's Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.editing.mix import mix_styles
from limner.editing.options import MixOptions, TransferOptions
from limner.editing.portrait import Portrait, paint
from limner.editing.search import (
    Distance,
    Found,
    OnStep,
    check_pictures,
    check_region,
    masked_distance,
    masked_l2,
    search,
)
from limner.errors import OptionError, ShapeError
from limner.nn.stylegan2 import Generator

Trunk = Callable[[Tensor], Sequence[Tensor]]
LEAST_PX = 128  # smaller pictures are enlarged before a trunk sees them


def gram(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the Gram matrices of features, (B, C, C): mean products of channels over the covered positions.

    Args:
        features: (B, C, h, w).
        mask: (1, 1, H, W), brought to the features' size; None covers all.

    Source: Gatys et al. 2016, "Image Style Transfer Using Convolutional Neural Networks", equation 3.
    Differs: divided by the number of positions, so that sizes do not matter.
    """
    if mask is None:
        flat = features.flatten(2)
        return flat @ flat.transpose(1, 2) / flat.shape[2]
    weights = F.interpolate(mask, features.shape[2:], mode="area").flatten(2)  # (1, 1, h w)
    flat = features.flatten(2) * weights.sqrt()
    return flat @ flat.transpose(1, 2) / weights.sum().clamp_min(1e-6)


def style_distance(
    trunk: Trunk,
    image: Tensor,
    style: Tensor,
    *,
    maps: Sequence[int] = (0, 1, 2),
    mask: Tensor | None = None,
) -> Tensor:
    """Return how different the styles of two images are, (B,): the Gram matrices' squared difference, per map, as a share
    of the style's own squares.

    Args:
        trunk: image -> maps, such as `limner.nn.features.Lite0` or ``Vgg16``.
        image, style: (B, 3, H, W), [-1, 1]; the sizes may differ.
        maps: which of the trunk's maps.
        mask: (1, 1, H, W); where the image is looked at.  The style counts as a whole.

    Raises:
        OptionError: the trunk has no such map.
    """
    with torch.no_grad():
        wanted = [gram(features) for features in _see(trunk, style, maps)]
    return _gram_distance([gram(features, mask) for features in _see(trunk, image, maps)], wanted)


def transfer_style(
    generator: Generator,
    portrait: Portrait,
    style: Portrait | Tensor,
    options: TransferOptions | None = None,
    *,
    trunk: Trunk | None = None,
    perceptual: Distance | None = None,
    region: Tensor | None = None,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Found:
    """Put the style of one picture on a face.

    Args:
        generator: the base.
        portrait: the face; its change of the generator stays in place.
        style: a face, or, with ``way="gram"``, any picture (1, 3, R, R).
        options: see `TransferOptions`.
        trunk: feature trunk of ``way="gram"``.
        perceptual: keeps the content with ``way="gram"``; None leaves the term out.
        region: (1, 1, R, R), 0 to 1; with ``way="gram"``, where the style goes.
        rng, on_step: see `limner.editing.search.search`.

    Raises:
        OptionError: no trunk, or codes are needed but a picture came.
        ShapeError: a picture or region that does not fit.
        DivergedError: the search left the finite numbers.

    Source: Abdal et al. 2019 (arXiv 1904.03189), section 4.2, for the layers; Abdal et al. 2020 (arXiv 1911.11544),
    section 4, for the Gram loss, the mask, and what is kept outside it.
    Differs: several maps of any trunk instead of conv3_2 of VGG16 alone; every map's difference is a share of the style's
    own squares, so one weight serves all trunks.
    """
    options = options or TransferOptions()
    portrait = Portrait.of(portrait)
    if options.way == "layers":
        if not isinstance(style, Portrait):
            raise OptionError(
                "way is 'layers', which mixes codes, but the style is a picture; embed it, or take gram"
            )
        if region is not None:
            raise OptionError("way is 'layers', which knows no region; take gram, or paint_inside")
        mixed = mix_styles(
            generator, portrait, style, MixOptions(layers=options.layers, strength=options.strength)
        )
        return Found(mixed, paint(generator, mixed), {})
    if trunk is None:
        raise OptionError("way is 'gram', which compares features: a trunk is needed")
    content = paint(generator, portrait)
    picture = paint(generator, style) if isinstance(style, Portrait) else style.to(content)
    check_pictures(generator, picture)
    inside = None if region is None else check_region(generator, region)
    with torch.no_grad():
        wanted = [gram(features) for features in _see(trunk, picture, options.style_maps)]

    def terms(image: Tensor) -> dict[str, Tensor]:
        found = [gram(features, inside) for features in _see(trunk, image, options.style_maps)]
        values = {
            "style": options.style_weight * _gram_distance(found, wanted).mean(),
            "l2": options.l2 * (image - content).square().mean(),
        }
        if inside is not None:
            values["outside"] = 10 * options.l2 * masked_l2(image, content, 1 - inside)
        if perceptual is not None and options.content:
            everywhere = torch.ones_like(content[:, :1])
            values["content"] = options.content * masked_distance(perceptual, image, content, everywhere)
        return values

    return search(generator, portrait, terms, options, rng=rng, on_step=on_step)


def _see(trunk: Trunk, image: Tensor, maps: Sequence[int]) -> list[Tensor]:
    if not maps:
        raise OptionError("style_maps is empty, expected one map of the trunk or more")
    if image.ndim != 4:
        raise ShapeError(f"image has shape {tuple(image.shape)}, expected (B, 3, H, W)")
    if image.shape[-1] < LEAST_PX:
        image = F.interpolate(image, (LEAST_PX, LEAST_PX), mode="bilinear", align_corners=False)
    found = trunk(image)
    if max(maps) >= len(found):
        raise OptionError(f"style_maps names {max(maps)}, but the trunk has maps 0-{len(found) - 1}")
    return [found[i] for i in maps]


def _gram_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    shares = [
        (a - b).square().sum((1, 2)) / b.square().sum((1, 2)).clamp_min(1e-12)
        for a, b in zip(found, wanted, strict=True)
    ]
    return torch.stack(shares).mean(0)
