"""The gradient of a convolution's weights, planned: a sum over positions.

The plan fixes its order: of images and boxes of positions, copied one after the other, and within them of parts, which
any thread may sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastconv.backends import Run, Unsupported
from fastconv.backends.numba import cost, jit, threads
from fastconv.backends.numba.geometry import Geometry, Triple, geometry, shares, strides
from fastconv.backends.numba.kernels import weight_grad as kernels
from fastconv.backends.numba.kernels.positions import SLOTS_BYTES
from fastconv.backends.numba.kernels.simd import host
from fastconv.backends.numba.kernels.tile import VECTORS, scalars
from fastconv.backends.numba.operands import (
    ALIGNMENT,
    Array,
    address,
    computed,
    scratch,
    set_fields,
    setter,
)
from fastconv.backends.numba.positions import panel_from
from fastconv.backends.numba.winograd import ceil, round_up
from fastconv.spec import DTYPES, ConvSpec, Op, source

SPREAD = jit.Kernel(kernels.spread)
COLUMNS = jit.Kernel(kernels.columns)
PACK = jit.Kernel(kernels.pack_positions)
PRODUCTS = jit.Kernel(kernels.weight_products)
PARTS = jit.Kernel(kernels.weight_parts)
SUMS = jit.Kernel(kernels.weight_sums)
DEPTHWISE = jit.Kernel(kernels.depthwise_sums)
CHANNELS = jit.Kernel(kernels.channel_sums)

put = setter(kernels.WEIGHT)
put_rows = setter(kernels.ROWS_ARGUMENTS)

# Channels are taken side by side where what they hold of an image, turned, leaves room in an L1 cache of 32 KB.
TURNED_BYTES = 24 << 10

# Cycles of a vector of a row with SIDE taps: their masks, loads and multiply-adds.
ROW_CYCLES = 10

# Blocks of images that are copied, multiplied and overwritten: a share of the last level of the cache.
ROUND_BYTES = 4 << 20

# Positions of one tile: vectors of channels and the output's gradient stay in a core's L2 for all output channels.
SUMMED = 512

# Planes this small are packed: a tile over several images reads the output's gradient in one go.
PACKED_BELOW = 256

# What a part may hold of its images, and its sums: they stay in a core's L2 and L1.
HELD_BYTES, SUMS_BYTES = 192 << 10, 32 << 10

# Output channels of a task, whose panels are copied once for them all: with 64 16 images took 1.04 times as long. Tasks of a
# round at least, so that a few threads end together.
TASK_CHANNELS = 128
TASKS = 16

# What panels and blocks of sums take beside products and copies.
BESIDE = 1.15

# Cycles to copy one vector of channels; of taps, which are gathered first.
SPREAD_CYCLES, COLUMN_CYCLES = 6, 8


class Cut(NamedTuple):
    """How the sum over positions is cut, and what is copied of the images."""

    seconds: float
    in_columns: bool  # all taps of a few channels, or channels at every place a tap reads
    images: int
    box: Triple
    rows: Triple  # of the padded image, that a box reads
    vectors: int  # of a group
    taps: int  # places a vector is read at
    packed: int  # bytes of the output's gradient, packed
    held: int  # bytes of the blocks


def boxes(out: Triple) -> Iterator[Triple]:
    """Ever smaller boxes whose positions are neighbours in the output."""
    for axis in range(3):
        for side in shares(out[axis]):
            box = (*(1,) * axis, side, *out[axis + 1 :])
            yield box  # type: ignore[misc]


def cut_positions(spec: ConvSpec, g: Geometry, in_columns: bool, room: int, most: int) -> Cut | None:
    """The largest images and boxes whose blocks fit in `room` bytes, for one way of copying."""
    lanes, itemsize, NS = cost.lanes(spec.dtype), DTYPES[spec.dtype].itemsize, scalars(host())
    vectors = -(-(g.K if in_columns else g.c) // lanes)
    taps = 1 if in_columns else g.taps
    whole = math.prod(g.out)
    packs = whole < PACKED_BELOW and spec.batch > 1 and lanes >= NS

    def copied(box: Triple, images: int) -> tuple[int, int, Triple]:
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
    each = spec.groups * (cost.tiles(spec.dtype, taps * vectors, g.o, K) + copies * cost.CYCLE)
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
    g = geometry(bare)
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

    panel = g.o >= panel_from(g, flat=False)

    def worker(box: Triple, in_columns: bool) -> int:
        stage = SLOTS_BYTES + panel * SUMMED * VECTORS * host().width
        line = len(g.phases(2)) * round_up(round_up(box[2], lanes) + g.reach(2), lanes) * itemsize
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
        block_n = ceil(images, ceil(images, max(SUMMED // positions, 1)))
    blocks_of_round = -(-images // block_n) * -(-positions // block_q)
    reads = cut.taps * cut.vectors
    together = ceil(reads, ceil(reads, VECTORS))
    t_tasks = ceil(reads, together)
    # Vectors of the input are read anew for each block of output channels: all at once, if there are tasks enough.
    few = spec.groups * t_tasks < 2 * TASKS
    o_step = round_up(ceil(g.o, ceil(g.o, TASK_CHANNELS) if few else 1), NS)
    o_tasks = -(-g.o // o_step)
    tasks = spec.groups * t_tasks * o_tasks
    parts = 1 if limit is not None else max(min(-(-TASKS // tasks), blocks_of_round), 1)
    part_step = sums_bytes(cut.vectors, cut.taps) // itemsize
    # A few small images at a time go all the way on one thread.
    each = (cut.held + cut.packed) // images
    block = max(min(SUMMED // positions, HELD_BYTES // max(each, 1), ceil(spec.batch, TASKS)), 1)
    by_parts = (
        few and same_in and same_out and read is None and limit is None and box == g.out and spec.batch > block
        and part_step * itemsize <= SUMS_BYTES and each <= HELD_BYTES
    )  # fmt: skip
    if by_parts:
        block_n, parts = block, min(TASKS, ceil(spec.batch, block))
    # One part, of one tap, without lanes to spare, is the gradient itself.
    in_place = parts == cut.taps == 1 and cut.vectors * lanes == (g.K if cut.in_columns else g.c)
    sums_room = 0 if in_place else parts * part_step
    row = round_up(box[2], lanes)
    held_c = box[0] * box[1] * row if cut.in_columns else math.prod(cut.rows) + lanes

    at = np.indices(box).reshape(3, -1).T
    if cut.in_columns:
        offsets = at @ (box[1] * row, row, 1) * lanes
        taps_at = np.zeros(1, np.int64)
    else:
        pitch = np.array(strides(cut.rows))
        offsets = (at * g.stride) @ pitch * lanes
        taps_at = (np.indices(g.kernel).reshape(3, -1).T * g.dilation) @ pitch
    offsets = offsets.astype(np.int32)
    # A row of the input is copied once for each place a window reads it from, split into its phases.
    lines = np.indices((g.c, *g.kernel[:2])).reshape(3, -1).T * (1, *g.dilation[:2]) - (0, *g.before[:2])
    lines = np.ascontiguousarray(lines, np.int64)
    phases_w = np.array(g.phases(2), np.int64)
    pitch_w = round_up(row + g.reach(2), lanes)  # rows are copied in whole vectors
    steps = [divmod(k * g.dilation[2], g.stride[2]) for k in range(g.kernel[2])]
    places = [g.phases(2).index(phase) * pitch_w + q for q, phase in steps]
    lanes_at = np.zeros(round_up(g.K, lanes), np.int64)
    lanes_at[: g.K] = np.add.outer(np.arange(len(lines)) * len(phases_w) * pitch_w, places).ravel()
    x_d, x_h, _ = strides(g.size)
    plane, plane_out = math.prod(g.size), math.prod(g.out)
    per_worker = worker(box, cut.in_columns)
    held, packed = cut.held, cut.packed
    slots_at, held_at, packed_at = 0, 0, 0
    packed_c = images * positions + lanes
    if by_parts:
        # Behind the lines of columns: slots and a tile's sums, the blocks, and the output's gradient if it is packed.
        slots_at, packed_c = per_worker, block_n * positions + lanes
        held_at = slots_at + worker(box, False)
        packed_at = held_at + round_up(block_n * spec.groups * cut.vectors * held_c * lanes * itemsize, 64)
        per_worker = packed_at + (
            spec.groups * ceil(g.o, lanes) * packed_c * lanes * itemsize if packed else 0
        )
        held, packed = 0, 0
    template = np.zeros(1, kernels.WEIGHT)
    set_fields(
        template, scratch_size=per_worker, lanes_at=address(lanes_at), lines_at=address(lines), lines=len(lines),
        phases=address(phases_w), phases_w=len(phases_w), phase_w=pitch_w, x_w=1,
        wanted_w=sum(1 << phase for phase in g.phases(2)) if g.stride[2] < 64 else 0, offsets=address(offsets), taps_at=address(taps_at),
        x_n=spec.in_channels * plane, x_c=plane, x_d=x_d, x_h=x_h, dy_n=spec.out_channels * plane_out, dy_c=plane_out,
        groups=spec.groups, c=g.c, o=g.o, size_d=g.size[0], size_h=g.size[1], size_w=g.size[2],
        stride_d=g.stride[0], stride_h=g.stride[1], stride_w=g.stride[2],
        before_d=g.before[0], before_h=g.before[1], before_w=g.before[2],
        rows_d=cut.rows[0], rows_h=cut.rows[1], rows_w=cut.rows[2], vectors=cut.vectors, together=together,
        held_c=held_c, taps=cut.taps, all_taps=g.taps, packed_c=packed_c,
        block_n=block_n, block_q=block_q, parts=parts, part_step=part_step, o_step=o_step, o_tasks=o_tasks,
        t_tasks=t_tasks, in_columns=cut.in_columns, slots_at=slots_at, panel=panel,
    )  # fmt: skip
    if by_parts:
        set_fields(
            template, held=held_at, packed=packed_at if cut.packed else 0, batch=spec.batch, nd=box[0], nh=box[1], nw=box[2],
            positions=positions, blocks=ceil(spec.batch, block_n),
        )  # fmt: skip
    corners = list(itertools.product(*(range(0, n, side) for n, side in zip(g.out, box, strict=True))))
    copy = COLUMNS if cut.in_columns else SPREAD
    rounds = 1 if by_parts else -(-spec.batch // images) * len(corners)
    copies = box[0] * box[1] if cut.in_columns else cut.vectors
    at_once = parts if by_parts else max(parts * tasks, images * spec.groups * copies)
    shared = ALIGNMENT + held + packed + sums_room * itemsize + images * image + result
    if limit is not None:
        at_once = max(min(at_once, (limit - shared) // per_worker), 1)

    def cast(array: Array) -> Array:
        return array.view(wide) if array.dtype == np.uint64 else np.ascontiguousarray(array, dtype=wide)

    fields = template.view(np.int64)

    def in_rounds(a: Array, x: Array, dy: Array, begin: int, workers: int) -> None:
        put(a, held=begin, packed=begin + held if packed else 0, scratch=begin + held + packed)
        for n in range(0, spec.batch, images):
            some = x[n : n + images]
            some, gradient = cast(some if read is None else read(some)), cast(dy[n : n + images])
            count = len(some)
            put(a, x=address(some), dy=address(gradient), batch=count)
            for corner in corners:
                sizes = [min(side, m - c) for side, m, c in zip(box, g.out, corner, strict=True)]
                inside = math.prod(sizes)
                put(
                    a, d0=corner[0], h0=corner[1], w0=corner[2], nd=sizes[0], nh=sizes[1], nw=sizes[2], positions=inside,
                    first=(corner[0] * g.out[1] + corner[1]) * g.out[2] + corner[2],
                    blocks=-(-count // block_n) * -(-inside // block_q),
                )  # fmt: skip
                copies = sizes[0] * sizes[1] if cut.in_columns else cut.vectors
                tasks_of_copy = count * spec.groups * copies
                threads.launch(copy.address(wide), a, tasks_of_copy, workers, cost.moving(held))
                if packed:
                    tasks_of_pack = spec.groups * -(-g.o // lanes)
                    threads.launch(PACK.address(wide), a, tasks_of_pack, workers, cost.moving(packed))
                threads.launch(
                    PRODUCTS.address(wide), a, parts * tasks, workers, cut.seconds / max(rounds, 1)
                )
                put(a, begun=1)

    def in_parts(a: Array, x: Array, dy: Array, begin: int, workers: int) -> None:
        x, dy = cast(x), cast(dy)
        put(a, x=address(x), dy=address(dy), scratch=begin)
        threads.launch(PARTS.address(wide), a, parts, workers, cut.seconds)

    def call(x: Array, dy: Array, dw: Array) -> None:
        a = fields.copy()
        workers = threads.workers(at_once)
        target = dw if same_out else dw.view(wide) if dw.dtype == np.uint64 else np.empty(dw.shape, wide)
        sums = target if in_place else np.empty(sums_room, wide)
        if not spec.batch:
            sums[...] = 0
        _memory, begin = scratch(held + packed + workers * per_worker)
        put(a, sums=address(sums), y=address(target))
        (in_parts if by_parts else in_rounds)(a, x, dy, begin, workers)
        if not in_place:
            moved = cost.moving(sums_room * itemsize)
            threads.launch(SUMS.address(wide), a, spec.out_channels, workers, moved)
        if target is not dw and dw.dtype != np.uint64:
            np.copyto(dw, target, casting="unsafe")

    call.tables = offsets, taps_at, lanes_at, lines, phases_w  # type: ignore[attr-defined]
    what = "all taps of a position" if cut.in_columns else "channels of a position"
    count = block_n if by_parts else images
    note = f"vectors of {what}; {count} image{'s' * (count != 1)} x {'x'.join(map(str, box))} positions at a time"
    return Run(
        call=call,
        seconds=BESIDE * cut.seconds + rounds * 2 * cost.CALL_SECONDS + cost.moving(2 * sums_room * itemsize),
        workspace=per_worker,
        at_once=at_once,
        shared=shared,
        note=note if same_in else f"{note}, in {wide}",
    )


def implicit_gemm(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """The weights' gradient of any convolution: a matrix product over positions, without columns."""
    return plan_sums(spec, precision, workspace_limit)


