"""Model files: round trips, every layout recognised, mismatches explained, hostile files refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import foreign
from safetensors.torch import save_file

from limner import checkpoints, zoo
from limner.app.commands import convert, inspect
from limner.app.console import Console, Settings
from limner.checkpoints import Checkpoint
from limner.checkpoints.rosinality import discriminator_state, generator_state, original_channels
from limner.checkpoints.unpickle import read_pickle
from limner.errors import (
    CheckpointError,
    KeyMismatchError,
    LimnerError,
    OptionError,
    UnknownFormatError,
    UnsafePickleError,
)
from limner.nn.stylegan2 import Discriminator, Generator

TINY_WARNING = "ignore:.*original programs.*:UserWarning"
NVLABS_FILE = Path(__file__).parent / "parity" / "stylegan2_nvlabs" / "ada_tiny32.pkl"
TF_FILE = Path(__file__).parent / "parity" / "stylegan2_tf" / "tf_tiny64.pkl"


def equal_states(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Say whether two networks have bitwise the same tensors under the same names."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def training_file(tmp_path, generator, discriminator) -> Path:
    """A rosinality training file: everything that train.py saves."""
    path = tmp_path / "000100.pt"
    state = {
        "g": generator_state(generator),
        "d": discriminator_state(discriminator),
        "g_ema": generator_state(generator),
        "g_optim": {
            "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}},
            "param_groups": [{"lr": 0.002}],
        },
        "d_optim": {"state": {}, "param_groups": []},
        "args": foreign.training_arguments(),
        "ada_aug_p": 0.25,
    }
    torch.save(state, path)
    return path


class TestNative:
    def test_round_trip_keeps_every_bit(self, tmp_path, generator, discriminator):
        path = tmp_path / "model.safetensors"
        written = Checkpoint(
            "limner", generator, discriminator, metadata={"licence": "CC0-1.0", "note": [1, "two"]}
        )
        checkpoints.save(written, path)
        read = checkpoints.load(path)
        assert equal_states(read.generator, generator)
        assert equal_states(read.discriminator, discriminator)
        assert read.generator.config() == generator.config()
        assert read.discriminator.config() == discriminator.config()
        assert read.metadata["licence"] == "CC0-1.0"
        assert read.metadata["note"] == [1, "two"]
        assert torch.equal(read.w_avg, generator.w_avg)
        assert read.encoder is None
        assert not read.generator.training

    def test_half_precision_is_half_the_size_and_close(self, tmp_path, generator):
        checkpoint = Checkpoint(generator=generator)
        checkpoints.save(checkpoint, tmp_path / "full.safetensors")
        checkpoints.save(checkpoint, tmp_path / "half.safetensors", dtype="float16")
        read = checkpoints.load(tmp_path / "half.safetensors").generator
        z = torch.randn(2, 16)
        assert (read(z) - generator(z)).abs().max() < 2e-2 * generator(z).std()
        assert torch.equal(read.w_avg, generator.w_avg)
        assert all(value.dtype == torch.float32 for value in read.state_dict().values())
        sizes = [(tmp_path / name).stat().st_size for name in ("half.safetensors", "full.safetensors")]
        assert sizes[0] < 0.75 * sizes[1]

    def test_half_precision_refuses_values_beyond_its_range(self, tmp_path, generator):
        generator.synthesis.const.data[0, 0, 0] = 1e6
        with pytest.raises(CheckpointError, match=r"generator\.synthesis\.const.*float32"):
            checkpoints.save(Checkpoint(generator=generator), tmp_path / "half.safetensors", dtype="float16")
        assert list(tmp_path.iterdir()) == []

    def test_config_that_does_not_fit_its_tensors(self, tmp_path, generator):
        path = tmp_path / "model.safetensors"
        header = {"version": 1, "kind": "model", "generator": {**generator.config(), "mapping_depth": 8}}
        tensors = {f"generator.{name}": value for name, value in generator.state_dict().items()}
        save_file(tensors, path, {"limner": json.dumps(header)})
        with pytest.raises(KeyMismatchError, match=r"mapping\.layers\.2\.weight.*depth.*2 layers"):
            checkpoints.load(path)

    @pytest.mark.parametrize(
        ("header", "error", "message"),
        [
            ('{"version": 99, "kind": "model"}', UnknownFormatError, "update Limner"),
            ('{"version": 1, "kind": "style"}', UnknownFormatError, "is a style"),
            ("{", CheckpointError, "header is broken"),
            (
                '{"version": 1, "kind": "model", "generator": {"nonsense": 1}}',
                KeyMismatchError,
                "describes no network",
            ),
            ('{"version": 1, "kind": "model"}', KeyMismatchError, "does not describe"),
        ],
    )
    def test_headers_that_cannot_be_used(self, tmp_path, header, error, message):
        path = tmp_path / "model.safetensors"
        save_file({"generator.w_avg": torch.zeros(3)}, path, {"limner": header})
        with pytest.raises(error, match=message):
            checkpoints.load(path)


class TestRosinality:
    def test_training_file(self, training_file, generator, discriminator):
        read = checkpoints.load(training_file)
        assert read.format == "rosinality"
        assert equal_states(read.discriminator, discriminator)
        for network in (read.generator, read.raw_generator):
            assert all(
                torch.equal(value, generator.state_dict()[name])
                for name, value in network.state_dict().items()
                if name != "w_avg"
            )
        assert read.metadata["training"]["args"]["iter"] == 800000
        assert read.metadata["training"]["ada_aug_p"] == 0.25
        # A training file has no mean of w: it is computed, always the same, and said to be.
        assert "seed 0" in read.metadata["w_avg"]
        assert torch.equal(read.w_avg, checkpoints.load(training_file).w_avg)
        assert torch.allclose(
            read.w_avg, generator.mean_w(20_000, rng=torch.Generator().manual_seed(5)), atol=0.1
        )

    def test_only_the_wanted_parts_are_built(self, training_file):
        read = checkpoints.load(training_file, parts=("discriminator",))
        assert (read.generator, read.raw_generator) == (None, None)
        assert isinstance(read.discriminator, Discriminator)
        with pytest.raises(OptionError, match="parts are"):
            checkpoints.load(training_file, parts=("decoder",))

    @pytest.mark.filterwarnings(TINY_WARNING)
    def test_converted_file_with_everything_survives_the_native_format(
        self, tmp_path, generator, discriminator
    ):
        raw = Generator(**generator.config())
        first, native, second = tmp_path / "a.pt", tmp_path / "b.safetensors", tmp_path / "c.pt"
        checkpoints.save(Checkpoint("x", generator, discriminator, raw_generator=raw), first)
        checkpoints.save(checkpoints.load(first), native)
        checkpoints.save(checkpoints.load(native), second)
        old, new = (torch.load(path, weights_only=True) for path in (first, second))
        assert set(old) == set(new) == {"g_ema", "latent_avg", "g", "d"}
        for section in ("g_ema", "g", "d"):
            assert old[section].keys() == new[section].keys()
            assert all(torch.equal(old[section][name], new[section][name]) for name in old[section])
        assert torch.equal(old["latent_avg"], new["latent_avg"])

    @pytest.mark.parametrize("old_container", [False, True])
    @pytest.mark.parametrize("layout", ["jojogan", "bare", "parallel"])
    def test_other_layouts(self, tmp_path, generator, layout, old_container):
        state = generator_state(generator)
        contents: dict[str, Any] = {
            "jojogan": {"g": state},
            "bare": OrderedDict(state),
            "parallel": {"g_ema": {f"module.{name}": value for name, value in state.items()}},
        }[layout]
        path = tmp_path / "style.pt"
        torch.save(contents, path, _use_new_zipfile_serialization=not old_container)
        read = checkpoints.load(path)
        assert read.discriminator is None
        z = torch.randn(1, 16)
        assert torch.equal(read.generator(z), generator(z))

    def test_discriminator_alone(self, tmp_path, discriminator):
        path = tmp_path / "d.pt"
        torch.save(discriminator_state(discriminator), path)
        read = checkpoints.load(path)
        assert equal_states(read.discriminator, discriminator)
        assert read.w_avg is None

    def test_file_without_noise_maps_gets_reproducible_ones(self, tmp_path, generator):
        state = {
            name: value for name, value in generator_state(generator).items() if not name.startswith("noises")
        }
        path = tmp_path / "old.pt"
        torch.save({"g_ema": state}, path)
        first, second = (checkpoints.load(path) for _ in range(2))
        assert equal_states(first.generator, second.generator)
        assert "seed 0" in first.metadata["noise"]

    def test_half_precision_file_is_read_as_float32(self, tmp_path, generator):
        path = tmp_path / "half.pt"
        torch.save(
            {"g_ema": {name: value.half() for name, value in generator_state(generator).items()}}, path
        )
        assert checkpoints.load(path).generator.synthesis.const.dtype == torch.float32

    def test_loaded_networks_do_not_depend_on_the_file(self, training_file):
        read = checkpoints.load(training_file)
        before = read.generator.synthesis.const.clone()
        training_file.write_bytes(b"\xff" * training_file.stat().st_size)
        assert torch.equal(read.generator.synthesis.const, before)

    def test_warns_when_the_originals_cannot_load_it(self, tmp_path, generator):
        with pytest.warns(UserWarning, match=r"original programs cannot load.*8: 8") as caught:
            checkpoints.save(Checkpoint(generator=generator), tmp_path / "small.pt")
        assert "n_mlp=2" in str(caught[0].message)

    @pytest.mark.parametrize(("multiplier", "words"), [(1, "channel_multiplier 1"), (2, "")])
    def test_says_what_the_originals_have_to_be_told(self, tmp_path, recwarn, multiplier, words):
        discriminator = Discriminator(resolution=64, channels=original_channels(64, multiplier))
        checkpoints.save(Checkpoint(discriminator=discriminator), tmp_path / "d.pt")
        assert [words in str(entry.message) for entry in recwarn] == ([True] if words else [])

    def test_refuses_what_the_layout_cannot_hold(self, tmp_path, generator):
        conditional = Generator(**{**generator.config(), "label_dim": 3})
        with pytest.raises(CheckpointError, match="class labels"):
            checkpoints.save(Checkpoint(generator=conditional), tmp_path / "c.pt")
        with pytest.raises(CheckpointError, match="nothing to write"):
            checkpoints.save(Checkpoint(), tmp_path / "c.pt")
        with pytest.raises(UnknownFormatError, match=r"\.onnx.*limner \(\.safetensors\)"):
            checkpoints.save(Checkpoint(generator=generator), tmp_path / "c.onnx")


class TestMmgeneration:
    @pytest.fixture
    def file(self, tmp_path, generator, discriminator) -> Path:
        """A training file of the 1.x line, names derived here and not from the key map."""

        def renamed(name: str) -> str:
            if name.startswith("noises.noise_"):
                return name.replace("noises.noise_", "injected_noise_")
            if name.startswith("style."):
                return name.replace("style.", "style_mapping.").replace(".weight", ".linear.weight_orig")
            name = name.replace("input.input", "constant_input.input").replace(
                ".noise.weight", ".noise_injector.weight"
            )
            name = name.replace(".modulation.weight", ".style_modulation.linear.weight_orig")
            name = name.replace(".modulation.bias", ".style_modulation.bias")
            return name.replace(".conv.weight", ".conv.weight_orig")

        def renamed_d(name: str) -> str:
            middle = "linear" if name.startswith("final_linear") else "conv"
            return name.replace(".weight", f".{middle}.weight_orig")

        state = {"generator_ema.steps": torch.tensor(5)}
        for name, value in generator_state(generator).items():
            state[f"generator_ema.module.{renamed(name)}"] = value
        for name, value in discriminator_state(discriminator).items():
            state[f"discriminator.{renamed_d(name)}"] = value
        path = tmp_path / "iter_100.pth"
        torch.save({"meta": {"iter": 100, "time": "now"}, "state_dict": state}, path)
        return path

    def test_networks_become_rgb(self, file, generator, discriminator):
        stored, turned = checkpoints.load(file, channel_order="stored"), checkpoints.load(file)
        z, image = torch.randn(1, 16), torch.randn(2, 3, 32, 32)
        assert stored.format == "mmgeneration"
        assert equal_states(stored.discriminator, discriminator)
        assert torch.equal(stored.generator(z), generator(z))
        assert torch.allclose(turned.generator(z), generator(z).flip(1), atol=1e-6)
        assert torch.allclose(turned.discriminator(image.flip(1)), discriminator(image), atol=1e-5)
        assert turned.metadata["channel_order"] == "rgb, reversed while reading"
        assert turned.metadata["training"] == {"iter": 100, "time": "now"}
        assert "seed 0" in turned.metadata["w_avg"]


class TestNvlabs:
    def write(self, path: Path, source: str = "", **options: Any) -> Path:
        """Write a changed copy of the tiny pickle's networks."""
        read = checkpoints.load(NVLABS_FILE)
        state = {}
        from limner.checkpoints.keymaps import generator_rows

        for row in generator_rows(32, read.generator.config()["mapping_depth"]):
            state[row.nvlabs[0]] = read.generator.state_dict()[row.limner].clone()
        foreign.write_nvlabs(path, {"G_ema": (state, options)}, source)
        return path

    def test_source_text_is_never_run(self, tmp_path):
        mark = tmp_path / "ran"
        source = f"open({str(mark)!r}, 'w').close()\nimport os\nos.system('touch {mark}')\n"
        read = checkpoints.load(self.write(tmp_path / "a.pkl", source))
        assert equal_states(read.generator, checkpoints.load(NVLABS_FILE).generator)
        assert not mark.exists()

    def test_clamp_is_read_from_either_place(self, tmp_path):
        flat = checkpoints.load(self.write(tmp_path / "a.pkl", conv_clamp=256))
        nested = checkpoints.load(self.write(tmp_path / "b.pkl", synthesis_kwargs={"conv_clamp": 128}))
        assert flat.generator.config()["activation_clamp"] == 256
        assert nested.generator.config()["activation_clamp"] == 128

    def test_other_learning_rate_multiplier_gives_the_same_w(self, tmp_path):
        """Stored weights are used times multiplier / sqrt(fan-in): recomputed here layer by layer."""
        multiplier = 0.002
        read = checkpoints.load(self.write(tmp_path / "a.pkl", mapping_kwargs={"lr_multiplier": multiplier}))
        stored = checkpoints.load(NVLABS_FILE).generator.mapping.layers
        x = z = torch.randn(3, 32)
        x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
        for layer in stored:
            x = x @ (layer.weight * multiplier / 32**0.5).t() + layer.bias * multiplier
            x = torch.where(x > 0, x, 0.2 * x) * 2**0.5
        assert torch.allclose(read.generator.mapping(z), x, rtol=1e-4, atol=1e-6)

    def test_alias_free_generator_is_refused_by_name(self, tmp_path):
        state = {
            "synthesis.L0_36_512.weight": torch.zeros(4, 4, 3, 3),
            "mapping.fc0.weight": torch.zeros(4, 4),
        }
        foreign.write_nvlabs(tmp_path / "sg3.pkl", {"G_ema": (state, {})})
        with pytest.raises(KeyMismatchError, match="StyleGAN3"):
            checkpoints.load(tmp_path / "sg3.pkl")

    def test_other_architecture_is_refused_by_name(self, tmp_path, monkeypatch):
        state = {"synthesis.b4.const": torch.zeros(4, 4, 4)}
        network = foreign.persistent_network(state, "Generator", {})
        network.state["architecture"] = "resnet"
        reconstruct = foreign._reconstruct_persistent_obj
        with foreign.standing_in("torch_utils.persistence", _reconstruct_persistent_obj=reconstruct):
            (tmp_path / "resnet.pkl").write_bytes(pickle.dumps({"G_ema": network}))
        with pytest.raises(KeyMismatchError, match="architecture 'resnet'"):
            checkpoints.load(tmp_path / "resnet.pkl")

    def test_network_saved_whole_by_torch(self, tmp_path):
        """Pivotal tuning saves the tuned network object with torch.save."""
        read = checkpoints.load(NVLABS_FILE)
        from limner.checkpoints.keymaps import generator_rows

        state = {
            row.nvlabs[0]: read.generator.state_dict()[row.limner].clone() for row in generator_rows(32, 4)
        }
        network = foreign.persistent_network(state, "Generator", {})
        reconstruct = foreign._reconstruct_persistent_obj
        with foreign.standing_in("torch_utils.persistence", _reconstruct_persistent_obj=reconstruct):
            torch.save(network, tmp_path / "tuned.pt")
        assert equal_states(checkpoints.load(tmp_path / "tuned.pt").generator, read.generator)


