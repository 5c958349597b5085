"""VGG: 3x3 convolutions in blocks, each ended by a pool that halves the image while the next doubles its channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.nn.activations import ReLU
from fastconv.nn.initial import Initial, Seed
from fastconv.nn.layers import AdaptiveAvgPool, Conv, Dropout, Flatten, Layer, Linear, MaxPool, Sequential

# Channels of each block in units of the first's, and how many convolutions it has: configuration D of the paper.
BLOCKS = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))


def vgg16(
    classes: int = 1000, *, in_channels: int = 3, width: int = 64, init: Initial = "he", rng: Seed = None,
    dtype: str = "float32",
) -> Sequential:  # fmt: skip
    """VGG16, with torchvision's layers and names: 138,357,544 parameters.

    Parameters
    ----------
    classes : int
    in_channels : int
        Of the images; three colours.
    width : int
        Channels of the first block. All others are multiples of it, as are the affine layers.
    init : {"he", "xavier", "plain"} or float
        How the weights begin; at 0, for weights that come from a file, none of the 138 million numbers is drawn.
    rng : numpy.random.Generator or int, optional
        A seed: the same network begins with the same weights.
    dtype : {"float32", "float64"}

    References
    ----------
    K. Simonyan and A. Zisserman, Very deep convolutional networks for large-scale image recognition, 2015.
    """
    how: dict[str, Any] = {"init": init, "rng": np.random.default_rng(rng), "dtype": dtype}
    features: list[Layer] = []
    channels = in_channels
    for multiple, convolutions in BLOCKS:
        for _ in range(convolutions):
            features.append(Conv(channels, multiple * width, 3, padding=1, **how))
            features.append(ReLU())
            channels = multiple * width
        features.append(MaxPool(2))
    return Sequential(
        features=Sequential(*features),
        avgpool=AdaptiveAvgPool(7),
        flatten=Flatten(),
        classifier=Sequential(
            Linear(channels * 7 * 7, 64 * width, **how),
            ReLU(),
            Dropout(rng=how["rng"]),
            Linear(64 * width, 64 * width, **how),
            ReLU(),
            Dropout(rng=how["rng"]),
            Linear(64 * width, classes, **how),
        ),
    )
