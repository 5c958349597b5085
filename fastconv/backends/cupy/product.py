"""The product behind a convolution and both of its gradients (``kernels/implicit_gemm.cu``): struct, tiles, launches.

    result[m, j] = bias[m] + sum_k dense[m, k] * gathered[place(k) + place(j)]        for every group

A forward convolution, each phase of an input gradient and a weight gradient differ in what m, k and j count and in which
array is dense. :func:`product` takes k and j as lists of digits; :func:`taps_of` and :func:`pixels_of` make them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Required, TypeAlias, TypedDict

import numpy as np

from fastconv.backends.cupy.geometry import (
    AXES,
    COUNT,
    DIGIT,
    DIGITS,
    DIVISOR,
    MASKED,
    Axis,
    Digit,
    check_counts,
    divisor,
    fill,
    padding,
    tiles,
)
from fastconv.backends.cupy.launch import WORKSPACE, Address, Kernel, Launch, Program
from fastconv.backends.cupy.pooling import BANDWIDTH
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
        *((name, "i4", AXES) for name in ("size", "taps", "tap")),
        ("bit", "u4", AXES),
        *((name, "i4") for name in ("M", "N", "K", "part", "vector")),
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
        *((name, DIVISOR) for name in ("rows", "columns")),
        ("column", DIGIT, DIGITS),
    ],
    align=True,
)

TILE_K = 8

# On tensor cores: what one copy brings, and what a stage of shared memory holds of one row of an operand, of warps' tiles
# and of warpgroups'.
VECTOR_BYTES = 16
ROW_BYTES = 64
WARPGROUP_ROW_BYTES = 128

# What choices are made for: an H200's multiprocessors, the warps of one below which it waits for memory, and bytes of
# shared memory all of its blocks have together.
PROCESSORS = 132
BUSY_WARPS = 16
MULTIPROCESSOR_SHARED = 227 * 1024

# Blocks that keep it busy: two on each multiprocessor.
BLOCKS = 2 * PROCESSORS

# Into how many parts k may be cut, none so short that storing and adding its sums costs more than it saves. The weight
# gradient of a first layer has two tiles and a sum of a million products.
PARTS = (*range(1, 17), 20, 24, 32, 40, 48, 64, 80, 96, 128)
LEAST_PART = 128

# Kernels of more elements along their axes together have no bit for each.
MOST_BITS = 31

# Columns one block of a thin product takes: the sums of a 3x3 kernel, one column a register.
MOST_COLUMNS = 9
THIN_THREADS = 256

# Threads of a block that adds parts up, one an element.
TOTAL_THREADS = 256


class Tile(NamedTuple):
    """What a block makes, and what one of its threads makes of that.

    Attributes
    ----------
    m, n, per : int
    speed : float
        Multiplications a second of one busy multiprocessor, measured on an H200.
    """

    m: int
    n: int
    per: int
    speed: float

    @property
    def ends(self) -> int:
        """What fetching the first and storing the last costs, as so many k."""
        return 32

    @property
    def busy(self) -> int:
        """The warps of a multiprocessor below which it waits for memory."""
        return BUSY_WARPS

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.m // self.per * (self.n // self.per)

    @property
    def resident(self) -> int:
        """Blocks on a multiprocessor: 128 registers a thread, of the smallest tile 160."""
        return min(512 // self.threads, 6)

    def __str__(self) -> str:
        return f"{self.m}x{self.n}, {self.per}x{self.per} a thread"


class WarpTile(NamedTuple):
    """What a block makes on tensor cores, and how many stages of both operands it holds in shared memory."""

    m: int
    n: int
    stages: int
    speed: float

    @property
    def ends(self) -> int:
        """As of :class:`Tile`."""
        return 128

    @property
    def busy(self) -> int:
        """As of :class:`Tile`."""
        return BUSY_WARPS

    @property
    def threads(self) -> int:
        """Threads of a block: a warp makes 32 columns of half of its rows."""
        return 2 * self.n

    @property
    def resident(self) -> int:
        """Blocks on a multiprocessor."""
        return 512 // self.threads

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return self.stages * (self.m + self.n) * ROW_BYTES

    def __str__(self) -> str:
        return f"{self.m}x{self.n}, {self.stages} stages"


class WarpgroupTile(NamedTuple):
    """What a block makes by the instructions of compute capability 9.0, every four warps 64 of its rows."""

    m: int
    n: int
    stages: int
    speed: float
    ends: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 2 * self.m

    @property
    def resident(self) -> int:
        """Blocks on a multiprocessor, by its shared memory; 2 KiB are what a block declares and what is kept beside."""
        return MULTIPROCESSOR_SHARED // (self.shared + 2048)

    @property
    def busy(self) -> int:
        """As of :class:`Tile`: as many as there may be."""
        return self.resident * self.threads // 32

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return self.stages * (self.m + self.n) * WARPGROUP_ROW_BYTES

    def __str__(self) -> str:
        return f"{self.m}x{self.n}, {self.stages} stages of warpgroups"


AnyTile: TypeAlias = Tile | WarpTile | WarpgroupTile


class Placed(NamedTuple):
    """An array of a product: its number in the call, and elements to where it begins, from row to row, group to group.

    `aligned` says that element 0 begins a line of 16 bytes.
    """

    array: int
    start: int
    row: int = 0
    group: int = 0
    aligned: bool = False

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


class Choice(NamedTuple):
    """How a product is made: the tile, into how many parts k is cut, and the seconds that is estimated to take."""

    tile: AnyTile
    parts: int
    seconds: float

    def workspace(self, shape: Shape, sums: str) -> int:
        """Bytes of the sums of the parts of k."""
        return workspace_of(shape, self.parts, sums)

    def along(self, shape: Shape) -> float:
        """Seconds of these that it goes along k, without what fetching the first and storing the last costs."""
        k = tiles(shape.k, self.parts)
        return self.seconds * k / (k + self.tile.ends)

    def note(self, shape: Shape) -> str:
        """What was decided, for people."""
        blocks = tiles(shape.m, self.tile.m) * tiles(shape.n, self.tile.n) * shape.groups * self.parts
        return f"{blocks} blocks of {self.tile}" + (f", k in {self.parts} parts" if self.parts > 1 else "")


def tiles_of(sums: str) -> tuple[Tile, ...]:
    """The tiles of a product on CUDA cores.

    A thread's 64 float32 sums live in registers; 64-bit sums are 16, for 64 would take 128 of its 255 registers. Each
    step a tile of 128 x 128 reads 1/64 of an element for a multiplication and one of 64 x 64 twice that.
    """
    if DTYPES[sums].itemsize == 8:
        return (Tile(64, 64, 4, 0.7e11),)
    return Tile(128, 128, 8, 1.25e11), Tile(128, 64, 8, 1.13e11), Tile(64, 64, 8, 1.2e11)


def warp_tiles_of(stored: str, split: bool = False) -> tuple[WarpTile, ...]:
    """The tiles of a product on tensor cores.

    Three stages of the large one are 48 KiB: two blocks fit on a multiprocessor of 100 KiB (sm_86, 89, 120). Where
    operands are split a thread has twice as many sums and words: its large tile is half as high, as 128 rows spill up to
    32 bytes where 64 take 191 registers of 255.
    """
    if split:
        return WarpTile(64, 128, 4, 1.27e11), WarpTile(64, 64, 4, 1.37e11)
    speed = 1.16e12 if DTYPES[stored].itemsize == 2 else 0.6e12
    return WarpTile(128, 128, 3, speed), WarpTile(128, 64, 4, 0.94 * speed), WarpTile(64, 64, 4, 0.71 * speed)


def warpgroup_tiles() -> tuple[WarpgroupTile, ...]:
    """The tiles of a product of 16-bit numbers on compute capability 9.0.

    A fourth stage of 128 x 128 leaves one block on a multiprocessor, which is faster where there is one for each anyway:
    23.7 us where three stages take 29.2 (256 channels of 14 x 14). Speeds are a multiprocessor's while it is full.
    """
    return (
        WarpgroupTile(256, 128, 4, 2.9e12, 400),
        WarpgroupTile(128, 128, 3, 2.5e12, 400),
        WarpgroupTile(128, 128, 4, 2.4e12, 500),
        WarpgroupTile(64, 128, 3, 1.9e12, 300),
    )


def choose(
    shape: Shape,
    among: Sequence[AnyTile],
    sums: str,
    limit: int | None,
    counts: Sequence[int] = PARTS,
) -> Choice:
    """The tile and the parts of k that are estimated to take least; `limit` bytes hold the parts' sums."""
    one = workspace_of(shape, 2, sums) // 2
    found = []
    for tile in among:
        for parts in counts:
            if parts > 1 and (shape.k // parts < LEAST_PART or (limit is not None and parts * one > limit)):
                break
            traffic = (2 * parts + 1) * one / BANDWIDTH if parts > 1 else 0
            found.append(Choice(tile, parts, _seconds(shape, tile, parts) + traffic))
    return min(found, key=lambda choice: choice.seconds)


def _seconds(shape: Shape, tile: AnyTile, parts: int) -> float:
    """The busiest multiprocessor's time: whole tiles, and slower where too few warps hide each other's waiting."""
    blocks = tiles(shape.m, tile.m) * tiles(shape.n, tile.n) * shape.groups * parts
    busiest = max(tiles(blocks, PROCESSORS), 1)
    warps = min(busiest, tile.resident) * tile.threads // 32
    slower = math.sqrt(max(tile.busy / warps, 1))
    return busiest * tile.m * tile.n * (tiles(shape.k, parts) + tile.ends) * slower / tile.speed


def product(
    shape: Shape,
    types: Types,
    choice: Choice,
    *,
    lanes: int,
    mode: str = "zeros",
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
    tile = choice.tile
    assert isinstance(tile, Tile)
    defines = (("TILE_M", tile.m), ("TILE_N", tile.n), ("PER", tile.per), ("LANES", lanes))
    kernel = Kernel("implicit_gemm.cu", "implicit_gemm", defines)
    grid = tiles(shape.m, tile.m), tiles(shape.n, tile.n)
    return _launched(kernel, grid, tile.threads, TILE_K, shape, types, mode, choice.parts, places)


def tensor_product(
    shape: Shape,
    types: Types,
    choice: Choice,
    *,
    lanes: int,
    whole: tuple[bool, bool],
    split: bool = False,
    mode: str = "zeros",
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
    tile = choice.tile
    assert isinstance(tile, WarpTile)
    defines = (
        *((("SPLIT", 1),) if split else ()),
        ("TILE_M", tile.m),
        ("TILE_N", tile.n),
        ("STAGES", tile.stages),
        ("LANES", lanes),
        ("DENSE_WHOLE", int(whole[0])),
        ("GATHERED_WHOLE", int(whole[1])),
    )
    kernel = Kernel("implicit_gemm_mma.cu", "implicit_gemm_mma", defines)
    grid = tiles(shape.m, tile.m), tiles(shape.n, tile.n)
    step = ROW_BYTES // DTYPES[types.stored].itemsize
    return _launched(kernel, grid, tile.threads, step, shape, types, mode, choice.parts, places, tile.shared)


def warpgroup_product(
    shape: Shape, types: Types, choice: Choice, *, mode: str = "zeros", **places: Unpack[Places]
) -> Program:
    """The same on compute capability 9.0, of 16-bit numbers, where :func:`tensor_product` had `whole` vectors of both."""
    tile = choice.tile
    assert isinstance(tile, WarpgroupTile)
    defines = (("TILE_M", tile.m), ("TILE_N", tile.n), ("STAGES", tile.stages))
    kernel = Kernel("implicit_gemm_wgmma.cu", "implicit_gemm_wgmma", defines)
    grid = tiles(shape.m, tile.m), tiles(shape.n, tile.n)
    step = WARPGROUP_ROW_BYTES // DTYPES[types.stored].itemsize
    return _launched(kernel, grid, tile.threads, step, shape, types, mode, choice.parts, places, tile.shared)


def thin_product(
    shape: Shape, types: Types, *, mode: str = "zeros", parts: int = 1, **places: Unpack[Places]
) -> Program:
    """The same product where rows and columns are few and k is long; it knows no bias."""
    columns = min(shape.n, MOST_COLUMNS)
    kernel = Kernel("thin_product.cu", "thin_product", (("COLUMNS", columns),))
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
        flat = Placed(WORKSPACE, 0, row=shape.n, group=shape.m * shape.n, aligned=True)
        columns, result, bias, types = in_a_row(columns), flat, None, types._replace(out=types.sums)
    blocks = math.prod(grid) * shape.groups * parts
    check_counts(blocks=blocks)
    axes, strides = places["axes"], places["gathered_strides"]
    start = sum(axis.start * stride for axis, stride in zip(axes, strides, strict=True))
    gathered, dense, result_split = places["gathered"], places["dense"], shape.groups * shape.m * shape.n
    masked = mode == "zeros" and in_bits(axis.taps for axis in axes) and _near(places["rows"])
    names = (
        ("IN", types.stored),
        ("SUM", types.sums),
        ("OUT", types.out),
        ("PADDING", MASKED if masked else padding(mode)),
        ("TAPS", int(any(digit.bit for digit in places["rows"]))),
    )
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
            result_split=result_split,
            start=start if mode == "zeros" else 0,
            axis_stride=tuple(strides),
            origin=tuple(axis.start for axis in axes),
            size=tuple(axis.size for axis in axes),
            taps=tuple(axis.taps for axis in axes),
            tap=tuple(axis.tap for axis in axes),
            bit=_bits(axes),
            M=shape.m,
            N=shape.n,
            K=shape.k,
            part=part,
            vector=vector_of(columns, result, types.out, result_split),
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
            rows=divisor(shape.m),
            columns=divisor(shape.n),
            column=[digit.row() for digit in columns],
        ),
        addresses=(
            *([Address("parts", WORKSPACE)] if parts else []),
            result.address("result", types.out),
            *([bias.address("bias", types.out)] if bias else []),
        ),
    )


def in_bits(taps: Iterable[int]) -> bool:
    """Whether each element along each of a kernel's axes has a bit."""
    return sum(taps) <= MOST_BITS


def _near(rows: Sequence[Digit]) -> bool:
    """Whether 32 bits hold every distance of a row."""
    spans = ((digit.radix - 1) * max(abs(digit.gathered), abs(digit.other)) for digit in rows)
    return sum(spans) <= COUNT


def _bits(axes: Sequence[Axis]) -> list[int]:
    """The bit of each axis's first kernel element; those of one axis lie side by side."""
    before = [sum(axis.taps for axis in axes[:at]) for at in range(len(axes))]
    return [1 << min(bit, MOST_BITS) for bit in before]


def vector_of(columns: Sequence[Digit], result: Placed, dtype: str, split: int = 0) -> int:
    """How many columns of an array, from a multiple of it, are read or written as 16 or 8 bytes at once."""
    outer = [digit for digit in columns if digit.radix > 1]
    in_a_row = 1
    while outer and outer[0].other == in_a_row:
        in_a_row *= outer.pop(0).radix
    steps = in_a_row, result.row, result.group, result.start, split, *(digit.other for digit in outer)
    for nbytes in (16, 8):
        vector = nbytes // DTYPES[dtype].itemsize
        if result.aligned and vector and not any(step % vector for step in steps):
            return vector
    return 1


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
        Digit(
            axis.taps, _along(at, axis.tap), axis.tap * gathered[1 + at] if linear else 0, other[1 + at], bit
        )
        for at, (axis, bit) in reversed(list(enumerate(zip(axes, _bits(axes), strict=True))))
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
