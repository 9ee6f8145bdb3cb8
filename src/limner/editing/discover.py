"""Finding directions: closed-form factorisation, principal components of w, a boundary between labelled faces.

What a direction does is for a person to see and name; each unit of a slider is one standard deviation of w along it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.editing.directions import Direction
from limner.errors import OptionError, ShapeError
from limner.latent import LayerMask
from limner.nn.stylegan2 import Generator

_SAMPLES = 10_000
NEWTON_STEPS, NEWTON_HALVINGS = 50, 20
"""Most steps of the search for a boundary, which takes about eight, and most halvings of a step."""


@torch.no_grad()
def draw_w(generator: Generator, count: int = _SAMPLES, *, rng: torch.Generator | None = None) -> Tensor:
    """Return w of random z, (count, w_dim); ``rng`` is on the CPU, None being one with seed 0."""
    rng = rng or torch.Generator().manual_seed(0)
    z = torch.randn(count, generator.z_dim, generator=rng).to(generator.w_avg)
    return torch.cat([generator.mapping(chunk) for chunk in z.split(1000)])


@torch.no_grad()
def factorize(
    generator: Generator,
    count: int = 10,
    *,
    layers: str = "all",
    rng: torch.Generator | None = None,
) -> list[Direction]:
    """Find the directions of w that change the styles of given layers most, from the weights alone.

    Args:
        generator: its affine layers are factorised.
        count: how many, strongest first.
        layers: affine layers that count, as a layer mask; the directions then move these rows.
        rng: random numbers of the slider's scale, on the CPU.

    Returns:
        Directions ``factor-1`` ...; notes: ``share`` of the squared change of all styles that it explains.

    Raises:
        OptionError: the mask covers no layer, or more directions than w has entries.

    Source: Shen and Zhou 2021, "Closed-Form Factorization of Latent Semantics in GANs" (arXiv 2007.06600), equation 6:
    the eigenvectors of the sum of A^T A over the affine layers.
    """
    width = len(generator.w_avg)
    _check_count(count, width)
    weights = LayerMask(layers).styles(generator)
    # The affine layers as matrices, read off the unit vectors: exact, whatever scales the layers apply inside.
    unit = torch.eye(width).to(generator.w_avg)
    zero = generator.synthesis.styles(generator.broadcast(torch.zeros_like(unit[:1])))
    moved = generator.synthesis.styles(generator.broadcast(unit))
    gains = [(there - here) for there, here, weight in zip(moved, zero, weights, strict=True) if weight]
    if not gains:
        raise OptionError(f"layers is {layers!r}, which is no layer of a {generator.resolution} px generator")
    matrix = torch.cat(gains, 1).double()  # (w_dim, sum of channels)
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)  # ascending
    values, vectors = values.flip(0), vectors.flip(1)
    spread = draw_w(generator, rng=rng).double()
    found = []
    for i in range(count):
        vector = _upright(vectors[:, i])
        unit_length = (spread @ vector).std()
        notes = {"method": "factorize", "share": float(values[i] / values.sum()), "unit": float(unit_length)}
        rows = layers if not LayerMask(layers).separates_rgb else "all"
        found.append(Direction(f"factor-{i + 1}", (unit_length * vector).float(), rows, notes))
    return found


@torch.no_grad()
def find_components(
    generator: Generator,
    count: int = 10,
    *,
    layers: str = "all",
    samples: int = _SAMPLES,
    rng: torch.Generator | None = None,
) -> list[Direction]:
    """Find the principal components of w.

    Args:
        generator: its mapping network is sampled.
        count: how many, widest first.
        layers: rows that the directions move, as a layer mask.
        samples: random codes that are analysed.
        rng: random numbers, on the CPU.

    Returns:
        Directions ``component-1`` ...; notes: ``share`` of the variance of w.

    Raises:
        OptionError: more directions than w has entries or samples give.

    Source: Härkönen et al. 2020, "GANSpace" (arXiv 2004.02546), section 2.
    """
    _check_count(count, min(len(generator.w_avg), samples - 1))
    LayerMask(layers).rows(generator)
    w = draw_w(generator, samples, rng=rng).double()
    _, lengths, vectors = torch.linalg.svd(w - w.mean(0), full_matrices=False)
    variances = lengths.square() / (len(w) - 1)
    found = []
    for i in range(count):
        notes = {"method": "components", "share": float(variances[i] / variances.sum())}
        values = variances[i].sqrt() * _upright(vectors[i])
        found.append(Direction(f"component-{i + 1}", values.float(), layers, notes))
    return found


def find_boundary(
    name: str,
    w: Tensor,
    labels: Tensor,
    *,
    layers: str = "all",
    penalty: float = 1.0,
) -> Direction:
    """Find the direction that parts labelled faces: the normal of a logistic boundary.

    Args:
        name: of the direction, such as ``smile``.
        w: codes, (N, w_dim), or (N, L, w_dim), whose rows are averaged.
        labels: (N,), true where the face has it.
        layers: rows that the direction moves, as a layer mask.
        penalty: weight of the squared normal, over entries brought to one deviation; above 0.

    Returns:
        The direction towards the label, one unit being the deviation of the codes along it; notes: ``accuracy`` on every
        fifth face, which it did not learn from.

    Raises:
        ShapeError: not as many labels as codes.
        OptionError: fewer than ten faces, or all have one label; all codes are the same; no penalty.

    Source: Shen et al. 2020, "InterFaceGAN" (arXiv 1907.10786), section 3.1.
    Differs: a logistic boundary instead of a support vector machine.
    """
    if penalty <= 0:
        raise OptionError(f"penalty is {penalty}, expected a number above 0")
    codes = (w.mean(1) if w.ndim == 3 else w).detach().double().cpu()
    wanted = labels.detach().bool().cpu()
    if codes.ndim != 2 or wanted.shape != codes.shape[:1]:
        raise ShapeError(
            f"codes have shape {tuple(w.shape)}, labels {tuple(labels.shape)}; expected one label per code"
        )
    held_out = check_labels(name, wanted)
    mean, std = codes[~held_out].mean(0), codes[~held_out].std(0).clamp_min(1e-6)
    scaled = torch.cat([(codes - mean) / std, torch.ones_like(codes[:, :1])], 1)  # (N, w_dim + 1), bias last
    boundary = fit_boundary(scaled[~held_out], wanted[~held_out].double(), penalty)
    guesses = scaled[held_out] @ boundary > 0
    accuracy = float((guesses == wanted[held_out]).double().mean())
    vector = boundary[:-1] / std
    if not vector.any():
        raise OptionError(f"{name}: all {len(codes)} codes are the same; no direction parts them")
    vector = vector / vector.norm()
    values = (codes @ vector).std() * vector
    notes = {"method": "boundary", "accuracy": accuracy, "faces": len(codes), "labelled": int(wanted.sum())}
    return Direction(name, values.float(), layers, notes)


def check_labels(name: str, labels: Tensor) -> Tensor:
    """Return which faces a boundary does not learn from, every fifth, (N,); raise where the others are too few.

    Args:
        name: of the direction, for the message.
        labels: bool (N,).

    Raises:
        OptionError: fewer than ten faces, or all that are learned from have one label.
    """
    held_out = torch.arange(len(labels)) % 5 == 4
    if len(labels) < 10 or len(labels[~held_out].unique()) < 2:
        raise OptionError(
            f"{name}: {len(labels)} faces, {int(labels.sum())} of them labelled; expected ten or more, of both kinds"
        )
    return held_out


def fit_boundary(codes: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """Return the logistic boundary of codes (N, F), the last entry being the bias's, (F,); by Newton's method.

    Args:
        codes: float64, a column of ones last.
        labels: (N,), 0 or 1.
        penalty: weight of the squared normal, summed over the entries and divided by N; above 0, so that there is one
            boundary even where the labels can be parted without a mistake.

    Source: Hastie et al. 2009, "The Elements of Statistical Learning", section 4.4.1, with the penalty of 4.4.4.
    """
    count, width = codes.shape
    weights = torch.full((width,), 2 * penalty / count, dtype=codes.dtype)
    weights[-1] = 0  # the bias is free

    def cost(boundary: Tensor) -> float:
        loss = F.binary_cross_entropy_with_logits(codes @ boundary, labels)
        return float(loss + (weights * boundary.square()).sum() / 2)

    boundary = torch.zeros(width, dtype=codes.dtype)
    before = cost(boundary)
    for _ in range(NEWTON_STEPS):
        chance = torch.sigmoid(codes @ boundary)
        gradient = codes.T @ (chance - labels) / count + weights * boundary
        curvature = (codes.T * (chance * (1 - chance) / count)) @ codes + weights.diag()
        curvature.diagonal().add_(1e-9)
        move = torch.linalg.solve(curvature, gradient)
        # Whole steps first: near the end they double the digits; far from it they may lead up again.
        size = next((0.5**i for i in range(NEWTON_HALVINGS) if cost(boundary - 0.5**i * move) < before), 0.0)
        boundary = boundary - size * move
        after = cost(boundary)
        if before - after <= 1e-12 * before:
            break
        before = after
    return boundary


def _upright(vector: Tensor) -> Tensor:
    """Return the vector or its opposite, so that its largest entry is positive and runs repeat."""
    return vector if vector[vector.abs().argmax()] > 0 else -vector


def _check_count(count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise OptionError(f"count is {count}, expected 1 to {most}")


def untangle(directions: Sequence[Direction]) -> list[Direction]:
    """Take from every direction what it shares with the others, so that one attribute moves and the others stay.

    Args:
        directions: each (w_dim,), fewer than entries of w.

    Returns:
        Directions orthogonal to all the others that were handed in, as long as before; notes: ``kept``, the share of the
        length that was left before.

    Raises:
        ShapeError: directions of rows of their own.
        OptionError: one of them is made of the others.

    Source: Shen et al. 2020, "InterFaceGAN" (arXiv 1907.10786), section 3.2, conditional manipulation.
    """
    if any(one.values.ndim != 1 for one in directions):
        raise ShapeError("only directions that are the same in every row can be untangled")
    found = []
    for i, one in enumerate(directions):
        others = [other.values.double() for j, other in enumerate(directions) if j != i]
        own = one.values.double()
        rest = own
        if others:
            basis, _ = torch.linalg.qr(torch.stack(others, 1))  # (w_dim, N - 1)
            rest = own - basis @ (basis.T @ own)
        kept = float(rest.norm() / own.norm())
        if kept < 1e-3:
            raise OptionError(f"direction {one.name!r} is made of the others; leave one of them out")
        values = (rest * (own.norm() / rest.norm())).float()
        found.append(dataclasses.replace(one, values=values, notes={**one.notes, "kept": kept}))
    return found
