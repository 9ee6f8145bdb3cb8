"""What the word after ``--style`` stands for: a name, a file, a whole generator, a picture, a DualStyleGAN's style."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from limner import zoo
from limner.app.console import Console
from limner.errors import LimnerError, OptionError
from limner.options import to_mapping
from limner.pipeline.options import LearnOptions
from limner.stylization.options import StyleOptions

if TYPE_CHECKING:
    from limner.app.commands.stylize import Options
    from limner.pipeline import Models
    from limner.stylization.dual import DualStyle
    from limner.stylization.style import Style

STYLE_SUFFIX = ".limner"
DUAL_SUFFIXES = (".safetensors", ".pt", ".pth")
MODEL_SUFFIXES = (*DUAL_SUFFIXES, ".pkl")
LEARNED_ONLY = ("layers", "pull", "blend", "hold")  # of no meaning to a DualStyleGAN


def find_styles(options: Options, folder: Path, models: Models, console: Console) -> Style:
    """Return the style and those that come on top as one; arguments as `find_style`.

    Raises:
        OptionError: not one strength per further style.
    """
    if options.also_strength and not options.also:
        raise OptionError("also_strength is given, but no further styles are; name them with --also")
    first = find_style(options, folder, models, console)
    if not options.also:
        return first
    from limner.stylization.merging import merge

    shares = options.also_strength or (0.5,) * len(options.also)
    if len(shares) != len(options.also):
        raise OptionError(
            f"also_strength has {len(shares)} numbers, but also names {len(options.also)} styles"
        )
    others = [
        find_style(dataclasses.replace(options, style=name), folder, models, console) for name in options.also
    ]
    return merge([first, *others], [1.0, *shares], names=[options.style, *options.also])


def find_dual(options: Options, models: Models) -> DualStyle | None:
    """Return the style that ``MODEL`` or ``MODEL:STYLE`` stands for, None where no DualStyleGAN is called so.

    Raises:
        OptionError: it has no such style, others are to come on top, or options are given that learned styles alone have.
        CheckpointError: a file that holds no DualStyleGAN.
    """
    model, key = split_dual(options.style)
    if not model or (not key and holds_generator(model)):
        return None
    if options.also:
        raise OptionError(f"{model} is a DualStyleGAN, which no other style can be added to; leave also out")
    usual = StyleOptions()
    odd = [name for name in LEARNED_ONLY if getattr(options, name) != getattr(usual, name)]
    if odd:
        raise OptionError(
            f"{model} is a DualStyleGAN, which has no {', '.join(odd)}; leave out --{' --'.join(odd)}, or see limner dual "
            "--help for what it has"
        )
    from limner.checkpoints.dual import style_codes
    from limner.pipeline.dual import read_dual
    from limner.stylization.dual import DualStyle, at_strength, find_code, to_extrinsic

    found = read_dual(model, device=models.device)
    assert found.dual is not None
    name, code = find_code(style_codes(found.codes), key or "0")
    weights = at_strength(options.strength, keep_color=options.keep_color)
    return DualStyle(found.dual, to_extrinsic(found.dual, code), weights, f"{model}:{name}")


def split_dual(style: str) -> tuple[str, str]:
    """Return model and style of ``MODEL:STYLE``, a DualStyleGAN's name or file; two empty ones for anything else."""
    model, _, key = style.rpartition(":") if ":" in style else (style, "", "")
    named = model in zoo.names("dual")
    return (model, key) if named or Path(model).suffix in DUAL_SUFFIXES else ("", "")


def holds_generator(name: str) -> bool:
    """Return whether a model is a plain generator and no DualStyleGAN.

    Raises:
        ZooError, CheckpointError: there is no such model, or it is unreadable.
    """
    from limner import checkpoints

    if name in zoo.names("dual"):
        return False
    found = checkpoints.load(zoo.resolve(name), parts=("dual", "generator"))
    return found.dual is None and found.generator is not None


