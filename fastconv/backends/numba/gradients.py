"""Gradients of a convolution, planned.

The gradient of the input is a convolution again: of the output's gradient, with turned weights. With a stride s its
elements fall into s phases along each axis, and each is a convolution of stride 1 with every s-th tap:

    dx[s * j + first] = sum_t w[k0 + t * step] * dy[j + begin - t * dilation]

so every forward planner serves it, and nothing is scattered. The gradient of the weights is a sum over positions
(``kernels.gradients``), in an order that the plan fixes: of images and boxes of positions, copied one after the other,
and within them of parts, which any thread may sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends import Planner, Run, Unsupported, algorithm, blocks
from fastconv.backends.numba import cost, direct, jit, threads
from fastconv.backends.numba.kernels import gradients as kernels
from fastconv.backends.numba.kernels.simd import host
from fastconv.backends.numba.kernels.tile import VECTORS, scalars
from fastconv.backends.numba.operands import (
    ALIGNMENT,
    Array,
    address,
    cast_images,
    computed,
    contiguous,
    scratch,
)
from fastconv.backends.numba.winograd import ceil, round_up
from fastconv.spec import DTYPES, ConvSpec, Op, source

TURN = jit.Kernel(kernels.turn)
WEAVE = jit.Kernel(kernels.weave)
SPREAD = jit.Kernel(kernels.spread)
COLUMNS = jit.Kernel(kernels.columns)
PACK = jit.Kernel(kernels.pack_positions)
PRODUCTS = jit.Kernel(kernels.weight_products)
SUMS = jit.Kernel(kernels.weight_sums)
DEPTHWISE = jit.Kernel(kernels.depthwise_sums)

# Cycles of a vector of a row with SIDE taps: their masks, loads and multiply-adds.
ROW_CYCLES = 10

# Phases of some images are computed, then woven into the result while a core's cache still holds most of them.
PHASE_BYTES = 2 << 20

# Elements of a task that weaves: 4 us.
WOVEN = 8 << 10

# Blocks of images that are copied, multiplied and overwritten: a share of the last level of the cache.
ROUND_BYTES = 4 << 20

# Positions of one tile: vectors of channels and the output's gradient stay in a core's L2 for all output channels.
SUMMED = 512

# Planes this small are packed: a tile over several images reads the output's gradient in one go.
PACKED_BELOW = 256

# Output channels of a task; tasks of a round at least, so that a few threads end together.
TASK_CHANNELS = 64
TASKS = 16

# Cycles to copy one vector of channels; of taps, which are gathered first.
SPREAD_CYCLES, COLUMN_CYCLES = 6, 8


class Phase(NamedTuple):
    """What a stride leaves of one axis: a convolution of stride 1."""

    first: int  # the first element of the input that belongs to it
    length: int
    taps: range  # as the weights count them, from the last to the first
    dilation: int
    padding: tuple[int, int]
    crop: int  # elements of the output's gradient that it does not begin with


def phases(spec: ConvSpec, axis: int) -> list[Phase]:
    """The phases that meet any tap along an axis; one at stride 1."""
    size, out, kernel = spec.in_size[axis], spec.out_size[axis], spec.kernel_size[axis]
    stride, before = spec.stride[axis], spec.padding[axis][0]
    common = math.gcd(stride, spec.dilation[axis])
    step, dilation = stride // common, spec.dilation[axis] // common
    found = []
    for k0 in range(min(step, kernel)):
        at = k0 * spec.dilation[axis] - before
        first = at % stride
        count = -(-(size - first) // stride)
        taps = range(k0, kernel, step)[::-1]
        begin = (first - at) // stride
        pad = (len(taps) - 1) * dilation - begin
        crop = max(-pad, 0)
        if count > 0 and count + begin > 0 and crop < out:
            after = count + begin - out
            found.append(Phase(first, count, taps, dilation, (max(pad, 0), after), crop))
    return found


class Part(NamedTuple):
    """A phase of every axis."""

    spec: ConvSpec  # of the convolution that computes it
    taps: Array  # which of a kernel's taps stands at each place of the turned one
    read: tuple[slice, ...]  # of the output's gradient

    def turned(self, weight: Array, groups: int) -> Array:
        """(O, C / groups, taps) as (C, O / groups, taps turned round)."""
        weight = np.ascontiguousarray(weight)
        o, c = weight.shape[0] // groups, weight.shape[1]
        result = np.empty(self.spec.weight_shape, weight.dtype)
        a = np.zeros(1, kernels.TURN)
        c_tasks = -(-c // kernels.TURNED)
        direct.fill(
            a, w=address(weight), to=address(result), table=address(self.taps), o=o, c=c,
            from_taps=math.prod(weight.shape[2:]), taps=len(self.taps), c_tasks=c_tasks,
        )  # fmt: skip
        tasks = groups * c_tasks
        workers = threads.workers(tasks) if result.size > WOVEN else 1
        threads.launch(TURN.address(weight.dtype.name), a.view(np.int64), tasks, workers, 0)
        return result


def parts_of(spec: ConvSpec, axes: Sequence[list[Phase]], images: int) -> list[Part]:
    """The convolution of every combination of phases."""
    made = []
    for along in itertools.product(*axes):
        small = ConvSpec(
            batch=images,
            in_channels=spec.out_channels,
            out_channels=spec.in_channels,
            in_size=tuple(out - phase.crop for out, phase in zip(spec.out_size, along, strict=True)),
            kernel_size=tuple(len(phase.taps) for phase in along),
            padding=tuple(phase.padding for phase in along),
            dilation=tuple(phase.dilation for phase in along),
            groups=spec.groups,
            dtype=spec.dtype,
            out_dtype=spec.out_dtype,
        )
        places = np.meshgrid(*(phase.taps for phase in along), indexing="ij")
        taps = np.ravel_multi_index(tuple(places), spec.kernel_size).ravel().astype(np.int64)
        made.append(Part(small, taps, tuple(slice(phase.crop, None) for phase in along)))
    return made


def weaver(
    spec: ConvSpec, axes: Sequence[list[Phase]], parts: Sequence[Part], images: int
) -> Callable[..., None]:
    """The function ``(phases' planes, bias, dx)`` that puts images together."""
    one = [Phase(0, 1, range(1), 1, (0, 0), 0)]
    lifted = [one] * (3 - spec.rank) + list(axes)
    size, stride = direct.lift(spec.in_size, 1), direct.lift(spec.stride, 1)
    which = [np.full(min(s, n), -1) for s, n in zip(stride, size, strict=True)]
    for table, axis in zip(which, lifted, strict=True):
        for at, phase in enumerate(axis):
            table[phase.first] = at
    counts = [np.array([phase.length for phase in axis], np.int64) for axis in lifted]
    first_w = np.array([phase.first for phase in lifted[2]], np.int64)
    begins = np.cumsum([0, *(math.prod(part.spec.output_shape) for part in parts)])
    planes, plane = images * spec.in_channels, math.prod(size)
    step = max(WOVEN // plane, 1)
    template = np.zeros(1, kernels.WEAVE)
    direct.fill(
        template, phase_d=address(which[0]), phase_h=address(which[1]), first_w=address(first_w),
        counts_d=address(counts[0]), counts_h=address(counts[1]), counts_w=address(counts[2]), begins=address(begins),
        planes=planes, channels=spec.in_channels, step=step, d=size[0], h=size[1], w=size[2],
        stride_d=len(which[0]), stride_h=len(which[1]), stride_w=stride[2],
        phases_h=len(lifted[1]), phases_w=len(lifted[2]), whole=sum(counts[2]) == size[2],
    )  # fmt: skip
    tasks = -(-planes // step)

    def weave(held: int, bias: Array | None, dx: Array) -> None:
        a = template.copy()
        direct.fill(a, x=held, bias=address(bias), y=address(dx))
        threads.launch(WEAVE.address(spec.dtype), a.view(np.int64), tasks, threads.workers(tasks), 0)

    weave.tables = which, counts, first_w, begins  # type: ignore[attr-defined]
    return weave


def plan_parts(
    forward: Planner, parts: Sequence[Part], precision: str, limit: int | None, own: int
) -> list[Run]:
    """Every part's run, under what `own` bytes leave of the limit."""
    left = None if limit is None else max(limit - own, 0)
    runs, needs = [], [own]
    for part in parts:
        try:
            runs.append(forward(part.spec, precision, left))
        except Unsupported as refusal:
            if refusal.workspace is None:
                raise
            needs.append(own + refusal.workspace)
    if limit is not None and max(needs) > limit:
        raise Unsupported(f"needs {max(needs)} bytes of scratch", workspace=max(needs))
    return runs


def together(runs: Sequence[Run], left: int | None) -> tuple[int, int, int]:
    """Scratch of runs one after the other: of a thread, shared, and how many threads there may be."""
    workspace = max((run.workspace for run in runs), default=0)
    shared = max((run.shared + run.workspace for run in runs), default=0) - workspace
    at_once = max((run.at_once for run in runs), default=1)
    if left is not None and workspace:
        at_once = max(min(at_once, (left - shared) // workspace), 1)
    return workspace, shared, at_once


def plan_phases(forward: Planner, spec: ConvSpec, precision: str, limit: int | None) -> Run:
    """The gradient of an input that is padded with zeros."""
    axes = [phases(spec, axis) for axis in range(spec.rank)]
    itemsize = DTYPES[spec.dtype].itemsize
    image = spec.in_channels * math.prod(sum(phase.length for phase in axis) for axis in axes) * itemsize
    woven = set(spec.stride) != {1}
    images = spec.batch
    if woven:
        images = max(
            min(1 if limit is not None else PHASE_BYTES // max(image, 1), spec.batch), min(spec.batch, 1)
        )
    parts = parts_of(spec, axes, images)
    copies = [math.prod(part.spec.input_shape) if any(at.start for at in part.read) else 0 for part in parts]
    turned = sum(math.prod(part.spec.weight_shape) for part in parts)
    held = images * image + ALIGNMENT if woven else 0
    own = held + max(copies, default=0) * itemsize
    runs = plan_parts(forward, parts, precision, limit, own + turned * itemsize)
    weave = weaver(spec, axes, parts, images) if woven else None

    def caller(runs: Sequence[Run]) -> Callable[..., None]:
        def call(dy: Array, weights: Sequence[Any], bias: Array | None, dx: Array) -> None:
            bias = contiguous(bias)
            if not parts:
                dx[...] = 0 if bias is None else bias.reshape(-1, *(1,) * spec.rank)
                return
            memory, at = scratch(max(held - ALIGNMENT, 0)) if woven else (dx, 0)
            for begin in range(0, spec.batch, max(images, 1)):
                n = min(begin, spec.batch - images)  # the last few may be computed twice, alike
                target, offset = dx[n : n + images], at - address(memory)
                for part, run, weight, copied in zip(parts, runs, weights, copies, strict=True):
                    read = dy[n : n + images]
                    if copied:
                        read = np.ascontiguousarray(read[(..., *part.read)])
                    shape = part.spec.output_shape
                    to = np.ndarray(shape, target.dtype, memory, offset) if woven else target
                    run.call(read, weight, bias, to)
                    offset += to.nbytes
                if weave is not None:
                    weave(at, bias, target)

        return call

    def ready(runs: Sequence[Run], weight: Array) -> list[Any]:
        made = (part.turned(weight, spec.groups) for part in parts)
        return [run.pack(w) if run.pack else w for run, w in zip(runs, made, strict=True)]

    rounds = -(-spec.batch // max(images, 1))
    moved = cost.traffic(2 * image * spec.batch + own * rounds) if woven else 0.0
    prepared_runs = [run.prepared or run for run in runs]
    unprepared = caller(runs)
    notes = {run.note for run in runs if run.note}
    if woven:
        notes = {
            f"{len(parts)} phase{'s' * (len(parts) != 1)}, {images} image{'s' * (images != 1)} at a time"
        } | notes

    def whole(runs: Sequence[Run], call: Callable[..., None]) -> Run:
        workspace, shared, at_once = together(
            runs, None if limit is None else limit - own - turned * itemsize
        )
        return Run(
            call=call,
            seconds=rounds * sum(run.seconds for run in runs) + moved,
            workspace=workspace,
            at_once=at_once,
            shared=own + shared,
            note="; ".join(sorted(notes)),
            error=max((run.error for run in runs), default=0.0),
            finite_only=any(run.finite_only for run in runs),
        )

    plain = whole(runs, lambda dy, w, bias, dx: unprepared(dy, ready(runs, w), bias, dx))
    prepared = replace(
        whole(prepared_runs, caller(prepared_runs)),
        pack=lambda w: ready(prepared_runs, w),
        packing=("turned", tuple((tuple(part.taps), run.packing) for part, run in zip(parts, prepared_runs, strict=True))),
    )  # fmt: skip
    return replace(
        plain,
        seconds=plain.seconds + cost.traffic(4 * turned * itemsize) + cost.CALL_SECONDS * len(parts),
        shared=plain.shared + turned * itemsize,
        prepared=prepared,
    )


def plan_folded(forward: Planner, spec: ConvSpec, precision: str, limit: int | None) -> Run:
    """Padding holds elements of the input: the padded input's gradient, whose border is added to what it shows."""
    padded = tuple(n + sum(pads) for n, pads in zip(spec.in_size, spec.padding, strict=True))
    bare = replace(spec, in_size=padded, padding=((0, 0),) * spec.rank, padding_mode="zeros")
    itemsize = DTYPES[spec.dtype].itemsize
    image = math.prod(bare.input_shape[1:]) * itemsize
    images = max(min(1 if limit is not None else PHASE_BYTES // image, spec.batch), min(spec.batch, 1))
    own = images * image
    try:
        inner = plan_phases(
            forward, bare.with_batch(images), precision, None if limit is None else max(limit - own, 0)
        )
    except Unsupported as refusal:
        if refusal.workspace is None:
            raise
        need = own + refusal.workspace
        raise Unsupported(f"needs {need} bytes of scratch", workspace=need) from None
    one = (1,) * spec.rank
    copy = replace(spec, kernel_size=one, stride=one, dilation=one)
    window = tuple(slice(0, n) for n in padded)

    def call(dy: Array, weight: Array, bias: Array | None, dx: Array) -> None:
        part = np.empty((images, *bare.input_shape[1:]), dx.dtype)
        for begin in range(0, spec.batch, max(images, 1)):
            n = min(begin, spec.batch - images)
            target = dx[n : n + images]
            inner.call(dy[n : n + images], weight, None, part)
            target[...] = 0 if bias is None else bias.reshape(-1, *one)
            blocks.add_slab(copy, part, window, target)

    rounds = -(-spec.batch // max(images, 1))
    return replace(
        inner,
        call=call,
        seconds=rounds * inner.seconds + cost.traffic(4 * image * spec.batch),
        shared=inner.shared + own,
        prepared=None,
    )


def input_grad(forward: Planner) -> Planner:
    """The planner of the input's gradient by a forward planner."""

    @algorithm(forward.__name__)
    @cast_images
    def plan(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
        kind = plan_phases if spec.padding_mode == "zeros" else plan_folded
        return kind(forward, spec, precision, workspace_limit)

    return plan


# ---------------------------------------------------------------------------- the gradient of the weights


class Cut(NamedTuple):
    """How the sum over positions is cut, and what is copied of the images."""

    seconds: float
    in_columns: bool  # all taps of a few channels, or channels at every place a tap reads
    images: int
    box: direct.Triple
    rows: direct.Triple  # of the padded image, that a box reads
    vectors: int  # of a group
    taps: int  # places a vector is read at
    packed: int  # bytes of the output's gradient, packed
    held: int  # bytes of the blocks


def boxes(out: direct.Triple) -> Iterator[direct.Triple]:
    """Ever smaller boxes whose positions are neighbours in the output."""
    for axis in range(3):
        for side in direct.shares(out[axis]):
            box = (*(1,) * axis, side, *out[axis + 1 :])
            yield box  # type: ignore[misc]


def cut_positions(spec: ConvSpec, g: direct.Geometry, in_columns: bool, room: int, most: int) -> Cut | None:
    """The largest images and boxes whose blocks fit in `room` bytes, for one way of copying."""
    lanes, itemsize, NS = cost.lanes(spec.dtype), DTYPES[spec.dtype].itemsize, scalars(host())
    vectors = -(-(g.K if in_columns else g.c) // lanes)
    taps = 1 if in_columns else g.taps
    whole = math.prod(g.out)
    packs = whole < PACKED_BELOW and spec.batch > 1 and lanes >= NS

    def copied(box: direct.Triple, images: int) -> tuple[int, int, direct.Triple]:
        rows = tuple(
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(box, g.stride, g.kernel, g.dilation, strict=True)
        )
        each = box[0] * box[1] * round_up(box[2], lanes) if in_columns else math.prod(rows) + lanes
        held = images * spec.groups * vectors * each * lanes * itemsize
        packed = spec.groups * -(-g.o // lanes) * (images * math.prod(box) + lanes) * lanes * itemsize
        return held, packed if packs else 0, rows  # type: ignore[return-value]

    for box in boxes(g.out):
        if sum(copied(box, 1)[:2]) <= room:
            break
    images = 1
    if box == g.out:
        images = max(min(spec.batch, most, room // max(sum(copied(box, 1)[:2]), 1)), 1)
    held, packed, rows = copied(box, images)
    if held // images >= 2**31 * itemsize:
        return None
    count = -(-spec.batch // images) * math.prod(-(-n // side) for n, side in zip(g.out, box, strict=True))
    K = math.prod(box) * images
    copies = (
        (math.prod(box) * COLUMN_CYCLES if in_columns else math.prod(rows) * SPREAD_CYCLES) * images * vectors
    )
    each = spec.groups * (taps * cost.tiles(spec.dtype, vectors, g.o, K) + copies * cost.CYCLE)
    return Cut(count * each, in_columns, images, box, rows, vectors, taps, packed, held)


def readers(spec: ConvSpec) -> tuple[ConvSpec, Callable[[Array], Array] | None]:
    """The same sum over images that hold what is read and nothing else, and the function that copies these images."""
    ones, bare = (1,) * spec.rank, ((0, 0),) * spec.rank
    if spec.padding_mode != "zeros":
        padded = tuple(n + sum(pads) for n, pads in zip(spec.in_size, spec.padding, strict=True))
        maps = [
            [source(i - before, size, spec.padding_mode) for i in range(n)]
            for n, size, (before, _) in zip(padded, spec.in_size, spec.padding, strict=True)
        ]

        def pad(x: Array) -> Array:
            return x[(slice(None), slice(None), *np.ix_(*maps))]

        return replace(spec, in_size=padded, padding=bare, padding_mode="zeros"), pad
    plain = math.prod(spec.kernel_size) == 1 and not any(before for before, _ in spec.padding)
    inside = all(
        (n - 1) * s < size for n, s, size in zip(spec.out_size, spec.stride, spec.in_size, strict=True)
    )
    if plain and inside and set(spec.stride) != {1}:
        read = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(spec.out_size, spec.stride, strict=True))
        return replace(spec, in_size=spec.out_size, stride=ones, padding=bare), lambda x: x[(..., *read)]
    return spec, None


def plan_sums(spec: ConvSpec, precision: str, limit: int | None) -> Run:
    """The gradient of the weights, in any type: what is no kernel's is cast, some images at a time."""
    wide = computed(spec.dtype)
    same_in, same_out = spec.dtype == wide, spec.out_dtype == wide
    bare, read = readers(replace(spec, dtype=wide, out_dtype=wide))
    g = direct.geometry(bare)
    if g.is_pointwise:
        flat = (1, 1, math.prod(g.out))
        g = g._replace(size=flat, out=flat)
    lanes, itemsize, NS = cost.lanes(wide), DTYPES[wide].itemsize, scalars(host())
    image = 0 if same_in and read is None else math.prod(bare.input_shape[1:]) * itemsize
    image += 0 if same_in else math.prod(spec.output_shape[1:]) * itemsize
    result = 0 if same_out else math.prod(spec.weight_shape) * itemsize
    most = spec.batch if limit is None and not image else 1
    if limit is None and image:
        most = max(ROUND_BYTES // image, 1)

    def sums_bytes(vectors: int, taps: int) -> int:
        return spec.groups * taps * g.o * vectors * lanes * itemsize

    def worker(box: direct.Triple, in_columns: bool) -> int:
        stage = 128 + NS * VECTORS * host().width
        line = len(g.phases(2)) * (round_up(box[2], lanes) + g.reach(2)) * itemsize
        return round_up(max(stage, in_columns * g.c * g.kernel[0] * g.kernel[1] * line), 64)

    cuts = []
    for in_columns in (False, True):
        room = ROUND_BYTES
        if limit is not None:
            vectors, taps = (-(-g.K // lanes), 1) if in_columns else (-(-g.c // lanes), g.taps)
            room = min(
                room,
                limit - sums_bytes(vectors, taps) - image - result - ALIGNMENT - worker(g.out, in_columns),
            )
        cut = cut_positions(bare, g, in_columns, room, most)
        if cut is not None:
            cuts.append(cut)
    if not cuts:
        raise Unsupported("what a position reads spans 2**31 elements or more")
    if limit is not None:
        need = {
            cut: sums_bytes(cut.vectors, cut.taps)
            + cut.held
            + cut.packed
            + image
            + result
            + ALIGNMENT
            + worker(cut.box, cut.in_columns)
            for cut in cuts
        }
        cuts = [cut for cut in cuts if need[cut] <= limit]
        if not cuts:
            least = min(need.values())
            raise Unsupported(
                f"needs {least} bytes of scratch for one image's box of positions", workspace=least
            )
    cut = min(cuts)
    box, images = cut.box, cut.images
    positions = math.prod(box)
    block_n, block_q = 1, -(-positions // -(-positions // SUMMED))
    if cut.packed:
        block_n = -(-images // -(-images * positions // SUMMED))
    blocks_of_round = -(-images // block_n) * -(-positions // block_q)
    together = -(-cut.vectors // -(-cut.vectors // VECTORS))
    t_tasks = -(-cut.vectors // together)
    # Vectors of the input are read anew for each block of output channels: all at once, if there are tasks enough.
    few = spec.groups * cut.taps * t_tasks < 2 * TASKS
    o_step = round_up(ceil(g.o, ceil(g.o, TASK_CHANNELS) if few else 1), NS)
    o_tasks = -(-g.o // o_step)
    tasks = spec.groups * cut.taps * t_tasks * o_tasks
    parts = 1 if limit is not None else max(min(-(-TASKS // tasks), blocks_of_round), 1)
    part_step = sums_bytes(cut.vectors, cut.taps) // itemsize
    row = round_up(box[2], lanes)
    held_c = box[0] * box[1] * row if cut.in_columns else math.prod(cut.rows) + lanes

    at = np.indices(box).reshape(3, -1).T
    if cut.in_columns:
        offsets = at @ (box[1] * row, row, 1) * lanes
        taps_at = np.zeros(1, np.int64)
    else:
        pitch = np.array(direct.strides(cut.rows))
        offsets = (at * g.stride) @ pitch * lanes
        taps_at = (np.indices(g.kernel).reshape(3, -1).T * g.dilation) @ pitch
    offsets = offsets.astype(np.int32)
    # A row of the input is copied once for each place a window reads it from, split into its phases.
    lines = np.indices((g.c, *g.kernel[:2])).reshape(3, -1).T * (1, *g.dilation[:2]) - (0, *g.before[:2])
    lines = np.ascontiguousarray(lines, np.int64)
    phases_w = np.array(g.phases(2), np.int64)
    pitch_w = row + g.reach(2)
    steps = [divmod(k * g.dilation[2], g.stride[2]) for k in range(g.kernel[2])]
    places = [g.phases(2).index(phase) * pitch_w + q for q, phase in steps]
    lanes_at = np.zeros(round_up(g.K, lanes), np.int64)
    lanes_at[: g.K] = np.add.outer(np.arange(len(lines)) * len(phases_w) * pitch_w, places).ravel()
    x_d, x_h, _ = direct.strides(g.size)
    plane, plane_out = math.prod(g.size), math.prod(g.out)
    per_worker = worker(box, cut.in_columns)
    template = np.zeros(1, kernels.WEIGHT)
    direct.fill(
        template, scratch_size=per_worker, lanes_at=address(lanes_at), lines_at=address(lines), lines=len(lines),
        phases=address(phases_w), phases_w=len(phases_w), phase_w=pitch_w, x_w=1,
        wanted_w=sum(1 << phase for phase in g.phases(2)) if g.stride[2] < 64 else 0, offsets=address(offsets), taps_at=address(taps_at),
        x_n=spec.in_channels * plane, x_c=plane, x_d=x_d, x_h=x_h, dy_n=spec.out_channels * plane_out, dy_c=plane_out,
        groups=spec.groups, c=g.c, o=g.o, size_d=g.size[0], size_h=g.size[1], size_w=g.size[2],
        stride_d=g.stride[0], stride_h=g.stride[1], stride_w=g.stride[2],
        before_d=g.before[0], before_h=g.before[1], before_w=g.before[2],
        rows_d=cut.rows[0], rows_h=cut.rows[1], rows_w=cut.rows[2], vectors=cut.vectors, together=together,
        held_c=held_c, taps=cut.taps, all_taps=g.taps, packed_c=images * positions + lanes,
        block_n=block_n, block_q=block_q, parts=parts, part_step=part_step, o_step=o_step, o_tasks=o_tasks,
        t_tasks=t_tasks,
    )  # fmt: skip
    corners = list(itertools.product(*(range(0, n, side) for n, side in zip(g.out, box, strict=True))))
    copy = COLUMNS if cut.in_columns else SPREAD
    rounds = -(-spec.batch // images) * len(corners)
    copies = box[0] * box[1] if cut.in_columns else cut.vectors
    at_once = max(parts * tasks, images * spec.groups * copies)
    shared = ALIGNMENT + cut.held + cut.packed + parts * part_step * itemsize + images * image + result
    if limit is not None:
        at_once = max(min(at_once, (limit - shared) // per_worker), 1)

    def cast(array: Array) -> Array:
        return array.view(wide) if array.dtype == np.uint64 else np.ascontiguousarray(array, dtype=wide)

    def call(x: Array, dy: Array, dw: Array) -> None:
        a = template.copy()
        fields = a.view(np.int64)
        workers = threads.workers(at_once)
        sums = np.empty(parts * part_step, wide)
        if not spec.batch:
            sums[:] = 0
        target = dw if same_out else dw.view(wide) if dw.dtype == np.uint64 else np.empty(dw.shape, wide)
        _memory, begin = scratch(cut.held + cut.packed + workers * per_worker)
        direct.fill(
            a, sums=address(sums), y=address(target), held=begin, packed=begin + cut.held if cut.packed else 0,
            scratch=begin + cut.held + cut.packed,
        )  # fmt: skip
        for n in range(0, spec.batch, images):
            some = x[n : n + images]
            some, gradient = cast(some if read is None else read(some)), cast(dy[n : n + images])
            count = len(some)
            direct.fill(a, x=address(some), dy=address(gradient), batch=count)
            for corner in corners:
                sizes = [min(side, m - c) for side, m, c in zip(box, g.out, corner, strict=True)]
                inside = math.prod(sizes)
                direct.fill(
                    a, d0=corner[0], h0=corner[1], w0=corner[2], nd=sizes[0], nh=sizes[1], nw=sizes[2], positions=inside,
                    first=(corner[0] * g.out[1] + corner[1]) * g.out[2] + corner[2],
                    blocks=-(-count // block_n) * -(-inside // block_q),
                )  # fmt: skip
                copies = sizes[0] * sizes[1] if cut.in_columns else cut.vectors
                threads.launch(copy.address(wide), fields, count * spec.groups * copies, workers, 0)
                if cut.packed:
                    threads.launch(PACK.address(wide), fields, spec.groups * -(-g.o // lanes), workers, 0)
                threads.launch(
                    PRODUCTS.address(wide), fields, parts * tasks, workers, cut.seconds / max(rounds, 1)
                )
                direct.fill(a, begun=1)
        threads.launch(SUMS.address(wide), fields, spec.out_channels, workers, 0)
        if target is not dw and dw.dtype != np.uint64:
            np.copyto(dw, target, casting="unsafe")

    call.tables = offsets, taps_at, lanes_at, lines, phases_w  # type: ignore[attr-defined]
    what = "all taps of a position" if cut.in_columns else "channels of a position"
    note = f"vectors of {what}; {images} image{'s' * (images != 1)} x {'x'.join(map(str, box))} positions at a time"
    return Run(
        call=call,
        seconds=cut.seconds + rounds * 2 * cost.CALL_SECONDS + cost.traffic(2 * parts * part_step * itemsize),
        workspace=per_worker,
        at_once=at_once,
        shared=shared,
        note=note if same_in else f"{note}, in {wide}",
    )


@algorithm("implicit_gemm")
def weight_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """The weights' gradient of any convolution: a matrix product over positions, without columns."""
    return plan_sums(spec, precision, workspace_limit)


@algorithm("depthwise")
def depthwise_weight_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """One input channel for each group: dot products of rows, read where they lie."""
    g = direct.geometry(spec)
    if g.c != 1:
        raise Unsupported(f"needs one input channel in a group, got {g.c}")
    if spec.dtype != computed(spec.dtype) or spec.out_dtype != spec.dtype:
        raise Unsupported(f"sums {spec.dtype} as {spec.dtype} only, got {spec.out_dtype} for the result")
    if g.stride[2] > 2 or spec.padding_mode != "zeros":
        raise Unsupported("needs a stride of 1 or 2 along rows, and padding with zeros")
    if math.prod(g.size) >= 2**30:
        raise Unsupported("needs an image of less than 2**30 elements")
    lanes = cost.lanes(spec.dtype)
    across = -(-g.kernel[2] // kernels.SIDE)
    rows = g.kernel[0] * g.kernel[1]
    per_worker = rows * across * kernels.SIDE * host().width
    parts = max(min(TASKS // spec.out_channels, spec.batch), 1)
    partial = parts * math.prod(spec.weight_shape) * DTYPES[spec.dtype].itemsize if parts > 1 else 0
    if workspace_limit is not None and (need := per_worker + partial + ALIGNMENT) > workspace_limit:
        raise Unsupported(f"needs {need} bytes of scratch", workspace=need)
    plane, plane_out = math.prod(g.size), math.prod(g.out)
    template = np.zeros(1, kernels.ROWS_ARGUMENTS)
    by_axis = {
        "size_": g.size,
        "o": g.out,
        "k": g.kernel,
        "stride_": g.stride,
        "dilation_": g.dilation,
        "before_": g.before,
    }
    direct.fill(
        template, scratch_size=per_worker, batch=spec.batch, per_group=g.o, o=spec.out_channels, parts=parts,
        x_n=spec.in_channels * plane, x_c=plane, dy_n=spec.out_channels * plane_out, dy_c=plane_out,
        **{name + axis: values[i] for name, values in by_axis.items() for i, axis in enumerate("dhw")},
    )  # fmt: skip
    tasks = spec.out_channels * parts
    vectors = g.out[0] * g.out[1] * -(-g.out[2] // lanes) * rows * across
    seconds = spec.batch * spec.out_channels * vectors * ROW_CYCLES * cost.CYCLE * cost.SLOWER[spec.dtype]
    seconds = max(seconds, spec.nbytes(Op.CONV_WEIGHT_GRAD) / cost.BYTES)
    at_once = tasks
    if workspace_limit is not None:
        at_once = max(min(tasks, (workspace_limit - partial - ALIGNMENT) // per_worker), 1)

    def call(x: Array, dy: Array, dw: Array) -> None:
        x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
        sums = np.empty((parts, *dw.shape), dw.dtype) if parts > 1 else dw
        workers = threads.workers(at_once)
        _held, at = scratch(workers * per_worker)
        a = template.copy()
        direct.fill(a, x=address(x), dy=address(dy), sums=address(sums), scratch=at)
        threads.launch(DEPTHWISE.address(spec.dtype), a.view(np.int64), tasks, workers, seconds)
        if parts > 1:
            np.sum(sums, axis=0, out=dw)

    return Run(
        call=call,
        seconds=seconds + cost.CALL_SECONDS,
        workspace=per_worker,
        at_once=at_once,
        shared=partial + ALIGNMENT,
        note="reads the input where it lies",
    )
