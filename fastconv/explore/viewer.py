"""One layer at a time: its maps of an image, one channel's filter, and what the strongest element of it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastconv import nn
from fastconv.arguments import Array
from fastconv.explore import display
from fastconv.explore.receptive import receptive_field
from fastconv.explore.taps import capture, convolutions, find

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LayerView(NamedTuple):
    """A layer's answer to one image.

    Attributes
    ----------
    layer : str
    maps : array, shape (channels, h, w)
        After the activation.
    channel : int
        Which is looked at.
    position : tuple of int
        Of its strongest element.
    filter : array, shape (C, kh, kw), or None
        The channel's weights, if the layer is a convolution.
    box : tuple of int
        What that element sees of the image: top, left, bottom, right; the last two not included.
    patch : array, shape (C, height, width)
        What is there.
    """

    layer: str
    maps: Array
    channel: int
    position: tuple[int, ...]
    filter: Array | None
    box: tuple[int, ...]
    patch: Array


def layer_view(model: nn.Layer, image: Array, layer: str, channel: int | None = None) -> LayerView:
    """What one layer makes of an image, and what the strongest element of a channel sees.

    Parameters
    ----------
    model : Layer
    image : array, shape (C, H, W)
    layer : str
    channel : int, optional
        That of the strongest element by default.

    Returns
    -------
    LayerView

    Raises
    ------
    ValueError
    """
    maps = capture(model, image[None], layer)[0]
    if channel is None:
        channel = int(maps.reshape(len(maps), -1).max(axis=1).argmax())
    if not 0 <= channel < len(maps):
        raise ValueError(f"channel: got {channel}, expected 0 to {len(maps) - 1}")
    position = tuple(map(int, np.unravel_index(maps[channel].argmax(), maps.shape[1:])))
    found = find(model, layer)
    weights = found.params["weight"][channel].copy() if isinstance(found, nn.Conv) else None
    box = receptive_field(model, layer, image.shape).box(position)
    top, left, bottom, right = box
    return LayerView(layer, maps, channel, position, weights, box, image[:, top:bottom, left:right].copy())


def layer_views(model: nn.Layer, image: Array) -> list[LayerView]:
    """A view of every convolution, in order: :func:`layer_view` of each.

    Parameters
    ----------
    model : Layer
    image : array, shape (C, H, W)

    Returns
    -------
    list of LayerView
    """
    return [layer_view(model, image, name) for name in convolutions(model)]


def plot_layer_view(image: Array, view: LayerView, limit: int = 64) -> Figure:
    """The image with the field of the strongest element, the filter, that channel's map, and all maps on one scale.

    Parameters
    ----------
    image : array, shape (C, H, W)
    view : LayerView
    limit : int
        How many maps are drawn.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.patches import Rectangle

    page = display.figure(10, 3)
    axes = list(page.subplots(1, 4))
    top, left, bottom, right = view.box
    axes[0].imshow(display.as_picture(image), cmap="gray")
    axes[0].add_patch(
        Rectangle(
            (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color=display.ORANGE, linewidth=2
        )
    )
    axes[0].set_title(f"sees {bottom - top}x{right - left} pixels", fontsize=8)
    axes[0].set_axis_off()
    axes[1].set_axis_off()
    if view.filter is not None:
        shown = view.filter[:limit]
        display.show_maps(axes[1], shown, signed=True, common=True)
        axes[1].set_title(f"filter {view.channel}, {len(shown)} of {len(view.filter)} planes", fontsize=8)
    display.show_maps(axes[2], view.maps[view.channel][None])
    row, column = view.position
    axes[2].plot(column, row, marker="o", markersize=8, fillstyle="none", color=display.ORANGE)
    axes[2].set_title(f"map {view.channel}, up to {view.maps[view.channel].max():.3g}", fontsize=8)
    made = display.show_maps(axes[3], view.maps[:limit], common=True)
    axes[3].set_title(f"{view.layer}: {made.low[0]:.3g} to {made.high[0]:.3g}, one scale", fontsize=8)
    return page
