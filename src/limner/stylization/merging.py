"""Several styles in one: their changes to the base add up, so one forward pass has them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from limner.errors import KeyMismatchError, OptionError
from limner.stylization.style import USUAL_PULL, Style

METHOD = "merged"
LAYERS = ("row_weights", "style_weights")


def merge(
    styles: Sequence[Style], weights: Sequence[float] | None = None, *, names: Sequence[str] = ()
) -> Style:
    """Return the weighted sum of styles.

    Args:
        styles: one or more of one base, learned or blended.
        weights: one per style; None for the mean.  They need not add up to 1: a learned style and a blend that change
            different layers may each come whole.
        names: what the styles are called, for messages and provenance.

    Raises:
        OptionError: no style, or not one weight per style.
        KeyMismatchError: the styles belong to different bases.
    """
    if not styles:
        raise OptionError("there is no style to merge")
    weights = [1 / len(styles)] * len(styles) if weights is None else list(weights)
    if len(weights) != len(styles):
        raise OptionError(f"{len(weights)} weights for {len(styles)} styles, expected one each")
    names = list(names) or [f"style {number}" for number in range(1, len(styles) + 1)]
    for style, name in zip(styles, names, strict=True):
        if style.base != styles[0].base:
            raise KeyMismatchError(
                f"{names[0]} belongs to a base with digest {styles[0].base[:12]}, {name} to one with "
                f"{style.base[:12]}; only styles of one base can be merged"
            )
    delta: dict[str, Tensor] = {}
    for style, weight in zip(styles, weights, strict=True):
        for name, change in style.delta.items():
            part = change.float() * weight
            delta[name] = delta[name] + part if name in delta else part
    heaviest = max(range(len(styles)), key=lambda number: weights[number])
    parts = [
        {"name": name, "weight": weight, "method": style.method, "provenance": dict(style.provenance)}
        for style, weight, name in zip(styles, weights, names, strict=True)
    ]
    licences = list(dict.fromkeys(style.licence for style in styles))
    return Style(
        delta=delta,
        base=styles[0].base,
        method=METHOD,
        options=_layer_weights(styles, weights)
        | {"pull": _mean_pull(styles, weights), "detail": styles[heaviest].detail},
        provenance={"base": styles[0].provenance.get("base", ""), "merged": parts},
        licence="; ".join(licences),
        thumbnail=styles[heaviest].thumbnail,
    )


def _mean_pull(styles: Sequence[Style], weights: Sequence[float]) -> float:
    """Return the pull of the styles that were mixed on any layer, on average."""
    mixed = [
        (style.pull, abs(weight)) for style, weight in zip(styles, weights, strict=True)
        if weight and any(style.options.get(kind) for kind in LAYERS)
    ]  # fmt: skip
    total = sum(weight for _, weight in mixed)
    return round(sum(pull * weight for pull, weight in mixed) / total, 6) if total else USUAL_PULL


def _layer_weights(styles: Sequence[Style], weights: Sequence[float]) -> dict[str, Any]:
    """Return how far any of the styles was mixed on every layer; those that do not count are left out."""
    found: dict[str, Any] = {}
    for kind in LAYERS:
        lists = [
            style.options[kind] for style, weight in zip(styles, weights, strict=True)
            if weight and style.options.get(kind)
        ]  # fmt: skip
        if lists:
            found[kind] = [max(column) for column in zip(*lists, strict=True)]
    return found
