"""Which models ship with the package, what each is made by and from, and which of them are stale.

``recipes/bundle.yaml`` says how every file is made; ``bundled/index.json`` says what the files that are there were made
from: the digest of the recipe and that of the base.  Data sets that several models learn from are jobs too; they are no
part of the package, and made only for a model that is stale.  Nothing here imports torch unless a model is new.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import shlex
import struct
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from limner.errors import OptionError, ZooError
from limner.files import replacing
from limner.options import Options, from_mapping, knob, read_recipe, to_mapping
from limner.zoo import file_digest

SUFFIXES = (".safetensors", ".limner")
INDEX = "index.json"
DATA_MARK = "made.json"  # in the folder of a data set that is whole
RESULT_OPTIONS = ("out", "precision")  # options of a recipe that say where and how fast, not what from
Index = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Step(Options):
    """One command of a job."""

    run: str = knob()
    """command line; `python` and `limner` are those of this process, the words in braces are filled in"""
    warm: str = ""
    """words to add when the file of the job is there already, to start from it"""
    more: str = ""
    """words to add when the data sets that the job needs are there, to learn from them too"""
    seconds: float = knob(0.0, lo=0)
    """what {seconds} stands for, less what an earlier try has used; 0 for no limit"""
    kimg: float = knob(0.0, lo=0)
    """what {kimg} stands for: thousands of images that fit into the time; {half_kimg} is half of it, for the decay"""


@dataclasses.dataclass(frozen=True)
class JobOptions(Options):
    """One entry of ``recipes/bundle.yaml``, steps aside."""

    files: tuple[str, ...] = knob()
    """what it makes, relative to the folder of bundled files; a card in Markdown belongs to each"""
    recipe: tuple[str, ...] = knob()
    """files that say how: recipes, scripts, pictures; a change in one of them makes the model stale"""
    parent: str = ""
    """the model that it is made from, and useless without"""
    needs: tuple[str, ...] = ()
    """further models that its steps work with, and that are made before it; when they are made again, so is it; also
    data sets, which it learns from where they can be made"""


@dataclasses.dataclass(frozen=True)
class DataOptions(Options):
    """One data set of ``recipes/bundle.yaml``, steps aside; {NAME} in any step is its folder."""

    wants: tuple[str, ...] = ()
    """what it is made from, files or folders; where one is missing, models do without the data set"""


@dataclasses.dataclass(frozen=True)
class Job:
    """How one or a few bundled files are made.

    Args:
        name: of the job, mostly the model's.
        files, recipe, parent, needs: see `JobOptions`.
        steps: commands, in order.
        wants: see `DataOptions`.
        is_data: it makes a data set and no files of the package.
    """

    name: str
    files: tuple[str, ...]
    recipe: tuple[str, ...]
    parent: str
    steps: tuple[Step, ...]
    needs: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    is_data: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models in its files, or of the data set."""
        return (self.name,) if self.is_data else tuple(Path(file).stem for file in self.files)


def read_jobs(path: Path) -> dict[str, Job]:
    """Read ``recipes/bundle.yaml``: job name -> job, every parent before its children.

    Raises:
        OptionError: unknown entries, unknown parents, a circle, a file made twice.
    """
    recipe = read_recipe(path)
    models, data = recipe.get("models"), recipe.get("data") or {}
    if not isinstance(models, dict) or not models:
        raise OptionError(f"{path} must have an entry 'models' that names jobs")
    if not isinstance(data, dict) or set(data) & set(models):
        raise OptionError(
            f"{path}: 'data' must be a mapping of data sets, none of them with the name of a model"
        )
    jobs: dict[str, Job] = {}
    for name, entry in (data | models).items():
        where = f"{path}: {name}"
        if not isinstance(entry, dict) or not entry.get("steps"):
            raise OptionError(f"{where} must be a mapping with steps")
        values = {key: _fill_name(value, name) for key, value in entry.items() if key != "steps"}
        options = from_mapping(DataOptions if name in data else JobOptions, values, where)
        lines = [step if isinstance(step, dict) else {"run": step} for step in entry["steps"]]
        steps = tuple(from_mapping(Step, _fill_name(step, name), f"{where}, step {step}") for step in lines)
        if isinstance(options, DataOptions):
            jobs[name] = Job(name, (), (), "", steps, wants=options.wants, is_data=True)
        else:
            jobs[name] = Job(name, options.files, options.recipe, options.parent, steps, options.needs)
    return _sort(jobs, path)