def depthwise(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """One input channel for each group: dot products of rows, read where they lie."""
    g = geometry(spec)
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
    nine = g.kernel == (1, 3, 3) and g.dilation == (1, 1, 1) and g.stride[1] == g.stride[2]
    nine = nine and g.size[0] == g.out[0] == 1
    ways = [(DEPTHWISE, 1, rows * across * kernels.SIDE * host().width)]
    # Side by side channels are turned into padded images.
    pitch = max(g.before[2] + ceil(g.size[2], lanes) * lanes, (g.out[2] - 1) * g.stride[2] + kernels.NINE)
    held_x = pitch * max(g.before[1] + g.size[1], (g.out[1] - 1) * g.stride[1] + kernels.NINE)
    turned = host().width * (kernels.NINE**2 + held_x + ceil(math.prod(g.out), lanes) * lanes)
    if nine and g.o == 1 and turned <= TURNED_BYTES:
        ways.insert(0, (CHANNELS, lanes, turned))
    for way in ways:
        kernel, step, per_worker = way
        units = ceil(spec.out_channels, step)
        parts = max(min(TASKS // units, spec.batch), 1)
        partial = parts * math.prod(spec.weight_shape) * DTYPES[spec.dtype].itemsize if parts > 1 else 0
        need = per_worker + partial + ALIGNMENT
        if workspace_limit is None or need <= workspace_limit:
            break
    else:
        raise Unsupported(f"needs {need} bytes of scratch", workspace=need)
    plane, plane_out = math.prod(g.size), math.prod(g.out)
    # With more padding than one column more vectors than the first and the last would need masks.
    nine = nine and max(g.before[2], g.after[2]) <= 1
    zeros = np.zeros(max(g.size[2], g.out[2]) if nine else 0, spec.dtype)
    template = np.zeros(1, kernels.ROWS_ARGUMENTS)
    by_axis = {
        "size_": g.size,
        "o": g.out,
        "k": g.kernel,
        "stride_": g.stride,
        "dilation_": g.dilation,
        "before_": g.before,
    }
    set_fields(
        template, scratch_size=per_worker, batch=spec.batch, per_group=g.o, o=spec.out_channels, parts=parts,
        zeros=address(zeros) if nine else 0, pitch=pitch, held_x=held_x, x_n=spec.in_channels * plane, x_c=plane, dy_n=spec.out_channels * plane_out, dy_c=plane_out,
        **{name + axis: values[i] for name, values in by_axis.items() for i, axis in enumerate("dhw")},
    )  # fmt: skip
    tasks = units * parts
    vectors = g.out[0] * g.out[1] * -(-g.out[2] // lanes) * rows * across
    seconds = spec.batch * spec.out_channels * vectors * ROW_CYCLES * cost.CYCLE * cost.SLOWER[spec.dtype]
    seconds = max(seconds, spec.nbytes(Op.CONV_WEIGHT_GRAD) / cost.BYTES)
    at_once = tasks
    if workspace_limit is not None:
        at_once = max(min(tasks, (workspace_limit - partial - ALIGNMENT) // per_worker), 1)

    fields = template.view(np.int64)

    def call(x: Array, dy: Array, dw: Array) -> None:
        x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
        sums = np.empty((parts, *dw.shape), dw.dtype) if parts > 1 else dw
        workers = threads.workers(at_once)
        _held, at = scratch(workers * per_worker)
        a = fields.copy()
        put_rows(a, x=address(x), dy=address(dy), sums=address(sums), scratch=at)
        threads.launch(kernel.address(spec.dtype), a, tasks, workers, seconds)
        if parts > 1:
            np.sum(sums, axis=0, out=dw)

    call.tables = zeros  # type: ignore[attr-defined]
    return Run(
        call=call,
        seconds=seconds + cost.CALL_SECONDS,
        workspace=per_worker,
        at_once=at_once,
        shared=partial + ALIGNMENT,
        note="channels side by side" if kernel is CHANNELS else "reads the input where it lies",
    )
