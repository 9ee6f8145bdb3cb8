"""A seed becomes a scene: who it is, how they look, how they are lit.

The order in which numbers are drawn is part of what a seed means: new draws go behind all others.
"""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from limner.synth.faceshape import draw_expression, draw_shape
from limner.synth.hairstyles import draw_beard, draw_hair
from limner.synth.lighting import draw_lighting, to_color
from limner.synth.scene import Beard, Color, Glasses, Scene, Skin

GAMMA = 2.2  # the plain power law that the renderer takes for sRGB
AGE_SCALE, AGE_YEARS = (0.19, 0.3, 0.5, 0.75, 1.0), (9, 14, 25, 52, 82)
CHILD_BELOW = 0.4  # ages on MakeHuman's scale
# Share of all people up to this age group, and its range of ages: children, young, middle-aged, old.
AGES = ((0.10, 0.24, 0.38), (0.60, 0.42, 0.56), (0.84, 0.56, 0.74), (1.0, 0.74, 0.96))
ANCESTRY_MIX = (0.35, 0.30, 0.30)  # parameters of a Dirichlet distribution: mostly one, often mixed
MELANIN = ((0, 0.40), (0.12, 0.62), (0.64, 1.05))  # range per ancestry
# Skin colours from very light to very dark, sRGB; in between, the logarithm of the linear colour is interpolated.
TONES = (
    (231, 186, 165),
    (225, 175, 150),
    (216, 161, 132),
    (200, 141, 110),
    (172, 114, 84),
    (138, 88, 64),
    (104, 65, 48),
    (74, 46, 35),
)
# Skin textures of the pack by number, and who they suit.
SKINS_CHILD, SKINS_FEMALE, SKINS_MALE, SKINS_DARK = (0, 4), (0, 4, 6), (1, 2, 3, 5, 7), (8, 9, 10)
HAIR_COLORS: dict[str, Color] = {
    "black": (0.014, 0.012, 0.011),
    "dark_brown": (0.036, 0.021, 0.013),
    "brown": (0.075, 0.042, 0.024),
    "light_brown": (0.15, 0.088, 0.048),
    "blonde": (0.34, 0.225, 0.115),
    "pale_blonde": (0.50, 0.38, 0.235),
    "red": (0.21, 0.066, 0.026),
    "auburn": (0.105, 0.034, 0.018),
    "grey": (0.30, 0.29, 0.28),
    "white": (0.60, 0.59, 0.57),
}
# Shares of `HAIR_COLORS` per ancestry.
HAIR_SHARES = (
    (0.10, 0.20, 0.23, 0.17, 0.14, 0.06, 0.04, 0.06, 0, 0),
    (0.62, 0.27, 0.08, 0.02, 0.0, 0, 0, 0.01, 0, 0),
    (0.70, 0.22, 0.06, 0.01, 0, 0, 0, 0.01, 0, 0),
)
DYED_HUES = (0.9, 0.95, 0.58, 0.52, 0.78)
SHARE_DYED, SHARE_MADE_UP, SHARE_LIDS, SHARE_TIPS = 0.025, 0.5, 0.6, 0.28
BROWS_FEMALE, BROWS_MALE, LASHES = (2, 3, 4, 6, 7, 10, 11, 12), (1, 3, 5, 8, 9, 12), 4
CLOTHES_FEMALE, CLOTHES_MALE = (0, 1, 2, 3, 4, 6), (3, 4, 5, 6, 7, 8)
BROWN_IRISES = (2, 3)
IRISES = 9
SHARE_GLASSES, SHARE_GLASSES_CHILD, SHARE_SUNGLASSES = 0.12, 0.06, 0.08
Uniform = Callable[[float, float], float]


def age_in_years(age: float) -> float:
    """Return years, roughly, for an age on MakeHuman's scale of 0..1."""
    return float(np.interp(age, AGE_SCALE, AGE_YEARS))


def skin_tone(melanin: float) -> np.ndarray:
    """Return the mean linear albedo (3,) of a skin, ``melanin`` 0 to 1."""
    tones = np.log((np.array(TONES) / 255.0) ** GAMMA)
    x = np.clip(melanin, 0, 1) * (len(tones) - 1)
    i = min(int(x), len(tones) - 2)
    return np.exp(tones[i] * (1 - (x - i)) + tones[i + 1] * (x - i))


@dataclasses.dataclass(frozen=True)
class _Person:
    """What the rest of a scene depends on."""

    female: bool
    age: float
    ancestry: np.ndarray
    melanin: float = 0.0
    tone: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))

    @property
    def child(self) -> bool:
        return self.age < CHILD_BELOW

    @property
    def old(self) -> float:
        """0 for the young to 1 for the old."""
        return max(0.0, self.age - 0.5) * 2


