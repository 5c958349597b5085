"""Running tasks of a compiled kernel on threads: TBB's, or Python's where Numba has no TBB."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numba
import numpy as np
from numba import carray, types
from numba.extending import register_jitable

from fastconv.backends.numba import jit
from fastconv.backends.numba.kernels.simd import LINE, call_kernel, pointer
from fastconv.backends.numba.operands import address, put_range
from fastconv.threads import get_num_threads

# A call may be interrupted (Ctrl-C) between shares of the work that take about this long.
PATIENCE = 0.25

# The least work of a thread, by the estimate. On a Zen 3 calls of 20 to 100 us took 1.0 to 1.1 times as long with two
# threads as with one, those of 100 to 200 us 0.8 times.
SHARE_SECONDS = 25e-6

# TBB's threads look for work for about a millisecond; after a pause as long as this one they may be asleep.
PAUSE = 0.2e-3

# Threads that are kept away from their caller's CPU: with more CPUs than this, Linux finds an idle one.
HELPERS = 7
# A set of CPUs as Linux reads it, in words of 64.
CPU_SET = 16
# A helper in the table: its thread, the CPUs it may use, and those without the caller's.
ROW = 1 + 2 * CPU_SET


def warm(dtypes: Sequence[str]) -> Iterator[str]:
    """Compile every kernel for these types, and the loops that start them; each one's name when it is done."""
    _serial(), _parallel()
    for kernel in jit.KERNELS:
        for dtype in dtypes:
            if dtype in kernel.dtypes:
                kernel.compile(dtype)
                yield f"{kernel.__name__} {dtype}"


@cache
def _load_tbb() -> bool:
    """Let Numba find TBB, the one threading layer that survives many callers and a fork.

    pip puts ``libtbb`` under ``sys.prefix/lib``, where no loader looks; once loaded it is found by name.
    """
    names = {"win32": ["tbb12.dll"], "darwin": ["libtbb.12.dylib"]}.get(sys.platform, ["libtbb.so.12"])
    folders = [Path(sys.prefix) / "lib", Path(sys.prefix) / "Library" / "bin", None]
    for folder in folders:
        for name in names:
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(folder / name) if folder else name, mode=ctypes.RTLD_GLOBAL)
                break
    try:
        importlib.import_module("numba.np.ufunc.tbbpool")
    except ImportError:
        return False
    return True


# ---------------------------------------------------------------------------- where helpers wake
#
# Linux lets a thread wake where it slept, also if its caller computes there and another CPU is idle, when all were
# busy a moment ago. The two then share a CPU until the next balancing, 4 to 10 ms later: on two CPUs, forty calls of
# 140 us took 228 each. So helpers that may be asleep are kept away from the caller's CPU until they have woken.

_gettid = types.ExternalFunction("gettid", types.int32())
_getcpu = types.ExternalFunction("sched_getcpu", types.int32())
_get_cpus = types.ExternalFunction("sched_getaffinity", types.int32(types.int32, types.uint64, types.uint64))
_set_cpus = types.ExternalFunction("sched_setaffinity", types.int32(types.int32, types.uint64, types.uint64))


