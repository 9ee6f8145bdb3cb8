"""Train a compact encoder, a translator or a small HyperInverter: what is saved, averaged and measured in the loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from limner.errors import KeyMismatchError
from limner.training.loop import Trainable, Training
from limner.training.run import StepRandom, update_average

RAMP = 0.1
"""The half-life of the average is at most this share of the images seen so far."""


class CoreTrainable(Trainable, Protocol):
    """What a run holds: an `EncoderRun`, a `TranslatorRun` or a `HyperRun`."""

    encoder: Any
    average: Any
    critic: Any


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


Run = TypeVar("Run", bound=CoreTrainable)


class EncoderTraining(Training[Run]):
    """The training of a core on a frozen trunk, on disk.

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
        super().__init__(run, export=export)
        self.lessons, self.examine = lessons, examine

    def step(self, random: StepRandom) -> dict[str, Any]:
        """Take one lesson."""
        return self.lessons.step(random)

    def move_average(self) -> None:
        """Move the averaged core."""
        run, options = self.run, self.run.options
        update_average(
            run.average.core,
            run.encoder.core,
            images=run.images,
            batch=options.batch_size,
            half_kimg=options.ema_kimg,
            ramp=RAMP,
        )

    def parts(self) -> dict[str, Any]:
        """Return the cores, the critic, the optimisers and which generator all belongs to."""
        run = self.run
        return {
            "base": run.encoder.base,
            "encoder": run.encoder.core.state_dict(),
            "average": run.average.core.state_dict(),
            "critic": run.critic and run.critic.state_dict(),
            "lessons": self.lessons.state(),
        }

    def load_parts(self, state: dict[str, Any]) -> None:
        """Take back what `parts` returned.

        Raises:
            KeyMismatchError: the state belongs to another generator.
        """
        run = self.run
        if state["base"].get("digest") != run.encoder.base.get("digest"):
            raise KeyMismatchError(
                f"{self.out}/state.pt belongs to another generator than {run.encoder.base.get('name', 'this one')}; "
                "give another out folder"
            )
        run.encoder.core.load_state_dict(state["encoder"])
        run.average.core.load_state_dict(state["average"])
        if run.critic is not None:
            run.critic.load_state_dict(state["critic"])
        self.lessons.load_state(state["lessons"])

    def look(self, passed: Callable[[float], bool]) -> dict[str, float] | None:
        """Examine the averaged encoder every ``figure_kimg``."""
        return self.look_last() if passed(self.run.options.figure_kimg) else None

    def look_last(self) -> dict[str, float]:
        """Examine the averaged encoder, which draws a sheet too."""
        if self.examine is None:
            return {}
        return self.examine(self.run, self.out / "sheets" / f"{int(self.run.kimg * 10):06d}.png")
