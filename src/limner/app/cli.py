"""``limner COMMAND``: the command table, parsers built from options dataclasses, and how errors end.

A command's module is imported only when the command is called.  What an option means, its default and its range
come from the command's options dataclass; nothing is declared a second time here.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from limner.app.console import Console, Settings
from limner.errors import LimnerError, OptionError
from limner.options import Options, check_value, field_types, from_mapping, help_texts, read_recipe

# Name -> (module of app/commands, one line of help).  ``module`` stands for its ``run`` with ``Options``,
# ``module:pull`` for its ``run_pull`` with ``PullOptions``.
COMMANDS: dict[str, tuple[str, str]] = {
    "stylize": ("stylize", "restyle every face of a photo"),
    "learn": ("learn", "learn a style from one or more pictures"),
    "style": ("style", "merge style files, export them as checkpoints, show what they paint"),
    "dual": ("dual", "restyle faces after an exemplar, structure and colour apart (DualStyleGAN)"),
    "invert": ("invert", "find the latent of a face"),
    "edit morph": ("edit:morph", "turn faces into each other: film, strip or frames"),
    "edit mix": ("edit:mix", "mix faces by layers; sheets of styles"),
    "edit transfer": ("edit:transfer", "put the style of one picture on a face"),
    "edit expression": ("edit:expression", "carry an expression over, also from a film"),
    "edit crossover": ("edit:crossover", "put a region of one face into another"),
    "edit inpaint": ("edit:inpaint", "fill the hole of a face"),
    "edit direction": ("edit:direction", "move a face along named directions"),
    "translate": (
        "translate",
        "turn sketches, label maps, small, masked, turned or toon pictures into faces",
    ),
    "directions find": ("directions:find", "find directions: from the weights, from w, from labelled faces"),
    "directions list": ("directions:list", "list what a file of directions holds"),
    "directions name": ("directions:name", "rename directions, turn them round, drop them"),
    "directions show": ("directions:show", "draw a strip of faces per direction"),
    "sample": ("sample", "paint random faces"),
    "blend": ("blend", "put a generator together from the layers of several"),
    "align": ("align", "cut aligned faces out of photos"),
    "paste": ("paste", "put an aligned face back into its photo"),
    "train gan": ("train_gan", "train a generator, from nothing or from another one"),
    "train encoder": ("train_encoder", "train an encoder of a generator: the compact one, pSp, e4e, ReStyle"),
    "train translator": ("train_translator", "train the networks of limner translate, all tasks in one"),
    "train hyper": (
        "train_hyper",
        "train a small HyperInverter: changes of the generator beside the encoder's codes",
    ),
    "train dual": ("train_dual", "train a DualStyleGAN on a folder of portraits, all its stages"),
    "synth": ("synth", "render data sets of synthetic portraits or cartoon faces"),
    "convert": ("convert", "turn a checkpoint into another format"),
    "inspect": ("inspect", "say what is in a model file"),
    "models list": ("models:list", "list bundled, installed and downloadable models"),
    "models path": ("models:path", "print where a model's file lies"),
    "models verify": ("models:verify", "check model files against their digests"),
    "models pull": ("models:pull", "download a model, after showing its licence"),
    "models remove": ("models:remove", "delete an installed model"),
    "doctor": ("doctor", "say what this machine has, how fast it is and what is missing"),
    "eval": ("eval", "measure generation, inversion and styles on held-out pictures; writes a report"),
    "study": ("study", "repeat the experiments of Image2StyleGAN; writes a report"),
    "demo": ("demo", "restyle two photos and sample every bundled style"),
}
SHORT_FLAGS = {"out": "-o"}
EXIT_ERROR, EXIT_INTERRUPT = 2, 130


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `OptionError` in place of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise ``message``."""
        raise OptionError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0, 2 after an error, 130 when interrupted.

    Args:
        argv: words after ``limner``; None for those of this process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console()
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            console.print(overview(argv[1] if len(argv) > 1 else None))
            return 0
        if argv[0] == "--version":
            import limner

            console.print(f"limner {limner.__version__}")
            return 0
        name, rest = find_command(argv)
        if name not in COMMANDS:
            console.print(overview(name))
            return 0 if rest else EXIT_ERROR
        function, options_class = load_command(name)
        options_class = choose_variant(name, options_class, rest)
        if "-h" in rest or "--help" in rest:
            console.print(build_parser(name, options_class).format_help().rstrip())
            return 0
        # The common options are read first of all, so that an error is already reported as they ask for.
        console = Console(parse_settings(rest))
        configure_logging(console)
        options = parse_options(name, options_class, rest)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: console.warn(str(message))
            return function(options, console)
    except LimnerError as error:
        return fail(console, error)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # the reader has gone (`limner ... | head`); nothing is left to say
            return EXIT_ERROR
        if error.filename is None:
            raise
        return fail(console, error, f"{error.filename}: {error.strerror}")
    except MemoryError as error:
        return fail(console, error, "out of memory; try a smaller picture, batch or resolution")
    except KeyboardInterrupt:
        print("limner: interrupted", file=sys.stderr)
        return EXIT_INTERRUPT


