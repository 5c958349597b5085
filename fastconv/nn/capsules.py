"""Capsules: vectors in place of numbers, whose length tells whether something is there and whose direction how."""

from __future__ import annotations

import numpy as np

from fastconv import arguments
from fastconv.arguments import Array
from fastconv.nn.initial import Initial, Seed, normal
from fastconv.nn.layers import Layer

# What is added to a square length before its root: a capsule of zeros has no direction, and must not give NaN.
TINY = 1e-30


def squash(s: Array) -> Array:
    """Each vector along the last axis, shortened to ``|s|^2 / (1 + |s|^2)``: long ones to almost 1, short ones to almost 0.

    Parameters
    ----------
    s : array

    References
    ----------
    S. Sabour et al., Dynamic routing between capsules, 2017, equation 1.
    """
    square = (s * s).sum(axis=-1, keepdims=True)
    return s * (np.sqrt(square + TINY) / (1 + square))


def squash_grad(s: Array, grad_output: Array) -> Array:
    """Gradient of :func:`squash`."""
    square = (s * s).sum(axis=-1, keepdims=True)
    root = np.sqrt(square + TINY)
    along = (s * grad_output).sum(axis=-1, keepdims=True)
    # The factor f = root / (1 + square) depends on s too: df / d square = 1 / (2 root (1 + square)) - f / (1 + square).
    slope = (1 / root - 2 * root / (1 + square)) / (1 + square)
    return grad_output * (root / (1 + square)) + s * (along * slope)


class PrimaryCapsules(Layer):
    """Reads channels as capsules: each `size` channels at each pixel are one, squashed.

    Parameters
    ----------
    size : int
        Numbers in a capsule. From (N, C, ...) to (N, capsules, size).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = arguments.integer("size", size, 1)

    def forward(self, x: Array, train: bool = False) -> Array:
        if x.ndim < 2 or x.shape[1] % self.size:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (batch, channels, ...) with a multiple of {self.size} channels"
            )
        split = x.reshape(len(x), -1, self.size, *x.shape[2:])
        s = np.moveaxis(split, 2, -1).reshape(len(x), -1, self.size)
        self.keep(s, x.shape)
        return squash(s)

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        s, shape = self.recall()
        ds = squash_grad(s, dy).reshape(shape[0], -1, *shape[2:], self.size)
        return np.moveaxis(ds, -1, 2).reshape(shape)


class Capsules(Layer):
    """Capsules that listen to those which agree: routing by agreement.

    Each capsule below predicts each one above by a matrix of its own. A capsule above is the squashed sum of its
    predictions, weighted by coefficients of which those of each capsule below sum to 1; and predictions that point where
    the sum does gain weight, `iterations` times. The gradient goes through all of it.

    Parameters
    ----------
    in_capsules, in_size : int
        How many capsules come, and the numbers in each: (N, in_capsules, in_size).
    out_capsules, out_size : int
        What is made of them: (N, out_capsules, out_size).
    iterations : int
        1 weights all predictions alike.
    init, rng, dtype
        As in :class:`Conv`.

    Attributes
    ----------
    coefficients : array, shape (N, in_capsules, out_capsules), or None
        Of the last forward's last iteration.

    References
    ----------
    S. Sabour et al., Dynamic routing between capsules, 2017, procedure 1.
    """

    def __init__(
        self, in_capsules: int, in_size: int, out_capsules: int, out_size: int, iterations: int = 3, *,
        init: Initial = "xavier", rng: Seed = None, dtype: str = "float32",
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = {
            "in_capsules": in_capsules,
            "in_size": in_size,
            "out_capsules": out_capsules,
            "out_size": out_size,
        }
        i, a, j, b = (arguments.integer(name, value, 1) for name, value in sizes.items())
        self.iterations = arguments.integer("iterations", iterations, 1)
        self._params["weight"] = normal((i, j, b, a), init, a, b, rng, dtype)
        self.coefficients: Array | None = None

    def forward(self, x: Array, train: bool = False) -> Array:
        weight = self._params["weight"]
        i, j, b, a = weight.shape
        if tuple(x.shape[1:]) != (i, a):
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (batch, {i}, {a})")
        # (i, N, a) times (i, a, j b): every capsule's predictions in one product.
        predicted = np.matmul(x.transpose(1, 0, 2), weight.reshape(i, j * b, a).transpose(0, 2, 1))
        predicted = predicted.reshape(i, len(x), j, b).transpose(1, 2, 0, 3)  # (N, j, i, b)
        logits = np.zeros_like(predicted[..., 0])
        steps = []
        for step in range(self.iterations):
            share = _softmax(logits)
            s = np.matmul(share[:, :, None], predicted)[:, :, 0]
            v = squash(s)
            steps.append((share, s, v))
            if step + 1 < self.iterations:
                logits = logits + np.matmul(predicted, v[..., None])[..., 0]
        self.coefficients = share.transpose(0, 2, 1)
        self.keep(x, predicted, steps)
        return v

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        x, predicted, steps = self.recall()
        dpredicted, dlogits = np.zeros_like(predicted), None
        for share, s, v in reversed(steps):
            dv = dy
            if dlogits is not None:
                dv = np.matmul(dlogits[:, :, None], predicted)[:, :, 0]
                dpredicted += dlogits[..., None] * v[:, :, None]
            ds = squash_grad(s, dv)
            dpredicted += share[..., None] * ds[:, :, None]
            dshare = np.matmul(predicted, ds[..., None])[..., 0]
            through = share * (dshare - (share * dshare).sum(axis=1, keepdims=True))
            dlogits = through if dlogits is None else dlogits + through
        i, j, b, a = self._params["weight"].shape
        flat = dpredicted.transpose(2, 0, 1, 3).reshape(i, len(x), j * b)
        self._grads["weight"] = np.matmul(flat.transpose(0, 2, 1), x.transpose(1, 0, 2)).reshape(i, j, b, a)
        if not input_grad:
            return None
        return np.matmul(flat, self._params["weight"].reshape(i, j * b, a)).transpose(1, 0, 2)


def _softmax(logits: Array) -> Array:
    """Over the capsules above, axis 1."""
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)


class Lengths(Layer):
    """How long each capsule is, from (N, capsules, size) to (N, capsules): what a classifier of capsules compares.

    Parameters
    ----------
    scale : float
        What lengths, which are below 1, are multiplied by. As logits they need some: at 1 the softmax of ten capsules
        could not pass 23 %.
    """

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Array, train: bool = False) -> Array:
        length = np.sqrt((x * x).sum(axis=-1) + TINY)
        self.keep(x, length)
        return self.scale * length

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        x, length = self.recall()
        return x * (self.scale * dy / length)[..., None]
