"""The gradient of a max pool by comparing: each element of a row asks the windows that meet it whether it is their maximum.

Vectors lie along the rows of dx, for windows of 2 x 2 and 3 x 3 at a stride of 2. Two neighbouring columns, 2 m and
2 m + 1, meet the same windows or one less, so every output's index and gradient is loaded twice over, side by side::

    dx[p] = sum of (indices[o] == p ? dy[o] : 0) over the outputs o that may meet p, in their order

An index of 64 bits need not be narrowed for that: its lower half over its upper half is the pair, one instruction, which
a load takes in. No sum is read back from memory and nothing is cleared first. As ``scatter`` it was one element at a time,
100 instructions for 16 outputs of 2 x 2, and here 45.

What is not asked for is lost, so every index is looked at: it must lie in its output's own window. A pool's do; where one
does not, the plane is scattered again, which takes any index inside it and tells of one outside. Sums begin with 0.0 and
are formed in the same order, so that both give the same bits.

Rows of outputs are followed in memory by others, and what a vector reads there matches nothing: a window at a row's other
end is far away, or the plane is too narrow to be taken. What a vector writes behind its row is written again: the last
vector of a row comes first, the others follow, and then the next row. Only at an end of the arrays, or of a task's last
plane, are there masks (``CAREFUL``).
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from .pool import MAX
from .scatter import ADD, WRONG, fill
from .scatter import FIELDS as SCATTERED
from .simd import (
    ELEMENTS,
    I32,
    I64,
    Element,
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
)
from .windows import Kernel

# The window and the padding before a row's first column, as networks have them, and which outputs a pair of columns asks:
# from the pair's number to each.
SHAPES = {(2, 0): (0,), (3, 0): (-1, 0), (3, 1): (0, 1)}

# The stride, and how far a pair of rows lies from the arrays' begin before it reads nothing in front of it.
STRIDE, LEAD = 2, 2

FIELDS = (
    f"{SCATTERED} "
    "h w oh ow before_h "  # sizes, and padding above
    "pairs blocks "  # pairs of rows of dx, vectors of a row
    "edge "  # pairs of rows at the end of a task's last plane that need care
    "firsts counts "  # of each column of dx: its output's first column, and how many; 32 bits each
    "no_indices no_y"  # in place of rows of outputs that are not there
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)
FIELD = {name: at for at, name in enumerate(FIELDS.split())}


class Rows:
    """``match_rows`` as it is written."""

    def __init__(self, b: ir.IRBuilder, e: Element, arguments: Any, careful: bool) -> None:
        self.b, self.e, self.arguments, self.careful = b, e, arguments, careful
        self.wide = ELEMENTS[types.int64]  # with half as many lanes
        self.m = Kernel(b, arguments, e, MAX)
        self.watched = self.m.watch()
        self.seen = cgutils.alloca_once_value(b, ir.Constant(self.wide.vector, None))
        self.ow = self.field("ow")

    def field(self, name: str, kind: ir.Type | None = None) -> Any:
        """A field of the arguments, or the address in it as a pointer to `kind`."""
        value = self.b.load(self.b.gep(self.arguments, [const(FIELD[name])]))
        return value if kind is None else self.b.inttoptr(value, kind.as_pointer())

    def least(self, values: list[Any]) -> Any:
        """The smallest of some vectors, lane by lane, as unsigned numbers."""
        b = self.b
        return reduce(lambda a, c: b.select(b.icmp_unsigned("<", a, c), a, c), values)

    def twice(self, row: tuple[Any, Any], c: Any) -> tuple[Any, Any, Any]:
        """Outputs from column c on, half a vector: their indices, and each one's lower half and gradient twice."""
        b, e, half = self.b, self.e, self.wide.lanes
        to_y, to_indices = (b.gep(at, [c]) for at in row)
        if self.careful:
            low, high = b.neg(c), self.m.least(b.sub(self.ow, c), const(half))
            places = masked_load(b, self.wide, to_indices, lane_range(b, self.wide, low, high))
            values = masked_load(b, e, to_y, lane_range(b, e, low, high))
        else:
            places = load(b, self.wide, to_indices)
            values = b.load(b.bitcast(to_y, ir.VectorType(e.llvm, half).as_pointer()))
            values.align = e.size
        words = b.bitcast(places, self.m.places)
        lower = b.shuffle_vector(words, words, self.m.constants(i & -2 for i in range(e.lanes)))
        pairs = b.shuffle_vector(values, values, self.m.constants(i // 2 for i in range(e.lanes)))
        return places, lower, pairs

    def matched(self, asked: list[tuple[Any, Any]], place: Any) -> Any:
        """The sum of the gradients whose index is a lane's own place."""
        b, add = self.b, self.b.fadd if self.e.real else self.b.add
        total = ir.Constant(self.e.vector, None)
        for index, value in asked:
            total = b.select(b.icmp_signed("==", index, place), add(total, value), total)
        return total

    def write(self, value: Any, dx: Any, w0: Any, left: Any) -> None:
        """Store a vector of a row that begins at `dx`, `left` elements before its end."""
        to = self.b.gep(dx, [w0])
        if self.careful:
            masked_store(self.b, self.e, value, to, first_lanes(self.b, self.e, left), in_loop=True)
        else:
            store(self.b, self.e, value, to)

    def walk(self, p: Any, begin: Any, end: Any, k: int, offsets: tuple[int, ...]) -> None:
        """Pairs of rows of plane p."""
        b, e, m, half, ow = self.b, self.e, self.m, self.wide.lanes, self.ow
        h, w, oh, before, blocks = map(self.field, ("h", "w", "oh", "before_h", "blocks"))
        outputs = b.mul(p, self.field("outputs"))
        dx = b.gep(self.field("x", e.llvm), [b.mul(p, self.field("plane"))])
        y, indices = (
            b.gep(self.field(name, kind), [outputs]) for name, kind in (("y", e.llvm), ("indices", I64))
        )
        nothing = self.field("no_y", e.llvm), self.field("no_indices", I64)
        firsts, counts = self.field("firsts", I32), self.field("counts", I32)
        lane = m.constants(range(e.lanes))
        with loop(b, begin, end) as q:
            top = b.sub(b.mul(q, const(STRIDE)), before)
            is_row = b.icmp_unsigned("<", q, oh)

            def row(i: Any) -> tuple[Any, ...]:
                there, at = b.icmp_unsigned("<", i, oh), b.mul(i, ow)
                return tuple(
                    b.select(there, b.gep(part, [at]), none)
                    for part, none in zip((y, indices), nothing, strict=True)
                )

            # Of each of a window's rows, or the nearest there is: the place of its first column's.
            last = b.sub(h, const(1))
            rows = []
            for t in range(k):
                r = b.add(top, const(t))
                r = m.least(b.select(b.icmp_signed("<", r, const(0)), const(0), r), last)
                rows.append(m.spread(b.select(is_row, b.mul(r, w), const(0))))
            here, above = row(q), row(b.sub(q, const(1)))
            first, second = b.mul(top, w), b.mul(b.add(top, const(1)), w)
            is_first, is_second = (
                b.icmp_unsigned("<", r, h) for r in (top, b.add(top, const(1)))
            )
            with loop(b, const(0), blocks) as t:
                i = b.select(b.icmp_signed("==", t, const(0)), b.sub(blocks, const(1)), b.sub(t, const(1)))
                w0, c0 = b.mul(i, const(e.lanes)), b.mul(i, const(half))
                asked, asked_above = [], []
                for offset in offsets:
                    c = b.add(c0, const(offset))
                    places, lower, pairs = self.twice(here, c)
                    asked.append((lower, pairs))
                    if k > STRIDE:
                        asked_above.append(self.twice(above, c)[1:])
                    if offset == 0:
                        b.store(b.or_(b.load(self.seen), places), self.seen)
                        column = b.sub(lower, load(b, ELEMENTS[types.int32], b.gep(firsts, [w0])))
                        column = self.least([b.sub(column, start) for start in rows])
                        count = load(b, ELEMENTS[types.int32], b.gep(counts, [w0]))
                        m.expect(self.watched, b.icmp_unsigned("<", column, count))
                left = b.sub(w, w0)
                for there, place, some in (
                    (is_first, first, asked_above + asked),
                    (is_second, second, asked),
                ):
                    with b.if_then(there, likely=True):
                        places = b.add(m.spread(b.add(place, w0)), lane)
                        self.write(self.matched(some, places), b.gep(dx, [place]), w0, left)
        seen = b.load(self.seen)
        high = b.icmp_unsigned("<", seen, splat(b, self.wide.vector, const(1 << 32)))
        bits = b.bitcast(high, ir.IntType(half))
        with b.if_then(b.icmp_unsigned("!=", bits, ir.Constant(bits.type, -1)), likely=False):
            b.ret(const(1))
        m.return_if_wrong(self.watched, const(1))
        b.ret(const(0))


@intrinsic(prefer_literal=True)
def match_rows(
    typing: Any, K: Any, BEFORE: Any, CAREFUL: Any, T: Any, arguments: Any, p: Any, begin: Any, end: Any
) -> Any:
    """Pairs of rows of plane p from `begin` to `end`: 1 if an index was not in its output's window, else 0.

    Parameters
    ----------
    K, BEFORE : literal
        The window, and its padding before a row (``SHAPES``).
    CAREFUL : literal
        Whether nothing is read or written beyond a row.
    """
    literals = (K, BEFORE, CAREFUL)
    if not all(isinstance(literal, types.IntegerLiteral) for literal in literals):
        return None
    k, before, careful = (literal.literal_value for literal in literals)
    e = ELEMENTS[T.instance_type]
    name = f"match_rows_{e.short}_{k}x{k}_p{before}{'_careful' if careful else ''}_{host().name}"

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(I64, [I64.as_pointer(), I64, I64, I64])
            function = ir.Function(builder.module, kind, name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            at, *numbers = function.args
            inner = ir.IRBuilder(function.append_basic_block("entry"))
            Rows(inner, e, at, bool(careful)).walk(*numbers, k, SHAPES[k, before])
        at, *numbers = values[4:]
        return builder.call(function, [builder.inttoptr(at, I64.as_pointer()), *numbers])

    return types.int64(*literals, T, *[types.int64] * 4), codegen


def match(k: int, before: int) -> Any:
    """A factory of tasks of a pool with k x k windows at a stride of 2: some planes."""

    def match_(T: Any) -> Any:
        size = T.bitwidth // 8

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            wrong = carray(pointer(arguments + 8 * WRONG, types.int64), 1)
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                first, stop = task * a.planes_step, min((task + 1) * a.planes_step, a.planes)
                strange = 0
                for p in range(first, stop):
                    lead = min(LEAD, a.pairs) if p == first else 0
                    middle = max(a.pairs - (a.edge if p == stop - 1 else 0), lead)
                    before_it, strange = strange, 0
                    if lead > 0:
                        strange |= match_rows(k, before, 1, T, arguments, p, 0, lead)
                    if middle > lead:
                        strange |= match_rows(k, before, 0, T, arguments, p, lead, middle)
                    if a.pairs > middle:
                        strange |= match_rows(k, before, 1, T, arguments, p, middle, a.pairs)
                    # The planes beside it have looked at its first and last outputs.
                    again = p + 1 if strange | before_it else p
                    for n in range(p - 1 if strange and p > first else p, again):
                        x, y = a.x + size * n * a.plane, a.y + size * n * a.outputs
                        wrong[0] |= fill(ADD, T, size, x, y, a.indices + 8 * n * a.outputs, a.plane, a.outputs)

        return work

    match_.__name__ = f"match_{k}_p{before}"
    return match_
