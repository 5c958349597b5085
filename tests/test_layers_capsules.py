"""Capsules: lengths below 1, coefficients that sum to 1, a plain reference, gradients through the routing, digits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastconv import nn, testing
from tests.test_gradients import close, numeric, random
from tests.test_nn import near


def reference(x: Any, weight: Any, iterations: int) -> tuple[Any, Any]:
    """Procedure 1 of the paper, one image, one capsule and one number after the other."""
    below, above, size, _ = weight.shape
    outputs, couplings = [], []
    for image in x:
        predicted = [[weight[i, j] @ image[i] for j in range(above)] for i in range(below)]
        b = [[0.0] * above for _ in range(below)]
        for step in range(iterations):
            c = [[math.exp(value) / sum(map(math.exp, row)) for value in row] for row in b]
            v = []
            for j in range(above):
                s = sum((c[i][j] * predicted[i][j] for i in range(below)), np.zeros(size))
                square = float(s @ s)
                v.append(square / (1 + square) * s / math.sqrt(square))
            if step + 1 < iterations:
                b = [[b[i][j] + float(predicted[i][j] @ v[j]) for j in range(above)] for i in range(below)]
        outputs.append(v)
        couplings.append(c)
    return np.array(outputs), np.array(couplings)


@pytest.mark.parametrize("iterations", [1, 3])
def test_routing_is_what_the_paper_says(iterations: int) -> None:
    layer, x = nn.Capsules(6, 3, 4, 5, iterations, init=1.0, rng=0, dtype="float64"), random(2, 6, 3)
    expected, couplings = reference(x, layer.params["weight"], iterations)
    near(layer.forward(x), expected)
    near(layer.coefficients, couplings)
    assert iterations == 1 or couplings.std() > 0.01  # routing has something to say


def test_coefficients_sum_to_one() -> None:
    layer = nn.Capsules(7, 4, 3, 5, init=2.0, rng=0, dtype="float64")
    layer.forward(100 * random(3, 7, 4))
    assert layer.coefficients is not None
    assert layer.coefficients.shape == (3, 7, 3)
    assert (layer.coefficients >= 0).all()
    assert abs(layer.coefficients.sum(axis=2) - 1).max() <= 3 * testing.ROUNDOFF["float64"] * 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squashed_lengths_are_below_one(dtype: str) -> None:
    """Long ones almost 1, short ones almost 0, directions kept; a capsule of zeros stays one."""
    scale = np.array([0, 1e-6, 0.1, 1, 10, 1000]).reshape(-1, 1)
    s = (scale * random(6, 8)).astype(dtype)
    v = nn.squash(s)
    length, given = (np.sqrt((a.astype("float64") ** 2).sum(axis=1)) for a in (v, s))
    assert v.dtype == dtype
    assert not v[0].any()
    assert (length < 1).all()
    assert (np.diff(length) > 0).all()
    assert length[-1] > 0.999
    cosine = (v[1:].astype("float64") * s[1:]).sum(axis=1) / (length * given)[1:]
    assert abs(cosine - 1).max() < 100 * testing.ROUNDOFF[dtype]
    assert np.isfinite(nn.squash_grad(s, np.ones_like(s))).all()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.PrimaryCapsules(4), (2, 8, 2, 3)), (nn.Lengths(), (2, 3, 4)),
     *((nn.Capsules(4, 3, 2, 3, n, init=1.0, rng=0, dtype="float64"), (2, 4, 3)) for n in (1, 2, 3))],
)  # fmt: skip
def test_gradients(layer: nn.Layer, shape: tuple[int, ...]) -> None:
    x = random(*shape)
    dy = random(*layer.forward(x).shape)
    close(layer.backward(dy), numeric(layer.forward, x, dy))
    for name, param in layer.params.items():
        close(layer.grads[name], numeric(lambda _: layer.forward(x), param, dy))


def test_primary_capsules_are_channels_of_one_pixel() -> None:
    x = random(2, 6, 2, 2)
    made = nn.PrimaryCapsules(3).forward(x)
    assert made.shape == (2, 8, 3)
    np.testing.assert_array_equal(made[1, 4 + 2], nn.squash(x[1, 3:6, 1, 0]))


def test_capsules_learn_digits() -> None:
    """8x8 scans, four passes. First run: 94.7 % of the held out."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    x, labels, test_x, test_labels = nn.digits(8)
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Conv(1, 32, 3, rng=rng), nn.ReLU(), nn.Conv(32, 32, 3, 2, rng=rng), nn.PrimaryCapsules(8),
        nn.Capsules(16, 8, 10, 8, rng=rng), nn.Lengths(),
    )  # fmt: skip
    nn.fit(model, x, labels, epochs=4, batch_size=50, optimiser=nn.Adam(0.004), rng=rng, progress=False)
    assert nn.accuracy(model, test_x, test_labels) > 0.9


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="a multiple of 4 channels"):
        nn.PrimaryCapsules(4).forward(np.ones((1, 6, 2, 2)))
    with pytest.raises(ValueError, match=r"x: got shape \(1, 5, 3\), expected \(batch, 4, 3\)"):
        nn.Capsules(4, 3, 2, 2).forward(np.ones((1, 5, 3)))
    with pytest.raises(ValueError, match="iterations: got 0"):
        nn.Capsules(4, 3, 2, 2, 0)
