"""The spatial transformer: exact where it can be, torch's numbers, and gradients of images and maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv import nn
from tests.test_gradients import close, numeric, random
from tests.test_nn import near

IDENTITY = [[1, 0, 0], [0, 1, 0]]
QUARTER = [[0, -1, 0], [1, 0, 0]]


def maps(rows: Any, count: int, dtype: str = "float64") -> Any:
    return np.tile(np.array(rows, dtype), (count, 1, 1))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (1, 1, 5, 9), (1, 2, 33, 7), (3, 1, 1, 1)])
def test_the_identity_gives_the_input_to_the_bit(shape: tuple[int, ...], dtype: str) -> None:
    x = random(*shape).astype(dtype)
    y = nn.affine_sample(x, maps(IDENTITY, shape[0], dtype))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [5, 28, 33])
def test_a_quarter_turn_is_rot90_to_the_bit(size: int, dtype: str) -> None:
    x = random(2, 3, size, size).astype(dtype)
    theta = np.eye(3)
    for turns in range(4):
        y = nn.affine_sample(x, maps(theta[:2], 2, dtype))
        np.testing.assert_array_equal(y, np.rot90(x, turns, (2, 3)))
        theta = np.array([*QUARTER, [0, 0, 1]]) @ theta


def test_moving_by_whole_pixels_shifts_and_fills_with_zeros() -> None:
    x = random(1, 1, 4, 6)
    y = nn.affine_sample(x, maps([[1, 0, 2 * 2 / 6], [0, 1, -2 / 4]], 1))
    np.testing.assert_allclose(y[0, 0, 1:, :4], x[0, 0, :3, 2:], rtol=0, atol=1e-15 * abs(x).max() * 10)
    assert not y[0, 0, :, 5].any()
    assert not y[0, 0, 0].any()


def generic(n: int) -> Any:
    """Maps that send no pixel right onto another, where the slope jumps."""
    return maps(IDENTITY, n) + 0.3 * random(n, 2, 3)


def test_gradients() -> None:
    x, theta = random(2, 2, 5, 6), generic(2)
    dy = random(*x.shape)
    dx, dtheta = nn.affine_sample_grad(x, theta, dy)
    close(dx, numeric(lambda v: nn.affine_sample(v, theta), x, dy))
    close(dtheta, numeric(lambda v: nn.affine_sample(x, v), theta, dy))


@pytest.mark.oracle
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (3, 1, 5, 8)])
def test_torch_agrees(shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    f = torch.nn.functional
    x, theta, dy = random(*shape), generic(shape[0]), random(*shape)
    images, turned = torch.from_numpy(x).requires_grad_(), torch.from_numpy(theta).requires_grad_()
    grid = f.affine_grid(turned, shape, align_corners=False)
    expected = f.grid_sample(images, grid, align_corners=False)
    expected.backward(torch.from_numpy(dy))
    near(nn.affine_sample(x, theta), expected)
    dx, dtheta = nn.affine_sample_grad(x, theta, dy)
    near(dx, images.grad)
    near(dtheta, turned.grad)


def transformer() -> nn.SpatialTransformer:
    rng = np.random.default_rng(4)
    last = nn.Linear(5, 6, init=0.1, rng=rng, dtype="float64")
    last.params["bias"][:] = nn.identity_affine("float64")
    return nn.SpatialTransformer(
        nn.Sequential(nn.Flatten(), nn.Linear(2 * 6 * 6, 5, rng=rng, dtype="float64"), nn.Tanh(), last)
    )


def test_gradients_of_the_layer() -> None:
    """Through both ways in which the output depends on the input, and of the network that reads the map."""
    layer, x = transformer(), random(2, 2, 6, 6)
    dy = random(*layer.forward(x).shape)
    close(layer.backward(dy), numeric(layer.forward, x, dy))
    assert list(layer.params) == ["localisation.1.weight", "localisation.1.bias", "localisation.3.weight",
                                  "localisation.3.bias"]  # fmt: skip
    grads = layer.grads
    for name, param in layer.params.items():
        close(grads[name], numeric(lambda _: layer.forward(x), param, dy))


def test_it_begins_as_if_it_were_not_there() -> None:
    layer, x = transformer(), random(3, 2, 6, 6)
    layer.params["localisation.3.weight"][...] = 0
    np.testing.assert_array_equal(layer.forward(x), x)


def test_bad_input_is_refused_in_words() -> None:
    x = np.ones((2, 1, 4, 4))
    with pytest.raises(
        ValueError, match=r"localisation makes \(2, 16\) of \(2, 1, 4, 4\), expected \(2, 6\)"
    ):
        nn.SpatialTransformer(nn.Flatten()).forward(x)
    with pytest.raises(ValueError, match=r"theta: got shape \(1, 2, 3\), expected \(2, 2, 3\)"):
        nn.affine_sample(x, maps(IDENTITY, 1))
    with pytest.raises(ValueError, match=r"x: got shape \(4, 4\)"):
        nn.affine_sample(x[0, 0], maps(IDENTITY, 1))
