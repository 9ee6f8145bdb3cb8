"""Optimisers by name; Ranger, which pSp and e4e train with, is rectified Adam that looks ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import OptionError

NAMES = ("adam", "adamw", "ranger")


class Ranger(torch.optim.RAdam):
    """Rectified Adam with lookahead: every few steps the weights go back half of the way they came.

    Args:
        params: what is trained.
        lr, betas, eps: see `torch.optim.RAdam`.
        every: steps between looks.
        share: of the way that is kept.
        centralize: take from the gradient of every matrix and kernel its mean over all axes but the first, as pSp does.

    Source: Liu et al. 2020, RAdam (arXiv 1908.03265); Zhang et al. 2019, Lookahead (arXiv 1907.08610), algorithm 1;
    Yong et al. 2020, Gradient Centralization (arXiv 2004.01461), equation 1.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        every: int = 6,
        share: float = 0.5,
        centralize: bool = False,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        self.every, self.share, self.centralize = every, share, centralize
        # They stand in the first group, since a state keeps what groups hold.
        self.param_groups[0]["looks"] = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; every ``every`` steps pull the weights back."""
        trained: list[Tensor] = [
            p for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        if self.centralize:
            for p in trained:
                if p.grad is not None and p.ndim > 1:
                    p.grad.sub_(p.grad.mean(tuple(range(1, p.ndim)), keepdim=True))
        # RAdam takes an empty state for that of a first step: the slow weights join it afterwards.
        fresh = {p: p.detach().clone() for p in trained if not self.state[p]}
        found = super().step(closure)  # type: ignore[arg-type]
        for p, slow in fresh.items():
            self.state[p]["slow"] = slow
        self.param_groups[0]["looks"] += 1
        if self.param_groups[0]["looks"] % self.every == 0:
            for p in trained:
                slow = self.state[p]["slow"]
                slow.lerp_(p, self.share)
                p.copy_(slow)
        return found


def make_optimizer(
    name: str,
    params: Iterable[nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Return an optimiser.

    Args:
        name: adam, adamw or ranger.
        params: what is trained.
        lr, betas: learning rate and both betas.
        weight_decay: of adamw.

    Raises:
        OptionError: no such optimiser.
    """
    if name == "adam":
        return torch.optim.Adam(params, lr, betas)
    if name == "adamw":
        return torch.optim.AdamW(params, lr, betas, weight_decay=weight_decay)
    if name == "ranger":
        return Ranger(params, lr=lr, betas=betas)
    raise OptionError(f"optimizer is {name!r}, expected one of {', '.join(NAMES)}")
