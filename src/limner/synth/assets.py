"""What heads are made of: a base mesh, its morph targets, what is fitted to it, and textures.

`read_assets` reads the pack that a user prepared (docs/synth.md says where MakeHuman's CC0 assets come
from).  Anything else that fills an `Assets`, such as `limner.synth.plain`, renders just as well: proxies, skins, irises
and garments may be missing, and a head then goes without them.

Convention: world units are MakeHuman's decimetres; +x is the subject's left, +y up, +z out of the face.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from limner.errors import OptionError

INDEX_NAME, ARRAYS_NAME = "heads.json", "heads.npz"
LANDMARKS = ("mouth_l", "mouth_r", "lip_top", "lip_bot", "nose", "chin")
EYES, TEETH, TONGUE = "high-poly", "teeth_base", "tongue01"  # proxies by MakeHuman's names
# Ends of the names of two targets that are the two directions of one property.
OPPOSITES = (
    ("-decr", "-incr"),
    ("-down", "-up"),
    ("-in", "-out"),
    ("-concave", "-convex"),
    ("-backward", "-forward"),
    ("-compress", "-uncompress"),
)
DETAIL = "det/"  # targets of single features
MACRO = "macro/"  # targets of age, sex, build and ancestry
FACE_UNIT = "fu/"  # targets of facial expressions, ARKit's names
SMALLEST_AMOUNT = 1e-4  # a smaller share of a target is left out


@dataclasses.dataclass(frozen=True)
class Proxy:
    """A mesh that follows the base mesh: eyes, teeth, brows, a garment.

    Attributes:
        source: (m, 3) vertices of the base mesh that each fitted vertex hangs on.
        weights: (m, 3) their shares.
        offsets: (m, 3) distance from the weighted point, in units of `scale`.
        vertex_of: (k,) fitted vertex of each vertex that is drawn.
        uv: (k, 2) texture coordinates, origin bottom left.
        triangles: (t, 3) indices of drawn vertices.
        scale: axis ``x``, ``y`` or ``z`` -> (vertex, vertex, length): offsets along it grow with the distance of the two.
        hidden: vertices of the base mesh that lie below the proxy and are not drawn.
    """

    source: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    vertex_of: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray
    scale: Mapping[str, tuple[int, int, float]] = dataclasses.field(default_factory=dict)
    hidden: np.ndarray | None = None

    def fit(self, vertices: np.ndarray, neutral: np.ndarray) -> np.ndarray:
        """Return the proxy's vertices (m, 3) on a head.

        Args:
            vertices: (n, 3) head to follow.
            neutral: (n, 3) the same head without expression, on which `scale` is measured.
        """
        size = np.ones(3, np.float32)
        for axis, letter in enumerate("xyz"):
            if letter in self.scale:
                one, other, length = self.scale[letter]
                size[axis] = abs(neutral[one, axis] - neutral[other, axis]) / length
        points = (vertices[self.source] * self.weights[..., None]).sum(1)
        return (points + self.offsets * size).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Assets:
    """Everything that heads are rendered from.

    Attributes:
        vertices: (n, 3) float32 base head at rest.
        body_vertex_of: (k,) base vertex of each drawn vertex (texture seams double some).
        body_uv: (k, 2) texture coordinates, origin bottom left.
        body_triangles: (t, 3) indices of drawn vertices.
        left_eye, right_eye: base vertices whose mean is the centre of the subject's eye.
        landmarks: name of `LANDMARKS` -> base vertex; left is the subject's.
        targets: name -> (base vertices, (m, 3) shifts at full strength); names start with `MACRO`, `DETAIL`, `FACE_UNIT`.
        proxies: name -> what is fitted to the head; all of them may be missing but `EYES`.
        clothes, brows, lashes: names of proxies that scenes choose from by number.
        irises: names of eye textures.
        skins: names of skin textures; their order is the numbering that scenes use.
        skin_means: (len(skins), 3) mean linear colour of each.
        open_image: texture path, such as ``skins/NAME.jpg``, -> picture.
        provenance: what the assets are and under which licence, for the data set's description.
    """

    vertices: np.ndarray
    body_vertex_of: np.ndarray
    body_uv: np.ndarray
    body_triangles: np.ndarray
    left_eye: np.ndarray
    right_eye: np.ndarray
    landmarks: Mapping[str, int]
    targets: Mapping[str, tuple[np.ndarray, np.ndarray]]
    proxies: Mapping[str, Proxy]
    clothes: tuple[str, ...]
    brows: tuple[str, ...]
    lashes: tuple[str, ...]
    irises: tuple[str, ...]
    skins: tuple[str, ...]
    skin_means: np.ndarray
    open_image: Callable[[str], Image.Image]
    provenance: str

    @property
    def triangles(self) -> np.ndarray:
        """Triangles of the body as base vertices, (t, 3)."""
        return self.body_vertex_of[self.body_triangles]

    def texture(self, path: str, mode: str) -> np.ndarray:
        """Return a texture as uint8 (H, W, channels), row 0 at the top.

        Args:
            path: one of ``skins/NAME.jpg`` (RGB; all skins have one size), ``skins/masks.png`` (RGBA: scalp, lips, ears,
                eyelids), ``skins/wrinkles.jpg`` (L, 128 is flat), ``eyes/NAME.png`` (RGBA), ``brows/NAME.png`` and
                ``lashes/NAME.png`` (L, opacity), ``mouth/teeth.jpg``, ``mouth/tongue.jpg``, ``clothes/NAME.jpg`` (RGB).
            mode: the mode it is wanted in, as Pillow calls it.
        """
        with self.open_image(path) as picture:
            pixels = np.asarray(picture.convert(mode))
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def add_target(self, vertices: np.ndarray, name: str, amount: float) -> None:
        """Move ``vertices`` in place by a share of a target; unknown names do nothing, for packs differ in them."""
        target = self.targets.get(name)
        if target is not None and abs(amount) > SMALLEST_AMOUNT:
            vertices[target[0]] += target[1] * np.float32(amount)

    def opposites(self) -> dict[str, tuple[str, str]]:
        """Return property -> its (falling, rising) detail targets, in the order of the falling one's name."""
        names = {name.removeprefix(DETAIL) for name in self.targets if name.startswith(DETAIL)}
        pairs = {}
        for name in sorted(names):
            for low, high in OPPOSITES:
                stem = name.removesuffix(low)
                if stem != name and stem + high in names:
                    pairs[stem] = (name, stem + high)
        return pairs


