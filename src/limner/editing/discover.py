"""Finding directions: closed-form factorisation, principal components of w, a boundary between labelled faces.

What a direction does is for a person to see and name; each unit of a slider is one standard deviation of w along it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from limner.editing.directions import Direction
from limner.errors import OptionError, ShapeError
from limner.latent import LayerMask
from limner.nn.stylegan2 import Generator

_SAMPLES = 10_000


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
        penalty: weight of the squared normal, over entries brought to one deviation.

    Returns:
        The direction towards the label, one unit being the deviation of the codes along it; notes: ``accuracy`` on every
        fifth face, which it did not learn from.

    Raises:
        ShapeError: not as many labels as codes.
        OptionError: fewer than ten faces, or all have one label.

    Source: Shen et al. 2020, "InterFaceGAN" (arXiv 1907.10786), section 3.1.
    Differs: a logistic boundary instead of a support vector machine.
    """
    codes = (w.mean(1) if w.ndim == 3 else w).detach().double().cpu()
    wanted = labels.detach().bool().cpu()
    if codes.ndim != 2 or wanted.shape != codes.shape[:1]:
        raise ShapeError(
            f"codes have shape {tuple(w.shape)}, labels {tuple(labels.shape)}; expected one label per code"
        )
    held_out = torch.arange(len(codes)) % 5 == 4
    if len(codes) < 10 or any(len(part.unique()) < 2 for part in (wanted[~held_out],)):
        raise OptionError(
            f"{len(codes)} faces, {int(wanted.sum())} of them labelled; expected ten or more of both kinds"
        )
    mean, std = codes[~held_out].mean(0), codes[~held_out].std(0).clamp_min(1e-6)
    scaled = (codes - mean) / std
    normal = torch.zeros(codes.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([normal, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = scaled[~held_out] @ normal + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted[~held_out].double())
        loss = loss + penalty * normal.square().sum() / (~held_out).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        guesses = scaled[held_out] @ normal + bias > 0
        accuracy = float((guesses == wanted[held_out]).double().mean())
        vector = normal / std
        vector = vector / vector.norm()
        values = (codes @ vector).std() * vector
    notes = {"method": "boundary", "accuracy": accuracy, "faces": len(codes), "labelled": int(wanted.sum())}
    return Direction(name, values.float(), layers, notes)


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
