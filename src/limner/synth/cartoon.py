"""Cartoon faces: drawings of facesjs and of freely licensed DiceBear styles, aligned as FFHQ is.

A drawing depends on its seed, its style and the versions of the packages named in the attribution.  Every style draws
its faces at one place, so the landmarks are known without looking.  Needed are the extra ``cartoons`` and, for facesjs,
Node.js with the npm package: docs/synth-cartoons.md.

Convention: landmarks are (x, y), origin top left; left and right are the subject's, as in the records of heads.
"""

from __future__ import annotations

import colorsys
import dataclasses
import importlib.metadata
import importlib.resources
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limner.errors import MediaError, MissingExtraError, OptionError
from limner.synth.dataset import Sample
from limner.synth.options import SynthOptions

ALL = "cartoons"  # the domain of all styles together
FACESJS = "facesjs"
NODE_DIR = "LIMNER_NODE_DIR"
BATCH = 200  # drawings of one call of Node.js
NODE_LIMIT_S = 300
RASTER_SCALE, OVERSAMPLING = 3, 2  # px of the drawing and of the warped crop, per px of the picture
CROP_EYES, CROP_MOUTH, CROP_DOWN = 2.0, 1.8, 0.1  # FFHQ's crop in eye distances and eye-to-mouth distances
INSTALL = "install it with: pip install 'limner[cartoons]'"

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a style draws its faces, as shares of the drawing's width and height.

    Attributes:
        right_eye: the subject's right eye, on the left of the picture.
        left_eye: the other.
        mouth: its centre.
    """

    right_eye: Point
    left_eye: Point
    mouth: Point


STYLES = {
    FACESJS: Place((0.353, 0.517), (0.647, 0.517), (0.5, 0.738)),
    "toon-head": Place((0.40, 0.525), (0.60, 0.525), (0.5, 0.655)),
    "personas": Place((0.41, 0.448), (0.60, 0.448), (0.505, 0.615)),
    "pixel-art": Place((0.344, 0.372), (0.655, 0.372), (0.5, 0.60)),
    "lorelei": Place((0.52, 0.475), (0.665, 0.475), (0.56, 0.62)),
}


@dataclasses.dataclass(frozen=True)
class Crop:
    """FFHQ's square around a face, in px of the drawing.

    Attributes:
        left, top: its corner.
        side: its side.
    """

    left: float
    top: float
    side: float

    def at(self, place: Point, drawing: tuple[int, int], size: int) -> Point:
        """Return where a point of the drawing, in shares of its width and height, lies in a crop of ``size`` px."""
        x, y = (
            (share * extent - low) / self.side * size
            for share, extent, low in zip(place, drawing, (self.left, self.top), strict=True)
        )
        return round(x, 2), round(y, 2)


class CartoonPainter:
    """Draws the cartoon faces of one style, or of all.

    Args:
        options: ``domain`` is the style or `ALL`; looks, label maps and frontal twins do not exist for drawings.

    Raises:
        OptionError: something is asked for that only heads have.
        MissingExtraError: a package or program that draws or rasterises is not installed.
    """

    palette: np.ndarray | None = None

    def __init__(self, options: SynthOptions) -> None:
        asked = [name for name in ("looks", "labels", "frontal", "assets") if getattr(options, name)]
        if asked:
            raise OptionError(f"{asked[0]} is for heads; {options.domain} are drawings and have none")
        self.size = options.size
        self.folders = tuple(STYLES) if options.domain == ALL else (options.domain,)
        self._rasterise = _import_rasteriser()
        self._styles = {name: _open_style(name) for name in self.folders if name != FACESJS}
        # Drawing one face now names what is missing before the folder is made.
        self._version = draw_facesjs([0])[0] if FACESJS in self.folders else ""
        self.attribution = _attribute(self.folders, self._version)

    def paint(self, seeds: Sequence[int]) -> Iterator[Sample]:
        """Yield the drawings of each seed, in order."""
        for start in range(0, len(seeds), BATCH):
            batch = seeds[start : start + BATCH]
            faces = draw_facesjs(batch)[1] if FACESJS in self.folders else [""] * len(batch)
            for seed, face in zip(batch, faces, strict=True):
                yield self._sample(seed, face)

    def _sample(self, seed: int, face: str) -> Sample:
        pictures, places = {}, {}
        for name in self.folders:
            svg = face if name == FACESJS else _draw_avatar(self._styles[name], f"{name}-{seed}")
            drawing = self._rasterise(svg, RASTER_SCALE * self.size)
            pictures[name], places[name] = align_drawing(
                drawing, STYLES[name], self.size, ground_color(name, seed)
            )
        landmarks = places[self.folders[0]] if len(self.folders) == 1 else places
        return Sample(seed, pictures, {"seed": seed, "styles": list(self.folders), "landmarks": landmarks})


def align_drawing(
    drawing: Image.Image, place: Place, size: int, ground: tuple[int, int, int]
) -> tuple[np.ndarray, dict[str, Point]]:
    """Cut FFHQ's square out of a drawing and lay it on a plain ground.

    Args:
        drawing: RGBA.
        place: where its face is.
        size: side of the picture in px.
        ground: its colour, sRGB.

    Returns:
        pixels (size, size, 3) and the landmarks in them: ``eye_right``, ``eye_left``, ``mouth``.
    """
    crop = find_crop(place, drawing.size)
    wide = OVERSAMPLING * size
    step = crop.side / wide
    warped = drawing.transform(
        (wide, wide),
        Image.Transform.AFFINE,
        (step, 0, crop.left, 0, step, crop.top),
        resample=Image.Resampling.BICUBIC,
    )
    picture = Image.new("RGBA", warped.size, (*ground, 255))
    picture.alpha_composite(warped)
    pixels = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))
    marks = {"eye_right": place.right_eye, "eye_left": place.left_eye, "mouth": place.mouth}
    return pixels, {name: crop.at(mark, drawing.size, size) for name, mark in marks.items()}


def find_crop(place: Place, drawing: tuple[int, int]) -> Crop:
    """Return FFHQ's square for a face; the eyes of all styles are level, so it is not turned.

    Source: Karras et al. 2019, appendix A and its data set's alignment: half a side is the larger of 2 eye distances and
        1.8 eye-to-mouth distances; the centre lies 0.1 of the way from the eyes to the mouth.

    Args:
        place: where the face is.
        drawing: width and height of the drawing in px.
    """
    right, left, mouth = (np.array(drawing) * mark for mark in (place.right_eye, place.left_eye, place.mouth))
    eyes = (right + left) / 2
    down = mouth - eyes
    half = max(CROP_EYES * np.hypot(*(left - right)), CROP_MOUTH * np.hypot(*down))
    corner = eyes + CROP_DOWN * down - half
    return Crop(float(corner[0]), float(corner[1]), float(2 * half))


def ground_color(style: str, seed: int) -> tuple[int, int, int]:
    """Return the muted ground of a drawing, sRGB."""
    rng = np.random.default_rng([seed, sum(map(ord, style))])
    hue, saturation, value = rng.random(), rng.uniform(0.04, 0.30), rng.uniform(0.62, 0.96)
    red, green, blue = (int(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def draw_facesjs(seeds: Sequence[int]) -> tuple[str, list[str]]:
    """Draw faces with the npm package facesjs.

    Returns:
        the package's version and one SVG text per seed.

    Raises:
        MissingExtraError: Node.js or the package is missing.
        MediaError: it failed; the message is its own.
    """
    node = shutil.which("node")
    if node is None:
        raise MissingExtraError(
            "drawing facesjs needs the program node, which was not found; install Node.js 18 or newer "
            "(Debian: apt-get install nodejs npm)"
        )
    folder = Path(os.environ.get(NODE_DIR) or ".").resolve()
    with importlib.resources.as_file(importlib.resources.files("limner.synth") / "facesjs.mjs") as script:
        try:
            done = subprocess.run(
                [node, str(script), str(folder)],
                input=json.dumps([int(seed) for seed in seeds]),
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=NODE_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MediaError(f"drawing {len(seeds)} faces with {node} took over {NODE_LIMIT_S} s") from None
    if done.returncode == 3:
        raise MissingExtraError(
            f"the npm package facesjs was not found from {folder}; run there: npm install facesjs@5.0.3, or "
            f"set {NODE_DIR} to the folder where that was run"
        )
    if done.returncode:
        raise MediaError(f"facesjs failed: {done.stderr.strip()[-500:] or f'exit status {done.returncode}'}")
    answer = json.loads(done.stdout)
    return answer["version"], answer["drawings"]


def _import_rasteriser() -> Any:
    """Return a function from SVG text and width in px to an RGBA picture."""
    try:
        import resvg_py
    except ImportError:
        raise MissingExtraError(f"rasterising drawings needs the package resvg_py; {INSTALL}") from None

    def rasterise(svg: str, width: int) -> Image.Image:
        # The drawings hold no text; without the machine's fonts they are the same everywhere.
        data = resvg_py.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True)
        with Image.open(io.BytesIO(bytes(data))) as picture:
            return picture.convert("RGBA")

    return rasterise


def _style_definition(name: str) -> dict[str, Any]:
    """Return the definition of a DiceBear style, its licence among it."""
    try:
        folder = importlib.metadata.distribution("dicebear-styles").locate_file("dicebear_styles")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(f"drawing {name} needs the package dicebear-styles; {INSTALL}") from None
    return json.loads(Path(str(folder), f"{name}.json").read_text(encoding="utf-8"))


def _open_style(name: str) -> Any:
    """Return a DiceBear style, ready to draw."""
    try:
        import dicebear
    except ImportError:
        raise MissingExtraError(f"drawing {name} needs the package dicebear-core; {INSTALL}") from None
    return dicebear.Style(_style_definition(name))


def _draw_avatar(style: Any, seed: str) -> str:
    import dicebear

    return str(dicebear.Avatar(style, {"seed": seed}))


def _attribute(styles: Sequence[str], facesjs_version: str) -> str:
    """Return Markdown that states author, source and licence of every style."""
    lines = [
        "# Licences of the drawings in this folder",
        "",
        "The pictures were rasterised, cropped to FFHQ's alignment and placed on plain grounds by `limner synth`.",
        "",
    ]
    for style in styles:
        if style == FACESJS:
            lines.append(
                f"* `{style}/`: made with facesjs {facesjs_version} by Jeremy Scheff and contributors, "
                "https://github.com/zengm-games/facesjs, licensed under the Apache License 2.0 "
                "(https://www.apache.org/licenses/LICENSE-2.0)."
            )
            continue
        about = _style_definition(style)["meta"]
        version = importlib.metadata.version("dicebear-styles")
        creator = about["creator"]
        lines.append(
            f"* `{style}/`: {about['license']['text']}. Style file from dicebear-styles {version}; author "
            f"{creator['name']} ({creator['url']}). Changes: random variants, rasterised, cropped, recoloured ground."
        )
    return "\n".join(lines) + "\n"
