"""Options of evaluation (imports no torch)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from limner.errors import OptionError
from limner.options import Options, knob

QUICK: dict[str, Any] = {
    "samples": 200,
    "found_in": 60,
    "neighbours_in": 1000,
    "faces": 4,
    "steps": 25,
    "scenes": 6,
    "translated": 20,
    "tuned": 2,
    "few_seconds": 5.0,
}
"""What ``quick`` lowers the numbers to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Options):
    """What is measured, on how many pictures; the defaults take an hour or two on two CPU cores."""

    data: Path | None = None
    """folder with heads-256/photo and paired-256/LOOK; heads and pairs name other places"""
    heads: Path | None = None
    """folder or zip of aligned, numbered portraits; by default heads-256/photo in data"""
    pairs: Path | None = None
    """folder of one scene in several looks: photo/N.jpg, toon/N.jpg, ...; by default paired-256 in data"""
    held_out: str = "11000-11999"
    """portraits that no training has seen, FIRST-LAST"""
    trained_on: str = "0-10999"
    """portraits that the model was trained on, FIRST-LAST"""
    held_out_pairs: str = "20900-20999"
    """scenes that no training has seen, FIRST-LAST"""
    trained_pairs: str = "20000-20899"
    """scenes from which style pictures may be taken, FIRST-LAST"""
    seed: int = knob(0, lo=0, hi=2**30)
    """first seed of the random faces, and seed of everything else that is drawn"""
    quick: bool = False
    """small numbers, for a first look within minutes; the figures are rough then"""
    samples: int = knob(1000, lo=8, hi=100_000)
    """generation: random faces, and as many real pictures; the held-out ones are the limit"""
    found_in: int = knob(500, lo=1, hi=100_000)
    """generation: random faces in which a face is looked for and whose person, pose and mouth are measured"""
    neighbours_in: int = knob(100_000, lo=8, hi=10_000_000)
    """generation: training pictures among which the nearest are looked for; by default all"""
    faces: int = knob(50, lo=2, hi=10_000)
    """inversion: held-out portraits, the first ones in order"""
    photos: tuple[Path, ...] = knob(())
    """inversion and stylization: real photos; their largest face is shown beside the renders"""
    methods: tuple[str, ...] = knob(())
    """inversion: methods as [START-]METHOD[:STEPS], such as w+, w+:500, encoder, encoder-pivotal:100, image2stylegan++;
    all, the default: every method of limner invert, pivotal tuning from the encoder, and image2stylegan++"""
    steps: int = knob(100, lo=1, hi=20_000)
    """inversion: steps of a search where METHODS name none; pivotal tuning takes as many again"""
    scenes: int = knob(50, lo=2, hi=10_000)
    """stylization: held-out scenes, the first ones in order"""
    styles: tuple[str, ...] = knob(())
    """stylization: names or files of styles; by default all on this machine that belong to the model"""
    inverter: str = ""
    """stylization: how the photos are embedded, as limner stylize --inverter; by default as there"""
    strengths: tuple[float, ...] = knob((0.25, 0.5, 0.75, 1.0), lo=0, hi=1)
    """stylization: strengths of the curve"""
    tuned: int = knob(8, lo=0, hi=10_000)
    """stylization: scenes, the first ones, that are also embedded by pivotal tuning, to add the person's change to the
    style's; 0 leaves this out"""
    few_looks: tuple[str, ...] = knob(("toon", "comic"))
    """stylization: looks that are learned anew from one picture and from several; empty for none"""
    few_pictures: int = knob(5, lo=2, hi=50)
    """stylization: how many pictures several are"""
    few_seconds: float = knob(60.0, lo=0.1, hi=100_000)
    """stylization: time that one such learning gets, the search for the pictures' codes apart"""
    translated: int = knob(100, lo=2, hi=10_000)
    """translation: held-out scenes, the first ones in order"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strengths:
            raise OptionError("strengths is empty, expected numbers from 0 to 1")

    def scaled(self) -> EvaluationOptions:
        """Return the options with the numbers that ``quick`` stands for."""
        if not self.quick:
            return self
        return dataclasses.replace(
            self, **{name: min(value, getattr(self, name)) for name, value in QUICK.items()}
        )

    def find(self, what: str) -> Path:
        """Return the place of ``heads`` or ``pairs``.

        Raises:
            OptionError: neither it nor ``data`` is given, or nothing is there.
        """
        own = getattr(self, what)
        below = {"heads": Path("heads-256/photo"), "pairs": Path("paired-256")}[what]
        if own is None and self.data is None:
            raise OptionError(f"name the pictures: --data DIR with {below} in it, or --{what} DIR")
        place = own or Path(self.data or "") / below
        if not place.exists():
            raise OptionError(f"{what}: there is nothing at {place}; name another place with --{what}")
        return place
