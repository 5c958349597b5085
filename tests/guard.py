"""Arrays that begin or end exactly at memory nobody may touch: one element too far kills the process."""

from __future__ import annotations

import ctypes
import math
import mmap
from typing import Any

import numpy as np

Array = Any

_libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Makes such arrays and keeps their memory until it is closed."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self._maps: list[tuple[mmap.mmap, Any]] = []

    def copy(self, array: Array) -> Array:
        """`array` in C order between two unreadable pages, flush with the one behind it or before it."""
        page = mmap.PAGESIZE
        pages = max(math.ceil(array.nbytes / page), 1)
        memory = mmap.mmap(-1, (pages + 2) * page)
        buffer = (ctypes.c_char * ((pages + 2) * page)).from_buffer(memory)
        begin = ctypes.addressof(buffer)
        for at in (begin, begin + (pages + 1) * page):
            if _libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self._maps.append((memory, buffer))
        offset = (pages + 1) * page - array.nbytes if self.at_end else page
        flat = np.frombuffer(buffer, np.uint8)[offset : offset + array.nbytes]
        guarded = flat.view(array.dtype).reshape(array.shape)
        guarded[...] = array
        return guarded
