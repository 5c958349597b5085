"""Pooling, its gradient and unpooling: one element a thread, neighbours in a row for neighbouring threads.

What is memory-bound here is read through the caches: a window's elements are read again by its neighbours, and memory
sees each once. The gradient asks the windows that hold an element, so nothing is added atomically.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends import Run
from fastconv.backends.cupy.geometry import (
    AXES,
    BOX,
    DIVISOR,
    ELEMENT_THREADS,
    box,
    c_strides,
    check_counts,
    fill,
    images_at_once,
    lifted,
    portions,
    tiles,
    volume,
)
from fastconv.backends.cupy.launch import WORKSPACE, Address, Fill, Kernel, Launch, Program, View, kept
from fastconv.backends.cupy.run import OnDevice
from fastconv.spec import DTYPES, POOL_MODES, Op, PoolSpec

WINDOW = np.dtype(
    [(name, "i4") for name in ("size", "out", "extent", "stride", "dilation", "before", "after")]
)

POOL = np.dtype(
    [
        *((name, "u8") for name in ("x", "y", "indices")),
        *((f"{name}_stride", "i8", 2 + AXES) for name in ("x", "y", "indices")),
        ("norm", "f8"),
        *((name, "i4") for name in ("count", "divisor", "kernel", "include_pad")),
        ("box", BOX),
        ("axis", WINDOW, AXES),
    ],
    align=True,
)

POOL_GRADIENT = np.dtype(
    [
        *((name, "u8") for name in ("grad", "x", "other", "result")),
        *((f"{name}_stride", "i8", 2 + AXES) for name in ("grad", "x", "other", "result")),
        ("norm", "f8"),
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

# Bytes a second of a copy that planners compare by: an H200's, measured by others.
BANDWIDTH = 4.3e12

INDEX_BYTES = 8
WINNER_BYTES = 4


def _check(spec: PoolSpec) -> None:
    for axis, size in enumerate(spec.in_size):
        pads = spec.padding[axis] if spec.padding else (0, 0)
        extent = spec.kernel_extent[axis] if spec.kernel_size else 0
        check_counts(**{"positions along an axis": size + sum(pads) + extent, "outputs": spec.out_size[axis]})
    check_counts(**{"elements of a plane": max(volume(spec.in_size), volume(spec.out_size))})


def _windows(spec: PoolSpec) -> list[tuple[int, int, int, int, int, int, int]]:
    """Elements of ``WINDOW`` for three axes."""
    if spec.output_size:
        real = [(size, out, 0, 1, 1, 0, 0) for size, out in zip(spec.in_size, spec.output_size, strict=True)]
    else:
        real = [
            (size, out, extent, stride, dilation, *pads)
            for size, out, extent, stride, dilation, pads in zip(
                spec.in_size,
                spec.out_size,
                spec.kernel_extent,
                spec.stride,
                spec.dilation,
                spec.padding,
                strict=True,
            )
        ]
    return [(1, 1, 1, 1, 1, 0, 0)] * (AXES - spec.rank) + real


def _common(spec: PoolSpec) -> dict[str, Any]:
    return {
        "norm": spec.norm_type,
        "divisor": spec.divisor_override,
        "kernel": volume(spec.kernel_size),
        "include_pad": spec.count_include_pad and not spec.output_size,
        "axis": _windows(spec),
    }


def _sums(spec: PoolSpec) -> str:
    """The type windows are reduced in: a maximum of integers is their own, their sums are float64 as NumPy's mean."""
    row = DTYPES[spec.dtype]
    if row.kind == "f":
        return row.accumulate
    return spec.dtype if spec.mode == "max" else row.mean


def _launch(
    kernel: Kernel, dtype: np.dtype[Any], count: int, addresses: list[Address], /, **values: Any
) -> Launch:
    return Launch(
        kernel=kernel,
        grid=tiles(count, ELEMENT_THREADS),
        block=ELEMENT_THREADS,
        params=fill(dtype, count=count, **values),
        addresses=tuple(addresses),
    )


def _pooled(
    spec: PoolSpec,
    some: int,
    out: str,
    x: tuple[Address, tuple[int, ...]],
    y: tuple[Address, tuple[int, ...]] | None,
    indices: tuple[Address, tuple[int, ...]] | None,
) -> Launch:
    """The launch that pools so many images; each array is an address and its strides."""
    mode = POOL_MODES.index(spec.mode)
    given = [array for array in (x, y, indices) if array]
    return _launch(
        Kernel("pool.cu", "pool", (("IN", spec.dtype), ("SUM", _sums(spec)), ("OUT", out), ("MODE", mode))),
        POOL,
        some * volume(spec.output_shape[1:]),
        [address for address, _ in given],
        box=box(spec.output_shape),
        **{f"{address.field}_stride": strides for address, strides in given},
        **_common(spec),
    )


