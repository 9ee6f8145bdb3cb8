"""A game in which part of every batch is the training pictures themselves, embedded and generated again.

The adversarial loss alone says what is wrong with a picture, never what is missing.  Here an embedder looks at real
pictures, the generator has to give them back, and the mapping network learns the distribution of the embedded latents
by the energy distance.  The reconstructions are not judged: what the heads say would pull the embedder away from what
it sees.  So every training picture pulls at the generator directly, and the embedder costs next to nothing, for its
frozen trunk is the discriminator's.  docs/training.md says how far this has come.

Source: Székely and Rizzo 2013, "Energy statistics" (doi 10.1016/j.jspi.2013.03.018), definition 1; Larsen et al. 2016,
"Autoencoding beyond pixels using a learned similarity metric" (arXiv 1512.09300), section 2.3: the distance is one of
the discriminator's features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import OptionError
from limner.losses import energy_distance
from limner.nn.embedding import PictureEmbedder
from limner.nn.layers import at_least_float
from limner.training.gan.games import Batch, GanRun, ProjectedGame, draw_w_plus
from limner.training.run import StepRandom

BANK = 4096
"""Embedded latents that the mapping network compares itself with."""
LATENT_BATCH = 512
MAPPING_STEPS = 4
"""Steps of the mapping network for one of the synthesis network."""
MAPPING_RATE = 30
"""Its rate, in the embedder's; its weights are a hundred times as large, since they are stored without multiplier."""
GENTLE_IMAGES = 300
"""Reconstructions over which the embedder's learning rate rises."""


