"""HyperInverter's files against codes, weight changes and pictures of the original code; slow, its matrices are large."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import foreign
from parity.recipe import FOLDER, Fixture, difference, find_fixtures, is_stored
from torch import Tensor

from limner import checkpoints
from limner.checkpoints.hyperinverter import regressor_names
from limner.nn.hyperinverter import HyperInverter, paint, target_layers

TOLERANCE = 1e-4  # of an output's standard deviation; the fixtures' README allows 1e-3
FORMS = (".box64", ".rows", ".cmean", ".cabs", ".grid")
PATHS = find_fixtures("hyperinverter")


@pytest.mark.slow
@pytest.mark.skipif(
    not PATHS, reason=f"no hyperinverter fixtures in {FOLDER}; name their folder in LIMNER_PARITY_DIR"
)
@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_hyperinverter(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    text, expected = fixture.text, fixture.expected()
    # Several gigabytes: written, dropped, read again.
    weights = foreign.tensors(fixture.weights())
    torch.save(weights["hyper_inverter"], tmp_path / "hyper.pt")
    foreign.write_nvlabs(
        tmp_path / "g.pkl", {"G_ema": (weights["stylegan2_ada"]["G_ema"], text["G_init_kwargs"])}
    )
    opts = weights["hyper_inverter"]["opts"]
    del weights
    gc.collect()
    generator = checkpoints.load(tmp_path / "g.pkl").generator
    checkpoint = checkpoints.load(tmp_path / "hyper.pt")
    network = checkpoint.encoder
    assert checkpoint.format == "hyperinverter"
    assert isinstance(network, HyperInverter)
    assert generator is not None
    assert network.targets == target_layers(generator, opts["target_shape_name"])
    names = regressor_names(generator.resolution, "all_without_bias")
    assert [names[name] for name in network.targets] == [
        name.replace(".", "_") for name in text["target_layers"]
    ]
    checked: dict[str, float] = {}

    def check(name: str, value: Tensor) -> None:
        if is_stored(name, expected):
            checked[name] = difference(name, value.numpy(), expected)

    def check_maps(name: str, maps: Tensor) -> None:
        views = {"cmean": maps.mean((3, 4)), "cabs": maps.abs().mean((3, 4)), "grid": maps[:, :, :4]}
        for form, value in views.items():
            stored = expected[f"{name}.{form}"]
            worst = float(np.abs(value.numpy() - stored).max() / stored.std())
            checked[name] = max(checked.get(name, 0.0), worst)

    with torch.no_grad():
        image = torch.from_numpy(fixture.inputs()["image"])
        found, seen = network(generator, image), network.see(image)
        again = network.see(found.w_image)
        check("w_encoder", network.encoder.predict(seen))
        check("w_code", found.w)
        check("w_image", found.w_image)
        check("w_bar_input", seen)
        check("w_image_resized", again)
        check_maps("w_bar_codes", network.map_encoder(seen))
        check_maps("w_image_codes", network.map_encoder(again))
        changes = [value.flatten() for value in found.residuals.values()]
        check("dw.mean", torch.stack([value.mean() for value in changes]))
        check("dw.abs", torch.stack([value.abs().mean() for value in changes]))
        entries = 7919 * torch.arange(64)
        check("dw.entries", torch.stack([value[entries % len(value)] for value in changes]))
        check("final_image", paint(generator, found.w, found.residuals))
    print(path.stem, {name: f"{worst:.1e}" for name, worst in checked.items()})
    stored = set()
    for name in expected:
        stored.add(next((name.removesuffix(form) for form in FORMS if name.endswith(form)), name))
    assert stored == set(checked)
    assert {name: worst for name, worst in checked.items() if not worst < TOLERANCE} == {}
