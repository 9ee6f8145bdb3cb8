"""Options of `limner synth`.  No torch here, and nothing that renders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from limner.options import Options, knob

LOOKS = ("toon", "comic", "clay", "pencil")
LOOK_VERSIONS = (1, 2)
FORMATS = ("jpg", "png")
# Domain -> "module:function"; the function takes `SynthOptions` and returns a `dataset.Painter`.
DOMAINS: dict[str, str] = {
    "heads": "limner.synth.heads:HeadPainter",
    **dict.fromkeys(
        ("cartoons", "facesjs", "toon-head", "personas", "pixel-art", "lorelei"),
        "limner.synth.cartoon:CartoonPainter",
    ),
}


@dataclasses.dataclass(frozen=True)
class SynthOptions(Options):
    """What is rendered, and how it is stored."""

    domain: str = knob("heads", positional=True)
    """what is rendered: heads; cartoons (all styles below) or one of facesjs, toon-head, personas, pixel-art, lorelei"""
    out: Path = knob(Path("synth"), positional=True)
    """folder of the data set; one that was begun with the same options is continued"""
    seeds: tuple[int, ...] = knob(tuple(range(16)), lo=0, hi=2**31 - 1)
    """one portrait each, such as 0-999 or 3,5,8; a seed is the same portrait on every run"""
    size: int = knob(256, lo=32, hi=1024)
    """side of the pictures in px"""
    assets: Path | None = None
    """folder with the asset pack (docs/synth.md); without it, heads are the plain ones that come with Limner"""
    looks: tuple[str, ...] = ()
    """heads also as toon, comic, clay, pencil: one folder each, same scene"""
    labels: bool = False
    """heads also as label maps, which say what each pixel shows: skin, hair, eyes and so on"""
    frontal: bool = False
    """heads also from the front, relaxed, in even light before grey"""
    look_version: int = knob(LOOK_VERSIONS[0], lo=LOOK_VERSIONS[0], hi=LOOK_VERSIONS[-1])
    """of heads: 1 renders what the bundled models were trained on; 2 has friendlier faces, less shine, finer hair, and
    clothes that repeat less"""
    format: str = knob("jpg", choices=FORMATS)
    """of the pictures; label maps are always png"""
    quality: int = knob(92, lo=1, hi=100)
    """of jpg"""
    processes: int = knob(1, lo=1, hi=256)
    """how many render at once; a software renderer gains up to the number of cores"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for look in self.looks:
            check_name("look", look, LOOKS)
        check_name("domain", self.domain, tuple(DOMAINS))


def check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    """Raise `OptionError` unless ``name`` is known."""
    import difflib

    from limner.errors import OptionError

    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise OptionError(f"unknown {what} {name!r}, expected one of {', '.join(known)}{hint}")
