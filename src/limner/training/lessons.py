"""What encoders, translators and small HyperInverters learn with: the run's networks, its optimiser, its losses.

Source: Richardson et al. 2021, pSp (arXiv 2008.00951), section 3.2: losses of pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import KeyMismatchError
from limner.losses import Embedder, maps_distance
from limner.nn.compact import CompactBody
from limner.nn.embedding import LatentCritic
from limner.nn.layers import at_least_float
from limner.nn.stylegan2 import Generator
from limner.training.gan.games import draw_w_plus
from limner.training.loop import Progress, cosine_share
from limner.training.optimizers import make_optimizer
from limner.training.run import Runtime, StepRandom
from limner.training.shared_options import CodeOptions, CoreOptions, NetOptions

ADAM_BETA1 = 0.9
LARGEST_GRADIENT = 5.0
LEAST_RATE = 0.05
MOST_INPUT_PX = 256
PLAIN_SHARE = 0.1
"""Share of the plain difference of w in the loss of known codes; it holds what the picture does not show."""


class Network(Protocol):
    """What is trained: an encoder, a translator or a HyperInverter."""

    core: Any
    base: dict[str, str]


Settings = TypeVar("Settings", bound=NetOptions)
Options = TypeVar("Options", bound=CoreOptions)
N = TypeVar("N", bound=Network)


@dataclass
class NetRun(Progress, ABC, Generic[Settings]):
    """A run that trains networks for a generator; which ones is left to the classes derived from this.

    Args:
        options: settings.
        runtime: device and processes.
        generator: paints; frozen, unless it is trained too.
        critic: latent discriminator, if the options ask for one.
    """

    options: Settings
    runtime: Runtime
    generator: Generator
    critic: LatentCritic | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def base(self) -> dict[str, str]:
        """Name and digest of the generator."""

    @abstractmethod
    def trained(self) -> dict[str, nn.Module]:
        """Return the networks that the optimiser changes, under the names that they have in a saved state."""

    @abstractmethod
    def averages(self) -> dict[str, nn.Module]:
        """Return their averages, which are shipped, in the same order."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what the optimiser changes."""
        for network in self.trained().values():
            yield from network.parameters()

    def learning_rate(self, full: float) -> float:
        """Return the rate now: rising at the start, lowered to a twentieth over the last ``decay_kimg``."""
        options = self.options
        rise = 1.0
        if options.warmup_kimg:
            rise = min(1.0, (self.images + options.batch_size) / (1000 * options.warmup_kimg))
        return full * rise * cosine_share(options, self.images, LEAST_RATE)


@dataclass
class CoreRun(NetRun[Options], Generic[Options, N]):
    """The networks of a run that trains a core on a frozen trunk.

    Args:
        encoder: trained; what is frozen in it stands outside its core.
        average: its average.
    """

    encoder: N
    average: N

    @property
    def base(self) -> dict[str, str]:
        """Name and digest of the generator."""
        return self.encoder.base

    def trained(self) -> dict[str, nn.Module]:
        """Return the core."""
        return {"encoder": self.encoder.core}

    def averages(self) -> dict[str, nn.Module]:
        """Return the averaged core."""
        return {"average": self.average.core}


R = TypeVar("R", bound=NetRun)