def fail(console: Console, error: BaseException, message: str | None = None) -> int:
    """Report an expected error on one line, with ``--verbose`` its traceback, and return the exit status."""
    if console.settings.verbose:
        traceback.print_exception(error)
    console.error(message or str(error))
    console.result(error=type(error).__name__, message=message or str(error))
    return EXIT_ERROR


def overview(group: str | None = None) -> str:
    """Return the list of commands, or of those of one group such as ``models``."""
    names = [name for name in COMMANDS if group is None or name.split()[0] == group]
    if not names:
        raise OptionError(unknown_command(str(group)))
    width = max(map(len, names))
    lines = [f"usage: limner {group or 'COMMAND'} ... [options]", ""]
    if group is None:
        lines += ["Portraits painted with style-based GANs.", ""]
    lines += [f"  {name.ljust(width)}  {COMMANDS[name][1]}" for name in names]
    return "\n".join([*lines, "", "limner COMMAND --help lists a command's options."])


def unknown_command(name: str) -> str:
    """Return the message for a command that does not exist, with close matches."""
    close = difflib.get_close_matches(name, COMMANDS, 3) or difflib.get_close_matches(
        name.split()[0], sorted({command.split()[0] for command in COMMANDS}), 3
    )
    hint = f"did you mean {' or '.join(close)}?" if close else "limner --help lists the commands"
    return f"unknown command {name!r}; {hint}"


def find_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Split a command line into command and the words after it; a bare group name comes back as it is.

    Raises:
        OptionError: no such command.
    """
    for length in (2, 1):
        name = " ".join(argv[:length])
        if len(argv) >= length and name in COMMANDS:
            return name, list(argv[length:])
    if any(command.startswith(f"{argv[0]} ") for command in COMMANDS):
        if len(argv) == 1 or argv[1] in ("-h", "--help"):
            return argv[0], list(argv[1:])
        raise OptionError(unknown_command(" ".join(argv[:2])))
    raise OptionError(unknown_command(argv[0]))


def load_command(name: str) -> tuple[Callable[[Any, Console], int], type[Options]]:
    """Import a command and return its function and its options dataclass."""
    module_name, _, part = COMMANDS[name][0].partition(":")
    module = importlib.import_module(f"limner.app.commands.{module_name}")
    if not part:
        return module.run, module.Options
    return getattr(module, f"run_{part}"), getattr(module, f"{part.capitalize()}Options")


def choose_variant(name: str, options_class: type[Options], words: Sequence[str]) -> type[Options]:
    """Return the options of a command that fit its words: a few commands have others for each value of one option.

    Such a command's module says so in ``VARIANTS``: the option's name, and value -> options dataclass.

    Raises:
        OptionError: the option has another value; unreadable recipe.
    """
    module = importlib.import_module(f"limner.app.commands.{COMMANDS[name][0].partition(':')[0]}")
    option, classes = getattr(module, "VARIANTS", ("", {}))
    if not option:
        return options_class
    parser = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument(f"--{option.replace('_', '-')}", dest=option)
    parser.add_argument("--config")
    given = vars(parser.parse_known_args(list(words))[0])
    if option not in given and "config" in given:
        given = read_recipe(given["config"])
    if option not in given:
        return options_class
    check_value(options_class.__dataclass_fields__[option], given[option])
    return classes[given[option]]


def has_default(field: dataclasses.Field) -> bool:
    """Say whether an option may be left out."""
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def is_positional(field: dataclasses.Field) -> bool:
    """Say whether an option stands without a flag: the required ones do, and those that say so."""
    return not has_default(field) or bool(field.metadata.get("positional"))


def build_parser(name: str, options_class: type[Options]) -> Parser:
    """Return the parser of a command; it yields only what was given, as strings and booleans."""
    positionals = [
        field for field in dataclasses.fields(options_class) if field.init and is_positional(field)
    ]
    types = field_types(options_class)
    words = [field.name.upper() + ("..." if types[field.name][1] else "") for field in positionals]
    words = [
        f"[{word}]" if has_default(field) else word for word, field in zip(words, positionals, strict=True)
    ]
    parser = Parser(
        prog=f"limner {name}",
        description=f"{COMMANDS[name][1][0].upper()}{COMMANDS[name][1][1:]}.",
        usage=" ".join([f"limner {name}", *words, "[options]"]),
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=100),
    )
    own = parser.add_argument_group("options")
    # What only this command has comes before what it shares with others, with a few first.
    names = [name for base in options_class.__mro__ for name in vars(base).get("__annotations__", ())]
    for field in sorted(dataclasses.fields(options_class), key=lambda field: names.index(field.name)):
        if field.init:
            add_field(parser if is_positional(field) else own, options_class, field)
    common = parser.add_argument_group("options of every command")
    common.add_argument(
        "--config", metavar="FILE", help="recipe, YAML or JSON, with values for the options above"
    )
    for field in dataclasses.fields(Settings):
        add_field(common, Settings, field)
    common.add_argument("-h", "--help", action="store_true", help="print this help")
    return parser


def add_field(
    group: argparse._ActionsContainer, options_class: type[Options], field: dataclasses.Field
) -> None:
    """Add one option, as a positional where it is required."""
    element, many, _ = field_types(options_class)[field.name]
    text = describe(options_class, field)
    flags = [f"--{field.name.replace('_', '-')}"]
    if field.name in SHORT_FLAGS:
        flags.insert(0, SHORT_FLAGS[field.name])
    if is_positional(field):
        # '?' and '*' because a recipe may give it; `from_mapping` says what is missing in the end.
        group.add_argument(field.name, metavar=field.name.upper(), nargs="*" if many else "?", help=text)
        if not many:  # --out overrides a recipe's `out` without naming what stands before it
            group.add_argument(*flags, dest=field.name, help=argparse.SUPPRESS)
        return
    if element is bool and not many:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, help=text)
    elif element is not dict:  # a mapping can only be given in a recipe
        choices = field.metadata.get("choices")
        metavar = {int: "N", float: "X", Path: "PATH"}.get(element, "NAME" if choices else "TEXT")
        group.add_argument(
            *flags,
            dest=field.name,
            metavar=f"{metavar},..." if many else metavar,
            action="append" if many else "store",
            help=text,
        )


def describe(options_class: type[Options], field: dataclasses.Field) -> str:
    """Return an option's help: its text, choices, range and default."""
    text = help_texts(options_class).get(field.name, "")
    choices, lo, hi = (field.metadata.get(key) for key in ("choices", "lo", "hi"))
    notes = [", ".join(choices)] if choices else []
    if lo is not None or hi is not None:
        notes.append(f"from {lo}" if hi is None else f"to {hi}" if lo is None else f"{lo} to {hi}")
    default = default_of(field) if has_default(field) else None
    if default not in (None, "", ()):
        notes.append(f"default {default}")
    text = text.rstrip(".")
    return (f"{text} ({'; '.join(notes)})" if notes else text).replace("%", "%%")


