"""HyperInverter: a code in w for the editing, and a change of the generator's weights for the details.

A first encoder gives w; a second one looks at the photo and at what w paints, and gives a map per row; from the two
maps of its row, a small network per layer of the generator computes what is added to that layer's weight.

Convention: target layers go by the names of the generator's tensors (`limner.nn.stylegan2.Generator`).  Changes are
added to the stored weights, before the factor of the equalised learning rate, modulation and demodulation.

Source: Dinh et al. 2022, "HyperInverter: Improving StyleGAN Inversion via Hypernetwork" (arXiv 2112.00719).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from limner.errors import ShapeError
from limner.nn import stylegan1
from limner.nn.encoders import BODIES, COARSE_ROWS, MIDDLE_ROWS, Encoder, RowHeads, strided_convolution
from limner.nn.irse import ALIGNED_PX, WIDTHS, Body
from limner.nn.stylegan2 import Generator

LAYER_SETS = ("conv_without_bias", "conv_without_bias_without_torgb", "all_without_bias")
"""What may change: every convolution; those but the toRGB layers; every convolution and affine layer."""
PREFIX = "synthesis."
TARGET = re.compile(r"synthesis\.(layers|to_rgb)\.(\d+)\.(affine\.)?weight")
NORM_EPS = 1e-5
INIT_SCALE = 0.01


def code_row(target: str) -> int:
    """Return the row of the maps that a target layer's change is computed from; not its row of w+.

    Raises:
        ShapeError: no layer whose weight can change.
    """
    match = TARGET.fullmatch(target)
    if match is None:
        raise ShapeError(
            f"{target!r} is no weight that HyperInverter changes (synthesis.layers.0.weight, ...)"
        )
    index = int(match[2])
    if match[1] == "to_rgb":
        return 2 * index + 1
    return index + 1 if index else 0


def target_layers(generator: Generator, layer_set: str = LAYER_SETS[0]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the weights that a layer set means.

    Raises:
        ShapeError: no such set, or no StyleGAN2 generator.
    """
    if layer_set not in LAYER_SETS or isinstance(generator, stylegan1.Generator):
        raise ShapeError(
            f"layer set {layer_set!r} of a {type(generator).__module__} generator; "
            f"expected one of {', '.join(LAYER_SETS)} of StyleGAN2"
        )
    modules = ["synthesis.layers.0", "synthesis.to_rgb.0"]
    for j in range(1, len(generator.synthesis.to_rgb)):
        modules += [f"synthesis.layers.{i}" for i in (2 * j - 1, 2 * j)] + [f"synthesis.to_rgb.{j}"]
    if layer_set == LAYER_SETS[1]:
        modules = [name for name in modules if "to_rgb" not in name]
    names = [f"{name}.weight" for name in modules]
    if layer_set == LAYER_SETS[2]:
        names += [f"{name}.affine.weight" for name in modules]
    shapes = generator.state_dict()
    return {name: tuple(shapes[name].shape) for name in names}


class MapHead(nn.Module):
    """Stride-2 convolutions: map (B, C, side, side) -> (B, C, side / 2**count, ...)."""

    def __init__(self, channels: int, *, count: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, side, side) -> (B, C, side / 2**count, side / 2**count)."""
        for conv in self.convs:
            x = strided_convolution(x, conv)  # type: ignore[arg-type]
        return x


class MapHeads(RowHeads):
    """One `MapHead` per row on pSp's feature pyramid, down to half the side of the smallest map.

    Args:
        rows: of w+.
        widths: channels of the body's maps, from the largest map to the smallest.
    """

    def __init__(self, *, rows: int, widths: Sequence[int]):
        nn.Module.__init__(self)
        channels = widths[2]
        self.pyramid, self.deltas = True, False
        self.levels = [0 if row < COARSE_ROWS else 1 if row < MIDDLE_ROWS else 2 for row in range(rows)]
        self.rows = nn.ModuleList(MapHead(channels, count=1 + level) for level in self.levels)
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in (widths[1], widths[0]))


class MapEncoder(nn.Module):
    """Image -> a map per row: body and `MapHeads`.

    Args:
        rows: of w+.
        body: one of `limner.nn.encoders.BODIES`.
        widths, depths: of the body's stages, see `limner.nn.irse.Body`.
    """

    def __init__(self, *, rows: int, body: str, widths: Sequence[int], depths: Sequence[int] | None):
        super().__init__()
        kind, own_depths = BODIES[body]
        self.body: Body = kind(in_channels=3, widths=widths, depths=depths or own_depths)
        self.head = MapHeads(rows=rows, widths=widths[1:])

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, S, S) -> (B, rows, C, S / 32, S / 32)."""
        return self.head(self.body(image))


