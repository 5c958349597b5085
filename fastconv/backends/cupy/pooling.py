"""Pooling, its gradient and unpooling: neighbours in memory for neighbouring threads, and each read from it once.

Small windows are compiled in and made in strips, which read through the caches what neighbouring strips read too; any
others one by one. The gradient asks the windows that hold an element, so nothing is added atomically.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends import Run
from fastconv.backends.cupy.geometry import (
    AXES,
    BOX,
    COUNT,
    DIVISOR,
    ELEMENT_THREADS,
    box,
    c_strides,
    check_counts,
    divisor,
    fill,
    images_at_once,
    lifted,
    portions,
    tiles,
    volume,
)
from fastconv.backends.cupy.launch import WORKSPACE, Address, Fill, Kernel, Launch, Program, View, kept
from fastconv.backends.cupy.run import OnDevice
from fastconv.spec import DTYPES, POOL_MODES, Op, PoolSpec, Sizes

WINDOW = np.dtype(
    [
        *((name, "i4") for name in ("size", "out", "extent", "stride", "before", "after")),
        *((f"by_{name}", DIVISOR) for name in ("size", "out", "stride", "dilation")),
    ],
    align=True,
)

POOL = np.dtype(
    [
        *((name, "u8") for name in ("x", "y", "indices")),
        *((f"{name}_stride", "i8", 2 + AXES) for name in ("x", "y", "indices")),
        *((name, "f8") for name in ("norm", "inverse")),
        *((name, "i4") for name in ("count", "channels", "divisor", "kernel", "include_pad")),
        ("box", BOX),
        ("axis", WINDOW, AXES),
    ],
    align=True,
)

POOL_GRADIENT = np.dtype(
    [
        *((name, "u8") for name in ("grad", "x", "other", "result")),
        *((f"{name}_stride", "i8", 2 + AXES) for name in ("grad", "x", "other", "result")),
        *((name, "f8") for name in ("norm", "inverse")),
        *((name, "i4") for name in ("count", "divisor", "kernel", "include_pad")),
        ("box", BOX),
        ("axis", WINDOW, AXES),
    ],
    align=True,
)

UNPOOL = np.dtype(
    [
        *((name, "u8") for name in ("values", "indices", "winner", "result")),
        *((f"{name}_stride", "i8", 2 + AXES) for name in ("values", "indices", "result")),
        *((name, "i4") for name in ("count", "plane")),
        ("box", BOX),
        ("size", DIVISOR, AXES),
    ],
    align=True,
)

# How windows lie (``kernels/windows.cuh``).
DENSE, DILATED, BINS, WIDE_BINS, WHOLE = range(5)

# Outputs below each other that one thread makes, by the step between their windows: what finds its place is shared, rows are
# where steps are short, and all loads are under way at once. Windows further apart share nothing and have loads enough.
STRIPS = {1: 8, 2: 8, 3: 4}
SHORT_STRIP = 4

# Rows of a gradient that one thread makes.
GRADIENT_ROWS = 8

# Sides of windows that are compiled in: 5x5 at a step of 2 is 95 loads a strip, and no register too many.
MOST_TAPS = 5

# Channels that lie last are read by warps, 32 side by side (fewer leave lanes idle), and turned in shared memory: a tile
# has 32 strips of numbers of up to 4 bytes.
CHANNELS = 32
TILE_BYTES = 128

# Threads that share a window, and the loads each has under way.
LEAST_GROUP, MOST_GROUP = 8, 32
LEAST_LOADS, MOST_LOADS = 4, 8

# Bytes a second of a copy that planners compare by: an H200's, measured by others.
BANDWIDTH = 4.3e12

INDEX_BYTES = WIDEST = 8
WINNER_BYTES = 4


def _check(spec: PoolSpec) -> None:
    for axis, size in enumerate(spec.in_size):
        pads = spec.padding[axis] if spec.padding else (0, 0)
        extent = spec.kernel_extent[axis] if spec.kernel_size else 0
        check_counts(**{"positions along an axis": size + sum(pads) + extent, "outputs": spec.out_size[axis]})
    check_counts(**{"elements of a plane": max(volume(spec.in_size), volume(spec.out_size))})


class Axis(NamedTuple):
    """The windows along one axis; a `dilation` of 0 stands for an adaptive pool's bins."""

    size: int
    out: int
    extent: int
    stride: int
    before: int
    after: int
    dilation: int

    def row(self) -> tuple[Any, ...]:
        """As an element of ``WINDOW``."""
        divisors = map(divisor, (self.size, self.out, max(self.stride, 1), max(self.dilation, 1)))
        return *self[:-1], *divisors


