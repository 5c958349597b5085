"""LeNet-5: convolutions and averages, then affine layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastconv.nn.activations import Tanh
from fastconv.nn.initial import Seed
from fastconv.nn.layers import AvgPool, Conv, Flatten, Layer, Linear, Sequential


def lenet5(*, activation: Callable[[], Layer] = Tanh, rng: Seed = None, dtype: str = "float32") -> Sequential:
    """LeNet-5 for 28x28 images, which it frames to its 32x32, with a plain affine layer at the end.

    Parameters
    ----------
    activation : callable
        What makes each activation: :class:`Tanh`, or :class:`Sigmoid` for those who read the paper's "sigmoid" so.
    rng : numpy.random.Generator or int, optional
        A seed: the same network begins with the same weights.
    dtype : {"float32", "float64"}

    References
    ----------
    Y. LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """
    rng = np.random.default_rng(rng)
    return Sequential(
        conv1=Conv(1, 6, 5, padding=2, init="xavier", rng=rng, dtype=dtype),
        act1=activation(),
        pool1=AvgPool(2),
        conv2=Conv(6, 16, 5, init="xavier", rng=rng, dtype=dtype),
        act2=activation(),
        pool2=AvgPool(2),
        conv3=Conv(16, 120, 5, init="xavier", rng=rng, dtype=dtype),
        act3=activation(),
        flatten=Flatten(),
        affine1=Linear(120, 84, init="xavier", rng=rng, dtype=dtype),
        act4=activation(),
        affine2=Linear(84, 10, init="xavier", rng=rng, dtype=dtype),
    )
