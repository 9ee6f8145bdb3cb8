"""Put layers that were grown above a bundled generator into the package, measured, with their card.

    python scripts/bundle_detail.py runs/heads-256/model.safetensors --name heads-256

Writes src/limner/bundled/NAME.safetensors and NAME.md; afterwards run `python scripts/index_bundled.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from bundling import add_base, load_base, make_parser, write_card
from plain_errors import run_script
from torch import Tensor

from limner import zoo
from limner.checkpoints import load
from limner.checkpoints.detail import read_detail, save_detail
from limner.metrics import compare_sets, pooled_features
from limner.nn.projected import cut_windows
from limner.nn.stylegan2 import Generator
from limner.training.data import PictureSet

SOURCE = (
    "renders of synthetic heads from MakeHuman's CC0 assets (heads-256, seeds 0-10999); nobody in them exists"
)
BATCH = 25
CARD = """# {name} - layers above {base}

| | |
|---|---|
| file | `{name}.safetensors`, {kilobytes:.0f} kB: the {resolution} px layers alone, half precision |
| kind | detail: what `{base}`, its styles and its children paint is finished at {resolution} px by it; named as a model, it is the whole {resolution} px generator: `limner sample {name}` |
| base | `{base}`, digest `{digest}`; another base is refused |
| source | {source} |
| licence | {licence} |
| recipe | `{recipe}` |
| training | {kimg:.1f} thousand images, everything below {resolution} px frozen |

{history}

Measured against the {count} held-out renders {validate}, as stored: Fréchet distance, precision and recall (pooled features of
EfficientNet-Lite0) of random windows of {window} px at full resolution, where only fineness counts, psi 1.

| | Fréchet | precision | recall |
|---|---|---|---|
{table}

Limits: it adds strands, lashes and edges to what is there and mends no shape. It learned on photos: on styles it sharpens
outlines, and gives them no strokes of their own. {limits}
"""


def windows(images: Iterator[Tensor], side: int) -> Iterator[Tensor]:
    """Yield one random window of every image, the same places in every set of the same size."""
    rng = torch.Generator().manual_seed(0)
    for image in images:
        yield cut_windows(image, side, rng)


def painted(generator: Generator, count: int, side: int) -> Iterator[Tensor]:
    """Yield random faces at psi 1, enlarged to ``side`` where the generator is smaller."""
    rng = torch.Generator().manual_seed(1)
    for start in range(0, count, BATCH):
        z = torch.randn(min(BATCH, count - start), generator.z_dim, generator=rng)
        image = generator(z).clamp(-1, 1)
        if image.shape[2] != side:
            image = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False).clamp(-1, 1)
        yield image


def pictures(pixels: Tensor) -> Iterator[Tensor]:
    """Yield pictures as images."""
    for part in pixels.split(BATCH):
        yield part.float() / 127.5 - 1


@torch.no_grad()
def measure(
    grown: Generator, base: Generator, features: Callable[[Iterator[Tensor]], Tensor], real: Tensor
) -> dict[str, dict[str, float]]:
    """Return name -> figures of the grown generator, of the base enlarged and of the pictures' two halves."""
    half = len(real) // 2
    side = real.shape[2]
    known = features(pictures(real[:half]))
    sets = {
        "the other half of the renders (floor)": features(pictures(real[half : 2 * half])),
        f"{grown.resolution} px": features(painted(grown, half, side)),
        f"{base.resolution} px, enlarged": features(painted(base, half, side)),
    }
    found = {}
    for name, made in sets.items():
        figures = compare_sets(known, made, rng=torch.Generator().manual_seed(0))
        found[name] = {key: getattr(figures, key) for key in ("frechet", "precision", "recall")}
    return found


def main() -> int:
    """Write, measure, describe."""
    parser = make_parser(__doc__, out="")
    parser.add_argument("model", type=Path, help="what limner train gan wrote")
    parser.add_argument("--name", default="heads-256")
    parser.add_argument("--recipe", default="recipes/detail-256.yaml")
    parser.add_argument("--source", default=SOURCE)
    parser.add_argument("--licence", default="CC0-1.0")
    parser.add_argument("--pictures", default="../shared/data/heads-256/photo", help="renders to measure on")
    parser.add_argument("--validate", default="11000-11999", help="which of them")
    parser.add_argument("--window", type=int, default=128, help="side of the windows in px")
    add_base(parser)
    arguments = parser.parse_args()
    base, about = load_base(arguments.base)
    trained = load(arguments.model, parts=("generator",))
    if not isinstance(trained.generator, Generator):
        sys.exit(f"error: {arguments.model} holds no StyleGAN2 generator")
    run = dict(trained.metadata.get("provenance") or {})
    recipe = f"limner train gan --config {arguments.recipe}"
    path = arguments.out / f"{arguments.name}.safetensors"
    provenance = {
        "source": arguments.source,
        "recipe": f"{recipe}, scripts/bundle_detail.py",
        "parent": about["name"],
        "images": run.get("images", 0),
    }
    notes = {"provenance": provenance, "licence": arguments.licence}
    save_detail(trained.generator, base, path, base_name=about["name"], metadata=notes)
    grown = read_detail(path).detail.grow(base)
    trunk = zoo.load("lite0")
    real = PictureSet(arguments.pictures, grown.resolution, select=arguments.validate).pixels
    found = measure(
        grown, base, lambda images: pooled_features(trunk, windows(images, arguments.window)), real
    )
    provenance["figures"] = found
    save_detail(trained.generator, base, path, base_name=about["name"], metadata=notes)
    table = "\n".join(
        f"| {name} | {figures['frechet']:.0f} | {figures['precision']:.2f} | {figures['recall']:.2f} |"
        for name, figures in found.items()
    )
    card = CARD.format(
        name=arguments.name,
        base=about["name"],
        digest=about["digest"][:16],
        kilobytes=path.stat().st_size / 1000,
        resolution=grown.resolution,
        source=arguments.source,
        licence=arguments.licence,
        recipe=recipe,
        kimg=run.get("images", 0) / 1000,
        count=len(real),
        validate=arguments.validate,
        window=arguments.window,
        table=table,
        history=arguments.history,
        limits=arguments.limits,
    )
    write_card(path, card)
    return 0


if __name__ == "__main__":
    run_script(main)
