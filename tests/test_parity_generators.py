"""StyleGAN2 checkpoints of every program against the images, codes and logits of the original code.

Every fixture is written to disk in its own program's layout, read by `limner.checkpoints.load` and run.
Fixtures come from the folder named by LIMNER_PARITY_DIR (any sizes and seeds); the smallest ones have copies
beside these tests.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import foreign
from parity.recipe import FOLDER, Fixture, build, difference, find_fixtures, is_stored
from torch import Tensor

from limner import checkpoints
from limner.checkpoints.keymaps import (
    MMGENERATION_DISCRIMINATOR,
    MMGENERATION_GENERATOR,
    discriminator_rows,
    generator_rows,
    layout,
    rename,
)
from limner.checkpoints.rosinality import discriminator_state, generator_state

TOLERANCE = 1e-4  # of an output's standard deviation; the fixtures' README allows 1e-3
FEW_TOLERANCE = 1e-3  # a handful of logits or sums: their deviation may be small beside their rounding errors
LARGE = 256
DEFAULT_RUN = "stylegan2_rosinality"  # the one group whose 256 px fixtures are not marked slow


def params(group: str, pattern: str = "*.json") -> list[Any]:
    """Return a group's fixtures; those that take more than a few seconds are marked slow."""
    found = []
    for path in find_fixtures(group, pattern):
        size = resolution(Fixture(path).text)
        slow = size > LARGE or (size == LARGE and not (group == DEFAULT_RUN and "_g_" in path.name))
        found.append(pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if slow else []))
    missing = pytest.mark.skip(
        reason=f"no {group} fixtures in {FOLDER}; name their folder in LIMNER_PARITY_DIR"
    )
    return found or [pytest.param(Path(), id="none", marks=missing)]


def resolution(text: dict[str, Any]) -> int:
    """Return a fixture's picture size, as far as its manifest tells."""
    config = text.get("config") or text.get("G_init_kwargs") or {}
    named = [config[key] for key in ("size", "out_size", "img_resolution") if key in config]
    shapes = [node["shape"][-1] for key, node in text.get("inputs", {}).items() if key.endswith("/images")]
    sizes = [
        int(name.split("x", 1)[0])
        for name in text.get("manifest", {}).get("D", {})
        if "x" in name.split("/", 1)[0]
    ]
    return max([*named, *shapes, *sizes], default=0)


class Outputs:
    """Compares outputs with those of one fixture, if it has them, and remembers the worst."""

    def __init__(self, fixture: Fixture):
        self.fixture, self.expected = fixture, fixture.expected()
        self.inputs = {name: torch.from_numpy(value) for name, value in fixture.inputs().items()}
        self.checked: dict[str, float] = {}

    def check(self, name: str, compute: Any, *, spread_of: str | None = None) -> None:
        """Compare what ``compute`` returns, unless the fixture has no such output.

        Args:
            name: the output.
            compute: makes ours.
            spread_of: output whose deviation is the scale, for a number that stands alone and so has none.
        """
        if is_stored(name, self.expected):
            with torch.no_grad():
                value: Tensor = compute()
            spread = float(self.expected[spread_of].std()) if spread_of in self.expected else None
            self.checked[name] = difference(name, value.numpy(), self.expected, spread)

    def finish(self) -> None:
        """Fail if an output is off, or if one that the fixture has was never computed."""
        print(self.fixture.path.stem, {name: f"{worst:.1e}" for name, worst in self.checked.items()})
        forms = (".box64", ".rows", ".cmean", ".cabs", ".grid")
        stored = {functools.reduce(str.removesuffix, forms, name) for name in self.expected}
        assert stored == set(self.checked)
        loose = {name for name in self.checked if "logits" in name or "sums" in name}
        allowed = {name: FEW_TOLERANCE if name in loose else TOLERANCE for name in self.checked}
        assert {name: worst for name, worst in self.checked.items() if not worst < allowed[name]} == {}


