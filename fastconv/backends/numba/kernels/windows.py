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

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
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
    blended_store,
    const,
    element,
    flags,
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

# Numbers of a segment: its first row of outputs, where it stops, and whether windows lack rows.
SEGMENT = 3

# Masks of a vector of `flat`: which lanes have a neighbour above, below, on the left, on the right.
SIDES = 4


class Kernel(NamedTuple):
    """A micro-kernel that is being written: where, and of what."""

    b: ir.IRBuilder
    arguments: Any
    e: Element
    op: int
    fields: Mapping[str, int]  # places of the arguments, by their names

    def field(self, name: str, kind: ir.Type | None = None) -> Any:
        """A field of the arguments, or the address in it as a pointer to `kind`."""
        value = self.b.load(self.b.gep(self.arguments, [const(self.fields[name])]))
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

    def first(self, values: list[Any], places: list[Any]) -> tuple[Any, Any]:
        """The largest of some vectors, lane by lane, and the least place that has it."""
        largest, value, where = reduce(self.join, values), None, None
        for its, place in zip(values, places, strict=True):
            there = self.b.select(self.same(its, largest), place, self.constants([-1] * self.e.lanes))
            if value is None:
                value, where = its, there
                continue
            where = self.b.select(self.b.icmp_unsigned("<", there, where), there, where)
            # Of 0.0 and -0.0, which are equal, the one that lies there.
            value = self.b.select(self.b.icmp_signed("==", there, where), its, value)
        return value, where

    def fetch_places(self, to: Any, ahead: Any) -> None:
        """Fetch what a vector's places will be written to, so many bytes further on."""
        for line in (0, 64):
            prefetch(self.b, to, self.b.add(ahead, const(line)), write=True)

    def least(self, a: Any, b: Any) -> Any:
        """The smaller of two integers."""
        return self.b.select(self.b.icmp_signed("<", a, b), a, b)

    def watch(self) -> Any:
        """Flags that stay set while nothing has gone wrong, which only maxima watch."""
        return cgutils.alloca_once_value(self.b, ir.Constant(self.noted, [-1] * self.e.lanes))

    @property
    def noted(self) -> ir.VectorType:
        """Flags as they are kept: without mask registers as wide as the lanes, or they would be packed each time."""
        return ir.VectorType(ir.IntType(1 if host().masks else 8 * self.e.size), self.e.lanes)

    def expect(self, good: Any, lanes: Any) -> None:
        """Note lanes where something has gone wrong."""
        lanes = lanes if host().masks else self.b.sext(lanes, self.noted)
        self.b.store(self.b.and_(self.b.load(good), lanes), good)

    def return_if_wrong(self, watched: Any, plane: Any) -> None:
        """Return the plane whose maxima may be wrong."""
        if not self.op:
            return
        good = self.b.load(watched)
        if not host().masks:
            good = self.b.icmp_signed("<", good, ir.Constant(good.type, None))
        bits = self.b.bitcast(good, ir.IntType(self.e.lanes))
        with self.b.if_then(self.b.icmp_unsigned("!=", bits, ir.Constant(bits.type, -1)), likely=False):
            self.b.ret(plane)


def of_planes(
    name: str,
    e: Element,
    op: int,
    body: Callable[[Kernel, Any, Any], None],
    skip: int,
    fields: Mapping[str, int] = FIELD,
) -> Any:
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
            body(Kernel(inner, arguments, e, op, fields), first, stop)
            inner.ret(stop)
        address, first, stop = values[skip:]
        return builder.call(function, [builder.inttoptr(address, I64.as_pointer()), first, stop])

    return codegen


