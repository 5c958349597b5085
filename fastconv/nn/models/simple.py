"""SimpleConvNet: the network of a book to begin with."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.nn.activations import ReLU
from fastconv.nn.initial import Initial, Seed
from fastconv.nn.layers import Conv, Flatten, Linear, MaxPool, Sequential


def simple_conv_net(
    size: int = 28, *, init: Initial = "he", rng: Seed = None, dtype: str = "float32"
) -> Sequential:
    """One convolution and two affine layers, for ten classes of grey images.

    Parameters
    ----------
    size : int
        Height and width of the images.
    init : {"he", "xavier", "plain"} or float
        How all weights begin; the book's are plain. Small ones change more: their filters are seen to learn.
    rng : numpy.random.Generator or int, optional
        A seed: the same network begins with the same weights.
    dtype : {"float32", "float64"}

    References
    ----------
    K. Saito, Deep Learning from Scratch, 2016, section 7.5.
    """
    if size < 6:
        raise ValueError(f"size: got {size}, expected at least 6, for a kernel of 5 and a pool of 2")
    how: dict[str, Any] = {"init": init, "rng": np.random.default_rng(rng), "dtype": dtype}
    pooled = (size - 4) // 2
    return Sequential(
        conv=Conv(1, 30, 5, **how),
        relu1=ReLU(),
        pool=MaxPool(2),
        flatten=Flatten(),
        affine1=Linear(30 * pooled * pooled, 100, **how),
        relu2=ReLU(),
        affine2=Linear(100, 10, **how),
    )
