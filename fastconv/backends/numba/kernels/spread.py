"""Windows spread over what they read: the gradients of averages and of Lp pools.

::

    dx[d, h, w] = sum of dy[i, j, k] / divisor[i, j, k] over the windows i, j, k that read d, h, w

Nothing is scattered: each element adds up the windows that meet it, and is written once. ``stage_rows`` copies some rows
of outputs, divided, to rows with zeros on either side. ``gather_rows`` then lays vectors along the rows of dx: at a
stride of 1 or 2, and for each phase of it, the windows that meet a vector's elements are vectors of those rows, one for
each tap. Other windows, and bins, are added one by one.

No lane needs a mask but those beyond a row of outputs, and none is written under one but those beyond a plane: what a
vector writes behind its row the next row writes again. Rows are staged some time before they are gathered, for a
processor cannot hand what it has just stored to a load at another offset; planes of few rows are taken together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from .pool import zero
from .simd import (
    ELEMENTS,
    I64,
    const,
    first_lanes,
    host,
    lane_range,
    load,
    loop,
    masked_load,
    masked_store,
    next_task,
    pointer,
    splat,
    store,
    woven,
)

# The stride along a row and the taps of its phases, as the windows of networks have them: 2 x 2 and 3 x 3 at stride 2,
# without padding and with it, 3 x 3 at stride 1. Others are looped over, those of
# other strides without vectors (stride 0).
SHAPES = ((2, (1, 1)), (2, (2, 1)), (2, (1, 2)), (1, (3,)))
LOOPED = ((2, ()), (1, ()), (0, ()))

# Rows that are staged together, in bytes: half of an L1 cache.
BLOCK_BYTES = 16 << 10

# Numbers of an element in an axis' table: the first window that meets it, how many, and the step between them.
MEETING = 3

# Numbers of a block: its rows of dx, the first row of outputs that meets them, and how many there are.
BLOCK = 4

FIELDS = (
    "next stop "  # the next task, and where to stop
    "dx dy scratch scratch_size "  # addresses; bytes of a worker's scratch
    "plane outputs planes planes_step "  # elements and outputs of a plane; planes in all, of a task
    "d h w oh ow "  # sizes
    "meeting_d meeting_h meeting_w "  # tables: the windows that meet each element
    "divisors_d divisors_h divisors_w "  # what windows are divided by along each axis, 0 if they are not
    "taps offsets "  # of each phase of the stride, and from an element's number in its phase to each
    "left pitch staged "  # zeros before a row; from one to the next; rows there are
    "group blocks n_blocks"  # planes that are taken together, as one with as many rows; the table of blocks of rows
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)


def _call(builder: Any, name: str, kinds: list[ir.Type], values: Any, body: Any) -> None:
    """Call a function of its own, out of line, written once in a module; pointers are given as addresses."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        b = ir.IRBuilder(function.append_basic_block("entry"))
        body(b, *function.args)
        b.ret_void()
    given = [
        builder.inttoptr(value, kind) if isinstance(kind, ir.PointerType) else value
        for value, kind in zip(values, kinds, strict=True)
    ]
    builder.call(function, given)


@intrinsic
def stage_rows(
    typing: Any, T: Any, to: Any, dy: Any, count: Any, width: Any, pitch: Any, divisors_w: Any, divisors_h: Any, divisor: Any
) -> Any:  # fmt: skip
    """``to[j * pitch + i] = dy[j * width + i] / (divisors_w[i] * divisors_h[j] * divisor)``, or as it is."""
    e = ELEMENTS[T.instance_type]

    def body(
        b: ir.IRBuilder, to: Any, dy: Any, count: Any, width: Any, pitch: Any, divisors_w: Any, divisors_h: Any, divisor: Any
    ) -> None:  # fmt: skip
        whole = b.and_(width, const(-e.lanes))
        rest = b.sub(width, whole)
        inside = lane_range(b, e, const(0), rest)
        divides = b.icmp_unsigned("!=", b.ptrtoint(divisors_w, I64), const(0))

        def row(j: Any, divisor: Any | None) -> None:
            source, target = b.mul(j, width), b.mul(j, pitch)
            by = None
            if divisor is not None:
                by = splat(b, e.vector, b.fmul(b.load(b.gep(divisors_h, [j])), divisor))

            def vector(i: Any, left: Any | None) -> None:
                at = b.gep(dy, [b.add(source, i)])
                value = load(b, e, at) if left is None else masked_load(b, e, at, inside)
                if by is not None:
                    value = b.fdiv(value, b.fmul(load(b, e, b.gep(divisors_w, [i])), by))
                store(b, e, value, b.gep(to, [b.add(target, i)]))

            with (
                b.if_then(b.icmp_signed(">", whole, const(0))),
                loop(b, const(0), whole, const(e.lanes)) as i,
            ):
                vector(i, None)
            with b.if_then(b.icmp_signed(">", rest, const(0))):
                vector(whole, rest)

        with b.if_else(divides) as (divided, plain):
            with divided, loop(b, const(0), count) as j:
                row(j, divisor)
            with plain, loop(b, const(0), count) as j:
                row(j, None)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        elements = e.llvm.as_pointer()
        kinds = [elements, elements, I64, I64, I64, elements, elements, e.llvm]
        _call(builder, f"stage_rows_{e.short}_{host().name}", kinds, values[1:], body)
        return context.get_dummy_value()

    return types.void(T, *[types.int64] * 7, T.instance_type), codegen


