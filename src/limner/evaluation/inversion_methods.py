"""The methods of the inversion table: how they are written, in which order they are expected, what to say when it differs."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from limner import inversion
from limner.errors import OptionError
from limner.inversion import PRESETS, InversionOptions
from limner.inversion.options import ENCODED, SEARCHED
from limner.nn import deltas
from limner.pipeline import Models

ALL, ENCODER, HYBRID, PIVOTAL = "all", "encoder", "hybrid", "pivotal"
PLAIN, PLUS = "image2stylegan", "image2stylegan++"
VARIANTS = (PLAIN, PLUS)
"""Presets that differ from the methods in what they search, not only in numbers: w+ without noise maps, and w+ first
and the noise maps alone afterwards."""
PLUS_LEARNING_RATE = 0.2
"""Step size of the noise maps in the second stage of Image2StyleGAN++: its 1,500 steps of 0.01 in some fifty."""
SEARCHES = (*SEARCHED, PIVOTAL, *VARIANTS)
"""Methods that need no network besides the generator."""
KNOWN = (*inversion.METHODS, *VARIANTS)

ORDER: dict[str, str] = {
    "noise": "",
    "z": "noise maps alone hold no face (Image2StyleGAN++)",
    "e4e": "rows near the mean w hold what no z does (e4e)",
    "psp": "e4e gives up closeness for codes that are easy to edit (e4e)",
    "restyle": "several passes correct each other (ReStyle)",
    ENCODER: "an encoder that corrects itself comes closer than codes of z (ReStyle)",
    "w": "a step by step search comes closer than a network's guess (pSp, ReStyle)",
    "z+": "a code for every layer holds more than one for all (Image2StyleGAN)",
    "hyper": "a change of the weights holds what no code does (HyperInverter)",
    "ii2s": "w+ is the closest space of codes, even near the mapping network's (II2S)",
    PLAIN: "staying near the mapping network's codes costs closeness (II2S)",
    "w+": "noise maps are fitted too, and nothing holds the codes near the mapping network's (StyleGAN2, II2S)",
    "s": "s holds all that w+ holds, and more (StyleSpace)",
    HYBRID: "with equal steps, starting from the encoder is better (Zhu et al. 2016)",
    PIVOTAL: "tuning the generator comes closer than any code (PTI)",
    f"{ENCODER}-{PIVOTAL}": "a better pivot leaves less to tune (PTI)",
    PLUS: "noise maps that are fitted freely take up any detail (Image2StyleGAN++)",
}
"""Method -> why the literature expects it to come closer than those above it; the farthest comes first."""

PUBLISHED_STEPS: dict[str, int] = {
    "w": PRESETS["stylegan2-projector"]["steps"],
    "w+": PRESETS[PLAIN]["steps"],
    PLAIN: PRESETS[PLAIN]["steps"],
    "ii2s": PRESETS["ii2s"]["steps"],
    PLUS: PRESETS[PLUS]["steps"] + PRESETS[PLUS]["noise_steps"],
    PIVOTAL: PRESETS["pti"]["steps"],
}

# (better, worse, figure, what the literature says): what the order of the table does not say.
EXPECTED = (
    ("w", "z", "psnr", "w comes closer than z (Image2StyleGAN, StyleGAN2)"),
    ("w+", "w", "psnr", "w+ comes closer than w (Image2StyleGAN)"),
    (PIVOTAL, "w", "psnr", "tuning the generator around w comes closer than w alone (PTI)"),
    (PIVOTAL, "w+", "psnr", "tuning the generator comes closer than any code (PTI)"),
    ("w+", "noise", "psnr", "noise maps alone hold no face (Image2StyleGAN++)"),
    (PLUS, "w+", "psnr", "noise maps fitted freely after w+ come closer than w+ (Image2StyleGAN++)"),
    ("w+", "ii2s", "psnr", "staying near the mapping network's codes costs closeness (II2S)"),
    ("w+", ENCODER, "psnr", "a search comes closer than an encoder alone (pSp, ReStyle)"),
    (HYBRID, ENCODER, "psnr", "a search from the encoder's code improves on it (hybrid)"),
    (HYBRID, "w+", "perceptual", "with equal steps, starting from the encoder is better (hybrid)"),
    (ENCODER, "w+", "seconds", "an encoder is faster than a search"),
)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of inverting: a start, a method of the registry or a variant, steps; written ``[START-]METHOD[:STEPS]``."""

    name: str
    method: str
    start: str = ""
    steps: int | None = None

    @property
    def place(self) -> str:
        """The name under which it stands in `ORDER`."""
        if self.start and self.method == PIVOTAL:
            return f"{ENCODER}-{PIVOTAL}"
        return HYBRID if self.start and self.method == "w+" else self.method

    @property
    def pivot(self) -> Method:
        """The search around whose codes pivotal tuning tunes the generator."""
        if not self.start:
            return Method("w", "w", "", self.steps)
        if self.start == ENCODER:
            return Method(HYBRID, HYBRID, "", self.steps)
        return Method(f"{self.start}-w+", "w+", self.start, self.steps)

    def settings(self, steps: int, seed: int) -> InversionOptions:
        """Return the options of its search, but for where it starts."""
        if self.method not in VARIANTS:
            return InversionOptions(method=self.method, steps=steps, seed=seed)
        noise = (
            {"noise_steps": steps, "noise_learning_rate": PLUS_LEARNING_RATE} if self.method == PLUS else {}
        )
        return InversionOptions(method="w+", fit_noise=False, steps=steps, seed=seed, **noise)


