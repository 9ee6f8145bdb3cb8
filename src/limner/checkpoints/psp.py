"""pSp's, e4e's and ReStyle's ``.pt``: an encoder with the generator it was trained for.

The file: ``state_dict`` with ``encoder.*`` and ``decoder.*`` (rosinality's names), ``opts``, the options of the
training run, and ``latent_avg``, what codes are relative to, (rows, 512) or (1, 512); training adds more, which is
not read.  Names and shapes tell the architecture; only whether rows are differences (pSp or e4e) stands in ``opts``
alone.  Names of tensors are in `limner.checkpoints.irse`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limner.checkpoints.checkpoint import Checkpoint, Format, PathLike, ReadOptions, plain_values
from limner.checkpoints.irse import (
    COUNTER,
    foreign_name,
    infer_body,
    load_arcface,
    match_tensors,
    tensor_shapes,
)
from limner.checkpoints.keymaps import GENERATOR_KERNELS
from limner.checkpoints.mismatch import Shape, some
from limner.checkpoints.networks import Skeleton, adopt, as_tensor, build_generator
from limner.checkpoints.rosinality import generator_state, original_channels, strip_module
from limner.checkpoints.source import Source, replace_file
from limner.errors import CheckpointError, KeyMismatchError, LimnerError
from limner.nn.encoders import HEADS, Encoder
from limner.nn.stylegan2 import Generator

__all__ = [
    "FORMAT",
    "TYPES",
    "detect",
    "encoder_state",
    "encoder_type",
    "foreign_name",
    "holds_encoder",
    "infer_config",
    "load",
    "load_arcface",
    "read_encoder",
    "read_opts",
    "save",
    "sections",
]

ENCODER, DECODER = "encoder.", "decoder."
READ = ("state_dict", "opts", "latent_avg")
# encoder_type -> (head, rows are differences, feedback)
TYPES: dict[str, tuple[str, bool, bool]] = {
    "GradualStyleEncoder": ("pyramid", False, False),
    "Encoder4Editing": ("pyramid", True, False),
    "BackboneEncoderUsingLastLayerIntoW": ("w", False, False),
    "SingleStyleCodeEncoder": ("w", False, False),
    "BackboneEncoderUsingLastLayerIntoWPlus": ("w+", False, False),
    "BackboneEncoder": ("single", False, True),
    "ResNetBackboneEncoder": ("single", False, True),
    "ProgressiveBackboneEncoder": ("single", True, True),
    "ResNetProgressiveBackboneEncoder": ("single", True, True),
}
Z_PLUS_MARKS = ("z_plus_latent", "z_plus", "learn_in_z_plus", "learn_in_zplus")
"""Options by which an encoder's codes are said to be z+, as DualStyleGAN's are."""


def sections(source: Source) -> dict[str, dict[str, Any]]:
    """Return ``encoder`` and ``decoder`` -> their tensors, nothing for other files."""
    state = source.state.get("state_dict") if isinstance(source.state, Mapping) else None
    state = strip_module(state)
    found: dict[str, dict[str, Any]] = {"encoder": {}, "decoder": {}, "other": {}}
    if not isinstance(state, Mapping):
        return {}
    for name, value in state.items():
        part, _, rest = str(name).partition(".")
        found[part if part in ("encoder", "decoder") and rest else "other"][rest or part] = value
    return found if found["encoder"] else {}


def detect(source: Source) -> bool:
    """Recognise the nesting: ``state_dict`` with names that begin with ``encoder.``."""
    return bool(sections(source))


def load(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a file.

    Raises:
        KeyMismatchError: names or shapes fit no encoder or no generator, or the two do not belong together.
    """
    found = sections(source)
    if found["other"]:
        raise KeyMismatchError(
            f"{source.path}: {len(found['other'])} tensors belong neither to encoder nor decoder "
            f"({some(found['other'])})"
        )
    opts = read_opts(source)
    checkpoint = Checkpoint("psp", metadata={"opts": plain_values(opts)})
    mean = as_tensor(source.state.get("latent_avg"))
    left_out = [str(name) for name in source.state if name not in READ]
    if left_out:
        checkpoint.metadata["not_read"] = left_out
    if found["decoder"] and (options.wants("generator") or options.wants("encoder")):
        what = f"the decoder of {source.path}"
        generator, notes = build_generator(
            found["decoder"], "rosinality", what=what, kernels=GENERATOR_KERNELS
        )
        if mean is not None and mean.ndim == 2 and mean.shape[1] == generator.w_dim and _alike(mean):
            generator.w_avg.copy_(mean[0].float())
            notes["w_avg"] = "stored"
        checkpoint.metadata |= notes
        checkpoint.generator = generator
    if options.wants("encoder"):
        what = f"the encoder of {source.path}"
        encoder = read_encoder(found["encoder"], opts, mean, checkpoint.generator, what=what)
        checkpoint.encoder = encoder
        checkpoint.metadata["codes"] = _describe_mean(encoder, opts, mean)
    if not options.wants("generator"):
        checkpoint.generator = None
    return checkpoint


