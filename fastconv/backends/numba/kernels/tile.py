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

Where `more` is ``GO_ON`` the sums go on from what y holds, to the same bits as if they had never been stored: so a long
sum is cut into parts whose vectors fit the L1 cache. :func:`panel` copies such a part, to be read in a row. Where it is
``ADD`` what y holds is added to them at last: thousands of terms, summed in parts of their own, are rounded less.

Edges belong inside: with rows < NS the surplus scalars read the last row's weights again and are written there again;
masked-out lanes are never written. A tile that reads MASKED reads no lane that its masks leave out, and takes zero
for it: ``masks[t * VECTORS + m]`` has a bit for each lane, so padding need not exist in memory. Any other reads its
vectors whole, and the caller sees to it that they may be read. One that reads IN_A_ROW, as a panel is, finds its
vectors side by side from x on and those of the next term ``VECTORS`` further on, and knows how far its weights lie apart when it is
compiled.

The loop is emitted as an LLVM function of its own, out of line. Inlined into its driver LLVM unrolled it and
spilled accumulators to the stack: 50 GF/s where 272 are reached on the same core. LLVM is told how often to unroll it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
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
    own_function,
    prefetch,
    splat,
    store,
    store_all,
    sum_lanes,
    unrolled,
)

# Vectors of a tile at most: see :func:`scalars`. Masks are stored for this many.
VECTORS = 3

# Numbers of a slot.
SLOT = 5

# What becomes of what y holds.
REPLACE, GO_ON, ADD = range(3)

# How a tile finds what it reads.
BY_OFFSETS, MASKED, IN_A_ROW, OF_CHANNELS = 0, 1, 2, 3

# Terms of one turn of the loop that reads in a row: with its addresses known but for two, they are offsets in the
# instructions, and a term takes 20 of these instead of 22. That shows where another thread of the core takes half of the
# six it begins in a cycle: matrix products of 512 x 512 x 192 and 256 x 256 x 784 took 1.10 times as long with two terms.
TOGETHER = 4


# Channels in front that a tile fetches of what it reads by offsets: each lies on a page of its own, which no processor
# foresees. With an input that the L2 cache does not hold, 3 x 64 x 112 x 112, gradients took 4.5 times as long without.
AHEAD = 2


class MicroKernel(NamedTuple):
    """One row of the table: MV vectors by NS scalars of an element type, and how they are found."""

    dtype: str
    mv: int
    ns: int
    reads: int
    wk: int = 0  # in a row: from a weight to the next; otherwise it is an argument

    @property
    def name(self) -> str:
        """Such as ``tile_f32_3x8_avx512``."""
        short = ELEMENTS[getattr(types, self.dtype)].short
        reads = ("", "_masked", f"_in_a_row_{self.wk}", "_of_channels")[self.reads]
        return f"tile_{short}_{self.mv}x{self.ns}{reads}_{host().name}"

    @property
    def terms(self) -> int:
        """Terms of one turn of its loop."""
        return TOGETHER if self.reads in (IN_A_ROW, OF_CHANNELS) else 1

    @property
    def arguments(self) -> list[str]:
        """What its function takes, in order."""
        if self.reads == OF_CHANNELS:
            return ["K", "x", "offsets", "at", "count", "w", "bias", "y", "step", "more"]
        found = "K x" if self.reads == IN_A_ROW else "C taps xc x offsets masks"
        return f"{found} slots w wj{'' if self.wk else ' wk'} y ldy rows bias more past".split()


def scalars(isa: Isa) -> int:
    """NS of the tiles.

    3 x 8 needs 24 accumulators, 3 vectors and a broadcast scalar: 28 of 32 registers; 3 x 4 needs 16 of 16.
    """
    return 8 if isa.registers == 32 else 4


