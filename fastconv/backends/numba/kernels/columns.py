"""Columns of sliding windows, and their sum back into an image: rows that are copied, and rows that are added.

::

    columns[c, k, q] = x[c, q * stride + k * dilation - before]            ``unfold``
    x[c, i] = sum of columns[c, k, q] over all k, q that read i            ``fold``

A row of outputs reads a row of the image at a stride: between two places of each tap, which a table names, it is one
copy, before and behind them it reads padding. ``fold`` goes the other way, row by row of the image: a list names the
rows of columns that read it, so that what they are added to stays in the L1 cache, and no two tasks add to one row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, from_dtype, types
from numba.extending import register_jitable

from .simd import next_task, pointer

# Numbers of a tap along rows: the outputs that read inside the image, first and last, and what the first one reads.
INSIDE = 3

FIELDS = (
    "next stop "  # the next task, and where to stop
    "x columns "  # addresses
    "plane outputs planes tasks_step "  # elements of a plane of the image, outputs of one; planes; taps, or rows, of a task
    "d h w od oh ow kd kh kw stride "  # sizes; the stride along rows
    "from_d from_h from_w "  # tables (k, o): what an output reads by a tap, or -1
    "inside padded "  # table of the taps along rows; whether there are elements in the padding
    "first_d list_d first_h list_h "  # for each row of the image where its list begins; pairs of a tap and an output
    "tap0 tap1"  # `fold`: the taps that columns holds; those from 0 on begin the sums, others add to them
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)


@register_jitable
def _copy(T, row, to, n, stride):  # type: ignore[no-untyped-def]
    """Every `stride`-th of a row's elements."""
    x, y = carray(pointer(row, T), n * stride), carray(pointer(to, T), n)
    if stride == 1:
        for i in range(n):
            y[i] = x[i]
    elif stride == 2:
        for i in range(n):
            y[i] = x[2 * i]
    else:
        for i in range(n):
            y[i] = x[stride * i]


@register_jitable
def _clear(T, to, n):  # type: ignore[no-untyped-def]
    y = carray(pointer(to, T), n)
    y[:] = 0


@register_jitable
def _add(T, row, to, n, stride):  # type: ignore[no-untyped-def]
    """To every `stride`-th of a row's elements."""
    x, y = carray(pointer(row, T), n), carray(pointer(to, T), n * stride)
    if stride == 1:
        for i in range(n):
            y[i] += x[i]
    elif stride == 2:
        for i in range(n):
            y[2 * i] += x[i]
    else:
        for i in range(n):
            y[stride * i] += x[i]


def unfold(T: Any) -> Any:
    """Tasks of copying windows to columns: some taps of a plane."""
    size = T.bitwidth // 8

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        from_d = carray(pointer(a.from_d, types.int64), (a.kd, a.od))
        from_h = carray(pointer(a.from_h, types.int64), (a.kh, a.oh))
        from_w = carray(pointer(a.from_w, types.int64), (a.kw, a.ow))
        inside = carray(pointer(a.inside, types.int64), (a.kw, INSIDE))
        taps = a.kd * a.kh * a.kw
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            for column in range(task * a.tasks_step, min((task + 1) * a.tasks_step, a.planes * taps)):
                p, tap = divmod(column, taps)
                i, rest = divmod(tap, a.kh * a.kw)
                j, k = divmod(rest, a.kw)
                low, high, begin = inside[k, 0], inside[k, 1], inside[k, 2]
                to = a.columns + size * column * a.outputs
                for d in range(a.od):
                    at_d = from_d[i, d]
                    for h in range(a.oh):
                        at_h = from_h[j, h]
                        if at_d < 0 or at_h < 0:
                            _clear(T, to, a.ow)
                            to += size * a.ow
                            continue
                        row = a.x + size * (p * a.plane + (at_d * a.h + at_h) * a.w)
                        if low > 0 or high < a.ow:
                            _clear(T, to, low)
                            _clear(T, to + size * high, a.ow - high)
                        _copy(T, row + size * begin, to + size * low, high - low, a.stride)
                        if a.padded:
                            x, y = carray(pointer(row, T), a.w), carray(pointer(to, T), a.ow)
                            for q in range(low):
                                y[q] = x[from_w[k, q]]
                            for q in range(high, a.ow):
                                y[q] = x[from_w[k, q]]
                        to += size * a.ow

    return work


def fold(T: Any) -> Any:
    """Tasks of summing columns: some rows of the image."""
    size = T.bitwidth // 8

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        first_d = carray(pointer(a.first_d, types.int64), a.d + 1)
        first_h = carray(pointer(a.first_h, types.int64), a.h + 1)
        list_d = carray(pointer(a.list_d, types.int64), (a.kd * a.od, 2))
        list_h = carray(pointer(a.list_h, types.int64), (a.kh * a.oh, 2))
        from_w = carray(pointer(a.from_w, types.int64), (a.kw, a.ow))
        inside = carray(pointer(a.inside, types.int64), (a.kw, INSIDE))
        held = (a.tap1 - a.tap0) * a.outputs
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            for line in range(task * a.tasks_step, min((task + 1) * a.tasks_step, a.planes * a.d * a.h)):
                p, rest = divmod(line, a.d * a.h)
                d, h = divmod(rest, a.h)
                to = a.x + size * line * a.w
                result = carray(pointer(to, T), a.w)
                if a.tap0 == 0:
                    result[:] = 0
                for m in range(first_d[d], first_d[d + 1]):
                    i, qd = list_d[m, 0], list_d[m, 1]
                    for n in range(first_h[h], first_h[h + 1]):
                        j, qh = list_h[n, 0], list_h[n, 1]
                        for k in range(a.kw):
                            tap = (i * a.kh + j) * a.kw + k
                            if tap < a.tap0 or tap >= a.tap1:
                                continue
                            low, high, begin = inside[k, 0], inside[k, 1], inside[k, 2]
                            at = p * held + (tap - a.tap0) * a.outputs + (qd * a.oh + qh) * a.ow
                            row = a.columns + size * at
                            _add(T, row + size * low, to + size * begin, high - low, a.stride)
                            if a.padded:
                                y = carray(pointer(row, T), a.ow)
                                for q in range(low):
                                    result[from_w[k, q]] += y[q]
                                for q in range(high, a.ow):
                                    result[from_w[k, q]] += y[q]

    return work
