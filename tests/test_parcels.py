"""A run in parcels: what is kept, what it costs, limits; hours over several calls."""

import copy
import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from limner import checkpoints, zoo
from limner.errors import CheckpointError, OptionError
from limner.nn.features import Lite0
from limner.nn.projected import MomentMatcher, ProjectedDiscriminator
from limner.nn.transport import FrechetPull, summaries
from limner.options import from_mapping, read_recipe, to_mapping
from limner.training.gan.options import CHANNEL_TABLES, GanOptions
from limner.training.gan.parcels import MANIFEST, grow_state, join_file, shrink_state, split_file
from limner.training.gan.training import GanTraining, build_generator, build_run
from limner.training.run import Runtime, load_state, save_state

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
gpu_run: Any = importlib.import_module("gpu_run")


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


def tensors(state: Any) -> int:
    """Return the bytes of all tensors in nested dictionaries and lists."""
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


def test_what_the_frechet_loss_knows_fits_and_its_map_is_made_again():
    pull = FrechetPull(widths=(70, 90))
    rng = torch.Generator().manual_seed(3)
    pull.set_real([torch.randn(400, width, generator=rng) for width in (70, 90)])
    pull.observe([0.3 * torch.randn(64, width, generator=rng) for width in (70, 90)])
    state = {"G": {}, "ema": {}, "D": {}, "game": {"pull": pull.state_dict()}}
    parcel = shrink_state(state)
    assert tensors(parcel) < 0.35 * tensors(state)
    other = FrechetPull(widths=(70, 90))
    other.load_state_dict(grow_state(parcel)["game"]["pull"])
    for name, value in pull.state_dict().items():
        assert torch.allclose(other.state_dict()[name], value, rtol=1e-4, atol=1e-5), name
    assert other.state_dict()["groups.0.map"].abs().max() > 1, "narrow clouds are spread"


def test_second_moments_keep_their_size():
    value = torch.rand(5000, generator=torch.Generator().manual_seed(1)) ** 6 * 1e-5
    value[:10] = 0
    slot = {"step": torch.tensor(7.0), "exp_avg": torch.ones(5000), "exp_avg_sq": value}
    adam = {"state": {0: slot}, "param_groups": [{"betas": (0.0, 0.99), "params": [0]}]}
    parcel = shrink_state({"G": {}, "ema": {}, "D": {}, "game": {"G": adam, "none": torch.zeros(3)}})
    assert tensors(parcel) < 5100
    grown = grow_state(parcel)["game"]["G"]["state"][0]
    assert not grown["exp_avg_sq"][:10].any()
    share = grown["exp_avg_sq"][10:] / value[10:]
    assert 0.95 < share[value[10:] > 1e-14].min() <= share[value[10:] > 1e-14].max() < 1.05
    assert not grown["exp_avg"].any()


