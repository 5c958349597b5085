"""Features that people made before networks learned them: Sobel, Gabor and HOG, and how far learned ones are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import fastconv as fc
from fastconv.arguments import Array, integer
from fastconv.explore import display
from fastconv.explore.probes import Split, probe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOBEL = np.array([[[[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]], [[[-1, -2, -1], [0, 0, 0], [1, 2, 1]]]], "float32")


class GaborBank(NamedTuple):
    """Gabor filters, each of mean 0 and norm 1.

    Attributes
    ----------
    filters : array, shape (F, 1, size, size)
    orientation : array, shape (F,)
        Radians, of the stripes' normal: 0 answers to vertical edges, pi / 2 to horizontal ones.
    wavelength : array, shape (F,)
        Pixels.
    phase : array, shape (F,)
        Radians.
    """

    filters: Array
    orientation: Array
    wavelength: Array
    phase: Array


def gabor_bank(
    size: int, orientations: int = 8, wavelengths: Sequence[float] = (3.0, 4.5, 7.0), phases: int = 4,
    width: float = 0.5,
) -> GaborBank:  # fmt: skip
    """Every combination of orientations, wavelengths and phases.

    ``exp(-(u^2 + v^2) / 2 s^2) cos(2 pi u / wavelength + phase)``, u along the orientation, v across.

    Parameters
    ----------
    size : int
        Height and width in pixels.
    orientations : int
        Evenly from 0 to, not including, pi.
    wavelengths : sequence of float
        Pixels.
    phases : int
        Evenly from 0 to, not including, 2 pi.
    width : float
        The deviation s in wavelengths.

    Returns
    -------
    GaborBank

    References
    ----------
    J. Daugman, Uncertainty relation for resolution in space, spatial frequency, and orientation optimized by
    two-dimensional visual cortical filters, 1985.
    """
    size = integer("size", size, 2)
    angle, wave, phase = (
        grid.ravel()
        for grid in np.meshgrid(
            np.arange(integer("orientations", orientations, 1)) * np.pi / orientations,
            np.asarray(wavelengths, "float64"),
            np.arange(integer("phases", phases, 1)) * 2 * np.pi / phases,
            indexing="ij",
        )
    )
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    u = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]
    w = wave[:, None, None]
    made = np.exp(-(x * x + y * y) / (2 * (width * w) ** 2)) * np.cos(
        2 * np.pi * u / w + phase[:, None, None]
    )
    made -= made.mean(axis=(1, 2), keepdims=True)
    made /= np.sqrt((made * made).sum(axis=(1, 2), keepdims=True))
    return GaborBank(made[:, None].astype("float32"), angle, wave, phase)


class GaborFit(NamedTuple):
    """The Gabor filter that is most like each filter.

    Attributes
    ----------
    correlation : array, shape (O,)
        From 0 to 1: 1 for a filter that is one.
    orientation, wavelength, phase : array, shape (O,)
        Of the best, as in :class:`GaborBank`.
    best : array, shape (O, size, size)
        The best itself.
    """

    correlation: Array
    orientation: Array
    wavelength: Array
    phase: Array
    best: Array


def gabor_fit(filters: Array, bank: GaborBank | None = None) -> GaborFit:
    """How nearly each filter is a Gabor filter.

    Parameters
    ----------
    filters : array, shape (O, C, k, k)
        Each is averaged over its channels, and its mean taken off.
    bank : GaborBank, optional
        Of the filters' size; 16 orientations, 5 wavelengths and 8 phases by default.

    Returns
    -------
    GaborFit
        Small filters fit easily: compare with filters of random numbers.
    """
    plain = np.asarray(filters, "float64").mean(axis=1)
    size = plain.shape[1]
    if plain.shape[1] != plain.shape[2]:
        raise ValueError(f"filters: got {plain.shape[1]}x{plain.shape[2]}, expected square ones")
    if bank is None:
        bank = gabor_bank(size, 16, np.geomspace(2.5, 2 * size, 5).tolist(), 8)
    if bank.filters.shape[2:] != plain.shape[1:]:
        raise ValueError(f"bank: got filters of {bank.filters.shape[2:]}, expected {plain.shape[1:]}")
    plain = plain - plain.mean(axis=(1, 2), keepdims=True)
    norm = np.sqrt((plain * plain).sum(axis=(1, 2), keepdims=True))
    plain = np.divide(plain, norm, out=np.zeros_like(plain), where=norm > 0)
    match = plain.reshape(len(plain), -1) @ bank.filters.reshape(len(bank.filters), -1).T
    at = match.argmax(axis=1)
    return GaborFit(
        match.max(axis=1), bank.orientation[at], bank.wavelength[at], bank.phase[at], bank.filters[at, 0]
    )


def plot_gabor_fit(filters: Array, fit: GaborFit, limit: int = 12) -> Figure:
    """The filters that fit best, each above its Gabor filter.

    Parameters
    ----------
    filters : array, shape (O, C, k, k)
    fit : GaborFit
    limit : int
        How many.

    Returns
    -------
    matplotlib.figure.Figure
    """
    best = np.argsort(-fit.correlation)[:limit]
    page, axes = display.panels(2 * len(best), columns=len(best), size=0.9)
    rows = (filters.mean(axis=1)[best], fit.best[best])
    for row, maps in enumerate(rows):
        made = display.scaled(maps, signed=True)
        for axis, image in zip(axes[row * len(best) :], made.images, strict=False):
            axis.imshow(image, interpolation="nearest", **display.colours(True))
    for axis, at in zip(axes, best, strict=False):
        axis.set_title(f"{fit.correlation[at]:.2f}", fontsize=8)
    return page


# ---------------------------------------------------------------------------- features for a classifier


def hand_made_features(x: Array, kind: str, cell: int = 4) -> Array:
    """Features of grey images as they were made by hand.

    Parameters
    ----------
    x : array, shape (N, 1, H, W)
    kind : {"pixels", "sobel", "gabor", "hog"}
        The images; the size of their gradient; answers of a Gabor bank, rectified; histograms of gradient directions.
        Each is averaged over cells.
    cell : int
        Height and width of a cell in pixels.

    Returns
    -------
    array, shape (N, features)
    """
    if kind not in FEATURES:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(FEATURES)}")
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError(f"x: got shape {x.shape}, expected (N, 1, height, width), grey images")
    return FEATURES[kind](x, integer("cell", cell, 1)).reshape(len(x), -1)


def _sobel(x: Array, cell: int) -> Array:
    slope = fc.conv2d(x, SOBEL.astype(x.dtype), padding="same", padding_mode="replicate")
    return fc.avg_pool2d(np.sqrt((slope * slope).sum(axis=1, keepdims=True)), cell)


def _gabor(x: Array, cell: int) -> Array:
    bank = gabor_bank(7, 8, (4.0, 7.0), 4).filters.astype(x.dtype)
    return fc.avg_pool2d(np.maximum(fc.conv2d(x, bank, padding="same", padding_mode="replicate"), 0), cell)


def hog(x: Array, cell: int = 4, bins: int = 9) -> Array:
    """Histograms of gradient directions in cells, in blocks of 2 x 2 cells that are normalised together.

    Parameters
    ----------
    x : array, shape (N, 1, H, W)
    cell : int
        Height and width of a cell in pixels.
    bins : int
        Of directions, from 0 to pi; a gradient is shared by the two next to its own.

    Returns
    -------
    array, shape (N, 4 * bins, rows, columns)
        Of the blocks, which overlap.

    References
    ----------
    N. Dalal and B. Triggs, Histograms of oriented gradients for human detection, 2005.
    """
    central = np.array([[[[0, 0, 0], [-1, 0, 1], [0, 0, 0]]], [[[0, -1, 0], [0, 0, 0], [0, 1, 0]]]], x.dtype)
    slope = fc.conv2d(x, central, padding="same", padding_mode="replicate")
    strength = np.sqrt((slope * slope).sum(axis=1))
    place = (np.arctan2(slope[:, 1], slope[:, 0]) % np.pi) / np.pi * bins
    apart = np.abs(place[:, None] - (np.arange(bins) + 0.5)[:, None, None])
    share = np.maximum(1 - np.minimum(apart, bins - apart), 0)  # directions are a circle
    cells = fc.avg_pool2d((share * strength[:, None]).astype(x.dtype), cell)
    blocks = np.concatenate(
        [cells[:, :, i : cells.shape[2] - 1 + i, j : cells.shape[3] - 1 + j] for i in (0, 1) for j in (0, 1)],
        axis=1,
    )
    size = np.sqrt((blocks * blocks).sum(axis=1, keepdims=True))
    return np.divide(blocks, size, out=np.zeros_like(blocks), where=size > 0)


FEATURES: dict[str, Callable[[Array, int], Array]] = {
    "pixels": fc.avg_pool2d,
    "sobel": _sobel,
    "gabor": _gabor,
    "hog": hog,
}


def baselines(split: Split, cell: int = 4) -> dict[str, float]:
    """Accuracy of a linear classifier on each kind of hand-made features, on images held out.

    Parameters
    ----------
    split : tuple of array
        Images and labels to fit on, images and labels held out, as :func:`fastconv.nn.digits` gives them.
    cell : int

    Returns
    -------
    dict of str to float
    """
    x, labels, test_x, test_labels = split
    return {
        kind: probe(
            hand_made_features(x, kind, cell), labels, hand_made_features(test_x, kind, cell), test_labels
        )
        for kind in FEATURES
    }


# ---------------------------------------------------------------------------- tuning, as in the visual cortex


class Tuning(NamedTuple):
    """Answers of filters to gratings, as Hubel and Wiesel asked a cat.

    Attributes
    ----------
    angles : array, shape (A,)
        Radians, of the stripes' normal.
    phases : array, shape (P,)
        Radians.
    simple : array, shape (F, A, P)
        The rectified answer in the middle of the grating.
    pooled : array, shape (F, A, P)
        The maximum of the rectified answers over the pool.
    """

    angles: Array
    phases: Array
    simple: Array
    pooled: Array

    @property
    def preferred(self) -> Array:
        """The angle each filter answers to most, on the mean of all phases."""
        return self.angles[self.simple.mean(axis=2).argmax(axis=1)]

    def phase_variance(self, which: str = "simple") -> Array:
        """How far the answer at the preferred angle depends on the phase: variance over squared mean.

        Parameters
        ----------
        which : {"simple", "pooled"}
        """
        answers = getattr(self, which)
        best = self.simple.mean(axis=2).argmax(axis=1)
        there = answers[np.arange(len(answers)), best]
        mean = there.mean(axis=1)
        variance = there.var(axis=1)
        return np.divide(variance, mean * mean, out=np.zeros_like(mean), where=mean > 0)


def tuning(filters: Array, wavelength: float, angles: int = 24, phases: int = 16, pool: int = 5) -> Tuning:
    """The answers of filters to gratings of all angles and phases, before and after pooling.

    Parameters
    ----------
    filters : array, shape (F, 1, k, k)
    wavelength : float
        Of the gratings, in pixels.
    angles, phases : int
        Evenly from 0 to pi, and from 0 to 2 pi.
    pool : int
        Height and width of the maximum pool in the middle.

    Returns
    -------
    Tuning

    References
    ----------
    D. Hubel and T. Wiesel, Receptive fields, binocular interaction and functional architecture in the cat's visual
    cortex, 1962: simple cells answer to a bar at a place, complex ones to a bar wherever it is.
    """
    pool = integer("pool", pool, 1)
    size = filters.shape[2] + pool - 1
    turn = np.arange(integer("angles", angles, 2)) * np.pi / angles
    shift = np.arange(integer("phases", phases, 2)) * 2 * np.pi / phases
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    along = x * np.cos(turn)[:, None, None] + y * np.sin(turn)[:, None, None]
    gratings = np.cos(2 * np.pi * along[:, None] / wavelength + shift[:, None, None])
    answers = np.maximum(fc.conv2d(gratings.reshape(-1, 1, size, size).astype(filters.dtype), filters), 0)
    middle = answers[:, :, pool // 2, pool // 2]
    pooled = fc.max_pool2d(answers, pool)[:, :, 0, 0]
    simple, complex_ = (some.T.reshape(-1, angles, phases).astype("float64") for some in (middle, pooled))
    return Tuning(turn, shift, simple, complex_)


def plot_tuning(found: Tuning, at: int = 0) -> Figure:
    """One filter's answer over angle, and over phase before and after pooling.

    Parameters
    ----------
    found : Tuning
    at : int
        Which filter.

    Returns
    -------
    matplotlib.figure.Figure
    """
    page = display.figure(6.4, 2.6)
    left, right = page.subplots(1, 2)
    left.plot(
        np.degrees(found.angles), found.simple[at].mean(axis=1), color=display.BLUE, marker="o", markersize=3
    )
    left.set(xlabel="angle in degrees", ylabel="mean answer")
    best = found.simple[at].mean(axis=1).argmax()
    for name, answers, colour, mark in (
        ("one place", found.simple, display.BLUE, "o"), ("pooled", found.pooled, display.ORANGE, "s"),
    ):  # fmt: skip
        right.plot(
            np.degrees(found.phases), answers[at, best], color=colour, marker=mark, markersize=3, label=name
        )
    right.set(xlabel="phase in degrees", ylabel="answer")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    return page
