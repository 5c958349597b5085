"""Direct convolution, planned: what a task computes, what it copies, and the tables the kernels read."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends import Run, Unsupported
from fastconv.backends.numba import cost, jit, threads
from fastconv.backends.numba.kernels import direct as kernels
from fastconv.backends.numba.kernels.simd import host
from fastconv.backends.numba.kernels.tile import SLOT, VECTORS, scalars
from fastconv.backends.numba.operands import (
    ALIGNMENT,
    Array,
    address,
    begun,
    cast_images,
    contiguous,
    scratch,
)
from fastconv.spec import DTYPES, ConvSpec, Sizes, source

FLAT = jit.Kernel(kernels.flat)
SLAB = jit.Kernel(kernels.slab)
COPY = jit.Kernel(kernels.copy)

# A box's slab and a block of weights share a core's L2 (1 MB on the reference machine) with the output.
SLAB_BYTES = 384 << 10
WEIGHT_BYTES = 320 << 10

# What a tile reads is copied to a panel, in parts of this size, which stay in the L1 cache.
PANEL_BYTES = 24 << 10

# Copied images are used at once and overwritten by the next ones: a share of the last level of the cache.
COPIED_BYTES = 2 << 20

# Masks are made with the plan and kept with it; an image that needs more of them is copied to a slab instead.
MASK_BYTES = 256 << 10

# Tasks an image is copied in.
COPY_TASKS = 8

# Output positions from which packed weights are worth having: below, 0 to 2 % are gained and sums along k lost.
PACKED_FROM = 600

# The least work of a task: with tasks of 8 us, starting one (0.3 us) does not show.
TASK_FLOPS = 2e6

# Results are fetched before they are written if they are longer than this and sums as short as this: with 27 products
# 16 images took 2.9 ms instead of 2.3. Smaller ones lie in the cache, longer sums leave time for what is not there.
FETCHED_BYTES, FETCHED_K = 4 << 20, 64

Triple = tuple[int, int, int]


def lift(values: Sizes, fill: int) -> Triple:
    """One entry for each of three axes: a missing depth or height is `fill`."""
    d, h, w = (fill,) * (3 - len(values)) + tuple(values)
    return d, h, w


class Geometry(NamedTuple):
    """A convolution lifted to three axes."""

    size: Triple
    out: Triple
    kernel: Triple
    stride: Triple
    dilation: Triple
    before: Triple
    after: Triple
    c: int
    o: int

    @property
    def taps(self) -> int:
        """Elements of a kernel's window."""
        return math.prod(self.kernel)

    @property
    def K(self) -> int:  # noqa: N802 - the field's letter
        """Products of a sum."""
        return self.c * self.taps

    @property
    def is_pointwise(self) -> bool:
        """Whether each output position reads the input at the same position and nothing else."""
        return self.taps == 1 and self.stride == (1, 1, 1) and not any(self.before + self.after)

    @property
    def is_whole(self) -> bool:
        """Whether the window is as large as the image, so that there is one output position."""
        return self.kernel == self.size and self.out == (1, 1, 1) and not any(self.before + self.after)

    def phases(self, axis: int) -> list[int]:
        """Which of an axis's `stride` phases any tap reads."""
        return sorted({k * self.dilation[axis] % self.stride[axis] for k in range(self.kernel[axis])})

    def reach(self, axis: int) -> int:
        """How many positions of a phase a box reads beyond its own."""
        return (self.kernel[axis] - 1) * self.dilation[axis] // self.stride[axis]

    def slab(self, box: Triple) -> tuple[int, ...]:
        """Shape of what a box reads of one channel: the phases of each axis, then its positions.

        Phases lie outside, so that rows of one phase are neighbours and vectors can run on from one to the next.
        """
        return (
            *(len(self.phases(axis)) for axis in range(3)),
            *(box[axis] + self.reach(axis) for axis in range(3)),
        )


