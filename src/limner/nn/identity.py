"""Identity embedders: aligned face in, embedding out; two embeddings of one person lie close together.

A constructor makes the architecture only; weights come from a file, through `load_identity`, and every parameter is
frozen: gradients reach the image, never the network.

Source: Davis King 2017, "High quality face recognition with deep metric learning" (blog.dlib.net); the network is
dlib's ResNet with 29 convolutions, trained with a metric loss that draws each person's faces into a ball of radius 0.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import ShapeError
from limner.nn.features import load_strictly, read_native

SAME_PERSON = 0.36
"""Squared distance below which dlib takes two faces for one person: its threshold is 0.6, not squared."""
FFHQ_CROP = (0.165, 0.255, 0.67)
"""Where the face that the network expects lies in an FFHQ-aligned image: left, top, side, as shares of its side."""
SCALE_SUFFIX = ".scale"
# (output channels, residual blocks); the first block of every stage but the first halves the size.
_STAGES = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
_MEAN = (122.782, 117.001, 104.298)  # of the training pictures, RGB, 0 to 255
_SIDE_PX = 150


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is averaged over 2x2 px where the block halves the size.

    The two paths may differ in channels, rows and columns; zeros are appended to the smaller one.

    Args:
        in_channels, out_channels: of the block.
        halve: halve height and width.
    """

    def __init__(self, *, in_channels: int, out_channels: int, halve: bool):
        super().__init__()
        self.halve = halve
        # When it halves, the first convolution has no margin.
        self.first = nn.Conv2d(in_channels, out_channels, 3, stride=1 + halve, padding=1 - halve)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W), or ceil or floor of half of H and W."""
        y = self.second(F.relu(self.first(x)))
        if self.halve:
            x = F.avg_pool2d(x, 2)
        shape = [max(sides) for sides in zip(x.shape[1:], y.shape[1:], strict=True)]
        return F.relu(_extend(x, shape) + _extend(y, shape))


def _extend(x: Tensor, shape: list[int]) -> Tensor:
    """Append zeros to channels, rows and columns."""
    channels, rows, columns = (wanted - have for wanted, have in zip(shape, x.shape[1:], strict=True))
    return F.pad(x, (0, columns, 0, rows, 0, channels)) if channels or rows or columns else x


class DlibResNet(nn.Module):
    """Dlib's face embedding: 128 numbers without unit; compare them by squared distance.

    The per-channel scale and shift behind every convolution of the original are folded into it.

    Args:
        crop: left, top and side of the face in the aligned image, as shares of its side.
    """

    name = "dlib"
    dimensions = 128

    def __init__(self, *, crop: tuple[float, float, float] = FFHQ_CROP):
        super().__init__()
        self.crop = (float(crop[0]), float(crop[1]), float(crop[2]))
        width = _STAGES[0][0]
        self.stem = nn.Conv2d(3, width, 7, stride=2)
        self.blocks = nn.Sequential()
        for stage, (channels, count) in enumerate(_STAGES):
            for n in range(count):
                halve = stage > 0 and n == 0
                self.blocks.append(ResidualBlock(in_channels=width, out_channels=channels, halve=halve))
                width = channels
        self.embed = nn.Linear(width, self.dimensions, bias=False)
        self.requires_grad_(False)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"crop": self.crop}

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, H, H), [-1, 1], FFHQ-aligned, any size -> embedding (B, 128).

        Raises:
            ShapeError: the image is not (B, 3, H, H).
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3]:
            raise ShapeError(
                f"image has shape {tuple(image.shape)}, expected (B, 3, H, H): a square, FFHQ-aligned face"
            )
        return self.embed_crop(resample(image, crop=self.crop, side=_SIDE_PX))

    def embed_crop(self, face: Tensor) -> Tensor:
        """Face as dlib crops it, (B, 3, 150, 150), [-1, 1] -> embedding (B, 128)."""
        mean = face.new_tensor(_MEAN).view(1, 3, 1, 1)
        x = ((face + 1) * 127.5 - mean) / 256
        x = F.relu(self.stem(x.contiguous(memory_format=torch.channels_last)))  # (B, 32, 72, 72)
        x = self.blocks(F.max_pool2d(x, 3, stride=2))
        return self.embed(x.mean((2, 3)))


def resample(image: Tensor, *, crop: tuple[float, float, float], side: int) -> Tensor:
    """Cut a square out of an image, to fractions of a pixel, and bring it to a size.

    Args:
        image: (B, C, H, H).
        crop: left, top and side of the square, as shares of H.
        side: of the result, in px.

    Returns:
        (B, C, side, side).  Tent filter, widened when the result is smaller, so that nothing is skipped.

    Convention: pixel centres lie at half-integers, as with ``align_corners=False``; the filter's weights are
        renormalised at the image's edge.
    """
    left, top, share = crop
    rows = _tent_weights(image, start=top, share=share, side=side)
    columns = _tent_weights(image, start=left, share=share, side=side)
    return rows @ image @ columns.t()


def _tent_weights(image: Tensor, *, start: float, share: float, side: int) -> Tensor:
    """Return the weight of every old row (or column) in every new one, (side, H)."""
    size = image.shape[-1]
    step = share * size / side  # old px per new px
    centres = start * size + (torch.arange(side, device=image.device, dtype=torch.float64) + 0.5) * step
    old = torch.arange(size, device=image.device, dtype=torch.float64) + 0.5
    weights = (1 - (centres[:, None] - old).abs() / max(step, 1.0)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(image.dtype)


def quantise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round every weight (not biases) to 8 bits per output channel: int8 ``NAME`` times float32 ``NAME.scale``."""
    packed = {}
    for name, value in state.items():
        if value.ndim < 2:
            packed[name] = value.float()
            continue
        scale = value.float().flatten(1).abs().amax(1) / 127  # (O,)
        spread = scale.clamp(min=1e-30).view(-1, *[1] * (value.ndim - 1))
        packed[name] = (value.float() / spread).round().to(torch.int8)
        packed[name + SCALE_SUFFIX] = scale
    return packed


def dequantise(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the float32 state of what `quantise` packed; tensors without a scale are only converted."""
    state = {}
    for name, value in packed.items():
        if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in packed:
            continue
        scale = packed.get(name + SCALE_SUFFIX)
        state[name] = value.float()
        if scale is not None:
            state[name] *= scale.float().view(-1, *[1] * (value.ndim - 1))
    return state


def load_identity(path: str | Path) -> DlibResNet:
    """Read an identity embedder from a native safetensors file; float32 in memory, frozen, on the CPU.

    Raises:
        ZooError: there is no such file.
        UnknownFormatError: not a safetensors file of kind "identity".
        KeyMismatchError: its tensors are not those of the architecture it names.
    """
    about, packed = read_native(
        path,
        kind="identity",
        architecture="DlibResNet",
        what="the identity embedder",
        remedy="make them with scripts/convert_dlib.py",
    )
    embedder = DlibResNet(**about.get("identity", {}))
    load_strictly(embedder, dequantise(packed), where=str(path))
    return embedder
