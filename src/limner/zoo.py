"""The models that Limner knows by name: bundled with the package, installed in the user's cache, downloadable.

Nothing here downloads; ``limner models pull`` (`limner.app.download`) does.  This module imports no torch until a
model is loaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.errors import ZooError
from limner.files import replacing

BUNDLED_DIR = Path(__file__).with_name("bundled")
DEFAULT_GENERATOR = "heads"  # what commands take when no model is named
# Kind -> what reads such a file.  Styles are not here: `limner.stylization` reads them, given the path.
LOADERS = {
    "model": "limner.checkpoints:load",
    "child": "limner.checkpoints:load",
    "dual": "limner.checkpoints:load",
    "detail": "limner.checkpoints:load",
    "trunk": "limner.nn.features:load_trunk",
    "detector": "limner.faces.detect:load_mtcnn",
    "identity": "limner.nn.identity:load_identity",
}
# Those that look through the trunk lite0, which is not in their files.
LOADERS_ON_TRUNK = {
    "encoder": "limner.checkpoints.compact:load_encoder",
    "translator": "limner.checkpoints.translator:load_translator",
}
LOAD_LPIPS = "limner.nn.lpips:load_lpips"
# Name -> (the backbone as the loader calls it, the models whose files make it up); none of them can be bundled.
COMPOSED = {
    "lpips-vgg": ("vgg16", ("vgg16", "lpips-vgg-heads")),
    "lpips-alex": ("alexnet", ("alexnet", "lpips-alex-heads")),
}


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known about a model file on this machine.

    Args:
        name: what it is called on the command line.
        path: where it lies.
        kind: model, child (a model kept as its difference to ``parent``), dual (a DualStyleGAN kept so), detail (layers
            grown above ``parent``), style, trunk,
            detector, identity, encoder, translator, or lpips for a part of that distance.
        sha256: digest of the file when it was bundled or installed.
        bytes: its size.
        licence: terms of the weights.
        source: where they come from: data and training, or address.
        recipe: how to make the file again: recipe, command or script; empty for a downloaded one.
        parent: the model it derives from, if any.
        bundled: ships with the package, rather than installed by the user.
        digest: of a bundled model's generator, by which what derives from it knows it.
        base_digest: the digest of the generator that it derives from.
        recipe_digest: of all that a bundled file was made by, see `limner.training.bundle`.
    """

    name: str
    path: Path
    kind: str
    sha256: str
    bytes: int
    licence: str
    source: str
    recipe: str = ""
    parent: str = ""
    bundled: bool = True
    digest: str = ""
    base_digest: str = ""
    recipe_digest: str = ""


@dataclasses.dataclass(frozen=True)
class Download:
    """A model that can be fetched.

    Args:
        name: what it is called once installed.
        kind: as in `Card`.
        url: HTTPS address.
        licence: terms of the weights, shown before anything is fetched.
        sha256: digest, or its first digits where only those are published; empty where nothing is.
        note: what it is.
    """

    name: str
    kind: str
    url: str
    licence: str
    sha256: str = ""
    note: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file in the cache: the model's name with the ending of the address."""
        return self.name + Path(self.url.split("?")[0]).suffix


