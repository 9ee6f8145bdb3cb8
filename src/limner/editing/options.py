"""Options of editing.  No torch here."""

from __future__ import annotations

import dataclasses

from limner.options import Options, knob

EASINGS = ("linear", "smooth", "in", "out")
NOISES = ("joint", "after", "none")


@dataclasses.dataclass(frozen=True)
class MorphOptions(Options):
    """How one face turns into the next."""

    frames: int = knob(20, lo=2, hi=10_000)
    """pictures from one face to the next, both included"""
    easing: str = knob("linear", choices=EASINGS)
    """pace: linear, smooth (slow at both ends), in (slow at first), out (slow at last)"""
    layers: str = knob("all")
    """layers that change, as a layer mask (coarse, fine, 0-6, 64px-); the others stay the first face's"""
    loop: bool = False
    """turn back into the first face at the end, for a film that repeats"""

    def count_pictures(self, faces: int) -> int:
        """Return how many pictures a morph through so many faces has; one that repeats shows the first face once."""
        return (faces if self.loop else faces - 1) * (self.frames - 1) + (not self.loop)


@dataclasses.dataclass(frozen=True)
class MixOptions(Options):
    """How two faces are mixed by layers."""

    layers: str = knob("middle")
    """layers that are taken from the style, as a layer mask: coarse (pose, shape), middle (features), fine (colours),
    4-7, 64px-, or auto: the upper half of all rows, 9 and up of 18"""
    strength: float = knob(1.0, lo=0.0, hi=1.0, step=0.05)
    """how far these layers go over to the style"""


@dataclasses.dataclass(frozen=True)
class SearchOptions(Options):
    """How codes and noise maps are searched under several losses."""

    steps: int = knob(150, lo=1, hi=20_000)
    """steps of the search"""
    learning_rate: float = knob(0.05, lo=1e-5, hi=1.0)
    """step size of Adam at its height"""
    noise: str = knob("joint", choices=NOISES)
    """noise maps: searched together with the codes, after them for as many steps with the codes fixed, or left alone"""
    noise_reg: float = knob(1e5, lo=0.0, hi=1e9)
    """weight of the noise maps' correlation, which keeps the picture out of them"""
    search_layers: str = knob("all")
    """layers whose codes are searched, as a layer mask; the others stay as they are"""
    w_norm: float = knob(0.0, lo=0.0, hi=1e6)
    """weight of the codes' mean squared distance from the mean, in standard deviations; keeps the face plausible"""
    feather: float = knob(0.03, lo=0.0, hi=0.5, step=0.01)
    """width of the region's soft edge, as a share of the picture's side"""
    seed: int = knob(0, lo=0, hi=2**31 - 1)
    """seed of the random numbers"""


@dataclasses.dataclass(frozen=True)
class TransferOptions(SearchOptions):
    """How a picture's style is put on a face."""

    way: str = knob("layers", choices=("layers", "gram"))
    """layers: take the upper layers from the style's codes, at once; gram: search the codes whose picture has the style's
    statistics of features and the face's content"""
    layers: str = knob("auto")
    """with layers: what is taken from the style, as a layer mask; auto is the upper half of all rows, 9 and up of 18"""
    strength: float = knob(1.0, lo=0.0, hi=1.0, step=0.05)
    """with layers: how far they go over to the style"""
    noise: str = knob("none", choices=NOISES)
    style_weight: float = knob(0.5, lo=0.0, hi=1e6)
    """with gram: weight of the difference of Gram matrices, as a share of the style's own"""
    style_maps: tuple[int, ...] = knob((0, 1, 2), lo=0)
    """with gram: maps of the feature trunk that are compared, 0 being the finest"""
    content: float = knob(0.5, lo=0.0, hi=1e6)
    """with gram: weight of the perceptual distance from the face"""
    l2: float = knob(0.1, lo=0.0, hi=1e6)
    """with gram: weight of the mean squared difference of pixels from the face; 10 times as much outside the region"""


@dataclasses.dataclass(frozen=True)
class ExpressionOptions(Options):
    """How an expression is carried over: w1 + strength (w3 - w2)."""

    strength: float = knob(1.0, lo=-5.0, hi=5.0, step=0.05)
    """lambda: 0 leaves the face as it is, 1 takes the whole difference, more exaggerates, less than 0 reverses"""
    layers: str = knob("all")
    """layers that take the difference, as a layer mask; coarse and middle keep the colours"""
    smooth: int = knob(1, lo=1, hi=101)
    """frames of a driving sequence whose codes are averaged, against flicker; 1 takes each as it is"""
    feather: float = knob(0.06, lo=0.0, hi=0.5, step=0.01)
    """width of the region's soft edge, as a share of the picture's side"""


@dataclasses.dataclass(frozen=True)
class CrossoverOptions(SearchOptions):
    """How a region of one face is put into another."""

    steps: int = knob(200, lo=1, hi=20_000)
    l2: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the mean squared difference of pixels, in either part"""
    perceptual: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the perceptual distance, in either part"""


@dataclasses.dataclass(frozen=True)
class InpaintOptions(SearchOptions):
    """How a missing region is filled."""

    steps: int = knob(200, lo=1, hi=20_000)
    learning_rate: float = knob(0.1, lo=1e-5, hi=1.0)
    noise: str = knob("none", choices=NOISES)
    w_norm: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the codes' mean squared distance from the mean, in standard deviations; less follows what is known more
    closely and leaves the hole discoloured, since nothing else holds the face there"""
    l2: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the mean squared difference of pixels, where the picture is known"""
    perceptual: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the perceptual distance, where the picture is known"""
    seamless: bool = True
    """carry the colours around the hole smoothly into it, for backdrops that the generator cannot paint"""


@dataclasses.dataclass(frozen=True)
class DirectionOptions(Options):
    """How far a face goes along directions."""

    layers: str = knob("all")
    """layers that move, as a layer mask, besides what each direction says itself"""
    feather: float = knob(0.06, lo=0.0, hi=0.5, step=0.01)
    """width of the region's soft edge, as a share of the picture's side"""
