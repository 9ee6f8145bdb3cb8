"""Time of one JoJoGAN training step: Limner's, and the same step on plain operators.

    python benchmarks/jojogan.py [--model heads | --size 256] [--threads 2] [--repeats 5] [--pictures 1] [--json FILE]

Both sides train the same weights with the same losses (discriminator features alone, as published), so they must agree
on the loss of the first step; the ratio of the medians is printed.  Repeats alternate, so that a busy machine slows
both.
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

from limner import checkpoints, zoo
from limner.nn.stylegan2 import Discriminator, Generator
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
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
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
