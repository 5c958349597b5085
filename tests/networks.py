"""Small networks that the tests of `fastconv.explore` look into, and the images they learn from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

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
    corners = np.stack([rng.integers(0, size - 10, count), rng.integers(0, size - 5, count)], axis=1)
    for image, label, (top, left) in zip(x[:, 0], labels, corners, strict=True):
        image[top : top + 10, left : left + 5] += 2 * np.concatenate(
            [(PLUS, RING)[label // 2], (CROSS, BARS)[label % 2]]
        )
    return Planted(x, labels, np.concatenate([corners, corners + (10, 5)], axis=1))


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
