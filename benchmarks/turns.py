"""Time two or more sides of a comparison in turns, for the other benchmarks; run by itself it measures nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def take_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Return median wall and processor time in s of every side, after one run each to warm up."""
    for run in runs.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "wall_s": statistics.median(t[0] for t in found),
            "cpu_s": statistics.median(t[1] for t in found),
        }
        for name, found in times.items()
    }
