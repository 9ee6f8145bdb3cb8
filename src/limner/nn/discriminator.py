"""StyleGAN2's residual discriminator.

Source: Karras et al. 2020 (arXiv 1912.04958), configuration F; class conditioning as in Karras et al. 2020,
"Training Generative Adversarial Networks with Limited Data" (arXiv 2006.06676).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import ShapeError
from limner.nn.layers import EqualConv2d, EqualLinear, at_least_float, minibatch_std
from limner.nn.mapping import MappingNetwork
from limner.nn.resolutions import channel_table


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions and a 1x1 shortcut; halves the size."""

    def __init__(self, in_channels: int, out_channels: int, *, clamp: float | None):
        super().__init__()
        self.conv0 = EqualConv2d(in_channels, in_channels, 3, clamp=clamp)
        self.conv1 = EqualConv2d(in_channels, out_channels, 3, down=True, clamp=clamp)
        self.skip = EqualConv2d(in_channels, out_channels, 1, down=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H/2, W/2)."""
        gain = math.sqrt(0.5)
        return self.skip(x, gain=gain) + self.conv1(self.conv0(x), gain=gain)


class Discriminator(nn.Module):
    """Residual discriminator.

    Args:
        resolution, channels, rgb_channels, label_dim: as for `Generator`.
        mapping_depth: layers of the label network of a conditional model.
        std_group, std_channels: see `layers.minibatch_std`.
        activation_clamp: see `Generator`.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: Mapping[int, int] | None = None,
        rgb_channels: int = 3,
        label_dim: int = 0,
        mapping_depth: int = 8,
        std_group: int = 4,
        std_channels: int = 1,
        activation_clamp: float | None = None,
    ):
        super().__init__()
        table = channel_table(resolution, channels)
        self._config = {
            "resolution": resolution,
            "channels": table,
            "rgb_channels": rgb_channels,
            "label_dim": label_dim,
            "mapping_depth": mapping_depth,
            "std_group": std_group,
            "std_channels": std_channels,
            "activation_clamp": activation_clamp,
        }
        self.resolution, self.std_group, self.std_channels = resolution, std_group, std_channels
        sizes = list(table)[::-1]
        self.from_rgb = EqualConv2d(rgb_channels, table[resolution], 1, clamp=activation_clamp)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(table[big], table[small], clamp=activation_clamp)
            for big, small in itertools.pairwise(sizes)
        )
        width = table[4]
        self.conv = EqualConv2d(width + std_channels, width, 3, clamp=activation_clamp)
        self.fc = EqualLinear(width * 16, width, activate=True)
        self.out = EqualLinear(width, width if label_dim else 1)
        self.mapping = (
            MappingNetwork(z_dim=0, w_dim=width, depth=mapping_depth, label_dim=label_dim)
            if label_dim
            else None
        )

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._config)

    def features(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W) -> the outputs of from_rgb and of every block, from H x W down to 4 x 4.

        Entry ``i`` is what JoJoGAN calls the feature after ``convs[i]``.
        """
        if image.ndim != 4 or image.shape[2:] != (self.resolution, self.resolution):
            raise ShapeError(
                f"image has shape {tuple(image.shape)}, expected (B, 3, {self.resolution}, {self.resolution})"
            )
        x = self.from_rgb(image.contiguous(memory_format=torch.channels_last))
        maps = [x]
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def forward(self, image: Tensor, labels: Tensor | None = None) -> Tensor:
        """image (B, 3, H, W) -> logits (B, 1); larger means more real."""
        x = at_least_float(self.features(image)[-1])
        x = self.conv(minibatch_std(x, group=self.std_group, channels=self.std_channels))
        x = self.out(self.fc(x.flatten(1)))
        if self.mapping is not None:
            x = (x * self.mapping(None, labels)).sum(1, keepdim=True) / math.sqrt(x.shape[1])
        return x
