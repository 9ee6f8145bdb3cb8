"""One step of encoder training: the batch, ReStyle steps, losses of pSp and e4e, the optimisers.

Source: Richardson et al. 2021, pSp (arXiv 2008.00951), section 3.2; Tov et al. 2021, e4e (arXiv 2102.02766), section
4; Alaluf et al. 2021, ReStyle (arXiv 2104.02699), section 3.2.
Differs: generated faces, whose codes are known, are a part of every batch; the generator runs only for some of them.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limner.errors import OptionError
from limner.losses import Embedder, logistic_d_loss, logistic_g_loss, r1_penalty
from limner.nn.compact import CompactCore, CompactEncoder, resize
from limner.nn.embedding import LatentCritic
from limner.nn.features import Lite0
from limner.nn.stylegan2 import Generator
from limner.training.data import PictureSet
from limner.training.encoder.options import EncoderOptions
from limner.training.lessons import (
    ADAM_BETA1,
    MOST_INPUT_PX,
    PLAIN_SHARE,
    CoreLessons,
    CoreRun,
    draw_codes,
    jitter_colours,
    picture_losses,
    take_over,
    weighted_sum,
)
from limner.training.run import Runtime, StepRandom
from limner.training.style_metric import StyleMetric

CRITIC_ROWS = 256


@dataclass
class EncoderRun(CoreRun[EncoderOptions, CompactEncoder]):
    """The networks of a run and how far it is; see also `CoreRun`.

    Args:
        embedder: identity embedder; None leaves its loss out.
        pictures: training pictures; None where there are none.
    """

    embedder: Embedder | None = None
    pictures: PictureSet | None = None

    def free_rows(self) -> int | None:
        """Return how many rows may differ from the others now; None for all."""
        every = self.options.progressive_kimg
        if not every:
            return None
        return min(int(max(self.kimg - self.options.codes_kimg, 0) / every), self.generator.num_rows)


def build_run(
    options: EncoderOptions,
    runtime: Runtime,
    *,
    generator: Generator,
    trunk: Lite0,
    base: dict[str, str],
    embedder: Embedder | None = None,
    init: CompactCore | None = None,
) -> EncoderRun:
    """Make the networks of a new run.

    Args:
        options: settings.
        runtime: device and processes.
        generator: frozen base, on the runtime's device, as the other networks.
        trunk: frozen Lite0.
        base: name and digest of the generator.
        embedder: identity embedder for the loss.
        init: core whose weights are taken over.

    Raises:
        OptionError: options that contradict one another.
        KeyMismatchError: ``init`` is of another size.
    """
    if options.batch_size % runtime.world:
        raise OptionError(f"batch_size {options.batch_size} cannot be shared by {runtime.world} processes")
    pictures = None
    if options.data:
        pictures = PictureSet(options.data, generator.resolution, select=options.select)
    elif options.real_share and options.kimg > options.codes_kimg:
        raise OptionError(
            "data must be given (a folder or a zip of square, aligned pictures), or real_share set to 0"
        )
    input_px = options.input_px or min(max(generator.resolution, 32), MOST_INPUT_PX)
    torch.manual_seed(options.seed)
    core = CompactCore(
        num_rows=generator.num_rows,
        w_dim=generator.w_dim,
        channels=trunk.channels[1:],
        input_px=input_px,
        width=options.width,
        hidden=options.hidden,
        rank=options.rank,
    )
    critic = LatentCritic(w_dim=generator.w_dim).to(runtime.device) if options.critic else None
    device = runtime.device
    core.to(device)
    with torch.no_grad():
        w = generator.mapping(StepRandom(options.seed, 0, 0, device).normal(4096, generator.z_dim))
        std = (w - w.mean(0)).square().mean().sqrt()
        core.w_avg.copy_(generator.w_avg)
        core.w_std.copy_(std)
        if critic is not None:
            critic.w_avg.copy_(generator.w_avg)
            critic.w_std.copy_(std)
        encoder = CompactEncoder(trunk=trunk, core=core, base=base)
        probe = generator.synthesis(generator.broadcast(w[:64])).clamp(-1, 1)
        if pictures is not None:
            drawn = pictures.draw(
                64, torch.Generator().manual_seed(options.seed), mirror=False, device=device
            )
            probe = torch.cat([probe, drawn])
        core.calibrate(encoder.look(resize(probe, input_px))[1])
    if init is not None:
        take_over(core, init)
    average = CompactEncoder(trunk=trunk, core=copy.deepcopy(core).requires_grad_(False).eval(), base=base)
    return EncoderRun(
        options=options,
        runtime=runtime,
        generator=generator.requires_grad_(False),
        encoder=encoder,
        average=average,
        embedder=embedder,
        pictures=pictures,
        critic=critic,
    )


@dataclass
class Batch:
    """What one step learns from; real pictures come first.

    Args:
        image: (B, 3, R, R); those before ``shown`` get the image losses.
        w_plus: codes of the generated ones, (B - real, L, w_dim).
        real, shown: how many.
    """

    image: Tensor
    w_plus: Tensor
    real: int
    shown: int


class EncoderLessons(CoreLessons[EncoderRun]):
    """One step of training.

    Args:
        run: networks and settings.
    """

    def __init__(self, run: EncoderRun):
        super().__init__(run)
        options = run.options
        self.critic_optimizer: torch.optim.Optimizer | None = None
        if run.critic is not None:
            self.critic_optimizer = torch.optim.Adam(
                run.critic.parameters(), options.critic_lr, betas=(ADAM_BETA1, 0.99)
            )
        random = StepRandom(options.seed, 0, 0, run.runtime.device)
        self.distance = StyleMetric(run.generator, random.normal(2048, run.generator.z_dim), rng=random.cpu)

    def state(self) -> dict[str, Any]:
        """Return the optimisers' states."""
        critic = self.critic_optimizer
        return super().state() | {"critic": critic and critic.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        super().load_state(state)
        if self.critic_optimizer is not None:
            self.critic_optimizer.load_state_dict(state["critic"])

    @torch.no_grad()
    def make_batch(self, random: StepRandom) -> Batch:
        """Draw pictures and generate faces."""
        run, options = self.run, self.run.options
        size = options.batch_size // run.runtime.world
        codes_only = run.kimg < options.codes_kimg
        real = 0 if codes_only or run.pictures is None else round(size * options.real_share)
        made = size - real
        shown = real + (0 if codes_only else math.ceil(made * options.shown_share))
        images = []
        if run.pictures is not None and real:
            drawn = run.pictures.draw(real, random.cpu, mirror=options.mirror, device=run.runtime.device)
            images.append(jitter_colours(drawn, options.jitter, random.cpu))
        w_plus = draw_codes(run.generator, made, options, random)
        if made:
            painted = run.generator.synthesis(w_plus, "random", rng=random.local)
            images.append(painted.float().clamp(-1, 1))
        return Batch(torch.cat(images), w_plus, real, shown)

    def step(self, random: StepRandom) -> dict[str, float]:
        """Learn from one batch; return the figures for the log."""
        run, encoder = self.run, self.run.encoder
        side = encoder.core.input_px
        with run.runtime.autocast():
            batch = self.make_batch(random)
            seen = resize(batch.image, side)
            with torch.no_grad():
                target_maps, target_views = encoder.look(seen)
        target_maps = [x[: batch.shown] for x in target_maps]
        totals: dict[str, float] = {}
        w_plus, views = encoder.start(len(batch.image)), encoder.view_start(run.generator)
        steps = run.options.refinements if run.kimg >= run.options.refine_kimg else 1
        for number in range(steps):
            last = number == steps - 1
            with run.runtime.autocast():
                w_plus = encoder.core(target_views, views, w_plus.detach(), free_rows=run.free_rows())
                w_plus = w_plus.float()
            losses = self.code_losses(batch, w_plus)
            with run.runtime.autocast():
                views = []
                if batch.shown:
                    image = run.generator.synthesis(w_plus[: batch.shown])
                    small = resize(image, side)
                    maps = encoder.trunk(small)
                    losses |= self.image_losses(batch, image.float(), maps, target_maps, identity=last)
                    if not last:
                        views = encoder.add_pixels([x.detach() for x in maps], small.detach().clamp(-1, 1))
                if not last:
                    views = self._views_of_rest(w_plus[batch.shown :].detach(), views)
            if not losses:
                continue
            weighted_sum(losses).backward()
            for name, (_, value) in losses.items():
                totals[name if name == "identity" else f"{name}_{number + 1}"] = value.item()
        self.update()
        if run.critic is not None:
            totals |= self._step_critic(w_plus[: batch.real].detach(), random)
        return totals

    @torch.no_grad()
    def _views_of_rest(self, w_plus: Tensor, views: list[Tensor]) -> list[Tensor]:
        """Return the views of all reconstructions, painting those that have no image losses."""
        if not len(w_plus):
            return views
        encoder = self.run.encoder
        painted = self.run.generator.synthesis(w_plus).clamp(-1, 1)
        rest = encoder.look(resize(painted, encoder.core.input_px))[1]
        return [torch.cat(pair) for pair in zip(views, rest, strict=True)] if views else rest

    def code_losses(self, batch: Batch, w_plus: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Return the losses of codes with their weights: known ones, and regularisers on pictures."""
        run, options, std = self.run, self.run.options, self.run.encoder.core.w_std
        losses = {}
        if len(batch.w_plus):
            own = w_plus[batch.real :]
            seen = self.distance(own, batch.w_plus).mean()
            plain = ((own - batch.w_plus) / std).square().mean()
            losses["codes"] = (options.codes, torch.lerp(seen, plain, PLAIN_SHARE))
        if batch.real:
            own = w_plus[: batch.real]
            losses["w_norm"] = (
                options.w_norm,
                ((own - run.generator.w_avg) / std).square().mean(),
            )
            spread = (own - own.mean(1, keepdim=True)) / std
            losses["delta"] = (options.delta, spread.square().mean())
            if run.critic is not None:
                run.critic.requires_grad_(False)
                losses["critic"] = (options.critic, logistic_g_loss(run.critic(own.flatten(0, 1))))
        return losses

    def image_losses(
        self, batch: Batch, image: Tensor, maps: list[Tensor], target_maps: list[Tensor], *, identity: bool
    ) -> dict[str, tuple[float, Tensor]]:
        """Return the losses of painted images with their weights.

        Args:
            batch: its pictures.
            image: what the generator made of the first ``shown`` codes.
            maps, target_maps: the trunk's, of both.
            identity: whether the persons are compared too.
        """
        embedder = self.run.embedder if identity else None
        target = batch.image[: batch.shown]
        return picture_losses(self.run.options, image, target, maps, target_maps, embedder)

    def _step_critic(self, w_plus: Tensor, random: StepRandom) -> dict[str, float]:
        """Teach the latent discriminator what mapped noise looks like, and what the encoder makes."""
        run, critic, optimizer = self.run, self.run.critic, self.critic_optimizer
        if not len(w_plus) or critic is None or optimizer is None:
            return {}
        critic.requires_grad_(True)
        with torch.no_grad():
            known = run.generator.mapping(random.normal(CRITIC_ROWS, run.generator.z_dim)).float()
        known.requires_grad_()
        logits = critic(known)
        loss = logistic_d_loss(logits, critic(w_plus.flatten(0, 1)))
        penalty = r1_penalty(logits, known) * critic.w_std.square()
        (loss + 0.5 * run.options.critic_r1 * penalty).backward()
        run.runtime.average_gradients(critic.parameters())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"critic_loss": loss.item()}
