"""A run on disk and its loop: resume or start, take steps, keep averaged weights, log, figures, sheets and state.

All state is one dict in ``OUT/state.pt``; a run that was killed continues from it exactly as if it had not been.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from limner.errors import KeyMismatchError
from limner.options import to_mapping
from limner.training.run import Clock, Journal, Runtime, StepRandom, load_state, save_state
from limner.training.shared_options import LoopOptions

OnStep = Callable[[dict[str, Any]], None]
LOG_STEPS = 20


@dataclass
class Progress:
    """How far a run is; what it trains stands in the classes derived from this."""

    step: int = field(default=0, kw_only=True)
    images: int = field(default=0, kw_only=True)

    @property
    def kimg(self) -> float:
        """Thousands of images seen."""
        return self.images / 1000


class Trainable(Protocol):
    """What a `Training` trains."""

    options: Any
    runtime: Runtime
    step: int
    images: int

    @property
    def kimg(self) -> float:
        """Thousands of images seen."""
        ...


Run = TypeVar("Run", bound=Trainable)


def cosine_share(options: LoopOptions, images: int, lowest: float) -> float:
    """Return the share of a learning rate that is left: 1, then down to ``lowest`` over the last ``decay_kimg``."""
    if not options.decay_kimg:
        return 1.0
    progress = min(max(1 - (options.kimg - images / 1000) / options.decay_kimg, 0.0), 1.0)
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * progress))


class Training(ABC, Generic[Run]):
    """A run on disk: ``state.pt``, ``log.jsonl``, ``options.json``, ``sheets/``, ``model.safetensors``.

    Args:
        run: what is trained, and how far it is.
        export: writes the averaged networks as a model file, (run, path, figures).
    """

    def __init__(self, run: Run, *, export: Callable[[Run, Path, dict[str, Any]], None] | None = None):
        self.run, self.export = run, export
        self.out = Path(run.options.out)
        self.journal = Journal(self.out / "log.jsonl")
        self.seconds = 0.0  # of training, measuring included, up to the last step

    @abstractmethod
    def step(self, random: StepRandom) -> dict[str, Any]:
        """Learn from one batch; return the figures for the log."""

    @abstractmethod
    def move_average(self) -> None:
        """Move the averaged networks after a step."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Return what decides how the run goes on, besides how far it is."""

    @abstractmethod
    def load_parts(self, state: dict[str, Any]) -> None:
        """Take back what `parts` returned; any error of torch or of a dict says that it does not fit."""

    @abstractmethod
    def look(self, passed: Callable[[float], bool]) -> dict[str, float] | None:
        """Measure and draw what is due after a step; return the figures, None if nothing was measured.

        Args:
            passed: whether the step has crossed a multiple of so many thousand images; False for 0.
        """

    @abstractmethod
    def look_last(self) -> dict[str, float]:
        """Measure and draw the averaged networks as they will be written; return the figures."""

    def spent(self) -> dict[str, float]:
        """Return what the run has cost so far, for the log and the model file."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return everything that decides how the run goes on."""
        return {"step": self.run.step, "images": self.run.images, **self.parts()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned.

        Raises:
            KeyMismatchError: the state belongs to a run with other options.
        """
        try:
            self.run.step, self.run.images = state["step"], state["images"]
            self.load_parts(state)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise KeyMismatchError(
                f"{self.out}/state.pt belongs to a run with other options ({str(error).splitlines()[0]}); "
                f"give another out folder or the options in {self.out}/options.json"
            ) from error

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
        start, earlier = run.images, self.seconds
        with clock.signals():
            while run.kimg < options.kimg and not run.runtime.agree(clock.should_stop()):
                random = StepRandom(options.seed, run.step + 1, run.runtime.rank, run.runtime.device)
                record = self.step(random)
                before = run.images
                run.step += 1
                run.images += options.batch_size
                self.move_average()
                record |= {"kimg": run.kimg, "img_per_s": (run.images - start) / max(clock.seconds, 1e-9)}
                self.seconds = earlier + clock.seconds
                if run.runtime.is_main:
                    self._after_step(record, before, clock)
                    if on_step:
                        on_step(record)
            run.runtime.barrier()
            if run.runtime.is_main:
                self._save()
        return run.kimg >= options.kimg

    def _after_step(self, record: dict[str, Any], before: int, clock: Clock) -> None:
        """Measure, log and save, whichever is due; in the main process alone."""
        run = self.run

        def passed(kimg: float) -> bool:
            return kimg > 0 and int(run.kimg / kimg) > int(before / 1000 / kimg)

        figures = self.look(passed)
        record |= {**(figures or {}), **self.spent()}
        if run.step % LOG_STEPS == 0 or figures is not None:
            self.journal.write(record)
        if clock.should_save():
            self._save()

    def _save(self) -> None:
        save_state(self.out / "state.pt", self.state())

    def validate(self) -> dict[str, float]:
        """Measure the averaged networks, write the last sheet and the model; return the figures."""
        run = self.run
        if not run.runtime.is_main:
            return {}
        figures = self.look_last()
        if figures:
            self.journal.write({"kimg": run.kimg, **self.spent(), **figures})
        figures = {**figures, **self.spent()}
        if self.export:
            self.export(run, self.out / "model.safetensors", figures)
        return figures
