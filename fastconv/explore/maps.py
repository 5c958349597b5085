"""Feature maps: their pictures, their strength, how sparse they are, and which are dead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastconv import nn
from fastconv.arguments import Array
from fastconv.explore import display
from fastconv.explore.taps import feature_maps

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
    page = display.figure(3 * count, 3.75)
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


# ---------------------------------------------------------------------------- how sparse, how selective


class Sparsity(NamedTuple):
    """How little of a layer answers.

    Attributes
    ----------
    zeros : float
        The share of its elements that are zero.
    gini : float
        How far what is left is gathered in few places of a map, from 0, even, to 1, all in one place: the mean over
        all maps that are not empty.
    """

    zeros: float
    gini: float


def gini(values: Array) -> Array:
    """Gini's measure of concentration along the last axis, for values that are not negative.

    0 where all are equal, ``1 - 1/n`` where one of n has everything, NaN where all are 0.

    Parameters
    ----------
    values : array, shape (..., n)

    References
    ----------
    N. Hurley and S. Rickard, Comparing measures of sparsity, 2009.
    """
    ordered = np.sort(np.asarray(values, "float64"), axis=-1)
    if ordered.size and ordered[..., 0].min() < 0:
        raise ValueError(f"values: got {ordered[..., 0].min():.3g}, expected none below 0")
    n = ordered.shape[-1]
    total = ordered.sum(axis=-1)
    share = (ordered * (2 * np.arange(1, n + 1) - n - 1)).sum(axis=-1)
    return np.divide(share, n * total, out=np.full_like(total, np.nan), where=total > 0)


def sparsity(maps: Mapping[str, Array]) -> dict[str, Sparsity]:
    """The share of zeros in each layer, and how far the rest is gathered in few places.

    Parameters
    ----------
    maps : mapping of str to array, shape (N, channels, h, w)
        After the activation, as :func:`feature_maps` gives them.

    Returns
    -------
    dict of str to Sparsity

    Raises
    ------
    ValueError
        For maps with negative values.
    """
    made = {}
    for name, some in maps.items():
        local = gini(some.reshape(*some.shape[:2], -1))
        alive = local[~np.isnan(local)]
        made[name] = Sparsity(float((some == 0).mean()), float(alive.mean()) if alive.size else 0.0)
    return made


def dead_filters(model: nn.Layer, x: Array, layers: Sequence[str] | None = None) -> dict[str, Array]:
    """The filters that none of the images activates: their feature maps are nowhere above zero.

    Parameters
    ----------
    model : Layer
    x : array, shape (N, C, H, W)
        The more images, the surer: many hundred.
    layers : sequence of str, optional
        All convolutions by default.

    Returns
    -------
    dict of str to integer array
        Channels, by layer.
    """
    found = feature_maps(model, x, layers)
    return {
        name: np.flatnonzero(~(some > 0).any(axis=(0, *range(2, some.ndim)))) for name, some in found.items()
    }


def selectivity(maps: Array, labels: Array) -> Array:
    """How far each channel answers to one class only: ``(best - rest) / (best + rest)`` of its mean activations.

    Parameters
    ----------
    maps : array, shape (N, channels) or (N, channels, h, w)
        Not negative.
    labels : integer array, shape (N,)

    Returns
    -------
    array, shape (channels,)
        From 0, alike for all classes, to 1; 0 for a channel that is always 0.

    References
    ----------
    A. Morcos et al., On the importance of single directions for generalization, 2018.
    """
    strength = np.asarray(maps, "float64").reshape(*maps.shape[:2], -1).mean(axis=2)
    if strength.min(initial=0) < 0:
        raise ValueError(f"maps: got mean activations down to {strength.min():.3g}, expected none below 0")
    classes = np.unique(labels)
    if len(classes) < 2:
        raise ValueError(f"labels: got {len(classes)} class, expected at least 2")
    means = np.sort(np.stack([strength[labels == one].mean(axis=0) for one in classes]), axis=0)
    best, rest = means[-1], means[:-1].mean(axis=0)
    total = best + rest
    return np.divide(best - rest, total, out=np.zeros_like(total), where=total > 0)


def part_auc(maps: Array, present: Array) -> Array:
    """How surely each channel's strongest activation tells images with a part from those without.

    Parameters
    ----------
    maps : array, shape (N, channels, h, w)
    present : bool array, shape (N,)
        Which images have the part.

    Returns
    -------
    array, shape (channels,)
        The area under the ROC curve: the chance that an image with the part gives more than one without, ties
        counted half.
    """
    from scipy.stats import rankdata

    present = np.asarray(present, bool)
    have, lack = int(present.sum()), int((~present).sum())
    if not have or not lack:
        raise ValueError(
            f"present: got {have} images with the part and {lack} without, expected some of each"
        )
    ranks = rankdata(maps.reshape(*maps.shape[:2], -1).max(axis=2), axis=0)
    area: Array = (ranks[present].sum(axis=0) - have * (have + 1) / 2) / (have * lack)
    return area


def plot_sparsity(found: Mapping[str, Sparsity]) -> Figure:
    """Share of zeros and concentration, layer by layer.

    Parameters
    ----------
    found : mapping of str to Sparsity

    Returns
    -------
    matplotlib.figure.Figure
    """
    return display.plot_lines(
        list(found),
        {"share of zeros": [one.zeros for one in found.values()],
         "concentration (Gini)": [one.gini for one in found.values()]},
        (0, 1),
    )  # fmt: skip
