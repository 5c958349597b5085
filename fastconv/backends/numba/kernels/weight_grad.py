"""Sums over positions, which are the gradient of weights.

::

    dw[o, c, k] = sum_{n, q} dy[n, o, q] * x[n, c, q * stride + k * dilation - before]

The micro-kernel sums over positions: vectors lie along input channels, scalars along output channels. So images are
copied to *blocks*, a vector of channels for each position of the padded image, and a tap is an offset from it
(``spread``); of a few channels a position holds all taps of all channels instead (``columns``). Positions of a few
images, or of part of one, are copied at a time; each task adds its products to its own part of the sums, in order.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, types
from numba.extending import intrinsic, register_jitable

from .depthwise import columns_of, loads
from .positions import SLOTS_BYTES, fetch_rows, fill_row
from .simd import (
    ELEMENTS,
    I64,
    const,
    copy_phases,
    fetch,
    fetch_later,
    halves,
    host,
    lane_range,
    load,
    load_transposed,
    loop,
    masked_load,
    multiply_add,
    next_task,
    out_of_line,
    pointer,
    prefetch,
    store,
    transpose,
)
from .tile import ADD, BY_OFFSETS, REPLACE, SLOT, VECTORS, panel_of_slots, scalars, tile, tile_in_a_row

WEIGHT_FIELDS = (
    "next stop "
    "x dy y sums scratch "  # addresses
    "scratch_size "  # bytes of a worker's scratch
    "held packed "  # addresses of the blocks, and of the output's gradient where it is packed, else 0
    "offsets taps_at "  # tables: where positions and taps lie in a plane of a block
    "lanes_at lines_at lines phases phases_w phase_w wanted_w "  # columns: where a lane reads in a copied row's phases
    "x_w phases_d phases_h borders map_w "  # 1 and 0: rows are copied as the direct kernels do
    "x_n x_c x_d x_h dy_n dy_c "  # strides, whose rows are contiguous
    "batch groups c o size_d size_h size_w "  # images at a time; channels of a group
    "stride_d stride_h stride_w before_d before_h before_w "
    "d0 h0 w0 nd nh nw "  # a box of output positions, and where it begins
    "rows_d rows_h rows_w "  # spread: the part of the padded image that a box reads
    "vectors held_c "  # vectors of a group's channels; positions from one to the next
    "taps all_taps "  # places a vector is read at; kernel elements
    "together "  # vectors of a tile: of channels, at each place one after the other
    "first positions packed_c "  # of the box: its first position, how many; from one packed vector to the next
    "block_n block_q blocks "  # a piece of the sum: images, positions; how many there are
    "parts part_step o_step o_tasks t_tasks "  # independent sums, elements of one; output channels of a task; tasks
    "panel "  # whether a tile's vectors are copied to a panel, behind its sums
    "begun "  # whether the sums hold anything yet
    "in_columns slots_at"  # parts: how images are copied; where slots lie in a worker's scratch, as held and packed do
)
WEIGHT = np.dtype([(name, np.int64) for name in WEIGHT_FIELDS.split()])
WEIGHT_RECORD = from_dtype(WEIGHT)

# Numbers of a line of the input that ``columns`` copies: its channel, and where it lies along depth and height.
LINE = 3

# Bytes in front of what is turned that are fetched: sixteen rows, pages apart, which no processor foresees. 16 images of 128 x 56
# x 56 take 1.2 ms, and 2.0 without.
TURNED_AHEAD = 256


@register_jitable
def spread_vector(T, size, lanes, a, to, x, left):  # type: ignore[no-untyped-def]
    """Copy a vector of channels of an image: so many are `left`, the first of which lies at `x`."""
    begin = a.w0 * a.stride_w - a.before_w
    for i in range(a.rows_d):
        d = a.d0 * a.stride_d - a.before_d + i
        for j in range(a.rows_h):
            h = a.h0 * a.stride_h - a.before_h + j
            low, high = -begin, a.size_w - begin
            if d < 0 or d >= a.size_d or h < 0 or h >= a.size_h:
                high = low
            row = x + size * (d * a.x_d + h * a.x_h + begin)
            # What is written beyond a row's end is the next row's, and written again.
            w = 0  # counted by hand: see `fill_row`
            while w < a.rows_w:
                coming = row + size * w + TURNED_AHEAD
                for _ in range(lanes):
                    fetch(coming)
                    coming += size * a.x_c
                load_transposed(T, to + size * lanes * w, row + size * w, a.x_c, left, low - w, high - w)
                w += lanes
            to += size * lanes * a.rows_w


def spread(T: Any) -> Any:
    """Tasks of copying images to blocks: a vector of channels of an image."""
    size = T.bitwidth // 8
    lanes = host().width // size

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, WEIGHT_RECORD), 1)[0]
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            n, b = divmod(task, a.groups * a.vectors)
            g, c = divmod(b, a.vectors)
            c *= lanes
            x = a.x + size * (n * a.x_n + (g * a.c + c) * a.x_c)
            spread_vector(T, size, lanes, a, a.held + size * lanes * task * a.held_c, x, a.c - c)

    return work


@intrinsic
def gather_transposed(typing: Any, T: Any, to: Any, x: Any, table: Any) -> Any:
    """A square block: vector j of `to` becomes ``x[table[i] + j]`` over i."""
    e = ELEMENTS[T.instance_type]

    def body(b: ir.IRBuilder, to: Any, x: Any, table: Any) -> None:
        places = b.inttoptr(table, I64.as_pointer())
        vectors = [load(b, e, b.gep(x, [b.load(b.gep(places, [const(i)]))])) for i in range(e.lanes)]
        for j, vector in enumerate(transpose(b, vectors)):
            store(b, e, vector, b.gep(to, [const(j * e.lanes)]))

    name = f"gather_transposed_{e.short}_{host().name}"
    return types.void(T, *[types.int64] * 3), out_of_line(name, "ppi", 1, e, body)


@register_jitable
def column_row(T, size, lanes, a, to, x, r, lines, phases, stage):  # type: ignore[no-untyped-def]
    """Copy what row `r` of positions reads of a group's channels at `x`: all taps, a vector after the other."""
    pitch = (a.nw + lanes - 1) // lanes * lanes
    qd, qh = divmod(r, a.nh)
    for m in range(a.lines):
        d = (a.d0 + qd) * a.stride_d + lines[m, 1]
        h = (a.h0 + qh) * a.stride_h + lines[m, 2]
        missing = d < 0 or d >= a.size_d or h < 0 or h >= a.size_h
        row = lines[m, 0] * a.x_c + d * a.x_d + h * a.x_h
        line = stage + size * m * a.phases_w * a.phase_w
        fill_row(T, size, lanes, a, line, x, row, missing, phases, phases, a.w0, a.phase_w)
    for v in range(a.vectors):
        vector = to + size * lanes * (v * a.held_c + r * pitch)
        q = 0
        while q < pitch:
            gather_transposed(T, vector + size * lanes * q, stage + size * q, a.lanes_at + 8 * lanes * v)
            q += lanes


