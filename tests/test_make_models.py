"""Bundled models: what is stale, in which order it is made, stops, failures, other bases."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import make_generator
from safetensors.torch import save_file

from limner import checkpoints, zoo
from limner.checkpoints import Checkpoint
from limner.checkpoints.child import save_child
from limner.errors import KeyMismatchError, LimnerError, OptionError, ZooError
from limner.nn import deltas
from limner.stylization import BlendOptions, load_style, save_style
from limner.stylization.blend_style import blend_style
from limner.stylization.style import style_between
from limner.training.bundle import (
    build_index,
    find_stale,
    format_index,
    generator_digest,
    leave_out,
    read_header,
    read_index,
    read_jobs,
    recipe_digest,
    write_index,
)
from limner.training.chain import STATE, Chain

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts/make_models.py"
# What a real job does, in small: a safetensors file with metadata and a card; `base` is the digest of the parent.
MAKE = '''"""Make one file."""
import json, pathlib, sys, time
from safetensors.numpy import save_file
import numpy as np
import yaml

out, name, parent, run = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4])
recipe = yaml.safe_load(open(f"{name}.yaml"))
if recipe.get("fail"):
    print("no data in", name)
    sys.exit(3)
base = ""
if parent != "none":
    index = json.load(open("bundled/index.json"))
    base = index[parent].get("digest") or index[parent]["sha256"]
about = {"kind": "encoder", "licence": "CC0-1.0", "base": base if not recipe.get("foreign") else "another",
         "provenance": {"source": "test", "recipe": name, "parent": "" if parent == "none" else parent}}
out.parent.mkdir(parents=True, exist_ok=True)
save_file({"x": np.full(3, recipe["value"], np.float32)}, out, {"limner": json.dumps(about)})
out.with_suffix(".md").write_text(f"# {name}: {recipe['value']}\\n")
open("order.txt", "a").write(name + "\\n")
'''
TRAIN = '''"""Count to a number, slowly, resumable."""
import pathlib, signal, sys, time

state, wanted = pathlib.Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open("starts.txt", "a").write(" ".join(sys.argv[3:]) + "\\n")
count = int(state.read_text()) if state.exists() else 0
while count < wanted:
    count += 1
    state.write_text(str(count))
    print(f"trained {count} of {wanted}", flush=True)
    time.sleep(0.1)
'''
BUNDLE = """
models:
  style:
    files: ["styles/{name}.limner"]
    parent: base
    recipe: ["{name}.yaml"]
    steps: ["python make.py {new}/styles/{name}.limner {name} base {run}"]
  base:
    files: [base.safetensors]
    recipe: [base.yaml]
    steps: ["python make.py {new}/base.safetensors base none {run}"]
  encoder:
    files: [encoder.safetensors]
    parent: base
    recipe: [encoder.yaml]
    steps:
      - run: python train.py {run}/count {wanted} {seconds} {kimg}/{half_kimg}
        warm: --init {old}/encoder.safetensors
        seconds: 100
        kimg: 8
      - python make.py {new}/encoder.safetensors encoder base {run}
  blend:
    files: [blend.safetensors]
    parent: encoder
    recipe: [blend.yaml]
    steps: ["python make.py {new}/blend.safetensors blend encoder {run}"]
  other:
    files: [other.safetensors]
    recipe: [other.yaml]
    steps: ["python make.py {new}/other.safetensors other none {run}"]
"""
NAMES = ("base", "style", "encoder", "blend", "other")
# Two models that learn from pictures, where there are assets to render them with.
DATA_BUNDLE = """
data:
  scenes:
    wants: [assets]
    steps: ["python render.py {scenes} {count}"]