def sample_scene(seed: int, opposites: Mapping[str, tuple[str, str]]) -> Scene:
    """Return the scene of a seed.

    Args:
        seed: any whole number from 0.
        opposites: what `Assets.opposites` returns; the face's shape depends on which properties there are.
    """
    rng = np.random.default_rng(seed)

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    female = bool(rng.random() < 0.5)
    gender = u(0, 0.10) if female else u(0.80, 1.0)
    group = rng.random()
    age = next(u(low, high) for share, low, high in AGES if group < share)
    person = _Person(female, age, rng.dirichlet(ANCESTRY_MIX))
    muscle = float(np.clip(rng.normal(0.42 if female else 0.52, 0.12), 0.1, 0.9))
    weight = float(np.clip(rng.normal(0.42 if female else 0.46, 0.12), 0.1, 0.85))
    shape = draw_shape(rng, opposites, female=female, child=person.child)
    mouth_ratio = float(np.clip(rng.normal(0.965, 0.035), 0.88, 1.05))
    expression, face_units = draw_expression(rng)
    yaw = float(np.clip(rng.normal(0, 11) if rng.random() < 0.85 else rng.normal(0, 24), -40, 40))
    pitch = float(np.clip(rng.normal(0, 5), -14, 14))
    roll = float(np.clip(rng.normal(0, 3), -9, 9))
    body_yaw = yaw * u(0.1, 0.8)
    camera_distance = u(10, 22)
    skin, person = _draw_skin(rng, u, person)
    hair = _draw_hair_and_eyes(rng, u, person)
    beard = draw_beard(rng) if not female and age > 0.46 else Beard()
    beard_color = to_color(hair.pop("natural") * u(0.75, 1.05))
    clothes = _draw_clothes(rng, u, person)
    light, backdrop = draw_lighting(rng)
    exposure = float(np.exp(rng.normal(-0.06, 0.10)) * (0.94 + 0.34 * person.melanin))
    return Scene(
        seed=int(seed),
        female=female,
        gender=gender,
        age=age,
        ancestry=to_color(person.ancestry),
        muscle=muscle,
        weight=weight,
        shape=shape,
        mouth_ratio=mouth_ratio,
        expression=expression,
        face_units=face_units,
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        body_yaw=body_yaw,
        camera_distance=camera_distance,
        skin=skin,
        beard=beard,
        beard_color=beard_color,
        light=light,
        backdrop=backdrop,
        exposure=exposure,
        **hair,
        **clothes,
    )


def _draw_skin(rng: np.random.Generator, u: Uniform, person: _Person) -> tuple[Skin, _Person]:
    """Return the skin, and the person with its colour."""
    female, child, old = person.female, person.child, person.old
    melanin = float(np.clip(person.ancestry @ np.array([u(*span) for span in MELANIN]), 0, 1))
    noise = rng.normal(0, 0.05) + np.array([rng.normal(0.02, 0.025), 0, rng.normal(0, 0.04)])
    tone = skin_tone(melanin) * np.exp(noise)
    if child:
        pool: tuple[int, ...] = SKINS_CHILD
    elif female:
        pool = SKINS_FEMALE + ((6, 6) if old > 0.3 else (0, 4)) + ((8,) if melanin > 0.62 else ())
    elif melanin < 0.55:
        pool = SKINS_MALE + ((3, 7) if old > 0.3 else (1, 5))
    else:
        pool = SKINS_MALE[:2] + SKINS_DARK if melanin < 0.72 else SKINS_DARK
    first, second, third = (int(i) for i in rng.choice(pool, 3))
    mix = rng.dirichlet([0.8] * 3)
    contrast = u(0.80, 1.02) * (0.92 if female or child else 1.0) * (0.9 if melanin > 0.7 else 1.0)
    wrinkles = 0.0 if child else float(np.clip((person.age - 0.52) * u(0.8, 2.4) - u(0, 0.15), -0.2, 1.0))
    oil = u(0.35, 0.8)
    freckles = u(0.2, 0.75) if rng.random() < 0.10 and melanin < 0.35 else 0.0
    blush = u(0.2, 1.1)
    lips = tone * (np.array([1.0, 0.52, 0.58]) if female else np.array([0.98, 0.62, 0.66]))
    lip_mix = u(0.45, 0.75) if female else u(0.3, 0.6)
    made_up = female and not child and rng.random() < SHARE_MADE_UP
    if made_up:
        lipstick = np.array(colorsys.hsv_to_rgb(u(0.94, 1.03) % 1, u(0.55, 0.8), u(0.5, 0.8))) ** GAMMA
        lips = lips * 0.45 + lipstick * 0.55 * (0.5 + 0.9 * tone.mean())
        lip_mix = u(0.45, 0.85)
    lids = tone * np.array([u(0.3, 0.6), u(0.25, 0.45), u(0.25, 0.5)])
    lid_mix = u(0.1, 0.4) if made_up and rng.random() < SHARE_LIDS else 0.0
    skin = Skin(
        melanin=melanin,
        tone=to_color(tone),
        textures=(first, second, third),
        mix=to_color(mix),
        contrast=contrast,
        wrinkles=wrinkles,
        oil=oil,
        freckles=freckles,
        blush=blush,
        lip_color=to_color(lips),
        lip_mix=lip_mix,
        lid_color=to_color(lids),
        lid_mix=lid_mix,
    )
    return skin, dataclasses.replace(person, melanin=melanin, tone=tone)


