"""What an inversion returns: codes, noise, picture, change of the generator, and how close it came."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limner import losses
from limner.errors import ShapeError
from limner.latent import Latent

# (image, image) -> (B,), both (B, 3, H, W) in [-1, 1].
Distance = Callable[[Tensor, Tensor], Tensor]
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
    """

    method: str
    psnr: float
    ssim: float | None
    perceptual: float | None
    trunk: str | None
    identity: float | None
    steps: int
    seconds: float

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


class TrunkDistance:
    """Perceptual distance on a feature trunk; the second image's features are kept for the next call.

    Args:
        trunk: image -> maps, such as `limner.nn.features.Lite0`.
        name: stands in reports.
        least_px, most_px: smaller and larger images are brought to these sizes first; trunks see little in tiny ones.
        weights: one per map, see `limner.losses.maps_distance`.
        compare: (maps, maps) -> (B,), in place of that function, such as LPIPS's weighing of channels.
    """

    def __init__(
        self,
        trunk: Callable[[Tensor], Sequence[Tensor]],
        *,
        name: str,
        least_px: int = 128,
        most_px: int = 256,
        weights: Sequence[float] | None = None,
        compare: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] | None = None,
    ):
        self.trunk, self.name = trunk, name
        self.compare = compare or functools.partial(losses.maps_distance, weights=weights)
        self.least_px, self.most_px = least_px, most_px
        self._target: tuple[Tensor, int, list[Tensor]] | None = None

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Two (B, 3, H, W) -> (B,)."""
        if image.shape != target.shape:
            raise ShapeError(
                f"images have shapes {tuple(image.shape)} and {tuple(target.shape)}, expected equal ones"
            )
        if target.requires_grad:
            return self.compare(self._maps(image), self._maps(target))
        # `_version` grows with every change in place.
        if self._target is None or self._target[0] is not target or self._target[1] != target._version:
            with torch.no_grad():
                self._target = target, target._version, self._maps(target)
        return self.compare(self._maps(image), self._target[2])

    def _maps(self, image: Tensor) -> list[Tensor]:
        side = max(image.shape[2:])
        if side < self.least_px:
            image = F.interpolate(
                image, scale_factor=self.least_px / side, mode="bilinear", align_corners=False
            )
        elif side > self.most_px:
            image = F.interpolate(image, scale_factor=self.most_px / side, mode="area")
        return list(self.trunk(image))


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
        )
        for i in range(len(image))
    ]
