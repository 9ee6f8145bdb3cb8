"""Pick the device and make runs repeatable.

The same seed, inputs and versions give the same pixels on the same device: random numbers always come from a CPU
generator (so the same seed gives the same latents on every device), and on CUDA only deterministic kernels run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from limner.app.console import Settings
from limner.errors import OptionError

if TYPE_CHECKING:
    import torch

    from limner.pipeline import Models


class NamesModels(Protocol):
    """Options of a command that embeds faces and paints them with the base."""

    @property
    def model(self) -> str:
        """Base, name or file."""
        ...

    @property
    def encoder(self) -> Path | None:
        """Encoder, where it is not the base's own."""
        ...

    @property
    def trunk(self) -> str:
        """What perceptual distances are measured with."""
        ...


def available_devices() -> list[str]:
    """Return the devices of this machine, the preferred one first."""
    import torch

    found = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def pick_device(settings: Settings, *, deterministic: bool = True) -> torch.device:
    """Return the device that ``--device`` asks for and set threads and determinism of this process.

    Args:
        settings: device and threads.
        deterministic: choose kernels that repeat bit for bit; training turns it off for speed on CUDA.

    Raises:
        OptionError: this machine or this build of PyTorch has no such device.
    """
    # Read by cuBLAS when its first handle is made; without it deterministic matrix products are refused.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    devices = available_devices()
    name = devices[0] if settings.device == "auto" else settings.device
    if name not in devices:
        raise OptionError(
            f"device is {name!r}, but PyTorch {torch.__version__} sees only {', '.join(devices)} on this machine; "
            "leave --device at auto, or install a PyTorch build for your GPU"
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if name == "cpu":
        from limner.nn.memory import keep_freed_memory

        keep_freed_memory()
    if name == "cuda" and deterministic:
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device(name)


def seeded_rng(seed: int) -> torch.Generator:
    """Return a CPU generator; draw on it and move the numbers, so that every device sees the same ones."""
    import torch

    return torch.Generator().manual_seed(seed)


def load_for(options: NamesModels, settings: Settings) -> Models:
    """Return the models that a command's options name, on the device that its settings ask for; the base stays."""
    from limner.pipeline import load_models

    return load_models(
        options.model,
        encoder=options.encoder,
        keep_base=True,
        trunk=options.trunk,
        device=pick_device(settings),
    )
