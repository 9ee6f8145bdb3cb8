"""Inversion by optimisation: search the codes, and the noise maps, whose image is closest to a given one."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limner import losses
from limner.errors import DivergedError, OptionError, ShapeError
from limner.inversion.options import OPTIMIZED, InversionOptions
from limner.inversion.report import Distance, Inversion, OnStep, measure
from limner.latent import Latent, Space, render
from limner.latent.spaces import WStatistics, spread
from limner.nn.stylegan2 import Generator

# Affine outputs are measured on fewer draws than w: their spread only scales the shake.
_S_SAMPLES = 1000


def lr_ramp(t: float, *, rampup: float = 0.05, rampdown: float = 0.25) -> float:
    """Return the share of the learning rate at time ``t`` in [0, 1]: a linear rise, then a cosine fall at the end.

    Source: Karras et al. 2020 (arXiv 1912.04958), appendix D.
    """
    down = min(1.0, (1 - t) / rampdown) if rampdown else 1.0
    return (0.5 - 0.5 * math.cos(down * math.pi)) * (min(1.0, t / rampup) if rampup else 1.0)


def perturbation_ramp(t: float, *, ramp: float = 0.75) -> float:
    """Return the share of the code's random shake at time ``t``: it falls to zero as a parabola.

    Source: Karras et al. 2020 (arXiv 1912.04958), appendix D.
    """
    return max(0.0, 1 - t / ramp) ** 2 if ramp else 0.0


@torch.no_grad()
def normalize_noise(maps: Sequence[Tensor], *, scale: Literal["std", "rms"] = "std") -> None:
    """Bring noise maps (..., r, r), each by itself, to mean 0 and spread 1, in place.

    Args:
        maps: the maps.
        scale: divide by the unbiased standard deviation, as rosinality's projector, or by the root mean square, as
            NVIDIA's; they differ by 3 % at 4 px and by nothing that matters above.
    """
    for values in maps:
        values.sub_(values.mean((-2, -1), keepdim=True))
        if scale == "std":
            values.div_(values.std((-2, -1), keepdim=True))
        else:
            values.div_(values.square().mean((-2, -1), keepdim=True).sqrt())


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Spare the weights' gradients within the block."""
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@dataclasses.dataclass(frozen=True, eq=False)
class SpaceStatistics:
    """How the codes of a space are spread: per tensor of the space its mean, deviation and mean distance.

    Attributes:
        mean, std: tensors that broadcast to the space's.
        radius: root mean squared distance from the mean, of one row or vector.
    """

    mean: tuple[Tensor, ...]
    std: tuple[Tensor, ...]
    radius: tuple[float, ...]


@torch.no_grad()
def space_statistics(
    generator: Generator, space: Space, *, count: int = 10_000, rng: torch.Generator | None = None
) -> SpaceStatistics:
    """Measure a space over ``count`` random z; the "mean" of z is the draw whose w lies nearest to the mean w."""
    z = torch.randn(count, generator.z_dim, generator=rng).to(generator.w_avg)
    w = torch.cat([generator.mapping(chunk) for chunk in z.split(1000)])
    return statistics_from_w(generator, space, spread(w), w=w, z=z)


@torch.no_grad()
def statistics_from_w(
    generator: Generator, space: Space, statistics: WStatistics, *, w: Tensor, z: Tensor
) -> SpaceStatistics:
    """Return the spread of a space, given that of w and the draws it came from, w (N, w_dim) and z (N, z_dim)."""
    if space in ("z", "z+"):
        nearest = z[(w - statistics.mean).square().sum(1).argmin()][None]
        mean = nearest if space == "z" else nearest[:, None].expand(-1, generator.num_rows, -1)
        return SpaceStatistics((mean,), (torch.ones_like(mean),), (math.sqrt(z.shape[1]),))
    if space == "s":
        mean = generator.synthesis.styles(generator.broadcast(statistics.mean[None]))
        drawn = generator.synthesis.styles(generator.broadcast(w[:_S_SAMPLES]))
        spreads = [spread(values) for values in drawn]
        return SpaceStatistics(
            tuple(mean), tuple(s.std[None] for s in spreads), tuple(s.radius for s in spreads)
        )
    mean, std = statistics.mean[None], statistics.std[None]
    if space == "w+":
        mean, std = generator.broadcast(mean), generator.broadcast(std)
    return SpaceStatistics((mean,), (std,), (statistics.radius,))


