"""Options of ``limner edit``; no torch here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from limner import editing
from limner.app.edited import SequenceOptions
from limner.app.outputs import OutputOptions
from limner.options import knob
from limner.pipeline.options import PortraitOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class MorphOptions(editing.MorphOptions, SequenceOptions, PortraitOptions, OutputOptions):
    """Options of ``limner edit morph``."""

    faces: tuple[str, ...] = knob()
    """two faces or more, in the order they turn into each other: photos, latent files, or seed:N for random faces"""
    out: Path = Path("morph.gif")
    """a film (.gif, .mp4), a strip (.png, .jpg, ...), or a folder for one picture per frame"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixOptions(editing.MixOptions, PortraitOptions, OutputOptions):
    """Options of ``limner edit mix``."""

    faces: tuple[str, ...] = knob()
    """faces whose other layers stay: photos, latent files, or seed:N for random faces"""
    styles: tuple[str, ...] = knob(())
    """faces that the layers are taken from, of the same kinds; required"""
    grid: bool = False
    """write one sheet with a face per row and a style per column instead of one picture each"""
    out: Path = Path("mixed")
    """folder for the pictures; a name that ends in .png, .jpg, ... is one picture or sheet"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneOptions(OutputOptions):
    """What the commands with one result have."""

    compare: bool = False
    """write the given faces and the result side by side"""
    save_latent: Path | None = None
    """also write the edited codes, with noise maps and change of the generator, to this .safetensors file"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferOptions(OneOptions, editing.TransferOptions, PortraitOptions):
    """Options of ``limner edit transfer``."""

    portrait: str = knob()
    """the face: a photo, a latent file, or seed:N for a random face"""
    style: str = knob()
    """the face whose style it gets, of the same kinds; with --way gram any picture"""
    region: str = ""
    """with --way gram, where the style goes: a name (face, mouth, nose, eyes, upper, left, ...), several joined by +, box:LEFT:TOP:RIGHT:BOTTOM
    or ellipse:X:Y:HALF_WIDTH:HALF_HEIGHT in shares of the side, or a picture, white there; 'not ' in front inverts"""
    out: Path = Path("transfer.png")
    """the picture"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpressionOptions(OneOptions, editing.ExpressionOptions, SequenceOptions, PortraitOptions):
    """Options of ``limner edit expression``."""

    portrait: str = knob()
    """the face that changes: a photo, a latent file, or seed:N for a random face"""
    neutral: str = knob("", positional=True)
    """another face without the expression; left out with --driving, its first frame"""
    expressive: str = knob("", positional=True)
    """that face with the expression"""
    driving: tuple[str, ...] = knob(())
    """a film of that face, or its frames in order, instead of one expression"""
    region: str = ""
    """the part that changes: a name (face, mouth, nose, eyes, upper, left, ...), several joined by +, box:... or
    ellipse:... or a picture, as for limner edit transfer; left out, all of it"""
    out: Path = Path("expression.png")
    """the picture; with --driving a film (.gif, .mp4), a strip (.png, ...), or a folder for one picture per frame"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossoverOptions(OneOptions, editing.CrossoverOptions, PortraitOptions):
    """Options of ``limner edit crossover``."""

    portrait: str = knob()
    """the face around the region: a photo, a latent file, or seed:N for a random face"""
    other: str = knob()
    """the face within it"""
    region: str = "left"
    """the part that comes from the other: a name (face, mouth, nose, eyes, upper, left, ...), several joined by +, box:...
    or ellipse:... or a picture, as for limner edit transfer"""
    out: Path = Path("crossover.png")
    """the picture"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InpaintOptions(OneOptions, editing.InpaintOptions, PortraitOptions):
    """Options of ``limner edit inpaint``."""

    photo: Path = knob()
    """the photo; its aligned face is what is filled"""
    hole: str = knob()
    """the missing part: a name (face, mouth, nose, eyes, upper, left, ...), several joined by +, box:... or ellipse:...
    of the aligned face, or a picture, white there; one of the photo's size is aligned with it"""
    keep: bool = True
    """take what is known from the photo; no gives the painted face alone"""
    out: Path = Path("inpainted.png")
    """the picture"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectionOptions(OneOptions, editing.DirectionOptions, SequenceOptions, PortraitOptions):
    """Options of ``limner edit direction``."""

    portrait: str = knob()
    """the face: a photo, a latent file, or seed:N for a random face"""
    directions: Path = knob()
    """file of directions"""
    move: tuple[str, ...] = knob(())
    """positions of the sliders, such as smile=2,age=-1; NAME=FROM:TO gives a sequence of pictures"""
    frames: int = knob(7, lo=2, hi=10_000)
    """pictures of such a sequence"""
    region: str = ""
    """the part that changes: a name (face, mouth, nose, eyes, upper, left, ...), several joined by +, box:... or
    ellipse:... or a picture, as for limner edit transfer; left out, all of it"""
    out: Path = Path("direction.png")
    """the picture; of a sequence a film (.gif, .mp4), a strip (.png, ...), or a folder for one picture per frame"""
