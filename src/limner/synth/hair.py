"""Hair and beards without hair meshes: combed curves grown from the skin and swept into thin ribbons.

Curves grow in the neutral, unrotated head and are posed with it.  A radial map of the head keeps them outside the
skin, and strands end before they reach the eyes.
"""

from __future__ import annotations

import numpy as np

from limner.synth.assets import Assets
from limner.synth.geometry import EYE_MIDDLE, smoothstep, vertex_normals
from limner.synth.scene import Beard, Hair
from limner.synth.strands import CENTER, FastRandom, HeadMap, Ribbons, Roots, cut_curves, make_ribbons, unit

SCALP_ROOTS, BEARD_ROOTS = 6000, 7000
SCALP_SEED, BEARD_SEED = 11, 12  # root places are the same for every head
HAIR_STREAM, BEARD_STREAM = 77, 78  # of random numbers, beside the scene's seed
BROW_ABOVE_EYES = 0.27
FEWEST_BEARD_STRANDS, BEARD_POINTS = 20, 6
TAIL_POINTS, BUN_STRANDS, TAIL_STRANDS = 18, 520, 700
TURN = 6.283  # radians
X, Y, Z = np.eye(3, dtype=np.float32)


class HairGrower:
    """Grows scalp hair and beards, one head at a time.

    Args:
        assets: base head.
        scalp: (n,) density per vertex, 0..1.
        scalp_mask: (H, W) the same as a texture.
        beard: (n, 3) densities of sides, chin and moustache.
    """

    def __init__(self, assets: Assets, scalp: np.ndarray, scalp_mask: np.ndarray, beard: np.ndarray):
        self.triangles = assets.triangles
        self.scalp_roots = Roots(assets, scalp, SCALP_ROOTS, SCALP_SEED, scalp_mask)
        densest = beard.max(1)
        self.beard_roots = Roots(assets, np.where(densest > 0.12, densest, 0), BEARD_ROOTS, BEARD_SEED)
        self.beard = beard

    def grow_hair(self, hair: Hair, vertices: np.ndarray, seed: int) -> Ribbons | None:
        """Return a head's hair; None where no strands grow.

        Args:
            hair: style.
            vertices: (n, 3) neutral head.
            seed: of the scene.
        """
        if hair.kind != "strands":
            return None
        growth = _Growth(hair, vertices, self.triangles, self.scalp_roots, FastRandom([seed, HAIR_STREAM]))
        return growth.run()

    def grow_beard(
        self, beard: Beard, vertices: np.ndarray, normals: np.ndarray, seed: int
    ) -> Ribbons | None:
        """Return a beard's strands on a head with its expression; None where none grow."""
        if not beard.count:
            return None
        rng, count = FastRandom([seed, BEARD_STREAM]), beard.count
        pick = np.arange(count)
        density = self.beard_roots.at(self.beard, pick) @ np.array([beard.sides, beard.chin, beard.moustache])
        density = np.clip(density, 0, 1)
        keep = rng.uniform(count) < smoothstep(density, 0.12, 0.75)
        pick, density = pick[keep], density[keep]
        count = len(pick)
        if count < FEWEST_BEARD_STRANDS:
            return None
        roots, up = self.beard_roots.at(vertices, pick), unit(self.beard_roots.at(normals, pick))
        heading = np.array([0, -1, 0.12]) + roots * np.array([0.35, 0, 0]) + up * 0.35
        heading = unit(heading + rng.normal(0, 0.3, (count, 3)))
        lengths = beard.length * (0.35 + 0.65 * density) * (0.7 + 0.6 * rng.uniform(count))
        points = [roots - up * 0.006]
        for _ in range(1, BEARD_POINTS):
            point = points[-1] + heading * (lengths / (BEARD_POINTS - 1))[:, None]
            height = ((point - roots) * up).sum(1, keepdims=True)
            point = point + up * np.clip(0.010 - height, 0, 0.05)
            points.append(point)
            heading = unit(heading + np.array([0, -0.3, 0.02]) + rng.normal(0, 0.16, (count, 3)))
        curves = np.stack(points, 1).astype(np.float32)
        outward = np.repeat(up[:, None], BEARD_POINTS, 1)
        widths = np.full(count, beard.width) * (0.7 + 0.6 * rng.uniform(count))
        numbers = rng.uniform(count)
        layers = 0.55 + 0.4 * rng.uniform(count)
        return make_ribbons(curves, widths, outward, numbers, layers, rng, taper=0.6, single=True)


