"""Write files in the layouts of the original programs, with classes that stand in for theirs.

The pickles mention the same classes and have the same structure as real ones; the stand-ins exist only while
a file is written, under the originals' module names, which `pickle` insists on finding.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensors(values: Any) -> Any:
    """Return nested arrays as nested tensors."""
    if isinstance(values, Mapping):
        return {key: tensors(value) for key, value in values.items()}
    return torch.from_numpy(np.array(values)) if isinstance(values, np.ndarray) else values


def training_arguments() -> argparse.Namespace:
    """Return options such as rosinality's training script saves along."""
    return argparse.Namespace(path="ffhq.lmdb", iter=800000, batch=16, size=256, r1=10.0, augment=False)


@contextlib.contextmanager
def standing_in(module_name: str, **contents: Any) -> Iterator[None]:
    """Make a module of this name importable for a while."""
    made = []
    parts = module_name.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            made.append(name)
    for name, value in contents.items():
        if isinstance(value, type) or callable(value):
            value.__module__, value.__qualname__ = module_name, name
        setattr(sys.modules[module_name], name, value)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


class PersistentModule:
    """A network object as stylegan2-ada-pytorch pickles it: class name, source text, attributes."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str = ""):
        self.class_name, self.state, self.source = class_name, state, source

    def __reduce__(self) -> tuple[Any, ...]:
        content = {
            "type": "class",
            "version": 6,
            "module_src": self.source,
            "class_name": self.class_name,
            "state": self.state,
        }
        return _reconstruct_persistent_obj, (content,)


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("reading a file must never call this")


def persistent_network(
    state: Mapping[str, Any], class_name: str, options: dict[str, Any], source: str = ""
) -> PersistentModule:
    """Return a network object that holds a flat state dict as nested modules."""
    top: dict[str, Any] = {
        "_parameters": {},
        "_buffers": {},
        "_modules": {},
        "_init_args": (),
        "_init_kwargs": options,
    }
    for name, value in state.items():
        *path, leaf = name.split(".")
        place = top
        for part in path:
            child = {"_parameters": {}, "_buffers": {}, "_modules": {}, "training": False}
            place = place["_modules"].setdefault(part, PersistentModule(part, child, source)).state
        buffer = leaf in ("resample_filter", "noise_const", "w_avg")
        place["_buffers" if buffer else "_parameters"][leaf] = value if buffer else torch.nn.Parameter(value)
    return PersistentModule(class_name, top, source)


def write_nvlabs(
    path: Path, networks: Mapping[str, tuple[Mapping[str, Tensor], dict[str, Any]]], source: str = ""
) -> None:
    """Write a pickle as stylegan2-ada-pytorch does.

    Args:
        path: where to.
        networks: ``G``, ``D``, ``G_ema`` -> (state dict, options).
        source: text to embed as every class's source.
    """
    contents: dict[str, Any] = {"training_set_kwargs": {"resolution": 32}, "augment_pipe": None}
    for name, (state, options) in networks.items():
        kind = "Discriminator" if name == "D" else "Generator"
        contents[name] = persistent_network(state, kind, options, source)
    with (
        standing_in("torch_utils.persistence", _reconstruct_persistent_obj=_reconstruct_persistent_obj),
        path.open("wb") as file,
    ):
        pickle.dump(contents, file)


class Network:
    """A network object as the TensorFlow programs pickle it."""

    def __init__(self, state: dict[str, Any]):
        self.state = state

    def __getstate__(self) -> dict[str, Any]:
        return self.state


def tf_network(variables: Mapping[str, np.ndarray], name: str, options: dict[str, Any]) -> Network:
    """Return a network object; variables of ``G_synthesis/`` and ``G_mapping/`` go to components."""
    prefixes = {"synthesis": "G_synthesis/", "mapping": "G_mapping/"}
    components, own = {}, dict(variables)
    for part, prefix in prefixes.items():
        inner = {key.removeprefix(prefix): own.pop(key) for key in list(own) if key.startswith(prefix)}
        if inner:
            components[part] = tf_network(inner, prefix.rstrip("/"), options)
    state = {
        "version": 4,
        "name": name,
        "static_kwargs": options,
        "components": components,
        "build_module_src": "",
        "build_func_name": "D_stylegan2" if name == "D" else "G_main",
        "variables": list(own.items()),
    }
    return Network(state)


def write_tensorflow(
    path: Path, weights: Mapping[str, Mapping[str, np.ndarray]], options: dict[str, Any]
) -> None:
    """Write a tuple (G, D, Gs) as the TensorFlow programs do; G stands in for a missing Gs."""
    names = {"G": weights["G"], "D": weights["D"], "Gs": weights.get("Gs", weights["G"])}
    with standing_in("dnnlib.tflib.network", Network=Network), path.open("wb") as file:
        pickle.dump(
            tuple(tf_network(state, name, options) for name, state in names.items()), file, protocol=2
        )
