"""``limner demo``: restyle two photos and sample every bundled style."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import zoo
from limner.app.console import Console, format_seconds
from limner.errors import OptionError
from limner.files import check_writable
from limner.options import knob, to_mapping
from limner.pipeline.options import (
    PHOTO_INVERTERS,
    EncoderOptions,
    StylizeOptions,
    TrunkOptions,
    check_encoder,
)

if TYPE_CHECKING:
    import numpy as np

    from limner.pipeline import FaceResult, Models
    from limner.stylization.style import Style

PICTURES = (".jpg", ".jpeg", ".png")
COMPARISON = "comparison.png"
CELL_PX = 192
MOST_COLUMNS = 8
"""of a sheet; more are put below"""
PSI = 0.7


@dataclasses.dataclass(frozen=True)
class Options(EncoderOptions, TrunkOptions):
    """Options of ``limner demo``."""

    out: Path = Path("out")
    """folder for the pictures; those of an earlier demo are replaced"""
    photos: Path | None = None
    """folder with photos; by default examples/photos of the repository"""
    styles: tuple[str, ...] = ()
    """names of styles or style files; by default every style that is bundled or installed"""
    model: str = zoo.DEFAULT_GENERATOR
    """base model, name or file"""
    inverter: str = knob("auto", choices=PHOTO_INVERTERS)
    """how the faces are embedded, see limner stylize"""
    invert_steps: int = knob(100, lo=1, hi=20_000)
    """steps of the search for each face"""
    tune_steps: int = knob(100, lo=1, hi=20_000)
    """steps of tuning with the inverter pivotal"""
    detail: bool = True
    """finish faces with the layers that were grown above the generator's resolution, see limner stylize"""
    faces: int = knob(8, lo=1, hi=32)
    """random heads per style"""
    seed: int = knob(0, lo=0, hi=2**31 - 1)
    """seed of the random heads"""


def run(options: Options, console: Console) -> int:
    """Write restyled photos, a comparison and random heads, and say what to look at."""
    start = time.perf_counter()
    photos = find_photos(options.photos)
    check_writable(options.out / COMPARISON)
    check_encoder(options.inverter, options.encoder)
    from limner.app.device import load_for

    models = load_for(options, console.settings)
    styles = _load_styles(options, models, console)
    console.print(
        f"base {models.base}, {models.generator.resolution} px; {len(photos)} photos; styles: {', '.join(styles)}"
    )
    rows, figures = [], []
    for photo in photos:
        row, numbers = _restyle(photo, styles, options, models, console)
        rows.append(row)
        figures += numbers
    comparison, heads = options.out / COMPARISON, options.out / "random-heads.png"
    _write_sheet(comparison, rows, [photo.stem for photo in photos], ["photo", "embedded", *styles], options)
    _sample_heads(heads, styles, options, models)
    seconds = time.perf_counter() - start
    _explain(figures, comparison, heads, photos[0], next(iter(styles)), options, console)
    console.print(f"\nDone in {format_seconds(seconds)}.")
    console.result(figures=figures, seconds=seconds, comparison=comparison, heads=heads)
    return 0


def find_photos(folder: Path | None) -> list[Path]:
    """Return the photos of a folder.

    Raises:
        OptionError: there is no such folder, or nothing in it.
    """
    if folder is None:
        import limner

        folder = Path(limner.__file__).resolve().parents[2] / "examples" / "photos"
        if not folder.is_dir():
            raise OptionError(
                "the example photos are in the repository, not in the package; give --photos FOLDER"
            )
    if not folder.is_dir():
        raise OptionError(f"photos is {folder}, expected a folder")
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not photos:
        raise OptionError(f"{folder} holds no photos ({', '.join(PICTURES)})")
    return photos


def _load_styles(options: Options, models: Models, console: Console) -> dict[str, Style]:
    from limner.errors import KeyMismatchError
    from limner.stylization import load_style

    styles = {}
    for name in options.styles or zoo.names("style"):
        style = load_style(zoo.resolve(name))
        try:
            style.check_base(models.generator)
        except KeyMismatchError as error:
            if options.styles:
                raise
            console.warn(f"{name} is left out: {error}")
            continue
        styles[Path(name).stem] = style
    if not styles:
        raise OptionError(
            f"there is no style for {models.base}; learn one with limner learn and name it with --styles"
        )
    return styles


