"""Faces that were embedded before: read from latent files, put in a style with all that was found for them, pasted back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from limner import checkpoints, media, zoo
from limner.app.cli import main
from limner.errors import KeyMismatchError, MediaError, OptionError, ShapeError
from limner.faces import Alignment, Face, crop_face
from limner.latent import Latent, render, save_latent
from limner.nn import deltas
from limner.nn.stylegan2 import Discriminator, Generator
from limner.nn.tuned import pack_tuned
from limner.pipeline import LearnOptions, Models, StylizeOptions, learn_style, stylize, stylize_kept
from limner.pipeline.kept import find_photo, place_faces, read_kept
from limner.pipeline.photos import embed_faces
from limner.stylization import Style, load_style, merge, save_style
from limner.stylization.style import style_between

SIZE = 32
PLACE = Alignment(np.array([[1.5, 0.0, 20.0], [0.0, 1.5, 30.0], [0.0, 0.0, 1.0]]), SIZE)
PLAIN = StylizeOptions(pull=0, size=SIZE, detail=False, blend="weights")


def make_photo(height: int = 100, width: int = 120) -> np.ndarray:
    """A smooth synthetic photo."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / 17), 128 + 90 * np.cos(y / 13), 64 + (x + y) / 4]
    return np.stack(waves, -1).astype(np.uint8)


def detect(pixels: np.ndarray) -> list[Face]:
    """Find a face at a fixed place."""
    points = np.array([(42, 50), (66, 50), (54, 64), (44, 76), (64, 76)], np.float32)
    return [Face(np.array([30, 30, 80, 95], np.float32), 0.99, points)]


def changed(generator: Generator, amount: float, *, layer: int = -1) -> Generator:
    """Return a copy whose toRGB of a layer adds something."""
    other = Generator(**generator.config())
    other.load_state_dict(generator.state_dict())
    with torch.no_grad():
        bias = other.synthesis.to_rgb[layer].bias
        assert isinstance(bias, torch.Tensor)
        bias.add_(amount)
    return other


@pytest.fixture
def models(generator: Generator, discriminator: Discriminator) -> Models:
    """Tiny networks; no face is ever found."""
    return Models(
        generator=generator,
        trunk=zoo.load("lite0"),
        discriminator=discriminator,
        detector=lambda pixels: [],
        base="tiny",
    )


@pytest.fixture
def style(models: Models) -> Style:
    """A style that turns faces dark."""
    dark = changed(models.generator, -0.5)
    return style_between(models.generator, dark, method="jojogan", options={}, provenance={"base": "tiny"})


def keep(
    path: Path, models: Models, *, person: float = 0.0, seed: int = 1, photo: Path | None = None
) -> tuple[Path, Latent]:
    """Write a latent file as ``limner invert --method pivotal`` does."""
    rng = torch.Generator().manual_seed(seed)
    w = models.generator.mapping(torch.randn(1, models.generator.z_dim, generator=rng)).detach()
    latent = Latent("w+", models.generator.broadcast(w))
    notes: dict = {"base": {"name": "tiny", "digest": deltas.digest(models.generator)}}
    notes["alignment"] = PLACE.to_mapping()
    if photo is not None:
        notes["options"] = {"photo": str(photo)}
    delta = deltas.difference(changed(models.generator, person), models.generator)
    packed = pack_tuned(delta, kilobytes=5000).tensors if person else None
    return save_latent(path, latent, delta=packed, metadata=notes), latent


def test_person_style_and_blend_add_up_in_one_pass(models: Models, style: Style, tmp_path: Path) -> None:
    """The portrait is what a generator paints whose bias has all three changes, each by its share."""
    other = style_between(
        models.generator, changed(models.generator, 0.4, layer=0), method="blend", options={}
    )
    file, latent = keep(tmp_path / "me.safetensors", models, person=0.3)
    both = merge([style, other], [1.0, 0.5])
    result = stylize_kept([file], both, PLAIN, models=models)
    by_hand = changed(changed(models.generator, 0.3 - 0.5), 0.2, layer=0)
    expected = media.to_pixels(render(by_hand, latent))[0]
    assert np.abs(result.portraits[0].astype(int) - expected).max() <= 1
    embedded = media.to_pixels(render(changed(models.generator, 0.3), latent))[0]
    assert np.abs(result.pixels.astype(int) - embedded).max() <= 1, "without a photo the face as embedded"


