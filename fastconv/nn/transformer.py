"""The spatial transformer: a network that decides, image by image, how to turn, move and scale what the next one sees."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastconv.arguments import Array
from fastconv.nn.layers import Composite, Layer


class Corners(NamedTuple):
    """The four pixels around each place that is sampled, and how much of each goes into it."""

    places: Array  # of each corner in the flat image, (4, N, pixels)
    inside: Array  # 0 where a corner lies beyond the border
    y: Array  # share of the lower corners, (N, pixels)
    x: Array  # share of the right ones

    @property
    def weights(self) -> Array:
        """Of each corner: above left, above right, below left, below right."""
        above, left = 1 - self.y, 1 - self.x
        return np.stack([above * left, above * self.x, self.y * left, self.y * self.x]) * self.inside


class SpatialTransformer(Composite):
    """Samples each image where an affine map, which `localisation` reads off the image, sends its pixels.

    ``theta`` is 2x3: the output's pixel at (x, y) shows the input at ``theta @ (x, y, 1)``, with -1 and 1 at the
    image's borders; between pixels linearly, and 0 outside. At ``theta = [[1, 0, 0], [0, 1, 0]]`` the output is the
    input, to the bit; let `localisation` begin there: :func:`identity_affine` is such a last layer's bias.

    Parameters
    ----------
    localisation : Layer
        From images to six numbers each, the rows of theta.

    References
    ----------
    M. Jaderberg et al., Spatial transformer networks, 2015.
    """

    def __init__(self, localisation: Layer) -> None:
        super().__init__(localisation=localisation)

    def forward(self, x: Array, train: bool = False) -> Array:
        numbers = self.layers["localisation"].forward(x, train)
        if tuple(numbers.shape) != (len(x), 6):
            raise ValueError(
                f"x: localisation makes {tuple(numbers.shape)} of {tuple(x.shape)}, expected ({len(x)}, 6)"
            )
        theta = numbers.reshape(len(x), 2, 3)
        self.keep(x, theta)
        return affine_sample(x, theta)

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        x, theta = self.recall()
        dx, dtheta = affine_sample_grad(x, theta, dy)
        seen = self.layers["localisation"].backward(dtheta.reshape(len(x), 6), input_grad)
        return dx + seen if input_grad else None


def identity_affine(dtype: str = "float32") -> Array:
    """The six numbers of the map that leaves every image as it is."""
    return np.array([1, 0, 0, 0, 1, 0], dtype)


def affine_sample(x: Array, theta: Array) -> Array:
    """Images as affine maps of the plane show them; see :class:`SpatialTransformer`.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    theta : array, shape (N, 2, 3)

    Returns
    -------
    array, of x's shape
        As torch's ``grid_sample(x, affine_grid(theta, x.shape))`` with both at their defaults.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> quarter = np.array([[[0.0, -1, 0], [1, 0, 0]]])
    >>> nn.affine_sample(x, quarter)[0, 0]
    array([[2., 5., 8.],
           [1., 4., 7.],
           [0., 3., 6.]])
    """
    found = _corners(x, theta)
    values = _values(x, found)
    return (values * found.weights[:, :, None]).sum(axis=0).reshape(x.shape)


def affine_sample_grad(x: Array, theta: Array, grad_output: Array) -> tuple[Array, Array]:
    """Gradients of :func:`affine_sample`.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    theta : array, shape (N, 2, 3)
    grad_output : array, of x's shape

    Returns
    -------
    dx, dtheta : array, of x's and theta's shape
        A slope at a place right on a pixel is the one towards its right and lower neighbour.
    """
    n, c, h, w = x.shape
    found = _corners(x, theta)
    dy = grad_output.reshape(n, c, h * w)
    planes = np.arange(n * c, like=found.places).reshape(n, c, 1) * (h * w)
    spread = dy * found.weights[:, :, None]
    flat = (found.places[:, :, None] + planes).reshape(-1)
    dx = np.bincount(flat, spread.reshape(-1), n * c * h * w).reshape(x.shape).astype(x.dtype)
    values = (_values(x, found) * (dy * found.inside[:, :, None])).sum(axis=2)
    above_left, above_right, below_left, below_right = values
    across = (above_right - above_left) * (1 - found.y) + (below_right - below_left) * found.y
    down = (below_left - above_left) * (1 - found.x) + (below_right - above_right) * found.x
    grid, units, _ = _geometry(h, w, theta)
    return dx, (np.stack([across, down], axis=1) @ grid.T) * units


def _geometry(h: int, w: int, theta: Array) -> tuple[Array, Array, Array]:
    """Each output pixel's (x, y, 1), (3, pixels); what makes theta a map of pixels; and the middle of the image.

    Pixels are counted from the middle: whole and half numbers, so that the identity and quarter turns are exact.
    """
    y, x = (np.arange(size) - (size - 1) / 2 for size in (h, w))
    grid = np.stack([np.tile(x, h), y.repeat(w), np.ones(h * w)])
    units = np.array([[1, w / h, w / 2], [h / w, 1, h / 2]])
    middle = np.array([[(w - 1) / 2], [(h - 1) / 2]])
    made = [np.asarray(array.astype(theta.dtype.name), like=theta) for array in (grid, units, middle)]
    return made[0], made[1], made[2]


def _corners(x: Array, theta: Array) -> Corners:
    if x.ndim != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (batch, channels, height, width)")
    if tuple(theta.shape) != (len(x), 2, 3):
        raise ValueError(f"theta: got shape {tuple(theta.shape)}, expected ({len(x)}, 2, 3)")
    h, w = x.shape[2:]
    grid, units, middle = _geometry(h, w, theta)
    at = (theta * units) @ grid + middle
    low = np.floor(at)
    share = at - low
    corners, inside = [], []
    for down in (0, 1):
        for right in (0, 1):
            column, row = low[:, 0] + right, low[:, 1] + down
            inside.append((column >= 0) & (column < w) & (row >= 0) & (row < h))
            corners.append(
                np.clip(row, 0, h - 1).astype("int64") * w + np.clip(column, 0, w - 1).astype("int64")
            )
    return Corners(np.stack(corners), np.stack(inside).astype(x.dtype), share[:, 1], share[:, 0])


def _values(x: Array, found: Corners) -> Array:
    """What stands at each corner in each channel, (4, N, C, pixels)."""
    n, c, h, w = x.shape
    places = np.broadcast_to(found.places[:, :, None], (4, n, c, h * w))
    return np.take_along_axis(x.reshape(1, n, c, h * w), places, axis=3)
