"""A run in parcels: what is kept, what it costs, limits; hours over several calls."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from limner import zoo
from limner.errors import CheckpointError
from limner.training.gan import GanTraining, build_run
from limner.training.options import CHANNEL_TABLES, GanOptions
from limner.training.parcels import MANIFEST, grow_state, join_file, shrink_state, split_file
from limner.training.run import Runtime, load_state

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def options(tmp_path, monkeypatch) -> GanOptions:
    monkeypatch.setitem(CHANNEL_TABLES, "slim", {4: 16, 8: 16, 16: 8})
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "pictures"
    place.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(place / f"{i}.png")
    return GanOptions(
        data=str(place),
        out=str(tmp_path / "run"),
        resolution=16,
        w_dim=16,
        batch_size=4,
        feature_resolution=32,
        w_samples=100,
        kimg=0.04,
    )


@pytest.fixture(scope="module")
def trunk() -> nn.Module:
    return zoo.load("lite0")  # on features of random weights, which hardly differ, rounding would show


def train(options: GanOptions, trunk: nn.Module) -> GanTraining:
    training = GanTraining(build_run(options, Runtime(CPU), trunk=trunk))
    training.setup()
    training.fit()
    return training


def tensors(state: object) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(tensors(part) for part in parts)


def test_a_parcel_is_small_and_the_run_goes_on_from_it(options, trunk):
    training = train(options, trunk)
    state = copy.deepcopy(training.state())  # an optimiser that takes it over goes on in the same tensors
    parcel = shrink_state(state)
    assert tensors(parcel) < 0.5 * tensors(state)
    grown = grow_state(parcel)
    assert "parcel" not in grown
    for network in ("G", "ema", "D"):
        for name, value in state[network].items():
            assert grown[network][name].dtype == value.dtype
            error = (grown[network][name] - value).abs().max()
            assert error <= 1e-3 * value.abs().max().clamp(min=1e-3), name

    # The next step is nearly the one that it would have been: what was left out does not matter.
    longer = dataclasses.replace(options, kimg=0.044)
    ends = []
    for start in (copy.deepcopy(state), grown):
        run = GanTraining(build_run(longer, Runtime(CPU), trunk=trunk))
        (run.out / "sheets").mkdir(exist_ok=True)
        run.load_state(start)
        before = {name: value.clone() for name, value in run.run.G.named_parameters()}
        assert run.fit() is True
        ends.append({name: value - before[name] for name, value in run.run.G.named_parameters()})
    steps, others = (torch.cat([value.flatten() for value in end.values()]) for end in ends)
    assert steps.abs().max() > 1e-4
    assert (others - steps).norm() < 0.05 * steps.norm()


def test_large_values_stay_and_other_versions_are_refused(options, trunk):
    state = train(dataclasses.replace(options, kimg=0.004), trunk).state()
    for name, value in (("huge", torch.full((5000,), 1e6)), ("tiny", torch.full((5000,), 1.234e-7))):
        state["D"][name] = value
        assert grow_state(shrink_state(state))["D"][name].equal(value)
    with pytest.raises(CheckpointError, match="version None"):
        grow_state(state)


def test_files_are_cut_and_joined(tmp_path):
    file = tmp_path / "state.pt"
    file.write_bytes(bytes(range(256)) * 10)
    written = split_file(file, tmp_path / "parts", part_bytes=1000)
    assert [path.name for path in written] == [
        *(f"state.pt.{n:03d}" for n in range(3)),
        f"state.pt.{MANIFEST}",
    ]
    assert max(path.stat().st_size for path in written) <= 1000
    target = tmp_path / "joined"
    assert join_file(written[-1], target)
    assert target.read_bytes() == file.read_bytes()
    written[1].write_bytes(b"other")
    with pytest.raises(CheckpointError, match="damaged or mixed"):
        join_file(written[-1], tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    written[1].unlink()
    assert not join_file(written[-1], tmp_path / "bad")


def test_hours_go_on_where_they_were(options, trunk):
    first = train(dataclasses.replace(options, kimg=0.08), trunk)
    spent = first.hours
    assert 0 < spent < 1
    assert load_state(first.out / "state.pt", CPU)["seconds"] == pytest.approx(3600 * spent)
    second = train(dataclasses.replace(options, kimg=0.16), trunk)
    assert second.hours > spent
    figures = second.validate()
    assert figures["hours"] == second.hours
    records = [json.loads(line) for line in (second.out / "log.jsonl").read_text().splitlines()]
    hours = [record["hours"] for record in records]
    assert len(hours) == 2
    assert hours == sorted(hours)
    assert hours[0] <= spent < hours[1]


def test_curves_have_the_distance_by_hours(tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    from limner.training.plots import plot_log

    titles = []
    original = figure.Figure.savefig

    def watch(self, *arguments, **others):
        titles.extend((axes.get_title(), axes.get_xlabel()) for axes in self.axes)
        return original(self, *arguments, **others)

    records = [{"kimg": n, "hours": n / 10, "frechet": 100 / n} for n in (1, 2, 3)]
    figure.Figure.savefig = watch
    try:
        plot_log(records, tmp_path / "log.png")
    finally:
        figure.Figure.savefig = original
    assert titles[0] == ("frechet", "hours")
    assert ("frechet", "kimg") in titles


@pytest.mark.slow
def test_the_whole_way_to_a_borrowed_gpu_and_back():
    command = [sys.executable, str(ROOT / "scripts/gpu_dry.py"), "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "everything went through" in done.stdout
