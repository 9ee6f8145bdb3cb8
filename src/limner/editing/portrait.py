"""What edits work on: codes with their noise maps and their changes of the generator; blending and painting them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from limner.errors import OptionError, ShapeError
from limner.latent import Latent, LayerMask, render
from limner.nn import deltas
from limner.nn.deltas import Delta, Strength
from limner.nn.detail import Detail
from limner.nn.stylegan2 import Generator, Noise
from limner.nn.tuned import unpack_tuned

ALL = LayerMask("all")


class Embedded(Protocol):
    """What an inversion returns and a latent file holds."""

    @property
    def latent(self) -> Latent: ...
    @property
    def noise(self) -> Sequence[Tensor] | None: ...
    @property
    def delta(self) -> Mapping[str, Tensor] | None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Portrait:
    """One face, ready to be edited.

    Attributes:
        latent: one code, of any space.
        noise: its noise maps, one (1, 1, h, w) per layer; None for the generator's own.
        changes: what it adds to the generator, pairs of a delta and its strength (see `limner.nn.deltas.apply`).
    """

    latent: Latent
    noise: tuple[Tensor, ...] | None = None
    changes: tuple[tuple[Delta, Strength], ...] = ()

    def __post_init__(self) -> None:
        if len(self.latent) != 1:
            raise ShapeError(
                f"a portrait is one face, but {len(self.latent)} codes came; take them one by one"
            )

    @staticmethod
    def of(source: Portrait | Latent | Embedded, index: int = 0) -> Portrait:
        """Return one face of anything that has codes: a portrait, codes, an inversion, a latent file.

        Args:
            source: the thing.
            index: which of its faces.

        Raises:
            ShapeError: there are not so many.
        """
        if isinstance(source, Portrait):
            return source
        latent = source if isinstance(source, Latent) else source.latent
        if not -len(latent) <= index < len(latent):
            raise ShapeError(f"face {index} was asked for, but there are {len(latent)} codes")
        index %= len(latent)
        code = latent[index].detach()
        if isinstance(source, Latent):
            return Portrait(code)
        noise = None
        if source.noise is not None:
            noise = tuple(m if len(m) == 1 else m[index : index + 1] for m in source.noise)
        each = getattr(source, "deltas", None)
        delta = each[index] if each is not None else source.delta
        return Portrait(code, noise, () if delta is None else ((unpack_tuned(delta), 1.0),))

    def delta(self, generator: Generator) -> dict[str, Tensor] | None:
        """Return all its changes of the generator as one delta, None where there are none."""
        if not self.changes:
            return None
        total: dict[str, Tensor] = {}
        for delta, strength in self.changes:
            weights = deltas.tensor_weights(generator, delta, strength)
            for name, change in delta.items():
                if weights[name]:
                    total[name] = (
                        total[name] + weights[name] * change if name in total else weights[name] * change
                    )
        return total or None


def own_generator(generator: Generator, portrait: Portrait) -> Generator:
    """Return the generator with the portrait's changes; itself where there are none."""
    return deltas.apply(generator, portrait.changes) if portrait.changes else generator


@torch.no_grad()
def paint(generator: Generator, portrait: Portrait, *, detail: Detail | None = None) -> Tensor:
    """Paint a portrait.

    Args:
        generator: the base; it is not changed.
        portrait: the face.
        detail: layers grown above it, which finish the picture at their size.

    Returns:
        The image, (1, 3, R, R), clipped to [-1, 1].
    """
    return _render(generator, portrait, detail=detail).clamp(-1, 1)


@torch.no_grad()
def paint_inside(
    generator: Generator,
    outside: Portrait,
    inside: Portrait,
    region: Tensor,
    *,
    detail: Detail | None = None,
) -> Tensor:
    """Paint one portrait within a region and another around it, joined in the features of every layer.

    Args:
        generator: the base.
        outside, inside: the two faces, mostly one and its edit.
        region: (1, 1, S, S), 0 to 1; 1 takes the inside.  S is the size of the image or, with ``detail``, the base's.
        detail: as for `paint`.

    Returns:
        The image, (1, 3, R, R); where the region is 0 it is exactly what ``outside`` paints.

    Raises:
        ShapeError: the region does not fit.

    Source: Abdal et al. 2020, "Image2StyleGAN++" (arXiv 1911.11544), section 5, activation tensor manipulations.
    """
    side = generator.resolution if detail is None else detail.resolution
    if tuple(region.shape) not in [(1, 1, size, size) for size in (side, generator.resolution)]:
        raise ShapeError(f"region has shape {tuple(region.shape)}, expected (1, 1, {side}, {side})")
    region = region.to(generator.w_avg)
    given, shares = region, {region.shape[-1]: region}
    if given.shape[-1] != side:
        region = torch.nn.functional.interpolate(given, (side, side), mode="bilinear", align_corners=False)
        shares[side] = region
    features: list[Tensor] = []

    def keep(_: int, x: Tensor) -> Tensor:
        features.append(x)
        return x

    def join(layer: int, x: Tensor) -> Tensor:
        size = x.shape[-1]
        if size not in shares:
            shares[size] = torch.nn.functional.interpolate(given, (size, size), mode="area")
        return torch.lerp(features[layer], x, shares[size].to(x))

    around = _render(generator, outside, keep, detail=detail)
    within = _render(generator, inside, join, detail=detail)
    # toRGB adds its own colours outside too; the last word is the picture's.
    return torch.lerp(around, within, region).clamp(-1, 1)


