"""``limner invert`` on a tiny model."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from limner import media, zoo
from limner.app import cli
from limner.app.commands.invert import Options, extend_report, search_options
from limner.checkpoints import Checkpoint, save
from limner.errors import OptionError
from limner.inversion.options import InversionOptions, preset
from limner.latent import load_latent, render
from limner.nn import deltas
from limner.nn.features import AlexNet
from limner.nn.lpips import Lpips


@pytest.fixture
def model(tmp_path, generator) -> Path:
    save(Checkpoint(generator=generator), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def picture(tmp_path, generator) -> Path:
    """An aligned picture that the model painted."""
    image = generator(torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(2)), psi=0.5)
    return media.write(tmp_path / "face.png", media.to_pixels(image)[0])


def run(*words: object) -> tuple[int, str, str]:
    """Run ``limner invert`` and return exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["invert", *map(str, words), "--device", "cpu"])
    return status, out.getvalue(), err.getvalue()


def test_codes_picture_and_report_agree(model, picture, generator, tmp_path):
    out = tmp_path / "out"
    words = ("--aligned", "--steps", 4, "--mean-samples", 50, "--compare", "--size", 64, "--json")
    status, text, err = run(picture, "--model", model, "-o", out, *words)
    assert status == 0, err
    (face,) = json.loads(text)["faces"]
    assert [Path(file).name for file in face["files"]] == [
        "face_01.safetensors",
        "face_01.png",
        "face_01-compare.png",
    ]
    read = load_latent(out / "face_01.safetensors")
    assert read.latent.space == "w+"
    assert read.metadata["base"]["digest"] == deltas.digest(generator)
    assert read.metadata["report"]["psnr"] == face["psnr"]
    assert read.metadata["options"]["steps"] == 4
    assert read.noise is not None
    painted = media.to_pixels(render(generator, read.latent, read.noise))[0]
    written = media.read(out / "face_01.png").pixels
    assert (painted == written).all()
    target = media.read(picture).pixels.astype(float)
    assert face["psnr"] == pytest.approx(10 * np.log10(255**2 / ((written - target) ** 2).mean()), abs=0.05)
    assert face["trunk"] == "lite0"
    embedder = zoo.load("identity")
    ours, theirs = (
        embedder(media.to_image(media.read(file).pixels)) for file in (out / "face_01.png", picture)
    )
    assert face["identity"] == pytest.approx(float((ours - theirs).norm() ** 2), abs=5e-3)
    report = json.loads((out / "report.json").read_text())
    about = {"embedder": "dlib", "distance": "squared L2", "stands_for": "arcface", "same_person_below": 0.36}
    assert report["identity"] == about
    assert report["faces"][0]["psnr"] == face["psnr"]
    provenance = media.read_provenance(out / "face_01.png")
    assert provenance is not None
    assert provenance["digital_source_type"] == "trainedAlgorithmicMedia"


def test_pivotal_keeps_the_tuned_generator(model, picture, generator, tmp_path):
    words = (
        "--aligned",
        "--method",
        "pivotal",
        "--steps",
        2,
        "--tune-steps",
        3,
        "--tune-learning-rate",
        0.002,
    )
    status, _, err = run(picture, "--model", model, "-o", tmp_path / "out", "--mean-samples", 50, *words)
    assert status == 0, err
    read = load_latent(tmp_path / "out" / "face_01.safetensors")
    assert read.delta is not None
    person = deltas.apply(generator, [(deltas.reconstruct(read.delta), 1.0)])
    painted = media.to_pixels(render(person, read.latent, read.noise or "constant"))[0].astype(int)
    assert np.abs(painted - media.read(tmp_path / "out" / "face_01.png").pixels).max() <= 1
    assert read.metadata["options"]["tune_steps"] == 3


def test_a_search_goes_on_from_a_file(model, picture, tmp_path):
    words = (picture, "--model", model, "--aligned", "--mean-samples", 50, "--json", "--l2", 5)
    first = json.loads(run(*words, "-o", tmp_path / "one", "--steps", 4)[1])["faces"][0]
    start = ("--start", tmp_path / "one" / "face_01.safetensors")
    second = json.loads(run(*words, "-o", tmp_path / "two", "--steps", 4, *start)[1])["faces"][0]
    assert second["psnr"] > first["psnr"]


def test_a_photo_that_fails_does_not_stop_the_others(model, picture, tmp_path):
    words = ("--model", model, "--aligned", "--steps", 1, "--mean-samples", 50, "--json")
    status, text, err = run(picture, tmp_path / "none.png", "-o", tmp_path / "out", *words)
    assert status == 2
    result = json.loads(text)
    assert len(result["faces"]) == 1
    assert result["failed"][0]["error"] == "MediaError"
    assert "none.png" in err
    assert Path(result["report"]).is_file()
    status, _, err = run(tmp_path / "none.png", "-o", tmp_path / "out", *words)
    assert (status, err.count("\n")) == (2, 1)


