"""Figures of sets of images: Fréchet and kernel distance, precision and recall, perceptual path length.

All work on feature vectors (N, F) from any extractor ``images -> vectors``; the default one is the globally pooled last
map of EfficientNet-Lite0 at 128 px, 320 numbers per image (`pooled_features`).  Figures on these features are not
comparable with published ones, which need Inception-v3's pool3 vectors: pass such a network to `collect_features`.
Quote them with the floor of `floor_figures`, what two halves of the real data give against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import OptionError, ShapeError
from limner.losses import gram_matrix
from limner.nn.stylegan2 import Generator

FEATURE_RESOLUTION = 128
"""Side in px at which `pooled_features` looks at images, whatever their own."""

Extractor = Callable[[Tensor], Tensor]
Trunk = Callable[[Tensor], Sequence[Tensor]]
Distance = Callable[[Tensor, Tensor], Tensor]


# Features


@torch.no_grad()
def collect_features(extract: Extractor, images: Iterable[Tensor]) -> Tensor:
    """Return the features of all images, float32 on the CPU, (N, F).

    Args:
        extract: images (B, 3, H, W), [-1, 1] -> (B, F); for published figures an Inception-v3 network.
        images: batches.

    Raises:
        ShapeError: there are no images, or the extractor does not return (B, F).
    """
    found = []
    for batch in images:
        features = extract(batch)
        if features.ndim != 2 or len(features) != len(batch):
            raise ShapeError(
                f"the extractor made {tuple(features.shape)} of {len(batch)} images, expected (B, F)"
            )
        found.append(features.float().cpu())
    if not found:
        raise ShapeError("there are no images to take features of")
    return torch.cat(found)


def pooled_features(
    trunk: Trunk, images: Iterable[Tensor], *, resolution: int = FEATURE_RESOLUTION
) -> Tensor:
    """Return the mean over pixels of the trunk's last map, (N, 320) for Lite0.

    Args:
        trunk: image -> maps, such as `limner.nn.features.Lite0`.
        images: batches (B, 3, H, W), [-1, 1]; batches may differ in size.
        resolution: images are brought to this side in px, with antialiasing.
    """

    def extract(image: Tensor) -> Tensor:
        if image.shape[2:] != (resolution, resolution):
            image = F.interpolate(image, (resolution, resolution), mode="bilinear", antialias=True)
        return trunk(image)[-1].mean((2, 3))

    return collect_features(extract, images)


class FeatureStatistics:
    """Mean and covariance of feature vectors, gathered in batches of any size, in float64.

    Args:
        width: numbers per vector.

    Source: Chan et al. 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
    """

    def __init__(self, *, width: int):
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Return the statistics of (N, F)."""
        statistics = cls(width=features.shape[-1])
        statistics.add(features)
        return statistics

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (F, F).

        Raises:
            ShapeError: fewer than two vectors were added.
        """
        if self.count < 2:
            raise ShapeError(f"the covariance of {self.count} vectors is undefined; at least 2 are needed")
        return self._scatter / (self.count - 1)

    def add(self, features: Tensor) -> None:
        """Take in vectors (N, F).

        Raises:
            ShapeError: they are not of the width that was announced.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ShapeError(f"features have shape {tuple(features.shape)}, expected (N, {len(self.mean)})")
        if not len(features):
            return
        other = FeatureStatistics(width=features.shape[1])
        values = features.detach().cpu().double()
        other.count, other.mean = len(values), values.mean(0)
        centred = values - other.mean
        other._scatter = centred.t() @ centred
        self.merge(other)

    def merge(self, other: FeatureStatistics) -> None:
        """Take in everything that another object has seen, such as another process's share."""
        total = self.count + other.count
        if not total:
            return
        shift = other.mean - self.mean
        self._scatter = (
            self._scatter + other._scatter + torch.outer(shift, shift) * (self.count * other.count / total)
        )
        self.mean = self.mean + shift * (other.count / total)
        self.count = total


# Distances of sets


