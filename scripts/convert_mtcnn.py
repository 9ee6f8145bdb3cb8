"""Convert the MTCNN face detector from the PyPI package mtcnn into Limner's own file.

    pip install --no-deps mtcnn==1.0.0 && pip install joblib lz4
    python scripts/convert_mtcnn.py                # writes src/limner/bundled/mtcnn.safetensors

The package's weights are joblib files, that is pickles, and loading a pickle can run code.  So this script is for
the maintainer alone: it insists on one version of the package and on the digests of its three files.  Limner itself
only ever reads the safetensors file.  The package is not imported (it would want TensorFlow).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.files import replacing

BUNDLED = Path(__file__).resolve().parent.parent / "src/limner/bundled/mtcnn.safetensors"
VERSION = "1.0.0"
DIGESTS = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
# The order in which the package lists its arrays; a trunk position is an index into the `nn.Sequential`.
# Every entry: our layer, what it is, and for the first linear layer the (width, height, channels) that it flattens.
LAYOUT: dict[str, tuple[str, list[tuple[str, str, tuple[int, int, int] | None]]]] = {
    "pnet": (
        "proposal",
        [
            *(("trunk.0", "conv", None), ("trunk.1", "prelu", None), ("trunk.3", "conv", None)),
            *(("trunk.4", "prelu", None), ("trunk.5", "conv", None), ("trunk.6", "prelu", None)),
            *(("box", "conv", None), ("score", "conv", None)),
        ],
    ),
    "rnet": (
        "refine",
        [
            *(("trunk.0", "conv", None), ("trunk.1", "prelu", None), ("trunk.3", "conv", None)),
            *(("trunk.4", "prelu", None), ("trunk.6", "conv", None), ("trunk.7", "prelu", None)),
            *(("trunk.9", "linear", (3, 3, 64)), ("trunk.10", "prelu", None)),
            *(("box", "linear", None), ("score", "linear", None)),
        ],
    ),
    "onet": (
        "output",
        [
            *(("trunk.0", "conv", None), ("trunk.1", "prelu", None), ("trunk.3", "conv", None)),
            *(("trunk.4", "prelu", None), ("trunk.6", "conv", None), ("trunk.7", "prelu", None)),
            *(("trunk.9", "conv", None), ("trunk.10", "prelu", None)),
            *(("trunk.12", "linear", (3, 3, 128)), ("trunk.13", "prelu", None)),
            *(("box", "linear", None), ("landmarks", "linear", None), ("score", "linear", None)),
        ],
    ),
}


def read_arrays(name: str) -> list[np.ndarray]:
    """Return the arrays of one network, after the version and the digest have been checked."""
    if importlib.metadata.version("mtcnn") != VERSION:
        raise SystemExit(f"mtcnn {importlib.metadata.version('mtcnn')} is installed, expected {VERSION}")
    files = importlib.metadata.files("mtcnn") or []
    path = next(Path(str(file.locate())) for file in files if str(file).endswith(f"weights/{name}.lz4"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != DIGESTS[name]:
        raise SystemExit(f"{path} has sha256 {digest}, expected {DIGESTS[name]}")
    import joblib

    return [np.asarray(array, np.float32) for array in joblib.load(path)]


def convert(name: str, arrays: list[np.ndarray]) -> dict[str, Tensor]:
    """Return the tensors of one network under our names and in PyTorch's layout."""
    prefix, layers = LAYOUT[name]
    queue = iter(arrays)
    state: dict[str, np.ndarray] = {}
    for layer, kind, flattened in layers:
        weight = next(queue)
        if kind == "conv":
            weight = weight.transpose(3, 2, 0, 1)  # height, width, in, out -> out, in, height, width
        elif kind == "linear" and flattened:
            # Rows count width first, channels last; ours count channels first, width last.
            weight = weight.reshape(*flattened, -1).transpose(3, 2, 1, 0).reshape(weight.shape[1], -1)
        elif kind == "linear":
            weight = weight.T
        else:
            weight = weight.reshape(-1)
        state[f"{prefix}.{layer}.weight"] = weight
        if kind != "prelu":
            state[f"{prefix}.{layer}.bias"] = next(queue)
    if (left := len(list(queue))) != 0:
        raise SystemExit(f"{name}: {left} arrays are left over")
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()}


def main() -> None:
    """Convert and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=BUNDLED)
    parser.add_argument("--float32", action="store_true", help="keep full precision (2 MB in place of 1 MB)")
    args = parser.parse_args()
    state: dict[str, Tensor] = {}
    for name in LAYOUT:
        state |= convert(name, read_arrays(name))
    if not args.float32:
        state = {name: value.half() for name, value in state.items()}
    about = {
        "version": 1,
        "kind": "detector",
        "architecture": "Mtcnn",
        "provenance": {"source": f"PyPI mtcnn=={VERSION}", "made_by": "scripts/convert_mtcnn.py"},
        "licence": "MIT",
    }
    with replacing(args.output) as part:
        save_file(state, part, metadata={"limner": json.dumps(about)})
    print(f"wrote {args.output}, {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
