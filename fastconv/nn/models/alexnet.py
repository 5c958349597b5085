"""AlexNet: five convolutions, the first with large kernels and strides, and three affine layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.nn.activations import ReLU
from fastconv.nn.initial import Initial, Seed
from fastconv.nn.layers import AdaptiveAvgPool, Conv, Dropout, Flatten, Linear, MaxPool, Sequential


def alexnet(
    classes: int = 1000, *, in_channels: int = 3, width: int = 64, init: Initial = "he", rng: Seed = None,
    dtype: str = "float32",
) -> Sequential:  # fmt: skip
    """AlexNet for one machine, with torchvision's layers and names: 61,100,840 parameters.

    The network of 2012 had 96, 256, 384, 384 and 256 channels, in two groups for two GPUs, and
    :class:`LocalResponseNorm` after the first two convolutions (60,965,224 parameters). This one is the author's of
    2014: 64, 192, 384, 256 and 256, without either.

    Parameters
    ----------
    classes, in_channels, width, init, rng, dtype
        As in :func:`vgg16`.

    References
    ----------
    A. Krizhevsky et al., ImageNet classification with deep convolutional neural networks, 2012; A. Krizhevsky,
    One weird trick for parallelizing convolutional neural networks, 2014.
    """
    how: dict[str, Any] = {"init": init, "rng": np.random.default_rng(rng), "dtype": dtype}
    return Sequential(
        features=Sequential(
            Conv(in_channels, width, 11, 4, 2, **how),
            ReLU(),
            MaxPool(3, 2),
            Conv(width, 3 * width, 5, padding=2, **how),
            ReLU(),
            MaxPool(3, 2),
            Conv(3 * width, 6 * width, 3, padding=1, **how),
            ReLU(),
            Conv(6 * width, 4 * width, 3, padding=1, **how),
            ReLU(),
            Conv(4 * width, 4 * width, 3, padding=1, **how),
            ReLU(),
            MaxPool(3, 2),
        ),
        avgpool=AdaptiveAvgPool(6),
        flatten=Flatten(),
        classifier=Sequential(
            Dropout(rng=how["rng"]),
            Linear(4 * width * 6 * 6, 64 * width, **how),
            ReLU(),
            Dropout(rng=how["rng"]),
            Linear(64 * width, 64 * width, **how),
            ReLU(),
            Linear(64 * width, classes, **how),
        ),
    )
