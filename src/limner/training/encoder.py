"""Train a compact encoder or a translator: resume or start a run, take its lessons, keep averaged weights, sheets, figures and log.

All state is one dict in ``OUT/state.pt``; a run that was killed continues from it exactly as if it had not been.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from limner.errors import KeyMismatchError
from limner.options import to_mapping
from limner.training.run import Clock, Journal, Runtime, StepRandom, load_state, save_state, update_average

OnStep = Callable[[dict[str, Any]], None]
LOG_STEPS = 20


class Trainable(Protocol):
    """What a run holds: an `EncoderRun` or a `TranslatorRun`."""

    options: Any
    runtime: Runtime
    encoder: Any
    average: Any
    critic: Any
    step: int
    images: int

    @property
    def kimg(self) -> float:
        """Thousands of images seen."""
        ...


class Lessons(Protocol):
    """One step of training, and what its optimisers remember."""

    def step(self, random: StepRandom) -> dict[str, float]:
        """Learn from one batch; return the figures for the log."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what the next steps depend on."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        ...


Run = TypeVar("Run", bound=Trainable)


class EncoderTraining(Generic[Run]):
    """A run on disk: ``state.pt``, ``log.jsonl``, ``options.json``, ``sheets/``, ``model.safetensors``.

    Args:
        run: its networks.
        lessons: its steps.
        examine: measures the averaged encoder and writes a sheet, (run, path of the sheet) -> figures.
        export: writes the averaged encoder, (run, path, figures).
    """

    def __init__(
        self,
        run: Run,
        lessons: Lessons,
        *,
        examine: Callable[[Run, Path], dict[str, float]] | None = None,
        export: Callable[[Run, Path, dict[str, Any]], None] | None = None,
    ):
        self.run, self.lessons, self.examine, self.export = run, lessons, examine, export
        self.out = Path(run.options.out)
        self.journal = Journal(self.out / "log.jsonl")

    def state(self) -> dict[str, Any]:
        """Return everything that decides how the run goes on."""
        run = self.run
        return {
            "step": run.step,
            "images": run.images,
            "base": run.encoder.base,
            "encoder": run.encoder.core.state_dict(),
            "average": run.average.core.state_dict(),
            "critic": run.critic and run.critic.state_dict(),
            "lessons": self.lessons.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned.

        Raises:
            KeyMismatchError: the state belongs to a run with other options or another generator.
        """
        run = self.run
        if state["base"].get("digest") != run.encoder.base.get("digest"):
            raise KeyMismatchError(
                f"{self.out}/state.pt belongs to another generator than {run.encoder.base.get('name', 'this one')}; "
                "give another out folder"
            )
        try:
            run.encoder.core.load_state_dict(state["encoder"])
            run.average.core.load_state_dict(state["average"])
            if run.critic is not None:
                run.critic.load_state_dict(state["critic"])
            self.lessons.load_state(state["lessons"])
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise KeyMismatchError(
                f"{self.out}/state.pt belongs to a run with other options ({str(error).splitlines()[0]}); "
                f"give another out folder or the options in {self.out}/options.json"
            ) from error
        run.step, run.images = state["step"], state["images"]

    def setup(self) -> None:
        """Make the folder, resume what lies there."""
        run = self.run
        (self.out / "sheets").mkdir(parents=True, exist_ok=True)
        if (self.out / "state.pt").exists():
            self.load_state(load_state(self.out / "state.pt", run.runtime.device))
        if run.runtime.is_main:
            self.journal.cut(run.kimg)
            (self.out / "options.json").write_text(json.dumps(to_mapping(run.options), indent=1) + "\n")

    def fit(self, on_step: OnStep | None = None) -> bool:
        """Train to the end, or until the time limit or a signal; return whether the end was reached."""
        run, options = self.run, self.run.options
        clock = Clock(limit_s=options.seconds, save_s=options.save_seconds)
        start = run.images
        with clock.signals():
            while run.kimg < options.kimg and not run.runtime.agree(clock.should_stop()):
                random = StepRandom(options.seed, run.step + 1, run.runtime.rank, run.runtime.device)
                record: dict[str, Any] = self.lessons.step(random)
                before = run.images
                run.step += 1
                run.images += options.batch_size
                update_average(
                    run.average.core,
                    run.encoder.core,
                    images=run.images,
                    batch=options.batch_size,
                    half_kimg=options.ema_kimg,
                    ramp=0.1,
                )
                record |= {"kimg": run.kimg, "img_per_s": (run.images - start) / max(clock.seconds, 1e-9)}
                if run.runtime.is_main:
                    self._after_step(record, before, clock)
                    if on_step:
                        on_step(record)
            run.runtime.barrier()
            if run.runtime.is_main:
                save_state(self.out / "state.pt", self.state())
        return run.kimg >= options.kimg

    def _after_step(self, record: dict[str, Any], before: int, clock: Clock) -> None:
        run, every = self.run, self.run.options.figure_kimg
        measured = int(run.kimg / every) > int(before / 1000 / every)
        if measured:
            record |= self._examine()
        if run.step % LOG_STEPS == 0 or measured:
            self.journal.write(record)
        if clock.should_save():
            save_state(self.out / "state.pt", self.state())

    def _examine(self) -> dict[str, float]:
        if self.examine is None:
            return {}
        return self.examine(self.run, self.out / "sheets" / f"{int(self.run.kimg * 10):06d}.png")

    def validate(self) -> dict[str, float]:
        """Measure the averaged encoder, write the last sheet and the model; return the figures."""
        if not self.run.runtime.is_main:
            return {}
        figures = self._examine()
        if figures:
            self.journal.write({"kimg": self.run.kimg, **figures})
        if self.export:
            self.export(self.run, self.out / "model.safetensors", figures)
        return figures
