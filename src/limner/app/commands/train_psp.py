"""``limner train encoder --architecture psp|e4e|restyle-psp|restyle-e4e``: the published encoders, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.app.console import Console
from limner.app.training import describe_run, finish, fit, launch, tell_nearness, tell_places
from limner.errors import CheckpointError, OptionError
from limner.training.psp.options import PspOptions, settle_weights

if TYPE_CHECKING:
    from limner.nn.encoders import Encoder
    from limner.nn.stylegan2 import Generator
    from limner.pipeline import Models
    from limner.training.psp.figures import PspExam
    from limner.training.psp.lessons import PspRun
    from limner.training.run import Runtime

DATASET_TYPES = {
    "inversion": "ffhq_encode",
    "toonify": "ffhq_encode",
    "sketch": "celebs_sketch_to_face",
    "labels": "celebs_seg_to_face",
    "super-resolution": "celebs_super_resolution",
    "frontal": "ffhq_frontalize",
}
"""Task -> pSp's name for it, by which programs know what a checkpoint does."""
SHOWN = ("codes", "l2", "perceptual", "identity")


def run(options: PspOptions, console: Console) -> int:
    """Train until ``kimg``, ``seconds`` or an interrupt; the state is saved in each case."""
    return launch(_train, settle_weights(options), console)


def _train(options: PspOptions, console: Console, runtime: Runtime) -> int:
    from limner.training.cores import EncoderTraining
    from limner.training.psp.lessons import PspLessons

    psp, models = _build(options, runtime)
    # Not at the first figures: photos without faces must not come to light after hours.
    exam = _exam(psp, models, runtime) if runtime.is_main else None
    training = EncoderTraining(psp, PspLessons(psp), examine=exam and exam.measure, export=_export)
    training.setup()
    if not runtime.is_main:
        training.fit()
        return 0
    for note in psp.notes.values():
        console.print(note)
    weights = sum(p.numel() for p in psp.parameters())
    found = psp.source.scenes or psp.source.pictures or ()
    console.print(
        f"{options.architecture}, {options.task}: {len(found)} pictures of {psp.encoder.in_size} px, generator "
        f"{psp.base['name']} at {psp.generator.resolution} px{' (trained too)' * options.train_decoder}, {weights:,} weights, "
        f"on {runtime}; " + (f"resuming at {psp.kimg:.1f} kimg" if psp.step else "starting anew")
    )
    tell_places(psp.source.counts, console)

    def shown(record: dict[str, Any]) -> list[str]:
        return [f"{name} {record[name]:.3g}" for name in SHOWN if name in record]

    finished = fit(training, console, f"train encoder ({options.architecture}, images)", shown)
    return finish(training, console, finished, tell_nearness, psp=training.out / "model.pt")


def _build(options: PspOptions, runtime: Runtime) -> tuple[PspRun, Models]:
    """Load and make everything; return the run with what has to be told, and what distances are measured with."""
    import torch

    from limner import checkpoints, zoo
    from limner.nn import deltas
    from limner.nn.encoders import Encoder
    from limner.nn.stylegan2 import Generator
    from limner.training.psp.lessons import build_run, describe_encoder
    from limner.training.psp.sources import Source, find_task

    generator = checkpoints.load(zoo.resolve(options.base)).generator
    if not isinstance(generator, Generator):
        raise CheckpointError(f"{options.base} holds no StyleGAN2 generator")
    base = {"name": Path(options.base).stem, "digest": deltas.digest(generator)}
    layout: Any = {"memory_format": torch.channels_last}  # torch's stubs do not know it
    generator.to(runtime.device, **layout).eval().requires_grad_(False)
    models, notes = _load_eyes(options, generator)
    torch.manual_seed(options.seed)
    encoder = Encoder(**describe_encoder(options, generator, find_task(options).in_channels))
    fresh = not (Path(options.out) / "state.pt").exists()
    if fresh and not options.init:
        notes |= _fill_body(encoder, options)
    source = Source(options, encoder.in_size)
    perceptual, identity = models.make_distance(), models.make_identity()
    share = 0.5 if models.arcface is not None else 1.0  # of unit vectors, half the square is 1 - cosine
    psp = build_run(
        options,
        runtime,
        generator=generator,
        source=source,
        encoder=encoder,
        base=base,
        perceptual=perceptual,
        identity=lambda a, b: share * identity(a, b),
        init=_init(options) if fresh and options.init else None,
    )
    psp.notes = notes
    return psp, models


