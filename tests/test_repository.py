"""The repository as a whole: sizes, cards, recipes, and what the documents promise."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from limner import zoo
from limner.app import cli
from limner.options import from_mapping, read_recipe
from limner.stylization import load_style
from limner.training.bundle import read_jobs

ROOT = Path(__file__).parent.parent
MB = 1_000_000
# Family -> kinds of files, largest size of all of them together; the sum is the promise of 40 MB.
BUDGETS = {
    "perception": (("identity", "trunk", "detector"), 12.6 * MB),
    "generator and discriminator": (("model",), 14.1 * MB),
    "encoders": (("encoder",), 1.8 * MB),
    "translator": (("translator",), 2.2 * MB),
    "children": (("child",), 2.4 * MB),
    "styles": (("style",), 4 * MB),  # eight of at most half a megabyte
    "dual": (("dual",), 2.4 * MB),
    "detail": (("detail",), 0.2 * MB),
}
LARGEST_STYLE = MB // 2
BUNDLE = ROOT / "recipes/bundle.yaml"  # not options of a command, but the list of jobs
RECIPES = sorted(file for file in (ROOT / "recipes").rglob("*.yaml") if file != BUNDLE)
RECIPE_COMMANDS = {"recipes": "train gan", "children": "train gan", "styles": "learn"}
MISSING_IN_RECIPES = {"recipes": {"data": "pictures", "out": "runs/test"}, "children": {}, "styles": {}}
MODEL_FILES = sorted(
    file for file in zoo.BUNDLED_DIR.rglob("*") if file.suffix in (".safetensors", ".limner")
)


def test_budgets_add_up():
    assert sum(budget for _, budget in BUDGETS.values()) <= 40 * MB


def test_every_kind_has_a_budget():
    known = {kind for kinds, _ in BUDGETS.values() for kind in kinds}
    assert {card.kind for card in zoo.bundled().values()} <= known


@pytest.mark.parametrize("family", BUDGETS)
def test_every_family_keeps_to_its_budget(family):
    kinds, budget = BUDGETS[family]
    size = sum(card.path.stat().st_size for card in zoo.bundled().values() if card.kind in kinds)
    assert size <= budget, f"{family}: {size / MB:.1f} MB"


def test_every_style_is_small():
    for card in zoo.bundled().values():
        assert card.kind != "style" or card.path.stat().st_size < LARGEST_STYLE, card.name


def test_working_tree_is_below_56_mb():
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("this is no git checkout")
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 56 * MB


def test_bundled_folder_is_below_40_mb():
    assert sum(file.stat().st_size for file in zoo.BUNDLED_DIR.rglob("*") if file.is_file()) < 40 * MB


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda file: file.name)
def test_every_bundled_file_has_an_entry_and_a_card(file):
    assert file.stem in zoo.bundled(), "run scripts/index_bundled.py"
    card = zoo.verify(file.stem)
    assert card.path == file
    assert card.bytes == file.stat().st_size
    text = file.with_suffix(".md").read_text(encoding="utf-8")
    assert len(text) > 200
    assert re.search("licen[cs]e", text, re.IGNORECASE)


def test_cards_of_styles_tell_how_many_pictures_they_were_learned_from():
    """A recipe in recipes/styles has one picture; a style of more of them needs the words that add the others."""
    learned = [card for card in zoo.bundled().values() if card.recipe.startswith(("limner learn", "python"))]
    assert len(learned) >= 8
    for card in learned:
        count = load_style(card.path).provenance["pictures"]
        text = card.path.with_suffix(".md").read_text(encoding="utf-8")
        assert ("--more" in text) == (count > 1), card.name
        assert (f"{count} style pictures" if count > 1 else "one style picture") in text, card.name


def test_index_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/index_bundled.py", "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_job_of_the_chain_is_explained():
    text = (ROOT / "docs/bundled-models.md").read_text(encoding="utf-8")
    assert [name for name in read_jobs(ROOT / "recipes/bundle.yaml") if f"`{name}`" not in text] == []


def test_parents_of_bundled_models_are_bundled():
    for card in zoo.bundled().values():
        assert not card.parent or card.parent in zoo.bundled(), card


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_loads(file):
    """The folder says which command a recipe is for; what is missing stands on the command line."""
    own = f"train {file.stem.split('-')[0]}"  # encoder-128.yaml
    own = {"train translate": "train translator"}.get(own, own)
    last = file.stem.split("-")[-1]  # image2stylegan-study.yaml
    found = [name for name in (own, last) if name in cli.COMMANDS]
    command = found[0] if found else RECIPE_COMMANDS[file.parent.name]
    options_class = cli.choose_variant(command, cli.load_command(command)[1], ["--config", str(file)])
    known = {field.name for field in dataclasses.fields(options_class)}
    missing = {name: value for name, value in MISSING_IN_RECIPES[file.parent.name].items() if name in known}
    recipe = {**missing, **read_recipe(file)}
    options = from_mapping(options_class, recipe, str(file))
    assert set(recipe) <= {field.name for field in dataclasses.fields(options)}


def commands_in(text: str) -> list[list[str]]:
    """Return the words of every ``limner ...`` line in the code blocks of a Markdown text."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```|((?:^(?: {4}|\t).*\n)+)", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(fenced or indented for fenced, indented in blocks).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        line = line.strip().removeprefix("$ ")
        if re.match(r"(\S*/)?limner(\s|$)", line):
            found.append(shlex.split(line, comments=True)[1:])
    return found


