"""Optimisers: each step changes the parameters, in place, by what their gradients say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from fastconv.arguments import Array

Arrays = Mapping[str, Array]


def _pairs(params: Arrays, grads: Arrays) -> Iterator[tuple[str, Array, Array]]:
    missing = [name for name in params if name not in grads]
    if missing:
        raise ValueError(f"grads: got none for {missing[0]!r}, expected a backward before the step")
    return ((name, param, grads[name]) for name, param in params.items())


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value!r}, expected a positive number")
    return value


def _share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: got {value!r}, expected a number from 0 up to, not including, 1")
    return value


class SGD:
    """Stochastic gradient descent, with momentum if asked.

    ``v = momentum * v + grad; param -= lr * v``

    Parameters
    ----------
    lr : float
        Learning rate.
    momentum : float
        How much of the last step is kept; 0 for none.
    """

    def __init__(self, lr: float = 0.01, momentum: float = 0.0) -> None:
        self.lr, self.momentum = _positive("lr", lr), _share("momentum", momentum)
        self._v: dict[str, Array] = {}

    def step(self, params: Arrays, grads: Arrays) -> None:
        """Change `params` in place."""
        for name, param, grad in _pairs(params, grads):
            if self.momentum:
                if name not in self._v:
                    self._v[name] = np.zeros_like(param)
                v = self._v[name]
                v *= self.momentum
                v += grad
                grad = v
            param -= self.lr * grad


class Adam:
    """Adam: steps of about `lr`, whatever the size of the gradients.

    ``m`` and ``v`` follow the gradient and its square; ``param -= lr * m / (sqrt(v) + eps)``, both divided by
    what they lack at the start.

    Parameters
    ----------
    lr : float
        Learning rate.
    beta1, beta2 : float
        How much of `m` and `v` is kept in each step.
    eps : float

    References
    ----------
    D. Kingma and J. Ba, Adam: a method for stochastic optimization, 2015.
    """

    def __init__(
        self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        self.lr, self.eps = _positive("lr", lr), _positive("eps", eps)
        self.beta1, self.beta2 = _share("beta1", beta1), _share("beta2", beta2)
        self._m: dict[str, Array] = {}
        self._v: dict[str, Array] = {}
        self._steps = 0

    def step(self, params: Arrays, grads: Arrays) -> None:
        """Change `params` in place."""
        pairs = list(_pairs(params, grads))
        self._steps += 1
        fill1, fill2 = 1 - self.beta1**self._steps, 1 - self.beta2**self._steps
        for name, param, grad in pairs:
            if name not in self._m:
                self._m[name], self._v[name] = np.zeros_like(param), np.zeros_like(param)
            m, v = self._m[name], self._v[name]
            m += (1 - self.beta1) * (grad - m)
            v += (1 - self.beta2) * (grad * grad - v)
            param -= self.lr / fill1 * m / (np.sqrt(v / fill2) + self.eps)
