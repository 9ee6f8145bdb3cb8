"""The players against a DualStyleGAN: heads on frozen features, or StyleGAN2's discriminator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from limner.losses import hinge_d_loss, hinge_g_loss, logistic_d_loss, logistic_g_loss, r1_penalty
from limner.nn.projected import ProjectedDiscriminator, augment_lightly
from limner.nn.stylegan2 import Discriminator
from limner.training.dual.options import DualTrainOptions
from limner.training.run import StepRandom


class Adversary(ABC):
    """A discriminator that learns and judges in one call.

    Args:
        network: the discriminator.
        parameters: those of its that train.
        options: rates and penalties.
    """

    def __init__(self, network: nn.Module, parameters: Iterable[nn.Parameter], options: DualTrainOptions):
        self.network, self.options = network, options
        self.parameters = list(parameters)
        self.optimiser = torch.optim.Adam(self.parameters, options.lr_d, (0.0, options.beta2))

    @abstractmethod
    def judge(
        self, fake: Tensor, real: Tensor, random: StepRandom, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Learn to tell images from pictures; return the generator's loss, with its graph, and figures.

        Args:
            fake: images (B, 3, R, R) with their graph.
            real: pictures (B, 3, R, R).
            random: of this step.
            step: its number, for penalties that are not taken every time.
        """

    def state(self) -> dict[str, Any]:
        """Return the discriminator and its optimiser."""
        return {"network": self.network_state(), "optimiser": self.optimiser.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.load_network(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])

    def network_state(self) -> dict[str, Tensor]:
        """Return the discriminator's own tensors."""
        return self.network.state_dict()

    def load_network(self, state: dict[str, Tensor]) -> None:
        """Take back what `network_state` returned."""
        self.network.load_state_dict(state)

    def update(self, loss: Tensor) -> None:
        """Take one step down ``loss``."""
        grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        self.optimiser.step()
        torch.clear_autocast_cache()  # of the weights as they were: the same context judges once more
        self.optimiser.zero_grad(set_to_none=True)


class ProjectedAdversary(Adversary):
    """Hinge loss on every head; one pass of the trunk over the images serves both players."""

    network: ProjectedDiscriminator

    def __init__(self, network: ProjectedDiscriminator, options: DualTrainOptions):
        super().__init__(network, network.heads.parameters(), options)

    def network_state(self) -> dict[str, Tensor]:
        """Return heads and projection; the trunk has a file of its own."""
        return self.network.own_state()

    def load_network(self, state: dict[str, Tensor]) -> None:
        """Take heads and projection back."""
        self.network.load_own_state(state)

    def judge(
        self, fake: Tensor, real: Tensor, random: StepRandom, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Adversary.judge`."""
        p, D = self.options.augment_p, self.network
        same = random.cpu.get_state()
        maps = D.features(augment_lightly(fake, p, random.cpu))
        random.cpu.set_state(same)
        with torch.no_grad():
            real_maps = D.features(augment_lightly(real, p, random.cpu))
        logits = zip(D.judge(real_maps), D.judge([x.detach() for x in maps]), strict=True)
        loss = torch.stack([hinge_d_loss(a, b) for a, b in logits]).sum()
        self.update(loss)
        own = torch.stack([hinge_g_loss(x) for x in D.judge(maps)]).mean()
        return own, {"loss_d": loss.item()}


class StyleGan2Adversary(Adversary):
    """The published game: logistic loss, R1 penalty now and then."""

    def __init__(self, network: Discriminator, options: DualTrainOptions):
        super().__init__(network, [p for p in network.parameters() if p.requires_grad], options)

    def judge(
        self, fake: Tensor, real: Tensor, random: StepRandom, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """See `Adversary.judge`."""
        p, every = self.options.augment_p, self.options.d_reg_interval
        fake = augment_lightly(fake, p, random.cpu)
        penalise = self.options.r1_gamma > 0 and step % every == 0
        real = augment_lightly(real, p, random.cpu).detach().requires_grad_(penalise)
        logits = self.network(real)
        loss = logistic_d_loss(logits, self.network(fake.detach()))
        record = {"loss_d": loss.item()}
        if penalise:
            r1 = r1_penalty(logits.float(), real)
            loss = loss + r1 * (self.options.r1_gamma / 2 * every)
            record["r1"] = r1.item()
        self.update(loss)
        return logistic_g_loss(self.network(fake)), record


def make_adversary(
    options: DualTrainOptions,
    *,
    resolution: int,
    trunk: nn.Module,
    pictures: Tensor,
    discriminator: Discriminator | None,
    channels: dict[int, int],
) -> Adversary:
    """Return the adversary that the options ask for.

    Args:
        options: of the command.
        resolution: of the images.
        trunk: frozen, for the heads.
        pictures: some (B, 3, R, R), to measure the trunk's features on.
        discriminator: of the base, to start from; None to start anew.
        channels: per resolution, of a new one.
    """
    if options.discriminator == "projected":
        heads = ProjectedDiscriminator(
            trunk=trunk,
            resolution=resolution,
            feature_resolution=options.feature_resolution,
            seed=options.seed,
        ).to(pictures.device)
        heads.calibrate(pictures)
        return ProjectedAdversary(heads, options)
    if discriminator is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            discriminator = Discriminator(resolution=resolution, channels=channels)
    return StyleGan2Adversary(discriminator.to(pictures.device).train().requires_grad_(True), options)
