"""Pixels and images: conversion, resizing, contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from limner.errors import DivergedError, ShapeError


def check_pixels(pixels: np.ndarray) -> None:
    """Raise `ShapeError` unless ``pixels`` are uint8 (H, W, 3) and not empty."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ShapeError(f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3)")


def to_image(*pixels: np.ndarray) -> Tensor:
    """Turn pictures of one size, each uint8 (H, W, 3), into an image, float32 (B, 3, H, W) in [-1, 1]."""
    for one in pixels:
        check_pixels(one)
    if len({one.shape for one in pixels}) != 1:
        raise ShapeError(
            f"pictures have shapes {[one.shape for one in pixels]}, expected one or more of one size"
        )
    batch = torch.from_numpy(np.stack(pixels))  # (B, H, W, 3)
    return batch.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def to_pixels(image: Tensor) -> list[np.ndarray]:
    """Turn an image (B, 3, H, W) into pictures, each uint8 (H, W, 3); values outside [-1, 1] are clipped.

    Raises:
        ShapeError: not (B, 3, H, W).
        DivergedError: the image holds undefined values.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ShapeError(f"image has shape {tuple(image.shape)}, expected (B, 3, H, W)")
    values = image.detach().float().add(1).mul_(127.5)
    if values.isnan().any():
        raise DivergedError("the image holds undefined values (NaN)")
    batch = values.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)  # (B, H, W, 3)
    return list(np.ascontiguousarray(batch.cpu().numpy()))


def resize_image(image: Tensor, size: int | tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Resize an image (B, 3, H, W) with antialiasing.

    Args:
        image: (B, C, H, W).
        size: new side, or height and width, in px.
        mode: bicubic, bilinear, or area (mean of the pixels that a new pixel covers; best for shrinking).
    """
    size = (size, size) if isinstance(size, int) else size
    if tuple(image.shape[2:]) == tuple(size):
        return image
    if mode == "area":
        return F.interpolate(image, size, mode="area")
    return F.interpolate(image, size, mode=mode, antialias=True, align_corners=False)


def resize_pixels(pixels: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize a picture, uint8 (H, W, 3), by Lanczos interpolation to ``size``: side, or height and width, in px."""
    check_pixels(pixels)
    height, width = (size, size) if isinstance(size, int) else size
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def make_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    *,
    cell_px: int | None = None,
    gap_px: int = 4,
) -> np.ndarray:
    """Put pictures into a grid.

    Args:
        rows: pictures, uint8 (H, W, 3) each, None for an empty cell; rows may differ in length.
        row_labels: text left of each row.
        column_labels: text above each column.
        cell_px: longest side of a picture in its cell; None for the largest that comes.
        gap_px: white between cells.

    Returns:
        The sheet, uint8 (H, W, 3), white where nothing is.

    Raises:
        ShapeError: no picture at all, or one that is not uint8 (H, W, 3).
    """
    pictures = [one for row in rows for one in row if one is not None]
    if not pictures:
        raise ShapeError("a sheet needs at least one picture")
    for one in pictures:
        check_pixels(one)
    side = cell_px or max(max(one.shape[:2]) for one in pictures)
    fitted = [[None if one is None else _fit(one, side) for one in row] for row in rows]
    cells = [one for row in fitted for one in row if one is not None]
    height, width = max(one.shape[0] for one in cells), max(one.shape[1] for one in cells)
    font_px = max(11, min(32, side // 12))
    font = ImageFont.load_default(font_px)
    line = round(font_px * 1.5)
    left = max((round(font.getlength(text)) + 2 * gap_px for text in row_labels), default=0)
    top = line if column_labels else 0
    columns = max(map(len, fitted))
    size = (left + columns * (width + gap_px) + gap_px, top + len(fitted) * (height + gap_px) + gap_px)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(fitted):
        y = top + gap_px + i * (height + gap_px)
        if i < len(row_labels):
            draw.text((gap_px, y + height // 2), row_labels[i], "black", font, anchor="lm")
        for j, one in enumerate(row):
            if one is not None:
                x = left + gap_px + j * (width + gap_px)
                corner = (x + (width - one.shape[1]) // 2, y + (height - one.shape[0]) // 2)
                sheet.paste(Image.fromarray(one), corner)
    for j, text in enumerate(column_labels[:columns]):
        draw.text(
            (left + gap_px + j * (width + gap_px) + width // 2, top // 2 + gap_px // 2),
            text,
            "black",
            font,
            "mm",
        )
    return np.array(sheet)


def _fit(pixels: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(pixels.shape[:2])
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    return resize_pixels(pixels, (height, width))


def join_side_by_side(pictures: Sequence[np.ndarray], labels: Sequence[str] = ()) -> np.ndarray:
    """Put pictures, uint8 (H, W, 3), into one row, brought to one height, with a label above each."""
    for one in pictures:
        check_pixels(one)
    height = max(one.shape[0] for one in pictures)
    fitted = [
        resize_pixels(one, (height, max(1, round(one.shape[1] * height / one.shape[0])))) for one in pictures
    ]
    return make_sheet([fitted], column_labels=labels)
