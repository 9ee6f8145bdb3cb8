"""Styles: what a generator has learned, kept as a small file and put on faces at any strength.

A style is the difference between a tuned generator and its base.  It adds up with other differences of the same
base, so a face that was embedded with pivotal tuning takes it too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limner.errors import CheckpointError, KeyMismatchError, ShapeError, UnknownFormatError
from limner.files import replacing
from limner.latent import Latent, LayerMask, render
from limner.nn import deltas
from limner.nn.layer_use import measure_use
from limner.nn.packing import HEADER_BYTES, pack, unpack
from limner.nn.stylegan2 import Generator, Noise
from limner.stylization.options import StyleOptions

VERSION = 1
SUFFIX = ".limner"
DELTA, THUMBNAIL, CODES = "delta.", "thumbnail", "codes"
COMPRESSION_BYTES = 600
"""Of the notes on what packing lost, and of the quotes around them."""
USUAL_PULL = 0.4
LICENCE = "the licences of the base model and of the style pictures apply"


@dataclasses.dataclass(frozen=True, eq=False)
class Style:
    """A learned style.

    Attributes:
        delta: change of every tensor of the generator, by its `state_dict` name.
        base: digest of the generator it belongs to (`limner.nn.deltas.digest`).
        method: how it was learned.
        options: the options it was learned with; ``row_weights``, where it is there, says how far every row of w+ was
            mixed with random ones, ``style_weights`` the same of every S-space vector; ``pull`` and ``detail`` see there.
        provenance: plain values: pictures, losses, the base's name.
        licence: what may be done with it.
        thumbnail: a small picture of the style, uint8 (H, W, 3), or None.
        compression: bytes before and after, and what was lost; empty until it has been saved.
        codes: w+ of the style pictures' inversions, (N, L, w_dim), with which learning can go on, or None.
    """

    delta: Mapping[str, Tensor]
    base: str
    method: str
    options: Mapping[str, Any]
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    licence: str = LICENCE
    thumbnail: Tensor | None = None
    compression: Mapping[str, float] = dataclasses.field(default_factory=dict)
    codes: Tensor | None = None

    @property
    def pull(self) -> float:
        """How far `paint` pulls the rows that it was mixed on to the mean where nothing else is asked for."""
        return float(self.options.get("pull", USUAL_PULL))

    @property
    def detail(self) -> bool:
        """Whether faces in it are finished by the layers grown above the generator, where there are such."""
        return bool(self.options.get("detail", True))

    def check_base(self, generator: Generator) -> None:
        """Raise `KeyMismatchError` unless this is the generator that the style was learned on."""
        found = deltas.digest(generator)
        if found != self.base:
            name = self.provenance.get("base", "")
            raise KeyMismatchError(
                f"the style belongs to {name + ', ' if name else ''}a base model with digest {self.base[:12]}, but this "
                f"model ({generator.resolution} px) has {found[:12]}; load the base it was learned on, or learn it again"
            )

    def apply(self, generator: Generator, *, strength: float = 1.0, layers: str = "all") -> Generator:
        """Return a copy of a generator that paints in this style.

        Args:
            generator: the base, or the base tuned to one person; see `check_base`.
            strength: 0 to 1, how much of the change is added.
            layers: the layers that take it, as a layer mask.

        Raises:
            KeyMismatchError, ShapeError: the generator has another architecture.
            OptionError: a layer that it does not have.
        """
        weights = LayerMask(layers).styles(generator) * strength
        return deltas.apply(generator, [(self.delta, weights)])


def style_between(
    base: Generator,
    tuned: Generator,
    *,
    method: str,
    options: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> Style:
    """Return the style that turns ``base`` into ``tuned``."""
    return Style(
        delta=deltas.difference(tuned, base),
        base=deltas.digest(base),
        method=method,
        options=dict(options),
        provenance=dict(provenance or {}),
    )


@torch.no_grad()
def paint(
    generator: Generator,
    style: Style,
    latent: Latent,
    options: StyleOptions,
    *,
    noise: Noise = "constant",
) -> Tensor:
    """Paint codes in a style.

    Args:
        generator: the base, or the base tuned to one person.
        style: of that base; see `Style.check_base`.
        latent: the faces' codes, of any space.
        options: strength, layers, colours.
        noise: as in `limner.nn.stylegan2.SynthesisNetwork.from_styles`; it must not be random.

    Returns:
        (B, 3, H, W), clipped to [-1, 1].
    """
    whole = render(generator, latent, noise).clamp(-1, 1)
    if options.strength == 0:
        return whole
    pull = style.pull if options.pull is None else options.pull
    latent = pull_to_mean(generator, style, latent, pull * options.strength)
    held = options.hold != "none"
    if held or (options.blend == "features" and options.strength < 1):
        image = _paint_between_features(generator, style, latent, options, noise)
    else:
        painter = style.apply(generator, strength=options.strength, layers=options.layers)
        image = render(painter, latent, noise)
    image = image.clamp(-1, 1)
    return keep_colors(image, whole) if options.keep_color else image


def check_layers(options: StyleOptions, generator: Generator) -> None:
    """Raise `OptionError` for layers that the generator does not have, before a face is searched for long."""
    for mask in (options.layers, options.hold):
        LayerMask(mask).styles(generator)


def pull_to_mean(generator: Generator, style: Style, latent: Latent, amount: float) -> Latent:
    """Bring rows of w+ that the style was mixed on nearer to the mean.

    An embedded photo puts into these rows what no random code has, and a style that saw random codes alone answers
    with blur.  Codes in s stay as they are, unless the style was mixed there.

    Args:
        generator: its ``w_avg`` is the mean.
        style: its ``row_weights`` say which rows, or its ``style_weights`` which vectors of S space.
        latent: the codes.
        amount: 0 leaves the rows, 1 sets them to the mean where they were mixed wholly.
    """
    if amount and style.options.get("style_weights"):
        shares = _as_long(style.options["style_weights"], len(generator.synthesis.style_rows)) * amount
        mean = generator.synthesis.styles(generator.broadcast(generator.w_avg[None]))
        pairs = zip(latent.styles(generator), mean, shares.tolist(), strict=True)
        return Latent("s", tuple(torch.lerp(own, middle.to(own), share) for own, middle, share in pairs))
    weights = style.options.get("row_weights")
    if not amount or not weights or latent.space == "s":
        return latent
    w_plus = latent.w_plus(generator)
    shares = _as_long(weights, w_plus.shape[1]).to(w_plus)[:, None] * amount
    return Latent("w+", torch.lerp(w_plus, generator.w_avg.to(w_plus), shares))


def _as_long(weights: Sequence[float], count: int) -> Tensor:
    """Return weights for so many layers; those that were grown above the style's base take what its last has."""
    return torch.tensor([*weights, *[weights[-1]] * (count - len(weights))])


