"""The latent spaces of a style-based generator, and the ways from one to the next.

=====  ==========================  ====================================================
space  values                      way to the next
=====  ==========================  ====================================================
z      (B, z_dim), N(0, I)         mapping network -> w; the same z in every row -> z+
z+     (B, L, z_dim)               mapping network on every row -> w+
w      (B, w_dim)                  the same w in every row -> w+
w+     (B, L, w_dim)               affine layers -> s
s      one (B, C) per affine       the end: 26 vectors at 1024 px
=====  ==========================  ====================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from limner.errors import OptionError, ShapeError

Space = Literal["z", "z+", "w", "w+", "s"]
SPACES: tuple[Space, ...] = get_args(Space)
Noise = Literal["constant", "random", "none"] | Sequence[Tensor]

_NDIM = {"z": 2, "z+": 3, "w": 2, "w+": 3, "s": 2}
_SHAPES = {"z": "(B, z_dim)", "z+": "(B, L, z_dim)", "w": "(B, w_dim)", "w+": "(B, L, w_dim)"}
# Where each space leads, nearest first.
_NEXT: dict[str, tuple[str, ...]] = {"z": ("z+", "w"), "z+": ("w+",), "w": ("w+",), "w+": ("s",), "s": ()}


class GeneratorLike(Protocol):
    """What latents need of a generator; `limner.nn.stylegan2.Generator` has it."""

    w_avg: Tensor
    mapping: Any
    synthesis: Any

    @property
    def num_rows(self) -> int: ...
    @property
    def resolution(self) -> int: ...
    def broadcast(self, w: Tensor) -> Tensor: ...
    def map_z_plus(self, z_plus: Tensor, labels: Tensor | None = None) -> Tensor: ...
    def truncate(self, w_plus: Tensor, psi: float, psi_cutoff: int | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Latent:
    """A batch of codes that knows its space.

    Args:
        space: one of ``z``, ``z+``, ``w``, ``w+``, ``s``.
        values: a tensor of the space's shape, for ``s`` a sequence of (B, C) tensors.

    Raises:
        OptionError: no such space.
        ShapeError: the values do not have the space's shape.
    """

    space: Space
    values: Tensor | tuple[Tensor, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise OptionError(f"space is {self.space!r}, expected one of {', '.join(SPACES)}")
        values: Any = self.values
        if self.space == "s":
            if isinstance(values, Tensor):
                raise ShapeError(
                    "s space takes a sequence of (B, C) tensors, one per affine layer; a tensor was given"
                )
            values = tuple(values)
            object.__setattr__(self, "values", values)
            if not values or any(v.ndim != 2 or len(v) != len(values[0]) for v in values):
                shapes = [tuple(v.shape) for v in values]
                raise ShapeError(f"s space takes (B, C) tensors of one batch, found {shapes or 'none'}")
        elif isinstance(values, Tensor):
            if values.ndim != _NDIM[self.space]:
                raise ShapeError(
                    f"{self.space} takes {_SHAPES[self.space]}, found shape {tuple(values.shape)}"
                )
        else:
            raise ShapeError(
                f"{self.space} takes a tensor {_SHAPES[self.space]}, found {type(values).__name__}"
            )

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int | slice | Sequence[int]) -> Latent:
        """Return some of the codes; the batch dimension stays."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(index)
            index = slice(index, index + 1 or None)
        return self._map(lambda part: part[index])

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors: one, or in s space one per affine layer."""
        return (self.values,) if isinstance(self.values, Tensor) else self.values

    @property
    def tensor(self) -> Tensor:
        """The values of every space but s.

        Raises:
            ShapeError: this is an s-space code.
        """
        if not isinstance(self.values, Tensor):
            raise ShapeError("an s-space code is a list of vectors, not one tensor")
        return self.values

    def _map(self, function: Callable[[Tensor], Tensor]) -> Latent:
        values = tuple(function(part) for part in self.parts)
        return Latent(self.space, values if self.space == "s" else values[0])

    def to(self, *args: Any, **kwargs: Any) -> Latent:
        """Move or convert the values, as `torch.Tensor.to`."""
        return self._map(lambda part: part.to(*args, **kwargs))

    def detach(self) -> Latent:
        """Cut the values off the graph."""
        return self._map(lambda part: part.detach())

    def clone(self) -> Latent:
        """Copy the values."""
        return self._map(lambda part: part.clone())

    @staticmethod
    def cat(latents: Sequence[Latent]) -> Latent:
        """Join batches of one space.

        Raises:
            OptionError: none were given, or their spaces differ.
        """
        spaces = {latent.space for latent in latents}
        if len(spaces) != 1:
            raise OptionError(
                f"latents of spaces {sorted(spaces)} cannot be joined; bring them to one space first"
            )
        values = tuple(torch.cat(parts) for parts in zip(*(latent.parts for latent in latents), strict=True))
        return Latent(latents[0].space, values if latents[0].space == "s" else values[0])

    def to_space(self, space: Space, generator: GeneratorLike, *, labels: Tensor | None = None) -> Latent:
        """Bring the codes to a later space of the generator.

        Args:
            space: where to.
            generator: its mapping network and affine layers lead the way.
            labels: one-hot classes (B, label_dim) of a class-conditional model, for codes in z or z+.

        Raises:
            OptionError: the way leads only forward: z, then z+ or w, then w+, then s.
            ShapeError: the codes do not fit the generator.
        """
        if self.space == space:
            return self
        if space not in SPACES:
            raise OptionError(f"space is {space!r}, expected one of {', '.join(SPACES)}")
        if space == "z+" and self.space == "z":
            rows = self.tensor[:, None].expand(-1, generator.num_rows, -1)
            return Latent("z+", rows)
        if space == "w" and self.space == "z":
            return Latent("w", generator.mapping(self.tensor, labels))
        if space == "w+":
            return Latent("w+", self._w_plus(generator, labels))
        if space == "s" and self.space != "s":
            return Latent("s", tuple(generator.synthesis.styles(self._w_plus(generator, labels))))
        ways = [name for name in SPACES if name in _reach(self.space)]
        raise OptionError(
            f"a code in {self.space} cannot be brought to {space}"
            + (f"; it can to {', '.join(ways)}" if ways else "")
            + "; invert the image in that space instead"
        )

    def _w_plus(self, generator: GeneratorLike, labels: Tensor | None) -> Tensor:
        if self.space == "z":
            return generator.broadcast(generator.mapping(self.tensor, labels))
        if self.space == "z+":
            return generator.map_z_plus(self._rows(generator), labels)
        if self.space == "w":
            return generator.broadcast(self.tensor)
        if self.space == "w+":
            return self._rows(generator)
        raise OptionError(
            "a code in s cannot be brought back to w+; use it in s, or invert the image in w+ instead"
        )

    def _rows(self, generator: GeneratorLike) -> Tensor:
        if self.tensor.shape[1] != generator.num_rows:
            raise ShapeError(
                f"the {self.space} code has {self.tensor.shape[1]} rows, expected {generator.num_rows} "
                f"for a {generator.resolution} px generator"
            )
        return self.tensor

    def grown(self, generator: GeneratorLike) -> Latent:
        """Return the codes for a generator with more layers on top: they get what the last row has.

        Codes in s have no rows; there the new vectors are those of the mean w.

        Args:
            generator: the larger one.

        Raises:
            ShapeError: it has fewer layers than the codes.
        """
        if self.space in ("z", "w"):
            return self
        if self.space == "s":
            mean = generator.synthesis.styles(generator.broadcast(generator.w_avg[None]))
            more = [row.to(self.parts[0]).expand(len(self), -1) for row in mean[len(self.parts) :]]
            return Latent("s", (*self.parts, *more))
        missing = generator.num_rows - self.tensor.shape[1]
        if missing < 0:
            raise ShapeError(
                f"the {self.space} code has {self.tensor.shape[1]} rows, more than the {generator.num_rows} of a "
                f"{generator.resolution} px generator"
            )
        return Latent(self.space, torch.cat([self.tensor, self.tensor[:, -1:].expand(-1, missing, -1)], 1))

    def w_plus(self, generator: GeneratorLike, *, labels: Tensor | None = None) -> Tensor:
        """Return the codes as w+ (B, L, w_dim); see `to_space`."""
        return self._w_plus(generator, labels)

    def styles(self, generator: GeneratorLike, *, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the codes as S-space vectors; see `to_space`."""
        return self.to_space("s", generator, labels=labels).parts


