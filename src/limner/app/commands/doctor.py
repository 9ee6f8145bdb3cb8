"""``limner doctor``: versions, devices, speed of this machine, bundled models, what is missing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
import sys
import time
from typing import Any

from limner.app.console import Console
from limner.options import Options as BaseOptions

PACKAGES = ("torch", "numpy", "pillow", "safetensors", "pyyaml", "rich")
REQUIREMENT = re.compile(r"""([A-Za-z0-9._-]+).*extra\s*==\s*["']([A-Za-z0-9_-]+)["']""")
# The convolution whose rate BASELINES and the benchmarks quote: 512 to 512 channels, 3x3, at 64x64.
CHANNELS, SIZE = 512, 64


@dataclasses.dataclass(frozen=True)
class Options(BaseOptions):
    """Options of ``limner doctor``."""

    speed: bool = True
    """measure how fast this machine convolves; takes a second or two"""


def run(options: Options, console: Console) -> int:
    """Print a report; the exit status is 2 when a bundled model is damaged."""
    report: dict[str, Any] = {"versions": versions(), "machine": machine()}
    for name, version in report["versions"].items():
        console.print(f"{name.ljust(12)} {version}")
    console.print()
    for name, value in report["machine"].items():
        console.print(f"{name.ljust(12)} {value}")
    report |= report_devices(options, console)
    console.print()
    report["models"] = report_models(console)
    console.print()
    report["missing"] = report_extras(console)
    damaged = [name for name, state in report["models"].items() if state != "ok"]
    if damaged:
        console.error(f"damaged: {', '.join(damaged)}; install Limner anew")
    console.result(**report)
    return 2 if damaged else 0


def version_of(package: str) -> str | None:
    """Return an installed package's version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Return the versions of Limner, Python and what Limner needs."""
    import limner

    found = {name: version_of(name) or "not installed" for name in PACKAGES}
    return {"limner": limner.__version__, "python": platform.python_version(), **found}


def machine() -> dict[str, str]:
    """Return system, processor, usable cores and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"system": platform.platform(), "processor": processor_name(), "cores": str(cores)}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return found


def processor_name() -> str:
    """Return the processor's name where the system tells it."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def report_devices(options: Options, console: Console) -> dict[str, Any]:
    """Print the devices, and the convolution rate of the chosen one."""
    import torch

    from limner.app.device import available_devices, pick_device
    from limner.nn.precision import bf16_units, choose_precision

    devices = available_devices()
    device = pick_device(console.settings)
    console.print(f"{'devices'.ljust(12)} {', '.join(devices)} (using {device})")
    console.print(f"{'threads'.ljust(12)} {torch.get_num_threads()}")
    units = bf16_units(device)
    chosen = choose_precision("auto", device)
    why = f"the device has {units}" if units else "PyTorch knows of no units for bf16 here"
    console.print(f"{'precision'.ljust(12)} auto is {chosen}: {why}")
    found: dict[str, Any] = {"devices": devices, "device": str(device), "threads": torch.get_num_threads()}
    found |= {"auto_precision": chosen, "bf16_units": units}
    if options.speed:
        found["conv_gflops"] = round(convolution_rate(device), 1)
        console.print(
            f"{'convolution'.ljust(12)} {found['conv_gflops']:.0f} GFLOP/s "
            f"({CHANNELS} to {CHANNELS} channels, 3x3, at {SIZE}x{SIZE}, channels-last, float32)"
        )
    return found


def convolution_rate(device: Any, *, seconds: float = 1.0) -> float:
    """Return the best GFLOP/s of a large float32 convolution within about ``seconds``."""
    import torch

    def wait() -> None:
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()

    rng = torch.Generator().manual_seed(0)
    image = torch.randn(1, CHANNELS, SIZE, SIZE, generator=rng).to(device, memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, generator=rng).to(
        device, memory_format=torch.channels_last
    )
    work = 2 * CHANNELS * CHANNELS * 9 * SIZE * SIZE / 1e9
    best, end = 0.0, time.perf_counter() + seconds
    with torch.inference_mode():
        torch.nn.functional.conv2d(image, weight, padding=1)  # the first call also prepares
        wait()
        while not best or time.perf_counter() < end:
            start = time.perf_counter()
            torch.nn.functional.conv2d(image, weight, padding=1)
            wait()
            best = max(best, work / (time.perf_counter() - start))
    return best


def report_models(console: Console) -> dict[str, str]:
    """Print whether the bundled models are whole; return name -> ok or what is wrong."""
    from limner import zoo
    from limner.errors import ZooError

    states = {}
    for name in sorted(zoo.bundled()):
        try:
            zoo.verify(name)
            states[name] = "ok"
        except ZooError as error:
            states[name] = str(error)
            console.error(str(error))
    fine = [name for name, state in states.items() if state == "ok"]
    console.print(f"bundled models, digests checked: {', '.join(fine) or 'none'}")
    console.print(f"installed models: {', '.join(sorted(zoo.installed())) or 'none'} (in {zoo.cache_dir()})")
    return states


def report_extras(console: Console) -> dict[str, list[str]]:
    """Print which optional packages are missing; return extra -> packages."""
    try:
        requirements = importlib.metadata.requires("limner") or []
    except importlib.metadata.PackageNotFoundError:
        console.print(
            "Limner runs from its source folder, so its extras are not known; pip install -e . tells them"
        )
        return {}
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        match = REQUIREMENT.match(requirement)
        if match and match[2] != "dev" and version_of(match[1]) is None:
            extras.setdefault(match[2], []).append(match[1])
    for extra, packages in extras.items():
        console.print(f"not installed: {', '.join(packages)}; to install: pip install 'limner[{extra}]'")
    if not extras:
        console.print("all optional packages are installed")
    return extras
