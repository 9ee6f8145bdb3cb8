"""Put a trained compact encoder into the package, measured, with its card.

    python scripts/bundle_encoder.py runs/encoder-128/model.safetensors

Writes src/limner/bundled/encoder.safetensors (8 bits) and encoder.md; afterwards run
`python scripts/index_bundled.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from bundling import add_base, describe_core, load_base, make_parser, start_provenance, write_card
from plain_errors import run_script
from torch import Tensor

from limner import losses, media, zoo
from limner.checkpoints.compact import FILES, load_encoder, save_encoder
from limner.faces import crop_face, find_alignments
from limner.faces.options import AlignOptions, DetectOptions
from limner.inversion import InversionOptions, TrunkDistance, invert
from limner.nn.compact import CompactEncoder
from limner.nn.stylegan2 import Generator
from limner.training.data import PictureSet

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("psnr", "ssim", "perceptual", "identity")
RECIPE = "recipes/encoder-128.yaml (limner train encoder --config ...)"
SOURCE = "faces of the generator heads and renders of synthetic heads from MakeHuman's CC0 assets (heads-256), seeds 0-10999"
CARD = """# encoder - compact encoder of {base}

| | |
|---|---|
| file | `encoder.safetensors`, {megabytes:.1f} MB, 8 bits; it needs the trunk `lite0` |
| kind | encoder: {weights:,} weights (config {config}) on a frozen EfficientNet-Lite0; photo to w+ of `{base}` (digest {digest}...) |
| source | {source} |
| licence | CC0-1.0 |
| recipe | {recipe} |
| training | {kimg:.1f} thousand images |

{history}

Measured on {renders} renders that training never saw (numbers {validate}) and {photos} real photographs, at {side} px;
"mean" is the mean face without looking, "search" is a search of {search_steps} steps in w+ without an encoder. PSNR in
dB and SSIM: higher is nearer; perceptual distance (Lite0) and squared identity distance (dlib; one person below 0.36):
lower is nearer.

| pictures | method | PSNR | SSIM | perceptual | identity | seconds per face |
|---|---|---|---|---|---|---|
{table}

Seconds are those of one CPU thread on a shared machine.

Limits: {limits}
"""


def measure_all(
    generator: Generator, encoder: CompactEncoder, image: Tensor, steps: int
) -> dict[str, dict[str, float]]:
    """Return method -> figures, means over the pictures."""
    embedder, trunk = zoo.load("identity"), encoder.trunk

    def identity(a: Tensor, b: Tensor) -> Tensor:
        return losses.identity_distance(embedder, a, b)

    found = {}
    for method, settings in (
        ("encoder, 1 step", InversionOptions(method="encoder", refinements=1)),
        ("encoder, 3 steps", InversionOptions(method="encoder", refinements=3)),
        ("hybrid", InversionOptions(method="hybrid", steps=steps, fit_noise=False)),
        ("search", InversionOptions(method="w+", steps=steps, fit_noise=False)),
    ):
        start, reports = time.perf_counter(), []
        for one in image.split(1):
            reports += invert(
                generator,
                one,
                settings,
                perceptual=TrunkDistance(trunk, name="lite0"),
                identity=identity,
                encoder=encoder,
            ).report
        found[method] = average(reports) | {
            "seconds": sum(report.seconds for report in reports) / len(reports)
        }
        print(f"{method}: {found[method]}, {time.perf_counter() - start:.0f} s", flush=True)
    mean = generator.synthesis(generator.broadcast(generator.w_avg[None])).clamp(-1, 1).expand_as(image)
    distance = TrunkDistance(trunk, name="lite0")
    found["mean"] = {
        "psnr": losses.psnr(mean, image).mean().item(),
        "ssim": losses.ssim(mean, image).mean().item(),
        "perceptual": distance(mean, image).mean().item(),
        "identity": identity(mean, image).mean().item(),
        "seconds": 0.0,
    }
    return found


def average(reports: list) -> dict[str, float]:
    """Return the means of the figures."""
    return {name: sum(getattr(one, name) for one in reports) / len(reports) for name in FIGURES}


def read_photos(folder: Path, size: int) -> Tensor:
    """Return the aligned faces of a folder's photos, (N, 3, size, size)."""
    faces = []
    for path in sorted(folder.glob("*.[jp][pn]g")):
        pixels = media.read(path).pixels
        for alignment in find_alignments(pixels, AlignOptions(size=size), DetectOptions(), where=str(path)):
            faces.append(media.to_image(crop_face(pixels, alignment)))
    return torch.cat(faces)


