"""LPIPS: learned perceptual distance of image pairs, version 0.1, on AlexNet or VGG16.

The weights ship nowhere in a package we may include: the backbone comes from torchvision's file, the linear heads from
the authors' (BSD-2-Clause).  Both must be given; there is no distance on a random trunk.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv 1801.03924).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from limner.errors import ShapeError
from limner.nn.features import (
    AlexNet,
    Vgg16,
    Vgg19,
    load_strictly,
    load_torchvision,
    read_tensors,
)


class _Head(nn.Module):
    """Weight per channel, stored as the 1x1 convolution ``model.1`` behind a dropout that evaluation ignores."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))


class Lpips(nn.Module):
    """Distance of two images, weighted per channel of a frozen trunk's maps.

    Args:
        trunk: image [-1, 1] -> maps; AlexNet or VGG16 with their default taps for the published weights.
    """

    def __init__(self, *, trunk: Vgg16 | Vgg19 | AlexNet):
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({f"lin{i}": _Head(channels) for i, channels in enumerate(trunk.channels)})
        self.requires_grad_(False).eval()

    def per_layer(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (B, 3, H, W), [-1, 1] -> distance of every map, (maps, B).

        Raises:
            ShapeError: the images differ in shape.
        """
        if a.shape != b.shape:
            raise ShapeError(
                f"images have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected two equal ones"
            )
        return self.between_maps(self.trunk(a), self.trunk(b))

    def between_maps(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
        """The trunk's maps of either image -> distance of every map, (maps, B)."""
        found = []
        for head, x, y in zip(self.heads.values(), maps_a, maps_b, strict=True):
            weight = head.get_submodule("model.1").get_parameter("weight")  # (1, C, 1, 1)
            difference = (_unit(x) - _unit(y)).square()
            found.append((difference * weight).sum(1).mean((1, 2)))
        return torch.stack(found)

    def compare_maps(self, maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
        """The trunk's maps of either image -> distance (B,); for many comparisons with one image."""
        return self.between_maps(maps_a, maps_b).sum(0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (B, 3, H, W), [-1, 1] -> distance (B,)."""
        return self.per_layer(a, b).sum(0)

    def load_heads(self, state: Mapping[str, Tensor], *, where: str) -> None:
        """Take the heads ``lin0.model.1.weight`` ... of the authors' file, or pSp's names ``0.1.weight`` ...

        Raises:
            KeyMismatchError: they do not fit the trunk.
        """
        renamed = {
            re.sub(r"^(\d+)\.1\.weight$", r"lin\1.model.1.weight", name): x for name, x in state.items()
        }
        load_strictly(self.heads, renamed, where=where)


def _unit(features: Tensor) -> Tensor:
    # The root of a sum that is exactly zero has no gradient: hence the tiny number inside it as well.
    norm = (features.square().sum(1, keepdim=True) + 1e-24).sqrt()
    return features / (norm + 1e-10)


def load_lpips(backbone: str, backbone_path: str | Path, heads_path: str | Path) -> Lpips:
    """Build LPIPS from its two files.

    Args:
        backbone: "alexnet" or "vgg16".
        backbone_path: torchvision's checkpoint.
        heads_path: the authors' ``alex.pth`` or ``vgg.pth`` of version 0.1.

    Raises:
        ZooError: unknown backbone, or a file is missing.
        UnknownFormatError: a file holds no tensors.
        KeyMismatchError: a file does not fit.
    """
    metric = Lpips(trunk=load_torchvision(backbone, backbone_path))
    metric.load_heads(read_tensors(heads_path, what=f"LPIPS heads for {backbone}"), where=str(heads_path))
    return metric
