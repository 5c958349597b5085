"""Small networks that the tests of `fastconv.explore` look into, and the images they learn from."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastconv import nn

PLUS = np.array(
    [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0]], "float32"
)
RING = np.array(
    [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]], "float32"
)
CROSS = np.array(
    [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]], "float32"
)
BARS = np.array(
    [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], "float32"
)


class Planted(NamedTuple):
    """Noise with one object somewhere: an upper part, plus or ring, and a lower one, cross or bars.

    The class is ``2 * (upper is a ring) + (lower is bars)``: no part says it alone.
    """

    x: Any
    labels: Any
    boxes: Any  # top, left, bottom, right

    @property
    def ring(self) -> Any:
        return self.labels >= 2


def planted(count: int, seed: int, size: int = 32) -> Planted:
    rng = np.random.default_rng(seed)
    x = 0.3 * rng.standard_normal((count, 1, size, size)).astype("float32")
    labels = rng.integers(0, 4, count)
    corners = np.stack([rng.integers(0, size - 20, count), rng.integers(0, size - 10, count)], axis=1)
    for image, label, (top, left) in zip(x[:, 0], labels, corners, strict=True):
        both = np.concatenate([(PLUS, RING)[label // 2], (CROSS, BARS)[label % 2]])
        image[top : top + 20, left : left + 10] += 2 * np.kron(both, np.ones((2, 2), "float32"))
    return Planted(x, labels, np.concatenate([corners, corners + np.array([20, 10])], axis=1))


def five_convolutions(rng: int, classes: int = 4, width: int = 8) -> nn.Sequential:
    """Five convolutions, two pools, a mean over all positions and one linear layer: CAM can explain it."""
    seed, w = np.random.default_rng(rng), width
    return nn.Sequential(
        conv1=nn.Conv(1, w, 3, padding=1, rng=seed), relu1=nn.ReLU(),
        conv2=nn.Conv(w, 2 * w, 3, padding=1, rng=seed), relu2=nn.ReLU(), pool2=nn.MaxPool(2),
        conv3=nn.Conv(2 * w, 2 * w, 3, padding=1, rng=seed), relu3=nn.ReLU(), pool3=nn.MaxPool(2),
        conv4=nn.Conv(2 * w, 3 * w, 3, padding=1, rng=seed), relu4=nn.ReLU(),
        conv5=nn.Conv(3 * w, 3 * w, 3, padding=1, rng=seed), relu5=nn.ReLU(),
        mean=nn.AvgPool(8), flatten=nn.Flatten(), affine=nn.Linear(3 * w, classes, rng=seed),
    )  # fmt: skip


def three_convolutions(rng: int, init: nn.initial.Initial = "he") -> nn.Sequential:
    """Three convolutions and two fully-connected layers, for digits of 16x16."""
    seed = np.random.default_rng(rng)
    return nn.Sequential(
        conv1=nn.Conv(1, 8, 5, padding=2, init=init, rng=seed), relu1=nn.ReLU(), pool1=nn.MaxPool(2),
        conv2=nn.Conv(8, 16, 3, padding=1, init=init, rng=seed), relu2=nn.ReLU(), pool2=nn.MaxPool(2),
        conv3=nn.Conv(16, 32, 3, padding=1, init=init, rng=seed), relu3=nn.ReLU(),
        flatten=nn.Flatten(), affine1=nn.Linear(512, 48, rng=seed), relu4=nn.ReLU(), affine2=nn.Linear(48, 10, rng=seed),
    )  # fmt: skip


class Learned(NamedTuple):
    """A network before and after it learned, and what from."""

    begun: nn.Sequential
    model: nn.Sequential
    split: Any
    boxes: Any = None


@cache
def objects() -> Learned:
    """Five convolutions that tell planted objects apart."""
    train, test = planted(1200, 1), planted(300, 2)
    split = nn.data.Split(train.x, train.labels, test.x, test.labels)
    return Learned(five_convolutions(0), _fitted(five_convolutions(0), split, 6, 0.003), split, test.boxes)


@cache
def digits() -> Learned:
    """Three convolutions and two fully-connected layers that read digits."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    split = nn.digits(16)
    return Learned(three_convolutions(0), _fitted(three_convolutions(0), split, 5), split)


@cache
def filters() -> Learned:
    """SimpleConvNet on small digits, its filters begun with a deviation of 0.01, as the book begins them."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")

    def begun() -> nn.Sequential:
        seed = np.random.default_rng(0)
        return nn.Sequential(
            conv=nn.Conv(1, 30, 5, init="plain", rng=seed), relu1=nn.ReLU(), pool=nn.MaxPool(2), flatten=nn.Flatten(),
            affine1=nn.Linear(1080, 100, rng=seed), relu2=nn.ReLU(), affine2=nn.Linear(100, 10, rng=seed),
        )  # fmt: skip

    split = nn.digits(16)
    return Learned(begun(), _fitted(begun(), split, 3), split)


def _fitted(model: nn.Sequential, split: Any, epochs: int, rate: float = 0.004) -> nn.Sequential:
    nn.fit(
        model, split.x, split.labels, epochs=epochs, batch_size=50, optimiser=nn.Adam(rate), schedule=nn.cosine,
        rng=1, progress=False,
    )  # fmt: skip
    return model
