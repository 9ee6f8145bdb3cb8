"""What weights are used on: second moments against plain re-computation, and packing that knows them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limner.nn import deltas
from limner.nn.layer_use import FLOOR, LayerUse, measure_use
from limner.nn.packing import pack, unpack
from limner.nn.stylegan2 import Generator


def test_moments_are_those_of_modulated_inputs(generator: Generator) -> None:
    """Of the last toRGB layer: its input times its styles, over all positions of all images."""
    uses = measure_use(generator, samples=3, seed=5, psi=0.6)
    wanted = {
        f"synthesis.{name}" for name, p in generator.synthesis.named_parameters() if name.endswith("weight")
    }
    assert set(uses) == wanted
    last = len(generator.synthesis.to_rgb) - 1
    z = torch.randn(3, generator.z_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        w_plus = generator.truncate(generator.broadcast(generator.mapping(z)), 0.6)
        styles = generator.synthesis.styles(w_plus)
        *_, (features, _) = generator.synthesis.stages(styles)
        x = (features * styles[-1][:, :, None, None]).transpose(0, 1).flatten(1).double()
    moments = x @ x.t() / x.shape[1]
    use = uses[f"synthesis.to_rgb.{last}.weight"]
    floor = FLOOR * moments.diag().mean() * torch.eye(len(moments))
    torch.testing.assert_close(use.root @ use.root, moments + floor, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(use.root @ use.inverse, torch.eye(len(moments)).double(), rtol=0, atol=1e-6)
    weight = generator.synthesis.to_rgb[last].get_parameter("weight").detach().double().flatten(1)
    assert use.size == pytest.approx(float((weight @ (moments + floor) @ weight.t()).trace()), rel=1e-4)


def test_affines_see_the_codes(generator: Generator) -> None:
    """Their moments have the size of w, whatever the layer paints; their size is that of the styles."""
    uses = measure_use(generator, samples=4, seed=1, psi=1.0)
    z = torch.randn(4, generator.z_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        w = generator.mapping(z).double()
    trace = float(w.square().sum(1).mean())
    for name in ("synthesis.layers.0.affine.weight", "synthesis.to_rgb.1.affine.weight"):
        root = uses[name].root
        assert float((root @ root).trace()) == pytest.approx(trace * (1 + FLOOR), rel=1e-4)
    with torch.no_grad():
        first = generator.synthesis.layers[0].get_submodule("affine")(w.float())
    gain = 1 / w.shape[1] ** 0.5
    size = float((first / gain).square().sum(1).mean())
    assert uses["synthesis.layers.0.affine.weight"].size == pytest.approx(size, rel=1e-4)


def test_products_are_cut_where_inputs_are() -> None:
    """A small change of what inputs use is kept, a large one of what they never use is dropped."""
    torch.manual_seed(0)
    moments = torch.diag(torch.tensor([1.0, 1e-6, 1e-6, 1e-6])).double()
    root = moments.sqrt()
    use = LayerUse(root, root.inverse(), 1.0)
    change = torch.zeros(60, 4)
    change[:, 0], change[:, 2] = 0.1 * torch.randn(60), torch.randn(60)
    budget = 300 + 60 + 4 + 4  # headers and one term
    blind, seeing = (
        unpack(pack({"w": change}, budget_bytes=budget, uses=uses).tensors)["w"]
        for uses in (None, {"w": use})
    )

    def made(delta: Tensor) -> float:
        return float(((delta - change).double() @ root).square().sum())

    assert made(seeing) < 0.01 * made(blind)
    torch.testing.assert_close(seeing[:, 0], change[:, 0], rtol=0.05, atol=2e-3)


def test_pictures_lose_less(generator: Generator) -> None:
    """Where styles switch channels off, the same bytes change what a tuned generator paints less."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in generator.synthesis.named_parameters():
            if name.endswith("affine.weight"):
                value.mul_(0.01)
            if name.endswith("affine.bias"):
                value[::2] = 0.01
    tuned = deltas.apply(generator, [])
    with torch.no_grad():
        for name, value in tuned.synthesis.named_parameters():
            if name.endswith("weight"):
                value.add_(0.05 * torch.randn_like(value))
    delta = deltas.difference(tuned, generator)
    half = sum(value.numel() for value in delta.values()) + 300 * len(delta)
    z = torch.randn(6, generator.z_dim, generator=torch.Generator().manual_seed(9))
    lost = []
    for uses in (None, measure_use(tuned, samples=16)):
        back = deltas.apply(generator, [(unpack(pack(delta, budget_bytes=half, uses=uses).tensors), 1.0)])
        with torch.no_grad():
            lost.append(float((back(z) - tuned(z)).square().mean()))
    assert lost[1] < lost[0]
