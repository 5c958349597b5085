"""Convolution and its gradients as one product whose columns are never stored (``kernels/implicit_gemm.cu``).

    result[m, j] = bias[m] + sum_k dense[m, k] * gathered[place(k) + place(j)]

A forward convolution, each phase of an input gradient and a weight gradient differ in what m, k and j count and in which
array is dense; :func:`product` takes that as two lists of digits and chooses tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastconv.backends import Run
from fastconv.backends.cupy.geometry import (
    AXES,
    DIGIT,
    DIGITS,
    DIVISOR,
    Axis,
    Digit,
    check_counts,
    divisor,
    fill,
    lifted,
    padding,
    tiles,
    volume,
)
from fastconv.backends.cupy.launch import WORKSPACE, Address, Kernel, Launch, Program, View, kept
from fastconv.backends.cupy.run import OnDevice
from fastconv.spec import DTYPES, ConvSpec

GATHERED_PRODUCT = np.dtype(
    [
        *((name, "u8") for name in ("gathered", "dense", "bias", "result")),
        *((name, "i8") for name in ("dense_row", "result_row", "bias_row")),
        *((f"{name}_group", "i8") for name in ("gathered", "dense", "result", "bias")),
        ("result_split", "i8"),
        ("start", "i8"),
        ("axis_stride", "i8", AXES),
        ("origin", "i4", AXES),
        ("size", "i4", AXES),
        *((name, "i4") for name in ("M", "N", "K", "part")),
        *((name, DIVISOR) for name in ("tiles_m", "tiles_n", "parts")),
        ("row", DIGIT, DIGITS),
        ("column", DIGIT, DIGITS),
    ],
    align=True,
)

PARTIAL_SUMS = np.dtype(
    [
        *((name, "u8") for name in ("parts", "bias", "result")),
        *((name, "i8") for name in ("count", "result_row", "result_group", "bias_row", "bias_group")),
        *((name, "i4") for name in ("number", "M", "N", "unused")),
        ("column", DIGIT, DIGITS),
    ],
    align=True,
)

TILE_K = 8

# Blocks that keep a large card busy: two on each of an H200's 132 multiprocessors.
BLOCKS = 264

# A part of k shorter than this costs more to store and add again than it saves: 64 steps of TILE_K.
LEAST_PART = 512

# Blocks of one launch, which CUDA counts in 31 bits.
MOST_BLOCKS = 2**31 - 1


class Tile(NamedTuple):
    """What a block makes, and what one of its threads makes of that."""

    m: int
    n: int
    per: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.m // self.per * (self.n // self.per)


class Placed(NamedTuple):
    """An array of a product: its number in the call, elements to where it begins, and its type."""

    array: int
    start: int
    row: int = 0
    group: int = 0


class Shape(NamedTuple):
    """The product of one group, and how many there are."""

    m: int
    n: int
    k: int
    groups: int


def tile_for(shape: Shape, sums: str) -> Tile:
    """The tile of a product.

    A thread's 64 float32 sums live in registers; 64-bit sums are 16, for 64 would take 128 of its 255 registers.
    Each step a tile of 128 x 128 reads 1/64 of an element for a multiplication and one of 64 x 64 twice that; but a
    tile that hangs over the edge, or a card half idle, loses more.
    """
    if DTYPES[sums].itemsize == 8:
        return Tile(64, 64, 4)
    blocks = tiles(shape.m, 128) * tiles(shape.n, 128) * shape.groups
    if shape.m > 64 and blocks >= BLOCKS // 2:
        return Tile(128, 128, 8)
    return Tile(64, 64, 8)


def parts_for(shape: Shape, tile: Tile, sums: str, limit: int | None) -> int:
    """Into how many parts k is cut so that the blocks fill a card, as far as `limit` bytes hold their sums."""
    blocks = tiles(shape.m, tile.m) * tiles(shape.n, tile.n) * shape.groups
    wanted = min(tiles(BLOCKS, max(blocks, 1)), max(shape.k // LEAST_PART, 1))
    one = shape.groups * shape.m * shape.n * DTYPES[sums].itemsize
    if limit is not None:
        wanted = min(wanted, limit // max(one, 1))
    return wanted if wanted > 1 else 1


def product(
    shape: Shape,
    *,
    rows: Sequence[Digit],
    columns: Sequence[Digit],
    axes: Sequence[Axis],
    gathered: Placed,
    gathered_strides: Sequence[int],
    dense: Placed,
    result: Placed,
    bias: Placed | None,
    types: tuple[str, str, str],
    mode: str = "zeros",
    lanes: int,
    tile: Tile,
    parts: int = 1,
) -> Program:
    """The launches of one product: itself, and where k is cut the sum of its parts.

    Parameters
    ----------
    types : (str, str, str)
        What operands are stored as, sums formed in, the result stored as.
    gathered_strides : sequence of int
        Of its three axes.
    lanes : {0, 1}
        Whether neighbouring threads fetch neighbouring columns (0) or rows (1) of the gathered array.
    """
    if not shape.m * shape.n * shape.groups:
        return Program(steps=())
    stored, sums, out = types
    in_size, sum_size, out_size = (DTYPES[name].itemsize for name in types)
    part = tiles(tiles(shape.k, parts), TILE_K) * TILE_K
    parts = max(tiles(shape.k, part), 1) if part else 1
    tiles_m, tiles_n = tiles(shape.m, tile.m), tiles(shape.n, tile.n)
    grid = tiles_m * tiles_n * shape.groups * parts
    check_counts(blocks=grid)
    start = sum(axis.start * stride for axis, stride in zip(axes, gathered_strides, strict=True))
    whole = parts == 1
    values = {
        "dense_row": dense.row,
        "result_row": result.row if whole else shape.n,
        "bias_row": bias.row if bias and whole else 0,
        "gathered_group": gathered.group,
        "dense_group": dense.group,
        "result_group": result.group if whole else shape.m * shape.n,
        "bias_group": bias.group if bias and whole else 0,
        "result_split": shape.groups * shape.m * shape.n,
        "start": start if mode == "zeros" else 0,
        "axis_stride": tuple(gathered_strides),
        "origin": tuple(axis.start for axis in axes),
        "size": tuple(axis.size for axis in axes),
        "M": shape.m,
        "N": shape.n,
        "K": shape.k,
        "part": max(part, TILE_K),
        "tiles_m": divisor(tiles_m),
        "tiles_n": divisor(tiles_n),
        "parts": divisor(parts),
        "row": [digit.row() for digit in rows],
        "column": [digit.row() for digit in (columns if whole else _flat(columns))],
    }
    addresses = [
        Address("gathered", gathered.array, gathered.start * in_size),
        Address("dense", dense.array, dense.start * in_size),
        Address("result", result.array if whole else WORKSPACE, result.start * out_size if whole else 0),
    ]
    if bias and whole:
        addresses.append(Address("bias", bias.array, bias.start * out_size))
    launches = [
        Launch(
            kernel=Kernel(
                "implicit_gemm.cu",
                "implicit_gemm",
                (
                    *(("IN", stored), ("SUM", sums), ("OUT", out if whole else sums)),
                    *(("TILE_M", tile.m), ("TILE_N", tile.n), ("PER", tile.per)),
                    *(("PADDING", padding(mode)), ("LANES", lanes)),
                ),
            ),
            grid=grid,
            block=tile.threads,
            params=fill(GATHERED_PRODUCT, **values),
            addresses=tuple(addresses),
        )
    ]
    if whole:
        return Program(steps=tuple(launches))
    count = shape.groups * shape.m * shape.n
    addresses = [Address("parts", WORKSPACE), Address("result", result.array, result.start * out_size)]
    if bias:
        addresses.append(Address("bias", bias.array, bias.start * out_size))
    launches.append(
        Launch(
            kernel=Kernel("sum_parts.cu", "sum_parts", (("SUM", sums), ("OUT", out))),
            grid=tiles(count, 256),
            block=256,
            params=fill(
                PARTIAL_SUMS,
                count=count,
                result_row=result.row,
                result_group=result.group,
                bias_row=bias.row if bias else 0,
                bias_group=bias.group if bias else 0,
                number=parts,
                M=shape.m,
                N=shape.n,
                column=[digit.row() for digit in columns],
            ),
            addresses=tuple(addresses),
        )
    )
    return Program(steps=tuple(launches), workspace=parts * count * sum_size)


def _flat(digits: Sequence[Digit]) -> list[Digit]:
    """The same digits with the distances of a row of columns without gaps."""
    flat, step = [], 1
    for digit in digits:
        flat.append(digit._replace(other=step))
        step *= digit.radix
    return flat


def taps_of(
    axes: Sequence[Axis],
    channels: int,
    gathered: Sequence[int],
    other: Sequence[int],
    *,
    linear: bool,
    channels_first: bool,
) -> tuple[Digit, ...]:
    """Channels and kernel elements as digits; `gathered` and `other` are strides of (channel, d, h, w)."""
    elements = [
        Digit(axis.taps, _along(at, axis.tap), axis.tap * gathered[1 + at] if linear else 0, other[1 + at])
        for at, axis in reversed(list(enumerate(axes)))
    ]
    channel = Digit(channels, (0, 0, 0), gathered[0], other[0])
    return (*elements, channel) if channels_first else (channel, *elements)


def pixels_of(
    axes: Sequence[Axis], images: int, gathered: Sequence[int], other: Sequence[int], *, linear: bool
) -> tuple[Digit, ...]:
    """Images and output positions as digits; `gathered` and `other` are strides of (image, d, h, w)."""
    positions = [
        Digit(
            axis.columns, _along(at, axis.step), axis.step * gathered[1 + at] if linear else 0, other[1 + at]
        )
        for at, axis in reversed(list(enumerate(axes)))
    ]
    return (*positions, Digit(images, (0, 0, 0), gathered[0], other[0]))


def _along(axis: int, step: int) -> tuple[int, int, int]:
    steps = [0] * AXES
    steps[axis] = step
    return (steps[0], steps[1], steps[2])


def forward_axes(spec: ConvSpec) -> list[Axis]:
    """How a forward convolution reads its input."""
    axes = [
        Axis(*row)
        for row in zip(
            spec.in_size,
            spec.out_size,
            spec.stride,
            spec.kernel_size,
            spec.dilation,
            (-before for before, _ in spec.padding),
            strict=True,
        )
    ]
    return [Axis(1, 1, 1, 1, 1, 0)] * (AXES - spec.rank) + axes


def types_of(spec: ConvSpec) -> tuple[str, str, str]:
    """What operands are stored as, sums formed in, and the result stored as."""
    return spec.dtype, DTYPES[spec.dtype].accumulate, spec.out_dtype


def check_positions(spec: ConvSpec) -> None:
    """Decline images whose padded axes, or whose positions all together, 32 bits cannot count."""
    for size, pads in zip(spec.in_size, spec.padding, strict=True):
        check_counts(**{"positions along an axis": size + pads[0] + max(pads[1], 0)})
    check_counts(
        **{
            "output positions of the batch": spec.batch * volume(spec.out_size),
            "products of one sum": spec.in_channels // spec.groups * volume(spec.kernel_size),
        }
    )


# float32 multiply-adds a second that planners compare by: an H200's data sheet says 67e12 operations.
RATE = 30e12


def implicit_gemm(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward: out channels by output positions of the whole batch."""
    check_positions(spec)
    out_channels, in_channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    axes, types = forward_axes(spec), types_of(spec)
    shape = Shape(
        out_channels, spec.batch * volume(spec.out_size), in_channels * volume(spec.kernel_size), spec.groups
    )
    tile = tile_for(shape, types[1])
    parts = parts_for(shape, tile, types[1], workspace_limit)
    linear = spec.padding_mode == "zeros"

    @kept
    def build(x: View, w: View, bias: View | None, y: View) -> Program:
        xs, ws, ys = lifted(x.strides, 0), lifted(w.strides, 0), lifted(y.strides, 0)
        return product(
            shape,
            rows=taps_of(
                axes, in_channels, xs[1:], ws[1:], linear=linear, channels_first=not x.channels_last
            ),
            columns=pixels_of(axes, spec.batch, (xs[0], *xs[2:]), (ys[0], *ys[2:]), linear=linear),
            axes=axes,
            gathered=Placed(0, 0, group=in_channels * xs[1]),
            gathered_strides=xs[2:],
            dense=Placed(1, 0, row=ws[0], group=out_channels * ws[0]),
            result=Placed(3, 0, row=ys[1], group=out_channels * ys[1]),
            bias=bias and Placed(2, 0, row=bias.strides[0], group=out_channels * bias.strides[0]),
            types=types,
            mode=spec.padding_mode,
            lanes=int(x.channels_last),
            tile=tile,
            parts=parts,
        )

    return Run(
        call=OnDevice(build),
        seconds=spec.flops() / RATE,
        shared=workspace_of(shape, parts, types[1]),
        note=note(shape, tile, parts),
    )


def workspace_of(shape: Shape, parts: int, sums: str) -> int:
    """Bytes of the sums of the parts of k."""
    return 0 if parts == 1 else parts * shape.groups * shape.m * shape.n * DTYPES[sums].itemsize


def note(shape: Shape, tile: Tile, parts: int) -> str:
    """What was decided, for people."""
    blocks = tiles(shape.m, tile.m) * tiles(shape.n, tile.n) * shape.groups * parts
    cut = f", k in {parts} parts" if parts > 1 else ""
    return f"{blocks} blocks of {tile.m}x{tile.n}, {tile.per}x{tile.per} a thread{cut}"
