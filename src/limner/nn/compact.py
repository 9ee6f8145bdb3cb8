"""The compact encoder: a frozen Lite0 trunk, a small feature pyramid, and heads that move w+ step by step.

The trunk looks at the picture and at what the generator makes of the codes so far; the difference moves the codes.
The first step starts at the mean w and its picture.  One trunk serves many cores: a task has a core of its own, and
a small stem where its input is no photo.

Source: Richardson et al. 2021, pSp (arXiv 2008.00951), section 3: pyramid, coarse, middle and fine rows, offsets from
the mean w; Tov et al. 2021, e4e (arXiv 2102.02766), section 4: one w for all rows and a delta per row; Alaluf et al.
2021, ReStyle (arXiv 2104.02699), section 3: steps on picture and reconstruction.
Differs: the trunk is frozen and light; a core has 1.7 million weights instead of 200 million.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import KeyMismatchError, ShapeError
from limner.nn import deltas
from limner.nn.features import Lite0
from limner.nn.stylegan2 import Generator

FIRST_MAP = 1
"""The trunk's maps at strides 4, 8, 16 and 32 are used."""
COARSE_ROWS, MIDDLE_ROWS = 3, 4
GRID = 4
"""Side to which every group's map is brought before it becomes a vector."""
CRITICAL_STD = 1e-3


class LightBlock(nn.Module):
    """Depthwise 3x3 and pointwise convolution; beside a shortcut where the size stays.

    Args:
        width: channels.
        stride: 1, or 2 to halve the size.
    """

    def __init__(self, *, width: int, stride: int = 1):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> (B, width, H / stride, W / stride)."""
        y = self.pointwise(F.leaky_relu(self.depthwise(F.leaky_relu(x, 0.2)), 0.2))
        return y + (x if self.stride == 1 else F.avg_pool2d(x, 2))


class InputStem(nn.Module):
    """Turns a sketch, label map or masked picture into what the trunk knows: three channels about [-1, 1].

    Args:
        in_channels: of the input.
        width: channels inside.
    """

    def __init__(self, *, in_channels: int, width: int = 24):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 3, H, W)."""
        return torch.tanh(self.layers(x))


