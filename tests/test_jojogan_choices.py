"""JoJoGAN's choices: S-space masks, virtual inverter, losses, weights, identity, going on, stopping, merging."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import W_DIM
from torch import Tensor

from limner import checkpoints
from limner.app.commands.style import export
from limner.errors import KeyMismatchError, OptionError
from limner.latent import Latent, LayerMask, render
from limner.nn import deltas
from limner.nn.stylegan2 import Discriminator, Generator
from limner.pipeline import Models
from limner.stylization.codes import follow_mask, virtual_codes
from limner.stylization.jojogan import JojoganTraining, LearningStep, clip_softly, has_settled, learn
from limner.stylization.merging import merge
from limner.stylization.options import JojoganOptions, StyleOptions
from limner.stylization.style import Style, load_style, paint, save_style


@pytest.fixture
def pictures(generator: Generator) -> dict[str, Tensor]:
    """Two style pictures and their codes."""
    with torch.no_grad():
        images = -generator(torch.randn(2, W_DIM)).clamp(-1, 1)
        w_plus = generator.broadcast(generator.mapping(torch.randn(2, W_DIM))).clone()
    return {"images": images, "w_plus": w_plus}


def start(generator: Generator, judge: Discriminator, given: dict, **options: object) -> JojoganTraining:
    """Return a training with these options; distances are real functions of the pictures."""
    return JojoganTraining(
        generator=generator,
        discriminator=judge,
        options=JojoganOptions(**options),  # type: ignore[arg-type]
        perceptual=squares,
        identity=squares,
        trunk=lambda image: [image, image.abs()],
        **given,
    )


def squares(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference, (B,)."""
    return (a - b).square().mean((1, 2, 3))


def test_s_space_masks_tell_torgb_from_convolutions(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    """Masked vectors are the random code's bit for bit, the others the picture's; affines stay the base's."""
    training = start(generator, discriminator, pictures, mask="5-.conv,s:1=0.5")
    z = torch.randn(2, W_DIM)
    mixed = training.mix(z)
    assert mixed.space == "s"
    own = generator.synthesis.styles(pictures["w_plus"])
    other = generator.synthesis.styles(generator.broadcast(generator.mapping(z)))
    names, rows = generator.synthesis.style_names, generator.synthesis.style_rows
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        share = 0.5 if i == 1 else float(row >= 5 and not name.endswith(".rgb"))
        torch.testing.assert_close(mixed.parts[i], torch.lerp(own[i], other[i], share))
    training.step(z, "constant")
    changed = {
        name
        for name, p in training.generator.named_parameters()
        if not torch.equal(p, generator.get_parameter(name))
    }
    assert changed
    assert not any("affine" in name for name in changed)


def test_a_mask_of_rows_is_the_same_in_either_space(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    """Affines are linear, so mixing rows and mixing the vectors of these rows paint one picture."""
    z = torch.randn(2, W_DIM)
    rows = start(generator, discriminator, pictures, mask="4-=0.5").paint(z, "constant")
    vectors = start(generator, discriminator, pictures, mask="4-.conv=0.5,4-.rgb=0.5").paint(z, "constant")
    torch.testing.assert_close(rows, vectors, atol=1e-4, rtol=1e-4)


def test_the_virtual_inverter_takes_masked_layers_from_the_inversion(
    generator: Generator, pictures: dict
) -> None:
    """All keeps the code, none is the mean of 10,000 samples, shape=0.5 lies between in rows 0 to 2 alone."""
    w_plus = pictures["w_plus"]
    assert torch.equal(virtual_codes(generator, w_plus, "all").tensor, w_plus)
    mean = generator.mean_w(10_000, rng=torch.Generator().manual_seed(3))
    none = virtual_codes(generator, w_plus, "none", seed=3).tensor
    torch.testing.assert_close(none, mean.expand_as(none))
    half = virtual_codes(generator, w_plus, "shape=0.5", seed=3).tensor
    torch.testing.assert_close(half[:, :3], (w_plus[:, :3] + mean) / 2)
    torch.testing.assert_close(half[:, 3:], mean.expand_as(half[:, 3:]))
    assert virtual_codes(generator, w_plus, "texture.rgb").space == "s"
    with pytest.raises(OptionError, match="no rows between"):
        follow_mask("eyes", generator)


def test_eyes_have_rows_between_shape_and_texture() -> None:
    """From 128 px rows 0-3, 4-6 and 7 and up, which leave nothing out."""
    large = Generator(
        resolution=128, channels=dict.fromkeys((4, 8, 16, 32, 64, 128), 2), w_dim=4, z_dim=4, mapping_depth=1
    )
    found = [
        follow_mask(name, large).rows(large).nonzero().flatten().tolist()
        for name in ("shape", "Eyes", "texture")
    ]
    assert found == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10, 11]]


