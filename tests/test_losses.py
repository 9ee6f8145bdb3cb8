"""Losses against naive recomputation, identities and the published fixtures."""

from __future__ import annotations

import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from limner import losses
from limner.errors import ShapeError

PARITY = Path(os.environ.get("LIMNER_PARITY_DIR", Path(__file__).parents[1] / "../shared/parity"))


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


def picture(rng, *shape):
    return torch.tanh(torch.randn(shape, generator=rng))


class TestAdversarial:
    def test_logistic_is_cross_entropy(self, rng):
        real, fake = torch.randn(5, 1, generator=rng), torch.randn(5, 1, generator=rng)
        entropy = nn.functional.binary_cross_entropy_with_logits
        expected = entropy(real, torch.ones(5, 1)) + entropy(fake, torch.zeros(5, 1))
        torch.testing.assert_close(losses.logistic_d_loss(real, fake), expected)
        torch.testing.assert_close(losses.logistic_g_loss(fake), entropy(fake, torch.ones(5, 1)))

    def test_generator_gradient_does_not_saturate(self):
        logits = torch.tensor([-30.0], requires_grad=True)
        losses.logistic_g_loss(logits).backward()
        assert logits.grad is not None
        torch.testing.assert_close(logits.grad, torch.tensor([-1.0]))

    def test_hinge(self):
        real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
        assert losses.hinge_d_loss(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3)
        assert losses.hinge_g_loss(fake).item() == pytest.approx(-1 / 3)


class TestR1:
    def test_of_a_quadratic(self, rng):
        image = torch.randn(3, 3, 4, 4, generator=rng, requires_grad=True)
        logits = 0.5 * image.square().sum((1, 2, 3))[:, None]
        expected = image.square().sum((1, 2, 3)).mean()  # the gradient of x^2 / 2 is x
        torch.testing.assert_close(losses.r1_penalty(logits, image), expected)

    def test_gradient_to_weights_against_finite_differences(self, rng):
        image = torch.randn(2, 3, 4, 4, generator=rng, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(2, 3, 3, 3, generator=rng, dtype=torch.float64, requires_grad=True)

        def penalty(weight):
            logits = nn.functional.softplus(nn.functional.conv2d(image, weight)).sum((1, 2, 3))[:, None]
            return losses.r1_penalty(logits, image)

        assert torch.autograd.gradcheck(penalty, (weight,))

    def test_without_gradient(self):
        with pytest.raises(ShapeError, match="must require a gradient"):
            losses.r1_penalty(torch.zeros(1, 1), torch.zeros(1, 3, 4, 4))


class TestPathLength:
    def test_of_a_linear_generator(self, rng):
        """For image = scale * w spread over pixels, the gradient is known in closed form."""
        w_plus = torch.randn(4, 2, 3, generator=rng, requires_grad=True)
        image = 5 * w_plus.sum(1)[:, :, None, None].expand(-1, -1, 8, 8)
        penalty, mean = losses.path_length_penalty(
            image, w_plus, torch.tensor(2.0), rng=torch.Generator().manual_seed(1), decay=0.25
        )
        noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) / 8
        lengths = 5 * noise.sum((2, 3)).norm(dim=1)  # both rows have the same gradient
        torch.testing.assert_close(mean, 0.75 * torch.tensor(2.0) + 0.25 * lengths.mean())
        torch.testing.assert_close(penalty, (lengths - mean).square().mean())
        assert not mean.requires_grad

    def test_trains_a_generator(self, generator):
        generator.requires_grad_(True)
        w_plus = generator.broadcast(generator.mapping(torch.randn(2, generator.z_dim)))
        image = generator.synthesis(w_plus, "constant")
        penalty, _ = losses.path_length_penalty(image, w_plus, torch.zeros(()))
        penalty.backward()
        gradient = generator.synthesis.layers[1].weight.grad
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


