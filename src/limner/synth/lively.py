"""Look version 2: the same people with livelier faces and clothes of their own.

It changes scenes after they are drawn, with random numbers of its own, so that a seed stays the same person in the
same pose and light; the surfaces of version 2 are in `limner.synth.shaders`.
"""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np

from limner.synth.lighting import to_color
from limner.synth.scene import Scene

STREAM = 2002  # of random numbers, beside the scene's seed
# Expression -> range of what raises the inner ends of the brows and the corners of the mouth.
RELAXED = {
    "neutral": ((0.15, 0.35), (0.10, 0.30)),
    "gentle": ((0.10, 0.30), (0.05, 0.20)),
    "smile": ((0.05, 0.25), (0.0, 0.10)),
    "grin": ((0.05, 0.25), (0.0, 0.10)),
    "smirk": ((0.05, 0.25), (0.05, 0.15)),
}
GARMENTS = 9
GARMENT_MIX = (0.05, 0.95)
SHARE_MUTED = 0.6  # of all garments
GARMENT_POWER, GARMENT_LIGHTEST = 2.0, 0.8  # sRGB to linear, and the albedo of white cloth
FINER_HAIR = 0.8  # width of strands; more of them fill the gaps
MORE_STRANDS = 1.3


def enliven(scene: Scene) -> Scene:
    """Return the scene as look version 2 shows it."""
    rng = np.random.default_rng([scene.seed, STREAM])
    units = dict(scene.face_units)
    brows, mouth = RELAXED.get(scene.expression, ((0.0, 0.0), (0.0, 0.0)))
    raised, smiling = rng.uniform(*brows), rng.uniform(*mouth)
    units["browInnerUp"] = units.get("browInnerUp", 0.0) + float(raised)
    for side in ("Left", "Right"):
        for name, amount in ((f"mouthSmile{side}", smiling), (f"cheekSquint{side}", smiling * 0.7)):
            units[name] = units.get(name, 0.0) + float(amount)
    muted = rng.random() < SHARE_MUTED
    saturation = rng.uniform(0.0, 0.25) if muted else rng.uniform(0.25, 0.85)
    cloth = np.array(colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(0.08, 0.95)))
    hair = scene.hair
    if hair.kind == "strands":
        hair = dataclasses.replace(hair, width=hair.width * FINER_HAIR, count=int(hair.count * MORE_STRANDS))
    return scene.but(
        face_units=units,
        hair=hair,
        garment=int(rng.integers(GARMENTS)),
        garment_color=to_color(cloth**GARMENT_POWER * GARMENT_LIGHTEST + 0.01),
        garment_mix=float(rng.uniform(*GARMENT_MIX)),
    )