def test_losses_and_weights_count_as_they_say(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    """Each loss against the sum written out."""
    z = torch.randn(2, W_DIM)
    zero: dict[str, Any] = {"perceptual": 0.0, "pixels": 0.0}
    image = start(generator, discriminator, pictures).paint(z, "constant").detach()
    apart = image - pictures["images"]

    def loss(**options: object) -> float:
        return float(start(generator, discriminator, pictures, **zero | options).loss(image).detach())

    stages = [
        (a - b).abs().mean((1, 2, 3))
        for a, b in zip(
            discriminator.features(image), discriminator.features(pictures["images"]), strict=True
        )
    ]
    expected = (stages[0] + 3 * stages[2]) / 4
    assert loss(feature_layers=(0, 2), feature_weights=(1, 3)) == pytest.approx(
        float(expected.mean()), rel=1e-4
    )
    weighted = float((expected * torch.tensor([0.5, 1.5])).mean())
    found = loss(feature_layers=(0, 2), feature_weights=(1, 3), picture_weights=(1, 3))
    assert found == pytest.approx(weighted, rel=1e-4)
    assert loss(loss="lpips") == pytest.approx(float(apart.square().mean()), rel=1e-4)
    maps = apart.abs().mean() + (image.abs() - pictures["images"].abs()).abs().mean()
    assert loss(loss="vgg") == pytest.approx(float(maps) / 2, rel=1e-4)
    assert loss(loss="vgg", feature_layers=(0,), pixels=2.0) == pytest.approx(
        3 * float(apart.abs().mean()), rel=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"picture_weights": (1.0,)}, "1 numbers for 2 style pictures"),
        ({"feature_weights": (1.0, 2.0)}, "2 numbers for 3 compared stages"),
        ({"feature_weights": (0.0, 0.0, 0.0)}, "not all 0"),
        ({"loss": "vgg", "feature_layers": (2,)}, "the trunk has stages 0 to 1"),
        ({"loss": "lpips", "feature_layers": (0,)}, "compares no stages"),
    ],
)
def test_choices_that_do_not_fit_are_named(
    generator: Generator, discriminator: Discriminator, pictures: dict, options: dict, message: str
) -> None:
    """What came and what was expected stand in the message."""
    with pytest.raises(OptionError, match=message):
        start(generator, discriminator, pictures, **options)


