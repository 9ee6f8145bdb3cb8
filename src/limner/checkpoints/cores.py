"""Files of networks on a frozen trunk: the trained core alone, with the digest of the generator that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from limner.errors import CheckpointError, KeyMismatchError
from limner.files import replacing
from limner.nn.features import load_strictly, read_native

Core = TypeVar("Core", bound=nn.Module)


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
        unpack: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> tuple[Core, dict[str, Any]]:
        """Return a core, float32, frozen, on the CPU, and its header.

        Args:
            path: what `write` wrote.
            make: class of the core.
            unpack: turns tensors as stored into those of the core; None where only their precision differs.

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
            values = unpack(state) if unpack else {name: value.float() for name, value in state.items()}
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


def stored_tensors(core: nn.Module, *, half: bool) -> dict[str, Tensor]:
    """Return a core's tensors as they are written: on the CPU, matrices and kernels as float16 where ``half`` says so.

    Raises:
        CheckpointError: values are too large for half precision.
    """
    tensors = {}
    for name, value in core.state_dict().items():
        value = value.detach().cpu().contiguous()
        if half and value.ndim >= 2:
            value = value.half()
            if not value.isfinite().all():
                raise CheckpointError(f"{name} holds values too large for float16; write float32")
        tensors[name] = value.clone()
    return tensors