def test_faces_of_a_batch_come_out_as_they_would_alone(model, generator, tmp_path):
    image = generator(torch.randn(3, generator.z_dim, generator=torch.Generator().manual_seed(2)), psi=0.5)
    photos = [
        media.write(tmp_path / f"face{i}.png", pixels) for i, pixels in enumerate(media.to_pixels(image))
    ]
    words = ("--model", model, "--aligned", "--steps", 3, "--mean-samples", 50, "--json", "--compare")
    found = {}
    for batch in (1, 2):
        status, text, err = run(*photos, "-o", tmp_path / str(batch), "--batch", batch, *words)
        assert status == 0, err
        found[batch] = json.loads(text)["faces"]
    assert [face["photo"] for face in found[2]] == [str(photo) for photo in photos]
    for alone, together in zip(found[1], found[2], strict=True):
        assert together["psnr"] == pytest.approx(alone["psnr"], abs=0.05)
        one, other = (load_latent(face["files"][0]) for face in (alone, together))
        # Adam makes much of rounding where gradients vanish, so single numbers differ by more.
        assert (one.latent.tensor - other.latent.tensor).abs().mean() < 1e-3
        assert other.noise is not None
        assert {len(maps) for maps in other.noise} == {1}
    assert len({face["psnr"] for face in found[2]}) == 3


def test_a_batch_that_fails_is_told_of_face_by_face(model, picture, tmp_path):
    mask = media.write(tmp_path / "mask.png", np.zeros((32, 32, 3), np.uint8))
    other = media.write(tmp_path / "other.png", media.read(picture).pixels)
    words = ("--model", model, "--aligned", "--method", "encoder", "--mask", mask, "--json")
    status, text, err = run(picture, other, "-o", tmp_path / "out", *words)
    assert status == 2
    assert [one["photo"] for one in json.loads(text)["failed"]] == [str(picture), str(other)]
    assert err.count("error") == 2


def test_no_report_where_every_photo_failed(model, tmp_path):
    photos = (tmp_path / "none.png", tmp_path / "neither.png")
    status, text, err = run(*photos, "-o", tmp_path / "out", "--model", model, "--json")
    assert status == 2
    assert json.loads(text)["report"] is None
    assert all(photo.name in err for photo in photos)
    assert not (tmp_path / "out").exists()


def test_lpips_is_used_where_it_is_installed(model, picture, tmp_path):
    words = (
        picture,
        "--model",
        model,
        "-o",
        tmp_path / "out",
        "--aligned",
        "--steps",
        2,
        "--mean-samples",
        50,
    )
    words = (*words, "--trunk", "lpips-alex", "--json")
    status, _, err = run(*words)
    assert status == 2
    assert "limner models pull alexnet lpips-alex-heads" in err
    assert not (tmp_path / "out").exists()

    metric = Lpips(trunk=AlexNet())
    for parameter in metric.heads.parameters():
        torch.nn.init.uniform_(parameter)
    zoo.cache_dir().mkdir(exist_ok=True)
    for name, part in (("alexnet", metric.trunk), ("lpips-alex-heads", metric.heads)):
        download = zoo.catalogue()[name]
        torch.save(part.state_dict(), zoo.cache_dir() / download.file_name)
        zoo.install(download, zoo.cache_dir() / download.file_name)
    status, text, err = run(*words)
    assert status == 0, err
    (face,) = json.loads(text)["faces"]
    assert face["trunk"] == "lpips-alex"
    found, target = (
        torch.nn.functional.interpolate(media.to_image(media.read(file).pixels), size=128, mode="bilinear")
        for file in (tmp_path / "out/face_01.png", picture)
    )
    assert face["perceptual"] == pytest.approx(float(metric(found, target)), rel=0.02)
    assert load_latent(tmp_path / "out/face_01.safetensors").metadata["options"]["trunk"] == "lpips-alex"


def test_a_report_says_what_stands_in(model, picture, tmp_path):
    words = (picture, "--model", model, "-o", tmp_path / "out", "--aligned", "--steps", 2, "--noise-steps", 2)
    status, text, err = run(*words, "--preset", "image2stylegan++", "--mean-samples", 50)
    assert status == 0, err
    assert "vgg16 of preset image2stylegan++ is not installed; lite0 stands in for it" in err
    assert "lite0 for vgg16" in text
    assert "dlib stands in for arcface" in text
    face = json.loads((tmp_path / "out/report.json").read_text())["faces"][0]
    assert (face["trunk"], face["trunk_stands_for"], face["steps"]) == ("lite0", "vgg16", 4)
    assert (face["embedder"], face["embedder_stands_for"]) == ("dlib", "arcface")
    status, _, err = run(*words, "--trunk", "vgg16", "--overwrite")
    assert status == 2
    assert "limner models pull vgg16" in err


def test_earlier_results_stay_unless_told_otherwise(model, picture, tmp_path):
    words = ("--model", model, "--aligned", "--method", "w", "--steps", 2, "--mean-samples", 50)
    assert run(picture, *words, "-o", tmp_path / "out")[0] == 0
    kept = tmp_path / "out/face_01.safetensors"
    before = kept.read_bytes()
    status, _, err = run(picture, *words, "-o", tmp_path / "out")
    assert status == 2
    assert f"{kept} and 1 more exist already" in err
    assert kept.read_bytes() == before
    again = (*words, "--steps", 3, "-o", tmp_path / "out", "--overwrite")
    assert run(picture, *again)[0] == 0
    assert kept.read_bytes() != before


