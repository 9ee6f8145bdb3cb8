"""StyleGAN1's generator: against plain formulas in float64, its interface, its files, and the commands on them."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity import foreign
from torch import Tensor

from limner import checkpoints
from limner.app.cli import main
from limner.checkpoints import stylegan1 as layouts
from limner.checkpoints.checkpoint import Checkpoint
from limner.checkpoints.networks import Skeleton
from limner.errors import CheckpointError, KeyMismatchError, ShapeError
from limner.inversion import InversionOptions, PivotalOptions, invert
from limner.latent import Latent, LayerMask, render
from limner.nn import deltas, stylegan2
from limner.nn.stylegan1 import FUSED_FROM, Generator, adain, enlarge
from limner.nn.stylegan2 import default_channels

CHANNELS = {4: 8, 8: 8, 16: 6, 32: 4}


def make_generator(resolution: int = 32, **options) -> Generator:
    """Return a tiny generator in which nothing is at its neutral initial value."""
    torch.manual_seed(3)
    channels = {size: CHANNELS.get(size, 4) for size in default_channels(resolution)}
    generator = Generator(
        resolution=resolution, channels=channels, z_dim=16, w_dim=16, mapping_depth=2, **options
    )
    for name, value in generator.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            torch.nn.init.normal_(value, 0, 10 if name.startswith("mapping") else 0.1)
    generator.w_avg.copy_(generator.mean_w(500, rng=torch.Generator().manual_seed(0)))
    return generator.eval().requires_grad_(False)


def naive_image(state: dict[str, Tensor], w_plus: Tensor, eps: float) -> Tensor:
    """Paint with the formulas as they are written, in float64: nothing fused, nothing in place."""
    state = {name: value.double() for name, value in state.items()}
    taps = torch.tensor([1.0, 2.0, 1.0]).double()
    blur = torch.outer(taps, taps)[None, None] / 16
    x = state["synthesis.const"][None].repeat(len(w_plus), 1, 1, 1)
    for i in range(w_plus.shape[1]):
        part = {
            name.removeprefix(f"synthesis.layers.{i}."): value
            for name, value in state.items()
            if name.startswith(f"synthesis.layers.{i}.")
        }
        size = 4 << i // 2
        if i:
            kernel = part["weight"] * math.sqrt(2 / part["weight"][0].numel())
            if i % 2 == 0:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                kernel = kernel.flip(2, 3) if size >= FUSED_FROM else kernel
            x = F.conv2d(x, kernel, padding=1)
            if i % 2 == 0:
                x = F.conv2d(x, blur.repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])
        x = x + part["noise_strength"][:, None, None] * part["noise"]
        x = F.leaky_relu(x + part["bias"][:, None, None], 0.2)
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
        styles = w_plus[:, i].double() @ (part["affine.weight"] / 4).t() + part["affine.bias"]  # sqrt(16) = 4
        scale, shift = styles[:, : x.shape[1], None, None], styles[:, x.shape[1] :, None, None]
        x = (x - mean) / (var + eps).sqrt() * (scale + 1) + shift
    weight = state["synthesis.to_rgb.0.weight"][:, :, 0, 0] / math.sqrt(x.shape[1])
    return torch.einsum("oi,bihw->bohw", weight, x) + state["synthesis.to_rgb.0.bias"][:, None, None]


class TestNetwork:
    @pytest.mark.parametrize("resolution", [32, FUSED_FROM])
    def test_agrees_with_the_plain_formulas(self, resolution):
        generator = make_generator(resolution)
        w_plus = torch.randn(2, generator.num_rows, 16)
        expected = naive_image(generator.state_dict(), w_plus, 1e-8)
        near = {"rtol": 0, "atol": 1e-4 * float(expected.std())}
        assert torch.allclose(generator.synthesis(w_plus).double(), expected, **near)
        generator.requires_grad_(True)  # another way through the layers
        assert torch.allclose(generator.synthesis(w_plus).double(), expected, **near)
        assert torch.allclose(generator.double().synthesis(w_plus.double()), expected, atol=1e-10)

    def test_mapping_follows_the_formula(self):
        generator = make_generator().double()
        z = torch.randn(3, 16).double()
        x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
        for layer in generator.mapping.layers:
            x = F.leaky_relu(x @ layer.weight.t() * 0.01 * math.sqrt(2 / 16) + layer.bias * 0.01, 0.2)
        assert torch.allclose(generator.mapping(z), x, atol=1e-12)

    def test_first_and_second_derivatives(self):
        y = torch.randn(2, 2, 3, 3).double().requires_grad_()
        bias, strength = (torch.randn(2).double().requires_grad_() for _ in range(2))
        styles, noise = (torch.randn(*shape).double().requires_grad_() for shape in ((2, 4), (3, 3)))

        def layer(y: Tensor, bias: Tensor, styles: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
            return adain(y.clone(), bias, styles, noise, strength, eps=1e-5)

        assert torch.autograd.gradcheck(layer, (y, bias, styles, noise, strength))
        assert torch.autograd.gradgradcheck(layer, (y, bias, styles, noise, strength), fast_mode=True)
        weight = torch.randn(1, 2, 3, 3).double().requires_grad_()
        for rotated in (False, True):
            inputs = (y[:1, :, :2, :2].detach().requires_grad_(), weight)
            assert torch.autograd.gradgradcheck(
                lambda a, b, r=rotated: enlarge(a, b, rotated=r), inputs, fast_mode=True
            )

    def test_a_dead_channel_stays_finite(self):
        y = torch.zeros(1, 2, 8, 8)
        out = adain(y, torch.tensor([5.0, 0.0]), torch.zeros(1, 4), None, torch.zeros(2), eps=1e-8)
        assert torch.equal(out, torch.zeros(1, 2, 8, 8))

    def test_interface_is_that_of_the_other_generator(self):
        generator = make_generator()
        assert isinstance(generator, stylegan2.Generator)
        assert (generator.resolution, generator.num_rows, generator.z_dim, generator.w_dim) == (32, 8, 16, 16)
        assert generator.synthesis.style_names[:4] == ["4.const", "4.conv", "8.up", "8.conv"]
        assert [tuple(s.shape) for s in generator.synthesis.styles(torch.zeros(2, 8, 16))] == [
            (2, 2 * CHANNELS[size]) for size in CHANNELS for _ in range(2)
        ]
        again = Generator(**generator.config()).requires_grad_(False)
        again.load_state_dict(generator.state_dict())
        z = torch.randn(2, 16)
        assert torch.equal(again(z), generator(z))
        w_plus = generator.broadcast(generator.mapping(z))
        pulled = generator.truncate(w_plus, 0.7, 5)
        assert torch.allclose(
            pulled[:, :5], generator.w_avg + 0.7 * (w_plus[:, :5] - generator.w_avg), atol=1e-6
        )
        assert torch.equal(pulled[:, 5:], w_plus[:, 5:])
        for code in (
            Latent("z", z),
            Latent("w+", w_plus),
            Latent("s", tuple(generator.synthesis.styles(w_plus))),
        ):
            assert torch.allclose(render(generator, code), generator(z), atol=1e-5)

    def test_noise_and_edits(self):
        generator = make_generator()
        w_plus = torch.randn(1, 8, 16)
        maps = [layer.get_buffer("noise") for layer in generator.synthesis.layers]
        assert torch.equal(generator.synthesis(w_plus, maps), generator.synthesis(w_plus))
        silent = generator.synthesis(w_plus, "none")
        assert not torch.allclose(silent, generator.synthesis(w_plus))
        assert torch.equal(silent, generator.synthesis(w_plus, [torch.zeros_like(m) for m in maps]))
        seen = []
        generator.synthesis(w_plus, edit=lambda i, x: seen.append((i, x.shape[-1])) or x)
        assert seen == [(i, 4 << i // 2) for i in range(8)]
        with pytest.raises(ShapeError, match="no image at every resolution"):
            generator.synthesis.stages([])
        with pytest.raises(ShapeError, match="expected 8"):
            generator.synthesis_from_styles([torch.zeros(1, 16)] * 3)

    def test_masks_by_size_and_owners_of_tensors(self):
        generator = make_generator()
        assert LayerMask("8px-16px").rows(generator).tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
        assert LayerMask("s:4.const,s:32.up").styles(generator).tolist() == [1, 0, 0, 0, 0, 0, 1, 0]
        owners = {name: deltas.style_vector(name, generator) for name in generator.state_dict()}
        assert owners["synthesis.const"] == 0
        assert owners["synthesis.layers.5.noise_strength"] == 5
        assert owners["synthesis.to_rgb.0.weight"] == 7
        assert owners["w_avg"] is owners["mapping.layers.0.bias"] is None

    def test_published_sizes(self):
        with Skeleton():
            generator = Generator(resolution=1024)
        assert generator.config()["channels"] == {
            **dict.fromkeys((4, 8, 16, 32), 512),
            64: 256,
            128: 128,
            256: 64,
            512: 32,
            1024: 16,
        }
        # The original's generator has 26,219,627 trainable numbers; those of eight more toRGB layers are not used.
        unused = 3 * (4 * 512 + 256 + 128 + 64 + 32 + 8)
        assert sum(value.numel() for value in generator.parameters()) + unused == 26_219_627
        with pytest.raises(ShapeError, match="no entry"):
            Generator(resolution=64, channels=CHANNELS)


class TestInversion:
    def test_search_in_w_plus_and_pivotal_tuning_find_a_picture(self):
        generator = make_generator()
        target = generator(torch.randn(1, 16)).clamp(-1, 1)
        options = InversionOptions(steps=15, fit_noise=False, mean_samples=50)
        found = invert(generator, target, options, perceptual=None)
        start = render(generator, Latent("w", generator.w_avg[None])).clamp(-1, 1)
        assert float((found.image - target).square().mean()) < 0.7 * float((start - target).square().mean())
        tuned = invert(
            generator,
            target,
            InversionOptions(method="pivotal", steps=2, mean_samples=50),
            perceptual=None,
            pivotal=PivotalOptions(tune_steps=2, tune_layers="8px-16px"),
        )
        assert tuned.delta is not None
        assert {name.split(".")[2] for name in tuned.delta} == {"2", "3", "4", "5"}


class TestFiles:
    def test_lernapparat_there_and_back_is_exact(self, tmp_path):
        generator = make_generator(norm_eps=layouts.LERNAPPARAT_EPS)
        state = layouts.state_dict(generator)
        assert sum(name.endswith("intermediate.kernel") for name in state) == 3
        torch.save(state, tmp_path / "a.pt")
        read = checkpoints.load(tmp_path / "a.pt")
        assert read.format == "lernapparat"
        assert isinstance(read.generator, Generator)
        assert read.generator.config() == generator.config()
        assert "4096 latents" in read.metadata["w_avg"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*original programs cannot load it.*")
            checkpoints.save(read, tmp_path / "b.pt")  # the ending alone says lernapparat
        back = torch.load(tmp_path / "b.pt", weights_only=True)
        assert list(back) == list(state)
        assert all(torch.equal(back[name], value) for name, value in state.items())

    def test_mean_of_a_truncation_module_is_read(self, tmp_path):
        state = layouts.state_dict(make_generator()) | {"truncation.avg_latent": torch.arange(16.0)}
        torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.pt")
        read = checkpoints.load(tmp_path / "a.pt")
        assert read.generator is not None
        assert torch.equal(read.generator.w_avg, torch.arange(16.0))

    def test_writing_says_what_is_lost_and_refuses_other_networks(self, tmp_path, generator):
        with pytest.warns(UserWarning, match="mean of w and noise maps.*eps 1e-05.*cannot load"):
            checkpoints.save(
                Checkpoint(generator=make_generator(), metadata={"w_avg": "stored"}), tmp_path / "a.pt"
            )
        with pytest.raises(CheckpointError, match="has a StyleGAN2 generator"):
            checkpoints.save(Checkpoint(generator=generator), tmp_path / "b.pt", format="lernapparat")
        with pytest.raises(CheckpointError, match="no place for StyleGAN1"):
            checkpoints.save(Checkpoint(generator=make_generator()), tmp_path / "b.pt", format="rosinality")
        assert not (tmp_path / "b.pt").exists()

    def test_native_there_and_back_is_exact(self, tmp_path):
        generator = make_generator()
        checkpoints.save(Checkpoint(generator=generator), tmp_path / "a.safetensors")
        read = checkpoints.load(tmp_path / "a.safetensors").generator
        assert type(read) is Generator
        assert read.config() == generator.config()
        assert all(
            torch.equal(value, read.state_dict()[name]) for name, value in generator.state_dict().items()
        )

    def test_unknown_architecture_is_refused(self, tmp_path):
        from safetensors.torch import save_file

        header = {"version": 1, "kind": "model", "generator": {"architecture": "stylegan9", "resolution": 32}}
        save_file(
            {"generator.w_avg": torch.zeros(4)}, tmp_path / "a.safetensors", {"limner": json.dumps(header)}
        )
        with pytest.raises(KeyMismatchError, match="'stylegan9'.*update Limner"):
            checkpoints.load(tmp_path / "a.safetensors")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("g_synthesis.blocks.8x8.conv1.weight"), "1 tensors are missing"),
            (lambda s: s.update({"g_synthesis.blocks.8x8.conv9.weight": torch.zeros(1)}), "conv9.weight"),
            (
                lambda s: s.update({"g_synthesis.torgb.weight": torch.zeros(3, 9, 1, 1)}),
                r"found \(3, 9, 1, 1\)",
            ),
            (lambda s: s.update({"g_mapping.dense0.bias": "text"}), "unknown"),
            (
                lambda s: s.update(
                    {"g_synthesis.blocks.8x8.conv0_up.intermediate.kernel": torch.ones(1, 1, 3, 3)}
                ),
                "intermediate.kernel",
            ),
        ],
    )
    def test_files_that_do_not_fit(self, tmp_path, change, message):
        state = layouts.state_dict(make_generator())
        change(state)
        torch.save(state, tmp_path / "a.pt")
        with pytest.raises(KeyMismatchError, match=message):
            checkpoints.load(tmp_path / "a.pt")


def tf_variables(generator: Generator) -> dict[str, np.ndarray]:
    """Return a generator's tensors as TensorFlow names them, with what progressive growing leaves behind."""
    state, named = generator.state_dict(), {}
    for row in layouts.rows(generator.resolution, 2):
        assert row.tensorflow is not None
        name, operation = row.tensorflow
        named[name] = operation.from_limner(state[row.limner]).contiguous().numpy()
    named["lod"] = named["G_synthesis/lod"] = np.zeros((), np.float32)
    named["G_synthesis/ToRGB_lod1/weight"] = np.ones((1, 1, 6, 3), np.float32)
    named["G_synthesis/ToRGB_lod1/bias"] = np.ones(3, np.float32)
    return named


