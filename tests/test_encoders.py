"""Encoders against plain formulas in float64, their checkpoints both ways, and inversion with them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import make_generator
from torch import Tensor, nn

from limner import checkpoints, media
from limner.app import cli
from limner.checkpoints import Checkpoint
from limner.checkpoints.psp import TYPES, encoder_state, encoder_type, foreign_name, load_arcface
from limner.errors import CheckpointError, KeyMismatchError, OptionError, ShapeError, UnknownFormatError
from limner.inversion import EncodeOptions, InversionOptions, invert
from limner.inversion.encode import encode_latents
from limner.latent import load_latent, render
from limner.nn.encoders import Encoder, codes_to_w_plus, mix_rows, refine, to_input
from limner.nn.irse import ArcFace, BatchNorm, face_pool

ROOT = Path(__file__).parent.parent
WIDTHS, DEPTHS = (6, 8, 10, 12), (2, 1, 2, 1)
ENDS, STRIDES = (2, 4, 5), {0: 2, 2: 2, 3: 2, 5: 2}
RES_STRIDES = {2: 2, 3: 2, 5: 2}
ROWS, W_DIM, SIZE = 8, 16, 64  # of the 32 px generator in conftest


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """``benchmarks/plain_encoders.py``."""
    spec = importlib.util.spec_from_file_location("plain_encoders", ROOT / "benchmarks/plain_encoders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stir(network: nn.Module) -> nn.Module:
    """Give every normalisation figures that are not its initial ones."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            for name, value in module.named_parameters():
                nn.init.normal_(value, 1.0 if name == "weight" else 0.0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.requires_grad_(False).eval()


def make_encoder(**changes: Any) -> Encoder:
    """Return a tiny encoder for the 32 px generator, with a mean that differs from row to row."""
    torch.manual_seed(5)
    settings = {"in_size": SIZE, "w_dim": W_DIM, "widths": WIDTHS, "depths": DEPTHS, "rows": ROWS}
    encoder = Encoder(**{**settings, **changes})
    stir(encoder)
    encoder.mean.normal_(0, 0.3)
    return encoder


KINDS: dict[str, dict[str, Any]] = {
    "GradualStyleEncoder": {},
    "Encoder4Editing": {"deltas": True},
    "BackboneEncoderUsingLastLayerIntoW": {"head": "w", "space": "w", "in_size": 256},
    "SingleStyleCodeEncoder": {"head": "w", "in_size": 256},
    "BackboneEncoderUsingLastLayerIntoWPlus": {"head": "w+", "in_size": 256},
    "BackboneEncoder": {"head": "single", "feedback": True, "in_channels": 6, "iterations": 3},
    "ResNetBackboneEncoder": {
        "head": "single",
        "body": "resnet34",
        "feedback": True,
        "in_channels": 6,
        "iterations": 2,
    },
    "ProgressiveBackboneEncoder": {
        "head": "single",
        "deltas": True,
        "feedback": True,
        "in_channels": 6,
        "iterations": 2,
    },
    "ResNetProgressiveBackboneEncoder": {
        "head": "single",
        "body": "resnet34",
        "deltas": True,
        "feedback": True,
        "in_channels": 6,
        "iterations": 5,
    },
}


def plain_codes(plain: ModuleType, encoder: Encoder, image: Tensor) -> Tensor:
    state = {name: value.double() for name, value in encoder_state(encoder).items()}
    strides = RES_STRIDES if encoder.config()["body"] == "resnet34" else STRIDES
    return plain.encode(state, image.double(), deltas=encoder.deltas, ends=ENDS, strides=strides)


def test_every_published_type_has_a_tiny_one_here():
    assert set(KINDS) == set(TYPES)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_codes_are_those_of_the_plain_formula(plain, name, batch):
    encoder = make_encoder(**{**KINDS[name], "in_size": SIZE})
    assert encoder_type(encoder) == name
    image = torch.randn(batch, encoder.in_channels, encoder.in_size, encoder.in_size)
    wanted = plain_codes(plain, encoder, image)
    with torch.no_grad():
        quick = encoder.predict(image)
    image.requires_grad_(True)
    slow = encoder.predict(image)
    assert slow.requires_grad
    for codes in (quick, slow.detach()):
        assert codes.shape == wanted.shape
        assert float((codes - wanted).abs().max() / wanted.std()) < 1e-5
    # Absolute codes: the mean is added once, to every row its own.
    with torch.no_grad():
        codes = encoder(image)
    expected = wanted[:, None] if wanted.ndim == 2 and encoder.space == "w+" else wanted
    torch.testing.assert_close(codes.double(), expected + encoder.mean.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "head"), [(1, "pyramid"), (19, "pyramid")])
