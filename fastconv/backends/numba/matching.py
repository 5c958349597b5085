"""Gradients of max pools whose elements ask for their maxima, planned: windows of 2x2 and 3x3, where indices were kept."""

from __future__ import annotations

import math

import numpy as np

from fastconv.backends import Run, Unsupported
from fastconv.backends.numba import cost, jit, pooling, unpooling
from fastconv.backends.numba.geometry import Geometry
from fastconv.backends.numba.kernels import match as kernels
from fastconv.backends.numba.operands import address, computed, set_fields
from fastconv.spec import DTYPES, PoolSpec

# Sums of 32 bits: an index is found in the lower half of its 64.
TYPES = ("float32", "int32")
PAIRS = {shape: jit.Kernel(kernels.match(*shape), TYPES) for shape in kernels.SHAPES}
FLAT = jit.Kernel(kernels.flat, TYPES)

# Narrower rows' windows at one end meet what those at the other do.
LEAST_WIDTH = 4

# What is walked down before the next column is, and stays in the L1 cache.
WALKED_BYTES = 16 << 10

# Larger operands are asked for ahead: 16 images of 512 x 28 x 28 by 2x2 take 0.83 ms, and 1.37 without, 64 x 112 x 112 by 3x3
# 87 us and 94; but 832 x 14 x 14 would take 25, not 22. ``flat`` goes along the memory, where a processor looks ahead by
# itself, but not enough beyond the shared cache: 16 images of 192 x 28 x 28 take 1.25 ms, and 1.42 without.
FAR_BYTES, FAR_BYTES_FLAT = 4 << 20, cost.SHARED_CACHE

# Cycles of two vectors of a pair of rows, by the size of the window; of one where all planes are a row; of a plane. With
# AVX2, half as wide and short of registers, two to four of an output are no fewer than ``scatter`` takes.
PAIR_CYCLES = cost.here({2: 10, 3: 12}, {2: 14, 3: 19})
FLAT_CYCLES, PLANE_CYCLES = cost.here(25, 43), 30


def computed_sum(spec: PoolSpec) -> str:
    """The type a gradient's sums are formed in: that of 32 bits for integers of as many, or fewer, which wrap alike."""
    row = DTYPES[spec.out_dtype]
    return computed(spec.out_dtype) if row.kind == "f" or row.itemsize == 8 else "int32"


def match(spec: PoolSpec, precision: str, workspace_limit: int | None) -> Run:
    """Each element asks the windows that meet it whether it is their maximum: 2x2 and 3x3 at a stride of 2."""
    if spec.mode != "max":
        raise Unsupported(f"needs a max pool, got {spec.mode}")
    if not spec.indices:
        raise Unsupported("needs the indices of the maxima")
    if spec.output_size or spec.rank != 2:
        raise Unsupported("needs windows in a plane, all of one size")
    g, wide = pooling.geometry(spec), computed_sum(spec)
    k, before = g.kernel[2], g.before[2]
    if wide not in TYPES:
        raise Unsupported(f"needs sums of 32 bits, got {wide}")
    if pooling.square(g, (3,), 1) and g.out == g.size and g.before[1:] == (1, 1):
        return flat(spec, g, wide, workspace_limit)
    if not pooling.square(g, (k,), kernels.STRIDE) or (k, before) not in PAIRS:
        raise Unsupported("needs windows of 2x2 without padding, or of 3x3, a stride of 2 and no dilation")
    (_, h, w), (_, oh, ow), (_, before_h, _) = g.size, g.out, g.before
    lanes = cost.lanes(wide)
    half = lanes // 2
    pairs, blocks = (h - 1 + before_h) // 2 + 1, -(-max(w, 2 * ow) // lanes)
    # What vectors read and write behind a plane's last row is the next plane's.
    read, written = blocks * half + 1 - ow, blocks * lanes - w
    if min(w, h, ow) < LEAST_WIDTH or oh * ow < read or h * w < blocks * lanes or before_h > 1:
        raise Unsupported(f"needs planes of {blocks * lanes} elements and rows of {LEAST_WIDTH} outputs")
    edge = min(oh - -(-max(read, 0) // ow), (h + before_h - -(-max(written, 0) // w)) // 2)
    windows = [(window.start, len(window)) for window in spec.windows(1)]
    windows += [(0, -1)] * (blocks * half - ow)  # lanes that no output has are never wrong
    firsts, counts = (np.repeat(column, 2) for column in zip(*windows, strict=True))
    # Of a window's rows that are not there the nearest one counts; all of a row of windows that is not there begin at 0.
    tops = np.arange(pairs)[:, None] * kernels.STRIDE - before_h
    starts = np.clip(tops + np.arange(k), 0, h - 1) * w
    starts[oh:] = 0
    # In place of such a row: indices in the windows of the first, and zeros.
    no_indices = np.zeros(half * (blocks + 1) + 2, np.int64)
    no_indices[1 : 1 + blocks * half] = firsts[::2]
    no_y = np.zeros(half * (blocks + 1) + 2, wide)
    tables = [
        np.array(table, np.int32)
        for table in (np.arange(blocks * lanes), firsts, counts, np.hstack([tops * w, starts]))
    ]
    template = np.zeros(1, kernels.ARGUMENTS)
    set_fields(
        template, h=h, w=w, oh=oh, ow=ow, before_h=before_h, pairs=pairs, blocks=blocks,
        rows=max(WALKED_BYTES // (2 * w + 3 * ow) // 4, 1),
        lead=min(kernels.STRIDE, pairs), edge=max(edge, 0),
        **dict(zip(("columns", "firsts", "counts", "starts"), map(address, tables), strict=True)),
        no_indices=address(no_indices[1:]), no_y=address(no_y[1:]), ahead=far(spec, wide, FAR_BYTES),
        past=cost.is_past(spec.batch * spec.channels * h * w, w, wide) and blocks * lanes == w,
    )  # fmt: skip
    cycles = pairs * blocks * PAIR_CYCLES[k] + PLANE_CYCLES
    run = unpooling.by_indices(
        spec, workspace_limit, PAIRS[k, before], wide, spec.dtype, cycles=cycles, template=template
    )
    run.call.tables = tables, no_indices, no_y  # type: ignore[attr-defined]
    return run


def flat(spec: PoolSpec, g: Geometry, wide: str, limit: int | None) -> Run:
    """All planes as one row: 3x3 at stride 1."""
    (_, h, w), lanes = g.size, cost.lanes(wide)
    if not 3 <= w <= kernels.MOST_WIDTH or h * w < lanes:
        raise Unsupported(f"needs planes of {lanes} elements and rows of 3 to {kernels.MOST_WIDTH}")
    template = np.zeros(1, kernels.ARGUMENTS)
    set_fields(template, w=w, ahead=far(spec, wide, FAR_BYTES_FLAT))
    cycles = h * w / lanes * FLAT_CYCLES
    return unpooling.by_indices(spec, limit, FLAT, wide, spec.dtype, cycles=cycles, template=template)


def far(spec: PoolSpec, wide: str, cache: int) -> bool:
    """Whether what is read and written does not fit a cache."""
    itemsize = DTYPES[wide].itemsize
    each = math.prod(spec.in_size) * itemsize + math.prod(spec.out_size) * (itemsize + 8)
    return spec.batch * spec.channels * each > cache
