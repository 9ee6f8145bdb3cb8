"""What the losses of a DualStyleGAN look with: a feature trunk and an identity embedder.

With VGG19 and ArcFace the losses are the published ones.  Without them the bundled trunk and embedder take their
places: every loss then has its own scale, brought near the published one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner import losses
from limner.nn.features import Vgg19
from limner.nn.precision import full_precision

LEAST_PX, MOST_PX = 128, 256
VGG19_TAPS = (1, 6, 11)
"""relu1_1, relu2_1, relu3_1."""
LITE0_CLOSE = (1, 2)
"""Maps of Lite0 that stand for relu2_1 and relu3_1: 4 and 8 px wide."""
PUBLISHED_ALL, PUBLISHED_STYLE = (0.5, 0.5, 0.5), (0.0, 0.5, 1.0)
BANDWIDTH = 0.2

Embed = Callable[[Tensor], Tensor]


class Eyes:
    """Distances of images, (B, 3, H, W) twice -> (B,).

    Args:
        trunk: `limner.nn.features.Vgg19` with `VGG19_TAPS`, or a trunk of another kind such as Lite0; frozen.
        embed: aligned faces -> embeddings (B, D).
        trunk_name, identity_name: for reports.
    """

    def __init__(self, trunk: nn.Module, embed: Embed, *, trunk_name: str, identity_name: str):
        self.trunk, self.embed = trunk, embed
        self.trunk_name, self.identity_name = trunk_name, identity_name
        self.published = isinstance(trunk, Vgg19)
        self._target: tuple[Tensor, int, list[Tensor]] | None = None

    def look(self, image: Tensor) -> list[Tensor]:
        """Return the trunk's maps of an image, brought to 128 to 256 px first."""
        side = image.shape[-1]
        if side < LEAST_PX:
            image = F.interpolate(image, size=LEAST_PX, mode="bilinear", align_corners=False)
        elif side > MOST_PX:
            image = F.interpolate(image, size=MOST_PX, mode="area")
        return list(self.trunk(image))

    def perceptual(
        self, image: Tensor, target: Tensor, *, weights: Sequence[float] = PUBLISHED_ALL
    ) -> Tensor:
        """Return how different two images look.

        Args:
            image, target: (B, 3, H, W); the target's features get no gradient.
            weights: of the L1 distances on VGG19's maps; another trunk has weights of its own and the pixels' L1 beside
                it, since it hardly sees brightness.
        """
        # A search compares with one target many times; `_version` grows with every change in place.
        kept = self._target
        if kept is None or kept[0] is not target or kept[1] != target._version:
            with torch.no_grad():
                kept = self._target = target, target._version, self.look(target)
        return self.compare(self.look(image), kept[2], image, target, weights)

    @full_precision
    def compare(
        self,
        maps: Sequence[Tensor],
        wanted: Sequence[Tensor],
        image: Tensor,
        target: Tensor,
        weights: Sequence[float] = PUBLISHED_ALL,
    ) -> Tensor:
        """Return `perceptual` from maps that are there already."""
        if self.published:
            terms = [
                weight * (a - b).abs().mean((1, 2, 3))
                for a, b, weight in zip(maps, wanted, weights, strict=True)
                if weight
            ]
            return torch.stack(terms).sum(0)
        return losses.maps_distance(maps, wanted) + (image - target).abs().mean((1, 2, 3))

    def contextual(self, maps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Return the contextual distance of an image's maps from an exemplar's."""
        chosen = (2,) if self.published else LITE0_CLOSE
        pairs = [(maps[i], wanted[i]) for i in chosen]
        return losses.contextual_distance([a for a, _ in pairs], [b for _, b in pairs], bandwidth=BANDWIDTH)

    @full_precision
    def matching(self, maps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Return the distance of mean features; those of another trunk than VGG19 are divided by the exemplar's size."""
        if self.published:
            return losses.channel_mean_distance(maps[1:], wanted[1:])
        mine, theirs = [], []
        for i in LITE0_CLOSE:
            size = wanted[i].detach().square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-6
            mine.append(maps[i] / size)
            theirs.append(wanted[i] / size)
        return losses.channel_mean_distance(mine, theirs)

    def identity(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the identity distance: 1 - cosine for ArcFace, squared distance for dlib's embedder."""
        distance = losses.identity_distance(self.embed, a, b)
        # Of unit vectors half the squared distance is 1 - cosine.
        return distance / 2 if self.identity_name == "arcface" else distance

    def __str__(self) -> str:
        """Say what looks."""
        return f"perceptual {self.trunk_name}, identity {self.identity_name}"
