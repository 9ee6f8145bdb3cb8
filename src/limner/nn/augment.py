"""Adaptive discriminator augmentation: the pipe of random transformations and the controller of their probability.

Every transformation happens to every image independently with probability p.  All of them are linear in the image
(given the random numbers), differentiable twice, and p = 0 returns the image itself.  Random numbers come from one
explicit `torch.Generator`; keep it on the CPU, so that the decision which work to skip costs no synchronisation.

Convention: x to the right, y downwards, pixel centres on integers; outside the image lies its mirror image.

Source: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (arXiv 2006.06676),
section 3 and appendix B; written from the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import OptionError, ShapeError
from limner.nn.wavelets import blit_exactly, filter_bands, resample

BAND_POWER = torch.tensor([10.0, 1.0, 1.0, 1.0], dtype=torch.float64) / 13
"""Expected share of a picture's power in each of the four bands, lowest first."""

TRANSFORMS = {
    "blit": ("flip", "rotate90", "shift"),
    "geometry": ("scale", "rotate", "stretch", "fractional_shift"),
    "color": ("brightness", "contrast", "luma_flip", "hue", "saturation"),
    "filter": ("bands",),
    "noise": ("rgb_noise",),
    "cutout": ("cutout",),
}
"""Group -> its transformations, in the order in which they are applied."""

PAPER_GROUPS = ("blit", "geometry", "color")
"""The groups the paper recommends (its "bgc"); the others neither helped nor hurt."""


class AdaPipe(nn.Module):
    """Random augmentations of square images.

    Args:
        enabled: transformations or groups of `TRANSFORMS` that may happen.

    Raises:
        OptionError: an unknown name.
    """

    def __init__(self, *, enabled: Iterable[str] = PAPER_GROUPS):
        super().__init__()
        names = tuple(enabled)
        known = [name for group in TRANSFORMS.values() for name in group]
        chosen = {single for name in names for single in TRANSFORMS.get(name, (name,))}
        unknown = sorted(chosen - set(known))
        if unknown:
            raise OptionError(
                f"unknown augmentations {', '.join(unknown)}; known: {', '.join([*TRANSFORMS, *known])}"
            )
        self._config = {"enabled": [name for name in known if name in chosen]}
        self.enabled = frozenset(chosen)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._config)

    def forward(self, image: Tensor, p: float, *, rng: torch.Generator) -> Tensor:
        """Augment image (B, 3, S, S), [-1, 1]; the result, at least float32, may leave the range, as in the paper.

        Args:
            p: probability of every transformation, 0 to 1.
            rng: draws everything.

        Raises:
            ShapeError: not square RGB images.
            OptionError: p is no probability.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3]:
            raise ShapeError(f"image has shape {tuple(image.shape)}, expected (B, 3, S, S)")
        if not 0 <= p <= 1:
            raise OptionError(f"augmentation probability is {p}, expected 0 to 1")
        if p == 0 or not self.enabled:
            return image
        draw = _Draw(image.shape[0], p, rng, self.enabled)
        with torch.autocast(image.device.type, enabled=False):
            return self._transform(image if image.dtype == torch.float64 else image.float(), draw)

    def _transform(self, image: Tensor, draw: _Draw) -> Tensor:
        image = self._move(image, draw)
        image = self._recolor(image, draw)
        if "bands" in self.enabled:
            gains, filtered = _draw_gains(draw)
            image = _on_subset(image, filtered, lambda part, at: filter_bands(part, gains[at]))
        if "rgb_noise" in self.enabled:
            image = _add_noise(image, draw)
        if "cutout" in self.enabled:
            image = _cut_out(image, draw)
        return image

    @staticmethod
    def _move(image: Tensor, draw: _Draw) -> Tensor:
        """Blit and transform: images that drew only blits are copied exactly, the others are resampled once."""
        blit = _draw_blit(draw, image.shape[2])
        smooth, moved = _draw_geometry(draw, image.shape[2])
        blitted = (blit != torch.eye(3, dtype=blit.dtype)).flatten(1).any(1)
        image = _on_subset(image, blitted & ~moved, lambda part, at: blit_exactly(part, blit[at]))
        return _on_subset(image, moved, lambda part, at: resample(part, (smooth @ blit)[at]))

    @staticmethod
    def _recolor(image: Tensor, draw: _Draw) -> Tensor:
        matrix = _draw_color(draw)
        if bool((matrix == torch.eye(4, dtype=matrix.dtype)).all()):
            return image
        matrix = matrix.to(image)
        flat = torch.baddbmm(matrix[:, :3, 3:], matrix[:, :3, :3], image.flatten(2))  # (B, 3, S S)
        return flat.view(image.shape)


class _Draw:
    """Random numbers of one batch: values per image, and who is transformed."""

    def __init__(self, count: int, p: float, rng: torch.Generator, enabled: frozenset[str]):
        self.count, self.p, self.rng, self.enabled = count, p, rng, enabled

    def uniform(self, lo: float, hi: float, columns: int = 1) -> Tensor:
        """(B, columns) numbers between lo and hi."""
        drawn = torch.rand(self.count, columns, generator=self.rng, device=self.rng.device)
        return (lo + (hi - lo) * drawn).double().cpu()

    def normal(self, deviation: float, columns: int = 1) -> Tensor:
        """(B, columns) numbers of mean 0."""
        drawn = torch.randn(self.count, columns, generator=self.rng, device=self.rng.device)
        return (deviation * drawn).double().cpu()

    def integer(self, count: int) -> Tensor:
        """(B, 1) numbers 0 to count - 1."""
        return self.uniform(0, count).floor().clamp(max=count - 1)

    def happens(self, p: float | None = None) -> Tensor:
        """(B, 1) booleans, each true with probability p."""
        return self.uniform(0, 1) < (self.p if p is None else p)

    def pixels(self, shape: torch.Size) -> Tensor:
        """Standard normal numbers of an image's shape."""
        return torch.randn(shape, generator=self.rng, device=self.rng.device)


