"""How the codes of a space are spread: mean and deviation, and the principal components of II2S."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.latent import Space
from limner.latent.spaces import WStatistics, spread
from limner.nn.stylegan2 import Generator

# Affine outputs are measured on fewer draws than w: their spread only scales the shake.
_S_SAMPLES = 1000
# The mapping network ends in a Leaky ReLU of this slope.
_SLOPE = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class SpaceStatistics:
    """How the codes of a space are spread: per tensor of the space its mean, deviation and mean distance.

    Attributes:
        mean, std: tensors that broadcast to the space's.
        radius: root mean squared distance from the mean, of one row or vector.
    """

    mean: tuple[Tensor, ...]
    std: tuple[Tensor, ...]
    radius: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Whitening:
    """II2S's space P_N: w before the mapping network's last Leaky ReLU, turned and scaled to unit normal.

    Attributes:
        mean: of the unbent w, (w_dim,).
        components: principal directions, one per column, (w_dim, K).
        std: deviation along each, (K,).
    """

    mean: Tensor
    components: Tensor
    std: Tensor

    def __call__(self, w: Tensor) -> Tensor:
        """w or w+ (..., w_dim) -> (..., K)."""
        return (unbend(w) - self.mean) @ self.components / self.std

    def norm(self, w: Tensor) -> Tensor:
        """w or w+ (B, ..., w_dim) -> mean squared whitened value, (B,); about 1 for codes of the mapping network."""
        return self(w).square().flatten(1).mean(1)


def unbend(w: Tensor) -> Tensor:
    """Undo the mapping network's last Leaky ReLU: a Leaky ReLU of slope 5."""
    return F.leaky_relu(w, 1 / _SLOPE)


def whitening_from_w(w: Tensor) -> Whitening:
    """Measure P_N on given w, (N, w_dim).

    Directions in which w hardly varies (less than a millionth of the largest deviation, or more directions than
    draws) are left out: there is nothing to divide by.

    Source: Zhu et al. 2020, "Improved StyleGAN Embedding: Where are the Good Latents?" (arXiv 2012.09036), section 3,
    the space P_N and its norm.
    """
    v = unbend(w.double())
    mean = v.mean(0)
    values, vectors = torch.linalg.eigh((v - mean).T @ (v - mean) / len(v))
    keep = values > 1e-12 * values[-1]
    if len(v) <= len(values):
        keep[: len(values) - len(v) + 1] = False
    return Whitening(mean.to(w), vectors[:, keep].to(w), values[keep].sqrt().to(w))


@torch.no_grad()
def draw_codes(
    generator: Generator, count: int, *, rng: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return ``count`` random z and their w."""
    z = torch.randn(count, generator.z_dim, generator=rng).to(generator.w_avg)
    return z, torch.cat([generator.mapping(chunk) for chunk in z.split(1000)])


def space_statistics(
    generator: Generator, space: Space, *, count: int = 10_000, rng: torch.Generator | None = None
) -> SpaceStatistics:
    """Measure a space over ``count`` random z; the "mean" of z is the draw whose w lies nearest to the mean w."""
    z, w = draw_codes(generator, count, rng=rng)
    return statistics_from_w(generator, space, spread(w), w=w, z=z)


@torch.no_grad()
def statistics_from_w(
    generator: Generator, space: Space, statistics: WStatistics, *, w: Tensor, z: Tensor
) -> SpaceStatistics:
    """Return the spread of a space, given that of w and the draws it came from, w (N, w_dim) and z (N, z_dim)."""
    if space in ("z", "z+"):
        nearest = z[(w - statistics.mean).square().sum(1).argmin()][None]
        mean = nearest if space == "z" else nearest[:, None].expand(-1, generator.num_rows, -1)
        return SpaceStatistics((mean,), (torch.ones_like(mean),), (math.sqrt(z.shape[1]),))
    if space == "s":
        mean = generator.synthesis.styles(generator.broadcast(statistics.mean[None]))
        drawn = generator.synthesis.styles(generator.broadcast(w[:_S_SAMPLES]))
        spreads = [spread(values) for values in drawn]
        return SpaceStatistics(
            tuple(mean), tuple(s.std[None] for s in spreads), tuple(s.radius for s in spreads)
        )
    mean, std = statistics.mean[None], statistics.std[None]
    if space == "w+":
        mean, std = generator.broadcast(mean), generator.broadcast(std)
    return SpaceStatistics((mean,), (std,), (statistics.radius,))
