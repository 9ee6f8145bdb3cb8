"""``limner sample`` on tiny models, and what it says about files that are no models."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import make_generator

from limner import media
from limner.app import cli
from limner.app.commands.sample import Options, load_generator, paint
from limner.checkpoints import Checkpoint, save
from limner.nn.stylegan2 import Generator
from limner.stylization.style import save_style, style_between


@pytest.fixture
def model(tmp_path, generator) -> Path:
    """A file with the tiny generator."""
    save(Checkpoint(generator=generator), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def sample(*words: object) -> tuple[int, str, str]:
    """Run ``limner sample`` and return exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["sample", *map(str, words), "--device", "cpu"])
    return status, out.getvalue(), err.getvalue()


def test_one_picture_per_seed(model, tmp_path):
    status, out, _ = sample(model, "--seeds", "3-5", "-o", tmp_path / "out", "--json")
    assert status == 0
    assert [Path(file).name for file in json.loads(out)["files"]] == [
        f"seed00000{seed}.png" for seed in (3, 4, 5)
    ]
    pictures = [media.read(file).pixels for file in json.loads(out)["files"]]
    assert pictures[0].shape == (32, 32, 3)
    assert (pictures[0] != pictures[1]).any()


def test_pixels_are_those_of_the_generator(model, tmp_path, generator):
    sample(model, "--seeds", "7", "--psi", "0.5", "-o", tmp_path / "one.png")
    z = torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(7))
    expected = media.to_pixels(generator(z, psi=0.5))[0]
    assert (media.read(tmp_path / "one.png").pixels == expected).all()


def test_a_seed_gives_the_same_face_in_any_company(model, tmp_path):
    sample(model, "--seeds", "0-8", "-o", tmp_path / "many", "--noise", "random")
    sample(model, "--seeds", "5", "-o", tmp_path / "one", "--noise", "random")
    one, many = tmp_path / "one/seed000005.png", tmp_path / "many/seed000005.png"
    assert (media.read(one).pixels == media.read(many).pixels).all()


def test_psi_zero_is_the_mean_face(generator):
    options = Options(psi=0.0)
    assert torch.equal(paint(generator, 1, options), paint(generator, 2, options))
    assert not torch.equal(paint(generator, 1, Options()), paint(generator, 2, Options()))


def test_psi_cutoff_truncates_the_first_rows(generator):
    cut = paint(generator, 1, Options(psi=0.0, psi_cutoff=2))
    z = torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(1))
    w_plus = generator.broadcast(generator.mapping(z)).clone()
    w_plus[:, :2] = generator.w_avg
    torch.testing.assert_close(cut, generator.synthesis(w_plus))


def test_noise_modes_differ_and_repeat(generator):
    images = {noise: paint(generator, 1, Options(noise=noise)) for noise in ("constant", "random", "none")}
    assert len({image.sum().item() for image in images.values()}) == 3
    assert torch.equal(images["random"], paint(generator, 1, Options(noise="random")))


def test_sheet(model, tmp_path):
    status, out, _ = sample(model, "--seeds", "0-4", "--grid", "--columns", "5", "-o", tmp_path, "--json")
    assert status == 0
    assert json.loads(out)["files"] == [str(tmp_path / "samples.png")]
    height, width, _ = media.read(tmp_path / "samples.png").pixels.shape
    assert width > 5 * 32 > 2 * 32 > height > 32


def test_files_say_how_they_were_made(model, tmp_path):
    sample(model, "--seeds", "3,4", "--psi", "0.6", "-o", tmp_path)
    about = media.read_provenance(tmp_path / "seed000004.png")
    assert about is not None
    assert about["digital_source_type"] == "trainedAlgorithmicMedia"
    assert about["options"]["seeds"] == [4]
    assert about["options"]["psi"] == 0.6
    assert about["options"]["model"] == str(model)


def test_style_and_strength(model, tmp_path, generator):
    other = make_generator(seed=5)
    style = style_between(generator, other, method="jojogan", options={})
    save_style(style, tmp_path / "look.limner", generator)
    files = {}
    for strength in (0, 1):
        files[strength] = tmp_path / f"{strength}.png"
        status, _, err = sample(
            *(model, "--seeds", "1", "--style", tmp_path / "look.limner"),
            *("--strength", strength, "-o", files[strength]),
        )
        assert status == 0, err
    plain = media.to_pixels(paint(generator, 1, Options()))[0]
    assert (media.read(files[0]).pixels == plain).all()
    assert (media.read(files[1]).pixels != plain).any()


