"""JoJoGAN: fine-tune a generator on one or a few style pictures.

The style picture's code keeps its coarse rows while its fine rows are replaced by random ones, and the generator
learns to paint the same picture for all of them.  So it forgets what the fine rows used to decide, colour and
texture, and paints every face in the picture's way.

Source: Chong and Forsyth 2021, "JoJoGAN: One Shot Face Stylization" (arXiv 2112.11641), sections 3.1 to 3.4.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limner import losses as distances
from limner.errors import DivergedError
from limner.latent import Latent, LayerMask, render
from limner.nn.stylegan2 import Discriminator, Generator, Noise
from limner.options import to_mapping
from limner.stylization.choices import (
    SMALL_PX,
    Distance,
    Trunk,
    check_distances,
    check_shapes,
    learning_parameters,
    picture_shares,
    resolve_stages,
    row_weights,
    stage_shares,
    style_weights,
)
from limner.stylization.codes import virtual_codes
from limner.stylization.options import JojoganOptions
from limner.stylization.style import Style, style_between

SMALL_PERCEPTUAL = 4.0
PATIENCE_WINDOW, PATIENCE_GAIN = 10, 0.01
BEYOND = 0.05
STRANGER_PSI = 0.7
"""Truncation of the random faces that the texture distance looks at."""


@dataclasses.dataclass(frozen=True)
class LearningStep:
    """What `learn` reports after every step."""

    number: int
    """Steps done so far."""
    steps: int
    """Steps in all."""
    loss: float
    """Loss before the step."""
    tuned: Generator
    """The generator as tuned so far, averaged if asked for; it goes on changing."""


OnStep = Callable[[LearningStep], bool | None]
"""Told of every step; where it returns True, learning stops and what has been learned is kept."""


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


def clip_softly(image: Tensor) -> Tensor:
    """Return an image with what lies beyond [-1, 1] taken back to `BEYOND` of it, so that its gradients do not vanish."""
    shown = image.clamp(-1, 1)
    return torch.lerp(shown, image, BEYOND)


def feature_distances(
    features: Sequence[Tensor], targets: Sequence[Tensor], shares: Tensor | None = None
) -> Tensor:
    """Return the mean absolute difference of every pair of feature maps, (number of pairs,).

    Args:
        features, targets: maps (B, C, h, w).
        shares: weight of every image, (B,), 1 on average; None for all alike.
    """
    found = []
    for a, b in zip(features, targets, strict=True):
        apart = (a.float() - b.float()).abs()
        found.append(apart.mean() if shares is None else (apart.mean((1, 2, 3)) * shares).mean())
    return torch.stack(found)


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
        identity: the same for persons, for ``options.identity``.
        trunk: image -> feature maps, for the loss ``vgg`` and for ``options.texture``.
        start: a style of this base to go on from.

    Raises:
        ShapeError: pictures, codes and networks do not fit each other.
        OptionError: a mask or stage that these networks do not have, a distance that the options need is not given.
        KeyMismatchError: ``start`` belongs to another base.
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
        identity: Distance | None = None,
        trunk: Trunk | None = None,
        start: Style | None = None,
    ):
        check_shapes(generator, discriminator, images, w_plus)
        check_distances(options, perceptual, identity, trunk)
        self.options, self.discriminator, self.base = options, discriminator, generator
        self.trunk, self.perceptual, self.identity = trunk, perceptual, identity
        codes = virtual_codes(generator, w_plus, options.follow, seed=options.seed)
        self.in_s = codes.space == "s" or (options.mask != "auto" and LayerMask(options.mask).separates_rgb)
        if self.in_s:
            weights = style_weights(options, generator)
            parts = codes.styles(generator)
            self.styles = [part.detach() for part in parts]  # (N, C) each
        else:
            weights = row_weights(options, generator)
            self.w_plus = codes.tensor.detach()  # (N, L, w_dim)
        self.layer_weights = weights * options.style_mix
        small = generator.resolution < SMALL_PX
        self.perceptual_weight = _chosen(options.perceptual, SMALL_PERCEPTUAL if small else 0.0)
        if options.loss == "lpips":
            self.perceptual_weight = _chosen(options.perceptual, 0.0) + 1.0
        self.pixel_weight = options.pixels
        self.images = images.detach()
        self.shares = picture_shares(options, len(images)).to(images)
        self.waiting: list[int] = []
        self.picked = torch.arange(len(images), device=images.device).repeat(options.codes)
        if start is not None:
            start.check_base(generator)
        self.generator = _tunable_copy(generator if start is None else start.apply(generator))
        free = learning_parameters(self.generator, options.learn_layers)
        self.average = _tunable_copy(self.generator) if options.ema else None
        self.number = 0
        self.optimizer = torch.optim.Adam(free, lr=options.learning_rate, betas=(0.0, 0.99), eps=1e-8)
        self.stages, self.targets = (), []
        if options.loss != "lpips":
            with torch.no_grad():
                maps = self._maps(images)
            self.stages = resolve_stages(options, discriminator, len(maps))
            self.targets = [maps[stage] for stage in self.stages]
        self.stage_shares = stage_shares(options, len(self.stages)).to(images)
        self.textures: list[Tensor] = []
        if options.texture and trunk is not None:
            with torch.no_grad():
                self.textures = [level.detach() for level in trunk(self.images)]

    def _maps(self, image: Tensor) -> Sequence[Tensor]:
        if self.options.loss == "vgg" and self.trunk is not None:
            return self.trunk(image)
        return self.discriminator.features(image)

    def pick(self, rng: torch.Generator) -> None:
        """Take the next pictures, where a step looks at fewer than there are: each in turn, every round in a new order."""
        count, every = self.options.per_step, len(self.images)
        if not 0 < count < every:
            return
        while len(self.waiting) < count:
            self.waiting += torch.randperm(every, generator=rng).tolist()
        chosen, self.waiting = self.waiting[:count], self.waiting[count:]
        self.picked = torch.tensor(chosen, device=self.images.device).repeat(self.options.codes)

    def mix(self, z: Tensor) -> Latent:
        """Return the picked pictures' codes, mixed with random z, one each (B, z_dim)."""
        with torch.no_grad():
            w_random = self.base.mapping(z)
            if not self.in_s:
                return Latent("w+", mix_codes(self.w_plus[self.picked], w_random, self.layer_weights))
            own_styles = [part[self.picked] for part in self.styles]
            others = self.base.synthesis.styles(self.base.broadcast(w_random))
            triples = zip(own_styles, others, self.layer_weights.tolist(), strict=True)
            return Latent("s", tuple(torch.lerp(own, other, share) for own, other, share in triples))

    def paint(self, z: Tensor, noise: Noise, rng: torch.Generator | None = None) -> Tensor:
        """Paint the picked pictures' codes, mixed with random z, one each (B, z_dim), with gradients."""
        return render(self.generator, self.mix(z), noise, rng=rng)

    def distances(self, image: Tensor) -> Tensor:
        """Return the distance of the compared features per stage, (stages,)."""
        maps = self._maps(image)
        shares = self.shares[self.picked] if self.options.picture_weights else None
        targets = [target[self.picked] for target in self.targets]
        return feature_distances([maps[stage] for stage in self.stages], targets, shares)

    def loss(self, image: Tensor, plain: Tensor | None = None) -> Tensor:
        """Return the loss of painted pictures (B, 3, H, W); ``plain`` are the base's of the same codes."""
        loss = image.new_zeros(())
        image = clip_softly(image) if self.options.overshoot else image
        pictures, shares = self.images[self.picked], self.shares[self.picked]
        if self.stages:
            loss = (self.distances(image) * self.stage_shares).sum()
        if self.perceptual is not None and self.perceptual_weight:
            loss = loss + self.perceptual_weight * (self.perceptual(image, pictures) * shares).mean()
        if self.pixel_weight:
            apart = (image - pictures).abs().mean((1, 2, 3))
            loss = loss + self.pixel_weight * (apart * shares).mean()
        if self.identity is not None and plain is not None:
            loss = loss + self.options.identity * self.identity(image, plain).mean()
        return loss

    def texture_loss(self, z: Tensor) -> Tensor:
        """Return the weighted texture distance of random faces, drawn by z (B, z_dim), from the picked pictures.

        Source: the distance is that of Gatys et al. 2016 (arXiv 1508.06576).
        Differs: JoJoGAN looks at the style picture's face alone; a small generator then leaves other faces soft.
        """
        trunk = self.trunk
        assert trunk is not None
        with torch.no_grad():
            strangers = Latent(
                "w+", self.base.truncate(self.base.broadcast(self.base.mapping(z)), STRANGER_PSI)
            )
        painted = render(self.generator, strangers, "constant")
        textures = [level[self.picked] for level in self.textures]
        far = distances.gram_distance(trunk(painted), textures)
        total = self.options.texture * (far * self.shares[self.picked]).mean()
        if self.identity is not None and self.options.identity:
            with torch.no_grad():
                plain = render(self.base, strangers, "constant")
            total = total + self.options.identity * self.identity(painted, plain).mean()
        return total

    def step(self, z: Tensor, noise: Noise, rng: torch.Generator | None = None) -> float:
        """Do one training step with the picked pictures and one z for each, (B, z_dim); return the loss before it.

        Raises:
            DivergedError: the loss is not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        codes = self.mix(z)
        plain = None
        if self.options.identity:
            with torch.no_grad():  # stored noise: the random maps are the painting's
                plain = render(self.base, codes, "constant" if noise == "random" else noise)
        with frozen(self.discriminator):
            loss = self.loss(render(self.generator, codes, noise, rng=rng), plain)
            if self.textures:
                loss = loss + self.texture_loss(z)
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
    identity: Distance | None = None,
    trunk: Trunk | None = None,
    start: Style | None = None,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Style:
    """Learn a style from one or more pictures.

    Args:
        generator: the base; it is not changed.
        discriminator: its features say how alike two pictures are; it is not changed.
        images: style pictures, (N, 3, H, W) in [-1, 1]; ``options.per_step`` of them, or all, are used in every step.
        w_plus: their codes, (N, L, w_dim), found by any inversion.
        options: see `JojoganOptions`.
        perceptual: distance of two batches of images, (B,), for generators below 256 px; None leaves the term out.
        identity, trunk: see `JojoganTraining`.
        start: a style to go on from, by ``options.steps`` further steps.  Adam's moments and the average start anew.
        rng: source of the random codes; by default one seeded with ``options.seed``, of ``start`` another one.
        on_step: called after every step; True stops.

    Returns:
        The style: what changed in the generator.  Its provenance tells steps and seconds of learning.

    Raises:
        ShapeError, OptionError, KeyMismatchError, DivergedError: see `JojoganTraining`.
    """
    before = dict(start.provenance) if start is not None else {}
    steps_before = int(before.get("steps", 0 if start is None else start.options.get("steps", 0)))
    rng = torch.Generator().manual_seed(options.seed + steps_before) if rng is None else rng
    training = JojoganTraining(
        generator=generator,
        discriminator=discriminator,
        images=images,
        w_plus=w_plus,
        options=options,
        perceptual=perceptual,
        identity=identity,
        trunk=trunk,
        start=start,
    )
    begun = time.perf_counter()
    losses: list[float] = []
    for number in range(1, options.steps + 1):
        training.pick(rng)
        z = torch.randn(len(training.picked), generator.z_dim, generator=rng).to(w_plus)
        losses.append(training.step(z, options.noise, rng if options.noise == "random" else None))  # type: ignore[arg-type]
        told = LearningStep(number=number, steps=options.steps, loss=losses[-1], tuned=training.result)
        if (on_step is not None and on_step(told)) or has_settled(losses, options.patience):
            break
    record = to_mapping(options) | {
        "feature_layers": list(training.stages),
        "style_weights" if training.in_s else "row_weights": [
            round(weight, 6) for weight in training.layer_weights.tolist()
        ],
    }
    return style_between(
        generator,
        training.result,
        method="jojogan",
        options=record,
        provenance={
            "pictures": len(images),
            "first_loss": before.get("first_loss", losses[0]),
            "last_loss": losses[-1],
            "steps": steps_before + len(losses),
            "learn_seconds": round(before.get("learn_seconds", 0.0) + time.perf_counter() - begun, 3),
        },
    )


def has_settled(losses: Sequence[float], patience: int) -> bool:
    """Return whether the loss, averaged over `PATIENCE_WINDOW` steps, stopped falling ``patience`` steps ago."""
    if not patience or len(losses) < PATIENCE_WINDOW + patience:
        return False
    sums = [0.0, *itertools.accumulate(losses)]
    means = [(sums[end] - sums[end - PATIENCE_WINDOW]) / PATIENCE_WINDOW
             for end in range(PATIENCE_WINDOW, len(sums))]  # fmt: skip
    return min(means[-patience:]) > (1 - PATIENCE_GAIN) * min(means[:-patience])


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


def _tunable_copy(generator: Generator) -> Generator:
    tuned = copy.deepcopy(generator)
    tuned.mapping.requires_grad_(False)
    tuned.synthesis.requires_grad_(True)
    return tuned


@torch.no_grad()
def _blend_into(average: nn.Module, current: nn.Module, amount: float) -> None:
    for slow, fast in zip(average.parameters(), current.parameters(), strict=True):
        slow.lerp_(fast, amount)
