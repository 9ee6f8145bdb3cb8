"""Layers whose weight is a product of two thin ones: fewer numbers to compute, to train and to ship.

Unlike a cut of trained weights, nothing is lost afterwards: what is trained is what is kept.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.fused import convolve, finish, mix_channels
from limner.nn.layers import SQRT2


class LowRankConv2d(nn.Module):
    """`limner.nn.layers.EqualConv2d` with bias and Leaky ReLU, its weight a product.

    Args:
        in_channels, out_channels, kernel_size: as there.
        rank: channels between both parts.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, rank: int):
        super().__init__()
        self.reduce = nn.Parameter(torch.randn(rank, in_channels, kernel_size, kernel_size))
        self.expand = nn.Parameter(torch.randn(out_channels, rank))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        reduce = self.reduce / math.sqrt(self.reduce[0].numel())
        narrow = convolve(x, reduce.to(x.dtype), padding=reduce.shape[-1] // 2)
        expand = self.expand * (SQRT2 / math.sqrt(self.expand.shape[1]))
        return finish(mix_channels(narrow, expand.to(x.dtype)), None, self.bias * SQRT2)

    def merged(self) -> Tensor:
        """Return the weight that an `EqualConv2d` of the same effect has, (O, I, k, k)."""
        return torch.einsum("or,rihw->oihw", self.expand / math.sqrt(self.expand.shape[1]), self.reduce)

    def size(self) -> Tensor:
        """Return the norm of `merged`, computed from the small matrices."""
        rows, columns = self.reduce.flatten(1), self.expand / math.sqrt(self.expand.shape[1])
        square = ((columns.t() @ columns) * (rows @ rows.t())).sum()
        return square.clamp_min(1e-12).sqrt()


class LowRankLinear(nn.Module):
    """Fully connected layer whose weight is a product, or the identity plus one.

    Args:
        in_features, out_features: widths.
        rank: numbers between both parts.
        identity: add the input; the widths are the same then, and the learning rate is equalised as in
            `limner.nn.layers.EqualLinear`.
    """

    def __init__(self, in_features: int, out_features: int, *, rank: int, identity: bool = False):
        super().__init__()
        self.identity = identity
        # As used where nothing is equalised.
        scale = 1.0 if identity else 1 / math.sqrt(in_features), 1.0 if identity else 1 / math.sqrt(rank)
        self.reduce = nn.Parameter(torch.randn(rank, in_features) * scale[0])
        self.expand = nn.Parameter(torch.randn(out_features, rank) * scale[1])
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        gain = self._gain()
        y = F.linear(F.linear(x, self.reduce.to(x.dtype)), (self.expand * gain).to(x.dtype), self.bias)
        return x + y if self.identity else y

    def _gain(self) -> float:
        rank, width = self.reduce.shape
        return 1 / math.sqrt(rank * width) if self.identity else 1.0

    def merged(self) -> Tensor:
        """Return the weight of the layer that it stands for: a `torch.nn.Linear`, with ``identity`` an `EqualLinear`."""
        product = (self.expand * self._gain()) @ self.reduce
        width = self.reduce.shape[1]
        return (product + torch.eye(width).to(product)) * math.sqrt(width) if self.identity else product

    def size(self) -> Tensor:
        """Return the norm of the product, computed from the small matrices."""
        columns = self.expand * self._gain()
        square = ((columns.t() @ columns) * (self.reduce @ self.reduce.t())).sum()
        return square.clamp_min(1e-12).sqrt()
