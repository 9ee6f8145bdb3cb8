"""The classes of label maps: ours (of the synthetic heads), pSp's 19 (of CelebAMask-HQ), and how they meet.

This is the committed table.  Every class of one scheme names the classes of the other that it stands for: the first is
what it becomes, and where several become one they are merged (`merged` lists them).

Convention: left and right of our classes are the subject's, so that the left eye lies on the right of the picture; those
of CelebAMask-HQ are as seen in the picture, like the landmarks of CelebA, from which it was made.
"""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelClass:
    """One class of a label map.

    Attributes:
        name: as users and messages know it.
        index: its value in an indexed map.
        color: RGB in a coloured map.
        becomes: name of the class of the other scheme that it turns into.
        mirror: name of the class that it is in the mirrored picture; empty for itself.
    """

    name: str
    index: int
    color: Color
    becomes: str
    mirror: str = ""


OURS = (
    LabelClass("background", 0, (0, 0, 0), "background"),
    LabelClass("skin", 1, (204, 160, 120), "skin"),
    LabelClass("brows", 2, (90, 50, 30), "l_brow"),
    LabelClass("eye_left", 4, (60, 120, 255), "r_eye", "eye_right"),
    LabelClass("eye_right", 5, (60, 200, 255), "l_eye", "eye_left"),
    LabelClass("mouth_inside", 6, (255, 255, 255), "mouth"),
    LabelClass("lips", 7, (220, 40, 60), "u_lip"),
    LabelClass("ears", 8, (255, 160, 60), "l_ear"),
    LabelClass("beard", 9, (70, 70, 90), "skin"),
    LabelClass("hair", 10, (120, 40, 160), "hair"),
    LabelClass("clothes", 12, (40, 160, 90), "cloth"),
    LabelClass("glasses", 13, (0, 255, 200), "eye_g"),
)
"""The classes of `limner.synth`, with the numbers and colours of its label maps."""

CELEBA = (
    LabelClass("background", 0, (0, 0, 0), "background"),
    LabelClass("skin", 1, (204, 0, 0), "skin"),
    LabelClass("nose", 2, (76, 153, 0), "skin"),
    LabelClass("eye_g", 3, (204, 204, 0), "glasses"),
    LabelClass("l_eye", 4, (51, 51, 255), "eye_right", "r_eye"),
    LabelClass("r_eye", 5, (204, 0, 204), "eye_left", "l_eye"),
    LabelClass("l_brow", 6, (0, 255, 255), "brows", "r_brow"),
    LabelClass("r_brow", 7, (255, 204, 204), "brows", "l_brow"),
    LabelClass("l_ear", 8, (102, 51, 0), "ears", "r_ear"),
    LabelClass("r_ear", 9, (255, 0, 0), "ears", "l_ear"),
    LabelClass("mouth", 10, (102, 204, 0), "mouth_inside"),
    LabelClass("u_lip", 11, (255, 255, 0), "lips"),
    LabelClass("l_lip", 12, (0, 0, 153), "lips"),
    LabelClass("hair", 13, (0, 0, 204), "hair"),
    LabelClass("hat", 14, (255, 51, 153), "hair"),
    LabelClass("ear_r", 15, (0, 204, 204), "ears"),
    LabelClass("neck_l", 16, (0, 51, 0), "clothes"),
    LabelClass("neck", 17, (255, 153, 51), "skin"),
    LabelClass("cloth", 18, (0, 204, 0), "clothes"),
)
"""The classes of CelebAMask-HQ in the order of pSp's 19 channels."""

SCHEMES = {"limner": OURS, "celeba": CELEBA}


def index_of(name: str, scheme: tuple[LabelClass, ...]) -> int:
    """Return the index of a class by its name."""
    return next(one.index for one in scheme if one.name == name)


def swaps(scheme: tuple[LabelClass, ...]) -> dict[int, int]:
    """Return index -> index in the mirrored picture, for the classes that change sides."""
    return {one.index: index_of(one.mirror, scheme) for one in scheme if one.mirror}


def merged(scheme: tuple[LabelClass, ...]) -> dict[str, tuple[str, ...]]:
    """Return class of the other scheme -> the classes of this one that become it, where there are several."""
    groups: dict[str, list[str]] = {}
    for one in scheme:
        groups.setdefault(one.becomes, []).append(one.name)
    return {name: tuple(names) for name, names in groups.items() if len(names) > 1}
