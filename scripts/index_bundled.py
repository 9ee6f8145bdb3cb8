"""Rebuild src/limner/bundled/index.json from the bundled files and the metadata inside them.

    python scripts/index_bundled.py            # rewrite the index
    python scripts/index_bundled.py --check    # only say whether it is up to date (exit 1 if not)

Every ``*.safetensors`` and ``*.limner`` file below the folder needs the metadata entry ``limner`` with ``kind``,
``licence`` and ``provenance`` (``source`` or ``data``; ``made_by``, ``recipe`` or ``command``; ``parent`` where there
is one), and a card of the same name in Markdown beside it.  The index also says by which recipe (its digest) and from
which base every file was made; a file that is new here counts as made by the recipe as it stands in recipes/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from plain_errors import run_script

from limner.training.bundle import INDEX, build_index, format_index, read_jobs, write_index
from limner.zoo import BUNDLED_DIR

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Rewrite or check the index."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    target = BUNDLED_DIR / INDEX
    index = build_index(BUNDLED_DIR, read_jobs(ROOT / "recipes/bundle.yaml"), ROOT)
    if check:
        same = target.is_file() and target.read_text(encoding="utf-8") == format_index(index)
        print(f"{target} is {'up to date' if same else 'out of date: run scripts/index_bundled.py'}")
        return 0 if same else 1
    write_index(BUNDLED_DIR, index)
    print(f"wrote {target}: {', '.join(index) or 'nothing'}")
    return 0


if __name__ == "__main__":
    run_script(main)
