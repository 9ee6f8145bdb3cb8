"""Options of `limner train`.  No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from limner.options import knob, with_default
from limner.training.shared_options import LoopOptions

CHANNEL_TABLES: dict[str, dict[int, int]] = {
    "slim": {4: 256, 8: 256, 16: 256, 32: 128, 64: 64, 128: 32, 256: 16, 512: 16, 1024: 8},
    "mid": {4: 256, 8: 256, 16: 256, 32: 256, 64: 128, 128: 64, 256: 32, 512: 16, 1024: 16},
    "half": {size: min(512, 16384 // size) for size in (4, 8, 16, 32, 64, 128, 256, 512, 1024)},
    "config-f": {size: min(512, 32768 // size) for size in (4, 8, 16, 32, 64, 128, 256, 512, 1024)},
}
DISCRIMINATOR_TABLE = {4: 128, 8: 128, 16: 128, 32: 96, 64: 64, 128: 32, 256: 16, 512: 16, 1024: 8}


@dataclass(frozen=True)
class GanOptions(LoopOptions):
    """Train a generator against a discriminator."""

    data: tuple[str, ...] = knob(())
    """Folder or zip of training pictures (square, aligned), or several: A,B."""
    out: str = with_default(LoopOptions, "out", "runs/gan")
    resolution: int = knob(64, lo=8, hi=1024)
    """Side of the generated image in px, 4 times a power of two."""
    channels: str = knob("slim", choices=tuple(CHANNEL_TABLES))
    """Channels per resolution: slim and mid for CPUs, half as stylegan2-ada below 512 px, config-f as published."""
    w_dim: int = knob(512, lo=8, hi=1024)
    """Width of z and w."""
    mapping_depth: int = knob(2, lo=1, hi=16)
    """Layers of the mapping network; the papers use 8, small data needs 2."""
    discriminator: str = knob("projected", choices=("projected", "stylegan2"))
    """projected: small heads on frozen EfficientNet-Lite0 features, fit for two CPU cores; stylegan2: as published."""
    batch_size: int = with_default(LoopOptions, "batch_size", 32)
    batch_per_device: int = knob(0, lo=0, hi=4096)
    """Images that one process holds at once; smaller means gradients are accumulated. 0: its whole share."""
    lr_g: float = knob(0.002, lo=0, hi=1)
    """Learning rate of the generator (Adam)."""
    lr_d: float = knob(0.002, lo=0, hi=1)
    """Learning rate of the discriminator (Adam)."""
    beta2: float = knob(0.99, lo=0, hi=1)
    """Adam's second beta; the first is 0."""
    decay_kimg: float = with_default(LoopOptions, "decay_kimg", 0.0)
    """Lower both learning rates to a tenth along a cosine over the last so many thousand images."""
    ema_kimg: float = with_default(LoopOptions, "ema_kimg", 2.0)
    ema_rampup: float = knob(0.05, lo=0, hi=1)
    """The half-life is at most this share of the images seen so far; 0 for no ramp."""
    mixing: float = knob(0.3, lo=0, hi=1)
    """Probability of style mixing; the papers use 0.9."""
    moment_weight: float = knob(5.0, lo=0, hi=100)
    """projected: weight of matching mean and spread of real features; keeps variety and colour."""
    frechet_weight: float = knob(0.0, lo=0, hi=1000)
    """projected: weight of the Fréchet distance itself as a loss, on running statistics; asks for what is missing."""
    reconstruct: float = knob(0.0, lo=0, hi=0.9)
    """projected: share of every batch that gives training pictures back through an embedder; an experiment."""
    reconstruct_weight: float = knob(3.0, lo=0, hi=1000)
    """Weight of the distance between picture and reconstruction (discriminator features and pixels)."""
    latent_weight: float = knob(1.0, lo=0, hi=100)
    """Weight of pulling mapped noise to the distribution of the embedded latents; 0 leaves the mapping alone."""
    cycle_weight: float = knob(0.2, lo=0, hi=100)
    """Weight of the embedder's finding the known latents of generated images."""
    lr_e: float = knob(0.001, lo=0, hi=1)
    """Learning rate of the embedder (Adam)."""
    embed_kimg: float = knob(8.0, lo=0)
    """Thousands of generated images from which the embedder learns alone at first."""
    feature_resolution: int = knob(128, lo=32, hi=512)
    """projected: size in px at which the frozen trunk looks at images."""
    crop: int = knob(0, lo=0, hi=1024)
    """projected: judge random windows of so many px instead of whole images, as many values as feature_resolution
    then takes; with grow_kimg, new layers learn at a fraction of the cost. 0 for whole images."""
    below_weight: float = knob(0.0, lo=0, hi=10_000)
    """projected: weight of what the highest resolution's layers change in squares of 4 px on average; with it they add what is
    finer than the image below them and leave its colours alone."""
    r1_gamma: float = knob(1.0, lo=0, hi=1000)
    """stylegan2: weight of the R1 penalty; 0.0002 resolution^2 / batch_size is a fair start."""
    d_reg_interval: int = knob(16, lo=1, hi=1000)
    """stylegan2: steps between R1 penalties (lazy regularisation)."""
    pl_weight: float = knob(0.0, lo=0, hi=100)
    """Weight of path-length regularisation; 2 as published, 0 for off."""
    g_reg_interval: int = knob(4, lo=1, hi=1000)
    """Steps between path-length penalties."""
    augment: str = knob("diff", choices=("none", "diff", "ada"))
    """diff: colour, shift, cutout at a fixed probability; ada: the full adaptive pipe."""
    augment_p: float = knob(0.3, lo=0, hi=1)
    """diff: the probability; ada: the probability to start from."""
    ada_target: float = knob(0.6, lo=0, hi=1)
    """ada: wanted share of real images that the discriminator is sure of."""
    ada_kimg: float = knob(500.0, lo=0.01, hi=100_000)
    """ada: thousands of images in which the probability could go from 0 to 1; 100 for transfer."""
    freeze_d: int = knob(0, lo=0, hi=16)
    """stylegan2: leave so many of the discriminator's highest-resolution blocks as they were (transfer)."""
    freeze_g: str = knob("")
    """Parts of the generator that stay as they were (transfer): mapping, and layers as a layer mask, such as
    mapping,4px-16px; the child then differs from its parent less and packs smaller."""
    init: str = knob("")
    """Model file to start from; a smaller one is grown, its new layers starting at zero."""
    grow_kimg: float = knob(0.0, lo=0)
    """After growing, train only the new layers for so many thousand images."""
    warmup_kimg: float = knob(0.0, lo=0)
    """Start from bare weights gently: the discriminator alone at first, then the generator's learning rate rises."""
    only_discriminator: bool = knob(False)
    """Keep the generator as it is and train only the discriminator, for a model that lacks one."""
    sheet_kimg: float = knob(5.0, lo=0.001)
    """Thousands of images between sheets of samples."""
    metric_kimg: float = knob(0.0, lo=0)
    """Thousands of images between measured figures (Fréchet, kernel distance, precision, recall); 0 for only at the end."""
    metric_samples: int = knob(2000, lo=0, hi=100_000)
    """Images per measurement; 0 measures nothing."""
    w_samples: int = knob(10_000, lo=100)
    """Samples from which the shipped mean w is computed."""
