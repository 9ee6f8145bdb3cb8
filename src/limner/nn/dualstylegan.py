"""DualStyleGAN: a second, extrinsic style path beside the intrinsic one of a StyleGAN2 generator.

The intrinsic code w+ says who is painted, the extrinsic code how.  Up to 32 px a residual block after every 3x3 layer
bends shapes (`ModResBlock`, one per row of the extrinsic code); the rows above change colours and strokes: there the
code itself is blended.  Every row has a weight of its own, 0 for the plain generator, 1 for the whole style.

Source: Yang et al. 2022, "Pastiche Master: Exemplar-Based High-Resolution Portrait Style Transfer"
(arXiv 2203.13248), section 3.2 and figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import ShapeError
from limner.nn.layers import EqualConv2d, EqualLinear
from limner.nn.low_rank import LowRankConv2d, LowRankLinear
from limner.nn.precision import full_precision
from limner.nn.stylegan2 import EditFeatures, Generator, MappingNetwork, Noise

Weights = float | Sequence[float] | Tensor
STRUCTURE_PX = 32
"""Resolution up to which structure is controlled: rows 0 to 6, as published for 1024 px, at every size from 32 px."""
INITIAL_NOISE = 0.01
NORM_EPS = 1e-5


class AdaptiveInstanceNorm(nn.Module):
    """Instance normalisation whose scale and shift come from a code.

    Args:
        channels: of the features.
        w_dim: width of the code.
        rank: of the affine layer's weight; None for a whole one.
    """

    def __init__(self, channels: int, *, w_dim: int, rank: int | None = None):
        super().__init__()
        self.affine = (
            LowRankLinear(w_dim, 2 * channels, rank=rank) if rank else nn.Linear(w_dim, 2 * channels)
        )
        with torch.no_grad():
            self.affine.bias[:channels] = 1.0
            self.affine.bias[channels:] = 0.0

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """x (B, C, H, W), code (B, w_dim) -> (B, C, H, W)."""
        gain, shift = self.affine(code).chunk(2, 1)  # (B, C) each
        variance, mean = torch.var_mean(x.to(gain.dtype), (2, 3), correction=0)
        # Normalise, scale and shift in one pass: x * gain' + shift'.
        gain = gain * torch.rsqrt(variance + NORM_EPS)
        shift = shift - mean * gain
        return torch.addcmul(shift.to(x.dtype)[:, :, None, None], x, gain.to(x.dtype)[:, :, None, None])


class ModResBlock(nn.Module):
    """Structure control: twice normalisation by a code and a 3x3 convolution; the result is added to the features.

    Args:
        channels: of the features.
        w_dim: width of the code.
        rank: of all weights; None for whole ones.
    """

    def __init__(self, channels: int, *, w_dim: int, rank: int | None = None):
        super().__init__()
        self.norm0 = AdaptiveInstanceNorm(channels, w_dim=w_dim, rank=rank)
        self.conv0 = _convolution(channels, rank)
        self.norm1 = AdaptiveInstanceNorm(channels, w_dim=w_dim, rank=rank)
        self.conv1 = _convolution(channels, rank)
        with torch.no_grad():
            # Nearly no change at first, so that training starts from the generator as it is.
            for conv in (self.conv0, self.conv1):
                (conv.expand if isinstance(conv, LowRankConv2d) else conv.weight).mul_(INITIAL_NOISE)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """x (B, C, H, W), code (B, w_dim) -> the change of x, (B, C, H, W)."""
        return self.conv1(self.norm1(self.conv0(self.norm0(x, code)), code))


def _convolution(channels: int, rank: int | None) -> EqualConv2d | LowRankConv2d:
    if rank:
        return LowRankConv2d(channels, channels, 3, rank=rank)
    return EqualConv2d(channels, channels, 3)


class DualGenerator(nn.Module):
    """A StyleGAN2 generator with an extrinsic style path around it.

    ``generator`` is the intrinsic part, a whole `Generator`; ``style``, ``structure`` and ``color`` are the extrinsic
    one.  Codes of both paths are w+ of ``generator``: z+ becomes w+ by ``generator.map_z_plus`` for either.

    Args:
        resolution, channels, z_dim, w_dim, mapping_depth, rgb_channels, activation_clamp: see `Generator`.
        style_depth: layers of the network that the structure rows pass.
        structure_rows: how many 3x3 layers, from the first, have a residual block; rows beyond them control colour.
            None for all layers up to `STRUCTURE_PX`.
        rank: of the weights of residual blocks and colour layers, which are then products of thin ones; None for whole
            ones, as published.
        fine_blocks: so many further layers have a residual block, too, which follows code and weight of the last
            structure row: outlines and flat shades need more than new codes where a small generator has no row to spare.
            0 as published.

    Raises:
        ShapeError: more ``structure_rows`` than layers, or none; more ``fine_blocks`` than layers are left; a ``rank``
            below 1.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: Mapping[int, int] | None = None,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_depth: int = 8,
        rgb_channels: int = 3,
        activation_clamp: float | None = None,
        style_depth: int = 2,
        structure_rows: int | None = None,
        rank: int | None = None,
        fine_blocks: int = 0,
    ):
        super().__init__()
        if rank is not None and rank < 1:
            raise ShapeError(f"rank is {rank}, expected at least 1, or None for whole weights")
        self.generator = Generator(
            resolution=resolution,
            channels=channels,
            z_dim=z_dim,
            w_dim=w_dim,
            mapping_depth=mapping_depth,
            rgb_channels=rgb_channels,
            activation_clamp=activation_clamp,
        )
        table, layers = self.generator.synthesis.channels, 2 * len(self.generator.synthesis.channels) - 1
        if structure_rows is None:
            structure_rows = sum(1 if size == 4 else 2 for size in table if size <= STRUCTURE_PX)
        if not 1 <= structure_rows <= layers:
            raise ShapeError(f"structure_rows is {structure_rows}, expected 1 to {layers} at {resolution} px")
        if not 0 <= fine_blocks <= layers - structure_rows:
            raise ShapeError(
                f"fine_blocks is {fine_blocks}, expected 0 to {layers - structure_rows}: {resolution} px have "
                f"{layers} layers, {structure_rows} of them with a block already"
            )
        self.style = MappingNetwork(z_dim=w_dim, w_dim=w_dim, depth=style_depth)
        # Layer 2j - 1 and 2j have 4 * 2**j px.
        blocks = [
            ModResBlock(table[4 << (layer + 1) // 2], w_dim=w_dim, rank=rank)
            for layer in range(structure_rows + fine_blocks)
        ]
        self.structure = nn.ModuleList(blocks[:structure_rows])
        self.fine = nn.ModuleList(blocks[structure_rows:])
        rows = self.generator.num_rows - len(self.structure)
        self.color = nn.ModuleList(
            LowRankLinear(w_dim, w_dim, rank=rank, identity=True) if rank else EqualLinear(w_dim, w_dim)
            for _ in range(rows)
        )
        with torch.no_grad():
            for layer in self.color:
                # The identity, so that the colours of a code arrive before any training; weights are used / sqrt(w_dim).
                if rank:
                    layer.get_parameter("expand").mul_(INITIAL_NOISE)
                else:
                    weight = layer.get_parameter("weight")
                    weight.mul_(INITIAL_NOISE).add_(torch.eye(w_dim) * math.sqrt(w_dim))
        self._extra: dict[str, Any] = {"style_depth": style_depth, "structure_rows": structure_rows}
        if rank:
            self._extra["rank"] = rank
        if fine_blocks:
            self._extra["fine_blocks"] = fine_blocks

    @classmethod
    def around(
        cls,
        generator: Generator,
        *,
        style_depth: int = 2,
        structure_rows: int | None = None,
        rank: int | None = None,
        fine_blocks: int = 0,
    ) -> DualGenerator:
        """Return a dual generator whose intrinsic part has copies of a generator's weights, the rest being initial.

        Raises:
            ShapeError: the generator is class-conditional.
        """
        config = generator.config()
        if config.pop("label_dim"):
            raise ShapeError("a class-conditional generator cannot be the intrinsic part of a DualStyleGAN")
        dual = cls(
            **config,
            style_depth=style_depth,
            structure_rows=structure_rows,
            rank=rank,
            fine_blocks=fine_blocks,
        )
        dual.generator.load_state_dict(generator.state_dict())
        return dual.to(generator.w_avg.device)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config = self.generator.config()
        del config["label_dim"]
        return config | self._extra

    @property
    def extra(self) -> dict[str, Any]:
        """The constructor's arguments beside those of the intrinsic part."""
        return dict(self._extra)

    @property
    def rank(self) -> int | None:
        """Rank of the extrinsic path's weights; None for whole ones."""
        return self._extra.get("rank")

    @torch.no_grad()
    def merged(self) -> DualGenerator:
        """Return the same model with whole weights, as other programs have it; itself where it has them."""
        if self.rank is None:
            return self
        whole = DualGenerator.around(self.generator, **{k: v for k, v in self._extra.items() if k != "rank"})
        modules, state = dict(self.named_modules()), whole.state_dict()
        own = self.state_dict()
        for name, value in state.items():
            if name in own:
                value.copy_(own[name])
            else:
                layer = modules[name.removesuffix(".weight")]
                assert isinstance(layer, (LowRankConv2d, LowRankLinear))
                value.copy_(layer.merged())
        return whole.train(self.training)

    @property
    def resolution(self) -> int:
        """Side of the image in px."""
        return self.generator.resolution

    @property
    def num_rows(self) -> int:
        """Rows of either code."""
        return self.generator.num_rows

    @property
    def structure_rows(self) -> int:
        """How many rows, from the first, control structure; the others control colour."""
        return len(self.structure)

    @property
    def structure_px(self) -> int:
        """Resolution at which the structure is done."""
        return 4 << self.structure_rows // 2

    def weights(self, structure: float = 1.0, color: float = 1.0) -> list[float]:
        """Return one weight per row: ``structure`` for those of structure, ``color`` for the others."""
        return [structure] * self.structure_rows + [color] * (self.num_rows - self.structure_rows)

    def row_weights(self, weights: Weights, fuse_row: int | None = None) -> Tensor:
        """Bring weights to one per row, (L,) or (B, L).

        Args:
            weights: a number for all rows, or one per row; of more than L numbers the first L count, so that the 18
                published ones serve every size.
            fuse_row: rows after this one get no style; None for all rows, 0 for none.

        Raises:
            ShapeError: too few numbers.
        """
        values = torch.as_tensor(weights, dtype=torch.float32)
        values = values.expand(self.num_rows) if values.ndim == 0 else values
        if values.ndim > 2 or values.shape[-1] < self.num_rows:
            raise ShapeError(
                f"weights have shape {tuple(values.shape)}, expected a number or one for each of "
                f"{self.num_rows} rows"
            )
        values = values[..., : self.num_rows]
        if fuse_row is None:
            return values
        # Row 0 alone cannot be asked for: a fuse row of 0 has always meant no style at all.
        last = fuse_row if fuse_row > 0 else -1
        return values * (torch.arange(self.num_rows, device=values.device) <= last)

    @full_precision
    def stylize_codes(self, intrinsic: Tensor, extrinsic: Tensor, weights: Tensor) -> Tensor:
        """Blend the colour rows of both codes; structure rows stay intrinsic.

        Args:
            intrinsic, extrinsic: w+ (B, L, w_dim); a batch of 1 serves the other's.
            weights: (L,) or (B, L).

        Returns:
            w+ (B, L, w_dim).

        Source: equation of the colour control in section 3.2: w T_c(extrinsic) + (1 - w) intrinsic.
        """
        batch = max(len(intrinsic), len(extrinsic), 1 if weights.ndim == 1 else len(weights))
        rows = list(intrinsic.expand(batch, -1, -1).unbind(1))
        shares = weights.to(intrinsic)
        for row, transform in enumerate(self.color, self.structure_rows):
            share = shares[..., row]
            if bool((share != 0).any()):
                share = share if share.ndim == 0 else share[:, None]
                rows[row] = torch.lerp(rows[row], transform(extrinsic[:, row]).expand(batch, -1), share)
        return torch.stack(rows, 1)

    def edits(
        self, extrinsic: Tensor, weights: Tensor, *, edit: EditFeatures | None = None
    ) -> EditFeatures | None:
        """Return what adds the structure of a code to the features after every layer; None where nothing is to do.

        Args:
            extrinsic: w+ (B, L, w_dim).
            weights: (L,) or (B, L); a row whose weights are exactly 0 is skipped.
            edit: called afterwards, see `limner.nn.stylegan2.SynthesisNetwork.from_styles`.
        """
        used = [row for row in range(self.structure_rows) if bool((weights[..., row] != 0).any())]
        if not used:
            return edit
        codes = self.style(extrinsic[:, used].flatten(0, 1)).unflatten(0, (-1, len(used)))  # (B, used, w_dim)
        shares, last = weights.to(extrinsic), self.structure_rows - 1

        def apply(layer: int, x: Tensor) -> Tensor:
            row = min(layer, last) if layer < self.structure_rows + len(self.fine) else None
            if row in used:
                block = self.structure[layer] if layer <= last else self.fine[layer - self.structure_rows]
                change = block(x, codes[:, used.index(row)].expand(len(x), -1))
                share = shares[..., row].to(x.dtype).view(-1, 1, 1, 1)
                x = torch.addcmul(x, change, share)
            return x if edit is None else edit(layer, x)

        return apply

    def forward(
        self,
        intrinsic: Tensor,
        extrinsic: Tensor | None = None,
        weights: Weights = 1.0,
        *,
        fuse_row: int | None = None,
        noise: Noise = "constant",
        rng: torch.Generator | None = None,
        edit: EditFeatures | None = None,
    ) -> Tensor:
        """Paint intrinsic codes in the style of extrinsic ones.

        Args:
            intrinsic: who; w+ (B, L, w_dim).
            extrinsic: how; w+ (B, L, w_dim), None for the plain generator.
            weights, fuse_row: see `row_weights`.
            noise, rng, edit: see `limner.nn.stylegan2.SynthesisNetwork.from_styles`.

        Returns:
            (B, 3, H, W), about [-1, 1], not clipped.

        Raises:
            ShapeError: codes or weights do not fit the generator.
        """
        w_plus, change = self._prepare(intrinsic, extrinsic, weights, fuse_row, edit)
        return self.generator.synthesis(w_plus, noise, rng=rng, edit=change)

    def features(
        self,
        intrinsic: Tensor,
        extrinsic: Tensor | None = None,
        weights: Weights = 1.0,
        *,
        px: int | None = None,
        fuse_row: int | None = None,
        noise: Noise = "constant",
        rng: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Paint as far as ``px`` and return the features (B, C, px, px) and the image so far (B, 3, px, px).

        Args:
            intrinsic, extrinsic, weights, fuse_row, noise, rng: as for painting.
            px: one of the generator's resolutions; None for ``structure_px``, where the structure is done.
        """
        px = self.structure_px if px is None else px
        if px not in self.generator.synthesis.channels:
            sizes = ", ".join(map(str, self.generator.synthesis.channels))
            raise ShapeError(f"px is {px}, expected one of the generator's sizes: {sizes}")
        w_plus, change = self._prepare(intrinsic, extrinsic, weights, fuse_row, None)
        styles = self.generator.synthesis.styles(w_plus)
        stages = self.generator.synthesis.stages(styles, noise, rng=rng, edit=change)
        return next(stage for stage in stages if stage[0].shape[-1] == px)

    def _prepare(
        self,
        intrinsic: Tensor,
        extrinsic: Tensor | None,
        weights: Weights,
        fuse_row: int | None,
        edit: EditFeatures | None,
    ) -> tuple[Tensor, EditFeatures | None]:
        """Return the w+ to paint from and the change of features on the way."""
        if extrinsic is None:
            return intrinsic, edit
        for name, code in (("intrinsic", intrinsic), ("extrinsic", extrinsic)):
            if code.ndim != 3 or code.shape[1:] != (self.num_rows, self.generator.w_dim):
                raise ShapeError(
                    f"the {name} code has shape {tuple(code.shape)}, expected "
                    f"(B, {self.num_rows}, {self.generator.w_dim}) for a {self.resolution} px model"
                )
        shares = self.row_weights(weights, fuse_row)
        return self.stylize_codes(intrinsic, extrinsic, shares), self.edits(extrinsic, shares, edit=edit)


class StyleSampler(nn.Module):
    """Draws extrinsic codes of a domain: random numbers through two small networks, one per kind of row.

    Args:
        structure_rows, color_rows: rows of either kind.
        z_dim: width of a row.
        noise_dim: width of the random numbers.
        hidden: width of the hidden layers.

    Source: Yang et al. 2022 (arXiv 2203.13248), section 3.3, style sampling; the networks are those of Hoshen et al.
    2019, "Non-Adversarial Image Synthesis With Generative Latent Nearest Neighbors" (arXiv 1812.08985).
    """

    def __init__(
        self,
        *,
        structure_rows: int,
        color_rows: int,
        z_dim: int = 512,
        noise_dim: int = 128,
        hidden: int = 128,
    ):
        super().__init__()
        self._config = {
            "structure_rows": structure_rows,
            "color_rows": color_rows,
            "z_dim": z_dim,
            "noise_dim": noise_dim,
            "hidden": hidden,
        }
        self.z_dim, self.noise_dim = z_dim, noise_dim
        self.structure = _sampling_network(noise_dim, hidden, structure_rows * z_dim)
        self.color = _sampling_network(noise_dim, hidden, color_rows * z_dim)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._config)

    @property
    def num_rows(self) -> int:
        """Rows of a code."""
        return self._config["structure_rows"] + self._config["color_rows"]

    def forward(self, structure_noise: Tensor, color_noise: Tensor) -> Tensor:
        """Two (B, noise_dim), N(0, I) -> z+ codes (B, L, z_dim)."""
        rows = torch.cat([self.structure(structure_noise), self.color(color_noise)], 1)
        return rows.unflatten(1, (-1, self.z_dim))

    def sample(self, count: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Return ``count`` random codes, z+ (count, L, z_dim), drawn on ``rng``'s device."""
        like = next(self.parameters())
        place = like.device if rng is None else rng.device
        noise = torch.randn(2, count, self.noise_dim, generator=rng, device=place).to(like)
        return self(noise[0], noise[1])


def _sampling_network(noise_dim: int, hidden: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(noise_dim, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, width, bias=False),
    )
