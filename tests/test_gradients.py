"""Every gradient against central differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastconv as fc
from fastconv import grad
from fastconv.backends import backends, owner

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]

# A central difference is off by h^2 from truncation and by eps / h from rounding: h = eps^(1/3) balances
# them at 4e-11 of the values, and 1e-6 leaves room for sums.
STEP = float(np.finfo("float64").eps) ** (1 / 3)
BOUND = 1e-6


class Class(NamedTuple):
    """One class of geometry: rank, groups, and keywords."""

    name: str
    rank: int
    groups: int
    keywords: dict[str, Any]


CLASSES = [
    Class("1d", 1, 1, {}),
    Class("1d stride padding", 1, 1, {"stride": 2, "padding": 2}),
    Class("1d dilation groups", 1, 2, {"dilation": 2, "padding": 1}),
    Class("2d", 2, 1, {}),
    Class("2d stride", 2, 1, {"stride": (2, 3)}),
    Class("2d asymmetric", 2, 1, {"padding": ((0, 2), (1, 0))}),
    Class("2d dilation", 2, 1, {"dilation": (2, 1), "padding": 1}),
    Class("2d depthwise", 2, 4, {"padding": 1}),
    Class("2d same", 2, 1, {"padding": "same", "stride": 2}),
    Class("2d reflect", 2, 1, {"padding": 2, "padding_mode": "reflect"}),
    Class("2d replicate", 2, 2, {"padding": ((2, 0), (1, 3)), "padding_mode": "replicate"}),
    Class("2d circular", 2, 1, {"padding": 2, "padding_mode": "circular"}),
    Class("2d symmetric", 2, 1, {"padding": 2, "padding_mode": "symmetric", "stride": 2}),
    Class("3d", 3, 1, {"padding": 1, "stride": (1, 2, 1)}),
    Class("3d groups dilation", 3, 2, {"dilation": (1, 2, 1), "padding": 1}),
]


def numeric(function: Callable[[Any], Any], x: Any, dy: Any) -> Any:
    """Gradient of <function(x), dy> by central differences."""
    result = np.empty_like(x)
    for at in np.ndindex(x.shape):
        kept = x[at]
        x[at] = kept + STEP
        above = np.vdot(function(x), dy)
        x[at] = kept - STEP
        below = np.vdot(function(x), dy)
        x[at] = kept
        result[at] = (above - below) / (2 * STEP)
    return result


def close(got: Any, expected: Any) -> None:
    scale = max(float(np.abs(expected).max()), 1.0)
    assert float(np.abs(got - expected).max()) / scale < BOUND


def random(*shape: int) -> Any:
    return np.random.default_rng(list(shape)).standard_normal(shape)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "naive"])
@pytest.mark.parametrize("case", CLASSES, ids=lambda case: case.name)
def test_convolution(backend: str, case: Class) -> None:
    rank, size, kernel = case.rank, (6, 5, 4)[: case.rank], (3, 2, 2)[: case.rank]
    x, w, b = random(2, 4, *size), random(4, 4 // case.groups, *kernel), random(4)
    forward, keywords = (
        getattr(fc, f"conv{rank}d"),
        case.keywords | {"groups": case.groups, "backend": backend},
    )
    dy = random(*forward(x, w, b, **keywords).shape)
    dx = getattr(grad, f"conv{rank}d_input")(x.shape, w, dy, **keywords)
    dw = getattr(grad, f"conv{rank}d_weight")(x, w.shape, dy, **keywords)
    close(dx, numeric(lambda v: forward(v, w, b, **keywords), x, dy))
    close(dw, numeric(lambda v: forward(x, v, b, **keywords), w, dy))
    close(getattr(grad, f"conv{rank}d_bias")(dy), numeric(lambda v: forward(x, w, v, **keywords), b, dy))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "naive"])
@pytest.mark.parametrize(
    ("rank", "keywords"),
    [(1, {}), (1, {"stride": 2, "output_padding": 1}), (2, {"stride": 2, "padding": 1, "groups": 2}), (2, {"dilation": 2, "output_padding": 1}), (3, {"stride": (1, 2, 1)})],
    ids=str,
)  # fmt: skip
def test_transposed_convolution(backend: str, rank: int, keywords: dict[str, Any]) -> None:
    size, kernel = (4, 3, 3)[:rank], (3, 2, 2)[:rank]
    keywords = keywords | {"backend": backend}
    x, w, b = random(2, 4, *size), random(4, 3, *kernel), random(3 * keywords.get("groups", 1))
    forward = getattr(fc, f"conv_transpose{rank}d")
    dy = random(*forward(x, w, b, **keywords).shape)
    dx = getattr(grad, f"conv_transpose{rank}d_input")(x.shape, w, dy, **keywords)
    dw = getattr(grad, f"conv_transpose{rank}d_weight")(x, w.shape, dy, **keywords)
    close(dx, numeric(lambda v: forward(v, w, b, **keywords), x, dy))
    close(dw, numeric(lambda v: forward(x, v, b, **keywords), w, dy))


POOLS = [
    ("max_pool", (2,), {}),
    ("max_pool", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}),
    ("max_pool", (2,), {"dilation": 2, "stride": 1}),
    ("avg_pool", (2,), {}),
    ("avg_pool", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}),
    ("avg_pool", (3,), {"stride": 1, "padding": 1, "count_include_pad": False}),
    ("lp_pool", (2.0, 2), {}),
    ("lp_pool", (3.0, 3), {"stride": 2, "ceil_mode": True}),
    ("lp_pool", (1.5, 2), {"stride": 1}),
    ("adaptive_max_pool", (3,), {}),
    ("adaptive_avg_pool", (3,), {}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools(backend: str, rank: int, pool: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    name, arguments, keywords = pool
    size = (7, 5, 4)[:rank] if backend != "naive" else (5, 4, 4)[:rank]
    x = random(1, 2, *size)
    forward, backward = getattr(fc, f"{name}{rank}d"), getattr(grad, f"{name}{rank}d")
    dy = random(*forward(x, *arguments, backend=backend, **keywords).shape)
    quick = "im2col"  # the differences need many forward calls; conformance ties the backends together
    expected = numeric(lambda v: forward(v, *arguments, backend=quick, **keywords), x, dy)
    close(backward(dy, x, *arguments, backend=backend, **keywords), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpool_unfold_and_fold(backend: str, rank: int) -> None:
    size = (6, 4, 4)[:rank]
    x = random(1, 2, *size)
    pooled, indices = getattr(fc, f"max_pool{rank}d")(x, 2, return_indices=True)
    unpool = getattr(fc, f"max_unpool{rank}d")
    dy = random(*x.shape)
    back = getattr(grad, f"max_unpool{rank}d")(dy, indices, backend=backend)
    close(back, numeric(lambda v: unpool(v, indices, 2, output_size=x.shape, backend="im2col"), pooled, dy))
    kernel, keywords = (2,) * rank, {"padding": 1, "stride": 2}
    columns = fc.unfold(x, kernel, **keywords)  # type: ignore[arg-type]
    dc = random(*columns.shape)
    expected = numeric(lambda v: fc.unfold(v, kernel, backend="im2col", **keywords), x, dc)  # type: ignore[arg-type]
    close(grad.unfold(dc, size, kernel, backend=backend, **keywords), expected)  # type: ignore[arg-type]
    expected = numeric(lambda v: fc.fold(v, size, kernel, backend="im2col", **keywords), columns, dy)  # type: ignore[arg-type]
    close(grad.fold(dy, kernel, backend=backend, **keywords), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 5e-324])
def test_special_values_stay_where_they_belong(backend: str, value: float) -> None:
    """One special gradient reaches the window it came from and nothing else."""
    w, dy = np.ones((1, 1, 3, 3)), np.zeros((1, 1, 5, 5))
    dy[0, 0, 2, 2] = value
    dx = grad.conv2d_input((1, 1, 7, 7), w, dy, backend=backend)
    inside = np.zeros((7, 7), bool)
    inside[2:5, 2:5] = True
    np.testing.assert_array_equal(dx[0, 0][inside], np.full(9, value))
    np.testing.assert_array_equal(dx[0, 0][~inside], np.zeros(40))


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_shapes(backend: str) -> None:
    """Empty batches, one-pixel images, kernels as large as the image, strides beyond the kernel."""
    with fc.use_backend(backend):
        assert grad.conv2d_input((0, 2, 4, 4), np.ones((3, 2, 2, 2)), np.ones((0, 3, 3, 3))).shape == (
            0,
            2,
            4,
            4,
        )
        one = grad.conv2d_weight(np.full((1, 1, 1, 1), 3.0), (1, 1, 1, 1), np.full((1, 1, 1, 1), 2.0))
        assert one.item() == 6
        whole = grad.conv2d_input(
            (1, 1, 3, 3), np.arange(9.0).reshape(1, 1, 3, 3), np.full((1, 1, 1, 1), 2.0)
        )
        np.testing.assert_array_equal(whole[0, 0], 2 * np.arange(9.0).reshape(3, 3))
        wide = grad.conv1d_input((1, 1, 7), np.ones((1, 1, 1)), np.ones((1, 1, 3)), stride=3)
        np.testing.assert_array_equal(wide[0, 0], [1, 0, 0, 1, 0, 0, 1])
