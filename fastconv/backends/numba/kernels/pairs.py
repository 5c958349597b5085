"""Windows of 2 x 2 or 3 x 3 at a stride of 2, spread over what they read: two rows at a time.

The gradients of a depthwise convolution's input and of an average. Of the padded input, rows and columns 2 q and 2 q + 1
make a pair. What a pair meets is few::

    even = dy[q] * w[0] + dy[q - 1] * w[2]        odd = dy[q] * w[1]

So from two neighbouring rows of the output's gradient come two rows of the input's, nine multiply-adds for four vectors,
and every element is written once. As convolutions of stride 1, one for each phase, the four results would have to be woven
together: 7.7 ms for 16 images of 512 x 14 x 14, where this takes 0.8. An average has no weights: it divides dy.

A vector's elements behind a row's end are written too, where the next row comes after them: so columns go from the last to
the first, and rows from the first to the last. Only behind the task's last plane are there masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.extending import intrinsic

from .simd import (
    ELEMENTS,
    I64,
    const,
    first_lanes,
    host,
    lane_range,
    load,
    masked_load,
    masked_store,
    multiply_add,
    next_task,
    out_of_line,
    pointer,
    splat,
    store_all,
    woven,
)

FIELDS = (
    "next stop "  # the next task, and where to stop
    "dy w bias dx zeros "  # addresses; w may be the divisor, no bias is 0; a row of zeros
    "planes step channels "  # planes in all, of a task; weights of so many channels follow one another
    "h width oh ow "  # rows and columns of the input, and of the output
    "before_h before_w "  # padding
    "blocks "  # vectors of a row of the output's gradient that a row's pairs take
    "past"  # whether results go past the caches, which they would fill
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)


@intrinsic(prefer_literal=True)
def pair_rows(
    typing: Any, K: Any, WEIGHTED: Any, ODD: Any, MASKED: Any, T: Any,
    dx: Any, dy: Any, w: Any, bias: Any, zeros: Any, h: Any, width: Any, oh: Any, ow: Any, before: Any, first: Any, room: Any,
    past: Any,
) -> Any:  # fmt: skip
    """A column of vectors: all rows of a plane, for the pairs whose lower vectors begin at column `first` of dy.

    Parameters
    ----------
    K : literal
        Taps along either axis.
    WEIGHTED : literal
        Whether `w` holds a weight for each tap, or what all of dy is divided by.
    ODD : literal
        Whether a row of dx begins with the second of a pair.
    MASKED : literal
        Whether columns of dy beyond its ends take part, as zeros.
    bias : address
        Of what is added to every element.
    room : int
        Elements from the column's first one to the end of what may be written.
    """
    literals = (K, WEIGHTED, ODD, MASKED)
    if not all(isinstance(literal, types.IntegerLiteral) for literal in literals):
        return None
    k, *said = (literal.literal_value for literal in literals)
    weighted, odd, masked = map(bool, said)
    e = ELEMENTS[T.instance_type]

    def body(
        b: ir.IRBuilder, dx: Any, dy: Any, w: Any, bias: Any, zeros: Any, h: Any, width: Any, oh: Any, ow: Any, before: Any,
        first: Any, room: Any, past: Any,
    ) -> None:  # fmt: skip
        weights = [splat(b, e.vector, b.load(b.gep(w, [const(t)]))) for t in range(k * k if weighted else 1)]
        offset = splat(b, e.vector, b.load(bias))
        starts = [b.add(first, const(i)) for i in range(2)]
        inside = [lane_range(b, e, b.neg(start), b.sub(ow, start)) for start in starts]

        def row(q: Any) -> list[Any]:
            at = b.select(b.icmp_unsigned("<", q, oh), b.gep(dy, [b.mul(q, ow)]), zeros)
            places = [b.gep(at, [start]) for start in starts]
            if masked:
                found = [masked_load(b, e, *place) for place in zip(places, inside, strict=True)]
            else:
                found = [load(b, e, place) for place in places]
            return found if weighted else [b.fdiv(value, weights[0]) for value in found]

        def write(row: Any, even: Any, second: Any) -> None:
            """A row of dx, if it is one."""
            with b.if_then(b.icmp_unsigned("<", row, h), likely=True):
                at = b.mul(row, width)
                to, left = b.gep(dx, [at]), b.sub(room, at)
                made = woven(b, *((second, even) if odd else (even, second)))
                with b.if_else(b.icmp_signed(">=", left, const(2 * e.lanes)), likely=True) as (whole, part):
                    with whole:
                        vectors = [(value, b.gep(to, [const(r * e.lanes)])) for r, value in enumerate(made)]
                        store_all(b, e, vectors, past, dx, at)
                    with part:
                        for r, value in enumerate(made):
                            skip = const(r * e.lanes)
                            lanes = first_lanes(b, e, b.sub(left, skip))
                            masked_store(b, e, value, b.gep(to, [skip]), lanes, in_loop=True)

        begin, stop = (
            b.ashr(before, const(1)),
            b.add(b.ashr(b.add(b.sub(h, const(1)), before), const(1)), const(1)),
        )
        above = row(b.sub(begin, const(1)))
        entry = b.block
        loop, done = b.append_basic_block("rows"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        q = b.phi(I64)
        last = [b.phi(e.vector) for _ in range(2)]
        here = row(q)
        add = b.fadd if e.real else b.add

        def total(*terms: tuple[Any, int, int]) -> Any:
            value = ir.Constant(e.vector, None)
            for vector, kh, kw in terms:
                if max(kh, kw) < k:
                    if weighted:
                        value = multiply_add(b, e, vector, weights[kh * k + kw], value)
                    else:
                        value = add(value, vector)
            return add(value, offset)

        low, high = 0, 1
        alone = low if odd else high  # what meets the middle column
        at = b.sub(b.mul(q, const(2)), before)
        write(
            at,
            total((here[high], 0, 0), (here[low], 0, 2), (last[high], 2, 0), (last[low], 2, 2)),
            total((here[alone], 0, 1), (last[alone], 2, 1)),
        )
        write(
            b.add(at, const(1)),
            total((here[high], 1, 0), (here[low], 1, 2)),
            total((here[alone], 1, 1)),
        )
        following = b.add(q, const(1))
        q.add_incoming(begin, entry)
        q.add_incoming(following, b.block)
        for phi, before_it, after in zip(last, above, here, strict=True):
            phi.add_incoming(before_it, entry)
            phi.add_incoming(after, b.block)
        b.cbranch(b.icmp_signed("<", following, stop), loop, done)
        b.position_at_end(done)

    kind = f"{k}{'' if weighted else '_mean'}{'_odd' if odd else ''}{'_masked' if masked else ''}"
    name = f"pair_rows_{e.short}_{kind}_{host().name}"
    return types.void(*literals, T, *[types.int64] * 13), out_of_line(name, "pppppiiiiiiii", 5, e, body)


def pairs(k: int, weighted: int) -> Any:
    """A factory of tasks that spread windows of k x k: some planes."""

    def pairs_(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            low = (a.before_w + 1) // 2 - 1  # where the lower vectors of a row's first pairs begin
            odd = a.before_w % 2
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                stop = min((task + 1) * a.step, a.planes)
                for p in range(task * a.step, stop):
                    c = p % a.channels
                    dy, w = a.dy + size * p * a.oh * a.ow, a.w + size * c * k * k * weighted
                    bias = a.bias + size * c if a.bias else a.zeros
                    for i in range(a.blocks - 1, -1, -1):
                        first = low + i * lanes
                        dx = a.dx + size * (p * a.h * a.width + 2 * i * lanes)
                        room = (stop - p) * a.h * a.width - 2 * i * lanes
                        inner = first >= 0 and first + lanes < a.ow
                        if odd:
                            if inner:
                                pair_rows(
                                    k, weighted, 1, 0, T, dx, dy, w, bias, a.zeros, a.h, a.width, a.oh, a.ow, a.before_h,
                                    first, room, a.past,
                                )  # fmt: skip
                            else:
                                pair_rows(
                                    k, weighted, 1, 1, T, dx, dy, w, bias, a.zeros, a.h, a.width, a.oh, a.ow, a.before_h,
                                    first, room, a.past,
                                )  # fmt: skip
                        elif inner:
                            pair_rows(
                                k, weighted, 0, 0, T, dx, dy, w, bias, a.zeros, a.h, a.width, a.oh, a.ow, a.before_h, first,
                                room, a.past,
                            )  # fmt: skip
                        else:
                            pair_rows(
                                k, weighted, 0, 1, T, dx, dy, w, bias, a.zeros, a.h, a.width, a.oh, a.ow, a.before_h, first,
                                room, a.past,
                            )  # fmt: skip

        return work

    pairs_.__name__ = f"pairs_{k}{'' if weighted else '_mean'}"
    return pairs_
