"""What a job with a DualStyleGAN needs: the model, its styles, and codes of pictures that are none of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import checkpoints, faces, media, zoo
from limner.checkpoints import Checkpoint
from limner.checkpoints.dual import style_codes
from limner.errors import CheckpointError, FaceNotFoundError
from limner.faces import AlignOptions
from limner.inversion import Inversion, InversionOptions, invert
from limner.latent import Latent
from limner.nn.dualstylegan import DualGenerator, StyleSampler
from limner.pipeline.models import TRUNK, Models, load_seeing
from limner.pipeline.options import TrunkOptions
from limner.pipeline.photos import SEARCH, OnStep, PipelineStep
from limner.stylization.dual import to_extrinsic


@dataclasses.dataclass(frozen=True, eq=False)
class DualModels(Models):
    """A DualStyleGAN with what embeds faces for it; ``generator`` is its intrinsic part.

    Attributes:
        dual: the model; frozen.
        codes: name -> z+ code (L, z_dim) of the styles to paint with, refined where there are such.
        sampler: draws unseen styles, None where the model has none.
    """

    dual: DualGenerator = dataclasses.field(kw_only=True)
    codes: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    sampler: StyleSampler | None = None


def read_dual(base: str | Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a DualStyleGAN with the codes and the sampler in its file or beside it; frozen, its ``dual`` is never None.

    Args:
        base: name or file of the model.
        device: where to.

    Raises:
        ZooError: no such model.
        CheckpointError: its file cannot be used, or holds no DualStyleGAN.
    """
    checkpoint = checkpoints.load(zoo.resolve(base), parts=("dual", "sampler"))
    if checkpoint.dual is None:
        raise CheckpointError(
            f"{base} ({checkpoint.format}) holds no DualStyleGAN; limner stylize puts styles and plain generators "
            "on photos, by name or file alone"
        )
    for network in (checkpoint.dual, checkpoint.sampler):
        if network is not None:
            network.to(device).eval().requires_grad_(False)
    return checkpoint


def load_dual(
    base: str | Path,
    *,
    encoder: str | Path | None = None,
    trunk: str = TRUNK,
    device: torch.device | str = "cpu",
) -> DualModels:
    """Load a DualStyleGAN, with the codes and the sampler in its file or beside it, and the feature trunk.

    Args:
        base: name or file of the model.
        encoder: name or file of what finds codes for its generator; None for the compact one that belongs to it.
        trunk: what perceptual distances are measured with, one of `limner.pipeline.options.TRUNKS`.
        device: where to.

    Raises:
        ZooError: no such model, or the trunk's weights are not installed.
        CheckpointError: its file cannot be used, or holds no DualStyleGAN.
    """
    perceptual = zoo.load(TrunkOptions(trunk=trunk).trunk)  # first, since it costs least to find it missing
    checkpoint = read_dual(base, device=device)
    assert checkpoint.dual is not None
    seeing = None if encoder is None else load_seeing(encoder)[0].to(device).eval().requires_grad_(False)
    return DualModels(
        generator=checkpoint.dual.generator,
        trunk=perceptual.to(device).eval().requires_grad_(False),
        trunk_name=trunk,
        encoder=seeing,
        base=Path(base).stem if Path(str(base)).suffix else str(base),
        dual=checkpoint.dual,
        codes=style_codes(checkpoint.codes),
        sampler=checkpoint.sampler,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class StylePicture:
    """A style picture that the model was not trained on, embedded.

    Attributes:
        extrinsic: its style, (1, L, w_dim).
        code: the same in z+, (1, L, z_dim), as codes files keep it.
        crop, embedded: the picture as it was used, and what the plain generator makes of its code, uint8 (R, R, 3).
        inversion: the search's result.
        note: what a person should know, empty where there is nothing.
    """

    extrinsic: Tensor
    code: Tensor
    crop: np.ndarray
    embedded: np.ndarray
    inversion: Inversion
    note: str


def embed_style(
    pixels: np.ndarray,
    *,
    models: DualModels,
    steps: int = 150,
    aligned: bool = False,
    seed: int = 0,
    name: str = "the style picture",
    on_step: OnStep | None = None,
) -> StylePicture:
    """Find the extrinsic code of a picture: the z+ whose plain picture is nearest to it.

    Args:
        pixels: uint8 (H, W, 3).  The largest face is taken; where none is found, as in many drawings, the middle square
            is taken for an aligned face.
        models: see `load_dual`.
        steps: of the search.
        aligned: take the picture as a whole, without looking for a face.
        seed: of the search.
        name: of the picture, for messages.
        on_step: called after every step.

    Source: Yang et al. 2022 (arXiv 2203.13248), section 3.1, first stage.
    Differs: found by optimisation, where the paper's encoder gives the code in one pass.
    """
    size, note = models.generator.resolution, ""
    try:
        align = AlignOptions(size=size, face="largest", aligned=aligned)
        alignment = faces.find_alignments(pixels, align, detector=models.detector, where=name)[0]
    except FaceNotFoundError:
        note = f"{name}: no face found, so its middle square is taken for an aligned face"
        alignment = faces.whole_picture(pixels, size)
    crop = faces.crop_face(pixels, alignment)

    def report(step: int, total: int, figures: Mapping[str, float], _: Any) -> None:
        if on_step is not None:
            on_step(PipelineStep("embed", 1, 1, step, total, figures.get("loss", 0.0)))

    search = InversionOptions(method="z+", steps=steps, seed=seed, **SEARCH)
    image = media.to_image(crop).to(models.device)
    found = invert(models.generator, image, search, perceptual=models.make_distance(), on_step=report)
    code = Latent("z+", found.latent.tensor)
    return StylePicture(
        extrinsic=to_extrinsic(models.dual, code),
        code=code.tensor,
        crop=crop,
        embedded=media.to_pixels(found.image)[0],
        inversion=found,
        note=note,
    )
