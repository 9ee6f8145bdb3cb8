"""The models that a whole job needs, loaded together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from limner import checkpoints, losses, zoo
from limner.checkpoints.compact import load_encoder, read_base
from limner.checkpoints.compact_hyper import load_hyper, read_first
from limner.checkpoints.detail import read_detail, read_digest
from limner.checkpoints.psp import load_arcface
from limner.checkpoints.source import open_source
from limner.errors import CheckpointError, OptionError, ZooError
from limner.faces import Detector
from limner.inversion import IdentityDistance, TrunkDistance
from limner.inversion.distances import stand_in
from limner.inversion.options import ENCODED
from limner.latent import Latent
from limner.nn import deltas
from limner.nn.compact import CompactEncoder
from limner.nn.compact_hyper import CompactHyper
from limner.nn.detail import Detail
from limner.nn.encoders import Encoder
from limner.nn.features import Lite0, Vgg16, load_torchvision
from limner.nn.hyperinverter import HyperInverter
from limner.nn.identity import DlibResNet
from limner.nn.irse import ArcFace
from limner.nn.lpips import Lpips
from limner.nn.stylegan2 import Discriminator, Generator, Noise
from limner.pipeline.options import LOOKING, TrunkOptions

TRUNK = TrunkOptions().trunk
EMBEDDER = "identity"
VGG16, VGG16_TAPS = "vgg16", (1, 3, 13, 20)
"""Image2StyleGAN's trunk: VGG16 after the ReLUs of conv1_1, conv1_2, conv3_2 and conv4_2."""


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """What the jobs of this package work with.

    Attributes:
        generator: the base; frozen.
        trunk: feature trunk of the perceptual distance, LPIPS with its own, or VGG16 as Image2StyleGAN; frozen.
        discriminator: of the generator's size, needed for learning; None where the base has none.
        detector: face detector; None for the bundled MTCNN.
        encoder: of the pSp family or a compact one, made for the generator; None where none was named.
        base: name of the generator, which goes into the files.
        trunk_name: name of the trunk, which goes into reports.
        stands_for: the trunk that Lite0 replaces map by map, see `limner.inversion.distances.STAND_INS`; None where it
            stands for itself.
        arcface: ArcFace, where its weights were named; the bundled embedder stands in otherwise.
    """

    generator: Generator
    trunk: Lite0 | Lpips | Vgg16
    discriminator: Discriminator | None = None
    detector: Detector | None = None
    encoder: Encoder | HyperInverter | CompactHyper | CompactEncoder | None = None
    base: str = ""
    trunk_name: str = TRUNK
    stands_for: str | None = None
    arcface: ArcFace | None = None

    @property
    def device(self) -> torch.device:
        """Where the generator lies."""
        return self.generator.w_avg.device

    def make_distance(self) -> TrunkDistance:
        """Return a perceptual distance; it keeps the target's features, so every search takes its own."""
        if isinstance(self.trunk, Lpips):
            third = None if self.trunk_name == "lpips-alex" else (2,)
            compare = self.trunk.compare_maps
            return TrunkDistance(self.trunk.trunk, name=self.trunk_name, compare=compare, style_maps=third)
        if isinstance(self.trunk, Vgg16):
            compare = losses.maps_squares
            return TrunkDistance(self.trunk, name=self.trunk_name, compare=compare, style_maps=(2,))
        if self.stands_for is not None:
            return stand_in(self.trunk, stands_for=self.stands_for, name=self.trunk_name)
        return TrunkDistance(self.trunk, name=self.trunk_name, style_maps=(1,))

    def make_identity(self) -> IdentityDistance:
        """Return an identity distance that remembers its target, on ArcFace or what stands in for it."""
        if self.arcface is not None:
            return IdentityDistance(self.arcface, name=self.arcface.name)
        return IdentityDistance(self.embedder, name=self.embedder.name, stands_for=ArcFace.name)

    @functools.cached_property
    def _digest(self) -> str:
        return deltas.digest(self.generator)

    @functools.cached_property
    def compact(self) -> CompactEncoder | None:
        """The compact encoder that was named, or else one on this machine that belongs to the generator."""
        if isinstance(self.encoder, CompactEncoder):
            return self.encoder
        if isinstance(self.encoder, CompactHyper):
            return self.encoder.encoder
        for name in zoo.names("encoder"):
            base = read_base(zoo.path(name))
            if base and base.get("digest") == self._digest:
                return zoo.load(name).to(self.device).eval()
        return None

    @functools.cached_property
    def detail(self) -> Detail | None:
        """The layers grown above the generator, where there are such on this machine."""
        return find_detail(self._digest, self.device)

    def finish(self, generator: Generator, latent: Latent, noise: Noise) -> tuple[Generator, Latent, Noise]:
        """Return generator, codes and noise that paint the same at the size of `detail`; as given without it.

        Args:
            generator: the base, or the base tuned.
            latent, noise: what it would paint.
        """
        return finish(self.detail, generator, latent, noise)

    def encoder_for(self, method: str) -> Encoder | HyperInverter | CompactHyper | CompactEncoder | None:
        """Return the encoder that an inversion method works with, if there is one.

        Raises:
            OptionError: one was named that works with other methods.
        """
        if method in LOOKING and isinstance(self.encoder, (Encoder, HyperInverter)):
            kind = self.encoder.family if isinstance(self.encoder, Encoder) else "hyper"
            raise OptionError(
                f"inverter is {method!r}, which takes a compact encoder, but the one that was named is for the inverter {kind}"
            )
        return self.encoder if method in ENCODED else self.compact

    @functools.cached_property
    def embedder(self) -> DlibResNet:
        """The bundled identity embedder, loaded when it is first asked for."""
        return zoo.load(EMBEDDER).to(self.device).eval()

    def identity_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Two batches of aligned faces -> squared identity distances, (B,); see `limner.losses.identity_distance`."""
        return losses.identity_distance(self.embedder, a, b)


def find_detail(digest: str, device: torch.device) -> Detail | None:
    """Return the layers grown above a generator of this digest, where there are such on this machine."""
    for name in zoo.names("detail"):
        source = open_source(zoo.path(name))
        if read_digest(source) == digest:
            return read_detail(source).detail.to(device)
    return None


def finish(
    detail: Detail | None, generator: Generator, latent: Latent, noise: Noise = "constant"
) -> tuple[Generator, Latent, Noise]:
    """Return generator, codes and noise that paint the same at the size of the layers above; as given without such.

    Args:
        detail: the layers.
        generator: what they were grown on, or that tuned.
        latent, noise: what it would paint.
    """
    if detail is None:
        return generator, latent, noise
    grown = detail.grow(generator)
    return grown, latent.grown(grown), detail.grow_noise(noise)


def load_perceptual(name: str) -> Lite0 | Lpips | Vgg16:
    """Load a trunk by name: one of `limner.pipeline.options.TRUNKS`, or ``vgg16`` for Image2StyleGAN's loss.

    Raises:
        OptionError: no such trunk.
        ZooError: its weights are not installed.
        CheckpointError: its file cannot be used.
    """
    if name != VGG16:
        return zoo.load(TrunkOptions(trunk=name).trunk)
    if VGG16 not in zoo.cards():
        raise ZooError(f"{VGG16} is not installed; fetch it with: limner models pull {VGG16}")
    found = load_torchvision("vgg16", zoo.path(VGG16), taps=VGG16_TAPS)
    assert isinstance(found, Vgg16)
    return found


def pick_trunk(wanted: str) -> tuple[str, str | None]:
    """Return the trunk to take for a published one, and what it stands for: Lite0 where the weights are not there."""
    needed = zoo.COMPOSED[wanted][1] if wanted in zoo.COMPOSED else (wanted,)
    there = zoo.cards()
    return (wanted, None) if all(name in there for name in needed) else (TRUNK, wanted)


def find_first(first: Mapping[str, str], *, where: str) -> CompactEncoder:
    """Return the compact encoder that a small HyperInverter was trained with.

    Args:
        first: of `limner.checkpoints.compact_hyper.read_first`.
        where: names the file in messages.

    Raises:
        ZooError: it is not on this machine.
    """
    names = [first["name"]] if first.get("name") else []
    names += zoo.names("encoder")
    for name in names:
        try:
            file = zoo.resolve(name)
        except ZooError:
            continue
        if read_base(file) is None:  # another file has taken the name
            continue
        found = load_encoder(file, trunk=zoo.load(TRUNK))
        if deltas.digest(found.core) == first.get("digest"):
            return found
    raise ZooError(
        f"{where} belongs to a compact encoder ({first.get('name') or 'unnamed'}) that is not on this machine, or has been "
        "trained anew; train one for today's with limner train hyper"
    )


def load_seeing(
    name: str | Path,
) -> tuple[Encoder | HyperInverter | CompactHyper | CompactEncoder, checkpoints.Checkpoint | None]:
    """Load what finds codes, of any kind, with the checkpoint of another program that it came in.

    Args:
        name: name or file of a compact encoder, a small HyperInverter, or a checkpoint of pSp, e4e, ReStyle or
            HyperInverter.

    Raises:
        ZooError: no such model.
        CheckpointError: its file cannot be used, or holds none.
    """
    file = zoo.resolve(name)
    if read_base(file) is not None:
        return load_encoder(file, trunk=zoo.load(TRUNK)), None
    if (first := read_first(file)) is not None:
        return load_hyper(file, encoder=find_first(first, where=str(name))), None
    checkpoint = checkpoints.load(file)
    if not isinstance(checkpoint.encoder, (Encoder, HyperInverter)):
        raise CheckpointError(
            f"{name} holds no encoder of pSp, e4e or ReStyle, no compact one and no HyperInverter"
        )
    return checkpoint.encoder, checkpoint


def load_models(
    base: str | Path = zoo.DEFAULT_GENERATOR,
    *,
    encoder: str | Path | None = None,
    trunk: str = TRUNK,
    stands_for: str | None = None,
    arcface: str | Path | None = None,
    keep_base: bool = False,
    device: torch.device | str = "cpu",
) -> Models:
    """Load a base model and the feature trunk; the detector loads itself when it is first used.

    Args:
        base: name or file of a model with a StyleGAN2 generator, and a discriminator if styles are to be learned.
        encoder: name or file of an encoder; where it brings a generator along, that is the base, unless ``keep_base``.
        trunk: what perceptual distances are measured with, see `load_perceptual`.
        stands_for: the trunk that it replaces, see `pick_trunk`.
        arcface: weights of ArcFace, ``model_ir_se50.pth``; None for the bundled embedder.
        keep_base: take ``base`` in any case, as for styles, which belong to it.
        device: where to.

    Raises:
        OptionError: no such trunk.
        ZooError: no such model, or the trunk's weights are not installed.
        CheckpointError: its file cannot be used, or holds no generator.
    """
    perceptual = load_perceptual(trunk)  # first, since it costs least to find it missing
    seeing, checkpoint = None, None
    if encoder is not None:
        seeing, checkpoint = load_seeing(encoder)
        if checkpoint is not None and checkpoint.generator is not None and not keep_base:
            base = encoder
    if keep_base or checkpoint is None or checkpoint.generator is None:
        checkpoint = checkpoints.load(zoo.resolve(base))
    if not isinstance(checkpoint.generator, Generator):
        raise CheckpointError(f"{base} holds no StyleGAN2 generator")
    discriminator = checkpoint.discriminator
    face = None if arcface is None else load_arcface(arcface)
    others = [network for network in (discriminator, seeing, face) if network is not None]
    networks = [checkpoint.generator, perceptual, *others]
    for network in networks:
        network.to(device).eval().requires_grad_(False)
    return Models(
        generator=checkpoint.generator,
        trunk=perceptual,
        trunk_name=trunk,
        stands_for=stands_for,
        arcface=face,
        discriminator=discriminator if isinstance(discriminator, Discriminator) else None,
        encoder=seeing,
        base=Path(base).stem if Path(str(base)).suffix else str(base),
    )