def test_a_distance_that_is_missing_is_named(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    """Losses that need one do not silently do without."""
    for options, name in (
        ({"loss": "lpips"}, "perceptual"),
        ({"loss": "vgg"}, "trunk"),
        ({"identity": 1.0}, "identity"),
    ):
        with pytest.raises(OptionError, match=f"pass `{name}`"):
            learn(generator, discriminator, options=JojoganOptions(**options), **pictures)  # type: ignore[arg-type]


def test_the_identity_loss_holds_faces_near_those_without_the_style(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    """With a heavy weight the styled pictures of the same codes stay closer to the base's."""
    latent = Latent("w+", pictures["w_plus"])
    plain = render(generator, latent)

    def moved(weight: float) -> float:
        options = JojoganOptions(steps=10, learning_rate=0.01, identity=weight, ema=0.0)
        style = learn(generator, discriminator, options=options, identity=squares, **pictures)
        return float(squares(render(style.apply(generator), latent), plain).mean())

    assert moved(100.0) < 0.5 * moved(0.0)


def test_learning_goes_on_from_a_file(
    generator: Generator, discriminator: Discriminator, pictures: dict, tmp_path: Path
) -> None:
    """The loss begins where it ended, the steps add up, the codes come back; another base is refused."""
    options = JojoganOptions(steps=30, learning_rate=0.01, ema=0.0, style_mix=0.0)
    first = learn(generator, discriminator, options=options, **pictures)
    first = dataclasses.replace(first, codes=pictures["w_plus"])
    save_style(first, tmp_path / "a.limner", generator)
    back = load_style(tmp_path / "a.limner")
    assert back.codes is not None
    torch.testing.assert_close(back.codes, pictures["w_plus"], atol=2e-3, rtol=2e-3)
    losses: list[LearningStep] = []
    more = dataclasses.replace(options, steps=3)
    second = learn(generator, discriminator, options=more, start=back, on_step=losses.append, **pictures)
    assert losses[0].loss < 0.9 * first.provenance["first_loss"]
    assert losses[0].loss == pytest.approx(first.provenance["last_loss"], rel=0.1)
    assert second.provenance["steps"] == 33
    assert second.provenance["learn_seconds"] > first.provenance["learn_seconds"] > 0
    other = dataclasses.replace(back, base="0" * 64)
    with pytest.raises(KeyMismatchError, match="learn it again"):
        learn(generator, discriminator, options=more, start=other, **pictures)


def test_learning_stops_when_told_and_keeps_what_it_has(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    """On True from ``on_step``; the style is what the last step's generator paints."""
    latent = Latent("w+", pictures["w_plus"])
    painted = []

    def stop(step: LearningStep) -> bool:
        with torch.no_grad():
            painted.append(render(step.tuned, latent))
        return step.number == 4

    style = learn(generator, discriminator, options=JojoganOptions(steps=50), on_step=stop, **pictures)
    assert len(painted) == style.provenance["steps"] == 4
    torch.testing.assert_close(render(style.apply(generator), latent), painted[-1], atol=1e-5, rtol=1e-5)


def test_patience_ends_flat_losses_only() -> None:
    """Falling losses go on; flat ones end after the patience; a window of noise is averaged out."""
    falling = [0.97**n for n in range(200)]
    assert not has_settled(falling, 20)
    assert not has_settled(falling[:40] + [falling[39]] * 15, 20)
    assert has_settled(falling[:40] + [falling[39]] * 40, 20)
    assert not has_settled([1.0] * 500, 0)


def test_merging_adds_changes_and_survives_the_file(
    generator: Generator, discriminator: Discriminator, pictures: dict, tmp_path: Path
) -> None:
    """The merged style is the weighted sum; it saves, loads and exports to what the originals read."""
    a, b = (
        learn(
            generator,
            discriminator,
            options=JojoganOptions(steps=3, mask=mask, learning_rate=0.01),
            **pictures,
        )
        for mask in ("4-", "6-")
    )
    both = merge([a, b], [1.0, 0.5], names=["a", "b"])
    for name in set(a.delta) | set(b.delta):
        expected = a.delta[name] + 0.5 * b.delta[name]
        torch.testing.assert_close(both.delta[name], expected)
    assert both.options["row_weights"] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [part["weight"] for part in merge([a, b]).provenance["merged"]] == [0.5, 0.5]
    save_style(both, tmp_path / "both.limner", generator)
    assert load_style(tmp_path / "both.limner").provenance["merged"][1]["name"] == "b"
    with pytest.warns(UserWarning, match="original programs"):
        export(both, tmp_path / "both.pt", Models(generator=generator, trunk=None))  # type: ignore[arg-type]
    state = torch.load(tmp_path / "both.pt", weights_only=True)
    assert set(state) >= {"g", "g_ema", "latent_avg"}
    found = checkpoints.load(tmp_path / "both.pt").generator
    assert found is not None
    w_plus = pictures["w_plus"]
    torch.testing.assert_close(found.synthesis(w_plus), both.apply(generator).synthesis(w_plus))
    with pytest.raises(KeyMismatchError, match="only styles of one base"):
        merge([a, dataclasses.replace(b, base="0" * 64)])
    with pytest.raises(OptionError, match="1 weights for 2 styles"):
        merge([a, b], [1.0])


@pytest.fixture
def style(generator: Generator) -> Style:
    """A style that moves every layer."""
    delta = {
        name: 0.2 * torch.randn_like(value)
        for name, value in generator.state_dict().items()
        if name.startswith("synthesis.layers") and name.endswith("weight")
    }
    base = learn_free(generator)
    return dataclasses.replace(base, delta=delta)


def learn_free(generator: Generator) -> Style:
    """Return an empty style of a generator."""
    return Style(delta={}, base=deltas.digest(generator), method="test", options={})


@pytest.mark.parametrize("blend", ["features", "weights"])
def test_holding_every_layer_gives_the_face_and_none_the_style(
    generator: Generator, style: Style, blend: str
) -> None:
    """Holding back all layers wholly is the base; a little of one layer lies between none and all."""
    latent = Latent("w+", generator.broadcast(generator.mapping(torch.randn(1, W_DIM))))
    options = StyleOptions(strength=1.0, pull=0.0, blend=blend)
    plain = render(generator, latent).clamp(-1, 1)
    whole = paint(generator, style, latent, options)

    def held(mask: str) -> Tensor:
        return paint(generator, style, latent, dataclasses.replace(options, hold=mask))

    torch.testing.assert_close(held("all"), plain)
    torch.testing.assert_close(held("s:0=0"), whole, atol=1e-5, rtol=1e-5)
    little = held("all=0.5")
    assert 0 < squares(little, plain).item() < squares(whole, plain).item()
    first = {name: change for name, change in style.delta.items() if name.startswith("synthesis.layers.0.")}
    early = dataclasses.replace(style, delta=first)
    assert not torch.equal(paint(generator, early, latent, options), plain)
    # What the first layer changes goes no further when its features are held back, and passes when others are.
    torch.testing.assert_close(
        paint(generator, early, latent, dataclasses.replace(options, hold="s:0")), plain
    )
    assert not torch.equal(paint(generator, early, latent, dataclasses.replace(options, hold="8px")), plain)


def test_texture_reaches_random_faces(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    """With the texture term alone, random faces' Gram matrices come nearer to the pictures'; without it there is none."""
    z = torch.randn(2, W_DIM, generator=torch.Generator().manual_seed(5))
    training = start(generator, discriminator, pictures, texture=1.0, ema=0.0, perceptual=0.0, pixels=0.0)
    training.stage_shares = torch.zeros_like(training.stage_shares)
    before = float(training.texture_loss(z).detach())
    maps = [training.trunk(image) for image in (training.images, training.base(z, psi=0.7))]  # type: ignore[misc]
    grams = [
        [torch.einsum("bihw,bjhw->bij", level, level) / level[0, 0].numel() for level in side]
        for side in maps
    ]
    naive = [((b - a) ** 2).sum((1, 2)) / (a**2).sum((1, 2)) for a, b in zip(*grams, strict=True)]
    assert before == pytest.approx(float(torch.stack(naive).mean()), rel=1e-4)
    for _ in range(8):
        training.step(z, "constant")
    assert float(training.texture_loss(z).detach()) < 0.8 * before
    assert not start(generator, discriminator, pictures).textures


def test_identity_counts_on_the_random_faces_of_texture(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    """Before training they are the base's own, so that identity adds nothing; after a change it does."""
    z = torch.randn(2, W_DIM)
    plain = start(generator, discriminator, pictures, texture=1.0)
    strict = start(generator, discriminator, pictures, texture=1.0, identity=3.0)
    assert torch.allclose(plain.texture_loss(z), strict.texture_loss(z))
    for training in (plain, strict):
        with torch.no_grad():
            training.generator.synthesis.to_rgb[-1].bias.add_(0.5)
    more = strict.texture_loss(z) - plain.texture_loss(z)
    assert more.item() == pytest.approx(3 * 0.25, rel=1e-3)


def test_texture_needs_a_trunk(generator: Generator, discriminator: Discriminator, pictures: dict) -> None:
    with pytest.raises(OptionError, match="texture is above 0"):
        JojoganTraining(
            generator=generator, discriminator=discriminator, options=JojoganOptions(texture=0.5), **pictures
        )


def test_steps_take_the_pictures_in_turn(generator: Generator, discriminator: Discriminator) -> None:
    """With per_step 1, every round sees every picture once, and a step is the one that this picture alone would do."""
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    w_plus = torch.randn(3, generator.num_rows, W_DIM)
    given = {"images": images, "w_plus": w_plus}
    training = start(generator, discriminator, given, per_step=1, codes=2)
    rng, rounds = torch.Generator().manual_seed(0), []
    for _ in range(6):
        training.pick(rng)
        assert len(set(training.picked.tolist())) == 1
        assert len(training.picked) == 2
        rounds.append(int(training.picked[0]))
    assert sorted(rounds[:3]) == sorted(rounds[3:]) == [0, 1, 2]
    training.picked = torch.tensor([2, 2])
    alone = start(generator, discriminator, {"images": images[2:], "w_plus": w_plus[2:]}, codes=2)
    z = torch.randn(2, W_DIM)
    assert training.step(z, "constant") == pytest.approx(alone.step(z, "constant"), rel=1e-6)
    for name, value in alone.generator.named_parameters():
        torch.testing.assert_close(training.generator.get_parameter(name), value)


def test_as_many_per_step_as_there_are_is_all_of_them(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    options = {"steps": 2, "ema": 0.0}
    every, two = (
        learn(
            generator,
            discriminator,
            pictures["images"],
            pictures["w_plus"],
            JojoganOptions(**options, per_step=count),
        )
        for count in (0, 2)
    )
    assert every.provenance["last_loss"] == two.provenance["last_loss"]


def test_only_the_masked_layers_learn(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    """The others keep the base's weights bit for bit, and a mask that leaves nothing is refused."""
    training = start(generator, discriminator, pictures, learn_layers="16px-")
    training.step(torch.randn(2, W_DIM), "constant")
    changed = {
        name
        for name, p in training.generator.named_parameters()
        if not torch.equal(p, generator.get_parameter(name))
    }
    kept = LayerMask("16px-").styles(generator)
    assert changed
    assert all(kept[deltas.style_vector(name)] for name in changed)  # type: ignore[index]
    with pytest.raises(OptionError, match="leaves nothing to learn"):
        start(generator, discriminator, pictures, learn_layers="16px-=0")


def test_what_overshoots_is_compared_as_it_is_shown(
    generator: Generator, discriminator: Discriminator, pictures: dict
) -> None:
    """Beyond black and white an error counts a twentieth; within, clipping changes nothing."""
    plain, clipped = (
        start(generator, discriminator, pictures, overshoot=on, loss="lpips") for on in (False, True)
    )
    within = pictures["images"] * 0.9
    torch.testing.assert_close(clipped.loss(within), plain.loss(within))
    beyond = torch.where(pictures["images"] > 0, 1.0, -1.0) * 1.8
    shown = beyond / 1.8
    assert plain.loss(beyond) > clipped.loss(beyond) > clipped.loss(shown)
    torch.testing.assert_close(clip_softly(beyond), shown * 1.04)