def test_style_of_another_base_is_refused(tmp_path, generator):
    other = make_generator(seed=5)
    save_style(
        style_between(generator, other, method="jojogan", options={}), tmp_path / "look.limner", generator
    )
    save(Checkpoint(generator=other), tmp_path / "other.safetensors")
    status, _, err = sample(
        tmp_path / "other.safetensors", "--style", tmp_path / "look.limner", "-o", tmp_path / "x"
    )
    assert status == 2
    assert "the style belongs to" in err


def test_class_conditional_models(tmp_path):
    torch.manual_seed(0)
    generator = Generator(
        resolution=8, channels={4: 8, 8: 8}, z_dim=16, w_dim=16, mapping_depth=1, label_dim=3
    )
    save(Checkpoint(generator=generator), tmp_path / "c.safetensors")
    first, second = (
        paint(load_generator(options), 1, options)
        for options in [
            Options(model=str(tmp_path / "c.safetensors"), label=label, psi=1.0) for label in (0, 2)
        ]
    )
    assert not torch.equal(first, second)
    status, _, err = sample(tmp_path / "c.safetensors", "--label", "3")
    assert status == 2
    assert "label is 3, but" in err
    assert "has 3 classes" in err


# ---- files that are no models, or worse


class Bomb:
    """Unpickling it by the book would make a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def hostile_pickle(folder: Path) -> Path:
    (folder / "evil.pkl").write_bytes(pickle.dumps({"G_ema": Bomb(folder / "pwned")}))
    return folder / "evil.pkl"


def hostile_torch_file(folder: Path) -> Path:
    torch.save({"g_ema": Bomb(folder / "pwned")}, folder / "evil.pt")
    return folder / "evil.pt"


def truncated_zip(folder: Path) -> Path:
    torch.save({"g_ema": {"input.input": torch.zeros(1, 512, 4, 4)}}, folder / "cut.pt")
    data = (folder / "cut.pt").read_bytes()
    (folder / "cut.pt").write_bytes(data[: len(data) // 2])
    return folder / "cut.pt"


def wrong_shapes(folder: Path) -> Path:
    save(Checkpoint(generator=make_generator()), folder / "full.pt")
    state = torch.load(folder / "full.pt", weights_only=True)
    state["g_ema"]["convs.1.conv.weight"] = torch.zeros(1, 3, 5, 3, 3)
    torch.save(state, folder / "shapes.pt")
    return folder / "shapes.pt"


def empty_file(folder: Path) -> Path:
    (folder / "empty.pt").write_bytes(b"")
    return folder / "empty.pt"


def other_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    return folder / "other.pt"


def broken_safetensors(folder: Path) -> Path:
    (folder / "b.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    return folder / "b.safetensors"


def folder_itself(folder: Path) -> Path:
    return folder


@pytest.mark.filterwarnings("ignore:.*the original programs cannot load")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (hostile_pickle, "mkdir"),
        (hostile_torch_file, "mkdir"),
        (truncated_zip, "cut.pt"),
        (wrong_shapes, "convs.1.conv.weight"),
        (empty_file, "empty"),
        (other_zip, "other.pt"),
        (broken_safetensors, "b.safetensors"),
        (folder_itself, "director"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_hostile_and_broken_models_end_in_one_line(tmp_path, make, message):
    status, _, err = sample(make(tmp_path), "-o", tmp_path / "out")
    assert status == 2
    assert err.startswith("limner: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    status, _, err = sample(model, "-o", tmp_path / "file/deep")
    assert status == 2
    assert "cannot be written" in err
    status, _, err = sample(model, "--seeds", "1", "-o", tmp_path / "x.docx")
    assert status == 2
    assert "cannot write .docx; possible are" in err


def test_folder_without_write_permission(model, locked_folder):
    status, _, err = sample(model, "-o", locked_folder)
    assert status == 2
    assert "Permission denied" in err


def test_earlier_pictures_stay_unless_told_otherwise(model, tmp_path):
    file = tmp_path / "out/seed000003.png"
    assert sample(model, "--seeds", "3", "-o", tmp_path / "out")[0] == 0
    before = file.read_bytes()
    status, _, err = sample(model, "--seeds", "2-3", "--psi", "0.1", "-o", tmp_path / "out")
    assert status == 2
    assert f"{file} exists already; give --overwrite" in err
    assert file.read_bytes() == before
    assert not (tmp_path / "out/seed000002.png").exists(), "nothing is done before the error"
    assert sample(model, "--seeds", "2-3", "--psi", "0.1", "-o", tmp_path / "out", "--overwrite")[0] == 0
    assert file.read_bytes() != before
