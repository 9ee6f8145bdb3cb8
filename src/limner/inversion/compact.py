"""Inversion by the compact encoder: alone, in tens of milliseconds, or as the start of a search (hybrid)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from limner.errors import OptionError
from limner.inversion.goals import Goal, check_image
from limner.inversion.optimize import optimize
from limner.inversion.options import InversionOptions
from limner.inversion.report import Distance, Inversion, OnStep, measure
from limner.inversion.starts import encoder_codes, need_encoder
from limner.latent import Latent, render
from limner.nn.compact import CompactEncoder
from limner.nn.stylegan2 import Generator


@torch.no_grad()
def invert_encoder(
    generator: Generator,
    image: Tensor,
    options: InversionOptions,
    *,
    perceptual: Distance | None,
    encoder: CompactEncoder | None = None,
    identity: Distance | None = None,
    init: Latent | None = None,
    mask: Tensor | None = None,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Invert by the compact encoder alone; arguments and errors as `limner.inversion.invert`.

    Args:
        generator: the one that the encoder belongs to.
        image: (B, 3, R, R).
        options: ``refinements`` counts the encoder's steps.
        perceptual, identity: for the report.
        encoder: what looks.
        init, mask: an encoder takes neither.
        rng: nothing here is random.
        on_step: called once, at the end.

    Raises:
        OptionError: no encoder, or codes to start from or a mask were given.
        KeyMismatchError: the encoder belongs to another generator.
    """
    start = time.perf_counter()
    encoder = need_encoder(encoder, "method encoder")
    if init is not None or mask is not None:
        raise OptionError(
            "method encoder starts from nothing and sees whole pictures: no init, no mask; take hybrid for a mask"
        )
    target = check_image(image, generator).to(generator.w_avg)
    latent = Latent("w+", encoder.encode(generator, target, steps=options.refinements)[-1])
    painted = render(generator, latent).clamp(-1, 1)
    seconds = time.perf_counter() - start
    if on_step is not None:
        loss = float((painted - target).square().mean())
        on_step(options.refinements, options.refinements, {"loss": loss}, lambda: painted)
    report = measure(
        painted,
        target,
        method="encoder",
        perceptual=perceptual,
        identity=identity,
        steps=[options.refinements] * len(target),
        seconds=seconds,
    )
    return Inversion(latent, None, painted, None, report)


def invert_hybrid(
    generator: Generator,
    image: Tensor,
    options: InversionOptions,
    *,
    perceptual: Distance | None,
    encoder: CompactEncoder | None = None,
    identity: Distance | None = None,
    init: Latent | None = None,
    mask: Tensor | None = None,
    goals: Sequence[Goal] = (),
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Invert by a search in w+ that starts from the encoder's codes; arguments as `invert_encoder`.

    Source: Zhu et al. 2016 (arXiv 1609.03552), section 3.1, who first let an encoder start the search.
    """
    start = time.perf_counter()
    if init is not None:
        raise OptionError("method hybrid starts from its encoder: no init; take w+ to start from other codes")
    codes = encoder_codes(generator, image, options, encoder, "method hybrid")
    found = optimize(
        generator,
        image,
        dataclasses.replace(options, method="w+", init="given"),
        perceptual=perceptual,
        identity=identity,
        init=codes,
        mask=mask,
        goals=goals,
        rng=rng,
        on_step=on_step,
    )
    seconds = (time.perf_counter() - start) / len(image)
    report = [dataclasses.replace(fit, method="hybrid", seconds=seconds) for fit in found.report]
    return dataclasses.replace(found, report=report)
