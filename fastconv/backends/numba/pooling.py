"""Pooling, planned: which way the vectors lie, the tables, and types that kernels do not know."""

from __future__ import annotations

import math

import numpy as np

from fastconv.backends import Planner, Run, Unsupported
from fastconv.backends.numba import cost, jit, slabs, threads
from fastconv.backends.numba.depthwise import TABLE_BYTES, begins, table
from fastconv.backends.numba.geometry import Geometry, lift
from fastconv.backends.numba.kernels import pool as kernels
from fastconv.backends.numba.kernels import windows
from fastconv.backends.numba.kernels.pool import ARGMAX, MAX, SLOT, SUM
from fastconv.backends.numba.operands import ALIGNMENT, Array, address, begun, scratch, set_fields
from fastconv.spec import DTYPES, PoolSpec

TAPS = [jit.Kernel(kernels.taps(op)) for op in (SUM, MAX, ARGMAX)]
ROWS = {
    (op, k, pair): jit.Kernel(windows.rows(op, k, pair))
    for op in (SUM, MAX, ARGMAX)
    for k in (2, 3)
    for pair in (0, 1)
}
FLAT = [jit.Kernel(windows.flat(op)) for op in (SUM, MAX, ARGMAX)]
PLANES = [jit.Kernel(kernels.planes(op)) for op in (SUM, MAX)]
CELLS = [jit.Kernel(kernels.cells(op)) for op in (SUM, MAX, ARGMAX)]

# Planes are cast and finished in pieces of about this size, which stay in a core's cache.
PIECE_BYTES = 512 << 10

# A task takes about this long, so that starting it (0.3 us) does not show.
TASK_SECONDS = 10e-6

# What fits the shared cache is read and written at this rate by one core.
CACHED_BYTES = 8e10

# Rows of outputs are taken so many at a time that what they read stays in the L1 cache from strip to strip. As many
# bytes are asked for ahead, fewer for small planes: 2048 planes of 112 x 112 take 3.7 ms, and 5.2 without.
BLOCK_BYTES = 8 << 10
LEAST_AHEAD = 2 << 10

# Of planes of one strip so many rows of outputs are taken at once.
GROUP_ROWS = 64

# Cycles of one tap of a vector, at stride 1 and 2, and of one window beyond its elements.
TAP_CYCLES = {1: 2.0, 2: 4.0}
CELL_CYCLES = 40

# Cycles of a vector of 2 x 2 or 3 x 3 windows, by op, and of a strip of them.
ROW_CYCLES, FLAT_CYCLES = (8, 7, 20), (9, 7, 23)
STRIP_CYCLES = 30

COUNT = kernels.FIELD["planes"]


def computed(spec: PoolSpec) -> str:
    """The type windows are reduced in.

    Integers are added exactly and divided once; those of 64 bits, whose sums could wrap, as numpy.mean does.
    """
    row = DTYPES[spec.dtype]
    if row.kind == "f":
        return row.accumulate
    if spec.mode == "max":
        return "int32" if row.itemsize < 4 or spec.dtype == "int32" else "int64"
    return "float64" if spec.mode == "lp" or row.itemsize == 8 else "int64"


def geometry(spec: PoolSpec) -> Geometry:
    """A pool's windows on three axes."""
    return Geometry(
        size=lift(spec.in_size, 1),
        out=lift(spec.out_size, 1),
        kernel=lift(spec.kernel_size, 1),
        stride=lift(spec.stride, 1),
        dilation=lift(spec.dilation, 1),
        before=lift(tuple(before for before, _ in spec.padding), 0),
        after=(0, 0, 0),
        c=1,
        o=1,
    )


def factors(spec: PoolSpec) -> list[tuple[int, ...]]:
    """What outputs are divided by along each axis; a sum of powers is scaled where its root is taken."""
    if spec.mode == "avg" and not spec.divisor_override:
        return [spec.divisors(axis) for axis in range(spec.rank)]
    *ones, last = ((1,) * count for count in spec.out_size)
    return [*ones, (spec.divisor_override,) * len(last) if spec.mode == "avg" else last]


