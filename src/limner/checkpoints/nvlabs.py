"""NVIDIA's pickles of StyleGAN2: stylegan2-ada-pytorch, the stylegan3 repository, the TensorFlow programs.

PyTorch: a dict ``G, D, G_ema, training_set_kwargs, augment_pipe`` whose networks are objects that carry their
own source text (never read here).  TensorFlow: a tuple ``(G, D, Gs)``.  Either way the networks arrive as
inert records and only their arrays and a few numbers are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limner.checkpoints.checkpoint import Checkpoint, Format, ReadOptions, plain_values
from limner.checkpoints.keymaps import NVLABS_KERNELS
from limner.checkpoints.networks import build_discriminator, build_generator
from limner.checkpoints.source import Source
from limner.checkpoints.unpickle import Foreign
from limner.errors import KeyMismatchError

LR_MULTIPLIER = 0.01
"""Learning-rate multiplier of a mapping network in all published configurations, and in ours."""
TF_COUNTERS = ("lod",)
WHOLE_BATCH = 1 << 30
"""Group size of a minibatch statistic that takes the whole batch together."""


# The PyTorch programs
def _object(value: Any) -> dict[str, Any] | None:
    """Return the attributes of a pickled network object, None if it is none."""
    if not isinstance(value, Foreign):
        return None
    content = value.args[0] if value.args else value.state
    if isinstance(content, dict) and isinstance(content.get("state"), dict):
        return content["state"]  # an object with its source text
    return value.state if isinstance(value.state, dict) and "_parameters" in value.state else None


def module_state(attributes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the state dict of a pickled module, whose attributes these are."""
    found = {}
    passing = attributes.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (attributes.get(kind) or {}).items():
            if value is not None and name not in passing:
                found[prefix + name] = value
    for name, value in _children(attributes):
        found |= module_state(value, f"{prefix}{name}.")
    return found


