"""Experiments: what people say of networks, tried. Each trains or computes what it needs and returns numbers.

All are small, so that they run in seconds on one core, and repeat to the bit for a seed. The data are scikit-learn's
scanned digits, its two photographs, or made here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastconv import api, arguments, nn
from fastconv.arguments import Array, IntOrSizes, Padding
from fastconv.nn.initial import Initial

# ---------------------------------------------------------------------------- networks beside each other


def trained(
    model: nn.Layer, x: Array, labels: Array, *, epochs: int, rate: float = 0.01, seed: int = 0,
    augment: Callable[[Array, np.random.Generator], Array] | None = None,
) -> nn.Layer:  # fmt: skip
    """`model`, trained by Adam on batches of 50 along a cosine: the same for all that is compared here."""
    nn.fit(
        model, x, labels, epochs=epochs, batch_size=50, optimiser=nn.Adam(rate), schedule=nn.cosine,
        augment=augment, rng=seed, progress=False,
    )  # fmt: skip
    return model


def small_mlp(size: int, seed: int = 0) -> nn.Sequential:
    """Two affine layers: each pixel is a number of its own, wherever it is."""
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size * size, 128, rng=rng), nn.ReLU(), nn.Linear(128, 10, rng=rng)
    )


def small_cnn(seed: int = 0) -> nn.Sequential:
    """Two convolutions, a pool between and the mean of each map at the end, `features`, and an affine layer, `head`."""
    rng = np.random.default_rng(seed)
    features = nn.Sequential(
        nn.Conv(1, 16, 3, rng=rng), nn.ReLU(), nn.MaxPool(2), nn.Conv(16, 32, 3, rng=rng), nn.ReLU(),
        nn.AdaptiveAvgPool(1), nn.Flatten(),
    )  # fmt: skip
    return nn.Sequential(features=features, head=nn.Linear(32, 10, rng=rng))


def scattered_digits(size: int = 14, images: int = 1000, seed: int = 0) -> nn.data.Split:
    """The scans of 8x8, each at a place of its own on a larger background.

    Parameters
    ----------
    size : int
        Of the background.
    images : int
        To train on; as ever 360 others are held out.
    seed : int

    Returns
    -------
    x, labels, test_x, test_labels : array
        As :func:`fastconv.nn.digits` gives.
    """
    size = arguments.integer("size", size, 8)
    data, rng = nn.digits(8), np.random.default_rng(seed)

    def scatter(x: Array) -> Array:
        made = np.full((len(x), 1, size, size), x.min(), x.dtype)
        for image, digit in zip(made, x, strict=True):
            top, left = rng.integers(0, size - 7, 2)
            image[:, top : top + 8, left : left + 8] = digit
        return made

    return nn.data.Split(
        scatter(data.x[:images]), data.labels[:images], scatter(data.test_x), data.test_labels
    )


class Permuted(NamedTuple):
    """Accuracies on digits held out, as they are and with their pixels in another, fixed, order.

    Attributes
    ----------
    mlp, mlp_permuted, cnn, cnn_permuted : float
    """

    mlp: float
    mlp_permuted: float
    cnn: float
    cnn_permuted: float


def pixel_permutation(epochs: int = 10, seed: int = 0) -> Permuted:
    """The question whether a network cares where pixels are: all of them are permuted, in every image alike.

    An affine layer's weights can be permuted along, so an MLP must not care. Convolutions and pools count on
    neighbours. The digits are :func:`scattered_digits`.

    Parameters
    ----------
    epochs, seed : int

    Returns
    -------
    Permuted
    """
    data = scattered_digits(seed=seed)
    size = data.x.shape[-1]
    order = np.random.default_rng(seed).permutation(size * size)

    def accuracy(make: Callable[[], nn.Sequential], permute: bool) -> float:
        x, test_x = (
            a.reshape(len(a), -1)[:, order].reshape(a.shape) if permute else a for a in (data.x, data.test_x)
        )
        return nn.accuracy(
            trained(make(), x, data.labels, epochs=epochs, seed=seed), test_x, data.test_labels
        )

    makes = (lambda: small_mlp(size, seed)), (lambda: small_cnn(seed))
    return Permuted(*(accuracy(make, permute) for make in makes for permute in (False, True)))


class Ablation(NamedTuple):
    """Accuracies on digits held out of one affine layer, on what is called by the name.

    Attributes
    ----------
    pixels, random_features, learnt_features : float
    """

    pixels: float
    random_features: float
    learnt_features: float


def affine_ablation(epochs: int = 10, seed: int = 0) -> Ablation:
    """The question what the affine layers of a network add, and what its convolutions.

    The same affine layer is trained on pixels, on features of convolutions as they begin, and on those of convolutions
    that were trained with another such layer, which has been taken away. The digits are :func:`scattered_digits`.

    Parameters
    ----------
    epochs, seed : int

    Returns
    -------
    Ablation
    """
    data = scattered_digits(seed=seed)

    def accuracy(features: Callable[[Array], Array]) -> float:
        seen, held_out = features(data.x), features(data.test_x)
        head = nn.Sequential(nn.Linear(seen.shape[1], 10, rng=seed + 1))
        trained(head, seen, data.labels, epochs=3 * epochs, seed=seed)
        return nn.accuracy(head, held_out, data.test_labels)

    model = small_cnn(seed)
    random = accuracy(nn.prepare(model.layers["features"]))
    trained(model, data.x, data.labels, epochs=epochs, seed=seed)
    return Ablation(
        accuracy(nn.prepare(nn.Flatten())), random, accuracy(nn.prepare(model.layers["features"]))
    )


class FineTuned(NamedTuple):
    """A network adapted to new classes by a new head.

    Attributes
    ----------
    accuracy, random_accuracy : float
        Of the head on learnt features and on those of convolutions as they begin, on digits held out.
    before, after : dict of str to array
        The frozen part's parameters, before and after the head was trained.
    """

    accuracy: float
    random_accuracy: float
    before: dict[str, Array]
    after: dict[str, Array]


def fine_tune(shots: int = 20, epochs: int = 12, seed: int = 0) -> FineTuned:
    """The question whether features learnt on some classes serve others.

    Convolutions learn the digits 0 to 4 from all images there are. Then they are frozen, and a head learns 5 to 9 from a
    few images of each. The digits are :func:`scattered_digits`.

    Parameters
    ----------
    shots : int
        Images of each new class.
    epochs, seed : int

    Returns
    -------
    FineTuned
    """
    data = scattered_digits(images=1400, seed=seed)
    old = data.labels < 5
    model = small_cnn(seed)
    beginning = nn.prepare(small_cnn(seed).layers["features"])
    trained(model, data.x[old], data.labels[old], epochs=epochs, seed=seed)
    features = model.layers["features"]
    before = {name: array.copy() for name, array in features.params.items()}
    few = np.concatenate([np.flatnonzero(data.labels == digit)[:shots] for digit in range(5, 10)])
    new = data.test_labels >= 5

    def accuracy(frozen: Callable[[Array], Array]) -> float:
        seen = frozen(data.x[few])
        head = nn.Sequential(nn.Linear(seen.shape[1], 5, rng=seed))
        trained(head, seen, data.labels[few] - 5, epochs=10 * epochs, seed=seed)
        return nn.accuracy(head, frozen(data.test_x[new]), data.test_labels[new] - 5)

    return FineTuned(accuracy(nn.prepare(features)), accuracy(beginning), before, dict(features.params))


def turned(x: Array, degrees: float, rng: np.random.Generator) -> Array:
    """Images, each turned about its middle by an angle of its own, up to `degrees` either way.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
    degrees : float
    rng : numpy.random.Generator
    """
    angles = np.deg2rad(rng.uniform(-degrees, degrees, len(x)))
    cos, sin, zero = np.cos(angles), np.sin(angles), np.zeros(len(x))
    theta = np.stack([cos, -sin, zero, sin, cos, zero], axis=1).reshape(-1, 2, 3).astype(x.dtype)
    floor = x.min()  # the background, which comes in at the corners
    return nn.affine_sample(x - floor, theta) + floor


class Turned(NamedTuple):
    """Accuracies on turned digits held out.

    Attributes
    ----------
    plain, with_transformer : float
    parameters, transformer_parameters : int
        Of the plain network, and what the transformer adds.
    """

    plain: float
    with_transformer: float
    parameters: int
    transformer_parameters: int


def turned_digits(degrees: float = 90, epochs: int = 20, seed: int = 0) -> Turned:
    """The question whether a spatial transformer helps a network with digits that are turned.

    The network is one affine layer, a template for each digit: it has nothing else to meet turned ones with.

    Parameters
    ----------
    degrees : float
        How far the scans, at a size of 12x12, are turned either way.
    epochs, seed : int

    Returns
    -------
    Turned
    """
    data, rng, pixels = nn.digits(12), np.random.default_rng(seed), 12 * 12
    x, test_x = turned(data.x, degrees, rng), turned(data.test_x, degrees, rng)
    looks = np.random.default_rng(seed + 1)
    last = nn.Linear(32, 6, init=0.0, rng=looks)
    last.params["bias"][:] = nn.identity_affine()
    transformer = nn.SpatialTransformer(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, 64, rng=looks),
            nn.ReLU(),
            nn.Linear(64, 32, rng=looks),
            nn.ReLU(),
            last,
        )
    )

    def templates() -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 10, rng=seed))

    plain, helped = templates(), nn.Sequential(transformer=transformer, net=templates())
    alone, together = (
        nn.accuracy(
            trained(model, x, data.labels, epochs=epochs, rate=0.004, seed=seed), test_x, data.test_labels
        )
        for model in (plain, helped)
    )
    return Turned(alone, together, _count(plain), _count(transformer))


def _count(model: nn.Layer) -> int:
    return sum(int(array.size) for array in model.params.values())


# ---------------------------------------------------------------------------- convolution as a matrix


class Matrix(NamedTuple):
    """A convolution as one affine map.

    Attributes
    ----------
    matrix : scipy.sparse.csr_array, shape (outputs, inputs)
        ``matrix @ x.ravel()`` is the convolution of `x`, ravelled.
    dense, shared : int
        Numbers that an affine layer of this shape would learn, and that the convolution does.
    """

    matrix: Any
    dense: int
    shared: int


def convolution_matrix(
    weight: Array, in_size: IntOrSizes, stride: IntOrSizes = 1, padding: Padding = 0, dilation: IntOrSizes = 1
) -> Matrix:
    """The matrix that a convolution is: mostly zeros, and the same few numbers in every row.

    Each row belongs to an output position, whose window holds the weights; rows of one channel are shifted copies
    (Toeplitz). Built from positions alone, by none of the backends.

    Parameters
    ----------
    weight : array, shape (O, C, ...)
    in_size : int or sequence of int
        Of the image.
    stride, padding, dilation
        As in :func:`fastconv.conv2d`; zeros stand in the padding.

    Returns
    -------
    Matrix

    Raises
    ------
    ValueError, TypeError
    """
    from scipy.sparse import csr_array

    if weight.ndim < 3:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (O, C, kernel...)")
    o, c, *kernel = weight.shape
    rank = len(kernel)
    size = arguments.sizes("in_size", in_size, rank, 1)
    strides, dilations = (
        arguments.sizes("stride", stride, rank, 1),
        arguments.sizes("dilation", dilation, rank, 1),
    )
    pads = arguments.pads(padding, size, tuple(kernel), strides, dilations)
    # Along each axis: the input position where output q meets tap k, and whether there is one.
    reach, out_size = [], []
    for n, k, s, d, (before, after) in zip(size, kernel, strides, dilations, pads, strict=True):
        count = (n + before + after - d * (k - 1) - 1) // s + 1
        if count < 1:
            raise ValueError(f"in_size: got {n}, expected at least {d * (k - 1) + 1 - before - after}")
        reach.append(np.arange(count)[:, None] * s + np.arange(k) * d - before)
        out_size.append(count)
    # All axes together: flat positions, (outputs, taps).
    position, inside = np.zeros((1, 1), int), np.ones((1, 1), bool)
    for n, axis in zip(size, reach, strict=True):
        shape = len(position) * len(axis), position.shape[1] * axis.shape[1]
        within = (axis >= 0) & (axis < n)
        position = (position[:, None, :, None] * n + axis[None, :, None, :]).reshape(shape)
        inside = (inside[:, None, :, None] & within[None, :, None, :]).reshape(shape)
    q, tap = inside.nonzero()
    position = position[inside]
    flat = weight.reshape(o, c, -1)
    rows = np.arange(o)[:, None, None] * math.prod(out_size) + q
    columns = np.arange(c)[None, :, None] * math.prod(size) + position
    values = flat[:, :, tap]
    outputs, inputs = o * math.prod(out_size), c * math.prod(size)
    at = np.broadcast_to(rows, values.shape).ravel(), np.broadcast_to(columns, values.shape).ravel()
    matrix = csr_array((values.ravel(), at), shape=(outputs, inputs))
    return Matrix(matrix, outputs * inputs, int(weight.size))


# ---------------------------------------------------------------------------- how weights begin


def initialisation_study(
    inits: Sequence[Initial] = ("plain", "xavier", "he"), depth: int = 10, channels: int = 64, seed: int = 0
) -> Array:
    """How large activations are, layer by layer, for each way in which weights may begin.

    Standard normal images go through convolutions of 3x3 with ReLU.

    Parameters
    ----------
    inits : sequence of {"plain", "xavier", "he"} or float
    depth, channels, seed : int

    Returns
    -------
    array, shape (inits, depth)
        Standard deviation of each layer's output.
    """
    made = []
    for init in inits:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((8, channels, 16, 16)).astype("float32")
        row = []
        for _ in range(depth):
            layer = nn.Conv(channels, channels, 3, padding=1, padding_mode="circular", init=init, rng=rng)
            x = np.maximum(layer.forward(x), 0)
            row.append(float(x.std()))
        made.append(row)
    return np.array(made)


# ---------------------------------------------------------------------------- sequences


class SequenceRow(NamedTuple):
    """One line of the table.

    Attributes
    ----------
    task, model : str
    parameters : int
    accuracy : float
        On sequences held out.
    """

    task: str
    model: str
    parameters: int
    accuracy: float


class _Last(nn.Layer):
    """What stands at the last time: of a recurrent layer, all that it has heard."""

    def forward(self, x: Array, train: bool = False) -> Array:
        self.keep(x.shape)
        return x[..., -1]

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (shape,) = self.recall()
        dx = np.zeros_like(dy, shape=shape)
        dx[..., -1] = dy
        return dx


def sequence(task: str, count: int, length: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Sequences of four symbols, (count, 4, length) with one 1 at each time, and whether each is of the kind asked for.

    Parameters
    ----------
    task : {"motif", "memory"}
        Whether the symbols 0, 1, 2 follow each other somewhere; or whether the last symbol is the first.
    count, length : int
    rng : numpy.random.Generator
    """
    symbols = rng.integers(0, 4, (count, length))
    labels = rng.integers(0, 2, count)
    if task == "motif":
        for row, wanted in zip(symbols, labels, strict=True):
            while True:  # without the motif where it is not wanted, with one planted where it is
                found = (row[:-2] == 0) & (row[1:-1] == 1) & (row[2:] == 2)
                if not found.any():
                    break
                row[np.flatnonzero(found)[0] + 1] = 3
            if wanted:
                at = rng.integers(0, length - 2)
                row[at : at + 3] = 0, 1, 2
    elif task == "memory":
        symbols[:, -1] = (symbols[:, 0] + np.where(labels, 0, rng.integers(1, 4, count))) % 4
    else:
        raise ValueError(f"task: got {task!r}, expected 'motif' or 'memory'")
    return (symbols[:, None] == np.arange(4)[:, None]).astype("float32"), labels