def default_of(field: dataclasses.Field) -> object:
    """Return an option's default as it is written on the command line."""
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else value


def parse_settings(words: Sequence[str]) -> Settings:
    """Return the common options among ``words``; other words are left alone."""
    parser = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for field in dataclasses.fields(Settings):
        add_field(parser, Settings, field)
    return from_mapping(Settings, vars(parser.parse_known_args(list(words))[0]), "limner")


def parse_options(name: str, options_class: type[Options], words: Sequence[str]) -> Options:
    """Build a command's options from its recipe, if one is named, and the words of the command line.

    Raises:
        OptionError: unknown or missing option, wrong type, value out of range, unreadable recipe.
    """
    parser = build_parser(name, options_class)
    given, unknown = parser.parse_known_intermixed_args(list(words))
    if unknown:
        raise OptionError(unknown_words(name, parser, unknown))
    values = {}
    for field in dataclasses.fields(options_class):
        if field.name not in given:
            continue
        value = getattr(given, field.name)
        element, many, optional = field_types(options_class)[field.name]
        if many and not is_positional(field):
            value = [item for part in value for item in part.split(",")]  # --x 1,2 --x 3
        elif optional and value == "none" and element is not str:
            value = None
        values[field.name] = value
    where = f"limner {name}"
    if "config" in given:
        values = {**read_recipe(given.config), **values}
        where = f"{where} --config {given.config}"
    return from_mapping(options_class, values, where)


def unknown_words(name: str, parser: Parser, unknown: Sequence[str]) -> str:
    """Return the message for words that no option takes, with close matches."""
    flags = [flag for action in parser._actions for flag in action.option_strings]
    word = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
    if not word.startswith("-"):
        return f"limner {name}: one argument too many: {word!r}; limner {name} --help shows what it takes"
    close = difflib.get_close_matches(word, flags, 1)
    hint = f"did you mean {close[0]}?" if close else f"limner {name} --help lists its options"
    return f"limner {name}: unknown option {word}; {hint}"


def configure_logging(console: Console) -> None:
    """Send what the library logs to standard error, as much of it as the settings ask for."""
    settings = console.settings
    handler = logging.StreamHandler(console.stderr)
    handler.setFormatter(logging.Formatter("limner: %(message)s"))
    logger = logging.getLogger("limner")
    logger.handlers[:] = [handler]
    logger.setLevel(
        logging.ERROR if settings.quiet else logging.INFO if settings.verbose else logging.WARNING
    )
