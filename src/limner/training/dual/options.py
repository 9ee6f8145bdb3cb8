"""Options of `limner train dual`.  No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from limner.errors import OptionError
from limner.options import knob, to_mapping, with_default
from limner.training.shared_options import RunOptions

STAGES = ("tune", "destylize", "structure", "style", "refine", "sampler")
TITLES = {
    "tune": "the generator learns the pictures' style",
    "destylize": "faces behind the portraits",
    "structure": "structure transfer on faces",
    "style": "style transfer on the portraits",
    "refine": "refining the styles' codes",
    "sampler": "sampler of unseen styles",
}


@dataclass(frozen=True)
class DualTrainOptions(RunOptions):
    """Train a DualStyleGAN on a folder of portraits: six stages in order, each resumed where it stopped.

    Source: Yang et al. 2022 (arXiv 2203.13248), sections 3.1 to 3.3; weights and rates as published.  Lengths and batch
    are chosen for a CPU.
    """

    images: tuple[str, ...] = knob(())
    """Folder or zip of portraits of one style (square, aligned), or several: A,B."""
    select: str = knob("")
    """Use only files whose number lies in FIRST-LAST, such as 0-899, or in one of several ranges: 0-899,2000-2999."""
    pictures: int = knob(120, lo=0, hi=100_000)
    """How many of them get a style code, evenly spread over all; 0 for all. The discriminators see all."""
    out: str = knob("runs/dual")
    """Folder with one subfolder per stage, and the model; what lies there is resumed."""
    base: str = knob("heads")
    """Generator of faces, name or file."""
    tuned: str = knob("")
    """The same generator fine-tuned on the pictures, name or file; empty to do it here, as the first stage."""
    encoder: str = knob("auto")
    """Compact encoder of the base, name or file; auto takes one that belongs to it, none searches every code."""
    rank: int = knob(0, lo=0, hi=512)
    """Rank of the weights of residual blocks and colour layers: less makes a smaller and faster model (24: 1.2 MB at 128 px);
    0 for whole weights, as published."""
    fine_blocks: int = knob(0, lo=0, hi=16)
    """So many layers beyond 32 px have a residual block, too, which follows the structure: outlines and flat shades for a
    small generator (4 at 128 px); 0 as published."""
    init: str = knob("")
    """DualStyleGAN to start the extrinsic path from, also one of an earlier base: a model of this command or a bundled
    file; empty to start anew."""
    source: str = knob("")
    """Folder or zip of faces of the base's kind, for the discriminator of the structure stage; empty for the base's own."""
    source_select: str = knob("")
    """As select, for source."""
    vgg19: str = knob("")
    """File of torchvision's VGG19, for the losses of the paper; empty for one that is installed, else the bundled trunk."""
    arcface: str = knob("")
    """File of ArcFace (model_ir_se50.pth); empty for one that is installed, else the bundled embedder."""
    until: str = knob("sampler", choices=STAGES)
    """Last stage to run."""
    save_seconds: float = with_default(RunOptions, "save_seconds", 120.0)
    sheet_seconds: float = knob(120.0, lo=0)
    """Seconds between previews, besides the last one of every stage; 0 for only that."""
    scale: float = knob(1.0, lo=0.001, hi=1000)
    """Factor of all lengths: images of the stages, steps of the searches."""

    discriminator: str = knob("projected", choices=("projected", "stylegan2"))
    """projected: small heads on frozen EfficientNet-Lite0 features, fit for a CPU; stylegan2: as published."""
    batch_size: int = knob(8, lo=2, hi=1024)
    """Images per step of the structure and style stages; published 4 to 32."""
    lr: float = knob(0.0016, lo=0, hi=1)
    """Learning rate of the extrinsic path in these stages (Adam)."""
    lr_d: float = knob(0.0019, lo=0, hi=1)
    """Learning rate of the discriminator in these stages (Adam)."""
    warmup: float = knob(0.05, lo=0, hi=1)
    """Share of the structure and style stages over which the rate of the extrinsic path rises from near 0, and so does the
    adversarial loss in the style stage: first steps of Adam are as large as later ones, and new heads know nothing yet."""
    beta2: float = knob(0.992, lo=0, hi=1)
    """Adam's second beta; the first is 0."""
    r1_gamma: float = knob(10.0, lo=0, hi=1000)
    """stylegan2: weight of the R1 penalty."""
    d_reg_interval: int = knob(16, lo=1, hi=1000)
    """stylegan2: steps between R1 penalties (lazy regularisation)."""
    augment_p: float = knob(0.3, lo=0, hi=1)
    """Probability of each of the light changes that the discriminator sees."""
    mirror: bool = knob(True)
    """Flip half of the pictures that the discriminators see; portraits with codes are never flipped."""
    ema_kimg: float = knob(10.0, lo=0, hi=1000)
    """Half-life of the averaged extrinsic path in thousands of images."""
    ema_rampup: float = knob(0.1, lo=0, hi=1)
    """The half-life is at most this share of the stage's images so far; 0 for no ramp."""
    feature_resolution: int = knob(128, lo=32, hi=512)
    """projected: size in px at which the frozen trunk looks at images."""

    tune_kimg: float = knob(12.0, lo=0, hi=100_000)
    """Thousands of images for fine-tuning the generator; published 19."""
    tune_batch: int = knob(16, lo=1, hi=4096)
    """Images per step of it."""
    tune_lr: float = knob(0.001, lo=0, hi=1)
    """Learning rate of it, for both players."""
    tune_freeze: str = knob("mapping,4px")
    """Parts of the generator that stay as they were, so that codes of the base serve it."""

    destylize_batch: int = knob(4, lo=1, hi=1024)
    """Portraits that are searched at a time."""
    destylize_code_steps: int = knob(100, lo=0, hi=20_000)
    """Steps of the search in z+ for the code of a picture; it starts from the encoder's where there is one."""
    destylize_steps: int = knob(300, lo=0, hi=20_000)
    """Steps of the search through the fine-tuned generator."""
    destylize_lr: float = knob(0.1, lo=1e-5, hi=1)
    """Step size of Adam at its height."""
    destylize_perceptual: float = knob(1.0, lo=0, hi=1e6)
    """Weight of the perceptual distance from the portrait."""
    destylize_identity: float = knob(0.1, lo=0, hi=1e6)
    """Weight of the identity distance from the portrait."""
    destylize_spread: float = knob(1.0, lo=0, hi=1e6)
    """Weight of the rows' spread among each other, which keeps the code near ordinary faces."""
    destylize_truncation: float = knob(0.7, lo=0, hi=1)
    """How much of the found code the real face keeps; 0.5 for styles far from photos."""
    destylize_embed: str = knob("image", choices=("image", "code"))
    """What the face's code is found from: its image, as published, by encoder and search; or its own code, as the z+
    nearest to it, which is faster, and closer where encoders are weak."""
    destylize_color_lock: bool = knob(True)
    """Rows from 8 on keep the encoder's code."""

    structure_kimg: float = knob(6.0, lo=0, hi=100_000)
    """Thousands of images of the structure stage; published 14 to 58."""
    structure_adversarial: float = knob(0.1, lo=0, hi=1e6)
    """Weight of the adversarial loss there."""
    structure_perceptual: float = knob(1.0, lo=0, hi=1e6)
    """Weight of the perceptual distance from the mixed face."""
    structure_short: float = knob(1 / 12, lo=0, hi=0.5)
    """Share of the stage for each of the first two of the three boundaries; published a tenth of the last one's."""
    structure_encoded_interval: int = knob(4, lo=0, hi=1000)
    """Every so many steps the style is the encoder's code of a picture in place of its own; 0 for never."""

    style_kimg: float = knob(8.0, lo=0, hi=100_000)
    """Thousands of images of the style stage; published 32 to 67."""
    style_adversarial: float = knob(1.0, lo=0, hi=1e6)
    """Weight of the adversarial loss there."""
    style_perceptual: float = knob(1.0, lo=0, hi=1e6)
    """Weight of the perceptual distance of a portrait from its reconstruction."""
    style_contextual: float = knob(0.25, lo=0, hi=1e6)
    """Weight of the contextual distance from the exemplar."""
    style_matching: float = knob(0.25, lo=0, hi=1e6)
    """Weight of the distance of mean features from the exemplar's."""
    style_identity: float = knob(1.0, lo=0, hi=1e6)
    """Weight of the identity distance from the same face without style; published 1, caricatures 4."""
    style_frechet: float = knob(0.0, lo=0, hi=1e6)
    """Weight of the Fréchet distance of painted faces from all pictures: they are pulled as a whole to the look of the
    pictures, which needs no discriminator."""
    style_residual: float = knob(0.015, lo=0, hi=1e6)
    """Weight of the residual blocks' size: smaller bends shapes more; published 0.015, caricatures 0.005."""
    style_jitter: float = knob(0.1, lo=0, hi=10)
    """Standard deviation of the noise on a style's w+."""
    style_pair_interval: int = knob(2, lo=1, hi=1000)
    """Every so many steps a portrait is reconstructed from its face; the others style random faces."""

    refine_steps: int = knob(100, lo=0, hi=20_000)
    """Steps of refining a style's code."""
    refine_batch: int = knob(8, lo=1, hi=1024)
    """Styles that are refined at a time."""
    refine_lr_color: float = knob(0.1, lo=0, hi=10)
    """Step size for the colour rows; published 0.01 to 0.1."""
    refine_lr_structure: float = knob(0.005, lo=0, hi=10)
    """Step size for the structure rows."""

    sampler_epochs: int = knob(300, lo=0, hi=100_000)
    """Rounds of matching random numbers to codes and learning the matches."""
    sampler_lr: float = knob(0.001, lo=0, hi=1)
    """Learning rate of the sampler (Adam), halved every tenth of the rounds."""
    sampler_codes: int = knob(1000, lo=2, hi=1_000_000)
    """The codes are repeated, with a little noise, to about so many."""
    sampler_noise: float = knob(0.05, lo=0, hi=10)
    """Standard deviation of that noise."""
    sampler_batch: int = knob(128, lo=2, hi=100_000)
    """Codes per step."""

    def scaled(self) -> DualTrainOptions:
        """Return the same with ``scale`` worked into the lengths."""
        changes: dict[str, float] = {"scale": 1.0}
        for name in SCALED:
            value = getattr(self, name) * self.scale
            whole = isinstance(getattr(self, name), int)
            changes[name] = max(1, round(value)) if whole and getattr(self, name) else value
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.structure_short * 2 >= 1:
            raise OptionError(f"structure_short is {self.structure_short}, expected less than 0.5")
        if not any(getattr(self, name) for name in STYLE_LOSSES):
            raise OptionError(
                f"the style stage has no loss: all of {', '.join(STYLE_LOSSES)} are 0; give one a weight"
            )


