"""Images to learn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastconv.arguments import Array, integer


class Split(NamedTuple):
    """Images to train on and images held out, each with its labels."""

    x: Array
    labels: Array
    test_x: Array
    test_labels: Array


def digits(size: int = 28, held_out: int = 360) -> Split:
    """The 1,797 scanned digits of scikit-learn, in a random order that is always the same.

    Grey values are float32, of mean 0 and variance 1 over the images to train on.

    Parameters
    ----------
    size : int
        Height and width; the scans are 8x8 and enlarged by linear interpolation.
    held_out : int
        How many are kept from training.

    Returns
    -------
    x, labels, test_x, test_labels : array
        Images of shape (N, 1, size, size) and their classes.

    Raises
    ------
    ValueError
    ImportError
        Without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(f'{error}; the digits need scikit-learn: pip install "fastconv[learn]"') from None
    size, held_out = integer("size", size, 8), integer("held_out", held_out, 1)
    found = load_digits()
    if held_out >= len(found.images):
        raise ValueError(f"held_out: got {held_out}, expected less than all {len(found.images)}")
    order = np.random.default_rng(0).permutation(len(found.images))
    labels, images = found.target[order], enlarged(found.images[order], size)[:, None]
    images = (images - images[held_out:].mean()) / images[held_out:].std()
    images = images.astype("float32")
    return Split(images[held_out:], labels[held_out:], images[:held_out], labels[:held_out])


def shifted(x: Array, rng: np.random.Generator) -> Array:
    """The batch, moved by a pixel or none along each axis, all images alike; pixels at the border are repeated.

    Parameters
    ----------
    x : array, shape (N, C, ...)
    rng : numpy.random.Generator
    """
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        place = np.clip(np.arange(size) + rng.integers(-1, 2), 0, size - 1)
        x = np.take(x, np.asarray(place, like=x), axis=axis)
    return x


def enlarged(images: Array, size: int) -> Array:
    """`images` at `size` x `size`, by linear interpolation between their pixels' centres."""
    small = images.shape[-1]
    centres = np.clip((np.arange(size) + 0.5) * small / size - 0.5, 0, small - 1)
    weights = np.maximum(1 - abs(centres[:, None] - np.arange(small)), 0)
    return weights @ images @ weights.T


DATA: dict[str, Callable[[], Split]] = {"digits": digits}