def make_table(groups: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the card's table."""
    lines = []
    for pictures, methods in groups.items():
        for method in ("mean", "encoder, 1 step", "encoder, 3 steps", "hybrid", "search"):
            row = methods[method]
            lines.append(
                f"| {pictures} | {method} | {row['psnr']:.2f} | {row['ssim']:.3f} | {row['perceptual']:.3f} "
                f"| {row['identity']:.3f} | {row['seconds']:.2f} |"
            )
    return "\n".join(lines)


@torch.no_grad()
def check_packing(encoder: CompactEncoder, path: Path, generator: Generator, image: Tensor) -> float:
    """Return the mean absolute difference of pixels, [-1, 1], that 8 bits make."""
    packed = load_encoder(path, trunk=encoder.trunk)
    pair = [generator.synthesis(one.encode(generator, image)[-1]).clamp(-1, 1) for one in (encoder, packed)]
    return (pair[0] - pair[1]).abs().mean().item()


def main() -> None:
    """Measure, write the encoder and its card."""
    parser = make_parser(__doc__, out="encoder.safetensors")
    parser.add_argument("encoder", type=Path, help="what limner train encoder wrote")
    add_base(parser)
    parser.add_argument("--data", default="../shared/data/heads-256/photo", help="renders to measure on")
    parser.add_argument("--validate", default="11000-11019", help="which of them")
    parser.add_argument("--photos", type=Path, default=ROOT / "examples" / "photos", help="real photographs")
    parser.add_argument("--search-steps", type=int, default=100, help="steps of hybrid and search")
    arguments = parser.parse_args()

    generator, base = load_base(arguments.base)
    encoder = load_encoder(arguments.encoder, trunk=zoo.load("lite0"))
    encoder.check_base(generator)
    provenance = start_provenance(arguments.encoder, FILES, source=SOURCE, recipe=RECIPE, parent=base["name"])
    pictures = PictureSet(arguments.data, generator.resolution, select=arguments.validate)
    renders = pictures.pixels.float() / 127.5 - 1
    photos = read_photos(arguments.photos, generator.resolution)
    groups = {
        name: measure_all(generator, encoder, image, arguments.search_steps)
        for name, image in (("renders", renders), ("photos", photos))
    }
    provenance["figures"] = {
        f"{pictures}, {method}": {key: round(value, 4) for key, value in row.items()}
        for pictures, methods in groups.items()
        for method, row in methods.items()
    }
    encoder.base = base
    save_encoder(encoder, arguments.out, provenance=provenance, licence="CC0-1.0")
    lost = check_packing(encoder, arguments.out, generator, renders[:8])
    card = CARD.format(
        base=base["name"],
        megabytes=arguments.out.stat().st_size / 1e6,
        **describe_core(encoder.core, ("num_rows", "input_px", "width", "hidden", "rank")),
        digest=base["digest"][:12],
        source=SOURCE,
        recipe=f"`{RECIPE}`",
        kimg=provenance["images"] / 1000,
        history=arguments.history or f"Storing it in 8 bits moves a pixel by {lost:.5f} of 2 on average.",
        renders=len(renders),
        validate=arguments.validate,
        photos=len(photos),
        side=generator.resolution,
        search_steps=arguments.search_steps,
        table=make_table(groups),
        limits=arguments.limits or "it knows what its generator knows; see the card of the generator.",
    )
    write_card(arguments.out, card)


if __name__ == "__main__":
    run_script(main)
