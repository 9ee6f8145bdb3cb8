"""The small HyperInverter: the compact encoder's codes, and a low-rank change of the generator's weights.

Frozen features of the picture and of what its codes paint go through a pyramid to a vector per group of layers; from it
every layer's change is made as a few pairs of factors, one number per output and one per input channel.

Source: Dinh et al. 2022, "HyperInverter" (arXiv 2112.00719), section 3.2; Alaluf et al. 2022, "HyperStyle" (arXiv
2111.15666), section 3.2, for changes that multiply and are shared by a kernel's pixels.
Differs: the first stage is the compact encoder, in w+; a frozen Lite0 looks in place of a trained IR-SE50; changes are of
low rank, so that the network is a hundredth of the published one.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import KeyMismatchError, ShapeError
from limner.nn import deltas
from limner.nn.compact import CompactCore, CompactEncoder, resize
from limner.nn.hyperinverter import HyperCodes, code_row, module_name
from limner.nn.stylegan2 import Generator

RANK_UNUSED = 4
GAIN = 0.1
"""Share of a head's numbers that becomes the change: a step of the optimiser at a usual rate then moves the picture a
little, where it made it worse for many steps without (first steps at 128 px)."""


class HyperCore(CompactCore):
    """All that is trained: pyramid and one head per layer of the generator.

    Args:
        targets: name -> shape of the weights that change, see `limner.nn.hyperinverter.target_layers`.
        factors: pairs of factors per layer; a single one could do no more than the codes.
        num_rows, w_dim: of the generator.
        channels, input_px, width, gather, hidden: see `CompactCore`.
    """

    def __init__(
        self,
        *,
        targets: Mapping[str, Sequence[int]],
        factors: int = 4,
        num_rows: int,
        w_dim: int,
        channels: Sequence[int],
        input_px: int = 128,
        width: int = 64,
        gather: int = 16,
        hidden: int = 128,
    ):
        super().__init__(
            num_rows=num_rows,
            w_dim=w_dim,
            channels=channels,
            input_px=input_px,
            width=width,
            gather=gather,
            hidden=hidden,
            rank=RANK_UNUSED,
        )
        last = max((code_row(name) for name in targets), default=num_rows)
        if last >= num_rows or factors < 1:
            raise ShapeError(
                f"{len(targets)} target layers that need {last + 1} rows and {factors} factors; expected some layers, "
                f"no more rows than {num_rows}, at least one factor"
            )
        del self.base, self.rows, self.decode  # the heads of codes
        for own in ("in_channels", "rank"):
            self._config.pop(own)
        self.targets = {name: tuple(shape) for name, shape in targets.items()}
        self.factors = factors
        self._config |= {
            "targets": {name: list(shape) for name, shape in targets.items()},
            "factors": factors,
        }
        heads = {}
        for name, shape in self.targets.items():
            head = nn.Linear(hidden, factors * (shape[0] + shape[1]))
            # Inputs' factors begin at zero, outputs' at random: nothing changes at first, and both learn.
            outputs = factors * shape[0]
            with torch.no_grad():
                head.weight[outputs:].zero_()
                head.bias[outputs:].zero_()
                head.bias[:outputs].normal_()
            heads[module_name(name)] = head
        self.heads = nn.ModuleDict(heads)

    def forward(self, target: Sequence[Tensor], current: Sequence[Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        """Say how much every weight changes, as a share of itself.

        Args:
            target: views of the picture, see `CompactEncoder.look`.
            current: views of what its codes paint.

        Returns:
            Name of a weight -> (B, O, I), shared by the kernel's pixels.
        """
        vectors = self.summarise(self.pyramid(target, current))
        found = {}
        for name, (outputs, inputs, *_) in self.targets.items():
            numbers = self.heads[module_name(name)](vectors[self.groups[code_row(name)]])
            left, right = numbers.split([self.factors * outputs, self.factors * inputs], 1)
            left = left.view(-1, outputs, self.factors)
            found[name] = GAIN / self.factors * (left @ right.view(-1, self.factors, inputs))
        return found


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

    def residuals(
        self, generator: Generator, target: Sequence[Tensor], current: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Views of picture and first reconstruction -> changes of the generator's weights, (B, ...) each."""
        weights = dict(generator.named_parameters())
        found = {}
        for name, share in self.core(target, current).items():
            weight = weights[name]  # (O, I, k, k)
            found[name] = share.view(*share.shape, *[1] * (weight.ndim - 2)) * weight
        return found

    @torch.no_grad()
    def first(self, generator: Generator, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's codes (B, L, w_dim) and what they paint, clipped, (B, 3, R, R)."""
        w_plus = self.encoder.encode(generator, image, steps=self.refinements)[-1]
        return w_plus, generator.synthesis(w_plus).clamp(-1, 1)

    def forward(self, generator: Generator, image: Tensor) -> HyperCodes:
        """Find codes, in w+, and changes of pictures.

        Args:
            generator: the one it was trained with.
            image: (B, 3, H, H), [-1, 1], FFHQ-aligned.

        Raises:
            KeyMismatchError: the generator is another.
        """
        self.check(generator)
        w_plus, painted = self.first(generator, image)
        changes = self.residuals(generator, self.views(image), self.views(painted))
        return HyperCodes(w_plus, painted, changes)

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