class CompactBody(nn.Module):
    """From maps of one width at four strides to moves of w+: all of a core but what it looks at.

    Args:
        num_rows: rows of w+.
        w_dim: width of w.
        channels: of the trunk's maps that are used, from fine to coarse.
        input_px: side at which the trunk looks at pictures, a multiple of 32.
        width: channels of the pyramid.
        gather: channels that become a group's vector.
        hidden: length of a group's vector.
        rank: numbers from which the delta of a row is made.
        looks: views that are laid upon one another: 2 for a picture and what is made of it, 1 for an input alone.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        w_dim: int,
        channels: Sequence[int],
        input_px: int,
        width: int,
        gather: int,
        hidden: int,
        rank: int,
        looks: int,
    ):
        super().__init__()
        if input_px < 32 or input_px % 32:
            raise ShapeError(f"input_px is {input_px}, expected a multiple of 32")
        self._config: dict[str, Any] = {
            "num_rows": num_rows,
            "w_dim": w_dim,
            "channels": list(channels),
            "input_px": input_px,
            "width": width,
            "gather": gather,
            "hidden": hidden,
            "rank": rank,
        }
        self.num_rows, self.w_dim, self.input_px = num_rows, w_dim, input_px
        self.groups = row_groups(num_rows)
        self.seen = [count + 3 for count in channels]  # maps and pixels
        for i, count in enumerate(self.seen):
            self.register_buffer(f"mean{i}", torch.zeros(count))
            self.register_buffer(f"std{i}", torch.ones(count))
        self.lateral = nn.ModuleList(nn.Conv2d(looks * count, width, 1) for count in self.seen)
        self.blocks = nn.ModuleList(
            nn.Sequential(LightBlock(width=width), LightBlock(width=width)) for _ in self.seen
        )
        self.fold = LightBlock(width=width, stride=2)  # stride 4 into stride 8
        # coarse from stride 32, middle from 16, fine from 8
        self.shrink = nn.ModuleList(
            nn.Sequential(*(LightBlock(width=width, stride=2) for _ in range(count))) for count in range(3)
        )
        self.gather = nn.ModuleList(nn.Conv2d(width, gather, 1) for _ in range(3))
        self.vectors = nn.ModuleList(nn.Linear(gather * GRID * GRID, hidden) for _ in range(3))
        self.base = nn.Sequential(nn.Linear(3 * hidden, 448), nn.LeakyReLU(0.2), nn.Linear(448, w_dim))
        self.rows = nn.ModuleList(nn.Linear(hidden, rank) for _ in range(num_rows))
        self.decode = nn.ModuleList(nn.Linear(rank, w_dim, bias=False) for _ in range(3))
        for last in (self.base[-1], *self.decode):
            nn.init.zeros_(last.get_parameter("weight"))
        nn.init.zeros_(self.base[-1].get_parameter("bias"))
        self.w_avg: Tensor
        self.w_std: Tensor
        self.register_buffer("w_avg", torch.zeros(w_dim))
        self.register_buffer("w_std", torch.ones(()))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._config)

    @torch.no_grad()
    def calibrate(self, views: Sequence[Tensor]) -> None:
        """Measure mean and deviation of every channel that `CompactEncoder.look` returns, on real pictures.

        Args:
            views: (B, C_i, h_i, w_i), not yet normalised.
        """
        for i, x in enumerate(views):
            self.get_buffer(f"mean{i}").copy_(x.mean((0, 2, 3)))
            self.get_buffer(f"std{i}").copy_(x.std((0, 2, 3)).clamp_min(CRITICAL_STD))

    def scales(self, i: int) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of a view's channels, (1, C_i, 1, 1)."""
        shape = (1, -1, 1, 1)
        return self.get_buffer(f"mean{i}").view(shape), self.get_buffer(f"std{i}").view(shape)

    def climb(self, laterals: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, width, h_i, w_i) from fine to coarse -> maps at strides 32, 16 and 8 that know the coarser ones."""
        found: list[Tensor] = []
        x: Tensor | None = None
        for i in reversed(range(len(self.blocks))):
            y = laterals[i]
            if x is not None:
                y = y + F.interpolate(x, size=y.shape[2:], mode="nearest")
            x = y = self.blocks[i](y)
            found.append(y)
        found[2] = found[2] + self.fold(found[3])
        return found[:3]

    def summarise(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps at strides 32, 16 and 8 -> vectors (B, hidden) of the coarse, middle and fine rows."""
        vectors = []
        for group, x in enumerate(maps):
            x = self.gather[group](self.shrink[group](x))
            x = F.adaptive_avg_pool2d(x, GRID) if x.shape[-1] != GRID else x
            vectors.append(F.leaky_relu(self.vectors[group](F.leaky_relu(x.flatten(1), 0.2)), 0.2))
        return vectors

    def moves(self, vectors: Sequence[Tensor], *, free_rows: int | None = None) -> Tensor:
        """Vectors of the three groups -> moves of w+ in units of the spread of w, (B, L, w_dim).

        Args:
            vectors: (B, hidden) each.
            free_rows: how many rows, from the first, have a delta of their own; None for all.
        """
        base = self.base(torch.cat(list(vectors), 1))  # (B, w_dim)
        moves = []
        for row, group in enumerate(self.groups):
            move = base
            if free_rows is None or row < free_rows:
                move = base + self.decode[group](F.leaky_relu(self.rows[row](vectors[group]), 0.2))
            moves.append(move)
        return torch.stack(moves, 1)


