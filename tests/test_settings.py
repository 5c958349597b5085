"""Which backend runs: by call, by context, by default, by the variable; and how many threads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import fastconv as fc

X, W = np.ones((1, 1, 4, 4), "f4"), np.ones((1, 1, 2, 2), "f4")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = fc.get_backend()
    yield
    fc.set_backend(before)


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
