"""The fast CPU engine: kernels compiled on first use, one for each element type, kept on disk for later processes.

``kernels`` holds what runs: micro-kernels as LLVM IR (``simd``, ``tile``) and loops over tasks. The modules beside it
plan: ``direct`` (any convolution), ``depthwise``, ``winograd``, ``pooling``. ``cost`` is what they estimate by,
``operands`` casts what kernels do not know, ``jit`` compiles and caches, ``threads`` runs tasks side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends import Planner
from fastconv.backends.fft import fft
from fastconv.backends.numba import depthwise, direct, pooling, winograd
from fastconv.spec import Op


# Linux's large pages, which NumPy asks for from two of them on.
PAGE_BYTES = 2 << 20


def empty(shape: tuple[int, ...], dtype: str) -> Any:
    """An array of this backend's kind, whose pages are there.

    Memory comes new from the system for every result above 32 MB. Two threads that meet its pages for the first time
    wait for each other: 11 ms where a 1x1 convolution to 51 MB takes 3, and touching the pages ahead 1.7.
    """
    made = np.empty(shape, dtype)
    if made.nbytes >= 2 * PAGE_BYTES:
        made.reshape(-1).view(np.uint8)[::PAGE_BYTES] = 0
    return made


PLANNERS: dict[Op, tuple[Planner, ...]] = {
    Op.CONV: (direct.pointwise, depthwise.depthwise, winograd.winograd, direct.implicit_gemm, fft),
    Op.POOL: pooling.PLANNERS,
}
