"""Time and memory of one step of a DualStyleGAN's style stage: Limner's, and the same step on plain operators.

    python benchmarks/dual.py                           # bundled size, batch 8
    python benchmarks/dual.py --size 1024 --steps 1 --batch 2
    python benchmarks/dual.py --rank 24                 # Limner's low-rank path against the plain whole one

Either side runs in a process of its own, so that peaks of memory are its own; they take turns.  Both do the published
game on the same weights and codes: StyleGAN2's discriminator, adversarial, perceptual, contextual, feature matching and
identity losses and the size of the residual blocks, Adam.  The plain side is as published code does it without CUDA
kernels (plain_stylegan2.py): instance normalisation and affine one after the other, all pairs of features in the
contextual loss at once.  The losses of the first step must agree (not with --rank, which has other weights).  Times are of
CPU and of the wall; medians and ratios are printed.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import plain_stylegan2 as plain
import torch
import torch.nn.functional as F
from torch import Tensor

from limner import checkpoints, zoo
from limner.app.commands.train_dual import load_eyes
from limner.losses import logistic_d_loss, logistic_g_loss
from limner.nn.dual_start import start_extrinsic
from limner.nn.dualstylegan import AdaptiveInstanceNorm, DualGenerator, ModResBlock
from limner.nn.stylegan2 import Discriminator, Generator
from limner.training.data import PictureSet
from limner.training.dual.adversary import StyleGan2Adversary
from limner.training.dual.eyes import BANDWIDTH, LITE0_CLOSE, Eyes
from limner.training.dual.options import DualTrainOptions
from limner.training.dual.pairs import Setting
from limner.training.dual.transfer import StyleStage, copy_for_average
from limner.training.run import Runtime, StepRandom

PICTURES = 8
SIDES = ("limner", "plain")


def plain_norm(norm: AdaptiveInstanceNorm, x: Tensor, code: Tensor) -> Tensor:
    """Instance normalisation, then scale and shift."""
    gain, shift = norm.affine(code)[:, :, None, None].chunk(2, 1)
    return gain * F.instance_norm(x) + shift


def plain_block(block: ModResBlock, x: Tensor, code: Tensor) -> Tensor:
    """A residual block's change."""
    y = plain.equalised(block.conv0, plain_norm(block.norm0, x, code))  # type: ignore[arg-type]
    return plain.equalised(block.conv1, plain_norm(block.norm1, y, code))  # type: ignore[arg-type]