def test_sketches_and_label_maps(plain, channels, head):
    encoder = make_encoder(in_channels=channels, head=head)
    image = torch.rand(2, channels, SIZE, SIZE)
    with torch.no_grad():
        codes = encoder.predict(image)
    wanted = plain_codes(plain, encoder, image)
    assert float((codes - wanted).abs().max() / wanted.std()) < 1e-5
    with pytest.raises(ShapeError, match=rf"expected \(B, {channels}, 64, 64\)"):
        encoder(torch.zeros(1, 3, SIZE, SIZE))


@pytest.mark.parametrize("name", ["GradualStyleEncoder", "ResNetProgressiveBackboneEncoder"])
def test_gradients_reach_image_and_every_weight(plain, name):
    encoder = make_encoder(**KINDS[name]).double().requires_grad_(True)
    image = torch.randn(1, encoder.in_channels, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    resnet = encoder.config()["body"] == "resnet34"
    weights = {foreign_name(key, resnet=resnet): value for key, value in encoder.named_parameters()}
    ours = torch.autograd.grad(encoder.predict(image).square().sum(), [image, *weights.values()])
    foreign = encoder_state(encoder)
    theirs = [foreign[key].requires_grad_(True) for key in weights]
    strides = RES_STRIDES if resnet else STRIDES
    codes = plain.encode(foreign, image, deltas=encoder.deltas, ends=ENDS, strides=strides)
    wanted = torch.autograd.grad(codes.square().sum(), [image, *theirs])
    for key, got, want in zip(["image", *weights], ours, wanted, strict=True):
        assert want.any() or "res_layer.5" in key, key  # a gate of one channel may be shut
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9 * float(want.abs().max()), msg=key)


@pytest.mark.parametrize("body", ["ir-se50", "resnet34"])
def test_training_mode_normalises_by_the_batch(body):
    encoder = make_encoder(body=body).train()
    image = torch.randn(4, 3, SIZE, SIZE)
    before = encoder.body.get_submodule("stem.norm").running_mean.clone()
    first = encoder.predict(image)
    shifted = encoder.predict(3 * image)
    assert not torch.equal(encoder.body.get_submodule("stem.norm").running_mean, before)
    # The stem's normalisation takes the scale away again, but for its eps.
    torch.testing.assert_close(first, shifted, rtol=1e-2, atol=1e-3)


def test_stages_free_one_row_after_the_other():
    encoder = make_encoder(deltas=True)
    image = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        full = encoder.predict(image)
        stages = [encoder.predict(image, stage=stage) for stage in range(ROWS)]
    assert torch.equal(stages[0], full[:, :1].expand_as(full))
    for row, (earlier, later) in enumerate(itertools.pairwise(stages), 1):
        changed = (earlier != later).any(2)[0]
        assert changed.tolist() == [i == row for i in range(ROWS)]
    torch.testing.assert_close(stages[-1], full, rtol=0, atol=0)


def test_refining_feeds_the_painted_picture_back(generator):
    encoder = make_encoder(**KINDS["BackboneEncoder"])
    image = torch.randn(2, 3, SIZE, SIZE).clamp(-1, 1)
    with torch.no_grad():
        passes = refine(encoder, generator, image)
        average = face_pool(generator.synthesis(encoder.mean[None]), SIZE).expand(2, -1, -1, -1)
        first = encoder.predict(torch.cat([image, average], 1)) + encoder.mean
        second = first + encoder.predict(torch.cat([image, face_pool(generator.synthesis(first), SIZE)], 1))
    assert len(passes) == 3
    torch.testing.assert_close(passes[0], first)
    torch.testing.assert_close(passes[1], second)
    assert len(refine(encoder, generator, image, iterations=1)) == 1
    assert len(refine(make_encoder(), generator, image, iterations=4)) == 1


