"""``limner synth``: data sets of synthetic portraits, with their looks, label maps and attributes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from limner.app.console import Console, format_seconds
from limner.errors import OptionError
from limner.options import to_mapping
from limner.synth.options import SynthOptions as Options

if TYPE_CHECKING:
    from limner.synth.dataset import Dataset

SHEET_NAME = "sheet.png"
SHEET_COLUMNS, SHEET_SEEDS, SHEET_CELL_PX = 8, 64, 160


def run(options: Options, console: Console) -> int:
    """Render what is missing of a data set, then make its contact sheet."""
    from limner.synth.dataset import Dataset, open_painter, render

    if not options.seeds:
        raise OptionError("seeds is empty, expected one number or more, such as 0-999")
    painter = open_painter(options)
    dataset = Dataset(options, painter.folders)
    todo = len(dataset.missing())
    wanted = len(set(options.seeds))
    if todo < wanted:
        console.print(f"{options.out}: {wanted - todo} of {wanted} are there")
    start = time.monotonic()
    with console.progress(todo, "Rendering") as progress:
        for _ in render(options, dataset, painter):
            progress.advance()
    seconds = time.monotonic() - start
    sheet = write_sheet(dataset, options)
    speed = f", {todo / seconds:.2f} a second, {format_seconds(seconds)}" if todo else ""
    console.print(f"{options.out}: {wanted} seeds, {', '.join(painter.folders)}{speed}; see {sheet}")
    console.result(
        domain=options.domain,
        out=options.out,
        seeds=wanted,
        rendered=todo,
        folders=painter.folders,
        seconds=round(seconds, 2),
        sheet=sheet,
    )
    return 0


def write_sheet(dataset: Dataset, options: Options) -> Path:
    """Write the contact sheet and return its path.

    One folder: the first `SHEET_SEEDS` seeds, rows labelled with their seeds.  Several: a row per folder.
    """
    from limner.media import make_sheet, write

    seeds = list(dict.fromkeys(options.seeds))
    if len(dataset.folders) == 1:
        seeds = seeds[:SHEET_SEEDS]
        groups = [seeds[start : start + SHEET_COLUMNS] for start in range(0, len(seeds), SHEET_COLUMNS)]
        rows = [[read_cell(dataset, dataset.folders[0], seed) for seed in group] for group in groups]
        labels = [f"{group[0]}-{group[-1]}" if len(group) > 1 else f"{group[0]}" for group in groups]
        sheet = make_sheet(rows, labels, cell_px=SHEET_CELL_PX)
    else:
        seeds = seeds[:SHEET_COLUMNS]
        rows = [[read_cell(dataset, folder, seed) for seed in seeds] for folder in dataset.folders]
        sheet = make_sheet(rows, dataset.folders, [str(seed) for seed in seeds], cell_px=SHEET_CELL_PX)
    about = {"command": "synth", **to_mapping(options), "seeds": seeds}
    return write(dataset.path / SHEET_NAME, sheet, options=about)


def read_cell(dataset: Dataset, folder: str, seed: int) -> np.ndarray:
    """Return a picture of the data set, uint8 (H, W, 3)."""
    from PIL import Image

    with Image.open(dataset.file(folder, seed)) as picture:
        return np.array(picture.convert("RGB"))
