"""The search behind transfer, crossover and inpainting: codes and noise maps under any losses of the picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from limner import losses
from limner.editing.options import SearchOptions
from limner.editing.portrait import Portrait, noise_maps, own_generator
from limner.errors import DivergedError, OptionError, ShapeError
from limner.latent import Latent, LayerMask, render
from limner.nn.stylegan2 import Generator

# (image, image) -> (B,), both (B, 3, H, W) in [-1, 1].
Distance = Callable[[Tensor, Tensor], Tensor]
# (step from 1, steps, plain numbers, function that paints the picture so far)
OnStep = Callable[[int, int, Mapping[str, float], Callable[[], Tensor]], None]
# image -> name -> weighted loss, a scalar each
Terms = Callable[[Tensor], Mapping[str, Tensor]]

_SAMPLES = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        portrait: codes and noise maps; the changes of the generator are those it started with.
        image: what it paints, (1, 3, R, R), clipped to [-1, 1].
        record: the losses of the last step.
    """

    portrait: Portrait
    image: Tensor
    record: dict[str, float]


def search(
    generator: Generator,
    start: Portrait,
    terms: Terms,
    options: SearchOptions,
    *,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Found:
    """Search codes and noise maps from where a portrait is, under given losses.

    Args:
        generator: the base; the portrait's changes are in place while searching.
        start: codes of any space; those in s are searched there, all others in w+.
        terms: image -> weighted losses by name.
        options: see `SearchOptions`.
        rng: random numbers of the code's spread, on the CPU; None for a new generator with the options' seed.
        on_step: called after every step.

    Raises:
        OptionError: nothing is to be searched, or a layer mask that does not fit.
        ShapeError: codes or noise maps that do not.
        DivergedError: a loss left the finite numbers.

    Source: Abdal et al. 2020, "Image2StyleGAN++" (arXiv 1911.11544), sections 3 and 4, who search the codes first and
    then the noise (``noise="after"``); the learning rate's ramps are those of Karras et al. 2020 (arXiv 1912.04958).
    """
    own = own_generator(generator, start)
    rng = rng or torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        latent = start.latent.to(own.w_avg)
        latent = latent if latent.space == "s" else latent.to_space("w+", own)
        weights = _weights(own, latent, LayerMask(options.search_layers))
        prior = _spread(own, latent, rng) if options.w_norm else None
        given = noise_maps(own, start)
        maps = [values.clone() for values in given] if options.noise != "none" else []
    steered = [torch.zeros_like(part).requires_grad_() for part in latent.parts]
    frozen_codes = not any(float(weight.abs().max()) for weight in weights)
    if frozen_codes and not maps:
        raise OptionError(
            f"search_layers is {options.search_layers!r} and noise is none: nothing is to be searched"
        )

    def codes() -> Latent:
        pairs = zip(latent.parts, weights, steered, strict=True)
        values = tuple(part + weight * offset for part, weight, offset in pairs)
        return Latent(latent.space, values if latent.space == "s" else values[0])

    def picture(code: Latent) -> Tensor:
        return render(own, code, maps or given)

    @torch.no_grad()
    def preview() -> Tensor:
        return picture(codes()).clamp(-1, 1)

    stages = {"joint": [(True, True)], "after": [(True, False), (False, True)], "none": [(True, False)]}[
        options.noise
    ]
    record: dict[str, float] = {}
    total_steps = options.steps * len(stages)
    done = 0
    for with_codes, with_noise in stages:
        variables = [*(steered if with_codes and not frozen_codes else ()), *(maps if with_noise else ())]
        if not variables:
            done += options.steps
            continue
        for variable in (*steered, *maps):
            variable.requires_grad_(any(variable is one for one in variables))
        optimizer = torch.optim.Adam(variables, lr=options.learning_rate, betas=(0.9, 0.999), eps=1e-8)
        for step in range(options.steps):
            optimizer.param_groups[0]["lr"] = options.learning_rate * _ramp(step / options.steps)
            code = codes()
            found = dict(terms(picture(code)))
            if prior is not None and with_codes:
                found["w_norm"] = options.w_norm * _far(code, *prior)
            if with_noise:
                found["noise_reg"] = options.noise_reg * losses.noise_regularizer(maps)
            loss = torch.stack(list(found.values())).sum()
            if not loss.isfinite():
                raise DivergedError(
                    f"the search left the finite numbers at step {done + 1}; lower learning_rate "
                    f"(it is {options.learning_rate})"
                )
            for variable, gradient in zip(variables, torch.autograd.grad(loss, variables), strict=True):
                variable.grad = gradient
            optimizer.step()
            if with_noise:
                _normalize(maps)
            done += 1
            record = {name: float(one.detach()) for name, one in found.items()}
            # As in `inversion`, the loss that is told leaves the noise maps' correlation out: it says nothing of faces.
            record = {"loss": sum(record.values()) - record.get("noise_reg", 0.0), **record}
            if on_step is not None:
                on_step(done, total_steps, record, preview)
    noise = tuple(values.detach() for values in maps) or start.noise
    return Found(Portrait(codes().detach(), noise, start.changes), preview(), record)


def check_pictures(generator: Generator, *images: Tensor) -> None:
    """Raise `ShapeError` unless every image is (1, 3, R, R) of the generator's size."""
    side = generator.resolution
    for image in images:
        if tuple(image.shape) != (1, 3, side, side):
            raise ShapeError(f"image has shape {tuple(image.shape)}, expected (1, 3, {side}, {side})")


def check_region(generator: Generator, region: Tensor) -> Tensor:
    """Return the region, or raise `ShapeError` unless it is (1, 1, R, R), from 0 to 1, and neither empty nor full."""
    side = generator.resolution
    if tuple(region.shape) != (1, 1, side, side):
        raise ShapeError(f"region has shape {tuple(region.shape)}, expected (1, 1, {side}, {side})")
    if region.min() < 0 or region.max() > 1 or region.max() == 0 or region.min() == 1:
        raise ShapeError(
            "region must hold numbers from 0 to 1 and cover a part of the picture, not none or all of it"
        )
    return region.to(generator.w_avg)


def masked_l2(image: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared difference of two images (1, 3, R, R) over a mask (1, 1, R, R), a scalar."""
    squares = (image - target).square().mean(1, keepdim=True)
    return (squares * mask).sum() / mask.sum().clamp_min(1e-6)


def masked_distance(distance: Distance, image: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return a distance that sees the image only where the mask is; elsewhere both count as equal."""
    return distance(torch.lerp(target, image, mask.expand_as(image)), target).mean()


def _ramp(t: float, *, rampup: float = 0.05, rampdown: float = 0.25) -> float:
    return (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / rampdown))) * min(1.0, (t + 1e-3) / rampup)


def _weights(generator: Generator, latent: Latent, mask: LayerMask) -> list[Tensor]:
    """Return the mask's weights as tensors that broadcast to the codes'."""
    if latent.space == "s":
        return [weight.to(generator.w_avg) for weight in mask.styles(generator)]
    return [mask.rows(generator).to(generator.w_avg)[:, None]]


def _spread(generator: Generator, latent: Latent, rng: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Return mean and deviation of the codes' space, tensor by tensor."""
    z = torch.randn(_SAMPLES, generator.z_dim, generator=rng).to(generator.w_avg)
    drawn = Latent("w", generator.mapping(z))
    parts = drawn.styles(generator) if latent.space == "s" else (drawn.tensor,)
    return [part.mean(0) for part in parts], [part.std(0).clamp_min(1e-4) for part in parts]


def _far(code: Latent, mean: list[Tensor], std: list[Tensor]) -> Tensor:
    parts = zip(code.parts, mean, std, strict=True)
    return torch.cat([((part - m) / s).square().flatten() for part, m, s in parts]).mean()


@torch.no_grad()
def _normalize(maps: list[Tensor]) -> None:
    for values in maps:
        values.sub_(values.mean())
        values.div_(values.std())
