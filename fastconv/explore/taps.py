"""Taps: what passes by each layer of a network, forwards and backwards, and what is changed on its way back.

The layers are not touched: for as long as a tap is open, an instance's `forward` and `backward` hand over to the
class's and write down what came by. So a tap works for every network made of :class:`fastconv.nn.Layer`, however
its layers are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fastconv import nn
from fastconv.arguments import Array, integer

Rules = Mapping[type[nn.Layer], Callable[[Any, Array], Array]]

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.SiLU)


def _of_convolution(layer: Any, dy: Array) -> Array:
    (x,) = layer.recall()
    return layer._input_grad(x.shape, layer.params["weight"], dy, *layer._geometry, **layer._options)


def _of_linear(layer: nn.Linear, dy: Array) -> Array:
    layer.recall()
    return dy @ layer.params["weight"]


# Gradients of parameters, which nobody asks for here, would cost as much again, and change `model.grads`.
INPUT_ONLY: Rules = {nn.Conv: _of_convolution, nn.ConvTranspose: _of_convolution, nn.Linear: _of_linear}


class _Reached(Exception):
    """A backward has come to the layer it was to come to."""


class Taps:
    """What passed by while the tap was open.

    Attributes
    ----------
    inputs, outputs : dict of str to array
        Of each layer's last forward, by its name in ``model.named_layers()``, in the order in which layers
        finished. They are the arrays themselves, not copies.
    gradients : dict of str to array
        The gradient at each layer's output, as its last backward was given it.
    inject : dict of str to array
        Set this between a forward and a backward, to give layers other gradients than those that arrive.
    until : str or None
        Set this to a layer's name, and `backward` goes no further down than its output.
    """

    def __init__(self, model: nn.Layer) -> None:
        self.model = model
        self.inputs: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self.inject: dict[str, Array] = {}
        self.until: str | None = None

    def backward(self, dy: Array) -> Array:
        """The gradient at the model's input, given that at its output; None where `until` ended it before."""
        try:
            return self.model.backward(dy)
        except _Reached:
            return None

    def activated(self, layer: str, kind: str = "post") -> str:
        """Whose output is the feature map of `layer`, before ("pre") or after ("post") its activation.

        Parameters
        ----------
        layer : str
        kind : {"pre", "post"}
            ``"pre"`` is what the activation takes, after a batch normalisation if there is one, and ``"post"``
            what it gives. Where no activation follows, both are the same.
        """
        if kind not in ("pre", "post"):
            raise ValueError(f"kind: got {kind!r}, expected 'pre' or 'post'")
        layers = dict(self.model.named_layers())
        if layer not in self.outputs:
            raise ValueError(f"layer: got {layer!r}, expected one of {', '.join(layers)}")
        at, names = layer, list(self.outputs)
        # Who took this very array is who follows, in any topology.
        for name in names[names.index(layer) + 1 :]:
            if self.inputs[name] is self.outputs[at]:
                if isinstance(layers[name], ACTIVATIONS):
                    return at if kind == "pre" else name
                if isinstance(layers[name], nn.BatchNorm):
                    at = name
        return at

    def _watch(self, name: str, layer: nn.Layer, rules: Rules) -> None:
        forward, backward = layer.forward, layer.backward
        rule = rules.get(type(layer))

        def tapped_forward(x: Array, train: bool = False) -> Array:
            y = forward(x, train)
            self.inputs[name] = x
            self.outputs.pop(name, None)  # so that names stand in the order of this forward
            self.outputs[name] = y
            return y

        def tapped_backward(dy: Array, input_grad: bool = True) -> Array:
            dy = self.inject.get(name, dy)
            self.gradients[name] = dy
            if name == self.until:
                raise _Reached
            return backward(dy, input_grad) if rule is None else rule(layer, dy)

        vars(layer).update(forward=tapped_forward, backward=tapped_backward)


@contextmanager
def taps(model: nn.Layer, rules: Rules | None = None) -> Iterator[Taps]:
    """Write down what passes by every layer of `model` while the block runs.

    Parameters
    ----------
    model : Layer
        A network, a composite of other layers.
    rules : mapping of type to callable, optional
        What takes the place of ``backward`` in layers of exactly that type: a function of the layer and the
        gradient at its output, which calls ``layer.recall()``. Convolutions and linear layers compute no gradients
        of their parameters while the tap is open.

    Yields
    ------
    Taps

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import explore, nn
    >>> model = nn.Sequential(conv=nn.Conv(1, 2, 3), relu=nn.ReLU())
    >>> with explore.taps(model) as seen:
    ...     y = model.forward(np.ones((1, 1, 5, 5), "float32"))
    >>> {name: output.shape for name, output in seen.outputs.items()}
    {'conv': (1, 2, 3, 3), 'relu': (1, 2, 3, 3)}
    """
    seen = Taps(model)
    layers = dict(model.named_layers())
    if not layers:
        raise ValueError(f"model: got {type(model).__name__}, which has no layers, expected a composite")
    before = [
        (layer, {key: vars(layer).get(key) for key in ("forward", "backward")}) for layer in layers.values()
    ]
    try:
        for name, layer in layers.items():
            seen._watch(name, layer, {**INPUT_ONLY, **(rules or {})})
        yield seen
    finally:
        for layer, methods in before:
            for key, method in methods.items():
                if method is None:
                    vars(layer).pop(key, None)
                else:
                    vars(layer)[key] = method


