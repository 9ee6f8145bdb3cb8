"""Options of `limner train encoder`.  No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from limner.options import Options, knob, precision_knob


@dataclass(frozen=True)
class EncoderOptions(Options):
    """Train the compact encoder of a generator."""

    data: tuple[str, ...] = knob(())
    """Folder or zip of training pictures (square, aligned), or several: A,B; empty to learn from generated faces alone."""
    out: str = knob("runs/encoder")
    """Folder for state, model, sheets and log; a run found there is resumed."""
    base: str = knob("heads")
    """Generator that the encoder is for, name or file."""
    init: str = knob("")
    """Encoder of this size to start a new run from, name or file; it may belong to another generator."""
    select: str = knob("")
    """Use only files whose number lies in FIRST-LAST, such as 0-10999, or in one of several ranges: 0-899,2000-2999; keeps
    test pictures out of training."""
    validate: str = knob("11000-11007")
    """The pictures of data that sheets and figures are made of; empty for the first eight of the training pictures."""
    photos: str = knob("")
    """Folder of photos whose faces join the sheets and figures."""
    kimg: float = knob(100.0, lo=0, hi=100_000)
    """Thousands of images the run has seen when it is finished."""
    seconds: float = knob(0.0, lo=0)
    """Stop, state saved, after this many seconds; 0 for no limit. Calling again resumes."""
    batch_size: int = knob(16, lo=1, hi=4096)
    """Images per step, over all processes."""
    real_share: float = knob(0.5, lo=0, hi=1)
    """Share of every batch that is training pictures; the rest is generated and its codes are known."""
    shown_share: float = knob(0.25, lo=0, hi=1)
    """Share of the generated ones that also gets the image losses; the others cost little."""
    refinements: int = knob(2, lo=1, hi=10)
    """Steps of the encoder per batch, each with its own losses and on what the last one made (ReStyle)."""
    codes_kimg: float = knob(2.0, lo=0)
    """Begin with so many thousand generated images and the loss of their codes alone."""
    refine_kimg: float = knob(5.0, lo=0)
    """Until so many thousand images, one step per batch is enough."""
    psi_min: float = knob(0.5, lo=0, hi=1)
    """Generated faces have a truncation drawn from this to 1."""
    mixing: float = knob(0.5, lo=0, hi=1)
    """Share of the generated faces whose rows come from two z."""
    mirror: bool = knob(True)
    """Flip half of the training pictures."""
    jitter: float = knob(0.3, lo=0, hi=1)
    """Probability of changed brightness, of contrast and of saturation in a training picture."""
    input_px: int = knob(0, lo=0, hi=1024)
    """Side at which the frozen trunk looks at pictures, a multiple of 32; 0 for the generator's, at most 256."""
    width: int = knob(96, lo=8, hi=1024)
    """Channels of the pyramid."""
    hidden: int = knob(256, lo=8, hi=4096)
    """Length of the vectors that coarse, middle and fine rows are made from."""
    rank: int = knob(96, lo=4, hi=512)
    """Numbers from which the delta of each row is made."""
    lr: float = knob(0.001, lo=0, hi=1)
    """Learning rate."""
    optimizer: str = knob("adamw", choices=("adam", "adamw", "ranger"))
    """adamw: with weight_decay; ranger: rectified Adam with lookahead, as pSp and e4e use."""
    weight_decay: float = knob(0.01, lo=0, hi=1)
    """adamw: share of the learning rate by which weights shrink in every step."""
    beta2: float = knob(0.99, lo=0, hi=1)
    """Second beta of the optimiser; the first is 0.9."""
    warmup_kimg: float = knob(0.5, lo=0)
    """The learning rate rises over so many thousand images."""
    decay_kimg: float = knob(0.0, lo=0)
    """It falls to a twentieth along a cosine over the last so many thousand images."""
    ema_kimg: float = knob(1.0, lo=0, hi=1000)
    """Half-life of the averaged encoder in thousands of images."""
    l2: float = knob(2.0, lo=0, hi=1000)
    """Weight of the mean squared difference of pixels, [-1, 1]."""
    l1: float = knob(0.5, lo=0, hi=1000)
    """Weight of the absolute difference, whole and averaged over squares of 4 and 16 px."""
    perceptual: float = knob(1.0, lo=0, hi=1000)
    """Weight of the perceptual distance on the trunk."""
    identity: float = knob(0.5, lo=0, hi=1000)
    """Weight of the squared distance of the identity embeddings, in the last refinement; 0 saves time."""
    codes: float = knob(1.0, lo=0, hi=1000)
    """Weight of the squared error of a generated face's codes, as the generator sees it; 1 is the spread of faces."""
    w_norm: float = knob(0.005, lo=0, hi=1000)
    """Weight of the codes' mean squared distance from the mean w, in units of the spread of w (pSp)."""
    delta: float = knob(0.02, lo=0, hi=1000)
    """Weight of the rows' mean squared difference from their mean, same units (e4e)."""
    progressive_kimg: float = knob(0.0, lo=0)
    """Free the deltas row by row, one every so many thousand images (e4e); 0 frees all from the start."""
    critic: float = knob(0.0, lo=0, hi=1000)
    """Weight of the latent discriminator, which keeps rows where mapped noise lies (e4e: 0.1); 0 for none."""
    critic_lr: float = knob(2e-5, lo=0, hi=1)
    """Its learning rate (Adam)."""
    critic_r1: float = knob(10.0, lo=0, hi=1000)
    """Its R1 penalty."""
    precision: str = precision_knob()
    processes: int = knob(1, lo=1, hi=64)
    """Processes, one GPU each or CPU cores; more than one needs the extra train (Lightning Fabric)."""
    seed: int = knob(0, lo=0)
    """Seed of everything random."""
    save_seconds: float = knob(300.0, lo=1)
    """Seconds between saved states."""
    figure_kimg: float = knob(5.0, lo=0.001)
    """Thousands of images between sheets and figures."""
    ceiling_steps: int = knob(100, lo=0, hi=10_000)
    """Steps of the search in w+ that figures are held against; done once per run; 0 leaves it out."""