def divisors(spec: PoolSpec, dtype: str) -> Array:
    """What each output of a plane is divided by."""
    product = np.ones((), dtype)
    for axis in factors(spec):
        product = np.multiply.outer(product, np.array(axis, dtype))
    return product


def quotient(spec: PoolSpec) -> dict[str, Array]:
    """The table of divisors, if kernels divide: sums of floats."""
    wide = computed(spec)
    return {} if spec.mode == "max" or DTYPES[wide].kind != "f" else {"divisors": divisors(spec, wide)}


def lp_scale(spec: PoolSpec) -> Array:
    """What torch multiplies a window's sum by: the kernel's size over the elements the window kept."""
    kept = np.ones(())
    for axis in range(spec.rank):
        kept = np.multiply.outer(kept, np.array([len(window) for window in spec.windows(axis)], float))
    return math.prod(spec.kernel_size) / kept


def bins(spec: PoolSpec) -> list[Array]:
    """First element, count and step of every window along three axes."""
    found = [np.array([(0, 1, 1)], np.int64)] * (3 - spec.rank)
    for axis in range(spec.rank):
        rows = [(window.start, len(window), window.step) for window in spec.windows(axis)]
        found.append(np.array(rows, np.int64))
    return found


def run(
    spec: PoolSpec,
    kernel: jit.Kernel,
    tables: dict[str, Array],
    cycles: float,
    limit: int | None,
    **more: int,
) -> Run:
    """The run of a kernel on planes of the type it computes in, or cast to it piece by piece."""
    wide = computed(spec)
    itemsize = DTYPES[wide].itemsize
    plane, plane_out = math.prod(spec.in_size), math.prod(spec.out_size)
    planes = spec.batch * spec.channels
    moved = (plane + plane_out) * itemsize + 8 * plane_out * spec.indices
    rate = CACHED_BYTES if planes * moved < cost.SHARED_CACHE else cost.BYTES
    channel = max(cycles * cost.CYCLE * cost.SLOWER[wide], moved / rate)
    group = more.get("group", 1)
    step = -(-min(max(int(TASK_SECONDS / channel), 1), max(planes, 1)) // group) * group
    division = divisors(spec, "float64") if spec.mode == "avg" and DTYPES[wide].kind != "f" else None
    # In the type that is computed in: NumPy would buffer what it multiplies by another.
    scale = lp_scale(spec).astype(wide) if spec.mode == "lp" else None
    _, h, w = lift(spec.in_size, 1)
    od, oh, ow = lift(spec.out_size, 1)
    _, before_h, before_w = lift(tuple(before for before, _ in spec.padding), 0)
    template = np.zeros(1, kernels.ARGUMENTS)
    values = {
        **{name: address(array) for name, array in tables.items()},
        "plane": plane, "plane_out": plane_out, "planes_step": step,
        "h": h, "w": w, "od": od, "oh": oh, "ow": ow, "before_h": before_h, "before_w": before_w,
        "ahead": min(max(4 * plane * itemsize, LEAST_AHEAD), BLOCK_BYTES), **more,
    }  # fmt: skip
    set_fields(template, **values)
    fields = template.view(np.int64)
    as_is = spec.dtype == wide and spec.out_dtype == wide and spec.mode != "lp"

    def reduce(x: int, y: int, indices: int, count: int) -> None:
        a = begun(fields, x, y, indices)
        a[COUNT] = count
        tasks = -(-count // step)
        threads.launch(kernel.address(wide), a, tasks, threads.workers(tasks), count * channel)

    reduce.tables = tables  # type: ignore[attr-defined]

    # Planes that are cast, or brought in order, at a time.
    each = (plane + plane_out) * itemsize
    piece = max(min(PIECE_BYTES // each, planes), 1)
    if limit is not None and not as_is:
        if each + ALIGNMENT > limit:
            raise Unsupported(
                f"needs {each + ALIGNMENT} bytes for one plane in {wide}", workspace=each + ALIGNMENT
            )
        piece = min(piece, (limit - ALIGNMENT) // each)

    def finish(values: Array, result: Array) -> None:
        if scale is not None:
            np.power(np.multiply(values, scale, out=values), 1 / spec.norm_type, out=values)
        elif division is not None:
            np.copyto(result, values / division, casting="unsafe")
            return
        elif spec.dtype == "uint64" and spec.mode == "max":
            np.copyto(result, values.view("uint64") ^ np.uint64(1 << 63))
            return
        np.copyto(result, values, casting="unsafe")

    def in_order(x: Array, y: int, indices: int) -> None:
        order, lanes = slabs.orderer(wide, spec.channels, spec.in_size), cost.lanes(wide)
        some = min(max(piece // lanes, 1) * lanes, spec.channels)
        _held, at = scratch(some * plane * itemsize)
        for n in range(spec.batch):
            for c in range(0, spec.channels, some):
                count, done = min(some, spec.channels - c), (n * spec.channels + c) * plane_out
                order(x, n, c, count, at)
                reduce(at, y + itemsize * done, indices and indices + 8 * done, count)

    def call(x: Array, y: Array, indices: Array | None = None) -> None:
        if not planes:
            return
        at_indices = address(indices)
        if as_is and x.flags.c_contiguous:
            reduce(address(x), address(y), at_indices, planes)
            return
        if as_is and slabs.channels_last(x):
            in_order(x, address(y), at_indices)
            return
        held, _ = scratch(piece * each - ALIGNMENT)
        part = held[: piece * plane * itemsize].view(wide).reshape(piece, *spec.in_size)
        made = held[piece * plane * itemsize : piece * each].view(wide).reshape(piece, *spec.out_size)
        result = y.reshape(planes, *spec.out_size)
        for p in range(0, planes, piece):
            count = min(piece, planes - p)
            for i in range(count):
                source = x[divmod(p + i, spec.channels)]
                if spec.dtype == "uint64" and spec.mode == "max":  # the order of int64, upside down
                    np.bitwise_xor(source, np.uint64(1 << 63), out=part[i].view("uint64"))
                else:
                    np.copyto(part[i], source, casting="unsafe")
            if spec.mode == "lp":
                np.power(np.abs(part[:count], out=part[:count]), spec.norm_type, out=part[:count])
            reduce(address(part), address(made), at_indices and at_indices + 8 * p * plane_out, count)
            finish(made[:count], result[p : p + count])

    return Run(
        call=call,
        seconds=planes * channel + cost.CALL_SECONDS,
        at_once=max(-(-planes // step), 1),
        shared=0 if as_is else piece * each,
        note="" if as_is else f"{piece} planes at a time in {wide}",
    )


def op_of(spec: PoolSpec) -> int:
    return (ARGMAX if spec.indices else MAX) if spec.mode == "max" else SUM


def firsts(g: Geometry, lanes: int, offsets: Array, slots: Array, masks: Array) -> Array:
    """The place of the first element of every window, for all lanes of every vector."""
    step, lane = g.stride[2], np.arange(lanes)
    seen = masks.swapaxes(1, 2).reshape(-1, g.taps, 1) >> (step * lane).astype(np.uint32) & 1
    places = slots[:, :1] + step * lane + offsets[seen.argmax(axis=1)]
    return np.ascontiguousarray(places.astype(np.int32))


def taps(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Vectors along the outputs."""
    if spec.output_size:
        raise Unsupported("bins of an adaptive pool may differ in size")
    g = geometry(spec)
    if g.stride[2] not in TAP_CYCLES:
        raise Unsupported(f"needs a stride of 1 or 2 along rows, got {g.stride[2]}")
    lanes = cost.lanes(computed(spec))
    vectors = len(begins(g, lanes))
    if (nbytes := vectors * (4 * g.taps + 8 * SLOT)) > TABLE_BYTES or math.prod(g.size) >= 2**31:
        raise Unsupported(f"its table of masks would take {nbytes} bytes, more than {TABLE_BYTES}")
    offsets, slots, masks, inner = table(g, lanes)
    tables = {"offsets": offsets, "slots": slots, "masks": masks, "inner": inner, **quotient(spec)}
    if spec.indices:
        tables["firsts"] = firsts(g, lanes, offsets, slots, masks)
    cycles = len(slots) * (g.taps * TAP_CYCLES[g.stride[2]] + 12)
    return run(
        spec, TAPS[op_of(spec)], tables, cycles, workspace_limit,
        taps=g.taps, groups=len(inner), stride=g.stride[2],
    )  # fmt: skip


def square(g: Geometry, sizes: tuple[int, ...], stride: int) -> bool:
    """Whether windows are k x k, of a size that a micro-kernel was made for, at this stride."""
    k = g.kernel[2]
    plain = g.size[0] == 1 and g.dilation == (1, 1, 1) and math.prod(g.size) < 2**31
    return plain and k in sizes and g.kernel == (1, k, k) and g.stride[1:] == (stride, stride)


def strips(g: Geometry, count: int, lanes: int) -> Array:
    """The table of strips of `count` outputs; the last one ends with the row and repeats what others have.

    It comes first: what its vectors hold beyond the row is overwritten with the next one, and what the others' do, from
    left to right, by the strip on their right. But for the one beside it: that writes its outputs alone.
    """
    (_, _, w), (_, _, ow), k = g.size, g.out, g.kernel[2]
    begin = np.maximum(np.minimum(np.arange(0, ow, count), ow - count), 0)
    left = begin * windows.STRIDE - g.before[2]
    element = left[:, None] + np.arange(2 * lanes)
    inside = (element >= 0) & (element < w)
    low, high = (part @ (1 << np.arange(lanes)) for part in (inside[:, :lanes], inside[:, lanes:]))
    some = ~inside[:, : windows.STRIDE * (min(count, ow) - 1) + k].all(axis=1)
    whole = (np.arange(len(begin)) != len(begin) - 2) | (count == lanes)
    table = np.stack([left, begin, low | high << 32, some, whole], axis=1).astype(np.int64)
    return np.roll(table, 1, axis=0)


def segments(gaps: Array, group: int, nbytes: int) -> Array:
    """The table of segments of the rows of outputs of a group of planes: `gaps` tells which lack rows of their windows.

    What a segment reads, rows of `nbytes`, stays in the L1 cache from strip to strip; 0 where there is one strip.
    """
    if group > 1:
        gaps = np.full(group * len(gaps), gaps.any())
    block = max(BLOCK_BYTES // (windows.STRIDE * nbytes), 1) if nbytes else len(gaps)
    begins = np.union1d(np.arange(0, len(gaps), block), np.flatnonzero(np.diff(gaps)) + 1)
    return np.stack([begins, np.append(begins[1:], len(gaps)), gaps[begins]], axis=1).astype(np.int64)


def rows(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Vectors along the outputs of a row: windows of 2x2 and 3x3 at a stride of 2."""
    if spec.output_size or not square(g := geometry(spec), (2, 3), windows.STRIDE):
        raise Unsupported("needs windows of 2x2 or 3x3, a stride of 2 and no dilation")
    op, wide, k = op_of(spec), computed(spec), g.kernel[2]
    (_, h, w), (_, oh, ow), (_, before_h, before_w) = g.size, g.out, g.before
    lanes, itemsize = cost.lanes(wide), DTYPES[wide].itemsize
    pair = ow <= windows.outputs(k, True, lanes)
    table = strips(g, windows.outputs(k, pair, lanes), lanes)
    group = min(max(GROUP_ROWS // oh, 1), max(spec.batch * spec.channels, 1)) if len(table) == 1 else 1
    row = np.arange(oh)[:, None] * windows.STRIDE - before_h + np.arange(k)
    origin = np.arange(group)[:, None, None] * h * w
    tops = (np.clip(row, 0, h - 1) * w + origin) * itemsize  # a row twice does not change a maximum
    if op == SUM:
        tops[:, (row < 0) | (row >= h)] = -1
    origins = np.broadcast_to(origin, (group, oh, 1))
    tables = {"strips": table, "tops": np.concatenate([tops, origins], axis=2)}
    if op == SUM:
        tables["zeros"] = np.zeros(before_w + w + 4 * lanes, wide)[before_w:]
    if op == SUM and DTYPES[wide].kind == "f":
        *_, heights, widths = factors(spec)
        tables["divisors_h"] = np.array(heights * group, wide)
        ones = (1,) * lanes
        tables["divisors_w"] = np.array([*widths, *ones[ow : lanes // 2], *widths * pair, *ones], wide)
    cycles = len(table) * (oh / (1 + pair) * ROW_CYCLES[op] + STRIP_CYCLES)
    gaps = ((row < 0) | (row >= h)).any(axis=1)
    tables["segments"] = segments(gaps, group, w * itemsize if len(table) > 1 else 0)
    return run(
        spec, ROWS[op, k, pair], tables, cycles, workspace_limit,
        n_strips=len(table), n_segments=len(tables["segments"]), group=group, edge=-(-2 * lanes // min(w, ow)),
    )  # fmt: skip


def flat(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Vectors along all planes as one row: windows of 3x3 at stride 1, as many as there are elements."""
    g, op, wide = geometry(spec), op_of(spec), computed(spec)
    (_, h, w), lanes = g.size, cost.lanes(wide)
    if spec.output_size or not square(g, (windows.FLAT,), 1) or g.out != g.size or g.before[1:] != (1, 1):
        raise Unsupported("needs windows of 3x3, a stride of 1, a border of 1 and no dilation")
    if h * w < lanes or w < windows.FLAT:
        raise Unsupported(f"needs planes of {lanes} elements and rows of {windows.FLAT}")
    group = math.lcm(h * w, lanes) // (h * w)  # planes after which vectors begin where a plane does
    nbytes = group * h * w * (4 * windows.SIDES / lanes + (DTYPES[wide].itemsize if op == SUM else 0))
    if nbytes > TABLE_BYTES:
        raise Unsupported(f"its table of masks would take {nbytes:.0f} bytes, more than {TABLE_BYTES}")
    row, column = np.divmod(np.arange(group * h * w) % (h * w), w)
    there = np.stack([row > 0, row < h - 1, column > 0, column < w - 1])
    masks = there.reshape(windows.SIDES, -1, lanes) @ (1 << np.arange(lanes))
    # One vector more than there are is looked at.
    tables = {"masks": np.append(masks, masks[:, :1], axis=1).T.astype(np.uint32, "C")}
    step = 0
    for name, values in quotient(spec).items():
        step = 0 if (values == values.flat[0]).all() else lanes
        tables[name] = np.tile(values.ravel(), group) if step else np.full(lanes, values.flat[0])
    cycles = h * w / lanes * FLAT_CYCLES[op]
    return run(spec, FLAT[op], tables, cycles, workspace_limit, group=group, divisors_step=step)


def cells(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Vectors along the rows of a window."""
    tables = dict(zip(("bins_d", "bins_h", "bins_w"), bins(spec), strict=True)) | quotient(spec)
    outputs = math.prod(spec.out_size)
    elements = spec.flops() / max(spec.batch * spec.channels, 1)
    rows = elements / max(outputs, 1) / max(len(window) for window in spec.windows(spec.rank - 1))
    if not spec.indices and all(spec.windows(axis) == (range(n),) for axis, n in enumerate(spec.in_size)):
        vectors = -(-math.prod(spec.in_size) // cost.lanes(computed(spec)))
        return run(spec, PLANES[op_of(spec)], quotient(spec), 2 * vectors + 4, workspace_limit)
    cycles = outputs * (CELL_CYCLES + 4 * rows) + elements / (1 if spec.indices else 4)
    return run(spec, CELLS[op_of(spec)], tables, cycles, workspace_limit)


PLANNERS: tuple[Planner, ...] = (flat, rows, taps, cells)