class WeightRegressor(nn.Module):
    """Two maps of a row -> change of one weight.

    Args:
        code_channels: of each map.
        code_side: of the maps, a power of two.
        shape: of the weight, (O, I) or (O, I, k, k).
        features: channels of the convolutions.
        hidden: width of the vector that the change is computed from, and of its second layer.
    """

    def __init__(
        self, *, code_channels: int, code_side: int, shape: Sequence[int], features: int, hidden: int
    ):
        super().__init__()
        self.shape, self.hidden = tuple(shape), hidden
        outputs, inputs = self.shape[:2]
        self.fuse = nn.Conv2d(2 * code_channels, code_channels, 1)
        halvings = int(math.log2(code_side))
        widths = [features] * halvings + [hidden]
        self.convs = nn.ModuleList([nn.Conv2d(code_channels, features, 3, padding=1)])
        self.convs.extend(
            nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1) for i in range(halvings)
        )
        self.w1 = nn.Parameter(torch.randn(hidden, inputs * hidden) * (INIT_SCALE / math.sqrt(hidden)))
        self.b1 = nn.Parameter(torch.zeros(inputs * hidden))
        self.w2 = nn.Parameter(torch.randn(hidden, outputs * math.prod(self.shape[2:])) * INIT_SCALE)
        self.b2 = nn.Parameter(torch.zeros(self.w2.shape[1]))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of what w paints and of the photo, (B, 2C, side, side) -> (B, O, I, k, k) or (B, O, I)."""
        x = F.relu(F.instance_norm(self.fuse(maps), eps=NORM_EPS))
        for conv in self.convs:
            x = F.relu(conv(x))
        x = torch.addmm(self.b1, x.flatten(1), self.w1).view(len(x), -1, self.hidden)  # (B, I, hidden)
        x = torch.matmul(x, self.w2) + self.b2  # (B, I, O k k)
        # Differs from what the axes say: the original reads these numbers as (O, I, k, k) without turning them.
        return x.view(len(x), *self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class HyperCodes:
    """What HyperInverter makes of a batch.

    Attributes:
        w: (B, w_dim).
        w_image: what the unchanged generator paints of it, (B, 3, R, R).
        residuals: name of a generator's tensor -> change of it for every picture, (B, ...).
    """

    w: Tensor
    w_image: Tensor
    residuals: dict[str, Tensor]

    def delta(self, index: int) -> dict[str, Tensor]:
        """Return one picture's change of the generator; see `limner.nn.deltas`."""
        return {name: value[index] for name, value in self.residuals.items()}


