"""The report: sections of text, tables, charts and pictures; written as a web page, as Markdown and as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from limner import media
from limner.errors import MediaError
from limner.evaluation.figures import FIGURES
from limner.files import replacing

QUALITY = 80
TITLE = "Limner: evaluation"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: what was measured.
        values: figure -> value.
        kind: ``result``, ``floor`` (the best that can be asked for), ``ceiling`` (what chance or cheating gives),
            ``skipped``.
        note: stands behind the name, or in place of the values where it was skipped.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "result"
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of figures; ``figures`` are columns, or rows if ``turned``; the best of ``rivals`` is marked.

    Every line of ``note`` becomes a paragraph below the table.
    """

    title: str
    figures: Sequence[str]
    rows: Sequence[Row]
    turned: bool = False
    note: str = ""
    rivals: bool = True


@dataclass(frozen=True)
class Checks:
    """Sentences that hold or do not."""

    title: str
    items: Sequence[tuple[str, bool, str]]


@dataclass(frozen=True)
class Chart:
    """Lines over one quantity."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """A sheet, uint8 (H, W, 3), and what it shows; ``name`` becomes its file's."""

    name: str
    pixels: np.ndarray
    caption: str


@dataclass(frozen=True)
class Section:
    """One chapter.

    Attributes:
        name: for links and JSON.
        title, text: for people.
        blocks: tables, charts, pictures, in order.
        data: all figures, for JSON.
    """

    name: str
    title: str
    text: str
    blocks: Sequence[Table | Checks | Chart | Picture]
    data: Mapping[str, Any]


