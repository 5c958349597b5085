"""Direct convolution: tiles of the micro-kernel over the input itself, or over a padded copy of part of it.

::

    y[n, o, q] = bias[o] + sum_{c, k} w[o, c, k] * x[n, c, q * stride + k * dilation - before]

No column matrix exists. Two ways to bring the terms of a sum to the micro-kernel:

``flat``
    Stride 1 and an output as wide and high as the input: position q of the output lies at position q of the
    input, and a tap is an offset from it. Masks stand for the padding, so nothing is copied at all.
``slab``
    Anything else. What a box of output positions reads is copied to a *slab*: padded, and for a stride s split
    into its phases, so that neighbouring output positions always read neighbouring elements. Vectors run on
    over the ends of padded rows; what lies between two output rows is computed and not written. Either each
    task copies its own box into its worker's scratch, or ``copy`` has copied whole images before (where many
    tasks, for different output channels, read the same).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, from_dtype, types
from numba.extending import register_jitable

from .simd import copy_phases, element, fetch, fetch_later, host, next_task, pointer, store_transposed
from .tile import (
    BY_OFFSETS,
    MASKED,
    SLOT,
    VECTORS,
    dots,
    pack_weights,
    panel,
    panel_rows,
    scalars,
    tile,
    tile_in_a_row,
)

# One struct for plan and kernels. Every field is an int64; addresses are in bytes, strides in elements.
FIELDS = (
    "next stop "  # the next task, and where to stop
    "x w bias y scratch "  # addresses; no bias is 0
    "offsets masks maps phases "  # addresses of the plan's tables
    "scratch_size slots_at stage_at "  # bytes of a worker's scratch, where its slots begin, and a block of vectors
    "copied copied_n c_tasks channels "  # slab: address of the copied images or 0, elements of one; copy: tasks
    "x_n x_group x_c x_d x_h x_w "  # strides of the input
    "y_n y_c "  # strides of the output, whose planes are contiguous
    "batch o c taps groups "  # images, channels of a group, window elements, groups
    "w_group w_row w_j w_k "  # strides of the weights: a group, a block of NS rows, a row, a term
    "o_step o_tasks o_block "  # output channels of a task, tasks along them, channels kept in cache
    "panel_at c_block "  # where a worker's panel begins, or 0; input channels of one
    "group_step group_tasks "  # groups of a task, tasks along them
    "positions vectors v_step v_tasks "  # flat: output positions, vectors in all, of a task, and tasks
    "weights_stay "  # flat: whether images change before channels do
    "turned turned_j turned_taps block_at "  # flat: of weights that are to be turned, a term's step or 0, a row's, where taps lie; where a worker packs them
    "left K "  # flat: positions beyond the vectors, products of a sum
    "last_masked "  # flat: whether only the last tile has masks, since nothing is padded: images may follow one another
    "od oh ow "  # slab: output size
    "box_d box_h box_w boxes_d boxes_h boxes_w "  # a box's sides, and how many there are
    "size_w before_w "  # length of an input row, and padding before it
    "stride_d stride_h stride_w "
    "phases_d phases_h phases_w "  # phases the slab holds along each axis
    "reach_d reach_h reach_w "  # rows of a phase beyond the box's own
    "pitch_d pitch_h pitch_c phase_d phase_h phase_w "  # the slab's strides: plane, row, channel (flat: too), phases
    "wanted_w "  # a bit for each phase of a row that the slab holds
    "map_h map_w "  # where the maps of rows and columns begin
    "given "  # direct: address of the weights that are to be packed
    "out_h out_w "  # direct: outputs along the inner axes
    "step_d step_h step_w "  # direct: elements from what an output reads to what the next one along an axis does
    "p_step p_tasks k_block "  # direct: positions of a task, tasks along them, terms that are summed at a time
    "v_first v_stop "  # direct: which vectors of output channels have their weights packed
    "bias_at sums_at "  # direct: where a worker's bias and its sums begin
    "fetched "  # whether what is written is fetched: it lies beyond the cache, and sums are short
    "past "  # whether results go past the caches, which they would fill
    "borders "  # whether padding holds elements of the input (all modes but zeros)
)
# What lies before a panel: slots of its vectors, and before these a length and a place for each row it is made of.
SLOTS_BYTES, SEGMENT_BYTES = 128, 16

ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)


@register_jitable
def fill_row(T, size, lanes, a, to, x, row, missing, maps, phases, w0, count):  # type: ignore[no-untyped-def]
    """All phases of one row of the slab, from the input's row at element `row`, or zeros if that is `missing`.

    Vectors run over the row's end: into the next one, which is written after it, or beyond the last one.
    """
    s = a.stride_w
    # Element j of the row is column w0 * s + j of the padded input: the input's own are those from low to high.
    low = a.before_w - w0 * s
    high = low if missing else low + a.size_w
    source = x + size * (row - low * a.x_w)
    step = size * a.phase_w
    coming = (
        source + size * a.x_c
    )  # the row of the next channel; without it 16 images take 1.3 to 1.5 times as long
    begin, end = (0, 0) if missing else (max(low, 0), min(high, count))
    # Loops count by hand: how often a range of a step that is no constant goes round takes a division, 15 cycles of 60.
    i = 0
    if a.x_w == 1 and s == 1 and (missing or end - begin >= lanes):
        # Whole vectors, the last of which ends with the row: masks would take longer than all the rest.
        while i < begin:
            copy_phases(T, 1, to + size * i, step, 1, to, 0, 0)
            i += lanes
        # None runs on beyond the row where it holds a vector: behind the last row may lie what another worker copies.
        i = end
        while i < count:
            copy_phases(T, 1, to + size * max(min(i, count - lanes), 0), step, 1, to, 0, 0)
            i += lanes
        i = begin
        while i < end:
            i = min(i, end - lanes)
            fetch(coming + size * i)
            copy_phases(T, 1, to + size * i, step, 1, source + size * i, 0, lanes)
            i += lanes
    elif a.x_w == 1 and s == 1:
        while i < count:
            fetch(coming + size * i)
            copy_phases(T, 1, to + size * i, step, 1, source + size * i, low - i, high - i)
            i += lanes
    elif a.x_w == 1 and s == 2:
        while i < count:
            j = 2 * i
            fetch(coming + size * j)
            fetch(coming + size * j + 64)
            copy_phases(T, 2, to + size * i, step, a.wanted_w, source + size * j, low - j, high - j)
            i += lanes
    elif a.x_w == 1 and s == 4:
        while i < count:
            j = 4 * i
            for r in range(4):
                fetch(coming + size * j + 64 * r)
            copy_phases(T, 4, to + size * i, step, a.wanted_w, source + size * j, low - j, high - j)
            i += lanes
    else:
        for k in range(a.phases_w):
            row_to = carray(pointer(to + step * k, T), 1 << 40)
            j = phases[a.phases_d + a.phases_h + k]
            for i in range(count):
                row_to[i] = element(x + size * (row + (j - low) * a.x_w), T) if low <= j < high else 0
                j += s
    if a.borders and not missing:
        for k in range(a.phases_w):
            row_to = carray(pointer(to + step * k, T), 1 << 40)
            j = phases[a.phases_d + a.phases_h + k]
            for i in range(count):
                if j < low or j >= high:
                    w = maps[a.map_w + w0 * s + j]
                    if w >= 0:
                        row_to[i] = element(x + size * (row + w * a.x_w), T)
                j += s


@register_jitable
def fill_pixels(T, size, lanes, a, c0, c1, to, x, row, missing, maps, phases, stage, w0, count):  # type: ignore[no-untyped-def]
    """As :func:`fill_row`, for all channels of an input whose channels are neighbours: pixels are read, rows written."""
    for k in range(a.phases_w):
        phase = phases[a.phases_d + a.phases_h + k]
        for i in range(0, count, lanes):
            pixels = min(lanes, count - i)
            for c in range(c0, c1, lanes):
                channels = min(lanes, c1 - c)
                for p in range(pixels):
                    w = maps[a.map_w + (w0 + i + p) * a.stride_w + phase]
                    there = 0 if missing or w < 0 else channels
                    pixel = x + size * (row + w * a.x_w + c)
                    fetch(pixel + 2 * lanes * a.stride_w * size * a.x_w)
                    copy_phases(T, 1, stage + size * lanes * p, 0, 1, pixel, 0, there)
                store_transposed(
                    T, to + size * (c * a.pitch_c + k * a.phase_w + i), a.pitch_c, stage, channels, pixels, 0
                )


@register_jitable
def fill_slab(T, size, lanes, a, c0, c1, slab, x, maps, phases, stage, d0, h0, w0, nd, nh, nw):  # type: ignore[no-untyped-def]
    """Copy what a box of nd x nh x nw positions at (d0, h0, w0) reads of channels c0 to c1 - 1 of `x`."""
    nd, nh, nw = nd + a.reach_d, nh + a.reach_h, nw + a.reach_w
    channels_last = a.x_c == 1 and a.x_w > 1 and 2 * (c1 - c0) >= lanes
    # Rows of one channel after the other, or of all channels at once.
    for c in range(c0, c0 + 1 if channels_last else c1):
        for i in range(a.phases_d):
            for qd in range(nd):
                d = maps[(d0 + qd) * a.stride_d + phases[i]]
                for j in range(a.phases_h):
                    for qh in range(nh):
                        h = maps[a.map_h + (h0 + qh) * a.stride_h + phases[a.phases_d + j]]
                        missing = d < 0 or h < 0
                        if channels_last:
                            to = i * a.phase_d + qd * a.pitch_d + j * a.phase_h + qh * a.pitch_h
                            row = d * a.x_d + h * a.x_h
                            fill_pixels(
                                T,
                                size,
                                lanes,
                                a,
                                c0,
                                c1,
                                slab + size * to,
                                x,
                                row,
                                missing,
                                maps,
                                phases,
                                stage,
                                w0,
                                nw,
                            )
                            continue
                        to = c * a.pitch_c + i * a.phase_d + qd * a.pitch_d + j * a.phase_h + qh * a.pitch_h
                        row = c * a.x_c + d * a.x_d + h * a.x_h
                        fill_row(T, size, lanes, a, slab + size * to, x, row, missing, maps, phases, w0, nw)


@register_jitable
def fill_slots(a, slots, lanes, d0, h0, w0, nd, nh, nw):  # type: ignore[no-untyped-def]
    """The vectors of a box: where each reads and writes. Returns how many there are.

    A vector begins at the first position that is left and takes as much of its row as it holds; what it then
    reads beyond the row's end may hold the beginning of the next row, which it takes too.
    """
    count = 0
    d, h, w = 0, 0, 0
    while d < nd:
        at = d * a.pitch_d + h * a.pitch_h + w
        y0 = ((d0 + d) * a.oh + h0 + h) * a.ow + w0 + w
        n0 = min(lanes, nw - w)
        mask0 = (1 << n0) - 1
        y1, mask1 = 0, 0
        w += n0
        if w == nw:
            gap = a.pitch_h - nw
            w, h = 0, h + 1
            if h == nh:
                gap = a.pitch_d - (nh - 1) * a.pitch_h - nw
                h, d = 0, d + 1
            lane = n0 + gap
            if d < nd and gap >= 0 and lane < lanes:
                n1 = min(lanes - lane, nw)
                mask1 = ((1 << n1) - 1) << lane
                y1 = ((d0 + d) * a.oh + h0 + h) * a.ow + w0 - lane
                w = n1
                if w == nw:
                    w, h = 0, h + 1
                    if h == nh:
                        h, d = 0, d + 1
        slots[count, 0], slots[count, 1], slots[count, 2] = at, y0, mask0
        slots[count, 3], slots[count, 4] = y1, mask1
        count += 1
    return count


@register_jitable
def fill_segments(a, segments, p, stop, nh, nw):  # type: ignore[no-untyped-def]
    """Where a slab holds positions p to stop - 1 of a box, row by row: (at, length). Returns how many there are."""
    count = 0
    h, w = divmod(p, nw)
    d, h = divmod(h, nh)
    while p < stop:
        n = min(nw - w, stop - p)
        segments[count, 0], segments[count, 1] = d * a.pitch_d + h * a.pitch_h + w, n
        count += 1
        p += n
        w, h = 0, h + 1
        if h == nh:
            d, h = d + 1, 0
    return count


@register_jitable
def next_tile(left):  # type: ignore[no-untyped-def]
    """Vectors of the next tile where `left` are left: of the last four two, as one alone takes as long as two."""
    return 2 if left == 4 else min(left, VECTORS)


@register_jitable
def fill_own(a, slots, lanes, i, r, left):  # type: ignore[no-untyped-def]
    """Where a panel's vectors write: slots for the next `left` positions, from r of image i on. Returns how many there are.

    Where the positions of all images follow one another they go on with the next image. The planner joins no images of less than a tile's positions, so a vector lies in two at most.
    """
    mv = next_tile((left + lanes - 1) // lanes)
    for m in range(mv):
        count = min(left - m * lanes, lanes)
        here = min(count, a.y_c - r)
        slots[m, 1], slots[m, 2] = i * a.y_n + r, (1 << here) - 1
        slots[m, 3], slots[m, 4] = (i + 1) * a.y_n - here, (1 << count) - (1 << here)
        r += lanes
        if r >= a.y_c:
            i, r = i + 1, r - a.y_c
    return mv


@register_jitable
def fetch_rows(to, step, nbytes, rows):  # type: ignore[no-untyped-def]
    """Fetch where a tile's rows of so many bytes begin and end, `step` bytes apart: what it writes lies beyond the cache."""
    for _ in range(rows):
        fetch(to)
        fetch(to + nbytes - 1)
        to += step