@cache
def _can_place() -> bool:
    """Whether the C library has what placing needs."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    return all(hasattr(library, name) for name in ("gettid", "sched_getcpu", "sched_setaffinity"))


@register_jitable
def _keep_away(table):  # type: ignore[no-untyped-def]
    """Forbid helpers the CPU this thread runs on. One that has ended is forgotten."""
    cpu = _getcpu()
    if cpu < 0 or cpu >= 64 * CPU_SET:
        return
    for h in range(HELPERS):
        row = carray(pointer(table + 8 * ROW * h, types.uint64), ROW)
        allowed = table + 8 * (ROW * h + 1)
        others = allowed + 8 * CPU_SET
        if row[0] and _get_cpus(row[0], 8 * CPU_SET, allowed) == 0:
            for i in range(1, 1 + CPU_SET):
                row[i + CPU_SET] = row[i]
            row[1 + CPU_SET + cpu // 64] &= ~(np.uint64(1) << np.uint64(cpu % 64))
            _set_cpus(row[0], 8 * CPU_SET, others)
        else:
            row[0] = 0


@register_jitable
def _let_go(table):  # type: ignore[no-untyped-def]
    """Allow helpers again what they were allowed before; they stay where they woke."""
    for h in range(HELPERS):
        row = carray(pointer(table + 8 * ROW * h, types.uint64), ROW)
        if row[0]:
            _set_cpus(row[0], 8 * CPU_SET, table + 8 * (ROW * h + 1))


@register_jitable
def _enlist(table, thread):  # type: ignore[no-untyped-def]
    """Remember a helper. Two that write the same row lose one, who writes again at the next call."""
    for h in range(HELPERS):
        row = carray(pointer(table + 8 * ROW * h, types.uint64), ROW)
        if row[0] == thread:
            return
        if not row[0]:
            row[0] = thread
            return


# ---------------------------------------------------------------------------- loops over workers


@cache
def _serial() -> Any:
    @jit.compiled((types.int64, types.int64, types.int64))
    def serial(kernel, worker, arguments):  # type: ignore[no-untyped-def]
        call_kernel(kernel, worker, arguments)

    return serial


@cache
def _parallel() -> Any:
    """The one parallel loop of the backend, or None where Numba has no threading layer that cannot abort."""
    # A program that runs Numba code of its own chose its layer already; what it chose we cannot vouch for.
    chosen = numba.config.THREADING_LAYER
    if not _load_tbb() or chosen not in ("default", "safe", "threadsafe", "forksafe", "tbb"):
        return None
    try:
        if numba.threading_layer() != "tbb":
            return None
    except ValueError:  # no layer yet: ours is the first
        numba.config.THREADING_LAYER = "tbb"

    if _can_place():

        @jit.compiled((types.int64, types.int64, types.int64, types.int64), parallel=True)
        def parallel(kernel, workers, arguments, table):  # type: ignore[no-untyped-def]
            caller = 0
            if table:
                caller = _gettid()
                _keep_away(table)
            for worker in numba.prange(workers):
                if table:
                    thread = _gettid()
                    if thread == caller:
                        _let_go(table)
                    else:
                        _enlist(table, thread)
                call_kernel(kernel, worker, arguments)

    else:

        @jit.compiled((types.int64, types.int64, types.int64, types.int64), parallel=True)
        def parallel(kernel, workers, arguments, table):  # type: ignore[no-untyped-def]
            for worker in numba.prange(workers):
                call_kernel(kernel, worker, arguments)

    numba.config.THREADING_LAYER = chosen
    return parallel


_table = np.zeros((HELPERS, ROW), np.uint64)
_placing = threading.Lock()
_ended = 0.0


def _run_parallel(parallel: Any, kernel: int, workers: int, arguments: int) -> None:
    """The loop; one caller at a time places helpers, after a pause."""
    global _ended
    placing = _can_place() and perf_counter() - _ended > PAUSE and _placing.acquire(blocking=False)
    try:
        parallel(kernel, workers, arguments, address(_table) if placing else 0)
    finally:
        _ended = perf_counter()
        if placing:
            _placing.release()


_pool: ThreadPoolExecutor | None = None
_making = threading.Lock()


def _after_fork() -> None:
    """A child has none of its parent's threads."""
    global _pool, _making, _placing
    _pool, _making, _placing = None, threading.Lock(), threading.Lock()
    _table[:] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _python_threads(kernel: int, workers: int, arguments: int) -> None:
    """The same loop on Python threads: 45 us to start where TBB takes 3, and safe everywhere."""
    global _pool
    with _making:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(os.cpu_count() or 1, 1), thread_name_prefix="fastconv")
        pool = _pool
    others = [pool.submit(_serial(), kernel, worker, arguments) for worker in range(1, workers)]
    _serial()(kernel, 0, arguments)
    for other in others:
        other.result()


def workers(at_once: int) -> int:
    """Threads a call that can use `at_once` may take now.

    Never more than Numba started with: on one CPU, asked for two, TBB waits for a thread that never comes when the
    process has been forked.
    """
    return 1 if at_once < 2 else min(at_once, get_num_threads(), numba.config.NUMBA_NUM_THREADS)


@lru_cache(maxsize=1024)
def _ranges(begin: int, stop: int, workers: int) -> np.ndarray[Any, Any]:
    """Tasks `begin` .. `stop` - 1 in even shares, one for each worker to begin with (``next_task``)."""
    made = np.zeros((1 + workers, LINE), np.int64)
    bounds = [begin + (stop - begin) * worker // workers for worker in range(workers + 1)]
    made[0, 0], made[1:, 0], made[1:, 1] = workers, bounds[:-1], bounds[1:]
    return made


def launch(kernel: int, arguments: np.ndarray[Any, Any], tasks: int, workers: int, seconds: float) -> None:
    """Run tasks 0 .. `tasks` - 1 of a compiled kernel on `workers` threads.

    Parameters
    ----------
    kernel : int
        ``Kernel.address``.
    arguments : array of int64
        What the kernel reads; the first two are where tasks are taken from, and where to stop: both are set here.
    seconds : float
        The plan's estimate, or 0 for none: short work is done by fewer threads, long work in shares, between which
        Ctrl-C is heard.
    """
    at = address(arguments)
    if seconds:
        workers = min(workers, 1 + int(seconds / SHARE_SECONDS))
    if workers == 1 and seconds <= 2 * PATIENCE:
        put_range(arguments, 0, tasks)
        _serial()(kernel, 0, at)
        return
    share = tasks if seconds <= 2 * PATIENCE else max(int(tasks * PATIENCE / seconds), 4 * workers)
    done = 0
    while done < tasks:
        begin, done = done, min(done + share, tasks)
        if workers == 1:
            put_range(arguments, begin, done)
            _serial()(kernel, 0, at)
            continue
        ranges = _ranges(begin, done, workers).copy()
        put_range(arguments, -address(ranges), done)
        if (parallel := _parallel()) is not None:
            _run_parallel(parallel, kernel, workers, at)
        else:
            _python_threads(kernel, workers, at)
