"""DualStyleGAN's files, read and written in both directions, and what is said of wrong ones."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_generator
from torch import nn

import limner
from limner import checkpoints
from limner.app import cli
from limner.checkpoints import Checkpoint
from limner.checkpoints.dual import dual_state, style_codes
from limner.errors import CheckpointError, KeyMismatchError, UnsafePickleError
from limner.nn.dualstylegan import DualGenerator


def make_dual(seed: int = 0) -> DualGenerator:
    dual = DualGenerator.around(make_generator(seed))
    torch.manual_seed(seed)
    for value in dual.parameters():
        value.data = value.data + 0.1 * torch.randn_like(value)
    return dual.eval()


def published_codes(count: int, rows: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"Cartoons_{i:05d}.jpg": rng.standard_normal((1, rows, 16)).astype(np.float32) for i in range(count)
    }


class PublishedSampler(nn.Module):
    """The layers of the published sampler, by their names."""

    def __init__(self, width: int):
        super().__init__()
        self.lin1, self.bn1 = nn.Linear(128, 128, bias=False), nn.BatchNorm1d(128)
        self.lin2, self.bn2 = nn.Linear(128, 128, bias=False), nn.BatchNorm1d(128)
        self.lin_out = nn.Linear(128, width, bias=False)
        self.bn1.running_mean = torch.randn(128)
        self.bn2.running_var = torch.rand(128) + 0.5

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.bn1(self.lin1(noise)))
        return self.lin_out(torch.relu(self.bn2(self.lin2(hidden))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the original programs write it: generator, two kinds of codes, sampler."""
    model = tmp_path / "cartoon"
    model.mkdir()
    torch.save({"g_ema": dual_state(make_dual())}, model / "generator.pt")
    np.save(model / "exstyle_code.npy", published_codes(3), allow_pickle=True)  # type: ignore[arg-type]
    refined = dict(list(published_codes(3, seed=1).items())[1:])
    np.save(model / "refined_exstyle_code.npy", refined, allow_pickle=True)  # type: ignore[arg-type]
    networks = {"color": PublishedSampler(16), "structure": PublishedSampler(7 * 16)}
    torch.save({name: net.state_dict() for name, net in networks.items()}, model / "sampler.pt")
    return model


def test_generator_with_what_lies_beside_it(folder: Path) -> None:
    checkpoint = limner.load(folder / "generator.pt")
    assert checkpoint.format == "dualstylegan"
    assert checkpoint.dual is not None
    assert checkpoint.generator is checkpoint.dual.generator
    assert set(checkpoint.parts()) == {"dual", "sampler"}
    codes = style_codes(checkpoint.codes)
    assert list(codes) == list(published_codes(3))
    name, other = list(codes)[:2]  # of the first there is no refined code
    np.testing.assert_array_equal(codes[name].numpy(), published_codes(3)[name][0])
    np.testing.assert_array_equal(codes[other].numpy(), published_codes(3, seed=1)[other][0])
    expected = make_dual()
    code = torch.randn(1, 8, 16)
    torch.testing.assert_close(checkpoint.dual(code, code), expected(code, code))


def test_codes_and_sampler_by_themselves(folder: Path) -> None:
    refined = limner.load(folder / "refined_exstyle_code.npy")
    assert refined.format == "dualstylegan-codes"
    assert list(refined.codes) == ["refined"]
    assert len(refined.codes["refined"]) == 2
    found = limner.load(folder / "sampler.pt").sampler
    assert found is not None
    assert found.config() == {
        "structure_rows": 7,
        "color_rows": 1,
        "z_dim": 16,
        "noise_dim": 128,
        "hidden": 128,
    }


def test_sampler_samples_as_the_published_one(tmp_path: Path) -> None:
    networks = {"color": PublishedSampler(11 * 512).eval(), "structure": PublishedSampler(7 * 512).eval()}
    torch.save({name: net.state_dict() for name, net in networks.items()}, tmp_path / "sampler.pt")
    sampler = limner.load(tmp_path / "sampler.pt").sampler
    assert sampler is not None
    noise = torch.randn(2, 3, 128)
    with torch.no_grad():
        found = sampler(noise[0], noise[1])
        torch.testing.assert_close(found[:, :7].flatten(1), networks["structure"](noise[0]))
        torch.testing.assert_close(found[:, 7:].flatten(1), networks["color"](noise[1]))