def test_commands_are_found_in_markdown():
    text = "x\n\n    limner doctor  # all\n\n```sh\n$ .venv/bin/limner sample \\\n  --psi 1\nls\n```\n"
    assert sorted(commands_in(text)) == [["doctor"], ["sample", "--psi", "1"]]


DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(zoo.BUNDLED_DIR.glob("*.md")),
]


@pytest.mark.parametrize("file", [file for file in DOCUMENTS if file.is_file()], ids=lambda file: file.name)
def test_commands_in_documents_exist(file):
    """Every command line shown parses, options and all."""
    for words in commands_in(file.read_text(encoding="utf-8")):
        if not words or words[0] in ("--help", "--version", "COMMAND"):
            continue
        name, rest = cli.find_command(words)
        if "--help" in rest or name not in cli.COMMANDS:
            continue
        options_class = cli.choose_variant(name, cli.load_command(name)[1], rest)
        parser = cli.build_parser(name, options_class)
        _, unknown = parser.parse_known_intermixed_args(rest)
        assert not unknown, f"{file.name}: limner {' '.join(words)}"


@pytest.mark.parametrize("file", [file for file in DOCUMENTS if file.is_file()], ids=lambda file: file.name)
def test_python_in_documents_names_what_exists(file):
    """Every Python block parses, and what it imports is there."""
    for block in re.findall(
        r"^```python\n(.*?)^```", file.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        for node in ast.parse(block).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                exec(compile(ast.Module([node], []), file.name, "exec"), {})


def test_documents_are_there():
    for name in (
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "NOTICE",
        "constraints.txt",
        "Makefile",
    ):
        assert (ROOT / name).is_file(), name
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_makefile_has_the_promised_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("setup", "demo", "test", "test-slow", "lint", "types", "bench", "models"):
        assert re.search(rf"^{target}:.*##", text, re.MULTILINE), target


def test_constraints_pin_all_that_the_project_asks_for():
    pins = set()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, line
            pins.add(normalise(name))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    names = {normalise(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in wanted} - {"limner"}
    assert names <= pins
    assert "torchvision" not in pins


def normalise(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    "module", ["limner", "limner.nn", "limner.latent", "limner.faces", "limner.checkpoints"]
)
def test_all_is_true(module):
    package = importlib.import_module(module)
    assert all(hasattr(package, name) for name in getattr(package, "__all__", []))
