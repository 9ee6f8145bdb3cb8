"""The small HyperInverter: the compact encoder's codes, and a change of the generator's toRGB weights for one picture.

Two stages, as in the paper: codes first, then a network that looks at the picture and at what the codes paint and says
how the weights change.  Here it says, resolution by resolution, which colours are missing where; the weights that give
them are then solved for.  A toRGB layer is linear in its weight, so ridge regression on the generator's own features
finds the change that comes closest, and a learned spread per channel says which channels may be used for it.

Source: Dinh et al. 2022, "HyperInverter" (arXiv 2112.00719), section 3.2, the two stages and residual weights; Schmidhuber
1992, "Learning to Control Fast-Weight Memories", weights as sums of products of values and keys.
Differs: the first stage is the compact encoder, in w+; a frozen Lite0 looks in place of a trained IR-SE50; changes are
solved for, and of toRGB layers alone.  What the encoder's vectors tell of the loss's gradient for convolutions is 1 % of its
square (linear regression, 160 pictures), so their changes are not to be learned in minutes.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import KeyMismatchError, ShapeError
from limner.nn import deltas
from limner.nn.compact import CompactCore, CompactEncoder, resize
from limner.nn.hyperinverter import PREFIX, HyperCodes
from limner.nn.layers import upsample2
from limner.nn.precision import full_precision
from limner.nn.stylegan2 import Generator

UNUSED = 4
"""Length of what the encoder's core has and this one has not."""


class FirstStage(NamedTuple):
    """What the encoder and the unchanged generator make of pictures.

    Attributes:
        w_plus: codes, (B, L, w_dim).
        painted: what they paint, not clipped, (B, 3, R, R).
        keys: what every toRGB weight is multiplied with, (B, C, s, s), from 4 px up.
    """

    w_plus: Tensor
    painted: Tensor
    keys: list[Tensor]


class Colours(nn.Module):
    """What is missing at one resolution: the error itself, and what a small network adds to it.

    Args:
        width: of the pyramid.
        hidden: channels inside.
        channels: of the generator's features.
    """

    def __init__(self, *, width: int, hidden: int, channels: int):
        super().__init__()
        self.look = nn.Conv2d(6, hidden, 3, padding=1)
        self.lift = nn.Conv2d(width, hidden, 1)
        self.tell = nn.Conv2d(hidden, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(3))
        self.spread = nn.Parameter(torch.zeros(channels))
        self.ridge = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.tell.weight)
        nn.init.zeros_(self.get_parameter("tell.bias"))

    def forward(self, error: Tensor, target: Tensor, seen: Tensor) -> Tensor:
        """Error and picture (B, 3, s, s), map of the pyramid (B, width, h, h) -> wanted colours (B, 3, s, s)."""
        size = error.shape[-1]
        lifted = self.lift(seen)
        if lifted.shape[-1] > size:
            lifted = F.adaptive_avg_pool2d(lifted, size)
        elif lifted.shape[-1] < size:
            lifted = F.interpolate(lifted, (size, size), mode="bilinear", align_corners=False)
        x = F.leaky_relu(self.look(torch.cat([error, target], 1)) + lifted, 0.2)
        return error * self.gain.view(1, -1, 1, 1) + self.tell(x)

    def solve(self, wanted: Tensor, keys: Tensor) -> Tensor:
        """Wanted colours (B, 3, s, s), keys (B, C, s, s) -> the change of the weight that comes closest, (B, 3, C)."""
        return ridge(wanted.flatten(2), keys.flatten(2), (0.5 * self.spread).exp(), self.ridge.exp())


