"""Pooling with NumPy: one pass over the planes per kernel tap, or one reduction per output cell.

``taps`` walks the kernel: tap k of every window is a strided slice of the input, and a running maximum or
sum meets them all, so nothing is unfolded. ``cells`` walks the output: each window is reduced at once, which
is the only way for bins of unequal size (adaptive pools) and the better one for few, large windows.
Both work on as many planes at a time as fit a core's cache.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastconv.backends import Run, Unsupported, algorithm
from fastconv.backends.blocks import BUFFERED
from fastconv.spec import DTYPES, Op, PoolSpec

Array = Any
Index = tuple[Any, ...]

# Planes of one pass: input, output and masks together stay in a 1 MB L2.
TARGET_BYTES = 512 << 10

# np.add.at copies its indices and values; in pieces, so that this stays under a buffer's size.
PIECE = 1024

# NumPy meets indices along an axis with the number of their plane, which it spreads over a buffer.
INDEX_BYTES = 8

# The reference machine, for estimates only: one NumPy call, and elements combined per second.
CALL_SECONDS = 3e-6
ELEMENTS = 1e9


def _accumulator(spec: PoolSpec) -> str:
    """The type an average or a power sum is formed in.

    Integers are added exactly and divided once; those of 64 bits, whose sums could wrap, as numpy.mean does.
    """
    row = DTYPES[spec.dtype]
    if row.kind == "f":
        return row.accumulate
    return "float64" if spec.mode == "lp" or row.itemsize == 8 else "int64"


class Planes:
    """How many of the ``batch * channels`` planes are taken at a time, and what that costs."""

    def __init__(self, spec: PoolSpec, per_plane: int, fixed: int, workspace_limit: int | None) -> None:
        self.count = spec.batch * spec.channels
        traffic = sum(shape.nbytes for shape in spec.shapes(Op.POOL)) // max(self.count, 1) + per_plane
        if workspace_limit is not None and per_plane + fixed > workspace_limit:
            need = per_plane + fixed
            raise Unsupported(f"needs {need} bytes of scratch for one plane", workspace=need)
        step = max(TARGET_BYTES // max(traffic, 1), 1)
        if workspace_limit is not None and per_plane:
            step = min(step, (workspace_limit - fixed) // per_plane)
        self.step = max(min(step, self.count), 1)
        self.workspace = self.step * per_plane + fixed

    def of(self, spec: PoolSpec, *arrays: Array | None) -> Iterator[tuple[Array, ...]]:
        """The same planes of every (N, C, ...) array, at most `step` at a time; None stays None.

        Where memory allows, batch and channels are one axis; otherwise (channels last, say) every image is
        taken by itself, so that nothing is copied.
        """
        together = all(
            a is None or spec.batch < 2 or a.strides[0] == a.shape[1] * a.strides[1] for a in arrays
        )
        groups = [slice(None)] if together else [slice(n, n + 1) for n in range(spec.batch)]
        for images in groups:
            planes = [None if a is None else a[images].reshape(-1, *a.shape[2:]) for a in arrays]
            count = self.count if together else spec.channels
            for start in range(0, count, self.step):
                yield tuple(None if p is None else p[start : start + self.step] for p in planes)


# ---------------------------------------------------------------------------- which elements meet which


def _taps(spec: PoolSpec) -> Iterator[tuple[Index, Index]]:
    """For every kernel tap: the windows whose tap lies inside the input, and the elements it reads."""
    axes = []
    for size, out, k, s, d, (before, _) in zip(
        spec.in_size, spec.out_size, spec.kernel_size, spec.stride, spec.dilation, spec.padding, strict=True
    ):
        pairs = []
        for tap in range(k):
            offset = tap * d - before  # output q reads input q * s + offset
            first = max((s - 1 - offset) // s, 0)
            last = min((size - 1 - offset) // s, out - 1)
            if first <= last:
                start = first * s + offset
                pairs.append((slice(first, last + 1), slice(start, last * s + offset + 1, s)))
        axes.append(pairs)
    for met in itertools.product(*axes):
        yield (..., *(pair[0] for pair in met)), (..., *(pair[1] for pair in met))


def _cells(spec: PoolSpec) -> Iterator[tuple[tuple[int, ...], Index]]:
    """For every output cell: its position, and its window as an index."""
    axes = [[slice(w.start, w.stop, w.step) for w in spec.windows(axis)] for axis in range(spec.rank)]
    for q in itertools.product(*map(range, spec.out_size)):
        yield q, (..., *(axis[i] for axis, i in zip(axes, q, strict=True)))


def _positions(spec: PoolSpec, index: Index) -> Array:
    """Flat position in the input plane of every element `index` selects."""
    steps = [math.prod(spec.in_size[axis + 1 :]) for axis in range(spec.rank)]
    axes = [
        np.arange(at.start, at.stop, at.step or 1) * step for at, step in zip(index[1:], steps, strict=True)
    ]
    return functools.reduce(np.add.outer, axes)


def _positions_bytes(area: int) -> int:
    """Scratch of :func:`_positions` for one tap of a plane: the result, and two buffers to add its axes in."""
    return 8 * (area + 2 * min(area, BUFFERED))


def _first_positions(spec: PoolSpec) -> Array:
    """Flat position of every window's first element."""
    steps = [math.prod(spec.in_size[axis + 1 :]) for axis in range(spec.rank)]
    # Of a window that begins in the padding, the first tap inside.
    begins = [
        np.arange(-before, out * s - before, s)
        for out, s, (before, _) in zip(spec.out_size, spec.stride, spec.padding, strict=True)
    ]
    axes = [
        np.where(begin < 0, begin % d, begin) * step
        for begin, d, step in zip(begins, spec.dilation, steps, strict=True)
    ]
    return functools.reduce(np.add.outer, axes)


