"""`limner train gan` from the command line to a model file."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from limner import checkpoints
from limner.app.cli import main
from limner.options import from_mapping, read_recipe
from limner.training.gan.options import CHANNEL_TABLES, GanOptions


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setitem(CHANNEL_TABLES, "slim", {4: 16, 8: 16, 16: 8, 32: 8})
    place = tmp_path / "pictures"
    place.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        blocks = rng.integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(blocks).resize((32, 32), Image.Resampling.BICUBIC).save(place / f"{i:06d}.png")
    options = {"data": place, "resolution": 16, "w-dim": 16, "batch-size": 4, "w-samples": 100}
    options |= {"feature-resolution": 32, "metric-samples": 6, "kimg": 0.008}
    return ["train", "gan", "--json"] + [word for k, v in options.items() for word in (f"--{k}", str(v))]


def test_train_resume_grow_and_make_a_discriminator(tmp_path, words, capsys):
    first = tmp_path / "first"
    assert main([*words, "--out", str(first)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finished"] is True
    assert {"frechet", "recall_floor"} <= set(result)
    model = checkpoints.load(result["model"])
    assert model.generator.resolution == 16
    assert model.metadata["provenance"]["images"] == 8

    assert main([*words, "--out", str(first), "--kimg", "0.012"]) == 0
    assert "resuming at 0.0 kimg" in capsys.readouterr().err
    assert checkpoints.load(result["model"]).metadata["provenance"]["images"] == 12

    grown = tmp_path / "grown"
    grow = ["--out", str(grown), "--init", result["model"], "--resolution", "32", "--grow-kimg", "0.004"]
    assert main([*words, *grow]) == 0
    taught = [
        "--discriminator",
        "stylegan2",
        "--only-discriminator",
        "--resolution",
        "32",
        "--metric-samples",
        "0",
    ]
    taught += ["--out", str(tmp_path / "taught"), "--init", str(grown / "model.safetensors")]
    assert main([*words, *taught]) == 0
    last = checkpoints.load(tmp_path / "taught" / "model.safetensors")
    same = checkpoints.load(grown / "model.safetensors").generator.state_dict()
    assert all(torch.equal(v, same[k]) for k, v in last.generator.state_dict().items())
    assert last.discriminator.resolution == 32


def test_errors_are_one_line_and_exit_2(tmp_path, words, capsys):
    assert main([*words, "--out", str(tmp_path / "x"), "--select", "90-99"]) == 2
    assert "numbered 0 to 11, is selected by 90-99" in capsys.readouterr().err.splitlines()[-1]
    assert main([*words, "--out", str(tmp_path / "x"), "--resolution", "48"]) == 2
    assert "power of two" in capsys.readouterr().err


def test_every_recipe_is_complete(request):
    for path in sorted((request.config.rootpath / "recipes").glob("heads*.yaml")):
        assert from_mapping(GanOptions, read_recipe(path), str(path)).kimg > 0


BARE = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rich", "yaml", "matplotlib", "lightning_fabric", "kornia", "scipy", "skimage"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from limner.app.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_training_runs_with_torch_numpy_pillow_and_safetensors_alone(tmp_path, words):
    out = tmp_path / "bare"
    done = subprocess.run(
        [sys.executable, "-c", BARE, *words, "--out", str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert checkpoints.load(out / "model.safetensors").generator.resolution == 16


@pytest.mark.slow
def test_two_processes_share_the_batch_and_write_once(tmp_path, words):
    pytest.importorskip("lightning_fabric")
    out = tmp_path / "two"
    done = subprocess.run(
        [sys.executable, "-m", "limner", *words, "--out", str(out), "--processes", "2", "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["images"] == 8
    assert checkpoints.load(out / "model.safetensors").generator.resolution == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [[], ["--reconstruct", "0.5", "--embed-kimg", "0.02"]], ids=["plain", "embedding"]
)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(tmp_path, words, extra):
    command = [sys.executable, "-m", "limner", *words, *extra, "--kimg", "0.2", "--metric-samples", "0"]
    command += ["--batch-size", "8", "--save-seconds", "1", "--threads", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)

    moments = np.random.default_rng()
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(
            [*command, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not (killed / "options.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            process.wait(moments.uniform(2, 6))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    subprocess.run([*command, "--out", str(killed)], check=True, capture_output=True)
    assert kills, "the run ended before it could be killed"
    a, b = (torch.load(folder / "state.pt", weights_only=True) for folder in (whole, killed))
    assert a["images"] == b["images"] == 200
    for network in ("G", "ema", "D"):
        assert all(a[network][name].equal(b[network][name]) for name in a[network])
    models = (checkpoints.load(folder / "model.safetensors").generator for folder in (whole, killed))
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    first, second = (model(z) for model in models)
    assert first.equal(second)
