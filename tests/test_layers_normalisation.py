"""Normalisation by neighbours: gradients, torch's numbers, and what it does to flat and to natural images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import nn, testing
from tests.test_gradients import BACKENDS, close, numeric, random
from tests.test_nn import near

LAYERS = [
    nn.LocalResponseNorm(3, alpha=0.5, beta=0.75, k=2.0),
    nn.LocalResponseNorm(4, alpha=2.0, beta=0.3),
    nn.LocalContrastNorm(3),
    nn.LocalContrastNorm((5, 3), eps=0.1),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "naive"])
def test_gradients(layer: nn.Layer, backend: str) -> None:
    x = random(1, 3, 4, 5)
    dy = random(*x.shape)
    with fc.use_backend(backend):
        layer.forward(x)
        close(layer.backward(dy), numeric(layer.forward, x, dy))


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (2, 6, 5), (1, 6, 2, 3, 4)])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_torch_agrees(shape: tuple[int, ...], size: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, dy = random(*shape), random(*shape)
    ours, theirs = nn.LocalResponseNorm(size, 0.3, 0.6, 1.5), torch.nn.LocalResponseNorm(size, 0.3, 0.6, 1.5)
    given = torch.from_numpy(x).requires_grad_()
    expected = theirs(given)
    expected.backward(torch.from_numpy(dy))
    near(ours.forward(x), expected)
    near(ours.backward(dy), given.grad)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0, 1, 0.1, -3e7])
def test_a_constant_image_becomes_zeros(dtype: str, value: float) -> None:
    """Not a rounding's noise made large, and no NaN; its gradient is finite too."""
    layer, x = nn.LocalContrastNorm(9), np.full((2, 3, 12, 17), value, dtype)
    y = layer.forward(x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, np.zeros_like(x))
    assert np.isfinite(layer.backward(np.ones_like(x))).all()


def definition(x: Any, kernel: int, eps: float) -> Any:
    """Local contrast normalisation of one image, pixel by pixel."""
    c, h, w = x.shape
    at = np.arange(kernel) - kernel // 2
    line = np.exp(-(at**2) / (2 * (kernel / 4) ** 2))
    window = np.outer(line, line) / line.sum() ** 2 / c

    def mean(image: Any) -> Any:
        framed = np.pad(image, ((0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2), mode="symmetric")
        return np.array(
            [[(framed[:, i : i + kernel, j : j + kernel] * window).sum() for j in range(w)] for i in range(h)]
        )

    centred = x - mean(x)
    return centred / np.sqrt(mean(centred**2) + eps)


def test_contrast_is_what_its_definition_says() -> None:
    x = random(2, 2, 9, 10)
    expected = np.stack([definition(image, 5, 1e-5) for image in x])
    near(nn.LocalContrastNorm(5).forward(x), expected)


def test_contrast_of_a_photograph() -> None:
    """In the window around each pixel the mean is near 0 and the deviation near 1, in dark and bright parts alike.

    First run: means within 0.076 for 90 % of the windows, deviations from 0.88 to 1.00 for the middle 90 %; before, from
    0.011 to 0.245.
    """
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.datasets import load_sample_image

    image = load_sample_image("china.jpg").transpose(2, 0, 1)[None].astype("float32") / 255
    y = nn.LocalContrastNorm(9, eps=1e-6).forward(image)

    def windows(x: Any) -> tuple[Any, Any]:
        seen = np.lib.stride_tricks.sliding_window_view(x[0], (17, 17), axis=(1, 2))[:, ::13, ::13]
        return seen.mean(axis=(0, 3, 4)), seen.std(axis=(0, 3, 4))

    mean, deviation = windows(y)
    low, high = np.quantile(deviation, [0.05, 0.95])
    assert np.quantile(abs(mean), 0.9) < 0.15
    assert 0.8 < low < high < 1.2
    before = np.quantile(windows(image)[1], [0.05, 0.95])
    assert before[1] / before[0] > 4


def test_contrast_is_shared_by_feature_maps() -> None:
    """A map that is large beside the others makes them small, which separate normalisation would not: to 0.169 of 0.781."""
    x = random(1, 2, 12, 12)
    alone = nn.LocalContrastNorm(5).forward(x[:, :1])
    x[:, 1] *= 100
    together = nn.LocalContrastNorm(5).forward(x)
    assert abs(together[:, 0]).mean() < abs(alone).mean() / 3


def test_bad_input_is_refused_in_words() -> None:
    for act, words in (
        (lambda: nn.LocalContrastNorm(4), "kernel_size: got 4, expected odd"),
        (lambda: nn.LocalContrastNorm(5, eps=0), "eps: got 0"),
        (lambda: nn.LocalContrastNorm(5).forward(np.ones((2, 5))), r"x: got shape \(2, 5\)"),
        (lambda: nn.LocalResponseNorm(0), "size: got 0"),
        (lambda: nn.LocalResponseNorm(3).forward(np.ones(3)), r"x: got shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            act()


def test_nothing_of_float32_is_widened() -> None:
    x = random(1, 5, 8, 8).astype("float32")
    for layer in LAYERS:
        y = layer.forward(x)
        assert y.dtype == layer.backward(y).dtype == "float32"
        wide = layer.forward(x.astype("float64"))
        assert abs(y - wide).max() <= 1000 * testing.ROUNDOFF["float32"] * abs(wide).max()
