"""Heads as something else than photographs: toon, comic, clay, pencil; and their label maps.

Pictures are uint8 sRGB (H, W, 3) of the renderer's size; `Buffers` are `SUPERSAMPLING` times larger, and the drawing
is done at their size.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from limner.synth.film import SUPERSAMPLING
from limner.synth.filters import (
    bilateral,
    blur,
    close_gaps,
    enlarge,
    enlarge_pixels,
    hsv_to_rgb,
    luminance,
    majority,
    mean_filter,
    median,
    rgb_to_hsv,
    shrink,
)
from limner.synth.geometry import smoothstep
from limner.synth.parts import LABELS
from limner.synth.render import Buffers, Renderer, Rendering
from limner.synth.scene import Scene

HAIR_LABELS = (LABELS["beard"], LABELS["hair"])
SKIN_LABELS = (LABELS["skin"], LABELS["ears"])
# Where the colours of the toon look stay as they are.
DETAILED_LABELS = tuple(
    LABELS[name] for name in ("background", "eye_left", "eye_right", "mouth_inside", "glasses")
)
UNSHADED_LABELS = tuple(LABELS[name] for name in ("brows", "eye_left", "eye_right", "mouth_inside"))
FEWEST_PIXELS = 20  # of an area that gets a colour of its own
# Detail target -> amount: large eyes, a small nose, a pointed chin.
TOON_SHAPE = {
    "l-eye-scale-incr": 1.15,
    "r-eye-scale-incr": 1.15,
    "l-eye-height2-incr": 0.55,
    "r-eye-height2-incr": 0.55,
    "nose-scale-horiz-decr": 0.6,
    "nose-volume-decr": 0.6,
    "nose-scale-depth-decr": 0.5,
    "chin-triangle": 0.45,
    "head-oval": 0.5,
    "eyebrows-trans-up": 0.3,
}
TOON_SHADOW, TOON_INK, TOON_LIT_FROM = np.array([0.76, 0.68, 0.76]), np.array([0.13, 0.09, 0.10]), 0.27
CLAY, CLAY_GROUND = (0.56, 0.50, 0.46), (0.26, 0.245, 0.235)  # linear
COMIC_STEPS, COMIC_TONES = (0.22, 0.44, 0.68), np.array([0.15, 0.45, 0.73, 0.96])
COMIC_SATURATIONS, COMIC_HUES = 8, 30  # how many there are
DOT_FREQUENCY = 0.55  # of halftone dots, radians per px
PAPER = np.array([1.0, 0.985, 0.955])
STROKE_PX, PENCIL_STREAM = 15, 21
# Colours of label maps.
PALETTE = np.zeros((256, 3), np.uint8)
PALETTE[:15] = [
    (0, 0, 0),
    (204, 160, 120),
    (90, 50, 30),
    (0, 0, 0),
    (60, 120, 255),
    (60, 200, 255),
    (255, 255, 255),
    (220, 40, 60),
    (255, 160, 60),
    (70, 70, 90),
    (120, 40, 160),
    (0, 0, 0),
    (40, 160, 90),
    (0, 255, 200),
    (150, 150, 60),
]


def label_map(buffers: Buffers) -> np.ndarray:
    """Return what each pixel shows, uint8 (H, W), values of `parts.LABELS`."""
    return np.ascontiguousarray(buffers.labels[::SUPERSAMPLING, ::SUPERSAMPLING])


def find_areas(labels: np.ndarray) -> np.ndarray:
    """Return labels with hair as closed areas, so that single strands draw no outlines."""
    hair = majority(close_gaps(np.isin(labels, HAIR_LABELS), 5), 7)
    areas = median(labels, 3).astype(int)
    areas[hair] = LABELS["hair"]
    return np.where(~hair & np.isin(areas, HAIR_LABELS), LABELS["skin"], areas)


def find_outlines(normals: np.ndarray, areas: np.ndarray, width: int = 2) -> np.ndarray:
    """Return the strength of lines (H, W), 0..1, along creases and borders of areas."""
    normals = blur(normals, 0.8)
    normals = normals / (np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-6)
    lines = np.zeros(areas.shape, np.float32)
    bald = (areas > 0) & ~np.isin(areas, HAIR_LABELS)  # hair has no creases
    for shift in ((0, width), (width, 0)):
        bend = 1 - (normals * np.roll(normals, shift, (0, 1))).sum(-1)
        crease = np.where(bald & np.roll(bald, shift, (0, 1)), smoothstep(bend, 0.2, 0.55), 0) * 0.8
        border = (areas != np.roll(areas, shift, (0, 1))).astype(np.float32)
        lines = np.maximum(lines, np.maximum(crease, border))
    lines[:width], lines[:, :width] = 0, 0
    return lines


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def make_toon(renderer: Renderer, scene: Scene) -> np.ndarray:
    """Return a flatly shaded cartoon with large eyes; its head is another shape, so it is rendered anew."""
    skin = scene.skin
    smooth = scene.but(skin=dataclasses.replace(skin, wrinkles=0.0, freckles=0.0))
    rendering = renderer.render(smooth, exaggeration=TOON_SHAPE, buffers=True)
    buffers = rendering.buffers
    assert buffers is not None
    areas = find_areas(buffers.labels)
    color = _brighten(_flatten(buffers, areas), areas)
    # Two tones: lit and shaded.
    lit = blur((blur(buffers.key_light, 2) > TOON_LIT_FROM).astype(np.float32), 1.0)[..., None]
    shade = lit + (1 - lit) * TOON_SHADOW
    shade[np.isin(areas, UNSHADED_LABELS)] = 1
    tone = np.clip(rendering.backdrop.mean((0, 1)), 0.02, 1) ** 0.45
    rows = np.linspace(0, 1, len(areas))[:, None, None]
    ground = np.clip(tone * (1.15 - 0.3 * rows), 0, 1)
    color = np.where((areas > 0)[..., None], color * shade, ground)
    ink = np.clip(blur(find_outlines(buffers.normals, areas), 0.8) * 1.1, 0, 1)[..., None] * 0.85
    return _to_bytes(shrink((color * (1 - ink) + TOON_INK * ink).astype(np.float32), SUPERSAMPLING))


def _flatten(buffers: Buffers, areas: np.ndarray) -> np.ndarray:
    """Return albedo with one colour per area, hair in a few bands along its locks."""
    filled = (buffers.labels > 0)[..., None]
    albedo = np.where(filled, buffers.albedo, mean_filter(buffers.albedo, 5))
    color = albedo.copy()
    for label in np.unique(areas):
        area = (areas == label) & filled[..., 0]
        if label in DETAILED_LABELS or area.sum() < FEWEST_PIXELS:
            continue
        middle = np.median(albedo[area], 0)
        if label in HAIR_LABELS:
            lightness = bilateral(blur(albedo.mean(-1), 2.2), 4, sigma_value=0.08, sigma_px=6)
            relative = lightness / (np.median(lightness[area]) + 1e-3) - 1
            bands = np.clip(np.round(relative * 2.6) / 2.6, -0.4, 0.8)
            whole = areas == label
            color[whole] = middle * (1.12 + 0.6 * bands[whole])[:, None]
        elif label == LABELS["skin"]:
            color[area] = middle * 0.9 + blur(albedo, 4)[area] * 0.1
        elif label == LABELS["clothes"]:
            color[area] = middle * 0.5 + albedo[area] * 0.5
        else:
            color[area] = middle
    return color


def _brighten(color: np.ndarray, areas: np.ndarray) -> np.ndarray:
    hsv = rgb_to_hsv(np.clip(color, 0, 1))
    skin = np.isin(areas, SKIN_LABELS)
    hsv[..., 1] = np.clip(np.where(skin, hsv[..., 1] * 0.84, hsv[..., 1] * 1.12 + 0.02), 0, 1)
    hsv[..., 2] = np.clip(hsv[..., 2] * np.where(skin, 1.16, 1.10) + 0.06, 0, 1)
    return hsv_to_rgb(hsv)


def make_clay(renderer: Renderer, scene: Scene) -> np.ndarray:
    """Return an unpainted bust of clay before a plain ground."""
    skin = scene.skin
    plain = scene.but(
        skin=dataclasses.replace(skin, freckles=0.0), exposure=float(np.clip(scene.exposure, 0.8, 1.0))
    )
    return renderer.render(plain, clay=CLAY, ground=CLAY_GROUND).pixels


def make_comic(rendering: Rendering) -> np.ndarray:
    """Return a print in few tones with ink lines and halftone shadows."""
    buffers = rendering.buffers
    assert buffers is not None
    areas = find_areas(buffers.labels)
    side, face = len(areas), areas > 0
    # Smoothed at the picture's size, which is a quarter of the work, then drawn at the larger one.
    smooth = rendering.pixels / np.float32(255)
    for _ in range(2):
        smooth = bilateral(smooth, 2, sigma_value=0.15, sigma_px=4.5)
    smooth = enlarge_pixels(_to_bytes(smooth), side) / np.float32(255)
    hsv = rgb_to_hsv(smooth)
    tone = np.digitize(hsv[..., 2], COMIC_STEPS)
    hsv[..., 2] = COMIC_TONES[tone]
    hsv[..., 1] = np.clip(np.round(hsv[..., 1] * 1.08 * COMIC_SATURATIONS) / COMIC_SATURATIONS, 0, 1)
    hsv[..., 0] = np.round(hsv[..., 0] * COMIC_HUES) / COMIC_HUES % 1
    color = hsv_to_rgb(hsv)
    rows, columns = np.mgrid[0:side, 0:side]
    dots = np.sin((columns + rows) * DOT_FREQUENCY) * np.sin((columns - rows) * DOT_FREQUENCY)
    ground = np.median(smooth[~face], 0) if (~face).any() else np.ones(3)
    printed = np.clip(ground * 1.15 + 0.08, 0, 1) * (1 - 0.12 * (dots > 0.3))[..., None]
    color = np.where(face[..., None], color, printed)
    color[(dots > 0.25) & (tone == 1) & face] *= 0.74
    # Ink where a difference of Gaussians falls, and along outlines.
    grey = luminance(smooth)
    falling = blur(grey, 1.2) - 0.985 * blur(grey, 2.2)
    ink = (1 - smoothstep(falling, -0.008, 0.002)) * face * 0.9
    ink = blur(np.maximum(ink, find_outlines(buffers.normals, areas)), 0.6)[..., None]
    return _to_bytes(shrink((color * (1 - ink)).astype(np.float32), SUPERSAMPLING))


def make_pencil(rendering: Rendering) -> np.ndarray:
    """Return a drawing in graphite: lines, hatched tones, the grain of paper."""
    buffers = rendering.buffers
    assert buffers is not None
    areas = find_areas(buffers.labels)
    side, face = len(areas), areas > 0
    grey = enlarge(luminance(rendering.pixels / np.float32(255)), side)
    grey = np.where(face, grey, 0.97 * 0.6 + 0.4 * grey).astype(np.float32)
    lines = np.clip(grey / np.clip(blur(grey, 5), 0.02, 1), 0, 1) ** 3.0
    rng = np.random.default_rng([rendering.scene.seed, PENCIL_STREAM])
    noise = rng.random((side, side)).astype(np.float32)
    strokes = _smear(blur(noise, 0.6))
    tone = np.clip(0.35 + 0.75 * smoothstep(grey + 0.55 * (strokes - 0.5), 0.04, 0.6), 0, 1)
    tone = np.where(face, tone, 1)
    drawn = np.minimum(lines * 0.55 + 0.45 * lines * tone, 1) * tone**0.5
    drawn = drawn * (1 - 0.7 * blur(find_outlines(buffers.normals, areas), 0.8))
    drawn = np.clip(drawn, 0, 1) * (0.95 + 0.03 * blur(noise, 1.5))
    return _to_bytes(shrink(drawn.astype(np.float32), SUPERSAMPLING)[..., None] * PAPER)


def _smear(values: np.ndarray) -> np.ndarray:
    """Return ``values`` drawn out along a diagonal, from 0 to 1."""
    reach = STROKE_PX // 2
    padded = np.pad(values, reach, "reflect")
    total = np.zeros_like(values)
    height, width = values.shape
    for i in range(STROKE_PX):
        total += padded[i : i + height, STROKE_PX - 1 - i : STROKE_PX - 1 - i + width]
    return (total - total.min()) / (total.max() - total.min())
