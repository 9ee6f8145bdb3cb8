"""The command line: table, parsers, recipes, errors, console, device, downloads."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import importlib
import io
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from limner import zoo
from limner.app import cli
from limner.app.console import Console, Settings, format_bytes, format_seconds
from limner.app.device import available_devices, pick_device, seeded_rng
from limner.app.download import fetch
from limner.errors import OptionError, ZooError
from limner.options import Options, knob


@dataclasses.dataclass(frozen=True)
class PaintOptions(Options):
    """Every kind of option."""

    photos: tuple[Path, ...]
    """pictures to paint"""
    strength: float = knob(1.0, lo=0, hi=1)
    """how strongly, 100 % is all"""
    steps: int = knob(10, lo=1)
    """number of steps"""
    layers: tuple[int, ...] = (7, 8)
    """layers to replace"""
    method: str = knob("fast", choices=("fast", "exact"))
    """how"""
    keep_color: bool = False
    """keep the colours"""
    cutoff: int | None = None
    """first rows only"""
    out: Path = Path("out")
    """where to write"""


def parse(*words: str) -> PaintOptions:
    """Parse words as the options of a command."""
    options = cli.parse_options("stylize", PaintOptions, words)
    assert isinstance(options, PaintOptions)
    return options


@pytest.fixture(autouse=True)
def quiet_logger():
    """Give the library's logger back as it was."""
    logger = logging.getLogger("limner")
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], logger.level = before