def test_a_second_run_extends_the_report(model, picture, tmp_path):
    out = tmp_path / "out"
    words = ("--aligned", "--method", "w", "--steps", 2, "--mean-samples", 50, "-o", out)
    other = media.write(tmp_path / "other.png", media.read(picture).pixels[:, ::-1])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")

    def told() -> tuple[dict, list[tuple[str, int]], list[str]]:
        report = json.loads((out / "report.json").read_text())
        faces = [(Path(face["photo"]).name, face["steps"]) for face in report["faces"]]
        return report, faces, [Path(one["photo"]).name for one in report["failed"]]

    assert run(picture, broken, "--model", model, *words)[0] == 2
    first = told()
    assert first[1:] == ([("face.png", 2)], ["broken.png"])
    media.write(broken, media.read(picture).pixels)
    assert run(other, broken, "--model", model, *words)[0] == 0
    report, faces, failed = told()
    assert (faces, failed) == ([("face.png", 2), ("other.png", 2), ("broken.png", 2)], [])
    assert list(report) == ["base", "identity", "faces", "failed"]
    assert (report["base"], report["faces"][0]) == (first[0]["base"], first[0]["faces"][0])
    (out / "report.json").write_text("[]")
    status, _, err = run(picture, "--model", model, *words)
    assert status == 2
    assert "is no report of limner invert; give --overwrite" in err
    report["base"] |= {"name": "large", "digest": "0"}
    (out / "report.json").write_text(json.dumps(report))
    status, _, err = run(
        media.write(tmp_path / "third.png", media.read(picture).pixels), "--model", model, *words
    )
    assert status == 2
    assert "faces of another generator (large), not of tiny" in err
    assert not (out / "third_01.png").exists()


def test_a_report_keeps_what_was_not_written_again():
    """Entries go by the files they are about, wherever the folder was named from; failures by the photo."""

    def report(*names: str, failed: str = "", name: str = "tiny", digest: str = "1") -> dict:
        faces = [{"photo": f"{name}.jpg", "files": [f"out/{name}_01.png"]} for name in names]
        return {"base": {"name": name, "digest": digest}, "faces": faces, "failed": [{"photo": failed}]}

    new = report("b", failed="y.jpg", name="runs/tiny")
    new["faces"][0]["files"] = ["/tmp/out/b_01.png"]
    both = extend_report(report("a", "b", failed="x.jpg"), new, [Path("b.jpg"), Path("y.jpg")])
    assert [face["files"] for face in both["faces"]] == [["out/a_01.png"], ["/tmp/out/b_01.png"]]
    assert [one["photo"] for one in both["failed"]] == ["x.jpg", "y.jpg"]
    again = extend_report(report("a", failed="x.jpg"), new, [Path("x.jpg"), Path("y.jpg")])
    assert again["failed"] == new["failed"]
    for earlier in (None, report("a", digest="2")):
        assert extend_report(earlier, new, []) == new


def test_a_mask_and_codes_of_other_programs(model, picture, generator, tmp_path):
    code = generator.broadcast(generator.w_avg[None])
    torch.save({"photos/face.png": {"latent": code[0]}}, tmp_path / "projection.pt")
    side = np.zeros((64, 64, 3), np.uint8)
    side[:, :32] = 255
    mask = media.write(tmp_path / "mask.png", side)
    words = (
        picture,
        "--model",
        model,
        "-o",
        tmp_path / "out",
        "--aligned",
        "--steps",
        3,
        "--mean-samples",
        50,
    )
    status, _, err = run(*words, "--method", "w+", "--mask", mask, "--start", tmp_path / "projection.pt")
    assert status == 0, err
    found = load_latent(tmp_path / "out/face_01.safetensors")
    assert found.metadata["options"]["init"] == "given"
    assert (found.latent.tensor - code).abs().max() < 0.3  # three steps away from where it started
    status, _, err = run(*words, "--method", "encoder", "--mask", mask, "--overwrite")
    assert status == 2


def test_a_preset_stands_in_for_what_is_not_given():
    options = Options(photos=(Path("a.png"),), preset="ii2s", steps=9)
    assert search_options(options) == preset("ii2s", steps=9)
    assert search_options(Options(photos=(Path("a.png"),))) == InversionOptions(method="auto")
    with pytest.raises(OptionError, match="--start"):
        search_options(Options(photos=(Path("a.png"),), init="given"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "wplus"], "expected one of auto, z, z+, w, w+, s, noise, ii2s, pivotal"),
        (["--init", "given"], "--start"),
        (["--landmarks", "1,2"], "expected 10"),
        (["--start", "nowhere.npz"], "no such file"),
    ],
)
def test_wrong_options_end_in_one_line(picture, words, message):
    status, _, err = run(picture, *words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
