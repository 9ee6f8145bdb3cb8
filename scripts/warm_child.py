"""Write the generator from which a bundled child is trained again: the base with the old child's change added.

    python scripts/warm_child.py OLD_CHILD --base heads --out runs/children/init.safetensors

The old child belongs to an earlier base, and `limner` rightly refuses it on this one; as a place to start training from,
its change is better than none when the new base grew out of the old one.  Without an old child, or where its layers do
not fit the base, the base itself is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from limner import zoo
from limner.checkpoints import Checkpoint, load, save
from limner.checkpoints.child import read_child
from limner.errors import LimnerError
from limner.nn import deltas


def warm(old: Path, base: str, out: Path) -> str:
    """Write the generator and return a sentence on what it is."""
    generator = load(zoo.resolve(base), parts=("generator",)).generator
    if generator is None:
        sys.exit(f"error: {base} holds no generator")
    note = f"{base} as it is: there is no {old}"
    if old.is_file():
        child = read_child(old)
        shapes = {name: value.shape for name, value in generator.state_dict().items()}
        if all(shapes.get(name) == value.shape for name, value in child.delta.items()):
            same = child.digest == deltas.digest(generator)
            deltas.add_(generator, [(child.delta, 1.0)])
            note = f"{base} with the change of {old}, made from {'this' if same else 'an earlier'} base"
        else:
            note = f"{base} as it is: the layers of {old} do not fit it"
    out.parent.mkdir(parents=True, exist_ok=True)
    save(Checkpoint(generator=generator, metadata={"provenance": {"source": note}}), out)
    return note


def main() -> int:
    """Write one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="child that was bundled before; need not be there")
    parser.add_argument("--base", default=zoo.DEFAULT_GENERATOR, help="model that the child will belong to")
    parser.add_argument("--out", type=Path, required=True, help="model to write")
    arguments = parser.parse_args()
    try:
        print(f"{arguments.out}: {warm(arguments.old, arguments.base, arguments.out)}")
    except LimnerError as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
