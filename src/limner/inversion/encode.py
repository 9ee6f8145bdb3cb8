"""Inversion by an encoder: pSp, e4e, ReStyle; one pass per picture, or as many as ReStyle takes."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from limner.errors import OptionError, ShapeError
from limner.inversion.goals import check_image
from limner.inversion.options import EncodeOptions, InversionOptions
from limner.inversion.report import Distance, Inversion, OnStep, measure
from limner.latent import Latent, render
from limner.nn.encoders import Encoder, check_pair, refine, to_input
from limner.nn.precision import autocast, choose_precision
from limner.nn.stylegan2 import Generator


@torch.no_grad()
def encode_latents(
    generator: Generator,
    encoder: Encoder,
    image: Tensor,
    options: EncodeOptions | None = None,
    *,
    precision: str = "fp32",
) -> list[Latent]:
    """Return the codes after every pass, the last being the result; every picture gets one.

    Args:
        generator: the one the encoder was trained with; ReStyle paints with it between passes.
        encoder: in evaluation mode.
        image: (B, C, H, W), photos in [-1, 1], sketches and label maps in [0, 1]; brought to the encoder's size.
        options: passes, and pictures at once; the last batch may be smaller.
        precision: of encoder and generator, see `InversionOptions`; the codes are float32.

    Raises:
        ShapeError: the pictures' channels are not the encoder's, or it does not fit the generator.
    """
    options = options or EncodeOptions()
    check_pair(encoder, generator)
    seen = encoder.in_channels // (2 if encoder.feedback else 1)
    if image.ndim != 4 or image.shape[1] != seen or not len(image):
        raise ShapeError(f"image has shape {tuple(image.shape)}, but this encoder sees (B, {seen}, H, W)")
    passes: list[list[Tensor]] = []
    for start in range(0, len(image), options.encode_batch):
        batch = to_input(encoder, image[start : start + options.encode_batch].to(encoder.mean))
        with autocast(choose_precision(precision, batch.device), batch.device):
            passes.append(refine(encoder, generator, batch, iterations=options.iterations or None))
    return [Latent(encoder.space, torch.cat(codes)) for codes in zip(*passes, strict=True)]


@torch.no_grad()
def encode(
    generator: Generator,
    image: Tensor,
    options: InversionOptions,
    *,
    encoder: Encoder | None,
    encoding: EncodeOptions | None = None,
    perceptual: Distance | None,
    identity: Distance | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Invert photos with an encoder; arguments and errors as `limner.inversion.invert`.

    Raises:
        OptionError: no encoder, or one of another method.
    """
    start = time.perf_counter()
    if not isinstance(encoder, Encoder):
        raise OptionError(
            f"method {options.method} needs an encoder: name a checkpoint of it with --encoder, in Python encoder="
        )
    if encoder.family != options.method:
        raise OptionError(f"method is {options.method}, but the encoder is one of {encoder.family}")
    target = check_image(image, generator).to(generator.w_avg)
    passes = encode_latents(generator, encoder, target, encoding, precision=options.precision)
    size = (encoding or EncodeOptions()).encode_batch
    parts = [
        render(generator, passes[-1][i : i + size]).clamp(-1, 1) for i in range(0, len(passes[-1]), size)
    ]
    result = torch.cat(parts)
    if on_step is not None:
        figures = {"loss": float((result - target).square().mean())}
        on_step(len(passes), len(passes), figures, lambda: result)
    report = measure(
        result,
        target,
        method=options.method,
        perceptual=perceptual,
        identity=identity,
        steps=[len(passes)] * len(target),
        seconds=time.perf_counter() - start,
    )
    return Inversion(passes[-1], None, result, None, report)
