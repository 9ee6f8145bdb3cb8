"""Random shapes and expressions of faces.

The order in which numbers are drawn is part of what a seed means: new draws go behind all others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SPREAD_FEMALE, SPREAD_MALE, SPREAD_LIMIT = 0.15, 0.18, 0.55
SPREAD_SMALL, SPREAD_MEDIUM, SPREAD_MORE = 0.08, 0.12, 1.15  # of some properties; the last is a factor
ASYMMETRY = 0.03
SMALL_PROPERTIES = ("neck", "mouth-trans", "nose-trans", "head-trans", "chin-jaw")
MEDIUM_PROPERTIES = ("head-age", "head-fat", "eyebrows", "l-eye-push")
VARIED_PROPERTIES = ("nose", "l-eye", "l-ear", "mouth")
# Properties that do not move forwards and backwards, where that would detach something.
FIXED_DEPTH = ("head-trans", "neck-trans", "mouth-trans", "nose-trans")
OUTLINES = ("oval", "round", "square", "rectangular", "triangular", "invertedtriangular", "diamond")
ANGULAR_OUTLINES = ("head-square", "head-rectangular", "head-triangular")
# Detail target -> range of what is added to it, around a pleasant, relaxed mean; a leading * stands for both sides.
BIAS_ALL = (
    ("head-scale-horiz-decr", 0.10, 0.45),
    ("eyebrows-angle-up", 0.05, 0.35),
    ("mouth-angles-up", 0.05, 0.30),
    ("*eye-height2-incr", 0.10, 0.35),
    ("*eye-scale-incr", 0.10, 0.30),
    ("*eye-trans-out", 0.15, 0.50),
    ("mouth-scale-horiz-incr", 0.0, 0.35),
)
BIAS_FEMALE = (
    ("chin-width-decr", 0.20, 0.55),
    ("chin-jaw-drop-decr", 0.0, 0.30),
    ("head-oval", 0.15, 0.45),
    ("chin-triangle", 0.05, 0.35),
    ("neck-scale-horiz-decr", 0.40, 0.80),
    ("neck-scale-depth-decr", 0.10, 0.40),
    ("mouth-upperlip-height-incr", 0.10, 0.40),
    ("mouth-lowerlip-height-incr", 0.10, 0.40),
    ("mouth-upperlip-volume-incr", 0.05, 0.35),
    ("mouth-lowerlip-volume-incr", 0.05, 0.35),
    ("mouth-cupidsbow-incr", 0.0, 0.35),
    ("nose-scale-horiz-decr", 0.10, 0.45),
    ("nose-volume-decr", 0.10, 0.40),
    ("nose-hump-decr", 0.0, 0.25),
    ("nose-point-up", 0.0, 0.30),
    ("head-fat-decr", 0.0, 0.25),
    ("chin-prominent-decr", 0.0, 0.25),
    ("*cheek-bones-incr", 0.0, 0.30),
    ("*eye-scale-incr", 0.05, 0.20),
    ("*eye-height2-incr", 0.05, 0.20),
    ("*eye-corner2-up", 0.0, 0.25),
)
BIAS_MALE = (
    ("chin-width-decr", 0.0, 0.25),
    ("head-oval", 0.05, 0.30),
    ("head-fat-decr", 0.05, 0.30),
    ("neck-scale-horiz-decr", 0.0, 0.30),
    ("chin-prominent-incr", 0.0, 0.35),
    ("chin-bones-incr", 0.0, 0.35),
    ("chin-jaw-drop-incr", 0.0, 0.35),
    ("nose-greek-incr", 0.0, 0.2),
)
BIAS_CHILD = (("*eye-scale-incr", 0.05, 0.20), ("nose-volume-decr", 0.1, 0.3))
EXPRESSIONS = {
    "neutral": 0.16,
    "gentle": 0.37,
    "smile": 0.16,
    "grin": 0.20,
    "laugh": 0.04,
    "surprise": 0.02,
    "sad": 0.01,
    "stern": 0.01,
    "pucker": 0.015,
    "smirk": 0.015,
}
# Expression -> what moves in which range, in the order of drawing; a trailing * stands for both sides.
FACE_UNITS: dict[str, tuple[tuple[str, float, float], ...]] = {
    "neutral": (("mouthSmile*", 0.14, 0.32),),
    "gentle": (("mouthSmile*", 0.35, 0.65), ("cheekSquint*", 0.05, 0.3)),
    "smile": (("mouthSmile*", 0.55, 0.85), ("cheekSquint*", 0.15, 0.45), ("eyeSquint*", 0, 0.2)),
    "grin": (
        ("mouthSmile*", 0.55, 0.85),
        ("mouthUpperUp*", 0.25, 0.5),
        ("mouthLowerDown*", 0.05, 0.3),
        ("jawOpen", 0.02, 0.10),
        ("cheekSquint*", 0.2, 0.5),
        ("eyeSquint*", 0.05, 0.25),
    ),
    "laugh": (
        ("mouthSmile*", 0.6, 0.9),
        ("jawOpen", 0.15, 0.32),
        ("mouthUpperUp*", 0.3, 0.5),
        ("cheekSquint*", 0.3, 0.6),
        ("eyeSquint*", 0.15, 0.4),
    ),
    "surprise": (
        ("jawOpen", 0.15, 0.45),
        ("browInnerUp", 0.5, 0.9),
        ("browOuterUp*", 0.4, 0.8),
        ("eyeWide*", 0.3, 0.7),
    ),
    "sad": (("mouthFrown*", 0.3, 0.6), ("browInnerUp", 0.4, 0.9)),
    "stern": (("browDown*", 0.3, 0.6), ("mouthPress*", 0, 0.4)),
    "pucker": (("mouthPucker", 0.3, 0.7),),
}
RELAXED_EYES = ("neutral", "gentle", "pucker", "sad", "smirk")
SIDES = ("Left", "Right")
GAZE_SPREAD = (0.14, 0.07)  # sideways, up and down
SHARE_PARTED_LIPS, SHARE_CLOSED_EYES = 0.3, 0.015


def draw_shape(
    rng: np.random.Generator, opposites: Mapping[str, tuple[str, str]], *, female: bool, child: bool
) -> dict[str, float]:
    """Return detail target -> amount: noise around a pleasant mean, the two sides nearly alike.

    Args:
        rng: source of random numbers.
        opposites: property -> (falling, rising) target, see `Assets.opposites`.
        female, child: whose face.
    """
    amounts: dict[str, float] = {}
    for stem, (falling, _) in opposites.items():
        if stem.startswith("r-"):
            continue  # goes with the left side
        value = float(np.clip(rng.normal(0, _spread(stem, female)), -SPREAD_LIMIT, SPREAD_LIMIT))
        if stem in FIXED_DEPTH and falling.endswith("-in"):
            value = 0.0
        paired = stem.startswith("l-")
        for side in [stem, "r-" + stem[2:]] if paired else [stem]:
            if side in opposites:
                own = value + (rng.normal(0, ASYMMETRY) if paired else 0)
                amounts[opposites[side][1 if own > 0 else 0]] = abs(own)
    for outline in rng.choice([f"head-{name}" for name in OUTLINES], 2, replace=False):
        if not (female and outline in ANGULAR_OUTLINES):
            amounts[str(outline)] = amounts.get(str(outline), 0) + float(abs(rng.normal(0, 0.28)))
    brows = (0.10, 0.40) if female or child else (0.0, 0.25)
    biases = (("eyebrows-trans-up", *brows), *BIAS_ALL, *(BIAS_FEMALE if female else BIAS_MALE))
    for name, low, high in biases + (BIAS_CHILD if child else ()):
        amount = float(rng.uniform(low, high))
        for side in ("l-" + name[1:], "r-" + name[1:]) if name.startswith("*") else (name,):
            amounts[side] = amounts.get(side, 0) + amount
    return amounts


def _spread(stem: str, female: bool) -> float:
    """Return the standard deviation of a property."""
    base = SPREAD_FEMALE if female else SPREAD_MALE
    if stem.startswith(SMALL_PROPERTIES):
        return SPREAD_SMALL
    if stem.startswith(MEDIUM_PROPERTIES):
        return SPREAD_MEDIUM
    return base * SPREAD_MORE if stem.startswith(VARIED_PROPERTIES) else base


def draw_expression(rng: np.random.Generator) -> tuple[str, dict[str, float]]:
    """Return the name of an expression and face unit -> amount, gaze and lids included."""
    amounts: dict[str, float] = {}

    def move(unit: str, low: float, high: float) -> None:
        amount = float(rng.uniform(low, high))
        if not unit.endswith("*"):
            amounts[unit] = amount
            return
        for side in SIDES:
            name = unit[:-1] + side
            amounts[name] = amounts.get(name, 0) + amount * float(rng.uniform(0.9, 1.08))

    shares = np.array(list(EXPRESSIONS.values()))
    name = str(rng.choice(list(EXPRESSIONS), p=shares / shares.sum()))
    move("browInnerUp", 0.10, 0.32)
    move("browOuterUp*", 0, 0.15)
    for unit in FACE_UNITS.get(name, ()):
        move(*unit)
    if name == "gentle" and rng.random() < SHARE_PARTED_LIPS:
        move("mouthUpperUp*", 0.05, 0.2)
        move("jawOpen", 0.01, 0.05)
    elif name == "stern":
        amounts["browInnerUp"] = 0.0
    elif name == "smirk":
        amount = float(rng.uniform(0.4, 0.8))
        amounts[str(rng.choice(["mouthSmileLeft", "mouthSmileRight"]))] = amount
    if name in RELAXED_EYES:
        move("eyeWide*", 0.08, 0.32)
    elif name in ("smile", "grin"):
        move("eyeWide*", 0.0, 0.2)
    closed = rng.random() < SHARE_CLOSED_EYES
    amounts["eyeBlinkLeft"] = amounts["eyeBlinkRight"] = float(
        rng.uniform(0.85, 1.0) if closed else rng.uniform(0, 0.05)
    )
    amounts.update(gaze_units(rng.normal(0, GAZE_SPREAD[0]), rng.normal(0, GAZE_SPREAD[1])))
    return name, amounts


def gaze_units(sideways: float, upwards: float) -> dict[str, float]:
    """Return the face units that turn both eyes; positive is to the subject's left, and up."""
    across = ("eyeLookOutLeft", "eyeLookInRight") if sideways > 0 else ("eyeLookInLeft", "eyeLookOutRight")
    vertical = "eyeLookUp" if upwards > 0 else "eyeLookDown"
    return {name: abs(float(sideways)) for name in across} | {
        vertical + side: abs(float(upwards)) for side in SIDES
    }
