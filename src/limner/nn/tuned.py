"""The change of a generator that was tuned to one person, as it is kept beside the person's codes.

Pivotal tuning moves every weight a little, so float16 alone takes nearly as much as the generator; products of 8 bits
(`limner.nn.packing`) take a tenth of that, and change pictures by less than a hundredth of what the tuning does.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from limner.nn import deltas, packing

SHARE, LEAST_KILOBYTES = 10, 100


def pack_tuned(delta: Mapping[str, Tensor], *, kilobytes: int = 0) -> packing.Packing:
    """Pack a change for its file.

    Args:
        delta: tensor name -> change.
        kilobytes: what it may take; 0 for a tenth of what float16 takes, or 100 where that is less.
    """
    whole = sum(2 * change.numel() for change in delta.values())
    budget = 1000 * kilobytes or max(whole // SHARE, 1000 * LEAST_KILOBYTES)
    return packing.pack(delta, budget_bytes=budget)


def unpack_tuned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the change, float32, that `pack_tuned` stored, or `limner.nn.deltas.compress` in earlier files.

    Raises:
        KeyMismatchError: a part of a product is missing.
        ShapeError: the parts of a product do not fit.
    """
    packed = any(name.endswith(packing.SCALE) for name in tensors)
    return packing.unpack(tensors) if packed else deltas.reconstruct(dict(tensors))
