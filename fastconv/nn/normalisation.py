"""Normalisations by neighbours: across channels, or across channels and a window of space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv import api, arguments, grad
from fastconv.arguments import Array, IntOrSizes
from fastconv.nn.layers import Layer


class LocalResponseNorm(Layer):
    """Divides each element by what its neighbours in other channels come to, as AlexNet does.

    ``y = x / (k + alpha * mean(x**2 over size channels)) ** beta``, where channels that are not there count as 0.

    Parameters
    ----------
    size : int
        Channels in the window, ``size // 2`` of them before.
    alpha, beta, k : float
        As in torch; the paper's alpha is of the sum, so it is torch's divided by `size`.

    References
    ----------
    A. Krizhevsky et al., ImageNet classification with deep convolutional neural networks, 2012, section 3.3.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size = arguments.integer("size", size, 1)
        self.alpha, self.beta, self.k = alpha, beta, k
        # Channels lie along the first of two axes, pixels along the other.
        self._window = (self.size, 1), 1, ((self.size // 2, (self.size - 1) // 2), (0, 0))

    def forward(self, x: Array, train: bool = False) -> Array:
        rows = _rows(x)
        base = self.k + self.alpha * api.avg_pool2d(rows * rows, *self._window)
        power = base**-self.beta
        self.keep(rows, base, power)
        return (rows * power).reshape(x.shape)

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        rows, base, power = self.recall()
        given = _rows(dy)
        # Through the window: each neighbour's output falls as this element's square grows.
        pull = grad.avg_pool2d(given * rows * power / base, rows, *self._window)
        dx = given * power - 2 * self.alpha * self.beta * rows * pull
        return dx.reshape(dy.shape)


def _rows(x: Array) -> Array:
    """`x` as images of one channel, (N, 1, C, pixels)."""
    if x.ndim < 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (batch, channels, ...)")
    return x.reshape(len(x), 1, x.shape[1], math.prod(x.shape[2:]))


class LocalContrastNorm(Layer):
    """Gives the surroundings of each pixel mean 0 and variance 1, over all feature maps together.

    What a Gaussian window, on all channels at once, finds as mean is taken away; the rest is divided by the root of
    what the window finds as its mean square. The image continues as its mirror image.

    Parameters
    ----------
    kernel_size : int or sequence of int
        Of the window, odd; one entry per spatial axis, and an int means two equal ones. Its deviation is a quarter
        of it.
    eps : float
        Added to the mean square: where contrast is far below its root, nothing is made larger.

    References
    ----------
    K. Jarrett et al., What is the best multi-stage architecture for object recognition?, 2009, section 2.1, with eps in
    place of the mean deviation; M. Zeiler and R. Fergus, Visualizing and understanding convolutional networks, 2014.
    """

    def __init__(self, kernel_size: IntOrSizes = 9, eps: float = 1e-5) -> None:
        super().__init__()
        rank = arguments.rank_of("kernel_size", kernel_size, 2)
        kernel = arguments.sizes("kernel_size", kernel_size, rank, 1)
        if not all(size % 2 for size in kernel):
            raise ValueError(f"kernel_size: got {kernel_size!r}, expected odd sizes, which have a middle")
        if not 0 < eps < math.inf:
            raise ValueError(f"eps: got {eps!r}, expected a positive number")
        self.eps = eps
        window = np.ones(())
        for size in kernel:
            line = np.exp(-8 * ((np.arange(size) - size // 2) / size) ** 2)  # exp(-d^2 / 2 (size / 4)^2)
            window = np.multiply.outer(window, line / line.sum())
        self._gaussian = window[None, None]
        self._geometry = 1, tuple(size // 2 for size in kernel)
        self._conv = getattr(api, f"conv{rank}d")
        self._conv_input = getattr(grad, f"conv{rank}d_input")

    def forward(self, x: Array, train: bool = False) -> Array:
        if x.ndim != self._gaussian.ndim:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (batch, channels, {self._gaussian.ndim - 2} spatial)"
            )
        weight = np.asarray((self._gaussian / x.shape[1]).repeat(x.shape[1], axis=1).astype(x.dtype), like=x)
        # The same for any number added to x. With one pixel of the image taken away, what is constant is exactly 0.
        first = (slice(None), *(slice(0, 1),) * (x.ndim - 1))
        x = x - x[first]
        centred = x - self._mean(x, weight)
        deviation = np.sqrt(self._mean(centred * centred, weight) + self.eps)
        y = centred / deviation
        self.keep(y, deviation, weight)
        return y

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        y, deviation, weight = self.recall()
        scaled = dy / deviation
        # d deviation = window(centred * d centred) / deviation, and y holds centred / deviation.
        slope = (scaled * y).sum(axis=1, keepdims=True) / deviation
        dcentred = scaled - y * deviation * self._spread(slope, y.shape, weight)
        return dcentred - self._spread(dcentred.sum(axis=1, keepdims=True), y.shape, weight)

    def _mean(self, x: Array, weight: Array) -> Array:
        return self._conv(x, weight, None, *self._geometry, padding_mode="symmetric")

    def _spread(self, dy: Array, shape: tuple[int, ...], weight: Array) -> Any:
        return self._conv_input(shape, weight, dy, *self._geometry, padding_mode="symmetric")
