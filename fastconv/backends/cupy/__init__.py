"""The GPU engine: own CUDA kernels, compiled by NVRTC, launched through CuPy on the caller's arrays.

A planner makes a :class:`~fastconv.backends.cupy.launch.Program` from a spec and the arrays' layout, in plain Python;
``run.py`` hands it to CuPy. Neither this package nor its planners import CuPy, but for
cuDNN's, which ask the device where somebody names them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastconv.backends import Planner
from fastconv.backends.cupy import columns, cudnn, depthwise, gradients, pooling
from fastconv.backends.cupy.implicit_gemm import implicit_gemm
from fastconv.backends.cupy.implicit_gemm_mma import implicit_gemm_mma
from fastconv.spec import Op


def empty(shape: tuple[int, ...], dtype: str) -> Any:
    """An array of this backend's kind, on the current device."""
    import cupy

    return cupy.ndarray(shape, _dtype(dtype))  # what cupy.empty calls, 2 us later


@cache
def _dtype(name: str) -> np.dtype[Any]:
    """NumPy's type of this name; ``bfloat16`` is known to it once ml_dtypes is imported."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


def put(array: Any) -> Any:
    """A copy of a NumPy array on the current device, with the same order of axes in memory."""
    import cupy

    return cupy.asarray(array)


def fetch(array: Any) -> Any:
    """A copy of a device's array as a NumPy array."""
    import cupy

    return cupy.asnumpy(array)


def wait() -> None:
    """Return once the current stream is done."""
    import cupy

    cupy.cuda.get_current_stream().synchronize()


def device() -> str:
    """The current device's name."""
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())


PLANNERS: dict[Op, tuple[Planner, ...]] = {
    Op.CONV: (implicit_gemm_mma, implicit_gemm, depthwise.depthwise, columns.im2col, cudnn.cudnn),
    Op.CONV_INPUT_GRAD: (
        gradients.input_grad_mma,
        gradients.input_grad,
        depthwise.input_grad,
        columns.input_grad,
        cudnn.input_grad,
    ),
    Op.CONV_WEIGHT_GRAD: (
        gradients.weight_grad_mma,
        gradients.weight_grad,
        depthwise.weight_grad,
        columns.weight_grad,
        cudnn.weight_grad,
    ),
    Op.UNFOLD: (columns.unfold,),
    Op.FOLD: (columns.fold,),
    Op.POOL: (pooling.windows,),
    Op.POOL_INPUT_GRAD: (pooling.holders,),
    Op.UNPOOL: (pooling.claims,),
    Op.UNPOOL_INPUT_GRAD: (pooling.gather,),
}
