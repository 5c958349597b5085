"""The definition: plain loops over Python numbers, for every op, rank and dtype.

Nothing here is fast and everything is meant to be read. Floats are summed in binary64 and rounded once,
integers are Python's and never overflow, so this is also what all other backends are measured against.

One loop says what a convolution is. For every output position ``q`` and kernel position ``k`` there is at
most one input position ``i``; the three arrays meet in the product ``y[n,o,q] += w[o,c,k] * x[n,c,i]``, and
both gradients are the same product solved for another array.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import numpy as np

from fastconv.backends import Planner, Run
from fastconv.spec import DTYPES, ConvSpec, Op, PoolSpec, Spec, source

Position = tuple[int, ...]
Array = Any


def empty(shape: tuple[int, ...], dtype: str) -> Array:
    return np.empty(shape, dtype)


def positions(sizes: tuple[int, ...]) -> Iterator[Position]:
    """Every index of an array of these sizes, in C order."""
    return itertools.product(*map(range, sizes))


def numbers(array: Array) -> Array:
    """The same values as Python ints or floats, exactly."""
    kind = DTYPES[array.dtype.name].kind
    return array.astype("float64" if kind == "f" else array.dtype).astype(object)


def store(values: Array, out: Array) -> None:
    """Round once to the type of `out`; integers beyond 64 bits wrap, as two's complement does."""
    if DTYPES[out.dtype.name].kind == "f":
        out[...] = values.astype("float64").astype(out.dtype)
    else:
        out[...] = (values & (2**64 - 1)).astype("uint64").astype(out.dtype)


def meetings(spec: ConvSpec) -> Iterator[tuple[Position, Position, Position | None]]:
    """Every output position, kernel position, and the input position that meets them (None: a padded zero)."""
    for q in positions(spec.out_size):
        for k in positions(spec.kernel_size):
            i = tuple(
                source(
                    q[a] * spec.stride[a] + k[a] * spec.dilation[a] - spec.padding[a][0],
                    size,
                    spec.padding_mode,
                )
                for a, size in enumerate(spec.in_size)
            )
            yield q, k, None if None in i else cast("Position", i)


