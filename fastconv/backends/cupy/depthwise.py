"""Convolution with one input channel a group, and its gradients (``kernels/depthwise.cu``, ``kernels/thin_product.cu``).

An ordinary product's tile would be almost empty: one channel is shared with nobody. What counts is that each element
passes through memory once, and through the caches seldom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fastconv.backends import Run, Unsupported, algorithm
from fastconv.backends.cupy.geometry import (
    AXES,
    BOX,
    COUNT,
    DIVISOR,
    ELEMENT_THREADS,
    Axis,
    box,
    check_counts,
    divisor,
    fill,
    lifted,
    padding,
    tiles,
    volume,
)
from fastconv.backends.cupy.gradients import Phased, Steps, by_phases
from fastconv.backends.cupy.implicit_gemm import check_positions, forward_axes, types_of
from fastconv.backends.cupy.launch import Kernel, Launch, Program, View, kept
from fastconv.backends.cupy.pooling import BANDWIDTH
from fastconv.backends.cupy.product import (
    BLOCKS,
    VECTOR_BYTES,
    Placed,
    Shape,
    Types,
    pixels_of,
    taps_of,
    thin_product,
    workspace_of,
)
from fastconv.backends.cupy.run import OnDevice
from fastconv.spec import DTYPES, ConvSpec, Op

CORRELATED = np.dtype([(name, "i4") for name in ("size", "columns", "step", "taps", "tap", "start")])

DEPTHWISE = np.dtype(
    [
        *((name, "u8") for name in ("gathered", "weight", "bias", "result")),
        *((f"{name}_stride", "i8", 2 + AXES) for name in ("gathered", "result")),
        *((f"weight_{name}", "i8") for name in ("group", "row", "channel")),
        ("weight_tap", "i8", AXES),
        ("bias_stride", "i8"),
        *((name, "i4") for name in ("count", "channels")),
        ("rows", DIVISOR),
        ("fastest", DIVISOR),
        ("box", BOX),
        ("axis", CORRELATED, AXES),
    ],
    align=True,
)

# Outputs of a thread along either axis where rows follow each other at once: a 3x3 kernel then reads 36 elements for 16
# outputs, and at a stride of 2 (half the rows) 45 for eight. Of 8 bytes there are two in a row, of 16-bit types eight.
TILE = 4

# Kernels of so many taps a row are compiled in, and all of their rows where there are no more taps than in a 3x3 kernel: in
# float32 a thread then has 62 registers, and four blocks run side by side. All rows of a 7x7 kernel would take 168.
MOST_TAPS_OF_A_ROW = 7
MOST_TAPS = 9
MOST_STEP = 2

# A part of k that is shorter has less than eight products for each thread of a block.
LEAST_PART = 2048


def _check(spec: ConvSpec) -> None:
    if spec.in_channels != spec.groups:
        raise Unsupported(
            f"there are {spec.in_channels} input channels in {spec.groups} groups, needs one channel in each"
        )
    check_positions(spec)


def _ahead(axes: Sequence[Axis], taps: Sequence[int]) -> tuple[list[Axis], int, tuple[int, ...]]:
    """The same sums with taps that go forward: axes, elements to the first weight, strides of taps."""
    turned, start, strides = [], 0, []
    for axis, stride in zip(axes, taps, strict=True):
        if axis.tap < 0:
            last = axis.taps - 1
            axis, start, stride = (
                axis._replace(start=axis.start + last * axis.tap, tap=-axis.tap),
                start + last * stride,
                -stride,
            )
        turned.append(axis)
        strides.append(stride)
    return turned, start, tuple(strides)


def _at_once(dtype: str, array: Placed, strides: Sequence[int], lengths: Sequence[int]) -> int:
    """Elements of a row that are read or written at once: a power of two that divides rows and where they begin."""
    if not array.aligned or strides[-1] != 1:
        return 1
    return math.gcd(VECTOR_BYTES // DTYPES[dtype].itemsize, array.start, *strides[:-1], *lengths)


def _columns(types: Types, length: int, few: bool) -> int:
    """Columns of a thread: a vector of what is summed, or of what is stored where that leaves none idle and taps are few."""
    sums, stored = (VECTOR_BYTES // DTYPES[dtype].itemsize for dtype in (types.sums, types.stored))
    return stored if length % stored == 0 and sums < stored <= 2 * TILE and few else min(sums, TILE)


def _compiled_in(
    types: Types,
    axes: Sequence[Axis],
    channels: int,
    mode: str,
    gathered: Placed,
    strides: tuple[int, ...],
    others: Sequence[int],
) -> dict[str, int]:
    """What is compiled in of how outputs are summed; `strides` are the gathered array's, `others` all others."""
    depth, high, wide = axes
    if (
        max(map(abs, (*strides, *others, wide.size * strides[-1])))
        > COUNT // 8  # in bytes, of at most eight each
        or max(high.step, wide.step) > MOST_STEP
        or wide.taps > MOST_TAPS_OF_A_ROW
        or 1 not in (wide.tap, wide.taps)
    ):
        return {"ROWS": 1, "COLUMNS": 1, "KERNEL_H": 0, "FLAT": 0}
    few = high.taps * wide.taps <= MOST_TAPS
    columns, width = _columns(types, wide.columns, few), 0
    rows = high.taps if few and 1 in (high.tap, high.taps) else 1
    if mode == "zeros" and strides[-1] == 1:
        width = _at_once(types.stored, gathered, strides, (wide.size, columns * wide.step))
    return {
        "ROWS": TILE // high.step,
        "COLUMNS": columns,
        "KERNEL_H": rows,
        "KERNEL_W": wide.taps,
        "STEP_H": high.step,
        "STEP_W": wide.step,
        "WIDTH": width,
        "SKIP": wide.start % width if width else 0,
        "FLAT": int(channels == 1 and depth == Axis(1, 1, 1, 1, 1, 0) and rows == high.taps),
    }


