"""Inversion by HyperInverter: a code (in w; in w+ by the small one) and a change of the generator, in one pass each."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from limner.errors import OptionError
from limner.inversion.goals import check_image
from limner.inversion.options import EncodeOptions, InversionOptions
from limner.inversion.report import Distance, Inversion, OnStep, measure
from limner.latent import Latent
from limner.nn.compact_hyper import CompactHyper
from limner.nn.encoders import Encoder
from limner.nn.hyperinverter import HyperInverter, paint
from limner.nn.stylegan2 import Generator


@torch.no_grad()
def invert_hyper(
    generator: Generator,
    image: Tensor,
    options: InversionOptions,
    *,
    encoder: HyperInverter | CompactHyper | Encoder | None,
    encoding: EncodeOptions | None = None,
    perceptual: Distance | None,
    identity: Distance | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Invert photos; arguments and errors as `limner.inversion.invert`.

    Every picture changes the generator in its own way: the changes stand in ``deltas``, and for a single picture in
    ``delta`` too.  The code is good for editing with that picture's change in place.

    Raises:
        OptionError: no HyperInverter.
        ShapeError: it was made for another generator.

    Source: Dinh et al. 2022, "HyperInverter" (arXiv 2112.00719).
    """
    start = time.perf_counter()
    if not isinstance(encoder, (HyperInverter, CompactHyper)):
        raise OptionError(
            f"method {options.method} needs a HyperInverter: name its checkpoint with --encoder, in Python encoder=; "
            f"it got {'none' if encoder is None else type(encoder).__name__}"
        )
    target = check_image(image, generator).to(generator.w_avg)
    size = (encoding or EncodeOptions()).encode_batch
    codes, pictures, changes = [], [], []
    for first in range(0, len(target), size):
        found = encoder(generator, target[first : first + size])
        codes.append(found.w)
        pictures.append(paint(generator, found.w, found.residuals).clamp(-1, 1))
        changes += [found.delta(i) for i in range(len(found.w))]
        if on_step is not None:
            shown, wanted = pictures[-1], target[first : first + size]
            figures = {"loss": float((shown - wanted).square().mean())}
            on_step(1, 1, figures, lambda: torch.cat(pictures))
    result = torch.cat(pictures)
    report = measure(
        result,
        target,
        method=options.method,
        perceptual=perceptual,
        identity=identity,
        steps=[1] * len(target),
        seconds=time.perf_counter() - start,
    )
    only = changes[0] if len(changes) == 1 else None
    found_codes = torch.cat(codes)  # (B, w_dim), of a small HyperInverter (B, L, w_dim)
    latent = Latent("w" if found_codes.ndim == 2 else "w+", found_codes)
    return Inversion(latent, None, result, only, report, deltas=changes)
