"""A part of a head on the GPU: its vertices, and the values that its shaders read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from limner.synth.parts import Part
from limner.synth.shaders import Material

if TYPE_CHECKING:
    from limner.synth.render import Renderer

DOME_WRAP, DOME_WRAP_STRANDS = 0.15, 0.5
# Names of vertex attributes in the order of `_pack`, and their layout.
ATTRIBUTES, LAYOUT, FLOATS = ("position", "normal", "uv", "along", "rest"), "3f 3f 2f 4f 3f", 15
UNIT_TEXTURE = 0  # the texture unit of a part's own texture
INSIDE_MOUTH = ("teeth_base", "tongue01")


class Mesh:
    """A part on the GPU.

    Args:
        renderer: in whose context it lies.
        part: what is drawn.
        uniforms: values that all parts of a scene share, by name; the part's own take their place.
    """

    def __init__(self, renderer: Renderer, part: Part, uniforms: Mapping[str, Any]):
        self.renderer, self.part = renderer, part
        context = renderer.context
        self.vertices = context.buffer(_pack(part).tobytes())
        self.indices = context.buffer(np.ascontiguousarray(part.triangles, np.int32).tobytes())
        self.arrays: dict[str, Any] = {}
        mean = 0.0
        self.texture = renderer.white
        if part.texture is not None:
            self.texture, mean = renderer.texture(*part.texture)
        strand = part.material is Material.STRAND
        own = {
            "label": part.label,
            "tint": (1.0, 1.0, 1.0),
            "texture_mean": 0.0 if part.own_colors else mean,
            "texture_mix": 1.0,
            "roughness": 0.5,
            "opacity": 1.0,
            "eye_center": (0.0, 0.0, 0.0),
            "dome_wrap": DOME_WRAP_STRANDS if strand else DOME_WRAP,
        }
        self.uniforms = {**uniforms, **own, **part.uniforms}

    @property
    def casts_shadow(self) -> bool:
        """Whether it does: eyes, brows, lenses and the inside of the mouth do not."""
        flat = self.part.material in (Material.EYE, Material.CARD, Material.LENS)
        return self.part.casts_shadow and not flat and self.part.name not in INSIDE_MOUTH

    def draw(self, stage: str, count: int = -1, **overrides: Any) -> None:
        """Draw the part with the program of a stage.

        Args:
            stage: of the rendering, ``depth``, ``shade`` or ``buffers``.
            count: how many indices, the first ones; -1 for all.
            overrides: uniforms that are other for this once.
        """
        program = self.renderer.program(self.part.material, stage)
        if stage not in self.arrays:
            self.arrays[stage] = self.renderer.context.vertex_array(
                program, [(self.vertices, LAYOUT, *ATTRIBUTES)], self.indices, skip_errors=True
            )
        self.texture.use(UNIT_TEXTURE)
        _set_uniforms(program, self.uniforms | overrides)
        self.arrays[stage].render(vertices=count)

    def release(self) -> None:
        """Free its memory on the GPU."""
        for resource in (*self.arrays.values(), self.vertices, self.indices):
            resource.release()


def _pack(part: Part) -> np.ndarray:
    """Return the vertices (n, FLOATS) as the shaders read them."""
    vertices = np.zeros((len(part.positions), FLOATS), np.float32)
    vertices[:, :3], vertices[:, 3:6], vertices[:, 6:8] = part.positions, part.normals, part.uv
    if part.along is not None:
        vertices[:, 8:12] = part.along
    vertices[:, 12:15] = part.positions if part.rest is None else part.rest
    return vertices


def _set_uniforms(program: Any, uniforms: Mapping[str, Any]) -> None:
    """Set those uniforms that the program has; compilers drop what is not used."""
    for name, value in uniforms.items():
        if name not in program:
            continue
        if isinstance(value, np.ndarray):
            uniform = program[name]
            used = value[: uniform.array_length] if uniform.array_length > 1 else value
            uniform.write(np.ascontiguousarray(used, np.float32).tobytes())
        else:
            program[name].value = value
