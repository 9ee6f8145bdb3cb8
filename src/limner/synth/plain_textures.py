"""Painted textures of the plain heads: skin, masks, wrinkles, irises, brows, lashes, teeth and cloth.

Nothing here is a photograph: skin is a mean colour varied by where it lies on the head and how hollow the place is,
brows and lashes are drawn hair by hair, irises are rings and rays.  Pictures are arrays, row 0 at the top; `Painter`
knows them by the paths that `limner.synth.assets` documents.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 512  # px of the body's texture map
CLOTH_SIDE, IRIS_SIDE = 128, 192
HAIR_SIZE = (320, 96)  # px of brow and lash textures
GROW_STEPS = 10  # px that the painted islands grow over their border, against seams


@dataclasses.dataclass(frozen=True)
class Skin:
    """A skin: its mean linear colour, how strongly it varies and how lined it is."""

    mean: tuple[float, float, float]
    strength: float


# The order is the numbering that scenes use, see `limner.synth.scene`: women 0, 4, 6; men 1-3, 5, 7; dark 8-10.
SKINS = {
    "light_1": Skin((0.74, 0.43, 0.30), 0.75),
    "light_2": Skin((0.76, 0.42, 0.27), 1.0),
    "light_3": Skin((0.63, 0.36, 0.23), 1.1),
    "light_4": Skin((0.66, 0.37, 0.23), 1.3),
    "light_5": Skin((0.75, 0.45, 0.29), 0.65),
    "light_6": Skin((0.63, 0.36, 0.23), 0.95),
    "light_7": Skin((0.73, 0.44, 0.30), 0.9),
    "light_8": Skin((0.67, 0.37, 0.23), 1.2),
    "dark_1": Skin((0.085, 0.033, 0.016), 0.9),
    "dark_2": Skin((0.105, 0.037, 0.016), 1.1),
    "dark_3": Skin((0.12, 0.035, 0.012), 1.3),
}
# Iris -> (colour at its rim, colour at its pupil), sRGB; the order is the numbering that scenes use.
IRISES = {
    "blue": ((58, 98, 146), (118, 150, 172)),
    "bluegreen": ((60, 112, 120), (126, 150, 128)),
    "brown": ((62, 32, 18), (104, 58, 28)),
    "brownlight": ((98, 60, 30), (146, 96, 48)),
    "deepblue": ((36, 66, 120), (84, 112, 150)),
    "green": ((66, 98, 62), (132, 128, 70)),
    "grey": ((92, 104, 114), (140, 146, 146)),
    "ice": ((116, 150, 172), (176, 194, 200)),
    "lightblue": ((88, 134, 172), (150, 178, 190)),
}
IRIS_RADIUS, PUPIL_RADIUS = 0.215, 0.085  # of the texture's side
# Brow -> (thickness at the nose, in the middle, at the end; bend upwards), in heights of the strip.
BROW_SHAPES = {
    "eyebrow001": (0.42, 0.40, 0.10, 0.00),
    "eyebrow002": (0.22, 0.22, 0.04, 0.10),
    "eyebrow003": (0.30, 0.30, 0.06, 0.05),
    "eyebrow004": (0.26, 0.20, 0.05, 0.12),
    "eyebrow005": (0.46, 0.36, 0.12, -0.04),
    "eyebrow006": (0.18, 0.20, 0.04, 0.16),
    "eyebrow007": (0.28, 0.24, 0.04, 0.08),
    "eyebrow008": (0.38, 0.44, 0.14, 0.02),
    "eyebrow009": (0.36, 0.34, 0.16, -0.06),
    "eyebrow010": (0.24, 0.28, 0.05, 0.06),
    "eyebrow011": (0.20, 0.16, 0.03, 0.14),
    "eyebrow012": (0.32, 0.28, 0.08, 0.03),
}
BROWS = tuple(BROW_SHAPES)
# Lash -> (hairs, length as a share of the strip).
LASH_SHAPES = {
    "eyelashes01": (90, 0.75),
    "eyelashes02": (120, 0.95),
    "eyelashes03": (70, 0.65),
    "eyelashes04": (150, 0.85),
}
LASHES = tuple(LASH_SHAPES)
CLOTHES = tuple(
    f"{neckline}_{cloth}" for cloth in ("knit", "stripes", "check") for neckline in ("crew", "vee", "wide")
)
# Where the hair begins: azimuth about the head in degrees (0 in front) -> height on the base head.
HAIRLINE_AZIMUTH = (0, 15, 25, 32, 38, 45, 52, 62, 76, 84, 90, 97, 104, 114, 180)
HAIRLINE_HEIGHT = (7.90, 7.88, 7.87, 7.80, 7.66, 7.48, 7.33, 7.23, 7.26, 7.24, 7.10, 6.94, 6.82, 6.74, 6.70)
HEAD_CENTRE_Z = 0.28


def bump(distance: np.ndarray, width: float) -> np.ndarray:
    """Return a soft bump: 1 at distance 0, about a third at ``width``."""
    return np.exp(-((distance / width) ** 2))


def soft(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a smooth step from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def noise(side: int, grain: int, seed: int, channels: int = 1) -> np.ndarray:
    """Return smooth noise (side, side, channels) of about unit spread with grains of so many px."""
    rng = np.random.default_rng([seed, grain])
    small = rng.standard_normal((side // grain + 2, side // grain + 2, channels)).astype(np.float32)
    planes = [
        np.asarray(Image.fromarray(small[..., k]).resize((side, side), Image.Resampling.BICUBIC))
        for k in range(channels)
    ]
    return np.stack(planes, -1)


class Painter:
    """Paints the textures of one mesh.

    Args:
        vertices: (n, 3) base head at rest.
        vertex_of: (k,) base vertex of each drawn vertex.
        uv: (k, 2) texture coordinates, origin bottom left.
        triangles: (t, 3) indices of drawn vertices.
        masks: (k, 4) uint8 at the drawn vertices: lips, ears, eyelids, inside of the mouth.
    """

    def __init__(
        self,
        vertices: np.ndarray,
        vertex_of: np.ndarray,
        uv: np.ndarray,
        triangles: np.ndarray,
        masks: np.ndarray,
    ) -> None:
        self.vertices, self.vertex_of, self.uv = vertices, vertex_of, uv
        self.triangles, self.masks = triangles, masks

    def paint(self, name: str) -> np.ndarray:
        """Return a texture as uint8, (H, W) or (H, W, channels).

        Raises:
            KeyError: there is no such texture.
        """
        folder, _, file = name.partition("/")
        stem = file.rsplit(".", 1)[0]
        if folder == "skins":
            made: dict[str, Callable[[], np.ndarray]] = {"masks": self._masks, "wrinkles": self._wrinkles}
            return made[stem]() if stem in made else self._skin(stem)
        simple: dict[str, Callable[[str], np.ndarray]] = {
            "eyes": iris,
            "brows": brow,
            "lashes": lash,
            "mouth": mouth,
            "clothes": cloth,
        }
        return simple[folder](stem)

    @functools.cached_property
    def _surface(self) -> dict[str, np.ndarray]:
        """What every texel of the body shows: its place, hollowness and masks; unused texels take their neighbour's."""
        place = self.vertices[self.vertex_of]
        hollow = self._hollowness()[self.vertex_of]
        values = np.concatenate([place, hollow[:, None], self.masks / np.float32(255)], 1)
        texels = rasterise(self.uv, self.triangles, values.astype(np.float32), SIDE)
        names = ("lips", "ears", "lids", "mouth")
        return {
            "place": texels[..., :3],
            "hollow": texels[..., 3],
            **{name: texels[..., 4 + k] for k, name in enumerate(names)},
        }

    def _hollowness(self) -> np.ndarray:
        """Return for every base vertex how hollow its surroundings are: above 0 in creases, below on ridges."""
        mesh = self.vertex_of[self.triangles]
        edges = np.concatenate([mesh[:, [0, 1]], mesh[:, [1, 2]], mesh[:, [2, 0]]])
        edges = np.concatenate([edges, edges[:, ::-1]])
        count = np.bincount(edges[:, 0], minlength=len(self.vertices)).clip(1)[:, None]

        def spread(values: np.ndarray) -> np.ndarray:
            total = np.stack(
                [
                    np.bincount(edges[:, 0], values[edges[:, 1], k], len(self.vertices))
                    for k in range(values.shape[1])
                ],
                1,
            )
            return total / count

        corners = self.vertices[mesh]
        face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal = np.zeros((len(self.vertices), 3))
        for k in range(3):
            np.add.at(normal, mesh[:, k], face)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
        smooth = spread(spread(spread(self.vertices)))
        length = np.sqrt(spread(((self.vertices[:, None] - smooth[:, None]) ** 2).sum(-1))) + 1e-3
        raised = ((smooth - self.vertices) * normal).sum(1, keepdims=True) / (length + 0.02)
        return np.clip(spread(raised)[:, 0], -1, 1)

    def _skin(self, name: str) -> np.ndarray:
        """Paint one of `SKINS`: its colour, redder and darker in places, with blotches."""
        skin, seed = SKINS[name], list(SKINS).index(name)
        at = self._surface
        x, y, z = np.abs(at["place"][..., 0]), at["place"][..., 1], at["place"][..., 2]
        front = soft(z, 0.5, 1.0)
        red = (
            0.4 * bump(np.hypot(x - 0.42, y - 6.93), 0.24)
            + 0.6 * bump(np.hypot(x, y - 6.90), 0.13)
            + 0.4 * bump(np.hypot(x, y - 6.36), 0.15)
        ) * front + 0.9 * at["ears"]
        socket = bump(np.hypot((x - 0.29) / 1.5, y - 7.22), 0.12) * front
        pale = bump(np.hypot(x, (y - 7.65) / 0.7), 0.4) * front
        # Logarithms of the factors on red, green and blue.
        change = red[..., None] * [0.04, -0.16, -0.14] + socket[..., None] * [-0.20, -0.26, -0.18]
        change = change + pale[..., None] * [0.03, 0.06, 0.06]
        change = change - np.clip(at["hollow"], 0, None)[..., None] * [0.35, 0.60, 0.60]
        change = change + np.clip(-at["hollow"], 0, None)[..., None] * [0.06, 0.10, 0.10]
        blotches = 0.030 * noise(SIDE, 24, seed) + 0.022 * noise(SIDE, 7, seed)
        change = skin.strength * (change + blotches * [0.6, 1.0, 1.0]) + 0.02 * noise(SIDE, 2, seed)
        colour = np.array(skin.mean) * np.exp(change)
        inside = soft(at["mouth"], 0.3, 0.7)[..., None]
        wet = np.array([0.30, 0.06, 0.05]) * (0.4 + 0.6 * np.array(skin.mean).max())
        return encode(colour * (1 - inside) + wet * inside)

    def _masks(self) -> np.ndarray:
        """Paint the mask of scalp (red), lips (green), ears (blue) and eyelids (opacity)."""
        at = self._surface
        x, y, z = np.abs(at["place"][..., 0]), at["place"][..., 1], at["place"][..., 2]
        azimuth = np.degrees(np.arctan2(x, z - HEAD_CENTRE_Z))
        line = np.interp(azimuth, HAIRLINE_AZIMUTH, HAIRLINE_HEIGHT)
        scalp = soft(y - line, -0.03, 0.13) * (1 - soft(at["ears"], 0.1, 0.5)) * (1 - at["mouth"])
        planes = [scalp, at["lips"], at["ears"], at["lids"]]
        return (255 * np.clip(np.stack(planes, -1), 0, 1) + 0.5).astype(np.uint8)

    def _wrinkles(self) -> np.ndarray:
        """Paint lines of age around 128: forehead, corners of the eyes, nose to mouth, below the eyes."""
        at = self._surface
        x, y, z = np.abs(at["place"][..., 0]), at["place"][..., 1], at["place"][..., 2]
        front = soft(z, 0.6, 1.0)
        waver = 0.012 * noise(SIDE, 20, 91)[..., 0]
        forehead = np.cos((y + waver + 0.06 * x) * 2 * np.pi / 0.085) ** 7 * bump(
            np.hypot(x / 1.3, y - 7.66), 0.2
        )
        angle = np.arctan2(y - 7.28, x - 0.47)
        crow = np.cos(angle * 11 + 20 * waver) ** 5 * bump(np.hypot(x - 0.60, y - 7.27), 0.09)
        fold = (
            bump(x - (0.17 + 0.62 * (6.93 - y)) + waver, 0.022)
            * soft(y, 6.55, 6.66)
            * (1 - soft(y, 6.88, 6.97))
        )
        bag = bump(y - (7.13 + 0.25 * (x - 0.3) ** 2) + waver, 0.018) * bump(x - 0.3, 0.16)
        lines = (
            -(0.45 * np.clip(forehead, 0, 1) + 0.55 * np.clip(crow, 0, 1) + 1.0 * fold + 0.7 * bag) * front
        )
        value = 128 + 60 * (lines + 0.10 * noise(SIDE, 3, 92)[..., 0] * front)
        return np.clip(value, 0, 255).astype(np.uint8)


