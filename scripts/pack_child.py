"""Put a fine-tuned generator into the package as the packed difference to its base, measured, with its card.

    python scripts/pack_child.py runs/children/toon/model.safetensors --name toon-child \\
        --recipe recipes/children/toon.yaml --source "900 renders ..." --style toonify --swap 16

Writes src/limner/bundled/children/NAME.safetensors and NAME.md; with ``--style`` also a style that adds layers of the
child to the base, bundled/styles/STYLE.limner and its card.  Afterwards `python scripts/index_bundled.py`, which makes
the names known.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bundling import count_faces
from plain_errors import run_script

from limner import zoo
from limner.checkpoints import load
from limner.checkpoints.child import BUDGET_BYTES, read_child, save_child
from limner.stylization import BlendOptions, save_style
from limner.stylization.blend import check_family, relatedness
from limner.stylization.blend_style import blend_style

CARD = """# {name} - a child of {base}

| | |
|---|---|
| file | `{name}.safetensors`, {megabytes:.2f} MB (the packed difference to the base; {before:.1f} MB as float32) |
| kind | child: a StyleGAN2 generator of {resolution} px; goes wherever a model does, such as `limner sample {name}` |
| base | `{base}`, digest `{digest}`; another base is refused |
| source | {source} |
| licence | {licence} |
| recipe | `limner train gan --config {recipe}`, {kimg:.1f} thousand images, then `scripts/pack_child.py` |

Measured when it was packed, on {samples} random faces (psi 0.7): packing changes pictures by {error:.4f} (root mean square,
pixels from -1 to 1) where the child differs from its base by {change:.4f}. Its convolutions correlate with the base's by
{related:.4f}. {figures}
MTCNN, which knows photographs, finds a face in {found} of {faces} random pictures (psi 1).

Limits: its discriminator is the base's. {limits}
"""
STYLE_CARD = """# {name} - a blend of {base} and {child}

| | |
|---|---|
| file | `{name}.limner`; it names the child and holds no weights |
| kind | style; `limner stylize PHOTO --style {name}` |
| base | `{base}`, digest `{digest}` |
| method | network blending: {child} gives the layers {side} |
| source | {source} |
| licence | {licence} |
| recipe | `{recipe}` |