def _on_subset(image: Tensor, chosen: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply ``function(images, their indices)`` to the chosen images only."""
    at = chosen.nonzero()[:, 0]
    if len(at) == 0:
        return image
    if len(at) == len(image):
        return function(image, at)
    here = at.to(image.device)
    return image.index_copy(0, here, function(image[here], at))


# 3x3 and 4x4 matrices, one per image


def _matrix(rows: list[list[Tensor | float]]) -> Tensor:
    """Stack entries, each a number or (B, 1), to (B, n, n)."""
    entries = [torch.as_tensor(entry, dtype=torch.float64).reshape(-1) for row in rows for entry in row]
    return torch.stack(torch.broadcast_tensors(*entries), -1).unflatten(-1, (len(rows), len(rows)))


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return _matrix([[x, 0, 0], [0, y, 0], [0, 0, 1]])


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _matrix([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def _translation(x: Tensor, y: Tensor) -> Tensor:
    return _matrix([[1, 0, x], [0, 1, y], [0, 0, 1]])


def _where(happens: Tensor, matrix: Tensor) -> Tensor:
    """Put the identity where nothing happens."""
    return torch.where(happens[:, :, None], matrix, torch.eye(matrix.shape[-1], dtype=matrix.dtype))


# Pixel blitting and geometry


def _draw_blit(draw: _Draw, size: int) -> Tensor:
    """Draw flips, quarter turns and whole-pixel shifts: input to output, origin in the image's centre, (B, 3, 3)."""
    total = torch.eye(3, dtype=torch.float64).repeat(draw.count, 1, 1)
    if "flip" in draw.enabled:
        mirrored = 1 - 2 * draw.integer(2)
        total = _where(draw.happens(), _scaling(mirrored, torch.ones_like(mirrored))) @ total
    if "rotate90" in draw.enabled:
        total = _where(draw.happens(), _rotation(-math.pi / 2 * draw.integer(4)).round()) @ total
    if "shift" in draw.enabled:
        shift = (draw.uniform(-0.125, 0.125, 2) * size).round()
        total = _where(draw.happens(), _translation(shift[:, :1], shift[:, 1:])) @ total
    return total


def _draw_geometry(draw: _Draw, size: int) -> tuple[Tensor, Tensor]:
    """Draw scaling, rotation and fractional shift: (B, 3, 3) as in `_draw_blit`, and who is transformed, (B,)."""
    total = torch.eye(3, dtype=torch.float64).repeat(draw.count, 1, 1)
    moved = torch.zeros(draw.count, 1, dtype=torch.bool)
    # Two chances to rotate, before and after stretching, that together have probability p.
    p_rotate = 1 - math.sqrt(1 - draw.p)

    def add(happens: Tensor, matrix: Tensor) -> None:
        nonlocal total, moved
        total, moved = _where(happens, matrix) @ total, moved | happens

    if "scale" in draw.enabled:
        scale = draw.normal(0.2 * math.log(2)).exp()
        add(draw.happens(), _scaling(scale, scale))
    if "rotate" in draw.enabled:
        add(draw.happens(p_rotate), _rotation(draw.uniform(-math.pi, math.pi)))
    if "stretch" in draw.enabled:
        scale = draw.normal(0.2 * math.log(2)).exp()
        add(draw.happens(), _scaling(scale, 1 / scale))
    if "rotate" in draw.enabled:
        add(draw.happens(p_rotate), _rotation(draw.uniform(-math.pi, math.pi)))
    if "fractional_shift" in draw.enabled:
        shift = draw.normal(0.125, 2) * size
        add(draw.happens(), _translation(shift[:, :1], shift[:, 1:]))
    return total, moved[:, 0]


# Colour


def _draw_color(draw: _Draw) -> Tensor:
    """Draw affine maps of (r, g, b, 1), (B, 4, 4)."""
    axis = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64) / math.sqrt(3)
    luma = torch.outer(axis, axis)
    eye = torch.eye(4, dtype=torch.float64)
    total = eye.repeat(draw.count, 1, 1)
    if "brightness" in draw.enabled:
        b = draw.normal(0.2)
        total = (
            _where(draw.happens(), _matrix([[1, 0, 0, b], [0, 1, 0, b], [0, 0, 1, b], [0, 0, 0, 1]])) @ total
        )
    if "contrast" in draw.enabled:
        c = draw.normal(0.5 * math.log(2)).exp()
        total = (
            _where(draw.happens(), _matrix([[c, 0, 0, 0], [0, c, 0, 0], [0, 0, c, 0], [0, 0, 0, 1]])) @ total
        )
    if "luma_flip" in draw.enabled:
        flipped = draw.integer(2)[:, :, None]
        total = _where(draw.happens(), eye - 2 * flipped * luma) @ total
    if "hue" in draw.enabled:
        # Rodrigues' formula about the luma axis.
        angle = draw.uniform(-math.pi, math.pi)[:, :, None]
        cross = torch.zeros(4, 4, dtype=torch.float64)
        cross[:3, :3] = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(
            3
        )
        flat = torch.diag(torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)) - luma
        total = _where(draw.happens(), eye - flat + angle.cos() * flat + angle.sin() * cross) @ total
    if "saturation" in draw.enabled:
        s = draw.normal(math.log(2)).exp()[:, :, None]
        keep = torch.diag(torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)) + luma
        total = _where(draw.happens(), keep + s * (eye - keep)) @ total
    return total