def _divisors(spec: PoolSpec, dtype: str) -> Array:
    """What each window's sum is divided by, shaped like a plane of outputs."""
    if spec.divisor_override:
        return np.asarray(spec.divisor_override, dtype)
    axes = [np.asarray(spec.divisors(axis), dtype) for axis in range(spec.rank)]
    return functools.reduce(np.multiply.outer, axes)


def _lp_scale(spec: PoolSpec, dtype: str) -> Array:
    """What torch multiplies a sum by where ceil mode cut the window short: kernel size over elements left."""
    axes = [(k / np.array(spec.lengths(axis))).astype(dtype) for axis, k in enumerate(spec.kernel_size)]
    return functools.reduce(np.multiply.outer, axes)


# ---------------------------------------------------------------------------- forward


def _lowest(dtype: np.dtype[Any]) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def _max_taps(spec: PoolSpec, x: Array, y: Array, indices: Array | None) -> None:
    y[...] = _lowest(y.dtype)
    if indices is None:
        for to, at in _taps(spec):
            np.maximum(y[to], x[at], out=y[to])
        return
    indices[...] = _first_positions(spec)  # a window of -inf keeps its first element
    for to, at in _taps(spec):
        better = x[at] > y[to]
        better |= x[at] != x[at]  # a NaN beats everything, the last NaN wins
        np.copyto(y[to], x[at], where=better)
        np.copyto(indices[to], _positions(spec, at), where=better)
        del better


def _max_cells(spec: PoolSpec, x: Array, y: Array, indices: Array | None) -> None:
    for q, at in _cells(spec):
        window = x[at].reshape(len(x), -1)
        if indices is None:
            y[(slice(None), *q)] = window.max(axis=1)
            continue
        best = window.argmax(axis=1)  # the first maximum, or the first NaN where there is one
        values = window[np.arange(len(x)), best]
        for row in np.flatnonzero(values != values):
            best[row] = np.flatnonzero(window[row] != window[row])[-1]
        y[(slice(None), *q)] = values
        indices[(slice(None), *q)] = _positions(spec, at).reshape(-1)[best]


def _sum_taps(spec: PoolSpec, x: Array, total: Array, scratch_dtype: str) -> None:
    total[...] = 0
    for to, at in _taps(spec):
        total[to] += _power(spec, x[at], scratch_dtype)


def _sum_cells(spec: PoolSpec, x: Array, total: Array, scratch_dtype: str) -> None:
    for q, at in _cells(spec):
        # Laid out in a row first: NumPy's order of summing, and so its rounding, follows the strides.
        part = _power(spec, np.ascontiguousarray(x[at].reshape(len(x), -1)), scratch_dtype)
        total[(slice(None), *q)] = part.sum(axis=1, dtype=total.dtype)


def _power(spec: PoolSpec, values: Array, dtype: str) -> Array:
    """|x|**p of an Lp pool's elements, the elements themselves of an average's."""
    if spec.mode == "avg":
        return values
    magnitudes = np.abs(values.astype(dtype))
    return np.square(magnitudes, out=magnitudes) if spec.norm_type == 2 else magnitudes**spec.norm_type


def _finish(spec: PoolSpec, total: Array, y: Array) -> None:
    """From sums to averages or norms, rounded once into `y`."""
    wide = DTYPES[spec.out_dtype].accumulate
    if spec.mode == "avg":
        divided = np.true_divide(
            total, _divisors(spec, wide), out=y if y.dtype.name == wide else None, dtype=wide
        )
    else:
        total *= _lp_scale(spec, total.dtype.name)
        divided = np.sqrt(total, out=total) if spec.norm_type == 2 else total ** (1 / spec.norm_type)
    if divided is not y:
        np.copyto(y, divided, casting="unsafe")


