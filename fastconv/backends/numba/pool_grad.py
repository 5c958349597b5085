"""Gradients of pools, planned: scattered to the maxima, or spread over the windows; ``matching`` has those that ask for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from fastconv.backends import Planner, Run, Unsupported
from fastconv.backends.numba import cost, jit, matching, pooling, threads, unpooling, winograd
from fastconv.backends.numba.geometry import Geometry, lift, shares
from fastconv.backends.numba.kernels import spread as kernels
from fastconv.backends.numba.kernels.scatter import ADD
from fastconv.backends.numba.operands import ALIGNMENT, Array, address, computed, scratch, set_fields
from fastconv.backends.numba.pairs import Pairs
from fastconv.backends.numba.planes import PIECE_BYTES, Part, moved, planes_of, task
from fastconv.spec import DTYPES, PoolSpec

SPREAD = {shape: jit.Kernel(kernels.spread(*shape), jit.REAL) for shape in (*kernels.SHAPES, *kernels.LOOPED)}
FILL = jit.Kernel(kernels.fill, jit.REAL)

# Cycles of a vector of a row: that is staged, that a tap adds; of an element without vectors.
STAGED_CYCLES, TAP_CYCLES, ELEMENT_CYCLES = 6, 2, 3

# Cycles of a row beside its vectors.
ROW_CYCLES = 10

# NumPy's power of an element.
POWER_SECONDS = 20e-9

# Planes whose maxima are found and written to: a share of the shared cache, for a few threads.
SEARCHED_BYTES = 2 * PIECE_BYTES

FIELD = {name: at for at, name in enumerate(kernels.FIELDS.split())}
DX, DY, SCRATCH, COUNT = map(FIELD.__getitem__, ("dx", "dy", "scratch", "planes"))


# ---------------------------------------------------------------------------- maxima


def best(spec: PoolSpec, limit: int | None, planners: Sequence[Planner] = pooling.PLANNERS) -> Run:
    """The cheapest run, of a forward pool unless other planners are given."""
    runs, needs = [], []
    for planner in planners:
        try:
            runs.append(planner(spec, "default", limit))
        except Unsupported as refusal:
            if refusal.workspace is not None:
                needs.append(refusal.workspace)
    if not runs:
        raise Unsupported("none has scratch enough", workspace=min(needs))
    return min(runs, key=lambda run: run.seconds)


def scatter(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """A maximum's gradient goes where it stands: by the indices that were kept, or found again some planes at a time."""
    if spec.mode != "max":
        raise Unsupported(f"needs a max pool, got {spec.mode}")
    if not spec.indices:
        return searched(spec, workspace_limit)
    return unpooling.by_indices(
        spec, workspace_limit, unpooling.SCATTER[ADD], matching.computed_sum(spec), spec.dtype
    )


