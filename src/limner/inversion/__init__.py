"""Inversion: from an image to the codes that paint it.

Importing this package imports no torch; methods are imported when they are called.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limner.errors import OptionError
from limner.inversion.options import (
    COMPACT,
    ENCODED,
    PRESETS,
    SEARCHED,
    EncodeOptions,
    InversionOptions,
    PivotalOptions,
    preset,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from limner.inversion.goals import Goal
    from limner.inversion.report import (
        Distance,
        FitReport,
        IdentityDistance,
        Inversion,
        OnStep,
        TrunkDistance,
    )
    from limner.latent import Latent
    from limner.nn.compact import CompactEncoder
    from limner.nn.compact_hyper import CompactHyper
    from limner.nn.encoders import Encoder
    from limner.nn.hyperinverter import HyperInverter
    from limner.nn.stylegan2 import Generator

# Name -> "module:function" in this package; "auto" stands for one of them, see `invert`.
METHODS: dict[str, str] = {
    "z": "optimize:optimize",
    "z+": "optimize:optimize",
    "w": "optimize:optimize",
    "w+": "optimize:optimize",
    "s": "optimize:optimize",
    "noise": "optimize:optimize",
    "ii2s": "optimize:optimize",
    "pivotal": "pivotal:invert_pivotal",
    "encoder": "compact:invert_encoder",
    "hybrid": "compact:invert_hybrid",
    "psp": "encode:encode",
    "e4e": "encode:encode",
    "restyle": "encode:encode",
    "hyper": "hyper:invert_hyper",
}

_LAZY = {
    "Distance": "report",
    "FitReport": "report",
    "Goal": "goals",
    "IdentityDistance": "report",
    "Inversion": "report",
    "OnStep": "report",
    "TrunkDistance": "report",
}

__all__ = [
    "METHODS",
    "PRESETS",
    "Distance",
    "EncodeOptions",
    "FitReport",
    "Goal",
    "IdentityDistance",
    "Inversion",
    "InversionOptions",
    "OnStep",
    "PivotalOptions",
    "TrunkDistance",
    "invert",
    "preset",
]


def invert(
    generator: Generator,
    image: Tensor,
    options: InversionOptions,
    *,
    perceptual: Distance | None,
    identity: Distance | None = None,
    init: Latent | None = None,
    mask: Tensor | None = None,
    goals: Sequence[Goal] = (),
    pivotal: PivotalOptions | None = None,
    encoder: Encoder | HyperInverter | CompactHyper | CompactEncoder | None = None,
    encoding: EncodeOptions | None = None,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Find the codes that make a generator paint given images.

    Args:
        generator: paints; it is not changed.
        image: (B, 3, R, R), [-1, 1], R being the generator's resolution.  The images of a batch are independent of
            each other, except that pivotal tuning tunes one generator for all of them.
        options: method and settings.
        perceptual: (image, image) -> (B,), such as `TrunkDistance`; None leaves the term out.
        identity: (image, image) -> (B,), for the report, and for the search where it has a weight.
        init: where the search starts, with ``init="given"``.
        mask: (B or 1, 1, R, R), 0 to 1; only what it covers is fitted.
        goals: more pictures that masked parts of the result shall look like, for searches; see `Goal`.
        pivotal: settings of ``method="pivotal"``; None for the defaults.
        encoder: the network of ``psp``, ``e4e``, ``restyle`` and ``hyper``, which take neither ``init`` nor ``mask``;
            or the compact encoder of ``encoder``, ``hybrid``, pivots of these names and ``init="encoder"``; ``auto`` takes it if it is there.
        encoding: how it runs; None for the defaults.
        rng: random numbers, on the CPU; None for a new generator with the options' seed.
        on_step: called after every step with step, steps, figures and a function that paints the picture so far.

    Raises:
        ShapeError: an image, mask or code that does not fit the generator.
        OptionError: contradicting options.
        DivergedError: the search left the finite numbers.
    """
    if options.method == "auto":
        options = dataclasses.replace(options, method=_pick(encoder if init is None else None))
    module, _, function = METHODS[options.method].partition(":")
    method = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    if goals and options.method not in (*SEARCHED, "hybrid"):
        raise OptionError(f"method {options.method} takes no goals; searches and hybrid do")
    if options.method in ENCODED:
        if init is not None or mask is not None:
            raise OptionError(
                f"method {options.method} starts from nothing and sees whole pictures: no init, no mask"
            )
        return method(
            generator,
            image,
            options,
            encoder=encoder,
            encoding=encoding,
            perceptual=perceptual,
            identity=identity,
            on_step=on_step,
        )
    extra: dict[str, Any] = {"pivotal": pivotal or PivotalOptions()} if options.method == "pivotal" else {}
    if options.method in ("pivotal", *COMPACT) or options.init == "encoder":
        extra["encoder"] = encoder
    if goals:
        extra["goals"] = goals
    return method(
        generator,
        image,
        options,
        perceptual=perceptual,
        identity=identity,
        init=init,
        mask=mask,
        rng=rng,
        on_step=on_step,
        **extra,
    )


def _pick(encoder: object) -> str:
    """Return the method that ``auto`` stands for, given the encoder if it could see the whole job."""
    from limner.nn.compact import CompactEncoder

    return "hybrid" if isinstance(encoder, CompactEncoder) else "w+"


def __getattr__(name: str) -> Any:
    """Import a result type when it is first asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
