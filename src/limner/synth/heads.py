"""The domain ``heads``: portraits with their looks, label maps and frontal twins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from limner.synth.assets import Assets, read_assets
from limner.synth.dataset import Sample
from limner.synth.lighting import frontal_twin
from limner.synth.lively import enliven
from limner.synth.looks import PALETTE, label_map, make_clay, make_comic, make_pencil, make_toon
from limner.synth.options import LOOKS, SynthOptions
from limner.synth.render import Renderer, Rendering
from limner.synth.sample import sample_scene
from limner.synth.scene import Scene

PHOTO, FRONTAL, LABELS = "photo", "frontal", "labels"


class HeadPainter:
    """Renders portraits; see `dataset.Painter`.

    Args:
        options: looks, size, assets.

    Raises:
        OptionError: no assets where the options say.
        MissingExtraError: moderngl or the system's EGL is not installed.
    """

    palette: np.ndarray | None = PALETTE

    def __init__(self, options: SynthOptions):
        # Mesa's software renderer would take every core; more processes are the better use of them.
        os.environ.setdefault("LP_NUM_THREADS", "1")
        self.options = options
        self.assets = open_assets(options)
        self.opposites = self.assets.opposites()
        self.renderer = Renderer(self.assets, size=options.size, look_version=options.look_version)
        looks = tuple(look for look in LOOKS if look in options.looks)
        extra = (FRONTAL,) * options.frontal + (LABELS,) * options.labels
        self.folders = (PHOTO, *looks, *extra)
        self.attribution = (
            "# Where these pictures come from\n\n"
            f"Rendered by `limner synth heads`; nobody in them exists. {self.assets.provenance}.\n"
        )

    def paint(self, seeds: Sequence[int]) -> Iterator[Sample]:
        """Yield every picture of each seed."""
        for seed in seeds:
            scene = sample_scene(seed, self.opposites)
            if self.options.look_version > 1:
                scene = enliven(scene)
            needs_buffers = {"comic", "pencil", LABELS} & set(self.folders)
            rendering = self.renderer.render(scene, buffers=bool(needs_buffers))
            pictures = {folder: self._picture(folder, scene, rendering) for folder in self.folders}
            yield Sample(seed, pictures, rendering.describe())

    def _picture(self, folder: str, scene: Scene, rendering: Rendering) -> np.ndarray:
        if folder == "toon":
            return make_toon(self.renderer, scene)
        if folder == "clay":
            return make_clay(self.renderer, scene)
        if folder == "comic":
            return make_comic(rendering)
        if folder == "pencil":
            return make_pencil(rendering)
        if folder == FRONTAL:
            return self.renderer.render(frontal_twin(scene)).pixels
        if folder == LABELS:
            assert rendering.buffers is not None
            return label_map(rendering.buffers)
        return rendering.pixels


def open_assets(options: SynthOptions) -> Assets:
    """Return the asset pack that the options name, or the plain heads that come with Limner."""
    if options.assets is not None:
        return read_assets(options.assets)
    from limner.synth.plain import read_plain_assets

    return read_plain_assets()