@dataclasses.dataclass(eq=False)
class _Face:
    """The search of one picture: what is fitted, and its own clock."""

    parts: list[Tensor]
    noise: list[Tensor]
    clock: int = 0
    steps: int = 0
    best: float = math.inf
    waited: int = 0


class Projector:
    """A search in progress; `optimize` runs it to its end.

    Every picture has its own variables, learning rate and clock, so that a batch gives what its pictures give alone.

    Args:
        generator: paints.
        target: (B, 3, R, R), [-1, 1].
        options: ``method`` is the space.
        perceptual: (image, image) -> (B,), or None.
        init: codes to start from with ``init="given"``; one serves the whole batch.
        mask: (B or 1, 1, R, R), 0 to 1; the rest of the picture is left free.
        rng: random numbers, on the CPU.
        statistics: spread of the space, when it is known already.
        noise: noise maps to start from, one (1, 1, r, r) per layer; None for the generator's own.
        noise_scale: see `normalize_noise`.

    Raises:
        ShapeError, OptionError: see `limner.inversion.invert`.

    Source: Karras et al. 2020 (arXiv 1912.04958), appendix D; Abdal et al. 2019 (arXiv 1904.03189) for w+.
    Differs: the noise maps start from the generator's own instead of random ones, so runs repeat; the shake is the
    same for every picture of a batch; a search without progress goes to its ramp-down early.
    """

    def __init__(
        self,
        generator: Generator,
        target: Tensor,
        options: InversionOptions,
        *,
        perceptual: Distance | None,
        init: Latent | None = None,
        mask: Tensor | None = None,
        rng: torch.Generator | None = None,
        statistics: SpaceStatistics | None = None,
        noise: Sequence[Tensor] | None = None,
        noise_scale: Literal["std", "rms"] = "std",
    ):
        if options.method not in OPTIMIZED:
            raise OptionError(f"method is {options.method!r}, expected one of {', '.join(OPTIMIZED)}")
        if not (options.l2 or (options.perceptual and perceptual is not None)):
            raise OptionError(
                "there is nothing to fit: l2 is 0 and so is perceptual, or no feature trunk is at hand for it"
            )
        self.generator, self.options, self.perceptual = generator, options, perceptual
        self.space: Space = options.method  # type: ignore[assignment]
        self.target = check_image(target, generator).to(generator.w_avg)
        self.mask = check_mask(mask, self.target)
        self.rng = rng or torch.Generator().manual_seed(options.seed)
        self.noise_scale: Literal["std", "rms"] = noise_scale
        self.statistics = statistics or space_statistics(
            generator, self.space, count=options.mean_samples, rng=self.rng
        )
        start = self._start(init)
        maps = noise or [layer.get_buffer("noise")[None, None] for layer in generator.synthesis.layers]
        self.faces = [
            _Face(
                parts=[part[i : i + 1].detach().clone().requires_grad_() for part in start.parts],
                noise=[values.detach().clone().to(self.target).requires_grad_() for values in maps]
                if options.fit_noise
                else [],
            )
            for i in range(len(self.target))
        ]
        self.optimizer = torch.optim.Adam(
            [{"params": face.parts + face.noise} for face in self.faces],
            lr=options.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-8,
        )
        self._stacked: tuple[list[int], Tensor, Tensor | None] | None = None

    def _start(self, init: Latent | None) -> Latent:
        batch, wanted = len(self.target), self.options.init
        if (init is not None) != (wanted == "given"):
            raise OptionError(
                f"init is {wanted!r}, but {'no ' if init is None else ''}codes to start from were handed over"
            )
        if init is not None:
            init = init.to(self.target).to_space(self.space, self.generator)
            if len(init) not in (1, batch):
                raise ShapeError(f"{len(init)} codes to start from, expected 1 or {batch}")
            return init if len(init) == batch else Latent.cat([init] * batch)
        mean = self.statistics.mean
        parts = [torch.zeros_like(part) if wanted == "zeros" else part for part in mean]
        parts = [part.expand(batch, *part.shape[1:]) for part in parts]
        return Latent(self.space, tuple(parts) if self.space == "s" else parts[0])

    @property
    def active(self) -> list[_Face]:
        """The pictures whose search goes on."""
        return [face for face in self.faces if face.clock < self.options.steps]

    def step(self, shake: Sequence[Tensor] | None = None) -> dict[str, float]:
        """Take one step and return its figures, means over the active pictures, before the update.

        Args:
            shake: standard normal numbers, one (1, ...) tensor per tensor of the space; None draws them.

        Raises:
            DivergedError: a loss is infinite or undefined.
        """
        options, faces = self.options, self.active
        target, mask = self._stack(faces)
        times = [face.clock / options.steps for face in faces]
        rates = [
            options.learning_rate * lr_ramp(t, rampup=options.rampup, rampdown=options.rampdown)
            for t in times
        ]
        for face, group in zip(self.faces, self.optimizer.param_groups, strict=True):
            group["lr"] = rates[faces.index(face)] if face in faces else 0.0
        codes = self._shaken(faces, times, shake)
        image = render(self.generator, codes, self._noise(faces))
        # Losses, one per picture.
        figures = self._compare(image, target, mask)
        if options.w_norm:
            figures["w_norm"] = self._distance_from_mean(codes)
        loss = torch.stack([getattr(options, name) * values for name, values in figures.items()]).sum(
            0
        )  # (B,)
        if not loss.isfinite().all():
            raise DivergedError(
                f"the search in {self.space} left the finite numbers at step {max(f.steps for f in faces) + 1}; "
                f"lower learning_rate (it is {options.learning_rate})"
            )
        total, noise_reg = loss.sum(), 0.0
        if options.fit_noise:
            penalty = losses.noise_regularizer([values for face in faces for values in face.noise])
            total, noise_reg = total + options.noise_reg * penalty, float(penalty.detach()) / len(faces)
        # One update.
        variables = [variable for face in faces for variable in (*face.parts, *face.noise)]
        self.optimizer.zero_grad(set_to_none=True)
        for variable, gradient in zip(variables, torch.autograd.grad(total, variables), strict=True):
            variable.grad = gradient
        self.optimizer.step()
        for face, value in zip(faces, loss.detach().tolist(), strict=True):
            normalize_noise(face.noise, scale=self.noise_scale)
            self._tick(face, value)
        record = {name: float(values.detach().mean()) for name, values in figures.items()}
        return {
            "loss": float(loss.detach().mean()),
            **record,
            "noise_reg": noise_reg,
            "lr": sum(rates) / len(rates),
        }

    def _stack(self, faces: list[_Face]) -> tuple[Tensor, Tensor | None]:
        """Return target and mask of the active pictures; the same tensors again while nothing changes."""
        keep = [i for i, face in enumerate(self.faces) if face in faces]
        if self._stacked is None or self._stacked[0] != keep:
            mask = None if self.mask is None else self.mask[keep]
            self._stacked = keep, self.target[keep], mask
        return self._stacked[1], self._stacked[2]

    def _shaken(self, faces: list[_Face], times: list[float], shake: Sequence[Tensor] | None) -> Latent:
        options, values = self.options, []
        strength = [
            options.perturbation * perturbation_ramp(t, ramp=options.perturbation_ramp) for t in times
        ]
        for i, radius in enumerate(self.statistics.radius):
            part = torch.cat([face.parts[i] for face in faces])
            if any(strength):
                noise = torch.randn(1, *part.shape[1:], generator=self.rng) if shake is None else shake[i]
                scale = torch.tensor(strength, device=part.device) * radius
                part = part + noise.to(part) * scale.view(-1, *[1] * (part.ndim - 1))
            values.append(part)
        return Latent(self.space, tuple(values) if self.space == "s" else values[0])

    def _noise(self, faces: list[_Face]) -> list[Tensor] | Literal["constant"]:
        if not self.options.fit_noise:
            return "constant"
        return [torch.cat(maps) for maps in zip(*(face.noise for face in faces), strict=True)]

    def _compare(self, image: Tensor, target: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return compare(
            image,
            target,
            l2=self.options.l2 > 0,
            perceptual=self.perceptual if self.options.perceptual > 0 else None,
            mask=mask,
        )

    def _distance_from_mean(self, codes: Latent) -> Tensor:
        parts = zip(codes.parts, self.statistics.mean, self.statistics.std, strict=True)
        far = [((part - mean) / std).square().flatten(1) for part, mean, std in parts]
        return torch.cat(far, 1).mean(1)

    def _tick(self, face: _Face, loss: float) -> None:
        """Move a picture's clock on, to the ramp-down when the loss has not fallen for long enough."""
        options = self.options
        face.clock, face.steps, face.waited = face.clock + 1, face.steps + 1, face.waited + 1
        if loss < face.best * (1 - options.tolerance):
            face.best, face.waited = loss, 0
        elif options.patience and face.waited >= options.patience:
            face.clock = max(face.clock, options.steps - math.ceil(options.rampdown * options.steps))

    def latent(self) -> Latent:
        """Return the codes so far."""
        parts = [
            torch.cat([face.parts[i] for face in self.faces]).detach()
            for i in range(len(self.faces[0].parts))
        ]
        return Latent(self.space, tuple(parts) if self.space == "s" else parts[0])

    def noise(self) -> list[Tensor] | None:
        """Return the noise maps so far, one (B, 1, r, r) per layer; None where they are not fitted."""
        maps = self._noise(self.faces)
        return None if isinstance(maps, str) else [values.detach() for values in maps]

    @torch.no_grad()
    def image(self) -> Tensor:
        """Return the pictures so far, (B, 3, R, R), clipped to [-1, 1]."""
        return render(self.generator, self.latent(), self.noise() or "constant").clamp(-1, 1)


def optimize(
    generator: Generator,
    image: Tensor,
    options: InversionOptions,
    *,
    perceptual: Distance | None,
    identity: Distance | None = None,
    init: Latent | None = None,
    mask: Tensor | None = None,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Invert by searching one latent space; arguments and errors as `limner.inversion.invert`."""
    start = time.perf_counter()
    with frozen(generator):
        search = Projector(generator, image, options, perceptual=perceptual, init=init, mask=mask, rng=rng)
        while search.active:
            record = search.step()
            if on_step is not None:
                # The slowest picture tells how far the batch is.
                on_step(min(face.clock for face in search.faces), options.steps, record, search.image)
        result = search.image()
    report = measure(
        result,
        search.target,
        method=options.method,
        perceptual=perceptual,
        identity=identity,
        steps=[face.steps for face in search.faces],
        seconds=time.perf_counter() - start,
    )
    return Inversion(search.latent(), search.noise(), result, None, report)


def compare(
    image: Tensor, target: Tensor, *, l2: bool, perceptual: Distance | None, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the distances of image pairs by name, (B,) each.

    Args:
        image, target: (B, 3, R, R).
        l2: measure the pixels.
        perceptual: measure the features too.
        mask: (B or 1, 1, R, R), 0 to 1; outside it the images count as equal.
    """
    found = {}
    if l2:
        squares = (image - target).square().mean(1, keepdim=True)
        if mask is None:
            found["l2"] = squares.mean((1, 2, 3))
        else:
            found["l2"] = (squares * mask).sum((1, 2, 3)) / mask.expand_as(squares).sum((1, 2, 3)).clamp_min(
                1e-6
            )
    if perceptual is not None:
        seen = image if mask is None else torch.lerp(target, image, mask.expand_as(image))
        found["perceptual"] = perceptual(seen, target)
    return found


def check_image(image: Tensor, generator: Generator) -> Tensor:
    """Return the image, or raise `ShapeError` unless it is (B, 3, R, R) for the generator and finite."""
    side, colors = generator.resolution, generator.config()["rgb_channels"]
    if image.ndim != 4 or image.shape[1:] != (colors, side, side) or not len(image):
        raise ShapeError(
            f"image has shape {tuple(image.shape)}, expected (B, {colors}, {side}, {side}) for this generator; "
            "align and resize it first"
        )
    if not image.isfinite().all() or image.abs().max() > 1.01:
        raise ShapeError("image holds numbers outside [-1, 1]; divide uint8 pixels by 127.5 and subtract 1")
    return image.detach()


def check_mask(mask: Tensor | None, image: Tensor) -> Tensor | None:
    """Return the mask with the image's batch, or raise `ShapeError` unless it fits and covers something."""
    if mask is None:
        return None
    batch, _, height, width = image.shape
    if mask.ndim != 4 or mask.shape[0] not in (1, batch) or mask.shape[1:] != (1, height, width):
        raise ShapeError(f"mask has shape {tuple(mask.shape)}, expected (1 or {batch}, 1, {height}, {width})")
    if mask.min() < 0 or mask.max() > 1 or (mask.amax((1, 2, 3)) == 0).any():
        raise ShapeError("mask must hold numbers from 0 to 1 and cover some pixels of every image")
    return mask.to(image).expand(batch, -1, -1, -1)