def windows(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward: one output element a thread."""
    _check(spec)
    images = images_at_once(spec.batch, volume(spec.output_shape[1:]), 0, workspace_limit)

    @kept
    def build(x: View, y: View, indices: View | None = None) -> Program:
        arrays = [("x", spec.dtype, x), ("y", spec.out_dtype, y)]
        if indices:
            arrays.append(("indices", "int64", indices))
        steps = [
            _pooled(
                spec,
                some,
                spec.out_dtype,
                *(_placed(*array, number, begin) for number, array in enumerate(arrays)),
                *(() if indices else (None,)),
            )
            for begin, some in portions(spec.batch, images)
        ]
        return Program(steps=tuple(steps))

    return Run(
        call=OnDevice(build), seconds=spec.nbytes() / BANDWIDTH, note=f"{ELEMENT_THREADS} outputs a block"
    )


def _placed(field: str, dtype: str, given: View, array: int, begin: int) -> tuple[Address, tuple[int, ...]]:
    """The address of image `begin` of an array and the array's lifted strides."""
    strides = lifted(given.strides, 0)
    return Address(field, array, begin * strides[0] * DTYPES[dtype].itemsize), strides


def holders(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Gradient: each input element asks the windows that hold it.

    A maximum's positions, or an Lp norm, are found first where they are not given: once a window, in the workspace, not
    once for each of its elements.
    """
    _check(spec)
    types = spec.dtype, _sums(spec)
    grad = spec.out_dtype
    sums = DTYPES[grad].accumulate if DTYPES[grad].kind == "f" else DTYPES[spec.dtype].accumulate
    again = spec.mode != "avg" and not spec.indices
    outputs = volume(spec.output_shape[1:])
    scratch = 0
    if again:
        scratch = outputs * (INDEX_BYTES if spec.mode == "max" else DTYPES[types[1]].itemsize)
    images = images_at_once(spec.batch, max(volume(spec.input_shape[1:]), outputs), scratch, workspace_limit)
    inner = c_strides(spec.output_shape)
    kernel = Kernel(
        "pool_grad.cu",
        "pool_grad",
        (
            ("IN", spec.dtype),
            ("GRAD", grad),
            ("SUM", sums),
            ("OUT", spec.shapes(Op.POOL_INPUT_GRAD)[-1].dtype),
            ("MODE", POOL_MODES.index(spec.mode)),
        ),
    )

    @kept
    def build(dy: View, other: View, dx: View) -> Program:
        steps = []
        for begin, some in portions(spec.batch, images):
            arrays = [
                _placed("grad", grad, dy, 0, begin),
                _placed("result", spec.shapes(Op.POOL_INPUT_GRAD)[-1].dtype, dx, 2, begin),
            ]
            if spec.indices:
                arrays.append(_placed("other", "int64", other, 1, begin))
            elif again:
                x = _placed("x", spec.dtype, other, 1, begin)
                found = Address("indices" if spec.mode == "max" else "y", WORKSPACE), inner
                y, indices = (None, found) if spec.mode == "max" else (found, None)
                steps.append(
                    _pooled(spec, some, spec.dtype if spec.mode == "max" else types[1], x, y, indices)
                )
                arrays += [x, (Address("other", WORKSPACE), inner)]
            steps.append(
                _launch(
                    kernel,
                    POOL_GRADIENT,
                    some * volume(spec.input_shape[1:]),
                    [address for address, _ in arrays],
                    box=box(spec.input_shape),
                    **{f"{address.field}_stride": strides for address, strides in arrays},
                    **_common(spec),
                )
            )
        return Program(steps=tuple(steps), workspace=scratch * images)

    return Run(
        call=OnDevice(build),
        seconds=spec.nbytes(Op.POOL_INPUT_GRAD) / BANDWIDTH,
        shared=scratch * images,
        note=f"{ELEMENT_THREADS} elements a block" + (", windows reduced first" if again else ""),
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
            values = {f"{address.field}_stride": strides for address, strides in arrays if strides}
            addresses = [address for address, _ in arrays]
            for step, shape in ((0, spec.output_shape), (1, spec.input_shape)):
                steps.append(
                    _launch(
                        Kernel("unpool.cu", "unpool", (("TYPE", spec.dtype), ("STEP", step))),
                        UNPOOL,
                        some * volume(shape[1:]),
                        addresses,
                        plane=plane,
                        box=box(shape),
                        size=box(spec.output_shape)[0],
                        **values,
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
                    some * volume(spec.output_shape[1:]),
                    [address for address, _ in arrays],
                    plane=volume(spec.in_size),
                    box=box(spec.output_shape),
                    size=box(spec.input_shape)[0],
                    **{f"{address.field}_stride": strides for address, strides in arrays},
                )
            )
        return Program(steps=tuple(steps))

    return Run(call=OnDevice(build), seconds=spec.nbytes(Op.UNPOOL_INPUT_GRAD) / BANDWIDTH)
