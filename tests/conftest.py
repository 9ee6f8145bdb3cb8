"""Tiny real networks and quiet, repeatable PyTorch for every test."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

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


@contextlib.contextmanager
def _root_obeys_permissions() -> Iterator[bool]:
    """Take from root, in this thread, the right to write where nobody may; yield whether permissions count now."""
    if os.geteuid() != 0:
        yield True
        return
    libc = ctypes.CDLL(None)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface; this thread
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low words, then high words
    if not hasattr(libc, "capget") or libc.capget(head, data):
        yield False
        return
    before = data[0]
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    done = libc.capset(head, data) == 0
    try:
        yield done
    finally:
        data[0] = before
        libc.capset(head, data)


@pytest.fixture
def locked_folder(tmp_path) -> Iterator[Path]:
    """A folder in which nothing can be written, not even by root."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with _root_obeys_permissions() as obeyed:
        if not obeyed:
            pytest.skip("root may write everywhere on this system")
        yield folder
