"""Random hair styles and beards.

The order in which numbers are drawn is part of what a seed means: new draws go behind all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from limner.synth.scene import Beard, Hair

# Shares of styles by who wears them: women, men; for both with coily hair, old, or children.
STYLES: dict[tuple[bool, str], dict[str, float]] = {
    (True, "any"): {
        "long": 0.26,
        "wavy": 0.16,
        "bob": 0.15,
        "lob": 0.10,
        "ponytail": 0.11,
        "bun": 0.09,
        "pixie": 0.06,
        "curly": 0.07,
    },
    (True, "coily"): {
        "long": 0.12,
        "wavy": 0.10,
        "bob": 0.10,
        "ponytail": 0.10,
        "bun": 0.16,
        "pixie": 0.06,
        "curly": 0.18,
        "afro": 0.13,
        "buzz": 0.03,
        "twists": 0.04,
    },
    (True, "old"): {
        "long": 0.08,
        "wavy": 0.12,
        "bob": 0.28,
        "lob": 0.12,
        "bun": 0.10,
        "pixie": 0.18,
        "curly": 0.12,
    },
    (True, "child"): {"long": 0.30, "wavy": 0.14, "bob": 0.20, "ponytail": 0.22, "bun": 0.06, "curly": 0.08},
    (False, "any"): {
        "crop": 0.18,
        "side": 0.22,
        "quiff": 0.13,
        "back": 0.09,
        "textured": 0.14,
        "buzz": 0.10,
        "bald": 0.03,
        "curly_short": 0.06,
        "medium": 0.05,
    },
    (False, "coily"): {
        "buzz": 0.34,
        "afro_short": 0.26,
        "curly_short": 0.10,
        "bald": 0.09,
        "crop": 0.10,
        "twists": 0.06,
        "afro": 0.05,
    },
    (False, "old"): {"side": 0.28, "back": 0.18, "crop": 0.18, "bald": 0.18, "buzz": 0.12, "textured": 0.06},
    (False, "child"): {"crop": 0.30, "side": 0.25, "textured": 0.25, "buzz": 0.08, "medium": 0.12},
    (False, "coily child"): {"afro_short": 0.5, "buzz": 0.3, "crop": 0.2},
}
SHORT = (
    "pixie",
    "crop",
    "side",
    "quiff",
    "back",
    "textured",
    "curly_short",
    "afro_short",
    "afro",
    "medium",
)
SHARE_FRINGE, SHARE_OVER_EYE, SHARE_OFF_CENTRE_PART = 0.25, 0.02, 0.75
BEARDS = {
    "none": 0.54,
    "stubble": 0.19,
    "short": 0.11,
    "full": 0.06,
    "goatee": 0.06,
    "moustache": 0.04,
}
BEARD_STRANDS = 7000
Uniform = Callable[[float, float], float]


def draw_hair(rng: np.random.Generator, *, female: bool, child: bool, old: float, coily: bool) -> Hair:
    """Return a random style, and its numbers, that suits who wears it.

    Args:
        rng: source of random numbers.
        female, child, coily: who wears it.
        old: 0 young to 1 old.
    """
    wearer = "child" if child else "old" if old > 0.5 else "coily" if coily else "any"
    if (female, f"coily {wearer}") in STYLES and coily:
        wearer = f"coily {wearer}"
    shares = STYLES[female, wearer]
    weights = np.array(list(shares.values()))
    name = str(rng.choice(list(shares), p=weights / weights.sum()))

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    side = float(rng.choice([-1, 1]))
    part = side * u(0.04, 0.42) if rng.random() < SHARE_OFF_CENTRE_PART else u(-0.05, 0.05)
    values: dict[str, Any] = {
        "part": part,
        "sweep": -side * u(0.4, 1.0),
        "forward": u(-0.75, 0.0),
        "volume": u(0.05, 0.12),
        "lift": u(0.15, 0.35),
        "comb": u(0.10, 0.25),
        "gravity": u(0.5, 0.75),
        "inward": u(0.05, 0.22),
        "clump": u(0.35, 0.7),
        "fringe_gap": u(-0.02, 0.08),
        "over_eye": bool(rng.random() < SHARE_OVER_EYE),
        "face_free": u(0.86, 0.99),
    }
    fringe = u(0.5, 1.0) if rng.random() < SHARE_FRINGE else 0.0
    if name in ("buzz", "bald"):
        values["kind"] = name
    elif name in LONG:
        values |= LONG[name](u, rng, side, fringe)
    else:
        values |= CROPPED[name](u, rng)
    values["short"] = name in SHORT
    if child:
        values["volume"] *= 0.8
    return Hair(name=name, **values)


def _long(u: Uniform, rng: np.random.Generator, side: float, fringe: float) -> dict[str, Any]:
    return {
        "top_len": u(2.2, 3.0),
        "side_len": u(1.8, 2.6),
        "count": 2600,
        "width": 0.046,
        "taper": 0.5,
        "wave": u(0, 0.03),
        "wave_len": u(0.7, 1.4),
        "fringe": fringe,
    }


def _wavy(u: Uniform, rng: np.random.Generator, side: float, fringe: float) -> dict[str, Any]:
    return {
        "top_len": u(2.0, 2.8),
        "side_len": u(1.6, 2.3),
        "count": 2600,
        "points": 18,
        "width": 0.042,
        "taper": 0.55,
        "wave": u(0.05, 0.10),
        "wave_len": u(0.45, 0.9),
        "volume": u(0.10, 0.18),
        "frizz": 0.012,
        "clump": u(0.6, 0.85),
        "fringe": fringe * 0.7,
    }


def _cut(low: float, high: float) -> Callable[..., dict[str, Any]]:
    """Return the maker of a straight cut at a height between ``low`` and ``high``."""

    def make(u: Uniform, rng: np.random.Generator, side: float, fringe: float) -> dict[str, Any]:
        return {
            "top_len": 2.5,
            "side_len": 2.0,
            "cut_y": u(low, high),
            "cut_tilt": u(-0.1, 0.15),
            "volume": u(0.07, 0.14),
            "count": 2600,
            "points": 13,
            "width": 0.042,
            "taper": 0.4,
            "stiff": 0.75,
            "inward": u(0.15, 0.35),
            "wave": u(0, 0.04),
            "wave_len": u(0.6, 1.2),
            "fringe": fringe if rng.random() < 0.7 else u(0.6, 1),
        }

    return make


def _tied(
    tail: str, low: float, high: float, smallest: float, largest: float
) -> Callable[..., dict[str, Any]]:
    """Return the maker of hair tied at a height between ``low`` and ``high`` into a tail of some size."""

    def make(u: Uniform, rng: np.random.Generator, side: float, fringe: float) -> dict[str, Any]:
        height = u(low, high)
        return {
            "mode": "knot",
            "knot": (0.0, height, -0.75 + 0.65 * max(0.0, height - 7.85) * 1.1),
            "top_len": 2.2,
            "side_len": 2.2,
            "volume": u(0.02, 0.06),
            "lift": 0.0,
            "messy": 0.015,
            "comb": 0.9,
            "stiff": 0.5,
            "gravity": 0.0,
            "clump": u(0.2, 0.5),
            "tail": tail,
            "tail_size": u(smallest, largest),
            "tail_side": side * u(0, 0.75),
            "wave": u(0, 0.05),
            "wave_len": 0.6,
            "fringe": fringe,
            "count": 2300,
            "points": 12,
            "width": 0.036,
        }

    return make


# Styles that a fringe may go with.
LONG: dict[str, Callable[..., dict[str, Any]]] = {
    "long": _long,
    "wavy": _wavy,
    "bob": _cut(6.35, 6.65),
    "lob": _cut(5.85, 6.3),
    "ponytail": _tied("ponytail", 7.6, 8.25, 1.0, 1.9),
    "bun": _tied("bun", 7.7, 8.45, 0.20, 0.30),
}


def _pixie(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "mode": "side" if rng.random() < 0.6 else "forward",
        "top_len": u(0.55, 0.9),
        "side_len": u(0.3, 0.5),
        "volume": u(0.05, 0.12),
        "gravity": 0.22,
        "forward": u(0.2, 0.7),
        "clump": u(0.4, 0.8),
        "points": 10,
    }


def _curly(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "top_len": u(1.2, 2.2),
        "side_len": u(1.0, 1.9),
        "wave": u(0.06, 0.10),
        "wave_len": u(0.22, 0.34),
        "volume": u(0.16, 0.28),
        "lift": 0.5,
        "frizz": 0.02,
        "clump": 0.9,
        "clumps": 330,
        "points": 26,
        "gravity": 0.28,
    }


def _twists(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "top_len": u(0.8, 1.8),
        "side_len": u(0.7, 1.5),
        "wave": 0.022,
        "wave_len": 0.09,
        "volume": u(0.08, 0.16),
        "lift": 0.5,
        "frizz": 0.004,
        "clump": 0.97,
        "clumps": 260,
        "points": 26,
        "width": 0.02,
    }


AFRO = {"mode": "radial", "lift": 1.0, "comb": 0.5, "messy": 0.35, "gravity": 0.0, "clumps": 0}


def _afro(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return AFRO | {
        "top_len": u(0.42, 0.75),
        "side_len": u(0.36, 0.6),
        "wave": 0.035,
        "wave_len": 0.14,
        "frizz": 0.02,
        "count": 4200,
        "points": 9,
        "width": 0.026,
        "len_noise": 0.10,
        "volume": 0.1,
    }


def _afro_short(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return AFRO | {
        "top_len": u(0.12, 0.28),
        "side_len": u(0.06, 0.16),
        "wave": 0.02,
        "wave_len": 0.10,
        "frizz": 0.012,
        "count": 5200,
        "points": 5,
        "width": 0.017,
        "len_noise": 0.08,
        "volume": 0.08,
    }


def _curly_short(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "mode": "up",
        "top_len": u(0.4, 0.7),
        "side_len": u(0.2, 0.35),
        "wave": 0.05,
        "wave_len": u(0.18, 0.26),
        "volume": 0.1,
        "lift": 0.6,
        "messy": 0.25,
        "gravity": 0.12,
        "frizz": 0.012,
        "clump": 0.85,
        "clumps": 420,
        "points": 14,
        "forward": u(0, 0.5),
    }


def _crop(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "mode": "forward",
        "top_len": u(0.28, 0.5),
        "side_len": u(0.10, 0.2),
        "volume": u(0.03, 0.07),
        "gravity": 0.12,
        "lift": 0.18,
        "messy": 0.06,
        "clump": 0.5,
        "points": 8,
        "count": 3400,
        "width": 0.026,
        "clumps": 380,
    }


def _side(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "mode": "side",
        "top_len": u(0.5, 0.85),
        "side_len": u(0.14, 0.3),
        "volume": u(0.05, 0.11),
        "gravity": 0.18,
        "lift": 0.22,
        "messy": 0.03,
        "forward": u(-0.25, 0.25),
        "clump": u(0.4, 0.7),
        "points": 10,
        "count": 2900,
        "clumps": 260,
        "width": 0.028,
    }


def _quiff(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "mode": "back",
        "top_len": u(0.45, 0.8),
        "side_len": u(0.10, 0.2),
        "volume": u(0.06, 0.12),
        "gravity": 0.02,
        "lift": u(0.4, 0.8),
        "clump": u(0.5, 0.8),
        "points": 10,
        "count": 2900,
        "clumps": 260,
        "width": 0.028,
        "messy": 0.04,
    }


def _back(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "mode": "back",
        "top_len": u(0.7, 1.1),
        "side_len": u(0.3, 0.6),
        "volume": u(0.03, 0.07),
        "gravity": 0.06,
        "lift": 0.25,
        "clump": u(0.4, 0.8),
        "points": 12,
        "clumps": 220,
        "width": 0.026,
    }


def _textured(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "mode": "up",
        "top_len": u(0.3, 0.55),
        "side_len": u(0.14, 0.25),
        "volume": 0.06,
        "lift": 0.35,
        "messy": 0.15,
        "gravity": 0.16,
        "forward": u(0, 0.8),
        "clump": 0.8,
        "clumps": 320,
        "points": 9,
        "count": 2900,
        "width": 0.022,
    }


def _medium(u: Uniform, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "mode": "part",
        "top_len": u(1.0, 1.5),
        "side_len": u(0.7, 1.1),
        "volume": u(0.06, 0.12),
        "wave": u(0, 0.05),
        "wave_len": u(0.5, 0.9),
        "points": 14,
    }


CROPPED: dict[str, Callable[..., dict[str, Any]]] = {
    "pixie": _pixie,
    "curly": _curly,
    "twists": _twists,
    "afro": _afro,
    "afro_short": _afro_short,
    "curly_short": _curly_short,
    "crop": _crop,
    "side": _side,
    "quiff": _quiff,
    "back": _back,
    "textured": _textured,
    "medium": _medium,
}


def draw_beard(rng: np.random.Generator) -> Beard:
    """Return a random beard, or none."""

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    kind = str(rng.choice(list(BEARDS), p=list(BEARDS.values())))
    if kind == "stubble":
        return Beard(kind, sides=1.0, chin=1.0, paint=u(0.4, 0.8), cap=u(0.18, 0.42))
    if kind == "none":
        return Beard()
    values = {
        "short": {"sides": 1.0, "chin": 1.0, "paint": 1.3, "cap": 0.85},
        "full": {"sides": 1.0, "chin": 1.0, "paint": 1.8, "cap": 0.96},
        "goatee": {"sides": 0.05, "chin": 1.0, "paint": 1.7, "cap": 0.95},
        "moustache": {"moustache": 1.0, "paint": 1.5, "cap": 0.9},
    }[kind]
    lengths = {"short": (0.04, 0.08), "full": (0.10, 0.20), "goatee": (0.06, 0.16), "moustache": (0.06, 0.11)}
    return Beard(kind, length=u(*lengths[kind]), count=BEARD_STRANDS, **values)