def frechet_distance(a: FeatureStatistics | Tensor, b: FeatureStatistics | Tensor) -> float:
    """Return the Fréchet distance of two Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    The trace of the root of A B is the sum of the singular values of A^(1/2) B^(1/2), which exists and is real for
    singular covariances too; no root of a non-symmetric matrix is taken.

    Args:
        a, b: statistics, or features (N, F).

    Raises:
        ShapeError: different widths, or fewer than two vectors.

    Source: Heusel et al. 2017 (arXiv 1706.08500), section 1.
    """
    a, b = (FeatureStatistics.of(x) if isinstance(x, Tensor) else x for x in (a, b))
    if a.mean.shape != b.mean.shape:
        raise ShapeError(f"features have {len(a.mean)} and {len(b.mean)} numbers, expected equally many")
    root_a, root_b = _root(a.covariance), _root(b.covariance)
    shared = torch.linalg.svdvals(root_a @ root_b).sum()
    value = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * shared
    return max(value.item(), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric root of a positive semidefinite matrix; rounding below zero is cut off."""
    values, vectors = torch.linalg.eigh((covariance + covariance.t()) / 2)
    return vectors * values.clamp(min=0).sqrt() @ vectors.t()


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000, rng: torch.Generator
) -> tuple[float, float]:
    """Return the kernel distance (KID) with the kernel (x y / F + 1)^3: mean and standard error over subsets.

    Every subset gives the unbiased estimator, which may be negative; it needs no Gaussian assumption and is not
    biased for small sets.

    Args:
        a, b: features (N, F) and (M, F).
        subsets: random subsets that are averaged.
        subset_size: vectors of either set per subset; at most the smaller set.
        rng: draws the subsets; on the CPU.

    Raises:
        ShapeError: different widths, or fewer than two vectors.

    Source: Binkowski et al. 2018, "Demystifying MMD GANs" (arXiv 1801.01401), section 4 and appendix A.
    """
    _check_sets(a, b, least=2)
    size = min(subset_size, len(a), len(b))
    values = []
    for _ in range(subsets):
        x = a[torch.randperm(len(a), generator=rng)[:size]].double()
        y = b[torch.randperm(len(b), generator=rng)[:size]].double()
        values.append(_mmd2(x, y))
    found = torch.tensor(values, dtype=torch.float64)
    error = found.std().item() / math.sqrt(subsets) if subsets > 1 else 0.0
    return found.mean().item(), error


def _mmd2(x: Tensor, y: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy of equally many vectors."""
    n, width = x.shape
    k_xx, k_yy, k_xy = ((p @ q.t() / width + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = (k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()) / (n * (n - 1))
    return (within - 2 * k_xy.mean()).item()


def _check_sets(a: Tensor, b: Tensor, *, least: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ShapeError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected (N, F) and (M, F)"
        )
    if min(len(a), len(b)) < least:
        raise ShapeError(f"sets hold {len(a)} and {len(b)} vectors, at least {least} are needed")


def precision_recall(real: Tensor, fake: Tensor, *, k: int = 3, chunk: int = 2048) -> tuple[float, float]:
    """Return the share of fakes that lie where reals are (precision) and of reals that lie where fakes are (recall).

    A set's region is the union of balls around its vectors, each reaching to the k-th nearest other one.

    Args:
        real, fake: features (N, F) and (M, F); take equally many of both.
        k: neighbours.
        chunk: rows of the distance matrix held at once.

    Raises:
        ShapeError: different widths, or no more than k vectors.

    Source: Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric" (arXiv 1904.06991), section 2.
    """
    _check_sets(real, fake, least=k + 1)
    real, fake = real.double(), fake.double()
    return _share_inside(real, fake, k=k, chunk=chunk), _share_inside(fake, real, k=k, chunk=chunk)


def _share_inside(region: Tensor, points: Tensor, *, k: int, chunk: int) -> float:
    """Return the share of points within reach of at least one vector of the region."""
    # The nearest one to a vector of the region is itself: hence the (k + 1)-th.
    reach = torch.cat([_distances(part, region).kthvalue(k + 1, 1).values for part in region.split(chunk)])
    inside = [(_distances(part, region) <= reach).any(1) for part in points.split(chunk)]
    return torch.cat(inside).double().mean().item()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances (N, M), exactly zero for equal vectors."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


# All together


@dataclass(frozen=True)
class SetFigures:
    """How close a set of images is to a set of real ones."""

    frechet: float
    """Fréchet distance, 0 is best."""
    kernel: float
    """Kernel distance, unbiased: about 0 for equal distributions."""
    kernel_error: float
    """Standard error of the kernel distance over its subsets."""
    precision: float
    """Share of the fakes that look real."""
    recall: float
    """Share of the reals that the fakes cover."""
    real_count: int
    """Real images."""
    fake_count: int
    """Fake images."""


def compare_sets(real: Tensor, fake: Tensor, *, rng: torch.Generator, k: int = 3) -> SetFigures:
    """Return every figure for two sets of features, (N, F) and (M, F).

    Raises:
        ShapeError: different widths, or no more than k vectors.
    """
    _check_sets(real, fake, least=k + 1)
    kernel, error = kernel_distance(real, fake, rng=rng)
    precision, recall = precision_recall(real, fake, k=k)
    return SetFigures(
        frechet=frechet_distance(real, fake),
        kernel=kernel,
        kernel_error=error,
        precision=precision,
        recall=recall,
        real_count=len(real),
        fake_count=len(fake),
    )


def floor_figures(real: Tensor, *, rng: torch.Generator, k: int = 3) -> SetFigures:
    """Compare two random halves of the real features: what a perfect generator would get with half as many images.

    The Fréchet distance falls with the number of images; compare like with like.
    """
    order = torch.randperm(len(real), generator=rng)
    half = len(real) // 2
    return compare_sets(real[order[:half]], real[order[half : 2 * half]], rng=rng, k=k)


# Style


@torch.no_grad()
def gram_matrices(trunk: Trunk, image: Tensor, *, pixels: bool = False, batch: int = 10) -> list[Tensor]:
    """Return the Gram matrices of images (N, 3, H, W), one (N, C, C) per map of the trunk, on the images' device.

    Args:
        trunk: image -> feature maps.
        image: [-1, 1].
        pixels: put that of the pixels, with a constant beside the colours, in front; trunks hardly see colour.
        batch: how many images the trunk sees at a time.

    Source: Gatys et al. 2016 (arXiv 1508.06576), equation 3.
    """
    found: list[list[Tensor]] = []
    for part in image.split(batch):
        maps = list(trunk(part))
        if pixels:
            maps = [torch.cat([part, torch.ones_like(part[:, :1])], 1), *maps]
        found.append([gram_matrix(level) for level in maps])
    return [torch.cat(level) for level in zip(*found, strict=True)]


def gram_differences(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return how different the styles of N images are from those of M others, (N, M).

    It is the mean over maps of squared differences of Gram matrices, divided by the product of their norms.

    Args:
        a, b: what `gram_matrices` returned for either, (N, C, C) and (M, C, C) per map.

    Differs: `limner.losses.gram_distance` divides by one side's norm, as a loss may; of several references it would
    prefer the one with the largest.
    """
    levels = []
    for x, y in zip(a, b, strict=True):
        x, y = x.flatten(1), y.flatten(1)
        apart = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
        levels.append(apart / (x.norm(dim=1)[:, None] * y.norm(dim=1)).clamp_min(1e-12))
    return torch.stack(levels).mean(0)


# Smoothness of the latent space


@torch.no_grad()
def perceptual_path_length(
    generator: Generator,
    distance: Distance,
    *,
    rng: torch.Generator,
    samples: int = 1000,
    space: str = "w",
    sampling: str = "end",
    epsilon: float = 1e-4,
    batch_size: int = 8,
    max_resolution: int = 256,
) -> float:
    """Return how much the image changes per squared step along latent paths; smaller means a smoother space.

    Args:
        generator: what is measured; its stored noise maps stay fixed.
        distance: (B, 3, H, W) twice -> (B,), such as `limner.nn.lpips.Lpips`, or
            ``functools.partial(perceptual_distance, trunk)`` of `limner.losses`.
        rng: draws the paths.
        samples: paths.
        space: "w" for straight lines between two w, "z" for arcs between two z.
        sampling: where the step is taken: "end" at the path's start, "full" anywhere along it.
        epsilon: length of the step, as a share of the path.
        batch_size: paths at once.
        max_resolution: larger images are averaged down to this side in px.

    Raises:
        OptionError: an unknown space or sampling, or no samples.

    Source: Karras et al. 2019, StyleGAN (arXiv 1812.04948), section 4.1; "end" and the dropped hundredths as in
    Karras et al. 2020 (arXiv 1912.04958), appendix.
    """
    if space not in ("w", "z") or sampling not in ("end", "full") or samples < 1:
        raise OptionError(
            f"space {space!r}, sampling {sampling!r}, {samples} samples; expected w or z, end or full, at least 1"
        )
    device = next(generator.parameters()).device
    found = []
    for start in range(0, samples, batch_size):
        count = min(batch_size, samples - start)
        z = torch.randn(2 * count, generator.z_dim, generator=rng, device=rng.device).to(device)
        t = torch.rand(count, 1, generator=rng, device=rng.device).to(device)
        t = torch.zeros_like(t) if sampling == "end" else t
        if space == "w":
            first, second = generator.mapping(z).chunk(2)
            steps = [torch.lerp(first, second, t + step) for step in (0.0, epsilon)]
        else:
            first, second = z.chunk(2)
            steps = [generator.mapping(slerp(first, second, t + step)) for step in (0.0, epsilon)]
        images = [
            _at_most(generator.synthesis(generator.broadcast(w), "constant"), max_resolution) for w in steps
        ]
        found.append(distance(images[0], images[1]).double().cpu() / epsilon**2)
    values = torch.cat(found)
    # The largest and smallest hundredth are dropped: single jumps would decide the mean.
    kept = values[(values >= values.quantile(0.01)) & (values <= values.quantile(0.99))]
    return kept.mean().item()


def _at_most(image: Tensor, resolution: int) -> Tensor:
    factor = image.shape[2] // resolution
    return F.avg_pool2d(image, factor) if factor > 1 else image


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Go from a to b (B, C) along the unit sphere: both are normalised first; t (B, 1) from 0 to 1.

    Source: Shoemake 1985, "Animating Rotation with Quaternion Curves".
    """
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    angle = (a * b).sum(1, keepdim=True).clamp(-1, 1).acos() * t
    across = F.normalize(b - (a * b).sum(1, keepdim=True) * a, dim=1)
    return a * angle.cos() + across * angle.sin()
