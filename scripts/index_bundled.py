"""Rebuild src/limner/bundled/index.json from the bundled files and the metadata inside them.

    python scripts/index_bundled.py            # rewrite the index
    python scripts/index_bundled.py --check    # only say whether it is up to date (exit 1 if not)

Every ``*.safetensors`` and ``*.limner`` file below the folder needs the metadata entry ``limner`` with ``kind``,
``licence`` and ``provenance`` (``source`` or ``data``; ``made_by``, ``recipe`` or ``command``; ``parent`` where there
is one), and a card of the same name in Markdown beside it.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from pathlib import Path
from typing import Any

from limner.zoo import BUNDLED_DIR, file_digest

SUFFIXES = (".safetensors", ".limner")


def read_metadata(file: Path) -> dict[str, Any]:
    """Return the ``limner`` metadata of a safetensors file."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return json.loads(header.get("__metadata__", {}).get("limner", "{}"))


def first_of(where: dict[str, Any], *keys: str) -> str:
    """Return the first of the entries that is there, as text."""
    return next((str(where[key]) for key in keys if where.get(key)), "")


def describe(file: Path, folder: Path) -> dict[str, Any]:
    """Return a file's index entry.

    Raises:
        SystemExit: metadata or card are missing.
    """
    about = read_metadata(file)
    provenance = about.get("provenance", {})
    entry = {
        "file": file.relative_to(folder).as_posix(),
        "kind": about.get("kind", ""),
        "sha256": file_digest(file),
        "bytes": file.stat().st_size,
        "licence": about.get("licence", ""),
        "source": first_of(provenance, "source", "data"),
        "recipe": first_of(provenance, "recipe", "made_by", "command"),
        "parent": first_of(provenance, "parent", "base"),
    }
    missing = [key for key in ("kind", "licence", "source", "recipe") if not entry[key]]
    if missing:
        sys.exit(f"{file}: its metadata lacks {', '.join(missing)}; found {json.dumps(about)[:500]}")
    if not file.with_suffix(".md").is_file():
        sys.exit(f"{file}: there is no card {file.with_suffix('.md').name} beside it")
    return entry


def build_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return name -> entry for every model file below ``folder``."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES)
    index = {file.stem: describe(file, folder) for file in files}
    if len(index) != len(files):
        sys.exit("two bundled files have the same name")
    return index


def main() -> int:
    """Rewrite or check the index."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    target = BUNDLED_DIR / "index.json"
    text = json.dumps(build_index(BUNDLED_DIR), indent=1, ensure_ascii=False) + "\n"
    if check:
        same = target.is_file() and target.read_text(encoding="utf-8") == text
        print(f"{target} is {'up to date' if same else 'out of date: run scripts/index_bundled.py'}")
        return 0 if same else 1
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target}: {', '.join(json.loads(text)) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
