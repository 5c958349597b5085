"""Receptive fields: which pixels an element of a feature map sees, computed and measured."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastconv import arguments, grad, nn
from fastconv.arguments import Array
from fastconv.explore import display
from fastconv.explore.taps import ACTIVATIONS, Rules, Taps, find, scored, taps, upto

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Span = tuple[int, int]

# What changes no element by its neighbours.
_POINTWISE = (*ACTIVATIONS, nn.BatchNorm, nn.Dropout)


class ReceptiveField(NamedTuple):
    """What an element of a feature map sees, for each axis in pixels.

    Attributes
    ----------
    size : tuple of int
        How many pixels, in padding too.
    stride : tuple of int
        How far apart the fields of two neighbours are.
    start : tuple of int
        Where the field of the first element begins; negative in padding.
    image_size : tuple of int
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    start: tuple[int, ...]
    image_size: tuple[int, ...]

    def box(self, position: Sequence[int]) -> tuple[int, ...]:
        """The pixels of the image that the element at `position` sees: first ones, then ends, not included."""
        begin = [s + p * step for s, p, step in zip(self.start, position, self.stride, strict=True)]
        ends = [
            min(b + size, whole) for b, size, whole in zip(begin, self.size, self.image_size, strict=True)
        ]
        return (*(max(b, 0) for b in begin), *ends)


def receptive_field(model: nn.Layer, layer: str, image_shape: Sequence[int]) -> ReceptiveField:
    """The receptive field of a layer, from the geometry of the layers before it.

    Which layers those are is seen in a forward of one empty image, so any composite will do.

    Parameters
    ----------
    model : Layer
    layer : str
    image_shape : sequence of int
        Channels, height and width of the images.

    Returns
    -------
    ReceptiveField

    Raises
    ------
    ValueError
        For a layer whose output has no place in the image, such as one after Flatten.
    """
    return receptive_fields(model, image_shape, [layer])[layer]


def receptive_fields(
    model: nn.Layer, image_shape: Sequence[int], layers: Sequence[str] | None = None
) -> dict[str, ReceptiveField]:
    """The receptive field of each layer whose output is a map.

    Parameters
    ----------
    model : Layer
    image_shape : sequence of int
        Channels, height and width of the images.
    layers : sequence of str, optional
        All that have one by default.

    Returns
    -------
    dict of str to ReceptiveField

    Raises
    ------
    ValueError
    """
    if layers is not None:
        for name in layers:
            find(model, name)
    part = model if layers is None or len(layers) > 1 else upto(model, layers[0])
    dtype = next((array.dtype for array in part.params.values()), np.dtype("float32"))
    with taps(part) as seen:
        image = np.zeros((1, *image_shape), dtype)
        part.forward(image)
    flow = _Flow(seen, image)
    if layers is not None:
        return {name: flow.field(name) for name in layers}
    found = {}
    for name in seen.outputs:
        with contextlib.suppress(ValueError):  # from there on places are lost
            found[name] = flow.field(name)
    return found


class _Flow:
    """Who took whose output in one forward, told by the arrays themselves, and the fields that follow from it."""

    def __init__(self, seen: Taps, image: Array) -> None:
        self.seen, self.image = seen, image
        self.layers = dict(seen.model.named_layers())
        self.order = list(seen.outputs)
        self.known: dict[str, ReceptiveField] = {}

    def field(self, name: str) -> ReceptiveField:
        """What the elements of a layer's output see."""
        if name not in self.known:
            inside = [other for other in self.order if other.rpartition(".")[0] == name]
            if not inside:
                self.known[name] = self._seen_through(name, _hull(self._before(name)))
            else:
                y = self.seen.outputs[name]
                same = [other for other in inside if self.seen.outputs[other] is y]
                # Where none of the parts gave it, it is joined of all.
                self.known[name] = _hull(map(self.field, same[-1:] or self._like(y, inside)))
        return self.known[name]

    def _before(self, name: str) -> Iterator[ReceptiveField]:
        """The fields of what gave a layer its input."""
        x, parent = self.seen.inputs[name], name.rpartition(".")[0]
        earlier = self.order[: self.order.index(name)]
        # A composite ends after its parts, so the last of those who gave this array is the outermost.
        gave = [other for other in earlier if self.seen.outputs[other] is x]
        if x is self.image:
            ones = (1,) * (x.ndim - 2)
            yield ReceptiveField(ones, ones, (0,) * len(ones), x.shape[2:])
        elif gave:
            yield self.field(gave[-1])
        elif parent and self.seen.inputs[parent] is x:
            yield from self._before(parent)
        elif parent:  # a sum or the like, of what came into the composite and what its parts made of it
            if self.seen.inputs[parent].shape[2:] == x.shape[2:]:
                yield from self._before(parent)
            siblings = [other for other in earlier if other.rpartition(".")[0] == parent]
            yield from map(self.field, self._like(x, siblings))
        else:
            raise ValueError(
                f"model: what {name} takes is no layer's output, expected layers one after the other"
            )

    def _like(self, array: Array, names: Sequence[str]) -> list[str]:
        """Those whose output has as many places."""
        return [name for name in names if self.seen.outputs[name].shape[2:] == array.shape[2:]]

    def _seen_through(self, name: str, field: ReceptiveField) -> ReceptiveField:
        """The field of a leaf's output, given that of its input."""
        layer, x, y = self.layers[name], self.seen.inputs[name], self.seen.outputs[name]
        if isinstance(layer, _POINTWISE):
            return field
        if y.ndim != self.image.ndim or not isinstance(layer, (nn.Conv, nn.MaxPool, nn.AvgPool)):
            raise ValueError(
                f"layer: {name}, a {type(layer).__name__}, has no windows on an image, expected a map"
            )
        windows = list(zip(_geometry(layer, x.shape[2:]), *field[:3], strict=True))
        return ReceptiveField(
            size=tuple(
                size + (kernel - 1) * dilation * step for (kernel, _, dilation, _), size, step, _ in windows
            ),
            stride=tuple(stride * step for (_, stride, _, _), _, step, _ in windows),
            start=tuple(start - before * step for (_, _, _, (before, _)), _, step, start in windows),
            image_size=field.image_size,
        )


