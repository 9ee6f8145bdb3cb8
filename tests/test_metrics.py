"""Figures of sets against naive recomputation, closed forms and identities."""

from __future__ import annotations

import math

import pytest
import torch

from limner import metrics
from limner.errors import OptionError, ShapeError
from limner.metrics import FeatureStatistics


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(11)


class TestStatistics:
    def test_streaming_equals_one_pass(self, rng):
        values = torch.randn(50, 6, generator=rng) * 3 + 1000  # far from zero: naive sums would lose digits
        streamed = FeatureStatistics(width=6)
        for part in values.split([1, 20, 0, 29]):
            streamed.add(part)
        torch.testing.assert_close(streamed.mean, values.double().mean(0))
        torch.testing.assert_close(streamed.covariance, values.double().t().cov())

    def test_merging_processes(self, rng):
        values = torch.randn(30, 4, generator=rng)
        first, second = FeatureStatistics.of(values[:7]), FeatureStatistics.of(values[7:])
        first.merge(second)
        first.merge(FeatureStatistics(width=4))
        assert first.count == 30
        torch.testing.assert_close(first.covariance, FeatureStatistics.of(values).covariance)

    def test_errors(self):
        with pytest.raises(ShapeError, match=r"\(2, 3\), expected \(N, 4\)"):
            FeatureStatistics(width=4).add(torch.zeros(2, 3))
        with pytest.raises(ShapeError, match="covariance of 1 vectors is undefined"):
            _ = FeatureStatistics.of(torch.zeros(1, 3)).covariance


class TestFrechet:
    def test_closed_form_in_one_dimension(self, rng):
        a, b = torch.randn(400, 1, generator=rng), 2 * torch.randn(300, 1, generator=rng) + 3
        expected = (a.double().mean() - b.double().mean()) ** 2 + (a.double().std() - b.double().std()) ** 2
        assert metrics.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)

    def test_against_the_eigenvalues_of_the_product(self, rng):
        a = torch.randn(200, 5, generator=rng) @ torch.randn(5, 5, generator=rng)
        b = torch.randn(200, 5, generator=rng) @ torch.randn(5, 5, generator=rng) + 1
        p, q = FeatureStatistics.of(a), FeatureStatistics.of(b)
        root_trace = torch.linalg.eigvals(p.covariance @ q.covariance).real.clamp(min=0).sqrt().sum()
        expected = (p.mean - q.mean).square().sum() + (p.covariance + q.covariance).trace() - 2 * root_trace
        assert metrics.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)

    def test_equal_sets(self, rng):
        a = torch.randn(20, 40, generator=rng)  # fewer vectors than numbers: singular covariance
        assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-5)

    def test_shift_is_squared(self, rng):
        a = torch.randn(100, 8, generator=rng)
        assert metrics.frechet_distance(a, a + 2) == pytest.approx(4 * 8, rel=1e-5)

    def test_widths_differ(self):
        with pytest.raises(ShapeError, match="3 and 4 numbers"):
            metrics.frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))


class TestKernelDistance:
    def test_against_loops(self, rng):
        a, b = torch.randn(6, 4, generator=rng).double(), torch.randn(6, 4, generator=rng).double() + 0.5

        def kernel(x, y):
            return ((x * y).sum().item() / 4 + 1) ** 3

        others = [(i, j) for i in range(6) for j in range(6) if i != j]
        expected = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in others) / 30
        expected -= 2 * sum(kernel(x, y) for x in a for y in b) / 36
        value, error = metrics.kernel_distance(a, b, subsets=1, subset_size=99, rng=rng)
        assert value == pytest.approx(expected)
        assert error == 0

    def test_unbiased(self, rng):
        """Samples of one distribution give 0 on average, and the subsets' error says how well that is known."""
        values = [
            metrics.kernel_distance(
                torch.randn(20, 4, generator=rng), torch.randn(20, 4, generator=rng), subsets=1, rng=rng
            )[0]
            for _ in range(300)
        ]
        found = torch.tensor(values)
        assert abs(found.mean()) < 4 * found.std() / math.sqrt(300)
        assert found.min() < 0 < found.max()

    def test_subsets(self, rng):
        a, b = torch.randn(60, 4, generator=rng), torch.randn(80, 4, generator=rng) + 1
        whole, _ = metrics.kernel_distance(a, b[:60], subsets=1, rng=rng)
        mean, error = metrics.kernel_distance(a, b, subsets=50, subset_size=30, rng=rng)
        assert mean == pytest.approx(whole, rel=0.2)
        assert 0 < error < 0.1 * mean

    def test_too_few(self, rng):
        with pytest.raises(ShapeError, match="1 and 5 vectors, at least 2"):
            metrics.kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3), rng=rng)