def columns(T: Any) -> Any:
    """Tasks of copying what positions read: a row of positions of an image, all taps of its few channels."""
    size = T.bitwidth // 8
    lanes = host().width // size

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, WEIGHT_RECORD), 1)[0]
        lines = carray(pointer(a.lines_at, types.int64), (a.lines, LINE))
        phases = carray(pointer(a.phases, types.int64), a.phases_w)
        stage = a.scratch + worker * a.scratch_size
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            plane, r = divmod(task, a.nd * a.nh)
            n, g = divmod(plane, a.groups)
            x = a.x + size * (n * a.x_n + g * a.c * a.x_c)
            to = a.held + size * lanes * plane * a.vectors * a.held_c
            column_row(T, size, lanes, a, to, x, r, lines, phases, stage)

    return work


@register_jitable
def pack_vector(T, size, lanes, a, to, dy, left):  # type: ignore[no-untyped-def]
    """Pack a vector of channels of an image's gradient: so many are `left`, the first of which lies at `dy`."""
    for q in range(0, a.positions, lanes):
        load_transposed(T, to + size * lanes * q, dy + size * q, a.dy_c, left, 0, a.positions - q)


def pack_positions(T: Any) -> Any:
    """Tasks of packing the output's gradient: a vector of channels, all images one after the other."""
    size = T.bitwidth // 8
    lanes = host().width // size

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, WEIGHT_RECORD), 1)[0]
        per_group = (a.o + lanes - 1) // lanes
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            g, o = divmod(task, per_group)
            o *= lanes
            to = a.packed + size * lanes * task * a.packed_c
            for n in range(a.batch):
                dy = a.dy + size * (n * a.dy_n + (g * a.o + o) * a.dy_c + a.first)
                pack_vector(T, size, lanes, a, to, dy, a.o - o)
                to += size * lanes * a.positions

    return work


