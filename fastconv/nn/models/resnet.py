"""ResNet: blocks that add to their input what they make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastconv.nn.activations import ReLU
from fastconv.nn.blocks import Residual
from fastconv.nn.initial import Initial, Seed
from fastconv.nn.layers import AdaptiveAvgPool, BatchNorm, Conv, Flatten, Layer, Linear, MaxPool, Sequential

Block = Callable[..., Residual]


def resnet18(
    classes: int = 1000, *, in_channels: int = 3, width: int = 64, init: Initial = "he", rng: Seed = None,
    dtype: str = "float32",
) -> Sequential:  # fmt: skip
    """ResNet-18, with torchvision's layers and names: 11,689,512 parameters.

    Parameters
    ----------
    classes : int
    in_channels : int
        Of the images; three colours.
    width : int
        Channels of the first stage; each of the three others doubles them.
    init : {"he", "xavier", "plain"} or float
        How the weights begin; at 0, for weights that come from a file, no number is drawn.
    rng : numpy.random.Generator or int, optional
        A seed: the same network begins with the same weights.
    dtype : {"float32", "float64"}

    References
    ----------
    K. He et al., Deep residual learning for image recognition, 2016.
    """
    how: dict[str, Any] = {"init": init, "rng": np.random.default_rng(rng), "dtype": dtype}
    return _resnet(basic_block, 1, (2, 2, 2, 2), classes, in_channels, width, how)


def resnet50(
    classes: int = 1000, *, in_channels: int = 3, width: int = 64, init: Initial = "he", rng: Seed = None,
    dtype: str = "float32",
) -> Sequential:  # fmt: skip
    """ResNet-50, with torchvision's layers and names: 25,557,032 parameters.

    Where a stage begins, the 3x3 convolution has the stride, which the paper gave to the 1x1 before it.

    Parameters
    ----------
    classes, in_channels, width, init, rng, dtype
        As in :func:`resnet18`.

    References
    ----------
    K. He et al., Deep residual learning for image recognition, 2016.
    """
    how: dict[str, Any] = {"init": init, "rng": np.random.default_rng(rng), "dtype": dtype}
    return _resnet(bottleneck, 4, (3, 4, 6, 3), classes, in_channels, width, how)


def _resnet(
    block: Block, expansion: int, depths: Sequence[int], classes: int, in_channels: int, width: int,
    how: dict[str, Any],
) -> Sequential:  # fmt: skip
    stem: dict[str, Layer] = {
        "conv1": Conv(in_channels, width, 7, stride=2, padding=3, bias=False, **how),
        "bn1": BatchNorm(width, dtype=how["dtype"]),
        "relu": ReLU(),
        "maxpool": MaxPool(3, 2, 1),
    }
    stages: dict[str, Layer] = {}
    channels = width
    for stage, depth in enumerate(depths):
        blocks = []
        for place in range(depth):
            stride = 2 if stage and not place else 1
            blocks.append(block(channels, width << stage, stride, **how))
            channels = expansion * (width << stage)
        stages[f"layer{stage + 1}"] = Sequential(*blocks)
    head = {
        "avgpool": AdaptiveAvgPool(1),
        "flatten": Flatten(),
        "fc": Linear(channels, classes, **how),
    }
    return Sequential(**stem, **stages, **head)


def basic_block(in_channels: int, width: int, stride: int = 1, **how: Any) -> Residual:
    """Two 3x3 convolutions, the first with the stride."""
    return Residual(
        downsample=_projection(in_channels, width, stride, how),
        conv1=Conv(in_channels, width, 3, stride, 1, bias=False, **how),
        bn1=BatchNorm(width, dtype=how["dtype"]),
        relu1=ReLU(),
        conv2=Conv(width, width, 3, padding=1, bias=False, **how),
        bn2=BatchNorm(width, dtype=how["dtype"]),
    )


def bottleneck(in_channels: int, width: int, stride: int = 1, **how: Any) -> Residual:
    """A 1x1 convolution to fewer channels, the 3x3 among them, and a 1x1 to four times as many."""
    return Residual(
        downsample=_projection(in_channels, 4 * width, stride, how),
        conv1=Conv(in_channels, width, 1, bias=False, **how),
        bn1=BatchNorm(width, dtype=how["dtype"]),
        relu1=ReLU(),
        conv2=Conv(width, width, 3, stride, 1, bias=False, **how),
        bn2=BatchNorm(width, dtype=how["dtype"]),
        relu2=ReLU(),
        conv3=Conv(width, 4 * width, 1, bias=False, **how),
        bn3=BatchNorm(4 * width, dtype=how["dtype"]),
    )


def _projection(in_channels: int, out_channels: int, stride: int, how: dict[str, Any]) -> Sequential | None:
    """What the input of a block goes through where its shape changes; elsewhere it is added as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    return Sequential(
        Conv(in_channels, out_channels, 1, stride, bias=False, **how),
        BatchNorm(out_channels, dtype=how["dtype"]),
    )
