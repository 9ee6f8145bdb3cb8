"""Options of the Image2StyleGAN study (imports no torch)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from limner.errors import OptionError
from limner.options import Options, knob

EXPERIMENTS: dict[str, str] = {
    "space": "Which space",
    "weights": "Trained against random weights",
    "init": "Which initial value",
    "affine": "Shift, rotation and zoom",
    "defects": "Defects",
    "classes": "Faces against other things",
    "loss": "Which layers of the loss",
}
"""Experiment -> title, in the report's order."""
QUICK: dict[str, Any] = {"faces": 2, "steps": 20}
"""What ``quick`` lowers the numbers to; it also takes at most two pictures without a face, and no photo."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions(Options):
    """What the Image2StyleGAN study embeds, and how.

    Differs: the paper takes 5,000 steps of Adam at 0.01 for every picture; steps 5000, learning_rate 0.01, rampup 0,
    rampdown 0 and l2 0.25 are that, at a cost of hours on a CPU.
    """

    experiments: tuple[str, ...] = knob(("all",))
    """space, weights, init, affine, defects, classes, loss, or all"""
    heads: Path | None = None
    """folder or zip of aligned, numbered portraits; required"""
    held_out: str = "11000-11999"
    """portraits that no training has seen, FIRST-LAST"""
    faces: int = knob(3, lo=1, hi=1000)
    """portraits that are embedded, the first held-out ones"""
    photos: tuple[Path, ...] = knob(())
    """real photos; their largest face is embedded with the portraits"""
    others: tuple[str, ...] = knob(())
    """pictures without a real face, as KIND=FILE or KIND=FILE@LEFT:TOP:SIDE in px, such as cat=tom.jpg@80:10:300;
    skimage:NAME stands for a picture of scikit-image; without @ the largest square in the middle is taken"""
    holes: tuple[str, ...] = knob(("nose", "eyes", "mouth"))
    """parts that are blacked out in the defect experiment, as the regions of limner edit"""
    steps: int = knob(100, lo=1, hi=20_000)
    """steps of every search"""
    learning_rate: float = knob(0.1, lo=1e-5, hi=1.0)
    """step size of Adam at its height"""
    rampup: float = knob(0.05, lo=0.0, hi=1.0)
    """share of the steps in which the step size rises from zero"""
    rampdown: float = knob(0.25, lo=0.0, hi=1.0)
    """share of the steps in which it falls to zero again"""
    l2: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the mean squared difference of pixels, [-1, 1], beside the perceptual distance"""
    seed: int = knob(0, lo=0, hi=2**31 - 1)
    """seed of random weights and of uniform initial values"""
    quick: bool = False
    """few pictures and steps, for a first look within two minutes; the figures are rough then"""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.experiments if name not in (*EXPERIMENTS, "all")]
        if unknown or not self.experiments:
            raise OptionError(
                f"experiments has {unknown[0] if unknown else 'nothing'!r}, expected some of {', '.join(EXPERIMENTS)}, all"
            )

    def scaled(self) -> StudyOptions:
        """Return the options with the numbers that ``quick`` stands for."""
        if not self.quick:
            return self
        lowered: dict[str, Any] = {name: min(value, getattr(self, name)) for name, value in QUICK.items()}
        return dataclasses.replace(self, **lowered, others=self.others[:2], photos=())

    def chosen(self) -> list[str]:
        """Return the experiments that are asked for, in the report's order.

        Raises:
            OptionError: one of them needs pictures without a face, and there are none.
        """
        names = [name for name in EXPERIMENTS if name in self.experiments or "all" in self.experiments]
        if not self.others and (missing := [name for name in ("init", "classes") if name in names]):
            raise OptionError(
                f"{' and '.join(missing)} compare faces with other pictures: name some, such as "
                "--others cat=skimage:chelsea, or choose other experiments"
            )
        return names
