"""Make bundled models: run the jobs of ``recipes/bundle.yaml`` as processes, resumable, and put results in place.

Every job has a folder: ``job.json`` (how far it is), ``log.txt``, ``old/`` (the files that were there before), ``new/``
(what it made), and what its commands keep.  Files reach the package only when all steps of their job have ended well.
Data sets have a folder elsewhere, which several jobs learn from and which outlives them; a mark in it says that it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from limner.errors import LimnerError, OptionError, ZooError
from limner.files import replacing
from limner.training.bundle import (
    DATA_MARK,
    Index,
    Job,
    build_index,
    data_sets,
    describe,
    generator_digest,
    is_whole,
    maker,
    parent_digest,
    recipe_digest,
    split_words,
    write_index,
)

MADE = "made"
STATE, LOG, LOCK = "job.json", "log.txt", "lock"
POLL_S, SAVE_S, GRACE_S = 0.1, 2.0, 120.0
LEAST_S = 1.0  # a step whose time is used up still gets to write its result


@dataclasses.dataclass
class Progress:
    """How far a job is; kept in its folder.

    Args:
        key: of recipe and parent; another key starts the job anew.
        done: steps that ended well.
        spent: seconds used by every step so far, killed tries included.
        status: waiting, running, made, failed or skipped.
        note: the reason of a failure.
    """

    key: str
    done: int = 0
    spent: list[float] = dataclasses.field(default_factory=list)
    status: str = "waiting"
    note: str = ""

    def save(self, folder: Path) -> None:
        """Write it into the job's folder."""
        with replacing(folder / STATE) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self)) + "\n", encoding="utf-8")


@dataclasses.dataclass
class Running:
    """A step that runs now."""

    process: subprocess.Popen[bytes]
    progress: Progress
    before: float
    start: float
    saved: float


OnEvent = Callable[[str, Progress, str], None]


