"""``limner style``: merge style files, export them as checkpoints, show what they paint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import zoo
from limner.app.console import Console, format_bytes, format_seconds
from limner.errors import CheckpointError, OptionError
from limner.files import check_writable
from limner.options import Options as BaseOptions
from limner.options import knob

if TYPE_CHECKING:
    from limner.pipeline import Models
    from limner.stylization.style import Style

STYLE_SUFFIX = ".limner"
MODELS = (".pt", ".safetensors")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
FACES_PER_ROW = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(BaseOptions):
    """Options of ``limner style``."""

    styles: tuple[str, ...] = knob()
    """styles, names or .limner files; several are merged"""
    out: Path | None = None
    """file to write: a style (.limner), a whole model (.pt in rosinality's layout, which the original JoJoGAN programs
    read, or .safetensors), or a sheet of random faces in the style (.png, ...); left out, the styles are described"""
    weights: tuple[float, ...] = knob(())
    """how much of every style; by default each the same, 1 in all"""
    strength: float = knob(1.0, lo=0.0, hi=1.0, step=0.05)
    """how much of the whole a model or a sheet gets"""
    model: str = zoo.DEFAULT_GENERATOR
    """base model, name or file"""
    samples: int = knob(12, lo=1, hi=1000)
    """faces on the sheet"""
    seed: int = knob(0, lo=0, hi=2**31 - 1)
    """seed of these faces"""
    psi: float = knob(0.7, lo=-2.0, hi=2.0)
    """their truncation: 0 is the mean face, 1 the full variety"""
    file_kilobytes: int = knob(490, lo=20, hi=1_000_000)
    """size of a style file, at most, though biases, picture and codes are kept whatever they take; less keeps less of
    the style"""
    overwrite: bool = False
    """replace the file if it exists"""


def run(options: Options, console: Console) -> int:
    """Read the styles, merge them, write what the ending of ``out`` asks for."""
    if not options.styles:
        raise OptionError("limner style: name at least one style")
    out = options.out
    if options.strength != 1 and (out is None or out.suffix == STYLE_SUFFIX):
        raise OptionError("strength goes with a model or a sheet; a style file takes weights")
    if out is not None:
        if out.suffix.lower() not in (STYLE_SUFFIX, *MODELS, *PICTURES):
            raise OptionError(
                f"out is {out}, expected an ending of {', '.join((STYLE_SUFFIX, *MODELS, *PICTURES))}"
            )
        if out.exists() and not options.overwrite:
            raise CheckpointError(f"{out} exists; --overwrite replaces it")
        check_writable(out)
    from limner.app.styles import read_style
    from limner.stylization.merging import merge

    styles = [read_style(name) for name in options.styles]
    if out is None:
        found = [describe(style, name, console) for style, name in zip(styles, options.styles, strict=True)]
        console.result(styles=found)
        return 0
    style = styles[0]
    if len(styles) > 1 or options.weights:
        style = merge(styles, options.weights or None, names=options.styles)
    from limner.app.device import pick_device
    from limner.pipeline import load_models

    models = load_models(options.model, device=pick_device(console.settings))
    style.check_base(models.generator)
    if out.suffix == STYLE_SUFFIX:
        _write_style(style, out, models, options)
    elif out.suffix in MODELS:
        export(style, out, models, strength=options.strength)
    else:
        _write_sheet(style, out, models, options, console)
    console.print(f"wrote {out}, {format_bytes(out.stat().st_size)}")
    console.result(out=out, bytes=out.stat().st_size, styles=options.styles)
    return 0


def describe(style: Style, name: str, console: Console) -> dict[str, Any]:
    """Print what a style is, and return it."""
    about = style.provenance
    parts = [f"{name}: {style.method}, base {about.get('base') or style.base[:12]}"]
    if "steps" in about:
        parts.append(f"{about['steps']} steps in {format_seconds(about['learn_seconds'])}")
    if "last_loss" in about:
        parts.append(f"loss {about['first_loss']:.3f} to {about['last_loss']:.3f}")
    parts += [f"{figure.replace('_', ' ')} {value:.3f}" for figure, value in about.get("figures", {}).items()]
    parts += [f"{part['weight']:g} of {part['name']}" for part in about.get("merged", ())]
    console.print("; ".join(parts))
    console.print(f"  licence: {style.licence}")
    plain = {"name": name, "method": style.method, "base": style.base, "licence": style.licence}
    return plain | {"options": dict(style.options), "provenance": dict(about)}


def export(style: Style, out: Path, models: Models, *, strength: float = 1.0) -> None:
    """Write the base with a style as a whole model.

    In a ``.pt`` the generator stands as ``g``, where JoJoGAN's programs look for it, and as ``g_ema``.
    """
    from limner import checkpoints

    generator = style.apply(models.generator, strength=strength)
    checkpoint = checkpoints.Checkpoint("limner", generator=generator, discriminator=models.discriminator)
    if out.suffix == ".pt":
        checkpoint.raw_generator = generator
    checkpoint.metadata |= {
        "licence": style.licence,
        "provenance": {"style": dict(style.provenance), "base": style.base, "strength": strength},
    }
    checkpoints.save(checkpoint, out)


def _write_style(style: Style, out: Path, models: Models, options: Options) -> None:
    from limner.stylization import save_style

    # A blend's own file names its child; a copy elsewhere holds the change itself.
    plain = {name: value for name, value in style.options.items() if name != "child"}
    style = dataclasses.replace(style, options=plain)
    save_style(style, out, models.generator, budget_bytes=1000 * options.file_kilobytes)


def _write_sheet(style: Style, out: Path, models: Models, options: Options, console: Console) -> None:
    import torch

    from limner import media
    from limner.app.commands.learn import random_faces
    from limner.latent import render

    latent = random_faces(models, options.samples, seed=options.seed, psi=options.psi)
    painter = style.apply(models.generator, strength=options.strength)
    rows, starts = (
        [],
        range(0, options.samples, FACES_PER_ROW),
    )  # a row at a time, so that memory does not grow
    for start in console.track(starts, "painting faces"):
        with torch.no_grad():
            faces = render(painter, latent[start : start + FACES_PER_ROW]).clamp(-1, 1)
        rows.append(media.to_pixels(faces))
    cell = max(128, models.generator.resolution)
    media.write(out, media.make_sheet(rows, cell_px=cell), source_type="trainedAlgorithmicMedia")
