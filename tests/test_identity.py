"""Identity embedder: blocks against naive recomputation, cut against PyTorch's resize, persons of the two photos."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from limner import media, zoo
from limner.errors import KeyMismatchError, ShapeError, UnknownFormatError, ZooError
from limner.faces import AlignOptions, crop_face, find_alignments
from limner.losses import identity_distance
from limner.nn.identity import (
    FFHQ_CROP,
    SAME_PERSON,
    DlibResNet,
    ResidualBlock,
    dequantise,
    load_identity,
    quantise,
    resample,
)

ROOT = Path(__file__).parents[1]
BUNDLED = zoo.BUNDLED_DIR / "identity.safetensors"


@pytest.fixture(scope="module")
def embedder() -> DlibResNet:
    return zoo.load("identity")


@pytest.fixture(scope="module")
def persons() -> dict[str, torch.Tensor]:
    """The two photos with clear rights, FFHQ-aligned at 256 px."""
    found = {}
    for name in ("astronaut", "hopper"):
        pixels = media.read(ROOT / "examples/photos" / f"{name}.jpg").pixels
        (alignment,) = find_alignments(pixels, AlignOptions(size=256, face="largest"))
        found[name] = media.to_image(crop_face(pixels, alignment))
    return found


@pytest.fixture(scope="module")
def converter():
    spec = importlib.util.spec_from_file_location("convert_dlib", ROOT / "scripts/convert_dlib.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def naive_convolution(x: np.ndarray, layer: torch.nn.Conv2d, stride: int, margin: int) -> np.ndarray:
    """One output pixel at a time, in float64; x is (I, H, W)."""
    weight, bias = layer.weight.double().numpy(), layer.bias.double().numpy()  # type: ignore[union-attr]
    x = np.pad(x, ((0, 0), (margin, margin), (margin, margin)))
    side = weight.shape[2]
    rows, columns = ((n - side) // stride + 1 for n in x.shape[1:])
    out = np.empty((len(weight), rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + side, j * stride : j * stride + side]
            out[:, i, j] = (weight * window).sum((1, 2, 3)) + bias
    return out


class TestBlock:
    @pytest.mark.parametrize(("rows", "columns"), [(8, 8), (7, 8), (7, 5), (3, 3)])
    def test_halving_against_naive_recomputation(self, rows, columns):
        """No margin, shortcut averaged, zeros appended where one path is smaller: in channels, rows and columns."""
        block = ResidualBlock(in_channels=3, out_channels=5, halve=True).requires_grad_(False)
        x = torch.randn(1, 3, rows, columns)
        y = np.maximum(naive_convolution(x[0].double().numpy(), block.first, 2, 0), 0)
        y = naive_convolution(y, block.second, 1, 1)
        expected = np.zeros((5, max(rows // 2, y.shape[1]), max(columns // 2, y.shape[2])))
        expected[:, : y.shape[1], : y.shape[2]] += y
        for i in range(rows // 2):
            for j in range(columns // 2):
                expected[:3, i, j] += (
                    x[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].double().mean((1, 2)).numpy()
                )
        np.testing.assert_allclose(block(x)[0].numpy(), np.maximum(expected, 0), atol=1e-5)

    def test_plain_against_naive_recomputation(self, embedder):
        """A block with the real weights."""
        block = embedder.blocks[0]
        x = torch.randn(1, 32, 6, 5)
        y = np.maximum(naive_convolution(x[0].double().numpy(), block.first, 1, 1), 0)
        y = naive_convolution(y, block.second, 1, 1)
        np.testing.assert_allclose(block(x)[0].numpy(), np.maximum(y + x[0].double().numpy(), 0), atol=1e-4)


class TestResample:
    @pytest.mark.parametrize(("size", "left", "top", "cut"), [(40, 4, 8, 30), (20, 5, 0, 10), (16, 0, 0, 16)])
    def test_whole_pixels_agree_with_pytorch(self, size, left, top, cut):
        """Enlarging and reducing, away from the edge of the cut, where PyTorch knows nothing of the pixels beyond."""
        image = torch.randn(2, 3, size, size)
        found = resample(image, crop=(left / size, top / size, cut / size), side=15)
        part = image[:, :, top : top + cut, left : left + cut]
        expected = F.interpolate(part, size=15, mode="bilinear", antialias=True, align_corners=False)
        inner = slice(None) if cut == size else slice(2, -2)
        torch.testing.assert_close(found[..., inner, inner], expected[..., inner, inner], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("size", [8, 33, 300])
    def test_fractions_of_a_pixel(self, size):
        """A ramp stays a ramp, whatever the size of the image: value at x is x."""
        ramp = ((torch.arange(size) + 0.5) / size).expand(1, 1, size, size)
        found = resample(ramp, crop=(0.3, 0.3, 0.4), side=20)[0, 0, 0]
        torch.testing.assert_close(found, 0.3 + 0.4 * (torch.arange(20) + 0.5) / 20, atol=2e-3, rtol=0)

    def test_cut_is_placed_as_said(self):
        image = torch.zeros(1, 1, 100, 100)
        image[..., 26:92, 17:83] = 1  # just inside left 0.165, top 0.255, side 0.67
        assert resample(image, crop=FFHQ_CROP, side=67)[..., 1:-1, 1:-1].min() > 0.99


class TestDlibResNet:
    def test_config_rebuilds_it(self, embedder):
        again = DlibResNet(**embedder.config())
        again.load_state_dict(embedder.state_dict())
        assert again.config() == embedder.config() == {"crop": FFHQ_CROP}
        face = torch.rand(1, 3, 64, 64) * 2 - 1
        assert torch.equal(again(face), embedder(face))

    def test_number_of_convolutions(self, embedder):
        layers = [m for m in embedder.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len(layers) == 29

    def test_frozen_but_differentiable(self, embedder, persons):
        """The gradient of the distance agrees with a difference quotient along itself."""
        assert not any(p.requires_grad for p in embedder.parameters())
        target, other = (F.interpolate(persons[name], size=48, mode="area") for name in persons)
        image = other.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(identity_distance(embedder, image, target).sum(), image)
        step = 1e-2 * gradient / gradient.norm()
        with torch.no_grad():
            plus, minus = (identity_distance(embedder, other + sign * step, target) for sign in (1, -1))
        assert float(plus - minus) == pytest.approx(2e-2 * float(gradient.norm()), rel=0.02)

    def test_images_of_a_batch_are_independent(self, embedder, persons):
        both = torch.cat(list(persons.values()))
        alone = torch.cat([embedder(image) for image in persons.values()])
        torch.testing.assert_close(embedder(both), alone, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 48)])
    def test_other_shapes_are_refused(self, embedder, shape):
        with pytest.raises(ShapeError, match=r"expected \(B, 3, H, H\)"):
            embedder(torch.zeros(shape))


class TestPersons:
    def test_two_persons_are_told_apart(self, embedder, persons):
        assert identity_distance(embedder, persons["astronaut"], persons["hopper"]) > SAME_PERSON

    @pytest.mark.parametrize("name", ["astronaut", "hopper"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda x: x.flip(3),
            lambda x: (x + 0.25).clamp(-1, 1),
            lambda x: (x - 0.25).clamp(-1, 1),
            lambda x: x * 0.7,
            lambda x: x.roll((6, -5), (2, 3)),
            lambda x: (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(
                -1, 1
            ),
            lambda x: F.interpolate(x, size=128, mode="area"),
            lambda x: x.mean(1, keepdim=True).expand_as(x),
        ],
        ids=["mirrored", "brighter", "darker", "paler", "shifted", "noisy", "half-size", "grey"],
    )
    def test_changed_copies_stay_the_same_person(self, embedder, persons, name, change):
        own = persons[name]
        other = persons["hopper" if name == "astronaut" else "astronaut"]
        near = float(identity_distance(embedder, own, change(own)))
        assert near < 0.5 * SAME_PERSON
        assert near < 0.5 * float(identity_distance(embedder, other, change(own)))

    def test_distance_is_squared_and_symmetric(self, embedder, persons):
        a, b = persons.values()
        expected = (embedder(a) - embedder(b)).norm(dim=1) ** 2
        torch.testing.assert_close(identity_distance(embedder, a, b), expected)
        assert torch.equal(identity_distance(embedder, a, b), identity_distance(embedder, b, a))
        assert identity_distance(embedder, a, a) == 0

    def test_unequal_batches_are_refused(self, embedder, persons):
        a, b = persons.values()
        with pytest.raises(ShapeError, match="B being equal"):
            identity_distance(embedder, a, torch.cat([a, b]))


class TestFile:
    def test_rounding_to_8_bits(self):
        """No weight moves by more than half a step of its output channel, and biases not at all."""
        state = {"a.weight": torch.randn(6, 4, 3, 3), "a.bias": torch.randn(6), "b.weight": torch.zeros(2, 5)}
        again = dequantise(quantise(state))
        assert again.keys() == state.keys()
        step = state["a.weight"].flatten(1).abs().amax(1) / 127
        assert ((again["a.weight"] - state["a.weight"]).abs().flatten(1).amax(1) <= 0.5001 * step).all()
        assert torch.equal(again["a.bias"], state["a.bias"])
        assert torch.equal(again["b.weight"], state["b.weight"])
        assert quantise(state)["a.weight"].dtype == torch.int8

    def test_bundled_file_is_small(self):
        stored = load_file(BUNDLED)
        weights = [value for name, value in stored.items() if name.endswith(".weight")]
        assert {value.dtype for value in weights} == {torch.int8}
        assert BUNDLED.stat().st_size < 1.02 * sum(value.numel() for value in weights)

    def test_missing_file(self, tmp_path):
        with pytest.raises(ZooError, match=r"no weights of the identity embedder.*convert_dlib"):
            load_identity(tmp_path / "none.safetensors")

    def test_wrong_kind(self):
        with pytest.raises(UnknownFormatError, match="expected kind 'identity', architecture 'DlibResNet'"):
            load_identity(zoo.path("lite0"))

    def test_no_safetensors(self, tmp_path):
        (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
        with pytest.raises(UnknownFormatError, match="not a safetensors file"):
            load_identity(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("wrong", ["missing", "unexpected"])
    def test_mismatch_is_explained(self, tmp_path, wrong):
        stored = load_file(BUNDLED)
        if wrong == "missing":
            del stored["stem.bias"]
        else:
            stored["more"] = torch.zeros(1)
        about = {"kind": "identity", "architecture": "DlibResNet"}
        save_file(stored, tmp_path / "x.safetensors", metadata={"limner": json.dumps(about)})
        with pytest.raises(KeyMismatchError, match=f"(stem.bias|more) {wrong}"):
            load_identity(tmp_path / "x.safetensors")


def write_integer(value: int) -> bytes:
    """A number as dlib writes it."""
    size = (abs(value).bit_length() + 7) // 8
    return bytes([size | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(size, "little")


def write_layer(name: str, values: np.ndarray, *, before: bytes = b"", extra: bytes = b"") -> bytes:
    sizes = b"".join(write_integer(n) for n in (values.size, 1, 1, 1))
    head = bytes([1, len(name)]) + name.encode() + before + write_integer(2)
    return head + sizes + values.astype("<f4").tobytes() + extra


class TestConversion:
    """The parser on a file written by another hand, and the real file where the package is installed."""

    @pytest.mark.parametrize("value", [0, 1, 127, 150, 255, 256, 4736, 16093282, -17, -300])
    def test_numbers(self, converter, value):
        assert converter.read_integer(b"?" + write_integer(value), 1) == (
            value,
            1 + len(write_integer(value)),
        )

    def test_layers_are_found_in_order(self, converter):
        values = [torch.randn(n).numpy() for n in (7, 2, 300, 12)]
        data = b"\x01\x01 whatever comes first"
        data += write_layer("con_4", values[0], extra=b"".join(map(write_integer, (32, 7, 7, 2, 2))))
        data += write_layer("affine_", values[1]) + b"\x01\x01\x01\x02" + write_layer("con_4", values[2])
        data += write_layer("fc_2", values[3], before=write_integer(4) + write_integer(3))
        layers = list(converter.read_layers(data))
        assert [layer.name for layer in layers] == ["con_4", "affine_", "con_4", "fc_2"]
        for layer, expected in zip(layers, values, strict=True):
            assert np.array_equal(layer.values, expected)

    def test_cut_file_is_refused(self, converter):
        data = write_layer("con_4", np.zeros(50))
        with pytest.raises(ValueError, match="a tensor of 50 numbers"):
            list(converter.read_layers(data[:-4]))

    def test_scales_and_shifts_are_folded(self, converter):
        """The whole network written as dlib does: our layers then compute scale * (convolution) + shift."""
        state = {name: torch.zeros_like(value) for name, value in DlibResNet().state_dict().items()}
        for name in ("stem.weight", "stem.bias", "embed.weight"):
            state[name].normal_()
        data, scales = b"", {}
        for name, value in state.items():
            if name == "embed.weight":
                data += write_layer("fc_2", value.t().numpy(), before=write_integer(128) + write_integer(256))
            elif name.endswith(".weight"):
                bias = state[name.replace(".weight", ".bias")]
                scales[name] = torch.randn(2, len(bias))
                data += write_layer("con_4", torch.cat([value.flatten(), bias]).numpy())
                data += write_layer("affine_", scales[name].numpy())
        found = converter.convert(data)
        x = torch.randn(1, 3, 9, 9)
        folded = F.conv2d(x, found["stem.weight"], found["stem.bias"])
        scale, shift = scales["stem.weight"].view(2, 1, -1, 1, 1)
        expected = F.conv2d(x, state["stem.weight"], state["stem.bias"]) * scale + shift
        torch.testing.assert_close(folded, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(found["embed.weight"], state["embed.weight"])
        assert found.keys() == state.keys()

    def test_the_bundled_file_can_be_made_again(self, converter):
        try:
            source = converter.find_source()
        except SystemExit as reason:
            pytest.skip(f"needs the package of 100 MB: {reason}")
        packed = quantise(converter.convert(source.read_bytes()))
        stored = load_file(BUNDLED)
        assert packed.keys() == stored.keys()
        assert all(torch.equal(packed[name], stored[name]) for name in stored)

    def test_another_version_is_refused(self, converter, monkeypatch):
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
        with pytest.raises(SystemExit, match=r"9\.9 is installed, expected 0\.1\.0"):
            converter.find_source()
