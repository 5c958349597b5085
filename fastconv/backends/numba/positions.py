"""Direct convolution with vectors along the output positions, planned: what a task computes, and the tables it reads."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fastconv.backends import Unsupported
from fastconv.backends.numba import cost, jit, threads
from fastconv.backends.numba.cost import task_seconds
from fastconv.backends.numba.geometry import Geometry, Triple, geometry, shares, strides
from fastconv.backends.numba.kernels import positions as kernels
from fastconv.backends.numba.kernels.simd import host
from fastconv.backends.numba.kernels.tile import SLOT, VECTORS, scalars
from fastconv.backends.numba.operands import ALIGNMENT, Array, address, begun, contiguous, scratch, set_fields
from fastconv.backends.numba.slabs import (
    COPIED_BYTES,
    copy_seconds,
    in_rounds,
    set_strides,
    slab_bytes,
    slab_of,
)
from fastconv.spec import DTYPES, ConvSpec

FLAT = jit.Kernel(kernels.flat)
SLAB = jit.Kernel(kernels.slab)

# A box's slab and a block of weights share a core's L2 (1 MB on the reference machine) with the output.
SLAB_BYTES = 384 << 10

# What a tile reads is copied to a panel, in parts of this size, which stay in the L1 cache.
PANEL_BYTES = 24 << 10
WEIGHT_BYTES = 320 << 10

# Masks are made with the plan and kept with it; an image that needs more of them is copied to a slab instead.
MASK_BYTES = 256 << 10

# The least work of a task: with tasks of 8 us, starting one (0.3 us) does not show.
TASK_FLOPS = 2e6

# Results are fetched before they are written if they are longer than this and sums as short as this: with 27 products
# 16 images took 2.9 ms instead of 2.3. Smaller ones lie in the cache, longer sums leave time for what is not there.
FETCHED_BYTES, FETCHED_K = 4 << 20, 64


class Cut(NamedTuple):
    """How a convolution is cut into tasks."""

    seconds: float
    positions: tuple[int, ...]  # flat: vectors; slab: a box
    o_step: int
    group_step: int
    copied: int = 0  # images that are copied at a time, before tasks start


class Planned(NamedTuple):
    """A kernel's arguments but for the addresses of a call, and what stands behind them."""

    arguments: Array
    tables: tuple[Array, ...]
    scratch: int  # bytes a worker
    tasks: int  # of one image
    seconds: float
    copied: int  # bytes of images that are copied before
    images: int  # that are worked on at a time


class Turned(NamedTuple):
    """Weights (in_channels, out_channels of a group, taps) that are to be turned, as an input's gradient has them."""

    taps: Array  # which of a kernel's taps stands at each place
    window: int  # taps of the kernel


