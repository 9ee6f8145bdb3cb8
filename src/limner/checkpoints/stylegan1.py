"""StyleGAN1: lernapparat's flat ``.pt`` and NVIDIA's TensorFlow pickle.

lernapparat: a state dict ``g_mapping.*``, ``g_synthesis.*`` with the blur kernels, without noise maps and without the
mean of w (``truncation.avg_latent`` where its truncation module was in use).  TensorFlow: a tuple ``(G, D, Gs)``.  Both
hold the same raw numbers, so that converting only transposes.

Differs: the discriminator of a pickle is not read; Limner has no StyleGAN1 training.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limner.checkpoints.checkpoint import Checkpoint, Format, PathLike, ReadOptions, plain_values
from limner.checkpoints.keymaps import DENSE, KERNEL, LEAD, LEAD2, MAX_MAPPING, MAX_RESOLUTION, SAME, Name
from limner.checkpoints.mismatch import Shape
from limner.checkpoints.networks import (
    NOISE_SEED,
    Found,
    Skeleton,
    as_tensor,
    fill_network,
    set_mean_w,
    translate,
)
from limner.checkpoints.nvlabs import rescale_mapping, tf_networks, tf_variables
from limner.checkpoints.rosinality import strip_module
from limner.checkpoints.source import Source, replace_file
from limner.errors import CheckpointError, KeyMismatchError
from limner.nn.stylegan1 import FUSED_FROM, Generator, channel_table

LERNAPPARAT_EPS = 1e-5
TENSORFLOW_EPS = 1e-8
MEAN = "truncation.avg_latent"
MARKS = ("g_synthesis.blocks.4x4.const", "g_mapping.dense0.weight")
KERNEL_NAME = re.compile(r"g_synthesis\.blocks\.\d+x\d+\.conv0_up\.intermediate\.kernel")
UNUSED = re.compile(r"(G_synthesis/)?lod|G_synthesis/ToRGB_lod[1-9]\d*/(weight|bias)")
"""TensorFlow's variables that only progressive growing uses."""
GROWING = "G_synthesis/lod"


class Row(NamedTuple):
    """One tensor: Limner's name, and (name, operation) in each layout that has it."""

    limner: str
    lernapparat: Name | None
    tensorflow: Name | None


def rows(resolution: int, depth: int) -> tuple[Row, ...]:
    """Return the rows of a generator: mapping network, synthesis network, mean of w."""
    return tuple(_rows(resolution, depth))


def _rows(resolution: int, depth: int) -> Iterator[Row]:
    for i in range(depth):
        ours, theirs, tf = f"mapping.layers.{i}", f"g_mapping.dense{i}", f"G_mapping/Dense{i}"
        yield Row(f"{ours}.weight", (f"{theirs}.weight", SAME), (f"{tf}/weight", DENSE))
        yield Row(f"{ours}.bias", (f"{theirs}.bias", SAME), (f"{tf}/bias", SAME))
    blocks = "g_synthesis.blocks"
    yield Row("synthesis.const", (f"{blocks}.4x4.const", LEAD), ("G_synthesis/4x4/Const/const", LEAD))
    for i in range(2 * (resolution.bit_length() - 2)):
        size, second = 4 << i // 2, i % 2
        block, folder = f"{blocks}.{size}x{size}", f"G_synthesis/{size}x{size}"
        if i < 2:
            layer, tf = ("conv", "Conv") if second else ("", "Const")
        else:
            layer, tf = ("conv1", "Conv1") if second else ("conv0_up", "Conv0_up")
        yield from _layer(i, f"{block}.{layer}".rstrip("."), f"{block}.epi{second + 1}", f"{folder}/{tf}")
    yield Row(
        "synthesis.to_rgb.0.weight",
        ("g_synthesis.torgb.weight", SAME),
        ("G_synthesis/ToRGB_lod0/weight", KERNEL),
    )
    yield Row(
        "synthesis.to_rgb.0.bias", ("g_synthesis.torgb.bias", SAME), ("G_synthesis/ToRGB_lod0/bias", SAME)
    )
    yield Row("w_avg", (MEAN, SAME), ("dlatent_avg", SAME))


