"""Blending: swap points, soft swaps, masks and vectors, several parents, families, discriminators, sheets."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import CHANNELS, RESOLUTION, W_DIM, make_generator
from torch import nn

from limner.errors import KeyMismatchError, OptionError
from limner.nn import deltas
from limner.nn.stylegan2 import Discriminator, Generator
from limner.stylization.blend import (
    at_swap_point,
    blend,
    blend_discriminators,
    blend_table,
    check_family,
    describe_table,
    position_of,
    preview,
    relatedness,
    scale_delta,
    swap_points,
)
from limner.stylization.blend_options import BlendOptions


def make_child(parent: Generator, seed: int, amount: float = 0.3) -> Generator:
    """Return a generator all of whose tensors moved a little."""
    child = copy.deepcopy(parent)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in child.state_dict().values():
            value.add_(amount * torch.randn(value.shape, generator=rng))
    return child


@pytest.fixture
def child(generator: Generator) -> Generator:
    """A child of the tiny generator."""
    return make_child(generator, 1)


def origin(blended: nn.Module, parents: list[Generator], name: str) -> int:
    """Return the parent that a tensor equals."""
    (found,) = [
        number
        for number, parent in enumerate(parents)
        if torch.equal(blended.state_dict()[name], parent.state_dict()[name])
    ]
    return found


def test_positions_count_layers() -> None:
    names = ("4.const", "4.conv", "4.rgb", "8.up", "8.conv", "8.rgb", "1024.up", "1024.rgb")
    assert [position_of(name) for name in names] == [0, 1, 1, 2, 3, 3, 16, 17]


@pytest.mark.parametrize(
    ("swap", "level", "first_layer", "first_rgb"),
    [(4, 0, 0, 0), (4, 1, 0, 0), (8, 0, 1, 1), (8, 1, 2, 1), (16, 0, 3, 2), (32, 1, 6, 3)],
)
def test_hard_swap_begins_where_it_says(generator, child, swap, level, first_layer, first_rgb) -> None:
    """Layers from the swap point up are the child's to the bit, 4 px included; all others the base's."""
    parents = [generator, child]
    blended = blend(parents, BlendOptions(swap=(swap,), level=level))
    for i in range(7):
        assert origin(blended, parents, f"synthesis.layers.{i}.weight") == (i >= first_layer)
        assert origin(blended, parents, f"synthesis.layers.{i}.affine.bias") == (i >= first_layer)
        assert origin(blended, parents, f"synthesis.layers.{i}.noise_strength") == (i >= first_layer)
        assert origin(blended, parents, f"synthesis.layers.{i}.noise") == 0
    for j in range(4):
        assert origin(blended, parents, f"synthesis.to_rgb.{j}.weight") == (j >= first_rgb)
    assert origin(blended, parents, "synthesis.const") == (swap == 4 and level == 0)
    assert origin(blended, parents, "mapping.layers.0.weight") == 0
    assert origin(blended, parents, "w_avg") == 0


def test_coarse_side_is_the_other_half(generator, child) -> None:
    """Taking B's coarse layers for A is taking A's fine layers for B, with A's mapping network."""
    one = blend([generator, child], BlendOptions(swap=(16,), take="coarse"))
    other = blend([child, generator], BlendOptions(swap=(16,), mapping=2))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert origin(one, [generator, child], "synthesis.layers.0.weight") == 1
    assert origin(one, [generator, child], "synthesis.layers.6.weight") == 0


def test_mapping_from_either_parent(generator, child) -> None:
    blended = blend([generator, child], BlendOptions(swap=(8,), mapping=2))
    assert origin(blended, [generator, child], "mapping.layers.1.bias") == 1
    assert origin(blended, [generator, child], "w_avg") == 1
    assert origin(blended, [generator, child], "synthesis.layers.3.noise") == 1


def test_parents_may_differ_in_their_mapping_network(generator) -> None:
    """Only w must be of one width; depth and z are those of the parent that gives the mapping network."""
    torch.manual_seed(5)
    other = Generator(resolution=RESOLUTION, channels=CHANNELS, z_dim=8, w_dim=W_DIM, mapping_depth=3)
    other.synthesis.load_state_dict(generator.synthesis.state_dict())
    blended = blend([generator, other], BlendOptions(swap=(16,), mapping=2))
    assert blended.z_dim == 8
    assert len(blended.mapping.layers) == 3
    assert blended(torch.randn(1, 8)).shape == (1, 3, RESOLUTION, RESOLUTION)


