"""JoJoGAN against the original code: mixed codes, feature loss, first gradients, three Adam steps."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from limner.nn.stylegan2 import Discriminator, Generator
from limner.stylization.choices import row_weights
from limner.stylization.codes import mixed_rows
from limner.stylization.jojogan import JojoganTraining, frozen, mix_codes
from limner.stylization.options import JojoganOptions

FOLDER = Path(os.environ.get("LIMNER_PARITY_DIR", Path(__file__).parents[2] / "shared" / "parity"))
FIXTURES = sorted(FOLDER.glob("jojogan/*.json"))
TOLERANCE = 1e-3
TRAINED_TOLERANCE = 2e-3  # after Adam steps, relative; the README's figure

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        not FIXTURES,
        reason=f"no JoJoGAN fixtures in {FOLDER}; name the folder of reference outputs in LIMNER_PARITY_DIR",
    ),
]


def fixtures(kind: str) -> list[Any]:
    """Return the fixtures of one kind, those whose networks take seconds marked slow."""
    found = []
    for path in FIXTURES:
        manifest = json.loads(path.read_text())
        if ("cases" in manifest) == (kind == "mixing"):
            size = manifest.get("config", {}).get("size", 0)
            found.append(pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if size > 64 else []))
    return found


def load_recipe() -> ModuleType:
    """Import the fixtures' own recipe for weights and inputs."""
    spec = importlib.util.spec_from_file_location("limner_parity_recipe", FOLDER / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_fixture(
    path: Path,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor], dict[str, np.ndarray]]:
    """Return manifest, weights, inputs and expected outputs."""
    recipe = load_recipe()
    manifest = json.loads(path.read_text())
    weights = recipe.build(manifest["manifest"], manifest["seed"])
    inputs = recipe.inputs(manifest["inputs"], manifest["seed"])
    tensors = {name.split("/", 1)[1]: torch.from_numpy(value) for name, value in inputs.items()}
    return manifest, weights, tensors, load_file(path.with_suffix(".safetensors"))


def original_name(name: str) -> str:
    """Return the original's name of one of our generator's tensors."""
    if name == "synthesis.const":
        return "input.input"
    _, part, index, leaf = ["", *name.split(".", 2)] if name.startswith("mapping.") else name.split(".", 3)
    if part == "mapping":
        index, leaf = name.removeprefix("mapping.layers.").split(".")
        return f"style.{int(index) + 1}.{leaf}"
    number = int(index)
    owner = {"layers": "conv1" if not number else f"convs.{number - 1}", "to_rgb": f"to_rgbs.{number - 1}"}[
        part
    ]
    owner = "to_rgb1" if part == "to_rgb" and not number else owner
    leaves = {
        "weight": "conv.weight",
        "affine.weight": "conv.modulation.weight",
        "affine.bias": "conv.modulation.bias",
        "noise_strength": "noise.weight",
        "bias": "bias" if part == "to_rgb" else "activate.bias",
    }
    return f"{owner}.{leaves[leaf]}"


def build_generator(weights: dict[str, np.ndarray], config: dict[str, Any]) -> Generator:
    """Return our generator with the original's weights."""
    generator = Generator(resolution=config["size"], mapping_depth=config["n_mlp"])
    state = generator.state_dict()
    for name, ours in state.items():
        if name != "w_avg" and not name.endswith(".noise"):
            state[name] = torch.from_numpy(weights[original_name(name)]).reshape(ours.shape)
        elif name.endswith(".noise"):
            state[name] = torch.from_numpy(weights[f"noises.noise_{name.split('.')[2]}"]).reshape(ours.shape)
    generator.load_state_dict(state)
    return generator


def build_discriminator(weights: dict[str, np.ndarray], size: int) -> Discriminator:
    """Return our discriminator with the original's weights; JoJoGAN's files may lack the last layers, which are unused."""
    discriminator = Discriminator(resolution=size)
    state = discriminator.state_dict()
    table = {"conv0.weight": "conv1.0.weight", "conv0.bias": "conv1.1.bias", "conv1.weight": "conv2.1.weight"}
    table |= {"conv1.bias": "conv2.2.bias", "skip.weight": "skip.1.weight"}
    for name, ours in state.items():
        if name.startswith("from_rgb."):
            source = {"weight": "convs.0.0.weight", "bias": "convs.0.1.bias"}[name.removeprefix("from_rgb.")]
        elif name.startswith("blocks."):
            _, index, leaf = name.split(".", 2)
            source = f"convs.{int(index) + 1}.{table[leaf]}"
        else:
            continue
        if source in weights:
            state[name] = torch.from_numpy(weights[source]).reshape(ours.shape)
    discriminator.load_state_dict(state)
    return discriminator.requires_grad_(False)