def _table() -> Iterator[MicroKernel]:
    for dtype in ("float32", "float64", "int32", "int64"):
        lanes, ns = ELEMENTS[getattr(types, dtype)].lanes, scalars(host())
        for mv in range(1, VECTORS + 1):
            yield MicroKernel(dtype, mv, ns, BY_OFFSETS)
            if host().masks:
                yield MicroKernel(dtype, mv, ns, MASKED)
            # Weights lie in rows, or packed: for so many output channels, or a vector of them.
            for wk in sorted({1, ns, lanes}):
                yield MicroKernel(dtype, mv, ns, IN_A_ROW, wk)


MICROKERNELS = tuple(_table())


def emit(module: ir.Module, kernel: MicroKernel) -> ir.Function:
    """The tile as an internal LLVM function of `module`."""
    if kernel.name in module.globals:
        return module.globals[kernel.name]
    e, mv, ns = ELEMENTS[getattr(types, kernel.dtype)], kernel.mv, kernel.ns
    pointers = {"offsets": I32, "masks": I16, "slots": I64, **dict.fromkeys(("x", "w", "y", "bias"), e.llvm)}
    kinds = [pointers[name].as_pointer() if name in pointers else I64 for name in kernel.arguments]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), kernel.name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    a = SimpleNamespace(**dict(zip(kernel.arguments, function.args, strict=True)))
    entry, resume, begin, biased, done, add_to, ready = (
        function.append_basic_block(label)
        for label in ("entry", "resume", "begin", "biased", "done", "add_to", "ready")
    )

    b = ir.IRBuilder(entry)
    row = _rows(b, a.rows, ns)
    weights = [b.gep(a.w, [b.mul(a.wj, r)]) for r in row]
    b.cbranch(b.icmp_unsigned("==", a.more, const(GO_ON)), resume, begin)

    b = ir.IRBuilder(resume)
    begun = [_resume(b, e, a, m, row) for m in range(mv)]
    resumed = b.block
    b.branch(begin)

    b = ir.IRBuilder(begin)
    sums = [[b.phi(e.vector) for _ in range(ns)] for _ in range(mv)]
    for m, j in itertools.product(range(mv), range(ns)):
        sums[m][j].add_incoming(ir.Constant(e.vector, None), entry)
        sums[m][j].add_incoming(begun[m][j], resumed)
    after = (_sum_in_a_row if kernel.reads == IN_A_ROW else _sum_by_offsets)(b, e, kernel, a, weights, sums)

    # The bias comes last: a sum that begins with it is rounded to its size at every step.
    over = b.block
    b.cbranch(b.icmp_unsigned("!=", b.ptrtoint(a.bias, I64), const(0)), biased, done)
    b = ir.IRBuilder(biased)
    offsets_j = [splat(b, e.vector, b.load(b.gep(a.bias, [row[j]]))) for j in range(ns)]
    shifted = [
        [_sum(b, e, value, offset) for value, offset in zip(line, offsets_j, strict=True)] for line in after
    ]
    b.branch(done)

    b = ir.IRBuilder(done)
    results = _either(b, (over, after), (biased, shifted))
    b.cbranch(b.icmp_unsigned("==", a.more, const(ADD)), add_to, ready)

    b = ir.IRBuilder(add_to)
    held = [_resume(b, e, a, m, row) for m in range(mv)]
    totals = [
        [_sum(b, e, *pair) for pair in zip(*lines, strict=True)] for lines in zip(held, results, strict=True)
    ]
    added = b.block
    b.branch(ready)

    b = ir.IRBuilder(ready)
    _write(b, e, a, row, _either(b, (done, results), (added, totals)))
    b.ret_void()
    return function


def _rows(b: ir.IRBuilder, rows: Any, ns: int) -> list[Any]:
    """The tile's rows; surplus ones are the last."""
    last = b.sub(rows, const(1))
    return [b.select(b.icmp_signed("<", const(j), rows), const(j), last) for j in range(ns)]


Grid = list[list[Any]]


def _sum(b: ir.IRBuilder, e: Element, value: Any, other: Any) -> Any:
    return b.fadd(value, other) if e.real else b.add(value, other)