models:
  base:
    files: [base.safetensors]
    recipe: [base.yaml]
    steps: ["python make.py {new}/base.safetensors base none {run}"]
  style:
    files: [style.limner]
    parent: base
    needs: [scenes]
    recipe: [style.yaml]
    steps:
      - {run: "python train.py {run}/count 1 --data given", more: "--data given,{scenes}"}
      - python make.py {new}/style.limner style base {run}
  other:
    files: [other.safetensors]
    needs: [scenes]
    recipe: [other.yaml]
    steps:
      - {run: "python train.py {run}/count 1 --data given", more: "--data given,{scenes}"}
      - python make.py {new}/other.safetensors other none {run}
"""
RENDER = '''"""Render what is missing."""
import pathlib, sys

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
if pathlib.Path("assets/broken").exists():
    print("no OpenGL")
    sys.exit(4)
for number in range(int(sys.argv[2])):
    if not (folder / f"{number}.png").exists():
        (folder / f"{number}.png").write_text(str(number))
        open("order.txt", "a").write(f"scene{number}\\n")
'''


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository in small: recipes, scripts, an empty folder of bundled files."""
    root = tmp_path / "repository"
    (root / "bundled").mkdir(parents=True)
    (root / "make.py").write_text(MAKE)
    (root / "train.py").write_text(TRAIN)
    set_bundle(root, wanted=2)
    for name in NAMES:
        set_recipe(root, name, value=1)
    return root


def set_bundle(root: Path, *, wanted: int) -> None:
    (root / "bundle.yaml").write_text(BUNDLE.replace("{wanted}", str(wanted)))


def set_recipe(root: Path, name: str, **values) -> None:
    (root / f"{name}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))


def plan(root: Path, **kwargs) -> dict[str, str]:
    jobs = read_jobs(root / "bundle.yaml")
    return find_stale(jobs, build_index(root / "bundled", jobs, root), root, **kwargs)


def make_chain(root: Path, **kwargs) -> Chain:
    places = {"root": root, "bundled": root / "bundled", "runs": root.parent / "runs"}
    return Chain(read_jobs(root / "bundle.yaml"), **places, **kwargs)


def make(root: Path, *, anew: bool = False, remake: bool = False, only=(), **kwargs) -> dict[str, str]:
    names = list(plan(root, only=only, force=remake))
    results = make_chain(root, **kwargs).run(names, anew=anew, remake=remake)
    return {name: progress.status for name, progress in results.items()}


def order(root: Path) -> list[str]:
    """Return what was made since the last call, in order."""
    file = root / "order.txt"
    lines = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted((root / "bundled").rglob("*"))
        if path.is_file()
    }


def test_everything_is_made_parents_first(root):
    assert plan(root) == {
        "base": "base.safetensors is missing",
        "other": "other.safetensors is missing",
        "style": "styles/style.limner is missing",
        "encoder": "encoder.safetensors is missing",
        "blend": "blend.safetensors is missing",
    }
    events: list[str] = []
    done = make(root, on_event=lambda name, progress, line: events.append(f"{name}: {line}"))
    assert done == dict.fromkeys(NAMES, "made")
    made = order(root)
    assert sorted(made) == sorted(NAMES)
    assert made.index("base") < made.index("style")
    # Parents first, and among those that may start the one at the head of the longest line (encoder has 100 seconds).
    assert made == ["base", "encoder", "other", "style", "blend"]
    assert any(line.startswith("encoder: step 1 of 2") for line in events)
    assert plan(root) == {}
    jobs = read_jobs(root / "bundle.yaml")
    index = read_index(root / "bundled")
    assert format_index(build_index(root / "bundled", jobs, root)) == format_index(index)
    assert index["encoder"]["base_digest"] == index["base"]["sha256"]
    assert (root / "bundled/styles/style.md").read_text() == "# style: 1\n"


def test_a_new_parent_makes_its_line_stale_and_nothing_else(root):
    make(root)
    order(root)
    set_recipe(root, "base", value=2)
    assert plan(root) == {
        "base": "its recipe changed",
        "style": "base will be made again",
        "encoder": "base will be made again",
        "blend": "encoder will be made again",
    }
    make(root, slots=2)
    assert set(order(root)) == {"base", "style", "encoder", "blend"}
    assert plan(root) == {}


