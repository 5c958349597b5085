"""First-layer filters: what they look like, and how smooth they are, before and after learning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastconv import nn
from fastconv.arguments import Array
from fastconv.explore import display
from fastconv.explore.taps import convolutions, find

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def filters(model: nn.Layer, layer: str | None = None) -> Array:
    """A copy of a convolution's filters.

    Parameters
    ----------
    model : Layer
    layer : str, optional
        A convolution's name; the first one by default.

    Returns
    -------
    array, shape (O, C, kh, kw)

    Raises
    ------
    ValueError
    """
    names = convolutions(model)
    if layer is None and not names:
        raise ValueError("model: got one without a convolution, expected one to show")
    name = names[0] if layer is None else layer
    found = find(model, name)
    if not isinstance(found, nn.Conv):
        raise ValueError(f"layer: {name} is a {type(found).__name__}, expected one of {', '.join(names)}")
    return found.params["weight"].copy()


def total_variation(filters: Array) -> Array:
    """How rough each filter is: the sum of the differences of neighbours, at a norm of 1.

    Parameters
    ----------
    filters : array, shape (O, C, kh, kw)
        Each is divided by the root of the sum of its squares first, so that a weak filter is not a smooth one.

    Returns
    -------
    array, shape (O,)
    """
    w = np.asarray(filters, "float64")
    norm = np.sqrt((w * w).sum(axis=(1, 2, 3)))
    rough = sum(np.abs(np.diff(w, axis=axis)).sum(axis=(1, 2, 3)) for axis in (2, 3))
    return np.divide(rough, norm, out=np.zeros_like(norm), where=norm > 0)


def plot_filters(after: Array, before: Array | None = None, columns: int | None = None) -> Figure:
    """Filters as images, each on its own scale; with those from before the training beside them.

    Three channels are shown as colours. Of another number their planes stand one after the other, blue where a
    weight is negative and orange where it is positive.

    Parameters
    ----------
    after : array, shape (O, C, kh, kw)
    before : array, of the same shape, optional
    columns : int, optional
        How many stand in a row.

    Returns
    -------
    matplotlib.figure.Figure
    """
    shown = {"": after} if before is None else {"before": before, "after": after}
    page = display.figure(3 * len(shown), 3.4)
    for axis, (name, weights) in zip(
        page.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        _draw(axis, weights, columns)
        rough = total_variation(weights).mean()
        axis.set_title(f"{name}{name and ', '}total variation {rough:.2f}", fontsize=9)
    return page


def _draw(axis: Axes, weights: Array, columns: int | None) -> None:
    if weights.shape[1] == 3:
        pictures = np.stack([display.as_picture(one) for one in weights])
        axis.set_axis_off()
        axis.imshow(display.tile(pictures, columns, fill=1), interpolation="nearest")
    else:
        display.show_maps(axis, weights.reshape(-1, *weights.shape[2:]), signed=True, columns=columns)
