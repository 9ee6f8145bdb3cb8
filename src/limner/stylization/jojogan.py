"""JoJoGAN: fine-tune a generator on one or a few style pictures.

The style picture's code keeps its coarse rows while its fine rows are replaced by random ones, and the generator
learns to paint the same picture for all of them.  So it forgets what the fine rows used to decide, colour and
texture, and paints every face in the picture's way.

Source: Chong and Forsyth 2021, "JoJoGAN: One Shot Face Stylization" (arXiv 2112.11641), sections 3.1 to 3.4.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limner.errors import DivergedError, OptionError, ShapeError
from limner.latent import LayerMask
from limner.nn.stylegan2 import Discriminator, Generator, Noise
from limner.options import to_mapping
from limner.stylization.options import JojoganOptions
from limner.stylization.style import Style, style_between

PUBLISHED_ROW = 7
PUBLISHED_COLOR_ROWS = (9, 11, 15, 16, 17)
PUBLISHED_STAGES = (1, 3, 4, 5)
SMALL_PX = 256
"""Below this size the published rows, stages and loss have counterparts of our own."""
SMALL_PERCEPTUAL, SMALL_PIXELS = 0.5, 0.5


@dataclasses.dataclass(frozen=True)
class LearningStep:
    """What `learn` reports after every step."""

    number: int
    """Steps done so far."""
    steps: int
    """Steps in all."""
    loss: float
    """Loss before the step."""


Distance = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[LearningStep], None]


def mixed_rows(resolution: int, *, keep_color: bool = False) -> tuple[int, ...]:
    """Return the rows of w+ that are mixed when no mask is given.

    These are the published ones, row 7 and up, from 128 px.  A smaller generator has few rows above 7 or none and
    decides texture at smaller maps, so there mixing starts with the second largest resolution: row 5 at 64 px.

    Args:
        resolution: side of the generator's image in px.
        keep_color: leave most rows that carry colour unmixed.
    """
    rows = 2 * int(math.log2(resolution)) - 2
    first = max(1, min(PUBLISHED_ROW, rows - 5))
    if not keep_color:
        return tuple(range(first, rows))
    if rows > PUBLISHED_COLOR_ROWS[-1]:
        return PUBLISHED_COLOR_ROWS
    # The published set is two toRGB rows above the first row and everything of the last size.
    return tuple(sorted({first + 2, first + 4, *range(max(first, rows - 3), rows)} & set(range(rows))))


def compared_stages(resolution: int) -> tuple[int, ...]:
    """Return the discriminator stages that are compared when none are given: published ones, or those of 8 px and up."""
    if resolution >= SMALL_PX:
        return PUBLISHED_STAGES
    return tuple(range(int(math.log2(resolution)) - 2))


def mix_codes(w_plus: Tensor, w_random: Tensor, row_weights: Tensor) -> Tensor:
    """Replace rows of w+ by random codes.

    Args:
        w_plus: codes of the style pictures, (N, L, w_dim).
        w_random: one random w per picture, (N, w_dim).
        row_weights: how far every row is replaced, (L,): 0 leaves it, 1 takes the random code.

    Returns:
        (N, L, w_dim).
    """
    return torch.lerp(w_plus, w_random[:, None].to(w_plus), row_weights.to(w_plus)[:, None])


def feature_distances(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the mean absolute difference of every pair of feature maps, (number of pairs,)."""
    pairs = zip(features, targets, strict=True)
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in pairs])


