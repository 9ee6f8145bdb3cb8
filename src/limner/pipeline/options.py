"""Options of whole jobs (imports no torch)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from limner import zoo
from limner.errors import OptionError
from limner.faces.options import AlignOptions, DetectOptions, PasteOptions
from limner.inversion.options import COMPACT, ENCODED
from limner.options import Options, knob
from limner.stylization.options import DualOptions, JojoganOptions, StyleOptions

INVERTERS = ("auto", "encoder", "hybrid", "w", "w+", "pivotal")
DUAL_INVERTERS = (*INVERTERS, "z+", *ENCODED)
PICTURE_INVERTERS = ("auto", "encoder", "hybrid", "z", "z+", "w", "w+", "ii2s", "psp", "e4e", "restyle")
"""Those whose codes can be brought to w+ and that leave the generator as it is."""
PHOTO_INVERTERS = (*INVERTERS, "z", "z+", "s", "ii2s", *ENCODED)
LOOKING = ("auto", *COMPACT, "pivotal")
"""Those that work with a compact encoder, the generator's own or the one that is named."""
LATENT_FILES = (".safetensors", ".npz", ".npy", ".pt")
"""Endings of files of codes: native ones, and those of other programs."""
TRUNKS = ("lite0", "lpips-vgg", "lpips-alex")


@dataclasses.dataclass(frozen=True)
class TrunkOptions(Options):
    """What perceptual distances are measured with; for every command that embeds faces."""

    trunk: str = knob("lite0", choices=TRUNKS)
    """what perceptual distances are measured with: lite0 is bundled; LPIPS on VGG16 or AlexNet needs files that limner
    models pull fetches, and has a scale of its own, while the defaults of this program were chosen with lite0"""


@dataclasses.dataclass(frozen=True)
class EncoderOptions(Options):
    """The encoder that finds codes, where it is not the generator's own."""

    encoder: Path | None = None
    """checkpoint of an encoder that was trained with the model: pSp, e4e, ReStyle or HyperInverter, for the inverter of that
    name, or a compact one in place of the generator's own"""


def check_encoder(inverter: str, encoder: str | Path | None) -> None:
    """Raise `OptionError` where an encoder is needed and none is named, or is named and not used."""
    if not encoder and inverter in ENCODED:
        raise OptionError(f"inverter is {inverter!r}; name its checkpoint with --encoder")
    if encoder and inverter not in (*ENCODED, *LOOKING):
        kinds = ", ".join((*ENCODED, *LOOKING))
        raise OptionError(
            f"inverter is {inverter!r}, which does not use --encoder; those that do are {kinds}"
        )


@dataclasses.dataclass(frozen=True)
class PhotoOptions(DetectOptions, AlignOptions, PasteOptions):
    """How the faces of a photo are found, embedded and put back."""

    size: int = knob(512, lo=16, hi=4096)
    """side in px of the portrait that crop writes and compare shows"""
    mask: str = knob("ellipse", choices=("ellipse", "soft-square"))
    """shape of the part that is pasted: an ellipse (the head) or a square with round corners (nearly the whole crop,
    backdrop of the style included)"""
    feather: float = knob(0.25, lo=0.0, hi=0.5, step=0.01)
    color_match: str = knob("none", choices=("none", "lab", "linear"))
    inverter: str = knob("auto", choices=INVERTERS)
    """how a face is embedded: encoder takes a moment, hybrid searches on from there; auto is hybrid if the generator
    has an encoder, else w+; w keeps closest to faces the generator knows, w+ closer to the photo, pivotal also tunes
    the generator to the person, which is closest and slowest"""
    invert_steps: int = knob(40, lo=1, hi=20_000)
    """steps of the search"""
    tune_steps: int = knob(100, lo=1, hi=20_000)
    """steps of tuning with the inverter pivotal"""
    closeness: float = knob(0.05, lo=0.0, hi=10.0)
    """how strongly the code is kept near faces that the generator knows; a style answers better to such codes"""
    detail: bool = True
    """finish faces with the layers that were grown above the generator's resolution, where there are such (256 px with
    the bundled models) and the style is none of flat looks, whose files say that they are better without"""
    crop: bool = False
    """give the aligned portrait instead of the whole photo"""
    seed: int = knob(0, lo=0, hi=2**31 - 1)
    """seed of the random numbers"""