def sequence_table(
    length: int = 12, images: int = 1500, epochs: int = 12, seed: int = 0
) -> list[SequenceRow]:
    """A recurrent layer and a convolution along time, on the same sequences.

    Both see a sequence by the same weights at every time. The convolution sees three times at once and forgets the
    rest; the recurrent layer sees one and remembers what it can.

    Parameters
    ----------
    length, images, epochs, seed : int

    Returns
    -------
    list of SequenceRow
    """
    table = []
    for task in ("motif", "memory"):
        rng = np.random.default_rng(seed)
        x, labels = sequence(task, images, length, rng)
        test_x, test_labels = sequence(task, 500, length, rng)
        heads = np.random.default_rng(seed)
        models = {
            "RNN": nn.Sequential(nn.RNN(4, 16, rng=heads), _Last(), nn.Linear(16, 2, rng=heads)),
            "conv1d": nn.Sequential(
                nn.Conv(4, 16, (3,), rng=heads), nn.ReLU(), nn.MaxPool((length - 2,)), nn.Flatten(),
                nn.Linear(16, 2, rng=heads),
            ),
        }  # fmt: skip
        for name, model in models.items():
            trained(model, x, labels, epochs=epochs, seed=seed)
            table.append(SequenceRow(task, name, _count(model), nn.accuracy(model, test_x, test_labels)))
    return table


