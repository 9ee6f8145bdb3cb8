"""Model files of all programs: recognise, read, write, describe.

Reading never runs anything that a file brings along: pickles are read as data (`pickle_tree`), and only
arrays are made of it (`unpickle`).  A new format is a module with a `Format` and one line in `FORMATS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from limner.checkpoints import (
    child,
    detail,
    dual,
    dual_child,
    hyperinverter,
    mmgeneration,
    native,
    nvlabs,
    psp,
    rosinality,
    stylegan1,
)
from limner.checkpoints.checkpoint import PARTS, Checkpoint, Format, PathLike, ReadOptions
from limner.checkpoints.mismatch import check_fit
from limner.checkpoints.native import build_network
from limner.checkpoints.source import Source, open_source, replace_file
from limner.checkpoints.unpickle import Foreign
from limner.errors import CheckpointError, OptionError, UnknownFormatError

__all__ = [
    "FORMATS",
    "PARTS",
    "Checkpoint",
    "Format",
    "Inspection",
    "build_network",
    "check_fit",
    "inspect",
    "load",
    "open_source",
    "output_format",
    "replace_file",
    "save",
]

FORMATS: tuple[Format, ...] = (
    child.FORMAT,
    detail.FORMAT,
    dual_child.FORMAT,
    native.FORMAT,
    nvlabs.FORMAT,
    stylegan1.TF_FORMAT,
    nvlabs.TF_FORMAT,
    mmgeneration.FORMAT,
    stylegan1.FORMAT,
    hyperinverter.FORMAT,
    dual.FORMAT,
    dual.CODES_FORMAT,
    dual.SAMPLER_FORMAT,
    psp.FORMAT,
    rosinality.FORMAT,
)
"""All formats in the order in which they are tried."""

RECOGNISED = (("kp_detector", "a first-order motion model"),)
"""Beginnings of names by which files that no format reads yet are called by their name."""


def load(
    path: PathLike,
    *,
    parts: Collection[str] = PARTS,
    channel_order: str = "rgb",
    base: PathLike | None = None,
) -> Checkpoint:
    """Read a model file of any known format.  Nothing in the file is executed.

    Args:
        path: the file.
        parts: which of `PARTS` to build; the rest is not read.
        channel_order: ``rgb`` turns networks made for BGR images (mmgeneration) round, ``stored`` leaves
            them.
        base: file of the base of a child; None to look for it by its name.

    Returns:
        Networks in float32 on the CPU, in evaluation mode.

    Raises:
        CheckpointError: no such file, unreadable or damaged.
        UnknownFormatError: no format recognises it.
        KeyMismatchError: recognised, but its tensors do not fit.
        UnsafePickleError: its pickle tries to do more than build arrays; nothing of it was run.
    """
    unknown = set(parts) - set(PARTS)
    if unknown or channel_order not in ("rgb", "stored"):
        raise OptionError(
            f"parts are {', '.join(PARTS)}; channel_order is rgb or stored; got {unknown or channel_order}"
        )
    source = open_source(path)
    return find_format(source).load(source, ReadOptions(parts, channel_order, base))


def find_format(source: Source) -> Format:
    """Return the first format that recognises an opened file.

    Raises:
        UnknownFormatError: none does; the message lists what was tried.
    """
    for form in FORMATS:
        if form.detect(source):
            return form
    names = [name for name, _, _ in _walk(source.state)]
    what = next((what for start, what in RECOGNISED if any(start in name for name in names)), None)
    guess = f"; it looks like {what}, which Limner cannot read yet" if what else ""
    top = list(source.state)[:6] if isinstance(source.state, dict) else type(source.state).__name__
    raise UnknownFormatError(
        f"{source.path} ({source.container}, holds {top}) is none of: "
        f"{', '.join(form.title for form in FORMATS)}{guess}"
    )


def save(checkpoint: Checkpoint, path: PathLike, *, format: str | None = None, **options: Any) -> None:
    """Write a model; the file appears complete or not at all.

    Args:
        checkpoint: the model.
        path: where to.
        format: name of the format; None to go by the ending: ``.safetensors`` native, ``.pt`` rosinality (for StyleGAN1
            lernapparat, for a DualStyleGAN its own).
        options: the format's own, such as ``dtype="float16"`` for native files.

    Raises:
        CheckpointError: the format cannot hold the model, or the folder cannot be written to.
        UnknownFormatError: no format of this name or ending can be written.
    """
    form = output_format(path, format, checkpoint)
    assert form.save is not None
    form.save(checkpoint, path, **options)


def output_format(path: PathLike, format: str | None = None, checkpoint: Checkpoint | None = None) -> Format:
    """Return the format that a file is to be written in: the one named, else the one its ending means.

    Args:
        path: the file.
        format: name of a format.
        checkpoint: what is to be written; of several formats with one ending, the first that holds it counts.

    Raises:
        UnknownFormatError: no format of this name or ending can be written.
    """
    writers = [form for form in FORMATS if form.save is not None]
    for form in writers:
        fits = Path(path).suffix.lower() in form.suffixes and form.holds(checkpoint or Checkpoint())
        if form.name == format or (format is None and fits):
            return form
    choices = ", ".join(f"{form.name} ({' '.join(form.suffixes)})" for form in writers)
    raise UnknownFormatError(
        f"cannot write {format or Path(path).suffix or path!r}; formats that can be written: {choices}"
    )


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is in a model file.

    Args:
        path, size_bytes: the file.
        container: ``safetensors``, ``torch``, ``pickle`` or ``numpy``.
        format: name of the format, None where none recognises it.
        title: what that is, or why it cannot be used.
        parts: part -> its arguments and ``parameters``, their number.
        metadata: see `Checkpoint`.
        tensors: (name, shape, dtype) of everything in the file.
    """

    path: Path
    size_bytes: int
    container: str
    format: str | None
    title: str
    parts: dict[str, dict[str, Any]]
    metadata: dict[str, Any]
    tensors: list[tuple[str, tuple[int, ...], str]]


