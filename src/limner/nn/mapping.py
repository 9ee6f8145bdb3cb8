"""StyleGAN2's mapping network: z, and a class label if there are classes, to w.

Source: Karras et al. 2020 (arXiv 1912.04958); class conditioning as in Karras et al. 2020, "Training Generative
Adversarial Networks with Limited Data" (arXiv 2006.06676).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from limner.errors import ShapeError
from limner.nn.layers import EqualLinear
from limner.nn.precision import full_precision


class MappingNetwork(nn.Module):
    """z, and a class label if there are classes, to w.

    Args:
        z_dim: width of z; 0 for a network of labels alone, as in a conditional discriminator.
        w_dim: width of w.
        depth: number of layers.
        label_dim: number of classes, 0 for none.
        lr_multiplier: learning-rate multiplier of the layers.
    """

    def __init__(
        self,
        *,
        z_dim: int = 512,
        w_dim: int = 512,
        depth: int = 8,
        label_dim: int = 0,
        lr_multiplier: float = 0.01,
    ):
        super().__init__()
        self.z_dim, self.w_dim, self.label_dim = z_dim, w_dim, label_dim
        self.embed = EqualLinear(label_dim, w_dim) if label_dim else None
        widths = [z_dim + (w_dim if label_dim else 0)] + [w_dim] * depth
        self.layers = nn.ModuleList(
            EqualLinear(a, b, lr_multiplier=lr_multiplier, activate=True)
            for a, b in itertools.pairwise(widths)
        )

    @full_precision
    def forward(self, z: Tensor | None, labels: Tensor | None = None) -> Tensor:
        """(B, z_dim) and one-hot labels (B, label_dim) -> w (B, w_dim)."""
        parts = []
        if self.z_dim:
            if z is None or z.shape[-1] != self.z_dim:
                raise ShapeError(
                    f"z has shape {None if z is None else tuple(z.shape)}, expected (B, {self.z_dim})"
                )
            parts.append(_unit_rms(z))
        if self.embed is not None:
            if labels is None or labels.shape[-1] != self.label_dim:
                raise ShapeError(
                    f"this model is class-conditional: labels (B, {self.label_dim}) must be given"
                )
            parts.append(_unit_rms(self.embed(labels)))
        x = torch.cat(parts, -1)
        for layer in self.layers:
            x = layer(x)
        return x


def _unit_rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-8)
