"""Network blending: one generator made of the layers of several relatives.

A base and the children that were fine-tuned from it keep doing the same thing in the same layer, so their layers can
be put together: coarse ones from one (shape), fine ones from another (texture).

Layers are counted by position, 2 log2(size / 4) + level: at every size the first layer (the constant at 4 px, the
convolution that doubles the size above) has level 0, the second one and toRGB have level 1.  With p the position of a
layer and m that of the swap point, the share of the next parent is

* corrected, hard: 1 where p >= m; soft: 1 / (1 + exp(-(p - m + 1/2) / width)), which narrows to the hard rule.
* original, hard: 1 where p > m + 1; soft: 1 / (1 + exp(-(p - m) / width)); the convolution at 4 px stays behind.

Source: Pinkney and Adler 2020, "Resolution Dependent GAN Interpolation for Controllable Image Synthesis Between
Domains" (arXiv 2010.05334); the original rule is that of the program the authors published.
Differs: the corrected rule, layers by mask or vector, more than two parents, discriminators blended too.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from limner.errors import KeyMismatchError, OptionError
from limner.latent import LayerMask
from limner.nn import deltas
from limner.nn.stylegan2 import Discriminator, Generator
from limner.stylization.blend_options import BlendOptions

Shares = tuple[float, ...]
RELATED = 0.1
"""Networks whose convolutions correlate less than this were not made from one another; children have 0.9 and more."""
FIRST_LAYER = "synthesis.layers.0."
CONST = "synthesis.const"


def position_of(name: str) -> int:
    """Return the position of an S-space vector's layer, such as ``32.up``; see the module's text."""
    size, _, kind = name.partition(".")
    return 2 * (int(size).bit_length() - 3) + (0 if kind in ("up", "const") else 1)


def swap_points(generator: Generator) -> list[tuple[int, int]]:
    """Return every swap point of a generator, (resolution, level), from the coarsest."""
    return [(size, level) for size in generator.synthesis.channels for level in (0, 1)]


def at_swap_point(options: BlendOptions, point: tuple[int, int]) -> BlendOptions:
    """Return the options with one swap point, (resolution, level), in place of whatever chose the layers."""
    return dataclasses.replace(options, swap=(point[0],), level=point[1], layers="", weights=None)


def blend_table(generator: Generator, parents: int, options: BlendOptions) -> dict[str, Shares]:
    """Return, for every tensor of a generator, the shares of the parents, which add up to 1.

    Args:
        generator: any of the parents; only its layers count.
        parents: how many there are.
        options: see `BlendOptions`.

    Raises:
        OptionError: the options do not fit the number of parents or the layers.
    """
    if parents < 2:
        raise OptionError(f"{parents} model was given, expected two or more to blend")
    if options.mapping > parents:
        raise OptionError(f"mapping is parent {options.mapping}, but there are {parents} parents")
    names: Sequence[str] = generator.synthesis.style_names
    if options.layers or options.weights is not None:
        vectors = _shares_by_weights(generator, parents, options)
        const = vectors[0]
    else:
        _check_points(generator, parents, options)
        vectors = [_shares_at(position_of(name), parents, options) for name in names]
        const = _shares_at(0, parents, options)
    behind = _one_hot(parents - 1 if options.take == "coarse" else 0, parents)
    mapping = _one_hot(options.mapping - 1, parents)
    table = {}
    for name in generator.state_dict():
        vector = deltas.style_vector(name, generator)
        if vector is None or name.endswith(".noise"):
            table[name] = mapping
        elif name.startswith(CONST):
            table[name] = const
        elif options.rule == "original" and name.startswith(FIRST_LAYER):
            table[name] = behind
        else:
            table[name] = vectors[vector]
    return table


def _check_points(generator: Generator, parents: int, options: BlendOptions) -> None:
    if len(options.swap) != parents - 1:
        raise OptionError(
            f"swap has {len(options.swap)} points, but {parents} parents need {parents - 1}, such as "
            f"{','.join(str(8 << number) for number in range(parents - 1))}"
        )
    sizes = list(generator.synthesis.channels)
    for size in options.swap:
        if size not in sizes:
            raise OptionError(
                f"swap is {size}, but the generator has layers of {', '.join(map(str, sizes))} px"
            )


def _shares_at(position: int, parents: int, options: BlendOptions) -> Shares:
    """Return the parents' shares of a layer: differences of the curves of the swap points."""
    middles = [2 * (size.bit_length() - 3) + options.level for size in options.swap]
    curves = [1.0, *(_curve(position - middle, options) for middle in middles), 0.0]
    shares = [max(0.0, upper - lower) for upper, lower in itertools.pairwise(curves)]
    return tuple(shares[::-1] if options.take == "coarse" else shares)


