"""Generation: are random heads like held-out ones, as various as these, and none of them a copy of a training picture?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import media
from limner.evaluation.data import (
    BATCH,
    Eyes,
    Portraits,
    Track,
    attributes,
    colour_spread,
    describe,
    earth_movers,
    pairwise_identity,
    untracked,
)
from limner.evaluation.options import EvaluationOptions
from limner.evaluation.report import Checks, Picture, Row, Section, Table
from limner.evaluation.store import Part, Store
from limner.metrics import compare_sets, frechet_distance, precision_recall
from limner.nn import deltas
from limner.nn.stylegan2 import Generator

SET_FIGURES = ("frechet", "kernel", "precision", "recall")
PERSON_FIGURES = ("person_frechet", "person_precision", "person_recall")
NEIGHBOURS = 3
LEAST_PICTURES = 8
GRID_SEEDS, PROOF_SEEDS = 64, 16
CELL_PX = 112
ATTRIBUTES = {
    "turn": "turn of the head (nose against eyes, sideways)",
    "nod": "nod of the head (nose between eyes and mouth)",
    "mouth": "width of the mouth",
    "skin": "brightness of the skin",
    "skin_tint": "tint of the skin (red less blue)",
    "hair": "brightness at the top of the head",
    "hair_tint": "tint at the top of the head (red less blue)",
    "backdrop": "brightness of the backdrop",
}


@torch.no_grad()
def paint_seeds(generator: Generator, seeds: range | list[int]) -> Tensor:
    """Paint random heads at psi 1, (B, 3, R, R), clipped; a seed gives the same head in any batch."""
    z = torch.cat(
        [torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
    z = z.to(generator.w_avg.device)
    classes = generator.mapping.label_dim
    labels = None
    if classes:
        labels = torch.nn.functional.one_hot(torch.tensor([s % classes for s in seeds]), classes).to(z)
    return generator(z, labels).clamp(-1, 1).float()


def evaluate_generation(
    generator: Generator, eyes: Eyes, options: EvaluationOptions, store: Store, *, track: Track = untracked
) -> Section:
    """Measure random heads.

    Args:
        generator: what is measured, at psi 1.
        eyes: networks that look.
        options: data and numbers; see `EvaluationOptions`.
        store: keeps what was measured.
        track: shows progress.
    """
    options = options.scaled()
    heads = options.find("heads")
    held_out = Portraits(heads, options.held_out)
    samples = min(options.samples, len(held_out))
    held_out = held_out.pick(range(samples))
    training = _some(Portraits(heads, options.trained_on), max(options.neighbours_in, samples), options.seed)
    faces = min(options.found_in, samples)
    count = _Counting(eyes, store, track, faces, generator.resolution)
    real, trained = (
        count.pictures("held-out pictures", held_out),
        count.pictures("training pictures", training),
    )
    seeds = range(options.seed, options.seed + samples)
    made = count.heads("random heads", generator, seeds)
    untrained = count.heads("untrained generator", _untrained(generator, options.seed), seeds)
    # As many training pictures as random heads: a distance of sets depends on their size.
    real_again = {name: value[:samples] for name, value in trained.items()}
    one = {name: value[:1].expand_as(value).clone() for name, value in real_again.items()}
    columns = {
        ("generator", "result"): made,
        ("other real pictures", "floor"): real_again,
        ("untrained generator", "ceiling"): untrained,
        ("one real picture, repeated", "ceiling"): one,
    }
    rng = torch.Generator().manual_seed(options.seed)
    rows = [Row(name, set_figures(found, real, rng), kind) for (name, kind), found in columns.items()]
    spreads = [Row(ATTRIBUTES[name], values) for name, values in _spreads(made, real).items()]
    near = _memorising(made, real, trained)
    by_number = rows_by_number(made["features"], real_again["features"], real["features"])
    smaller = len(by_number) - 1
    if len(trained["features"]) >= 4 * samples:
        more = count.heads(
            "more random heads", generator, range(seeds[-1] + 1, seeds[-1] + 1 + samples), faces=0
        )
        by_number.append(
            _against_training(torch.cat([made["features"], more["features"]]), trained["features"])
        )
    proof = _proof_sheet(generator, eyes, trained, training)
    blocks = [
        *_set_tables(rows, by_number, spreads, _floor_note(real_again, real), few=samples < 1000),
        Picture("grid", _grid_sheet(generator), "Random heads, seeds 0 to 63, psi 1, not picked"),
        Table("Is anything memorised?", list(near[0].values), near, turned=True),
        Picture("neighbours", proof, _PROOF.format(last=PROOF_SEEDS - 1)),
        Checks("Goals", _goals(rows[0].values, by_number[smaller:])),
    ]
    text = _TEXT.format(samples=samples, first=seeds[0], last=seeds[-1], faces=faces, training=len(training))
    data = {
        "samples": samples,
        "faces": faces,
        "training_pictures": len(training),
        "sets": {row.name: dict(row.values) for row in rows},
        "by_number": {row.name: dict(row.values) for row in by_number},
        "attributes": _spreads(made, real),
        "attributes_floor": _spreads(real_again, real),
        "memorising": {row.name: dict(row.values) for row in near},
    }
    return Section("generation", "Generation", text, blocks, data)


def _set_tables(
    rows: list[Row], by_number: list[Row], spreads: list[Row], floor: str, *, few: bool
) -> list[Table]:
    """Return the tables of whole sets: likeness by two networks and by number, variety, attributes with their floor."""
    return [
        Table(
            "Are they like real pictures?",
            [*SET_FIGURES, "face_share"],
            rows,
            turned=True,
            note=_FEW if few else "",
        ),
        Table(
            "And to a network that no loss of train gan sees?",
            PERSON_FIGURES,
            rows,
            turned=True,
            note=_PERSONS,
        ),
        Table("By the number of pictures", _NUMBER_FIGURES, by_number, rivals=False, note=_NUMBERS),
        Table("Are they as various?", ["identity_spread", "colour_spread"], rows, turned=True),
        Table(
            "Pose, expression, skin, hair",
            ["spread", "shift"],
            spreads,
            rivals=False,
            note="Floor, from as many training pictures: " + floor,
        ),
    ]


_TEXT = (
    "{samples} random heads (seeds {first} to {last}, psi 1) against {samples} held-out pictures; floor: {samples} training "
    "pictures against the same. Faces are looked for in the first {faces} of each set. Nearest neighbours are searched "
    "among {training} training pictures."
)
_FEW = (
    "With few pictures the Fréchet distance of the floor is large too, which flatters the ratio to it; the goals are meant "
    "for 1000 pictures or more."
)
_PERSONS = (
    "Vectors of dlib's face embedder, of as many of the pictures as faces are looked for in. The losses of training see "
    "Lite0, as the figures above do, which flatters those; nothing but this table and the spreads below sees faces this way."
)
_NUMBER_FIGURES = ("frechet", "frechet_floor", "floor_ratio")
_NUMBERS = (
    "The floor is nothing but the smallness of the sets and halves when they double; what a generator gets wrong stays. So "
    "the ratio grows with the number of pictures, and belongs to one number only."
)
_PROOF = (
    "Seeds 0 to {last}: the random head, the training picture nearest to it by features, and the one nearest by pixels. "
    "A generator that memorises would show the same head three times."
)


@dataclass(frozen=True, eq=False)
class _Counting:
    """Describes sets of pictures, once; real ones are brought to the generator's resolution first, as it sees them."""

    eyes: Eyes
    store: Store
    track: Track
    faces: int
    resolution: int

    def _described(
        self,
        name: str,
        inputs: dict[str, Any],
        batches: Callable[[], Iterator[Tensor]],
        count: int,
        faces: int | None = None,
    ) -> dict[str, Tensor]:
        faces = self.faces if faces is None else faces

        def make() -> Part:
            steps = self.track(batches(), name, -(-count // BATCH))
            return Part({}, describe(steps, self.eyes, faces=faces))

        inputs = inputs | {"eyes": _digest(self.eyes), "faces": faces}
        return self.store.part(name.replace(" ", "-"), inputs, make).tensors

    def pictures(self, name: str, pictures: Portraits) -> dict[str, Tensor]:
        """Describe real pictures."""
        inputs = {"data": pictures.stamp, "resolution": self.resolution}
        return self._described(name, inputs, lambda: pictures.batches(self.resolution), len(pictures))

    def heads(
        self, name: str, painter: Generator, seeds: range, *, faces: int | None = None
    ) -> dict[str, Tensor]:
        """Describe random heads; ``faces`` of them if it is given."""
        inputs = {"model": deltas.digest(painter), "seeds": [seeds[0], len(seeds)]}

        def batches() -> Iterator[Tensor]:
            for start in range(0, len(seeds), BATCH):
                yield paint_seeds(painter, seeds[start : start + BATCH])

        return self._described(name, inputs, batches, len(seeds), faces)


def _some(pictures: Portraits, most: int, seed: int) -> Portraits:
    """Return the pictures in a random order, at most so many."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed)).tolist()
    return pictures.pick(order[:most])


def _digest(eyes: Eyes) -> str:
    """Return a digest of the networks that look."""
    total = hashlib.sha256(type(eyes.detector).__name__.encode())
    for network in (eyes.trunk, eyes.embedder):
        if isinstance(network, torch.nn.Module):
            total.update(deltas.digest(network).encode())
    return total.hexdigest()


def _untrained(generator: Generator, seed: int) -> Generator:
    """Return a generator of the same architecture with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Generator(**generator.config())
    return fresh.to(generator.w_avg.device).eval().requires_grad_(False)


def set_figures(found: dict[str, Tensor], real: dict[str, Tensor], rng: torch.Generator) -> dict[str, float]:
    """Return the figures of a described set against the described held-out pictures."""
    figures = compare_sets(real["features"], found["features"], rng=rng)
    values = {name: getattr(figures, name) for name in SET_FIGURES}
    values["face_share"] = float((~found["landmarks"].isnan().any(2).any(1)).float().mean())
    return values | {
        **_person_figures(found["identity"], real["identity"]),
        "identity_spread": pairwise_identity(found["identity"]),
        "colour_spread": colour_spread(found),
    }


def _person_figures(found: Tensor, real: Tensor) -> dict[str, float]:
    """Return Fréchet distance, precision and recall of face embeddings (N, 128); of too few, not-a-numbers."""
    if min(len(found), len(real)) <= NEIGHBOURS:
        return dict.fromkeys(PERSON_FIGURES, float("nan"))
    return dict(
        zip(
            PERSON_FIGURES,
            (frechet_distance(real, found), *precision_recall(real, found, k=NEIGHBOURS)),
            strict=True,
        )
    )


def _number_row(name: str, made: Tensor, again: Tensor, real: Tensor) -> Row:
    """Return the row of features of random heads and of other real pictures, against real ones."""
    ours, floor = frechet_distance(real, made), frechet_distance(real, again)
    return Row(name, {"frechet": ours, "frechet_floor": floor, "floor_ratio": ours / max(floor, 1e-9)})


def rows_by_number(made: Tensor, again: Tensor, real: Tensor) -> list[Row]:
    """Return the Fréchet distance to the held-out pictures for a quarter of them, half of them and all."""
    counts = [len(real) // share for share in (4, 2, 1)]
    return [
        _number_row(f"{count} pictures", made[:count], again[:count], real[:count])
        for count in counts
        if count >= LEAST_PICTURES or count == len(real)
    ]


def _against_training(made: Tensor, trained: Tensor) -> Row:
    """Return the same for more pictures than are held out: training pictures serve as real ones and as the floor."""
    count = len(made)
    return _number_row(f"{count} training pictures", made, trained[count : 2 * count], trained[:count])


def _spreads(made: dict[str, Tensor], real: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return spread and shift of every attribute."""
    ours, theirs = attributes(made), attributes(real)
    found = {}
    for name in ATTRIBUTES:
        enough = len(ours[name]) > 1 and len(theirs[name]) > 1 and float(theirs[name].std()) > 0
        scale = float(theirs[name].std()) if enough else float("nan")
        found[name] = {
            "spread": float(ours[name].std()) / scale if enough else float("nan"),
            "shift": earth_movers(ours[name], theirs[name]) / scale if enough else float("nan"),
        }
    return found


def _floor_note(real_again: dict[str, Tensor], real: dict[str, Tensor]) -> str:
    floor = _spreads(real_again, real).values()
    spreads, shifts = [one["spread"] for one in floor], [one["shift"] for one in floor]
    return f"spread {min(spreads):.2f} to {max(spreads):.2f}, shift at most {max(shifts):.2f}."


def nearest(found: Tensor, among: Tensor, *, chunk: int = 512) -> tuple[Tensor, Tensor]:
    """Return distance and index of the nearest row of ``among`` for every row of ``found``, Euclidean."""
    distances, indices = [], []
    for part in found.float().split(chunk):
        least = torch.cdist(part, among.float()).min(1)
        distances.append(least.values)
        indices.append(least.indices)
    return torch.cat(distances), torch.cat(indices)


def nearest_pixels(found: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Return root mean squared difference (0 to 1) and index of the nearest of small pictures or their mirror images."""
    flat = among.float().flatten(1) / 255
    scale = flat.shape[1] ** 0.5
    plain, at = nearest(found.float().flatten(1) / 255, flat)
    turned, at_turned = nearest(found.flip(3).float().flatten(1) / 255, flat)
    return torch.minimum(plain, turned) / scale, torch.where(plain <= turned, at, at_turned)


def _memorising(made: dict[str, Tensor], real: dict[str, Tensor], trained: dict[str, Tensor]) -> list[Row]:
    """Return the table of distances to the training pictures."""
    far = (
        nearest(real["features"], trained["features"])[0],
        nearest_pixels(real["small"], trained["small"])[0],
    )
    limits = [distance.quantile(0.01) for distance in far]

    def row(name: str, found: dict[str, Tensor], kind: str) -> Row:
        features = nearest(found["features"], trained["features"])[0]
        pixels = nearest_pixels(found["small"], trained["small"])[0]
        values = {
            "near_features": float(features.median()),
            "near_pixels": float(pixels.median()),
            "too_near": float((features < limits[0]).float().mean()),
            "too_near_pixels": float((pixels < limits[1]).float().mean()),
        }
        return Row(name, values, kind)

    count = len(real["features"])
    copies = {name: trained[name][:count] for name in ("features", "small")}
    return [
        row("generator", made, "result"),
        row("held-out pictures", real, "floor"),
        row("copies of training pictures", copies, "ceiling"),
    ]


def _grid_sheet(generator: Generator) -> np.ndarray:
    """Return random heads, eight in a row."""
    rows = [media.to_pixels(paint_seeds(generator, range(i, i + 8))) for i in range(0, GRID_SEEDS, 8)]
    return media.make_sheet(rows, cell_px=CELL_PX)


def _proof_sheet(
    generator: Generator, eyes: Eyes, trained: dict[str, Tensor], training: Portraits
) -> np.ndarray:
    """Return the first random heads, each beside its nearest training pictures."""
    images = paint_seeds(generator, range(PROOF_SEEDS))
    found = describe([images], eyes, faces=0)
    by_features = nearest(found["features"], trained["features"])[1].tolist()
    by_pixels = nearest_pixels(found["small"], trained["small"])[1].tolist()
    cells: list[np.ndarray | None] = []
    for i, head in enumerate(media.to_pixels(images)):
        cells += [head, *training.pick([by_features[i], by_pixels[i]]).pixels(generator.resolution)]
    labels = ("random", "by features", "by pixels") * 2
    return media.make_sheet(
        [cells[i : i + 6] for i in range(0, len(cells), 6)], column_labels=labels, cell_px=CELL_PX
    )


def _goals(ours: Any, by_number: list[Row]) -> list[tuple[str, bool, str]]:
    ratios = [
        (
            f"Fréchet distance at most 3 times the floor, {row.name}",
            row.values["floor_ratio"] <= 3,
            f"{row.values['floor_ratio']:.1f} times ({row.values['frechet']:.0f} against {row.values['frechet_floor']:.0f})",
        )
        for row in by_number
    ]
    return [
        *ratios,
        ("recall at least 0.3", ours["recall"] >= 0.3, f"{ours['recall']:.3f}"),
        (
            "MTCNN finds a face in at least 95 % of the samples",
            ours["face_share"] >= 0.95,
            f"{100 * ours['face_share']:.1f} %",
        ),
    ]