def _reach(space: str) -> set[str]:
    found = set(_NEXT[space])
    for name in _NEXT[space]:
        found |= _reach(name)
    return found


def truncate(
    generator: GeneratorLike,
    latent: Latent,
    psi: float,
    psi_cutoff: int | None = None,
    *,
    labels: Tensor | None = None,
) -> Latent:
    """Pull codes towards the mean: w_avg + psi (w - w_avg).

    Args:
        generator: its ``w_avg`` is the mean.
        latent: codes of any space.
        psi: 1 changes nothing, 0 gives the mean face.
        psi_cutoff: how many rows of w+, from the input, are pulled; None for all.
        labels: see `Latent.to_space`.

    Returns:
        The codes in w+; codes in s stay there, each vector pulled to the mean's by its row.
    """
    if latent.space != "s":
        return Latent("w+", generator.truncate(latent.w_plus(generator, labels=labels), psi, psi_cutoff))
    cutoff = generator.num_rows if psi_cutoff is None else psi_cutoff
    mean = generator.synthesis.styles(generator.broadcast(generator.w_avg[None]))
    pulled = zip(latent.parts, mean, generator.synthesis.style_rows, strict=True)
    return Latent("s", tuple(torch.lerp(m.to(v), v, psi) if row < cutoff else v for v, m, row in pulled))


