"""Put a trained generator and its discriminator into the package, measured, with its card.

    python scripts/bundle_heads.py runs/heads-128/model.safetensors runs/heads-128-discriminator/model.safetensors

Writes src/limner/bundled/heads.safetensors (half precision) and heads.md; afterwards `python scripts/learn_styles.py`
and `python scripts/index_bundled.py`, since styles belong to one base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bundling import count_faces, make_parser, write_card
from plain_errors import run_script

from limner import zoo
from limner.checkpoints import Checkpoint, load, save
from limner.training.data import PictureSet
from limner.training.gan.yardstick import Yardstick

SOURCE = "11,000 renders of synthetic heads from MakeHuman's CC0 assets (heads-256), seeds 0-10999; nobody in them exists"
RECIPE = "recipes/heads-64.yaml, then heads-128.yaml, then heads-128-discriminator.yaml (limner train gan --config ...)"
CARD = """# heads - generator and discriminator of synthetic heads, {resolution} px

| | |
|---|---|
| file | `heads.safetensors`, {megabytes:.1f} MB, half precision |
| kind | model: StyleGAN2 generator ({g_weights:,} weights, channels {channels}, {depth} mapping layers) and discriminator ({d_weights:,}) |
| source | {source} |
| licence | CC0-1.0 |
| recipe | {recipe} |
| training | generator {g_kimg:.1f} thousand images at {resolution} px, grown from a 64 px one that had seen {parent_kimg:.0f} thousand; discriminator {d_kimg:.1f} thousand |{hours}

{history}

Measured on {samples} generated (psi 1, seeds of one generator, not picked) and {samples} real pictures of the training
half, EfficientNet-Lite0 features at 128 px; not comparable with published Inception figures:

| figure | heads | floor: real against other real pictures |
|---|---|---|
| Frechet distance | {frechet:.0f} | {frechet_floor:.1f} |
| kernel distance | {kernel:.2f} | {kernel_floor:.2f} |
| precision | {precision:.2f} | {precision_floor:.2f} |
| recall | {recall:.3f} | {recall_floor:.2f} |

The Frechet distance is {ratio:.1f} times its floor, which is only the smallness of the sets: the ratio is smaller with fewer
pictures, larger with more. Aims at this number: at most 3 times ({frechet_holds}), recall at least 0.3 ({recall_holds}).

The bundled detector finds a face in {found} of {faces} random heads (seeds from 0, psi 1).

Limits: {limits}
"""


def _describe_hours(provenance: dict[str, Any]) -> str:
    """Return the card's line on time and what it brought; runs that began before hours were kept have none."""
    figures = provenance["figures"]
    if not figures.get("hours"):
        return ""
    reached = f", Frechet {figures['frechet']:.0f} at their end" if "frechet" in figures else ""
    return f"\n| hours | {figures['hours']:.2f} of training at this size, measuring included{reached} (the run's log has it by hour) |"


def main() -> None:
    """Measure, write the model and its card."""
    parser = make_parser(__doc__, out="heads.safetensors")
    parser.add_argument("generator", type=Path, help="model with the generator")
    parser.add_argument("discriminator", type=Path, help="model with the discriminator")
    parser.add_argument(
        "--data", default="../shared/data/heads-256/photo", help="pictures to measure against"
    )
    parser.add_argument("--select", default="0-10999", help="which of them")
    parser.add_argument("--samples", type=int, default=2000, help="pictures per side")
    parser.add_argument("--faces", type=int, default=500, help="random heads in which a face is looked for")
    parser.add_argument(
        "--parent-kimg", type=float, default=0.0, help="thousands of images its 64 px parent saw"
    )
    arguments = parser.parse_args()

    base, teacher = load(arguments.generator), load(arguments.discriminator)
    generator, discriminator = base.generator, teacher.discriminator
    if generator is None or discriminator is None:
        parser.error("the first file must hold a generator, the second a discriminator")
    pictures = PictureSet(arguments.data, generator.resolution, select=arguments.select)
    stick = Yardstick(zoo.load("lite0"), pictures, samples=arguments.samples, device=torch.device("cpu"))
    figures = stick.measure(generator)
    g_run, d_run = (part.metadata["provenance"] for part in (base, teacher))
    provenance = {
        "source": SOURCE,
        "recipe": RECIPE,
        "images": g_run["images"],
        "discriminator_images": d_run["images"],
        "figures": {name: round(value, 4) for name, value in figures.items()},
    }
    metadata = {"provenance": provenance, "licence": "CC0-1.0"}
    checkpoint = Checkpoint(generator=generator, discriminator=discriminator, metadata=metadata)
    save(checkpoint, arguments.out, dtype="float16")
    card = CARD.format(
        resolution=generator.resolution,
        megabytes=arguments.out.stat().st_size / 1e6,
        g_weights=sum(p.numel() for p in generator.parameters()),
        d_weights=sum(p.numel() for p in discriminator.parameters()),
        channels=", ".join(str(width) for width in generator.synthesis.channels.values()),
        depth=len(generator.mapping.layers),
        source=SOURCE,
        recipe=f"`{RECIPE}`",
        g_kimg=g_run["images"] / 1000,
        d_kimg=d_run["images"] / 1000,
        hours=_describe_hours(base.metadata["provenance"]),
        parent_kimg=arguments.parent_kimg,
        history=arguments.history,
        samples=stick.samples,
        found=count_faces(generator.eval(), arguments.faces),
        faces=arguments.faces,
        limits=arguments.limits,
        ratio=figures["frechet"] / figures["frechet_floor"],
        frechet_holds="holds" if figures["frechet"] <= 3 * figures["frechet_floor"] else "does not hold",
        recall_holds="holds" if figures["recall"] >= 0.3 else "does not hold",
        **figures,
    )
    write_card(arguments.out, card)


if __name__ == "__main__":
    run_script(main)
