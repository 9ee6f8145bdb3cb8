"""Pairs for a DualStyleGAN: the face behind every portrait, and the codes of both; later, better codes of the styles.

Source: Yang et al. 2022 (arXiv 2203.13248), sections 3.1 and 3.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import media
from limner.inversion import InversionOptions, invert
from limner.latent import Latent
from limner.nn.compact import CompactEncoder
from limner.nn.dualstylegan import DualGenerator
from limner.nn.stylegan2 import Generator
from limner.stylization.destylize import destylize
from limner.stylization.options import DestylizeOptions
from limner.training.data import PictureSet
from limner.training.dual.eyes import PUBLISHED_STYLE, Eyes
from limner.training.dual.options import DualTrainOptions
from limner.training.dual.stage import Stage
from limner.training.run import Runtime, StepRandom

ENCODER_STEPS = 3
MAPPING_STEPS = 150
SHOWN = 8
CODES = ("extrinsic", "fitted", "intrinsic")


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What all stages share.

    Attributes:
        options: of the command.
        runtime: device and arithmetic.
        base: generator of faces; frozen.
        eyes: distances of images.
        pictures: of the style, all of them.
        chosen: indices of those that get a code.
        encoder: of the base; None where there is none.
    """

    options: DualTrainOptions
    runtime: Runtime
    base: Generator
    eyes: Eyes
    pictures: PictureSet
    chosen: list[int]
    encoder: CompactEncoder | None = None

    def portraits(self, numbers: Tensor | list[int]) -> Tensor:
        """Return portraits by their place among the chosen, (B, 3, R, R), [-1, 1]."""
        places = [self.chosen[int(number)] for number in numbers]
        return self.pictures.pixels[places].to(self.runtime.device).float() / 127.5 - 1

    @property
    def names(self) -> list[str]:
        """Names of the chosen portraits, as the styles are called: the file's name, or its whole path if need be."""
        paths = [self.pictures.names[place] for place in self.chosen]
        short = [path.replace("\\", "/").rpartition("/")[2] for path in paths]
        return short if len(set(short)) == len(short) else paths


