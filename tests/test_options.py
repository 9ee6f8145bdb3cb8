"""Options: ranges, help from the source, conversion from YAML and words, and back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from limner.app.cli import describe
from limner.errors import LimnerError, OptionError
from limner.options import (
    Options,
    convert,
    field_types,
    from_mapping,
    help_texts,
    knob,
    read_recipe,
    to_mapping,
    to_words,
    with_default,
)


@dataclasses.dataclass(frozen=True)
class BaseOptions(Options):
    """A base."""

    seed: int = knob(0, lo=0)
    """start of the
    random numbers"""


@dataclasses.dataclass(frozen=True)
class SampleOptions(BaseOptions):
    """Everything a field can be."""

    ratio: float = knob(0.5, lo=0, hi=1, step=0.01)
    """a ratio"""
    mode: str = knob("soft", choices=("soft", "hard"))
    """a choice"""
    rows: tuple[int, ...] = knob((), lo=0, hi=99)
    """some numbers"""
    weights: list[float] = knob(factory=lambda: [1.0])
    """a mutable default"""
    limit: int | None = knob(None, hi=9)
    """may be missing"""
    on: bool = False
    """a switch"""
    path: Path = Path("x")
    """a path"""


def test_help_is_the_string_below_the_field_of_each_class():
    texts = help_texts(SampleOptions)
    assert texts["seed"] == "start of the random numbers"
    assert texts["mode"] == "a choice"
    assert set(texts) == {field.name for field in dataclasses.fields(SampleOptions)}


def test_types():
    types = field_types(SampleOptions)
    assert types["seed"] == (int, False, False)
    assert types["rows"] == (int, True, False)
    assert types["weights"] == (float, True, False)
    assert types["limit"] == (int, False, True)
    assert types["path"] == (Path, False, False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": 1.01}, "ratio is 1.01, expected 0 to 1"),
        ({"ratio": float("nan")}, "ratio is not a number"),
        ({"ratio": float("inf")}, "ratio is inf, expected 0 to 1"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"limit": 10}, "limit is 10, expected at most 9"),
        ({"rows": (3, 100)}, "rows is 100, expected 0 to 99"),
        ({"mode": "hrad"}, r"mode is 'hrad', expected one of soft, hard; did you mean 'hard'\?"),
    ],
)
def test_ranges_are_checked_when_an_object_is_made(values, message):
    with pytest.raises(OptionError, match=message) as caught:
        SampleOptions(**values)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, LimnerError)


def test_edges_of_a_range_are_allowed():
    assert SampleOptions(ratio=0.0, limit=9).ratio == 0
    assert SampleOptions(ratio=1.0, limit=None).ratio == 1


def test_mutable_defaults_are_not_shared():
    assert SampleOptions().weights == [1.0]
    assert SampleOptions().weights is not SampleOptions().weights


@pytest.mark.parametrize(
    ("value", "spec", "wanted"),
    [
        ("3", (int, False, False), 3),
        (3.0, (int, False, False), 3),
        ("1e3", (int, False, False), 1000),
        ("2", (float, False, False), 2.0),
        ("yes", (bool, False, False), True),
        ("OFF", (bool, False, False), False),
        ("1,2", (int, True, False), (1, 2)),
        ("0-2,5", (int, True, False), (0, 1, 2, 5)),
        (["0-1", 7], (int, True, False), (0, 1, 7)),
        (4, (int, True, False), (4,)),
        ("-3", (int, True, False), (-3,)),
        (None, (int, False, True), None),
        ("a", (Path, False, False), Path("a")),
    ],
)
def test_convert(value, spec, wanted):
    found = convert("x", value, *spec)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("value", "element", "message"),
    [
        (True, int, "x is True, expected a whole number"),
        (2.5, int, "x is 2.5, expected a whole number"),
        ("", float, "x is '', expected a number"),
        ("maybe", bool, "x is 'maybe', expected true or false"),
        (None, int, "x is None, expected a whole number"),
        ([1], float, r"x is \[1\], expected a number"),
    ],
)
def test_convert_refuses(value, element, message):
    with pytest.raises(OptionError, match=message):
        convert("x", value, element, False, False)


def test_mapping_round_trip():
    options = SampleOptions(seed=4, rows=(1, 2), limit=3, on=True, path=Path("a/b"))
    plain = to_mapping(options)
    assert plain["path"] == "a/b"
    assert plain["rows"] == [1, 2]
    again = from_mapping(SampleOptions, plain)
    assert dataclasses.replace(again, weights=options.weights) == options


def test_words_give_the_same_options_on_the_command_line():
    from limner.app import cli
    from limner.training.gan.options import GanOptions

    assert to_words(GanOptions()) == []
    options = GanOptions(data=("a b", "c"), mirror=False, only_discriminator=True, kimg=2.5)
    words = to_words(options)
    assert words == ["--no-mirror", "--kimg", "2.5", "--data", "a b,c", "--only-discriminator"]
    assert cli.parse_options("train gan", GanOptions, words) == options
    assert to_words(options, leave_out=("data", "kimg")) == ["--no-mirror", "--only-discriminator"]
    assert to_words(SampleOptions(rows=(1, 2))) == ["--rows", "1,2"]
    for words, data in ((["--data", "a", "--data", "b,c"], ("a", "b", "c")), (["--data", ""], ())):
        assert cli.parse_options("train gan", GanOptions, words).data == data


def test_unknown_and_missing_names():
    with pytest.raises(OptionError, match=r"here: unknown option 'rato'; did you mean 'ratio'\?"):
        from_mapping(SampleOptions, {"rato": 1}, "here")
    with pytest.raises(OptionError, match="unknown option 'zzz'; known: seed, ratio"):
        from_mapping(SampleOptions, {"zzz": 1})

    with pytest.raises(OptionError, match="options: count must be given"):
        from_mapping(NeedsCount, {})


@dataclasses.dataclass(frozen=True)
class NeedsCount(Options):
    """One required option."""

    count: int
    """how many"""


def test_recipe_in_yaml_and_json_are_equal(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 3\nrows: [1, 2]\n")
    (tmp_path / "a.json").write_text('{"seed": 3, "rows": [1, 2]}')
    assert read_recipe(tmp_path / "a.yaml") == read_recipe(tmp_path / "a.json")


def test_yaml_that_would_build_objects_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(OptionError, match="is not valid YAML"):
        read_recipe(tmp_path / "a.yaml")


def test_yaml_without_pyyaml_says_what_to_do(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 3\n")
    code = f"""
import sys
sys.modules["yaml"] = None
from limner.options import read_recipe
try:
    read_recipe({str(tmp_path / "a.yaml")!r})
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "pip install pyyaml, or write it as JSON" in done.stdout


def test_another_default_keeps_range_and_help():
    @dataclasses.dataclass(frozen=True)
    class Other(BaseOptions):
        """The same from 7 on."""

        seed: int = with_default(BaseOptions, "seed", 7)

    assert Other().seed == 7
    with pytest.raises(OptionError, match="seed is -1"):
        Other(seed=-1)
    assert describe(Other, dataclasses.fields(Other)[0]) == "start of the random numbers (from 0; default 7)"


def test_an_empty_choice_has_a_name_in_messages():
    @dataclasses.dataclass(frozen=True)
    class Maybe(Options):
        task: str = knob("", choices=("", "sketch"))

    with pytest.raises(OptionError, match="task is 'paint', expected one of nothing, sketch"):
        Maybe(task="paint")