def rasterise(uv: np.ndarray, triangles: np.ndarray, values: np.ndarray, side: int) -> np.ndarray:
    """Spread values of vertices over a texture map, (side, side, channels); unused texels repeat the border's.

    Args:
        uv: (k, 2) texture coordinates, origin bottom left.
        triangles: (t, 3) indices of vertices.
        values: (k, channels).
        side: size of the map in px.
    """
    pixel = np.stack([uv[:, 0], 1 - uv[:, 1]], 1) * side  # (x, y), y downwards
    corners = pixel[triangles]
    extent = np.ptp(corners, axis=1).max(1)
    total = np.zeros((side * side, values.shape[1] + 1), np.float32)
    for low, cuts in ((0, 3), (2, 6), (5, 14), (12, 32), (28, 100)):
        high = {0: 2, 2: 5, 5: 12, 12: 28, 28: np.inf}[low]
        chosen = triangles[(extent > low) & (extent <= high)]
        grid = [(i, j) for i in range(cuts + 1) for j in range(cuts + 1 - i)]
        share = np.array([(cuts - i - j, i, j) for i, j in grid], np.float32) / cuts
        if not len(chosen):
            continue
        place = (share @ pixel[chosen].astype(np.float32)).reshape(-1, 2).astype(int).clip(0, side - 1)
        flat = place[:, 1] * side + place[:, 0]
        spread = (share @ values[chosen]).reshape(-1, values.shape[1])
        for channel in range(values.shape[1]):
            total[:, channel] += np.bincount(flat, spread[:, channel], side * side)
        total[:, -1] += np.bincount(flat, minlength=side * side)
    total = total.reshape(side, side, -1)
    count = total[..., -1:]
    texels, known = total[..., :-1] / np.maximum(count, 1e-6), count[..., 0] > 0
    for _ in range(GROW_STEPS):
        gathered, found = np.zeros_like(texels), np.zeros(known.shape, np.float32)
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            near = np.roll(known, step, axis)
            gathered += np.roll(texels, step, axis) * near[..., None]
            found += near
        new = ~known & (found > 0)
        texels[new] = gathered[new] / found[new][:, None]
        known |= new
    texels[~known] = texels[known].mean(0)
    return texels


