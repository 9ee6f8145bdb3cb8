"""Every example runs, on tiny models and a tiny picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RESOLUTION

from limner import checkpoints, media
from limner.checkpoints.child import save_child
from limner.latent import load_latent, render
from limner.nn.stylegan2 import Generator
from limner.stylization.style import save_style, style_between

EXAMPLES = Path(__file__).parent.parent / "examples"


def load_example(name: str) -> Any:
    """Import ``examples/NAME.py``."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def base(tmp_path, generator, discriminator) -> str:
    """A tiny model file."""
    path = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoints.Checkpoint(generator=generator, discriminator=discriminator), path)
    return str(path)


@pytest.fixture
def photo(tmp_path) -> str:
    """A tiny smooth picture without a face."""
    y, x = np.mgrid[:48, :48]
    pixels = np.stack([128 + 90 * np.sin(x / 9), 128 + 90 * np.cos(y / 7), x + 2 * y], -1).astype(np.uint8)
    return str(media.write(tmp_path / "photo.png", pixels))


def test_examples_are_short_and_all_tested():
    files = {file.stem: file.read_text(encoding="utf-8") for file in EXAMPLES.glob("*.py")}
    tests = Path(__file__).read_text(encoding="utf-8")
    for name, text in files.items():
        assert len(text.splitlines()) < 40, name
        assert f'load_example("{name}")' in tests, name
        assert f"python examples/{name}.py" in text, name
    assert len(files) >= 4


def test_stylize_photo(tmp_path, base, photo, generator):
    dark = Generator(**generator.config())
    dark.load_state_dict(generator.state_dict())
    with torch.no_grad():
        dark.synthesis.to_rgb[-1].bias.sub_(1.5)
    save_style(
        style_between(generator, dark, method="jojogan", options={}), tmp_path / "dark.limner", generator
    )
    main = load_example("stylize_photo").main
    settings = {"invert_steps": 2, "aligned": True}
    out = main(photo, str(tmp_path / "dark.limner"), str(tmp_path / "out.png"), base, **settings)
    restyled, original = media.read(out), media.read(photo)
    middle = np.s_[16:32, 16:32]
    assert restyled.pixels.shape == original.pixels.shape
    assert restyled.pixels[middle].mean() < original.pixels[middle].mean() - 20
    assert restyled.source_type == "compositeWithTrainedAlgorithmicMedia"


def test_random_faces(tmp_path, base):
    main = load_example("random_faces").main
    out = main(str(tmp_path / "faces.png"), "5", base)
    sheet = media.read(out).pixels
    assert sheet.shape == (2 * (RESOLUTION + 4) + 4, 3 * (RESOLUTION + 4) + 4, 3)
    again = main(str(tmp_path / "again.png"), "5", base)
    assert np.array_equal(sheet, media.read(again).pixels)


def test_invert_face(tmp_path, base, photo, generator):
    main = load_example("invert_face").main
    out = main(photo, str(tmp_path / "face.safetensors"), base, "3")
    found = load_latent(out)
    with torch.no_grad():
        image = render(generator, found.latent, found.noise or "constant")
    painted = media.read(tmp_path / "face.png").pixels
    assert np.abs(media.to_pixels(image)[0].astype(int) - painted).max() <= 1


@pytest.mark.filterwarnings("ignore:.*the original programs cannot load")  # such small networks
def test_convert_checkpoint(tmp_path, base, generator, capsys):
    main = load_example("convert_checkpoint").main
    back = main(str(main(base, str(tmp_path / "tiny.pt"))), str(tmp_path / "back.safetensors"))
    assert "generator: Generator" in capsys.readouterr().out
    state = checkpoints.load(back).generator.state_dict()
    assert all(torch.equal(values, state[name]) for name, values in generator.state_dict().items())


def test_blend_models(tmp_path, base, generator):
    dark = Generator(**generator.config())
    dark.load_state_dict(generator.state_dict())
    with torch.no_grad():
        dark.synthesis.to_rgb[-1].bias.sub_(1.5)
    save_child(dark, generator, tmp_path / "dark.safetensors", base_name="tiny")
    main = load_example("blend_models").main
    out = main(base, str(tmp_path / "dark.safetensors"), str(tmp_path / "sheet.png"), "32", "2")
    sheet = media.read(out).pixels[-2 * (RESOLUTION + 4) :].astype(int)  # below the labels
    plain, blended, child = (sheet[:, n * (RESOLUTION + 4) + 4 :][:, :RESOLUTION] for n in range(3))
    assert np.array_equal(blended, child)  # the child differs in the last layer alone
    assert plain[4:36].mean() > child[4:36].mean() + 20


def test_edit_faces(tmp_path, base):
    main = load_example("edit_faces").main
    out = main("seed:1", "seed:2", str(tmp_path / "morph.gif"), base, "4")
    frames = list(media.read_film(out))
    assert len(frames) == 6
    assert frames[0].shape == (RESOLUTION, RESOLUTION, 3)
    sheet = media.read(tmp_path / "morph.png").pixels
    first = sheet[4 + RESOLUTION + 4 :][:RESOLUTION, 4 : 4 + RESOLUTION]
    assert np.abs(frames[0].astype(int) - first).mean() < 8  # a GIF has 256 colours
