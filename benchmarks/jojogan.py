"""Time of one JoJoGAN training step: Limner's, and the same step on plain operators; time of learning one picture.

    python benchmarks/jojogan.py [--model heads | --size 256] [--threads 2] [--repeats 5] [--pictures 1] [--json FILE]
    python benchmarks/jojogan.py --learn [PICTURE] [--threads 2]    # the whole of ``limner learn PICTURE``

Both sides train the same weights with the same losses (discriminator features alone, as published), so they must agree
on the loss of the first step; the ratio of the medians is printed.  Repeats alternate, so that a busy machine slows
both.  Learning is that of the command with its defaults, from picture to style, without its file; the aim is two minutes
on two cores.  Wall time depends on what else the machine does, so the time of its own processor is printed beside it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import plain_stylegan2 as plain
import torch
from torch import Tensor

from limner import checkpoints, media, zoo
from limner.nn.stylegan2 import Discriminator, Generator
from limner.pipeline import LearnOptions, load_models
from limner.pipeline.photos import learn_style
from limner.stylization.jojogan import JojoganTraining, compared_stages, mix_codes, mixed_rows
from limner.stylization.options import JojoganOptions


def plain_features(discriminator: Discriminator, image: Tensor) -> list[Tensor]:
    """Return the feature maps after the first layer and after every block, on plain operators."""
    x = plain.equalised(discriminator.from_rgb, image)
    maps = [x]
    for block in discriminator.blocks:
        y = plain.equalised(block.conv1, plain.equalised(block.conv0, x))  # type: ignore[arg-type]
        x = (y + plain.equalised(block.skip, x)) / plain.SQRT2  # type: ignore[arg-type]
        maps.append(x)
    return maps


class PlainTraining:
    """One reference step on plain operators: same weights, same codes, same loss, same optimiser."""

    def __init__(self, generator: Generator, discriminator: Discriminator, images: Tensor, w_plus: Tensor):
        self.generator = copy.deepcopy(generator).requires_grad_(False)
        self.generator.synthesis.requires_grad_(True)
        self.discriminator, self.w_plus = discriminator, w_plus
        self.weights = torch.zeros(generator.num_rows)
        self.weights[list(mixed_rows(generator.resolution))] = 1.0
        self.stages = compared_stages(generator.resolution)
        self.optimizer = torch.optim.Adam(
            self.generator.synthesis.parameters(), lr=2e-3, betas=(0.0, 0.99), foreach=False
        )
        with torch.no_grad():
            self.targets = plain_features(discriminator, images)

    def step(self, z: Tensor) -> float:
        """Do one step; return the loss before it."""
        with torch.no_grad():
            w_random = self.generator.mapping(z)
        mixed = mix_codes(self.w_plus, w_random, self.weights)
        image = plain.synthesize(self.generator, mixed)
        maps = plain_features(self.discriminator, image)
        loss = torch.stack([(maps[i] - self.targets[i]).abs().mean() for i in self.stages]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def build(model: str, size: int) -> tuple[Generator, Discriminator]:
    """Return frozen networks: of a model, or random ones of the published widths."""
    if size:
        torch.manual_seed(0)
        generator, discriminator = Generator(resolution=size), Discriminator(resolution=size)
    else:
        found = checkpoints.load(zoo.resolve(model))
        generator, discriminator = found.generator, found.discriminator
        assert isinstance(generator, Generator)
        assert isinstance(discriminator, Discriminator)
    return generator.eval().requires_grad_(False), discriminator.eval().requires_grad_(False)


LEARN_AIM_S = 120
PICTURE = zoo.BUNDLED_DIR / "style_pictures/toon.jpg"


def measure_learning(model: str, picture: Path, threads: int) -> dict[str, float]:
    """Learn a style from one picture as ``limner learn`` does by default, print and return seconds."""
    models, options = load_models(model), LearnOptions()
    pixels = media.read(picture).pixels
    begun, processor = time.perf_counter(), time.process_time()
    about = learn_style([pixels], options, models=models).style.provenance
    found = {
        "seconds": time.perf_counter() - begun,
        "processor_seconds": time.process_time() - processor,
        "embed_seconds": about["embed_seconds"],
        "learn_seconds": about["learn_seconds"],
    }
    print(
        f"{picture.name}, {models.generator.resolution} px, {threads} threads: {found['seconds']:.0f} s (codes "
        f"{found['embed_seconds']:.0f} s, {about['steps']} steps {found['learn_seconds']:.0f} s; processor "
        f"{found['processor_seconds']:.0f} s), aim {LEARN_AIM_S} s: "
        f"{'met' if found['seconds'] <= LEARN_AIM_S else 'missed'}"
    )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=zoo.DEFAULT_GENERATOR, help="model with a discriminator")
    parser.add_argument("--size", type=int, default=0, help="random networks of this size instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--learn", type=Path, nargs="?", const=PICTURE, help="measure learning from this picture"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.learn is not None:
        found = measure_learning(arguments.model, arguments.learn, arguments.threads)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return
    generator, discriminator = build(arguments.model, arguments.size)
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(arguments.pictures, generator.z_dim, generator=rng)
    with torch.no_grad():
        w_plus = generator.broadcast(generator.mapping(z)).clone()
        images = -generator.synthesis(w_plus).clamp(-1, 1)
    options = JojoganOptions(perceptual=0.0, pixels=0.0)
    ours = JojoganTraining(
        generator=generator, discriminator=discriminator, images=images, w_plus=w_plus, options=options
    )
    theirs = PlainTraining(generator, discriminator, images, w_plus)
    sides: dict[str, Callable[[Tensor], float]] = {
        "limner": lambda z: ours.step(z, "constant"),
        "plain": theirs.step,
    }
    first = {name: step(z) for name, step in sides.items()}  # also warms up
    if abs(first["limner"] - first["plain"]) > 1e-3 * abs(first["plain"]):
        raise SystemExit(f"the two sides do not compute the same loss: {first}")
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        z = torch.randn(arguments.pictures, generator.z_dim, generator=rng)
        for name, step in sides.items():
            begun = time.perf_counter()
            step(z)
            times[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["plain"] / medians["limner"]
    where = f"{generator.resolution} px, {arguments.pictures} picture(s), {arguments.threads} threads"
    print(f"{where}: limner {medians['limner']:.3f} s, plain {medians['plain']:.3f} s, ratio {ratio:.2f}")
    print(f"first loss: limner {first['limner']:.6f}, plain {first['plain']:.6f}")
    if arguments.json:
        report = {"where": where, "medians": medians, "times": times, "first_loss": first}
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