class TestNoiseRegularizer:
    def test_against_loops(self, rng):
        noise = torch.randn(16, 16, generator=rng, dtype=torch.float64)

        def correlation(a):
            n = len(a)
            right = sum(a[y, x] * a[y, (x - 1) % n] for y in range(n) for x in range(n)) / n**2
            below = sum(a[y, x] * a[(y - 1) % n, x] for y in range(n) for x in range(n)) / n**2
            return right**2 + below**2

        half = torch.stack([torch.stack([noise[y : y + 2, x : x + 2].mean() for x in range(0, 16, 2)])
                            for y in range(0, 16, 2)])  # fmt: skip
        torch.testing.assert_close(losses.noise_regularizer([noise]), correlation(noise) + correlation(half))

    def test_prefers_white_noise(self, rng):
        white = torch.randn(64, 64, generator=rng)
        smooth = nn.functional.avg_pool2d(white[None], 5, 1, 2)[0]
        smooth = smooth / smooth.std()
        assert losses.noise_regularizer([white]) < 0.01 < 0.5 < losses.noise_regularizer([smooth])

    @pytest.mark.parity
    @pytest.mark.parametrize("path", sorted(PARITY.glob("inversion/projector_parts*.json")) or [None])
    def test_parity(self, path):
        if path is None:
            pytest.skip(f"no fixtures inversion/projector_parts*.json under {PARITY}")
        from safetensors.numpy import load_file

        about = json.loads(path.read_text())
        expected = load_file(path.with_suffix(".safetensors"))["noise_regularize"]
        noise = [torch.from_numpy(normal(f"input/{name}", spec["shape"], about["seed"])) + 0.05
                 for name, spec in about["inputs"].items()]  # fmt: skip
        got = [losses.noise_regularizer([level]) for level in noise] + [losses.noise_regularizer(noise)]
        np.testing.assert_allclose(torch.stack(got).numpy(), expected, rtol=1e-4, atol=1e-9)