def run(*words: str) -> tuple[int, str, str]:
    """Run one command line; return exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(words)
    return status, out.getvalue(), err.getvalue()


# ---- parsing


def test_values_of_every_kind():
    options = parse(
        *("a,b.jpg", "--strength", "0.5", "--steps=3", "--layers", "1,2", "--layers", "5-7"),
        *("--method", "exact", "--keep-color", "--cutoff", "4", "-o", "there", "c.jpg"),
    )
    assert options == PaintOptions(
        photos=(Path("a,b.jpg"), Path("c.jpg")),
        strength=0.5,
        steps=3,
        layers=(1, 2, 5, 6, 7),
        method="exact",
        keep_color=True,
        cutoff=4,
        out=Path("there"),
    )


def test_defaults_come_from_the_dataclass():
    assert parse("a.jpg") == PaintOptions(photos=(Path("a.jpg"),))


def test_no_flag_and_none():
    options = parse("a.jpg", "--no-keep-color", "--cutoff", "none")
    assert options.keep_color is False
    assert options.cutoff is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "limner stylize: photos must be given"),
        (["a", "--strenght", "1"], r"unknown option --strenght; did you mean --strength\?"),
        (["a", "--strength=2"], "strength is 2.0, expected 0 to 1"),
        (["a", "--strength", "much"], "strength is 'much', expected a number"),
        (["a", "--strength", "nan"], "strength is not a number"),
        (["a", "--steps", "2.5"], "steps is '2.5', expected a whole number"),
        (["a", "--steps", "0"], "steps is 0, expected at least 1"),
        (["a", "--steps"], "expected one argument"),
        (["a", "--method", "exakt"], r"expected one of fast, exact; did you mean 'exact'\?"),
        (["a", "--layers", "1,x"], "layers is 'x', expected a whole number"),
        (["a", "--layers", "9-1"], "layers is '9-1', expected FIRST-LAST"),
        (["a", "--layers", "0-99999999999"], "at most 1000000 numbers"),
        (["a", "--steps", "1e400"], "steps is '1e400', expected a whole number"),
        (["a", "--st", "1"], "unknown option --st;"),
    ],
)
def test_wrong_words_explain_themselves(words, message):
    with pytest.raises(OptionError, match=message):
        parse(*words)


def test_recipe_gives_values_and_flags_win(tmp_path):
    recipe = tmp_path / "paint.yaml"
    recipe.write_text("photos: [x.jpg]\nsteps: 4\nlayers: [1, 3]\nmethod: exact\n")
    options = parse("--config", str(recipe), "--steps", "9")
    assert (options.photos, options.steps, options.layers) == ((Path("x.jpg"),), 9, (1, 3))
    assert options.method == "exact"


def test_required_options_have_flags_too(tmp_path):
    recipe = tmp_path / "train.json"
    recipe.write_text('{"data": "pictures", "out": "runs/a"}')
    options = cli.parse_options("train gan", JobOptions, ["--config", str(recipe), "-o", "runs/b"])
    assert options == JobOptions(data="pictures", out=Path("runs/b"))
    assert cli.parse_options("train gan", JobOptions, ["x", "y"]) == JobOptions(data="x", out=Path("y"))


@dataclasses.dataclass(frozen=True)
class JobOptions(Options):
    """Two required options."""

    data: str
    """in"""
    out: Path
    """out"""


def test_recipe_in_json(tmp_path):
    recipe = tmp_path / "paint.json"
    recipe.write_text('{"photos": ["x.jpg"], "strength": 0.25}')
    assert parse("--config", str(recipe)).strength == 0.25


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.yaml", "photos: [x]\nstrenght: 1", r"unknown option 'strenght'; did you mean 'strength'\?"),
        ("r.yaml", "photos: [x]\nstrength: 7", "strength is 7.0, expected 0 to 1"),
        ("r.yaml", "- 1\n- 2", "must be a mapping of options, found list"),
        ("r.yaml", "a: [1", "is not valid YAML"),
        ("r.json", "{", "is not valid JSON"),
        ("r.yaml", "", "must be a mapping of options, found NoneType"),
    ],
)
def test_broken_recipes(tmp_path, name, text, message):
    recipe = tmp_path / name
    recipe.write_text(text)
    with pytest.raises(OptionError, match=message):
        parse("--config", str(recipe))


def test_recipe_that_is_no_text_or_is_missing(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(OptionError, match="not a text file"):
        parse("--config", str(tmp_path / "r.yaml"))
    with pytest.raises(OptionError, match="No such file"):
        parse("--config", str(tmp_path / "none.yaml"))


def test_help_shows_text_choices_range_and_default():
    text = " ".join(cli.build_parser("stylize", PaintOptions).format_help().split())
    assert "usage: limner stylize PHOTOS... [options]" in text
    assert "how strongly, 100 % is all (0 to 1; default 1.0)" in text
    assert "number of steps (from 1; default 10)" in text
    assert "how (fast, exact; default fast)" in text
    assert "layers to replace (default 7,8)" in text
    assert "-o PATH, --out PATH" in text
    assert "--device NAME" in text


# ---- the table


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there_and_has_help(name):
    function, options_class = cli.load_command(name)
    assert callable(function)
    assert issubclass(options_class, Options)
    common = {field.name for field in dataclasses.fields(Settings)} | {"config"}
    assert not common & {field.name for field in dataclasses.fields(options_class)}
    status, out, _ = run(*name.split(), "--help")
    assert status == 0
    for field in dataclasses.fields(options_class):
        assert cli.describe(options_class, field).strip(), f"{name}: {field.name} has no help"
        word = field.name.upper() if cli.is_positional(field) else f"--{field.name.replace('_', '-')}"
        assert word in out


def test_command_modules_are_all_in_the_table():
    folder = Path(importlib.import_module("limner.app.commands").__file__ or "").parent
    listed = {target.partition(":")[0] for target, _ in cli.COMMANDS.values()}
    listed |= {"train_psp"}  # `train encoder` with another architecture, see its VARIANTS
    assert {file.stem for file in folder.glob("[!_]*.py")} == listed


def test_help_never_imports_torch():
    code = f"""
import contextlib, io, sys
from limner.app.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["--help"]) == 0
    for name in {list(cli.COMMANDS)!r}:
        assert main([*name.split(), "--help"]) == 0
        assert "torch" not in sys.modules, name
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_overview_lists_every_command():
    status, out, _ = run("--help")
    assert status == 0
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert run() == (0, out, "")
    assert run("models", "--help")[0] == 0
    assert run("models")[0] == 2


def test_version():
    assert run("--version")[1] == "limner 0.1.0\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["docter"], "did you mean doctor?"),
        (["modles", "list"], "did you mean models?"),
        (["models", "lst"], "did you mean models list"),
        (["xyzzy"], "limner --help lists the commands"),
        (["help", "xyzzy"], "limner --help lists the commands"),
    ],
)
def test_unknown_commands_name_close_ones(words, hint):
    status, _, err = run(*words)
    assert status == 2
    assert err.startswith("limner: error: unknown command")
    assert hint in err
    assert err.count("\n") == 1


