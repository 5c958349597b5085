"""Two small networks to begin with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastconv.nn.activations import ReLU, Tanh
from fastconv.nn.initial import Seed
from fastconv.nn.layers import AvgPool, Conv, Flatten, Linear, MaxPool, Sequential


def simple_conv_net(size: int = 28, *, rng: Seed = None, dtype: str = "float32") -> Sequential:
    """One convolution and two affine layers, for ten classes of grey images.

    Parameters
    ----------
    size : int
        Height and width of the images.
    rng : numpy.random.Generator or int, optional
        A seed: the same network begins with the same weights.
    dtype : {"float32", "float64"}

    References
    ----------
    K. Saito, Deep Learning from Scratch, 2016, section 7.5.
    """
    if size < 6:
        raise ValueError(f"size: got {size}, expected at least 6, for a kernel of 5 and a pool of 2")
    rng = np.random.default_rng(rng)
    pooled = (size - 4) // 2
    return Sequential(
        conv=Conv(1, 30, 5, rng=rng, dtype=dtype),
        relu1=ReLU(),
        pool=MaxPool(2),
        flatten=Flatten(),
        affine1=Linear(30 * pooled * pooled, 100, rng=rng, dtype=dtype),
        relu2=ReLU(),
        affine2=Linear(100, 10, rng=rng, dtype=dtype),
    )


def lenet5(*, rng: Seed = None, dtype: str = "float32") -> Sequential:
    """LeNet-5 for 28x28 images, which it frames to its 32x32, with a plain affine layer at the end.

    Parameters
    ----------
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
        tanh1=Tanh(),
        pool1=AvgPool(2),
        conv2=Conv(6, 16, 5, init="xavier", rng=rng, dtype=dtype),
        tanh2=Tanh(),
        pool2=AvgPool(2),
        conv3=Conv(16, 120, 5, init="xavier", rng=rng, dtype=dtype),
        tanh3=Tanh(),
        flatten=Flatten(),
        affine1=Linear(120, 84, init="xavier", rng=rng, dtype=dtype),
        tanh4=Tanh(),
        affine2=Linear(84, 10, init="xavier", rng=rng, dtype=dtype),
    )


MODELS: dict[str, Callable[..., Sequential]] = {"simple": simple_conv_net, "lenet": lenet5}