# Image-space filtering and corruptions


def _draw_gains(draw: _Draw) -> tuple[Tensor, Tensor]:
    """Draw the amplification of every band, (B, 4), at unchanged expected power, and who is filtered, (B,)."""
    gains = torch.ones(draw.count, 4, dtype=torch.float64)
    chosen = torch.zeros(draw.count, 1, dtype=torch.bool)
    for band in range(4):
        happens = draw.happens()
        amplified = torch.ones(draw.count, 4, dtype=torch.float64)
        amplified[:, band] = draw.normal(math.log(2))[:, 0].exp()
        amplified = amplified / (BAND_POWER * amplified.square()).sum(1, keepdim=True).sqrt()
        gains = gains * torch.where(happens, amplified, 1.0)
        chosen = chosen | happens
    return gains, chosen[:, 0]


def _add_noise(image: Tensor, draw: _Draw) -> Tensor:
    strength = torch.where(draw.happens(), draw.normal(0.1).abs(), 0.0)
    if not bool(strength.any()):
        return image
    return image + strength.view(-1, 1, 1, 1).to(image) * draw.pixels(image.shape).to(image)


def _cut_out(image: Tensor, draw: _Draw) -> Tensor:
    """Set a square of half the image's side, its centre anywhere, to zero."""
    happens, size = draw.happens(), image.shape[2]
    centre = draw.uniform(0, 1, 2)
    if not bool(happens.any()):
        return image
    lo = ((centre - 0.25) * size).round()[:, :, None]
    hi = ((centre + 0.25) * size).round()[:, :, None]
    steps = torch.arange(size, dtype=torch.float64)
    inside = (steps >= lo) & (steps < hi)  # (B, 2, S): columns, rows
    hole = inside[:, 1, :, None] & inside[:, 0, None, :] & happens[:, :, None]
    return image * (~hole)[:, None].to(image)


