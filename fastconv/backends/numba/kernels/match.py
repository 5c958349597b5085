"""The gradient of a max pool by comparing: each element asks the windows that meet it whether it is their maximum.

::

    dx[p] = sum of (indices[o] == p ? dy[o] : 0) over the outputs o that may meet p, in their order

No sum is read back from memory and nothing is cleared first: ``scatter`` takes one element at a time. What is not asked for is
lost, so every index is looked at: it must lie in its output's own window. A pool's do; where one does not, the task's planes are
scattered, which takes any index inside a plane and tells of one outside. Sums begin with 0.0 and are formed in the same
order, so that both give the same bits.

``Pairs`` is for windows of 2 x 2 and 3 x 3 at a stride of 2. Vectors lie along rows of dx, two rows at a time. Two
neighbouring columns, 2 m and 2 m + 1, ask the same windows or one less, so every output is loaded twice over, side by side.
An index of 64 bits need not be narrowed for that: its lower half over its upper half is the pair, one instruction, which a
load takes in. Rows of outputs are followed in memory by others, and what a vector reads there matches nothing: a window at a
row's other end is far away, or the plane is too narrow to be taken. What a vector writes behind its row is written again:
the last vector of a row comes first, the others follow, and then the next rows. Only at the ends of a task are there masks
(``CAREFUL``).

``Flat`` is for 3 x 3 windows at stride 1 with a border of 1, whose results lie as their input does: all planes of a task are
one long row. Indices are narrowed once for nine comparisons, to places in that row; what a vector asks beyond a row or a
plane is another window, which matches where it has to. So there are no masks but at the ends.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .pool import MAX
from .scatter import ADD, WRONG, fill
from .scatter import FIELDS as SCATTERED
from .simd import (
    ELEMENTS,
    I32,
    I64,
    LINE_BYTES,
    const,
    first_lanes,
    halves,
    host,
    lane_range,
    load,
    loop,
    masked_load,
    masked_store,
    next_task,
    pointer,
    prefetch,
    splat,
    store,
    store_past,
)
from .windows import FLAT, Kernel, of_planes

# The window and the padding before a row's first column, as networks have them, and which outputs a pair of columns asks:
# from the pair's number to each.
SHAPES = {(2, 0): (0,), (3, 0): (-1, 0), (3, 1): (0, 1)}

STRIDE = 2

# What comes from far is asked for ahead: dx so many bytes, indices half as many, dy a quarter. A kernel of its own, for near
# even the question whether to ask takes a tenth of the time. So is one that writes dx past the caches.
NEAR, FAR, PAST, CAREFUL = range(4)
KINDS = ("near", "far", "past", "careful")
AHEAD = 8 << 10

# Elements of dx for which outputs are staged together, and the widest rows: on the stack, 20 KB.
CHUNK, MOST_WIDTH = 2048, 256

FIELDS = (
    f"{SCATTERED} "
    "h w oh ow before_h "  # sizes, and padding above
    "pairs blocks rows "  # pairs of rows of dx, vectors of a row; pairs that are walked down together
    "lead edge "  # where care ends in a task's first plane, and where it begins in its last: pairs of rows
    "starts "  # a table of 32 bits: where a pair of rows begins, and where each row of its windows does
    "columns firsts counts "  # more: columns of dx; of the output of each the first column, and how many
    "no_indices no_y "  # in place of rows of outputs that are not there
    "ahead "  # whether what is read and written is asked for ahead
    "past"  # whether the result goes past the caches, which it would fill
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)
FIELD = {name: at for at, name in enumerate(FIELDS.split())}


def least(m: Kernel, values: list[Any]) -> Any:
    """The smallest of some vectors, lane by lane, as unsigned numbers."""
    return reduce(lambda a, c: m.b.select(m.b.icmp_unsigned("<", a, c), a, c), values)


def return_if_strange(m: Kernel, watched: Any, seen: Any, plane: Any) -> None:
    """Return a plane if some index was not in its window, or not of 32 bits: `seen` has the bits of all."""
    b, wide = m.b, ELEMENTS[types.int64]
    small = b.icmp_unsigned("<", b.load(seen), splat(b, wide.vector, const(1 << 32)))
    m.expect(watched, b.shuffle_vector(small, small, m.constants(i // 2 for i in range(m.e.lanes))))
    m.return_if_wrong(watched, plane)


class Pairs:
    """``match_planes`` as it is written: windows of k x k, of which a pair of columns asks those at `offsets`."""

    def __init__(self, m: Kernel, k: int, offsets: tuple[int, ...], kind: int) -> None:
        b, e = m.b, m.e
        self.m, self.b, self.e, self.k, self.offsets = m, b, e, k, offsets
        self.kind = kind
        self.wide = ELEMENTS[types.int64]  # with half as many lanes
        self.watched = m.watch()
        self.seen = cgutils.alloca_once_value(b, ir.Constant(self.wide.vector, None))
        self.h, self.w, self.oh, self.ow = (m.field(name) for name in ("h", "w", "oh", "ow"))
        self.before, self.blocks, self.rows = (m.field(name) for name in ("before_h", "blocks", "rows"))
        self.starts, self.columns, self.firsts, self.counts = (
            m.field(name, I32) for name in ("starts", "columns", "firsts", "counts")
        )
        self.nothing = m.field("no_y", e.llvm), m.field("no_indices", I64)
        self.width = m.spread(self.w)

    def twice(self, row: tuple[Any, ...], c: Any) -> tuple[Any, Any, Any]:
        """Outputs from column c on, half a vector: their indices, and each one's lower half and gradient twice."""
        b, e, half = self.b, self.e, self.wide.lanes
        to_y, to_indices = (b.gep(at, [c]) for at in row)
        if self.kind == CAREFUL:
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

    def walk(self, p: Any, begin: Any, end: Any) -> None:
        """Pairs of rows of plane p."""
        b, e, m, half, ow = self.b, self.e, self.m, self.wide.lanes, self.ow
        int32 = ELEMENTS[types.int32]
        dx = b.gep(m.field("x", e.llvm), [b.mul(p, m.field("plane"))])
        outputs = b.mul(p, m.field("outputs"))
        y, indices = b.gep(m.field("y", e.llvm), [outputs]), b.gep(m.field("indices", I64), [outputs])

        def row(i: Any) -> tuple[Any, ...]:
            there, at = b.icmp_unsigned("<", i, self.oh), b.mul(i, ow)
            return tuple(
                b.select(there, b.gep(part, [at]), none)
                for part, none in zip((y, indices), self.nothing, strict=True)
            )

        def columns(i: Any, begin: Any, end: Any) -> None:
            """Vector i of these rows, from the first to the last: what a pair asked, the next one asks again."""
            w0, c0 = b.mul(i, const(e.lanes)), b.mul(i, const(half))
            column, first, count = (
                load(b, int32, b.gep(table, [w0])) for table in (self.columns, self.firsts, self.counts)
            )

            def ask(q: Any) -> list[tuple[Any, Any, Any]]:
                pointers = row(q)
                return [self.twice(pointers, b.add(c0, const(offset))) for offset in self.offsets]

            held = []
            if self.k > STRIDE:
                for _, *asked in ask(b.sub(begin, const(1))):
                    held.append([cgutils.alloca_once_value(b, part) for part in asked])
            with loop(b, begin, end) as q:
                asked = ask(q)
                starts = b.gep(self.starts, [b.mul(q, const(1 + self.k))])
                place, *others = (
                    splat(b, m.places, b.load(b.gep(starts, [const(i)]))) for i in range(1 + self.k)
                )
                own, lower, _ = asked[self.offsets.index(0)]
                b.store(b.or_(b.load(self.seen), own), self.seen)
                inside = b.sub(lower, first)
                inside = least(m, [b.sub(inside, start) for start in others])
                m.expect(self.watched, b.icmp_unsigned("<", inside, count))
                above, here = [tuple(map(b.load, parts)) for parts in held], [part[1:] for part in asked]
                for parts, now in zip(held, here, strict=False):
                    for part, value in zip(parts, now, strict=True):
                        b.store(value, part)
                place = b.add(place, column)
                values = self.matched(above + here, place), self.matched(here, b.add(place, self.width))
                top = b.sub(b.mul(q, const(STRIDE)), self.before)
                low = b.mul(top, self.w)
                high = b.add(low, self.w)
                # Above the first row is none: what is written in its place is written again.
                low = b.select(b.icmp_signed("<", top, const(0)), high, low)
                written = [b.gep(dx, [b.add(at, w0)]) for at in (low, high)]
                for r, (value, to) in enumerate(zip(values, written, strict=True)):
                    if self.kind == CAREFUL:
                        there = b.icmp_unsigned("<", b.add(top, const(r)), self.h)
                        left = b.select(there, b.sub(self.w, w0), const(0))
                        masked_store(b, e, value, to, first_lanes(b, e, left), in_loop=True)
                    elif self.kind == PAST:
                        store_past(b, e, value, to)
                    else:
                        store(b, e, value, to)
                if self.kind in (FAR, PAST):
                    at = b.add(b.mul(q, ow), c0)
                    prefetch(b, b.gep(indices, [at]), const(AHEAD // 2))
                    prefetch(b, b.gep(y, [at]), const(AHEAD // 4))
                    for to in written if self.kind == FAR else ():
                        prefetch(b, to, const(AHEAD), write=True)

        with loop(b, begin, end, self.rows) as q:
            last = m.least(b.add(q, self.rows), end)
            with loop(b, const(0), self.blocks) as t:
                # The last vector comes first: what it writes behind its row is written again.
                i = b.sub(b.select(b.icmp_signed("==", t, const(0)), self.blocks, t), const(1))
                columns(i, q, last)

    def write(self, first: Any, stop: Any) -> None:
        """Some planes: those of their pairs that need care, or the others."""
        b, m = self.b, self.m
        pairs, lead, edge = (m.field(name) for name in ("pairs", "lead", "edge"))
        last = b.sub(stop, const(1))

        def walk(p: Any, begin: Any, end: Any) -> None:
            with b.if_then(b.icmp_signed("<", begin, end)):
                self.walk(p, begin, end)

        def ahead(p: Any) -> Any:
            return b.select(b.icmp_signed("==", p, first), lead, const(0))

        if self.kind == CAREFUL:
            with loop(b, const(0), const(2)) as part:
                head = b.icmp_signed("==", part, const(0))
                behind = b.sub(pairs, m.least(b.sub(pairs, edge), b.sub(pairs, ahead(last))))
                walk(
                    b.select(head, first, last),
                    b.select(head, const(0), behind),
                    b.select(head, lead, pairs),
                )
        else:
            with loop(b, first, stop) as p:
                walk(p, ahead(p), b.select(b.icmp_signed("==", p, last), edge, pairs))
        return_if_strange(m, self.watched, self.seen, first)


@intrinsic(prefer_literal=True)
def match_planes(
    typing: Any, K: Any, BEFORE: Any, KIND: Any, T: Any, arguments: Any, first: Any, stop: Any
) -> Any:
    """Some planes of a pool of ``SHAPES``: `stop`, or another number if an index was outside its output's window.

    ``CAREFUL`` takes the pairs of rows at either end of them, where no vector may reach beyond a row; the other
    kinds all others.
    """
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (K, BEFORE, KIND)):
        return None
    k, before, kind = (literal.literal_value for literal in (K, BEFORE, KIND))
    e = ELEMENTS[T.instance_type]
    name = f"match_{e.short}_{k}x{k}_p{before}_{KINDS[kind]}_{host().name}"

    def body(m: Kernel, first: Any, stop: Any) -> None:
        Pairs(m, k, SHAPES[k, before], kind).write(first, stop)

    return types.int64(K, BEFORE, KIND, T, *[types.int64] * 3), of_planes(name, e, MAX, body, 4, FIELD)


class Flat:
    """``match_flat`` as it is written: 3 x 3 windows at stride 1 with a border of 1."""

    def __init__(self, m: Kernel) -> None:
        b, e = m.b, m.e
        self.m, self.b, self.e, self.wide = m, b, e, ELEMENTS[types.int64]
        self.plane, self.w, self.ahead = (m.field(name) for name in ("plane", "w", "ahead"))
        self.size, self.width = m.spread(self.plane), m.spread(self.w)
        self.lane = m.constants(range(e.lanes))
        self.reach = b.add(self.w, const(1))
        self.watched = m.watch()
        self.seen = cgutils.alloca_once_value(b, ir.Constant(self.wide.vector, None))
        # What a chunk asks: where each output's gradient goes, and the gradient.
        elements = CHUNK + 2 * (MOST_WIDTH + 1) + 2 * e.lanes
        self.to, self.values = (cgutils.alloca_once(b, kind, size=elements) for kind in (I32, e.llvm))

    def stage(self, y: Any, indices: Any, begin: Any, end: Any, total: Any) -> None:
        """Outputs from `begin` to `end`, and before and behind all there are outputs without an index."""
        b, e, m, half = self.b, self.e, self.m, self.wide.lanes
        int32 = ELEMENTS[types.int32]
        position = b.add(
            m.spread(b.urem(b.add(begin, b.mul(self.plane, const(1 << 20))), self.plane)), self.lane
        )
        state = cgutils.alloca_once_value(b, self.within(position))
        above = m.spread(self.reach)

        def vector(o: Any, careful: bool) -> None:
            position, places = b.load(state), []
            for r in range(2):
                at = b.add(o, const(r * half))
                source = b.gep(indices, [at])
                if careful:
                    there = lane_range(b, self.wide, b.neg(at), b.sub(total, at))
                    places.append(masked_load(b, self.wide, source, there))
                else:
                    places.append(load(b, self.wide, source))
                b.store(b.or_(b.load(self.seen), places[-1]), self.seen)
            words = [b.bitcast(part, m.places) for part in places]
            index, _ = halves(b, *words)
            column = b.add(b.sub(index, position), above)
            columns = [column]
            for _ in range(FLAT - 1):
                columns.append(b.sub(columns[-1], self.width))
            good = b.and_(
                b.icmp_unsigned("<", least(m, columns), m.constants([FLAT] * e.lanes)),
                b.icmp_unsigned("<", index, self.size),
            )
            to = b.add(index, b.sub(b.add(m.spread(o), self.lane), position))
            if careful:
                there = lane_range(b, e, b.neg(o), b.sub(total, o))
                to = b.select(there, to, m.constants([-1] * e.lanes))
                good = b.or_(good, b.xor(there, ir.Constant(there.type, [1] * e.lanes)))
                value = masked_load(b, e, b.gep(y, [o]), there)
            else:
                value = load(b, e, b.gep(y, [o]))
                with b.if_then(b.icmp_unsigned("!=", self.ahead, const(0)), likely=False):
                    prefetch(b, b.gep(y, [o]), const(AHEAD // 2))
                    for line in (0, 64):
                        prefetch(b, b.gep(indices, [o]), const(AHEAD + line))
            m.expect(self.watched, good)
            at = b.sub(o, begin)
            store(b, int32, to, b.gep(self.to, [at]))
            store(b, e, value, b.gep(self.values, [at]))
            b.store(self.within(b.add(position, m.constants([e.lanes] * e.lanes))), state)

        # Whole vectors between those that begin before all outputs and those that end behind them.
        low = b.select(b.icmp_signed("<", begin, const(0)), self.up(b.neg(begin), begin), begin)
        high = b.add(begin, b.and_(b.sub(m.least(total, end), begin), const(-e.lanes)))
        high = b.select(b.icmp_signed("<", high, low), low, high)
        for first, last, careful in ((begin, low, True), (low, high, False), (high, end, True)):
            with b.if_then(b.icmp_signed("<", first, last)), loop(b, first, last, const(e.lanes)) as o:
                vector(o, careful)

    def up(self, count: Any, begin: Any) -> Any:
        """`begin` and `count`, rounded up to whole vectors."""
        b, lanes = self.b, self.e.lanes
        return b.add(begin, b.and_(b.add(count, const(lanes - 1)), const(-lanes)))

    def within(self, position: Any) -> Any:
        """Where vectors lie in their planes, which begins anew behind one."""
        b = self.b
        return b.select(b.icmp_signed(">=", position, self.size), b.sub(position, self.size), position)

    def staged(self, at: Any) -> tuple[Any, Any]:
        """Vectors of what is staged from place `at` on."""
        b, int32 = self.b, ELEMENTS[types.int32]
        return load(b, int32, b.gep(self.to, [at])), load(b, self.e, b.gep(self.values, [at]))

    def beside(self, at: Any, held: list[Any]) -> list[tuple[Any, Any]]:
        """The same from three places on, side by side.

        Loads of 64 bytes cross a line each time, and eighteen of them took 18 cycles: they are made of the vector before
        (`held`) and the next one. Those of 32 bytes do every other time, and AVX2 takes two instructions to shift.
        """
        b, lanes = self.b, self.e.lanes
        if not held:
            return [self.staged(b.add(at, const(column))) for column in range(FLAT)]
        before, after = [b.load(part) for part in held], self.staged(b.add(at, const(lanes)))
        for part, value in zip(held, after, strict=True):
            b.store(value, part)
        picks = [self.m.constants(range(column, column + lanes)) for column in range(FLAT)]
        to = [b.shuffle_vector(before[0], after[0], pick) for pick in picks]
        values = [self.staged(b.add(at, const(column)))[1] for column in range(FLAT)]
        return list(zip(to, values, strict=True))

    def gather(self, dx: Any, begin: Any, end: Any, total: Any) -> None:
        """Elements of dx from `begin` to `end`."""
        b, e, m = self.b, self.e, self.m
        add = b.fadd if e.real else b.add
        rows = [b.mul(self.w, const(r)) for r in range(FLAT)]
        held = [
            [cgutils.alloca_once_value(b, part) for part in self.staged(row)] if host().masks else []
            for row in rows
        ]
        with loop(b, begin, end, const(e.lanes)) as p:
            place, result = b.add(m.spread(p), self.lane), ir.Constant(e.vector, None)
            for row, parts in zip(rows, held, strict=True):
                at = b.add(b.sub(p, begin), row)
                for to, value in self.beside(at, parts):
                    result = b.select(b.icmp_signed("==", to, place), add(result, value), result)
            left = b.sub(total, p)
            with b.if_else(b.icmp_signed(">=", left, const(e.lanes)), likely=True) as (whole, part):
                with whole:
                    store(b, e, result, b.gep(dx, [p]))
                with part:
                    masked_store(b, e, result, b.gep(dx, [p]), first_lanes(b, e, left), in_loop=True)

    def write(self, first: Any, stop: Any) -> None:
        """Some planes, as one row."""
        b, m = self.b, self.m
        skip, total = b.mul(first, self.plane), b.mul(b.sub(stop, first), self.plane)
        dx, y = (b.gep(m.field(name, self.e.llvm), [skip]) for name in ("x", "y"))
        indices = b.gep(m.field("indices", I64), [skip])
        with loop(b, const(0), total, const(CHUNK)) as begin:
            end = m.least(b.add(begin, const(CHUNK)), total)
            self.stage(
                y,
                indices,
                b.sub(begin, self.reach),
                self.up(b.add(b.sub(end, begin), self.reach), begin),
                total,
            )
            self.gather(dx, begin, end, total)
        return_if_strange(m, self.watched, self.seen, first)


@intrinsic
def match_flat(typing: Any, T: Any, arguments: Any, first: Any, stop: Any) -> Any:
    """Some planes with windows of 3 x 3 at stride 1: `stop`, or `first` if an index was outside its output's window."""
    e = ELEMENTS[T.instance_type]

    def body(m: Kernel, first: Any, stop: Any) -> None:
        Flat(m).write(first, stop)

    return types.int64(T, *[types.int64] * 3), of_planes(
        f"match_{e.short}_flat_{host().name}", e, MAX, body, 1, FIELD
    )


@register_jitable
def again(T, size, arguments, first, stop):  # type: ignore[no-untyped-def]
    """Scatter planes with an index that was not looked for."""
    a = carray(pointer(arguments, RECORD), 1)[0]
    wrong = carray(pointer(arguments + 8 * WRONG, types.int64), 1)
    for p in range(first, stop):
        x, y = a.x + size * p * a.plane, a.y + size * p * a.outputs
        wrong[0] |= fill(ADD, T, size, x, y, a.indices + 8 * p * a.outputs, a.plane, a.outputs)


def tasks(name: str, compare: Any) -> Any:
    """A factory of tasks: some planes are compared, and scattered where `compare` returns less than their end."""

    def match_(T: Any) -> Any:
        size = T.bitwidth // 8

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                first, stop = task * a.planes_step, min((task + 1) * a.planes_step, a.planes)
                if compare(T, arguments, first, stop) < stop:
                    again(T, size, arguments, first, stop)

        return work

    match_.__name__ = f"match_{name}"
    return match_


def match(k: int, before: int) -> Any:
    """Tasks of a pool with k x k windows at a stride of 2."""

    @register_jitable
    def compare(T, arguments, first, stop):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        # With care last: the others' vectors reach into these rows.
        if a.past and a.x % LINE_BYTES == 0:
            good = match_planes(k, before, PAST, T, arguments, first, stop)
        elif a.ahead:
            good = match_planes(k, before, FAR, T, arguments, first, stop)
        else:
            good = match_planes(k, before, NEAR, T, arguments, first, stop)
        return min(good, match_planes(k, before, CAREFUL, T, arguments, first, stop))

    return tasks(f"{k}_p{before}", compare)


@register_jitable
def _compare_flat(T, arguments, first, stop):  # type: ignore[no-untyped-def]
    return match_flat(T, arguments, first, stop)


# Tasks of a pool with 3 x 3 windows at stride 1.
flat = tasks("flat", _compare_flat)
