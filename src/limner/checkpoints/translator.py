"""Files of translators: the core alone, its large tensors in 8 bits, with the digest of the generator it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limner.checkpoints.cores import CoreFiles, stored_tensors
from limner.nn.features import Lite0
from limner.nn.translator import Translator, TranslatorCore

KIND = "translator"
FILES = CoreFiles(KIND, "Translator", "translator", "translator", "limner train translator")


def save_translator(
    translator: Translator,
    path: str | Path,
    *,
    provenance: Mapping[str, Any],
    licence: str = "unknown",
    packed: bool = True,
) -> None:
    """Write the core of a translator, all at once; the trunk is not stored.

    Args:
        translator: its ``base`` must say which generator it belongs to.
        path: safetensors file.
        provenance: plain values: how it was made.
        licence: terms of the weights.
        packed: store matrices and kernels in 8 bits, with a scale per row.

    Raises:
        CheckpointError: the translator belongs to no generator, or has values that are not finite.
    """
    FILES.write(
        path,
        stored_tensors(translator.core, packed=packed),
        config=translator.core.config(),
        base=translator.base,
        provenance=provenance,
        licence=licence,
    )


def load_translator(path: str | Path, *, trunk: Lite0) -> Translator:
    """Read a translator; float32 in memory, frozen, on the CPU.

    Args:
        path: what `save_translator` wrote.
        trunk: the frozen Lite0 that it was trained with.

    Raises:
        ZooError: there is no such file.
        UnknownFormatError: not a safetensors file of a translator.
        KeyMismatchError: its tensors are not those of the architecture it names.
    """
    core, about = FILES.read(path, TranslatorCore)
    return Translator(trunk=trunk, core=core, base=about.get("base"))
