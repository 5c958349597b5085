"""Networks made ready to be used and no longer trained: normalisations inside convolutions, weights packed once."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np

from fastconv.arguments import Array
from fastconv.nn.activations import ReLU
from fastconv.nn.layers import BatchNorm, Composite, Conv, ConvTranspose, Layer, Linear


def fold_batch_norm(model: Layer) -> Layer:
    """A copy of `model` whose convolutions do what the batch normalisations right after them did.

    With its running statistics a normalisation is an affine map of each channel, and a convolution followed by one is a
    convolution with other weights and a bias. Everything else is copied as it is, and so are normalisations that follow
    no convolution.

    Parameters
    ----------
    model : Layer
        Usually a :class:`Sequential`; it stays as it is.

    Returns
    -------
    Layer
        For ``train=False``. The parts that were folded away are gone, and so are their names.

    Examples
    --------
    >>> from fastconv import nn
    >>> model = nn.Sequential(conv=nn.Conv(1, 4, 3, bias=False), norm=nn.BatchNorm(4), relu=nn.ReLU())
    >>> list(nn.fold_batch_norm(model).params)
    ['conv.weight', 'conv.bias']
    """
    twin = _copy(model)
    if not isinstance(twin, Composite):
        return twin
    parts = {name: fold_batch_norm(layer) for name, layer in model.layers.items()}
    for name, after in itertools.pairwise(twin.chain):
        layer, norm = parts.get(name), parts[after]
        if isinstance(layer, Conv | ConvTranspose | Linear) and isinstance(norm, BatchNorm):
            _fold(layer, norm)
            del parts[after]
    return twin.made_of(parts)


def _copy(layer: Layer) -> Layer:
    """`layer` with arrays of its own, before its first forward."""
    twin = copy.copy(layer)
    twin._params, twin._buffers = (
        {name: array.copy() for name, array in arrays.items()} for arrays in (layer._params, layer._buffers)
    )
    twin._grads, twin._kept = {}, None
    return twin


def _fold(layer: Conv | ConvTranspose | Linear, norm: BatchNorm) -> None:
    """Let `layer` do what `norm` does after it; in float64 until the end, so that each weight is rounded once."""
    weight, bias = layer.params["weight"], layer.params.get("bias")
    wide = {name: array.astype("float64") for name, array in {**norm.params, **norm.buffers}.items()}
    scale = wide["weight"] / np.sqrt(wide["running_var"] + norm.eps)
    shift = wide["bias"] - wide["running_mean"] * scale
    if bias is not None:
        shift = shift + bias * scale
    # A transposed convolution's weight is (C, O / groups, ...): each group of its inputs meets outputs of its own.
    groups = len(scale) // weight.shape[1] if isinstance(layer, ConvTranspose) else len(scale)
    rows = weight.reshape(groups, -1, len(scale) // groups, math.prod(weight.shape[2:]))
    folded = rows * scale.reshape(groups, 1, -1, 1)
    layer.params["weight"] = folded.reshape(weight.shape).astype(weight.dtype)
    layer.params["bias"] = shift.astype(weight.dtype)


class Prepared:
    """A network that only computes: call it with a batch.

    It may be called from several threads at once.
    """

    def __init__(self, model: Layer) -> None:
        self._model = _prepared(model)

    def __call__(self, x: Array) -> Array:
        """What ``model.forward(x)`` gives."""
        return self._model.forward(x)

    def __repr__(self) -> str:
        return f"<Prepared {self._model!r}>"


def prepare(model: Layer) -> Prepared:
    """Pack the weights of every convolution of `model` once, and keep nothing for a backward.

    Results are those of ``model.forward(x)`` but for roundings: where weights are already packed another algorithm may
    be the fastest. :func:`fold_batch_norm` before it saves more.

    Parameters
    ----------
    model : Layer

    Returns
    -------
    Prepared
        Called with a batch, it returns what the network makes of it. Convolutions hold copies of their weights; all
        other arrays are the model's own, so prepare it again once they have changed.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> model = nn.lenet5(rng=0)
    >>> classify = nn.prepare(model)
    >>> classify(np.zeros((2, 1, 28, 28), "float32")).shape
    (2, 10)
    """
    return Prepared(model)


class _PreparedConv(Layer):
    """A convolution with its weights packed, and the ReLU after it, which writes over its result."""

    def __init__(self, conv: Conv | ConvTranspose, relu: bool) -> None:
        super().__init__()
        self._conv, self._relu = conv.prepared(), relu

    def forward(self, x: Array, train: bool = False) -> Array:
        y = self._conv(x)
        return np.maximum(y, 0, out=y) if self._relu else y


def _prepared(model: Layer) -> Layer:
    """`model` with layers that keep nothing, and its convolutions packed."""
    if isinstance(model, Conv | ConvTranspose):
        return _PreparedConv(model, relu=False)
    twin = copy.copy(model)
    twin._kept, twin._keeps = None, False
    if not isinstance(twin, Composite):
        return twin
    parts = {name: _prepared(layer) for name, layer in model.layers.items()}
    for name, after in itertools.pairwise(twin.chain):
        conv = model.layers[name]
        if isinstance(conv, Conv | ConvTranspose) and type(model.layers[after]) is ReLU:
            parts[name] = _PreparedConv(conv, relu=True)
            del parts[after]
    return twin.made_of(parts)
