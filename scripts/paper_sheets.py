"""Make sheets like the figures of the JoJoGAN and blending papers, on bundled models, real photos and random faces.

    python scripts/paper_sheets.py ../shared/data [--out docs/pictures] [--strength 0.75] [--only jojogan|blending]

``figure-jojogan.jpg``: a row per style that was learned from a picture, and per blend, its picture first, then every input
in that style.  Inputs are the two real photos and the first four held-out renders.  ``figure-blending.jpg``: for every child of
the base and every swap point, two random faces and a real photo; the base at the left, the child at the right.  Nothing
is picked: all styles, all swap points, the first renders, the first seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from plain_errors import run_script
from torch import Tensor

from limner import checkpoints, media, zoo
from limner.evaluation.data import Portraits, crop_photo
from limner.evaluation.options import EvaluationOptions
from limner.evaluation.scale import find_contenders
from limner.inversion import Inversion
from limner.latent import Latent, render
from limner.nn.stylegan2 import Generator
from limner.pipeline import Models, StylizeOptions, load_models
from limner.pipeline.photos import embed_faces, suit_inverter
from limner.stylization import Style, StyleOptions, paint
from limner.stylization.blend import preview

PHOTOS = (Path("examples/photos/astronaut.jpg"), Path("examples/photos/hopper.jpg"))
HELD_OUT = "20900-20999"
RENDERS, SEEDS, PSI = 4, (0, 1), 0.7
CELL_PX, QUALITY = 96, 66


def embed(pixels: np.ndarray, models: Models, style: Style | None = None) -> Inversion:
    """Embed an aligned face as ``limner stylize`` does by default, for a style."""
    options = StylizeOptions(aligned=True)
    options = options if style is None else suit_inverter(options, style, models)
    return embed_faces(pixels, options, models=models)[0][1]


def jojogan_sheet(models: Models, data: Path, photos: Sequence[np.ndarray], strength: float) -> np.ndarray:
    """Return the sheet of references and inputs."""
    size = models.generator.resolution
    scenes = Portraits(data / "paired-256/photo", HELD_OUT, most=RENDERS)
    inputs = [*photos, *scenes.pixels(size)]
    embedded = [embed(pixels, models) for pixels in inputs]
    contenders, _ = find_contenders(models, EvaluationOptions(data=data), scenes, data / "paired-256")
    known = [one for one in contenders if one.reference is not None]
    known += [one for one in contenders if one.picture is not None]
    options = StyleOptions(strength=strength)
    rows: list[list[np.ndarray | None]] = [
        [None, *inputs],
        [None, *(media.to_pixels(face.image)[0] for face in embedded)],
    ]
    for one in known:
        assert isinstance(one.style, Style)
        found = embedded
        if one.picture is not None:
            found = [embed(pixels, models, one.style) for pixels in inputs]
        painted = [
            media.to_pixels(paint(models.generator, one.style, face.latent, options, noise=face.noise_maps))[
                0
            ]
            for face in found
        ]
        rows.append([one.reference if one.picture is None else one.picture, *painted])
    labels = ["photo", "embedded", *(one.name for one in known)]
    heads = ["style picture", *(photo.stem for photo in PHOTOS), *(Path(name).stem for name in scenes.names)]
    return media.make_sheet(rows, labels, heads, cell_px=CELL_PX)


def blending_sheet(models: Models, photo: np.ndarray) -> np.ndarray:
    """Return the sheet of swap points and pairs of base and child."""
    base = models.generator
    rng = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    z = torch.cat([torch.randn(1, base.z_dim, generator=one) for one in rng])
    found = embed(photo, models)
    with torch.no_grad():
        w_plus = base.truncate(base.broadcast(base.mapping(z)), PSI)
        codes = torch.cat([w_plus, found.latent.w_plus(base)])
    rows: list[list[np.ndarray | None]] = []
    row_labels: list[str] = []
    heads: list[str] = []
    for name in zoo.names("child"):
        child = checkpoints.load(zoo.path(name)).generator
        if not isinstance(child, Generator) or child.resolution != base.resolution:
            continue
        columns: list[Tensor] = []
        heads = []
        for label, generator in preview([base, child.eval()]):
            with torch.no_grad():
                columns.append(render(generator, Latent("w+", codes)).clamp(-1, 1))
            heads.append({"first": models.base, "second": "child"}.get(label, label))
        for number in range(len(codes)):
            rows.append([media.to_pixels(column[number : number + 1])[0] for column in columns])
            row_labels.append(name)
    return media.make_sheet(rows, row_labels, heads, cell_px=CELL_PX - 12)


def main() -> None:
    """Write the sheets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with paired-256")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="folder")
    parser.add_argument(
        "--model", default=zoo.DEFAULT_GENERATOR, help="base of the bundled styles and children"
    )
    parser.add_argument("--strength", type=float, default=StylizeOptions().strength)
    parser.add_argument("--only", choices=("jojogan", "blending"))
    arguments = parser.parse_args()
    models = load_models(arguments.model)
    photos = [crop_photo(photo, models.generator.resolution, models.detector) for photo in PHOTOS]
    if arguments.only != "blending":
        write("figure-jojogan", jojogan_sheet(models, arguments.data, photos, arguments.strength), arguments)
    if arguments.only != "jojogan":
        write("figure-blending", blending_sheet(models, photos[0]), arguments)


def write(name: str, pixels: np.ndarray, arguments: argparse.Namespace) -> None:
    """Write a sheet and print its size."""
    path = media.write(
        arguments.out / f"{name}.jpg",
        pixels,
        options={"command": "scripts/paper_sheets.py", "strength": arguments.strength},
        source_type="compositeWithTrainedAlgorithmicMedia",
        quality=QUALITY,
    )
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_script(main)
