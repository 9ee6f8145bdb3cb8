"""Put a DualStyleGAN into the package, packed, measured, with its card.

    python scripts/bundle_dual.py runs/dual-toon/model.safetensors --name dual-toon \\
        --recipe recipes/dual-toon.yaml --source "900 renders ..." [--figures out/dual/figures.json]

Writes src/limner/bundled/dual/NAME.safetensors and NAME.md.  Of more styles than asked for, evenly spread ones are kept.
With --no-sampler `limner dual` draws random styles among them.  Afterwards `python scripts/index_bundled.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from plain_errors import run_script

from limner import zoo
from limner.checkpoints import load
from limner.checkpoints.dual import style_codes
from limner.checkpoints.dual_child import BUDGET_BYTES, save_dual
from limner.nn import deltas
from limner.nn.stylegan2 import Generator
from limner.training.dual.pairs import choose_evenly

SAMPLES = 24
CARD = """# {name} - a DualStyleGAN on {base}

| | |
|---|---|
| file | `{name}.safetensors`, {megabytes:.2f} MB (extrinsic path and codes in 8 bits; {before:.1f} MB as float32) |
| kind | dual: `limner dual PHOTO --model {name} --style 0`, `limner stylize PHOTO --style {name}:0` |
| base | `{base}`, digest `{digest}`; another base is refused |
| styles | {styles}, by number or name; random ones {random} |
| source | {source} |
| licence | {licence} |
| recipe | `limner train dual --config {recipe}`, {kimg:.1f} thousand images, then `scripts/bundle_dual.py`; losses: {losses} |

Measured when it was packed, on {samples} random faces in {shown} styles: packing changes pictures by {error:.4f} (root mean
square, pixels from -1 to 1) where the style changes faces by {change:.4f}, {share:.1%} of it. {figures}

Limits: {limits}
"""


def bundle(arguments: argparse.Namespace) -> Path:
    """Write the file and its card; return the file."""
    trained = load(arguments.model)
    if trained.dual is None:
        sys.exit(f"{arguments.model} holds no DualStyleGAN")
    run: dict[str, Any] = dict(trained.metadata.get("provenance") or {})
    if "start_seed" not in run:
        sys.exit(f"{arguments.model} was not made by limner train dual: its start weights are unknown")
    base = load(zoo.resolve(arguments.base), parts=("generator",)).generator
    if not isinstance(base, Generator):
        sys.exit(f"{arguments.base} holds no StyleGAN2 generator")
    codes = style_codes(trained.codes)
    names = list(codes)
    kept = {names[place]: codes[names[place]] for place in choose_evenly(len(names), arguments.styles)}
    provenance = {
        "source": arguments.source,
        "recipe": arguments.recipe,
        "parent": arguments.base,
        "command": "train dual",
        "losses": run.get("losses", ""),
        "options": run.get("options", {}),
    }
    path = arguments.out / "dual" / f"{arguments.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    compression = save_dual(
        trained.dual,
        kept,
        base,
        path,
        base_name=arguments.base,
        start_seed=int(run["start_seed"]),
        sampler=trained.sampler if arguments.sampler else None,
        budget_bytes=arguments.kilobytes * 1000,
        metadata={"provenance": provenance, "licence": arguments.licence},
        samples=SAMPLES,
    )
    share = compression["picture_error"] / max(compression["picture_change"], 1e-9)
    lengths: dict[str, Any] = run.get("options") or {}
    card = CARD.format(
        name=arguments.name,
        base=arguments.base,
        digest=deltas.digest(base)[:12],
        megabytes=path.stat().st_size / 1e6,
        before=compression["bytes_before"] / 1e6,
        styles=len(kept),
        random="by its sampler" if trained.sampler and arguments.sampler else "are drawn among them",
        source=arguments.source,
        licence=arguments.licence,
        recipe=arguments.recipe,
        kimg=sum(float(lengths.get(f"{stage}_kimg", 0.0)) for stage in ("structure", "style")),
        losses=run.get("losses", "unknown"),
        samples=SAMPLES,
        shown=min(SAMPLES, len(kept)),
        error=compression["picture_error"],
        change=compression["picture_change"],
        share=share,
        figures=describe(arguments.figures),
        limits=arguments.limits,
    )
    path.with_suffix(".md").write_text(card, encoding="utf-8")
    print(f"{path}: {path.stat().st_size} bytes, {len(kept)} styles")
    print(
        f"packing changes pictures by {compression['picture_error']:.4f}, the style changes faces by "
        f"{compression['picture_change']:.4f} (root mean square, pixels from -1 to 1): {share:.1%}"
    )
    if share > arguments.most:
        sys.exit(
            f"error: packing loses {share:.1%} of the style, expected at most {arguments.most:.0%}; train with a rank"
        )
    return path


def describe(file: Path | None) -> str:
    """Return what scripts/measure_dual.py found as sentences."""
    if file is None:
        return ""
    found = json.loads(file.read_text(encoding="utf-8"))
    full = found["full"]
    return (
        f"\n\nOn {found['pairs']} held-out pairs, whole style: among {found['styles']} exemplars the one used is the nearest to "
        f"the output by Gram distance in {full['style_gram']:.0%} ({full['style_gram_color']:.0%} with the pixels' own), the right "
        f"person the nearest by identity in {full['person']:.0%} (chance {full['chance']:.0%}); perceptual distance to the true "
        f"portrait {full['truth_own']:.3f} in its own style, of the face without style {full['truth_plain']:.3f}; Frechet distance "
        f"to the true portraits {full['frechet_known']:.0f}, without style {full['frechet_plain']:.0f}."
    )


def main() -> int:
    """Bundle one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="what limner train dual wrote")
    parser.add_argument("--base", default=zoo.DEFAULT_GENERATOR, help="name of its base")
    parser.add_argument("--name", required=True, help="what it is called")
    parser.add_argument("--source", required=True, help="training pictures, for card and index")
    parser.add_argument("--recipe", required=True, help="recipe of the training run")
    parser.add_argument("--licence", default="CC0-1.0", help="licence of the model")
    parser.add_argument("--styles", type=int, default=60, help="style codes to keep; 0 for all")
    parser.add_argument(
        "--sampler", action=argparse.BooleanOptionalAction, default=True, help="keep the sampler, 0.8 MB"
    )
    parser.add_argument("--kilobytes", type=int, default=BUDGET_BYTES // 1000, help="size, at most")
    parser.add_argument("--most", type=float, default=0.1, help="share of the style that packing may lose")
    parser.add_argument("--figures", type=Path, help="figures.json of scripts/measure_dual.py, for the card")
    parser.add_argument("--limits", default="", help="sentences on what it cannot do, for the card")
    parser.add_argument("--out", type=Path, default=zoo.BUNDLED_DIR, help="folder")
    arguments = parser.parse_args()
    bundle(arguments)
    return 0


if __name__ == "__main__":
    run_script(main)