def style_of_model(name: str, base: str, models: Models) -> Style:
    """Return the style that a whole generator is: all its layers in place of the base's.

    Args:
        name: the generator, a name or file.
        base: what the base is called.
        models: whose generator is the base.

    Raises:
        OptionError: it is the base itself.
        KeyMismatchError: it was not made from the base.
        ZooError, CheckpointError: it is unreadable or holds no generator.
    """
    from limner.app.commands.blend import base_name, load_parent
    from limner.nn import deltas
    from limner.stylization.blend import blend
    from limner.stylization.blend_options import BlendOptions
    from limner.stylization.blend_style import METHOD
    from limner.stylization.style import style_between

    found = load_parent(name)
    assert found.generator is not None
    whole = BlendOptions(swap=(4,))
    blended = blend([models.generator, found.generator.to(models.device)], whole, names=[base, name])
    digest = deltas.digest(found.generator)
    if digest == deltas.digest(models.generator):
        raise OptionError(f"style is {name!r}, which is the base model itself")
    about = {"base": base_name(base), "parent": base_name(name), "digest": digest}
    style = style_between(
        models.generator, blended, method=METHOD, options=to_mapping(whole), provenance=about
    )
    return dataclasses.replace(style, licence=str(found.metadata.get("licence", "unknown")))


def find_style(options: Options, folder: Path, models: Models, console: Console) -> Style:
    """Return the style that a name, a ``.limner`` file, a whole generator or a picture stands for.

    Args:
        options: whose ``style`` is looked for.
        folder: where a style that is learned from a picture is kept.
        models: to learn with.
        console: shows the progress.
    """
    name, path = options.style, Path(options.style)
    if name in zoo.names("style") or path.suffix == STYLE_SUFFIX:
        return read_style(name)
    whole = name in (*zoo.names("child"), *zoo.names("model"))
    if whole or (path.exists() and path.suffix.lower() in MODEL_SUFFIXES):
        return style_of_model(name, options.model, models)
    if not path.exists():
        raise OptionError(
            f"style is {name!r}, expected a known style, a {STYLE_SUFFIX} file, a model or a picture; {suggest(name)}"
        )
    kept = folder / f"{path.stem}{STYLE_SUFFIX}"
    return _learn_or_reuse(path, kept, options, models, console)


def read_style(name: str) -> Style:
    """Read a style by its name or file.

    Raises:
        OptionError: there is neither.
        CheckpointError: the file is damaged or holds something else.
    """
    from limner.stylization import load_style

    if name in zoo.names("style"):
        return load_style(zoo.path(name))
    if not Path(name).exists():
        raise OptionError(f"there is no style or file {name!r}; {suggest(name, dual=False)}")
    return load_style(name)


def suggest(name: str, *, dual: bool = True) -> str:
    """Return what a style that does not exist may have meant: close names, else all of them.

    Args:
        name: what was asked for.
        dual: DualStyleGANs would do, too.
    """
    models = zoo.names("dual") if dual else []
    known = [*zoo.names("style"), *models]
    close = difflib.get_close_matches(name.partition(":")[0], known, 2)
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = ", ".join(f"{one}:0" if one in models else one for one in known)
    return f"known styles: {shown}" if known else "no styles are installed"


def was_learned_so(style: Style, digest: str, options: LearnOptions, trunk: str) -> bool:
    """Return whether a style was learned from the picture with this SHA-256, cut out and measured in the same way."""
    about = style.provenance
    same_trunk = about.get("trunk", trunk) == trunk
    same_crop = bool(style.options.get("aligned", False)) == options.aligned
    return same_trunk and same_crop and about.get("sha256") == [digest]


def _learn_or_reuse(picture: Path, kept: Path, options: Options, models: Models, console: Console) -> Style:
    from limner.app.commands.learn import learn_files
    from limner.stylization import load_style

    learning = LearnOptions(aligned=options.style_aligned)
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    if kept.exists():
        try:
            style = load_style(kept)
            style.check_base(models.generator)
        except LimnerError:
            style = None
        if style is not None and was_learned_so(style, digest, learning, models.trunk_name):
            console.print(f"style: {kept}, learned from {picture.name} before")
            return style
        kept = kept.with_name(f"{kept.stem}-{digest[:8]}{kept.suffix}")
    return learn_files([picture], [], kept, learning, models, console, max_megapixels=options.max_megapixels)
