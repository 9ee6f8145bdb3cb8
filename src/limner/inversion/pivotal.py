"""Pivotal tuning: change a generator a little so that it paints one person, around a code that nearly does."""

from __future__ import annotations

import copy
import dataclasses
import time
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import DivergedError, OptionError
from limner.inversion.compact import invert_encoder, invert_hybrid
from limner.inversion.goals import check_image, check_mask, compare
from limner.inversion.optimize import optimize
from limner.inversion.options import COMPACT, InversionOptions, PivotalOptions
from limner.inversion.report import Distance, Inversion, OnStep, measure
from limner.latent import Latent, LayerMask, render
from limner.nn import deltas
from limner.nn.compact import CompactEncoder
from limner.nn.precision import autocast, choose_precision
from limner.nn.stylegan2 import Generator, Noise


@dataclasses.dataclass(frozen=True, eq=False)
class Tuning:
    """A generator tuned to a person.

    Attributes:
        delta: what it adds to the base; see `limner.nn.deltas`.
        image: what it paints at the pivot, (B, 3, R, R), clipped to [-1, 1].
        steps: steps that were taken.
    """

    delta: dict[str, Tensor]
    image: Tensor
    steps: int


def tune(
    generator: Generator,
    image: Tensor,
    pivot: Latent,
    options: PivotalOptions,
    *,
    perceptual: Distance | None,
    noise: Noise = "constant",
    mask: Tensor | None = None,
    precision: str = "fp32",
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tuning:
    """Tune a copy of a generator until the pivot paints the image.

    Args:
        generator: the base; it is not changed.
        image: (B, 3, R, R), [-1, 1]; one generator is tuned for all of them.
        pivot: their codes, of any space.
        options: steps and weights; ``tune_layers`` says which layers may change.
        perceptual: (image, image) -> (B,); None leaves the term out, and ``tune_stop`` with it.
        noise: the noise that belongs to the codes.
        mask: (B or 1, 1, R, R), 0 to 1; only what it covers is fitted.
        precision: see `InversionOptions`; of the generator while it is tuned.
        rng: random numbers of the locality term, on the CPU; None for a new generator with seed 0.
        on_step: see `limner.inversion.invert`.

    Raises:
        ShapeError, OptionError: see `limner.inversion.invert`.
        DivergedError: the loss left the finite numbers.

    Source: Roich et al. 2022, "Pivotal Tuning for Latent-based Editing of Real Images" (arXiv 2106.05744), equations
    2 to 4.
    Differs: the fitted noise maps, where there are any, stay in use.
    """
    target = check_image(image, generator).to(generator.w_avg)
    mask = check_mask(mask, target)
    if not (options.tune_l2 or (options.tune_perceptual and perceptual is not None)):
        raise OptionError(
            "there is nothing to fit: tune_l2 is 0 and so is tune_perceptual, or no trunk is at hand"
        )
    rng = rng or torch.Generator().manual_seed(0)
    precision = choose_precision(precision, target.device)
    tuned = copy.deepcopy(generator).requires_grad_(False)
    weights = _tuned_weights(tuned, options.tune_layers)
    with torch.no_grad():
        # A pivot in S is the code as the base sees it: the affine layers then have nothing to learn.
        pivot = (pivot if pivot.space == "s" else Latent("w+", pivot.w_plus(generator))).detach()
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=options.tune_learning_rate, betas=(0.9, 0.999), eps=1e-8)
    distances: dict[str, Any] = {"l2": options.tune_l2 > 0, "perceptual": perceptual}
    steps = 0
    for step in range(1, options.tune_steps + 1):
        with autocast(precision, target.device):
            painted = render(tuned, pivot, noise).float()
        found = compare(painted, target, **distances, mask=mask)
        if perceptual is not None and found["perceptual"].max() <= options.tune_stop:
            break
        record = {name: float(values.detach().mean()) for name, values in found.items()}
        loss = torch.stack([getattr(options, f"tune_{name}") * found[name].mean() for name in found]).sum()
        if options.locality:
            nearby = _locality(tuned, generator, pivot, options, perceptual, noise, rng)
            loss, record["locality"] = loss + options.locality * nearby, float(nearby.detach())
        if not loss.isfinite():
            raise DivergedError(
                f"pivotal tuning left the finite numbers at step {step}; lower tune_learning_rate "
                f"(it is {options.tune_learning_rate})"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps = step
        if on_step is not None:
            on_step(
                step,
                options.tune_steps,
                {"loss": float(loss.detach()), **record},
                lambda: _paint(tuned, pivot, noise),
            )
    return Tuning(deltas.difference(tuned, generator), _paint(tuned, pivot, noise), steps)


def invert_pivotal(
    generator: Generator,
    image: Tensor,
    options: InversionOptions,
    *,
    perceptual: Distance | None,
    pivotal: PivotalOptions,
    encoder: CompactEncoder | None = None,
    identity: Distance | None = None,
    init: Latent | None = None,
    mask: Tensor | None = None,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Search the pivot, then tune; arguments and errors as `limner.inversion.invert`.

    ``on_step`` counts the steps of both stages together.
    """
    start = time.perf_counter()
    rng = rng or torch.Generator().manual_seed(options.seed)
    searched = options.refinements if pivotal.pivot == "encoder" else options.steps + options.noise_steps
    total = searched + pivotal.tune_steps

    def shifted(by: int) -> OnStep | None:
        report = on_step
        return report and (lambda step, _, record, preview: report(by + step, total, record, preview))

    extra: dict[str, Any] = {}
    if pivotal.pivot in COMPACT or options.init == "encoder":
        extra["encoder"] = encoder
    search = {"encoder": invert_encoder, "hybrid": invert_hybrid}.get(pivotal.pivot, optimize)
    found = search(
        generator,
        image,
        options if pivotal.pivot in COMPACT else dataclasses.replace(options, method=pivotal.pivot),
        perceptual=perceptual,
        identity=identity,
        init=init,
        mask=None if pivotal.pivot == "encoder" else mask,
        rng=rng,
        on_step=shifted(0),
        **extra,
    )
    tuning = tune(
        generator,
        image,
        found.latent,
        pivotal,
        perceptual=perceptual,
        noise=found.noise_maps,
        mask=mask,
        precision=options.precision,
        rng=rng,
        on_step=shifted(searched),
    )
    figures = measure(
        tuning.image,
        image.to(tuning.image),
        method="pivotal",
        perceptual=perceptual,
        identity=identity,
        steps=[fit.steps + tuning.steps for fit in found.report],
        seconds=time.perf_counter() - start,
    )
    return Inversion(found.latent, found.noise, tuning.image, tuning.delta, figures)


def _tuned_weights(generator: Generator, layers: str) -> list[nn.Parameter]:
    """Return the synthesis parameters of the masked layers; the mapping network is never tuned.

    Raises:
        OptionError: the mask names no layer of this generator, or weights other than 0 and 1.
    """
    mask = LayerMask(layers).styles(generator)
    if not ((mask == 0) | (mask == 1)).all():
        raise OptionError(
            f"tune_layers is {layers!r}, but a layer is either tuned or not: leave the weights out"
        )
    chosen = []
    for name, weight in generator.named_parameters():
        vector = deltas.style_vector(name, generator)
        if vector is not None and mask[vector]:
            chosen.append(weight)
    if not chosen:
        raise OptionError(
            f"tune_layers is {layers!r}, which is no layer of a {generator.resolution} px generator"
        )
    return chosen


def _locality(
    tuned: Generator,
    base: Generator,
    pivot: Latent,
    options: PivotalOptions,
    perceptual: Distance | None,
    noise: Noise,
    rng: torch.Generator,
) -> Tensor:
    """Return how much the tuned generator changed a random face near the pivot (equations 3 and 4)."""
    if pivot.space == "s":
        raise OptionError(
            "the locality term looks around the pivot in w, but the pivot lies in s; search in w or w+"
        )
    with torch.no_grad():
        z = torch.randn(len(pivot), base.z_dim, generator=rng).to(base.w_avg)
        away = base.broadcast(base.mapping(z)) - pivot.tensor
        length = away.norm(dim=2, keepdim=True).clamp_min(1e-8)
        near = Latent("w+", pivot.tensor + options.locality_distance * away / length)
        before = render(base, near, noise)
    after = render(tuned, near, noise)
    loss = options.locality_l2 * (after - before).square().mean()
    if perceptual is not None and options.locality_perceptual:
        loss = loss + options.locality_perceptual * perceptual(after, before).mean()
    return loss


@torch.no_grad()
def _paint(generator: Generator, pivot: Latent, noise: Noise) -> Tensor:
    return render(generator, pivot, noise).clamp(-1, 1)
