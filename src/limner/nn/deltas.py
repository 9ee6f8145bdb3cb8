"""Weight deltas: what a tuned generator adds to its base, as a mapping of tensor name -> change.

A delta holds only the tensors that changed, under their `state_dict` names.  Deltas of one base add up: pivotal
tuning for the person plus a style, each with its own strength, gives a generator that has both.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limner.errors import KeyMismatchError, ShapeError

Delta = Mapping[str, Tensor]
Strength = float | Tensor
Module = TypeVar("Module", bound=nn.Module)

LEFT, RIGHT = ".left", ".right"


def difference(tuned: nn.Module, base: nn.Module, *, tolerance: float = 0.0) -> dict[str, Tensor]:
    """Return the changes that turn ``base`` into ``tuned``.

    Args:
        tuned, base: two modules of one architecture.
        tolerance: a tensor none of whose numbers moved by more than this counts as unchanged.

    Raises:
        KeyMismatchError: the modules do not have the same tensors.
        ShapeError: a tensor has another shape.
    """
    new, old = tuned.state_dict(), base.state_dict()
    if new.keys() != old.keys():
        odd = sorted(new.keys() ^ old.keys())
        raise KeyMismatchError(
            f"the two modules differ in their tensors: {_some(odd)}; they need one architecture"
        )
    delta = {}
    for name, value in new.items():
        before = old[name]
        if value.shape != before.shape:
            raise ShapeError(f"{name} has shape {tuple(value.shape)}, in the base {tuple(before.shape)}")
        if not value.is_floating_point():
            continue
        change = value.detach().float() - before.detach().to(value.device).float()
        if change.numel() and change.abs().amax() > tolerance:
            delta[name] = change
    return delta


def apply(module: Module, deltas: Iterable[tuple[Delta, Strength]]) -> Module:
    """Return a copy of a module with deltas added.

    Args:
        module: the base; it is not changed.
        deltas: pairs of a delta and its strength.  The strength is a number, or for generators a weight per w+ row,
            (L,), or a weight per S-space vector, (S,), as `limner.latent.LayerMask` makes them.  A generator's
            mapping network and mean of w belong to no layer: they take the smallest of the weights, so that layers
            which stay with the base keep getting the w they know.

    Raises:
        KeyMismatchError: a delta names a tensor that the module does not have.
        ShapeError: a change or a vector of strengths does not fit.
    """
    tuned = copy.deepcopy(module)
    add_(tuned, deltas)
    return tuned


@torch.no_grad()
def add_(module: nn.Module, deltas: Iterable[tuple[Delta, Strength]]) -> None:
    """Add deltas to a module in place; see `apply`."""
    state = module.state_dict()
    for delta, strength in deltas:
        check(module, delta)
        weights = tensor_weights(module, delta, strength)
        for name, change in delta.items():
            if weights[name] != 0:
                target = state[name]
                target.add_(change.to(target.device, target.dtype), alpha=weights[name])


def check(module: nn.Module, delta: Delta) -> None:
    """Raise `KeyMismatchError` or `ShapeError` unless the delta fits the module."""
    state = module.state_dict()
    unknown = sorted(set(delta) - set(state))
    if unknown:
        raise KeyMismatchError(
            f"the delta changes {_some(unknown)}, which the generator does not have; it belongs to another architecture"
        )
    for name, change in delta.items():
        if change.shape != state[name].shape:
            raise ShapeError(
                f"the delta's {name} has shape {tuple(change.shape)}, the generator's {tuple(state[name].shape)}; "
                "it belongs to another base"
            )


def tensor_weights(module: nn.Module, names: Iterable[str], strength: Strength) -> dict[str, float]:
    """Return tensor name -> its strength; see `apply` for the forms of ``strength``.

    Raises:
        ShapeError: a vector whose length is neither the rows of w+ nor the vectors of S.
    """
    if isinstance(strength, (int, float)) or strength.ndim == 0:
        return dict.fromkeys(names, float(strength))
    synthesis: Any = module.synthesis
    rows: Sequence[int] = synthesis.style_rows
    per_style = len(rows) == strength.numel()
    if strength.ndim != 1 or not (per_style or strength.numel() == max(rows) + 1):
        raise ShapeError(
            f"strength has shape {tuple(strength.shape)}, expected a number, ({max(rows) + 1},) for the rows of w+ "
            f"or ({len(rows)},) for the vectors of S"
        )
    values = strength.tolist()
    found = {}
    for name in names:
        vector = style_vector(name, module)
        if vector is None:
            found[name] = min(values)
        else:
            found[name] = values[vector] if per_style else values[rows[vector]]
    return found


def style_vector(name: str, module: nn.Module | None = None) -> int | None:
    """Return the S-space vector whose layer owns a generator's tensor, None for mapping network and mean of w.

    The constant input goes with the first layer.

    Args:
        name: the tensor.
        module: the generator; None for StyleGAN2's order of layers.
    """
    own: Any = getattr(getattr(module, "synthesis", None), "style_vector", None)
    if own is not None:
        return own(name)
    if name.startswith("synthesis.const"):
        return 0
    match = re.match(r"synthesis\.(layers|to_rgb)\.(\d+)\.", name)
    if match is None:
        return None
    index = int(match[2])
    if match[1] == "to_rgb":
        return 3 * index + 1
    return index + (index + 1) // 2  # a toRGB stands after layers 0, 2, 4 ...


def digest(module: nn.Module) -> str:
    """Return the SHA-256 of a module's tensors, as float32, in the order of their names."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().to("cpu", torch.float32).contiguous()
        total.update(f"{name}:{tuple(value.shape)};".encode())
        total.update(value.numpy().tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Compression:
    """A compressed delta and what it lost.

    Attributes:
        tensors: what to store: ``NAME`` (whole) or ``NAME.left`` and ``NAME.right`` (two factors).
        bytes_before, bytes_after: size as float32 and as stored.
        error: root of the squared error over the squared change, over all tensors together.
        errors: the same per tensor.
    """

    tensors: dict[str, Tensor]
    bytes_before: int
    bytes_after: int
    error: float
    errors: dict[str, float]


@torch.no_grad()
def compress(delta: Delta, *, rank: int | None = None, tolerance: float = 0.0) -> Compression:
    """Store a delta as float16, and its matrices as products of two thin ones where that is smaller.

    Args:
        delta: tensor name -> change.
        rank: largest rank of a product; None for no limit.
        tolerance: part of a matrix's norm that the product may lose, 0 to 1; with a ``rank``, the rank decides where
            both cannot be met.

    With neither, every tensor is only rounded to float16 (float32 where float16 would overflow).
    """
    stored: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    before = lost = total = 0.0
    for name, change in delta.items():
        change = change.detach().float()
        parts = _factorise(name, change, rank, tolerance) if change.ndim >= 2 else None
        parts = parts or {name: _halve(change)}
        back = reconstruct(parts)[name]
        squares, loss = float(change.square().sum()), float((back - change).square().sum())
        errors[name] = (loss / squares) ** 0.5 if squares else 0.0
        before, lost, total = before + 4 * change.numel(), lost + loss, total + squares
        stored |= parts
    after = sum(part.numel() * part.element_size() for part in stored.values())
    return Compression(stored, int(before), after, (lost / total) ** 0.5 if total else 0.0, errors)


def reconstruct(tensors: Delta) -> dict[str, Tensor]:
    """Return the delta, float32, that `compress` stored.

    Raises:
        KeyMismatchError: one factor of a product is missing.
        ShapeError: two factors do not fit.
    """
    delta = {}
    for name, value in tensors.items():
        if name.endswith(RIGHT):
            if name.removesuffix(RIGHT) + LEFT not in tensors:
                raise KeyMismatchError(f"{name} has no {name.removesuffix(RIGHT) + LEFT} beside it")
        elif name.endswith(LEFT):
            whole = name.removesuffix(LEFT)
            right = tensors.get(whole + RIGHT)
            if right is None:
                raise KeyMismatchError(f"{name} has no {whole + RIGHT} beside it")
            if value.ndim != 2 or right.ndim < 2 or value.shape[1] != right.shape[0]:
                raise ShapeError(
                    f"{whole}: factors of shape {tuple(value.shape)} and {tuple(right.shape)} do not fit"
                )
            product = value.float() @ right.float().flatten(1)
            delta[whole] = product.view(value.shape[0], *right.shape[1:])
        else:
            delta[name] = value.float()
    return delta


def _factorise(name: str, change: Tensor, rank: int | None, tolerance: float) -> dict[str, Tensor] | None:
    """Return the two factors of a tensor seen as a matrix (rows, everything else), None where they save nothing."""
    if rank is None and tolerance <= 0:
        return None
    matrix = change.flatten(1)
    largest = matrix.numel() // sum(matrix.shape)  # above this rank the factors are no smaller
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    tail = values.square().flip(0).cumsum(0).flip(0)  # squared norm that is lost when cut before entry i
    wanted = int((tail > tolerance**2 * tail[0]).sum()) if tolerance > 0 else len(values)
    wanted = max(1, min(wanted, len(values) if rank is None else rank))
    if wanted > largest:
        return None
    root = values[:wanted].sqrt()
    right = (root[:, None] * right[:wanted]).reshape(wanted, *change.shape[1:])
    return {name + LEFT: _halve(left[:, :wanted] * root), name + RIGHT: _halve(right)}


def _halve(values: Tensor) -> Tensor:
    half = values.to(torch.float16).contiguous()
    return half if half.isfinite().all() else values.contiguous()


def _some(names: Sequence[str], most: int = 3) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
