"""A scene as posed meshes with their materials, ready to be drawn; nothing here needs OpenGL."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from limner.synth.assets import EYES, LANDMARKS, TEETH, TONGUE, Assets
from limner.synth.geometry import (
    Camera,
    Morpher,
    Pose,
    frame,
    smoothstep,
    spectacles,
    vertex_normals,
)
from limner.synth.hair import HairGrower
from limner.synth.sample import age_in_years
from limner.synth.scene import Scene
from limner.synth.shaders import Material
from limner.synth.strands import Ribbons, sample_texture

LABELS = {
    "background": 0,
    "skin": 1,
    "brows": 2,
    "eye_left": 4,
    "eye_right": 5,
    "mouth_inside": 6,
    "lips": 7,
    "ears": 8,
    "beard": 9,
    "hair": 10,
    "clothes": 12,
    "glasses": 13,
}
MASKS, WRINKLES = "skins/masks.png", "skins/wrinkles.jpg"
LASH_COLOR, LENS_TINT = (0.012, 0.009, 0.008), (0.02, 0.02, 0.025)
LENS_OPACITY, SUN_OPACITY = 0.05, 0.85
IRIS_AHEAD = 0.14  # of the centre of the eye: the landmark lies on its surface
TIP_HEIGHTS = (7.3, 6.0)  # where hair begins and ends to take the colour of its tips


@dataclasses.dataclass(frozen=True)
class Part:
    """One mesh with its material.

    Attributes:
        name, material, label: label is a value of `LABELS`.
        positions, normals: (n, 3), posed.
        uv: (n, 2).
        triangles: (t, 3).
        along: (n, 4) region weights of skin, or `Ribbons.along` of strands.
        rest: (n, 3) place on the head at rest, or tangent of strands; None for the position.
        texture: path and mode of its texture, see `Assets.texture`.
        own_colors: the texture is not brought to the tint's brightness.
        casts_shadow: whether it does.
        uniforms: further inputs of the material's shader.
    """

    name: str
    material: Material
    label: int
    positions: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray
    along: np.ndarray | None = None
    rest: np.ndarray | None = None
    texture: tuple[str, str] | None = None
    own_colors: bool = False
    casts_shadow: bool = True
    uniforms: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Assembly:
    """All parts of a scene, the camera, and landmarks as points of the world; the skin is the first part."""

    parts: tuple[Part, ...]
    camera: Camera
    landmarks: dict[str, np.ndarray]

    def landmarks_px(self, size: int) -> dict[str, tuple[float, float]]:
        """Return landmarks (x, y) in px of a picture of that side, origin at its top left corner."""
        points = self.camera.to_pixels(np.stack(list(self.landmarks.values())), size)
        return {name: (float(x), float(y)) for name, (x, y) in zip(self.landmarks, points, strict=True)}


class Assembler:
    """Turns scenes into parts.

    Args:
        assets: what heads are made of.
    """

    def __init__(self, assets: Assets):
        self.assets = assets
        self.morpher = Morpher(assets)
        scalp_mask = assets.texture(MASKS, "RGBA")[..., 0] / 255.0
        scalp = np.zeros(len(assets.vertices), np.float32)
        np.maximum.at(scalp, assets.body_vertex_of, sample_texture(scalp_mask, assets.body_uv))
        self.hair = HairGrower(assets, scalp, scalp_mask, self.morpher.regions[:, 2:5])
        self._visible_body: dict[str | None, np.ndarray] = {}

    def assemble(self, scene: Scene, exaggeration: Mapping[str, float] | None = None) -> Assembly:
        """Return the scene's parts.

        Args:
            scene: what to build.
            exaggeration: detail target -> amount on top of the scene's shape.
        """
        assets, landmarks = self.assets, self.assets.landmarks
        neutral, head = self.morpher.shape(scene, exaggeration)
        pose = Pose(scene, self._find_pivot(neutral))
        normals = vertex_normals(head, assets.triangles)
        posed = pose.points(head)
        garment = _numbered(assets.clothes, scene.garment)
        parts = [self._body(scene, posed, pose.vectors(normals, head), garment)]
        eyes, middles = self._eyes(scene, head, neutral, pose)
        parts += eyes
        parts += self._fitted(scene, head, neutral, pose, garment)
        parts += self._strands(scene, head, normals, neutral, pose)
        parts += self._cards(scene, head, neutral, pose)
        parts += self._glasses(scene, neutral, pose)
        forward = pose.head @ np.array([0, 0, IRIS_AHEAD], np.float32)
        right, left = middles["right"] + forward, middles["left"] + forward
        mouth = posed[landmarks["mouth_r"]], posed[landmarks["mouth_l"]]
        camera = frame((right, left), mouth, scene.camera_distance)
        marks = {"eye_right": right, "eye_left": left} | {name: posed[landmarks[name]] for name in LANDMARKS}
        return Assembly(tuple(parts), camera, marks)

    def _find_pivot(self, neutral: np.ndarray) -> np.ndarray:
        """Return the point in the neck about which the head turns."""
        assets = self.assets
        height = neutral[assets.landmarks["chin"], 1] - 0.1
        body = neutral[assets.body_vertex_of]
        depth = body[np.abs(body[:, 1] - height) < 0.2, 2].mean() * 0.5
        return np.array([0, height, depth], np.float32)

    def _body(self, scene: Scene, posed: np.ndarray, normals: np.ndarray, garment: str | None) -> Part:
        assets = self.assets
        if garment not in self._visible_body:
            hidden = np.zeros(len(posed), bool)
            below = assets.proxies[garment].hidden if garment else None
            if below is not None:
                hidden[below] = True
            self._visible_body[garment] = assets.body_triangles[~hidden[assets.triangles].all(1)]
        regions = self.morpher.regions[:, :4].copy()
        if scene.beard.kind == "moustache":
            regions[:, 2], regions[:, 3] = 0, self.morpher.regions[:, 4]
        vertex_of = assets.body_vertex_of
        return Part(
            "body",
            Material.SKIN,
            LABELS["skin"],
            posed[vertex_of],
            normals[vertex_of],
            assets.body_uv,
            self._visible_body[garment],
            along=regions[vertex_of],
            rest=assets.vertices[vertex_of],
        )

    def _eyes(
        self, scene: Scene, head: np.ndarray, neutral: np.ndarray, pose: Pose
    ) -> tuple[list[Part], dict[str, np.ndarray]]:
        """Return both eyeballs, and side -> the middle of its eyeball."""
        proxy = self.assets.proxies[EYES]
        fitted = proxy.fit(head, neutral)
        posed = pose.points(fitted)
        normals = vertex_normals(posed, proxy.vertex_of[proxy.triangles])
        drawn = posed[proxy.vertex_of]
        x = fitted[proxy.vertex_of][:, 0][proxy.triangles[:, 0]]
        iris = _numbered(self.assets.irises, scene.iris)
        parts, middles = [], {}
        for side, sign in (("left", 1), ("right", -1)):
            triangles = proxy.triangles[x * sign > 0]
            middles[side] = drawn[np.unique(triangles)].mean(0)
            parts.append(
                Part(
                    f"eye_{side}",
                    Material.EYE,
                    LABELS[f"eye_{side}"],
                    drawn,
                    normals[proxy.vertex_of],
                    proxy.uv,
                    triangles,
                    texture=(f"eyes/{iris}.png", "RGBA"),
                    uniforms={"eye_center": middles[side], "tint": scene.iris_tint},
                )
            )
        return parts, middles

    def _proxy(
        self,
        name: str,
        material: Material,
        label: str,
        on: tuple[np.ndarray, np.ndarray, Pose],
        texture: tuple[str, str],
        *,
        lift: float = 0.0,
        own_colors: bool = False,
        **uniforms: Any,
    ) -> list[Part]:
        """Return a fitted mesh, or nothing where the assets have none of that name.

        Args:
            name: of the proxy.
            material, label, texture, own_colors, uniforms: as in `Part`.
            on: head to follow, the neutral one, and the pose.
            lift: how far the part near the middle of the face is moved up.
        """
        proxy = self.assets.proxies.get(name)
        if proxy is None:
            return []
        head, neutral, pose = on
        fitted = proxy.fit(head, neutral)
        fitted[:, 1] += lift * (1 - smoothstep(np.abs(fitted[:, 0]), 0.10, 0.50))
        posed = pose.points(fitted)
        normals = vertex_normals(posed, proxy.vertex_of[proxy.triangles])
        part = Part(
            name,
            material,
            LABELS[label],
            posed[proxy.vertex_of],
            normals[proxy.vertex_of],
            proxy.uv,
            proxy.triangles,
            texture=texture,
            own_colors=own_colors,
            uniforms=uniforms,
        )
        return [part]

    def _fitted(
        self, scene: Scene, head: np.ndarray, neutral: np.ndarray, pose: Pose, garment: str | None
    ) -> list[Part]:
        """Return teeth, tongue and garment."""
        inside = (head, neutral, pose)
        parts = self._proxy(
            TEETH,
            Material.PLAIN,
            "mouth_inside",
            inside,
            ("mouth/teeth.jpg", "RGB"),
            own_colors=True,
            tint=(2.0, 2.0, 2.05),
            roughness=0.22,
        )
        parts += self._proxy(
            TONGUE,
            Material.PLAIN,
            "mouth_inside",
            inside,
            ("mouth/tongue.jpg", "RGB"),
            own_colors=True,
            tint=(0.8, 0.72, 0.72),
            roughness=0.3,
        )
        if garment:
            parts += self._proxy(
                garment,
                Material.PLAIN,
                "clothes",
                (neutral, neutral, pose),
                (f"clothes/{garment}.jpg", "RGB"),
                tint=scene.garment_color,
                texture_mix=scene.garment_mix,
                roughness=0.7,
            )
        return parts

    def _strands(
        self, scene: Scene, head: np.ndarray, normals: np.ndarray, neutral: np.ndarray, pose: Pose
    ) -> list[Part]:
        """Return hair and beard."""
        hair = self.hair.grow_hair(scene.hair, neutral, scene.seed)
        beard = self.hair.grow_beard(scene.beard, head, normals, scene.seed)
        parts = []
        if hair is not None:
            colors = {
                "hair_color": scene.hair_color,
                "tip_color": scene.tip_color,
                "tip_heights": TIP_HEIGHTS,
            }
            parts.append(_strand_part("hair", hair, pose, scene.grey, colors | {"hair_gloss": 0.8}))
        if beard is not None:
            color = scene.beard_color
            colors = {"hair_color": color, "tip_color": color, "tip_heights": (1.0, 0.0), "hair_gloss": 0.35}
            part = _strand_part("beard", beard, pose, scene.grey, colors)
            parts.append(dataclasses.replace(part, casts_shadow=scene.beard.kind == "full"))
        return parts

    def _cards(self, scene: Scene, head: np.ndarray, neutral: np.ndarray, pose: Pose) -> list[Part]:
        """Return brows and lashes."""
        parts, on = [], (head, neutral, pose)
        brow, lash = (
            _numbered(self.assets.brows, scene.brow - 1),
            _numbered(self.assets.lashes, scene.lash - 1),
        )
        if brow:
            parts += self._proxy(
                brow,
                Material.CARD,
                "brows",
                on,
                (f"brows/{brow}.png", "L"),
                lift=scene.brow_lift,
                tint=scene.brow_color,
                texture_mix=scene.brow_mix * 1.5,
            )
        if lash:
            parts += self._proxy(
                lash,
                Material.CARD,
                "eye_left",
                on,
                (f"lashes/{lash}.png", "L"),
                tint=LASH_COLOR,
                texture_mix=scene.lash_mix * 1.1,
            )
        return parts

    def _glasses(self, scene: Scene, neutral: np.ndarray, pose: Pose) -> list[Part]:
        glasses, assets = scene.glasses, self.assets
        if glasses is None:
            return []
        left, right = neutral[assets.left_eye].mean(0), neutral[assets.right_eye].mean(0)
        (vertices, triangles), lenses = spectacles(
            glasses, left, right, float(neutral[assets.landmarks["nose"], 2])
        )
        opacity = SUN_OPACITY if glasses.sun else LENS_OPACITY
        rim = {"tint": glasses.color, "texture_mix": 0.0, "roughness": 0.25}
        parts = [_untextured("frame", Material.PLAIN, pose.points(vertices), triangles, rim)]
        for i, (vertices, triangles) in enumerate(lenses):
            lens = {"tint": LENS_TINT, "opacity": opacity}
            parts.append(_untextured(f"lens{i}", Material.LENS, pose.points(vertices), triangles, lens))
        return parts


def _numbered(names: tuple[str, ...], number: int) -> str | None:
    """Return the name of that number, round again where there are fewer; None where there is none."""
    return names[number % len(names)] if names else None


def _untextured(
    name: str, material: Material, positions: np.ndarray, triangles: np.ndarray, uniforms: dict[str, Any]
) -> Part:
    uv = np.zeros((len(positions), 2), np.float32)
    normals = vertex_normals(positions, triangles)
    return Part(name, material, LABELS["glasses"], positions, normals, uv, triangles, uniforms=uniforms)


def _strand_part(name: str, ribbons: Ribbons, pose: Pose, grey: float, uniforms: dict[str, Any]) -> Part:
    at = ribbons.positions
    return Part(
        name,
        Material.STRAND,
        LABELS[name],
        pose.points(at),
        pose.vectors(ribbons.normals, at),
        np.column_stack([np.zeros(len(at)), at[:, 1]]),  # v: height on the head at rest
        ribbons.triangles,
        along=ribbons.along,
        rest=pose.vectors(ribbons.tangents, at),
        uniforms={"grey": grey, **uniforms},
    )


def describe(scene: Scene, assembly: Assembly, size: int) -> dict[str, Any]:
    """Return attributes and landmarks of a portrait as plain values.

    Landmarks are (x, y) in px of a picture of that side, origin at its top left corner; left and right are the
    subject's.
    """
    glasses = "none" if scene.glasses is None else "sun" if scene.glasses.sun else "clear"
    return {
        "seed": scene.seed,
        "sex": "female" if scene.female else "male",
        "gender": round(scene.gender, 3),
        "age": round(scene.age, 3),
        "age_years": round(age_in_years(scene.age), 1),
        "race": [round(share, 3) for share in scene.ancestry],
        "melanin": round(scene.skin.melanin, 3),
        "yaw": round(scene.yaw, 2),
        "pitch": round(scene.pitch, 2),
        "roll": round(scene.roll, 2),
        "expression": scene.expression,
        "hair_style": scene.hair.name,
        "hair_colour": scene.hair_name,
        "grey": round(scene.grey, 2),
        "fringe": scene.hair.fringe > 0,
        "beard": scene.beard.kind,
        "glasses": glasses,
        "eye": scene.iris,
        "light": scene.light.kind,
        "backdrop": scene.backdrop.kind,
        "landmarks": {
            name: [round(x, 2), round(y, 2)] for name, (x, y) in assembly.landmarks_px(size).items()
        },
    }