def _paint_between_features(
    generator: Generator, style: Style, latent: Latent, options: StyleOptions, noise: Noise
) -> Tensor:
    """Interpolate the features after every layer, and the weights of toRGB, between base and style.

    Source: Chong and Forsyth 2021 (arXiv 2112.11641), section 4.4, feature interpolation.
    Differs: toRGB is interpolated too, so that strength 0 is exactly the base and 1 exactly the style; layers can be
        held back one by one.
    """
    seen: dict[int, Tensor] = {}

    def remember(layer: int, features: Tensor) -> Tensor:
        seen[layer] = features
        return features

    render(generator, latent, noise, edit=remember)
    weights = LayerMask(options.layers).styles(generator)
    free = 1 - LayerMask(options.hold).styles(generator)
    between = options.strength if options.blend == "features" else 1.0
    is_rgb = torch.tensor([name.endswith(".rgb") for name in generator.synthesis.style_names])
    whole = weights if options.blend == "features" else weights * options.strength
    painter = deltas.apply(
        generator, [(style.delta, torch.where(is_rgb, weights * options.strength * free, whole))]
    )
    shares = (free[~is_rgb] * between).tolist()  # one per 3x3 layer
    return render(
        painter,
        latent,
        noise,
        edit=lambda layer, features: torch.lerp(seen[layer], features, shares[layer]),
    )


def keep_colors(image: Tensor, source: Tensor) -> Tensor:
    """Give an image the colours of another: its brightness stays, hue and saturation come from ``source``.

    Args:
        image, source: (B, 3, H, W) in [-1, 1], pixel by pixel of the same scene.

    Convention: brightness and colour differences of ITU-R BT.601.
    """
    weights = torch.tensor([0.299, 0.587, 0.114]).to(image).view(1, 3, 1, 1)
    brightness = (image * weights).sum(1, keepdim=True)
    colors = source - (source * weights).sum(1, keepdim=True)
    # Where light or dark leaves no room for the full colour, it is taken back evenly rather than clipped to another hue.
    room = torch.where(
        colors > 0, (1 - brightness) / colors.clamp_min(1e-6), (brightness + 1) / (-colors).clamp_min(1e-6)
    )
    return (brightness + colors * room.amin(1, keepdim=True).clamp(0, 1)).clamp(-1, 1)