def test_a_parent_replaced_by_hand_is_noticed_by_its_digest(root):
    """This is how a better generator lands: a file is put in place, and the index written."""
    make(root)
    order(root)
    file = root / "bundled/base.safetensors"
    about = read_header(file)
    save_file({"x": torch.zeros(5)}, file, {"limner": json.dumps(about)})
    reasons = plan(root)
    assert set(reasons) == {"style", "encoder", "blend"}
    assert reasons["style"].startswith("made from another base (")
    jobs = read_jobs(root / "bundle.yaml")
    write_index(root / "bundled", build_index(root / "bundled", jobs, root))
    assert plan(root) == reasons
    assert set(make(root)) == {"style", "encoder", "blend"}
    assert plan(root) == {}


def test_comments_and_results_are_no_recipe_but_pictures_are(root):
    (root / "picture.jpg").write_bytes(b"one")
    (root / "result.limner").write_bytes(b"one")
    set_recipe(root, "style", value=1, pictures="[picture.jpg]", out="result.limner")
    job = read_jobs(root / "bundle.yaml")["style"]
    first = recipe_digest(job, root)
    (root / "style.yaml").write_text("# a remark\n" + (root / "style.yaml").read_text())
    (root / "result.limner").write_bytes(b"two")
    assert recipe_digest(job, root) == first
    (root / "picture.jpg").write_bytes(b"two")
    assert recipe_digest(job, root) != first
    changed = dataclasses.replace(job, steps=(dataclasses.replace(job.steps[0], seconds=5.0),))
    assert recipe_digest(changed, root) != recipe_digest(job, root)
    script = dataclasses.replace(job, recipe=("make.py",))
    before = recipe_digest(script, root)
    (root / "make.py").write_text("# a remark\n" + MAKE.replace("sys.exit(3)", "sys.exit( 3 )"))
    assert recipe_digest(script, root) == before
    (root / "make.py").write_text(MAKE.replace("sys.exit(3)", "sys.exit(4)"))
    assert recipe_digest(script, root) != before


def test_a_changed_recipe_can_be_accepted(root):
    make(root, only=("other",))
    set_recipe(root, "other", value=2)
    assert plan(root, only=("other",)) == {"other": "its recipe changed"}
    jobs = read_jobs(root / "bundle.yaml")
    index = build_index(root / "bundled", jobs, root, accept=("other",))
    assert find_stale(jobs, index, root, only=("other",)) == {}


def test_only_some_and_in_any_case(root):
    with pytest.raises(OptionError, match="no bundled model is called bose; known: base"):
        plan(root, only=("bose",))
    make(root)
    order(root)
    assert plan(root, only=("style",)) == {}
    assert make(root, only=("style",), remake=True) == {"style": "made"}
    assert order(root) == ["style"]


def test_a_failure_leaves_files_alone_and_skips_what_derives_from_it(root):
    make(root)
    order(root)
    before = contents(root)
    set_recipe(root, "base", value=2, fail="true")
    set_recipe(root, "other", value=2)
    results = make_chain(root).run(list(plan(root)))
    assert {name: one.status for name, one in results.items()} == {
        "base": "failed",
        "other": "made",
        "style": "skipped",
        "encoder": "skipped",
        "blend": "skipped",
    }
    assert results["base"].note == "status 3: no data in base"
    after = contents(root)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"bundled/other.safetensors", "bundled/other.md", "bundled/index.json"}
    assert set(before) == set(after)
    set_recipe(root, "base", value=3)
    assert set(make(root).values()) == {"made"}


