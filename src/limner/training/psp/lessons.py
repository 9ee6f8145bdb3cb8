"""One step of training a published encoder: its passes, the losses of pSp, e4e and ReStyle, the latent discriminator.

Source: Richardson et al. 2021, pSp (arXiv 2008.00951), section 3.2; Tov et al. 2021, e4e (arXiv 2102.02766), section
4; Alaluf et al. 2021, ReStyle (arXiv 2104.02699), section 3.
Differs: weights are averaged over time; gradients may be accumulated; codes of painted faces, which are known, may be
a loss of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import KeyMismatchError, OptionError
from limner.losses import logistic_d_loss, logistic_g_loss, r1_penalty, w_norm
from limner.nn.embedding import LatentCritic
from limner.nn.encoders import Encoder, codes_to_w_plus
from limner.nn.irse import ALIGNED_PX, FACE_BOX, WIDTHS, face_pool
from limner.nn.stylegan2 import Generator
from limner.training.lessons import NetLessons, NetRun, weighted_sum
from limner.training.optimizers import Ranger
from limner.training.psp.options import PspOptions, find_head, find_space, is_progressive, is_restyle
from limner.training.psp.sources import Sample, Source
from limner.training.run import Runtime, StepRandom

MOST_INPUT_PX, LEAST_INPUT_PX = 256, 32
CRITIC_DEPTH = 4
SHARED_RANK = 4000
"""Stands for all processes together where they must draw the same."""

# (image, target), both (B, 3, S, S) -> (B,); or None where the weights of the loss are 0.
PairLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class PspRun(NetRun[PspOptions]):
    """The networks of a run and how far it is.

    Args:
        encoder: trained.
        average: its average, which is shipped.
        source: what it learns from.
        about: name and digest of the generator that the run began with.
        perceptual, identity: distances of pictures; None leaves the loss out.
        average_generator: the generator's average where it is trained too, else None.
        notes: what has to be told about the run, such as what its body began with; kept in its saved state.
    """

    encoder: Encoder
    average: Encoder
    source: Source
    about: dict[str, str]
    perceptual: PairLoss | None = None
    identity: PairLoss | None = None
    average_generator: Generator | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> dict[str, str]:
        """Name and digest of the generator that the run began with."""
        return self.about

    @property
    def painter(self) -> Generator:
        """The generator that belongs to the averaged encoder."""
        return self.generator if self.average_generator is None else self.average_generator

    def trained(self) -> dict[str, nn.Module]:
        """Return the encoder, and the generator where it is trained."""
        found: dict[str, nn.Module] = {"encoder": self.encoder}
        return found if self.average_generator is None else found | {"generator": self.generator}

    def averages(self) -> dict[str, nn.Module]:
        """Return their averages."""
        found: dict[str, nn.Module] = {"average": self.average}
        mine = self.average_generator
        return found if mine is None else found | {"average_generator": mine}

    def stage(self) -> int | None:
        """Return the last row that has a difference of its own now; None for all."""
        options = self.options
        if not is_progressive(options) or not options.progressive_kimg or not self.encoder.deltas:
            return None
        past = self.kimg - options.progressive_start_kimg
        return 0 if past < 0 else min(1 + int(past / options.progressive_kimg), self.encoder.rows - 1)


def describe_encoder(options: PspOptions, generator: Generator, channels: int) -> dict[str, Any]:
    """Return the arguments of the encoder that options ask for.

    Args:
        options: settings.
        generator: what it is for.
        channels: of the task's input.
    """
    restyle = is_restyle(options)
    head, space = find_head(options), find_space(options)
    side = options.input_px or min(max(generator.resolution, LEAST_INPUT_PX), MOST_INPUT_PX)
    return {
        "rows": generator.num_rows,
        "body": options.body,
        "head": head,
        "in_channels": channels * (2 if restyle else 1),
        "in_size": side,
        "w_dim": generator.z_dim if space == "z+" else generator.w_dim,
        "widths": [options.width * width // WIDTHS[0] for width in WIDTHS],
        "deltas": is_progressive(options) and head != "w",
        "feedback": restyle,
        "iterations": options.iterations if restyle else 1,
        "space": space,
    }


def build_run(
    options: PspOptions,
    runtime: Runtime,
    *,
    generator: Generator,
    source: Source,
    encoder: Encoder,
    base: dict[str, str],
    perceptual: PairLoss | None = None,
    identity: PairLoss | None = None,
    init: Encoder | None = None,
) -> PspRun:
    """Make the networks of a new run.

    Args:
        options: settings, the weights filled in (`limner.training.psp.options.settle_weights`).
        runtime: device and processes.
        generator: on the runtime's device; it is changed if ``train_decoder`` asks for it.
        source: what to learn from.
        encoder: fresh, see `describe_encoder`.
        base: name and digest of the generator.
        perceptual, identity: losses of pictures.
        init: encoder whose weights are taken over.

    Raises:
        OptionError: a batch that cannot be shared.
        KeyMismatchError: ``init`` is of another size.
    """
    share = options.batch_size // runtime.world
    if share * runtime.world != options.batch_size:
        raise OptionError(f"batch_size {options.batch_size} cannot be shared by {runtime.world} processes")
    if options.batch_per_device and share % options.batch_per_device:
        raise OptionError(
            f"batch_per_device {options.batch_per_device} does not divide the {share} pictures of a process"
        )
    device = runtime.device
    critic = LatentCritic(w_dim=generator.w_dim, depth=CRITIC_DEPTH).to(device) if options.critic else None
    if init is not None:
        _take_over(encoder, init)
    with torch.no_grad():
        if encoder.space != "z+":
            encoder.mean.copy_(generator.w_avg.expand_as(encoder.mean))
        if critic is not None:
            critic.calibrate(
                generator.mapping(StepRandom(options.seed, 0, 0, device).normal(4096, generator.z_dim))
            )
    encoder.to(device, memory_format=torch.channels_last).requires_grad_(True).train()  # type: ignore[call-overload]
    averaged = None
    if options.train_decoder:
        averaged = copy.deepcopy(generator).requires_grad_(False).eval()
    generator.requires_grad_(options.train_decoder)
    return PspRun(
        options=options,
        runtime=runtime,
        generator=generator,
        critic=critic,
        encoder=encoder,
        average=copy.deepcopy(encoder).requires_grad_(False).eval(),
        source=source,
        about=base,
        perceptual=perceptual,
        identity=identity,
        average_generator=averaged,
    )


def _take_over(encoder: Encoder, init: Encoder) -> None:
    ours, theirs = encoder.config(), init.config()
    differ = [
        f"{key} {theirs[key]}, here {ours[key]}"
        for key in ours
        if key != "iterations" and ours[key] != theirs[key]
    ]
    if differ:
        raise KeyMismatchError(f"init is another encoder: {'; '.join(differ)}; start without it")
    encoder.load_state_dict(init.state_dict())


class CodePool:
    """Earlier codes of the encoder, which the latent discriminator is shown half of the time.

    Args:
        size: how many are kept; 0 for none.

    Source: Shrivastava et al. 2017 (arXiv 1612.07828), section 2.3.
    """

    def __init__(self, size: int):
        self.size = size
        self.kept: list[Tensor] = []

    def swap(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Keep new codes (B, w_dim) and return as many, about half of them older ones once there are enough."""
        if not self.size:
            return rows
        shown = []
        for row in rows:
            chance, place = torch.rand(2, generator=rng).tolist()
            if len(self.kept) < self.size:
                self.kept.append(row.clone())
            elif chance < 0.5:
                index = int(place * self.size)
                row, self.kept[index] = self.kept[index], row.clone()
            shown.append(row)
        return torch.stack(shown)