def test_soft_swap_follows_the_logistic_curve(generator, child) -> None:
    table = blend_table(generator, 2, BlendOptions(swap=(16,), width=0.7))
    for layer, position in ((0, 1), (1, 2), (3, 4), (6, 7)):
        share = 1 / (1 + math.exp(-(position - 4 + 0.5) / 0.7))
        assert table[f"synthesis.layers.{layer}.weight"] == pytest.approx((1 - share, share))
    blended = blend([generator, child], BlendOptions(swap=(16,), width=0.7))
    a, b = (network.synthesis.layers[3].weight for network in (generator, child))
    share = table["synthesis.layers.3.weight"][1]
    torch.testing.assert_close(blended.synthesis.layers[3].weight, (1 - share) * a + share * b)


@pytest.mark.parametrize("take", ["fine", "coarse"])
def test_soft_swap_narrows_to_the_hard_one(generator, take) -> None:
    for point in swap_points(generator):
        hard = blend_table(generator, 2, at_swap_point(BlendOptions(take=take), point))
        soft = blend_table(generator, 2, at_swap_point(BlendOptions(take=take, width=0.01), point))
        for name, shares in hard.items():
            assert soft[name] == pytest.approx(shares, abs=1e-9), (point, name)


def test_original_rule_swaps_two_layers_later_and_never_the_first(generator) -> None:
    table = blend_table(generator, 2, BlendOptions(swap=(8,), rule="original"))
    assert [table[f"synthesis.layers.{i}.weight"][1] for i in range(7)] == [0, 0, 0, 1, 1, 1, 1]
    soft = blend_table(generator, 2, BlendOptions(swap=(4,), width=3.0, rule="original"))
    assert soft["synthesis.layers.0.weight"] == (1, 0)
    assert soft["synthesis.const"] == (0.5, 0.5)
    behind = blend_table(generator, 2, BlendOptions(swap=(8,), rule="original", take="coarse"))
    assert behind["synthesis.layers.0.weight"] == (0, 1)  # it stays with whoever gives the coarse layers


@pytest.mark.parametrize("take", ["fine", "coarse"])
def test_three_parents(generator, child, take) -> None:
    parents = [generator, child, make_child(generator, 2)]
    blended = blend(parents, BlendOptions(swap=(8, 32), take=take))
    order = [0, 1, 1, 1, 1, 2, 2] if take == "fine" else [2, 1, 1, 1, 1, 0, 0]
    assert [origin(blended, parents, f"synthesis.layers.{i}.weight") for i in range(7)] == order
    soft = blend_table(generator, 3, BlendOptions(swap=(8, 32), width=1.5, take=take))
    for shares in soft.values():
        assert sum(shares) == pytest.approx(1)
        assert min(shares) >= 0
    mean = blend(parents, BlendOptions(layers="all=0.25; all=0.5", mapping=3))
    weights = [parent.synthesis.layers[2].weight for parent in parents]
    torch.testing.assert_close(
        mean.synthesis.layers[2].weight, 0.25 * weights[0] + 0.25 * weights[1] + 0.5 * weights[2]
    )


def test_layers_by_mask_and_by_vector_agree(generator, child) -> None:
    parents = [generator, child]
    by_mask = blend(parents, BlendOptions(layers="0-2,5-=0.5"))
    by_rows = blend(parents, BlendOptions(weights=(1, 1, 1, 0, 0, 0.5, 0.5, 0.5)))
    assert all(torch.equal(v, by_rows.state_dict()[n]) for n, v in by_mask.state_dict().items())
    assert origin(by_mask, parents, "synthesis.layers.2.weight") == 1
    assert origin(by_mask, parents, "synthesis.layers.3.weight") == 0
    only_rgb = blend(parents, BlendOptions(weights=(0, 1) + (0, 0, 1) * 3))
    assert [origin(only_rgb, parents, f"synthesis.to_rgb.{j}.bias") for j in range(4)] == [1] * 4
    assert [origin(only_rgb, parents, f"synthesis.layers.{i}.bias") for i in range(7)] == [0] * 7


@pytest.mark.parametrize(
    ("parents", "options", "message"),
    [
        (2, {"swap": (8, 16)}, "2 points, but 2 parents need 1"),
        (3, {}, "1 points, but 3 parents need 2, such as 8,16"),
        (2, {"swap": (64,)}, "layers of 4, 8, 16, 32 px"),
        (2, {"mapping": 3}, "mapping is parent 3, but there are 2"),
        (1, {}, "two or more"),
        (3, {"layers": "all"}, "1 masks, expected 2"),
        (3, {"layers": "all=0.6;all=0.6"}, "1.2 in all, expected 1 at most"),
        (3, {"weights": (0.5,) * 8}, "two parents"),
        (2, {"weights": (0.5,) * 9}, "9 numbers, expected 8 for the rows of w\\+ or 11"),
    ],
)
def test_options_that_do_not_fit_the_parents(generator, parents, options, message) -> None:
    with pytest.raises(OptionError, match=message):
        blend_table(generator, parents, BlendOptions(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swap": (24,)}, "expected a resolution"),
        ({"swap": (32, 8)}, "rising"),
        ({"weights": (2.0,)}, "weights is 2.0, expected 0.0 to 1.0"),
        ({"weights": (1.0,), "layers": "all"}, "give one of them"),
        ({"layers": "all", "rule": "original"}, "swap points only"),
        ({"take": "middle"}, "expected one of fine, coarse"),
    ],
)
def test_options_that_contradict_themselves(options, message) -> None:
    with pytest.raises(OptionError, match=message):
        BlendOptions(**options)


