"""Convolution as a matrix product over unfolded windows (Chellapilla et al., 2006), BLAS doing the arithmetic.

With ``K = C/groups * prod(kernel)`` and P output positions, a block is

    output (O x P)  =  weight (O x K)  @  columns (K x P)
    columns (K x P) =  weight^T (K x O)  @  grad_output (O x P), then summed back (col2im)
    grad_weight (O x K)  +=  grad_output (O x P)  @  columns^T (P x K)

for each group. Columns are made block by block, so scratch is bounded by the block and not by the image, and
blocks run side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.backends import Run, Unsupported, algorithm, blocks
from fastconv.backends.blocks import COPY_BYTES, Block, Gemm, Part, Scratch, pack
from fastconv.backends.im2col.threads import each, in_order
from fastconv.spec import DTYPES, ConvSpec, Op

Array = Any

# Columns of one block, which one thread makes and uses. Speed is flat from 0.5 to 8 MB (within 5 % on eight
# layers of three networks, benchmarks/test_blocks.py), so the block stays about the size of a core's L2.
TARGET_BYTES = 1 << 20


def _is_flat(spec: ConvSpec, block: Block) -> bool:
    """Whether a block's positions lie in a row in the output, so that it can be read and written in place."""
    cut = [axis for axis, size in enumerate(block.sizes) if size < spec.out_size[axis]]
    return not cut or all(size == 1 for size in block.sizes[: cut[-1]])


def _is_staged(spec: ConvSpec, s: Gemm, block: Block) -> bool:
    """Whether BLAS must read or write a copy of the output's block instead of the block itself."""
    return not (s.same_in and s.same_out) or block.images > 1 or not _is_flat(spec, block)


def fill_columns(spec: ConvSpec, s: Gemm, x: Array, part: Part, scratch: Scratch) -> Array:
    """The columns of one block, (groups, K, images * positions), in the accumulation type."""
    view = blocks.windows(spec, blocks.slab(spec, x[part.images], part.window, scratch), part.window)
    n, sizes = view.shape[0], view.shape[2 + spec.rank :]
    columns = scratch.take((s.g, s.k, n * math.prod(sizes)), s.dtype)
    # (images, C, kernel, block) -> (C, kernel, images, block)
    target = columns.reshape(spec.in_channels, *spec.kernel_size, n, *sizes)
    np.copyto(target, np.moveaxis(view, 0, 1 + spec.rank))
    return columns


def pixels_of(spec: ConvSpec, s: Gemm, dy: Array, part: Part, block: Block, scratch: Scratch) -> Array:
    """One block of an output-shaped array as (groups, O, images * positions), copied only if it must be."""
    pixels = dy[part.images][(..., *part.window)]
    if not _is_staged(spec, s, block):
        flat = pixels.reshape(s.g, s.o, -1)  # a view where `dy` is in C order, as the interface makes it
        return flat if flat.strides[-1] == flat.itemsize else flat.copy()
    copy = scratch.take((pixels.shape[1], pixels.shape[0], *pixels.shape[2:]), s.dtype)
    np.copyto(copy, pixels.swapaxes(0, 1))
    return copy.reshape(s.g, s.o, -1)


def _note(spec: ConvSpec, block: Block) -> str:
    if block.images >= spec.batch and block.sizes == spec.out_size:
        return "all columns at once"
    shape = "x".join(map(str, block.sizes))
    return f"columns of {block.images} image{'s' * (block.images > 1)} x {shape} positions at a time"


def _choose(
    spec: ConvSpec, cost: Callable[[Block], int], shared: int, limit: int | None, target: int | None = None
) -> Block:
    """A block under the target, and with what is shared under the limit."""
    left = None if limit is None else max(limit - shared, 0)
    try:
        return blocks.choose(spec, cost, target or TARGET_BYTES, left)
    except Unsupported as refusal:
        need = (refusal.workspace or 0) + shared
        raise Unsupported(f"needs {need} bytes of scratch for one output position", workspace=need) from None


