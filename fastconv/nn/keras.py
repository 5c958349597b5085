"""Keras' names and layouts of VGG16, and what torchvision and :func:`fastconv.nn.vgg16` call the same arrays.

Keras lays a convolution's kernel out as (kh, kw, in, out), an affine one's as (in, out), and flattens an image with its
channels last: so the rows of the first affine kernel change places too.
"""

from __future__ import annotations

import math
import re

import numpy as np

from fastconv.arguments import Array
from fastconv.nn.models.vgg import BLOCKS

# "block1_conv1/kernel:0", "vgg16/block1_conv1/kernel", "block1_conv1.kernel", and of files from Theano's days
# "block1_conv1/block1_conv1_W_1:0".
NAME = re.compile(
    r"(?:.*/)?(block\d_conv\d|fc1|fc2|predictions)[/._](?:\1[/._])?(kernel|bias|W|b)(?:_1)?(?::0)?"
)


def _places() -> dict[str, str]:
    """Keras' name of each layer, and ours."""
    places, at = {"fc1": "classifier.0", "fc2": "classifier.3", "predictions": "classifier.6"}, 0
    for block, (_, convolutions) in enumerate(BLOCKS, 1):
        for number in range(1, convolutions + 1):
            places[f"block{block}_conv{number}"] = f"features.{at}"
            at += 2  # the convolution and its ReLU
        at += 1  # the pool
    return places


PLACES = _places()


def names(arrays: dict[str, Array]) -> bool:
    """Whether all `arrays` are called as Keras calls those of VGG16."""
    return bool(arrays) and all(NAME.fullmatch(name) for name in arrays)


def translated(arrays: dict[str, Array]) -> dict[str, Array]:
    """`arrays` under torchvision's names, laid out as torch lays them out.

    Raises
    ------
    ValueError
        If a kernel has not as many axes as its layer's must, or the image that is flattened is not square.
    """
    made = {}
    channels = 0  # of the last convolution, which the first affine layer takes in square images
    for name in sorted(arrays):  # block1_conv1 to block5_conv3, then fc1
        found, array = NAME.fullmatch(name), arrays[name]
        if found is None or found[1] not in PLACES:
            raise ValueError(f"path: got {name!r}, expected a name of Keras' VGG16")
        layer, kind = found.groups()
        if kind in ("bias", "b"):
            made[f"{PLACES[layer]}.bias"] = array
            continue
        axes = 4 if layer.startswith("block") else 2
        if array.ndim != axes:
            raise ValueError(f"path: {name!r} has shape {array.shape}, expected a kernel of {axes} axes")
        if axes == 4:
            channels = array.shape[-1]
            array = array.transpose(3, 2, 0, 1)
        elif layer == "fc1" and channels:
            array = _channels_first(name, array, channels)
        made[f"{PLACES[layer]}.weight"] = np.ascontiguousarray(array if axes == 4 else array.T)
    return made


def _channels_first(name: str, kernel: Array, channels: int) -> Array:
    """The kernel's rows in the order of channels, height, width, where they were in that of height, width, channels."""
    rows, columns = kernel.shape
    side = math.isqrt(rows // channels)
    if side * side * channels != rows:
        raise ValueError(
            f"path: {name!r} takes {rows} numbers, expected those of {channels} channels of a square image"
        )
    return kernel.reshape(side, side, channels, columns).transpose(2, 0, 1, 3).reshape(rows, columns)
