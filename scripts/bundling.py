"""What the scripts share that put trained networks into the package: their words, the base, provenance and card."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limner import zoo
from limner.checkpoints import load
from limner.checkpoints.cores import CoreFiles
from limner.faces import detect_faces
from limner.media import resize_pixels, to_pixels
from limner.nn import deltas
from limner.nn.stylegan2 import Generator


def make_parser(doc: str | None, *, out: str) -> argparse.ArgumentParser:
    """Return a parser with the words for the card and the place of the file.

    Args:
        doc: docstring of the script.
        out: name of the bundled file.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", default="", help="sentences on how it came about, for the card")
    parser.add_argument("--limits", default="", help="sentences on what it cannot do, for the card")
    parser.add_argument("--out", type=Path, default=zoo.BUNDLED_DIR / out)
    return parser


def add_base(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the generator to a parser."""
    parser.add_argument("--base", default=zoo.DEFAULT_GENERATOR, help="generator, name or file")


def load_base(name: str) -> tuple[Generator, dict[str, str]]:
    """Return a generator, frozen, and its name and digest; ends the script where the file holds none."""
    generator = load(zoo.resolve(name)).generator
    if not isinstance(generator, Generator):
        sys.exit(f"error: {name} holds no generator")
    generator.eval().requires_grad_(False)
    return generator, {"name": Path(name).stem, "digest": deltas.digest(generator)}


def start_provenance(
    trained: Path, files: CoreFiles, *, source: str, recipe: str, parent: str
) -> dict[str, Any]:
    """Return the provenance of a bundled network, figures still missing; images and options are those of its training."""
    about = files.read_about(trained)
    if about is None:
        sys.exit(f"error: {trained} holds no {files.name}")
    run = about["provenance"]
    return {
        "source": source,
        "recipe": recipe,
        "parent": parent,
        "images": run["images"],
        "options": run["options"],
    }


def describe_core(core: nn.Module, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the number of a core's weights and its sizes, in words, for the card."""
    config: dict[str, Any] = core.config()  # type: ignore[operator]
    return {
        "weights": sum(p.numel() for p in core.parameters()),
        "config": ", ".join(f"{key} {config[key]}" for key in keys),
    }


def write_card(out: Path, card: str) -> None:
    """Write the card beside its file, without the gaps that empty sentences leave, and print it."""
    card = card.replace("\n\n\n\n", "\n\n")
    out.with_suffix(".md").write_text(card, encoding="utf-8")
    print(card)


def count_faces(generator: Generator, seeds: int) -> int:
    """Return how many of the first random pictures hold a face for the bundled detector."""
    found = 0
    for start in range(0, seeds, 20):
        z = torch.cat(
            [
                torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(s))
                for s in range(start, min(start + 20, seeds))
            ]
        )
        with torch.no_grad():
            heads = to_pixels(generator(z))
        found += sum(bool(detect_faces(resize_pixels(head, (256, 256)))) for head in heads)
    return found
