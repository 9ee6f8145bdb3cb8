"""From linear light to a picture, as a camera does it."""

from __future__ import annotations

import numpy as np

from limner.synth.backdrop import GAMMA
from limner.synth.filters import blur, shrink

SUPERSAMPLING = 2  # of what is rendered over the picture
EXPOSURE, HUE_KEEPING, BRIGHTEST = 1.06, 0.45, 20.0
LENS_BLUR, SENSOR_NOISE, NOISE_STREAM = 0.65, 0.005, 9


def develop(light: np.ndarray, seed: int) -> np.ndarray:
    """Return the picture, uint8, of linear light (H, W, 3), `SUPERSAMPLING` times smaller.

    An exponential shoulder, nearly half of which keeps the hue, then the softness of a lens, which also smooths
    strands, and the noise of a sensor.
    """
    light = np.clip(np.nan_to_num(light, posinf=BRIGHTEST), 0, BRIGHTEST)
    each = 1 - np.exp(-EXPOSURE * light)
    brightest = light.max(-1, keepdims=True) + 1e-5
    together = light / brightest * (1 - np.exp(-EXPOSURE * brightest))
    exposed = shrink(
        blur((1 - HUE_KEEPING) * each + HUE_KEEPING * together, LENS_BLUR, radius=1), SUPERSAMPLING
    )
    values = np.clip(exposed, 0, 1) ** (1 / GAMMA)
    noise = np.random.default_rng([seed, NOISE_STREAM]).standard_normal(values.shape, np.float32)
    return (np.clip(values + noise * np.float32(SENSOR_NOISE), 0, 1) * 255 + 0.5).astype(np.uint8)
