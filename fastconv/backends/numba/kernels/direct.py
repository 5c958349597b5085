"""Direct convolution with vectors along the output channels.

::

    y[n, o, q] = bias[o] + sum_{c, k} w[o, c, k] * x[n, c, at[q] + offset[k]]

A vector holds the weights of neighbouring output channels for one term, and each position's element of the input is
spread over a vector of its own. So positions may lie anywhere (any stride, rows of 7, channels last), what a tile reads of
the input need not be copied to a panel, and only the weights must be packed. Where a window reaches into the padding,
images are copied before, as for ``slab``.

Sums stand in a worker's scratch, channels side by side; blocks of as many positions as channels are turned into the
output when all terms are in. Long sums are cut into parts whose weights stay in the L1 cache, as those of a tile are.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic, register_jitable

from .positions import RECORD, next_tile
from .simd import (
    ELEMENTS,
    I32,
    I64,
    const,
    copy_phases,
    fetch_later,
    first_lanes,
    host,
    load,
    load_transposed,
    loop,
    masked_store,
    multiply_add,
    next_task,
    out_of_line,
    pointer,
    splat,
    store,
    store_all,
    transpose,
    turn_block,
    unrolled,
)
from .tile import OF_CHANNELS, VECTORS, MicroKernel, of_vectors, scalars

# The most positions of a tile, each a kernel of its own: no more places than registers hold, or seven, which the 49 of a
# 7 x 7 image are a multiple of: by eights a tile of seven has one idle.
WIDTHS = (8, 7) if scalars(host()) == 8 else (8,)


def positions_of(mv: int, most: int) -> int:
    """NS of a tile of so many vectors and at most so many positions: no more sums than one along positions has."""
    return min(VECTORS * scalars(host()) // mv, most)


MICROKERNELS = tuple(
    MicroKernel(dtype, mv, ns, OF_CHANNELS)
    for dtype in ("float32", "float64", "int32", "int64")
    for mv in range(1, VECTORS + 1)
    for ns in sorted({positions_of(mv, most) for most in WIDTHS})
)


def emit(module: ir.Module, kernel: MicroKernel) -> ir.Function:
    """Tiles side by side, as an internal LLVM function: MV vectors of channels, NS positions at a time.

    ::

        y[m * step + p * lanes + lane] = bias[m * lanes + lane] + sum_t w[(t * MV + m) * lanes + lane] * x[at[p] + offsets[t]]

    for all p < count, and up to NS - 1 beyond: there must be places to read and room to write. With `more` the sums go
    on from what y holds; without a bias its address is 0. Both loops are in the function: to call it for every tile took
    25 cycles of the 160 that 27 terms take.
    """
    if kernel.name in module.globals:
        return module.globals[kernel.name]
    e, mv, ns = ELEMENTS[getattr(types, kernel.dtype)], kernel.mv, kernel.ns
    pointers = {"offsets": I32, "at": I64, **dict.fromkeys(("x", "w", "y", "bias"), e.llvm)}
    kinds = [pointers[name].as_pointer() if name in pointers else I64 for name in kernel.arguments]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), kernel.name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    a = SimpleNamespace(**dict(zip(kernel.arguments, function.args, strict=True)))
    entry, tile, resume, begin, term, over, biased, done, leave = (
        function.append_basic_block(label)
        for label in ("entry", "tile", "resume", "begin", "term", "over", "biased", "done", "leave")
    )
    grid = list(itertools.product(range(mv), range(ns)))
    ir.IRBuilder(entry).branch(tile)

    b = ir.IRBuilder(tile)
    p = b.phi(I64)
    p.add_incoming(const(0), entry)
    rows = [b.gep(a.x, [b.load(b.gep(a.at, [b.add(p, const(j))]))]) for j in range(ns)]
    to = b.gep(a.y, [b.mul(p, const(e.lanes))])
    places = {(m, j): b.gep(to, [b.add(b.mul(a.step, const(m)), const(j * e.lanes))]) for m, j in grid}
    b.cbranch(b.icmp_unsigned("!=", a.more, const(0)), resume, begin)

    b = ir.IRBuilder(resume)
    begun = {key: load(b, e, place) for key, place in places.items()}
    b.branch(begin)

    b = ir.IRBuilder(begin)
    sums = {key: b.phi(e.vector) for key in grid}
    for key in grid:
        sums[key].add_incoming(ir.Constant(e.vector, None), tile)
        sums[key].add_incoming(begun[key], resume)
    b.branch(term)

    b = ir.IRBuilder(term)
    t = b.phi(I64)
    inside = {key: b.phi(e.vector) for key in grid}
    offset = b.sext(b.load(b.gep(a.offsets, [t])), I64)
    row = b.gep(a.w, [b.mul(t, const(mv * e.lanes))])
    weights = [load(b, e, b.gep(row, [const(m * e.lanes)])) for m in range(mv)]
    found = {}
    for j in range(ns):
        scalar = splat(b, e.vector, b.load(b.gep(rows[j], [offset])))
        for m in range(mv):
            found[m, j] = multiply_add(b, e, weights[m], scalar, inside[m, j])
    following = b.add(t, const(1))
    for phi, first, value in [(t, const(0), following), *((inside[k], sums[k], found[k]) for k in grid)]:
        phi.add_incoming(first, begin)
        phi.add_incoming(value, term)
    unrolled(b.cbranch(b.icmp_signed("<", following, a.K), term, over), kernel.terms)

    b = ir.IRBuilder(over)
    b.cbranch(b.icmp_unsigned("!=", b.ptrtoint(a.bias, I64), const(0)), biased, done)
    b = ir.IRBuilder(biased)
    add = b.fadd if e.real else b.add
    offsets = [load(b, e, b.gep(a.bias, [const(m * e.lanes)])) for m in range(mv)]
    shifted = {(m, j): add(found[m, j], offsets[m]) for m, j in grid}
    b.branch(done)

    b = ir.IRBuilder(done)
    for key in grid:
        result = b.phi(e.vector)
        result.add_incoming(found[key], over)
        result.add_incoming(shifted[key], biased)
        begun[key] = result
    for key in grid:
        store(b, e, begun[key], places[key])
    p_next = b.add(p, const(ns))
    p.add_incoming(p_next, done)
    b.cbranch(b.icmp_signed("<", p_next, a.count), tile, leave)
    ir.IRBuilder(leave).ret_void()
    return function


@intrinsic(prefer_literal=True)
def tiles(
    typing: Any, MOST: Any, T: Any, mv: Any,
    K: Any, x: Any, offsets: Any, at: Any, count: Any, w: Any, bias: Any, y: Any, step: Any, more: Any,
) -> Any:  # fmt: skip
    """Call the micro-kernel of mv (1 to ``VECTORS``) vectors of channels of type T; every pointer is an address."""
    if not isinstance(MOST, types.IntegerLiteral):
        return None
    most, dtype = MOST.literal_value, T.instance_type.name

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        of_vectors(
            builder,
            values[2],
            values[3:],
            lambda n: emit(builder.module, MicroKernel(dtype, n, positions_of(n, most), OF_CHANNELS)),
        )
        return context.get_dummy_value()

    return types.void(MOST, T, *[types.int64] * 11), codegen


@intrinsic
def write_turned(typing: Any, T: Any, y: Any, step: Any, d: Any, rows: Any, count: Any, past: Any) -> Any:
    """``y[i * step + p]`` becomes lane i of vector p of `d`, for i < rows and p < count.

    A loop of its own over square blocks: to call ``store_transposed`` for each took twice as long.
    """
    e = ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, y: Any, step: Any, d: Any, rows: Any, count: Any, past: Any) -> None:
        places = [b.gep(y, [b.mul(const(i), step)]) for i in range(e.lanes)]
        whole = b.select(b.icmp_signed(">=", rows, const(e.lanes)), b.and_(count, const(-e.lanes)), const(0))

        def turned(p: Any) -> list[Any]:
            row = b.gep(d, [b.mul(p, const(e.lanes))])
            return transpose(b, [load(b, e, b.gep(row, [const(j * e.lanes)])) for j in range(e.lanes)])

        with (
            b.if_then(b.icmp_signed(">", whole, const(0)), likely=True),
            loop(b, const(0), whole, const(e.lanes)) as p,
        ):
            vectors = [(v, b.gep(place, [p])) for v, place in zip(turned(p), places, strict=True)]
            store_all(b, e, vectors, past, y, step)
        with (
            b.if_then(b.icmp_signed("<", whole, count)),
            loop(b, whole, count, const(e.lanes)) as p,
        ):
            for i, (vector, place) in enumerate(zip(turned(p), places, strict=True)):
                stop = b.select(b.icmp_signed("<", const(i), rows), b.sub(count, p), const(0))
                masked_store(b, e, vector, b.gep(place, [p]), first_lanes(b, e, stop))

    name = f"write_turned_{e.short}_{host().name}"
    return types.void(T, *[types.int64] * 6), out_of_line(name, "pipiii", 1, e, body)


@register_jitable
def fill_places(a, places, p0, count, room):  # type: ignore[no-untyped-def]
    """Where positions p0 to p0 + count - 1 are read, in elements; the places behind them are the last one's."""
    h, w = divmod(p0, a.out_w)
    d, h = divmod(h, a.out_h)
    p = 0
    while p < count:
        row = d * a.step_d + h * a.step_h
        some = min(a.out_w - w, count - p)
        for i in range(some):
            places[p + i] = row + (w + i) * a.step_w
        p += some
        w, h = 0, h + 1
        if h == a.out_h:
            d, h = d + 1, 0
    for p in range(count, room):
        places[p] = places[count - 1]


