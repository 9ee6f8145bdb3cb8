"""Transfer fine-tuning: frozen parts stay to the bit, the rest learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limner import media
from limner.errors import OptionError
from limner.training.gan.options import GanOptions
from limner.training.gan.training import GanTraining, build_generator, build_run
from limner.training.gan.transfer import frozen_parameters
from limner.training.run import Runtime


@pytest.mark.parametrize(
    ("freeze", "frozen", "free"),
    [
        ("", [], ["mapping.layers.0.weight", "synthesis.const"]),
        ("mapping", ["mapping.layers.0.weight", "mapping.layers.1.bias"], ["synthesis.const"]),
        (
            "mapping, 4px-8px",
            [
                "mapping.layers.0.bias",
                "synthesis.const",
                "synthesis.layers.2.affine.weight",
                "synthesis.to_rgb.1.bias",
            ],
            ["synthesis.layers.3.weight", "synthesis.to_rgb.2.weight"],
        ),
        ("rgb", ["synthesis.to_rgb.0.weight"], ["synthesis.layers.0.weight", "mapping.layers.0.weight"]),
    ],
)
def test_frozen_names(generator, freeze, frozen, free):
    found = frozen_parameters(generator, freeze)
    assert found >= set(frozen)
    assert not found & set(free)
    assert found <= {name for name, _ in generator.named_parameters()}


def test_unknown_parts_are_refused(generator):
    with pytest.raises(OptionError, match="cannot read 'maping'"):
        frozen_parameters(generator, "maping,4px")


def test_a_run_leaves_the_frozen_parts_alone(tmp_path):
    """After two steps the frozen tensors are the parent's, every other layer has moved."""
    rng = np.random.default_rng(0)
    for number in range(8):
        media.write(tmp_path / f"data/{number:06d}.png", rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    options = GanOptions(
        data=str(tmp_path / "data"),
        out=str(tmp_path / "run"),
        resolution=16,
        w_dim=16,
        discriminator="stylegan2",
        freeze_g="mapping,4px",
        batch_size=2,
        kimg=0.004,
        ema_kimg=0,
        ema_rampup=0,
        metric_samples=0,
    )
    torch.manual_seed(3)
    parent = build_generator(options)
    run = build_run(options, Runtime(torch.device("cpu")), trunk=None, parent=parent)
    training = GanTraining(run)
    training.setup()
    assert training.fit()
    frozen = frozen_parameters(parent, options.freeze_g)
    assert len(frozen) == 4 + 1 + 5 + 4  # mapping, constant, convolution, toRGB
    for network in (run.G, run.ema):
        after = dict(network.named_parameters())
        for name, before in parent.named_parameters():
            assert torch.equal(after[name], before) == (name in frozen), name
