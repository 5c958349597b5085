"""The fast CPU engine: kernels compiled on first use, one for each element type, kept on disk for later processes.

``kernels`` holds what runs: micro-kernels as LLVM IR (``simd``, ``tile``) and loops over tasks. The modules beside it
plan: ``implicit_gemm`` (any convolution, vectors along ``positions``), ``direct`` (any, vectors along output channels),
``depthwise``, ``winograd``, ``pooling``, ``unpooling``, ``columns``, and the gradients, ``input_grad``, ``weight_grad``,
``direct_grad``, ``winograd_grad``, ``pool_grad``, ``matching`` and ``pairs``. ``geometry`` and ``slabs`` say how images and padded copies of them lie, ``cost`` is what all
estimate by, ``operands`` and ``planes`` cast what kernels do not know, ``jit`` compiles and caches, ``threads`` runs tasks
side by side.
"""

from __future__ import annotations

from fastconv.backends import Planner
from fastconv.backends.fft import fft
from fastconv.backends.numba import (
    columns,
    depthwise,
    direct,
    direct_grad,
    implicit_gemm,
    input_grad,
    pool_grad,
    pooling,
    unpooling,
    weight_grad,
    winograd,
    winograd_grad,
)
from fastconv.backends.numba.pages import empty as empty
from fastconv.spec import Op

FORWARD: tuple[Planner, ...] = (
    implicit_gemm.pointwise,
    depthwise.depthwise,
    winograd.winograd,
    direct.direct,
    implicit_gemm.implicit_gemm,
    fft,
)

PLANNERS: dict[Op, tuple[Planner, ...]] = {
    Op.CONV: FORWARD,
    Op.CONV_INPUT_GRAD: tuple(map(input_grad.input_grad, FORWARD)),
    Op.CONV_WEIGHT_GRAD: (
        weight_grad.depthwise,
        winograd_grad.winograd,
        direct_grad.weights,
        weight_grad.implicit_gemm,
    ),
    Op.UNFOLD: (columns.unfold,),
    Op.FOLD: (columns.fold,),
    Op.POOL: pooling.PLANNERS,
    Op.POOL_INPUT_GRAD: pool_grad.PLANNERS,
    Op.UNPOOL: (unpooling.scatter,),
    Op.UNPOOL_INPUT_GRAD: (unpooling.gather,),
}