def _whole(size: int) -> Axis:
    """One window, which is all there is."""
    return Axis(size, 1, size, size, 0, 0, 1)


ONE = _whole(1)

Axes = tuple[Axis, Axis, Axis]
Defines = tuple[tuple[str, str | int], ...]


def _axes(spec: PoolSpec) -> Axes:
    """Three axes; bins that are all of one length are windows as any."""
    sizes = tuple(zip(spec.in_size, spec.out_size, strict=True))
    if not spec.output_size:
        rows = zip(sizes, spec.kernel_extent, spec.stride, spec.padding, spec.dilation, strict=True)
        real = [Axis(*counts, extent, stride, *pads, step) for counts, extent, stride, pads, step in rows]
    elif all(size % out == 0 for size, out in sizes):
        real = [Axis(size, out, size // out, size // out, 0, 0, 1) for size, out in sizes]
    else:
        real = [Axis(size, out, 0, 0, 0, 0, 0) for size, out in sizes]
    d, h, w = [ONE] * (AXES - spec.rank) + real
    return d, h, w


def _kind(axes: Axes) -> int:
    """How windows lie, by its number in ``windows.cuh``."""
    if axes == (ONE, ONE, _whole(axes[2].size)):
        return WHOLE
    if any(axis.dilation == 0 for axis in axes):
        widest = max(axis.size * axis.out + max(axis.size, axis.out) for axis in axes)
        return BINS if widest <= COUNT else WIDE_BINS
    return DILATED if any(axis.dilation > 1 for axis in axes) else DENSE


def _divisor(spec: PoolSpec, axes: Axes) -> int:
    """What the sum of every window is divided by, or 0 where they differ."""
    if spec.mode != "avg" or spec.divisor_override:
        return spec.divisor_override
    padded = spec.count_include_pad
    for axis in axes:
        end = (axis.out - 1) * axis.stride - axis.before + axis.extent
        if not axis.dilation or (axis.before and not padded) or end > axis.size + axis.after * padded:
            return 0
    return volume(tuple((axis.extent - 1) // axis.dilation + 1 for axis in axes))


def _common(spec: PoolSpec, axes: Axes) -> dict[str, Any]:
    divided = _divisor(spec, axes)
    return {
        "norm": spec.norm_type,
        "divisor": divided,
        "inverse": 1 / max(divided, 1),
        "kernel": volume(spec.kernel_size),
        "include_pad": spec.count_include_pad and not spec.output_size,
        "axis": [axis.row() for axis in axes],
    }


def _small(axes: Axes) -> bool:
    """Whether windows are worth compiling in: few, two axes of them, and their elements side by side."""
    d, *plane = axes
    return d == ONE and all(
        axis.dilation == 1 and axis.extent <= MOST_TAPS and axis.stride in (*STRIPS, axis.extent)
        for axis in plane
    )


def _near(spec: PoolSpec, arrays: list[Array]) -> bool:
    """Whether distances in a plane fit in 31 bits in bytes, with room for strips that hang over, and an image's too."""
    sizes = lifted(tuple(map(max, spec.in_size, spec.out_size)), 1)
    for _, strides in arrays:
        plane = sum(map(operator.mul, sizes, map(abs, strides[2:])))
        if min(strides[:2]) < 0 or max(plane * WIDEST * 2, *strides[:2]) > COUNT:
            return False
    return True


def _strip(most: int, windows: int) -> int:
    """How many of so many windows below each other one thread takes."""
    return 1 if windows == 1 else min(most, SHORT_STRIP) if windows <= SHORT_STRIP else most


def _compiled(axes: Axes, strip: int, *read: Array) -> Defines:
    _, h, w = axes
    sides = (("KERNEL_H", h.extent), ("KERNEL_W", w.extent), ("STEP_H", h.stride), ("STEP_W", w.stride))
    return *sides, ("STRIP", strip), ("ADJACENT", int(all(strides[-1] == 1 for _, strides in read)))


def _what(spec: PoolSpec, axes: Axes) -> Defines:
    even = spec.mode == "avg" and _divisor(spec, axes) > 0
    return ("MODE", POOL_MODES.index(spec.mode)), ("EVEN", int(even))


def _sums(spec: PoolSpec) -> str:
    """The type windows are reduced in: a maximum of integers is their own, their sums are float64 as NumPy's mean."""
    row = DTYPES[spec.dtype]
    if row.kind == "f":
        return row.accumulate
    return spec.dtype if spec.mode == "max" else row.mean


Array = tuple[Address, tuple[int, ...]]  # where it begins, and its lifted strides


class Way(NamedTuple):
    """How a pool is made: what is compiled in, the pieces of the work, and the threads (or strips) and blocks for them."""

    defines: Defines
    pieces: Sizes
    counted: int
    blocks: int


def _one_each(pieces: Sizes, defines: Defines = (), group: int = 1) -> Way:
    """A thread for every piece, or a group of threads."""
    count = volume(pieces) * group
    return Way(defines, pieces, count, tiles(count, ELEMENT_THREADS))


def _in_strips(axes: Axes, images: int, channels: int, tile: int, x: Array) -> Way:
    """Small windows; where `tile` is not 0, so many strips of 32 channels at once, for channels that lie last."""
    _, h, w = axes
    strip = _strip(min(STRIPS.get(h.stride, 1), SHORT_STRIP if tile else COUNT), h.out)
    strips = (1, tiles(h.out, strip), w.out)
    defines = (*_compiled(axes, strip, x), ("TRANSPOSED", int(tile > 0)))
    if not tile:
        return _one_each((images, channels, *strips), defines)
    pieces = (images, tiles(channels, CHANNELS), 1, tiles(volume(strips), tile), w.out)
    return Way(defines, pieces, volume(strips), volume(pieces[:-1]))


def _one_by_one(axes: Axes, images: int, channels: int, group: int) -> Way:
    """Any windows, each by a group of threads that share it along w."""
    *_, w = axes
    longest = w.extent if w.dilation else tiles(w.size, w.out)
    loads = MOST_LOADS if longest >= MOST_LOADS else LEAST_LOADS
    defines = (("WINDOWS", _kind(axes)), ("GROUP", group), ("LOADS", loads))
    return _one_each((images, channels, *(axis.out for axis in axes)), defines, group)


def _held_in_strips(axes: Axes, images: int, channels: int, arrays: list[Array]) -> Way:
    """Input elements by the small windows that begin there."""
    _, h, w = axes
    read = [array for array in arrays if array[0].field in ("grad", "other")]
    windows = (h.size - 1 + h.before) // h.stride - h.before // h.stride + 1
    strip = _strip(GRADIENT_ROWS // h.stride, windows)
    return _one_each((images, channels, 1, tiles(windows, strip), w.size), _compiled(axes, strip, *read))


def _merged(axes: Axes, *given: tuple[int, ...]) -> Axes:
    """One axis where windows are whole planes, whose elements lie evenly in memory by each of the strides given."""
    d, h, w = axes
    even = all(
        (h.size == 1 or middle == w.size * near) and (d.size == 1 or far == h.size * w.size * near)
        for *_, far, middle, near in given
    )
    if not even or any(axis != _whole(axis.size) for axis in axes):
        return axes
    return ONE, ONE, _whole(d.size * h.size * w.size)


def _group(spec: PoolSpec, axes: Axes) -> int:
    """Threads that share one window: a sum's alone, for of a maximum's equals the first is wanted.

    Eight elements a thread keep memory busy, and eight threads read 32 bytes side by side.
    """
    if spec.mode == "max" or axes[2].extent < 2 * LEAST_GROUP:
        return 1
    return LEAST_GROUP if axes[2].extent < MOST_LOADS * MOST_GROUP else MOST_GROUP


def _lanes(spec: PoolSpec) -> int:
    """The most threads that make one output, whatever the layout."""
    axes = _axes(spec)
    return max(_group(spec, axes), _group(spec, _merged(axes, c_strides(spec.input_shape))))


def _launch(kernel: Kernel, dtype: np.dtype[Any], way: Way, arrays: list[Array], /, **values: Any) -> Launch:
    strides = {f"{address.field}_stride": steps for address, steps in arrays if steps}
    return Launch(
        kernel=kernel,
        grid=way.blocks,
        block=ELEMENT_THREADS,
        params=fill(dtype, count=way.counted, box=box(way.pieces), **strides, **values),
        addresses=tuple(address for address, _ in arrays),
    )


def _pooled(spec: PoolSpec, some: int, out: str, x: Array, y: Array | None, indices: Array | None) -> Launch:
    """The launch that pools so many images."""
    axes, channels, (_, strides) = _axes(spec), spec.channels, x
    arrays = [x, *(array for array in (y, indices) if array)]
    last = channels >= CHANNELS and strides[1] == 1 != strides[-1]
    if _small(axes) and _near(spec, arrays):
        way = _in_strips(axes, some, channels, last * (TILE_BYTES // max(DTYPES[out].itemsize, 4)), x)
    else:
        axes = _merged(axes, strides)
        way = _one_by_one(axes, some, channels, 1 if last else _group(spec, axes))
    types = (("IN", spec.dtype), ("SUM", _sums(spec)), ("OUT", out))
    kernel = Kernel(
        "pool.cu", "pool", (*types, *_what(spec, axes), ("INDICES", int(indices is not None)), *way.defines)
    )
    return _launch(kernel, POOL, way, arrays, channels=channels, **_common(spec, axes))


def windows(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward."""
    _check(spec)
    images = images_at_once(spec.batch, volume(spec.output_shape[1:]) * _lanes(spec), 0, workspace_limit)

    @kept
    def build(x: View, y: View, indices: View | None = None) -> Program:
        steps = [
            _pooled(
                spec,
                some,
                spec.out_dtype,
                _placed("x", spec.dtype, x, 0, begin),
                _placed("y", spec.out_dtype, y, 1, begin),
                _placed("indices", "int64", indices, 2, begin) if indices else None,
            )
            for begin, some in portions(spec.batch, images)
        ]
        return Program(steps=tuple(steps))

    note = "strips of outputs" if _small(_axes(spec)) else "outputs one by one"
    return Run(call=OnDevice(build), seconds=spec.nbytes() / BANDWIDTH, note=note)


def _placed(field: str, dtype: str, given: View, array: int, begin: int) -> Array:
    """The address of image `begin` of an array and the array's lifted strides."""
    strides = lifted(given.strides, 0)
    return Address(field, array, begin * strides[0] * DTYPES[dtype].itemsize), strides


def holders(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Gradient: each input element asks the windows that hold it.

    A maximum's positions, or an Lp norm, are found first where they are not given: once a window, in the workspace, not
    once for each of its elements.
    """
    _check(spec)
    axes = _axes(spec)
    types = spec.dtype, _sums(spec)
    grad = spec.out_dtype
    sums = DTYPES[grad].accumulate if DTYPES[grad].kind == "f" else DTYPES[spec.dtype].accumulate
    again = spec.mode != "avg" and not spec.indices
    outputs = volume(spec.output_shape[1:])
    scratch = 0
    if again:
        scratch = outputs * (INDEX_BYTES if spec.mode == "max" else DTYPES[types[1]].itemsize)
    images = images_at_once(
        spec.batch, max(volume(spec.input_shape[1:]), outputs * _lanes(spec)), scratch, workspace_limit
    )
    inner = c_strides(spec.output_shape)
    result = spec.shapes(Op.POOL_INPUT_GRAD)[-1].dtype
    defines = (("IN", spec.dtype), ("GRAD", grad), ("SUM", sums), ("OUT", result), *_what(spec, axes))

    @kept
    def build(dy: View, other: View, dx: View) -> Program:
        steps = []
        for begin, some in portions(spec.batch, images):
            arrays = [_placed("grad", grad, dy, 0, begin), _placed("result", result, dx, 2, begin)]
            if spec.indices:
                arrays.append(_placed("other", "int64", other, 1, begin))
            elif again:
                x = _placed("x", spec.dtype, other, 1, begin)
                found = Address("indices" if spec.mode == "max" else "y", WORKSPACE), inner
                y, indices = (None, found) if spec.mode == "max" else (found, None)
                steps.append(
                    _pooled(spec, some, spec.dtype if spec.mode == "max" else types[1], x, y, indices)
                )
                arrays += [(Address("other", WORKSPACE), inner), *([x] if spec.mode == "lp" else [])]
            if _small(axes) and _near(spec, arrays):
                laid, way = axes, _held_in_strips(axes, some, spec.channels, arrays)
            else:
                laid = _merged(
                    axes, *(strides for address, strides in arrays if address.field in ("result", "x"))
                )
                pieces = (some, spec.channels, *(axis.size for axis in laid))
                way = _one_each(pieces, (("WINDOWS", _kind(laid)),))
            kernel = Kernel("pool_grad.cu", "pool_grad", (*defines, *way.defines))
            steps.append(_launch(kernel, POOL_GRADIENT, way, arrays, **_common(spec, laid)))
        return Program(steps=tuple(steps), workspace=scratch * images)

    return Run(
        call=OnDevice(build),
        seconds=spec.nbytes(Op.POOL_INPUT_GRAD) / BANDWIDTH,
        shared=scratch * images,
        note=("strips of elements" if _small(axes) else "elements one by one")
        + (", windows reduced first" if again else ""),
    )


def claims(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Unpooling: every position finds the last value sent to it."""
    _check(spec)
    plane = volume(spec.in_size)
    scratch = spec.channels * plane * WINNER_BYTES
    images = images_at_once(
        spec.batch, spec.channels * max(plane, volume(spec.out_size)), scratch, workspace_limit
    )

    @kept
    def build(y: View, indices: View, x: View) -> Program:
        steps: list[Launch | Fill] = []
        for begin, some in portions(spec.batch, images):
            steps.append(Fill(array=WORKSPACE, offset=0, nbytes=some * scratch, byte=0xFF))
            arrays = [
                _placed("values", spec.out_dtype, y, 0, begin),
                _placed("indices", "int64", indices, 1, begin),
                _placed("result", spec.dtype, x, 2, begin),
                (Address("winner", WORKSPACE), ()),
            ]
            for step, shape in ((0, spec.output_shape), (1, spec.input_shape)):
                steps.append(
                    _launch(
                        Kernel("unpool.cu", "unpool", (("TYPE", spec.dtype), ("STEP", step))),
                        UNPOOL,
                        _one_each((some, *shape[1:])),
                        arrays,
                        plane=plane,
                        size=box(spec.output_shape)[0],
                    )
                )
        return Program(steps=tuple(steps), workspace=scratch * images)

    return Run(
        call=OnDevice(build),
        seconds=(spec.nbytes(Op.UNPOOL) + 3 * scratch * spec.batch) / BANDWIDTH,
        shared=scratch * images,
        note="the last value sent to a position wins",
    )


def gather(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Gradient of unpooling: every value from the position its index names."""
    _check(spec)
    images = images_at_once(spec.batch, volume(spec.output_shape[1:]), 0, workspace_limit)

    @kept
    def build(dx: View, indices: View, dy: View) -> Program:
        steps = []
        for begin, some in portions(spec.batch, images):
            arrays = [
                _placed("values", spec.dtype, dx, 0, begin),
                _placed("indices", "int64", indices, 1, begin),
                _placed("result", spec.out_dtype, dy, 2, begin),
            ]
            steps.append(
                _launch(
                    Kernel("unpool.cu", "unpool", (("TYPE", spec.dtype), ("STEP", 2))),
                    UNPOOL,
                    _one_each((some, *spec.output_shape[1:])),
                    arrays,
                    plane=volume(spec.in_size),
                    size=box(spec.input_shape)[0],
                )
            )
        return Program(steps=tuple(steps))

    return Run(call=OnDevice(build), seconds=spec.nbytes(Op.UNPOOL_INPUT_GRAD) / BANDWIDTH)
