"""``limner train translator``: train the networks of ``limner translate``, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.app.console import Console
from limner.app.training import describe_run, finish, fit, launch, tell_places
from limner.errors import CheckpointError, OptionError
from limner.training.translator.options import TranslatorOptions as Options

if TYPE_CHECKING:
    from limner.nn.compact import CompactCore, CompactEncoder
    from limner.nn.features import Lite0
    from limner.nn.stylegan2 import Generator
    from limner.nn.translator import TranslatorCore
    from limner.training.cores import EncoderTraining
    from limner.training.run import Runtime
    from limner.training.translator.figures import TranslatorExam
    from limner.training.translator.lessons import Lesson, TranslatorRun
    from limner.translation import Task


def run(options: Options, console: Console) -> int:
    """Train until ``kimg``, ``seconds`` or an interrupt; the state is saved in each case."""
    return launch(_train, options, console)


def _train(options: Options, console: Console, runtime: Runtime) -> int:
    import torch

    from limner import checkpoints, zoo
    from limner.checkpoints.compact import load_encoder
    from limner.nn import deltas
    from limner.nn.stylegan2 import Generator
    from limner.training.cores import EncoderTraining
    from limner.training.translator.data import find_tasks
    from limner.training.translator.lessons import TranslatorLessons, build_run

    tasks = find_tasks(options.task)
    check_held_out(options, tasks)
    generator = checkpoints.load(zoo.resolve(options.base)).generator
    if not isinstance(generator, Generator):
        raise CheckpointError(f"{options.base} holds no StyleGAN2 generator")
    base = {"name": Path(options.base).stem, "digest": deltas.digest(generator)}
    layout: Any = {"memory_format": torch.channels_last}  # torch's stubs do not know it
    generator.to(runtime.device, **layout).eval().requires_grad_(False)
    trunk = zoo.load("lite0").to(runtime.device, **layout)
    embedder = zoo.load("identity").to(runtime.device, **layout) if options.identity else None
    teacher = load_encoder(zoo.resolve(options.teacher), trunk=trunk)
    teacher.core.to(runtime.device)
    teacher.check_base(generator)
    init = None
    if options.init and not (Path(options.out) / "state.pt").exists():
        init = _init(options, trunk, generator, runtime)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    lesson = _find_lesson(options, tasks, teacher, generator, runtime, console)
    translator = build_run(
        options,
        runtime,
        generator=generator,
        trunk=trunk,
        base=base,
        lesson=lesson,
        embedder=embedder,
        init=init,
    )
    exams: list[TranslatorExam] = []

    def examine(run: TranslatorRun, sheet: Path) -> dict[str, float]:
        if not options.validate:
            return {}
        if not exams:
            exams.append(_exam(options, tasks, teacher, generator))
        return exams[0].measure(run.average, sheet)

    training = EncoderTraining(translator, TranslatorLessons(translator), examine=examine, export=_export)
    training.setup()
    if not runtime.is_main:
        training.fit()
        return 0
    weights = sum(p.numel() for p in translator.encoder.core.parameters())
    console.print(
        f"{', '.join(tasks)}; {0 if lesson.photos is None else len(lesson.photos)} photos, "
        f"{0 if lesson.scenes is None else len(lesson.scenes)} scenes, generator {base['name']}, {weights:,} weights on "
        f"a frozen trunk, on {runtime}; "
        + (f"resuming at {translator.kimg:.1f} kimg" if translator.step else "starting anew")
    )
    tell_places({} if lesson.scenes is None else lesson.scenes.counts, console)

    def tell(figures: dict[str, Any]) -> list[str]:
        return [
            f"{name}: nearest to its own face {figures[f'{name}_nearest']:.0%}, distance {figures[f'{name}_perceptual']:.3f}"
            for name in (tasks if figures else ())
        ]

    return finish(training, console, _fit(training, console), tell)


def _init(
    options: Options, trunk: Lite0, generator: Generator, runtime: Runtime
) -> CompactCore | TranslatorCore:
    """Return the weights that ``init`` names: an encoder's, which must belong to the generator, or a translator's."""
    from limner import zoo
    from limner.checkpoints.compact import load_encoder, read_base
    from limner.checkpoints.translator import load_translator

    path = zoo.resolve(options.init)
    if read_base(path) is None:
        return load_translator(path, trunk=trunk).core.to(runtime.device)
    encoder = load_encoder(path, trunk=trunk)
    encoder.check_base(generator)
    return encoder.core.to(runtime.device)


def _find_lesson(
    options: Options,
    tasks: dict[str, Task],
    teacher: CompactEncoder,
    generator: Generator,
    runtime: Runtime,
    console: Console,
) -> Lesson:
    """Read photos and scenes, and let the teacher find the codes of the true faces."""
    from limner.training.data import PictureSet
    from limner.training.translator.data import Scenes, find_codes
    from limner.training.translator.lessons import Lesson

    lesson = Lesson()
    paired = {name: task for name, task in tasks.items() if not task.made}
    # (name, pictures, whether mirrored)
    wanted = []
    if options.data and len(paired) < len(tasks):
        lesson.photos = PictureSet(options.data, generator.resolution, select=options.select).pixels
        wanted.append(("photos", lesson.photos, False))
    if paired and options.pairs:
        scenes = lesson.scenes = Scenes(options.pairs, generator.resolution, paired, select=options.scenes)
        for kind in sorted({task.truth for task in paired.values()}):
            wanted.append((kind, scenes.pixels[kind], False))
            if options.mirror:
                wanted.append((kind, scenes.pixels[kind], True))
    total, before, found = sum(len(pixels) for _, pixels, _ in wanted), 0, {}
    with console.progress(total, "codes of the true faces") as progress:
        for what, pixels, mirror in wanted:
            start = before

            def show(done: int, _: int, name: str, start: int = start) -> None:
                progress.set(start + done, name)

            found[f"{what}-mirrored" if mirror else what] = find_codes(
                pixels,
                teacher=teacher,
                generator=generator,
                steps=options.teacher_steps,
                mirror=mirror,
                keep=Path(options.out),
                what=what,
                device=runtime.device,
                on_pictures=show,
            )
            before += len(pixels)
    lesson.photo_codes, lesson.scene_codes = found.get("photos"), found
    return lesson


def check_held_out(options: Options, tasks: Mapping[str, Task]) -> None:
    """Raise `OptionError` where scenes that are examined are learned from too, in whichever folder."""
    from limner.training.data import split_sources
    from limner.training.translator.data import list_scenes

    if not options.validate or not options.pairs:
        return
    roots = split_sources(options.pairs, what="pairs")

    def find(select: str, roots: list[Path]) -> set[str]:
        return {Path(name).stem for root in roots for name in list_scenes(root, ["photo"], select)["photo"]}

    learned = {}
    if any(not task.made for task in tasks.values()):
        learned["scenes"] = (options.scenes, roots)
    if options.data:
        photos = {place.resolve() for place in split_sources(options.data)}
        learned["select"] = (options.select, [root for root in roots if (root / "photo").resolve() in photos])
    held_out = find(options.validate, roots)
    for what, (chosen, places) in learned.items():
        both = sorted(held_out & find(chosen, places))
        if both:
            raise OptionError(
                f"validate {options.validate} and {what} {chosen or '(all)'} share {len(both)} scenes, such as {both[0]}; "
                "scenes that figures are made of must not be learned from"
            )


def _exam(
    options: Options, tasks: dict[str, Task], teacher: CompactEncoder, generator: Generator
) -> TranslatorExam:
    from limner.training.translator.data import Scenes
    from limner.training.translator.figures import TranslatorExam

    if not options.pairs:
        raise OptionError("pairs must be given to validate; or leave validate empty")
    scenes = Scenes(options.pairs, generator.resolution, tasks, select=options.validate, every=False)
    return TranslatorExam(
        generator,
        teacher.trunk,
        scenes,
        tasks,
        count=options.figure_scenes,
        teacher=teacher,
        teacher_steps=options.teacher_steps,
    )


def _fit(training: EncoderTraining[TranslatorRun], console: Console) -> bool:
    def shown(record: dict[str, Any]) -> list[str]:
        return [f"{name} {record[name]:.3g}" for name in ("codes", "l2", "perceptual") if name in record]

    return fit(training, console, "train translator (pictures)", shown)


def _export(run: TranslatorRun, path: Path, figures: dict[str, Any]) -> None:
    from limner.checkpoints.translator import save_translator

    scenes = run.lesson.scenes
    provenance = describe_run(
        "train translator", run, figures, counts={} if scenes is None else scenes.counts
    )
    save_translator(run.average, path, provenance=provenance, packed=False)
