"""Options of learning a style and of putting one on a photo (imports no torch)."""

from __future__ import annotations

import dataclasses

from limner.options import Options, knob

NOISE = ("constant", "random", "none")
BLENDS = ("weights", "features")
FIXED = ("content", "structure", "color")
LOSSES = ("discriminator", "lpips", "vgg")


@dataclasses.dataclass(frozen=True)
class JojoganOptions(Options):
    """How a style is learned from one or more pictures.

    Source: Chong and Forsyth 2021, "JoJoGAN: One Shot Face Stylization" (arXiv 2112.11641); defaults as published.
    Differs: noise is constant by default, so that results repeat; the weights are averaged; rows, feature layers and loss
    have counterparts for small generators, where the published ones would mix or compare next to nothing.
    """

    steps: int = knob(200, lo=1, hi=20_000, step=1)
    """Number of training steps; more follow the style picture more closely."""
    style_mix: float = knob(1.0, lo=0.0, hi=1.0, step=0.05)
    """How far the masked rows of the style picture's code are replaced by random ones while learning: 1 spreads the
    style over every colour and texture, 0 memorises the one picture."""
    mask: str = knob("auto")
    """Layers that are mixed, as a layer mask: rows of w+ (7-17, 64px-, fine, 5=0.5), or vectors of S space with toRGB
    apart (7-17.conv, s:8-, s:32.rgb, fine,no-rgb); auto takes the published rows (7 and up) from 128 px, and the rows of
    the two largest resolutions below that."""
    follow: str = knob("all")
    """Layers of a style picture's code that follow its inversion, as a layer mask in which shape, eyes and texture stand
    for rows; the others take the mean code of 10,000 faces. For pictures far from any face (animals, masks): none, or
    eyes, or shape=0.5."""
    keep_color: bool = knob(False)
    """Learn shapes and strokes but leave colours to the photo: auto then mixes fewer rows (9, 11, 15, 16, 17 at 1024)."""
    feature_layers: tuple[int, ...] | None = knob(None)
    """Discriminator stages that are compared, 0 being its first layer; by default 1, 3, 4, 5 from 256 px and those of
    8 px and more below that. With the loss vgg, numbers of the trunk's maps, by default all."""
    feature_weights: tuple[float, ...] = knob(())
    """Weight of every compared stage; by default they count alike."""
    loss: str = knob("discriminator", choices=LOSSES)
    """What tells how far a painting is from the style picture: the discriminator's features, as published; lpips, the
    perceptual distance; vgg, the mean absolute difference of the trunk's features. The latter two work with --trunk, where
    the bundled lite0 stands in for the originals' VGG16."""
    picture_weights: tuple[float, ...] = knob(())
    """Weight of every style picture; by default they count alike."""
    per_step: int = knob(0, lo=0, hi=10_000, step=1)
    """Style pictures that every step looks at, each in turn; 0 for all. With 1, many pictures take no longer than one."""
    identity: float = knob(0.0, lo=0.0, hi=100.0)
    """Weight of the identity distance between a face in the style and the same face without it; 0.1 and more keeps people
    apart under strong styles, and takes longer."""
    texture: float = knob(0.0, lo=0.0, hi=100.0)
    """Weight of the texture distance: random faces in the style should have the Gram matrices that the trunk's maps have
    of the style picture, so that line and contrast reach faces of other shapes too. 0.2 to 0.5 strengthens styles that
    arrive as softened photos; more gives every face the picture's hair and features. Identity counts on these faces too
    then. Steps take about twice as long."""
    perceptual: float | None = knob(None, lo=0.0, hi=100.0)
    """Weight of the perceptual distance beside the discriminator's features; by default 0 from 256 px, as published,
    and 4 below, where the discriminator's features alone leave pictures soft."""
    overshoot: bool = False
    """Compare paintings as they are shown, clipped to black and white, so that a style may paint beyond them: lines and
    solid areas come out harder. For drawings in ink and prints; shaded looks are better without."""
    learn_layers: str = knob("all")
    """Layers that learn, as a layer mask (32px-, 7-11.conv); the others keep the base's weights, and with them the
    shapes of faces."""
    pixels: float = knob(0.0, lo=0.0, hi=100.0)
    """Weight of the mean absolute difference of pixels, which holds colours and blurs lines."""
    codes: int = knob(1, lo=1, hi=64, step=1)
    """Random codes per style picture and step; more make each step steadier and slower."""
    learning_rate: float = knob(2e-3, lo=1e-6, hi=0.1)
    """Step size of Adam (betas 0 and 0.99)."""
    ema: float = knob(0.95, lo=0.0, hi=0.9999)
    """Keep a moving average of the weights with this decay per step; 0 keeps the last weights."""
    noise: str = knob("constant", choices=NOISE)
    """Noise inputs while learning: constant repeats exactly, random draws new ones each step, as published."""
    patience: int = knob(0, lo=0, hi=20_000, step=1)
    """Stop early when the loss, averaged over 10 steps, has not fallen by 1 % for so many steps; 0 does all steps."""
    seed: int = knob(0, lo=0, hi=2**31 - 1)
    """Seed of the random codes."""