def encode(linear: np.ndarray) -> np.ndarray:
    """Return the 8-bit values that the shader reads as these linear colours (it takes c * c * (0.3 c + 0.7))."""
    codes = np.linspace(0, 1, 1024)
    # A table over the square root, which spreads dark colours.
    roots = np.interp(np.linspace(0, 1, 2048) ** 2, codes * codes * (0.3 * codes + 0.7), codes)
    table = (255 * roots + 0.5).astype(np.uint8)
    return table[(2047 * np.sqrt(np.clip(linear, 0, 1)) + 0.5).astype(int)]


def iris(name: str) -> np.ndarray:
    """Paint an eyeball seen from the front, RGBA."""
    rim, inner = (np.array(colour, float) for colour in IRISES[name])
    seed = list(IRISES).index(name)
    n = IRIS_SIDE
    y, x = (np.mgrid[:n, :n] + 0.5) / n - 0.5
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    rng = np.random.default_rng([seed, 5])
    rays = sum(
        np.cos(angle * int(k) + phase)
        for k, phase in zip(rng.integers(14, 60, 9), rng.uniform(0, 6.3, 9), strict=True)
    )
    share = np.clip((radius - PUPIL_RADIUS) / (IRIS_RADIUS - PUPIL_RADIUS), 0, 1)
    colour = inner + (rim - inner) * (share**1.2)[..., None]
    colour = colour * (1 + 0.07 * rays * (0.3 + share) * (1 - share))[..., None]
    colour = colour * (1 - 0.55 * soft(share, 0.78, 1.0))[..., None]
    colour = colour * soft(radius, PUPIL_RADIUS - 0.012, PUPIL_RADIUS + 0.006)[..., None] + 4
    white = np.array([232, 228, 224]) - soft(radius, 0.3, 0.5)[..., None] * [16, 34, 36]
    white = white - 5 * np.abs(noise(n, 9, seed)) * [0.2, 1, 1]
    blend = soft(radius, IRIS_RADIUS - 0.012, IRIS_RADIUS + 0.012)[..., None]
    picture = np.clip(colour * (1 - blend) + white * blend, 0, 255)
    return np.concatenate([picture, np.full((n, n, 1), 255)], -1).astype(np.uint8)


