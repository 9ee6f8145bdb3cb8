"""StyleGAN1 against the pictures of lernapparat's program and the tensors of its converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import foreign
from parity.recipe import FOLDER, Fixture, build, difference, find_fixtures, is_stored
from torch import Tensor

from limner import checkpoints
from limner.checkpoints.stylegan1 import rows, state_dict
from limner.nn.stylegan1 import Generator

TOLERANCE = 1e-4  # of an output's standard deviation; the fixtures' README allows 1e-3
LARGE = 256
LARGE_TOLERANCE = 3e-4  # the original's own rounding is 1e-4 at 1024 px
FORMS = (".box64", ".rows")


def params(pattern: str, *, light: bool = False) -> list[Any]:
    """Return the fixtures of a pattern; the large ones are marked slow unless the test is light."""
    found = []
    for path in find_fixtures("stylegan1", pattern):
        size = Fixture(path).text.get("config", {}).get("resolution", 1024)
        found.append(
            pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if size > LARGE and not light else [])
        )
    missing = pytest.mark.skip(
        reason=f"no stylegan1 fixtures in {FOLDER}; name their folder in LIMNER_PARITY_DIR"
    )
    return found or [pytest.param(Path(), id="none", marks=missing)]


@pytest.mark.parametrize("path", params("lernapparat*.json"))
def test_lernapparat(path: Path, tmp_path: Path) -> None:
    """Every output of the original program, and the file written again bit for bit."""
    fixture = Fixture(path)
    text, expected = fixture.text, fixture.expected()
    inputs = {name: torch.from_numpy(value) for name, value in fixture.inputs().items()}
    weights = foreign.tensors(fixture.weights())
    torch.save(weights, tmp_path / "model.pt")
    checkpoint = checkpoints.load(tmp_path / "model.pt")
    generator = checkpoint.generator
    assert checkpoint.format == "lernapparat"
    assert type(generator) is Generator
    generator.requires_grad_(False)
    generator.w_avg.copy_(inputs["avg_latent"])
    noise = [inputs[f"noise_{i}"] for i in range(len(text["noise_order"]))]
    first, w_plus = inputs["z0"][:1], inputs["wplus"]
    checked: dict[str, float] = {}

    def check(name: str, value: Tensor) -> None:
        if is_stored(name, expected):
            checked[name] = difference(name, value.numpy(), expected)

    check("z.w", generator.mapping(inputs["z0"]))
    check("z.image", generator(inputs["z0"], noise=noise))
    check("w.image", generator.synthesis(generator.broadcast(inputs["w"]), noise))
    check("wplus.image", generator.synthesis(w_plus, noise))
    check("wplus.styles", torch.cat(generator.synthesis.styles(w_plus), 1))
    check("no_noise.image", generator.synthesis(w_plus, [torch.zeros_like(values) for values in noise]))
    for name in ("trunc", "trunc2"):
        psi, cutoff = text[name]["threshold"], text[name]["max_layer"]
        w = generator.mapping(first)[:, None].expand(-1, text["mapping_rows"], -1)
        check(f"{name}.w", generator.truncate(w, psi, cutoff))
        check(f"{name}.image", generator(first, psi=psi, psi_cutoff=cutoff, noise=noise))
    print(path.stem, {name: f"{worst:.1e}" for name, worst in checked.items()})
    stored = {name.removesuffix(FORMS[0]).removesuffix(FORMS[1]) for name in expected}
    assert stored == set(checked)
    allowed = LARGE_TOLERANCE if generator.resolution > LARGE else TOLERANCE
    assert {name: worst for name, worst in checked.items() if not worst < allowed} == {}
    written = state_dict(generator)
    assert set(written) == set(weights)
    assert all(torch.equal(written[name], value) for name, value in weights.items())


@pytest.mark.parametrize("path", params("tf_to_lernapparat*.json"))
def test_tensorflow_becomes_what_the_original_converter_writes(path: Path, tmp_path: Path) -> None:
    """Every converted tensor has the recorded sum and weighted sum."""
    fixture = Fixture(path)
    weights = build(fixture.text["manifest"]["Gs"], fixture.seed, "Gs")
    foreign.write_tensorflow(tmp_path / "network.pkl", {"G": weights, "D": {}}, {"num_channels": 3})
    checkpoint = checkpoints.load(tmp_path / "network.pkl", parts=("generator",))
    generator = checkpoint.generator
    assert checkpoint.format == "nvlabs-tf1"
    assert type(generator) is Generator
    written = {name: value for name, value in state_dict(generator).items() if not name.endswith("kernel")}
    assert set(written) == set(fixture.text["G"])
    for name, entry in fixture.text["G"].items():
        values = written[name].double().flatten().numpy()
        ramp = np.linspace(-1, 1, len(values))
        assert [values.sum(), values @ ramp] == pytest.approx(entry["fp"], rel=1e-6, abs=2e-5), name
    np.testing.assert_array_equal(generator.w_avg.numpy(), weights["dlatent_avg"])
    for i, layer in enumerate(generator.synthesis.layers):
        np.testing.assert_array_equal(
            layer.get_buffer("noise").numpy(), weights[f"G_synthesis/noise{i}"][0, 0]
        )


@pytest.mark.parametrize("path", params("tf_to_lernapparat*.json", light=True))
def test_names_of_both_layouts(path: Path) -> None:
    """The table pairs the same names as the original converter, and knows every variable."""
    text = Fixture(path).text
    table = {
        row.lernapparat[0]: row.tensorflow[0] for row in rows(1024, 8) if row.lernapparat and row.tensorflow
    }
    table.pop("truncation.avg_latent")
    assert table == {name: entry["from"] for name, entry in text["G"].items()}
