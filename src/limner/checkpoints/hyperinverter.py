"""HyperInverter's ``.pt``: two encoders and the hypernetwork; the generator comes from an NVIDIA pickle of its own.

The file: ``state_dict`` with ``hypernet.*``, ``w_encoder.*``, ``w_bar_encoder.*`` and ``discriminator.*``, and ``opts``,
the options of the training run; training adds optimisers.  The discriminator takes no part in inversion and is not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limner.checkpoints.checkpoint import Checkpoint, Format, PathLike, ReadOptions, plain_values
from limner.checkpoints.irse import foreign_name, infer_body, match_tensors, tensor_shapes
from limner.checkpoints.keymaps import generator_rows, layout
from limner.checkpoints.mismatch import Shape, some
from limner.checkpoints.networks import Skeleton, adopt
from limner.checkpoints.psp import read_opts
from limner.checkpoints.rosinality import strip_module
from limner.checkpoints.source import Source, replace_file
from limner.errors import CheckpointError, KeyMismatchError, LimnerError
from limner.nn.hyperinverter import LAYER_SETS, HyperInverter, module_name

MARK = "hypernet."
REGRESSORS = "hypernet.weight_regressors."
PARTS = {"w_encoder.": "encoder.", "w_bar_encoder.": "map_encoder.", REGRESSORS: "regressors."}
"""Beginning of the file's names -> of ours."""
UNUSED = "discriminator."
READ = ("state_dict", "opts")
MAX_SIZE = 4096
# Within a regressor: our name -> the original's; every second layer there is an activation.
FUSE = re.compile(r"fuse\.(weight|bias)")
CONV = re.compile(r"convs\.(\d+)\.(weight|bias)")


def _tensors(source: Source) -> Mapping[str, Any]:
    state = source.state.get("state_dict") if isinstance(source.state, Mapping) else None
    state = strip_module(state)
    return state if isinstance(state, Mapping) else {}


def detect(source: Source) -> bool:
    """Recognise the layout by a tensor of the hypernetwork."""
    return any(str(name).startswith(MARK) for name in _tensors(source))


