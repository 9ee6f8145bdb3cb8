"""A training run in parcels, for a machine that little can be sent to and fetched from.

Only what the run needs to go on is kept, in as few bytes as do no harm: Adam's first moments are left out where their
decay is 0, since the next step overwrites them; its second moments become logarithms in 8 bits, the averaged generator
and the discriminator float16, and the generator the float16 difference to its average; of the Fréchet loss's statistics
the map is left out, which follows from the others.  A run that goes on from a parcel is not the same to the last bit as
one that was never packed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.checkpoints import Checkpoint, save
from limner.errors import CheckpointError
from limner.files import replacing
from limner.nn.transport import FrechetPull
from limner.options import to_mapping
from limner.training.gan.options import GanOptions
from limner.training.gan.training import build_generator

FORMAT = 2
HALF_ERROR = 1e-3  # relative, that float16 may cost a tensor; very small and very large values stay float32
SMALL = 4096  # elements of tensors that are not worth it: statistics, scales, biases
OCTAVE = 8  # levels of a second moment per factor of 2: 4 % off at most, 2 % of a step's length, for some 100 steps
NOTHING = 255  # the level that stands for 0
MANIFEST = "manifest.json"


def _half(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype is not torch.float32 or value.numel() < SMALL:
        return value
    half = value.half()
    return half if (half.float() - value).norm() <= HALF_ERROR * value.norm() else value


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _is_optimiser(part: Any) -> bool:
    return isinstance(part, dict) and set(part) == {"state", "param_groups"}


def _to_levels(value: Tensor) -> dict[str, Tensor]:
    """Return positive numbers as logarithms of their share of the largest, 8 bits each."""
    peak = value.max()
    levels = (-OCTAVE * (value / peak).log2()).round().clamp(0, NOTHING - 1)
    return {"peak": peak, "levels": torch.where(value > 0, levels, NOTHING).to(torch.uint8)}


def _from_levels(part: dict[str, Tensor]) -> Tensor:
    levels = part["levels"]
    return torch.where(levels < NOTHING, part["peak"] * torch.exp2(levels.float() / -OCTAVE), 0.0)


def _shrink_optimiser(part: dict[str, Any]) -> dict[str, Any]:
    forgetful = all(group["betas"][0] == 0 for group in part["param_groups"])
    slots = {}
    for number, slot in part["state"].items():
        kept = {name: value for name, value in slot.items() if not (forgetful and name == "exp_avg")}
        if kept["exp_avg_sq"].numel() >= SMALL:
            kept["exp_avg_sq"] = _to_levels(kept["exp_avg_sq"])
        slots[number] = kept
    return {"state": slots, "param_groups": part["param_groups"]}


def _grow_optimiser(part: dict[str, Any]) -> dict[str, Any]:
    slots = {}
    for number, slot in part["state"].items():
        packed = slot["exp_avg_sq"]
        whole = dict(slot, exp_avg_sq=_from_levels(packed) if isinstance(packed, dict) else packed)
        whole.setdefault("exp_avg", torch.zeros_like(whole["exp_avg_sq"]))
        slots[number] = whole
    return {"state": slots, "param_groups": part["param_groups"]}


def _shrink_pull(part: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: value for name, value in part.items() if not name.endswith(".map")}
    return {name: value.float() if value.ndim == 2 else value for name, value in kept.items()}


def _grow_pull(part: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = {name: value.double() if value.ndim == 2 else value for name, value in part.items()}
    roots = {name: value for name, value in whole.items() if name.endswith(".real_root")}
    whole |= {name.replace(".real_root", ".map"): torch.zeros_like(value) for name, value in roots.items()}
    pull = FrechetPull(widths=[len(value) for value in roots.values()])
    pull.load_state_dict(whole)
    pull.renew()
    return pull.state_dict()


def _change_game(
    game: dict[str, Any],
    optimiser: Callable[[dict[str, Any]], dict[str, Any]],
    pull: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, Any]:
    """Apply the one to the optimisers of a game's state, the other to what the Fréchet loss knows."""
    return {
        name: optimiser(part) if _is_optimiser(part) else pull(part) if name == "pull" else part
        for name, part in game.items()
    }


