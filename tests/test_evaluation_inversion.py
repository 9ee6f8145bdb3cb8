"""Inversion in the evaluation: names of methods, expected order and what is said where it differs, batches, the store."""

from __future__ import annotations

import pytest
import torch
from conftest import make_generator
from test_compact import make_encoder
from test_evaluation import TinyEmbedder, TinyTrunk, find_bright, options_for, write_heads

from limner import inversion
from limner.errors import OptionError
from limner.evaluation import Store
from limner.evaluation.inversion import evaluate_inversion, recognised
from limner.evaluation.inversion_methods import (
    EXPECTED,
    KNOWN,
    ORDER,
    PLUS,
    PUBLISHED_STEPS,
    Method,
    check_order,
    chosen_methods,
    explain_order,
    parse_method,
)
from limner.evaluation.inversion_runs import BATCH, Inverter
from limner.evaluation.report import Table, markdown, page
from limner.inversion import PivotalOptions
from limner.pipeline import Models


@pytest.fixture
def models(generator) -> Models:
    models = Models(
        generator=generator, trunk=TinyTrunk(), detector=find_bright, base="tiny", trunk_name="tiny"
    )
    models.__dict__["embedder"] = TinyEmbedder()  # where `cached_property` keeps it
    models.__dict__["compact"] = make_encoder(generator)
    return models


def make_images(count: int) -> torch.Tensor:
    generator = make_generator()
    return generator(torch.randn(count, generator.z_dim)).clamp(-1, 1).detach()


def invert_all(models, images, methods, store=None, steps=2):
    inverter = Inverter(images, models, store or Store(None), steps=steps, seed=0)
    return [inverter.run(parse_method(name)) for name in methods]


# Names and order


def test_methods_are_read():
    assert parse_method("w+").method == "w+"
    assert parse_method("w+:500").steps == 500
    found = parse_method("w-pivotal:20")
    assert (found.start, found.method, found.steps, found.name) == ("w", "pivotal", 20, "w-pivotal:20")
    assert parse_method("encoder-image2stylegan++").start == "encoder"
    for wrong in ("w++", "nonsense-w", "w-nonsense", "w+:", "-w", "all", "pti"):
        with pytest.raises(OptionError, match="expected all or \\[START-\\]METHOD"):
            parse_method(wrong)


def test_all_is_every_method_of_limner_invert_in_the_expected_order():
    names = [one.name for one in chosen_methods(["all"])]
    assert names == [one.name for one in chosen_methods([])]
    assert set(inversion.METHODS) < set(names)
    assert {"encoder-pivotal", "image2stylegan++"} == set(names) - set(inversion.METHODS)
    assert names == [name for name in ORDER if name in names]
    assert set(KNOWN) <= set(ORDER), "a new method needs a place in the order"
    assert set(PUBLISHED_STEPS) <= set(ORDER)
    assert all(reason for name, reason in ORDER.items() if name != "noise")
    assert all({better, worse} <= set(ORDER) for better, worse, _, _ in EXPECTED)


def test_methods_stand_in_the_expected_order_however_they_are_asked_for():
    asked = ["pivotal:9", "w+", "z", "psp-pivotal", "psp-w+", "w+:7", "z"]
    names = [one.name for one in chosen_methods(asked)]
    assert names == ["z", "w+", "w+:7", "psp-w+", "pivotal:9", "psp-pivotal"]


def test_variants_search_what_they_are_named_after():
    plain, plus = (parse_method(name).settings(30, 1) for name in ("image2stylegan", PLUS))
    assert (plain.method, plain.fit_noise, plain.noise_steps) == ("w+", False, 0)
    assert (plus.method, plus.fit_noise, plus.steps, plus.noise_steps) == ("w+", False, 30, 30)


def figures(psnr, perceptual):
    return {"psnr": torch.tensor(psnr), "perceptual": torch.tensor(perceptual)}


def test_notes_are_computed_from_the_figures():
    methods = chosen_methods(["w", "w+", "z", "encoder", "psp"])
    found = {
        "z": figures([10.0, 11, 12], [0.5, 0.5, 0.5]),
        "encoder": figures([20.0, 21, 22], [0.3, 0.3, 0.3]),
        "w": figures([15.0, 16.5, 17], [0.2, 0.2, 0.2]),
        "w+": figures([16.0, 19.0, 15], [0.1, 0.1, 0.1]),
    }
    assert explain_order(methods, {name: found[name] for name in ("z", "w")}, steps=50) == []
    (note,) = explain_order(methods, found, steps=50)
    assert "w (16.17 dB) is expected to come closer than encoder (21.00 dB)" in note
    assert "leads by 4.83 dB, in 3 of 3 pictures" in note
    assert "by perceptual distance the order is the expected one (0.200 against 0.300)" in note
    assert note.endswith("Its published search takes 1000 steps, here it had 50.")
    found["w+"] = figures([14.0, 19.0, 14], [0.4, 0.4, 0.4])
    _, note = explain_order(methods, found, steps=6000)
    assert "leads by 0.50 dB, in 2 of 3 pictures, which is within two standard errors" in note
    assert "published" not in note
    found["w"] = figures([25.0, 26, 27], [0.2, 0.2, 0.2])
    (note,) = explain_order(methods, found, steps=50)
    assert "by perceptual distance too (0.400 against 0.200)" in note


def test_order_of_methods_is_judged():
    values = {"w": {"psnr": 20.0, "seconds": 1.0}, "w+": {"psnr": 19.0, "seconds": 2.0}}
    ((claim, holds, told),) = check_order(values)
    assert (holds, "w+ comes closer" in claim, "19.000" in told) == (False, True, True)
    values["w+"]["psnr"] = 22.0
    assert check_order(values)[0][1]