class JojoganTraining:
    """The state of one fine-tuning: the tuned generator, its optimiser and the pictures' features.

    Only the synthesis network is trained, on a copy; the discriminator is frozen and its weights get no gradients.
    The pictures' features are computed once.

    Args:
        generator: the base; it is not changed.
        discriminator: of the same resolution, with StyleGAN2's stages.
        images: style pictures, (N, 3, H, W) in [-1, 1], of the generator's size.
        w_plus: their codes, (N, L, w_dim).
        options: see `JojoganOptions`.
        perceptual: distance of two batches of images, (B,); None leaves the term out.

    Raises:
        ShapeError: pictures, codes and networks do not fit each other.
        OptionError: a mask or stage that these networks do not have.
    """

    def __init__(
        self,
        *,
        generator: Generator,
        discriminator: Discriminator,
        images: Tensor,
        w_plus: Tensor,
        options: JojoganOptions,
        perceptual: Distance | None = None,
    ):
        _check_shapes(generator, discriminator, images, w_plus)
        self.options, self.discriminator = options, discriminator
        self.row_weights = row_weights(options, generator) * options.style_mix
        self.stages = _resolve_stages(options, discriminator)
        small = generator.resolution < SMALL_PX
        self.perceptual = perceptual
        self.perceptual_weight = _chosen(options.perceptual, SMALL_PERCEPTUAL if small else 0.0)
        self.pixel_weight = _chosen(options.pixels, SMALL_PIXELS if small else 0.0)
        self.w_plus = w_plus.detach().repeat(options.codes, 1, 1)  # (codes N, L, w_dim)
        self.images = images.detach().repeat(options.codes, 1, 1, 1)
        self.generator = _tunable_copy(generator)
        self.average = _tunable_copy(generator) if options.ema else None
        self.number = 0
        self.optimizer = torch.optim.Adam(
            self.generator.synthesis.parameters(), lr=options.learning_rate, betas=(0.0, 0.99), eps=1e-8
        )
        with torch.no_grad():
            self.targets = [maps.repeat(options.codes, 1, 1, 1) for maps in self._features(images)]

    def _features(self, image: Tensor) -> list[Tensor]:
        maps = self.discriminator.features(image)
        return [maps[stage] for stage in self.stages]

    def paint(self, z: Tensor, noise: Noise, rng: torch.Generator | None = None) -> Tensor:
        """Paint the style pictures' codes, mixed with random z (codes N, z_dim), with gradients."""
        with torch.no_grad():
            w_random = self.generator.mapping(z)
        return self.generator.synthesis(mix_codes(self.w_plus, w_random, self.row_weights), noise, rng=rng)

    def distances(self, image: Tensor) -> Tensor:
        """Return the distance of the discriminator's features per stage, (stages,)."""
        return feature_distances(self._features(image), self.targets)

    def loss(self, image: Tensor) -> Tensor:
        """Return the loss of painted pictures (codes N, 3, H, W)."""
        loss = self.distances(image).mean()
        if self.perceptual is not None and self.perceptual_weight:
            loss = loss + self.perceptual_weight * self.perceptual(image, self.images).mean()
        if self.pixel_weight:
            loss = loss + self.pixel_weight * (image - self.images).abs().mean()
        return loss

    def step(self, z: Tensor, noise: Noise, rng: torch.Generator | None = None) -> float:
        """Do one training step; return the loss before it.

        Raises:
            DivergedError: the loss is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        with frozen(self.discriminator):
            loss = self.loss(self.paint(z, noise, rng))
            loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss became {value} after {self.number} steps; lower learning_rate (now "
                f"{self.options.learning_rate:g})"
            )
        self.optimizer.step()
        self.number += 1
        if self.average is not None:
            # Early steps weigh less against the untrained weights than a plain average would let them.
            decay = min(self.options.ema, self.number / (self.number + 5))
            _blend_into(self.average.synthesis, self.generator.synthesis, 1 - decay)
        return value

    @property
    def result(self) -> Generator:
        """The tuned generator, averaged if asked for."""
        return self.generator if self.average is None else self.average


def learn(
    generator: Generator,
    discriminator: Discriminator,
    images: Tensor,
    w_plus: Tensor,
    options: JojoganOptions,
    *,
    perceptual: Distance | None = None,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Style:
    """Learn a style from one or more pictures.

    Args:
        generator: the base; it is not changed.
        discriminator: its features say how alike two pictures are; it is not changed.
        images: style pictures, (N, 3, H, W) in [-1, 1]; all of them are used in every step.
        w_plus: their codes, (N, L, w_dim), found by any inversion.
        options: see `JojoganOptions`.
        perceptual: distance of two batches of images, (B,), for generators below 256 px; None leaves the term out.
        rng: source of the random codes; by default one seeded with ``options.seed``.
        on_step: called after every step.

    Returns:
        The style: what changed in the generator.

    Raises:
        ShapeError, OptionError, DivergedError: see `JojoganTraining`.
    """
    rng = torch.Generator().manual_seed(options.seed) if rng is None else rng
    training = JojoganTraining(
        generator=generator,
        discriminator=discriminator,
        images=images,
        w_plus=w_plus,
        options=options,
        perceptual=perceptual,
    )
    losses = []
    for number in range(1, options.steps + 1):
        z = torch.randn(options.codes * len(images), generator.z_dim, generator=rng).to(w_plus)
        losses.append(training.step(z, options.noise, rng if options.noise == "random" else None))  # type: ignore[arg-type]
        if on_step is not None:
            on_step(LearningStep(number=number, steps=options.steps, loss=losses[-1]))
    record = to_mapping(options) | {
        "feature_layers": list(training.stages),
        "row_weights": [round(weight, 6) for weight in training.row_weights.tolist()],
    }
    return style_between(
        generator,
        training.result,
        method="jojogan",
        options=record,
        provenance={"pictures": len(images), "first_loss": losses[0], "last_loss": losses[-1]},
    )


def row_weights(options: JojoganOptions, generator: Generator) -> Tensor:
    """Return how far these options mix every row of w+ in this generator, (L,), before ``style_mix``."""
    if options.mask != "auto":
        return LayerMask(options.mask).rows(generator)
    weights = torch.zeros(generator.num_rows)
    weights[list(mixed_rows(generator.resolution, keep_color=options.keep_color))] = 1.0
    return weights


def _chosen(value: float | None, default: float) -> float:
    return default if value is None else value


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients pass through a module without computing those of its weights."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def _resolve_stages(options: JojoganOptions, discriminator: Discriminator) -> tuple[int, ...]:
    stages = options.feature_layers or compared_stages(discriminator.resolution)
    count = len(discriminator.blocks) + 1
    wrong = [stage for stage in stages if not 0 <= stage < count]
    if wrong:
        raise OptionError(
            f"feature_layers has {wrong}, but the discriminator of {discriminator.resolution} px has stages 0 to {count - 1}"
        )
    return tuple(stages)


def _tunable_copy(generator: Generator) -> Generator:
    tuned = copy.deepcopy(generator)
    tuned.mapping.requires_grad_(False)
    tuned.synthesis.requires_grad_(True)
    return tuned


@torch.no_grad()
def _blend_into(average: nn.Module, current: nn.Module, amount: float) -> None:
    for slow, fast in zip(average.parameters(), current.parameters(), strict=True):
        slow.lerp_(fast, amount)


def _check_shapes(generator: Generator, discriminator: Discriminator, images: Tensor, w_plus: Tensor) -> None:
    side = generator.resolution
    if discriminator.resolution != side:
        raise ShapeError(
            f"the generator makes {side} px images, the discriminator takes {discriminator.resolution} px"
        )
    if images.ndim != 4 or images.shape[1:] != (3, side, side) or not len(images):
        raise ShapeError(f"images has shape {tuple(images.shape)}, expected (N, 3, {side}, {side})")
    expected = (len(images), generator.num_rows, generator.w_dim)
    if w_plus.shape != expected:
        raise ShapeError(
            f"w_plus has shape {tuple(w_plus.shape)}, expected {expected}: one code per style picture"
        )
