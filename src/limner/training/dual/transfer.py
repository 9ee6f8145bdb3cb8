"""Progressive fine-tuning of a DualStyleGAN: structure transfer on faces, then style transfer on the portraits.

The intrinsic path never changes.  Colour transfer needs no training: `limner.nn.dualstylegan.DualGenerator` starts with
colour layers that are the identity.

Source: Yang et al. 2022 (arXiv 2203.13248), section 3.3.
Differs: the stored noise maps are used; all extrinsic parts are trained, colour layers included, and all are averaged.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limner import media
from limner.nn.dualstylegan import DualGenerator
from limner.nn.low_rank import LowRankConv2d, LowRankLinear
from limner.nn.precision import full_precision
from limner.nn.transport import FrechetPull, summaries
from limner.training.data import PictureSet
from limner.training.dual.adversary import Adversary
from limner.training.dual.eyes import PUBLISHED_STYLE
from limner.training.dual.pairs import ENCODER_STEPS, Setting
from limner.training.dual.stage import Stage
from limner.training.run import StepRandom, update_average

EXTRINSIC = ("style", "structure", "fine", "color")
LOW_RANK = (LowRankConv2d, LowRankLinear)
COLOR_ROW = 8
"""Rows from here on of a portrait's face are drawn anew: their colours do not matter."""
SHOWN = 6
PULL_POPULATION, MEASURED_BATCH = 2000, 16
"""Painted faces over which statistics for the Fréchet distance run, about; images that are measured at a time."""


def copy_for_average(dual: DualGenerator) -> DualGenerator:
    """Return a copy of the extrinsic path around the same intrinsic one; frozen."""
    memo: dict[int, Any] = {id(dual.generator): dual.generator}
    return copy.deepcopy(dual, memo).requires_grad_(False).eval()


def extrinsic_state(dual: DualGenerator) -> dict[str, Tensor]:
    """Return the tensors of the extrinsic path."""
    return {name: value for name, value in dual.state_dict().items() if not name.startswith("generator.")}


def load_extrinsic(dual: DualGenerator, state: dict[str, Tensor]) -> None:
    """Take back what `extrinsic_state` returned; raises ``RuntimeError`` on any difference."""
    own = {f"generator.{name}": value for name, value in dual.generator.state_dict().items()}
    dual.load_state_dict(own | state)


def boundary(dual: DualGenerator, share: float, short: float) -> int:
    """Return how many rows of the mixed face come from the first code: all of structure, then one less, then two less.

    These are the published l = 7, 6, 5: the rows up to 32 px, all but the last of them, those up to 16 px.

    Args:
        dual: the model.
        share: how much of the stage is over, 0 to 1.
        short: share of either of the first two.
    """
    less = 0 if share < short else 1 if share < 2 * short else 2
    return max(1, dual.structure_rows - less)


