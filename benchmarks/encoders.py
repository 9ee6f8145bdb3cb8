"""Time of the pSp family's encoders: Limner's against the same networks written down plainly.

    python benchmarks/encoders.py [--sizes 256 1024] [--threads 2] [--repeats 5] [--batch 1] [--avx2] [--json FILE]

Both sides take turns in one process, on the same weights and picture; medians of wall time, and of the processor time
of the process, which other programs on the machine disturb less.  The rate beside them is this machine's own
convolution rate (512 to 512 channels, 3x3, 64x64).  Codes are compared too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from turns import take_turns

NETWORKS: dict[str, dict[str, Any]] = {
    "pSp": {},
    "e4e": {"deltas": True},
    "ReStyle ResNet-34": {"head": "single", "body": "resnet34", "feedback": True, "in_channels": 6},
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    hidden = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    if options.avx2 and not hidden.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **hidden})
    import plain_encoders
    import torch

    from limner.checkpoints.psp import encoder_state
    from limner.nn.encoders import Encoder

    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    weight, large = torch.randn(512, 512, 3, 3), torch.randn(1, 512, 64, 64)
    large, weight = (x.contiguous(memory_format=torch.channels_last) for x in (large, weight))
    rate = take_turns({"conv": lambda: torch.nn.functional.conv2d(large, weight, padding=1)}, options.repeats)
    gflops = 2 * 512 * 512 * 9 * 64 * 64 / 1e9 / rate["conv"]["wall_s"]
    print(f"{torch.backends.cpu.get_cpu_capability()}, {options.threads} threads, {gflops:.0f} GFLOP/s")
    rows = []
    for size in options.sizes:
        for name, settings in NETWORKS.items():
            torch.manual_seed(0)
            encoder = Encoder(rows=2 * size.bit_length() - 4, **settings).eval()
            encoder.load_state_dict(encoder.state_dict())  # as after reading a file
            state = encoder_state(encoder)
            image = torch.randn(options.batch, encoder.in_channels, 256, 256)
            sides: dict[str, Callable[[], torch.Tensor]] = {
                "limner": lambda e=encoder, x=image: e.predict(x),
                "plain": lambda s=state, x=image, d=encoder.deltas: plain_encoders.encode(s, x, deltas=d),
            }
            ours, theirs = (run() for run in sides.values())
            found = take_turns(sides, options.repeats)
            ratios = {key: found["plain"][key] / found["limner"][key] for key in ("wall_s", "cpu_s")}
            off = float((ours - theirs).abs().max() / theirs.std())
            rows.append({"network": name, "size": size, **found, "ratio": ratios, "difference": off})
            print(
                f"{name:18} {size:5}  limner {found['limner']['wall_s']:.3f} s  plain {found['plain']['wall_s']:.3f} s"
                f"  ratio {ratios['wall_s']:.2f} (processor time {ratios['cpu_s']:.2f})  difference {off:.0e}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"gflops": gflops, "options": vars(options), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