class TestTensorFlow:
    def weights(self) -> dict[str, dict[str, np.ndarray]]:
        from parity.recipe import Fixture

        return Fixture(TF_FILE.with_suffix(".json")).weights()

    def test_written_pickle_equals_the_real_one(self, tmp_path):
        foreign.write_tensorflow(tmp_path / "a.pkl", self.weights(), {"num_channels": 3})
        ours, real = checkpoints.load(tmp_path / "a.pkl"), checkpoints.load(TF_FILE)
        assert equal_states(ours.generator, real.generator)
        assert equal_states(ours.discriminator, real.discriminator)

    def test_conditional_and_older_networks_are_refused(self, tmp_path):
        weights = self.weights()
        weights["Gs"]["G_mapping/LabelConcat/weight"] = np.zeros((5, 32), np.float32)
        foreign.write_tensorflow(tmp_path / "cond.pkl", weights, {})
        with pytest.raises(KeyMismatchError, match=r"LabelConcat.*class-conditional"):
            checkpoints.load(tmp_path / "cond.pkl")
        weights = self.weights()
        weights["Gs"]["G_synthesis/4x4/Const/StyleMod/weight"] = np.zeros((5, 32), np.float32)
        foreign.write_tensorflow(tmp_path / "one.pkl", weights, {})
        with pytest.raises(KeyMismatchError, match="StyleGAN1"):
            checkpoints.load(tmp_path / "one.pkl")
        foreign.write_tensorflow(tmp_path / "orig.pkl", self.weights(), {"architecture": "orig"})
        with pytest.raises(KeyMismatchError, match="architecture 'orig'"):
            checkpoints.load(tmp_path / "orig.pkl")