def test_z_plus_codes_go_through_the_mapping_network_row_by_row(generator):
    encoder = make_encoder(space="z+")
    image = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        codes = encoder(image)
        w_plus = codes_to_w_plus(generator, encoder, codes)
        for row in range(ROWS):
            torch.testing.assert_close(w_plus[:, row], generator.mapping(codes[:, row]))
        latent = encode_latents(generator, encoder, image)[-1]
    assert latent.space == "z+"
    torch.testing.assert_close(latent.w_plus(generator), w_plus)


def test_pictures_of_other_sizes_are_brought_to_the_encoders():
    encoder = make_encoder()
    image = torch.rand(1, 3, 2 * SIZE, 2 * SIZE)
    smaller = to_input(encoder, image)
    assert smaller.shape == (1, 3, SIZE, SIZE)
    assert float(smaller.std()) < 0.75 * float(image.std())  # filtered, not thinned out
    assert to_input(encoder, smaller) is smaller


def test_pooling_is_by_means():
    image = torch.rand(1, 3, 64, 64)
    blocks = image.reshape(1, 3, 16, 4, 16, 4).mean((3, 5))
    torch.testing.assert_close(face_pool(image, 16), blocks)
    assert torch.equal(face_pool(blocks, 64)[:, :, ::4, ::4], blocks)


def test_rows_are_replaced_mixed_or_emptied():
    codes, other = torch.randn(3, ROWS, W_DIM), torch.randn(1, ROWS, W_DIM)
    rows = [2, 5]
    keep = [row for row in range(ROWS) if row not in rows]
    replaced, mixed = mix_rows(codes, rows, other), mix_rows(codes, rows, other, alpha=0.25)
    assert torch.equal(replaced[:, rows], other[:, rows].expand(3, -1, -1))
    torch.testing.assert_close(mixed[:, rows], 0.25 * other[:, rows] + 0.75 * codes[:, rows])
    assert not mix_rows(codes, rows)[:, rows].any()
    for result in (replaced, mixed, mix_rows(codes, rows)):
        assert torch.equal(result[:, keep], codes[:, keep])
    with pytest.raises(ShapeError, match=r"rows \[8\] are not among the 8"):
        mix_rows(codes, [8])
    with pytest.raises(ShapeError, match="codes to mix in"):
        mix_rows(codes, rows, other[:, :4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"body": "vgg"}, "body 'vgg'"),
        ({"in_size": 100}, "in_size is 100"),
        ({"widths": (1, 2, 3)}, "4 stages"),
        ({"feedback": True, "in_channels": 3}, "so even"),
        ({"space": "w"}, "no codes in w"),
    ],
)
def test_settings_that_make_no_encoder(changes, message):
    with pytest.raises(ShapeError, match=message):
        make_encoder(**changes)


# Checkpoints


def write(path: Path, encoder: Encoder | None = None, **changes: Any) -> dict[str, Any]:
    """Write a checkpoint as pSp's programs do, with some entries changed, and return its contents."""
    generator, encoder = make_generator(), encoder or make_encoder()
    with pytest.warns(UserWarning, match="the original programs cannot load it"):
        checkpoints.save(Checkpoint(generator=generator, encoder=encoder), path)
    contents = torch.load(path, weights_only=True)
    state = {**contents["state_dict"], **changes.pop("tensors", {})}
    contents["state_dict"] = {name: value for name, value in state.items() if value is not None}
    contents |= changes
    contents = {name: value for name, value in contents.items() if value is not None}
    torch.save(contents, path)
    return contents


