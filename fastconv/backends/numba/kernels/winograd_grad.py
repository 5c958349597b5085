"""Winograd's minimal filtering turned round: the gradient of the weights.

A convolution by ``y = A^T [ (G w G^T) * (B^T x B) ] A`` is linear in w, so its gradient is the transpose::

    dw = G^T [ sum over tiles of (A dy A^T) * (B^T x B) ] G

The sum over tiles is a matrix product for each place of a tile: vectors lie along the input channels, scalars along the
output channels, and tiles are the terms. A round's sums are added to those of the rounds before, so that their rounding
errors stay those of a few hundred terms, and transformed once at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, from_dtype, types

from .simd import host, next_task, pointer, store_transposed
from .tile import SLOT, VECTORS, scalars, tile_in_a_row
from .winograd import FORMS, fill_whole_slots, note_spoiled, transform_sums

FIELDS = (
    "next stop "  # the next task, and where to stop
    "x dy sums w scratch "  # addresses: transformed tiles of both, their products' sums, and the result
    "scratch_size "  # bytes of a worker's scratch
    "x_step dy_step sums_step "  # elements from one place of a tile to the next
    "count room more "  # tiles of this round, for how many there is room, and whether there were rounds before
    "c o vectors "  # input and output channels, vectors of the former
    "o_step o_tasks "  # output channels of a task, tasks along them
    "spoiled"  # set where a result is not finite
)
ARGUMENTS = np.dtype([(name, np.int64) for name in FIELDS.split()])
RECORD = from_dtype(ARGUMENTS)


def block(lanes: int) -> int:
    """Output channels whose tiles lie together: a tile's scalars are neighbours, and transforms write vectors."""
    return max(scalars(host()), lanes)


def products(F: int) -> Any:
    """A factory of tasks that multiply: a place, a block of output channels.

    One after the other they share a place's tiles of the input, which stay in a core's L2.
    """

    def winograd_gradient_products(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size
        NS, WK = scalars(host()), block(lanes)
        PITCH = VECTORS * lanes

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            at_slots = a.scratch + worker * a.scratch_size
            slots = carray(pointer(at_slots, types.int64), (VECTORS, SLOT))
            fill_whole_slots(slots, lanes)
            while True:
                task = next_task(arguments, worker)
                if task >= a.stop:
                    return
                f, ob = divmod(task, a.o_tasks)
                o0, o1 = ob * a.o_step, min((ob + 1) * a.o_step, a.o)
                for p in range(0, a.vectors, VECTORS):
                    x = a.x + size * (f * a.x_step + p * lanes * a.room)
                    at_sums = a.sums + size * (f * a.sums_step + (p * a.o + o0 * VECTORS) * lanes)
                    for o in range(o0, o1, NS):
                        dy = a.dy + size * (f * a.dy_step + o // WK * WK * a.room + o % WK)
                        tile_in_a_row(
                            NS, WK, T, min(a.vectors - p, VECTORS), a.count, x, at_slots, dy, 1,
                            at_sums + size * (o - o0) * PITCH, PITCH, min(NS, a.o - o), 0, a.more, 0,
                        )  # fmt: skip

        return work

    winograd_gradient_products.__name__ = f"winograd_gradient_products_{F}"
    return winograd_gradient_products


def results(F: int) -> Any:
    """A factory of tasks that transform sums: an output channel."""
    form = FORMS[F]
    taps = form.rh * form.rw

    def winograd_gradient_results(T: Any) -> Any:
        size = T.bitwidth // 8
        lanes = host().width // size

        def work(worker, arguments):  # type: ignore[no-untyped-def]
            a = carray(pointer(arguments, RECORD), 1)[0]
            at_check = a.scratch + worker * a.scratch_size
            at_stage = at_check + lanes * size
            check = carray(pointer(at_check, T), lanes)
            for i in range(lanes):
                check[i] = 0
            while True:
                o = next_task(arguments, worker)
                if o >= a.stop:
                    break
                for v in range(a.vectors):
                    p, i = divmod(v, VECTORS)
                    sums = a.sums + size * ((p * a.o + o) * VECTORS + i) * lanes
                    transform_sums(F, T, at_stage, sums, a.sums_step, at_check)
                    to = a.w + size * (o * a.c + v * lanes) * taps
                    for t in range(0, taps, lanes):
                        store_transposed(
                            T, to + size * t, taps, at_stage + size * t * lanes, a.c - v * lanes, taps - t, 0
                        )
            note_spoiled(a, check, lanes)

        return work

    winograd_gradient_results.__name__ = f"winograd_gradient_results_{F}"
    return winograd_gradient_results