def shrink_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a GAN run (`GanTraining.state`) in less than a third of the bytes; see the module."""
    average = {name: _half(value) for name, value in state["ema"].items()}
    offset = {name: _half(value - _full(average[name])) for name, value in state["G"].items()}
    return {
        **state,
        "parcel": FORMAT,
        "ema": average,
        "G": offset,
        "D": {name: _half(value) for name, value in state["D"].items()},
        "game": _change_game(state["game"], _shrink_optimiser, _shrink_pull),
    }


def grow_state(parcel: dict[str, Any]) -> dict[str, Any]:
    """Return the state that `shrink_state` was given, in float32.

    Raises:
        CheckpointError: it is no parcel, or one of another version.
    """
    if parcel.get("parcel") != FORMAT:
        raise CheckpointError(
            f"a parcel of version {parcel.get('parcel')} was given, expected {FORMAT}; pack it again"
        )
    average = {name: _full(value) for name, value in parcel["ema"].items()}
    return {
        **{name: value for name, value in parcel.items() if name != "parcel"},
        "ema": average,
        "G": {name: average[name] + _full(value) for name, value in parcel["G"].items()},
        "D": {name: _full(value) for name, value in parcel["D"].items()},
        "game": _change_game(parcel["game"], _grow_optimiser, _grow_pull),
    }


def export_average(
    state: Mapping[str, Any], options: GanOptions, path: Path, figures: Mapping[str, float]
) -> None:
    """Write the averaged generator of a state as a model file, as `limner train gan` does at the end of a call.

    Args:
        state: of a GAN run, or what `grow_state` returned.
        options: the run's.
        path: the file.
        figures: what the log says of it.

    Raises:
        CheckpointError: the state is of another generator than the options.
    """
    generator = build_generator(options)
    try:
        generator.load_state_dict(state["ema"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the state is no generator of these options ({str(error).splitlines()[0]})"
        ) from None
    generator.eval()
    generator.w_avg.copy_(generator.mean_w(options.w_samples, rng=torch.Generator().manual_seed(0)))
    provenance = {"command": "train gan", "options": to_mapping(options), "images": state["images"]}
    provenance["figures"] = {name: round(value, 4) for name, value in figures.items()}
    metadata = {"provenance": provenance, "licence": "unknown"}
    save(Checkpoint(generator=generator, metadata=metadata), path, dtype="float16")


def split_file(file: Path, folder: Path, *, part_bytes: int) -> list[Path]:
    """Cut a file into ``NAME.000``, ``NAME.001``, ... and write what they must join to, ``NAME.manifest.json``.

    Returns:
        All files written, the manifest last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written, total = [], hashlib.sha256()
    with file.open("rb") as source:
        while block := source.read(part_bytes):
            total.update(block)
            written.append(folder / f"{file.name}.{len(written):03d}")
            written[-1].write_bytes(block)
    manifest = {"name": file.name, "parts": [part.name for part in written], "sha256": total.hexdigest()}
    written.append(folder / f"{file.name}.{MANIFEST}")
    written[-1].write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return written


def join_file(manifest: Path, target: Path) -> bool:
    """Put the parts beside a manifest together again; return False while some are missing.

    Raises:
        CheckpointError: all are there, but they are not what was cut.
    """
    wanted = json.loads(manifest.read_text(encoding="utf-8"))
    parts = [manifest.with_name(name) for name in wanted["parts"]]
    if not all(part.exists() for part in parts):
        return False
    total = hashlib.sha256()
    with replacing(target) as temporary, temporary.open("wb") as out:
        for part in parts:
            block = part.read_bytes()
            total.update(block)
            out.write(block)
        if total.hexdigest() != wanted["sha256"]:
            raise CheckpointError(
                f"the parts of {wanted['name']} in {manifest.parent} are damaged or mixed; fetch them again"
            )
    return True
