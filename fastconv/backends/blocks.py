"""Cutting a convolution into blocks of images and output positions, and the input each block reads.

``slab`` is that part of the padded input, ``windows`` its view as one window per output position (the
column matrix, before it is copied), and ``add_slab`` the adjoint: it adds a slab's values back to where the
input elements came from. A thread's scratch is what one block costs, whatever the size of the problem.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends import Unsupported
from fastconv.spec import DTYPES, ConvSpec, Op, Sizes, source

# More threads than this gain nothing: blocks become memory-bound.
MOST_THREADS = 64

# NumPy walks strided operands through a buffer of this many elements for each operand it must gather.
BUFFERED = np.getbufsize()

Array = Any
Window = tuple[slice, ...]


class Block(NamedTuple):
    """How many images, and how many output positions along each axis, are taken at a time."""

    images: int
    sizes: Sizes

    @property
    def positions(self) -> int:
        """Output positions of all its images together: the columns' count."""
        return self.images * math.prod(self.sizes)

    def halves(self) -> Iterator[Block]:
        """Itself, then ever smaller ones: fewer images first, then fewer rows, columns last."""
        images, sizes = self
        yield self
        while images > 1:
            images = -(-images // 2)
            yield Block(images, sizes)
        for axis in range(len(sizes)):
            while sizes[axis] > 1:
                sizes = (*sizes[:axis], -(-sizes[axis] // 2), *sizes[axis + 1 :])
                yield Block(images, sizes)


def choose(spec: ConvSpec, cost: Callable[[Block], int], target: int, limit: int | None) -> Block:
    """The largest block whose scratch stays under `target` bytes, and in any case under `limit`.

    Raises
    ------
    Unsupported
        If one position alone costs more than `limit`.
    """
    whole = Block(max(spec.batch, 1), spec.out_size)
    budget = target if limit is None else min(target, limit)
    for block in whole.halves():
        if cost(block) <= budget:
            break
    need = cost(block)
    if limit is not None and need > limit:
        raise Unsupported(f"needs {need} bytes of scratch for one output position", workspace=need)
    # Even shares: 100 rows in blocks of at most 64 are two of 50.
    even = tuple(-(-n // -(-n // size)) for n, size in zip(spec.out_size, block.sizes, strict=True))
    return Block(block.images, even)


class Part(NamedTuple):
    """One block of a problem: which images, which output positions."""

    images: slice
    window: Window


def count(spec: ConvSpec, block: Block) -> int:
    """How many blocks the whole problem has."""
    along = (-(-n // size) for n, size in zip(spec.out_size, block.sizes, strict=True))
    return -(-spec.batch // block.images) * math.prod(along)


def parts(spec: ConvSpec, block: Block) -> Iterator[Part]:
    """The whole problem in blocks, in C order, made one by one: a tight limit can ask for a million of them."""
    for start in range(0, spec.batch, block.images):
        images = slice(start, min(start + block.images, spec.batch))
        steps = [range(0, n, size) for n, size in zip(spec.out_size, block.sizes, strict=True)]
        for corner in itertools.product(*steps):
            ends = (min(o + size, n) for o, size, n in zip(corner, block.sizes, spec.out_size, strict=True))
            yield Part(images, tuple(map(slice, corner, ends)))


def at_once(spec: ConvSpec, block: Block, cost: int, limit: int | None) -> int:
    """How many threads may work side by side, each holding `cost` bytes, under `limit`."""
    room = MOST_THREADS if limit is None else limit // max(cost, 1)
    return max(min(count(spec, block), room, MOST_THREADS), 1)


def _region(spec: ConvSpec, window: Window) -> list[tuple[int, int]]:
    """The positions [low, high) of the padded input that a block of output positions reads."""
    return [
        (o.start * s - before, (o.stop - 1) * s - before + extent)
        for o, s, (before, _), extent in zip(
            window, spec.stride, spec.padding, spec.kernel_extent, strict=True
        )
    ]


def _segments(low: int, high: int, size: int, mode: str) -> list[tuple[slice, slice]]:
    """Which part of a slab's axis comes from which part of the input's: (slab, input) pairs."""
    inside = (max(low, 0), min(high, size))
    pairs = [(slice(inside[0] - low, inside[1] - low), slice(*inside))] if inside[0] < inside[1] else []
    if mode != "zeros":
        for i in itertools.chain(range(low, min(0, high)), range(max(size, low), high)):
            at = source(i, size, mode)
            assert at is not None
            pairs.append((slice(i - low, i - low + 1), slice(at, at + 1)))
    return pairs


def _parts(spec: ConvSpec, window: Window) -> Iterator[tuple[Any, Any]]:
    """Index pairs (into a slab, into the input) that together cover a block's real elements."""
    axes = [
        _segments(low, high, size, spec.padding_mode)
        for (low, high), size in zip(_region(spec, window), spec.in_size, strict=True)
    ]
    for pairs in itertools.product(*axes):
        yield (..., *(pair[0] for pair in pairs)), (..., *(pair[1] for pair in pairs))


def inside(spec: ConvSpec, window: Window) -> tuple[slice, ...] | None:
    """The region a block reads as an index into the input, or None if it reaches into the padding."""
    region = _region(spec, window)
    if all(low >= 0 and high <= size for (low, high), size in zip(region, spec.in_size, strict=True)):
        return tuple(slice(low, high) for low, high in region)
    return None


def slab_size(spec: ConvSpec, block: Block) -> int:
    """Elements of a padded block's slab; 0 if no block reaches into the padding."""
    unpadded = all(before <= 0 and after <= 0 for before, after in spec.padding)
    return 0 if unpadded else region_size(spec, block)


def region_size(spec: ConvSpec, block: Block) -> int:
    """Elements of the padded input that a block reads."""
    lengths = [
        (o - 1) * s + extent
        for o, s, extent in zip(block.sizes, spec.stride, spec.kernel_extent, strict=True)
    ]
    return block.images * spec.in_channels * math.prod(lengths)


def slab(spec: ConvSpec, x: Array, window: Window, scratch: Scratch) -> Array:
    """The padded input a block reads, (images, C, *lengths): a view where no padding is involved."""
    if (index := inside(spec, window)) is not None:
        return x[(..., *index)]
    values = empty_slab(spec, x.shape[:2], window, x.dtype, scratch)
    for to, at in _parts(spec, window):
        values[to] = x[at]
    return values


def empty_slab(
    spec: ConvSpec, leading: tuple[int, ...], window: Window, dtype: Any, scratch: Scratch
) -> Array:
    """A slab of zeros for a block of output positions."""
    lengths = [high - low for low, high in _region(spec, window)]
    values = scratch.take((*leading, *lengths), dtype)
    values[...] = 0
    return values


def add_slab(spec: ConvSpec, values: Array, window: Window, x: Array) -> None:
    """Add a slab's values to the input elements they stand for; those of zero padding vanish."""
    for to, at in _parts(spec, window):
        x[at] += values[to]


def windows(spec: ConvSpec, values: Array, window: Window) -> Array:
    """A slab seen as (images, C, *kernel, *block): element [n, c, *k, *q] is what tap k of window q reads."""
    n, c, *strides = values.strides
    taps = [d * step for d, step in zip(spec.dilation, strides, strict=True)]
    steps = [s * step for s, step in zip(spec.stride, strides, strict=True)]
    block = [o.stop - o.start for o in window]
    shape = (*values.shape[:2], *spec.kernel_size, *block)
    return np.lib.stride_tricks.as_strided(values, shape, (n, c, *taps, *steps))


class Scratch:
    """One thread's memory for all its blocks, handed out piece by piece and taken back after each block.

    It is allocated at once, before any thread starts, so that a plan's peak does not depend on who runs when.
    """

    ALIGN = 64  # bytes of a cache line and of the widest vector
    PIECES = 4  # no kernel takes more, so this much alignment is lost at most

    def __init__(self, nbytes: int) -> None:
        self._memory = np.empty(nbytes + self.PIECES * self.ALIGN, np.uint8)
        self.reset()

    def reset(self) -> None:
        """Take every piece back."""
        self._used = -self._memory.ctypes.data % self.ALIGN

    def take(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An uninitialised array, valid until the next block."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        piece = self._memory[self._used : self._used + nbytes]
        assert piece.nbytes == nbytes, "a plan predicted less scratch than its kernel takes"
        self._used += nbytes + -nbytes % self.ALIGN
        return piece.view(dtype).reshape(shape)


# The reference machine, for estimates only: float32 GEMM, copying into columns, and the calls of one block.
# Fitted on 15 problems from 3x3 on a photograph to 1001 taps in 1-D: the choice between im2col and fft is
# right, or costs at most 1.4x.
GEMM_FLOPS = 1.5e11
COPY_BYTES = 1.4e10
BLOCK_SECONDS = 2.5e-5


class Gemm:
    """The matrix product one convolution is: its sizes for each group, and its types."""

    def __init__(self, spec: ConvSpec) -> None:
        row = DTYPES[spec.dtype]
        self.taps = math.prod(spec.kernel_size)
        self.g = spec.groups
        self.c, self.o = spec.in_channels // self.g, spec.out_channels // self.g
        self.k = self.c * self.taps
        self.dtype = row.accumulate
        self.itemsize = DTYPES[row.accumulate].itemsize
        self.stored = row.itemsize
        # Whether operands, or the result, are already of the type BLAS works in.
        self.same_in, self.same_out = spec.dtype == self.dtype, spec.out_dtype == self.dtype
        self.packed = 0 if self.same_in else math.prod(spec.weight_shape) * self.itemsize

    def columns(self, block: Block) -> int:
        """Bytes of one block's columns."""
        return self.g * self.k * block.positions * self.itemsize

    def pixels(self, spec: ConvSpec, block: Block) -> int:
        """Bytes of one block of the output, in the accumulation type."""
        return spec.out_channels * block.positions * self.itemsize

    def seconds(self, spec: ConvSpec, op: Op, block: Block, copies: int) -> float:
        """Estimate: arithmetic at BLAS's rate, `copies` bytes into or out of columns, calls for each block."""
        rate = GEMM_FLOPS if self.dtype == "float32" else GEMM_FLOPS / 2 if self.dtype == "float64" else 1e9
        overhead = count(spec, block) * BLOCK_SECONDS
        return spec.flops(op) / rate + copies / COPY_BYTES + overhead


def pack(s: Gemm, weight: Array) -> Array:
    """The weight as (groups, O, K) in the accumulation type, a view where it already is."""
    return np.ascontiguousarray(weight.reshape(s.g, s.o, s.k), dtype=s.dtype)
