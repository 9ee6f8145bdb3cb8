"""Latent codes: their spaces, layer masks over them, and their files."""

from limner.latent.files import LatentFile, load_latent, save_latent
from limner.latent.masks import LayerMask, mix
from limner.latent.spaces import (
    SPACES,
    GeneratorLike,
    Latent,
    Space,
    WStatistics,
    render,
    truncate,
    w_statistics,
)

__all__ = [
    "SPACES",
    "GeneratorLike",
    "Latent",
    "LatentFile",
    "LayerMask",
    "Space",
    "WStatistics",
    "load_latent",
    "mix",
    "render",
    "save_latent",
    "truncate",
    "w_statistics",
]