def read_opts(source: Source) -> dict[str, Any]:
    """Return the options of the training run, which some programs keep as a namespace.

    Raises:
        KeyMismatchError: there is something else.
    """
    opts = source.state.get("opts", {})
    opts = getattr(opts, "state", opts)
    if opts is None:
        return {}
    if not isinstance(opts, Mapping):
        raise KeyMismatchError(
            f"`opts` of {source.path} is a {type(opts).__name__}, expected the options of the training run by name"
        )
    return {str(name): value for name, value in opts.items()}


def _alike(mean: Tensor) -> bool:
    return bool((mean == mean[:1]).all())


def read_encoder(
    state: Mapping[str, Any],
    opts: Mapping[str, Any],
    mean: Tensor | None,
    generator: Generator | None,
    *,
    what: str,
) -> Encoder:
    """Build an encoder from the original's tensors.

    Args:
        state: names without ``encoder.``.
        opts: options of the training run.
        mean: ``latent_avg``, None where the file has none.
        generator: its decoder, None where the file has none; from it comes the mean where that is missing.
        what: what to call it in messages.

    Raises:
        KeyMismatchError: names or shapes fit no encoder.
    """
    config = infer_config(state, opts, mean, generator, what=what)
    try:
        with Skeleton():
            encoder = Encoder(**config)
    except LimnerError as error:
        raise KeyMismatchError(f"{what} does not fit: {error}") from None
    names = {name: foreign_name(name, resnet=config["body"] == "resnet34") for name in _own_names(encoder)}
    tensors = match_tensors(encoder, names, state, what=what)
    tensors["mean"] = _read_mean(encoder, opts, mean, generator, what=what)
    adopt(encoder, tensors, what=what)
    return encoder


def _own_names(network: nn.Module) -> list[str]:
    return [name for name in network.state_dict() if name != "mean"]


def infer_config(
    state: Mapping[str, Any],
    opts: Mapping[str, Any],
    mean: Tensor | None,
    generator: Generator | None,
    *,
    what: str,
) -> dict[str, Any]:
    """Infer `Encoder`'s arguments; arguments and errors as for `read_encoder`."""
    shapes = tensor_shapes(state)
    body = infer_body(shapes, what=what)
    head = next((head for head, mark in zip(HEADS, _HEAD_MARKS, strict=True) if _has(shapes, mark)), None)
    if head is None:
        raise KeyMismatchError(
            f"{what} has neither style heads (styles.0.linear.weight) nor a linear layer (linear.weight): "
            "it is the body of an encoder alone, or an encoder of another kind"
        )
    deltas, feedback = _find_type(opts, head, body["in_channels"], what=what)
    linear = shapes.get("styles.0.linear.weight" if head in ("pyramid", "single") else "linear.weight", ())
    w_dim = linear[0 if head == "w" else 1] if len(linear) == 2 else 512
    if head in ("pyramid", "single"):
        rows = 1 + max(int(name.split(".")[1]) for name in shapes if re.match(r"styles\.\d+\.", name))
        depth = sum(bool(re.fullmatch(r"styles\.0\.convs\.\d+\.weight", name)) for name in shapes)
        body["in_size"] = 16 << depth
    elif head == "w+":
        rows = linear[0] // w_dim if linear else 0
    else:
        rows = generator.num_rows if generator is not None else _rows_of(mean, opts)
    space = "w+"
    if head == "w" and (opts.get("learn_in_w") or mean is None or mean.ndim != 2 or mean.shape[0] == 1):
        space = "w"
    if any(opts.get(mark) for mark in Z_PLUS_MARKS):
        space = "z+"
    return {
        **body,
        "rows": max(rows, 1),
        "head": head,
        "w_dim": w_dim,
        "deltas": deltas,
        "feedback": feedback,
        "iterations": _iterations(opts) if feedback else 1,
        "space": space,
    }