def _forward(spec: PoolSpec, by: str, workspace_limit: int | None) -> Run:
    area = math.prod(spec.out_size)
    accumulator = _accumulator(spec)
    wide = DTYPES[accumulator].itemsize
    biggest = spec.dot_length(Op.POOL)
    in_place = spec.mode == "avg" and spec.out_dtype == accumulator
    if spec.mode == "max":
        per_plane = area * (2 if spec.indices else 0)  # two masks of a byte
        if by == "cells":
            # A window is gathered to be reduced; argmax adds an index and a value.
            per_plane = (biggest * DTYPES[spec.dtype].itemsize) + (24 if spec.indices else 8)
    elif by == "taps":
        per_plane = area * ((0 if in_place else 2 * wide) + (2 * wide if spec.mode == "lp" else 0))
    else:
        per_plane = (
            (0 if in_place else 2 * area * wide) + (2 * biggest * wide if spec.mode == "lp" else 0) + 8
        )
    fixed = BUFFERED * DTYPES[spec.dtype].itemsize
    if spec.indices and by == "taps":
        fixed = max(2 * fixed, _positions_bytes(area))
    planes = Planes(spec, per_plane, fixed, workspace_limit)

    def call(x: Array, y: Array, indices: Array | None = None) -> None:
        for source, target, places in planes.of(spec, x, y, indices):
            if spec.mode == "max":
                (_max_taps if by == "taps" else _max_cells)(spec, source, target, places)
            else:
                total = target if in_place else np.empty(target.shape, accumulator)
                (_sum_taps if by == "taps" else _sum_cells)(spec, source, total, accumulator)
                _finish(spec, total, target)

    return _run(call, _seconds(spec, by, planes), planes)


