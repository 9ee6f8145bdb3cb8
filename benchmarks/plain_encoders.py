"""The encoders of the pSp family written down plainly, on a state dict with the original's names.

What a straightforward program does: layer after layer of `torch.nn.functional`, channels-first, every normalisation by
itself.  Opponent of `benchmarks/encoders.py`, and the formula that the tests compare with, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
STRIDED_IR = {0: 2, 3: 2, 7: 2, 21: 2}
STRIDED_RES = {3: 2, 7: 2, 13: 2}


def part(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the entries below a prefix."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def norm(state: State, name: str, x: Tensor) -> Tensor:
    """Batch normalisation by stored figures."""
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], False, 0.1, 1e-5)


def ir_block(state: State, x: Tensor, stride: int) -> Tensor:
    """Return an IR-SE block's output."""
    y = norm(state, "res_layer.0", x)
    y = F.conv2d(y, state["res_layer.1.weight"], padding=1)
    y = F.prelu(y, state["res_layer.2.weight"])
    y = F.conv2d(y, state["res_layer.3.weight"], padding=1, stride=stride)
    y = norm(state, "res_layer.4", y)
    gate = F.adaptive_avg_pool2d(y, 1)
    gate = F.relu(F.conv2d(gate, state["res_layer.5.fc1.weight"]))
    y = y * torch.sigmoid(F.conv2d(gate, state["res_layer.5.fc2.weight"]))
    if "shortcut_layer.0.weight" in state:
        short = norm(state, "shortcut_layer.1", F.conv2d(x, state["shortcut_layer.0.weight"], stride=stride))
    else:
        short = F.max_pool2d(x, 1, stride)
    return y + short


def res_block(state: State, x: Tensor, stride: int) -> Tensor:
    """Return a ResNet block's output."""
    y = F.relu(norm(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1, stride=stride)))
    y = norm(state, "bn2", F.conv2d(y, state["conv2.weight"], padding=1))
    if "downsample.0.weight" in state:
        x = norm(state, "downsample.1", F.conv2d(x, state["downsample.0.weight"], stride=stride))
    return F.relu(y + x)


def body(state: State, image: Tensor, strides: Mapping[int, int] | None = None) -> list[Tensor]:
    """Return the outputs of all blocks."""
    if "conv1.weight" in state:
        strides = STRIDED_RES if strides is None else strides
        x = norm(state, "bn1", F.conv2d(image, state["conv1.weight"], padding=3, stride=2))
        x, block = F.prelu(x, state["relu.weight"]), res_block
    else:
        strides = STRIDED_IR if strides is None else strides
        x = norm(state, "input_layer.1", F.conv2d(image, state["input_layer.0.weight"], padding=1))
        x, block = F.prelu(x, state["input_layer.2.weight"]), ir_block
    maps = []
    count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("body."))
    for n in range(count):
        x = block(part(state, f"body.{n}."), x, strides.get(n, 1))
        maps.append(x)
    return maps


def equal_linear(state: State, name: str, x: Tensor) -> Tensor:
    """Linear layer with equalised learning rate."""
    weight = state[f"{name}.weight"]
    return F.linear(x, weight / math.sqrt(weight.shape[1]), state[f"{name}.bias"])


def style_head(state: State, x: Tensor) -> Tensor:
    """Return a head's code."""
    for n in range(0, 20, 2):
        if f"convs.{n}.weight" in state:
            x = F.conv2d(x, state[f"convs.{n}.weight"], state[f"convs.{n}.bias"], stride=2, padding=1)
            x = F.leaky_relu(x, 0.01)
    return equal_linear(state, "linear", x.flatten(1))


def encode(
    state: State,
    image: Tensor,
    *,
    deltas: bool = False,
    ends: tuple[int, int, int] = (6, 20, 23),
    strides: Mapping[int, int] | None = None,
) -> Tensor:
    """Return an encoder's codes, (B, rows, w_dim) or (B, w_dim).

    Args:
        state: names without ``encoder.``.
        image: (B, C, S, S).
        deltas: rows are differences to the first.
        ends: the blocks whose outputs a pyramid reads.
        strides: block -> stride where it is not 1; None for the published bodies.
    """
    maps = body(state, image, strides)
    x = maps[-1]
    if "output_layer_2.3.weight" in state:
        x = F.adaptive_avg_pool2d(norm(state, "output_layer_2.0", x), 7).flatten(1)
        x = F.linear(x, state["output_layer_2.3.weight"], state["output_layer_2.3.bias"])
        return equal_linear(state, "linear", x).view(len(image), -1, x.shape[1])
    if "linear.weight" in state:
        return equal_linear(state, "linear", F.adaptive_avg_pool2d(x, 1).flatten(1))
    rows = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("styles."))
    codes = []
    for row in range(rows):
        if "latlayer1.weight" in state and row in (3, 7):
            level = 1 if row == 3 else 2
            larger = maps[ends[2 - level]]
            side = F.conv2d(larger, state[f"latlayer{level}.weight"], state[f"latlayer{level}.bias"])
            x = F.interpolate(x, size=side.shape[2:], mode="bilinear", align_corners=True) + side
        codes.append(style_head(part(state, f"styles.{row}."), x))
    stacked = torch.stack(codes, 1)
    if deltas:
        stacked = stacked[:, :1] + torch.cat([torch.zeros_like(stacked[:, :1]), stacked[:, 1:]], 1)
    return stacked
