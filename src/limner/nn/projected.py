"""A discriminator of small heads on frozen features, for training on little compute.

The frozen trunk's maps are mixed across channels and scales by fixed random convolutions; a small head judges every
map.  Four additions make it train in minutes on two CPU cores without collapsing:

* the spread over the batch is the last input of every head, so that a generator of one face is found out;
* one more head looks at the pixels, since the trunk hardly sees colour and brightness;
* `MomentMatcher` pulls mean and spread of the generated features to those of the real ones;
* every projected map is divided by its standard deviation on real images.

Source: Sauer et al. 2021, "Projected GANs Converge Faster" (arXiv 2111.01007), sections 3.2 and 3.3.
Differs: group norm with the batch's spread instead of batch norm, the pixel head, moment matching.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from limner.nn.precision import full_precision


class FeatureProjection(nn.Module):
    """Fixed random mixing of a trunk's maps across channels, then from coarse to fine across scales."""

    def __init__(self, *, channels: Sequence[int], width: int):
        super().__init__()
        self.across = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        for layer in [*self.across, *self.smooth]:
            nn.init.kaiming_normal_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))
        self.requires_grad_(False)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps from fine to coarse, (B, C_i, h_i, w_i) -> as many maps of ``width`` channels."""
        mixed, above = [], None
        for across, smooth, x in zip(self.across[::-1], self.smooth[::-1], reversed(maps), strict=True):
            x = across(x)
            if above is not None:
                x = x + F.interpolate(above, size=x.shape[2:], mode="bilinear", align_corners=False)
            above = smooth(x)
            mixed.append(above)
        return mixed[::-1]


def _judge(
    in_channels: int, side: int, first: nn.Module | None, width: int
) -> tuple[nn.Sequential, nn.Module]:
    """Return the body that halves a map down to 4 x 4 (or less) and the last layer, which also sees the spread."""
    layers: list[nn.Module] = [] if first is None else [first, nn.LeakyReLU(0.2)]
    if first is not None:
        in_channels, side = width, side // 2
    while side > 4:
        out = min(in_channels * 2, 256)
        layers += [
            spectral_norm(nn.Conv2d(in_channels, out, 4, 2, 1, bias=False)),
            nn.GroupNorm(8, out),
            nn.LeakyReLU(0.2),
        ]
        in_channels, side = out, side // 2
    return nn.Sequential(*layers), spectral_norm(nn.Conv2d(in_channels + 1, 1, side))


class Head(nn.Module):
    """Judge of one map.

    Args:
        in_channels, side: of the map.
        pixels: the map is the image itself: a first convolution without normalisation.
    """

    def __init__(self, *, in_channels: int, side: int, pixels: bool = False):
        super().__init__()
        first = spectral_norm(nn.Conv2d(in_channels, 32, 4, 2, 1)) if pixels else None
        self.body, self.last = _judge(in_channels, side, first, 32)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, side, side) -> logits (B,)."""
        x = self.body(x)
        spread = (x.var(0, unbiased=False) + 1e-8).sqrt().mean().expand(len(x), 1, *x.shape[2:])
        return self.last(torch.cat([x, spread], 1)).flatten()


