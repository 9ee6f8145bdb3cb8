"""Time and memory of the StyleGAN2 networks: Limner's operators, plain ones, the machine's own convolution rate.

    python benchmarks/synthesis.py [--sizes 256 512 1024] [--threads 2] [--repeats 5] [--avx2] [--json FILE]
        [--pause PID ...]

Every figure comes from a process of its own: the median of ``--repeats`` passes after one to warm up, and the peak
resident memory of that process.  ``original`` is what the original code needed on another machine (two Zen 3 cores,
180 GFLOP/s), scaled by this machine's convolution rate; it says whether the plain operators are a fair opponent.
That holds with ``--avx2``, which hides AVX-512 from both sides: with AVX-512, oneDNN pads the one channel of the plain
FIR filter to 16, so that the plain operators lose more than they did on the original's machine.
``kept`` is Limner with `keep_freed_memory`, as its command line and its training run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JOBS = ("generator forward", "generator forward+backward", "discriminator forward+backward")
SIDES = ("limner", "kept", "plain")
REFERENCE_GFLOPS = 180.0
# Seconds and peak MB of the original code at REFERENCE_GFLOPS.
ORIGINAL = {
    ("generator forward", 256): (1.30, 878),
    ("generator forward", 1024): (4.05, 2134),
    ("generator forward+backward", 256): (4.16, 1717),
    ("generator forward+backward", 1024): (14.28, 4012),
    ("discriminator forward+backward", 256): (4.66, 1675),
    ("discriminator forward+backward", 1024): (19.94, 4215),
}


def median_time(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median and the least of ``repeats`` times in s, after one run to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), min(times)


def measure(job: str, side: str, size: int, repeats: int) -> dict[str, Any]:
    """Measure one job in this process."""
    import plain_stylegan2 as plain
    import torch

    from limner.nn.memory import keep_freed_memory
    from limner.nn.stylegan2 import Discriminator, Generator

    if side == "kept" and not keep_freed_memory():
        raise SystemExit("keep_freed_memory needs glibc")
    torch.manual_seed(0)
    network: Generator | Discriminator
    if job.startswith("generator"):
        network = generator = Generator(resolution=size)
        w_plus = torch.randn(1, generator.num_rows, generator.w_dim)
        forward: Callable[[], torch.Tensor] = (
            (lambda: plain.synthesize(generator, w_plus))
            if side == "plain"
            else (lambda: generator.synthesis(w_plus))
        )
    else:
        network = discriminator = Discriminator(resolution=size)
        image = torch.randn(1, 3, size, size)
        forward = (
            (lambda: plain.discriminate(discriminator, image))
            if side == "plain"
            else (lambda: discriminator(image))
        )

    def both() -> None:
        forward().square().mean().backward()
        network.zero_grad(set_to_none=True)

    if job.endswith("backward"):
        median, least = median_time(both, repeats)
    else:
        with torch.no_grad():
            median, least = median_time(forward, repeats)
    return {
        "seconds": median,
        "least": least,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_rates(repeats: int) -> dict[str, Any]:
    """Return GFLOP/s of a 512 to 512 3x3 convolution at 64 x 64 px and of a 2048 x 2048 matrix product."""
    import torch
    import torch.nn.functional as F

    x = torch.randn(1, 512, 64, 64)
    weight = torch.randn(512, 512, 3, 3)
    last = x.contiguous(memory_format=torch.channels_last)
    a = torch.randn(2048, 2048)
    work = 2 * 512 * 512 * 9 * 64 * 64 / 1e9
    with torch.no_grad():
        return {
            "convolution": work / median_time(lambda: F.conv2d(last, weight, padding=1), 4 * repeats)[0],
            "convolution_nchw": work / median_time(lambda: F.conv2d(x, weight, padding=1), 4 * repeats)[0],
            "matrix_product": 2 * 2048**3 / 1e9 / median_time(lambda: a @ a, 4 * repeats)[0],
        }


def synthesis_gflop(size: int) -> float:
    """Return the work of the synthesis network's convolutions for one image."""
    from limner.nn.stylegan2 import default_channels

    table = default_channels(size)
    total, before = 0, table[4]
    for side, width in table.items():
        if side > 4:
            total += 9 * before * width * (side // 2) ** 2  # transposed convolution, counted by its inputs
        total += 9 * width * width * side**2 + 3 * width * side**2
        before = width
    return 2 * total / 1e9


def in_own_process(arguments: list[str], settings: dict[str, str]) -> dict[str, Any]:
    """Run this script as a worker and read its result."""
    environment = {**os.environ, **settings}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


@contextmanager
def paused(pids: list[int]) -> Iterator[None]:
    """Stop other processes meanwhile; they go on whatever happens here."""
    stopped = []
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def compare(sizes: list[int], repeats: int, sides: list[str], settings: dict[str, str]) -> dict[str, Any]:
    """Measure everything and print a line for each figure; ``settings`` are environment variables."""
    rates = in_own_process(["--worker", json.dumps(["rates", repeats])], settings)
    rate = rates["convolution"]
    print(
        f"{settings}; convolution {rate:.0f} GFLOP/s channels-last, {rates['convolution_nchw']:.0f} "
        f"channels-first; matrix product {rates['matrix_product']:.0f}"
    )
    print(f"{'job':32}{'px':>5} {'side':8}{'median s':>9}{'least s':>9}{'peak MB':>9}  notes")
    rows = []
    for size in sizes:
        for job in JOBS:
            found: dict[str, dict[str, Any]] = {}
            for side in sides:
                row = in_own_process(["--worker", json.dumps([job, side, size, repeats])], settings)
                found[side] = row
                notes = {}
                if side == "plain":
                    for ours in found.keys() - {"plain"}:
                        notes[f"times as slow as {ours}"] = row["seconds"] / found[ours]["seconds"]
                        notes[f"times the memory of {ours}"] = row["peak_mb"] / found[ours]["peak_mb"]
                elif job == "generator forward":
                    notes["of the convolution rate"] = synthesis_gflop(size) / row["seconds"] / rate
                if (job, size) in ORIGINAL:
                    seconds, peak = ORIGINAL[job, size]
                    notes["original scaled, s"] = seconds * REFERENCE_GFLOPS / rate
                    notes["original / this"] = notes["original scaled, s"] / row["seconds"]
                    notes["original MB / this"] = peak / row["peak_mb"]
                rows.append({"job": job, "size": size, "side": side, **row, **notes})
                text = ", ".join(f"{name} {value:.2f}" for name, value in notes.items())
                print(
                    f"{job:32}{size:5} {side:8}{row['seconds']:9.3f}{row['least']:9.3f}{row['peak_mb']:9.0f}  {text}",
                    flush=True,
                )
    return {
        "machine": platform.platform(),
        "settings": settings,
        "repeats": repeats,
        "gflops": rates,
        "rows": rows,
    }


def main() -> int:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="sides in px")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="what is compared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--avx2", action="store_true", help="no AVX-512, as on the original's machine")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument(
        "--pause", type=int, nargs="+", default=[], metavar="PID", help="stop these meanwhile"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        job, *rest = json.loads(options.worker)
        print(json.dumps(measure_rates(*rest) if job == "rates" else measure(job, *rest)))
        return 0
    settings = {"OMP_NUM_THREADS": str(options.threads)}
    if options.avx2:
        settings |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    with paused(options.pause):
        report = compare(options.sizes, options.repeats, options.sides, settings)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