def _either(b: ir.IRBuilder, *ways: tuple[ir.Block, Grid]) -> Grid:
    """What each of the ways that lead here has made."""
    phis = [[b.phi(value.type) for value in line] for line in ways[0][1]]
    for block, values in ways:
        _go_on(phis, values, block)
    return phis


def _carried(b: ir.IRBuilder, before: ir.Block, sums: Grid) -> Grid:
    """The same sums as a loop has them that is entered from `before`."""
    inside = [[b.phi(value.type) for value in line] for line in sums]
    for values, phis in zip(sums, inside, strict=True):
        for value, phi in zip(values, phis, strict=True):
            phi.add_incoming(value, before)
    return inside


def _go_on(phis: Grid, values: Grid, block: ir.Block) -> None:
    for some, others in zip(phis, values, strict=True):
        for phi, value in zip(some, others, strict=True):
            phi.add_incoming(value, block)


def _add_term(b: ir.IRBuilder, e: Element, xs: list[Any], weights: list[Any], at: Any, sums: Grid) -> Grid:
    """The sums and one more product each."""
    after: Grid = [[None] * len(weights) for _ in xs]
    for j, weight in enumerate(weights):
        scalar = splat(b, e.vector, b.load(b.gep(weight, [at])))
        for m, x in enumerate(xs):
            after[m][j] = multiply_add(b, e, x, scalar, sums[m][j])
    return after


def _sum_in_a_row(
    b: ir.IRBuilder, e: Element, kernel: MicroKernel, a: SimpleNamespace, weights: list[Any], sums: Grid
) -> Grid:
    """The sums over K terms that lie ``VECTORS`` vectors apart; `b` goes on behind the loop."""
    before, body, after = b.block, b.append_basic_block("term"), b.append_basic_block("over")
    b.branch(body)
    b.position_at_end(body)
    (t,), *inside = _carried(b, before, [[const(0)], *sums])
    row = b.gep(a.x, [b.mul(t, const(VECTORS * e.lanes))])
    xs = [load(b, e, b.gep(row, [const(m * e.lanes)])) for m in range(kernel.mv)]
    found = _add_term(b, e, xs, weights, b.mul(t, const(kernel.wk)), inside)
    following = b.add(t, const(1))
    _go_on([[t], *inside], [[following], *found], body)
    unrolled(b.cbranch(b.icmp_signed("<", following, a.K), body, after), kernel.terms)
    b.position_at_end(after)
    return found


def _sum_by_offsets(
    b: ir.IRBuilder, e: Element, kernel: MicroKernel, a: SimpleNamespace, weights: list[Any], sums: Grid
) -> Grid:
    """The sums over channels and taps, each of which adds an offset to a position; `b` goes on behind the loops."""
    vectors = [b.gep(a.x, [b.load(b.gep(a.slots, [const(SLOT * m)]))]) for m in range(kernel.mv)]
    before = b.block
    channel, tap, next_channel, after = (
        b.append_basic_block(label) for label in ("channel", "tap", "next_channel", "over")
    )
    b.branch(channel)
    b.position_at_end(channel)
    (c, base, at_channel), *sums_channel = _carried(b, before, [[const(0)] * 3, *sums])
    b.branch(tap)

    b.position_at_end(tap)
    (t, at), *inside = _carried(b, channel, [[const(0), at_channel], *sums_channel])
    offset = b.add(base, b.sext(b.load(b.gep(a.offsets, [t])), I64))
    xs = []
    for m in range(kernel.mv):
        pointer = b.gep(vectors[m], [offset])
        if host().registers == 32:  # with 16 LLVM would put a sum on the stack
            prefetch(b, pointer, b.mul(a.xc, const(AHEAD * e.size)))
        if kernel.reads == MASKED:
            bits = b.load(b.gep(a.masks, [b.add(b.mul(t, const(VECTORS)), const(m))]))
            xs.append(masked_load(b, e, pointer, flags(b, e, bits)))
        else:
            xs.append(load(b, e, pointer))
    found = _add_term(b, e, xs, weights, at, inside)
    t_next, at_next = b.add(t, const(1)), b.add(at, a.wk)
    _go_on([[t, at], *inside], [[t_next, at_next], *found], tap)
    as_written(b.cbranch(b.icmp_signed("<", t_next, a.taps), tap, next_channel))

    b.position_at_end(next_channel)
    c_next, base_next = b.add(c, const(1)), b.add(base, a.xc)
    _go_on([[c, base, at_channel], *sums_channel], [[c_next, base_next, at_next], *found], next_channel)
    as_written(b.cbranch(b.icmp_signed("<", c_next, a.C), channel, after))
    b.position_at_end(after)
    return found


