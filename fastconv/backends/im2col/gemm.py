"""Convolution as a matrix product over unfolded windows (Chellapilla et al., 2006), BLAS doing the arithmetic.

With ``K = C/groups * prod(kernel)`` and P output positions, a block is

    output (O x P)  =  weight (O x K)  @  columns (K x P)
    columns (K x P) =  weight^T (K x O)  @  grad_output (O x P), then summed back (col2im)
    grad_weight (O x K)  +=  grad_output (O x P)  @  columns^T (P x K)

for each group. Columns are made block by block, so scratch is bounded by the block and not by the image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np

from fastconv.backends import Run, Unsupported, algorithm
from fastconv.backends.im2col import blocks
from fastconv.backends.im2col.blocks import Block, Window
from fastconv.settings import get_num_threads, threads_were_set
from fastconv.spec import DTYPES, ConvSpec, Op

Array = Any

# Columns of one block. From 1 MB to 8 MB VGG16's conv1_2 gains 1.4x, because BLAS gets more columns at a time;
# at 256 MB, the whole matrix, it has lost that again to memory traffic (benchmarks/test_blocks.py).
TARGET_BYTES = 8 << 20

# The reference machine, for estimates only: float32 GEMM, copying into columns, and one NumPy call. Fitted on
# 15 problems from 3x3 on a photograph to 1001 taps in 1-D: the choice between im2col and fft is right, or
# costs at most 1.3x.
GEMM_FLOPS = 1.5e11
COPY_BYTES = 1.4e10
CALL_SECONDS = 3e-6

# What OpenBLAS, as NumPy ships it, allocates for every product it spreads over threads: a job table for 64
# threads. Products of up to 2**18 multiplications run in one thread and allocate nothing.
BLAS_BYTES = 512 << 10
BLAS_SINGLE = 1 << 18


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def _limited() -> Iterator[None]:
    with _controller().limit(limits=get_num_threads(), user_api="blas"):
        yield


def blas_threads() -> Any:
    """A context in which BLAS uses as many threads as were set; nothing is touched if none were."""
    return _limited() if threads_were_set() else nullcontext()


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

    def columns(self, block: Block) -> int:
        """Bytes of one block's columns."""
        return self.g * self.k * block.positions * self.itemsize

    def pixels(self, spec: ConvSpec, block: Block) -> int:
        """Bytes of one block of the output, in the accumulation type."""
        return spec.out_channels * block.positions * self.itemsize

    def product(self, block: Block) -> int:
        """Bytes BLAS allocates for itself to multiply one block."""
        threaded = self.dtype in ("float32", "float64") and self.o * self.k * block.positions > BLAS_SINGLE
        return BLAS_BYTES if threaded else 0

    def seconds(self, spec: ConvSpec, op: Op, block: Block, copies: int) -> float:
        """Estimate: arithmetic at BLAS's rate, `copies` bytes into or out of columns, calls for each block."""
        count = math.prod(-(-n // size) for n, size in zip(spec.out_size, block.sizes, strict=True))
        count *= -(-spec.batch // block.images)
        rate = GEMM_FLOPS if self.dtype == "float32" else GEMM_FLOPS / 2 if self.dtype == "float64" else 1e9
        return spec.flops(op) / rate + copies / COPY_BYTES + count * 8 * CALL_SECONDS


def _is_flat(spec: ConvSpec, block: Block) -> bool:
    """Whether a block's positions lie in a row in the output, so that it can be read and written in place."""
    cut = [axis for axis, size in enumerate(block.sizes) if size < spec.out_size[axis]]
    return not cut or all(size == 1 for size in block.sizes[: cut[-1]])


def fill_columns(spec: ConvSpec, s: Gemm, x: Array, window: Window) -> Array:
    """The columns of one block, (groups, K, images * positions)."""
    view = blocks.windows(spec, blocks.slab(spec, x, window), window)
    n, rank = view.shape[0], spec.rank
    columns = np.empty((s.g, s.k, n * math.prod(view.shape[2 + rank :])), s.dtype)
    # (images, C, kernel, block) -> (C, kernel, images, block); casts to the accumulation type on the way.
    target = columns.reshape(spec.in_channels, *spec.kernel_size, n, *view.shape[2 + rank :])
    np.copyto(target, np.moveaxis(view, 0, 1 + rank))
    return columns


def pixels_of(s: Gemm, dy: Array, window: Window) -> Array:
    """One block of an output-shaped array as (groups, O, images * positions), copied only if it must be."""
    part = dy[(..., *window)]
    if part.shape[0] == 1 and part.dtype.name == s.dtype and part.strides[-1] == part.itemsize:
        return part.reshape(s.g, s.o, -1)
    copy = np.empty((part.shape[1], part.shape[0], *part.shape[2:]), s.dtype)
    np.copyto(copy, part.swapaxes(0, 1))
    return copy.reshape(s.g, s.o, -1)


def pack(s: Gemm, weight: Array) -> Array:
    """The weight as (groups, O, K) in the accumulation type, a view where it already is."""
    return np.ascontiguousarray(weight.reshape(s.g, s.o, s.k), dtype=s.dtype)


def _packed_bytes(spec: ConvSpec, s: Gemm) -> int:
    return 0 if s.same_in else math.prod(spec.weight_shape) * s.itemsize


def _note(spec: ConvSpec, block: Block) -> str:
    if block.images >= spec.batch and block.sizes == spec.out_size:
        return "all columns at once"
    shape = "x".join(map(str, block.sizes))
    return f"columns of {block.images} image{'s' * (block.images > 1)} x {shape} positions at a time"


def im2col(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Unfold, multiply, for any forward convolution."""
    s = Gemm(spec)

    def staged(block: Block) -> bool:
        return not s.same_out or block.images > 1 or not _is_flat(spec, block)

    def cost(block: Block) -> int:
        stage = (s.pixels(spec, block) if staged(block) else 0) + s.product(block)
        return (
            s.columns(block) + max(blocks.slab_size(spec, block) * s.stored, stage) + _packed_bytes(spec, s)
        )

    block = blocks.choose(spec, cost, TARGET_BYTES, workspace_limit)

    def call(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
        offset = None if bias is None else bias.reshape(s.g, s.o, 1).astype(s.dtype)
        with blas_threads():
            for some in blocks.images(spec, block):
                for window in blocks.output_windows(spec, block):
                    columns = fill_columns(spec, s, x[some], window)
                    part = y[some][(..., *window)]
                    if staged(block):
                        result = weight @ columns
                        if offset is not None:
                            result += offset
                        n = part.shape[0]
                        result = result.reshape(spec.out_channels, n, *part.shape[2:])
                        np.copyto(part, np.moveaxis(result, 1, 0), casting="unsafe")
                    else:
                        result = part.reshape(s.g, s.o, -1)  # a view: see _is_flat
                        np.matmul(weight, columns, out=result)
                        if offset is not None:
                            result += offset
                    del columns, result

    return Run(
        call=call,
        seconds=s.seconds(spec, Op.CONV, block, spec.columns_nbytes),
        workspace=cost(block),
        note=_note(spec, block),
        pack=lambda weight: pack(s, weight),
        packing="matrix",
    )


def pointwise(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """A 1x1 convolution is a matrix product as it stands: nothing is copied."""
    s = Gemm(spec)
    if s.taps > 1:
        raise Unsupported(f"the kernel is {'x'.join(map(str, spec.kernel_size))}, needs 1 in every axis")
    if set(spec.stride) != {1} or any(pads != (0, 0) for pads in spec.padding):
        raise Unsupported("stride or padding moves the pixels, needs stride 1 and padding 0")
    if not (s.same_in and s.same_out):
        raise Unsupported(f"{spec.dtype} is summed in {s.dtype}, needs a type that is summed as it is stored")
    general = im2col(spec, precision, workspace_limit)
    positions = math.prod(spec.out_size)

    def call(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
        if not x.flags.c_contiguous:  # BLAS cannot read it; copy it in bounded blocks
            general.call(x, weight, bias, y)
            return
        result = y.reshape(spec.batch, s.g, s.o, positions)
        with blas_threads():
            np.matmul(weight, x.reshape(spec.batch, s.g, s.c, positions), out=result)
        if bias is not None:
            result += bias.reshape(s.g, s.o, 1)

    return Run(
        call=call,
        seconds=s.seconds(spec, Op.CONV, Block(1, spec.out_size), 0),
        workspace=s.product(Block(1, spec.out_size)),
        note="one matrix product, no columns",
        pack=general.pack,
        packing=general.packing,
    )


@algorithm("col2im")
def input_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Multiply by the transposed weight, then sum the columns back into the image (col2im)."""
    s = Gemm(spec)

    def cost(block: Block) -> int:
        copied = not s.same_in or block.images > 1 or not _is_flat(spec, block)
        grads = s.pixels(spec, block) if copied else 0
        total = 0 if s.same_out else block.images * spec.in_channels * math.prod(spec.in_size) * s.itemsize
        slab = blocks.slab_size(spec, block) * s.itemsize
        return s.columns(block) + max(grads + s.product(block), slab) + total + _packed_bytes(spec, s)

    block = blocks.choose(spec, cost, TARGET_BYTES, workspace_limit)

    def call(dy: Array, weight: Array, bias: Array | None, dx: Array) -> None:
        transposed = weight.swapaxes(1, 2)
        offset = None if bias is None else bias.reshape(-1, *(1,) * spec.rank).astype(s.dtype)
        with blas_threads():
            for some in blocks.images(spec, block):
                total = dx[some] if s.same_out else np.empty(dx[some].shape, s.dtype)
                total[...] = 0 if offset is None else offset
                for window in blocks.output_windows(spec, block):
                    columns = transposed @ pixels_of(s, dy[some], window)
                    add_columns(spec, columns, window, total)
                    del columns
                if not s.same_out:
                    np.copyto(dx[some], total, casting="unsafe")

    return Run(
        call=call,
        seconds=s.seconds(spec, Op.CONV_INPUT_GRAD, block, 2 * spec.columns_nbytes),
        workspace=cost(block),
        note=_note(spec, block),
        pack=lambda weight: pack(s, weight),
        packing="matrix",
    )


def add_columns(spec: ConvSpec, columns: Array, window: Window, total: Array) -> None:
    """Sum one block's columns into the images `total` they came from (col2im)."""
    n = total.shape[0]
    sizes = [o.stop - o.start for o in window]
    # (C, kernel, images, block) -> (images, C, kernel, block)
    by_tap = np.moveaxis(columns.reshape(spec.in_channels, *spec.kernel_size, n, *sizes), 1 + spec.rank, 0)
    index = blocks.inside(spec, window)
    if index is not None:
        values = total[(..., *index)]
    else:
        lengths = [
            (o - 1) * step + extent
            for o, step, extent in zip(sizes, spec.stride, spec.kernel_extent, strict=True)
        ]
        values = np.zeros((n, spec.in_channels, *lengths), total.dtype)
    view = blocks.windows(spec, values, window)
    # Tap by tap: within one tap no two windows touch the same element.
    for tap in itertools.product(*map(range, spec.kernel_size)):
        view[(slice(None), slice(None), *tap)] += by_tap[(slice(None), slice(None), *tap)]
    if index is None:
        blocks.add_slab(spec, values, window, total)


@algorithm("im2col")
def weight_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Sum grad_output times the transposed columns over all blocks."""
    s = Gemm(spec)
    weights = math.prod(spec.weight_shape) * s.itemsize

    def cost(block: Block) -> int:
        copied = not s.same_in or block.images > 1 or not _is_flat(spec, block)
        grads = s.pixels(spec, block) if copied else 0
        several = block.images < spec.batch or block.sizes != spec.out_size
        sums = weights * ((not s.same_out) + several)
        return s.columns(block) + max(blocks.slab_size(spec, block) * s.stored, grads + sums + s.product(block))

    block = blocks.choose(spec, cost, max(TARGET_BYTES, 4 * weights), workspace_limit)

    def call(x: Array, dy: Array, dw: Array) -> None:
        total = dw.reshape(s.g, s.o, s.k) if s.same_out else np.empty((s.g, s.o, s.k), s.dtype)
        first = True
        with blas_threads():
            for some in blocks.images(spec, block):
                for window in blocks.output_windows(spec, block):
                    columns = fill_columns(spec, s, x[some], window)
                    grads = pixels_of(s, dy[some], window)
                    if first:
                        np.matmul(grads, columns.swapaxes(1, 2), out=total)
                    else:
                        total += grads @ columns.swapaxes(1, 2)
                    first = False
                    del columns, grads
        if first:  # an empty batch
            total[...] = 0
        if not s.same_out:
            np.copyto(dw.reshape(s.g, s.o, s.k), total, casting="unsafe")

    return Run(
        call=call,
        seconds=s.seconds(spec, Op.CONV_WEIGHT_GRAD, block, spec.columns_nbytes),
        workspace=cost(block),
        note=_note(spec, block),
    )


@algorithm("im2col")
def unfold(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Copy windows to columns; only what reaches into the padding is staged."""
    stored = DTYPES[spec.dtype].itemsize

    def cost(block: Block) -> int:
        return blocks.slab_size(spec, block) * stored

    block = blocks.choose(spec, cost, TARGET_BYTES, workspace_limit)

    def call(x: Array, columns: Array) -> None:
        target = columns.reshape(spec.batch, spec.in_channels, *spec.kernel_size, *spec.out_size)
        for some in blocks.images(spec, block):
            for window in blocks.output_windows(spec, block):
                target[some][(..., *window)] = blocks.windows(
                    spec, blocks.slab(spec, x[some], window), window
                )

    seconds = spec.nbytes(Op.UNFOLD) / COPY_BYTES
    return Run(call=call, seconds=seconds, workspace=cost(block), note=_note(spec, block))


@algorithm("col2im")
def fold(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Sum columns into images, one tap at a time."""
    s = Gemm(spec)

    def cost(block: Block) -> int:
        total = 0 if s.same_out else block.images * spec.in_channels * math.prod(spec.in_size) * s.itemsize
        return blocks.slab_size(spec, block) * s.itemsize + total

    block = blocks.choose(spec, cost, TARGET_BYTES, workspace_limit)

    def call(columns: Array, x: Array) -> None:
        source = columns.reshape(spec.batch, spec.in_channels, *spec.kernel_size, *spec.out_size)
        for some in blocks.images(spec, block):
            total = x[some] if s.same_out else np.empty(x[some].shape, s.dtype)
            total[...] = 0
            for window in blocks.output_windows(spec, block):
                part = np.moveaxis(source[some][(..., *window)], 0, 1 + spec.rank)
                add_columns(spec, part, window, total)
            if not s.same_out:
                np.copyto(x[some], total, casting="unsafe")

    seconds = 2 * spec.nbytes(Op.FOLD) / COPY_BYTES
    return Run(call=call, seconds=seconds, workspace=cost(block), note=_note(spec, block))