def check_rosinality_generator(outputs: Outputs, generator: Any, truncation: Tensor | None = None) -> None:
    """Compare the outputs that rosinality's and mmgeneration's fixtures share."""
    inputs, text = outputs.inputs, outputs.fixture.text
    if truncation is not None:
        generator.w_avg.copy_(truncation.reshape(-1))
    psi, first = text.get("truncation", 1.0), inputs["z0"][:1]
    noise = [inputs[f"noise_{i}"] for i in range(len(generator.synthesis.layers)) if f"noise_{i}" in inputs]

    def mixed() -> Tensor:
        rows = generator.broadcast(generator.mapping(first)).clone()
        rows[:, text["inject_index"] :] = generator.mapping(inputs["z1"])[:, None]
        return rows

    outputs.check("z.w", lambda: generator.mapping(inputs["z0"]))
    outputs.check("z.image", lambda: generator(inputs["z0"]))
    outputs.check("w.image", lambda: generator.synthesis(generator.broadcast(inputs["w"])))
    outputs.check("wplus.image", lambda: generator.synthesis(inputs["wplus"]))
    outputs.check("wplus.styles", lambda: torch.cat(generator.synthesis.styles(inputs["wplus"]), 1))
    outputs.check(
        "trunc.w", lambda: generator.truncate(generator.broadcast(generator.mapping(first)), psi)[:, 0]
    )
    outputs.check("trunc.image", lambda: generator(first, psi=psi))
    outputs.check("mix.latent_sums", lambda: mixed().sum(-1))
    outputs.check("mix.image", lambda: generator.synthesis(mixed()))
    outputs.check("own_noise.image", lambda: generator.synthesis(inputs["wplus"], noise))


def check_logits(outputs: Outputs, discriminator: Any) -> None:
    """Compare logits of batches named by their size, and features named by their tap."""
    images = outputs.inputs["images"]
    whole = f"logits.batch{len(images)}"
    for count in range(1, len(images) + 1):
        spread = whole if count == 1 < len(images) else None
        outputs.check(
            f"logits.batch{count}", lambda count=count: discriminator(images[:count]), spread_of=spread
        )
    for tap in outputs.fixture.text.get("feature_taps", ()):
        outputs.check(f"feat.{tap}", lambda tap=tap: discriminator.features(images[:2])[tap])


