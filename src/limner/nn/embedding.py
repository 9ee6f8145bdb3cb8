"""Small networks between pictures and latents in training: an embedder, and a critic of latents.

Source: Makhzani et al. 2015, "Adversarial Autoencoders" (arXiv 1511.05644), section 2; Pidhorskyi et al. 2020,
"Adversarial Latent Autoencoders" (arXiv 2004.04467), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PictureEmbedder(nn.Module):
    """A picture, and a frozen trunk's maps of it, to one w; the trunk hardly sees colour, so the picture is needed too.

    Args:
        channels: of the trunk's last three maps, from fine to coarse, each half as wide as the one before.
        side: of the last of them.
        w_dim: width of w.
        width: channels inside.
    """

    def __init__(self, *, channels: Sequence[int], side: int, w_dim: int, width: int = 256):
        super().__init__()
        fine, middle, coarse = channels
        self.side = side
        self.pixels = nn.Conv2d(3, 32, 4, 2, 1)
        self.down_fine = nn.Conv2d(fine + 32, width // 2, 4, 2, 1)
        self.middle = nn.Conv2d(middle, width // 2, 1)
        self.down_middle = nn.Conv2d(width, width, 4, 2, 1)
        self.coarse = nn.Conv2d(coarse, width, 1)
        self.mix = nn.Conv2d(2 * width, width, 3, 1, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(3))
        self.hidden = nn.Linear(width * side * side, w_dim)
        self.last = nn.Linear(w_dim, w_dim)
        self.w_avg: Tensor
        self.w_std: Tensor
        self.register_buffer("w_avg", torch.zeros(w_dim))
        self.register_buffer("w_std", torch.ones(()))
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(3))

    @torch.no_grad()
    def calibrate(self, maps: Sequence[Tensor], w: Tensor) -> None:
        """Measure the deviation of real pictures' maps, and mean and deviation of w (N, w_dim)."""
        self.scale.copy_(torch.stack([x.std() for x in maps]))
        self.w_avg.copy_(w.mean(0))
        self.w_std.copy_((w - w.mean(0)).square().mean().sqrt())

    def forward(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """image (B, 3, R, R), its maps (B, C_i, h_i, h_i) -> w (B, w_dim)."""
        fine, middle, coarse = (x / scale for x, scale in zip(maps, self.scale, strict=True))
        pixels = F.leaky_relu(self.pixels(F.adaptive_avg_pool2d(image, 8 * self.side)), 0.2)
        x = torch.cat([self.down_fine(torch.cat([fine, pixels], 1)), self.middle(middle)], 1)
        x = self.down_middle(F.leaky_relu(self.norms[0](x), 0.2))
        x = torch.cat([F.leaky_relu(self.norms[1](x), 0.2), self.coarse(coarse)], 1)
        x = F.leaky_relu(self.norms[2](self.mix(x)), 0.2)
        x = F.leaky_relu(self.hidden(x.flatten(1)), 0.2)
        return self.w_avg + self.w_std * self.last(x)


class LatentCritic(nn.Module):
    """Tells embedded pictures from mapped noise: w (B, w_dim) -> logit (B,), high for pictures.

    Args:
        w_dim: width of w.
        width: of the hidden layers.
        depth: layers; e4e has four.
    """

    def __init__(self, *, w_dim: int, width: int = 512, depth: int = 3):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in [w_dim] + [width] * (depth - 2):
            layers += [nn.Linear(inputs, width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))
        self.w_avg: Tensor
        self.w_std: Tensor
        self.register_buffer("w_avg", torch.zeros(w_dim))
        self.register_buffer("w_std", torch.ones(()))

    @torch.no_grad()
    def calibrate(self, w: Tensor) -> None:
        """Measure mean and deviation of w (N, w_dim)."""
        self.w_avg.copy_(w.mean(0))
        self.w_std.copy_((w - w.mean(0)).square().mean().sqrt())

    def forward(self, w: Tensor) -> Tensor:
        """w (B, w_dim) -> logits (B,)."""
        return self.layers((w - self.w_avg) / self.w_std).flatten()