def test_a_file_from_another_base_is_not_put_in_place(root):
    set_recipe(root, "style", value=1, foreign="true")
    assert make(root, only=("base", "style")) == {"base": "made", "style": "failed"}
    assert not (root / "bundled/styles/style.limner").exists()
    note = json.loads((root.parent / "runs/style" / STATE).read_text())["note"]
    assert "was made from a base with digest another, but base has" in note


def test_a_failed_job_goes_on_after_its_finished_steps(root):
    set_recipe(root, "encoder", value=1, fail="true")
    assert make(root, only=("base", "encoder"))["encoder"] == "failed"
    progress = json.loads((root.parent / "runs/encoder" / STATE).read_text())
    assert progress["done"] == 1
    jobs = read_jobs(root / "bundle.yaml")
    # The same recipe with a repaired environment: here, the script that failed.
    (root / "make.py").write_text(MAKE.replace('recipe.get("fail")', "False"))
    assert find_stale(jobs, build_index(root / "bundled", jobs, root), root, only=("encoder",))
    assert make(root, only=("encoder",)) == {"encoder": "made"}
    assert (root / "starts.txt").read_text().splitlines() == ["100.0 8/4"]


def test_old_files_are_started_from_unless_told_otherwise(root):
    make(root, only=("base", "encoder"))
    make(root, only=("encoder",), remake=True, seconds_scale=0.5)
    make(root, only=("encoder",), remake=True, warm=False)
    old = (root.parent / "runs/encoder/old/encoder.safetensors").resolve()
    assert (root / "starts.txt").read_text().splitlines() == [
        "100.0 8/4",
        f"50.0 4/2 --init {old}",
        "100.0 8/4",
    ]


def call(root: Path, *words: str) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, SCRIPT, "--recipes", root / "bundle.yaml", "--root", root),
        *("--bundled", root / "bundled", "--runs", root.parent / "runs", "--every", "0.2", *words),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(file: Path, number: int) -> None:
    limit = time.monotonic() + 30
    while not (file.exists() and file.read_text() and int(file.read_text()) >= number):
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_chain_goes_on(root, kind):
    """Finished jobs and steps are not repeated, a step that was killed goes on from its own state."""
    make(root, only=("base", "other", "style"))
    order(root)
    set_bundle(root, wanted=10)
    before = contents(root)
    process = call(root)
    wait_for(root.parent / "runs/encoder/count", 3)
    process.send_signal(kind)
    text = process.communicate(timeout=30)[0]
    assert process.returncode == (130 if kind == signal.SIGTERM else -kind)
    assert contents(root) == before
    if kind == signal.SIGTERM:
        assert "stopped; states are saved" in text
        assert int((root.parent / "runs/encoder/count").read_text()) < 10  # the step was stopped too
    else:  # the step lives on, and a second chain waits for a better time
        with pytest.raises(ZooError, match="a step of a killed try still runs"):
            make(root)
        wait_for(root.parent / "runs/encoder/count", 10)
        time.sleep(0.3)
    reached = int((root.parent / "runs/encoder/count").read_text())
    assert make(root) == {"encoder": "made", "blend": "made"}
    assert order(root) == ["encoder", "blend"]
    log = (root.parent / "runs/encoder/log.txt").read_text()
    assert log.count("trained 1 of 10") == 1
    assert log.count("trained 10 of 10") == 1
    assert reached >= 3
    starts = (root / "starts.txt").read_text().splitlines()
    assert len(starts) == 2
    if kind == signal.SIGTERM:
        limits = [float(line.split()[0]) for line in starts]
        assert limits[1] < limits[0] == 100  # the time limit counts both tries