def parse_method(text: str) -> Method:
    """Read ``w+``, ``w+:500``, ``encoder-w+:100``.

    Raises:
        OptionError: a method that is not in `KNOWN`, or no number of steps.
    """
    match = re.fullmatch(r"(.+?)(?::(\d+))?", text)
    name, steps = (match[1], match[2]) if match else (text, None)
    start, method = "", name
    if name not in KNOWN and "-" in name:
        start, method = name.split("-", 1)
    started = method != name
    if method not in KNOWN or (started and start not in inversion.METHODS):
        raise OptionError(
            f"methods has {text!r}, expected all or [START-]METHOD[:STEPS] with {', '.join(KNOWN)}"
        )
    return Method(text, method, start, int(steps) if steps else None)


def chosen_methods(texts: Sequence[str]) -> list[Method]:
    """Return the methods that are asked for, once each, in the order of `ORDER`; none or ``all`` asks for every one.

    Raises:
        OptionError: see `parse_method`.
    """
    every = [name for name in ORDER if name != PLAIN]
    named = [name for text in texts or (ALL,) for name in (every if text == ALL else (text,))]
    places = list(ORDER)
    return sorted(map(parse_method, dict.fromkeys(named)), key=lambda one: places.index(one.place))


def encoder_stamp(method: Method, models: Models) -> str:
    """Return a digest of the encoder, if the method may use it."""
    alone = {method.method, method.start or method.method} <= set(SEARCHES)
    encoder = None if alone else models.encoder_for(method.start or method.method)
    return "" if encoder is None else deltas.digest(encoder)


def missing_weights(method: Method, models: Models) -> str:
    """Return why a method of published encoders cannot run, empty where it can be tried."""
    needed = [name for name in (method.start, method.method) if name in ENCODED]
    if not needed or models.encoder is not None:
        return ""
    return f"no weights: no {needed[0]} is bundled for this generator; --encoder FILE takes a checkpoint"


def check_order(values: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, bool, str]]:
    """Return the claims of the literature about methods that were measured, and whether they hold."""
    checks = []
    for better, worse, figure, claim in EXPECTED:
        if better not in values or worse not in values:
            continue
        a, b = values[better][figure], values[worse][figure]
        holds = a > b if figure == "psnr" else a < b
        checks.append((claim, holds, f"{better} {a:.3f}, {worse} {b:.3f} ({figure})"))
    return checks


def explain_order(
    methods: Sequence[Method], figures: Mapping[str, Mapping[str, Tensor]], *, steps: int
) -> list[str]:
    """Return a sentence or two for every two neighbours of the table of which the upper one came closer.

    Args:
        methods: in the table's order.
        figures: method -> figure -> (N,), of the same pictures; methods that are not in it are passed over.
        steps: of a search without a number of its own.
    """
    there = [one for one in methods if one.name in figures]
    notes = []
    for above, below in itertools.pairwise(there):
        if above.place == below.place:
            continue
        a, b = figures[above.name], figures[below.name]
        lead = (a["psnr"] - b["psnr"]).double()
        if not lead.mean() > 0:
            continue
        wins, count = int((lead > 0).sum()), len(lead)
        text = (
            f"{below.name} ({b['psnr'].mean():.2f} dB) is expected to come closer than {above.name} "
            f"({a['psnr'].mean():.2f} dB): {ORDER[below.place]}. Here {above.name} leads by {lead.mean():.2f} dB, in "
            f"{wins} of {count} pictures"
        )
        if count > 1 and lead.mean() < 2 * lead.std() / count**0.5:
            text += ", which is within two standard errors of no difference"
        else:
            near = float(b["perceptual"].mean()) < float(a["perceptual"].mean())
            told = f"{b['perceptual'].mean():.3f} against {a['perceptual'].mean():.3f}"
            text += f"; by perceptual distance {'the order is the expected one' if near else 'too'} ({told})"
        published = PUBLISHED_STEPS.get(below.place, 0)
        taken = below.steps or steps
        if published > taken:
            text += f". Its published search takes {published} steps, here it had {taken}"
        notes.append(f"{text}.")
    return notes
