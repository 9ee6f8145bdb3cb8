"""The two games that a generator learns by.

`ProjectedGame` plays against small heads on frozen features and is fit for two CPU cores; `StyleGan2Game` is the
published one.  Everything random comes from the step's `StepRandom`.

Source: Karras et al. 2020 (arXiv 1912.04958), sections 3 and 4; Karras et al. 2020, ADA (arXiv 2006.06676); Sauer et
al. 2021 (arXiv 2111.01007); Mo et al. 2020, FreezeD (arXiv 2002.10964).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import OptionError
from limner.losses import (
    hinge_d_loss,
    hinge_g_loss,
    logistic_d_loss,
    logistic_g_loss,
    path_length_penalty,
    r1_penalty,
)
from limner.nn.augment import AdaController, AdaPipe
from limner.nn.layers import upsample2
from limner.nn.projected import MomentMatcher, ProjectedDiscriminator, augment_lightly, cut_windows
from limner.nn.stylegan2 import Generator
from limner.nn.transport import FrechetPull, summaries
from limner.training.data import PictureSet
from limner.training.gan.options import GanOptions
from limner.training.gan.transfer import frozen_parameters
from limner.training.run import Runtime, StepRandom

MEASURED_PICTURES, MEASURED_FAKES, MEASURED_BATCH = 8000, 1024, 64
"""Real pictures from which the Fréchet loss takes mean and covariance, generated images that it begins with (fewer of
both where the data are few), how many at once."""

BELOW_PX = 4
"""Side of the squares over which the change by the last layers is averaged, for ``below_weight``."""


@dataclass
class GanRun:
    """The networks of a run and how far it is."""

    options: GanOptions
    runtime: Runtime
    pictures: PictureSet
    G: Generator
    ema: Generator
    D: nn.Module
    new_parameters: frozenset[str] = frozenset()
    step: int = 0
    images: int = 0

    @property
    def kimg(self) -> float:
        """Thousands of images seen."""
        return self.images / 1000

    def learning_rate(self, full: float) -> float:
        """Return the rate now: ramped up after a warm-up, lowered to a tenth over the last ``decay_kimg``."""
        options = self.options
        if not options.decay_kimg:
            return full
        progress = 1 - (options.kimg - self.kimg) / options.decay_kimg
        progress = min(max(progress, 0.0), 1.0)
        return full * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))

    def generator_share(self) -> float:
        """Return the share of its rate that the generator has during a warm-up: 0, then rising, then 1."""
        warmup = self.options.warmup_kimg
        if not warmup:
            return 1.0
        return min(max((self.kimg - warmup) / warmup, 0.0), 1.0)


def draw_w_plus(G: Generator, count: int, mixing: float, random: StepRandom) -> Tensor:
    """Return w+ (count, L, w_dim) of random z; with probability ``mixing`` two z share the rows."""
    w = G.mapping(random.normal(2 * count, G.z_dim))
    first, second = w.chunk(2)
    rows = G.num_rows
    cut = torch.randint(1, rows, (count, 1), generator=random.cpu)
    cut = torch.where(torch.rand(count, 1, generator=random.cpu) < mixing, cut, rows)
    keep = (torch.arange(rows)[None] < cut).to(w.device)
    return torch.where(keep[:, :, None], first[:, None], second[:, None])


class Game(ABC):
    """What both kinds of training share: optimisers, phases, gradient accumulation."""

    def __init__(self, run: GanRun):
        options = run.options
        self.run = run
        self.micro = self._micro_batches()
        betas = (0.0, options.beta2)
        ratio_g = ratio_d = 1.0
        if options.discriminator == "stylegan2":
            # Lazy regularisation: rate and betas are scaled so that k steps equal k steps without skipping.
            ratio_g = options.g_reg_interval / (options.g_reg_interval + 1) if options.pl_weight else 1.0
            ratio_d = options.d_reg_interval / (options.d_reg_interval + 1)
        self.base_lr = {"G": options.lr_g * ratio_g, "D": options.lr_d * ratio_d}
        self.optimisers = {
            "G": torch.optim.Adam(run.G.parameters(), self.base_lr["G"], (betas[0], betas[1] ** ratio_g)),
            "D": torch.optim.Adam(
                [p for p in run.D.parameters() if p.requires_grad],
                self.base_lr["D"],
                (betas[0], betas[1] ** ratio_d),
            ),
        }

    def _micro_batches(self) -> list[int]:
        options, world = self.run.options, self.run.runtime.world
        if options.batch_size % world:
            raise OptionError(f"batch_size {options.batch_size} cannot be shared by {world} processes")
        share = options.batch_size // world
        size = options.batch_per_device or share
        if share % size:
            raise OptionError(
                f"batch_per_device {size} does not divide this process's share of {share} images"
            )
        return [size] * (share // size)

    @abstractmethod
    def step(self, random: StepRandom) -> dict[str, float]:
        """Train both players on one batch; return the figures for the log."""

    def state(self) -> dict[str, Any]:
        """Return what must be saved besides the networks."""
        return {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[name])

    def update(self, name: str) -> None:
        """Average gradients over processes and take an optimiser step at the current rate."""
        optimiser = self.optimisers[name]
        rate = self.run.learning_rate(self.base_lr[name]) * (
            self.run.generator_share() if name == "G" else 1.0
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        self.run.runtime.average_gradients(parameters)
        for p in parameters:
            if p.grad is not None:
                torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the generator's parameters that train now: not the frozen ones; after growing, at first only the new."""
        run = self.run
        only_new = bool(run.new_parameters) and run.kimg < run.options.grow_kimg
        frozen = frozen_parameters(run.G, run.options.freeze_g)
        return [
            p
            for name, p in run.G.named_parameters()
            if name not in frozen and (not only_new or name in run.new_parameters)
        ]

    def set_generator_trainable(self, on: bool) -> None:
        """Switch gradients of the generator, respecting the growing phase."""
        self.run.G.requires_grad_(False)
        if on:
            for p in self.trained_parameters():
                p.requires_grad_(True)


