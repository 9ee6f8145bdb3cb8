"""Layer masks: which rows of w+, or which S-space vectors, something applies to, and how much.

A mask is text, the same on the command line, in recipes and in Python: parts joined by commas, later parts win ::

    7-17                rows 7 to 17          coarse  middle  fine             rows 0-3, 4-7, 8 and up
    7-  -6  9,11,15     open ranges, lists    psp-coarse psp-medium psp-fine   rows 0-2, 3-6, 7 and up
    32px-  64px-256px   by resolution         all  none
    0-6=0.5             with a weight         rgb  no-rgb                      the toRGB layers alone on, off
    fine.rgb  8-.conv   of some rows only toRGB, only convolutions
    s:3  s:0-5  s:32.up S-space vectors by number or name (SynthesisNetwork.style_names)

Plain numbers are rows counted from the input, never rescaled with the size of the model.  Numbers with ``px``, and
numbers from 32 on, which no row has, are resolutions: ``32-`` and ``64-256`` mean the same at every size, and sizes
that a model lacks are left out.  A row belongs to the resolution of the convolution it drives (the last row, which
drives toRGB alone, to the full one); an S-space vector to its own layer's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from limner.errors import OptionError
from limner.latent.spaces import GeneratorLike, Latent

OPEN = 1 << 30
NAMES: dict[str, tuple[int, int]] = {
    "coarse": (0, 3),
    "middle": (4, 7),
    "fine": (8, OPEN),
    "psp-coarse": (0, 2),
    "psp-medium": (3, 6),
    "psp-fine": (7, OPEN),
    "all": (0, OPEN),
}
_FIRST_RESOLUTION = 32
_RANGE = re.compile(r"(?:(?P<lo>\d+)(?P<lo_px>px)?)?(?P<dash>-(?:(?P<hi>\d+)(?P<hi_px>px)?)?)?")


@dataclass(frozen=True)
class MaskPart:
    """One part of a mask.

    Attributes:
        unit: what ``lo`` and ``hi`` (both included) count: w+ ``rows``, ``px``, S-space ``vectors``, or the ``name``
            of one S-space vector.
        only: the toRGB layers alone, the convolutions alone, or both (None).
        explicit: numbers that were written out, so that one beyond the model is a mistake.
    """

    unit: Literal["rows", "px", "vectors", "name"]
    lo: int
    hi: int
    weight: float
    only: Literal["rgb", "conv"] | None = None
    explicit: bool = False
    name: str = ""


@dataclass(frozen=True)
class LayerMask:
    """A parsed mask; the grammar stands in the module's text.

    Raises:
        OptionError: the text cannot be read.
    """

    text: str
    parts: tuple[MaskPart, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pieces = [piece.strip().lower() for piece in self.text.split(",")]
        if not all(pieces):
            raise OptionError(f"layer mask {self.text!r} has an empty part; write 'none' for no layers")
        object.__setattr__(
            self, "parts", tuple(part for piece in pieces for part in _parse(piece, self.text))
        )

    def __str__(self) -> str:
        return self.text

    @property
    def separates_rgb(self) -> bool:
        """Whether it tells toRGB from convolutions, which needs S space: both may hang on one row of w+."""
        return any(part.only or part.unit in ("vectors", "name") for part in self.parts)

    def rows(self, generator: GeneratorLike) -> Tensor:
        """Return the weight of every row of w+, (L,) from 0 to 1.

        Raises:
            OptionError: a written-out row lies beyond the model, or the mask needs S space (`separates_rgb`).
        """
        if self.separates_rgb:
            raise OptionError(
                f"layer mask {self.text!r} tells toRGB from convolutions, but a row of w+ may drive one of each; "
                "use it on s-space codes or weights, or write it in rows"
            )
        count, full = generator.num_rows, generator.resolution
        resolutions = [0] * count
        for row, name in zip(generator.synthesis.style_rows, generator.synthesis.style_names, strict=True):
            size, _, kind = name.partition(".")
            resolutions[row] = int(size) if kind != "rgb" else resolutions[row] or int(size)
        weights = torch.zeros(count)
        for part in self.parts:
            self._check(part, count, f"rows 0-{count - 1}", full)
            for row, resolution in enumerate(resolutions):
                if part.lo <= (row if part.unit == "rows" else resolution) <= part.hi:
                    weights[row] = part.weight
        return weights

    def styles(self, generator: GeneratorLike) -> Tensor:
        """Return the weight of every S-space vector, (S,) from 0 to 1, in the order of ``synthesis.styles``.

        Raises:
            OptionError: a written-out row, vector or name lies beyond the model.
        """
        rows: Sequence[int] = generator.synthesis.style_rows
        names: Sequence[str] = generator.synthesis.style_names
        full = generator.resolution
        weights = torch.zeros(len(rows))
        for part in self.parts:
            if part.unit == "vectors":
                self._check(part, len(rows), f"S-space vectors 0-{len(rows) - 1}", full)
            elif part.unit == "rows":
                self._check(part, generator.num_rows, f"rows 0-{generator.num_rows - 1}", full)
            elif part.unit == "name" and part.name not in names:
                raise OptionError(
                    f"layer mask {self.text!r}: a {full} px generator has no {part.name!r}; it has {', '.join(names)}"
                )
            for i, (row, name) in enumerate(zip(rows, names, strict=True)):
                is_rgb = name.endswith(".rgb")
                if part.only and (part.only == "rgb") != is_rgb:
                    continue
                if part.unit == "name":
                    hit = name == part.name
                else:
                    place = {"rows": row, "px": int(name.split(".")[0]), "vectors": i}[part.unit]
                    hit = part.lo <= place <= part.hi
                if hit:
                    weights[i] = part.weight
        return weights

    def _check(self, part: MaskPart, count: int, have: str, full: int) -> None:
        last = part.lo if part.hi == OPEN else part.hi
        if part.explicit and part.unit != "px" and part.hi != OPEN and last >= count:
            raise OptionError(
                f"layer mask {self.text!r} names {last}, but a {full} px generator has {have}; "
                f"write an open range such as {part.lo}- for 'up to the last'"
            )


def _parse(piece: str, text: str) -> list[MaskPart]:
    selector, _, number = (word.strip() for word in piece.partition("="))
    weight = 1.0
    if "=" in piece:
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not 0 <= weight <= 1:
            raise OptionError(f"layer mask {text!r}: weight {number!r} is not a number from 0 to 1")
    if selector == "none":
        return [MaskPart("rows", 0, OPEN, 0.0)]
    if selector == "no-rgb":
        if "=" in piece:
            raise OptionError(f"layer mask {text!r}: no-rgb takes no weight; write rgb={number}")
        return [MaskPart("rows", 0, OPEN, 0.0, "rgb")]
    if selector == "rgb":
        return [MaskPart("rows", 0, OPEN, weight, "rgb")]
    if selector.startswith("s:"):
        return [_parse_vectors(selector[2:], weight, text)]
    only: Literal["rgb", "conv"] | None = None
    for suffix in ("rgb", "conv"):
        if selector.endswith("." + suffix):
            selector, only = selector.removesuffix("." + suffix), suffix
    if selector in NAMES:
        return [MaskPart("rows", *NAMES[selector], weight, only)]
    return [_parse_range(selector, weight, only, text)]


def _parse_vectors(selector: str, weight: float, text: str) -> MaskPart:
    match = re.fullmatch(r"(\d+)?(-)?(\d+)?", selector)
    if match is None or not (match[1] or match[3]):
        if re.fullmatch(r"\d+\.(const|up|conv|rgb)", selector):
            return MaskPart("name", 0, 0, weight, explicit=True, name=selector)
        raise OptionError(
            f"layer mask {text!r}: {'s:' + selector!r} is no S-space vector; write s:3, s:0-5, s:8- or s:32.up"
        )
    lo = int(match[1] or 0)
    hi = lo if not match[2] else int(match[3] or OPEN)
    return MaskPart("vectors", lo, _ordered(lo, hi, text), weight, explicit=True)


def _parse_range(selector: str, weight: float, only: Literal["rgb", "conv"] | None, text: str) -> MaskPart:
    match = _RANGE.fullmatch(selector)
    if match is None or not (match["lo"] or match["hi"]):
        words = [*NAMES, "none", "rgb", "no-rgb"]
        close = difflib.get_close_matches(selector, words, 1)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else f"expected rows such as 7-17, sizes such as 32px-, or {', '.join(words)}"
        )
        raise OptionError(f"layer mask {text!r}: cannot read {selector!r}; {hint}")
    lo = int(match["lo"] or 0)
    hi = lo if not match["dash"] else int(match["hi"] or OPEN)
    by_size = match["lo_px"] or match["hi_px"] or any(_FIRST_RESOLUTION <= n < OPEN for n in (lo, hi))
    if not by_size:
        return MaskPart("rows", lo, _ordered(lo, hi, text), weight, only, explicit=True)
    for size in (match["lo"], match["hi"]):
        if size and (int(size) < 4 or int(size) & (int(size) - 1)):
            raise OptionError(
                f"layer mask {text!r}: {size} is no resolution; layers have 4, 8, 16 ... 1024 px"
            )
    return MaskPart("px", lo, _ordered(lo, hi, text), weight, only, explicit=True)


def _ordered(lo: int, hi: int, text: str) -> int:
    if hi < lo:
        raise OptionError(f"layer mask {text!r}: the range {lo}-{hi} runs backwards")
    return hi


def mix(
    a: Latent, b: Latent, mask: LayerMask, generator: GeneratorLike, *, labels: Tensor | None = None
) -> Latent:
    """Return ``a`` with the masked layers taken from ``b``, by the mask's weights.

    Args:
        a, b: codes of any spaces; one code serves a whole batch.
        mask: weight 1 takes the layer from ``b``, 0 keeps it, between blends linearly.
        generator: tells rows and vectors, and leads the codes to one space.
        labels: see `Latent.to_space`.

    Returns:
        Codes in w+; in s where one of both is there already or the mask needs it.

    Raises:
        OptionError, ShapeError: as `LayerMask.rows`, `LayerMask.styles` and `Latent.to_space`.
    """
    if mask.separates_rgb or "s" in (a.space, b.space):
        pairs = zip(a.styles(generator, labels=labels), b.styles(generator, labels=labels), strict=True)
        weights = mask.styles(generator)
        return Latent(
            "s", tuple(torch.lerp(x, y, float(w)) for (x, y), w in zip(pairs, weights, strict=True))
        )
    x, y = a.w_plus(generator, labels=labels), b.w_plus(generator, labels=labels)
    return Latent("w+", torch.lerp(x, y, mask.rows(generator).to(x)[:, None]))