@register_jitable
def sum_panel(T, NS, size, lanes, a, mv, c0, count, at_panel, y, w, w_row, bias, o0, o1, ahead, offsets):  # type: ignore[no-untyped-def]
    """A panel's sums over input channels c0 to c0 + count - 1, for output channels o0 to o1 - 1, whose weights begin at w.

    Meanwhile what the next one holds is fetched from `ahead`: channels lie pages apart, and to wait for them took 27 to
    44 cycles a term. So is what a tile will write: 1.4 times as fast with 27 products a sum, 1.05 with 256.
    """
    last = c0 + count == a.c
    terms = count * a.taps
    share = terms // ((o1 - o0 + NS - 1) // NS) + 1
    width = size * VECTORS * lanes
    slots = at_panel - SLOTS_BYTES
    at_y0 = carray(pointer(slots, types.int64), 2)[1]
    end = ahead + width - 1  # the next tile's first bytes are mostly in a line that this one's panel has read
    t, left = 0, terms if ahead else 0
    for o in range(o0, o1, NS):
        for _ in range(min(share, left)):
            line = end + size * offsets[t]
            for byte in range(0, width, 64):
                fetch_later(line - byte)
            t += 1
            if t == a.taps:
                t, end = 0, end + size * a.pitch_c
        left -= share
        rows = min(NS, o1 - o)
        if not a.past:
            fetch_rows(y + size * (o * a.y_c + at_y0), size * a.y_c, width, rows)
        at_w, to = w + size * ((o - o0) // NS) * w_row, y + size * o * a.y_c
        b, past = bias + size * o if bias and last else 0, a.past if last else 0
        if a.w_k == 1:
            tile_in_a_row(NS, 1, T, mv, terms, at_panel, slots, at_w, a.w_j, to, a.y_c, rows, b, c0 > 0, past)
        else:
            tile_in_a_row(NS, NS, T, mv, terms, at_panel, slots, at_w, 1, to, a.y_c, rows, b, c0 > 0, past)


def copy(T: Any) -> Any:
    """Tasks of copying whole images to slabs: some channels of an image."""
    size = T.bitwidth // 8
    lanes = host().width // size

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        maps = carray(pointer(a.maps, types.int64), 1 << 40)
        phases = carray(pointer(a.phases, types.int64), 1 << 40)
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            n, c0 = divmod(task, a.c_tasks)
            c1 = (c0 + 1) * a.channels // a.c_tasks
            c0 = c0 * a.channels // a.c_tasks
            at_slab, at_x = a.copied + size * n * a.copied_n, a.x + size * n * a.x_n
            stage = a.scratch + worker * a.scratch_size + a.stage_at
            fill_slab(
                T, size, lanes, a, c0, c1, at_slab, at_x, maps, phases, stage, 0, 0, 0, a.od, a.oh, a.ow
            )

    return work


def slab(T: Any) -> Any:
    """Tasks of any direct convolution for elements of type T: one image, some groups, a box, some channels."""
    size = T.bitwidth // 8
    lanes = host().width // size
    NS = scalars(host())

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        at_slab = a.scratch + worker * a.scratch_size
        at_slots = at_slab + a.slots_at
        stage = at_slab + a.stage_at
        slots = carray(pointer(at_slots, types.int64), (1 << 40, SLOT))
        at_panel = at_slab + a.panel_at
        at_segments = at_panel - SLOTS_BYTES - SEGMENT_BYTES * VECTORS * lanes
        own = carray(pointer(at_panel - SLOTS_BYTES, types.int64), (VECTORS, SLOT))
        segments = carray(pointer(at_segments, types.int64), (VECTORS * lanes, 2))
        offsets = carray(pointer(a.offsets, types.int32), a.taps)
        maps = carray(pointer(a.maps, types.int64), 1 << 40)
        phases = carray(pointer(a.phases, types.int64), 1 << 40)
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            task, w0 = divmod(task, a.boxes_w)
            task, h0 = divmod(task, a.boxes_h)
            task, d0 = divmod(task, a.boxes_d)
            task, n = divmod(task, a.batch)
            g0, o0 = divmod(task, a.o_tasks)
            d0, h0, w0 = d0 * a.box_d, h0 * a.box_h, w0 * a.box_w
            nd, nh, nw = min(a.box_d, a.od - d0), min(a.box_h, a.oh - h0), min(a.box_w, a.ow - w0)
            o0 *= a.o_step
            o1 = min(o0 + a.o_step, a.o)
            g0 *= a.group_step
            count = 0 if a.panel_at else fill_slots(a, slots, lanes, d0, h0, w0, nd, nh, nw)
            for g in range(g0, min(g0 + a.group_step, a.groups)):
                if a.copied:
                    begin = n * a.copied_n + g * a.c * a.pitch_c + d0 * a.pitch_d + h0 * a.pitch_h + w0
                    at_slab = a.copied + size * begin
                else:
                    at_x = a.x + size * (n * a.x_n + g * a.x_group)
                    fill_slab(
                        T, size, lanes, a, 0, a.c, at_slab, at_x, maps, phases, stage, d0, h0, w0, nd, nh, nw
                    )
                at_y = a.y + size * (n * a.y_n + g * a.o * a.y_c)
                at_w = a.w + size * g * a.w_group
                at_bias = a.bias + size * g * a.o if a.bias else 0
                if a.panel_at:
                    y0 = ((d0 * a.oh) + h0) * a.ow + w0
                    positions = nd * nh * nw
                    for c0 in range(0, a.c, a.c_block):
                        some = min(a.c_block, a.c - c0)
                        at_c = at_slab + size * c0 * a.pitch_c
                        p = 0
                        while p < positions:
                            mv = fill_own(a, own, lanes, 0, y0 + p, positions - p)
                            stop = min(p + mv * lanes, positions)
                            rows = fill_segments(a, segments, p, stop, nh, nw)
                            panel_rows(
                                T, some, a.taps, a.pitch_c, at_c, a.offsets, at_segments, rows, at_panel
                            )
                            p = stop
                            sum_panel(
                                T,
                                NS,
                                size,
                                lanes,
                                a,
                                mv,
                                c0,
                                some,
                                at_panel,
                                at_y,
                                at_w + size * (o0 // NS * a.w_row + c0 * a.taps * a.w_k),
                                a.w_row,
                                at_bias,
                                o0,
                                o1,
                                0,
                                offsets,
                            )
                    continue
                for o2 in range(o0, o1, a.o_block):
                    for m in range(0, count, VECTORS):
                        for o in range(o2, min(o2 + a.o_block, o1), NS):
                            rows = min(NS, o1 - o)
                            to, w = at_y + size * o * a.y_c, at_w + size * (o // NS) * a.w_row
                            b = at_bias + size * o if at_bias else 0
                            if a.fetched and m + VECTORS < count:
                                ahead = to + size * slots[m + VECTORS, 1]
                                for _ in range(rows):
                                    for v in range(VECTORS):
                                        fetch(ahead + size * lanes * v)
                                    ahead += size * a.y_c
                            tile(
                                NS, BY_OFFSETS, T, min(count - m, VECTORS), a.c, a.taps, a.pitch_c, at_slab, a.offsets, 0,
                                at_slots + 8 * SLOT * m, w, a.w_j, a.w_k, to, a.y_c, rows, b, 0, a.past,
                            )  # fmt: skip

    return work


@register_jitable
def gather(T, size, lanes, a, to, x, offsets):  # type: ignore[no-untyped-def]
    """The columns of the positions beyond the last vector, one after the other (no masks: no padding)."""
    column = carray(pointer(to, T), a.left * a.K)
    for p in range(a.left):
        at = x + size * (a.vectors * lanes + p)
        for c in range(a.c):
            for t in range(a.taps):
                column[p * a.K + c * a.taps + t] = element(at + size * (c * a.pitch_c + offsets[t]), T)


@register_jitable
def masks_of(v, taps):  # type: ignore[no-untyped-def]
    """How many bytes into the table the masks of the tile lie that begins with vector v: v is 3 i, or the last, 3 i - 1."""
    return 2 * VECTORS * taps * ((v + 2) // VECTORS)


def flat(T: Any) -> Any:
    """Tasks of a convolution whose output is as large as its input: some channels and vectors of an image."""
    size = T.bitwidth // 8
    lanes = host().width // size
    NS = scalars(host())
    every = (1 << lanes) - 1

    def work(worker, arguments):  # type: ignore[no-untyped-def]
        a = carray(pointer(arguments, RECORD), 1)[0]
        at_slots = a.scratch + worker * a.scratch_size
        slots = carray(pointer(at_slots, types.int64), (VECTORS, SLOT))
        offsets = carray(pointer(a.offsets, types.int32), a.taps)
        turned_taps = carray(pointer(a.turned_taps, types.int64), a.taps)
        at_column = at_slots + 128
        at_panel = at_slots + a.panel_at
        at_segments = at_panel - SLOTS_BYTES - SEGMENT_BYTES * VECTORS * lanes
        own = carray(pointer(at_panel - SLOTS_BYTES, types.int64), (VECTORS, SLOT))
        segments = carray(pointer(at_segments, types.int64), (VECTORS * lanes, 2))
        while True:
            task = next_task(arguments, worker)
            if task >= a.stop:
                return
            task, v0 = divmod(task, a.v_tasks)
            if a.weights_stay:
                task, n = divmod(task, a.batch)
                g0, o0 = divmod(task, a.o_tasks)
            else:
                task, o0 = divmod(task, a.o_tasks)
                n, g0 = divmod(task, a.group_tasks)
            o0 *= a.o_step
            o1 = min(o0 + a.o_step, a.o)
            v0 *= a.v_step
            v1 = min(v0 + a.v_step, a.vectors)
            g0 *= a.group_step
            for g in range(g0, min(g0 + a.group_step, a.groups)):
                at_x = a.x + size * (n * a.x_n + g * a.x_group)
                at_y = a.y + size * (n * a.y_n + g * a.o * a.y_c)
                at_w = a.w + size * g * a.w_group
                at_bias = a.bias + size * g * a.o if a.bias else 0
                if v1 == a.vectors and a.left:
                    column = at_x  # a single position's are one already
                    if a.y_c > 1:
                        column = at_column
                        gather(T, size, lanes, a, column, at_x, offsets)
                    for o in range(o0, o1, NS):
                        b = at_bias + size * o if at_bias else 0
                        for p in range(0, a.left, 2):
                            dots(
                                NS, T, a.K, column + size * p * a.K, a.K, at_w + size * o * a.K, a.K,
                                at_y + size * (o * a.y_c + a.vectors * lanes + p), a.y_c, min(NS, o1 - o), b,
                                a.left - p,
                            )  # fmt: skip
                if a.panel_at:
                    for c0 in range(0, a.c, a.c_block):
                        some = min(a.c_block, a.c - c0)
                        at_c = at_x + size * c0 * a.pitch_c
                        if a.turned:
                            w, w_row = at_slots + a.block_at, some * a.taps * NS
                            for t in range(a.taps):
                                pack_weights(
                                    NS, T, w + size * t * NS, a.taps * NS, w_row,
                                    at_w + size * (c0 * a.turned + o0 * a.turned_j + turned_taps[t]),
                                    a.turned, a.turned_j, some, o1 - o0,
                                )  # fmt: skip
                        else:
                            w, w_row = (
                                at_w + size * (o0 // NS * a.w_row + c0 * a.taps * a.w_k),
                                a.w_row,
                            )
                        v = v0
                        while v < v1:
                            p = v * lanes
                            i, r = divmod(p, a.y_c)
                            mv = fill_own(a, own, lanes, i, r, min(v1 * lanes, a.positions) - p)
                            count = min(mv * lanes, a.positions - p)
                            whole = a.last_masked and p + VECTORS * lanes <= a.positions
                            masks = a.masks + (0 if a.last_masked else masks_of(v, a.taps))
                            at_v = at_c + size * (i * a.x_n + r)
                            if r + count > a.y_c:
                                segments[0, 0], segments[0, 1] = 0, a.y_c - r
                                segments[1, 0], segments[1, 1] = a.x_n - r, r + count - a.y_c
                                panel_rows(
                                    T, some, a.taps, a.pitch_c, at_v, a.offsets, at_segments, 2, at_panel
                                )
                            elif whole:
                                panel(0, T, some, a.taps, a.pitch_c, at_v, a.offsets, 0, at_panel)
                            else:
                                panel(1, T, some, a.taps, a.pitch_c, at_v, a.offsets, masks, at_panel)
                            v += mv
                            i, r = divmod(v * lanes, a.y_c) if v < v1 else (0, v0 * lanes)
                            ahead = (at_c if v < v1 else at_c + size * some * a.pitch_c) + size * (
                                i * a.x_n + r
                            )
                            sum_panel(
                                T, NS, size, lanes, a, mv, c0, some, at_panel, at_y, w, w_row, at_bias, o0, o1,
                                ahead, offsets,
                            )  # fmt: skip
                    continue
                v = v0
                while v < v1:
                    mv = next_tile(v1 - v)
                    for m in range(mv):
                        at = (v + m) * lanes
                        left = a.positions - at
                        if left < lanes and not a.masks:  # the last vector ends with the plane
                            back = lanes - left
                            slots[m, 0], slots[m, 1], slots[m, 2] = at - back, at - back, every & -(1 << back)
                        else:
                            slots[m, 0], slots[m, 1], slots[m, 2] = at, at, (1 << min(left, lanes)) - 1
                        slots[m, 3], slots[m, 4] = 0, 0
                    masks = a.masks + masks_of(v, a.taps)
                    v += mv
                    for o in range(o0, o1, NS):
                        rows = min(NS, o1 - o)
                        to, w = at_y + size * o * a.y_c, at_w + size * (o // NS) * a.w_row
                        b = at_bias + size * o if at_bias else 0
                        if a.masks:
                            tile(
                                NS, MASKED, T, mv, a.c, a.taps, a.pitch_c, at_x, a.offsets, masks,
                                at_slots, w, a.w_j, a.w_k, to, a.y_c, rows, b, 0, a.past,
                            )  # fmt: skip
                        else:
                            tile(
                                NS, BY_OFFSETS, T, mv, a.c, a.taps, a.pitch_c, at_x, a.offsets, 0,
                                at_slots, w, a.w_j, a.w_k, to, a.y_c, rows, b, 0, a.past,
                            )  # fmt: skip

    return work
