"""Train on a borrowed GPU: a machine without network that takes single commands, small parcels and little time.

    python scripts/gpu_run.py pack                     # boxes below runs/gpu, and the exact calls to make
    python scripts/gpu_run.py fetch FOLDER             # what a call brought back, as a run that limner resumes
    python scripts/gpu_run.py pack --state runs/gpu/stage-0    # go on from there on another machine

`call` is what runs there; `pack` prints it. scripts/gpu_dry.py tries all of it on the CPU. It needs torch, numpy, Pillow
and safetensors. docs/gpu.md says more.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from limner import zoo
from limner.app.cli import main as limner
from limner.errors import CheckpointError, LimnerError, OptionError
from limner.options import from_mapping, read_recipe, to_mapping, to_words
from limner.training.data import list_pictures, read_pictures
from limner.training.gan.options import GanOptions
from limner.training.gan.parcels import (
    MANIFEST,
    export_average,
    grow_state,
    join_file,
    shrink_state,
    split_file,
)
from limner.training.gan.training import GanTraining, build_run
from limner.training.run import Journal, Runtime, StepRandom, load_state, save_state

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
SENT_MIB = 62.0  # of 64: the tree with what is carried
PART_BYTES = int(15.5 * MIB)  # of 16 MiB: one file that comes back
BACK_BYTES, BACK_FILES = 62 * MIB, 8  # all that come back, of 64 MiB
COMMAND_CHARACTERS = 2000
CALL_S, LEASE_S = 600, 1800
START_S, RESERVE_S, BETWEEN_S = 120, 120, 50  # machine's start; spare; transfers
LEAST_S = 60  # of training in a call: below, loading takes longer
AROUND_S, USUAL_S = 100, 60  # loading, measuring, packing in a call: at most; planned for, the rest is spare
FRESH_SHARE = 0.5  # of a box that must be free behind a state, or else the pictures begin in the next one
DECAY_SHARE = 0.35  # of a stage's images on this machine, over which its rates fall
FIGURE_S = 120  # between measured figures
STATE_ONLY = 0.0  # seconds of a call that only takes a box
WORK = "/tmp/limner-gpu"


# Here: packing


def tree_bytes(root: Path) -> int:
    """Return the bytes of what git tracks or does not ignore, and of ``shared/``: all that travels by itself."""
    files = {root / name for name in tree_files(root)}
    shared = root / "shared"
    files |= {path for path in shared.rglob("*") if path.is_file()} if shared.is_dir() else set()
    return sum(path.stat().st_size for path in files if path.is_file())


def tree_files(root: Path) -> list[str]:
    """Return what git tracks or does not ignore, relative to ``root``."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=root, check=True, capture_output=True).stdout
    return sorted({name for name in listed.decode().split("\0") if name and (root / name).is_file()})


def pack(arguments: argparse.Namespace) -> int:
    """Fill boxes with a state, if there is one, and pictures; print the calls."""
    room = int((arguments.sent_mib or SENT_MIB) * MIB) - tree_bytes(ROOT)
    if room < 2 * MIB:
        raise OptionError(
            f"the tree leaves {room / MIB:.1f} MiB of {SENT_MIB:g} to carry; ignore or remove large files first"
        )
    out: Path = arguments.out
    for old in out.glob("box-*"):
        shutil.rmtree(old)
    boxes = _Boxes(out, room)
    stage, seen = 0, 0.0
    if arguments.state:
        stage, seen = _pack_state(arguments.state, boxes)
        if boxes.used > (1 - FRESH_SHARE) * boxes.room:  # not to train a whole call on a handful of pictures
            boxes.turn()
    first = boxes.last  # training begins where the first pictures come
    recipe = read_recipe(arguments.recipe[0])
    select = arguments.select or ("" if arguments.data else recipe.get("select", ""))
    data = Path(arguments.data or recipe["data"])
    count = _pack_pictures(data, select, arguments.size, arguments.quality, boxes, arguments.most)
    calls = max(arguments.calls, boxes.last + 1)
    training = calls - first
    each = arguments.seconds or seconds_per_call(first, training, arguments.lease)
    if not arguments.seconds and each < LEAST_S:
        raise OptionError(
            f"{calls} calls in {arguments.lease:g} s leave {max(each, 0):.0f} s of training each, at least {LEAST_S} are "
            "wanted; take fewer pictures with --most, smaller ones with --size, or fewer --calls"
        )
    switch = min(arguments.switch, training - 1) if len(arguments.recipe) > 1 else training
    overrides = dict(word.split("=", 1) for word in arguments.set)
    for call, plan in enumerate(make_plans(calls, first, stage, switch, each)):
        about = read_recipe(arguments.recipe[min(plan["stage"], len(arguments.recipe) - 1)])
        plan["options"] = {"precision": "bf16", **about, **overrides}
        plan["from_kimg"] = seen if plan["stage"] == stage else 0.0
        file = boxes.folder(call) / "plan.json"
        file.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    print(
        f"{count} pictures of {arguments.size} px in {boxes.last + 1} boxes; {room / MIB:.1f} MiB may be carried beside the tree"
    )
    for call in range(calls):
        print(json.dumps(call_of(out, call)))
    return 0


