"""Random light rigs with a backdrop that suits them.

The order in which numbers are drawn is part of what a seed means: new draws go behind all others.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from limner.synth.backdrop import KINDS
from limner.synth.scene import Backdrop, Color, Light, Scene

KEY_SAMPLES = 3  # of the key light, for soft shadows
DOME = (
    (0, 80, 1.0),
    (-62, 35, 0.9),
    (62, 35, 0.9),
    (0, 12, 0.9),
    (180, 40, 0.6),
)  # azimuth, elevation, weight
# Azimuth, elevation and strength of the ten lights of the frontal twin.
TWIN_LIGHTS = (
    (-35, 30, 0.52),
    (35, 30, 0.52),
    (0, 35, 0.45),
    (150, 30, 0.1),
    (0, 80, 0.42),
    (-62, 35, 0.40),
    (62, 35, 0.40),
    (0, 12, 0.40),
    (180, 40, 0.25),
    (0, 5, 0.25),
)


@dataclasses.dataclass(frozen=True)
class Rig:
    """What a kind of light is like.

    Attributes:
        share: of all scenes.
        spread_deg: of the samples of the key light.
        power, ambient: of the key light and the dome.
        warmth, sky_warmth: means of the colour temperature, warm above 0.
        backdrops: shares of `backdrop.KINDS`.
    """

    share: float
    spread_deg: float
    power: float
    ambient: float
    warmth: float
    sky_warmth: float
    backdrops: tuple[float, float, float, float]


RIGS = {
    "studio": Rig(0.30, 15, 2.3, 0.66, 0.06, 0.05, (0.75, 0.2, 0, 0.05)),
    "window": Rig(0.26, 20, 2.3, 0.58, 0.06, -0.06, (0.05, 0.85, 0.05, 0.05)),
    "sun": Rig(0.14, 4, 2.9, 0.70, 0.18, -0.06, (0, 0.05, 0.95, 0)),
    "overcast": Rig(0.22, 32, 1.4, 1.10, -0.05, -0.06, (0.05, 0.15, 0.75, 0.05)),
    "evening": Rig(0.08, 12, 1.9, 0.45, 0.30, 0.05, (0.05, 0.35, 0.05, 0.55)),
}


def direction(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """Return the unit vector (3,) towards a light; azimuth 0 is in front of the face, positive towards +x."""
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    flat = math.cos(elevation)
    return np.array([math.sin(azimuth) * flat, math.sin(elevation), math.cos(azimuth) * flat])


def tint(warmth: float) -> np.ndarray:
    """Return the colour (3,) of a light from warm (positive) to cool (negative)."""
    return np.exp(np.array([0.42 * warmth, 0.02 * warmth, -0.50 * warmth]))


def draw_lighting(rng: np.random.Generator) -> tuple[Light, Backdrop]:
    """Return a light rig and the kind of backdrop behind it."""
    kind = str(rng.choice(list(RIGS), p=[rig.share for rig in RIGS.values()]))
    rig = RIGS[kind]
    ambient = rig.ambient * rng.uniform(0.7, 1.1)
    if kind == "overcast":
        key_azimuth = float(rng.uniform(-30, 30))
    else:
        key_azimuth = float(rng.uniform(10, 58)) * float(rng.choice([-1, 1]))
    key_elevation = float(rng.uniform(5, 25) if kind == "evening" else rng.uniform(15, 50))
    key_tint = tint(rng.normal(rig.warmth, 0.10))
    directions, colors = [], []
    for _ in range(KEY_SAMPLES):
        azimuth = key_azimuth + rng.normal(0, rig.spread_deg)
        directions.append(direction(azimuth, key_elevation + rng.normal(0, rig.spread_deg * 0.6)))
        colors.append(rig.power / KEY_SAMPLES * key_tint)
    # A rim light from behind on the other side, in about half of the scenes.
    rim = rng.uniform(0.2, 1.3) * (rng.random() < 0.55)
    azimuth = -np.sign(key_azimuth) * rng.uniform(115, 160)
    directions.append(direction(azimuth, rng.uniform(10, 50)))
    colors.append(rim * tint(rng.normal(0.05, 0.2)))
    sky = tint(rng.normal(rig.sky_warmth, 0.10))
    ground = tint(rng.normal(0.12, 0.08)) * rng.uniform(0.35, 0.6)
    for azimuth, elevation, weight in DOME:
        directions.append(direction(azimuth + rng.uniform(-12, 12), elevation))
        colors.append(ambient * weight * 0.42 * sky)
    azimuth = -np.sign(key_azimuth) * rng.uniform(15, 60)
    directions.append(direction(azimuth, rng.uniform(-5, 25)))
    strength = rng.uniform(0.15, 0.55)
    colors.append(strength * tint(rng.normal(0.03, 0.12)))
    backdrop = Backdrop(str(rng.choice(KINDS, p=rig.backdrops)), int(rng.integers(1 << 31)))
    light = Light(
        kind,
        tuple(map(to_color, directions)),
        tuple(map(to_color, colors)),
        to_color(ambient * 0.30 * ground),
    )
    return light, backdrop


def to_color(values: np.ndarray) -> Color:
    """Return three numbers as plain floats."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def frontal_twin(scene: Scene) -> Scene:
    """Return the same person seen from the front, relaxed, in even studio light before grey."""
    units = dict.fromkeys(("browInnerUp", "eyeWideLeft", "eyeWideRight"), 0.15)
    units |= dict.fromkeys(("mouthSmileLeft", "mouthSmileRight"), 0.12)
    light = Light(
        "twin",
        tuple(to_color(direction(azimuth, elevation)) for azimuth, elevation, _ in TWIN_LIGHTS),
        tuple((strength, strength, strength) for *_, strength in TWIN_LIGHTS),
        (0.26, 0.25, 0.24),
    )
    return scene.but(
        yaw=0.0,
        pitch=0.0,
        roll=0.0,
        body_yaw=0.0,
        camera_distance=16.0,
        expression="neutral",
        face_units=units,
        light=light,
        backdrop=Backdrop("plain"),
        exposure=1.0 + 0.22 * scene.skin.melanin,
    )
