"""What strands are made with: a map of the head's surface, places on the skin, curves and ribbons."""

from __future__ import annotations

import dataclasses

import numpy as np

from limner.synth.assets import Assets
from limner.synth.geometry import smoothstep

CENTER = np.array([0, 7.40, 0.28], np.float32)  # of the radial head map
POLAR_BINS, AZIMUTH_BINS, FILL_ROUNDS, LARGEST_RADIUS = 48, 96, 12, 1.75


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (..., 3) at length 1."""
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)


class FastRandom:
    """float32 random numbers; float64 would slow every following operation down.

    Args:
        seed: numbers that name the stream.
    """

    def __init__(self, seed: list[int]):
        self._rng = np.random.default_rng(seed)

    def normal(self, mean: float, deviation: float, shape: int | tuple[int, ...]) -> np.ndarray:
        """Return normal random numbers."""
        return self._rng.standard_normal(shape, np.float32) * np.float32(deviation) + np.float32(mean)

    def uniform(self, shape: int | tuple[int, ...]) -> np.ndarray:
        """Return random numbers from 0 to 1."""
        return self._rng.random(shape, np.float32)


@dataclasses.dataclass(frozen=True)
class Ribbons:
    """Strands as a mesh, not yet posed.

    Attributes:
        positions, normals, tangents: (n, 3).
        along: (n, 4): place across -1..1, along 0..1, strand's number 0..1, depth layer 0 (at the skin) to 1.
        triangles: (t, 3).
    """

    positions: np.ndarray
    normals: np.ndarray
    tangents: np.ndarray
    along: np.ndarray
    triangles: np.ndarray

    def joined(self, other: Ribbons) -> Ribbons:
        """Return both as one mesh."""
        triangles = np.concatenate([self.triangles, other.triangles + len(self.positions)])
        names = ("positions", "normals", "tangents", "along")
        arrays = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names}
        return Ribbons(**arrays, triangles=triangles)


class HeadMap:
    """Distance of the head's surface from `CENTER` by direction.

    Args:
        vertices: (n, 3).
        triangles: (t, 3) of the parts that hair must not enter.
    """

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray):
        points = np.concatenate([vertices[triangles].mean(1), vertices[triangles[:, 0]]]) - CENTER
        radii = np.linalg.norm(points, axis=1)
        polar, azimuth = self._bins(points / radii[:, None])
        grid = np.zeros((POLAR_BINS, AZIMUTH_BINS), np.float32)
        cells = (
            np.clip(polar.round().astype(int), 0, POLAR_BINS - 1),
            azimuth.round().astype(int) % AZIMUTH_BINS,
        )
        np.maximum.at(grid, cells, np.minimum(radii, LARGEST_RADIUS))
        for _ in range(FILL_ROUNDS):
            empty = grid == 0
            if not empty.any():
                break
            # The row above first: below the jaw, hair follows the neck and not the shoulders.
            above = np.vstack([grid[:1], grid[:-1]]) * 0.98
            beside = np.maximum.reduce(
                [np.roll(grid, 1, 1), np.roll(grid, -1, 1), np.vstack([grid[1:], grid[-1:]])]
            )
            grid[empty] = np.where(above > 0, above, beside)[empty]
        neighbours = [
            np.roll(grid, 1, 1),
            np.roll(grid, -1, 1),
            np.vstack([grid[:1], grid[:-1]]),
            np.vstack([grid[1:], grid[-1:]]),
        ]
        smooth = (grid + neighbours[0] + neighbours[1] + neighbours[2] + neighbours[3]) / 5
        self.grid = np.maximum(smooth, grid * 0.985).astype(np.float32)

    @staticmethod
    def _bins(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        polar = np.arccos(np.clip(directions[..., 1], -1, 1)) / np.pi * (POLAR_BINS - 1)
        azimuth = (np.arctan2(directions[..., 0], directions[..., 2]) / (2 * np.pi) + 0.5) * AZIMUTH_BINS
        return polar, azimuth

    def radius(self, directions: np.ndarray) -> np.ndarray:
        """Return distances (...) in unit directions (..., 3), interpolated."""
        polar, azimuth = self._bins(directions)
        row, column = np.floor(polar).astype(int), np.floor(azimuth).astype(int)
        down, right = polar - row, azimuth - column
        rows = np.clip(row, 0, POLAR_BINS - 1), np.clip(row + 1, 0, POLAR_BINS - 1)
        columns = column % AZIMUTH_BINS, (column + 1) % AZIMUTH_BINS
        upper, lower = (
            self.grid[r, columns[0]] * (1 - right) + self.grid[r, columns[1]] * right for r in rows
        )
        return upper * (1 - down) + lower * down

    def push(self, points: np.ndarray, offset: np.ndarray, slack: np.ndarray | None = None) -> np.ndarray:
        """Return points (n, 3) at least ``offset`` above the surface and, with ``slack``, at most that much more."""
        rays = points - CENTER
        radii = np.linalg.norm(rays, axis=-1)
        directions = rays / (radii[..., None] + 1e-9)
        least = self.radius(directions) + offset
        radii = np.maximum(radii, least)
        if slack is not None:
            radii = np.minimum(radii, least + slack)
        return (CENTER + directions * radii[..., None]).astype(np.float32)


class Roots:
    """Places on the skin, the same for every head, spread as a density asks for.

    Args:
        assets: base head.
        density: (n,) per vertex, 0..1.
        count: how many.
        seed: of the places.
        mask: texture (H, W), 0..1, that decides in place of ``density`` where given.
    """

    def __init__(
        self, assets: Assets, density: np.ndarray, count: int, seed: int, mask: np.ndarray | None = None
    ):
        rng = np.random.default_rng(seed)
        triangles = assets.triangles
        a, b, c = (assets.vertices[triangles[:, corner]] for corner in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        weights = area * (density[triangles].mean(1) if mask is None else density[triangles].max(1) > 0.05)
        tries = count if mask is None else count * 6
        chosen = rng.choice(len(triangles), tries, p=weights / weights.sum())
        corners = rng.random((tries, 2))
        corners = np.where(corners.sum(1, keepdims=True) > 1, 1 - corners, corners)
        shares = np.column_stack([1 - corners.sum(1), corners]).astype(np.float32)
        if mask is None:
            value = (density[triangles[chosen]] * shares).sum(1)
        else:
            uv = (assets.body_uv[assets.body_triangles[chosen]] * shares[..., None]).sum(1)
            value = sample_texture(mask, uv)
            keep = np.nonzero(rng.random(tries) < smoothstep(value, 0.35, 0.8))[0][:count]
            chosen, shares, value = chosen[keep], shares[keep], value[keep]
        self.corners, self.shares, self.density = triangles[chosen], shares, value.astype(np.float32)

    def at(self, values: np.ndarray, pick: np.ndarray) -> np.ndarray:
        """Return per-vertex values (n, k) at the picked places."""
        return (values[self.corners[pick]] * self.shares[pick][..., None]).sum(1)


def sample_texture(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Return the nearest texels (n, ...) at texture coordinates (n, 2), origin bottom left."""
    height, width = texture.shape[:2]
    rows = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    return texture[rows, np.clip((uv[:, 0] * width).astype(int), 0, width - 1)]


