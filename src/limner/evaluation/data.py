"""Held-out pictures, and what is measured of any set of pictures: features, persons, landmarks, small copies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from limner import media
from limner.faces import AlignOptions, Detector, crop_face, detect_faces, find_alignments
from limner.metrics import pooled_features
from limner.training.data import list_pictures, read_pictures

BATCH = 20
DETECT_PX = 256
SMALL_PX = 32
COLOUR_PX = 8


class Track(Protocol):
    """Passes items on and shows how many are done, as `limner.app.console.Console.track` does."""

    def __call__(self, items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]: ...


def untracked(items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
    """Pass items on and show nothing."""
    yield from items


class Portraits:
    """Numbered pictures of a folder or zip.

    Args:
        source: folder or zip.
        select: FIRST-LAST, the numbers that are taken; empty for all.
        most: take only the first so many.
    """

    def __init__(self, source: Path, select: str = "", *, most: int | None = None):
        self.source = source
        self.names = list_pictures(source, select)[:most]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def stamp(self) -> str:
        """A digest of the pictures' names and sizes or, for a zip, of its size: changes with the data."""
        total = hashlib.sha256()
        for name in self.names:
            file = self.source / name if self.source.is_dir() else self.source
            total.update(f"{name}|{file.stat().st_size};".encode())
        return total.hexdigest()

    def pick(self, chosen: Sequence[int]) -> Portraits:
        """Return some of the pictures."""
        other = object.__new__(Portraits)
        other.source, other.names = self.source, [self.names[i] for i in chosen]
        return other

    def pixels(self, resolution: int) -> list[np.ndarray]:
        """Return all pictures, uint8 (R, R, 3) each."""
        return [
            np.ascontiguousarray(one.transpose(1, 2, 0))
            for one in read_pictures(self.source, self.names, resolution)
        ]

    def batches(self, resolution: int, size: int = BATCH) -> Iterator[Tensor]:
        """Yield images (B, 3, R, R), [-1, 1]."""
        waiting: list[np.ndarray] = []
        for one in read_pictures(self.source, self.names, resolution):
            waiting.append(one)
            if len(waiting) == size:
                yield _image(waiting)
                waiting = []
        if waiting:
            yield _image(waiting)


def _image(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).float() / 127.5 - 1


@dataclass(frozen=True)
class Eyes:
    """What looks at pictures.

    Attributes:
        trunk: image -> maps, such as Lite0.
        embedder: image -> person's embedding.
        detector: finds faces; None for the bundled MTCNN.
        device: where the two networks lie.
    """

    trunk: Callable[[Tensor], Sequence[Tensor]]
    embedder: Callable[[Tensor], Tensor]
    detector: Detector | None = None
    device: torch.device | str = "cpu"


@torch.no_grad()
def describe(batches: Iterable[Tensor], eyes: Eyes, *, faces: int) -> dict[str, Tensor]:
    """Measure a set of pictures once, so that every figure of the set can be computed from the result.

    Args:
        batches: images (B, 3, H, H), [-1, 1].
        eyes: networks.
        faces: number of pictures, from the first, in which a face is looked for and a person is measured.

    Returns:
        ``features`` (N, 320), ``small`` uint8 (N, 3, 32, 32), ``identity`` (faces, 128), ``landmarks`` (faces, 5, 2) as
        shares of the picture's side, not-a-number where no face was found.
    """
    found: dict[str, list[Tensor]] = {"features": [], "small": [], "identity": [], "landmarks": []}
    seen = 0
    for batch in batches:
        image = batch.to(eyes.device).float().clamp(-1, 1)
        found["features"].append(pooled_features(eyes.trunk, [image]))
        small = media.resize_image(image, SMALL_PX, "area").add(1).mul(127.5).round().clamp(0, 255)
        found["small"].append(small.to(torch.uint8).cpu())
        wanted = image[: max(0, faces - seen)]
        if len(wanted):
            found["identity"].append(eyes.embedder(wanted).float().cpu())
            found["landmarks"].append(find_landmarks(wanted, eyes.detector))
        seen += len(batch)
    return {name: torch.cat(values) for name, values in found.items() if values}


def find_landmarks(image: Tensor, detector: Detector | None = None) -> Tensor:
    """Return five landmarks per image as shares of its side, (B, 5, 2), not-a-number where no face is found."""
    rows = []
    for pixels in media.to_pixels(image):
        faces = detect_faces(media.resize_pixels(pixels, DETECT_PX), detector=detector)
        rows.append(torch.from_numpy(faces[0].landmarks) / DETECT_PX if faces else torch.full((5, 2), np.nan))
    return torch.stack(rows).float()


def pairwise_identity(embeddings: Tensor) -> float:
    """Return the mean squared distance of every two embeddings (N, D)."""
    count = len(embeddings)
    values = embeddings.double()
    return float(torch.cdist(values, values).square().sum() / (count * (count - 1)))


def attributes(described: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what varies from head to head, one number per picture: turn, nod, mouth, skin, hair, backdrop.

    Args:
        described: of `describe`.

    Convention: the pictures are FFHQ-aligned, so that skin, hair and backdrop are looked for at fixed places: nose and
        cheeks, top of the head, upper corners.
    """
    points = described["landmarks"]
    points = points[~points.isnan().any(2).any(1)]
    eyes, mouth, nose = (points[:, 0] + points[:, 1]) / 2, (points[:, 3] + points[:, 4]) / 2, points[:, 2]
    across = (points[:, 1] - points[:, 0]).norm(dim=1).clamp_min(1e-6)
    down = (mouth - eyes).norm(dim=1).clamp_min(1e-6)
    small = described["small"].float() / 255
    grey = (small * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    skin = small[:, :, 15:19, 11:21].mean((2, 3))
    return {
        "turn": (nose - eyes)[:, 0] / across,
        "nod": (nose - eyes)[:, 1] / down,
        "mouth": (points[:, 4] - points[:, 3]).norm(dim=1) / across,
        "skin": (skin * torch.tensor([0.299, 0.587, 0.114])).sum(1),
        "skin_tint": skin[:, 0] - skin[:, 2],
        "hair": grey[:, 2:5, 13:19].mean((1, 2)),
        "hair_tint": (small[:, 0] - small[:, 2])[:, 2:5, 13:19].mean((1, 2)),
        "backdrop": torch.cat([grey[:, :6, :5], grey[:, :6, -5:]], 2).mean((1, 2)),
    }


def colour_spread(described: dict[str, Tensor]) -> float:
    """Return the root mean variance of the pictures' colours at 8 x 8 px, on a scale of 0 to 1."""
    small = media.resize_image(described["small"].float() / 255, COLOUR_PX, "area")
    return float(small.flatten(1).var(0, unbiased=False).mean().sqrt())


def earth_movers(a: Tensor, b: Tensor) -> float:
    """Return the Wasserstein-1 distance of two sets of numbers."""
    at = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    return float((a.double().quantile(at) - b.double().quantile(at)).abs().mean())


def crop_photo(photo: Path, resolution: int, detector: Detector | None = None) -> np.ndarray:
    """Return the largest face of a photo, aligned, uint8 (R, R, 3).

    Raises:
        MediaError: the photo cannot be read.
        FaceNotFoundError: there is no face.
    """
    pixels = media.read(photo).pixels
    align = AlignOptions(size=resolution, face="largest")
    return crop_face(pixels, find_alignments(pixels, align, detector=detector, where=str(photo))[0])