def distance(got: Tensor | np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference on the scale of the expected values' spread."""
    values = np.asarray(got.detach() if isinstance(got, Tensor) else got, np.float32).reshape(expected.shape)
    largest = float(np.abs(expected).max())
    spread = max(
        float(expected.std()), (1e-2 if expected.size > 1 else 1.0) * largest, 1e-6
    )  # one number has no spread
    return float(np.abs(values - expected).max()) / spread


@pytest.mark.parametrize("path", fixtures("mixing"))
def test_mixed_codes_equal_the_original(path: Path) -> None:
    """Every case of strength and colour gives the original's codes, with our default rows."""
    manifest, weights, inputs, expected = load_fixture(path)
    rows = inputs["latents"].shape[1]
    depth = sum(name.endswith(".weight") for name in weights["g_ema"])
    small = dict.fromkeys((2**n for n in range(2, rows // 2 + 2)), 1)
    generator = Generator(resolution=2 ** (rows // 2 + 1), channels=small, mapping_depth=depth)
    state = {name: value for name, value in generator.state_dict().items() if name.startswith("mapping.")}
    state = {name: torch.from_numpy(weights["g_ema"][original_name(name)]) for name in state}
    generator.load_state_dict(state, strict=False)
    w_random = generator.mapping(inputs["z"])
    assert distance(w_random, expected["mean_w"]) < TOLERANCE
    for name, case in manifest["cases"].items():
        options = JojoganOptions(style_mix=case["strength"], keep_color=case["preserve_color"])
        assert (
            list(mixed_rows(generator.resolution, keep_color=case["preserve_color"])) == case["replaced_rows"]
        )
        mixed = mix_codes(inputs["latents"], w_random, row_weights(options, generator) * options.style_mix)
        stride = mixed.shape[-1] // expected[name].shape[-1]
        assert distance(mixed[..., ::stride], expected[name]) < TOLERANCE, name


@pytest.mark.parametrize("path", fixtures("train"))
def test_training_equals_the_original(path: Path) -> None:
    """Feature distances, first gradients, losses and weights of the first steps are the original's."""
    manifest, weights, inputs, expected = load_fixture(path)
    generator = build_generator(weights["g_ema"], manifest["config"])
    discriminator = build_discriminator(weights["d"], manifest["config"]["size"])
    options = JojoganOptions(
        style_mix=manifest["strength"],
        mask=",".join(map(str, manifest["replaced_rows"])),
        feature_layers=tuple(manifest["feature_layers"]),
        learning_rate=manifest["optimiser"]["lr"],
        pixels=0.0,
        ema=0.0,
    )
    training = JojoganTraining(
        generator=generator,
        discriminator=discriminator,
        images=inputs["targets"],
        w_plus=inputs["latents"],
        options=options,
    )

    def noise(step: int) -> list[Tensor]:
        return [inputs[f"step{step}/noise_{i}"] for i in range(len(generator.synthesis.layers))]

    with frozen(discriminator):
        distances = training.distances(training.paint(inputs["step0/z"], noise(0)))
        assert distance(distances, expected["first_step.feature_l1"]) < TOLERANCE
        distances.mean().backward()
    parameters = {original_name(name): value for name, value in training.generator.named_parameters()}
    without = sorted(name for name, value in parameters.items() if value.grad is None)
    assert without == sorted(manifest["parameters_without_gradient"])
    for name, value in expected.items():
        if name.startswith("grad1."):
            # L1 sends back signs: where two features agree to rounding, one sign may differ, so no maximum here.
            error = parameters[name.removeprefix("grad1.")].grad.numpy().reshape(value.shape) - value
            assert np.linalg.norm(error) < TOLERANCE * np.linalg.norm(value), name

    losses = []
    for step in range(len(manifest["losses"])):
        losses.append(training.step(inputs[f"step{step}/z"], noise(step)))
        for name, value in expected.items():
            if step == 0 and name.startswith("param_after1."):
                assert distance(parameters[name.removeprefix("param_after1.")], value) < TOLERANCE, name
    np.testing.assert_allclose(losses, manifest["losses"], rtol=TRAINED_TOLERANCE)
    assert all(parameter.grad is None for parameter in discriminator.parameters())

    with torch.no_grad():
        final = training.generator.synthesis(inputs["latents"]).numpy()
    recipe = load_recipe()
    worst = [
        distance(value, expected[name])
        for name, value in (
            ("final.image", final),
            ("final.image.box64", recipe.box(final) if final.shape[-1] >= 64 else final),
            ("final.image.rows", final[..., recipe.rows(final.shape[-2]), :]),
        )
        if name in expected
    ]
    # The first updates are sign-like: where a gradient is about zero, rounding decides between +lr and -lr.
    assert worst
    assert max(worst) < 5 * TRAINED_TOLERANCE
