"""Who may import whom, who may talk, and that nothing heavy loads by accident."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import limner

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/limner"
ROWS = {
    0: ("errors", "files"),
    1: ("options", "latent", "media", "nn", "zoo"),
    2: ("losses", "checkpoints", "faces"),
    3: ("metrics", "inversion", "stylization", "editing", "translation", "synth"),
    4: ("pipeline", "training"),
    5: ("evaluation",),
    6: ("app",),
}
ROW_OF = {member: row for row, members in ROWS.items() for member in members}
ALWAYS_THERE = {"torch", "numpy", "PIL", "safetensors", "limner"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    """``src/limner/nn/layers.py`` -> ``limner.nn.layers``."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST, inside: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import statement, those in functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = inside.split(".")[: -node.level]
                base = ".".join([*above, base]).rstrip(".")
            # `from limner import zoo` imports the member zoo, `from limner.nn import layers` nn.layers.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(name: str, tree: ast.AST) -> list[str]:
    """Return what a module imports against the rows."""
    parts = name.split(".")
    member = parts[1] if len(parts) > 1 else ""
    found = []
    for line, target in imports_of(tree, name):
        words = target.split(".")
        if (
            words[0] != "limner"
            or target == "limner.__version__"
            or member == "app"
            or words[1:2] == [member]
        ):
            continue
        if len(words) == 1 or words[1] not in ROW_OF:
            found.append(f"{name}:{line} imports {target}; the public names of limner are for users")
        elif member == "nn" and words[1] != "errors":
            found.append(f"{name}:{line} imports {target}; nn imports torch and errors only")
        elif ROW_OF[words[1]] >= ROW_OF[member]:
            found.append(
                f"{name}:{line} imports {target}: row {ROW_OF[member]} may not see row {ROW_OF[words[1]]}"
            )
    return found


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_imports_point_down(file):
    name = module_name(file)
    if name in ("limner", "limner.__main__"):
        return  # the lazy list of public names, and the way into app
    assert name.split(".")[1] in ROW_OF, f"{name} has no row; docs/architecture.md and this test list them"
    assert not violations(name, ast.parse(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("name", "code", "wrong"),
    [
        ("limner.nn.layers", "def f():\n    from limner.options import knob", "nn imports torch"),
        ("limner.losses", "from limner import checkpoints", "row 2 may not see row 2"),
        ("limner.faces.align", "import limner.app.cli", "row 2 may not see row 6"),
        ("limner.faces.align", "from limner import Generator", "for users"),
        ("limner.metrics", "from limner.inversion.options import X", "row 3 may not see row 3"),
    ],
)
def test_the_rule_sees_forbidden_imports(name, code, wrong):
    assert wrong in violations(name, ast.parse(code))[0]


def test_the_rule_allows_own_package_and_rows_above():
    assert not violations("limner.faces.align", ast.parse("from limner.faces import detect, errors"))
    assert not violations(
        "limner.training.gan.training", ast.parse("from limner import zoo\nimport limner.nn.layers")
    )
    assert not violations(
        "limner.nn.layers", ast.parse("from . import features\nfrom ..errors import ShapeError")
    )


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_extras_are_imported_inside_functions(file):
    """At module level only what every installation has; nn needs torch alone."""
    name = module_name(file)
    allowed = {*sys.stdlib_module_names, *ALWAYS_THERE, "__future__"}
    if name.startswith("limner.nn"):
        allowed -= {"numpy", "PIL"}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    extra = {target for _, target in imports_of(top, name) if target.split(".")[0] not in allowed}
    assert not extra


def test_torchvision_is_nowhere():
    files = [
        *MODULES,
        *(f for d in ("scripts", "examples", "benchmarks", "tests") for f in (ROOT / d).rglob("*.py")),
    ]
    assert len(files) > 20
    for file in files:
        for line, target in imports_of(ast.parse(file.read_text(encoding="utf-8")), "x"):
            assert target.split(".")[0] != "torchvision", f"{file}:{line}"


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_only_app_talks(file):
    if module_name(file).startswith(("limner.app", "limner.__main__")):
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "input", "exit", "quit", "sys.exit", "os._exit"}, (
                f"{file}:{node.lineno} calls {called}; only app/ prints, asks or exits"
            )


def run_python(code: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_importing_limner_loads_no_torch():
    done = run_python(
        "import sys, limner; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy'}))"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_every_module_imports_without_extras():
    """As on a machine with torch, numpy, Pillow and safetensors only."""
    names = [module_name(file) for file in MODULES if file.name != "__main__.py"]
    done = run_python(
        f"""
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"rich", "yaml", "lightning_fabric", "matplotlib", "scipy", "skimage", "kornia",
                                   "mtcnn", "moderngl", "joblib", "lz4", "cv2", "gradio", "fastapi", "torchvision"}}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
for name in {names!r}:
    importlib.import_module(name)
from limner.app.cli import main
main(["--help"])
"""
    )
    assert done.returncode == 0, done.stderr
    assert "usage: limner" in done.stdout


def test_public_names_are_sorted_and_there():
    assert sorted(limner.__all__) == limner.__all__
    for name in limner.__all__:
        assert getattr(limner, name) is not None
    assert set(limner.__all__) <= set(dir(limner))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = limner.nonsense
