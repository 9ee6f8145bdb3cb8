"""What is behind a head, out of focus: studio sweeps, rooms with windows, outdoors with trees, lights of a city.

The order in which numbers are drawn is part of what a seed means: new draws go behind all others.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from limner.synth.filters import blur, disc, enlarge

KINDS = ("studio", "indoor", "outdoor", "city")
SIZE = 192  # px; enough for what is out of focus
STREAM = 5  # of random numbers, beside the seed
DARKEST, BRIGHTEST = 0.002, 1.6
GAMMA = 2.2

# Colours as sRGB bytes.
WALLS = (
    (214, 206, 194),
    (188, 180, 170),
    (160, 164, 168),
    (120, 112, 104),
    (96, 104, 112),
    (176, 158, 138),
    (226, 222, 214),
    (142, 128, 116),
    (108, 96, 88),
    (150, 160, 158),
)
STUDIOS = (
    (128, 132, 138),
    (176, 178, 180),
    (92, 96, 104),
    (60, 62, 68),
    (200, 194, 186),
    (152, 140, 130),
    (106, 120, 136),
    (134, 122, 112),
    (222, 222, 222),
    (84, 76, 72),
    (120, 132, 126),
    (168, 176, 190),
)
SKIES = (  # zenith, horizon
    ((150, 188, 226), (222, 232, 240)),
    ((196, 206, 214), (232, 234, 234)),
    ((120, 160, 210), (236, 220, 196)),
    ((170, 178, 190), (240, 206, 170)),
)
GROUNDS = (
    (96, 110, 70),
    (128, 122, 96),
    (140, 132, 120),
    (84, 96, 64),
    (160, 150, 132),
    (110, 108, 104),
)
LEAVES = ((62, 84, 44), (88, 108, 58), (50, 68, 44), (112, 122, 70), (130, 116, 66))
LAMPS = ((255, 206, 140), (255, 232, 200), (220, 230, 255), (255, 170, 110), (200, 220, 210))
WINDOW, LAMP, NIGHT = (226, 234, 240), (255, 214, 160), (58, 52, 54)


def linear(color: Sequence[int]) -> np.ndarray:
    """Return the linear colour (3,) of sRGB bytes."""
    return (np.array(color, np.float32) / 255) ** GAMMA


class Painter:
    """Draws one backdrop.

    Args:
        seed: of its details.
        size: side in px.
    """

    def __init__(self, seed: int, size: int = SIZE):
        self.rng = np.random.default_rng([seed, STREAM])
        self.size = size
        rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
        self.y, self.x = rows / size, columns / size

    def between(self, low: float, high: float) -> float:
        """Return a random number."""
        return self.rng.uniform(low, high)

    def pick(self, colors: Sequence[Sequence[int]]) -> np.ndarray:
        """Return one of several colours, linear."""
        return linear(colors[int(self.rng.integers(len(colors)))])

    def vary(self, color: np.ndarray, brightness: float = 0.16, hue: float = 0.05) -> np.ndarray:
        """Return a colour near another one; the spreads are those of its logarithm."""
        factor = np.exp(self.rng.normal(0, brightness))
        return color * factor * np.exp(self.rng.normal(0, hue, 3)).astype(np.float32)

    def full(self, color: np.ndarray) -> np.ndarray:
        """Return a picture of one colour."""
        return np.ones((self.size, self.size, 3), np.float32) * color

    def box(self, left: float, width: float, top: float, bottom: float) -> np.ndarray:
        """Return a mask (H, W), 0 or 1, of a rectangle in shares of the picture."""
        inside = (self.x > left) & (self.x < left + width) & (self.y > top) & (self.y < bottom)
        return inside.astype(np.float32)

    def studio(self) -> tuple[np.ndarray, float]:
        """Return a sweep with a soft spot of light, at times mottled cloth, and its blur."""
        color = self.vary(self.pick(STUDIOS))
        x, y, fall = self.between(0.2, 0.8), self.between(0.1, 0.7), self.between(0.2, 1.3)
        picture = color * (1.12 - fall * ((self.x - x) ** 2 + (self.y - y) ** 2))[..., None]
        picture = np.maximum(picture, color * 0.15)
        if self.rng.random() < 0.3:
            cloth = enlarge(self.rng.normal(0, 1, (6, 6)), self.size)
            picture = picture * np.exp(0.10 * cloth)[..., None]
        return picture, 2.0

    def indoor(self) -> tuple[np.ndarray, float]:
        """Return a wall with furniture, at times a window or a lamp, and its blur."""
        between = self.between
        wall = self.vary(self.pick(WALLS)) * between(0.45, 0.95)
        slope = between(-0.5, 0.5)
        picture = self.full(wall) * (1 + slope * (self.x - 0.5))[..., None] * (1.1 - 0.35 * self.y)[..., None]
        for _ in range(int(self.rng.integers(1, 5))):
            left, width, top = between(-0.2, 1), between(0.08, 0.4), between(0.05, 0.8)
            mask = self.box(left, width, top, between(top + 0.1, 1.2))[..., None]
            share = between(0.5, 1)
            color = self.vary(self.pick(WALLS), 0.5, 0.10) * between(0.3, 1.0)
            picture = picture * (1 - share * mask) + mask * share * color
        if self.rng.random() < 0.6:
            left, width = between(-0.15, 0.85), between(0.15, 0.4)
            top, height = between(-0.2, 0.2), between(0.4, 0.8)
            mask = self.box(left, width, top, top + height)
            if self.rng.random() < 0.5:  # its mullion
                mask = mask * (1 - 0.6 * (np.abs(self.x - left - width / 2) < 0.012))
            color = self.vary(linear(WINDOW), 0.1, 0.03) * between(0.8, 1.3)
            picture = picture * (1 - mask[..., None]) + mask[..., None] * color
        if self.rng.random() < 0.35:
            distance = (self.x - between(0, 1)) ** 2 + (self.y - between(0, 0.7)) ** 2
            glow = np.exp(-distance / between(0.002, 0.012))[..., None]
            picture = picture + glow * linear(LAMP) * between(0.3, 1)
        return picture, between(4, 9)

    def outdoor(self) -> tuple[np.ndarray, float]:
        """Return sky and ground with trees or buildings, and its blur."""
        between = self.between
        zenith, horizon = (linear(color) for color in SKIES[int(self.rng.integers(len(SKIES)))])
        height = between(0.35, 0.85)
        daylight = between(0.5, 1.0)
        t = np.clip(self.y / height, 0, 1)[..., None]
        picture = (zenith * (1 - t) + horizon * t) * daylight
        ground = self.vary(self.pick(GROUNDS)) * daylight
        below = (self.y > height + 0.02 * np.sin(self.x * between(3, 9)))[..., None]
        picture = np.where(below, ground * (1.1 - 0.4 * (self.y - height))[..., None], picture)
        picture = picture.astype(np.float32)
        if self.rng.random() < 0.75:
            self._plant(picture, height, daylight)
        elif self.rng.random() < 0.6:
            for _ in range(int(self.rng.integers(2, 6))):
                left, width, top = between(-0.2, 1), between(0.1, 0.4), between(0, height)
                mask = self.box(left, width, top, height + 0.05)[..., None]
                color = self.vary(self.pick(WALLS), 0.3) * daylight * between(0.4, 0.9)
                picture = picture * (1 - mask) + mask * color
        return picture, between(4, 10)

    def _plant(self, picture: np.ndarray, height: float, daylight: float) -> None:
        """Draw trees and hedges as discs, in place."""
        between, size = self.between, self.size
        leaves = self.pick(LEAVES)
        count = int(self.rng.integers(30, 110))
        low, high = between(-0.2, height), height + between(0.02, 0.3)
        for _ in range(count):
            x, y = int(between(-0.1, 1.1) * size), int(between(low, high) * size)
            radius = int(between(0.02, 0.09) * size)
            picture[disc((size, size), x, y, radius)] = self.vary(leaves, 0.45, 0.08) * daylight

    def city(self) -> tuple[np.ndarray, float]:
        """Return a dark street with lamps out of focus, and its blur."""
        between, size = self.between, self.size
        picture = self.full(self.vary(linear(NIGHT), 0.4, 0.08)) * (1.2 - 0.6 * self.y)[..., None]
        unevenness = enlarge(np.exp(self.rng.normal(0, 0.5, (5, 5))), size)
        picture = blur(picture * np.clip(unevenness, 0.3, 2.5)[..., None], 6)
        for _ in range(int(self.rng.integers(8, 34))):
            x, y = int(between(0, size)), int(between(0, 0.8 * size))
            lamp = disc((size, size), x, y, int(between(0.015, 0.06) * size)).astype(np.float32)
            picture = picture + lamp[..., None] * self.pick(LAMPS) * between(0.1, 0.6)
        return picture, between(1.2, 3)


@functools.lru_cache(maxsize=8)
def paint_backdrop(kind: str, seed: int, size: int = SIZE) -> np.ndarray:
    """Return a backdrop, linear RGB, float32 (size, size, 3), not to be written to.

    Args:
        kind: one of `KINDS`.
        seed: of its details.
        size: side in px.
    """
    painter = Painter(seed, size)
    picture, sigma = getattr(painter, kind)()
    picture = np.clip(blur(picture, sigma * size / SIZE), DARKEST, BRIGHTEST)
    picture.setflags(write=False)
    return picture
