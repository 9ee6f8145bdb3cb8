"""DualStyleGANs kept as differences to a base: what comes back, what it costs, and what is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import make_generator
from safetensors import safe_open
from safetensors.torch import save_file

from limner import checkpoints
from limner.checkpoints import Checkpoint, save
from limner.checkpoints.dual_child import (
    KIND,
    pack_codes,
    read_extrinsic,
    save_dual,
    unpack_codes,
    weight_gains,
)
from limner.errors import CheckpointError, KeyMismatchError
from limner.nn.dual_start import start_extrinsic
from limner.nn.dualstylegan import DualGenerator, StyleSampler
from limner.stylization.dual import find_code, to_extrinsic

ROOM = 600_000


@pytest.fixture
def dual() -> DualGenerator:
    """A model that was trained a little: all extrinsic tensors moved, the residual blocks most."""
    made = DualGenerator.around(make_generator())
    start_extrinsic(made, seed=7)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.startswith("structure"):
                value.add_(0.1 * torch.randn_like(value))
            elif not name.startswith("generator"):
                value.add_(0.05 * torch.randn_like(value) * value.abs().mean())
    return made.eval().requires_grad_(False)


@pytest.fixture
def codes() -> dict[str, torch.Tensor]:
    return {f"{i:03d}.jpg": torch.randn(8, 16) for i in range(5)}


@pytest.fixture
def file(tmp_path, dual, codes):
    """The packed model, with its base beside it."""
    save(Checkpoint(generator=make_generator()), tmp_path / "base.safetensors")
    path = tmp_path / "toon.safetensors"
    save_dual(
        dual,
        codes,
        make_generator(),
        path,
        base_name="base",
        start_seed=7,
        budget_bytes=ROOM,
        metadata={"licence": "CC0-1.0"},
    )
    return path


def paint(dual: DualGenerator, code: torch.Tensor) -> torch.Tensor:
    base = dual.generator
    w_plus = base.broadcast(base.mapping(torch.randn(3, 16, generator=torch.Generator().manual_seed(1))))
    return dual(w_plus, to_extrinsic(dual, code))


def test_round_trip(file, dual, codes):
    model = checkpoints.load(file)
    assert model.dual is not None
    assert model.format == KIND
    assert model.metadata["licence"] == "CC0-1.0"
    assert model.generator is model.dual.generator
    assert list(model.codes["refined"]) == list(codes)
    for key in ("0", "003.jpg"):
        name, code = find_code(model.codes["refined"], key)
        before, after = paint(dual, codes[name]), paint(model.dual, code)
        plain = paint(dual, codes[name]) - dual.generator.synthesis(
            dual.generator.broadcast(
                dual.generator.mapping(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)))
            )
        )
        assert (after - before).square().mean() < 0.001 * plain.square().mean()
    inspected = checkpoints.inspect(file)
    assert inspected.format == KIND
    assert inspected.parts["dual"]["structure_rows"] == 7


def test_the_reported_error_is_what_is_found(tmp_path, dual, codes):
    base, path = make_generator(), tmp_path / "small.safetensors"
    save(Checkpoint(generator=base), tmp_path / "base.safetensors")
    figures = {}
    for budget in (25_000, 33_000):
        figures[budget] = save_dual(
            dual, codes, base, path, base_name="base", start_seed=7, budget_bytes=budget, samples=5, seed=2
        )
        assert path.stat().st_size <= budget
    assert figures[33_000]["picture_error"] < figures[25_000]["picture_error"]
    model = checkpoints.load(path)
    assert model.dual is not None
    w_plus = base.broadcast(base.mapping(torch.randn(5, 16, generator=torch.Generator().manual_seed(2))))
    stacks = [torch.stack(list(one.values())) for one in (codes, model.codes["refined"])]
    one, other = (
        network(w_plus, base.map_z_plus(stack)).clamp(-1, 1)
        for network, stack in zip((dual, model.dual), stacks, strict=True)
    )
    assert (one - other).square().mean().sqrt().item() == pytest.approx(
        figures[33_000]["picture_error"], abs=2e-5
    )
    assert figures[33_000]["picture_change"] > 0.05


def test_codes_in_8_bits():
    codes = torch.randn(4, 8, 16) * torch.tensor([0.0, 1.0, 30.0, 1e-3])[:, None, None]
    numbers, scale = pack_codes(codes)
    assert numbers.dtype == torch.int8
    back = unpack_codes({"codes.x": numbers, "codes.x.scale": scale}, "x")
    assert ((back - codes).abs() <= codes.abs().amax(2, keepdim=True) / 254 + 1e-12).all()


def test_gains_make_layers_alike(dual):
    """A change of one size, divided by the gains, moves features by the same order whatever the layer."""
    gains = weight_gains(dual)
    assert gains["style.layers.0.weight"] == pytest.approx(0.01)
    assert gains["structure.0.norm0.affine.weight"] == pytest.approx(4.0)
    assert gains["structure.0.conv0.weight"] == gains["color.0.weight"] == 1.0
    assert set(gains) == {name for name in dual.state_dict() if not name.startswith("generator.")}


def test_another_base_is_refused(file, tmp_path, dual, codes):
    save(Checkpoint(generator=make_generator(1)), tmp_path / "base.safetensors")
    with pytest.raises(KeyMismatchError, match="the base differs"):
        checkpoints.load(file)
    with pytest.raises(KeyMismatchError, match="intrinsic path is not other"):
        save_dual(dual, codes, make_generator(1), file, base_name="other", start_seed=7)


def test_damage_and_small_budgets_are_said(file, dual, codes):
    with safe_open(file, framework="pt") as opened:
        tensors, header = {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata()  # noqa: SIM118
    for change in ("codes.refined", "delta."):
        broken = {name: copy.deepcopy(value) for name, value in tensors.items()}
        name = next(name for name in broken if name.startswith(change))
        broken[name] = broken[name][:1].clone()
        save_file(broken, file, header)
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoints.load(file)
    about = json.loads(header["limner"])
    del about["start_seed"]
    save_file(tensors, file, {"limner": json.dumps(about)})
    with pytest.raises(CheckpointError, match="header is broken"):
        checkpoints.load(file)
    with pytest.raises(CheckpointError, match="larger budget"):
        save_dual(dual, codes, make_generator(), file, base_name="base", start_seed=7, budget_bytes=2000)
    with pytest.raises(CheckpointError, match="no style codes"):
        save_dual(dual, {}, make_generator(), file, base_name="base", start_seed=7)


# Models of low rank


def make_low_rank(generator, codes, folder, **changes):
    """Train nothing, but move the factors; write the packed model with its base beside it."""
    made = DualGenerator.around(generator, rank=3)
    start_extrinsic(made, seed=7)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in made.named_parameters():
            if name.startswith(("structure", "color")):
                value.add_(0.1 * torch.randn_like(value))
    made = made.eval().requires_grad_(False)
    save(Checkpoint(generator=generator), folder / "base.safetensors")
    options = {"base_name": "base", "start_seed": 7, "budget_bytes": ROOM} | changes
    figures = save_dual(made, codes, generator, folder / "low.safetensors", **options)
    return made, figures


def test_a_model_of_low_rank_loses_next_to_nothing(tmp_path, codes):
    made, figures = make_low_rank(make_generator(), codes, tmp_path)
    assert figures["picture_error"] < 0.1 * figures["picture_change"]
    with safe_open(tmp_path / "low.safetensors", framework="pt") as opened:
        names = list(opened.keys())
    assert any(name.startswith("whole.structure.0.conv0.reduce") for name in names)
    assert not any(name.startswith(("delta.", "whole.style")) for name in names)  # made from the number again
    model = checkpoints.load(tmp_path / "low.safetensors").dual
    assert model is not None
    assert model.rank == 3
    near, far = paint(model, codes["000.jpg"]), paint(made, codes["000.jpg"])
    assert (near - far).square().mean().sqrt() < 0.02


@pytest.mark.parametrize("rank", [None, 3])
def test_fine_blocks_come_back(tmp_path, codes, rank):
    made = DualGenerator.around(make_generator(), structure_rows=5, rank=rank, fine_blocks=2)
    start_extrinsic(made, seed=2)
    with torch.no_grad():
        for block in made.fine:
            for value in block.parameters():
                value.add_(0.1 * torch.randn_like(value))
    made.eval().requires_grad_(False)
    save(Checkpoint(generator=make_generator()), tmp_path / "base.safetensors")
    path = tmp_path / "fine.safetensors"
    save_dual(made, codes, make_generator(), path, base_name="base", start_seed=2, budget_bytes=ROOM)
    model = checkpoints.load(path).dual
    assert model is not None
    assert model.config() == made.config()
    without = DualGenerator.around(made.generator, structure_rows=5, rank=rank)
    without.load_state_dict({k: v for k, v in made.state_dict().items() if not k.startswith("fine.")})
    wanted, found, plain = (paint(one, codes["000.jpg"]) for one in (made, model, without.eval()))
    assert (found - wanted).square().mean() < 1e-3 * (plain - wanted).square().mean()
    if rank:
        assert torch.allclose(paint(made.merged(), codes["000.jpg"]), wanted, atol=1e-5)


def test_the_sampler_comes_back(tmp_path, dual, codes, file):
    assert checkpoints.load(file).sampler is None
    sampler = StyleSampler(structure_rows=7, color_rows=1, z_dim=16, noise_dim=8, hidden=32)
    sampler(torch.randn(64, 8), torch.randn(64, 8))  # running means of the normalisation
    sampler.eval()
    path = tmp_path / "drawing.safetensors"
    options = {"base_name": "base", "start_seed": 7, "sampler": sampler}
    save_dual(dual, codes, make_generator(), path, budget_bytes=ROOM, **options)
    again = checkpoints.load(path).sampler
    assert again is not None
    one, other = (x.sample(50, rng=torch.Generator().manual_seed(3)) for x in (sampler, again))
    assert (one - other).norm() < 0.02 * one.norm()
    assert checkpoints.load(path, parts=("dual",)).sampler is None
    with pytest.raises(CheckpointError, match="do not fit|needs"):
        save_dual(dual, codes, make_generator(), path, budget_bytes=9_000, **options)


def test_a_rank_too_high_for_the_budget_is_said(tmp_path, codes):
    with pytest.raises(CheckpointError, match="of rank 3 needs"):
        make_low_rank(make_generator(), codes, tmp_path, budget_bytes=12_000)


def test_the_extrinsic_path_serves_another_base(tmp_path, codes):
    made, _ = make_low_rank(make_generator(), codes, tmp_path)
    other = DualGenerator.around(make_generator(1), rank=3)
    note = read_extrinsic(tmp_path / "low.safetensors", other)
    assert "low.safetensors" in note
    assert torch.allclose(other.structure[2].conv0.reduce, made.structure[2].conv0.reduce, atol=0.02)
    assert other.generator.w_avg.equal(make_generator(1).w_avg)
    with pytest.raises(KeyMismatchError, match="has an extrinsic path of"):
        read_extrinsic(tmp_path / "low.safetensors", DualGenerator.around(make_generator(1)))
    with pytest.raises(CheckpointError, match="no DualStyleGAN kept as a difference"):
        read_extrinsic(tmp_path / "base.safetensors", other)