class TestTensorFlow:
    def write(self, path: Path, variables: dict[str, np.ndarray], **options) -> Path:
        foreign.write_tensorflow(path, {"G": variables, "D": {"lod": np.zeros(())}}, options)
        return path

    def read(self, path: Path) -> Generator:
        found = checkpoints.load(path, parts=("generator",)).generator
        assert type(found) is Generator
        return found

    def test_every_tensor_arrives(self, tmp_path):
        generator = make_generator(FUSED_FROM)
        file = self.write(tmp_path / "a.pkl", tf_variables(generator), num_channels=3, resolution=FUSED_FROM)
        read = checkpoints.load(file)
        assert (read.format, type(read.generator), type(read.raw_generator)) == (
            "nvlabs-tf1",
            Generator,
            Generator,
        )
        found = self.read(file)
        assert found.config() == generator.config()
        assert all(
            torch.equal(value, found.state_dict()[name]) for name, value in generator.state_dict().items()
        )
        assert "not read" in read.metadata["discriminator"]

    def test_networks_that_never_or_always_fuse_are_turned(self, tmp_path):
        generator = make_generator(FUSED_FROM)
        weights = generator.state_dict()
        for fused in (False, True):
            file = self.write(tmp_path / f"{fused}.pkl", tf_variables(generator), fused_scale=fused)
            read = self.read(file).state_dict()
            for i in range(1, 12):
                name, size = f"synthesis.layers.{i}.weight", 4 << i // 2
                turned = i % 2 == 0 and (size >= FUSED_FROM) != fused
                assert torch.equal(read[name], weights[name].flip(2, 3) if turned else weights[name]), name

    def test_another_multiplier_of_the_mapping_network(self, tmp_path):
        generator = make_generator()
        read = self.read(self.write(tmp_path / "a.pkl", tf_variables(generator), mapping_lrmul=0.02))
        for name in ("weight", "bias"):
            value = generator.mapping.layers[1].get_parameter(name)
            assert torch.allclose(read.mapping.layers[1].get_parameter(name), 2 * value)

    def test_unfinished_and_conditional_networks_are_refused(self, tmp_path):
        variables = tf_variables(make_generator())
        growing = variables | {"G_synthesis/lod": np.full((), 1.5, np.float32)}
        with pytest.raises(KeyMismatchError, match=r"still grew \(level of detail 1.5\)"):
            checkpoints.load(self.write(tmp_path / "a.pkl", growing))
        labels = variables | {"G_mapping/LabelConcat/weight": np.zeros((5, 16), np.float32)}
        with pytest.raises(KeyMismatchError, match=r"LabelConcat.*class-conditional"):
            checkpoints.load(self.write(tmp_path / "b.pkl", labels))


