"""Options, first weights and the command of training the published encoders."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import test_train_psp
import torch
from conftest import make_generator
from test_train_encoder import flatten

from limner import checkpoints
from limner.app.cli import choose_variant, load_command, main
from limner.checkpoints.irse import fill_body, foreign_name
from limner.errors import KeyMismatchError, OptionError
from limner.nn.irse import ArcFace, BatchNorm, IrSeBody, ResNetBody
from limner.options import from_mapping, read_recipe
from limner.training.encoder.options import EncoderOptions
from limner.training.psp.options import PspOptions, settle_weights

ARCHITECTURES = ("psp", "e4e", "restyle-psp", "restyle-e4e")
folder = test_train_psp.folder


def test_the_published_weights():
    """As in ../shared/PEERS.md, sections 5.2 and 7."""

    def weights(**values):
        options = settle_weights(PspOptions(data=("x",), **values))
        names = ("perceptual", "l2", "identity", "w_norm", "perceptual_crop", "l2_crop", "delta", "critic")
        return tuple(getattr(options, name) for name in names)

    assert weights() == (0.8, 1, 0.1, 0, 0, 0, 0, 0)
    assert weights(task="frontal") == (0.08, 0.001, 1, 0.005, 0.8, 0.01, 0, 0)
    assert weights(task="frontal", pairs=("y",))[:4] == (0.8, 1, 0.1, 0.005)
    assert weights(task="sketch") == weights(task="labels", pairs=("y",)) == (0.8, 1, 0, 0.005, 0, 0, 0, 0)
    assert weights(task="super-resolution")[:4] == (0.8, 1, 0.1, 0.005)
    assert weights(task="toonify")[:4] == (0.8, 1, 1, 0.025)
    assert weights(architecture="e4e") == (0.8, 1, 0.1, 0, 0, 0, 2e-4, 0.1)
    assert weights(architecture="restyle-psp") == (0.8, 1, 0.1, 0, 0, 0, 0, 0)
    assert weights(identity=0.5)[2] == 0.5
    assert PspOptions().optimizer == "ranger"
    assert PspOptions().lr == 1e-4
    assert PspOptions().iterations == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "made_share set to 1"),
        ({"task": "labels"}, "pairs must be given"),
        ({"task": "sketch", "architecture": "restyle-psp"}, "train it with psp or e4e"),
        ({"head": "w", "architecture": "restyle-psp"}, "restyle-psp has single"),
        ({"head": "w+", "architecture": "e4e"}, "e4e has pyramid or w"),
        ({"space": "w"}, "gives codes in w\\+"),
        ({"input_px": 48}, "power of two"),
        ({"train_decoder": True, "made_share": 0.5}, "cannot paint its own truth"),
        ({"factors": (0,)}, "from 1 up"),
        ({"codes_kimg": 1.0}, "codes and made_share"),
        ({"pairs": ("p",), "task": "toon", "made_share": 0.5}, "leave pairs out"),
        ({"photos": "p", "task": "sketch"}, "photos is for the task inversion"),
        ({"pairs": ("p",), "data": ()}, "pairs is not what inversion learns from.* such as p/photo"),
        ({"pairs": ("p",), "data": (), "task": "toonify"}, "pairs is not what toonify learns from"),
        ({"l2": 0.0, "perceptual": 0.0, "identity": 0.0}, "nothing is learned from pictures"),
        ({"l2": 0.0, "perceptual": 0.0, "task": "sketch", "codes": 1.0, "made_share": 0.5}, "are all 0"),
        ({"task": "frontal", "mirror": False}, "mirror must not be false"),
        ({"made_share": 1.0, "data": (), "validate": "0-7"}, "there is no data"),
    ],
)
def test_options_that_contradict_are_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        settle_weights(PspOptions(**{"data": ("x",), **changes}))


def test_options_that_look_alike_are_accepted():
    none = {"l2": 0.0, "perceptual": 0.0, "identity": 0.0}
    accepted: tuple[dict[str, Any], ...] = (
        {"made_share": 1.0, "codes": 1.0, **none},  # codes alone
        {"task": "frontal", "data": ("x",), **none},  # faces alone
        {"task": "frontal", "pairs": ("p",), "mirror": False},
        {"made_share": 1.0, "data": ("x",), "validate": "0-7"},
        {"task": "sketch", "pairs": ("p",), "validate": "0-7"},
    )
    for values in accepted:
        settle_weights(PspOptions(**values))


def test_options_of_other_architectures_are_refused():
    with pytest.raises(OptionError, match="architecture is compact.*EncoderOptions"):
        PspOptions(architecture="compact")
    with pytest.raises(OptionError, match="architecture is psp.*PspOptions"):
        EncoderOptions(architecture="psp")


def test_the_recipe_is_for_other_tasks_without_its_photos(capsys):
    recipe = "recipes/encoder-psp.yaml"
    assert main(["train", "encoder", "--config", recipe, "--task", "sketch"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "photos is for the task inversion" in line
    values = read_recipe(recipe) | {"task": "sketch", "photos": ""}
    assert settle_weights(from_mapping(PspOptions, values)).w_norm == 0.005


def test_the_architecture_chooses_the_options(tmp_path):
    _, options = load_command("train encoder")
    assert options is EncoderOptions

    def choose(*words):
        return choose_variant("train encoder", options, words)

    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"architecture": "e4e"}')
    assert choose() is EncoderOptions
    assert choose("--architecture", "psp") is choose("--config", str(recipe)) is PspOptions
    assert choose("--config", str(recipe), "--architecture", "compact") is EncoderOptions
    with pytest.raises(OptionError, match="did you mean 'e4e'"):
        choose("--architecture", "e5e")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_recipes_load(name):
    options = settle_weights(
        from_mapping(PspOptions, read_recipe(f"recipes/encoder-{name}.yaml"), where=name)
    )
    assert options.architecture == name
    assert options.kimg > 0


# ---- the body's first weights


def test_a_body_is_filled_from_arcface(tmp_path):
    """The tensors of ``model_ir_se50.pth``; a stem for six channels stays as it was."""
    torch.manual_seed(1)
    face = ArcFace(widths=(4, 8, 16, 32), depths=(1, 2, 1, 1), dimensions=8, face_px=32)
    for module in face.modules():
        if isinstance(module, BatchNorm):
            torch.nn.init.normal_(module.running_mean)
    state = {foreign_name(name): value for name, value in face.state_dict().items()}
    torch.save(state, tmp_path / "face.pth")
    for channels, whole in ((3, True), (6, False)):
        torch.manual_seed(2)
        body = IrSeBody(in_channels=channels, widths=(4, 8, 16, 32), depths=(1, 2, 1, 1))
        stem = {name: value.clone() for name, value in body.stem.state_dict().items()}
        assert fill_body(body, tmp_path / "face.pth") == whole
        own = body.state_dict()
        for name, value in face.body.state_dict().items():
            if whole or not name.startswith("stem."):
                assert torch.equal(own[name], value), name
        assert whole or all(torch.equal(body.stem.state_dict()[name], value) for name, value in stem.items())
    with pytest.raises(KeyMismatchError, match="shape"):
        fill_body(IrSeBody(widths=(4, 8, 16, 24), depths=(1, 2, 1, 1)), tmp_path / "face.pth")


def test_a_body_is_filled_from_torchvision(tmp_path):
    """ResNet-34 as torchvision names it, written by hand; its stem has no PReLU."""
    torch.manual_seed(1)
    other = ResNetBody(widths=(4, 8, 16, 32), depths=(1, 2, 1, 1))
    own = other.state_dict()
    state = {"fc.weight": torch.zeros(2, 2), "bn1.num_batches_tracked": torch.tensor(0)}
    state["conv1.weight"] = own["stem.conv.weight"]
    norms = ("weight", "bias", "running_mean", "running_var")
    state |= {f"bn1.{name}": own[f"stem.norm.{name}"] for name in norms}
    for number, place in enumerate(("layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0")):
        for n in (1, 2):
            state[f"{place}.conv{n}.weight"] = own[f"blocks.{number}.conv{n}.weight"]
            state |= {f"{place}.bn{n}.{name}": own[f"blocks.{number}.norm{n}.{name}"] for name in norms}
        if f"blocks.{number}.shortcut.conv.weight" in own:
            state[f"{place}.downsample.0.weight"] = own[f"blocks.{number}.shortcut.conv.weight"]
            state |= {
                f"{place}.downsample.1.{name}": own[f"blocks.{number}.shortcut.norm.{name}"] for name in norms
            }
    torch.save(state, tmp_path / "resnet34.pth")
    torch.manual_seed(2)
    body = ResNetBody(widths=(4, 8, 16, 32), depths=(1, 2, 1, 1))
    assert fill_body(body, tmp_path / "resnet34.pth")
    for name, value in own.items():
        assert torch.equal(body.state_dict()[name], value), name
    del state["layer2.1.conv1.weight"]
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(KeyMismatchError, match=r"layer2\.1\.conv1\.weight"):
        fill_body(body, tmp_path / "broken.pth")


# ---- the command


@pytest.fixture
def words(folder, tmp_path):
    checkpoints.save(checkpoints.Checkpoint(generator=make_generator()), tmp_path / "base.safetensors")
    options = {"architecture": "e4e", "base": tmp_path / "base.safetensors", "data": folder, "select": "0-7"}
    options |= {
        "validate": "8-9",
        "width": 4,
        "batch-size": 4,
        "body": "resnet34",
        "kimg": 0.004,
        "threads": 1,
    }
    return ["train", "encoder", "--json"] + [word for k, v in options.items() for word in (f"--{k}", str(v))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*original programs")
def test_command_trains_resumes_exports_and_inverts(words, folder, tmp_path, capsys):
    out = tmp_path / "run"
    for kimg in ("0.004", "0.008"):
        assert main([*words, "--out", str(out), "--kimg", kimg]) == 0
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert "lite0 stands in" in printed
    assert "resuming at 0.0 kimg" in printed
    assert len(list((out / "sheets").glob("*.png"))) == 1
    notes = checkpoints.load(out / "model.safetensors").metadata["provenance"]["notes"]
    assert any(note.startswith("body: from random") for note in notes)  # what the first start has told
    for file in ("model.safetensors", "model.pt"):
        found = tmp_path / file.replace(".", "-")
        invert = ["invert", str(folder / "000008.png"), "--method", "e4e", "--encoder", str(out / file)]
        assert main([*invert, "--aligned", "-o", str(found)]) == 0
        assert (found / "000008.safetensors").exists() or any(found.glob("000008*.safetensors"))


def test_command_refuses_bad_input_in_one_line(words, folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    (tmp_path / "empty").mkdir()
    for extra, message in (
        (["--head", "single"], "e4e has pyramid or w"),
        (["--task", "labels"], "pairs must be given"),
        (["--architecture", "e5e"], "did you mean 'e4e'"),
        (["--refinements", "3"], "unknown option --refinements"),
        (["--data", str(tmp_path / "nowhere")], "there is no such place"),
        (["--body-weights", str(tmp_path / "nothing.pth")], "nothing.pth"),
        (["--photos", str(tmp_path / "empty")], "there are no photos in it"),
        (["--photos", str(folder)], "no face"),
    ):
        assert main([*words, *out, *extra]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1], lines
    assert not (tmp_path / "run").exists()  # before the first step


@pytest.mark.slow
def test_two_processes_learn_together_and_go_on_bit_by_bit(words, tmp_path):
    """Both hold the same networks: what rank 0 saves is all there is, so that a resumed run is as one that never stopped."""
    pytest.importorskip("lightning_fabric")

    def start(out, kimg):
        more = ["--out", str(tmp_path / out), "--kimg", kimg, "--processes", "2", "--device", "cpu"]
        more += ["--progressive-start-kimg", "0", "--critic-pool", "3"]
        done = subprocess.run(
            [sys.executable, "-m", "limner", *words, *more],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return flatten(torch.load(tmp_path / out / "state.pt", weights_only=True))

    whole = start("whole", "0.016")
    start("parts", "0.008")
    parts = start("parts", "0.016")
    assert whole["/images"] == 16
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        same = torch.equal(value, parts[name]) if isinstance(value, torch.Tensor) else value == parts[name]
        assert same, name
    assert checkpoints.load(tmp_path / "whole" / "model.pt").encoder is not None


@pytest.mark.slow
def test_two_processes_train_the_compact_encoder(words, tmp_path):
    pytest.importorskip("lightning_fabric")
    chosen = words[: words.index("--architecture")] + words[words.index("--base") :]
    for name in ("--width", "--body"):
        at = chosen.index(name)
        del chosen[at : at + 2]
    chosen += ["--width", "8", "--hidden", "16", "--rank", "4", "--ceiling-steps", "0", "--kimg", "0.008"]
    chosen += ["--critic", "0.1", "--codes-kimg", "0", "--processes", "2", "--device", "cpu"]
    out = tmp_path / "two"
    done = subprocess.run(
        [sys.executable, "-m", "limner", *chosen, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["images"] == 8
    assert len(list((out / "sheets").glob("*.png"))) == 1
    assert (out / "model.safetensors").exists()