@pytest.mark.filterwarnings("ignore:.*original programs")
def test_native_and_back_is_exact(folder: Path, tmp_path: Path) -> None:
    native, again = tmp_path / "cartoon.safetensors", tmp_path / "again"
    again.mkdir()
    checkpoints.save(limner.load(folder / "generator.pt"), native)
    middle = limner.load(native)
    assert middle.generator is not None
    assert middle.dual is not None
    assert middle.generator is middle.dual.generator
    checkpoints.save(middle, again / "generator.pt")
    for name in ("generator.pt", "sampler.pt"):
        before, after = (torch.load(place / name, weights_only=True) for place in (folder, again))
        assert set(before) == set(after)
        for section in before:
            assert set(before[section]) == set(after[section])
            for key, value in before[section].items():
                assert torch.equal(value, after[section][key]), key
                assert value.dtype == after[section][key].dtype, key
    for name in ("exstyle_code.npy", "refined_exstyle_code.npy"):
        # What the original programs do to read them; the files are our own.
        before, after = (np.load(place / name, allow_pickle=True).item() for place in (folder, again))
        assert list(before) == list(after)
        for key, value in before.items():
            np.testing.assert_array_equal(value, after[key])
            assert value.dtype == after[key].dtype


@pytest.mark.filterwarnings("ignore:.*original programs")
def test_written_beside_others_only_when_allowed(folder: Path) -> None:
    checkpoint = limner.load(folder / "generator.pt")
    with pytest.raises(CheckpointError, match=r"exstyle_code.npy.*belong to another model"):
        checkpoints.save(checkpoint, folder / "other.pt")
    assert not (folder / "other.pt").exists()
    checkpoints.save(checkpoint, folder / "other.pt", overwrite=True)
    assert (folder / "other.pt").exists()


def test_training_file_has_both_networks_and_the_discriminator(tmp_path: Path, discriminator: Any) -> None:
    from limner.checkpoints.rosinality import discriminator_state

    contents = {
        "g": dual_state(make_dual(1)),
        "g_ema": dual_state(make_dual(2)),
        "d": discriminator_state(discriminator),
        "g_optim": {"state": {}},
    }
    torch.save(contents, tmp_path / "generator-pretrain.pt")
    checkpoint = limner.load(tmp_path / "generator-pretrain.pt")
    assert set(checkpoint.parts()) == {"dual", "raw_dual", "discriminator"}
    assert checkpoint.dual is not None
    assert checkpoint.raw_dual is not None
    for network, seed in ((checkpoint.dual, 2), (checkpoint.raw_dual, 1)):
        assert torch.equal(network.color[0].weight, make_dual(seed).color[0].weight)


def test_without_a_discriminator_or_codes(tmp_path: Path) -> None:
    torch.save(dual_state(make_dual()), tmp_path / "bare.pt")  # not nested
    checkpoint = limner.load(tmp_path / "bare.pt", parts=("generator",))
    assert checkpoint.dual is None
    assert set(checkpoint.parts()) == {"generator"}


