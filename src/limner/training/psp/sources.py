"""What a published encoder learns from: photos, pairs of one scene, and faces that the generator paints itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import OptionError
from limner.nn.irse import face_pool
from limner.nn.stylegan2 import Generator
from limner.training.data import PictureSet, list_parts, split_sources
from limner.training.gan.games import draw_w_plus
from limner.training.psp.options import UNPAIRED, PspOptions
from limner.training.run import StepRandom
from limner.training.translator.data import Scenes, draw_scenes
from limner.translation import TASKS, Task, make_input
from limner.translation.classes import CELEBA

SHOTS = 8
"""Pictures that figures and sheets are made of."""
PHOTO = Task("inversion", 3, "a photo to its codes", photo=True, made=True)


@dataclass
class Sample:
    """What one step learns from; faces that the generator painted come last.

    Args:
        x: what the encoder sees, without what ReStyle lays beside it, (B, C, S, S).
        truth: (B, 3, S, S), what should come out.
        w_plus: codes of the painted ones, (b, L, w_dim); None where there are none.
    """

    x: Tensor
    truth: Tensor
    w_plus: Tensor | None = None


def find_task(options: PspOptions) -> Task:
    """Return the task with the number of channels that pSp gives it, and where its inputs come from."""
    if options.task in UNPAIRED:
        return PHOTO
    task = TASKS[options.task]
    if task.name == "labels":
        return dataclasses.replace(task, in_channels=len(CELEBA))
    if task.name == "frontal" and not options.pairs:
        return dataclasses.replace(task, truth="photo", made=True)
    if task.made and options.pairs:
        return dataclasses.replace(task, source=task.name, made=False)
    return task


class Source:
    """Draws what an encoder learns from.

    Args:
        options: settings, the weights filled in.
        side: of the pictures in px.

    Attributes:
        task: what is learned.
        pictures, scenes: photos or pairs; both None where the generator paints everything.

    Raises:
        OptionError: pictures are missing, or are held out and learned from.
    """

    def __init__(self, options: PspOptions, side: int):
        self.options, self.side = options, side
        self.task = find_task(options)
        self.pictures: PictureSet | None = None
        self.scenes: Scenes | None = None
        if not self.task.made:
            self.scenes = self._read_scenes(options.scenes)
        elif options.made_share < 1:
            self.pictures = PictureSet(options.data, side, select=options.select)
        if options.validate:
            self._check_held_out()

    @property
    def counts(self) -> Mapping[str, int]:
        """Place -> pictures or pairs taken from it."""
        found = self.scenes or self.pictures
        return {} if found is None else found.counts

    def _read_scenes(self, select: str, *, every: bool = True) -> Scenes:
        return Scenes(
            self.options.pairs,
            self.side,
            {self.task.name: self.task},
            select=select,
            every=every,
            classes=self.options.classes,
            to="celeba",
        )

    def _check_held_out(self) -> None:
        options = self.options
        if self.scenes is not None:
            places = [place / "photo" for place in split_sources(options.pairs, what="pairs")]
            chosen, what = options.scenes, "scenes"
        elif self.pictures is not None:
            places, chosen, what = split_sources(options.data), options.select, "select"
        else:
            return
        learned, held = (
            {(place, name) for place, names in list_parts(places, select, every=False) for name in names}
            for select in (chosen, options.validate)
        )
        if both := sorted(learned & held):
            raise OptionError(
                f"validate {options.validate} and {what} {chosen or '(all)'} share {len(both)} pictures, such as "
                f"{both[0][1]}; pictures that figures are made of must not be learned from"
            )

    @torch.no_grad()
    def draw(self, count: int, generator: Generator, random: StepRandom, *, made: int) -> Sample:
        """Return ``count`` samples, ``made`` of them painted by the generator."""
        options, device = self.options, generator.w_avg.device
        if self.scenes is not None:
            drawn = draw_scenes(
                self.scenes,
                self.task,
                count,
                random.cpu,
                mirror=options.mirror,
                shift=0.0,
                device=device,
                scheme=CELEBA,
            )
            return Sample(drawn.x, drawn.truth)
        truth = torch.zeros(0, 3, self.side, self.side, device=device)
        if self.pictures is not None and count > made:
            truth = self.pictures.draw(count - made, random.cpu, mirror=options.mirror, device=device)
        w_plus = None
        if made:
            w_plus = draw_w_plus(generator, made, 0.0, random)
            painted = generator.synthesis(w_plus, "random", rng=random.local).float().clamp(-1, 1)
            truth = torch.cat([truth, face_pool(painted, self.side)])
        return Sample(self.make_input(truth, random.cpu), self._turn(truth, random.cpu), w_plus)

    def make_input(self, truth: Tensor, rng: torch.Generator | None) -> Tensor:
        """Return what the encoder sees of photos, (B, C, S, S)."""
        if self.task.name == "frontal":  # either side may be the one that is seen, see `_turn`
            return self._turn(truth, rng)
        if self.task is PHOTO:
            return truth
        return make_input(self.task, truth, rng, factors=self.options.factors)

    def _turn(self, truth: Tensor, rng: torch.Generator | None) -> Tensor:
        """Mirror half of the pictures of the task frontal, in which input and truth are mirrored apart.

        Source: Richardson et al. 2021, section 4.1: what comes out can only please both sides by being frontal.
        """
        if self.task.name != "frontal" or rng is None or not self.options.mirror:
            return truth
        flip = (torch.rand(len(truth), generator=rng) < 0.5).to(truth.device)
        return torch.where(flip[:, None, None, None], truth.flip(3), truth)

    @torch.no_grad()
    def held_out(self, generator: Generator) -> tuple[Sample, list[str]]:
        """Return the pictures for figures and sheets, on the generator's device, and their names."""
        options, device = self.options, generator.w_avg.device
        rng = torch.Generator().manual_seed(options.seed)
        if self.scenes is not None:
            scenes = self._read_scenes(options.validate, every=False) if options.validate else self.scenes
            chosen = torch.arange(min(SHOTS, len(scenes)))
            truth = scenes.get(self.task.truth, chosen, device)
            paired = scenes.get(self.task.source, chosen, device)
            if self.task.name == "inpaint":
                paired = (paired.mean(1, keepdim=True) > 0).float()
            x = make_input(self.task, truth, rng, paired=paired, scheme=CELEBA)
            return Sample(x, truth), scenes.names[: len(chosen)]
        if options.data:
            chosen = options.validate or options.select
            pictures = PictureSet(options.data, self.side, select=chosen, every=not options.validate)
            truth = pictures.pixels[:SHOTS].to(device).float() / 127.5 - 1
            names = [Path(name).stem for name in pictures.names[:SHOTS]]
        else:
            z = torch.randn(SHOTS, generator.z_dim, generator=rng).to(device)
            truth = face_pool(generator(z, psi=0.7).clamp(-1, 1), self.side)
            names = [f"made {number}" for number in range(SHOTS)]
        x = truth if self.task.name == "frontal" else self.make_input(truth, rng)
        return Sample(x, truth), names