def _load_eyes(options: PspOptions, generator: Generator) -> tuple[Models, dict[str, str]]:
    """Return trunk and identity embedder on the generator's device, and what stands in for what."""
    from limner import zoo
    from limner.checkpoints.psp import load_arcface
    from limner.pipeline import Models
    from limner.pipeline.models import load_perceptual, pick_trunk

    trunk, stands_for = pick_trunk("lpips-alex") if options.trunk == "auto" else (options.trunk, None)
    face = options.arcface or (zoo.path("arcface") if "arcface" in zoo.names() else None)
    arcface = None if face is None else load_arcface(face)
    notes = {}
    if stands_for is not None:
        notes["trunk"] = (
            f"perceptual loss: {stands_for} is not installed, {trunk} stands in for it, map by map"
        )
    if arcface is None and options.identity:
        notes["identity"] = "identity loss: ArcFace is not installed, the bundled embedder stands in for it"
    models = Models(
        generator=generator,
        trunk=load_perceptual(trunk),
        trunk_name=trunk,
        stands_for=stands_for,
        arcface=arcface,
        base=options.base,
    )
    for network in (models.trunk, arcface):
        if network is not None:
            network.to(models.device).eval().requires_grad_(False)
    return models, notes


def _fill_body(encoder: Encoder, options: PspOptions) -> dict[str, str]:
    """Fill the body with published weights that are named or installed; return what has to be told."""
    from limner import zoo
    from limner.checkpoints.irse import fill_body

    file: Any = options.body_weights
    if not file and options.body == "ir-se50" and options.width == 64 and "arcface" in zoo.names():
        file = zoo.path("arcface")
    if not file:
        return {
            "body": "body: from random numbers (--body-weights FILE starts it from ArcFace or torchvision's ResNet-34)"
        }
    whole = fill_body(encoder.body, file)
    return {
        "body": f"body: from {file}"
        + ("" if whole else ", with a stem of its own, which sees other channels")
    }


def _init(options: PspOptions) -> Encoder:
    from limner import checkpoints, zoo
    from limner.nn.encoders import Encoder

    found = checkpoints.load(zoo.resolve(options.init)).encoder
    if not isinstance(found, Encoder):
        raise CheckpointError(f"init {options.init} holds no encoder of pSp, e4e or ReStyle")
    return found


def _exam(run: PspRun, models: Models, runtime: Runtime) -> PspExam:
    """Return what measures the run: held-out pictures, and the faces of photos where there are some.

    Raises:
        OptionError: ``photos`` has no photos.
        FaceNotFoundError: a photo without a face.
    """
    import torch

    from limner.app.commands.train_encoder import read_faces
    from limner.training.psp.figures import PspExam
    from limner.training.psp.sources import Sample

    options = run.options
    sample, names = run.source.held_out(run.generator)
    renders = len(names)
    images, more = read_faces(options.photos, run.encoder.in_size)
    if options.photos and not images:
        raise OptionError(f"photos is {options.photos}, but there are no photos in it (jpg, png or webp)")
    if images:
        truth = torch.cat([sample.truth, *(image.to(runtime.device) for image in images)])
        sample, names = Sample(truth, truth), [*names, *more]
    return PspExam(
        run.painter,
        sample,
        names,
        task=run.source.task,
        steps=run.encoder.iterations,
        renders=renders,
        perceptual=models.make_distance(),
        identity=models.identity_distance,
    )


def _export(run: PspRun, path: Path, figures: dict[str, Any]) -> None:
    """Write encoder and generator as our own file and, beside it, as pSp's programs keep them."""
    from limner import checkpoints
    from limner.checkpoints import psp
    from limner.translation.networks import TASK_KEY

    options = run.options
    provenance = describe_run("train encoder", run, figures, counts=run.source.counts)
    about = {"provenance": provenance | {"base": run.base, "notes": list(run.notes.values())}}
    opts: dict[str, Any] = {
        "dataset_type": DATASET_TYPES.get(options.task, f"limner_{options.task}"),
        "label_nc": run.source.task.in_channels if options.task in ("sketch", "labels") else 0,
        "batch_size": options.batch_size,
        "learning_rate": options.lr,
        "optim_name": options.optimizer,
        "train_decoder": options.train_decoder,
        "lpips_lambda": options.perceptual,
        "l2_lambda": options.l2,
        "id_lambda": options.identity,
        "w_norm_lambda": options.w_norm,
    }
    if options.task not in DATASET_TYPES:
        opts[TASK_KEY] = options.task
    if options.task == "super-resolution":
        opts["resize_factors"] = ",".join(map(str, options.factors))
    found = checkpoints.Checkpoint(
        encoder=run.average, generator=run.painter, metadata={**about, "opts": opts}
    )
    checkpoints.save(found, path)
    psp.save(found, path.with_suffix(".pt"))
