"""Options of `limner train encoder --architecture psp|e4e|restyle-psp|restyle-e4e`, with the published values.  No torch here.

Source: Richardson et al. 2021, pSp (arXiv 2008.00951), section 3.2 and the options of its published code; Tov et al.
2021, e4e (arXiv 2102.02766), section 5; Alaluf et al. 2021, ReStyle (arXiv 2104.02699), section 4.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from limner.errors import OptionError
from limner.options import knob, with_default
from limner.training.shared_options import ARCHITECTURES, NetOptions

TASKS = ("inversion", "sketch", "labels", "super-resolution", "inpaint", "frontal", "toon", "toonify")
PAIRED = ("labels", "toon")
"""Tasks whose inputs cannot be made out of photos."""
UNPAIRED = ("inversion", "toonify")
"""Tasks that see the photo itself, and never pairs."""
PHOTO_TASKS = ("inversion", "super-resolution", "frontal", "toon", "toonify")
"""Tasks whose input has three channels, as what the generator paints, so that ReStyle can lay one upon the other."""
HEADS = {
    "psp": ("pyramid", "w", "w+"),
    "e4e": ("pyramid", "w"),
    "restyle-psp": ("single",),
    "restyle-e4e": ("single",),
}
"""Architecture -> the heads that it may have, the usual one first."""

_USUAL = {
    "l2": 1.0,
    "perceptual": 0.8,
    "identity": 0.1,
    "w_norm": 0.0,
    "l2_crop": 0.0,
    "perceptual_crop": 0.0,
    "delta": 0.0,
    "critic": 0.0,
}
_OF_TASK = {
    "sketch": {"identity": 0.0, "w_norm": 0.005},
    "labels": {"identity": 0.0, "w_norm": 0.005},
    "super-resolution": {"w_norm": 0.005},
    "toonify": {"identity": 1.0, "w_norm": 0.025},
    # Never published; as super-resolution, which is likest.
    "inpaint": {"w_norm": 0.005},
    "frontal": {"w_norm": 0.005},
    "toon": {"w_norm": 0.005},
}
_FRONTAL_ALONE = {
    "l2": 0.001,
    "perceptual": 0.08,
    "identity": 1.0,
    "w_norm": 0.005,
    "l2_crop": 0.01,
    "perceptual_crop": 0.8,
}
"""pSp's weights for frontal faces without twins; with twins (``pairs``) the task is one like the others."""
_OF_IMAGES = ("l2", "perceptual", "identity", "l2_crop", "perceptual_crop")
"""Weights of what compares the painted picture with the one that should come out."""
_OF_E4E = {"delta": 2e-4, "critic": 0.1}


