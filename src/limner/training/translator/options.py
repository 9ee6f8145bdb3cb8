"""Options of `limner train translator`.  No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from limner.options import knob, with_default
from limner.training.shared_options import CodeOptions


@dataclass(frozen=True)
class TranslatorOptions(CodeOptions):
    """Train the translator of a generator: sketches, label maps, small, masked, turned, toon pictures to faces."""

    task: tuple[str, ...] = knob(("all",))
    """Tasks, all of them in one network: sketch, labels, super-resolution, inpaint, frontal, toon; or all."""
    data: tuple[str, ...] = knob(())
    """Folder or zip of photos (square, aligned) for the tasks whose inputs are made of photos, or several: A,B; empty for
    those of pairs."""
    select: str = with_default(CodeOptions, "select", "")
    """Use only photos whose number lies in FIRST-LAST, or in one of several ranges: 0-899,2000-2999."""
    pairs: tuple[str, ...] = knob(())
    """Folder with photo/, labels/, frontal/ and toon/ of the same scenes (limner synth makes one), or several: A,B."""
    scenes: str = knob("")
    """Learn only from scenes whose number lies in FIRST-LAST, or in one of several ranges; holds for all folders."""
    validate: str = knob("")
    """Scenes that figures and sheets are made of, FIRST-LAST, in whichever folder; they must not be learned from."""
    figure_scenes: int = knob(16, lo=1, hi=10_000)
    """How many of them are translated for the figures during training."""
    out: str = with_default(CodeOptions, "out", "runs/translator")
    teacher: str = knob("encoder")
    """Compact encoder of the generator, name or file: its codes of the true faces are what is learned."""
    teacher_steps: int = knob(1, lo=1, hi=10)
    """Steps of the teacher; its codes are found once and kept in OUT."""
    init: str = knob("encoder")
    """What a new run starts from: an encoder of the generator, of the same width, hidden and rank, or a translator of any;
    empty for nothing."""
    kimg: float = with_default(CodeOptions, "kimg", 20.0)
    """Thousands of pictures, over all tasks, that the run has seen when it is finished."""
    batch_size: int = with_default(CodeOptions, "batch_size", 24)
    """Pictures per step, over all processes; every task gets the same share."""
    made_share: float = knob(0.25, lo=0, hi=1)
    """Share of the tasks made of photos that comes from generated faces, whose codes are known."""
    shown_share: float = knob(0.1, lo=0, hi=1)
    """Share of a batch that is painted and compared with the true picture; the others cost little."""
    codes_kimg: float = knob(1.0, lo=0)
    """Begin with so many thousand pictures and the loss of codes alone."""
    mirror: bool = with_default(CodeOptions, "mirror", True)
    """Learn from mirrored scenes too; left and right of label maps change places."""
    shift: float = knob(0.02, lo=0, hi=0.5)
    """Shift inputs of pairs by up to this share of their side, and zoom by up to twice that."""
    drop: float = knob(0.1, lo=0, hi=0.9)
    """Share of the numbers between pyramid and heads that is left out, against overfitting."""
    inner: int = knob(24, lo=2, hi=256)
    """Channels inside the stem of a task."""
    head_rank: int = knob(16, lo=1, hi=256)
    """Numbers from which a task's own head corrects the codes."""
