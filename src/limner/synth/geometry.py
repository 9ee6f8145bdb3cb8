"""Meshes on the CPU: identity and expression, head pose, spectacles, facial regions, the camera of the crop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from limner.synth.assets import DETAIL, FACE_UNIT, MACRO, Assets
from limner.synth.scene import Glasses, Scene

EYE_DISTANCE = 0.6155  # between the centres of the eyes, world units
EYE_MIDDLE = np.array([0, 7.284, 1.245], np.float32)
ANCESTRIES = ("caucasian", "asian", "african")  # names of MakeHuman's macro targets
MOUTH_STRETCH = (0.8, 1.08)  # how far the lower face may be compressed or stretched
REGIONS = ("freckles", "blush", "beard_sides", "beard_chin", "moustache")  # columns of `face_regions`
LENS_SIDES, ARM_POINTS, BRIDGE_POINTS = 40, 14, 10  # detail of spectacles


def smoothstep(x: np.ndarray | float, low: float, high: float) -> np.ndarray:
    """Return the smooth ramp from 0 at ``low`` to 1 at ``high``; it falls where ``low`` is the larger one."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def rotation(axis: str, angle_deg: float) -> np.ndarray:
    """Return the 3x3 rotation about world axis ``x``, ``y`` or ``z``, right-handed."""
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis], np.float32)


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return unit normals (n, 3), each the mean of its triangles' weighted with their areas."""
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    faces = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices)
    for axis in range(3):
        total = np.zeros(len(vertices))
        for corner in range(3):
            total += np.bincount(triangles[:, corner], faces[:, axis], len(vertices))
        normals[:, axis] = total
    return (normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)).astype(np.float32)


def age_weights(age: float) -> dict[str, float]:
    """Return shares of the ages that have targets; ``age`` is 0.1875 for a child, 0.5 a young adult, 1 old."""
    if age < 0.5:
        young = max(0.0, (age - 0.1875) * 3.2)
        return {"child": 1 - young, "young": young}
    old = age * 2 - 1
    return {"young": 1 - old, "old": old}


