"""Label maps from files: by index or by colour, in one scheme of classes or another.

A file with a palette or in grey holds indices; a palette that carries a legend's colours is read by them, as any coloured
picture is.  What no class has is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.errors import MediaError, OptionError
from limner.media.files import BROKEN
from limner.options import read_recipe
from limner.translation.classes import CELEBA, OURS, SCHEMES, Color, LabelClass, index_of, swaps

TOLERANCE = 24
"""How far a colour may lie from its class's, per channel: as far as a JPEG file moves it."""
LEAST_SHARE = 0.0005
"""Share of the pixels from which on one unknown colour is a class of its own, not the soft edge between two others."""
MOST_EDGES = 0.05
"""Share of pixels that all soft edges together may have."""

Legend = Mapping[Color, int]


def legend_of(scheme: Sequence[LabelClass]) -> dict[Color, int]:
    """Return colour -> index of a scheme."""
    return {one.color: one.index for one in scheme}


def read_legend(path: str | Path, scheme: Sequence[LabelClass]) -> dict[Color, int]:
    """Read a legend, a YAML or JSON mapping of colours (``"#cc0000"``) to names or numbers of classes.

    Raises:
        OptionError: no such file, no mapping, an unreadable colour, or no such class.
    """
    found: dict[Color, int] = {}
    known = {one.name: one.index for one in scheme} | {str(one.index): one.index for one in scheme}
    for text, value in read_recipe(path).items():
        digits = str(text).removeprefix("#")
        try:
            if len(digits) != 6:
                raise ValueError
            color = tuple(bytes.fromhex(digits))
        except ValueError:
            raise OptionError(f"legend {path}: {text!r} is no colour; write it as '#cc0000'") from None
        if str(value) not in known:
            names = ", ".join(one.name for one in scheme)
            raise OptionError(f"legend {path}: {value!r} is no class; classes are {names}")
        found[color[0], color[1], color[2]] = known[str(value)]
    if not found:
        raise OptionError(f"legend {path} is empty")
    return found


def read_labels(
    path: str | Path, *, to: str = "limner", scheme: str = "auto", legend: str | Path | None = None
) -> np.ndarray:
    """Read a label map and bring it to a scheme.

    Args:
        path: PNG with a palette or in grey (indices), or any coloured picture.
        to: scheme of the result, a key of `classes.SCHEMES`.
        scheme: of the file, or ``auto``: the one whose colours it has; for indices, celeba if there is one that our
            classes lack, else ``to``.
        legend: file with other colours, see `read_legend`; its classes are those of ``scheme``, or of ``to``.

    Returns:
        Indices, int64 (H, W).

    Raises:
        MediaError: unreadable; a colour or an index that is no class.
        OptionError: the legend cannot be used.
    """
    path = Path(path)
    picture = _open(path)
    indices = np.asarray(picture) if picture.mode in ("P", "L", "1", "I", "I;16") else None
    own = None if scheme == "auto" else SCHEMES[scheme]
    if legend is not None:
        source = own or SCHEMES[to]
        return convert(by_color(_rgb(picture), read_legend(legend, source), where=str(path)), source, to)
    rgb = _rgb(picture)
    if indices is None and (rgb == rgb[..., :1]).all() and rgb.max() <= max(one.index for one in CELEBA):
        indices = rgb[..., 0]  # indices that were saved as RGB
    if indices is not None and picture.mode == "P":
        source = own or _scheme_of_colors(rgb)
        if source is not None and _known_share(rgb, source) == 1:
            return convert(by_color(rgb, legend_of(source), where=str(path)), source, to)
    if indices is not None:
        source = own or _scheme_of_indices(indices, SCHEMES[to])
        return convert(by_index(indices, source, where=str(path)), source, to)
    source = own or max(SCHEMES.values(), key=lambda one: _known_share(rgb, one, TOLERANCE))
    return convert(by_color(rgb, legend_of(source), where=str(path)), source, to)


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise MediaError(f"{path}: no such file" if not path.exists() else f"{path} is not a file")
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.copy()
    except BROKEN as error:
        raise MediaError(f"{path} cannot be read as a label map: {error or type(error).__name__}") from None


