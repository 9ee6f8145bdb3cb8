"""The bodies that pSp, e4e, ReStyle, HyperInverter and ArcFace share, under the originals' names; ArcFace's file.

ArcFace's ``model_ir_se50.pth`` is a flat state dict with the same names for its body as the encoders have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limner.checkpoints.checkpoint import PathLike
from limner.checkpoints.mismatch import Shape, mismatch_message, some
from limner.checkpoints.networks import Skeleton, adopt, as_tensor
from limner.checkpoints.rosinality import strip_module
from limner.checkpoints.source import open_source
from limner.errors import KeyMismatchError, UnknownFormatError
from limner.nn.irse import ArcFace, Body, ResNetBody

# Part of our name -> the original's, tried in order; `{}` stands for what the parentheses catch.
_NORM = r"(weight|bias|running_mean|running_var)"
IR_SE_NAMES = (
    (r"body\.stem\.conv\.weight", "input_layer.0.weight"),
    (rf"body\.stem\.norm\.{_NORM}", r"input_layer.1.\1"),
    (r"body\.stem\.activate\.weight", "input_layer.2.weight"),
    (rf"body\.blocks\.(\d+)\.norm1\.{_NORM}", r"body.\1.res_layer.0.\2"),
    (r"body\.blocks\.(\d+)\.conv1\.weight", r"body.\1.res_layer.1.weight"),
    (r"body\.blocks\.(\d+)\.activate\.weight", r"body.\1.res_layer.2.weight"),
    (r"body\.blocks\.(\d+)\.conv2\.weight", r"body.\1.res_layer.3.weight"),
    (rf"body\.blocks\.(\d+)\.norm2\.{_NORM}", r"body.\1.res_layer.4.\2"),
    (r"body\.blocks\.(\d+)\.squeeze\.weight", r"body.\1.res_layer.5.fc1.weight"),
    (r"body\.blocks\.(\d+)\.excite\.weight", r"body.\1.res_layer.5.fc2.weight"),
    (r"body\.blocks\.(\d+)\.shortcut\.conv\.weight", r"body.\1.shortcut_layer.0.weight"),
    (rf"body\.blocks\.(\d+)\.shortcut\.norm\.{_NORM}", r"body.\1.shortcut_layer.1.\2"),
)
RESNET_NAMES = (
    (r"body\.stem\.conv\.weight", "conv1.weight"),
    (rf"body\.stem\.norm\.{_NORM}", r"bn1.\1"),
    (r"body\.stem\.activate\.weight", "relu.weight"),
    (r"body\.blocks\.(\d+)\.conv([12])\.weight", r"body.\1.conv\2.weight"),
    (rf"body\.blocks\.(\d+)\.norm([12])\.{_NORM}", r"body.\1.bn\2.\3"),
    (r"body\.blocks\.(\d+)\.shortcut\.conv\.weight", r"body.\1.downsample.0.weight"),
    (rf"body\.blocks\.(\d+)\.shortcut\.norm\.{_NORM}", r"body.\1.downsample.1.\2"),
)
TORCHVISION_NAMES = (
    (r"stem\.conv\.weight", "conv1.weight"),
    (rf"stem\.norm\.{_NORM}", r"bn1.\1"),
    (r"conv([12])\.weight", r"conv\1.weight"),
    (rf"norm([12])\.{_NORM}", r"bn\1.\2"),
    (r"shortcut\.conv\.weight", r"downsample.0.weight"),
    (rf"shortcut\.norm\.{_NORM}", r"downsample.1.\1"),
)
"""Part of our name for ResNet-34 -> torchvision's, behind ``layerS.N.`` for what lies in a block."""
HEAD_NAMES = (
    (r"head\.lateral\.0\.(weight|bias)", r"latlayer1.\1"),
    (r"head\.lateral\.1\.(weight|bias)", r"latlayer2.\1"),
    (r"head\.rows\.(\d+)\.linear\.(weight|bias)", r"styles.\1.linear.\2"),
    (r"head\.linear\.(weight|bias)", r"linear.\1"),
    (rf"head\.norm\.{_NORM}", r"output_layer_2.0.\1"),
    (r"head\.reduce\.(weight|bias)", r"output_layer_2.3.\1"),
)
ARCFACE_NAMES = (
    (rf"norm\.{_NORM}", r"output_layer.0.\1"),
    (r"embed\.(weight|bias)", r"output_layer.3.\1"),
    (rf"out_norm\.{_NORM}", r"output_layer.4.\1"),
)
HEAD_CONV = re.compile(r"head\.rows\.(\d+)\.convs\.(\d+)\.(weight|bias)")
COUNTER = "num_batches_tracked"


