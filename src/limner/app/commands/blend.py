"""``limner blend``: one generator from the layers of two or more relatives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import zoo
from limner.app.console import Console, format_bytes
from limner.errors import CheckpointError, LimnerError, OptionError
from limner.files import check_writable
from limner.options import knob, to_mapping
from limner.stylization.blend_options import BlendOptions

if TYPE_CHECKING:
    from limner.checkpoints import Checkpoint
    from limner.nn.stylegan2 import Generator

STYLE_SUFFIX = ".limner"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
BATCH = 16
PARTS = ("generator", "discriminator", "raw_generator")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(BlendOptions):
    """Options of ``limner blend``."""

    models: tuple[str, ...] = knob()
    """models to blend, names or files: a base and children that were fine-tuned from it, in the order of --swap"""
    out: Path = Path("blend.safetensors")
    """file to write: a model (.safetensors, .pt), a style of the first model (.limner), or only the sheet (.png, ...)"""
    grid: bool = False
    """also write a sheet of all swap points of two models, one row per seed"""
    seeds: tuple[int, ...] = knob(tuple(range(6)), lo=0)
    """faces on the sheet"""
    psi: float = knob(0.7, lo=-2, hi=2)
    """truncation of the sheet's faces"""
    unrelated: bool = False
    """blend models of one architecture even if none was made from the other"""
    half: bool = False
    """store half precision (.safetensors only)"""
    licence: str = ""
    """licence to note in the file; left out, those of the models"""
    overwrite: bool = False
    """replace the file if it exists"""


def run(options: Options, console: Console) -> int:
    """Load, check that they are relatives, blend, write."""
    if len(options.models) < 2:
        raise OptionError(
            "limner blend: name two models or more, such as limner blend heads toon-child --swap 32"
        )
    only_sheet = options.out.suffix.lower() in PICTURES
    sheet = options.out if only_sheet else options.out.with_name(f"{options.out.stem}-grid.png")
    targets = ([] if only_sheet else [options.out]) + ([sheet] if only_sheet or options.grid else [])
    for target in targets:
        if target.exists() and not options.overwrite:
            raise CheckpointError(f"{target} exists; --overwrite replaces it")
        check_writable(target)
    from limner import checkpoints
    from limner.app.device import pick_device
    from limner.stylization.blend import blend_table, check_family, describe_table

    is_style = options.out.suffix.lower() == STYLE_SUFFIX
    if not (only_sheet or is_style):
        format_name = checkpoints.output_format(options.out).name
        if options.half and format_name != "limner":
            raise OptionError("half precision goes with Limner's own format only; write a .safetensors file")
    device = pick_device(console.settings)
    parents = [load_parent(name) for name in options.models]
    generators = [parent.generator.to(device) for parent in parents if parent.generator is not None]
    check_family(generators, options.models, unrelated=options.unrelated)
    report: dict[str, Any] = {"files": []}
    if not only_sheet:
        table = blend_table(generators[0], len(generators), options)
        report["parents"] = describe_table(table, options.models)
        for line in report["parents"]:
            console.print(line)
        write = write_style if is_style else write_model
        notes = write(parents, generators, options)
        report["files"].append(options.out)
        console.print(f"wrote {options.out}, {format_bytes(options.out.stat().st_size)}: {notes}")
    if only_sheet or options.grid:
        report["files"].append(write_sheet(sheet, generators, options, console))
        console.print(f"wrote {sheet}")
    console.result(**report)
    return 0


def load_parent(name: str) -> Checkpoint:
    """Load one of the models.

    Raises:
        ZooError, CheckpointError: there is no such model, it is unreadable or holds no generator.
    """
    from limner import checkpoints

    file = zoo.resolve(name)
    checkpoint = checkpoints.load(file, parts=PARTS)
    if checkpoint.generator is None:
        raise CheckpointError(f"{file} holds no generator; limner inspect {file} shows what is in it")
    return checkpoint


def write_model(parents: Sequence[Checkpoint], generators: Sequence[Generator], options: Options) -> str:
    """Blend everything that all parents have, write the model, and return what is in it."""
    from limner import checkpoints
    from limner.stylization.blend import blend, blend_discriminators, blend_table

    chosen = blend_options(options)
    names = options.models
    blended = checkpoints.Checkpoint(
        generator=blend(generators, chosen, names=names, unrelated=options.unrelated).cpu(),
        metadata={"provenance": provenance(parents, options), "licence": licence(parents, options)},
    )
    raw = [parent.raw_generator for parent in parents if parent.raw_generator is not None]
    if len(raw) == len(parents):
        blended.raw_generator = blend(raw, chosen, names=names, unrelated=options.unrelated)
    table = blend_table(generators[0], len(generators), chosen)
    found = [parent.discriminator for parent in parents if parent.discriminator is not None]
    note = "no discriminator, since no parent has one"
    if found:
        blended.discriminator, note = found[0], "the discriminator of one parent, unchanged"
        if len(found) == len(parents):
            try:
                blended.discriminator = blend_discriminators(found, table)
                note = "a discriminator blended alike"
            except LimnerError as error:
                note += f" ({error})"
    blended.metadata["provenance"]["discriminator"] = note
    extra = {"dtype": "float16"} if options.half else {}
    checkpoints.save(blended, options.out, **extra)
    return f"generator{', raw_generator' if blended.raw_generator else ''}; {note}"