def render(
    generator: GeneratorLike,
    latent: Latent,
    noise: Noise = "constant",
    *,
    psi: float = 1.0,
    psi_cutoff: int | None = None,
    labels: Tensor | None = None,
    rng: torch.Generator | None = None,
    edit: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """Codes of any space -> image (B, 3, H, W), about [-1, 1], not clipped.

    Args:
        generator: draws the image.
        latent: the codes.
        noise: ``constant``, ``random`` (from ``rng``), ``none``, or one map per layer.
        psi, psi_cutoff: see `truncate`.
        labels: see `Latent.to_space`.
        rng: source of random noise.
        edit: sees the features after every layer, see `limner.nn.stylegan2.SynthesisNetwork.from_styles`.
    """
    if psi != 1:
        latent = truncate(generator, latent, psi, psi_cutoff, labels=labels)
    styles = latent.styles(generator, labels=labels)
    return generator.synthesis.from_styles(styles, noise, rng=rng, edit=edit)


@dataclass(frozen=True, eq=False)
class WStatistics:
    """How w is spread.

    Attributes:
        mean: (w_dim,).
        std: standard deviation of every entry, (w_dim,).
        radius: root mean squared distance of w from its mean; perturbations of w are scaled by it.
    """

    mean: Tensor
    std: Tensor
    radius: float


@torch.no_grad()
def w_statistics(
    generator: GeneratorLike,
    count: int = 10_000,
    *,
    rng: torch.Generator | None = None,
    labels: Tensor | None = None,
) -> WStatistics:
    """Measure mean and spread of w over random z.

    Args:
        generator: its mapping network is sampled.
        count: number of draws, at least 2.
        rng: source of z, on the CPU, so that every device draws the same.
        labels: one one-hot class (1, label_dim) for all draws of a class-conditional model.
    """
    like = generator.w_avg
    chunks = []
    for start in range(0, count, 1000):
        z = torch.randn(min(1000, count - start), generator.mapping.z_dim, generator=rng).to(like)
        chunks.append(generator.mapping(z, None if labels is None else labels.to(like).expand(len(z), -1)))
    return spread(torch.cat(chunks))


def spread(w: Tensor) -> WStatistics:
    """Return mean and spread of given w, (N, w_dim)."""
    mean = w.mean(0)
    squares = (w - mean).square().sum(0) / len(w)
    return WStatistics(mean, squares.sqrt(), math.sqrt(float(squares.sum())))