@pytest.mark.parametrize("path", params("stylegan2_rosinality"))
def test_rosinality(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    outputs = Outputs(fixture)
    file = tmp_path / "model.pt"
    torch.save({**foreign.tensors(fixture.weights()), "args": foreign.training_arguments()}, file)
    checkpoint = checkpoints.load(file)
    assert checkpoint.format == "rosinality"
    if checkpoint.generator is not None:
        check_rosinality_generator(outputs, checkpoint.generator)
    if checkpoint.discriminator is not None:
        check_logits(outputs, checkpoint.discriminator)
    outputs.finish()


@pytest.mark.parametrize("path", params("mmgeneration"))
def test_mmgeneration(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    outputs = Outputs(fixture)
    file = tmp_path / "model.pth"
    torch.save(foreign.tensors(fixture.weights()), file)
    checkpoint = checkpoints.load(file, channel_order="stored")  # the fixtures' images are not reordered
    generator, raw = checkpoint.generator, checkpoint.raw_generator
    assert checkpoint.format == "mmgeneration"
    assert generator is not None
    assert raw is not None
    check_rosinality_generator(outputs, generator, outputs.inputs["truncation_latent"])
    outputs.check("raw.w.image", lambda: raw.synthesis(raw.broadcast(outputs.inputs["w"])))
    check_logits(outputs, checkpoint.discriminator)
    outputs.finish()


@pytest.mark.parametrize("path", params("stylegan2_nvlabs"))
def test_nvlabs(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    outputs = Outputs(fixture)
    text, inputs = fixture.text, outputs.inputs
    file = tmp_path / "network.pkl"
    if "pickle" in text:
        file = path.with_name(text["pickle"])
    else:
        options = {"G_ema": text["G_init_kwargs"], "D": text.get("D_init_kwargs", {})}
        networks = {
            name: (foreign.tensors(fixture.weights(name)), options[name]) for name in text["manifest"]
        }
        foreign.write_nvlabs(file, networks)
    checkpoint = checkpoints.load(file, parts=("generator", "discriminator"))
    generator, discriminator = checkpoint.generator, checkpoint.discriminator
    assert checkpoint.format == "nvlabs"
    assert generator is not None
    classes = generator.config()["label_dim"]
    z, ws = inputs["z"], inputs.get("ws")
    labels = torch.eye(classes)[(2 * torch.arange(len(z)) + 1) % classes] if classes else None
    psi, cutoff = text.get("truncation_psi", 1.0), text.get("truncation_cutoff")
    outputs.check("ws", lambda: generator.mapping(z, labels))
    outputs.check(
        "ws.trunc_cutoff",
        lambda: generator.truncate(generator.broadcast(generator.mapping(z, labels)), psi, cutoff),
    )
    outputs.check("ws.const.image", lambda: generator.synthesis(ws))
    outputs.check("z.const.image", lambda: generator(z, labels))
    outputs.check("z.none.image", lambda: generator(z, labels, noise="none"))
    outputs.check("z.trunc.const.image", lambda: generator(z, labels, psi=psi))
    outputs.check("z.trunc_cutoff.const.image", lambda: generator(z, labels, psi=psi, psi_cutoff=cutoff))
    if "images" in inputs:
        images = inputs["images"]
        kinds = torch.eye(classes)[(2 * torch.arange(len(images)) + 1) % classes] if classes else None
        outputs.check("D.logits", lambda: discriminator(images, kinds))
        outputs.check("D.logits.batch1", lambda: discriminator(images[:1], kinds), spread_of="D.logits")
    outputs.finish()


@pytest.mark.parametrize("path", params("stylegan2_tf", "tf_tiny*.json"))
def test_tensorflow(path: Path) -> None:
    fixture = Fixture(path)
    outputs = Outputs(fixture)
    text, inputs = fixture.text, outputs.inputs
    checkpoint = checkpoints.load(path.with_name(text["pickle"]))
    generator, discriminator = checkpoint.generator, checkpoint.discriminator
    assert checkpoint.format == "nvlabs-tf"
    assert generator is not None
    z, images, psi, cutoff = inputs["z"], inputs["images"], text["truncation_psi"], text["truncation_cutoff"]
    outputs.check("dlatents", lambda: generator.broadcast(generator.mapping(z)))
    outputs.check("psi1.image", lambda: generator(z))
    outputs.check("psi.image", lambda: generator(z, psi=psi))
    outputs.check("psi_cutoff.image", lambda: generator(z, psi=psi, psi_cutoff=cutoff))
    outputs.check("D.logits", lambda: discriminator(images))
    outputs.check("D.logits.batch1", lambda: discriminator(images[:1]), spread_of="D.logits")
    outputs.finish()


@pytest.mark.parametrize("path", params("conversion", "tf_to_rosinality*.json"))
def test_tensorflow_becomes_what_the_original_converter_writes(path: Path, tmp_path: Path) -> None:
    """Every converted tensor has the recorded sum and weighted sum; then images and logits."""
    fixture = Fixture(path)
    outputs = Outputs(fixture)
    weights = {name: build(fixture.text["manifest"][name], fixture.seed, name) for name in ("G", "D")}
    file = tmp_path / "network.pkl"
    foreign.write_tensorflow(file, weights, {"num_channels": 3})
    checkpoint = checkpoints.load(file, parts=("generator", "discriminator"))
    assert checkpoint.generator is not None
    assert checkpoint.discriminator is not None
    states = {"G": generator_state(checkpoint.generator), "D": discriminator_state(checkpoint.discriminator)}
    for name, state in states.items():
        converted = {key: value for key, value in state.items() if not key.endswith("kernel")}
        assert set(converted) == set(fixture.text[name])
        for key, entry in fixture.text[name].items():
            values = converted[key].double().flatten().numpy()
            ramp = np.linspace(-1, 1, len(values)) if len(values) > 1 else np.ones(1)
            got = [values.sum(), values @ ramp]
            assert got == pytest.approx(entry["fp"], rel=1e-6, abs=2e-5), key
    np.testing.assert_array_equal(checkpoint.generator.w_avg.numpy(), weights["G"]["dlatent_avg"])
    generator, discriminator = checkpoint.generator, checkpoint.discriminator
    outputs.check("image", lambda: generator(outputs.inputs["z"]))
    outputs.check("D.logits", lambda: discriminator(outputs.inputs["images"]))
    outputs.finish()


NVLABS_OPERATIONS = {
    "same": lambda shape: shape,
    "add leading axis": lambda shape: (1, *shape),
    "add two leading axes": lambda shape: (1, 1, *shape),
    "reshape to [1]": lambda shape: (1,),
    "reshape to [1,C,1,1]": lambda shape: (1, shape[0], 1, 1),
}


@pytest.mark.parametrize("path", params("conversion", "rosinality_to_nvlabs*.json"))
def test_names_of_rosinality_and_nvlabs(path: Path) -> None:
    """The tables' two columns pair the same names, and the operations give the recorded shapes."""
    text = Fixture(path).text
    for section, table in text.items():
        if section[:2] not in ("G_", "D_"):
            continue
        size = int(section[2:])
        rows = generator_rows(size, 8) if section[0] == "G" else discriminator_rows(size)
        pairs = {row.rosinality[0]: row.nvlabs[0] for row in rows if row.rosinality and row.nvlabs}
        assert pairs == {name: nvlabs for name, (nvlabs, _) in table.items()}
        ranks = {"synthesis.const": 3, "noise": 2, "noise_strength": 0}
        operations = layout(rows, "rosinality")
        for name, (_, operation) in table.items():
            ours, change = operations[name]
            rank = next(
                (rank for end, rank in ranks.items() if ours.endswith(end)),
                4 if ours.endswith("weight") else 1,
            )
            if section[0] == "G" and rank == 4 and ("affine" in ours or "mapping" in ours):
                rank = 2
            value = torch.zeros([5, 4, 3, 2][:rank] if rank else [])
            assert tuple(change.from_limner(value).shape) == NVLABS_OPERATIONS[operation](
                tuple(value.shape)
            ), name


@pytest.mark.parametrize("path", params("conversion", "mmgen_to_rosinality*.json"))
def test_names_of_mmgeneration(path: Path) -> None:
    text = Fixture(path).text
    tables = {name: table for name, table in text.items() if name[:2] in ("G_", "D_")}
    assert tables
    for section, table in tables.items():
        patterns = MMGENERATION_GENERATOR if section[0] == "G" else MMGENERATION_DISCRIMINATOR
        assert {name: rename(name, patterns) for name in table} == {
            name: entry["to"] for name, entry in table.items()
        }
        assert {entry["op"] for entry in table.values()} == {"identity"}


@pytest.mark.parametrize("path", params("stylegan2_rosinality", "*_g_*.json"))
def test_rosinality_to_native_and_back_is_exact(path: Path, tmp_path: Path) -> None:
    """Bit for bit the same file contents: every tensor, its shape and its FIR kernels."""
    written = foreign.tensors(Fixture(path).weights())
    first, native, second = tmp_path / "first.pt", tmp_path / "model.safetensors", tmp_path / "second.pt"
    torch.save(written, first)
    checkpoints.save(checkpoints.load(first), native)
    checkpoints.save(checkpoints.load(native), second)
    found = torch.load(second, weights_only=True)
    assert set(found) == set(written)
    assert torch.equal(found["latent_avg"], written["latent_avg"])
    assert set(found["g_ema"]) == set(written["g_ema"])
    for name, value in written["g_ema"].items():
        assert found["g_ema"][name].dtype == value.dtype, name
        assert torch.equal(found["g_ema"][name], value), name
