"""Options of `limner train hyper`.  No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from limner.options import knob, with_default
from limner.training.shared_options import CoreOptions


@dataclass(frozen=True)
class HyperOptions(CoreOptions):
    """Train the second stage of a small HyperInverter: changes of the generator beside the encoder's codes."""

    data: tuple[str, ...] = knob(())
    """Folder or zip of training pictures (square, aligned), or several: A,B; required."""
    out: str = with_default(CoreOptions, "out", "runs/hyper")
    encoder: str = knob("")
    """Compact encoder that finds the codes, name or file; by default the one that belongs to the generator."""
    validate: str = knob("11000-11009")
    """The pictures of data that sheets and figures are made of."""
    kimg: float = with_default(CoreOptions, "kimg", 20.0)
    batch_size: int = with_default(CoreOptions, "batch_size", 4)
    refinements: int = knob(2, lo=1, hi=10)
    """Steps of the encoder."""
    width: int = with_default(CoreOptions, "width", 48)
    hidden: int = knob(24, lo=1, hi=4096)
    """Channels of the networks, one per resolution, that say which colours are wanted."""
    jitter: float = knob(0.1, lo=0, hi=1)
    """Probability of changed brightness, of contrast and of saturation in a training picture."""
    optimizer: str = with_default(CoreOptions, "optimizer", "adam")
    """adam, as published; adamw: with weight_decay; ranger: rectified Adam with lookahead."""
    warmup_kimg: float = with_default(CoreOptions, "warmup_kimg", 0.2)
    ema_kimg: float = with_default(CoreOptions, "ema_kimg", 0.5)
    l2: float = with_default(CoreOptions, "l2", 1.0)
    perceptual: float = with_default(CoreOptions, "perceptual", 0.8)
    identity: float = with_default(CoreOptions, "identity", 0.1)
    size: float = knob(0.0, lo=0, hi=1000)
    """Weight of the changes' mean square, which keeps them small; the paper has none."""
    figure_kimg: float = with_default(CoreOptions, "figure_kimg", 1.0)
