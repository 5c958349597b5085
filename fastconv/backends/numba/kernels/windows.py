"""Pooling of 2 x 2 and 3 x 3 windows, which is what networks have: what windows share is reduced once.

``rows`` is for a stride of 2. A vector of outputs comes from two vectors of each of a window's rows: first the rows are
joined, then the columns, which are the two vectors' even and odd lanes. Where a row of outputs fills at most half a
vector the two are of two rows of outputs (`pair`). It walks down a strip of the plane, a block of rows at a
time, or down several small planes at once.

``flat`` is for 3 x 3 windows at stride 1 with a border of 1, whose results lie as their input does: all planes are one
long row, so that no lane is idle in images of 7 x 7, and masks say where a plane or a row ends.

Both give maxima by the one instruction processors have for it, which loses a NaN, and look beside it whether there was
one: then the plane's windows are searched one by one. Of 0.0 and -0.0, which are equal, a maximum may be either.

The processor's own prefetching follows neither walk, so both ask for what lies `ahead` bytes further on: that is twice
as fast where planes come from the shared cache or from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .pool import ARGMAX, FIELD, OPS, RECORD, SUM, find, lowest, store_places
from .simd import (
    ELEMENTS,
    I32,
    I64,
    Element,
    const,
    element,
    flags,
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
)

# The stride of `rows`, and the window of `flat`.
STRIDE, FLAT = 2, 3

# Numbers of a strip: its first column, its first output, which of its columns there are (two masks), whether any are not,
# and whether what its vectors hold beyond its outputs may be written.
STRIP = 5

# Masks of a vector of `flat`: which lanes have a neighbour above, below, on the left, on the right.
SIDES = 4


class Kernel(NamedTuple):
    """A micro-kernel that is being written: where, and of what."""

    b: ir.IRBuilder
    arguments: Any
    e: Element
    op: int

    def field(self, name: str, kind: ir.Type | None = None) -> Any:
        """A field of the arguments, or the address in it as a pointer to `kind`."""
        value = self.b.load(self.b.gep(self.arguments, [const(FIELD[name])]))
        return value if kind is None else self.b.inttoptr(value, kind.as_pointer())

    @property
    def places(self) -> ir.VectorType:
        """A vector of places in a plane."""
        return ir.VectorType(I32, self.e.lanes)

    def spread(self, place: Any) -> Any:
        """A place (an i64) in every lane."""
        return splat(self.b, self.places, self.b.trunc(place, I32))

    def constants(self, values: Any) -> ir.Constant:
        """A vector of places, or of lanes to pick."""
        return ir.Constant(self.places, [ir.Constant(I32, value) for value in values])

    def neutral(self) -> Any:
        """A vector that changes no result."""
        return splat(self.b, self.e.vector, lowest(self.e)) if self.op else ir.Constant(self.e.vector, None)

    def larger(self, value: Any, best: Any) -> Any:
        """Flags of the lanes where `value` is larger; where one is no number, neither is."""
        compare = self.b.fcmp_ordered if self.e.real else self.b.icmp_signed
        return compare(">", value, best)

    def same(self, value: Any, other: Any) -> Any:
        """Flags of the lanes where two vectors are equal."""
        compare = self.b.fcmp_ordered if self.e.real else self.b.icmp_signed
        return compare("==", value, other)

    def join(self, best: Any, value: Any) -> Any:
        """The sum of two vectors, or the larger of each two lanes."""
        if self.op == SUM:
            return self.b.fadd(best, value) if self.e.real else self.b.add(best, value)
        return self.b.select(self.larger(value, best), value, best)

    def least(self, a: Any, b: Any) -> Any:
        """The smaller of two integers."""
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def watch(self, count: int) -> list[Any]:
        """Flags that stay set while nothing has gone wrong, several so that one need not wait for another."""
        every = ir.Constant(self.noted, [-1] * self.e.lanes)
        return [cgutils.alloca_once_value(self.b, every) for _ in range(count)]

    @property
    def noted(self) -> ir.VectorType:
        """Flags as they are kept: without mask registers as wide as the lanes, or they would be packed each time."""
        return ir.VectorType(ir.IntType(1 if host().masks else 8 * self.e.size), self.e.lanes)

    def expect(self, good: Any, lanes: Any) -> None:
        """Note lanes where something has gone wrong."""
        lanes = lanes if host().masks else self.b.sext(lanes, self.noted)
        self.b.store(self.b.and_(self.b.load(good), lanes), good)

    def return_if_wrong(self, watched: list[Any], plane: Any) -> None:
        """Return the plane whose maxima may be wrong."""
        if not watched:
            return
        good = self.b.load(watched[0])
        for other in watched[1:]:
            good = self.b.and_(good, self.b.load(other))
        if not host().masks:
            good = self.b.icmp_signed("<", good, ir.Constant(good.type, None))
        bits = self.b.bitcast(good, ir.IntType(self.e.lanes))
        with self.b.if_then(self.b.icmp_unsigned("!=", bits, ir.Constant(bits.type, -1)), likely=False):
            self.b.ret(plane)


def _call(name: str, e: Element, op: int, body: Callable[[Kernel, Any, Any], None], skip: int) -> Any:
    """An intrinsic's code: a call of ``int64(arguments, first plane, stop)``, written once in a module by `body`."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(I64, [I64.as_pointer(), I64, I64])
            function = ir.Function(builder.module, kind, name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            arguments, first, stop = function.args
            inner = ir.IRBuilder(function.append_basic_block("entry"))
            body(Kernel(inner, arguments, e, op), first, stop)
            inner.ret(stop)
        address, first, stop = values[skip:]
        return builder.call(function, [builder.inttoptr(address, I64.as_pointer()), first, stop])

    return codegen


def outputs(k: int, pair: bool, lanes: int) -> int:
    """How many outputs of a row one vector holds."""
    return (lanes // 2 if pair else lanes) - (k - 1) // STRIDE


def _rows(m: Kernel, first: Any, stop: Any, k: int, pair: bool) -> None:
    b, e, op = m.b, m.e, m.op
    half, together = e.lanes // 2, 2 if pair else 1
    x0, y0, indices0 = m.field("x", ir.IntType(8)), m.field("y", e.llvm), m.field("indices", I64)
    plane, plane_out, planes, group = map(m.field, ("plane", "plane_out", "planes", "group"))
    oh, ow = m.field("oh"), m.field("ow")
    tops, zeros, block, ahead = m.field("tops", I64), m.field("zeros"), m.field("block"), m.field("ahead")
    strips, n_strips = m.field("strips", I64), m.field("n_strips")
    divisors_h, divisors_w = m.field("divisors_h", e.llvm), m.field("divisors_w", e.llvm)
    neutral = m.neutral()
    written = b.sub(b.shl(const(1), m.least(ow, const(outputs(k, pair, e.lanes)))), const(1))
    every = b.or_(written, b.shl(written, const(half))) if pair else written
    lane = m.constants(STRIDE * (i % half if pair else i) for i in range(e.lanes))
    upper = m.constants(i + e.lanes * (i >= half) for i in range(e.lanes))
    watched = m.watch(k if op == ARGMAX or (op and e.real) else 0)

    def by_row(values: list[Any]) -> Any:
        """A vector with one number for each of the rows it holds."""
        vectors = [splat(b, ir.VectorType(value.type, e.lanes), value) for value in values]
        return b.shuffle_vector(*vectors, upper) if pair else vectors[0]

    def columns(sides: list[Any]) -> list[Any]:
        """Lane i of column t is the element ``2 * i + t``; the last lane of the third holds anything."""
        even, odd = halves(b, *sides)
        again = b.shuffle_vector(even, even, m.constants((i + 1) % e.lanes for i in range(e.lanes)))
        return [even, odd, again][:k]

    def highest(sides: list[list[Any]], starts: list[Any]) -> tuple[Any, Any]:
        """The largest of all rows and columns and their places; of equal ones the first."""
        value = where = None
        for t in range(k):
            best, *others = columns([side[t] for side in sides])
            column = m.constants([0] * e.lanes)
            for i, other in enumerate(others, 1):
                better = m.larger(other, best)
                column = b.select(better, m.constants([i] * e.lanes), column)
                best = b.select(better, other, best)
            place = b.add(column, by_row([b.trunc(start, I32) for start in starts[t::k]]))
            better = None if value is None else m.larger(best, value)
            value = best if better is None else b.select(better, best, value)
            where = place if better is None else b.select(better, place, where)
        return value, where

    # What a vector holds beyond its outputs is written too, where that is overwritten: masked stores take AMD's processors
    # 12 cycles and more, those of places in pieces 40.
    last = b.sub(b.mul(stop, plane_out), const(e.lanes))

    def strip(
        x: Any, out: Any, begin: Any, end: Any, left: Any, to: Any, over: Any, masks: list[Any] | None
    ) -> None:
        with loop(b, begin, end, const(together)) as j:
            indices = [j, m.least(b.add(j, const(1)), b.sub(end, const(1)))][:together]
            starts, origins = [], []  # of the windows' rows, in bytes; of their planes, in elements
            for index in indices:
                row = b.gep(tops, [b.mul(index, const(k + 1))])
                *found, origin = (b.load(b.gep(row, [const(t)])) for t in range(k + 1))
                starts += found
                origins.append(b.trunc(origin, I32))
            if op == SUM:  # of rows that are not there
                beyond = b.sub(zeros, b.ptrtoint(x, I64))
                starts = [b.select(b.icmp_signed("<", start, const(0)), beyond, start) for start in starts]
            sides: list[list[Any]] = [[], []]
            for side in range(2):
                for t in range(k):
                    at = b.gep(x, [starts[t + k * (side if pair else 0)]])
                    at = b.gep(b.bitcast(at, e.llvm.as_pointer()), [left])
                    at = at if pair else b.gep(at, [const(side * e.lanes)])
                    vector = load(b, e, at) if masks is None else masked_load(b, e, at, masks[side], neutral)
                    sides[side].append(vector)
                    if t >= k - STRIDE:  # the others are the next row's too
                        prefetch(b, at, ahead)
            for good, a, c in zip(watched, *sides, strict=False):
                if e.real:
                    m.expect(good, b.fcmp_ordered("ord", a, c))
            if op == ARGMAX:
                elements = [b.ashr(start, const(e.size.bit_length() - 1)) for start in starts]
                value, where = highest(sides, elements)
                where = b.sub(b.add(where, b.add(lane, m.spread(left))), by_row(origins))
                if masks is not None:  # a window of nothing but the lowest may have found it in the padding
                    some = b.or_(b.not_(m.same(value, neutral)), flags(b, e, b.not_(every)))
                    m.expect(watched[0], some)
            else:
                joined = []
                for value, *others in sides:
                    for other in others:
                        value = m.join(value, other)
                    joined.append(value)
                value, *others = columns(joined)
                for other in others:
                    value = m.join(value, other)
            if op == SUM and e.real:
                heights = by_row([b.load(b.gep(divisors_h, [index])) for index in indices])
                value = b.fdiv(value, b.fmul(load(b, e, b.gep(divisors_w, [to])), heights))
            q, mask = b.add(b.add(out, b.mul(j, ow)), to), written
            for u in range(together):
                if u:
                    q = b.add(q, b.sub(ow, const(half)))
                    there = b.icmp_signed("<", b.add(j, const(1)), end)
                    mask = b.select(there, b.shl(written, const(half)), const(0))
                place = b.gep(indices0, [q]) if op == ARGMAX else None

                def write(mask: Any, place: Any = place, q: Any = q) -> None:
                    if mask is None:
                        store(b, e, value, b.gep(y0, [q]))
                    else:
                        masked_store(b, e, value, b.gep(y0, [q]), mask, in_loop=True)
                    if op == ARGMAX:
                        store_places(b, e, where, place, mask)

                if pair:
                    write(mask)
                else:
                    with b.if_else(b.icmp_signed("<=", q, over), likely=True) as (whole, part):
                        with whole:
                            write(None)
                        with part:
                            write(mask)
                if op == ARGMAX:
                    for line in (0, 64):
                        prefetch(b, place, b.add(b.ashr(ahead, const(1)), const(line)), write=True)

    with loop(b, first, stop, group) as p:
        x, out = b.gep(x0, [b.mul(p, b.mul(plane, const(e.size)))]), b.mul(p, plane_out)
        n_rows = b.mul(m.least(b.sub(stop, p), group), oh)
        # Vectors read beyond a row, and so beyond a plane, but never beyond the last one.
        behind = b.mul(b.sub(planes, b.add(p, group)), plane)
        near = b.icmp_signed("<", behind, const(2 * e.lanes))
        with loop(b, const(0), n_rows, block) as begin:
            end = m.least(b.add(begin, block), n_rows)
            with loop(b, const(0), n_strips) as v:
                entry = b.gep(strips, [b.mul(v, const(STRIP))])
                left, to, bits, some, whole = (b.load(b.gep(entry, [const(i)])) for i in range(STRIP))
                # The last output at which a vector may be written whole.
                over = b.select(b.icmp_unsigned("!=", whole, const(0)), last, const(-1))
                masks = [flags(b, e, bits), flags(b, e, bits if pair else b.lshr(bits, const(32)))]
                with b.if_else(b.or_(near, b.icmp_unsigned("!=", some, const(0)))) as (careful, plain):
                    with careful:
                        strip(x, out, begin, end, left, to, over, masks)
                    with plain:
                        strip(x, out, begin, end, left, to, over, None)
        m.return_if_wrong(watched, p)


@intrinsic(prefer_literal=True)
def reduce_rows(
    typing: Any, OP: Any, K: Any, PAIR: Any, T: Any, arguments: Any, first: Any, stop: Any
) -> Any:
    """K x K windows at a stride of 2 on some planes: the first plane of a group that may be wrong, or `stop`."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (OP, K, PAIR)):
        return None
    e, op, k, pair = ELEMENTS[T.instance_type], OP.literal_value, K.literal_value, bool(PAIR.literal_value)
    name = f"pool_{e.short}_{OPS[op]}_{k}x{k}{'_pair' if pair else ''}_{host().name}"
    code = _call(name, e, op, lambda m, first, stop: _rows(m, first, stop, k, pair), 4)
    return types.int64(OP, K, PAIR, T, *[types.int64] * 3), code


def _flat(m: Kernel, first: Any, stop: Any) -> None:
    b, e, op = m.b, m.e, m.op
    x0, y0, indices0 = m.field("x", e.llvm), m.field("y", e.llvm), m.field("indices", I64)
    plane, planes, w, group, ahead = map(m.field, ("plane", "planes", "w", "group", "ahead"))
    masks, divisors, step = m.field("masks", I32), m.field("divisors", e.llvm), m.field("divisors_step")
    total, neutral, size = b.mul(plane, planes), m.neutral(), m.spread(plane)
    above, below = m.spread(b.sub(const(0), w)), m.spread(w)
    lane, minus, plus = (m.constants(values) for values in (range(e.lanes), [-1] * e.lanes, [1] * e.lanes))
    never, always = (ir.Constant(ir.VectorType(ir.IntType(1), e.lanes), [flag] * e.lanes) for flag in (0, 1))
    before, after = (m.constants(range(begin, begin + e.lanes)) for begin in (e.lanes - 1, 1))
    watched = m.watch(1 if op and e.real else 0)

    def mask(i: Any, side: int) -> Any:
        return flags(b, e, b.load(b.gep(masks, [b.add(b.mul(i, const(SIDES)), const(side))])))

    def join(there: Any, best: Any, where: Any, value: Any, its: Any, tie: Any) -> tuple[Any, Any]:
        """Join neighbours where they are there; of equal maxima `tie` says which are replaced."""
        if op != ARGMAX:
            return m.join(best, b.select(there, value, neutral)), where
        better = b.and_(there, b.or_(m.larger(value, best), b.and_(m.same(value, best), tie)))
        return b.select(better, value, best), b.select(better, its, where)

    def vertical(q0: Any, i: Any, careful: bool) -> tuple[Any, Any]:
        """A vector of columns of three, and the places of their maxima, counted from the middle."""
        q, sides = b.add(q0, b.mul(i, const(e.lanes))), [mask(i, 0), mask(i, 1)]

        def read(at: Any) -> Any:
            if careful:
                inside = lane_range(b, e, b.sub(const(0), at), b.sub(total, at))
                return masked_load(b, e, b.gep(x0, [at]), inside, neutral)
            return load(b, e, b.gep(x0, [at]))

        value, where = read(q), m.constants([0] * e.lanes)
        prefetch(b, b.gep(x0, [q]), ahead)
        for good in watched:
            m.expect(good, b.fcmp_ordered("ord", value, value))
        value, where = join(sides[0], value, where, read(b.sub(q, w)), above, always)
        return join(sides[1], value, where, read(b.add(q, w)), below, never)

    def reduce(q0: Any, count: Any, careful: bool) -> None:
        begin = vertical(q0, const(0), careful)
        # The columns before, the columns now, and where these lie in their plane.
        state = [cgutils.alloca_once(b, value.type) for value in (*begin, *begin, lane)]
        for variable, value in zip(state, (*begin, *begin, lane), strict=True):
            b.store(value, variable)
        with loop(b, const(0), count) as i:
            last, last_where, now, now_where, position = map(b.load, state)
            following, following_where = vertical(q0, b.add(i, const(1)), careful)
            value, where = now, now_where
            for side, pair, places, picks, aside in (
                (2, (last, now), (last_where, now_where), before, minus),
                (3, (now, following), (now_where, following_where), after, plus),
            ):
                its = b.add(b.shuffle_vector(*places, picks), aside)
                lower = b.icmp_signed("<", its, where)
                value, where = join(mask(i, side), value, where, b.shuffle_vector(*pair, picks), its, lower)
            if op == SUM and e.real:
                value = b.fdiv(value, load(b, e, b.gep(divisors, [b.mul(i, step)])))
            q = b.add(q0, b.mul(i, const(e.lanes)))
            written = None
            if careful:
                written = b.sub(b.shl(const(1), m.least(b.sub(total, q), const(e.lanes))), const(1))
                masked_store(
                    b, e, value, b.gep(y0, [q]), lane_range(b, e, const(0), b.sub(total, q)), in_loop=True
                )
            else:
                store(b, e, value, b.gep(y0, [q]))
            if op == ARGMAX:
                found = b.gep(indices0, [q])
                store_places(b, e, b.add(where, position), found, written)
                for line in (0, 64):
                    prefetch(b, found, b.add(ahead, const(line)), write=True)
                position = b.add(position, m.constants([e.lanes] * e.lanes))
                over = b.icmp_signed(">=", position, size)
                position = b.select(over, b.sub(position, size), position)
            following_state = (now, now_where, following, following_where, position)
            for variable, value in zip(state, following_state, strict=True):
                b.store(value, variable)

    with loop(b, first, stop, group) as p:
        q0 = b.mul(p, plane)
        elements = b.mul(m.least(b.sub(stop, p), group), plane)
        count = b.sdiv(b.add(elements, const(e.lanes - 1)), const(e.lanes))
        end = b.add(b.add(q0, w), b.mul(b.add(count, const(1)), const(e.lanes)))
        near = b.or_(b.icmp_signed(">", end, total), b.icmp_signed("<", q0, w))
        with b.if_else(near) as (careful, plain):
            with careful:
                reduce(q0, count, True)
            with plain:
                reduce(q0, count, False)
        m.return_if_wrong(watched, p)


@intrinsic(prefer_literal=True)
def reduce_flat(typing: Any, OP: Any, T: Any, arguments: Any, first: Any, stop: Any) -> Any:
    """3 x 3 windows at stride 1 on some planes: the first plane of a group that may be wrong, or `stop`."""
    if not isinstance(OP, types.IntegerLiteral):
        return None
    e, op = ELEMENTS[T.instance_type], OP.literal_value
    code = _call(f"pool_{e.short}_{OPS[op]}_flat_{host().name}", e, op, _flat, 2)
    return types.int64(OP, T, *[types.int64] * 3), code


@register_jitable
def search(T, size, a, p, k, stride):  # type: ignore[no-untyped-def]
    """The maxima of a plane, window by window."""
    x, out = a.x + size * p * a.plane, p * a.plane_out
    y = carray(pointer(a.y + size * out, T), a.plane_out)
    indices = carray(pointer(a.indices + 8 * out, types.int64), a.plane_out)
    for j in range(a.oh):
        h0 = j * stride - a.before_h
        h1, h0 = min(h0 + k, a.h), max(h0, 0)
        for i in range(a.ow):
            w0 = i * stride - a.before_w
            w1, w0 = min(w0 + k, a.w), max(w0, 0)
            place = find(T, size, x, a.w, 0, 1, 1, h0, h1 - h0, 1, w0, w1 - w0, 1, a.h)
            y[j * a.ow + i] = element(x + size * place, T)
            if a.indices:
                indices[j * a.ow + i] = place


def rows(op: int, k: int, pair: int) -> Any:
    """A factory of tasks with k x k windows at a stride of 2: some groups of planes."""

    def pool_rows(T: Any) -> Any:
        size = T.bitwidth // 8

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            while True:
                task = next_task(arguments)
                if task >= a.stop:
                    return
                p, stop = task * a.planes_step, min((task + 1) * a.planes_step, a.planes)
                while p < stop:
                    p = reduce_rows(op, k, pair, T, arguments, p, stop)
                    wrong = min(p + a.group, stop)
                    while p < wrong:
                        search(T, size, a, p, k, STRIDE)
                        p += 1

        return work

    pool_rows.__name__ = f"pool_rows_{OPS[op]}_{k}{'_pair' if pair else ''}"
    return pool_rows


def flat(op: int) -> Any:
    """A factory of tasks with 3 x 3 windows at stride 1: some groups of planes."""

    def pool_flat(T: Any) -> Any:
        size = T.bitwidth // 8

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            while True:
                task = next_task(arguments)
                if task >= a.stop:
                    return
                p, stop = task * a.planes_step, min((task + 1) * a.planes_step, a.planes)
                while p < stop:
                    p = reduce_flat(op, T, arguments, p, stop)
                    wrong = min(p + a.group, stop)
                    while p < wrong:
                        search(T, size, a, p, FLAT, 1)
                        p += 1

        return work

    pool_flat.__name__ = f"pool_flat_{OPS[op]}"
    return pool_flat
