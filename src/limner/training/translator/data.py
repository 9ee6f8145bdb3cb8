"""What a translator learns from: photos, pairs of one scene, and the codes that a teacher finds for the true faces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.errors import MediaError, OptionError
from limner.files import replacing
from limner.nn.compact import CompactEncoder
from limner.nn.stylegan2 import Generator
from limner.synth.dataset import META_NAME, read_records
from limner.training.data import (
    Parts,
    Sources,
    list_pictures,
    load_parts,
    number_of,
    select_names,
    split_sources,
)
from limner.translation import TASKS, Task, make_input, mirror_input
from limner.translation.classes import OURS, SCHEMES
from limner.translation.labels import by_index, convert
from limner.translation.tasks import Scheme

CHUNK = 16
"""Pictures that the teacher sees at a time; always the same, since sums depend on it in their last bits."""

OnPictures = Callable[[int, int, str], None]
"""Called with pictures done, pictures in all, and what they are."""


def find_tasks(names: tuple[str, ...]) -> dict[str, Task]:
    """Return the tasks that an option names, in the order of `TASKS`.

    Raises:
        OptionError: an unknown name, or none.
    """
    chosen = set(TASKS) if names == ("all",) else set(names)
    if unknown := sorted(chosen - set(TASKS)):
        raise OptionError(f"task is {', '.join(unknown)}, expected all or some of {', '.join(TASKS)}")
    if not chosen:
        raise OptionError(f"task is empty, expected all or some of {', '.join(TASKS)}")
    return {name: task for name, task in TASKS.items() if name in chosen}


def read_labels(parts: Parts, resolution: int, *, classes: str = "limner", to: str = "limner") -> Tensor:
    """Return label maps, uint8 (N, R, R), of folders of indexed PNGs; no class is blended.

    Args:
        parts: folders and names.
        resolution: side in px.
        classes: scheme of the files, a key of `limner.translation.classes.SCHEMES`.
        to: scheme of the result.

    Raises:
        MediaError: a map is not an indexed or grey picture, or holds what is no class.
    """
    files = [folder / name for folder, names in parts for name in names]
    found = torch.empty(len(files), resolution, resolution, dtype=torch.uint8)
    for into, file in zip(found, files, strict=True):
        with Image.open(file) as picture:
            if picture.mode not in ("P", "L"):
                raise MediaError(f"{file} is {picture.mode}, expected a label map: an indexed picture")
            small = picture.resize((resolution, resolution), Image.Resampling.NEAREST)
            labels = by_index(np.array(small, dtype=np.uint8), SCHEMES[classes], where=str(file))
            into.copy_(torch.from_numpy(convert(labels, SCHEMES[classes], to).astype(np.uint8)))
    return found


def list_scenes(root: Path, kinds: Sequence[str], select: str = "") -> dict[str, list[str]]:
    """Return kind -> names of the pictures of the same scenes, in one order; only selected ones, maybe none.

    Of a folder that `limner synth` fills, scenes whose line in ``meta.jsonl`` is missing are still being rendered and
    are left out.

    Args:
        root: folder with a folder per kind of picture.
        kinds: which of them.
        select: see `limner.training.data.split_ranges`.

    Raises:
        OptionError: a folder is missing or empty, or the folders hold other scenes.
    """
    if not root.is_dir():
        raise OptionError(
            f"pairs: there is no folder {root}; make it with limner synth heads {root} --seeds FIRST-LAST --looks toon "
            "--labels --frontal (and --assets FOLDER for heads as those of the bundled models), or leave it out"
        )
    meta = root / META_NAME
    whole = (
        set(read_records(meta)) if meta.is_file() else None
    )  # before the pictures, which are written first
    found: dict[str, list[str]] = {}
    for kind in kinds:
        folder = root / kind
        if not folder.is_dir():
            raise OptionError(f"pairs must hold a folder {kind}, but there is no {folder}")
        names = list_pictures(folder, what="pairs")
        if whole is not None:
            names = [name for name in names if number_of(name) in whole]
        found[kind] = select_names(names, select)
        if [Path(name).stem for name in found[kind]] != [Path(name).stem for name in found[kinds[0]]]:
            raise OptionError(f"pairs: {folder} does not hold the same scenes as {root / kinds[0]}")
    return found


class Scenes:
    """Pictures of the same scenes: what goes in and what should come out.

    Args:
        root: folder with a folder per kind of picture, or several.
        resolution: side in px.
        tasks: what they are wanted for.
        select: see `limner.training.data.split_ranges`; holds for all folders.
        every: each folder must give scenes; else only one of them must.
        classes, to: see `read_labels`.

    Attributes:
        names: of the scenes; equal names in two folders are different scenes.
        counts: folder -> scenes taken from it.
        pixels: kind -> uint8 (N, 3, R, R), label maps (N, R, R).

    Raises:
        OptionError: see `list_scenes`; no scene of a folder is selected.
    """

    def __init__(
        self,
        root: Sources,
        resolution: int,
        tasks: dict[str, Task],
        *,
        select: str = "",
        every: bool = True,
        classes: str = "limner",
        to: str = "limner",
    ):
        kinds = sorted({kind for task in tasks.values() for kind in (task.source, task.truth)})
        found = {place: list_scenes(place, kinds, select) for place in split_sources(root, what="pairs")}
        self.counts = {str(place): len(names[kinds[0]]) for place, names in found.items()}
        empty = [place for place, count in self.counts.items() if not count]
        if empty and (every or len(empty) == len(found)):
            raise OptionError(
                f"pairs {', '.join(empty)}: no scene is selected by {select}; add a range, such as "
                "20000-20899,700000-702999, or leave the folder out"
            )
        self.names = [Path(name).stem for names in found.values() for name in names[kinds[0]]]
        self.pixels: dict[str, Tensor] = {}
        for kind in kinds:
            parts = [(place / kind, names[kind]) for place, names in found.items() if names[kind]]
            if kind == "labels":
                self.pixels[kind] = read_labels(parts, resolution, classes=classes, to=to)
            else:
                self.pixels[kind] = load_parts(parts, resolution)

    def __len__(self) -> int:
        return len(self.names)

    def get(self, kind: str, chosen: Tensor, device: torch.device) -> Tensor:
        """Return pictures (B, 3, R, R) in [-1, 1], or label maps as integers (B, 1, R, R).

        Args:
            kind: photo, labels, frontal or toon.
            chosen: their numbers, (B,).
            device: where to.
        """
        found = self.pixels[kind][chosen].to(device)
        return found.long()[:, None] if kind == "labels" else found.float() / 127.5 - 1


@dataclass(frozen=True)
class DrawnScenes:
    """Random scenes of one task.

    Attributes:
        x: what its network sees, (B, C, R, R).
        truth: (B, 3, R, R), what should come out.
        chosen: numbers of the scenes, (B,).
        flip: which of them are mirrored, (B,).
    """

    x: Tensor
    truth: Tensor
    chosen: Tensor
    flip: Tensor


def draw_scenes(
    scenes: Scenes,
    task: Task,
    count: int,
    rng: torch.Generator,
    *,
    mirror: bool,
    shift: float,
    device: torch.device,
    scheme: Scheme = OURS,
) -> DrawnScenes:
    """Draw scenes at random, half of them mirrored, their inputs shifted a little.

    Args:
        scenes: to draw from.
        task: says which pictures go in and which should come out.
        count: how many.
        rng: on the CPU.
        mirror: whether some are mirrored.
        shift: see `shift_inputs`.
        device: where to.
        scheme: classes of the label maps in ``scenes``.
    """
    chosen = torch.randint(len(scenes), (count,), generator=rng)
    flip = (torch.rand(count, generator=rng) < 0.5) & mirror
    truth = scenes.get(task.truth, chosen, device)
    paired = scenes.get(task.source, chosen, device)
    if task.name == "inpaint":  # its pairs are masks, white where parts are missing
        paired = (paired.mean(1, keepdim=True) > 0).float()
    x = make_input(task, truth, rng, paired=paired, scheme=scheme)
    if flip.any():
        where = flip.to(device)[:, None, None, None]
        x, truth = (
            torch.where(where, mirror_input(task, x, scheme=scheme), x),
            torch.where(where, truth.flip(3), truth),
        )
    return DrawnScenes(shift_inputs(x, shift, rng), truth, chosen, flip)


@torch.no_grad()
def find_codes(
    pixels: Tensor,
    *,
    teacher: CompactEncoder,
    generator: Generator,
    steps: int,
    mirror: bool,
    keep: Path,
    what: str,
    device: torch.device,
    on_pictures: OnPictures | None = None,
) -> Tensor:
    """Return the teacher's codes of pictures, float16 (N, L, w_dim); they are kept on disk.

    Args:
        pixels: uint8 (N, 3, R, R).
        teacher: encoder of the generator.
        generator: its base.
        steps: of the teacher.
        mirror: look at the mirrored pictures.
        keep: folder for the files.
        what: name of the pictures, for file and progress.
        device: where the networks are.
        on_pictures: told how far it is.

    Raises:
        KeyMismatchError: the teacher belongs to another generator.
    """
    teacher.check_base(generator)
    stamp = hashlib.sha256(f"{steps}|{mirror}|{tuple(pixels.shape)}".encode())
    # All of them, since folders may share most of their pictures.
    stamp.update(pixels.contiguous().view(-1).numpy().data)
    for _, value in sorted(teacher.core.state_dict().items()):
        stamp.update(value.detach().cpu().contiguous().numpy().tobytes())
    file = keep / f"codes-{what}{'-mirrored' * mirror}-{stamp.hexdigest()[:12]}.npy"
    if file.is_file():
        return torch.from_numpy(np.load(file))
    parts = []
    for start in range(0, len(pixels), CHUNK):
        image = pixels[start : start + CHUNK].to(device).float() / 127.5 - 1
        image = image.flip(3) if mirror else image
        parts.append(teacher.encode(generator, image, steps=steps)[-1].half().cpu())
        if on_pictures:
            on_pictures(min(start + CHUNK, len(pixels)), len(pixels), what)
    found = torch.cat(parts)
    with replacing(file) as temporary, temporary.open("wb") as out:
        np.save(out, found.numpy())
    return found


def shift_inputs(x: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    """Shift and zoom inputs at random; what comes in from outside repeats the border.

    Args:
        x: (B, C, H, W).
        amount: largest shift as a share of the side; zoom is up to twice that.
        rng: on the CPU.
    """
    if not amount:
        return x
    draw = (torch.rand(len(x), 3, generator=rng) * 2 - 1).to(x)
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + 2 * amount * draw[:, 0]
    theta[:, :, 2] = 2 * amount * draw[:, 1:]  # the side is 2 in these coordinates
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