def _slot(b: ir.IRBuilder, slots: Any, m: int) -> list[Any]:
    """Where a slot writes: y0, mask0, y1, mask1."""
    return [b.load(b.gep(slots, [const(SLOT * m + field)])) for field in (1, 2, 3, 4)]


def _resume(b: ir.IRBuilder, e: Element, a: SimpleNamespace, m: int, row: list[Any]) -> list[Any]:
    """What a slot's places in every row of y hold; none of the surplus rows is beyond the last."""
    y0, mask0, y1, mask1 = _slot(b, a.slots, m)
    at = [b.gep(a.y, [b.mul(a.ldy, r)]) for r in row]
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


def _write(b: ir.IRBuilder, e: Element, a: SimpleNamespace, row: list[Any], results: Grid) -> None:
    """Store every row's vectors: whole where all slots say so, else by their masks.

    Surplus rows hold what the last one holds, and are written there once more: that is less than to ask of each.
    """
    whole = [
        b.icmp_unsigned("==", _slot(b, a.slots, m)[1], const((1 << e.lanes) - 1)) for m in range(len(results))
    ]
    with b.if_else(functools.reduce(b.and_, whole), likely=True) as (plain, parts):
        with plain:
            at = [b.gep(a.y, [b.mul(a.ldy, r)]) for r in row]
            begins = [_slot(b, a.slots, m)[0] for m in range(len(results))]
            vectors = [
                (value, b.gep(place, [y0]))
                for values, y0 in zip(results, begins, strict=True)
                for value, place in zip(values, at, strict=True)
            ]
            store_all(b, e, vectors, a.past, a.y, a.ldy, *begins)
        with parts:
            _write_parts(b, e, a, row, results)


def _write_parts(b: ir.IRBuilder, e: Element, a: SimpleNamespace, row: list[Any], results: Grid) -> None:
    """Store the lanes of vectors that one or two masks name.

    Where that takes calls, another function makes them: no vector that is held over a call stays in a register, and LLVM
    would have put all of them on the stack for those that are written whole, too.
    """

    def write(b: ir.IRBuilder, slots: Any, at: list[Any], value: Callable[[int, int], Any]) -> None:
        for m, values in enumerate(results):
            y0, mask0, y1, mask1 = _slot(b, slots, m)
            for j in range(len(values)):
                masked_store(b, e, value(m, j), b.gep(at[j], [y0]), mask0)
            with b.if_then(b.icmp_unsigned("!=", mask1, const(0))):
                for j in range(len(values)):
                    masked_store(b, e, value(m, j), b.gep(at[j], [y1]), mask1)

    if host().masks:
        write(b, a.slots, [b.gep(a.y, [b.mul(a.ldy, r)]) for r in row], lambda m, j: results[m][j])
        return
    mv, ns, element = len(results), len(row), e.llvm.as_pointer()

    def from_memory(b: ir.IRBuilder, held: Any, slots: Any, y: Any, ldy: Any, rows: Any) -> None:
        at = [b.gep(y, [b.mul(ldy, r)]) for r in _rows(b, rows, ns)]
        write(b, slots, at, lambda m, j: load(b, e, b.gep(held, [const((m * ns + j) * e.lanes)])))

    name = f"write_parts_{e.short}_{mv}x{ns}_{host().name}"
    kinds = [element, I64.as_pointer(), element, I64, I64]
    function = own_function(b.module, name, kinds, from_memory)
    with b.goto_entry_block():
        held = b.alloca(e.vector, mv * ns)
    held = b.bitcast(held, element)
    for m, values in enumerate(results):
        for j, value in enumerate(values):
            store(b, e, value, b.gep(held, [const((m * ns + j) * e.lanes)]))
    b.call(function, [held, a.slots, a.y, a.ldy, a.rows])


