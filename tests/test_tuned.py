"""The change of a tuned generator in its file."""

from __future__ import annotations

import pytest
import torch

from limner.editing import Portrait
from limner.errors import KeyMismatchError
from limner.inversion.report import Inversion
from limner.latent import Latent
from limner.nn import deltas
from limner.nn.tuned import pack_tuned, unpack_tuned


def make_delta(rank: int = 3) -> dict[str, torch.Tensor]:
    """Return a change of one convolution, of a low rank and a little of every other, and of a bias."""
    rng = torch.Generator().manual_seed(3)
    strong = torch.randn(96, rank, generator=rng) @ torch.randn(rank, 96 * 9, generator=rng)
    weight = (strong + 0.01 * torch.randn(96, 96 * 9, generator=rng)).view(96, 96, 3, 3)
    return {"synthesis.layers.0.weight": weight, "synthesis.layers.0.bias": torch.randn(96, generator=rng)}


def test_what_little_memory_keeps() -> None:
    delta = make_delta()
    packed = pack_tuned(delta, kilobytes=8)
    assert packed.bytes_after <= 8000
    back = unpack_tuned(packed.tensors)
    weight, bias = delta.values()
    assert float((back["synthesis.layers.0.weight"] - weight).norm() / weight.norm()) < 0.03
    assert torch.allclose(back["synthesis.layers.0.bias"], bias, atol=1e-3)


def test_small_changes_are_kept_whole() -> None:
    delta = {"a": torch.randn(20, 20, generator=torch.Generator().manual_seed(1))}
    packed = pack_tuned(delta)
    assert set(packed.tensors) == {"a"}
    assert torch.allclose(unpack_tuned(packed.tensors)["a"], delta["a"], atol=2e-3)


def test_large_ones_take_a_tenth_of_float16() -> None:
    delta = {"a": torch.randn(1000, 1000, generator=torch.Generator().manual_seed(1))}
    assert 150_000 < pack_tuned(delta).bytes_after <= 200_000


def test_files_of_earlier_versions_and_damaged_ones() -> None:
    delta = make_delta()
    old = deltas.compress(delta, rank=3).tensors
    assert "synthesis.layers.0.weight.left" in old
    assert unpack_tuned(old).keys() == delta.keys()
    packed = dict(pack_tuned(delta, kilobytes=8).tensors)
    del packed["synthesis.layers.0.weight.left"]
    with pytest.raises(KeyMismatchError, match=r"has no .*\.left beside it"):
        unpack_tuned(packed)


def test_a_portrait_reads_it() -> None:
    delta = make_delta()
    image, latent = torch.zeros(1, 3, 32, 32), Latent("w", torch.zeros(1, 16))
    found = Inversion(latent, None, image, dict(pack_tuned(delta, kilobytes=8).tensors), [])
    ((change, strength),) = Portrait.of(found).changes
    assert strength == 1
    assert change["synthesis.layers.0.weight"].shape == (96, 96, 3, 3)
