"""Blocks on several threads, with the same bits for any number of them.

OpenBLAS spread over threads splits a product where the thread count says, and its edge kernels round
differently: the same call gave other bits with one thread than with two. So BLAS runs in one thread here, on
blocks whose shape the plan fixed, and the blocks run side by side (NumPy releases the GIL while it copies and
multiplies). Each thread has its own scratch, made once for all its blocks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from typing import Any, TypeVar

from fastconv.backends.blocks import Scratch
from fastconv.threads import get_num_threads, single_threaded_blas

T = TypeVar("T")


_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _workers() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(os.cpu_count() or 1, 1), thread_name_prefix="fastconv")
        return _pool


def _start(work: Callable[..., None], *arguments: Any) -> Future[None]:
    """Run `work` on another thread in this one's context, which holds NumPy's error handling."""
    return _workers().submit(copy_context().run, work, *arguments)


def _after_fork() -> None:
    """A child has none of its parent's threads."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _gather(futures: Sequence[Future[None]]) -> None:
    """Wait for all, then raise what the first of them raised."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]


def each(items: Iterable[T], work: Callable[[T, Scratch], None], at_once: int, nbytes: int) -> None:
    """Do `work(item, scratch)` for items that do not touch each other's results.

    On `at_once` threads at most, each with `nbytes` of scratch.
    """
    count = min(at_once, get_num_threads())
    scratches = [Scratch(nbytes) for _ in range(max(count, 1))]
    left = iter(items)
    turn, stop = threading.Lock(), threading.Event()

    def loop(scratch: Scratch) -> None:
        while not stop.is_set():
            with turn:
                item = next(left, None)
            if item is None:
                return
            scratch.reset()
            work(item, scratch)

    with single_threaded_blas():
        if count <= 1:
            loop(scratches[0])
            return
        futures = [_start(loop, scratch) for scratch in scratches[1:]]
        try:
            loop(scratches[0])
        finally:
            stop.set()  # all done, or interrupted: nobody starts another block
            _gather(futures)


def in_order(
    items: Iterable[T],
    work: Callable[[T, Scratch], Any],
    finish: Callable[[T, Any], None],
    at_once: int,
    nbytes: int,
) -> None:
    """As :func:`each`, but `finish(item, result)` is done in the order of the items: sums keep their bits."""
    count = max(min(at_once, get_num_threads()), 1)
    scratches = [Scratch(nbytes) for _ in range(count)]
    left = iter(items)
    with single_threaded_blas():
        while group := list(islice(left, count)):
            results: list[Any] = [None] * len(group)

            def one(place: int, group: Sequence[T] = group, results: list[Any] = results) -> None:
                scratches[place].reset()
                results[place] = work(group[place], scratches[place])

            futures = [_start(one, place) for place in range(1, len(group))]
            try:
                one(0)
            finally:
                _gather(futures)
            for item, result in zip(group, results, strict=True):
                finish(item, result)
