"""Half precision: whether a device has units for it, and the context in which networks use them.

Weights, optimisers, codes and losses stay in float32; only convolutions and matrix products run in bfloat16.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from limner.errors import OptionError

P = ParamSpec("P")
T = TypeVar("T")
BF16_CAPABILITY = 8
"""NVIDIA's compute capability from which on tensor cores know bfloat16."""
CPU_UNITS = (
    ("AMX-BF16", "amx_bf16", "_is_amx_tile_supported"),
    ("AVX512_BF16", "avx512_bf16", "_is_avx512_bf16_supported"),
)
"""Units of x86 processors: name, key of PyTorch's table of capabilities, and the query of versions without the table."""


def bf16_units(device: torch.device) -> str:
    """Return the name of a device's units for bfloat16; empty where it has none, or PyTorch cannot tell.

    Emulation does not count: it is slower than float32.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if torch.version.hip:
            return "ROCm" if torch.cuda.is_bf16_supported() else ""
        return f"compute capability {major}.{minor}" if major >= BF16_CAPABILITY else ""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return ""
    table = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else None
    for name, key, query in CPU_UNITS:
        known = table.get(key, False) if table is not None else getattr(torch.cpu, query, bool)()
        if known:
            return name
    return ""


def choose_precision(wanted: str, device: torch.device) -> str:
    """Return ``fp32`` or ``bf16``: what is wanted, for ``auto`` the faster one.

    Raises:
        OptionError: nothing of the kind.
    """
    if wanted == "auto":
        return "bf16" if bf16_units(device) else "fp32"
    if wanted not in ("fp32", "bf16"):
        raise OptionError(f"precision is {wanted!r}, expected fp32, bf16 or auto")
    return wanted


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context in which networks run.

    Args:
        precision: ``fp32`` or ``bf16``.
        device: of the networks.
    """
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that half precision would spoil: it runs outside of autocast, and its tensors are float32.

    Sums over many numbers, differences of nearly equal ones, codes and coordinates are spoilt.  Tensors among the
    arguments, and in their lists and tuples, that are narrower than float32 are widened; wider ones stay as they are.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with contextlib.ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            wide = (_widen(value) for value in args)
            return function(*wide, **{name: _widen(value) for name, value in kwargs.items()})  # pyright: ignore

    return run


def _widen(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, (list, tuple)) and any(isinstance(one, torch.Tensor) for one in value):
        return [_widen(one) for one in value]
    return value
