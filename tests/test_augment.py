"""The ADA pipe: filters, every transformation, derivatives, probabilities; the controller on real signals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from limner.errors import OptionError, ShapeError
from limner.losses import logistic_d_loss, r1_penalty
from limner.nn import augment, wavelets
from limner.nn.augment import TRANSFORMS, AdaController, AdaPipe

EVERYTHING = tuple(TRANSFORMS)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


def picture(batch=4, size=16, seed=0, dtype=torch.float32):
    return torch.tanh(
        torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    )


def blob(size, x, y, width):
    """A smooth round spot whose centre lies at (x, y), relative to the image's centre."""
    steps = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.exp(-((steps - x) ** 2 + (steps[:, None] - y) ** 2) / (2 * width**2)).expand(
        1, 3, size, size
    )


def matrix(*rows):
    return torch.tensor([[*rows[0]], [*rows[1]], [0.0, 0.0, 1.0]], dtype=torch.float64)[None]


class TestFilters:
    @pytest.mark.parametrize(("taps", "moments"), [(wavelets.SYM2, 2), (wavelets.SYM6, 6)])
    def test_orthonormal_with_vanishing_moments(self, taps, moments):
        n = len(taps)
        for shift in range(0, n, 2):
            product = (taps[shift:] * taps[: n - shift]).sum().item()
            assert product == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-10)
        assert taps.sum().item() == pytest.approx(math.sqrt(2), abs=1e-10)
        for power in range(moments):
            alternating = sum((-1) ** k * k**power * taps[k].item() for k in range(n))
            assert alternating == pytest.approx(0, abs=1e-5)

    def test_bands_add_up_to_the_identity(self):
        total = wavelets.band_filters().sum(0)
        expected = torch.zeros(43, dtype=torch.float64)
        expected[21] = 1
        torch.testing.assert_close(total, expected)

    def test_every_band_passes_its_octave(self):
        positions = torch.arange(43, dtype=torch.float64) - 21
        inside = (
            0.0,
            0.75 * math.pi / 4,
            0.75 * math.pi / 2,
            math.pi,
        )  # centres of the octaves, and both ends
        response = [
            [(taps * torch.cos(f * positions)).sum().item() for f in inside]
            for taps in wavelets.band_filters()
        ]
        for band, row in enumerate(response):
            assert max(range(4), key=row.__getitem__) == band
            assert row[band] > 0.6

    def test_unit_gains_change_nothing(self):
        image = picture(2, 12, dtype=torch.float64)  # smaller than the filter's margin
        gains = torch.ones(2, 4, dtype=torch.float64)
        torch.testing.assert_close(wavelets.filter_bands(image, gains), image)

    def test_flat_image_gets_the_lowest_gain(self):
        gains = torch.tensor([[0.5, 3.0, 4.0, 5.0]], dtype=torch.float64)
        got = wavelets.filter_bands(torch.ones(1, 3, 50, 50, dtype=torch.float64), gains)
        torch.testing.assert_close(got, torch.full_like(got, 0.25))  # once along either axis

    @pytest.mark.parametrize("margin", [3, 12])
    def test_padding_against_numpy(self, margin):
        image = picture(1, 5)
        expected = np.pad(image.numpy(), [(0, 0), (0, 0), (margin, margin), (margin, margin)], mode="reflect")
        np.testing.assert_array_equal(wavelets.pad_mirrored(image, margin).numpy(), expected)


class TestResample:
    @pytest.mark.parametrize("size", [4, 16, 33])
    def test_identity(self, size):
        image = picture(2, size, dtype=torch.float64)
        eye = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
        torch.testing.assert_close(wavelets.resample(image, eye), image, atol=1e-9, rtol=0)

    def test_whole_shift_is_exact_inside(self):
        image = picture(1, 32, dtype=torch.float64)
        got = wavelets.resample(image, matrix((1, 0, 3), (0, 1, -2)))
        torch.testing.assert_close(got[:, :, 8:22, 11:24], image[:, :, 10:24, 8:21], atol=1e-9, rtol=0)

    @pytest.mark.parametrize(
        ("transform", "expected"),
        [
            (matrix((1, 0, 2.5), (0, 1, -1.25)), (7.5, 1.75, 3.0)),
            (matrix((0, -1, 0), (1, 0, 0)), (-3.0, 5.0, 3.0)),
            (matrix((0.6, -0.8, 0), (0.8, 0.6, 0)), (0.6, 5.8, 3.0)),
            (matrix((1.2, 0, 0), (0, 1.2, 0)), (6.0, 3.6, 3.6)),
            (matrix((-1, 0, 0), (0, 1, 0)), (-5.0, 3.0, 3.0)),
        ],
        ids=["shift", "quarter turn", "turn", "scale", "flip"],
    )
    def test_moves_a_spot_where_the_matrix_says(self, transform, expected):
        got = wavelets.resample(blob(40, 5.0, 3.0, 3.0), transform)
        torch.testing.assert_close(got, blob(40, *expected), atol=0.02, rtol=0)

    def test_far_outside_lies_the_mirror_image(self):
        image = blob(16, 2.0, 0.0, 2.0)
        got = wavelets.resample(image, matrix((1, 0, 60), (0, 1, 0)))  # two periods of 2 (16 - 1)
        torch.testing.assert_close(got, image, atol=0.02, rtol=0)

    def test_lookup_has_torchs_value_and_gradient(self, rng):
        image = picture(2, 6, dtype=torch.float64).requires_grad_()
        grid = torch.rand(2, 5, 4, 2, generator=rng, dtype=torch.float64) * 2.4 - 1.2
        upstream = torch.randn(2, 3, 5, 4, generator=rng, dtype=torch.float64)
        ours, theirs = (
            wavelets.sample_bilinear(image, grid),
            nn.functional.grid_sample(image, grid, align_corners=False),
        )
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(y, image, upstream)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*gradients)