def test_the_script_plans_and_makes(root):
    process = call(root, "--plan")
    text = process.communicate(timeout=30)[0]
    assert process.returncode == 0
    assert "encoder.safetensors is missing" in text
    assert "time limits together: 1 min 40 s" in text
    assert not (root.parent / "runs").exists()
    process = call(root, "--jobs", "2", "--only", "encoder", "other", "base")
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 0, text
    assert "in place: encoder.safetensors" in text
    set_recipe(root, "base", value=1, fail="true")
    process = call(root, "--only", "base", "encoder")
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "not made: base, encoder; their files are as they were" in text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "x: {files: [x.limner], recipe: [], steps: ['python x'], parent: z}",
            "the parent of x is 'z', known: x",
        ),
        ("x: {files: [x.limner], recipe: [], steps: ['python x'], parent: x}", "in a circle"),
        ("x: {files: [x.limner], recipe: []}", "x must be a mapping with steps"),
        (
            "x: {files: [x.limner], recipe: [], steps: ['python x']}\ndata: {x: {steps: [a]}}",
            "'data' must be a mapping of data sets, none of them with the name of a model",
        ),
        (
            "x: {files: [x.limner], recipes: [], steps: ['python x']}",
            "unknown option 'recipes'; did you mean",
        ),
        ("x: {files: [x.limner], recipe: [], steps: [{run: python, second: 1}]}", "unknown option 'second'"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path, entry, message):
    (tmp_path / "bundle.yaml").write_text(f"models:\n  {entry}\n")
    with pytest.raises(OptionError, match=message):
        read_jobs(tmp_path / "bundle.yaml")


def test_a_model_made_twice_and_a_missing_recipe_are_refused(root):
    text = (root / "bundle.yaml").read_text()
    (root / "bundle.yaml").write_text(text.replace("other.safetensors", "base.limner"))
    with pytest.raises(OptionError, match="base is made by base and by other"):
        read_jobs(root / "bundle.yaml")
    (root / "bundle.yaml").write_text(text)
    (root / "other.yaml").unlink()
    with pytest.raises(OptionError, match="other: the recipe .*other.yaml is missing"):
        plan(root)


def test_foreign_words_fail_before_anything_runs(root):
    text = (root / "bundle.yaml").read_text()
    for old, new, message in (
        (
            "python make.py {new}/other",
            "rm {new}/other",
            "a step begins with 'rm', expected python or limner",
        ),
        ("{new}/other", "{gnu}/other", "cannot be read: KeyError"),
    ):
        (root / "bundle.yaml").write_text(text.replace(old, new))
        results = make_chain(root).run(["other"])
        assert results["other"].status == "failed"
        assert message in results["other"].note


def test_files_without_metadata_or_card_are_refused(root):
    make(root, only=("other",))
    jobs = read_jobs(root / "bundle.yaml")
    (root / "bundled/other.md").unlink()
    with pytest.raises(ZooError, match="there is no card other.md beside it"):
        build_index(root / "bundled", jobs, root)
    save_file({"x": torch.zeros(1)}, root / "bundled/other.safetensors")
    with pytest.raises(ZooError, match="its metadata lacks kind, licence, source, recipe"):
        build_index(root / "bundled", jobs, root)
    (root / "bundled/other.safetensors").write_bytes(b"abc")
    with pytest.raises(ZooError, match="cannot be read"):
        build_index(root / "bundled", jobs, root)


def test_the_repository_lists_every_bundled_model():
    """And every recipe in the list is there."""
    jobs = read_jobs(ROOT / "recipes/bundle.yaml")
    made = {model: job for job in jobs.values() for model in job.models}
    assert set(zoo.bundled()) <= set(made)
    for name, card in zoo.bundled().items():
        assert (zoo.BUNDLED_DIR / card.path.name).exists() or card.path.is_file()
        assert card.path.relative_to(zoo.BUNDLED_DIR).as_posix() in made[name].files
        assert card.recipe_digest
    for job in jobs.values():
        assert len(recipe_digest(job, ROOT)) == 64
    styles = {path.stem for path in (ROOT / "recipes/styles").glob("*.yaml")}
    assert len(styles) >= 8
    assert styles <= set(jobs)
    assert {jobs[name].parent for name in styles} == {"heads"}


