"""Files appear whole or not at all."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
import torch

from limner import checkpoints, media, zoo
from limner.files import check_writable, replacing
from limner.latent import Latent, save_latent
from limner.stylization.style import save_style, style_between


def test_nothing_is_seen_before_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path, sync=True) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"


def test_long_names_and_missing_folders(tmp_path):
    long = tmp_path / ("n" * 250)
    with replacing(long) as temporary:
        temporary.write_bytes(b"x")
    assert long.read_bytes() == b"x"
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none/a.txt"):
        pass


def test_every_writer_obeys_the_umask(tmp_path, generator):
    """Safetensors makes files that only their owner may read, which nobody asked for."""
    checkpoint = checkpoints.Checkpoint(generator=generator)
    style = style_between(generator, generator, method="jojogan", options={})
    old = os.umask(0o027)
    try:
        checkpoints.save(checkpoint, tmp_path / "native.safetensors")
        with pytest.warns(UserWarning, match="the original programs"):
            checkpoints.save(checkpoint, tmp_path / "rosinality.pt", format="rosinality")
        save_style(style, tmp_path / "style.limner", generator)
        save_latent(tmp_path / "latent.safetensors", Latent("w", torch.zeros(1, 16)))
        media.write(tmp_path / "picture.png", np.zeros((8, 8, 3), np.uint8))
        zoo.cache_dir().mkdir()
        (zoo.cache_dir() / "x.pt").write_bytes(b"x")
        download = zoo.Download(name="x", kind="model", url="https://example.org/x.pt", licence="CC0-1.0")
        zoo.install(download, zoo.cache_dir() / "x.pt")
    finally:
        os.umask(old)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.rglob("*") if file.is_file()}
    assert len(modes) == 7
    assert modes == dict.fromkeys(modes, 0o640)


def test_folders_are_tried_before_the_work(tmp_path, locked_folder):
    check_writable(tmp_path / "new/deeper/a.txt")
    (tmp_path / "a.txt").write_text("old")
    check_writable(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", locked_folder.name]
    for path, error in (
        (locked_folder / "a.txt", PermissionError),
        (locked_folder / "deeper/a.txt", PermissionError),
        (tmp_path / "a.txt/b.txt", NotADirectoryError),
        (locked_folder, IsADirectoryError),
    ):
        with pytest.raises(error) as caught:
            check_writable(path)
        assert caught.value.filename == str(path)
    with pytest.raises(NotADirectoryError, match="a.txt is a file, expected a folder"):
        check_writable(tmp_path / "a.txt/b.txt")