@dataclasses.dataclass(frozen=True)
class StylizeOptions(PhotoOptions, StyleOptions):
    """How the faces of a photo are found, embedded, restyled and put back."""

    inverter: str = knob("auto", choices=PHOTO_INVERTERS)
    """how a face is embedded: encoder takes a moment, hybrid searches on from there; auto is hybrid if the generator
    has an encoder (for blends encoder), else w+; w keeps closest to faces the generator knows, w+ closer to the photo,
    pivotal also tunes the generator to the person, which is closest and slowest; z, z+, s and ii2s search there; psp, e4e,
    restyle and hyper take an encoder of this kind"""


@dataclasses.dataclass(frozen=True)
class DualPhotoOptions(PhotoOptions, DualOptions):
    """How the faces of a photo are found, embedded, restyled by a DualStyleGAN and put back."""

    inverter: str = knob("w+", choices=DUAL_INVERTERS)
    """how a face is embedded: encoder takes a moment, hybrid searches on from there; auto is hybrid if the generator has an
    encoder, else w+; w keeps closest to faces the generator knows, w+ closer to the photo, z+ is the space that such
    models are trained on, pivotal also tunes the generator to the person, which is closest and slowest; psp, e4e, restyle
    and hyper take an encoder of this kind, psp the published one of DualStyleGAN"""


@dataclasses.dataclass(frozen=True)
class LearnOptions(JojoganOptions):
    """How a style is learned from picture files."""

    aligned: bool = False
    """the pictures are aligned faces already: take each as a whole, without looking for a face"""
    inverter: str = knob("w+", choices=PICTURE_INVERTERS)
    """how the pictures' codes are found: w+, w, z+, z and ii2s (w+ near the codes of the mapping network) search; encoder
    takes a moment, hybrid searches on from there; auto is hybrid if the generator has an encoder, else w+; psp, e4e and
    restyle take an encoder of this kind"""
    invert_steps: int = knob(150, lo=1, hi=20_000)
    """steps of the search for the pictures' codes"""
    closeness: float = knob(0.01, lo=0.0, hi=10.0)
    """how strongly the pictures' codes are kept near faces that the generator knows; drawings need some"""
    pull: float = knob(0.4, lo=0.0, hi=1.0, step=0.05)
    """what limner stylize takes for its option of that name where none is given: 1 for looks that need no colour and no
    shade of the photo, such as ink"""
    detail: bool = True
    """finish faces in the style with the layers grown above the generator's resolution, where there are such; these know
    photos, so that flat looks such as ink, prints and toons are better without"""
    keep_codes: bool = knob(True)
    """keep the pictures' codes in the style file, for --resume; without them it holds more of the style, and going on
    searches them anew"""
    file_kilobytes: int = knob(490, lo=20, hi=1_000_000)
    """size of the style file, at most, though biases, picture and codes are kept whatever they take; less keeps less of
    the style"""


@dataclasses.dataclass(frozen=True)
class PortraitOptions(DetectOptions, TrunkOptions):
    """How the faces that are edited are found: in photos, in latent files, or from seeds."""

    model: str = zoo.DEFAULT_GENERATOR
    """generator, name or file"""
    encoder: str = ""
    """encoder, name or file: pSp, e4e, ReStyle or HyperInverter, for the inverter of that name, or a compact one in place of
    the generator's own; where it brings a generator along, that one takes the place of the model"""
    inverter: str = knob("auto", choices=PHOTO_INVERTERS)
    """how a face of a photo is embedded: encoder takes a moment, hybrid searches on from there; auto is hybrid if the
    generator has an encoder, else w+; w keeps closest to faces the generator knows, w+ closer to the photo, pivotal also tunes
    the generator to the person, which is closest and slowest; z, z+, s and ii2s search there; psp, e4e, restyle and hyper
    take an encoder of this kind"""
    invert_steps: int = knob(150, lo=1, hi=20_000)
    """steps of the search"""
    tune_steps: int = knob(100, lo=1, hi=20_000)
    """steps of tuning with the inverter pivotal"""
    face: str = "largest"
    """which face of a photo: largest, all, or the number of one face, 1 being the largest"""
    aligned: bool = False
    """the photos are aligned faces already: take each as a whole"""
    detail: bool = True
    """finish faces with the layers that were grown above the generator's resolution, where there are such (256 px with
    the bundled models); what is searched is searched without them"""
    psi: float = knob(0.7, lo=-2.0, hi=2.0)
    """truncation of random faces, seed:N: 0 is the mean face, 1 the full variety"""
    seed: int = knob(0, lo=0, hi=2**31 - 1)
    """seed of the random numbers"""
