"""The tasks of translation and what their networks see: inputs made from aligned photos, or from paired pictures.

Source: Richardson et al. 2021, pSp (arXiv 2008.00951), section 4: frontalisation, conditional synthesis, super-resolution,
inpainting; its sketches are in [0, 1], dark on white, as ours are.
Differs: sketches are made by one filter that also cleans hand drawings, so that photo and drawing give the same input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import OptionError, ShapeError
from limner.translation.classes import OURS, LabelClass, swaps

REFERENCE_PX = 256
"""Side for which widths in pixels are given."""
LUMA = (0.299, 0.587, 0.114)
FACTORS = (4, 8, 16)
"""Of random down-sampling."""
Scheme = tuple[LabelClass, ...]
LABEL_INDICES = tuple(one.index for one in OURS)
"""Index of the class that each channel of the task ``labels`` stands for."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: on the command line and in a `Translator`.
        in_channels: of the network's input.
        summary: half a sentence for help texts.
        source: folder of the paired data that holds the input; ``photo`` where the input is made of the truth.
        truth: folder that holds what should come out.
        photo: whether the input shows a face as a photo does, so that faces can be found and aligned.
        made: whether `make_input` makes the input out of a photo by itself.
    """

    name: str
    in_channels: int
    summary: str
    source: str = "photo"
    truth: str = "photo"
    photo: bool = False
    made: bool = False


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sketch", 1, "a line drawing to a face", made=True),
        Task("labels", len(OURS), "a label map to a face", source="labels"),
        Task("super-resolution", 3, "a small or blurred face to a sharp one", photo=True, made=True),
        Task("inpaint", 4, "a face with missing parts to a whole one", photo=True, made=True),
        Task("frontal", 3, "a turned face to a frontal one", truth="frontal", photo=True),
        Task("toon", 3, "a toon picture to a face", source="toon"),
    )
}


def find_task(name: str) -> Task:
    """Return a task by its name.

    Raises:
        OptionError: there is none.
    """
    if name not in TASKS:
        raise OptionError(f"task is {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def make_input(
    task: str | Task,
    photo: Tensor,
    rng: torch.Generator | None = None,
    *,
    paired: Tensor | None = None,
    scheme: Scheme = OURS,
    factors: Sequence[int] = FACTORS,
) -> Tensor:
    """Make what a task's network sees.

    Args:
        task: or its name.
        photo: (B, 3, H, W), [-1, 1], aligned: the true face, where the input is made of it.
        rng: varies strength, factor and mask per picture; a generator on the CPU.  None for fixed defaults.
        paired: what belongs to the photo instead of what would be made of it: a drawing (B, 1 or 3, H, W) in
            [-1, 1]; a label map, integers (B, H, W) or (B, 1, H, W); a small picture, of any
            side; a mask (B, 1, H, W), 1 where parts are missing; the turned or the toon picture.
        scheme: classes of the label map; ours unless the network was made for others, as pSp's are.
        factors: of down-sampling, of which ``rng`` picks one per picture.

    Returns:
        (B, in_channels, H, W).  Sketches are in [0, 1], 1 for paper; label maps one-hot; of ``inpaint`` the first three
        channels are the photo, 0 where it is missing, the fourth is the mask; everything else is in [-1, 1].

    Raises:
        OptionError: no such task, or it needs ``paired``.
        ShapeError: wrong shapes.
    """
    task = find_task(task) if isinstance(task, str) else task
    if photo.ndim != 4 or photo.shape[1] != 3:
        raise ShapeError(f"photo has shape {tuple(photo.shape)}, expected (B, 3, H, W)")
    if task.name == "sketch":
        return draw(photo if paired is None else paired, rng)
    if task.name == "labels":
        if paired is None:
            raise OptionError("the task labels needs a label map (paired); none can be made from a photo")
        return one_hot(paired, scheme)
    if task.name == "super-resolution":
        return shrink(photo, rng, factors=factors) if paired is None else resize(paired, photo.shape[2:])
    if task.name == "inpaint":
        mask = make_masks(photo, rng) if paired is None else paired.to(photo)
        if mask.shape != (len(photo), 1, *photo.shape[2:]):
            raise ShapeError(f"mask has shape {tuple(mask.shape)} for photos {tuple(photo.shape)}")
        return torch.cat([photo * (1 - mask), mask], 1)
    return photo if paired is None else resize(paired, photo.shape[2:])


def show_input(task: str | Task, x: Tensor, *, scheme: Scheme = OURS) -> Tensor:
    """Return a picture of what a task's network sees.

    Args:
        task: or its name.
        x: (B, in_channels, H, W), as `make_input` returns it.
        scheme: classes of label maps.

    Returns:
        (B, 3, H, W), [-1, 1]; label maps in the colours of their classes.
    """
    task = find_task(task) if isinstance(task, str) else task
    if task.name == "labels":
        colors = torch.tensor([one.color for one in scheme]).to(x) / 127.5 - 1
        return torch.einsum("bchw,cd->bdhw", x, colors)
    return (2 * x - 1).expand(-1, 3, -1, -1) if task.in_channels == 1 else x[:, :3]


def mirror_input(task: str | Task, x: Tensor, *, scheme: Scheme = OURS) -> Tensor:
    """Return the input of the mirrored face: left and right classes change places in label maps."""
    task = find_task(task) if isinstance(task, str) else task
    x = x.flip(3)
    if task.name != "labels":
        return x
    other, indices = swaps(scheme), [one.index for one in scheme]
    order = [indices.index(other.get(index, index)) for index in indices]
    return x[:, order]


def resize(image: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Bring an image (B, C, H, W) to a size, bicubic and antialiased, within [-1, 1]."""
    if tuple(image.shape[2:]) == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def blur(x: Tensor, sigma_px: float) -> Tensor:
    """Blur (B, C, H, W) with a Gaussian; the border is mirrored."""
    radius = min(max(1, math.ceil(3 * sigma_px)), min(x.shape[2:]) - 1)
    at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / sigma_px) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.pad(x, (radius, radius, radius, radius), mode="reflect")
    x = F.conv2d(x, kernel[:, :, None], groups=x.shape[1])
    return F.conv2d(x, kernel[..., None], groups=x.shape[1])


