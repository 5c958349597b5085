"""How many threads a call may use. The number never changes a result, not by one bit."""

from __future__ import annotations

import numbers
import os

__all__ = ["available_cpus", "get_num_threads", "set_num_threads"]

_num_threads: int | None = None


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