def _rgb(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


def _known_share(rgb: np.ndarray, scheme: Sequence[LabelClass], tolerance: int = 0) -> float:
    """Return the share of pixels that have a colour of the scheme, give or take ``tolerance`` per channel."""
    colors, _, counts = _colors_of(rgb)
    _, far = _find_nearest(colors, [one.color for one in scheme])
    return float(counts[far <= tolerance].sum() / counts.sum())


def _scheme_of_colors(rgb: np.ndarray) -> tuple[LabelClass, ...] | None:
    """Return the scheme that has all colours, if one has and the picture is not black alone."""
    fitting = [one for one in SCHEMES.values() if _known_share(rgb, one) == 1]
    return fitting[0] if fitting and rgb.any() else None


def _scheme_of_indices(indices: np.ndarray, fallback: tuple[LabelClass, ...]) -> tuple[LabelClass, ...]:
    theirs = {one.index for one in CELEBA} - {one.index for one in OURS}
    return CELEBA if np.isin(indices, list(theirs)).any() else fallback


def _colors_of(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the n colours of a picture, int64 (n, 3), which one every pixel has, (H, W), and how many have it, (n,)."""
    packed = rgb.astype(np.int64) @ [65536, 256, 1]
    found, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    return np.stack([found >> 16, found >> 8 & 255, found & 255], 1), inverse.reshape(packed.shape), counts


def _find_nearest(colors: np.ndarray, known: Sequence[Color]) -> tuple[np.ndarray, np.ndarray]:
    """Return which of k known colours is nearest to each of n, (n,), and the largest difference of a channel, (n,)."""
    nearest, far = np.zeros(len(colors), np.int64), np.zeros(len(colors), np.int64)
    least = np.full(len(colors), np.iinfo(np.int64).max)
    for number, color in enumerate(known):  # one by one: a photo has millions of colours
        difference = np.abs(colors - color)
        square = (difference**2).sum(1)
        closer = square < least
        nearest[closer], far[closer], least[closer] = number, difference.max(1)[closer], square[closer]
    return nearest, far


def by_index(
    indices: np.ndarray, scheme: Sequence[LabelClass], *, where: str = "the label map"
) -> np.ndarray:
    """Check an indexed map, (H, W), and return it as int64.

    Raises:
        MediaError: an index that is no class.
    """
    values, counts = np.unique(indices.astype(np.int64), return_counts=True)
    known = [one.index for one in scheme]
    wrong = [(count, value) for value, count in zip(values, counts, strict=True) if value not in known]
    if wrong:
        count, value = max(wrong)
        raise MediaError(
            f"{where}: index {value} on {100 * count / indices.size:.1f} % of the pixels is no class; "
            f"classes are {', '.join(f'{one.index} {one.name}' for one in scheme)}"
        )
    return indices.astype(np.int64)


def by_color(rgb: np.ndarray, legend: Legend, *, where: str = "the label map") -> np.ndarray:
    """Turn colours, uint8 (H, W, 3), into indices by a legend.

    Colours close to a class's, and the few mixed ones of soft edges, become the nearest class.

    Raises:
        MediaError: a colour that is no class.
    """
    colors, inverse, counts = _colors_of(rgb)
    nearest, far = _find_nearest(colors, list(legend))
    strange = far > TOLERANCE
    shares = counts / counts.sum()
    wrong = strange & (shares >= LEAST_SHARE) & (counts > 3)
    if wrong.any() or shares[strange].sum() > MOST_EDGES:
        worst = int(np.where(wrong if wrong.any() else strange, shares, 0).argmax())
        also = int(wrong.sum()) - 1
        raise MediaError(
            f"{where}: the colour {_hex(colors[worst])} on {100 * shares[worst]:.1f} % of the pixels is no class"
            + (f", nor are {also} more colours" if also > 0 else "")
            + f"; the legend has {', '.join(map(_hex, legend))}"
        )
    return np.array(list(legend.values()), np.int64)[nearest][inverse]


def _hex(color: Sequence[int] | np.ndarray) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def convert(labels: np.ndarray, scheme: Sequence[LabelClass], to: str) -> np.ndarray:
    """Bring a map of one scheme to another, by the table in `limner.translation.classes`.

    Where one of our classes stands for two of CelebAMask-HQ's, place decides: brows and ears left and right of the
    eyes' middle, lips above and below the mouth's.
    """
    if scheme is SCHEMES[to]:
        return labels
    target = SCHEMES[to]
    table = np.zeros(256, np.int64)
    for one in scheme:
        table[one.index] = index_of(one.becomes, target)
    found = table[labels]
    if target is not CELEBA:
        return found
    eyes = np.isin(labels, [index_of("eye_left", OURS), index_of("eye_right", OURS)])
    face = eyes if eyes.any() else labels == index_of("skin", OURS)
    middle = np.nonzero(face)[1].mean() if face.any() else labels.shape[1] / 2
    right = np.arange(labels.shape[1])[None] > middle
    for ours, theirs in (("brows", "r_brow"), ("ears", "r_ear")):
        found[(labels == index_of(ours, OURS)) & right] = index_of(theirs, CELEBA)
    lips = labels == index_of("lips", OURS)
    inside = labels == index_of("mouth_inside", OURS)
    if lips.any():
        height = np.nonzero(inside if inside.any() else lips)[0].mean()
        found[lips & (np.arange(labels.shape[0])[:, None] > height)] = index_of("l_lip", CELEBA)
    return found


def mirror(labels: np.ndarray, scheme: Sequence[LabelClass] = OURS) -> np.ndarray:
    """Return the map of the mirrored face: left and right classes change places."""
    table = np.arange(256)
    for index, other in swaps(tuple(scheme)).items():
        table[index] = other
    return table[labels[:, ::-1]]


def paint(labels: np.ndarray, scheme: Sequence[LabelClass] = OURS) -> np.ndarray:
    """Return a map in the colours of its scheme, uint8 (H, W, 3)."""
    table = np.zeros((256, 3), np.uint8)
    for one in scheme:
        table[one.index] = one.color
    return table[labels]


def square(labels: np.ndarray, side: int) -> np.ndarray:
    """Return the largest centred square of a map, brought to a side by taking the nearest pixels."""
    height, width = labels.shape
    most = min(height, width)
    at = np.minimum(((np.arange(side) + 0.5) * most / side).astype(int), most - 1)
    return labels[(height - most) // 2 + at][:, (width - most) // 2 + at]


def planes(labels: np.ndarray, scheme: Sequence[LabelClass]) -> Tensor:
    """Return a map as one plane of 0 and 1 per class, (1, classes, H, W)."""
    indices = torch.from_numpy(labels)
    return torch.stack([indices == one.index for one in scheme])[None].float()