STYLE_LOSSES = (
    "style_adversarial",
    "style_contextual",
    "style_matching",
    "style_identity",
    "style_residual",
    "style_frechet",
)
"""What every step of the style stage can have; the perceptual distance is of paired steps alone."""
SCALED = (
    "tune_kimg",
    "destylize_code_steps",
    "destylize_steps",
    "structure_kimg",
    "style_kimg",
    "refine_steps",
    "sampler_epochs",
)
UNCOUNTED = {
    "images",
    "out",
    "until",
    "seconds",
    "save_seconds",
    "sheet_seconds",
    "precision",
    "tuned",
    "base",
    "source",
}
"""Options that change no result, or that stand in a stage's key by their contents."""
PLAYED = {
    "discriminator",
    "batch_size",
    "lr",
    "lr_d",
    "beta2",
    "r1_gamma",
    "d_reg_interval",
    "augment_p",
    "ema_kimg",
}
PLAYED |= {
    "ema_rampup",
    "feature_resolution",
    "source_select",
    "mirror",
    "rank",
    "fine_blocks",
    "init",
    "warmup",
}
PLAYERS = ("structure", "style")
TUNED_WITH = {"discriminator", "augment_p", "mirror", "feature_resolution", "r1_gamma", "d_reg_interval"}
LENGTHS = {"tune_kimg", "style_kimg", "sampler_epochs"}
"""A stage that is over goes on when these grow; what comes after it is then out of date."""


def stage_key(options: DualTrainOptions, stage: str, before: str) -> str:
    """Return a digest of all that decides how a stage goes.

    Args:
        options: of the command.
        stage: one of `STAGES`.
        before: what the stage starts from: the digest of the networks and pictures, or the key of the stage before.
    """
    chosen = {}
    for name, value in to_mapping(options).items():
        owner = name.partition("_")[0]
        if owner in STAGES and name not in PLAYED and owner != stage:
            continue
        if name in PLAYED and stage not in PLAYERS and not (stage == "tune" and name in TUNED_WITH):
            continue
        if name not in UNCOUNTED | LENGTHS:
            chosen[name] = value
    text = json.dumps([stage, before, chosen], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
