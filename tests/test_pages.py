"""Memory of large results is used again, and never while anything looks at it."""

from __future__ import annotations

import gc
import mmap
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv.backends.numba import pages

pytestmark = pytest.mark.skipif(not pages._can_keep, reason="a system without MADV_FREE")

LARGE = (pages.MAPPED_BYTES // 4,)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    gc.collect()  # results that tests before left in reference cycles would be dropped, and kept, in the midst of one here
    pages._kept.clear()
    yield
    pages._kept.clear()


def place(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def kept() -> int:
    return sum(map(len, pages._kept))


def test_a_dropped_results_memory_is_used_again() -> None:
    first = pages.empty(LARGE, "float32")
    at = place(first)
    del first
    assert kept() == pages.MAPPED_BYTES
    second = pages.empty((2, LARGE[0] // 2), "float32")
    assert place(second) == at
    assert second.flags.writeable
    assert second.flags.c_contiguous
    assert not kept()


@pytest.mark.parametrize("view", [lambda a: a[5:], lambda a: a.reshape(2, -1).T, lambda a: memoryview(a)])
def test_memory_that_a_view_looks_at_is_not_used(view: Any) -> None:
    first = pages.empty(LARGE, "float32")
    first[:] = 7
    seen = view(first)
    del first
    assert not kept()
    second = pages.empty(LARGE, "float32")
    second[:] = 1
    assert np.all(np.asarray(seen) == 7)


def test_what_is_kept_has_a_bound_and_other_sizes_stay() -> None:
    results = [pages.empty(LARGE, "float32") for _ in range(pages.KEPT_BYTES // pages.MAPPED_BYTES + 2)]
    results.clear()
    assert kept() == pages.KEPT_BYTES
    pages.empty((2 * LARGE[0],), "float32")
    assert kept() == pages.KEPT_BYTES
    assert len(pages._kept[-1]) == 2 * pages.MAPPED_BYTES


def test_small_results_leave_what_is_kept() -> None:
    pages.empty(LARGE, "float32")
    pages.empty((1 << 20,), "float32")
    pages.empty((4,), "float32")
    assert kept() == pages.MAPPED_BYTES


def test_without_memory_what_is_kept_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    pages.empty((2 * LARGE[0],), "float32")
    monkeypatch.setattr(mmap, "mmap", full)
    result = pages.empty(LARGE, "float32")
    assert not kept()
    assert result.shape == LARGE


def test_many_threads_take_and_drop() -> None:
    """Each finds in its result what it wrote there."""
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            result = pages.empty(LARGE, "float32")
            result[:: 1 << 16] = number
            if not np.all(result[:: 1 << 16] == number):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kept() <= pages.KEPT_BYTES


def test_a_convolutions_result_is_right_in_used_memory() -> None:
    """Every element of the memory is written: poisoned by the result before."""
    x = np.random.default_rng(0).standard_normal((1, 1, 2048, 2048)).astype("f4")
    w = np.ones((3, 1, 1, 1), "f4")
    before = pages.empty((1, 3, 2048, 2048), "float32")
    before[:] = np.nan
    del before
    assert kept() == 3 * x.nbytes
    result = fc.conv2d(x, w, backend="numba")
    assert not kept()
    np.testing.assert_array_equal(result, np.broadcast_to(x, result.shape))
