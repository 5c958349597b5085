"""The product behind a convolution and both of its gradients (``kernels/implicit_gemm.cu``): struct, tiles, launches.

    result[m, j] = bias[m] + sum_k dense[m, k] * gathered[place(k) + place(j)]        for every group

A forward convolution, each phase of an input gradient and a weight gradient differ in what m, k and j count and in which
array is dense. :func:`product` takes k and j as lists of digits; :func:`taps_of` and :func:`pixels_of` make them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Required, TypedDict

import numpy as np

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
    padding,
    tiles,
)
from fastconv.backends.cupy.launch import WORKSPACE, Address, Kernel, Launch, Program
from fastconv.spec import DTYPES

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
        *((name, "i4") for name in ("number", "M", "N")),
        ("column", DIGIT, DIGITS),
    ],
    align=True,
)

TILE_K = 8

# On tensor cores: what one copy brings, and what a stage of shared memory holds of one row of an operand.
VECTOR_BYTES = 16
ROW_BYTES = 64

# Blocks that keep a large card busy: two on each of an H200's 132 multiprocessors.
BLOCKS = 264

# A part of k shorter than this costs more to store and add again than it saves: 64 steps of TILE_K.
LEAST_PART = 512

# Columns one block of a thin product takes: the sums of a 3x3 kernel, one column a register.
MOST_COLUMNS = 9
THIN_THREADS = 256

# Threads of a block that adds parts up, one an element.
TOTAL_THREADS = 256


class Tile(NamedTuple):
    """What a block makes, and what one of its threads makes of that."""

    m: int
    n: int
    per: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.m // self.per * (self.n // self.per)


class WarpTile(NamedTuple):
    """What a block makes on tensor cores, and how many stages of both operands it holds in shared memory."""

    m: int
    n: int
    stages: int

    @property
    def threads(self) -> int:
        """Threads of a block: a warp makes 32 columns of half of its rows."""
        return 2 * self.n

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return self.stages * (self.m + self.n) * ROW_BYTES


class Placed(NamedTuple):
    """An array of a product: its number in the call, and elements to where it begins, from row to row, group to group."""

    array: int
    start: int
    row: int = 0
    group: int = 0

    def address(self, field: str, dtype: str) -> Address:
        """Its first element's address for a struct's field."""
        return Address(field, self.array, self.start * DTYPES[dtype].itemsize)


class Types(NamedTuple):
    """What operands are stored as, what sums are formed in, what the result is stored as."""

    stored: str
    sums: str
    out: str


class Places(TypedDict, total=False):
    """Where a product's numbers are.

    Attributes
    ----------
    rows, columns : sequence of Digit
        Of k and of j.
    axes : sequence of Axis
        How the gathered array is read along each of its three axes.
    gathered_strides : sequence of int
        Of these axes.
    gathered, dense, result : Placed
    bias : Placed or None
    """

    rows: Required[Sequence[Digit]]
    columns: Required[Sequence[Digit]]
    axes: Required[Sequence[Axis]]
    gathered: Required[Placed]
    gathered_strides: Required[Sequence[int]]
    dense: Required[Placed]
    result: Required[Placed]
    bias: Placed | None


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


def warp_tile_for(shape: Shape, split: bool = False) -> WarpTile:
    """The tile of a product on tensor cores, chosen as :func:`tile_for` does.

    Three stages of the large one are 48 KiB: two blocks fit on a multiprocessor of 100 KiB (sm_86, 89, 120). Where
    operands are split a thread has twice as many sums and words: its large tile is half as high, as 128 rows spill up to
    32 bytes where 64 take 191 registers of 255.
    """
    blocks = tiles(shape.m, 128) * tiles(shape.n, 128) * shape.groups
    if shape.m > 64 and blocks >= BLOCKS // 2:
        return WarpTile(64, 128, 4) if split else WarpTile(128, 128, 3)
    return WarpTile(64, 64, 4)


def parts_for(shape: Shape, tile: Tile | WarpTile, sums: str, limit: int | None) -> int:
    """Into how many parts k is cut so that the blocks fill a card, as far as `limit` bytes hold their sums."""
    blocks = tiles(shape.m, tile.m) * tiles(shape.n, tile.n) * shape.groups
    wanted = min(tiles(BLOCKS, max(blocks, 1)), max(shape.k // LEAST_PART, 1))
    one = shape.groups * shape.m * shape.n * DTYPES[sums].itemsize
    if limit is not None:
        wanted = min(wanted, limit // max(one, 1))
    return wanted if wanted > 1 else 1


def product(
    shape: Shape,
    types: Types,
    *,
    tile: Tile,
    lanes: int,
    mode: str = "zeros",
    parts: int = 1,
    **places: Unpack[Places],
) -> Program:
    """The launches of one product: itself, and where k is cut the sum of its parts.

    Parameters
    ----------
    mode : str
        How the gathered array is padded.
    lanes : {0, 1}
        Whether neighbouring threads fetch neighbouring columns (0) or rows (1) of the gathered array.
    """
    defines = (
        ("TILE_M", tile.m),
        ("TILE_N", tile.n),
        ("PER", tile.per),
        ("PADDING", padding(mode)),
        ("LANES", lanes),
    )
    kernel = Kernel("implicit_gemm.cu", "implicit_gemm", defines)
    grid = tiles(shape.m, tile.m), tiles(shape.n, tile.n)
    return _launched(kernel, grid, tile.threads, TILE_K, shape, types, mode, parts, places)


def tensor_product(
    shape: Shape,
    types: Types,
    *,
    tile: WarpTile,
    lanes: int,
    whole: tuple[bool, bool],
    split: bool = False,
    mode: str = "zeros",
    parts: int = 1,
    **places: Unpack[Places],
) -> Program:
    """The same product on tensor cores.

    Parameters
    ----------
    whole : tuple of bool
        Whether 16 bytes of k are neighbours in memory, from a multiple of 16 bytes on: of the dense and of the gathered
        array.
    split : bool
        Whether each float32 number is the sum of two tf32 numbers, not rounded to one.
    """
    defines = (
        *((("SPLIT", 1),) if split else ()),
        ("TILE_M", tile.m),
        ("TILE_N", tile.n),
        ("STAGES", tile.stages),
        ("PADDING", padding(mode)),
        ("LANES", lanes),
        ("DENSE_WHOLE", int(whole[0])),
        ("GATHERED_WHOLE", int(whole[1])),
    )
    kernel = Kernel("implicit_gemm_mma.cu", "implicit_gemm_mma", defines)
    grid = tiles(shape.m, tile.m), tiles(shape.n, tile.n)
    step = ROW_BYTES // DTYPES[types.stored].itemsize
    return _launched(kernel, grid, tile.threads, step, shape, types, mode, parts, places, tile.shared)


def thin_product(
    shape: Shape, types: Types, *, mode: str = "zeros", parts: int = 1, **places: Unpack[Places]
) -> Program:
    """The same product where rows and columns are few and k is long; it knows no bias."""
    columns = min(shape.n, MOST_COLUMNS)
    kernel = Kernel("thin_product.cu", "thin_product", (("COLUMNS", columns), ("PADDING", padding(mode))))
    grid = shape.m, tiles(shape.n, columns)
    return _launched(kernel, grid, THIN_THREADS, 1, shape, types, mode, parts, places)


def _launched(
    kernel: Kernel,
    grid: tuple[int, int],
    threads: int,
    step: int,
    shape: Shape,
    types: Types,
    mode: str,
    parts: int,
    places: Places,
    shared: int = 0,
) -> Program:
    """The launches of a product by this kernel, whose blocks take `step` k at a time."""
    columns, result, bias = places["columns"], places["result"], places.get("bias")
    if not shape.m * shape.n * shape.groups:
        return Program(steps=())
    if not shape.k:
        return Program(steps=(total(shape, types, 0, columns, result, bias),))
    part = tiles(tiles(shape.k, parts), step) * step
    parts = tiles(shape.k, part)
    last: tuple[Launch, ...] = ()
    if parts > 1:
        last = (total(shape, types, parts, columns, result, bias),)
        flat = Placed(WORKSPACE, 0, row=shape.n, group=shape.m * shape.n)
        columns, result, bias, types = in_a_row(columns), flat, None, types._replace(out=types.sums)
    blocks = math.prod(grid) * shape.groups * parts
    check_counts(blocks=blocks)
    axes, strides = places["axes"], places["gathered_strides"]
    start = sum(axis.start * stride for axis, stride in zip(axes, strides, strict=True))
    gathered, dense = places["gathered"], places["dense"]
    names = ("IN", types.stored), ("SUM", types.sums), ("OUT", types.out)
    launch = Launch(
        kernel=kernel._replace(defines=(*names, *kernel.defines)),
        grid=blocks,
        block=threads,
        shared=shared,
        params=fill(
            GATHERED_PRODUCT,
            dense_row=dense.row,
            result_row=result.row,
            bias_row=bias.row if bias else 0,
            gathered_group=gathered.group,
            dense_group=dense.group,
            result_group=result.group,
            bias_group=bias.group if bias else 0,
            result_split=shape.groups * shape.m * shape.n,
            start=start if mode == "zeros" else 0,
            axis_stride=tuple(strides),
            origin=tuple(axis.start for axis in axes),
            size=tuple(axis.size for axis in axes),
            M=shape.m,
            N=shape.n,
            K=shape.k,
            part=part,
            tiles_m=divisor(grid[0]),
            tiles_n=divisor(grid[1]),
            parts=divisor(parts),
            row=[digit.row() for digit in places["rows"]],
            column=[digit.row() for digit in columns],
        ),
        addresses=(
            gathered.address("gathered", types.stored),
            dense.address("dense", types.stored),
            result.address("result", types.out),
            *([bias.address("bias", types.out)] if bias else []),
        ),
    )
    return Program(steps=(launch, *last), workspace=workspace_of(shape, parts, types.sums))


def total(
    shape: Shape,
    types: Types,
    parts: int,
    columns: Sequence[Digit],
    result: Placed,
    bias: Placed | None,
    part: str = "",
) -> Launch:
    """The sum of so many parts of a product, which lie in the workspace; of none, the bias alone.

    Parts are of the type that is summed in, unless `part` names another.
    """
    count = shape.groups * shape.m * shape.n
    check_counts(blocks=tiles(count, TOTAL_THREADS))
    stored = (("PART", part),) * (part not in ("", types.sums))
    return Launch(
        kernel=Kernel("sum_parts.cu", "sum_parts", (*stored, ("SUM", types.sums), ("OUT", types.out))),
        grid=tiles(count, TOTAL_THREADS),
        block=TOTAL_THREADS,
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
        addresses=(
            *([Address("parts", WORKSPACE)] if parts else []),
            result.address("result", types.out),
            *([bias.address("bias", types.out)] if bias else []),
        ),
    )


def in_a_row(digits: Sequence[Digit]) -> list[Digit]:
    """The same digits, the numbers they make lying side by side."""
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


def workspace_of(shape: Shape, parts: int, sums: str) -> int:
    """Bytes of the sums of the parts of k."""
    return 0 if parts == 1 else parts * shape.groups * shape.m * shape.n * DTYPES[sums].itemsize


def note(shape: Shape, tile: Tile, parts: int) -> str:
    """What was decided, for people."""
    return _note(shape, tile, parts, f"{tile.per}x{tile.per} a thread")


def tensor_note(shape: Shape, tile: WarpTile, parts: int) -> str:
    """What was decided on tensor cores, for people."""
    return _note(shape, tile, parts, f"{tile.stages} stages")


def _note(shape: Shape, tile: Tile | WarpTile, parts: int, made: str) -> str:
    blocks = tiles(shape.m, tile.m) * tiles(shape.n, tile.n) * shape.groups * parts
    cut = f", k in {parts} parts" if parts > 1 else ""
    return f"{blocks} blocks of {tile.m}x{tile.n}, {made}{cut}"