def _layer(i: int, layer: str, epilogue: str, tf: str) -> Iterator[Row]:
    ours, style = f"synthesis.layers.{i}", f"{epilogue}.style_mod.lin"
    if i:
        yield Row(f"{ours}.weight", (f"{layer}.weight", SAME), (f"{tf}/weight", KERNEL))
    yield Row(f"{ours}.bias", (f"{layer}.bias", SAME), (f"{tf}/bias", SAME))
    yield Row(f"{ours}.affine.weight", (f"{style}.weight", SAME), (f"{tf}/StyleMod/weight", DENSE))
    yield Row(f"{ours}.affine.bias", (f"{style}.bias", SAME), (f"{tf}/StyleMod/bias", SAME))
    yield Row(
        f"{ours}.noise_strength", (f"{epilogue}.top_epi.noise.weight", SAME), (f"{tf}/Noise/weight", SAME)
    )
    yield Row(f"{ours}.noise", None, (f"G_synthesis/noise{i}", LEAD2))


def blur_kernel() -> Tensor:
    """Return the constant that lernapparat stores with every up-sampling layer, (1, 1, 3, 3)."""
    taps = torch.tensor([1.0, 2.0, 1.0])
    return (torch.outer(taps, taps) / 16)[None, None]


def infer_config(found: Found) -> dict[str, Any]:
    """Infer `Generator`'s arguments from its tensors."""
    shapes: dict[str, Shape] = {name: tuple(value.shape) for name, value in found.values.items()}

    def size(name: str, axis: int, default: int) -> int:
        return shapes[name][axis] if len(shapes.get(name, ())) > axis else default

    def last(prefix: str, default: int) -> int:
        numbers = [name[len(prefix) :].split(".")[0] for name in found.names if name.startswith(prefix)]
        return max(map(int, numbers), default=default)

    resolution = 4 << last("synthesis.layers.", 0) // 2
    channels = channel_table(resolution, None)
    for j, side in enumerate(channels):
        default = size(f"synthesis.layers.{2 * j + 1}.bias", 0, channels[side])
        channels[side] = size(f"synthesis.layers.{2 * j}.bias", 0, default)
    w_dim = size("synthesis.layers.0.affine.weight", 1, size("mapping.layers.0.weight", 0, 512))
    return {
        "resolution": resolution,
        "channels": channels,
        "z_dim": size("mapping.layers.0.weight", 1, w_dim),
        "w_dim": w_dim,
        "mapping_depth": last("mapping.layers.", 7) + 1,
        "rgb_channels": size("synthesis.to_rgb.0.weight", 0, 3),
    }


def build_generator(
    state: Mapping[str, Any],
    column: str,
    *,
    what: str,
    norm_eps: float,
    adjust: Callable[[dict[str, Tensor]], None] | None = None,
) -> tuple[Generator, dict[str, Any]]:
    """Build a generator from a foreign state dict.

    Args:
        state: the file's names and tensors.
        column: ``lernapparat`` or ``tensorflow``.
        what: what to call it in messages.
        norm_eps: see `Generator`.
        adjust: changes the tensors, under Limner's names, before they are loaded.

    Returns:
        The generator, and notes on what the file did not hold.

    Raises:
        KeyMismatchError: names or shapes do not fit any StyleGAN1 generator.
    """
    found = translate(state, rows(MAX_RESOLUTION, MAX_MAPPING), column)
    config: dict[str, Any] = infer_config(found) | {"norm_eps": norm_eps}
    with Skeleton():
        generator = Generator(**config)
    notes: dict[str, Any] = {"w_avg": "stored"}
    maps = [name for name in generator.state_dict() if name.endswith(".noise")]
    if not any(name in found.names for name in maps):
        rng = torch.Generator().manual_seed(NOISE_SEED)
        for name in maps:
            found.values[name] = torch.randn(generator.state_dict()[name].shape, generator=rng)
        notes["noise"] = f"the file has no noise maps; they were drawn with seed {NOISE_SEED}"
    known_mean = "w_avg" in found.names
    if not known_mean:
        found.values["w_avg"] = torch.zeros(config["w_dim"])
    if adjust:
        adjust(found.values)
    exact = rows(config["resolution"], config["mapping_depth"])
    fill_network(generator, found, exact, column, what=what)
    if not known_mean:
        notes["w_avg"] = set_mean_w(generator)
    return generator, notes