def normal(name, shape, seed):
    """The fixtures' recipe for standard normal values."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) ^ seed))
    return generator.standard_normal(tuple(shape)).astype(np.float32)


def test_w_norm():
    w_avg = torch.tensor([1.0, 2.0])
    w_plus = torch.stack([w_avg.expand(2, 2), w_avg + torch.tensor([[3.0, 0.0], [0.0, 4.0]])])
    assert losses.w_norm(w_plus, w_avg).item() == pytest.approx(2.5)  # norms 0 and 5


class TestPixelDistances:
    def test_psnr(self):
        a = torch.zeros(2, 3, 4, 4)
        b = torch.stack([a[0] + 0.2, a[0]])
        values = losses.psnr(a, b)
        assert values[0].item() == pytest.approx(20 * math.log10(2 / 0.2), abs=1e-4)
        assert values[1].item() == math.inf

    def test_ssim_against_loops(self, rng):
        a, b = picture(rng, 1, 3, 13, 12).double(), picture(rng, 1, 3, 13, 12).double()
        taps = torch.exp(-((torch.arange(11.0) - 5) ** 2) / 4.5).double()
        weight = torch.outer(taps, taps) / taps.sum() ** 2
        found = []
        for c in range(3):
            for y in range(3):
                for x in range(2):
                    p, q = a[0, c, y : y + 11, x : x + 11], b[0, c, y : y + 11, x : x + 11]
                    mp, mq = (weight * p).sum(), (weight * q).sum()
                    vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                    cov = (weight * (p - mp) * (q - mq)).sum()
                    found.append(
                        (2 * mp * mq + 4e-4)
                        * (2 * cov + 36e-4)
                        / ((mp**2 + mq**2 + 4e-4) * (vp + vq + 36e-4))
                    )
        torch.testing.assert_close(losses.ssim(a, b)[0], torch.stack(found).mean())

    def test_ssim_against_scikit_image(self, rng):
        metrics = pytest.importorskip("skimage.metrics")
        a = picture(rng, 1, 3, 40, 32).double()
        b = (a + 0.2 * torch.randn(a.shape, generator=rng).double()).clamp(-1, 1)
        expected = metrics.structural_similarity(
            a[0].numpy(),
            b[0].numpy(),
            channel_axis=0,
            data_range=2,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        assert losses.ssim(a, b).item() == pytest.approx(expected, abs=1e-9)

    def test_ssim_of_equal_images_is_one(self, rng):
        a = picture(rng, 2, 3, 16, 16)
        torch.testing.assert_close(losses.ssim(a, a), torch.ones(2))

    @pytest.mark.parametrize("distance", [losses.psnr, losses.ssim])
    def test_shapes_differ(self, distance):
        with pytest.raises(ShapeError, match=r"\(1, 3, 16, 16\) and \(1, 3, 16, 12\)"):
            distance(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 12))

    def test_ssim_of_tiny_images(self):
        with pytest.raises(ShapeError, match="at least 11 px"):
            losses.ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


class TestFeatureDistances:
    def test_maps_distance_against_loops(self, rng):
        a = [torch.randn(2, 4, 3, 3, generator=rng), torch.randn(2, 5, 2, 2, generator=rng)]
        b = [torch.randn(2, 4, 3, 3, generator=rng), torch.randn(2, 5, 2, 2, generator=rng)]
        expected = torch.zeros(2)
        for p, q, weight in zip(a, b, (0.5, 2.0), strict=True):
            for n in range(2):
                for y in range(p.shape[2]):
                    for x in range(p.shape[3]):
                        u, v = p[n, :, y, x], q[n, :, y, x]
                        expected[n] += weight * ((u / u.norm() - v / v.norm()) ** 2).sum() / p[0, 0].numel()
        torch.testing.assert_close(losses.maps_distance(a, b, weights=(0.5, 2.0)), expected)

    def test_one_target_for_many(self, rng):
        maps = [torch.randn(3, 4, 2, 2, generator=rng)]
        got = losses.maps_distance(maps, [maps[0][:1]], weights=(1.0,))
        assert got.shape == (3,)
        assert got[0] == 0
        assert (got[1:] > 0).all()

    def test_wrong_number_of_weights(self, rng):
        maps = [torch.randn(1, 4, 2, 2, generator=rng)]
        with pytest.raises(ShapeError, match="1 and 1 maps with 2 weights"):
            losses.maps_distance(maps, maps, weights=(1.0, 1.0))

    def test_gram_ignores_places(self, rng):
        maps = [torch.randn(1, 6, 4, 4, generator=rng)]
        shuffled = [maps[0].flatten(2)[:, :, torch.randperm(16, generator=rng)].view(1, 6, 4, 4)]
        torch.testing.assert_close(losses.gram_distance(shuffled, maps), torch.zeros(1), atol=1e-9, rtol=0)

    def test_gram_value(self, rng):
        maps = [torch.randn(2, 6, 4, 4, generator=rng)]
        doubled = [2 * maps[0]]  # Gram matrices grow fourfold: |4 G - G|^2 / |G|^2 = 9
        torch.testing.assert_close(losses.gram_distance(doubled, maps), torch.full((2,), 9.0))

    def test_gram_channels_differ(self):
        with pytest.raises(ShapeError, match="equal numbers and channels"):
            losses.gram_distance([torch.zeros(1, 4, 2, 2)], [torch.zeros(1, 5, 2, 2)])


def test_energy_distance_knows_equal_distributions_from_others():
    rng = torch.Generator().manual_seed(0)

    def draw(mean=0.0, spread=1.0):
        return mean + spread * torch.randn(400, 3, generator=rng)

    same = losses.energy_distance(draw(), draw())
    assert same.abs() < 0.02
    assert losses.energy_distance(draw(), draw(mean=0.5)) > 0.1
    assert losses.energy_distance(draw(), draw(spread=2.0)) > 0.1
    # Definition on two points each.
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    assert losses.energy_distance(a, b).item() == pytest.approx(2 * (2 + 4 + 1 + 3) / 4 - 1 - 2)
