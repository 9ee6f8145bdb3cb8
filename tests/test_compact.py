"""The compact encoder: shapes, rows and groups, its file, and the generator it belongs to."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import RESOLUTION, W_DIM, make_generator

from limner import zoo
from limner.checkpoints.compact import load_encoder, save_encoder
from limner.errors import CheckpointError, KeyMismatchError, ShapeError, UnknownFormatError, ZooError
from limner.nn import deltas
from limner.nn.compact import CompactCore, CompactEncoder, row_groups
from limner.nn.features import Lite0


def make_trunk() -> Lite0:
    torch.manual_seed(5)
    return Lite0().eval()


def make_core(**changes) -> CompactCore:
    torch.manual_seed(3)
    options = {
        "num_rows": 8,
        "w_dim": W_DIM,
        "input_px": 32,
        "width": 8,
        "gather": 4,
        "hidden": 16,
        "rank": 4,
    }
    core = CompactCore(**(options | changes))
    for last in (core.base[-1], *core.decode):  # at their initial zero the encoder does not move at all
        torch.nn.init.normal_(last.get_parameter("weight"), std=0.1)
    return core


def make_encoder(generator=None, **changes) -> CompactEncoder:
    base = {} if generator is None else {"name": "tiny", "digest": deltas.digest(generator)}
    encoder = CompactEncoder(trunk=make_trunk(), core=make_core(**changes), base=base).requires_grad_(False)
    if generator is not None:
        encoder.core.w_avg.copy_(generator.w_avg)
    return encoder


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        (8, [0] * 3 + [1] * 4 + [2]),
        (12, [0] * 3 + [1] * 4 + [2] * 5),
        (4, [0, 0, 0, 1]),
        (18, [0] * 3 + [1] * 4 + [2] * 11),
    ],
)
def test_rows_are_grouped_as_in_psp(rows, groups):
    assert row_groups(rows) == groups


@pytest.mark.parametrize("rows", [4, 8, 12, 18])
def test_any_number_of_rows(rows):
    encoder = CompactEncoder(trunk=make_trunk(), core=make_core(num_rows=rows))
    views = encoder.look(torch.rand(2, 3, 32, 32) * 2 - 1)[1]
    assert [tuple(x.shape[1:]) for x in views] == [(27, 8, 8), (43, 4, 4), (115, 2, 2), (323, 1, 1)]
    codes = encoder.core(views, views, encoder.start(2))
    assert codes.shape == (2, rows, W_DIM)


def test_default_core_is_small_enough():
    """1.7 MB in 8 bits, for 128 and for 256 px."""
    for rows in (12, 14):
        core = CompactCore(num_rows=rows)
        matrices = sum(x.numel() if x.ndim > 1 else 4 * x.numel() for x in core.state_dict().values())
        assert matrices < 1_800_000


def test_a_fresh_core_stays_at_the_mean():
    encoder = CompactEncoder(
        trunk=make_trunk(), core=CompactCore(num_rows=8, w_dim=W_DIM, input_px=32, width=8, hidden=16, rank=4)
    )
    encoder.core.w_avg.normal_()
    views = encoder.look(torch.rand(3, 3, 32, 32))[1]
    assert torch.equal(encoder.core(views, views, encoder.start(3)), encoder.start(3))


def test_rows_without_a_delta_move_together():
    encoder = make_encoder()
    views = encoder.look(torch.rand(2, 3, 32, 32))[1]
    codes = encoder.core(views, [0 * x for x in views], encoder.start(2), free_rows=3)
    assert torch.equal(codes[:, 3:], codes[:, 3:4].expand(-1, 5, -1))
    assert not torch.allclose(codes[:, 0], codes[:, 3])
    assert not torch.allclose(codes[:, 0], codes[:, 1])


def test_groups_see_their_own_maps():
    """Coarse rows do not depend on the finest maps, except through the base w that all rows share."""
    core = make_core()
    for parameter in core.base.parameters():
        torch.nn.init.zeros_(parameter)
    encoder = CompactEncoder(trunk=make_trunk(), core=core)
    views = encoder.look(torch.rand(1, 3, 32, 32))[1]
    current = [0 * x for x in views]
    before = core(views, current, encoder.start(1))
    views[0] = views[0] + 1  # stride 4
    after = core(views, current, encoder.start(1))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])
    views[3] = views[3] + 1  # stride 32 reaches everything
    assert not torch.isclose(core(views, current, encoder.start(1)), after).all(2).any()


def test_brightness_is_seen():
    encoder = make_encoder()
    views = encoder.look(torch.full((1, 3, 32, 32), -0.5))[1]
    assert torch.allclose(views[2][:, -3:], torch.full((1, 3, 2, 2), -0.5))


def test_calibration_makes_unit_deviation():
    encoder = make_encoder()
    views = encoder.look(torch.rand(8, 3, 32, 32) * 2 - 1)[1]
    encoder.core.calibrate(views)
    x = (views[1] - encoder.core.get_buffer("mean1").view(1, -1, 1, 1)) / encoder.core.get_buffer(
        "std1"
    ).view(1, -1, 1, 1)
    assert x.mean((0, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(43), atol=1e-3)


def test_encode_steps_look_at_the_reconstruction(generator):
    encoder = make_encoder(generator)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = encoder.encode(generator, image, steps=2)
    assert [tuple(x.shape) for x in codes] == [(2, 8, W_DIM)] * 2
    # The second step by hand.
    painted = generator.synthesis(codes[0]).clamp(-1, 1)
    second = encoder.core(encoder.look(image)[1], encoder.look(painted)[1], codes[0])
    assert torch.allclose(second, codes[1], atol=1e-6)
    # A batch gives what its pictures give alone.
    alone = encoder.encode(generator, image[1:], steps=2)
    assert torch.allclose(alone[1], codes[1][1:], atol=1e-5)


def test_other_sizes_are_brought_to_the_input_size(generator):
    encoder = make_encoder(generator)
    small = torch.rand(1, 3, 32, 32)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert encoder.prepare(large).shape == (1, 3, 32, 32)
    assert encoder.encode(generator, large, steps=1)[0].shape == (1, 8, W_DIM)
    with pytest.raises(ShapeError, match="square"):
        encoder.encode(generator, torch.zeros(1, 3, 32, 16))


def test_stem_takes_label_maps(generator):
    encoder = make_encoder(generator, in_channels=7)
    codes = encoder.encode(generator, torch.rand(1, 7, 32, 32), steps=2)
    assert codes[1].shape == (1, 8, W_DIM)


def test_file_round_trip(generator, tmp_path):
    encoder = make_encoder(generator)
    path = tmp_path / "encoder.safetensors"
    save_encoder(encoder, path, provenance={"images": 5}, packed=False)
    again = load_encoder(path, trunk=make_trunk())
    image = torch.rand(1, 3, 32, 32)
    assert again.base == encoder.base
    assert again.core.config() == encoder.core.config()
    assert torch.equal(again.encode(generator, image)[-1], encoder.encode(generator, image)[-1])
    save_encoder(encoder, path, provenance={}, packed=True)
    packed = load_encoder(path, trunk=make_trunk()).encode(generator, image)[-1]
    assert torch.allclose(packed, encoder.encode(generator, image)[-1], atol=0.02)
    assert not list(tmp_path.glob(".*"))


def test_trunk_is_not_in_the_file(generator, tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(make_encoder(generator), path, provenance={})
    assert path.stat().st_size < 0.2 * 4 * sum(p.numel() for p in make_trunk().parameters())


def test_another_generator_is_refused(generator):
    encoder = make_encoder(generator)
    encoder.encode(generator, torch.zeros(1, 3, 32, 32))
    with pytest.raises(KeyMismatchError, match="belongs to the generator tiny"):
        encoder.encode(make_generator(seed=4), torch.zeros(1, 3, 32, 32))
    encoder = make_encoder(num_rows=12)
    with pytest.raises(KeyMismatchError, match="12 rows of 16, the generator takes 8"):
        encoder.check_base(generator)


def test_files_that_do_not_fit(generator, tmp_path):
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(CheckpointError, match="base first"):
        save_encoder(make_encoder(), path, provenance={})
    with pytest.raises(ZooError, match="limner train encoder"):
        load_encoder(path, trunk=make_trunk())
    with pytest.raises(UnknownFormatError, match="expected kind 'encoder'"):
        load_encoder(zoo.path("lite0"), trunk=make_trunk())
    with pytest.raises(ShapeError, match="multiple of 32"):
        make_core(input_px=40)


def test_the_first_look_is_kept_only_while_the_generator_stays_as_it_is():
    """Codes of a kept first look equal those of a new encoder, after a change of weights and with another generator too."""
    generator, image = make_generator(), torch.rand(2, 3, RESOLUTION, RESOLUTION) * 2 - 1
    encoder = make_encoder(generator)
    first = encoder.encode(generator, image, steps=2)
    again = encoder.encode(generator, image, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with torch.no_grad():
        generator.synthesis.layers[0].weight.mul_(1.5)
    changed = encoder.encode(generator, image, steps=2)
    assert not torch.equal(first[0], changed[0])
    for other in (generator, make_generator(seed=5)):
        encoder.base.clear()
        fresh = copy.deepcopy(encoder)
        fresh._start_views = None
        for a, b in zip(encoder.encode(other, image), fresh.encode(other, image), strict=True):
            assert torch.equal(a, b)