def convolve(spec: ConvSpec, x: Array, w: Array, y: Array, solve_for: str) -> None:
    """Fill one of x, w, y (arrays of Python numbers) from the other two.

    Padded zeros take part: ``conv(x, padding=p)`` is ``conv(pad(x, p))`` even where ``0 * inf`` is NaN.
    """
    c_group, o_group = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    for q, k, i in meetings(spec):
        for n, o, c in positions((spec.batch, spec.out_channels, c_group)):
            at_y, at_w = (n, o, *q), (o, c, *k)
            at_x = (n, o // o_group * c_group + c, *i) if i else None
            if solve_for == "y":
                y[at_y] += w[at_w] * (x[at_x] if at_x else 0)
            elif solve_for == "w":
                w[at_w] += (x[at_x] if at_x else 0) * y[at_y]
            elif at_x:
                x[at_x] += w[at_w] * y[at_y]


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    zero = 0.0 if DTYPES[like.dtype.name].kind == "f" else 0
    return np.full(shape, zero, dtype=object)


def add_bias(values: Array, bias: Array | None) -> Array:
    return values if bias is None else values + numbers(bias).reshape(-1, *(1,) * (values.ndim - 2))


def conv(spec: ConvSpec, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    total = zeros(y.shape, x)
    convolve(spec, numbers(x), numbers(w), total, "y")
    store(add_bias(total, bias), y)


def conv_input_grad(spec: ConvSpec, dy: Array, w: Array, bias: Array | None, dx: Array) -> None:
    total = zeros(dx.shape, dy)
    convolve(spec, total, numbers(w), numbers(dy), "x")
    store(add_bias(total, bias), dx)


def conv_weight_grad(spec: ConvSpec, x: Array, dy: Array, dw: Array) -> None:
    total = zeros(dw.shape, x)
    convolve(spec, numbers(x), total, numbers(dy), "w")
    store(total, dw)


def unfold(spec: ConvSpec, x: Array, columns: Array) -> None:
    columns[...] = 0
    view = columns.reshape(spec.batch, spec.in_channels, *spec.kernel_size, *spec.out_size)
    for q, k, i in meetings(spec):
        if i:
            view[(slice(None), slice(None), *k, *q)] = x[(slice(None), slice(None), *i)]


def fold(spec: ConvSpec, columns: Array, x: Array) -> None:
    total = zeros(x.shape, columns)
    view = numbers(columns).reshape(spec.batch, spec.in_channels, *spec.kernel_size, *spec.out_size)
    for q, k, i in meetings(spec):
        if i:
            total[(slice(None), slice(None), *i)] += view[(slice(None), slice(None), *k, *q)]
    store(total, x)


def windows(spec: PoolSpec) -> Iterator[tuple[Position, list[Position], int]]:
    """Every plane's output positions, the input positions each reduces, and what an average divides by."""
    ranges = [spec.windows(axis) for axis in range(spec.rank)]
    divisors = [spec.divisors(axis) for axis in range(spec.rank)]
    for q in positions(spec.out_size):
        window = list(itertools.product(*(ranges[a][q[a]] for a in range(spec.rank))))
        yield q, window, spec.divisor_override or math.prod(divisors[a][q[a]] for a in range(spec.rank))


def argmax(values: Array, window: list[Position]) -> Position:
    """The first of the largest; a NaN beats everything, and the last NaN wins (torch's rule)."""
    best = window[0]
    for i in window[1:]:
        if values[i] > values[best] or values[i] != values[i]:
            best = i
    return best


def power(base: float, exponent: float) -> float:
    """``base**exponent`` for base >= 0 that gives inf where Python raises."""
    return float(np.power(np.float64(base), exponent))


def lp_scale(spec: PoolSpec, window: list[Position]) -> float:
    """What torch multiplies a window's sum by: the kernel's size over the elements the window kept."""
    return math.prod(spec.kernel_size) / len(window)


def pool(spec: PoolSpec, x: Array, y: Array, indices: Array | None = None) -> None:
    values, result = numbers(x), np.empty(y.shape, dtype=object)
    for n, c in positions((spec.batch, spec.channels)):
        plane = values[n, c]
        for q, window, divisor in windows(spec):
            if spec.mode == "max":
                best = argmax(plane, window)
                result[(n, c, *q)] = plane[best]
                if indices is not None:
                    indices[(n, c, *q)] = np.ravel_multi_index(best, spec.in_size)
            elif spec.mode == "avg":
                result[(n, c, *q)] = sum(plane[i] for i in window) / divisor
            else:
                total = sum(power(abs(plane[i]), spec.norm_type) for i in window)
                result[(n, c, *q)] = power(total * lp_scale(spec, window), 1 / spec.norm_type)
    store(result, y)


def pool_input_grad(spec: PoolSpec, dy: Array, x: Array, dx: Array) -> None:
    """`x` is the pool's input, or the indices it returned when ``spec.indices``."""
    grads, total = numbers(dy), zeros(dx.shape, dx)
    values = None if spec.indices or spec.mode == "avg" else numbers(x)
    for n, c in positions((spec.batch, spec.channels)):
        for q, window, divisor in windows(spec):
            grad = grads[(n, c, *q)]
            if spec.mode == "max":
                best = (
                    argmax(values[n, c], window)
                    if values is not None
                    else np.unravel_index(x[(n, c, *q)], spec.in_size)
                )
                total[(n, c, *best)] += grad
            elif spec.mode == "avg":
                for i in window:
                    total[(n, c, *i)] += grad / divisor
            else:
                for i, slope in lp_slopes(spec, values[n, c], window):  # type: ignore[index]
                    total[(n, c, *i)] += grad * slope
    store(total, dx)


def lp_slopes(spec: PoolSpec, plane: Array, window: list[Position]) -> Iterator[tuple[Position, float]]:
    """dy/dx = scale * sign(x) * (|x| / y)**(p-1), and 0 where the whole window is 0."""
    p, scale = spec.norm_type, lp_scale(spec, window)
    y = power(sum(power(abs(plane[i]), p) for i in window) * scale, 1 / p)
    for i in window:
        if y != 0 and plane[i] != 0:
            yield i, math.copysign(scale * power(abs(plane[i]) / y, p - 1), plane[i])


def unpool(spec: PoolSpec, y: Array, indices: Array, x: Array) -> None:
    x[...] = 0
    for n, c in positions((spec.batch, spec.channels)):
        for q in positions(spec.out_size):
            x[(n, c, *np.unravel_index(indices[(n, c, *q)], spec.in_size))] = y[(n, c, *q)]


def unpool_input_grad(spec: PoolSpec, dx: Array, indices: Array, dy: Array) -> None:
    for n, c in positions((spec.batch, spec.channels)):
        for q in positions(spec.out_size):
            dy[(n, c, *q)] = dx[(n, c, *np.unravel_index(indices[(n, c, *q)], spec.in_size))]


def _planner(op: Op, kernel: Any) -> Planner:
    def loops(spec: Spec, precision: str, workspace_limit: int | None) -> Run:
        # Python objects, not scratch arrays: 8-byte references and 24-byte numbers, which no limit governs.
        # About 0.5 us an operation, measured on CPython 3.11.
        return Run(call=partial(kernel, spec), seconds=5e-7 * spec.flops(op), note="plain Python loops")

    return loops


PLANNERS = {
    op: (_planner(op, kernel),)
    for op, kernel in {
        Op.CONV: conv,
        Op.CONV_INPUT_GRAD: conv_input_grad,
        Op.CONV_WEIGHT_GRAD: conv_weight_grad,
        Op.UNFOLD: unfold,
        Op.FOLD: fold,
        Op.POOL: pool,
        Op.POOL_INPUT_GRAD: pool_input_grad,
        Op.UNPOOL: unpool,
        Op.UNPOOL_INPUT_GRAD: unpool_input_grad,
    }.items()
}
