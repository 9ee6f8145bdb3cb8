"""What restyled photos are measured against: the photos, the styles' references, the true renders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import losses, media, zoo
from limner.errors import LimnerError, OptionError
from limner.evaluation.data import Portraits, pairwise_identity
from limner.evaluation.inversion import recognised
from limner.evaluation.options import EvaluationOptions
from limner.pipeline import Models
from limner.stylization import load_style
from limner.stylization.style import Style

BATCH = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Contender:
    """A style under test.

    Attributes:
        name: its name.
        style: the style.
        reference: the picture that it was learned from (the first), uint8 (R, R, 3).
        truth: true renders of the scenes in this look, (N, 3, R, R); None where there are none.
        digest: of its file.
    """

    name: str
    style: Style
    reference: np.ndarray
    truth: Tensor | None
    digest: str


def find_contenders(
    models: Models, options: EvaluationOptions, scenes: Portraits, pairs: Path
) -> tuple[list[Contender], dict[str, str]]:
    """Return the styles that can be compared, and why others cannot."""
    found, skipped = [], {}
    resolution = models.generator.resolution
    for name in options.styles or zoo.names("style"):
        try:
            file = zoo.resolve(name)
            style = load_style(file)
            style.check_base(models.generator)
            reference = _reference(file, style)
        except LimnerError as error:
            skipped[Path(name).stem] = " ".join(str(error).split())
            continue
        look, truth = pairs / Path(name).stem, None
        if look.is_dir():
            same = Portraits(look)
            stems = {Path(one).stem: one for one in same.names}
            missing = [one for one in scenes.names if Path(one).stem not in stems]
            if not missing:
                same.names = [stems[Path(one).stem] for one in scenes.names]
                truth = media.to_image(*same.pixels(resolution))
        picture = media.resize_pixels(reference, resolution)
        found.append(Contender(Path(name).stem, style, picture, truth, zoo.file_digest(file)))
    return found, skipped


def _reference(file: Path, style: Style) -> np.ndarray:
    """Return the picture a style was learned from: of the bundled ones, else the small one inside the file."""
    for folder in (zoo.BUNDLED_DIR / "style_pictures", file.parent):
        picture = folder / f"{file.stem}.jpg"
        if picture.is_file():
            return media.read(picture).pixels
    if style.thumbnail is None:
        raise OptionError("its file holds no picture of the style")
    return style.thumbnail.numpy()


class Scale:
    """What results are measured against: the photos, the references, the true renders; features are taken once."""

    def __init__(self, models: Models, photos: Sequence[np.ndarray], contenders: Sequence[Contender]):
        self.models, self.contenders = models, list(contenders)
        self.photos = media.to_image(*photos)
        self.persons = self._persons(self.photos)
        self.apart = pairwise_identity(self.persons)
        references = media.to_image(*(one.reference for one in contenders))
        self.references = [self._grams(one[None]) for one in references]
        self.truths = {one.name: self._grams(one.truth) for one in contenders if one.truth is not None}

    @torch.no_grad()
    def _persons(self, images: Tensor) -> Tensor:
        device = self.models.device
        return torch.cat([self.models.embedder(part.to(device)).cpu() for part in images.split(BATCH)])

    @torch.no_grad()
    def _grams(self, images: Tensor) -> list[Tensor]:
        parts = [grams(self.models.trunk, part.to(self.models.device)) for part in images.split(BATCH)]
        return [torch.cat(level).cpu() for level in zip(*parts, strict=True)]

    @torch.no_grad()
    def figures(self, images: Tensor, contender: Contender) -> dict[str, float]:
        """Return the figures of results that should have a style, (N, 3, R, R) in the order of the scenes."""
        persons, textures = self._persons(images), self._grams(images)
        kept = (persons - self.persons).square().sum(1)
        to_references = torch.stack([gram_difference(textures, one) for one in self.references])
        right = to_references.argmin(0) == self.contenders.index(contender)
        values = {
            "identity_kept": float(kept.mean()),
            "recognised": float(recognised(persons, self.persons).mean()),
            "right_style": float(right.float().mean()),
            "apart": pairwise_identity(persons) / max(self.apart, 1e-12),
        }
        if contender.truth is not None:
            far = []
            for a, b in zip(images.split(BATCH), contender.truth.split(BATCH), strict=True):
                device = self.models.device
                far.append(self.models.make_distance()(a.to(device), b.to(device)).cpu())
            values["to_truth"] = float(torch.cat(far).mean())
            values["gram_truth"] = float(gram_difference(textures, self.truths[contender.name]).mean())
        return values


def grams(trunk: Any, image: Tensor) -> list[Tensor]:
    """Return the Gram matrices of a trunk's maps, one (B, C, C) per map."""
    trunk = getattr(trunk, "trunk", trunk)  # LPIPS stands on one
    return [losses.gram_matrix(level) for level in trunk(image)]


def gram_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the mean over maps of squared differences of Gram matrices, divided by the product of their norms, (B,).

    Differs: `limner.losses.gram_distance` divides by one side's norm, as a loss may; of several references it would
    prefer the one with the largest.
    """
    levels = []
    for x, y in zip(a, b, strict=True):
        norms = x.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
        levels.append((x - y).square().sum((1, 2)) / norms.clamp_min(1e-12))
    return torch.stack(levels).mean(0)