def _draw_hair_and_eyes(rng: np.random.Generator, u: Uniform, person: _Person) -> dict:
    """Return fields of the scene for hair, brows, lashes and irises, and ``natural``: the colour before dyeing."""
    female, child, old, tone = person.female, person.child, person.old, person.tone
    shares = person.ancestry @ np.array(HAIR_SHARES)
    name = list(HAIR_COLORS)[rng.choice(len(HAIR_COLORS), p=shares / shares.sum())]
    grey = 0.0
    if old > 0.3 and rng.random() < 0.75:
        grey = float(np.clip((old - 0.25) * u(0, 2.2), 0, 0.9))
    if old > 0.55 and rng.random() < 0.55 * old:
        name, grey = ("grey" if rng.random() < 0.6 else "white"), 0.0
    color = np.array(HAIR_COLORS[name]) * np.exp(rng.normal(0, 0.16)) * np.exp(rng.normal(0, 0.04, 3))
    natural = color.copy()
    if rng.random() < SHARE_DYED and not child and old < 0.6:
        name = "dyed"
        hue = rng.choice(DYED_HUES)
        color = np.array(colorsys.hsv_to_rgb(hue, u(0.45, 0.7), u(0.35, 0.6))) ** GAMMA
    tips = color * u(1.3, 2.6) + 0.01 if female and rng.random() < SHARE_TIPS else color * u(1.0, 1.2)
    hair = draw_hair(rng, female=female, child=child, old=old, coily=person.ancestry[2] > 0.5)
    brow = int(rng.choice(BROWS_FEMALE if female else BROWS_MALE))
    brow_color = np.clip(natural * u(0.55, 0.95), 0.008, 0.3 if name == "white" else 0.16)
    if female:
        brow_color = brow_color * 0.8 + tone * 0.12
    brow_mix = u(0.45, 0.8) if female else u(0.8, 1.35)
    brow_lift = u(0.015, 0.05) if female or child else u(0.0, 0.035)
    lash = int(rng.integers(1, LASHES + 1))
    lash_mix = u(0.75, 1.05) if female else u(0.4, 0.7)
    light_eyes = max(0.0, 0.5 - person.melanin) * person.ancestry[0]
    irises = light_eyes * np.array([0.5, 0.4, 0, 0, 0.25, 0.5, 0.4, 0.12, 0.3])
    irises[list(BROWN_IRISES)] = 0.9 + 2 * person.melanin, 0.4 * (1 - person.melanin) ** 2
    iris = int(rng.choice(IRISES, p=irises / irises.sum()))
    iris_tint = np.exp(rng.normal(0, 0.02, 3)) * u(0.85, 1.0)
    if iris in BROWN_IRISES:
        iris_tint = iris_tint * np.array([0.80, 0.82, 0.68])
    return {
        "hair_name": name,
        "hair_color": to_color(color),
        "tip_color": to_color(np.clip(tips, 0, 0.65)),
        "grey": grey,
        "hair": hair,
        "brow": brow,
        "brow_color": to_color(brow_color),
        "brow_mix": brow_mix,
        "brow_lift": brow_lift,
        "lash": lash,
        "lash_mix": lash_mix,
        "iris": iris,
        "iris_tint": to_color(iris_tint),
        "natural": natural,
    }


def _draw_clothes(rng: np.random.Generator, u: Uniform, person: _Person) -> dict:
    """Return fields of the scene for garment and spectacles."""
    hue = rng.random()
    saturation, value = u(0, 0.55), u(0.08, 0.85)
    garment = int(rng.choice(CLOTHES_FEMALE if person.female else CLOTHES_MALE))
    color = np.array(colorsys.hsv_to_rgb(hue, saturation, value)) ** 2.0 * 0.85 + 0.01
    mix = u(0.4, 0.9)
    glasses = None
    if rng.random() < (SHARE_GLASSES_CHILD if person.child else SHARE_GLASSES * (1 + person.old)):
        dark = rng.random() < 0.7
        frame = (
            np.array(colorsys.hsv_to_rgb(u(0, 0.12), u(0.2, 0.7), u(0.03, 0.3) if dark else u(0.4, 0.7))) ** 2
        )
        glasses = Glasses(
            width=u(0.33, 0.39),
            height=u(0.22, 0.33),
            squareness=u(2, 4.2),
            thickness=u(0.011, 0.024),
            color=to_color(frame),
            sun=bool(rng.random() < SHARE_SUNGLASSES),
        )
    return {
        "garment": garment,
        "garment_color": to_color(color),
        "garment_mix": mix,
        "glasses": glasses,
    }