def test_python_m_limner():
    done = subprocess.run(
        [sys.executable, "-m", "limner", "models", "path", "nothing-of-the-kind"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("limner: error: no model is called 'nothing-of-the-kind'")
    assert "Traceback" not in done.stderr


# ---- how commands end


def end_with(monkeypatch, error: BaseException, *words: str) -> tuple[int, str, str]:
    """Run ``limner models path x`` while the model list raises ``error``."""

    def broken() -> None:
        raise error

    monkeypatch.setattr(zoo, "cards", broken)
    return run("models", "path", "x", *words)


def test_interrupt(monkeypatch):
    assert end_with(monkeypatch, KeyboardInterrupt()) == (130, "", "limner: interrupted\n")


def test_os_errors_with_a_file_are_one_line(monkeypatch):
    status, _, err = end_with(monkeypatch, PermissionError(13, "Permission denied", "/somewhere"))
    assert (status, err) == (2, "limner: error: /somewhere: Permission denied\n")


def test_bugs_show_their_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        end_with(monkeypatch, ZeroDivisionError())


def test_errors_are_one_line_and_verbose_adds_the_traceback(monkeypatch):
    status, out, err = end_with(monkeypatch, ZooError("two\nlines"))
    assert (status, out, err) == (2, "", "limner: error: two lines\n")
    assert "Traceback" in end_with(monkeypatch, ZooError("two\nlines"), "--verbose")[2]


def test_errors_in_json(monkeypatch):
    status, out, err = end_with(monkeypatch, ZooError("gone"), "--json")
    assert status == 2
    assert json.loads(out) == {"error": "ZooError", "message": "gone"}
    assert err == "limner: error: gone\n"


# ---- console


def make_console(**settings) -> tuple[Console, io.StringIO, io.StringIO]:
    """Return a console and the streams it writes to."""
    out, err = io.StringIO(), io.StringIO()
    return Console(Settings(**settings), stdout=out, stderr=err), out, err


def test_console_keeps_the_result_apart():
    console, out, err = make_console(json=True)
    console.print("for people")
    console.result(path=Path("a"), count=2)
    assert out.getvalue() == '{"path": "a", "count": 2}\n'
    assert err.getvalue() == "for people\n"


def test_console_quiet_and_plain():
    console, out, err = make_console(quiet=True)
    console.print("nothing")
    with console.progress(2, "Work") as progress:
        progress.advance(2)
    console.result(a=1)
    console.error("bad")
    assert (out.getvalue(), err.getvalue()) == ("", "limner: error: bad\n")


def test_short_jobs_without_terminal_say_nothing():
    console, _, err = make_console()
    assert list(console.track(range(1000), "Counting")) == list(range(1000))
    assert err.getvalue() == ""


def test_progress_tells_time_left(monkeypatch):
    clock = iter([0.0, 30.0, 31.0, 60.0])
    monkeypatch.setattr("limner.app.console.time.monotonic", lambda: next(clock))
    console, _, err = make_console()
    with console.progress(10, "Learning") as progress:
        progress.advance(2, "loss 0.5")
        progress.advance(1)  # a second later: not worth a line
        progress.set(10)
    assert err.getvalue().splitlines() == [
        "Learning: 2 of 10, 30 s, 2 min 00 s left, loss 0.5",
        "Learning: 10 of 10, 1 min 00 s",
    ]


def test_progress_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    err = Terminal()
    console = Console(Settings(), stderr=err)
    with console.progress(3, "Painting [red]") as progress:
        progress.advance(3, "done")
    assert "Painting [red]" in err.getvalue()
    assert "3/3" in err.getvalue()


def test_table_is_aligned():
    console, out, _ = make_console()
    console.table(["a", "long"], [["wide", 1], ["x", ""]])
    assert out.getvalue() == "a     long\nwide  1\nx\n"


def test_confirm_is_no_without_a_person(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert make_console()[0].confirm("Sure?") is False


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.81, "0.8 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(512, "512 B"), (3_400_000, "3.4 MB"), (2.5e10, "25.0 GB")])
def test_format_bytes(size, text):
    assert format_bytes(size) == text


# ---- device


def test_device_is_picked_and_threads_are_set():
    before = torch.get_num_threads()
    try:
        assert pick_device(Settings(device="cpu", threads=2)) == torch.device("cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert pick_device(Settings()).type == available_devices()[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_device_explains_itself():
    with pytest.raises(OptionError, match="device is 'cuda', but PyTorch .* sees only cpu"):
        pick_device(Settings(device="cuda"))


def test_seeded_rng_repeats():
    assert torch.equal(torch.randn(5, generator=seeded_rng(3)), torch.randn(5, generator=seeded_rng(3)))
    assert not torch.equal(torch.randn(5, generator=seeded_rng(3)), torch.randn(5, generator=seeded_rng(4)))


# ---- doctor


def test_doctor_reports(monkeypatch):
    status, out, err = run("doctor", "--no-speed", "--device", "cpu", "--json")
    report = json.loads(out)
    assert status == 0
    assert report["versions"]["torch"] == torch.__version__
    assert report["device"] == "cpu"
    assert report["auto_precision"] == ("bf16" if report["bf16_units"] else "fp32")
    assert f"auto is {report['auto_precision']}" in err
    assert set(report["models"]) == set(zoo.bundled())
    assert "digests checked" in err


def test_doctor_measures_a_plausible_rate():
    from limner.app.commands.doctor import convolution_rate

    assert 0.5 < convolution_rate(torch.device("cpu"), seconds=0) < 1e5


# ---- downloads


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `payload` with ranges, can break off, and answers /page with a web page."""

    payload = bytes(range(256)) * 1000
    break_after: int | None = None
    tag = '"v1"'
    ranges: list[str | None]

    def do_GET(self) -> None:
        cls = type(self)
        if self.path == "/page":
            return self.answer(200, b"<!DOCTYPE html><title>Quota</title>", "text/html; charset=utf-8")
        if self.path == "/hidden-page":
            return self.answer(200, b"\n <html><body>virus scan</body></html>", "application/octet-stream")
        if self.path == "/missing":
            return self.send_error(404)
        wanted = self.headers.get("Range")
        cls.ranges.append(wanted)
        start = 0
        if wanted and self.headers.get("If-Range") == cls.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = cls.payload[start:]
        return self.answer(206 if start else 200, body, "application/octet-stream", cut=cls.break_after)

    def answer(self, status: int, body: bytes, kind: str, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", type(self).tag)
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server():
    """A file server on this machine; yields (handler class, address)."""
    handler = type("OwnServer", (Server,), {"ranges": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield handler, f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def test_fetch(server, tmp_path):
    handler, address = server
    digest = fetch(f"{address}/model.pt", tmp_path / "deep/model.pt")
    assert (tmp_path / "deep/model.pt").read_bytes() == handler.payload
    assert digest == zoo.file_digest(tmp_path / "deep/model.pt")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["model.pt"]


def test_fetch_goes_on_where_it_broke_off(server, tmp_path):
    handler, address = server
    target = tmp_path / "model.pt"
    handler.break_after = 100_000
    with pytest.raises(ZooError, match="ended at 100000 of 256000 bytes; call again"):
        fetch(f"{address}/model.pt", target)
    assert not target.exists()
    handler.break_after = None
    seen = []
    fetch(f"{address}/model.pt", target, on_start=lambda *numbers: seen.append(numbers))
    assert target.read_bytes() == handler.payload
    assert handler.ranges == [None, "bytes=100000-"]
    assert seen == [(100_000, 256_000)]


def test_fetch_starts_over_when_the_file_has_changed(server, tmp_path):
    handler, address = server
    target = tmp_path / "model.pt"
    handler.break_after = 100_000
    with pytest.raises(ZooError, match="ended"):
        fetch(f"{address}/model.pt", target)
    handler.break_after, handler.tag, handler.payload = None, '"v2"', b"new" * 70_000
    fetch(f"{address}/model.pt", target)
    assert target.read_bytes() == handler.payload


def test_fetch_does_not_continue_another_file(server, tmp_path):
    handler, address = server
    handler.break_after = 10
    with pytest.raises(ZooError, match="ended"):
        fetch(f"{address}/one", tmp_path / "model.pt")
    handler.break_after = None
    fetch(f"{address}/two", tmp_path / "model.pt")
    assert handler.ranges == [None, None]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/page", "answered with a web page, not a file"),
        ("/hidden-page", "answered with a web page, not a file"),
        ("/missing", "answered 404 .there is no such file."),
    ],
)
def test_fetch_refuses(server, tmp_path, path, message):
    with pytest.raises(ZooError, match=message):
        fetch(server[1] + path, tmp_path / "model.pt")
    assert not list(tmp_path.glob("model*"))


def test_fetch_checks_the_digest(server, tmp_path):
    with pytest.raises(ZooError, match="expected deadbeef; it was thrown away"):
        fetch(f"{server[1]}/model.pt", tmp_path / "model.pt", sha256="deadbeef")
    assert not list(tmp_path.glob("model*"))


def test_fetch_needs_http_and_a_server(tmp_path):
    with pytest.raises(ZooError, match="not an http or https address"):
        fetch("file:///etc/passwd", tmp_path / "x")
    with pytest.raises(ZooError, match="cannot reach .* is this machine online"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x")


def test_fetch_where_nothing_can_be_written(server, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ZooError, match="cannot write .*file/model.pt"):
        fetch(f"{server[1]}/model.pt", tmp_path / "file/model.pt")


# ---- limner models


def test_pull_verify_path_remove(server):
    handler, address = server
    name = "ffhq-ada"
    status, _, err = run("models", "pull", name, "--url", f"{address}/ffhq.pkl")
    assert status == 2
    assert "was not fetched; --yes agrees" in err
    status, out, _ = run("models", "pull", name, "--url", f"{address}/ffhq.pkl", "--yes")
    assert status == 0
    assert "non-commercial" in out
    assert "not verified (no digest is published)" in out
    file = zoo.cache_dir() / "ffhq-ada.pkl"
    assert file.read_bytes() == handler.payload
    assert run("models", "path", name)[1] == f"{file}\n"
    assert "is installed already" in run("models", "pull", name)[1]
    assert run("models", "verify", name)[0] == 0
    file.write_bytes(b"other")
    status, _, err = run("models", "verify", name)
    assert status == 2
    assert "it was changed; limner models pull ffhq-ada --force" in err
    assert run("models", "remove", name)[0] == 0
    assert not file.exists()
    status, _, err = run("models", "path", name)
    assert status == 2
    assert "ffhq-ada is not installed; fetch it with: limner models pull ffhq-ada" in err


def test_pull_checks_what_is_known(server):
    status, _, err = run("models", "pull", "ffhq-256-mmgen", "--yes", "--url", f"{server[1]}/x.pth")
    assert status == 2
    assert "expected 7890ae1f" in err
    digest = hashlib.sha256(Server.payload).hexdigest()
    words = ["models", "pull", "ffhq-ada", "--yes", "--url", f"{server[1]}/x.pkl"]
    assert "SHA-256 as expected" in run(*words, "--sha256", digest)[1]
    assert "expected 64 hexadecimal digits" in run(*words, "--sha256", "abc")[2]
    assert "go with one model, 2 are named" in run(*words, "ffhq-256-mmgen")[2]


def test_pull_and_remove_name_close_matches():
    assert "did you mean ffhq-ada" in run("models", "pull", "fhq-ada")[2]
    assert "ships with the package" in run("models", "pull", "lite0")[2]
    assert "ships with the package and cannot be removed" in run("models", "remove", "lite0")[2]
    assert "is not installed; installed: nothing" in run("models", "remove", "x")[2]


def test_list_shows_bundled_and_downloadable_models():
    status, out, _ = run("models", "list", "--licences")
    assert status == 0
    assert all(name in out for name in [*zoo.bundled(), *zoo.catalogue()])
    report = json.loads(run("models", "list", "--kind", "trunk", "--json")[1])
    assert {model["kind"] for model in report["models"]} == {"trunk"}
    assert "no model is of kind 'x'; kinds: " in run("models", "list", "--kind", "x")[2]
