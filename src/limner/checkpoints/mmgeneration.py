"""mmgeneration's StyleGAN2 ``.pth``: rosinality's networks under other names, trained on BGR images.

File: ``meta``, ``state_dict`` (``generator.``, ``discriminator.``, ``generator_ema.``), perhaps
``optimizer``.

Differs: Limner's networks make and judge RGB images, so the colour axis of every toRGB weight and bias and of
the discriminator's first weight is reversed while reading.  ``channel_order="stored"`` leaves it as it is:
for files made by other means that are known to hold RGB networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limner.checkpoints.checkpoint import Checkpoint, Format, ReadOptions, plain_values
from limner.checkpoints.keymaps import MMGENERATION_DISCRIMINATOR, MMGENERATION_GENERATOR, rename
from limner.checkpoints.rosinality import load_sections, strip_module
from limner.checkpoints.source import Source
from limner.nn.stylegan2 import Discriminator, Generator

PREFIXES = (
    ("generator_ema.", "g_ema", MMGENERATION_GENERATOR),
    ("generator.", "g", MMGENERATION_GENERATOR),
    ("discriminator.", "d", MMGENERATION_DISCRIMINATOR),
)
MARK = "style_mapping.1.linear.weight_orig"
COUNTERS = frozenset({"steps"})
"""Numbers that mmgeneration 1.x keeps among the tensors of its average."""


def _tensors(source: Source) -> Mapping[str, Any]:
    state = source.state
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    return state if isinstance(state, Mapping) else {}


def detect(source: Source) -> bool:
    """Recognise the layout by a tensor of a mapping network or a discriminator."""
    return any(
        isinstance(name, str) and (name.endswith(MARK) or name == "discriminator.convs.0.0.conv.weight_orig")
        for name in _tensors(source)
    )


def load(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a training file.

    Raises:
        KeyMismatchError: names or shapes do not fit.
    """
    tensors = _tensors(source)
    if MARK in tensors:  # the state dict of a generator by itself
        tensors = {f"generator_ema.{name}": value for name, value in tensors.items()}
    found: dict[str, Any] = {}
    for prefix, section, patterns in PREFIXES:
        part = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }
        part = strip_module({name: value for name, value in part.items() if name not in COUNTERS})
        if part:
            found[section] = {rename(name, patterns): value for name, value in part.items()}
    checkpoint = load_sections(found, source, options, format_name="mmgeneration")
    if options.channel_order == "rgb":
        for network in checkpoint.parts().values():
            reverse_colours(network)
    checkpoint.metadata["channel_order"] = (
        "rgb, reversed while reading" if options.channel_order == "rgb" else "stored"
    )
    if isinstance(source.state, Mapping) and isinstance(source.state.get("meta"), Mapping):
        checkpoint.metadata["training"] = plain_values(source.state["meta"])
    return checkpoint


def reverse_colours(network: Any) -> None:
    """Turn a network for BGR images into one for RGB images, or back."""
    if isinstance(network, Generator):
        for layer in network.synthesis.to_rgb:
            for name in ("weight", "bias"):
                values = layer.get_parameter(name)
                values.data = values.data.flip(0)
    elif isinstance(network, Discriminator):
        network.from_rgb.weight.data = network.from_rgb.weight.data.flip(1)


FORMAT = Format("mmgeneration", "mmgeneration's StyleGAN2 .pth", detect, load)