class CompactCore(CompactBody):
    """All that is trained: pyramid and heads.

    Args:
        num_rows: rows of w+.
        w_dim: width of w.
        channels: of the trunk's maps that are used, from fine to coarse.
        input_px: side at which the trunk looks at pictures, a multiple of 32.
        in_channels: of the input; anything but 3 gets an `InputStem`.
        width, gather, hidden, rank: see `CompactBody`.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        w_dim: int = 512,
        channels: Sequence[int] = Lite0.channels[FIRST_MAP:],
        input_px: int = 128,
        in_channels: int = 3,
        width: int = 96,
        gather: int = 32,
        hidden: int = 256,
        rank: int = 96,
    ):
        super().__init__(
            num_rows=num_rows,
            w_dim=w_dim,
            channels=channels,
            input_px=input_px,
            width=width,
            gather=gather,
            hidden=hidden,
            rank=rank,
            looks=2,
        )
        self._config["in_channels"] = in_channels
        self.stem = InputStem(in_channels=in_channels) if in_channels != 3 else None

    def pyramid(self, target: Sequence[Tensor], current: Sequence[Tensor]) -> list[Tensor]:
        """Views of picture and reconstruction -> maps (B, width, h, w) at strides 32, 16 and 8."""
        laterals = []
        for i, lateral in enumerate(self.lateral):
            mean, std = self.scales(i)
            pair = [(target[i] - mean) / std, (target[i] - current[i]) / std]
            laterals.append(lateral(torch.cat(pair, 1)))
        return self.climb(laterals)

    def forward(
        self,
        target: Sequence[Tensor],
        current: Sequence[Tensor],
        w_plus: Tensor,
        *,
        free_rows: int | None = None,
    ) -> Tensor:
        """Move codes towards a picture.

        Args:
            target: views of the picture, see `CompactEncoder.look`.
            current: views of what the generator makes of the codes; a batch of 1 serves all.
            w_plus: the codes so far, (B or 1, L, w_dim).
            free_rows: how many rows, from the first, have a delta of their own; None for all (e4e's progressive
                training begins with few).

        Returns:
            The new codes, (B, L, w_dim).
        """
        current = [y.expand(len(x), -1, -1, -1) for x, y in zip(target, current, strict=True)]
        vectors = self.summarise(self.pyramid(target, current))
        return w_plus + self.w_std * self.moves(vectors, free_rows=free_rows)


def row_groups(num_rows: int) -> list[int]:
    """Return for every row of w+ its group: 0 coarse (rows 0-2), 1 middle (rows 3-6), 2 fine (the rest)."""
    return [
        0 if row < COARSE_ROWS else 1 if row < COARSE_ROWS + MIDDLE_ROWS else 2 for row in range(num_rows)
    ]


class CompactEncoder(nn.Module):
    """A core together with the frozen trunk that looks for it.

    Args:
        trunk: frozen; shared, its weights are not saved with the core.
        core: what is trained.
        base: name and digest of the generator that the core belongs to; empty while it is trained.
    """

    def __init__(self, *, trunk: Lite0, core: CompactCore, base: Mapping[str, str] | None = None):
        super().__init__()
        self.trunk, self.core, self.base = trunk, core, dict(base or {})
        self._checked: weakref.ref[Generator] | None = None
        self._start_views: tuple[Any, list[Tensor]] | None = None

    def prepare(self, image: Tensor) -> Tensor:
        """Bring a picture (B, C, H, W) to the side at which the trunk looks at it, (B, 3, input_px, input_px)."""
        size = (self.core.input_px,) * 2
        if image.shape[2:] != size:
            smaller = size[0] < image.shape[2]
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=smaller)
        return image if self.core.stem is None else self.core.stem(image)

    def look(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the trunk's maps of a prepared picture, and the views that the core works on.

        A view is a map with the pixels beside it, averaged to its size: the trunk is nearly blind to brightness.
        """
        maps = self.trunk(image)
        return maps, self.add_pixels(maps, image)

    def add_pixels(self, maps: Sequence[Tensor], image: Tensor) -> list[Tensor]:
        """Return the trunk's maps from stride 4 on with the averaged pixels of the image beside them."""
        return add_pixels(maps, image)

    @torch.no_grad()
    def encode(self, generator: Generator, image: Tensor, *, steps: int = 3) -> list[Tensor]:
        """Return the codes (B, L, w_dim) after every step.

        Args:
            generator: the one that the core belongs to.
            image: (B, 3, H, H), [-1, 1], FFHQ-aligned.
            steps: passes of the core; every one but the first needs a picture by the generator.

        Raises:
            KeyMismatchError: the encoder belongs to another generator.
            ShapeError: the image is not (B, C, H, H).
        """
        self.check_base(generator)
        if image.ndim != 4 or image.shape[2] != image.shape[3]:
            raise ShapeError(
                f"image has shape {tuple(image.shape)}, expected (B, 3, H, H): a square, aligned face"
            )
        target = self.look(self.prepare(image))[1]
        w_plus = self.start(1)
        found = []
        for step in range(steps):
            current = self._view(generator, w_plus) if step else self.view_start(generator)
            w_plus = self.core(target, current, w_plus)
            found.append(w_plus)
        return found

    def _view(self, generator: Generator, w_plus: Tensor) -> list[Tensor]:
        """Return the views of what the generator makes of codes: a photo whatever the input is, it never passes the stem."""
        painted = generator.synthesis(w_plus).clamp(-1, 1)
        return self.look(resize(painted, self.core.input_px))[1]

    @torch.no_grad()
    def view_start(self, generator: Generator) -> list[Tensor]:
        """Return the views that every first step has, found once for a generator and the weights that it has now."""
        w_plus = self.start(1)
        kind = w_plus.device.type
        key = (
            weakref.ref(generator),
            sum(
                0 if tensor.is_inference() else tensor._version
                for tensor in (*generator.parameters(), *generator.buffers(), w_plus)
            ),
            next(generator.parameters()).device,
            next(generator.parameters()).dtype,
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        )
        if self._start_views is None or self._start_views[0] != key:
            self._start_views = (key, self._view(generator, w_plus))
        return self._start_views[1]

    def start(self, batch: int) -> Tensor:
        """Return the codes that the first step starts from: the mean w in every row, (batch, L, w_dim)."""
        return self.core.w_avg.expand(batch, self.core.num_rows, -1)

    def check_base(self, generator: Generator) -> None:
        """Raise `KeyMismatchError` unless this encoder was trained for the generator."""
        if self._checked is not None and self._checked() is generator:
            return
        check_base(generator, self.core, self.base, what="encoder")
        self._checked = weakref.ref(generator)