@pytest.mark.parametrize("recipe", ["heads-128-gpu", "heads-256"])
def test_whole_runs_fit_what_comes_back(recipe, tmp_path):
    """By calculation: the state of every recipe for a borrowed GPU, with all that its game keeps, within the limits."""
    options = from_mapping(GanOptions, read_recipe(ROOT / f"recipes/{recipe}.yaml"))
    assert options.frechet_weight
    G = build_generator(options)
    size = options.feature_resolution
    D = ProjectedDiscriminator(trunk=Lite0(), resolution=options.resolution, feature_resolution=size)
    maps = D.look(torch.zeros(1, 3, size, size))
    shapes = [(64, *x.shape[2:]) for x in maps[D.first_map :]]
    widths = [x.shape[1] for x in summaries(maps, torch.zeros(1, 3, size, size))]
    parameters = {"G": list(G.parameters()), "D": [p for p in D.parameters() if p.requires_grad]}
    game: dict = {
        name: {
            "state": {i: {"exp_avg": p, "exp_avg_sq": p.detach().square()} for i, p in enumerate(players)},
            "param_groups": [{"betas": (0.0, 0.99)}],
        }
        for name, players in parameters.items()
    }
    game |= {"moments": MomentMatcher(shapes=[*shapes, (3, 16, 16)]).state_dict()}
    game |= {"pull": FrechetPull(widths=widths).state_dict()}
    state = {"G": G.state_dict(), "ema": G.state_dict(), "D": D.own_state(), "game": game}
    with torch.no_grad():
        parcel = tensors(shrink_state(state))
    assert 30 * gpu_run.MIB < parcel < gpu_run.BACK_BYTES - 2 * gpu_run.MIB  # log, names and shapes
    assert (
        -(-parcel // gpu_run.PART_BYTES) + 2 < gpu_run.BACK_FILES
    )  # manifest and log; a sheet where there is room


def test_calls_share_the_time_that_there_is():
    for before, training in ((0, 1), (0, 3), (2, 2), (3, 2)):
        each = gpu_run.seconds_per_call(before, training)
        assert 60 < each <= gpu_run.CALL_S - gpu_run.AROUND_S
        usual = gpu_run.START_S + before * gpu_run.BETWEEN_S
        usual += training * (each + gpu_run.BETWEEN_S + gpu_run.USUAL_S)
        assert usual + gpu_run.RESERVE_S <= gpu_run.LEASE_S
    assert gpu_run.seconds_per_call(0, 1, lease=900) == gpu_run.CALL_S - gpu_run.AROUND_S
    assert gpu_run.seconds_per_call(0, 4, lease=900) < gpu_run.LEAST_S
    grown = gpu_run.make_plans(4, 1, 0, 2, 100.0)
    assert [plan["stage"] for plan in grown] == [0, 0, 0, 1]
    assert [plan["seconds"] for plan in grown] == [gpu_run.STATE_ONLY, 100, 100, 100]
    assert [plan["left_s"] for plan in grown] == [200, 200, 100, 100]
    later = gpu_run.make_plans(3, 1, 1, 2, 100.0)  # a state that had grown already, no second recipe
    assert [plan["stage"] for plan in later] == [1, 1, 1]
    assert [plan["left_s"] for plan in later] == [200, 200, 100]


@pytest.mark.parametrize("log_bytes", [100, 400_000])
def test_a_state_travels_in_boxes(tmp_path, log_bytes):
    run, work = tmp_path / "run", tmp_path / "work"
    run.mkdir()
    value = torch.randn(160_000, generator=torch.Generator().manual_seed(2))
    parts = {"G": {"x": value}, "ema": {"x": value}, "D": {"y": value}, "game": {}}
    save_state(run / "state.pt", {**parts, "images": 4000, "seconds": 9.0})
    (run / "stage.json").write_text('{"stage": 1, "options": {"kimg": 3.0}}')
    (run / "log.jsonl").write_text(" " * log_bytes)
    boxes = gpu_run._Boxes(tmp_path, gpu_run.MIB // 2)
    assert gpu_run._pack_state(run, boxes) == (1, 4.0)
    assert boxes.last >= 1
    for number in range(boxes.last + 1):
        assert not (work / "stage-1").exists()
        box = boxes.folder(number)
        assert sum(file.stat().st_size for file in box.iterdir()) <= boxes.room
        gpu_run._unpack(box, work, number)
    found = load_state(work / "stage-1/state.pt", CPU)
    assert torch.allclose(found["D"]["y"], value, atol=1e-2)
    assert found["images"] == 4000
    assert (work / "stage-1/log.jsonl").stat().st_size == log_bytes
    assert json.loads((work / "stage-1/stage.json").read_text()) == {"stage": 1, "options": {"kimg": 3.0}}
    with pytest.raises(OptionError, match="another machine"):
        gpu_run._unpack(boxes.folder(1), tmp_path / "elsewhere", 1)


def test_a_fetched_state_becomes_a_model(options, trunk, tmp_path, capsys):
    training = train(dataclasses.replace(options, kimg=0.008), trunk)
    (training.out / "log.jsonl").write_text(
        '{"kimg": 0.004, "frechet": 9.0, "hours": 0.5}\n{"kimg": 0.008}\n'
    )
    about = {"stage": 0, "options": to_mapping(training.run.options)}
    files = gpu_run.bring_back(training.out, tmp_path / "came", about)
    assert [file.name for file in files] == ["state.pt.000", f"state.pt.{MANIFEST}", "log.jsonl"]
    fetch = gpu_run.parse(["fetch", str(tmp_path / "came"), "--to", str(tmp_path / "runs")])
    assert fetch.run(fetch) == 0
    assert "0.0 kimg" in capsys.readouterr().out
    found = checkpoints.load(tmp_path / "runs/stage-0/model.safetensors")
    assert found.generator is not None
    for name, value in training.run.ema.named_parameters():
        assert torch.allclose(dict(found.generator.named_parameters())[name], value, atol=2e-3, rtol=2e-3), (
            name
        )
    assert found.metadata["provenance"]["images"] == 8
    assert found.metadata["provenance"]["figures"] == {"frechet": 9.0, "hours": 0.5}
    again = GanTraining(
        build_run(dataclasses.replace(options, out=str(tmp_path / "runs/stage-0")), Runtime(CPU), trunk=trunk)
    )
    again.setup()
    assert again.run.images == 8


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
    options = dataclasses.replace(options, batch_size=2)
    first = train(dataclasses.replace(options, kimg=0.02), trunk)
    spent = first.hours
    assert 0 < spent < 1
    assert load_state(first.out / "state.pt", CPU)["seconds"] == pytest.approx(3600 * spent)
    second = train(dataclasses.replace(options, kimg=0.04), trunk)
    assert second.hours > spent
    figures = second.validate()
    assert figures["hours"] == second.hours
    records = [json.loads(line) for line in (second.out / "log.jsonl").read_text().splitlines()]
    hours = [record["hours"] for record in records]  # a line every 20 steps: at the second call's end
    assert len(hours) == 1
    assert spent < hours[0] <= second.hours


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
