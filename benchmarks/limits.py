"""What a machine can do at all: multiply-adds from registers, and copies of memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.numba.kernels.simd import ELEMENTS, multiply_add, splat, sum_lanes

# Independent sums: two units of four cycles' latency are busy with 8, and 16 registers hold 12 and two operands.
SUMS = 12

# What one thread copies before a second one has started.
SMALL_COPY = 1 << 20

# Multiply-adds of one call for each sum, by threads: 1 ms, which a busy machine seldom interrupts, and where a second
# thread must be started 4 ms, beside which its 50 us hardly count.
ROUNDS = {1: 750_000, 2: 3_000_000}


@intrinsic  # type: ignore[untyped-decorator]
def _multiply_adds(typing: Any, rounds: Any) -> Any:
    """``x = x * a + b`` on SUMS vectors, `rounds` times; the sum of all, so that nothing is left out."""
    e = ELEMENTS[types.float32]

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        half = splat(builder, e.vector, ir.Constant(e.llvm, 0.5))
        sums = [cgutils.alloca_once_value(builder, half) for _ in range(SUMS)]
        with cgutils.for_range(builder, values[0]):
            for place in sums:  # LLVM keeps them in registers
                builder.store(multiply_add(builder, e, builder.load(place), half, half), place)
        total = builder.load(sums[0])
        for place in sums[1:]:
            total = builder.fadd(total, builder.load(place))
        return sum_lanes(builder, e, total)

    return types.float32(types.int64), codegen


@cache
def _spin() -> Callable[[int], float]:
    @numba.njit(types.float32(types.int64), nogil=True)
    def spin(rounds):  # type: ignore[no-untyped-def]
        return _multiply_adds(rounds)

    compiled: Callable[[int], float] = spin
    return compiled


@cache
def _helper(place: int) -> ThreadPoolExecutor:
    """One thread, on a CPU of its own."""
    return ThreadPoolExecutor(1, thread_name_prefix="limit", initializer=_stay, initargs=(place,))


CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _stay(place: int) -> None:
    """Keep this thread on one CPU: two threads that wake on the same one reach half of any limit."""
    if CPUS:
        os.sched_setaffinity(0, {CPUS[place % len(CPUS)]})


def _together(shares: list[Callable[[], Any]]) -> Callable[[], None]:
    """A call that runs every share on a thread of its own, the last one on the caller's."""
    *others, own = shares

    def call() -> None:
        if not others:
            own()
            return
        _stay(0)
        try:
            waiting = [_helper(place).submit(other) for place, other in enumerate(others, 1)]
            own()
            for other in waiting:
                other.result()
        finally:
            if CPUS:
                os.sched_setaffinity(0, CPUS)

    return call


def multiply_adds(threads: int) -> tuple[Callable[[], None], int]:
    """A call that does nothing but vector multiply-adds on `threads` threads, and its operations."""
    spin = _spin()
    rounds, lanes = ROUNDS[min(threads, 2)], ELEMENTS[types.float32].lanes
    return _together([lambda: spin(rounds)] * threads), 2 * lanes * SUMS * rounds * threads


def copying(nbytes: int, threads: int) -> Callable[[], None]:
    """A call of ``np.copyto`` on `threads` threads that reads and writes `nbytes` together."""
    if nbytes <= SMALL_COPY:
        threads = 1
    source = np.ones(math.ceil(nbytes / 8), "float32")
    target = np.empty_like(source)
    parts = [np.array_split(array, threads) for array in (target, source)]
    return _together([partial(np.copyto, *pair) for pair in zip(*parts, strict=True)])
