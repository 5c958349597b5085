"""The cost model: what each part of an algorithm takes on the reference machine, in seconds.

Only comparisons between algorithms (and between ways of cutting one) count. The number of threads is not in it:
it would change which algorithm runs, and with it the bits of the result.

The constants were fitted to a Zen 5 with AVX-512 (L1 caches of 48 KB, L2 of 2 MB) and, where two stand side by side, to a Zen
3 with AVX2 (32 KB, 512 KB): :func:`here` takes the one whose vectors the host has. ``benchmarks/engine.json`` holds what
every algorithm took on the Zen 5 beside its estimate: of the 560 layers, and ways to call them, that leave a choice, the one with the
least estimate was within 5 % of the fastest for 547. ``python -m benchmarks.engine --fit`` looks for constants that would do
better.
"""

from __future__ import annotations

from typing import TypeVar

from fastconv.backends.numba.kernels.simd import LINE_BYTES, host
from fastconv.backends.numba.kernels.tile import VECTORS, scalars
from fastconv.spec import DTYPES

T = TypeVar("T")


def here(zen5: T, zen3: T) -> T:
    """What was measured on the machine that is more like the host: one with AVX-512, one with AVX2."""
    return zen5 if host().masks else zen3


# One core of the reference machine, Zen 5 at 4.3 GHz: two FMAs of 64 bytes in a cycle, 275 GF/s of float32.
CYCLE = 1 / 4.3e9
FMAS = 2

# The cycles of a multiply-add as a multiple of a float's: 32- and 64-bit multiplications are not fused.
SLOWER = {"float32": 1.0, "float64": 1.0, "int32": 2.0, "int64": 3.0}

# A tile of one or two vectors loads as many weights as one of three; of one by four scalars the sums wait for one another.
NARROW = (0.0, 1.25, 1.04, 1.01) if host().registers == 32 else (0.0, 2.1, 1.1, 1.01)

# Starting a tile and storing its results, with the loop's end that is foretold wrongly; starting a task; one vector or one row copied into a slab.
TILE_CYCLES = here(60, 100)
TASK_SECONDS = 0.5e-6
COPY_CYCLES = 5
ROW_CYCLES = 12

# One vector copied to a panel.
PANEL_CYCLES = here(3, 2)

# A channel that is copied to a panel from where it lies, pages from the one before. Without this 512 output channels were
# cut into fives, each of which reads all images anew: 0.56 of the FMA peak where two reach 0.72.
CHANNEL_CYCLES = here(14, 36)

# A line of an input that is larger than this, if it comes to a panel, or to channels that are not all there are; one of a
# result that is, if it is turned.
FAR_BYTES, FAR_CYCLES = 2 << 20, here(5, 0)

# What the cores share. A larger result goes past the caches: no line is fetched to be written, and none that is still read is
# dropped. 16 images of 32 x 112 x 112 to 64 took 5.9 ms, and 3.8 so. From 8 MB on instead, two threads took 1.14 to 1.25 times
# as long where they called again and again, 64 channels of 224 x 224 of one image.
SHARED_CACHE = 16 << 20

# An element of a matrix that `slabs.orderer` turns.
ORDER_CYCLES = 5

# A weight that a task turns for its own tiles.
PACK_CYCLES = 1.2

# A tile that reads more products than a panel holds, without one: 0.38 of the FMA peak where panels reach 0.52.
BEYOND_L1 = 1.4

# A tile that finds each product by a table, not in a row: 24 instructions for 12 multiply-adds, where 21 do.
BY_TABLE = 1.15

# Reading channels that lie a multiple of 4096 bytes apart, which fall on the same lines of the L1 cache, without a panel and
# with one: the gradient of 3 x 224 x 224 by 64 channels took 12.2 ms where they lie, 2.4 copied.
SAME_LINES = 6.0, 1.5

# Reading from memory or the shared cache, one core.
BYTES = 3e10

# The part of that which arithmetic does not hide.
EXPOSED = here(0.05, 0.6)

# What a call costs before its first task and after its last, in Python.
CALL_SECONDS = 5e-6


def lanes(dtype: str) -> int:
    """Elements of one of the host's vectors."""
    return host().width // DTYPES[dtype].itemsize


def tiles(dtype: str, vectors: int, o: int, K: int) -> float:
    """`vectors` vectors of output positions, for `o` output channels, each a sum of K products."""
    NS = scalars(host())
    full, rest = divmod(vectors, VECTORS)
    if full and rest == 1:  # two tiles of two
        full, rest = full - 1, 4
    step = NS / FMAS * (full * VECTORS * NARROW[VECTORS] + rest * NARROW[min(rest, 2)]) * SLOWER[dtype]
    cycles = K * step + (full + -(-rest // 2)) * TILE_CYCLES
    return -(-o // NS) * cycles * CYCLE


def traffic(nbytes: float) -> float:
    """What a task reads for the first time, beside its arithmetic."""
    return EXPOSED * nbytes / BYTES


def moving(nbytes: float) -> float:
    """What one thread takes to copy, turn or weave so much: no more than tells whether a second one is worth waking."""
    return nbytes / 1.5e10


def task_seconds(task: float, tasks: int) -> float:
    """All tasks, and half a one more for which a thread waits at the end.

    So a problem is cut finer until starting tasks costs more than waiting, whatever the number of threads.
    """
    return tasks * (task + TASK_SECONDS) + task / 2


def is_past(elements: int, row: int, dtype: str) -> bool:
    """Whether a result is written past the caches: if it is larger, and vectors fill the lines of each of its rows.

    A line that is written in part comes back to be completed: gradients of 56 x 56 took 1.8 times as long so.
    """
    itemsize = DTYPES[dtype].itemsize
    whole = host().width == LINE_BYTES and row * itemsize % LINE_BYTES == 0
    return whole and elements * itemsize > SHARED_CACHE