Limits: those of the child, see its card. Other swap points: `limner blend {base} {child} --grid` shows them all.
"""
SAMPLES = 16


def describe(figures: dict[str, float]) -> str:
    """Return the figures of the training run as sentences."""
    if "frechet" not in figures:
        return "The training run measured no figures."
    return (
        f"Against its training pictures: Frechet distance {figures['frechet']:.0f} (two halves of the pictures: "
        f"{figures.get('frechet_floor', float('nan')):.0f}), precision {figures['precision']:.2f}, recall "
        f"{figures['recall']:.2f} (EfficientNet-Lite0 features, psi 1)."
    )


def pack(arguments: argparse.Namespace) -> Path:
    """Write the child and its card; return the child's file."""
    trained = load(arguments.model)
    base = load(zoo.resolve(arguments.base), parts=("generator",)).generator
    if trained.generator is None or base is None:
        sys.exit(f"{arguments.model} or {arguments.base} holds no generator")
    check_family([base, trained.generator], [arguments.base, str(arguments.model)])
    run: dict[str, Any] = dict(trained.metadata.get("provenance") or {})
    figures = dict(run.get("figures") or {})
    provenance = {
        "source": arguments.source,
        "recipe": f"{arguments.recipe}, scripts/pack_child.py",
        "parent": arguments.base,
        "images": run.get("images", 0),
        "figures": figures,
    }
    path = arguments.out / "children" / f"{arguments.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    lost = save_child(
        trained.generator,
        base,
        path,
        base_name=arguments.base,
        budget_bytes=arguments.kilobytes * 1000,
        metadata={"provenance": provenance, "licence": arguments.licence},
        samples=SAMPLES,
    )
    made = load(path, base=zoo.resolve(arguments.base))
    card = CARD.format(
        name=arguments.name,
        base=arguments.base,
        megabytes=path.stat().st_size / 1e6,
        before=lost["bytes_before"] / 1e6,
        resolution=base.resolution,
        digest=read_child(path).digest[:16],
        source=arguments.source,
        licence=arguments.licence,
        recipe=arguments.recipe,
        kimg=run.get("images", 0) / 1000,
        samples=SAMPLES,
        error=lost["picture_error"],
        change=lost["picture_change"],
        related=relatedness(base, made.generator) if made.generator else float("nan"),
        figures=describe(figures),
        found=count_faces(made.generator, arguments.faces) if made.generator else 0,
        faces=arguments.faces,
        limits=arguments.limits,
    )
    path.with_suffix(".md").write_text(card, encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    print(
        f"packing changes pictures by {lost['picture_error']:.4f}; the child differs from its base by "
        f"{lost['picture_change']:.4f} (root mean square, pixels from -1 to 1)"
    )
    return path


def write_style(arguments: argparse.Namespace, child: Path) -> None:
    """Write the blend style and its card."""
    options = BlendOptions(
        swap=(arguments.swap,), level=arguments.level, width=arguments.width, take=arguments.take
    )
    recipe = (
        f"limner blend {arguments.base} {arguments.name} --swap {arguments.swap} --level {arguments.level} "
        f"--width {arguments.width:g} --take {arguments.take} --out {arguments.style}.limner"
    )
    style = blend_style(
        arguments.name, options, file=child, provenance={"recipe": recipe, "command": "blend"}
    )
    path = arguments.out / "styles" / f"{arguments.style}.limner"
    path.parent.mkdir(parents=True, exist_ok=True)
    base = load(zoo.resolve(arguments.base), parts=("generator",)).generator
    assert base is not None
    save_style(style, path, base)
    card = STYLE_CARD.format(
        name=arguments.style,
        base=arguments.base,
        child=arguments.name,
        digest=style.base[:16],
        side=f"{'from' if arguments.take == 'fine' else 'below'} {arguments.swap} px{' up' if arguments.take == 'fine' else ''}",
        source=arguments.source,
        licence=arguments.licence,
        recipe=recipe,
    )
    path.with_suffix(".md").write_text(card, encoding="utf-8")
    print(f"{path}: {path.stat().st_size} bytes")


def main() -> int:
    """Pack one child."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="the fine-tuned model")
    parser.add_argument("--base", default=zoo.DEFAULT_GENERATOR, help="name of the model it was made from")
    parser.add_argument("--name", required=True, help="what the child is called")
    parser.add_argument("--source", required=True, help="training pictures, for card and index")
    parser.add_argument("--recipe", required=True, help="recipe of the training run")
    parser.add_argument("--licence", default="CC0-1.0", help="licence of the child")
    parser.add_argument("--kilobytes", type=int, default=BUDGET_BYTES // 1000, help="size, at most")
    parser.add_argument(
        "--faces", type=int, default=500, help="random pictures in which a face is looked for"
    )
    parser.add_argument("--limits", default="", help="sentences on what it cannot do, for the card")
    parser.add_argument("--style", default="", help="also write a blend style of this name")
    parser.add_argument("--swap", type=int, default=16, help="the style's swap point in px")
    parser.add_argument("--level", type=int, default=0, help="0 or 1: before or within that resolution")
    parser.add_argument("--width", type=float, default=0.0, help="the style's softness")
    parser.add_argument("--take", default="fine", help="the child's side of the swap point: fine or coarse")
    parser.add_argument("--out", type=Path, default=zoo.BUNDLED_DIR, help="folder")
    arguments = parser.parse_args()
    child = pack(arguments)
    if arguments.style:
        write_style(arguments, child)
    return 0


if __name__ == "__main__":
    run_script(main)
