"""Files of networks on a frozen trunk: the trained core alone, with the digest of the generator that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limner.errors import CheckpointError, KeyMismatchError
from limner.files import replacing
from limner.nn.features import load_strictly, read_native

Core = TypeVar("Core", bound=nn.Module)
SCALE = ".scale"
LEAST_NUMBERS = 256
"""Smaller tensors stay in float32: biases, means and deviations."""
STEPS = 127
SMALLEST = 1e-30


@dataclass(frozen=True)
class CoreFiles:
    """Safetensors files of one kind of network.

    Args:
        kind, architecture: what their headers say.
        entry: where a header keeps the sizes of the core.
        name: of such a network, in messages.
        command: trains one.
    """

    kind: str
    architecture: str
    entry: str
    name: str
    command: str

    def write(
        self,
        path: str | Path,
        tensors: dict[str, Tensor],
        *,
        config: dict[str, Any],
        base: Mapping[str, str],
        provenance: Mapping[str, Any],
        licence: str,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a file, whole or not at all.

        Args:
            path: safetensors file.
            tensors: of the core, as they are to be stored.
            config: sizes of the core.
            base: name and digest of the generator that it belongs to.
            provenance: plain values: how it was made.
            licence: terms of the weights.
            more: other entries of the header.

        Raises:
            CheckpointError: ``base`` names no generator.
        """
        from safetensors.torch import save_file

        if not base.get("digest"):
            raise CheckpointError(
                f"{path}: a network of kind {self.name} is only of use with its generator; give it a base first"
            )
        about = {
            "version": 1,
            "kind": self.kind,
            "architecture": self.architecture,
            self.entry: config,
            "base": dict(base),
            **(more or {}),
            "provenance": dict(provenance),
            "licence": licence,
        }
        with replacing(path) as temporary:
            save_file(
                tensors, temporary, {"limner": json.dumps(about)}
            )  # unsorted: the order of tasks counts

    def read_about(self, path: str | Path) -> dict[str, Any] | None:
        """Return what a file of this kind says of itself; None for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("limner", "{}"))
        except (SafetensorError, ValueError, OSError):
            return None
        wanted = (self.kind, self.architecture)
        ours = isinstance(about, dict) and (about.get("kind"), about.get("architecture")) == wanted
        return about if ours else None

    def read(
        self,
        path: str | Path,
        make: Callable[..., Core],
    ) -> tuple[Core, dict[str, Any]]:
        """Return a core, float32, frozen, on the CPU, and its header.

        Args:
            path: what `write` wrote.
            make: class of the core.

        Raises:
            ZooError: there is no such file.
            UnknownFormatError: not a file of this kind.
            KeyMismatchError: its tensors are not those of the architecture it names.
        """
        remedy = f"train one with {self.command}"
        about, state = read_native(
            path, kind=self.kind, architecture=self.architecture, what=f"the {self.name}", remedy=remedy
        )
        try:
            core = make(**about[self.entry])
            values = unpack_all(state)
        except (TypeError, KeyError, ValueError, RuntimeError, AttributeError) as error:
            raise self.mismatch(path, error) from None
        load_strictly(core, values, where=str(path))
        return core.requires_grad_(False).eval(), about

    def mismatch(self, path: str | Path, error: Exception) -> KeyMismatchError:
        """Return the error that says that a header describes no such network."""
        return KeyMismatchError(f"{path}: its header describes no {self.name} ({error})")


def plain_words(value: Any) -> dict[str, str]:
    """Return a header's mapping with its values as text; empty where the header holds something else."""
    return {name: str(word) for name, word in value.items()} if isinstance(value, dict) else {}


def stored_tensors(core: nn.Module, *, packed: bool) -> dict[str, Tensor]:
    """Return a core's tensors as they are written: on the CPU, matrices and kernels in 8 bits where ``packed`` says so.

    Raises:
        CheckpointError: values are not finite.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in core.state_dict().items():
        value = value.detach().float().cpu().contiguous()
        if not value.isfinite().all():
            raise CheckpointError(f"{name} holds values that are not finite; nothing was written")
        if packed and value.ndim >= 2 and value.numel() >= LEAST_NUMBERS:
            tensors[name], tensors[name + SCALE] = pack(value)
        else:
            tensors[name] = value.clone()
    return tensors


def pack(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tensor in 8 bits and the scales of its rows: (..., n) -> int8 (..., n), float32 (rows,).

    A row is what belongs to one index of the first dimension; of tensors with three dimensions, to one of the first two
    (a task's own matrix).
    """
    lead = 2 if value.ndim == 3 else 1
    rows = value.flatten(0, lead - 1).flatten(1)
    scale = (rows.abs().amax(1) / STEPS).clamp_min(SMALLEST)
    return (rows / scale[:, None]).round().clamp(-STEPS, STEPS).to(torch.int8).view(value.shape), scale


def unpack(value: Tensor, scale: Tensor) -> Tensor:
    """Return what `pack` packed, in float32."""
    lead = 2 if value.ndim == 3 else 1
    rows = value.flatten(0, lead - 1).flatten(1).float()
    return (rows * scale[:, None]).view(value.shape)


def unpack_all(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a core's tensors from those that a file holds.

    Raises:
        KeyError: there are scales without tensors.
    """
    scales = {name.removesuffix(SCALE): state.pop(name) for name in list(state) if name.endswith(SCALE)}
    values = {
        name: unpack(value, scales.pop(name)) if name in scales else value.float()
        for name, value in state.items()
    }
    if scales:
        raise KeyError(f"scales without tensors: {', '.join(scales)}")
    return values