def _fill_name(value: Any, name: str) -> Any:
    """Put the job's name where ``{name}`` stands, in texts, lists and mappings."""
    if isinstance(value, str):
        return value.replace("{name}", name)
    if isinstance(value, list):
        return [_fill_name(item, name) for item in value]
    return {key: _fill_name(item, name) for key, item in value.items()} if isinstance(value, dict) else value


def _sort(jobs: dict[str, Job], path: Path) -> dict[str, Job]:
    makers: dict[str, str] = {}
    for job in jobs.values():
        for model in job.models:
            if model in makers:
                raise OptionError(f"{path}: {model} is made by {makers[model]} and by {job.name}")
            makers[model] = job.name
    found: dict[str, Job] = {}
    while len(found) < len(jobs):
        ready = [
            job
            for job in jobs.values()
            if job.name not in found
            and all(makers.get(model) in found for model in (job.parent, *job.needs) if model)
        ]
        if not ready:
            stuck = next(job for job in jobs.values() if job.name not in found)
            named = [stuck.parent, *stuck.needs]
            missing = next((model for model in named if model and model not in makers), stuck.parent)
            known = "in a circle" if missing in makers else f"known: {', '.join(sorted(makers))}"
            raise OptionError(f"{path}: the parent of {stuck.name} is {missing!r}, {known}")
        found |= {job.name: job for job in ready}
    return found


def maker(jobs: Mapping[str, Job], model: str) -> str:
    """Return the name of the job that makes a model or data set; empty if none does."""
    return next((job.name for job in jobs.values() if model in job.models), "")


def data_sets(jobs: Mapping[str, Job], job: Job) -> list[Job]:
    """Return the data sets that a job learns from where they are there."""
    return [jobs[name] for name in job.needs if name in jobs and jobs[name].is_data]


def leave_out(jobs: Mapping[str, Job], names: Collection[str]) -> dict[str, Job]:
    """Return the jobs without some data sets: models learn from what else they have.

    Raises:
        OptionError: there is no such data set.
    """
    known = [name for name, job in jobs.items() if job.is_data]
    if unknown := [name for name in names if name not in known]:
        raise OptionError(f"no data set is called {', '.join(unknown)}; known: {', '.join(known) or 'none'}")
    return {
        name: dataclasses.replace(job, needs=tuple(need for need in job.needs if need not in names))
        for name, job in jobs.items()
        if name not in names
    }


def missing_wants(job: Job, root: Path) -> list[str]:
    """Return what a data set cannot be made without, and is not there."""
    return [want for want in job.wants if not (root / want).exists()]


