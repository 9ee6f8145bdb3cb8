"""Train a DualStyleGAN: six stages in order, each in a folder of its own, each resumed where it stopped.

``1-tune`` fine-tunes the generator on the portraits, ``2-destylize`` finds the faces behind them, ``3-structure`` and
``4-style`` train the extrinsic path, ``5-refine`` improves the styles' codes, ``6-sampler`` learns to draw new ones.

Source: Yang et al. 2022, "Pastiche Master: Exemplar-Based High-Resolution Portrait Style Transfer"
(arXiv 2203.13248), section 3.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limner import checkpoints, zoo
from limner.checkpoints import Checkpoint, dual_child
from limner.errors import CheckpointError, KeyMismatchError, OptionError
from limner.files import replacing
from limner.nn import deltas
from limner.nn.dual_start import start_extrinsic
from limner.nn.dualstylegan import DualGenerator
from limner.nn.stylegan2 import Discriminator, Generator
from limner.options import to_mapping
from limner.training.data import PictureSet
from limner.training.dual.adversary import Adversary, make_adversary
from limner.training.dual.eyes import Eyes
from limner.training.dual.options import LENGTHS, STAGES, DualTrainOptions, stage_key
from limner.training.dual.pairs import DestylizeStage, RefineStage, Setting, choose_evenly
from limner.training.dual.sampler import SamplerStage
from limner.training.dual.stage import OnStep, Stage, folder_of, play, resume
from limner.training.dual.transfer import (
    StructureStage,
    StyleStage,
    copy_for_average,
    extrinsic_state,
    load_extrinsic,
)
from limner.training.gan.options import CHANNEL_TABLES, GanOptions
from limner.training.gan.training import GanTraining, build_run
from limner.training.run import Clock, Runtime

PROBE = 32
TUNED_FILE, DONE_FILE = "model.safetensors", "done.json"
OnStage = Callable[[str, bool], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """The networks that the command works with.

    Attributes:
        base: generator of faces.
        base_name: its name, for the model's file.
        trunk: Lite0, for the discriminator's heads.
        eyes: distances of images.
        discriminator: of the base; None where it has none.
        encoder: compact encoder of the base; None to search codes.
        tuned: the base fine-tuned on the pictures; None to do it.
    """

    base: Generator
    base_name: str
    trunk: nn.Module
    eyes: Eyes
    discriminator: Discriminator | None = None
    encoder: Any = None
    tuned: Generator | None = None


class DualTraining:
    """The command on disk: ``OUT/1-tune`` to ``OUT/6-sampler``, ``options.json``, ``model.safetensors``.

    Args:
        options: of the command.
        runtime: device and arithmetic.
        networks: what it works with.

    Raises:
        OptionError: fewer than two pictures, or ones that cannot be found.
        KeyMismatchError: the fine-tuned generator is not of the base's kind.
    """

    def __init__(self, options: DualTrainOptions, runtime: Runtime, networks: Networks):
        options = options.scaled()
        self.options, self.runtime, self.networks = options, runtime, networks
        self.out = Path(options.out)
        base = networks.base.to(runtime.device).eval().requires_grad_(False)
        pictures = PictureSet(options.images, base.resolution, select=options.select, what="images")
        if len(pictures) < 2:
            raise OptionError(
                f"images {', '.join(pictures.counts)}: {len(pictures)} picture, expected at least two"
            )
        if networks.tuned is not None and networks.tuned.config() != base.config():
            raise KeyMismatchError(
                f"tuned is no fine-tuned {networks.base_name}: its sizes are {networks.tuned.config()}, "
                f"expected {base.config()}"
            )
        chosen = choose_evenly(len(pictures), options.pictures)
        self.setting = Setting(options, runtime, base, networks.eyes, pictures, chosen, networks.encoder)
        self.faces = None
        if options.source:
            self.faces = PictureSet(
                options.source, base.resolution, select=options.source_select, what="source"
            )
        self.keys = self._keys()
        self.clock = Clock(limit_s=options.seconds, save_s=options.save_seconds)

    def _keys(self) -> dict[str, str]:
        """Return the key of every stage: of its options and all that it starts from."""
        networks, found = self.networks, hashlib.sha256()
        found.update(deltas.digest(networks.base).encode())
        # Hashed in place: a copy would double the memory.
        found.update(self.setting.pictures.pixels.view(-1).numpy().data)
        found.update(str(networks.eyes).encode())
        for extra in (networks.tuned, networks.encoder and networks.encoder.core):
            found.update(deltas.digest(extra).encode() if extra is not None else b"-")
        if self.faces is not None:
            found.update(self.faces.pixels.view(-1).numpy().data)
        before, keys = found.hexdigest(), {}
        for stage in STAGES:
            keys[stage] = stage_key(self.options, stage, before)
            lengths = [getattr(self.options, name) for name in sorted(LENGTHS) if name.startswith(stage)]
            before = json.dumps([keys[stage], lengths])
        return keys

    def run(self, *, on_stage: OnStage | None = None, on_step: OnStep | None = None) -> bool:
        """Run all stages up to ``until``; return whether that was reached.

        Args:
            on_stage: called with a stage's name and whether it is over already, before it is played.
            on_step: called after every step with the stage and its figures.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with replacing(self.out / "options.json") as temporary:
            temporary.write_text(json.dumps(to_mapping(self.options), indent=1) + "\n", encoding="utf-8")
        last = STAGES.index(self.options.until)
        say = on_stage or (lambda name, over: None)
        with self.clock.signals():
            tuned = self._tune(say, on_step)
            if tuned is None or last == 0:
                return tuned is not None
            found = DestylizeStage(self.setting, tuned, key=self.keys["destylize"])
            if not self._play(found, say, on_step) or last == 1:
                return found.finished
            dual = self.start_model()
            average = copy_for_average(dual)
            structure = StructureStage(
                self.setting,
                dual,
                average,
                self.start_adversary(),
                faces=self.faces,
                key=self.keys["structure"],
            )
            if not self._play(structure, say, on_step):
                return False
            self._export(average, found.codes)
            if last == 2:
                return True
            # The players of the next stage start from these; the averaged path goes on from the averaged one.
            judge = self.start_adversary()
            judge.load_network({k: v.clone() for k, v in structure.adversary.network_state().items()})
            style = StyleStage(self.setting, dual, average, judge, codes=found.codes, key=self.keys["style"])
            over = self._play(style, say, on_step)
            self._export(average, found.codes)
            if not over or last == 3:
                return over
            return self._codes_and_sampler(average, found.codes, say, on_step)

    def _codes_and_sampler(
        self, average: DualGenerator, codes: dict[str, Tensor], say: OnStage, on_step: OnStep | None
    ) -> bool:
        """Run the last two stages."""
        average.requires_grad_(False).eval()
        refine = RefineStage(self.setting, average, codes, key=self.keys["refine"])
        if not self._play(refine, say, on_step):
            return False
        self._export(average, codes, refined=refine.refined)
        if self.options.until == "refine":
            return True
        sampler = SamplerStage(self.setting, average, refine.refined, key=self.keys["sampler"])
        over = self._play(sampler, say, on_step)
        self._export(average, codes, refined=refine.refined, sampler=sampler.average)
        return over

    def _play(self, stage: Stage, say: OnStage, on_step: OnStep | None) -> bool:
        resume(stage, self.out, self.runtime)
        say(stage.name, stage.finished)
        return play(
            stage,
            self.out,
            self.runtime,
            clock=self.clock,
            seed=self.options.seed,
            sheet_s=self.options.sheet_seconds,
            on_step=on_step,
        )

    def start_model(self, options: DualTrainOptions | None = None) -> DualGenerator:
        """Return the model before any training: colour transfer by initialisation.

        Args:
            options: None for those of the command.
        """
        options = options or self.options
        dual = DualGenerator.around(
            self.setting.base, rank=options.rank or None, fine_blocks=options.fine_blocks
        )
        start_extrinsic(dual, seed=options.seed)
        if options.init:
            warm_start(dual, options.init)
        # One generator for all: it never changes.
        dual.generator = self.setting.base
        return dual

    def start_adversary(self) -> Adversary:
        networks, side = self.networks, self.setting.base.resolution
        pixels = self.setting.pictures.pixels[choose_evenly(len(self.setting.pictures), PROBE)]
        return make_adversary(
            self.options,
            resolution=side,
            trunk=networks.trunk,
            pictures=pixels.to(self.runtime.device).float() / 127.5 - 1,
            discriminator=copy.deepcopy(networks.discriminator),
            channels=dict(self.setting.base.synthesis.channels),
        )

    def _tune(self, say: OnStage, on_step: OnStep | None) -> Generator | None:
        """Return the generator fine-tuned on the pictures, None where time is up."""
        if self.networks.tuned is not None:
            say("tune", True)
            return self.networks.tuned.to(self.runtime.device).eval().requires_grad_(False)
        folder = folder_of(self.out, 1, "tune")
        done = folder / DONE_FILE
        mark = {"key": self.keys["tune"], "kimg": self.options.tune_kimg}
        if done.exists():
            found = json.loads(done.read_text(encoding="utf-8"))
            if found["key"] != mark["key"]:
                raise KeyMismatchError(
                    f"{folder} was made with other options, pictures or networks; remove {self.out} to make it anew, "
                    "or give another out folder"
                )
            if found["kimg"] >= mark["kimg"]:
                say("tune", True)
                return self._tuned(folder)
        say("tune", False)
        training = self._tuning(folder)
        training.setup()
        show = (
            None
            if on_step is None
            else lambda record: on_step(_TuneStage(training, self.keys["tune"]), record)
        )
        finished = training.fit(show)
        training.validate()
        if not finished:
            return None
        with replacing(done) as temporary:
            temporary.write_text(json.dumps(mark) + "\n", encoding="utf-8")
        return self._tuned(folder)

    def _tuned(self, folder: Path) -> Generator:
        tuned = checkpoints.load(folder / TUNED_FILE, parts=("generator",)).generator
        assert tuned is not None
        return tuned.to(self.runtime.device).eval().requires_grad_(False)

    def _tuning(self, folder: Path) -> GanTraining:
        """Return the training of the first stage."""
        options, base = self.options, self.setting.base
        left = max(1.0, options.seconds - self.clock.seconds) if options.seconds else 0.0
        settings = GanOptions(
            data=options.images,
            select=options.select,
            out=str(folder),
            resolution=base.resolution,
            channels=table_of(base),
            w_dim=base.w_dim,
            mapping_depth=len(base.mapping.layers),
            discriminator=options.discriminator,
            kimg=options.tune_kimg,
            seconds=left,
            batch_size=options.tune_batch,
            lr_g=options.tune_lr,
            lr_d=options.tune_lr,
            decay_kimg=options.tune_kimg / 2,
            ema_kimg=0.5,
            ema_rampup=0.2,
            moment_weight=12.0,
            feature_resolution=options.feature_resolution,
            augment="diff",
            augment_p=options.augment_p,
            r1_gamma=options.r1_gamma,
            d_reg_interval=options.d_reg_interval,
            freeze_d=3 if options.discriminator == "stylegan2" else 0,
            freeze_g=options.tune_freeze,
            warmup_kimg=min(0.3, options.tune_kimg / 10) if options.discriminator == "projected" else 0.0,
            mirror=options.mirror,
            precision=options.precision,
            seed=options.seed,
            save_seconds=options.save_seconds,
            sheet_kimg=max(options.tune_kimg / 6, 0.001),
            metric_samples=0,
        )
        parent = self.networks.discriminator
        run = build_run(
            settings,
            self.runtime,
            trunk=self.networks.trunk,
            parent=base,
            parent_discriminator=parent.state_dict()
            if parent and options.discriminator == "stylegan2"
            else None,
        )
        return GanTraining(run, export=self._export_tuned)

    def _export_tuned(self, run: Any, path: Path, figures: dict[str, Any]) -> None:
        about = {
            "command": "train dual",
            "stage": "tune",
            "options": to_mapping(run.options),
            "images": run.images,
        }
        metadata = {"provenance": about, "licence": "unknown"}
        checkpoints.save(Checkpoint(generator=run.ema, metadata=metadata), path)

    def _export(
        self,
        average: DualGenerator,
        codes: dict[str, Tensor],
        *,
        refined: Tensor | None = None,
        sampler: Any = None,
    ) -> None:
        """Write the model as far as it is."""
        names = self.setting.names
        kinds = {"extrinsic": codes["extrinsic"], "intrinsic": codes["intrinsic"]}
        kinds |= {} if refined is None else {"refined": refined}
        named = {kind: dict(zip(names, values.cpu(), strict=True)) for kind, values in kinds.items()}
        provenance = {
            "command": "train dual",
            "base": {"name": self.networks.base_name, "digest": deltas.digest(self.setting.base)},
            "losses": str(self.networks.eyes),
            "encoder": "none" if self.networks.encoder is None else "compact",
            "start_seed": self.options.seed,
            "learned_from": self.setting.pictures.counts,
            "options": to_mapping(self.options),
        }
        dual = copy.deepcopy(average).eval()
        checkpoint = Checkpoint(
            generator=dual.generator,
            dual=dual,
            sampler=sampler,
            codes=named,
            metadata={"provenance": provenance, "licence": "unknown"},
        )
        # Whole precision: half of it would hide the small changes that the bundled file is made of.
        checkpoints.save(checkpoint, self.out / "model.safetensors")