class PspLessons(NetLessons[PspRun]):
    """One step of training.

    Args:
        run: networks and settings.
    """

    largest_gradient = None

    def __init__(self, run: PspRun):
        options = run.options
        kinds: dict[str, Any] = {"ranger": _ranger, "adam": torch.optim.Adam}
        super().__init__(run, kinds[options.optimizer](list(run.parameters()), lr=options.lr))
        self.critic_optimizer: torch.optim.Optimizer | None = None
        if run.critic is not None:
            self.critic_optimizer = torch.optim.Adam(run.critic.parameters(), options.critic_lr)
        self.pool = CodePool(options.critic_pool)
        with torch.no_grad():
            w = run.generator.mapping(
                StepRandom(options.seed, 0, 0, run.runtime.device).normal(4096, run.generator.z_dim)
            )
        self.w_std = (w - w.mean(0)).square().mean().sqrt()

    def state(self) -> dict[str, Any]:
        """Return the optimisers' states, the pool of codes and the run's notes."""
        critic = self.critic_optimizer
        mine = {"critic": critic and critic.state_dict(), "pool": self.pool.kept, "notes": self.run.notes}
        return super().state() | mine

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned; today's notes come before the saved ones of the same kind."""
        super().load_state(state)
        self.pool.kept = list(state["pool"])
        self.run.notes = state.get("notes", {}) | self.run.notes  # older states have none
        if self.critic_optimizer is not None:
            self.critic_optimizer.load_state_dict(state["critic"])

    def step(self, random: StepRandom) -> dict[str, float]:
        """Learn from one batch; return the figures for the log."""
        run, options = self.run, self.run.options
        size = options.batch_size // run.runtime.world
        part = options.batch_per_device or size
        alone = run.kimg < options.codes_kimg
        totals: dict[str, float] = {}
        rows = []
        for _ in range(size // part):
            made = part if alone else draw_count(part * options.made_share, random)
            with run.runtime.autocast():
                sample = run.source.draw(part, run.generator, random, made=made)
            w_plus = self._learn(sample, random, part / size, totals, codes_alone=alone)
            rows.append(w_plus)
        self.update()
        run.runtime.average_buffers(run.encoder)
        if run.critic is not None and not alone:
            totals |= self._step_critic(torch.cat(rows), random)
        stage = run.stage()
        return totals if stage is None else totals | {"free_rows": stage}

    def _learn(
        self, sample: Sample, random: StepRandom, share: float, totals: dict[str, float], *, codes_alone: bool
    ) -> Tensor:
        """Go through the passes of one part of the batch; return its last codes in w+, (b, L, w_dim), detached."""
        run, encoder, generator = self.run, self.run.encoder, self.run.generator
        codes, painted = None, None
        passes = 1 if codes_alone or not encoder.feedback else run.options.iterations
        w_plus = sample.truth
        for number in range(passes):
            seen = sample.x
            if encoder.feedback:
                painted = self._start_picture(len(seen)) if painted is None else painted
                seen = torch.cat([seen, painted], 1)
            with run.runtime.autocast():
                codes = encoder(seen, None if codes is None else codes.detach(), stage=run.stage()).float()
                w_plus = codes_to_w_plus(generator, encoder, codes).float()
                losses = self._code_losses(sample, codes, w_plus, codes_alone=codes_alone)
                small = None
                if not codes_alone:
                    image = generator.synthesis(w_plus, "random", rng=random.local)
                    small = face_pool(image, encoder.in_size).float()
            if small is not None:
                losses |= self._image_losses(small, sample.truth)
                painted = small.detach()
            (weighted_sum(losses) * share).backward()
            for name, (_, value) in losses.items():
                if number in (0, passes - 1):
                    key = f"{name}_first" if passes > 1 and not number else name
                    totals[key] = totals.get(key, 0.0) + value.item() * share
        return w_plus.detach()

    @torch.no_grad()
    def _start_picture(self, count: int) -> Tensor:
        """Return the average picture, which every first pass sees, (B, 3, S, S)."""
        run, encoder = self.run, self.run.encoder
        with run.runtime.autocast():
            w_plus = codes_to_w_plus(run.generator, encoder, encoder.average_codes(1))
            image = face_pool(run.generator.synthesis(w_plus), encoder.in_size).float()
        return image.expand(count, -1, -1, -1)

    def _code_losses(
        self, sample: Sample, codes: Tensor, w_plus: Tensor, *, codes_alone: bool
    ) -> dict[str, tuple[float, Tensor]]:
        """Return the losses of codes with their weights; those that weigh nothing are left out."""
        run, options = self.run, self.run.options
        losses: dict[str, tuple[float, Tensor]] = {}
        if options.codes and sample.w_plus is not None:
            known = sample.w_plus
            error = (w_plus[-len(known) :] - known) / self.w_std
            losses["codes"] = (options.codes, error.square().mean())
        if codes_alone:
            return losses
        stage = run.stage()
        free = w_plus if stage is None else w_plus[:, : stage + 1]
        if options.w_norm:
            losses["w_norm"] = (options.w_norm, w_norm(codes, run.encoder.mean))
        if options.delta and free.shape[1] > 1:
            change = free[:, 1:] - free[:, :1]
            losses["delta"] = (options.delta, change.norm(dim=2).sum(1).mean())
        if options.critic and run.critic is not None:
            run.critic.requires_grad_(False)
            losses["critic"] = (options.critic, logistic_g_loss(run.critic(free.flatten(0, 1))))
        return losses

    def _image_losses(self, image: Tensor, truth: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Return the losses of painted pictures with their weights; those that weigh nothing are left out."""
        run, options = self.run, self.run.options
        losses: dict[str, tuple[float, Tensor]] = {}
        if options.l2:
            losses["l2"] = (options.l2, (image - truth).square().mean())
        if options.perceptual and run.perceptual is not None:
            losses["perceptual"] = (options.perceptual, run.perceptual(image, truth).mean())
        if options.identity and run.identity is not None:
            losses["identity"] = (options.identity, run.identity(image, truth).mean())
        if options.l2_crop or options.perceptual_crop:
            mine, theirs = crop_face(image), crop_face(truth)
            if options.l2_crop:
                losses["l2_crop"] = (options.l2_crop, (mine - theirs).square().mean())
            if options.perceptual_crop and run.perceptual is not None:
                losses["perceptual_crop"] = (options.perceptual_crop, run.perceptual(mine, theirs).mean())
        return losses

    def _step_critic(self, w_plus: Tensor, random: StepRandom) -> dict[str, float]:
        """Teach the latent discriminator what mapped noise looks like, and what the encoder makes."""
        run, options, critic, optimizer = self.run, self.run.options, self.run.critic, self.critic_optimizer
        assert critic is not None
        assert optimizer is not None
        stage = run.stage()
        last = w_plus.shape[1] if stage is None else stage + 1
        # One row of every picture, as in e4e; all processes keep one pool.
        chosen = torch.randint(last, (len(w_plus),), generator=random.cpu).to(w_plus.device)
        rows = run.runtime.gather(w_plus[torch.arange(len(w_plus), device=w_plus.device), chosen])
        shared = StepRandom(options.seed, run.step + 1, SHARED_RANK, run.runtime.device).cpu
        shown = self.pool.swap(rows, shared).chunk(run.runtime.world)[run.runtime.rank]
        critic.requires_grad_(True)
        with torch.no_grad():
            known = run.generator.mapping(random.normal(len(shown), run.generator.z_dim)).float()
        known.requires_grad_()
        logits = critic(known)
        loss = logistic_d_loss(logits, critic(shown))
        total = loss
        if options.critic_r1 and run.step % options.critic_r1_interval == 0:
            penalty = r1_penalty(logits, known) * critic.w_std.square()
            total = loss + 0.5 * options.critic_r1 * options.critic_r1_interval * penalty
        total.backward()
        run.runtime.average_gradients(critic.parameters())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"critic_loss": loss.item()}


def draw_count(expected: float, random: StepRandom) -> int:
    """Return a whole number whose mean over steps is ``expected``: one of the two beside it."""
    count = int(expected)
    rest = expected - count
    return count + (random.chance() < rest) if rest else count


def _ranger(params: list[nn.Parameter], lr: float) -> Ranger:
    return Ranger(params, lr=lr, centralize=True)


def crop_face(image: Tensor) -> Tensor:
    """Cut the face out of an aligned picture (B, 3, S, S), in the proportions that ArcFace is shown at 256 px."""
    scale = image.shape[2] / ALIGNED_PX
    top, bottom, left, right = (round(edge * scale) for edge in FACE_BOX)
    return image[:, :, top:bottom, left:right]
