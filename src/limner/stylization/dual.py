"""Style transfer with a DualStyleGAN: who from one code, shapes and colours from others.

Source: Yang et al. 2022, "Pastiche Master: Exemplar-Based High-Resolution Portrait Style Transfer"
(arXiv 2203.13248), sections 3.2 and 3.3.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from limner.errors import KeyMismatchError, OptionError, ShapeError
from limner.latent import Latent
from limner.nn import deltas
from limner.nn.detail import Detail
from limner.nn.dualstylegan import DualGenerator, StyleSampler
from limner.nn.stylegan2 import Generator, Noise
from limner.stylization.options import FIXED, DualOptions


def find_code(codes: Mapping[str, Tensor], key: str) -> tuple[str, Tensor]:
    """Return name and code of a style by its number (from 0, in the file's order) or its name, ending left out or not.

    Args:
        codes: name -> code of the styles, in the file's order.
        key: number or name; a name of digits alone, such as 020015, wins where it cannot be the number.

    Raises:
        OptionError: no such style; close matches are named.
    """
    names = list(codes)
    if key in codes:
        return key, codes[key]
    number = int(key) if key.isdecimal() else len(names)
    found = [name for name in names if name.rpartition(".")[0] == key]
    if len(found) == 1 and (number >= len(names) or key != str(number)):
        return found[0], codes[found[0]]
    if number < len(names):
        return names[number], codes[names[number]]
    if key.isdecimal():
        raise OptionError(f"there is no style {key}; this model has {len(names)}, 0 to {len(names) - 1}")
    close = difflib.get_close_matches(key, names, 3)
    known = f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "it has none"
    hint = f"did you mean {' or '.join(close)}?" if close else f"this model has {len(names)} styles: {known}"
    raise OptionError(f"no style is called {key!r}; {hint}")


def at_strength(strength: float, *, keep_color: bool = False) -> DualOptions:
    """Return the options that one strength stands for, as learned styles have it.

    Args:
        strength: 0 is the face as embedded, 1 the whole style; at the default structure weight of `DualOptions`, 0.75,
            these are its defaults.
        keep_color: take the colours from the face.
    """
    usual = DualOptions()
    share = min(1.0, strength / usual.structure)
    return DualOptions(
        structure=strength, color=share, truncation=1 - share * (1 - usual.truncation), keep_color=keep_color
    )


def to_extrinsic(dual: DualGenerator, code: Latent | Tensor) -> Tensor:
    """Return the extrinsic code (B, L, w_dim) of a style's z+ code (L, z_dim) or (B, L, z_dim), or of any latent.

    Raises:
        ShapeError: the code does not fit the model.
    """
    if isinstance(code, Latent):
        latent = code
    else:
        latent = Latent("z+", code if code.ndim == 3 else code[None])
    return latent.to(dual.generator.w_avg).w_plus(dual.generator)


def mix_styles(extrinsic: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of extrinsic codes (B, L, w_dim); two with weights 1 - t and t are an interpolation.

    Raises:
        OptionError: not as many weights as codes, or weights that sum to 0.
    """
    if len(extrinsic) != len(weights) or not extrinsic or abs(sum(weights)) < 1e-6:
        raise OptionError(
            f"{len(weights)} weights for {len(extrinsic)} styles, expected one each, with a sum that is not 0"
        )
    total = sum(weights)
    return torch.stack(
        [code * (weight / total) for code, weight in zip(extrinsic, weights, strict=True)]
    ).sum(0)


def combine(dual: DualGenerator, structure: Tensor, color: Tensor) -> Tensor:
    """Return an extrinsic code with the structure rows of one code and the colour rows of another."""
    structure, color = torch.broadcast_tensors(structure, color)
    return torch.cat([structure[:, : dual.structure_rows], color[:, dual.structure_rows :]], 1)


def truncate(generator: Generator, w_plus: Tensor, options: DualOptions) -> Tensor:
    """Pull an intrinsic code to the mean w or to zero, as the options say."""
    if options.towards == "zero":
        return w_plus * options.truncation
    return generator.truncate(w_plus, options.truncation)


def row_weights(dual: DualGenerator, options: DualOptions) -> Tensor:
    """Return the weight of the style in every row, (L,).

    Raises:
        ShapeError: the options have fewer numbers than the model has rows.
    """
    weights = options.row_weights or dual.weights(options.structure, options.color)
    return dual.row_weights(weights, options.fuse_row)


@torch.no_grad()
def transfer(
    dual: DualGenerator,
    content: Latent,
    extrinsic: Tensor,
    options: DualOptions | None = None,
    *,
    noise: Noise = "constant",
    generator: Generator | None = None,
    detail: Detail | None = None,
) -> Tensor:
    """Paint faces in a style.

    Args:
        dual: the model.
        content: the faces' codes, of any space but s.
        extrinsic: the style, (1 or B, L, w_dim), see `to_extrinsic`.
        options: weights, colours, truncation.
        noise: see `limner.nn.stylegan2.SynthesisNetwork.from_styles`.
        generator: takes the place of the model's intrinsic part, such as one tuned to the person.
        detail: layers grown above it, which finish the picture at their size.

    Returns:
        (B, 3, H, W), clipped to [-1, 1].

    Raises:
        ShapeError: codes or weights that do not fit the model.
        OptionError: a code in s, which cannot be brought back to w+.
    """
    options, generator = options or DualOptions(), generator or dual.generator
    w_plus = content.to(generator.w_avg).w_plus(generator)
    if options.keep_color:
        extrinsic = combine(dual, extrinsic, w_plus)
    weights = row_weights(dual, options)
    fused = dual.stylize_codes(truncate(generator, w_plus, options), extrinsic, weights)
    if detail is not None:
        generator = detail.grow(generator)
        fused, noise = Latent("w+", fused).grown(generator).tensor, detail.grow_noise(noise)
    return generator.synthesis(fused, noise, edit=dual.edits(extrinsic, weights)).clamp(-1, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class DualStyle:
    """A style of a DualStyleGAN, ready to be put on faces; what `limner.pipeline.stylize` takes.

    Attributes:
        dual: the model.
        extrinsic: the style, (1, L, w_dim).
        options: weights, colours, truncation.
        name: of the style, for files and messages.
        provenance: plain values: where the code came from.
    """

    dual: DualGenerator
    extrinsic: Tensor
    options: DualOptions
    name: str = ""
    provenance: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        row_weights(self.dual, self.options)  # tells at once where they do not fit

    @property
    def detail(self) -> bool:
        """Whether layers grown above the generator may finish pictures: they know photos, and roughen strokes of its own."""
        return not len(self.dual.fine)

    def check_base(self, generator: Generator) -> None:
        """Raise `KeyMismatchError` unless faces are embedded with this model's own generator."""
        if generator is not self.dual.generator and deltas.digest(generator) != deltas.digest(
            self.dual.generator
        ):
            raise KeyMismatchError(
                f"the style {self.name} belongs to a DualStyleGAN of {self.dual.resolution} px; faces must be embedded "
                f"with its own generator, not with another one of {generator.resolution} px"
            )

    def paint(
        self, generator: Generator, latent: Latent, noise: Noise = "constant", *, detail: Detail | None = None
    ) -> Tensor:
        """Codes of faces -> (B, 3, H, W) in this style, clipped; see `transfer`.  ``generator`` may be tuned to them."""
        return transfer(
            self.dual, latent, self.extrinsic, self.options, noise=noise, generator=generator, detail=detail
        )


@torch.no_grad()
def sample_styles(
    dual: DualGenerator,
    count: int,
    *,
    sampler: StyleSampler | None,
    codes: Mapping[str, Tensor],
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return random styles: extrinsic codes whose structure rows, and others whose colour rows, are to be used.

    Args:
        dual: the model.
        count: how many of either.
        sampler: draws unseen styles; None to draw among ``codes``.
        codes: name -> z+ code of known styles.
        rng: random numbers, on the CPU.

    Raises:
        OptionError: neither sampler nor codes.
        ShapeError: the sampler's codes do not fit the model.
    """
    if sampler is not None:
        if sampler.num_rows != dual.num_rows:
            raise ShapeError(f"the sampler gives codes of {sampler.num_rows} rows, expected {dual.num_rows}")
        structure, color = (to_extrinsic(dual, sampler.sample(count, rng=rng)) for _ in range(2))
        return structure, color
    if not codes:
        raise OptionError("the model has neither a sampler nor codes of styles; name a style picture instead")
    stack = to_extrinsic(dual, torch.stack(list(codes.values())))
    structure, color = (
        stack[torch.randint(len(stack), (count,), generator=rng).to(stack.device)] for _ in range(2)
    )
    return structure, color


@torch.no_grad()
def paint_samples(
    dual: DualGenerator,
    structure: Tensor,
    color: Tensor,
    options: DualOptions,
    *,
    fix: Collection[str] = (),
    rng: torch.Generator,
    batch_size: int = 4,
    on_faces: Callable[[int], object] | None = None,
) -> Tensor:
    """Paint random faces in given styles, one each.

    Args:
        dual: the model.
        structure, color: extrinsic codes (B, L, w_dim), see `sample_styles`.
        options: weights, colours, truncation.
        fix: which of `FIXED` all pictures share, namely the first's.
        rng: random numbers, on the CPU.
        batch_size: pictures that are painted at a time.
        on_faces: told how many faces more are done.

    Returns:
        (B, 3, H, W), clipped to [-1, 1].

    Raises:
        OptionError: ``fix`` names something else.
    """
    unknown = set(fix) - set(FIXED)
    if unknown:
        raise OptionError(f"fix is {', '.join(sorted(unknown))}, expected some of {', '.join(FIXED)}")
    generator, count = dual.generator, len(structure)
    z = torch.randn(count, generator.z_dim, generator=rng).to(generator.w_avg)
    z = z[:1].expand_as(z) if "content" in fix else z
    structure = structure[:1].expand_as(structure) if "structure" in fix else structure
    color = color[:1].expand_as(color) if "color" in fix else color
    extrinsic = combine(dual, structure, color)
    parts = []
    for codes, style in zip(z.split(batch_size), extrinsic.split(batch_size), strict=True):
        parts.append(transfer(dual, Latent("z", codes), style, options))
        if on_faces is not None:
            on_faces(len(codes))
    return torch.cat(parts)
