"""Turn a checkpoint of another program into Limner's own format, or into rosinality's.

python examples/convert_checkpoint.py ffhq.pkl ffhq.safetensors
"""

import sys
from pathlib import Path

import limner


def main(source: str, target: str) -> Path:
    """Convert ``source`` to the format that the ending of ``target`` means: .safetensors or .pt."""
    checkpoint = limner.load(source)
    for name, network in checkpoint.parts().items():
        weights = sum(values.numel() for values in network.parameters())
        print(f"{name}: {type(network).__name__}, {weights:,} weights, read as {checkpoint.format}")
    limner.save(checkpoint, target)
    return Path(target)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