@torch.no_grad()
def save_style(
    style: Style,
    path: str | Path,
    generator: Generator,
    *,
    budget_bytes: int = 490_000,
    samples: int = 8,
    seed: int = 0,
) -> Style:
    """Write a style as a ``.limner`` file; it appears whole or not at all.

    Args:
        style: the style.
        path: the file.
        generator: the base, on which the loss from compression is measured.
        budget_bytes: size of the file to stay below, picture and codes included; a style that needs less takes less, and
            one whose vectors alone need more gets it.
        samples: random faces on which the loss is measured.
        seed: their seed.

    Returns:
        The style as it reads back, with ``compression``: ``bytes_before``, ``bytes_after``, ``weight_error`` (root of
        squared error over squared change) and ``picture_error`` (root mean squared difference of pictures in the style
        before and after, [-1, 1]) beside ``picture_change`` (the same between base and style).

    Raises:
        CheckpointError: the file cannot be written.
        KeyMismatchError: the generator is not the style's base.
    """
    style.check_base(generator)
    if "child" in style.options:  # a blend: the child's file holds the change
        _write(Path(path), _extras(style), {"limner": json.dumps(_notes(style))})
        return style
    extras = _extras(style)
    others = sum(part.nbytes + HEADER_BYTES for part in extras.values())
    others += len(json.dumps(_notes(style))) + COMPRESSION_BYTES
    tuned = style.apply(generator)
    rng = torch.Generator().manual_seed(seed)
    latent = Latent("z", torch.randn(samples, generator.z_dim, generator=rng).to(generator.w_avg))
    packed = pack(style.delta, budget_bytes=budget_bytes - others, uses=measure_use(tuned))
    restored = dataclasses.replace(style, delta=unpack(packed.tensors))
    plain, before, after = (
        render(network, latent, psi=0.7).clamp(-1, 1)
        for network in (generator, tuned, restored.apply(generator))
    )
    restored = dataclasses.replace(
        restored,
        compression={
            "bytes_before": packed.bytes_before,
            "bytes_after": packed.bytes_after,
            "weight_error": round(packed.error, 5),
            "picture_error": round(_rms(after - before), 5),
            "picture_change": round(_rms(before - plain), 5),
        },
    )
    tensors = {DELTA + name: value.contiguous() for name, value in packed.tensors.items()}
    tensors |= extras
    _write(Path(path), tensors, {"limner": json.dumps(_notes(restored))})
    return restored


def load_style(path: str | Path) -> Style:
    """Read a ``.limner`` file.

    Raises:
        CheckpointError: no such file, or a truncated or damaged one.
        UnknownFormatError: a file of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such style file")
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {}).get("limner", "{}"))
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated, damaged or no {SUFFIX} file ({' '.join(str(error).split())}); copy or learn it again"
        ) from None
    kind = notes.get("kind") if isinstance(notes, dict) else None
    if kind != "style":
        raise UnknownFormatError(
            f"{path} is {f'a {kind} file' if kind else 'a foreign file'}, expected a style ({SUFFIX})"
        )
    if notes.get("version", 0) > VERSION:
        raise UnknownFormatError(
            f"{path} was written by a newer Limner (version {notes['version']}, known {VERSION})"
        )
    missing = [name for name in ("base", "method", "options") if name not in notes]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; it is damaged")
    try:
        delta = unpack(
            {name.removeprefix(DELTA): value for name, value in tensors.items() if name.startswith(DELTA)}
        )
    except (KeyMismatchError, ShapeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not delta and "child" in notes["options"]:
        from limner.stylization.blend_style import child_delta  # it imports this module

        delta = child_delta(notes["options"], notes["base"], path)
    return Style(
        delta=delta,
        base=notes["base"],
        method=notes["method"],
        options=notes["options"],
        provenance=notes.get("provenance", {}),
        licence=notes.get("licence", LICENCE),
        thumbnail=tensors.get(THUMBNAIL),
        codes=tensors[CODES].float() if CODES in tensors else None,
        compression=notes.get("compression", {}),
    )


def _extras(style: Style) -> dict[str, Tensor]:
    extras = {} if style.thumbnail is None else {THUMBNAIL: style.thumbnail.cpu().contiguous()}
    if style.codes is not None:
        extras[CODES] = style.codes.detach().to("cpu", torch.float16).contiguous()
    return extras


def _notes(style: Style) -> dict[str, Any]:
    names = ("base", "method", "options", "provenance", "licence", "compression")
    return {"version": VERSION, "kind": "style"} | {name: getattr(style, name) for name in names}


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
