"""The Fréchet distance of a generator as a loss that small batches can follow.

The distance compares means and covariances of thousands of images, a step sees sixteen.  So the statistics of the
generated features are kept as a running average, and every feature vector of a batch is pulled to where the optimal
affine map between the two Gaussians would carry it: that is the gradient of the distance in that vector, and it is
exact however small the batch is.  What the generator never paints shows as a direction of too little spread, and is
asked for, which no judge of single pictures does.

Source: Dowson and Landau 1982, "The Fréchet distance between multivariate normal distributions"; Peyré and Cuturi 2019,
"Computational Optimal Transport" (arXiv 1803.00567), remark 2.31: the map between Gaussians.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLED_SIDES = (2, 2, 1)
"""Sides to which the trunk's last maps (strides 8, 16 and 32) are averaged."""
PIXEL_SIDE = 8
INTERVAL = 4
"""Batches between two computations of the map."""
DAMPING = 0.02
"""Share of the mean variance that is added to every direction, so that directions without spread stay bounded."""


def summaries(maps: Sequence[Tensor], image: Tensor) -> list[Tensor]:
    """Trunk's maps (B, C_i, h_i, w_i) from fine to coarse and the image (B, 3, R, R) -> vectors (B, F_j)."""
    last = list(maps)[-len(POOLED_SIDES) :]
    pooled = [F.adaptive_avg_pool2d(x, side) for x, side in zip(last, POOLED_SIDES, strict=True)]
    return [x.flatten(1).float() for x in [*pooled, F.adaptive_avg_pool2d(image, PIXEL_SIDE)]]


class GaussianTransport(nn.Module):
    """Running mean and covariance of generated vectors, and the affine map that carries them to the real ones.

    Args:
        width: numbers per vector.
        population: generated images over which the running statistics average, about.
    """

    def __init__(self, *, width: int, population: int = 3000):
        super().__init__()
        self.population = population
        self.real_mean: Tensor
        self.real_root: Tensor
        self.mean: Tensor
        self.second: Tensor
        self.map: Tensor
        self.scale: Tensor
        self.seen: Tensor
        for name in ("real_mean", "mean"):
            self.register_buffer(name, torch.zeros(width, dtype=torch.float64))
        for name in ("real_root", "second", "map"):
            self.register_buffer(name, torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def set_real(self, vectors: Tensor) -> None:
        """Take mean and covariance of real vectors (N, F); N should be several times F."""
        vectors = vectors.double()
        covariance = vectors.t().cov()
        self.scale.copy_(covariance.diagonal().mean())
        self.real_mean.copy_(vectors.mean(0))
        self.real_root.copy_(_power(self._damped(covariance), 0.5))

    @torch.no_grad()
    def observe(self, vectors: Tensor) -> None:
        """Take generated vectors (B, F) into the running statistics; renew the map now and then."""
        vectors = vectors.double()
        seen = int(self.seen)
        share = len(vectors) / min(seen + len(vectors), self.population)
        self.mean.lerp_(vectors.mean(0), share)
        self.second.lerp_(vectors.t() @ vectors / len(vectors), share)
        self.seen += len(vectors)
        if (seen // len(vectors)) % INTERVAL == 0 or seen < self.population // 4:
            self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Compute the map of the present statistics."""
        covariance = self._damped(self.second - torch.outer(self.mean, self.mean))
        root = self.real_root
        self.map.copy_(root @ _power(root @ covariance @ root, -0.5) @ root)

    def _damped(self, covariance: Tensor) -> Tensor:
        damped = covariance.clone()
        damped.diagonal().add_(DAMPING * self.scale)
        return damped

    def forward(self, vectors: Tensor) -> Tensor:
        """Return half the mean squared way that vectors (B, F) have to go, in real variances."""
        x = vectors.detach().double()
        goal = self.real_mean + (x - self.mean) @ self.map
        way = (vectors - goal.to(vectors.dtype)).square().mean()
        return 0.5 * way / self.scale.to(vectors.dtype)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Return the power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.t()) / 2)
    least = values[-1] * 1e-10
    return vectors * values.clamp_min(least).pow(exponent) @ vectors.t()


class FrechetPull(nn.Module):
    """`GaussianTransport` for every group of `summaries`.

    Args:
        widths: numbers per vector of every group.
        population: see `GaussianTransport`.
    """

    def __init__(self, *, widths: Sequence[int], population: int = 3000):
        super().__init__()
        self.groups = nn.ModuleList(GaussianTransport(width=width, population=population) for width in widths)

    @property
    def ready(self) -> bool:
        """Whether statistics of generated images are there; those of the real ones are measured before them."""
        return any(int(group.seen) > 0 for group in self._all())

    def _all(self) -> list[GaussianTransport]:
        return [group for group in self.groups if isinstance(group, GaussianTransport)]

    def set_real(self, vectors: Sequence[Tensor]) -> None:
        """Measure the real vectors of every group, (N, F_j)."""
        for group, x in zip(self._all(), vectors, strict=True):
            group.set_real(x)

    def observe(self, vectors: Sequence[Tensor]) -> None:
        """Take in generated vectors of every group, (B, F_j)."""
        for group, x in zip(self._all(), vectors, strict=True):
            group.observe(x)

    def renew(self) -> None:
        """Compute the maps of the present statistics."""
        for group in self._all():
            group.renew()

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return the mean loss over the groups."""
        return torch.stack([group(x) for group, x in zip(self._all(), vectors, strict=True)]).mean()
