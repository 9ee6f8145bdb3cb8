"""Figures and sheets of an encoder: its reconstructions between a floor (the mean face) and a ceiling (a search)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import media
from limner.inversion import Distance, InversionOptions, invert
from limner.inversion.report import measure
from limner.nn.stylegan2 import Generator

FIGURES = ("psnr", "ssim", "perceptual", "identity")
SHEET_PX = 128


class EncoderExam:
    """Measures encoders of one generator on held-out pictures.

    Args:
        generator: the base.
        image: pictures (N, 3, R, R), the renders first.
        names: one per picture.
        renders: how many of them are renders; the others are photos, which have figures of their own.
        perceptual, identity: distances.
        steps: of the encoder; the figures are of the last one.
        ceiling_steps: of the search in w+; 0 for no ceiling.
        keep: file in which the ceiling is kept for the next start; None keeps nothing.
    """

    def __init__(
        self,
        generator: Generator,
        image: Tensor,
        names: Sequence[str],
        *,
        renders: int,
        perceptual: Distance,
        identity: Distance,
        steps: int,
        ceiling_steps: int = 0,
        keep: Path | None = None,
    ):
        self.generator, self.image, self.names, self.renders = generator, image, tuple(names), renders
        self.perceptual, self.identity, self.steps = perceptual, identity, steps
        with torch.no_grad():
            floor = self.paint(generator.broadcast(generator.w_avg[None]))
        self.floor = floor.expand_as(image)
        self.ceiling = self._search(ceiling_steps, keep) if ceiling_steps else None
        self.limits = self._figures(self.floor, "floor")
        if self.ceiling is not None:
            self.limits |= self._figures(self.ceiling, "ceiling")

    def paint(self, w_plus: Tensor) -> Tensor:
        """w+ (B, L, w_dim) -> pictures as they are compared."""
        return self.generator.synthesis(w_plus).clamp(-1, 1)

    def rows(self, encoder: Any) -> list[Tensor]:
        """Return what an encoder makes of the pictures, after every step."""
        return [self.paint(w_plus) for w_plus in encoder.encode(self.generator, self.image, steps=self.steps)]

    def above(self) -> list[tuple[str, Tensor]]:
        """Return what stands above the mean face in a sheet."""
        return [("picture", self.image)]

    def _search(self, steps: int, keep: Path | None) -> Tensor:
        if keep is not None and keep.is_file():
            kept = torch.from_numpy(np.load(keep)).to(self.image)
            if kept.shape == self.image.shape:
                return kept
        found = invert(
            self.generator,
            self.image,
            InversionOptions(steps=steps, fit_noise=False),
            perceptual=self.perceptual,
        ).image
        if keep is not None:
            np.save(keep, found.cpu().numpy())
        return found

    def _figures(self, image: Tensor, suffix: str = "") -> dict[str, float]:
        """Return the mean figures of renders and, with ``photo_`` before their names, of photos."""
        report = measure(
            image,
            self.image,
            method="encoder",
            perceptual=self.perceptual,
            identity=self.identity,
            steps=[self.steps] * len(image),
            seconds=0,
        )
        figures = {}
        for prefix, part in (("", report[: self.renders]), ("photo_", report[self.renders :])):
            for name in FIGURES:
                values = [value for one in part if (value := getattr(one, name)) is not None]
                if values:
                    figures[f"{prefix}{name}" + f"_{suffix}" * bool(suffix)] = sum(values) / len(values)
        return figures

    @torch.no_grad()
    def measure(self, encoder: Any, sheet: Path | None = None) -> dict[str, float]:
        """Return the figures of an encoder with those of floor and ceiling; write a sheet.

        Args:
            encoder: of this generator, as `rows` takes it.
            sheet: picture to write: originals, every step, the ceiling.
        """
        rows = self.rows(encoder)
        if sheet is not None:
            above = self.above()
            labels = [*(label for label, _ in above), "mean", *(f"step {n + 1}" for n in range(len(rows)))]
            shown = [*(image for _, image in above), self.floor, *rows]
            if self.ceiling is not None:
                labels.append("search")
                shown.append(self.ceiling)
            cells = [media.to_pixels(image) for image in shown]
            page = media.make_sheet(
                cells, column_labels=self.names, row_labels=labels, cell_px=max(SHEET_PX, self.image.shape[2])
            )
            media.write(
                sheet,
                page,
                options={"command": "train encoder"},
                source_type="compositeWithTrainedAlgorithmicMedia",
            )
        return self._figures(rows[-1].float()) | self.limits