class EmbeddingGame(ProjectedGame):
    """`ProjectedGame` with reconstruction.

    Args:
        run: its options say how much of a batch is reconstructed (``reconstruct``) and how much that weighs.

    Raises:
        OptionError: fewer than two images of a batch on either side.
    """

    def __init__(self, run: GanRun):
        super().__init__(run)
        self.filled = self.lessons = 0
        for size in self.micro:
            count = round(size * run.options.reconstruct)
            if min(count, size - count) < 2:
                raise OptionError(
                    f"reconstruct {run.options.reconstruct:g} makes {count} of {size} images reconstructions and leaves "
                    f"{size - count}; at least 2 of each are needed: raise batch_size or batch_per_device"
                )
        options, G, device = run.options, run.G, run.runtime.device
        with torch.no_grad():
            random = StepRandom(options.seed, 0, 0, device)
            maps = self.trunk_maps(run.pictures.draw(64, random.cpu, mirror=False, device=device))
            w = G.mapping(random.normal(BANK, G.z_dim))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed + 1)
            self.embedder = PictureEmbedder(
                channels=[x.shape[1] for x in maps], side=maps[-1].shape[2], w_dim=G.w_dim
            ).to(device)
        self.embedder.calibrate(maps, w)
        self.bank = w.clone()
        self.base_lr |= {"E": options.lr_e, "M": MAPPING_RATE * options.lr_e}
        self.optimisers |= {
            "E": torch.optim.Adam(self.embedder.parameters(), options.lr_e, (0.5, 0.99)),
            "M": torch.optim.Adam(G.mapping.parameters(), self.base_lr["M"], (0.5, 0.99)),
        }

    def state(self) -> dict[str, Any]:
        """Add the embedder and the bank of latents."""
        return super().state() | {
            "embedder": self.embedder.state_dict(),
            "bank": self.bank,
            "filled": self.filled,
            "lessons": self.lessons,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them back too; a state of the game without reconstruction starts them anew."""
        if "embedder" not in state:
            fresh = {name: self.optimisers[name].state_dict() for name in ("E", "M")}
            super().load_state(state | fresh)
            return
        super().load_state(state)
        self.embedder.load_state_dict(state["embedder"])
        self.bank, self.filled, self.lessons = state["bank"], state["filled"], state["lessons"]

    def learns_alone(self) -> bool:
        """Whether the embedder still takes its first lessons, from generated images, the generator at rest."""
        return self.lessons < 1000 * self.run.options.embed_kimg

    @torch.no_grad()
    def trunk_maps(self, image: Tensor) -> list[Tensor]:
        """Return the trunk's last three maps of an image (B, 3, R, R)."""
        size = (self.run.options.feature_resolution,) * 2
        if image.shape[2:] != size:
            image = F.interpolate(image, size=size, mode="bilinear", antialias=size < image.shape[2:])
        return self.D.trunk(image.contiguous(memory_format=torch.channels_last))[-3:]

    def embed(self, image: Tensor) -> Tensor:
        """image (B, 3, R, R) -> w (B, w_dim)."""
        return at_least_float(self.embedder(image, self.trunk_maps(image)))

    def make_batch(self, size: int, random: StepRandom, *, gradients: bool) -> Batch:
        """Draw pictures; the first part of the generated images is meant to show the first of them."""
        run = self.run
        count = round(size * run.options.reconstruct)
        real = self.draw_pictures(size, random)
        with torch.set_grad_enabled(gradients):
            embedded = run.G.broadcast(self.embed(real[:count]))
            drawn = draw_w_plus(run.G, size - count, run.options.mixing, random)
            return self.look(real, torch.cat([embedded, drawn]), size - count, random)

    def generator_losses(self, batch: Batch) -> dict[str, tuple[float, Tensor]]:
        """Add reconstruction, and for the embedder what it can know of generated images."""
        options = self.run.options
        count = len(batch.real) - batch.drawn
        self._remember(batch.w[:count])
        image, target = batch.fake_maps[-1][:count], batch.real_maps[-1][:count]
        maps = zip(batch.fake_maps[:-1], batch.real_maps[:-1], strict=True)
        pixels = (image - target).abs().mean() + sum(
            (F.avg_pool2d(image - target, k)).abs().mean() for k in (4, 16)
        )
        features = torch.stack([(x[:count] - y[:count]).square().mean() for x, y in maps]).sum()
        losses = super().generator_losses(batch) | {
            "rec": (options.reconstruct_weight, features),
            "pixels": (3 * options.reconstruct_weight, pixels),
        }
        lesson = self._lesson(batch.fake[count:].detach(), batch.w[count:].detach())
        return losses | {"cycle": (options.cycle_weight, lesson)}

    def _lesson(self, image: Tensor, w: Tensor) -> Tensor:
        # What was generated from z has a known latent: the cheapest lesson there is.
        self.lessons += len(image)
        return ((self.embed(image) - w) / self.embedder.w_std).square().mean()

    def step(self, random: StepRandom) -> dict[str, float]:
        """One step of mapping network, heads, generator and embedder; at first of the embedder alone."""
        if self.learns_alone():
            return self._step_embedder(random)
        if not self.filled:  # another loss from here on, with gradients of another size
            self.optimisers["E"].state.clear()
        record = self._step_mapping(random) if self.filled > LATENT_BATCH else {}
        return record | super().step(random)

    def _step_embedder(self, random: StepRandom) -> dict[str, float]:
        G = self.run.G
        record = {"cycle": 0.0}
        for size in self.micro:
            with self.run.runtime.autocast():
                with torch.no_grad():
                    w = G.mapping(random.normal(size, G.z_dim))
                    image = G.synthesis(G.broadcast(w), "random", rng=random.local).float()
                loss = self._lesson(image, w) / len(self.micro)
            loss.backward()
            record["cycle"] += loss.item()
        self.update("E")
        return record

    def update(self, name: str) -> None:
        """Step the embedder along with the generator."""
        if name == "E" and not self.learns_alone():
            self.base_lr["E"] = self.run.options.lr_e * min(1.0, self.filled / GENTLE_IMAGES)
        super().update(name)
        if name == "G":
            self.update("E")

    def _remember(self, latents: Tensor) -> None:
        places = (torch.arange(len(latents)) + self.filled) % BANK
        self.bank[places] = latents.detach().float()
        self.filled += len(latents)

    def _step_mapping(self, random: StepRandom) -> dict[str, float]:
        """Pull mapped noise to the distribution of the embedded latents."""
        run, options = self.run, self.run.options
        if not options.latent_weight or not set(run.G.mapping.parameters()) & set(self.trained_parameters()):
            return {}
        run.G.mapping.requires_grad_(True)
        scale = self.embedder.w_std * math.sqrt(run.G.w_dim)
        distance = torch.zeros(())
        for _ in range(MAPPING_STEPS):
            chosen = torch.randint(min(self.filled, BANK), (LATENT_BATCH,), generator=random.cpu)
            mapped = run.G.mapping(random.normal(LATENT_BATCH, run.G.z_dim))
            distance = energy_distance(mapped / scale, self.bank[chosen] / scale)
            (options.latent_weight * distance).backward()
            self.update("M")
        return {"latents": distance.item()}
