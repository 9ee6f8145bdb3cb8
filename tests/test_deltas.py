"""Weight deltas: difference, addition with strengths, digest, compression."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_generator

from limner.errors import KeyMismatchError, ShapeError
from limner.latent import LayerMask
from limner.nn import deltas
from limner.nn.stylegan2 import Generator


@pytest.fixture
def tuned(generator) -> Generator:
    other = copy.deepcopy(generator)
    rng = torch.Generator().manual_seed(9)
    for weight in other.parameters():
        weight.add_(0.1 * torch.randn(weight.shape, generator=rng))
    return other


def test_the_difference_added_gives_the_tuned_generator(generator, tuned):
    before = deltas.digest(generator)
    found = deltas.apply(generator, [(deltas.difference(tuned, generator), 1.0)])
    for name, value in tuned.state_dict().items():
        assert torch.allclose(found.state_dict()[name], value, atol=1e-6), name
    assert deltas.digest(generator) == before


def test_only_what_changed_is_kept(generator):
    other = copy.deepcopy(generator)
    other.synthesis.to_rgb[1].weight.add_(0.5)
    other.synthesis.layers[2].bias.add_(1e-4)
    assert set(deltas.difference(other, generator)) == {
        "synthesis.to_rgb.1.weight",
        "synthesis.layers.2.bias",
    }
    assert set(deltas.difference(other, generator, tolerance=1e-3)) == {"synthesis.to_rgb.1.weight"}
    assert deltas.difference(generator, generator) == {}


def test_deltas_add_up_with_their_strengths(generator, tuned):
    one = deltas.difference(tuned, generator)
    two = {name: -3 * change for name, change in one.items()}
    found = deltas.apply(generator, [(one, 0.5), (two, 0.25)])
    for name, value in generator.state_dict().items():
        expected = value + (0.5 - 0.75) * one[name] if name in one else value
        assert torch.allclose(found.state_dict()[name], expected, atol=1e-6), name


def test_row_weights_reach_the_layers_of_their_rows(generator, tuned):
    delta = deltas.difference(tuned, generator)
    rows = torch.arange(8) / 10
    by_row = deltas.tensor_weights(generator, delta, rows)
    by_vector = deltas.tensor_weights(generator, delta, rows[generator.synthesis.style_rows])
    assert by_row == by_vector
    for i in range(7):
        assert by_row[f"synthesis.layers.{i}.weight"] == pytest.approx(i / 10)
        assert by_row[f"synthesis.layers.{i}.affine.bias"] == pytest.approx(i / 10)
    for j in range(4):
        assert by_row[f"synthesis.to_rgb.{j}.weight"] == pytest.approx((2 * j + 1) / 10)
    assert by_row["synthesis.const"] == by_row["mapping.layers.0.weight"] == 0
    uniform = deltas.tensor_weights(generator, delta, torch.full((8,), 0.5))
    assert set(uniform.values()) == {0.5}


def test_style_vectors_agree_with_the_network(generator):
    names = generator.synthesis.style_names
    for name in generator.state_dict():
        vector = deltas.style_vector(name)
        if name.startswith("synthesis.layers."):
            layer = generator.synthesis.layers[int(name.split(".")[2])]
            assert vector is not None
            assert names[vector] == f"{layer.resolution}.{'up' if layer.up else 'conv'}"
        elif name.startswith("synthesis.to_rgb."):
            assert vector is not None
            assert names[vector] == f"{4 << int(name.split('.')[2])}.rgb"
        else:
            assert vector == (0 if name == "synthesis.const" else None)


def test_a_layer_mask_swaps_layers(generator, tuned):
    weights = LayerMask("16px-").styles(generator)
    found = deltas.apply(generator, [(deltas.difference(tuned, generator), weights)]).state_dict()
    for name, value in found.items():
        vector = deltas.style_vector(name)
        source = tuned if vector is not None and weights[vector] else generator
        assert torch.allclose(value, source.state_dict()[name], atol=1e-6), name


def test_a_delta_of_another_generator_is_refused(generator, tuned):
    delta = deltas.difference(tuned, generator)
    with pytest.raises(
        KeyMismatchError, match="synthesis.layers.9.weight, which the generator does not have"
    ):
        deltas.apply(generator, [({**delta, "synthesis.layers.9.weight": torch.zeros(1)}, 1.0)])
    with pytest.raises(ShapeError, match="belongs to another base"):
        deltas.apply(generator, [({"w_avg": torch.zeros(3)}, 1.0)])
    with pytest.raises(ShapeError, match=r"\(8,\) for the rows of w\+ or \(11,\) for the vectors of S"):
        deltas.apply(generator, [(delta, torch.ones(5))])
    deeper = Generator(
        resolution=32, channels=dict.fromkeys((4, 8, 16, 32), 8), z_dim=16, w_dim=16, mapping_depth=3
    )
    with pytest.raises(KeyMismatchError, match="one architecture"):
        deltas.difference(deeper, generator)
    wider = Generator(
        resolution=32, channels=dict.fromkeys((4, 8, 16, 32), 4), z_dim=16, w_dim=16, mapping_depth=2
    )
    with pytest.raises(ShapeError, match="in the base"):
        deltas.difference(wider, generator)


def test_the_digest_tells_weights_and_names_apart(generator):
    first = deltas.digest(generator)
    assert first == deltas.digest(make_generator())
    assert first != deltas.digest(make_generator(1))
    other = copy.deepcopy(generator)
    other.w_avg[0] += 1e-6
    assert deltas.digest(other) != first
    assert deltas.digest(copy.deepcopy(generator).to(torch.float64)) == first


def test_compression_of_low_rank_changes_loses_nothing_but_rounding():
    rng = torch.Generator().manual_seed(2)
    left, right = torch.randn(32, 3, generator=rng), torch.randn(3, 16 * 9, generator=rng)
    delta = {"weight": 0.01 * (left @ right).view(32, 16, 3, 3), "bias": torch.randn(32, generator=rng)}
    packed = deltas.compress(delta, tolerance=1e-3)
    assert {name: tuple(value.shape) for name, value in packed.tensors.items()} == {
        "weight.left": (32, 3),
        "weight.right": (3, 16, 3, 3),
        "bias": (32,),
    }
    back = deltas.reconstruct(packed.tensors)
    assert back.keys() == delta.keys()
    worst = max(float((back[name] - delta[name]).norm() / delta[name].norm()) for name in delta)
    assert worst < 2e-3
    assert packed.error < 2e-3
    assert packed.bytes_before == 4 * (32 * 16 * 9 + 32)
    assert packed.bytes_after == 2 * (32 * 3 + 3 * 16 * 9 + 32)


def test_compression_says_what_it_lost():
    change = torch.randn(24, 40, generator=torch.Generator().manual_seed(3))
    packed = deltas.compress({"weight": change}, rank=4)
    values = torch.linalg.svdvals(change)
    lost = float((values[4:].square().sum() / values.square().sum()).sqrt())  # Eckart and Young
    assert packed.errors["weight"] == pytest.approx(lost, rel=1e-3)
    assert packed.error == packed.errors["weight"]
    strict = deltas.compress({"weight": change}, tolerance=0.5)
    assert strict.error <= 0.5 + 1e-3
    assert strict.tensors["weight.left"].shape[1] == int((values.square().flip(0).cumsum(0).flip(0) > 0.25 * values.square().sum()).sum())  # fmt: skip


def test_full_rank_changes_stay_whole():
    change = torch.randn(24, 40, generator=torch.Generator().manual_seed(3))
    packed = deltas.compress({"weight": change, "large": torch.tensor([1e6])}, tolerance=1e-4)
    assert packed.tensors["weight"].dtype == torch.float16
    assert packed.tensors["large"].dtype == torch.float32
    assert packed.error < 1e-3


def test_factors_without_their_other_half_are_refused():
    with pytest.raises(KeyMismatchError, match="weight.right beside it"):
        deltas.reconstruct({"weight.left": torch.zeros(2, 1)})
    with pytest.raises(KeyMismatchError, match="weight.left beside it"):
        deltas.reconstruct({"weight.right": torch.zeros(1, 2)})
    with pytest.raises(ShapeError, match="do not fit"):
        deltas.reconstruct({"weight.left": torch.zeros(2, 1), "weight.right": torch.zeros(3, 2)})
