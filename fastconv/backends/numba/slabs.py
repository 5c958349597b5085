"""Padded copies of images, planned: how they lie, what it takes to copy them, and taking some at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.backends import Unsupported
from fastconv.backends.numba import cost, jit, threads
from fastconv.backends.numba.geometry import Geometry, Triple, geometry, lift, near_page, strides
from fastconv.backends.numba.kernels import positions as kernels
from fastconv.backends.numba.kernels.simd import host
from fastconv.backends.numba.operands import Array, address, scratch, set_fields
from fastconv.spec import DTYPES, ConvSpec, Sizes, source

COPY = jit.Kernel(kernels.copy)

# Copied images are used at once and overwritten by the next ones: a share of the last level of the cache.
COPIED_BYTES = 2 << 20

# Tasks an image is copied in.
COPY_TASKS = 8
FIELD = {name: at for at, name in enumerate(kernels.ARGUMENTS.names or ())}
STRIDES = slice(FIELD["x_n"], FIELD["x_w"] + 1)
X, Y, SCRATCH, COPIED, BATCH = (FIELD[name] for name in ("x", "y", "scratch", "copied", "batch"))
CHANNELS, C_TASKS, COPIED_N = FIELD["channels"], FIELD["c_tasks"], FIELD["copied_n"]


def channels_last(x: Array) -> bool:
    """Whether neighbours in memory are channels of a pixel, as images come."""
    return bool(x.strides[1] == x.itemsize != x.strides[-1])


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


def slab_bytes(g: Geometry, box: Triple, channels: int, itemsize: int) -> int:
    """Bytes of a box's slab, and of the vector that is read beyond its end."""
    return -(-channels * slab_channel(g, box, itemsize) * itemsize // 64) * 64 + host().width


def copy_seconds(spec: ConvSpec, g: Geometry, box: Triple, channels: int) -> float:
    """What copying to a slab takes that holds what `box` reads of so many channels."""
    *rows, length = g.slab(box)
    row = cost.ROW_CYCLES + -(-length // cost.lanes(spec.dtype)) * len(g.phases(2)) * cost.COPY_CYCLES
    return channels * math.prod(rows) / len(g.phases(2)) * row * cost.CYCLE


def source_map(spec: ConvSpec, g: Geometry, axis: int) -> Iterator[int]:
    """Where each position of the padded axis comes from; -1 is a zero."""
    mode, size = spec.padding_mode, g.size[axis]
    for i in range((g.out[axis] + g.reach(axis)) * g.stride[axis]):
        at = i - g.before[axis]
        # A box that ends before a phase's last position copies beyond what the taps read.
        found = source(at, size, mode) if mode == "zeros" or at < size + g.after[axis] else None
        yield -1 if found is None else found


class Slab(NamedTuple):
    """How copied images, or the part a box reads of one, lie."""

    fields: dict[str, int]
    taps: Array  # what each tap adds to a position, in elements
    tables: tuple[Array, ...]


def slab_of(spec: ConvSpec, g: Geometry, box: Triple) -> Slab:
    """The arguments about a copy of what `box` reads, and from where it is copied."""
    itemsize = DTYPES[spec.dtype].itemsize
    *_, pitch_d, pitch_h, pitch_w = strides(g.slab(box))
    phase_w = phase_step(g, box, itemsize)
    phase_h = phase_w * len(g.phases(2))
    phase_d = phase_h * len(g.phases(1))
    pitch_c = slab_channel(g, box, itemsize)
    phases = [g.phases(axis) for axis in range(3)]
    steps = ((phase_d, pitch_d), (phase_h, pitch_h), (phase_w, pitch_w))
    taps = np.zeros(g.taps, np.int64)
    for t, tap in enumerate(itertools.product(*map(range, g.kernel))):
        for axis in range(3):
            q, phase = divmod(tap[axis] * g.dilation[axis], g.stride[axis])
            taps[t] += phases[axis].index(phase) * steps[axis][0] + q * steps[axis][1]
    if taps.max() >= 2**31:
        raise Unsupported("its window spans 2**31 elements or more")
    maps = [list(source_map(spec, g, axis)) for axis in range(3)]
    all_maps = np.array(list(itertools.chain(*maps)), np.int64)
    all_phases = np.array(list(itertools.chain(*phases)), np.int64)
    plane = math.prod(g.size)
    x_d, x_h, x_w = strides(g.size)
    fields = {
        "copied_n": spec.in_channels * pitch_c, "channels": spec.in_channels,
        "c_tasks": max(min(spec.in_channels, COPY_TASKS), 1), "maps": address(all_maps), "phases": address(all_phases),
        "x_n": spec.in_channels * plane, "x_group": g.c * plane, "x_c": plane, "x_d": x_d, "x_h": x_h, "x_w": x_w,
        "od": g.out[0], "oh": g.out[1], "ow": g.out[2], "size_w": g.size[2], "before_w": g.before[2],
        "stride_d": g.stride[0], "stride_h": g.stride[1], "stride_w": g.stride[2],
        "phases_d": len(phases[0]), "phases_h": len(phases[1]), "phases_w": len(phases[2]),
        "reach_d": g.reach(0), "reach_h": g.reach(1), "reach_w": g.reach(2),
        "pitch_d": pitch_d, "pitch_h": pitch_h, "pitch_c": pitch_c,
        "phase_d": phase_d, "phase_h": phase_h, "phase_w": phase_w,
        "wanted_w": sum(1 << phase for phase in phases[2]) if g.stride[2] < 64 else 0,
        "map_h": len(maps[0]), "map_w": len(maps[0]) + len(maps[1]), "borders": spec.padding_mode != "zeros",
    }  # fmt: skip
    return Slab(fields, taps, (all_maps, all_phases))


def set_strides(a: Array, x: Array, spec: ConvSpec) -> None:
    """Let a slab be filled from an input of any strides."""
    if not x.flags.c_contiguous:
        n, c, *rest = (step // x.itemsize for step in x.strides)
        a[STRIDES] = n, c * (spec.in_channels // spec.groups), c, *lift(tuple(rest), 0)


def in_rounds(
    a: Array, spec: ConvSpec, x: Array, y: Array, images: int, copied: int, workers: int
) -> Iterable[int]:
    """Set a kernel's arguments for so many images at a time, and say how many there are.

    Where `copied` is an address they have been copied there before; else all are taken at once, for which no generator is
    made: that would take 0.4 us of the 7 of a short call.
    """
    if not copied:
        return (images,) if spec.batch else ()
    return _copied_in_rounds(a, spec, x, y, images, copied, workers)


def _copied_in_rounds(
    a: Array, spec: ConvSpec, x: Array, y: Array, images: int, copied: int, workers: int
) -> Iterator[int]:
    batch, c_tasks = int(a[BATCH]), int(a[C_TASKS])
    for n in range(0, batch, images):
        if n:
            a[X] += x.strides[0] * images
            a[Y] += y.strides[0] * images
        a[BATCH] = count = min(images, batch - n)
        a[COPIED] = copied
        seconds = cost.moving(count * int(a[COPIED_N]) * x.itemsize)
        threads.launch(COPY.address(spec.dtype), a, c_tasks * count, workers, seconds)
        yield count


@lru_cache(maxsize=64)
def orderer(dtype: str, channels: int, size: Sizes) -> Callable[[Array, int, int, int, int], None]:
    """The function ``order(x, n, c, count, to)``: so many channels of an image, from c on, brought in order at `to`.

    NumPy turns 16 x 16 blocks of channels and pixels element by element: 420 us for 128 channels of 56 x 56, this 120.
    """
    plane, one = math.prod(size), (1,) * len(size)
    spec = ConvSpec(batch=1, in_channels=channels, out_channels=1, in_size=size, kernel_size=one, dtype=dtype)
    g = geometry(spec)
    held = slab_of(spec, g, g.out)
    lanes = cost.lanes(dtype)
    stage = lanes * host().width
    arguments = np.zeros(1, kernels.ARGUMENTS)
    set_fields(arguments, **held.fields)
    set_fields(arguments, pitch_c=plane, copied_n=0, batch=1, scratch_size=stage, stage_at=0)
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
        moved = count * plane * DTYPES[dtype].itemsize
        threads.launch(COPY.address(dtype), a, tasks, workers, cost.moving(moved))

    order.tables = held  # type: ignore[attr-defined]
    return order
