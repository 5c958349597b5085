"""The micro-kernel of every convolution: a tile of MV vectors x NS scalars, summed over channels and taps.

::

    y[j * ldy + positions of vector m] = bias[j] + sum_{c, t} w[j * wj + (c * taps + t) * wk]
                                                     * x[slot[m].x + c * xc + offsets[t] + lane]

MV vectors of output positions lie along the lanes, NS output channels along the scalars, so outputs are written
in place (NCHW) and weights are read where they lie. What a tap adds to a position's address is a table; for a
matrix product the rows take the taps' place. Each vector m has a slot of five numbers: where it reads, and where
it writes twice, each time with a mask, because sixteen neighbouring positions of a padded image may lie in two
rows of the output:

    slot[m] = (x, y0, mask0, y1, mask1)       all in elements, relative to x and y

With `more` the sums go on from what y holds, to the same bits as if they had never been stored: so a long sum is cut
into parts whose vectors fit the L1 cache. :func:`panel` copies such a part, to be read in a row.

Edges belong inside: with rows < NS the surplus scalars read the last row's weights again and are not written;
masked-out lanes are never written. A tile that reads MASKED reads no lane that its masks leave out, and takes zero
for it: ``masks[t * VECTORS + m]`` has a bit for each lane, so padding need not exist in memory. Any other reads its
vectors whole, and the caller sees to it that they may be read. One that reads IN_A_ROW, as a panel is, finds the
vectors side by side and the next term's xc further on: without a table a term takes 6.0 cycles instead of 6.5
where its FMAs take 6.

The loop is emitted as an LLVM function of its own, out of line. Inlined into its driver LLVM unrolled it and
spilled accumulators to the stack: 50 GF/s where 272 are reached on the same core. How often LLVM unrolls it is said
by :func:`together`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import (
    ELEMENTS,
    I16,
    I32,
    I64,
    Element,
    Isa,
    as_written,
    const,
    flags,
    host,
    lane_range,
    load,
    loop,
    masked_load,
    masked_store,
    multiply_add,
    out_of_line,
    splat,
    store,
    sum_lanes,
    unrolled,
)

# Vectors of a tile at most: see :func:`scalars`. Masks are stored for this many.
VECTORS = 3

# Numbers of a slot.
SLOT = 5

# How a tile finds what it reads.
BY_OFFSETS, MASKED, IN_A_ROW = 0, 1, 2


class MicroKernel(NamedTuple):
    """One row of the table: MV vectors by NS scalars of an element type, and how they are found."""

    dtype: str
    mv: int
    ns: int
    reads: int

    @property
    def name(self) -> str:
        """Such as ``tile_f32_3x8_avx512``."""
        short = ELEMENTS[getattr(types, self.dtype)].short
        return f"tile_{short}_{self.mv}x{self.ns}{('', '_masked', '_in_a_row')[self.reads]}_{host().name}"


def together(kernel: MicroKernel) -> int:
    """Terms of a tile's loop.

    In a row two need 21 instructions each where one needs 22. That shows where another thread of the core takes half of
    the six it begins in a cycle: 3 x 4 went from 0.78 to 0.86 of the FMA peak there, 2 x 4 from 0.53 to 0.74. With eight
    scalars two terms have twice the addresses of weights that there are registers for, and loops within loops are left
    with sums in other registers than they are entered with: weight gradients took 1.2 to 1.4 times as long.
    """
    return 2 if kernel.reads == IN_A_ROW and kernel.ns == 4 else 1


def scalars(isa: Isa) -> int:
    """NS of the tiles.

    3 x 8 needs 24 accumulators, 3 vectors and a broadcast scalar: 28 of 32 registers; 3 x 4 needs 16 of 16.
    """
    return 8 if isa.registers == 32 else 4


MICROKERNELS = tuple(
    MicroKernel(dtype, mv, scalars(host()), reads)
    for dtype in ("float32", "float64", "int32", "int64")
    for reads in ((BY_OFFSETS, MASKED, IN_A_ROW) if host().masks else (BY_OFFSETS, IN_A_ROW))
    for mv in range(1, VECTORS + 1)
)


def emit(module: ir.Module, kernel: MicroKernel) -> ir.Function:
    """The tile as an internal LLVM function of `module`."""
    if kernel.name in module.globals:
        return module.globals[kernel.name]
    e, (_, mv, ns, reads) = ELEMENTS[getattr(types, kernel.dtype)], kernel
    element, words = e.llvm.as_pointer(), I64.as_pointer()
    signature = ir.FunctionType(
        ir.VoidType(),
        # C, taps, xc, x, offsets, masks, slots, w, wj, wk, y, ldy, rows, bias, more
        [
            I64,
            I64,
            I64,
            element,
            I32.as_pointer(),
            I16.as_pointer(),
            words,
            element,
            I64,
            I64,
            element,
            I64,
            I64,
            element,
            I64,
        ],
    )
    function = ir.Function(module, signature, kernel.name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    C, taps, xc, x, offsets, masks, slots, w, wj, wk, y, ldy, rows, bias, more = function.args
    entry, resume, channel, tap, next_channel, biased, done = (
        function.append_basic_block(label)
        for label in ("entry", "resume", "channel", "tap", "next_channel", "biased", "done")
    )

    b = ir.IRBuilder(entry)
    vectors = [b.gep(x, [b.load(b.gep(slots, [const(SLOT * m)]))]) for m in range(mv)]
    last = b.sub(rows, const(1))
    row = [b.select(b.icmp_signed("<", const(j), rows), const(j), last) for j in range(ns)]
    weights = [b.gep(w, [b.mul(wj, r)]) for r in row]
    b.cbranch(b.icmp_unsigned("!=", more, const(0)), resume, channel)

    b = ir.IRBuilder(resume)
    begun = [_resume(b, e, slots, m, row, y, ldy) for m in range(mv)]
    resumed = b.block
    b.branch(channel)

    b = ir.IRBuilder(channel)
    c, base, at_channel, here_channel = b.phi(I64), b.phi(I64), b.phi(I64), b.phi(element)
    sums_channel = [[b.phi(e.vector) for _ in range(ns)] for _ in range(mv)]
    b.branch(tap)

    b = ir.IRBuilder(tap)
    t, at, here = b.phi(I64), b.phi(I64), b.phi(element)
    sums = [[b.phi(e.vector) for _ in range(ns)] for _ in range(mv)]
    offset = None if reads == IN_A_ROW else b.add(base, b.sext(b.load(b.gep(offsets, [t])), I64))
    xs = []
    for m in range(mv):
        pointer = b.gep(here, [const(m * e.lanes)]) if offset is None else b.gep(vectors[m], [offset])
        if reads == MASKED:
            bits = b.load(b.gep(masks, [b.add(b.mul(t, const(VECTORS)), const(m))]))
            xs.append(masked_load(b, e, pointer, flags(b, e, bits)))
        else:
            xs.append(load(b, e, pointer))
    after: list[list[Any]] = [[None] * ns for _ in range(mv)]
    for j in range(ns):
        scalar = splat(b, e.vector, b.load(b.gep(weights[j], [at])))
        for m in range(mv):
            after[m][j] = multiply_add(b, e, xs[m], scalar, sums[m][j])
    t_next, at_next, there = b.add(t, const(1)), b.add(at, wk), b.gep(here, [xc])
    unrolled(b.cbranch(b.icmp_signed("<", t_next, taps), tap, next_channel), together(kernel))

    b = ir.IRBuilder(next_channel)
    c_next, base_next = b.add(c, const(1)), b.add(base, xc)
    over = function.append_basic_block("over")
    as_written(b.cbranch(b.icmp_signed("<", c_next, C), channel, over))

    for phi, zero, value in (
        (c, const(0), c_next),
        (base, const(0), base_next),
        (at_channel, const(0), at_next),
        (here_channel, vectors[0], there),
    ):
        phi.add_incoming(zero, entry)
        phi.add_incoming(zero, resumed)
        phi.add_incoming(value, next_channel)
    for phi, outside, value in (
        (t, const(0), t_next),
        (at, at_channel, at_next),
        (here, here_channel, there),
    ):
        phi.add_incoming(outside, channel)
        phi.add_incoming(value, tap)
    for m in range(mv):
        for j in range(ns):
            sums_channel[m][j].add_incoming(ir.Constant(e.vector, None), entry)
            sums_channel[m][j].add_incoming(begun[m][j], resumed)
            sums_channel[m][j].add_incoming(after[m][j], next_channel)
            sums[m][j].add_incoming(sums_channel[m][j], channel)
            sums[m][j].add_incoming(after[m][j], tap)

    # The bias comes last: a sum that begins with it is rounded to its size at every step.
    b = ir.IRBuilder(over)
    b.cbranch(b.icmp_unsigned("!=", b.ptrtoint(bias, I64), const(0)), biased, done)
    b = ir.IRBuilder(biased)
    add = b.fadd if e.real else b.add
    offsets_j = [splat(b, e.vector, b.load(b.gep(bias, [row[j]]))) for j in range(ns)]
    shifted = [[add(after[m][j], offsets_j[j]) for j in range(ns)] for m in range(mv)]
    b.branch(done)

    b = ir.IRBuilder(done)
    results = []
    for m in range(mv):
        results.append([b.phi(e.vector) for _ in range(ns)])
        for j in range(ns):
            results[m][j].add_incoming(after[m][j], over)
            results[m][j].add_incoming(shifted[m][j], biased)
    for m in range(mv):
        b = _write(b, e, slots, m, results[m], y, ldy, rows)
    b.ret_void()
    return function


def _resume(b: ir.IRBuilder, e: Element, slots: Any, m: int, row: list[Any], y: Any, ldy: Any) -> list[Any]:
    """What a slot's places in every row of y hold; none of the surplus rows is beyond the last."""
    y0, mask0, y1, mask1 = (b.load(b.gep(slots, [const(SLOT * m + field)])) for field in (1, 2, 3, 4))
    at = [b.gep(y, [b.mul(ldy, r)]) for r in row]
    with b.if_else(b.icmp_unsigned("==", mask0, const((1 << e.lanes) - 1))) as (whole, part):
        with whole:
            plain, from_whole = [load(b, e, b.gep(place, [y0])) for place in at], b.block
        with part:
            first, second = flags(b, e, mask0), flags(b, e, mask1)
            masked = [masked_load(b, e, b.gep(place, [y0]), first) for place in at]
            masked = [
                masked_load(b, e, b.gep(place, [y1]), second, value)
                for place, value in zip(at, masked, strict=True)
            ]
            from_part = b.block
    found = []
    for value, other in zip(plain, masked, strict=True):
        found.append(b.phi(e.vector))
        found[-1].add_incoming(value, from_whole)
        found[-1].add_incoming(other, from_part)
    return found


