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


def empty(shape: tuple[int, ...], dtype: str) -> Any:
    """An array of this backend's kind."""
    return np.empty(shape, dtype)


PLANNERS: dict[Op, tuple[Planner, ...]] = {
    Op.CONV: (direct.pointwise, depthwise.depthwise, winograd.winograd, direct.implicit_gemm, fft),
    Op.POOL: pooling.PLANNERS,
}