def read_assets(folder: str | Path) -> Assets:
    """Read a pack: `INDEX_NAME`, `ARRAYS_NAME` and folders of textures.

    Raises:
        OptionError: the folder holds no pack, or a part of it is missing.
    """
    folder = Path(folder)
    if not (folder / INDEX_NAME).is_file():
        raise OptionError(
            f"no assets in {folder}: expected {INDEX_NAME}, {ARRAYS_NAME} and the folders skins, eyes, ...; "
            "docs/synth.md says how the pack is made from MakeHuman's CC0 assets"
        )
    try:
        index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        with np.load(folder / ARRAYS_NAME) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return _assemble(folder, index, arrays)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise OptionError(f"assets in {folder} cannot be used: {type(error).__name__}: {error}") from error


def _assemble(folder: Path, index: dict, arrays: dict[str, np.ndarray]) -> Assets:
    starts, scales = arrays["t/off"], arrays["t/scale"]
    targets = {}
    for i, name in enumerate(index["targets"]):
        part = slice(starts[i], starts[i + 1])
        shifts = arrays["t/delta"][part].astype(np.float32) * scales[i]
        targets[name] = (arrays["t/idx"][part].astype(np.int32), shifts)
    proxies = {
        name: Proxy(
            source=arrays[f"{name}/idx"].astype(np.int32),
            weights=arrays[f"{name}/w"],
            offsets=arrays[f"{name}/off"],
            vertex_of=arrays[f"{name}/src"].astype(np.int32),
            uv=arrays[f"{name}/uv"],
            triangles=arrays[f"{name}/tri"].astype(np.int32),
            scale={axis: tuple(entry) for axis, entry in scale.items()},
            hidden=arrays[f"{name}/delete"].astype(np.int32) if f"{name}/delete" in arrays else None,
        )
        for name, scale in index["proxies"].items()
    }
    missing = [name for name in LANDMARKS if name not in index["landmarks"]] + [EYES] * (EYES not in proxies)
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    return Assets(
        vertices=arrays["V"].astype(np.float32),
        body_vertex_of=arrays["body/src"].astype(np.int32),
        body_uv=arrays["body/uv"],
        body_triangles=arrays["body/tri"].astype(np.int32),
        left_eye=arrays["eye_l"].astype(int),
        right_eye=arrays["eye_r"].astype(int),
        landmarks=index["landmarks"],
        targets=targets,
        proxies=proxies,
        clothes=tuple(index["clothes"]),
        brows=tuple(sorted(name for name in proxies if name.startswith("eyebrow"))),
        lashes=tuple(sorted(name for name in proxies if name.startswith("eyelashes"))),
        irises=tuple(sorted(file.stem for file in (folder / "eyes").glob("*.png"))),
        skins=tuple(skin["name"] for skin in index["skins"]),
        skin_means=np.array([skin["mean"] for skin in index["skins"]], np.float32),
        open_image=lambda path: Image.open(folder / path),
        provenance=index.get("provenance", "CC0 asset pack"),
    )
