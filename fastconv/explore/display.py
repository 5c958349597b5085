"""From arrays to pictures: scaling, tiling, and colours that colour-blind readers tell apart.

matplotlib is loaded by the functions that return a figure, and by nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastconv.arguments import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Okabe and Ito's blue, vermilion and the rest, which colour-blind readers tell apart.
BLUE, ORANGE = "#0072b2", "#d55e00"
LINES = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


class Scaled(NamedTuple):
    """Maps made ready for a colour scale.

    Attributes
    ----------
    images : array, shape (N, H, W)
        From 0 to 1, or from -1 to 1 if signed.
    low, high : array, shape (N,)
        The values that the ends of the scale stand for, of each map.
    """

    images: Array
    low: Array
    high: Array


def scaled(maps: Array, signed: bool = False, common: bool = False) -> Scaled:
    """Maps stretched over a colour scale, each for itself or all alike.

    Parameters
    ----------
    maps : array, shape (N, H, W)
    signed : bool
        Whether 0 stays in the middle: then the largest absolute value is 1. Otherwise the smallest value
        becomes 0, the largest 1.
    common : bool
        Whether all maps share one scale. If each has its own, a weak map looks as strong as a strong one.

    Returns
    -------
    Scaled
        A constant map is 0.
    """
    maps = np.asarray(maps, "float64")
    if maps.ndim != 3 or not maps.size:
        raise ValueError(f"maps: got shape {maps.shape}, expected (maps, height, width), none of them 0")
    flat = maps.reshape(1 if common else len(maps), -1)
    high, low = flat.max(axis=1), flat.min(axis=1)
    if signed:
        high = np.abs(flat).max(axis=1)
        low = -high
    zero = np.zeros_like(low) if signed else low
    span = np.where(high > zero, high - zero, 1)
    images = (maps - zero[:, None, None]) / span[:, None, None]
    return Scaled(images, *(np.broadcast_to(end, len(maps)) for end in (low, high)))


def as_picture(image: Array) -> Array:
    """One image of a network's input as matplotlib shows it: (H, W) or (H, W, 3), from 0 to 1.

    Parameters
    ----------
    image : array, shape (C, H, W)
        Of one or three channels, on any scale; others are averaged.
    """
    image = np.asarray(image, "float64")
    shape = (1, image.shape[-2], -1)
    flat = scaled(image.reshape(shape)).images.reshape(image.shape)
    return np.moveaxis(flat, 0, -1) if len(image) == 3 else flat.mean(axis=0)


def tile(images: Array, columns: int | None = None, gap: int = 1, fill: float = math.nan) -> Array:
    """Images laid out in rows, as one image.

    Parameters
    ----------
    images : array, shape (N, H, W) or (N, H, W, 3)
    columns : int, optional
        How many stand in a row; as many as make it about square by default.
    gap : int
        Pixels between them.
    fill : float
        What stands in the gaps; nothing is drawn for NaN.

    Returns
    -------
    array, shape (rows * H + gaps, columns * W + gaps) and the colours
    """
    images = np.asarray(images)
    if images.ndim not in (3, 4) or not images.size:
        raise ValueError(
            f"images: got shape {images.shape}, expected (images, height, width), none of them 0"
        )
    count, height, width = images.shape[:3]
    columns = min(columns or math.ceil(math.sqrt(count * height / width)), count)
    rows = -(-count // columns)
    dtype = np.result_type(images, np.float32)
    page = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, *images.shape[3:]), fill, dtype
    )
    for place, image in enumerate(images):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        page[top : top + height, left : left + width] = image
    return page


def enlarged(maps: Array, size: Sequence[int]) -> Array:
    """Maps at another size, by linear interpolation between the centres of their elements.

    Parameters
    ----------
    maps : array, shape (..., h, w)
    size : sequence of int
        Height and width.
    """
    from scipy.ndimage import zoom

    factors = [new / old for new, old in zip(size, maps.shape[-2:], strict=True)]
    made: Array = zoom(maps, [1] * (maps.ndim - 2) + factors, order=1, grid_mode=True, mode="nearest")
    return made


# ---------------------------------------------------------------------------- figures


def diverging() -> Colormap:
    """Blue below zero, white at it, orange above."""
    from matplotlib.colors import LinearSegmentedColormap

    made = LinearSegmentedColormap.from_list(
        "blue-white-orange", [BLUE, "#ffffff", ORANGE], 257
    )  # odd: 0 is white
    return made.with_extremes(bad="#c8c8c8")  # gaps between tiles: white is a value here


def colours(signed: bool) -> Any:
    """What matplotlib's imshow takes: colour map and range, for maps from :func:`scaled`."""
    if signed:
        return {"cmap": diverging(), "vmin": -1, "vmax": 1}
    return {"cmap": "cividis", "vmin": 0, "vmax": 1}