class TestMismatches:
    def error(self, path: Path, state: dict[str, Any]) -> str:
        torch.save({"g_ema": state}, path)
        with pytest.raises(KeyMismatchError) as caught:
            checkpoints.load(path)
        return str(caught.value)

    def test_wrong_shape_names_found_and_expected(self, tmp_path, generator):
        state = generator_state(generator)
        state["convs.1.conv.weight"] = torch.zeros(1, 8, 4, 3, 3)
        message = self.error(tmp_path / "a.pt", state)
        assert "convs.1.conv.weight: found (1, 8, 4, 3, 3), expected (1, 8, 8, 3, 3)" in message
        assert str(tmp_path / "a.pt") in message
        assert "factor of 2" in message

    def test_wrong_number_of_axes(self, tmp_path, generator):
        state = generator_state(generator)
        state["conv1.conv.weight"] = torch.zeros(2, 8, 8, 3, 3)
        assert "conv1.conv.weight: found (2, 8, 8, 3, 3), expected (1, 8, 8, 3, 3)" in self.error(
            tmp_path / "a.pt", state
        )
        state["conv1.conv.weight"] = torch.zeros(8)
        assert "conv1.conv.weight: found (8,)" in self.error(tmp_path / "b.pt", state)

    def test_missing_and_unknown_names(self, tmp_path, generator):
        state = generator_state(generator)
        state["convs.0.conv.wieght"] = state.pop("convs.0.conv.weight")
        message = self.error(tmp_path / "a.pt", state)
        assert "1 tensors are missing (convs.0.conv.weight), 1 are unknown (convs.0.conv.wieght)" in message

    def test_gap_in_the_mapping_network(self, tmp_path, generator):
        state = generator_state(generator)
        for part in ("weight", "bias"):
            state[f"style.8.{part}"] = state.pop(f"style.2.{part}")
        message = self.error(tmp_path / "a.pt", state)
        assert "style.2.weight" in message
        assert "2 layers, others 8" in message

    def test_no_mapping_network_at_all(self, tmp_path, generator):
        state = {
            name: value for name, value in generator_state(generator).items() if not name.startswith("style.")
        }
        assert "style.1.weight" in self.error(tmp_path / "a.pt", state)

    def test_other_filter(self, tmp_path, generator):
        state = generator_state(generator)
        state["convs.0.conv.blur.kernel"] = torch.ones(4, 4) / 4
        assert "another FIR filter" in self.error(tmp_path / "a.pt", state)

    def test_something_that_is_no_tensor(self, tmp_path, generator):
        assert "1 are unknown (extra)" in self.error(
            tmp_path / "a.pt", {**generator_state(generator), "extra": "text"}
        )

    def test_latent_avg_of_another_width(self, tmp_path, generator):
        torch.save(
            {"g_ema": generator_state(generator), "latent_avg": torch.zeros(18, 16)}, tmp_path / "a.pt"
        )
        with pytest.raises(KeyMismatchError, match=r"\(18, 16\), expected \(16,\)"):
            checkpoints.load(tmp_path / "a.pt")