@register_jitable
def open_slots(slots, lanes):  # type: ignore[no-untyped-def]
    """Every vector of a tile is written whole, one after the other."""
    for m in range(VECTORS):
        slots[m, 0], slots[m, 1], slots[m, 2], slots[m, 3], slots[m, 4] = 0, m * lanes, (1 << lanes) - 1, 0, 0


@register_jitable
def place_vectors(a, lanes, slots, taps_at, v0):  # type: ignore[no-untyped-def]
    """Where the vectors from v0 on are read, places after channels; returns how many a tile takes."""
    mv = min(a.together, a.taps * a.vectors - v0)
    t, v = divmod(v0, a.vectors)
    for m in range(mv):
        slots[m, 0] = (taps_at[t] + v * a.held_c) * lanes
        v += 1
        if v == a.vectors:
            t, v = t + 1, 0
    return mv


@register_jitable
def add_products(  # type: ignore[no-untyped-def]
    T, NS, size, lanes, a, mv, g, o0, o1, held, dy, packed, n, images, q, count, sums, fresh, at_slots
):  # fmt: skip
    """Add to `sums` the products of `count` positions from q on, of `images` images from n on, for some output channels."""
    per_group = (a.o + lanes - 1) // lanes
    width = a.taps * a.vectors * lanes
    x = held + size * lanes * (n * a.groups + g) * a.vectors * a.held_c
    image = a.groups * a.vectors * a.held_c * lanes
    if a.panel:
        at_panel = at_slots + SLOTS_BYTES
        panel_of_slots(T, images, count, image, x, a.offsets + 4 * q, at_slots, at_panel)
    for o in range(o0, o1, NS):
        rows = min(NS, o1 - o)
        if packed:
            at = (g * per_group + o // lanes) * a.packed_c + n * a.positions + q
            w, wj, wk = packed + size * (at * lanes + o % lanes), 1, lanes
        else:
            at = n * a.dy_n + (g * a.o + o) * a.dy_c + a.first + q
            w, wj, wk = dy + size * at, a.dy_c, 1
        to, more = sums + size * o * width, REPLACE if fresh else ADD
        fetch_rows(to, size * width, size * mv * lanes, rows)
        if a.panel:
            if packed:
                tile_in_a_row(
                    NS, lanes, T, mv, images * count, at_panel, at_slots, w, 1, to, width, rows, 0, more, 0
                )
            else:
                tile_in_a_row(
                    NS, 1, T, mv, images * count, at_panel, at_slots, w, wj, to, width, rows, 0, more, 0
                )
        else:
            tile(
                NS, BY_OFFSETS, T, mv, images, count, image, x, a.offsets + 4 * q, 0,
                at_slots, w, wj, wk, to, width, rows, 0, more, 0,
            )  # fmt: skip


def weight_products(T: Any) -> Any:
    """Tasks of sums over positions: a part of them, a group, a few vectors, some output channels.

    A vector is read at every place; a tile takes three, of channels or places, whichever come next.
    """
    size = T.bitwidth // 8
    lanes = host().width // size
    NS = scalars(host())

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, WEIGHT_RECORD), 1)[0]
        at_slots = a.scratch + worker * a.scratch_size
        slots = carray(pointer(at_slots, types.int64), (VECTORS, SLOT))
        open_slots(slots, lanes)
        taps_at = carray(pointer(a.taps_at, types.int64), a.taps)
        across = (a.positions + a.block_q - 1) // a.block_q
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            task, v0 = divmod(task, a.t_tasks)
            task, o0 = divmod(task, a.o_tasks)
            part, g = divmod(task, a.groups)
            v0 *= a.together
            o0 *= a.o_step
            o1 = min(o0 + a.o_step, a.o)
            mv = place_vectors(a, lanes, slots, taps_at, v0)
            sums = a.sums + size * lanes * ((part * a.groups + g) * a.o * a.taps * a.vectors + v0)
            first = part * a.blocks // a.parts
            for block in range(first, (part + 1) * a.blocks // a.parts):
                n, q = divmod(block, across)
                n *= a.block_n
                q *= a.block_q
                images, count = min(a.block_n, a.batch - n), min(a.block_q, a.positions - q)
                add_products(
                    T, NS, size, lanes, a, mv, g, o0, o1, a.held, a.dy, a.packed, n, images, q, count, sums,
                    not a.begun and block == first, at_slots,
                )  # fmt: skip

    return work


def weight_parts(T: Any) -> Any:
    """Tasks of a part of the images each, where all they hold and all their sums stay in a core's caches.

    A few images are copied and multiplied, for all channels, before the next: as rounds of all threads, one to copy and one
    to multiply, what is copied would come back from the shared cache, and the output's gradient twice.
    """
    size = T.bitwidth // 8
    lanes = host().width // size
    NS = scalars(host())

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, WEIGHT_RECORD), 1)[0]
        lines = carray(pointer(a.lines_at, types.int64), (a.lines, LINE))
        phases = carray(pointer(a.phases, types.int64), a.phases_w)
        taps_at = carray(pointer(a.taps_at, types.int64), a.taps)
        stage = a.scratch + worker * a.scratch_size
        at_slots = stage + a.slots_at
        slots = carray(pointer(at_slots, types.int64), (VECTORS, SLOT))
        held = stage + a.held
        packed = stage + a.packed if a.packed else 0
        per_group = (a.o + lanes - 1) // lanes
        while True:
            part = next_task(arguments, worker)
            if part >= a.stop:
                return
            open_slots(slots, lanes)
            first, stop = part * a.blocks // a.parts * a.block_n, (part + 1) * a.blocks // a.parts * a.block_n
            for n0 in range(first, min(stop, a.batch), a.block_n):
                images = min(a.block_n, a.batch - n0)
                for plane in range(images * a.groups):
                    n, g = divmod(plane, a.groups)
                    x = a.x + size * ((n0 + n) * a.x_n + g * a.c * a.x_c)
                    to = held + size * lanes * plane * a.vectors * a.held_c
                    if a.in_columns:
                        for r in range(a.nd * a.nh):
                            column_row(T, size, lanes, a, to, x, r, lines, phases, stage)
                    else:
                        for v in range(a.vectors):
                            c = v * lanes
                            vector = to + size * lanes * v * a.held_c
                            spread_vector(T, size, lanes, a, vector, x + size * c * a.x_c, a.c - c)
                    if packed:
                        for v in range(per_group):
                            o = v * lanes
                            vector = packed + size * lanes * (
                                (g * per_group + v) * a.packed_c + n * a.positions
                            )
                            dy = a.dy + size * ((n0 + n) * a.dy_n + (g * a.o + o) * a.dy_c)
                            pack_vector(T, size, lanes, a, vector, dy, a.o - o)
                for g in range(a.groups):
                    for v0 in range(0, a.taps * a.vectors, a.together):
                        mv = place_vectors(a, lanes, slots, taps_at, v0)
                        sums = a.sums + size * lanes * ((part * a.groups + g) * a.o * a.taps * a.vectors + v0)
                        for q in range(0, a.positions, a.block_q):
                            add_products(
                                T, NS, size, lanes, a, mv, g, 0, a.o, held, a.dy + size * n0 * a.dy_n, packed, 0, images, q,
                                min(a.block_q, a.positions - q), sums, n0 == first and q == 0, at_slots,
                            )  # fmt: skip

    return work