def write_style(parents: Sequence[Checkpoint], generators: Sequence[Generator], options: Options) -> str:
    """Write a style of the first model, and return what it holds.

    The style names the second model where that is a child of the first, a name or a file beside the style; else it
    holds the packed difference.
    """
    from limner.nn import deltas
    from limner.stylization.blend import blend
    from limner.stylization.blend_style import METHOD, blend_style
    from limner.stylization.style import save_style, style_between

    chosen, names = blend_options(options), options.models
    about = {**provenance(parents, options), "base": base_name(names[0])}
    child = reference(names[1], options.out) if len(names) == 2 else ""
    if child and parents[1].format == "child":
        style = blend_style(child, chosen, beside=options.out.parent, provenance=about)
        if style.base == deltas.digest(generators[0]):
            style = dataclasses.replace(style, licence=licence(parents, options))
            save_style(style, options.out, generators[0].cpu())
            return f"a style that adds layers of {child} to {about['base']}"
    style = style_between(
        generators[0],
        blend(generators, chosen, names=names, unrelated=options.unrelated),
        method=METHOD,
        options=to_mapping(chosen),
        provenance=about,
    )
    style = dataclasses.replace(style, licence=licence(parents, options))
    lost = save_style(style, options.out, generators[0]).compression
    return (
        f"a style of {about['base']}; packing changes pictures by {lost['picture_error']:.3f} where the style "
        f"changes them by {lost['picture_change']:.3f}"
    )


def reference(name: str, style: Path) -> str:
    """Return what a style file calls a child: its name, or its file's where that lies beside the style; else empty."""
    if name in zoo.cards():
        return name
    file = Path(name)
    return file.name if file.resolve().parent == style.resolve().parent else ""


def base_name(name: str) -> str:
    """Return a model's name, or its file's without the ending."""
    return name if name in zoo.cards() else Path(name).stem


def blend_options(options: Options) -> BlendOptions:
    """Return what of the command's options is the blend's."""
    return BlendOptions(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(BlendOptions)}
    )


def provenance(parents: Sequence[Checkpoint], options: Options) -> dict[str, Any]:
    """Return where a blend comes from, as plain values."""
    from limner.nn import deltas

    return {
        "command": "blend",
        "options": to_mapping(blend_options(options)),
        "parents": [
            {
                "name": name,
                "digest": deltas.digest(parent.generator),
                "licence": str(parent.metadata.get("licence", "unknown")),
            }
            for name, parent in zip(options.models, parents, strict=True)
            if parent.generator is not None
        ],
    }


def licence(parents: Sequence[Checkpoint], options: Options) -> str:
    """Return the licence that the options give, else those of all parents."""
    found = [str(parent.metadata.get("licence", "unknown")) for parent in parents]
    return options.licence or "; ".join(dict.fromkeys(found))


def write_sheet(path: Path, generators: Sequence[Generator], options: Options, console: Console) -> Path:
    """Write a sheet: one row per seed, one column per swap point, the models as they are at both ends."""
    import torch

    from limner.app.device import seeded_rng
    from limner.media import make_sheet, to_pixels, write
    from limner.stylization.blend import preview, swap_points

    if not options.seeds:
        raise OptionError("seeds is empty, expected one number or more, such as 0-5")
    width = generators[0].z_dim
    z = torch.cat([torch.randn(1, width, generator=seeded_rng(seed)) for seed in options.seeds])
    z = z.to(generators[0].w_avg.device)
    columns, labels = [], []
    count = len(swap_points(generators[0])) + 2
    stages = preview(generators, blend_options(options), unrelated=options.unrelated)
    for label, generator in console.track(stages, "Swap points", total=count):
        with torch.inference_mode():
            columns.append(
                [
                    pixels
                    for part in z.split(BATCH)
                    for pixels in to_pixels(generator(part, psi=options.psi).clamp(-1, 1))
                ]
            )
        ends = {"first": base_name(options.models[0]), "second": base_name(options.models[1])}
        labels.append(ends.get(label, label))
    rows = [list(row) for row in zip(*columns, strict=True)]
    about = {"command": "blend", **to_mapping(options)}
    sheet = make_sheet(rows, [str(seed) for seed in options.seeds], labels)
    return write(path, sheet, options=about, source_type="trainedAlgorithmicMedia")
