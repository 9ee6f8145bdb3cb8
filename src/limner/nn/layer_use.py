"""What the weights of a generator are used on: the second moments of what enters every layer.

A change of a weight matters as far as it changes what the layer makes of its inputs.  Inputs are far from alike: styles
scale channels up and down, and channels go together; so a change cut to a few terms is best cut where inputs are.

Source: Wang et al. 2024, "SVD-LLM" (arXiv 2403.07378), section 3.1: truncation after whitening of the inputs.
Differs: an eigenvalue root in place of Cholesky's, and convolutions, whose moments are those of the modulated channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limner.nn.layers import EqualLinear
from limner.nn.stylegan2 import Generator, SynthesisLayer, ToRgb

FLOOR = 1e-3
"""Share of the mean moment that counts as seen in every direction."""


@dataclass(frozen=True)
class LayerUse:
    """How one weight (O, I, ...) is used.

    Attributes:
        root: square root of the second moments of its inputs, (I, I), symmetric, invertible.
        inverse: of ``root``.
        size: mean square of what the layer makes of its inputs, bias included, summed over its outputs.
    """

    root: Tensor
    inverse: Tensor
    size: float


@torch.no_grad()
def measure_use(
    generator: Generator, *, samples: int = 8, seed: int = 1, psi: float = 0.7
) -> dict[str, LayerUse]:
    """Return name -> use of every weight of convolutions, toRGB layers and affines, float64 on the CPU.

    Args:
        generator: as it will paint, so a tuned one.
        samples, seed, psi: random images that it paints, and their truncation.
    """
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, generator.z_dim, generator=rng).to(generator.w_avg)
    w_plus = generator.truncate(generator.broadcast(generator.mapping(z)), psi)
    moments: dict[str, Tensor] = {}
    styles: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], made: Tensor) -> None:
            x = inputs[0]
            if isinstance(module, EqualLinear):
                # Its bias counts: what is a share of the styles, which are about one, is no share of their spread.
                gain = module.lr_multiplier / math.sqrt(x.shape[1])
                styles[name] = styles.get(name, 0.0) + float((made / gain).square().sum()) / samples
                x = x[:, :, None, None]
            else:
                x = x * inputs[1][:, :, None, None]
            flat = x.transpose(0, 1).flatten(1).double()
            found = (flat @ flat.t() / (flat.shape[1] * len(w_plus))).cpu()
            moments[name] = moments[name] + found if name in moments else found

        return add

    handles = [
        module.register_forward_hook(watch(f"synthesis.{name}.weight"))
        for name, module in generator.synthesis.named_modules()
        if isinstance(module, (SynthesisLayer, ToRgb, EqualLinear))
    ]
    try:
        for code in w_plus.split(1):
            generator.synthesis(code)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: _use(generator.get_parameter(name), found, styles.get(name)) for name, found in moments.items()
    }


def _use(weight: Tensor, moments: Tensor, size: float | None) -> LayerUse:
    values, vectors = torch.linalg.eigh(moments)
    values = (values.clamp_min(0) + FLOOR * values.mean().clamp_min(1e-30)).sqrt()
    root = (vectors * values) @ vectors.t()
    if size is None:
        size = float(torch.einsum("oi...,ij->oj...", weight.detach().cpu().double(), root).square().sum())
    return LayerUse(root, (vectors / values) @ vectors.t(), size)
