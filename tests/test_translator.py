"""The translator: tasks, what the trunk sees, stems, the encoder inside, its file, and the generator it belongs to."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from conftest import W_DIM, make_generator

import limner
from limner import zoo
from limner.checkpoints.compact import save_encoder
from limner.checkpoints.cores import pack, unpack
from limner.checkpoints.native import OTHER_READERS
from limner.checkpoints.translator import load_translator, save_translator
from limner.errors import CheckpointError, KeyMismatchError, OptionError, ShapeError, UnknownFormatError
from limner.nn import deltas
from limner.nn.compact import CompactCore, CompactEncoder
from limner.nn.features import Lite0
from limner.nn.translator import Translator, TranslatorCore, make_view

SIZES = {"num_rows": 8, "w_dim": W_DIM, "input_px": 32, "width": 8, "gather": 4, "hidden": 16, "rank": 4}
TASKS = {"sketch": 1, "toon": 3, "labels": 5, "inpaint": 4}  # not in the order of the alphabet


def make_trunk() -> Lite0:
    torch.manual_seed(5)
    return Lite0().eval()


def make_translator(generator=None, *, shaken: bool = True, **changes) -> Translator:
    torch.manual_seed(3)
    core = TranslatorCore(**(SIZES | {"tasks": TASKS} | changes))
    if shaken:  # at their initial zeros heads, stems and scales do nothing
        for parameter in core.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    base = {} if generator is None else {"name": "tiny", "digest": deltas.digest(generator)}
    return Translator(trunk=make_trunk(), core=core, base=base).requires_grad_(False).eval()


def make_input(channels: int, count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(channels))


@pytest.mark.parametrize(("task", "channels"), TASKS.items())
def test_every_task_gives_codes_that_depend_on_its_input(task, channels):
    translator = make_translator()
    x = make_input(channels)
    w_plus = translator(task, x)
    assert w_plus.shape == (2, 8, W_DIM)
    assert (w_plus[0] - w_plus[1]).abs().max() > 1e-3
    # One by one they are the same.
    torch.testing.assert_close(torch.cat([translator(task, one) for one in x.split(1)]), w_plus)


def test_tasks_in_one_pass_are_tasks_one_by_one():
    translator = make_translator()
    inputs = [(task, make_input(channels, count)) for count, (task, channels) in enumerate(TASKS.items(), 1)]
    together = translator.translate(inputs)
    torch.testing.assert_close(together, torch.cat([translator(task, x) for task, x in inputs]))
    # A task's own scales and head count: the same picture under another task is something else.
    x = make_input(3)
    other = make_translator(tasks={"toon": 3, "frontal": 3})
    assert (other("toon", x) - other("frontal", x)).abs().max() > 1e-3


def test_all_that_is_trained_gets_gradients():
    translator = make_translator()
    translator.core.requires_grad_(True)
    inputs = [(task, make_input(channels)) for task, channels in TASKS.items()]
    translator.translate(inputs).square().sum().backward()
    for name, parameter in translator.core.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert all(parameter.grad is None for parameter in translator.trunk.parameters())


def test_a_stem_sees_what_the_view_does_not():
    """Masks that hide the same grey differ for the stem alone."""
    translator = make_translator()
    photo = torch.zeros(1, 3, 32, 32)
    masks = torch.zeros(2, 1, 32, 32)
    masks[1, :, 8:24, 8:24] = 1
    x = torch.cat([photo.expand(2, -1, -1, -1), masks], 1)
    assert torch.equal(*make_view(x))
    codes = translator("inpaint", x)
    assert (codes[0] - codes[1]).abs().max() > 1e-3


def test_views():
    sketch = make_input(1)
    assert torch.equal(make_view(sketch)[:, 2:], 2 * sketch - 1)
    photo = make_input(3)
    assert torch.equal(make_view(photo), photo)
    assert torch.equal(make_view(make_input(4)), make_input(4)[:, :3])
    # Each class has a colour of its own, within the range of pictures.
    labels = torch.eye(12)[None, :, :, None]  # (1, 12, 12 places, 1)
    colors = make_view(labels)[0, :, :, 0].T
    assert colors.abs().max() <= 1
    assert torch.pdist(colors).min() > 0.1


def test_an_encoder_inside_repeats_its_first_step():
    generator = make_generator()
    torch.manual_seed(9)
    core = CompactCore(**SIZES)
    for parameter in core.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    core.w_avg.copy_(generator.w_avg)
    core.w_std.fill_(0.7)
    encoder = CompactEncoder(trunk=make_trunk(), core=core).requires_grad_(False)
    core.calibrate(encoder.look(make_input(3, 4) * 2 - 1)[1])
    translator = make_translator(shaken=False)
    current = encoder.look(generator.synthesis(encoder.start(1)).clamp(-1, 1))[1]
    translator.core.take_encoder(core, current)
    photo = make_input(3) * 2 - 1
    expected = encoder.encode(generator, photo, steps=1)[0]
    assert (expected - generator.w_avg).abs().max() > 0.1
    torch.testing.assert_close(translator("toon", photo), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ShapeError, match="hidden 16, here 8"):
        make_translator(shaken=False, hidden=8).core.take_encoder(core, current)


def test_dropped_numbers_are_drawn_by_the_given_generator():
    translator = make_translator()
    inputs = [("toon", make_input(3))]
    draws = [
        translator.translate(inputs, drop=0.5, rng=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], translator.translate(inputs))


def test_wrong_inputs_are_refused():
    translator = make_translator()
    with pytest.raises(OptionError, match="'cat', this translator knows sketch, toon, labels, inpaint"):
        translator("cat", make_input(3))
    with pytest.raises(
        ShapeError, match=r"input of labels has shape \(2, 3, 32, 32\), expected \(B, 5, H, H\)"
    ):
        translator("labels", make_input(3))
    with pytest.raises(ShapeError, match="square"):
        translator("toon", torch.zeros(1, 3, 32, 64))
    with pytest.raises(OptionError, match="at least one task"):
        TranslatorCore(**SIZES, tasks={})


def test_inputs_of_other_sizes_are_brought_to_the_trunks():
    translator = make_translator()
    large = torch.nn.functional.interpolate(make_input(3), scale_factor=4.0, mode="nearest")
    assert translator.prepare("toon", large).shape == (2, 3, 32, 32)
    assert (translator("toon", large) - translator("toon", make_input(3))).abs().max() < 0.5


@pytest.mark.parametrize("packed", [True, False])
def test_file_keeps_tasks_and_codes(tmp_path, packed):
    generator = make_generator()
    translator = make_translator(generator)
    save_translator(translator, tmp_path / "t.safetensors", provenance={"source": "test"}, packed=packed)
    found = load_translator(tmp_path / "t.safetensors", trunk=translator.trunk)
    assert found.tasks == list(TASKS)
    assert found.core.config() == translator.core.config()
    assert found.base == translator.base
    for task, channels in TASKS.items():
        a, b = translator(task, make_input(channels)), found(task, make_input(channels))
        if packed:
            assert (a - b).square().mean() < 1e-3 * a.var()
        else:
            assert torch.equal(a, b)
    assert not any(parameter.requires_grad for parameter in found.core.parameters())


def test_eight_bits_are_within_half_a_step_and_small(tmp_path):
    rng = torch.Generator().manual_seed(0)
    for shape in ((5, 40), (6, 3, 3, 3), (4, 5, 30)):
        value = torch.randn(shape, generator=rng) * torch.logspace(-4, 2, shape[0]).view(
            -1, *[1] * (len(shape) - 1)
        )
        small, scale = pack(value)
        assert small.dtype == torch.int8
        rows = value.flatten(0, 1) if len(shape) == 3 else value.flatten(1)
        assert scale.shape == (len(rows),)
        error = (unpack(small, scale) - value).reshape(rows.shape).abs().amax(1)
        assert (error <= 0.501 * scale).all()
        assert (scale <= rows.abs().amax(1) / 127 * 1.001).all()
    assert torch.equal(unpack(*pack(torch.zeros(2, 200))), torch.zeros(2, 200))
    generator = make_generator()
    sizes = []
    for packed in (True, False):
        save_translator(make_translator(generator), tmp_path / "t.safetensors", provenance={}, packed=packed)
        sizes.append((tmp_path / "t.safetensors").stat().st_size)
    assert sizes[0] < 0.5 * sizes[1]


def test_it_belongs_to_one_generator(tmp_path):
    generator, other = make_generator(), make_generator(1)
    translator = make_translator(generator)
    translator.check_base(generator)
    with pytest.raises(KeyMismatchError, match="this translator belongs to the generator tiny"):
        translator.check_base(other)
    with pytest.raises(KeyMismatchError, match="12 rows of 16, the generator takes 8"):
        make_translator(num_rows=12).check_base(generator)
    with pytest.raises(CheckpointError, match="give it a base"):
        save_translator(make_translator(), tmp_path / "t.safetensors", provenance={})
    translator.core.head_up[0, 0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="head_up holds values that are not finite"):
        save_translator(translator, tmp_path / "t.safetensors", provenance={})
    assert not (tmp_path / "t.safetensors").exists()


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    generator = make_generator()
    translator = make_translator(generator)
    encoder = CompactEncoder(trunk=translator.trunk, core=CompactCore(**SIZES), base=translator.base)
    save_encoder(encoder, tmp_path / "e.safetensors", provenance={})
    with pytest.raises(UnknownFormatError, match="expected kind 'translator'"):
        load_translator(tmp_path / "e.safetensors", trunk=translator.trunk)
    save_translator(translator, tmp_path / "t.safetensors", provenance={})
    tensors = load_file(tmp_path / "t.safetensors")
    about = {
        "kind": "translator",
        "architecture": "Translator",
        "translator": translator.core.config() | {"tasks": {"sketch": 1}},
    }
    save_file(tensors, tmp_path / "broken.safetensors", {"limner": json.dumps(about)})
    with pytest.raises(KeyMismatchError, match="broken"):
        load_translator(tmp_path / "broken.safetensors", trunk=translator.trunk)
    del tensors["head_up"]
    save_file(tensors, tmp_path / "lost.safetensors", {"limner": json.dumps(about)})
    with pytest.raises(KeyMismatchError, match="head_up"):
        load_translator(tmp_path / "lost.safetensors", trunk=translator.trunk)


def test_load_says_what_reads_a_translator_and_an_encoder(tmp_path):
    """`limner.load` reads models; of other files it names the function that reads them, and that is there."""
    translator = make_translator(make_generator())
    save_translator(translator, tmp_path / "translator.safetensors", provenance={})
    encoder = CompactEncoder(trunk=translator.trunk, core=CompactCore(**SIZES), base=translator.base)
    save_encoder(encoder, tmp_path / "encoder.safetensors", provenance={})
    for kind, words in (("translator", "is a translator"), ("encoder", "is an encoder")):
        with pytest.raises(
            UnknownFormatError, match=rf"{words}, expected a model; {OTHER_READERS[kind]} reads it"
        ):
            limner.load(tmp_path / f"{kind}.safetensors")
        assert limner.inspect(tmp_path / f"{kind}.safetensors").format == f"limner-{kind}"
    for reader in OTHER_READERS.values():
        module, _, name = reader.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def test_the_zoo_loads_a_translator_on_its_trunk(tmp_path, monkeypatch):
    generator = make_generator()
    file = tmp_path / "translator.safetensors"
    save_translator(make_translator(generator), file, provenance={"source": "test"}, licence="CC0-1.0")
    card = zoo.Card("translator", file, "translator", "", file.stat().st_size, "CC0-1.0", "test")
    known = zoo.bundled() | {"translator": card}
    monkeypatch.setattr(zoo, "bundled", lambda: known)
    found = zoo.load("translator")
    assert isinstance(found, Translator)
    assert found.tasks == list(TASKS)
    assert found.trunk.config() == zoo.load("lite0").config()
    found.check_base(generator)
