"""The sampler of unseen styles: two small networks learn to turn random numbers into codes like the ones known.

Every round draws more random numbers than there are codes, gives each code the nearest of their images, and teaches the
network these pairs; no code is left out, so none of the styles can be forgotten.

Source: Hoshen et al. 2019, "Non-Adversarial Image Synthesis With Generative Latent Nearest Neighbors"
(arXiv 1812.08985), section 3, after Li and Malik 2018, "Implicit Maximum Likelihood Estimation" (arXiv 1809.09087).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from limner import media
from limner.nn.dualstylegan import DualGenerator, StyleSampler
from limner.training.dual.pairs import Setting
from limner.training.dual.stage import Stage
from limner.training.run import StepRandom, update_average

PARTS = ("structure", "color")
CHUNK = 2048
SHOWN = 6
AVERAGE_ROUNDS = 5.0


class SamplerStage(Stage):
    """One round of matching and learning per step.

    Args:
        setting: what all stages share.
        dual: the averaged model, for previews.
        codes: of the styles, z+ (N, L, z_dim).
        key: see `Stage`.
    """

    name, number = "sampler", 6

    def __init__(self, setting: Setting, dual: DualGenerator, codes: Tensor, *, key: str):
        options = setting.options
        super().__init__(total=options.sampler_epochs, key=key)
        self.setting, self.dual, self.codes = setting, dual, codes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            rows = dual.structure_rows
            sampler = StyleSampler(
                structure_rows=rows, color_rows=dual.num_rows - rows, z_dim=codes.shape[2]
            ).to(codes.device)
        self.sampler, self.average = sampler, copy.deepcopy(sampler).requires_grad_(False).eval()
        self.repeats = max(1, round(options.sampler_codes / len(codes)))
        self.images_per_step = self.repeats * len(codes)
        self.optimiser = torch.optim.Adam(
            sampler.parameters(), options.sampler_lr, (0.5, 0.999), weight_decay=1e-5
        )

    def step(self, step: int, random: StepRandom) -> dict[str, float]:
        """Match and learn once."""
        options, rows = self.setting.options, self.dual.structure_rows
        tenth = max(1, self.total // 10)
        for group in self.optimiser.param_groups:
            group["lr"] = options.sampler_lr * 0.5 ** ((step - 1) // tenth)
        # The same codes with new noise in every round.
        data = self.codes.repeat(self.repeats, 1, 1)
        data = data + options.sampler_noise * random.normal(*data.shape)
        figures = {}
        for name, part in (("structure", data[:, :rows]), ("color", data[:, rows:])):
            figures[name] = self._round(name, part.flatten(1), random)
        update_average(
            self.average, self.sampler, images=step, batch=1, half_kimg=AVERAGE_ROUNDS / 1000, ramp=0.2
        )
        return {"loss": sum(figures.values()), **figures}

    def _round(self, name: str, data: Tensor, random: StepRandom) -> float:
        """Teach one network a round of pairs; return the mean squared distance of the matches."""
        network, size = getattr(self.sampler, name), self.setting.options.sampler_batch
        noise = random.normal(2 * len(data), self.sampler.noise_dim)
        noise, distance = match(network, noise, data)
        order = torch.randperm(len(data), generator=random.cpu).to(data.device)
        network.train()
        for chosen in order.split(size):
            if len(chosen) < 2:
                continue  # batch normalisation needs two
            loss = F.mse_loss(network(noise[chosen]), data[chosen])
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
        network.eval()
        return distance

    def state(self) -> dict[str, Any]:
        """Return both versions of the networks and the optimiser."""
        return {
            "sampler": self.sampler.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.sampler.load_state_dict(state["sampler"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])

    @torch.no_grad()
    def preview(self) -> np.ndarray:
        """Show three faces in sampled styles."""
        base, rng = self.dual.generator, torch.Generator().manual_seed(0)
        drawn = self.average.sample(SHOWN, rng=rng)
        extrinsic = base.map_z_plus(drawn)
        faces = base.broadcast(base.mapping(torch.randn(3, base.z_dim, generator=rng).to(extrinsic)))
        rows = []
        for face in faces[:, None]:
            image = torch.cat([base.synthesis(face), self.dual(face.expand_as(extrinsic), extrinsic)])
            rows.append(media.to_pixels(image.clamp(-1, 1)))
        return media.make_sheet(rows, ["face"] * len(rows))


@torch.no_grad()
def match(network: torch.nn.Module, noise: Tensor, data: Tensor) -> tuple[Tensor, float]:
    """Return, for every row of ``data`` (N, D), the noise whose image is nearest, and the mean squared distance.

    Args:
        network: noise (M, d) -> (M, D).
        noise: candidates; one may serve several rows.
        data: what is to be reached.
    """
    network.eval()
    images = torch.cat([network(part) for part in noise.split(CHUNK)])
    nearest, total = [], 0.0
    for part in data.split(CHUNK):
        distance, index = torch.cdist(part, images).min(1)
        nearest.append(index)
        total += distance.square().sum().item()
    return noise[torch.cat(nearest)], total / data.numel()
