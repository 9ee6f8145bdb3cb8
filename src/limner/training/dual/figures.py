"""How good a DualStyleGAN is: figures on held-out pairs, whether styles and people can be told apart, and sheets.

A held-out pair is a face and the true portrait of it; the model sees the face, and for its style either another portrait
or the code of a known one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limner import media
from limner.metrics import frechet_distance, gram_differences, gram_matrices
from limner.nn.dualstylegan import DualGenerator, Weights
from limner.training.dual.eyes import Embed, Eyes

BATCH = 10
SWEEP = (0.0, 0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def paint_all(dual: DualGenerator, intrinsic: Tensor, extrinsic: Tensor, weights: Weights = 1.0) -> Tensor:
    """Paint codes (N, L, w_dim) with styles (N, L, w_dim), one each; (N, 3, R, R), clipped to [-1, 1]."""
    parts = zip(intrinsic.split(BATCH), extrinsic.split(BATCH), strict=True)
    return torch.cat([dual(who, how, weights).clamp(-1, 1) for who, how in parts])


@torch.no_grad()
def measure_selectivity(
    dual: DualGenerator,
    intrinsic: Tensor,
    extrinsic: Tensor,
    exemplars: Tensor,
    *,
    eyes: Eyes,
    shifts: int = 3,
    weights: Weights = 1.0,
) -> dict[str, float]:
    """Return how often the right one of N exemplars and the right one of N people is the nearest to a painted face.

    Args:
        dual: the model.
        intrinsic: people, w+ (N, L, w_dim).
        extrinsic: the exemplars' styles, w+ (N, L, w_dim).
        exemplars: their pictures (N, 3, R, R).
        eyes: trunk and embedder.
        shifts: every person is painted in so many of the styles.
        weights: per row, see `DualGenerator.row_weights`.

    Returns:
        Shares 0 to 1: ``style_gram`` (Gram matrices of the trunk), ``style_gram_color`` (those of the pixels, too),
        ``person`` (identity distance to the people without style); ``chance``.
    """
    count = len(intrinsic)
    plain = torch.cat([dual.generator.synthesis(part).clamp(-1, 1) for part in intrinsic.split(BATCH)])
    hits = {"style_gram": 0, "style_gram_color": 0, "person": 0}
    here = torch.arange(count)
    people = _embed(eyes.embed, plain)
    for shift in range(shifts):
        styles = (here + 1 + shift * (count // shifts)) % count
        image = paint_all(dual, intrinsic, extrinsic[styles], weights)
        for name, pixels in (("style_gram", False), ("style_gram_color", True)):
            one, other = (
                gram_matrices(eyes.look, pictures, pixels=pixels) for pictures in (image, exemplars)
            )
            hits[name] += int((gram_differences(one, other).argmin(1) == styles).sum())
        hits["person"] += int((torch.cdist(_embed(eyes.embed, image), people).argmin(1) == here).sum())
    return {name: hit / (count * shifts) for name, hit in hits.items()} | {"chance": 1 / count}


@torch.no_grad()
def measure_pairs(
    dual: DualGenerator,
    faces: Tensor,
    portraits: Tensor,
    intrinsic: Tensor,
    own: Tensor,
    known: Tensor,
    *,
    eyes: Eyes,
    weights: Weights = 1.0,
) -> dict[str, float]:
    """Compare with the true portraits of faces that no training saw.

    Args:
        dual: the model.
        faces, portraits: the pairs, (N, 3, R, R).
        intrinsic: codes of the faces, w+ (N, L, w_dim).
        own: styles of the true portraits as an encoder sees them, w+ (N, L, w_dim).
        known: styles that the model was trained with, w+ (M, L, w_dim).
        eyes: trunk and embedder.
        weights: per row.

    Returns:
        ``truth_own``: perceptual distance to the true portrait, in its own style; ``truth_known``: in known styles;
        ``truth_plain``: of the face without style; ``identity_known``: identity distance to the face; ``frechet_known``
        and ``frechet_plain``: Fréchet distance of the trunk's features to those of the true portraits.
    """
    count = len(faces)
    styles = known[torch.arange(count) % len(known)]
    images = {
        "own": paint_all(dual, intrinsic, own, weights),
        "known": paint_all(dual, intrinsic, styles, weights),
        "plain": torch.cat([dual.generator.synthesis(part).clamp(-1, 1) for part in intrinsic.split(BATCH)]),
    }
    figures = {f"truth_{name}": _distance(eyes, image, portraits) for name, image in images.items()}
    figures["identity_known"] = float(
        (_embed(eyes.embed, images["known"]) - _embed(eyes.embed, faces)).square().sum(1).mean()
    )
    real = _pooled(eyes, portraits)
    for name in ("known", "plain"):
        figures[f"frechet_{name}"] = frechet_distance(_pooled(eyes, images[name]), real)
    return figures


def _distance(eyes: Eyes, image: Tensor, target: Tensor) -> float:
    parts = zip(image.split(BATCH), target.split(BATCH), strict=True)
    return float(torch.cat([eyes.perceptual(a, b) for a, b in parts]).mean())


def _pooled(eyes: Eyes, image: Tensor) -> Tensor:
    return torch.cat([eyes.look(part)[-1].mean((2, 3)) for part in image.split(BATCH)])


def _embed(embed: Embed, image: Tensor) -> Tensor:
    return torch.cat([embed(part) for part in image.split(BATCH)])


@torch.no_grad()
def content_by_style(
    dual: DualGenerator, intrinsic: Tensor, extrinsic: Tensor, exemplars: Tensor, weights: Weights = 1.0
) -> np.ndarray:
    """Return a sheet, uint8 (H, W, 3): a row per person, a column per style, the exemplars on top."""
    rows: list[list[np.ndarray | None]] = [[None, *media.to_pixels(exemplars)]]
    for who in intrinsic[:, None]:
        painted = paint_all(dual, who.expand_as(extrinsic), extrinsic, weights)
        rows.append([*media.to_pixels(dual.generator.synthesis(who).clamp(-1, 1)), *media.to_pixels(painted)])
    return media.make_sheet(rows)


@torch.no_grad()
def parts_sheet(dual: DualGenerator, who: Tensor, extrinsic: Tensor, exemplars: Tensor) -> np.ndarray:
    """Return a sheet of one person (1, L, w_dim): a row each for the whole style, its structure alone, its colours alone."""
    face = media.to_pixels(dual.generator.synthesis(who).clamp(-1, 1))
    rows: list[list[np.ndarray | None]] = [[None, *media.to_pixels(exemplars)]]
    for weights in (dual.weights(), dual.weights(1.0, 0.0), dual.weights(0.0, 1.0)):
        rows.append(
            [
                *face,
                *media.to_pixels(paint_all(dual, who.expand_as(extrinsic), extrinsic, torch.tensor(weights))),
            ]
        )
    return media.make_sheet(rows, ["exemplar", "both", "structure", "color"])


@torch.no_grad()
def sweep_sheet(dual: DualGenerator, who: Tensor, how: Tensor) -> np.ndarray:
    """Return a sheet of one person in one style (1, L, w_dim): structure weights downwards, colour weights to the right."""
    rows = []
    for structure in SWEEP:
        weights = torch.tensor([dual.weights(structure, color) for color in SWEEP])
        image = dual(who.expand(len(SWEEP), -1, -1), how.expand(len(SWEEP), -1, -1), weights)
        rows.append(media.to_pixels(image.clamp(-1, 1)))
    return media.make_sheet(rows, [f"structure {x:g}" for x in SWEEP], [f"color {x:g}" for x in SWEEP])
