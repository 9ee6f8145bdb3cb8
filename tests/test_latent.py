"""Spaces and the ways between them, layer masks, latent files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import make_generator
from safetensors.torch import save_file

from limner.errors import CheckpointError, KeyMismatchError, OptionError, ShapeError, UnknownFormatError
from limner.latent import Latent, LayerMask, load_latent, mix, render, save_latent, truncate, w_statistics
from limner.nn.stylegan2 import Generator


@pytest.fixture
def z(generator) -> Latent:
    return Latent("z", torch.randn(2, generator.z_dim, generator=torch.Generator().manual_seed(5)))


# Spaces


@pytest.mark.parametrize("space", ["z", "z+", "w", "w+", "s"])
def test_every_space_paints_the_same_image(generator, z, space):
    assert torch.allclose(render(generator, z.to_space(space, generator)), generator(z.tensor), atol=1e-5)


def test_rows_of_z_plus_are_mapped_one_by_one(generator):
    rows = torch.randn(2, generator.num_rows, generator.z_dim)
    w_plus = Latent("z+", rows).w_plus(generator)
    for row in range(generator.num_rows):
        assert torch.allclose(w_plus[:, row], generator.mapping(rows[:, row]), atol=1e-6)


def test_codes_are_sliced_joined_and_moved(generator, z):
    styles = z.to_space("s", generator)
    assert len(styles) == 2
    assert len(styles[-1]) == 1
    again = Latent.cat([styles[0], styles[1]])
    assert all(torch.equal(a, b) for a, b in zip(again.parts, styles.parts, strict=True))
    assert z.to(torch.float64).tensor.dtype == torch.float64
    assert torch.equal(z[[1, 0]].tensor, z.tensor.flip(0))
    with pytest.raises(IndexError):
        z[2]


@pytest.mark.parametrize(("space", "to"), [("w", "z"), ("w+", "w"), ("s", "w+"), ("z+", "w"), ("w", "z+")])
def test_the_way_leads_only_forward(generator, z, space, to):
    with pytest.raises(OptionError, match="cannot be brought"):
        z.to_space(space, generator).to_space(to, generator)


def test_wrong_shapes_and_spaces_say_what_was_expected(generator):
    with pytest.raises(OptionError, match="expected one of z, z"):
        Latent("x", torch.zeros(1, 4))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"w\+ takes \(B, L, w_dim\), found shape \(1, 4\)"):
        Latent("w+", torch.zeros(1, 4))
    with pytest.raises(ShapeError, match="sequence"):
        Latent("s", torch.zeros(1, 4))
    with pytest.raises(ShapeError, match="one batch"):
        Latent("s", (torch.zeros(1, 4), torch.zeros(2, 4)))
    with pytest.raises(ShapeError, match="3 rows, expected 8"):
        render(generator, Latent("w+", torch.zeros(1, 3, generator.w_dim)))
    with pytest.raises(ShapeError, match="not one tensor"):
        _ = Latent("s", (torch.zeros(1, 4),)).tensor
    with pytest.raises(OptionError, match="cannot be joined"):
        Latent.cat([Latent("z", torch.zeros(1, 4)), Latent("w", torch.zeros(1, 4))])


@pytest.mark.parametrize("cutoff", [None, 3])
def test_truncation_is_the_same_in_w_plus_and_s(generator, z, cutoff):
    expected = generator(z.tensor, psi=0.6, psi_cutoff=cutoff)
    assert torch.allclose(render(generator, z, psi=0.6, psi_cutoff=cutoff), expected, atol=1e-5)
    styles = truncate(generator, z.to_space("s", generator), 0.6, cutoff)
    assert styles.space == "s"
    assert torch.allclose(render(generator, styles), expected, atol=1e-5)


def test_w_statistics_agree_with_a_plain_computation(generator):
    found = w_statistics(generator, 1500, rng=torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    w = torch.cat(
        [generator.mapping(torch.randn(n, generator.z_dim, generator=rng)) for n in (1000, 500)]
    ).numpy()
    assert np.allclose(found.mean, w.mean(0), atol=1e-5)
    assert np.allclose(found.std, w.std(0), rtol=1e-4)
    assert found.radius == pytest.approx(np.sqrt(((w - w.mean(0)) ** 2).sum(1).mean()), rel=1e-5)


# Layer masks, at 32 px: rows 0-7, vectors 4.conv 4.rgb 8.up 8.conv 8.rgb ... 32.rgb


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("7", [7]),
        ("5-7", [5, 6, 7]),
        ("5-", [5, 6, 7]),
        ("-2", [0, 1, 2]),
        ("1, 3,5-6", [1, 3, 5, 6]),
        ("coarse", [0, 1, 2, 3]),
        ("middle", [4, 5, 6, 7]),
        ("fine", []),
        ("psp-coarse", [0, 1, 2]),
        ("psp-medium", [3, 4, 5, 6]),
        ("psp-fine", [7]),
        ("all", list(range(8))),
        ("ALL", list(range(8))),
        ("none", []),
        ("32-", [5, 6, 7]),
        ("32px-", [5, 6, 7]),
        ("16px", [3, 4]),
        ("8px-16px", [1, 2, 3, 4]),
        ("8-16px", [1, 2, 3, 4]),
        ("-8px", [0, 1, 2]),
        ("64-256", []),
        ("all,none", []),
    ],
)
def test_masks_over_rows(generator, text, rows):
    weights = LayerMask(text).rows(generator)
    assert weights.nonzero().flatten().tolist() == rows
    assert set(weights.tolist()) <= {0.0, 1.0}


def test_a_resolution_means_the_same_at_every_size():
    small, large = (
        make_generator(),
        Generator(resolution=128, channels=dict.fromkeys((4, 8, 16, 32, 64, 128), 4)),
    )
    for text in ("16px", "8px-32px", "-16px"):
        rows = [LayerMask(text).rows(g).nonzero().flatten().tolist() for g in (small, large)]
        # The last row drives toRGB alone and counts with the full size.
        assert [row for row in rows[0] if row < 7] == [row for row in rows[1] if row < 7]
    wide = LayerMask("64px-").styles(large).bool()
    assert [n for n, chosen in zip(large.synthesis.style_names, wide, strict=True) if chosen] == [
        "64.up", "64.conv", "64.rgb", "128.up", "128.conv", "128.rgb",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("rgb", "4.rgb 8.rgb 16.rgb 32.rgb"),
        ("32px,no-rgb", "32.up 32.conv"),
        ("middle.rgb", "16.rgb 32.rgb"),
        ("-2.conv", "4.conv 8.up 8.conv"),
        ("16px.rgb", "16.rgb"),
        ("1", "4.rgb 8.up"),
        ("s:0-2", "4.conv 4.rgb 8.up"),
        ("s:9-,s:32.conv=0", "32.rgb"),
        ("s:16.up", "16.up"),
    ],
)
def test_masks_over_style_vectors(generator, text, names):
    weights = LayerMask(text).styles(generator)
    found = [n for n, weight in zip(generator.synthesis.style_names, weights, strict=True) if weight]
    assert found == names.split()


def test_rows_and_vectors_agree_for_row_masks(generator):
    mask = LayerMask("all=0.25,3-5,7=0.5")
    rows = mask.rows(generator)
    assert rows.tolist() == [0.25, 0.25, 0.25, 1, 1, 1, 0.25, 0.5]
    assert torch.equal(mask.styles(generator), rows[generator.synthesis.style_rows])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", "names 8, but a 32 px generator has rows 0-7; write an open range such as 8-"),
        ("7-17", "names 17"),
        ("s:11", "S-space vectors 0-10"),
        ("s:64.up", "has no '64.up'"),
        ("cours", "did you mean 'coarse'"),
        ("5-3", "runs backwards"),
        ("12px", "no resolution"),
        ("48-", "no resolution"),
        ("8px16", "cannot read"),
        ("-", "cannot read"),
        ("", "empty part"),
        ("1,,2", "empty part"),
        ("all=2", "from 0 to 1"),
        ("all=", "from 0 to 1"),
        ("all=nan", "from 0 to 1"),
        ("no-rgb=0.5", "write rgb=0.5"),
        ("s:up", "no S-space vector"),
    ],
)
def test_bad_masks_explain_themselves(generator, text, message):
    with pytest.raises(OptionError) as caught:
        LayerMask(text).styles(generator)
    assert message in str(caught.value)


def test_rows_refuse_a_mask_that_needs_s_space(generator):
    with pytest.raises(OptionError, match="tells toRGB from convolutions"):
        LayerMask("all,no-rgb").rows(generator)


def test_mix_takes_the_masked_rows(generator, z):
    a, b = z[0], z[1]
    mixed = mix(a, b, LayerMask("0-2,5=0.5"), generator)
    x, y = a.w_plus(generator), b.w_plus(generator)
    assert mixed.space == "w+"
    assert torch.equal(mixed.tensor[:, :3], y[:, :3])
    assert torch.equal(mixed.tensor[:, 3:5], x[:, 3:5])
    assert torch.allclose(mixed.tensor[:, 5], (x[:, 5] + y[:, 5]) / 2)
    # The same in s, where toRGB can be told apart.
    in_s = mix(a.to_space("s", generator), b, LayerMask("0-2,5=0.5"), generator)
    assert torch.allclose(render(generator, in_s), render(generator, mixed), atol=1e-5)
    colors = mix(a, b, LayerMask("rgb"), generator)
    parts = zip(
        colors.parts, a.styles(generator), b.styles(generator), generator.synthesis.style_names, strict=True
    )
    assert all(torch.equal(part, new if name.endswith("rgb") else old) for part, old, new, name in parts)


# Files


@pytest.mark.parametrize("space", ["z", "w+", "s"])
def test_files_keep_codes_noise_and_notes(generator, z, space, tmp_path):
    latent = z.to_space(space, generator)
    noise = [torch.randn(2, 1, 4, 4), torch.randn(2, 1, 8, 8)]
    path = save_latent(
        tmp_path / "new" / "face.safetensors",
        latent,
        noise=noise,
        delta={"a.left": noise[0]},
        metadata={"report": [1.5]},
    )
    assert [file.name for file in path.parent.iterdir()] == ["face.safetensors"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    read = load_latent(path)
    assert read.latent.space == space
    assert all(torch.equal(a, b) for a, b in zip(read.latent.parts, latent.parts, strict=True))
    assert read.noise is not None
    assert all(torch.equal(a, b) for a, b in zip(read.noise, noise, strict=True))
    assert read.delta is not None
    assert torch.equal(read.delta["a.left"], noise[0])
    assert read.metadata == {"report": [1.5]}
    with pytest.raises(OptionError, match=f"holds codes in {space.replace('+', '.')}"):
        load_latent(path, space="w" if space != "w" else "z")


@pytest.mark.parametrize(
    ("shape", "space", "expected"),
    [
        ((1, 18, 512), None, ("w+", (1, 18, 512))),
        ((18, 512), None, ("w+", (1, 18, 512))),
        ((3, 18, 512), "z+", ("z+", (3, 18, 512))),
        ((1, 512), None, ("w", (1, 512))),
        ((512,), None, ("w", (1, 512))),
        ((4, 512), "w", ("w", (4, 512))),
        ((4, 1, 512), "z", ("z", (4, 512))),
    ],
)
def test_arrays_of_other_programs(tmp_path, shape, space, expected):
    values = np.random.default_rng(0).standard_normal(shape)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", w=values, other=np.zeros(3))
    for name in ("a.npy", "a.npz"):
        latent = load_latent(tmp_path / name, space=space).latent
        assert (latent.space, tuple(latent.tensor.shape)) == expected
        assert np.allclose(latent.tensor.flatten(), values.flatten())


class Trap:
    def __reduce__(self):
        return (open, ("/tmp/limner-trap", "w"))


def test_pickled_arrays_are_refused_unread(tmp_path):
    np.save(tmp_path / "codes.npy", np.array({"a.png": Trap()}, dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"pickled Python objects.*does not run.*plain array"):
        load_latent(tmp_path / "codes.npy")
    np.savez(tmp_path / "codes.npz", w=np.array([Trap()], dtype=object))
    with pytest.raises(CheckpointError, match="pickled"):
        load_latent(tmp_path / "codes.npz")


def test_broken_and_foreign_files_explain_themselves(tmp_path, z):
    with pytest.raises(CheckpointError, match="no such file"):
        load_latent(tmp_path / "none.npy")
    for name, data in {"a.npy": b"\x93NUMPY\x01", "b.npz": b"PK\x03\x04broken.."}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged"):
            load_latent(tmp_path / name)
    for name, data in {"e.safetensors": b"", "t.pt": b"\x80\x02abc", "x.txt": b"hello, world"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnknownFormatError, match=r"known are \.safetensors, \.npz and \.npy"):
            load_latent(tmp_path / name)
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(KeyMismatchError, match="arrays a, b"):
        load_latent(tmp_path / "two.npz")
    np.save(tmp_path / "text.npy", np.array(["a"]))
    with pytest.raises(ShapeError, match="expected codes"):
        load_latent(tmp_path / "text.npy")
    np.save(tmp_path / "four.npy", np.zeros((2, 3, 4, 5)))
    with pytest.raises(ShapeError, match="w\\+ takes"):
        load_latent(tmp_path / "four.npy")
    save_file(
        {"x": torch.zeros(1)},
        tmp_path / "model.safetensors",
        metadata={"limner": json.dumps({"kind": "model"})},
    )
    with pytest.raises(KeyMismatchError, match="but a model"):
        load_latent(tmp_path / "model.safetensors")
    path = save_latent(tmp_path / "z.safetensors", z)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        load_latent(path)


def test_a_failed_write_leaves_nothing_behind(tmp_path, z):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_latent(tmp_path / "file" / "z.safetensors", z)
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        save_latent(tmp_path / "taken.safetensors", z)
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != "limner-cache") == [
        "file",
        "taken.safetensors",
    ]
