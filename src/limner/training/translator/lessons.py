"""One step of translator training: inputs of every task, the teacher's codes, a few painted pictures.

Source: Richardson et al. 2021, pSp (arXiv 2008.00951), sections 3.2 and 4: tasks and losses.
Differs: all tasks are learned at once; most pictures are never painted, their codes are compared with those that an
encoder finds for the true face (Hinton et al. 2015, arXiv 1503.02531), or that a generated face was made of.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.errors import KeyMismatchError, OptionError, ShapeError
from limner.losses import Embedder
from limner.nn.compact import CompactCore, add_pixels, resize
from limner.nn.features import Lite0
from limner.nn.stylegan2 import Generator
from limner.nn.translator import Translator, TranslatorCore
from limner.training.lessons import (
    MOST_INPUT_PX,
    PLAIN_SHARE,
    CoreLessons,
    CoreRun,
    draw_codes,
    picture_losses,
    take_over,
    weighted_sum,
)
from limner.training.run import Runtime, StepRandom
from limner.training.style_metric import StyleMetric
from limner.training.translator.data import Scenes, draw_scenes, find_tasks
from limner.training.translator.options import TranslatorOptions
from limner.translation import Task, make_input


@dataclass
class Lesson:
    """What can be learned from: pictures with the codes of the true faces.

    Args:
        photos: uint8 (N, 3, R, R), for the tasks whose inputs are made of photos; None where there are none.
        photo_codes: (N, L, w_dim), float16.
        scenes: pairs.
        scene_codes: kind of the true picture -> codes; those of the mirrored pictures have another entry,
            ``KIND-mirrored``.
    """

    photos: Tensor | None = None
    photo_codes: Tensor | None = None
    scenes: Scenes | None = None
    scene_codes: dict[str, Tensor] | None = None


@dataclass
class TranslatorRun(CoreRun[TranslatorOptions, Translator]):
    """The networks of a run and how far it is; see also `CoreRun`.

    Args:
        tasks: what it learns.
        lesson: what it learns from.
        embedder: identity embedder; None leaves its loss out.
    """

    tasks: dict[str, Task]
    lesson: Lesson
    embedder: Embedder | None = None


def build_run(
    options: TranslatorOptions,
    runtime: Runtime,
    *,
    generator: Generator,
    trunk: Lite0,
    base: dict[str, str],
    lesson: Lesson,
    embedder: Embedder | None = None,
    init: CompactCore | TranslatorCore | None = None,
) -> TranslatorRun:
    """Make the networks of a new run.

    Args:
        options: settings.
        runtime: device and processes.
        generator: frozen base, on the runtime's device, as the other networks.
        trunk: frozen Lite0.
        base: name and digest of the generator.
        lesson: what to learn from.
        embedder: identity embedder for the loss.
        init: an encoder or translator whose weights are taken over.

    Raises:
        OptionError: options that contradict one another, or pictures are missing.
        KeyMismatchError: ``init`` is of another size.
    """
    tasks = find_tasks(options.task)
    share = options.batch_size // (len(tasks) * runtime.world)
    if not share or share * len(tasks) * runtime.world != options.batch_size:
        raise OptionError(
            f"batch_size {options.batch_size} cannot be shared by {len(tasks)} tasks and {runtime.world} processes"
        )
    for task in tasks.values():
        if not task.made and lesson.scenes is None:
            raise OptionError(f"pairs must be given: the task {task.name} learns from them")
    input_px = options.input_px or min(max(generator.resolution, 32), MOST_INPUT_PX)
    device = runtime.device
    torch.manual_seed(options.seed)
    core = TranslatorCore(
        num_rows=generator.num_rows,
        w_dim=generator.w_dim,
        tasks={name: task.in_channels for name, task in tasks.items()},
        channels=trunk.channels[1:],
        input_px=input_px,
        width=options.width,
        hidden=options.hidden,
        rank=options.rank,
        inner=options.inner,
        head_rank=options.head_rank,
    ).to(device)
    with torch.no_grad():
        w = generator.mapping(StepRandom(options.seed, 0, 0, device).normal(4096, generator.z_dim))
        painted = generator.synthesis(generator.broadcast(w[:64])).clamp(-1, 1)
        core.calibrate(_look(trunk, painted, input_px))
        if isinstance(init, CompactCore):
            current = _look(trunk, generator.synthesis(generator.broadcast(generator.w_avg[None])), input_px)
            try:
                core.take_encoder(init, current)
            except ShapeError as error:
                raise KeyMismatchError(f"init cannot be taken over: {error}; start without it") from None
        elif init is not None:
            take_over(core, init)
        core.w_avg.copy_(generator.w_avg)
        core.w_std.copy_((w - w.mean(0)).square().mean().sqrt())
    average = copy.deepcopy(core).requires_grad_(False).eval()
    return TranslatorRun(
        options=options,
        runtime=runtime,
        generator=generator.requires_grad_(False),
        encoder=Translator(trunk=trunk, core=core, base=base),
        average=Translator(trunk=trunk, core=average, base=base),
        tasks=tasks,
        lesson=lesson,
        embedder=embedder,
    )


def _look(trunk: Lite0, image: Tensor, side: int) -> list[Tensor]:
    image = resize(image.clamp(-1, 1), side)
    return add_pixels(trunk(image), image)


@dataclass
class Batch:
    """What one step learns from, task after task.

    Args:
        inputs: task and what its network sees, (b, C, R, R).
        truth: (B, 3, R, R), the faces that should come out.
        w_plus: their codes, (B, L, w_dim).
    """

    inputs: list[tuple[str, Tensor]]
    truth: Tensor
    w_plus: Tensor


class TranslatorLessons(CoreLessons[TranslatorRun]):
    """One step of training.

    Args:
        run: networks and settings.
    """

    def __init__(self, run: TranslatorRun):
        super().__init__(run)
        random = StepRandom(run.options.seed, 0, 0, run.runtime.device)
        self.distance = StyleMetric(run.generator, random.normal(2048, run.generator.z_dim), rng=random.cpu)

    @torch.no_grad()
    def make_batch(self, random: StepRandom) -> Batch:
        """Draw scenes and photos, generate faces, and make the inputs of every task."""
        run = self.run
        share = run.options.batch_size // (len(run.tasks) * run.runtime.world)
        made = self._generate(share, random) if any(task.made for task in run.tasks.values()) else None
        inputs, truths, codes = [], [], []
        for name, task in run.tasks.items():
            x, truth, w_plus = (
                self._from_photos(task, share, made, random)
                if task.made and made is not None
                else self._from_scenes(task, share, random)
            )
            inputs.append((name, x))
            truths.append(truth)
            codes.append(w_plus)
        return Batch(inputs, torch.cat(truths), torch.cat(codes))

    def _generate(self, share: int, random: StepRandom) -> tuple[Tensor, Tensor]:
        """Return generated faces, which serve all tasks whose inputs are made, and their codes."""
        run, options = self.run, self.run.options
        count = share if run.lesson.photos is None else math.ceil(share * options.made_share)
        w_plus = draw_codes(run.generator, count, options, random)
        if not count:
            return w_plus.new_zeros(0, 3, run.generator.resolution, run.generator.resolution), w_plus
        return run.generator.synthesis(w_plus, "random", rng=random.local).float().clamp(-1, 1), w_plus

    def _from_photos(
        self, task: Task, share: int, made: tuple[Tensor, Tensor], random: StepRandom
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, true faces and codes of a task whose inputs are made of photos."""
        lesson, (image, w_plus) = self.run.lesson, made
        if lesson.photos is not None and lesson.photo_codes is not None and share > len(image):
            chosen = torch.randint(len(lesson.photos), (share - len(image),), generator=random.cpu)
            drawn = lesson.photos[chosen].to(image.device).float() / 127.5 - 1
            image = torch.cat([drawn, image])
            w_plus = torch.cat([lesson.photo_codes[chosen].to(w_plus), w_plus])
        return make_input(task, image, random.cpu), image, w_plus

    def _from_scenes(self, task: Task, share: int, random: StepRandom) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, true faces and codes of a task that has pairs; half of them mirrored."""
        run, options, device = self.run, self.run.options, self.run.runtime.device
        scenes, codes = run.lesson.scenes, run.lesson.scene_codes
        assert scenes is not None
        assert codes is not None
        drawn = draw_scenes(
            scenes, task, share, random.cpu, mirror=options.mirror, shift=options.shift, device=device
        )
        w_plus = codes[task.truth][drawn.chosen]
        if drawn.flip.any():
            mirrored = codes[f"{task.truth}-mirrored"][drawn.chosen]
            w_plus = torch.where(drawn.flip[:, None, None], mirrored, w_plus)
        return drawn.x, drawn.truth, w_plus.to(device).float()

    def step(self, random: StepRandom) -> dict[str, float]:
        """Learn from one batch; return the figures for the log."""
        run, options = self.run, self.run.options
        batch = self.make_batch(random)
        with run.runtime.autocast():
            w_plus = run.encoder.translate(batch.inputs, drop=options.drop, rng=random.cpu).float()
        seen = self.distance(w_plus, batch.w_plus)  # (B,)
        plain = ((w_plus - batch.w_plus) / run.encoder.core.w_std).square().mean((1, 2))
        found = torch.lerp(seen, plain, PLAIN_SHARE)
        losses = {"codes": (options.codes, found.mean())} | self._painted(batch, w_plus, random)
        weighted_sum(losses).backward()
        self.update()
        record = {name: value.item() for name, (_, value) in losses.items()}
        for name, part in zip(run.tasks, found.detach().chunk(len(run.tasks)), strict=True):
            record[f"codes_{name}"] = part.mean().item()
        return record

    def _painted(self, batch: Batch, w_plus: Tensor, random: StepRandom) -> dict[str, tuple[float, Tensor]]:
        """Return the losses of a few pictures, drawn from all tasks, that are painted."""
        run, options = self.run, self.run.options
        shown = math.ceil(len(w_plus) * options.shown_share) if run.kimg >= options.codes_kimg else 0
        if not shown:
            return {}
        chosen = torch.randperm(len(w_plus), generator=random.cpu)[:shown].to(w_plus.device)
        truth, side = batch.truth[chosen], run.encoder.core.input_px
        with run.runtime.autocast():
            image = run.generator.synthesis(w_plus[chosen])
            maps = run.encoder.trunk(resize(image, side))
            with torch.no_grad():
                target_maps = run.encoder.trunk(resize(truth, side))
        return picture_losses(options, image.float(), truth, maps, target_maps, run.embedder)