@intrinsic(prefer_literal=True)
def gather_rows(
    typing: Any, S: Any, FIRST: Any, SECOND: Any, T: Any, dx: Any, rows: Any, h0: Any, h1: Any, meeting: Any, j0: Any,
    pitch: Any, slices: Any, between: Any, w: Any, room: Any, taps: Any, offsets: Any,
) -> Any:  # fmt: skip
    """Rows h0 to h1 of dx, from the staged rows of some slices.

    ``FIRST`` and ``SECOND`` are the taps of the stride's phases, 0 where they are looped over. `room` is what there is from
    row h0 to the plane's end.
    """
    literals = (S, FIRST, SECOND)
    if not all(isinstance(literal, types.IntegerLiteral) for literal in literals):
        return None
    s, *known = (literal.literal_value for literal in literals)
    e = ELEMENTS[T.instance_type]

    def body(
        b: ir.IRBuilder, dx: Any, rows: Any, h0: Any, h1: Any, meeting: Any, j0: Any, pitch: Any, slices: Any, between: Any,
        w: Any, room: Any, taps: Any, offsets: Any,
    ) -> None:  # fmt: skip
        step = const(s * e.lanes)
        counts = [b.load(b.gep(taps, [const(phase)])) for phase in range(s)]
        lists = [offsets, *[b.gep(offsets, [count]) for count in counts[:-1]]]
        fixed = [
            [b.load(b.gep(at, [const(t)])) for t in range(number)]
            for at, number in zip(lists, known, strict=False)
        ]
        totals = [cgutils.alloca_once(b, e.vector) for _ in range(s)]

        def join(at: Any, phase: int, offset: Any) -> None:
            value = load(b, e, b.gep(rows, [b.add(at, offset)]))
            b.store(b.fadd(b.load(totals[phase]), value), totals[phase])

        with loop(b, h0, h1) as h:
            entry = b.gep(meeting, [b.mul(h, const(MEETING))])
            first, count, stride = (b.load(b.gep(entry, [const(i)])) for i in range(MEETING))
            begin, rise = b.mul(b.sub(first, j0), pitch), b.mul(stride, pitch)
            row = b.mul(b.sub(h, h0), w)
            meets = b.icmp_signed(">", b.mul(slices, count), const(0))
            with loop(b, const(0), w, step) as i:
                m = b.lshr(i, const(1)) if s == 2 else i
                for total in totals:
                    b.store(ir.Constant(e.vector, None), total)
                with b.if_then(meets), loop(b, const(0), slices) as part:
                    base = b.add(b.add(begin, m), b.mul(part, between))
                    with loop(b, const(0), count) as n:
                        at = b.add(base, b.mul(n, rise))
                        for phase in range(s):
                            if known[0]:
                                for offset in fixed[phase]:
                                    join(at, phase, offset)
                                continue
                            some = b.icmp_signed(">", counts[phase], const(0))
                            with b.if_then(some), loop(b, const(0), counts[phase]) as t:
                                join(at, phase, b.load(b.gep(lists[phase], [t])))
                made = [b.load(total) for total in totals]
                made = woven(b, *made) if s == 2 else made
                to = b.add(row, i)
                with b.if_else(b.icmp_signed("<=", b.add(to, step), room), likely=True) as (whole, part):
                    with whole:
                        for r, value in enumerate(made):
                            store(b, e, value, b.gep(dx, [b.add(to, const(r * e.lanes))]))
                    with part:
                        for r, value in enumerate(made):
                            skip = const(r * e.lanes)
                            left = b.sub(b.sub(w, i), skip)
                            masked_store(
                                b,
                                e,
                                value,
                                b.gep(dx, [b.add(to, skip)]),
                                first_lanes(b, e, left),
                                in_loop=True,
                            )

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        elements, words = e.llvm.as_pointer(), I64.as_pointer()
        kinds = [elements, elements, I64, I64, words, *[I64] * 6, words, words]
        number = "".join(map(str, known[:s])) if known[0] else "n"
        _call(builder, f"gather_rows_{e.short}_s{s}_{number}_{host().name}", kinds, values[4:], body)
        return context.get_dummy_value()

    return types.void(*literals, T, *[types.int64] * 13), codegen


