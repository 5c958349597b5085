"""What the gradient of an input needs: weights turned round, and the phases of a stride put together."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.extending import intrinsic

from .simd import (
    ELEMENTS,
    I32,
    const,
    first_lanes,
    host,
    lane_range,
    loop,
    masked_load,
    masked_store,
    next_task,
    out_of_line,
    pointer,
)

# Input channels of a task that turns weights: so many rows are written side by side.
TURNED = 16

TURN_FIELDS = (
    "next stop "  # the next task, and where to stop
    "w to table "  # addresses; the table names the tap that stands at each place
    "o c from_taps taps c_tasks"  # channels of a group; taps of the weights, and of the result
)
TURN = np.dtype([(name, np.int64) for name in TURN_FIELDS.split()])
TURN_RECORD = from_dtype(TURN)

WEAVE_FIELDS = (
    "next stop "
    "x bias y "  # addresses; no bias is 0
    "phase_d phase_h first_w "  # tables: which phase a row belongs to, or -1; where a row's phases begin
    "counts_d counts_h counts_w begins "  # tables: positions of each phase; where its planes begin
    "planes channels step "  # planes in all, of an image, of a task
    "d h w stride_d stride_h stride_w phases_h phases_w "  # of the result
    "whole"  # whether every element of a row belongs to some phase
)
WEAVE = np.dtype([(name, np.int64) for name in WEAVE_FIELDS.split()])
WEAVE_RECORD = from_dtype(WEAVE)


def turn(T: Any) -> Any:
    """Tasks of turning weights: (o, c, taps) of a group becomes (c, o, taps in another order)."""
    size = T.bitwidth // 8

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, TURN_RECORD), 1)[0]
        table = carray(pointer(a.table, types.int64), a.taps)
        while True:
            task = next_task(arguments)
            if task >= a.stop:
                return
            g, c0 = divmod(task, a.c_tasks)
            c0 *= TURNED
            count = min(TURNED, a.c - c0)
            for o in range(a.o):
                row = carray(pointer(a.w + size * ((g * a.o + o) * a.c + c0) * a.from_taps, T), 1 << 40)
                to = carray(pointer(a.to + size * ((g * a.c + c0) * a.o + o) * a.taps, T), 1 << 40)
                for i in range(count):
                    for t in range(a.taps):
                        to[i * a.o * a.taps + t] = row[i * a.from_taps + table[t]]

    return work


@intrinsic
def alternate(typing: Any, T: Any, y: Any, even: Any, odd: Any, count: Any) -> Any:
    """``y[2 * i] = even[i]`` and ``y[2 * i + 1] = odd[i]`` for `count` elements in all."""
    e = ELEMENTS[T.instance_type]
    index = ir.VectorType(I32, e.lanes)

    def body(b: ir.IRBuilder, y: Any, even: Any, odd: Any, count: Any) -> None:
        with loop(b, const(0), count, const(2 * e.lanes)) as at:
            left, half = b.sub(count, at), b.lshr(at, const(1))
            odds = b.ashr(left, const(1))
            vectors = [
                masked_load(b, e, b.gep(x, [half]), lane_range(b, e, const(0), stop))
                for x, stop in ((even, b.sub(left, odds)), (odd, odds))
            ]
            for r in range(2):
                lanes = [ir.Constant(I32, (r * e.lanes + i) // 2 + i % 2 * e.lanes) for i in range(e.lanes)]
                value = b.shuffle_vector(*vectors, ir.Constant(index, lanes))
                skip = const(r * e.lanes)
                to = b.gep(y, [b.add(at, skip)])
                masked_store(b, e, value, to, first_lanes(b, e, b.sub(left, skip)))

    name = f"alternate_{e.short}_{host().name}"
    return types.void(T, *[types.int64] * 4), out_of_line(name, "pppi", 1, e, body)


def weave(T: Any) -> Any:
    """Tasks of putting the phases of a gradient together: some planes, each of its rows written once."""
    size = T.bitwidth // 8

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, WEAVE_RECORD), 1)[0]
        phase_d = carray(pointer(a.phase_d, types.int64), a.stride_d)
        phase_h = carray(pointer(a.phase_h, types.int64), a.stride_h)
        first_w = carray(pointer(a.first_w, types.int64), a.phases_w)
        counts_d = carray(pointer(a.counts_d, types.int64), 1 << 40)
        counts_h = carray(pointer(a.counts_h, types.int64), 1 << 40)
        counts_w = carray(pointer(a.counts_w, types.int64), 1 << 40)
        begins = carray(pointer(a.begins, types.int64), 1 << 40)
        bias = carray(pointer(a.bias, T), 1 << 40)
        zero = bias.dtype.type(0)
        while True:
            task = next_task(arguments)
            if task >= a.stop:
                return
            for p in range(task * a.step, min((task + 1) * a.step, a.planes)):
                # Phases hold the bias already; what lies in none of them is the bias alone.
                alone = bias[p % a.channels] if a.bias else zero
                for d in range(a.d):
                    i = phase_d[d % a.stride_d]
                    for h in range(a.h):
                        j = phase_h[h % a.stride_h]
                        row = carray(pointer(a.y + size * ((p * a.d + d) * a.h + h) * a.w, T), a.w)
                        if i < 0 or j < 0 or not a.whole:
                            for at in range(a.w):
                                row[at] = alone
                        if i < 0 or j < 0:
                            continue
                        if a.stride_w == 2 and a.phases_w == 2 and a.whole:
                            begin = (p * counts_d[i] + d // a.stride_d) * counts_h[j] + h // a.stride_h
                            at = begins[(i * a.phases_h + j) * 2] + begin * counts_w[0]
                            other = begins[(i * a.phases_h + j) * 2 + 1] + begin * counts_w[1]
                            if first_w[0]:
                                at, other = other, at
                            y = a.y + size * ((p * a.d + d) * a.h + h) * a.w
                            alternate(T, y, a.x + size * at, a.x + size * other, a.w)
                            continue
                        for k in range(a.phases_w):
                            n = counts_w[k]
                            begin = p * counts_d[i] + d // a.stride_d
                            begin = (begin * counts_h[j] + h // a.stride_h) * n
                            begin += begins[(i * a.phases_h + j) * a.phases_w + k]
                            x = carray(pointer(a.x + size * begin, T), n)
                            at = first_w[k]
                            for q in range(n):
                                row[at] = x[q]
                                at += a.stride_w

    return work
