"""Packing a delta: low-rank products in 8 bits, the ranks shared out where they save most.

`limner.nn.deltas.compress` cuts every tensor by one rule and keeps float16; what ships with the package (styles,
children) has a byte budget, so here the terms of all tensors compete for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from limner.errors import KeyMismatchError, ShapeError
from limner.nn.layer_use import LayerUse

LEFT, RIGHT, SCALE = ".left", ".right", ".scale"
SCALE_BYTES = 4
HEADER_BYTES = 100
"""About what safetensors' header needs for one tensor."""


@dataclasses.dataclass(frozen=True)
class Packing:
    """A packed delta and what it lost.

    Attributes:
        tensors: what to store: ``NAME`` (whole, float16) or ``NAME.left``, ``NAME.right`` (int8 factors) and
            ``NAME.scale`` (float32, one per term of the product).
        bytes_before, bytes_after: size as float32 and as stored.
        error: root of the squared error over the squared change.
    """

    tensors: dict[str, Tensor]
    bytes_before: int
    bytes_after: int
    error: float


@dataclasses.dataclass(frozen=True)
class _Factors:
    """A tensor as a sum of products of unit vectors, the most useful first."""

    left: Tensor  # (rows, terms)
    values: Tensor  # (terms,)
    right: Tensor  # (terms, columns)
    worth: Tensor  # (terms,), see `pack`

    @property
    def bytes_per_term(self) -> int:
        return len(self.left) + self.right.shape[1] + SCALE_BYTES


@torch.no_grad()
def pack(
    delta: Mapping[str, Tensor], *, budget_bytes: int, uses: Mapping[str, LayerUse] | None = None
) -> Packing:
    """Store vectors as float16 and matrices as sums of products, as many terms as the budget allows.

    A term is worth the share that it has in what its layer makes of its inputs, squared.  Of tensors whose use is not
    known, it is the squared size over the number of entries: equalised weights have variance about one.  Terms are taken
    in the order of worth per byte.  Where everything fits as float16, it is stored so.

    Args:
        delta: tensor name -> change.
        budget_bytes: what all of it may need, headers included; vectors are kept even beyond it.
        uses: see `limner.nn.layer_use`; with them the products are cut where inputs are, not where weights are large.
    """
    uses = uses or {}
    stored: dict[str, Tensor] = {}
    whole = sum(2 * change.numel() + HEADER_BYTES for change in delta.values()) <= budget_bytes
    factors = {
        name: _factorise(change, uses.get(name))
        for name, change in delta.items()
        if change.ndim >= 2 and not whole
    }
    for name, change in delta.items():
        if name not in factors:
            stored[name] = _halve(change)
    left = budget_bytes - _size(stored) - HEADER_BYTES * (len(stored) + 3 * len(factors))
    for name, terms in _share_out(factors, left).items():
        change, parts = delta[name], factors[name]
        if terms * parts.bytes_per_term >= 2 * change.numel():
            stored[name] = _halve(change)
        elif terms:
            stored |= _quantise(name, change, parts, terms)
    back = unpack(stored)
    total = sum(float(change.float().square().sum()) for change in delta.values())
    lost = sum(
        float((change.float() - back.get(name, torch.zeros(()))).square().sum())
        for name, change in delta.items()
    )
    before = sum(4 * change.numel() for change in delta.values())
    return Packing(stored, before, _size(stored), (lost / total) ** 0.5 if total else 0.0)


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the delta, float32, that `pack` stored.

    Raises:
        KeyMismatchError: a part of a product is missing.
        ShapeError: the parts of a product do not fit.
    """
    delta = {}
    for name, value in tensors.items():
        if name.endswith((RIGHT, SCALE)):
            whole = name.removesuffix(RIGHT).removesuffix(SCALE)
            if whole + LEFT not in tensors:
                raise KeyMismatchError(f"{name} has no {whole + LEFT} beside it")
        elif name.endswith(LEFT):
            whole = name.removesuffix(LEFT)
            missing = [whole + part for part in (RIGHT, SCALE) if whole + part not in tensors]
            if missing:
                raise KeyMismatchError(f"{name} has no {missing[0]} beside it")
            right, scale = tensors[whole + RIGHT], tensors[whole + SCALE]
            if value.ndim != 2 or right.ndim < 2 or not value.shape[1] == right.shape[0] == scale.numel():
                shapes = ", ".join(str(tuple(part.shape)) for part in (value, scale, right))
                raise ShapeError(f"{whole}: the shapes {shapes} of its parts do not fit")
            product = (value.float() * scale.float()) @ right.float().flatten(1)
            delta[whole] = product.view(value.shape[0], *right.shape[1:])
        else:
            delta[name] = value.float()
    return delta


@torch.no_grad()
def pack_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store matrices in 8 bits with a float16 scale per row, vectors as float16; for what is small already."""
    stored = {}
    for name, value in tensors.items():
        if value.ndim < 2:
            stored[name] = _halve(value)
            continue
        rows = value.detach().cpu().float().flatten(1)
        # The scale is rounded first, so that the numbers are those nearest to what will be read.
        scale = (rows.abs().amax(1) / 127).clamp_min(1e-7).half()
        numbers = (rows / scale.float()[:, None]).round().clamp(-127, 127)
        stored[name] = numbers.to(torch.int8).view(value.shape).contiguous()
        stored[name + SCALE] = scale
    return stored