def _children(attributes: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in (attributes.get("_modules") or {}).items():
        child = _object(value)
        if child is not None:
            yield name, child


def _attribute(attributes: Mapping[str, Any], name: str) -> list[Any]:
    """Return an attribute's values in a module and everything inside it."""
    values = [attributes[name]] if name in attributes else []
    for _, child in _children(attributes):
        values += _attribute(child, name)
    return values


def _option(attributes: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return an option: as the layers kept it, else as the network was asked for it."""
    values = _attribute(attributes, name)
    if values:
        return values[0]
    given = attributes.get("_init_kwargs") or {}
    for options in (
        given,
        *(given.get(key) or {} for key in ("synthesis_kwargs", "block_kwargs", "epilogue_kwargs")),
    ):
        if name in options:
            return options[name]
    return default


def _networks(state: Any) -> dict[str, dict[str, Any]]:
    """Return name -> attributes of the networks in a pickle; a network by itself counts as ``G_ema``."""
    if isinstance(state, Mapping):
        found = {name: _object(state.get(name)) for name in ("G_ema", "G", "D")}
        return {name: value for name, value in found.items() if value is not None}
    alone = _object(state)
    return {} if alone is None or "_modules" not in alone else {"G_ema": alone}


def detect_pytorch(source: Source) -> bool:
    """Recognise a pickle of network objects."""
    return bool(_networks(source.state))


def load_pytorch(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a pickle of stylegan2-ada-pytorch or of the stylegan3 repository.

    Raises:
        KeyMismatchError: another architecture (StyleGAN3's alias-free generator, 'orig', 'resnet').
    """
    networks = _networks(source.state)
    main = "G_ema" if "G_ema" in networks else "G"
    checkpoint = Checkpoint("nvlabs", metadata={"section": main})
    for part, name in (("generator", main), ("raw_generator", "G" if main == "G_ema" else None)):
        if name in networks and options.wants(part):
            what = f"the generator `{name}` of {source.path}"
            generator, notes = _pytorch_generator(networks[name], what)
            setattr(checkpoint, part, generator)
            if part == "generator":
                checkpoint.metadata |= notes
    if "D" in networks and options.wants("discriminator"):
        checkpoint.discriminator = _pytorch_discriminator(
            networks["D"], f"the discriminator `D` of {source.path}"
        )
    if isinstance(source.state, Mapping) and source.state.get("training_set_kwargs"):
        checkpoint.metadata["training"] = plain_values(source.state["training_set_kwargs"])
    return checkpoint


def _pytorch_generator(attributes: dict[str, Any], what: str) -> Any:
    _require_architecture(_attribute(attributes, "architecture"), "skip", what)
    state = module_state(attributes)
    if any(name.startswith("synthesis.L0_") for name in state):
        raise KeyMismatchError(
            f"{what} is a StyleGAN3 (alias-free) generator; Limner reads its StyleGAN2 networks only"
        )
    mapping = (attributes.get("_init_kwargs") or {}).get("mapping_kwargs") or {}
    return build_generator(
        state,
        "nvlabs",
        what=what,
        kernels=NVLABS_KERNELS,
        adjust=rescale_mapping(mapping.get("lr_multiplier", LR_MULTIPLIER)),
        activation_clamp=_number(_option(attributes, "conv_clamp", None)),
    )


def _pytorch_discriminator(attributes: dict[str, Any], what: str) -> Any:
    blocks = [
        value
        for name, child in _children(attributes)
        if name != "b4"
        for value in _attribute(child, "architecture")
    ]
    _require_architecture(blocks, "resnet", what)
    given = attributes.get("_init_kwargs") or {}
    mapping, epilogue = given.get("mapping_kwargs") or {}, given.get("epilogue_kwargs") or {}
    groups = _attribute(attributes, "group_size")
    group = groups[0] if groups else epilogue.get("mbstd_group_size", 4)
    return build_discriminator(
        module_state(attributes),
        "nvlabs",
        what=what,
        kernels=NVLABS_KERNELS,
        adjust=rescale_mapping(mapping.get("lr_multiplier", LR_MULTIPLIER)),
        activation_clamp=_number(_option(attributes, "conv_clamp", None)),
        std_group=WHOLE_BATCH if group is None else int(group),
    )


def _require_architecture(found: list[Any], wanted: str, what: str) -> None:
    other = sorted({str(name) for name in found} - {wanted})
    if other:
        raise KeyMismatchError(f"{what} has the architecture {other[0]!r}; Limner reads {wanted!r} only")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def rescale_mapping(multiplier: Any) -> Any:
    """Return a change of the mapping layers that makes up for another learning-rate multiplier than ours."""
    if multiplier is None or float(multiplier) == LR_MULTIPLIER:
        return None

    def rescale(values: dict[str, Tensor]) -> None:
        for name in values:
            if name.startswith("mapping.layers."):
                values[name] = values[name].to(torch.float32) * (float(multiplier) / LR_MULTIPLIER)

    return rescale


# The TensorFlow programs
TF_COMPONENTS = (("synthesis", "G_synthesis/"), ("mapping", "G_mapping/"))


def tf_networks(state: Any) -> dict[str, dict[str, Any]]:
    """Return ``G``, ``D``, ``Gs`` -> attributes of the networks in a TensorFlow pickle, nothing for other files."""
    names = ("G", "D", "Gs")
    if not isinstance(state, (tuple, list)) or len(state) != len(names):
        return {}
    found = {}
    for name, network in zip(names, state, strict=True):
        if isinstance(network, Foreign) and isinstance(network.state, dict) and "variables" in network.state:
            found[name] = network.state
    return found


def tf_variables(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return variable name -> array of a pickled TensorFlow network, its components' included."""
    found = {str(name): value for name, value in network.get("variables") or ()}
    for name, component in (network.get("components") or {}).items():
        prefix = dict(TF_COMPONENTS).get(name, f"{name}/")
        if isinstance(component, Foreign) and isinstance(component.state, dict):
            found |= {prefix + key: value for key, value in tf_variables(component.state).items()}
    return found


def detect_tensorflow(source: Source) -> bool:
    """Recognise the tuple of three networks."""
    return bool(tf_networks(source.state))


def load_tensorflow(source: Source, options: ReadOptions) -> Checkpoint:
    """Read a TensorFlow-era pickle of StyleGAN2, configuration E or F; ``Gs`` becomes the generator.

    Raises:
        KeyMismatchError: configurations A to D, class-conditional networks.
    """
    networks = tf_networks(source.state)
    checkpoint = Checkpoint("nvlabs-tf", metadata={"section": "Gs"})
    for part, name in (("generator", "Gs"), ("raw_generator", "G")):
        if name in networks and options.wants(part):
            what = f"the generator `{name}` of {source.path}"
            generator, notes = _tf_generator(networks[name], what)
            setattr(checkpoint, part, generator)
            if part == "generator":
                checkpoint.metadata |= notes
    if "D" in networks and options.wants("discriminator"):
        given = networks["D"].get("static_kwargs") or {}
        what = f"the discriminator `D` of {source.path}"
        _require_architecture([given.get("architecture", "resnet")], "resnet", what)
        group = int(given.get("mbstd_group_size", 4) or WHOLE_BATCH)
        checkpoint.discriminator = build_discriminator(
            tf_variables(networks["D"]), "tensorflow", what=what, std_group=group
        )
    checkpoint.metadata["training"] = plain_values(networks[next(iter(networks))].get("static_kwargs"))
    return checkpoint


def _tf_generator(network: dict[str, Any], what: str) -> Any:
    given = network.get("static_kwargs") or {}
    variables = tf_variables(network)
    _require_architecture([given.get("architecture", "skip")], "skip", what)
    return build_generator(
        variables,
        "tensorflow",
        what=what,
        ignored=TF_COUNTERS,
        adjust=rescale_mapping(given.get("mapping_lrmul")),
    )


FORMAT = Format(
    "nvlabs", "NVIDIA's PyTorch pickle (stylegan2-ada-pytorch, stylegan3)", detect_pytorch, load_pytorch
)
TF_FORMAT = Format(
    "nvlabs-tf", "NVIDIA's TensorFlow pickle (StyleGAN2 config E, F)", detect_tensorflow, load_tensorflow
)
