"""What the gradient of an input needs: weights turned round, and the phases of a stride put together."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.extending import intrinsic

from .simd import (
    ELEMENTS,
    const,
    first_lanes,
    host,
    lane_range,
    load,
    loop,
    masked_load,
    masked_store,
    next_task,
    out_of_line,
    pick,
    pointer,
    store,
    store_all,
    turn_block,
    woven,
)

# Input channels of a task that turns weights, and output channels that are written together: what is read and what is
# written lies multiples of 4096 bytes apart, where the L1 cache holds eight lines.
TURNED, TOGETHER = 16, 16

TURN_FIELDS = (
    "next stop "  # the next task, and where to stop
    "w to "  # addresses
    "offsets begins counts parts "  # tables: where `TOGETHER` channels' taps are read; of each part its begin and its taps
    "o c taps "  # channels of a group; taps of the weights
    "units c_units step"  # groups by blocks of input channels, those of a group, those of a task
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
    "whole "  # whether every element of a row belongs to some phase
    "past"  # whether the result goes past the caches, which it would fill
)
WEAVE = np.dtype([(name, np.int64) for name in WEAVE_FIELDS.split()])
WEAVE_RECORD = from_dtype(WEAVE)


def turn(T: Any) -> Any:
    """Tasks of turning weights: (o, c, taps) of a group becomes (c, o, some of the taps) in every part of the result."""
    size = T.bitwidth // 8
    lanes = host().width // size

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, TURN_RECORD), 1)[0]
        begins = carray(pointer(a.begins, types.int64), a.parts)
        counts = carray(pointer(a.counts, types.int64), a.parts)
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            for unit in range(task * a.step, min((task + 1) * a.step, a.units)):
                g, c0 = divmod(unit, a.c_units)
                c0 *= TURNED
                c1 = min(c0 + TURNED, a.c)
                # Of one tap square blocks are turned, as far as they are whole.
                os = a.o // lanes * lanes if a.taps == 1 else 0
                cs = c0 + (c1 - c0) // lanes * lanes if a.taps == 1 else c0
                for o in range(0, os, lanes):
                    for c in range(c0, cs, lanes):
                        to = a.to + size * ((g * a.c + c) * a.o + o)
                        turn_block(T, to, a.o, a.w + size * ((g * a.o + o) * a.c + c), a.c)
                for o in range(0, a.o, TOGETHER):
                    some = min(TOGETHER, a.o - o)
                    for c in range(cs if o + some <= os else c0, c1):
                        x = a.w + size * a.taps * ((g * a.o + o) * a.c + c)
                        offsets = a.offsets
                        for part in range(a.parts):
                            n = counts[part]
                            to = a.to + size * (begins[part] + ((g * a.c + c) * a.o + o) * n)
                            pick(T, to, x, offsets, some * n)
                            offsets += 4 * TOGETHER * n

    return work


@intrinsic
def alternate(typing: Any, T: Any, y: Any, even: Any, odd: Any, count: Any, past: Any) -> Any:
    """``y[2 * i] = even[i]`` and ``y[2 * i + 1] = odd[i]`` for `count` elements in all."""
    e = ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, y: Any, even: Any, odd: Any, count: Any, past: Any) -> None:
        with loop(b, const(0), count, const(2 * e.lanes)) as at:
            left, half = b.sub(count, at), b.lshr(at, const(1))
            sources, to = [b.gep(x, [half]) for x in (even, odd)], b.gep(y, [at])
            with b.if_else(b.icmp_signed(">=", left, const(2 * e.lanes))) as (whole, part):
                with whole:
                    made = woven(b, *[load(b, e, x) for x in sources])
                    vectors = [(value, b.gep(to, [const(r * e.lanes)])) for r, value in enumerate(made)]
                    store_all(b, e, vectors, past, to)
                with part:
                    odds = b.ashr(left, const(1))
                    stops = b.sub(left, odds), odds
                    vectors = [
                        masked_load(b, e, x, lane_range(b, e, const(0), stop))
                        for x, stop in zip(sources, stops, strict=True)
                    ]
                    first, second = woven(b, *vectors)
                    rest = b.sub(left, const(e.lanes))
                    with b.if_else(b.icmp_signed(">=", rest, const(0))) as (full, short):
                        with full:
                            store(b, e, first, to)
                            masked_store(b, e, second, b.gep(to, [const(e.lanes)]), first_lanes(b, e, rest))
                        with short:
                            masked_store(b, e, first, to, first_lanes(b, e, left))

    name = f"alternate_{e.short}_{host().name}"
    return types.void(T, *[types.int64] * 5), out_of_line(name, "pppii", 1, e, body)


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
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            for p in range(task * a.step, min((task + 1) * a.step, a.planes)):
                # Phases hold the bias already; what lies in none of them is the bias alone.
                alone = bias[p % a.channels] if a.bias else zero
                # Numbers of planes and rows in their phases are counted: a division takes as long as half a row of 14.
                qd, rd = 0, -1
                for d in range(a.d):
                    rd += 1
                    if rd == a.stride_d:
                        qd, rd = qd + 1, 0
                    i = phase_d[rd]
                    qh, rh = 0, -1
                    for h in range(a.h):
                        rh += 1
                        if rh == a.stride_h:
                            qh, rh = qh + 1, 0
                        j = phase_h[rh]
                        row = carray(pointer(a.y + size * ((p * a.d + d) * a.h + h) * a.w, T), a.w)
                        if i < 0 or j < 0 or not a.whole:
                            for at in range(a.w):
                                row[at] = alone
                        if i < 0 or j < 0:
                            continue
                        if a.stride_w == 2 and a.phases_w == 2 and a.whole:
                            begin = (p * counts_d[i] + qd) * counts_h[j] + qh
                            at = begins[(i * a.phases_h + j) * 2] + begin * counts_w[0]
                            other = begins[(i * a.phases_h + j) * 2 + 1] + begin * counts_w[1]
                            if first_w[0]:
                                at, other = other, at
                            y = a.y + size * ((p * a.d + d) * a.h + h) * a.w
                            alternate(T, y, a.x + size * at, a.x + size * other, a.w, a.past)
                            continue
                        for k in range(a.phases_w):
                            n = counts_w[k]
                            begin = ((p * counts_d[i] + qd) * counts_h[j] + qh) * n
                            begin += begins[(i * a.phases_h + j) * a.phases_w + k]
                            x = carray(pointer(a.x + size * begin, T), n)
                            at = first_w[k]
                            for q in range(n):
                                row[at] = x[q]
                                at += a.stride_w

    return work