def weight_sums(T: Any) -> Any:
    """Tasks of adding the parts of the sums, in order, and putting them in place: an output channel."""
    size = T.bitwidth // 8
    lanes = host().width // size

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, WEIGHT_RECORD), 1)[0]
        width = a.vectors * lanes
        each = a.c * a.all_taps // a.taps
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            y = carray(pointer(a.y + size * task * a.c * a.all_taps, T), a.c * a.all_taps)
            for t in range(a.taps):
                begin = a.sums + size * (task * a.taps + t) * width
                sums = carray(pointer(begin, T), each)
                for i in range(each):
                    y[i * a.taps + t] = sums[i]
                for part in range(1, a.parts):
                    sums = carray(pointer(begin + size * part * a.part_step, T), each)
                    for i in range(each):
                        y[i * a.taps + t] += sums[i]

    return work


# ---------------------------------------------------------------------------- one input channel for each group

# Taps along a row that are summed side by side: as many vectors are read for one of the output's gradient.
SIDE = 3


@intrinsic(prefer_literal=True)
def dot_rows(
    typing: Any, S: Any, T: Any,
    sums: Any, x: Any, x_row: Any, dy: Any, dy_row: Any, rows: Any, width: Any, begin: Any, step: Any, size: Any, taps: Any,
) -> Any:  # fmt: skip
    """``sums[j] += sum over rows and w of dy[w] * x[S * w + begin + j * step]``, a vector of lanes for each j < SIDE.

    Elements of `x` before 0 and from `size` on, and all of them for j >= taps, are taken for zero and not read.
    """
    if not isinstance(S, types.IntegerLiteral):
        return None
    e, stride = ELEMENTS[T.instance_type], S.literal_value

    def body(
        b: ir.IRBuilder, sums: Any, x: Any, x_row: Any, dy: Any, dy_row: Any, rows: Any, width: Any, begin: Any, step: Any,
        size: Any, taps: Any,
    ) -> None:  # fmt: skip
        places = [b.gep(sums, [const(j * e.lanes)]) for j in range(SIDE)]
        before = [load(b, e, place) for place in places]
        stops = [b.select(b.icmp_signed("<", const(j), taps), size, const(-(1 << 30))) for j in range(SIDE)]
        held = [b.alloca(e.vector) for _ in range(SIDE)]  # LLVM keeps them in registers
        for place, value in zip(held, before, strict=True):
            b.store(value, place)
        # Masks are made once for all rows: with rows outside they took two thirds of the time.
        with loop(b, const(0), width, const(e.lanes)) as w:
            there = lane_range(b, e, const(0), b.sub(width, w))
            reads = []
            for j in range(SIDE):
                at = b.add(b.add(b.mul(w, const(stride)), begin), b.mul(step, const(j)))
                for r in range(stride):
                    first = b.add(at, const(r * e.lanes))
                    inside = lane_range(b, e, b.neg(first), b.sub(stops[j], first))
                    reads.append((b.gep(x, [first]), inside))
            at_dy = b.gep(dy, [w])
            with loop(b, const(0), rows) as row:
                gradient = masked_load(b, e, b.gep(at_dy, [b.mul(row, dy_row)]), there)
                at_row = b.mul(row, x_row)
                vectors = [masked_load(b, e, b.gep(at, [at_row]), inside) for at, inside in reads]
                for j in range(SIDE):
                    parts = vectors[j * stride : (j + 1) * stride]
                    vector = parts[0] if stride == 1 else halves(b, *parts)[0]
                    b.store(multiply_add(b, e, vector, gradient, b.load(held[j])), held[j])
        for place, value in zip(places, held, strict=True):
            store(b, e, b.load(value), place)

    name = f"dot_rows_{e.short}_s{stride}_{host().name}"
    return types.void(S, T, *[types.int64] * 11), out_of_line(name, "ppipiiiiiii", 2, e, body)