class TestPrecisionRecall:
    def test_against_loops(self, rng):
        real, fake = torch.randn(25, 3, generator=rng), torch.randn(30, 3, generator=rng) * 0.7 + 1.5

        def share(region, points, k):
            reach = [sorted((x - y).norm().item() for y in region)[k] for x in region]
            inside = [
                any((p - x).norm().item() <= r for x, r in zip(region, reach, strict=True)) for p in points
            ]
            return sum(inside) / len(inside)

        got = metrics.precision_recall(real, fake, k=3, chunk=7)
        assert got == pytest.approx((share(real, fake, 3), share(fake, real, 3)))
        assert 0 < got[0] < 1

    def test_few_good_fakes(self, rng):
        """Fakes from one corner of the reals: precise, with little recall."""
        real = torch.randn(300, 2, generator=rng)
        fake = torch.randn(300, 2, generator=rng) * 0.1
        precision, recall = metrics.precision_recall(real, fake)
        assert precision > 0.95
        assert recall < 0.2

    def test_equal_sets(self, rng):
        a = torch.randn(20, 320, generator=rng) * 50
        assert metrics.precision_recall(a, a.clone()) == (1.0, 1.0)

    def test_too_few(self):
        with pytest.raises(ShapeError, match="at least 4 are needed"):
            metrics.precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))


class TestSets:
    def test_floor_and_comparison(self, rng):
        real = torch.randn(200, 6, generator=rng)
        floor = metrics.floor_figures(real, rng=rng)
        shifted = metrics.compare_sets(real[:100], real[100:] + 1, rng=rng)
        assert (floor.real_count, floor.fake_count) == (100, 100)
        assert floor.frechet < 0.5 < shifted.frechet
        assert abs(floor.kernel) < 0.1 < shifted.kernel
        assert floor.precision > shifted.precision

    def test_same_seed_same_figures(self):
        real = torch.randn(60, 6)
        first, second = (metrics.floor_figures(real, rng=torch.Generator().manual_seed(1)) for _ in range(2))
        assert first == second


class TestFeatures:
    def test_any_extractor(self):
        batches = [torch.full((2, 3, 8, 8), 0.5), torch.full((1, 3, 4, 4), -0.5)]
        got = metrics.collect_features(lambda image: image.mean((2, 3)), batches)
        torch.testing.assert_close(got, torch.tensor([[0.5] * 3, [0.5] * 3, [-0.5] * 3]))

    def test_pooled_at_the_stated_size(self):
        sizes = []

        def trunk(image):
            sizes.append(tuple(image.shape[2:]))
            return [image, image[:, :2]]

        smooth = torch.linspace(-1, 1, 64).expand(2, 3, 64, 64)
        got = metrics.pooled_features(trunk, [smooth, smooth[:, :, :32, :32]])
        assert sizes == [(128, 128), (128, 128)]
        assert got.shape == (4, 2)
        torch.testing.assert_close(got[2:], torch.full((2, 2), smooth[0, 0, 0, :32].mean().item()))

    def test_errors(self):
        with pytest.raises(ShapeError, match="no images"):
            metrics.collect_features(lambda image: image.mean((2, 3)), [])
        with pytest.raises(ShapeError, match=r"\(2, 3, 8, 8\) of 2 images"):
            metrics.collect_features(lambda image: image, [torch.zeros(2, 3, 8, 8)])


class TestPathLength:
    @staticmethod
    def distance(a, b):
        return (a - b).double().square().sum((1, 2, 3))

    def test_equals_the_directional_derivative(self, generator):
        """With a squared distance, the figure is the squared derivative along the path."""
        got = metrics.perceptual_path_length(
            generator,
            self.distance,
            rng=torch.Generator().manual_seed(0),
            samples=3,
            batch_size=3,
            epsilon=1e-2,
        )
        rng = torch.Generator().manual_seed(0)
        first, second = generator.mapping(torch.randn(6, generator.z_dim, generator=rng)).chunk(2)

        def image(w):
            return generator.synthesis(generator.broadcast(w), "constant")

        _, slope = torch.autograd.functional.jvp(image, first, second - first)
        expected = (
            slope.double().square().sum((1, 2, 3)).sort().values[1]
        )  # of three, the extremes are dropped
        assert got == pytest.approx(expected.item(), rel=0.05)

    @pytest.mark.parametrize("sampling", ["end", "full"])
    @pytest.mark.parametrize("space", ["w", "z"])
    def test_spaces(self, generator, space, sampling):
        values = [
            metrics.perceptual_path_length(
                generator,
                self.distance,
                rng=torch.Generator().manual_seed(0),
                samples=12,
                space=space,
                sampling=sampling,
                epsilon=1e-2,
                batch_size=size,
                max_resolution=16,
            )
            for size in (12, 12)
        ]
        assert values[0] == values[1] > 0

    def test_unknown_space(self, generator, rng):
        with pytest.raises(OptionError, match="space 'x'"):
            metrics.perceptual_path_length(generator, self.distance, rng=rng, space="x")

    def test_slerp(self):
        a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
        got = metrics.slerp(a, b, torch.tensor([[1 / 3]]))
        torch.testing.assert_close(got, torch.tensor([[math.cos(math.pi / 6), 0.5]]))
        torch.testing.assert_close(metrics.slerp(a, b, torch.ones(1, 1)), torch.tensor([[0.0, 1.0]]))