@dataclass
class Batch:
    """What one step of `ProjectedGame` looks at.

    Args:
        real: pictures (B, 3, R, R).
        w: w of the first row of every generated image, (B, w_dim).
        fake: generated images (B, 3, R, R).
        real_maps, fake_maps: the discriminator's features of both, augmented alike.
        drawn: how many images, the last ones, come from z; they alone are judged, and as many pictures.
        summary: of the generated images, see `limner.nn.transport.summaries`; empty where it is not needed.
        moved: how far the last layers moved squares of the image below them; None where it is not needed.
    """

    real: Tensor
    w: Tensor
    fake: Tensor
    real_maps: list[Tensor]
    fake_maps: list[Tensor]
    drawn: int
    summary: list[Tensor] = field(default_factory=list)
    moved: Tensor | None = None


class ProjectedGame(Game):
    """Hinge loss on every head, moment matching; one generator pass serves both players.

    Args:
        run: its ``D`` is a `ProjectedDiscriminator`.
    """

    D: ProjectedDiscriminator

    def __init__(self, run: GanRun):
        assert isinstance(run.D, ProjectedDiscriminator)
        super().__init__(run)
        self.D = run.D
        random = StepRandom(run.options.seed, 0, 0, run.runtime.device)
        probe = run.pictures.draw(64, random.cpu, mirror=False, device=run.runtime.device)
        if run.options.crop:
            probe = cut_windows(probe, run.options.crop, random.cpu)
        self.D.calibrate(probe)
        with torch.no_grad():
            shapes = [tuple(x.shape[1:]) for x in MomentMatcher.reduce(self.D.features(probe[:1]))]
        self.moments = MomentMatcher(shapes=shapes).to(run.runtime.device)
        self.pull: FrechetPull | None = None
        if run.options.frechet_weight:
            with torch.no_grad():
                widths = [x.shape[1] for x in summaries(self.D.look(probe[:1]), probe[:1])]
            self.pull = FrechetPull(widths=widths).to(run.runtime.device)

    def state(self) -> dict[str, Any]:
        """Add the moments, and what the Fréchet loss knows."""
        own = {"moments": self.moments.state_dict()}
        return super().state() | own | ({"pull": self.pull.state_dict()} if self.pull else {})

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them back too; a run without the Fréchet loss can go on with it."""
        super().load_state(state)
        self.moments.load_state_dict(state["moments"])
        if self.pull and "pull" in state:
            self.pull.load_state_dict(state["pull"])

    def augment(self, image: Tensor, random: StepRandom) -> Tensor:
        """Cut windows out of images and change them lightly, as the options say."""
        options = self.run.options
        if options.crop:
            image = cut_windows(image, options.crop, random.cpu)
        return augment_lightly(image, options.augment_p if options.augment != "none" else 0.0, random.cpu)

    @torch.no_grad()
    def measure_pictures(self) -> None:
        """Measure mean and covariance of real features for the Fréchet loss, and begin with generated ones."""
        run = self.run
        if self.pull is None or self.pull.ready:
            return
        random = StepRandom(run.options.seed, 0, 0, run.runtime.device)
        real: list[list[Tensor]] = []
        for _ in range(0, min(MEASURED_PICTURES, 2 * len(run.pictures)), MEASURED_BATCH):
            image = self.augment(self.draw_pictures(MEASURED_BATCH, random), random)
            real.append(summaries(self.D.look(image), image))
        self.pull.set_real([torch.cat(parts) for parts in zip(*real, strict=True)])
        for _ in range(0, min(MEASURED_FAKES, 4 * len(run.pictures)), MEASURED_BATCH):
            w_plus = draw_w_plus(run.G, MEASURED_BATCH, run.options.mixing, random)
            image = self.augment(run.G.synthesis(w_plus, "random", rng=random.local).float(), random)
            self.pull.observe(summaries(self.D.look(image), image))

    def trains_generator(self) -> bool:
        """Whether the generator learns in this step; not at the start of a warm-up."""
        return self.run.generator_share() > 0 and not self.run.options.only_discriminator

    def draw_pictures(self, count: int, random: StepRandom) -> Tensor:
        """Return ``count`` training pictures."""
        run = self.run
        return run.pictures.draw(count, random.cpu, mirror=run.options.mirror, device=run.runtime.device)

    def make_batch(self, size: int, random: StepRandom, *, gradients: bool) -> Batch:
        """Draw pictures and generate images; ``gradients`` says whether the generator's graph is kept."""
        run = self.run
        real = self.draw_pictures(size, random)
        with torch.set_grad_enabled(gradients):
            w_plus = draw_w_plus(run.G, size, run.options.mixing, random)
            return self.look(real, w_plus, size, random)

    def look(self, real: Tensor, w_plus: Tensor, drawn: int, random: StepRandom) -> Batch:
        """Generate from w+ and compute the features of both sides, augmented by the same random changes."""
        fake, moved = self.paint(w_plus, random)
        same = random.cpu.get_state()
        seen = self.augment(fake, random)
        maps = self.D.look(seen)
        fake_maps = self.D.features(seen, maps)
        summary = summaries([x[-drawn:] for x in maps], seen[-drawn:]) if self.pull else []
        random.cpu.set_state(same)
        with torch.no_grad():
            real_maps = self.D.features(self.augment(real, random))
        return Batch(real, w_plus[:, 0], fake, real_maps, fake_maps, drawn, summary, moved)

    def paint(self, w_plus: Tensor, random: StepRandom) -> tuple[Tensor, Tensor | None]:
        """Return images (B, 3, R, R) and, if it counts, how far the last layers moved squares of the image below them."""
        synthesis = self.run.G.synthesis
        if not self.run.options.below_weight:
            return synthesis(w_plus, "random", rng=random.local).float(), None
        stages = synthesis.stages(synthesis.styles(w_plus), "random", rng=random.local)
        (_, below), (_, fake) = deque(stages, maxlen=2)
        enlarged = upsample2(below.detach().float(), continued=synthesis.whole_px < synthesis.resolution)
        fake = fake.float().contiguous()
        return fake, F.avg_pool2d(fake - enlarged, BELOW_PX).abs().mean()

    def generator_losses(self, batch: Batch) -> dict[str, tuple[float, Tensor]]:
        """Return the generator's losses with their weights."""
        drawn = [x[-batch.drawn :] for x in batch.fake_maps]
        loss_g = torch.stack([hinge_g_loss(x) for x in self.D.judge(drawn)]).sum()
        losses = {
            "loss_g": (1.0, loss_g),
            "moments": (self.run.options.moment_weight, self.moments(drawn)),
        }
        if batch.moved is not None:
            losses["below"] = (self.run.options.below_weight, batch.moved)
        if self.pull:
            self.pull.observe([x.detach() for x in batch.summary])
            losses["pull"] = (self.run.options.frechet_weight, self.pull(batch.summary))
        return losses

    def step(self, random: StepRandom) -> dict[str, float]:
        """One step of heads and generator."""
        run, D = self.run, self.D
        self.measure_pictures()
        train_g = self.trains_generator()
        keep = train_g and len(self.micro) == 1
        share = 1 / len(self.micro)
        kept: list[Batch] = []
        totals: dict[str, float] = {}

        def add(**values: Tensor) -> None:
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value.item() * share

        # The heads: fake features are detached, so that one generator pass can serve both players.
        self.set_generator_trainable(keep)
        D.heads.requires_grad_(True)
        starts = []
        for size in self.micro:
            starts.append(random.cpu.get_state())
            with run.runtime.autocast():
                batch = self.make_batch(size, random, gradients=keep)
                drawn = batch.drawn
                fake_logits = D.judge([x[-drawn:].detach() for x in batch.fake_maps])
                real_logits = D.judge([x[-drawn:] for x in batch.real_maps])
                pairs = zip(real_logits, fake_logits, strict=True)
                loss_d = torch.stack([hinge_d_loss(real, fake) for real, fake in pairs]).sum()
            (loss_d * share).backward()
            self.moments.update(batch.real_maps)
            kept = [batch] if keep else []
            spread = F.adaptive_avg_pool2d(batch.fake[-drawn:].detach(), 16).std(0).mean()
            add(loss_d=loss_d, spread=spread / F.adaptive_avg_pool2d(batch.real, 16).std(0).mean())
            run.G.w_avg.lerp_(batch.w[-drawn:].detach().float().mean(0), 0.01)
        self.update("D")
        if not train_g:
            return totals

        # The generator, against the heads as they are now.
        D.heads.requires_grad_(False)
        self.set_generator_trainable(True)
        for start, size in zip(starts, self.micro, strict=True):
            with run.runtime.autocast():
                if not keep:
                    random.cpu.set_state(start)
                    kept = [self.make_batch(size, random, gradients=True)]
                losses = self.generator_losses(kept[0])
            total = torch.stack([weight * value for weight, value in losses.values()]).sum()
            (total * share).backward()
            add(**{name: value for name, (_, value) in losses.items()})
        self.update("G")
        return totals


