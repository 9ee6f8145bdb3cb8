"""Detail: the layers above a generator's resolution, grown on it and kept apart from it.

A generator that was grown while everything below stayed as it was differs from the smaller one by its new layers alone.
Kept apart, these finish at a larger size whatever the smaller one paints, and relatives of it that were tuned to a
person or to a style too: every code, style and child of the small generator goes on being used.

Source: Karras et al. 2018, "Progressive Growing of GANs" (arXiv 1710.10196), section 2, with skip connections in place
of fading in (arXiv 1912.04958, section 4.1); here the old layers stay frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limner.errors import KeyMismatchError
from limner.nn.stylegan2 import Generator, Noise

Module = TypeVar("Module", bound=nn.Module)


class Detail(nn.Module):
    """Layers of the highest resolutions.

    Args:
        config: arguments of the whole, grown `Generator`.
        below: side of what it is grown on, in px; smaller than the whole.
        noise_seed: of the fixed noise maps, which are drawn, not kept.

    Raises:
        KeyMismatchError: ``below`` is no smaller resolution of the whole.
    """

    def __init__(self, *, config: Mapping[str, Any], below: int, noise_seed: int = 0):
        super().__init__()
        self._config = {"config": dict(config), "below": below, "noise_seed": noise_seed}
        whole = Generator(**config)
        sizes = list(whole.synthesis.channels)
        if below not in sizes[:-1]:
            raise KeyMismatchError(
                f"a {whole.resolution} px generator has no layers above {below} px, expected one of {sizes[:-1]}"
            )
        self.first_rgb = sizes.index(below) + 1
        self.first_layer = 2 * self.first_rgb - 1
        self.layers = whole.synthesis.layers[self.first_layer :]
        self.to_rgb = whole.synthesis.to_rgb[self.first_rgb :]
        rng = torch.Generator().manual_seed(noise_seed)
        for layer in self.layers:
            noise = layer.get_buffer("noise")
            noise.copy_(torch.randn(noise.shape, generator=rng))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._config)

    @property
    def resolution(self) -> int:
        """Side of the finished image in px."""
        return int(self._config["config"]["resolution"])

    @property
    def below(self) -> int:
        """Side of what it is grown on, in px."""
        return int(self._config["below"])

    @torch.no_grad()
    def take(self, grown: Generator) -> None:
        """Copy the layers of a grown generator; its fixed noise stays behind.

        Raises:
            KeyMismatchError: it has another architecture.
        """
        if grown.config() != self._config["config"]:
            raise KeyMismatchError(
                f"the grown generator has {grown.config()}, expected {self._config['config']}"
            )
        pairs = [(self.layers, grown.synthesis.layers, self.first_layer)]
        pairs += [(self.to_rgb, grown.synthesis.to_rgb, self.first_rgb)]
        for own, theirs, first in pairs:
            for module, source in zip(own, theirs[first:], strict=True):
                for name, value in source.named_parameters():
                    module.get_parameter(name).copy_(value)

    def grow(self, generator: Generator) -> Generator:
        """Return a generator of the whole size: the given one's layers, not copied, and these above them.

        Args:
            generator: of the size ``below``: the base, or the base tuned.

        Raises:
            KeyMismatchError: it has another architecture.
        """
        wanted = dict(self._config["config"])
        wanted["resolution"] = self.below
        wanted["channels"] = {size: width for size, width in wanted["channels"].items() if size <= self.below}
        if generator.config() != wanted:
            raise KeyMismatchError(
                f"these layers belong above a generator of {wanted}, this one has {generator.config()}"
            )
        lower, synthesis = generator.synthesis, _same_parts(generator.synthesis)
        synthesis.resolution, synthesis.channels = self.resolution, dict(self._config["config"]["channels"])
        synthesis.whole_px = self.below  # these layers learned on windows, which seldom lie at the edge
        synthesis.layers = nn.ModuleList([*lower.layers, *self.layers])
        synthesis.to_rgb = nn.ModuleList([*lower.to_rgb, *self.to_rgb])
        whole = _same_parts(generator)
        whole.synthesis, whole._config = synthesis, dict(self._config["config"])
        return whole.train(generator.training)

    def grow_noise(self, noise: Noise) -> Noise:
        """Return noise for the grown generator: where there is one map per layer, the fixed maps are added."""
        if isinstance(noise, str):
            return noise
        return [*noise, *self.noise_maps]

    @property
    def noise_maps(self) -> Sequence[Tensor]:
        """The fixed noise, one map (R, R) per layer."""
        return [layer.get_buffer("noise") for layer in self.layers]


def _same_parts(module: Module) -> Module:
    """Return a module with the same parameters and parts, of which some may be exchanged; building one anew takes long."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(module.__dict__[name])
    return twin
