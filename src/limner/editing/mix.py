"""Morph and style mixing: blends of portraits over time and over layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np

from limner import media
from limner.editing.options import MixOptions, MorphOptions
from limner.editing.portrait import Portrait, blend, paint
from limner.errors import OptionError
from limner.latent import LayerMask
from limner.nn.detail import Detail
from limner.nn.stylegan2 import Generator


def ease(t: float, easing: str) -> float:
    """Return how far a morph is at time ``t``, both 0 to 1; every pace begins at 0 and ends at 1."""
    return {
        "linear": t,
        "smooth": 0.5 - 0.5 * math.cos(math.pi * t),
        "in": t * t,
        "out": 1 - (1 - t) ** 2,
    }[easing]


class Morph(Sequence[Portrait]):
    """The pictures of a morph, as portraits that are made when they are asked for; see `morph`."""

    def __init__(self, generator: Generator, portraits: Sequence[Portrait], options: MorphOptions):
        self.generator, self.options = generator, options
        self.mask = LayerMask(options.layers)
        self.mask.styles(generator)  # a mask that does not fit is said at once
        self.stops = [*portraits, portraits[0]] if options.loop else list(portraits)

    def __len__(self) -> int:
        return self.options.count_pictures(len(self.stops) - self.options.loop)

    @overload
    def __getitem__(self, index: int) -> Portrait: ...
    @overload
    def __getitem__(self, index: slice) -> list[Portrait]: ...
    def __getitem__(self, index: int | slice) -> Portrait | list[Portrait]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        steps = self.options.frames - 1
        stop, step = divmod(index % len(self), steps)
        if stop == len(self.stops) - 1:
            stop, step = stop - 1, steps
        # With a layer mask, the masked-out layers stay those of the first face throughout.
        a, b = (
            blend(self.generator, self.stops[0], one, 1.0, self.mask) for one in self.stops[stop : stop + 2]
        )
        return blend(self.generator, a, b, ease(step / steps, self.options.easing))


def morph(generator: Generator, portraits: Sequence[Portrait], options: MorphOptions | None = None) -> Morph:
    """Turn faces into each other, one after the other: w = (1 - t) w1 + t w2.

    Args:
        generator: the base.
        portraits: two or more; noise maps and changes of the generator are interpolated as the codes are.
        options: see `MorphOptions`.

    Returns:
        A sequence of portraits, from the first face to the last, both included.

    Raises:
        OptionError: fewer than two faces, or a layer mask that does not fit.

    Source: Abdal et al. 2019, "Image2StyleGAN" (arXiv 1904.03189), section 4.1.
    """
    if len(portraits) < 2:
        raise OptionError(f"a morph needs two faces or more, {len(portraits)} came")
    return Morph(generator, [Portrait.of(one) for one in portraits], options or MorphOptions())


def mix_styles(
    generator: Generator, portrait: Portrait, style: Portrait, options: MixOptions | None = None
) -> Portrait:
    """Take some layers of a face from another.

    Args:
        generator: the base.
        portrait: whose layers stay.
        style: whose layers come in, with their noise maps and its changes of these layers.
        options: see `MixOptions`.

    Raises:
        OptionError: the layer mask does not fit.

    Source: Karras et al. 2019 (arXiv 1812.04948), section 3.1; Abdal et al. 2019 (arXiv 1904.03189), section 4.2.
    """
    options = options or MixOptions()
    mask = upper_half(generator) if options.layers == "auto" else LayerMask(options.layers)
    return blend(generator, Portrait.of(portrait), Portrait.of(style), options.strength, mask)


def upper_half(generator: Generator) -> LayerMask:
    """Return the mask of the upper half of all rows: 9 and up of the 18 that the paper has."""
    return LayerMask(f"{generator.num_rows // 2}-")


def mix_sheet(
    generator: Generator,
    portraits: Sequence[Portrait],
    styles: Sequence[Portrait],
    options: MixOptions | None = None,
    *,
    names: Sequence[str] = (),
    style_names: Sequence[str] = (),
    detail: Detail | None = None,
) -> np.ndarray:
    """Return a sheet as in the papers: a face per row, a style per column, and their mixtures where they meet.

    Args:
        generator: the base.
        portraits, styles: the faces at the left and the styles above.
        options: see `MixOptions`.
        names, style_names: labels.
        detail: as for `limner.editing.paint`.

    Raises:
        OptionError: the layer mask does not fit.
    """

    def show(portrait: Portrait) -> np.ndarray:
        return media.to_pixels(paint(generator, portrait, detail=detail))[0]

    rows: list[list[np.ndarray | None]] = [[None, *(show(style) for style in styles)]]
    for portrait in portraits:
        mixtures = [show(mix_styles(generator, portrait, style, options)) for style in styles]
        rows.append([show(portrait), *mixtures])
    columns = ("", *style_names) if style_names else ()
    return media.make_sheet(rows, ("", *names) if names else (), columns)
