"""Low-rank layers: the same as the whole layers that they stand for, in values, gradients and whole models."""

from __future__ import annotations

import pytest
import torch
from conftest import make_generator
from torch import nn

from limner.checkpoints import Checkpoint, load, save
from limner.errors import KeyMismatchError, ShapeError
from limner.nn.dual_start import start_extrinsic
from limner.nn.dualstylegan import DualGenerator
from limner.nn.layers import EqualConv2d, EqualLinear
from limner.nn.low_rank import LowRankConv2d, LowRankLinear
from limner.nn.packing import pack_rows, unpack_rows


def make_dual(rank: int = 3) -> DualGenerator:
    """A moved model of low rank."""
    dual = DualGenerator.around(make_generator(), rank=rank)
    start_extrinsic(dual, seed=2)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in dual.named_parameters():
            if not name.startswith(("generator", "style")):
                value.add_(0.2 * torch.randn_like(value))
    return dual.eval().requires_grad_(False)


def codes(dual: DualGenerator, count: int = 2) -> torch.Tensor:
    return dual.generator.map_z_plus(torch.randn(count, dual.num_rows, dual.generator.z_dim))


def test_a_convolution_is_the_whole_one_with_its_product():
    torch.manual_seed(0)
    thin, whole = LowRankConv2d(5, 7, 3, rank=2), EqualConv2d(5, 7, 3)
    thin.bias.data.normal_()
    whole.weight.data.copy_(thin.merged())
    whole.bias.data.copy_(thin.bias.data)  # type: ignore[union-attr]
    x = torch.randn(3, 5, 8, 8)
    assert torch.allclose(thin(x), whole(x), atol=1e-5)
    assert thin.size().item() == pytest.approx(thin.merged().norm().item(), rel=1e-5)


@pytest.mark.parametrize("identity", [False, True])
def test_a_linear_layer_is_the_whole_one_with_its_product(identity):
    torch.manual_seed(0)
    thin = LowRankLinear(6, 6, rank=2, identity=identity)
    thin.bias.data.normal_()
    whole = EqualLinear(6, 6) if identity else nn.Linear(6, 6)
    whole.weight.data.copy_(thin.merged())
    whole.bias.data.copy_(thin.bias.data)
    x = torch.randn(4, 6)
    assert torch.allclose(thin(x), whole(x), atol=1e-5)
    product = whole.weight.detach() / 6**0.5 - torch.eye(6) if identity else whole.weight.detach()
    assert thin.size().item() == pytest.approx(product.norm().item(), rel=1e-4)


def test_gradients_of_both_parts():
    layer = LowRankLinear(3, 4, rank=2).double()
    assert torch.autograd.gradcheck(
        lambda a, b, x: torch.func.functional_call(layer, {"reduce": a, "expand": b}, (x,)),
        (layer.reduce, layer.expand, torch.randn(2, 3, dtype=torch.float64, requires_grad=True)),
    )


def test_a_model_of_low_rank_and_its_merged_twin_paint_alike(tmp_path):
    dual = make_dual()
    intrinsic, extrinsic = codes(dual), codes(dual)
    image = dual(intrinsic, extrinsic)
    twin = dual.merged()
    assert twin.rank is None
    assert torch.allclose(twin(intrinsic, extrinsic), image, atol=1e-4)
    assert (image - dual.generator.synthesis(intrinsic)).abs().mean() > 0.01
    # Limner's files keep the factors; the published format gets whole weights.
    save(Checkpoint(dual=dual), tmp_path / "own.safetensors")
    own = load(tmp_path / "own.safetensors").dual
    assert own is not None
    assert own.rank == 3
    assert torch.allclose(own(intrinsic, extrinsic), image, atol=1e-5)
    with pytest.warns(UserWarning, match="original programs"):
        save(Checkpoint(dual=dual), tmp_path / "theirs.pt")
    theirs = load(tmp_path / "theirs.pt").dual
    assert theirs is not None
    assert theirs.rank is None
    assert torch.allclose(theirs(intrinsic, extrinsic), image, atol=1e-4)


def test_start_weights_hardly_change_a_face_whatever_the_rank():
    changes = {}
    for rank in (None, 3):
        dual = DualGenerator.around(make_generator(), rank=rank).eval()
        start_extrinsic(dual, seed=0)
        with torch.no_grad():
            face = codes(dual)
            changes[rank] = (dual(face, face) - dual.generator.synthesis(face)).square().mean().sqrt().item()
    assert changes[3] < 0.1
    assert changes[3] < 3 * changes[None] + 0.02


def test_a_rank_below_one_is_refused():
    with pytest.raises(ShapeError, match="rank is -1"):
        DualGenerator.around(make_generator(), rank=-1)


def test_rows_in_8_bits():
    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(4, 3, 5) * torch.tensor([0.0, 1.0, 30.0, 1e-3])[:, None, None],
        "b": torch.randn(6),
    }
    stored = pack_rows(tensors)
    assert stored["a"].dtype == torch.int8
    back = unpack_rows(stored)
    limit = tensors["a"].abs().amax((1, 2), keepdim=True) / 254 * 1.01 + 1e-7
    assert ((back["a"] - tensors["a"]).abs() <= limit).all()
    assert torch.allclose(back["b"], tensors["b"], rtol=1e-3)
    with pytest.raises(KeyMismatchError, match=r"a has no a\.scale"):
        unpack_rows({"a": stored["a"]})
    with pytest.raises(KeyMismatchError, match=r"a\.scale has no a"):
        unpack_rows({"a.scale": stored["a.scale"]})
    with pytest.raises(ShapeError, match="4 rows have scales"):
        unpack_rows(stored | {"a.scale": stored["a.scale"][:2]})
