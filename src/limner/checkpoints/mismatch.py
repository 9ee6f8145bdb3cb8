"""Say how tensors and a network differ, and what probably happened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from limner.errors import KeyMismatchError

Shape = tuple[int, ...]
SHOWN = 4
"""Names that a message lists before it only counts."""


def mismatch_message(
    what: str,
    missing: Mapping[str, str],
    unknown: Sequence[str],
    misshapen: Mapping[str, tuple[Shape, Shape | None]],
) -> str:
    """Say which names are missing, which are unknown, which have another shape, and what probably happened.

    Args:
        what: the network and where it came from.
        missing: name -> Limner's name.
        unknown: names.
        misshapen: name -> (shape found, shape expected).
    """
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing ({some(missing)})")
    if unknown:
        parts.append(f"{len(unknown)} are unknown ({some(unknown)})")
    if misshapen:
        shown = [f"{name}: found {found}, expected {wanted}" for name, (found, wanted) in misshapen.items()]
        parts.append(f"{len(misshapen)} have another shape ({some(shown, '; ')})")
    cause = _likely_cause(missing, unknown, misshapen)
    return f"{what} does not fit: {', '.join(parts)}" + (f". Likely cause: {cause}" if cause else "")


def some(names: Any, separator: str = ", ") -> str:
    """Return the first few names, and how many more there are."""
    names = [str(name) for name in names]
    more = f"{separator}and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + more


UNKNOWN_CAUSES = (
    (r"res\.\d+\..*|generator\..*|style\.\d+\..*generator.*", "this is a DualStyleGAN file"),
    (r"encoder\..*|decoder\..*", "this is an encoder file (pSp, e4e, ReStyle)"),
    (
        r".*(blur|upsample|skip\.0|conv2\.0)\.?kernel|.*resample_filter",
        "the network uses another FIR filter than [1, 3, 3, 1]",
    ),
    (r"synthesis\.L\d+_.*", "this is a StyleGAN3 (alias-free) generator"),
    (
        r".*/Skip/.*|.*\.skip\..*",
        "the generator has residual blocks (architecture 'resnet'); only 'skip' is supported",
    ),
    (r".*LabelConcat.*|.*embed.*", "the model is class-conditional in a way that is not supported"),
    (
        r"mapping\.layers\.\d+\..*|style\.\d+\..*|mapping\.fc\d+\..*",
        "the mapping networks differ in depth (2 or 8 layers)",
    ),
)


def _likely_cause(
    missing: Mapping[str, str], unknown: Sequence[str], misshapen: Mapping[str, tuple[Shape, Shape | None]]
) -> str:
    for pattern, cause in UNKNOWN_CAUSES:
        if any(re.fullmatch(pattern, name) for name in unknown):
            return cause
    ratios = {
        round(wanted[axis] / found[axis], 3)
        for found, wanted in misshapen.values()
        if wanted and len(found) == len(wanted)
        for axis in range(len(found))
        if found[axis] and found[axis] != wanted[axis]
    }
    if ratios and ratios <= {0.5, 2.0}:
        return (
            "the channel counts differ by a factor of 2: "
            "channel multiplier 1 (config E, `auto`, `paper256`) against 2"
        )
    ours = list(missing.values())
    if ours and all(name.startswith("mapping.") for name in ours):
        return (
            "the mapping networks differ in depth: "
            "models of stylegan2-ada's `auto` configuration have 2 layers, others 8"
        )
    if any(name.startswith("synthesis.to_rgb.") for name in ours):
        return (
            "the generator has a single toRGB layer (architecture 'orig' or 'resnet') "
            "or the file is incomplete"
        )
    if any(".skip." in name for name in ours):
        return (
            "the discriminator has no residual blocks (architecture 'orig' or 'skip'); "
            "only 'resnet' is supported"
        )
    return "the file is incomplete or was changed" if missing else ""


def check_fit(network: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Compare tensors under Limner's own names with a network.

    Raises:
        KeyMismatchError: names or shapes differ; the message names them and the likely cause.
    """
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    missing = {name: name for name in shapes if name not in tensors}
    unknown = [name for name in tensors if name not in shapes]
    misshapen = {
        name: (tuple(value.shape), shapes[name])
        for name, value in tensors.items()
        if name in shapes and tuple(value.shape) != shapes[name]
    }
    if missing or unknown or misshapen:
        raise KeyMismatchError(mismatch_message(what, missing, unknown, misshapen))
