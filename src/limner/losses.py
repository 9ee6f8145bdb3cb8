"""Losses of training and distances of image pairs.

Adversarial losses and regularisers return a scalar; distances return one value per pair, (B,).  Images are
(B, 3, H, W), RGB, [-1, 1].

SSIM is our own few lines: the core must import with torch, numpy, Pillow and safetensors only, and kornia would be a
large dependency for one filter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import ShapeError
from limner.nn.layers import at_least_float
from limner.nn.precision import full_precision

LITE0_WEIGHTS = (0.134, 0.167, 0.139, 0.156, 0.210)
"""Weights of Lite0's five maps in `perceptual_distance`.

Measured, not learned: each is 1 / (5 d), d being the map's mean distance between two unrelated heads at 256 px (200
pictures of the synthetic heads; d = 1.49, 1.20, 1.44, 1.28, 0.95).  So every map contributes equally, and a distance
of 1 means "as different as two strangers".
"""

Trunk = Callable[[Tensor], Sequence[Tensor]]
Embedder = Callable[[Tensor], Tensor]


# Adversarial losses


@full_precision
def logistic_d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the discriminator's logistic loss.

    Source: Goodfellow et al. 2014 (arXiv 1406.2661), equation 1, negated.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


@full_precision
def logistic_g_loss(fake_logits: Tensor) -> Tensor:
    """Return the generator's non-saturating logistic loss.

    Source: Goodfellow et al. 2014 (arXiv 1406.2661), section 3, last paragraph.
    """
    return F.softplus(-fake_logits).mean()


@full_precision
def hinge_d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the discriminator's hinge loss.

    Source: Lim and Ye 2017, "Geometric GAN" (arXiv 1705.02894).
    """
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


@full_precision
def hinge_g_loss(fake_logits: Tensor) -> Tensor:
    """Return the generator's loss that belongs to `hinge_d_loss`."""
    return -fake_logits.mean()


# Regularisers


def r1_penalty(real_logits: Tensor, real_image: Tensor) -> Tensor:
    """Return the mean squared norm of the logits' gradient to the real images; multiply it by gamma / 2.

    Args:
        real_logits: (B, 1), computed from ``real_image``.
        real_image: (B, ...), requires a gradient.

    Raises:
        ShapeError: the image does not require a gradient.

    Source: Mescheder et al. 2018 (arXiv 1801.04406), equation 9.
    """
    if not real_image.requires_grad:
        raise ShapeError("r1_penalty: real_image must require a gradient before the discriminator sees it")
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_image, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def path_length_penalty(
    image: Tensor, w_plus: Tensor, mean: Tensor, *, rng: torch.Generator | None = None, decay: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Penalise how far the length of an image's gradient to w is from its running mean.

    Args:
        image: (B, 3, H, W), generated from ``w_plus`` with a graph.
        w_plus: (B, L, w_dim), requires a gradient.
        mean: running mean of the lengths so far, a scalar; begins at zero.
        rng: draws the image-shaped noise that the image is projected on; None for torch's own.
        decay: share of the new lengths in the running mean.

    Returns:
        The penalty, to be multiplied by ``pl_weight``, and the new running mean, detached.

    Source: Karras et al. 2020 (arXiv 1912.04958), section 3.2, equation 4; the length is the root mean square over
    rows, as in appendix B.
    """
    device = image.device if rng is None else rng.device
    noise = torch.randn(image.shape, generator=rng, device=device).to(image)
    noise = noise / math.sqrt(image.shape[2] * image.shape[3])
    (gradient,) = torch.autograd.grad((image * noise).sum(), w_plus, create_graph=True)
    lengths = gradient.square().sum(2).mean(1).sqrt()  # (B,)
    new_mean = mean + decay * (lengths.detach().mean() - mean)
    return (lengths - new_mean).square().mean(), new_mean


@full_precision
def noise_regularizer(noise: Sequence[Tensor]) -> Tensor:
    """Penalise noise maps whose neighbours correlate, at every size from their own down to 8 px.

    Args:
        noise: maps (..., r, r); each map counts for itself.

    Source: Karras et al. 2020 (arXiv 1912.04958), appendix D.
    """
    total = noise[0].new_zeros(())
    for level in noise:
        level = level.reshape(-1, 1, *level.shape[-2:])  # (N, 1, r, r)
        while True:
            for axis in (2, 3):
                total = total + (level * level.roll(1, axis)).mean((1, 2, 3)).square().sum()
            if level.shape[-1] <= 8:
                break
            # The sum of four independent values has twice their deviation; here the mean is taken, as published code
            # does, so coarse sizes weigh less.
            level = F.avg_pool2d(level, 2)
    return total


def w_norm(w_plus: Tensor, w_avg: Tensor) -> Tensor:
    """Return the mean distance of codes from the mean w: the L2 norm over all rows.

    Args:
        w_plus: (B, L, w_dim).
        w_avg: (w_dim,), or anything that broadcasts to (B, L, w_dim).

    Source: Richardson et al. 2021, pSp (arXiv 2008.00951), equation 4.
    """
    return (w_plus - w_avg).flatten(1).norm(dim=1).mean()


# Distances of image pairs


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise ShapeError(
            f"images have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected two equal (B, 3, H, W)"
        )


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, (B,); infinite for equal images.

    Raises:
        ShapeError: the images differ in shape.
    """
    _check_pair(a, b)
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)) / 4)  # the peak is 2