def geometry(spec: ConvSpec) -> Geometry:
    """`spec` on three axes."""
    return Geometry(
        size=lift(spec.in_size, 1),
        out=lift(spec.out_size, 1),
        kernel=lift(spec.kernel_size, 1),
        stride=lift(spec.stride, 1),
        dilation=lift(spec.dilation, 1),
        before=lift(tuple(before for before, _ in spec.padding), 0),
        after=lift(tuple(after for _, after in spec.padding), 0),
        c=spec.in_channels // spec.groups,
        o=spec.out_channels // spec.groups,
    )


def merged(g: Geometry) -> Geometry:
    """A window as large as the image is a product with all of it: channels and pixels become one axis."""
    one = (1, 1, 1)
    return Geometry(one, one, one, one, one, (0, 0, 0), (0, 0, 0), g.c * g.taps, g.o) if g.is_whole else g


def shares(length: int) -> Iterator[int]:
    """The different sides of even shares of `length`, largest first."""
    side = length
    while side:
        yield side
        parts = -(-length // side)
        side = min(-(-length // (parts + 1)), side - 1)


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of an array in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def task_seconds(task: float, tasks: int) -> float:
    """All tasks, and half a one more for which a thread waits at the end.

    So a problem is cut finer until starting tasks costs more than waiting, whatever the number of threads.
    """
    return tasks * (task + cost.TASK_SECONDS) + task / 2


class Cut(NamedTuple):
    """How a convolution is cut into tasks."""

    seconds: float
    positions: tuple[int, ...]  # flat: vectors; slab: a box
    o_step: int
    group_step: int
    copied: int = 0  # images that are copied at a time, before tasks start


def fill(template: Array, **values: int) -> None:
    """Set fields of the kernels' arguments."""
    for name, value in values.items():
        template[name] = value


def setter(arguments: np.dtype[Any]) -> Callable[..., None]:
    """The function ``put(fields, **values)`` for the int64 fields of a kernel's arguments.

    A call copies and sets those: to copy a structured array of 75 fields takes NumPy 37 us.
    """
    places = {name: at for at, name in enumerate(arguments.names or ())}

    def put(fields: Array, **values: int) -> None:
        for name, value in values.items():
            fields[places[name]] = value

    return put


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
    return (host().masks or g.o >= panel_from(flat=True)) and 2 * (vectors + VECTORS) * g.taps <= MASK_BYTES


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


def panel_from(*, flat: bool) -> int:
    """Output channels from which a panel is worth its copying: 2 cycles a vector, which then takes 0.5 for each channel.

    Where there are masks a tile writes what lies in two rows at once; without them it does so in pieces, and two rows
    become one in a panel. Rows of a slab are copied piece by piece: 14 x 14 gradients of 6 channels took 1.7 times as
    long with a panel as without. What is read where it lies, without masks, is masked by its panel.
    """
    return 1 if flat and not host().masks else 32


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
    if o_step < panel_from(flat=flat):
        return 0.0
    rows = 1.0 if flat else 1 + VECTORS * lanes / g.out[2]
    copied = rows * (VECTORS if flat or g.out[2] > lanes else 1)
    panel = copied * g.K * cost.PANEL_CYCLES + flat * g.c * cost.CHANNEL_CYCLES
    return -(-vectors // VECTORS) * panel * cost.CYCLE


def panel_fields(
    flat: bool, g: Geometry, itemsize: int, o_step: int, at: int, room: int | None
) -> tuple[dict[str, int], int]:
    """The arguments about panels, for scratch that one begins at byte `at` of; and its bytes."""
    if o_step < panel_from(flat=flat):
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
    for o_step, group_step in channel_steps(spec, g, most):
        if turned and o_step < panel_from(flat=True):
            continue
        if o_step < panel_from(flat=True) and not (host().masks or needs_no_masks(cost.lanes(spec.dtype), g)):
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
            cut = Cut(task_seconds(each, count), (v_step,), o_step, group_step)
            best = cut if best is None or cut.seconds < best.seconds else best
    if best is None:
        raise Unsupported(f"turns weights of {panel_from(flat=True)} output channels or more, got {g.o}")
    return best


def joined(spec: ConvSpec, g: Geometry) -> Geometry | None:
    """The positions of all images as one row, so that only its last vector has empty lanes, not that of each image.

    Images of 7 x 7 leave an eighth of their lanes empty. A panel makes one row of two images, which hold a tile each.
    """
    plane, positions = math.prod(g.out), spec.batch * math.prod(g.out)
    if spec.batch < 2 or not g.is_pointwise or plane < VECTORS * cost.lanes(spec.dtype):
        return None
    return g._replace(size=(1, 1, positions), out=(1, 1, positions))


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


def plan_flat(
    spec: ConvSpec, g: Geometry, packed: bool, limit: int | None, turned: Turned | None = None
) -> Planned:
    """Arguments of the ``flat`` kernel; weights that tasks turn are packed by them."""
    cut, batch, row, whole = choose_flat(spec, g, packed, turned is not None), spec.batch, g, packed
    if (all_images := joined(spec, g)) is not None:
        other = choose_flat(spec.with_batch(1), all_images, whole=True, turned=turned is not None)
        if other.o_step >= panel_from(flat=True) and other.seconds < cut.seconds:
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
        channels, taps, c_step = 1, g.c, 0
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
    fill(a, **common(spec, g, cut, packed=packed))
    fill(
        a, **panel, **weights, batch=batch, c=channels, taps=taps, pitch_c=c_step, K=g.K,
        last_masked=g.is_pointwise, positions=math.prod(row.out), vectors=vectors, left=left, v_step=v_step, v_tasks=v_tasks,
        x_n=spec.groups * g.c * plane, x_group=g.c * plane, x_c=plane,
        scratch_size=nbytes, offsets=address(offsets), masks=address(masks) if masks.size else 0,
        weights_stay=math.prod(spec.weight_shape) > int(a["o_tasks"][0]) * spec.in_channels * plane,
    )  # fmt: skip
    tasks = v_tasks * int(a["o_tasks"][0] * a["group_tasks"][0])
    return Planned(a, (offsets, masks, taps_at_w), nbytes, tasks, cut.seconds, 0, batch)


def slots_bytes(box: Triple, lanes: int) -> int:
    """Bytes of a box's slots, and of the block of vectors that pixels are turned in."""
    return -(-8 * SLOT * box[0] * box[1] * -(-box[2] // lanes) // 64) * 64 + lanes * host().width


def phase_step(g: Geometry, box: Triple, itemsize: int) -> int:
    """Elements from one phase of a slab to the next, with room for what the last row's vectors hold beyond its end."""
    return math.prod(g.slab(box)[3:]) + host().width // itemsize


def slab_channel(g: Geometry, box: Triple, itemsize: int) -> int:
    """Elements from one channel of a slab to the next.

    Where channels lie a multiple of 4096 bytes apart they meet in the same few lines of the L1 cache: 165 GF/s
    where 250 are reached.
    """
    channel = phase_step(g, box, itemsize) * math.prod(g.slab(box)[:3])
    return channel + (128 // itemsize if near_page(channel * itemsize) else 0)


def near_page(nbytes: int) -> bool:
    """Whether steps of `nbytes` bytes fall on the same lines of the cache again and again."""
    return nbytes > 2048 and (nbytes + 256) % 4096 < 512


def slab_bytes(g: Geometry, box: Triple, channels: int, itemsize: int) -> int:
    """Bytes of a box's slab, and of the vector that is read beyond its end."""
    return -(-channels * slab_channel(g, box, itemsize) * itemsize // 64) * 64 + host().width


def vectors_of(g: Geometry, box: Triple, lanes: int) -> int:
    """About how many vectors a box takes; two short rows share one, and in a panel all rows are one."""
    d, h, w = box
    if g.o >= panel_from(flat=False):
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
    panel = panel_bytes(g, itemsize, 1, 0) + 64 if g.o >= panel_from(flat=False) else 0
    smallest = panel + slots_bytes((1, 1, 1), lanes) + slab_bytes(g, (1, 1, 1), g.c, itemsize)
    if limit is not None:
        limit -= ALIGNMENT
        if smallest > limit:
            need = smallest + ALIGNMENT
            raise Unsupported(f"needs {need} bytes of scratch for one output position", workspace=need)

    def copy_seconds(box: Triple, channels: int) -> float:
        *rows, length = g.slab(box)
        row = cost.ROW_CYCLES + -(-length // lanes) * len(g.phases(2)) * cost.COPY_CYCLES
        return channels * math.prod(rows) / len(g.phases(2)) * row * cost.CYCLE

    image = slab_bytes(g, g.out, spec.in_channels, itemsize)
    images = max(min(COPIED_BYTES // image, spec.batch), 1)
    may_copy = image <= 4 * COPIED_BYTES and (
        limit is None or image + slots_bytes(g.out, lanes) + panel <= limit
    )
    if limit is not None and may_copy:
        images = 1
    whole = copy_seconds(g.out, spec.in_channels) * spec.batch
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
        own = copy_seconds(box, g.c)
        for o_step, group_step in channel_steps(spec, g, g.o):
            work = cost.tiles(spec.dtype, vectors, o_step, g.K)
            if o_step < panel_from(flat=False):
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


def source_map(spec: ConvSpec, g: Geometry, axis: int) -> Iterator[int]:
    """Where each position of the padded axis comes from; -1 is a zero."""
    mode, size = spec.padding_mode, g.size[axis]
    for i in range((g.out[axis] + g.reach(axis)) * g.stride[axis]):
        at = i - g.before[axis]
        # A box that ends before a phase's last position copies beyond what the taps read.
        found = source(at, size, mode) if mode == "zeros" or at < size + g.after[axis] else None
        yield -1 if found is None else found


def plan_slab(spec: ConvSpec, limit: int | None, packed: bool) -> Planned:
    """Arguments of the ``slab`` kernel."""
    g = geometry(spec)
    cut = choose_slab(spec, g, limit)
    box: Triple = cut.positions  # type: ignore[assignment]
    itemsize, lanes = DTYPES[spec.dtype].itemsize, cost.lanes(spec.dtype)
    held: Triple = g.out if cut.copied else box
    *_, pitch_d, pitch_h, pitch_w = strides(g.slab(held))
    phase_w = phase_step(g, held, itemsize)
    phase_h = phase_w * len(g.phases(2))
    phase_d = phase_h * len(g.phases(1))
    pitch_c = slab_channel(g, held, itemsize)
    phases = [g.phases(axis) for axis in range(3)]
    steps = ((phase_d, pitch_d), (phase_h, pitch_h), (phase_w, pitch_w))
    offsets = np.zeros(g.taps, np.int64)
    for t, tap in enumerate(itertools.product(*map(range, g.kernel))):
        for axis in range(3):
            q, phase = divmod(tap[axis] * g.dilation[axis], g.stride[axis])
            offsets[t] += phases[axis].index(phase) * steps[axis][0] + q * steps[axis][1]
    if offsets.max() >= 2**31:
        raise Unsupported("its window spans 2**31 elements or more")
    offsets = offsets.astype(np.int32)
    maps = [list(source_map(spec, g, axis)) for axis in range(3)]
    all_maps = np.array(list(itertools.chain(*maps)), np.int64)
    all_phases = np.array(list(itertools.chain(*phases)), np.int64)
    counts = [-(-n // side) for n, side in zip(g.out, box, strict=True)]
    slab = 0 if cut.copied else slab_bytes(g, box, g.c, itemsize)
    nbytes = slab + slots_bytes(box, lanes)
    stage_at = nbytes - lanes * host().width
    held_bytes = cut.copied * spec.in_channels * pitch_c * itemsize + ALIGNMENT + host().width
    room = None if limit is None else limit - nbytes - held_bytes
    panel, more = panel_fields(False, g, itemsize, cut.o_step, nbytes, room)
    nbytes += more
    copied_n = spec.in_channels * pitch_c
    plane = math.prod(g.size)
    x_d, x_h, x_w = strides(g.size)
    NS = scalars(host())
    a = np.zeros(1, kernels.ARGUMENTS)
    fill(a, **common(spec, g, cut, packed=packed))
    fill(
        a, **panel, scratch_size=nbytes, slots_at=slab, stage_at=stage_at, copied_n=copied_n, channels=spec.in_channels,
        c_tasks=max(min(spec.in_channels, COPY_TASKS), 1), offsets=address(offsets), maps=address(all_maps),
        phases=address(all_phases),
        x_n=spec.in_channels * plane, x_group=g.c * plane, x_c=plane, x_d=x_d, x_h=x_h, x_w=x_w,
        o_block=max(WEIGHT_BYTES // (g.K * itemsize) // NS, 1) * NS,
        od=g.out[0], oh=g.out[1], ow=g.out[2], box_d=box[0], box_h=box[1], box_w=box[2],
        boxes_d=counts[0], boxes_h=counts[1], boxes_w=counts[2],
        size_w=g.size[2], before_w=g.before[2],
        stride_d=g.stride[0], stride_h=g.stride[1], stride_w=g.stride[2],
        phases_d=len(phases[0]), phases_h=len(phases[1]), phases_w=len(phases[2]),
        reach_d=g.reach(0), reach_h=g.reach(1), reach_w=g.reach(2),
        pitch_d=pitch_d, pitch_h=pitch_h, pitch_c=pitch_c, phase_d=phase_d, phase_h=phase_h, phase_w=phase_w,
        wanted_w=sum(1 << phase for phase in phases[2]) if g.stride[2] < 64 else 0,
        map_h=len(maps[0]), map_w=len(maps[0]) + len(maps[1]), borders=spec.padding_mode != "zeros",
        fetched=g.K <= FETCHED_K and math.prod(spec.output_shape) * itemsize > FETCHED_BYTES,
    )  # fmt: skip
    tasks = math.prod(counts) * int(a["o_tasks"][0] * a["group_tasks"][0])
    tables = (offsets, all_maps, all_phases)
    copied = cut.copied * copied_n * itemsize + host().width if cut.copied else 0
    return Planned(a, tables, nbytes, tasks, cut.seconds, copied, cut.copied or spec.batch)


def pack_rows(spec: ConvSpec, weight: Array) -> Array:
    """Weights as the micro-kernel reads them best: (groups, blocks of NS channels, K, NS), the last filled up."""
    g, NS = geometry(spec), scalars(host())
    blocks = -(-g.o // NS)
    padded = np.zeros((spec.groups, blocks * NS, g.K), weight.dtype)
    padded[:, : g.o] = weight.reshape(spec.groups, g.o, g.K)
    return np.ascontiguousarray(padded.reshape(spec.groups, blocks, NS, g.K).swapaxes(2, 3))


FIELD = {name: at for at, name in enumerate(kernels.ARGUMENTS.names or ())}
STRIDES = slice(FIELD["x_n"], FIELD["x_w"] + 1)
X, Y, SCRATCH, COPIED, BATCH = (FIELD[name] for name in ("x", "y", "scratch", "copied", "batch"))
CHANNELS, C_TASKS = FIELD["channels"], FIELD["c_tasks"]


def set_strides(a: Array, x: Array, spec: ConvSpec) -> None:
    """Let a slab be filled from an input of any strides."""
    if not x.flags.c_contiguous:
        n, c, *rest = (step // x.itemsize for step in x.strides)
        a[STRIDES] = n, c * (spec.in_channels // spec.groups), c, *lift(tuple(rest), 0)


def caller(kernel: jit.Kernel, planned: Planned, spec: ConvSpec) -> Callable[..., None]:
    """The function that runs a planned kernel; the flat one needs operands in C order."""
    fields, tables = planned.arguments.view(np.int64), planned.tables
    images, batch = max(planned.images, 1), int(planned.arguments["batch"][0])
    rounds = range(0, batch, images)
    seconds = planned.seconds * images / max(batch, 1)
    c_tasks = int(planned.arguments["c_tasks"][0])

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        workers = threads.workers(planned.tasks * images)
        _held, at = scratch(workers * planned.scratch + planned.copied)
        bias = contiguous(bias)
        a = begun(fields, address(x), address(w), address(bias), address(y), at + planned.copied)
        set_strides(a, x, spec)
        for n in rounds:
            if n:
                a[X] += x.strides[0] * images
                a[Y] += y.strides[0] * images
            a[BATCH] = count = min(images, batch - n)
            if planned.copied:
                a[COPIED] = at
                threads.launch(COPY.address(spec.dtype), a, c_tasks * count, workers, 0)
            threads.launch(kernel.address(spec.dtype), a, planned.tasks * count, workers, seconds)

    call.tables = tables  # type: ignore[attr-defined]
    return call


def channels_last(x: Array) -> bool:
    """Whether neighbours in memory are channels of a pixel, as images come."""
    return bool(x.strides[1] == x.itemsize != x.strides[-1])


@lru_cache(maxsize=64)
def orderer(dtype: str, channels: int, size: Sizes) -> Callable[[Array, int, int, int, int], None]:
    """The function ``order(x, n, c, count, to)``: so many channels of an image, from c on, brought in order at `to`.

    NumPy turns 16 x 16 blocks of channels and pixels element by element: 420 us for 128 channels of 56 x 56, this 120.
    """
    plane, one = math.prod(size), (1,) * len(size)
    spec = ConvSpec(batch=1, in_channels=channels, out_channels=1, in_size=size, kernel_size=one, dtype=dtype)
    arguments, tables, *_ = plan_slab(spec, None, packed=False)
    lanes = cost.lanes(dtype)
    stage = lanes * host().width
    fill(arguments, pitch_c=plane, copied_n=0, batch=1, scratch_size=stage, stage_at=0)
    fields = arguments.view(np.int64)

    def order(x: Array, n: int, c: int, count: int, to: int) -> None:
        a = fields.copy()
        # As few tasks as can be: one that reads 16 channels of each pixel takes a cache line here and there, and
        # memory a third as fast.
        workers = tasks = threads.workers(-(-count // lanes))
        _held, at = scratch(workers * stage)
        set_strides(a, x, spec)
        a[X], a[COPIED], a[SCRATCH] = address(x) + n * x.strides[0] + c * x.strides[1], to, at
        a[CHANNELS], a[C_TASKS] = count, tasks
        threads.launch(COPY.address(dtype), a, tasks, workers, 0)

    order.tables = tables  # type: ignore[attr-defined]
    return order


def strided(spec: ConvSpec, limit: int | None, packed: bool = False) -> Callable[..., None]:
    """The function for an input of any strides, planned when the first one comes."""

    @cache
    def planned() -> Callable[..., None]:
        return caller(SLAB, plan_slab(spec, limit, packed), spec)

    return lambda x, w, bias, y: planned()(x, w, bias, y)


def image_by_image(spec: ConvSpec, planned: Callable[[], Callable[..., None]]) -> Callable[..., None]:
    """The function for an input of any strides: each image is brought in order for the one that is `planned` for one."""
    planned = cache(planned)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        order = orderer(spec.dtype, spec.in_channels, spec.in_size) if channels_last(x) else None
        made = np.empty((1, *spec.input_shape[1:]), spec.dtype)
        for n in range(spec.batch):
            if order is None:
                made[...] = x[n : n + 1]
            else:
                order(x, n, 0, spec.in_channels, address(made))
            planned()(made, w, bias, y[n : n + 1])

    return call


def run_sampled(spec: ConvSpec, limit: int | None, packed: bool) -> Run | None:
    """A kernel of one element at a longer stride: the elements it reads, side by side, are a matrix product's.

    It is copied by NumPy, at most a quarter of the input, because rows as short as its own would leave half of each
    vector empty: 131 GF/s against 220 on 7 x 7 outputs.
    """
    plain = spec.padding == ((0, 0),) * spec.rank and math.prod(spec.kernel_size) == 1
    if not plain or limit is not None or math.prod(spec.stride) < 4:
        return None
    inner = run_direct(replace(spec, in_size=spec.out_size, stride=(1,) * spec.rank), limit, packed)
    read = tuple(slice(0, (n - 1) * s + 1, s) for n, s in zip(spec.out_size, spec.stride, strict=True))
    copied = spec.batch * spec.in_channels * math.prod(spec.out_size) * DTYPES[spec.dtype].itemsize

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        inner.call(np.ascontiguousarray(x[(..., *read)]), w, bias, y)

    return replace(
        inner,
        call=call,
        seconds=inner.seconds + cost.traffic(4 * copied),
        shared=inner.shared + copied,
        note="copies the elements it reads",
    )


def run_product(rows: int, channels: int, positions: int, spec: ConvSpec, limit: int | None) -> Run:
    """A matrix product, ``y[n, p] = sum_c w[n, c] x[c, p]``: a pointwise convolution of one image."""
    small = ConvSpec(
        batch=1,
        in_channels=channels,
        out_channels=rows,
        in_size=(positions,),
        kernel_size=(1,),
        dtype=spec.dtype,
        out_dtype=spec.out_dtype,
    )
    inner = run_direct(small, limit, packed=False)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        inner.call(x.reshape(small.input_shape), w.reshape(small.weight_shape), bias, y)

    return replace(inner, call=call, note="one matrix product")


def is_product(spec: ConvSpec) -> bool:
    """Whether each result is a product with a whole image, so that all of them are one matrix product."""
    return spec.batch > 1 and spec.groups == 1 and geometry(spec).is_whole


def turn_rows(weight: Array, K: int) -> Array:
    """Weights of K products a row as the image of :func:`run_images`: (K, out_channels)."""
    rows = weight.reshape(1, -1, K).swapaxes(1, 2)
    turned = np.empty(rows.shape, weight.dtype)
    orderer(weight.dtype.name, K, rows.shape[2:])(rows, 0, 0, K, address(turned))
    return turned


def run_images(spec: ConvSpec, limit: int | None, packed: bool) -> Run:
    """All images in one matrix product, the weights its image: each weight is read once, and every lane is full.

    Image by image, with vectors along k, the weights are read for each: 16 images of 16 x 5 x 5 for 120 channels took
    168 us, so 46.
    """
    K = geometry(spec).K
    turned = K * spec.out_channels * DTYPES[spec.dtype].itemsize
    left = None if limit is None or packed else limit - turned
    if left is not None and left < 0:
        raise Unsupported(f"needs {turned} bytes for turned weights", workspace=turned)
    inner = run_product(spec.batch, K, spec.out_channels, spec, left)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        image = w if packed else turn_rows(np.ascontiguousarray(w), K)
        inner.call(image, np.ascontiguousarray(x), None, y.reshape(1, spec.batch, -1))
        if bias is not None:
            y += bias.reshape(-1, *(1,) * spec.rank)

    if packed:
        return replace(
            inner, call=call, pack=lambda w: turn_rows(np.ascontiguousarray(w), K), packing=("turned", K)
        )
    turning = K * spec.out_channels * cost.ORDER_CYCLES * cost.CYCLE + cost.CALL_SECONDS
    return replace(inner, call=call, seconds=inner.seconds + turning, shared=inner.shared + turned)


def run_direct(spec: ConvSpec, limit: int | None, packed: bool) -> Run:
    """Direct convolution, of weights as they are given or packed."""
    image_by_image = run_windows(spec, limit, packed)
    if is_product(spec):
        with contextlib.suppress(Unsupported):
            return min(image_by_image, run_images(spec, limit, packed), key=lambda run: run.seconds)
    return image_by_image


def run_windows(spec: ConvSpec, limit: int | None, packed: bool) -> Run:
    """Direct convolution, an image after the other."""
    if (sampled := run_sampled(spec, limit, packed)) is not None:
        return sampled
    g = geometry(spec)
    planned, kernel = None, FLAT
    if is_flat(spec, flat := merged(g)):
        planned = plan_flat(spec, flat, packed, limit)
        if limit is not None and (need := planned.scratch + ALIGNMENT) > limit:
            raise Unsupported(f"needs {need} bytes of scratch", workspace=need)
    # A few channels meet in the same lines of the L1 cache without harm: it has 12 of each.
    crowded = g.c > 12 and near_page(math.prod(g.size) * DTYPES[spec.dtype].itemsize)
    if planned is None or (limit is None and crowded):
        copied = plan_slab(spec, limit, packed)
        if planned is None or copied.seconds < planned.seconds * cost.SAME_LINES:
            planned, kernel = copied, SLAB
    in_order = caller(kernel, planned, spec)
    if kernel is SLAB:
        other = in_order
    elif planned.arguments["left"]:  # a slab would add what is left in another order
        one = spec.with_batch(1)
        other = image_by_image(spec, lambda: caller(FLAT, plan_flat(one, flat, packed, limit), one))
    else:
        other = strided(spec, limit, packed)

    def call(x: Array, w: Array, bias: Array | None, y: Array) -> None:
        (in_order if x.flags.c_contiguous else other)(x, w, bias, y)

    at_once = max(planned.tasks * planned.images, 1)
    if limit is not None:
        at_once = max(min(at_once, (limit - planned.copied - ALIGNMENT) // planned.scratch), 1)
    return Run(
        call=call,
        seconds=planned.seconds + cost.CALL_SECONDS,
        workspace=planned.scratch,
        at_once=at_once,
        shared=planned.copied + ALIGNMENT,
        note="reads the input where it lies" if kernel is FLAT else "copies what it reads, padded",
        pack=(lambda w: pack_rows(spec, w)) if packed else None,
        packing=("rows", scalars(host()), spec.groups) if packed else None,
    )


def run_turned(spec: ConvSpec, turned: Turned) -> Run:
    """Direct convolution of an input in C order and of weights that tasks turn as they read them.

    Turned ahead, 1024 x 1024 of them took 1.4 ms of 3.1, a third of that to fetch new pages.
    """
    g = geometry(spec)
    if not is_flat(spec, g):
        raise Unsupported("needs outputs as far apart as what they read")
    planned = plan_flat(spec, g, packed=True, limit=None, turned=turned)
    return Run(
        call=caller(FLAT, planned, spec),
        seconds=planned.seconds + cost.CALL_SECONDS,
        workspace=planned.scratch,
        at_once=max(planned.tasks * planned.images, 1),
        shared=ALIGNMENT,
        note="reads the input where it lies, turns weights as it reads them",
    )


@cast_images
def implicit_gemm(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Direct convolution of any stride, dilation, groups, padding and rank."""
    run = run_direct(spec, workspace_limit, packed=False)
    if math.prod(spec.out_size) < PACKED_FROM and not is_product(spec):
        return run
    return replace(run, prepared=run_direct(spec, workspace_limit, packed=True))


@cast_images
def pointwise(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """A kernel of one element at stride 1: a matrix product over channels, in place."""
    if not geometry(spec).is_pointwise:
        raise Unsupported("needs a kernel of 1, stride 1 and no padding")
    return implicit_gemm(spec, precision, workspace_limit)
