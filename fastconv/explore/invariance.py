"""What stays when an image is moved or turned, and what does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import fastconv as fc
from fastconv import nn
from fastconv.arguments import Array
from fastconv.explore import display
from fastconv.explore.taps import capture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def match_score(image: Array, piece: Array) -> Array:
    """How well a piece matches the image at each place: the cosine of the angle between them.

    Parameters
    ----------
    image : array, shape (N, C, H, W)
    piece : array, shape (C, h, w)
        What is looked for.

    Returns
    -------
    array, shape (N, H - h + 1, W - w + 1)
        1 where they are alike up to a positive factor, -1 where one is the other's negative, 0 where the image is
        zero.

    Notes
    -----
    Both sums are convolutions: of the image with the piece, and of its square with ones. Of whole numbers that floats
    hold, and a piece of n numbers that are all 1 or -1, the score of an equal place is exactly 1.
    """
    ones = np.ones_like(piece)[None]
    product = fc.conv2d(image, piece[None], precision="highest")
    square = fc.conv2d(image * image, ones, precision="highest")
    # One root of the product, and not a product of two roots, whose roundings would not cancel.
    norm = np.sqrt(np.maximum(square, 0) * (piece * piece).sum())
    score: Array = np.divide(product, norm, out=np.zeros_like(product), where=norm > 0)[:, 0]
    return score


class ShiftChange(NamedTuple):
    """How far outputs change when the image moves.

    Attributes
    ----------
    shifts : integer array
        Pixels, to the right.
    change : array, shape (shifts, N)
        Norm of the difference to the output of the image in its place, over that output's norm.
    """

    shifts: Array
    change: Array


def shift_change(model: nn.Layer, x: Array, shifts: Sequence[int], layer: str | None = None) -> ShiftChange:
    """How far a network's output changes when its images move to the right.

    Parameters
    ----------
    model : Layer
    x : array, shape (N, C, H, W)
        With a border that may be lost: pixels that move out on one side come in on the other.
    shifts : sequence of int
        How many pixels; negative to the left.
    layer : str, optional
        Watch this layer's feature maps, not the network's output.

    Returns
    -------
    ShiftChange
        A strided pool gives other numbers for odd shifts than for even ones: it samples its maxima.
    """

    def rows(images: Array) -> Array:
        made = model.forward(images) if layer is None else capture(model, images, layer)
        return made.reshape(len(images), -1).astype("float64")

    still = rows(x)
    size = np.linalg.norm(still, axis=1)
    if not size.all():
        raise ValueError("x: the output of an image is zero, expected one to compare with")
    moved = [np.linalg.norm(rows(np.roll(x, shift, axis=3)) - still, axis=1) / size for shift in shifts]
    return ShiftChange(np.asarray(shifts), np.array(moved))


def plot_shift_change(found: Mapping[str, ShiftChange]) -> Figure:
    """The mean change over all images for each shift.

    Parameters
    ----------
    found : mapping of str to ShiftChange
        By the name of the network.

    Returns
    -------
    matplotlib.figure.Figure
    """
    shifts = next(iter(found.values())).shifts
    lines = {name: one.change.mean(axis=1) for name, one in found.items()}
    return display.plot_lines(shifts, lines, across="shift in pixels", along="change of the output, relative")


def turned(x: Array, angle: float) -> Array:
    """Images turned about their middle, by linear interpolation; pixels at the border are repeated.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    angle : float
        Degrees, against the clock.
    """
    from scipy.ndimage import rotate

    made: Array = rotate(x, angle, axes=(3, 2), reshape=False, order=1, mode="nearest")
    return made


def rotation_accuracy(model: nn.Layer, x: Array, labels: Array, angles: Sequence[float]) -> Array:
    """Share of images that are recognised, at each angle.

    Parameters
    ----------
    model : Layer
        A classifier.
    x : array, shape (N, C, H, W)
    labels : integer array, shape (N,)
    angles : sequence of float
        Degrees.

    Returns
    -------
    array, one number for each angle
    """
    return np.array([nn.accuracy(model, turned(x, angle), labels) for angle in angles])


def plot_rotation_accuracy(angles: Sequence[float], found: Mapping[str, Array]) -> Figure:
    """Accuracy over angle.

    Parameters
    ----------
    angles : sequence of float
    found : mapping of str to array
        By the name of the network, as :func:`rotation_accuracy` gives them.

    Returns
    -------
    matplotlib.figure.Figure
    """
    return display.plot_lines(angles, found, (0, 1), across="angle in degrees", along="accuracy")


def rotation_pairs(filters: Array) -> Array:
    """How nearly each filter is another one turned by 90, 180 or 270 degrees: the largest cosine.

    Parameters
    ----------
    filters : array, shape (O, C, k, k)

    Returns
    -------
    array, shape (O, O)
        For each pair, from -1 to 1; the diagonal says how nearly a filter is itself turned.
    """
    if filters.shape[2] != filters.shape[3]:
        raise ValueError(f"filters: got {filters.shape[2]}x{filters.shape[3]}, expected square ones")
    flat = [_unit(np.rot90(filters, turns, axes=(2, 3))) for turns in range(4)]
    pairs: Array = np.max([flat[0] @ some.T for some in flat[1:]], axis=0)
    return pairs


def _unit(filters: Array) -> Array:
    rows = np.asarray(filters, "float64").reshape(len(filters), -1)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)