def load(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a file; the networks become the checkpoint's ``encoder``, an `HyperInverter`.

    Raises:
        KeyMismatchError: names or shapes do not fit, or ``opts`` contradicts them.
    """
    opts = read_opts(source)
    checkpoint = Checkpoint("hyperinverter", metadata={"opts": plain_values(opts)})
    checkpoint.metadata["generator"] = "not in the file: it comes from the NVIDIA pickle it was trained with"
    left_out = [str(name) for name in source.state if name not in READ]
    if left_out:
        checkpoint.metadata["not_read"] = left_out
    if options.wants("encoder"):
        checkpoint.encoder = read_network(_tensors(source), opts, what=f"the HyperInverter of {source.path}")
    return checkpoint


def read_network(state: Mapping[str, Any], opts: Mapping[str, Any], *, what: str) -> HyperInverter:
    """Build the networks from the file's tensors and options.

    Raises:
        KeyMismatchError: see `load`.
    """
    used = {str(name): value for name, value in state.items() if not str(name).startswith(UNUSED)}
    shapes = tensor_shapes(used)
    targets = read_targets(shapes, opts, what=what)
    config = infer_config(shapes, targets, opts, what=what)
    try:
        with Skeleton():
            network = HyperInverter(**config)
    except LimnerError as error:
        raise KeyMismatchError(f"{what} does not fit: {error}") from None
    tensors = match_tensors(network, foreign_names(network), used, what=what)
    tensors["encoder.mean"] = torch.zeros_like(network.encoder.mean)
    adopt(network, tensors, what=what)
    return network


def _size(opts: Mapping[str, Any], *, what: str) -> int:
    size = opts.get("output_size")
    if not isinstance(size, int) or not 8 <= size <= MAX_SIZE or size.bit_count() != 1:
        raise KeyMismatchError(
            f"{what}: `opts` says output_size {size!r}, expected the generator's size in px (8, 16, ... 1024)"
        )
    return size


def read_targets(
    shapes: Mapping[str, Shape], opts: Mapping[str, Any], *, what: str
) -> dict[str, tuple[int, ...]]:
    """Return our name -> shape of the weights that the file's regressors change.

    Raises:
        KeyMismatchError: regressors of unknown layers, of unlikely shapes, or not those that ``opts`` names.
    """
    size, layer_set = _size(opts, what=what), opts.get("target_shape_name")
    names = regressor_names(size, "all_without_bias")
    there = {name[len(REGRESSORS) :].rpartition(".w1")[0]: name for name in shapes if name.endswith(".w1")}
    unknown = [name for name in there if name not in names.values()]
    if unknown:
        raise KeyMismatchError(
            f"{what} has regressors for {some(unknown)}, which a {size} px generator lacks"
        )
    if layer_set in LAYER_SETS:
        wanted = regressor_names(size, layer_set)
        if set(wanted.values()) != set(there):
            odd = sorted(set(wanted.values()) ^ set(there))
            raise KeyMismatchError(
                f"{what}: `opts` says target_shape_name {layer_set!r} at {size} px, {len(wanted)} layers, but "
                f"there are {len(there)} regressors; they differ in {some(odd)}"
            )
    targets = {}
    for ours, foreign in names.items():
        if foreign not in there:
            continue
        first, second = (shapes.get(f"{REGRESSORS}{foreign}.{part}", ()) for part in ("w1", "w2"))
        pixels = 1 if "to_rgb" in ours or "affine" in ours else 9
        if len(first) != 2 or len(second) != 2 or first[1] % first[0] or second[1] % pixels:
            raise KeyMismatchError(
                f"{what}: the regressor {foreign} has matrices {first} and {second}, which make no weight"
            )
        matrix = (second[1] // pixels, first[1] // first[0])
        side = math.isqrt(pixels)
        targets[ours] = matrix if "affine" in ours else (*matrix, side, side)
    return targets


def regressor_names(size: int, layer_set: str) -> dict[str, str]:
    """Return our name of a generator's weight -> the file's name of its regressor, in the original's order."""
    weights = {
        ours: foreign.removeprefix("synthesis.").replace(".", "_")
        for foreign, (ours, _) in layout(generator_rows(size, 0), "nvlabs").items()
        if ours.startswith("synthesis.") and ours.endswith("weight")
    }
    if layer_set == LAYER_SETS[1]:
        weights = {name: foreign for name, foreign in weights.items() if "to_rgb" not in name}
    plain = {name: foreign for name, foreign in weights.items() if "affine" not in name}
    return plain | (weights if layer_set == LAYER_SETS[2] else {})


def infer_config(
    shapes: Mapping[str, Shape],
    targets: Mapping[str, tuple[int, ...]],
    opts: Mapping[str, Any],
    *,
    what: str,
) -> dict[str, Any]:
    """Infer `HyperInverter`'s arguments.

    Raises:
        KeyMismatchError: a body that is neither IR-SE50 nor ResNet-34, or no regressor.
    """
    bodies = []
    for prefix, part in (("w_encoder.", "the first encoder"), ("w_bar_encoder.", "the second encoder")):
        own = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
        bodies.append(infer_body(own, what=f"{part} of {what}"))
    first, second = bodies
    if not targets or first["widths"] != second["widths"]:
        raise KeyMismatchError(
            f"{what} has {len(targets)} regressors and bodies of widths {first['widths']} and {second['widths']}, "
            "expected some and equal ones"
        )

    def size(name: str, axis: int, default: int) -> int:
        return shapes[name][axis] if len(shapes.get(name, ())) > axis else default

    example = REGRESSORS + regressor_names(_size(opts, what=what), LAYER_SETS[2])[next(iter(targets))]
    hidden = size(f"{example}.w1", 0, 1)
    convolutions = sum(
        name.startswith(f"{example}.feature_extractor.") and name.endswith("weight") for name in shapes
    )
    said = opts.get("hidden_dim", hidden)
    if said != hidden:
        raise KeyMismatchError(f"{what}: `opts` says hidden_dim {said!r}, but its matrices have {hidden}")
    return {
        "rows": 2 * _size(opts, what=what).bit_length() - 4,
        "targets": targets,
        "hidden": hidden,
        "body": first["body"],
        "map_body": second["body"],
        "in_size": 32 << max(0, convolutions - 1),
        "w_dim": size("w_encoder.linear.weight", 0, 512),
        "widths": first["widths"],
        "depths": first["depths"],
        "map_depths": second["depths"],
        "features": size(f"{example}.feature_extractor.0.weight", 0, 64),
    }


def foreign_names(network: HyperInverter) -> dict[str, str]:
    """Return our name -> the file's, of every tensor that the file holds."""
    config = network.config()
    resnet = {"encoder.": config["body"] == "resnet34", "map_encoder.": config["map_body"] == "resnet34"}
    size = 1 << (network.rows + 2) // 2
    regressors = {
        module_name(ours): foreign for ours, foreign in regressor_names(size, LAYER_SETS[2]).items()
    }
    names = {}
    for name in network.state_dict():
        foreign, ours = next(pair for pair in PARTS.items() if name.startswith(pair[1]))
        rest = name[len(ours) :]
        if foreign == REGRESSORS:
            key, _, inner = rest.partition(".")
            names[name] = f"{REGRESSORS}{regressors[key]}.{_regressor_part(inner)}"
        elif name != "encoder.mean":
            names[name] = foreign + foreign_name(rest, resnet=resnet[ours])
    return names


def _regressor_part(name: str) -> str:
    if match := FUSE.fullmatch(name):
        return f"fusion.0.{match[1]}"
    if match := CONV.fullmatch(name):
        return f"feature_extractor.{2 * int(match[1])}.{match[2]}"
    return name


def holds(checkpoint: Checkpoint) -> bool:
    """Say whether ``.pt`` means this format for a checkpoint."""
    return isinstance(checkpoint.encoder, HyperInverter)


def save(checkpoint: Checkpoint, path: PathLike) -> None:
    """Write ``state_dict`` and ``opts``; the generator belongs into a file of its own.

    Raises:
        CheckpointError: no HyperInverter, no permission.
    """
    network = checkpoint.encoder
    if not isinstance(network, HyperInverter):
        raise CheckpointError(
            f"{path}: a HyperInverter file holds one; the model has {type(network).__name__}"
        )
    state: dict[str, Tensor] = {}
    own = network.state_dict()
    for name, foreign in foreign_names(network).items():
        state[foreign] = own[name].detach().cpu().contiguous().clone()
        if foreign.endswith(".running_var"):
            state[foreign.removesuffix("running_var") + "num_batches_tracked"] = torch.tensor(0)
    config, targets = network.config(), set(network.targets)
    size = 1 << (network.rows + 2) // 2
    sets = [name for name in LAYER_SETS if set(regressor_names(size, name)) == targets]
    if not sets:
        raise CheckpointError(
            f"{path}: the original programs know no layer set of these {len(targets)} layers"
        )
    opts = {
        **(checkpoint.metadata.get("opts") or {}),
        "encoder_type": "ResNetLayerWiseEncoder" if config["map_body"] == "resnet34" else "LayerWiseEncoder",
        "output_size": size,
        "target_shape_name": sets[0],
        "hidden_dim": config["hidden"],
    }
    opts.setdefault("dataset_type", "church_encode" if config["body"] == "resnet34" else "ffhq_encode")
    with replace_file(path) as temporary:
        torch.save({"state_dict": state, "opts": opts}, temporary)


FORMAT = Format(
    "hyperinverter",
    "HyperInverter's .pt (without its generator)",
    detect,
    load,
    save,
    (".pt", ".pth"),
    holds,
)
