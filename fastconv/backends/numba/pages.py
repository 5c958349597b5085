"""Memory of results: aligned, its pages there, and those of large dropped results kept for the next."""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref
from collections import deque
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.backends.numba.operands import ALIGNMENT, address

# Linux's large pages, which NumPy asks for from two of them on.
PAGE_BYTES = 2 << 20

# Results from this size on begin with a cache line, as NumPy's do not: the next layer, if it reads vectors where they
# lie, is up to a tenth faster, a pool a quarter. Below, 1 us for it is more.
ALIGNED_BYTES = 64 << 10

# From 32 MB on the C library asks the system for each array anew, and smaller ones it gives back too where a network drops
# several: pages that must be cleared, 4.0 ms for 51 MB which take 1.3 to write. So that much memory of dropped results is
# kept, marked as free: the system takes it when it is short. Of results of 13 MB it took it while others computed, and 64
# channels of 224 x 224 took 1.2 times as long.
MAPPED_BYTES = 16 << 20
KEPT_BYTES = 256 << 20

_kept: deque[mmap.mmap] = deque()
_can_keep = all(
    hasattr(mmap, name) for name in ("MADV_FREE", "MADV_HUGEPAGE", "MAP_PRIVATE", "MAP_ANONYMOUS")
)


def _keep(memory: mmap.mmap) -> None:
    """A large result has been dropped; whoever drops it may be in the midst of anything, so nothing waits here."""
    with contextlib.suppress(OSError):  # a system that knows no such marks gets the memory back
        memory.madvise(mmap.MADV_FREE)
        _kept.append(memory)
    with contextlib.suppress(IndexError):  # another thread took the last one
        while sum(map(len, tuple(_kept))) > KEPT_BYTES:
            _kept.popleft()


def _mapped(nbytes: int) -> np.ndarray[Any, Any]:
    """Bytes of a large result: a dropped one's of the same size, to a large page, or new."""
    nbytes = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
    memory = None
    with contextlib.suppress(IndexError):
        for _ in range(len(_kept)):
            if len(memory := _kept.popleft()) == nbytes:
                break
            _kept.append(memory)
            memory = None
    if memory is None:
        try:
            memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:  # too little memory: NumPy, with what was kept, may have enough, or else has an error
            _kept.clear()
            return np.empty(nbytes + ALIGNMENT, np.uint8)
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    held = np.frombuffer(memory, np.uint8)
    weakref.finalize(held, _keep, memory).atexit = False
    return held


@lru_cache(maxsize=1024)
def _sizes(shape: tuple[int, ...], dtype: str) -> tuple[np.dtype[Any], int]:
    """The type as NumPy has it, and bytes in all: to find them anew takes as long as the memory."""
    kind = np.dtype(dtype)
    return kind, math.prod(shape) * kind.itemsize


def empty(shape: tuple[int, ...], dtype: str) -> Any:
    """An array of this backend's kind, whose pages are there.

    Two threads that meet new pages for the first time wait for each other: 11 ms where a 1x1 convolution to 51 MB takes
    3, and touching the pages ahead 1.7.
    """
    kind, nbytes = _sizes(shape, dtype)
    if nbytes < ALIGNED_BYTES:
        return np.empty(shape, kind)
    held = _mapped(nbytes) if nbytes >= MAPPED_BYTES and _can_keep else np.empty(nbytes + ALIGNMENT, np.uint8)
    if nbytes >= 2 * PAGE_BYTES:
        held[::PAGE_BYTES] = 0
    return np.ndarray(shape, kind, held, -address(held) % ALIGNMENT)
