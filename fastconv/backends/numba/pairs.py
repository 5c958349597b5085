"""Windows at a stride of 2, spread two rows at a time: what a depthwise convolution's gradient and an average's share."""

from __future__ import annotations

import numpy as np

from fastconv.backends.numba import cost, jit, threads
from fastconv.backends.numba.geometry import Geometry
from fastconv.backends.numba.kernels import pairs as kernels
from fastconv.backends.numba.operands import Array, address, set_fields, setter
from fastconv.backends.numba.planes import moved, task
from fastconv.spec import DTYPES

KERNELS = {
    (3, True): jit.Kernel(kernels.pairs(3, 1)),
    (3, False): jit.Kernel(kernels.pairs(3, 0), jit.REAL),
    (2, False): jit.Kernel(kernels.pairs(2, 0), jit.REAL),
}

# Cycles of four vectors in two rows, and of a plane.
PAIR_CYCLES, PLANE_CYCLES = 14, 60

put = setter(kernels.ARGUMENTS)


class Pairs:
    """What spreads `count` planes of one geometry, with weights, or divided by `divisor`.

    Attributes
    ----------
    seconds : float
        The estimate for one plane.
    tasks : int
    per_worker : int
        Bytes of scratch of a thread: none.
    """

    per_worker = 0

    def __init__(
        self, g: Geometry, dtype: str, count: int, channels: int = 1, divisor: float | None = None
    ) -> None:
        lanes, itemsize = cost.lanes(dtype), DTYPES[dtype].itemsize
        (_, h, width), (_, oh, ow) = g.size, g.out
        blocks = -(-width // (2 * lanes))
        cycles = (h // 2 + 1) * blocks * PAIR_CYCLES * cost.SLOWER[dtype] + PLANE_CYCLES
        self.seconds = max(cycles * cost.CYCLE, moved((h * width + oh * ow) * itemsize, count))
        self.step = task(self.seconds, count)
        self.tasks = -(-count // self.step)
        self.wide = dtype
        self.kernel = KERNELS[g.kernel[2], divisor is None]
        self.divisor = None if divisor is None else np.array(divisor, dtype)
        self.zeros = np.zeros(max(ow, 1), dtype)
        template = np.zeros(1, kernels.ARGUMENTS)
        set_fields(
            template, zeros=address(self.zeros), step=self.step, channels=channels, h=h, width=width, oh=oh, ow=ow,
            before_h=g.before[1], before_w=g.before[2], blocks=blocks, past=cost.is_past(count * h * width, width, dtype),
        )  # fmt: skip
        self.fields = template.view(np.int64)

    @staticmethod
    def take(g: Geometry) -> bool:
        """Whether windows are square, of 2 or 3 rows, at a stride of 2."""
        plane = (g.size[0], g.out[0], g.kernel[0], g.before[0], g.after[0]) == (1, 1, 1, 0, 0)
        square = g.kernel[1] == g.kernel[2] and g.kernel[2] in (2, 3)
        return plane and square and g.stride[1:] == (2, 2) and g.dilation[1:] == (1, 1)

    def __call__(self, dy: int, dx: int, count: int, at_once: int, *, w: int = 0, bias: int = 0) -> None:
        """Spread so many planes on as many threads as may be; operands are addresses."""
        a: Array = self.fields.copy()
        put(a, dy=dy, dx=dx, w=w or address(self.divisor), bias=bias, planes=count)
        tasks = -(-count // self.step)
        workers = min(threads.workers(at_once), tasks)
        threads.launch(self.kernel.address(self.wide), a, tasks, workers, count * self.seconds)
