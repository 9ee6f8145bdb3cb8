"""The translator: sketches, label maps, small, masked, turned and toon pictures to w+ in one pass, one body for all.

A frozen Lite0 looks at a plain view of the input (a sketch as grey, a label map in fixed colours, a masked photo as it
is); a small stem per task adds what that view does not show.  Scales and shifts per task bend the shared pyramid and
its vectors, and a low-rank head per task corrects the codes.

Source: Richardson et al. 2021, pSp (arXiv 2008.00951), sections 3 and 4: one pass from any input domain to w+; Perez et
al. 2018, FiLM (arXiv 1709.07871): scale and shift per channel and task.
Differs: pSp trains a network of 200 million weights for every task; here all tasks share 1.8 million, and the body can
take over the weights of a compact encoder, whose first step it repeats.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import OptionError, ShapeError
from limner.nn.compact import FIRST_MAP, CompactBody, CompactCore, add_pixels, check_base
from limner.nn.features import Lite0
from limner.nn.stylegan2 import Generator

PALETTE_SEED = 20
FIRST_STRIDE = 4


class TaskStem(nn.Module):
    """Looks at an input that is no photo, and adds to every map of the pyramid.

    Args:
        in_channels: of the input.
        width: of the pyramid.
        levels: maps of the pyramid, from stride 4 on.
        inner: channels inside.
    """

    def __init__(self, *, in_channels: int, width: int, levels: int, inner: int):
        super().__init__()
        self.first = nn.Conv2d(in_channels, inner, 3, stride=2, padding=1)
        self.second = nn.Conv2d(inner, inner, 3, stride=2, padding=1)
        # What is averaged over a cell: the features and the input itself, such as the shares of label classes.
        self.lateral = nn.ModuleList(nn.Conv2d(inner + in_channels, width, 1) for _ in range(levels))
        for last in self.lateral:
            nn.init.zeros_(last.get_parameter("weight"))
            nn.init.zeros_(last.get_parameter("bias"))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, H) -> maps (B, width, H / 4, H / 4), (B, width, H / 8, H / 8), ..."""
        y = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.2)), 0.2)
        y = torch.cat([y, F.avg_pool2d(x, FIRST_STRIDE)], 1)
        found = []
        for level, lateral in enumerate(self.lateral):
            found.append(lateral(F.avg_pool2d(y, 2**level) if level else y))
        return found


