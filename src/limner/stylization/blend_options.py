"""Options of network blending (imports no torch)."""

from __future__ import annotations

import dataclasses

from limner.errors import OptionError
from limner.options import Options, knob

RULES = ("corrected", "original")
SIDES = ("fine", "coarse")


@dataclasses.dataclass(frozen=True)
class BlendOptions(Options):
    """Which layers of a blend come from which parent.

    Source: Pinkney and Adler 2020, "Resolution Dependent GAN Interpolation for Controllable Image Synthesis Between
    Domains" (arXiv 2010.05334).
    Differs: see `limner.stylization.blend`.
    """

    swap: tuple[int, ...] = knob((32,), lo=4, hi=1024)
    """resolution in px from which the next parent's layers are taken; for N parents N - 1 of them, rising"""
    level: int = knob(0, lo=0, hi=1)
    """0 swaps before a resolution's first layer, 1 between its two layers (toRGB goes with the second)"""
    width: float = knob(0.0, lo=0.0, hi=20.0, step=0.1)
    """softness of the change from one parent to the next, in layers: 0 is a hard swap, otherwise weights follow a
    logistic curve of this width"""
    take: str = knob("fine", choices=SIDES)
    """fine: later parents give the layers from the swap point up (texture, colour); coarse: those below it (shape)"""
    layers: str = knob("")
    """in place of swap points, the weight of the second parent per layer, as a layer mask (0-8=1,9-=0.5); masks of
    further parents follow after semicolons, and the first parent has what is left"""
    weights: tuple[float, ...] | None = knob(None, lo=0.0, hi=1.0)
    """in place of swap points, the weight of the second parent for every row of w+ or every vector of S, as a list"""
    mapping: int = knob(1, lo=1, hi=64)
    """number of the parent, from 1, that gives mapping network, mean of w and noise maps"""
    rule: str = knob("corrected", choices=RULES)
    """corrected: every layer takes part, and the swap point is where it says; original: the coefficients of the
    published program, which swaps two layers later and never swaps the first 4 px layer"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for size in self.swap:
            if size < 4 or size > 1024 or size & (size - 1):
                raise OptionError(f"swap is {size}, expected a resolution: 4, 8, 16 ... 1024")
        if list(self.swap) != sorted(self.swap):
            raise OptionError(f"swap is {', '.join(map(str, self.swap))}, expected rising resolutions")
        if self.layers and self.weights is not None:
            raise OptionError("layers and weights both say which layers are taken; give one of them")
        if self.rule == "original" and (self.layers or self.weights is not None):
            raise OptionError("the original rule knows swap points only; leave out layers and weights")