@pytest.mark.parametrize("name", KINDS)
def test_both_formats_give_the_same_encoder_back(name, tmp_path):
    first, native, second = tmp_path / "a.pt", tmp_path / "b.safetensors", tmp_path / "c.pt"
    encoder = make_encoder(**KINDS[name])
    contents = write(first, encoder)
    assert contents["opts"]["encoder_type"] == name
    read = checkpoints.load(first)
    assert read.format == "psp"
    checkpoints.save(read, native)
    again = checkpoints.load(native)
    with pytest.warns(UserWarning, match="cannot load it"):
        checkpoints.save(again, second)
    last = torch.load(second, weights_only=True)
    assert last["opts"] == contents["opts"]
    assert list(last["state_dict"]) == list(contents["state_dict"])
    for key, value in contents["state_dict"].items():
        assert torch.equal(last["state_dict"][key], value), key
    assert torch.equal(last["latent_avg"], contents["latent_avg"])
    for found in (read.encoder, again.encoder):
        assert isinstance(found, Encoder)
        assert found.config() == encoder.config()
        assert not found.training
        assert torch.equal(found.mean, encoder.mean)
        for key, value in encoder.state_dict().items():
            assert torch.equal(found.state_dict()[key], value), key


def test_only_what_is_wanted_is_built(tmp_path):
    write(tmp_path / "a.pt")
    read = checkpoints.load(tmp_path / "a.pt", parts=("encoder",))
    assert read.generator is None
    assert isinstance(read.encoder, Encoder)
    read = checkpoints.load(tmp_path / "a.pt", parts=("generator",))
    assert read.encoder is None
    assert read.generator is not None


def test_training_files_say_what_was_not_read(tmp_path):
    write(tmp_path / "a.pt", global_step=7, discriminator_state_dict={"x": torch.zeros(1)})
    assert checkpoints.load(tmp_path / "a.pt").metadata["not_read"] == [
        "global_step",
        "discriminator_state_dict",
    ]


def test_missing_average_comes_from_the_decoder_unless_codes_are_absolute(tmp_path):
    contents = write(tmp_path / "a.pt", latent_avg=None)
    read = checkpoints.load(tmp_path / "a.pt")
    assert isinstance(read.encoder, Encoder)
    assert read.generator is not None
    assert torch.equal(read.encoder.mean, read.generator.w_avg.expand(ROWS, -1))
    assert float(read.generator.w_avg.abs().max()) > 0
    assert "decoder's mean" in read.metadata["codes"]
    torch.save({**contents, "opts": {**contents["opts"], "start_from_latent_avg": False}}, tmp_path / "b.pt")
    absolute = checkpoints.load(tmp_path / "b.pt")
    assert isinstance(absolute.encoder, Encoder)
    assert not absolute.encoder.mean.any()
    assert "absolute" in absolute.metadata["codes"]


def test_an_encoder_alone_and_one_for_z_plus(tmp_path):
    contents = write(tmp_path / "a.pt", latent_avg=None)
    state = {name: value for name, value in contents["state_dict"].items() if name.startswith("encoder.")}
    opts = {"encoder_type": "GradualStyleEncoder", "z_plus_latent": True}
    torch.save({"state_dict": state, "opts": opts}, tmp_path / "b.pt")
    read = checkpoints.load(tmp_path / "b.pt")
    assert isinstance(read.encoder, Encoder)
    assert read.generator is None
    assert read.encoder.space == "z+"
    assert not read.encoder.mean.any()


