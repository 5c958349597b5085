"""Convolution by the convolution theorem, for large kernels (Mathieu et al., 2013).

A block of the padded input and the flipped kernel are multiplied as spectra; the cost does not depend on the
kernel's size. Strides take every s-th output, dilation spreads the kernel.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.backends import Run, Unsupported, blocks
from fastconv.backends.blocks import COPY_BYTES, Block, Gemm, Scratch, pack
from fastconv.spec import DTYPES, ConvSpec
from fastconv.threads import get_num_threads

Array = Any

# Scratch without a limit: a whole photograph's spectra, not a whole batch's.
TARGET_BYTES = 64 << 20

# Under this many points a transform is over before other threads have woken up.
THREADED_POINTS = 1 << 14

# Transform plans and index objects of one call: 0.6 to 1.3 KB measured.
FIXED_BYTES = 1024

# pocketfft transforms as many lines at once as fill a vector, in SciPy's wheels an SSE one.
VECTOR_BYTES = 16

# The reference machine, for estimates only: scipy.fft's float32 rate by the usual count 2.5 N log2 N.
FFT_FLOPS = 1.5e10


@lru_cache(maxsize=4096)
def fast_length(least: int) -> int:
    """The first product of twos, threes and fives from `least` on: what a transform is quick at.

    ``scipy.fft.next_fast_len(least, real=True)``, which every plan asks; its import is 0.09 s of a first call.
    """
    best = 1 << (least - 1).bit_length()
    fives = 1
    while fives < best:
        odd = fives
        while odd < best:
            best = min(best, odd << (-(-least // odd) - 1).bit_length())
            odd *= 3
        fives *= 5
    return best


def fft(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Multiply spectra, block by block (overlap-save)."""
    if DTYPES[spec.dtype].kind != "f":
        raise Unsupported(f"{spec.dtype} must come out exactly, needs a float type")
    s = Gemm(spec)
    pair = 2 * s.itemsize

    def lengths(block: Block) -> tuple[int, ...]:
        return tuple(
            fast_length((o - 1) * step + extent)
            for o, step, extent in zip(block.sizes, spec.stride, spec.kernel_extent, strict=True)
        )

    def spectrum(block: Block) -> int:
        *outer, last = lengths(block)
        return math.prod(outer) * (last // 2 + 1)

    def cost(block: Block) -> int:
        # One image, one group, one output channel at a time. Beside the input's spectra stand, in turn: the
        # spread kernel and its spectra; these and the product; the product, the inverse transform's own copy
        # of it, and the result.
        frequencies, points = spectrum(block) * pair, math.prod(lengths(block)) * s.itemsize
        steps = (s.c * (points + frequencies), (s.c + 1) * frequencies, 2 * frequencies + points)
        packed = 0 if s.same_in else math.prod(spec.weight_shape) * s.itemsize
        slab = blocks.slab_size(spec, Block(1, block.sizes)) // s.g * s.stored
        return s.c * frequencies + max(steps) + slab + packed + FIXED_BYTES

    def vectors(block: Block) -> int:
        """How many vectors of lines there are, threads to share: 0 where lines are taken one by one."""
        return s.c * math.prod(lengths(block)[:-1]) * s.itemsize // VECTOR_BYTES

    def buffers(block: Block) -> int:
        """Bytes that one thread moves lines through, measured: two buffers, complex but along the last axis."""
        *outer, last = lengths(block)
        single = s.c * math.prod(outer) == 1
        wide = VECTOR_BYTES if vectors(block) else s.itemsize
        return (1 if single else 2) * wide * max(last, *(2 * n for n in outer), 1)

    def least(block: Block) -> int:
        return cost(Block(1, block.sizes)) + buffers(block)

    block = blocks.choose(spec, least, TARGET_BYTES, workspace_limit)
    block = Block(1, block.sizes)
    shape, one_image = lengths(block), spec.with_batch(1)
    threaded = s.c * math.prod(shape) > THREADED_POINTS
    at_once = max(min(blocks.MOST_THREADS, vectors(block)), 1) if threaded else 1
    if workspace_limit is not None:
        at_once = min(at_once, (workspace_limit - cost(block)) // buffers(block))
    slab_bytes = blocks.slab_size(spec, block) // s.g * s.stored
    axes = tuple(range(1, 1 + spec.rank))
    crop = tuple(slice(0, (o - 1) * step + 1, step) for o, step in zip(block.sizes, spec.stride, strict=True))

    def call(x: Array, weight: Array, bias: Array | None, y: Array) -> None:
        from scipy import fft as scipy_fft

        workers = min(get_num_threads(), at_once)
        scratch = Scratch(slab_bytes)
        offset = None if bias is None else bias.astype(s.dtype)
        kernels = weight.reshape(s.g, s.o, s.c, *spec.kernel_size)
        taps = tuple(slice(0, extent, d) for extent, d in zip(spec.kernel_extent, spec.dilation, strict=True))

        def spread(values: Array, index: tuple[Any, ...]) -> Array:
            padded = np.zeros((s.c, *shape), s.dtype)
            padded[(slice(None), *index)] = values
            return scipy_fft.rfftn(padded, axes=axes, workers=workers, overwrite_x=True)

        def transform(values: Array) -> Array:
            return spread(values, tuple(slice(0, n) for n in values.shape[1:]))

        for group in range(s.g):
            inputs = slice(group * s.c, (group + 1) * s.c)
            for n in range(spec.batch):
                for _, window in blocks.parts(one_image, block):
                    scratch.reset()
                    slab = blocks.slab(spec, x[n : n + 1, inputs], window, scratch)[0]
                    spectra = transform(slab)
                    for o in range(s.o):
                        # Correlation: the conjugate turns the kernel around.
                        kernel = spread(kernels[group, o], taps)
                        np.conjugate(kernel, out=kernel)
                        product = np.einsum("c...,c...->...", spectra, kernel)
                        del kernel
                        full = scipy_fft.irfftn(product, s=shape, workers=workers, overwrite_x=True)
                        part = y[(n, group * s.o + o, *window)]
                        result = full[crop][tuple(slice(0, size) for size in part.shape)]
                        if offset is not None:
                            result += offset[group * s.o + o]
                        np.copyto(part, result, casting="unsafe")
                        del product, full, result
                    del spectra

    points = math.prod(shape)
    count = blocks.count(spec, block)
    transforms = count * (spec.in_channels + spec.out_channels * (s.c + 1))
    arithmetic = 2.5 * points * math.log2(max(points, 2)) * transforms / FFT_FLOPS
    traffic = count * spec.out_channels * s.c * spectrum(block) * pair * 3 / COPY_BYTES
    return Run(
        call=call,
        seconds=arithmetic + traffic + count * spec.out_channels * 3e-5,
        workspace=buffers(block),
        at_once=at_once,
        shared=cost(block),
        note=f"spectra of {'x'.join(map(str, shape))}",
        # Roundoff grows with the number of butterfly stages (Schatzman, 1996).
        error=math.log2(max(points, 2)) * (2.0**-24 if s.dtype == "float32" else 2.0**-53),
        finite_only=True,
        pack=lambda weight: pack(s, weight),
        packing="matrix",
    )
