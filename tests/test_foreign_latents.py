"""Codes in the files of other programs, written as those write them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from limner.checkpoints.latents import load_latent
from limner.errors import CheckpointError, KeyMismatchError, OptionError, ShapeError, UnsafePickleError
from limner.latent import Latent, save_latent

CODES = torch.arange(2 * 8 * 16, dtype=torch.float32).view(2, 8, 16)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("stored", "space", "expected"),
    [
        (CODES, None, "w+"),
        (CODES, "z+", "z+"),
        (CODES[:1, 0], None, "w"),
        (CODES[0], None, "w+"),
        (CODES[:, :1], "w", "w"),
        (torch.nn.Parameter(CODES), None, "w+"),
    ],
)
def test_bare_tensors(tmp_path, zipped, stored, space, expected):
    """As e4e's latents.pt and the pivots of PTI."""
    torch.save(stored, tmp_path / "latents.pt", _use_new_zipfile_serialization=zipped)
    found = load_latent(tmp_path / "latents.pt", space=space)
    assert found.latent.space == expected
    assert torch.equal(found.latent.tensor.flatten(), stored.detach().flatten())
    assert not found.latent.tensor.requires_grad
    assert found.noise is None


def test_rosinality_projections(tmp_path):
    noise = [[torch.randn(1, 1, n, n) for n in (4, 8, 8)] for _ in range(2)]
    pictures = {
        f"photos/{name}.png": {"img": torch.zeros(3, 32, 32), "latent": CODES[i], "noise": noise[i]}
        for i, name in enumerate("ab")
    }
    torch.save(pictures, tmp_path / "a.pt")
    both = load_latent(tmp_path / "a.pt")
    assert torch.equal(both.latent.tensor, CODES)
    assert both.metadata["names"] == ["photos/a.png", "photos/b.png"]
    assert both.noise is not None
    assert [tuple(maps.shape) for maps in both.noise] == [(2, 1, 4, 4), (2, 1, 8, 8), (2, 1, 8, 8)]
    assert torch.equal(both.noise[2][1:], noise[1][2])
    second = load_latent(tmp_path / "a.pt", name="b.png")
    assert torch.equal(second.latent.tensor, CODES[1:])
    with pytest.raises(KeyMismatchError, match=r"no codes called 'c\.png'"):
        load_latent(tmp_path / "a.pt", name="c.png")
    pictures["photos/b.png"]["latent"] = CODES[1, 0]
    torch.save(pictures, tmp_path / "b.pt")
    with pytest.raises(KeyMismatchError, match="different shapes"):
        load_latent(tmp_path / "b.pt")
    assert load_latent(tmp_path / "b.pt", name="b.png").latent.space == "w"


def test_jojogan_keeps_one_code_under_its_name(tmp_path):
    torch.save({"latent": CODES[0]}, tmp_path / "face.pt")
    found = load_latent(tmp_path / "face.pt")
    assert (found.latent.space, tuple(found.latent.tensor.shape)) == ("w+", (1, 8, 16))
    assert found.metadata == {}


def test_pickled_numpy_codes_are_read_as_data(tmp_path):
    passes = {name: [np.zeros((8, 16), np.float32), CODES[i].numpy()] for i, name in enumerate("ab")}
    np.save(tmp_path / "restyle.npy", np.array(passes, dtype=object), allow_pickle=True)
    found = load_latent(tmp_path / "restyle.npy")
    assert found.latent.space == "w+"
    assert torch.equal(found.latent.tensor, CODES)
    exstyle = {name: CODES[i : i + 1].numpy() for i, name in enumerate("ab")}
    np.save(tmp_path / "exstyle_code.npy", np.array(exstyle, dtype=object), allow_pickle=True)
    assert load_latent(tmp_path / "exstyle_code.npy", name="b").latent.space == "z+"
    assert torch.equal(load_latent(tmp_path / "exstyle_code.npy").latent.tensor, CODES)


def test_own_and_plain_files_are_read_too(tmp_path):
    save_latent(tmp_path / "own.safetensors", Latent("z+", CODES))
    np.savez(tmp_path / "w.npz", w=CODES.numpy())
    np.save(tmp_path / "w.npy", CODES.numpy())
    for name in ("own.safetensors", "w.npz", "w.npy"):
        assert torch.equal(load_latent(tmp_path / name).latent.tensor, CODES)
        with pytest.raises(OptionError, match="no names"):
            load_latent(tmp_path / name, name="a")


class Trap:
    def __reduce__(self):
        return (open, ("/tmp/limner-trap", "w"))


def test_nothing_is_run_and_nonsense_is_explained(tmp_path):
    torch.save({"a.png": {"latent": CODES, "noise": Trap()}}, tmp_path / "trap.pt")
    with pytest.raises(UnsafePickleError):
        load_latent(tmp_path / "trap.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        load_latent(tmp_path / "none.pt")
    for value, error, message in (
        ({}, KeyMismatchError, "empty"),
        ({"g_ema": {"weight": CODES}}, KeyMismatchError, "has weight, expected one of latent"),
        ({"a": "text"}, KeyMismatchError, "holds str"),
        (torch.zeros(1, 2, 3, 4), ShapeError, "takes"),
        (torch.ones(8, 16, dtype=torch.bool), ShapeError, "real numbers"),
        ({"latent": CODES, "noise": [torch.zeros(4, 4)]}, ShapeError, "noise map"),
    ):
        torch.save(value, tmp_path / "wrong.pt")
        with pytest.raises(error, match=message):
            load_latent(tmp_path / "wrong.pt")
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps({"latent": [1.0]})[:-3])
    with pytest.raises(CheckpointError):
        load_latent(tmp_path / "cut.pkl")