def of_vectors(builder: ir.IRBuilder, mv: Any, arguments: Any, emitted: Callable[[int], ir.Function]) -> None:
    """Call the tile of `mv` vectors."""
    over = builder.append_basic_block("over")
    blocks = [builder.append_basic_block(f"mv{n}") for n in range(1, VECTORS + 1)]
    choose = builder.switch(mv, blocks[-1])
    for n, block in enumerate(blocks, 1):
        choose.add_case(const(n), block)
        builder.position_at_end(block)
        function = emitted(n)
        pointed = [
            builder.inttoptr(value, argument.type) if isinstance(argument.type, ir.PointerType) else value
            for value, argument in zip(arguments, function.args, strict=True)
        ]
        builder.call(function, pointed)
        builder.branch(over)
    builder.position_at_end(over)


@intrinsic(prefer_literal=True)
def tile(
    typing: Any, NS: Any, READS: Any, T: Any, mv: Any,
    C: Any, taps: Any, xc: Any, x: Any, offsets: Any, masks: Any, slots: Any,
    w: Any, wj: Any, wk: Any, y: Any, ldy: Any, rows: Any, bias: Any, more: Any, past: Any,
) -> Any:  # fmt: skip
    """Call the micro-kernel of mv (1 to ``VECTORS``) x NS for elements of type T; every pointer is an address."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (NS, READS)):
        return None
    ns, reads, dtype = NS.literal_value, READS.literal_value, T.instance_type.name

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        of_vectors(
            builder, values[3], values[4:], lambda n: emit(builder.module, MicroKernel(dtype, n, ns, reads))
        )
        return context.get_dummy_value()

    return types.void(NS, READS, T, *[types.int64] * 17), codegen


@intrinsic(prefer_literal=True)
def tile_in_a_row(
    typing: Any, NS: Any, WK: Any, T: Any, mv: Any,
    K: Any, x: Any, slots: Any, w: Any, wj: Any, y: Any, ldy: Any, rows: Any, bias: Any, more: Any, past: Any,
) -> Any:  # fmt: skip
    """The same for K terms of a panel, whose weights lie WK elements apart."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (NS, WK)):
        return None
    ns, wk, dtype = NS.literal_value, WK.literal_value, T.instance_type.name

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        of_vectors(
            builder,
            values[3],
            values[4:],
            lambda n: emit(builder.module, MicroKernel(dtype, n, ns, IN_A_ROW, wk)),
        )
        return context.get_dummy_value()

    return types.void(NS, WK, T, *[types.int64] * 12), codegen


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
        offsets, masks = b.inttoptr(offsets, I32.as_pointer()), b.inttoptr(masks, I16.as_pointer())
        # Channels inside: a tap's masks stay in registers, 9 instructions a term instead of 27.
        with loop(b, const(0), taps) as t:
            bits = [b.gep(masks, [b.add(b.mul(t, const(VECTORS)), const(m))]) for m in range(VECTORS)]
            inside = [flags(b, e, b.load(at)) for at in bits] if masked else []
            first = b.gep(x, [b.sext(b.load(b.gep(offsets, [t])), I64)])
            with loop(b, const(0), C) as c:
                row = b.gep(to, [b.mul(b.add(b.mul(c, taps), t), const(VECTORS * e.lanes))])
                for m in range(VECTORS):
                    at = b.gep(first, [b.add(b.mul(c, xc), const(m * e.lanes))])
                    value = masked_load(b, e, at, inside[m]) if masked else load(b, e, at)
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
        slots, offsets = b.inttoptr(slots, I64.as_pointer()), b.inttoptr(offsets, I32.as_pointer())
        vectors = [b.gep(x, [b.load(b.gep(slots, [const(SLOT * m)]))]) for m in range(VECTORS)]
        with loop(b, const(0), C) as c, loop(b, const(0), taps) as t:
            offset = b.add(b.mul(c, xc), b.sext(b.load(b.gep(offsets, [t])), I64))
            row = b.gep(to, [b.mul(b.add(b.mul(c, taps), t), const(VECTORS * e.lanes))])
            for m, vector in enumerate(vectors):
                store(b, e, load(b, e, b.gep(vector, [offset])), b.gep(row, [const(m * e.lanes)]))

    return types.void(T, *[types.int64] * 7), out_of_line(
        f"panel_of_slots_{e.short}_{host().name}", "iiipiip", 1, e, body
    )


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


