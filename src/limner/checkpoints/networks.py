"""Build networks from named tensors: infer the architecture, compare every name and shape."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limner.checkpoints.keymaps import (
    MAX_MAPPING,
    MAX_RESOLUTION,
    LimnerRow,
    Operation,
    discriminator_rows,
    fir_constant,
    generator_rows,
    layout,
)
from limner.checkpoints.mismatch import Shape, mismatch_message, some
from limner.errors import KeyMismatchError
from limner.nn.stylegan2 import Discriminator, Generator, default_channels

logger = logging.getLogger(__name__)

Kernels = Sequence[tuple[re.Pattern[str], float]]
Network = TypeVar("Network", bound=nn.Module)

W_AVG_COUNT = 4096
W_AVG_SEED = 0
NOISE_SEED = 0


class Skeleton(TorchFunctionMode):
    """Inside it, modules are made with uninitialised parameters: their values are about to be loaded.

    The meta device would do the same, but its random numbers import sympy, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.uniform_, Tensor.normal_):  # PyTorch's own layers
            return args[0]
        if func is not torch.randn:
            return func(*args, **kwargs)
        return torch.empty(*args, **{key: value for key, value in kwargs.items() if key != "generator"})


@dataclasses.dataclass(frozen=True)
class Found:
    """Tensors under Limner's names, with where they came from.

    Args:
        values: Limner's name -> tensor in Limner's layout.
        names: Limner's name -> the file's name.
        unknown: the file's names that mean nothing here.
        misshapen: the file's names whose tensors have too few or too many axes, with their shapes.
    """

    values: dict[str, Tensor]
    names: dict[str, str]
    unknown: list[str]
    misshapen: dict[str, Shape]


