"""Options of `limner train encoder`.  No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from limner.errors import OptionError
from limner.options import knob, with_default
from limner.training.shared_options import ARCHITECTURES, CodeOptions


@dataclass(frozen=True)
class EncoderOptions(CodeOptions):
    """Train the compact encoder of a generator."""

    architecture: str = knob("compact", choices=ARCHITECTURES)
    """compact: the small one of the bundled models, which these options are for; the published ones have options of their
    own: limner train encoder --architecture psp --help."""
    data: tuple[str, ...] = knob(())
    """Folder or zip of training pictures (square, aligned), or several: A,B; empty to learn from generated faces alone."""
    out: str = with_default(CodeOptions, "out", "runs/encoder")
    init: str = knob("")
    """Encoder of this size to start a new run from, name or file; it may belong to another generator."""
    validate: str = knob("")
    """The pictures of data that sheets and figures are made of, FIRST-LAST, held out of select; empty for the first eight
    of the training pictures."""
    photos: str = knob("")
    """Folder of photos whose faces join the sheets and figures."""
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
    jitter: float = knob(0.3, lo=0, hi=1)
    """Probability of changed brightness, of contrast and of saturation in a training picture."""
    identity: float = with_default(CodeOptions, "identity", 0.5)
    """Weight of the squared distance of the identity embeddings, in the last refinement; 0 saves time."""
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
    ceiling_steps: int = knob(100, lo=0, hi=10_000)
    """Steps of the search in w+ that figures are held against; done once per run; 0 leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture != "compact":
            raise OptionError(
                f"architecture is {self.architecture}, but these are the options of compact; the published "
                "architectures have limner.training.psp.options.PspOptions"
            )
