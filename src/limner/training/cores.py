"""Train an encoder, a translator or a small HyperInverter: what is saved, averaged and measured in the loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import nn

from limner.errors import KeyMismatchError
from limner.training.loop import Trainable, Training
from limner.training.run import StepRandom, update_average

RAMP = 0.1
"""The half-life of the average is at most this share of the images seen so far."""


class NetTrainable(Trainable, Protocol):
    """What a run holds: see `limner.training.lessons.NetRun`."""

    critic: Any

    @property
    def base(self) -> dict[str, str]:
        """Name and digest of the generator."""
        ...

    def trained(self) -> dict[str, nn.Module]:
        """Return what is trained by name."""
        ...

    def averages(self) -> dict[str, nn.Module]:
        """Return the averages by name, in the same order."""
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


Run = TypeVar("Run", bound=NetTrainable)


class EncoderTraining(Training[Run]):
    """The training of networks for a generator, on disk.

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
        """Move the averaged networks."""
        run, options = self.run, self.run.options
        for average, network in zip(run.averages().values(), run.trained().values(), strict=True):
            update_average(
                average,
                network,
                images=run.images,
                batch=options.batch_size,
                half_kimg=options.ema_kimg,
                ramp=RAMP,
            )

    def parts(self) -> dict[str, Any]:
        """Return the networks, the critic, the optimisers and which generator all belongs to."""
        run = self.run
        networks = run.trained() | run.averages()
        return {
            "base": run.base,
            **{name: network.state_dict() for name, network in networks.items()},
            "critic": run.critic and run.critic.state_dict(),
            "lessons": self.lessons.state(),
        }

    def load_parts(self, state: dict[str, Any]) -> None:
        """Take back what `parts` returned.

        Raises:
            KeyMismatchError: the state belongs to another generator.
        """
        run = self.run
        if state["base"].get("digest") != run.base.get("digest"):
            raise KeyMismatchError(
                f"{self.out}/state.pt belongs to another generator than {run.base.get('name', 'this one')}; "
                "give another out folder"
            )
        for name, network in (run.trained() | run.averages()).items():
            network.load_state_dict(state[name])
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
