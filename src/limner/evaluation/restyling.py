"""Embedding and restyling of scenes, kept in the store, so that what did not change is not done again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from limner import media
from limner.evaluation.data import Track, crop_photo
from limner.evaluation.inversion_methods import Method, encoder_stamp
from limner.evaluation.report import Picture
from limner.evaluation.scale import Contender
from limner.evaluation.store import Part, Store, stamp
from limner.faces import whole_picture
from limner.inversion import Inversion
from limner.inversion.report import measure
from limner.latent import Latent
from limner.nn import deltas
from limner.options import to_mapping
from limner.pipeline import Models, StylizeOptions
from limner.pipeline.photos import embed_faces, stylize, suit_inverter
from limner.stylization.dual import DualStyle, at_strength

CELL_PX = 96
PHOTO = "photo"
THAT_PAINT = (
    "strength",
    "layers",
    "pull",
    "keep_color",
    "blend",
    "hold",
    "size",
    "mask",
    "feather",
    "color_match",
    "crop",
)
"""Options that change nothing of how a face is embedded."""


def embedding_options(how: StylizeOptions) -> dict[str, Any]:
    """Return the options that decide how a face is embedded."""
    return {name: value for name, value in to_mapping(how).items() if name not in THAT_PAINT}


def make_base(models: Models, how: StylizeOptions) -> dict[str, Any]:
    """Return what every kept part depends on."""
    return {
        "model": deltas.digest(models.generator),
        "trunk": models.trunk_name,
        "trunk_weights": deltas.digest(models.trunk),
        "how": embedding_options(how),
        "encoder": encoder_stamp(Method(how.inverter, how.inverter), models),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Restyler:
    """Embedding and restyling, kept in the store.

    Attributes:
        models, how, store, track: as `evaluate_stylization`.
        base: what every part depends on.
    """

    models: Models
    how: StylizeOptions
    store: Store
    base: dict[str, Any]
    track: Track

    def embed(self, pixels: np.ndarray, how: StylizeOptions | None = None) -> Part:
        """Return an aligned face's codes, noise, change of the generator, and what it paints of them.

        Args:
            pixels: the face.
            how: another way to embed it than ``self.how``.
        """
        chosen = how or self.how

        def make() -> Part:
            begun = time.perf_counter()
            _, found = embed_faces(pixels, chosen, models=self.models)[0]
            tensors = {f"latent.{i}": value for i, value in enumerate(found.latent.parts)}
            tensors |= {f"noise.{i}": value for i, value in enumerate(found.noise or [])}
            tensors |= {f"delta.{name}": value for name, value in (found.delta or {}).items()}
            tensors["image"] = found.image.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
            return Part({"space": found.latent.space, "seconds": time.perf_counter() - begun}, tensors)

        base = self.base if how is None else make_base(self.models, how)
        return self.store.part("embedded", base | {"image": stamp(pixels)}, make)

    def restyle_all(
        self,
        contenders: Sequence[Contender],
        photos: Sequence[np.ndarray],
        embedded: Sequence[Part],
        strengths: Sequence[float],
    ) -> tuple[dict[str, dict[float, Tensor]], dict[str, float]]:
        """Return style -> strength -> results, (N, 3, R, R), and style -> seconds per face at the usual strength."""
        outputs: dict[str, dict[float, Tensor]] = {one.name: {} for one in contenders}
        seconds = {}
        for one in contenders:
            for strength in strengths:
                how = dataclasses.replace(self.how, strength=strength, crop=True)
                shown = to_mapping(suit_inverter(how, one.style, self.models))
                inputs = self.base | {"how": shown, "style": one.digest, "images": stamp(*photos)}

                def make(one: Contender = one, how: StylizeOptions = how) -> Part:
                    pairs = list(zip(photos, self.faces_for(one, photos, embedded), strict=True))
                    begun = time.perf_counter()
                    steps = self.track(pairs, f"{one.name}, strength {how.strength:g}")
                    styled = [self.restyle(one, how, *pair) for pair in steps]
                    return Part(
                        {"seconds": (time.perf_counter() - begun) / len(photos)},
                        {"styled": torch.stack(styled)},
                    )

                part = self.store.part(f"styled-{one.name}", inputs, make)
                outputs[one.name][strength] = self.shrink(unpack_image(part.tensors["styled"]))
                if strength == self.how.strength:
                    seconds[one.name] = part.values["seconds"]
        return outputs, seconds

    def faces_for(
        self, one: Contender, photos: Sequence[np.ndarray], embedded: Sequence[Part]
    ) -> Sequence[Part]:
        """Return the faces embedded as the style wants them, which mostly is as they are."""
        suited = suit_inverter(self.how, one.style, self.models)
        return embedded if suited is self.how else [self.embed(pixels, suited) for pixels in photos]

    def restyle(self, one: Contender, how: StylizeOptions, pixels: np.ndarray, part: Part) -> Tensor:
        """Return an embedded face in a style, uint8 (3, R, R).

        Args:
            one: the style.
            how: strength and what else decides the painting.
            pixels: the aligned face, uint8 (R, R, 3).
            part: what `embed` returned for it.
        """
        target = media.to_image(pixels).to(self.models.device)
        face = (whole_picture(pixels, self.models.generator.resolution), to_inversion(part, target))
        style = one.style
        if isinstance(style, DualStyle):  # its strength is not among the options of a photo
            style = dataclasses.replace(style, options=at_strength(how.strength, keep_color=how.keep_color))
        result = stylize(pixels, style, how, models=self.models, embedded=[face])
        styled = self.shrink(media.to_image(result.faces[0].styled))
        return styled[0].add(1).mul(127.5).round().to(torch.uint8)

    def shrink(self, image: Tensor) -> Tensor:
        """Average what layers above the generator's resolution finished, (B, 3, H, H), to that resolution."""
        return F.adaptive_avg_pool2d(image, self.models.generator.resolution)

    def photo_sheet(self, photos: Sequence[Path], contenders: Sequence[Contender]) -> list[Picture]:
        """Return a sheet of real photos in every style; there is no truth to compare them with."""
        rows = []
        how = dataclasses.replace(self.how, crop=True)
        for photo in photos:
            pixels = crop_photo(photo, self.models.generator.resolution, self.models.detector)
            part = self.embed(pixels)
            own = [(one, self.faces_for(one, [pixels], [part])[0]) for one in contenders]
            styled = torch.stack([self.restyle(one, how, pixels, face) for one, face in own])
            rows.append([pixels, *media.to_pixels(unpack_image(torch.cat([part.tensors["image"], styled])))])
        if not rows:
            return []
        labels = [PHOTO, "embedded", *(one.name for one in contenders)]
        sheet = media.make_sheet(rows, column_labels=labels, cell_px=CELL_PX + 32)
        return [Picture("photos", sheet, "Real photos: as they are, as embedded, and in every style.")]


def unpack_image(values: Tensor) -> Tensor:
    """Uint8 (B, 3, H, W) -> image, [-1, 1]."""
    return values.float() / 127.5 - 1


def to_inversion(part: Part, target: Tensor) -> Inversion:
    """Return what `Restyler.embed` kept, on the target's device."""

    def named(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value.to(target.device)
            for name, value in part.tensors.items()
            if name.startswith(prefix)
        }

    codes, noise = (
        [value for _, value in sorted(named(prefix).items(), key=lambda item: int(item[0]))]
        for prefix in ("latent.", "noise.")
    )
    image = unpack_image(part.tensors["image"].to(target.device))
    space, seconds = part.values["space"], part.values["seconds"]
    report = measure(image, target, method=space, perceptual=None, identity=None, steps=[0], seconds=seconds)
    latent = Latent(space, tuple(codes) if space == "s" else codes[0])
    return Inversion(latent, noise or None, image, named("delta.") or None, report)
