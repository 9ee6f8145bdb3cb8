"""Folders of rendered pictures: one file per seed and folder, one line per seed in ``meta.jsonl``.

A run that ends early, however it ends, is continued by calling it again: files appear whole or not at all, and a seed
counts as done when all of its files and its line are there.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from limner.errors import OptionError
from limner.files import check_writable, replacing
from limner.synth.options import DOMAINS, SynthOptions

META_NAME, ABOUT_NAME, ATTRIBUTION_NAME = "meta.jsonl", "about.json", "ATTRIBUTION.md"
DIGITS = 6  # of a seed in file names
CHUNK = 4  # seeds that a process takes at a time
# Options that every picture of a data set shares.
FIXED = ("domain", "size", "look_version", "format", "quality")


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was rendered for one seed.

    Attributes:
        seed: whose.
        pictures: folder -> uint8 (H, W, 3), or (H, W) for indices of `Painter.palette`.
        record: attributes, for one line of JSON.
    """

    seed: int
    pictures: Mapping[str, np.ndarray]
    record: Mapping[str, Any]


class Painter(Protocol):
    """Renders the pictures of a domain; one is made in every process.

    Attributes:
        folders: names of the folders that every sample fills; the first one shows the domain on contact sheets.
        attribution: Markdown that says where the pictures come from and under which licence they are.
        palette: (256, 3) uint8 colours of indexed pictures.
    """

    folders: tuple[str, ...]
    attribution: str
    palette: np.ndarray | None

    def paint(self, seeds: Sequence[int]) -> Iterator[Sample]:
        """Yield the sample of each seed, in order."""
        ...


def open_painter(options: SynthOptions) -> Painter:
    """Return the painter of the options' domain.

    Raises:
        OptionError: options that it cannot meet.
        MissingExtraError: something it needs is not installed.
    """
    module, _, name = DOMAINS[options.domain].partition(":")
    return getattr(importlib.import_module(module), name)(options)


class Dataset:
    """A folder of samples, made or continued.

    Args:
        options: what it is to hold.
        folders: names of the folders that every sample fills.

    Raises:
        OptionError: the folder holds a data set made with other options.
        OSError: the folder cannot be written to.
    """

    def __init__(self, options: SynthOptions, folders: Sequence[str]):
        self.options, self.folders, self.path = options, tuple(folders), Path(options.out)
        check_writable(self.path / META_NAME)
        self._check_about()
        self.records = read_records(self.path / META_NAME)

    def _about(self) -> dict[str, Any]:
        return {name: getattr(self.options, name) for name in FIXED} | {
            "assets": str(self.options.assets) if self.options.assets else ""
        }

    def _check_about(self) -> None:
        file = self.path / ABOUT_NAME
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError as error:
            raise OptionError(f"{file} is not JSON: {error}; name another folder, or delete it") from None
        for name, value in self._about().items():
            if name in there and there[name] != value and name != "assets":
                raise OptionError(
                    f"{self.path} holds pictures with {name} {there[name]!r}, now it is {value!r}; "
                    "name another folder, or give the old value"
                )

    def file(self, folder: str, seed: int) -> Path:
        """Return where a picture lies."""
        suffix = "png" if folder == "labels" else self.options.format
        return self.path / folder / f"{seed:0{DIGITS}d}.{suffix}"

    def missing(self) -> list[int]:
        """Return the seeds that are still to be rendered, in order."""
        there = {folder: set(_names(self.path / folder)) for folder in self.folders}
        return [
            seed
            for seed in dict.fromkeys(self.options.seeds)
            if seed not in self.records
            or any(self.file(folder, seed).name not in there[folder] for folder in self.folders)
        ]

    def begin(self, attribution: str) -> None:
        """Make the folders and write what the data set is; a torn last line of an earlier run is dropped."""
        for folder in self.folders:
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        with replacing(self.path / ABOUT_NAME) as part:
            part.write_text(json.dumps(self._about(), indent=2) + "\n", encoding="utf-8")
        with replacing(self.path / ATTRIBUTION_NAME) as part:
            part.write_text(attribution, encoding="utf-8")
        meta = self.path / META_NAME
        if meta.exists() and not meta.read_bytes().endswith(b"\n") and meta.stat().st_size:
            with replacing(meta) as part:
                lines = [_to_line(record) for record in self.records.values()]
                part.write_text("".join(lines), encoding="utf-8")

    def store(self, sample: Sample, palette: np.ndarray | None) -> None:
        """Write the pictures of a sample."""
        for folder, pixels in sample.pictures.items():
            write_picture(self.file(folder, sample.seed), pixels, self.options.quality, palette)

    def note(self, record: Mapping[str, Any]) -> None:
        """Add the line of a sample whose pictures are written."""
        if record["seed"] in self.records:
            return
        self.records[record["seed"]] = dict(record)
        with (self.path / META_NAME).open("a", encoding="utf-8") as file:
            file.write(_to_line(record))


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _to_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def read_records(file: Path) -> dict[int, dict[str, Any]]:
    """Return seed -> record of a ``meta.jsonl``; a torn line is left out."""
    records = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                records[int(record["seed"])] = record
            except (ValueError, KeyError, TypeError):
                continue
    return records


def write_picture(file: Path, pixels: np.ndarray, quality: int, palette: np.ndarray | None = None) -> None:
    """Write uint8 (H, W, 3), or indices (H, W) into ``palette``, as the file's name says; whole or not at all."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if pixels.ndim == 2 and palette is not None:
        picture.putpalette(palette.ravel().tolist())
    with replacing(file) as part:
        if file.suffix == ".jpg":
            picture.save(part, "JPEG", quality=quality, subsampling=0, optimize=True)
        else:
            picture.save(part, "PNG", optimize=True)


def render(options: SynthOptions, dataset: Dataset, painter: Painter) -> Iterator[dict[str, Any]]:
    """Render and store what is missing; yield the record of each seed when its files are there.

    Args:
        options: what to render; ``processes`` above 1 starts others, each with a painter of its own.
        dataset: where to.
        painter: the painter of this process.
    """
    seeds = dataset.missing()
    dataset.begin(painter.attribution)
    if options.processes == 1 or len(seeds) <= CHUNK:
        for sample in painter.paint(seeds):
            dataset.store(sample, painter.palette)
            dataset.note(sample.record)
            yield dict(sample.record)
        return
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    executor = concurrent.futures.ProcessPoolExecutor(
        min(options.processes, len(chunks)),
        mp_context=multiprocessing.get_context("spawn"),  # a forked OpenGL context is not one
        initializer=_start_worker,
        initargs=(options, dataset.folders),
    )
    try:
        for records in executor.map(_render_chunk, chunks):
            for record in records:
                dataset.note(record)
                yield record
    finally:
        executor.shutdown(cancel_futures=True)


_worker: tuple[Painter, Dataset] | None = None


def _start_worker(options: SynthOptions, folders: tuple[str, ...]) -> None:
    global _worker
    _worker = open_painter(options), Dataset(options, folders)


def _render_chunk(seeds: list[int]) -> list[dict[str, Any]]:
    assert _worker is not None
    painter, dataset = _worker
    records = []
    for sample in painter.paint(seeds):
        dataset.store(sample, painter.palette)
        records.append(dict(sample.record))
    return records