def cache_dir() -> Path:
    """Return the user's folder of models: ``LIMNER_CACHE``, else ``limner`` in the XDG cache folder."""
    if own := os.environ.get("LIMNER_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "limner"


def bundled() -> dict[str, Card]:
    """Return the cards of the models that ship with the package."""
    return _read_cards(BUNDLED_DIR / "index.json", bundled=True)


def installed() -> dict[str, Card]:
    """Return the cards of the models in the user's cache."""
    index = cache_dir() / "index.json"
    return _read_cards(index, bundled=False) if index.is_file() else {}


def _read_cards(index: Path, *, bundled: bool) -> dict[str, Card]:
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
        return {
            name: Card(name=name, path=index.parent / entry.pop("file"), bundled=bundled, **entry)
            for name, entry in entries.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ZooError(
            f"the list of models {index} cannot be read: {error}; delete it or install Limner anew"
        ) from None


@functools.cache
def catalogue() -> Mapping[str, Download]:
    """Return the models that `limner models pull` can fetch."""
    entries = json.loads((BUNDLED_DIR / "catalogue.json").read_text(encoding="utf-8"))
    return {name: Download(name=name, **entry) for name, entry in entries.items()}


def cards() -> dict[str, Card]:
    """Return the cards of everything on this machine; a bundled model comes before an installed namesake."""
    return {**installed(), **bundled()}


def names(kind: str | None = None) -> list[str]:
    """Return the names of the models on this machine, sorted.

    Args:
        kind: only these; None for all.
    """
    return sorted(name for name, card in cards().items() if kind in (None, card.kind))


def card(name: str) -> Card:
    """Return a model's card.

    Raises:
        ZooError: no such model; close matches and downloadable ones are named.
    """
    known = cards()
    if name in known:
        return known[name]
    if name in COMPOSED:
        parts = COMPOSED[name][1]
        raise ZooError(f"{name} has no file of its own: it is made of {' and '.join(parts)}; name these")
    if name in catalogue():
        raise ZooError(f"{name} is not installed; fetch it with: limner models pull {name}")
    close = difflib.get_close_matches(name, [*known, *catalogue()], 3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
    raise ZooError(f"no model is called {name!r}; {hint}")


def path(name: str) -> Path:
    """Return where a model's file lies.

    Raises:
        ZooError: no such model, or its file is gone.
    """
    found = card(name)
    if not found.path.is_file():
        remedy = "install Limner anew" if found.bundled else f"limner models pull {name}"
        raise ZooError(f"the file of {name}, {found.path}, is missing; {remedy}")
    return found.path


def resolve(name_or_path: str | Path) -> Path:
    """Return the file that a name or a path stands for; a known name wins over a file of that name.

    Raises:
        ZooError: neither.
    """
    text = str(name_or_path)
    if text not in cards() and Path(text).exists():
        return Path(text)
    if text not in cards() and (os.sep in text or Path(text).suffix):
        raise ZooError(f"no file {text}, and no model of that name (limner models list shows them)")
    return path(text)


def load(name: str) -> Any:
    """Load a model by name: a `Checkpoint`, a feature trunk, an encoder, a face detector or an identity embedder, by its kind.

    ``lpips-vgg`` and ``lpips-alex`` are made of two installed files each, see `COMPOSED`.

    Raises:
        ZooError: no such model, a part is not installed, or its kind is loaded by something else.
        CheckpointError: its file cannot be used.
    """
    if name in COMPOSED:
        return _load_lpips(name)
    found = card(name)
    if found.kind in LOADERS_ON_TRUNK:
        return _find(LOADERS_ON_TRUNK[found.kind])(path(name), trunk=load("lite0"))
    if found.kind not in LOADERS:
        raise ZooError(
            f"{name} is of kind {found.kind!r}, which is loaded by its own package; its file: {found.path}"
        )
    return _find(LOADERS[found.kind])(path(name))


def _load_lpips(name: str) -> Any:
    backbone, parts = COMPOSED[name]
    known = cards()
    missing = [part for part in parts if part not in known]
    if missing:
        raise ZooError(
            f"{name} is made of {' and '.join(parts)}; not installed: {', '.join(missing)}; "
            f"fetch with: limner models pull {' '.join(missing)}"
        )
    return _find(LOAD_LPIPS)(backbone, *map(path, parts))


def _find(reference: str) -> Any:
    """Return what ``module:name`` stands for."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def file_digest(file: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(name: str) -> Card:
    """Compare a model's file with its digest and return its card.

    Raises:
        ZooError: no such model, missing or changed file.
    """
    found = card(name)
    file = path(name)
    digest = file_digest(file)
    if digest != found.sha256:
        remedy = "install Limner anew" if found.bundled else f"limner models pull {name} --force"
        raise ZooError(
            f"{file} has SHA-256 {digest[:12]}..., expected {found.sha256[:12]}...: it was changed; {remedy}"
        )
    return found


def install(download: Download, file: Path) -> Card:
    """Enter a fetched file, which lies in `cache_dir` already, into the list of installed models."""
    entries = _installed_entries()
    entries[download.name] = {
        "file": file.name,
        "kind": download.kind,
        "sha256": file_digest(file),
        "bytes": file.stat().st_size,
        "licence": download.licence,
        "source": download.url,
    }
    _write_installed(entries)
    return installed()[download.name]


def remove(name: str) -> Card:
    """Delete an installed model and return the card it had.

    Raises:
        ZooError: not installed, or bundled with the package.
    """
    own = installed()
    if name not in own:
        if name in bundled():
            raise ZooError(f"{name} ships with the package and cannot be removed")
        raise ZooError(f"{name!r} is not installed; installed: {', '.join(sorted(own)) or 'nothing'}")
    entries = _installed_entries()
    del entries[name]
    _write_installed(entries)
    own[name].path.unlink(missing_ok=True)
    return own[name]


def _installed_entries() -> dict[str, Any]:
    return {
        name: {
            "file": card.path.name,
            **{
                key: getattr(card, key)
                for key in ("kind", "sha256", "bytes", "licence", "source", "recipe", "parent")
            },
        }
        for name, card in installed().items()
    }


def _write_installed(entries: Mapping[str, Any]) -> None:
    index = cache_dir() / "index.json"
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with replacing(index) as part:
            part.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ZooError(f"cannot write {index}: {error.strerror}; LIMNER_CACHE names another folder") from None