def add_pixels(maps: Sequence[Tensor], image: Tensor) -> list[Tensor]:
    """Return a trunk's maps from stride 4 on with the averaged pixels of the image beside them."""
    views = []
    for x in maps[FIRST_MAP:]:
        pixels = F.avg_pool2d(image, image.shape[2] // x.shape[2])
        views.append(torch.cat([x, pixels.to(x.dtype)], 1))
    return views


def check_base(generator: Generator, core: CompactBody, base: Mapping[str, str], *, what: str) -> None:
    """Raise `KeyMismatchError` unless a core was trained for the generator.

    Args:
        generator: that its codes are meant for.
        core: its sizes count.
        base: name and digest of the generator that it was trained for; empty while it is trained.
        what: encoder or translator, for the message.
    """
    if generator.num_rows != core.num_rows or generator.w_dim != core.w_dim:
        raise KeyMismatchError(
            f"this {what} makes w+ of {core.num_rows} rows of {core.w_dim}, the generator takes "
            f"{generator.num_rows} of {generator.w_dim}; train one for it with limner train {what}"
        )
    wanted = base.get("digest")
    if wanted and (found := deltas.digest(generator)) != wanted:
        raise KeyMismatchError(
            f"this {what} belongs to the generator {base.get('name', '?')} ({wanted[:12]}...), this one is "
            f"another ({found[:12]}...); train one for it with limner train {what}"
        )


def resize(image: Tensor, side: int) -> Tensor:
    """Bring a square image (B, 3, H, H) to ``side`` px."""
    if image.shape[2] == side:
        return image
    return F.interpolate(
        image, size=(side, side), mode="bilinear", align_corners=False, antialias=side < image.shape[2]
    )