def seconds_per_call(before: int, training: int, lease: float = LEASE_S) -> float:
    """Return how long each of ``training`` calls may train, after ``before`` calls that only take a box, in seconds."""
    left = lease - START_S - RESERVE_S - before * BETWEEN_S
    return min(CALL_S - AROUND_S, left / training - BETWEEN_S - USUAL_S)


def make_plans(calls: int, first: int, stage: int, switch: int, each: float) -> list[dict[str, Any]]:
    """Return what every call does: its number, stage, seconds of training, and those left to its stage from then on.

    Args:
        calls: how many.
        first: the first one that trains; those before only take a box.
        stage: in which training begins, 0 or 1.
        switch: training calls after which stage 1 begins.
        each: seconds of training per call.
    """
    stages = [stage if call - first < switch else max(stage, 1) for call in range(calls)]
    plans = []
    for call, own in enumerate(stages):
        left = sum(each for other in stages[max(call, first) :] if other == own)
        seconds = STATE_ONLY if call < first else each
        plans.append({"call": call, "stage": own, "seconds": seconds, "left_s": left})
    return plans


def call_of(out: Path, call: int) -> dict[str, Any]:
    """Return the arguments of one call of the machine's tool."""
    box = out / f"box-{call}"
    plan = json.loads((box / "plan.json").read_text(encoding="utf-8"))
    here = box.resolve().relative_to(ROOT.resolve())
    command = (
        "export PYTHONUNBUFFERED=1 PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}; "
        f'python3 scripts/gpu_run.py call {here} --out "$OUT"'
    )
    assert len(command) <= COMMAND_CHARACTERS
    timeout_s = min(CALL_S, int(plan["seconds"] + AROUND_S))
    return {"command": command, "carry": [str(here)], "timeout_s": timeout_s}


class _Boxes:
    """Folders that are filled one after the other."""

    def __init__(self, out: Path, room: int):
        self.out, self.room, self.last, self.used = out, room, 0, 0

    def folder(self, number: int) -> Path:
        folder = self.out / f"box-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def turn(self) -> None:
        """Go on with the next box."""
        self.last, self.used = self.last + 1, 0

    def place_for(self, size: int) -> Path:
        """Return the folder in which a file of so many bytes goes."""
        if self.used and self.used + size > self.room:
            self.turn()
        self.used += size
        return self.folder(self.last)