def find(model: nn.Layer, layer: str) -> nn.Layer:
    """The layer of this name.

    Raises
    ------
    ValueError
        With the names there are.
    """
    layers = dict(model.named_layers())
    if layer not in layers:
        raise ValueError(f"layer: got {layer!r}, expected one of {', '.join(layers)}")
    return layers[layer]


def convolutions(model: nn.Layer) -> list[str]:
    """The names of all convolutions, in order."""
    return [name for name, layer in model.named_layers() if isinstance(layer, nn.Conv)]


def upto(model: nn.Layer, layer: str) -> nn.Layer:
    """`model` without what computes after `layer`, as far as that is plain to see: the same layers, not copies."""
    find(model, layer)
    first = layer.partition(".")[0]
    if not isinstance(model, nn.Sequential):
        return model
    names = list(model.layers)
    # One more for the activation, another for a batch normalisation before it.
    end = names.index(first) + 1
    while end < len(names) and isinstance(model.layers[names[end]], (nn.BatchNorm, *ACTIVATIONS)):
        end += 1
    return nn.Sequential(**{name: model.layers[name] for name in names[:end]})


def feature_maps(
    model: nn.Layer, x: Array, layers: Sequence[str] | None = None, kind: str = "post", batch_size: int = 256
) -> dict[str, Array]:
    """The feature maps of several layers, in one pass.

    Parameters
    ----------
    model : Layer
    x : array, shape (N, C, ...)
    layers : sequence of str, optional
        Names, as in ``model.named_layers()``; all convolutions by default.
    kind : {"post", "pre"}
        See :func:`capture`.
    batch_size : int
        How many images go through the network at once.

    Returns
    -------
    dict of str to array
        By the names asked for, in their order.

    Raises
    ------
    ValueError
        For a name that is not there.
    """
    size = integer("batch_size", batch_size, 1)
    names = convolutions(model) if layers is None else list(layers)
    for name in names:
        find(model, name)
    parts: dict[str, list[Array]] = {name: [] for name in names}
    with taps(model) as seen:
        for batch in batches(x, size):
            model.forward(batch)
            for name in names:
                parts[name].append(seen.outputs[seen.activated(name, kind)])
    return {name: np.concatenate(some) for name, some in parts.items()}


def capture(model: nn.Layer, x: Array, layer: str, kind: str = "post", batch_size: int = 256) -> Array:
    """The feature maps of one layer.

    The words are used for two things. A convolution gives ``z = w * x + b``, and the activation after it
    ``a = relu(z)``. Here a feature map, or activation map, is ``a``: the output of the layer with its activation,
    which is what the next layer sees. Some texts call ``z`` so; ask for it with ``kind="pre"``.

    Parameters
    ----------
    model : Layer
    x : array, shape (N, C, ...)
    layer : str
        A name in ``model.named_layers()``.
    kind : {"post", "pre"}
        After the activation that follows the layer, or before it. Where none follows both are the same.
    batch_size : int
        How many images go through the network at once.

    Returns
    -------
    array, shape (N, channels, ...)

    Raises
    ------
    ValueError
        For a name that is not there.
    """
    return feature_maps(upto(model, layer), x, [layer], kind, batch_size)[layer]


class Scored(NamedTuple):
    """What is explained of an output: a number for each image, its gradient there, and the class or channel."""

    scores: Array
    seed: Array
    target: Array


def scored(output: Array, target: Any, position: Sequence[int] | None = None) -> Scored:
    """The number that is explained for each image, its gradient at the output it is read from, and what it is of.

    Parameters
    ----------
    output : array, shape (N, classes) or (N, channels, ...)
    target : int, integer array of shape (N,), or None
        Class or channel; for None each image's largest.
    position : sequence of int, optional
        Where in the map. Without it the score of a channel is its sum over all positions.

    Raises
    ------
    ValueError
    """
    count, channels = output.shape[:2]
    where = (slice(None),) * (output.ndim - 2) if position is None else tuple(position)
    if len(where) != output.ndim - 2:
        raise ValueError(
            f"position: got {position!r}, expected {output.ndim - 2} integers, for an output of shape {output.shape}"
        )
    try:
        table = output[(slice(None), slice(None), *where)]
    except IndexError:
        raise ValueError(f"position: got {position!r}, expected a place in {output.shape[2:]}") from None
    table = table.reshape(count, channels, -1).sum(axis=2)
    chosen = table.argmax(axis=1) if target is None else np.broadcast_to(np.asarray(target), (count,))
    if chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= channels:
        raise ValueError(f"target: got {target!r}, expected integers from 0 to {channels - 1}")
    rows = np.arange(count)
    seed = np.zeros_like(output)
    seed[(rows, chosen, *where)] = 1
    return Scored(table[rows, chosen], seed, chosen)


def batches(x: Array, size: int) -> Iterable[Array]:
    """`x` in parts of at most `size` rows."""
    if not len(x):
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least one image")
    return (x[at : at + size] for at in range(0, len(x), size))