@full_precision
def ridge(wanted: Tensor, keys: Tensor, spread: Tensor, amount: Tensor) -> Tensor:
    """Return the matrices M (B, N, C) of least squared error |M keys - wanted|² + amount t |M / spread|².

    Args:
        wanted: (B, N, P).
        keys: (B, C, P).
        spread: deviations expected of the columns of M, (C,).
        amount: of the penalty, in units of t, the mean of the scaled keys' squared lengths, channel by channel.
    """
    keys = keys * spread[:, None]
    channels, positions = keys.shape[1:]
    fewer = positions <= channels
    gram = keys.transpose(1, 2) @ keys if fewer else keys @ keys.transpose(1, 2)
    penalty = amount * keys.square().sum((1, 2)).clamp_min(1e-8) / channels  # (B,)
    gram = gram + penalty[:, None, None] * torch.eye(len(gram[0]), dtype=gram.dtype, device=gram.device)
    if fewer:  # (wanted gram⁻¹) keysᵀ
        found = torch.linalg.solve(gram, wanted, left=False) @ keys.transpose(1, 2)
    else:  # (wanted keysᵀ) gram⁻¹
        found = torch.linalg.solve(gram, wanted @ keys.transpose(1, 2), left=False)
    return found * spread


class HyperCore(CompactCore):
    """All that is trained: pyramid, and wanted colours per resolution.

    Args:
        targets: name -> shape of the toRGB weights that change, from 4 px up, see `rgb_layers`.
        num_rows, w_dim: of the generator.
        channels, input_px, width: see `CompactCore`.
        hidden: channels of the networks that say which colours are wanted.
    """

    def __init__(
        self,
        *,
        targets: Mapping[str, Sequence[int]],
        num_rows: int,
        w_dim: int,
        channels: Sequence[int],
        input_px: int = 128,
        width: int = 48,
        hidden: int = 24,
    ):
        super().__init__(
            num_rows=num_rows,
            w_dim=w_dim,
            channels=channels,
            input_px=input_px,
            width=width,
            gather=UNUSED,
            hidden=UNUSED,
            rank=UNUSED,
        )
        if not targets or hidden < 1:
            raise ShapeError(
                f"{len(targets)} target layers and {hidden} channels, expected at least 1 of both"
            )
        del self.base, self.rows, self.decode, self.shrink, self.gather, self.vectors  # the heads of codes
        for own in ("in_channels", "rank", "gather"):
            self._config.pop(own)
        self.targets = {name: tuple(shape) for name, shape in targets.items()}
        self._config |= {
            "targets": {name: list(shape) for name, shape in targets.items()},
            "hidden": hidden,
        }
        self.colours = nn.ModuleList(
            Colours(width=width, hidden=hidden, channels=shape[1]) for shape in self.targets.values()
        )

    def forward(  # type: ignore[override]
        self, target: Sequence[Tensor], current: Sequence[Tensor], image: Tensor, first: FirstStage
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Say how much every weight changes.

        Args:
            target: views of the picture, see `CompactEncoder.look`.
            current: views of what its codes paint.
            image: the pictures, (B, 3, R, R).
            first: what the first stage made of them.

        Returns:
            Name of a weight -> its change, (B, 3, C, 1, 1); and the pictures with it, not clipped.
        """
        maps = self.pyramid(target, current)
        painted, found = first.painted.float(), {}
        for name, colours, keys in zip(self.targets, self.colours, first.keys, strict=True):
            size = keys.shape[-1]
            error = F.adaptive_avg_pool2d(image - painted.clamp(-1, 1), size)
            seen = max((x for x in maps if x.shape[-1] <= size), key=lambda x: x.shape[-1], default=maps[0])
            wanted = colours(error, F.adaptive_avg_pool2d(image, size), seen)
            change = cast(Colours, colours).solve(wanted, keys)  # (B, 3, C)
            found[name] = change[..., None, None]
            painted = painted + enlarged(change, keys, painted.shape[-1])
        return found, painted


@full_precision
def enlarged(change: Tensor, keys: Tensor, side: int) -> Tensor:
    """Return what a change (B, 3, C) of a toRGB weight with keys (B, C, s, s) adds to the picture, (B, 3, side, side)."""
    added = (change @ keys.flatten(2)).unflatten(2, keys.shape[2:])
    while added.shape[-1] < side:
        added = upsample2(added)
    return added


def rgb_layers(generator: Generator) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the toRGB weights, from 4 px up.

    Raises:
        ShapeError: the generator has none, or limits what they give.
    """
    layers: Any = getattr(generator.synthesis, "to_rgb", ())
    if not len(layers) or any(layer.clamp is not None for layer in layers):
        raise ShapeError("a small HyperInverter is for StyleGAN2 generators whose colours have no limit")
    return {f"{PREFIX}to_rgb.{j}.weight": tuple(layer.weight.shape) for j, layer in enumerate(layers)}


class CompactHyper(nn.Module):
    """A hyper core together with the frozen compact encoder that comes before it.

    Like an `limner.nn.encoders.Encoder` it has a ``family`` and a number of ``iterations``, one.

    Args:
        encoder: frozen; its trunk looks for both, and the weights of neither are saved with the core.
        core: what is trained.
        refinements: steps of the encoder.
    """

    family = "hyper"
    iterations = 1

    def __init__(self, *, encoder: CompactEncoder, core: HyperCore, refinements: int = 2):
        super().__init__()
        self.encoder, self.core, self.refinements = encoder, core, refinements
        self.base = encoder.base
        self._checked: weakref.ref[Generator] | None = None

    def views(self, image: Tensor) -> list[Tensor]:
        """Return the trunk's views of a picture (B, 3, H, H)."""
        return self.encoder.look(resize(image, self.core.input_px))[1]

    @torch.no_grad()
    def first(self, generator: Generator, image: Tensor) -> FirstStage:
        """Return the encoder's codes of pictures (B, 3, H, H), what they paint, and the keys of the toRGB layers."""
        synthesis = generator.synthesis
        w_plus = self.encoder.encode(generator, image, steps=self.refinements)[-1].float()
        styles = synthesis.styles(w_plus)
        scales = [x for x, name in zip(styles, synthesis.style_names, strict=True) if name.endswith("rgb")]
        painted, keys = torch.empty(0), []
        for (features, painted), scale in zip(synthesis.stages(styles), scales, strict=True):  # noqa: B007
            keys.append(features * (scale / features.shape[1] ** 0.5)[:, :, None, None])
        return FirstStage(w_plus, painted, keys)

    def residuals(
        self, image: Tensor, target: Sequence[Tensor], first: FirstStage
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the changes of the generator's weights, (B, ...) each, and the pictures with them, not clipped.

        Args:
            image: (B, 3, R, R), of the generator's size.
            target: its views.
            first: see `first`.
        """
        current = self.views(first.painted.clamp(-1, 1))
        return self.core(target, current, image, first)

    def forward(self, generator: Generator, image: Tensor) -> HyperCodes:
        """Find codes, in w+, and changes of pictures.

        Args:
            generator: the one it was trained with.
            image: (B, 3, H, H), [-1, 1], FFHQ-aligned.

        Raises:
            KeyMismatchError: the generator is another.
        """
        self.check(generator)
        first = self.first(generator, image)
        changes, _ = self.residuals(resize(image, generator.resolution), self.views(image), first)
        return HyperCodes(first.w_plus, first.painted.clamp(-1, 1), changes)

    def check(self, generator: Generator) -> None:
        """Raise `KeyMismatchError` unless this network was trained for the generator."""
        if self._checked is not None and self._checked() is generator:
            return
        self.encoder.check_base(generator)
        shapes = {name: tuple(value.shape) for name, value in generator.named_parameters()}
        if wrong := [name for name, shape in self.core.targets.items() if shapes.get(name) != shape]:
            raise KeyMismatchError(
                f"this HyperInverter changes weights that the generator lacks or has in another shape, such as {wrong[0]}; "
                "train one for it with limner train hyper"
            )
        self._checked = weakref.ref(generator)

    def stamp(self) -> dict[str, Any]:
        """Return what a file says of the encoder that the core belongs to."""
        return {"digest": deltas.digest(self.encoder.core), "refinements": self.refinements}