def _hull(fields: Iterable[ReceptiveField]) -> ReceptiveField:
    """The field of a place that sees what all these see."""
    found = list(fields)
    strides = {field.stride for field in found}
    if len(strides) != 1:
        raise ValueError(f"model: branches with strides {sorted(strides)} are joined, expected equal ones")
    start = tuple(map(min, zip(*(field.start for field in found), strict=True)))
    ends = [tuple(map(sum, zip(field.start, field.size, strict=True))) for field in found]
    size = tuple(max(some) - first for some, first in zip(zip(*ends, strict=True), start, strict=True))
    return ReceptiveField(size, strides.pop(), start, found[0].image_size)


def _geometry(layer: nn.Layer, size: tuple[int, ...]) -> list[tuple[int, int, int, Span]]:
    """Kernel, stride, dilation and padding of a window along each axis."""
    rank = len(size)
    if isinstance(layer, nn.Conv):
        kernel = layer.params["weight"].shape[2:]
        stride, padding, dilation, _ = layer._geometry
    else:
        kernel, stride, padding, *rest = layer._arguments  # type: ignore[attr-defined]
        stride = kernel if stride is None else arguments.sizes("stride", stride, rank, 1)
        dilation = arguments.sizes("dilation", rest[0] if isinstance(layer, nn.MaxPool) else 1, rank, 1)
    pads = arguments.pads(padding, size, kernel, stride, dilation)
    return list(zip(kernel, stride, dilation, pads, strict=True))


def measured_receptive_field(
    model: nn.Layer, layer: str, position: Sequence[int], image_shape: Sequence[int]
) -> tuple[int, ...]:
    """The pixels that change an element of a feature map: where its gradient is not zero.

    For this all weights of a copy of the network are positive, activations pass everything, and max pools, which
    pass one element only, are swapped for average pools.

    Parameters
    ----------
    model : Layer
    layer : str
    position : sequence of int
        Where in the map.
    image_shape : sequence of int
        Channels, height and width of the image.

    Returns
    -------
    tuple of int
        As of `ReceptiveField.box`: first pixels, then ends, not included.

    Raises
    ------
    ValueError
    """
    part = copy.deepcopy(upto(model, layer))
    # In float64 no transform computes a sum: Winograd's leave roundings where nothing is.
    part.convert(lambda array: array.astype("float64"))
    for name, param in part.params.items():
        # Shares of 1, so that sums of many neither overflow nor vanish.
        param[...] = 1 / math.prod(param.shape[1:]) if name.endswith("weight") else 0
    with taps(part, _LINEAR) as seen:
        output = part.forward(np.ones((1, *image_shape)))
        # Of all channels: the branches of a block see different parts.
        seed = scored(seen.outputs[layer], 0, position).seed
        seed[(0, slice(None), *position)] = 1
        seen.inject[layer] = seed
        dx = seen.backward(np.zeros_like(output))
    touched = np.argwhere(dx[0].any(axis=0))
    return (*map(int, touched.min(axis=0)), *(int(end) + 1 for end in touched.max(axis=0)))


def _passed(layer: nn.Layer, dy: Array) -> Array:
    layer.recall()
    return dy


def _averaged(layer: nn.MaxPool, dy: Array) -> Array:
    (x,) = layer.recall()
    # An average pool has no dilation: a convolution of ones with one group a channel is one.
    rank, channels = x.ndim - 2, x.shape[1]
    kernel, stride, dilation, pads = zip(*_geometry(layer, x.shape[2:]), strict=True)
    ones = np.ones((channels, 1, *kernel), x.dtype) / math.prod(kernel)
    need = [
        (n - 1) * s + (k - 1) * d + 1 - size - before
        for n, s, k, d, size, (before, _) in zip(
            dy.shape[2:], stride, kernel, dilation, x.shape[2:], pads, strict=True
        )
    ]
    padding = [(before, max(after, 0)) for (before, _), after in zip(pads, need, strict=True)]
    dx: Array = getattr(grad, f"conv{rank}d_input")(x.shape, ones, dy, stride, padding, dilation, channels)
    return dx


_LINEAR: Rules = {**dict.fromkeys(ACTIVATIONS, _passed), nn.MaxPool: _averaged}


def plot_receptive_fields(image: Array, boxes: Mapping[str, Sequence[int]]) -> Figure:
    """Receptive fields as frames on an image.

    Parameters
    ----------
    image : array, shape (C, H, W)
    boxes : mapping of str to sequence of int
        From `ReceptiveField.box`, by what the legend says.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.patches import Rectangle

    page = display.figure(4.6, 3.2)
    axis = page.subplots()
    axis.set_axis_off()
    axis.imshow(display.as_picture(image), cmap="gray")
    for place, (name, (top, left, bottom, right)) in enumerate(boxes.items()):
        frame = Rectangle(
            (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, linewidth=2,
            edgecolor=display.LINES[place % len(display.LINES)], label=f"{name}: {bottom - top}x{right - left}",
        )  # fmt: skip
        axis.add_patch(frame)
    page.legend(loc="outside right center", fontsize=8, frameon=False)
    return page
