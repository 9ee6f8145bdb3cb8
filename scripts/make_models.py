"""Make again every bundled model that is stale, in order; the same command goes on after a stop.

    python scripts/make_models.py --plan               # what is stale, and why
    python scripts/make_models.py --jobs 2             # make it, two jobs at a time
    python scripts/make_models.py --only toon clay     # some jobs; their parents stay as they are
    python scripts/make_models.py --accept heads       # a recipe changed and the file stays as it is
    python scripts/make_models.py --without pairs      # do not render the data set pairs, nor learn from it

recipes/bundle.yaml lists the jobs, docs/bundled-models.md explains them.  Every job keeps its state and its log in a
folder below --runs; files reach the package when their job has ended well, with their cards, and the index with them.
Data sets that jobs share lie below --data and are made once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from limner.app.console import Console, format_seconds
from limner.errors import LimnerError
from limner.training.bundle import (
    Job,
    build_index,
    find_stale,
    is_whole,
    leave_out,
    missing_wants,
    read_jobs,
    write_index,
)
from limner.training.chain import STATE, Chain, Progress
from limner.zoo import BUNDLED_DIR

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 110


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    data = Path(os.environ.get("LIMNER_RUNS") or ROOT.parent / "runs")
    runs = data / "models"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="store_true", help="say what is stale and write nothing")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="jobs or models; default: all")
    parser.add_argument("--force", action="store_true", help="with --only: also what is not stale")
    parser.add_argument("--anew", action="store_true", help="forget what earlier tries have done")
    parser.add_argument(
        "--accept", nargs="+", default=[], metavar="NAME", help="take changed recipes as read"
    )
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="NAME",
        help="data sets to do without; the others are made",
    )
    parser.add_argument("--cold", action="store_true", help="do not start from the weights that are there")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="jobs at a time")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of each; 0: the cores, shared")
    parser.add_argument(
        "--seconds-scale", type=float, default=1.0, metavar="X", help="factor of times and images"
    )
    parser.add_argument(
        "--every", type=float, default=30.0, metavar="SECONDS", help="between lines of progress"
    )
    parser.add_argument("--runs", type=Path, default=runs, help=f"folder for states and logs ({runs})")
    parser.add_argument("--data", type=Path, default=data, help=f"folder for data sets ({data})")
    parser.add_argument("--recipes", type=Path, default=ROOT / "recipes/bundle.yaml", help="list of jobs")
    parser.add_argument("--bundled", type=Path, default=BUNDLED_DIR, help="folder of bundled files")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that recipes' paths are relative to")
    options = parser.parse_args()
    if options.jobs < 1 or options.threads < 0 or options.seconds_scale <= 0 or options.every <= 0:
        parser.error("--jobs, --seconds-scale and --every must be above 0, --threads not below")
    if options.force and not options.only:
        parser.error("--force needs --only NAME...")
    return options


def show_plan(
    console: Console, jobs: dict[str, Job], stale: dict[str, str], options: argparse.Namespace
) -> None:
    """Print which jobs run, why, and how long training takes at most."""
    rows, total = [], 0.0
    for name, reason in stale.items():
        limit = options.seconds_scale * sum(step.seconds for step in jobs[name].steps)
        total += limit
        begun = "begun" if (options.runs / name / STATE).is_file() and not options.anew else ""
        rows.append((name, jobs[name].parent, reason, format_seconds(limit) if limit else "", begun))
    if not rows:
        console.print("every bundled model is up to date")
        return
    console.table(("job", "parent", "why", "training, at most", ""), rows)
    for name, job in jobs.items():
        missing = missing_wants(job, options.root)
        users = [user for user in stale if name in jobs[user].needs]
        if users and missing and not is_whole(job, options.root, options.data):
            console.print(f"without {name}, which needs {', '.join(missing)}: {', '.join(users)}")
    if total:
        console.print(f"time limits together: {format_seconds(total)}, by {options.jobs} at a time")


def make(console: Console, options: argparse.Namespace) -> int:
    """Find what is stale, make it, and return the exit status."""
    jobs = leave_out(read_jobs(options.recipes), options.without)
    index = build_index(options.bundled, jobs, options.root, accept=options.accept)
    stale = find_stale(jobs, index, options.root, only=options.only, force=options.force, data=options.data)
    show_plan(console, jobs, stale, options)
    if options.plan:
        return 0
    write_index(options.bundled, index)
    if not stale:
        return 0
    begin = time.monotonic()

    def show(name: str, progress: Progress, line: str) -> None:
        seconds = format_seconds(time.monotonic() - begin)
        console.print(f"[{seconds}] {name}: {line if len(line) <= SHOWN else line[:SHOWN] + '...'}")

    chain = Chain(
        jobs,
        root=options.root,
        bundled=options.bundled,
        runs=options.runs,
        data=options.data,
        slots=options.jobs,
        threads=options.threads or max((os.cpu_count() or 1) // options.jobs, 1),
        seconds_scale=options.seconds_scale,
        warm=not options.cold,
        on_event=show,
        every_s=options.every,
    )
    results = chain.run(list(stale), anew=options.anew, remake=options.force)
    console.table(
        ("job", "status", "seconds", ""),
        [(name, one.status, round(sum(one.spent)), one.note) for name, one in results.items()],
    )
    failed = [name for name, one in results.items() if one.status != "made"]
    if failed:
        console.error(
            f"not made: {', '.join(failed)}; their files are as they were; logs: {options.runs}/JOB/log.txt; "
            "the same command goes on from here"
        )
    return 2 if failed else 0


def main() -> int:
    """Make what is stale."""
    options, console = parse(), Console()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        return make(console, options)
    except KeyboardInterrupt:
        console.error("stopped; states are saved, the same command goes on from here")
        return 130
    except LimnerError as error:
        console.error(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
