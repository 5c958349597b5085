"""Where does it look? Gradients, Grad-CAM, deconvnet and occlusion: what in an image a score comes from.

Everywhere ``target`` is a class, or with ``layer`` a channel of that layer, one for all images or one for each;
by default each image's strongest. The score of a channel is its sum over all positions, or its value at one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import fastconv as fc
from fastconv import nn, testing
from fastconv.arguments import Array, integer
from fastconv.explore import display
from fastconv.explore.taps import Rules, batches, convolutions, feature_maps, find, scored, taps, upto

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Target = Any


def _deconvnet_relu(layer: nn.ReLU, dy: Array) -> Array:
    layer.recall()
    return np.maximum(dy, 0)


def _guided_relu(layer: nn.ReLU, dy: Array) -> Array:
    (y,) = layer.recall()
    return np.where(y > 0, np.maximum(dy, 0), 0)


def _unpooled(layer: nn.MaxPool, dy: Array) -> Array:
    """Each number goes where its window's maximum was; where two meet the last one stays."""
    (x,) = layer.recall()
    pool, unpool = getattr(fc, f"max_pool{x.ndim - 2}d"), getattr(fc, f"max_unpool{x.ndim - 2}d")
    kernel, stride, padding, *rest = layer._arguments
    _, switches = pool(x, kernel, stride, padding, *rest, return_indices=True)
    return unpool(dy, switches, kernel, stride, padding, output_size=x.shape[2:])


RULES: dict[str, Rules] = {
    "plain": {},
    "guided": {nn.ReLU: _guided_relu},
    "deconvnet": {nn.ReLU: _deconvnet_relu, nn.MaxPool: _unpooled},
}


def input_gradient(
    model: nn.Layer, x: Array, target: Target = None, *, layer: str | None = None,
    position: Sequence[int] | None = None, kind: str = "post", rule: str = "plain",
) -> Array:  # fmt: skip
    """How the score changes with each pixel, by the layers' own `backward`.

    Parameters
    ----------
    model : Layer
    x : array, shape (N, C, H, W)
    target : int, integer array of shape (N,), or None
        Class, or channel of `layer`; each image's strongest by default.
    layer : str, optional
        Explain this layer's feature map, not the network's output.
    position : sequence of int, optional
        Where in the map; the sum over all of it by default.
    kind : {"post", "pre"}
        See :func:`capture`.
    rule : {"plain", "guided", "deconvnet"}
        What happens at a ReLU on the way back: the gradient passes where the input was positive ("plain"), where
        the gradient is ("deconvnet"), or where both are ("guided"). Of a layer "deconvnet" projects the activations
        themselves: see :func:`deconvnet`.

    Returns
    -------
    array, of x's shape

    Raises
    ------
    ValueError

    References
    ----------
    K. Simonyan et al., Deep inside convolutional networks, 2013. J. Springenberg et al., Striving for simplicity:
    the all convolutional net, 2014.
    """
    if rule not in RULES:
        raise ValueError(f"rule: got {rule!r}, expected one of {', '.join(RULES)}")
    part = model if layer is None else upto(model, layer)
    with taps(part, RULES[rule]) as seen:
        output = part.forward(x)
        if layer is None:
            return seen.backward(scored(output, target, position).seed)
        name = seen.activated(layer, kind)
        seed = scored(seen.outputs[name], target, position).seed
        if rule == "deconvnet":  # what is projected down is the activation, all others set to 0
            seed = seed * seen.outputs[name]
        # Above the layer nothing but zeros comes down, whatever joins it there.
        seen.inject[name] = seed
        return seen.backward(np.zeros_like(output))


def deconvnet(
    model: nn.Layer, x: Array, layer: str, channel: Target = None, position: Sequence[int] | None = None
) -> Array:
    """What in the image one activation came from: a layer's map, all else in it set to 0, projected to pixels.

    Maxima go back to where they were (:func:`fastconv.max_unpool2d` with the pool's indices), ReLU passes what is
    positive, and each convolution is transposed. In a network without ReLU and max pooling this is the gradient
    of half the square of the activation.

    Parameters
    ----------
    model : Layer
    x : array, shape (N, C, H, W)
    layer : str
    channel : int, integer array of shape (N,), or None
        Of the layer's feature map; each image's strongest by default.
    position : sequence of int, optional
        One place in the map; by default the whole map is projected.

    Returns
    -------
    array, of x's shape

    Raises
    ------
    ValueError

    Notes
    -----
    Where pooling windows overlap and share a maximum, the later window's number stays.

    References
    ----------
    M. Zeiler and R. Fergus, Visualizing and understanding convolutional networks, 2013.
    """
    return input_gradient(model, x, channel, layer=layer, position=position, rule="deconvnet")