def foreign_name(name: str, *, resnet: bool = False) -> str:
    """Return the original's name of a tensor of `Encoder` or `ArcFace`."""
    match = HEAD_CONV.fullmatch(name)
    if match:  # every second layer is an activation
        return f"styles.{match[1]}.convs.{2 * int(match[2])}.{match[3]}"
    for pattern, replacement in (*(RESNET_NAMES if resnet else IR_SE_NAMES), *HEAD_NAMES, *ARCFACE_NAMES):
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise AssertionError(f"no name for {name}")


def match_tensors(
    network: nn.Module, names: Mapping[str, str], state: Mapping[str, Any], *, what: str
) -> dict[str, Tensor]:
    """Return float32 copies of a file's tensors under our names; the counters of normalisations are left out.

    Args:
        network: whose tensors they are to be.
        names: our name -> the file's.
        state: the file's names and tensors.
        what: what to call it in messages.

    Raises:
        KeyMismatchError: names or shapes differ.
    """
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items() if name in names}
    found = {str(name): as_tensor(value) for name, value in state.items()}
    counters = {
        f"{foreign.rpartition('.')[0]}.{COUNTER}"
        for name, foreign in names.items()
        if name.endswith(".running_mean")
    }
    known = {*names.values(), *counters}
    missing = {foreign: name for name, foreign in names.items() if found.get(foreign) is None}
    unknown = [name for name in found if name not in known]
    misshapen: dict[str, tuple[Shape, Shape | None]] = {}
    tensors = {}
    for name, foreign in names.items():
        value = found.get(foreign)
        if value is not None and tuple(value.shape) != wanted[name]:
            misshapen[foreign] = (tuple(value.shape), wanted[name])
        elif value is not None:
            tensors[name] = value
    if missing or unknown or misshapen:
        raise KeyMismatchError(mismatch_message(what, missing, unknown, misshapen))
    return {name: _own_copy(value) for name, value in tensors.items()}


def _own_copy(value: Tensor) -> Tensor:
    # Kernels in the order in which they are used, so that they are copied once.
    order = torch.channels_last if value.ndim == 4 else torch.contiguous_format
    return torch.empty(value.shape, memory_format=order).copy_(value)


def tensor_shapes(state: Mapping[str, Any]) -> dict[str, Shape]:
    """Return name -> shape of everything that is a tensor."""
    tensors = {str(name): as_tensor(value) for name, value in state.items()}
    return {name: tuple(value.shape) for name, value in tensors.items() if value is not None}


def infer_body(shapes: Mapping[str, Shape], *, what: str) -> dict[str, Any]:
    """Infer kind, widths and depths of the body, and what it sees.

    Raises:
        KeyMismatchError: it is neither of the two.
    """
    for body, stem, conv, shortcut in (
        ("ir-se50", "input_layer.0.weight", "res_layer.3", "shortcut_layer.0"),
        ("resnet34", "conv1.weight", "conv2", "downsample.0"),
    ):
        if len(shapes.get(stem, ())) != 4:
            continue
        widths, depths, n = [shapes[stem][0]], [0], 0
        while len(outputs := shapes.get(f"body.{n}.{conv}.weight", ())) == 4:
            # A stage begins where the number of channels changes.
            if f"body.{n}.{shortcut}.weight" in shapes:
                widths.append(outputs[0])
                depths.append(0)
            depths[-1] += 1
            n += 1
        if len(widths) != 4:
            raise KeyMismatchError(
                f"{what} has a body of {n} blocks in {len(widths)} stages, expected 4 stages; "
                "the file is incomplete or of another architecture"
            )
        return {"body": body, "widths": widths, "depths": depths, "in_channels": shapes[stem][1]}
    raise KeyMismatchError(
        f"{what} begins with {some(list(shapes)) or 'nothing'}; expected the stem of IR-SE50 (input_layer.0.weight) or "
        "of ResNet-34 (conv1.weight)"
    )