def _launch(
    types: Types,
    images: int,
    channels: int,
    result_channels: int,
    axes: Sequence[Axis],
    *,
    groups: int,
    gathered: Placed,
    gathered_strides: tuple[int, ...],
    weight: Placed,
    weight_channel: int,
    weight_taps: Sequence[int],
    result: Placed,
    result_strides: tuple[int, ...],
    bias: View | None,
    mode: str = "zeros",
) -> Iterator[Launch]:
    """The launch of one correlation; `channels` and `result_channels` are those of a group."""
    axes, start, taps = _ahead(axes, weight_taps)
    others = (
        *result_strides,
        weight.group,
        weight.row,
        weight_channel,
        *taps,
        bias.strides[0] if bias else 0,
    )
    compiled = _compiled_in(types, axes, channels, mode, gathered, gathered_strides, others)
    depth, high, wide = (axis.columns for axis in axes)
    columns = compiled["COLUMNS"]
    stored = _at_once(types.out, result, result_strides, (wide, columns))
    # Neighbouring threads have neighbours in memory to read, be they columns or channels.
    made, last = groups * result_channels, gathered_strides[1] == 1 != gathered_strides[-1]
    shape = (images, 1 if last else made, depth, tiles(high, compiled["ROWS"]), tiles(wide, columns))
    count = volume(shape) * (made if last else 1)
    check_counts(**{"elements of the batch": count})
    if not count:
        return
    yield Launch(
        kernel=Kernel(
            "depthwise.cu",
            "depthwise",
            (
                ("IN", types.stored),
                ("SUM", types.sums),
                ("OUT", types.out),
                ("PADDING", padding(mode)),
                *compiled.items(),
                ("STORED", stored),
            ),
        ),
        grid=tiles(count, ELEMENT_THREADS),
        block=ELEMENT_THREADS,
        params=fill(
            DEPTHWISE,
            gathered_stride=gathered_strides,
            result_stride=result_strides,
            weight_group=weight.group,
            weight_row=weight.row,
            weight_channel=weight_channel,
            weight_tap=taps,
            bias_stride=bias.strides[0] if bias else 0,
            count=count,
            channels=channels,
            rows=divisor(result_channels),
            fastest=divisor(made if last else 1),
            box=box(shape),
            axis=[tuple(axis) for axis in axes],
        ),
        addresses=(
            gathered.address("gathered", types.stored),
            weight._replace(start=weight.start + start).address("weight", types.stored),
            result.address("result", types.out),
            *([Placed(2, 0).address("bias", types.out)] if bias else []),
        ),
    )


