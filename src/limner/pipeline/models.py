"""The models that a whole job needs, loaded together."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import torch
from torch import Tensor

from limner import checkpoints, losses, zoo
from limner.errors import CheckpointError
from limner.faces import Detector
from limner.inversion import TrunkDistance
from limner.nn.features import Lite0
from limner.nn.identity import DlibResNet
from limner.nn.stylegan2 import Discriminator, Generator

TRUNK = "lite0"
EMBEDDER = "identity"


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """What the jobs of this package work with.

    Attributes:
        generator: the base; frozen.
        trunk: feature trunk of the perceptual distance; frozen.
        discriminator: of the generator's size, needed for learning; None where the base has none.
        detector: face detector; None for the bundled MTCNN.
        base: name of the generator, which goes into the files.
    """

    generator: Generator
    trunk: Lite0
    discriminator: Discriminator | None = None
    detector: Detector | None = None
    base: str = ""

    @property
    def device(self) -> torch.device:
        """Where the generator lies."""
        return self.generator.w_avg.device

    def make_distance(self) -> TrunkDistance:
        """Return a perceptual distance; it keeps the target's features, so every search takes its own."""
        return TrunkDistance(self.trunk, name=TRUNK)

    @functools.cached_property
    def embedder(self) -> DlibResNet:
        """The bundled identity embedder, loaded when it is first asked for."""
        return zoo.load(EMBEDDER).to(self.device).eval()

    def identity_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Two batches of aligned faces -> squared identity distances, (B,); see `limner.losses.identity_distance`."""
        return losses.identity_distance(self.embedder, a, b)


def load_models(base: str | Path = zoo.DEFAULT_GENERATOR, *, device: torch.device | str = "cpu") -> Models:
    """Load a base model and the bundled feature trunk; the detector loads itself when it is first used.

    Args:
        base: name or file of a model with a StyleGAN2 generator, and a discriminator if styles are to be learned.
        device: where to.

    Raises:
        ZooError: no such model.
        CheckpointError: its file cannot be used, or holds no generator.
    """
    checkpoint = checkpoints.load(zoo.resolve(base))
    if not isinstance(checkpoint.generator, Generator):
        raise CheckpointError(f"{base} holds no StyleGAN2 generator")
    discriminator = checkpoint.discriminator
    trunk = zoo.load(TRUNK)
    networks = [checkpoint.generator, trunk, *([discriminator] if discriminator is not None else [])]
    for network in networks:
        network.to(device).eval().requires_grad_(False)
    return Models(
        generator=checkpoint.generator,
        trunk=trunk,
        discriminator=discriminator if isinstance(discriminator, Discriminator) else None,
        base=Path(base).stem if Path(str(base)).suffix else str(base),
    )