class Chain:
    """Runs jobs.

    Args:
        jobs: all of them, see `limner.training.bundle.read_jobs`.
        root: folder in which commands run and that recipes' paths are relative to.
        bundled: folder of the bundled files.
        runs: folder for the jobs' folders.
        data: folder for data sets; ``runs/data`` where none is given.
        slots: jobs at a time.
        threads: of each.
        seconds_scale: factor of the time limits of steps, and of the images that fit into them.
        warm: start from the files that are there, where a step knows how.
        on_event: called with (job, its progress, a line) when a step begins, ends, fails, and now and then between.
        every_s: seconds between the calls in between.
        digest_of: see `limner.training.bundle.build_index`.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        *,
        root: Path,
        bundled: Path,
        runs: Path,
        data: Path | None = None,
        slots: int = 1,
        threads: int = 1,
        seconds_scale: float = 1.0,
        warm: bool = True,
        on_event: OnEvent | None = None,
        every_s: float = 30.0,
        digest_of: Callable[[Path], str] = generator_digest,
    ):
        self.jobs, self.root, self.bundled, self.runs = jobs, root, bundled, runs
        self.data = data or runs / "data"
        if self.data.resolve() == runs.resolve():  # jobs' folders are emptied when a job begins anew
            raise OptionError(f"data and runs are both {runs}, expected two folders")
        self.slots, self.threads, self.scale, self.warm = slots, threads, seconds_scale, warm
        self.on_event: OnEvent = on_event or (lambda name, progress, line: None)
        self.every_s, self.digest_of = every_s, digest_of
        self._running: dict[str, Running] = {}
        self._lock = -1

    def run(self, names: list[str], *, anew: bool = False, remake: bool = False) -> dict[str, Progress]:
        """Run jobs, parents first, and return how each ended; a failure skips what derives from it, nothing else.

        Args:
            names: jobs to run, such as the keys of `limner.training.bundle.find_stale`.
            anew: forget what earlier tries of these jobs have done.
            remake: begin jobs that are finished once more; those that are not go on.

        Raises:
            ZooError: another chain works in the same folder.
        """
        results: dict[str, Progress] = {}
        waiting = sorted(
            (name for name in self.jobs if name in names), key=self._time_until_end, reverse=True
        )
        with self._locked():
            for name in waiting:
                if anew or (remake and self._is_made(name)):
                    shutil.rmtree(self.folder(name), ignore_errors=True)
            try:
                while waiting or self._running:
                    for name in list(waiting):
                        if self._may_start(name, waiting, results):
                            waiting.remove(name)
                            self._begin(name, results)
                    if self._running:
                        time.sleep(POLL_S)
                    for name in list(self._running):
                        self._watch(name, results)
            finally:
                self._stop()
        return results

    def folder(self, name: str) -> Path:
        """Return a job's folder."""
        return self.runs / name

    def _is_made(self, name: str) -> bool:
        return f'"status": "{MADE}"' in _read(self.folder(name) / STATE)

    def _has(self, job: Job) -> bool:
        """Whether a data set is there."""
        return is_whole(job, self.root, self.data)

    def index(self) -> Index:
        """Return the index of the files that are there."""
        return build_index(self.bundled, self.jobs, self.root, digest_of=self.digest_of)

    def _before(self, job: Job) -> list[str]:
        """Return the jobs that make what a job is made from."""
        return [name for model in (job.parent, *job.needs) if (name := maker(self.jobs, model))]

    def _time_until_end(self, name: str) -> float:
        """Return the seconds of a job and of the longest line that waits for it: the longest line goes first."""
        own = sum(step.seconds for step in self.jobs[name].steps)
        after = [self._time_until_end(other) for other, job in self.jobs.items() if name in self._before(job)]
        return own + max(after, default=0.0)

    def _may_start(self, name: str, waiting: list[str], results: dict[str, Progress]) -> bool:
        before = self._before(self.jobs[name])
        if any(other in results and results[other].status != MADE for other in before):
            return True  # to be skipped
        free = not any(other in waiting or other in self._running for other in before)
        return len(self._running) < self.slots and free

    def _begin(self, name: str, results: dict[str, Progress]) -> None:
        """Open a job's folder and start its next step."""
        job = self.jobs[name]
        failed = [other for other in self._before(job) if other in results and results[other].status != MADE]
        if failed:
            results[name] = Progress("", status="skipped", note=f"{failed[0]} could not be made")
            self.on_event(name, results[name], results[name].note)
            return
        progress = Progress("")
        try:
            progress = self._open(job)
            self._next(job, progress, results)
        except (LimnerError, OSError) as error:
            self._fail(name, progress, str(error), results)

    def _open(self, job: Job) -> Progress:
        """Return what an earlier try has reached, or begin anew."""
        base = parent_digest(job, self.index()) if job.parent else ""
        if job.parent and not base:
            raise ZooError(f"{job.name} is made from {job.parent}, whose file is missing")
        key, folder = f"{recipe_digest(job, self.root)}-{base}", self.folder(job.name)
        if names := [one.name for one in data_sets(self.jobs, job) if self._has(one)]:
            key += f"-{','.join(names)}"  # training cannot go on from other pictures
        if folder.exists():
            try:
                progress = Progress(**json.loads((folder / STATE).read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                raise OptionError(
                    f"{folder} is no folder of this job ({STATE} is missing or broken); remove it"
                ) from None
            # A data set that was whole once and is to be made has been lost since.
            lost = job.is_data and progress.done == len(job.steps)
            if progress.key == key and not lost:
                return progress
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        for part in ("old", "new"):
            for file in job.files:
                (folder / part / file).parent.mkdir(parents=True, exist_ok=True)
        for file in job.files:
            if (self.bundled / file).is_file():
                shutil.copyfile(self.bundled / file, folder / "old" / file)
        progress = Progress(key, spent=[0.0] * len(job.steps))
        progress.save(folder)
        return progress

    def _next(self, job: Job, progress: Progress, results: dict[str, Progress]) -> None:
        """Start the next step, or put the files in place after the last one."""
        folder = self.folder(job.name)
        if progress.done == len(job.steps):
            self._install(job)
            progress.status, progress.note = MADE, ""
            progress.save(folder)
            results[job.name] = progress
            what = str(self.data / job.name) if job.is_data else ", ".join(job.files)
            self.on_event(job.name, progress, f"in place: {what}")
            return
        words = self._words(job, progress)
        progress.status, progress.note = "running", ""
        progress.save(folder)
        without = [one.name for one in data_sets(self.jobs, job) if not self._has(one)]
        note = f" (without {', '.join(without)}, which is not there)" if without else ""
        self.on_event(
            job.name, progress, f"step {progress.done + 1} of {len(job.steps)}{note}: {' '.join(words[1:])}"
        )
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        with (folder / LOG).open("ab") as log:
            log.write(f"\n== {time.strftime('%F %T')}{note} {' '.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                words,
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(self._lock,) if self._lock >= 0 else (),
            )
        now = time.monotonic()
        self._running[job.name] = Running(process, progress, progress.spent[progress.done], now, now)

    def _words(self, job: Job, progress: Progress) -> list[str]:
        """Return the command of the next step."""
        step, folder = job.steps[progress.done], self.folder(job.name).resolve()
        left = max(step.seconds * self.scale - progress.spent[progress.done], LEAST_S) if step.seconds else 0
        places = {
            "run": str(folder),
            "new": str(folder / "new"),
            "old": str(folder / "old"),
            "bundled": str(self.bundled.resolve()),
            "parent": job.parent,
            "seconds": f"{left:.1f}",
            "kimg": f"{step.kimg * self.scale:g}",
            "half_kimg": f"{step.kimg * self.scale / 2:g}",
        }
        sets = [one for one in self.jobs.values() if one.is_data]
        places |= {one.name: str((self.data / one.name).resolve()) for one in sets}
        words = split_words(step.run, places)
        if self.warm and all((folder / "old" / file).is_file() for file in job.files):
            words += split_words(step.warm, places)
        learned = data_sets(self.jobs, job)
        if learned and all(self._has(one) for one in learned):
            words += split_words(step.more, places)
        heads = {"python": [sys.executable], "limner": [sys.executable, "-m", "limner"]}
        if words[0] not in heads:
            raise OptionError(f"{job.name}: a step begins with {words[0]!r}, expected python or limner")
        return heads[words[0]] + words[1:]

    def _watch(self, name: str, results: dict[str, Progress]) -> None:
        """Look after a step that runs: time, progress, end."""
        running, job = self._running[name], self.jobs[name]
        progress, folder = running.progress, self.folder(name)
        status, now = running.process.poll(), time.monotonic()
        progress.spent[progress.done] = running.before + now - running.start
        if status is None:
            if now - running.saved >= min(SAVE_S, self.every_s):
                before, running.saved = running.saved - running.start, now
                progress.save(folder)
                if int((now - running.start) / self.every_s) > int(before / self.every_s):
                    self.on_event(name, progress, last_line(folder / LOG))
            return
        del self._running[name]
        if status:
            self._fail(name, progress, f"status {status}: {last_line(folder / LOG)}", results)
            return
        progress.done += 1
        try:
            self._next(job, progress, results)
        except (LimnerError, OSError) as error:
            self._fail(name, progress, str(error), results)

    def _fail(self, name: str, progress: Progress, why: str, results: dict[str, Progress]) -> None:
        progress.status, progress.note = "failed", why
        if progress.key:
            progress.save(self.folder(name))
        results[name] = progress
        self.on_event(name, progress, f"failed: {why}; log: {self.folder(name) / LOG}")

    def _install(self, job: Job) -> None:
        """Put a job's files into the package, cards first, and write the index.

        Raises:
            ZooError: a file or card is missing, has no metadata, or was made from another base.
        """
        if job.is_data:
            self._mark(job)
            return
        new = self.folder(job.name) / "new"
        base = parent_digest(job, self.index()) if job.parent else ""
        for file in job.files:
            card, own = (where / Path(file).with_suffix(".md") for where in (new, self.bundled))
            if not card.is_file() and own.is_file():
                shutil.copyfile(own, card)  # no step writes it: a person did
            if not (new / file).is_file():
                raise ZooError(f"the steps of {job.name} ended well but did not make {new / file}")
            found = describe(new / file, new)["base_digest"]
            if base and found != base:
                raise ZooError(
                    f"{new / file} was made from a base with digest {found[:12]}, but {job.parent} has {base[:12]}"
                )
        cards = [str(Path(file).with_suffix(".md")) for file in job.files]
        for file in [*cards, *job.files]:
            target = self.bundled / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target, sync=True) as temporary:
                shutil.copyfile(new / file, temporary)
        write_index(
            self.bundled,
            build_index(self.bundled, self.jobs, self.root, accept=(job.name,), digest_of=self.digest_of),
        )

    def _mark(self, job: Job) -> None:
        """Say in the folder of a data set that it is whole."""
        folder = self.data / job.name
        if not folder.is_dir():
            raise ZooError(f"the steps of {job.name} ended well but did not make {folder}")
        with replacing(folder / DATA_MARK) as temporary:
            mark = {"recipe_digest": recipe_digest(job, self.root)}
            temporary.write_text(json.dumps(mark) + "\n", encoding="utf-8")

    def _stop(self) -> None:
        """End the steps that run: they get time to save their state."""
        for running in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGTERM)
        limit = time.monotonic() + GRACE_S
        for name, running in self._running.items():
            try:
                running.process.wait(max(limit - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait()
            progress = running.progress
            progress.spent[progress.done] = running.before + time.monotonic() - running.start
            progress.status = "waiting"
            progress.save(self.folder(name))
        self._running.clear()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep a second chain out.  Steps hold the lock too, so that those of a killed chain are noticed."""
        import fcntl

        self.runs.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.runs / LOCK, os.O_CREAT | os.O_RDWR)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ZooError(
                    f"models are being made in {self.runs} already, or a step of a killed try still runs; wait for it"
                ) from None
            yield
        finally:
            os.close(self._lock)
            self._lock = -1


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(log.stat().st_size - 4000, 0))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