class TestCommands:
    @pytest.fixture
    def model(self, tmp_path) -> Path:
        torch.save(layouts.state_dict(make_generator()), tmp_path / "model.pt")
        return tmp_path / "model.pt"

    @pytest.mark.filterwarnings("default:.*cannot load it")
    def test_inspect_convert_sample(self, model, tmp_path, capsys):
        assert main(["inspect", str(model)]) == 0
        told = capsys.readouterr().out
        assert "lernapparat's StyleGAN1" in told
        assert "architecture: stylegan1" in told
        native = tmp_path / "model.safetensors"
        assert main(["convert", str(model), str(native)]) == 0
        assert main(["convert", str(native), str(tmp_path / "back.pt")]) == 0
        assert "cannot load it" in capsys.readouterr().err
        assert checkpoints.load(tmp_path / "back.pt").format == "lernapparat"
        for noise in ("random", "constant"):
            out = tmp_path / noise
            assert main(["sample", str(native), "--seeds", "0-1", "--noise", noise, "--out", str(out)]) == 0
            assert len(list(out.glob("*.png"))) == 2

    def test_invert(self, model, tmp_path):
        from limner import media
        from limner.latent import load_latent

        generator = checkpoints.load(model).generator
        assert generator is not None
        photo = media.write(tmp_path / "face.png", media.to_pixels(generator(torch.randn(1, 16)))[0])
        words = ["--aligned", "--model", str(model), "--steps", "3", "--mean-samples", "50"]
        assert main(["invert", str(photo), *words, "--out", str(tmp_path / "out")]) == 0
        read = load_latent(tmp_path / "out/face_01.safetensors")
        assert read.latent.space == "w+"
        assert read.latent.tensor.shape == (1, 8, 16)
        assert read.metadata["base"]["digest"] == deltas.digest(generator)
        painted = media.to_pixels(render(generator, read.latent, read.noise or "constant"))[0]
        assert (painted == media.read(tmp_path / "out/face_01.png").pixels).all()
