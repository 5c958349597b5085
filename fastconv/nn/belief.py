"""Convolutional restricted Boltzmann machines: layers that learn without labels, one on top of the other."""

from __future__ import annotations

import math

import numpy as np

from fastconv import api, arguments, grad
from fastconv.arguments import Array, integer
from fastconv.nn.initial import Seed
from fastconv.nn.layers import Composite, Conv, Layer
from fastconv.nn.optimisers import SGD, Adam


class ProbabilisticMaxPool(Layer):
    """The probability that anything in a block is on, where at most one unit of each block is.

    A unit that is told `I` is on with probability ``exp(I) / (1 + sum of exp(I) over its block)``; with what remains,
    ``1 / (1 + sum)``, the whole block is off.

    Parameters
    ----------
    kernel_size : int
        Height and width of a block. From (N, C, H, W) to (N, C, H / kernel_size, W / kernel_size).

    References
    ----------
    H. Lee et al., Convolutional deep belief networks for scalable unsupervised learning of hierarchical
    representations, 2009, section 3.3.
    """

    def __init__(self, kernel_size: int = 2) -> None:
        super().__init__()
        self.kernel_size = arguments.integer("kernel_size", kernel_size, 1)

    def probabilities(self, x: Array) -> tuple[Array, Array]:
        """Of each unit to be on, of `x`'s shape, and of each block to be off, of the output's."""
        blocks = self._blocks(x)
        # exp of the largest, or of a block's being off, is 1: nothing overflows.
        top = np.maximum(blocks.max(axis=-1, keepdims=True), 0)
        exps, off = np.exp(blocks - top), np.exp(-top)
        total = off + exps.sum(axis=-1, keepdims=True)
        return self._images(exps / total), (off / total)[..., 0]

    def sample(self, probabilities: Array, rng: np.random.Generator) -> Array:
        """Units that are on, at most one in each block, drawn from the first of :meth:`probabilities`."""
        bounds = self._blocks(probabilities).cumsum(axis=-1)
        drawn = np.asarray(rng.random(bounds.shape[:-1]).astype(bounds.dtype.name), like=bounds)[..., None]
        below = (drawn < bounds).astype(bounds.dtype)
        below[..., 1:] -= below[..., :-1].copy()  # on is the first whose bound is above what was drawn
        return self._images(below)

    def forward(self, x: Array, train: bool = False) -> Array:
        on, off = self.probabilities(x)
        self.keep(on, off)
        return 1 - off

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        on, off = self.recall()
        return self._images(self._blocks(on) * (dy * off)[..., None])

    def _blocks(self, x: Array) -> Array:
        """The elements of each block in a last axis of their own: (N, C, H / k, W / k, k k)."""
        k = self.kernel_size
        if x.ndim != 4 or x.shape[2] % k or x.shape[3] % k:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (batch, channels, height, width) with multiples of {k} for "
                "height and width"
            )
        n, c, h, w = x.shape
        return (
            x.reshape(n, c, h // k, k, w // k, k)
            .transpose(0, 1, 2, 4, 3, 5)
            .reshape(n, c, h // k, w // k, k * k)
        )

    def _images(self, blocks: Array) -> Array:
        k = self.kernel_size
        n, c, h, w, _ = blocks.shape
        return blocks.reshape(n, c, h, w, k, k).transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h * k, w * k)


class ConvRBM(Composite):
    """A convolution and :class:`ProbabilisticMaxPool` that can also be run backwards, and learn to give back what they see.

    `forward` gives the pools' probabilities, so machines stack in a :class:`Sequential`, a deep belief network, and what
    they have learnt can be trained on with labels. What they see are numbers about their mean, a buffer that
    :meth:`contrast` keeps.

    Parameters
    ----------
    in_channels, bases : int
    kernel_size : int or tuple of two int
    pool : int
        Height and width of a block.
    sparsity : float, optional
        The share of hidden units that shall be on; each basis' bias is moved towards it.
    rng : numpy.random.Generator or int, optional
        A seed, for the bases' beginning and the units' choices.
    dtype : {"float32", "float64"}

    References
    ----------
    H. Lee et al., 2009, as above; sparsity as in H. Lee et al., Sparse deep belief net model for visual area V2, 2008;
    the mean as in G. Montavon and K.-R. Müller, Deep Boltzmann machines and the centering trick, 2012.
    """

    def __init__(
        self, in_channels: int, bases: int, kernel_size: int | tuple[int, int], pool: int = 2, *,
        sparsity: float | None = None, rng: Seed = None, dtype: str = "float32",
    ) -> None:  # fmt: skip
        self._rng, self.sparsity = np.random.default_rng(rng), sparsity
        self.conv = Conv(in_channels, bases, kernel_size, init="plain", rng=self._rng, dtype=dtype)
        self.pool = ProbabilisticMaxPool(pool)
        if sparsity is not None:
            most = 1 / self.pool.kernel_size**2
            if not 0 < sparsity < most:
                raise ValueError(
                    f"sparsity: got {sparsity!r}, expected a share between 0 and {most}, one in a block"
                )
            self.conv.params["bias"][:] = math.log(sparsity / (1 - sparsity / most))
        super().__init__(conv=self.conv, pool=self.pool)
        self._buffers["mean"] = np.zeros(in_channels, dtype)

    def forward(self, x: Array, train: bool = False) -> Array:
        told = self.layers["conv"].forward(x - self._mean, train)
        return self.layers["pool"].forward(told, train)

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        return self.layers["conv"].backward(self.layers["pool"].backward(dy), input_grad)

    def hidden(self, x: Array) -> Array:
        """The probability of each hidden unit to be on."""
        weight, bias = self.conv.params["weight"], self.conv.params["bias"]
        return self.pool.probabilities(api.conv2d(x - self._mean, weight, bias))[0]

    def visible(self, hidden: Array) -> Array:
        """What is expected to be seen, given hidden units: the sum of the bases of those that are on."""
        return api.conv_transpose2d(hidden, self.conv.params["weight"]) + self._mean

    def contrast(self, x: Array) -> float:
        """One step of contrastive divergence: gradients for an optimiser, and how wrongly `x` is given back.

        Hidden units are drawn, what they expect to see is looked at, and the weights are to make the units agree more
        with `x` and less with that. The image's border, which fewer units see, stays as it is: made up for, it would
        shape the bases' rims.

        Parameters
        ----------
        x : array, shape (N, in_channels, H, W)
            Larger than twice the kernel, so that something is inside the border.

        Returns
        -------
        error : float
            Mean square, inside, of the difference between `x` and what it is reconstructed as.
        """
        weight, bias = self.conv.params["weight"], self.conv.params["bias"]
        inside = (slice(None), slice(None), *(slice(k - 1, 1 - k or None) for k in weight.shape[2:]))
        if not x[inside].size:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected images larger than twice the kernel, {weight.shape[2:]}"
            )
        self._buffers["mean"] += 0.1 * (x.mean(axis=(0, 2, 3)) - self._buffers["mean"])
        seen = self.hidden(x)
        again = x.copy()
        again[inside] = self.visible(self.pool.sample(seen, self._rng))[inside]
        dreamt = self.hidden(again)
        units = seen.size // len(bias)
        data, model = (
            grad.conv2d_weight(v - self._mean, weight.shape, h) for v, h in ((x, seen), (again, dreamt))
        )
        self.conv.grads["weight"] = (model - data) / units
        on, dreams = seen.mean(axis=(0, 2, 3)), dreamt.mean(axis=(0, 2, 3))
        self.conv.grads["bias"] = dreams - on if self.sparsity is None else on - self.sparsity
        return float(((x - again)[inside] ** 2).mean())

    @property
    def _mean(self) -> Array:
        return self._buffers["mean"].reshape(-1, 1, 1)


def pretrain(
    machine: ConvRBM, x: Array, *, epochs: int = 10, batch_size: int = 20, optimiser: SGD | Adam | None = None,
    rng: Seed = None,
) -> list[float]:  # fmt: skip
    """Let a machine learn to give back images; a deep one is trained machine by machine, each on the last's output.

    Parameters
    ----------
    machine : ConvRBM
    x : array, shape (N, in_channels, H, W)
    epochs, batch_size : int
    optimiser : SGD or Adam, optional
        ``SGD(0.1, 0.5)`` by default.
    rng : numpy.random.Generator or int, optional
        A seed for the order.

    Returns
    -------
    list of float
        The mean reconstruction error of each epoch.
    """
    rng, optimiser = np.random.default_rng(rng), optimiser or SGD(0.1, 0.5)
    epochs, size = integer("epochs", epochs, 1), integer("batch_size", batch_size, 1)
    errors = []
    for _ in range(epochs):
        order, total = rng.permutation(len(x)), 0.0
        for at in range(0, len(x), size):
            rows = np.asarray(order[at : at + size], like=x)
            total += machine.contrast(x[rows]) * len(rows)
            optimiser.step(machine.params, machine.grads)
        errors.append(total / len(x))
    return errors