class PlainDual(DualGenerator):
    """The same model, painted by plain operators."""

    def forward(self, intrinsic: Tensor, extrinsic: Tensor) -> Tensor:  # type: ignore[override]
        """w+ twice -> image, every row with weight 1."""
        network = self.generator.synthesis
        layers, colours = list(network.layers), list(network.to_rgb)
        w_plus = [intrinsic[:, row] for row in range(self.num_rows)]
        for row, transform in enumerate(self.color, self.structure_rows):
            w_plus[row] = transform(extrinsic[:, row])
        x, image = network.const[None].repeat(len(intrinsic), 1, 1, 1), None
        for row, layer in enumerate(layers):
            x = plain.synthesis_layer(layer, x, w_plus[row])  # type: ignore[arg-type]
            if row < self.structure_rows:
                x = x + plain_block(self.structure[row], x, self.style(extrinsic[:, row]))  # type: ignore[arg-type]
            if row % 2 == 0:
                image = plain.to_rgb(colours[row // 2], x, w_plus[row + 1], image)  # type: ignore[arg-type]
        assert image is not None
        return image


class PlainAdversary(StyleGan2Adversary):
    """The same discriminator on plain operators."""

    def judge(
        self, fake: Tensor, real: Tensor, random: StepRandom, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """See `limner.training.dual.adversary.Adversary.judge`."""
        network: Any = self.network
        loss = logistic_d_loss(plain.discriminate(network, real), plain.discriminate(network, fake.detach()))
        self.update(loss)
        return logistic_g_loss(plain.discriminate(network, fake)), {"loss_d": loss.item()}


def plain_contextual(a: Tensor, b: Tensor) -> Tensor:
    """Contextual distance with the affinities of all pairs in memory, (B,)."""
    mean = b.mean((2, 3), keepdim=True)
    a, b = (F.normalize(x - mean, dim=1).flatten(2) for x in (a, b))
    distance = 1 - a.transpose(1, 2) @ b  # (B, N, M)
    relative = distance / (distance.amin(2, keepdim=True) + 1e-5)
    affinity = torch.exp((1 - relative) / BANDWIDTH)
    affinity = affinity / affinity.sum(2, keepdim=True)
    return -affinity.amax(1).mean(1).log()


class PlainEyes(Eyes):
    """The same losses; the contextual one by all pairs."""

    def contextual(self, maps: Any, wanted: Any) -> Tensor:
        """See `Eyes.contextual`."""
        return torch.stack([plain_contextual(maps[i], wanted[i]) for i in LITE0_CLOSE]).mean(0)


def build(arguments: argparse.Namespace, folder: Path) -> StyleStage:
    """Return the stage of one side, on random pictures and codes."""
    if arguments.size:
        torch.manual_seed(0)
        base, judge = Generator(resolution=arguments.size), Discriminator(resolution=arguments.size)
    else:
        found = checkpoints.load(zoo.resolve(zoo.DEFAULT_GENERATOR))
        assert isinstance(found.generator, Generator)
        assert isinstance(found.discriminator, Discriminator)
        base, judge = found.generator, found.discriminator
    base.eval().requires_grad_(False)
    is_plain = arguments.side == "plain"
    kind = PlainDual if is_plain else DualGenerator
    dual = kind.around(base, rank=None if is_plain else arguments.rank or None)
    start_extrinsic(dual, seed=0)
    dual.generator = base
    options = DualTrainOptions(
        images=(str(folder),),
        batch_size=arguments.batch,
        discriminator="stylegan2",
        augment_p=0.0,
        d_reg_interval=1000,
    )
    runtime = Runtime(torch.device("cpu"), "fp32")
    trunk = zoo.load("lite0").eval().requires_grad_(False)
    eyes = load_eyes(options, trunk, runtime)
    if is_plain:
        eyes = PlainEyes(eyes.trunk, eyes.embed, trunk_name=eyes.trunk_name, identity_name=eyes.identity_name)
    pictures = PictureSet(str(folder), base.resolution)
    setting = Setting(options, runtime, base, eyes, pictures, list(range(PICTURES)))
    rng = torch.Generator().manual_seed(1)
    shape = PICTURES, base.num_rows, base.z_dim
    codes = {name: torch.randn(shape, generator=rng) for name in ("extrinsic", "intrinsic")}
    adversary = (PlainAdversary if is_plain else StyleGan2Adversary)(
        judge.train().requires_grad_(True), options
    )
    return StyleStage(setting, dual, copy_for_average(dual), adversary, codes=codes, key="")


def peak_mb() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_side(arguments: argparse.Namespace) -> dict[str, Any]:
    """Take the steps of one side in this process."""
    torch.set_num_threads(arguments.threads)
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        side = arguments.size or 128
        for i in range(PICTURES):
            pixels = torch.randint(
                256, (8, 8, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8
            )
            Image.fromarray(pixels.numpy()).resize((side, side)).save(folder / f"{i}.png")
        stage = build(arguments, folder)
    before, losses, times = peak_mb(), [], []
    for step in range(1, arguments.steps + 1 + (not arguments.size)):
        wall, cpu = time.perf_counter(), time.process_time()
        losses.append(stage.step(step, StepRandom(0, step, 0, torch.device("cpu")))["loss"])
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    # At bundled size the first step warms up; at others it is the one that is timed.
    times = times[0 if arguments.size else 1 :]
    return {
        "loss": losses[0],
        "wall_s": statistics.median(t[0] for t in times),
        "cpu_s": statistics.median(t[1] for t in times),
        "peak_mb": peak_mb(),
        "step_mb": peak_mb() - before,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", type=int, default=0, help="random networks of this size in place of the bundled ones"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0, help="of Limner's extrinsic path; 0 for whole weights")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(run_side(arguments)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in range(arguments.turns):
        for side in SIDES:
            words = [sys.executable, __file__, "--side", side]
            for name in ("size", "batch", "steps", "threads", "rank"):
                words += [f"--{name}", str(getattr(arguments, name))]
            result = subprocess.run(words, check=True, capture_output=True, text=True)
            found[side].append(json.loads(result.stdout.splitlines()[-1]))
            print(f"turn {turn + 1}, {side}: {found[side][-1]}", flush=True)
    ours, theirs = (found[side][0]["loss"] for side in SIDES)
    if not arguments.rank and not math.isclose(ours, theirs, rel_tol=2e-3):
        raise SystemExit(f"the two sides do not compute the same loss: {ours} and {theirs}")
    keys = ("wall_s", "cpu_s", "peak_mb", "step_mb")
    medians = {
        side: {key: statistics.median(run[key] for run in runs) for key in keys}
        for side, runs in found.items()
    }
    ratios = {key: medians["plain"][key] / medians["limner"][key] for key in keys}
    for side in SIDES:
        print(f"{side}: " + ", ".join(f"{key} {medians[side][key]:.3f}" for key in keys))
    print("plain / limner: " + ", ".join(f"{key} {value:.2f}" for key, value in ratios.items()))
    if arguments.json:
        about = {
            name: getattr(arguments, name) for name in ("size", "batch", "steps", "turns", "threads", "rank")
        }
        report = {"options": about, "medians": medians, "ratios": ratios}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