def _render(
    generator: Generator,
    portrait: Portrait,
    edit: Callable[[int, Tensor], Tensor] | None = None,
    *,
    detail: Detail | None = None,
) -> Tensor:
    noise: Noise = "constant" if portrait.noise is None else noise_maps(generator, portrait)
    latent, own = portrait.latent.to(generator.w_avg), own_generator(generator, portrait)
    if detail is not None:
        own = detail.grow(own)
        latent, noise = latent.grown(own), detail.grow_noise(noise)
    return render(own, latent, noise, edit=edit)


def noise_maps(generator: Generator, portrait: Portrait) -> tuple[Tensor, ...]:
    """Return the portrait's noise maps, or the generator's own, (1, 1, h, w) each.

    Raises:
        ShapeError: not one map per layer.
    """
    own = tuple(layer.get_buffer("noise")[None, None] for layer in generator.synthesis.layers)
    if portrait.noise is None:
        return own
    if len(portrait.noise) != len(own):
        raise ShapeError(f"the portrait has {len(portrait.noise)} noise maps, expected {len(own)}")
    return tuple(values.to(like) for values, like in zip(portrait.noise, own, strict=True))


@torch.no_grad()
def blend(generator: Generator, a: Portrait, b: Portrait, amount: float, mask: LayerMask = ALL) -> Portrait:
    """Go from one portrait towards another: codes, noise maps and changes of the generator alike, linearly.

    Args:
        generator: the base of both.
        a, b: the faces.
        amount: 0 gives ``a``, 1 gives ``b`` in the masked layers.
        mask: layers that take part, by their weights; the others stay those of ``a``.

    Returns:
        A portrait in w+; in s where one of both is there or the mask tells toRGB from convolutions.

    Raises:
        OptionError: ``amount`` is outside 0 to 1, or the mask does not fit the generator.
        ShapeError: codes or noise maps do not.
    """
    if not 0 <= amount <= 1:
        raise OptionError(f"amount is {amount}, expected 0 to 1")
    weights = amount * mask.styles(generator)  # (S,)
    a, b = (dataclasses.replace(one, latent=one.latent.to(generator.w_avg)) for one in (a, b))
    if mask.separates_rgb or "s" in (a.latent.space, b.latent.space):
        pairs = zip(a.latent.styles(generator), b.latent.styles(generator), weights.tolist(), strict=True)
        latent = Latent("s", tuple(torch.lerp(x, y, share) for x, y, share in pairs))
    else:
        rows = (amount * mask.rows(generator)).to(generator.w_avg)[:, None]
        latent = Latent("w+", torch.lerp(a.latent.w_plus(generator), b.latent.w_plus(generator), rows))
    noise = None
    if a.noise is not None or b.noise is not None:
        # Layer i, a convolution, is driven by the i-th vector that is no toRGB's.
        names: Sequence[str] = generator.synthesis.style_names
        shares = [
            share for share, name in zip(weights.tolist(), names, strict=True) if not name.endswith(".rgb")
        ]
        maps = zip(noise_maps(generator, a), noise_maps(generator, b), shares, strict=True)
        noise = tuple(torch.lerp(x, y, share) for x, y, share in maps)
    changes = [*_scaled(generator, a, 1 - weights), *_scaled(generator, b, weights)]
    return Portrait(latent, noise, tuple(changes))


def _scaled(generator: Generator, portrait: Portrait, weights: Tensor) -> list[tuple[Delta, Strength]]:
    """Return the portrait's changes with their strengths multiplied, per S-space vector."""
    if not weights.any():
        return []
    rows: Any = generator.synthesis.style_rows
    scaled: list[tuple[Delta, Strength]] = []
    for delta, strength in portrait.changes:
        if not isinstance(strength, (int, float)) and strength.ndim and len(strength) != len(rows):
            strength = strength[torch.tensor(rows)]
        scaled.append((delta, strength * weights))
    return scaled


@torch.no_grad()
def shift(generator: Generator, portrait: Portrait, offset: Tensor, mask: LayerMask = ALL) -> Portrait:
    """Move a portrait's codes by an offset in w+; noise maps and changes of the generator stay.

    Args:
        generator: the base.
        portrait: the face.
        offset: (L, w_dim) or (1, L, w_dim).
        mask: layers that move, by their weights.

    Returns:
        A portrait in w+.  Codes in s stay there: the affine layers lead the offset to them, which is exact, since
        these are linear.

    Raises:
        OptionError, ShapeError: the mask or the offset does not fit the generator.
    """
    size = (generator.num_rows, len(generator.w_avg))
    if tuple(offset.shape[-2:]) != size:
        raise ShapeError(f"the offset has shape {tuple(offset.shape)}, expected {size} for this generator")
    offset = offset.reshape(1, *size).to(generator.w_avg)
    latent = portrait.latent.to(generator.w_avg)
    if latent.space != "s" and not mask.separates_rgb:
        rows = mask.rows(generator).to(offset)[:, None]
        return dataclasses.replace(portrait, latent=Latent("w+", latent.w_plus(generator) + rows * offset))
    zero = Latent("w+", torch.zeros_like(offset)).styles(generator)
    moved = Latent("w+", offset).styles(generator)
    parts = zip(latent.styles(generator), moved, zero, mask.styles(generator).tolist(), strict=True)
    values = tuple(x + share * (there - here) for x, there, here, share in parts)
    return dataclasses.replace(portrait, latent=Latent("s", values))