def is_whole(job: Job, root: Path, data: Path) -> bool:
    """Whether a data set was made to its end, by the steps as they stand.

    Args:
        job: of the data set.
        root: folder that paths are relative to.
        data: folder of data sets.
    """
    try:
        mark = json.loads((data / job.name / DATA_MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(mark, dict) and mark.get("recipe_digest") == recipe_digest(job, root)


def recipe_digest(job: Job, root: Path) -> str:
    """Return the digest of everything that says how a job's files are made.

    Comments and layout do not count: of YAML and Python, the contents are taken; pictures that a recipe names count.

    Args:
        job: the job.
        root: folder that paths are relative to.

    Raises:
        OptionError: a file of the recipe is missing.
    """
    # Fields at their default stay out, so that a new field does not make every model stale.
    parts: list[Any] = [
        [{name: value for name, value in to_mapping(step).items() if value} for step in job.steps]
    ]
    for name in job.recipe:
        file = root / name
        if not file.is_file():
            raise OptionError(f"{job.name}: the recipe {file} is missing")
        if file.suffix in (".yaml", ".json"):
            recipe = read_recipe(file)
            recipe = {key: value for key, value in recipe.items() if key not in RESULT_OPTIONS}
            parts.append(
                [name, recipe, [[path, file_digest(root / path)] for path in _files_in(recipe, root)]]
            )
        elif file.suffix == ".py":
            parts.append([name, ast.dump(ast.parse(file.read_text(encoding="utf-8")))])
        else:
            parts.append([name, file_digest(file)])
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _files_in(recipe: Mapping[str, Any], root: Path) -> list[str]:
    """Return the files that a recipe's values name, sorted."""
    values = [item for value in recipe.values() for item in (value if isinstance(value, list) else [value])]
    texts = {value for value in values if isinstance(value, str) and 0 < len(value) < 300}
    return sorted(text for text in texts if (root / text).is_file())


def read_header(file: Path) -> dict[str, Any]:
    """Return the ``limner`` metadata of a safetensors file."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return json.loads(header.get("__metadata__", {}).get("limner", "{}"))


def describe(file: Path, folder: Path) -> dict[str, Any]:
    """Return what a file says about itself, as an index entry without ``digest`` and ``recipe_digest``.

    Raises:
        ZooError: metadata or card are missing.
    """
    try:
        about = read_header(file)
    except (OSError, ValueError, struct.error) as error:
        raise ZooError(f"{file} cannot be read ({error}); make it again") from None
    provenance, base = about.get("provenance", {}), about.get("base", "")
    entry = {
        "file": file.relative_to(folder).as_posix(),
        "kind": about.get("kind", ""),
        "sha256": file_digest(file),
        "bytes": file.stat().st_size,
        "licence": about.get("licence", ""),
        "source": _first_of(provenance, "source", "data"),
        "recipe": _first_of(provenance, "recipe", "made_by", "command"),
        "parent": _first_of(provenance, "parent", "base"),
        "base_digest": base.get("digest", "") if isinstance(base, dict) else base,
    }
    missing = [key for key in ("kind", "licence", "source", "recipe") if not entry[key]]
    if missing:
        raise ZooError(f"{file}: its metadata lacks {', '.join(missing)}; found {json.dumps(about)[:500]}")
    if not file.with_suffix(".md").is_file():
        raise ZooError(f"{file}: there is no card {file.with_suffix('.md').name} beside it")
    return entry


def _first_of(where: Mapping[str, Any], *keys: str) -> str:
    return next((str(where[key]) for key in keys if where.get(key)), "")


def generator_digest(file: Path) -> str:
    """Return the digest by which children, encoders and styles know the generator in a model's file."""
    from limner.checkpoints import load
    from limner.nn import deltas

    generator = load(file, parts=("generator",)).generator
    if generator is None:
        raise ZooError(f"{file} is of kind model and holds no generator")
    return deltas.digest(generator)


def read_index(folder: Path) -> Index:
    """Return the index of a folder of bundled files as it was written last; empty where there is none."""
    file = folder / INDEX
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def build_index(
    folder: Path,
    jobs: Mapping[str, Job],
    root: Path,
    *,
    accept: Collection[str] = (),
    digest_of: Callable[[Path], str] = generator_digest,
) -> Index:
    """Return name -> entry for every model file below ``folder``.

    A file that the index on disk knows keeps the digest of the recipe that it was made by.  A new or changed file
    counts as made by the recipe as it stands.

    Args:
        folder: of bundled files.
        jobs: see `read_jobs`.
        root: folder that the recipes' paths are relative to.
        accept: names of models or jobs that count as made by the recipe as it stands, too.
        digest_of: digest of the network in a file of kind ``model``.

    Raises:
        ZooError: a file without metadata or card, two files of one name.
    """
    old, index = read_index(folder), {}
    for file in sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES):
        name = file.stem
        if name in index:
            raise ZooError(f"two bundled files have the name {name}: {index[name]['file']} and {file}")
        entry, known, job = describe(file, folder), old.get(name, {}), maker(jobs, name)
        same = known.get("sha256") == entry["sha256"]
        if entry["kind"] == "model":
            entry["digest"] = (same and known.get("digest")) or digest_of(file)
        if same and known.get("recipe_digest") and not {name, job} & set(accept):
            entry["recipe_digest"] = known["recipe_digest"]
        elif job:
            entry["recipe_digest"] = recipe_digest(jobs[job], root)
        index[name] = {key: value for key, value in entry.items() if value or key == "parent"}
    return index


def write_index(folder: Path, index: Index) -> None:
    """Write the index, whole or not at all."""
    with replacing(folder / INDEX) as temporary:
        temporary.write_text(format_index(index), encoding="utf-8")


def format_index(index: Index) -> str:
    """Return the index as it stands in its file."""
    return json.dumps(index, indent=1, ensure_ascii=False) + "\n"


def parent_digest(job: Job, index: Index) -> str:
    """Return the digest that the files of a job must name as their base; empty without a parent or its file."""
    entry = index.get(job.parent, {})
    return str(entry.get("digest") or entry.get("sha256", ""))


def find_stale(
    jobs: Mapping[str, Job],
    index: Index,
    root: Path,
    *,
    only: Collection[str] = (),
    force: bool = False,
    data: Path = Path("data"),
) -> dict[str, str]:
    """Return job name -> why it has to run, in order; jobs that are up to date are left out.

    Data sets have to be made when a job that learns from them has to run; where what they are made from is missing, they
    are left out too.

    Args:
        jobs: see `read_jobs`.
        index: of the files that are there, see `build_index`.
        root: folder that the recipes' paths are relative to.
        only: names of jobs or models; empty for all.
        force: the named ones run in any case.
        data: folder of data sets.

    Raises:
        OptionError: an unknown name; a recipe is missing; a data set is named that cannot be made.
    """
    unknown = [name for name in only if name not in jobs and not maker(jobs, name)]
    if unknown:
        raise OptionError(f"no bundled model is called {', '.join(unknown)}; known: {', '.join(jobs)}")
    chosen = {name if name in jobs else maker(jobs, name) for name in only} or set(jobs)
    stale: dict[str, str] = {}
    for name, job in jobs.items():
        if name not in chosen or job.is_data:
            continue
        reason = "asked for" if force else _reason(job, index, root)
        again = [model for model in (job.parent, *job.needs) if maker(jobs, model) in stale]
        if not reason and again:
            reason = f"{again[0]} will be made again"
        if reason:
            stale[name] = reason
    for name, job in jobs.items():
        users = [other for other in stale if name in jobs[other].needs]
        if not job.is_data or not (users or name in only):
            continue
        missing = missing_wants(job, root)
        if missing and name in only:
            raise OptionError(f"{name} is made from {', '.join(missing)}, which is missing")
        if name in only and force:
            stale[name] = "asked for"
        elif not missing and not is_whole(job, root, data):
            stale[name] = f"not whole, and for {', '.join(users)}" if users else "not whole"
    return {name: stale[name] for name in jobs if name in stale}


def _reason(job: Job, index: Index, root: Path) -> str:
    now, base = recipe_digest(job, root), parent_digest(job, index)
    for file, model in zip(job.files, job.models, strict=True):
        entry = index.get(model)
        if entry is None or entry["file"] != file:
            return f"{file} is missing"
        if job.parent and entry.get("base_digest") != base:
            return f"made from another {job.parent} ({entry.get('base_digest', '')[:12]}, now {base[:12] or 'missing'})"
        if entry.get("recipe_digest") != now:
            return "its recipe changed"
    return ""


def split_words(text: str, places: Mapping[str, str]) -> list[str]:
    """Split a command line into words and fill in what stands in braces.

    Raises:
        OptionError: an unknown word in braces.
    """
    try:
        return [word.format_map(places) for word in shlex.split(text)]
    except (KeyError, ValueError, IndexError) as error:
        raise OptionError(
            f"the step {text!r} cannot be read: {error!r}; known: {', '.join(places)}"
        ) from None