def unpack_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `pack_rows` stored, float32.

    Raises:
        KeyMismatchError: numbers or their scale are missing.
        ShapeError: numbers and scale do not fit.
    """
    found = {}
    for name, value in tensors.items():
        if name.endswith(SCALE):
            if name.removesuffix(SCALE) not in tensors:
                raise KeyMismatchError(f"{name} has no {name.removesuffix(SCALE)} beside it")
            continue
        if value.ndim < 2:
            found[name] = value.float()
            continue
        scale = tensors.get(name + SCALE)
        if scale is None:
            raise KeyMismatchError(f"{name} has no {name + SCALE} beside it")
        if scale.shape != value.shape[:1]:
            raise ShapeError(f"{name}: {len(value)} rows have scales of shape {tuple(scale.shape)}")
        found[name] = value.float() * scale.float().view(-1, *[1] * (value.ndim - 1))
    return found


def _factorise(change: Tensor, use: LayerUse | None) -> _Factors:
    if use is None:
        left, values, right = _decompose(change.detach().cpu().double().flatten(1))
        return _Factors(left, values, right, values.square() / change.numel())
    # Products of the change as the inputs see it; its right sides go back to what multiplies the inputs themselves.
    seen = torch.einsum("oi...,ij->oj...", change.detach().cpu().double(), use.root)
    left, values, right = _decompose(seen.flatten(1))
    right = right.double().view(len(right), *change.shape[1:])
    right = torch.einsum("ti...,ij->tj...", right, use.inverse).flatten(1)
    sizes = right.norm(dim=1)
    right = (right / sizes[:, None]).float()
    return _Factors(left, values * sizes.float(), right, values.square() / max(use.size, 1e-30))


def _decompose(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return left (rows, terms), values (terms,) and right (terms, columns) of a float64 matrix, the largest first."""
    if matrix.shape[0] <= matrix.shape[1]:
        # The eigenvectors of the small Gram matrix are the left singular vectors, many times faster than an SVD.
        squares, left = torch.linalg.eigh(matrix @ matrix.t())
        values, left = squares.flip(0).clamp_min(0).sqrt(), left.flip(1)
        right = left.t() @ matrix / values.clamp_min(1e-30)[:, None]
    else:
        squares, right = torch.linalg.eigh(matrix.t() @ matrix)
        values, right = squares.flip(0).clamp_min(0).sqrt(), right.flip(1).t()
        left = matrix @ right.t() / values.clamp_min(1e-30)
    rank = int((values > 1e-7 * values[0]).sum())
    return left[:, :rank].float(), values[:rank].float(), right[:rank].float()


def _share_out(factors: Mapping[str, _Factors], budget_bytes: int) -> dict[str, int]:
    """Return the number of terms of every tensor."""
    offers = []
    for name, parts in factors.items():
        offers += [(value, name) for value in (parts.worth / parts.bytes_per_term).tolist()]
    terms = dict.fromkeys(factors, 0)
    for _, name in sorted(offers, key=lambda offer: (-offer[0], offer[1])):
        cost = factors[name].bytes_per_term
        if cost > budget_bytes:
            break
        budget_bytes -= cost
        terms[name] += 1
    return terms


def _quantise(name: str, change: Tensor, parts: _Factors, terms: int) -> dict[str, Tensor]:
    left, right = parts.left[:, :terms], parts.right[:terms]
    left_step, right_step = left.abs().amax(0) / 127, right.abs().amax(1) / 127
    return {
        name + LEFT: (left / left_step).round().to(torch.int8),
        name + RIGHT: (right / right_step[:, None]).round().to(torch.int8).view(terms, *change.shape[1:]),
        name + SCALE: parts.values[:terms] * left_step * right_step,
    }


def _halve(values: Tensor) -> Tensor:
    half = values.detach().cpu().to(torch.float16).contiguous()
    return half if half.isfinite().all() else values.detach().cpu().float().contiguous()


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())
