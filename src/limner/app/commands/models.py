"""``limner models``: list, path, verify, pull and remove model files."""

from __future__ import annotations

import dataclasses
import re

from limner import zoo
from limner.app.console import Console, format_bytes
from limner.errors import OptionError, ZooError
from limner.options import Options, knob


@dataclasses.dataclass(frozen=True)
class ListOptions(Options):
    """Options of ``limner models list``."""

    kind: str = knob("")
    """only this kind: model, style, trunk, detector, ..."""
    licences: bool = False
    """also print the licence and the source of each"""


def run_list(options: ListOptions, console: Console) -> int:
    """Print bundled, installed and downloadable models."""
    here = sorted(zoo.cards().values(), key=lambda card: (card.kind, card.name))
    here = [card for card in here if options.kind in ("", card.kind)]
    known = {card.name for card in here}
    offered = [
        item
        for item in zoo.catalogue().values()
        if item.name not in known and options.kind in ("", item.kind)
    ]
    if not here and not offered:
        kinds = sorted({item.kind for item in [*zoo.cards().values(), *zoo.catalogue().values()]})
        raise OptionError(f"no model is of kind {options.kind!r}; kinds: {', '.join(kinds)}")
    console.print("On this machine:")
    rows = [[c.name, c.kind, format_bytes(c.bytes), "bundled" if c.bundled else "installed"] for c in here]
    console.table(["name", "kind", "size", "where"], rows)
    console.print()
    console.print("Can be fetched with limner models pull NAME:")
    console.table(["name", "kind", "what"], [[item.name, item.kind, item.note] for item in offered])
    if options.licences:
        console.print()
        for item in [*here, *offered]:
            source = item.url if isinstance(item, zoo.Download) else item.source
            console.print(f"{item.name}: {item.licence}; from {source}")
    console.result(
        models=[dataclasses.asdict(card) for card in here],
        downloads=[dataclasses.asdict(item) for item in offered],
    )
    return 0


@dataclasses.dataclass(frozen=True)
class PathOptions(Options):
    """Options of ``limner models path``."""

    name: str
    """name of a bundled or installed model"""


def run_path(options: PathOptions, console: Console) -> int:
    """Print where a model's file lies."""
    path = zoo.path(options.name)
    console.print(path)
    console.result(name=options.name, path=path)
    return 0


@dataclasses.dataclass(frozen=True)
class VerifyOptions(Options):
    """Options of ``limner models verify``."""

    names: tuple[str, ...] = knob((), positional=True)
    """models to check; all of this machine when none is named"""


def run_verify(options: VerifyOptions, console: Console) -> int:
    """Check files against their digests; the exit status is 2 if one differs."""
    damaged = {}
    for name in options.names or zoo.names():
        try:
            card = zoo.verify(name)
        except ZooError as error:
            damaged[name] = str(error)
            console.error(str(error))
        else:
            console.print(f"{name}: ok, {format_bytes(card.bytes)}, SHA-256 {card.sha256}")
    console.result(damaged=damaged)
    return 2 if damaged else 0


@dataclasses.dataclass(frozen=True)
class PullOptions(Options):
    """Options of ``limner models pull``."""

    names: tuple[str, ...]
    """models to fetch; limner models list shows them"""
    yes: bool = False
    """agree to the licence without being asked"""
    force: bool = False
    """fetch again what is installed already"""
    url: str = knob("")
    """fetch from this address instead, such as a mirror; for one model"""
    sha256: str = knob("")
    """digest that the file must have; for one model"""


def run_pull(options: PullOptions, console: Console) -> int:
    """Fetch models, each after its licence was shown and agreed to."""
    if (options.url or options.sha256) and len(options.names) != 1:
        raise OptionError(f"--url and --sha256 go with one model, {len(options.names)} are named")
    if options.sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", options.sha256):
        raise OptionError(f"sha256 is {options.sha256!r}, expected 64 hexadecimal digits")
    downloads = [find_download(name) for name in options.names]
    done = []
    for download in downloads:
        if download.name in zoo.installed() and not options.force:
            console.print(f"{download.name} is installed already: {zoo.path(download.name)}")
        else:
            pull(download, options, console)
        done.append(
            {"name": download.name, "path": zoo.path(download.name), "sha256": zoo.card(download.name).sha256}
        )
    console.result(models=done)
    return 0


def find_download(name: str) -> zoo.Download:
    """Return a catalogue entry, or raise `ZooError` with close matches."""
    if name in zoo.bundled():
        raise ZooError(f"{name} ships with the package; there is nothing to fetch")
    if name not in zoo.catalogue():
        zoo.card(name)  # raises, with close matches, unless it was installed from an older catalogue
        raise ZooError(f"{name} is installed but no longer in the catalogue")
    return zoo.catalogue()[name]


def pull(download: zoo.Download, options: PullOptions, console: Console) -> None:
    """Show the licence of one model, ask, fetch and install it."""
    from limner.app.download import fetch

    url = options.url or download.url
    console.print(f"{download.name}: {download.note}")
    console.print(f"  from     {url}")
    console.print(f"  licence  {download.licence}")
    digest = options.sha256 or download.sha256
    if not options.yes and not console.confirm(f"Fetch {download.name} under this licence?"):
        raise ZooError(f"{download.name} was not fetched; --yes agrees to its licence without a question")
    target = zoo.cache_dir() / download.file_name
    with console.progress(None, f"Fetching {download.name}", in_bytes=True) as progress:

        def on_start(have: int, total: int | None) -> None:
            progress.total = total
            if have:
                console.print(f"  going on after {format_bytes(have)}")
                progress.set(have)

        fetch(url, target, sha256=digest, on_start=on_start, on_chunk=progress.advance)
    card = zoo.install(dataclasses.replace(download, url=url), target)
    if len(digest) == 64:
        console.print(f"  {format_bytes(card.bytes)}, SHA-256 as expected")
    elif digest:
        console.print(
            f"  {format_bytes(card.bytes)}, SHA-256 {card.sha256}; only its start {digest} is published, and fits"
        )
    else:
        console.print(
            f"  {format_bytes(card.bytes)}, not verified (no digest is published); SHA-256 {card.sha256}"
        )
    console.print(f"  installed as {card.path}")


@dataclasses.dataclass(frozen=True)
class RemoveOptions(Options):
    """Options of ``limner models remove``."""

    names: tuple[str, ...]
    """installed models to delete"""


def run_remove(options: RemoveOptions, console: Console) -> int:
    """Delete installed models."""
    removed = []
    for name in options.names:
        card = zoo.remove(name)
        removed.append(name)
        console.print(f"removed {name}, {format_bytes(card.bytes)}")
    console.result(removed=removed)
    return 0