class ClassMaps(NamedTuple):
    """Where evidence for a class is.

    Attributes
    ----------
    maps : array, shape (N, h, w)
        At the layer's size, not negative for Grad-CAM.
    weights : array, shape (N, channels)
        What each feature map was multiplied by.
    target : integer array, shape (N,)
        The class of each image that is explained.
    layer : str
        Whose feature maps they are.
    """

    maps: Array
    weights: Array
    target: Array
    layer: str


def grad_cam(
    model: nn.Layer, x: Array, target: Target = None, layer: str | None = None, kind: str = "post"
) -> ClassMaps:
    """Grad-CAM: ``relu(sum_k a_k A_k)``, ``a_k`` being the mean of the score's gradient over feature map ``A_k``.

    The backward ends at the layer: nothing below it is computed.

    Parameters
    ----------
    model : Layer
        A classifier.
    x : array, shape (N, C, H, W)
    target : int, integer array of shape (N,), or None
        Class; each image's most probable by default.
    layer : str, optional
        The last convolution by default, or the residual or branching block that it ends.
    kind : {"post", "pre"}
        See :func:`capture`.

    Returns
    -------
    ClassMaps

    Raises
    ------
    ValueError

    References
    ----------
    R. Selvaraju et al., Grad-CAM, 2016.
    """
    name = _last(model) if layer is None else layer
    find(model, name)
    with taps(model) as seen:
        logits = model.forward(x)
        _, seed, classes = scored(logits, target)
        seen.until = seen.activated(name, kind)
        seen.backward(seed)
        a, slope = seen.outputs[seen.until], seen.gradients[seen.until]
    if a.ndim != 4:
        raise ValueError(f"layer: {name} gives shape {a.shape}, expected maps of shape (N, channels, h, w)")
    weights = slope.mean(axis=(2, 3))
    maps = np.maximum(np.einsum("nc,nchw->nhw", weights, a), 0)
    return ClassMaps(maps, weights, classes, name)


def _last(model: nn.Layer) -> str:
    """The last convolution; where it stands in a block of branches, that block, which holds what they see together."""
    names = convolutions(model)
    if not names:
        raise ValueError("model: got one without a convolution, expected one to explain")
    layers, parts = dict(model.named_layers()), names[-1].split(".")
    around = [".".join(parts[:end]) for end in range(1, len(parts))]
    return next((name for name in around if not isinstance(layers[name], nn.Sequential)), names[-1])


def cam(model: nn.Layer, x: Array, target: Target = None) -> ClassMaps:
    """CAM: the last feature maps, each weighted as the class weighs its mean. Not rectified.

    Parameters
    ----------
    model : Layer
        A classifier that ends with a mean over all positions and one linear layer.
    x : array, shape (N, C, H, W)
    target : int, integer array of shape (N,), or None
        Class; each image's most probable by default.

    Returns
    -------
    ClassMaps

    Raises
    ------
    ValueError
        For another kind of network: use :func:`grad_cam`.

    References
    ----------
    B. Zhou et al., Learning deep features for discriminative localization, 2015.
    """
    name = _last(model)
    with taps(model) as seen:
        logits = model.forward(x)
        a = seen.outputs[seen.activated(name)]
        ends = [at for at, layer in model.named_layers() if isinstance(layer, nn.Linear)]
        if len(ends) != 1 or not _is_mean(seen.inputs[ends[0]], a):
            raise ValueError(
                "model: its end is not a mean over all positions and one linear layer, expected that: use grad_cam"
            )
    classes = scored(logits, target).target
    weights = find(model, ends[0]).params["weight"][classes]
    return ClassMaps(np.einsum("nc,nchw->nhw", weights, a), weights, classes, name)


def _is_mean(rows: Array, maps: Array) -> bool:
    if maps.ndim != 4 or rows.shape != maps.shape[:2]:
        return False
    count, size = maps[0, 0].size, np.abs(maps).max(initial=0)
    allowed = count * testing.ROUNDOFF[maps.dtype.name] * size
    return bool(np.abs(rows - maps.mean(axis=(2, 3), dtype="float64")).max() <= 2 * allowed)


class Occlusion(NamedTuple):
    """How the score falls when a part of the image is covered.

    Attributes
    ----------
    drops : array, shape (N, rows, columns)
        Score of the whole image less that with the patch at each place.
    rows, columns : integer array
        Of the patch's upper left corner, in pixels.
    size : int
        Height and width of the patch.
    scores : array, shape (N,)
        Of the whole images.
    """

    drops: Array
    rows: Array
    columns: Array
    size: int
    scores: Array