def im2col(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Unfold, multiply, for any forward convolution."""
    s = Gemm(spec)

    def cost(block: Block) -> int:
        stage = s.pixels(spec, block) if _is_staged(spec, s, block) else 0
        return s.columns(block) + blocks.slab_size(spec, block) * s.stored + stage

    block = _choose(spec, cost, s.packed, workspace_limit)
    at_once = blocks.at_once(
        spec, block, cost(block), None if workspace_limit is None else workspace_limit - s.packed
    )
    staged = _is_staged(spec, s, block)

    def call(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
        offset = None if bias is None else bias.reshape(s.g, s.o, 1).astype(s.dtype)

        def work(part: Part, scratch: Scratch) -> None:
            columns = fill_columns(spec, s, x, part, scratch)
            target = y[part.images][(..., *part.window)]
            if staged:
                result = scratch.take((s.g, s.o, columns.shape[-1]), s.dtype)
            else:
                result = target.reshape(s.g, s.o, -1)  # a view: see _is_flat
            np.matmul(weight, columns, out=result)
            if offset is not None:
                result += offset
            if staged:
                by_image = result.reshape(spec.out_channels, target.shape[0], *target.shape[2:])
                np.copyto(target, by_image.swapaxes(0, 1), casting="unsafe")

        each(blocks.parts(spec, block), work, at_once, cost(block))

    return Run(
        call=call,
        seconds=s.seconds(spec, Op.CONV, block, spec.columns_nbytes),
        workspace=cost(block),
        at_once=at_once,
        shared=s.packed,
        note=_note(spec, block),
        pack=lambda weight: pack(s, weight),
        packing="matrix",
    )


# Positions of one product of a 1x1 convolution: wide enough for BLAS, narrow enough for several threads.
POINTWISE_POSITIONS = 1024


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
    width = -(-positions // -(-positions // POINTWISE_POSITIONS))
    parts = [slice(start, min(start + width, positions)) for start in range(0, positions, width)]
    image = spec.in_channels * positions * s.stored

    def call(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
        if x.flags.c_contiguous:
            multiply(x, weight, bias, y)
        elif workspace_limit is None or image <= workspace_limit:
            for n in range(spec.batch):  # BLAS cannot read it in place: one image at a time is copied
                multiply(np.ascontiguousarray(x[n : n + 1]), weight, bias, y[n : n + 1])
        else:
            general.call(x, weight, bias, y)

    def multiply(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
        source = x.reshape(-1, s.g, s.c, positions)
        target = y.reshape(-1, s.g, s.o, positions)
        offset = None if bias is None else bias.reshape(s.g, s.o, 1)

        def work(part: tuple[int, slice], scratch: Scratch) -> None:
            n, some = part
            result = target[n, :, :, some]
            np.matmul(weight, source[n, :, :, some], out=result)
            if offset is not None:
                result += offset

        everything = itertools.product(range(len(source)), parts)
        each(everything, work, min(len(source) * len(parts), blocks.MOST_THREADS), 0)

    return Run(
        call=call,
        seconds=s.seconds(spec, Op.CONV, Block(1, spec.out_size), 0),
        note="one matrix product, no columns",
        pack=general.pack,
        packing=general.packing,
    )


@algorithm("col2im")
def input_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Multiply by the transposed weight, then sum the columns back into the image (col2im)."""
    s = Gemm(spec)
    total = 0 if s.same_out else math.prod(spec.input_shape) * s.itemsize
    shared = total + s.packed

    def scratch_bytes(block: Block) -> int:
        pixels = s.pixels(spec, block) if _is_staged(spec, s, block) else 0
        return s.columns(block) + pixels + blocks.region_size(spec, block) * s.itemsize

    def cost(block: Block) -> int:
        return scratch_bytes(block) + 2 * blocks.BUFFERED * s.itemsize

    block = _choose(spec, cost, shared, workspace_limit)
    at_once = blocks.at_once(
        spec, block, cost(block), None if workspace_limit is None else workspace_limit - shared
    )

    def call(dy: Array, weight: Array, bias: Array | None, dx: Array) -> None:
        transposed = weight.swapaxes(1, 2)
        sums = dx if s.same_out else np.empty(dx.shape, s.dtype)
        sums[...] = 0 if bias is None else bias.reshape(-1, *(1,) * spec.rank).astype(s.dtype)

        def work(part: Part, scratch: Scratch) -> Array:
            pixels = pixels_of(spec, s, dy, part, block, scratch)
            columns = scratch.take((s.g, s.k, pixels.shape[-1]), s.dtype)
            np.matmul(transposed, pixels, out=columns)
            return summed(spec, columns, part, scratch)

        def finish(part: Part, values: Array) -> None:
            blocks.add_slab(spec, values, part.window, sums[part.images])

        in_order(blocks.parts(spec, block), work, finish, at_once, scratch_bytes(block))
        if sums is not dx:
            np.copyto(dx, sums, casting="unsafe")

    return Run(
        call=call,
        seconds=s.seconds(spec, Op.CONV_INPUT_GRAD, block, 2 * spec.columns_nbytes),
        workspace=cost(block),
        at_once=at_once,
        shared=shared,
        note=_note(spec, block),
        pack=lambda weight: pack(s, weight),
        packing="matrix",
    )


def summed(spec: ConvSpec, columns: Array, part: Part, scratch: Scratch) -> Array:
    """One block's columns, (groups, K, images * positions), summed into a slab (col2im)."""
    n = part.images.stop - part.images.start
    sizes = [o.stop - o.start for o in part.window]
    # (C, kernel, images, block) -> (images, C, kernel, block)
    by_tap = np.moveaxis(columns.reshape(spec.in_channels, *spec.kernel_size, n, *sizes), 1 + spec.rank, 0)
    values = blocks.empty_slab(spec, (n, spec.in_channels), part.window, columns.dtype, scratch)
    view = blocks.windows(spec, values, part.window)
    # Tap by tap: within one tap no two windows touch the same element.
    for tap in itertools.product(*map(range, spec.kernel_size)):
        view[(slice(None), slice(None), *tap)] += by_tap[(slice(None), slice(None), *tap)]
    return values


@algorithm("im2col")
def weight_grad(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Sum grad_output times the transposed columns over all blocks."""
    s = Gemm(spec)
    weights = math.prod(spec.weight_shape) * s.itemsize
    shared = 0 if s.same_out else weights

    def cost(block: Block) -> int:
        pixels = s.pixels(spec, block) if _is_staged(spec, s, block) else 0
        return s.columns(block) + blocks.slab_size(spec, block) * s.stored + pixels + weights

    # Each block adds a whole weight: blocks should be large beside it.
    block = _choose(spec, cost, shared, workspace_limit, max(TARGET_BYTES, 4 * weights))
    at_once = blocks.at_once(
        spec, block, cost(block), None if workspace_limit is None else workspace_limit - shared
    )

    def call(x: Array, dy: Array, dw: Array) -> None:
        sums = dw.reshape(s.g, s.o, s.k) if s.same_out else np.empty((s.g, s.o, s.k), s.dtype)
        sums[...] = 0

        def work(part: Part, scratch: Scratch) -> Array:
            columns = fill_columns(spec, s, x, part, scratch)
            pixels = pixels_of(spec, s, dy, part, block, scratch)
            product = scratch.take((s.g, s.o, s.k), s.dtype)
            return np.matmul(pixels, columns.swapaxes(1, 2), out=product)

        def finish(part: Part, product: Array) -> None:
            np.add(sums, product, out=sums)

        in_order(blocks.parts(spec, block), work, finish, at_once, cost(block))
        if not s.same_out:
            np.copyto(dw.reshape(s.g, s.o, s.k), sums, casting="unsafe")

    return Run(
        call=call,
        seconds=s.seconds(spec, Op.CONV_WEIGHT_GRAD, block, spec.columns_nbytes),
        workspace=cost(block),
        at_once=at_once,
        shared=shared,
        note=_note(spec, block),
    )


@algorithm("im2col")
def unfold(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Copy windows to columns; only what reaches into the padding is staged."""
    stored = DTYPES[spec.dtype].itemsize

    def cost(block: Block) -> int:
        return blocks.slab_size(spec, block) * stored

    block = blocks.choose(spec, cost, TARGET_BYTES, workspace_limit)
    at_once = blocks.at_once(spec, block, cost(block), workspace_limit)

    def call(x: Array, columns: Array) -> None:
        target = columns.reshape(spec.batch, spec.in_channels, *spec.kernel_size, *spec.out_size)

        def work(part: Part, scratch: Scratch) -> None:
            view = blocks.windows(spec, blocks.slab(spec, x[part.images], part.window, scratch), part.window)
            target[part.images][(..., *part.window)] = view

        each(blocks.parts(spec, block), work, at_once, cost(block))

    return Run(
        call=call,
        seconds=spec.nbytes(Op.UNFOLD) / COPY_BYTES,
        workspace=cost(block),
        at_once=at_once,
        note=_note(spec, block),
    )


@algorithm("col2im")
def fold(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Sum columns into images, one tap at a time."""
    s = Gemm(spec)
    same = spec.dtype == s.dtype
    total = 0 if spec.out_dtype == s.dtype else math.prod(spec.input_shape) * s.itemsize

    def scratch_bytes(block: Block) -> int:
        cast = 0 if same else s.columns(block)
        return blocks.region_size(spec, block) * s.itemsize + cast

    def cost(block: Block) -> int:
        return scratch_bytes(block) + 2 * blocks.BUFFERED * s.itemsize

    block = _choose(spec, cost, total, workspace_limit)
    at_once = blocks.at_once(
        spec, block, cost(block), None if workspace_limit is None else workspace_limit - total
    )

    def call(columns: Array, x: Array) -> None:
        source = columns.reshape(spec.batch, spec.in_channels, *spec.kernel_size, *spec.out_size)
        sums = x if spec.out_dtype == s.dtype else np.empty(x.shape, s.dtype)
        sums[...] = 0

        def work(part: Part, scratch: Scratch) -> Array:
            taken = np.moveaxis(source[part.images][(..., *part.window)], 0, 1 + spec.rank)
            if not same:
                cast = scratch.take(taken.shape, s.dtype)
                np.copyto(cast, taken)
                taken = cast
            return summed(spec, taken, part, scratch)

        def finish(part: Part, values: Array) -> None:
            blocks.add_slab(spec, values, part.window, sums[part.images])

        in_order(blocks.parts(spec, block), work, finish, at_once, scratch_bytes(block))
        if sums is not x:
            np.copyto(x, sums, casting="unsafe")

    return Run(
        call=call,
        seconds=2 * spec.nbytes(Op.FOLD) / COPY_BYTES,
        workspace=cost(block),
        at_once=at_once,
        shared=total,
        note=_note(spec, block),
    )