# Rows and columns of the taps that are summed all at once.
NINE = 3

# Bytes of the next plane that are fetched: larger ones would leave no room in the L1 cache for this one.
FETCHED = 4096

# Bytes in front of what is read that are fetched. 16 images of 128 x 56 x 56 took 3.9 ms without, 1.6 with; at a stride of 2, 2.0
# and 0.8; half or four times as far 1.2 times as long.
AHEAD = 4096


@intrinsic(prefer_literal=True)
def nine_sums(
    typing: Any, S: Any, T: Any,
    sums: Any, x: Any, dy: Any, zeros: Any, h: Any, width: Any, oh: Any, ow: Any, before_h: Any, before_w: Any,
) -> Any:  # fmt: skip
    """Add a plane's part to the sums of all 3 x 3 taps, a vector of lanes each.

    Rows of x are read once, from the first to the last, each vector of them for nine multiply-adds together with the rows
    of dy that it meets. Rows outside are `zeros`; only the first and the last vector of a row need masks.
    """
    if not isinstance(S, types.IntegerLiteral):
        return None
    e, stride = ELEMENTS[T.instance_type], S.literal_value

    def body(
        b: ir.IRBuilder, sums: Any, x: Any, dy: Any, zeros: Any, h: Any, width: Any, oh: Any, ow: Any, before_h: Any,
        before_w: Any,
    ) -> None:  # fmt: skip
        zero, step = ir.Constant(e.vector, None), const(stride)
        held = [b.alloca(e.vector) for _ in range(NINE * NINE)]  # LLVM keeps them in registers
        places = [b.gep(sums, [const(t * e.lanes)]) for t in range(NINE * NINE)]
        for value, place in zip(held, places, strict=True):
            b.store(load(b, e, place), value)
        last = b.and_(b.sub(ow, const(1)), const(-e.lanes))

        def starts(m: Any) -> list[Any]:
            begin = b.sub(b.mul(m, step), before_w)
            return [b.add(begin, const(start)) for start in loads(stride, False, e.lanes)]

        def masks(m: Any) -> tuple[Any, list[Any]]:
            inside = [lane_range(b, e, b.neg(start), b.sub(width, start)) for start in starts(m)]
            return lane_range(b, e, const(0), b.sub(ow, m)), inside

        ends = masks(const(0)), masks(last)

        def row(plane: Any, i: Any, count: Any, length: Any) -> Any:
            return b.select(b.icmp_unsigned("<", i, count), b.gep(plane, [b.mul(i, length)]), zeros)

        def add(
            xs: list[Any], dys: list[Any], there: list[Any] | None, m: Any, edge: tuple[Any, list[Any]] | None
        ) -> None:
            """One vector of these rows. Where a row of dy is not there an element of x may be infinite."""
            if edge is None:
                gradients = [load(b, e, b.gep(at, [m])) for at in dys]
            else:
                gradients = [masked_load(b, e, b.gep(at, [m]), edge[0]) for at in dys]
            prefetch(b, b.gep(dys[0], [m]), const(AHEAD))
            for i, at in enumerate(xs):
                spots = [b.gep(at, [start]) for start in starts(m)]
                for spot in spots[:: 3 if stride == 1 else 1]:
                    prefetch(b, spot, const(AHEAD))
                if edge is None:
                    vectors = columns_of(b, stride, [load(b, e, spot) for spot in spots])
                else:
                    read = [masked_load(b, e, *spot) for spot in zip(spots, edge[1], strict=True)]
                    # Where dy has no element x may have one, and it may be infinite.
                    vectors = [b.select(edge[0], column, zero) for column in columns_of(b, stride, read)]
                for kh in range(i, NINE, stride):
                    for kw, vector in enumerate(vectors):
                        value = vector if there is None else b.select(there[kh // stride], vector, zero)
                        place = held[NINE * kh + kw]
                        b.store(multiply_add(b, e, value, gradients[kh // stride], b.load(place)), place)

        def add_rows(xs: list[Any], dys: list[Any], there: list[Any] | None) -> None:
            add(xs, dys, there, const(0), ends[0])
            with b.if_then(b.icmp_signed(">", last, const(0))):
                with (
                    b.if_then(b.icmp_signed(">", last, const(e.lanes))),
                    loop(b, const(e.lanes), last, const(e.lanes)) as m,
                ):
                    add(xs, dys, there, m, None)
                add(xs, dys, there, last, ends[1])

        # Of the padded rows, or pairs of them, r meets rows r, r - 1 and r - 2 of dy, a pair rows r and r - 1.
        all_rows, of_dy = b.add(h, before_h), b.add(b.mul(oh, step), const(NINE - stride))
        rows = b.select(b.icmp_signed("<", all_rows, of_dy), all_rows, of_dy)
        start, stop = b.sdiv(before_h, step), b.sdiv(b.add(rows, const(stride - 1)), step)
        with b.if_then(b.icmp_signed("<", start, stop)), loop(b, start, stop) as r:
            top = b.sub(b.mul(r, step), before_h)
            xs = [row(x, b.add(top, const(i)), h, width) for i in range(stride)]
            numbers = [b.sub(r, const(back)) for back in range(NINE + 1 - stride)]
            dys = [row(dy, q, oh, ow) for q in numbers]
            there = [b.icmp_unsigned("<", q, oh) for q in numbers]
            with b.if_else(functools.reduce(b.and_, there), likely=True) as (whole, part):
                with whole:
                    add_rows(xs, dys, None)
                with part:
                    add_rows(xs, dys, there)
        for value, place in zip(held, places, strict=True):
            store(b, e, b.load(value), place)

    name = f"nine_sums_{e.short}_s{stride}_{host().name}"
    return types.void(S, T, *[types.int64] * 10), out_of_line(name, "ppppiiiiii", 2, e, body)


@intrinsic(prefer_literal=True)
def nine_sums_of_channels(
    typing: Any, S: Any, T: Any, sums: Any, x: Any, pitch: Any, dy: Any, oh: Any, ow: Any
) -> Any:  # fmt: skip
    """The same for a vector of channels: `x` and `dy` hold a vector for each pixel, x padded, its rows `pitch` apart."""
    if not isinstance(S, types.IntegerLiteral):
        return None
    e, stride = ELEMENTS[T.instance_type], S.literal_value

    def body(b: ir.IRBuilder, sums: Any, x: Any, pitch: Any, dy: Any, oh: Any, ow: Any) -> None:
        held = [b.alloca(e.vector) for _ in range(NINE * NINE)]  # LLVM keeps them in registers
        places = [b.gep(sums, [const(t * e.lanes)]) for t in range(NINE * NINE)]
        for value, place in zip(held, places, strict=True):
            b.store(load(b, e, place), value)
        length = b.mul(pitch, const(e.lanes))
        with loop(b, const(0), oh) as h:
            rows = [b.gep(x, [b.mul(b.add(b.mul(h, const(stride)), const(i)), length)]) for i in range(NINE)]
            at_dy = b.gep(dy, [b.mul(b.mul(h, ow), const(e.lanes))])
            with loop(b, const(0), ow) as w:
                gradient = load(b, e, b.gep(at_dy, [b.mul(w, const(e.lanes))]))
                at = b.mul(w, const(stride * e.lanes))
                for kh, row in enumerate(rows):
                    for kw in range(NINE):
                        vector = load(b, e, b.gep(row, [b.add(at, const(kw * e.lanes))]))
                        place = held[NINE * kh + kw]
                        b.store(multiply_add(b, e, vector, gradient, b.load(place)), place)
        for value, place in zip(held, places, strict=True):
            store(b, e, b.load(value), place)

    name = f"nine_sums_of_channels_{e.short}_s{stride}_{host().name}"
    return types.void(S, T, *[types.int64] * 6), out_of_line(name, "ppipii", 2, e, body)


ROWS_FIELDS = (
    "next stop "
    "x dy sums scratch scratch_size "  # addresses; bytes of a worker's scratch
    "batch per_group o "  # images, output channels of a group, of all
    "x_n x_c dy_n dy_c "  # strides, whose planes are contiguous
    "size_d size_h size_w od oh ow kd kh kw "
    "stride_d stride_h stride_w dilation_d dilation_h dilation_w before_d before_h before_w "
    "parts "  # independent sums over images
    "zeros "  # of 3 x 3 taps that are summed all at once: address of a row of zeros, else 0
    "pitch held_x"  # of channels side by side: pixels of a padded row, and of the padded image
)
ROWS_ARGUMENTS = np.dtype([(name, np.int64) for name in ROWS_FIELDS.split()])
ROWS_RECORD = from_dtype(ROWS_ARGUMENTS)


def depthwise_sums(T: Any) -> Any:
    """Tasks of a depthwise convolution's weights: an output channel, a part of the images; dot products of rows."""
    size = T.bitwidth // 8
    lanes = host().width // size

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, ROWS_RECORD), 1)[0]
        across = (a.kw + SIDE - 1) // SIDE
        taps = a.kd * a.kh * across
        at_sums = a.scratch + worker * a.scratch_size
        held = carray(pointer(at_sums, T), (taps, SIDE, lanes))
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            o, part = divmod(task, a.parts)
            held[:] = 0
            for n in range(part * a.batch // a.parts, (part + 1) * a.batch // a.parts):
                x = a.x + size * (n * a.x_n + o // a.per_group * a.x_c)
                dy = a.dy + size * (n * a.dy_n + o * a.dy_c)
                if a.zeros:
                    # The planes of the next image lie far off, where no hardware looks ahead.
                    for i in range(0, min(size * a.size_h * a.size_w, FETCHED), 64):
                        fetch(x + size * a.x_n + i)
                    for i in range(0, min(size * a.oh * a.ow, FETCHED), 64):
                        fetch(dy + size * a.dy_n + i)
                    if a.stride_w == 1:
                        nine_sums(
                            1, T, at_sums, x, dy, a.zeros, a.size_h, a.size_w, a.oh, a.ow, a.before_h, a.before_w
                        )  # fmt: skip
                    else:
                        nine_sums(
                            2, T, at_sums, x, dy, a.zeros, a.size_h, a.size_w, a.oh, a.ow, a.before_h, a.before_w
                        )  # fmt: skip
                    continue
                for qd in range(a.od):
                    for kd in range(a.kd):
                        d = qd * a.stride_d + kd * a.dilation_d - a.before_d
                        if d < 0 or d >= a.size_d:
                            continue
                        for kh in range(a.kh):
                            # The planes of the next image lie far off, where no hardware looks ahead.
                            for i in range(64 * kh, size * a.size_h * a.size_w, 64 * a.kh):
                                fetch(x + size * (a.x_n + d * a.size_h * a.size_w) + i)
                            for i in range(64 * kh, size * a.oh * a.ow, 64 * a.kh):
                                fetch(dy + size * (a.dy_n + qd * a.oh * a.ow) + i)
                            # Output rows whose tap lies inside the image.
                            h = kh * a.dilation_h - a.before_h
                            low = max((a.stride_h - 1 - h) // a.stride_h, 0)
                            high = min((a.size_h - 1 - h) // a.stride_h + 1, a.oh)
                            if low >= high:
                                continue
                            at_x = x + size * (d * a.size_h + h + low * a.stride_h) * a.size_w
                            at_dy = dy + size * (qd * a.oh + low) * a.ow
                            for j in range(across):
                                to = at_sums + size * lanes * SIDE * ((kd * a.kh + kh) * across + j)
                                begin = j * SIDE * a.dilation_w - a.before_w
                                left = a.kw - j * SIDE
                                if a.stride_w == 1:
                                    dot_rows(
                                        1, T, to, at_x, a.stride_h * a.size_w, at_dy, a.ow, high - low, a.ow, begin,
                                        a.dilation_w, a.size_w, left,
                                    )  # fmt: skip
                                else:
                                    dot_rows(
                                        2, T, to, at_x, a.stride_h * a.size_w, at_dy, a.ow, high - low, a.ow, begin,
                                        a.dilation_w, a.size_w, left,
                                    )  # fmt: skip
            y = carray(pointer(a.sums + size * (part * a.o + o) * a.kd * a.kh * a.kw, T), a.kd * a.kh * a.kw)
            for row in range(a.kd * a.kh):
                for k in range(a.kw):
                    total = held[row * across + k // SIDE, k % SIDE, 0]
                    for i in range(1, lanes):
                        total += held[row * across + k // SIDE, k % SIDE, i]
                    y[row * a.kw + k] = total

    return work


def channel_sums(T: Any) -> Any:
    """Tasks of the same for 3 x 3 taps of small planes: a vector of channels, a part of the images.

    Planes are turned, so that channels lie along the lanes. Rows of 7 would fill them to seven eighths, and each would
    need masks: 450 cycles for a plane of 7 x 7, so 60.
    """
    size = T.bitwidth // 8
    lanes = host().width // size
    vector = size * lanes

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, ROWS_RECORD), 1)[0]
        at_sums = a.scratch + worker * a.scratch_size
        at_x = at_sums + NINE * NINE * vector
        at_dy = at_x + a.held_x * vector
        inside = at_x + vector * (a.before_h * a.pitch + a.before_w)
        held = carray(pointer(at_sums, T), (NINE * NINE, lanes))
        padded = carray(pointer(at_x, T), a.held_x * lanes)
        beyond = (a.size_w + lanes - 1) // lanes * lanes - a.size_w
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            c0, part = divmod(task, a.parts)
            c0 *= lanes
            channels = min(a.o - c0, lanes)
            held[:] = 0
            padded[:] = 0
            for n in range(part * a.batch // a.parts, (part + 1) * a.batch // a.parts):
                x = a.x + size * (n * a.x_n + c0 * a.x_c)
                dy = a.dy + size * (n * a.dy_n + c0 * a.dy_c)
                # What the next image holds of these channels lies far off, where no hardware looks ahead.
                for i in range(0, size * channels * a.x_c, 64):
                    fetch_later(x + size * a.x_n + i)
                for i in range(0, size * channels * a.dy_c, 64):
                    fetch_later(dy + size * a.dy_n + i)
                for h in range(a.size_h):
                    row = inside + vector * h * a.pitch
                    for w in range(0, a.size_w, lanes):
                        p = h * a.size_w + w
                        load_transposed(T, row + vector * w, x + size * p, a.x_c, channels, 0, a.x_c - p)
                    # Vectors that run over the row's end hold the beginning of the next.
                    for w in range(a.size_w, a.size_w + beyond):
                        copy_phases(T, 1, row + vector * w, 0, 1, row, 0, 0)
                for p in range(0, a.dy_c, lanes):
                    load_transposed(T, at_dy + vector * p, dy + size * p, a.dy_c, channels, 0, a.dy_c - p)
                if a.stride_w == 1:
                    nine_sums_of_channels(1, T, at_sums, at_x, a.pitch, at_dy, a.oh, a.ow)
                else:
                    nine_sums_of_channels(2, T, at_sums, at_x, a.pitch, at_dy, a.oh, a.ow)
            y = carray(pointer(a.sums + size * (part * a.o + c0) * NINE * NINE, T), (lanes, NINE * NINE))
            for i in range(channels):
                for t in range(NINE * NINE):
                    y[i, t] = held[t, i]

    return work
