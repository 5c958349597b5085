"""The textbook method on NumPy alone: unfold windows into columns and let BLAS multiply.

Every op of the interface, every dtype, in blocks that keep scratch small (``workspace_limit`` makes them
smaller). ``blocks`` cuts a problem, ``gemm`` multiplies, ``fft`` serves large kernels, ``pooling`` reduces.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends import Planner
from fastconv.backends.fft import fft
from fastconv.backends.im2col import gemm, pooling
from fastconv.spec import Op


def empty(shape: tuple[int, ...], dtype: str) -> Any:
    """An array of this backend's kind."""
    return np.empty(shape, dtype)


PLANNERS: dict[Op, tuple[Planner, ...]] = {
    Op.CONV: (gemm.pointwise, gemm.im2col, fft),
    Op.CONV_INPUT_GRAD: (gemm.input_grad,),
    Op.CONV_WEIGHT_GRAD: (gemm.weight_grad,),
    Op.UNFOLD: (gemm.unfold,),
    Op.FOLD: (gemm.fold,),
    Op.POOL: (pooling.taps, pooling.cells),
    Op.POOL_INPUT_GRAD: (pooling.taps_back, pooling.cells_back),
    Op.UNPOOL: (pooling.scatter,),
    Op.UNPOOL_INPUT_GRAD: (pooling.gather,),
}
