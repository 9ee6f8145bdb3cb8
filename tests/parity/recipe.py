"""Weights and inputs of the parity fixtures, from their manifests alone, and the comparison of outputs.

Every tensor is drawn from its own generator, seeded with the fixture's seed and the CRC of the tensor's path,
so a manifest of a few kilobytes stands for a checkpoint of any size.  The rules are those of the fixtures'
README.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("LIMNER_PARITY_DIR", HERE.parents[2] / "shared" / "parity"))

# kind -> (scale, offset) of a normal distribution
NORMAL = {
    "normal": (1.0, 0.0),
    "small": (0.1, 0.0),
    "half": (0.5, 0.0),
    "tiny": (0.01, 0.0),
    "one": (0.1, 1.0),
    "mlp_w": (100.0, 0.0),
    "mlp_b": (10.0, 0.0),
    "prelu": (0.05, 0.25),
    "code_w": (0.25, 0.0),
    "ada_conv": (0.3, 0.0),
    "wcode": (0.7, 0.0),
}
# kind -> gain; the scale is sqrt(gain / fan-in)
FAN_IN = {"fan1": 1.0, "fan2": 2.0, "fan01": 0.1, "fan001": 0.01}


def draw(path: str, shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    """Return the float32 array that a path stands for.

    Raises:
        KeyError: a kind that this module does not know.
    """
    if kind == "zeros":
        return np.zeros(shape, np.float32)
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(path.encode()) ^ seed))
    if kind == "image":
        return _draw_image(rng, shape)
    noise = rng.standard_normal(shape).astype(np.float32)
    if kind == "var":
        return np.float32(1) + np.float32(0.1) * np.abs(noise)
    if kind in FAN_IN:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        return np.float32(np.sqrt(FAN_IN[kind] / fan_in)) * noise
    if kind in ("eye", "eye_init"):
        identity = np.eye(shape[0], dtype=np.float32) * np.float32(np.sqrt(shape[0]))
        return identity + np.float32(0.1 if kind == "eye" else 0.01) * noise
    if kind in ("adain_b", "adain_b_init"):
        values = np.float32(0.1 if kind == "adain_b" else 0.0) * noise
        values[: shape[0] // 2] += np.float32(1)
        return values
    scale, offset = NORMAL[kind]
    values = np.float32(scale) * noise
    return np.asarray(np.float32(offset) + values if offset else values, np.float32)


def _draw_image(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return tanh(16x16 noise enlarged + white noise / 4)."""
    height, width = shape[-2:]
    side = min(16, height)
    coarse = rng.standard_normal((*shape[:-2], side, side))
    fine = rng.standard_normal(shape)
    large = np.repeat(np.repeat(coarse, height // side, -2), width // side, -1)
    return np.tanh(large + 0.25 * fine).astype(np.float32)


def build(manifest: dict[str, Any], seed: int, prefix: str = "") -> dict[str, Any]:
    """Return the checkpoint that a manifest describes, nested alike: arrays and plain values."""
    built: dict[str, Any] = {}
    for key, node in manifest.items():
        path = f"{prefix}/{key}" if prefix else key
        if "json" in node:
            built[key] = node["json"]
        elif "shape" not in node or "dtype" not in node:
            built[key] = build(node, seed, path)
        elif "value" in node:
            built[key] = np.asarray(node["value"], node["dtype"]).reshape(node["shape"])
        else:
            built[key] = draw(path, tuple(node["shape"]), node["kind"], seed).astype(
                node["dtype"], copy=False
            )
    return built


@dataclasses.dataclass
class Fixture:
    """One fixture on disk.

    Args:
        path: its manifest.
    """

    path: Path

    def __post_init__(self) -> None:
        self.text: dict[str, Any] = json.loads(self.path.read_text())

    @property
    def seed(self) -> int:
        """Seed of its weights and inputs."""
        return self.text["seed"]

    def weights(self, section: str | None = None) -> dict[str, Any]:
        """Return the checkpoint, or one section of it."""
        manifest = self.text["manifest"]
        return build(manifest, self.seed) if section is None else build(manifest[section], self.seed, section)

    def inputs(self) -> dict[str, np.ndarray]:
        """Return the inputs by their short names."""
        found = {}
        for name, node in self.text.get("inputs", {}).items():
            found[name.split("/", 1)[1]] = draw(
                f"input/{name}", tuple(node["shape"]), node["kind"], self.seed
            )
        return found

    def expected(self) -> dict[str, np.ndarray]:
        """Return the stored outputs."""
        file = self.path.with_suffix(".safetensors")
        return load_file(file) if file.exists() else {}


def find_fixtures(group: str, pattern: str = "*.json") -> list[Path]:
    """Return a group's manifests: those of `FOLDER`, and the copies beside this file where it lacks them."""
    found = {path.name: path for folder in (HERE, FOLDER) for path in folder.glob(f"{group}/{pattern}")}
    return [found[name] for name in sorted(found)]


def box_means(image: np.ndarray, side: int = 64) -> np.ndarray:
    """Return the means over equal blocks, [..., side, side]."""
    height, width = image.shape[-2:]
    blocks = image.astype(np.float64).reshape((*image.shape[:-2], side, height // side, side, width // side))
    return blocks.mean((-3, -1)).astype(np.float32)


def kept_rows(height: int) -> list[int]:
    """Return the picture rows that are stored exactly."""
    step = height // 16
    return [i * step + (i * 5) % step for i in (0, 3, 4, 7, 8, 11, 12, 15)]


def views(
    name: str, value: np.ndarray, expected: dict[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ours, stored) for every form in which an output is stored."""
    if name in expected:
        yield value, expected[name]
    if f"{name}.box64" in expected:
        yield box_means(value), expected[f"{name}.box64"]
    if f"{name}.rows" in expected:
        yield value[..., kept_rows(value.shape[-2]), :], expected[f"{name}.rows"]
    if f"{name}.cmean" in expected:
        yield value.mean((2, 3)), expected[f"{name}.cmean"]
    if f"{name}.cabs" in expected:
        yield np.abs(value).mean((2, 3)), expected[f"{name}.cabs"]
    if f"{name}.grid" in expected:
        stored = expected[f"{name}.grid"]
        step = max(1, value.shape[-1] // 16)
        yield value[:, : stored.shape[1], step // 2 :: step, step // 2 :: step], stored


def is_stored(name: str, expected: dict[str, np.ndarray]) -> bool:
    """Say whether a fixture has an output of this name in any form."""
    return any(f"{name}{form}" in expected for form in ("", ".box64", ".rows", ".cmean", ".cabs", ".grid"))


def difference(
    name: str, value: np.ndarray, expected: dict[str, np.ndarray], spread: float | None = None
) -> float:
    """Return the largest difference relative to the stored output's standard deviation, or to ``spread``.

    Raises:
        KeyError: no stored output of this name.
    """
    worst = None
    for ours, stored in views(name, np.asarray(value, np.float32), expected):
        assert ours.shape == stored.shape, f"{name}: {ours.shape}, expected {stored.shape}"
        scale = spread or max(float(stored.std()), 1e-2 * float(np.abs(stored).max()), 1e-6)
        worst = max(worst or 0.0, float(np.abs(ours - stored).max()) / scale)
    if worst is None:
        raise KeyError(name)
    return worst