def test_type_in_opts_decides_between_equal_tensors(tmp_path):
    contents = write(tmp_path / "a.pt")
    opts = {**contents["opts"], "encoder_type": "Encoder4Editing"}
    torch.save({**contents, "opts": opts}, tmp_path / "b.pt")
    read = checkpoints.load(tmp_path / "b.pt").encoder
    assert isinstance(read, Encoder)
    assert read.deltas
    assert read.family == "e4e"
    image = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        assert not torch.allclose(read.predict(image), make_encoder().predict(image))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tensors": {"encoder.body.3.res_layer.5.fc1.weight": None}},
            r"missing \(body\.3\.res_layer\.5\.fc1",
        ),
        ({"tensors": {"encoder.nonsense.weight": torch.zeros(2)}}, r"unknown \(nonsense\.weight\)"),
        (
            {"tensors": {"encoder.styles.2.linear.bias": torch.zeros(3)}},
            r"styles\.2\.linear\.bias: found \(3,\), expected \(16,\)",
        ),
        ({"tensors": {"encoder.latlayer1.weight": "text"}}, r"missing \(latlayer1\.weight\)"),
        ({"tensors": {"encoder.input_layer.0.weight": None}}, "expected the stem of IR-SE50"),
        ({"tensors": {"encoder.body.2.shortcut_layer.0.weight": None}}, "in 3 stages, expected 4"),
        ({"tensors": {"decoder.convs.0.conv.weight": None}}, r"decoder .* missing \(convs\.0\.conv\.weight"),
        ({"tensors": {"face_net.weight": torch.zeros(1)}}, r"neither to encoder nor decoder \(weight\)"),
        ({"opts": {}}, "no `encoder_type`"),
        ({"opts": [1]}, "`opts` of .* is a list"),
        ({"opts": {"encoder_type": "Nonsense"}}, "of type 'Nonsense'; known are GradualStyleEncoder"),
        ({"opts": {"encoder_type": "BackboneEncoder"}}, "whose head is 'single'"),
        ({"latent_avg": torch.zeros(5, W_DIM)}, r"`latent_avg` has shape \(5, 16\), expected \(8, 16\)"),
    ],
)
def test_files_that_do_not_fit_name_what_is_wrong(changes, message, tmp_path):
    write(tmp_path / "a.pt", **changes)
    with pytest.raises(KeyMismatchError, match=message) as caught:
        checkpoints.load(tmp_path / "a.pt")
    assert str(tmp_path / "a.pt") in str(caught.value)
    found = checkpoints.inspect(tmp_path / "a.pt")
    assert found.format == "psp"
    assert re.search(message, found.title)


def test_inspection_describes_the_encoder(tmp_path):
    write(tmp_path / "a.pt")
    facts = checkpoints.inspect(tmp_path / "a.pt").parts["encoder"]
    assert facts["head"] == "pyramid"
    assert facts["rows"] == ROWS
    assert facts["parameters"] == sum(value.numel() for value in make_encoder().parameters())


def test_saving_needs_both_networks(tmp_path):
    with pytest.raises(CheckpointError, match="holds an encoder of their kind and its generator"):
        checkpoints.save(Checkpoint(encoder=make_encoder()), tmp_path / "a.pt", format="psp")


# ArcFace


def arcface_state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    network = ArcFace(widths=WIDTHS, depths=DEPTHS, dimensions=9, face_px=32)
    return {foreign_name(key): value.clone() for key, value in stir(network).state_dict().items()}


def test_arcface_is_the_plain_formula(plain, tmp_path):
    state = arcface_state()
    torch.save(state, tmp_path / "ir.pth")
    network = load_arcface(tmp_path / "ir.pth")
    face = torch.randn(2, 3, 32, 32)
    x = plain.body({name: value.double() for name, value in state.items()}, face.double(), STRIDES)[-1]
    double = {name: value.double() for name, value in state.items()}
    x = plain.norm(double, "output_layer.0", x).flatten(1)
    x = torch.nn.functional.linear(x, double["output_layer.3.weight"], double["output_layer.3.bias"])
    x = plain.norm(double, "output_layer.4", x)
    torch.testing.assert_close(network.unnormalised(face).double(), x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.embed_crop(face).norm(dim=1), torch.ones(2))
    assert not any(weight.requires_grad for weight in network.parameters())
    image = torch.rand(1, 3, 256, 256, requires_grad=True)
    network(image).sum().backward()
    assert image.grad is not None
    outside = image.grad.clone()
    outside[:, :, 35:223, 32:220] = 0
    assert image.grad.any()
    assert not outside.any()
    with pytest.raises(ShapeError, match="square, FFHQ-aligned"):
        network(torch.rand(1, 3, 200, 256))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda state: [1], UnknownFormatError, "expected the tensors of model_ir_se50.pth"),
        (lambda state: {"x": torch.zeros(1)}, UnknownFormatError, r"holds \['x'\]"),
        (lambda state: {**state, "extra": torch.zeros(1)}, KeyMismatchError, r"unknown \(extra\)"),
        (
            lambda state: {k: v for k, v in state.items() if k != "output_layer.4.running_var"},
            KeyMismatchError,
            r"missing \(output_layer\.4\.running_var\)",
        ),
        (
            lambda state: {k: v for k, v in state.items() if k != "output_layer.3.weight"},
            KeyMismatchError,
            r"output_layer\.3\.weight is missing",
        ),
    ],
)
def test_other_files_are_no_arcface(change, error, message, tmp_path):
    torch.save(change(arcface_state()), tmp_path / "ir.pth")
    with pytest.raises(error, match=message):
        load_arcface(tmp_path / "ir.pth")