# Terms whose weights are packed at a time: of four scalars each a cache line.
PACKED = 4


@intrinsic(prefer_literal=True)
def pack_weights(
    typing: Any, NS: Any, T: Any, to: Any, to_k: Any, to_block: Any, x: Any, x_k: Any, x_j: Any, count: Any, rows: Any
) -> Any:  # fmt: skip
    """Weights as a tile reads them packed: ``to[i * to_block + k * to_k + j] = x[k * x_k + (i * NS + j) * x_j]``.

    Blocks of NS rows lie 4096 bytes apart, so a line of each is filled before the next: whatever the L1 cache holds, it is
    written once.
    """
    if not isinstance(NS, types.IntegerLiteral):
        return None
    ns, e = NS.literal_value, ELEMENTS[T.instance_type]
    wide = ir.VectorType(e.llvm, ns)

    def body(
        b: ir.IRBuilder, to: Any, to_k: Any, to_block: Any, x: Any, x_k: Any, x_j: Any, count: Any, rows: Any
    ) -> None:  # fmt: skip
        whole, blocks = b.sdiv(rows, const(ns)), b.sdiv(b.add(rows, const(ns - 1)), const(ns))
        neighbours, last = b.icmp_signed("==", x_j, const(1)), b.sub(rows, const(1))

        def each(first: Any, stop: Any, copy: Callable[[Any, Any, Any], None]) -> None:
            with (
                b.if_then(b.icmp_signed("<", first, stop)),
                loop(b, const(0), count, const(PACKED)) as k,
                loop(b, first, stop) as i,
            ):
                source = b.gep(x, [b.mul(k, x_k)])
                target = b.gep(to, [b.add(b.mul(i, to_block), b.mul(k, to_k))])
                left = b.sub(count, k)
                with b.if_else(b.icmp_signed(">=", left, const(PACKED)), likely=True) as (full, part):
                    with full:
                        for n in range(PACKED):
                            copy(
                                b.gep(source, [b.mul(x_k, const(n))]),
                                i,
                                b.gep(target, [b.mul(to_k, const(n))]),
                            )
                    with part, loop(b, const(0), left) as n:
                        copy(b.gep(source, [b.mul(x_k, n)]), i, b.gep(target, [b.mul(to_k, n)]))

        def side_by_side(source: Any, i: Any, target: Any) -> None:
            at = b.gep(source, [b.mul(i, const(ns))])
            value = b.load(b.bitcast(at, wide.as_pointer()))
            value.align = e.size
            b.store(value, b.bitcast(target, wide.as_pointer())).align = e.size
            # A line holds several blocks: each fetches one of the rows that come next.
            prefetch(b, at, b.mul(x_k, const(PACKED * e.size)))

        def apart(source: Any, i: Any, target: Any) -> None:
            for j in range(ns):
                row = b.add(b.mul(i, const(ns)), const(j))
                row = b.select(b.icmp_signed("<", row, rows), row, last)
                b.store(b.load(b.gep(source, [b.mul(row, x_j)])), b.gep(target, [const(j)]))

        each(const(0), b.select(neighbours, whole, const(0)), side_by_side)
        each(b.select(neighbours, whole, const(0)), blocks, apart)

    name = f"pack_weights_{e.short}_{ns}_{host().name}"
    return types.void(NS, T, *[types.int64] * 8), out_of_line(name, "piipiiii", 2, e, body)


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
