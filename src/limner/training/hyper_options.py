"""Options of `limner train hyper`.  No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from limner.options import Options, knob, precision_knob


@dataclass(frozen=True)
class HyperOptions(Options):
    """Train the second stage of a small HyperInverter: changes of the generator beside the encoder's codes."""

    data: tuple[str, ...] = knob(())
    """Folder or zip of training pictures (square, aligned), or several: A,B; required."""
    out: str = knob("runs/hyper")
    """Folder for state, model, sheets and log; a run found there is resumed."""
    base: str = knob("heads")
    """Generator, name or file."""
    encoder: str = knob("")
    """Compact encoder that finds the codes, name or file; by default the one that belongs to the generator."""
    select: str = knob("")
    """Use only files whose number lies in FIRST-LAST, such as 0-10999, or in one of several ranges: 0-899,2000-2999; keeps
    test pictures out of training."""
    validate: str = knob("11000-11009")
    """The pictures of data that sheets and figures are made of."""
    kimg: float = knob(20.0, lo=0, hi=100_000)
    """Thousands of images the run has seen when it is finished."""
    seconds: float = knob(0.0, lo=0)
    """Stop, state saved, after this many seconds; 0 for no limit. Calling again resumes."""
    batch_size: int = knob(4, lo=1, hi=4096)
    """Images per step, over all processes."""
    refinements: int = knob(2, lo=1, hi=10)
    """Steps of the encoder."""
    layers: str = knob(
        "conv_without_bias",
        choices=("conv_without_bias", "conv_without_bias_without_torgb", "all_without_bias"),
    )
    """What may change: every convolution; those but the toRGB layers; every convolution and affine layer."""
    factors: int = knob(4, lo=1, hi=256)
    """Rank of every change."""
    width: int = knob(64, lo=8, hi=1024)
    """Channels of the pyramid."""
    gather: int = knob(16, lo=1, hi=1024)
    """Channels that become a group's vector."""
    hidden: int = knob(128, lo=8, hi=4096)
    """Length of the vectors that the changes of coarse, middle and fine layers are made from."""
    mirror: bool = knob(True)
    """Flip half of the training pictures."""
    jitter: float = knob(0.1, lo=0, hi=1)
    """Probability of changed brightness, of contrast and of saturation in a training picture."""
    lr: float = knob(0.001, lo=0, hi=1)
    """Learning rate."""
    optimizer: str = knob("adam", choices=("adam", "adamw", "ranger"))
    """adam, as published; adamw: with weight_decay; ranger: rectified Adam with lookahead."""
    weight_decay: float = knob(0.01, lo=0, hi=1)
    """adamw: share of the learning rate by which weights shrink in every step."""
    beta2: float = knob(0.99, lo=0, hi=1)
    """Second beta of the optimiser; the first is 0.9."""
    warmup_kimg: float = knob(0.2, lo=0)
    """The learning rate rises over so many thousand images."""
    decay_kimg: float = knob(0.0, lo=0)
    """It falls to a twentieth along a cosine over the last so many thousand images."""
    ema_kimg: float = knob(0.5, lo=0, hi=1000)
    """Half-life of the averaged network in thousands of images."""
    l2: float = knob(1.0, lo=0, hi=1000)
    """Weight of the mean squared difference of pixels, [-1, 1]."""
    perceptual: float = knob(0.8, lo=0, hi=1000)
    """Weight of the perceptual distance on the trunk."""
    identity: float = knob(0.1, lo=0, hi=1000)
    """Weight of the squared distance of the identity embeddings; 0 saves time."""
    size: float = knob(0.0, lo=0, hi=1000)
    """Weight of the changes' mean square, which keeps them small; the paper has none."""
    precision: str = precision_knob()
    processes: int = knob(1, lo=1, hi=64)
    """Processes, one GPU each or CPU cores; more than one needs the extra train (Lightning Fabric)."""
    seed: int = knob(0, lo=0)
    """Seed of everything random."""
    save_seconds: float = knob(300.0, lo=1)
    """Seconds between saved states."""
    figure_kimg: float = knob(1.0, lo=0.001)
    """Thousands of images between sheets and figures."""