def depthwise(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward."""
    _check(spec)
    multiplier = spec.out_channels // spec.groups

    @kept
    def build(x: View, w: View, bias: View | None, y: View) -> Program:
        ws = lifted(w.strides, 0)
        steps = _launch(
            types_of(spec),
            spec.batch,
            1,
            multiplier,
            forward_axes(spec),
            groups=spec.groups,
            gathered=Placed(0, 0, aligned=x.aligned),
            gathered_strides=lifted(x.strides, 0),
            weight=Placed(1, 0, row=ws[0], group=multiplier * ws[0]),
            weight_channel=0,
            weight_taps=ws[2:],
            result=Placed(3, 0, aligned=y.aligned),
            result_strides=lifted(y.strides, 0),
            bias=bias,
            mode=spec.padding_mode,
        )
        return Program(steps=tuple(steps))

    return Run(call=OnDevice(build), seconds=spec.nbytes() / BANDWIDTH, note="tiles of outputs")


@algorithm("depthwise")
def input_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Input gradient: each phase is a correlation too."""
    _check(spec)
    seconds = spec.nbytes(Op.CONV_INPUT_GRAD) / BANDWIDTH
    return by_phases(spec, workspace_limit, _correlations, seconds, "tiles of ")


def _correlations(given: Phased) -> Steps:
    """The launches of every phase."""
    multiplier = given.spec.out_channels // given.spec.groups
    ws = lifted(given.w.strides, 0)
    for part in given.parts():
        yield from _launch(
            given.types,
            given.images,
            multiplier,
            1,
            part.axes,
            groups=given.spec.groups,
            gathered=given.source,
            gathered_strides=lifted(given.dy.strides, 0),
            weight=Placed(1, part.weight_start, group=multiplier * ws[0]),
            weight_channel=ws[0],
            weight_taps=part.weight_taps,
            result=given.target._replace(start=given.target.start + part.result_start),
            result_strides=(*given.strides[:2], *part.result_strides),
            bias=given.bias,
        )


@algorithm("depthwise")
def weight_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Weight gradient: a long sum for each of few weights."""
    _check(spec)
    multiplier = spec.out_channels // spec.groups
    axes, types = forward_axes(spec), types_of(spec)
    shape = Shape(multiplier, volume(spec.kernel_size), spec.batch * volume(spec.out_size), spec.groups)
    parts = min(tiles(BLOCKS, shape.groups * shape.m), max(shape.k // LEAST_PART, 1))
    one = shape.groups * shape.m * shape.n * DTYPES[types.sums].itemsize
    if workspace_limit is not None:
        parts = max(min(parts, workspace_limit // one), 1)
    parts = 1 if parts == 1 else tiles(shape.k, tiles(shape.k, parts))
    linear = spec.padding_mode == "zeros"

    @kept
    def build(x: View, dy: View, dw: View) -> Program:
        xs, dys, dws = lifted(x.strides, 0), lifted(dy.strides, 0), lifted(dw.strides, 0)
        return thin_product(
            shape,
            types,
            rows=pixels_of(axes, spec.batch, (xs[0], *xs[2:]), (dys[0], *dys[2:]), linear=linear),
            columns=taps_of(axes, 1, xs[1:], dws[1:], linear=linear, channels_first=True),
            axes=axes,
            gathered=Placed(0, 0, group=xs[1]),
            gathered_strides=xs[2:],
            dense=Placed(1, 0, row=dys[1], group=multiplier * dys[1]),
            result=Placed(2, 0, row=dws[0], group=multiplier * dws[0]),
            mode=spec.padding_mode,
            parts=parts,
        )

    return Run(
        call=OnDevice(build),
        seconds=spec.nbytes(Op.CONV_WEIGHT_GRAD) / BANDWIDTH,
        shared=workspace_of(shape, parts, types.sums),
        note=f"{parts} part{'s' * (parts != 1)} of each sum",
    )
