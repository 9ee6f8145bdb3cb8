"""Start weights of a DualStyleGAN's extrinsic path that every machine makes alike from a number.

A model that was trained from them can be kept as its difference to them, which is small where training was short.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limner.nn.dualstylegan import INITIAL_NOISE, DualGenerator

MASK = (1 << 32) - 1


@torch.no_grad()
def start_extrinsic(dual: DualGenerator, *, seed: int = 0) -> None:
    """Give the extrinsic path its start weights: uniform numbers with the variance of the usual ones.

    Residual blocks hardly change features, colour layers are the identity.

    Args:
        dual: the model; its intrinsic path stays.
        seed: of the numbers.
    """
    for number, (name, parameter) in enumerate(dual.named_parameters()):
        part, _, rest = name.partition(".")
        if part == "generator" or parameter.ndim < 2:
            continue
        noise = (
            hashed_uniform(parameter.numel(), stream=seed * 100_003 + number).view_as(parameter).to(parameter)
        )
        if part == "style":
            layer = dual.style.layers[int(rest.split(".")[1])]
            parameter.copy_(noise / getattr(layer, "lr_multiplier"))  # noqa: B009 - of a module list
        elif rest.endswith((".reduce", ".expand")):
            parameter.copy_(noise * _spread(name, parameter))
        elif part == "color":
            parameter.copy_(torch.eye(len(parameter)).to(parameter) * math.sqrt(len(parameter)))
            parameter.add_(noise, alpha=INITIAL_NOISE)
        elif ".affine." in name:
            parameter.copy_(noise / math.sqrt(3 * parameter.shape[1]))
        else:
            parameter.copy_(noise * INITIAL_NOISE)
    for name, parameter in dual.named_parameters():
        if name.startswith(("structure.", "fine.")) and name.endswith("affine.bias"):
            parameter[: len(parameter) // 2] = 1.0
            parameter[len(parameter) // 2 :] = 0.0
        elif parameter.ndim == 1 and not name.startswith("generator."):
            parameter.zero_()


def _spread(name: str, factor: Tensor) -> float:
    """Return the standard deviation of a factor of a low-rank weight, see `limner.nn.low_rank`."""
    if ".affine." in name:
        share = 3 if name.endswith(".expand") else 1
        return 1 / math.sqrt(share * factor.shape[1])
    return INITIAL_NOISE if name.endswith(".expand") else 1.0


def hashed_uniform(count: int, *, stream: int) -> Tensor:
    """Return ``count`` numbers, uniform with mean 0 and variance 1, by integer arithmetic alone.

    Args:
        count: how many.
        stream: streams differ in all numbers.

    Source: the mixing of 32-bit words of MurmurHash3 (Appleby 2011, public domain).
    """
    x = (torch.arange(count, dtype=torch.int64) + (stream * 0x9E3779B9 & MASK)) & MASK
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = x ^ (x >> shift)
        # In two halves, since the whole product does not fit 64 bits with a sign.
        low, high = x & 0xFFFF, x >> 16
        x = (low * factor + ((high * factor & 0xFFFF) << 16)) & MASK
    x = x ^ (x >> 16)
    return ((x.double() + 0.5) / (MASK + 1) * 2 - 1).mul(math.sqrt(3)).float()