def _write(
    b: ir.IRBuilder, e: Element, slots: Any, m: int, values: list[Any], y: Any, ldy: Any, rows: Any
) -> ir.IRBuilder:
    """Store a vector of every row: whole where its slot says so, else by one or two masks."""
    y0, mask0, y1, mask1 = (b.load(b.gep(slots, [const(SLOT * m + field)])) for field in (1, 2, 3, 4))
    function = b.function
    whole, part, second, over = (
        function.append_basic_block(f"{label}{m}") for label in ("whole", "part", "second", "over")
    )
    every = const((1 << e.lanes) - 1)
    b.cbranch(b.icmp_unsigned("==", mask0, every), whole, part)
    for block, at, mask in ((whole, y0, None), (part, y0, mask0), (second, y1, mask1)):
        b = ir.IRBuilder(block)
        base = b.gep(y, [at])
        skip = b.icmp_unsigned("==", mask1, const(0)) if block is part else None
        for j, value in enumerate(values):
            leave = function.append_basic_block("leave")
            if j:  # row 0 is always there
                write = function.append_basic_block("write")
                b.cbranch(b.icmp_signed("<", const(j), rows), write, leave)
                b = ir.IRBuilder(write)
            to = b.gep(base, [b.mul(ldy, const(j))])
            if mask is None:
                store(b, e, value, to)
            else:
                masked_store(b, e, value, to, mask)
            b.branch(leave)
            b = ir.IRBuilder(leave)
        if skip is None:
            b.branch(over)
        else:
            b.cbranch(skip, over, second)
    return ir.IRBuilder(over)


