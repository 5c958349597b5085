"""Depthwise convolution, planned: the table of vectors and masks that all channels share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache

import numpy as np

from fastconv.backends import Run, Unsupported
from fastconv.backends.numba import cost, direct, jit, threads
from fastconv.backends.numba.kernels import depthwise as kernels
from fastconv.backends.numba.kernels.depthwise import ROWS, SLOT, TOGETHER, loads
from fastconv.backends.numba.operands import Array, address, cast_images, contiguous
from fastconv.spec import DTYPES, ConvSpec

KERNEL = jit.Kernel(kernels.depthwise)

# The table is made with the plan and kept with it.
TABLE_BYTES = 1 << 20

# Cycles of one tap of a vector: a load, a mask, an FMA; twice the loads and a shuffle at stride 2.
TAP_CYCLES = {1: 2.0, 2: 4.0}
VECTOR_CYCLES = 12

# A task takes about this long, so that starting it (0.3 us) does not show.
TASK_SECONDS = 10e-6

FIELD = {name: at for at, name in enumerate(kernels.ARGUMENTS.names or ())}
ADDRESSES = slice(FIELD["x"], FIELD["y"] + 1)


def in_a_row(g: direct.Geometry) -> bool:
    """Whether a vector may run on from one row of outputs into the next."""
    same = g.stride == (1, 1, 1) and g.out[2] == g.size[2] and (g.out[1] == g.size[1] or g.out[0] == 1)
    return same or g.out[:2] == (1, 1)


def begins(g: direct.Geometry, lanes: int) -> Array:
    """The first output position of every vector: all in a row where rows of input and output are as long."""
    positions = math.prod(g.out)
    if in_a_row(g):
        return np.arange(0, positions, lanes)
    rows = np.arange(0, positions, g.out[2])
    return (rows[:, None] + np.arange(0, g.out[2], lanes)).ravel()


def table(g: direct.Geometry, lanes: int) -> tuple[Array, Array, Array, Array]:
    """Offsets of the taps; slots and masks of every vector; whether a group of vectors meets no border."""
    first = begins(g, lanes)
    positions = math.prod(g.out)
    stops = np.append(first[1:], positions)
    count = -(-len(first) // TOGETHER) * TOGETHER
    lane = np.arange(lanes)
    at = first[:, None] + lane
    valid = at < np.minimum(stops, first + lanes)[:, None]
    coordinates = np.unravel_index(np.minimum(at, positions - 1), g.out)
    step = direct.strides(g.size)
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


def takes_rows(g: direct.Geometry, lanes: int) -> bool:
    """Whether rows are computed four at a time: 3 x 3 taps, and no better use of lanes that a row leaves empty."""
    square = (
        g.kernel == (1, 3, 3) and g.dilation[1:] == (1, 1) and g.stride[1] == g.stride[2] and g.size[0] == 1
    )
    fills = 4 * g.out[2] >= 3 * lanes * -(-g.out[2] // lanes)
    return square and (fills or not in_a_row(g))


def table_of_rows(g: direct.Geometry, lanes: int, read: tuple[int, int]) -> tuple[Array, Array, Array]:
    """As :func:`table`, for groups of ``ROWS`` rows of one vector, which read so many rows so many times each."""
    (_, oh, ow), (_, height, width), s = g.out, g.size, g.stride[2]
    h0, w0 = (
        axis.ravel() for axis in np.meshgrid(np.arange(0, oh, ROWS), np.arange(0, ow, lanes), indexing="ij")
    )
    rows, times = read
    lane, element = np.arange(lanes), np.arange(lanes * s)
    slots = np.zeros((len(h0), SLOT), np.int64)
    top, left = h0 * s - g.before[1], w0 * s - g.before[2]
    slots[:, 0], slots[:, 1] = top * width + left, h0 * ow + w0
    written = (w0[:, None] + lane < ow) @ (1 << lane)
    slots[:, 2] = written + ((h0[:, None] + np.arange(ROWS) < oh) @ (1 << (32 + np.arange(ROWS))))
    row = top[:, None] + np.arange(rows)
    column = left[:, None, None] + np.arange(times)[:, None] * s + element
    bits = ((column >= 0) & (column < width)) @ (np.uint64(1) << element.astype(np.uint64))
    masks = np.where(((row >= 0) & (row < height))[:, :, None], bits[:, None, :], np.uint64(0))
    every = (1 << lanes * s) - 1
    inner = (masks == every).all(axis=(1, 2)) & (slots[:, 2] == (1 << lanes) - 1 + (((1 << ROWS) - 1) << 32))
    return slots, np.ascontiguousarray(masks.astype(np.uint32)), inner.astype(np.int64)


def caller(spec: ConvSpec, g: direct.Geometry) -> tuple[Callable[..., None], int, float]:
    """The function that runs it on operands in C order, its tasks, and the estimate."""
    lanes = cost.lanes(spec.dtype)
    stride = g.stride[2]
    in_rows = takes_rows(g, lanes)
    if in_rows:
        offsets = np.zeros(1, np.int32)
        slots, masks, inner = table_of_rows(g, lanes, loads(stride))
        each = TAP_CYCLES[stride] * math.prod(loads(stride))
    else:
        offsets, slots, masks, inner = table(g, lanes)
        each = TAP_CYCLES[stride] * g.taps * TOGETHER
    groups = len(inner)
    cycles = groups * (each + TOGETHER * VECTOR_CYCLES) * cost.SLOWER[spec.dtype]
    moved = (math.prod(g.size) + math.prod(g.out)) * DTYPES[spec.dtype].itemsize
    channel = max(cycles * cost.CYCLE, moved / cost.BYTES)
    o_step = min(max(int(TASK_SECONDS / channel), 1), spec.out_channels)
    o_tasks = -(-spec.out_channels // o_step)
    template = np.zeros(1, kernels.ARGUMENTS)
    plane, plane_out = math.prod(g.size), math.prod(g.out)
    values = {
        "offsets": address(offsets), "slots": address(slots), "masks": address(masks), "inner": address(inner),
        "x_n": spec.in_channels * plane, "x_c": plane, "y_n": spec.out_channels * plane_out, "y_c": plane_out,
        "o": spec.out_channels, "per_group": g.o, "taps": g.taps, "groups_of_vectors": groups,
        "o_step": o_step, "o_tasks": o_tasks, "stride": stride,
        "in_rows": in_rows, "row": g.size[2], "row_out": g.out[2],
    }  # fmt: skip
    for name, value in values.items():
        template[name] = value
    fields = template.view(np.int64)
    tasks = spec.batch * o_tasks
    seconds = spec.batch * spec.out_channels * channel

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        a = fields.copy()
        bias = contiguous(bias)
        a[ADDRESSES] = address(x), address(w), address(bias), address(y)
        threads.launch(KERNEL.address(spec.dtype), a, tasks, threads.workers(tasks), seconds)

    call.tables = offsets, slots, masks, inner  # type: ignore[attr-defined]
    return call, tasks, seconds


@cast_images
def depthwise(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """One input channel for each group: taps alone, in place."""
    g = direct.geometry(spec)
    if g.c != 1:
        raise Unsupported(f"needs one input channel in a group, got {g.c}")
    if g.stride[2] not in TAP_CYCLES or spec.padding_mode != "zeros":
        raise Unsupported("needs a stride of 1 or 2 along rows, and padding with zeros")
    vectors = len(begins(g, cost.lanes(spec.dtype)))
    if (nbytes := vectors * (4 * g.taps + 8 * SLOT)) > TABLE_BYTES or math.prod(g.size) >= 2**31:
        raise Unsupported(f"its table of masks would take {nbytes} bytes, more than {TABLE_BYTES}")
    in_order, tasks, seconds = caller(spec, g)
    strided = direct.strided(spec, workspace_limit)

    image = cache(lambda: caller(spec.with_batch(1), g)[0])

    def image_by_image(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        order = direct.orderer(spec.dtype, spec.in_channels, spec.in_size)
        made = np.empty((1, *spec.input_shape[1:]), spec.dtype)
        for n in range(spec.batch):
            order(x, n, 0, spec.in_channels, address(made))
            image()(made, w, bias, y[n : n + 1])

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        if not spec.batch:
            return
        if direct.channels_last(x):
            image_by_image(x, w, bias, y)
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
