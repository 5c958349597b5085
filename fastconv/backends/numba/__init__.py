"""The fast CPU engine: kernels compiled on first use, one for each element type, kept on disk for later processes.

``kernels`` holds what runs: micro-kernels as LLVM IR (``simd``, ``tile``) and loops over tasks. The modules beside it
plan: ``direct`` (any convolution), ``depthwise``, ``winograd``, ``pooling``, and the gradients, ``input_grad`` and
``weight_grad``. ``cost`` is what they estimate by, ``operands`` casts what kernels do not know, ``jit`` compiles and
caches, ``threads`` runs tasks side by side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.backends import Planner
from fastconv.backends.fft import fft
from fastconv.backends.numba import depthwise, direct, input_grad, pooling, weight_grad, winograd
from fastconv.backends.numba.operands import ALIGNMENT, address
from fastconv.spec import DTYPES, Op

# Linux's large pages, which NumPy asks for from two of them on.
PAGE_BYTES = 2 << 20

# Results from this size on begin with a cache line, as NumPy's do not: the next layer, if it reads vectors where they
# lie, is up to a tenth faster, a pool a quarter. Below, 1 us for it is more.
ALIGNED_BYTES = 64 << 10


def empty(shape: tuple[int, ...], dtype: str) -> Any:
    """An array of this backend's kind, whose pages are there.

    Memory comes new from the system for every result above 32 MB. Two threads that meet its pages for the first time
    wait for each other: 11 ms where a 1x1 convolution to 51 MB takes 3, and touching the pages ahead 1.7.
    """
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if nbytes < ALIGNED_BYTES:
        return np.empty(shape, dtype)
    held = np.empty(nbytes + ALIGNMENT, np.uint8)
    if nbytes >= 2 * PAGE_BYTES:
        held[::PAGE_BYTES] = 0
    return np.ndarray(shape, dtype, held, -address(held) % ALIGNMENT)


FORWARD: tuple[Planner, ...] = (
    direct.pointwise,
    depthwise.depthwise,
    winograd.winograd,
    direct.implicit_gemm,
    fft,
)

PLANNERS: dict[Op, tuple[Planner, ...]] = {
    Op.CONV: FORWARD,
    Op.CONV_INPUT_GRAD: tuple(map(input_grad.input_grad, FORWARD)),
    Op.CONV_WEIGHT_GRAD: (weight_grad.depthwise, weight_grad.implicit_gemm),
    Op.POOL: pooling.PLANNERS,
}
