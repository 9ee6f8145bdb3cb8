"""Filters on arrays (H, W) or (H, W, C): blur, resizing, medians, colour models; numpy and Pillow alone.

Convention: rows run downwards, edges are mirrored without repeating the outermost pixel.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

TAILS = 4.0  # standard deviations after which a Gaussian kernel ends


def gaussian_kernel(sigma: float, radius: int | None = None) -> np.ndarray:
    """Return weights (2 radius + 1,) that sum to 1."""
    radius = max(1, math.ceil(TAILS * sigma)) if radius is None else radius
    x = np.arange(-radius, radius + 1, dtype=np.float32)
    weights = np.exp(-0.5 * (x / sigma) ** 2)
    return weights / weights.sum()


def filter_lines(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter rows and columns with one kernel (odd length); float32 out."""
    radius = len(kernel) // 2
    values = np.asarray(values, np.float32)
    for axis in (0, 1):
        pads = [(0, 0)] * values.ndim
        pads[axis] = (radius, radius)
        padded = np.pad(values, pads, "reflect")
        total = np.zeros_like(values)
        for i, weight in enumerate(kernel):
            part = [slice(None)] * values.ndim
            part[axis] = slice(i, i + values.shape[axis])
            total += np.float32(weight) * padded[tuple(part)]
        values = total
    return values


def blur(values: np.ndarray, sigma: float, radius: int | None = None) -> np.ndarray:
    """Blur with a Gaussian of standard deviation ``sigma`` px; ``radius`` cuts its tails."""
    return filter_lines(values, gaussian_kernel(sigma, radius))


def mean_filter(values: np.ndarray, size: int) -> np.ndarray:
    """Return means over squares of an odd side."""
    return filter_lines(values, np.full(size, 1 / size, np.float32))


def shrink(values: np.ndarray, factor: int) -> np.ndarray:
    """Return means over blocks of ``factor`` x ``factor`` px, which must divide both sides."""
    height, width, *rest = values.shape
    blocks = values.reshape(height // factor, factor, width // factor, factor, *rest)
    return blocks.mean((1, 3), dtype=np.float32)


def enlarge(values: np.ndarray, size: int) -> np.ndarray:
    """Return an array (H, W) of any values at ``size`` x ``size`` px by cubic interpolation."""
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


def enlarge_pixels(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return a picture, uint8 (H, W, 3), at ``size`` x ``size`` px by cubic interpolation."""
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def median(labels: np.ndarray, size: int) -> np.ndarray:
    """Return medians of uint8 (H, W) over squares of an odd side."""
    from PIL import ImageFilter

    return np.asarray(Image.fromarray(labels).filter(ImageFilter.MedianFilter(size)))


def majority(mask: np.ndarray, size: int) -> np.ndarray:
    """Return where most of a square of an odd side is set; the median of a mask."""
    return mean_filter(mask.astype(np.float32), size) > 0.5


def close_gaps(mask: np.ndarray, size: int) -> np.ndarray:
    """Return a mask without gaps narrower than ``size`` px: grown, then shrunk, by a square of that odd side."""
    from PIL import ImageFilter

    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    closed = picture.filter(ImageFilter.MaxFilter(size)).filter(ImageFilter.MinFilter(size))
    return np.asarray(closed) > 0


def disc(shape: tuple[int, int], x: int, y: int, radius: int) -> np.ndarray:
    """Return a mask (H, W) of a filled circle."""
    picture = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.asarray(picture)


def bilateral(values: np.ndarray, radius: int, *, sigma_value: float, sigma_px: float) -> np.ndarray:
    """Smooth within areas and keep edges: a mean over a disc, weighted with nearness in place and in value.

    Args:
        values: float (H, W) or (H, W, C).
        radius: of the disc, px.
        sigma_value: difference of values (summed over channels) at which the weight has fallen to exp(-1/2).
        sigma_px: the same for distance.

    Source: Tomasi and Manduchi, Bilateral Filtering for Gray and Color Images, ICCV 1998.
    """
    values = np.asarray(values, np.float32)
    height, width = values.shape[:2]
    padded = np.pad(values, [(radius, radius)] * 2 + [(0, 0)] * (values.ndim - 2), "reflect")
    total, weights = np.zeros_like(values), np.zeros((height, width), np.float32)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dx * dx + dy * dy > radius * radius:
                continue
            shifted = padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width]
            apart = np.abs(shifted - values)
            apart = apart.sum(-1) if values.ndim == 3 else apart
            near = (dx * dx + dy * dy) / (2 * sigma_px**2)
            weight = np.exp(-(apart**2) / np.float32(2 * sigma_value**2) - np.float32(near))
            total += shifted * (weight[..., None] if values.ndim == 3 else weight)
            weights += weight
    return total / (weights[..., None] if values.ndim == 3 else weights)


def rgb_to_hsv(rgb: np.ndarray) -> np.ndarray:
    """Return hue, saturation and value, all 0..1, of colours 0..1 (..., 3)."""
    value, low = rgb.max(-1), rgb.min(-1)
    span = value - low
    safe = np.where(span > 0, span, 1)
    red, green, blue = (rgb[..., i] for i in range(3))
    hue = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = np.where(span > 0, (hue / 6) % 1, 0)
    saturation = np.where(value > 0, span / np.where(value > 0, value, 1), 0)
    return np.stack([hue, saturation, value], -1).astype(np.float32)


def hsv_to_rgb(hsv: np.ndarray) -> np.ndarray:
    """Return colours 0..1 (..., 3) of hue, saturation and value, all 0..1."""
    hue, saturation, value = (hsv[..., i] for i in range(3))
    channels = []
    for offset in (5, 3, 1):
        k = (offset + hue * 6) % 6
        channels.append(value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return np.stack(channels, -1).astype(np.float32)


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Return the grey value of colours (..., 3), with the weights of ITU-R BT.601."""
    return rgb @ np.array([0.299, 0.587, 0.114], np.float32)