class Morpher:
    """Turns a scene's identity and expression into vertices.

    Args:
        assets: base head and targets.
    """

    def __init__(self, assets: Assets):
        self.assets = assets
        self.regions = face_regions(assets)

    def shape(
        self, scene: Scene, exaggeration: Mapping[str, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the head's vertices (n, 3) without and with its expression.

        Args:
            scene: whose head.
            exaggeration: detail target -> amount on top of the scene's, as looks ask for.
        """
        assets = self.assets
        vertices = assets.vertices.copy()
        for name, amount in macro_amounts(scene).items():
            assets.add_target(vertices, MACRO + name, amount)
        details = dict(scene.shape)
        for name, amount in (exaggeration or {}).items():
            details[name] = details.get(name, 0) + amount
        for name, amount in details.items():
            assets.add_target(vertices, DETAIL + name, amount)
        # Every head is brought to one distance and place of the eyes.
        left, right = vertices[assets.left_eye].mean(0), vertices[assets.right_eye].mean(0)
        scale = EYE_DISTANCE / np.linalg.norm(left - right)
        vertices = ((vertices - (left + right) / 2) * scale + EYE_MIDDLE).astype(np.float32)
        # The lower face is compressed or stretched, so that eye-to-mouth over eye-to-eye is as in photographs.
        corners = [assets.landmarks["mouth_l"], assets.landmarks["mouth_r"]]
        drop = EYE_MIDDLE[1] - vertices[corners, 1].sum() / 2
        stretch = np.clip(scene.mouth_ratio * EYE_DISTANCE / drop, *MOUTH_STRETCH)
        top = EYE_MIDDLE[1] - 0.02
        below = vertices[:, 1] < top
        vertices[:, 1] = np.where(below, top + (vertices[:, 1] - top) * stretch, vertices[:, 1])
        neutral = vertices.copy()
        for name, amount in scene.face_units.items():
            assets.add_target(vertices, FACE_UNIT + name, amount)
        return neutral, vertices


def macro_amounts(scene: Scene) -> dict[str, float]:
    """Return macro target -> amount: products of the shares of sex, age, ancestry, muscle and weight."""
    muscles = _extremes(scene.muscle, "muscle")
    weights = _extremes(scene.weight, "weight")
    amounts = {}
    for sex, of_sex in (("male", scene.gender), ("female", 1 - scene.gender)):
        for age, of_age in age_weights(scene.age).items():
            for ancestry, share in zip(ANCESTRIES, scene.ancestry, strict=True):
                amounts[f"{ancestry}-{sex}-{age}"] = of_sex * of_age * share
            for muscle, of_muscle in muscles.items():
                for weight, of_weight in weights.items():
                    name = f"universal-{sex}-{age}-{muscle}-{weight}"
                    amounts[name] = of_sex * of_age * of_muscle * of_weight
    return amounts


def _extremes(value: float, name: str) -> dict[str, float]:
    shares = {f"max{name}": max(0.0, value * 2 - 1), f"min{name}": max(0.0, 1 - value * 2)}
    return {**shares, f"average{name}": 1 - sum(shares.values())}


def face_regions(assets: Assets) -> np.ndarray:
    """Return weights (n, 5) of `REGIONS` for every vertex, measured on the head at rest."""
    vertices, landmarks = assets.vertices, assets.landmarks
    x, y, z = np.abs(vertices[:, 0]), vertices[:, 1], vertices[:, 2]
    corner, lip_top, lip_bottom = (vertices[landmarks[name]] for name in ("mouth_l", "lip_top", "lip_bot"))
    width, height = corner[0], corner[1]
    rise = np.clip(x - 0.42, 0, 0.6)
    jaw = (
        smoothstep(y - 0.35 * smoothstep(0.75 - z, 0, 0.8), 5.86, 6.12)
        * (1 - smoothstep(y, height - 0.12 + 0.95 * rise, height + 0.14 + 1.25 * rise))
        * smoothstep(z, 0.15, 0.4)
        * smoothstep(x, width * 0.55, width * 1.15)
    )
    moustache = (
        np.exp(-(((y - (lip_top[1] + 0.07)) / 0.075) ** 4))
        * (1 - smoothstep(x, width, width * 1.35))
        * smoothstep(z, 0.9, 1.1)
    )
    chin = (
        (1 - smoothstep(y, lip_bottom[1] - 0.06, lip_bottom[1] + 0.02))
        * smoothstep(y, 5.80, 6.0)
        * (1 - smoothstep(x, width * 0.75, width * 1.2))
        * smoothstep(z, 0.7, 1.0)
    )
    beside_mouth = (
        smoothstep(x, width * 0.9, width)
        * (1 - smoothstep(x, width * 1.3, width * 1.6))
        * np.exp(-(((y - height) / 0.2) ** 4))
        * (z > 0.8)
    )
    regions = np.zeros((len(vertices), len(REGIONS)), np.float32)
    regions[:, 0] = np.exp(-(((y - 7.0) / 0.28) ** 2) - (x / 0.55) ** 2) * (z > 0.9)
    regions[:, 1] = np.exp(-(((y - 6.95) / 0.22) ** 2) - ((x - 0.48) / 0.24) ** 2) * (z > 0.7)
    regions[:, 2] = np.clip(jaw + beside_mouth * 0.6, 0, 1)
    regions[:, 3] = np.clip(np.maximum(moustache, np.maximum(chin, beside_mouth)), 0, 1)
    regions[:, 4] = moustache
    return regions


class Pose:
    """Rotation of head and body about the neck; in between, the neck blends them.

    Args:
        scene: its angles.
        pivot: (3,) point in the neck.
    """

    def __init__(self, scene: Scene, pivot: np.ndarray):
        self.head = rotation("y", scene.yaw) @ rotation("x", -scene.pitch) @ rotation("z", scene.roll)
        self.body = rotation("y", scene.body_yaw)
        self.pivot = pivot

    def _share_of_head(self, y: np.ndarray) -> np.ndarray:
        return smoothstep(y, self.pivot[1] - 0.75, self.pivot[1] + 0.35)[:, None]

    def points(self, points: np.ndarray) -> np.ndarray:
        """Return points (n, 3) where the pose takes them."""
        return (self._turn(points - self.pivot, points) + self.pivot).astype(np.float32)

    def vectors(self, vectors: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return directions (n, 3) as the pose turns them, for the points ``at`` before the pose."""
        return self._turn(vectors, at).astype(np.float32)

    def _turn(self, vectors: np.ndarray, at: np.ndarray) -> np.ndarray:
        share = self._share_of_head(at[:, 1])
        return (vectors @ self.head.T) * share + (vectors @ self.body.T) * (1 - share)


def tube(
    path: np.ndarray, radius: float, *, sides: int = 8, closed: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Sweep a circle along a polyline (m, 3); return vertices and triangles."""
    path = np.asarray(path, np.float32)
    count = len(path)
    tangents = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True) + 1e-9
    up = np.array([0, 0, 1.0]) if abs(tangents[:, 2]).mean() < 0.7 else np.array([0, 1.0, 0])
    first = np.cross(tangents, up)
    first /= np.linalg.norm(first, axis=1, keepdims=True) + 1e-9
    second = np.cross(tangents, first)
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)[None, :, None]
    ring = first[:, None] * np.cos(angles) + second[:, None] * np.sin(angles)
    along = np.arange(count if closed else count - 1)
    i, j = (grid.ravel() for grid in np.meshgrid(along, np.arange(sides), indexing="ij"))
    next_i, next_j = (i + 1) % count, (j + 1) % sides
    corners = (i * sides + j, next_i * sides + j, next_i * sides + next_j, i * sides + next_j)
    quads = np.stack(corners, 1)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return (path[:, None] + ring * radius).reshape(-1, 3).astype(np.float32), triangles.astype(np.int32)


Mesh = tuple[np.ndarray, np.ndarray]  # vertices, triangles


def spectacles(
    glasses: Glasses, left: np.ndarray, right: np.ndarray, nose_z: float
) -> tuple[Mesh, list[Mesh]]:
    """Return the frame and the two lenses in front of eyes at ``left`` and ``right``, not yet posed."""
    eye_distance = left[0] - right[0]
    half_width, half_height = glasses.width * eye_distance, glasses.height * eye_distance
    front = max(nose_z - 0.3, left[2] + 0.36)
    height = (left[1] + right[1]) / 2 - 0.03
    angles = np.linspace(0, 2 * np.pi, LENS_SIDES, endpoint=False)
    power = 2.0 / glasses.squareness
    parts, lenses = [], []
    for middle in (left[0] * 1.05, right[0] * 1.05):
        side = np.sign(middle)
        # A superellipse, bent backwards towards the temple.
        x = middle + np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** power * half_width
        y = height + np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** power * half_height
        rim = np.stack([x, y, front - 0.2 * np.abs(x) ** 2], -1)
        parts.append(tube(rim, glasses.thickness))
        fan = np.array([(0, i + 1, (i + 1) % LENS_SIDES + 1) for i in range(LENS_SIDES)], np.int32)
        lenses.append((np.vstack([rim.mean(0)[None], rim]).astype(np.float32), fan))
        # The arm runs from the hinge to the ear.
        hinge = middle + side * half_width
        hinge_z = front - 0.2 * hinge**2
        t = np.linspace(0, 1, ARM_POINTS)
        arm = np.stack(
            [
                hinge + (side * 0.83 - hinge) * t + side * np.sin(t * 3.14) * 0.04,
                np.full(ARM_POINTS, height + 0.07),
                hinge_z + (0.2 - hinge_z) * t,
            ],
            -1,
        )
        parts.append(tube(arm, glasses.thickness * 0.9, closed=False))
    t = np.linspace(-1, 1, BRIDGE_POINTS)
    inner = left[0] * 1.05 - half_width
    bridge = np.stack(
        [t * inner, height + 0.06 + 0.04 * (1 - t * t), np.full(BRIDGE_POINTS, front - 0.01)], -1
    )
    parts.append(tube(bridge, glasses.thickness, closed=False))
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    vertices = np.vstack([part for part, _ in parts])
    triangles = np.vstack([part + start for (_, part), start in zip(parts, starts, strict=False)])
    return (vertices, triangles), lenses


@dataclasses.dataclass(frozen=True)
class Camera:
    """A perspective camera with FFHQ's crop.

    Attributes:
        position: (3,) in world units.
        view_projection: (4, 4) world to clip space, for column vectors.
        crop: (3, 3) turns the projected plane into the crop, whose sides are -1 and 1.
    """

    position: np.ndarray
    view_projection: np.ndarray
    crop: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return points (n, 3) in the crop's plane, (n, 2): x to the right, y up, -1 to 1."""
        clip = np.column_stack([points, np.ones(len(points))]) @ self.view_projection.T
        plane = np.column_stack([clip[:, :2] / clip[:, 3:], np.ones(len(points))])
        return (plane @ self.crop.T)[:, :2]

    def to_pixels(self, points: np.ndarray, size: int) -> np.ndarray:
        """Return points (n, 3) in px of a picture of that side, (n, 2): x to the right, y down from the corner."""
        plane = self.project(points)
        return np.column_stack([(plane[:, 0] + 1) / 2 * size, (1 - plane[:, 1]) / 2 * size])


def frame(
    eyes: tuple[np.ndarray, np.ndarray], mouth: tuple[np.ndarray, np.ndarray], distance: float
) -> Camera:
    """Return the camera that sees a posed face as FFHQ crops it.

    Args:
        eyes: (right, left) eye of the subject, (3,) each.
        mouth: (right, left) corner.
        distance: of the camera from the face.

    Convention: half the side is max(2 |eye to eye|, 1.8 |eyes to mouth|) in the picture, the centre lies 0.1 of the way
        from the eyes to the mouth, and the crop turns with the face.
    """
    middle = (eyes[0] + eyes[1]) / 2 * 0.6 + (mouth[0] + mouth[1]) / 2 * 0.4
    position = middle + np.array([0, 0, distance], np.float32)
    near, far, focal = distance - 4.0, distance + 5.0, distance / 1.6
    view = np.eye(4, dtype=np.float32)
    view[:3, 3] = -position
    projection = np.zeros((4, 4), np.float32)
    projection[0, 0] = projection[1, 1] = focal
    projection[2, 2] = -(far + near) / (far - near)
    projection[2, 3] = -2 * far * near / (far - near)
    projection[3, 2] = -1
    plain = Camera(position, projection @ view, np.eye(3, dtype=np.float32))
    eye_right, eye_left, mouth_right, mouth_left = plain.project(np.stack([*eyes, *mouth]))
    eye_middle, eye_to_eye = (eye_right + eye_left) / 2, eye_left - eye_right
    eye_to_mouth = (mouth_right + mouth_left) / 2 - eye_middle
    x = eye_to_eye + np.array([-eye_to_mouth[1], eye_to_mouth[0]])
    x /= np.hypot(*x)
    x *= max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    turn = np.linalg.inv(np.stack([x, [-x[1], x[0]]], 1))
    crop = np.eye(3, dtype=np.float32)
    crop[:2, :2], crop[:2, 2] = turn, -turn @ (eye_middle + eye_to_mouth * 0.1)
    return Camera(position, plain.view_projection.astype(np.float32), crop)