def test_derived_files_say_that_the_base_is_another(tmp_path):
    """Child, style and blend style; for the encoder see test_compact.py."""
    base, tuned, stranger = (make_generator(seed) for seed in (0, 1, 2))
    file = tmp_path / "tiny.safetensors"
    checkpoints.save(Checkpoint(generator=base), file)
    before = generator_digest(file)
    save_child(tuned, base, tmp_path / "drawn.safetensors", base_name="tiny")
    style = style_between(base, tuned, method="test", options={}, provenance={"base": "tiny"})
    save_style(style, tmp_path / "a.limner", base)
    blend = blend_style("drawn", BlendOptions(swap=(8,)), beside=tmp_path)
    save_style(blend, tmp_path / "b.limner", base)
    for name in ("a", "b"):
        load_style(tmp_path / f"{name}.limner").check_base(base)
    checkpoints.load(tmp_path / "drawn.safetensors")

    checkpoints.save(Checkpoint(generator=stranger), file)  # a better generator lands
    now = generator_digest(file)
    assert now != before
    with pytest.raises(KeyMismatchError, match=f"belongs to tiny with digest {before[:12]}.* has {now[:12]}"):
        checkpoints.load(tmp_path / "drawn.safetensors")
    for name in ("a", "b"):
        with pytest.raises(KeyMismatchError, match=f"digest {before[:12]}, but this model .* has {now[:12]}"):
            load_style(tmp_path / f"{name}.limner").check_base(stranger)
    save_child(
        tuned, stranger, tmp_path / "drawn.safetensors", base_name="tiny"
    )  # the child follows, the blend not
    with pytest.raises(KeyMismatchError, match="make the style again"):
        load_style(tmp_path / "b.limner")


def test_a_blend_style_of_a_new_child_is_not_made_from_the_old_one(tmp_path):
    """While the package still has the child of the old base, its successor's style belongs to the new base."""
    old, new, tuned = (make_generator(seed) for seed in (0, 1, 2))
    zoo.cache_dir().mkdir(parents=True)
    installed, fresh = zoo.cache_dir() / "drawn.safetensors", tmp_path / "new/drawn.safetensors"
    fresh.parent.mkdir()
    for base, file in ((old, installed), (new, fresh)):
        save_child(tuned, base, file, base_name="tiny")
    zoo.install(
        zoo.Download(name="drawn", kind="child", url="https://x.org/drawn.safetensors", licence=""), installed
    )
    options = BlendOptions(swap=(8,))
    assert blend_style("drawn", options, beside=fresh.parent).base == deltas.digest(old)
    style = blend_style("drawn", options, file=fresh)
    style.check_base(new)
    assert style.options["child"] == "drawn"


def set_data(root: Path, *, count: int = 3, assets: bool = True) -> Path:
    """Let `style` and `other` learn from a data set; return its folder."""
    (root / "bundle.yaml").write_text(DATA_BUNDLE.replace("{count}", str(count)))
    (root / "render.py").write_text(RENDER)
    if assets:
        (root / "assets").mkdir(exist_ok=True)
    return root.parent / "runs/data/scenes"


def plan_data(root: Path, **kwargs) -> dict[str, str]:
    return plan(root, data=root.parent / "runs/data", **kwargs)


def make_data(root: Path, **kwargs) -> dict[str, str]:
    results = make_chain(root).run(list(plan_data(root, **kwargs)))
    return {name: progress.status for name, progress in results.items()}


