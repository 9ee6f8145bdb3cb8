"""The model zoo: cards, names, files, digests; what is installed and what can be fetched."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from limner import zoo
from limner.errors import KeyMismatchError, ZooError
from limner.nn.features import AlexNet
from limner.nn.lpips import Lpips


def install(name: str = "mine", content: bytes = b"weights") -> zoo.Card:
    """Put a file into this test's cache as a download would."""
    download = zoo.Download(
        name=name, kind="model", url="https://example.org/a/mine.pt?x=1", licence="CC0-1.0"
    )
    zoo.cache_dir().mkdir(parents=True, exist_ok=True)
    (zoo.cache_dir() / download.file_name).write_bytes(content)
    return zoo.install(download, zoo.cache_dir() / download.file_name)


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "own"))
    assert zoo.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("LIMNER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert zoo.cache_dir() == tmp_path / "xdg/limner"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert zoo.cache_dir() == tmp_path / ".cache/limner"


def test_install_path_verify_remove():
    card = install()
    assert card.path == zoo.cache_dir() / "mine.pt"
    assert (card.kind, card.licence, card.bytes, card.bundled) == ("model", "CC0-1.0", 7, False)
    assert "mine" in zoo.names("model")
    assert zoo.path("mine") == card.path
    assert zoo.verify("mine") == card
    install("other", b"x")
    assert zoo.verify("mine") == card  # the list keeps what was there
    zoo.remove("mine")
    assert not card.path.exists()
    assert "mine" not in zoo.names()
    assert "other" in zoo.names()


def test_changed_and_missing_files_are_seen():
    card = install()
    card.path.write_bytes(b"weighty")
    with pytest.raises(ZooError, match="it was changed; limner models pull mine --force"):
        zoo.verify("mine")
    card.path.unlink()
    with pytest.raises(ZooError, match=r"mine\.pt, is missing; limner models pull mine"):
        zoo.path("mine")


def test_bundled_models_win_over_namesakes():
    name = next(iter(zoo.bundled()))
    install(name)
    assert zoo.card(name).bundled


def test_unknown_names_have_close_matches():
    with pytest.raises(ZooError, match="no model is called 'lite'; did you mean lite0"):
        zoo.path("lite")
    with pytest.raises(ZooError, match="no model is called 'qqqqq'; known: .*lite0"):
        zoo.path("qqqqq")
    with pytest.raises(ZooError, match="fetch it with: limner models pull ffhq-ada"):
        zoo.path("ffhq-ada")


def test_resolve_takes_names_and_files(tmp_path, monkeypatch):
    file = tmp_path / "model.pt"
    file.write_bytes(b"x")
    assert zoo.resolve(file) == file
    assert zoo.resolve("lite0") == zoo.path("lite0")
    monkeypatch.chdir(tmp_path)
    Path("lite0").write_bytes(b"x")
    assert zoo.resolve("lite0") == zoo.path("lite0")  # the name wins,
    assert zoo.resolve("./lite0") == Path("./lite0")  # a path says what it is
    with pytest.raises(ZooError, match=r"no file none\.pt, and no model of that name"):
        zoo.resolve("none.pt")
    with pytest.raises(ZooError, match="did you mean lite0"):
        zoo.resolve("lite1")


def test_broken_list_of_installed_models(tmp_path):
    install()
    (zoo.cache_dir() / "index.json").write_text('{"mine": {"file": "x"}}')
    with pytest.raises(ZooError, match="cannot be read: .*delete it"):
        zoo.installed()
    (zoo.cache_dir() / "index.json").write_text("{")
    with pytest.raises(ZooError, match="cannot be read"):
        zoo.names()


def test_list_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "file/cache"))
    download = zoo.Download(name="x", kind="model", url="https://example.org/x.pt", licence="CC0-1.0")
    with pytest.raises(ZooError, match="cannot write .*; LIMNER_CACHE names another folder"):
        zoo.install(download, tmp_path / "file")


def test_unknown_kind_is_not_loaded():
    install()
    entries = json.loads((zoo.cache_dir() / "index.json").read_text())
    entries["mine"]["kind"] = "style"
    (zoo.cache_dir() / "index.json").write_text(json.dumps(entries))
    with pytest.raises(ZooError, match="mine is of kind 'style', which is loaded by its own package"):
        zoo.load("mine")


def test_trunk_is_loaded():
    trunk = zoo.load("lite0")
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


def test_catalogue_is_honest():
    catalogue = zoo.catalogue()
    assert len(catalogue) > 20
    assert not set(catalogue) & set(zoo.bundled())
    for item in catalogue.values():
        assert item.url.startswith("https://"), item
        assert item.licence, item
        assert item.note, item
        assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64})?", item.sha256), item
        # A short digest is the one that stands in the file's name; nothing else is claimed.
        if len(item.sha256) == 8:
            assert Path(item.url).stem.endswith(f"-{item.sha256}")
    assert len({item.file_name for item in catalogue.values()}) == len(catalogue)


@pytest.mark.parametrize("name", zoo.bundled())
def test_every_bundled_model_loads_by_name(name):
    card = zoo.card(name)
    if card.kind in zoo.LOADERS:
        assert zoo.load(name) is not None


def install_part(name: str, state: dict[str, torch.Tensor]) -> None:
    """Put tensors into this test's cache as the download of a part of LPIPS would."""
    download = zoo.catalogue()[name]
    zoo.cache_dir().mkdir(parents=True, exist_ok=True)
    torch.save(state, zoo.cache_dir() / download.file_name)
    zoo.install(download, zoo.cache_dir() / download.file_name)


def test_lpips_is_made_of_two_installed_files():
    metric = Lpips(trunk=AlexNet())
    for parameter in metric.heads.parameters():
        torch.nn.init.uniform_(parameter)
    message = "lpips-alex is made of alexnet and lpips-alex-heads; not installed: {0}; fetch .* pull {1}$"
    with pytest.raises(
        ZooError, match=message.format("alexnet, lpips-alex-heads", "alexnet lpips-alex-heads")
    ):
        zoo.load("lpips-alex")
    # As torchvision's file: the classifier lies in it too.
    install_part("alexnet", {**metric.trunk.state_dict(), "classifier.1.weight": torch.zeros(2, 2)})
    with pytest.raises(ZooError, match=message.format("lpips-alex-heads", "lpips-alex-heads")):
        zoo.load("lpips-alex")
    install_part("lpips-alex-heads", metric.heads.state_dict())
    a, b = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    assert torch.equal(zoo.load("lpips-alex")(a, b), metric(a, b))
    zoo.remove("lpips-alex-heads")
    install_part("lpips-alex-heads", {"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)})
    with pytest.raises(KeyMismatchError, match="lin1.model.1.weight missing"):
        zoo.load("lpips-alex")
    with pytest.raises(
        ZooError, match="lpips-vgg is made of vgg16 and lpips-vgg-heads; .* pull vgg16 lpips-vgg-heads"
    ):
        zoo.load("lpips-vgg")


def test_composed_models_have_no_file():
    with pytest.raises(
        ZooError, match="lpips-vgg has no file of its own: it is made of vgg16 and lpips-vgg-heads"
    ):
        zoo.path("lpips-vgg")
    for _, parts in zoo.COMPOSED.values():
        assert {zoo.catalogue()[part].kind for part in parts} == {"lpips"}