def warm_start(dual: DualGenerator, init: str) -> None:
    """Give a model the extrinsic path of an earlier one, also of one with another base.

    Raises:
        KeyMismatchError, ShapeError: the earlier model has other sizes.
        CheckpointError: it is no DualStyleGAN.
    """
    path = zoo.resolve(init)
    if dual_child.detect(checkpoints.open_source(path)):
        dual_child.read_extrinsic(path, dual)
        return
    earlier = checkpoints.load(path, parts=("dual",)).dual
    if earlier is None:
        raise CheckpointError(f"{init} holds no DualStyleGAN to start from")
    if earlier.extra != dual.extra or earlier.generator.config() != dual.generator.config():
        raise KeyMismatchError(
            f"{init} has an extrinsic path of {earlier.extra}, expected {dual.extra}, and generators of one size"
        )
    load_extrinsic(dual, extrinsic_state(earlier))


class _TuneStage(Stage):
    """How far the first stage is, for those who watch."""

    name, number = "tune", 1

    def __init__(self, training: GanTraining, key: str):
        run = training.run
        super().__init__(total=-(-round(run.options.kimg * 1000) // run.options.batch_size), key=key)
        self.images_per_step, self.done = run.options.batch_size, run.step


def table_of(generator: Generator) -> str:
    """Return the name of a generator's table of channels.

    Raises:
        OptionError: it has none of those that can be trained.
    """
    own = dict(generator.synthesis.channels)
    for name, table in CHANNEL_TABLES.items():
        if {size: width for size, width in table.items() if size <= generator.resolution} == own:
            return name
    raise OptionError(
        f"base has channels {own}, as none of {', '.join(CHANNEL_TABLES)}; fine-tune it with its own program and "
        "name the result: --tuned FILE"
    )