class HyperInverter(nn.Module):
    """Both encoders and the hypernetwork.

    Like an `Encoder` it has a ``family`` and a number of ``iterations``, one.

    Args:
        rows: of w+ of the generator.
        targets: name -> shape of the weights that change, see `target_layers`.
        hidden: see `WeightRegressor`; 128 and 256 in the published models.
        body, map_body: of the first and the second encoder, ``ir-se50`` or ``resnet34``.
        in_size: side in px at which both see pictures.
        w_dim: width of w.
        widths: channels of the stages of both bodies, see `limner.nn.irse.Body`.
        depths, map_depths: their blocks; None for their own numbers.
        features: see `WeightRegressor`.
    """

    family = "hyper"
    iterations = 1

    def __init__(
        self,
        *,
        rows: int,
        targets: Mapping[str, Sequence[int]],
        hidden: int = 128,
        body: str = "ir-se50",
        map_body: str = "ir-se50",
        in_size: int = ALIGNED_PX,
        w_dim: int = 512,
        widths: Sequence[int] = WIDTHS,
        depths: Sequence[int] | None = None,
        map_depths: Sequence[int] | None = None,
        features: int = 64,
    ):
        super().__init__()
        last = max((code_row(name) for name in targets), default=0)
        if not targets or last >= rows or map_body not in BODIES or hidden < 1:
            raise ShapeError(
                f"{len(targets)} target layers that need {last + 1} rows, map_body {map_body!r}, hidden {hidden}; "
                f"expected some layers, no more rows than {rows}, one of {', '.join(BODIES)}, at least 1"
            )
        self.targets = {name: tuple(shape) for name, shape in targets.items()}
        self.rows, self.in_size, self.w_dim = rows, in_size, w_dim
        self._config: dict[str, Any] = {
            "rows": rows,
            "targets": {name: list(shape) for name, shape in targets.items()},
            "hidden": hidden,
            "body": body,
            "map_body": map_body,
            "in_size": in_size,
            "w_dim": w_dim,
            "widths": list(widths),
            "depths": None if depths is None else list(depths),
            "map_depths": None if map_depths is None else list(map_depths),
            "features": features,
        }
        self.encoder = Encoder(
            rows=rows,
            body=body,
            head="w",
            space="w",
            in_size=in_size,
            w_dim=w_dim,
            widths=widths,
            depths=depths,
        )
        self.map_encoder = MapEncoder(rows=rows, body=map_body, widths=widths, depths=map_depths)
        make = {
            "code_channels": widths[3],
            "code_side": in_size // 32,
            "features": features,
            "hidden": hidden,
        }
        self.regressors = nn.ModuleDict(
            {module_name(name): WeightRegressor(shape=shape, **make) for name, shape in self.targets.items()}
        )

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._config)

    def see(self, image: Tensor) -> Tensor:
        """Bring pictures (B, 3, H, W) to the encoders' size, bilinearly without antialiasing."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ShapeError(f"image has shape {tuple(image.shape)}, expected (B, 3, H, W)")
        size = (self.in_size, self.in_size)
        if image.shape[2:] == size:
            return image
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False)

    def residuals(self, photo_maps: Tensor, w_maps: Tensor) -> dict[str, Tensor]:
        """Maps of the photo and of what w paints, (B, rows, C, side, side) -> changes, (B, ...) each."""
        found = {}
        for name in self.targets:
            row = code_row(name)
            pair = torch.cat([w_maps[:, row], photo_maps[:, row]], 1)  # (B, 2C, side, side)
            found[name] = self.regressors[module_name(name)](pair)
        return found

    def forward(self, generator: Generator, image: Tensor) -> HyperCodes:
        """Find code and changes of pictures.

        Args:
            generator: the one it was trained with.
            image: (B, 3, H, W), [-1, 1], FFHQ-aligned, of any size.

        Raises:
            ShapeError: the generator is another.
        """
        self.check(generator)
        seen = self.see(image)
        w = self.encoder.predict(seen) + generator.w_avg
        w_image = generator.synthesis(generator.broadcast(w))
        photo_maps, w_maps = self.map_encoder(torch.cat([seen, self.see(w_image)])).chunk(2)
        return HyperCodes(w, w_image, self.residuals(photo_maps, w_maps))

    def check(self, generator: Generator) -> None:
        """Raise `ShapeError` unless the generator has the target layers."""
        shapes = {name: tuple(value.shape) for name, value in generator.named_parameters()}
        wrong = [name for name, shape in self.targets.items() if shapes.get(name) != shape]
        if wrong or generator.w_dim != self.w_dim or isinstance(generator, stylegan1.Generator):
            example = (
                f"; {wrong[0]} is {shapes.get(wrong[0])}, expected {self.targets[wrong[0]]}" if wrong else ""
            )
            raise ShapeError(
                f"this HyperInverter changes {len(self.targets)} weights of a StyleGAN2 generator with {self.rows} "
                f"rows of {self.w_dim}; {len(wrong)} of them the generator of {generator.resolution} px lacks or has in "
                f"another shape{example}; use the generator it was trained with"
            )


def module_name(target: str) -> str:
    """Return the name under which a target layer's regressor is kept."""
    return target.removeprefix(PREFIX).replace(".", "_")


def paint(generator: Generator, w: Tensor, residuals: Mapping[str, Tensor]) -> Tensor:
    """Paint every picture with its own weights; gradients reach codes and changes.

    Args:
        generator: it is not changed.
        w: (B, w_dim), or w+ (B, L, w_dim).
        residuals: see `HyperCodes`.

    Returns:
        (B, 3, R, R), not clipped.
    """
    w_plus = generator.broadcast(w) if w.ndim == 2 else w
    weights = dict(generator.named_parameters())
    images = []
    for i in range(len(w)):
        # The weights are swapped for the time of one call; batches of different weights have nothing to share.
        own = {name.removeprefix(PREFIX): weights[name] + value[i] for name, value in residuals.items()}
        images.append(functional_call(generator.synthesis, own, (w_plus[i : i + 1],)))
    return torch.cat(images)


def interpolate(first: HyperCodes, second: HyperCodes, shares: Iterable[float]) -> HyperCodes:
    """Blend two pictures' codes and changes, the changes as the paper does for interpolating real photos.

    Args:
        first, second: one picture each.
        shares: of the second, one per result.
    """
    t = torch.tensor(list(shares), dtype=first.w.dtype, device=first.w.device)

    def blend(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a, b, t.view(-1, *[1] * (a.ndim - 1)))

    residuals = {name: blend(value, second.residuals[name]) for name, value in first.residuals.items()}
    return HyperCodes(blend(first.w, second.w), blend(first.w_image, second.w_image), residuals)