def _pack_state(run: Path, boxes: _Boxes) -> tuple[int, float]:
    """Pack a fetched run; return its stage and the thousands of images that it has seen."""
    about = json.loads((run / "stage.json").read_text(encoding="utf-8"))
    state = load_state(run / "state.pt", torch.device("cpu"))
    with tempfile.TemporaryDirectory() as place:
        parcel = Path(place) / "state.pt"
        torch.save({**about, "state": shrink_state(state)}, parcel)
        *parts, manifest = split_file(parcel, Path(place) / "parts", part_bytes=boxes.room - MIB // 4)
        logs = [log] if (log := run / "log.jsonl").exists() else []
        for file in (*parts, *logs, manifest):  # when the manifest comes, the run is put together
            shutil.copy2(file, boxes.place_for(file.stat().st_size))
    return about["stage"], state["images"] / 1000


def _pack_pictures(data: Path, select: str, size: int, quality: int, boxes: _Boxes, most: int) -> int:
    """Pack WebP pictures in a random order, so that every box is a fair sample; return how many."""
    names = list_pictures(data, select)
    random.Random(0).shuffle(names)
    names = names[:most] if most else names
    waiting: list[tuple[str, bytes]] = []
    held = 0

    def close() -> None:
        nonlocal held
        with zipfile.ZipFile(boxes.place_for(held) / "pictures.zip", "w", zipfile.ZIP_STORED) as archive:
            for name, blob in waiting:
                archive.writestr(name, blob)
        waiting.clear()
        held = 0

    for name, pixels in zip(names, read_pictures(data, names, size), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "WEBP", quality=quality, method=4)
        entry = str(Path(name).with_suffix(".webp"))
        weight = file.tell() + 2 * len(entry) + 100  # a zip's entry and its line in the table
        if waiting and boxes.used + held + weight > boxes.room:
            close()
            boxes.turn()
        waiting.append((entry, file.getvalue()))
        held += weight
    close()
    return len(names)


# There: one call


def call(arguments: argparse.Namespace) -> int:
    """Take a box, train for its seconds, and leave what goes back in ``out``."""
    began = time.monotonic()
    plan = json.loads((arguments.box / "plan.json").read_text(encoding="utf-8"))
    work: Path = arguments.work
    _unpack(arguments.box, work, plan["call"])
    names = f"python {sys.version.split()[0]}, torch {torch.__version__}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        f"call {plan['call']}: {names}, {gpu}; limner from {Path(zoo.__file__).parent}; box taken in {time.monotonic() - began:.1f} s"
    )
    if plan["seconds"] == STATE_ONLY:
        return 0
    run = work / f"stage-{plan['stage']}"
    own = {"data": str(work / "pictures"), "select": "", "out": str(run)}
    options = from_mapping(GanOptions, plan["options"] | own)
    before = work / f"stage-{plan['stage'] - 1}/model.safetensors"
    if before.exists() and not (run / "state.pt").exists():
        options = dataclasses.replace(options, init=str(before))
    options = _within(options, plan, run)
    code = limner(["train", "gan", *to_words(options)])
    for file in bring_back(run, arguments.out, {"stage": plan["stage"], "options": to_mapping(options)}):
        print(f"{file.name}: {file.stat().st_size / MIB:.2f} MiB")
    print(f"call {plan['call']} took {time.monotonic() - began:.0f} s")
    return code


def _unpack(box: Path, work: Path, number: int) -> None:
    missing = [n for n in range(number) if not (work / f"box-{n}").exists()]
    if missing:
        raise OptionError(
            f"{work} lacks what the calls {missing} brought: this is another machine. Fetch the last results, then "
            "`gpu_run.py pack --state`; or make the earlier calls again"
        )
    inbox = work / "inbox"
    inbox.mkdir(parents=True, exist_ok=True)
    for file in box.iterdir():
        if file.name == "pictures.zip":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(work / "pictures")
        else:
            shutil.copy2(file, inbox)
    manifest = inbox / f"state.pt.{MANIFEST}"
    if manifest.exists() and join_file(manifest, work / "state.pt"):
        manifest.unlink()
        open_parcel(work / "state.pt", work, log=inbox / "log.jsonl")
    (work / f"box-{number}").touch()


def open_parcel(parcel: Path, into: Path, *, log: Path) -> Path:
    """Make the folder of a run from a parcel; return it."""
    about = load_state(parcel, torch.device("cpu"))
    run = into / f"stage-{about['stage']}"
    run.mkdir(parents=True, exist_ok=True)
    save_state(run / "state.pt", grow_state(about["state"]))
    plain = {"stage": about["stage"], "options": about["options"]}
    (run / "stage.json").write_text(json.dumps(plain) + "\n", encoding="utf-8")
    if log.exists():
        shutil.copy2(log, run / "log.jsonl")
    return run