def _restyle(
    photo: Path, styles: dict[str, Style], options: Options, models: Models, console: Console
) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Restyle one photo in every style; return a row for the comparison and the figures."""
    from limner import faces, media
    from limner.pipeline import stylize
    from limner.pipeline.photos import embed_faces, suit_inverter

    picture = media.read(photo)
    how = StylizeOptions(
        inverter=options.inverter,
        invert_steps=options.invert_steps,
        tune_steps=options.tune_steps,
        detail=options.detail,
    )
    start = time.perf_counter()
    with console.progress(None, f"{photo.name}: embedding") as progress:

        def show(step: Any) -> None:
            progress.total = step.items * step.steps
            progress.set((step.item - 1) * step.steps + step.step, f"loss {step.loss:.3f}")

        embedded = embed_faces(picture.pixels, how, models=models, where=str(photo), on_step=show)
    embedding_s = time.perf_counter() - start
    row: list[np.ndarray] = []
    shown = False
    figures = []
    for name, style in styles.items():
        start = time.perf_counter()
        own = suit_inverter(how, style, models) is not how  # a blend wants codes of its own
        result = stylize(
            picture.pixels,
            style,
            how,
            models=models,
            embedded=None if own else embedded,
            identity=models.identity_distance,
        )
        seconds = time.perf_counter() - start
        record = to_mapping(how) | {
            "command": "demo",
            "style": name,
            "base": models.base,
            "trunk": models.trunk_name,
        }
        kind = "compositeWithTrainedAlgorithmicMedia"
        path = options.out / f"{photo.stem}-{name}.png"
        media.write(
            path, dataclasses.replace(picture, pixels=result.pixels), options=record, source_type=kind
        )
        face = result.faces[0]
        if not row:
            row = [faces.crop_face(picture.pixels, face.alignment.resized(CELL_PX))]
            row.append(face.embedded)
        if not own and not shown:
            row[1], shown = face.embedded, True
        row.append(face.styled)
        figures.append(_figures(photo, name, face, embedding_s, seconds))
    return row, figures


def _figures(photo: Path, style: str, face: FaceResult, embedding_s: float, seconds: float) -> dict[str, Any]:
    return {
        "photo": photo.stem,
        "style": style,
        "psnr": round(face.report.psnr, 2),
        "distance_embedded": round(face.distance_embedded, 4),
        "distance_styled": round(face.distance_styled, 4),
        "identity_embedded": None if face.identity_embedded is None else round(face.identity_embedded, 3),
        "identity_styled": None if face.identity_styled is None else round(face.identity_styled, 3),
        "embedding_s": round(embedding_s, 2),
        "styling_s": round(seconds, 2),
    }


def _sample_heads(path: Path, styles: dict[str, Style], options: Options, models: Models) -> None:
    """Write a sheet: the same random heads plain and in every style."""
    import torch

    from limner import media
    from limner.latent import Latent, render
    from limner.stylization import StyleOptions, paint

    generator = models.generator
    rng = torch.Generator().manual_seed(options.seed)
    z = torch.randn(options.faces, generator.z_dim, generator=rng).to(models.device)
    with torch.no_grad():
        latent = Latent("w+", generator.truncate(generator.broadcast(generator.mapping(z)), PSI))
        grown, finished = generator, latent
        if options.detail:
            grown, finished, _ = models.finish(generator, latent, "constant")
        rows = [media.to_pixels(render(grown, finished))]
    for style in styles.values():
        painter, codes = (grown, finished) if style.detail else (generator, latent)
        rows.append(media.to_pixels(paint(painter, style, codes, StyleOptions(strength=1.0))))
    _write_sheet(path, rows, ["plain", *styles], [], options)


def _write_sheet(
    path: Path,
    rows: list[list[np.ndarray]],
    row_labels: list[str],
    column_labels: list[str],
    options: Options,
) -> None:
    import numpy as np

    from limner import media

    rows = [[media.resize_pixels(picture, CELL_PX) for picture in row] for row in rows]
    columns = max(len(row) for row in rows)
    width = math.ceil(columns / math.ceil(columns / MOST_COLUMNS))
    parts = []
    for start in range(0, columns, width):  # many styles make several bands, one below the other
        block = slice(start, start + width)
        band = [row[block] for row in rows]
        parts.append(media.make_sheet(band, row_labels, column_labels[block], cell_px=CELL_PX))
    widest = max(part.shape[1] for part in parts)
    sheet = np.concatenate(
        [np.pad(part, ((0, 0), (0, widest - part.shape[1]), (0, 0)), constant_values=255) for part in parts]
    )
    record = to_mapping(options) | {"command": "demo"}
    media.write(path, sheet, options=record, source_type="trainedAlgorithmicMedia")


def _explain(
    figures: list[dict[str, Any]],
    comparison: Path,
    heads: Path,
    photo: Path,
    style: str,
    options: Options,
    console: Console,
) -> None:
    from limner.nn.identity import SAME_PERSON

    console.print()
    console.table(
        [
            *("photo", "style", "embedded dB", "distance", "restyled", "identity", "restyled"),
            *("embedding s", "style s"),
        ],
        [list(entry.values()) for entry in figures],
    )
    console.print(
        f"distance: perceptual distance ({options.trunk}) from the photo's face, after embedding and after restyling; "
        "0 is the same picture"
    )
    console.print(
        f"identity: squared distance of dlib's face embeddings from the photo's; below {SAME_PERSON} is the same person"
    )
    console.print("\nLook at")
    console.print(f"  {comparison}   every photo: its face, as embedded, in every style")
    console.print(f"  {heads}   the same random heads, plain and in every style")
    console.print(f"  {options.out}/PHOTO-STYLE.png   the whole photos with the restyled face pasted back")
    console.print("\nTry next")
    console.print(
        f"  limner stylize {photo} --style {style} --strength 0.6 --keep-color --compare -o out/mine.png"
    )
    console.print("  limner learn PICTURE -o mine.limner          learn a style of your own from one picture")
    console.print(f"  limner sample --style {style} --grid -o out/heads.png")
