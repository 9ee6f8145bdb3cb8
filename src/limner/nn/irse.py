"""Bodies of the face encoders, IR-SE50 and ResNet-34, and ArcFace, the identity embedder made of the first.

A body gives its maps after the second, third and last stage, at a quarter, an eighth and a sixteenth of the image's
side; the encoders' heads read them (`limner.nn.encoders`).

Speed: everything is channels-last, the weights too once they are loaded (`keep_channels_last`): for one picture,
bringing weights into another order costs as much as using them.  In evaluation mode a batch normalisation that stands before the squeeze-and-
excitation becomes part of its gate, and one behind a 1x1 convolution part of its weights, so that the large maps are
passed over once.

Source: Deng et al. 2019, "ArcFace" (arXiv 1801.07698); Hu et al. 2018, "Squeeze-and-Excitation Networks"
(arXiv 1709.01507); He et al. 2016 (arXiv 1512.03385).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import ShapeError
from limner.nn.fused import convolve, mix_channels

WIDTHS = (64, 128, 256, 512)
IR_SE50_DEPTHS = (3, 4, 14, 3)
RESNET34_DEPTHS = (3, 4, 6, 3)
REDUCTION = 16
FACE_BOX = (35, 223, 32, 220)
"""Top, bottom, left, right of the face that ArcFace expects, in an FFHQ-aligned picture of 256 px."""
ALIGNED_PX, FACE_PX = 256, 112


class BatchNorm(nn.Module):
    """Batch normalisation of (B, C) or (B, C, H, W), without the counter of PyTorch's own.

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch's figures while training, by the stored ones otherwise."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=self.training, eps=1e-5
        )

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return the factor and the summand, (C,) each, that evaluation mode amounts to."""
        scale = self.weight * torch.rsqrt(self.running_var + 1e-5)
        return scale, self.bias - self.running_mean * scale


def _map(vector: Tensor) -> Tensor:
    """(C,) or (B, C) -> (1 or B, C, 1, 1)."""
    return vector.reshape(-1, vector.shape[-1], 1, 1)


def normed_convolution(
    x: Tensor, conv: nn.Conv2d, norm: BatchNorm, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """Convolve, then normalise; small weights take the normalisation in."""
    if norm.training or conv.weight.numel() > conv.out_channels * x.shape[2] * x.shape[3] // 4:
        return norm(convolve(x, conv.weight, stride=stride, padding=padding))
    scale, shift = norm.affine()
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    if torch.is_grad_enabled():
        return convolve(x, weight, stride=stride, padding=padding) + _map(shift)
    return F.conv2d(x, weight, shift, stride=stride, padding=padding)


class Stem(nn.Module):
    """Convolution, normalisation, PReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, size: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=False)
        self.norm = BatchNorm(out_channels)
        self.activate = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H / stride, W / stride)."""
        size, stride = self.conv.kernel_size[0], self.conv.stride[0]
        return self.activate(normed_convolution(x, self.conv, self.norm, stride=stride, padding=size // 2))


class Shortcut(nn.Module):
    """1x1 convolution and normalisation, where a block changes the number of channels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = BatchNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W), thinned to the block's stride -> (B, O, H, W)."""
        weight = self.conv.weight[:, :, 0, 0]
        if self.norm.training:
            return self.norm(mix_channels(x, weight))
        scale, shift = self.norm.affine()
        return mix_channels(x, weight * scale[:, None]) + _map(shift)


