"""What commands talk through: lines, tables, progress with time left, one machine-readable result.

`rich` draws the bar when it is installed and a person is watching; otherwise there are occasional plain lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO, TypeVar

from limner.options import Options, knob

T = TypeVar("T")
LINE_INTERVAL_S, SHORT_JOB_S = 10.0, 2.0


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """Options that every command has."""

    device: str = knob("auto", choices=("auto", "cpu", "cuda", "mps"))
    """where to compute; auto takes CUDA, then MPS, then the CPU"""
    threads: int = knob(0, lo=0, hi=1024)
    """CPU threads; 0 leaves the choice to PyTorch"""
    quiet: bool = False
    """print only errors and the result"""
    verbose: bool = False
    """print what happens inside, and tracebacks"""
    json: bool = False
    """print one line of JSON with the result on standard output, everything else on standard error"""


class Progress:
    """How far a job of known length is; made by `Console.progress`.

    Args:
        total: number of steps; None when unknown, and may be set later.
        show: called with (steps done, total, note) after every change.
    """

    def __init__(self, total: int | None, show: Callable[[int, int | None, str], None]):
        self.total, self.done = total, 0
        self._show = show

    def advance(self, count: int = 1, note: str = "") -> None:
        """Go on by ``count`` steps; ``note`` stands behind the bar, such as a loss."""
        self.set(self.done + count, note)

    def set(self, done: int, note: str = "") -> None:
        """Say that ``done`` steps are done."""
        self.done = done
        self._show(done, self.total, note)


class Console:
    """The standard streams, as quiet or as talkative as the settings say.

    Args:
        settings: the options every command has.
        stdout, stderr: streams; None for the process's own.
    """

    def __init__(
        self, settings: Settings | None = None, *, stdout: TextIO | None = None, stderr: TextIO | None = None
    ):
        self.settings = settings or Settings()
        self._stdout, self._stderr = stdout, stderr

    @property
    def stdout(self) -> TextIO:
        """Standard output."""
        return self._stdout or sys.stdout

    @property
    def stderr(self) -> TextIO:
        """Standard error."""
        return self._stderr or sys.stderr

    @property
    def _talk(self) -> TextIO:
        # With --json, standard output carries the result alone.
        return self.stderr if self.settings.json else self.stdout

    def print(self, *parts: object) -> None:
        """Print one line for the person."""
        if not self.settings.quiet:
            print(*parts, file=self._talk, flush=True)

    def detail(self, *parts: object) -> None:
        """Print one line with ``--verbose`` only."""
        if self.settings.verbose:
            print(*parts, file=self.stderr, flush=True)

    def warn(self, message: str) -> None:
        """Print a warning, on standard error."""
        print(f"limner: warning: {message}", file=self.stderr, flush=True)

    def error(self, message: str) -> None:
        """Print an error on one line, on standard error."""
        print(f"limner: error: {' '.join(message.split())}", file=self.stderr, flush=True)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print rows in aligned columns."""
        cells = [[str(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
        for row in [list(headers), *cells]:
            self.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def result(self, **values: Any) -> None:
        """Print the result as one line of JSON where ``--json`` asks for it; call it last."""
        if self.settings.json:
            print(json.dumps(values, default=str, ensure_ascii=False), file=self.stdout, flush=True)

    def confirm(self, question: str) -> bool:
        """Ask yes or no; without a person at the keyboard the answer is no."""
        if not sys.stdin.isatty():
            return False
        print(f"{question} [y/N] ", end="", file=self.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield the items of a sized iterable and show how many are done."""
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        with self.progress(total, description) as progress:
            for item in items:
                yield item
                progress.advance()

    @contextlib.contextmanager
    def progress(self, total: int | None, description: str, *, in_bytes: bool = False) -> Iterator[Progress]:
        """Show a job's progress and the time left: a bar on a terminal, else a line every few seconds.

        Args:
            total: number of steps; None when unknown.
            description: what is being done.
            in_bytes: the steps are bytes of a transfer.
        """
        if self.settings.quiet:
            yield Progress(total, lambda done, total, note: None)
        elif self.stderr.isatty() and importlib.util.find_spec("rich"):
            with self._bar(total, description, in_bytes) as progress:
                yield progress
        else:
            yield Progress(total, self._lines(description, format_bytes if in_bytes else str))

    @contextlib.contextmanager
    def _bar(self, total: int | None, description: str, in_bytes: bool) -> Iterator[Progress]:
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn() if in_bytes else MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with RichProgress(*columns, console=RichConsole(file=self.stderr), transient=False) as bar:
            task = bar.add_task(description, total=total, note="")
            yield Progress(
                total, lambda done, total, note: bar.update(task, completed=done, total=total, note=note)
            )

    def _lines(
        self, description: str, show_count: Callable[[int], str]
    ) -> Callable[[int, int | None, str], None]:
        start = time.monotonic()
        last = start

        def show(done: int, total: int | None, note: str) -> None:
            nonlocal last
            now = time.monotonic()
            finished = total is not None and done >= total
            if now - last < LINE_INTERVAL_S and not (finished and now - start >= SHORT_JOB_S):
                return
            last = now
            line = f"{description}: {show_count(done)}" + (
                "" if total is None else f" of {show_count(total)}"
            )
            line += f", {format_seconds(now - start)}"
            if total and 0 < done < total:
                line += f", {format_seconds((now - start) / done * (total - done))} left"
            print(line + (f", {note}" if note else ""), file=self.stderr, flush=True)

        return show


def format_seconds(seconds: float) -> str:
    """Return a duration as a person reads it: ``0.8 s``, ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_bytes(size: float) -> str:
    """Return a size as a person reads it: ``512 B``, ``3.4 MB`` (1 MB is 10^6 bytes)."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
