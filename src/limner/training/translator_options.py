"""Options of `limner train translator`.  No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from limner.options import Options, knob, precision_knob


@dataclass(frozen=True)
class TranslatorOptions(Options):
    """Train the translator of a generator: sketches, label maps, small, masked, turned, toon pictures to faces."""

    task: tuple[str, ...] = knob(("all",))
    """Tasks, all of them in one network: sketch, labels, super-resolution, inpaint, frontal, toon; or all."""
    data: tuple[str, ...] = knob(())
    """Folder or zip of photos (square, aligned) for the tasks whose inputs are made of photos, or several: A,B; empty for
    those of pairs."""
    select: str = knob("")
    """Use only photos whose number lies in FIRST-LAST, or in one of several ranges: 0-899,2000-2999."""
    pairs: tuple[str, ...] = knob(())
    """Folder with photo/, labels/, frontal/ and toon/ of the same scenes (limner synth makes one), or several: A,B."""
    scenes: str = knob("")
    """Learn only from scenes whose number lies in FIRST-LAST, or in one of several ranges; holds for all folders."""
    validate: str = knob("")
    """Scenes that figures and sheets are made of, FIRST-LAST, in whichever folder; they must not be learned from."""
    figure_scenes: int = knob(16, lo=1, hi=10_000)
    """How many of them are translated for the figures during training."""
    out: str = knob("runs/translator")
    """Folder for state, model, sheets and log; a run found there is resumed."""
    base: str = knob("heads")
    """Generator that the translator is for, name or file."""
    teacher: str = knob("encoder")
    """Compact encoder of the generator, name or file: its codes of the true faces are what is learned."""
    teacher_steps: int = knob(1, lo=1, hi=10)
    """Steps of the teacher; its codes are found once and kept in OUT."""
    init: str = knob("encoder")
    """What a new run starts from: an encoder of the generator or a translator of any; empty for nothing."""
    kimg: float = knob(20.0, lo=0, hi=100_000)
    """Thousands of pictures, over all tasks, that the run has seen when it is finished."""
    seconds: float = knob(0.0, lo=0)
    """Stop, state saved, after this many seconds; 0 for no limit. Calling again resumes."""
    batch_size: int = knob(24, lo=1, hi=4096)
    """Pictures per step, over all processes; every task gets the same share."""
    made_share: float = knob(0.25, lo=0, hi=1)
    """Share of the tasks made of photos that comes from generated faces, whose codes are known."""
    shown_share: float = knob(0.1, lo=0, hi=1)
    """Share of a batch that is painted and compared with the true picture; the others cost little."""
    codes_kimg: float = knob(1.0, lo=0)
    """Begin with so many thousand pictures and the loss of codes alone."""
    psi_min: float = knob(0.5, lo=0, hi=1)
    """Generated faces have a truncation drawn from this to 1."""
    mixing: float = knob(0.5, lo=0, hi=1)
    """Share of the generated faces whose rows come from two z."""
    mirror: bool = knob(True)
    """Learn from mirrored scenes too; left and right of label maps change places."""
    shift: float = knob(0.02, lo=0, hi=0.5)
    """Shift inputs of pairs by up to this share of their side, and zoom by up to twice that."""
    drop: float = knob(0.1, lo=0, hi=0.9)
    """Share of the numbers between pyramid and heads that is left out, against overfitting."""
    width: int = knob(96, lo=8, hi=1024)
    """Channels of the pyramid; as in the encoder where that is taken over."""
    hidden: int = knob(256, lo=8, hi=4096)
    """Length of the vectors that coarse, middle and fine rows are made from; likewise."""
    rank: int = knob(96, lo=4, hi=512)
    """Numbers from which the delta of each row is made; likewise."""
    inner: int = knob(24, lo=2, hi=256)
    """Channels inside the stem of a task."""
    head_rank: int = knob(16, lo=1, hi=256)
    """Numbers from which a task's own head corrects the codes."""
    input_px: int = knob(0, lo=0, hi=1024)
    """Side at which the frozen trunk looks at inputs, a multiple of 32; 0 for the generator's, at most 256."""
    lr: float = knob(0.001, lo=0, hi=1)
    """Learning rate."""
    optimizer: str = knob("adamw", choices=("adam", "adamw", "ranger"))
    """adamw: with weight_decay; ranger: rectified Adam with lookahead, as pSp uses."""
    weight_decay: float = knob(0.01, lo=0, hi=1)
    """adamw: share of the learning rate by which weights shrink in every step."""
    beta2: float = knob(0.99, lo=0, hi=1)
    """Second beta of the optimiser; the first is 0.9."""
    warmup_kimg: float = knob(0.5, lo=0)
    """The learning rate rises over so many thousand pictures."""
    decay_kimg: float = knob(0.0, lo=0)
    """It falls to a twentieth along a cosine over the last so many thousand pictures."""
    ema_kimg: float = knob(1.0, lo=0, hi=1000)
    """Half-life of the averaged translator in thousands of pictures."""
    codes: float = knob(1.0, lo=0, hi=1000)
    """Weight of the squared error of the codes, as the generator sees it; 1 is the spread of faces."""
    l2: float = knob(2.0, lo=0, hi=1000)
    """Weight of the mean squared difference of pixels, [-1, 1]."""
    l1: float = knob(0.5, lo=0, hi=1000)
    """Weight of the absolute difference, whole and averaged over squares of 4 and 16 px."""
    perceptual: float = knob(1.0, lo=0, hi=1000)
    """Weight of the perceptual distance on the trunk."""
    identity: float = knob(0.5, lo=0, hi=1000)
    """Weight of the squared distance of the identity embeddings; 0 saves time."""
    precision: str = precision_knob()
    processes: int = knob(1, lo=1, hi=64)
    """Processes, one GPU each or CPU cores; more than one needs the extra train (Lightning Fabric)."""
    seed: int = knob(0, lo=0)
    """Seed of everything random."""
    save_seconds: float = knob(300.0, lo=1)
    """Seconds between saved states."""
    figure_kimg: float = knob(5.0, lo=0.001)
    """Thousands of pictures between sheets and figures."""
