"""The layer-role table (edges, textures, parts, objects) put to the test: numbers for each layer, not names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastconv import nn
from fastconv.arguments import Array
from fastconv.explore import display
from fastconv.explore.hand_made import gabor_fit
from fastconv.explore.maps import selectivity
from fastconv.explore.probes import Split, probe_layers, texture_scores
from fastconv.explore.receptive import receptive_field
from fastconv.explore.taps import capture, convolutions, taps, upto

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def effective_filters(model: nn.Layer, x: Array, layer: str, count: int = 9) -> Array:
    """What each channel of a layer weighs pixels with: its gradient at its strongest places, averaged.

    In the first convolution these are its filters. A deeper channel has no filter of pixels: near each image it acts
    like one, and this is the mean of those for the images that it answers to most.

    Parameters
    ----------
    model : Layer
    x : array, shape (N, C, H, W)
    layer : str
    count : int
        How many images are averaged over, for each channel.

    Returns
    -------
    array, shape (channels, C, h, w)
        Of the receptive field's size; the gradient is 0 in padding.
    """
    maps = capture(model, x, layer, kind="pre")
    field = receptive_field(model, layer, x.shape[1:])
    height, width = field.size
    made = np.zeros((maps.shape[1], x.shape[1], height, width), x.dtype)
    part = upto(model, layer)
    with taps(part) as seen:
        for channel in range(maps.shape[1]):
            flat = maps[:, channel].reshape(len(x), -1)
            images = np.argsort(-flat.max(axis=1), kind="stable")[:count]
            output = part.forward(x[images])
            name = seen.activated(layer, "pre")
            places = np.unravel_index(flat[images].argmax(axis=1), maps.shape[2:])
            seed = np.zeros_like(seen.outputs[name])
            seed[(np.arange(len(images)), channel, *places)] = 1
            seen.inject = {name: seed}
            slope = seen.backward(np.zeros_like(output))
            padded = np.pad(slope, ((0, 0), (0, 0), (height, height), (width, width)))
            for image, *position in zip(padded, *places, strict=True):
                top, left = (
                    s + p * step for s, p, step in zip(field.start, position, field.stride, strict=True)
                )
                made[channel] += image[:, top + height : top + 2 * height, left + width : left + 2 * width]
    return made / min(count, len(x))


class Role(NamedTuple):
    """What can be said of a layer in numbers.

    Attributes
    ----------
    field : int
        Height of its receptive field in pixels.
    gabor : float
        Edges: the mean correlation of its effective filters with the Gabor filter that is most like each.
    texture : float
        Textures: the share of what its features know that survives when patches are shuffled.
    selectivity : float
        Classes: how far its channels answer to one class only, on average.
    probe : float
        Accuracy of a linear classifier on its features.
    """

    field: int
    gabor: float
    texture: float
    selectivity: float
    probe: float


def layer_roles(
    model: nn.Layer, split: Split, size: int, layers: Sequence[str] | None = None, rng: nn.initial.Seed = None
) -> dict[str, Role]:
    """Numbers for each convolution: nothing is assumed about what they do with depth.

    Parameters
    ----------
    model : Layer
        With ReLU after its convolutions.
    split : tuple of array
        Images and labels to fit on, images and labels held out.
    size : int
        Of the patches that are shuffled; it must divide the images' height and width.
    layers : sequence of str, optional
        All convolutions by default.
    rng : numpy.random.Generator or int, optional

    Returns
    -------
    dict of str to Role
    """
    x, _, test_x, test_labels = split
    names = convolutions(model) if layers is None else list(layers)
    probed = probe_layers(model, split, names)
    textures = texture_scores(model, split, size, names, rng)
    return {
        name: Role(
            receptive_field(model, name, x.shape[1:]).size[0],
            float(gabor_fit(effective_filters(model, x, name)).correlation.mean()),
            textures[name].score,
            float(selectivity(capture(model, test_x, name), test_labels).mean()),
            probed[name],
        )
        for name in names
    }


def plot_layer_roles(found: Mapping[str, Role]) -> Figure:
    """The numbers of each layer, as lines over depth.

    Parameters
    ----------
    found : mapping of str to Role

    Returns
    -------
    matplotlib.figure.Figure
    """
    words = {
        "gabor": "Gabor fit",
        "texture": "texture",
        "selectivity": "class selectivity",
        "probe": "linear probe",
    }
    lines = {said: [getattr(one, field) for one in found.values()] for field, said in words.items()}
    return display.plot_lines(list(found), lines, (0, 1))