# ---------------------------------------------------------------------------- learning without labels


class Bases(NamedTuple):
    """What a convolutional Boltzmann machine has learnt of photographs.

    Attributes
    ----------
    before, after : array, shape (bases, kernel, kernel)
    errors : list of float
        Mean reconstruction error of each epoch; the images' variance is 1.
    """

    before: Array
    after: Array
    errors: list[float]


def photograph_bases(
    bases: int = 16, kernel: int = 7, patches: int = 200, epochs: int = 8, seed: int = 0
) -> Bases:
    """The question what the first layer of a convolutional deep belief network learns.

    Patches of scikit-learn's two photographs, at half their size, grey, and locally normalised.

    Parameters
    ----------
    bases, kernel, patches, epochs, seed : int

    Returns
    -------
    Bases
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    contrast = nn.LocalContrastNorm(9, eps=0.001)
    greys = (photo.mean(axis=2, dtype="float32")[None, None] / 255 for photo in load_sample_images().images)
    images = [contrast.forward(api.avg_pool2d(grey, 2))[0] for grey in greys]
    size, cuts = 3 * kernel + 1, []
    for place in range(patches):
        image = images[place % 2]
        top, left = (rng.integers(0, n - size + 1) for n in image.shape[1:])
        cuts.append(image[:, top : top + size, left : left + size])
    x = np.stack(cuts)
    machine = nn.ConvRBM(1, bases, kernel, 2, sparsity=0.02, rng=rng)
    before = machine.conv.params["weight"][:, 0].copy()
    errors = nn.pretrain(machine, x / x.std(), epochs=epochs, batch_size=10, optimiser=nn.Adam(0.01), rng=rng)
    return Bases(before, machine.conv.params["weight"][:, 0], errors)


def coherence(filters: Array) -> Array:
    """How much of one direction each filter is: 1 for an edge or a bar, 0 where its slopes point everywhere.

    ``(a - b) / (a + b)`` of the two eigenvalues of the structure tensor, the mean outer product of the slopes.

    Parameters
    ----------
    filters : array, shape (count, kh, kw)

    Returns
    -------
    array, shape (count,)

    References
    ----------
    J. Bigün and G. Granlund, Optimal orientation detection of linear symmetry, 1987.
    """
    down, across = np.gradient(filters, axis=(1, 2))
    yy, xx, xy = ((a * b).sum(axis=(1, 2)) for a, b in ((down, down), (across, across), (across, down)))
    total = yy + xx
    return np.sqrt((xx - yy) ** 2 + 4 * xy**2) / np.where(total > 0, total, 1)
