"""Scenes become pictures, on an OpenGL context without a window: a GPU, or Mesa's software renderer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from limner.synth import shaders
from limner.synth.assets import Assets
from limner.synth.backdrop import GAMMA, SIZE, paint_backdrop
from limner.synth.context import import_moderngl, open_context
from limner.synth.film import SUPERSAMPLING, develop
from limner.synth.mesh import UNIT_TEXTURE, Mesh
from limner.synth.parts import MASKS, WRINKLES, Assembler, Assembly, describe
from limner.synth.scene import Color, Scene
from limner.synth.shaders import SHADOWED, TILES_X, TILES_Y, Material

SHADOW_SIZE = 184  # px of one light's tile
SHADOW_CENTER, SHADOW_RADIUS = np.array([0, 7.15, 0.3], np.float32), 2.35
SHADOW_DEPTH = -0.6
SHADOW_SHARE_OF_STRANDS = 0.33  # strands are in random order: the first of them are a fair, cheaper shade
SCATTER_RADIUS = 0.014  # of light below the skin, world units
SCATTER_DEPTH = 0.15  # difference in depth across which light does not scatter
DARK = 0.004  # added before a logarithm is taken of a colour; the shader does the same
OLD_GREY = np.array([0.30, 0.29, 0.28])
GREY_SHARE = 0.8
# Texture units; UNIT_TEXTURE is the first.
UNIT_SKINS, UNIT_MASKS, UNIT_WRINKLES, UNIT_SHADOW, UNIT_DEPTH, UNIT_GLOSS, UNIT_BACKDROP = range(
    UNIT_TEXTURE + 1, UNIT_TEXTURE + 8
)


@dataclasses.dataclass(frozen=True)
class Buffers:
    """What the pixels show, at `SUPERSAMPLING` times the picture's size.

    Attributes:
        normals: (H, W, 3), 0 where nothing is.
        labels: uint8 (H, W), values of `parts.LABELS`.
        albedo: (H, W, 3) sRGB 0..1.
        key_light: (H, W) how much of the key light arrives.
    """

    normals: np.ndarray
    labels: np.ndarray
    albedo: np.ndarray
    key_light: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rendering:
    """A picture, uint8 (H, W, 3), and what it was made of."""

    pixels: np.ndarray
    scene: Scene
    assembly: Assembly
    backdrop: np.ndarray
    buffers: Buffers | None = None

    def describe(self) -> dict[str, Any]:
        """Return attributes and landmarks as plain values."""
        return describe(self.scene, self.assembly, self.pixels.shape[0])


class Renderer:
    """Renders scenes; has an OpenGL context of its own.

    Args:
        assets: what heads are made of.
        size: side of the pictures in px.
        look_version: of `options.LOOK_VERSIONS`.

    Raises:
        MissingExtraError: moderngl or the system's EGL is not installed.
    """

    def __init__(self, assets: Assets, *, size: int = 256, look_version: int = 1):
        self.context = open_context()
        self.gl = import_moderngl()
        self.assets, self.size, self.look_version = assets, size, look_version
        self.side = size * SUPERSAMPLING
        self.assembler = Assembler(assets)
        self._programs: dict[tuple[Material, str], Any] = {}
        self._textures: dict[tuple[str, str], tuple[Any, float]] = {}
        self._make_targets()
        self._make_passes()
        self._make_textures()

    @property
    def driver(self) -> str:
        """Name of the OpenGL driver and what it runs on."""
        return f"{self.context.info['GL_RENDERER']}, OpenGL {self.context.info['GL_VERSION']}"

    def close(self) -> None:
        """Free the OpenGL context and all that is in it."""
        self.context.release()

    def render(
        self,
        scene: Scene,
        *,
        exaggeration: Mapping[str, float] | None = None,
        clay: Color | None = None,
        ground: Color | None = None,
        buffers: bool = False,
    ) -> Rendering:
        """Return the picture of a scene.

        Args:
            scene: what to render.
            exaggeration: detail target -> amount on top of the scene's shape.
            clay: linear colour of every surface, in place of their own.
            ground: linear colour of the backdrop, in place of the scene's.
            buffers: return what the pixels show, too.
        """
        assembly = self.assembler.assemble(scene, exaggeration)
        uniforms = self._scene_uniforms(scene, assembly, clay)
        if ground is None and scene.backdrop.kind == "plain":
            ground = scene.backdrop.color
        if ground is None:
            backdrop = paint_backdrop(scene.backdrop.kind, scene.backdrop.seed)
        else:
            backdrop = np.ones((SIZE, SIZE, 3), np.float32) * np.array(ground, np.float32)
        with self.context:  # there may be others in this process
            light, seen = self._draw(scene, assembly, uniforms, backdrop, buffers)
        return Rendering(develop(light, scene.seed), scene, assembly, backdrop, seen)

    def _draw(
        self,
        scene: Scene,
        assembly: Assembly,
        uniforms: Mapping[str, Any],
        backdrop: np.ndarray,
        buffers: bool,
    ) -> tuple[np.ndarray, Buffers | None]:
        """Return linear light (H, W, 3) at the size of the buffers, and these if they are wanted."""
        meshes = [Mesh(self, part, uniforms) for part in assembly.parts]
        try:
            self.skins.use(UNIT_SKINS)
            self.texture(MASKS, "RGBA")[0].use(UNIT_MASKS)
            self.texture(WRINKLES, "L")[0].use(UNIT_WRINKLES)
            self.shadow_map.use(UNIT_SHADOW)
            self._draw_shadows(meshes, uniforms)
            light = self._draw_picture(meshes, scene, assembly, backdrop)
            return light, self._draw_buffers(meshes) if buffers else None
        finally:
            for mesh in meshes:
                mesh.release()

    # What stays for all scenes.

    def _make_targets(self) -> None:
        context, side = self.context, self.side
        self.diffuse, self.gloss, self.scattered, self.result = (
            context.texture((side, side), 4, dtype="f2") for _ in range(4)
        )
        for texture in (self.diffuse, self.gloss, self.scattered):
            texture.repeat_x = texture.repeat_y = False
        self.depth = context.depth_texture((side, side))
        self.depth.compare_func = ""
        self.to_surfaces = context.framebuffer([self.diffuse, self.gloss], self.depth)
        self.to_diffuse = context.framebuffer([self.diffuse])
        self.to_scattered = context.framebuffer([self.scattered])
        self.to_result = context.framebuffer([self.result])
        self.onto_result = context.framebuffer([self.result], self.depth)
        self.to_buffers: Any = None
        self.shadow_map = context.depth_texture((SHADOW_SIZE * TILES_X, SHADOW_SIZE * TILES_Y))
        self.shadow_map.compare_func = "<="
        self.shadow_map.filter = (self.gl.LINEAR, self.gl.LINEAR)
        self.to_shadows = context.framebuffer(depth_attachment=self.shadow_map)

    def _make_passes(self) -> None:
        corners = self.context.buffer(np.array([-1, -1, 1, -1, -1, 1, 1, 1], "f4").tobytes())

        def full_screen(source: str) -> tuple[Any, Any]:
            program = self.context.program(shaders.VERSION + shaders.FULL_SCREEN, shaders.VERSION + source)
            return program, self.context.vertex_array(program, [(corners, "2f", "corner")])

        self.scatter, self.scatter_pass = full_screen(shaders.SCATTER)
        self.compose, self.compose_pass = full_screen(shaders.COMPOSE)

    def _make_textures(self) -> None:
        context, assets = self.context, self.assets
        self.backdrop = context.texture((SIZE, SIZE), 3, dtype="f2")
        self.backdrop.repeat_x = self.backdrop.repeat_y = False
        skins = np.stack([assets.texture(f"skins/{name}.jpg", "RGB") for name in assets.skins])
        count, height, width, _ = skins.shape
        flipped = np.ascontiguousarray(skins[:, ::-1])
        self.skins = context.texture_array((width, height, count), 3, flipped.tobytes())
        self.skins.build_mipmaps()
        self.skins.filter = (self.gl.LINEAR_MIPMAP_NEAREST, self.gl.LINEAR)
        self.white = self._upload(np.full((4, 4, 4), 255, np.uint8))

    def _upload(self, pixels: np.ndarray) -> Any:
        flipped = np.ascontiguousarray(pixels[::-1])  # OpenGL's first row is the lowest
        height, width, channels = flipped.shape
        texture = self.context.texture((width, height), channels, flipped.tobytes(), alignment=1)
        texture.build_mipmaps()
        texture.filter = (self.gl.LINEAR_MIPMAP_NEAREST, self.gl.LINEAR)
        return texture

    def texture(self, path: str, mode: str) -> tuple[Any, float]:
        """Return a texture and its mean linear colour, kept for later scenes."""
        if (path, mode) not in self._textures:
            pixels = self.assets.texture(path, mode)
            mean = float(((pixels[..., :3] / 255.0) ** GAMMA).mean())
            self._textures[path, mode] = self._upload(pixels), mean
        return self._textures[path, mode]

    def program(self, material: Material, stage: str) -> Any:
        """Return the compiled program of a material, see `shaders.surface_program`."""
        if (material, stage) not in self._programs:
            vertex, fragment = shaders.surface_program(material, stage, self.look_version)
            self._programs[material, stage] = self.context.program(vertex, fragment)
        return self._programs[material, stage]

    # What belongs to one scene.

    def _scene_uniforms(self, scene: Scene, assembly: Assembly, clay: Color | None) -> dict[str, Any]:
        """Return what all materials of a scene share."""
        skin, beard, light, camera = scene.skin, scene.beard, scene.light, assembly.camera
        directions = np.array(light.directions, np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        key = directions[:3].mean(0)
        # The mixed textures are brought to the tone that the skin is to have.
        textures = [number % len(self.assets.skins) for number in skin.textures]
        logs = np.log(self.assets.skin_means[textures] + DARK) * np.array(skin.mix)[:, None]
        gain = np.array(skin.tone) / np.exp(logs.sum(0) * skin.contrast)
        chin = 1.0 if beard.kind == "moustache" else beard.chin
        buzz = scene.hair.kind == "buzz"
        return {
            "eye": camera.position,
            "view_projection": np.ascontiguousarray(camera.view_projection.T),
            "crop": np.ascontiguousarray(camera.crop.T),
            "light_dir": directions,
            "light_color": np.array(light.colors, np.float32) * scene.exposure,
            "light_matrix": np.array([_light_matrix(z) for z in directions[:SHADOWED]]),
            "key_dir": key / np.linalg.norm(key),
            "ground": np.array(light.ground) * scene.exposure,
            "skin_layers": tuple(textures),
            "skin_shares": skin.mix,
            "skin_gain": gain,
            "skin_contrast": skin.contrast,
            "lip_color": skin.lip_color,
            "lip_mix": skin.lip_mix,
            "lid_color": skin.lid_color,
            "lid_mix": skin.lid_mix,
            "wrinkles": skin.wrinkles,
            "oil": skin.oil,
            "freckles": skin.freckles,
            "blush": skin.blush,
            "hair_color": _greyed(scene.hair_color, scene.grey),
            "scalp_mix": 0.9 if buzz else 0.0 if scene.hair.kind == "bald" else 0.98,
            "buzz": float(buzz),
            "beard": (beard.sides, chin, beard.paint, beard.cap),
            "beard_color": _greyed(scene.beard_color, scene.grey),
            "clay": (*(clay or (0.0, 0.0, 0.0)), float(clay is not None)),
            "tex": UNIT_TEXTURE,
            "skins": UNIT_SKINS,
            "masks": UNIT_MASKS,
            "wrinkle_map": UNIT_WRINKLES,
            "shadow_map": UNIT_SHADOW,
        }

    def _draw_shadows(self, meshes: list[Mesh], uniforms: Mapping[str, Any]) -> None:
        self.context.enable(self.gl.DEPTH_TEST)
        self.context.disable(self.gl.BLEND)
        target, side = self.to_shadows, SHADOW_SIZE
        target.use()
        target.viewport = (0, 0, side * TILES_X, side * TILES_Y)
        target.clear(depth=1.0)
        uncropped = np.eye(3, dtype=np.float32)
        for mesh in meshes:
            if not mesh.casts_shadow:
                continue
            strands = mesh.part.material is Material.STRAND
            count = int(len(mesh.part.triangles) * SHADOW_SHARE_OF_STRANDS) * 3 if strands else -1
            for i in range(SHADOWED):
                target.viewport = ((i % TILES_X) * side, (i // TILES_X) * side, side, side)
                mesh.draw("depth", count, view_projection=uniforms["light_matrix"][i], crop=uncropped)

    def _draw_picture(
        self, meshes: list[Mesh], scene: Scene, assembly: Assembly, backdrop: np.ndarray
    ) -> np.ndarray:
        """Return linear light (H, W, 3) at the size of the buffers."""
        context, gl = self.context, self.gl
        context.enable(gl.DEPTH_TEST)
        context.disable(gl.BLEND)
        context.depth_func = "<="
        see_through = (Material.CARD, Material.LENS)
        solid = [mesh for mesh in meshes if mesh.part.material not in see_through]
        # Depth first, so that only what is seen is shaded.
        self.to_surfaces.use()
        self.to_surfaces.clear(0, 0, 0, 0, depth=1.0)
        self.to_surfaces.color_mask = [(False,) * 4] * 2
        for mesh in solid:
            mesh.draw("depth")
        self.to_surfaces.color_mask = [(True,) * 4] * 2
        for mesh in solid:
            mesh.draw("shade")
        context.disable(gl.DEPTH_TEST)
        self._scatter(scene, assembly)
        self.backdrop.write(np.ascontiguousarray(backdrop[::-1]).astype("f2").tobytes())
        self.to_result.use()
        for texture, name, unit in (
            (self.diffuse, "diffuse", UNIT_TEXTURE),
            (self.gloss, "specular", UNIT_GLOSS),
            (self.backdrop, "backdrop", UNIT_BACKDROP),
        ):
            texture.use(unit)
            self.compose[name].value = unit
        self.compose_pass.render(gl.TRIANGLE_STRIP)
        # What is seen through comes last: brows and lashes, then lenses.
        context.enable(gl.DEPTH_TEST)
        context.enable(gl.BLEND)
        context.blend_func = gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA
        self.onto_result.use()
        self.onto_result.depth_mask = False
        for material in see_through:
            for mesh in meshes:
                if mesh.part.material is material:
                    mesh.draw("shade")
        self.onto_result.depth_mask = True
        context.disable(gl.BLEND)
        return self._read(self.to_result)[..., :3]

    def _scatter(self, scene: Scene, assembly: Assembly) -> None:
        """Blur the diffuse light of the skin in place: it leaves the skin beside where it came in."""
        crop, distance = assembly.camera.crop, scene.camera_distance
        radius = float(SCATTER_RADIUS * np.hypot(crop[0, 0], crop[0, 1]) * 1.6 / 2)  # of the picture's side
        # Differences of the depth buffer into world units: near and far plane lie 4 before and 5 behind the face.
        depth_scale = distance * distance / (2 * (distance + 5) * (distance - 4) / 9.0) / SCATTER_DEPTH * 0.5
        self.scatter["depth_scale"].value = float(depth_scale)
        self.scatter["diffuse"].value, self.scatter["depth"].value = UNIT_TEXTURE, UNIT_DEPTH
        self.depth.use(UNIT_DEPTH)
        box = self._skin_box(assembly, int(radius * self.side) + 2)
        self.to_scattered.use()
        self.to_scattered.clear(0, 0, 0, 0, viewport=box)
        passes = (
            (self.to_scattered, self.diffuse, (radius, 0.0)),
            (self.to_diffuse, self.scattered, (0.0, radius)),
        )
        for target, source, direction in passes:
            target.use()
            target.scissor = box
            source.use(UNIT_TEXTURE)
            self.scatter["direction"].value = direction
            self.scatter_pass.render(self.gl.TRIANGLE_STRIP)
            target.scissor = None

    def _skin_box(self, assembly: Assembly, margin: int) -> tuple[int, int, int, int]:
        """Return the rectangle of the skin (x, y, width, height) in px of the buffers, origin bottom left."""
        skin = assembly.parts[0]
        plane = assembly.camera.project(skin.positions[np.unique(skin.triangles)])
        pixels = (plane * 0.5 + 0.5) * self.side
        low = np.clip(pixels.min(0) - margin, 0, self.side - 1).astype(int)
        high = np.clip(pixels.max(0) + margin, 1, self.side).astype(int)
        width, height = np.maximum(high - low, 1)
        return int(low[0]), int(low[1]), int(width), int(height)

    def _draw_buffers(self, meshes: list[Mesh]) -> Buffers:
        context, size = self.context, (self.side, self.side)
        if self.to_buffers is None:
            targets = [context.texture(size, 4, dtype="f2") for _ in range(2)]
            self.to_buffers = context.framebuffer(targets, context.depth_renderbuffer(size))
        context.enable(self.gl.DEPTH_TEST)
        context.disable(self.gl.BLEND)
        self.to_buffers.use()
        self.to_buffers.clear(0, 0, 0, 0, depth=1.0)
        for mesh in meshes:
            if mesh.part.material is not Material.LENS or mesh.part.uniforms["opacity"] > 0.5:
                mesh.draw("buffers")
        first, second = (self._read(self.to_buffers, attachment) for attachment in range(2))
        labels = np.rint(first[..., 3]).astype(np.uint8)
        return Buffers(first[..., :3], labels, second[..., :3], second[..., 3])

    def _read(self, target: Any, attachment: int = 0) -> np.ndarray:
        data = target.read(components=4, attachment=attachment, dtype="f2")
        pixels = np.frombuffer(data, np.float16).reshape(self.side, self.side, 4)
        return pixels[::-1].astype(np.float32)


def _light_matrix(direction: np.ndarray) -> np.ndarray:
    """Return the parallel projection (4, 4, transposed for OpenGL) of a light that shines from ``direction``."""
    x = np.cross([0, 1, 0] if abs(direction[1]) < 0.95 else [1, 0, 0], direction)
    x /= np.linalg.norm(x)
    axes = np.stack([x, np.cross(direction, x), direction]).astype(np.float32)
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3], matrix[:3, 3] = axes / SHADOW_RADIUS, -(axes @ SHADOW_CENTER) / SHADOW_RADIUS
    matrix[2] *= SHADOW_DEPTH
    return matrix.T


def _greyed(color: Color, grey: float) -> np.ndarray:
    """Return a hair colour (3,) mixed with grey."""
    return np.array(color) * (1 - GREY_SHARE * grey) + OLD_GREY * GREY_SHARE * grey
