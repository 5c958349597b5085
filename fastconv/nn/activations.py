"""Activations: a function of each element, and its slope."""

from __future__ import annotations

import numpy as np

from fastconv.arguments import Array
from fastconv.nn.layers import Layer


class ReLU(Layer):
    """``max(x, 0)``; the slope at 0 is taken as 0."""

    def forward(self, x: Array, train: bool = False) -> Array:
        y = np.maximum(x, 0)
        self.keep(y)  # the next layer keeps it too, so this takes no memory
        return y

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (y,) = self.recall()
        there = (y > 0).view(np.int8)
        del y  # its memory is the largest a step needs
        # The bits of dy, or none: np.where branches at each element, and took a third of a step of SimpleConvNet.
        bits = np.dtype(f"i{dy.dtype.itemsize}")
        kept = np.negative(there, dtype=bits)
        kept &= dy.view(bits)
        return kept.view(dy.dtype)


class LeakyReLU(Layer):
    """``x`` where it is positive, ``slope * x`` elsewhere.

    Parameters
    ----------
    slope : float
    """

    def __init__(self, slope: float = 0.01) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Array, train: bool = False) -> Array:
        self.keep(x)
        return np.where(x > 0, x, self.slope * x)

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (x,) = self.recall()
        return np.where(x > 0, dy, self.slope * dy)


class Sigmoid(Layer):
    """``1 / (1 + exp(-x))``."""

    def forward(self, x: Array, train: bool = False) -> Array:
        y = _sigmoid(x)
        self.keep(y)
        return y

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (y,) = self.recall()
        return dy * y * (1 - y)


class Tanh(Layer):
    """``tanh(x)``."""

    def forward(self, x: Array, train: bool = False) -> Array:
        y = np.tanh(x)
        self.keep(y)
        return y

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (y,) = self.recall()
        slope = y * y
        del y
        slope = np.subtract(1, slope, out=slope)
        slope *= dy
        return slope


class SiLU(Layer):
    """``x * sigmoid(x)``, also called swish."""

    def forward(self, x: Array, train: bool = False) -> Array:
        s = _sigmoid(x)
        self.keep(x, s)
        return x * s

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        x, s = self.recall()
        return dy * s * (1 + x * (1 - s))


def _sigmoid(x: Array) -> Array:
    # The same function as 1 / (1 + exp(-x)), which overflows below -88 in float32.
    return 0.5 * np.tanh(0.5 * x) + 0.5
