"""DualStyleGAN against the images and features of the original code, through its own files.

Fixtures come from the folder named by LIMNER_PARITY_DIR (any sizes and seeds).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity import foreign
from parity.recipe import Fixture
from test_parity_generators import Outputs, params
from torch import Tensor

from limner import checkpoints
from limner.checkpoints.dual import dual_state
from limner.nn.dualstylegan import DualGenerator

COMPARED = ("instyle", "exstyle")


def load(fixture: Fixture, folder: Path) -> DualGenerator:
    """Write a fixture's weights as the original's file and read it."""
    file = folder / "generator.pt"
    torch.save(foreign.tensors(fixture.weights()), file)
    checkpoint = checkpoints.load(file)
    assert checkpoint.format == "dualstylegan"
    assert checkpoint.dual is not None
    assert checkpoint.generator is checkpoint.dual.generator
    assert checkpoint.dual.structure_rows == fixture.text["config"]["res_index"] + 1
    return checkpoint.dual


class Case:
    """One call of the original, in our terms."""

    def __init__(self, dual: DualGenerator, case: dict[str, Any], inputs: dict[str, Tensor]):
        self.dual, self.case, self.inputs = dual, case, inputs

    def code(self, name: str, *, z_plus: bool, latent: bool) -> Tensor:
        generator = self.dual.generator
        value = self.inputs[name]
        if value.ndim == 2:
            return generator.broadcast(value if latent else generator.mapping(value))
        return generator.map_z_plus(value) if z_plus and not latent else value

    def intrinsic(self) -> Tensor:
        latent = bool(self.case.get("input_is_latent"))
        names = self.case["instyle"]
        names = names if isinstance(names, list) else [names]
        codes = [
            self.code(name, z_plus=bool(self.case.get("z_plus_latent")), latent=latent) for name in names
        ]
        if len(codes) == 2:
            index = self.case["inject_index"]
            codes = [torch.cat([codes[0][:, :index], codes[1][:, index:]], 1)]
        psi, centre = self.case.get("truncation", 1.0), self.case.get("truncation_latent", 0)
        return centre + psi * (codes[0] - centre)

    def extrinsic(self) -> Tensor | None:
        if not self.case.get("use_res", True):
            return None
        if "exstyle_z)" in self.case["exstyle"]:
            return self.code("exstyle_z", z_plus=False, latent=False)
        return self.code("exstyle_zplus", z_plus=True, latent=False)

    def arguments(self) -> tuple[Tensor, Tensor | None, Any]:
        return self.intrinsic(), self.extrinsic(), self.case.get("interp_weights", 1.0)

    def image(self) -> Tensor:
        return self.dual(*self.arguments(), fuse_row=self.case.get("fuse_index"))


@pytest.mark.parametrize("path", params("dualstylegan", "dualstylegan_[0-9]*.json"))
def test_every_case(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    dual = load(fixture, tmp_path)
    outputs = Outputs(fixture)
    outputs.check("exstyle_wplus", lambda: dual.generator.map_z_plus(outputs.inputs["exstyle_zplus"]))
    for name, text in fixture.text["cases"].items():
        case = Case(dual, text, outputs.inputs)
        if name == "return_feat":
            with torch.no_grad():
                features, image = dual.features(*case.arguments(), fuse_row=text.get("fuse_index"))
            assert list(features.shape) == text["out_shape"]
            outputs.check("return_feat.out", lambda features=features: features)
            outputs.check("return_feat.skip", lambda image=image: image)
        else:
            outputs.check(name, case.image)
    outputs.finish()


@pytest.mark.parametrize("path", params("dualstylegan", "dualstylegan_init_*.json"))
def test_weights_as_after_construction(path: Path, tmp_path: Path) -> None:
    """The same code in both paths: the style hardly changes what the plain generator paints."""
    fixture = Fixture(path)
    dual = load(fixture, tmp_path)
    outputs = Outputs(fixture)
    code = outputs.inputs["instyle_wplus"]
    outputs.check("nores.image", lambda: dual(code))
    outputs.check("same_style.image", lambda: dual(code, code))
    outputs.finish()


@pytest.mark.parametrize("path", params("dualstylegan", "dualstylegan_init_*.json"))
def test_our_initial_state_is_the_published_one(path: Path) -> None:
    """Constants exactly, random numbers by their spread, and as many modules of either kind."""
    fixture = Fixture(path)
    config = fixture.text["config"]
    torch.manual_seed(0)
    dual = DualGenerator(resolution=config["size"], structure_rows=config["res_index"] + 1)
    state, published = dual_state(dual), fixture.text["manifest"]["g_ema"]
    assert {name: list(value.shape) for name, value in state.items()} == {
        name: entry["shape"] for name, entry in published.items()
    }
    for row in range(dual.structure_rows):
        for name in ("conv", "conv2"):
            assert state[f"res.{row}.{name}.0.weight"].std() == pytest.approx(0.01, rel=0.01)
            assert not state[f"res.{row}.{name}.1.bias"].any()
        for name in ("norm", "norm2"):
            gain, shift = state[f"res.{row}.{name}.style.bias"].chunk(2)
            assert (gain == 1).all()
            assert not shift.any()
            bound = 512**-0.5  # of torch's uniform distribution
            assert 0.99 * bound < state[f"res.{row}.{name}.style.weight"].abs().max() <= bound
    for row in range(dual.structure_rows, dual.num_rows):
        rest = state[f"res.{row}.weight"] - 512**0.5 * torch.eye(512)
        assert rest.std() == pytest.approx(0.01, rel=0.02)
        assert not state[f"res.{row}.bias"].any()


@pytest.mark.parametrize("path", params("dualstylegan"))
def test_to_native_and_back_is_exact(path: Path, tmp_path: Path) -> None:
    """Bit for bit the same file contents: every tensor, its shape and its FIR kernels."""
    written = foreign.tensors(Fixture(path).weights())
    first, native, second = tmp_path / "first.pt", tmp_path / "model.safetensors", tmp_path / "second.pt"
    torch.save(written, first)
    checkpoints.save(checkpoints.load(first), native)
    checkpoints.save(checkpoints.load(native), second)
    found = torch.load(second, weights_only=True)
    assert set(found) == {"g_ema"}
    assert set(found["g_ema"]) == set(written["g_ema"])
    for name, value in written["g_ema"].items():
        assert found["g_ema"][name].dtype == value.dtype, name
        assert torch.equal(found["g_ema"][name], value), name
