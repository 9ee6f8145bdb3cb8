"""What surrounds a training loop: device and processes, randomness, averaged weights, saved state, log."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limner.errors import CheckpointError, DivergedError, MissingExtraError
from limner.files import replacing
from limner.nn.precision import autocast, choose_precision
from limner.training.shared_options import RunOptions

T = TypeVar("T", bound=RunOptions)


class Runtime:
    """One process of a training run: its device and its talk with the others.

    One process needs nothing but torch; several are started by Lightning Fabric.

    Args:
        device: of this process.
        precision: ``fp32``, ``bf16``, or ``auto``: what is faster on the device.
        fabric: set in processes that Fabric started; its device counts then.
    """

    def __init__(self, device: torch.device, precision: str = "fp32", fabric: Any = None):
        self._fabric = fabric
        self.device: torch.device = fabric.device if fabric else device
        self.rank: int = fabric.global_rank if fabric else 0
        self.world: int = fabric.world_size if fabric else 1
        self.precision = choose_precision(precision, self.device)

    @classmethod
    def launch(
        cls, work: Callable[[Runtime], Any], *, processes: int, device: torch.device, precision: str = "fp32"
    ) -> Any:
        """Run ``work(runtime)`` in ``processes`` processes and return rank 0's result.

        Raises:
            MissingExtraError: several processes without Lightning Fabric.
        """
        if processes == 1:
            return work(cls(device, precision))
        try:
            from lightning_fabric import Fabric
        except ImportError:
            raise MissingExtraError(
                f"processes is {processes}: several processes need Lightning Fabric; pip install 'limner[train]'"
            ) from None
        fabric = Fabric(accelerator=device.type, devices=processes, strategy="ddp")
        return fabric.launch(lambda started: work(cls(device, precision, started)))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which networks run."""
        return autocast(self.precision, self.device)

    def __str__(self) -> str:
        return f"{self.device} in {self.precision}"

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes."""
        if self.world == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return
        flat = self._fabric.all_reduce(torch.cat([g.flatten() for g in grads]), reduce_op="mean")
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    @torch.no_grad()
    def average_buffers(self, module: nn.Module) -> None:
        """Replace what a network's normalisations have measured by its mean over all processes."""
        if self.world == 1:
            return
        buffers = [x for x in module.buffers() if x.is_floating_point()]
        flat = self.mean(torch.cat([x.flatten() for x in buffers]))
        for buffer, part in zip(buffers, flat.split([x.numel() for x in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))

    def gather(self, value: Tensor) -> Tensor:
        """Return the tensors (B, ...) of all processes one behind the other, (world * B, ...); no gradient comes back."""
        if self.world == 1:
            return value
        parts = value.new_zeros(self.world, *value.shape)
        parts[self.rank] = value.detach()
        return self.sum(parts).flatten(0, 1)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        return value if self.world == 1 else self._fabric.all_reduce(value, reduce_op="mean")

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return value if self.world == 1 else self._fabric.all_reduce(value, reduce_op="sum")

    def agree(self, stop: bool) -> bool:
        """Whether any process wants to stop."""
        return stop if self.world == 1 else bool(self.mean(torch.tensor(float(stop), device=self.device)) > 0)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            self._fabric.barrier()


def settle(options: T, device: torch.device) -> T:
    """Return options with ``precision`` as it will be on the device, so that what a run leaves says what it used."""
    return dataclasses.replace(options, precision=choose_precision(options.precision, device))


class StepRandom:
    """The randomness of one step, made from seed, step and rank alone.

    Because it has no history, a run that was killed and resumed draws the same numbers as one that was not.
    """

    def __init__(self, seed: int, step: int, rank: int, device: torch.device):
        number = (seed * 1_000_003 + step) * 4099 + rank
        self.cpu = torch.Generator().manual_seed(number % (1 << 63))
        self.device = device
        self.local = self.cpu
        if device.type != "cpu":
            self.local = torch.Generator(device).manual_seed(number % (1 << 63))

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers on the run's device."""
        return torch.randn(*shape, generator=self.cpu).to(self.device)

    def chance(self) -> float:
        """Return one uniform number."""
        return torch.rand((), generator=self.cpu).item()


@torch.no_grad()
def update_average(
    average: nn.Module, module: nn.Module, *, images: int, batch: int, half_kimg: float, ramp: float
) -> None:
    """Move averaged weights towards the trained ones; half of the distance in ``half_kimg`` thousand images.

    Args:
        average, module: of one class.
        images: seen so far; the half-life is at most ``ramp`` times this.
        batch: images since the last call.
        half_kimg: half-life in thousands of images; 0 copies.
        ramp: 0 for no ramp.
    """
    half = half_kimg * 1000
    if ramp:
        half = min(half, images * ramp)
    share = 1 - 0.5 ** (batch / max(half, 1e-8))
    mine: list[Tensor] = list(average.parameters())
    if mine:
        torch._foreach_lerp_(mine, list(module.parameters()), share)
    for old, new in zip(average.buffers(), module.buffers(), strict=True):
        old.copy_(new)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values, complete or not at all."""
    with replacing(path, sync=True) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be resumed ({error}); remove it to start anew") from error


class Journal:
    """The run's log, one JSON object per line."""

    def __init__(self, path: Path):
        self.path = path

    def cut(self, kimg: float) -> None:
        """Drop lines after ``kimg``: a resumed run writes them again."""
        if self.path.exists():
            kept = [line for line in self.read() if line["kimg"] <= kimg]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; raise `DivergedError` if a loss is not finite."""
        for name, value in record.items():
            if isinstance(value, float) and value - value != 0:
                raise DivergedError(
                    f"{name} became {value} at {record['kimg']} kimg; resume with a lower learning rate "
                    f"or a higher r1_gamma"
                )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all whole lines."""
        records = []
        if not self.path.exists():
            return records
        for line in self.path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
        return records


class Clock:
    """Time limit, save interval, and a polite end on SIGINT or SIGTERM."""

    def __init__(self, *, limit_s: float, save_s: float):
        self.start = self.saved = time.monotonic()
        self.limit_s, self.save_s, self.stopped = limit_s, save_s, False

    @property
    def seconds(self) -> float:
        """Seconds since the start of this call."""
        return time.monotonic() - self.start

    def should_stop(self) -> bool:
        """Whether the limit is reached or a signal came."""
        return self.stopped or (self.limit_s > 0 and self.seconds >= self.limit_s)

    def should_save(self) -> bool:
        """Whether the save interval has passed; starts the next one."""
        due = time.monotonic() - self.saved >= self.save_s
        if due:
            self.saved = time.monotonic()
        return due

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into a stop after the current step."""

        def stop(*_: Any) -> None:
            self.stopped = True

        try:
            old = {kind: signal.signal(kind, stop) for kind in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever started it stops it
            yield
            return
        try:
            yield
        finally:
            for kind, handler in old.items():
                signal.signal(kind, handler)
