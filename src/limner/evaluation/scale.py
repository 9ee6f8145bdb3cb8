"""What restyled photos are measured against: the photos, the styles' references, the true renders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner import media, metrics, zoo
from limner.checkpoints.dual import style_codes
from limner.errors import CheckpointError, LimnerError, OptionError
from limner.evaluation.data import Portraits, pairwise_identity
from limner.evaluation.inversion import recognised
from limner.evaluation.options import EvaluationOptions
from limner.evaluation.tints import TINT_PX, TINTED, tint
from limner.pipeline import Models
from limner.pipeline.dual import read_dual
from limner.stylization import load_style
from limner.stylization.blend_style import METHOD as BLEND
from limner.stylization.blend_style import find_child
from limner.stylization.dual import DualStyle, to_extrinsic
from limner.stylization.options import DualOptions
from limner.stylization.style import Style

BATCH = 10
LEARNED, DUAL = "jojogan", "dual"
CHILD_ENDING, DUAL_BEGINNING = "-child", "dual-"


@dataclasses.dataclass(frozen=True, eq=False)
class Contender:
    """A style under test.

    Attributes:
        name: its name.
        style: the style.
        reference: the picture that it was learned from (the first), uint8 (R, R, 3); None for a blend or a DualStyleGAN,
            which were trained on many.
        truth: true renders of the scenes in this look, (N, 3, R, R); None where there are none.
        digest: of its file, and of those it needs.
        method: how it was made: ``jojogan``, ``blend``, ``dual``, ...
        look: name of the look that it should arrive at; empty for the style's name.
        learn_seconds: how long it took to learn, None where its file does not say.
        picture: of a blend, one of the pictures that its child was trained on, uint8 (R, R, 3); None where there is none.
    """

    name: str
    style: Style | DualStyle
    reference: np.ndarray | None
    truth: Tensor | None
    digest: str
    method: str = LEARNED
    look: str = ""
    learn_seconds: float | None = None
    picture: np.ndarray | None = None

    @property
    def wanted(self) -> str:
        """The look that it should arrive at."""
        return self.look or self.name


def find_contenders(
    models: Models, options: EvaluationOptions, scenes: Portraits, pairs: Path
) -> tuple[list[Contender], dict[str, str]]:
    """Return the styles that can be compared, and why others cannot."""
    found, skipped = [], {}
    for name in [*(options.styles or zoo.names("style")), *([] if options.styles else zoo.names("dual"))]:
        short = Path(name).stem
        try:
            file = zoo.resolve(name)
            if name in zoo.names("dual"):
                one = _dual_contender(name, file, models)
            else:
                one = _contender(short, file, models)
        except LimnerError as error:
            skipped[short] = " ".join(str(error).split())
            continue
        truth = read_truth(pairs, one.wanted, scenes, models.generator.resolution)
        found.append(dataclasses.replace(one, truth=truth))
    return found, skipped


def _contender(name: str, file: Path, models: Models) -> Contender:
    """Return a style from its file; a blend of a child should arrive at the look that the child was trained on."""
    style, resolution = load_style(file), models.generator.resolution
    style.check_base(models.generator)
    seconds = style.provenance.get("learn_seconds")
    if seconds is not None:
        seconds = float(seconds) + float(style.provenance.get("embed_seconds", 0.0))
    if style.method != BLEND:
        picture = media.resize_pixels(_reference(file, style), resolution)
        return Contender(
            name, style, picture, None, zoo.file_digest(file), style.method, name, learn_seconds=seconds
        )
    digest, child = zoo.file_digest(file), str(style.options.get("child", ""))
    if child:
        digest += zoo.file_digest(find_child(child, file.parent))
    look = Path(child).stem.removesuffix(CHILD_ENDING) or name
    own = zoo.BUNDLED_DIR / "style_pictures" / f"{name}.jpg"
    picture = media.resize_pixels(media.read(own).pixels, resolution) if own.is_file() else None
    return Contender(name, style, None, None, digest, BLEND, look, seconds, picture)


def _dual_contender(name: str, file: Path, models: Models) -> Contender:
    """Return the first style of a DualStyleGAN that stands on the same generator; ``dual-toon`` should arrive at toon."""
    found = read_dual(name, device=models.device)
    codes = style_codes(found.codes)
    if found.dual is None or not codes:
        raise CheckpointError(f"{file} holds no codes of styles")
    first, code = next(iter(codes.items()))
    style = DualStyle(found.dual, to_extrinsic(found.dual, code), DualOptions(), first)
    style.check_base(models.generator)
    look = name.removeprefix(DUAL_BEGINNING)
    return Contender(name, style, None, None, zoo.file_digest(file) + first, DUAL, look)


def read_truth(pairs: Path, look: str, scenes: Portraits, resolution: int) -> Tensor | None:
    """Return the true renders of scenes in a look, (N, 3, R, R), or None where some are missing.

    Looks of `limner.evaluation.tints` are tinted from the renders they are made of.
    """
    folder = pairs / look
    tinted = not folder.is_dir() and look in TINTED
    if tinted:
        folder = pairs / TINTED[look]
    if not folder.is_dir():
        return None
    same = Portraits(folder)
    stems = {Path(one).stem: one for one in same.names}
    if any(Path(one).stem not in stems for one in scenes.names):
        return None
    same.names = [stems[Path(one).stem] for one in scenes.names]
    if not tinted:
        return media.to_image(*same.pixels(resolution))
    painted = [np.asarray(tint(Image.fromarray(one), look)) for one in same.pixels(TINT_PX)]
    return media.to_image(*(media.resize_pixels(one, resolution) for one in painted))


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
    """What results are measured against: the photos, the references, the true renders; features are taken once.

    Args:
        models: trunk and embedder, and where they lie.
        photos: of the scenes, uint8 (R, R, 3) each, in their order.
        contenders: the styles; names must differ.
    """

    def __init__(self, models: Models, photos: Sequence[np.ndarray], contenders: Sequence[Contender]):
        self.models, self.contenders = models, list(contenders)
        self.photos = media.to_image(*photos)
        self.persons = self._persons(self.photos)
        known = [one for one in contenders if one.reference is not None]
        self.looks = [one.wanted for one in known]
        pictures = [media.to_image(one.reference) for one in known]  # type: ignore[arg-type]
        self.references = self.grams(torch.cat(pictures)) if pictures else []
        own = [(one.name, one.picture) for one in contenders if one.picture is not None]
        self.own = {name: self.grams(media.to_image(picture)) for name, picture in own}
        self.truths = {one.name: self.grams(one.truth) for one in contenders if one.truth is not None}

    @torch.no_grad()
    def _persons(self, images: Tensor) -> Tensor:
        device = self.models.device
        return torch.cat([self.models.embedder(part.to(device)).cpu() for part in images.split(BATCH)])

    @torch.no_grad()
    def grams(self, images: Tensor) -> list[Tensor]:
        """Return the Gram matrices of images (N, 3, R, R), one (N, C, C) per map of the trunk, on the CPU."""
        trunk = getattr(self.models.trunk, "trunk", self.models.trunk)  # LPIPS stands on one
        return [level.cpu() for level in metrics.gram_matrices(trunk, images.to(self.models.device))]

    @torch.no_grad()
    def figures(self, images: Tensor, contender: Contender) -> dict[str, float]:
        """Return the figures of results that should have a style, (N, 3, R, R), of the first N scenes in their order."""
        count = len(images)
        persons, textures, inputs = self._persons(images), self.grams(images), self.persons[:count]
        values = {
            "identity_kept": float((persons - inputs).square().sum(1).mean()),
            "recognised": float(recognised(persons, inputs).mean()),
            "apart": pairwise_identity(persons) / max(pairwise_identity(inputs), 1e-12),
        }
        if (right := self._right(textures, contender)) is not None:
            values["right_style"] = float(right.float().mean())
        if contender.truth is not None:
            far = []
            for a, b in zip(images.split(BATCH), contender.truth[:count].split(BATCH), strict=True):
                device = self.models.device
                far.append(self.models.make_distance()(a.to(device), b.to(device)).cpu())
            truths = [level[:count] for level in self.truths[contender.name]]
            values["to_truth"] = float(torch.cat(far).mean())
            values["gram_truth"] = float(metrics.gram_differences(textures, truths).diag().mean())
        return values

    def _right(self, textures: list[Tensor], contender: Contender) -> Tensor | None:
        """Return where the right picture is nearest, (N,): the look's reference or, among one more, a blend's own."""
        wanted, own = contender.wanted in self.looks, self.own.get(contender.name)
        if not self.looks or not (wanted or own):
            return None
        pictures = self.references
        if own is not None:
            pictures = [torch.cat(pair) for pair in zip(pictures, own, strict=True)]
        nearest = metrics.gram_differences(textures, pictures).argmin(1)
        right = nearest == len(self.looks)
        return right | (nearest == self.looks.index(contender.wanted)) if wanted else right