# lernapparat
def _lernapparat_state(source: Source) -> Mapping[str, Any]:
    state = source.state
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    state = strip_module(state)
    return state if isinstance(state, Mapping) else {}


def detect_lernapparat(source: Source) -> bool:
    """Recognise the layout by a tensor of either network."""
    state = _lernapparat_state(source)
    return any(mark in state for mark in MARKS)


def load_lernapparat(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a flat state dict.

    Raises:
        KeyMismatchError: names or shapes do not fit.
    """
    checkpoint = Checkpoint("lernapparat")
    if options.wants("generator"):
        state = {
            name: value
            for name, value in _lernapparat_state(source).items()
            if not (KERNEL_NAME.fullmatch(str(name)) and _is_blur(value))
        }
        what = f"the StyleGAN1 generator of {source.path}"
        checkpoint.generator, notes = build_generator(
            state, "lernapparat", what=what, norm_eps=LERNAPPARAT_EPS
        )
        checkpoint.metadata |= notes
    return checkpoint


def _is_blur(value: Any) -> bool:
    kernel = as_tensor(value)
    return (
        kernel is not None and kernel.shape == (1, 1, 3, 3) and torch.allclose(kernel.float(), blur_kernel())
    )


def state_dict(generator: Generator) -> dict[str, Tensor]:
    """Return a generator's tensors under lernapparat's names, blur kernels included, in its order."""
    state, named = generator.state_dict(), {}
    for row in rows(generator.resolution, generator.config()["mapping_depth"]):
        if row.lernapparat is not None and row.limner != "w_avg":
            name, operation = row.lernapparat
            named[name] = operation.from_limner(state[row.limner].detach().cpu()).contiguous().clone()
            if ".conv0_up.bias" in name:
                named[name.replace("bias", "intermediate.kernel")] = blur_kernel()
    return named


def save_lernapparat(checkpoint: Checkpoint, path: PathLike) -> None:
    """Write a flat state dict.  A warning says what the layout has no place for.

    Raises:
        CheckpointError: no StyleGAN1 generator, no permission.
    """
    generator = checkpoint.generator
    if not isinstance(generator, Generator):
        kind = "no generator" if generator is None else "a StyleGAN2 generator; write rosinality's format"
        raise CheckpointError(f"lernapparat's layout holds StyleGAN1 generators, the model has {kind}")
    remarks = _remarks(checkpoint, generator.config())
    if remarks:
        warnings.warn(f"{path}: {'; '.join(remarks)}", UserWarning, stacklevel=2)
    contents = state_dict(generator)
    with replace_file(path) as temporary:
        torch.save(contents, temporary)


def _remarks(checkpoint: Checkpoint, config: dict[str, Any]) -> list[str]:
    remarks = []
    lost = [
        what
        for what, there in (
            ("the mean of w", checkpoint.metadata.get("w_avg") == "stored"),
            ("noise maps", "noise" not in checkpoint.metadata),
        )
        if there
    ]
    if lost:
        remarks.append(f"the layout has no place for {' and '.join(lost)}")
    if config["norm_eps"] != LERNAPPARAT_EPS:
        remarks.append(
            f"its programs normalise with eps {LERNAPPARAT_EPS:g} where this model has {config['norm_eps']:g}: "
            "pictures differ a little (2e-3 of their deviation at 1024 px)"
        )
    size = config["resolution"]
    if config["channels"] != channel_table(size, None) or (config["z_dim"], config["w_dim"]) != (512, 512):
        remarks.append(f"the original programs cannot load it: its channels are {config['channels']}")
    elif config["mapping_depth"] != 8 or config["rgb_channels"] != 3:
        remarks.append("the original programs expect 8 mapping layers and 3 colours")
    return remarks


# NVIDIA's TensorFlow program
def detect_tensorflow(source: Source) -> bool:
    """Recognise a tuple of three networks whose generator has StyleGAN1's layers."""
    networks = tf_networks(source.state)
    return any(
        "G_style" in str(network.get("build_func_name"))
        or any("/StyleMod/" in name or "/ToRGB_lod" in name for name in tf_variables(network))
        for name, network in networks.items()
        if name != "D"
    )


def load_tensorflow(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a TensorFlow-era pickle of StyleGAN1; ``Gs`` becomes the generator, ``D`` is left out.

    Raises:
        KeyMismatchError: class-conditional, saved while it still grew, or names or shapes that do not fit.
    """
    networks = tf_networks(source.state)
    checkpoint = Checkpoint("nvlabs-tf1", metadata={"section": "Gs"})
    for part, name in (("generator", "Gs"), ("raw_generator", "G")):
        if name in networks and options.wants(part):
            what = f"the StyleGAN1 generator `{name}` of {source.path}"
            generator, notes = _tf_generator(networks[name], what)
            setattr(checkpoint, part, generator)
            if part == "generator":
                checkpoint.metadata |= notes
    if "D" in networks:
        checkpoint.metadata["discriminator"] = "the file's StyleGAN1 discriminator is not read"
    checkpoint.metadata["training"] = plain_values(networks[next(iter(networks))].get("static_kwargs"))
    return checkpoint


def _tf_generator(network: dict[str, Any], what: str) -> tuple[Generator, dict[str, Any]]:
    given = network.get("static_kwargs") or {}
    variables = tf_variables(network)
    level = as_tensor(variables.get(GROWING))
    if level is not None and level.numel() == 1 and float(level) > 0:
        raise KeyMismatchError(
            f"{what} was saved while it still grew (level of detail {float(level):g}); Limner reads finished ones"
        )
    rescale, mend = (
        rescale_mapping(given.get("mapping_lrmul")),
        _orientation(given.get("fused_scale", "auto")),
    )

    def adjust(values: dict[str, Tensor]) -> None:
        for change in (rescale, mend):
            if change is not None:
                change(values)

    state = {name: value for name, value in variables.items() if not UNUSED.fullmatch(name)}
    return build_generator(state, "tensorflow", what=what, norm_eps=TENSORFLOW_EPS, adjust=adjust)


def _orientation(fused: Any) -> Callable[[dict[str, Tensor]], None] | None:
    """Return a change of the up-sampling kernels of a network that never, or always, fused them."""
    if fused not in (True, False):
        return None

    def turn(values: dict[str, Tensor]) -> None:
        for name in values:
            match = re.fullmatch(r"synthesis\.layers\.(\d+)\.weight", name)
            index = int(match[1]) if match else 0
            if index >= 2 and index % 2 == 0 and (4 << index // 2 >= FUSED_FROM) != fused:
                values[name] = values[name].flip(-2, -1)

    return turn


FORMAT = Format(
    "lernapparat",
    "lernapparat's StyleGAN1 .pt",
    detect_lernapparat,
    load_lernapparat,
    save_lernapparat,
    (".pt", ".pth"),
    lambda checkpoint: isinstance(checkpoint.generator, Generator),
)
TF_FORMAT = Format("nvlabs-tf1", "NVIDIA's TensorFlow pickle (StyleGAN1)", detect_tensorflow, load_tensorflow)