def make_ribbons(
    curves: np.ndarray,
    widths: np.ndarray,
    outward: np.ndarray,
    numbers: np.ndarray,
    layers: np.ndarray,
    rng: FastRandom,
    *,
    taper: float = 0.75,
    single: bool = False,
) -> Ribbons:
    """Sweep curves into ribbons that are slightly twisted at random.

    Args:
        curves: (n, s, 3).
        widths: (n,) half widths.
        outward: (n, s, 3) directions away from the skin.
        numbers, layers: (n,) 0..1, as in `Ribbons.along`.
        rng: source of random numbers.
        taper: share of the width that is gone at the tip.
        single: a ribbon is one strand wide and not three.
    """
    count, points, _ = curves.shape
    tangents = unit(np.gradient(curves, axis=1))
    side = unit(np.cross(tangents, outward) + 1e-5)
    twist = rng.normal(0, 0.45, (count, 1, 1))
    side = unit(side * np.cos(twist) + outward * np.sin(twist))
    t = np.linspace(0, 1, points)[None, :, None]
    half = (
        widths[:, None, None]
        * (1 - taper * smoothstep(t, 0.45, 1.0))
        * (0.55 + 0.45 * smoothstep(t, 0, 0.15))
    )
    positions = np.stack([curves - side * half, curves + side * half], 2)  # (n, s, 2, 3)
    along = np.zeros((count, points, 2, 4), np.float32)
    edge = 0.33 if single else 1.0  # the shader draws three strands across -1..1
    along[..., 0, 0], along[..., 1, 0] = -edge, edge
    along[..., 1] = np.linspace(0, 1, points)[None, :, None]
    along[..., 2], along[..., 3] = numbers[:, None, None], layers[:, None, None]

    def for_both_edges(vectors: np.ndarray) -> np.ndarray:
        return np.repeat(vectors[:, :, None], 2, 2).reshape(-1, 3).astype(np.float32)

    i = np.arange(count)[:, None] * (2 * points) + np.arange(points - 1)[None] * 2
    quads = np.stack([i, i + 1, i + 3, i, i + 3, i + 2], -1).reshape(-1, 3)
    return Ribbons(
        positions.reshape(-1, 3).astype(np.float32),
        for_both_edges(outward),
        for_both_edges(tangents),
        along.reshape(-1, 4),
        quads.astype(np.int32),
    )


def cut_curves(curves: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Shorten each curve (n, s, 3) to before its first point that is marked in (n, s); resampled, so that tips taper."""
    count, points, _ = curves.shape
    last = np.where(outside.any(1), np.maximum(outside.argmax(1) - 1, 1), points - 1)
    place = np.linspace(0, 1, points)[None] * last[:, None]
    i = np.minimum(place.astype(int), points - 2)
    share = (place - i)[..., None]
    row = np.arange(count)[:, None]
    return (curves[row, i] * (1 - share) + curves[row, i + 1] * share).astype(np.float32)