_HEAD_MARKS = (
    r"latlayer[12]\..*",
    r"styles\.\d+\..*",
    r"(?!output_layer_2)linear\..*",
    r"output_layer_2\..*",
)


def _has(shapes: Mapping[str, Shape], pattern: str) -> bool:
    if pattern == _HEAD_MARKS[2] and _has(shapes, _HEAD_MARKS[3]):
        return False
    return any(re.fullmatch(pattern, name) for name in shapes)


def _find_type(opts: Mapping[str, Any], head: str, in_channels: int, *, what: str) -> tuple[bool, bool]:
    """Return whether rows are differences and whether there is feedback."""
    name = opts.get("encoder_type")
    if name is None:
        if head in ("w", "w+"):
            return False, False
        raise KeyMismatchError(
            f"{what}: `opts` says no `encoder_type`, without which pSp's heads cannot be told from e4e's; expected "
            f"one of {', '.join(kind for kind, known in TYPES.items() if known[0] == head)}"
        )
    if name not in TYPES:
        raise KeyMismatchError(f"{what} is of type {name!r}; known are {', '.join(TYPES)}")
    wanted, deltas, feedback = TYPES[name]
    if wanted != head:
        raise KeyMismatchError(
            f"{what}: `opts` says {name}, whose head is {wanted!r}, but its tensors are those of a head {head!r}"
        )
    if feedback and in_channels % 2:
        raise KeyMismatchError(
            f"{what}: `opts` says {name}, which sees two pictures, but its stem takes {in_channels} channels"
        )
    return deltas, feedback


def _rows_of(mean: Tensor | None, opts: Mapping[str, Any]) -> int:
    if mean is not None and mean.ndim == 2 and mean.shape[0] > 1:
        return mean.shape[0]
    size = opts.get("output_size") or opts.get("stylegan_size") or 1024
    return 2 * int(size).bit_length() - 4 if isinstance(size, (int, float)) else 18


def _iterations(opts: Mapping[str, Any]) -> int:
    count = opts.get("n_iters_per_batch", 5)
    return count if isinstance(count, int) and count > 0 else 5


def _is_relative(encoder: Encoder, opts: Mapping[str, Any]) -> bool:
    # z+ has its mean at zero.  ReStyle has no such option: it always starts from the mean.
    return encoder.feedback or bool(opts.get("start_from_latent_avg", encoder.space != "z+"))


def _read_mean(
    encoder: Encoder, opts: Mapping[str, Any], mean: Tensor | None, generator: Generator | None, *, what: str
) -> Tensor:
    shape = tuple(encoder.mean.shape)
    if not _is_relative(encoder, opts) or (mean is None and generator is None):
        return torch.zeros(shape)
    if mean is None:
        assert generator is not None
        return generator.w_avg.detach().expand(shape).clone()
    value = mean.reshape(1, -1) if mean.ndim == 1 else mean
    if value.ndim != 2 or value.shape[1] != shape[1] or value.shape[0] not in (1, shape[0]):
        raise KeyMismatchError(
            f"{what}: `latent_avg` has shape {tuple(mean.shape)}, expected {shape} or (1, {shape[1]})"
        )
    return value.float().expand(shape).clone()


def _describe_mean(encoder: Encoder, opts: Mapping[str, Any], mean: Tensor | None) -> str:
    if not _is_relative(encoder, opts):
        return f"codes in {encoder.space}, absolute"
    if mean is not None:
        return f"codes in {encoder.space}, relative to the file's latent_avg"
    if encoder.mean.any():
        return f"codes in {encoder.space}, relative to the decoder's mean w, since the file has no latent_avg"
    return (
        f"codes in {encoder.space}, as they are: the file has neither latent_avg nor decoder. If it was trained "
        "relative to the mean w, set `encoder.mean`"
    )


