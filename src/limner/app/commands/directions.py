"""``limner directions``: find ways through w, list and name them, and show what they do."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import zoo
from limner.app.console import Console
from limner.app.outputs import OutputOptions, recorded, refuse_taken
from limner.errors import OptionError
from limner.files import check_writable
from limner.options import Options, knob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limner.editing import Direction
    from limner.nn.stylegan2 import Generator
    from limner.pipeline import Models

WAYS = ("factorize", "components", "labels")
BATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewOptions(OutputOptions):
    """How strips are drawn."""

    faces: str = "seed:1-3"
    """faces of the strips: seed:N or seed:FIRST-LAST"""
    reach: float = knob(3.0, lo=0.1, hi=100.0)
    """position of the slider at the strip's ends"""
    frames: int = knob(7, lo=2, hi=101)
    """pictures of a strip"""
    psi: float = knob(0.7, lo=-2.0, hi=2.0)
    """truncation of the faces"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindOptions(PreviewOptions):
    """Options of ``limner directions find``."""

    ways: tuple[str, ...] = knob(("factorize", "components"), positional=True)
    """how: factorize (from the weights alone), components (principal components of w), labels (boundaries between
    faces with and without an attribute), or several of these"""
    model: str = zoo.DEFAULT_GENERATOR
    """generator, name or file"""
    count: int = knob(10, lo=1, hi=10_000)
    """factorize and components: how many of each, strongest first"""
    layers: str = "all"
    """layers that the directions move, as a layer mask; factorize looks at these layers alone"""
    heads: Path | None = None
    """labels: folder or zip of aligned, numbered portraits"""
    table: Path | None = None
    """labels: their attributes, JSON lines; by default meta.jsonl beside the folder of portraits"""
    select: str = "0-1999"
    """labels: portraits that are looked at, FIRST-LAST"""
    attributes: tuple[str, ...] = knob(
        (
            "yaw",
            "pitch",
            "age",
            "gender",
            "smile:expression=grin|smile|laugh",
            "glasses!=none",
            "beard!=none",
            "skin:melanin",
        )
    )
    """labels: what the faces differ in, as [NAME:]COLUMN for the upper against the lower quarter of a number or for yes
    against no, [NAME:]COLUMN=A|B, !=A|B, >NUMBER, <NUMBER; the defaults are the columns of limner synth"""
    encoder: str = ""
    """labels: compact encoder in place of the generator's own, name or file"""
    untangle: bool = False
    """labels: take from every direction what it shares with the others"""
    preview: Path | None = None
    """also draw a strip per direction into this folder"""
    out: Path = Path("directions.safetensors")
    """file of directions, for limner edit direction"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListOptions(Options):
    """Options of ``limner directions list``."""

    file: Path = knob()
    """file of directions"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NameOptions(OutputOptions):
    """Options of ``limner directions name``."""

    file: Path = knob()
    """file of directions"""
    names: tuple[str, ...] = knob((), positional=True)
    """OLD=NEW gives a name, OLD=-NEW also turns the direction round, OLD= drops it"""
    keep: bool = True
    """keep directions that are not mentioned"""
    out: Path | None = None
    """file to write; by default the same"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowOptions(PreviewOptions):
    """Options of ``limner directions show``."""

    file: Path = knob()
    """file of directions"""
    names: tuple[str, ...] = knob((), positional=True)
    """which; by default all"""
    model: str = zoo.DEFAULT_GENERATOR
    """generator that they belong to, name or file"""
    out: Path = Path("directions")
    """folder for one strip per direction"""


def run_find(options: FindOptions, console: Console) -> int:
    """Find directions and write them to a file."""
    unknown = [way for way in options.ways if way not in WAYS]
    if unknown or not options.ways:
        raise OptionError(
            f"limner directions find: expected some of {', '.join(WAYS)}, found {unknown[0] if unknown else 'nothing'}"
        )
    if "labels" in options.ways:
        _check_label_options(options)
    check_writable(options.out)
    refuse_taken([options.out], options)
    from limner import editing
    from limner.app.device import pick_device
    from limner.editing import discover
    from limner.nn import deltas
    from limner.pipeline import load_models

    named: dict[str, Any] = {"encoder": options.encoder} if options.encoder else {}
    models = load_models(options.model, device=pick_device(console.settings), **named)
    found: list[Direction] = []
    if "factorize" in options.ways:
        found += discover.factorize(models.generator, options.count, layers=options.layers)
    if "components" in options.ways:
        found += discover.find_components(models.generator, options.count, layers=options.layers)
    if "labels" in options.ways:
        found += _from_labels(options, models, console)
    base = {"name": models.base, "digest": deltas.digest(models.generator)}
    about = {"base": base, "command": "directions find", "options": recorded(options)}
    editing.save_directions(options.out, found, metadata=about)
    _print(found, console)
    console.print(
        f"wrote {options.out}; try limner edit direction PHOTO {options.out} --move {found[0].name}=2"
    )
    strips = _draw(models.generator, found, options, options.preview, console) if options.preview else []
    console.result(file=options.out, strips=strips, directions=_plain(found))
    return 0


def run_list(options: ListOptions, console: Console) -> int:
    """Print what a file of directions holds."""
    from limner import editing

    directions, notes = editing.load_directions(options.file)
    found = list(directions.values())
    base = notes.get("base")
    if isinstance(base, dict):
        console.print(f"{len(found)} directions of the generator {base.get('name', 'unnamed')}")
    _print(found, console)
    console.result(directions=_plain(found), base=base)
    return 0


def run_name(options: NameOptions, console: Console) -> int:
    """Rename, turn round and drop directions."""
    from limner import editing

    directions, notes = editing.load_directions(options.file)
    changes = parse_names(options.names, directions)
    found = []
    for name, one in directions.items():
        if name not in changes:
            found += [one] if options.keep else []
            continue
        new = changes[name]
        if not new:
            continue
        turned = new.startswith("-")
        was = one.notes.get("was", name)
        values = -one.values if turned else one.values
        found.append(
            dataclasses.replace(
                one, name=new.removeprefix("-"), values=values, notes={**one.notes, "was": was}
            )
        )
    if not found:
        raise OptionError("limner directions name: no direction would be left")
    out = options.out or options.file
    if out.resolve() != options.file.resolve():
        refuse_taken([out], options)
    editing.save_directions(out, found, metadata=notes)
    _print(found, console)
    console.print(f"wrote {out}")
    console.result(file=out, directions=_plain(found))
    return 0


def run_show(options: ShowOptions, console: Console) -> int:
    """Draw a strip per direction."""
    from limner import checkpoints, editing
    from limner.app.device import pick_device
    from limner.editing.directions import pick
    from limner.errors import CheckpointError, KeyMismatchError
    from limner.nn import deltas
    from limner.nn.stylegan2 import Generator

    directions, notes = editing.load_directions(options.file)
    chosen = [pick(directions, name) for name in options.names] or list(directions.values())
    device = pick_device(console.settings)
    generator = checkpoints.load(zoo.resolve(options.model)).generator
    if not isinstance(generator, Generator):
        raise CheckpointError(f"{options.model} holds no StyleGAN2 generator")
    generator.to(device).eval().requires_grad_(False)
    base = notes.get("base")
    if isinstance(base, dict) and base.get("digest") not in (None, deltas.digest(generator)):
        raise KeyMismatchError(
            f"{options.file} holds directions of another generator ({base.get('name', 'unnamed')}), not of {options.model}"
        )
    files = _draw(generator, chosen, options, options.out, console)
    console.print(f"wrote {len(files)} strips to {options.out}")
    console.result(files=files)
    return 0


def parse_names(words: Sequence[str], directions: Mapping[str, Direction]) -> dict[str, str]:
    """Read OLD=NEW; returns old -> new.

    Raises:
        OptionError: written in another way, or no such direction.
    """
    from limner.editing.directions import pick

    found = {}
    for word in words:
        old, sign, new = word.partition("=")
        if not sign:
            raise OptionError(f"limner directions name: {word!r}, expected OLD=NEW, OLD=-NEW or OLD=")
        pick(directions, old)  # is it there?
        found[old] = new.strip()
    return found


def _check_label_options(options: FindOptions) -> None:
    if options.heads is None:
        raise OptionError(
            "limner directions find labels: name the portraits with --heads, their table with --table"
        )
    table = _table(options)
    if not options.heads.exists() or not table.is_file():
        missing = options.heads if not options.heads.exists() else table
        raise OptionError(f"limner directions find labels: there is nothing at {missing}")


def _table(options: FindOptions) -> Path:
    assert options.heads is not None
    return options.table or options.heads.parent / "meta.jsonl"


def _from_labels(options: FindOptions, models: Models, console: Console) -> list[Direction]:
    """Encode the portraits and look for a boundary per attribute."""
    import torch

    from limner.editing import discover
    from limner.editing.labels import label, parse_rule, picture_key, read_table
    from limner.evaluation.data import Portraits

    rules = [parse_rule(text) for text in options.attributes]
    table = read_table(_table(options))
    assert options.heads is not None
    portraits = Portraits(options.heads, options.select)
    chosen = [i for i, name in enumerate(portraits.names) if picture_key(name) in table]
    if not chosen:
        raise OptionError(
            f"{_table(options)} says nothing about the pictures {options.select} of {options.heads}"
        )
    portraits = portraits.pick(chosen)
    rows = [table[picture_key(name)] for name in portraits.names]
    labels = [label(rows, rule) for rule in rules]
    for rule, values in zip(rules, labels, strict=True):  # before the long work: are they there?
        discover.check_labels(rule.name, values[values >= 0] == 1)
    encoder = models.compact
    if encoder is None:
        raise OptionError(
            f"{models.base} has no compact encoder; train one with limner train encoder, or name one with --encoder"
        )
    codes = []
    with console.progress(len(portraits), "Encoding") as progress:
        for batch in portraits.batches(models.generator.resolution, BATCH):
            codes.append(encoder.encode(models.generator, batch.to(models.device), steps=2)[-1].mean(1).cpu())
            progress.advance(len(batch))
    w = torch.cat(codes)
    found = []
    for rule, values in zip(rules, labels, strict=True):
        counted = values >= 0
        found.append(
            discover.find_boundary(rule.name, w[counted], values[counted] == 1, layers=options.layers)
        )
    return discover.untangle(found) if options.untangle else found


def _print(found: list[Direction], console: Console) -> None:
    rows = []
    for one in found:
        notes = one.notes
        worth = [
            f"{label} {100 * notes[key]:.0f} %"
            for key, label in (("share", "share"), ("accuracy", "right on held-out faces"), ("kept", "kept"))
            if key in notes
        ]
        if (
            "faces" in notes and "labelled" in notes
        ):  # what naming the commoner label for every face would give
            most = max(notes["labelled"], notes["faces"] - notes["labelled"]) / notes["faces"]
            worth.append(f"guessing {100 * most:.0f} %")
        rows.append([one.name, notes.get("method", ""), one.layers, ", ".join(worth), notes.get("was", "")])
    console.table(["name", "found by", "layers", "worth", "was"], rows)


def _plain(found: list[Direction]) -> list[dict[str, Any]]:
    return [{"name": one.name, "layers": one.layers, **one.notes} for one in found]


def _draw(
    generator: Generator, found: list[Direction], options: PreviewOptions, folder: Path, console: Console
) -> list[Path]:
    """Write a strip per direction: a face per row, a position of the slider per column."""
    import torch

    from limner import editing, media
    from limner.editing import Portrait
    from limner.latent import Latent

    match = re.fullmatch(r"seed:(\d{1,9})(?:-(\d{1,9}))?", options.faces)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not 0 <= last - first < 100:
        raise OptionError(
            f"faces is {options.faces!r}, expected seed:N or seed:FIRST-LAST with at most 100 numbers"
        )
    faces = []
    for seed in range(first, last + 1):
        z = torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            w = generator.mapping(z.to(generator.w_avg))
            faces.append(Portrait(Latent("w+", generator.truncate(generator.broadcast(w), options.psi))))
    positions = [options.reach * (2 * i / (options.frames - 1) - 1) for i in range(options.frames)]
    files = [folder / (re.sub(r"[^\w.+-]", "_", one.name) + ".png") for one in found]
    refuse_taken(files, options)
    for file, one in zip(files, console.track(found, "Drawing"), strict=True):
        rows = [
            [
                media.to_pixels(
                    editing.paint(generator, editing.move(generator, face, {one.name: one}, {one.name: at}))
                )[0]
                for at in positions
            ]
            for face in faces
        ]
        sheet = media.make_sheet(rows, column_labels=[f"{one.name} {at:+.2g}" for at in positions])
        about = {"command": "directions show", "direction": one.name, **recorded(options)}
        media.write(file, sheet, options=about, source_type="trainedAlgorithmicMedia")
    return files