def _seconds(spec: PoolSpec, by: str, planes: Planes) -> float:
    steps = math.prod(spec.kernel_size) if by == "taps" else 2 * math.prod(spec.out_size)
    passes = -(-planes.count // planes.step)
    return spec.flops() / ELEMENTS + passes * steps * CALL_SECONDS * (2 if spec.indices else 1)


def _run(call: Callable[..., None], seconds: float, planes: Planes) -> Run:
    return Run(
        call=call,
        seconds=seconds,
        workspace=planes.workspace,
        note=f"{planes.step} of {planes.count} planes at a time",
    )


# ---------------------------------------------------------------------------- backward


def _max_back(spec: PoolSpec, dy: Array, x: Array, total: Array, by: str) -> None:
    """Find the maxima again and add each gradient where its maximum stands."""
    values = np.empty(dy.shape, x.dtype)
    indices = np.empty(dy.shape, np.int64)
    (_max_taps if by == "taps" else _max_cells)(spec, x, values, indices)
    del values
    if by == "taps":
        for to, at in _taps(spec):
            here = indices[to] == _positions(spec, at)
            np.add(total[at], dy[to], out=total[at], where=here)
            del here
    else:
        planes, flat = np.arange(len(total)), total.reshape(len(total), -1)
        for q in itertools.product(*map(range, spec.out_size)):
            cell: Index = (slice(None), *q)
            flat[planes, indices[cell]] += dy[cell]


def _scatter_add(dy: Array, indices: Array, total: Array) -> None:
    """Add each gradient where its index points, in the order of the windows."""
    for plane, places, grads in zip(total.reshape(len(total), -1), indices, dy, strict=True):
        places, grads = places.reshape(-1), grads.reshape(-1)
        for start in range(0, len(places), PIECE):
            np.add.at(plane, places[start : start + PIECE], grads[start : start + PIECE])


def _spread(spec: PoolSpec, share: Array, x: Array | None, total: Array, by: str) -> None:
    """Add each window's share to every element of it; an Lp pool weighs it by the element."""
    pairs: Iterator[tuple[Index, Index]] = (
        _taps(spec)
        if by == "taps"
        else (((slice(None), *q, *(None,) * spec.rank), at) for q, at in _cells(spec))
    )
    for to, at in pairs:
        if x is None:
            total[at] += share[to]
        else:
            values = x[at].astype(total.dtype)
            slope = np.abs(values) ** (spec.norm_type - 1)
            np.copysign(slope, values, out=slope)
            parts = slope * share[to]
            parts[values == 0] = 0  # also where the share is NaN or infinite
            total[at] += parts


def _backward(spec: PoolSpec, by: str, workspace_limit: int | None) -> Run:
    area, plane = math.prod(spec.out_size), math.prod(spec.in_size)
    accumulator = DTYPES[spec.out_dtype].accumulate
    wide = DTYPES[accumulator].itemsize
    in_place = spec.out_dtype == accumulator
    per_plane = 0 if in_place else plane * wide
    if spec.mode == "max":
        # Indices and forward values with their two masks.
        per_plane += 0 if spec.indices else area * (8 + DTYPES[spec.dtype].itemsize + 2)
        per_plane += 0 if in_place else area * wide
    elif spec.mode == "avg":
        per_plane += area * wide * (1 if in_place else 2)
    else:
        biggest = area if by == "taps" else spec.dot_length(Op.POOL)
        per_plane += area * wide * 4 + biggest * (4 * wide + 1)
    fixed = 2 * BUFFERED * wide
    if spec.mode == "max" and not spec.indices and by == "taps":
        fixed = max(fixed, _positions_bytes(area))
    planes = Planes(spec, per_plane, fixed, workspace_limit)

    def call(dy: Array, x: Array, dx: Array) -> None:
        for grads, second, target in planes.of(spec, dy, x, dx):
            total = target if in_place else np.empty(target.shape, accumulator)
            total[...] = 0
            grad = grads.astype(accumulator, copy=False)
            if spec.mode == "max" and spec.indices:
                _scatter_add(grad, second, total)
            elif spec.mode == "max":
                _max_back(spec, grad, second, total, by)
            elif spec.mode == "avg":
                _spread(spec, grad / _divisors(spec, accumulator), None, total, by)
            else:
                _spread(spec, grad * _lp_share(spec, second, accumulator, by), second, total, by)
            if not in_place:
                np.copyto(target, total, casting="unsafe")

    return _run(call, 2 * _seconds(spec, by, planes), planes)


def _lp_share(spec: PoolSpec, x: Array, dtype: str, by: str) -> Array:
    """``scale * y**(1 - p)`` of every window, 0 where the window is all zeros."""
    y = np.empty((len(x), *spec.out_size), dtype)
    (_sum_taps if by == "taps" else _sum_cells)(spec, x, y, dtype)
    scale = _lp_scale(spec, dtype)
    y *= scale
    share = np.where(y == 0, 0, scale * y ** ((1 - spec.norm_type) / spec.norm_type))
    return share.astype(dtype, copy=False)


# ---------------------------------------------------------------------------- planners


def _needs_kernel(spec: PoolSpec) -> None:
    if not spec.kernel_size:
        raise Unsupported("adaptive bins differ in size, needs a kernel")


def _needs_few_cells(spec: PoolSpec) -> None:
    # A cell costs two to four NumPy calls, a tap one: past this ratio taps is always faster.
    cells, taps = math.prod(spec.out_size), math.prod(spec.kernel_size)
    if spec.kernel_size and cells > 16 * taps:
        raise Unsupported(f"walks {cells} output cells one by one, needs at most 16 for each of {taps} taps")


def taps(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward, one pass per kernel tap."""
    _needs_kernel(spec)
    return _forward(spec, "taps", workspace_limit)


def cells(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward, one reduction per output cell."""
    _needs_few_cells(spec)
    return _forward(spec, "cells", workspace_limit)


@algorithm("taps")
def taps_back(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Backward, one pass per kernel tap."""
    _needs_kernel(spec)
    return _backward(spec, "taps", workspace_limit)


@algorithm("cells")
def cells_back(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Backward, one step per output cell."""
    _needs_few_cells(spec)
    return _backward(spec, "cells", workspace_limit)


def scatter(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Unpool: write each number where its index points, zeros elsewhere."""
    planes = Planes(spec, INDEX_BYTES, BUFFERED * INDEX_BYTES, workspace_limit)

    def call(y: Array, indices: Array, x: Array) -> None:
        for values, places, target in planes.of(spec, y, indices, x):
            target[...] = 0
            flat, places, values = (part.reshape(len(part), -1) for part in (target, places, values))
            np.put_along_axis(flat, places, values, axis=1)

    return _run(call, spec.nbytes(Op.UNPOOL) / ELEMENTS, planes)


def gather(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Unpool's gradient: read where each index points."""
    gathered = math.prod(spec.out_size) * DTYPES[spec.dtype].itemsize
    planes = Planes(spec, gathered + INDEX_BYTES, BUFFERED * INDEX_BYTES, workspace_limit)

    def call(dx: Array, indices: Array, dy: Array) -> None:
        for source, places, target in planes.of(spec, dx, indices, dy):
            flat, places = (part.reshape(len(part), -1) for part in (source, places))
            target[...] = np.take_along_axis(flat, places, axis=1).reshape(target.shape)

    return _run(call, spec.nbytes(Op.UNPOOL) / ELEMENTS, planes)
