"""The Fréchet distance as a loss: the map between Gaussians, its gradient, and its running statistics."""

import pytest
import torch

from limner.metrics import frechet_distance
from limner.nn import transport
from limner.nn.transport import FrechetPull, GaussianTransport, summaries


def draw(count, width, seed, spread=1.0, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(seed + 100))
    return torch.randn(count, width, generator=rng) @ mix * spread + shift


@pytest.fixture
def pair(monkeypatch):
    monkeypatch.setattr(transport, "DAMPING", 0.0)
    real, fake = draw(4000, 6, 1, shift=0.5), draw(4000, 6, 2, spread=0.4)
    group = GaussianTransport(width=6, population=10**9)
    group.set_real(real)
    for part in fake.split(100):
        group.observe(part)
    group.renew()
    return group, real, fake


def test_the_map_carries_the_generated_onto_the_real(pair):
    group, real, fake = pair
    carried = group.real_mean + (fake.double() - group.mean) @ group.map
    assert frechet_distance(real, fake) > 5
    assert frechet_distance(real, carried.float()) < 1e-3 * frechet_distance(real, fake)


def test_the_running_statistics_are_those_of_all_images(pair):
    group, _, fake = pair
    assert group.mean.allclose(fake.double().mean(0), atol=1e-6)
    covariance = group.second - torch.outer(group.mean, group.mean)
    assert covariance.allclose(fake.double().t().cov(correction=0), atol=1e-4)


def test_the_gradient_is_that_of_the_distance(pair):
    group, real, fake = pair
    fake = fake.clone().requires_grad_()
    group(fake).backward()
    way = -fake.grad / fake.grad.norm() * 2.0
    fake = fake.detach()
    before = frechet_distance(real, fake)
    # Loss = half the mean squared way per number and variance: its gradient is that of the distance, scaled.
    scale = 2 * fake.shape[1] * float(group.scale)
    wanted = scale * float((way * group_gradient(group, fake)).sum())
    assert frechet_distance(real, fake + way) - before == pytest.approx(wanted, rel=0.05)


def group_gradient(group, fake):
    fake = fake.clone().requires_grad_()
    group(fake).backward()
    return fake.grad


@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 0.0, 1e-3), (0.5, 0.05, 1.0)])
def test_what_matches_is_left_alone(share, least, most):
    real = draw(4000, 6, 3)
    group = GaussianTransport(width=6)
    group.set_real(real)
    for part in (share * real).split(100):
        group.observe(part)
    assert least <= float(group(share * real)) <= most


def test_old_images_are_forgotten():
    group = GaussianTransport(width=4, population=200)
    group.set_real(draw(500, 4, 5))
    for part in draw(1000, 4, 6, shift=9.0).split(20):
        group.observe(part)
    later = draw(2000, 4, 7)
    for part in later.split(20):
        group.observe(part)
    assert float((group.mean - later.double().mean(0)).norm()) < 1.0


def test_a_direction_without_spread_stays_bounded():
    group = GaussianTransport(width=5)
    group.set_real(draw(500, 5, 8))
    flat = draw(400, 5, 9)
    flat[:, 3:] = 0
    for part in flat.split(16):
        group.observe(part)
    loss = group(flat)
    assert loss.isfinite()
    assert float(group.map.abs().max()) < 50


def test_groups_of_maps_and_pixels():
    maps = [torch.randn(4, c, s, s) for c, s in ((8, 16), (12, 8), (16, 4), (20, 4))]
    vectors = summaries(maps, torch.randn(4, 3, 32, 32))
    assert [x.shape for x in vectors] == [(4, 48), (4, 64), (4, 20), (4, 192)]
    pull = FrechetPull(widths=[x.shape[1] for x in vectors])
    assert not pull.ready
    pull.set_real([torch.randn(300, x.shape[1]) for x in vectors])
    pull.observe(vectors)
    assert pull.ready
    assert pull(vectors).isfinite()
