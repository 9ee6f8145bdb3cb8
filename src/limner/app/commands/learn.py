"""``limner learn``: learn a style from one or more pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import zoo
from limner.app.console import Console, format_bytes, format_seconds
from limner.errors import OptionError
from limner.faces.options import ReadOptions
from limner.files import check_writable
from limner.options import knob
from limner.pipeline.options import (
    LATENT_FILES,
    EncoderOptions,
    LearnOptions,
    TrunkOptions,
    check_encoder,
)

if TYPE_CHECKING:
    import numpy as np

    from limner.latent import Latent
    from limner.pipeline import LearnResult, Models
    from limner.stylization.style import Style

PREVIEW_FACES = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(LearnOptions, EncoderOptions, TrunkOptions, ReadOptions):
    """Options of ``limner learn``."""

    pictures: tuple[Path, ...] = knob()
    """style pictures: one, or several in the same style"""
    sources: tuple[Path, ...] = knob(())
    """a photo of the same head in the same pose for every picture, in the same order, where there are such; or a latent
    file, such as limner invert writes by any method, whose code is taken without a search"""
    resume: Path | None = None
    """style file to go on from, by ``steps`` further steps; with the same pictures their codes are taken from it"""
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
    preview_every: int = knob(0, lo=0)
    """after every so many steps, renew a sheet beside the style (NAME-steps.png) of the same random faces, so that one
    can see when to stop with Ctrl-C, which keeps what has been learned; 0 for none"""
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
    check_encoder(options.inverter, options.encoder)
    from limner.app.device import load_for

    models = load_for(options, console.settings)
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
        resume=options.resume,
        preview_every=options.preview_every,
    )
    about = {name: style.provenance[name] for name in ("steps", "learn_seconds", "figures")}
    console.result(style=out, seconds=time.perf_counter() - start, **about, **style.compression)
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
    resume: Path | None = None,
    preview_every: int = 0,
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
        resume: a style file to go on from.
        preview_every: steps between two renewals of the sheet that shows the style growing; 0 for none.
    """
    from limner import media
    from limner.pipeline import learn_style
    from limner.stylization import save_style

    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures]
    begun = None if resume is None else _read_start(resume, digests, console)

    read = [_read(path, console, max_megapixels) for path in pictures]
    twins = [_read_source(path, models, console, max_megapixels) for path in sources]
    start = time.perf_counter()
    growing = _GrowingSheet(out.with_name(f"{out.stem}-steps.png"), models) if preview_every else None
    embedding = [0]
    progress_bar = console.progress(None, "learning the style")
    with progress_bar as progress, _stop_on_interrupt(console) as interrupted:

        def show(step: Any) -> bool:
            what = "embedding the picture" if step.stage == "embed" else "learning"
            if step.stage == "embed":  # an encoder takes a few steps only, codes of an earlier run none
                embedding[0] = step.steps
            progress.total = embedding[0] + options.steps
            progress.set((step.stage == "learn") * embedding[0] + step.step, f"{what}, loss {step.loss:.3f}")
            if step.stage == "embed":
                if interrupted.is_set():  # nothing has been learned yet
                    raise KeyboardInterrupt
                return False
            if growing is not None and step.step % preview_every == 0:
                growing.add(step.tuned, step.step)
            return interrupted.is_set()

        names = [path.name for path in pictures]
        result = learn_style(
            read, options, models=models, sources=twins, names=names, start=begun, on_step=show
        )
    for note in result.notes:
        console.warn(note)
    given = {name: text for name, text in (notes or {}).items() if text}
    names = [path.name for path in pictures]
    provenance = {
        **result.style.provenance,
        "sha256": digests,
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


def _read_start(path: Path, digests: Sequence[str], console: Console) -> Style:
    """Return the style to go on from, without its codes where they belong to other pictures."""
    from limner.app.styles import read_style

    style = read_style(str(path))
    if style.codes is None or list(style.provenance.get("sha256", ())) != list(digests):
        console.warn(f"{path} has no codes of these pictures, so they are embedded anew")
        return dataclasses.replace(style, codes=None)
    return style


@contextlib.contextmanager
def _stop_on_interrupt(console: Console) -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets; the second one interrupts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may catch signals
        return

    def stop(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        console.warn(
            "stopping after this step and keeping what has been learned; press Ctrl-C again to give up"
        )

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


class _GrowingSheet:
    """A sheet of the same random faces after more and more steps, written anew with every row.

    Args:
        path: of the sheet.
        models: whose generator paints the first row.
    """

    def __init__(self, path: Path, models: Models):
        self.path, self.latent = path, random_faces(models, PREVIEW_FACES)
        self.rows: list[list[np.ndarray]] = []
        self.labels: list[str] = []
        self.add(models.generator, 0)

    def add(self, generator: Any, step: int) -> None:
        """Add a row of what a generator paints, and write the sheet."""
        import torch

        from limner import media
        from limner.latent import render

        with torch.no_grad():
            self.rows.append(media.to_pixels(render(generator, self.latent).clamp(-1, 1)))
        self.labels.append(f"step {step}")
        sheet = media.make_sheet(self.rows, self.labels, cell_px=max(128, generator.resolution))
        media.write(self.path, sheet, source_type="trainedAlgorithmicMedia")


def random_faces(models: Models, count: int, *, seed: int = 0, psi: float = 0.7) -> Any:
    """Return codes of random faces, a `limner.latent.Latent` in w+."""
    import torch

    from limner.latent import Latent

    rng = torch.Generator().manual_seed(seed)
    latent = Latent("z", torch.randn(count, models.generator.z_dim, generator=rng).to(models.device))
    return Latent("w+", models.generator.truncate(latent.w_plus(models.generator), psi))


def preview_sheet(result: LearnResult, style: Style, models: Models) -> np.ndarray:
    """Return a sheet: the style pictures, how they were embedded, random faces and the same in the style."""
    import torch

    from limner import media
    from limner.latent import render
    from limner.stylization import StyleOptions, paint

    latent = random_faces(models, PREVIEW_FACES)
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


def _read_source(
    path: Path, models: Models, console: Console, max_megapixels: float | None
) -> np.ndarray | Latent:
    """Return a photo, or the one code of a latent file.

    Raises:
        OptionError: the file has several codes.
        KeyMismatchError, ShapeError, CheckpointError: see `limner.pipeline.kept.load_codes`.
    """
    if path.suffix.lower() not in LATENT_FILES:
        return _read(path, console, max_megapixels)
    from limner.pipeline.kept import load_codes

    file = load_codes(path, models)
    if len(file.latent) != 1:
        raise OptionError(f"{path} holds {len(file.latent)} codes, expected one per style picture")
    if file.delta or file.noise:
        console.warn(f"{path}: the code is taken; noise maps and the generator's change stay out of a style")
    return file.latent


def _read(path: Path, console: Console, max_megapixels: float | None) -> np.ndarray:
    from limner import media

    picture = media.read(path, max_megapixels=max_megapixels or media.MAX_MEGAPIXELS)
    for note in picture.notes:
        console.warn(f"{path}: {note}")
    return picture.pixels
