"""Options that the trainings share.  No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from limner.options import Options, knob, precision_knob

ARCHITECTURES = ("compact", "psp", "e4e", "restyle-psp", "restyle-e4e")
"""Of encoders: our own small one, and those that were published."""


@dataclass(frozen=True)
class RunOptions(Options):
    """What everything has that trains for long and can be resumed."""

    seconds: float = knob(0.0, lo=0)
    """Stop, state saved, after this many seconds; 0 for no limit. Calling again resumes."""
    save_seconds: float = knob(300.0, lo=1)
    """Seconds between saved states."""
    seed: int = knob(0, lo=0)
    """Seed of everything random."""
    precision: str = precision_knob()


@dataclass(frozen=True)
class LoopOptions(RunOptions):
    """What a run of `limner.training.loop` has."""

    out: str = knob("runs")
    """Folder for state, model, sheets and log; a run found there is resumed."""
    select: str = knob("")
    """Use only files whose number lies in FIRST-LAST, such as 0-10999, or in one of several ranges: 0-899,2000-2999; keeps
    test pictures out of training."""
    mirror: bool = knob(True)
    """Flip half of the training pictures."""
    kimg: float = knob(100.0, lo=0, hi=100_000)
    """Thousands of images the run has seen when it is finished."""
    batch_size: int = knob(16, lo=1, hi=4096)
    """Images per step, over all processes."""
    decay_kimg: float = knob(0.0, lo=0)
    """The learning rate falls to a twentieth along a cosine over the last so many thousand images."""
    ema_kimg: float = knob(1.0, lo=0, hi=1000)
    """Half-life of the averaged network in thousands of images."""
    processes: int = knob(1, lo=1, hi=64)
    """Processes, one GPU each or CPU cores; more than one needs the extra train (Lightning Fabric)."""


@dataclass(frozen=True)
class NetOptions(LoopOptions):
    """What the training of a network that belongs to a generator has."""

    base: str = knob("heads")
    """Generator that the network is for, name or file."""
    lr: float = knob(0.001, lo=0, hi=1)
    """Learning rate."""
    warmup_kimg: float = knob(0.5, lo=0)
    """The learning rate rises over so many thousand images."""
    figure_kimg: float = knob(5.0, lo=0.001)
    """Thousands of images between sheets and figures."""


@dataclass(frozen=True)
class CoreOptions(NetOptions):
    """What the training of a core on a frozen trunk has: of an encoder, a translator, a HyperInverter."""

    width: int = knob(96, lo=8, hi=1024)
    """Channels of the pyramid."""
    hidden: int = knob(256, lo=8, hi=4096)
    """Length of the vectors that coarse, middle and fine rows are made from."""
    l2: float = knob(2.0, lo=0, hi=1000)
    """Weight of the mean squared difference of pixels, [-1, 1]."""
    perceptual: float = knob(1.0, lo=0, hi=1000)
    """Weight of the perceptual distance on the trunk."""
    identity: float = knob(0.5, lo=0, hi=1000)
    """Weight of the squared distance of the identity embeddings; 0 saves time."""
    optimizer: str = knob("adamw", choices=("adam", "adamw", "ranger"))
    """adamw: with weight_decay; ranger: rectified Adam with lookahead, as pSp and e4e use."""
    weight_decay: float = knob(0.01, lo=0, hi=1)
    """adamw: share of the learning rate by which weights shrink in every step."""
    beta2: float = knob(0.99, lo=0, hi=1)
    """Second beta of the optimiser; the first is 0.9."""


@dataclass(frozen=True)
class CodeOptions(CoreOptions):
    """What the training of an encoder and of a translator has."""

    psi_min: float = knob(0.5, lo=0, hi=1)
    """Generated faces have a truncation drawn from this to 1."""
    mixing: float = knob(0.5, lo=0, hi=1)
    """Share of the generated faces whose rows come from two z."""
    input_px: int = knob(0, lo=0, hi=1024)
    """Side at which the frozen trunk looks at pictures, a multiple of 32; 0 for the generator's, at most 256."""
    rank: int = knob(96, lo=4, hi=512)
    """Numbers from which the delta of each row is made."""
    codes: float = knob(1.0, lo=0, hi=1000)
    """Weight of the squared error of known codes, as the generator sees it; 1 is the spread of faces."""
    l1: float = knob(0.5, lo=0, hi=1000)
    """Weight of the absolute difference, whole and averaged over squares of 4 and 16 px."""
