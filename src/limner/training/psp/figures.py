"""Figures and sheets of a published encoder on held-out pictures, between the mean face and, if asked for, a search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limner.inversion import Distance
from limner.nn.encoders import codes_to_w_plus, refine
from limner.nn.irse import face_pool
from limner.nn.stylegan2 import Generator
from limner.training.encoder.figures import EncoderExam
from limner.training.psp.lessons import PspRun
from limner.training.psp.sources import PHOTO, Sample
from limner.translation import Task
from limner.translation.classes import CELEBA, OURS
from limner.translation.tasks import show_input


class PspExam(EncoderExam):
    """Measures encoders for one task on held-out pictures.

    Args:
        generator: its mean face is the floor.
        sample: what the encoder sees, and what should come out.
        names: one per picture.
        task: of the encoder.
        steps: passes of the encoder.
        renders, perceptual, identity: see `EncoderExam`.
    """

    def __init__(
        self,
        generator: Generator,
        sample: Sample,
        names: Sequence[str],
        *,
        task: Task,
        steps: int,
        renders: int,
        perceptual: Distance,
        identity: Distance,
    ):
        self.sample, self.task = sample, task
        super().__init__(
            generator,
            sample.truth,
            names,
            renders=renders,
            perceptual=perceptual,
            identity=identity,
            steps=steps,
        )

    def paint(self, w_plus: Tensor) -> Tensor:
        """w+ -> pictures at the size that the encoder compares."""
        return face_pool(self.generator.synthesis(w_plus).float().clamp(-1, 1), self.image.shape[2])

    def rows(self, encoder: PspRun) -> list[Tensor]:
        """Return what the run's averaged networks make of the pictures, after every pass."""
        run, self.generator = encoder, encoder.painter
        passes = [
            refine(run.average, self.generator, x[None]) for x in self.sample.x
        ]  # one by one: figures of a picture must not depend on the others
        return [
            self.paint(codes_to_w_plus(self.generator, run.average, torch.cat(codes)))
            for codes in zip(*passes, strict=True)
        ]

    def above(self) -> list[tuple[str, Tensor]]:
        """Return what stands above the mean face in a sheet: the input, if it is no photo of the truth, and the truth."""
        if self.task is PHOTO:
            return super().above()
        scheme = CELEBA if self.task.in_channels == len(CELEBA) else OURS
        return [("input", show_input(self.task, self.sample.x, scheme=scheme)), ("truth", self.image)]
