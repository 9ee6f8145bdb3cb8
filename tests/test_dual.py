"""Style transfer with a DualStyleGAN: transfer, mixing, sampling, photos, and ``limner dual``."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_generator
from torch import Tensor

from limner import checkpoints, media, zoo
from limner.app import cli
from limner.app.commands import dual as dual_command
from limner.app.commands.dual import Options, pick_model, plan_outputs, style_names
from limner.checkpoints import Checkpoint
from limner.checkpoints.dual_child import save_dual
from limner.errors import CheckpointError, KeyMismatchError, OptionError, ShapeError
from limner.inversion.encode import encode_latents
from limner.latent import Latent
from limner.nn import deltas
from limner.nn.dualstylegan import DualGenerator, StyleSampler
from limner.nn.encoders import Encoder
from limner.pipeline.dual import DualModels, embed_style, load_dual
from limner.pipeline.options import DualPhotoOptions
from limner.pipeline.photos import embed_faces, stylize
from limner.stylization import DualOptions, DualStyle, transfer
from limner.stylization.dual import (
    at_strength,
    combine,
    find_code,
    mix_styles,
    paint_samples,
    sample_styles,
    to_extrinsic,
)

ROWS, WIDTH = 8, 16
WHOLE = DualOptions(structure=1.0, color=1.0, truncation=1.0)


def make_dual(seed: int = 0) -> DualGenerator:
    dual = DualGenerator.around(make_generator(seed))
    torch.manual_seed(seed)
    for name, value in dual.named_parameters():
        if not name.startswith("generator."):
            value.data = value.data + 0.2 * torch.randn_like(value)
    return dual.eval().requires_grad_(False)


def make_codes(count: int = 4) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(8)
    return {f"style-{i}.jpg": torch.randn(ROWS, WIDTH, generator=rng) for i in range(count)}


@pytest.fixture
def dual() -> DualGenerator:
    return make_dual()


@pytest.fixture
def content() -> Latent:
    return Latent("w+", torch.randn(2, ROWS, WIDTH))


@pytest.fixture
def extrinsic(dual: DualGenerator) -> Tensor:
    return to_extrinsic(dual, make_codes()["style-1.jpg"])


class TestTransfer:
    def test_is_the_network_on_the_options(
        self, dual: DualGenerator, content: Latent, extrinsic: Tensor
    ) -> None:
        found = transfer(dual, content, extrinsic, DualOptions(structure=0.3, color=0.6, truncation=0.5))
        w_avg = dual.generator.w_avg
        expected = dual(w_avg + 0.5 * (content.tensor - w_avg), extrinsic, dual.weights(0.3, 0.6))
        torch.testing.assert_close(found, expected.clamp(-1, 1), atol=1e-5, rtol=1e-5)

    def test_truncation_toward_zero(self, dual: DualGenerator, content: Latent, extrinsic: Tensor) -> None:
        found = transfer(dual, content, extrinsic, dataclasses.replace(WHOLE, truncation=0.5, towards="zero"))
        expected = dual(0.5 * content.tensor, extrinsic).clamp(-1, 1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_weights_of_zero_are_the_face(
        self, dual: DualGenerator, content: Latent, extrinsic: Tensor
    ) -> None:
        options = DualOptions(structure=0, color=0, truncation=1)
        expected = dual.generator.synthesis(content.tensor).clamp(-1, 1)
        assert torch.equal(transfer(dual, content, extrinsic, options), expected)

    def test_row_weights_take_the_place_of_both(
        self, dual: DualGenerator, content: Latent, extrinsic: Tensor
    ) -> None:
        weights = tuple(i / 20 for i in range(18))
        found = transfer(dual, content, extrinsic, DualOptions(row_weights=weights, truncation=1))
        expected = dual(content.tensor, extrinsic, weights).clamp(-1, 1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_keep_color_takes_the_faces_color_rows(
        self, dual: DualGenerator, content: Latent, extrinsic: Tensor
    ) -> None:
        found = transfer(dual, content, extrinsic, dataclasses.replace(WHOLE, keep_color=True))
        own = extrinsic.expand(2, -1, -1).clone()
        own[:, dual.structure_rows :] = content.tensor[:, dual.structure_rows :]
        torch.testing.assert_close(found, dual(content.tensor, own).clamp(-1, 1), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, transfer(dual, content, extrinsic, WHOLE), atol=1e-3)

    def test_z_plus_content(self, dual: DualGenerator, extrinsic: Tensor) -> None:
        z_plus = torch.randn(1, ROWS, WIDTH)
        found = transfer(dual, Latent("z+", z_plus), extrinsic, WHOLE)
        w_plus = Latent("w+", dual.generator.map_z_plus(z_plus))
        assert torch.equal(found, transfer(dual, w_plus, extrinsic, WHOLE))

    def test_generator_tuned_to_a_person(
        self, dual: DualGenerator, content: Latent, extrinsic: Tensor
    ) -> None:
        tuned = make_generator(3)
        found = transfer(dual, content, extrinsic, WHOLE, generator=tuned)
        other = DualGenerator(**dual.config())
        other.load_state_dict(dual.state_dict())
        other.generator.load_state_dict(tuned.state_dict())
        torch.testing.assert_close(found, other(content.tensor, extrinsic).clamp(-1, 1), atol=1e-5, rtol=1e-5)


class TestStyles:
    def test_by_number_and_name(self) -> None:
        codes = make_codes()
        for key in ("2", "style-2", "style-2.jpg"):
            name, code = find_code(codes, key)
            assert name == "style-2.jpg"
            assert code is codes["style-2.jpg"]

    def test_names_of_digits(self) -> None:
        """Pictures are often numbered: such a name counts where it is no number of a style, or not written like one."""
        codes = dict(zip(("2.jpg", "020015.jpg", "01.jpg"), make_codes(3).values(), strict=True))
        for key, name in (("020015", "020015.jpg"), ("01", "01.jpg"), ("2", "01.jpg"), ("1", "020015.jpg")):
            assert find_code(codes, key)[0] == name

    @pytest.mark.parametrize(
        ("key", "message"),
        [("4", "0 to 3"), ("stile-2", "did you mean style-2.jpg"), ("xyz", "has 4 styles")],
    )
    def test_unknown(self, key: str, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            find_code(make_codes(), key)

    def test_one_strength_goes_from_the_face_to_the_whole_style(
        self, dual: DualGenerator, content: Latent, extrinsic: Tensor
    ) -> None:
        none, usual, whole = (at_strength(strength) for strength in (0.0, 0.75, 1.0))
        assert torch.equal(
            transfer(dual, content, extrinsic, none), dual.generator.synthesis(content.tensor).clamp(-1, 1)
        )
        assert usual == DualOptions()
        assert whole == DualOptions(structure=1.0)

    def test_strokes_of_its_own_are_not_finished(self, dual: DualGenerator, extrinsic: Tensor) -> None:
        assert DualStyle(dual, extrinsic, WHOLE).detail
        fine = DualGenerator.around(dual.generator, structure_rows=5, fine_blocks=2)
        assert not DualStyle(fine, extrinsic, WHOLE).detail

    def test_mixing(self, dual: DualGenerator) -> None:
        a, b = (to_extrinsic(dual, code) for code in list(make_codes().values())[:2])
        torch.testing.assert_close(mix_styles([a, b], [1.0, 3.0]), 0.25 * a + 0.75 * b)
        torch.testing.assert_close(mix_styles([a, b], [1.0, 0.0]), a)
        for weights in ([1.0], [1.0, -1.0]):
            with pytest.raises(OptionError, match="weights for 2 styles"):
                mix_styles([a, b], weights)

    def test_combining(self, dual: DualGenerator) -> None:
        a, b = torch.randn(1, ROWS, WIDTH), torch.randn(3, ROWS, WIDTH)
        found = combine(dual, a, b)
        assert torch.equal(found[:, :7], a.expand(3, -1, -1)[:, :7])
        assert torch.equal(found[:, 7:], b[:, 7:])


class TestSamples:
    def test_of_known_styles(self, dual: DualGenerator) -> None:
        codes = make_codes()
        known = to_extrinsic(dual, torch.stack(list(codes.values())))
        for drawn in sample_styles(dual, 6, sampler=None, codes=codes, rng=torch.Generator().manual_seed(1)):
            assert all(any(torch.equal(row, code) for code in known) for row in drawn)

    def test_of_a_sampler(self, dual: DualGenerator) -> None:
        sampler = StyleSampler(structure_rows=7, color_rows=1, z_dim=WIDTH).eval()
        structure, color = sample_styles(
            dual, 2, sampler=sampler, codes={}, rng=torch.Generator().manual_seed(1)
        )
        assert structure.shape == color.shape == (2, ROWS, WIDTH)
        assert not torch.equal(structure, color)
        with pytest.raises(ShapeError, match="codes of 9 rows, expected 8"):
            sample_styles(
                dual,
                1,
                sampler=StyleSampler(structure_rows=7, color_rows=2, z_dim=WIDTH).eval(),
                codes={},
                rng=torch.Generator(),
            )

    def test_of_nothing(self, dual: DualGenerator) -> None:
        with pytest.raises(OptionError, match="neither a sampler nor codes"):
            sample_styles(dual, 1, sampler=None, codes={}, rng=torch.Generator())

    def test_what_is_fixed_is_shared(self, dual: DualGenerator) -> None:
        structure, color = torch.randn(2, 3, ROWS, WIDTH)

        def paint(fix: tuple[str, ...]) -> Tensor:
            rng = torch.Generator().manual_seed(4)
            return paint_samples(dual, structure, color, WHOLE, fix=fix, rng=rng, batch_size=2)

        same = paint(("content", "structure", "color"))
        torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-5, rtol=1e-5)
        free = paint(())
        for fix in ("content", "structure", "color"):
            found = paint((fix,))
            torch.testing.assert_close(found[0], free[0], atol=1e-5, rtol=1e-5)
            assert (found[1] - free[1]).abs().max() > 1e-3
            assert (found[1] - found[0]).abs().max() > 1e-3
        with pytest.raises(OptionError, match="fix is colour, expected some of content, structure, color"):
            paint(("colour",))


@pytest.fixture(scope="module")
def trunk():
    return zoo.load("lite0").eval().requires_grad_(False)


@pytest.fixture
def models(trunk) -> DualModels:
    dual = make_dual()
    return DualModels(generator=dual.generator, trunk=trunk, dual=dual, codes=make_codes(), base="tiny")


def photo(seed: int = 0, side: int = 48) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return media.resize_pixels(coarse, side)


class TestPhotos:
    OPTIONS = DualPhotoOptions(aligned=True, invert_steps=3, size=32)

    def test_faces_get_the_style(self, models: DualModels) -> None:
        embedded = embed_faces(photo(), self.OPTIONS, models=models)
        style = DualStyle(models.dual, to_extrinsic(models.dual, models.codes["style-0.jpg"]), self.OPTIONS)
        result = stylize(photo(), style, self.OPTIONS, models=models, embedded=embedded)
        expected = transfer(models.dual, embedded[0][1].latent, style.extrinsic, self.OPTIONS)
        assert (result.faces[0].styled == media.to_pixels(expected)[0]).all()
        assert (result.pixels != photo()).any()

    def test_person_tuned_generator_is_used(self, models: DualModels) -> None:
        options = dataclasses.replace(self.OPTIONS, inverter="pivotal", tune_steps=3)
        embedded = embed_faces(photo(), options, models=models)
        inversion = embedded[0][1]
        assert inversion.delta is not None
        style = DualStyle(models.dual, to_extrinsic(models.dual, models.codes["style-0.jpg"]), options)
        found = stylize(photo(), style, options, models=models, embedded=embedded).faces[0].styled
        tuned = deltas.apply(models.generator, [(inversion.delta, 1.0)])
        expected = transfer(
            models.dual,
            inversion.latent,
            style.extrinsic,
            options,
            noise=inversion.noise_maps,
            generator=tuned,
        )
        assert (found == media.to_pixels(expected)[0]).all()

    def test_z_plus_inverter(self, models: DualModels) -> None:
        options = dataclasses.replace(self.OPTIONS, inverter="z+")
        assert embed_faces(photo(), options, models=models)[0][1].latent.space == "z+"

    def test_another_base_is_refused(self, models: DualModels) -> None:
        style = DualStyle(make_dual(4), torch.zeros(1, ROWS, WIDTH), self.OPTIONS, name="x")
        with pytest.raises(KeyMismatchError, match="must be embedded with its own generator"):
            stylize(photo(), style, self.OPTIONS, models=models)

    def test_style_picture(self, models: DualModels) -> None:
        steps = []
        found = embed_style(photo(1), models=models, steps=12, aligned=True, on_step=steps.append)
        assert found.code.shape == (1, ROWS, WIDTH)
        assert torch.equal(found.extrinsic, models.generator.map_z_plus(found.code))
        assert steps[-1].loss < steps[0].loss
        assert found.note == ""
        assert "middle square" in embed_style(photo(1), models=models, steps=1).note


@pytest.fixture
def model(tmp_path: Path) -> Path:
    sampler = StyleSampler(structure_rows=7, color_rows=1, z_dim=WIDTH).eval()
    checkpoint = Checkpoint(dual=make_dual(), codes={"extrinsic": make_codes()}, sampler=sampler)
    checkpoints.save(checkpoint, tmp_path / "dual.safetensors")
    media.write(tmp_path / "face.png", photo())
    return tmp_path / "dual.safetensors"


def command(model: Path, *words: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    fast = ["--model", model, "--aligned", "--invert-steps", "2", "--style-steps", "2", "--device", "cpu"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([*map(str, ["dual", *words, *fast])])
    return status, out.getvalue(), err.getvalue()


class TestCommand:
    def test_the_published_encoder_embeds_faces(self, model: Path) -> None:
        torch.manual_seed(5)
        encoder = Encoder(
            rows=ROWS, space="z+", in_size=64, w_dim=WIDTH, widths=(6, 8, 10, 12), depths=(1, 1, 1, 1)
        ).eval()
        file, face = model.parent / "encoder.pt", model.parent / "face.png"
        with pytest.warns(UserWarning, match="the original programs cannot load it"):
            checkpoints.save(Checkpoint(generator=make_generator(), encoder=encoder), file)
        words = ("--inverter", "psp", "--encoder", file, "--crop", "--size", 32, "--structure", 0.5)
        status, _, err = command(model, face, *words, "--out", model.parent / "found.png")
        assert status == 0, err
        loaded = load_dual(model, encoder=file)
        image = media.to_image(media.resize_pixels(photo(), 32))
        code = Latent("z+", encode_latents(loaded.generator, encoder, image)[-1].tensor)
        _, extrinsic = find_code(loaded.codes, "0")
        wanted = transfer(loaded.dual, code, to_extrinsic(loaded.dual, extrinsic), DualOptions(structure=0.5))
        found = media.read(model.parent / "found.png").pixels.astype(int)
        assert np.abs(found - media.to_pixels(wanted)[0]).max() <= 2
        for wrong, message in ((words[:2], "name its checkpoint"), (words[2:4], "does not use --encoder")):
            status, _, err = command(model, face, *wrong, "--out", model.parent / "no.png")
            assert status == 2
            assert message in err

    def test_several_styles_and_a_sheet(self, model: Path) -> None:
        folder = model.parent
        words = ["--style", "1,style-3,random", "--sheet", folder / "sheet.png", "--compare", "--crop"]
        status, out, err = command(model, folder / "face.png", *words, "--out", folder / "o", "--json")
        assert status == 0, err
        found = json.loads(out.splitlines()[-1])["photos"]
        assert [record["style"] for record in found] == ["style-1.jpg", "style-3.jpg", "random"]
        files = [Path(file) for record in found for file in record["files"]]
        assert {file.name for file in files} >= {"face-1.png", "face-style-3.png", "face-random.png"}
        assert all(file.exists() for file in (*files, folder / "sheet.png"))
        assert media.read(files[0]).pixels.shape == (512, 512, 3)
        status, _, err = command(model, folder / "face.png", "--style", "1", "--out", folder / "o")
        assert status == 2
        assert "exists already" in err

    def test_mixture_of_a_known_style_and_a_picture(self, model: Path) -> None:
        folder = model.parent
        media.write(folder / "unseen.png", photo(7))
        words = ["--style", "0", "--style", folder / "unseen.png", "--mix", "1,1", "--style-aligned"]
        status, out, err = command(model, folder / "face.png", *words, "--color-style", "2", "--json")
        assert status == 0, err
        record = json.loads(out.splitlines()[-1])["photos"][0]
        assert record["style"] == "1 style-0.jpg + 1 unseen.png, colours of style-2.jpg"
        assert Path(record["files"][0]).name == "face-mix.png"

    def test_structure_weight_counts(self, model: Path) -> None:
        folder, pictures = model.parent, []
        for weight in ("0", "1"):
            out = folder / f"{weight}.png"
            assert command(model, folder / "face.png", "--structure", weight, "--crop", "-o", out)[0] == 0
            pictures.append(media.read(out).pixels)
        assert (pictures[0] != pictures[1]).any()

    def test_samples(self, model: Path) -> None:
        out = model.parent / "samples.png"
        status, _, err = command(model, "--samples", "5", "--fix", "content", "-o", out)
        assert status == 0, err
        assert media.read(out).pixels.shape == (2 * 32 + 3 * 4, 3 * 32 + 4 * 4, 3)
        first = media.read(out).pixels
        assert command(model, "--samples", "5", "--style", "1", "-o", out, "--overwrite")[0] == 0
        assert (media.read(out).pixels != first).any()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "name photos to restyle, or give --samples"),
            (["face.png", "--samples", "2"], "name photos to restyle, or give --samples"),
            (["face.png", "--style", "9"], "there is no style 9; this model has 4"),
            (["face.png", "--style", "1,2", "--out", "a.png"], "there are 2 outputs; name a folder"),
            (["face.png", "--style", "1,2", "--mix", "1"], "mix has 1 weights for 2 styles"),
            (["--samples", "2", "--fix", "contents"], "fix is contents, expected some of content"),
            (["face.png", "--fix", "content"], "fix goes with samples"),
            (["--samples", "2", "--sheet", "s.png"], "sheet goes with photos"),
            (["--samples", "2", "--compare"], "compare goes with photos"),
            (["face.png", "--row-weights", "1,0"], "expected a number or one for each of 8 rows"),
        ],
    )
    def test_mistakes(self, model: Path, words: list[str], message: str, monkeypatch) -> None:
        monkeypatch.chdir(model.parent)
        status, _, err = command(model, *words)
        assert status == 2
        assert message in err

    def test_models_without_styles(self, model: Path, generator) -> None:
        plain = model.parent / "plain.safetensors"
        checkpoints.save(Checkpoint(generator=generator), plain)
        status, _, err = command(plain, model.parent / "face.png")
        assert status == 2
        assert "holds no DualStyleGAN" in err
        with pytest.raises(CheckpointError, match="holds no DualStyleGAN"):
            load_dual(plain)

    def test_one_file_per_photo_and_style(self) -> None:
        options = Options(photos=(Path("a/x.jpg"), Path("b/x.jpg")), style=("1", "p/1.png"), out=Path("o"))
        assert style_names(options) == ["1-1", "1-2"]
        names = [path.name for paths in plan_outputs(options) for path in paths]
        assert names == ["x-1-1.jpg", "x-1-2.jpg", "x-1-1-2.jpg", "x-1-2-2.jpg"]


def enter(name: str, kind: str, checkpoint: Checkpoint | None, file: Path | None = None) -> None:
    """Put a model into this test's cache as a download would."""
    download = zoo.Download(
        name=name, kind=kind, url=f"https://example.org/{name}.safetensors", licence="CC0-1.0"
    )
    zoo.cache_dir().mkdir(parents=True, exist_ok=True)
    place = zoo.cache_dir() / download.file_name
    if checkpoint is not None:
        checkpoints.save(checkpoint, place)
    elif file is not None:
        place.write_bytes(file.read_bytes())
    zoo.install(download, place)