# Inversion


@pytest.mark.parametrize("name", ["GradualStyleEncoder", "SingleStyleCodeEncoder", "BackboneEncoder"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_picture_gets_its_codes_also_the_last_of_an_odd_batch(generator, name, size):
    encoder = make_encoder(**KINDS[name])
    image = generator(torch.randn(5, W_DIM), psi=0.5).clamp(-1, 1)
    options = InversionOptions(method=encoder.family)
    found = invert(
        generator,
        image,
        options,
        perceptual=None,
        encoder=encoder,
        encoding=EncodeOptions(encode_batch=size),
    )
    assert len(found.latent) == len(found.report) == len(found.image) == 5
    for i in range(5):
        alone = encode_latents(generator, encoder, image[i : i + 1])[-1]
        torch.testing.assert_close(found.latent[i].tensor, alone.tensor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.image, render(generator, found.latent).clamp(-1, 1), rtol=1e-4, atol=1e-4
    )
    assert {report.steps for report in found.report} == {encoder.iterations}
    error = (found.image[4] - image[4]).square().mean()
    assert found.report[4].psnr == pytest.approx(float(10 * torch.log10(4 / error)), abs=1e-3)


def test_contradictions_are_named(generator):
    image = torch.zeros(1, 3, 32, 32)
    encoder = make_encoder()

    def run(method: str = "psp", **extra: Any) -> None:
        invert(generator, image, InversionOptions(method=method), perceptual=None, **extra)

    with pytest.raises(OptionError, match="needs an encoder: name a checkpoint of it with --encoder"):
        run()
    with pytest.raises(OptionError, match="method is e4e, but the encoder is one of psp"):
        run("e4e", encoder=encoder)
    with pytest.raises(OptionError, match="no init, no mask"):
        run(encoder=encoder, mask=torch.ones(1, 1, 32, 32))
    with pytest.raises(ShapeError, match="gives 10 rows of 16, the generator of 32 px takes 8 of 16"):
        run(encoder=make_encoder(rows=10))
    with pytest.raises(ShapeError, match=r"this encoder sees \(B, 1, H, W\)"):
        run(encoder=make_encoder(in_channels=1))


def test_the_command_uses_a_checkpoint_with_its_own_decoder(tmp_path, capsys):
    write(tmp_path / "psp.pt")
    checkpoint = checkpoints.load(tmp_path / "psp.pt")
    assert checkpoint.generator is not None
    assert isinstance(checkpoint.encoder, Encoder)
    photos = []
    for i in range(3):
        z = torch.randn(1, W_DIM, generator=torch.Generator().manual_seed(i))
        pixels = media.to_pixels(checkpoint.generator(z, psi=0.5))[0]
        photos.append(str(media.write(tmp_path / f"face{i}.png", pixels)))
    words = ["--aligned", "--json", "--device", "cpu", "-o", str(tmp_path / "out")]
    encoder = ["--encoder", str(tmp_path / "psp.pt")]
    assert cli.main(["invert", *photos, "--method", "psp", *encoder, *words]) == 0
    faces = json.loads(capsys.readouterr().out)["faces"]
    assert len(faces) == 3
    for photo, face in zip(photos, faces, strict=True):
        latent = load_latent(face["files"][0]).latent
        wanted = encode_latents(
            checkpoint.generator, checkpoint.encoder, media.to_image(media.read(photo).pixels)
        )
        torch.testing.assert_close(latent.tensor, wanted[-1].tensor, rtol=1e-4, atol=1e-5)
        assert face["method"] == "psp"
        assert face["steps"] == 1
    for wrong, message in (
        (["--method", "e4e", *encoder], "method is e4e, but the encoder is one of psp"),
        (["--method", "psp"], "name its checkpoint with --encoder"),
        (["--method", "w", *encoder], "--encoder is not used by it"),
    ):
        assert cli.main(["invert", photos[0], *wrong, *words, "--overwrite"]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