def test_a_kept_face_is_restyled_as_a_fresh_one(models: Models, style: Style, tmp_path: Path) -> None:
    """Embedding, keeping and reading gives the same photo as embedding and restyling at once."""
    photo = make_photo()
    models.__dict__["detector"] = detect
    options = StylizeOptions(inverter="pivotal", invert_steps=2, tune_steps=3, detail=False)
    fresh = embed_faces(photo, options, models=models)
    alignment, inversion = fresh[0]
    assert inversion.delta is not None
    packed = pack_tuned(inversion.delta, kilobytes=5000).tensors
    notes = {"alignment": alignment.to_mapping()}
    file = save_latent(tmp_path / "me.safetensors", inversion.latent, delta=packed, metadata=notes)
    at_once = stylize(photo, style, options, models=models, embedded=fresh)
    later = stylize_kept([file], style, options, models=models, pixels=photo)
    assert (at_once.pixels != photo).any()
    assert np.abs(later.pixels.astype(int) - at_once.pixels).max() <= 2
    assert later.faces[0].report.psnr == pytest.approx(at_once.faces[0].report.psnr, abs=0.1)


def test_several_faces_of_one_photo_go_back_together(models: Models, style: Style, tmp_path: Path) -> None:
    first, _ = keep(tmp_path / "a.safetensors", models)
    second, _ = keep(tmp_path / "b.safetensors", models, seed=2)
    result = stylize_kept([first, second], style, PLAIN, models=models, pixels=make_photo())
    assert len(result.faces) == 2
    assert (result.pixels != make_photo()).any()
    side_by_side = stylize_kept([first, second], style, PLAIN, models=models)
    assert side_by_side.pixels.shape == (SIZE, 2 * SIZE, 3)
    assert np.array_equal(side_by_side.pixels[:, SIZE:], side_by_side.faces[1].embedded)


@pytest.mark.parametrize("ending", [".npz", ".npy", ".pt"])
def test_codes_of_other_programs(ending: str, models: Models, style: Style, tmp_path: Path) -> None:
    """Without a photo they give portraits; with one the face is looked for there."""
    _, latent = keep(tmp_path / "own.safetensors", models)
    file, w_plus = tmp_path / f"theirs{ending}", latent.tensor.numpy()
    if ending == ".npz":
        np.savez(file, w=w_plus)
    elif ending == ".npy":
        np.save(file, w_plus)
    else:
        torch.save({"latent": latent.tensor}, file)
    result = stylize_kept([file], style, PLAIN, models=models)
    own = stylize_kept([tmp_path / "own.safetensors"], style, PLAIN, models=models)
    assert np.array_equal(result.portraits[0], own.portraits[0])
    models.__dict__["detector"] = detect
    back = stylize_kept([file], style, PLAIN, models=models, pixels=make_photo())
    crop = crop_face(make_photo(), back.faces[0].alignment)
    assert np.array_equal(back.faces[0].crop, crop)
    models.__dict__["detector"] = lambda pixels: detect(pixels) * 2
    with pytest.raises(OptionError, match="2 faces for 1 codes; say which with --face"):
        place_faces(read_kept(file, models=models), make_photo(), PLAIN, models=models)


def test_what_does_not_fit_is_told(models: Models, style: Style, tmp_path: Path) -> None:
    file, _ = keep(tmp_path / "me.safetensors", models)
    small = make_photo(20, 20)
    with pytest.raises(MediaError, match="outside the photo of 20 x 20 px"):
        stylize_kept([file], style, PLAIN, models=models, pixels=small)
    save_latent(tmp_path / "long.safetensors", Latent("w+", torch.zeros(1, 18, 512)))
    with pytest.raises(ShapeError, match="expected"):
        stylize_kept([tmp_path / "long.safetensors"], style, PLAIN, models=models)
    save_latent(
        tmp_path / "other.safetensors",
        Latent("w", torch.zeros(1, 8)),
        metadata={"base": {"digest": "0" * 64}},
    )
    with pytest.raises(KeyMismatchError, match="codes of another generator"):
        stylize_kept([tmp_path / "other.safetensors"], style, PLAIN, models=models)


def test_the_photo_is_found_where_the_file_says_or_beside_it(models: Models, tmp_path: Path) -> None:
    (tmp_path / "inverted").mkdir()
    photo = media.write(tmp_path / "me.png", make_photo())
    file, _ = keep(tmp_path / "inverted/me_01.safetensors", models, photo=photo)
    assert find_photo(file) == photo
    beside = photo.rename(tmp_path / "inverted/me.png")
    assert find_photo(file) == beside
    beside.unlink()
    assert find_photo(file) is None