class Evil:
    """An object whose pickle is a call."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickles(command: str) -> dict[str, bytes]:
    """Return pickles that would run a shell command in a trusting reader, each by another way."""
    line = repr(command).encode()
    text = b"\x8c" + bytes([len(command)]) + command.encode()
    system, build_name = b"\x8c\x02os\x8c\x06system\x93", b"\x8c\x08builtins\x8c\x07getattr\x93"
    script = f"__import__('os').system({command!r})"
    inner = io.BytesIO()
    torch.save({"x": Evil(os.system, command)}, inner)
    inner_stream = io.BytesIO()
    torch.save({"x": Evil(os.system, command)}, inner_stream, _use_new_zipfile_serialization=False)
    return {
        "reduce": pickle.dumps({"g_ema": Evil(os.system, command)}),
        "eval": pickle.dumps(Evil(eval, script)),
        "exec in a list": pickle.dumps([1, {"a": (Evil(exec, script),)}]),
        "protocol 0": pickle.dumps(Evil(os.system, command), protocol=0),
        "inst": b"(S" + line + b"\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS" + line + b"\no.",
        "stack global": b"\x80\x04" + system + text + b"\x85R.",
        "newobj": b"\x80\x04" + system + text + b"\x85\x81.",
        "newobj_ex": b"\x80\x04" + system + text + b"\x85}\x92.",
        "memoised name": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93" + text + b"\x85R.",
        "getattr": b"\x80\x04" + build_name + b"\x8c\x02os\x8c\x06system\x86R" + text + b"\x85R.",
        "dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93)R.",
        "dotted name of numpy": b"\x80\x04\x8c\x05numpy\x8c\x13dtype.__reduce_ex__\x93)R.",
        "setstate": b"\x80\x04\x8c\x0bdnnlib.util\x8c\x08EasyDict\x93)\x81}\x8c\x0c__setstate__"
        + system
        + b"sb"
        + text
        + b"b.",
        "state of a class": b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93}\x8c\x08__init__"
        + text
        + b"sb.",
        "computed name": b"\x80\x04\x8c\x02os\x8c\x07_codecs\x8c\x06encode\x93\x8c\x06system\x85R\x93"
        + text
        + b"\x85R.",
        "call of a result": b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93)R" + text + b"\x85R.",
        "extension code": b"\x80\x04\x82\x01.",
        "import": b"\x80\x04\x8c\x09importlib\x8c\x0dimport_module\x93\x8c\x02os\x85R.",
        "partial": b"\x80\x04\x8c\x09functools\x8c\x07partial\x93" + system + b"\x85R.",
        "torch load": b"\x80\x04\x8c\x05torch\x8c\x04load\x93" + text + b"\x85R.",
        "own class": b"\x80\x04\x8c\x08__main__\x8c\x05Model\x93)\x81.",
        "call of a type": b"\x80\x04\x8c\x08builtins\x8c\x06object\x93)R.",
        "object array": pickle.dumps(np.array([Evil(os.system, command)], dtype=object)),
        "empty object array": pickle.dumps(np.array([None], dtype=object)),
        "nested torch file": pickle.dumps(Evil(torch.storage._load_from_bytes, inner.getvalue())),
        "nested torch stream": pickle.dumps(Evil(torch.storage._load_from_bytes, inner_stream.getvalue())),
        "second pickle of a stream": inner_stream.getvalue(),
    }


NAMES = list(hostile_pickles("true"))


class TestHostile:
    @pytest.fixture
    def mark(self, tmp_path, monkeypatch) -> Path:
        """A file that appears if a payload runs."""
        monkeypatch.chdir(tmp_path)
        return tmp_path / "ran"

    def test_the_payload_does_run_in_a_trusting_reader(self, mark):
        for name in ("reduce", "inst", "obj", "stack global", "memoised name"):
            pickle.loads(hostile_pickles("touch ran")[name])
            assert mark.exists(), name
            mark.unlink()

    @pytest.mark.parametrize("name", NAMES)
    def test_pickle_is_refused_before_anything_runs(self, mark, tmp_path, name):
        path = tmp_path / "model.pkl"
        path.write_bytes(hostile_pickles("touch ran")[name])
        with pytest.raises(UnsafePickleError, match=r"(?s)model\.pkl.*nothing") as caught:
            checkpoints.load(path)
        assert not mark.exists()
        assert len(str(caught.value)) < 300

    @pytest.mark.parametrize("name", [name for name in NAMES if "torch" not in name and "stream" not in name])
    def test_zip_archive_with_a_hostile_pickle(self, mark, tmp_path, name, generator):
        path = tmp_path / "model.pt"
        torch.save({"g_ema": generator_state(generator)}, path)
        replace_entry(path, "data.pkl", hostile_pickles("touch ran")[name])
        with pytest.raises(UnsafePickleError):
            checkpoints.load(path)
        assert not mark.exists()

    def test_message_names_what_was_asked_for(self, tmp_path):
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps(Evil(os.system, "true")))
        with pytest.raises(UnsafePickleError, match=r"posix\.system.*nothing of it was run"):
            checkpoints.load(path)

    def test_foreign_objects_have_no_behaviour(self):
        data = b"\x80\x04\x8c\x0bdnnlib.util\x8c\x07Anytype\x93\x8c\x01x\x85R}\x8c\x08__call__K\x01sb."
        found = read_pickle(io.BytesIO(data))
        assert (str(found.symbol), found.args, found.state) == (
            "dnnlib.util.Anytype",
            ("x",),
            {"__call__": 1},
        )
        assert "dnnlib" not in __import__("sys").modules

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (
                b"\x80\x04" + b"\x85" * 0 + b"]\x94" + b"h\x00a" * 1 + b".",
                "none of",
            ),  # a list that contains itself
            (b"\x80\x04N" + b"\x85" * 5000 + b".", "nested more than"),
            (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.", "cut off or broken"),
            (b"\x80\x04j\xff\xff\xff\xff.", "cut off or broken"),
            (b"\x80\x04.", "cut off or broken"),
            (b"\x80\x04}]Ns.", "cut off or broken"),
        ],
    )
    def test_pickles_that_are_merely_nonsense(self, tmp_path, data, message):
        path = tmp_path / "model.pkl"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            checkpoints.load(path)

    @pytest.mark.parametrize(
        "tensor",
        [
            "storage 0 offset 1000000",
            "size (1000000, 1000000) stride (0, 0)",
            "negative stride",
        ],
    )
    def test_tensors_that_reach_outside_their_storage(self, tmp_path, tensor):
        from limner.checkpoints.unpickle import Storage, view_storage

        storage = Storage(np.zeros(64, np.uint8), torch.float32)
        offset, size, stride = {
            "storage 0 offset 1000000": (1_000_000, (4,), (1,)),
            "size (1000000, 1000000) stride (0, 0)": (0, (1_000_000, 1_000_000), (0, 0)),
            "negative stride": (15, (4,), (-1,)),
        }[tensor]
        with pytest.raises(ValueError, match="tensor"):
            view_storage(storage, offset, size, stride)
        assert view_storage(storage, 12, (2, 2), (2, 1)).tolist() == [[0, 0], [0, 0]]


def replace_entry(path: Path, name: str, data: bytes) -> None:
    """Put other contents into one entry of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, contents in entries.items():
            archive.writestr(entry, data if entry.endswith(f"/{name}") else contents)


