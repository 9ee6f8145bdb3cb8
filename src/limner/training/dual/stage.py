"""A stage of a long command: what it does in a step, and the loop that saves, resumes, logs and shows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from limner import media
from limner.errors import KeyMismatchError
from limner.training.run import Clock, Journal, Runtime, StepRandom, load_state, save_state

OnStep = Callable[["Stage", dict[str, Any]], None]
LOG_STEPS = 10
SEED_STRIDE = 7919
"""Every stage draws from a seed of its own."""


class Stage:
    """One stage; its steps are numbered from 1 and know nothing of what was before but the state.

    Attributes:
        name: of its folder.
        number: its place among the stages, from 1.
        total: steps.
        images_per_step: for the log.
        key: digest of all that decides how it goes.
        done: steps so far.
    """

    name = ""
    number = 0
    images_per_step = 1

    def __init__(self, *, total: int, key: str):
        self.total, self.key, self.done = total, key, 0

    @property
    def kimg(self) -> float:
        """Thousands of images so far."""
        return self.done * self.images_per_step / 1000

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.done >= self.total

    def step(self, step: int, random: StepRandom) -> dict[str, float]:
        """Take one step; return figures for the log."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return what decides how the stage goes on, and its result."""
        raise NotImplementedError

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        raise NotImplementedError

    def preview(self) -> np.ndarray | None:
        """Return a sheet of what has been reached, uint8 (H, W, 3); None while there is nothing to show."""
        raise NotImplementedError


def folder_of(out: Path, number: int, name: str) -> Path:
    """Return a stage's folder."""
    return out / f"{number}-{name}"


def resume(stage: Stage, out: Path, runtime: Runtime) -> bool:
    """Take back what a stage has saved; return whether there was anything.

    Raises:
        KeyMismatchError: it was made with other options, pictures or networks, or by an earlier stage that has changed.
    """
    folder = folder_of(out, stage.number, stage.name)
    if not (folder / "state.pt").exists():
        return False
    state = load_state(folder / "state.pt", runtime.device)
    later = f"remove {folder} and the folders after it to make them anew, or give another out folder"
    if state.get("key") != stage.key:
        raise KeyMismatchError(
            f"{folder} was made with other options, pictures or networks, or before an earlier stage changed; {later}"
        )
    try:
        stage.load_state(state["stage"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise KeyMismatchError(
            f"{folder}/state.pt does not fit ({str(error).splitlines()[0]}); {later}"
        ) from error
    stage.done = state["step"]
    return True


def play(
    stage: Stage,
    out: Path,
    runtime: Runtime,
    *,
    clock: Clock,
    seed: int,
    sheet_s: float = 0.0,
    on_step: OnStep | None = None,
) -> bool:
    """Go on with a stage to its end, or until the clock says stop; return whether the end was reached.

    In its folder: ``state.pt``, ``log.jsonl``, ``sheets/``.  Resumed, it goes on as if it had never stopped.

    Args:
        stage: as `resume` left it.
        out: folder of the command.
        runtime: device and arithmetic.
        clock: time limit and save interval of the whole command.
        seed: of the command.
        sheet_s: seconds between previews; 0 for only the last.
        on_step: called after every step.
    """
    folder = folder_of(out, stage.number, stage.name)
    (folder / "sheets").mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "log.jsonl")
    journal.cut(stage.kimg)
    shown = started = time.monotonic()
    first = stage.done
    while not stage.finished and not clock.should_stop():
        step = stage.done + 1
        random = StepRandom(seed + SEED_STRIDE * stage.number, step, runtime.rank, runtime.device)
        record: dict[str, Any] = stage.step(step, random)
        stage.done = step
        seconds = max(time.monotonic() - started, 1e-9)
        record |= {"kimg": stage.kimg, "img_per_s": (step - first) * stage.images_per_step / seconds}
        if step % LOG_STEPS == 0 or step == stage.total or step <= 3:
            journal.write(record)
        if on_step:
            on_step(stage, record)
        if clock.should_save():
            _save(stage, folder)
        if sheet_s and time.monotonic() - shown >= sheet_s and not stage.finished:
            write_preview(stage, folder)
            shown = time.monotonic()
    if stage.done > first or not (folder / "state.pt").exists():
        _save(stage, folder)
        write_preview(stage, folder)
    return stage.finished


def _save(stage: Stage, folder: Path) -> None:
    save_state(folder / "state.pt", {"key": stage.key, "step": stage.done, "stage": stage.state()})


def write_preview(stage: Stage, folder: Path) -> Path | None:
    """Write the stage's sheet; return its path."""
    sheet = stage.preview()
    if sheet is None:
        return None
    about = {"command": "train dual", "stage": stage.name, "step": stage.done}
    path = folder / "sheets" / f"{stage.done:06d}.png"
    return media.write(path, sheet, options=about, source_type="trainedAlgorithmicMedia")
