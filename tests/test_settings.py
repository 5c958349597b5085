"""Which backend runs: by call, by context, by default, by the variable; and how many threads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fastconv as fc

X, W = np.ones((1, 1, 4, 4), "f4"), np.ones((1, 1, 2, 2), "f4")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before, threads = fc.get_backend(), fc.get_num_threads()
    fc.set_backend("auto")
    yield
    fc.set_backend(before)
    fc.set_num_threads(threads)


def used() -> str:
    return fc.explain(fc.conv2d, X, W).backend


def test_auto_takes_the_best_available() -> None:
    assert fc.get_backend() == "auto"
    best = next(name for name, state in fc.backends().items() if state == "available")
    assert used() == best


def test_call_beats_context_beats_default() -> None:
    fc.set_backend("naive")
    assert used() == "naive"
    with fc.use_backend("im2col"):
        assert used() == "im2col"
        assert fc.explain(fc.conv2d, X, W, backend="naive").backend == "naive"
        with fc.use_backend("naive"):
            assert used() == "naive"
        assert used() == "im2col"
    assert used() == "naive"


def test_context_is_left_after_an_error() -> None:
    with pytest.raises(RuntimeError), fc.use_backend("naive"):
        raise RuntimeError
    assert fc.get_backend() == "auto"


def test_context_belongs_to_its_thread() -> None:
    seen = []
    with fc.use_backend("naive"):
        thread = threading.Thread(target=lambda: seen.append(fc.get_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_context_belongs_to_its_task() -> None:
    async def task(name: str) -> str:
        with fc.use_backend(name):
            await asyncio.sleep(0.01)
            return fc.get_backend()

    async def both() -> list[str]:
        return list(await asyncio.gather(task("naive"), task("im2col")))

    assert asyncio.run(both()) == ["naive", "im2col"]


def run(code: str, **variables: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    return result.stdout + result.stderr


def test_the_variable_is_read_at_import() -> None:
    assert run("import fastconv as fc; print(fc.get_backend())", FASTCONV_BACKEND="naive").strip() == "naive"


def test_a_wrong_variable_is_told_at_the_first_call() -> None:
    code = "import fastconv as fc, numpy as np; print('imported'); fc.conv1d(np.ones((1, 1, 3)), np.ones((1, 1, 2)))"
    text = run(code, FASTCONV_BACKEND="cudnn")
    assert text.startswith("imported")
    assert "FASTCONV_BACKEND: got 'cudnn', expected one of auto" in text


def test_threads_default_to_the_cpus_of_this_process() -> None:
    expected = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert run("import fastconv as fc; print(fc.get_num_threads())").strip() == str(expected)
    before = fc.get_num_threads()
    try:
        fc.set_num_threads(3)
        assert fc.get_num_threads() == 3
    finally:
        fc.set_num_threads(before)


def test_unavailable_backends_say_why() -> None:
    for name, state in fc.backends().items():
        if state != "available":
            with (
                pytest.raises(fc.BackendUnavailable, match=f"'{name}' is not available"),
                fc.use_backend(name),
            ):
                pass


def test_an_empty_variable_is_none() -> None:
    assert run("import fastconv as fc; print(fc.get_backend())", FASTCONV_BACKEND="").strip() == "auto"


def test_the_variable_is_read_once() -> None:
    code = (
        "import os, fastconv as fc; os.environ['FASTCONV_BACKEND'] = 'im2col'; print(fc.get_backend()); "
        "fc.set_backend('auto'); print(fc.get_backend())"
    )
    assert run(code, FASTCONV_BACKEND="naive").split() == ["naive", "auto"]


def test_an_unavailable_variable_is_told_at_the_first_call() -> None:
    missing = [name for name, state in fc.backends().items() if state != "available"]
    code = (
        "import fastconv as fc, numpy as np; x = np.ones((1, 1, 3)); print('imported'); "
        "print(fc.conv1d(x, x, backend='naive').shape); fc.conv1d(x, x)"
    )
    for name in missing[:1]:
        text = run(code, FASTCONV_BACKEND=name)
        assert text.startswith("imported\n(1, 1, 1)")
        assert f"BackendUnavailable: FASTCONV_BACKEND: {name!r} is not available" in text


def test_every_function_follows_the_switch() -> None:
    """Forward, gradient and prepared calls all use the backend that is set."""
    dy = np.ones((1, 1, 3, 3), "f4")
    calls: list[Any] = [
        (fc.conv2d, X, W), (fc.conv_transpose2d, X, W), (fc.max_pool2d, X, 2), (fc.avg_pool2d, X, 2), (fc.unfold, X, 2),
        (fc.lp_pool2d, X, 2, 2), (fc.adaptive_avg_pool2d, X, 2), (fc.grad.conv2d_input, X.shape, W, dy),
        (fc.grad.conv2d_weight, X, W.shape, dy), (fc.grad.avg_pool2d, np.ones((1, 1, 2, 2), "f4"), X, 2),
        (fc.prepare_conv2d(W), X),
    ]  # fmt: skip
    for name in ("naive", "im2col"):
        with fc.use_backend(name):
            assert {fc.explain(*call).backend for call in calls} == {name}


def test_a_refused_switch_changes_nothing() -> None:
    fc.set_backend("naive")
    for wrong in ("gpu", "", None, 3):
        with pytest.raises(ValueError, match="name: got"):
            fc.set_backend(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="name: got"), fc.use_backend(wrong):  # type: ignore[arg-type]
            pass
        assert fc.get_backend() == "naive"


def test_the_default_is_for_all_threads_and_contexts_hide_it() -> None:
    seen: dict[str, list[str]] = {"plain": [], "inside": []}
    inside, changed = threading.Event(), threading.Event()

    def with_context() -> None:
        with fc.use_backend("im2col"):
            inside.set()
            assert changed.wait(10)
            seen["inside"].append(used())
        seen["inside"].append(used())

    def plain() -> None:
        assert changed.wait(10)
        seen["plain"].append(used())

    threads = [threading.Thread(target=with_context), threading.Thread(target=plain)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    fc.set_backend("naive")
    changed.set()
    for thread in threads:
        thread.join()
    assert seen == {"plain": ["naive"], "inside": ["im2col", "naive"]}


def test_many_threads_each_in_its_own_context() -> None:
    names = ["naive", "im2col"] * 8
    barrier = threading.Barrier(len(names))

    def one(name: str) -> list[str]:
        with fc.use_backend(name):
            barrier.wait(10)
            found = [used() for _ in range(20)]
            barrier.wait(10)
        return [*found, fc.get_backend()]

    with ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(one, names)) == [[name] * 20 + ["auto"] for name in names]


def test_tasks_interleave_without_meeting() -> None:
    """A task that waits inside its context never sees another's, and a child task inherits its parent's."""

    async def child() -> str:
        await asyncio.sleep(0)
        return used()

    async def task(name: str) -> list[str]:
        with fc.use_backend(name):
            found = []
            for _ in range(5):
                await asyncio.sleep(0)
                found.append(used())
            return [*found, await asyncio.create_task(child())]

    async def all_of_them() -> list[list[str]]:
        return list(await asyncio.gather(*(task(name) for name in ("naive", "im2col", "naive"))))

    assert asyncio.run(all_of_them()) == [["naive"] * 6, ["im2col"] * 6, ["naive"] * 6]
    assert fc.get_backend() == "auto"


def test_contexts_nest_and_auto_is_one_of_them() -> None:
    """Leaving contexts in the order they were entered restores each."""
    with fc.use_backend("naive"), fc.use_backend("auto"):
        assert fc.get_backend() == "auto"
        assert used() == next(name for name, state in fc.backends().items() if state == "available")
    assert fc.get_backend() == "auto"


def test_set_num_threads_is_for_all_threads() -> None:
    fc.set_num_threads(3)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(fc.get_num_threads).result() == 3
    fc.set_num_threads(1)
    assert fc.get_num_threads() == 1


@pytest.mark.parametrize("wrong", [0, -1, True, 1.0, "2", None])
def test_a_refused_thread_count_changes_nothing(wrong: object) -> None:
    fc.set_num_threads(2)
    with pytest.raises((TypeError, ValueError), match=r"n: got .* expected"):
        fc.set_num_threads(wrong)  # type: ignore[arg-type]
    assert fc.get_num_threads() == 2


def test_more_threads_than_there_are() -> None:
    """A thread count beyond all CPUs is only a limit."""
    fc.set_num_threads(10**6)
    x, w = np.ones((2, 3, 40, 40), "f4"), np.ones((4, 3, 9, 9), "f4")
    for algorithm in ("im2col", "fft"):
        result = fc.conv2d(x, w, backend="im2col", algorithm=algorithm)
        assert result.shape == (2, 4, 32, 32)


def test_threads_may_be_a_numpy_integer() -> None:
    before = fc.get_num_threads()
    try:
        fc.set_num_threads(np.int64(3))  # type: ignore[arg-type]
        assert fc.get_num_threads() == 3
    finally:
        fc.set_num_threads(before)