class TestBroken:
    @pytest.mark.parametrize(
        ("name", "data", "error", "message"),
        [
            ("empty.pt", b"", UnknownFormatError, "empty"),
            (
                "page.pkl",
                b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
                UnknownFormatError,
                "web page",
            ),
            (
                "lfs.pt",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
                UnknownFormatError,
                "git lfs pull",
            ),
            ("photo.pkl", b"\x89PNG\r\n\x1a\n" + bytes(40), UnknownFormatError, "PNG picture"),
            ("noise.bin", bytes(range(7, 90)), UnknownFormatError, "safetensors"),
            ("text.pt", b"just some words\n", UnknownFormatError, "safetensors"),
            ("list.pkl", pickle.dumps([1, 2, 3]), UnknownFormatError, "none of.*rosinality"),
            ("zip.pt", b"PK\x03\x04" + bytes(100), CheckpointError, "cut off or damaged"),
            (
                "x.safetensors",
                struct.pack("<Q", 50) + b"{" + bytes(20),
                CheckpointError,
                "cut off or damaged",
            ),
        ],
    )
    def test_what_is_no_model_file(self, tmp_path, name, data, error, message):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(error, match=message) as caught:
            checkpoints.load(path)
        assert str(path) in str(caught.value)

    def test_missing_file_and_directory(self, tmp_path):
        (tmp_path / "model.pt").touch()
        with pytest.raises(CheckpointError, match=r"does not exist; did you mean .*model\.pt"):
            checkpoints.load(tmp_path / "modle.pt")
        with pytest.raises(CheckpointError, match="is a directory"):
            checkpoints.load(tmp_path)

    def test_known_but_unsupported_files_are_called_by_name(self, tmp_path):
        torch.save({"kp_detector": {"kp.weight": torch.zeros(3)}, "generator": {}}, tmp_path / "vox.pth")
        with pytest.raises(UnknownFormatError, match="looks like a first-order motion model"):
            checkpoints.load(tmp_path / "vox.pth")

    def test_compressed_archive_is_not_unpacked(self, tmp_path):
        path = tmp_path / "bomb.pt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(1 << 20))
        with pytest.raises(CheckpointError, match="compressed"):
            checkpoints.load(path)

    @pytest.mark.parametrize("old_container", [False, True])
    def test_every_cut_is_noticed(self, tmp_path, generator, old_container):
        whole, part = tmp_path / "whole.pt", tmp_path / "part.pt"
        torch.save(
            {"g_ema": generator_state(generator)}, whole, _use_new_zipfile_serialization=not old_container
        )
        data = whole.read_bytes()
        rng = random.Random(0)
        for size in [1, 2, 8, len(data) - 1, *(rng.randrange(len(data)) for _ in range(15))]:
            part.write_bytes(data[:size])
            with pytest.raises(CheckpointError):
                checkpoints.load(part)

    @pytest.mark.parametrize("kind", ["zip", "stream", "nvlabs", "tensorflow", "safetensors"])
    def test_damaged_bytes_never_end_in_a_foreign_error(self, tmp_path, generator, kind):
        """Flipped bytes in the structured part of a file: it loads, or a CheckpointError says why not."""
        path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
        if kind == "safetensors":
            checkpoints.save(Checkpoint(generator=generator), path)
        elif kind in ("zip", "stream"):
            state = {"g_ema": generator_state(generator), "args": foreign.training_arguments()}
            torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
        data = {"nvlabs": NVLABS_FILE, "tensorflow": TF_FILE}.get(kind, path).read_bytes()
        rng = random.Random(1)
        refused = 0
        for _ in range(12):
            damaged = bytearray(data)
            for _ in range(rng.choice((1, 3))):
                damaged[rng.randrange(min(len(data), 12_000))] = rng.randrange(256)
            path.write_bytes(damaged)
            try:
                checkpoints.load(path, parts=("discriminator",))
            except LimnerError:
                refused += 1
        assert refused > 0


