"""Direct convolution with vectors along the output channels, planned: what a task computes, and what is copied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.backends import Run, Unsupported
from fastconv.backends.numba import cost, jit, slabs, threads
from fastconv.backends.numba.geometry import Geometry, Triple, geometry, lift, shares, strides
from fastconv.backends.numba.kernels import direct as kernels
from fastconv.backends.numba.kernels.positions import ARGUMENTS, next_tile
from fastconv.backends.numba.kernels.simd import host
from fastconv.backends.numba.kernels.tile import VECTORS
from fastconv.backends.numba.operands import (
    ALIGNMENT,
    Array,
    address,
    begun,
    cast_images,
    contiguous,
    scratch,
    set_fields,
)
from fastconv.backends.numba.positions import Turned
from fastconv.spec import DTYPES, ConvSpec

DIRECT = {most: jit.Kernel(kernels.tasks(most)) for most in kernels.WIDTHS}
PACK, PACK_TURNED = jit.Kernel(kernels.pack_channels), jit.Kernel(kernels.pack_turned)

# Weights of one part of a sum stay in the L1 cache, beside the lines of the input that a tile reads of it: fewer where each
# term reads a channel of its own, which is fetched meanwhile. For 16 images of 14 x 14 all 12 KB lost a tenth on a Zen 3. On
# a Zen 5, whose L1 cache holds 48 KB, 24 KB of either gained 2 % on 3 x 3 and 5 % on 1 x 1 layers over these.
PART_BYTES, POINTWISE_BYTES = cost.here((24 << 10, 24 << 10), (12 << 10, 6 << 10))

# Positions of a task are a multiple of what every tile and every turned block takes; its sums stay in the L2 cache.
POSITIONS = 768
SUMS_BYTES = 128 << 10

# Weights that are packed at a time for one call, unless prepared: more would not be small beside its operands.
PACKED_BYTES = 1 << 20

# What a term of one vector takes beside its multiply-adds: nine loads for eight of them, 6 cycles where 4 would do.
ALONE = 1.5

# Cycles of a part of a tile beyond its terms, of an output that is turned, and of a position that is looked up.
PART_CYCLES, TURN_CYCLES, PLACE_CYCLES = cost.here((13, 0.25, 1.6), (20, 0.4, 2.0))

# Beginning to write to one more plane: in tasks of 672 positions 16 images of 32 x 112 x 112 took 1.09 times less than of 216.
PLANE_CYCLES = cost.here(15, 30)

# A line of the input that comes to the L1 cache, where a page holds several channels and where it does not.
LINE_CYCLES, PAGE_BYTES = cost.here((0.5, 1.5), (1.5, 12.0)), 4096

# Rows of a channel from this size on are fetched ahead; shorter ones follow one another closely.
FETCHED_BYTES = 512

# A term whose line is dropped before the next tile reads it: 64 channels of 112 x 112 took 1.8 times as long as a panel.
CROWDED = cost.here(1.0, 2.0)

# A weight that is packed, and one that is turned besides: of a window of one, of any other. Weights of a task that turns.
PACK_CYCLES, TURNED_CYCLES = cost.here(0.3, 1.5), (0.3, 1.0)
TURNED = 16 << 10

FIELD = slabs.FIELD
OFFSETS, GIVEN, O_TASKS = FIELD["offsets"], FIELD["given"], FIELD["o_tasks"]
W_GROUP, V_FIRST, V_STOP = FIELD["w_group"], FIELD["v_first"], FIELD["v_stop"]
STEPS = slice(FIELD["step_d"], FIELD["step_w"] + 1)


def blocks(vectors: int) -> Iterator[int]:
    """Vectors of each tile that covers `vectors` of channels, as the kernels cut them."""
    while vectors:
        mv = next_tile(vectors)
        yield mv
        vectors -= mv


class Cut(NamedTuple):
    """How the work is cut: positions and vectors of channels of a task, and most positions of a tile."""

    seconds: float
    p_step: int
    o_step: int
    most: int


def part_terms(g: Geometry) -> int:
    """Terms whose weights are read at a time: an even share of all."""
    most = (POINTWISE_BYTES if g.is_pointwise else PART_BYTES) // (VECTORS * host().width)
    return next(share for share in shares(g.K) if share <= max(most, 1))


def held_lines(step: int) -> int:
    """Lines, `step` bytes apart, that the L1 cache holds: of 64 sets they fall on a few where the step is a round number."""
    return 8 * 64 // math.gcd(step // 64, 64) if step % 64 == 0 else 8 * 64


def choose(spec: ConvSpec, g: Geometry, packed: bool) -> Cut:
    """The cheapest cut into positions and channels, whose weights are packed ahead or by the call."""
    itemsize, lanes = DTYPES[spec.dtype].itemsize, cost.lanes(spec.dtype)
    positions, vectors = math.prod(g.out), -(-g.o // lanes)
    terms = part_terms(g)
    parts = -(-g.K // terms)
    # Where channels lie apart, each of a part's terms has a page of its own, and may share a few sets of the L1 cache.
    plane = math.prod(g.size) * itemsize
    apart = g.is_pointwise and plane >= PAGE_BYTES // 2
    crowded = CROWDED if g.is_pointwise and 2 * terms > held_lines(plane) else 1.0
    far = math.prod(spec.output_shape) * itemsize > cost.FAR_BYTES
    found = []
    for most, o_step in itertools.product(kernels.WIDTHS, shares(vectors)):
        if o_step > 1 and not packed and spec.groups * o_step * host().width * g.K > PACKED_BYTES:
            continue
        tiles = [(mv, kernels.positions_of(mv, most)) for mv in blocks(o_step)]
        unit = math.lcm(*(kernels.positions_of(mv, most) for mv in range(1, VECTORS + 1)), lanes)
        for share in shares(max(-(-positions // unit), 1)):
            p_step = share * unit
            count = min(p_step, positions)
            if share > 1 and (p_step > POSITIONS or o_step * lanes * p_step * itemsize > SUMS_BYTES):
                continue
            cycles = count * PLACE_CYCLES + o_step * lanes * (count * TURN_CYCLES + PLANE_CYCLES)
            for mv, ns in tiles:
                term = ns * mv / cost.FMAS * (ALONE if mv == 1 else 1) * crowded * cost.SLOWER[spec.dtype]
                cycles += -(-count // ns) * (g.K * term + parts * PART_CYCLES)
            if far:
                cycles += o_step * lanes * count * itemsize / 64 * cost.FAR_CYCLES
            lines = g.kernel[0] * g.kernel[1] * (count * g.stride[2] * itemsize / 64 + 1)
            cycles += g.c * lines * len(tiles) * LINE_CYCLES[apart]
            x_bytes = count / max(positions, 1) * g.c * plane
            each = cycles * cost.CYCLE + cost.traffic(o_step * lanes * g.K * itemsize + x_bytes)
            tasks = -(-positions // p_step) * -(-vectors // o_step) * spec.groups * spec.batch
            found.append(Cut(cost.task_seconds(each, tasks), p_step, o_step, most))
    return min(found)


class Places(NamedTuple):
    """Where an input's elements are read, in elements: each term's offset, and from an output to the next."""

    offsets: Array
    steps: Triple


def places(g: Geometry, channel: int, step: Triple) -> Places:
    """Those of an input that is read where it lies, with these strides in elements."""
    taps = [
        sum(k * d * s for k, d, s in zip(tap, g.dilation, step, strict=True))
        for tap in itertools.product(*map(range, g.kernel))
    ]
    d, h, w = (stride * s for stride, s in zip(g.stride, step, strict=True))
    return Places(table(np.arange(g.c) * channel, np.array(taps)), (d, h, w))


def table(channels: Array, taps: Array) -> Array:
    """The offset of every term: channels outside, taps inside."""
    offsets = np.add.outer(channels, taps).ravel()
    if offsets.size and np.abs(offsets).max() >= 2**31:
        raise Unsupported("its window spans 2**31 elements or more")
    return offsets.astype(np.int32)


def with_rows_whole(g: Geometry) -> Geometry:
    """That of copied images that keep their rows whole.

    A scalar may be read anywhere, so phases of a stride need not be told apart.
    """
    dense = tuple(
        n + before + after - (k - 1) * d
        for n, before, after, k, d in zip(g.size, g.before, g.after, g.kernel, g.dilation, strict=True)
    )
    return g._replace(out=dense, stride=(1, 1, 1))  # type: ignore[arg-type]


def worker(cut: Cut, dtype: str) -> tuple[int, int, int]:
    """Where a worker's bias and its sums begin in its scratch, and how many bytes that has."""
    room = cut.p_step + cut.most
    bias_at = -(-8 * room // 64) * 64
    sums_at = bias_at + cut.o_step * host().width
    nbytes = max(sums_at + cut.o_step * host().width * room, cost.lanes(dtype) * host().width)
    return bias_at, sums_at, -(-nbytes // 64) * 64


def run(spec: ConvSpec, limit: int | None, packed: bool, turned: Turned | None = None) -> Run:
    """The run of weights as they are given, packed, or as they are to be turned."""
    g = geometry(spec)
    itemsize, lanes = DTYPES[spec.dtype].itemsize, cost.lanes(spec.dtype)
    if math.prod(g.out) < (least := kernels.positions_of(VECTORS, kernels.WIDTHS[0])):
        raise Unsupported(f"needs {least} output positions, which a tile computes, got {math.prod(g.out)}")
    cut = choose(spec, g, packed)
    vectors = -(-g.o // lanes)
    in_place = not any(g.before + g.after)
    images = copied = 0
    rounds, held = 1, None
    seconds = cut.seconds
    template = np.zeros(1, ARGUMENTS)
    if in_place:
        plane = math.prod(g.size)
        found = places(g, plane, strides(g.size))  # type: ignore[arg-type]
        set_fields(template, x_n=spec.in_channels * plane, x_group=g.c * plane)
    else:
        whole = with_rows_whole(g)
        held = slabs.slab_of(spec, whole, whole.out)
        set_fields(template, **held.fields)
        image = slabs.slab_bytes(whole, whole.out, spec.in_channels, itemsize)
        if image > 4 * slabs.COPIED_BYTES:
            raise Unsupported("copies whole images, and its own are too large")
        images = max(min(slabs.COPIED_BYTES // image, spec.batch), 1) if limit is None else 1
        copied = -(-(images * held.fields["copied_n"] * itemsize + host().width) // 64) * 64
        pitch_d, pitch_h, _ = strides(whole.slab(whole.out)[3:])
        found = places(g, held.fields["pitch_c"], (pitch_d, pitch_h, 1))
        rounds = max(-(-spec.batch // images), 1)
        seconds += slabs.copy_seconds(spec, whole, whole.out, spec.in_channels) * spec.batch
        seconds += rounds * cost.CALL_SECONDS
    bias_at, sums_at, nbytes = worker(cut, spec.dtype)
    # Vectors of channels whose weights are packed at a time.
    row = spec.groups * host().width * g.K
    some = vectors if packed else min(cut.o_step * max(PACKED_BYTES // (cut.o_step * row), 1), vectors)
    weights = 0 if packed else some * row
    ahead = -(-(copied + weights) // 64) * 64
    shared = ahead + ALIGNMENT
    if limit is not None and (need := nbytes + shared) > limit:
        raise Unsupported(f"needs {need} bytes of scratch", workspace=need)
    plane_out = math.prod(g.out)
    p_tasks, o_tasks = max(-(-plane_out // cut.p_step), 1), -(-some // cut.o_step)
    set_fields(
        template, batch=spec.batch, o=g.o, c=g.c, K=g.K, taps=g.taps, groups=spec.groups,
        y_n=spec.out_channels * plane_out, y_c=plane_out, w_group=some * g.K, v_stop=some,
        out_h=g.out[1], out_w=g.out[2], o_step=cut.o_step, o_tasks=o_tasks, positions=plane_out, p_step=cut.p_step, p_tasks=p_tasks,
        k_block=part_terms(g), fetched=g.is_pointwise and math.prod(g.size) * itemsize >= FETCHED_BYTES, bias_at=bias_at, sums_at=sums_at, scratch_size=nbytes,
        past=cost.is_past(math.prod(spec.output_shape), plane_out, spec.out_dtype),
        offsets=address(found.offsets), step_d=found.steps[0], step_h=found.steps[1], step_w=found.steps[2],
    )  # fmt: skip
    pack_kernel, pack_cycles, c_block, taps_at = PACK, PACK_CYCLES, 1, None
    if turned is not None:
        taps_at = turned.taps.astype(np.int64)
        c_block = max(TURNED // (some * lanes * turned.window), 1)
        pack_kernel, pack_cycles = PACK_TURNED, TURNED_CYCLES[turned.window > 1]
        set_fields(
            template, turned=g.o * turned.window, turned_j=turned.window, turned_taps=address(taps_at), c_block=c_block
        )  # fmt: skip
    fields = template.view(np.int64)
    each = p_tasks * spec.groups
    at_once = each * o_tasks * (images or max(spec.batch, 1))
    if limit is not None:
        at_once = max(min(at_once, (limit - shared) // nbytes), 1)
    if not packed:
        packing = spec.groups * vectors * lanes * g.K * pack_cycles * cost.CYCLE
        seconds += (rounds if some < vectors else 1) * (packing + -(-vectors // some) * cost.CALL_SECONDS)
    share = seconds / (max(spec.batch, 1) * vectors)

    @lru_cache(maxsize=8)
    def elsewhere(strides: tuple[int, ...]) -> Places:
        _, c, *rest = (step // itemsize for step in strides)
        return places(g, c, lift(tuple(rest), 0))

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        there = None
        if in_place and not x.flags.c_contiguous:
            try:
                there = elsewhere(x.strides)
            except Unsupported:
                x = np.ascontiguousarray(x)
        workers = threads.workers(at_once)
        _held, at = scratch(workers * nbytes + ahead)
        bias, at_w = contiguous(bias), address(w) if packed else at + copied
        a = begun(fields, address(x), at_w, address(bias), address(y), at + ahead)
        slabs.set_strides(a, x, spec)
        if there is not None:
            a[OFFSETS], a[STEPS] = address(there.offsets), there.steps
        if not packed:
            a[GIVEN] = address(w)
        ready = packed
        for count in slabs.in_rounds(a, spec, x, y, images or spec.batch, at if images else 0, workers):
            for first in range(0, vectors, some):
                stop, tasks_o = min(first + some, vectors), o_tasks
                if some < vectors:
                    a[V_FIRST], a[V_STOP], a[W_GROUP] = first, stop, (stop - first) * g.K
                    a[O_TASKS] = tasks_o = -(-(stop - first) // cut.o_step)
                if not ready:
                    tasks = spec.groups * (stop - first if turned is None else -(-g.c // c_block))
                    packing = cost.moving(row * (stop - first))
                    threads.launch(pack_kernel.address(spec.dtype), a, tasks, workers, packing)
                    ready = some == vectors
                threads.launch(
                    DIRECT[cut.most].address(spec.dtype),
                    a,
                    each * tasks_o * count,
                    workers,
                    share * count * (stop - first),
                )

    def pack(weight: Array) -> Array:
        weight = np.ascontiguousarray(weight)
        memory, at = scratch(vectors * row)
        workers = threads.workers(spec.groups * vectors)
        _stage, at_stage = scratch(workers * nbytes)
        a = begun(fields, 0, at, 0, 0, at_stage)
        a[GIVEN] = address(weight)
        threads.launch(PACK.address(spec.dtype), a, spec.groups * vectors, workers, 0)
        return memory[at - address(memory) :]

    call.tables = found, held, elsewhere, taps_at  # type: ignore[attr-defined]
    return Run(
        call=call,
        seconds=seconds + cost.CALL_SECONDS,
        workspace=nbytes,
        at_once=at_once,
        shared=shared,
        note=("reads the input where it lies" if in_place else "copies what it reads, padded")
        + ", vectors along the output channels",
        pack=pack if packed else None,
        packing=("direct", lanes, cut.o_step, spec.groups) if packed else None,
    )


def run_turned(spec: ConvSpec, turned: Turned) -> Run:
    """The run of weights that are packed as they are turned."""
    return run(spec, None, False, turned)


@cast_images
def direct(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Direct convolution of any stride, dilation, groups, padding and rank, with vectors along the output channels."""
    return replace(run(spec, workspace_limit, False), prepared=run(spec, workspace_limit, True))
