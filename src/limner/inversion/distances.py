"""Distances that remember their target: features of a trunk, embeddings of a person, and what stands in for what."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from limner import losses
from limner.errors import ShapeError

# (image, image) -> (B,), both (B, 3, H, W) in [-1, 1].
Distance = Callable[[Tensor, Tensor], Tensor]

STAND_INS: dict[str, tuple[int, ...]] = {
    "vgg16": (0, 0, 1, 2),
    "lpips-vgg": (0, 1, 2, 3, 4),
    "lpips-alex": (0, 1, 2, 3, 4),
}
"""Trunk -> the map of Lite0 (strides 2, 4, 8, 16, 32) that stands in for every one of its maps.

``vgg16`` is Image2StyleGAN's loss: conv1_1 and conv1_2 (stride 1) are replaced by Lite0's finest map, which counts
twice, conv3_2 (stride 4) by the second, conv4_2 (stride 8) by the third: the same strides but for the first.  The five
maps of LPIPS are replaced in their order.  The stand-in compares unit-length channel vectors with the weights of
`losses.LITE0_WEIGHTS`, since Lite0's activations have other scales than VGG16's.
"""


class TrunkDistance:
    """Perceptual distance on a feature trunk; the second image's features are kept for the next call.

    Args:
        trunk: image -> maps, such as `limner.nn.features.Lite0`.
        name: stands in reports.
        least_px, most_px: smaller and larger images are brought to these sizes first; trunks see little in tiny ones.
        weights: one per map, see `limner.losses.maps_distance`.
        compare: (maps, maps) -> (B,), in place of that function, such as LPIPS's weighing of channels.
        style_maps: numbers of the maps whose Gram matrices tell a style; None for all.
        stands_for: name of the trunk that it replaces, because that one's weights are not there; reports tell.
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
        style_maps: Sequence[int] | None = None,
        stands_for: str | None = None,
    ):
        self.trunk, self.name, self.stands_for = trunk, name, stands_for
        self.compare = compare or functools.partial(losses.maps_distance, weights=weights)
        self.least_px, self.most_px, self.style_maps = least_px, most_px, style_maps
        self._target: tuple[Tensor, int, list[Tensor]] | None = None

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Two (B, 3, H, W) -> (B,)."""
        theirs = self._target_maps(image, target)
        return self.compare(self._maps(image), theirs)

    def style(self, image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return how different the textures are, wherever they lie: distance of Gram matrices, (B,).

        Args:
            image, target: (B, 3, H, W).
            mask: (B, 1, H, W), 0 to 1; the features of either picture are multiplied by it.

        Source: Abdal et al. 2020, Image2StyleGAN++ (arXiv 1911.11544), section 3, the style loss; its masks are
        brought to the size of every map by averaging.
        """
        chosen = []
        for maps in (self._maps(image), self._target_maps(image, target)):
            picked = maps if self.style_maps is None else [maps[i] for i in self.style_maps]
            if mask is not None:
                picked = [x * F.interpolate(mask.to(x), x.shape[2:], mode="area") for x in picked]
            chosen.append(picked)
        return losses.gram_distance(*chosen)

    def _target_maps(self, image: Tensor, target: Tensor) -> list[Tensor]:
        if image.shape != target.shape:
            raise ShapeError(
                f"images have shapes {tuple(image.shape)} and {tuple(target.shape)}, expected equal ones"
            )
        if target.requires_grad:
            return self._maps(target)
        # `_version` grows with every change in place.
        if self._target is None or self._target[0] is not target or self._target[1] != target._version:
            with torch.no_grad():
                self._target = target, target._version, self._maps(target)
        return self._target[2]

    def _maps(self, image: Tensor) -> list[Tensor]:
        side = max(image.shape[2:])
        if side < self.least_px:
            image = F.interpolate(
                image, scale_factor=self.least_px / side, mode="bilinear", align_corners=False
            )
        elif side > self.most_px:
            image = F.interpolate(image, scale_factor=self.most_px / side, mode="area")
        return list(self.trunk(image))


class IdentityDistance:
    """Distance of two persons on an identity embedder; the second image's embedding is kept for the next call.

    Args:
        embedder: aligned face -> embedding (B, D), such as `limner.nn.identity.DlibResNet`.
        name: stands in reports.
        stands_for: see `TrunkDistance`.
    """

    def __init__(self, embedder: losses.Embedder, *, name: str, stands_for: str | None = None):
        self.embedder, self.name, self.stands_for = embedder, name, stands_for
        self._target: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, image: Tensor, target: Tensor) -> Tensor:
        """Two (B, 3, H, H) -> squared distance of the embeddings, (B,)."""
        if self._target is None or self._target[0] is not target or self._target[1] != target._version:
            with torch.no_grad():
                self._target = target, target._version, self.embedder(target)
        return (self.embedder(image) - self._target[2]).square().sum(1)


def stand_in(trunk: Callable[..., Sequence[Tensor]], *, stands_for: str, name: str) -> TrunkDistance:
    """Return the distance by which Lite0 replaces another trunk, map by map; see `STAND_INS`."""
    chosen = STAND_INS[stands_for]
    style = (2,) if stands_for != "lpips-alex" else None  # conv3_2, conv3_3

    def maps(image: Tensor) -> list[Tensor]:
        found = trunk(image, maps=max(chosen) + 1)
        return [found[i] for i in chosen]

    weights = [losses.LITE0_WEIGHTS[i] for i in chosen]
    return TrunkDistance(maps, name=name, weights=weights, style_maps=style, stands_for=stands_for)
