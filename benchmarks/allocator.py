"""What keeping freed memory gains: generator passes with glibc as it comes and with `keep_freed_memory`.

    python benchmarks/allocator.py

Each measurement is a process of its own; the two settings alternate.  Prints medians of CPU seconds and the ratio.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

CASES = {"training, 128 px, batch 16": (128, 16, True), "synthesis, 1024 px": (1024, 1, False)}


def measure(case: str, keep: bool, passes: int = 5) -> tuple[float, float]:
    """Return the median CPU seconds of a pass and the peak memory in MB."""
    from limner.nn.memory import keep_freed_memory

    if keep and not keep_freed_memory():
        raise SystemExit("this C library has no mallopt: nothing to compare")
    import torch

    from limner.nn.stylegan2 import Generator
    from limner.training.gan.options import CHANNEL_TABLES

    resolution, batch, backward = CASES[case]
    torch.set_num_threads(1)
    table = CHANNEL_TABLES["slim" if backward else "config-f"]
    channels = {size: width for size, width in table.items() if size <= resolution}
    generator = Generator(resolution=resolution, channels=channels).requires_grad_(backward)
    w_plus = torch.randn(batch, generator.num_rows, generator.w_dim)
    seconds = []
    for _ in range(passes + 1):
        start = time.process_time()
        image = generator.synthesis(w_plus)
        if backward:
            image.square().mean().backward()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Alternate both settings and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "KEEP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], arguments.one[1] == "keep")))
        return
    for case in CASES:
        found: dict[str, list[list[float]]] = {"glibc": [], "keep": []}
        for _ in range(arguments.rounds):
            for setting, results in found.items():
                words = [sys.executable, __file__, "--one", case, setting]
                results.append(
                    json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
                )
        plain, kept = ([statistics.median(column) for column in zip(*found[s], strict=True)] for s in found)
        print(
            f"{case}: {plain[0]:.2f} s / {plain[1]:.0f} MB as it comes, {kept[0]:.2f} s / {kept[1]:.0f} MB kept, "
            f"{plain[0] / kept[0]:.2f} times as fast, {kept[1] / plain[1]:.2f} times the memory"
        )


if __name__ == "__main__":
    main()