def brow(name: str) -> np.ndarray:
    """Draw a brow hair by hair: opacity (H, W), nose on the left."""
    begin, middle, end, bend = BROW_SHAPES[name]
    rng = np.random.default_rng([BROWS.index(name), 6])
    width, height = HAIR_SIZE
    picture = Image.new("L", (2 * width, 2 * height))
    draw = ImageDraw.Draw(picture)
    for u in np.sort(rng.uniform(0.06, 0.90, 620)):
        thick = np.interp(u, (0.05, 0.2, 0.55, 0.97), (begin * 0.75, begin, middle, end))
        lie = 0.5 + bend * np.sin(np.pi * min(u * 0.85, 1.0)) + thick * rng.uniform(-0.5, 0.35)
        # Hairs stand at the nose and lie along the brow further out; upper ones turn down.
        turn = (
            np.interp(u, (0.0, 0.25, 1.0), (1.25, 0.45, -0.12))
            + rng.normal(0, 0.14)
            - 0.5 * max(lie - 0.5 - bend, 0)
        )
        long = rng.uniform(0.05, 0.085) * (0.6 + 0.4 * min(thick / 0.25, 1))
        x0, y0 = 2 * width * u, 2 * height * (1 - lie)
        dx, dy = 2 * width * long * np.cos(turn), -2 * width * long * np.sin(turn) * 0.62
        line = [(x0, y0), (x0 + 0.55 * dx, y0 + 0.65 * dy), (x0 + dx, y0 + 0.85 * dy)]
        draw.line(line, fill=int(rng.integers(120, 235)), width=3)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2)).resize(HAIR_SIZE, Image.Resampling.BOX))


