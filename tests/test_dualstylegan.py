"""The DualStyleGAN network against its formulas, written out naively in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import make_generator
from torch import Tensor

from limner.errors import ShapeError
from limner.nn.dualstylegan import DualGenerator, ModResBlock, StyleSampler
from limner.nn.stylegan2 import Generator


@pytest.fixture
def dual() -> DualGenerator:
    """A 32 px model in float64 whose extrinsic path is far from its initial state."""
    dual = DualGenerator.around(make_generator())
    torch.manual_seed(2)
    for name, value in dual.named_parameters():
        if name.startswith(("structure", "color", "style")):
            value.data = value.data + 0.3 * torch.randn_like(value)
    return dual.double().eval().requires_grad_(False)


def codes(dual: DualGenerator, count: int = 1) -> tuple[Tensor, Tensor]:
    shape = count, dual.num_rows, dual.generator.w_dim
    return torch.randn(shape).to(dual.generator.w_avg), torch.randn(shape).to(dual.generator.w_avg)


def test_residual_block_is_the_formula() -> None:
    block = ModResBlock(4, w_dim=6).double()
    for value in block.parameters():
        value.data = torch.randn_like(value)
    x, code = torch.randn(2, 4, 5, 7).double(), torch.randn(2, 6).double()
    y = x
    for norm, conv in ((block.norm0, block.conv0), (block.norm1, block.conv1)):
        style = code @ norm.affine.weight.t() + norm.affine.bias
        deviation = y.var((2, 3), correction=0, keepdim=True).add(1e-5).sqrt()
        y = (y - y.mean((2, 3), keepdim=True)) / deviation
        y = style[:, :4, None, None] * y + style[:, 4:, None, None]
        y = F.conv2d(y, conv.weight / math.sqrt(4 * 9), conv.bias, padding=1)
        y = F.leaky_relu(y, 0.2) * math.sqrt(2)
    torch.testing.assert_close(block(x, code), y)


def test_residual_block_has_right_gradients() -> None:
    block = ModResBlock(2, w_dim=3).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    code = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x, code))
    assert torch.autograd.gradgradcheck(block, (x, code))


def test_picture_is_blocks_and_blended_codes(dual: DualGenerator) -> None:
    intrinsic, extrinsic = codes(dual, 2)
    weights = torch.linspace(0.1, 1.2, dual.num_rows)  # float32, as options give them
    shares = weights.double()
    w_plus = intrinsic.clone()
    for i, row in enumerate(range(dual.structure_rows, dual.num_rows)):
        w_plus[:, row] = (1 - shares[row]) * intrinsic[:, row] + shares[row] * dual.color[i](
            extrinsic[:, row]
        )

    def add(layer: int, x: Tensor) -> Tensor:
        return x + shares[layer] * dual.structure[layer](x, dual.style(extrinsic[:, layer]))

    expected = dual.generator.synthesis(w_plus, edit=add)
    torch.testing.assert_close(dual(intrinsic, extrinsic, weights), expected)
    torch.testing.assert_close(dual(intrinsic, extrinsic, weights.tolist()), expected, atol=1e-6, rtol=1e-6)


def test_fine_blocks_follow_the_last_structure_row() -> None:
    channels = {4 << j: 4 for j in range(5)}
    dual = DualGenerator(
        resolution=64, channels=channels, z_dim=8, w_dim=8, mapping_depth=1, fine_blocks=2
    ).double()
    assert dual.config()["fine_blocks"] == len(dual.fine) == 2
    for block in dual.fine:
        block.conv1.weight.data.mul_(100)
    intrinsic, extrinsic = codes(dual, 2)
    weights = torch.linspace(0.1, 1.2, dual.num_rows)
    last = dual.structure_rows - 1

    def add(layer: int, x: Tensor) -> Tensor:
        row, blocks = min(layer, last), [*dual.structure, *dual.fine]
        return x + weights[row].double() * blocks[layer](x, dual.style(extrinsic[:, row]))

    w_plus = dual.stylize_codes(intrinsic, extrinsic, weights)
    expected = dual.generator.synthesis(w_plus, edit=add)
    torch.testing.assert_close(dual(intrinsic, extrinsic, weights), expected)
    weights[last] = 0  # without the last structure row there is nothing that they could follow
    without = DualGenerator.around(dual.generator).double()
    without.load_state_dict({k: v for k, v in dual.state_dict().items() if not k.startswith("fine.")})
    assert torch.equal(dual(intrinsic, extrinsic, weights), without(intrinsic, extrinsic, weights))
    with pytest.raises(ShapeError, match="fine_blocks is 3, expected 0 to 2: 64 px have 9 layers, 7 of them"):
        DualGenerator(**{**dual.config(), "fine_blocks": 3})


def test_weights_of_each_image_are_its_own(dual: DualGenerator) -> None:
    intrinsic, extrinsic = codes(dual, 2)
    weights = torch.rand(2, dual.num_rows)
    weights[0, 3] = 0
    both = dual(intrinsic, extrinsic, weights)
    for i in range(2):
        torch.testing.assert_close(
            both[i : i + 1], dual(intrinsic[i : i + 1], extrinsic[i : i + 1], weights[i])
        )


def test_one_style_serves_a_batch_of_faces_and_one_face_many_styles(dual: DualGenerator) -> None:
    intrinsic, extrinsic = codes(dual, 3)
    faces = dual(intrinsic, extrinsic[:1])
    styles = dual(intrinsic[:1], extrinsic)
    for i in range(3):
        torch.testing.assert_close(faces[i : i + 1], dual(intrinsic[i : i + 1], extrinsic[:1]))
        torch.testing.assert_close(styles[i : i + 1], dual(intrinsic[:1], extrinsic[i : i + 1]))


@pytest.mark.parametrize("arguments", [{"weights": 0.0}, {"fuse_row": 0}])
def test_no_weight_is_the_plain_generator_and_skips_every_block(dual: DualGenerator, arguments: dict) -> None:
    intrinsic, extrinsic = codes(dual)
    for block in dual.structure:
        block.register_forward_hook(lambda *_: pytest.fail("a block of weight 0 was run"))
    expected = dual.generator.synthesis(intrinsic)
    assert torch.equal(dual(intrinsic, extrinsic, **arguments), expected)
    assert torch.equal(dual(intrinsic), expected)


def test_only_rows_up_to_the_fuse_row_take_part(dual: DualGenerator) -> None:
    intrinsic, extrinsic = codes(dual)
    weights = [1.0] * 4 + [0.0] * (dual.num_rows - 4)
    assert torch.equal(dual(intrinsic, extrinsic, weights), dual(intrinsic, extrinsic, fuse_row=3))
    assert torch.equal(dual(intrinsic, extrinsic, fuse_row=dual.num_rows - 1), dual(intrinsic, extrinsic))


def test_published_weights_serve_smaller_sizes(dual: DualGenerator) -> None:
    published = [0.75] * 7 + [1.0] * 11
    assert dual.row_weights(published).tolist() == published[: dual.num_rows] == dual.weights(0.75, 1.0)


@pytest.mark.parametrize(
    ("size", "rows", "px"), [(4, 1, 4), (16, 5, 16), (32, 7, 32), (64, 7, 32), (128, 7, 32)]
)
def test_structure_ends_at_32_px(size: int, rows: int, px: int) -> None:
    channels = {4 << j: 4 for j in range(6)}
    dual = DualGenerator(resolution=size, channels=channels, z_dim=8, w_dim=8, mapping_depth=1)
    assert (dual.structure_rows, dual.structure_px) == (rows, px)
    assert len(dual.color) == dual.num_rows - rows
    assert DualGenerator(**dual.config()).config() == dual.config()
    code = torch.randn(1, dual.num_rows, 8)
    assert dual(code, code).shape == (1, 3, size, size)


def test_features_are_those_of_the_picture(dual: DualGenerator) -> None:
    intrinsic, extrinsic = codes(dual)
    seen: dict[int, Tensor] = {}
    image = dual(intrinsic, extrinsic, edit=lambda layer, x: seen.setdefault(layer, x))
    for layer, px in ((0, 4), (2, 8), (6, 32)):
        features, so_far = dual.features(intrinsic, extrinsic, px=px)
        assert torch.equal(features, seen[layer])
        assert so_far.shape == (1, 3, px, px)
    assert torch.equal(so_far, image)


def test_features_paint_no_further_than_asked() -> None:
    dual = DualGenerator.around(make_generator())
    dual.generator.synthesis.layers[-1].register_forward_hook(lambda *_: pytest.fail("32 px was painted"))
    dual.features(*codes(dual), px=16)


def test_initially_a_style_has_its_colors_and_hardly_a_shape() -> None:
    dual = DualGenerator.around(make_generator()).eval()
    intrinsic, extrinsic = codes(dual)
    with torch.no_grad():
        plain = dual(intrinsic)
        assert (dual(intrinsic, extrinsic, dual.weights(1.0, 0.0)) - plain).std() < 0.2 * plain.std()
        swapped = torch.cat([intrinsic[:, : dual.structure_rows], extrinsic[:, dual.structure_rows :]], 1)
        mixed = dual.generator.synthesis(swapped)
        assert (dual(intrinsic, extrinsic, dual.weights(0.0, 1.0)) - mixed).std() < 0.05 * mixed.std()


def test_around_keeps_the_generator() -> None:
    generator = make_generator(5)
    dual = DualGenerator.around(generator)
    z = torch.randn(2, generator.z_dim)
    assert torch.equal(dual.generator(z, psi=0.5), generator(z, psi=0.5))


def test_everything_outside_the_generator_gets_a_gradient(dual: DualGenerator) -> None:
    dual.requires_grad_(True)
    dual(*codes(dual, 2)).square().mean().backward()
    without = [
        name
        for name, value in dual.named_parameters()
        if not name.startswith("generator.") and (value.grad is None or not value.grad.abs().sum() > 0)
    ]
    assert without == []


class TestErrors:
    def test_codes(self, dual: DualGenerator) -> None:
        intrinsic, extrinsic = codes(dual)
        with pytest.raises(ShapeError, match=r"extrinsic code has shape \(1, 3, 16\), expected \(B, 8, 16\)"):
            dual(intrinsic, extrinsic[:, :3])
        with pytest.raises(ShapeError, match="intrinsic code has shape"):
            dual(intrinsic[0], extrinsic)

    def test_weights(self, dual: DualGenerator) -> None:
        with pytest.raises(
            ShapeError, match=r"weights have shape \(3,\), expected a number or one for each of 8"
        ):
            dual.row_weights([1.0, 2.0, 3.0])

    def test_sizes(self, dual: DualGenerator) -> None:
        with pytest.raises(ShapeError, match="px is 64, expected one of the generator's sizes: 4, 8, 16, 32"):
            dual.features(*codes(dual), px=64)
        with pytest.raises(ShapeError, match="structure_rows is 8, expected 1 to 7"):
            DualGenerator(**{**dual.config(), "structure_rows": 8})

    def test_classes(self) -> None:
        conditional = Generator(resolution=8, channels={4: 4, 8: 4}, z_dim=8, w_dim=8, label_dim=3)
        with pytest.raises(ShapeError, match="class-conditional"):
            DualGenerator.around(conditional)


def test_sampler_joins_structure_and_color() -> None:
    sampler = StyleSampler(structure_rows=7, color_rows=3, z_dim=16, noise_dim=5, hidden=6).eval()
    rng = torch.Generator().manual_seed(3)
    found = sampler.sample(4, rng=rng)
    assert found.shape == (4, 10, 16)
    noise = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found[:, :7], sampler.structure(noise[0]).view(4, 7, 16))
    assert torch.equal(found[:, 7:], sampler.color(noise[1]).view(4, 3, 16))
