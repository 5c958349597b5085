"""What one unit wants: the patches that activate it most, and images made to activate it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastconv import nn
from fastconv.arguments import Array, integer
from fastconv.explore import display
from fastconv.explore.receptive import receptive_field
from fastconv.explore.taps import capture, scored, taps, upto

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TopPatches(NamedTuple):
    """The patches that activate a channel most, strongest first, one of each image.

    Attributes
    ----------
    images : integer array, shape (count,)
        Which images they are from.
    positions : integer array, shape (count, 2)
        Where in the feature map.
    activations : array, shape (count,)
    boxes : integer array, shape (count, 4)
        The receptive fields: top, left, bottom, right; the last two not included.
    patches : list of array, each (C, h, w)
        What the image holds there. At a border a field is cut off, and a patch smaller.
    """

    images: Array
    positions: Array
    activations: Array
    boxes: Array
    patches: list[Array]


def top_patches(model: nn.Layer, x: Array, layer: str, channel: int, count: int = 9) -> TopPatches:
    """The patches of the images that activate one channel most.

    Parameters
    ----------
    model : Layer
    x : array, shape (N, C, H, W)
    layer : str
    channel : int
    count : int
        How many, of as many images.

    Returns
    -------
    TopPatches

    Raises
    ------
    ValueError

    References
    ----------
    M. Zeiler and R. Fergus, Visualizing and understanding convolutional networks, 2013.
    """
    maps = capture(model, x, layer)
    if not 0 <= integer("channel", channel, 0) < maps.shape[1]:
        raise ValueError(f"channel: got {channel}, expected 0 to {maps.shape[1] - 1}")
    flat = maps[:, channel].reshape(len(x), -1)
    best = np.argsort(-flat.max(axis=1), kind="stable")[: integer("count", count, 1)]
    positions = np.stack(np.unravel_index(flat[best].argmax(axis=1), maps.shape[2:]), axis=1)
    field = receptive_field(model, layer, x.shape[1:])
    boxes = np.array([field.box(position) for position in positions.tolist()])
    patches = [
        x[at, :, top:bottom, left:right].copy()
        for at, (top, left, bottom, right) in zip(best, boxes, strict=True)
    ]
    return TopPatches(best, positions, flat[best].max(axis=1), boxes, patches)


def plot_top_patches(found: TopPatches) -> Figure:
    """The patches, each under its activation.

    Parameters
    ----------
    found : TopPatches

    Returns
    -------
    matplotlib.figure.Figure
    """
    page, axes = display.panels(len(found.patches), size=1.2)
    for axis, patch, activation in zip(axes, found.patches, found.activations, strict=True):
        axis.imshow(display.as_picture(patch), cmap="gray", interpolation="nearest")
        axis.set_title(f"{activation:.3g}", fontsize=8)
    return page


class Maximised(NamedTuple):
    """Images that were changed until a unit answered to them.

    Attributes
    ----------
    images : array, shape (N, C, H, W)
    objective : array, shape (steps + 1, N)
        What was to grow, before the first step and after each. It never falls.
    """

    images: Array
    objective: Array


def maximise(
    model: nn.Layer, start: Array, target: Any, *, layer: str | None = None, position: Sequence[int] | None = None,
    kind: str = "post", steps: int = 64, step: float = 1.0, smooth: float = 0.0,
    limits: tuple[float, float] | None = None,
) -> Maximised:  # fmt: skip
    """Change images step by step so that a score grows: gradient ascent with a step that is halved until it helps.

    Parameters
    ----------
    model : Layer
    start : array, shape (N, C, H, W)
        Images to begin with, such as noise of a small deviation.
    target : int or integer array of shape (N,)
        Class, or channel of `layer`.
    layer : str, optional
        A layer whose channel is to answer, not a class.
    position : sequence of int, optional
        Where in the map; all of it by default.
    kind : {"post", "pre"}
        See :func:`capture`. A map that is zero everywhere has no slope after its ReLU; before it has.
    steps : int
    step : float
        Length of the longest step: the root mean square change of a pixel.
    smooth : float
        Deviation, in pixels, of the Gaussian that each gradient is blurred with: without it the images that are
        found are mostly noise of high frequency.
    limits : tuple of float, optional
        The lowest and highest value that pixels may have.

    Returns
    -------
    Maximised

    Raises
    ------
    ValueError

    References
    ----------
    D. Erhan et al., Visualizing higher-layer features of a deep network, 2009.
    """
    part = model if layer is None else upto(model, layer)

    def objective(output: Array) -> tuple[Array, Array]:
        return scored(output, target, position)[:2]

    return _ascend(part, start, objective, layer, kind, steps, step, smooth, limits)


def dream(
    model: nn.Layer, x: Array, layer: str, *, steps: int = 32, step: float = 0.05, smooth: float = 0.5,
    limits: tuple[float, float] | None = None,
) -> Maximised:  # fmt: skip
    """DeepDream: change images so that whatever a layer sees in them it sees more strongly.

    The objective is half the sum of the squares of the layer's feature maps.

    Parameters
    ----------
    model : Layer
    x : array, shape (N, C, H, W)
    layer : str
    steps, step, smooth, limits
        As in :func:`maximise`.

    Returns
    -------
    Maximised

    References
    ----------
    A. Mordvintsev et al., Inceptionism: going deeper into neural networks, 2015.
    """

    def objective(output: Array) -> tuple[Array, Array]:
        return 0.5 * (output * output).reshape(len(output), -1).sum(axis=1), output

    return _ascend(upto(model, layer), x, objective, layer, "post", steps, step, smooth, limits)


def _ascend(
    part: nn.Layer, start: Array, objective: Any, layer: str | None, kind: str, steps: int, step: float,
    smooth: float, limits: tuple[float, float] | None,
) -> Maximised:  # fmt: skip
    from scipy.ndimage import gaussian_filter

    images = start.copy()
    lengths = np.full(len(images), float(step))
    with taps(part) as seen:

        def look(some: Array, uphill: bool) -> tuple[Array, Array]:
            output = part.forward(some)
            name = None if layer is None else seen.activated(layer, kind)
            scores, seed = objective(output if name is None else seen.outputs[name])
            if not uphill:
                return scores, seed
            seen.inject = {} if name is None else {name: seed}
            slope = seen.backward(seed if name is None else np.zeros_like(output))
            return scores, slope

        scores, slope = look(images, uphill=True)
        history = [scores]
        for _ in range(integer("steps", steps, 1)):
            if smooth:
                slope = gaussian_filter(slope, smooth, axes=(2, 3))
            size = np.sqrt((slope * slope).mean(axis=(1, 2, 3), keepdims=True))
            direction = np.divide(slope, size, out=np.zeros_like(slope), where=size > 0)
            scores = _climb(look, images, direction, lengths, step, history[-1], limits)
            history.append(scores)
            _, slope = look(images, uphill=True)
    return Maximised(images, np.array(history))


def _climb(
    look: Any,
    images: Array,
    direction: Array,
    lengths: Array,
    longest: float,
    before: Array,
    limits: tuple[float, float] | None,
) -> Array:
    """Move each image, in place, as far as it helps, halving what does not, and lengthening again what did."""
    scores, waiting = before.copy(), np.arange(len(images))
    for _ in range(12):  # 4096 times shorter: then this image has arrived
        tried = images[waiting] + lengths[waiting, None, None, None].astype(images.dtype) * direction[waiting]
        if limits is not None:
            tried = np.clip(tried, *limits)
        found, _ = look(_filled(images, waiting, tried), uphill=False)
        better = found[waiting] > before[waiting]
        won = waiting[better]
        images[won], scores[won] = tried[better], found[won]
        lengths[won] = np.minimum(1.5 * lengths[won], longest)
        waiting = waiting[~better]
        if not len(waiting):
            break
        lengths[waiting] /= 2
    return scores


def _filled(images: Array, rows: Array, others: Array) -> Array:
    """`images` with other ones in some rows: targets that differ by image stay with their images."""
    made = images.copy()
    made[rows] = others
    return made


def plot_maximised(found: Maximised, titles: Sequence[str] | None = None) -> Figure:
    """The images, each with what the unit gives for it.

    Parameters
    ----------
    found : Maximised
    titles : sequence of str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    page, axes = display.panels(len(found.images))
    for at, (axis, image) in enumerate(zip(axes, found.images, strict=True)):
        axis.imshow(display.as_picture(image), cmap="gray", interpolation="nearest")
        name = "" if titles is None else f"{titles[at]}: "
        axis.set_title(f"{name}{found.objective[0, at]:.3g} to {found.objective[-1, at]:.3g}", fontsize=8)
    return page
