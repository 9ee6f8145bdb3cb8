"""HyperInverter: its networks against plain formulas, its files, the inversion method and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner import checkpoints, media
from limner.app.cli import main
from limner.checkpoints.checkpoint import Checkpoint
from limner.errors import CheckpointError, KeyMismatchError, OptionError, ShapeError
from limner.inversion import EncodeOptions, InversionOptions, invert
from limner.latent import load_latent, render
from limner.nn import deltas
from limner.nn.encoders import Encoder
from limner.nn.hyperinverter import (
    LAYER_SETS,
    HyperInverter,
    code_row,
    interpolate,
    module_name,
    paint,
    target_layers,
)
from limner.nn.stylegan1 import Generator as StyleGan1Generator

TINY = {"in_size": 64, "w_dim": 16, "widths": (4, 5, 6, 8), "hidden": 5, "features": 3}
DEPTHS = {"depths": (1, 1, 1, 1), "map_depths": (1, 1, 1, 1)}


def make_network(generator, layer_set: str = LAYER_SETS[0], **changes) -> HyperInverter:
    """Return tiny networks in which nothing is at a neutral initial value."""
    torch.manual_seed(5)
    targets = target_layers(generator, layer_set)
    network = HyperInverter(rows=generator.num_rows, targets=targets, **{**TINY, **DEPTHS, **changes})
    for name, value in network.named_parameters():
        if value.ndim == 1 or name.endswith((".w1", ".w2")):
            nn.init.normal_(value, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    return network.eval().requires_grad_(False)


def photos(count: int, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def naive_residual(network: HyperInverter, target: str, w_map: Tensor, photo_map: Tensor) -> Tensor:
    """Compute one change of one picture, (C, side, side) maps, entry by entry of its definition."""
    part = network.regressors[module_name(target)]
    x = torch.cat([w_map, photo_map])
    x = torch.einsum("oi,ihw->ohw", part.fuse.weight[:, :, 0, 0], x) + part.fuse.bias[:, None, None]
    x = (x - x.mean((1, 2), keepdim=True)) / (x.var((1, 2), keepdim=True, unbiased=False) + 1e-5).sqrt()
    x = x.clamp_min(0)[None]
    for i, conv in enumerate(part.convs):
        x = F.conv2d(x, conv.weight, conv.bias, stride=2 if i else 1, padding=1).clamp_min(0)
    vector = x.flatten()
    shape = network.targets[target]
    outputs, inputs, pixels = shape[0], shape[1], math.prod(shape[2:])
    hidden = len(vector)
    first = [
        [vector @ part.w1[:, i * hidden + d] + part.b1[i * hidden + d] for d in range(hidden)]
        for i in range(inputs)
    ]
    flat = [
        sum(first[i][d] * part.w2[d, n] for d in range(hidden)) + part.b2[n]
        for i in range(inputs)
        for n in range(outputs * pixels)
    ]
    return torch.stack(flat).reshape(shape)


class TestNetworks:
    def test_changes_follow_their_definition(self, generator):
        network = make_network(generator, LAYER_SETS[2])
        seen, other = network.see(photos(2)), network.see(photos(2).flip(3))
        photo_maps, w_maps = network.map_encoder(seen), network.map_encoder(other)
        assert photo_maps.shape == (2, 8, 8, 2, 2)
        found = network.residuals(photo_maps, w_maps)
        assert list(found) == list(network.targets)
        rows = {
            "synthesis.layers.0.weight": 0,
            "synthesis.to_rgb.0.weight": 1,
            "synthesis.layers.1.weight": 2,
            "synthesis.layers.2.affine.weight": 3,
            "synthesis.to_rgb.1.weight": 3,
            "synthesis.layers.3.weight": 4,
        }
        for name, row in rows.items():
            expected = naive_residual(network, name, w_maps[1, row], photo_maps[1, row])
            assert found[name][1].shape == generator.state_dict()[name].shape
            assert torch.allclose(found[name][1], expected, atol=1e-5), name

    def test_maps_are_pyramid_and_strided_convolutions(self, generator):
        network = make_network(generator)
        encoder, image = network.map_encoder, network.see(photos(1))
        large, middle, small = encoder.body(image)
        heads = encoder.head

        def up(x: Tensor, side: Tensor, conv: nn.Conv2d) -> Tensor:
            y = F.interpolate(x, size=side.shape[2:], mode="bilinear", align_corners=True)
            return y + F.conv2d(side, conv.weight, conv.bias)

        levels = [small, up(small, middle, heads.lateral[0])]
        levels.append(up(levels[1], large, heads.lateral[1]))
        found = encoder(image)
        for row, count in enumerate((1, 1, 1, 2, 2, 2, 2, 3)):
            x = levels[count - 1]
            for conv in heads.rows[row].convs:
                x = F.leaky_relu(F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1), 0.01)
            assert len(heads.rows[row].convs) == count
            assert torch.allclose(found[:, row], x, atol=1e-5)

    def test_whole_pass_and_each_picture_by_itself(self, generator):
        network = make_network(generator)
        found = network(generator, photos(3, 128))
        assert torch.allclose(found.w, network.encoder.predict(network.see(photos(3, 128))) + generator.w_avg)
        assert torch.allclose(found.w_image, generator.synthesis(generator.broadcast(found.w)), atol=1e-5)
        painted = paint(generator, found.w, found.residuals)
        alone = network(generator, photos(3, 128)[1:2])
        for name, value in found.residuals.items():
            assert torch.allclose(value[1:2], alone.residuals[name], atol=1e-4), name
        changed = deltas.apply(generator, [(found.delta(1), 1.0)])
        expected = changed.synthesis(generator.broadcast(found.w[1:2]))
        assert torch.allclose(painted[1:2], expected, atol=1e-4)
        assert not torch.allclose(painted, found.w_image, atol=0.05)

    def test_painting_leaves_the_generator_and_lets_gradients_through(self, generator):
        network = make_network(generator).requires_grad_(True)
        before = {name: value.clone() for name, value in generator.state_dict().items()}
        found = network(generator, photos(1))
        paint(generator, found.w, found.residuals).square().mean().backward()
        assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
        missing = [name for name, value in network.named_parameters() if value.grad is None]
        assert missing == []

    def test_blending_two_pictures(self, generator):
        network = make_network(generator)
        first, second = (network(generator, photos(2)[i : i + 1]) for i in range(2))
        between = interpolate(first, second, [0.0, 0.25, 1.0])
        assert torch.equal(between.w[0], first.w[0])
        assert torch.allclose(between.w[2], second.w[0])
        name = "synthesis.to_rgb.2.weight"
        expected = 0.75 * first.residuals[name][0] + 0.25 * second.residuals[name][0]
        assert torch.allclose(between.residuals[name][1], expected, atol=1e-6)

    def test_layer_sets(self, generator):
        counts = {name: len(target_layers(generator, name)) for name in LAYER_SETS}
        assert counts == {LAYER_SETS[0]: 11, LAYER_SETS[1]: 7, LAYER_SETS[2]: 22}
        assert [code_row(name) for name in target_layers(generator)] == [0, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7]
        with pytest.raises(ShapeError, match="no weight"):
            code_row("synthesis.layers.0.bias")
        with pytest.raises(ShapeError, match="conv_without_bias"):
            target_layers(generator, "everything")

    def test_another_generator_is_refused(self, generator):
        network = make_network(generator)
        other = type(generator)(**{**generator.config(), "channels": {4: 8, 8: 8, 16: 8, 32: 6}})
        with pytest.raises(ShapeError, match=r"layers.5.weight is \(6, 8, 3, 3\), expected \(8, 8, 3, 3\)"):
            network(other, photos(1))
        first = StyleGan1Generator(
            resolution=32, channels=dict.fromkeys((4, 8, 16, 32), 8), z_dim=16, w_dim=16
        )
        with pytest.raises(ShapeError, match="StyleGAN2"):
            network(first, photos(1))


class TestFiles:
    @pytest.mark.parametrize(
        ("bodies", "layer_set"),
        [
            (("ir-se50", "ir-se50"), LAYER_SETS[0]),
            (("resnet34", "resnet34"), LAYER_SETS[1]),
            (("ir-se50", "resnet34"), LAYER_SETS[2]),
        ],
    )
    def test_there_and_back(self, generator, tmp_path, bodies, layer_set):
        network = make_network(generator, layer_set, body=bodies[0], map_body=bodies[1])
        checkpoints.save(Checkpoint(encoder=network), tmp_path / "a.pt")
        read = checkpoints.load(tmp_path / "a.pt")
        assert read.format == "hyperinverter"
        assert read.generator is None
        assert read.metadata["opts"]["target_shape_name"] == layer_set
        assert isinstance(read.encoder, HyperInverter)
        assert read.encoder.targets == network.targets
        assert all(
            torch.equal(read.encoder.state_dict()[name], value)
            for name, value in network.state_dict().items()
        )
        checkpoints.save(read, tmp_path / "a.safetensors")
        native = checkpoints.load(tmp_path / "a.safetensors").encoder
        assert isinstance(native, HyperInverter)
        assert native.config() == read.encoder.config()
        one, two = (net(generator, photos(1)).w for net in (network, native))
        assert torch.equal(one, two)

    @pytest.fixture
    def contents(self, generator, tmp_path) -> dict:
        checkpoints.save(Checkpoint(encoder=make_network(generator)), tmp_path / "good.pt")
        return torch.load(tmp_path / "good.pt", weights_only=True)

    def test_what_training_adds_is_named_and_left_out(self, contents, tmp_path):
        contents["encoder_optimizer"] = {"state": {}}
        contents["state_dict"]["discriminator.b4.conv.weight"] = torch.zeros(2)
        torch.save(contents, tmp_path / "a.pt")
        read = checkpoints.load(tmp_path / "a.pt")
        assert read.metadata["not_read"] == ["encoder_optimizer"]
        assert "NVIDIA pickle" in read.metadata["generator"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c["opts"].update(output_size="big"), "output_size 'big'"),
            (lambda c: c["opts"].update(output_size=64), r"14 layers, but there are 11 regressors"),
            (lambda c: c["opts"].update(output_size=16), "lacks"),
            (lambda c: c["opts"].update(hidden_dim=64), "hidden_dim 64, but its matrices have 5"),
            (lambda c: c["opts"].update(target_shape_name="all_without_bias"), "22 layers"),
            (lambda c: c.update(opts=[1, 2]), "expected the options"),
            (lambda c: c["state_dict"].pop("w_bar_encoder.styles.3.convs.2.bias"), "1 tensors are missing"),
            (lambda c: c["state_dict"].update({"hypernet.extra": torch.zeros(1)}), "unknown"),
            (
                lambda c: c["state_dict"].update(
                    {"hypernet.weight_regressors.b8_conv0_weight.w1": torch.zeros(7)}
                ),
                "make no weight",
            ),
            (lambda c: c["state_dict"].pop("w_encoder.input_layer.0.weight"), "the first encoder of"),
        ],
    )
    def test_files_that_do_not_fit(self, contents, tmp_path, change, message):
        change(contents)
        torch.save(contents, tmp_path / "a.pt")
        with pytest.raises(KeyMismatchError, match=message):
            checkpoints.load(tmp_path / "a.pt")

    def test_writing_needs_a_hyperinverter(self, generator, tmp_path):
        with pytest.raises(CheckpointError, match="holds one"):
            checkpoints.save(Checkpoint(generator=generator), tmp_path / "a.pt", format="hyperinverter")


class TestInversion:
    def test_many_pictures_in_small_batches(self, generator):
        network = make_network(generator)
        told = []
        found = invert(
            generator,
            photos(3),
            InversionOptions(method="hyper"),
            perceptual=None,
            encoder=network,
            encoding=EncodeOptions(encode_batch=2),
            on_step=lambda *told_now: told.append(told_now),
        )
        assert (found.latent.space, len(found.latent), len(found.report), len(told)) == ("w", 3, 3, 2)
        assert found.delta is None
        assert found.deltas is not None
        for i, delta in enumerate(found.deltas):
            own = render(deltas.apply(generator, [(delta, 1.0)]), found.latent[i]).clamp(-1, 1)
            assert torch.allclose(found.image[i : i + 1], own, atol=1e-4)
            one = found.one(i)
            assert one.delta is delta
            assert (len(one.latent), one.report) == (1, [found.report[i]])
            assert torch.equal(one.image, found.image[i : i + 1])
        single = invert(
            generator, photos(1), InversionOptions(method="hyper"), perceptual=None, encoder=network
        )
        assert single.delta is not None
        assert single.report[0].method == "hyper"
        assert torch.allclose(single.image, found.image[:1], atol=1e-4)

    def test_wrong_or_missing_networks(self, generator):
        options = InversionOptions(method="hyper")
        with pytest.raises(OptionError, match=r"needs a HyperInverter.*got none"):
            invert(generator, photos(1), options, perceptual=None)
        encoder = Encoder(
            rows=8, head="w", space="w", in_size=32, w_dim=16, widths=(4, 4, 4, 4), depths=(1,) * 4
        )
        with pytest.raises(OptionError, match="got Encoder"):
            invert(generator, photos(1), options, perceptual=None, encoder=encoder)
        with pytest.raises(OptionError, match="no mask"):
            invert(
                generator,
                photos(1),
                options,
                perceptual=None,
                encoder=make_network(generator),
                mask=torch.ones(1, 1, 32, 32),
            )

    def test_the_command(self, generator, tmp_path):
        network = make_network(generator)
        save = {"generator": generator, "encoder": network}
        for name, part in save.items():
            checkpoints.save(Checkpoint(**{name: part}), tmp_path / f"{name}.safetensors")
        photo = media.write(tmp_path / "face.png", media.to_pixels(photos(1))[0])
        out = tmp_path / "out"
        words = ["--aligned", "--method", "hyper", "-o", str(out)]
        for name in save:
            words += [{"generator": "--model"}.get(name, f"--{name}"), str(tmp_path / f"{name}.safetensors")]
        assert main(["invert", str(photo), *words]) == 0
        read = load_latent(out / "face_01.safetensors")
        assert read.delta is not None
        person = deltas.apply(generator, [(deltas.reconstruct(read.delta), 1.0)])
        painted = media.to_pixels(render(person, read.latent))[0].astype(int)
        assert abs(painted - media.read(Path(out / "face_01.png")).pixels.astype(int)).max() <= 2
        report = json.loads((out / "report.json").read_text())
        assert report["faces"][0]["method"] == "hyper"
