"""What a search wants: which part of the picture shall look like which picture, and by which measures."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor

from limner.errors import OptionError, ShapeError
from limner.inversion.distances import Distance, TrunkDistance
from limner.nn.stylegan2 import Generator


@dataclasses.dataclass(frozen=True, eq=False)
class Goal:
    """One more picture that a part of the result shall look like, beside the one that is inverted.

    With the goals of Image2StyleGAN++ (its equation 1) a search paints edits:

    ==============  =============================================  ==========================================
    edit            picture and mask that are inverted             goal
    ==============  =============================================  ==========================================
    inpainting      the picture; mask of what is sound             none
    crossover       first picture, mask m                          second picture, mask 1 - m
    local style     the picture; mask of what shall stay           style picture, mask of the rest, l2 = 0,
                                                                   perceptual = 0, style > 0
    scribbles       the scribbled picture, whole                   none, ``layers`` and ``w_norm`` hold it back
    ==============  =============================================  ==========================================

    Attributes:
        image: (B or 1, 3, R, R), [-1, 1].
        mask: (B or 1, 1, R, R), 0 to 1; None for the whole picture.
        l2, perceptual: weights, as the options of the same names.
        style: weight of the distance of Gram matrices within the mask; needs a `TrunkDistance`.

    Source: Abdal et al. 2020, "Image2StyleGAN++: How to Edit the Embedded Images?" (arXiv 1911.11544), section 3.
    """

    image: Tensor
    mask: Tensor | None = None
    l2: float = 1.0
    perceptual: float = 1.0
    style: float = 0.0


class Aim:
    """A goal made ready for a batch: checked, on its device, with a distance of its own that remembers the picture.

    Args:
        goal: picture, mask, weights.
        generator: paints.
        batch: pictures of the search.
        perceptual: its trunk sees the goal too.
        identity: weighed by ``identity_weight``.

    Raises:
        ShapeError: picture or mask do not fit.
        OptionError: there is nothing to measure.
    """

    def __init__(
        self,
        goal: Goal,
        generator: Generator,
        *,
        batch: int,
        perceptual: Distance | None,
        identity: Distance | None = None,
        identity_weight: float = 0.0,
    ):
        image = check_image(goal.image, generator).to(generator.w_avg)
        if len(image) not in (1, batch):
            raise ShapeError(f"a goal has {len(image)} pictures, expected 1 or {batch}")
        self.image = image.expand(batch, -1, -1, -1)
        self.mask = check_mask(goal.mask, self.image)
        if goal.style and not isinstance(perceptual, TrunkDistance):
            raise OptionError("a goal's style is compared by a feature trunk, and none is at hand")
        if identity_weight and identity is None:
            raise OptionError("identity has a weight, but no identity embedder is at hand")
        self.weights = {
            "l2": goal.l2,
            "perceptual": goal.perceptual if perceptual is not None else 0.0,
            "style": goal.style,
            "identity": identity_weight,
        }
        if not any(self.weights.values()):
            raise OptionError(
                "there is nothing to fit: l2 is 0 and so is perceptual, or no feature trunk is at hand for it"
            )
        # A distance remembers one target, so every goal has its own.
        self.perceptual, self.identity = copy.copy(perceptual), copy.copy(identity)
        self._rows: tuple[list[int], Tensor, Tensor | None] | None = None

    def compare(self, image: Tensor, rows: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the distances by name and their weighted sum, (B,) each.

        Args:
            image: (B, 3, R, R), what is painted for some pictures of the batch.
            rows: their numbers in the batch.
        """
        if self._rows is None or self._rows[0] != rows:
            mask = None if self.mask is None else self.mask[rows]
            self._rows = list(rows), self.image[rows], mask
        _, target, mask = self._rows
        found = compare(
            image,
            target,
            l2=self.weights["l2"] > 0,
            perceptual=self.perceptual if self.weights["perceptual"] > 0 else None,
            identity=self.identity if self.weights["identity"] > 0 else None,
            mask=mask,
        )
        if self.weights["style"] and isinstance(self.perceptual, TrunkDistance):
            found["style"] = self.perceptual.style(image, target, mask)
        total = torch.stack([self.weights[name] * values for name, values in found.items()]).sum(0)
        return found, total


def compare(
    image: Tensor,
    target: Tensor,
    *,
    l2: bool,
    perceptual: Distance | None,
    identity: Distance | None = None,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the distances of image pairs by name, (B,) each.

    Args:
        image, target: (B, 3, R, R).
        l2: measure the pixels.
        perceptual, identity: measure the features, the persons too.
        mask: (B or 1, 1, R, R), 0 to 1; outside it the images count as equal.
    """
    found = {}
    if l2:
        squares = (image - target).square().mean(1, keepdim=True)
        if mask is None:
            found["l2"] = squares.mean((1, 2, 3))
        else:
            found["l2"] = (squares * mask).sum((1, 2, 3)) / mask.expand_as(squares).sum((1, 2, 3)).clamp_min(
                1e-6
            )
    others: dict[str, Any] = {"perceptual": perceptual, "identity": identity}
    seen = image
    if mask is not None and any(others.values()):
        seen = torch.lerp(target, image, mask.expand_as(image))
    found |= {name: distance(seen, target) for name, distance in others.items() if distance is not None}
    return found


def check_image(image: Tensor, generator: Generator) -> Tensor:
    """Return the image, or raise `ShapeError` unless it is (B, 3, R, R) for the generator and finite."""
    side, colors = generator.resolution, generator.config()["rgb_channels"]
    if image.ndim != 4 or image.shape[1:] != (colors, side, side) or not len(image):
        raise ShapeError(
            f"image has shape {tuple(image.shape)}, expected (B, {colors}, {side}, {side}) for this generator; "
            "align and resize it first"
        )
    if not image.isfinite().all() or image.abs().max() > 1.01:
        raise ShapeError("image holds numbers outside [-1, 1]; divide uint8 pixels by 127.5 and subtract 1")
    return image.detach()


def check_mask(mask: Tensor | None, image: Tensor) -> Tensor | None:
    """Return the mask with the image's batch, or raise `ShapeError` unless it fits and covers something."""
    if mask is None:
        return None
    batch, _, height, width = image.shape
    if mask.ndim != 4 or mask.shape[0] not in (1, batch) or mask.shape[1:] != (1, height, width):
        raise ShapeError(f"mask has shape {tuple(mask.shape)}, expected (1 or {batch}, 1, {height}, {width})")
    if mask.min() < 0 or mask.max() > 1 or (mask.amax((1, 2, 3)) == 0).any():
        raise ShapeError("mask must hold numbers from 0 to 1 and cover some pixels of every image")
    return mask.to(image).expand(batch, -1, -1, -1)