def inspect(path: PathLike) -> Inspection:
    """Describe a model file, also one that no format reads.

    Raises:
        CheckpointError: no such file, unreadable, damaged or unsafe.
    """
    source = open_source(path)
    name, title, parts, metadata = None, "", {}, {}
    try:
        form = find_format(source)
        about = native.read_about(source)
        if form is native.FORMAT and about.get("kind", "model") != "model":
            kind = about.pop("kind")
            return Inspection(
                source.path,
                source.path.stat().st_size,
                source.container,
                f"limner-{kind}",
                f"Limner's own, kind {kind}: no model, used by its name or path",
                {},
                about,
                list(_walk(source.state)),
            )
        name, title = form.name, form.title
        checkpoint = form.load(source, ReadOptions())
        metadata = checkpoint.metadata
        if checkpoint.codes:
            metadata["codes"] = {kind: len(codes) for kind, codes in checkpoint.codes.items()}
        for part, network in checkpoint.parts().items():
            count = sum(value.numel() for value in network.parameters())
            config = native.describe(network) if isinstance(network, native.DESCRIBED) else {}
            parts[part] = {**config, "parameters": count}
    except CheckpointError as error:
        title = str(error)
    return Inspection(
        source.path,
        source.path.stat().st_size,
        source.container,
        name,
        title,
        parts,
        metadata,
        list(_walk(source.state)),
    )


def _walk(value: Any, name: str = "", depth: int = 0) -> list[tuple[str, tuple[int, ...], str]]:
    """Return (name, shape, dtype) of the tensors inside a value."""
    if isinstance(value, (Tensor, np.ndarray)):
        return [(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))]
    if depth > 40:
        return []
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        # (name, array) pairs are how TensorFlow's networks list their variables.
        pairs = all(
            isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[0], str) for item in value
        )
        items = [tuple(item) for item in value] if pairs else [(str(i), item) for i, item in enumerate(value)]
    elif isinstance(value, Foreign):
        items = [("", item) for item in (*value.args, value.state)]
    else:
        return []
    found = []
    for key, item in items:
        found += _walk(item, "/".join(part for part in (name, key) if part), depth + 1)
    return found
