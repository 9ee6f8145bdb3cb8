"""The original rule against the original program: the coefficient of every variable, for several swap points."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from limner.checkpoints.keymaps import generator_rows
from limner.checkpoints.networks import Skeleton
from limner.nn.stylegan2 import Generator
from limner.stylization.blend import blend_table
from limner.stylization.blend_options import BlendOptions

FOLDER = Path(os.environ.get("LIMNER_PARITY_DIR", Path(__file__).parents[2] / "shared" / "parity"))
FIXTURE = FOLDER / "blending/blending.json"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        not FIXTURE.is_file(),
        reason=f"no blending fixture in {FOLDER}; name the folder of reference outputs in LIMNER_PARITY_DIR",
    ),
]


def cases() -> list[Any]:
    """Return the fixture's cases."""
    found = json.loads(FIXTURE.read_text())["cases"] if FIXTURE.is_file() else []
    return [
        pytest.param(case, id=f"{case['network']}-{case['resolution']}.{case['level']}-{case['blend_width']}")
        for case in found
    ]


@pytest.mark.parametrize("case", cases())
def test_every_variable_has_the_original_coefficient(case: dict[str, Any]) -> None:
    """Every TensorFlow variable but ``lod``, which our network does not have."""
    size = case["network"]
    sides = [4 << n for n in range(size.bit_length() - 2)]
    with Skeleton():
        generator = Generator(resolution=size, channels=dict.fromkeys(sides, 2))
    options = BlendOptions(
        swap=(case["resolution"],),
        level=case["level"],
        width=case["blend_width"] or 0.0,
        rule="original",
    )
    table = blend_table(generator, 2, options)
    ours = {
        row.tensorflow[0]: table[row.limner][1]
        for row in generator_rows(size, len(generator.mapping.layers))
        if row.tensorflow is not None
    }
    expected = {name: value for name, value in case["coefficients"].items() if name != "lod"}
    expected |= dict.fromkeys((name for name in case["never_blended"] if name != "lod"), 0.0)
    assert set(ours) == set(expected)
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name