def test_the_command_takes_latent_files(
    models: Models, style: Style, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Faces of one photo give one photo; without the photo a portrait; a photo that belongs to nothing is an error."""
    base = tmp_path / "tiny.safetensors"
    checkpoints.save(
        checkpoints.Checkpoint(generator=models.generator, discriminator=models.discriminator), base
    )
    save_style(style, tmp_path / "dark.limner", models.generator)
    photo = media.write(tmp_path / "me.png", make_photo())
    files = [
        keep(tmp_path / f"me_0{i}.safetensors", models, person=0.2, seed=i, photo=photo)[0] for i in (1, 2)
    ]
    alone, _ = keep(tmp_path / "alone.safetensors", models)
    words = ["--style", str(tmp_path / "dark.limner"), "--model", str(base), "--device", "cpu", "--json"]
    assert main(["stylize", *map(str, files), str(alone), *words, "--size", "40"]) == 0
    told = capsys.readouterr()
    record = json.loads(told.out.splitlines()[-1])["photos"]
    assert [len(entry["faces"]) for entry in record] == [2, 1]
    whole = media.read(tmp_path / "me-dark.png")
    assert whole.pixels.shape == make_photo().shape
    assert (whole.pixels != make_photo()).any()
    assert media.read(tmp_path / "alone-dark.png").pixels.shape == (40, 40, 3)
    about = media.read_provenance(tmp_path / "me-dark.png")
    assert about is not None
    assert about["options"]["latents"] == ["me_01.safetensors", "me_02.safetensors"]
    more = ["--photo", str(photo), "--out", str(tmp_path / "again.png"), "--compare"]
    assert main(["stylize", str(alone), *words, *more]) == 0
    assert media.read(tmp_path / "again.png").pixels.shape == make_photo().shape
    assert (tmp_path / "again-compare.png").is_file()
    assert main(["stylize", str(photo), *words, "--photo", str(photo), "--overwrite"]) == 2
    assert "only photos are named" in capsys.readouterr().err
    assert main(["stylize", str(base), *words]) == 2
    assert "is no latent file but a model" in capsys.readouterr().err


def test_what_latent_files_come_from_stays_and_a_broken_one_fails_alone(
    models: Models, style: Style, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The photo that only a latent file names is no output, nor is the style; a damaged file leaves the others."""
    base = tmp_path / "tiny.safetensors"
    checkpoints.save(checkpoints.Checkpoint(generator=models.generator), base)
    save_style(style, tmp_path / "dark.limner", models.generator)
    photo = media.write(tmp_path / "me.png", make_photo())
    file, _ = keep(tmp_path / "me_01.safetensors", models, photo=photo)
    before = photo.read_bytes()
    words = ["--style", str(tmp_path / "dark.limner"), "--model", str(base), "--device", "cpu", "--overwrite"]
    aside = tmp_path / "other" / ".." / "me.png"
    for out in (photo, aside, tmp_path / "dark.limner"):
        assert main(["stylize", str(file), *words, "--out", str(out)]) == 2
        assert f"out is {out}, which the command reads" in capsys.readouterr().err
    compared = photo.rename(tmp_path / "new-compare.png")
    keep(file, models, photo=compared)
    assert main(["stylize", str(file), *words, "--out", str(tmp_path / "new.png"), "--compare"]) == 2
    assert "new-compare.png, which the command reads" in capsys.readouterr().err
    assert compared.read_bytes() == before
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no codes")
    files = [str(broken), str(tmp_path / "gone.npy"), str(file)]
    assert main(["stylize", *files, *words, "--json"]) == 2
    told = capsys.readouterr()
    record = json.loads(told.out.splitlines()[-1])
    assert [Path(entry["photo"]).name for entry in record["failed"]] == ["broken.safetensors", "gone.npy"]
    assert [Path(name).name for entry in record["photos"] for name in entry["files"]] == [
        "new-compare-dark.png"
    ]
    assert str(broken) in told.err
    assert main(["stylize", str(broken), *words]) == 2


def test_a_style_is_learned_on_codes_from_files(models: Models, tmp_path: Path) -> None:
    """They are taken as they are, beside pictures whose code is searched; the command reads one per picture."""
    file, latent = keep(tmp_path / "me.safetensors", models, person=0.2)
    pictures = [make_photo(60, 60), make_photo(70, 70)]
    options = LearnOptions(aligned=True, steps=1, invert_steps=2)
    learned = learn_style(pictures, options, models=models, sources=[latent, pictures[1]]).style
    assert learned.codes is not None
    torch.testing.assert_close(learned.codes[:1], latent.tensor)
    assert not torch.equal(learned.codes[0], learned.codes[1])
    base = tmp_path / "tiny.safetensors"
    checkpoints.save(
        checkpoints.Checkpoint(generator=models.generator, discriminator=models.discriminator), base
    )
    picture = media.write(tmp_path / "look.png", pictures[0])
    words = ["learn", str(picture), "--aligned", "--steps", "1", "--no-preview", "--model", str(base)]
    words += ["--out", str(tmp_path / "look.limner"), "--device", "cpu", "--sources"]
    assert main([*words, str(file)]) == 0
    kept = load_style(tmp_path / "look.limner").codes
    assert kept is not None
    torch.testing.assert_close(kept, latent.tensor, atol=2e-3, rtol=2e-3)
    several = save_latent(tmp_path / "two.safetensors", Latent("w+", latent.tensor.repeat(2, 1, 1)))
    assert main([*words, str(several), "--overwrite"]) == 2