def _within(options: GanOptions, plan: dict[str, Any], run: Path) -> GanOptions:
    """Return the options with as many images as the time that is left allows, and the precision that is faster."""
    kept = run / "speed.json"
    state = run / "state.pt"
    seen = load_state(state, torch.device("cpu"))["images"] / 1000 if state.exists() else 0.0
    if kept.exists():
        precision, speed = json.loads(kept.read_text(encoding="utf-8"))
        seen_speeds = [r["img_per_s"] for r in Journal(run / "log.jsonl").read() if "img_per_s" in r]
        speed = (seen_speeds or [speed])[-1]
    else:
        precision, speed = probe(options)
        run.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([precision, speed]), encoding="utf-8")
    kimg = seen + max(speed * plan["left_s"], options.batch_size) / 1000
    print(f"{speed:.1f} images a second in {precision}, {kimg:.1f} kimg planned for this stage")
    every = max(speed * FIGURE_S / 1000, 0.001)
    return dataclasses.replace(
        options,
        kimg=kimg,
        decay_kimg=DECAY_SHARE * (kimg - plan["from_kimg"]),
        grow_kimg=min(options.grow_kimg, 0.1 * kimg),
        warmup_kimg=min(options.warmup_kimg, 0.05 * kimg),
        seconds=plan["seconds"],
        precision=precision,
        metric_kimg=every,
        sheet_kimg=every,
        save_seconds=60.0,
    )


def probe(options: GanOptions) -> tuple[str, float]:
    """Try the arithmetics that there are and return the fastest one whose losses are finite, with images per second.

    Raises:
        OptionError: none works.
    """
    from limner import checkpoints

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout: Any = {"memory_format": torch.channels_last}
    trunk = zoo.load("lite0").to(device, **layout)
    parent = checkpoints.load(zoo.resolve(options.init)).generator if options.init else None
    speeds: dict[str, float] = {}
    for precision in ("fp32", "bf16") if options.precision == "bf16" else ("fp32",):
        try:
            run = build_run(options, Runtime(device, precision), trunk=trunk, parent=parent)
            game = GanTraining(run).game
            spent, images = 0.0, 0
            for step in range(200):
                began = time.monotonic()
                record = game.step(StepRandom(options.seed, step + 1, 0, device))
                if not all(value == value and abs(value) < 1e30 for value in record.values()):
                    raise FloatingPointError(f"losses {record}")
                if step >= (5 if device.type == "cuda" else 1):  # the first ones choose kernels
                    spent, images = spent + time.monotonic() - began, images + options.batch_size
                if spent > (5 if device.type == "cuda" else 1):
                    break
            speeds[precision] = images / spent
            print(f"probe: {precision} {speeds[precision]:.1f} images a second")
        # A dtype that a kernel lacks, too little memory.
        except (RuntimeError, FloatingPointError, TypeError) as error:
            print(f"probe: {precision} does not work: {str(error).splitlines()[0]}")
    if not speeds:
        raise OptionError("neither fp32 nor bf16 trains here; see the lines above")
    best = max(speeds, key=lambda name: speeds[name])
    return best, speeds[best]


def bring_back(run: Path, out: Path, about: dict[str, Any]) -> list[Path]:
    """Write what goes back, within the limits: the parcel in parts, log, and where there is room last sheet and model.

    Args:
        run: folder of the run.
        out: folder that comes back.
        about: number of the stage, its options.

    Raises:
        CheckpointError: the state is too large even so.
    """
    out.mkdir(parents=True, exist_ok=True)
    parcel = run / "parcel" / "state.pt"
    parcel.parent.mkdir(exist_ok=True)
    state = load_state(run / "state.pt", torch.device("cpu"))
    torch.save({**about, "state": shrink_state(state)}, parcel)
    files = split_file(parcel, out, part_bytes=PART_BYTES)
    if (run / "log.jsonl").exists():
        files.append(Path(shutil.copy2(run / "log.jsonl", out)))
    sheets = sorted(run.glob("sheets/*.png"), key=lambda path: path.stat().st_mtime)
    for file in (*sheets[-1:], run / "model.safetensors"):
        size = file.stat().st_size if file.exists() else 0
        room = BACK_BYTES - sum(f.stat().st_size for f in files)
        if 0 < size < min(PART_BYTES, room) and len(files) < BACK_FILES:
            name = "sheet.png" if file.suffix == ".png" else file.name
            files.append(Path(shutil.copy2(file, out / name)))
    total = sum(file.stat().st_size for file in files)
    if len(files) > BACK_FILES or total > BACK_BYTES:
        raise CheckpointError(
            f"{len(files)} files of {total / MIB:.1f} MiB are to go back, {BACK_FILES} of {BACK_BYTES / MIB:g} may; "
            f"the model alone lies in {run} there: copy it to $OUT in one more call"
        )
    return files