def common(spec: ConvSpec, g: Geometry, cut: Cut, *, packed: bool) -> dict[str, int]:
    """The arguments that both kernels read alike."""
    NS = scalars(host())
    plane = math.prod(g.out)
    rows = -(-g.o // NS) * NS if packed else g.o
    return {
        "batch": spec.batch, "o": g.o, "c": g.c, "taps": g.taps, "groups": spec.groups,
        "y_n": spec.out_channels * plane, "y_c": plane,
        "w_group": rows * g.K, "w_row": NS * g.K, "w_j": 1 if packed else g.K, "w_k": NS if packed else 1,
        "o_step": cut.o_step, "o_tasks": -(-g.o // cut.o_step),
        "group_step": cut.group_step, "group_tasks": -(-spec.groups // cut.group_step),
    }  # fmt: skip


def channel_steps(spec: ConvSpec, g: Geometry, most: int) -> Iterator[tuple[int, int]]:
    """Output channels and groups of a task: even shares of either, no more than `most` channels at a time."""
    NS = scalars(host())
    for blocks in shares(-(-g.o // NS)):
        step = min(blocks * NS, g.o)
        if step <= max(most, NS):
            yield step, 1
    per_group = 2 * spec.batch * g.o * math.prod(g.out) * g.K
    for step in shares(spec.groups):
        if step > 1 and step * per_group <= 8 * TASK_FLOPS * max(spec.batch, 1):
            yield g.o, step


def is_flat(spec: ConvSpec, g: Geometry) -> bool:
    """Whether output positions and what they read lie equally far apart, so that no copy is needed.

    With padding also whether masks cost nothing: in a tile they would take the vector registers of accumulators where
    they have none of their own, in a panel they do not.
    """
    rows = g.out[2] == g.size[2] or g.out[:2] == (1, 1)
    planes = g.out[1] == g.size[1] or g.out[0] == 1
    offsets = (math.prod(g.size) + 1) * (g.c if g.is_pointwise else 1) < 2**31
    if g.stride != (1, 1, 1) or spec.padding_mode != "zeros" or not (rows and planes and offsets):
        return False
    lanes = cost.lanes(spec.dtype)
    vectors = -(-math.prod(g.out) // lanes)
    if needs_no_masks(lanes, g):
        return True
    return (host().masks or g.o >= panel_from(g, flat=True)) and 2 * (
        vectors + VECTORS
    ) * g.taps <= MASK_BYTES


def needs_no_masks(lanes: int, g: Geometry) -> bool:
    """Whether every vector may be read whole."""
    return g.is_pointwise and math.prod(g.out) >= lanes


def tile_begins(vectors: int) -> Array:
    """The first vector of every tile, as the kernels' ``next_tile`` cuts them: three each, but of the last four two."""
    begins = np.arange(0, max(vectors, 1), VECTORS)
    if vectors % VECTORS == 1 and vectors > 1:
        begins[-1] -= 1
    return begins


def flat_masks(g: Geometry, lanes: int, vectors: int) -> Array:
    """Which lanes of the vectors lie inside the input, for every tap: uint16 (tiles, taps, VECTORS)."""
    positions = min(math.prod(g.out), vectors * lanes)
    begins = tile_begins(vectors)
    if g.is_pointwise:  # of the last tile: all others are whole
        positions -= int(begins[-1]) * lanes
        g, begins = g._replace(out=(1, 1, positions), size=(1, 1, positions)), begins[:1]
    place = (begins[:, None] * lanes + np.arange(VECTORS * lanes)).ravel()
    inside = np.ones((g.taps, place.size), bool) & (place < positions)
    coordinates = np.unravel_index(np.minimum(place, positions - 1), g.out)
    for tap, steps in enumerate(itertools.product(*map(range, g.kernel))):
        for axis in range(3):
            at = coordinates[axis] + steps[axis] * g.dilation[axis] - g.before[axis]
            inside[tap] &= (at >= 0) & (at < g.size[axis])
    bits = inside.reshape(g.taps, len(begins), VECTORS, lanes) @ (1 << np.arange(lanes))
    return np.ascontiguousarray(bits.transpose(1, 0, 2).astype(np.uint16))


def split_positions(g: Geometry, lanes: int, whole: bool) -> tuple[int, int]:
    """Vectors of a plane, and positions left for sums with vectors along k.

    A vector of positions takes 0.5 cycles for each weight, whatever it holds; a position whose vectors lie along k takes
    0.07. That wants rows of weights, which packing turns: large planes are packed, and have few positions left.
    """
    positions = math.prod(g.out)
    left = positions % lanes
    if not whole and g.is_pointwise and 0 < left <= lanes // 2:
        return positions // lanes, left
    return -(-positions // lanes), 0


def panel_from(g: Geometry, *, flat: bool) -> int:
    """Output channels from which a panel is worth its copying: 2 cycles a vector, which then takes 0.5 for each channel.

    Where there are masks a tile writes what lies in two rows at once; without them it does so in pieces, and two rows
    become one in a panel. Rows of a slab are copied piece by piece: 14 x 14 gradients of 6 channels took 1.7 times as
    long with a panel as without. What is read where it lies, without masks, is masked by its panel; with masks, windows of
    several taps find each line in the cache again, and 16 images of 64 x 56 x 56 took 1.07 times as long with a panel. But
    for short sums: there results are fetched, which only panels do.
    """
    if not flat:
        return 32
    if not host().masks:
        return 1
    return 32 if g.taps == 1 or g.K <= FETCHED_K else sys.maxsize


def panel_terms() -> int:
    """Products of a sum whose vectors a panel holds."""
    return PANEL_BYTES // (VECTORS * host().width)


def panel_bytes(g: Geometry, itemsize: int, channels: int, at: int) -> int:
    """What a panel of so many input channels, and what lies before it, take of scratch that it begins at byte `at`."""
    vector = VECTORS * host().width
    begin = -(-(at + kernels.SLOTS_BYTES + kernels.SEGMENT_BYTES * vector // itemsize) // 64) * 64
    return begin + (channels * g.taps + 1) * vector - at  # with room behind the last row, see `panel_rows`


def panel_channels(g: Geometry, itemsize: int, o_step: int, at: int, room: int | None) -> int:
    """Input channels whose vectors make a panel: they and their weights stay in the cache, and in `room` bytes."""
    K = min(panel_terms(), WEIGHT_BYTES // (o_step * itemsize))
    for share in shares(g.c):
        if share * g.taps <= K and (room is None or panel_bytes(g, itemsize, share, at) <= room):
            return share
    return 1


def panel_seconds(flat: bool, vectors: int, g: Geometry, o_step: int, lanes: int) -> float:
    """What copying to panels takes: of a slab so many vectors of each row that a tile lies in."""
    if o_step < panel_from(g, flat=flat):
        return 0.0
    rows = 1.0 if flat else 1 + VECTORS * lanes / g.out[2]
    copied = rows * (VECTORS if flat or g.out[2] > lanes else 1)
    panel = copied * g.K * cost.PANEL_CYCLES + flat * g.c * cost.CHANNEL_CYCLES
    return -(-vectors // VECTORS) * panel * cost.CYCLE


def panel_fields(
    flat: bool, g: Geometry, itemsize: int, o_step: int, at: int, room: int | None
) -> tuple[dict[str, int], int]:
    """The arguments about panels, for scratch that one begins at byte `at` of; and its bytes."""
    if o_step < panel_from(g, flat=flat):
        return {}, 0
    block = panel_channels(g, itemsize, o_step, at, room)
    nbytes = panel_bytes(g, itemsize, block, at)
    begin = at + nbytes - (block * g.taps + 1) * VECTORS * host().width
    return {"panel_at": begin, "c_block": block}, nbytes


def choose_flat(spec: ConvSpec, g: Geometry, whole: bool, turned: bool = False) -> Cut:
    """The cheapest cut into vectors of positions and blocks of channels, of weights that a task turns or does not."""
    vectors, left = split_positions(g, cost.lanes(spec.dtype), whole)
    most = WEIGHT_BYTES // (min(g.K, panel_terms()) * DTYPES[spec.dtype].itemsize)
    best = None
    tiles = max(-(-vectors // VECTORS), 1)
    least = panel_from(g, flat=True)
    x_size = math.prod(g.size) * DTYPES[spec.dtype].itemsize * spec.in_channels
    is_far = spec.batch * x_size > cost.FAR_BYTES
    for o_step, group_step in channel_steps(spec, g, most):
        if turned and o_step < least:
            continue
        if o_step < least and not (host().masks or needs_no_masks(cost.lanes(spec.dtype), g)):
            continue
        for side in shares(tiles):
            v_step = side * VECTORS
            # The tables of masks know the last four vectors as two and two: no task may begin with the last one.
            if v_step < vectors and vectors % v_step == 1:
                continue
            each = cost.tiles(spec.dtype, min(v_step, vectors), o_step, g.K) * group_step
            each += panel_seconds(True, min(v_step, vectors), g, o_step, cost.lanes(spec.dtype)) * group_step
            each += turned * o_step * g.K * group_step * cost.PACK_CYCLES * cost.CYCLE
            each += left * (0.07 * o_step + 2) * g.K * group_step * cost.CYCLE * v_step / max(vectors, 1)
            count = (
                max(-(-vectors // v_step), 1) * -(-g.o // o_step) * -(-spec.groups // group_step) * spec.batch
            )
            if best is not None and each < TASK_FLOPS / 250e9:
                break
            # What a task reads for the first time: its weights, and its part of the input.
            x_bytes = min(v_step / max(vectors, 1), 1) * g.c * math.prod(g.size) * DTYPES[spec.dtype].itemsize
            w_bytes = o_step * g.K * DTYPES[spec.dtype].itemsize
            each += group_step * cost.traffic(w_bytes + x_bytes)
            if is_far and (o_step >= least or (g.taps == 1 and o_step < g.o)):
                each += group_step * x_bytes / 64 * cost.FAR_CYCLES * cost.CYCLE
            cut = Cut(task_seconds(each, count), (v_step,), o_step, group_step)
            best = cut if best is None or cut.seconds < best.seconds else best
    if best is None:
        raise Unsupported(f"turns weights where it has a panel, which {g.o} output channels have not")
    return best


def joined(spec: ConvSpec, g: Geometry) -> Geometry | None:
    """The positions of all images as one row, so that only its last vector has empty lanes, not that of each image.

    Images of 7 x 7 leave an eighth of their lanes empty. A panel makes one row of two images, which hold a tile each.
    """
    plane, positions = math.prod(g.out), spec.batch * math.prod(g.out)
    if spec.batch < 2 or not g.is_pointwise or plane < VECTORS * cost.lanes(spec.dtype):
        return None
    return g._replace(size=(1, 1, positions), out=(1, 1, positions))


def plan_flat(
    spec: ConvSpec, g: Geometry, packed: bool, limit: int | None, turned: Turned | None = None
) -> Planned:
    """Arguments of the ``flat`` kernel; weights that tasks turn are packed by them."""
    cut, batch, row, whole = choose_flat(spec, g, packed, turned is not None), spec.batch, g, packed
    if (all_images := joined(spec, g)) is not None:
        other = choose_flat(spec.with_batch(1), all_images, whole=True, turned=turned is not None)
        if other.o_step >= panel_from(g, flat=True) and other.seconds < cut.seconds:
            cut, batch, row, whole = other, 1, all_images, True
    lanes = cost.lanes(spec.dtype)
    vectors, left = split_positions(row, lanes, whole)
    step_d, step_h, step_w = strides(g.size)
    plane = math.prod(g.size)
    nbytes = -(-(128 + left * g.K * DTYPES[spec.dtype].itemsize) // 64) * 64
    room = None if limit is None else limit - nbytes - ALIGNMENT
    panel, more = (
        panel_fields(True, g, DTYPES[spec.dtype].itemsize, cut.o_step, nbytes, room) if vectors else ({}, 0)
    )
    nbytes += more
    weights, taps_at_w = {}, np.empty(0, np.int64)
    if turned is not None:
        taps_at_w = turned.taps.astype(np.int64)
        step = g.o * turned.window
        weights = {
            "turned": step,
            "turned_j": turned.window,
            "turned_taps": address(taps_at_w),
            "block_at": -(-nbytes // 64) * 64,
            "w_group": g.c * step,
        }
        rows = -(-cut.o_step // scalars(host())) * scalars(host())
        nbytes = weights["block_at"] + rows * panel["c_block"] * g.taps * DTYPES[spec.dtype].itemsize
    channels, taps, c_step = g.c, g.taps, plane
    if not more and g.is_pointwise and (needs_no_masks(lanes, g) or left):
        # A matrix product: the channels take the taps' place.
        masks, offsets = np.empty(0, np.uint16), np.arange(g.c) * plane
        channels, taps, c_step = 1, g.c, 2 * plane  # as far as is fetched: see AHEAD
    else:
        taps_at = (
            (kd * g.dilation[0] - g.before[0]) * step_d
            + (kh * g.dilation[1] - g.before[1]) * step_h
            + (kw * g.dilation[2] - g.before[2]) * step_w
            for kd, kh, kw in itertools.product(*map(range, g.kernel))
        )
        offsets = np.fromiter(taps_at, np.int64)
        masks = flat_masks(row, lanes, vectors)
    offsets = offsets.astype(np.int32)
    v_step = cut.positions[0]
    v_tasks = max(-(-vectors // v_step), 1)
    a = np.zeros(1, kernels.ARGUMENTS)
    set_fields(a, **common(spec, g, cut, packed=packed))
    set_fields(
        a, **panel, **weights, batch=batch, c=channels, taps=taps, pitch_c=c_step, K=g.K,
        last_masked=g.is_pointwise, positions=math.prod(row.out), vectors=vectors, left=left, v_step=v_step, v_tasks=v_tasks,
        x_n=spec.groups * g.c * plane, x_group=g.c * plane, x_c=plane,
        scratch_size=nbytes, offsets=address(offsets), masks=address(masks) if masks.size else 0,
        past=cost.is_past(math.prod(spec.output_shape), math.prod(g.out), spec.out_dtype),
        weights_stay=math.prod(spec.weight_shape) > int(a["o_tasks"][0]) * spec.in_channels * plane,
    )  # fmt: skip
    tasks = v_tasks * int(a["o_tasks"][0] * a["group_tasks"][0])
    return Planned(a, (offsets, masks, taps_at_w), nbytes, tasks, cut.seconds, 0, batch)


def slots_bytes(box: Triple, lanes: int) -> int:
    """Bytes of a box's slots, and of the block of vectors that pixels are turned in."""
    return -(-8 * SLOT * box[0] * box[1] * -(-box[2] // lanes) // 64) * 64 + lanes * host().width


def vectors_of(g: Geometry, box: Triple, lanes: int) -> int:
    """About how many vectors a box takes; two short rows share one, and in a panel all rows are one."""
    d, h, w = box
    if g.o >= panel_from(g, flat=False):
        return -(-math.prod(box) // lanes)
    gap = g.slab(box)[-1] - w
    if gap >= lanes:
        return d * h * -(-w // lanes)
    return d * max(-(-(h * (w + gap) - gap) // lanes), -(-h * -(-w // lanes) // 2))


def choose_slab(spec: ConvSpec, g: Geometry, limit: int | None) -> Cut:
    """The cheapest box whose slab stays in a core's cache, and under `limit`; copied by tasks, or before."""
    itemsize, lanes = DTYPES[spec.dtype].itemsize, cost.lanes(spec.dtype)
    cuts: list[Cut] = []
    # Under a limit a panel may have to do with one channel.
    panel = panel_bytes(g, itemsize, 1, 0) + 64 if g.o >= panel_from(g, flat=False) else 0
    smallest = panel + slots_bytes((1, 1, 1), lanes) + slab_bytes(g, (1, 1, 1), g.c, itemsize)
    if limit is not None:
        limit -= ALIGNMENT
        if smallest > limit:
            need = smallest + ALIGNMENT
            raise Unsupported(f"needs {need} bytes of scratch for one output position", workspace=need)

    image = slab_bytes(g, g.out, spec.in_channels, itemsize)
    images = max(min(COPIED_BYTES // image, spec.batch), 1)
    may_copy = image <= 4 * COPIED_BYTES and (
        limit is None or image + slots_bytes(g.out, lanes) + panel <= limit
    )
    if limit is not None and may_copy:
        images = 1
    whole = copy_seconds(spec, g, g.out, spec.in_channels) * spec.batch
    d_shares, h_shares, w_shares = map(shares, g.out)
    for box in itertools.product(d_shares, h_shares, w_shares):
        cut_inner = any(b < n for b, n in zip(box[1:], g.out[1:], strict=True))
        if (box[0] > 1 and cut_inner) or (box[1] > 1 and box[2] < g.out[2]):
            continue  # what a box reads twice is least where only the outermost axis is cut
        slots = slots_bytes(box, lanes) + panel
        vectors = vectors_of(g, box, lanes)
        boxes = math.prod(-(-n // b) for n, b in zip(g.out, box, strict=True)) * spec.batch
        slab = slab_bytes(g, box, g.c, itemsize)
        allowed = limit is None or slots + slab <= limit
        own = copy_seconds(spec, g, box, g.c)
        for o_step, group_step in channel_steps(spec, g, g.o):
            work = cost.tiles(spec.dtype, vectors, o_step, g.K)
            if o_step < panel_from(g, flat=False):
                work *= cost.BEYOND_L1 if panel_terms() < g.K else cost.BY_TABLE
            work += cost.traffic(o_step * g.K * itemsize)
            work += panel_seconds(False, vectors, g, o_step, lanes)
            count = boxes * -(-g.o // o_step) * -(-spec.groups // group_step)
            if may_copy:
                each = group_step * (work + cost.traffic(slab))
                rounds = max(-(-spec.batch // images), 1)
                seconds = whole + rounds * (cost.CALL_SECONDS + task_seconds(each, -(-count // rounds)))
                cuts.append(Cut(seconds, box, o_step, group_step, images))
            if allowed and (slab <= SLAB_BYTES or slots + slab == smallest):
                cuts.append(Cut(task_seconds(group_step * (own + work), count), box, o_step, group_step))
    # A channel count that fills the cache with one row of positions leaves no choice.
    one = Cut(math.inf, (1, 1, 1), min(g.o, scalars(host())), 1)
    return min(cuts, key=lambda cut: cut.seconds, default=one)


def plan_slab(spec: ConvSpec, limit: int | None, packed: bool) -> Planned:
    """Arguments of the ``slab`` kernel."""
    g = geometry(spec)
    cut = choose_slab(spec, g, limit)
    box: Triple = cut.positions  # type: ignore[assignment]
    itemsize, lanes, NS = DTYPES[spec.dtype].itemsize, cost.lanes(spec.dtype), scalars(host())
    held = slab_of(spec, g, g.out if cut.copied else box)
    offsets = held.taps.astype(np.int32)
    counts = [-(-n // side) for n, side in zip(g.out, box, strict=True)]
    slab = 0 if cut.copied else slab_bytes(g, box, g.c, itemsize)
    nbytes = slab + slots_bytes(box, lanes)
    stage_at = nbytes - lanes * host().width
    copied = cut.copied * held.fields["copied_n"] * itemsize + host().width if cut.copied else 0
    room = None if limit is None else limit - nbytes - copied - ALIGNMENT
    panel, more = panel_fields(False, g, itemsize, cut.o_step, nbytes, room)
    nbytes += more
    past = cost.is_past(math.prod(spec.output_shape), g.out[2], spec.out_dtype)
    a = np.zeros(1, kernels.ARGUMENTS)
    set_fields(a, **common(spec, g, cut, packed=packed), **held.fields)
    set_fields(
        a, **panel, scratch_size=nbytes, slots_at=slab, stage_at=stage_at, offsets=address(offsets),
        o_block=max(WEIGHT_BYTES // (g.K * itemsize) // NS, 1) * NS,
        box_d=box[0], box_h=box[1], box_w=box[2], boxes_d=counts[0], boxes_h=counts[1], boxes_w=counts[2],
        fetched=g.K <= FETCHED_K and math.prod(spec.output_shape) * itemsize > FETCHED_BYTES and not past, past=past,
    )  # fmt: skip
    tasks = math.prod(counts) * int(a["o_tasks"][0] * a["group_tasks"][0])
    return Planned(a, (offsets, *held.tables), nbytes, tasks, cut.seconds, copied, cut.copied or spec.batch)


def pack_rows(spec: ConvSpec, weight: Array) -> Array:
    """Weights as the micro-kernel reads them best: (groups, blocks of NS channels, K, NS), the last filled up."""
    g, NS = geometry(spec), scalars(host())
    blocks = -(-g.o // NS)
    padded = np.zeros((spec.groups, blocks * NS, g.K), weight.dtype)
    padded[:, : g.o] = weight.reshape(spec.groups, g.o, g.K)
    return np.ascontiguousarray(padded.reshape(spec.groups, blocks, NS, g.K).swapaxes(2, 3))


def caller(kernel: jit.Kernel, planned: Planned, spec: ConvSpec) -> Callable[..., None]:
    """The function that runs a planned kernel; the flat one needs operands in C order."""
    fields, tables = planned.arguments.view(np.int64), planned.tables
    images = max(planned.images, 1)
    seconds = planned.seconds / max(int(planned.arguments["batch"][0]), 1)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        workers = threads.workers(planned.tasks * images)
        _held, at = scratch(workers * planned.scratch + planned.copied)
        bias = contiguous(bias)
        a = begun(fields, address(x), address(w), address(bias), address(y), at + planned.copied)
        set_strides(a, x, spec)
        for count in in_rounds(a, spec, x, y, images, at if planned.copied else 0, workers):
            threads.launch(kernel.address(spec.dtype), a, planned.tasks * count, workers, seconds * count)

    call.tables = tables  # type: ignore[attr-defined]
    return call
