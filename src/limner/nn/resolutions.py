"""Sizes of a StyleGAN2's layers, and how many channels each has."""

from __future__ import annotations

import math
from collections.abc import Mapping

from limner.errors import ShapeError


def default_channels(resolution: int, *, base: int = 32768, cap: int = 512) -> dict[int, int]:
    """Return resolution -> channels of configuration F (``base`` 16384 halves them above 32 px)."""
    return {size: min(cap, base // size) for size in resolutions(resolution)}


def resolutions(resolution: int) -> list[int]:
    """Return 4, 8, ... up to ``resolution``.

    Raises:
        ShapeError: not 4 times a power of two.
    """
    sizes = [4 << n for n in range(max(0, int(math.log2(max(resolution, 1))) - 1))]
    if not sizes or sizes[-1] != resolution:
        raise ShapeError(f"resolution {resolution} is not 4 times a power of two (4, 8, ... 1024)")
    return sizes


def channel_table(resolution: int, channels: Mapping[int, int] | None) -> dict[int, int]:
    """Return resolution -> channels for every size up to ``resolution``; configuration F's where None is given.

    Raises:
        ShapeError: a size has no entry.
    """
    table = (
        default_channels(resolution) if channels is None else {int(k): int(v) for k, v in channels.items()}
    )
    missing = [size for size in resolutions(resolution) if size not in table]
    if missing:
        raise ShapeError(
            f"channels has no entry for {missing}; a {resolution} px network needs every size from 4 up"
        )
    return {size: table[size] for size in resolutions(resolution)}
