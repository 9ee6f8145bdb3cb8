"""What a portrait is made of: plain data that `sample` draws and the renderer reads.

Scalars without a unit lie in 0..1; angles are degrees, lengths world units (the eyes are 0.6155 apart), colours linear
RGB, numbers of brows and lashes start at 1, all others at 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

Color = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Hair:
    """How hair grows; `hair.HairGrower` says what each number does to the strands.

    Attributes:
        name: style, such as ``bob``.
        kind: ``strands``, ``buzz`` (painted on the scalp) or ``bald``.
        mode: how it is combed: part, back, knot, forward, side, up, radial.
        part: x of the parting.
        sweep, forward: sideways and frontal pull of the comb, signed.
        knot: where tied hair meets.
        count, points, clumps: strands, points of each, and locks that share a guide (0: none).
        top_len, side_len, len_noise: lengths and their relative spread.
        volume, lift: distance from the skull; how far strands stand up at the root.
        comb, stiff, gravity, inward: weights of what bends a strand.
        short: the nape is cropped and strands stop above it.
        width, taper, messy, clump, frizz: shape and disorder of the strands.
        wave, wave_len: amplitude and length of waves.
        cut_y, cut_tilt: height of a straight cut (None: none) and how it rises towards the front.
        fringe, fringe_gap: density of a fringe and its distance from the brows.
        tail, tail_size, tail_side: ``ponytail``, ``bun`` or None, its length or radius, and its lean.
        over_eye: some strands hang over one eye.
        face_free: share of half the face's width that stays free of long hair.
    """

    name: str
    kind: str = "strands"
    mode: str = "part"
    part: float = 0.0
    sweep: float = 0.0
    forward: float = 0.0
    knot: tuple[float, float, float] = (0.0, 7.9, -0.72)
    count: int = 2300
    points: int = 14
    clumps: int = 170
    top_len: float = 2.3
    side_len: float = 1.9
    len_noise: float = 0.06
    volume: float = 0.08
    lift: float = 0.25
    comb: float = 0.2
    stiff: float = 0.9
    gravity: float = 0.6
    inward: float = 0.1
    short: bool = False
    taper: float = 0.75
    messy: float = 0.04
    clump: float = 0.5
    wave: float = 0.0
    wave_len: float = 0.8
    frizz: float = 0.006
    cut_y: float | None = None
    cut_tilt: float = 0.0
    fringe: float = 0.0
    fringe_gap: float = 0.0
    width: float = 0.030
    tail: str | None = None
    tail_size: float = 1.0
    tail_side: float = 0.0
    over_eye: bool = False
    face_free: float = 0.9


@dataclasses.dataclass(frozen=True)
class Beard:
    """Where a beard grows (sides, chin, moustache), its strands, and how strongly stubble is painted below them."""

    kind: str = "none"
    sides: float = 0.0
    chin: float = 0.0
    moustache: float = 0.0
    length: float = 0.0
    count: int = 0
    paint: float = 0.0
    cap: float = 0.0
    width: float = 0.0065


@dataclasses.dataclass(frozen=True)
class Glasses:
    """Spectacles: half width and half height in eye distances, squareness, thickness, colour, dark lenses or not."""

    width: float
    height: float
    squareness: float
    thickness: float
    color: Color
    sun: bool


@dataclasses.dataclass(frozen=True)
class Light:
    """A light rig.

    Attributes:
        kind: what it imitates.
        directions: 10 directions towards the lights: 3 samples of the key, 1 rim, 5 of the dome, 1 fill.
        colors: their linear colours.
        ground: light from below.
    """

    kind: str
    directions: tuple[Color, ...]
    colors: tuple[Color, ...]
    ground: Color


@dataclasses.dataclass(frozen=True)
class Backdrop:
    """What is behind: a kind of `backdrop.KINDS` with the seed of its details, or ``plain`` with a colour."""

    kind: str
    seed: int = 0
    color: Color = (0.24, 0.24, 0.24)


@dataclasses.dataclass(frozen=True)
class Skin:
    """Colour and surface of the skin.

    Attributes:
        melanin: 0 very light to 1 very dark.
        tone: mean albedo.
        textures, mix, contrast: three skin textures, their shares, and the strength of their detail.
        wrinkles, oil, freckles, blush: strengths.
        lip_color, lip_mix, lid_color, lid_mix: what is painted on lips and eyelids, and how strongly.
    """

    melanin: float
    tone: Color
    textures: tuple[int, int, int]
    mix: Color
    contrast: float
    wrinkles: float
    oil: float
    freckles: float
    blush: float
    lip_color: Color
    lip_mix: float
    lid_color: Color
    lid_mix: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """One portrait, described in full.

    Attributes:
        seed: what it was drawn from; also seeds hair, backdrop and sensor noise.
        female, gender, age: gender is 0 female to 1 male, age 0..1 as in MakeHuman (`sample.age_in_years` converts).
        ancestry: shares of MakeHuman's three macro targets (caucasian, asian, african).
        muscle, weight: build.
        shape: detail target -> amount.
        mouth_ratio: eye-to-mouth distance over the distance of the eyes.
        expression, face_units: its name, and face unit -> amount.
        yaw, pitch, roll, body_yaw: pose in degrees.
        camera_distance: of the camera from the face.
        hair_name, hair_color, tip_color, grey: name and colours of the hair, and the share of grey.
        brow, brow_color, brow_mix, brow_lift: number, colour, density, and lift of the inner end.
        lash, lash_mix: number and density.
        iris, iris_tint: number and tint of the eye texture.
        garment, garment_color, garment_mix: number, colour, and how much of its texture shows.
        exposure: factor on all light.
    """

    seed: int
    female: bool
    gender: float
    age: float
    ancestry: Color
    muscle: float
    weight: float
    shape: dict[str, float]
    mouth_ratio: float
    expression: str
    face_units: dict[str, float]
    yaw: float
    pitch: float
    roll: float
    body_yaw: float
    camera_distance: float
    skin: Skin
    hair_name: str
    hair_color: Color
    tip_color: Color
    grey: float
    hair: Hair
    brow: int
    brow_color: Color
    brow_mix: float
    brow_lift: float
    lash: int
    lash_mix: float
    iris: int
    iris_tint: Color
    beard: Beard
    beard_color: Color
    garment: int
    garment_color: Color
    garment_mix: float
    glasses: Glasses | None
    light: Light
    backdrop: Backdrop
    exposure: float

    def but(self, **changes: Any) -> Scene:
        """Return the scene with some fields changed."""
        return dataclasses.replace(self, **changes)
