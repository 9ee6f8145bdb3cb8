"""Time of a search in w+: Limner's against the original loop written down plainly, and a batch against single runs.

    python benchmarks/inversion.py [--model heads] [--threads 2] [--steps 5] [--repeats 5] [--batch 8] [--avx2]
                                   [--json FILE]

The plain loop is Image2StyleGAN's: paint with StyleGAN2 as published code does without its CUDA kernels
(`plain_stylegan2`), mean squared error plus feature distance, the picture's features computed anew in every step, one
Adam over the codes.  The generator's weights ask for no gradient on either side.  Both sides start from the same codes
with the same trunk, Lite0, and take turns in one process; the losses of the first step are compared.

Figures: medians of wall time and of the processor time of the process, which other programs disturb less; per step,
per picture with all its steps, and of a batch against its pictures one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from turns import take_turns


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="heads")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    hidden = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    if options.avx2 and not hidden.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **hidden})
    found = measure(options)
    for name, value in found.items():
        print(f"{name}: {value}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures."""
    import torch
    from plain_stylegan2 import synthesize

    from limner import checkpoints, losses, zoo
    from limner.inversion import TrunkDistance, preset
    from limner.inversion.optimize import Projector, SpaceStatistics
    from limner.latent import Latent
    from limner.nn.stylegan2 import Generator

    torch.set_num_threads(options.threads)
    generator = checkpoints.load(zoo.resolve(options.model)).generator
    assert isinstance(generator, Generator)
    generator.eval().requires_grad_(False)
    trunk = zoo.load("lite0")
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        images = generator(torch.randn(options.batch, generator.z_dim, generator=rng), psi=0.7).clamp(-1, 1)
    start = generator.broadcast(generator.w_avg[None])
    settings = preset("image2stylegan", steps=options.steps, init="given", mean_samples=2)
    spread = SpaceStatistics((start,), (torch.ones_like(start),), (1.0,))

    def search(pictures: torch.Tensor) -> float:
        job = Projector(
            generator,
            pictures,
            settings,
            perceptual=TrunkDistance(trunk, name="lite0"),
            init=Latent("w+", start),
            statistics=spread,
        )
        first, *_ = [job.step()["loss"] for _ in range(options.steps)]
        return first

    def plain(pictures: torch.Tensor) -> float:
        code = start.clone().requires_grad_()
        adam = torch.optim.Adam([code], lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8)
        first = None
        for _ in range(options.steps):
            adam.zero_grad()
            painted = synthesize(generator, code)
            squares = ((painted + 1) / 2 - (pictures + 1) / 2).square().mean()
            loss = squares + losses.maps_distance(trunk(painted), trunk(pictures)).mean()
            loss.backward()
            adam.step()
            first = float(loss.detach()) if first is None else first
        assert first is not None
        return first

    side = generator.resolution
    if not 128 <= side <= 256:
        raise SystemExit("both sides see the trunk at the picture's own size: take a model of 128 or 256 px")
    apart = abs(search(images[:1]) - plain(images[:1])) / plain(images[:1])
    runs: dict[str, Callable[[], object]] = {
        "limner": lambda: search(images[:1]),
        "plain": lambda: plain(images[:1]),
        "batch": lambda: search(images),
        "singles": lambda: [search(images[i : i + 1]) for i in range(options.batch)],
    }
    times = take_turns(runs, options.repeats)
    found: dict[str, Any] = {
        "model": options.model,
        "px": side,
        "threads": options.threads,
        "steps": options.steps,
        "first loss differs by": apart,
    }
    for kind in ("wall_s", "cpu_s"):
        ours, theirs, batch, singles = (times[name][kind] for name in runs)
        found[kind] = {
            "limner per step": ours / options.steps,
            "plain per step": theirs / options.steps,
            "limner per picture": ours,
            "plain per picture": theirs,
            "plain / limner": theirs / ours,
            f"batch of {options.batch} per picture": batch / options.batch,
            "single runs / batch": singles / batch,
        }
    return found


if __name__ == "__main__":
    main()