def test_recognised_falls_when_pairs_are_shuffled():
    inputs = torch.randn(20, 8)
    assert recognised(inputs + 0.01, inputs).mean() == 1
    assert recognised(inputs.roll(1, 0), inputs).mean() == 0


# Runs


def test_pictures_of_a_batch_come_out_as_alone_and_none_is_lost(models):
    images = make_images(BATCH + 2)
    (together,) = invert_all(models, images, ["w+"])
    assert len(together) == BATCH + 2
    for i in (0, BATCH, BATCH + 1):
        ((alone,),) = invert_all(models, images[i : i + 1], ["w+"])
        # Convolutions of other batch sizes round otherwise: by one step of 255 at most, here and there.
        gap = (alone.tensors["painted"].int() - together[i].tensors["painted"].int()).abs()
        assert gap.max() <= 1
        assert gap.float().mean() < 0.01


def test_tuning_starts_from_the_codes_that_a_search_found_and_gives_what_limner_invert_gives(models):
    images = make_images(2)
    store = Store(None)
    search, tuned, hybrid = invert_all(
        models, images, ["w:4", "pivotal:4", "encoder-pivotal:4"], store, steps=9
    )
    assert store.made == 8, "w is not searched again for its tuning; hybrid is searched for the other"
    assert all(a.values["seconds"] > b.values["seconds"] for a, b in zip(tuned, search, strict=True))
    for method, parts, encoder in (("w", tuned, None), ("hybrid", hybrid, models.compact)):
        for i, part in enumerate(parts):
            direct = inversion.invert(
                models.generator,
                images[i : i + 1],
                Method("pivotal", "pivotal").settings(4, 0),
                perceptual=models.make_distance(),
                pivotal=PivotalOptions(pivot=method, tune_steps=4),
                encoder=encoder,
            )
            painted = part.tensors["painted"].float() / 127.5 - 1
            assert (painted - direct.image).abs().max() < 0.02, method


def test_a_method_or_a_picture_more_costs_only_itself(models, tmp_path):
    images = make_images(3)
    store = Store(tmp_path)
    invert_all(models, images[:2], ["z", "pivotal"], store)
    assert (store.made, store.found) == (6, 0)
    invert_all(models, images, ["z", "noise", "w:2"], store)
    assert (store.made, store.found) == (6 + 1 + 3 + 1, 4)
    invert_all(models, images[:2], ["w:3"], store)
    assert store.made == 13, "other steps are another search"


@pytest.mark.parametrize("name", ["noise", "z", "z+", "w", "ii2s", "w+", "s", "image2stylegan++", "hybrid"])
def test_every_search_paints_what_is_nearer_than_its_start(models, name):
    images = make_images(2)
    ((few, _), (many, _)) = (invert_all(models, images, [f"{name}:{steps}"])[0] for steps in (1, 40))
    target = images[:1].add(1).mul(127.5)
    gaps = [(part.tensors["painted"].float() - target).square().mean() for part in (few, many)]
    assert gaps[1] < gaps[0]


def test_inversion_stands_between_floor_and_ceiling(tmp_path, models):
    heads = write_heads(tmp_path / "heads", models.generator, range(6))
    options = options_for(heads, held_out="0-5", faces=3, steps=12, methods=("w+", "w:4", "psp", "hyper"))
    store = Store(tmp_path / "parts")
    section = evaluate_inversion(models, options, store)
    found = section.data["renders"]
    assert list(found) == ["the portrait itself", "w:4", "w+", "another portrait", "the mean face"]
    assert found["another portrait"]["psnr"] < found["w:4"]["psnr"] < found["w+"]["psnr"]
    assert found["w+"]["perceptual"] < found["another portrait"]["perceptual"]
    assert found["the portrait itself"]["perceptual"] == pytest.approx(0, abs=1e-6)
    assert found["the portrait itself"]["recognised"] == 1
    assert found["another portrait"]["recognised"] == 0
    made = store.made
    assert evaluate_inversion(models, options, store).data["renders"]["w+"] == found["w+"]
    assert store.made == made
    other = Models(
        **{f: getattr(models, f) for f in ("trunk", "detector", "trunk_name")}, generator=make_generator(3)
    )
    other.__dict__["embedder"] = models.embedder
    assert evaluate_inversion(other, options, store).data["renders"]["w+"] != found["w+"]
    assert store.made == 2 * made, "another generator: everything is measured anew"


def test_what_is_not_there_is_told_below_the_table(tmp_path, models):
    heads = write_heads(tmp_path / "heads", models.generator, range(4))
    options = options_for(heads, held_out="0-3", faces=2, steps=1, methods=("all",))
    section = evaluate_inversion(models, options, Store(None))
    assert set(section.data["skipped"]) == {"psp", "e4e", "restyle", "hyper"}
    assert all(reason.startswith("no weights: no ") for reason in section.data["skipped"].values())
    table = section.blocks[0]
    assert isinstance(table, Table)
    notes = table.note.splitlines()
    assert [note for note in notes if note.startswith("psp is not in the table: no weights")]
    assert {row.name for row in table.rows} >= set(inversion.METHODS) - set(section.data["skipped"])
    html, text = page([section], {}, "limner eval"), markdown([section], {}, "limner eval")
    assert html.count('<p class="note">') == len(notes)
    assert all(f"\n\n{note}\n" in text for note in notes)