def _curve(distance: int, options: BlendOptions) -> float:
    original = options.rule == "original"
    if not options.width:
        return float(distance > 1 if original else distance >= 0)
    exponent = -(distance if original else distance + 0.5) / options.width
    return 1 / (1 + math.exp(min(exponent, 700.0)))


def _shares_by_weights(generator: Generator, parents: int, options: BlendOptions) -> list[Shares]:
    rows: Sequence[int] = generator.synthesis.style_rows
    if options.weights is not None:
        if parents != 2:
            raise OptionError(
                f"weights is for two parents, but there are {parents}; give a mask each with layers"
            )
        weights = list(options.weights)
        if len(weights) == generator.num_rows:
            weights = [weights[row] for row in rows]
        if len(weights) != len(rows):
            raise OptionError(
                f"weights has {len(weights)} numbers, expected {generator.num_rows} for the rows of w+ or "
                f"{len(rows)} for the vectors of S"
            )
        return [(1 - weight, weight) for weight in weights]
    masks = [text.strip() for text in options.layers.split(";")]
    if len(masks) != parents - 1:
        raise OptionError(
            f"layers has {len(masks)} masks, expected {parents - 1}: one for each parent after the first"
        )
    # rounded, since 0.7 in float32 is not 0.7
    columns = [[round(w, 6) for w in LayerMask(text).styles(generator).tolist()] for text in masks]
    found = []
    for name, shares in zip(generator.synthesis.style_names, zip(*columns, strict=True), strict=True):
        rest = 1 - sum(shares)
        if rest < -1e-6:
            raise OptionError(
                f"layers gives {name} {sum(shares):g} in all, expected 1 at most over the parents"
            )
        found.append((max(0.0, rest), *shares))
    return found


def _one_hot(index: int, count: int) -> Shares:
    return tuple(float(number == index) for number in range(count))


def relatedness(a: Generator, b: Generator) -> float:
    """Return the correlation of two generators' convolutions: near 1 for base and child, near 0 for strangers."""
    product = square_a = square_b = 0.0
    for name, value in a.synthesis.state_dict().items():
        if name.startswith("layers.") and name.endswith(".weight") and ".affine" not in name:
            other = b.synthesis.state_dict()[name].to(value)
            product += float((value * other).sum())
            square_a, square_b = (
                square_a + float(value.square().sum()),
                square_b + float(other.square().sum()),
            )
    return product / math.sqrt(square_a * square_b) if square_a and square_b else 0.0


def check_family(parents: Sequence[Generator], names: Sequence[str], *, unrelated: bool = False) -> None:
    """Raise `KeyMismatchError` unless the generators can be blended.

    Args:
        parents: two or more generators.
        names: what they are called.
        unrelated: let models through that have the same layers but were not made from one another.
    """
    first = parents[0]
    for parent, name in zip(parents[1:], names[1:], strict=True):
        differences = [
            f"{what} {mine} against {theirs}"
            for what, mine, theirs in (
                ("kind", type(first).__name__, type(parent).__name__),
                ("resolution", first.resolution, parent.resolution),
                ("channels", _channels(first), _channels(parent)),
                ("width of w", first.w_dim, parent.w_dim),
                *(
                    (key.replace("_", " "), first.config().get(key), parent.config().get(key))
                    for key in ("rgb_channels", "activation_clamp", "label_dim")
                ),
            )
            if mine != theirs
        ]
        if differences:
            raise KeyMismatchError(
                f"{names[0]} and {name} are not of one family: {'; '.join(differences)}; a blend needs a model and "
                "children that were fine-tuned from it"
            )
        found = relatedness(first, parent)
        if not unrelated and abs(found) < RELATED:
            raise KeyMismatchError(
                f"{names[0]} and {name} have the same layers but were not made from one another (their convolutions "
                f"correlate by {found:.2f}, a child's by 0.9 and more), so a blend would paint noise; fine-tune one "
                "from the other (limner train gan --init), or insist with --unrelated"
            )


def _channels(generator: Generator) -> str:
    return " ".join(map(str, generator.synthesis.channels.values()))