@intrinsic(prefer_literal=True)
def tile(
    typing: Any, NS: Any, READS: Any, T: Any, mv: Any,
    C: Any, taps: Any, xc: Any, x: Any, offsets: Any, masks: Any, slots: Any,
    w: Any, wj: Any, wk: Any, y: Any, ldy: Any, rows: Any, bias: Any, more: Any,
) -> Any:  # fmt: skip
    """Call the micro-kernel of mv (1 to ``VECTORS``) x NS for elements of type T; every pointer is an address."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (NS, READS)):
        return None
    ns, reads = NS.literal_value, READS.literal_value
    dtype = T.instance_type.name

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        mv, arguments = values[3], values[4:]
        over = builder.append_basic_block("over")
        blocks = [builder.append_basic_block(f"mv{n}") for n in range(1, VECTORS + 1)]
        choose = builder.switch(mv, blocks[-1])
        for n, block in enumerate(blocks, 1):
            choose.add_case(const(n), block)
            builder.position_at_end(block)
            function = emit(builder.module, MicroKernel(dtype, n, ns, reads))
            pointed = [
                builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
                for value, argument in zip(arguments, function.args, strict=True)
            ]
            builder.call(function, pointed)
            builder.branch(over)
        builder.position_at_end(over)
        return context.get_dummy_value()

    return types.void(NS, READS, T, *[types.int64] * 16), codegen


@intrinsic(prefer_literal=True)
def panel(
    typing: Any, MASKED: Any, T: Any,
    C: Any, taps: Any, xc: Any, x: Any, offsets: Any, masks: Any, to: Any,
) -> Any:  # fmt: skip
    """Copy the ``VECTORS`` vectors from `x` on for each channel and tap, one after the other.

    Where taps lie far apart, or by a multiple of 4096 bytes, or begin in the midst of a cache line, a tile waits for
    them: it reaches 50 to 80 % of the FMA limit, and 95 on a panel. A MASKED panel reads no lane that its masks leave
    out; any other may read beyond its vectors' end what the caller says may be read.
    """
    if not isinstance(MASKED, types.IntegerLiteral):
        return None
    masked, e = bool(MASKED.literal_value), ELEMENTS[T.instance_type]

    def body(
        b: ir.IRBuilder, C: Any, taps: Any, xc: Any, x: Any, offsets: Any, masks: Any, to: Any
    ) -> None:  # fmt: skip
        masks = b.inttoptr(masks, I16.as_pointer())
        with _panel_terms(b, e, C, taps, xc, offsets, to) as (t, offset, row):
            for m in range(VECTORS):
                at = b.gep(x, [b.add(offset, const(m * e.lanes))])
                if masked:
                    bits = b.load(b.gep(masks, [b.add(b.mul(t, const(VECTORS)), const(m))]))
                    value = masked_load(b, e, at, flags(b, e, bits))
                else:
                    value = load(b, e, at)
                store(b, e, value, b.gep(row, [const(m * e.lanes)]))

    name = f"panel_{e.short}{'_masked' if masked else ''}_{host().name}"
    return types.void(MASKED, T, *[types.int64] * 7), out_of_line(name, "iiipiip", 2, e, body)


@intrinsic
def panel_of_slots(
    typing: Any, T: Any, C: Any, taps: Any, xc: Any, x: Any, offsets: Any, slots: Any, to: Any
) -> Any:  # fmt: skip
    """The same of vectors that each lie where their slot says; of ``VECTORS`` slots, if the tile takes fewer too."""
    e = ELEMENTS[T.instance_type]

    def body(
        b: ir.IRBuilder, C: Any, taps: Any, xc: Any, x: Any, offsets: Any, slots: Any, to: Any
    ) -> None:  # fmt: skip
        slots = b.inttoptr(slots, I64.as_pointer())
        vectors = [b.gep(x, [b.load(b.gep(slots, [const(SLOT * m)]))]) for m in range(VECTORS)]
        with _panel_terms(b, e, C, taps, xc, offsets, to) as (_, offset, row):
            for m, vector in enumerate(vectors):
                store(b, e, load(b, e, b.gep(vector, [offset])), b.gep(row, [const(m * e.lanes)]))

    return types.void(T, *[types.int64] * 7), out_of_line(
        f"panel_of_slots_{e.short}_{host().name}", "iiipiip", 1, e, body
    )


@contextmanager
def _panel_terms(
    b: ir.IRBuilder, e: Element, C: Any, taps: Any, xc: Any, offsets: Any, to: Any
) -> Iterator[tuple[Any, Any, Any]]:
    """What is built inside runs for each channel and tap: the tap, what it adds to a position, and its row of the panel."""
    offsets = b.inttoptr(offsets, I32.as_pointer())
    with loop(b, const(0), C) as c, loop(b, const(0), taps) as t:
        offset = b.add(b.mul(c, xc), b.sext(b.load(b.gep(offsets, [t])), I64))
        yield t, offset, b.gep(to, [b.mul(b.add(b.mul(c, taps), t), const(VECTORS * e.lanes))])


@intrinsic
def panel_rows(
    typing: Any, T: Any, C: Any, taps: Any, xc: Any, x: Any, offsets: Any, segments: Any, count: Any, to: Any
) -> Any:  # fmt: skip
    """The same of positions that lie in several rows: `count` segments of (at, length).

    Each is copied as ``VECTORS`` vectors, or as one where all of several are as short: loops within loops would take
    three times as long. What they hold beyond its end is overwritten by the next segment or the next tap, and behind
    the last one there is room for it.
    """
    e = ELEMENTS[T.instance_type]

    def body(
        b: ir.IRBuilder, C: Any, taps: Any, xc: Any, x: Any, offsets: Any, segments: Any, count: Any, to: Any
    ) -> None:  # fmt: skip
        offsets, segments = b.inttoptr(offsets, I32.as_pointer()), b.inttoptr(segments, I64.as_pointer())

        def segment(s: Any) -> list[Any]:
            return [b.load(b.gep(segments, [b.add(b.mul(s, const(2)), const(i))])) for i in range(2)]

        def copy(source: Any, at: Any, vectors: int) -> None:
            for i in range(vectors):
                skip = [const(i * e.lanes)]
                store(b, e, load(b, e, b.gep(source, skip)), b.gep(at, skip))

        @contextmanager
        def each() -> Iterator[tuple[Any, Any]]:
            with loop(b, const(0), C) as c, loop(b, const(0), taps) as t:
                base = b.gep(x, [b.add(b.mul(c, xc), b.sext(b.load(b.gep(offsets, [t])), I64))])
                yield base, b.gep(to, [b.mul(b.add(b.mul(c, taps), t), const(VECTORS * e.lanes))])

        def few(number: int) -> None:
            """So many segments, whose numbers stay in registers."""
            places, at = [], const(0)
            for s in range(number):
                begin, length = segment(const(s))
                places.append((begin, at))
                at = b.add(at, length)
            with each() as (base, row):
                for begin, at in places:
                    copy(b.gep(base, [begin]), b.gep(row, [at]), VECTORS)

        def many(vectors: int) -> None:
            with each() as (base, row):
                before = b.block
                inner, after = b.append_basic_block("segment"), b.append_basic_block("segments")
                b.branch(inner)
                b.position_at_end(inner)
                s, at = b.phi(I64), b.phi(row.type)
                begin, length = segment(s)
                copy(b.gep(base, [begin]), at, vectors)
                following = b.add(s, const(1))
                for phi, first, value in ((s, const(0), following), (at, row, b.gep(at, [length]))):
                    phi.add_incoming(first, before)
                    phi.add_incoming(value, inner)
                as_written(b.cbranch(b.icmp_signed("<", following, count), inner, after))
                b.position_at_end(after)

        function, done = b.function, b.append_basic_block("done")
        ways: list[tuple[Any, Callable[[], None]]] = [
            (b.icmp_signed("==", count, const(number)), partial(few, number)) for number in (1, 2, 3)
        ]
        # The second of many is a whole row.
        ways.append((b.icmp_signed("<=", segment(const(1))[1], const(e.lanes)), partial(many, 1)))
        ways.append((ir.Constant(ir.IntType(1), 1), partial(many, VECTORS)))
        for holds, write in ways:
            this, other = function.append_basic_block("this"), function.append_basic_block("other")
            b.cbranch(holds, this, other)
            b.position_at_end(this)
            write()
            b.branch(done)
            b.position_at_end(other)
        b.branch(done)
        b.position_at_end(done)

    return types.void(T, *[types.int64] * 8), out_of_line(
        f"panel_rows_{e.short}_{host().name}", "iiipiiip", 1, e, body
    )


@intrinsic(prefer_literal=True)
def dots(
    typing: Any, NS: Any, T: Any,
    K: Any, x: Any, step: Any, w: Any, wj: Any, y: Any, ldy: Any, rows: Any, bias: Any, count: Any,
) -> Any:  # fmt: skip
    """NS sums for one or two positions at once, vectors along k: ``y[j * ldy + p] = bias[j] + w[j] . x[p]``.

    What is left of a plane when its vectors are full, where a tile of one vector would compute 16 lanes for one.
    """
    if not isinstance(NS, types.IntegerLiteral):
        return None
    ns, e = NS.literal_value, ELEMENTS[T.instance_type]

    def body(
        b: ir.IRBuilder, K: Any, x: Any, step: Any, w: Any, wj: Any, y: Any, ldy: Any, rows: Any, bias: Any, count: Any
    ) -> None:  # fmt: skip
        function = b.function
        loop, tail = function.append_basic_block("loop"), function.append_basic_block("tail")
        last = b.sub(rows, const(1))
        row = [b.select(b.icmp_signed("<", const(j), rows), const(j), last) for j in range(ns)]
        weights = [b.gep(w, [b.mul(wj, r)]) for r in row]
        # The second position is the first again where there is only one.
        xs = [x, b.gep(x, [b.select(b.icmp_signed(">", count, const(1)), step, const(0))])]
        whole = b.and_(K, const(-e.lanes))
        entry = b.block
        b.cbranch(b.icmp_signed(">", whole, const(0)), loop, tail)
        zero = ir.Constant(e.vector, None)

        b.position_at_end(loop)
        k = b.phi(I64)
        sums = [[b.phi(e.vector) for _ in range(ns)] for _ in range(2)]
        vectors = [load(b, e, b.gep(at, [k])) for at in xs]
        after: list[list[Any]] = [[], []]
        for j in range(ns):
            weight = load(b, e, b.gep(weights[j], [k]))
            for i in range(2):
                after[i].append(multiply_add(b, e, vectors[i], weight, sums[i][j]))
        k_next = b.add(k, const(e.lanes))
        as_written(b.cbranch(b.icmp_signed("<", k_next, whole), loop, tail))
        k.add_incoming(const(0), entry)
        k.add_incoming(k_next, loop)
        for i in range(2):
            for j in range(ns):
                sums[i][j].add_incoming(zero, entry)
                sums[i][j].add_incoming(after[i][j], loop)

        b.position_at_end(tail)
        ends = []
        for i in range(2):
            ends.append([b.phi(e.vector) for _ in range(ns)])
            for j in range(ns):
                ends[i][j].add_incoming(zero, entry)
                ends[i][j].add_incoming(after[i][j], loop)
        mask = lane_range(b, e, const(0), b.sub(K, whole))
        vectors = [masked_load(b, e, b.gep(at, [whole]), mask) for at in xs]
        has_bias = b.icmp_unsigned("!=", b.ptrtoint(bias, I64), const(0))
        add = b.add if not e.real else b.fadd
        for j in range(ns):
            leave, write, second = (
                function.append_basic_block(label) for label in ("leave", "write", "second")
            )
            b.cbranch(b.icmp_signed("<", const(j), rows), write, leave)
            b.position_at_end(write)
            weight = masked_load(b, e, b.gep(weights[j], [whole]), mask)
            with b.if_else(has_bias) as (there, absent):
                with there:
                    given, at_there = b.load(b.gep(bias, [const(j)])), b.block
                with absent:
                    at_absent = b.block
            offset = b.phi(e.llvm)
            offset.add_incoming(given, at_there)
            offset.add_incoming(ir.Constant(e.llvm, 0), at_absent)
            totals = [
                add(sum_lanes(b, e, multiply_add(b, e, vectors[i], weight, ends[i][j])), offset)
                for i in range(2)
            ]
            to = b.gep(y, [b.mul(ldy, const(j))])
            b.store(totals[0], to)
            b.cbranch(b.icmp_signed(">", count, const(1)), second, leave)
            b.position_at_end(second)
            b.store(totals[1], b.gep(to, [const(1)]))
            b.branch(leave)
            b.position_at_end(leave)

    name = f"dots_{e.short}_{ns}_{host().name}"
    return types.void(NS, T, *[types.int64] * 10), out_of_line(name, "ipipipiipi", 2, e, body)
