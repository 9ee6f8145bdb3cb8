"""The methods encoder, hybrid and auto, and pivots that come from the encoder."""

from __future__ import annotations

import pytest
import torch
from conftest import make_generator
from test_compact import make_encoder

from limner.errors import KeyMismatchError, OptionError
from limner.inversion import InversionOptions, PivotalOptions, invert
from limner.latent import Latent

FEW = {"steps": 3, "fit_noise": False, "mean_samples": 100}


@pytest.fixture
def image(generator):
    with torch.no_grad():
        return generator(torch.randn(2, generator.z_dim)).clamp(-1, 1)


def test_encoder_gives_its_codes(generator, image):
    encoder = make_encoder(generator)
    seen = []
    found = invert(
        generator,
        image,
        InversionOptions(method="encoder", refinements=2),
        perceptual=None,
        encoder=encoder,
        on_step=lambda step, steps, record, preview: seen.append((step, steps, record["loss"], preview())),
    )
    codes = encoder.encode(generator, image, steps=2)[-1]
    painted = generator.synthesis(codes).clamp(-1, 1)
    assert found.latent.space == "w+"
    assert torch.equal(found.latent.tensor, codes)
    assert torch.allclose(found.image, painted)
    assert found.noise is None
    assert found.delta is None
    assert [fit.method for fit in found.report] == ["encoder"] * 2
    assert found.report[0].steps == 2
    assert found.report[0].psnr == pytest.approx(
        float(-10 * torch.log10((painted[0] - image[0]).square().mean() / 4)), rel=1e-4
    )
    assert len(seen) == 1
    assert seen[0][:2] == (2, 2)
    assert seen[0][2] > 0


def test_hybrid_starts_from_the_encoder(generator, image):
    """Without learning rate it stays there; with one it comes closer."""
    encoder = make_encoder(generator)
    codes = encoder.encode(generator, image, steps=3)[-1]
    still = invert(
        generator,
        image,
        InversionOptions(method="hybrid", learning_rate=1e-5, **FEW),
        perceptual=None,
        encoder=encoder,
    )
    assert torch.allclose(still.latent.tensor, codes, atol=1e-3)
    assert [fit.method for fit in still.report] == ["hybrid"] * 2
    moved = invert(
        generator,
        image,
        InversionOptions(method="hybrid", **FEW | {"steps": 20}),
        perceptual=None,
        encoder=encoder,
    )
    assert all(a.psnr > b.psnr for a, b in zip(moved.report, still.report, strict=True))


def test_auto_starts_from_the_encoder_where_there_is_one(generator, image):
    options = InversionOptions(method="auto", **FEW)
    encoder = make_encoder(generator)
    assert invert(generator, image, options, perceptual=None, encoder=encoder).report[0].method == "hybrid"
    assert invert(generator, image, options, perceptual=None).report[0].method == "w+"
    mask = torch.ones(1, 1, 32, 32)
    found = invert(generator, image, options, perceptual=None, encoder=encoder, mask=mask)
    assert found.report[0].method == "hybrid"


@pytest.mark.parametrize("pivot", ["encoder", "hybrid"])
def test_pivots_from_the_encoder(generator, image, pivot):
    encoder = make_encoder(generator)
    found = invert(
        generator,
        image[:1],
        InversionOptions(method="pivotal", **FEW),
        pivotal=PivotalOptions(pivot=pivot, tune_steps=5, tune_learning_rate=0.003),
        perceptual=None,
        encoder=encoder,
    )
    start = invert(
        generator, image[:1], InversionOptions(method=pivot, **FEW), perceptual=None, encoder=encoder
    )
    assert torch.allclose(found.latent.tensor, start.latent.tensor)
    assert found.delta
    assert found.report[0].psnr > start.report[0].psnr
    assert found.report[0].steps == start.report[0].steps + 5


@pytest.mark.parametrize("method", ["encoder", "hybrid"])
def test_no_encoder_is_an_error(generator, image, method):
    with pytest.raises(OptionError, match=f"{method} needs a compact encoder .* limner train encoder"):
        invert(generator, image, InversionOptions(method=method, **FEW), perceptual=None)


def test_contradictions_are_errors(generator, image):
    encoder = make_encoder(generator)
    codes = Latent("w+", encoder.start(2))
    for method, extra in (
        ("encoder", {"init": codes}),
        ("encoder", {"mask": torch.ones(1, 1, 32, 32)}),
        ("hybrid", {"init": codes}),
    ):
        with pytest.raises(OptionError, match="no init"):
            invert(
                generator,
                image,
                InversionOptions(method=method, **FEW),
                perceptual=None,
                encoder=encoder,
                **extra,
            )
    with pytest.raises(KeyMismatchError, match="belongs to the generator tiny"):
        invert(
            make_generator(seed=9),
            image,
            InversionOptions(method="encoder"),
            perceptual=None,
            encoder=encoder,
        )


@pytest.fixture
def installed(generator, tmp_path):
    """A tiny generator and its compact encoder as files, the encoder also in the user's folder of models."""
    from limner import zoo
    from limner.checkpoints import Checkpoint, save
    from limner.checkpoints.compact import save_encoder

    model = tmp_path / "tiny.safetensors"
    save(Checkpoint(generator=generator), model)
    file = zoo.cache_dir() / "tiny-encoder.safetensors"
    file.parent.mkdir(parents=True)
    encoder = make_encoder(generator)
    encoder.trunk = zoo.load("lite0")
    save_encoder(encoder, file, provenance={"source": "test"}, packed=False)
    zoo.install(
        zoo.Download("tiny-encoder", "encoder", "https://example.org/tiny-encoder.safetensors", "CC0-1.0"),
        file,
    )
    return model, file, encoder


def test_zoo_and_models_find_the_encoder(generator, installed, image):
    """The encoder of a generator is found by the generator's digest."""
    from limner import zoo
    from limner.pipeline import load_models

    model, file, encoder = installed
    loaded = zoo.load("tiny-encoder")
    assert torch.allclose(loaded.encode(generator, image)[-1], encoder.encode(generator, image)[-1])
    models = load_models(model)
    assert models.encoder is None
    assert models.compact is not None
    assert models.encoder_for("psp") is None
    assert models.encoder_for("hybrid") is models.compact
    named = load_models(model, encoder=file)
    assert named.compact is named.encoder
    assert load_models("heads").compact is None or load_models("heads").compact.core.num_rows == 12


def test_other_generators_do_not_get_it(installed, tmp_path):
    from limner.checkpoints import Checkpoint, save
    from limner.pipeline import load_models

    other = tmp_path / "other.safetensors"
    save(Checkpoint(generator=make_generator(seed=5)), other)
    assert load_models(other).compact is None