class StyleGan2Game(Game):
    """Non-saturating logistic loss, lazy R1 and path length, fixed or adaptive augmentation.

    Args:
        run: its ``D`` is a `Discriminator`.
    """

    def __init__(self, run: GanRun):
        super().__init__(run)
        options = run.options
        self.pipe = AdaPipe() if options.augment == "ada" else None
        self.pl_mean = torch.zeros((), device=run.runtime.device)
        self.ada = AdaController(p=options.augment_p, target=options.ada_target, ada_kimg=options.ada_kimg)

    def state(self) -> dict[str, Any]:
        """Add path length's running mean and the augmentation's strength."""
        return super().state() | {"pl_mean": self.pl_mean, "ada": self.ada.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them back too."""
        super().load_state(state)
        self.pl_mean = state["pl_mean"]
        self.ada.load_state(state["ada"])

    def augment(self, image: Tensor, random: StepRandom) -> Tensor:
        """Change images as the options say, real and generated alike."""
        if self.pipe is not None:
            return self.pipe(image, self.ada.p, rng=random.cpu)
        return (
            augment_lightly(image, self.run.options.augment_p, random.cpu)
            if self.run.options.augment == "diff"
            else image
        )

    def step(self, random: StepRandom) -> dict[str, float]:
        """One step of discriminator and generator."""
        run, options = self.run, self.run.options
        record = self._step_d(random, penalise=run.step % options.d_reg_interval == 0)
        if run.generator_share() > 0 and not options.only_discriminator:
            record |= self._step_g(
                random, penalise=bool(options.pl_weight) and run.step % options.g_reg_interval == 0
            )
        return record

    def _step_d(self, random: StepRandom, *, penalise: bool) -> dict[str, float]:
        run, options = self.run, self.run.options
        self.set_generator_trainable(False)
        # Against an average that does not train, the discriminator of a finished generator is made.
        G = run.ema if options.only_discriminator else run.G
        record = {"loss_d": 0.0} | ({"r1": 0.0} if penalise else {})
        share = 1 / len(self.micro)
        for size in self.micro:
            with run.runtime.autocast():
                with torch.no_grad():
                    w_plus = draw_w_plus(G, size, options.mixing, random)
                    fake = G.synthesis(w_plus, "random", rng=random.local).float()
                real = run.pictures.draw(size, random.cpu, mirror=options.mirror, device=run.runtime.device)
                real.requires_grad_(penalise)
                real_logits = run.D(self.augment(real, random))
                loss = logistic_d_loss(real_logits, run.D(self.augment(fake, random)))
            total = loss
            if penalise:
                r1 = r1_penalty(real_logits.float(), real)
                total = total + r1 * (options.r1_gamma / 2 * options.d_reg_interval)
                record["r1"] += r1.item() * share
            (total * share).backward()
            record["loss_d"] += loss.item() * share
            if self.pipe is not None:
                self.ada.observe(real_logits)
            if not options.only_discriminator:
                run.G.w_avg.lerp_(w_plus[:, 0].float().mean(0), 0.01)
        self.update("D")
        if self.pipe is not None:
            self.ada.update(run.runtime.sum)
            record |= {"sign": self.ada.r_t, "augment_p": self.ada.p}
        return record

    def _step_g(self, random: StepRandom, *, penalise: bool) -> dict[str, float]:
        run, options = self.run, self.run.options
        self.set_generator_trainable(True)
        trainable = [p.requires_grad for p in run.D.parameters()]
        run.D.requires_grad_(False)
        record = {"loss_g": 0.0} | ({"pl": 0.0} if penalise else {})
        share = 1 / len(self.micro)
        for size in self.micro:
            with run.runtime.autocast():
                w_plus = draw_w_plus(run.G, size, options.mixing, random)
                fake = run.G.synthesis(w_plus, "random", rng=random.local).float()
                loss = logistic_g_loss(run.D(self.augment(fake, random)))
            (loss * share).backward()
            record["loss_g"] += loss.item() * share
            if penalise:
                half = max(1, size // 2)
                w_plus = draw_w_plus(run.G, half, options.mixing, random)
                fake = run.G.synthesis(w_plus, "random", rng=random.local)
                pl, self.pl_mean = path_length_penalty(fake, w_plus, self.pl_mean, rng=random.cpu)
                (pl * (options.pl_weight * options.g_reg_interval * share)).backward()
                record["pl"] += pl.item() * share
        self.update("G")
        for p, on in zip(run.D.parameters(), trainable, strict=True):
            p.requires_grad_(on)
        return record
