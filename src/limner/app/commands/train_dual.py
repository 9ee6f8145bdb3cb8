"""``limner train dual``: train a DualStyleGAN on a folder of portraits, all stages, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.app.console import Console
from limner.app.training import tell_places
from limner.errors import CheckpointError, OptionError
from limner.training.dual.options import STAGES, TITLES
from limner.training.dual.options import DualTrainOptions as Options

if TYPE_CHECKING:
    from limner.training.dual.eyes import Eyes
    from limner.training.dual.stage import Stage
    from limner.training.dual.training import Networks
    from limner.training.run import Runtime

HIDDEN = {"kimg", "img_per_s"}


def run(options: Options, console: Console) -> int:
    """Train until the last stage is over, or until ``seconds`` or an interrupt; the state is saved in each case."""
    from limner.app.device import pick_device
    from limner.training.dual.training import DualTraining
    from limner.training.run import Runtime, settle

    if not options.images:
        raise OptionError("limner train dual: name a folder of portraits: --images DIR")
    device = pick_device(console.settings, deterministic=False)
    options = settle(options, device)
    runtime = Runtime(device, options.precision)
    networks = load_networks(options, runtime)
    training = DualTraining(options, runtime, networks)
    base = networks.base
    console.print(
        f"{len(training.setting.pictures)} pictures, {len(training.setting.chosen)} with codes, base "
        f"{networks.base_name} at {base.resolution} px, on {runtime}; {networks.eyes}; codes by "
        + ("a search" if networks.encoder is None else "the compact encoder and a search")
    )
    tell_places(training.setting.pictures.counts, console)
    watch = _Watch(console)
    try:
        finished = training.run(on_stage=watch.begin, on_step=watch.step)
    finally:
        watch.end()
    model = training.out / "model.safetensors"
    if model.exists():
        console.print(f"model: {model}; paint with: limner dual PHOTO --model {model}")
    console.print(f"previews: {training.out}/*/sheets")
    if not finished:
        console.print("stopped before the end; the same command goes on from here")
    console.result(
        finished=finished, out=training.out, model=model if model.exists() else None, figures=watch.figures
    )
    return 0


class _Watch:
    """Shows stages and steps, and keeps the last figures of every stage."""

    def __init__(self, console: Console):
        self.console, self.figures = console, {}
        self._bar: Any = None
        self._shown: Any = None
        self._stage, self._first = "", 0

    def begin(self, name: str, over: bool) -> None:
        """Announce a stage."""
        self.end()
        self._stage = name
        number = STAGES.index(name) + 1
        self.console.print(
            f"stage {number} of {len(STAGES)}, {name}: {TITLES[name]}{'; done before' if over else ''}"
        )

    def step(self, stage: Stage, record: dict[str, Any]) -> None:
        """Show one step."""
        values = {name: value for name, value in record.items() if name not in HIDDEN}
        self.figures[stage.name] = {name: round(value, 5) for name, value in values.items()}
        if self._bar is None:
            self._first = stage.done - 1
            self._bar = self.console.progress(stage.total - self._first, f"train dual: {stage.name}")
            self._shown = self._bar.__enter__()
        text = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
        self._shown.set(stage.done - self._first, f"{record['img_per_s']:.1f} img/s  {text}")

    def end(self) -> None:
        """Close the bar of the last stage."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = self._shown = None
        figures = self.figures.get(self._stage)
        if figures:
            self.console.print("  " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()))


def load_networks(options: Options, runtime: Runtime) -> Networks:
    """Load what the options name, on the run's device.

    Raises:
        CheckpointError: a file holds something else, or an encoder of another generator.
    """
    import torch

    from limner import checkpoints, zoo
    from limner.nn.stylegan2 import Discriminator, Generator
    from limner.training.dual.training import Networks

    checkpoint = checkpoints.load(zoo.resolve(options.base))
    base = checkpoint.generator
    if not isinstance(base, Generator):
        raise CheckpointError(f"{options.base} holds no StyleGAN2 generator")
    tuned = None
    if options.tuned:
        tuned = checkpoints.load(zoo.resolve(options.tuned), parts=("generator",)).generator
        if not isinstance(tuned, Generator):
            raise CheckpointError(f"{options.tuned} holds no StyleGAN2 generator")
    layout: Any = {"memory_format": torch.channels_last}  # torch's stubs do not know it
    trunk = zoo.load("lite0").to(runtime.device, **layout).eval().requires_grad_(False)
    given = checkpoint.discriminator
    return Networks(
        base=base.to(runtime.device, **layout),
        base_name=Path(options.base).stem if Path(options.base).suffix else options.base,
        trunk=trunk,
        eyes=load_eyes(options, trunk, runtime),
        discriminator=given if isinstance(given, Discriminator) else None,
        encoder=_encoder(options, base, trunk, runtime),
        tuned=tuned,
    )


def load_eyes(options: Options, trunk: Any, runtime: Runtime) -> Eyes:
    """Return VGG19 and ArcFace where they are named or installed, else the bundled trunk and embedder."""
    from limner import zoo
    from limner.checkpoints.psp import load_arcface
    from limner.nn.features import load_torchvision
    from limner.training.dual.eyes import VGG19_TAPS, Eyes

    known, name, other = zoo.names(), "lite0", "dlib"
    if options.vgg19 or "vgg19" in known:
        file = options.vgg19 or zoo.path("vgg19")
        trunk, name = load_torchvision("vgg19", file, taps=VGG19_TAPS).to(runtime.device), "vgg19"
    if options.arcface or "arcface" in known:
        embed, other = load_arcface(options.arcface or zoo.path("arcface")), "arcface"
    else:
        embed = zoo.load("identity")
    embed = embed.to(runtime.device).eval().requires_grad_(False)
    return Eyes(trunk, embed, trunk_name=name, identity_name=other)


def _encoder(options: Options, base: Any, trunk: Any, runtime: Runtime) -> Any:
    """Return the compact encoder, None where there is none or none is wanted."""
    from limner import zoo
    from limner.checkpoints.compact import load_encoder, read_base
    from limner.nn import deltas

    if options.encoder == "none":
        return None
    if options.encoder != "auto":
        found = load_encoder(zoo.resolve(options.encoder), trunk=trunk)
        found.check_base(base)
        return found.to(runtime.device).eval().requires_grad_(False)
    digest = deltas.digest(base)
    for name in zoo.names("encoder"):
        if (read_base(zoo.path(name)) or {}).get("digest") == digest:
            return load_encoder(zoo.path(name), trunk=trunk).to(runtime.device).eval().requires_grad_(False)
    return None
