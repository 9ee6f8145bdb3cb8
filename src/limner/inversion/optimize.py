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
from limner.inversion.goals import Aim, Goal
from limner.inversion.options import OPTIMIZED, InversionOptions
from limner.inversion.report import Distance, Inversion, OnStep, measure
from limner.inversion.starts import encoder_codes
from limner.inversion.statistics import (
    SpaceStatistics,
    Whitening,
    draw_codes,
    statistics_from_w,
    whitening_from_w,
)
from limner.latent import Latent, LayerMask, Space, render
from limner.latent.spaces import spread
from limner.nn.precision import autocast, choose_precision
from limner.nn.stylegan2 import Generator

# Weight of the distance in P_N where method ii2s is asked for without one.
II2S_P_NORM = 0.001


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


@dataclasses.dataclass(eq=False)
class _Face:
    """The search of one picture: what is fitted, and its own clock."""

    parts: list[Tensor]
    noise: list[Tensor]
    variables: list[Tensor]
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
        options: ``method`` is the space, or ``noise``: the codes stand still, in the space of ``init``, else in w.
        perceptual, identity: (image, image) -> (B,), or None.
        init: codes to start from with ``init="given"``; one serves the whole batch.
        mask: (B or 1, 1, R, R), 0 to 1; the rest of the picture is left free.
        goals: more pictures that parts of the result shall look like.
        rng: random numbers, on the CPU.
        statistics: spread of the space, when it is known already.
        whitening: II2S's space P_N, when it is known already.
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
        identity: Distance | None = None,
        init: Latent | None = None,
        mask: Tensor | None = None,
        goals: Sequence[Goal] = (),
        rng: torch.Generator | None = None,
        statistics: SpaceStatistics | None = None,
        whitening: Whitening | None = None,
        noise: Sequence[Tensor] | None = None,
        noise_scale: Literal["std", "rms"] = "std",
    ):
        still = options.method == "noise"
        if options.method not in OPTIMIZED and not still:
            raise OptionError(f"method is {options.method!r}, expected one of {', '.join(OPTIMIZED)}, noise")
        if still and not options.fit_noise:
            raise OptionError("method noise fits the noise maps, but fit_noise is off")
        self.generator, self.options = generator, options
        self.space: Space = (init.space if init else "w") if still else options.method  # type: ignore[assignment]
        own = Goal(target, mask, l2=options.l2, perceptual=options.perceptual)
        self.aims = [
            Aim(
                own,
                generator,
                batch=len(target),
                perceptual=perceptual,
                identity=identity,
                identity_weight=options.identity,
            ),
            *(Aim(goal, generator, batch=len(target), perceptual=perceptual) for goal in goals),
        ]
        self.target = self.aims[0].image
        self.precision = choose_precision(options.precision, self.target.device)
        self.rng = rng or torch.Generator().manual_seed(options.seed)
        self.noise_scale: Literal["std", "rms"] = noise_scale
        self._measure(statistics, whitening)
        self._weights = None if still else self._layer_weights()
        start = self._start(init)
        maps = noise or [layer.get_buffer("noise")[None, None] for layer in generator.synthesis.layers]
        self.faces = [self._face(start, maps, i) for i in range(len(self.target))]
        self.optimizer = torch.optim.Adam(
            [{"params": face.variables} for face in self.faces],
            lr=options.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-8,
        )

    def _measure(self, statistics: SpaceStatistics | None, whitening: Whitening | None) -> None:
        """Measure the spread of the space, and P_N where it is weighed."""
        options, weighed = self.options, self.options.p_norm > 0
        if weighed and self.space not in ("w", "w+"):
            raise OptionError(f"p_norm measures codes in w and w+, but the search is in {self.space}")
        if statistics is None or (weighed and whitening is None):
            z, w = draw_codes(self.generator, options.mean_samples, rng=self.rng)
            statistics = statistics or statistics_from_w(self.generator, self.space, spread(w), w=w, z=z)
            whitening = whitening or (whitening_from_w(w) if weighed else None)
        self.statistics, self.whitening = statistics, whitening

    def _layer_weights(self) -> list[Tensor] | None:
        """Return 1 for what may change and 0 for the rest, per tensor of the space; None where all may.

        Raises:
            OptionError: the space has no layers, or the mask has weights between.
        """
        if self.options.layers == "all":
            return None
        if self.space in ("z", "w"):
            raise OptionError(
                f"layers is {self.options.layers!r}, but a code in {self.space} drives all layers"
            )
        mask = LayerMask(self.options.layers)
        weights = mask.styles(self.generator) if self.space == "s" else mask.rows(self.generator)
        if not ((weights == 0) | (weights == 1)).all() or not weights.any():
            raise OptionError(
                f"layers is {self.options.layers!r}, expected layers of this generator, without weights of their own"
            )
        weights = weights.to(self.target)
        return list(weights) if self.space == "s" else [weights[:, None]]

    def _face(self, start: Latent, maps: Sequence[Tensor], i: int) -> _Face:
        still = self.options.method == "noise"
        parts = [part[i : i + 1].detach().clone().requires_grad_(not still) for part in start.parts]
        noise = []
        if self.options.fit_noise:
            chosen = [values[i : i + 1] if len(values) > 1 else values for values in maps]
            noise = [values.detach().clone().to(self.target).requires_grad_() for values in chosen]
        return _Face(parts, noise, [*([] if still else parts), *noise])

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
        if wanted == "zeros":
            mean = tuple(torch.zeros_like(part) for part in mean)
        elif wanted == "uniform":
            # Image2StyleGAN's other start, for what is no face; the same for every picture of a batch.
            mean = tuple((2 * torch.rand(part.shape, generator=self.rng) - 1).to(part) for part in mean)
        parts = list(mean)
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
        rows = [i for i, face in enumerate(self.faces) if face in faces]
        times = [face.clock / options.steps for face in faces]
        rates = [
            options.learning_rate * lr_ramp(t, rampup=options.rampup, rampdown=options.rampdown)
            for t in times
        ]
        for face, group in zip(self.faces, self.optimizer.param_groups, strict=True):
            group["lr"] = rates[faces.index(face)] if face in faces else 0.0
        codes = self._shaken(faces, times, shake)
        # Only the generator: the trunk is no faster in half precision, and the distances need all digits.
        with autocast(self.precision, self.target.device):
            image = render(self.generator, codes, self._noise(faces)).float()
        # Losses, one per picture, (B,).
        figures, loss = self._losses(image, codes, rows)
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
        variables = [variable for face in faces for variable in face.variables]
        self.optimizer.zero_grad(set_to_none=True)
        for variable, gradient in zip(variables, torch.autograd.grad(total, variables), strict=True):
            variable.grad = gradient
        self._hold_layers(faces)
        self.optimizer.step()
        for face, value in zip(faces, loss.detach().tolist(), strict=True):
            if options.noise_scaled:
                normalize_noise(face.noise, scale=self.noise_scale)
            self._tick(face, value)
        record = {name: float(values.detach().mean()) for name, values in figures.items()}
        return {
            "loss": float(loss.detach().mean()),
            **record,
            "noise_reg": noise_reg,
            "lr": sum(rates) / len(rates),
        }

    def _losses(self, image: Tensor, codes: Latent, rows: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the terms by name, those of further goals with their number, and the weighted sum, (B,) each."""
        options = self.options
        figures, loss = self.aims[0].compare(image, rows)
        for number, aim in enumerate(self.aims[1:], 1):
            found, total = aim.compare(image, rows)
            figures |= {f"{name}_{number}": values for name, values in found.items()}
            loss = loss + total
        if options.w_norm and options.method != "noise":
            figures["w_norm"] = self._distance_from_mean(codes)
            loss = loss + options.w_norm * figures["w_norm"]
        if self.whitening is not None and options.p_norm:
            figures["p_norm"] = self.whitening.norm(codes.tensor)
            loss = loss + options.p_norm * figures["p_norm"]
        return figures, loss

    def _hold_layers(self, faces: list[_Face]) -> None:
        """Take the gradients from layers that may not change; Adam then leaves them where they are."""
        if self._weights is None:
            return
        for face in faces:
            for part, weight in zip(face.parts, self._weights, strict=True):
                if part.grad is not None:
                    part.grad = part.grad * weight

    def _shaken(self, faces: list[_Face], times: list[float], shake: Sequence[Tensor] | None) -> Latent:
        options, values = self.options, []
        strength = [
            options.perturbation * perturbation_ramp(t, ramp=options.perturbation_ramp) for t in times
        ]
        for i, radius in enumerate(self.statistics.radius):
            part = torch.cat([face.parts[i] for face in faces])
            if any(strength) and options.method != "noise":
                noise = torch.randn(1, *part.shape[1:], generator=self.rng) if shake is None else shake[i]
                scale = torch.tensor(strength, device=part.device) * radius
                noise = noise.to(part) * (1 if self._weights is None else self._weights[i])
                part = part + noise * scale.view(-1, *[1] * (part.ndim - 1))
            values.append(part)
        return Latent(self.space, tuple(values) if self.space == "s" else values[0])

    def _noise(self, faces: list[_Face]) -> list[Tensor] | Literal["constant"]:
        if not self.options.fit_noise:
            return "constant"
        return [torch.cat(maps) for maps in zip(*(face.noise for face in faces), strict=True)]

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


def _stages(options: InversionOptions) -> list[InversionOptions]:
    """Return the search, and the second stage of Image2StyleGAN++ where one is asked for."""
    if not options.noise_steps or options.method == "noise":
        return [options]
    second = dataclasses.replace(
        options,
        method="noise",
        init="given",
        steps=options.noise_steps,
        learning_rate=options.noise_learning_rate,
        rampup=0.0,
        rampdown=0.0,
        fit_noise=True,
        noise_reg=0.0,
        noise_scaled=False,
        patience=0,
        w_norm=0.0,
        p_norm=0.0,
    )
    return [options, second]


def optimize(
    generator: Generator,
    image: Tensor,
    options: InversionOptions,
    *,
    perceptual: Distance | None,
    identity: Distance | None = None,
    init: Latent | None = None,
    mask: Tensor | None = None,
    goals: Sequence[Goal] = (),
    encoder: object = None,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Invert by searching one latent space, or the noise maps; arguments and errors as `limner.inversion.invert`.

    With ``noise_steps`` a second stage follows: the codes stand still, and the noise maps are fitted without being
    held normal.

    Source: Abdal et al. 2020, Image2StyleGAN++ (arXiv 1911.11544), section 4.1, for the two stages; Zhu et al. 2020
    (arXiv 2012.09036) for ii2s, which here is w+ with the distance in P_N and without noise maps.
    """
    start, method = time.perf_counter(), options.method
    if method == "ii2s":
        options = dataclasses.replace(
            options, method="w+", fit_noise=False, p_norm=options.p_norm or II2S_P_NORM
        )
    if options.init == "encoder":
        if init is not None:
            raise OptionError("init is 'encoder', but codes to start from were handed over")
        init = encoder_codes(generator, image, options, encoder, "init encoder")
        options = dataclasses.replace(options, init="given")
    rng = rng or torch.Generator().manual_seed(options.seed)
    stages = _stages(options)
    total, before = sum(stage.steps for stage in stages), 0
    steps, noise = [0] * len(image), None
    result, target, latent = image, image, init
    with frozen(generator):
        for stage in stages:
            search = Projector(
                generator,
                image,
                stage,
                perceptual=perceptual,
                identity=identity,
                init=latent,
                mask=mask,
                goals=goals,
                rng=rng,
                noise=noise,
            )
            while search.active:
                record = search.step()
                if on_step is not None:
                    # The slowest picture tells how far the batch is.
                    on_step(before + min(face.clock for face in search.faces), total, record, search.image)
            steps = [done + face.steps for done, face in zip(steps, search.faces, strict=True)]
            before += stage.steps
            latent, noise, result, target = search.latent(), search.noise(), search.image(), search.target
    assert latent is not None
    report = measure(
        result,
        target,
        method=method,
        perceptual=perceptual,
        identity=identity,
        steps=steps,
        seconds=time.perf_counter() - start,
    )
    return Inversion(latent, noise, result, None, report)
