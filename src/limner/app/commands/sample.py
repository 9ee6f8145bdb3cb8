"""``limner sample``: random faces from any generator, plain or in a style."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from limner import zoo
from limner.app.console import Console
from limner.app.outputs import OutputOptions, recorded, refuse_taken
from limner.errors import CheckpointError, OptionError
from limner.options import knob

if TYPE_CHECKING:
    import torch

    from limner.nn.stylegan2 import Generator


@dataclasses.dataclass(frozen=True)
class Options(OutputOptions):
    """Options of ``limner sample``."""

    model: str = knob(zoo.DEFAULT_GENERATOR, positional=True)
    """name of a model, or a model file of any format"""
    seeds: tuple[int, ...] = knob(tuple(range(16)), lo=0)
    """one picture each, such as 0-63 or 3,5,8; a seed gives the same face whatever else is asked for"""
    psi: float = knob(0.7, lo=-2, hi=2)
    """truncation: 0 is the mean face, 1 the full variety"""
    psi_cutoff: int | None = knob(None, lo=0)
    """truncate only the first so many rows of w+"""
    noise: str = knob("constant", choices=("constant", "random", "none"))
    """noise maps: those of the model, new ones from the seed, or none"""
    label: int = knob(0, lo=0)
    """class, of a class-conditional model"""
    style: str = ""
    """name of a style or a style file to paint in"""
    strength: float = knob(1.0, lo=0, hi=1)
    """strength of the style"""
    grid: bool = False
    """write one sheet of all faces instead of one picture each"""
    columns: int = knob(0, lo=0, hi=1000)
    """columns of the sheet; 0 makes it about square"""
    out: Path = Path("samples")
    """folder for the pictures; a name that ends in .png, .jpg, ... is one picture or sheet"""


def run(options: Options, console: Console) -> int:
    """Paint one face per seed and write them."""
    from limner.app.device import pick_device
    from limner.media import make_sheet, to_pixels, write

    if not options.seeds:
        raise OptionError("seeds is empty, expected one number or more, such as 0-15")
    sheet = options.grid or bool(options.out.suffix and len(options.seeds) > 1)
    names = ["samples.png"] if sheet else [f"seed{seed:06d}.png" for seed in options.seeds]
    targets = [options.out if options.out.suffix else options.out / name for name in names]
    refuse_taken(targets, options)
    generator = load_generator(options).to(pick_device(console.settings))
    about = {"command": "sample", **recorded(options)}
    made, files = [], []
    for number, seed in enumerate(console.track(options.seeds, "Painting")):
        pixels = to_pixels(paint(generator, seed, options))[0]
        if sheet:
            made.append(pixels)
            continue
        about["seeds"] = [seed]
        files.append(write(targets[number], pixels, options=about, source_type="trainedAlgorithmicMedia"))
    if sheet:
        columns = options.columns or math.ceil(math.sqrt(len(made)))
        rows = [made[start : start + columns] for start in range(0, len(made), columns)]
        files.append(
            write(targets[0], make_sheet(rows), options=about, source_type="trainedAlgorithmicMedia")
        )
    where = files[0] if len(files) == 1 else f"{len(files)} pictures in {files[0].parent}"
    console.print(f"{options.model}: wrote {where}")
    console.result(model=options.model, files=files)
    return 0


def load_generator(options: Options) -> Generator:
    """Load the generator, in its style if one is asked for.

    Raises:
        ZooError: unknown name.
        CheckpointError: unreadable file, or one without a generator.
        OptionError: a label that the model does not have.
    """
    from limner.checkpoints import load

    file = zoo.resolve(options.model)
    generator = load(file, parts=("generator",)).generator
    if generator is None:
        raise CheckpointError(f"{file} holds no generator; limner inspect {file} shows what is in it")
    if options.label >= max(1, generator.mapping.label_dim):
        raise OptionError(
            f"label is {options.label}, but {options.model} has {generator.mapping.label_dim} classes"
        )
    if options.style:
        from limner.stylization.style import load_style

        style = load_style(zoo.resolve(options.style))
        style.check_base(generator)
        generator = style.apply(generator, strength=options.strength)
    return generator.eval().requires_grad_(False)


def paint(generator: Generator, seed: int, options: Options) -> torch.Tensor:
    """Return the face of one seed, (1, 3, H, W); by itself, so that other seeds do not change its rounding."""
    import torch

    from limner.app.device import seeded_rng

    device = generator.w_avg.device
    rng = seeded_rng(seed)
    z = torch.randn(1, generator.z_dim, generator=rng).to(device)
    classes = generator.mapping.label_dim
    labels = torch.nn.functional.one_hot(torch.tensor([options.label]), classes).to(z) if classes else None
    noise = options.noise
    if noise == "random":
        sides = [layer.get_buffer("noise").shape[-1] for layer in generator.synthesis.layers]
        noise = [torch.randn(1, 1, side, side, generator=rng).to(device) for side in sides]
    with torch.inference_mode():
        return generator(z, labels, psi=options.psi, psi_cutoff=options.psi_cutoff, noise=noise)