def spread(s: int, taps: tuple[int, ...]) -> Any:
    """A factory of tasks that spread windows at a stride s along rows: some planes."""
    first, second = (*taps, 0, 0)[:2]

    def spread_(T: Any) -> Any:
        size = T.bitwidth // 8

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            meeting_d = carray(pointer(a.meeting_d, types.int64), (a.d, MEETING))
            meeting_h = carray(pointer(a.meeting_h, types.int64), (a.h, MEETING))
            meeting_w = carray(pointer(a.meeting_w, types.int64), (a.w, MEETING))
            blocks = carray(pointer(a.blocks, types.int64), (a.n_blocks, BLOCK))
            by_d = carray(pointer(a.divisors_d, T), 1 << 40)
            begin = a.scratch + worker * a.scratch_size
            staged = carray(pointer(begin, T), a.staged * a.pitch)
            staged[:] = 0  # what lies beside the rows stays so
            rows = begin + size * a.left
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                stop = min((task + 1) * a.planes_step, a.planes)
                for p in range(task * a.planes_step, stop, a.group):
                    planes = min(a.group, stop - p)
                    for d in range(a.d):
                        i0, ni, si = meeting_d[d, 0], meeting_d[d, 1], meeting_d[d, 2]
                        for block in range(a.n_blocks):
                            h0, h1, low, count = (
                                blocks[block, 0],
                                blocks[block, 1],
                                blocks[block, 2],
                                blocks[block, 3],
                            )
                            if a.group > 1:
                                h1, count = planes * a.h, planes * a.oh
                            for m in range(ni if count > 0 else 0):
                                i = i0 + m * si
                                at = p * a.outputs + (i * a.oh + low) * a.ow
                                to = m * count * a.pitch
                                stage_rows(
                                    T,
                                    rows + size * to,
                                    a.dy + size * at,
                                    count,
                                    a.ow,
                                    a.pitch,
                                    a.divisors_w,
                                    a.divisors_h + size * low,
                                    by_d[i],
                                )
                            at = (d * a.h + h0) * a.w
                            dx, room = a.dx + size * (p * a.plane + at), planes * a.plane - at
                            if s > 0:
                                gather_rows(
                                    s,
                                    first,
                                    second,
                                    T,
                                    dx,
                                    rows,
                                    h0,
                                    h1,
                                    a.meeting_h,
                                    low,
                                    a.pitch,
                                    ni,
                                    count * a.pitch,
                                    a.w,
                                    room,
                                    a.taps,
                                    a.offsets,
                                )
                                continue
                            result = carray(pointer(dx, T), (h1 - h0) * a.w)
                            for h in range(h0, h1):
                                j0, nj, sj = meeting_h[h, 0] - low, meeting_h[h, 1], meeting_h[h, 2]
                                for w in range(a.w):
                                    k0, nk, sk = meeting_w[w, 0] + a.left, meeting_w[w, 1], meeting_w[w, 2]
                                    total = zero(T)
                                    for m in range(ni):
                                        for n in range(nj):
                                            row = (m * count + j0 + n * sj) * a.pitch + k0
                                            for o in range(nk):
                                                total = total + staged[row + o * sk]
                                    result[(h - h0) * a.w + w] = total

        return work

    spread_.__name__ = f"spread_s{s}_{''.join(map(str, taps)) or 'n'}"
    return spread_


def fill(T: Any) -> Any:
    """Tasks of one window for each plane: all its elements get the same."""
    size = T.bitwidth // 8

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        dy = carray(pointer(a.dy, T), a.planes)
        by = carray(pointer(a.divisors_w, T), 1)[0]
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            for p in range(task * a.planes_step, min((task + 1) * a.planes_step, a.planes)):
                value = dy[p] / by
                plane = carray(pointer(a.dx + size * p * a.plane, T), a.plane)
                for i in range(a.plane):
                    plane[i] = value

    return work
