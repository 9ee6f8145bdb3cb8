"""What the Image2StyleGAN paper says of its experiments, checked against what was found here.

Source: Abdal et al. 2019 (arXiv 1904.03189): section 3 (classes), 3.1 (moves), 3.2 (defects), 4 (spaces, weights), 5.1
(initial values), 5.2 (losses); retold in the project's seeds and not quoted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from limner import losses
from limner.evaluation.figures import FIGURES
from limner.evaluation.study_targets import FACES, OTHERS, Targets

Claims = list[tuple[str, bool, str]]
KEPT_DB = 2.0
"""A hole may cost the rest of a face so much PSNR, in dB, if embedding is to be called robust to it."""
GAIN_DB = 3.0
"""How much nearer than the mean face, in dB, a picture must come to be called embedded."""


class Result(Protocol):
    """What is read of a cell; see `limner.evaluation.study.Found`."""

    @property
    def targets(self) -> Targets: ...

    @property
    def image(self) -> Tensor: ...

    def mean(self, figure: str, chosen: list[int] | None = None) -> float: ...


def judge(experiment: str, found: Mapping[str, Result], mean_face: Tensor) -> Claims:
    """Return (statement of the paper, does it hold, figures) for an experiment.

    Args:
        experiment: its name.
        found: setting -> what it came to.
        mean_face: what the trained generator paints of the mean w, (1, 3, R, R).
    """
    return JUDGES[experiment](found, mean_face)


def _higher(found: Mapping[str, Result], better: str, worse: str, claim: str, figure: str = "psnr") -> Claims:
    a, b = found[better].mean(figure), found[worse].mean(figure)
    holds = a > b if figure in ("psnr", "ssim") else a < b
    show = FIGURES[figure].show
    return [(claim, holds, f"{better}: {show(a)}, {worse}: {show(b)} ({FIGURES[figure].label})")]


def _judge_space(found: Mapping[str, Result], mean_face: Tensor) -> Claims:
    return [
        *_higher(found, "w", "z", "w takes a face more closely than z"),
        *_higher(
            found, "w+", "w", "w+ takes a face more closely than w: one code for all layers is too little"
        ),
        *_higher(found, "w+", "w", "w+ keeps the person better than w", "identity"),
    ]


def _judge_weights(found: Mapping[str, Result], mean_face: Tensor) -> Claims:
    trained, random = "{}, trained weights", "{}, random weights"
    text = "in {}, trained weights take a face more closely than random ones"
    pairs = [[words.format(space) for words in (trained, random, text)] for space in ("w", "w+")]
    claims = [claim for better, worse, told in pairs for claim in _higher(found, better, worse, told)]
    claim = "the person is recognised with trained weights, not with random ones (w+)"
    return claims + _higher(found, "w+, trained weights", "w+, random weights", claim, "identity")


def _judge_init(found: Mapping[str, Result], mean_face: Tensor) -> Claims:
    claims = []
    for space in ("w+", "w"):
        pair = f"{space}, {FACES}, mean", f"{space}, {FACES}, uniform"
        claims += _higher(
            found, *pair, f"faces come closer from the mean w than from uniform numbers ({space})"
        )
        claims += _higher(found, *pair, f"and look more like the picture ({space})", "perceptual")
    claim = "faces end nearer to the mean w when they start there (w+)"
    claims += _higher(found, f"w+, {FACES}, mean", f"w+, {FACES}, uniform", claim, "from_mean")
    claim = "what is no face comes closer from uniform numbers"
    return claims + _higher(found, f"w+, {OTHERS}, uniform", f"w+, {OTHERS}, mean", claim)


def _judge_affine(found: Mapping[str, Result], mean_face: Tensor) -> Claims:
    base = found["as aligned"].mean("perceptual")
    moved = {name: one.mean("perceptual") for name, one in found.items() if name != "as aligned"}
    least = min(moved, key=lambda name: moved[name])
    shifts = [value for name, value in moved.items() if name.startswith("shifted")]
    rest = [value for name, value in moved.items() if not name.startswith("shifted")]
    far = {name: one.mean("from_mean") for name, one in found.items()}
    nearest = min(far, key=lambda name: far[name])
    return [
        (
            "embedding is sensitive to shift, rotation and zoom: every one costs perceptual distance",
            moved[least] > base,
            f"as aligned {base:.3f}, least costly {least} {moved[least]:.3f}",
        ),
        (
            "shifts are the worst of them",
            min(shifts) > max(rest),
            f"shifts {min(shifts):.3f} to {max(shifts):.3f}, the others {min(rest):.3f} to {max(rest):.3f} (perceptual)",
        ),
        (
            "aligned faces end nearest to the mean w",
            nearest == "as aligned",
            f"nearest: {nearest}, {far[nearest]:.2f}; as aligned {far['as aligned']:.2f}",
        ),
    ]


def _judge_defects(found: Mapping[str, Result], mean_face: Tensor) -> Claims:
    claims, whole = [], found["whole"].image
    for name, one in found.items():
        hole, before = one.targets.hole, one.targets.whole
        if hole is None or before is None:
            continue
        kept, same = (psnr_where(image, before, 1 - hole) for image in (one.image, whole))
        black, face = (psnr_where(one.image, target, hole) for target in (one.targets.image, before))
        stays = f"{name}: the rest of the face is embedded as well as before (within {KEPT_DB:g} dB)"
        around = f"around the hole {kept:.2f} dB, the whole face there {same:.2f} dB"
        within = f"within it {black:.2f} dB to black, {face:.2f} dB to the face"
        claims += [
            (stays, kept > same - KEPT_DB, around),
            (f"{name}: the hole is embedded as it is, not filled", black > face, within),
        ]
    return claims


def _judge_classes(found: Mapping[str, Result], mean_face: Tensor) -> Claims:
    others, known = found[OTHERS], found[FACES].mean("perceptual")
    claims = []
    for kind in dict.fromkeys(others.targets.names):
        chosen = [i for i, name in enumerate(others.targets.names) if name == kind]
        target = others.targets.image[chosen]
        start = float(losses.psnr(mean_face.expand_as(target).contiguous(), target).mean())
        end, far = others.mean("psnr", chosen), others.mean("perceptual", chosen)
        can = f"{kind}: can be embedded too ({GAIN_DB:g} dB nearer than the mean face)"
        claims += [
            (can, end > start + GAIN_DB, f"{end:.2f} dB, the mean face {start:.2f} dB"),
            (
                f"{kind}: less faithfully than faces",
                far > known,
                f"{far:.3f}, faces {known:.3f} (perceptual)",
            ),
        ]
    return claims


def _judge_loss(found: Mapping[str, Result], mean_face: Tensor) -> Claims:
    whole, four, pixels = "whole loss", "all four layers, no pixels", "pixels alone"
    alone = {name: one.mean("perceptual") for name, one in found.items() if name.endswith("alone")}
    best = min(alone, key=lambda name: alone[name])
    ours = found[whole].mean("perceptual")
    return [
        *_higher(found, whole, pixels, "pixels alone lose the look of a face", "perceptual"),
        *_higher(found, whole, pixels, "pixels alone lose the person", "identity"),
        (
            "all layers and pixels together look better than any single one",
            ours < alone[best],
            f"{whole} {ours:.3f}, best alone: {best} {alone[best]:.3f} (perceptual)",
        ),
        *_higher(found, whole, four, "pixels beside the four layers bring the colours nearer"),
    ]


JUDGES: dict[str, Callable[[Mapping[str, Result], Tensor], Claims]] = {
    "space": _judge_space,
    "weights": _judge_weights,
    "init": _judge_init,
    "affine": _judge_affine,
    "defects": _judge_defects,
    "classes": _judge_classes,
    "loss": _judge_loss,
}


@torch.no_grad()
def psnr_where(image: Tensor, target: Tensor, mask: Tensor) -> float:
    """Return the mean over pictures of the peak signal-to-noise ratio in dB within a mask.

    Args:
        image, target: (N, 3, R, R), [-1, 1].
        mask: (1, 1, R, R), 0 or 1.
    """
    squares = ((image - target) / 2).square() * mask
    mean = squares.sum((1, 2, 3)) / (mask.sum() * image.shape[1])
    return float((-10 * mean.clamp_min(1e-10).log10()).mean())