@dataclasses.dataclass(frozen=True)
class StyleOptions(Options):
    """How a learned style is put on a face; nothing here needs training."""

    strength: float = knob(1.0, lo=0.0, hi=1.0, step=0.05)
    """How much of the style: 0 is the face as embedded, 1 the whole style."""
    layers: str = knob("all")
    """Layers that take the style, as a layer mask (coarse, fine, 7-17, 32px-); the others stay the photo's."""
    pull: float | None = knob(None, lo=0.0, hi=1.0, step=0.05)
    """How far the rows that the style was mixed on, which it has learned to ignore, are pulled to the mean code: 0 keeps
    what the photo put there (closer to the person), 1 none of it (purer style, crisper with small models); left out, as
    the style's file says, else 0.4. A generator tuned to the person answers best to little."""
    keep_color: bool = knob(False)
    """Keep the colours of the photo and take only light, shade and line from the style."""
    blend: str = knob("features", choices=BLENDS)
    """What a strength below 1 interpolates: the weights of the networks (faster) or their features (crisper, closer to
    the person)."""
    hold: str = knob("none")
    """Layers whose features are held back, as a layer mask with weights: 16px=0.4 mixes 40 % of the features without the
    style into those with it after the layers of 16 px, whatever the strength."""


@dataclasses.dataclass(frozen=True)
class DualOptions(Options):
    """How a DualStyleGAN puts a style on a face; nothing here needs training.

    Source: Yang et al. 2022 (arXiv 2203.13248), section 3.2; defaults as published, but for ``towards``.
    """

    structure: float = knob(0.75, lo=0.0, hi=1.5, step=0.05)
    """Weight of the style's shapes (rows up to 32 px): 0 leaves the face's own."""
    color: float = knob(1.0, lo=0.0, hi=1.5, step=0.05)
    """Weight of the style's colours and strokes (rows beyond 32 px)."""
    row_weights: tuple[float, ...] = knob(())
    """One weight per row of w+ in place of structure and color; of 18 published ones a smaller model takes the first."""
    fuse_row: int | None = knob(None, lo=0, hi=17)
    """Rows after this one get no style; 0: no row gets any; left out, all get theirs."""
    keep_color: bool = knob(False)
    """Take the colours from the face: the style's colour rows are replaced by the face's own."""
    truncation: float = knob(0.75, lo=0.0, hi=1.0, step=0.05)
    """How much of the face's own code is kept; less gives a more ordinary face that a style fits better."""
    towards: str = knob("mean", choices=("mean", "zero"))
    """What truncation pulls towards: the mean face, or zero as in the published program."""


@dataclasses.dataclass(frozen=True)
class DestylizeOptions(Options):
    """How portraits are turned back into faces.

    Source: Yang et al. 2022 (arXiv 2203.13248), section 3.1; defaults as published.
    """

    steps: int = knob(300, lo=0, hi=20_000)
    """steps of the search in z+; 0 takes the encoder's code as it is"""
    learning_rate: float = knob(0.1, lo=1e-5, hi=1.0)
    """step size of Adam at its height"""
    perceptual: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the perceptual distance from the portrait"""
    identity: float = knob(0.1, lo=0.0, hi=1e6)
    """weight of the identity distance from the portrait"""
    spread: float = knob(1.0, lo=0.0, hi=1e6)
    """weight of the rows' spread among each other, which keeps the code near ordinary faces: the higher, the less of a
    caricature's exaggeration is taken for the face's own"""
    truncation: float = knob(0.7, lo=0.0, hi=1.0, step=0.05)
    """how much of the found code the real face keeps; 0.5 for styles far from photos"""
    color_lock: bool = knob(True)
    """rows from 8 on keep the encoder's code"""
