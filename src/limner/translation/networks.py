"""What translates: a network with a core per task, or an encoder of pSp for one; both give codes of a generator.

Source: Richardson et al. 2021, pSp (arXiv 2008.00951), section 4; several outputs by style mixing, section 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limner.errors import CheckpointError, OptionError
from limner.latent import Latent
from limner.latent.masks import LayerMask, mix
from limner.nn.encoders import Encoder, check_pair, codes_to_w_plus, refine, to_input
from limner.nn.stylegan2 import Generator
from limner.nn.translator import Translator
from limner.translation.classes import CELEBA, OURS, LabelClass
from limner.translation.tasks import TASKS, Task

PSP_TASKS: dict[str, tuple[str, ...]] = {
    "celebs_sketch_to_face": ("sketch",),
    "celebs_seg_to_face": ("labels",),
    "celebs_super_resolution": ("super-resolution",),
    "ffhq_frontalize": ("frontal",),
    "ffhq_encode": ("toon",),
}
"""``dataset_type`` of pSp's ``opts`` -> what the checkpoint does; toonify was trained as ``ffhq_encode``."""
TASK_KEY = "limner_task"
"""Name in ``opts`` by which Limner's own training says its task, where pSp has none like it: inpaint, and toon pictures
to faces, the other way round than toonify."""
BY_CHANNELS: dict[int, tuple[str, ...]] = {
    1: ("sketch",),
    len(CELEBA): ("labels",),
    3: ("toon", "super-resolution", "frontal"),
    4: ("inpaint",),
}
"""What an encoder may do whose ``opts`` do not say it."""


class TaskNetwork(Protocol):
    """What `limner.nn.translator.Translator` and `PspTranslator` share: names of tasks, and inputs to codes."""

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks that it does."""
        ...

    def __call__(self, task: str, x: Tensor) -> Tensor:
        """Input of a task (B, C, S, S) -> w+ (B, L, w_dim)."""
        ...


class PspTranslator(nn.Module):
    """An encoder of the pSp family that does one task.

    Args:
        encoder: its stem tells photos, sketches and label maps.
        generator: the one it was trained with.
        opts: options of its training run; ``dataset_type`` names the task.

    Raises:
        CheckpointError: it sees something that no task has.
        ShapeError: encoder and generator do not fit.
    """

    scheme: tuple[LabelClass, ...] = CELEBA

    def __init__(self, encoder: Encoder, generator: Generator, opts: Mapping[str, Any] | None = None):
        super().__init__()
        check_pair(encoder, generator)
        self.encoder, self.generator = encoder, generator
        channels = encoder.in_channels // (2 if encoder.feedback else 1)
        if channels not in BY_CHANNELS:
            raise CheckpointError(
                f"this encoder sees {channels} channels; expected 1 (sketch), 3 (photo), "
                f"4 (photo and mask) or {len(CELEBA)} (label map)"
            )
        opts = opts or {}
        own = opts.get(TASK_KEY)
        named = (str(own),) if own else PSP_TASKS.get(str(opts.get("dataset_type")), BY_CHANNELS[channels])
        self.from_toon = own == "toon"
        self._tasks = list(named if set(named) <= set(BY_CHANNELS[channels]) else BY_CHANNELS[channels])
        self.input_px = encoder.in_size

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that it does; several where its file does not say which."""
        return self._tasks

    def forward(self, task: str, x: Tensor) -> Tensor:
        """Input of a task (B, C, S, S) -> w+ (B, L, w_dim)."""
        check_task(self, task)
        codes = refine(self.encoder, self.generator, to_input(self.encoder, x))[-1]
        return codes_to_w_plus(self.generator, self.encoder, codes)


def check_task(network: TaskNetwork, name: str) -> Task:
    """Return a task that a network does; without a name, its only one.

    Raises:
        OptionError: it does another, or several and none is named.
    """
    can = list(network.tasks)
    if not name and len(can) == 1:
        return TASKS[can[0]]
    if name not in can:
        what = f"task is {name!r}, but this model does" if name else "task is not given; this model does"
        raise OptionError(f"{what} {', '.join(can)}; name one with --task")
    return TASKS[name]


def scheme_of(network: TaskNetwork) -> tuple[LabelClass, ...]:
    """Return the classes whose planes a network sees."""
    return CELEBA if isinstance(network, PspTranslator) else OURS


def input_side(network: TaskNetwork, generator: Generator) -> int:
    """Return the side in px of what a network sees."""
    seeing = network.core if isinstance(network, Translator) else network
    return int(getattr(seeing, "input_px", generator.resolution))


def sees_photo(network: TaskNetwork, task: Task) -> bool:
    """Say whether the input of a task is a photo, in which faces can be found: pSp's toonify turns photos into toons."""
    toonify = isinstance(network, PspTranslator) and not network.from_toon
    return task.photo or (toonify and task.name == "toon")


def default_mix(generator: Generator) -> LayerMask:
    """Return the layers that vary between several outputs: rows 8 and up, or the upper half of small models.

    Rows are counted from the input, so that row 8, the second layer of 64 px, is the same at every size.
    """
    return LayerMask("fine" if generator.num_rows > 8 else f"{generator.num_rows // 2}-")


@torch.no_grad()
def mix_styles(
    generator: Generator,
    w_plus: Tensor,
    count: int,
    *,
    mask: LayerMask | None = None,
    alpha: float = 1.0,
    psi: float = 1.0,
    rng: torch.Generator,
) -> Tensor:
    """Return several codes for one input: its own, then others that take layers from random faces.

    Args:
        generator: maps the random faces.
        w_plus: (1, L, w_dim).
        count: how many.  One alone is its own without a mask, and with one what would be the second of several: who
            names layers wants them changed.
        mask: layers that are taken; None for `default_mix`.
        alpha: how much of them; the mask's weights count too.
        psi: truncation of the random faces.
        rng: draws them; a generator on the CPU.

    Returns:
        (count, L, w_dim), of several the first as given.

    Source: Richardson et al. 2021, section 4.3: fine rows of a random w, blended by alpha.
    """
    if count == 1 and mask is None:
        return w_plus
    z = torch.randn(max(1, count - 1), generator.z_dim, generator=rng).to(w_plus)
    random = generator.truncate(generator.broadcast(generator.mapping(z)), psi)
    own = w_plus.expand_as(random)
    mixed = mix(Latent("w+", own), Latent("w+", random), mask or default_mix(generator), generator)
    if mixed.space != "w+":
        raise OptionError(
            f"mix is {mask}, which tells toRGB from convolutions; write it in rows, such as 8-11"
        )
    assert isinstance(mixed.values, Tensor)
    mixtures = torch.lerp(own, mixed.values, alpha)
    return mixtures if count == 1 else torch.cat([w_plus, mixtures])