class TranslatorCore(CompactBody):
    """All that is trained: shared body, and for every task a stem, scales, shifts and a head.

    Args:
        num_rows, w_dim, channels, input_px, width, gather, hidden, rank: see `CompactBody`.
        tasks: name -> channels of the input.
        inner: channels inside the stems.
        head_rank: numbers from which a task's own head makes its moves.
    """

    def __init__(
        self,
        *,
        num_rows: int,
        tasks: Mapping[str, int],
        w_dim: int = 512,
        channels: Sequence[int] = Lite0.channels[FIRST_MAP:],
        input_px: int = 128,
        width: int = 96,
        gather: int = 32,
        hidden: int = 256,
        rank: int = 96,
        inner: int = 24,
        head_rank: int = 16,
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
            looks=1,
        )
        if not tasks:
            raise OptionError("a translator needs at least one task")
        self.tasks = list(tasks)
        self._config |= {"tasks": dict(tasks), "inner": inner, "head_rank": head_rank}
        count, levels = len(tasks), len(self.seen)
        sides = [input_px // (FIRST_STRIDE << level) for level in range(levels)]
        # What every place of the picture begins with; taken over from an encoder, it is what that expects there.
        self.places = nn.ParameterList(torch.zeros(width, side * side) for side in sides)
        self.stems = nn.ModuleList(
            TaskStem(in_channels=channels, width=width, levels=levels, inner=inner)
            if channels != 3
            else nn.Identity()
            for channels in tasks.values()
        )
        self.map_scale = nn.Parameter(torch.zeros(count, levels, width))
        self.map_shift = nn.Parameter(torch.zeros(count, levels, width))
        self.vector_scale = nn.Parameter(torch.zeros(count, 3 * hidden))
        self.vector_shift = nn.Parameter(torch.zeros(count, 3 * hidden))
        self.head_down = nn.Parameter(torch.randn(count, head_rank, 3 * hidden) * (3 * hidden) ** -0.5)
        self.head_up = nn.Parameter(torch.zeros(count, 3 * w_dim, head_rank))

    def forward(
        self,
        task: Tensor,
        views: Sequence[Tensor],
        extra: Sequence[Tensor] | None = None,
        *,
        drop: float = 0.0,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Turn what was seen into codes.

        Args:
            task: number of every picture's task, (B,).
            views: of the pictures, see `limner.nn.compact.add_pixels`.
            extra: what the stems add to the maps, (B, width, h_i, w_i) each; None for nothing.
            drop: share of the vectors' numbers that is left out, against overfitting.
            rng: on the CPU, draws which.

        Returns:
            w+, (B, L, w_dim).
        """
        laterals = []
        for i, lateral in enumerate(self.lateral):
            mean, std = self.scales(i)
            x = lateral((views[i] - mean) / std)
            x = x + self.places[i].view(x.shape[1:])
            x = x if extra is None else x + extra[i]
            scale, shift = self.map_scale[task, i], self.map_shift[task, i]  # (B, width)
            laterals.append(x * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
        vector = torch.cat(self.summarise(self.climb(laterals)), 1)  # (B, 3 hidden)
        vector = vector * (1 + self.vector_scale[task]) + self.vector_shift[task]
        if drop:
            kept = torch.rand(vector.shape, generator=rng) >= drop
            vector = vector * kept.to(vector) / (1 - drop)
        moves = self.moves(vector.chunk(3, 1))
        inside = F.leaky_relu(torch.einsum("bi,bri->br", vector, self.head_down[task]), 0.2)
        own = torch.einsum("br,bor->bo", inside, self.head_up[task]).view(-1, 3, self.w_dim)
        return self.w_avg + self.w_std * (moves + own[:, self.groups])

    @torch.no_grad()
    def take_encoder(self, core: CompactCore, current: Sequence[Tensor]) -> None:
        """Take over a compact encoder of the same sizes: what this makes of photos is then that one's first step.

        Args:
            core: the encoder's.
            current: views of the mean w's picture, which the encoder compares with, (1, C_i, h_i, w_i).

        Raises:
            ShapeError: the two differ in size.
        """
        theirs, ours = core.config(), self.config()
        differ = [
            f"{key} {theirs[key]}, here {ours[key]}"
            for key in theirs
            if key in ours and theirs[key] != ours[key]
        ]
        if differ or core.stem is not None:
            raise ShapeError(f"the encoder has other sizes: {'; '.join(differ) or 'it has a stem'}")
        shared = {key: value for key, value in core.state_dict().items() if not key.startswith("lateral.")}
        self.load_state_dict({**self.state_dict(), **shared})
        for i, (mine, lateral) in enumerate(zip(self.lateral, core.lateral, strict=True)):
            # lateral(cat[(t - mean) / std, (t - c) / std]) = (A + B) (t - mean) / std + B (mean - c) / std + bias
            first, second = lateral.get_parameter("weight").chunk(2, 1)
            mean, std = self.scales(i)
            mine.get_parameter("weight").copy_(first + second)
            mine.get_parameter("bias").copy_(lateral.get_parameter("bias"))
            self.places[i].copy_(F.conv2d((mean - current[i]) / std, second)[0].flatten(1))


class Translator(nn.Module):
    """A core together with the frozen trunk that looks for it.

    Args:
        trunk: frozen; shared, its weights are not saved with the core.
        core: what is trained.
        base: name and digest of the generator that the core belongs to; empty while it is trained.
    """

    def __init__(self, *, trunk: Lite0, core: TranslatorCore, base: Mapping[str, str] | None = None):
        super().__init__()
        self.trunk, self.core, self.base = trunk, core, dict(base or {})
        self._checked: weakref.ref[Generator] | None = None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that it knows."""
        return self.core.tasks

    def forward(self, task: str, x: Tensor) -> Tensor:
        """Translate inputs of one task.

        Args:
            task: one of `tasks`.
            x: (B, C, H, H), what the task's network sees; brought to the side that the trunk looks at.

        Returns:
            w+, (B, L, w_dim).

        Raises:
            OptionError: no such task.
            ShapeError: the input is not (B, C, H, H) with the task's channels.
        """
        return self.translate([(task, x)])

    def translate(
        self, inputs: Sequence[tuple[str, Tensor]], *, drop: float = 0.0, rng: torch.Generator | None = None
    ) -> Tensor:
        """Translate inputs of several tasks in one pass.

        Args:
            inputs: task and its inputs (b, C, H, H) each.
            drop, rng: see `TranslatorCore.forward`.

        Returns:
            w+ of all in their order, (B, L, w_dim).

        Raises:
            OptionError: no such task.
            ShapeError: an input is not (b, C, H, H) with the task's channels.
        """
        inputs = [(task, self.prepare(task, x)) for task, x in inputs]
        with torch.no_grad():
            picture = torch.cat([make_view(x) for _, x in inputs])
            views = add_pixels(self.trunk(picture), picture)
        numbers = [self.tasks.index(task) for task, x in inputs for _ in range(len(x))]
        extra = self._extra(inputs, views)
        chosen = torch.tensor(numbers, device=picture.device)
        return self.core(chosen, views, extra, drop=drop, rng=rng)

    def _extra(self, inputs: Sequence[tuple[str, Tensor]], views: Sequence[Tensor]) -> list[Tensor] | None:
        """Return what the stems add, nothing for pictures without one."""
        width = self.core.config()["width"]
        parts: list[list[Tensor]] = [[] for _ in views]
        any_stem = False
        for task, x in inputs:
            stem = self.core.stems[self.tasks.index(task)]
            if isinstance(stem, TaskStem):
                found, any_stem = stem(x), True
            else:
                found = [x.new_zeros(len(x), width, *view.shape[2:]) for view in views]
            for part, one in zip(parts, found, strict=True):
                part.append(one)
        return [torch.cat(part) for part in parts] if any_stem else None

    def prepare(self, task: str, x: Tensor) -> Tensor:
        """Check an input and bring it to the side that the trunk looks at.

        Raises:
            OptionError: no such task.
            ShapeError: the input is not (B, C, H, H) with the task's channels.
        """
        channels = self.core.config()["tasks"]
        if task not in channels:
            raise OptionError(f"task is {task!r}, this translator knows {', '.join(self.tasks)}")
        if x.ndim != 4 or x.shape[1] != channels[task] or x.shape[2] != x.shape[3]:
            raise ShapeError(
                f"input of {task} has shape {tuple(x.shape)}, expected (B, {channels[task]}, H, H): a square picture"
            )
        side = self.core.input_px
        if x.shape[2] == side:
            return x
        return F.interpolate(
            x, (side, side), mode="bilinear", align_corners=False, antialias=side < x.shape[2]
        )

    def check_base(self, generator: Generator) -> None:
        """Raise `KeyMismatchError` unless this translator was trained for the generator."""
        if self._checked is not None and self._checked() is generator:
            return
        check_base(generator, self.core, self.base, what="translator")
        self._checked = weakref.ref(generator)


def make_view(x: Tensor) -> Tensor:
    """Return what the trunk sees of an input: (B, C, H, W) -> (B, 3, H, W), about [-1, 1].

    One channel, [0, 1], becomes grey; of four, the first three count; any other number but three are shares of classes,
    which get fixed colours.
    """
    count = x.shape[1]
    if count == 1:
        return (2 * x - 1).expand(-1, 3, -1, -1)
    if count in (3, 4):
        return x[:, :3]
    rng = torch.Generator().manual_seed(PALETTE_SEED)
    palette = torch.rand(count, 3, generator=rng).to(x) * 2 - 1
    return torch.einsum("bchw,cd->bdhw", x, palette)
