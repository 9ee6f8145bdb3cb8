"""The contextual distance against the formula written out, and what it promises about memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from limner import losses
from limner.errors import ShapeError


def naive(a: Tensor, b: Tensor, h: float) -> Tensor:
    """Equations 2 to 5 of the paper, loop by loop, for one pair of maps (C, h, w)."""
    x, y = a.flatten(1).t(), b.flatten(1).t()
    mean = y.mean(0)
    x, y = x - mean, y - mean
    distance = 1 - (x[:, None] * y[None]).sum(2) / (x.norm(dim=1)[:, None] * y.norm(dim=1)[None])
    affinity = torch.exp((1 - distance / (distance.min(1).values[:, None] + 1e-5)) / h)
    affinity = affinity / affinity.sum(1)[:, None]
    return -torch.log(affinity.max(0).values.mean())


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("most_numbers", [1, 50, 1 << 20])
def test_value_and_gradients_are_the_formulas(most_numbers: int) -> None:
    a, b = maps(2, 6, 5, 4), maps(2, 6, 3, 7)
    ours = losses.contextual_distance([a], [b], bandwidth=0.3, most_numbers=most_numbers)
    expected = torch.stack([naive(x, y, 0.3) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(ours, expected)
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    for found, wanted in zip(
        torch.autograd.grad((ours * weights).sum(), (a, b)),
        torch.autograd.grad((expected * weights).sum(), (a, b)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_gradient_against_finite_differences() -> None:
    a, b = maps(1, 4, 3, 3), maps(1, 4, 2, 4)
    assert torch.autograd.gradcheck(
        lambda x, y: losses.contextual_distance([x], [y], bandwidth=0.5, most_numbers=16), (a, b)
    )


def test_target_without_gradient_and_one_target_for_all() -> None:
    a, b = maps(3, 5, 4, 4), maps(1, 5, 4, 4).detach()
    found = losses.contextual_distance([a, a], [b, b])
    torch.testing.assert_close(found, torch.stack([naive(x, b[0], 0.2) for x in a]))
    (gradient,) = torch.autograd.grad(found.sum(), a)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_zero_for_equal_features_anywhere_and_positive_for_others() -> None:
    a = maps(1, 16, 6, 6).detach()
    shuffled = a.flatten(2)[:, :, torch.randperm(36)].view_as(a)
    other = maps(1, 16, 6, 6).detach()
    assert losses.contextual_distance([a], [shuffled]).item() == pytest.approx(0, abs=1e-6)
    assert losses.contextual_distance([a], [other]).item() > 0.5


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operator returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.numbers = max(self.numbers, value.numel())
        return result


@pytest.mark.parametrize("side", [16, 32, 64])
def test_memory_does_not_grow_with_the_square(side: int) -> None:
    """No tensor, forward or backward, is larger than the budget or the features themselves."""
    a, b = maps(1, 4, side, side, dtype=torch.float32), maps(1, 4, side, side, dtype=torch.float32)
    budget = 1 << 16
    with Largest() as largest:
        losses.contextual_distance([a], [b], most_numbers=budget).sum().backward()
    assert largest.numbers <= max(budget, a.numel())


def test_channel_means() -> None:
    a, b = maps(2, 3, 4, 4), maps(2, 3, 6, 2)
    expected = ((a.mean((2, 3)) - b.mean((2, 3))) ** 2).mean(1)
    torch.testing.assert_close(losses.channel_mean_distance([a, a], [b, b]), expected)


@pytest.mark.parametrize("function", [losses.contextual_distance, losses.channel_mean_distance])
def test_errors(function) -> None:
    with pytest.raises(ShapeError, match="1 and 0 maps"):
        function([maps(1, 3, 4, 4)], [])
    with pytest.raises(ShapeError, match="shapes|channels"):
        function([maps(1, 3, 4, 4)], [maps(1, 2, 4, 4)])