class TestWriting:
    def test_a_failed_write_leaves_the_old_file(self, tmp_path, generator, monkeypatch):
        path = tmp_path / "model.safetensors"
        checkpoints.save(Checkpoint(generator=generator), path)
        before = path.read_bytes()

        def full_disk(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("limner.checkpoints.native.save_file", full_disk)
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoints.save(Checkpoint(generator=generator), path)
        assert path.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]

    def test_places_that_cannot_be_written(self, tmp_path, generator):
        checkpoint = Checkpoint(generator=generator)
        with pytest.raises(CheckpointError, match="cannot be written"):
            checkpoints.save(checkpoint, tmp_path / "none" / "model.safetensors")
        (tmp_path / "dir.safetensors").mkdir()
        with pytest.raises(CheckpointError, match="is a directory"):
            checkpoints.save(checkpoint, tmp_path / "dir.safetensors")

    def test_directory_without_permission(self, locked_folder, generator):
        with pytest.raises(CheckpointError, match="Permission denied"):
            checkpoints.save(Checkpoint(generator=generator), locked_folder / "m.safetensors")


class TestCommands:
    def run(self, module: Any, capsys: Any, **options: Any) -> tuple[int, dict[str, Any]]:
        status = module.run(module.Options(**options), Console(Settings(json=True)))
        return status, json.loads(capsys.readouterr().out)

    @pytest.mark.filterwarnings(TINY_WARNING)
    def test_convert_there_and_back(self, tmp_path, capsys):
        native, foreign_file = tmp_path / "a.safetensors", tmp_path / "b.pt"
        status, result = self.run(convert, capsys, source=NVLABS_FILE, target=native)
        assert (status, result["read"], result["written"]) == (0, "nvlabs", "limner")
        assert result["parts"] == ["discriminator", "generator", "raw_generator"]
        self.run(convert, capsys, source=native, target=foreign_file, licence="CC0-1.0")
        a, b = checkpoints.load(NVLABS_FILE), checkpoints.load(foreign_file)
        assert equal_states(a.generator, b.generator)
        assert equal_states(a.discriminator, b.discriminator)
        assert len(checkpoints.load(native).metadata["provenance"]["sha256"]) == 64

    def test_convert_options(self, tmp_path, capsys):
        target = tmp_path / "a.safetensors"
        _, result = self.run(
            convert, capsys, source=NVLABS_FILE, target=target, half=True, parts=("generator",)
        )
        assert result["parts"] == ["generator"]
        with pytest.raises(CheckpointError, match="--overwrite"):
            self.run(convert, capsys, source=NVLABS_FILE, target=target)
        with pytest.raises(OptionError, match="half precision"):
            self.run(convert, capsys, source=NVLABS_FILE, target=tmp_path / "a.pt", half=True)
        with pytest.raises(OptionError, match="parts is body"):
            convert.Options(source=NVLABS_FILE, target=target, parts=("body",))

    def test_inspect(self, tmp_path, capsys):
        status, result = self.run(inspect, capsys, file=NVLABS_FILE)
        assert status == 0
        assert result["format"] == "nvlabs"
        assert result["parts"]["generator"]["resolution"] == 32
        count = sum(value.numel() for value in checkpoints.load(NVLABS_FILE).generator.parameters())
        assert result["parts"]["generator"]["parameters"] == count
        assert result["tensors"] == len(checkpoints.inspect(NVLABS_FILE).tensors) > 100

    def test_inspect_lists_the_tensors_of_an_unknown_file(self, tmp_path, capsys):
        torch.save({"net": {"weight": torch.zeros(2, 3)}}, tmp_path / "x.pt")
        status, result = self.run(inspect, capsys, file=tmp_path / "x.pt", tensors=True)
        assert (status, result["format"]) == (2, None)
        assert result["tensors"] == [["net/weight", [2, 3], "float32"]]
        assert "none of" in result["title"]


@pytest.mark.parametrize(("name", "kind"), [("toon", "style"), ("encoder", "encoder"), ("lite0", "trunk")])
def test_inspection_tells_bundled_files_that_are_no_models(name, kind):
    found = checkpoints.inspect(zoo.resolve(name))
    assert found.format == f"limner-{kind}"
    assert kind in found.title
    assert found.tensors