def load_arcface(path: PathLike) -> ArcFace:
    """Read ArcFace's IR-SE50, ``model_ir_se50.pth``; frozen, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: no such file, unreadable, damaged or unsafe.
        UnknownFormatError: not a state dict of an IR-SE50.
        KeyMismatchError: its tensors are not those of ArcFace.
    """
    source = open_source(path)
    state, what = strip_module(source.state), f"ArcFace of {source.path}"
    if not isinstance(state, Mapping) or not {"input_layer.0.weight", "output_layer.3.weight"} & set(state):
        top = list(state)[:4] if isinstance(state, Mapping) else type(state).__name__
        raise UnknownFormatError(
            f"{source.path} holds {top}, expected the tensors of model_ir_se50.pth (input_layer.0.weight, ...)"
        )
    shapes = tensor_shapes(state)
    body = infer_body(shapes, what=what)
    embed = shapes.get("output_layer.3.weight", ())
    if len(embed) != 2:
        raise KeyMismatchError(f"{what}: output_layer.3.weight is missing or no matrix")
    side = round((embed[1] / body["widths"][-1]) ** 0.5)
    with Skeleton():
        network = ArcFace(
            widths=body["widths"], depths=body["depths"], dimensions=embed[0], face_px=max(side, 1) * 16
        )
    names = {name: foreign_name(name) for name in network.state_dict()}
    adopt(network, match_tensors(network, names, state, what=what), what=what)
    return network.requires_grad_(False)


@torch.no_grad()
def fill_body(body: Body, path: PathLike) -> bool:
    """Copy published weights into an encoder's body: ArcFace's IR-SE50, or torchvision's ResNet-34.

    Args:
        body: is changed.
        path: ``model_ir_se50.pth``, ``resnet34-....pth``, or any file with tensors of these names.

    Returns:
        Whether its stem was filled too; a stem that takes other channels than the file's is left as it is, as pSp and
        ReStyle do, and so is the PReLU of ResNet's stem, which torchvision's has not.

    Raises:
        CheckpointError: no such file, unreadable, damaged or unsafe.
        KeyMismatchError: its tensors are not those of the body.
    """
    source = open_source(path)
    state, what = strip_module(source.state), f"the body in {source.path}"
    tensors = {}
    if isinstance(state, Mapping):
        tensors = {str(name): x for name, value in state.items() if (x := as_tensor(value)) is not None}
    torchvision = isinstance(body, ResNetBody) and "layer1.0.conv1.weight" in tensors
    wanted, missing, misshapen = {}, {}, {}
    for name, value in body.state_dict().items():
        foreign = (
            _torchvision_name(body, name)
            if torchvision
            else foreign_name(f"body.{name}", resnet=isinstance(body, ResNetBody))
        )
        found = None if foreign is None else tensors.get(foreign)
        if foreign is None:
            continue
        if found is None:
            missing[foreign] = name
        elif name == "stem.conv.weight" and found.ndim == 4 and found.shape[1] != value.shape[1]:
            continue
        elif found.shape != value.shape:
            misshapen[foreign] = (tuple(found.shape), tuple(value.shape))
        else:
            wanted[name] = found
    if missing or misshapen:
        raise KeyMismatchError(mismatch_message(what, missing, [], misshapen))
    stem = "stem.conv.weight" in wanted
    if not stem:
        wanted = {name: value for name, value in wanted.items() if not name.startswith("stem.")}
    own = body.state_dict()
    for name, value in wanted.items():
        own[name].copy_(value)
    return stem


def _torchvision_name(body: Body, name: str) -> str | None:
    """Return torchvision's name of one of ResNet-34's tensors; None for what it has not."""
    before = ""
    if match := re.match(r"blocks\.(\d+)\.", name):
        number, stage = int(match[1]), 0
        while number >= body.depths[stage]:
            number -= body.depths[stage]
            stage += 1
        before, name = f"layer{stage + 1}.{number}.", name[match.end() :]
    for pattern, replacement in TORCHVISION_NAMES:
        if found := re.fullmatch(pattern, name):
            return before + found.expand(replacement)
    return None
