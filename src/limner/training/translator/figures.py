"""Figures and sheets of a translator: are its faces nearer to their own true face than to those of the other scenes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from limner import media
from limner.losses import maps_vectors, squared_distances
from limner.nn.compact import CompactEncoder, resize
from limner.nn.features import Lite0
from limner.nn.stylegan2 import Generator
from limner.nn.translator import Translator
from limner.training.translator.data import Scenes
from limner.translation import Task, make_input
from limner.translation.tasks import show_input

SHEET_SCENES = 8
CHUNK = 16
EXAM_SEED = 7


class TruthIndex:
    """Perceptual distances of results to many true faces at once.

    The distance is that of `limner.losses.maps_distance`.

    Args:
        trunk: frozen Lite0.
        truth: (N, 3, R, R).
        side: at which the trunk looks.
    """

    def __init__(self, trunk: Lite0, truth: Tensor, *, side: int = 128):
        self.trunk, self.side = trunk, side
        self.vectors = self.embed(truth)

    @torch.no_grad()
    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> vectors whose squared distance is the perceptual distance, (B, K)."""
        found = []
        for part in image.split(CHUNK):
            found.append(maps_vectors(self.trunk(resize(part, self.side))))
        return torch.cat(found)

    def distances(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> distances to every true face, (B, N)."""
        return squared_distances(self.embed(image), self.vectors)


def nearest_share(distances: Tensor, first: int = 0) -> float:
    """Return the share of results that are nearer to their own true face than to every other one.

    Args:
        distances: (B, N); result i belongs to true face ``first + i``.
        first: see above.
    """
    own = torch.arange(len(distances), device=distances.device) + first
    mine = distances.gather(1, own[:, None])
    others = distances.scatter(1, own[:, None], float("inf"))
    return (mine[:, 0] < others.min(1).values).float().mean().item()


class TranslatorExam:
    """Measures translators of one generator on held-out scenes.

    Args:
        generator: the base.
        trunk: measures the distance.
        scenes: held out; all of them are what a result is compared with.
        tasks: what is measured.
        count: how many scenes, from the first, are translated.
        teacher: encoder of the base; its reconstruction of the true face is the ceiling.  None for no ceiling.
        teacher_steps: of it.
    """

    def __init__(
        self,
        generator: Generator,
        trunk: Lite0,
        scenes: Scenes,
        tasks: Mapping[str, Task],
        *,
        count: int,
        teacher: CompactEncoder | None = None,
        teacher_steps: int = 1,
    ):
        self.generator, self.tasks, self.scenes = generator, dict(tasks), scenes
        device = generator.w_avg.device
        self.count = min(count, len(scenes))
        everything, some = torch.arange(len(scenes)), torch.arange(self.count)
        self.truth: dict[str, Tensor] = {}
        self.index: dict[str, TruthIndex] = {}
        self.limits: dict[str, float] = {}
        self.ceiling: dict[str, Tensor] = {}
        with torch.no_grad():
            floor = generator.synthesis(generator.broadcast(generator.w_avg[None])).clamp(-1, 1)
        for kind in sorted({task.truth for task in self.tasks.values()}):
            truth = scenes.get(kind, everything, device)
            self.truth[kind], self.index[kind] = truth[some], TruthIndex(trunk, truth)
            self._limit(f"{kind}_mean", floor.expand(self.count, -1, -1, -1), kind)
            if teacher is not None:
                codes = [
                    teacher.encode(generator, x, steps=teacher_steps)[-1] for x in truth[some].split(CHUNK)
                ]
                self.ceiling[kind] = self.paint(torch.cat(codes))
                self._limit(f"{kind}_teacher", self.ceiling[kind], kind)
        self.inputs = {}
        for name, task in self.tasks.items():
            rng = torch.Generator().manual_seed(EXAM_SEED)
            paired = None if task.made else scenes.get(task.source, some, device)
            self.inputs[name] = make_input(task, self.truth[task.truth], rng, paired=paired)

    def _limit(self, name: str, image: Tensor, kind: str) -> None:
        distances = self.index[kind].distances(image)
        self.limits[f"{name}_nearest"] = nearest_share(distances)
        self.limits[f"{name}_perceptual"] = distances.diagonal().mean().item()

    @torch.no_grad()
    def paint(self, w_plus: Tensor) -> Tensor:
        """Return what the generator makes of codes, (B, 3, R, R) in [-1, 1]."""
        return torch.cat([self.generator.synthesis(x).clamp(-1, 1).float() for x in w_plus.split(CHUNK)])

    @torch.no_grad()
    def measure(self, translator: Translator, sheet: Path | None = None) -> dict[str, float]:
        """Return every task's share of nearest results and mean distance, with those of the mean face and the teacher.

        Args:
            translator: of this generator.
            sheet: picture to write: for every task inputs, results, true faces.
        """
        figures, rows, labels = {}, [], []
        for name, task in self.tasks.items():
            x = self.inputs[name]
            result = self.paint(torch.cat([translator(name, part) for part in x.split(CHUNK)]))
            distances = self.index[task.truth].distances(result)
            figures[f"{name}_nearest"] = nearest_share(distances)
            figures[f"{name}_perceptual"] = distances.diagonal().mean().item()
            rows += [
                show_input(task, x[:SHEET_SCENES]),
                result[:SHEET_SCENES],
                self.truth[task.truth][:SHEET_SCENES],
            ]
            labels += [name, "result", "truth"]
        if sheet is not None:
            write_sheet(sheet, rows, labels, [Path(name).stem for name in self.scenes.names[:SHEET_SCENES]])
        return figures | self.limits


def write_sheet(path: Path, rows: Sequence[Tensor], labels: Sequence[str], columns: Sequence[str]) -> None:
    """Write pictures in rows, one per entry of ``rows``."""
    cells = [media.to_pixels(image.clamp(-1, 1)) for image in rows]
    page = media.make_sheet(
        cells, column_labels=columns, row_labels=labels, cell_px=max(96, rows[0].shape[2])
    )
    media.write(
        path,
        page,
        options={"command": "train translator"},
        source_type="compositeWithTrainedAlgorithmicMedia",
    )
