"""Blocks: layers that do not stand in one line. What comes in is added to what the block makes, or split into branches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from fastconv.arguments import Array
from fastconv.nn.activations import ReLU
from fastconv.nn.layers import Composite, Layer, backward_through, forward_through


class Residual(Composite):
    """``relu(body(x) + x)``, or ``relu(body(x) + downsample(x))``: the body learns what to change of its input.

    Parameters
    ----------
    downsample : Layer, optional
        What brings the input to the shape of the body's output; called so as in torchvision.
    **body : Layer
        One after the other.

    References
    ----------
    K. He et al., Deep residual learning for image recognition, 2016.
    """

    def __init__(self, downsample: Layer | None = None, **body: Layer) -> None:
        if not body:
            raise ValueError("body: got no layers, expected at least one")
        beside = {} if downsample is None else {"downsample": downsample}
        super().__init__(**body, **beside, relu=ReLU())

    @property
    def chain(self) -> Sequence[str]:
        return [name for name in self.layers if name not in ("downsample", "relu")]

    @property
    def _body(self) -> list[Layer]:
        return [self.layers[name] for name in self.chain]

    def forward(self, x: Array, train: bool = False) -> Array:
        y = forward_through(self._body, x, train)
        downsample = self.layers.get("downsample")
        beside = x if downsample is None else downsample.forward(x, train)
        if y.shape != beside.shape:
            raise ValueError(
                f"x: the body makes {tuple(y.shape)} of {tuple(x.shape)}, what it is added to is "
                f"{tuple(beside.shape)}, expected two equal shapes"
            )
        return self.layers["relu"].forward(y + beside, train)

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        dy = self.layers["relu"].backward(dy)
        downsample = self.layers.get("downsample")
        beside = dy if downsample is None else downsample.backward(dy, input_grad)
        dx = backward_through(self._body, dy, input_grad)
        return dx + beside if input_grad else None


class Branches(Composite):
    """Layers beside each other: each takes the whole input, and their outputs' channels are put one after the other.

    Parameters
    ----------
    **branches : Layer
        By name, in the order of their channels.

    References
    ----------
    C. Szegedy et al., Going deeper with convolutions, 2015: its Inception blocks are four of them.
    """

    def forward(self, x: Array, train: bool = False) -> Array:
        made = [branch.forward(x, train) for branch in self.layers.values()]
        sizes = {(len(y), *y.shape[2:]) for y in made}
        if len(sizes) > 1:
            shapes = ", ".join(str(tuple(y.shape)) for y in made)
            raise ValueError(
                f"x: the branches make {shapes}, expected shapes that differ in their channels only"
            )
        self.keep([0, *itertools.accumulate(y.shape[1] for y in made)])
        return np.concatenate(made, axis=1)

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (bounds,) = self.recall()
        dx = None
        for branch, (begin, end) in zip(self.layers.values(), itertools.pairwise(bounds), strict=True):
            part = branch.backward(dy[:, begin:end], input_grad)
            dx = part if dx is None or not input_grad else dx + part
        return dx
