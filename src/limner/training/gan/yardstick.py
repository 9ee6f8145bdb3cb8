"""Figures of a generator against real pictures, beside the floor that the real pictures give against themselves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from limner.metrics import compare_sets, pooled_features
from limner.nn.stylegan2 import Generator
from limner.training.data import PictureSet

BATCH = 50


class Yardstick:
    """Measures generators on pooled features of EfficientNet-Lite0 at 128 px.

    Figures made with these features compare models of one project; they are not the published Inception ones.

    Args:
        trunk: the frozen trunk.
        pictures: real ones; half of those used serve as the reference, the other half as the floor.
        samples: images per side; fewer if there are not twice as many pictures.
        device: where to compute.
    """

    def __init__(self, trunk: nn.Module, pictures: PictureSet, *, samples: int, device: torch.device):
        self.trunk, self.device = trunk, device
        self.samples = min(samples, len(pictures) // 2)
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
        reference, other = order[: self.samples], order[self.samples : 2 * self.samples]
        self.real = self._features(self._pictures(pictures, reference))
        self.other = self._features(self._pictures(pictures, other))
        self.floor = {f"{name}_floor": value for name, value in self._compare(self.other).items()}

    def _pictures(self, pictures: PictureSet, chosen: Tensor) -> Iterator[Tensor]:
        for part in chosen.split(BATCH):
            yield pictures.pixels[part].to(self.device).float() / 127.5 - 1

    def _features(self, images: Iterator[Tensor]) -> Tensor:
        return pooled_features(self.trunk, images)

    def _compare(self, fake: Tensor) -> dict[str, float]:
        figures = compare_sets(self.real, fake, rng=torch.Generator().manual_seed(0))
        return {name: getattr(figures, name) for name in ("frechet", "kernel", "precision", "recall")}

    def measure(self, generator: Generator, *, seed: int = 1) -> dict[str, float]:
        """Return Fréchet and kernel distance, precision and recall of random images at psi 1, and the same floors."""
        rng = torch.Generator().manual_seed(seed)

        def images() -> Iterator[Tensor]:
            for start in range(0, self.samples, BATCH):
                count = min(BATCH, self.samples - start)
                z = torch.randn(count, generator.z_dim, generator=rng).to(self.device)
                with torch.no_grad():
                    yield generator(z).clamp(-1, 1).float()

        return self._compare(self._features(images())) | self.floor