def searched(spec: PoolSpec, limit: int | None) -> Run:
    """The forward pass again, for some planes, then their gradients while the indices lie in the cache."""
    planes = spec.batch * spec.channels
    outputs = math.prod(spec.out_size)
    each = outputs * (8 + DTYPES[spec.dtype].itemsize)
    forward = replace(spec, indices=True)

    def plans(piece: int) -> tuple[Run, Run, int]:
        """Forward and backward for a piece, and the bytes of its values and indices."""
        few, own = replace(forward, batch=1, channels=piece), piece * each
        left = None if limit is None else max(limit - own, 0)
        runs, needs = [], [0]
        for planners in (pooling.PLANNERS, (matching.match, scatter)):
            try:
                runs.append(best(few, left, planners))
            except Unsupported as refusal:
                if refusal.workspace is None:
                    raise
                needs.append(refusal.workspace)
        if limit is not None and (need := own + max(needs)) > limit:
            raise Unsupported(f"needs {need} bytes of scratch for one plane", workspace=need)
        return runs[0], runs[1], own

    traffic = each + math.prod(spec.in_size) * 2 * DTYPES[spec.dtype].itemsize
    piece = max(min(SEARCHED_BYTES // traffic, planes), 1)
    while True:
        try:
            found, back, own = plans(piece)
            break
        except Unsupported:
            if piece == 1:
                raise
            piece = -(-piece // 2)
    image = cache(lambda: plans(min(piece, spec.channels)))

    def call(dy: Array, x: Array, dx: Array) -> None:
        if not planes:
            return
        flat = dy.flags.c_contiguous and x.flags.c_contiguous
        first, second, _ = (found, back, own) if flat else image()
        some, channels = (piece, planes) if flat else (min(piece, spec.channels), spec.channels)
        y = np.empty((1, some, *spec.out_size), x.dtype)
        indices = np.empty(y.shape, np.int64)
        shapes = [(-1, channels, *array.shape[2:]) for array in (dy, x, dx)]
        arrays = [
            array.reshape(shape) if flat or array is dx else array
            for array, shape in zip((dy, x, dx), shapes, strict=True)
        ]
        for n in range(len(arrays[0])):
            for begin in range(0, channels, some):
                c = min(begin, channels - some)  # the last few may be computed twice, alike
                grads, values, target = (array[n : n + 1, c : c + some] for array in arrays)
                first.call(values, y, indices)
                second.call(grads, indices, target)

    rounds = -(-planes // piece)
    return Run(
        call=call,
        seconds=rounds * (found.seconds + back.seconds),
        at_once=max(found.at_once, back.at_once),
        shared=own + max(found.shared, back.shared),
        note=f"finds the maxima of {piece} planes at a time",
    )


# ---------------------------------------------------------------------------- sums


def meetings(windows: Sequence[range], size: int) -> Array:
    """The windows that meet each element of an axis: the first, how many, and the step from one to the next."""
    table = np.zeros((size, kernels.MEETING), np.int64)
    last = np.zeros(size, np.int64)
    for number, window in enumerate(windows):
        at = np.arange(window.start, window.stop, window.step)
        fresh = table[at, 1] == 0
        table[at[fresh], 0] = number
        again = at[~fresh]
        table[again, 2] = number - last[again]
        table[at, 1] += 1
        last[at] = number
    return table


def taps(spec: PoolSpec) -> list[list[int]]:
    """For each phase of a stride of 1 or 2 along a row: from an element's number in it to the windows that meet it.

    Element ``s * m + phase`` meets window i by tap t where ``s * i + t * dilation - before`` is that element.
    """
    if spec.output_size or spec.stride[-1] > 2:
        return []
    s, d, before = spec.stride[-1], spec.dilation[-1], spec.padding[-1][0]
    reads = [[phase + before - t * d for t in range(spec.kernel_size[-1])] for phase in range(s)]
    return [[at // s for at in phase if at % s == 0] for phase in reads]


class Spreader:
    """What spreads planes of type `wide` over windows."""

    def __init__(self, spec: PoolSpec, wide: str) -> None:
        lanes, itemsize = cost.lanes(wide), DTYPES[wide].itemsize
        d, h, w = lift(spec.in_size, 1)
        _, oh, ow = lift(spec.out_size, 1)
        plane, outputs = math.prod(spec.in_size), math.prod(spec.out_size)
        windows = [(range(1),)] * (3 - spec.rank) + [spec.windows(axis) for axis in range(spec.rank)]
        tables = [meetings(axis, size) for axis, size in zip(windows, (d, h, w), strict=True)]
        phases = taps(spec)
        stride, offsets = len(phases), [offset for phase in phases for offset in phase]
        shape = stride, tuple(map(len, phases))
        self.kernel = SPREAD[shape if shape in kernels.SHAPES else (stride, ())]
        left = winograd.round_up(max(0, *(-offset for offset in offsets), 0), lanes)
        reach = winograd.round_up(w, stride * lanes) // stride + max(0, *offsets, 0) if stride else ow
        pitch = left + winograd.round_up(max(reach, winograd.round_up(ow, lanes)), lanes)
        bytes_of_row = pitch * itemsize
        slices = int(tables[0][:, 1].max())
        count = spec.batch * spec.channels
        for side in shares(h):
            blocks = blocks_of(tables[1], side)
            staged = slices * int(blocks[:, 3].max())
            if staged * bytes_of_row <= kernels.BLOCK_BYTES:
                break
        group = 1
        if d == 1 and len(blocks) == 1 and stride:
            # Small planes are one with as many rows: the next plane's windows follow on this one's.
            group = max(min(kernels.BLOCK_BYTES // (oh * bytes_of_row), count), 1)
            above = np.zeros(kernels.MEETING, np.int64)
            above[0] = oh
            tables[1] = (tables[1] + np.arange(group)[:, None, None] * above).reshape(-1, kernels.MEETING)
            blocks[0, 2], staged = 0, max(group * oh, 1)
        factors: list[tuple[int, ...]] = [(1,)] * 3
        if spec.mode == "avg":
            factors[3 - spec.rank :] = pooling.factors(spec)
        ones = (np.ones(size, wide) for size in (spec.out_size[0] if spec.rank == 3 else 1, oh, 1))
        by = [
            np.array(axis, wide) if len(axis) > 1 else one * axis[0]
            for axis, one in zip(factors, ones, strict=True)
        ]
        by[1] = np.tile(by[1], group)
        by[2] = np.append(np.resize(by[2], ow), np.ones(lanes, wide))
        tables += [np.array([len(phase) for phase in phases], np.int64), np.array(offsets, np.int64)]
        self.tables = tables, by, blocks
        self.per_worker = winograd.round_up(staged * bytes_of_row, 64)
        meeting = int(tables[0][:, 1].sum() * tables[1][:h, 1].sum())
        cycles = float(d * h * ROW_CYCLES + meeting * -(-ow // lanes) * STAGED_CYCLES)
        if stride:
            cycles += meeting * -(-w // (stride * lanes)) * len(offsets) * TAP_CYCLES
        else:
            cycles += meeting * int(tables[2][:, 1].sum()) * ELEMENT_CYCLES
        self.seconds = max(cycles * cost.CYCLE, moved((plane + outputs) * itemsize, count))
        self.step = winograd.round_up(task(self.seconds, count), group)
        self.tasks = -(-count // self.step)
        self.wide = wide
        template = np.zeros(1, kernels.ARGUMENTS)
        set_fields(
            template, scratch_size=self.per_worker, plane=plane, outputs=outputs, planes_step=self.step,
            d=d, h=h, w=w, oh=oh, ow=ow,
            meeting_d=address(tables[0]), meeting_h=address(tables[1]), meeting_w=address(tables[2]),
            divisors_d=address(by[0]), divisors_h=address(by[1]), divisors_w=address(by[2]) if spec.mode == "avg" else 0,
            taps=address(tables[3]), offsets=address(tables[4]), left=left, pitch=pitch, staged=staged,
            group=group, blocks=address(blocks), n_blocks=len(blocks),
        )  # fmt: skip
        self.fields = template.view(np.int64)

    def __call__(self, dy: int, dx: int, count: int, at_once: int) -> None:
        """Spread `count` planes on as many threads as may be."""
        a = self.fields.copy()
        tasks = -(-count // self.step)
        workers = min(threads.workers(at_once), tasks)
        _held, a[SCRATCH] = scratch(workers * self.per_worker)
        a[DY], a[DX], a[COUNT] = dy, dx, count
        threads.launch(self.kernel.address(self.wide), a, tasks, workers, count * self.seconds)


def blocks_of(table: Array, side: int) -> Array:
    """Blocks of `side` rows: where each begins and ends, the first row of outputs that meets it, and how many rows."""
    found = []
    for begin in range(0, len(table), side):
        first, count, step = table[begin : begin + side][table[begin : begin + side, 1] > 0].T
        low = int(first.min()) if len(first) else 0
        high = int((first + (count - 1) * step).max()) + 1 if len(first) else 0
        found.append((begin, min(begin + side, len(table)), low, high - low))
    return np.array(found, np.int64)


def pairs(spec: PoolSpec, wide: str) -> Pairs | None:
    """What spreads an average's windows two rows at a time, if they are such and all as large."""
    if spec.mode != "avg" or spec.output_size or spec.rank != 2:
        return None
    before, after = (tuple(pads[i] for pads in spec.padding) for i in range(2))
    g = Geometry(
        lift(spec.in_size, 1), lift(spec.out_size, 1), lift(spec.kernel_size, 1), lift(spec.stride, 1),
        lift(spec.dilation, 1), lift(before, 0), lift(after, 0), 1, 1,
    )  # fmt: skip
    by = [set(axis) for axis in pooling.factors(spec)]
    if not Pairs.take(g) or any(len(axis) != 1 for axis in by):
        return None
    return Pairs(g, wide, spec.batch * spec.channels, divisor=math.prod(axis.pop() for axis in by))


def mirrored(spec: PoolSpec) -> PoolSpec | None:
    """At a stride of 1 the windows that meet an element are a window of outputs: the average that its gradient is."""
    if spec.mode != "avg" or spec.output_size or {*spec.stride, *spec.dilation} != {1}:
        return None
    by = [set(axis) for axis in pooling.factors(spec)]
    padding = tuple(
        (k - 1 - before, k - 1 - after)
        for k, (before, after) in zip(spec.kernel_size, spec.padding, strict=True)
    )
    most = max(2 * max(pads) - k for pads, k in zip(padding, spec.kernel_size, strict=True))
    if DTYPES[spec.dtype].kind != "f" or any(len(axis) != 1 for axis in by) or most > 0:
        return None
    return replace(
        spec, in_size=spec.out_size, padding=padding, ceil_mode=False, count_include_pad=True,
        divisor_override=math.prod(axis.pop() for axis in by),
    )  # fmt: skip


def spread(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Each element adds up the windows that meet it."""
    if spec.mode == "max":
        raise Unsupported("a maximum is one element of its window, needs an average or an Lp pool")
    if (forward := mirrored(spec)) is not None:
        run = best(forward, workspace_limit)
        note = f"an average itself; {run.note}" if run.note else "an average itself"
        return replace(run, call=lambda dy, x, dx: run.call(dy, dx), note=note)
    wide = computed(spec.out_dtype)
    spreads = pairs(spec, wide) or Spreader(spec, wide)
    own = spreads.per_worker + ALIGNMENT
    left = None if workspace_limit is None else max(workspace_limit - own, 0)
    try:
        run = (averages if spec.mode == "avg" else powers)(spec, spreads, left)
    except Unsupported as refusal:
        need = own + (refusal.workspace or 0)
        raise Unsupported(f"needs {need} bytes of scratch for one plane", workspace=need) from None
    if workspace_limit is not None and own > workspace_limit:
        raise Unsupported(f"needs {own} bytes of scratch for the rows of a plane", workspace=own)
    return run


def averages(spec: PoolSpec, spreads: Spreader | Pairs, left: int | None) -> Run:
    """The gradient of an average, which needs nothing of the input but its shape."""
    dy, dx = (Part(math.prod(size), spec.out_dtype, spreads.wide) for size in (spec.out_size, spec.in_size))
    planes = planes_of(spec.batch, spec.channels, left, dy, dx)
    at_once = max(spreads.tasks, 1)
    if left is not None:
        at_once = min(at_once, 1 + (left - planes.shared) // max(spreads.per_worker, 1))

    def compute(at: Sequence[int], count: int) -> None:
        dy, dx = at
        spreads(dy, dx, count, at_once)

    by_planes = planes.call(compute)
    return Run(
        call=lambda dy, x, dx: by_planes(dy, dx),
        seconds=planes.planes * spreads.seconds + cost.CALL_SECONDS,
        workspace=spreads.per_worker,
        at_once=at_once,
        shared=planes.shared + ALIGNMENT,
        note=planes.note,
    )


def powers(spec: PoolSpec, spreads: Spreader | Pairs, left: int | None) -> Run:
    """The gradient of an Lp pool, ``sign(x) * |x|**(p-1) * sum of dy * scale * y**(1-p)``, some planes at a time."""
    wide, p = spreads.wide, spec.norm_type
    itemsize, planes = DTYPES[wide].itemsize, spec.batch * spec.channels
    plane, outputs = math.prod(spec.in_size), math.prod(spec.out_size)
    scale = pooling.lp_scale(spec).astype(wide)
    # The input, its powers, the sums, and where it is zero; outputs, shares, and where they are zero.
    each = plane * (3 * itemsize + 1) + outputs * (2 * itemsize + 1)
    piece = max(min(PIECE_BYTES // each, planes), 1)
    if left is not None:
        piece = max(min(piece, left // (2 * each)), 1)

    def forward(piece: int) -> Run:
        few = replace(spec, batch=1, channels=piece, dtype=wide)
        try:
            return best(few, None if left is None else max(left - piece * each, 0))
        except Unsupported as refusal:
            need = piece * each + (refusal.workspace or 0)
            raise Unsupported("", workspace=need) from None

    pool = forward(piece)
    if left is not None and (need := piece * each + pool.shared) > left:
        raise Unsupported("", workspace=need)

    def call(dy: Array, x: Array, dx: Array) -> None:
        if not planes:
            return
        values, powers, sums = np.empty((3, piece, *spec.in_size), wide)
        y, shares = np.empty((2, piece, *spec.out_size), wide)
        values[...] = 0
        results = dx.reshape(planes, *spec.in_size)
        for begin in range(0, planes, piece):
            count = min(piece, planes - begin)
            for i in range(count):
                n, c = divmod(begin + i, spec.channels)
                np.copyto(values[i], x[n, c], casting="unsafe")
                np.copyto(shares[i], dy[n, c], casting="unsafe")
            pool.call(values[None], y[None])
            shares *= scale
            empty = y == 0
            np.power(y, 1 - p, out=y)
            shares *= y
            shares[empty] = 0  # of a window of zeros
            del empty
            spreads(address(shares), address(sums), count, 1 if left is not None else spreads.tasks)
            np.power(np.abs(values, out=powers), p - 1, out=powers)
            sums *= np.copysign(powers, values, out=powers)
            sums[values == 0] = 0
            np.copyto(results[begin : begin + count], sums[:count], casting="unsafe")

    at_once = 1 if left is not None else max(spreads.tasks, 1)
    return Run(
        call=call,
        seconds=planes * (spreads.seconds + (plane + outputs) * POWER_SECONDS)
        + pool.seconds * -(-planes // piece),
        workspace=spreads.per_worker,
        at_once=at_once,
        shared=piece * each + pool.shared + ALIGNMENT,
        note=f"{piece} planes at a time in {wide}",
    )


def fill(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """An average of whole planes: all elements of one get the same."""
    if spec.mode != "avg" or any(
        spec.windows(axis) != (range(size),) for axis, size in enumerate(spec.in_size)
    ):
        raise Unsupported("needs an average with windows as large as the image")
    wide = computed(spec.out_dtype)
    plane = math.prod(spec.in_size)
    divisor = pooling.divisors(spec, wide)
    planes = planes_of(
        spec.batch,
        spec.channels,
        workspace_limit,
        Part(1, spec.out_dtype, wide),
        Part(plane, spec.out_dtype, wide),
    )
    nbytes = plane * DTYPES[wide].itemsize
    each = max(plane / cost.lanes(wide) * cost.CYCLE, moved(nbytes, planes.planes))
    step = task(each, planes.planes)
    template = np.zeros(1, kernels.ARGUMENTS)
    set_fields(template, plane=plane, planes_step=step, divisors_w=address(divisor))
    fields = template.view(np.int64)

    def compute(at: Sequence[int], count: int) -> None:
        a = fields.copy()
        a[DY], a[DX] = at
        a[COUNT] = count
        tasks = -(-count // step)
        threads.launch(FILL.address(wide), a, tasks, threads.workers(tasks), count * each)

    compute.tables = divisor  # type: ignore[attr-defined]
    by_planes = planes.call(compute)
    return Run(
        call=lambda dy, x, dx: by_planes(dy, dx),
        seconds=planes.planes * each + cost.CALL_SECONDS,
        at_once=max(-(-planes.planes // step), 1),
        shared=planes.shared,
        note=planes.note,
    )


PLANNERS: tuple[Planner, ...] = (matching.match, scatter, fill, spread)
