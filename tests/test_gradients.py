"""Every gradient against central differences in float64, on every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastconv as fc
from fastconv import grad, testing
from fastconv.backends import Unsupported, backends, owner
from fastconv.spec import PADDING_MODES, Op, parse

BACKENDS = [name for name, state in backends().items() if state == "available" and owner(name) == "numpy"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_rank = pytest.mark.parametrize("rank", [1, 2, 3])

# A central difference is off by h^2 from truncation and by eps / h from rounding: h = eps^(1/3) balances
# them at 4e-11 of the values, and 1e-6 leaves room for sums.
STEP = float(np.finfo("float64").eps) ** (1 / 3)
BOUND = 1e-6


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
    assert got.shape == expected.shape
    assert got.dtype == np.float64
    scale = max(float(np.abs(expected).max()), 1.0)
    assert float(np.abs(got - expected).max()) / scale < BOUND


def random(*shape: int) -> Any:
    return np.random.default_rng(list(shape)).standard_normal(shape)


def separated(*shape: int) -> Any:
    """In random order, hundreds of steps from each other and from zero: no step crosses a kink."""
    count = math.prod(shape)
    values = np.arange(1, count + 1) / count - 0.5 - 1 / (3 * count)
    return np.random.default_rng(list(shape)).permuted(values).reshape(shape)


class Case(NamedTuple):
    """One class of geometry; a tuple has an entry for each of three axes, of which the first `rank` count."""

    name: str
    keywords: dict[str, Any]
    groups: int = 1

    def of(self, rank: int) -> dict[str, Any]:
        cut = {
            key: value[:rank] if isinstance(value, tuple) else value for key, value in self.keywords.items()
        }
        return cut | {"groups": self.groups}


CONVOLUTIONS = [
    Case("plain", {}),
    Case("stride", {"stride": (2, 1, 3)}),
    Case("padding", {"padding": (1, 2, 0)}),
    Case("asymmetric padding", {"padding": ((0, 2), (1, 0), (2, 1))}),
    Case("same padding and stride", {"padding": "same", "stride": 2}),
    Case("dilation", {"dilation": (2, 1, 2), "padding": 1}),
    Case("groups", {"padding": 1}, groups=2),
    Case(
        "everything",
        {"stride": (1, 2, 1), "padding": ((1, 0), (2, 1), (0, 1)), "dilation": (1, 2, 1)},
        groups=2,
    ),
    *(
        Case(mode, {"padding": ((1, 2), (2, 0), (1, 1)), "padding_mode": mode, "stride": (1, 1, 2)})
        for mode in PADDING_MODES
    ),
]
SIZES, KERNEL = (5, 4, 3), (3, 2, 2)


@each_backend
@each_rank
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case.name)
def test_convolution(backend: str, rank: int, case: Case) -> None:
    """Input, weight and bias."""
    batch = 2 if rank < 3 else 1
    x = random(batch, 2, *SIZES[:rank])
    w, b = random(2, 2 // case.groups, *KERNEL[:rank]), random(2)
    forward, keywords = getattr(fc, f"conv{rank}d"), case.of(rank) | {"backend": backend}
    dy = random(*forward(x, w, b, **keywords).shape)
    dx = getattr(grad, f"conv{rank}d_input")(x.shape, w, dy, **keywords)
    dw = getattr(grad, f"conv{rank}d_weight")(x, w.shape, dy, **keywords)
    close(dx, numeric(lambda v: forward(v, w, b, **keywords), x, dy))
    close(dw, numeric(lambda v: forward(x, v, b, **keywords), w, dy))
    close(getattr(grad, f"conv{rank}d_bias")(dy), numeric(lambda v: forward(x, w, v, **keywords), b, dy))


TRANSPOSED = [
    Case("plain", {}),
    Case("stride and output padding", {"stride": (2, 3, 2), "output_padding": (1, 0, 1)}),
    Case("padding", {"stride": 2, "padding": (1, 0, 1)}),
    Case("asymmetric padding", {"padding": ((0, 1), (1, 0), (0, 1))}),
    Case("dilation and output padding", {"dilation": 2, "output_padding": 1}),
    Case("groups", {"stride": (1, 2, 1)}, groups=2),
]


@each_backend
@each_rank
@pytest.mark.parametrize("case", TRANSPOSED, ids=lambda case: case.name)
def test_transposed_convolution(backend: str, rank: int, case: Case) -> None:
    x, w = random(1, 2, *(3, 3, 2)[:rank]), random(2, 2, *KERNEL[:rank])
    b = random(2 * case.groups)
    forward, keywords = getattr(fc, f"conv_transpose{rank}d"), case.of(rank) | {"backend": backend}
    dy = random(*forward(x, w, b, **keywords).shape)
    dx = getattr(grad, f"conv_transpose{rank}d_input")(x.shape, w, dy, **keywords)
    dw = getattr(grad, f"conv_transpose{rank}d_weight")(x, w.shape, dy, **keywords)
    close(dx, numeric(lambda v: forward(v, w, b, **keywords), x, dy))
    close(dw, numeric(lambda v: forward(x, v, b, **keywords), w, dy))
    close(getattr(grad, f"conv{rank}d_bias")(dy), numeric(lambda v: forward(x, w, v, **keywords), b, dy))


POOLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("max_pool", (2,), {}),
    ("max_pool", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}),
    ("max_pool", (2,), {"dilation": 2, "stride": 1}),
    ("max_pool", (3,), {"padding": "same", "stride": 2}),
    ("avg_pool", (2,), {}),
    ("avg_pool", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}),
    ("avg_pool", (3,), {"stride": 1, "padding": 1, "count_include_pad": False}),
    ("avg_pool", (2,), {"stride": 1, "divisor_override": 3}),
    ("lp_pool", (2.0, 2), {}),
    ("lp_pool", (1.0, 2), {"stride": 1}),
    ("lp_pool", (3.0, 3), {"stride": 2, "ceil_mode": True}),
    ("lp_pool", (1.5, 2), {"stride": 1}),
    ("adaptive_max_pool", (3,), {}),
    ("adaptive_max_pool", (7,), {}),
    ("adaptive_avg_pool", (3,), {}),
    ("adaptive_avg_pool", (7,), {}),
]


@each_backend
@each_rank
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools(backend: str, rank: int, pool: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    name, arguments, keywords = pool
    x = separated(1, 2, *(5, 4, 3)[:rank])
    forward, backward = getattr(fc, f"{name}{rank}d"), getattr(grad, f"{name}{rank}d")
    keywords = keywords | {"backend": backend}
    y = forward(x, *arguments, **keywords)
    dy = random(*y.shape)
    expected = numeric(lambda v: forward(v, *arguments, **keywords), x, dy)
    close(backward(dy, x, *arguments, **keywords), expected)
    if "max" in name:
        _, indices = forward(x, *arguments, return_indices=True, **keywords)
        close(backward(dy, x, *arguments, indices=indices, **keywords), expected)


@each_backend
@each_rank
def test_unpool(backend: str, rank: int) -> None:
    x = separated(1, 2, *(6, 4, 4)[:rank])
    pooled, indices = getattr(fc, f"max_pool{rank}d")(x, 2, return_indices=True, backend=backend)
    unpool, dy = getattr(fc, f"max_unpool{rank}d"), random(*x.shape)
    back = getattr(grad, f"max_unpool{rank}d")(dy, indices, backend=backend)
    close(back, numeric(lambda v: unpool(v, indices, 2, output_size=x.shape, backend=backend), pooled, dy))


COLUMNS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": 1},
    {"padding": "same", "stride": 2},
]


@each_backend
@each_rank
@pytest.mark.parametrize("keywords", COLUMNS, ids=str)
def test_unfold_and_fold(backend: str, rank: int, keywords: dict[str, Any]) -> None:
    size, kernel, keywords = (5, 4, 3)[:rank], (2,) * rank, keywords | {"backend": backend}
    x = random(1, 2, *size)
    columns = fc.unfold(x, kernel, **keywords)
    dc, dy = random(*columns.shape), random(*x.shape)
    expected = numeric(lambda v: fc.unfold(v, kernel, **keywords), x, dc)
    close(grad.unfold(dc, size, kernel, **keywords), expected)
    expected = numeric(lambda v: fc.fold(v, size, kernel, **keywords), columns, dy)
    close(grad.fold(dy, kernel, **keywords), expected)


def test_every_gradient_function_is_tested() -> None:
    """Each public name of fastconv.grad appears above, with its rank left out."""
    families = {
        "conv_input", "conv_weight", "conv_bias", "conv_transpose_input", "conv_transpose_weight", "max_unpool",
        "unfold", "fold", *(name for name, _, _ in POOLS),
    }  # fmt: skip
    by_rank = {
        name.replace(f"{rank}d", "")
        for rank in (1, 2, 3)
        for name in vars(grad)
        if f"{rank}d" in name and callable(getattr(grad, name))
    }
    assert by_rank | {"unfold", "fold"} == families


@each_backend
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


@each_backend
def test_degenerate_shapes(backend: str) -> None:
    """Empty batches, one-pixel images, kernels as large as the image, strides beyond the kernel."""
    with fc.use_backend(backend):
        empty = grad.conv2d_input((0, 2, 4, 4), np.ones((3, 2, 2, 2)), np.ones((0, 3, 3, 3)))
        assert empty.shape == (0, 2, 4, 4)
        one = grad.conv2d_weight(np.full((1, 1, 1, 1), 3.0), (1, 1, 1, 1), np.full((1, 1, 1, 1), 2.0))
        assert one.item() == 6
        kernel = np.arange(9.0).reshape(1, 1, 3, 3)
        whole = grad.conv2d_input((1, 1, 3, 3), kernel, np.full((1, 1, 1, 1), 2.0))
        np.testing.assert_array_equal(whole, 2 * kernel)
        wide = grad.conv1d_input((1, 1, 7), np.ones((1, 1, 1)), np.ones((1, 1, 3)), stride=3)
        np.testing.assert_array_equal(wide[0, 0], [1, 0, 0, 1, 0, 0, 1])


# Each awkward shape, and every gradient of it: what is asked of a convolution is asked of a pool where it has it.
AWKWARD = {
    "no images": ("n0 c4x6x7 k4x3x3 s1 p1", "max n0 c4x6x7 k3x3 s2 p1 indices", "max n0 c4x6x7 k3x3 s2 p1", "avg n0 c4x6x7 k3x3 s2 p1", "lp2 n0 c4x6x7 k2x2"),
    "one pixel": ("n2 c4x1x1 k4x1x1 s1 p0", "n2 c4x1x1 k4x3x3 s1 p1", "max n2 c4x1x1 k1x1 indices", "max n2 c4x1x1 k1x1", "avg n2 c4x1x1 k1x1", "avg n2 c4x1x1 o1x1", "lp2 n2 c4x1x1 k1x1"),
    "a kernel as large as the image": ("n2 c4x5x4 k4x5x4 s1 p0", "max n2 c4x5x4 k5x4 indices", "max n2 c4x5x4 k5x4", "avg n2 c4x5x4 k5x4", "lp2 n2 c4x5x4 k5x4"),
    "groups are channels": ("n2 c4x6x7 k4x3x3 s1 p1 g4", "n2 c4x6x7 k8x3x3 s2 p1 g4"),
    "a stride above the kernel": ("n2 c4x9x10 k4x2x2 s3 p0", "n2 c4x9x10 k4x1x1 s4 p0", "max n2 c4x9x10 k2x2 s3 p0 indices", "max n2 c4x9x10 k2x2 s3 p0", "avg n2 c4x9x10 k2x2 s3 p0", "lp2 n2 c4x9x10 k2x2 s3 p0"),
}  # fmt: skip
SPECIAL = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "a denormal": 5e-324, "nothing special": 1.0}


@each_backend
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("shape", AWKWARD)
def test_every_gradient_of_every_awkward_shape(backend: str, shape: str, value: str) -> None:
    """By every algorithm, with a special value among its numbers, as the definition has it."""
    for text in AWKWARD[shape]:
        spec = parse(f"{text} f64")
        for op in set(spec.ops) - {Op.CONV, Op.POOL}:
            given = testing.operands(spec, op, "integers")
            if given[0].size:
                given[0].flat[given[0].size // 2] = SPECIAL[value]
            expected = testing.reference(spec, op, given)
            for made in testing.plans(spec, op, backend):
                if isinstance(made, Unsupported):
                    raise AssertionError(f"{op} of {spec}: {made}")
                if made.run.finite_only or made.run.error:
                    continue  # a transform is never chosen for such data, or in float64
                _, detail = testing.compare(made(*given), expected, testing.tolerance(made, given))
                assert not detail, f"{made.algorithm}, {op} of {spec}: {detail}"
