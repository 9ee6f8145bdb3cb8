"""``limner train encoder``: train the compact encoder of a generator, or one of a published architecture, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.app.console import Console
from limner.app.training import describe_run, finish, fit, launch, tell_nearness, tell_places
from limner.errors import CheckpointError, OptionError
from limner.training.encoder.options import EncoderOptions as Options
from limner.training.psp.options import PspOptions
from limner.training.shared_options import ARCHITECTURES

if TYPE_CHECKING:
    from torch import Tensor

    from limner.nn.stylegan2 import Generator
    from limner.training.cores import EncoderTraining
    from limner.training.encoder.lessons import EncoderRun
    from limner.training.run import Runtime

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
STEPS_SHOWN = 3
FALLBACK_PICTURES = 8


VARIANTS = ("architecture", {name: Options if name == "compact" else PspOptions for name in ARCHITECTURES})
"""The option that decides which options there are, and its values."""


def run(options: Options | PspOptions, console: Console) -> int:
    """Train until ``kimg``, ``seconds`` or an interrupt; the state is saved in each case."""
    if isinstance(options, PspOptions):
        from limner.app.commands import train_psp

        return train_psp.run(options, console)
    return launch(_train, options, console)


def _train(options: Options, console: Console, runtime: Runtime) -> int:
    import torch

    from limner import checkpoints, losses, zoo
    from limner.checkpoints.compact import load_encoder
    from limner.inversion import TrunkDistance
    from limner.nn import deltas
    from limner.nn.stylegan2 import Generator
    from limner.training.cores import EncoderTraining
    from limner.training.data import list_parts
    from limner.training.encoder.figures import EncoderExam
    from limner.training.encoder.lessons import EncoderLessons, build_run

    _photos(options.photos)
    if options.data and options.validate:
        list_parts(options.data, options.validate, what="validate: data", every=False)
    generator = checkpoints.load(zoo.resolve(options.base)).generator
    if not isinstance(generator, Generator):
        raise CheckpointError(f"{options.base} holds no StyleGAN2 generator")
    base = {"name": Path(options.base).stem, "digest": deltas.digest(generator)}
    layout: Any = {"memory_format": torch.channels_last}  # torch's stubs do not know it
    generator.to(runtime.device, **layout).eval().requires_grad_(False)
    trunk = zoo.load("lite0").to(runtime.device, **layout)
    embedder = zoo.load("identity").to(runtime.device, **layout)
    init = None
    if options.init and not (Path(options.out) / "state.pt").exists():
        init = load_encoder(zoo.resolve(options.init), trunk=trunk).core.to(runtime.device)
    encoder = build_run(
        options, runtime, generator=generator, trunk=trunk, base=base, embedder=embedder, init=init
    )
    exams: list[EncoderExam] = []

    def examine(run: EncoderRun, sheet: Path) -> dict[str, float]:
        if not exams:  # the search takes a while: not before it is needed
            image, names, renders = _exam_pictures(options, generator, runtime)
            exams.append(
                EncoderExam(
                    generator,
                    image,
                    names,
                    renders=renders,
                    perceptual=TrunkDistance(trunk, name="lite0"),
                    identity=lambda a, b: losses.identity_distance(embedder, a, b),
                    steps=STEPS_SHOWN,
                    ceiling_steps=options.ceiling_steps,
                    keep=Path(options.out) / "ceiling.npy",
                )
            )
        return exams[0].measure(run.average, sheet)

    training = EncoderTraining(encoder, EncoderLessons(encoder), examine=examine, export=_export)
    training.setup()
    if not runtime.is_main:
        training.fit()
        return 0
    weights = sum(p.numel() for p in encoder.encoder.core.parameters())
    found = 0 if encoder.pictures is None else len(encoder.pictures)
    console.print(
        f"{found} pictures, generator {base['name']} at {generator.resolution} px, {weights:,} weights on a frozen "
        f"trunk, on {runtime}; "
        + (f"resuming at {encoder.kimg:.1f} kimg" if encoder.step else "starting anew")
    )
    tell_places(encoder.pictures.counts if encoder.pictures else {}, console)
    return finish(training, console, _fit(training, console), tell_nearness)


def _exam_pictures(options: Options, generator: Generator, runtime: Runtime) -> tuple[Tensor, list[str], int]:
    """Return held-out pictures and the faces of photos, their names, and how many are no photos."""
    import torch

    from limner.training.data import PictureSet

    images, names = [], []
    if options.data:
        chosen = options.validate or options.select
        pictures = PictureSet(options.data, generator.resolution, select=chosen, every=not options.validate)
        images.append(pictures.pixels[:FALLBACK_PICTURES].float() / 127.5 - 1)
        names += [Path(name).stem for name in pictures.names[:FALLBACK_PICTURES]]
    else:
        rng = torch.Generator().manual_seed(options.seed)
        z = torch.randn(FALLBACK_PICTURES, generator.z_dim, generator=rng).to(runtime.device)
        with torch.no_grad():
            images.append(generator(z, psi=0.7).clamp(-1, 1).cpu())
        names += [f"made {n}" for n in range(FALLBACK_PICTURES)]
    faces, more = read_faces(options.photos, generator.resolution)
    return torch.cat([*images, *faces]).to(runtime.device), [*names, *more], len(names)


def read_faces(folder: str, side: int) -> tuple[list[Tensor], list[str]]:
    """Return the aligned faces of all photos of a folder, (1, 3, side, side) each, and their photos' names."""
    from limner import media
    from limner.faces import crop_face, find_alignments
    from limner.faces.options import AlignOptions, DetectOptions

    images, names = [], []
    for path in _photos(folder):
        photo = media.read(path)
        for alignment in find_alignments(
            photo.pixels, AlignOptions(size=side), DetectOptions(), where=str(path)
        ):
            images.append(media.to_image(crop_face(photo.pixels, alignment)))
            names.append(path.stem)
    return images, names


def _photos(folder: str) -> list[Path]:
    if not folder:
        return []
    if not Path(folder).is_dir():
        raise OptionError(f"photos is {folder}, expected a folder")
    return sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in PICTURES)


def _fit(training: EncoderTraining, console: Console) -> bool:
    def shown(record: dict[str, Any]) -> list[str]:
        named = (name for name in record if name[-1:].isdigit() or name == "identity")
        return [f"{name} {record[name]:.3g}" for name in named]

    return fit(training, console, "train encoder (images)", shown)


def _export(run: EncoderRun, path: Path, figures: dict[str, Any]) -> None:
    from limner.checkpoints.compact import save_encoder

    counts = run.pictures.counts if run.pictures else {}
    provenance = describe_run("train encoder", run, figures, counts=counts)
    save_encoder(run.average, path, provenance=provenance, packed=False)