class NetLessons(ABC, Generic[R]):
    """One step of training; what it learns from is left to the classes derived from this.

    Args:
        run: networks and settings.
        optimizer: of everything that is trained.
    """

    largest_gradient: float | None = LARGEST_GRADIENT
    """Length to which gradients are cut; None leaves them."""

    def __init__(self, run: R, optimizer: torch.optim.Optimizer):
        self.run, self.optimizer = run, optimizer

    @abstractmethod
    def step(self, random: StepRandom) -> dict[str, float]:
        """Learn from one batch; return the figures for the log."""

    def state(self) -> dict[str, Any]:
        """Return the optimiser's state."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])

    def update(self) -> None:
        """Average gradients over processes and take a step of the optimiser at the current rate."""
        run = self.run
        parameters = [p for p in run.parameters() if p.grad is not None]
        run.runtime.average_gradients(parameters)
        if self.largest_gradient is not None:
            nn.utils.clip_grad_norm_(parameters, self.largest_gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = run.learning_rate(run.options.lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


C = TypeVar("C", bound=CoreRun)


class CoreLessons(NetLessons[C]):
    """One step of training a core.

    Args:
        run: networks and settings.
    """

    def __init__(self, run: C):
        options = run.options
        super().__init__(
            run,
            make_optimizer(
                options.optimizer,
                run.parameters(),
                lr=options.lr,
                betas=(ADAM_BETA1, options.beta2),
                weight_decay=options.weight_decay,
            ),
        )


@torch.no_grad()
def take_over(core: CompactBody, init: CompactBody) -> None:
    """Copy a core's weights and the scales of its views; mean and spread of w stay, they belong to the generator.

    Raises:
        KeyMismatchError: the two differ in size.
    """
    ours, theirs = core.config(), init.config()
    if ours != theirs:
        differ = [
            f"{key} {theirs.get(key)}, here {ours[key]}" for key in ours if ours[key] != theirs.get(key)
        ]
        raise KeyMismatchError(f"init has another size: {'; '.join(differ)}; start without it")
    own = core.state_dict()
    state = {
        name: own[name] if name in ("w_avg", "w_std") else value for name, value in init.state_dict().items()
    }
    core.load_state_dict(state)


def draw_codes(generator: Generator, count: int, options: CodeOptions, random: StepRandom) -> Tensor:
    """Return w+ (count, L, w_dim) of random faces: mixed at ``mixing``, truncated by from ``psi_min`` to 1."""
    w_plus = draw_w_plus(generator, count, options.mixing, random)
    psi = torch.rand(count, 1, 1, generator=random.cpu).to(w_plus)
    amount = options.psi_min + (1 - options.psi_min) * psi
    return torch.lerp(generator.w_avg.expand_as(w_plus), w_plus, amount)


def weighted_sum(losses: dict[str, tuple[float, Tensor]]) -> Tensor:
    """Return the sum of losses times their weights."""
    return torch.stack([weight * value for weight, value in losses.values()]).sum()


def jitter_colours(image: Tensor, p: float, rng: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation, each for every image with probability ``p``; stays in [-1, 1].

    Args:
        image: (B, 3, H, W).
        p: probability of each change.
        rng: CPU generator.
    """
    if p <= 0:
        return image

    def draw(spread: float) -> Tensor:
        amounts = (torch.rand(2, len(image), 1, 1, 1, generator=rng)).to(image)
        return (amounts[0] * 2 - 1) * spread * (amounts[1] < p)

    image = image + draw(0.3)
    mean = image.mean((1, 2, 3), keepdim=True)
    image = mean + (image - mean) * (1 + draw(0.3))
    grey = image.mean(1, keepdim=True)
    return (grey + (image - grey) * (1 + draw(0.4))).clamp(-1, 1)


def picture_losses(
    options: CodeOptions,
    image: Tensor,
    target: Tensor,
    maps: list[Tensor],
    target_maps: list[Tensor],
    embedder: Embedder | None,
) -> dict[str, tuple[float, Tensor]]:
    """Return the losses of painted images with their weights.

    Args:
        options: the weights.
        image, target: (B, 3, H, W).
        maps, target_maps: the trunk's, of both.
        embedder: compares the persons; None leaves that out.
    """
    difference = image - target
    sizes = [k for k in (4, 16) if k <= image.shape[2]]
    rough = [difference, *(F.avg_pool2d(difference, k) for k in sizes)]
    losses = {
        "l2": (options.l2, difference.square().mean()),
        "l1": (options.l1, torch.stack([x.abs().mean() for x in rough]).sum()),
        "perceptual": (options.perceptual, maps_distance(maps, target_maps).mean()),
    }
    if options.identity and embedder is not None:
        losses["identity"] = (options.identity, person_loss(embedder, image, target))
    return losses


def person_loss(embedder: Embedder, image: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared distance of two pictures' identity embeddings; gradients go to the first."""
    with torch.no_grad():
        known = at_least_float(embedder(target))
    return (at_least_float(embedder(image)) - known).square().sum(1).mean()