def occlusion(
    model: nn.Layer, x: Array, target: Target = None, *, layer: str | None = None, size: int = 7, stride: int = 2,
    fill: float | None = None, batch_size: int = 64,
) -> Occlusion:  # fmt: skip
    """Slide a grey patch over each image, and see how far the score falls.

    Parameters
    ----------
    model : Layer
    x : array, shape (N, C, H, W)
    target : int, integer array of shape (N,), or None
        Class, or channel of `layer`; each image's strongest by default.
    layer : str, optional
        Watch the activity within this layer's feature map, not the network's output.
    size : int
        Height and width of the patch in pixels.
    stride : int
        How far it moves each time.
    fill : float, optional
        What it is filled with; each image's mean by default.
    batch_size : int
        How many covered images go through the network at once.

    Returns
    -------
    Occlusion

    Raises
    ------
    ValueError

    References
    ----------
    M. Zeiler and R. Fergus, Visualizing and understanding convolutional networks, 2013, figure 6.
    """
    size, stride = integer("size", size, 1), integer("stride", stride, 1)
    if size > min(x.shape[-2:]):
        raise ValueError(f"size: got {size}, expected at most {min(x.shape[-2:])}, the image's smaller side")
    part = model if layer is None else upto(model, layer)

    def outputs(images: Array) -> Array:
        return part.forward(images) if layer is None else feature_maps(part, images, [layer])[layer]

    whole = outputs(x)
    scores, _, chosen = scored(whole, target)
    rows, columns = (np.arange(0, length - size + 1, stride) for length in x.shape[-2:])
    drops = np.empty((len(x), len(rows), len(columns)), scores.dtype)
    corners = [(top, left) for top in rows for left in columns]
    for at, image in enumerate(x):
        grey = image.mean() if fill is None else fill
        found = []
        for some in batches(np.array(corners), integer("batch_size", batch_size, 1)):
            covered = np.repeat(image[None], len(some), axis=0)
            for copy, (top, left) in zip(covered, some, strict=True):
                copy[:, top : top + size, left : left + size] = grey
            found.append(scored(outputs(covered), chosen[at])[0])
        drops[at] = scores[at] - np.concatenate(found).reshape(len(rows), len(columns))
    return Occlusion(drops, rows, columns, size, scores)


# ---------------------------------------------------------------------------- pictures


def plot_class_maps(x: Array, found: ClassMaps, titles: Sequence[str] | None = None) -> Figure:
    """Each image with the map over it, at the image's size.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    found : ClassMaps
    titles : sequence of str, optional
        The class by default.

    Returns
    -------
    matplotlib.figure.Figure
    """
    page, axes = display.panels(len(x))
    for at, axis in enumerate(axes):
        title = f"class {found.target[at]}" if titles is None else titles[at]
        display.overlay(axis, x[at], np.maximum(found.maps[at], 0), title)
    return page


def plot_gradients(x: Array, gradients: dict[str, Array]) -> Figure:
    """Images above what was found by each method: blue where the score falls with the pixel, orange where it rises.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    gradients : dict of str to array
        Of x's shape, by the name of the method; channels are added up.

    Returns
    -------
    matplotlib.figure.Figure
    """
    page, axes = display.panels(len(x) * (1 + len(gradients)), columns=len(x))
    for at, image in enumerate(x):
        axes[at].imshow(display.as_picture(image), cmap="gray")
    rows = np.array(axes, object).reshape(-1, len(x))
    for row, (name, found) in zip(rows[1:], gradients.items(), strict=True):
        made = display.scaled(np.asarray(found).sum(axis=1), signed=True)
        for axis, image in zip(row, made.images, strict=True):
            axis.imshow(image, interpolation="nearest", **display.colours(True))
        row[0].set_title(name, fontsize=8, loc="left")
    return page


def plot_occlusion(x: Array, found: Occlusion) -> Figure:
    """Images above the fall of the score, at the middle of each place of the patch: orange where it falls.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    found : Occlusion

    Returns
    -------
    matplotlib.figure.Figure
    """
    page, axes = display.panels(2 * len(x), columns=len(x))
    made = display.scaled(found.drops, signed=True)
    half = found.size / 2 - 0.5
    extent = (
        found.columns[0] + half, found.columns[-1] + half, found.rows[-1] + half, found.rows[0] + half
    )  # fmt: skip
    for at, image in enumerate(x):
        for axis in (axes[at], axes[len(x) + at]):
            axis.imshow(display.as_picture(image), cmap="gray")
        below = axes[len(x) + at]
        below.imshow(made.images[at], extent=extent, alpha=0.8, **display.colours(True))
        below.set_xlim(-0.5, image.shape[2] - 0.5)
        below.set_ylim(image.shape[1] - 0.5, -0.5)
        below.set_title(f"falls by up to {found.drops[at].max():.3g}\nof {found.scores[at]:.3g}", fontsize=7)
    return page
