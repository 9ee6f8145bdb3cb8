"""Tiny real networks and quiet, repeatable PyTorch for every test."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its pool: the tests' tensors are tiny

import pytest
import torch

from limner.nn.stylegan2 import Discriminator, Generator

RESOLUTION = 32
CHANNELS = {4: 8, 8: 8, 16: 8, 32: 8}
W_DIM = 16

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same state of PyTorch's global generator."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    """Keep the tests away from the user's cache of models."""
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "limner-cache"))


def make_generator(seed: int = 0) -> Generator:
    """Return a 32 px generator with 8 channels, w 16 wide, and a mean w that is not zero."""
    torch.manual_seed(seed)
    generator = Generator(resolution=RESOLUTION, channels=CHANNELS, z_dim=W_DIM, w_dim=W_DIM, mapping_depth=2)
    for layer in generator.synthesis.layers:
        torch.nn.init.constant_(layer.noise_strength, 0.1)  # at its initial zero, noise would go untested
    generator.w_avg.copy_(generator.mean_w(500, rng=torch.Generator().manual_seed(seed)))
    return generator.eval().requires_grad_(False)


@pytest.fixture
def generator() -> Generator:
    """A seeded 32 px generator."""
    return make_generator()


@pytest.fixture
def discriminator() -> Discriminator:
    """A seeded 32 px discriminator."""
    torch.manual_seed(1)
    return Discriminator(resolution=RESOLUTION, channels=CHANNELS).eval().requires_grad_(False)
