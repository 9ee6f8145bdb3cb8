"""What an inversion returns: codes, noise, picture, change of the generator, and how close it came."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limner import losses
from limner.inversion.distances import Distance, IdentityDistance, TrunkDistance
from limner.latent import Latent

__all__ = ["Distance", "FitReport", "IdentityDistance", "Inversion", "OnStep", "TrunkDistance", "measure"]

# (step from 1, steps, plain numbers, function that paints the picture so far)
OnStep = Callable[[int, int, Mapping[str, float], Callable[[], Tensor]], None]


@dataclasses.dataclass(frozen=True)
class FitReport:
    """How close one picture came.

    Attributes:
        method: how it was embedded.
        psnr: peak signal-to-noise ratio in dB.
        ssim: structural similarity; None below 11 px.
        perceptual: perceptual distance, None without a trunk.
        trunk: name of the trunk that measured it.
        identity: squared distance of the identity embeddings, None without an embedder.
        steps: steps that were taken, all stages together.
        seconds: wall time of the whole call divided by its pictures.
        trunk_stands_for: the trunk that the method is published with, where another measured in its place.
        embedder, embedder_stands_for: the same of the identity embedder.
    """

    method: str
    psnr: float
    ssim: float | None
    perceptual: float | None
    trunk: str | None
    identity: float | None
    steps: int
    seconds: float
    trunk_stands_for: str | None = None
    embedder: str | None = None
    embedder_stands_for: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Inversion:
    """An embedded batch.

    Attributes:
        latent: the codes.
        noise: fitted noise maps, one (B, 1, h, w) per layer; None where the stored ones are used.
        image: what the generator makes of it, (B, 3, R, R), clipped to [-1, 1].
        delta: change of the generator's weights (see `limner.nn.deltas`), None where it stays as it is.
        report: one entry per picture.
        deltas: one change per picture, where each has its own.
    """

    latent: Latent
    noise: list[Tensor] | None
    image: Tensor
    delta: dict[str, Tensor] | None
    report: list[FitReport]
    deltas: list[dict[str, Tensor]] | None = None

    @property
    def noise_maps(self) -> Any:
        """The noise to render with: the fitted maps, or ``constant``."""
        return "constant" if self.noise is None else self.noise

    def one(self, number: int) -> Inversion:
        """Return what was found for one picture of the batch, counted from 0, as a batch of its own."""
        here = slice(number, number + 1)
        return Inversion(
            self.latent[here],
            None if self.noise is None else [values[here] for values in self.noise],
            self.image[here],
            self.delta if self.deltas is None else self.deltas[number],
            self.report[here],
            deltas=None if self.deltas is None else self.deltas[here],
        )


@torch.no_grad()
def measure(
    image: Tensor,
    target: Tensor,
    *,
    method: str,
    perceptual: Distance | None,
    identity: Distance | None,
    steps: Sequence[int],
    seconds: float,
) -> list[FitReport]:
    """Compare pictures with their targets, both (B, 3, R, R); one report each.

    Args:
        image, target: reconstruction and original, [-1, 1].
        method: stands in the reports.
        perceptual, identity: distances; None leaves the figure out.
        steps: steps taken, per picture.
        seconds: wall time of all together.
    """
    image = image.clamp(-1, 1)
    ratios = losses.psnr(image, target).tolist()
    likeness = losses.ssim(image, target).tolist() if min(image.shape[2:]) >= 11 else [None] * len(image)
    far = perceptual(image, target).tolist() if perceptual else [None] * len(image)
    strange = identity(image, target).tolist() if identity else [None] * len(image)
    return [
        FitReport(
            method=method,
            psnr=ratios[i],
            ssim=likeness[i],
            perceptual=far[i],
            trunk=getattr(perceptual, "name", None) if perceptual else None,
            identity=strange[i],
            steps=steps[i],
            seconds=seconds / len(image),
            trunk_stands_for=getattr(perceptual, "stands_for", None),
            embedder=getattr(identity, "name", None),
            embedder_stands_for=getattr(identity, "stands_for", None),
        )
        for i in range(len(image))
    ]
