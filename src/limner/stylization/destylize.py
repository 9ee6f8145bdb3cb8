"""Facial destylisation: from an artistic portrait to the code of a real face it could have been drawn after.

Such pairs, the portrait and the face's code, supervise the last stage of training a DualStyleGAN.

Source: Yang et al. 2022, "Pastiche Master: Exemplar-Based High-Resolution Portrait Style Transfer"
(arXiv 2203.13248), section 3.1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from limner.errors import DivergedError, ShapeError
from limner.nn.stylegan2 import Generator
from limner.stylization.options import DestylizeOptions

COLOR_LOCK_ROW = 8
"""First row that keeps the encoder's code, so that colours do not wander: as published, the second one of 64 px."""
RAMP_UP, RAMP_DOWN = 0.05, 0.25

Distance = Callable[[Tensor, Tensor], Tensor]
Encode = Callable[[Tensor], Tensor]
Embed = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, int, Mapping[str, float]], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Destylization:
    """Portraits, and the faces behind them.

    Attributes:
        extrinsic: what the encoder makes of the portraits, z+ (B, L, z_dim); the style.
        fitted: the code whose picture in the fine-tuned generator is nearest to the portrait, z+ (B, L, z_dim).
        intrinsic: what the encoder makes of the face, z+ (B, L, z_dim); the content.
        stylized: the fine-tuned generator's picture of ``fitted``, (B, 3, R, R), clipped to [-1, 1].
        face: the real face, (B, 3, R, R), clipped to [-1, 1].
        figures: name -> last value of every loss, per portrait.
    """

    extrinsic: Tensor
    fitted: Tensor
    intrinsic: Tensor
    stylized: Tensor
    face: Tensor
    figures: dict[str, list[float]]


def row_spread(z_plus: Tensor) -> Tensor:
    """Return the mean standard deviation of every number over the rows, z+ (B, L, z_dim) -> (B,).

    Source: the regulariser of section 3.1, stage II.
    """
    return z_plus.std(1).mean(1)


def lock_colors(z_plus: Tensor, reference: Tensor, *, row: int = COLOR_LOCK_ROW) -> Tensor:
    """Return a code whose rows from ``row`` on are those of another."""
    return torch.cat([z_plus[:, :row], reference[:, row:]], 1)


def destylize(
    base: Generator,
    tuned: Generator,
    portraits: Tensor,
    options: DestylizeOptions | None = None,
    *,
    encode: Encode,
    perceptual: Distance,
    identity: Distance | None = None,
    embed: Embed | None = None,
    on_step: OnStep | None = None,
) -> Destylization:
    """Find the faces behind portraits; every portrait is searched by itself, whatever the batch.

    Args:
        base: the generator of faces.
        tuned: the same, fine-tuned on the portraits' style.
        portraits: (B, 3, R, R), [-1, 1], aligned.
        options: see `DestylizeOptions`.
        encode: images (B, 3, R, R) -> z+ (B, L, z_dim) of ``base``: an encoder, or a search.
        perceptual: (image, image) -> (B,).
        identity: (image, image) -> (B,); None leaves the term out.
        embed: (face (B, 3, R, R), its w+ (B, L, w_dim)) -> z+, for the face's code; None for ``encode`` of the face alone.
        on_step: called after every step with step, steps and mean losses.

    Raises:
        ShapeError: the portraits or the encoder's codes do not fit the generators.
        DivergedError: a loss is infinite or undefined.

    Differs: the stored noise maps are used and stay as they are, so that what is found lies in the code.
    """
    options = options or DestylizeOptions()
    side = base.resolution
    if portraits.ndim != 4 or portraits.shape[1:] != (3, side, side) or tuned.resolution != side:
        raise ShapeError(
            f"portraits have shape {tuple(portraits.shape)} and the fine-tuned generator {tuned.resolution} px, "
            f"expected (B, 3, {side}, {side}) and {side} px"
        )
    # I: the encoder's code, whose colours are those of the portrait.
    with torch.no_grad():
        extrinsic = encode(portraits)
    shape = len(portraits), base.num_rows, base.z_dim
    if tuple(extrinsic.shape) != shape:
        raise ShapeError(f"the encoder gave codes {tuple(extrinsic.shape)}, expected z+ {shape}")
    # II: the code that makes the fine-tuned generator paint the portrait.
    fitted, figures = _fit(tuned, portraits, extrinsic, options, perceptual, identity, on_step)
    with torch.no_grad():
        stylized = tuned.synthesis(tuned.map_z_plus(fitted)).clamp(-1, 1)
        if options.color_lock:
            fitted = lock_colors(fitted, extrinsic)
        w_plus = base.truncate(base.map_z_plus(fitted), options.truncation)
        face = base.synthesis(w_plus).clamp(-1, 1)
        # III: the face as the encoder sees it, which is what it will give for photos.
        intrinsic = encode(face) if embed is None else embed(face, w_plus)
        if options.color_lock:
            intrinsic = lock_colors(intrinsic, extrinsic)
    return Destylization(extrinsic, fitted, intrinsic, stylized, face, figures)


def _fit(
    generator: Generator,
    portraits: Tensor,
    start: Tensor,
    options: DestylizeOptions,
    perceptual: Distance,
    identity: Distance | None,
    on_step: OnStep | None,
) -> tuple[Tensor, dict[str, list[float]]]:
    """Optimise z+ codes; return them and the last losses."""
    code = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([code], lr=options.learning_rate)
    figures: dict[str, list[float]] = {}
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _ramp(step / options.steps)
        image = generator.synthesis(generator.map_z_plus(code))
        terms = {"perceptual": perceptual(image, portraits), "spread": row_spread(code)}
        if identity is not None:
            terms["identity"] = identity(image, portraits)
        loss = torch.stack([getattr(options, name) * value for name, value in terms.items()]).sum()
        if not loss.isfinite():
            raise DivergedError(
                f"the search left the finite numbers at step {step + 1}; lower learning_rate "
                f"(it is {options.learning_rate})"
            )
        # Only the code: the generator's weights need no gradient, whether they could have one or not.
        (code.grad,) = torch.autograd.grad(loss, code)
        optimizer.step()
        figures = {name: value.detach().tolist() for name, value in terms.items()}
        if on_step is not None:
            means = {name: sum(values) / len(values) for name, values in figures.items()}
            on_step(step + 1, options.steps, {"loss": float(loss.detach()) / len(portraits), **means})
    return code.detach(), figures


def _ramp(t: float) -> float:
    """Return the share of the step size at time ``t`` in [0, 1]: a linear rise, and a cosine fall at the end."""
    return min(1.0, t / RAMP_UP) * (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / RAMP_DOWN)))
