"""``limner convert``: turn a checkpoint of any program into a native or rosinality file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from limner.app.console import Console, format_bytes
from limner.errors import CheckpointError, OptionError
from limner.options import Options as BaseOptions
from limner.options import knob

PARTS = ("generator", "discriminator", "encoder", "raw_generator", "dual", "raw_dual", "sampler")
CHUNK_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Options(BaseOptions):
    """Options of ``limner convert``."""

    source: Path = knob()
    """file to read, or a model's name: NVIDIA .pkl, rosinality, JoJoGAN and lernapparat .pt, mmgeneration .pth \
    or .safetensors"""
    target: Path = knob()
    """file to write"""
    format: str = knob("auto", choices=("auto", "limner", "rosinality", "lernapparat", "dualstylegan", "psp"))
    """format to write; auto goes by the ending: .safetensors is Limner's own, .pt rosinality's, of a StyleGAN1 \
    lernapparat's, of a DualStyleGAN its own, with codes and sampler beside it"""
    half: bool = False
    """store half precision (Limner's own format only): half the size, relative error 5e-4"""
    parts: tuple[str, ...] = PARTS
    """what to take over, where the source has it: generator, discriminator, encoder, dual, sampler; raw_generator and \
    raw_dual are those that are not averaged"""
    channel_order: str = knob("rgb", choices=("rgb", "stored"))
    """rgb turns networks made for BGR images (mmgeneration) round; stored leaves them"""
    licence: str = ""
    """licence to note in the file; left out, what the source says"""
    overwrite: bool = False
    """replace the target if it exists"""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown:
            raise OptionError(f"parts is {', '.join(unknown)}, expected some of {', '.join(PARTS)}")


def run(options: Options, console: Console) -> int:
    """Read, write, say what was lost."""
    from limner import checkpoints, zoo

    source = Path(zoo.resolve(str(options.source)))
    if options.target.exists() and not options.overwrite:
        raise CheckpointError(f"{options.target} exists; --overwrite replaces it")
    checkpoint = checkpoints.load(source, parts=options.parts, channel_order=options.channel_order)
    checkpoint.metadata.setdefault(
        "provenance", {"file": source.name, "sha256": file_digest(source), "format": checkpoint.format}
    )
    if options.licence:
        checkpoint.metadata["licence"] = options.licence
    format_name = checkpoints.output_format(
        options.target, None if options.format == "auto" else options.format, checkpoint
    ).name
    if options.half and format_name != "limner":
        raise OptionError("half precision goes with Limner's own format only; write a .safetensors file")
    extra: dict[str, Any] = {"dtype": "float16"} if options.half else {}
    if format_name == "dualstylegan":
        extra["overwrite"] = options.overwrite
    checkpoints.save(checkpoint, options.target, format=format_name, **extra)
    size = options.target.stat().st_size
    parts = sorted(checkpoint.parts())
    console.print(
        f"{source} ({checkpoint.format}) -> {options.target} ({format_name}, {format_bytes(size)}): "
        f"{', '.join(parts)}"
    )
    for key in ("w_avg", "noise"):
        note = checkpoint.metadata.get(key, "stored")
        if note != "stored":
            console.print(f"note: {note}")
    console.result(
        source=source,
        target=options.target,
        read=checkpoint.format,
        written=format_name,
        parts=parts,
        bytes=size,
    )
    return 0


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
