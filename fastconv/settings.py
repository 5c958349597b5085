"""How things are run: which backend is meant when none is named, and how many threads it may use.

Settings never enter a spec, and no setting changes a result: thread counts do not change bits.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

from fastconv.backends import check

__all__ = ["get_backend", "get_num_threads", "set_backend", "set_num_threads", "use_backend"]

# Read once; a wrong name is reported by the first call that needs a backend, not by `import fastconv`.
_default = os.environ.get("FASTCONV_BACKEND", "auto")
_chosen: ContextVar[str | None] = ContextVar("fastconv_backend", default=None)
_num_threads: int | None = None


def set_backend(name: str) -> None:
    """Make `name` the backend of every call that names none, in all threads without a ``use_backend``.

    Parameters
    ----------
    name : str
        One of the names of :func:`fastconv.backends`, or ``"auto"``: the best one for the arrays given.

    Raises
    ------
    ValueError
        If there is no such backend.
    BackendUnavailable
        If it cannot run here; the message says why and what to install.
    """
    global _default
    check(name, "name")
    _default = name


def get_backend() -> str:
    """Name of the backend that a call without ``backend=`` uses here and now."""
    return _chosen.get() or _default


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use backend `name` inside a ``with`` block, in this thread or async task only.

    Raises
    ------
    ValueError, BackendUnavailable
        As :func:`set_backend`.

    Examples
    --------
    >>> import fastconv as fc
    >>> with fc.use_backend("naive"):
    ...     fc.get_backend()
    'naive'
    """
    check(name, "name")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def set_num_threads(n: int) -> None:
    """Let every backend use at most `n` threads, in this process.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer of at least 1.
    """
    global _num_threads
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n: got {n!r}, expected an int")
    if n < 1:
        raise ValueError(f"n: got {n}, expected at least 1")
    _num_threads = n


def get_num_threads() -> int:
    """Threads a call may use: what was set, else the CPUs this process may run on."""
    return _num_threads or available_cpus()


def available_cpus() -> int:
    """CPUs this process may run on (its affinity mask, where the system has one)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_were_set() -> bool:
    """Whether anybody called :func:`set_num_threads`; if not, BLAS is left as the user configured it."""
    return _num_threads is not None
