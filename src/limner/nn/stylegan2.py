"""StyleGAN2: mapping network, skip-connected synthesis network, residual discriminator.

Every latent space has its own entrance: ``mapping(z)``, ``synthesis(w_plus)``, ``synthesis_from_styles(styles)``.
Layer ``i`` of the synthesis network reads row ``i`` of w+, the toRGB of resolution ``4 * 2**j`` reads row ``2j + 1``.
The mapping network is in `limner.nn.mapping`, the discriminator in `limner.nn.discriminator`; both are named here too.

Source: Karras et al. 2020 (arXiv 1912.04958), configuration F.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limner.errors import ShapeError
from limner.nn.discriminator import Discriminator, DiscriminatorBlock
from limner.nn.layers import EqualLinear, at_least_float, colours, modulated_layer, upsample2
from limner.nn.mapping import MappingNetwork
from limner.nn.resolutions import channel_table, default_channels, resolutions

__all__ = [
    "Discriminator",
    "DiscriminatorBlock",
    "EditFeatures",
    "Generator",
    "MappingNetwork",
    "Noise",
    "SynthesisLayer",
    "SynthesisNetwork",
    "ToRgb",
    "default_channels",
    "resolutions",
]

Noise = Literal["constant", "random", "none"] | Sequence[Tensor]
EditFeatures = Callable[[int, Tensor], Tensor]


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, Leaky ReLU; ``up`` doubles the size first."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        w_dim: int,
        resolution: int,
        up: bool,
        clamp: float | None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.noise: Tensor
        self.register_buffer("noise", torch.randn(resolution, resolution))
        self.resolution, self.up, self.clamp = resolution, up, clamp

    def forward(self, x: Tensor, styles: Tensor, noise: Tensor | None) -> Tensor:
        """x (B, I, h, w), styles (B, I), noise broadcastable to (B, 1, H, W) or None -> (B, O, H, W)."""
        # The factor of the equalised learning rate goes into the styles, which are few.
        styles = styles * (1 / math.sqrt(self.weight[0].numel()))
        return modulated_layer(
            x, self.weight, styles, self.bias, noise, self.noise_strength, up=self.up, clamp=self.clamp
        )


class ToRgb(nn.Module):
    """Modulated 1x1 convolution to colours, without demodulation."""

    def __init__(self, in_channels: int, *, w_dim: int, rgb_channels: int, clamp: float | None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rgb_channels, in_channels, 1, 1))
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.bias = nn.Parameter(torch.zeros(rgb_channels))
        self.clamp = clamp

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        """x (B, I, H, W), styles (B, I) -> float32 (B, rgb_channels, H, W)."""
        x = colours(x, self.weight, styles * (1 / math.sqrt(self.weight[0].numel())), self.bias)
        x = at_least_float(x)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class SynthesisNetwork(nn.Module):
    """w+ to an image.

    ``layers`` holds the 3x3 convolutions in order (one at 4x4, two per later resolution), ``to_rgb`` one entry per
    resolution.  The S space lists both in the order they run: conv, toRGB at 4x4, then conv (up), conv, toRGB.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: Mapping[int, int] | None = None,
        w_dim: int = 512,
        rgb_channels: int = 3,
        activation_clamp: float | None = None,
    ):
        super().__init__()
        self.resolution, self.w_dim = resolution, w_dim
        self.whole_px = resolution
        """Side in px up to which it has learned on whole pictures.  Above, where it has hardly met the edge, the image
        goes on beyond it as its outermost pixels; zeros there would draw a line that nothing makes up for."""
        self.channels = channel_table(resolution, channels)
        sizes = list(self.channels)
        width = self.channels[4]
        self.const = nn.Parameter(torch.randn(width, 4, 4))
        make = {"w_dim": w_dim, "clamp": activation_clamp}
        self.layers = nn.ModuleList([SynthesisLayer(width, width, resolution=4, up=False, **make)])
        self.to_rgb = nn.ModuleList([ToRgb(width, rgb_channels=rgb_channels, **make)])
        for size in sizes[1:]:
            out = self.channels[size]
            self.layers.append(SynthesisLayer(width, out, resolution=size, up=True, **make))
            self.layers.append(SynthesisLayer(out, out, resolution=size, up=False, **make))
            self.to_rgb.append(ToRgb(out, rgb_channels=rgb_channels, **make))
            width = out

    @property
    def num_rows(self) -> int:
        """Rows of w+: 2 log2(resolution) - 2."""
        return len(self.layers) + 1

    @property
    def style_rows(self) -> list[int]:
        """The w+ row that every S-space vector is made from, in the order of `styles`."""
        rows = [0, 1]
        for j in range(1, len(self.to_rgb)):
            rows += [2 * j - 1, 2 * j, 2 * j + 1]
        return rows

    @property
    def style_names(self) -> list[str]:
        """Names of the S-space vectors, such as ``8.up``, ``8.conv``, ``8.rgb``."""
        names = ["4.conv", "4.rgb"]
        for size in list(self.channels)[1:]:
            names += [f"{size}.up", f"{size}.conv", f"{size}.rgb"]
        return names

    def _modules_in_order(self) -> list[nn.Module]:
        modules: list[nn.Module] = [self.layers[0], self.to_rgb[0]]
        for j in range(1, len(self.to_rgb)):
            modules += [self.layers[2 * j - 1], self.layers[2 * j], self.to_rgb[j]]
        return modules

    def styles(self, w_plus: Tensor) -> list[Tensor]:
        """w+ (B, L, w_dim) -> the S-space vectors, one (B, C) per affine (26 at 1024 px).

        Raises:
            ShapeError: wrong number of rows or width.
        """
        if w_plus.ndim != 3 or w_plus.shape[1] != self.num_rows or w_plus.shape[2] != self.w_dim:
            raise ShapeError(
                f"w_plus has shape {tuple(w_plus.shape)}, expected (B, {self.num_rows}, {self.w_dim}) "
                f"for a {self.resolution} px generator"
            )
        rows = zip(self._modules_in_order(), self.style_rows, strict=True)
        return [module.get_submodule("affine")(w_plus[:, row]) for module, row in rows]

    def noise_maps(self, noise: Noise, batch: int, rng: torch.Generator | None) -> list[Tensor | None]:
        """Return one noise map per layer, or None where there is none."""
        if isinstance(noise, str):
            if noise == "constant":
                return [layer.get_buffer("noise") for layer in self.layers]
            if noise == "none":
                return [None] * len(self.layers)
            if noise != "random":
                raise ShapeError(f"noise is {noise!r}, expected constant, random, none or a list of maps")
            # Drawn where the generator is, then moved: a seed gives the same maps on every device.
            place = self.const.device if rng is None else rng.device
            return [
                torch.randn(batch, 1, *layer.get_buffer("noise").shape, generator=rng, device=place).to(
                    self.const.device
                )
                for layer in self.layers
            ]
        if len(noise) != len(self.layers):
            raise ShapeError(f"{len(noise)} noise maps were given, expected {len(self.layers)}")
        return list(noise)

    def stages(
        self,
        styles: Sequence[Tensor],
        noise: Noise = "constant",
        *,
        rng: torch.Generator | None = None,
        edit: EditFeatures | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, resolution by resolution from 4 px, the features (B, C, h, w) and the image so far (B, 3, h, w).

        Arguments as for `from_styles`.  Work is done only as far as the iterator is drawn.
        """
        if len(styles) != len(self.style_rows):
            raise ShapeError(f"{len(styles)} style vectors were given, expected {len(self.style_rows)}")
        batch = styles[0].shape[0]
        maps = self.noise_maps(noise, batch, rng)
        queue = iter(styles)

        def run(i: int, x: Tensor) -> Tensor:
            x = self.layers[i](x, next(queue), maps[i])
            return x if edit is None else edit(i, x)

        x = self.const.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = run(0, x)
        image = self.to_rgb[0](x, next(queue))
        yield x, image
        for j in range(1, len(self.to_rgb)):
            x = run(2 * j, run(2 * j - 1, x))
            larger = upsample2(image, continued=x.shape[-1] > self.whole_px)
            image = larger + self.to_rgb[j](x, next(queue))
            yield x, image

    def from_styles(
        self,
        styles: Sequence[Tensor],
        noise: Noise = "constant",
        *,
        rng: torch.Generator | None = None,
        edit: EditFeatures | None = None,
    ) -> Tensor:
        """S-space vectors -> image (B, 3, H, W), about [-1, 1], not clipped.

        Args:
            styles: as `styles` returns them.
            noise: ``constant`` (stored maps), ``random`` (new maps from ``rng``), ``none``, or one map per layer,
                each broadcastable to (B, 1, h, w).
            rng: source of random noise.
            edit: called with (layer number, features) after every 3x3 layer; what it returns goes on.
        """
        image = styles[0]
        for features, image in self.stages(styles, noise, rng=rng, edit=edit):  # noqa: B007
            del features  # otherwise they would be kept until those of the next resolution are done
        return image.contiguous()

    def forward(
        self,
        w_plus: Tensor,
        noise: Noise = "constant",
        *,
        rng: torch.Generator | None = None,
        edit: EditFeatures | None = None,
    ) -> Tensor:
        """w+ (B, L, w_dim) -> image (B, 3, H, W); see `from_styles`."""
        return self.from_styles(self.styles(w_plus), noise, rng=rng, edit=edit)


class Generator(nn.Module):
    """Mapping network, synthesis network and the mean of w.

    Args:
        resolution: side of the image in px, 4 times a power of two.
        channels: resolution -> channels; None for configuration F.
        z_dim, w_dim, mapping_depth, label_dim: see `MappingNetwork`.
        rgb_channels: colours of the image.
        activation_clamp: limit that some models were trained with; None for no limit.
    """

    def __init__(
        self,
        *,
        resolution: int,
        channels: Mapping[int, int] | None = None,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_depth: int = 8,
        label_dim: int = 0,
        rgb_channels: int = 3,
        activation_clamp: float | None = None,
    ):
        super().__init__()
        self._config = {
            "resolution": resolution,
            "channels": channel_table(resolution, channels),
            "z_dim": z_dim,
            "w_dim": w_dim,
            "mapping_depth": mapping_depth,
            "label_dim": label_dim,
            "rgb_channels": rgb_channels,
            "activation_clamp": activation_clamp,
        }
        self.mapping = MappingNetwork(z_dim=z_dim, w_dim=w_dim, depth=mapping_depth, label_dim=label_dim)
        self.synthesis = SynthesisNetwork(
            resolution=resolution,
            channels=channels,
            w_dim=w_dim,
            rgb_channels=rgb_channels,
            activation_clamp=activation_clamp,
        )
        self.w_avg: Tensor
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(self._config)

    @property
    def resolution(self) -> int:
        """Side of the image in px."""
        return self.synthesis.resolution

    @property
    def num_rows(self) -> int:
        """Rows of w+."""
        return self.synthesis.num_rows

    @property
    def z_dim(self) -> int:
        """Width of z."""
        return self.mapping.z_dim

    @property
    def w_dim(self) -> int:
        """Width of w."""
        return self.synthesis.w_dim

    def broadcast(self, w: Tensor) -> Tensor:
        """w (B, w_dim) -> w+ (B, L, w_dim), every row the same."""
        return w[:, None].expand(-1, self.num_rows, -1)

    def map_z_plus(self, z_plus: Tensor, labels: Tensor | None = None) -> Tensor:
        """z+ (B, L, z_dim) -> w+ (B, L, w_dim), every row through the mapping network by itself."""
        batch, rows, width = z_plus.shape
        if labels is not None:
            labels = labels.repeat_interleave(rows, 0)
        return self.mapping(z_plus.reshape(batch * rows, width), labels).view(batch, rows, -1)

    def truncate(self, w_plus: Tensor, psi: float, psi_cutoff: int | None = None) -> Tensor:
        """Pull the first ``psi_cutoff`` rows of w+ (all if None) to the mean: w_avg + psi (w - w_avg)."""
        if psi == 1:
            return w_plus
        cutoff = self.num_rows if psi_cutoff is None else psi_cutoff
        near = torch.lerp(self.w_avg.to(w_plus), w_plus[:, :cutoff], psi)
        return torch.cat([near, w_plus[:, cutoff:]], 1)

    def synthesis_from_styles(
        self, styles: Sequence[Tensor], noise: Noise = "constant", **kwargs: Any
    ) -> Tensor:
        """S-space vectors -> image; see `SynthesisNetwork.from_styles`."""
        return self.synthesis.from_styles(styles, noise, **kwargs)

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        psi: float = 1.0,
        psi_cutoff: int | None = None,
        noise: Noise = "constant",
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """z (B, z_dim) -> image (B, 3, H, W)."""
        w_plus = self.truncate(self.broadcast(self.mapping(z, labels)), psi, psi_cutoff)
        return self.synthesis(w_plus, noise, rng=rng)

    @torch.no_grad()
    def mean_w(self, count: int = 10_000, *, rng: torch.Generator | None = None) -> Tensor:
        """Return the mean of ``count`` random w, (w_dim,)."""
        total = torch.zeros_like(self.w_avg)
        for start in range(0, count, 1000):
            size = min(1000, count - start)
            z = torch.randn(size, self.z_dim, generator=rng).to(total)
            labels = None
            if self.mapping.label_dim:
                drawn = torch.randint(self.mapping.label_dim, (size,), generator=rng)
                labels = torch.nn.functional.one_hot(drawn, self.mapping.label_dim).to(total)
            total += self.mapping(z, labels).sum(0)
        return total / count