def draw(image: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Make a line drawing of a photo, or clean a drawing: what is darker than its surroundings becomes ink.

    The grey picture is divided by its blurred self ("dodging"), which flattens light, skin and paper alike; what stays
    below 1 is ink.  Ink is then scaled by each picture's own darkest lines, so that a faint pencil counts as a firm one.

    Args:
        image: (B, 1 or 3, H, W), [-1, 1].
        rng: varies width, firmness and gaps of the lines per picture.

    Returns:
        (B, 1, H, W), [0, 1], 1 for paper.

    Raises:
        ShapeError: neither 1 nor 3 channels.
    """
    if image.ndim != 4 or image.shape[1] not in (1, 3):
        raise ShapeError(f"a drawing has shape {tuple(image.shape)}, expected (B, 1 or 3, H, W)")
    luma = torch.tensor(LUMA).to(image).view(1, 3, 1, 1)
    grey = (image * luma).sum(1, keepdim=True) if image.shape[1] == 3 else image
    grey = (grey + 1) / 2
    scale = min(grey.shape[2:]) / REFERENCE_PX
    found = []
    for one in grey.split(1):
        width, firm, least = 4.0, 1.0, 0.08
        if rng is not None:
            a, b, c = torch.rand(3, generator=rng).tolist()
            width, firm, least = 2.5 * 2.6**a, 0.6 + 0.8 * b, 0.03 + 0.14 * c
        one = blur(one, max(0.3, 0.6 * scale))  # grain is not a line
        ink = 1 - (one + 0.06) / (blur(one, max(0.5, width * scale)) + 0.06)
        top = ink.flatten().quantile(0.985).clamp_min(0.1)
        ink = ((ink / top - least) / (1 - least)).clamp(0, 1)
        found.append(1 - (firm * ink).clamp(0, 1))
    return torch.cat(found)


def one_hot(labels: Tensor, scheme: Scheme = OURS) -> Tensor:
    """Turn label maps of a scheme, integers (B, H, W) or (B, 1, H, W), into (B, classes, H, W) of 0 and 1.

    Raises:
        ShapeError: other shapes, or an index that is no class.
    """
    if labels.ndim == 4 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 3 or labels.is_floating_point():
        raise ShapeError(f"label map is {labels.dtype} {tuple(labels.shape)}, expected integers (B, H, W)")
    indices = tuple(one.index for one in scheme)
    planes = torch.stack([labels == index for index in indices], 1)
    if not bool(planes.any(1).all()):
        unknown = sorted(set(labels.unique().tolist()) - set(indices))
        raise ShapeError(f"label map holds the indices {unknown}; classes are {indices}")
    return planes.float()


def shrink(
    photo: Tensor,
    rng: torch.Generator | None = None,
    *,
    factor: int = 8,
    factors: Sequence[int] = FACTORS,
) -> Tensor:
    """Down-sample photos and bring them back to their size.

    Args:
        photo: (B, 3, H, W).
        rng: picks one of ``factors`` per picture.
        factor: without ``rng``.
        factors: see above.
    """
    found = []
    for one in photo.split(1):
        if rng is not None:
            factor = factors[int(torch.randint(len(factors), (), generator=rng))]
        small = [max(1, side // factor) for side in photo.shape[2:]]
        found.append(resize(resize(one, tuple(small)), photo.shape[2:]))
    return torch.cat(found)


def make_masks(photo: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Return masks for photos (B, C, H, W), (B, 1, H, W), 1 where parts are to be missing.

    Args:
        photo: gives size and device.
        rng: draws up to two rectangles and three strokes per picture, at least one of either; without it the middle
            square of half the side is missing.
    """
    height, width = photo.shape[2:]
    y = (torch.arange(height) + 0.5).view(-1, 1) / height
    x = (torch.arange(width) + 0.5).view(1, -1) / width
    masks = []
    for _ in range(len(photo)):
        if rng is None:
            masks.append(((x - 0.5).abs() < 0.25) & ((y - 0.5).abs() < 0.25))
            continue
        mask = torch.zeros(height, width, dtype=torch.bool)
        rectangles, strokes = (
            int(torch.randint(0, 3, (), generator=rng)),
            int(torch.randint(0, 4, (), generator=rng)),
        )
        for _ in range(max(rectangles, int(not strokes))):
            cx, cy, w, h = torch.rand(4, generator=rng).tolist()
            cx, cy = 0.1 + 0.8 * cx, 0.1 + 0.8 * cy  # mostly on the face
            mask |= ((x - cx).abs() < 0.06 + 0.19 * w) & ((y - cy).abs() < 0.06 + 0.19 * h)
        for _ in range(strokes):
            mask |= _stroke(x, y, rng)
        masks.append(mask)
    return torch.stack(masks)[:, None].to(photo)


def _stroke(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Return where a bent stroke of a thick brush runs, (H, W)."""
    px, py, turn, thick = torch.rand(4, generator=rng).tolist()
    angle, thick = 2 * math.pi * turn, 0.015 + 0.035 * thick
    found = torch.zeros(y.shape[0], x.shape[1], dtype=torch.bool)
    for _ in range(4):
        bend, length = torch.rand(2, generator=rng).tolist()
        angle, length = angle + (bend - 0.5) * 2.4, 0.08 + 0.22 * length
        dx, dy = length * math.cos(angle), length * math.sin(angle)
        along = (((x - px) * dx + (y - py) * dy) / length**2).clamp(0, 1)
        found |= ((x - px - along * dx) ** 2 + (y - py - along * dy) ** 2) < thick**2
        px, py = min(max(px + dx, 0.0), 1.0), min(max(py + dy, 0.0), 1.0)
    return found