class _Growth:
    """The growth of one head of hair: `run` walks all strands from root to tip, then bends and cuts them."""

    def __init__(
        self, hair: Hair, vertices: np.ndarray, triangles: np.ndarray, roots: Roots, rng: FastRandom
    ):
        self.hair, self.vertices, self.rng = hair, vertices, rng
        self.count = min(hair.count, len(roots.density))
        pick = np.arange(self.count)
        self.root = roots.at(vertices, pick)
        self.up = unit(roots.at(vertex_normals(vertices, triangles), pick))
        self.density = roots.density[pick]
        corners = vertices[triangles]
        low, wide = corners[..., 1].min(1), np.abs(corners[..., 0]).max(1)
        self.head_map = HeadMap(vertices, triangles[(low > 6.1) | ((low > 5.5) & (wide < 0.6))])
        beside_eyes = (vertices[:, 2] > 0.55) & (np.abs(vertices[:, 1] - EYE_MIDDLE[1]) < 0.1)
        self.half_face = np.abs(vertices[beside_eyes, 0]).max()
        self.brow = EYE_MIDDLE[1] + BROW_ABOVE_EYES
        self.knot = np.asarray(hair.knot, np.float32)
        self.t = np.linspace(0, 1, hair.points)[None, :, None]
        self.fringe: np.ndarray | None = None

    def run(self) -> Ribbons:
        """Return the ribbons."""
        hair, rng = self.hair, self.rng
        self._measure()
        curves = self._disturb(self._walk())
        curves, visible = self._cut(curves)
        thin = rng.uniform(self.count) < 0.05
        widths = hair.width * (0.7 + 0.6 * rng.uniform(self.count)) * np.where(thin, 0.35, 1) * visible
        layers = smoothstep(self.offset / (hair.volume + 0.012), 0.05, 0.9) * 0.75 + 0.25 * rng.uniform(
            self.count
        )
        numbers = (self.lock * 0.618034 + 0.13 * rng.uniform(self.count)) % 1
        outward = unit(curves - CENTER)
        ribbons = make_ribbons(curves, widths, outward, numbers, layers, rng, taper=hair.taper)
        if hair.tail == "bun":
            return ribbons.joined(self._bun())
        return ribbons.joined(self._ponytail()) if hair.tail else ribbons

    def _measure(self) -> None:
        """Fix locks, lengths, heights above the skin and first directions of all strands."""
        hair, rng, root, count = self.hair, self.rng, self.root, self.count
        apart = (root[:, None] - root[None, : hair.clumps]) ** 2
        self.lock = np.argmin(apart.sum(-1), 1) if hair.clumps else np.arange(count)
        self.height = smoothstep(root[:, 1], EYE_MIDDLE[1] + 0.25, self.vertices[:, 1].max() - 0.12)
        length = hair.side_len + (hair.top_len - hair.side_len) * self.height
        length = length * (1 + hair.len_noise * rng.normal(0, 1, count))
        length = length * (0.5 + 0.5 * smoothstep(self.density, 0.1, 0.5))
        if hair.short:  # a tidy nape
            length = length * (0.3 + 0.7 * smoothstep(root[:, 1], 6.55, 7.2))
        self.length = np.maximum(length, 0.04)
        spread = 0.15 + 0.85 * rng.uniform(count) ** 0.7
        self.offset = hair.volume * spread * (0.35 + 0.65 * self.height) + 0.012
        # Strands near the parting fall to either side.
        blurred = 0.045 * rng.normal(0, 1, (count, 1))
        self.side = np.sign(root[:, :1] - np.float32(hair.part) + np.float32(1e-4) + blurred)
        jitter = rng.normal(0, hair.messy, (count, 3))
        direction = self._comb(root, self.up)
        if hair.fringe > 0:
            self._start_fringe(direction)
        lift = hair.lift * (
            (0.15 + 0.85 * self.height) if hair.short and hair.mode != "radial" else np.ones(count)
        )
        self.direction = unit(direction + self.up * lift[:, None] + jitter)

    def _start_fringe(self, direction: np.ndarray) -> None:
        """Comb the strands above the forehead down to the brows; changes ``direction`` in place."""
        hair, rng, root = self.hair, self.rng, self.root
        chosen = rng.uniform(self.count) < hair.fringe * 1.2
        chosen = (
            chosen & (root[:, 2] > 0.62 + 0.05 * rng.normal(0, 1, self.count)) & (np.abs(root[:, 0]) < 0.62)
        )
        down = Z * 0.8 - Y * 0.5 + X * hair.sweep
        direction[chosen] = unit(_along_skin(down, self.up[chosen]))
        reach = np.maximum(root[chosen, 1] - self.brow - hair.fringe_gap, 0.05)
        self.length[chosen] = reach * 1.25 * (1 + 0.06 * rng.normal(0, 1, chosen.sum()))
        self.offset[chosen] = 0.03 + 0.05 * rng.uniform(chosen.sum())
        self.fringe = chosen

    def _comb(self, points: np.ndarray, up: np.ndarray) -> np.ndarray:
        """Return where the comb pulls at ``points``, unit vectors along the skin (for radial hair, away from it)."""
        hair = self.hair
        if hair.mode == "radial":
            return unit(up)
        if hair.mode == "part":
            back = smoothstep(-points[:, 2:3], -0.5, 0.5)
            pull = (
                self.side * X * (1 - 0.55 * back) - Y * (0.25 + 0.5 * back) + Z * (hair.forward * (1 - back))
            )
        elif hair.mode == "back":
            pull = -Z - Y * 0.12 + X * 0.15 * np.sign(points[:, :1])
        elif hair.mode == "knot":
            pull = self.knot - points
        elif hair.mode == "forward":
            pull = Z * (0.7 + 0 * points[:, :1]) + X * hair.sweep - Y * 0.25
        elif hair.mode == "side":
            pull = X * hair.sweep * 1.2 + Z * hair.forward - Y * 0.2 * np.abs(points[:, :1])
        else:  # up
            pull = up * 1.2 + Y * 0.4 + Z * hair.forward
        return unit(_along_skin(pull, up) + 1e-6)

    def _walk(self) -> np.ndarray:
        """Return the curves (n, s, 3): strands grow step by step, combed, pulled down, kept off skin and face."""
        hair, rng, offset, direction = self.hair, self.rng, self.offset, self.direction
        step = (self.length / (hair.points - 1))[:, None]
        self.phase = rng.uniform(hair.clumps or self.count)[self.lock] * TURN
        slack = None
        if hair.mode in ("back", "side", "forward", "up", "knot"):
            slack = 0.05 + hair.volume + 0.5 * hair.lift * self.height
        point = self.root - self.up * 0.01
        points = [point]
        stopped = np.zeros(self.count, bool)
        for i in range(1, hair.points):
            t = i / (hair.points - 1)
            nxt = point + direction * step
            if hair.mode != "radial":
                nxt = self.head_map.push(nxt, offset * smoothstep(step[:, 0] * i, 0, 0.22), slack)
            nxt = self._free_face(nxt)
            if hair.mode == "knot":
                stopped |= np.linalg.norm(nxt - self.knot, axis=1) < 0.12
            nxt[stopped] = point[stopped]
            heading = unit(nxt - point + direction * 1e-3)
            weight = hair.comb * (1 - 0.6 * t)
            if hair.mode == "part":  # combed on top, falling freely below the temples
                weight = weight * smoothstep(nxt[:, 1:2], EYE_MIDDLE[1] + 0.1, EYE_MIDDLE[1] + 0.8)
            combed = self._comb(nxt, unit(nxt - CENTER))
            if self.fringe is not None:
                combed[self.fringe] = direction[self.fringe]
            fall = Y * hair.gravity * min(1.0, 0.4 + 1.2 * t)
            inward = (
                X * np.sign(nxt[:, :1]) * hair.inward * smoothstep(EYE_MIDDLE[1] + 0.3 - nxt[:, 1:2], 0, 0.8)
            )
            noise = rng.normal(0, hair.messy * 0.5, (self.count, 3))
            direction = unit(heading * hair.stiff + combed * weight - fall - inward + noise)
            point = nxt
            points.append(point)
        return np.stack(points, 1)

    def _free_face(self, points: np.ndarray) -> np.ndarray:
        """Return points (n, 3) with those in front of the face moved to its sides."""
        in_front = (points[:, 2] > 0.3) & (points[:, 1] < self.brow + 0.12)
        if self.fringe is not None:
            in_front &= ~self.fringe
        limit = self.half_face * (self.hair.face_free - 0.10 * smoothstep(self.brow - points[:, 1], 0.2, 0.9))
        x = points[:, 0]
        beside = np.sign(x + 1e-6) * (limit * 0.7 + np.abs(x) * 0.3)
        return np.column_stack([np.where(in_front & (np.abs(x) < limit), beside, x), points[:, 1:]])

    def _disturb(self, curves: np.ndarray) -> np.ndarray:
        """Return curves drawn into locks, then waved and frizzed."""
        hair, rng, t, count = self.hair, self.rng, self.t, self.count
        if hair.mode == "radial":
            curves = curves.astype(np.float32)
        if hair.clumps:
            guides = curves[: hair.clumps][self.lock]
            pull = hair.clump * smoothstep(t, 0.1, 1.0) * (0.5 + 0.5 * rng.uniform((count, 1, 1)))
            curves = curves + (guides - curves) * pull
        if hair.wave > 0:
            out = unit(curves - CENTER)
            arc = t * self.length[:, None, None]
            side = unit(np.cross(unit(np.gradient(curves, axis=1)), out) + 1e-5)
            size = hair.wave * smoothstep(arc, 0.05, 0.5) * (0.6 + 0.8 * rng.uniform((count, 1, 1)))
            angle = (
                TURN * arc / hair.wave_len + self.phase[:, None, None] + rng.normal(0, 0.35, (count, 1, 1))
            )
            curves = curves + side * size * np.sin(angle) + out * size * 0.8 * np.cos(angle)
        curves = curves + rng.normal(0, hair.frizz, curves.shape) * smoothstep(t, 0.1, 0.8)
        return curves.astype(np.float32)

    def _cut(self, curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return curves cut straight, off the eyes and off the nape, and which strands (n,) are to be seen."""
        hair, rng, count, brow = self.hair, self.rng, self.count, self.brow
        beyond_root = self.t[..., 0] > 0.1
        if hair.cut_y is not None:
            height = (
                hair.cut_y + 0.05 * rng.normal(0, 1, count) + hair.cut_tilt * np.abs(curves[:, -1, 2] - 0.3)
            )
            curves = cut_curves(curves, (curves[..., 1] < height[:, None]) & beyond_root)
        # Nothing hangs over the eyes.
        x, y, z = (curves[..., axis] for axis in range(3))
        over_eyes = (np.abs(x) < 0.5) & (y < brow + (0 if hair.over_eye else 0.02)) & (y > 6.2) & (z > 0.62)
        if hair.over_eye:
            over_eyes &= ~((x * hair.sweep > 0) & (y > EYE_MIDDLE[1] - 0.2))
        curves = cut_curves(curves, over_eyes)
        # Most strands that still cross the open face are dropped.
        x, y, z = (curves[..., axis] for axis in range(3))
        crossing = (np.abs(x) < self.half_face * 0.62) & (y < brow + 0.22) & (y > 6.0) & (z > 0.7)
        dropped = (crossing.sum(1) > 1) & (rng.uniform(count) < 0.97)
        if self.fringe is not None:
            dropped &= ~self.fringe
        if hair.over_eye:
            dropped &= x[:, -1] * hair.sweep < 0
        if hair.short or hair.mode == "knot":
            dropped |= self.root[:, 1] < 6.8
            curves = cut_curves(curves, (y < 6.5) & beyond_root)
        return curves, ~dropped

    def _bun(self) -> Ribbons:
        """Return a bun, wound around the knot."""
        hair, rng, knot, count = self.hair, self.rng, self.knot, BUN_STRANDS
        axes = unit(rng.normal(0, 1, (count, 3)) * 0.35 + np.array([0.2, 0.5, 1.0]))
        first = unit(np.cross(axes, [0.3, 1, 0.1]))
        second = np.cross(axes, first)
        angles = rng.uniform((count, 1)) * TURN + np.linspace(0, 2.6, TAIL_POINTS)[None]
        radii = hair.tail_size * (1 + 0.06 * rng.normal(0, 1, (count, 1)))
        radii = radii * np.linspace(1, 0.95, TAIL_POINTS)[None]
        ring = first[:, None] * np.cos(angles)[..., None] + second[:, None] * np.sin(angles)[..., None]
        curves = (knot + ring * radii[..., None]) * np.array([1, 0.92, 1]) + knot * np.array([0, 0.08, 0])
        layers = 0.45 + 0.55 * rng.uniform(count)
        return self._tail_ribbons(curves, unit(curves - knot), 0.035, layers)

    def _ponytail(self) -> Ribbons:
        """Return a ponytail, falling from the knot."""
        hair, rng, knot, count = self.hair, self.rng, self.knot, TAIL_STRANDS
        across = rng.normal(0, 1, (count, 2)) * 0.06
        t = np.linspace(0, 1, TAIL_POINTS)[None, :, None]
        length = hair.tail_size * (1 + 0.12 * rng.normal(0, 1, (count, 1, 1)))
        base = knot + np.concatenate([across, np.zeros((count, 1))], 1)[:, None]
        spread = 1 + 2.2 * np.sin(np.clip(t * 1.2, 0, 1) * 3.14) * 0.8
        fall = -(t**1.3) * length + 0.22 * np.sin(t * 3.14) * (1 - t)
        back = -0.42 * np.sin(np.minimum(t * 2.2, 1.57)) + 0.15 * t
        middle = np.concatenate([hair.tail_side * t + 0 * length, fall, back + 0 * length], -1)
        depth = rng.normal(0, 0.05, (count, 1, 1)) * spread
        curves = base + middle + np.concatenate([across[:, None] * (spread - 1), depth], -1)
        if hair.wave > 0:
            phase = rng.uniform((count, 1)) * 1.5
            angle = TURN * t[..., 0] * length[..., 0] / hair.wave_len + phase
            curves[..., 0] += hair.wave * 1.2 * np.sin(angle)
        outward = unit(curves - curves.mean(0, keepdims=True) + np.array([0, 0, -0.05]))
        layers = 0.35 + 0.65 * rng.uniform(count)
        return self._tail_ribbons(curves, outward, 0.034, layers)

    def _tail_ribbons(
        self, curves: np.ndarray, outward: np.ndarray, width: float, layers: np.ndarray
    ) -> Ribbons:
        count = len(curves)
        numbers = self.rng.uniform(count)
        return make_ribbons(
            curves.astype(np.float32), np.full(count, width), outward, numbers, layers, self.rng
        )


def _along_skin(vectors: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return the parts of vectors that are perpendicular to the unit vectors ``up``."""
    return vectors - up * (vectors * up).sum(-1, keepdims=True)
