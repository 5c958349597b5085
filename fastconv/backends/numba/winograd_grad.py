"""Winograd's way to the gradient of the weights, planned: which form, and how many tiles at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastconv.backends import Run, Unsupported, algorithm
from fastconv.backends.numba import cost, jit, pages, threads, weight_grad
from fastconv.backends.numba.geometry import lift
from fastconv.backends.numba.kernels import winograd as tile_kernels
from fastconv.backends.numba.kernels import winograd_grad as kernels
from fastconv.backends.numba.kernels.positions import SLOTS_BYTES
from fastconv.backends.numba.kernels.simd import host
from fastconv.backends.numba.kernels.tile import ADD, VECTORS
from fastconv.backends.numba.operands import ALIGNMENT, Array, address, begun, set_fields, setter
from fastconv.backends.numba.winograd import (
    FIELD,
    INPUT_CYCLES,
    TASKS,
    TILE_BYTES,
    TILES,
    WEIGHT_CYCLES,
    ceil,
    check,
    error,
    readable,
    round_up,
    set_strides,
)
from fastconv.spec import DTYPES, ConvSpec

FORMS = range(len(tile_kernels.FORMS))
GRADIENTS = [jit.Kernel(tile_kernels.tiles_in(f, of_gradient=True), jit.REAL) for f in FORMS]
PRODUCTS = [jit.Kernel(kernels.products(f), jit.REAL) for f in FORMS]
RESULTS = [jit.Kernel(kernels.results(f), jit.REAL) for f in FORMS]

# Output channels of a task: their tiles of one place stay in a core's L2 while those of the input pass.
TASK_CHANNELS = 64

# Tiles of a round at most: three vectors of them fit the L1 cache, and rounding errors grow with the root of the terms
# that one sum has.
TERMS = 256

SPOILED = kernels.FIELDS.split().index("spoiled")
put, put_tiles = setter(kernels.ARGUMENTS), setter(tile_kernels.ARGUMENTS)


class Layout(NamedTuple):
    """How a form cuts a problem."""

    form: int
    tiles_h: int
    tiles_w: int
    vectors: int  # of input channels
    rows: int  # tile rows of a round
    rounds: int
    x_step: int  # elements from one place of the transformed tiles to the next, of the input
    dy_step: int  # and of the output's gradient
    sums_step: int  # and of the sums
    sums_bytes: int
    shared: int  # bytes of both and the sums

    @property
    def tiles(self) -> int:
        """Tiles of a round."""
        return self.rows * self.tiles_w


def layout(spec: ConvSpec, f: int, limit: int | None) -> Layout:
    """The cut of `spec` by form `f`; rounds are as long as `limit` allows."""
    form, itemsize, lanes = tile_kernels.FORMS[f], DTYPES[spec.dtype].itemsize, cost.lanes(spec.dtype)
    oh, ow = lift(spec.out_size, 1)[1:]
    tiles_h, tiles_w = ceil(oh, form.mh), ceil(ow, form.mw)
    vectors = ceil(spec.in_channels, lanes)
    c = round_up(vectors, VECTORS) * lanes
    o = round_up(spec.out_channels, kernels.block(lanes))
    # Places lie apart by an odd number of cache lines: by a multiple of 4096 bytes they would share a few.
    line = 64 // itemsize
    sums_step = c * spec.out_channels + line
    sums_bytes = form.products * sums_step * itemsize
    # Sums that no cache holds are read and written once a round: the larger they are, the longer is a round.
    room = max(TILE_BYTES, sums_bytes // 2)
    if limit is not None:
        room = min(room, limit - sums_bytes - form.products * 2 * 64 - scratch_bytes(spec, f) - ALIGNMENT)
    all_rows = max(spec.batch, 1) * tiles_h
    most = max(min(TERMS // tiles_w, room // (form.products * tiles_w * (c + o) * itemsize)), 1)
    rows = ceil(all_rows, ceil(all_rows, most))
    rounds = ceil(all_rows, rows)
    x_step, dy_step = (rows * tiles_w * channels + line for channels in (c, o))
    shared = sums_bytes + form.products * (x_step + dy_step) * itemsize + ALIGNMENT
    return Layout(f, tiles_h, tiles_w, vectors, rows, rounds, x_step, dy_step, sums_step, sums_bytes, shared)


def scratch_bytes(spec: ConvSpec, f: int) -> int:
    """Bytes of a worker: rows of an image turned to vectors of channels, or a vector's taps."""
    form, lanes = tile_kernels.FORMS[f], cost.lanes(spec.dtype)
    columns = ceil(spec.out_size[-1], form.mw) * form.mw + form.rw - 1
    slab = form.n[0] * (columns + lanes)
    taps = 1 + round_up(form.rh * form.rw, lanes)
    return round_up(max(slab, taps) * host().width, 64) + SLOTS_BYTES


def seconds(spec: ConvSpec, cut: Layout) -> float:
    """The estimate: products at the micro-kernel's rate, transforms by their cycles, and traffic of sums."""
    places, lanes = tile_kernels.FORMS[cut.form].products, cost.lanes(spec.dtype)
    tiles = spec.batch * cut.tiles_h * cut.tiles_w
    o_vectors = ceil(spec.out_channels, lanes)
    work = (
        cut.rounds * places * cost.tiles(spec.dtype, cut.vectors, spec.out_channels, ceil(tiles, cut.rounds))
    )
    cycles = tiles * places * (cut.vectors + o_vectors) * INPUT_CYCLES
    cycles += places * cut.vectors * spec.out_channels * WEIGHT_CYCLES
    moved = 2 * cut.rounds * cut.sums_bytes + cut.shared
    moving = cost.traffic(moved) + cost.moving(
        cut.sums_bytes
    )  # sums are turned to a result that lies in new pages
    return work + cycles * cost.CYCLE + moving + cut.rounds * 3 * cost.TASK_SECONDS * TASKS


