"""Curves of a training log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limner.errors import MissingExtraError


def plot_log(records: list[dict[str, Any]], path: Path) -> Path:
    """Draw every figure of a log against thousands of images, one panel each; the Fréchet distance by hours too.

    Args:
        records: lines of ``log.jsonl``; each has ``kimg``, newer ones ``hours``.
        path: PNG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("curves need matplotlib: pip install 'limner[plots]'") from None
    names = sorted({name for record in records for name in record} - {"kimg"})
    panels = [("kimg", name) for name in names]
    if any({"frechet", "hours"} <= set(record) for record in records):
        panels.insert(0, ("hours", "frechet"))
    columns = 3
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(4.5 * columns, 2.8 * rows), layout="constrained")
    for i, (along, name) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        points = [(record[along], record[name]) for record in records if {along, name} <= set(record)]
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else "", linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel(along, fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    return path
