"""Feature maps: their pictures, their strength, how sparse they are, and which are dead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastconv.arguments import Array
from fastconv.explore import display

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_feature_maps(
    maps: Mapping[str, Array], image: Array | None = None, *, common: bool = False, signed: bool = False,
    limit: int = 64,
) -> Figure:  # fmt: skip
    """The feature maps that one image causes in each layer, with the range of their values.

    Parameters
    ----------
    maps : mapping of str to array, shape (channels, h, w) or (1, channels, h, w)
        By layer, as :func:`feature_maps` gives them for one image.
    image : array, shape (C, H, W), optional
        Shown before them.
    common : bool
        Whether the maps of a layer share one scale. If each has its own, a weak map looks as strong as a strong one.
    signed : bool
        Whether 0 has the middle of a scale for negative and positive values, as maps before their activation need.
    limit : int
        How many maps of each layer are drawn, from the first.

    Returns
    -------
    matplotlib.figure.Figure
    """
    ready = {name: _of_one(name, some) for name, some in maps.items()}
    count = len(ready) + (image is not None)
    page = display.figure(3 * count, 3.4)
    axes = list(page.subplots(1, count, squeeze=False)[0])
    if image is not None:
        axes[0].imshow(display.as_picture(image), cmap="gray")
        axes[0].set_axis_off()
        axes[0].set_title("input", fontsize=9)
    for axis, (name, some) in zip(axes[count - len(ready) :], ready.items(), strict=True):
        display.show_maps(axis, some[:limit], signed=signed, common=common)
        scale = "one scale" if common else "each on its own scale"
        left_out = f", first {limit}" if len(some) > limit else ""
        axis.set_title(
            f"{name}: {len(some)} of {some.shape[1]}x{some.shape[2]}{left_out}\n"
            f"{some.min():.3g} to {some.max():.3g}, {scale}",
            fontsize=9,
        )
    return page


def _of_one(name: str, maps: Array) -> Array:
    if maps.ndim == 4 and len(maps) == 1:
        maps = maps[0]
    if maps.ndim != 3:
        raise ValueError(
            f"maps: {name} has shape {maps.shape}, expected (channels, h, w), those of one image"
        )
    return maps