def choose_evenly(count: int, wanted: int) -> list[int]:
    """Return ``wanted`` of ``count`` places, evenly spread; all for 0 or too many."""
    if not wanted or wanted >= count:
        return list(range(count))
    return [place * count // wanted for place in range(wanted)]


def nearest_z_plus(generator: Generator, w_plus: Tensor, *, steps: int = MAPPING_STEPS) -> Tensor:
    """Return the z+ (B, L, z_dim) whose w+ is nearest to the given one, by a search through the mapping network alone.

    Numbers of z have a mean square of 1 per row, as the mapping network normalises them anyway.
    """
    z = torch.zeros(*w_plus.shape[:2], generator.z_dim, device=w_plus.device)
    # From the best of some random points: z has no gradient at zero, and the network is far from linear.
    tries = torch.randn(256, generator.z_dim, generator=torch.Generator().manual_seed(0)).to(z)
    with torch.no_grad():
        reached = generator.mapping(tries)
        z = tries[torch.cdist(w_plus.flatten(0, 1), reached).argmin(1)].view_as(z).clone()
    z.requires_grad_()
    optimiser = torch.optim.Adam([z], 0.05)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * min(1.0, 2 * (1 - step / steps))
        loss = (generator.map_z_plus(z) - w_plus).square().mean((1, 2)).sum()
        (z.grad,) = torch.autograd.grad(loss, z)
        optimiser.step()
    with torch.no_grad():
        return z * torch.rsqrt(z.square().mean(2, keepdim=True) + 1e-8)


def make_encode(setting: Setting) -> Callable[[Tensor], Tensor]:
    """Return images -> z+ codes of the base: the encoder's, carried over to z+, then searched on; or searched alone."""
    options, base = setting.options, setting.base
    steps = options.destylize_code_steps

    @torch.enable_grad()  # searched also from where nothing else needs a gradient
    def encode(image: Tensor) -> Tensor:
        start = None
        if setting.encoder is not None:
            start = nearest_z_plus(base, setting.encoder.encode(base, image, steps=ENCODER_STEPS)[-1])
            if not steps:
                return start
        search = InversionOptions(
            method="z+",
            steps=max(1, steps),
            init="mean" if start is None else "given",
            seed=options.seed,
            fit_noise=False,
        )
        init = None if start is None else Latent("z+", start)
        found = invert(base, image, search, perceptual=setting.eyes.perceptual, init=init)
        return found.latent.tensor

    return encode


class DestylizeStage(Stage):
    """One batch of portraits per step.

    Args:
        setting: what all stages share.
        tuned: the base fine-tuned on the portraits.
        key: see `Stage`.
    """

    name, number = "destylize", 2

    def __init__(self, setting: Setting, tuned: Generator, *, key: str):
        options = setting.options
        size = options.destylize_batch
        super().__init__(total=-(-len(setting.chosen) // size), key=key)
        self.setting, self.tuned, self.images_per_step = setting, tuned, size
        self.encode = make_encode(setting)
        self.search = DestylizeOptions(
            steps=options.destylize_steps,
            learning_rate=options.destylize_lr,
            perceptual=options.destylize_perceptual,
            identity=options.destylize_identity,
            spread=options.destylize_spread,
            truncation=options.destylize_truncation,
            color_lock=options.destylize_color_lock,
        )
        self.codes: dict[str, Tensor] = {}
        self.shown: dict[str, Tensor] = {}

    def step(self, step: int, random: StepRandom) -> dict[str, float]:
        """Find the faces behind one batch of portraits."""
        start = (step - 1) * self.images_per_step
        numbers = list(range(start, min(start + self.images_per_step, len(self.setting.chosen))))
        portraits = self.setting.portraits(numbers)
        eyes = self.setting.eyes
        result = destylize(
            self.setting.base,
            self.tuned,
            portraits,
            self.search,
            encode=self.encode,
            perceptual=eyes.perceptual,
            identity=eyes.identity if self.search.identity else None,
            embed=self._from_code if self.setting.options.destylize_embed == "code" else None,
        )
        self._keep(self.codes, {name: getattr(result, name) for name in CODES})
        if len(self.shown.get("face", ())) < SHOWN:
            self._keep(self.shown, {"stylized": result.stylized, "face": result.face})
        with torch.no_grad():
            again = self.setting.base.synthesis(self.setting.base.map_z_plus(result.intrinsic)).clamp(-1, 1)
            figures = {
                "embedding": eyes.perceptual(again, result.face).mean().item(),
                "identity_portrait_face": eyes.identity(result.face, portraits).mean().item(),
            }
        return figures | {name: float(np.mean(values)) for name, values in result.figures.items()}

    @torch.enable_grad()
    def _from_code(self, face: Tensor, w_plus: Tensor) -> Tensor:
        return nearest_z_plus(self.setting.base, w_plus.detach())

    @staticmethod
    def _keep(store: dict[str, Tensor], found: dict[str, Tensor]) -> None:
        for name, values in found.items():
            store[name] = torch.cat([store[name], values]) if name in store else values

    def state(self) -> dict[str, Any]:
        """Return codes and the pictures for the sheet."""
        return {"codes": dict(self.codes), "shown": dict(self.shown)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.codes, self.shown = dict(state["codes"]), dict(state["shown"])

    @torch.no_grad()
    def preview(self) -> np.ndarray | None:
        """Show portrait, its picture by the fine-tuned generator, the face, and the face's embedding."""
        if not self.codes:
            return None
        base = self.setting.base
        count = min(SHOWN, len(self.shown["face"]))
        again = base.synthesis(base.map_z_plus(self.codes["intrinsic"][:count])).clamp(-1, 1)
        rows = [
            self.setting.portraits(list(range(count))),
            self.shown["stylized"][:count],
            self.shown["face"][:count],
            again,
        ]
        labels = ["portrait", "fitted", "face", "embedded"]
        return media.make_sheet([media.to_pixels(row) for row in rows], labels)


class RefineStage(Stage):
    """Better codes of the styles: one batch of styles per step, each searched by itself.

    Args:
        setting: what all stages share.
        dual: the averaged model; frozen.
        codes: of the portraits, see `DestylizeStage`.
        key: see `Stage`.

    Differs: the stored noise maps stay as they are, so that what is found lies in the code.
    """

    name, number = "refine", 5

    def __init__(self, setting: Setting, dual: DualGenerator, codes: dict[str, Tensor], *, key: str):
        size = setting.options.refine_batch
        super().__init__(total=-(-len(setting.chosen) // size), key=key)
        self.setting, self.dual, self.codes, self.images_per_step = setting, dual, codes, size
        self.refined = codes["extrinsic"][:0]

    def step(self, step: int, random: StepRandom) -> dict[str, float]:
        """Search the codes of one batch of styles."""
        options, eyes, dual = self.setting.options, self.setting.eyes, self.dual
        start = (step - 1) * self.images_per_step
        numbers = range(start, min(start + self.images_per_step, len(self.setting.chosen)))
        portraits = self.setting.portraits(list(numbers))
        begin = self.codes["extrinsic"][start : numbers.stop]
        parts = [
            part.clone().requires_grad_()
            for part in begin.split([dual.structure_rows, begin.shape[1] - dual.structure_rows], 1)
        ]
        rates = (options.refine_lr_structure, options.refine_lr_color)
        optimiser = torch.optim.Adam(
            [{"params": [part], "lr": rate} for part, rate in zip(parts, rates, strict=True)]
        )
        with torch.no_grad():
            intrinsic = dual.generator.map_z_plus(self.codes["intrinsic"][start : numbers.stop])
            wanted = eyes.look(portraits)
        losses: list[float] = []
        for _ in range(options.refine_steps + 1):
            image = dual(intrinsic, dual.generator.map_z_plus(torch.cat(parts, 1)))
            maps = eyes.look(image)
            loss = eyes.compare(maps, wanted, image, portraits, PUBLISHED_STYLE)
            loss = (loss + eyes.contextual(maps, wanted)).sum()
            losses.append(loss.item() / len(portraits))
            if len(losses) > options.refine_steps:
                break
            for part, grad in zip(parts, torch.autograd.grad(loss, parts), strict=True):
                part.grad = grad
            optimiser.step()
        self.refined = torch.cat([self.refined, torch.cat(parts, 1).detach()])
        return {"loss_before": losses[0], "loss": losses[-1]}

    def state(self) -> dict[str, Any]:
        """Return the codes so far."""
        return {"refined": self.refined}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.refined = state["refined"]

    @torch.no_grad()
    def preview(self) -> np.ndarray | None:
        """Show portraits, what the model made of them before, and now."""
        count = min(SHOWN, len(self.refined))
        if not count:
            return None
        dual, space = self.dual, self.dual.generator
        intrinsic = space.map_z_plus(self.codes["intrinsic"][:count])
        rows = [self.setting.portraits(list(range(count)))]
        for code in (self.codes["extrinsic"], self.refined):
            rows.append(dual(intrinsic, space.map_z_plus(code[:count])).clamp(-1, 1))
        return media.make_sheet([media.to_pixels(row) for row in rows], ["portrait", "before", "refined"])
