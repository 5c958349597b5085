"""GoogLeNet: blocks of four branches, whose kernels see differently far."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.nn.activations import ReLU
from fastconv.nn.blocks import Branches
from fastconv.nn.initial import Initial, Seed
from fastconv.nn.layers import (
    AdaptiveAvgPool,
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MaxPool,
    Sequential,
)

# Table 1 of the paper: channels of the 1x1; of the 3x3 and what it is reduced to before, likewise of the 5x5; and of
# the projection after the pool.
INCEPTIONS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "maxpool3": (3, 2),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "maxpool4": (2, 2),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(
    classes: int = 1000, *, in_channels: int = 3, widest: int = 5, init: Initial = "he", rng: Seed = None,
    dtype: str = "float32",
) -> Sequential:  # fmt: skip
    """GoogLeNet with batch normalisation and torchvision's names: 7,005,832 parameters, or 6,624,904.

    The two classifiers that help its training from the side are left out, here and of files.

    Parameters
    ----------
    classes : int
    in_channels : int
        Of the images; three colours.
    widest : int
        Kernel of each block's third branch: 5 in the paper. In torchvision it is 3, and so it must be for its weights.
    init, rng, dtype
        As in :func:`vgg16`.

    References
    ----------
    C. Szegedy et al., Going deeper with convolutions, 2015.
    """
    how: dict[str, Any] = {"init": init, "rng": np.random.default_rng(rng), "dtype": dtype}
    layers: dict[str, Layer] = {
        "conv1": unit(in_channels, 64, 7, 2, **how),
        "maxpool1": MaxPool(3, 2, ceil_mode=True),
        "conv2": unit(64, 64, 1, **how),
        "conv3": unit(64, 192, 3, **how),
        "maxpool2": MaxPool(3, 2, ceil_mode=True),
    }
    channels = 192
    for name, row in INCEPTIONS.items():
        if len(row) == 2:
            layers[name] = MaxPool(*row, ceil_mode=True)
        else:
            layers[name] = inception(channels, *row, widest=widest, **how)
            channels = row[0] + row[2] + row[4] + row[5]
    layers |= {"avgpool": AdaptiveAvgPool(1), "flatten": Flatten(), "dropout": Dropout(0.2, rng=how["rng"])}
    return Sequential(**layers, fc=Linear(channels, classes, **how))


def inception(
    in_channels: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int, *,
    widest: int = 5, **how: Any,
) -> Branches:  # fmt: skip
    """A 1x1, a 3x3, a 5x5 and a pool beside each other, on as few channels as a 1x1 leaves them."""
    return Branches(
        branch1=unit(in_channels, one, 1, **how),
        branch2=Sequential(unit(in_channels, reduce3, 1, **how), unit(reduce3, three, 3, **how)),
        branch3=Sequential(unit(in_channels, reduce5, 1, **how), unit(reduce5, five, widest, **how)),
        branch4=Sequential(MaxPool(3, 1, 1, ceil_mode=True), unit(in_channels, pooled, 1, **how)),
    )


def unit(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, **how: Any) -> Sequential:
    """A convolution that keeps the image's size at stride 1, batch normalisation, and ReLU."""
    padding = kernel_size // 2
    return Sequential(
        conv=Conv(in_channels, out_channels, kernel_size, stride, padding, bias=False, **how),
        bn=BatchNorm(out_channels, eps=0.001, dtype=how["dtype"]),
        relu=ReLU(),
    )
