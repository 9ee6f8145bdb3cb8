"""A training run in parcels, for a machine that little can be sent to and fetched from.

Only what the run needs to go on is kept, in as few bytes as do no harm: Adam's first moments are left out where their
decay is 0, since the next step overwrites them; its second moments become bfloat16, the averaged generator and the
discriminator float16, and the generator the float16 difference to its average.  A run that goes on from a parcel is
not the same to the last bit as one that was never packed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.errors import CheckpointError
from limner.files import replacing

FORMAT = 1
HALF_ERROR = 1e-3  # relative, that float16 may cost a tensor; very small and very large values stay float32
SMALL = 4096  # elements of tensors that are not worth it: statistics, scales, biases
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


def _shrink_optimiser(part: dict[str, Any]) -> dict[str, Any]:
    forgetful = all(group["betas"][0] == 0 for group in part["param_groups"])
    slots = {}
    for number, slot in part["state"].items():
        kept = {name: value for name, value in slot.items() if not (forgetful and name == "exp_avg")}
        kept["exp_avg_sq"] = kept["exp_avg_sq"].bfloat16()
        slots[number] = kept
    return {"state": slots, "param_groups": part["param_groups"]}


def _grow_optimiser(part: dict[str, Any]) -> dict[str, Any]:
    slots = {}
    for number, slot in part["state"].items():
        whole = dict(slot, exp_avg_sq=slot["exp_avg_sq"].float())
        whole.setdefault("exp_avg", torch.zeros_like(whole["exp_avg_sq"]))
        slots[number] = whole
    return {"state": slots, "param_groups": part["param_groups"]}


def shrink_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a GAN run (`GanTraining.state`) in about a third of the bytes; see the module."""
    average = {name: _half(value) for name, value in state["ema"].items()}
    offset = {name: _half(value - _full(average[name])) for name, value in state["G"].items()}
    game = {
        name: _shrink_optimiser(part) if _is_optimiser(part) else part for name, part in state["game"].items()
    }
    return {
        **state,
        "parcel": FORMAT,
        "ema": average,
        "G": offset,
        "D": {name: _half(value) for name, value in state["D"].items()},
        "game": game,
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
    game = {
        name: _grow_optimiser(part) if _is_optimiser(part) else part for name, part in parcel["game"].items()
    }
    return {
        **{name: value for name, value in parcel.items() if name != "parcel"},
        "ema": average,
        "G": {name: average[name] + _full(value) for name, value in parcel["G"].items()},
        "D": {name: _full(value) for name, value in parcel["D"].items()},
        "game": game,
    }


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
