"""The models that a whole job needs, loaded together."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import torch
from torch import Tensor

from limner import checkpoints, losses, zoo
from limner.checkpoints.compact import load_encoder, read_base
from limner.errors import CheckpointError
from limner.faces import Detector
from limner.inversion import TrunkDistance
from limner.inversion.options import ENCODED
from limner.nn import deltas
from limner.nn.compact import CompactEncoder
from limner.nn.encoders import Encoder
from limner.nn.features import Lite0
from limner.nn.hyperinverter import HyperInverter
from limner.nn.identity import DlibResNet
from limner.nn.lpips import Lpips
from limner.nn.stylegan2 import Discriminator, Generator
from limner.pipeline.options import TrunkOptions

TRUNK = TrunkOptions().trunk
EMBEDDER = "identity"


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """What the jobs of this package work with.

    Attributes:
        generator: the base; frozen.
        trunk: feature trunk of the perceptual distance, or LPIPS with its own; frozen.
        discriminator: of the generator's size, needed for learning; None where the base has none.
        detector: face detector; None for the bundled MTCNN.
        encoder: of the pSp family or a compact one, made for the generator; None where none was named.
        base: name of the generator, which goes into the files.
        trunk_name: name of the trunk, which goes into reports.
    """

    generator: Generator
    trunk: Lite0 | Lpips
    discriminator: Discriminator | None = None
    detector: Detector | None = None
    encoder: Encoder | HyperInverter | CompactEncoder | None = None
    base: str = ""
    trunk_name: str = TRUNK

    @property
    def device(self) -> torch.device:
        """Where the generator lies."""
        return self.generator.w_avg.device

    def make_distance(self) -> TrunkDistance:
        """Return a perceptual distance; it keeps the target's features, so every search takes its own."""
        if isinstance(self.trunk, Lpips):
            return TrunkDistance(self.trunk.trunk, name=self.trunk_name, compare=self.trunk.compare_maps)
        return TrunkDistance(self.trunk, name=self.trunk_name)

    @functools.cached_property
    def compact(self) -> CompactEncoder | None:
        """The compact encoder that was named, or else one on this machine that belongs to the generator."""
        if isinstance(self.encoder, CompactEncoder):
            return self.encoder
        own = None
        for name in zoo.names("encoder"):
            base = read_base(zoo.path(name))
            own = own or deltas.digest(self.generator)
            if base and base.get("digest") == own:
                return zoo.load(name).to(self.device).eval()
        return None

    def encoder_for(self, method: str) -> Encoder | HyperInverter | CompactEncoder | None:
        """Return the encoder that an inversion method works with, if there is one."""
        return self.encoder if method in ENCODED else self.compact

    @functools.cached_property
    def embedder(self) -> DlibResNet:
        """The bundled identity embedder, loaded when it is first asked for."""
        return zoo.load(EMBEDDER).to(self.device).eval()

    def identity_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Two batches of aligned faces -> squared identity distances, (B,); see `limner.losses.identity_distance`."""
        return losses.identity_distance(self.embedder, a, b)


def load_models(
    base: str | Path = zoo.DEFAULT_GENERATOR,
    *,
    encoder: str | Path | None = None,
    trunk: str = TRUNK,
    device: torch.device | str = "cpu",
) -> Models:
    """Load a base model and the feature trunk; the detector loads itself when it is first used.

    Args:
        base: name or file of a model with a StyleGAN2 generator, and a discriminator if styles are to be learned.
        encoder: name or file of an encoder; where it brings a generator along, that is the base.
        trunk: what perceptual distances are measured with, one of `limner.pipeline.options.TRUNKS`.
        device: where to.

    Raises:
        OptionError: no such trunk.
        ZooError: no such model, or the trunk's weights are not installed.
        CheckpointError: its file cannot be used, or holds no generator.
    """
    perceptual = zoo.load(TrunkOptions(trunk=trunk).trunk)  # first, since it costs least to find it missing
    seeing, checkpoint = None, None
    if encoder is not None:
        file = zoo.resolve(encoder)
        if read_base(file) is not None:
            seeing = load_encoder(file, trunk=zoo.load(TRUNK))
        else:
            checkpoint = checkpoints.load(file)
            seeing = checkpoint.encoder
            if not isinstance(seeing, (Encoder, HyperInverter)):
                raise CheckpointError(
                    f"{encoder} holds no encoder of pSp, e4e or ReStyle, no compact one and no HyperInverter"
                )
            base = base if checkpoint.generator is None else encoder
    if checkpoint is None or checkpoint.generator is None:
        checkpoint = checkpoints.load(zoo.resolve(base))
    if not isinstance(checkpoint.generator, Generator):
        raise CheckpointError(f"{base} holds no StyleGAN2 generator")
    discriminator = checkpoint.discriminator
    others = [network for network in (discriminator, seeing) if network is not None]
    networks = [checkpoint.generator, perceptual, *others]
    for network in networks:
        network.to(device).eval().requires_grad_(False)
    return Models(
        generator=checkpoint.generator,
        trunk=perceptual,
        trunk_name=trunk,
        discriminator=discriminator if isinstance(discriminator, Discriminator) else None,
        encoder=seeing,
        base=Path(base).stem if Path(str(base)).suffix else str(base),
    )
