"""A distance of codes that asks what the generator sees of them.

Most directions of w hardly change the picture, and no encoder can guess them.  Compared are the styles that the
affine layers make of the codes, every channel weighted by how much the picture moves with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limner.nn.precision import full_precision
from limner.nn.stylegan2 import Generator


class StyleMetric:
    """Mean squared difference of styles, weighted; 1 is the distance of two faces' codes from their mean.

    The weight of a channel is the root of its variance times the squared norm of the picture's gradient to it, so
    that the few channels of pose and backdrop do not count alone; the gradient's norm is estimated by random
    projections of the picture.

    Args:
        generator: frozen.
        z: noise to measure on, (N, z_dim).
        rng: of the projections, on the CPU.
        probes: how many projections.
        images: how many of the N are painted.
    """

    def __init__(
        self, generator: Generator, z: Tensor, *, rng: torch.Generator, probes: int = 4, images: int = 8
    ):
        self.generator = generator
        with torch.no_grad():
            styles = generator.synthesis.styles(generator.broadcast(generator.mapping(z)))
        variance = [x.var(0) for x in styles]
        some = [x[:images].detach().clone().requires_grad_() for x in styles]
        image = generator.synthesis.from_styles(some)
        slopes = [torch.zeros_like(x) for x in variance]
        for number in range(probes):
            direction = torch.randn(image.shape, generator=rng).to(image)
            found = torch.autograd.grad((image * direction).sum(), some, retain_graph=number < probes - 1)
            for slope, gradient in zip(slopes, found, strict=True):
                slope += gradient.square().mean(0) / probes
        shares = [(slope * var).sqrt() for slope, var in zip(slopes, variance, strict=True)]
        total = torch.stack([share.sum() for share in shares]).sum()
        self.weights = [share / (var + 1e-8) / total for share, var in zip(shares, variance, strict=True)]

    @full_precision
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Codes a and b (B, L, w_dim) -> distances (B,)."""
        styles = self.generator.synthesis.styles
        pairs = zip(styles(a), styles(b), self.weights, strict=True)
        return torch.stack([((x - y).square() * weight).sum(1) for x, y, weight in pairs]).sum(0)
