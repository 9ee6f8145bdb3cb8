"""How much faster bf16 is than fp32: a step of generator training, of encoder training, of inversion, and an encoder's pass.

    python benchmarks/precision.py [--threads 1] [--repeats 5] [--batch 8] [--size 256] [--only gan encoder ...] [--json FILE]

Bundled generator, trunk and embedder, pictures by the generator itself; both precisions take turns in one process.
Medians of the processor time of the process, which other programs disturb less than wall time.  The ratio is
fp32 : bf16, so more than 1 means that bf16 is faster.  ``pass`` is pSp's IR-SE50 encoder with random weights, beside
the same network written down plainly.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turns import take_turns

PARTS = ("gan", "encoder", "inversion", "pass")
PICTURES = 32


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="of the generator whose codes the pass gives")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json")
    options = parser.parse_args()
    import torch

    from limner.nn.memory import keep_freed_memory
    from limner.nn.precision import bf16_units

    torch.set_num_threads(options.threads)
    keep_freed_memory()
    units = bf16_units(torch.device("cpu"))
    print(f"{options.threads} threads, units for bf16: {units or 'none'}", flush=True)
    found: dict[str, Any] = {"units": units, "options": vars(options)}
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder) / "pictures")
        parts = {
            "gan": lambda: gan_steps(Path(folder), options.batch),
            "encoder": lambda: encoder_steps(Path(folder), options.batch),
            "inversion": inversion_steps,
            "pass": lambda: passes(options.size),
        }
        for name in options.only:
            times = take_turns(parts[name](), options.repeats)
            found[name] = {side: figures["cpu_s"] for side, figures in times.items()}
            ratio = found[name]["ratio"] = found[name]["fp32"] / found[name]["bf16"]
            shown = ", ".join(
                f"{side} {seconds:.3f} s" for side, seconds in found[name].items() if side != "ratio"
            )
            print(f"{name:10} {shown}, fp32:bf16 {ratio:.2f}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


def load_heads() -> Any:
    """Return the bundled generator, frozen, as the commands hold it."""
    import torch

    from limner import checkpoints, zoo

    generator: Any = checkpoints.load(zoo.path("heads"), parts=("generator",)).generator
    return generator.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def make_pictures(folder: Path) -> None:
    """Write pictures by the bundled generator."""
    import torch

    from limner import media

    folder.mkdir()
    generator = load_heads()
    z = torch.randn(PICTURES, generator.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number, pixels in enumerate(media.to_pixels(generator(z, psi=0.7).clamp(-1, 1))):
            media.write(folder / f"{number:06d}.png", pixels)


def in_turn(steps: dict[str, Callable[[Any], object]]) -> dict[str, Callable[[], object]]:
    """Return what takes the next step of every precision, both with the same random numbers."""
    import torch

    from limner.training.run import StepRandom

    def counted(step: Callable[[Any], object]) -> Callable[[], object]:
        numbers = itertools.count(1)
        return lambda: step(StepRandom(0, next(numbers), 0, torch.device("cpu")))

    return {name: counted(step) for name, step in steps.items()}


def gan_steps(folder: Path, batch: int) -> dict[str, Callable[[], object]]:
    """Steps of ``limner train gan`` from the bundled generator, as recipes/heads-128.yaml sets it up."""
    import torch

    from limner import zoo
    from limner.options import from_mapping
    from limner.training.gan.options import GanOptions
    from limner.training.gan.training import GanTraining, build_run
    from limner.training.run import Runtime

    values = {"data": str(folder / "pictures"), "resolution": 128, "batch_size": batch, "metric_samples": 0}
    values |= {"lr_d": 0.001, "moment_weight": 12, "frechet_weight": 300}
    trunk: Any = zoo.load("lite0")
    trunk = trunk.to(memory_format=torch.channels_last)
    steps = {}
    for precision in ("fp32", "bf16"):
        options = from_mapping(GanOptions, values | {"out": str(folder / precision), "precision": precision})
        run = build_run(options, Runtime(torch.device("cpu"), precision), trunk=trunk, parent=load_heads())
        steps[precision] = GanTraining(run).game.step
    return in_turn(steps)


def encoder_steps(folder: Path, batch: int) -> dict[str, Callable[[], object]]:
    """Steps of ``limner train encoder`` with two refinements, all losses on."""
    import torch

    from limner import zoo
    from limner.options import from_mapping
    from limner.training.encoder.lessons import EncoderLessons, build_run
    from limner.training.encoder.options import EncoderOptions
    from limner.training.run import Runtime

    values = {"data": str(folder / "pictures"), "batch_size": batch, "codes_kimg": 0, "refine_kimg": 0}
    generator = load_heads()
    layout: Any = {"memory_format": torch.channels_last}
    trunk, embedder = (zoo.load(name).to(**layout) for name in ("lite0", "identity"))  # pyright: ignore
    steps = {}
    for precision in ("fp32", "bf16"):
        options = from_mapping(EncoderOptions, values | {"precision": precision})
        runtime = Runtime(torch.device("cpu"), precision)
        run = build_run(options, runtime, generator=generator, trunk=trunk, base={}, embedder=embedder)
        steps[precision] = EncoderLessons(run).step
    return in_turn(steps)


def inversion_steps() -> dict[str, Callable[[], object]]:
    """Steps of a search in w+ with noise maps, for one picture."""
    import torch

    from limner import zoo
    from limner.inversion import InversionOptions, TrunkDistance
    from limner.inversion.optimize import Projector

    generator = load_heads()
    trunk: Any = zoo.load("lite0")
    trunk = trunk.to(memory_format=torch.channels_last)
    z = torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = generator(z, psi=0.7).clamp(-1, 1)
    found = {}
    for precision in ("fp32", "bf16"):
        options = InversionOptions(steps=10_000, mean_samples=100, patience=0, precision=precision)
        found[precision] = Projector(
            generator, image, options, perceptual=TrunkDistance(trunk, name="lite0")
        ).step
    return found


def passes(size: int) -> dict[str, Callable[[], object]]:
    """Passes of pSp's encoder over one picture: plainly written down, and Limner's in both precisions."""
    import plain_encoders
    import torch

    from limner.checkpoints.psp import encoder_state
    from limner.nn.encoders import Encoder
    from limner.nn.precision import autocast

    torch.manual_seed(0)
    encoder = Encoder(rows=2 * size.bit_length() - 4).eval().requires_grad_(False)
    encoder.load_state_dict(encoder.state_dict())  # as after reading a file
    state, image = encoder_state(encoder), torch.randn(1, 3, 256, 256)

    def half() -> Any:
        with autocast("bf16", torch.device("cpu")):
            return encoder.predict(image)

    return {
        "plain": torch.no_grad()(lambda: plain_encoders.encode(state, image)),
        "fp32": torch.no_grad()(lambda: encoder.predict(image)),
        "bf16": torch.no_grad()(half),
    }


if __name__ == "__main__":
    main()
