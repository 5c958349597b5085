"""Does a map show what the network has learned? Draw a part of it again, and see whether the map changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv import nn
from fastconv.arguments import Array
from fastconv.explore import display
from fastconv.explore.attribution import grad_cam
from fastconv.explore.taps import find

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def randomised(model: nn.Layer, layers: Sequence[str], rng: nn.initial.Seed = None) -> nn.Layer:
    """A copy of a network in which the weights of some layers change places at random.

    So their mean, their deviation and their largest value stay, and nothing that was learned.

    Parameters
    ----------
    model : Layer
    layers : sequence of str
        Convolutions, linear layers, or composites of them.
    rng : numpy.random.Generator or int, optional

    Returns
    -------
    Layer

    Raises
    ------
    ValueError
        For a layer that is not there.
    """
    made, rng = copy.deepcopy(model), np.random.default_rng(rng)
    for name in layers:
        for param in find(made, name).params.values():
            param[...] = rng.permutation(param.ravel()).reshape(param.shape)
    return made


def parts(model: nn.Layer) -> dict[str, list[str]]:
    """The fully-connected layers and the convolutions of a network, by the names "fc" and "conv"."""
    layers = list(model.named_layers())
    return {
        "fc": [name for name, layer in layers if isinstance(layer, nn.Linear)],
        "conv": [name for name, layer in layers if isinstance(layer, nn.Conv)],
    }


def randomisation_test(
    model: nn.Layer, x: Array, drawn: Mapping[str, Sequence[str]] | None = None, target: Any = None,
    layer: str | None = None, rng: nn.initial.Seed = None,
) -> dict[str, Array]:  # fmt: skip
    """How much of each Grad-CAM map is left when a part of the network is drawn again.

    Parameters
    ----------
    model : Layer
        A classifier.
    x : array, shape (N, C, H, W)
    drawn : mapping of str to sequence of str, optional
        Layers, by what the part is called; `parts` by default: the fully-connected layers alone, and the
        convolutions alone.
    target : int, integer array of shape (N,), or None
        Class; by default what the whole network says, for the other networks too.
    layer : str, optional
        The last convolution by default.
    rng : numpy.random.Generator or int, optional

    Returns
    -------
    dict of str to array, shape (N,)
        The correlation of each image's map with that of the whole network: 1 where the part did not matter, 0 where
        nothing is left, NaN where a map is constant, such as one that is 0 everywhere.

    References
    ----------
    J. Adebayo et al., Sanity checks for saliency maps, 2018.
    """
    rng = np.random.default_rng(rng)
    whole = grad_cam(model, x, target, layer)
    found = {}
    for name, layers in (parts(model) if drawn is None else drawn).items():
        again = grad_cam(randomised(model, layers, rng), x, whole.target, whole.layer)
        found[name] = correlation(whole.maps, again.maps)
    return found


def correlation(maps: Array, others: Array) -> Array:
    """Pearson's correlation of each map with another, NaN where one of the two is constant.

    Parameters
    ----------
    maps, others : array, shape (N, h, w)
    """
    a, b = (np.asarray(some, "float64").reshape(len(some), -1) for some in (maps, others))
    a, b = (some - some.mean(axis=1, keepdims=True) for some in (a, b))
    norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 0)


def plot_randomisation(
    model: nn.Layer, x: Array, drawn: Mapping[str, Sequence[str]] | None = None, target: Any = None,
    layer: str | None = None, rng: nn.initial.Seed = None,
) -> Figure:  # fmt: skip
    """The Grad-CAM maps of :func:`randomisation_test` under those of the whole network.

    Parameters
    ----------
    model, x, drawn, target, layer, rng
        As there; the same seed draws the same weights.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rng = np.random.default_rng(rng)
    whole = grad_cam(model, x, target, layer)
    rows = {"whole network": whole}
    for name, layers in (parts(model) if drawn is None else drawn).items():
        rows[f"{name} random"] = grad_cam(randomised(model, layers, rng), x, whole.target, whole.layer)
    page, axes = display.panels(len(x) * len(rows), columns=len(x))
    for row, (name, found) in enumerate(rows.items()):
        likeness = correlation(whole.maps, found.maps)
        for at, image in enumerate(x):
            said = "empty" if np.isnan(likeness[at]) else f"{likeness[at]:.2f}"
            title = "" if at else f"{name} "
            display.overlay(axes[row * len(x) + at], image, found.maps[at], title + said)
    return page