class ProjectedDiscriminator(nn.Module):
    """Heads on the projected maps of a frozen trunk, and one on the pixels.

    Args:
        trunk: frozen network, image [-1, 1] -> list of maps from fine to coarse; its weights are not saved with the
            heads.
        resolution: side of the images in px.
        feature_resolution: side at which the trunk looks at them.
        width: channels of the projected maps.
        first_map: index of the first of the trunk's maps that is used.
        seed: of the random projection.
    """

    def __init__(
        self,
        *,
        trunk: nn.Module,
        resolution: int,
        feature_resolution: int = 128,
        width: int = 64,
        first_map: int = 1,
        seed: int = 0,
    ):
        super().__init__()
        self.resolution, self.feature_resolution, self.first_map = resolution, feature_resolution, first_map
        self.trunk = trunk.requires_grad_(False)
        with torch.no_grad():
            maps = trunk(torch.zeros(1, 3, feature_resolution, feature_resolution))[first_map:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projection = FeatureProjection(channels=[m.shape[1] for m in maps], width=width)
            heads = [Head(in_channels=width, side=m.shape[2]) for m in maps]
            self.heads = nn.ModuleList([*heads, Head(in_channels=3, side=resolution, pixels=True)])
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(len(maps)))

    def own_state(self) -> dict[str, Tensor]:
        """Return the state without the trunk."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("trunk.")}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load what `own_state` returned; raises ``RuntimeError`` on any difference in names or shapes."""
        trunk = {name: value for name, value in self.state_dict().items() if name.startswith("trunk.")}
        self.load_state_dict(trunk | state)

    def look(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, R, R) -> all of the trunk's maps, from fine to coarse."""
        size = (self.feature_resolution, self.feature_resolution)
        if image.shape[2:] != size:
            image = F.interpolate(
                image, size=size, mode="bilinear", align_corners=False, antialias=size < image.shape[2:]
            )
        return self.trunk(image.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def calibrate(self, image: Tensor) -> None:
        """Measure the standard deviation of every projected map on real images (B, 3, R, R)."""
        projected = self.projection(self.look(image)[self.first_map :])
        self.scale.copy_(torch.stack([x.std() for x in projected]))

    def features(self, image: Tensor, maps: Sequence[Tensor] | None = None) -> list[Tensor]:
        """image (B, 3, R, R) -> unit-deviation maps from fine to coarse, and the image itself.

        Args:
            image: pictures.
            maps: what `look` returned for them, where it is known already.
        """
        projected = self.projection((self.look(image) if maps is None else maps)[self.first_map :])
        return [x / scale for x, scale in zip(projected, self.scale, strict=True)] + [image]

    def judge(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return one logit per image and head, each (B,)."""
        return [head(x) for head, x in zip(self.heads, features, strict=True)]

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, R, R) -> mean logit over the heads, (B,)."""
        return torch.stack(self.judge(self.features(image))).mean(0)


class MomentMatcher(nn.Module):
    """Running mean and variance of real maps per channel and position, and the distance of generated ones.

    The image, the last map, is averaged to 16 x 16 first.

    Args:
        shapes: (C, h, w) of every map.
        momentum: share of the old value that stays at each update.
    """

    def __init__(self, *, shapes: Sequence[tuple[int, ...]], momentum: float = 0.98):
        super().__init__()
        self.momentum = momentum
        for i, shape in enumerate(shapes):
            self.register_buffer(f"mean{i}", torch.zeros(shape))
            self.register_buffer(f"var{i}", torch.ones(shape))
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros(()))

    @staticmethod
    def reduce(features: Sequence[Tensor]) -> list[Tensor]:
        """Average the last map, the image, to 16 x 16."""
        return [*features[:-1], F.adaptive_avg_pool2d(features[-1], 16)]

    @torch.no_grad()
    def update(self, features: Sequence[Tensor]) -> None:
        """Take in a batch of real maps."""
        keep = torch.clamp(self.updates / (self.updates + 5), max=self.momentum)
        for i, x in enumerate(self.reduce(features)):
            mean, var = getattr(self, f"mean{i}"), getattr(self, f"var{i}")
            x = x.to(mean.dtype)
            mean.lerp_(x.mean(0), 1 - keep)
            var.lerp_((x - mean).square().mean(0), 1 - keep)
        self.updates += 1

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the squared distance of mean and spread to the real ones, in real standard deviations."""
        total = features[0].new_zeros(())
        for i, x in enumerate(self.reduce(features)):
            mean, var = getattr(self, f"mean{i}"), getattr(self, f"var{i}")
            x = x.to(mean.dtype)
            deviation = var.sqrt() + 0.05 * var.mean().sqrt()
            total = total + ((x.mean(0) - mean) / deviation).square().mean()
            total = total + ((x.var(0) + 1e-6).sqrt() / deviation - 1).square().mean()
        return total


@full_precision
def augment_lightly(image: Tensor, p: float, rng: torch.Generator) -> Tensor:
    """Change brightness, saturation, contrast, shift and cut a hole, each for every image with probability ``p``.

    Args:
        image: (B, 3, H, W).
        p: probability of each change.
        rng: CPU generator.

    Source: Zhao et al. 2020, "Differentiable Augmentation" (arXiv 2006.10738), section 4.
    """
    if p <= 0:
        return image
    batch, _, height, width = image.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=rng).to(image)

    def chosen() -> Tensor:
        return (draw(1, 1, 1) < p).to(image.dtype)

    image = image + (draw(1, 1, 1) - 0.5) * chosen()
    grey = image.mean(1, keepdim=True)
    image = torch.lerp(image, grey + (image - grey) * (draw(1, 1, 1) * 2), chosen())
    mean = image.mean((1, 2, 3), keepdim=True)
    image = torch.lerp(image, mean + (image - mean) * (draw(1, 1, 1) + 0.5), chosen())
    theta = torch.eye(2, 3).repeat(batch, 1, 1).to(image)
    theta[:, :, 2] = (draw(2) - 0.5) * 0.5 * chosen().view(batch, 1)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    image = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    rows = torch.linspace(0, 1, height).to(image).view(1, 1, height, 1)
    columns = torch.linspace(0, 1, width).to(image).view(1, 1, 1, width)
    hole = ((rows - draw(1, 1, 1)).abs() < 0.2) & ((columns - draw(1, 1, 1)).abs() < 0.2)
    return image * (1 - hole.to(image.dtype) * chosen())


def cut_windows(image: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """Cut one random window out of every image at full resolution.

    Args:
        image: (B, 3, H, W), no smaller than the windows.
        side: of the windows in px.
        rng: CPU generator; from the same state, the same windows.
    """
    rows = torch.randint(image.shape[2] - side + 1, (len(image),), generator=rng).tolist()
    columns = torch.randint(image.shape[3] - side + 1, (len(image),), generator=rng).tolist()
    places = zip(image, rows, columns, strict=True)
    return torch.stack([x[:, top : top + side, left : left + side] for x, top, left in places])