def test_data_is_made_once_for_all_that_learn_from_it(root):
    folder = set_data(root)
    assert plan_data(root)["scenes"] == "not whole, and for style, other"
    assert make_data(root) == dict.fromkeys(("scenes", "base", "other", "style"), "made")
    made = order(root)
    assert made.index("scene2") < min(made.index("other"), made.index("style"))
    assert [name for name in made if name.startswith("scene")] == ["scene0", "scene1", "scene2"]
    given = f"--data given --data given,{folder.resolve()}"
    assert (root / "starts.txt").read_text().splitlines() == [given, given]
    # A lost data set makes nothing stale; it is made again for what is stale anyway, as far as it is missing.
    shutil.rmtree(folder)
    assert plan_data(root) == {}
    set_recipe(root, "other", value=2)
    assert list(plan_data(root)) == ["scenes", "other"]
    folder.mkdir(parents=True)
    (folder / "0.png").write_text("0")
    assert make_data(root, only=("other",)) == {"scenes": "made", "other": "made"}
    assert order(root) == ["scene1", "scene2", "other"]
    # More of it is another data set; alone, too.
    set_data(root, count=4)
    assert plan_data(root, only=("scenes",)) == {"scenes": "not whole"}
    assert make_data(root, only=("scenes",)) == {"scenes": "made"}
    assert order(root) == ["scene3"]
    assert plan_data(root, only=("scenes",)) == {}


def test_data_sets_are_not_kept_where_jobs_are_emptied(root):
    with pytest.raises(OptionError, match="data and runs are both .*runs, expected two folders"):
        make_chain(root, data=root / "../runs")


def test_without_assets_models_do_without_the_data(root):
    folder = set_data(root, assets=False)
    events: list[str] = []
    assert list(plan_data(root, only=("other",))) == ["other"]
    chain = make_chain(root, on_event=lambda name, progress, line: events.append(line))
    assert chain.run(["other"])["other"].status == "made"
    assert (root / "starts.txt").read_text().splitlines() == ["--data given"]
    assert not folder.exists()
    assert events[0].startswith("step 1 of 2 (without scenes, which is not there): ")
    assert "(without scenes, which is not there)" in (root.parent / "runs/other/log.txt").read_text()
    with pytest.raises(OptionError, match="scenes is made from assets, which is missing"):
        plan_data(root, only=("scenes",))
    # With assets, training does not go on from where it was without the data.
    set_recipe(root, "other", value=2, fail="true")
    assert make_data(root, only=("other",)) == {"other": "failed"}
    (root / "assets").mkdir()
    (root / "make.py").write_text(MAKE.replace('recipe.get("fail")', "False"))
    assert make_data(root, only=("other",)) == {"scenes": "made", "other": "made"}
    assert (root / "starts.txt").read_text().splitlines()[1:] == [
        "--data given",
        f"--data given --data given,{folder.resolve()}",
    ]


def test_data_that_cannot_be_made_stops_what_learns_from_it(root):
    set_data(root)
    (root / "assets/broken").touch()
    assert make_data(root, only=("other", "base")) == {"scenes": "failed", "base": "made", "other": "skipped"}
    order(root)
    jobs = leave_out(read_jobs(root / "bundle.yaml"), ["scenes"])
    assert not jobs["other"].needs
    with pytest.raises(OptionError, match="no data set is called other; known: scenes"):
        leave_out(read_jobs(root / "bundle.yaml"), ["other"])
    data = root.parent / "data"
    text = call(root, "--only", "other", "--without", "scenes", "--data", str(data)).communicate(timeout=60)[
        0
    ]
    assert "in place: other.safetensors" in text
    assert not data.exists()
    shutil.rmtree(root / "assets")
    (root / "bundled/other.safetensors").unlink()
    text = call(root, "--plan", "--data", str(data)).communicate(timeout=60)[0]
    assert "without scenes, which needs assets: " in text


def test_a_second_chain_is_kept_out(root, monkeypatch):
    chain = make_chain(root)
    with chain._locked(), pytest.raises(LimnerError, match="already"):
        make_chain(root).run(["other"])
    shutil.rmtree(root.parent / "runs")
    monkeypatch.setenv("LIMNER_RUNS", str(root.parent / "elsewhere"))
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert os.path.join("elsewhere", "models") in "".join(done.stdout.split())