# Here again


def fetch(arguments: argparse.Namespace) -> int:
    """Make a run's folder of what a call brought back; `limner train gan --out` resumes it."""
    came: Path = arguments.folder
    arguments.to.mkdir(parents=True, exist_ok=True)
    parcel = arguments.to / "parcel.pt"
    manifest = came / f"state.pt.{MANIFEST}"
    if not manifest.exists() or not join_file(manifest, parcel):
        raise CheckpointError(
            f"{came} does not hold all parts of a state; see {manifest.name} and the call's `files`"
        )
    run = open_parcel(parcel, arguments.to, log=came / "log.jsonl")
    parcel.unlink()
    for name in ("model.safetensors", "sheet.png"):
        if (came / name).exists():
            shutil.copy2(came / name, run / name)
    state = load_state(run / "state.pt", torch.device("cpu"))
    if not (came / "model.safetensors").exists():  # it had no room beside the state that it can be made of
        options = json.loads((run / "stage.json").read_text(encoding="utf-8"))["options"]
        measured = [record for record in Journal(run / "log.jsonl").read() if "frechet" in record]
        figures = {name: value for name, value in (measured or [{}])[-1].items() if name != "kimg"}
        export_average(state, from_mapping(GanOptions, options), run / "model.safetensors", figures)
    print(f"{run}: {state['images'] / 1000:.1f} kimg, {state['seconds'] / 3600:.2f} hours of training")
    return 0


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__.splitlines()[0])
        sub.set_defaults(run=run)
        return sub

    sub = command("pack", pack)
    sub.add_argument("--data", default="", help="folder or zip of pictures; default: the first recipe's")
    sub.add_argument("--select", default="", help="FIRST-LAST; default: the first recipe's, if data is")
    sub.add_argument("--size", type=int, default=256, help="side of the packed pictures in px (256)")
    sub.add_argument("--quality", type=int, default=70, help="of the WebP files (70)")
    sub.add_argument("--most", type=int, default=0, help="take so many pictures, at random; 0: all")
    sub.add_argument("--state", type=Path, help="a run that `fetch` made, to go on with on another machine")
    sub.add_argument("--recipe", action="append", default=[], help="stages, in order; twice for growing")
    sub.add_argument(
        "--switch", type=int, default=2, help="training calls of the first stage, if there are two (2)"
    )
    sub.add_argument("--calls", type=int, default=3, help="at least so many (3)")
    sub.add_argument("--seconds", type=float, default=0, help="of training per call; 0: what there is")
    sub.add_argument(
        "--lease", type=float, default=LEASE_S, help=f"seconds that the machine is lent, in all ({LEASE_S})"
    )
    sub.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="overrule the recipes"
    )
    sub.add_argument("--sent-mib", type=float, default=0, help=f"limit of tree and box ({SENT_MIB:g})")
    sub.add_argument(
        "--out", type=Path, default=ROOT / "runs/gpu", help="folder for boxes, below the repository, ignored"
    )
    sub = command("call", call)
    sub.add_argument("box", type=Path, help="folder that was carried")
    sub.add_argument("--out", type=Path, required=True, help="folder that comes back")
    sub.add_argument(
        "--work",
        type=Path,
        default=Path(os.environ.get("LIMNER_GPU_WORK", WORK)),
        help="folder that stays there",
    )
    sub = command("fetch", fetch)
    sub.add_argument("folder", type=Path, help="what came back")
    sub.add_argument("--to", type=Path, default=ROOT / "runs/gpu", help="folder for runs")
    arguments = parser.parse_args(words)
    if getattr(arguments, "recipe", None) == []:
        arguments.recipe = [str(ROOT / "recipes/heads-128-gpu.yaml")]
    return arguments


def main() -> int:
    """Run a command; a mistake is one line."""
    arguments = parse()
    try:
        return arguments.run(arguments)
    except LimnerError as error:
        print(f"gpu_run: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