def figure(width: float, height: float) -> Figure:
    """An empty figure, of so many inches, that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panels(count: int, columns: int | None = None, size: float = 1.6) -> tuple[Figure, list[Axes]]:
    """A figure of `count` places for images in rows, each of `size` inches; places left over are not drawn."""
    columns = min(count, columns or math.ceil(math.sqrt(1.6 * count)))
    rows = -(-count // columns)
    made = figure(size * columns, (size + 0.25) * rows)
    axes = list(made.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    return made, axes[:count]


def show_maps(
    axis: Axes, maps: Array, *, signed: bool = False, common: bool = False, columns: int | None = None
) -> Scaled:
    """Draw maps, tiled, on an axis; what their colours stand for is returned."""
    made = scaled(maps, signed, common)
    axis.set_axis_off()
    axis.imshow(tile(made.images, columns), interpolation="nearest", **colours(signed))
    return made


def plot_maps(
    maps: Array,
    *,
    titles: Sequence[str] | None = None,
    signed: bool = False,
    common: bool = True,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """Maps side by side, each with its title, and the colour scale where they share one.

    Parameters
    ----------
    maps : array, shape (N, H, W)
    titles : sequence of str, optional
    signed, common
        See :func:`scaled`.
    columns : int, optional
    title : str, optional
        Over all of them.

    Returns
    -------
    matplotlib.figure.Figure
    """
    made = scaled(maps, signed, common)
    page, axes = panels(len(maps), columns)
    for place, (axis, image) in enumerate(zip(axes, made.images, strict=True)):
        drawn = axis.imshow(image, interpolation="nearest", **colours(signed))
        if titles is not None:
            axis.set_title(titles[place], fontsize=8)
    if common:
        bar = page.colorbar(drawn, ax=axes, shrink=0.7, ticks=[-1, 0, 1] if signed else [0, 1])
        ends = (made.low[0], 0, made.high[0]) if signed else (made.low[0], made.high[0])
        bar.ax.set_yticklabels([f"{end:.3g}" for end in ends], fontsize=8)
    if title is not None:
        page.suptitle(title, fontsize=10)
    return page


def overlay(axis: Axes, image: Array, heat: Array, title: str = "") -> None:
    """Draw a map over the image it belongs to: the image in grey, the map in colour where it is strong.

    Parameters
    ----------
    axis : matplotlib.axes.Axes
    image : array, shape (C, H, W)
    heat : array, shape (h, w)
        Not negative; enlarged to the image's size.
    title : str
    """
    picture = as_picture(image)
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    strength = scaled(enlarged(heat, grey.shape)[None]).images[0]
    axis.set_axis_off()
    axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
    axis.imshow(strength, alpha=0.8 * np.sqrt(strength), **colours(False))
    axis.set_title(title, fontsize=8)


def plot_lines(
    x: Sequence[float] | Sequence[str], lines: Mapping[str, Sequence[float] | Array],
    limits: tuple[float, float] | None = None, *, across: str = "", along: str = "",
) -> Figure:  # fmt: skip
    """Lines over the same places, told apart by colour, mark and their names.

    Parameters
    ----------
    x : sequence
        Numbers, or words for places.
    lines : mapping of str to sequence of float
    limits : tuple of float, optional
        Of the vertical axis.
    across, along : str
        What the axes say.

    Returns
    -------
    matplotlib.figure.Figure
    """
    page = figure(4.4, 2.8)
    axis = page.subplots()
    for place, (name, values) in enumerate(lines.items()):
        axis.plot(
            x, values, label=name, color=LINES[place % len(LINES)], marker="os^Dvx+"[place % 7], markersize=4
        )
    axis.set(xlabel=across, ylabel=along)
    if limits is not None:
        axis.set_ylim(*limits)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8)
    return page