class AdaController:
    """Adjusts the probability p so that the discriminator is sure of a wanted share of real images.

    Overfitting is measured by r_t = E[sign(D(real))]: 0 when the discriminator cannot tell, 1 when it knows every
    training image.

    Args:
        p: probability to start from.
        target: wanted r_t.
        ada_kimg: thousands of real images in which p could go from 0 to 1.

    Raises:
        OptionError: a value outside its range.

    Source: arXiv 2006.06676, section 3.1.
    Differs: p is kept at or below 1.
    """

    def __init__(self, *, p: float = 0.0, target: float = 0.6, ada_kimg: float = 500.0):
        if not 0 <= p <= 1:
            raise OptionError(f"augmentation probability is {p}, expected 0 to 1")
        if ada_kimg <= 0:
            raise OptionError(f"ada_kimg is {ada_kimg}, expected more than 0")
        self.p, self.target, self.ada_kimg = p, target, ada_kimg
        self.r_t = 0.0
        self._sums = torch.zeros(2, dtype=torch.float64)

    def observe(self, real_logits: Tensor) -> None:
        """Note the discriminator's opinion of (augmented) real images, any shape."""
        signs = real_logits.detach().float().sign()  # bfloat16 cannot count beyond 256
        self._sums = self._sums.to(signs.device if signs.device.type != "mps" else "cpu")
        self._sums += torch.stack([signs.sum(), signs.new_tensor(signs.numel())]).to(self._sums)

    def update(self, reduce: Callable[[Tensor], Tensor] | None = None) -> float:
        """Move p by what was observed since the last call, and return it; call every few steps.

        Args:
            reduce: adds up a tensor over all processes, when there are several.
        """
        total, count = (self._sums if reduce is None else reduce(self._sums)).tolist()
        self._sums = torch.zeros_like(self._sums)
        if count:
            self.r_t = total / count
            step = count / (self.ada_kimg * 1000)
            self.p = min(max(self.p + math.copysign(step, self.r_t - self.target), 0.0), 1.0)
        return self.p

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"p": self.p, "r_t": self.r_t, "sums": self._sums.cpu()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.p, self.r_t, self._sums = float(state["p"]), float(state["r_t"]), state["sums"].clone()
