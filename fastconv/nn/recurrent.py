"""A recurrent layer, to compare convolutions along time with."""

from __future__ import annotations

import numpy as np

from fastconv import arguments
from fastconv.arguments import Array
from fastconv.nn.initial import Seed, normal
from fastconv.nn.layers import Layer


class RNN(Layer):
    """``h[t] = tanh(weight_ih x[t] + weight_hh h[t - 1] + bias)``: the same weights at every time.

    Sequences lie as they do for convolutions, (N, channels, time), and so does what comes out: every h, so that a
    layer after it may take the last or all.

    Parameters
    ----------
    in_channels, hidden : int
    rng, dtype
        As in :class:`Conv`. ``weight_ih`` begins Xavier normal, ``weight_hh`` orthogonal, which neither fades nor grows
        (Saxe et al., 2014).

    References
    ----------
    J. Elman, Finding structure in time, 1990.
    """

    def __init__(self, in_channels: int, hidden: int, *, rng: Seed = None, dtype: str = "float32") -> None:
        super().__init__()
        inputs = arguments.integer("in_channels", in_channels, 1)
        count = arguments.integer("hidden", hidden, 1)
        rng = np.random.default_rng(rng)
        square = normal((count, count), 1.0, count, count, rng, "float64")
        self._params = {
            "weight_ih": normal((count, inputs), "xavier", inputs, count, rng, dtype),
            "weight_hh": np.linalg.qr(square)[0].astype(dtype),
            "bias": np.zeros(count, dtype),
        }

    def forward(self, x: Array, train: bool = False) -> Array:
        wx, wh, bias = self._params.values()
        if x.ndim != 3 or x.shape[1] != wx.shape[1]:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (batch, {wx.shape[1]}, time)")
        driven = wx @ x + bias[:, None]
        y = np.zeros_like(driven)
        for t in range(x.shape[2]):
            y[..., t] = np.tanh(driven[..., t] + (y[..., t - 1] @ wh.T if t else 0))
        self.keep(x, y)
        return y

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        x, y = self.recall()
        wx, wh, _ = self._params.values()
        ddriven = np.zeros_like(y)
        for t in reversed(range(y.shape[2])):
            later = ddriven[..., t + 1] @ wh if t + 1 < y.shape[2] else 0
            ddriven[..., t] = (dy[..., t] + later) * (1 - y[..., t] ** 2)
        self._grads["weight_ih"] = (ddriven @ x.transpose(0, 2, 1)).sum(axis=0)
        self._grads["weight_hh"] = (ddriven[..., 1:] @ y[..., :-1].transpose(0, 2, 1)).sum(axis=0)
        self._grads["bias"] = ddriven.sum(axis=(0, 2))
        return wx.T @ ddriven if input_grad else None