def write_report(
    folder: Path,
    sections: Sequence[Section],
    about: Mapping[str, Any],
    *,
    command: str,
    title: str = TITLE,
    introduction: str = "",
    name: str = "report",
) -> list[Path]:
    """Write NAME.html, NAME.md, NAME.json and the sheets beside them.

    Args:
        folder: where to; made if missing.
        sections: in order.
        about: what was measured with what, label -> text.
        command: the command line that made it.
        title: of the page.
        introduction: what stands below it; empty for that of an evaluation.
        name: of the files.

    Raises:
        MediaError: something cannot be written.
    """
    introduction = introduction or INTRODUCTION
    written = []
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                about_picture = {"command": command, "section": section.name}
                path = folder / f"{block.name}.jpg"
                kind = "compositeWithTrainedAlgorithmicMedia"
                written.append(
                    media.write(path, block.pixels, options=about_picture, source_type=kind, quality=QUALITY)
                )
    plain = {
        "about": dict(about),
        "command": command,
        "figures": {
            name: {"label": figure.label, "better": figure.better, "meaning": figure.meaning}
            for name, figure in FIGURES.items()
        },
        "sections": {section.name: section.data for section in sections},
    }
    texts = {
        f"{name}.html": page(sections, about, command, title=title, introduction=introduction),
        f"{name}.md": markdown(sections, about, command, title=title, introduction=introduction),
        f"{name}.json": json.dumps(_finite(plain), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for file, text in texts.items():
        path = folder / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                partial.write_text(text, encoding="utf-8")
        except OSError as error:
            raise MediaError(f"{path} cannot be written: {error.strerror or error}") from None
        written.append(path)
    return written


def _finite(value: Any) -> Any:
    """Round numbers to six digits; what JSON cannot hold (infinite, undefined) becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def used_figures(blocks: Iterable[Any]) -> list[str]:
    """Return the figures of a section's tables, each once, in order."""
    names = [name for block in blocks if isinstance(block, Table) for name in block.figures]
    return list(dict.fromkeys(names))


def _best(table: Table, figure: str) -> float | None:
    """Return the best value among the results, where there are several."""
    values = [row.values.get(figure) for row in table.rows if row.kind == "result"]
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(numbers) < 2 or not table.rivals or FIGURES[figure].better == "near":
        return None
    return max(numbers) if FIGURES[figure].better == "up" else min(numbers)


# Web page

STYLE = """
:root{--ink:#1d2126;--soft:#5d6875;--line:#dfe4ea;--floor:#eaf5ee;--ceiling:#fbeeee;--accent:#2b5f8a}
*{box-sizing:border-box}body{margin:0;font:16px/1.55 system-ui,"Segoe UI",Helvetica,Arial,sans-serif;color:var(--ink);
background:#f5f6f8}main{max-width:1120px;margin:0 auto;padding:2rem 1.25rem 4rem}h1{font-size:2rem;margin:.2em 0}
h2{margin:0 0 .4em;font-size:1.5rem}h3{margin:1.6em 0 .5em;font-size:1.08rem}p{max-width:76ch}
section{background:#fff;border:1px solid var(--line);border-radius:10px;padding:1.5rem 1.6rem;margin:1.6rem 0}
nav a{margin-right:1.2em;color:var(--accent)}.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.92rem}
th,td{padding:.42em .75em;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;
font-variant-numeric:tabular-nums;white-space:nowrap}th:first-child,td:first-child{text-align:left;white-space:normal;
min-width:11em}thead th{border-bottom:2px solid #b9c2cc;white-space:normal;vertical-align:bottom}.floor{background:var(--floor)}
.ceiling{background:var(--ceiling)}.skipped td{color:var(--soft);text-align:left;white-space:normal}.note,figcaption,.key{
color:var(--soft);font-size:.88rem}figure{margin:1.2em 0}img,svg{max-width:100%;height:auto;border-radius:6px}
dl{font-size:.9rem;display:grid;grid-template-columns:minmax(9em,15em) 1fr;gap:.3em 1em}dt{font-weight:600}dd{margin:0}
.yes{color:#1c7a43;font-weight:600}.no{color:#b3261e;font-weight:600}code{background:#eef1f4;padding:.1em .35em;
border-radius:4px;font-size:.88em;overflow-wrap:anywhere}.key span{padding:.1em .6em;border-radius:4px;margin-right:.6em}
"""
INTRODUCTION = (
    "Every figure stands beside its floor, what real data or a perfect result would give, and its ceiling, what chance or "
    "a cheat gives: a figure means something only between the two. Everything is measured on pictures that no training "
    "has seen, taken in order, never picked."
)
LINE_COLOURS = ("#2b5f8a", "#c4632b", "#3c8a57", "#8a4a8f", "#a58a1f", "#c23b5a", "#4a9aa8", "#6b6b6b")


def page(
    sections: Sequence[Section],
    about: Mapping[str, Any],
    command: str,
    *,
    title: str = TITLE,
    introduction: str = INTRODUCTION,
) -> str:
    """Return the report as a web page; the sheets lie beside it."""
    escape = html.escape
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1><p>{escape(introduction)}</p>",
        '<p class="key"><span class="floor">floor</span><span class="ceiling">ceiling</span>'
        "↑ more is better, ↓ less is better, ≈ like the floor is best; the best result is bold</p><nav>",
        *(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections),
        '</nav><section id="about"><h2>What was measured</h2><dl>',
        *(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in about.items()),
        f"<dt>command</dt><dd><code>{escape(command)}</code></dd></dl></section>",
    ]
    for section in sections:
        parts.append(f'<section id="{section.name}"><h2>{escape(section.title)}</h2>')
        parts += [f"<p>{escape(text)}</p>" for text in section.text.split("\n") if text]
        for block in section.blocks:
            parts.append(_html_block(block))
        names = used_figures(section.blocks)
        if names:
            parts.append("<h3>What the figures mean</h3><dl>")
            parts += [
                f"<dt>{escape(FIGURES[name].label)} {FIGURES[name].arrow}</dt><dd>{escape(FIGURES[name].meaning)}</dd>"
                for name in names
            ]
            parts.append("</dl>")
        parts.append("</section>")
    return "\n".join([*parts, "</main></body></html>"]) + "\n"


def _html_block(block: Any) -> str:
    escape = html.escape
    if isinstance(block, Picture):
        height, width = block.pixels.shape[:2]
        return (
            f'<figure><img src="{block.name}.jpg" width="{width}" height="{height}" loading="lazy" '
            f'alt="{escape(block.caption)}"><figcaption>{escape(block.caption)}</figcaption></figure>'
        )
    if isinstance(block, Chart):
        return f"<h3>{escape(block.title)}</h3><figure>{_svg(block)}<figcaption>{escape(block.caption)}</figcaption></figure>"
    if isinstance(block, Checks):
        rows = "".join(
            f'<tr><td>{escape(claim)}</td><td class="{"yes" if holds else "no"}">{"yes" if holds else "no"}</td>'
            f"<td>{escape(figures)}</td></tr>"
            for claim, holds, figures in block.items
        )
        return f'<h3>{escape(block.title)}</h3><div class="scroll"><table><tbody>{rows}</tbody></table></div>'
    head, body = _cells(block)
    kinds = [row.kind for row in block.rows] if not block.turned else ["" for _ in block.figures]
    columns = ["", *(row.kind for row in block.rows)] if block.turned else []
    lines = ["<thead><tr>"]
    for number, cell in enumerate(head):
        kind = columns[number] if columns else ""
        lines.append(f'<th class="{kind}">{escape(cell[0])}</th>')
    lines.append("</tr></thead><tbody>")
    for kind, cells in zip(kinds, body, strict=True):
        lines.append(f'<tr class="{kind}">')
        if kind == "skipped":
            lines.append(
                f'<td>{escape(cells[0][0])}</td><td colspan="{len(head) - 1}">{escape(cells[1][0])}</td>'
            )
        else:
            for number, (text, best) in enumerate(cells):
                tint = f' class="{columns[number]}"' if columns and columns[number] else ""
                lines.append(f"<td{tint}>{'<b>' if best else ''}{escape(text)}{'</b>' if best else ''}</td>")
        lines.append("</tr>")
    note = "".join(f'<p class="note">{escape(line)}</p>' for line in block.note.splitlines())
    return f'<h3>{escape(block.title)}</h3><div class="scroll"><table>{"".join(lines)}</tbody></table></div>{note}'


def _cells(table: Table) -> tuple[list[tuple[str, bool]], list[list[tuple[str, bool]]]]:
    """Return head and body of a table, every cell as text and whether it is the best of its figure."""
    marks = {"floor": " (floor)", "ceiling": " (ceiling)"}
    names = [
        row.name + marks.get(row.kind, "") + (f" – {row.note}" if row.note and row.kind != "skipped" else "")
        for row in table.rows
    ]
    heads = [f"{FIGURES[name].label} {FIGURES[name].arrow}" for name in table.figures]

    def cell(row: Row, figure: str) -> tuple[str, bool]:
        value = row.values.get(figure)
        return FIGURES[figure].show(value), row.kind == "result" and value is not None and value == _best(
            table, figure
        )

    if table.turned:
        body = [
            [(heads[i], False), *(cell(row, figure) for row in table.rows)]
            for i, figure in enumerate(table.figures)
        ]
        return [("", False), *((name, False) for name in names)], body
    body = []
    for name, row in zip(names, table.rows, strict=True):
        skipped = row.kind == "skipped"
        body.append(
            [(name, False), (f"not measured: {row.note}", False)]
            if skipped
            else [(name, False), *(cell(row, figure) for figure in table.figures)]
        )
    return [("", False), *((head, False) for head in heads)], body


def _svg(chart: Chart) -> str:
    """Draw a chart: axes from the data, one line per name, its name at the right."""
    width, height, left, right, top, bottom = 720, 300, 60, 150, 16, 44
    xs = [x for line in chart.lines.values() for x, _ in line]
    ys = [y for line in chart.lines.values() for _, y in line]
    low_x, high_x, high_y = min(xs), max(xs), max(ys) * 1.05 or 1.0
    span_x = high_x - low_x or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - low_x) / span_x * (width - left - right),
            height - bottom - y / high_y * (height - top - bottom),
        )

    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        'font-family="system-ui,sans-serif" font-size="12" fill="#5d6875">'
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        _, y = place(low_x, share * high_y)
        parts.append(
            f'<path d="M{left} {y:.1f}H{width - right}" stroke="#dfe4ea"/>'
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{share * high_y:.2f}</text>'
        )
    for x in sorted(set(xs)):
        parts.append(
            f'<text x="{place(x, 0)[0]:.1f}" y="{height - bottom + 18}" text-anchor="middle">{x:g}</text>'
        )
    middle = left + (width - left - right) / 2
    parts.append(
        f'<text x="{middle}" y="{height - 6}" text-anchor="middle">{html.escape(chart.x_label)}</text>'
    )
    parts.append(
        f'<text x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})">'
        f"{html.escape(chart.y_label)}</text>"
    )
    for number, (name, line) in enumerate(chart.lines.items()):
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        points = [place(x, y) for x, y in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        y_key = top + 14 + 18 * number
        parts.append(
            f'<path d="M{width - right + 16} {y_key - 4}h18" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{width - right + 40}" y="{y_key}">{html.escape(name)}</text>'
        )
    return "".join([*parts, "</svg>"])


# Markdown


def markdown(
    sections: Sequence[Section],
    about: Mapping[str, Any],
    command: str,
    *,
    title: str = TITLE,
    introduction: str = INTRODUCTION,
) -> str:
    """Return the report as Markdown, for readers of the repository; charts become tables."""
    lines = [f"# {title}", "", introduction, ""]
    lines += ["| what was measured | |", "|---|---|"]
    lines += [f"| {name} | {_plain_cell(str(value))} |" for name, value in about.items()]
    lines += [f"| command | `{command}` |", ""]
    lines += ["↑ more is better, ↓ less is better, ≈ like the floor is best; the best result is bold.", ""]
    for section in sections:
        lines += [f"## {section.title}", "", *section.text.split("\n"), ""]
        for block in section.blocks:
            lines += _markdown_block(block)
        names = used_figures(section.blocks)
        if names:
            lines += ["### What the figures mean", ""]
            lines += [
                f"- **{FIGURES[name].label}** {FIGURES[name].arrow}: {FIGURES[name].meaning}"
                for name in names
            ]
            lines.append("")
    return "\n".join(lines)


def _markdown_block(block: Any) -> list[str]:
    if isinstance(block, Picture):
        return [f"![{block.caption}]({block.name}.jpg)", "", f"*{block.caption}*", ""]
    if isinstance(block, Chart):
        xs = sorted({x for line in block.lines.values() for x, _ in line})
        lines = [f"### {block.title}", "", f"| {block.x_label} | " + " | ".join(f"{x:g}" for x in xs) + " |"]
        lines.append("|---" + "|--:" * len(xs) + "|")
        for name, line in block.lines.items():
            at = dict(line)
            lines.append(f"| {name} | " + " | ".join(f"{at[x]:.3f}" if x in at else "" for x in xs) + " |")
        return [*lines, "", f"*{block.y_label}. {block.caption}*", ""]
    if isinstance(block, Checks):
        rows = [
            f"| {_plain_cell(claim)} | {'yes' if holds else '**no**'} | {_plain_cell(figures)} |"
            for claim, holds, figures in block.items
        ]
        return [f"### {block.title}", "", "| | holds | figures |", "|---|---|---|", *rows, ""]
    head, body = _cells(block)
    lines = [f"### {block.title}", "", "| " + " | ".join(_plain_cell(text) for text, _ in head) + " |"]
    lines.append("|---" + "|--:" * (len(head) - 1) + "|")
    for cells in body:
        cells = cells + [("", False)] * (len(head) - len(cells))
        lines.append(
            "| " + " | ".join(f"**{text}**" if best else _plain_cell(text) for text, best in cells) + " |"
        )
    return [*lines, "", *(text for line in block.note.splitlines() for text in (line, ""))]


def _plain_cell(text: str) -> str:
    return text.replace("|", "\\|")