class IrSeBlock(nn.Module):
    """Normalisation, two 3x3 convolutions, squeeze-and-excitation, beside a shortcut.

    Args:
        in_channels, out_channels: of the block.
        stride: of the second convolution; the shortcut takes every ``stride``-th pixel.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int):
        super().__init__()
        self.stride = stride
        self.norm1 = BatchNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.activate = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, 1, bias=False)
        self.norm2 = BatchNorm(out_channels)
        squeezed = max(1, out_channels // REDUCTION)
        self.squeeze = nn.Conv2d(out_channels, squeezed, 1, bias=False)
        self.excite = nn.Conv2d(squeezed, out_channels, 1, bias=False)
        self.shortcut = None if in_channels == out_channels else Shortcut(in_channels, out_channels)

    def gate(self, mean: Tensor) -> Tensor:
        """Channel means (B, C) -> factors (B, C)."""
        squeezed = F.relu(F.linear(mean, self.squeeze.weight[:, :, 0, 0]))
        return torch.sigmoid(F.linear(squeezed, self.excite.weight[:, :, 0, 0]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H / stride, W / stride)."""
        y = self.activate(convolve(self.norm1(x), self.conv1.weight, padding=1))
        y = convolve(y, self.conv2.weight, padding=1, stride=self.stride)
        # A 1x1 max pool with a stride only thins out.
        short = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        short = short if self.shortcut is None else self.shortcut(short)
        if self.norm2.training:
            y = self.norm2(y)
            return torch.addcmul(short, y, _map(self.gate(y.mean((2, 3)))))
        # The gate is a factor per channel, and so is the normalisation.
        scale, shift = self.norm2.affine()
        gate = self.gate(torch.addcmul(shift, y.mean((2, 3)), scale))
        out = torch.addcmul(short, y, _map(gate * scale))
        shift = _map(gate * shift)
        return out + shift if out.requires_grad else out.add_(shift)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with normalisation beside a shortcut, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = BatchNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = BatchNorm(out_channels)
        changed = in_channels != out_channels or stride > 1
        self.shortcut = Shortcut(in_channels, out_channels) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H / stride, W / stride)."""
        y = F.relu(normed_convolution(x, self.conv1, self.norm1, stride=self.stride, padding=1), inplace=True)
        y = normed_convolution(y, self.conv2, self.norm2, padding=1)
        short = x if self.shortcut is None else self.shortcut(x[:, :, :: self.stride, :: self.stride])
        return F.relu(y + short, inplace=True)


class Body(nn.Module):
    """Stem and four stages of blocks; what comes out is one map after the second, third and fourth stage each.

    Args:
        in_channels: of the image.
        widths: channels of the stages; the stem has the first's.
        depths: blocks of the stages.
    """

    def __init__(self, *, in_channels: int, widths: Sequence[int], depths: Sequence[int]):
        super().__init__()
        if len(widths) != 4 or len(depths) != 4 or min(*widths, *depths, in_channels) < 1:
            raise ShapeError(
                f"a body has 4 stages of 1 block and channel at least; got widths {tuple(widths)}, "
                f"depths {tuple(depths)} and {in_channels} input channels"
            )
        self.in_channels = in_channels
        self.widths, self.depths = tuple(widths), tuple(depths)
        self.blocks = nn.ModuleList()

    def _add_blocks(self, kind: type[IrSeBlock] | type[ResBlock], strides: Sequence[int]) -> None:
        inputs = (self.widths[0], *self.widths)
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for n in range(depth):
                source, stride = (width, 1) if n else (inputs[stage], strides[stage])
                self.blocks.append(kind(source, width, stride=stride))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image (B, C, H, W) -> maps at a quarter, an eighth and a sixteenth of its sides.

        Raises:
            ShapeError: not a batch of images with the body's channels.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ShapeError(f"image has shape {tuple(image.shape)}, expected (B, {self.in_channels}, H, W)")
        x = self.get_submodule("stem")(image.contiguous(memory_format=torch.channels_last))
        maps, ends = [], set(itertools.accumulate(self.depths))
        for i, block in enumerate(self.blocks, 1):
            x = block(x)
            if i in ends:
                maps.append(x)
        return maps[1], maps[2], maps[3]


class IrSeBody(Body):
    """IR-SE50 without its output layers; see `Body`."""

    def __init__(
        self,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] = IR_SE50_DEPTHS,
    ):
        super().__init__(in_channels=in_channels, widths=widths, depths=depths)
        self.stem = Stem(in_channels, self.widths[0], size=3, stride=1)
        self._add_blocks(IrSeBlock, (2, 2, 2, 2))


class ResNetBody(Body):
    """ResNet-34 with PReLU in its stem and without the max pool; see `Body`."""

    def __init__(
        self,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] = RESNET34_DEPTHS,
    ):
        super().__init__(in_channels=in_channels, widths=widths, depths=depths)
        self.stem = Stem(in_channels, self.widths[0], size=7, stride=2)
        self._add_blocks(ResBlock, (1, 2, 2, 2))


def keep_channels_last(network: nn.Module, _: Any = None) -> None:
    """Store every kernel channels-last, as the convolutions want it; to be hooked to ``load_state_dict``."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class ArcFace(nn.Module):
    """IR-SE50 trained with ArcFace: aligned face in, embedding of length 1 out; 1 - dot product is the distance.

    Args:
        widths, depths: see `Body`.
        dimensions: of the embedding.
        face_px: side of the face the network sees.
    """

    name = "arcface"

    def __init__(
        self,
        *,
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] = IR_SE50_DEPTHS,
        dimensions: int = 512,
        face_px: int = FACE_PX,
    ):
        super().__init__()
        self.face_px, self.dimensions = face_px, dimensions
        self.body = IrSeBody(widths=widths, depths=depths)
        self.norm = BatchNorm(widths[-1])
        self.embed = nn.Linear(widths[-1] * (face_px // 16) ** 2, dimensions)
        self.out_norm = BatchNorm(dimensions)
        self.register_load_state_dict_post_hook(keep_channels_last)
        self.requires_grad_(False)
        self.eval()

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        body = {"widths": self.body.widths, "depths": self.body.depths}
        return {**body, "dimensions": self.dimensions, "face_px": self.face_px}

    def crop(self, image: Tensor) -> Tensor:
        """Cut the face out of an FFHQ-aligned image (B, 3, H, H), any size, and bring it to (B, 3, face_px, face_px).

        Pictures that are not 256 px wide are averaged or enlarged to it first.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3]:
            raise ShapeError(
                f"image has shape {tuple(image.shape)}, expected (B, 3, H, H): a square, FFHQ-aligned face"
            )
        top, bottom, left, right = FACE_BOX
        if image.shape[2] < ALIGNED_PX:
            image = F.interpolate(image, size=ALIGNED_PX, mode="bilinear", align_corners=False)
        image = face_pool(image, ALIGNED_PX)[:, :, top:bottom, left:right]
        return F.adaptive_avg_pool2d(image, self.face_px)

    def unnormalised(self, face: Tensor) -> Tensor:
        """Face as `crop` returns it -> embedding before it is brought to length 1, (B, dimensions)."""
        x = self.norm(self.body(face)[-1])
        # Numbered channels first, as in the weights.
        return self.out_norm(self.embed(x.flatten(1)))

    def embed_crop(self, face: Tensor) -> Tensor:
        """Face as `crop` returns it, [-1, 1] -> embedding of length 1, (B, dimensions)."""
        return F.normalize(self.unnormalised(face), dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, H, H), [-1, 1], FFHQ-aligned, any size -> embedding of length 1, (B, dimensions)."""
        return self.embed_crop(self.crop(image))


def face_pool(image: Tensor, side: int = ALIGNED_PX) -> Tensor:
    """Bring an image to a side by adaptive mean pooling, which repeats pixels where the image is smaller.

    The encoders of the pSp family were trained on pictures that were made so.
    """
    return image if image.shape[2:] == (side, side) else F.adaptive_avg_pool2d(image, side)