class TestWrongFiles:
    def test_missing_and_unknown_tensors(self, tmp_path: Path) -> None:
        state = dual_state(make_dual())
        del state["res.2.conv.0.weight"]
        state["res.3.extra"] = torch.zeros(1)
        torch.save({"g_ema": state}, tmp_path / "broken.pt")
        with pytest.raises(
            KeyMismatchError, match=r"missing \(res.2.conv.0.weight\).*unknown \(res.3.extra\)"
        ):
            limner.load(tmp_path / "broken.pt")

    def test_wrong_shape(self, tmp_path: Path) -> None:
        state = dual_state(make_dual())
        state["res.7.weight"] = torch.zeros(3, 3)
        torch.save({"g_ema": state}, tmp_path / "broken.pt")
        with pytest.raises(KeyMismatchError, match=r"res.7.weight: found \(3, 3\), expected \(16, 16\)"):
            limner.load(tmp_path / "broken.pt")

    def test_codes_of_another_size_beside_it(self, folder: Path) -> None:
        np.save(folder / "exstyle_code.npy", published_codes(2, rows=18), allow_pickle=True)  # type: ignore[arg-type]
        with pytest.raises(KeyMismatchError, match="have 18 rows, expected 8"):
            limner.load(folder / "generator.pt")

    def test_codes_that_run_code(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "ran",))

        np.save(tmp_path / "exstyle_code.npy", {"a": Evil()}, allow_pickle=True)  # type: ignore[arg-type]
        with pytest.raises(UnsafePickleError):
            limner.load(tmp_path / "exstyle_code.npy")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("end", [20, 100, 300, -1])
    def test_cut_off_codes(self, folder: Path, end: int) -> None:
        data = (folder / "exstyle_code.npy").read_bytes()
        (folder / "exstyle_code.npy").write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            limner.load(folder / "exstyle_code.npy")

    def test_an_array_is_no_model(self, tmp_path: Path) -> None:
        np.save(tmp_path / "w.npy", np.zeros((1, 18, 512), np.float32))
        with pytest.raises(CheckpointError, match="is none of"):
            limner.load(tmp_path / "w.npy")
        several = np.array([{}, {}], dtype=object)
        np.save(tmp_path / "two.npy", several, allow_pickle=True)
        with pytest.raises(CheckpointError, match="array .2,. of Python objects"):
            limner.load(tmp_path / "two.npy")

    def test_codes_of_odd_shapes(self, tmp_path: Path) -> None:
        np.save(tmp_path / "c.npy", {"a": np.zeros(3, np.float32)}, allow_pickle=True)  # type: ignore[arg-type]
        with pytest.raises(KeyMismatchError, match="'a' is .3,., expected a code"):
            limner.load(tmp_path / "c.npy")

    def test_nothing_to_write(self, tmp_path: Path, generator: Any) -> None:
        with pytest.raises(CheckpointError, match="holds no DualStyleGAN"):
            checkpoints.save(Checkpoint(generator=generator), tmp_path / "a.pt", format="dualstylegan")

    def test_what_the_originals_do_not_know(self, tmp_path: Path) -> None:
        made = make_dual()
        fine = DualGenerator.around(made.generator, structure_rows=5, fine_blocks=2)
        with pytest.raises(CheckpointError, match="2 residual blocks beyond its structure rows"):
            checkpoints.save(Checkpoint(dual=fine), tmp_path / "a.pt", format="dualstylegan")
        checkpoints.save(Checkpoint(dual=fine), tmp_path / "a.safetensors")
        again = checkpoints.load(tmp_path / "a.safetensors").dual
        assert again is not None
        assert again.state_dict().keys() == fine.state_dict().keys()

    def test_native_codes_without_names(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = tmp_path / "a.safetensors"
        checkpoints.save(Checkpoint(dual=make_dual(), codes={"extrinsic": {"a": torch.zeros(8, 16)}}), file)
        tensors, header = load_file(file), checkpoints.open_source(file).metadata
        about = json.loads(header["limner"])
        about["codes"] = {"extrinsic": ["a", "b"]}
        save_file(tensors, file, {"limner": json.dumps(about)})
        with pytest.raises(KeyMismatchError, match="differ in number: extrinsic"):
            limner.load(file)


def command(*words: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([*map(str, words)])
    return status, out.getvalue(), err.getvalue()


@pytest.mark.filterwarnings("default:.*original programs")
def test_inspect_and_convert(folder: Path, tmp_path: Path) -> None:
    status, out, _ = command("inspect", folder / "generator.pt", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["format"] == "dualstylegan"
    assert found["parts"]["dual"]["structure_rows"] == 7
    assert found["metadata"]["codes"] == {"extrinsic": 3, "refined": 2}
    assert found["metadata"]["read_beside"] == ["exstyle_code.npy", "refined_exstyle_code.npy", "sampler.pt"]
    native, again = tmp_path / "a.safetensors", tmp_path / "b"
    again.mkdir()
    assert command("convert", folder / "generator.pt", native, "--half")[0] == 0
    status, _, err = command("convert", native, again / "generator.pt")
    assert status == 0
    assert "original programs" in err  # 8 channels are none of theirs
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in folder.iterdir())
