"""Go the whole way to a borrowed GPU and back on this machine's CPU, with a tiny budget; docs/gpu.md says what is done.

python scripts/gpu_dry.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_run import BACK_BYTES, BACK_FILES, MIB, ROOT, call_of, parse, tree_bytes, tree_files
from PIL import Image

from limner import zoo
from limner.app.cli import main as limner
from limner.errors import CheckpointError, LimnerError
from limner.training.run import load_state

DRY_ROOM_MIB = 30
BLOCKED = (
    "rich",
    "yaml",
    "matplotlib",
    "lightning_fabric",
    "lightning_utilities",
    "scipy",
    "skimage",
    "moderngl",
    "imageio",
)
GUARD = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def dry(arguments: argparse.Namespace) -> int:
    """Go the whole way on the CPU: pack, send, train, bring back, fetch, send to another machine, grow, bundle.

    Raises:
        CheckpointError: something is not as it should be.
    """
    own = ROOT / "runs" / f"gpu-dry-{os.getpid()}"
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        try:
            _dry(arguments, own, place)
        finally:
            shutil.rmtree(own, ignore_errors=True)
    print("dry run: everything went through")
    return 0


def _dry(arguments: argparse.Namespace, own: Path, place: Path) -> None:
    data = arguments.data or _some_heads(place / "heads", arguments.most)
    # Little room, so that the state needs two boxes.
    sent = tree_bytes(ROOT) / MIB + DRY_ROOM_MIB
    common = ["--data", str(data), "--most", str(arguments.most), "--seconds", str(arguments.seconds)]
    tiny = {
        "batch_size": 4,
        "metric_samples": 8,
        "w_samples": 100,
        "feature_resolution": 64,
        "precision": "fp32",
    }
    common += [word for item in tiny.items() for word in ("--set", "=".join(map(str, item)))]
    common += ["--sent-mib", str(sent), "--recipe", str(ROOT / "recipes/heads-128-gpu.yaml")]

    _say("a first machine: one call at 128 px")
    _run(["pack", *common, "--calls", "1", "--out", str(own / "first")])
    first = _Machine(place / "first", arguments.threads)
    first.call(call_of(own / "first", 0))
    _run(["fetch", str(first.out), "--to", str(own / "fetched")])
    seen = _images(own / "fetched/stage-0")

    _say("a second machine: the state in two boxes, one call at 128 px, one at 256 px")
    again = ["--recipe", str(ROOT / "recipes/heads-256.yaml"), "--switch", "1", "--calls", "3"]
    _run(["pack", *common, *again, "--state", str(own / "fetched/stage-0"), "--out", str(own / "second")])
    second = _Machine(place / "second", arguments.threads)
    for number in range(3):
        second.call(call_of(own / "second", number))
        if number:
            _run(["fetch", str(second.out), "--to", str(own / "grown")])
    if _images(own / "grown/stage-0") <= seen:
        raise CheckpointError(f"the second machine did not go on from {seen} images")

    _say("bundling")
    model = own / "grown/stage-1/model.safetensors"
    teach = {"init": model, "resolution": 256, "discriminator": "stylegan2", "batch_size": 4, "kimg": 0.004}
    teach |= {"data": data, "metric_samples": 0, "w_samples": 100, "out": own / "teacher"}
    words = [word for key, value in teach.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    if limner(
        [
            "train",
            "gan",
            *words,
            "--only-discriminator",
            "--threads",
            str(arguments.threads),
            "--device",
            "cpu",
        ]
    ):
        raise CheckpointError("the discriminator for JoJoGAN could not be trained")
    bundle = [
        sys.executable,
        str(ROOT / "scripts/bundle_heads.py"),
        str(model),
        str(own / "teacher/model.safetensors"),
    ]
    bundle += [
        "--data",
        str(data),
        "--select",
        "",
        "--samples",
        "8",
        "--faces",
        "20",
        "--out",
        str(place / "heads.safetensors"),
    ]
    subprocess.run(
        bundle, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, stdout=subprocess.DEVNULL
    )
    _check_bundle(place / "heads.safetensors", own / "grown/stage-1")


def _check_bundle(file: Path, run: Path) -> None:
    """Check that the bundled generator is the averaged one that came back, to half precision."""
    from limner.checkpoints import load

    generator = load(file).generator
    assert generator is not None
    trained = load_state(run / "state.pt", torch.device("cpu"))["ema"]
    own = generator.state_dict()
    worst = max(
        float((own[name] - value).abs().max() / value.abs().max().clamp(min=1e-3))
        for name, value in trained.items()
        if name != "w_avg"  # of the model it is measured from more samples
    )
    if generator.resolution != 256 or worst > 1e-3:
        raise CheckpointError(
            f"{file} is not the generator of {run}: they differ by {worst:.2g} of the largest weight"
        )
    print(
        f"bundled: {file.stat().st_size / MIB:.2f} MiB at {generator.resolution} px, {worst:.1g} from the trained weights"
    )


class _Machine:
    """A folder that stands for a machine: the tree as it travels, nothing else installed, nothing in its cache."""

    def __init__(self, place: Path, threads: int):
        self.tree, self.out, self.work = place / "tree", place / "out", place / "work"
        for name in tree_files(ROOT):
            target = self.tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        guard, programs = place / "guard", place / "programs"
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(GUARD.format(blocked=set(BLOCKED)), encoding="utf-8")
        programs.mkdir()
        (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
        (programs / "python3").chmod(0o755)
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("LIMNER_", "PYTHON"))
            },
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(guard),
            "OUT": str(self.out),
            "LIMNER_CACHE": str(place / "cache"),
            "LIMNER_GPU_WORK": str(self.work),
            "OMP_NUM_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": "",
        }

    def call(self, arguments: dict[str, Any]) -> None:
        """Do what the tool does: take the carried paths along, empty ``OUT``, run the command, look at what comes back."""
        for path in arguments["carry"]:
            shutil.copytree(ROOT / path, self.tree / path, dirs_exist_ok=True)
        carried = sum(
            f.stat().st_size for path in arguments["carry"] for f in (ROOT / path).rglob("*") if f.is_file()
        )
        total = (tree_bytes(ROOT) + carried) / MIB
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        done = subprocess.run(
            ["bash", "-c", arguments["command"]],
            cwd=self.tree,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        print("   " + done.stdout.replace("\n", "\n   ").rstrip())
        if f"limner from {self.tree.resolve()}" not in done.stdout:
            raise CheckpointError(
                f"the call did not run the code that was sent: {done.stdout} {done.stderr[-2000:]}"
            )
        for path in arguments["carry"]:
            shutil.rmtree(self.tree / path)
        if done.returncode:
            raise CheckpointError(f"a call ended with {done.returncode}: {done.stderr[-2000:]}")
        files = list(self.out.iterdir())
        sizes = [file.stat().st_size for file in files]
        if (
            total > 100
            or len(files) > BACK_FILES
            or sum(sizes) > BACK_BYTES
            or max(sizes, default=0) > 16 * MIB
        ):
            raise CheckpointError(
                f"limits are broken: {total:.1f} MiB there, {[(f.name, f.stat().st_size) for f in files]}"
            )


def _some_heads(folder: Path, count: int) -> Path:
    """Paint pictures with the bundled generator, for machines without renders."""
    folder.mkdir(parents=True)
    generator = zoo.load(zoo.DEFAULT_GENERATOR).generator
    for start in range(0, count, 8):
        z = torch.randn(8, generator.z_dim, generator=torch.Generator().manual_seed(start))
        with torch.no_grad():
            pixels = ((generator(z).clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
        for i, head in enumerate(pixels[: count - start]):
            Image.fromarray(head).resize((256, 256), Image.Resampling.BICUBIC).save(
                folder / f"{start + i:06d}.png"
            )
    return folder


def _images(run: Path) -> int:
    return load_state(run / "state.pt", torch.device("cpu"))["images"]


def _say(text: str) -> None:
    print(f"== {text}", flush=True)


def _run(words: list[str]) -> None:
    arguments = parse(words)
    arguments.run(arguments)


def main() -> int:
    """Read the command line and go the whole way; a mistake is one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default="", help="pictures; default: some that the bundled generator paints"
    )
    parser.add_argument("--most", type=int, default=24, help="take so many pictures (24)")
    parser.add_argument("--seconds", type=float, default=3, help="of training per call (3)")
    parser.add_argument("--threads", type=int, default=1, help="of every process (1)")
    try:
        return dry(parser.parse_args())
    except LimnerError as error:
        print(f"gpu_dry: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
