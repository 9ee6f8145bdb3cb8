"""Frozen feature trunks: EfficientNet-Lite0, VGG16, VGG19 and AlexNet; image [-1, 1] in, list of maps out.

A constructor makes the architecture only.  Weights come from a file, through the functions `load_trunk` (our own
safetensors) and `load_torchvision` (torchvision's classification checkpoints), and every parameter is frozen:
gradients reach the image, never the trunk.  Nothing here normalises differently from the training of its weights.

Source: Tan and Le 2019, "EfficientNet" (arXiv 1905.11946), in the Lite variant (ReLU6, no squeeze-and-excitation);
Simonyan and Zisserman 2014 (arXiv 1409.1556); Krizhevsky 2014 (arXiv 1404.5997).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import KeyMismatchError, ShapeError, UnknownFormatError, ZooError


class _Stage(NamedTuple):
    """A run of inverted residual blocks; the first one has the stride."""

    expand: int
    kernel: int
    stride: int
    channels: int
    blocks: int


_LITE0_STAGES = (
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)
_LITE0_TAPS = (0, 1, 2, 4, 6)
"""Stages whose output is returned: the last one at every stride."""


class SameConv2d(nn.Conv2d):
    """Convolution whose output has ceil(H / stride) rows, as in TensorFlow: an odd pad goes to the bottom and right."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in input.shape[2:])
        if rows % 2 or columns % 2:
            input = F.pad(input, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            rows = columns = 0
        return F.conv2d(input, self.weight, self.bias, stride, (rows // 2, columns // 2), groups=self.groups)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a shortcut where the shape stays."""

    def __init__(self, *, in_channels: int, out_channels: int, expand: int, kernel: int, stride: int):
        super().__init__()
        width = in_channels * expand
        self.expand = nn.Conv2d(in_channels, width, 1) if expand > 1 else None
        self.depthwise = SameConv2d(width, width, kernel, stride=stride, groups=width)
        self.project = nn.Conv2d(width, out_channels, 1)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return y + x if self.shortcut else y


class Lite0(nn.Module):
    """EfficientNet-Lite0 with its batch norms folded into the convolutions.

    Args:
        classes: outputs of the classifier on top; 0 leaves the classifier out, and `logits` with it.
    """

    channels = (16, 24, 40, 112, 320)
    strides = (2, 4, 8, 16, 32)

    def __init__(self, *, classes: int = 0):
        super().__init__()
        self._config = {"classes": classes}
        self.stem = SameConv2d(3, 32, 3, stride=2)
        self.stages = nn.ModuleList()
        width = 32
        for stage in _LITE0_STAGES:
            blocks = nn.Sequential()
            for n in range(stage.blocks):
                blocks.append(
                    InvertedResidual(
                        in_channels=width,
                        out_channels=stage.channels,
                        expand=stage.expand,
                        kernel=stage.kernel,
                        stride=stage.stride if n == 0 else 1,
                    )
                )
                width = stage.channels
            self.stages.append(blocks)
        self.head = nn.Conv2d(width, 1280, 1) if classes else None
        self.fc = nn.Linear(1280, classes) if classes else None
        self.requires_grad_(False)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._config)

    def forward(self, image: Tensor, *, maps: int = 5) -> list[Tensor]:
        """image (B, 3, H, W), [-1, 1] -> maps at strides 2, 4, 8, 16, 32 with 16, 24, 40, 112, 320 channels.

        Args:
            maps: how many, finest first; what lies behind the last one is not computed.

        Raises:
            ShapeError: the image is not (B, 3, H, W).
        """
        _check_image(image)
        x = F.relu6(self.stem(image.contiguous(memory_format=torch.channels_last)))
        found = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in _LITE0_TAPS:
                found.append(x)
            if len(found) == maps:
                break
        return found

    def logits(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W), [-1, 1] -> ImageNet logits (B, classes).

        Raises:
            ShapeError: the trunk was made without a classifier.
        """
        if self.head is None or self.fc is None:
            raise ShapeError(
                "this Lite0 has no classifier (classes=0); convert one with scripts/convert_lite0.py --head"
            )
        return self.fc(F.relu6(self.head(self(image)[-1])).mean((2, 3)))


def _check_image(image: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3:
        raise ShapeError(f"image has shape {tuple(image.shape)}, expected (B, 3, H, W)")


def load_trunk(path: str | Path) -> Lite0:
    """Read a trunk from a native safetensors file; float32 in memory, frozen, on the CPU.

    Raises:
        ZooError: there is no such file.
        UnknownFormatError: not a safetensors file of kind "trunk".
        KeyMismatchError: its tensors are not those of the architecture it names.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ZooError(f"no weights of the feature trunk at {path}; make them with scripts/convert_lite0.py")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("limner", "{}"))
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError) as error:
        raise UnknownFormatError(
            f"{path} is not a safetensors file with Limner's metadata: {error}"
        ) from None
    if about.get("kind") != "trunk" or about.get("architecture") != "Lite0":
        raise UnknownFormatError(
            f"{path} holds kind {about.get('kind')!r}, architecture {about.get('architecture')!r}; "
            "expected kind 'trunk', architecture 'Lite0'"
        )
    trunk = Lite0(**about.get("trunk", {}))
    load_strictly(trunk, state, where=str(path))
    return trunk


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Fill a module, explaining every mismatch.

    Raises:
        KeyMismatchError: tensors missing, left over or of the wrong shape.
    """
    wanted = module.state_dict()
    wrong = [f"{name} missing" for name in wanted if name not in state]
    wrong += [f"{name} unexpected" for name in state if name not in wanted]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise KeyMismatchError(f"{where} does not fit {type(module).__name__}: {shown}")
    module.load_state_dict(dict(state))
