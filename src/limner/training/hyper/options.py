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
    layers: str = knob(
        "conv_without_bias",
        choices=("conv_without_bias", "conv_without_bias_without_torgb", "all_without_bias"),
    )
    """What may change: every convolution; those but the toRGB layers; every convolution and affine layer."""
    factors: int = knob(4, lo=1, hi=256)
    """Rank of every change."""
    width: int = with_default(CoreOptions, "width", 64)
    gather: int = knob(16, lo=1, hi=1024)
    """Channels that become a group's vector."""
    hidden: int = with_default(CoreOptions, "hidden", 128)
    """Length of the vectors that the changes of coarse, middle and fine layers are made from."""
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