class TestInstalled:
    """A packed model of this machine is found by its name, or without one."""

    @pytest.fixture
    def packed(self, tmp_path: Path) -> Path:
        dual = make_dual()
        enter("tiny", "model", Checkpoint(generator=dual.generator))
        file = tmp_path / "packed.safetensors"
        save_dual(
            dual, make_codes(), dual.generator, file, base_name="tiny", start_seed=0, budget_bytes=900_000
        )
        enter("tiny-dual", "dual", None, file)
        media.write(tmp_path / "face.png", photo())
        return tmp_path

    def test_stylize_knows_its_styles(self, packed: Path) -> None:
        words = ["--model", "tiny", "--aligned", "--invert-steps", "2", "--inverter", "w+", "--device", "cpu"]
        outputs = {}
        for style in ("tiny-dual", "tiny-dual:2"):
            with contextlib.redirect_stdout(io.StringIO()):
                assert cli.main(["stylize", str(packed / "face.png"), "--style", style, *words]) == 0
            outputs[style] = media.read(packed / f"face-{style.replace(':', '-')}.png").pixels
        assert (outputs["tiny-dual"] != outputs["tiny-dual:2"]).any()
        words[1] = str(packed / "packed.safetensors")  # a file, as model and as style
        out = packed / "face-packed-2.png"
        with contextlib.redirect_stdout(io.StringIO()):
            assert cli.main(["stylize", str(packed / "face.png"), "--style", f"{words[1]}:2", *words]) == 0
        assert (media.read(out).pixels == outputs["tiny-dual:2"]).all()
        err = io.StringIO()
        for extra, message in (
            (["--style", "tiny-dual:9"], "no style 9"),
            (["--style", "tiny-dual", "--also", "toon"], "leave also out"),
            (["--style", "tiny-dual", "--hold", "8px"], "which has no hold"),
        ):
            with contextlib.redirect_stderr(err):
                assert (
                    cli.main(
                        ["stylize", str(packed / "face.png"), *extra, "--out", str(packed / "x.png"), *words]
                    )
                    == 2
                )
            assert message in err.getvalue()

    def test_the_usual_one_needs_no_name(self, packed: Path, monkeypatch) -> None:
        assert pick_model() == ("dual-toon" if "dual-toon" in zoo.names("dual") else "tiny-dual")
        monkeypatch.setattr(dual_command, "DEFAULT_MODEL", "tiny-dual")
        pictures = []
        for name, words in (("a", []), ("b", ["--model", "tiny-dual"])):
            out = packed / f"{name}.png"
            words += ["--style", "style-2", "--aligned", "--invert-steps", "1", "--device", "cpu"]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                assert cli.main(["dual", str(packed / "face.png"), *words, "--out", str(out)]) == 0
            pictures.append(media.read(out).pixels)
        assert (pictures[0] == pictures[1]).all()
