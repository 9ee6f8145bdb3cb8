"""Blend styles: a ``.limner`` file that names a child of the base and swap points, and holds no weights of its own.

Put on a face, the child's difference to the base is added as far as the blend takes it, at any strength.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from limner import zoo
from limner.checkpoints.child import read_child
from limner.checkpoints.networks import Skeleton
from limner.errors import CheckpointError, KeyMismatchError, ZooError
from limner.nn.stylegan2 import Generator
from limner.options import from_mapping, to_mapping
from limner.stylization.blend import scale_delta
from limner.stylization.blend_options import BlendOptions
from limner.stylization.style import LICENCE, Style

METHOD = "blend"


def find_child(name: str, beside: Path) -> Path:
    """Return a child's file: the model of that name on this machine, else a file in the folder ``beside``.

    Raises:
        CheckpointError: neither is there.
    """
    if name in zoo.names("child"):
        try:
            return zoo.path(name)
        except ZooError as error:
            raise CheckpointError(f"the style needs the child {name}: {error}") from None
    for path in (beside / name, beside / f"{name}.safetensors"):
        if path.is_file():
            return path
    raise CheckpointError(
        f"the style needs the child {name!r}, which is no child on this machine (limner models list shows them) nor a "
        f"file in {beside}; copy it there"
    )


def child_delta(
    options: Mapping[str, Any], base: str, path: Path, *, file: Path | None = None
) -> dict[str, Tensor]:
    """Return the change that a blend style makes to its base.

    Args:
        options: of the style: ``child`` and the fields of `BlendOptions`.
        base: digest of the style's base.
        path: the style's file, beside which the child may lie.
        file: the child's own; None to find it by its name.

    Raises:
        CheckpointError: the child is not there or damaged.
        KeyMismatchError: the child belongs to another base than the style.
        OptionError: the options do not fit the child.
    """
    file = file or find_child(str(options["child"]), path.parent)
    child = read_child(file)
    if child.digest != base:
        raise KeyMismatchError(
            f"{path} belongs to a base with digest {base[:12]}, but its child {file} was made from {child.base} with "
            f"digest {child.digest[:12]}; make the style again: limner blend {child.base} {options['child']} --out "
            f"{path.name}"
        )
    chosen = {name: value for name, value in options.items() if name != "child"}
    with Skeleton():
        layers = Generator(**child.config)
    return scale_delta(child.delta, layers, from_mapping(BlendOptions, chosen, str(path)))


def blend_style(
    child: str,
    options: BlendOptions | None = None,
    *,
    beside: str | Path = ".",
    file: Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    thumbnail: Tensor | None = None,
) -> Style:
    """Return the style that a child and swap points make; `limner.stylization.save_style` writes it.

    Args:
        child: name of a child, or of its file in the folder ``beside``, where the style will be saved.
        options: the base counts as the first parent, the child as the second.
        beside: see ``child``.
        file: the child's own, where another one of that name is on this machine and is to be replaced; None to find it.
        provenance: plain values that go into the file.
        thumbnail: see `Style`.

    Raises:
        CheckpointError: there is no such child.
        OptionError: the options do not fit it.
    """
    options = options or BlendOptions()
    found = read_child(file or find_child(child, Path(beside)))
    chosen = {"child": child, **to_mapping(options)}
    source = dict(found.metadata.get("provenance") or {}).get("source", "")
    about = {"base": found.base, "parent": child, "source": source, **dict(provenance or {})}
    return Style(
        delta=child_delta(chosen, found.digest, Path(beside) / f"{child}.limner", file=file),
        base=found.digest,
        method=METHOD,
        options=chosen,
        provenance=about,
        licence=str(found.metadata.get("licence", LICENCE)),
        thumbnail=thumbnail,
    )
