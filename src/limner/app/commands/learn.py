"""``limner learn``: learn a style from one or more pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import zoo
from limner.app.console import Console, format_bytes, format_seconds
from limner.errors import OptionError
from limner.faces.options import ReadOptions
from limner.files import check_writable
from limner.options import knob
from limner.pipeline.options import LearnOptions, TrunkOptions

if TYPE_CHECKING:
    import numpy as np

    from limner.pipeline import LearnResult, Models
    from limner.stylization.style import Style

PREVIEW_FACES = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(LearnOptions, TrunkOptions, ReadOptions):
    """Options of ``limner learn``."""

    pictures: tuple[Path, ...] = knob()
    """style pictures: one, or several in the same style"""
    sources: tuple[Path, ...] = knob(())
    """a photo of the same head in the same pose for every picture, in the same order, where there are such"""
    out: Path | None = None
    """style file to write; by default the first picture's name with .limner in this folder"""
    model: str = zoo.DEFAULT_GENERATOR
    """base model, name or file; it must hold a discriminator"""
    licence: str = knob("")
    """what may be done with the style, for its file"""
    source: str = ""
    """where the pictures come from, for its file"""
    recipe: str = ""
    """how to make the style again, for its file"""
    preview: bool = True
    """write a sheet beside the style: its pictures, how they were embedded, and random faces in the style"""
    overwrite: bool = False
    """replace a style file that exists"""


def run(options: Options, console: Console) -> int:
    """Learn the style, write its file and a preview."""
    if not options.pictures:
        raise OptionError("limner learn: name at least one style picture")
    out = options.out or Path(f"{options.pictures[0].stem}.limner")
    if out.suffix != ".limner":
        raise OptionError(f"out is {out}, expected a file ending in .limner")
    if out.exists() and not options.overwrite:
        raise OptionError(f"{out} exists already; give --overwrite or another --out")
    check_writable(out)
    from limner.app.device import pick_device
    from limner.pipeline import load_models

    models = load_models(options.model, trunk=options.trunk, device=pick_device(console.settings))
    start = time.perf_counter()
    style = learn_files(
        options.pictures,
        options.sources,
        out,
        options,
        models,
        console,
        preview=options.preview,
        notes={"licence": options.licence, "source": options.source, "recipe": options.recipe},
        max_megapixels=options.max_megapixels,
    )
    console.result(style=out, seconds=time.perf_counter() - start, **style.compression)
    return 0


def learn_files(
    pictures: Sequence[Path],
    sources: Sequence[Path],
    out: Path,
    options: LearnOptions,
    models: Models,
    console: Console,
    *,
    preview: bool = False,
    notes: Mapping[str, str] | None = None,
    max_megapixels: float | None = None,
) -> Style:
    """Learn a style from picture files, save it and return it as saved.

    Args:
        pictures, sources: see `limner.pipeline.learn_style`.
        out: the style file.
        options: see `LearnOptions`.
        models: see `limner.pipeline.load_models`.
        console: shows progress, time left and what came out.
        preview: write a sheet beside the file.
        notes: ``licence``, ``source`` and ``recipe``, which go into the file; those not given are made up from names.
        max_megapixels: largest picture that is opened; None for the limit of `limner.media`.
    """
    from limner import media
    from limner.pipeline import learn_style
    from limner.stylization import save_style

    read = [_read(path, console, max_megapixels) for path in pictures]
    twins = [_read(path, console, max_megapixels) for path in sources]
    start = time.perf_counter()
    with console.progress(options.invert_steps + options.steps, "learning the style") as progress:

        def show(step: Any) -> None:
            before = 0 if step.stage == "embed" else options.invert_steps
            what = "embedding the picture" if step.stage == "embed" else "learning"
            progress.set(before + step.step, f"{what}, loss {step.loss:.3f}")

        names = [path.name for path in pictures]
        result = learn_style(read, options, models=models, sources=twins, names=names, on_step=show)
    for note in result.notes:
        console.warn(note)
    given = {name: text for name, text in (notes or {}).items() if text}
    names = [path.name for path in pictures]
    provenance = {
        **result.style.provenance,
        "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures],
        "source": given.get("source", f"style pictures {', '.join(names)}"),
        "recipe": given.get("recipe", f"limner learn {' '.join(names)}"),
    }
    style = dataclasses.replace(
        result.style, provenance=provenance, licence=given.get("licence", result.style.licence)
    )
    style = save_style(style, out, models.generator, budget_bytes=1000 * options.file_kilobytes)
    lost = style.compression
    console.print(
        f"style: {out}, {format_bytes(out.stat().st_size)} (of {format_bytes(lost['bytes_before'])}), learned in "
        f"{format_seconds(time.perf_counter() - start)}; packing changes pictures by {lost['picture_error']:.3f} where "
        f"the style changes them by {lost['picture_change']:.3f}"
    )
    if preview:
        sheet = out.with_name(f"{out.stem}-preview.png")
        media.write(sheet, preview_sheet(result, style, models), source_type="trainedAlgorithmicMedia")
        console.print(f"preview: {sheet}")
    return style


def preview_sheet(result: LearnResult, style: Style, models: Models) -> np.ndarray:
    """Return a sheet: the style pictures, how they were embedded, random faces and the same in the style."""
    import torch

    from limner import media
    from limner.latent import Latent, render
    from limner.stylization import StyleOptions, paint

    rng = torch.Generator().manual_seed(0)
    latent = Latent("z", torch.randn(PREVIEW_FACES, models.generator.z_dim, generator=rng).to(models.device))
    latent = Latent("w+", models.generator.truncate(latent.w_plus(models.generator), 0.7))
    with torch.no_grad():
        plain = render(models.generator, latent)
    rows = [
        result.references[:PREVIEW_FACES],
        result.embedded[:PREVIEW_FACES],
        media.to_pixels(plain),
        media.to_pixels(paint(models.generator, style, latent, StyleOptions(strength=1.0))),
    ]
    labels = ("style pictures", "as embedded", "random faces", "in the style")
    return media.make_sheet(rows, labels, cell_px=max(128, models.generator.resolution))


def _read(path: Path, console: Console, max_megapixels: float | None) -> np.ndarray:
    from limner import media

    picture = media.read(path, max_megapixels=max_megapixels or media.MAX_MEGAPIXELS)
    for note in picture.notes:
        console.warn(f"{path}: {note}")
    return picture.pixels
