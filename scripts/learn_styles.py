"""Learn the bundled styles anew, on the bundled generator, and write their cards.

    python scripts/learn_styles.py [NAME...]      # all recipes of recipes/styles, or some; from the repository's root
    python scripts/learn_styles.py --model FILE   # on another base
    python scripts/learn_styles.py --more ../runs/style-pictures     # from more pictures of the same looks

``--more`` takes what ``scripts/style_pictures.py --select`` writes: a folder per look, and ``photo`` with the same scenes.

Afterwards ``python scripts/index_bundled.py`` enters the files into the index.  ``make models`` does all of it, for the
styles that need it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from plain_errors import run_script

from limner.app.cli import main as limner
from limner.options import read_recipe
from limner.stylization import Style, load_style

RECIPES = Path("recipes/styles")
RECIPE = (
    "python scripts/learn_styles.py {name} --more DIR (recipes/styles/{name}.yaml with more pictures), after "
    "scripts/style_pictures.py ../shared/data --select {first}-{last} --out DIR"
)
CARD = """# {name} - a style for {base}

| | |
|---|---|
| file | `{name}.limner`, {megabytes:.2f} MB (the change of the base's weights, packed; {before:.1f} MB as float32) |
| kind | style; `limner stylize PHOTO --style {name}`, or `limner.load_style` |
| base | `{base}`, digest `{digest}` |
| method | {method}, {steps} steps, {number} |
| source | {source} |
| licence | {licence} |
| recipe | {recipe} |

Measured when it was made: loss {first:.3f} at the first step, {last:.3f} at the last; {seconds:.0f} s, of which
{embedding:.0f} s went into {codes}. Packing changes random faces in
this style by {error:.4f} (root mean square, pixels from -1 to 1) where the style itself changes them by {change:.4f}.

Limits: it was learned from {what} and inherits the resolution and the variety of its base; glasses, hats and hands do
not survive.
"""


def write_card(style: Style, file: Path) -> None:
    """Write the card beside a style."""
    about, lost = style.provenance, style.compression
    count = about["pictures"]
    motif = "synthetic head" if "synthetic head" in about["source"] else "drawing"
    card = CARD.format(
        name=file.stem,
        base=about["base"],
        megabytes=file.stat().st_size / 1e6,
        before=lost["bytes_before"] / 1e6,
        digest=style.base[:16],
        method=style.method,
        steps=style.options["steps"],
        number=f"{count} style pictures" if count > 1 else "one style picture",
        codes="the pictures' codes" if count > 1 else "the picture's code",
        what=f"{count} {motif}s" if count > 1 else f"a single {motif}",
        source=about["source"],
        licence=style.licence,
        recipe=about["recipe"] if "(" in about["recipe"] else f"`{about['recipe']}`",
        first=about["first_loss"],
        last=about["last_loss"],
        seconds=about["learn_seconds"] + about["embed_seconds"],
        embedding=about["embed_seconds"],
        error=lost["picture_error"],
        change=lost["picture_change"],
    )
    file.with_suffix(".md").write_text(card, encoding="utf-8")


def words_for_more(recipe: dict[str, Any], folder: Path, name: str) -> list[str]:
    """Return words for `limner learn` that add the pictures of a look, and where they are from."""
    pictures = sorted((folder / name).glob("*.jpg"))
    if not pictures:
        sys.exit(f"error: {folder / name} holds no pictures; scripts/style_pictures.py --select makes them")
    sources = [folder / "photo" / path.name for path in pictures]
    source = f"{recipe['source']}, and {len(pictures)} more of the same look (scenes {pictures[0].stem} to {pictures[-1].stem})"
    together = ",".join([*recipe["sources"], *map(str, sources)])
    words = [*recipe["pictures"], *map(str, pictures), "--sources", together, "--source", source]
    return [
        *words,
        "--recipe",
        RECIPE.format(name=name, first=int(pictures[0].stem), last=int(pictures[-1].stem)),
    ]


def main() -> int:
    """Learn the styles that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if not known:
        sys.exit(f"there are no recipes in {RECIPES}; run this from the repository's root")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument(
        "--model", default="", help="base model, name or file (default: the bundled generator)"
    )
    parser.add_argument("--more", type=Path, help="folder with more pictures, see above")
    parser.add_argument("--out", type=Path, help="folder (default: where the recipes say)")
    arguments = parser.parse_args()
    for name in arguments.names or known:
        recipe = RECIPES / f"{name}.yaml"
        values = read_recipe(recipe)
        out = Path(values["out"])
        out = arguments.out / out.name if arguments.out else out
        words = ["learn", "--config", str(recipe), "--out", str(out), "--overwrite"]
        if arguments.more:
            words += words_for_more(values, arguments.more, name)
        status = limner([*words, "--model", arguments.model] if arguments.model else words)
        if status:
            return status
        write_card(load_style(out), out)
    return 0


if __name__ == "__main__":
    run_script(main)