@dataclass(frozen=True)
class PspOptions(NetOptions):
    """Train an encoder of a published architecture, with the published losses and weights."""

    architecture: str = knob("psp", choices=ARCHITECTURES)
    """psp: a code for every row; e4e: one code, and differences that are freed row by row and kept small; restyle-psp,
    restyle-e4e: several passes, each of which sees what the last one made; compact has options of its own"""
    task: str = knob("inversion", choices=TASKS)
    """What it learns: photo to codes; sketch, label map (19 planes of CelebAMask-HQ), small, masked, turned, toon picture to
    face; toonify: photo to the face of a toon generator (base)."""
    body: str = knob("ir-se50", choices=("ir-se50", "resnet34"))
    """Convolutions below the heads."""
    head: str = knob("auto", choices=("auto", "pyramid", "w", "w+", "single"))
    """psp: pyramid, w (one code from the last layer) or w+ (all rows from it); e4e: pyramid or w; restyle: single."""
    space: str = knob("auto", choices=("auto", "w", "w+", "z+"))
    """What the codes are: w with psp's head w, else w+; z+ for DualStyleGAN's encoder."""
    width: int = knob(64, lo=4, hi=256)
    """Channels of the body's first stage; the others have twice, four and eight times as many. 64 as published."""
    input_px: int = knob(0, lo=0, hi=1024)
    """Side of what the encoder sees and losses compare, a power of two from 32; 0: the generator's, at most 256."""
    iterations: int = knob(5, lo=1, hi=20)
    """Passes per batch of restyle-psp and restyle-e4e."""
    body_weights: str = knob("")
    """File to start the body from: ArcFace (model_ir_se50.pth) or torchvision's ResNet-34; a stem for other channels starts
    anew. Empty: ArcFace where it is installed (limner models), else from nothing."""
    init: str = knob("")
    """Encoder of the same architecture to start a new run from, name or file; it may belong to another generator."""
    train_decoder: bool = knob(False)
    """Train the generator too; its average is saved with the encoder."""
    data: tuple[str, ...] = knob(())
    """Folder or zip of photos (square, aligned), or several: A,B; tasks whose inputs can be made of photos learn from them."""
    pairs: tuple[str, ...] = knob(())
    """Folder with photo/ and what belongs to it, or several: labels/, frontal/, toon/ (limner synth makes them); or sketch/,
    super-resolution/ or inpaint/ (masks) in place of inputs made of photos."""
    scenes: str = knob("")
    """Learn only from pairs whose number lies in FIRST-LAST, or in one of several ranges."""
    classes: str = knob("limner", choices=("limner", "celeba"))
    """Whose classes the label maps of pairs have; the encoder sees those of CelebAMask-HQ."""
    factors: tuple[int, ...] = knob((1, 2, 4, 8, 16, 32))
    """super-resolution: how many times smaller pictures are made."""
    validate: str = knob("")
    """Pictures of data (or of pairs) that sheets and figures are made of, FIRST-LAST; they must not be learned from. Empty:
    the first eight of the training pictures."""
    photos: str = knob("")
    """inversion: folder of photos whose faces join the sheets and figures."""
    out: str = with_default(NetOptions, "out", "runs/psp")
    made_share: float = knob(0.0, lo=0, hi=1)
    """Share of every batch that the generator paints itself; 1 needs no data."""
    codes: float = knob(0.0, lo=0, hi=1000)
    """Weight of the squared error of their codes, which are known, in units of the spread of w; not published."""
    codes_kimg: float = knob(0.0, lo=0)
    """Begin with so many thousand painted pictures and the loss of codes alone, which is several times as fast."""
    l2: float | None = knob(None, lo=0, hi=1000)
    """Weight of the mean squared difference of pixels; left out, as all weights, the published one of architecture and task."""
    perceptual: float | None = knob(None, lo=0, hi=1000)
    """Weight of LPIPS, or of what stands in for it, see trunk."""
    identity: float | None = knob(None, lo=0, hi=1000)
    """Weight of the identity distance: 1 - cosine on ArcFace, squared distance on the bundled embedder."""
    w_norm: float | None = knob(None, lo=0, hi=1000)
    """Weight of the codes' distance from the mean w."""
    l2_crop: float | None = knob(None, lo=0, hi=1000)
    """Weight of the difference of pixels within the face."""
    perceptual_crop: float | None = knob(None, lo=0, hi=1000)
    """Weight of LPIPS within the face."""
    delta: float | None = knob(None, lo=0, hi=1000)
    """Weight of the length of the rows' differences from the first (e4e)."""
    critic: float | None = knob(None, lo=0, hi=1000)
    """Weight of the latent discriminator (e4e)."""
    critic_lr: float = knob(2e-5, lo=0, hi=1)
    """Its learning rate (Adam)."""
    critic_r1: float = knob(10.0, lo=0, hi=1000)
    """Its R1 penalty."""
    critic_r1_interval: int = knob(16, lo=1, hi=1000)
    """Steps between R1 penalties."""
    critic_pool: int = knob(50, lo=0, hi=10_000)
    """Earlier codes that it is shown half of the time; 0 for new ones alone."""
    progressive_start_kimg: float = knob(160.0, lo=0)
    """e4e, restyle-e4e: so long all rows are alike."""
    progressive_kimg: float = knob(16.0, lo=0)
    """Then the rows are freed one by one, one every so many thousand images; 0 frees all from the start."""
    trunk: str = knob("auto", choices=("auto", "lpips-alex", "lpips-vgg", "lite0"))
    """What the perceptual loss is measured with; auto: LPIPS on AlexNet, as published, or the bundled lite0 in its place
    where those weights are not installed, as the run then says."""
    arcface: str = knob("")
    """ArcFace's weights (model_ir_se50.pth) for the identity loss; empty: where it is installed, else the bundled embedder."""
    optimizer: str = knob("ranger", choices=("ranger", "adam"))
    """ranger: rectified Adam that looks ahead, with centred gradients."""
    lr: float = with_default(NetOptions, "lr", 1e-4)
    """Learning rate."""
    warmup_kimg: float = with_default(NetOptions, "warmup_kimg", 0.0)
    batch_size: int = with_default(NetOptions, "batch_size", 8)
    batch_per_device: int = knob(0, lo=0, hi=4096)
    """Images per process at a time; fewer than its share of the batch accumulate gradients; 0 for all of it."""
    kimg: float = with_default(NetOptions, "kimg", 4000.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture not in HEADS:
            raise OptionError(
                f"architecture is {self.architecture}, but these are the options of {', '.join(HEADS)}; those of "
                "compact are limner.training.encoder.options.EncoderOptions"
            )


def is_progressive(options: PspOptions) -> bool:
    """Say whether the rows are differences to the first, as in e4e."""
    return options.architecture.endswith("e4e")


def is_restyle(options: PspOptions) -> bool:
    """Say whether the encoder sees what its last codes paint."""
    return options.architecture.startswith("restyle")


def find_head(options: PspOptions) -> str:
    """Return the head of the encoder.

    Raises:
        OptionError: the architecture has none like it.
    """
    known = HEADS[options.architecture]
    head = known[0] if options.head == "auto" else options.head
    if head not in known:
        raise OptionError(f"head is {head}, but {options.architecture} has {' or '.join(known)}")
    return head


def find_space(options: PspOptions) -> str:
    """Return the space of the codes.

    Raises:
        OptionError: the architecture does not give codes there.
    """
    usual = "w" if options.architecture == "psp" and find_head(options) == "w" else "w+"
    space = usual if options.space == "auto" else options.space
    if space != usual and (space != "z+" or options.architecture != "psp" or usual == "w"):
        raise OptionError(
            f"space is {space}, but {options.architecture} with head {find_head(options)} gives codes in {usual}"
        )
    return space


def settle_weights(options: PspOptions) -> PspOptions:
    """Return options in which every weight that was left out is the published one, once all has been checked.

    Raises:
        OptionError: options that contradict one another.
    """
    _check(options)
    values = _USUAL | _OF_TASK.get(options.task, {})
    if options.task == "frontal" and not options.pairs:
        values |= _FRONTAL_ALONE
    if is_progressive(options):
        values |= _OF_E4E
    settled = dataclasses.replace(
        options, **{name: value for name, value in values.items() if getattr(options, name) is None}
    )
    if not any(getattr(settled, name) for name in _OF_IMAGES) and not (
        settled.codes and settled.made_share == 1
    ):
        raise OptionError(
            f"{', '.join(_OF_IMAGES)} are all 0, so that nothing is learned from pictures: give one of them a weight, "
            "or learn from codes alone (codes above 0, made_share 1)"
        )
    return settled


def _check(options: PspOptions) -> None:
    find_head(options)
    find_space(options)
    side = options.input_px
    if side and (side < 32 or side.bit_count() != 1):
        raise OptionError(
            f"input_px is {side}, expected a power of two from 32 up, or 0 for the generator's size"
        )
    if is_restyle(options) and options.task not in PHOTO_TASKS:
        raise OptionError(
            f"{options.architecture} sees its input beside what it paints, so both need three channels; the task "
            f"{options.task} has others: train it with psp or e4e"
        )
    if not options.factors or min(options.factors) < 1:
        raise OptionError(f"factors is {options.factors}, expected whole numbers from 1 up")
    if options.codes_kimg and not (options.codes and options.made_share):
        raise OptionError(
            "codes_kimg begins with the loss of codes of painted pictures: codes and made_share must not be 0"
        )
    if options.codes and find_space(options) == "z+":
        raise OptionError("codes compares codes in w; an encoder of z+ has none: set it to 0")
    _check_pictures(options)


def _check_pictures(options: PspOptions) -> None:
    """Raise `OptionError` unless the pictures are there that the task is learned from, and measured on."""
    if options.photos and options.task != "inversion":
        raise OptionError(
            f"photos is for the task inversion; {options.task} shows held-out pictures of its own: leave it out, or "
            "set it to nothing (--photos '') where a recipe gives it"
        )
    if options.task in PAIRED and not options.pairs:
        raise OptionError(f"pairs must be given: the task {options.task} learns from them")
    if options.task in UNPAIRED and options.pairs and not options.data:
        raise OptionError(
            f"pairs is not what {options.task} learns from: give photos as data, such as {options.pairs[0]}/photo"
        )
    if options.task == "frontal" and not options.pairs and not options.mirror:
        raise OptionError(
            "frontal without pairs learns from photos that are mirrored: mirror must not be false, or pairs be given"
        )
    if options.made_share and options.pairs:
        raise OptionError("made_share makes pictures without pairs; set it to 0, or leave pairs out")
    if options.train_decoder and options.made_share:
        raise OptionError(
            "a generator that is trained (train_decoder) cannot paint its own truth: made_share must be 0"
        )
    if not options.pairs and not options.data and options.made_share < 1:
        raise OptionError(
            "data must be given (a folder or a zip of square, aligned pictures), or made_share set to 1"
        )
    if options.validate and not options.data and not options.pairs:
        raise OptionError(
            f"validate {options.validate} names pictures of data, but made_share is 1 and there is no data: leave "
            "validate out, or give data"
        )