def plan_form(spec: ConvSpec, cut: Layout, limit: int | None) -> Run:
    """A form's run."""
    form = tile_kernels.FORMS[cut.form]
    lanes, per_worker, estimate = cost.lanes(spec.dtype), scratch_bytes(spec, cut.form), seconds(spec, cut)
    if limit is not None and (need := per_worker + cut.shared) > limit:
        raise Unsupported(f"needs {need} bytes of scratch", workspace=need)
    size, out = lift(spec.in_size, 1), lift(spec.out_size, 1)
    before = lift(tuple(before for before, _ in spec.padding), 0)
    all_rows = spec.batch * cut.tiles_h

    def side(channels: int, size: tuple[int, ...], before: tuple[int, ...], step: int, pitch: int) -> Array:
        """What the kernel that transforms one operand's tiles reads."""
        template, tasks = np.zeros(1, tile_kernels.ARGUMENTS), ceil(channels, lanes)
        values = {
            "scratch_size": per_worker, "x_n": channels * math.prod(size), "x_c": math.prod(size), "x_h": size[2],
            "x_w": 1, "c": channels, "size_h": size[1], "size_w": size[2], "before_h": before[1], "before_w": before[2],
            "tiles_w": cut.tiles_w, "tiles": cut.tiles_h * cut.tiles_w, "v_step": step, "pitch": pitch,
            "room": cut.tiles, "rows_step": max(min(cut.rows, cut.rows * tasks // 64), 1), "c_tasks": tasks,
        }  # fmt: skip
        set_fields(template, **values)
        return template.view(np.int64)

    sides = (
        (TILES[cut.form], side(spec.in_channels, size, before, cut.x_step, VECTORS * lanes)),
        (GRADIENTS[cut.form], side(spec.out_channels, out, (0, 0, 0), cut.dy_step, kernels.block(lanes))),
    )
    o_tasks = ceil(spec.out_channels, TASK_CHANNELS)
    template = np.zeros(1, kernels.ARGUMENTS)
    values = {
        "scratch_size": per_worker, "x_step": cut.x_step, "dy_step": cut.dy_step, "sums_step": cut.sums_step,
        "room": cut.tiles, "c": spec.in_channels, "o": spec.out_channels, "vectors": cut.vectors,
        "o_step": round_up(ceil(spec.out_channels, o_tasks), kernels.block(lanes)), "o_tasks": o_tasks,
    }  # fmt: skip
    set_fields(template, **values)
    fields = template.view(np.int64)
    exact = weight_grad.plan_sums(spec, "highest", limit)
    at_once = max(form.products * o_tasks, *(int(a[FIELD["c_tasks"]]) for _, a in sides), spec.out_channels)
    if limit is not None:
        at_once = max(min(at_once, (limit - cut.shared) // per_worker), 1)

    def call(x: Array, dy: Array, dw: Array) -> None:
        if not spec.batch:
            dw[...] = 0
            return
        given = readable(x), readable(dy)
        workers = threads.workers(at_once)
        # As much as a large result has, and kept like one.
        held = pages.empty((cut.shared + workers * per_worker,), "uint8")
        at_sums = round_up(address(held), ALIGNMENT)
        at_x = at_sums + cut.sums_bytes
        at_dy = at_x + form.products * cut.x_step * x.itemsize
        at_work = at_dy + form.products * cut.dy_step * x.itemsize
        made = []
        for (kernel, fields_of), array, at in zip(sides, given, (at_x, at_dy), strict=True):
            a = begun(fields_of, address(array), 0, 0, 0, at_work, at)
            set_strides(a, array)
            made.append((kernel.address(spec.dtype), a))
        a = begun(fields, at_x, at_dy, at_sums, address(dw), at_work)
        for row in range(0, all_rows, cut.rows):
            rows = min(cut.rows, all_rows - row)
            for transform, tiles in made:
                put_tiles(tiles, first=row * cut.tiles_w, count=rows * cut.tiles_w)
                tasks = ceil(rows, int(tiles[FIELD["rows_step"]])) * int(tiles[FIELD["c_tasks"]])
                vectors = rows * cut.tiles_w * int(tiles[FIELD["c_tasks"]])
                cycles = vectors * form.products * INPUT_CYCLES
                threads.launch(transform, tiles, tasks, workers, cycles * cost.CYCLE)
            put(a, count=rows * cut.tiles_w, more=ADD * (row > 0))
            threads.launch(
                PRODUCTS[cut.form].address(spec.dtype),
                a,
                form.products * o_tasks,
                workers,
                estimate / cut.rounds,
            )
        moved = cost.moving(cut.sums_bytes)
        threads.launch(RESULTS[cut.form].address(spec.dtype), a, spec.out_channels, workers, moved)
        if a[SPOILED]:
            exact.call(x, dy, dw)

    return Run(
        call=call,
        seconds=estimate + cost.CALL_SECONDS,
        workspace=per_worker,
        at_once=at_once,
        shared=cut.shared,
        note=f"{form}, {cut.tiles} tiles at a time",
        error=error(form, spec.dtype),
    )


@algorithm("winograd")
def winograd(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Minimal filtering turned round: the gradient of 3 or 5 taps at stride 1."""
    if spec.dtype not in ("float32", "float64") or spec.out_dtype != spec.dtype:
        raise Unsupported(f"sums float32 and float64 as they are, got {spec.dtype} to {spec.out_dtype}")
    cuts = [layout(spec, f, workspace_limit) for f in check(spec)]
    return plan_form(spec, min(cuts, key=lambda cut: seconds(spec, cut)), workspace_limit)
