"""Columns of sliding windows and their sum, planned: tables of what each tap reads, and pieces of what must be cast."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastconv.backends import Run, Unsupported
from fastconv.backends.numba import cost, jit, threads
from fastconv.backends.numba.geometry import geometry
from fastconv.backends.numba.kernels import columns as kernels
from fastconv.backends.numba.operands import ALIGNMENT, Array, address, computed, scratch, set_fields
from fastconv.backends.numba.planes import PIECE_BYTES, Part, moved, planes_of, task
from fastconv.backends.numba.unpooling import MOVED, as_moved
from fastconv.spec import DTYPES, ConvSpec, Op, source

UNFOLD = jit.Kernel(kernels.unfold, MOVED)
FOLD = jit.Kernel(kernels.fold)

# Cycles of a row beside its elements.
ROW_CYCLES = 15

FIELD = {name: at for at, name in enumerate(kernels.FIELDS.split())}
X, COLUMNS, COUNT, TAP0, TAP1 = map(FIELD.__getitem__, ("x", "columns", "planes", "tap0", "tap1"))


def reads(spec: ConvSpec, axis: int) -> Array:
    """What each output reads by each tap along an axis, (k, o); -1 for a zero."""
    size, before = spec.in_size[axis], spec.padding[axis][0]
    places = np.arange(spec.kernel_size[axis])[:, None] * spec.dilation[axis] - before
    places = places + np.arange(spec.out_size[axis]) * spec.stride[axis]
    beyond = (places < 0) | (places >= size)
    for at in np.argwhere(beyond):
        found = source(int(places[*at]), size, spec.padding_mode)
        places[*at] = -1 if found is None else found
    return np.ascontiguousarray(places, np.int64)


def insides(spec: ConvSpec) -> Array:
    """For each tap along a row: the outputs that read inside the image, and what the first of them reads."""
    size, out, stride = spec.in_size[-1], spec.out_size[-1], spec.stride[-1]
    rows = []
    for k in range(spec.kernel_size[-1]):
        begin = k * spec.dilation[-1] - spec.padding[-1][0]
        low = min(max(-(begin // stride), 0), out)
        high = max(min(-(-(size - begin) // stride), out), low)
        rows.append((low, high, begin + low * stride))
    return np.array(rows, np.int64)


def readers(places: Array, size: int) -> tuple[Array, Array]:
    """For each element of an axis where its list begins, and the lists: the taps and outputs that read it."""
    taps, outputs = np.nonzero(places >= 0)
    elements = places[taps, outputs]
    order = np.argsort(elements, kind="stable")
    begins = np.searchsorted(elements[order], np.arange(size + 1))
    lists = np.stack([taps[order], outputs[order]], axis=1) if len(order) else np.zeros((1, 2))
    return begins.astype(np.int64), np.ascontiguousarray(lists, np.int64)


class Tables:
    """What both directions read of a spec."""

    def __init__(self, spec: ConvSpec) -> None:
        g = geometry(spec)
        lifted = [np.zeros((1, 1), np.int64)] * (3 - spec.rank) + [
            reads(spec, axis) for axis in range(spec.rank)
        ]
        lists = [readers(places, size) for places, size in zip(lifted[:2], g.size, strict=False)]
        inside = insides(spec)
        self.taps, self.outputs, self.plane = math.prod(g.kernel), math.prod(g.out), math.prod(g.size)
        self.rows = g.size[0] * g.size[1]
        template = np.zeros(1, kernels.ARGUMENTS)
        set_fields(
            template, plane=self.plane, outputs=self.outputs, d=g.size[0], h=g.size[1], w=g.size[2],
            od=g.out[0], oh=g.out[1], ow=g.out[2], kd=g.kernel[0], kh=g.kernel[1], kw=g.kernel[2], stride=g.stride[2],
            from_d=address(lifted[0]), from_h=address(lifted[1]), from_w=address(lifted[2]), inside=address(inside),
            padded=spec.padding_mode != "zeros", first_d=address(lists[0][0]), list_d=address(lists[0][1]),
            first_h=address(lists[1][0]), list_h=address(lists[1][1]), tap1=self.taps,
        )  # fmt: skip
        self.fields = template.view(np.int64)
        self.held = lifted, lists, inside

    def seconds(self, spec: ConvSpec, op: Op, itemsize: int) -> float:
        """Of one plane."""
        rows = self.taps * self.outputs / max(spec.out_size[-1], 1)
        elements = self.taps * self.outputs / (cost.lanes("float32") if spec.stride[-1] == 1 else 1)
        cycles = rows * ROW_CYCLES + elements * (2 if op is Op.FOLD else 1)
        nbytes = (self.taps * self.outputs + self.plane) * itemsize
        return max(cycles * cost.CYCLE, moved(nbytes, max(spec.batch * spec.in_channels, 1)))


def unfold(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Windows are copied row by row, tap by tap."""
    tables, wide = Tables(spec), as_moved(spec.dtype)
    planes = planes_of(
        spec.batch, spec.in_channels, workspace_limit, Part(tables.plane, wide, wide),
        Part(tables.taps * tables.outputs, wide, wide),
    )  # fmt: skip
    each = tables.seconds(spec, Op.UNFOLD, DTYPES[spec.dtype].itemsize)
    step = task(each / tables.taps, planes.planes * tables.taps)
    fields = tables.fields.copy()
    fields[FIELD["tasks_step"]] = step

    def compute(at: Sequence[int], count: int) -> None:
        a = fields.copy()
        a[X], a[COLUMNS] = at
        a[COUNT] = count
        tasks = -(-count * tables.taps // step)
        threads.launch(UNFOLD.address(wide), a, tasks, threads.workers(tasks), count * each)

    return Run(
        call=planes.call(compute),
        seconds=planes.planes * each + cost.CALL_SECONDS,
        at_once=max(-(-planes.planes * tables.taps // step), 1),
        note="a row of a tap at a time",
    )


def fold(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Columns are added to the rows of the image they were read from, in the order of the taps."""
    tables, wide = Tables(spec), computed(spec.dtype)
    taps, itemsize = tables.taps, DTYPES[wide].itemsize
    tap = Part(tables.outputs, spec.dtype, wide)
    plane = Part(tables.plane, spec.out_dtype, wide)
    planes, channels = spec.batch * spec.in_channels, spec.in_channels
    each = tables.seconds(spec, Op.FOLD, itemsize)
    step = task(each / tables.rows, planes * tables.rows)
    fields = tables.fields.copy()
    fields[FIELD["tasks_step"]] = step

    # Of what is cast, so many planes and taps at a time.
    held, column = plane.nbytes if plane.cast else 0, tap.nbytes
    space = PIECE_BYTES if workspace_limit is None else min(PIECE_BYTES, workspace_limit - ALIGNMENT)
    need = held + column * tap.cast + ALIGNMENT if tap.cast or plane.cast else 0
    if workspace_limit is not None and need > workspace_limit:
        raise Unsupported(f"needs {need} bytes of scratch for a tap of one plane", workspace=need)
    some = max(min(space // max(held + taps * column, 1), planes), 1)
    few = taps if some > 1 or held + taps * column <= space else max((space - held) // max(column, 1), 1)

    def add(x: int, columns: int, count: int, first: int, last: int) -> None:
        a = fields.copy()
        a[X], a[COLUMNS], a[COUNT], a[TAP0], a[TAP1] = x, columns, count, first, last
        tasks = -(-count * tables.rows // step)
        threads.launch(FOLD.address(wide), a, tasks, threads.workers(tasks), count * each)

    def call(columns: Array, x: Array) -> None:
        if not planes:
            return
        ready = columns.flags.c_contiguous and not tap.cast
        if ready and not plane.cast:
            add(address(x), address(columns), planes, 0, taps)
            return
        memory, _ = scratch(some * (held + (0 if ready else few * column)))
        sums = memory[: some * held].view(wide).reshape(some if held else 0, *spec.in_size)
        part = memory[some * held :][: 0 if ready else some * few * column]
        source = columns.reshape(spec.batch, channels, taps, tables.outputs)
        result = x.reshape(planes, *spec.in_size)
        for p in range(0, planes, some):
            count = min(some, planes - p)
            to = address(sums) if held else address(x) + p * plane.nbytes
            for first in range(0, taps if not ready else 1, few):
                last = taps if ready else min(first + few, taps)
                at = address(columns) + p * taps * column if ready else address(part)
                if not ready:
                    copy = part[: count * (last - first) * column].view(wide if tap.cast else columns.dtype)
                    copy = copy.reshape(count, last - first, tables.outputs)
                    for i in range(count):
                        n, c = divmod(p + i, channels)
                        np.copyto(copy[i], source[n, c, first:last], casting="unsafe")
                add(to, at, count, first, last)
            if held:
                np.copyto(result[p : p + count], sums[:count], casting="unsafe")

    shared = some * (held + few * column * tap.cast)
    return Run(
        call=call,
        seconds=planes * each + cost.CALL_SECONDS,
        at_once=max(-(-planes * tables.rows // step), 1),
        shared=shared + ALIGNMENT if shared else 0,
        note=f"{few} taps of {some} planes at a time in {wide}" if shared else "",
    )