def ssim(a: Tensor, b: Tensor, *, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Return the structural similarity, (B,), averaged over channels and over windows that lie inside the image.

    Args:
        a, b: (B, C, H, W), [-1, 1].
        window: side of the Gaussian window in px.
        sigma: its standard deviation in px.

    Raises:
        ShapeError: the images differ in shape or are smaller than the window.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", section III.
    Differs: colours are averaged per channel; the paper takes grey images.
    """
    _check_pair(a, b)
    if min(a.shape[2:]) < window:
        raise ShapeError(f"images are {a.shape[2]}x{a.shape[3]} px, SSIM needs at least {window} px")
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    offsets = torch.arange(window, dtype=a.dtype, device=a.device) - (window - 1) / 2
    taps = torch.exp(-offsets.square() / (2 * sigma**2))
    taps = taps / taps.sum()

    def blur(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)[:, None]  # (B C, 1, H, W)
        return F.conv2d(F.conv2d(flat, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))

    mean_a, mean_b = blur(a), blur(b)
    var_a = blur(a * a) - mean_a.square()
    var_b = blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    value = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    value = value / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))
    return value.view(a.shape[0], -1).mean(1)


@full_precision
def maps_distance(
    maps_a: Sequence[Tensor], maps_b: Sequence[Tensor], *, weights: Sequence[float] | None = None
) -> Tensor:
    """Return the weighted sum over maps of squared differences between unit-length channel vectors, (B,).

    Args:
        maps_a, maps_b: features of either image, (B, C_i, h_i, w_i); a batch of 1 is compared with every image.
        weights: one per map; None for `LITE0_WEIGHTS`.

    Raises:
        ShapeError: not as many maps as weights, or maps of different shapes.

    Source: Zhang et al. 2018, LPIPS (arXiv 1801.03924), equation 1, with one weight per map instead of per channel.
    """
    weights = LITE0_WEIGHTS[: len(maps_a)] if weights is None else weights
    if not len(maps_a) == len(maps_b) == len(weights):
        raise ShapeError(
            f"{len(maps_a)} and {len(maps_b)} maps with {len(weights)} weights; expected as many of each"
        )
    total = torch.zeros((), device=maps_a[0].device)
    for a, b, weight in zip(maps_a, maps_b, weights, strict=True):
        if a.shape[1:] != b.shape[1:]:
            raise ShapeError(f"maps have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected equal ones")
        total = total + weight * (_unit(a) - _unit(b)).square().sum(1).mean((1, 2))
    return total


@full_precision
def maps_vectors(maps: Sequence[Tensor], *, weights: Sequence[float] | None = None) -> Tensor:
    """Return vectors (B, K) whose squared distances are `maps_distance`, to compare many images with many.

    Args:
        maps: features of the images, (B, C_i, h_i, w_i).
        weights: one per map; None for `LITE0_WEIGHTS`.
    """
    weights = LITE0_WEIGHTS[: len(maps)] if weights is None else weights
    scales = [(weight / (x.shape[2] * x.shape[3])) ** 0.5 for x, weight in zip(maps, weights, strict=True)]
    return torch.cat([(scale * _unit(x)).flatten(1) for x, scale in zip(maps, scales, strict=True)], 1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distance of every vector (N, K) to every other (M, K), (N, M), by one product."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None]
    return (squares - 2 * a @ b.T).clamp_min(0)


@full_precision
def maps_squares(maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
    """Return the sum over maps of their mean squared difference, (B,).

    Args:
        maps_a, maps_b: features of either image, (B, C_i, h_i, w_i).

    Raises:
        ShapeError: not as many maps of either, or maps of different shapes.

    Source: Abdal et al. 2019, Image2StyleGAN (arXiv 1904.03189), equation 2, all four weights being 1.
    """
    if len(maps_a) != len(maps_b) or any(a.shape != b.shape for a, b in zip(maps_a, maps_b, strict=False)):
        shapes = [[tuple(x.shape) for x in maps] for maps in (maps_a, maps_b)]
        raise ShapeError(f"maps have shapes {shapes[0]} and {shapes[1]}, expected equal ones")
    return torch.stack([(a - b).square().mean((1, 2, 3)) for a, b in zip(maps_a, maps_b, strict=True)]).sum(0)


def _unit(features: Tensor) -> Tensor:
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)


def perceptual_distance(
    trunk: Trunk, a: Tensor, b: Tensor, *, weights: Sequence[float] | None = None
) -> Tensor:
    """Return how different two images look to a feature trunk, (B,); with Lite0, 1 is "two strangers".

    The trunk hardly sees brightness and can be fooled by optimising pixels alone: pair it with L1 or L2.

    Args:
        trunk: image -> maps, such as `limner.nn.features.Lite0`.
        a, b: (B, 3, H, W), [-1, 1]; for many comparisons with one target use `maps_distance`.
        weights: one per map; None for `LITE0_WEIGHTS`.

    Raises:
        ShapeError: the images differ in shape, or maps and weights in number.
    """
    _check_pair(a, b)
    return maps_distance(trunk(a), trunk(b), weights=weights)


def identity_distance(embedder: Embedder, a: Tensor, b: Tensor) -> Tensor:
    """Return how different the persons in two faces are to an identity embedder: squared L2, (B,).

    Dlib takes faces below 0.36 for one person (`limner.nn.identity.SAME_PERSON`; its threshold 0.6 is not squared).

    Args:
        embedder: image -> embedding (B, D), such as `limner.nn.identity.DlibResNet`.
        a, b: (B, 3, H, H), [-1, 1], aligned as the embedder wants it; the sizes may differ.

    Raises:
        ShapeError: not as many images in either batch.
    """
    if a.ndim != 4 or b.ndim != 4 or len(a) != len(b):
        raise ShapeError(
            f"images have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected two (B, 3, H, H), B being equal"
        )
    return (at_least_float(embedder(a)) - at_least_float(embedder(b))).square().sum(1)


@full_precision
def gram_matrix(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, C): mean product of every two channels."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def gram_distance(maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
    """Return the mean over maps of the squared difference of Gram matrices, relative to the second's, (B,).

    Args:
        maps_a, maps_b: features of either image; the sizes may differ, the channels not.

    Raises:
        ShapeError: different numbers of maps or channels.

    Source: Gatys et al. 2016 (arXiv 1508.06576), equations 3 to 5.
    Differs: divided by the squared norm of ``maps_b``'s (the style's) matrix, so that no map dominates by its scale.
    """
    if len(maps_a) != len(maps_b) or any(
        a.shape[1] != b.shape[1] for a, b in zip(maps_a, maps_b, strict=False)
    ):
        shapes = [[tuple(x.shape) for x in maps] for maps in (maps_a, maps_b)]
        raise ShapeError(f"maps have shapes {shapes[0]} and {shapes[1]}, expected equal numbers and channels")
    parts = []
    for a, b in zip(maps_a, maps_b, strict=True):
        gram_a, gram_b = gram_matrix(a), gram_matrix(b)
        scale = gram_b.detach().square().sum((1, 2)) + 1e-12
        parts.append((gram_a - gram_b).square().sum((1, 2)) / scale)
    return torch.stack(torch.broadcast_tensors(*parts)).mean(0)


# Distances of sets of features


@full_precision
def contextual_distance(
    maps_a: Sequence[Tensor],
    maps_b: Sequence[Tensor],
    *,
    bandwidth: float = 0.2,
    most_numbers: int = 1 << 22,
) -> Tensor:
    """Return how badly the features of one image are matched by similar ones of another, wherever they lie, (B,).

    Memory grows with the number of positions, not with its square: affinities are computed for some positions at a
    time and only the best match of every position is kept; the backward pass computes them again.  It can be
    differentiated once.

    Args:
        maps_a: features (B, C, h, w) of the image that is made.
        maps_b: features (B or 1, C, h', w') of the image that it shall look like; the sizes may differ.
        bandwidth: h of the paper; smaller tells near and nearest features apart more sharply.
        most_numbers: affinities that are held at a time.

    Raises:
        ShapeError: different numbers of maps, of channels or of images.

    Source: Mechrez et al. 2018, "The Contextual Loss for Image Transformation with Non-Aligned Data"
    (arXiv 1803.02077), equations 2 to 5, with the cosine distance of features centred on ``maps_b``'s mean.
    Differs: the mean is each image's own, as in the paper, not the batch's.
    """
    if len(maps_a) != len(maps_b) or not maps_a:
        raise ShapeError(f"{len(maps_a)} and {len(maps_b)} maps, expected as many of each, at least one")
    parts = []
    for a, b in zip(maps_a, maps_b, strict=True):
        if a.ndim != 4 or b.ndim != 4 or a.shape[1] != b.shape[1] or len(b) not in (1, len(a)):
            raise ShapeError(
                f"maps have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected (B, C, h, w) and (B or 1, C, h', w')"
            )
        mean = b.mean((2, 3), keepdim=True)
        # Rows are positions, of unit length: (B, N, C) and (B or 1, M, C).
        rows, columns = (_unit(values - mean).flatten(2).transpose(1, 2) for values in (a, b))
        columns = columns.expand(len(rows), -1, -1)
        similarity = [
            _BestAffinity.apply(row, column, bandwidth, most_numbers).mean()
            for row, column in zip(rows, columns, strict=True)
        ]
        parts.append(-torch.stack(similarity).log())
    return torch.stack(parts).mean(0)


def _affinities(rows: Tensor, columns: Tensor, bandwidth: float) -> Tensor:
    """Unit vectors (N, C) and (M, C) -> (N, M): how much nearer each column is to a row than the other columns."""
    distance = 1 - rows @ columns.t()
    relative = distance / (distance.amin(1, keepdim=True) + 1e-5)
    # exp((1 - d) / h), divided by its sum over the columns.
    return torch.softmax((1 - relative) / bandwidth, 1)


class _BestAffinity(torch.autograd.Function):
    """rows (N, C), columns (M, C) -> the largest affinity of every column, (M,)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, bandwidth: float, most_numbers: int) -> Tensor:
        chunk = max(1, most_numbers // len(columns))
        best = rows.new_full((len(columns),), -1.0)
        place = torch.zeros(len(columns), dtype=torch.long, device=rows.device)
        for start in range(0, len(rows), chunk):
            values, index = _affinities(rows[start : start + chunk], columns, bandwidth).max(0)
            better = values > best
            best = torch.where(better, values, best)
            place = torch.where(better, index + start, place)
        ctx.save_for_backward(rows, columns, place)
        ctx.bandwidth, ctx.chunk = bandwidth, chunk
        return best

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        rows, columns, place = ctx.saved_tensors
        grad_rows = torch.zeros_like(rows)
        grad_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        # Only rows that are some column's best match have a gradient, each through all of its affinities.
        used, number = place.unique(return_inverse=True)
        for start in range(0, len(used), ctx.chunk):
            part = used[start : start + ctx.chunk]
            mine = ((number >= start) & (number < start + ctx.chunk)).nonzero()[:, 0]
            with torch.enable_grad():
                some = rows[part].detach().requires_grad_()
                every = columns.detach().requires_grad_(grad_columns is not None)
                chosen = _affinities(some, every, ctx.bandwidth)[number[mine] - start, mine]
            inputs = [some] if grad_columns is None else [some, every]
            found = torch.autograd.grad(chosen, inputs, grad[mine])
            grad_rows[part] = found[0]
            if grad_columns is not None:
                grad_columns += found[1]
        return grad_rows, grad_columns, None, None


@full_precision
def channel_mean_distance(maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
    """Return the mean over maps of the mean squared difference of the channels' means, (B,).

    Args:
        maps_a, maps_b: features (B, C, h, w) of either image; the sizes may differ, the channels not.

    Raises:
        ShapeError: different numbers of maps or channels.

    Source: Yang et al. 2022, DualStyleGAN (arXiv 2203.13248), section 3.3, the feature matching loss.
    """
    if len(maps_a) != len(maps_b) or not maps_a:
        raise ShapeError(f"{len(maps_a)} and {len(maps_b)} maps, expected as many of each, at least one")
    parts = []
    for a, b in zip(maps_a, maps_b, strict=True):
        if a.shape[1] != b.shape[1]:
            raise ShapeError(f"maps have {a.shape[1]} and {b.shape[1]} channels, expected as many of each")
        parts.append((a.mean((2, 3)) - b.mean((2, 3))).square().mean(1))
    return torch.stack(parts).mean(0)


@full_precision
def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the energy distance of two samples: 0 if and, for ever more of them, only if they are distributed alike.

    Args:
        a: (N, D), N at least 2.
        b: (M, D), M at least 2.

    Source: Székely and Rizzo 2013, "Energy statistics" (doi 10.1016/j.jspi.2013.03.018), equation 5.
    """

    def apart(x: Tensor) -> Tensor:
        return torch.pdist(x).mean()

    return 2 * torch.cdist(a, b).mean() - apart(a) - apart(b)
