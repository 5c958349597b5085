"""Depthwise convolution, planned: the table of vectors and masks that all channels share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from fastconv.backends import Run, Unsupported
from fastconv.backends.numba import cost, implicit_gemm, jit, slabs, threads
from fastconv.backends.numba.geometry import Geometry, geometry, strides
from fastconv.backends.numba.kernels import depthwise as kernels
from fastconv.backends.numba.kernels.depthwise import ROWS, SLOT, TOGETHER, half, loads
from fastconv.backends.numba.operands import Array, address, begun, cast_images, contiguous, set_fields
from fastconv.spec import DTYPES, ConvSpec

KERNEL = jit.Kernel(kernels.depthwise)

# The table is made with the plan and kept with it.
TABLE_BYTES = 1 << 20

# Cycles of one tap of a vector: a load, a mask, an FMA; twice the loads and a shuffle at stride 2.
TAP_CYCLES = {1: 2.0, 2: 4.0}
VECTOR_CYCLES = 12

# Cycles of `ROWS` vectors of 3 x 3 taps, by stride and the rows that each holds.
ROWS_CYCLES = {(1, 1): 62, (1, 2): 60, (2, 1): 85, (2, 2): 80}

# A task takes about this long, so that starting it (0.3 us) does not show.
TASK_SECONDS = 10e-6


def in_a_row(g: Geometry) -> bool:
    """Whether a vector may run on from one row of outputs into the next."""
    same = g.stride == (1, 1, 1) and g.out[2] == g.size[2] and (g.out[1] == g.size[1] or g.out[0] == 1)
    return same or g.out[:2] == (1, 1)


def begins(g: Geometry, lanes: int) -> Array:
    """The first output position of every vector: all in a row where rows of input and output are as long."""
    positions = math.prod(g.out)
    if in_a_row(g):
        return np.arange(0, positions, lanes)
    rows = np.arange(0, positions, g.out[2])
    return (rows[:, None] + np.arange(0, g.out[2], lanes)).ravel()


def table(g: Geometry, lanes: int) -> tuple[Array, Array, Array, Array]:
    """Offsets of the taps; slots and masks of every vector; whether a group of vectors meets no border."""
    first = begins(g, lanes)
    positions = math.prod(g.out)
    stops = np.append(first[1:], positions)
    count = -(-len(first) // TOGETHER) * TOGETHER
    lane = np.arange(lanes)
    at = first[:, None] + lane
    valid = at < np.minimum(stops, first + lanes)[:, None]
    coordinates = np.unravel_index(np.minimum(at, positions - 1), g.out)
    step = strides(g.size)
    slots = np.zeros((count, SLOT), np.int64)
    start = [np.asarray(axis)[:, 0] for axis in coordinates]
    slots[: len(first), 0] = sum(
        (start[axis] * g.stride[axis] - g.before[axis]) * step[axis] for axis in range(3)
    )
    slots[: len(first), 1] = first
    slots[: len(first), 2] = valid @ (1 << lane)
    taps = list(itertools.product(*map(range, g.kernel)))
    offsets = [sum(k * g.dilation[axis] * step[axis] for axis, k in enumerate(tap)) for tap in taps]
    masks = np.zeros((count, g.taps), np.uint32)
    for t, tap in enumerate(taps):
        inside = valid.copy()
        for axis in range(3):
            place = coordinates[axis] * g.stride[axis] + tap[axis] * g.dilation[axis] - g.before[axis]
            inside &= (place >= 0) & (place < g.size[axis])
        masks[: len(first), t] = inside @ (np.uint64(1) << np.uint64(g.stride[2]) * lane.astype(np.uint64))
    # Every second element is read with those between them, and a vector with what follows its last lane.
    reads = slots[:, :1] + np.array(offsets)
    whole = (reads >= 0) & (reads + g.stride[2] * lanes <= math.prod(g.size))
    every = sum(1 << g.stride[2] * i for i in range(lanes))
    inner = ((masks == every) & whole).reshape(-1, TOGETHER * g.taps).all(axis=1)
    grouped = np.ascontiguousarray(masks.reshape(-1, TOGETHER, g.taps).swapaxes(1, 2))
    return np.array(offsets, np.int32), slots, grouped, inner.astype(np.int64)


def group_cycles(g: Geometry, held: int) -> float:
    """Cycles of one group of vectors, which hold so many rows each, or (none) any taps."""
    stride = g.stride[2]
    return ROWS_CYCLES[stride, held] if held else (TAP_CYCLES[stride] * g.taps + VECTOR_CYCLES) * TOGETHER


def rows_held(g: Geometry, lanes: int) -> int:
    """How many rows a vector holds where 3 x 3 taps are computed by rows; none where that is not, or is slower."""
    (_, oh, ow), stride = g.out, g.stride[2]
    if g.kernel != (1, 3, 3) or g.dilation[1:] != (1, 1) or g.stride[1] != stride or g.size[0] != 1:
        return 0
    held = 2 if ow <= half(stride, lanes) else 1
    if held == 1 and (oh < ROWS or (ow - 1) // lanes * lanes + lanes > 2 * ow):
        return 0  # a row's vector would reach beyond the next row
    by_rows = -(-oh // (ROWS * held)) * -(-ow // lanes) * group_cycles(g, held)
    by_taps = -(-len(begins(g, lanes)) // TOGETHER) * group_cycles(g, 0)
    return held if by_rows < by_taps else 0


def table_of_rows(g: Geometry, lanes: int, held: int) -> tuple[Array, Array, Array]:
    """Slots, masks and inner groups of ``ROWS`` vectors that hold a row each, or two that lie ``ROWS`` apart.

    A group's masks are its first column, the rows that are there, and the lanes of each vector of a row. What a row's
    vector holds beyond its end is written too, but for the plane's last row: from right to left and from top to bottom,
    all that it overwrites is yet to come. So the last groups begin where they end with the last row.
    """
    (_, oh, ow), (_, height, width), s = g.out, g.size, g.stride[2]
    begin_h, begin_w = np.arange(0, oh, ROWS * held), np.arange(0, ow, lanes)[::-1]
    if held == 1:
        begin_h = np.minimum(begin_h, oh - ROWS)
    h0, w0 = (axis.reshape(-1, 1) for axis in np.meshgrid(begin_h, begin_w, indexing="ij"))
    top, left = h0 * s - g.before[1], w0 * s - g.before[2]
    lane, rows = np.arange(lanes), np.arange(ROWS * held)
    row = top + np.arange(s * rows[-1] + 3)
    columns = [left + start + lane for start in loads(s, held == 2, lanes)]
    there, written = h0 + rows < oh, w0 + lane < ow
    if held == 1:
        written |= h0 + ROWS < oh
    seen = [(row >= 0) & (row < height), *((column >= 0) & (column < width) for column in columns)]
    whole = np.concatenate([written, *seen], axis=1).all(axis=1) & (held == 1)

    def bits(flags: Array) -> Array:
        return flags @ (1 << np.arange(flags.shape[1]))

    slots = [(top * width + left)[:, 0], (h0 * ow + w0)[:, 0], bits(there) << 32 | bits(written)]
    masks = [left[:, 0], *map(bits, seen)]
    return np.stack(slots, axis=1), np.stack(masks, axis=1).astype(np.int32), whole.astype(np.int64)


def caller(spec: ConvSpec, g: Geometry) -> tuple[Callable[..., None], int, float]:
    """The function that runs it on operands in C order, its tasks, and the estimate."""
    lanes = cost.lanes(spec.dtype)
    held = rows_held(g, lanes)
    zeros = np.zeros(g.size[2], spec.dtype)  # a row above or below the image
    offsets, slots, masks, inner = (zeros, *table_of_rows(g, lanes, held)) if held else table(g, lanes)
    groups = len(inner)
    cycles = groups * group_cycles(g, held) * cost.SLOWER[spec.dtype]
    moved = (math.prod(g.size) + math.prod(g.out)) * DTYPES[spec.dtype].itemsize
    channel = max(cycles * cost.CYCLE, moved / cost.BYTES)
    o_step = min(max(int(TASK_SECONDS / channel), 1), spec.out_channels)
    o_tasks = -(-spec.out_channels // o_step)
    template = np.zeros(1, kernels.ARGUMENTS)
    plane, plane_out = math.prod(g.size), math.prod(g.out)
    values = {
        "offsets": address(offsets), "slots": address(slots), "masks": address(masks), "inner": address(inner),
        "x_n": spec.in_channels * plane, "x_c": plane, "y_n": spec.out_channels * plane_out, "y_c": plane_out,
        "o": spec.out_channels, "per_group": g.o, "taps": g.taps, "groups": groups,
        "slots_step": slots.nbytes // groups, "masks_step": masks.nbytes // groups,
        "o_step": o_step, "o_tasks": o_tasks, "stride": g.stride[2],
        "rows_held": held, "row": g.size[2], "row_out": g.out[2], "past": cost.is_past(math.prod(spec.output_shape), g.out[2], spec.out_dtype),
    }  # fmt: skip
    set_fields(template, **values)
    fields = template.view(np.int64)
    tasks = spec.batch * o_tasks
    seconds = spec.batch * spec.out_channels * channel

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        bias = contiguous(bias)
        a = begun(fields, address(x), address(w), address(bias), address(y))
        threads.launch(KERNEL.address(spec.dtype), a, tasks, threads.workers(tasks), seconds)

    call.tables = offsets, slots, masks, inner  # type: ignore[attr-defined]
    return call, tasks, seconds


@cast_images
def depthwise(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """One input channel for each group: taps alone, in place."""
    g = geometry(spec)
    if g.c != 1:
        raise Unsupported(f"needs one input channel in a group, got {g.c}")
    if g.stride[2] not in TAP_CYCLES or spec.padding_mode != "zeros":
        raise Unsupported("needs a stride of 1 or 2 along rows, and padding with zeros")
    vectors = len(begins(g, cost.lanes(spec.dtype)))
    if (nbytes := vectors * (4 * g.taps + 8 * SLOT)) > TABLE_BYTES or math.prod(g.size) >= 2**31:
        raise Unsupported(f"its table of masks would take {nbytes} bytes, more than {TABLE_BYTES}")
    in_order, tasks, seconds = caller(spec, g)
    strided = implicit_gemm.strided(spec, workspace_limit)

    images = implicit_gemm.image_by_image(spec, lambda: caller(spec.with_batch(1), g)[0])

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        if not spec.batch:
            return
        if slabs.channels_last(x):
            images(x, w, bias, y)
        elif x.flags.c_contiguous:
            in_order(x, w, bias, y)
        else:
            strided(x, w, bias, y)

    return Run(
        call=call,
        seconds=seconds + cost.CALL_SECONDS,
        at_once=max(tasks, 1),
        note="reads the input where it lies",
    )
