"""Options of inversion.  No torch here."""

from __future__ import annotations

import dataclasses
from typing import Any

from limner.errors import OptionError
from limner.options import Options, knob, precision_knob

OPTIMIZED = ("z", "z+", "w", "w+", "s")
"""Spaces of codes that can be searched."""
SEARCHED = (*OPTIMIZED, "noise", "ii2s")
"""Searches by name: a space; noise maps alone, the codes standing still; II2S, which is w+ near P_N."""
ENCODED = ("psp", "e4e", "restyle", "hyper")
COMPACT = ("encoder", "hybrid")
METHODS = (*SEARCHED, "pivotal", *COMPACT, *ENCODED)


@dataclasses.dataclass(frozen=True)
class InversionOptions(Options):
    """How an image is embedded.  The defaults suit small generators on a CPU; `preset` has the published ones."""

    method: str = knob("w+", choices=("auto", *METHODS))
    """space that is searched (w+ is closest to the picture, w easiest to edit); or noise: the noise maps alone; or ii2s:
    w+, kept near the codes of the mapping network; or pivotal: search, then tune the generator around what was found;
    or encoder: the compact encoder, hybrid: a search in w+ that starts from it, auto: hybrid if the generator has an
    encoder, else w+; or psp, e4e, restyle: an encoder of this kind; or hyper: HyperInverter, code and generator from
    networks"""
    steps: int = knob(150, lo=1, hi=20_000)
    """steps of the search"""
    learning_rate: float = knob(0.1, lo=1e-5, hi=1.0)
    """step size of Adam at its height"""
    rampup: float = knob(0.05, lo=0.0, hi=1.0)
    """share of the steps in which the step size rises from zero"""
    rampdown: float = knob(0.25, lo=0.0, hi=1.0)
    """share of the steps in which it falls to zero again"""
    l2: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the mean squared difference of pixels, [-1, 1]"""
    perceptual: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the perceptual distance"""
    identity: float = knob(0.0, lo=0.0, hi=1e6)
    """weight of the squared distance of the identity embeddings, which keeps the person"""
    w_norm: float = knob(0.0, lo=0.0, hi=1e6)
    """weight of the code's mean squared distance from the mean, in standard deviations; keeps it easy to edit"""
    p_norm: float = knob(0.0, lo=0.0, hi=1e6)
    """weight of the same in II2S's space P_N, for w and w+: w before its last Leaky ReLU, in principal components"""
    layers: str = knob("all")
    """rows of w+ or z+, or vectors of s, that the search may change, as a layer mask; Image2StyleGAN++ leaves some out
    when it paints a missing part"""
    fit_noise: bool = knob(True)
    """fit the noise maps too"""
    noise_reg: float = knob(1e5, lo=0.0, hi=1e9)
    """weight of the noise maps' correlation, which keeps the picture out of them"""
    noise_scaled: bool = knob(True)
    """bring every noise map back to mean 0 and deviation 1 after each step; Image2StyleGAN++ lets them go, and closer"""
    noise_steps: int = knob(0, lo=0, hi=20_000)
    """steps of a second stage that fits the noise maps alone, free and with a steady step size (Image2StyleGAN++)"""
    noise_learning_rate: float = knob(0.01, lo=1e-5, hi=100.0)
    """step size of that stage"""
    perturbation: float = knob(0.0, lo=0.0, hi=10.0)
    """random shake of the code at the start, as a share of the spread of w; 0.05 as published helps long searches, and
    costs short ones about 1 dB"""
    perturbation_ramp: float = knob(0.75, lo=0.0, hi=1.0)
    """share of the steps over which the shake fades"""
    init: str = knob("mean", choices=("mean", "zeros", "uniform", "given", "encoder"))
    """where the search starts: the mean code, zero, random numbers from -1 to 1, the codes handed over, or what the
    compact encoder makes of the picture (for w+ and s)"""
    mean_samples: int = knob(10_000, lo=2, hi=1_000_000)
    """random codes from which mean and spread are measured"""
    patience: int = knob(30, lo=0, hi=20_000)
    """steps without progress after which a picture's search goes straight to its ramp-down; 0 never does"""
    tolerance: float = knob(0.01, lo=0.0, hi=1.0)
    """part by which the loss must fall to count as progress"""
    refinements: int = knob(3, lo=1, hi=20)
    """steps of the compact encoder, each looking at what the last one made"""
    precision: str = precision_knob()
    seed: int = knob(0, lo=0, hi=2**31 - 1)
    """seed of the random numbers"""


