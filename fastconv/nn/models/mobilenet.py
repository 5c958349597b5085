"""MobileNet: convolutions split in two, one for space in each channel and one across channels at each pixel."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.nn.activations import ReLU
from fastconv.nn.initial import Initial, Seed
from fastconv.nn.layers import AdaptiveAvgPool, BatchNorm, Conv, Flatten, Layer, Linear, Sequential

# Channels after each pair, in units of the stem's, and the stride of its first half: table 1 of the paper.
PAIRS = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *((16, 1),) * 5, (32, 2), (32, 1))


def mobilenet_v1(
    classes: int = 1000, *, in_channels: int = 3, width: int = 32, init: Initial = "he", rng: Seed = None,
    dtype: str = "float32",
) -> Sequential:  # fmt: skip
    """MobileNet, the first: 4,231,976 parameters, of which a quarter belongs to the last layer.

    Parameters
    ----------
    classes, in_channels, init, rng, dtype
        As in :func:`vgg16`.
    width : int
        Channels of the first convolution; all others are multiples of it. The paper's width multiplier is
        ``width / 32``.

    References
    ----------
    A. Howard et al., MobileNets: efficient convolutional neural networks for mobile vision applications, 2017.
    """
    how: dict[str, Any] = {"init": init, "rng": np.random.default_rng(rng), "dtype": dtype}
    layers: list[Layer] = [*_unit(in_channels, width, 3, 2, **how)]
    channels = width
    for multiple, stride in PAIRS:
        layers += _unit(channels, channels, 3, stride, groups=channels, **how)
        layers += _unit(channels, multiple * width, 1, **how)
        channels = multiple * width
    return Sequential(
        features=Sequential(*layers),
        avgpool=AdaptiveAvgPool(1),
        flatten=Flatten(),
        classifier=Linear(channels, classes, **how),
    )


def _unit(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, groups: int = 1, **how: Any
) -> tuple[Layer, Layer, Layer]:
    padding = kernel_size // 2
    conv = Conv(in_channels, out_channels, kernel_size, stride, padding, 1, groups, bias=False, **how)
    return conv, BatchNorm(out_channels, dtype=how["dtype"]), ReLU()