class TransferStage(Stage):
    """What structure and style transfer share: both versions of the model, the adversary, one optimiser step.

    Args:
        setting: what all stages share.
        dual: the model as trained.
        average: the averaged one, around the same intrinsic path.
        adversary: plays against it.
        kimg: length.
        key: see `Stage`.
    """

    def __init__(
        self,
        setting: Setting,
        dual: DualGenerator,
        average: DualGenerator,
        adversary: Adversary,
        *,
        kimg: float,
        key: str,
    ):
        size = setting.options.batch_size
        super().__init__(total=-(-round(kimg * 1000) // size), key=key)
        self.setting, self.dual, self.average, self.adversary = setting, dual, average, adversary
        self.images_per_step = size
        dual.requires_grad_(True)
        dual.generator.requires_grad_(False)
        # With its small learning rate this network hardly moves; where size counts it stays as it is made from a number.
        dual.style.requires_grad_(dual.rank is None)
        self.parameters = [p for p in dual.parameters() if p.requires_grad]
        options = setting.options
        self.optimiser = torch.optim.Adam(self.parameters, options.lr, (0.0, options.beta2))

    def losses(
        self, step: int, random: StepRandom
    ) -> tuple[dict[str, tuple[float, Tensor]], dict[str, float]]:
        """Return the losses with their weights, and figures of the adversary."""
        raise NotImplementedError

    def step(self, step: int, random: StepRandom) -> dict[str, float]:
        """Train extrinsic path and adversary on one batch."""
        options = self.setting.options
        with self.setting.runtime.autocast():
            terms, record = self.losses(step, random)
        total = torch.stack([weight * value.float() for weight, value in terms.values()]).sum()
        for parameter, grad in zip(
            self.parameters, torch.autograd.grad(total, self.parameters, allow_unused=True), strict=True
        ):
            parameter.grad = None if grad is None else torch.nan_to_num(grad, nan=0, posinf=1e5, neginf=-1e5)
        for group in self.optimiser.param_groups:
            group["lr"] = options.lr * self.warmth(step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        for part in EXTRINSIC:
            update_average(
                getattr(self.average, part),
                getattr(self.dual, part),
                images=step * self.images_per_step,
                batch=self.images_per_step,
                half_kimg=options.ema_kimg,
                ramp=options.ema_rampup,
            )
        return {"loss": total.item(), **{name: value.item() for name, (_, value) in terms.items()}, **record}

    def warmth(self, step: int) -> float:
        """Return how far the stage's warm-up is at a step, above 0 to 1."""
        return min(1.0, step / max(1.0, self.setting.options.warmup * self.total))

    def state(self) -> dict[str, Any]:
        """Return both versions of the extrinsic path, the optimiser and the adversary."""
        return {
            "dual": extrinsic_state(self.dual),
            "average": extrinsic_state(self.average),
            "optimiser": self.optimiser.state_dict(),
            "adversary": self.adversary.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        load_extrinsic(self.dual, state["dual"])
        load_extrinsic(self.average, state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.adversary.load_state(state["adversary"])

    def draw_faces(self, count: int, random: StepRandom) -> Tensor:
        """Return w+ of random faces, (count, L, w_dim)."""
        base = self.setting.base
        with torch.no_grad():
            return base.broadcast(base.mapping(random.normal(count, base.z_dim)))


class StructureStage(TransferStage):
    """On faces: the structure of one code under that of another, as the plain generator mixes them.

    Args:
        faces: of the base's kind, that the adversary sees; None for the base's own.
        others: see `TransferStage`.
    """

    name, number = "structure", 3

    def __init__(self, setting: Setting, *others: Any, faces: PictureSet | None = None, key: str):
        super().__init__(setting, *others, kimg=setting.options.structure_kimg, key=key)
        self.faces = faces

    def mixed(self, first: Tensor, second: Tensor, step: int) -> Tensor:
        """Return w+ whose first rows are the one's and whose others are the other's."""
        rows = boundary(self.dual, (step - 1) / max(1, self.total), self.setting.options.structure_short)
        return torch.cat([first[:, :rows], second[:, rows:]], 1)

    def losses(
        self, step: int, random: StepRandom
    ) -> tuple[dict[str, tuple[float, Tensor]], dict[str, float]]:
        """Be like the mixed face, and like faces."""
        options, base, size = self.setting.options, self.setting.base, self.images_per_step
        intrinsic, extrinsic = self.draw_faces(2 * size, random).split(size)
        with torch.no_grad():
            encoder, every = self.setting.encoder, options.structure_encoded_interval
            target = base.synthesis(self.mixed(intrinsic, extrinsic, step)).float()
            if encoder is not None and every and step % every == 0:
                # Codes of pictures, not only those that the mapping network gives, are to be understood as styles.
                extrinsic = encoder.encode(base, base.synthesis(extrinsic).clamp(-1, 1), steps=ENCODER_STEPS)[
                    -1
                ]
                target = base.synthesis(self.mixed(intrinsic, extrinsic, step)).float()
            real = self.draw_real(size, random) if options.structure_adversarial else target
        fake = self.dual(intrinsic, extrinsic).float()
        near = self.setting.eyes.perceptual(fake, target).mean()
        rows = boundary(self.dual, (step - 1) / max(1, self.total), options.structure_short)
        terms = {"perceptual": (options.structure_perceptual, near)}
        if not options.structure_adversarial:
            return terms, {"rows": float(rows)}
        own, record = self.adversary.judge(fake, real, random, step)
        terms["adversarial"] = options.structure_adversarial, own
        return terms, record | {"rows": float(rows)}

    def draw_real(self, count: int, random: StepRandom) -> Tensor:
        """Return faces for the adversary."""
        if self.faces is not None:
            mirror = self.setting.options.mirror
            return self.faces.draw(count, random.cpu, mirror=mirror, device=self.setting.runtime.device)
        return self.setting.base.synthesis(self.draw_faces(count, random)).float()

    @torch.no_grad()
    def preview(self) -> np.ndarray:
        """Show faces, style faces, the plain generator's mixture and the model's picture."""
        random = StepRandom(0, 0, 0, self.setting.runtime.device)
        base = self.setting.base
        first, second = self.draw_faces(SHOWN, random), self.draw_faces(SHOWN, random)
        mixed = self.mixed(first, second, self.total)
        images = [
            base.synthesis(first),
            base.synthesis(second),
            base.synthesis(mixed),
            self.average(first, second),
        ]
        rows = [media.to_pixels(image.clamp(-1, 1)) for image in images]
        return media.make_sheet(rows, ["content", "style", "wanted", "made"])


class StyleStage(TransferStage):
    """On portraits: every portrait from its face and its style, and random faces in its style.

    Args:
        codes: of the portraits, see `limner.training.dual.pairs.DestylizeStage`.
        others: see `TransferStage`.
    """

    name, number = "style", 4

    def __init__(self, setting: Setting, *others: Any, codes: dict[str, Tensor], key: str):
        super().__init__(setting, *others, kimg=setting.options.style_kimg, key=key)
        self.codes = codes
        self.pull: FrechetPull | None = None
        if setting.options.style_frechet:
            with torch.no_grad():
                image = setting.portraits([0])
                widths = [vectors.shape[1] for vectors in self.summaries(image)]
            self.pull = FrechetPull(widths=widths, population=PULL_POPULATION).to(setting.runtime.device)

    def summaries(self, image: Tensor, maps: list[Tensor] | None = None) -> list[Tensor]:
        """Return what the Fréchet distance is taken of, of images (B, 3, R, R)."""
        return summaries(self.setting.eyes.look(image) if maps is None else maps, image)

    @torch.no_grad()
    def measure_pictures(self, random: StepRandom) -> None:
        """Measure all pictures for the Fréchet distance, and the painted faces that it begins with."""
        pull, pictures, size = self.pull, self.setting.pictures, MEASURED_BATCH
        if pull is None or pull.ready:
            return
        real: list[list[Tensor]] = []
        for part in pictures.pixels.split(size):
            image = part.to(self.setting.runtime.device).float() / 127.5 - 1
            real.append(self.summaries(image))
            if self.setting.options.mirror:
                real.append(self.summaries(image.flip(3)))
        pull.set_real([torch.cat(parts) for parts in zip(*real, strict=True)])
        for _ in range(0, PULL_POPULATION // 4, size):
            chosen = torch.randint(len(self.setting.chosen), (size,), generator=random.cpu)
            styles = self.setting.base.map_z_plus(self.codes["extrinsic"][chosen])
            pull.observe(self.summaries(self.dual(self.draw_faces(size, random), styles).float()))

    def state(self) -> dict[str, Any]:
        """Add what the Fréchet distance knows."""
        return super().state() | ({"pull": self.pull.state_dict()} if self.pull else {})

    def load_state(self, state: dict[str, Any]) -> None:
        """Take it back too."""
        super().load_state(state)
        if self.pull:
            self.pull.load_state_dict(state["pull"])

    def losses(
        self, step: int, random: StepRandom
    ) -> tuple[dict[str, tuple[float, Tensor]], dict[str, float]]:
        """Be like the portraits: as a domain, in style, and, for its own face, like the portrait itself."""
        options, base, size = self.setting.options, self.setting.base, self.images_per_step
        self.measure_pictures(random)
        eyes, paired = self.setting.eyes, (step - 1) % options.style_pair_interval == 0
        chosen = torch.randint(len(self.setting.chosen), (size,), generator=random.cpu)
        exemplars = self.setting.portraits(chosen)
        with torch.no_grad():
            if paired:
                z_plus = self.codes["intrinsic"][chosen].clone()
                z_plus[:, COLOR_ROW:] = random.normal(*z_plus[:, COLOR_ROW:].shape)
                intrinsic = base.map_z_plus(z_plus)
            else:
                intrinsic = self.draw_faces(size, random)
            extrinsic = base.map_z_plus(self.codes["extrinsic"][chosen])
            extrinsic = extrinsic + options.style_jitter * random.normal(*extrinsic.shape)
            plain = base.synthesis(intrinsic).clamp(-1, 1)
            wanted = eyes.look(exemplars)
        fake = self.dual(intrinsic, extrinsic).float()
        maps = eyes.look(fake)
        terms: dict[str, tuple[float, Tensor]] = {
            "contextual": (options.style_contextual, eyes.contextual(maps, wanted).mean()),
            "matching": (options.style_matching, eyes.matching(maps, wanted).mean()),
            "identity": (options.style_identity, eyes.identity(fake, plain).mean()),
            "residual": (options.style_residual, residual_size(self.dual)),
        }
        record: dict[str, float] = {}
        if options.style_adversarial:
            device = self.setting.runtime.device
            real = self.setting.pictures.draw(size, random.cpu, mirror=options.mirror, device=device)
            own, record = self.adversary.judge(fake, real, random, step)
            terms["adversarial"] = options.style_adversarial * self.warmth(step), own
        if self.pull:
            vectors = self.summaries(fake, maps)
            self.pull.observe([x.detach() for x in vectors])
            terms["frechet"] = options.style_frechet, self.pull(vectors)
        if paired:
            near = eyes.compare(maps, wanted, fake, exemplars, PUBLISHED_STYLE).mean()
            terms["perceptual"] = (options.style_perceptual, near)
        return {name: term for name, term in terms.items() if term[0]}, record

    @torch.no_grad()
    def preview(self) -> np.ndarray:
        """Show the exemplars, their reconstructions, and random faces in their styles."""
        base, count = self.setting.base, min(SHOWN, len(self.setting.chosen))
        places = [place * len(self.setting.chosen) // count for place in range(count)]
        extrinsic = base.map_z_plus(self.codes["extrinsic"][places])
        own = base.map_z_plus(self.codes["intrinsic"][places])
        faces = self.draw_faces(4, StepRandom(0, 0, 0, self.setting.runtime.device))
        rows: list[list[np.ndarray | None]] = [[None, *media.to_pixels(self.setting.portraits(places))]]
        rows.append([None, *media.to_pixels(self.average(own, extrinsic).clamp(-1, 1))])
        for face in faces[:, None]:
            image = torch.cat([base.synthesis(face), self.average(face.expand_as(extrinsic), extrinsic)])
            rows.append([*media.to_pixels(image.clamp(-1, 1))])
        return media.make_sheet(rows, ["exemplar", "again", *["face"] * len(faces)])


@full_precision
def residual_size(dual: DualGenerator) -> Tensor:
    """Return the sum of the norms of the residual blocks' parameters; a weight of low rank counts as the product."""
    blocks = nn.ModuleList([dual.structure, dual.fine])
    sizes = [block.size() for block in blocks.modules() if isinstance(block, LOW_RANK)]
    products = {id(p) for m in blocks.modules() if isinstance(m, LOW_RANK) for p in (m.reduce, m.expand)}
    sizes += [parameter.norm() for parameter in blocks.parameters() if id(parameter) not in products]
    return torch.stack(sizes).sum()