@dataclasses.dataclass(frozen=True)
class PivotalOptions(Options):
    """How the generator is tuned to one person; the defaults are the published ones."""

    pivot: str = knob("w", choices=(*OPTIMIZED, *COMPACT))
    """space of the search that comes before; or encoder, which needs no search, or hybrid"""
    tune_steps: int = knob(350, lo=1, hi=20_000)
    """steps of tuning"""
    tune_learning_rate: float = knob(3e-4, lo=1e-7, hi=0.1)
    """step size of Adam"""
    tune_l2: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the mean squared difference of pixels"""
    tune_perceptual: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the perceptual distance"""
    tune_stop: float = knob(0.06, lo=0.0, hi=10.0)
    """perceptual distance at which tuning ends early; the published 0.06 was measured on AlexNet, other trunks differ"""
    tune_layers: str = knob("all")
    """layers that may change, as a layer mask"""
    locality: float = knob(0.0, lo=0.0, hi=1e6)
    """weight of keeping faces near the pivot as they were; 0, as published, leaves it out, 1 is the paper's"""
    locality_distance: float = knob(30.0, lo=0.0, hi=1e6)
    """how far from the pivot these faces lie, in w"""
    locality_l2: float = knob(0.1, lo=0.0, hi=1e6)
    """weight of their pixels within the term"""
    locality_perceptual: float = knob(0.1, lo=0.0, hi=1e6)
    """weight of their perceptual distance within the term"""


@dataclasses.dataclass(frozen=True)
class EncodeOptions(Options):
    """How an encoder runs."""

    iterations: int = knob(0, lo=0, hi=100)
    """passes of ReStyle, each correcting the codes of the one before; 0 takes the number in its checkpoint"""
    encode_batch: int = knob(4, lo=1, hi=1024)
    """pictures that an encoder sees at once; the last ones may be fewer"""


_PROJECTOR = {"steps": 1000, "l2": 0.0, "perturbation": 0.05, "patience": 0}
_STEADY = {"learning_rate": 0.01, "rampup": 0.0, "rampdown": 0.0, "fit_noise": False, "patience": 0}
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "stylegan2-projector": {**_PROJECTOR, "method": "w"},
    "rosinality": {**_PROJECTOR, "method": "w"},
    "ada": {**_PROJECTOR, "method": "w", "seed": 303},
    "toonify": {**_PROJECTOR, "method": "w+"},
    "pti": {
        **_PROJECTOR,
        "method": "pivotal",
        "steps": 450,
        "learning_rate": 0.01,
        "mean_samples": 600,
    },
    "ii2s": {**_STEADY, "method": "ii2s", "steps": 1300, "l2": 1.0, "p_norm": 0.001, "mean_samples": 100_000},
    "image2stylegan": {**_STEADY, "method": "w+", "steps": 5000, "l2": 0.25},
    "image2stylegan++": {
        **_STEADY,
        "method": "w+",
        "steps": 1500,
        "l2": 0.25,
        "noise_steps": 1500,
        "noise_learning_rate": 0.01,
    },
}
"""Published settings of other programs and papers.

``image2stylegan`` and ``image2stylegan++`` have ``l2`` 0.25 because the paper works on [0, 1].

Differs: ``ii2s`` measures P_N on 100,000 codes instead of a million; the steps and step sizes of ``image2stylegan++``
are those of the public re-implementation; noise maps are not fitted where the original has none.
"""

PRESET_TRUNKS: dict[str, str] = {
    "stylegan2-projector": "lpips-vgg",
    "rosinality": "lpips-vgg",
    "ada": "lpips-vgg",
    "toonify": "lpips-vgg",
    "pti": "lpips-vgg",
    "ii2s": "lpips-vgg",
    "image2stylegan": "vgg16",
    "image2stylegan++": "vgg16",
}
"""Preset -> the trunk it was published with, which `limner invert` takes where its weights are installed."""


def preset(name: str, **changes: Any) -> InversionOptions:
    """Return a published setting with some values changed.

    Raises:
        OptionError: no such preset, or a value out of range.
    """
    if name not in PRESETS:
        raise OptionError(f"preset is {name!r}, expected one of {', '.join(PRESETS)}")
    return InversionOptions(**{**PRESETS[name], **changes})