@torch.no_grad()
def blend(
    parents: Sequence[Generator],
    options: BlendOptions | None = None,
    *,
    names: Sequence[str] = (),
    unrelated: bool = False,
) -> Generator:
    """Put a generator together from the layers of several.

    Args:
        parents: two or more of one family; they are not changed.
        options: which layers come from which.
        names: what the parents are called in messages.
        unrelated: see `check_family`.

    Returns:
        A generator of its own, in evaluation mode.

    Raises:
        KeyMismatchError: they are not of one family.
        OptionError: the options do not fit them.
    """
    options = options or BlendOptions()
    names = list(names) or [f"parent {number}" for number in range(1, len(parents) + 1)]
    check_family(parents, names, unrelated=unrelated)
    table = blend_table(parents[0], len(parents), options)
    source = parents[options.mapping - 1]
    blended = copy.deepcopy(source)
    states = [parent.state_dict() for parent in parents]
    for name, value in blended.state_dict().items():
        if name in table and not name.startswith("mapping."):
            value.copy_(_mix([state[name] for state in states], table[name]))
    return blended.eval()


def _mix(values: Sequence[Tensor], shares: Shares) -> Tensor:
    taken = [(value, share) for value, share in zip(values, shares, strict=True) if share]
    if len(taken) == 1:
        return taken[0][0]  # one parent alone stays exact
    first = taken[0][0]
    total = torch.zeros_like(first, dtype=torch.float64)
    for value, share in taken:
        total += share * value.to(total)
    return total.to(first.dtype)


@torch.no_grad()
def blend_discriminators(
    discriminators: Sequence[Discriminator], table: Mapping[str, Shares]
) -> Discriminator:
    """Blend discriminators like their generators: each block by the shares of the second layer of its size.

    Args:
        discriminators: one per parent, of one architecture.
        table: of the generators, see `blend_table`.

    Raises:
        KeyMismatchError: they differ in their tensors.
    """
    blended = copy.deepcopy(discriminators[0])
    states = [one.state_dict() for one in discriminators]
    for state in states[1:]:
        if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in states[0].items()}:
            raise KeyMismatchError("the parents' discriminators are not of one architecture")
    top = blended.resolution
    for name, value in blended.state_dict().items():
        size = top if name.startswith("from_rgb") else 4
        if name.startswith("blocks."):
            size = top >> int(name.split(".")[1])
        share = table[f"synthesis.to_rgb.{size.bit_length() - 3}.weight"]
        value.copy_(_mix([state[name] for state in states], share))
    return blended.eval()


def preview(
    parents: Sequence[Generator], options: BlendOptions | None = None, *, unrelated: bool = False
) -> Iterator[tuple[str, Generator]]:
    """Yield (label, generator) for a sheet: the first parent, a blend of two at every swap point, the second parent.

    Args:
        parents: two of one family.
        options: width, side, mapping and rule of the blends.
        unrelated: see `check_family`.

    Raises:
        OptionError: more or fewer than two.
    """
    if len(parents) != 2:
        raise OptionError(f"a sheet over all swap points takes two models, {len(parents)} were given")
    options = options or BlendOptions()
    points = swap_points(parents[0])
    # In the order that leads from the first parent to the second.
    points = points[::-1] if options.take == "fine" else points
    yield "first", parents[0]
    for size, level in points:
        yield f"{size}.{level}", blend(parents, at_swap_point(options, (size, level)), unrelated=unrelated)
    yield "second", parents[1]


def scale_delta(
    delta: Mapping[str, Tensor], generator: Generator, options: BlendOptions
) -> dict[str, Tensor]:
    """Return a child's difference to its base as far as a blend of base and child takes it.

    Args:
        delta: child minus base.
        generator: the base, or one of its architecture; only its layers count.
        options: of the blend; the base is the first parent, the child the second.
    """
    table = blend_table(generator, 2, options)
    return {name: change * table[name][1] for name, change in delta.items() if table[name][1]}


def describe_table(table: Mapping[str, Shares], names: Iterable[str]) -> list[str]:
    """Return one line per parent: how much of all layers it gives, and which it gives alone.

    Args:
        table: see `blend_table`.
        names: of the parents.
    """
    layers: dict[str, Shares] = {}
    for tensor, shares in table.items():
        parts = tensor.split(".")
        if parts[0] == "synthesis" and len(parts) > 2 and parts[-1] == "weight" and "affine" not in parts:
            layers[".".join(parts[1:3])] = shares
    lines = []
    for number, name in enumerate(names):
        total = sum(shares[number] for shares in layers.values())
        whole = sum(shares[number] == 1 for shares in layers.values())
        own = " with mapping network" if table["w_avg"][number] == 1 else ""
        lines.append(f"{name}{own}: {whole} of {len(layers)} layers alone, {total:.1f} in all")
    return lines