def as_tensor(value: Any) -> Tensor | None:
    """Return a tensor or a numeric array as a tensor, None for anything else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (np.ndarray, np.number, float)):
        array = np.array(value)
        return torch.from_numpy(array) if array.dtype.kind in "fiub" else None
    return None


def translate(
    state: Mapping[str, Any],
    rows: Sequence[LimnerRow],
    column: str,
    kernels: Kernels = (),
    ignored: Sequence[str] = (),
) -> Found:
    """Bring a state dict to Limner's names and layout.

    Args:
        state: the file's names and tensors.
        rows, column: the key map, see `keymaps`.
        kernels: constant FIR kernels that may be there; one with other values counts as unknown.
        ignored: names that carry nothing a network needs.
    """
    known = layout(rows, column)
    found = Found({}, {}, [], {})
    for name, raw in state.items():
        value = as_tensor(raw)
        if name in ignored:
            continue
        if value is None:
            found.unknown.append(str(name))
        elif name in known:
            ours, operation = known[name]
            changed = _change(value, operation)
            found.names[ours] = name
            if changed is None:
                found.misshapen[ours] = tuple(value.shape)
            else:
                found.values[ours] = changed
        elif not _is_kernel(name, value, kernels):
            found.unknown.append(name)
    return found


def _change(value: Tensor, operation: Operation) -> Tensor | None:
    try:
        changed = operation.to_limner(value)
        same = operation.from_limner(changed).shape == value.shape
    except (IndexError, RuntimeError):
        return None
    return changed if same else None


def _is_kernel(name: str, value: Tensor, kernels: Kernels) -> bool:
    for pattern, total in kernels:
        if pattern.fullmatch(name):
            return value.shape == (4, 4) and torch.allclose(
                value.float(), fir_constant(total), atol=1e-3 * total
            )
    return False


def generator_config(found: Found) -> dict[str, Any]:
    """Infer `Generator`'s arguments from its tensors."""
    shapes = {name: tuple(value.shape) for name, value in found.values.items()}
    layers, colours = _indices(found, "synthesis.layers."), _indices(found, "synthesis.to_rgb.")
    depth = max(_indices(found, "mapping.layers."), default=7) + 1
    stages = max([*colours, *((i + 1) // 2 for i in layers)], default=0)
    resolution = 4 << stages
    channels = default_channels(resolution)
    for j, size in enumerate(channels):
        sources = [("synthesis.const", 0), ("synthesis.layers.0.weight", 0)] if j == 0 else []
        sources += [(f"synthesis.layers.{i}.weight", 0) for i in (2 * j - 1, 2 * j)] if j else []
        channels[size] = _first(shapes, [*sources, (f"synthesis.to_rgb.{j}.weight", 1)], channels[size])
    w_dim = _first(shapes, [("synthesis.layers.0.affine.weight", 1), ("mapping.layers.0.weight", 0)], 512)
    label_dim = _first(shapes, [("mapping.embed.weight", 1)], 0)
    z_dim = _first(shapes, [("mapping.layers.0.weight", 1)], 512) - (w_dim if label_dim else 0)
    return {
        "resolution": resolution,
        "channels": channels,
        "z_dim": max(z_dim, 1),
        "w_dim": w_dim,
        "mapping_depth": depth,
        "label_dim": label_dim,
        "rgb_channels": _first(shapes, [("synthesis.to_rgb.0.weight", 0)], 3),
    }


def discriminator_config(found: Found, resolution: int) -> dict[str, Any]:
    """Infer `Discriminator`'s arguments from its tensors."""
    shapes = {name: tuple(value.shape) for name, value in found.values.items()}
    channels = default_channels(resolution)
    channels[resolution] = _first(shapes, [("from_rgb.weight", 0)], channels[resolution])
    for k, size in enumerate(list(channels)[-2::-1]):
        sources = [(f"blocks.{k}.conv1.weight", 0), (f"blocks.{k}.skip.weight", 0)]
        channels[size] = _first(shapes, sources, channels[size])
    label_dim = _first(shapes, [("mapping.embed.weight", 1)], 0)
    return {
        "resolution": resolution,
        "channels": channels,
        "rgb_channels": _first(shapes, [("from_rgb.weight", 1)], 3),
        "label_dim": label_dim,
        "mapping_depth": max(_indices(found, "mapping.layers."), default=7) + 1,
        "std_channels": max(0, _first(shapes, [("conv.weight", 1)], channels[4] + 1) - channels[4]),
    }


def _indices(found: Found, prefix: str) -> set[int]:
    names = [name for name in found.names if name.startswith(prefix)]
    return {int(name[len(prefix) :].split(".", 1)[0]) for name in names}


def _first(shapes: Mapping[str, Shape], sources: Sequence[tuple[str, int]], default: int) -> int:
    for name, axis in sources:
        if name in shapes and len(shapes[name]) > axis:
            return shapes[name][axis]
    return default


def build_generator(
    state: Mapping[str, Any],
    column: str,
    *,
    what: str,
    kernels: Kernels = (),
    ignored: Sequence[str] = (),
    adjust: Callable[[dict[str, Tensor]], None] | None = None,
    **extra: Any,
) -> tuple[Generator, dict[str, Any]]:
    """Build a generator from a foreign state dict.

    Args:
        state: the file's names and tensors.
        column: which layout of `keymaps.Row` they are in.
        what: what to call it in messages.
        kernels, ignored: see `translate`.
        adjust: changes the tensors, under Limner's names, before they are loaded.
        extra: arguments of `Generator` that tensors do not tell.

    Returns:
        The generator, and notes on what the file did not hold.

    Raises:
        KeyMismatchError: names or shapes do not fit any StyleGAN2 generator.
    """
    found = translate(state, generator_rows(MAX_RESOLUTION, MAX_MAPPING, True), column, kernels, ignored)
    config = generator_config(found) | extra
    with Skeleton():
        generator = Generator(**config)
    exact = generator_rows(config["resolution"], config["mapping_depth"], bool(config["label_dim"]))
    notes: dict[str, Any] = {"w_avg": "stored"}
    noises = [name for name in generator.state_dict() if name.endswith(".noise")]
    if not any(name in found.names for name in noises):
        rng = torch.Generator().manual_seed(NOISE_SEED)
        for name in noises:
            found.values[name] = torch.randn(generator.state_dict()[name].shape, generator=rng)
        notes["noise"] = f"the file has no noise maps; they were drawn with seed {NOISE_SEED}"
    known_mean = "w_avg" in found.names
    if not known_mean:
        found.values["w_avg"] = torch.zeros(config["w_dim"])
    if adjust:
        adjust(found.values)
    fill_network(generator, found, exact, column, what=what)
    if not known_mean:
        notes["w_avg"] = set_mean_w(generator)
    return generator, notes


def set_mean_w(generator: Generator) -> str:
    """Set ``w_avg`` from random latents, always the same; return a note that says so."""
    generator.w_avg.copy_(generator.mean_w(W_AVG_COUNT, rng=torch.Generator().manual_seed(W_AVG_SEED)))
    return f"the file has no mean of w; it was computed from {W_AVG_COUNT} latents with seed {W_AVG_SEED}"


DISCRIMINATOR_BLOCK = {
    "rosinality": (re.compile(r"convs\.(\d{1,2})\..+"), lambda k: 4 << k),
    "nvlabs": (re.compile(r"b(\d{1,4})\..+"), lambda size: size),
    "tensorflow": (re.compile(r"(\d{1,4})x\1/.+"), lambda size: size),
}


def build_discriminator(
    state: Mapping[str, Any],
    column: str,
    *,
    what: str,
    kernels: Kernels = (),
    adjust: Callable[[dict[str, Tensor]], None] | None = None,
    **extra: Any,
) -> Discriminator:
    """Build a discriminator from a foreign state dict; arguments as for `build_generator`.

    Raises:
        KeyMismatchError: names or shapes do not fit any StyleGAN2 discriminator.
    """
    pattern, side = DISCRIMINATOR_BLOCK[column]
    matches = [pattern.fullmatch(str(name)) for name in state]
    resolution = max((side(int(match[1])) for match in matches if match), default=4)
    if resolution > MAX_RESOLUTION or resolution.bit_count() != 1 or resolution < 8:
        raise KeyMismatchError(f"{what} has blocks for {resolution} px, expected 8, 16, ... {MAX_RESOLUTION}")
    found = translate(state, discriminator_rows(resolution, MAX_MAPPING), column, kernels)
    config = discriminator_config(found, resolution) | extra
    with Skeleton():
        discriminator = Discriminator(**config)
    if adjust:
        adjust(found.values)
    exact = discriminator_rows(resolution, config["mapping_depth"] if config["label_dim"] else 0)
    fill_network(discriminator, found, exact, column, what=what)
    return discriminator


def fill_network(
    network: nn.Module, found: Found, rows: Sequence[LimnerRow], column: str, *, what: str
) -> None:
    """Load translated tensors as float32 copies into a network made inside `Skeleton`.

    Raises:
        KeyMismatchError: names or shapes differ.
    """
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    entries = {row.limner: getattr(row, column) for row in rows}

    def foreign(name: str) -> str:
        return found.names.get(name) or (entries[name][0] if entries.get(name) else name)

    def foreign_shape(name: str, shape: Shape) -> Shape:
        operation: Operation = entries[name][1] if entries.get(name) else Operation(lambda x: x, lambda x: x)
        return tuple(operation.from_limner(torch.empty(shape)).shape)

    misshapen = {
        foreign(name): (found.misshapen[name], foreign_shape(name, shapes[name]) if name in shapes else None)
        for name in found.misshapen
    }
    for name, value in found.values.items():
        if name in shapes and tuple(value.shape) != shapes[name]:
            misshapen[foreign(name)] = (
                foreign_shape(name, tuple(value.shape)),
                foreign_shape(name, shapes[name]),
            )
    missing = {
        foreign(name): name for name in shapes if name not in found.values and name not in found.misshapen
    }
    unknown = [*found.unknown, *(foreign(name) for name in found.values if name not in shapes)]
    if missing or unknown or misshapen:
        raise KeyMismatchError(mismatch_message(what, missing, unknown, misshapen))
    # Views of the mapped file become tensors of our own.
    own = {name: value.to(torch.float32, copy=True).contiguous() for name, value in found.values.items()}
    adopt(network, own, what=what)


def adopt(network: nn.Module, tensors: dict[str, Tensor], *, what: str) -> None:
    """Make tensors that fit the network's own; warn of infinite and undefined numbers."""
    broken = [name for name, value in tensors.items() if not value.isfinite().all()]
    if broken:
        logger.warning("%s holds infinite or undefined numbers (%s)", what, some(broken))
    network.load_state_dict(tensors, assign=True)
    network.eval()
