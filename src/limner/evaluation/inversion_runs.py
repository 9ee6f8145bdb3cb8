"""Inversions of the held-out pictures by every method, many at once, each kept in the store."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor

from limner import inversion
from limner.errors import DivergedError, OptionError
from limner.evaluation.data import Track, untracked
from limner.evaluation.inversion_methods import (
    HYBRID,
    PIVOTAL,
    SEARCHES,
    Method,
    encoder_stamp,
    missing_weights,
)
from limner.evaluation.store import Part, Store, stamp
from limner.inversion import Inversion, PivotalOptions
from limner.inversion.pivotal import tune
from limner.latent import Latent
from limner.nn import deltas
from limner.pipeline import Models

BATCH = 8
"""Pictures that are inverted at once: a search step of 8 costs three quarters of 8 single ones on a CPU."""
CODES = ("w", "w+", HYBRID)
"""Methods whose codes and noise maps are kept too, because pivotal tuning may start from them."""


class Inverter:
    """Inverts one set of pictures; what was inverted before, whichever method is added later, comes from the store.

    Args:
        images: (N, 3, R, R), [-1, 1].
        models: generator, trunk, encoders.
        store: keeps one part per method and picture.
        steps: of a search, and of tuning, where the method names none.
        seed: of everything that is drawn.
        track: shows how far a method is.
    """

    def __init__(
        self,
        images: Tensor,
        models: Models,
        store: Store,
        *,
        steps: int,
        seed: int,
        track: Track = untracked,
    ):
        self.images, self.models, self.store = images, models, store
        self.steps, self.seed, self.track = steps, seed, track
        self.stamps = [stamp(image) for image in images.split(1)]
        self.base: dict[str, Any] = {
            "model": deltas.digest(models.generator),
            "trunk": models.trunk_name,
            "trunk_weights": deltas.digest(models.trunk),
            "seed": seed,
        }
        self._warm = False
        self._known: dict[tuple[str, str, int], list[Part]] = {}

    def run(self, method: Method) -> list[Part]:
        """Return what a method makes of every picture: ``seconds``, and ``painted``, uint8 (1, 3, R, R).

        The seconds are wall time per picture of a batch; those of pivotal tuning, which takes one picture at a time, count
        the search of the pivot too.

        Raises:
            LimnerError: the method cannot run; the message says why.
        """
        steps = method.steps or self.steps
        key = (method.start, method.method, steps)
        if key not in self._known:
            self._known[key] = self._run(method, steps)
        return self._known[key]

    def _run(self, method: Method, steps: int) -> list[Part]:
        reason = missing_weights(method, self.models)
        if reason:
            raise OptionError(reason)
        name = "-".join(filter(None, ("inversion", method.start, method.method)))
        shared = self.base | {"start": method.start, "method": method.method, "steps": steps}
        shared["encoder"] = encoder_stamp(method, self.models)
        inputs = [shared | {"image": image} for image in self.stamps]
        parts = [self.store.find(name, one) for one in inputs]
        lacking = [i for i, part in enumerate(parts) if part is None]
        pivots = self.run(method.pivot) if lacking and method.method == PIVOTAL else None
        size = BATCH if pivots is None else 1
        chunks = [lacking[first : first + size] for first in range(0, len(lacking), size)]
        if chunks and not self._warm:
            # The first search of a process pays for what PyTorch prepares; no method's seconds shall hold that.
            self._invert(Method("w", "w"), self.images[:1].to(self.models.device), 1)
            self._warm = True
        for chunk in self.track(chunks, method.name):
            images = self.images[chunk].to(self.models.device)
            made = (
                self._search(method, images, steps)
                if pivots is None
                else [self._tune(images, pivots[chunk[0]], steps)]
            )
            for i, part in zip(chunk, made, strict=True):
                parts[i] = self.store.keep(name, inputs[i], part)
        return [part for part in parts if part is not None]

    def _search(self, method: Method, images: Tensor, steps: int) -> list[Part]:
        """Invert a batch, from another method's codes if one is named."""
        begun = time.perf_counter()
        init = None
        if method.start:
            init = self._invert(Method(method.start, method.start), images, steps).latent
        found = self._invert(method, images, steps, init)
        seconds = (time.perf_counter() - begun) / len(images)
        pixels = _to_bytes(found.image, method.name)
        parts = []
        for i in range(len(images)):
            tensors = {"painted": pixels[i : i + 1]}
            if method.method in CODES:
                tensors["latent"] = found.latent.tensor[i : i + 1]
                tensors |= {f"noise.{n}": values[i : i + 1] for n, values in enumerate(found.noise or [])}
            parts.append(Part({"seconds": seconds}, tensors))
        return parts

    def _invert(self, method: Method, images: Tensor, steps: int, init: Latent | None = None) -> Inversion:
        network: dict[str, Any] = (
            {} if method.method in SEARCHES else {"encoder": self.models.encoder_for(method.method)}
        )
        options = method.settings(steps, self.seed)
        return inversion.invert(
            self.models.generator,
            images,
            options if init is None else dataclasses.replace(options, init="given"),
            perceptual=self.models.make_distance(),
            init=init,
            **network,
        )

    def _tune(self, image: Tensor, pivot: Part, steps: int) -> Part:
        """Tune the generator to one picture around codes that were found before, as method ``pivotal`` does."""
        begun = time.perf_counter()
        values = pivot.tensors["latent"].to(self.models.device)
        maps: list[Tensor] = []
        while (name := f"noise.{len(maps)}") in pivot.tensors:
            maps.append(pivot.tensors[name].to(self.models.device))
        tuned = tune(
            self.models.generator,
            image,
            Latent("w" if values.ndim == 2 else "w+", values),
            PivotalOptions(tune_steps=steps),
            perceptual=self.models.make_distance(),
            noise=maps or "constant",
            rng=torch.Generator().manual_seed(self.seed),
        )
        seconds = pivot.values["seconds"] + time.perf_counter() - begun
        return Part({"seconds": seconds}, {"painted": _to_bytes(tuned.image, PIVOTAL)})


def _to_bytes(image: Tensor, name: str) -> Tensor:
    if not image.isfinite().all():
        raise DivergedError(f"{name} painted undefined values")
    return image.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