def lash(name: str) -> np.ndarray:
    """Draw lashes: opacity (H, W), nose on the left, roots below."""
    hairs, length = LASH_SHAPES[name]
    rng = np.random.default_rng([LASHES.index(name), 7])
    width, height = HAIR_SIZE
    picture = Image.new("L", (2 * width, 2 * height))
    draw = ImageDraw.Draw(picture)
    for u in np.linspace(0.04, 0.97, hairs) + rng.normal(0, 0.006, hairs):
        long = length * rng.uniform(0.7, 1.0) * (0.45 + 0.55 * np.sin(np.pi * min(0.25 + 0.6 * u, 1)))
        lean = (u - 0.35) * 0.08 + rng.normal(0, 0.008)
        x0, y0 = 2 * width * u, 2.0 * height
        line = [(x0 + 2 * width * lean * t * t, y0 - 2 * height * long * t) for t in (0, 0.4, 0.7, 1.0)]
        draw.line(line[:3], fill=250, width=5)
        draw.line(line[2:], fill=190, width=3)
    # The line of roots.
    draw.rectangle((8, 2 * height - 14, 2 * width - 8, 2 * height), fill=170)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)).resize(HAIR_SIZE, Image.Resampling.BOX))


def mouth(name: str) -> np.ndarray:
    """Paint teeth (u along the arch) or the tongue, RGB."""
    n = CLOTH_SIDE
    v, u = np.mgrid[:n, :n] / n
    if name == "tongue":
        shade = 1 - 0.12 * noise(n, 6, 3)[..., 0] - 0.25 * bump(u - 0.5, 0.03)
        return np.clip(shade[..., None] * np.array([172, 92, 92]), 0, 255).astype(np.uint8)
    if name != "teeth":
        raise KeyError(name)
    gap = np.abs((u * 28) % 1 - 0.5) * 2
    shade = 1 - 0.28 * soft(gap, 0.86, 1.0) + 0 * v
    return np.clip(shade[..., None] * np.array([206, 198, 182]), 0, 255).astype(np.uint8)


def cloth(name: str) -> np.ndarray:
    """Weave a tile of cloth, RGB, that repeats in both directions."""
    n = CLOTH_SIDE
    y, x = np.mgrid[:n, :n] / n * 2 * np.pi
    weave = 0.05 * np.sin(x * 32) * np.sin(y * 32)
    pattern = {
        "knit": 0.05 * np.sin(y * 32 + 2 * np.sin(x * 16)),
        "stripes": 0.38 * np.tanh(6 * (np.sin(y * 3) - 0.35)),
        "check": 0.18 * np.tanh(8 * np.sin(x * 3)) + 0.18 * np.tanh(8 * np.sin(y * 3)),
    }[name.split("_")[1]]
    grey = np.clip(0.55 * (1 + weave + pattern), 0, 1)
    return np.repeat((255 * grey[..., None]).astype(np.uint8), 3, -1)
