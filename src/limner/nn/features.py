"""Frozen feature trunks: EfficientNet-Lite0, VGG16, VGG19 and AlexNet; image [-1, 1] in, list of maps out.

A constructor makes the architecture only.  Weights come from a file, through the functions `load_trunk` (our own
safetensors) and `load_torchvision` (torchvision's classification checkpoints), and every parameter is frozen:
gradients reach the image, never the trunk.

Source: Tan and Le 2019, "EfficientNet" (arXiv 1905.11946), in the Lite variant (ReLU6, no squeeze-and-excitation);
Simonyan and Zisserman 2014 (arXiv 1409.1556); Krizhevsky 2014 (arXiv 1404.5997).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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


class _TorchvisionTrunk(nn.Module):
    """A plain chain of layers in torchvision's layout, ``features.N.weight``; image [-1, 1].

    Args:
        taps: indices N of the layers whose outputs are returned; what lies behind the last one is not built.
    """

    default_taps: tuple[int, ...]

    def __init__(self, layers: list[nn.Module], taps: Sequence[int] | None):
        super().__init__()
        self.taps = self.default_taps if taps is None else tuple(taps)
        if not self.taps or min(self.taps) < 0 or max(self.taps) >= len(layers):
            raise ShapeError(f"taps {self.taps}: expected layer numbers from 0 to {len(layers) - 1}")
        self.features = nn.Sequential(*layers[: max(self.taps) + 1])
        # ImageNet's mean and deviation, moved from [0, 1] to [-1, 1].
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer(
            "shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of every map."""
        widths, width = {}, 3
        for index, layer in enumerate(self.features):
            width = layer.out_channels if isinstance(layer, nn.Conv2d) else width
            widths[index] = width
        return tuple(widths[tap] for tap in sorted(self.taps))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"taps": list(self.taps)}

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W), [-1, 1] -> the outputs of the tapped layers, in their order.

        Raises:
            ShapeError: the image is not (B, 3, H, W).
        """
        _check_image(image)
        x = ((image - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


def _vgg_layers(*blocks: int) -> list[nn.Module]:
    """Return 3x3 convolutions with ReLU, max pooling after every block; ``blocks`` counts the convolutions."""
    layers: list[nn.Module] = []
    width = 3
    for convolutions, out in zip(blocks, (64, 128, 256, 512, 512), strict=True):
        for _ in range(convolutions):
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
        layers.append(nn.MaxPool2d(2))
    return layers


class Vgg16(_TorchvisionTrunk):
    """VGG16; by default relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    Args:
        taps: indices N of the layers whose outputs are returned.
    """

    default_taps = (3, 8, 15, 22, 29)

    def __init__(self, *, taps: Sequence[int] | None = None):
        super().__init__(_vgg_layers(2, 2, 3, 3, 3), taps)


class Vgg19(_TorchvisionTrunk):
    """VGG19; by default relu1_2, relu2_2, relu3_4, relu4_4 and relu5_4.

    Args:
        taps: indices N of the layers whose outputs are returned.
    """

    default_taps = (3, 8, 17, 26, 35)

    def __init__(self, *, taps: Sequence[int] | None = None):
        super().__init__(_vgg_layers(2, 2, 4, 4, 4), taps)


class AlexNet(_TorchvisionTrunk):
    """AlexNet (the one-tower variant); by default the outputs of its five ReLUs.

    Args:
        taps: indices N of the layers whose outputs are returned.
    """

    default_taps = (1, 4, 7, 9, 11)

    def __init__(self, *, taps: Sequence[int] | None = None):
        layers = [
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
        ]
        super().__init__(layers, taps)


TORCHVISION_TRUNKS: dict[str, type[Vgg16] | type[Vgg19] | type[AlexNet]] = {
    "vgg16": Vgg16,
    "vgg19": Vgg19,
    "alexnet": AlexNet,
}
"""Name -> trunk whose weights `load_torchvision` reads."""


def load_trunk(path: str | Path) -> Lite0:
    """Read a trunk from a native safetensors file; float32 in memory, frozen, on the CPU.

    Raises:
        ZooError: there is no such file.
        UnknownFormatError: not a safetensors file of kind "trunk".
        KeyMismatchError: its tensors are not those of the architecture it names.
    """
    about, packed = read_native(
        path,
        kind="trunk",
        architecture="Lite0",
        what="the feature trunk",
        remedy="make them with scripts/convert_lite0.py",
    )
    trunk = Lite0(**about.get("trunk", {}))
    load_strictly(trunk, {name: value.float() for name, value in packed.items()}, where=str(path))
    return trunk


def read_native(
    path: str | Path, *, kind: str, architecture: str, what: str, remedy: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read metadata and tensors, as stored, of one of Limner's own small safetensors files.

    Args:
        kind, architecture: what its metadata must say.
        what: names the network in messages.
        remedy: what to do where there is no file.

    Raises:
        ZooError: there is no such file.
        UnknownFormatError: not a safetensors file, or of another kind or architecture.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ZooError(f"no weights of {what} at {path}; {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("limner", "{}"))
            if not isinstance(about, dict):
                raise ValueError(f"the metadata hold a {type(about).__name__}")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError) as error:
        raise UnknownFormatError(
            f"{path} is not a safetensors file with Limner's metadata: {error}"
        ) from None
    if about.get("kind") != kind or about.get("architecture") != architecture:
        raise UnknownFormatError(
            f"{path} holds kind {about.get('kind')!r}, architecture {about.get('architecture')!r}; "
            f"expected kind {kind!r}, architecture {architecture!r}"
        )
    return about, state


def load_torchvision(
    name: str, path: str | Path, *, taps: Sequence[int] | None = None
) -> Vgg16 | Vgg19 | AlexNet:
    """Read one of `TORCHVISION_TRUNKS` from torchvision's file (``.pth`` or safetensors); frozen, on the CPU.

    The classifier and layers behind the last tap are left out; any other difference is an error.

    Args:
        name: vgg16, vgg19 or alexnet.
        path: such as vgg16-397923af.pth.
        taps: indices N of the layers whose outputs are returned; None for the trunk's default.

    Raises:
        ZooError: unknown name, or there is no such file.
        UnknownFormatError: not a file of tensors.
        KeyMismatchError: its tensors are not those of the architecture.
    """
    if name not in TORCHVISION_TRUNKS:
        raise ZooError(f"no feature trunk {name!r}; known: {', '.join(TORCHVISION_TRUNKS)}")
    trunk = TORCHVISION_TRUNKS[name](taps=taps)
    state = read_tensors(path, what=f"weights of {name} (torchvision's checkpoint)")
    load_strictly(trunk, torchvision_features(state, trunk), where=str(path))
    return trunk


def torchvision_features(state: Mapping[str, Tensor], trunk: _TorchvisionTrunk) -> dict[str, Tensor]:
    """Return the tensors of a torchvision checkpoint without the classifier and what lies behind the last tap."""
    last = len(trunk.features) - 1
    found = {}
    for name, value in state.items():
        parts = name.split(".")
        behind = parts[0] == "features" and len(parts) > 1 and parts[1].isdecimal() and int(parts[1]) > last
        if parts[0] != "classifier" and not behind:
            found[name] = value
    return found


def read_tensors(path: str | Path, *, what: str) -> dict[str, Tensor]:
    """Read a flat file of tensors, safetensors or PyTorch's (arrays only, nothing is run), as float32.

    Args:
        what: names the file in messages.

    Raises:
        ZooError: there is no such file.
        UnknownFormatError: it does not hold tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise ZooError(f"no {what} at {path}; put the file there or give its path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes the readers raise
        raise UnknownFormatError(
            f"{path} is not a readable file of tensors: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UnknownFormatError(f"{path} does not hold tensors by name; expected {what}")
    return {name: value.float() for name, value in state.items()}


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