def outputs(k: int, pair: bool, lanes: int) -> int:
    """How many outputs of a row one vector holds."""
    return (lanes // 2 if pair else lanes) - (k - 1) // STRIDE


class Strip(NamedTuple):
    """Some columns of a plane: a row of the table of strips."""

    left: Any  # its first column
    to: Any  # its first output
    bits: Any  # which of its columns there are: two masks
    some: Any  # whether any are not
    whole: Any  # whether what its vectors hold beyond its outputs may be written


class Rows:
    """``rows`` as it is written: windows of k x k, two rows of outputs in a vector if they `pair`."""

    def __init__(self, m: Kernel, stop: Any, k: int, pair: bool) -> None:
        b, e = m.b, m.e
        self.m, self.k, self.pair, self.together = m, k, pair, 2 if pair else 1
        self.half = e.lanes // 2
        self.y, self.indices = m.field("y", e.llvm), m.field("indices", I64)
        self.tops, self.zeros = m.field("tops", I64), m.field("zeros")
        self.w, self.ow, self.ahead = map(m.field, ("w", "ow", "ahead"))
        self.divisors_h, self.divisors_w = m.field("divisors_h", e.llvm), m.field("divisors_w", e.llvm)
        self.written = b.sub(b.shl(const(1), m.least(self.ow, const(outputs(k, pair, e.lanes)))), const(1))
        self.watched = m.watch()
        # From a window's first row to its others, in places.
        self.below = [m.spread(b.mul(self.w, const(t))) for t in range(1, k)]
        # The last place a whole vector may be written at.
        self.last = b.sub(b.mul(stop, m.field("plane_out")), const(e.lanes))
        # Pieces of 16 bytes are halved each for itself, which takes one instruction and not two; lane i is of output
        # ``order[i]`` until vectors are written.
        piece = max(16 // e.size, 2)
        self.picks = [
            half_at + at + i
            for at in range(0, e.lanes, piece)
            for half_at in (0, e.lanes)
            for i in range(0, piece, 2)
        ]
        self.order = [pick // 2 for pick in self.picks]

    def elements(self, nbytes: Any) -> Any:
        """How many elements that is."""
        return self.m.b.ashr(nbytes, const(self.m.e.size.bit_length() - 1))

    def by_row(self, values: list[Any]) -> Any:
        """A vector with one number for each of the rows it holds."""
        m = self.m
        vectors = [splat(m.b, ir.VectorType(value.type, m.e.lanes), value) for value in values]
        upper = m.constants(i + m.e.lanes * (i >= self.half) for i in range(m.e.lanes))
        return m.b.shuffle_vector(*vectors, upper) if self.pair else vectors[0]

    def columns(self, low: Any, high: Any) -> list[Any]:
        """Column t of the windows, elements ``2 * order[i] + t``; the last output's third is anything."""
        m = self.m
        even, odd = (m.b.shuffle_vector(low, high, m.constants(i + t for i in self.picks)) for t in (0, 1))
        turn = m.constants(self.order.index((o + 1) % m.e.lanes) for o in self.order)
        return [even, odd, m.b.shuffle_vector(even, even, turn)][: self.k]

    def highest(self, sides: list[list[Any]], below: list[list[Any]], firsts: list[Any]) -> tuple[Any, Any]:
        """The largest of all rows and columns, and their places.

        Each column's maximum is found first, then each window's, and of the places that have it the least: windows are
        searched along rows, and of equal elements the first is wanted.
        """
        m, values, places = self.m, [], []
        for (value, *others), lower, first in zip(sides, below, firsts, strict=True):
            place = m.constants([0] * m.e.lanes)
            for other, its in zip(others, lower, strict=True):
                better = m.larger(other, value)
                value, place = m.b.select(better, other, value), m.b.select(better, its, place)
            values.append(value)
            places.append(m.b.add(place, first))
        return m.first(self.columns(*values), self.columns(*places))

    def rows_of(self, index: Any, x: Any, gaps: bool) -> tuple[list[Any], Any]:
        """Where the rows of a row of windows begin, in bytes, and the place of the first in its plane."""
        m, b = self.m, self.m.b
        row = b.gep(self.tops, [b.mul(index, const(self.k + 1))])
        top, origin = b.load(row), b.load(b.gep(row, [const(self.k)]))
        place = b.sub(self.elements(top), origin)
        if not gaps:
            return [b.add(top, b.mul(self.w, const(t * m.e.size))) for t in range(self.k)], place
        starts = [top] + [b.load(b.gep(row, [const(t)])) for t in range(1, self.k)]
        if m.op == SUM:  # of rows that are not there
            beyond = b.sub(self.zeros, b.ptrtoint(x, I64))
            starts = [b.select(b.icmp_signed("<", start, const(0)), beyond, start) for start in starts]
        return starts, place

    def read(
        self, x: Any, starts: Sequence[list[Any]], left: Any, masks: list[Any] | None
    ) -> list[list[Any]]:
        """The two vectors of each of a window's rows: left and right, or of two rows of windows."""
        m, b, sides = self.m, self.m.b, []
        for side in range(2):
            vectors = []
            for t, start in enumerate(starts[side if self.pair else 0]):
                at = b.gep(b.bitcast(b.gep(x, [start]), m.e.llvm.as_pointer()), [left])
                at = at if self.pair else b.gep(at, [const(side * m.e.lanes)])
                vectors.append(
                    masked_load(b, m.e, at, masks[side], m.neutral()) if masks else load(b, m.e, at)
                )
                if t >= self.k - STRIDE:  # the others are the next row's too
                    prefetch(b, at, self.ahead)
            sides.append(vectors)
        for a, c in zip(*sides, strict=True) if m.op and m.e.real else ():
            m.expect(self.watched, b.fcmp_ordered("ord", a, c))
        return sides

    def places_of(
        self,
        sides: list[list[Any]],
        starts: Sequence[list[Any]],
        places: Sequence[Any],
        left: Any,
        gaps: bool,
    ) -> tuple[Any, Any]:
        """The maxima and their places."""
        m, b, lanes = self.m, self.m.b, self.m.e.lanes
        low, high = (m.constants(range(begin, begin + lanes)) for begin in (0, lanes))
        below = [self.below] * self.together
        if gaps:  # a row may be there twice
            below = [[m.spread(self.elements(b.sub(start, row[0]))) for start in row[1:]] for row in starts]
        firsts = [m.spread(b.add(place, left)) for place in places]
        if self.pair:
            return self.highest(sides, below, [b.add(first, low) for first in firsts])
        # What both sides have in common is added last.
        value, where = self.highest(sides, below * 2, [low, high])
        return value, b.add(where, firsts[0])

    # What a vector holds beyond its outputs is written too, where that is overwritten, and beside a strip that is there
    # already what that has written is written again: masked stores take AMD's processors 12 cycles and more.
    def write(
        self, value: Any, where: Any, q: Any, mask: Any, put: Callable[..., None] = masked_store
    ) -> None:
        """Store a vector of outputs from place q on by `put`, all of it where `mask` is None."""
        m, b = self.m, self.m.b
        if mask is None:
            store(b, m.e, value, b.gep(self.y, [q]))
        else:
            put(b, m.e, value, b.gep(self.y, [q]), mask)
        if m.op == ARGMAX:
            store_places(b, m.e, where, b.gep(self.indices, [q]), mask, put, self.order)

    def write_rows(self, value: Any, where: Any, q: Any, more: Any, strip: Strip, careful: bool) -> None:
        """Store a vector of outputs; of two rows if there is one `more`."""
        b, alone = self.m.b, partial(masked_store, in_loop=True)
        if self.pair:
            self.write(value, where, q, self.written, alone)
            below = b.shl(self.written, const(self.half))
            self.write(
                value,
                where,
                b.add(q, b.sub(self.ow, const(self.half))),
                b.select(more, below, const(0)),
                alone,
            )
            return
        whole = b.icmp_unsigned("!=", strip.whole, const(0))
        if careful:
            whole = b.and_(whole, b.icmp_signed("<=", q, self.last))
        with b.if_else(whole) as (free, beside):
            with free:
                self.write(value, where, q, None)
            with beside:
                self.write(value, where, q, self.written, alone if careful else blended_store)

    def walk(self, x: Any, out: Any, begin: Any, end: Any, strip: Strip, gaps: bool, careful: bool) -> None:
        """Reduce rows of windows, which may lack rows (`gaps`), or lack columns or be near a task's end (`careful`)."""
        m, b, e = self.m, self.m.b, self.m.e
        right = strip.bits if self.pair else b.lshr(strip.bits, const(32))
        masks = [flags(b, e, strip.bits), flags(b, e, right)] if careful else None
        divides = m.op == SUM and e.real
        widths = load(b, e, b.gep(self.divisors_w, [strip.to])) if divides else None
        height = b.load(b.gep(self.divisors_h, [begin])) if divides else None  # of all rows that lack none
        with loop(b, begin, end, const(self.together)) as j:
            following = b.add(j, const(1))
            indices = [j, m.least(following, b.sub(end, const(1)))][: self.together]
            starts, places = zip(*(self.rows_of(index, x, gaps) for index in indices), strict=True)
            sides, where = self.read(x, starts, strip.left, masks), None
            if m.op == ARGMAX:
                value, where = self.places_of(sides, starts, places, strip.left, gaps)
            else:
                value = reduce(m.join, self.columns(*(reduce(m.join, side) for side in sides)))
            value = b.shuffle_vector(value, value, m.constants(map(self.order.index, range(e.lanes))))
            if m.op == ARGMAX and careful:
                # A window of nothing but the lowest may have found it in the padding.
                lanes = (
                    b.or_(self.written, b.shl(self.written, const(self.half))) if self.pair else self.written
                )
                found = b.not_(m.same(value, m.neutral()))
                m.expect(self.watched, b.or_(found, flags(b, e, b.not_(lanes))))
            if divides:
                heights = [height] * self.together
                if gaps:
                    heights = [b.load(b.gep(self.divisors_h, [i])) for i in indices]
                value = b.fdiv(value, b.fmul(widths, self.by_row(heights)))
            q = b.add(b.add(out, b.mul(j, self.ow)), strip.to)
            self.write_rows(value, where, q, b.icmp_signed("<", following, end), strip, careful)
            if m.op == ARGMAX:
                m.fetch_places(b.gep(self.indices, [q]), b.ashr(self.ahead, const(1)))


def _rows(m: Kernel, first: Any, stop: Any, k: int, pair: bool) -> None:
    b, rows = m.b, Rows(m, stop, k, pair)
    x0, plane, plane_out, group, oh, edge = (
        m.field("x", ir.IntType(8)),
        *map(m.field, ("plane", "plane_out", "group", "oh", "edge")),
    )
    strips, n_strips = m.field("strips", I64), m.field("n_strips")
    segments, n_segments = m.field("segments", I64), m.field("n_segments")

    def entry(table: Any, index: Any, numbers: int) -> list[Any]:
        row = b.gep(table, [b.mul(index, const(numbers))])
        return [b.load(b.gep(row, [const(i)])) for i in range(numbers)]

    with loop(b, first, stop, group) as p:
        x, out = b.gep(x0, [b.mul(p, b.mul(plane, const(m.e.size)))]), b.mul(p, plane_out)
        n_rows = b.mul(m.least(b.sub(stop, p), group), oh)
        # Vectors reach beyond a row, and so beyond a plane, but never beyond the last one of a task.
        is_last = b.icmp_signed(">=", b.add(p, group), stop)
        safe = b.select(is_last, b.sub(n_rows, edge), n_rows)
        with loop(b, const(0), n_segments) as s:
            begin, end, gaps = entry(segments, s, SEGMENT)
            end = m.least(end, n_rows)
            with loop(b, const(0), n_strips) as v:
                strip = Strip(*entry(strips, v, len(Strip._fields)))
                middle = m.least(b.select(b.icmp_unsigned("!=", strip.some, const(0)), begin, safe), end)
                plain, gap = b.icmp_signed("<", begin, middle), b.icmp_unsigned("!=", gaps, const(0))
                with b.if_then(plain), b.if_else(gap) as (some, none):
                    with some:
                        rows.walk(x, out, begin, middle, strip, gaps=True, careful=False)
                    with none:
                        rows.walk(x, out, begin, middle, strip, gaps=False, careful=False)
                rest = b.select(plain, middle, begin)
                with b.if_then(b.icmp_signed("<", rest, end)):
                    rows.walk(x, out, rest, end, strip, gaps=True, careful=True)
        m.return_if_wrong(rows.watched, p)


@intrinsic(prefer_literal=True)
def reduce_rows(
    typing: Any, OP: Any, K: Any, PAIR: Any, T: Any, arguments: Any, first: Any, stop: Any
) -> Any:
    """K x K windows at a stride of 2 on some planes: the first plane of a group that may be wrong, or `stop`."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (OP, K, PAIR)):
        return None
    e, op, k, pair = ELEMENTS[T.instance_type], OP.literal_value, K.literal_value, bool(PAIR.literal_value)
    name = f"pool_{e.short}_{OPS[op]}_{k}x{k}{'_pair' if pair else ''}_{host().name}"
    code = of_planes(name, e, op, lambda m, first, stop: _rows(m, first, stop, k, pair), 4)
    return types.int64(OP, K, PAIR, T, *[types.int64] * 3), code


def _flat(m: Kernel, first: Any, stop: Any) -> None:
    b, e, op = m.b, m.e, m.op
    x0, y0, indices0 = m.field("x", e.llvm), m.field("y", e.llvm), m.field("indices", I64)
    plane, planes, w, group, ahead = map(m.field, ("plane", "planes", "w", "group", "ahead"))
    masks, divisors, step = m.field("masks", I32), m.field("divisors", e.llvm), m.field("divisors_step")
    total, neutral, size = b.mul(plane, planes), m.neutral(), m.spread(plane)
    above, below = m.spread(b.sub(const(0), w)), m.spread(w)
    lane = m.constants(range(e.lanes))
    before, after = (m.constants(range(begin, begin + e.lanes)) for begin in (e.lanes - 1, 1))
    watched = m.watch()

    def there(i: Any, side: int, value: Any) -> Any:
        """Neighbours on a side where there are any, and what changes no result."""
        bits = b.load(b.gep(masks, [b.add(b.mul(i, const(SIDES)), const(side))]))
        return b.select(flags(b, e, bits), value, neutral)

    def vertical(q0: Any, i: Any, position: Any, careful: bool) -> tuple[Any, Any]:
        """A vector of columns of three, and the places of their maxima; of equal ones the first."""
        q = b.add(q0, b.mul(i, const(e.lanes)))

        def read(at: Any) -> Any:
            if careful:
                inside = lane_range(b, e, b.sub(const(0), at), b.sub(total, at))
                return masked_load(b, e, b.gep(x0, [at]), inside, neutral)
            return load(b, e, b.gep(x0, [at]))

        value = read(q)
        prefetch(b, b.gep(x0, [q]), ahead)
        if op and e.real:
            m.expect(watched, b.fcmp_ordered("ord", value, value))
        upper, lower = there(i, 0, read(b.sub(q, w))), there(i, 1, read(b.add(q, w)))
        where = b.select(m.larger(value, upper), m.constants([0] * e.lanes), above)
        value = m.join(upper, value)
        where = b.select(m.larger(lower, value), below, where)
        return m.join(value, lower), b.add(where, position)

    def sweep(q0: Any, count: Any, careful: bool) -> None:
        def on(position: Any) -> Any:
            """Where the next vector lies in its planes."""
            position = b.add(position, m.constants([e.lanes] * e.lanes))
            over = b.icmp_signed(">=", position, size)
            return b.select(over, b.sub(position, size), position)

        begin = vertical(q0, const(0), lane, careful)
        # The columns before, the columns now, and where the next lie in their plane.
        first = (*begin, *begin, on(lane))
        state = [cgutils.alloca_once(b, value.type) for value in first]
        for variable, value in zip(state, first, strict=True):
            b.store(value, variable)
        with loop(b, const(0), count) as i:
            last, last_where, now, now_where, position = map(b.load, state)
            following, following_where = vertical(q0, b.add(i, const(1)), position, careful)
            values, places = [now], [now_where]
            for side, pair, where, picks in (
                (2, (last, now), (last_where, now_where), before),
                (3, (now, following), (now_where, following_where), after),
            ):
                values.append(there(i, side, b.shuffle_vector(*pair, picks)))
                places.append(b.shuffle_vector(*where, picks))
            if op == ARGMAX:
                value, where = m.first(values, places)
            else:
                value = reduce(m.join, values)
            if op == SUM and e.real:
                value = b.fdiv(value, load(b, e, b.gep(divisors, [b.mul(i, step)])))
            q = b.add(q0, b.mul(i, const(e.lanes)))
            written, some = None, None
            if careful:
                written = b.sub(b.shl(const(1), m.least(b.sub(total, q), const(e.lanes))), const(1))
                some = lane_range(b, e, const(0), b.sub(total, q))
                masked_store(b, e, value, b.gep(y0, [q]), some, in_loop=True)
            else:
                store(b, e, value, b.gep(y0, [q]))
            if op == ARGMAX:
                # A window of nothing but the lowest may have found it where nothing is.
                found = b.not_(m.same(value, neutral))
                m.expect(watched, found if some is None else b.or_(found, b.not_(some)))
                to = b.gep(indices0, [q])
                store_places(b, e, where, to, written)
                m.fetch_places(to, ahead)
            following_state = (now, now_where, following, following_where, on(position))
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
                sweep(q0, count, True)
            with plain:
                sweep(q0, count, False)
        m.return_if_wrong(watched, p)


@intrinsic(prefer_literal=True)
def reduce_flat(typing: Any, OP: Any, T: Any, arguments: Any, first: Any, stop: Any) -> Any:
    """3 x 3 windows at stride 1 on some planes: the first plane of a group that may be wrong, or `stop`."""
    if not isinstance(OP, types.IntegerLiteral):
        return None
    e, op = ELEMENTS[T.instance_type], OP.literal_value
    code = of_planes(f"pool_{e.short}_{OPS[op]}_flat_{host().name}", e, op, _flat, 2)
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
                task = next_task(arguments, worker)
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
                task = next_task(arguments, worker)
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