@register_jitable
def fetch_part(a, size, offsets, x, k0, p0, count):  # type: ignore[no-untyped-def]
    """Fetch what is summed next of a kernel of one element: channels lie pages apart, so nothing else does.

    The terms from k0 on, or after the last one the first terms of the next positions, which may be another image's: 16
    images of 512 x 14 x 14 took 1.12 to 1.17 times as long.
    """
    if k0 == a.K:
        k0, p0 = 0, p0 + a.p_step
        if p0 >= a.positions:
            p0, x = 0, x + size * a.x_n
    begin = p0 // a.out_w * a.step_h + p0 % a.out_w * a.step_w
    for t in range(k0, min(k0 + a.k_block, a.K)):
        line = x + size * (offsets[t] + begin)
        for byte in range(0, size * count * a.step_w, 64):
            fetch_later(line + byte)


def tasks(most: int) -> Any:
    """A factory of tasks of any direct convolution of packed weights: some positions of an image, some channels of a group.

    A tile has at most so many positions.
    """

    def direct(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            at_places = a.scratch + worker * a.scratch_size
            places = carray(pointer(at_places, types.int64), a.p_step + most)
            offsets = carray(pointer(a.offsets, types.int32), a.K)
            at_bias, at_sums = at_places + a.bias_at, at_places + a.sums_at
            step = lanes * (a.p_step + most)
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                task, p0 = divmod(task, a.p_tasks)
                task, o0 = divmod(task, a.o_tasks)
                n, g = divmod(task, a.groups)
                p0 *= a.p_step
                count = min(a.p_step, a.positions - p0)
                v0 = a.v_first + o0 * a.o_step
                v1 = min(v0 + a.o_step, a.v_stop)
                fill_places(a, places, p0, count, count + most)
                at_x = a.x + size * (n * a.x_n + g * a.x_group)
                if a.copied:
                    at_x = a.copied + size * (n * a.copied_n + g * a.c * a.pitch_c)
                if a.bias:
                    given = carray(pointer(a.bias, T), 1 << 40)
                    bias = carray(pointer(at_bias, T), a.o_step * lanes)
                    for i in range((v1 - v0) * lanes):
                        o = v0 * lanes + i
                        bias[i] = given[g * a.o + o] if o < a.o else 0
                for k0 in range(0, a.K, a.k_block):
                    some = min(a.k_block, a.K - k0)
                    if a.fetched:
                        fetch_part(a, size, offsets, at_x, k0 + some, p0, count)
                    v = v0
                    while v < v1:
                        mv = next_tile(v1 - v)
                        at_w = a.w + size * lanes * (g * a.w_group + (v - a.v_first) * a.K + k0 * mv)
                        b = at_bias + size * lanes * (v - v0) if a.bias and k0 + some == a.K else 0
                        at_v = at_sums + size * step * (v - v0)
                        tiles(
                            most, T, mv, some, at_x, a.offsets + 4 * k0, at_places, count, at_w, b, at_v, step, k0
                        )  # fmt: skip
                        v += mv
                at_y = a.y + size * (n * a.y_n + g * a.o * a.y_c + p0)
                for v in range(v0, v1):
                    at_v, rows = at_sums + size * step * (v - v0), min(lanes, a.o - v * lanes)
                    write_turned(T, at_y + size * v * lanes * a.y_c, a.y_c, at_v, rows, count, a.past)

        return work

    direct.__name__ = f"direct_{most}"
    return direct


def pack_channels(T: Any) -> Any:
    """Tasks of packing weights (groups, o, K) for the above: a vector of channels.

    Blocks of as many vectors as a tile has lie one after the other, those of a term side by side; surplus lanes are zero.
    """
    size = T.bitwidth // 8
    lanes = host().width // size

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        at_stage = a.scratch + worker * a.scratch_size
        stage = carray(pointer(at_stage, T), lanes * lanes)
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            g, v = divmod(task, a.v_stop - a.v_first)
            v += a.v_first
            first = v // a.o_step * a.o_step
            stop = min(first + a.o_step, a.v_stop)
            mv = next_tile(stop - first)
            while first + mv <= v:
                first += mv
                mv = next_tile(stop - first)
            rows = min(lanes, a.o - v * lanes)
            x = a.given + size * (g * a.o + v * lanes) * a.K
            to = a.w + size * lanes * (g * a.w_group + (first - a.v_first) * a.K + v - first)
            for k in range(0, a.K, lanes):
                if rows == lanes and k + lanes <= a.K:
                    turn_block(T, to + size * lanes * mv * k, lanes * mv, x + size * k, a.K)
                    continue
                load_transposed(T, at_stage, x + size * k, a.K, rows, 0, a.K - k)
                part = carray(pointer(to + size * lanes * mv * k, T), lanes * lanes * mv)
                for j in range(min(lanes, a.K - k)):
                    for i in range(lanes):
                        part[j * lanes * mv + i] = stage[j * lanes + i]

    return work


def pack_turned(T: Any) -> Any:
    """Tasks of the same for weights (in_channels, o, window) that an input's gradient reads turned: some channels of the input.

    The lanes of a vector lie `turned_j` elements apart: a window of one is copied as it lies, others turn in square
    blocks of lanes and taps.
    """
    size = T.bitwidth // 8
    lanes = host().width // size

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        at_stage = a.scratch + worker * a.scratch_size
        taps_at = carray(pointer(a.turned_taps, types.int64), a.taps)
        blocks = -(-a.c // a.c_block)
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            g, c0 = divmod(task, blocks)
            for c in range(c0 * a.c_block, min((c0 + 1) * a.c_block, a.c)):
                row = (g * a.c + c) * a.turned
                first, v = a.v_first, a.v_first
                while v < a.v_stop:
                    if v == first + a.o_step:
                        first = v
                    mv = next_tile(min(first + a.o_step, a.v_stop) - v)
                    to = a.w + size * lanes * (g * a.w_group + (v - a.v_first) * a.K + c * a.taps * mv)
                    for m in range(mv):
                        rows = min(lanes, a.o - (v + m) * lanes)
                        begin = row + (v + m) * lanes * a.turned_j
                        if a.turned_j == 1:
                            copy_phases(T, 1, to + size * lanes * m, 0, 1, a.given + size * begin, 0, rows)
                            continue
                        for k in range(0, a.turned_j, lanes):
                            # Beyond a window lies the next one, which may be read but for the last of all.
                            beyond = begin + k + (lanes - 1) * a.turned_j + lanes > a.groups * a.c * a.turned
                            stop = a.turned_j - k if beyond else lanes
                            load_transposed(
                                T, at_stage, a.given + size * (begin + k), a.turned_j, rows, 0, stop
                            )
                            for t in range(a.taps):
                                j = taps_at[t] - k
                                if 0 <= j < lanes:
                                    target = to + size * lanes * (t * mv + m)
                                    copy_phases(T, 1, target, 0, 1, at_stage + size * lanes * j, 0, lanes)
                    v += mv

    return work
