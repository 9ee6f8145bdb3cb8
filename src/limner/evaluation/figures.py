"""What every figure of the report means; tables and definitions are made from here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from limner.nn.identity import SAME_PERSON


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        label: short name for tables.
        meaning: definition, for a stranger.
        better: ``up``, ``down`` or, where a value next to the floor's is best, ``near``.
        digits: after the point; -1 for a percentage.
    """

    label: str
    meaning: str
    better: str = "down"
    digits: int = 3

    @property
    def arrow(self) -> str:
        """The direction of better, for table heads."""
        return {"up": "↑", "down": "↓", "near": "≈"}[self.better]

    def show(self, value: Any) -> str:
        """Return a value as it stands in a table."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "–"
        if isinstance(value, str):
            return value
        if math.isinf(value):
            return "∞"
        return f"{100 * value:.0f} %" if self.digits < 0 else f"{value:.{self.digits}f}"


_FEATURES = (
    "features: 320 numbers per picture, the mean of the last map of EfficientNet-Lite0 at 128 px; comparable "
    "within this project only, not with published Inception figures"
)

FIGURES: dict[str, Figure] = {
    # Generation
    "frechet": Figure(
        "Fréchet distance",
        f"distance of two Gaussians fitted to the features of either set ({_FEATURES}); it falls with the number of "
        "pictures, so that only equal numbers are compared",
        digits=1,
    ),
    "kernel": Figure(
        "kernel distance",
        "squared maximum mean discrepancy of the features with a cubic kernel (KID), unbiased, so that it may be below 0",
        digits=2,
    ),
    "precision": Figure(
        "precision",
        "share of generated pictures that lie within the neighbourhood (3 nearest) of a real one: are they realistic?",
        "up",
    ),
    "recall": Figure(
        "recall",
        "share of real pictures that lie within the neighbourhood of a generated one: is everything there is covered?",
        "up",
    ),
    "person_frechet": Figure(
        "persons: Fréchet distance", "Fréchet distance of dlib's face embeddings, 128 numbers per picture"
    ),
    "person_precision": Figure("persons: precision", "precision by the same embeddings", "up"),
    "person_recall": Figure("persons: recall", "recall by the same embeddings", "up"),
    "frechet_floor": Figure(
        "floor", "Fréchet distance of as many other real pictures to the same ones", "down", 1
    ),
    "floor_ratio": Figure(
        "times the floor", "Fréchet distance of the generator divided by the floor's", "down", 1
    ),
    "face_share": Figure("face found", "share of pictures in which MTCNN finds a face", "up", -1),
    "identity_spread": Figure(
        "spread of persons",
        "mean squared distance of dlib's face embedding between every two pictures: how different the people are",
        "near",
    ),
    "colour_spread": Figure(
        "spread of colours",
        "root mean variance of the colours at 8 x 8 px, from 0 to 1: layout, light, skin, hair and backdrop together",
        "near",
    ),
    "spread": Figure(
        "spread",
        "standard deviation among the generated pictures divided by that among the held-out ones: 1 is right, 0 is no "
        "variety",
        "near",
        2,
    ),
    "shift": Figure(
        "shift",
        "Wasserstein distance of the distributions, in standard deviations of the held-out pictures",
        "down",
        2,
    ),
    # Memorising
    "near_features": Figure(
        "distance to the nearest training picture, features",
        "median over pictures of the smallest Euclidean distance of features to any training picture",
        "near",
        2,
    ),
    "near_pixels": Figure(
        "distance to the nearest training picture, pixels",
        "median over pictures of the smallest root mean squared difference at 32 px, from 0 to 1, to any training picture "
        "or its mirror image",
        "near",
    ),
    "too_near": Figure(
        "too near",
        "share of pictures nearer to a training picture (by features) than 99 % of the held-out pictures are; about 1 % "
        "where nothing was memorised, 100 % where everything was",
        "down",
        -1,
    ),
    "too_near_pixels": Figure("too near, pixels", "the same by pixels at 32 px", "down", -1),
    # Inversion
    "psnr": Figure("PSNR dB", "peak signal-to-noise ratio between picture and reconstruction", "up", 2),
    "ssim": Figure("SSIM", "structural similarity of picture and reconstruction, 1 for equal ones", "up"),
    "perceptual": Figure(
        "perceptual",
        "distance of features on all five maps of EfficientNet-Lite0 (or LPIPS, if chosen); 0 for equal pictures, about 1 "
        "for two strangers",
    ),
    "identity": Figure(
        "identity",
        f"squared distance of dlib's face embedding; below {SAME_PERSON} dlib takes two faces for one person",
    ),
    "from_mean": Figure(
        "from mean", "root mean square over the rows of w+ of their distance from the mean w", "near", 2
    ),
    "same_person": Figure(
        "same person", f"share of pictures whose identity distance stays below {SAME_PERSON}", "up", -1
    ),
    "recognised": Figure(
        "recognised",
        "share of results whose person is nearer (dlib's embedding) to the right input than to every other input",
        "up",
        -1,
    ),
    "seconds": Figure("seconds", "wall time per face on the machine named above", "down", 2),
    "learn_seconds": Figure(
        "seconds to learn",
        "wall time of learning the style, the search for its picture's code included",
        "down",
        0,
    ),
    "steps": Figure("steps", "training steps that were done in the time given", "near", 0),
    # Stylization
    "to_truth": Figure(
        "distance to the true render",
        "perceptual distance (as above, 0 for equal, about 1 for two strangers) between the restyled photo and the render "
        "of the same scene in the wanted look",
    ),
    "gram_truth": Figure(
        "style distance to the true render",
        "difference of Gram matrices of Lite0's five maps, relative to their size: textures and colours without place",
    ),
    "identity_kept": Figure("identity kept", "squared identity distance between output and input photo"),
    "right_style": Figure(
        "right style nearest",
        "share of outputs to which, of all styles' reference pictures, the right one is nearest by Gram matrices",
        "up",
        -1,
    ),
    "apart": Figure(
        "people stay apart",
        "mean identity distance between outputs of different people, divided by the same of the inputs; 0 where all "
        "outputs show one person",
        "up",
        -1,
    ),
    # Translation
    "nearest_truth": Figure(
        "own face nearest",
        "share of results to which, of all scenes' true faces, their own is nearest by perceptual distance",
        "up",
        -1,
    ),
    "mean_rank": Figure(
        "mean rank",
        "mean place of the own true face among all scenes' by perceptual distance, 1 being the nearest; chance gives half "
        "the number of scenes",
        "down",
        1,
    ),
}