def test_family_is_told_from_strangers(generator, child) -> None:
    stranger = make_generator(seed=9)
    assert relatedness(generator, child) > 0.9
    assert abs(relatedness(generator, stranger)) < 0.1
    with pytest.raises(KeyMismatchError, match=r"heads and cats have the same layers but .* --unrelated"):
        check_family([generator, stranger], ["heads", "cats"])
    assert blend([generator, stranger], unrelated=True).resolution == RESOLUTION
    small = Generator(resolution=16, channels=CHANNELS, z_dim=W_DIM, w_dim=W_DIM, mapping_depth=2)
    with pytest.raises(
        KeyMismatchError, match="heads and small are not of one family: resolution 32 against 16"
    ):
        check_family([generator, small], ["heads", "small"])
    wide = Generator(resolution=RESOLUTION, channels={**CHANNELS, 8: 4}, z_dim=W_DIM, w_dim=W_DIM)
    with pytest.raises(KeyMismatchError, match="channels 8 8 8 8 against 8 4 8 8"):
        blend([generator, wide], names=["a", "b"])


def test_parents_stay_as_they_were(generator, child) -> None:
    before = [deltas.digest(network) for network in (generator, child)]
    blended = blend([generator, child], BlendOptions(swap=(8,)))
    with torch.no_grad():
        for value in blended.state_dict().values():
            value.zero_()
    assert before == [deltas.digest(network) for network in (generator, child)]


def test_discriminators_follow_their_generators(generator, discriminator) -> None:
    other = copy.deepcopy(discriminator)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(1.0)
    table = blend_table(generator, 2, BlendOptions(swap=(16,)))
    blended = blend_discriminators([discriminator, other], table)

    def is_second(name: str) -> bool:
        return torch.equal(blended.state_dict()[name], other.state_dict()[name])

    # blocks run from 32 px down
    assert [is_second(f"blocks.{k}.conv0.weight") for k in range(3)] == [True, True, False]
    assert is_second("from_rgb.weight")
    assert not is_second("fc.weight")
    thin = Discriminator(resolution=RESOLUTION, channels={**CHANNELS, 4: 4})
    with pytest.raises(KeyMismatchError, match="one architecture"):
        blend_discriminators([discriminator, thin], table)


@pytest.mark.parametrize("take", ["fine", "coarse"])
def test_preview_leads_from_one_parent_to_the_other(generator, child, take) -> None:
    """The child's part grows from column to column, from nothing to everything but the mapping network."""
    stages = list(preview([generator, child], BlendOptions(take=take)))
    assert len(stages) == len(swap_points(generator)) + 2 == 10
    whole = deltas.difference(child, generator)
    changed = [len(deltas.difference(network, generator)) for _, network in stages]
    assert changed == sorted(changed)
    assert changed[0] == 0
    assert changed[-1] == len(whole)
    labels = [label for label, _ in stages]
    assert (
        labels[1:-1] == [f"{s}.{n}" for s in (32, 16, 8, 4) for n in (1, 0)][:: 1 if take == "fine" else -1]
    )
    with pytest.raises(OptionError, match="takes two models, 3 were given"):
        list(preview([generator, child, child]))


@pytest.mark.parametrize("options", [{"swap": (16,)}, {"swap": (8,), "width": 1.0, "take": "coarse"}])
def test_scaled_delta_is_the_blend(generator, child, options) -> None:
    """Base plus the scaled difference is the blend of base and child."""
    chosen = BlendOptions(**options)
    delta = scale_delta(deltas.difference(child, generator), generator, chosen)
    sum_of_both = deltas.apply(generator, [(delta, 1.0)])
    blended = blend([generator, child], chosen)
    for name, value in blended.state_dict().items():
        torch.testing.assert_close(sum_of_both.state_dict()[name], value, msg=name)
    assert not any(name.startswith("mapping.") for name in delta)


def test_table_is_told_in_words(generator) -> None:
    lines = describe_table(blend_table(generator, 2, BlendOptions(swap=(16,))), ["heads", "toon"])
    assert lines == [
        "heads with mapping network: 5 of 11 layers alone, 5.0 in all",
        "toon: 6 of 11 layers alone, 6.0 in all",
    ]
