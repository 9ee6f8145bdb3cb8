"""What the options of JoJoGAN come to on given networks: rows that are mixed, stages that are compared, weights; and what
does not fit.

Source: Chong and Forsyth 2021, "JoJoGAN: One Shot Face Stylization" (arXiv 2112.11641), sections 3.2 to 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from limner.errors import OptionError, ShapeError
from limner.latent import LayerMask
from limner.nn import deltas
from limner.nn.stylegan2 import Discriminator, Generator
from limner.stylization.codes import follow_mask, mixed_rows
from limner.stylization.options import JojoganOptions

Distance = Callable[[Tensor, Tensor], Tensor]
Trunk = Callable[[Tensor], Sequence[Tensor]]
PUBLISHED_STAGES = (1, 3, 4, 5)
SMALL_PX = 256
"""Below this size the published rows, stages and loss have counterparts of our own."""


def compared_stages(resolution: int) -> tuple[int, ...]:
    """Return the discriminator stages that are compared when none are given: published ones, or those of 8 px and up."""
    if resolution >= SMALL_PX:
        return PUBLISHED_STAGES
    return tuple(range(int(math.log2(resolution)) - 2))


def check_choices(
    options: JojoganOptions, generator: Generator, discriminator: Discriminator, pictures: int
) -> None:
    """Raise `OptionError` for masks, stages and weights that do not fit, before codes are searched for long.

    Args:
        options: see `JojoganOptions`.
        generator: the base.
        discriminator: of the base.
        pictures: how many there are.
    """
    follow_mask(options.follow, generator).styles(generator)
    if options.mask != "auto":
        LayerMask(options.mask).styles(generator)
    LayerMask(options.learn_layers).styles(generator)
    picture_shares(options, pictures)
    if options.loss == "discriminator":
        stages = resolve_stages(options, discriminator, 1 + len(discriminator.blocks))
        stage_shares(options, len(stages))


def row_weights(options: JojoganOptions, generator: Generator) -> Tensor:
    """Return how far these options mix every row of w+ in this generator, (L,), before ``style_mix``."""
    if options.mask != "auto":
        return LayerMask(options.mask).rows(generator)
    weights = torch.zeros(generator.num_rows)
    weights[list(mixed_rows(generator.resolution, keep_color=options.keep_color))] = 1.0
    return weights


def style_weights(options: JojoganOptions, generator: Generator) -> Tensor:
    """Return how far these options mix every S-space vector of this generator, (S,), before ``style_mix``."""
    if options.mask != "auto":
        return LayerMask(options.mask).styles(generator)
    return row_weights(options, generator)[list(generator.synthesis.style_rows)]


def learning_parameters(generator: Generator, layers: str) -> list[nn.Parameter]:
    """Return the weights of the synthesis network that learn; those of the other layers are frozen.

    Args:
        generator: the copy that is tuned.
        layers: a layer mask; what has a weight above 0 learns.

    Raises:
        OptionError: a layer that the generator does not have, or none is left.
    """
    if layers == "all":
        return list(generator.synthesis.parameters())
    named = dict(generator.named_parameters())
    weights = deltas.tensor_weights(generator, named, (LayerMask(layers).styles(generator) > 0).float())
    free = [parameter for name, parameter in named.items() if name.startswith("synthesis.") and weights[name]]
    if not free:
        raise OptionError(f"learn_layers is {layers!r}, which leaves nothing to learn")
    generator.synthesis.requires_grad_(False)
    for parameter in free:
        parameter.requires_grad_(True)
    return free


def resolve_stages(options: JojoganOptions, discriminator: Discriminator, count: int) -> tuple[int, ...]:
    """Return the stages that are compared, of the discriminator or of the trunk, which has ``count`` of them.

    Raises:
        OptionError: there are not so many.
    """
    judge = options.loss == "discriminator"
    usual = compared_stages(discriminator.resolution) if judge else tuple(range(count))
    stages = options.feature_layers or usual
    wrong = [stage for stage in stages if not 0 <= stage < count]
    if wrong:
        what = f"the discriminator of {discriminator.resolution} px" if judge else "the trunk"
        raise OptionError(f"feature_layers has {wrong}, but {what} has stages 0 to {count - 1}")
    return tuple(stages)


def stage_shares(options: JojoganOptions, stages: int) -> Tensor:
    """Return the weight of every compared stage; they add up to 1.

    Raises:
        OptionError: not one weight each, or useless ones.
    """
    weights = torch.tensor(options.feature_weights or [1.0] * stages, dtype=torch.float32)
    if len(weights) != stages:
        raise OptionError(f"feature_weights has {len(weights)} numbers for {stages} compared stages")
    if stages and (weights.min() < 0 or weights.sum() <= 0):
        raise OptionError(
            f"feature_weights is {list(options.feature_weights)}, expected 0 or more, not all 0"
        )
    return weights / weights.sum() if stages else weights


def picture_shares(options: JojoganOptions, pictures: int) -> Tensor:
    """Return the weight of every picture; they are 1 on average.

    Raises:
        OptionError: not one weight each, or useless ones.
    """
    weights = torch.tensor(options.picture_weights or [1.0] * pictures, dtype=torch.float32)
    if len(weights) != pictures:
        raise OptionError(f"picture_weights has {len(weights)} numbers for {pictures} style pictures")
    if weights.min() < 0 or weights.sum() <= 0:
        raise OptionError(
            f"picture_weights is {list(options.picture_weights)}, expected 0 or more, not all 0"
        )
    return weights / weights.mean()


def check_distances(
    options: JojoganOptions, perceptual: Distance | None, identity: Distance | None, trunk: Trunk | None
) -> None:
    """Raise `OptionError` where a distance that the options need is not given."""
    if options.loss == "lpips" and perceptual is None:
        raise OptionError("the loss lpips needs a perceptual distance; pass `perceptual`")
    if options.loss == "lpips" and (options.feature_layers or options.feature_weights):
        raise OptionError("the loss lpips compares no stages; leave out feature_layers and feature_weights")
    if options.loss == "vgg" and trunk is None:
        raise OptionError("the loss vgg needs a feature trunk; pass `trunk`")
    if options.texture and trunk is None:
        raise OptionError("texture is above 0, but there is no feature trunk; pass `trunk`")
    if options.identity and identity is None:
        raise OptionError("identity is above 0, but there is no identity distance; pass `identity`")


def check_shapes(generator: Generator, discriminator: Discriminator, images: Tensor, w_plus: Tensor) -> None:
    """Raise `ShapeError` unless pictures, codes and networks fit each other."""
    side = generator.resolution
    if discriminator.resolution != side:
        raise ShapeError(
            f"the generator makes {side} px images, the discriminator takes {discriminator.resolution} px"
        )
    if images.ndim != 4 or images.shape[1:] != (3, side, side) or not len(images):
        raise ShapeError(f"images has shape {tuple(images.shape)}, expected (N, 3, {side}, {side})")
    expected = (len(images), generator.num_rows, generator.w_dim)
    if w_plus.shape != expected:
        raise ShapeError(
            f"w_plus has shape {tuple(w_plus.shape)}, expected {expected}: one code per style picture"
        )