class TestTransforms:
    """Every transformation alone, at probability 1, against what it should do."""

    def apply(self, name, image, p=1.0, seed=3):
        return AdaPipe(enabled=[name])(image, p, rng=torch.Generator().manual_seed(seed))

    def test_flip(self):
        image = picture(16)
        got = self.apply("flip", image)
        kinds = [(torch.equal(y, x), torch.equal(y, x.flip(2))) for x, y in zip(image, got, strict=True)]
        assert all(same != mirrored for same, mirrored in kinds)
        assert 0 < sum(same for same, _ in kinds) < 16

    def test_rotate90(self):
        image = picture(32)
        turns = set()
        for x, y in zip(image, self.apply("rotate90", image), strict=True):
            found = [k for k in range(4) if torch.equal(y, x.rot90(k, (1, 2)))]
            assert len(found) == 1
            turns.add(found[0])
        assert turns == {0, 1, 2, 3}

    def test_shift(self):
        image = picture(16)
        shifts = set()
        for x, y in zip(image, self.apply("shift", image), strict=True):
            padded = nn.functional.pad(x[None], (2, 2, 2, 2), mode="reflect")[0]
            found = [
                (dx, dy)
                for dx in range(-2, 3)
                for dy in range(-2, 3)
                if torch.equal(y, padded[:, 2 - dy : 18 - dy, 2 - dx : 18 - dx])
            ]
            assert len(found) == 1
            shifts.add(found[0])
        assert len(shifts) > 5

    @pytest.mark.parametrize("name", TRANSFORMS["geometry"])
    def test_geometry_keeps_flat_images(self, name):
        image = picture(8, 1).expand(-1, -1, 16, 16)
        torch.testing.assert_close(self.apply(name, image), image, atol=1e-4, rtol=0)

    def test_rotation_keeps_a_round_spot(self):
        image = blob(32, 0.0, 0.0, 2.5).expand(8, -1, -1, -1)
        torch.testing.assert_close(self.apply("rotate", image), image, atol=0.02, rtol=0)

    def test_scale_and_stretch_change_area_as_they_should(self):
        image = blob(48, 0.0, 0.0, 3.0).expand(64, -1, -1, -1)
        area = image.sum((1, 2, 3))
        scaled, stretched = (self.apply(name, image).sum((1, 2, 3)) / area for name in ("scale", "stretch"))
        torch.testing.assert_close(stretched, torch.ones_like(stretched), atol=0.01, rtol=0)
        deviation = (scaled.log() / 2).std().item()  # the area is the square of the scale
        assert deviation == pytest.approx(0.2 * math.log(2), rel=0.25)

    def test_brightness_and_contrast(self):
        image = picture(6)
        shift = self.apply("brightness", image) - image
        torch.testing.assert_close(shift, shift[:, :1, :1, :1].expand_as(shift), atol=1e-6, rtol=0)
        assert len(shift[:, 0, 0, 0].unique()) == 6
        factor = self.apply("contrast", image) / image
        torch.testing.assert_close(factor, factor[:, :1, :1, :1].expand_as(factor), atol=1e-4, rtol=0)
        assert (factor > 0).all()

    def test_luma_flip(self):
        image = picture(12)
        got = self.apply("luma_flip", image)
        luma, new = image.mean(1), got.mean(1)
        sign = (new / luma).mean((1, 2)).round()
        assert set(sign.tolist()) == {1.0, -1.0}
        torch.testing.assert_close(new, sign[:, None, None] * luma, atol=1e-5, rtol=0)
        torch.testing.assert_close(got - new[:, None], image - luma[:, None], atol=1e-5, rtol=0)

    def test_hue_turns_about_the_grey_axis(self):
        image = picture(6)
        got = self.apply("hue", image)
        torch.testing.assert_close(got.mean(1), image.mean(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(got.norm(dim=1), image.norm(dim=1), atol=1e-5, rtol=0)
        assert (got - image).abs().mean() > 0.1

    def test_hue_by_a_third_permutes_colours(self):
        class Third(augment._Draw):
            def uniform(self, lo, hi, columns=1):
                value = 2 * math.pi / 3 if lo < 0 else 0.0  # the angle; and "it happens"
                return torch.full((self.count, columns), value, dtype=torch.float64)

        got = augment._draw_color(Third(1, 1.0, torch.Generator(), frozenset({"hue"})))[0]
        expected = torch.tensor(
            [[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64
        )
        torch.testing.assert_close(got, expected)

    def test_saturation(self):
        image = picture(6)
        got = self.apply("saturation", image)
        luma = image.mean(1, keepdim=True)
        factor = (got - luma) / (image - luma)
        torch.testing.assert_close(factor, factor[:, :1, :1, :1].expand_as(factor), atol=1e-2, rtol=1e-2)
        assert (factor > 0).all()

    def test_bands_keep_expected_power(self):
        draw = augment._Draw(200, 1.0, torch.Generator().manual_seed(0), frozenset({"bands"}))
        gains, chosen = augment._draw_gains(draw)
        assert chosen.all()
        assert (gains > 0).all()
        single = augment._Draw(2000, 0.1, torch.Generator().manual_seed(0), frozenset({"bands"}))
        gains, chosen = augment._draw_gains(single)
        # Where exactly one band was amplified the power is unchanged, so it is 1 for most of the chosen.
        power = (augment.BAND_POWER * gains.square()).sum(1)
        torch.testing.assert_close(power[~chosen], torch.ones_like(power[~chosen]))
        assert ((power[chosen] - 1).abs() < 1e-9).double().mean() > 0.7
        assert chosen.double().mean().item() == pytest.approx(1 - 0.9**4, abs=0.04)

    def test_noise(self):
        image = torch.zeros(200, 3, 8, 8)
        deviation = self.apply("rgb_noise", image).flatten(1).std(1)
        assert deviation.square().mean().sqrt().item() == pytest.approx(0.1, rel=0.15)
        assert deviation.min() < 0.02  # half-normal: many images get little

    def test_cutout(self):
        image = torch.ones(64, 3, 16, 16)
        got = self.apply("cutout", image)
        for x in got:
            rows, columns = (x[0] == 0).any(1), (x[0] == 0).any(0)
            assert torch.equal(x[0] == 0, rows[:, None] & columns)  # one rectangle
            assert torch.equal(x[0], x[1])
            for line in (rows, columns):
                assert 4 <= line.sum() <= 8  # half the side, less where it hangs over
        assert (got.flatten(1) == 0).double().mean() > 0.12


class TestPipe:
    def test_p_zero_is_the_image_itself(self, rng):
        image, before = picture(), rng.get_state()
        assert AdaPipe(enabled=EVERYTHING)(image, 0.0, rng=rng) is image
        assert torch.equal(rng.get_state(), before)

    @pytest.mark.parametrize("name", [name for group in TRANSFORMS.values() for name in group])
    def test_happens_with_its_probability(self, name):
        image = picture(400, 8)
        got = AdaPipe(enabled=[name])(image, 0.3, rng=torch.Generator().manual_seed(0))
        changed = (got != image).flatten(1).any(1)
        # Chance that a drawn transformation shows: a coin, one of four turns, a shift that is not (0, 0), four bands.
        share = {"flip": 0.5, "rotate90": 0.75, "luma_flip": 0.5, "shift": 0.75}.get(name, 1.0) * 0.3
        share = 1 - 0.7**4 if name == "bands" else share
        deviation = math.sqrt(share * (1 - share) / 400)
        assert changed.double().mean().item() == pytest.approx(share, abs=4 * deviation)

    def test_untouched_images_stay_bit_identical(self):
        image = picture(64, 16)
        got = AdaPipe(enabled=EVERYTHING)(image, 0.02, rng=torch.Generator().manual_seed(0))
        same = (got == image).flatten(1).all(1)
        assert 20 < same.sum() < 64

    def test_all_randomness_comes_from_the_generator(self):
        image, pipe = picture(8), AdaPipe(enabled=EVERYTHING)
        before = torch.get_rng_state()
        first, again, other = (pipe(image, 0.7, rng=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), before)

    def test_twice_differentiable(self):
        image = picture(2, 3, dtype=torch.float64).requires_grad_()
        pipe = AdaPipe(enabled=EVERYTHING)

        def judge(image):
            """Squared, so that second derivatives are not zero."""
            return pipe(image, 0.9, rng=torch.Generator().manual_seed(5))[:, :, ::2, ::2].square()

        assert torch.autograd.gradcheck(judge, (image,))
        assert torch.autograd.gradgradcheck(lambda x: judge(x).sum(), (image,), fast_mode=True)

    def test_r1_through_the_pipe(self, discriminator, rng):
        discriminator.requires_grad_(True)
        image = picture(4, 32).requires_grad_()
        logits = discriminator(AdaPipe(enabled=EVERYTHING)(image, 0.8, rng=rng))
        r1_penalty(logits, image).backward()
        gradient = discriminator.from_rgb.weight.grad
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0

    def test_half_precision_is_computed_in_single(self, rng):
        got = AdaPipe()(picture().bfloat16(), 1.0, rng=rng)
        assert got.dtype == torch.float32

    def test_config_round_trip(self, rng):
        pipe = AdaPipe(enabled=["color", "flip"])
        assert pipe.config() == {"enabled": ["flip", *TRANSFORMS["color"]]}
        again = AdaPipe(**pipe.config())
        image = picture()
        state = rng.get_state()
        first = pipe(image, 0.5, rng=rng)
        rng.set_state(state)
        assert torch.equal(again(image, 0.5, rng=rng), first)

    def test_errors(self, rng):
        with pytest.raises(OptionError, match="unknown augmentations swirl; known: blit"):
            AdaPipe(enabled=["swirl"])
        with pytest.raises(ShapeError, match=r"\(1, 3, 8, 4\), expected \(B, 3, S, S\)"):
            AdaPipe()(torch.zeros(1, 3, 8, 4), 0.5, rng=rng)
        with pytest.raises(OptionError, match=r"probability is 1.5"):
            AdaPipe()(picture(), 1.5, rng=rng)


class TestController:
    def test_speed(self):
        """With every real image recognised, ada_kimg thousand images take p from 0 to 1."""
        control = AdaController(ada_kimg=0.4)
        for _ in range(10):
            control.observe(torch.ones(40, 1))
            control.update()
        assert control.p == pytest.approx(1.0)
        control.observe(torch.full((40, 1), -1.0))
        assert control.update() == pytest.approx(0.9)

    def test_threshold(self):
        control = AdaController(p=0.5, ada_kimg=1.0)
        control.observe(torch.tensor([1.0] * 75 + [-1.0] * 25))  # r_t = 0.5, below 0.6
        assert control.update() == pytest.approx(0.4)
        assert control.r_t == pytest.approx(0.5)
        control.observe(torch.tensor([1.0] * 85 + [-1.0] * 15))  # r_t = 0.7
        assert control.update() == pytest.approx(0.5)
        assert control.update() == pytest.approx(0.5)  # nothing was observed

    @pytest.mark.parametrize("overfits", [True, False])
    def test_with_a_trained_discriminator(self, overfits, rng):
        """Eight pictures learned by heart raise p; fresh pictures that look like the fakes leave it at 0."""
        few = torch.randn(8, 3, 8, 8, generator=rng)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        optimiser, control = torch.optim.Adam(net.parameters(), 1e-3), AdaController(ada_kimg=2.5)
        pipe = AdaPipe(enabled=["flip"])
        for step in range(100):
            real = few if overfits else torch.randn(8, 3, 8, 8, generator=rng)
            logits = net(pipe(real, control.p, rng=rng))
            control.observe(logits)
            fake = pipe(torch.randn(8, 3, 8, 8, generator=rng), control.p, rng=rng)
            loss = logistic_d_loss(logits, net(fake))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step % 10 == 9:  # 80 images per update: one update alone would be noisy
                control.update()
        if overfits:
            assert control.p > 0.15
            assert control.r_t > 0.6
        else:
            assert control.p == 0
            assert control.r_t < 0.6

    def test_several_processes(self):
        control = AdaController(p=0.5, ada_kimg=1.0)
        control.observe(torch.ones(50))
        others = torch.tensor([-50.0, 50.0], dtype=torch.float64)  # another process saw 50 unsure ones
        assert control.update(lambda sums: sums + others) == pytest.approx(0.4)
        assert control.r_t == 0

    def test_counts_exactly_in_half_precision(self):
        control = AdaController(ada_kimg=1.0)
        control.observe(torch.ones(301, dtype=torch.bfloat16))
        assert control.update() == pytest.approx(0.301)

    def test_resume(self):
        first, second = AdaController(ada_kimg=1.0), AdaController(ada_kimg=1.0)
        first.observe(torch.ones(100))
        second.load_state(first.state())
        assert first.update() == second.update() == pytest.approx(0.1)

    def test_errors(self):
        with pytest.raises(OptionError, match="probability is -1"):
            AdaController(p=-1)
        with pytest.raises(OptionError, match="ada_kimg is 0"):
            AdaController(ada_kimg=0)