def encoder_type(encoder: Encoder) -> str:
    """Return the original's name for an encoder.

    Raises:
        CheckpointError: the originals have none like it.
    """
    config = encoder.config()
    resnet, head = config["body"] == "resnet34", config["head"]
    wanted = (head, encoder.deltas, encoder.feedback)
    for name, kind in TYPES.items():
        single = encoder.family == "e4e" and head == "w"
        if kind != wanted or (head == "w" and (name == "SingleStyleCodeEncoder") != single):
            continue
        if head != "single" or name.startswith("ResNet") == resnet:
            return name
    raise CheckpointError(
        f"an encoder with head {head!r}, deltas {encoder.deltas} and feedback {encoder.feedback} cannot be written "
        "for pSp, e4e or ReStyle; write a native file (.safetensors)"
    )


def encoder_state(encoder: Encoder) -> dict[str, Tensor]:
    """Return an encoder's tensors under the original's names, counters of normalisations included."""
    resnet = encoder.config()["body"] == "resnet34"
    state, named = encoder.state_dict(), {}
    for name in _own_names(encoder):
        foreign = foreign_name(name, resnet=resnet)
        named[foreign] = state[name].detach().cpu().contiguous().clone()
        if name.endswith(".running_var"):
            named[f"{foreign.rpartition('.')[0]}.{COUNTER}"] = torch.tensor(0)
    return named


def save(checkpoint: Checkpoint, path: PathLike) -> None:
    """Write ``state_dict``, ``opts`` and ``latent_avg`` as pSp, e4e and ReStyle do.

    Raises:
        CheckpointError: no encoder of their kind, or no generator; no permission.
    """
    encoder, generator = checkpoint.encoder, checkpoint.generator
    if not isinstance(encoder, Encoder) or not isinstance(generator, Generator):
        raise CheckpointError(
            f"a file of pSp, e4e or ReStyle holds an encoder of their kind and its generator; there is "
            f"{type(encoder).__name__} and {type(generator).__name__}"
        )
    config, relative = encoder.config(), bool(encoder.mean.any())
    opts: dict[str, Any] = {
        **(checkpoint.metadata.get("opts") or {}),
        "encoder_type": encoder_type(encoder),
        "start_from_latent_avg": relative,
    }
    size_name = (
        "stylegan_size"
        if opts["encoder_type"] in ("Encoder4Editing", "SingleStyleCodeEncoder")
        else "output_size"
    )
    opts[size_name] = generator.resolution
    if size_name == "output_size":
        opts["input_nc"] = encoder.in_channels
    if encoder.feedback:
        opts["n_iters_per_batch"] = encoder.iterations
    if config["space"] == "z+":
        opts["z_plus_latent"] = True
    if size_name == "output_size" and not encoder.feedback:
        opts["learn_in_w"] = config["space"] == "w"
    contents: dict[str, Any] = {
        "state_dict": {ENCODER + name: value for name, value in encoder_state(encoder).items()}
        | {DECODER + name: value for name, value in generator_state(generator).items()},
        "opts": opts,
    }
    if relative:
        contents["latent_avg"] = encoder.mean.detach().cpu().clone()
    _warn_of_differences(encoder, generator, path)
    with replace_file(path) as temporary:
        torch.save(contents, temporary)


def _warn_of_differences(encoder: Encoder, generator: Generator, path: PathLike) -> None:
    config = encoder.config()
    original = Encoder.__init__.__kwdefaults__ or {}
    strange = [
        f"{name} {config[name]}"
        for name in ("in_size", "w_dim", "widths")
        if config[name] != (list(original[name]) if name == "widths" else original[name])
    ]
    channels = generator.config()["channels"]
    if channels != original_channels(generator.resolution, 2):
        strange.append(f"the decoder's channels {channels}")
    if strange:
        warnings.warn(
            f"{path}: the original programs cannot load it: {'; '.join(strange)}", UserWarning, stacklevel=3
        )


def holds_encoder(checkpoint: Checkpoint) -> bool:
    """Say whether ``.pt`` means this format for a checkpoint."""
    return isinstance(checkpoint.encoder, Encoder) and isinstance(checkpoint.generator, Generator)


FORMAT = Format(
    "psp",
    "an encoder with its generator (pSp, e4e, ReStyle .pt)",
    detect,
    load,
    save,
    (".pt", ".pth"),
    holds_encoder,
)
